//! Addresses and MACs of containers, each held to the bridge port of its container.
//!
//! Root in a container can send any frame (CAP_NET_RAW), so also one with the address or the MAC of a neighbour on its
//! bridge. What a container has was set in its network namespace by the container daemon; /proc and rtnetlink(7) show it
//! to the host. Here it is written into sets of table bridge, and frames with an address, as sender of ARP or target of
//! a neighbour advertisement, or with a MAC that another port owns are dropped.
//!
//! Who owns something keeps it for as long as its port exists: a container that may change its own addresses
//! (CAP_NET_ADMIN) cannot take a neighbour's. Only containers of application images count, as Docker, Podman and
//! containerd make them. A virtual machine, or a container with an init of its own, may have guests within.

use super::TABLE;
use super::addresses::interface_addresses;
use super::host::{Host, Link};
use super::namespaces::{self, Numbers};
use super::plan::Plan;
use super::processes;
use super::script::Script;
use super::tool::{self, FirewallError};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many addresses of a family one container can own: it could take those of later ones otherwise.
const MOST: usize = 4;
/// The target of a neighbour advertisement (RFC 4861 section 4.4); nft has a keyword for it only since 1.0.8.
const TARGET: &str = "@th,64,128";

/// What the containers behind guests' ports own, as the elements of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owners {
    v4: BTreeMap<Ipv4Addr, String>,
    v6: BTreeMap<Ipv6Addr, String>,
    macs: BTreeMap<String, String>,
}

/// What one container has on one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Claim {
    port: String,
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    mac: Option<String>,
}

/// Writes the sets.
pub(super) fn write_sets(script: &mut Script) {
    for (name, kind, comment) in [
        ("held4", "type ifname . ipv4_addr", "the IPv4 addresses of containers, by port"),
        ("owned4", "type ipv4_addr", "the same without the port"),
        ("held6", "type ifname . ipv6_addr", "the IPv6 addresses of containers, by port"),
        ("owned6", "type ipv6_addr", "the same without the port"),
        ("held_targets", "typeof iifname . @th,64,128", "the same, as targets of neighbour advertisements"),
        ("owned_targets", "typeof @th,64,128", "the same without the port"),
        ("held_macs", "type ifname . ether_addr", "the MACs of containers, by port"),
        ("owned_macs", "type ether_addr", "the same without the port"),
    ] {
        script.kept_set(name, kind, comment);
    }
}

/// Writes the rules for frames in `scope`.
pub(super) fn write_rules(scope: &str, script: &mut Script) {
    for (is, field, family) in [("", "ip saddr", "4"), ("ether type arp ", "arp saddr ip", "4"), ("", "ip6 saddr", "6")]
    {
        script.rule(
            format!("{scope} {is}{field} @owned{family} iifname . {field} != @held{family} counter drop"),
            "spoofed: the address of a container on another port",
        );
    }
    script.rule(
        format!(
            "{scope} icmpv6 type nd-neighbor-advert {TARGET} @owned_targets iifname . {TARGET} != @held_targets counter drop"
        ),
        "spoofed: advertises the address of a container on another port",
    );
    script.rule(
        format!("{scope} ether saddr @owned_macs iifname . ether saddr != @held_macs counter drop"),
        "spoofed: the MAC of a container on another port",
    );
}

impl Owners {
    /// Finds what containers have now. Of several that claim the same, the one that owned it `before` keeps it, and of
    /// several new ones none gets it.
    pub(super) fn look(plan: &Plan, host: &Host, before: &Owners) -> Owners {
        let claims = claims(plan, host);
        Owners {
            v4: settle(&claims, &before.v4, |claim| claim.v4.clone()),
            v6: settle(&claims, &before.v6, |claim| claim.v6.clone()),
            macs: settle(&claims, &before.macs, |claim| claim.mac.iter().cloned().collect()),
        }
    }

    /// Returns what is in the kernel's sets.
    pub(super) fn in_force() -> Owners {
        Owners {
            v4: elements("held4").into_iter().filter_map(|(port, key)| Some((key.parse().ok()?, port))).collect(),
            v6: elements("held6").into_iter().filter_map(|(port, key)| Some((key.parse().ok()?, port))).collect(),
            macs: elements("held_macs").into_iter().map(|(port, key)| (key, port)).collect(),
        }
    }

