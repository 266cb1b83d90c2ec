//! Table `bridge outgate`: isolates guests on one bridge from each other. If a `[[guest]]` names a port of a
//! bridge, that port may use only the guest's addresses and one MAC.
//!
//! The configuration contains no MAC, so a port's MAC is the one from which it first uses one of its addresses: it
//! belongs to that port alone until the port has been silent for five minutes or is gone (for another VM).
//! Applying again preserves this. A MAC that was stolen in the meantime would gain nothing: frames leave by a port
//! only if they are for its guest's addresses, and by the port of an undeclared guest only if they are for no
//! declared guest's address.

use super::host::Host;
use super::owners::Owners;
use super::plan::{Pinned, Plan, Scope};
use super::script::{Script, marked, names, set};
use super::tool;
use super::{MARK_PINNED, TABLE, neighbours, owners, tracking};
use ipnet::Ipv6Net;
use serde_json::Value;

/// Before br_netfilter, which calls the IP hooks from within the bridge's at 0.
pub(super) const PRIORITY: i32 = -250;
/// The set of guests' ports, used if the bridge cannot be matched.
pub(super) const PORTS: &str = "guest_ports";
/// The set of ports of bridges whose guests may reach each other, used if the bridge cannot be matched.
pub(super) const OPEN_PORTS: &str = "open_ports";
const BETWEEN: &str = "[[interface]].between_guests";
/// A bridge looks for queries only in frames for groups.
const MULTICAST: &str = "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00";
/// How many MACs a port without a MAC of its own may show at once. Each counts anew after five minutes, so that a
/// MAC that is kept in use does not add to ever more others.
const NEW_MACS: u32 = 64;
/// How many more a minute.
const NEW_MACS_PER_MINUTE: u32 = 12;

pub(super) fn write(plan: &Plan, script: &mut Script) {
    if plan.guests.is_empty() {
        return script.no_table("bridge", TABLE);
    }
    script.table("bridge");
    if plan.scope == Scope::Ports {
        script.interfaces(PORTS, &plan.ports, "the ports of guests' bridges");
        if plan.allows_between_any() {
            script.interfaces(OPEN_PORTS, &plan.open_ports, "the ports of bridges whose guests reach each other");
        }
    }
    owners::write_sets(script);
    script.set("stations", "ifname . ether_addr", "the MACs behind each port that has not one of its own");
    script.set("newcomers", "ifname", "the ports that lately had a new one");
    stations(script);
    membership(script);
    if !plan.pinned.is_empty() {
        script.set("macs", "ifname . ether_addr", "the MAC of each pinned port");
        script.set("ports", "ifname", "the ports that have one");
        script.set("taken", "ether_addr", "the MACs that are some port's");
        mac(script);
        for (n, (interface, pinned)) in plan.pinned.iter().enumerate() {
            port(n, interface, pinned, plan, script);
        }
    }
    arriving(plan, script);
    tracking::write_bridged(plan, script);
    neighbours::write_bridged(plan, script);
    script.hook("forwarded", "filter", "forward", PRIORITY);
    between(plan, script);
    for scope in scopes(plan, "forward") {
        script.rule(format!("{scope} counter drop"), "guests on one bridge do not reach each other");
    }
    script.end_chain();
    if !plan.pinned.is_empty() {
        script.hook("leaving", "filter", "output", PRIORITY);
        let chains = plan.pinned.keys().enumerate().map(|(n, name)| format!("\"{name}\" : goto to_port_{n}"));
        script.rule(format!("oifname vmap {}", set(chains)), "to pinned ports only what is for their guests");
        let scope = match &plan.scope {
            Scope::Bridges => format!("meta obrname {}", names(&plan.guests)),
            Scope::Ports => format!("oifname @{PORTS}"),
        };
        let (v4, v6) = plan.pinned_addresses();
        for (field, nets) in [("ip daddr", v4), ("ip6 daddr", v6)] {
            if !nets.is_empty() {
                let rule = format!("{scope} {field} {} counter drop", set(nets));
                script.rule(rule, "for a declared guest, who is elsewhere");
            }
        }
        script.end_chain();
    }
    script.end_table();
}

