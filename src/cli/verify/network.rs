//! What a run is made in: a sentinel outside, to which this machine routes, and for each interface two guests. The
//! namespaces have no names, so a killed run leaves only what lies on interfaces that stay: routes, routing rules and
//! registered guests, which the next run removes first.

use super::addresses::{Addresses, Family, choose, ranges};
use super::capture::{Capture, Filter};
use super::namespace::{Namespace, own_number};
use super::packet::Round;
use crate::cli::ask::Daemon;
use crate::cli::bridge::{Application, Question, tool};
use crate::cli::exec::warn;
use crate::cli::firewall::in_line;
use crate::cli::lock::Lock;
use crate::cli::{Failure, routes};
use ipnet::IpNet;
use outgate::config::Settings;
use outgate::firewall::{self, FirewallError, GuestEntry, Host, PROBE_ALIAS};
use outgate::proof::FOLDER;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest name of an interface, in bytes (IFNAMSIZ).
const LONGEST_NAME: usize = 15;
/// The number of routes to the guests and sentinels that stay.
const PROOF_PROTOCOL: u8 = 248;
/// The beginning of MACs. A bridge without one of its own takes its ports' lowest, so the first byte of this machine's
/// ends is high.
const HOST_MAC: &str = "fe:ff:ff:67";
const INNER_MAC: &str = "02:00:6f:67";
/// The sentinel's ports, so that a connection that comes through is also answered.
const OPEN: [u16; 5] = [22, 53, 80, 443, 853];
/// How long a port of a bridge may take until it forwards: libvirt's have spanning tree with the shortest delay, which makes 4 s.
const FORWARDING: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(50);

/// The names and numbers of what is made, so that a run finds what a killed one left, and two commands do not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Traces {
    /// The guests' names.
    guests: [String; 2],
    /// This machine's interface towards the sentinel.
    out: String,
    /// The guests' ports on a bridge.
    ports: [String; 2],
    /// What is appended to the stem of a pattern, the longest first that an interface's name has room for.
    suffixes: [[String; 2]; 3],
    /// By this an interface is recognised: its name alone may be anybody's.
    alias: String,
    /// The number of routes (`proto`, as in ip-route(8)).
    protocol: u8,
    /// The fifth byte of MACs, and the sixth but for its last digit.
    mac: String,
    /// The beginning of the path of a file that only one run at a time can lock; the number of the network namespace
    /// follows.
    lock: String,
    /// The command that it is.
    command: &'static str,
    /// Whether it is the only one with this number of routes, and so removes what an earlier one left.
    is_alone: bool,
}

impl Traces {
    /// Returns those of a single run.
    pub(in crate::cli) fn of_verify() -> Traces {
        let two = |stem: &str| ["1", "2"].map(|n| format!("{stem}{n}"));
        Traces {
            guests: two("@verify-"),
            out: "ogv-out".to_owned(),
            ports: two("ogv-"),
            suffixes: [two("ogv"), two("og"), two("")],
            alias: format!("{PROBE_ALIAS}of verify"),
            protocol: 247,
            mac: "76:0".to_owned(),
            lock: "/run/outgate-verify".to_owned(),
            command: "outgate verify",
            is_alone: true,
        }
    }

    /// Returns those of the guests and the sentinel that stay, of the interface with this number, two digits at most.
    pub(in crate::cli) fn of_proof(number: u8) -> Traces {
        let two = |stem: &str| ["a", "b"].map(|n| format!("{stem}{n}"));
        Traces {
            guests: two(&format!("@proof-{number}")),
            out: format!("ogp{number}-out"),
            ports: two(&format!("ogp{number}")),
            suffixes: [two(&format!("ogp{number}")), two(&format!("p{number}")), two("")],
            alias: format!("{PROBE_ALIAS}{number} of proof"),
            protocol: PROOF_PROTOCOL,
            mac: format!("{number:02x}:8"),
            lock: format!("{FOLDER}/{number}"),
            command: "outgate proof net",
            is_alone: false,
        }
    }

