//! From the configuration and the machine to the plan: which interfaces, which listeners are open to guests, which
//! addresses are bound to which port, and what the operator should know before it is applied.

use super::host::{self, Host, Link, fits};
use super::neighbours;
use super::presence::Seal;
use super::settings::{ListenerAddresses, Pin, PlanInput};
use super::tracking::{self, Rations};
use super::{TABLES, routing, script};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The planned firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Patterns of interfaces that guests' packets enter by.
    pub(super) guests: Vec<String>,
    pub(super) seal: Seal,
    pub(super) v4: FamilyListeners,
    pub(super) v6: FamilyListeners,
    /// By interface.
    pub(super) pinned: BTreeMap<String, Pinned>,
    /// How frames of guest bridges are distinguished from others.
    pub(super) scope: Scope,
    /// The existing ports of guest bridges, and those that will be a guest's.
    pub(super) ports: Vec<String>,
    /// Numbers of the users whose sockets are directed to `redirect`.
    pub(super) users: Vec<u32>,
    pub(super) allow_dhcp: bool,
    pub(super) allow_inbound_replies: bool,
    pub(super) routing: routing::Routing,
    /// How much of the connection tracking table guests may use.
    pub(super) rations: Rations,
    pub(super) here: Here,
    /// What will not work as the configuration may suggest, one sentence each.
    notes: Vec<String>,
    /// What prevents the plan from being complete.
    faults: Vec<String>,
}

/// The listeners of one address family, as guests see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FamilyListeners {
    /// Destination of TCP.
    pub(super) transparent: Option<SocketAddr>,
    /// Destination of DNS queries.
    pub(super) dns: Option<SocketAddr>,
    /// What guests may connect to directly.
    pub(super) open: Vec<DirectListener>,
    /// Destination of host users' TCP.
    pub(super) redirect: Option<SocketAddr>,
    /// Destination of their DNS queries.
    pub(super) user_dns: Option<SocketAddr>,
    /// What host users may connect to directly, loopback included.
    pub(super) user_open: Vec<DirectListener>,
}

/// A listener that accepts direct connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectListener {
    pub(super) address: SocketAddr,
    /// Its key in the configuration.
    pub(super) key: &'static str,
    /// Whether it accepts UDP beside TCP.
    pub(super) udp: bool,
}

/// The guests and addresses that are bound to one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pinned {
    pub(super) guests: Vec<String>,
    pub(super) v4: Vec<Ipv4Net>,
    pub(super) v6: Vec<Ipv6Net>,
}

/// How frames of guest bridges are distinguished from those of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// By the name of the bridge: also applies to later ports.
    Bridges,
    /// By a set of ports, if the kernel cannot match bridges.
    Ports,
}

/// The properties of this machine that the ruleset is made for, beside its interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Here {
    /// Guests' bridges that exist.
    pub(super) bridges: Vec<String>,
    /// The number of the user that the daemon runs as, if it has its own.
    pub(super) daemon: Option<u32>,
    /// Whether rules can set the lifetime of a connection tracking entry.
    pub(super) has_ct_timeouts: bool,
    /// Whether rules can see ARP on interfaces that are not bridge ports.
    pub(super) has_arp_tables: bool,
    /// Whether br_netfilter is present before the ruleset.
    pub(super) filters_bridges: bool,
}

/// Bytes of packets, with the kernel's overhead for each, that wait for one neighbour to be resolved: about five
/// replies.
const UNRESOLVED: &str = "4096";

impl Plan {
    /// Creates the plan for this machine.
    pub fn new(input: &PlanInput, host: &Host) -> Plan {
        let wanted = &input.firewall;
        let pinned = pinned(&wanted.pins);
        let mut faults = Vec::new();
        let mut users = Vec::new();
        let daemon = host::user_number("outgate");
        for user in &wanted.host_users {
            match host::user_number(user) {
                Some(0) => faults.push(format!("host user {user} is root, and outgate may run as root: ignored")),
                Some(number) if Some(number) == daemon => {
                    faults.push(format!("host user {user} is the one outgate runs as: ignored"));
                }
                Some(number) => users.push(number),
                None => faults.push(format!("there is no user {user}: ignored; create it, then apply again")),
            }
        }
        users.sort_unstable();
        users.dedup();
        let mut plan = Plan {
            guests: wanted.guest_interfaces.clone(),
            seal: Seal::of(wanted, &input.listen),
            v4: listeners(&input.listen, SocketAddr::is_ipv4),
            v6: listeners(&input.listen, SocketAddr::is_ipv6),
            scope: Scope::Bridges,
            ports: Vec::new(),
            users,
            allow_dhcp: wanted.allow_dhcp,
            allow_inbound_replies: wanted.allow_inbound_replies,
            routing: routing::Routing::default(),
            rations: Rations::new(wanted, &input.limits),
            here: Here {
                bridges: Vec::new(),
                daemon,
                has_ct_timeouts: host.has_ct_timeouts,
                has_arp_tables: host.has_arp_tables,
                filters_bridges: host.filters_bridges,
            },
            pinned,
            notes: Vec::new(),
            faults,
        };
        plan.ports = plan.ports_of_guests(host);
        plan.here.bridges =
            plan.guest_links(host).filter(|link| link.is_bridge).map(|link| link.name.clone()).collect();
        if !host.matches_bridges {
            plan.scope = Scope::Ports;
        }
        plan.routing = routing::Routing::new(&plan, host);
        plan.notes = plan.remarks(host);
        if plan.is_wanted() {
            let guests = input.guests.max(plan.known_guests(host));
            plan.notes.extend(tracking::too_small(input, guests, host.most_tracked));
            let alone = plan.guest_links(host).filter(|link| !link.is_bridge && link.master.is_none());
            let alone = alone.filter(|link| !plan.pinned.get(&link.name).is_some_and(neighbours::is_few)).count();
            plan.notes.extend(neighbours::too_small(guests, alone, &host.neighbours));
        }
        plan
    }