    /// Returns lines for nft(8) that make the sets hold this; the sets exist.
    pub(super) fn lines(&self) -> String {
        let mut lines = String::new();
        let mut set = |name: &str, elements: Vec<String>| {
            lines.push_str(&format!("flush set bridge {TABLE} {name}\n"));
            if !elements.is_empty() {
                lines.push_str(&format!("add element bridge {TABLE} {name} {{ {} }}\n", elements.join(", ")));
            }
        };
        set("held4", self.v4.iter().map(|(ip, port)| format!("\"{port}\" . {ip}")).collect());
        set("owned4", self.v4.keys().map(ToString::to_string).collect());
        set("held6", self.v6.iter().map(|(ip, port)| format!("\"{port}\" . {ip}")).collect());
        set("owned6", self.v6.keys().map(ToString::to_string).collect());
        set("held_targets", self.v6.iter().map(|(ip, port)| format!("\"{port}\" . {:#x}", ip.to_bits())).collect());
        set("owned_targets", self.v6.keys().map(|ip| format!("{:#x}", ip.to_bits())).collect());
        set("held_macs", self.macs.iter().map(|(mac, port)| format!("\"{port}\" . {mac}")).collect());
        set("owned_macs", self.macs.keys().cloned().collect());
        lines
    }

    /// Puts this into the kernel's sets.
    ///
    /// # Errors
    /// [`FirewallError`] if nft(8) refuses; the sets then stay as they are.
    pub(super) fn put(&self) -> Result<(), FirewallError> {
        tool::run("nft", &["-f", "-"], &self.lines(), "to hold containers' addresses to their ports").map(drop)
    }
}

/// Decides who owns what.
fn settle<K: Ord + Clone>(
    claims: &[Claim],
    before: &BTreeMap<K, String>,
    keys: impl Fn(&Claim) -> Vec<K>,
) -> BTreeMap<K, String> {
    let mut claimants: BTreeMap<K, BTreeSet<&str>> = BTreeMap::new();
    for claim in claims {
        for key in keys(claim) {
            claimants.entry(key).or_default().insert(&claim.port);
        }
    }
    let owner = |(key, ports): (K, BTreeSet<&str>)| {
        let keeps = before.get(&key).filter(|port| ports.contains(port.as_str())).cloned();
        let only = || if ports.len() == 1 { ports.first().map(|port| (*port).to_owned()) } else { None };
        Some((key, keeps.or_else(only)?))
    };
    claimants.into_iter().filter_map(owner).collect()
}

/// Returns whether there is a guest's port whose other end is in a namespace and that owns no address, as while its
/// container is being set up.
pub(super) fn is_unsettled(plan: &Plan, host: &Host, owners: &Owners) -> bool {
    let owns = |port: &str| owners.v4.values().chain(owners.v6.values()).any(|owner| owner == port);
    ports(plan, host).any(|port| !owns(&port.name))
}

/// Returns guests' ports that a container may be behind. A port that `[[guest]]` names has its addresses from there.
fn ports<'h>(plan: &'h Plan, host: &'h Host) -> impl Iterator<Item = &'h Link> {
    plan.guest_ports(host).filter(|port| port.kind == "veth" && !plan.pinned.contains_key(&port.name))
}

fn claims(plan: &Plan, host: &Host) -> Vec<Claim> {
    let ports: Vec<(&Link, i32)> = ports(plan, host).filter_map(|port| Some((port, port.peer_namespace?))).collect();
    if ports.is_empty() {
        return Vec::new();
    }
    let wanted: BTreeSet<i32> = ports.iter().map(|(_, namespace)| *namespace).collect();
    let processes = container_processes(&wanted);
    let addresses = interface_addresses().unwrap_or_default();
    let mut macs: BTreeMap<i32, BTreeMap<u32, String>> = BTreeMap::new();
    let claim = |(port, namespace): (&Link, i32)| {
        let process = processes.get(&namespace)?;
        let bridge = port.master.as_deref()?;
        let of_bridge = || addresses.iter().filter(|address| address.interface == bridge);
        let within = |ip: &Ipv4Addr| of_bridge().any(|address| address.net.contains(&IpAddr::V4(*ip)));
        let file = |name: &str| fs::read_to_string(format!("/proc/{process}/net/{name}")).unwrap_or_default();
        let v4 = local_addresses(&file("fib_trie")).into_iter().filter(within).take(MOST).collect();
        let v6 = addresses_of_interface(&file("if_inet6"), port.peer_index?).into_iter().take(MOST).collect();
        let macs = macs.entry(namespace).or_insert_with(|| namespaces::macs(namespace).unwrap_or_default());
        let mac = macs.get(&port.peer_index?).cloned();
        Some(Claim { port: port.name.clone(), v4, v6, mac })
    };
    ports.into_iter().filter_map(claim).collect()
}