    /// Returns the names of two interfaces that fit a pattern.
    fn names_of(&self, pattern: &str) -> Result<Vec<String>, String> {
        let stem = pattern.trim_end_matches('*');
        let longest = self.suffixes.iter().find(|[one, _]| stem.len().saturating_add(one.len()) <= LONGEST_NAME);
        let none = || format!("no name of an interface is long enough for {pattern} and one more letter");
        Ok(longest.ok_or_else(none)?.iter().map(|suffix| format!("{stem}{suffix}")).collect())
    }

    fn host_mac(&self, number: usize) -> String {
        format!("{HOST_MAC}:{}{number}", self.mac)
    }

    fn inner_mac(&self, number: usize) -> String {
        format!("{INNER_MAC}:{}{number}", self.mac)
    }
}

/// The part that all interfaces share.
#[derive(Debug)]
pub(in crate::cli) struct Network {
    traces: Traces,
    daemon: Daemon,
    pub(super) settings: Settings,
    pub(super) host: Host,
    v4: Result<Addresses, Untried>,
    v6: Result<Addresses, Untried>,
    pub(super) round: Arc<Round>,
    pub(super) sentinel: Capture,
    /// Why the guests are not registered, if they are not.
    pub(super) unregistered: Option<String>,
    /// All addresses of this machine.
    pub(super) own: Vec<IpAddr>,
    registered: Vec<String>,
    lock: Option<Lock>,
    pub(super) outside: Namespace,
    _listeners: Vec<TcpListener>,
}

/// Why something is not tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Untried {
    /// There is nothing to try.
    NotApplicable(String),
    /// It could not be tried.
    Failed(String),
}

impl Untried {
    pub(super) fn failed(failure: Failure) -> Untried {
        Untried::Failed(failure.to_string().trim_start_matches("outgate: ").to_owned())
    }

    /// Returns the reason.
    pub(super) fn why(&self) -> &str {
        let (Untried::NotApplicable(why) | Untried::Failed(why)) = self;
        why
    }
}

/// Two guests behind one interface.
#[derive(Debug)]
pub(super) struct Guests {
    /// The interfaces that were added.
    names: Vec<String>,
    /// The interface that packets enter by, of the first guest.
    pub(super) entry: String,
    pub(super) first: Namespace,
    pub(super) second: Namespace,
    /// Why a family cannot be tried here.
    pub(super) without: Vec<(Family, Untried)>,
    /// Whether the guests share a link.
    pub(super) share_link: bool,
    routes: Vec<(Family, String)>,
    traces: Traces,
}

impl Network {
    /// Removes what a killed run left, and makes the sentinel.
    pub(super) fn make(
        daemon: &Daemon,
        settings: Settings,
        entries: &[GuestEntry],
        host: Host,
        named: &[IpNet],
        traces: Traces,
    ) -> Result<Network, Failure> {
        let lock = take_lock(&traces)?;
        let guests = match traces.is_alone {
            true => sweep(daemon, entries, named, &traces)?,
            false => daemon.ask(Question::Guests).unwrap_or_default(),
        };
        let chosen = |family: Family| -> Result<Addresses, String> {
            let mut taken = routes::taken(family.option()).map_err(|failure| failure.to_string())?;
            // Those of a killed run are no guests any more.
            let declared = settings.policy.guests.iter().filter(|guest| !traces.guests.contains(&guest.name));
            taken.extend(routes::of_guests(&guests));
            taken.extend(declared.flat_map(|guest| guest.addresses.iter().copied()));
            choose(&ranges(named, family), &taken)
        };
        let v6 = match has_ipv6() {
            true => chosen(Family::V6).map_err(Untried::Failed),
            false => Err(Untried::NotApplicable("this machine has no IPv6".to_owned())),
        };
        let v4 = chosen(Family::V4).map_err(Untried::Failed);
        if let (Err(v4), Err(v6)) = (&v4, &v6) {
            return Err(Failure::Failed(format!("{}; {}", v4.why(), v6.why())));
        }
        let addresses: Vec<Addresses> = [&v4, &v6].into_iter().flatten().copied().collect();
        let senders = addresses.iter().flat_map(|one| one.guests);
        // After NAT the sender is this machine.
        let own = own_addresses()?;
        let round = Arc::new(Round::new(random(), senders.chain(own.iter().copied()).collect()));
        let outside = Namespace::new()?;
        let made = outside_link(&outside, &v4, &v6, &traces);
        let sentinels = addresses.iter().map(|one| one.sentinel).collect();
        let rest = made.and_then(|without| {
            let capture = Capture::start(&outside, Filter::Arrivals(sentinels), Arc::clone(&round))?;
            let listeners = outside.run(|| Ok(listeners())).map_err(|error| Failure::Failed(error.to_string()))?;
            Ok((without, capture, listeners))
        });
        let (without, sentinel, listeners) = rest.inspect_err(|_| remove_links([&traces.out], &traces))?;
        let mut network = Network {
            traces,
            daemon: daemon.clone(),
            settings,
            host,
            v4,
            v6: without.map_or(v6, Err),
            round,
            sentinel,
            unregistered: None,
            own: own.into_iter().chain(addresses.iter().map(|one| one.host)).collect(),
            registered: Vec::new(),
            lock: Some(lock),
            outside,
            _listeners: listeners,
        };
        network.register();
        Ok(network)
    }