    /// Returns family and name of each table that this machine can have.
    pub(super) fn tables(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let has_arp = self.here.has_arp_tables;
        TABLES.into_iter().filter(move |(family, _)| *family != "arp" || has_arp)
    }

    /// Returns the ruleset, as nft(8) reads it: all tables, replaced in one transaction.
    pub fn ruleset(&self) -> String {
        script::write(self)
    }

    /// Returns the routing, one line of ip(8) each, with comments.
    pub fn routing_lines(&self) -> Vec<String> {
        self.routing.lines()
    }

    /// Returns the kernel settings of guests' interfaces, as lines of sysctl.conf(5).
    pub fn sysctl_lines(&self, host: &Host) -> Vec<String> {
        let settings = self.sysctls(host);
        settings.into_iter().map(|(path, value)| format!("{} = {value}", sysctl_name(&path))).collect()
    }

    /// Returns what will not work as the configuration may suggest, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns what the configuration requires and this machine does not support, one sentence each.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Returns whether a process of this machine opens connections on behalf of a guest or a host user.
    pub(super) fn host_opens(&self) -> bool {
        !self.users.is_empty() || self.here.daemon.is_some()
    }

    /// Returns how many guests the machine's interfaces show.
    fn known_guests(&self, host: &Host) -> usize {
        self.ports.len() + self.guest_links(host).filter(|link| !link.is_bridge).count() + self.users.len()
    }

    pub(super) fn is_guest(&self, interface: &str) -> bool {
        self.guests.iter().any(|pattern| fits(pattern, interface))
    }