/// Returns a process of a container in each of these network namespaces.
fn container_processes(namespaces: &BTreeSet<i32>) -> BTreeMap<i32, String> {
    let mut numbers = Numbers::default();
    let mut found = BTreeMap::new();
    for process in processes::all().filter(|process| processes::is_in_application(process)) {
        if let Some(number) = numbers.of(&process).filter(|number| namespaces.contains(number)) {
            found.entry(number).or_insert(process);
        }
    }
    found
}

/// Returns the addresses of a network namespace, by its fib_trie (proc_pid_net(5)), each once.
fn local_addresses(text: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last);
        }
    }
    found
}

/// Returns the addresses of an interface, by if_inet6: address, number of the interface, and more, in hexadecimal.
fn addresses_of_interface(text: &str, index: u32) -> Vec<Ipv6Addr> {
    let read = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let of = u32::from_str_radix(fields.next()?, 16).ok()?;
        (of == index).then(|| Ipv6Addr::from_bits(address))
    };
    text.lines().filter_map(read).collect()
}

/// Returns port and key of each element of one of the sets; nothing if there is none.
fn elements(set: &str) -> Vec<(String, String)> {
    let items = tool::listed(&["set", "bridge", TABLE, set], "to list a set").unwrap_or_default();
    let elements = items.iter().filter_map(|item| item.get("set")?.get("elem")?.as_array()).flatten();
    let pair = |element: &Value| {
        let [Value::String(port), Value::String(key)] = element.get("concat")?.as_array()?.as_slice() else {
            return None;
        };
        Some((port.clone(), key.clone()))
    };
    elements.filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(port: &str, address: &str) -> Claim {
        Claim { port: port.to_owned(), v4: vec![address.parse().unwrap()], ..Claim::default() }
    }

    fn owners(claims: &[Claim], before: &[(&str, &str)]) -> Vec<(String, String)> {
        let before = before.iter().map(|(key, port)| (key.parse().unwrap(), (*port).to_owned())).collect();
        let settled = settle(claims, &before, |claim| claim.v4.clone());
        settled.into_iter().map(|(key, port)| (key.to_string(), port)).collect()
    }

    #[test]
    fn who_owns_an_address_keeps_it_and_of_several_newcomers_nobody_gets_it() {
        let pair = |key: &str, port: &str| vec![(key.to_owned(), port.to_owned())];
        let two = [claim("a", "10.0.0.1"), claim("b", "10.0.0.1")];
        assert_eq!(owners(&two[..1], &[]), pair("10.0.0.1", "a"));
        assert_eq!(owners(&two, &[("10.0.0.1", "b")]), pair("10.0.0.1", "b"));
        assert_eq!(owners(&two, &[]), []);
        assert_eq!(owners(&two, &[("10.0.0.1", "gone")]), []);
        assert_eq!(owners(&[], &[("10.0.0.1", "a")]), [], "who is gone owns nothing");
    }

    #[test]
    fn the_addresses_of_a_namespace_are_those_that_the_kernel_shows() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n        |-- 127.0.0.1\n           /32 host LOCAL\n\
             Local:\n           |-- 172.18.0.0\n              /16 link UNICAST\n           |-- 172.18.0.2\n              /32 host LOCAL\n        \
             |-- 172.18.255.255\n           /32 link BROADCAST\n";
        let found: Vec<String> = local_addresses(trie).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.1", "172.18.0.2"]);
        let inet6 = "fd310000000000000000000000000002 0b 40 00 80     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(addresses_of_interface(inet6, 11), ["fd31::2".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(addresses_of_interface("zz\n", 11), [] as [Ipv6Addr; 0]);
        // This machine's own show loopback.
        assert!(
            local_addresses(&fs::read_to_string("/proc/self/net/fib_trie").unwrap()).contains(&Ipv4Addr::LOCALHOST)
        );
    }
}
