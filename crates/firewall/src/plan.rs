//! From the configuration and the machine to the plan: which interfaces, which listeners are open to guests, which
//! addresses are bound to which port, and what the operator should know before it is applied.

mod listeners;
mod notes;
mod pinned;
mod sysctls;

pub(super) use listeners::{DirectListener, FamilyListeners};
pub(super) use pinned::Pinned;

use super::host::{self, Host, Link, fits};
use super::neighbours;
use super::presence::Seal;
use super::settings::{BetweenGuests, PlanInput};
use super::tracking::{self, Rations};
use super::{TABLES, routing, script};
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
    /// Which bridges' guests may reach each other: the first entry that covers a bridge decides.
    pub(super) between: Vec<BetweenGuests>,
    /// The existing ports of bridges whose guests may reach each other.
    pub(super) open_ports: Vec<String>,
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

impl Plan {
    /// Creates the plan for this machine.
    pub fn new(input: &PlanInput, host: &Host) -> Plan {
        let wanted = &input.firewall;
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
            v4: FamilyListeners::of(&input.listen, SocketAddr::is_ipv4),
            v6: FamilyListeners::of(&input.listen, SocketAddr::is_ipv6),
            scope: Scope::Bridges,
            ports: Vec::new(),
            between: wanted.between_guests_in_order().into_iter().cloned().collect(),
            open_ports: Vec::new(),
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
            pinned: pinned::by_interface(&wanted.pins),
            notes: Vec::new(),
            faults,
        };
        plan.ports = plan.ports_of_guests(host);
        plan.open_ports =
            host.ports_of(|bridge| plan.allows_between_guests(bridge)).map(|link| link.name.clone()).collect();
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

    /// Returns whether the guests of this bridge may reach each other.
    pub(super) fn allows_between_guests(&self, bridge: &str) -> bool {
        self.is_guest(bridge) && BetweenGuests::decide(&self.between, bridge)
    }

    /// Returns whether the guests of any bridge may reach each other.
    pub(super) fn allows_between_any(&self) -> bool {
        self.between.iter().any(|entry| entry.is_allowed)
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
}