    /// Returns the addresses of a family, or why there are none.
    pub(super) fn of(&self, family: Family) -> &Result<Addresses, Untried> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Returns whether the daemon answered.
    pub(super) fn has_daemon(&self) -> bool {
        !self.registered.is_empty()
    }

    /// Returns whether the way to the sentinel is there.
    pub(super) fn is_there(&self, host: &Host) -> bool {
        host.interfaces().any(|interface| interface.name == self.traces.out)
    }

    /// Registers the guests again, should the daemon not have them.
    pub(super) fn register_again(&mut self) {
        self.unregistered = None;
        self.registered.clear();
        self.register();
    }

    /// Registers the guests, so that the daemon judges them as guests and counts them under their own names. Without
    /// an interface: that would apply the firewall, which is what is to be tried.
    fn register(&mut self) {
        for (at, name) in self.traces.guests.iter().enumerate() {
            let addresses = [&self.v4, &self.v6].into_iter().flatten().filter_map(|one| one.guests.get(at));
            let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
            let application = Application { name: name.clone(), addresses, ..Application::default() };
            let ask = || self.daemon.ask(Question::Register(&application));
            // A killed run may have registered it with other addresses.
            match ask().or_else(|failure| match self.daemon.ask(Question::Remove(name)) {
                Ok(_) => ask(),
                Err(_) => Err(failure),
            }) {
                Ok(_) => self.registered.push(name.clone()),
                Err(failure) => {
                    let why = failure.to_string().trim_start_matches("outgate: ").to_owned();
                    self.unregistered.get_or_insert(why);
                    return;
                }
            }
        }
    }

    /// Makes two guests behind an interface.
    ///
    /// # Errors
    /// Why there can be none, or are none.
    pub(super) fn guests(&self, entry: &GuestEntry) -> Result<Guests, Untried> {
        let names = match entry {
            GuestEntry::Bridge(bridge) if !is_up(bridge).map_err(Untried::failed)? => {
                return Err(Untried::NotApplicable(format!("{bridge} is down, so nothing enters by it")));
            }
            GuestEntry::Bridge(_) => self.traces.ports.to_vec(),
            GuestEntry::Pattern(pattern) => self.traces.names_of(pattern).map_err(Untried::NotApplicable)?,
            GuestEntry::Single(name) => {
                let why = format!("{name} is the interface of one guest, and nothing else can send through it");
                return Err(Untried::NotApplicable(why));
            }
            GuestEntry::Missing(name) => {
                return Err(Untried::NotApplicable(format!("{name} does not exist now")));
            }
        };
        let (first, second) = (Namespace::new(), Namespace::new());
        let mut guests = Guests {
            entry: match entry {
                GuestEntry::Bridge(bridge) => bridge.clone(),
                _ => names.first().cloned().unwrap_or_default(),
            },
            names,
            first: first.map_err(Untried::failed)?,
            second: second.map_err(Untried::failed)?,
            without: Vec::new(),
            share_link: matches!(entry, GuestEntry::Bridge(_)),
            routes: Vec::new(),
            traces: self.traces.clone(),
        };
        guests.build(self, entry).map_err(Untried::failed)?;
        Ok(guests)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.registered.drain(..) {
            if let Err(failure) = self.daemon.ask(Question::Remove(&name)) {
                let failure = failure.to_string();
                warn(&format!("{name} is still registered: {}", failure.trim_start_matches("outgate: ")));
            }
        }
        remove_links([&self.traces.out], &self.traces);
        // Whoever waits for it may go on; the file says nothing.
        let _ = self.lock.take().map(Lock::remove);
    }
}