/// Passes frames between the guests of a bridge that may reach each other.
fn between(plan: &Plan, script: &mut Script) {
    if !plan.allows_between_any() {
        return;
    }
    match plan.scope {
        Scope::Bridges => {
            for entry in &plan.between {
                let verdict = if entry.is_allowed { "accept" } else { "drop" };
                script.rule(format!("meta ibrname \"{}\" counter {verdict}", entry.interface), BETWEEN);
            }
        }
        // Both ports of a forwarded frame are of one bridge.
        Scope::Ports => script.rule(format!("iifname @{OPEN_PORTS} counter accept"), BETWEEN),
    }
}

/// Returns the matches for frames of guest bridges.
fn scopes(plan: &Plan, hook: &str) -> Vec<String> {
    match &plan.scope {
        Scope::Bridges => vec![format!("meta ibrname {}", names(&plan.guests))],
        Scope::Ports => {
            let sides: &[&str] = if hook == "forward" { &["iifname", "oifname"] } else { &["iifname"] };
            sides.iter().map(|side| format!("{side} @{PORTS}")).collect()
        }
    }
}

/// Limits what a bridge learns before it learns it: so many MACs at once, and so many more a minute. A bridge
/// forgets after five minutes (ageing_time), which makes 124 a port. A VM with containers on its own bridge has a
/// few dozen.
fn stations(script: &mut Script) {
    script.chain("stations");
    script.rule("iifname . ether saddr @stations return", "a MAC that was behind this port lately");
    script.rule(
        format!(
            "update @newcomers {{ iifname limit rate over {NEW_MACS_PER_MINUTE}/minute burst {NEW_MACS} packets }} \
             counter drop"
        ),
        "flood: too many MACs on one port",
    );
    script.rule("add @stations { iifname . ether saddr } return", "one more");
    script.rule("counter drop", "flood: no place for a MAC");
    script.end_chain();
}

/// Permits reports of group membership, or bridges with multicast snooping would send the member nothing,
/// neighbour solicitations included. Refuses queries: a bridge that has received one expects reports from all
/// members, and those that are isolated from the querier do not report. IGMP is matched by its protocol, since a
/// bridge also reads it in fragments.
fn membership(script: &mut Script) {
    let why = "a guest that poses as multicast router";
    script.chain("membership");
    let reports = "membership-report-v1, membership-report-v2, membership-report-v3, leave-group";
    script.rule(format!("igmp type {{ {reports} }} return"), "a guest joins or leaves an IPv4 group");
    script.rule("ip protocol { 2, 103 } counter drop", why);
    script.rule(
        "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } return",
        "a guest joins or leaves an IPv6 group",
    );
    script.rule("ip6 nexthdr 0 ip6 daddr ff00::/8 counter drop", format!("{why}: MLD is behind such a header"));
    script.rule("icmpv6 type { mld-listener-query, 151, 152, 153 } counter drop", why);
    script.rule("meta l4proto 103 counter drop", why);
    script.end_chain();
}

fn mac(script: &mut Script) {
    script.chain("mac");
    script.rule(
        "iifname . ether saddr @macs update @ports { iifname } update @taken { ether saddr } \
         update @macs { iifname . ether saddr } return",
        "the port's own",
    );
    script.rule("iifname @ports counter drop", "spoofed: the port has another MAC");
    script.rule("ether saddr @taken counter drop", "spoofed: the MAC of another port");
    script.end_chain();
}