    /// Returns the existing interfaces that guests' packets enter by.
    pub(super) fn guest_links<'h>(&self, host: &'h Host) -> impl Iterator<Item = &'h Link> {
        host.links.iter().filter(|link| self.is_guest(&link.name))
    }

    /// Returns how many bridge ports of guests exist.
    pub fn guest_port_count(&self, host: &Host) -> usize {
        self.guest_ports(host).count()
    }

    fn ports_of_guests(&self, host: &Host) -> Vec<String> {
        let now = host.ports_of(|bridge| self.is_guest(bridge)).map(|link| link.name.clone());
        // A guest's interface by its name is not considered a port before it is one.
        let later = self.pinned.keys().filter(|name| host.link(name).is_none() && !self.is_guest(name)).cloned();
        let mut ports: Vec<String> = now.chain(later).collect();
        ports.sort();
        ports.dedup();
        ports
    }

    /// Returns whether the configuration requires a firewall.
    pub fn is_wanted(&self) -> bool {
        !self.guests.is_empty() || !self.users.is_empty() || !self.faults.is_empty()
    }

    /// Returns the missing interfaces that the configuration names, one sentence each.
    pub(super) fn missing(&self, host: &Host) -> Vec<String> {
        let named = self.guests.iter().filter(|name| !name.ends_with('*') && host.link(name).is_none());
        named
            .map(|name| {
                format!(
                    "interface {name} of [firewall].guest_interfaces is missing: if it has another name now, its \
                     guests are not guarded"
                )
            })
            .collect()
    }

    /// Returns what in the configuration does not fit the interfaces and users of this machine, one sentence each.
    pub fn in_the_way(&self, host: &Host) -> Vec<String> {
        self.faults.iter().cloned().chain(self.missing(host)).chain(self.lockouts(host)).collect()
    }

    /// Returns the guests' interfaces that carry this machine's own default route, one sentence each.
    pub(super) fn lockouts(&self, host: &Host) -> Vec<String> {
        let own = host.default_routes.iter().filter(|name| self.is_guest(name));
        own.map(|name| {
            format!(
                "{name} carries this machine's default route: everything that arrives by it counts as a guest, so \
                 sessions to this machine (SSH) by {name} end; `outgate firewall remove` at the console undoes it"
            )
        })
        .collect()
    }

    /// Returns patterns of interfaces that may appear later.
    pub(super) fn wildcards(&self) -> Vec<String> {
        self.guests.iter().filter(|pattern| pattern.ends_with('*')).cloned().collect()
    }

    /// Returns the existing ports that are a guest's: of its bridge or by its own name. Never another port of a
    /// bridge that is not a guest's.
    pub(super) fn guest_ports<'h>(&self, host: &'h Host) -> impl Iterator<Item = &'h Link> {
        let own = |name: &str| self.is_guest(name) || self.pinned.contains_key(name);
        let is =
            move |link: &&Link| link.master.as_deref().is_some_and(|bridge| self.is_guest(bridge) || own(&link.name));
        host.links.iter().filter(is)
    }

    /// Returns the kernel settings that guests' interfaces should have, by path.
    pub(super) fn sysctls(&self, host: &Host) -> Vec<(String, &'static str)> {
        let mut settings = Vec::new();
        for link in self.guest_links(host) {
            let name = &link.name;
            for (key, value) in [
                // A second layer behind the ruleset's spoof check, in case somebody flushes it.
                ("rp_filter", "1"),
                // 127.0.0.0/8 stays this machine's own.
                ("route_localnet", "0"),
                ("accept_redirects", "0"),
                ("send_redirects", "0"),
                ("accept_source_route", "0"),
                // No unsolicited sender becomes a neighbour; requests are counted.
                ("arp_accept", "0"),
            ] {
                settings.push((format!("/proc/sys/net/ipv4/conf/{name}/{key}"), value));
            }
            // Packets that wait for a guest without an ARP reply still count in the send buffer of their socket,
            // and all guests share that of DNS. The kernel keeps the newest packet in any case.
            settings.push((format!("/proc/sys/net/ipv4/neigh/{name}/unres_qlen_bytes"), UNRESOLVED));
            if host.ipv6 {
                for key in ["accept_ra", "accept_redirects", "accept_source_route", "accept_untracked_na"] {
                    settings.push((format!("/proc/sys/net/ipv6/conf/{name}/{key}"), "0"));
                }
                settings.push((format!("/proc/sys/net/ipv6/neigh/{name}/unres_qlen_bytes"), UNRESOLVED));
            }
        }
        settings
    }

    /// Returns those of the kernel settings that currently differ, one sentence each.
    pub(super) fn other_sysctls(&self, host: &Host) -> Vec<String> {
        let other = |(path, value): (String, &'static str)| {
            let now = host::sysctl(&path).filter(|now| now != value)?;
            Some(format!("{path} is {now} and should be {value}"))
        };
        self.sysctls(host).into_iter().filter_map(other).collect()
    }

    fn remarks(&self, host: &Host) -> Vec<String> {
        let mut notes = self.lockouts(host);
        let guests = !self.guests.is_empty();
        for (family, listeners) in [("IPv4", &self.v4), ("IPv6", &self.v6)] {
            if guests && listeners.transparent.is_none() {
                notes.push(format!(
                    "{family}: [listen].transparent has no {family} address, so guests' {family} connections are refused"
                ));
            }
            if !self.users.is_empty() && listeners.redirect.is_none() {
                notes.push(format!(
                    "{family}: [listen].redirect has no {family} address, so host users' {family} connections are refused"
                ));
            }
        }
        if guests && self.v4.dns.is_none() && self.v6.dns.is_none() {
            notes.push("[listen].dns has no address that guests reach, so their queries are refused".to_owned());
        }
        for pattern in self.guests.iter().filter(|pattern| pattern.ends_with('*')) {
            notes.push(format!(
                "{pattern}: the ruleset also covers interfaces that appear later, but the routing rule that keeps them \
                 closed when nftables is flushed names each interface: keep outgate-host.service (`outgate firewall \
                 watch`) running, or run `outgate firewall apply` after one was added"
            ));
        }
        if self.scope == Scope::Ports && self.guest_links(host).any(|link| link.is_bridge) {
            notes.push(
                "this kernel's nftables cannot match bridges (nft_meta_bridge), so ports are named one by one: keep \
                 outgate-host.service (`outgate firewall watch`) running, or run `outgate firewall apply` after one \
                 was added"
                    .to_owned(),
            );
        }
        if !host.has_arp_tables && self.guest_links(host).any(|link| !link.is_bridge) {
            notes.push(
                "this kernel has no tables for ARP (CONFIG_NF_TABLES_ARP), so a guest with an interface of its own can fill the \
                 neighbour table with the addresses of its subnet: give it a route of /32"
                    .to_owned(),
            );
        }
        if !host.has_ct_timeouts {
            notes.push(
                "this kernel cannot say how long an entry of connection tracking lives (nfnetlink_cttimeout), so \
                 entries of queries stay for as long as the kernel's own settings say: guests can use ten times as \
                 many"
                    .to_owned(),
            );
        } else if self.here.daemon.is_none() {
            notes.push(
                "there is no user outgate, so the entries of connections that the daemon opens stay in connection tracking \
                 for two minutes after they have ended"
                    .to_owned(),
            );
        }
        for link in self.guest_links(host) {
            if let Some(bridge) = link.master.as_deref().filter(|bridge| !self.is_guest(bridge)) {
                let name = &link.name;
                notes.push(format!(
                    "{name} is a port of {bridge}, which is where its packets enter; put \"{bridge}\" into \
                     [firewall].guest_interfaces: until then all frames of {name} are dropped"
                ));
            }
        }
        for (interface, pinned) in &self.pinned {
            let Some(link) = host.link(interface) else { continue };
            if !self.is_guest(interface) && !link.master.as_deref().is_some_and(|bridge| self.is_guest(bridge)) {
                notes.push(format!(
                    "{interface} of {} is neither in [firewall].guest_interfaces nor a port of a bridge that is: \
                     nothing brings its traffic here",
                    pinned.guests.join(", ")
                ));
            }
        }
        notes
    }
}