impl Guests {
    /// Returns whether their interfaces are there.
    pub(super) fn are_there(&self, host: &Host) -> bool {
        self.names.iter().all(|name| host.interfaces().any(|interface| interface.name == *name))
    }

    fn build(&mut self, network: &Network, entry: &GuestEntry) -> Result<(), Failure> {
        let bridge = if let GuestEntry::Bridge(bridge) = entry { Some(bridge.as_str()) } else { None };
        // Else the watcher would see an interface that is not protected yet, and report it.
        let in_line = in_line();
        // A port with a smaller MTU would make that of the bridge smaller.
        let mtu = bridge.map(link_facts).transpose()?.map(|(mtu, _)| format!(" mtu {mtu}")).unwrap_or_default();
        for (n, (name, inside)) in self.names.iter().zip([&self.first, &self.second]).enumerate() {
            let n = n.saturating_add(1);
            let mut lines = format!(
                "link add name {name}{mtu} address {} type veth peer name eth0{mtu} address {} netns {}\nlink set dev \
                 {name} alias \"{}\"\n",
                self.traces.host_mac(n),
                self.traces.inner_mac(n),
                inside.path(),
                self.traces.alias
            );
            if let Some(bridge) = bridge {
                lines.push_str(&format!("link set dev {name} addrgenmode none\nlink set dev {name} master {bridge}\n"));
            }
            tool::run("ip", &["-batch", "-"], &lines, "to make an interface")?;
            if bridge.is_none() {
                // Its own address must be usable at once.
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
            }
        }
        firewall::admit(&network.settings.plan_input(), &network.host, &self.names)?;
        let up: String = self.names.iter().map(|name| format!("link set dev {name} up\n")).collect();
        tool::run("ip", &["-batch", "-"], &up, "to open an interface")?;
        drop(in_line);
        for family in Family::BOTH {
            let Ok(addresses) = network.of(family) else { continue };
            if family == Family::V6 && is_without_ipv6(&self.entry) {
                self.without.push((family, Untried::NotApplicable(format!("{} has no IPv6", self.entry))));
                continue;
            }
            if let Err(failure) = self.address(family, addresses, bridge) {
                self.without.push((family, Untried::failed(failure)));
            }
        }
        let why = |family: Family| {
            let here = self.without.iter().find(|(without, _)| *without == family).map(|(_, why)| why);
            network.of(family).as_ref().err().or(here).map(Untried::why)
        };
        if let [Some(v4), Some(v6)] = Family::BOTH.map(why) {
            return Err(Failure::Failed(format!("{v4}; {v6}")));
        }
        bridge.map_or(Ok(()), |_| self.await_forwarding())
    }