/// Returns the MACs that ports have now, as lines for the ruleset: a guest that repeats frames with a neighbour's
/// MAC must not get that MAC at the next `apply`, and a port with many MACs keeps them.
pub(super) fn carried_over(plan: &Plan, host: &Host) -> String {
    let mut lines = String::new();
    if plan.guests.is_empty() {
        return lines;
    }
    for (port, mac, expires) in learnt("macs") {
        if !plan.pinned.contains_key(&port) || host.link(&port).is_none() {
            continue;
        }
        for (set, key) in
            [("macs", format!("\"{port}\" . {mac}")), ("ports", format!("\"{port}\"")), ("taken", mac.clone())]
        {
            lines.push_str(&format!("add element bridge {TABLE} {set} {{ {key} expires {expires}s }}\n"));
        }
    }
    for (port, mac, expires) in learnt("stations").into_iter().filter(|(port, ..)| host.link(port).is_some()) {
        let key = format!("\"{port}\" . {mac}");
        lines.push_str(&format!("add element bridge {TABLE} stations {{ {key} expires {expires}s }}\n"));
    }
    lines.push_str(&Owners::look(plan, host, &Owners::in_force()).lines());
    lines
}

/// Returns port, MAC and remaining seconds of each element of one of the sets above. Returns nothing if there is
/// no table yet, or no such set.
fn learnt(set: &str) -> Vec<(String, String, u64)> {
    let items = tool::listed(&["set", "bridge", TABLE, set], "to list a set").unwrap_or_default();
    let elements = items.iter().filter_map(|item| item.get("set")?.get("elem")?.as_array()).flatten();
    let entry = |element: &Value| {
        let concatenated = element.get("val")?.get("concat")?.as_array()?;
        let [Value::String(port), Value::String(mac)] = concatenated.as_slice() else { return None };
        let expires = element.get("expires").and_then(Value::as_u64).map_or(300, |left| left.clamp(1, 300));
        Some((port.clone(), mac.clone(), expires))
    };
    elements.filter_map(|element| entry(element.get("elem")?)).collect()
}

/// Writes the chains of one pinned port.
fn port(n: usize, interface: &str, pinned: &Pinned, plan: &Plan, script: &mut Script) {
    let whose = pinned.label(interface);
    let (v4, v6) = (pinned.v4_text(), pinned.v6_text());

    script.chain(&format!("advertised_{n}"));
    for net in &pinned.v6 {
        script.rule(format!("{} return", target_in(*net)), &whose);
    }
    script.rule("@th,64,10 0x3fa return", "a link-local address");
    script.rule("counter drop", format!("spoofed: advertises what is not of {whose}"));
    script.end_chain();

    script.chain(&format!("first_{n}"));
    let claim = "add @ports { iifname } add @taken { ether saddr } add @macs { iifname . ether saddr } return";
    for (field, nets) in [("arp saddr ip", &v4), ("ip saddr", &v4), ("ip6 saddr", &v6)] {
        if !nets.is_empty() {
            let rule = format!("{field} {} {claim}", set(nets));
            script.rule(rule, "the first MAC that uses the port's own address is the port's");
        }
    }
    script.rule("limit rate over 10/second burst 20 packets counter drop", "few frames come before that");
    script.end_chain();

    script.chain(&format!("port_{n}"));
    script.rule("ether type { 8021q, 8021ad } counter drop", "guests have no VLANs");
    script.rule(format!("{MULTICAST} jump membership"), "no queries, no multicast routing");
    script.rule("jump mac", "one MAC a port");
    script.rule("iifname != @ports jump stations", "few before it has one");
    script.rule(format!("iifname != @ports jump first_{n}"), "until it has one");
    script.rule(
        "ether type arp iifname @ports iifname . arp saddr ether != @macs counter drop",
        "spoofed: ARP with another's MAC",
    );
    if !v4.is_empty() {
        let rule = format!("arp saddr ip {} accept", set(v4.iter().map(String::as_str).chain(["0.0.0.0"])));
        script.rule(rule, format!("ARP of {whose}"));
        script.rule(format!("ip saddr {} {} accept", set(&v4), marked(MARK_PINNED)), &whose);
    }
    if plan.allow_dhcp {
        script.rule("ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept", "DHCP before there is an address");
    }
    script.rule(format!("icmpv6 type nd-neighbor-advert jump advertised_{n}"), "answers only for its own addresses");
    if !v6.is_empty() {
        script.rule(format!("ip6 saddr {} {} accept", set(&v6), marked(MARK_PINNED)), &whose);
    }
    script.rule(
        format!(
            "ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, \
             mld-listener-report, mld2-listener-report }} {} accept",
            marked(MARK_PINNED)
        ),
        "IPv6 neighbour discovery; what this machine takes of it is for table inet",
    );
    if plan.allow_dhcp {
        let rule = format!("ip6 saddr fe80::/10 udp sport 546 udp dport 547 {} accept", marked(MARK_PINNED));
        script.rule(rule, "DHCPv6 from its link-local address");
    }
    script.rule("counter drop", format!("spoofed: not an address of {whose}"));
    script.end_chain();

    script.chain(&format!("to_port_{n}"));
    script.rule("ether type arp accept", "ARP");
    let v4 = v4.iter().map(String::as_str).chain(["224.0.0.0/4", "255.255.255.255"]);
    script.rule(format!("ip daddr {} accept", set(v4)), format!("to {whose}"));
    let v6 = v6.iter().map(String::as_str).chain(["fe80::/10", "ff00::/8"]);
    script.rule(format!("ip6 daddr {} accept", set(v6)), format!("to {whose}"));
    script.rule("counter drop", "for another guest's eyes");
    script.end_chain();
}