fn sysctl_name(path: &str) -> String {
    // sysctl(8) accepts slashes, which names that contain dots require.
    path.trim_start_matches("/proc/sys/").to_owned()
}

fn pinned(pins: &[Pin]) -> BTreeMap<String, Pinned> {
    let mut by_interface: BTreeMap<String, Pinned> = BTreeMap::new();
    for pin in pins {
        let pinned = by_interface.entry(pin.interface.clone()).or_default();
        pinned.guests.push(pin.guest.clone());
        for net in &pin.addresses {
            match net {
                IpNet::V4(net) => pinned.v4.push(*net),
                IpNet::V6(net) => pinned.v6.push(*net),
            }
        }
    }
    for pinned in by_interface.values_mut() {
        // nft refuses ranges within ranges.
        pinned.v4 = Ipv4Net::aggregate(&pinned.v4);
        pinned.v6 = Ipv6Net::aggregate(&pinned.v6);
    }
    by_interface
}

fn listeners(listen: &ListenerAddresses, family: impl Fn(&SocketAddr) -> bool) -> FamilyListeners {
    let of = |list: &[SocketAddr]| list.iter().copied().filter(&family).collect::<Vec<_>>();
    // A packet from outside for a loopback address is a martian, so guests cannot reach such a listener.
    let remote = |list: &[SocketAddr]| of(list).into_iter().filter(|address| !address.ip().is_loopback());
    let listener = |key, udp| move |address| DirectListener { address, key, udp };
    let proxies = [("proxy", &listen.proxy), ("proxy_tls", &listen.proxy_tls)];
    let mut listeners = FamilyListeners {
        transparent: remote(&listen.transparent).next(),
        dns: remote(&listen.dns).next(),
        redirect: of(&listen.redirect).first().copied(),
        user_dns: of(&listen.dns).first().copied(),
        ..FamilyListeners::default()
    };
    for (key, list) in proxies {
        listeners.open.extend(remote(list).map(listener(key, false)));
        listeners.user_open.extend(of(list).into_iter().map(listener(key, false)));
    }
    listeners.open.extend(remote(&listen.dns).map(listener("dns", true)));
    listeners.user_open.extend(of(&listen.dns).into_iter().map(listener("dns", true)));
    listeners
}

impl Plan {
    /// Returns every address that is bound to some interface.
    pub(super) fn pinned_addresses(&self) -> (Vec<String>, Vec<String>) {
        let v4: Vec<Ipv4Net> = self.pinned.values().flat_map(|pinned| pinned.v4.iter().copied()).collect();
        let v6: Vec<Ipv6Net> = self.pinned.values().flat_map(|pinned| pinned.v6.iter().copied()).collect();
        (texts(&Ipv4Net::aggregate(&v4)), texts(&Ipv6Net::aggregate(&v6)))
    }
}

impl Pinned {
    /// Returns the interface and its guests, for comments, in 80 bytes at most.
    pub(super) fn label(&self, interface: &str) -> String {
        let guests = self.guests.join(" ");
        let mut label = format!("{interface}: {guests}");
        // Names of guests and interfaces are ASCII, so a cut never splits a character.
        label.truncate(80);
        label
    }

    pub(super) fn v4_text(&self) -> Vec<String> {
        texts(&self.v4)
    }

    pub(super) fn v6_text(&self) -> Vec<String> {
        texts(&self.v6)
    }
}

fn texts<T: ToString>(nets: &[T]) -> Vec<String> {
    nets.iter().map(T::to_string).collect()
}