    /// Gives both guests their addresses of a family, and this machine the routes to them.
    fn address(&mut self, family: Family, addresses: &Addresses, bridge: Option<&str>) -> Result<(), Failure> {
        let length = if family == Family::V4 { "/32" } else { "/128 nodad" };
        let option = family.option();
        let protocol = self.traces.protocol.to_string();
        let Addresses { host, direct, guests: [one, two], .. } = addresses;
        // To a listener on every address the kernel brings queries by an address of the interface that they come by
        // (nft `redirect`), which a bridge that fits the pattern would have.
        if bridge.is_none()
            && let Some(name) = self.names.first()
        {
            tool::run("ip", &["-batch", "-"], &format!("addr add {host}{length} dev {name}\n"), "to give an address")?;
        }
        for (n, (name, inside, own)) in [(0, &self.first, one), (1, &self.second, two)]
            .map(|(n, inside, own)| (n, (self.names.get(n), inside, own)))
        {
            let Some(name) = name else { continue };
            let device = bridge.unwrap_or(name);
            let route = format!("{own} dev {device}");
            let add = ["route", "add"].into_iter().chain(route.split(' ')).chain(["proto", &protocol]);
            let add: Vec<&str> = std::iter::once(option).chain(add).collect();
            tool::run("ip", &add, "", "to route to a guest")?;
            self.routes.push((family, route));
            // The gateway's MAC is known, so that the way does not depend on an address of the interface.
            let (_, mac) = link_facts(device)?;
            let mut lines = format!(
                "link set dev eth0 up\naddr add {own}{length} dev eth0\nneigh replace {host} lladdr {mac} dev eth0 nud \
                 permanent\nroute add {host} dev eth0\nroute add default via {host} dev eth0\n"
            );
            if bridge.is_some() {
                lines.push_str(&match n {
                    0 => format!(
                        "neigh replace {direct} lladdr {} dev eth0 nud permanent\nroute add {direct} dev eth0\n",
                        self.traces.inner_mac(2)
                    ),
                    _ => format!("addr add {direct}{length} dev eth0\n"),
                });
            }
            inside.set("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
            inside.ip(option, &lines)?;
        }
        Ok(())
    }

    /// Waits until the ports forward: with spanning tree a port first listens.
    fn await_forwarding(&self) -> Result<(), Failure> {
        let give_up = Instant::now() + FORWARDING;
        for name in &self.names {
            loop {
                let link = tool::json("ip", &["-j", "-d", "link", "show", "dev", name], "to look at a port")?;
                let state = link.pointer("/0/linkinfo/info_slave_data/state").and_then(Value::as_str);
                if state == Some("forwarding") {
                    break;
                }
                if Instant::now() >= give_up {
                    let why = format!(
                        "a new port of {} does not forward within {} s; with spanning tree (stp_state 1) make its \
                         forward_delay shorter",
                        self.entry,
                        FORWARDING.as_secs()
                    );
                    return Err(Failure::Failed(why));
                }
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        for (family, route) in self.routes.drain(..) {
            // The next run removes what is left.
            let _ = remove_route(family, &route, &self.traces);
        }
        let _in_line = in_line();
        remove_links(&self.names, &self.traces);
        firewall::dismiss(&self.names).iter().for_each(|fault| warn(fault));
    }
}

/// Returns what a killed run may have left behind, removed, and the daemon's guests; nothing if it does not run.
fn sweep(daemon: &Daemon, entries: &[GuestEntry], named: &[IpNet], traces: &Traces) -> Result<Value, Failure> {
    let mut names: Vec<String> = traces.ports.to_vec();
    for entry in entries {
        if let GuestEntry::Pattern(pattern) = entry {
            names.extend(traces.names_of(pattern).unwrap_or_default());
        }
    }
    // A namespace ends a moment after the process that made it.
    let in_line = in_line();
    remove_links([&traces.out], traces);
    remove_links(&names, traces);
    firewall::dismiss(&names).iter().for_each(|fault| warn(fault));
    drop(in_line);
    remove_routes(named, traces, |device| entries.iter().any(|entry| entry.covers(device)))?;
    for name in &traces.guests {
        // It is an error where there is none, and they are not listed.
        let _ = daemon.ask(Question::Remove(name));
    }
    Ok(daemon.ask(Question::Guests).unwrap_or_default())
}

/// Removes what a killed proof left: interfaces, and routes to its guests.
pub(super) fn sweep_proofs() -> Result<(), Failure> {
    let found = tool::json("ip", &["-j", "link", "show"], "to look for interfaces")?;
    let is_ours =
        |link: &&Value| link.get("ifalias").and_then(Value::as_str).is_some_and(|alias| alias.starts_with(PROBE_ALIAS));
    let links = found.as_array().into_iter().flatten().filter(is_ours);
    let names: Vec<String> = links.filter_map(|link| link.get("ifname")?.as_str().map(str::to_owned)).collect();
    for name in &names {
        // It may have ended with its namespace in between.
        let _ = tool::run("ip", &["link", "delete", "dev", name], "", "to remove an interface");
    }
    firewall::dismiss(&names).iter().for_each(|fault| warn(fault));
    remove_routes(&[], &Traces::of_proof(0), |_| true)
}

/// Removes the routes of these traces' number to guests of earlier runs, by the devices that `is_one` accepts.
fn remove_routes(named: &[IpNet], traces: &Traces, is_one: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let protocol = traces.protocol.to_string();
    for family in Family::BOTH {
        let arguments = [family.option(), "-j", "route", "show", "proto", &protocol];
        let found = tool::json("ip", &arguments, "to list routes").unwrap_or_default();
        let ranges = ranges(named, family);
        for route in found.as_array().into_iter().flatten() {
            let text = |key: &str| route.get(key).and_then(Value::as_str);
            let (Some(to), Some(device)) = (text("dst"), text("dev")) else { continue };
            let is_ours = to.parse::<IpAddr>().is_ok_and(|to| ranges.iter().any(|range| range.contains(&to)));
            if is_ours && is_one(device) {
                remove_route(family, &format!("{to} dev {device}"), traces)?;
            }
        }
    }
    Ok(())
}

/// Removes a route to a guest, and what this machine knows of it as a neighbour, which it would keep for minutes.
fn remove_route(family: Family, route: &str, traces: &Traces) -> Result<(), FirewallError> {
    let line = format!("route del {route} proto {}\n", traces.protocol);
    let removed = tool::run("ip", &[family.option(), "-batch", "-"], &line, "to remove a route").map(drop);
    let line = format!("neigh del {route}\n");
    // It may be none.
    let _ = tool::run("ip", &[family.option(), "-batch", "-"], &line, "to forget a neighbour");
    removed
}

/// One run at a time in each network namespace.
fn take_lock(traces: &Traces) -> Result<Lock, Failure> {
    let number = own_number().map_err(|error| Failure::Failed(format!("this process's network namespace: {error}")))?;
    let path = PathBuf::from(format!("{}-{number}.lock", traces.lock));
    let taken = Lock::take(&path).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
    taken.ok_or_else(|| Failure::Failed(format!("another `{}` is running; wait for its end", traces.command)))
}

fn has_ipv6() -> bool {
    let off = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    off.is_ok_and(|off| off.trim() == "0")
}

fn is_without_ipv6(interface: &str) -> bool {
    let off = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"));
    off.is_ok_and(|off| off.trim() != "0")
}

/// Returns MTU and MAC.
fn link_facts(interface: &str) -> Result<(u64, String), Failure> {
    let link = tool::json("ip", &["-j", "link", "show", "dev", interface], "to look at an interface")?;
    let mtu = link.pointer("/0/mtu").and_then(Value::as_u64);
    let mac = link.pointer("/0/address").and_then(Value::as_str).map(str::to_owned);
    mtu.zip(mac).ok_or_else(|| Failure::Failed(format!("ip(8) does not say MTU and MAC of {interface}")))
}

/// Returns whether an interface is up, with or without a carrier.
fn is_up(interface: &str) -> Result<bool, Failure> {
    let link = tool::json("ip", &["-j", "link", "show", "dev", interface], "to look at an interface")?;
    let flags = link.pointer("/0/flags").and_then(Value::as_array);
    Ok(flags.into_iter().flatten().any(|flag| flag == "UP"))
}

fn own_addresses() -> Result<Vec<IpAddr>, Failure> {
    Ok(firewall::interface_addresses()?.into_iter().map(|address| address.net.addr()).collect())
}

pub(super) fn random() -> u64 {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 8];
    // The number of the process is enough where the kernel has no randomness.
    match ring::rand::SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_be_bytes(bytes),
        Err(_) => u64::from(std::process::id()),
    }
}

/// Makes the way to the sentinel. Returns why it has no IPv6, if it has none.
fn outside_link(
    outside: &Namespace,
    v4: &Result<Addresses, Untried>,
    v6: &Result<Addresses, Untried>,
    traces: &Traces,
) -> Result<Option<Untried>, Failure> {
    let (out, host_mac, inner_mac) = (&traces.out, traces.host_mac(0), traces.inner_mac(0));
    let lines = format!(
        "link add name {out} address {host_mac} type veth peer name eth0 address {inner_mac} netns {}\n\
         link set dev {out} alias \"{}\"\n",
        outside.path(),
        traces.alias
    );
    tool::run("ip", &["-batch", "-"], &lines, "to make an interface")?;
    for (setting, value) in [("accept_dad", "0"), ("disable_ipv6", "0"), ("accept_ra", "0")] {
        // Without IPv6 there are no such settings.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{out}/{setting}"), value);
    }
    let both = |family: Family, addresses: &Addresses| -> Result<(), Failure> {
        let Addresses { host, sentinel, guests, .. } = addresses;
        // Where this machine forwards for others, these could otherwise talk to a sentinel that stays.
        let back: String = match traces.is_alone {
            true => format!("route add default via {host} dev eth0\n"),
            false => guests.map(|guest| format!("route add {guest} via {host} dev eth0\n")).concat(),
        };
        let length = if family == Family::V4 { "/32" } else { "/128 nodad" };
        let here = format!(
            "addr add {host}{length} dev {out}\nlink set dev {out} up\nneigh replace {sentinel} lladdr {inner_mac} \
             dev {out} nud permanent\nroute add {sentinel} dev {out}\n"
        );
        tool::run("ip", &[family.option(), "-batch", "-"], &here, "to make the way to the sentinel")?;
        outside.set("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
        outside.ip(
            family.option(),
            &format!(
                "link set dev eth0 up\naddr add {sentinel}{length} dev eth0\nneigh replace {host} lladdr {host_mac} \
                 dev eth0 nud permanent\nroute add {host} dev eth0\n{back}"
            ),
        )
    };
    if let Ok(addresses) = v4 {
        both(Family::V4, addresses)?;
    }
    let six = v6.as_ref().ok().map(|addresses| both(Family::V6, addresses));
    Ok(six.and_then(Result::err).map(Untried::failed))
}

/// Opens the sentinel's ports, as far as they can be opened.
fn listeners() -> Vec<TcpListener> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let all = any.into_iter().flat_map(|ip| OPEN.into_iter().map(move |port| SocketAddr::new(ip, port)));
    all.filter_map(|address| listener(address).ok()).collect()
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket.into())
}