/// Writes the rules for frames from guests' ports.
fn arriving(plan: &Plan, script: &mut Script) {
    script.hook("arriving", "filter", "prerouting", PRIORITY);
    let mut interfaces = plan.guests.clone();
    interfaces.extend(plan.pinned.keys().cloned());
    let elsewhere = match &plan.scope {
        Scope::Bridges => format!("iifname {} meta ibrname != {}", names(&interfaces), names(&plan.guests)),
        Scope::Ports => format!("iifname {} iifname != @{PORTS}", names(&interfaces)),
    };
    script.rule(
        format!("{elsewhere} counter drop"),
        "a guest's port on a bridge that [firewall].guest_interfaces does not name",
    );
    for scope in scopes(plan, "prerouting") {
        script.rule(
            format!("{scope} ether daddr 01:80:c2:00:00:00-01:80:c2:00:00:0f counter drop"),
            "a frame for the next bridge; IP is never in one",
        );
    }
    if !plan.pinned.is_empty() {
        let chains = plan.pinned.keys().enumerate().map(|(n, name)| format!("\"{name}\" : goto port_{n}"));
        script.rule(format!("iifname vmap {}", set(chains)), "ports of declared guests");
    }
    let (v4, v6) = plan.pinned_addresses();
    for scope in scopes(plan, "prerouting") {
        script.rule(
            format!("{scope} ether type != {{ ip, ip6, arp }} counter drop"),
            "guests speak IP, without VLANs and spanning trees",
        );
        if !plan.pinned.is_empty() {
            script.rule(format!("{scope} ether saddr @taken counter drop"), "spoofed: the MAC of a declared guest");
        }
        for (field, nets) in [("ip saddr", &v4), ("arp saddr ip", &v4), ("ip6 saddr", &v6)] {
            if !nets.is_empty() {
                let rule = format!("{scope} {field} {} counter drop", set(nets));
                script.rule(rule, "spoofed: the address of a guest that has another port");
            }
        }
        for net in plan.pinned.values().flat_map(|pinned| &pinned.v6) {
            let rule = format!("{scope} icmpv6 type nd-neighbor-advert {} counter drop", target_in(*net));
            script.rule(rule, "spoofed: advertises the address of a guest that has another port");
        }
        owners::write_rules(&scope, script);
        script.rule(format!("{scope} {MULTICAST} jump membership"), "no queries, no multicast routing");
        script.rule(format!("{scope} jump stations"), "so many MACs a port");
    }
    script.end_chain();
}

/// Returns the match for the target of a neighbour advertisement (RFC 4861 section 4.4: 64 bits into the message).
/// nft has a keyword for it only since 1.0.8.
fn target_in(net: Ipv6Net) -> String {
    let length = net.prefix_len().max(1);
    let target = net.network().to_bits() >> (128 - u32::from(length));
    format!("@th,64,{length} {target:#x}")
}