/// Removes those of these interfaces that a run of this command made.
fn remove_links<'n>(names: impl IntoIterator<Item = &'n String>, traces: &Traces) {
    for name in names {
        let found = tool::json("ip", &["-j", "link", "show", "dev", name], "to look for an interface");
        let is_ours =
            found.is_ok_and(|link| link.pointer("/0/ifalias").and_then(Value::as_str) == Some(&*traces.alias));
        if is_ours && let Err(error) = tool::run("ip", &["link", "delete", "dev", name], "", "to remove an interface") {
            // It may have ended with its namespace in between.
            if tool::run("ip", &["link", "show", "dev", name], "", "to look for an interface").is_ok() {
                warn(&error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_pattern_and_the_kernel() {
        for (pattern, first) in [
            ("r*", "rogv1"),
            ("veth-guest*", "veth-guestogv1"),
            ("abcdefghijkl*", "abcdefghijklog1"),
            ("abcdefghijklmn*", "abcdefghijklmn1"),
        ] {
            let names = Traces::of_verify().names_of(pattern).unwrap();
            assert_eq!(names[0], first);
            assert!(names.iter().all(|name| name.len() <= LONGEST_NAME && firewall::fits(pattern, name)));
        }
        assert!(Traces::of_verify().names_of("abcdefghijklmno*").is_err());
    }
}
