//! The kernel's neighbour tables (ARP, and neighbour discovery of IPv6): by default 1,024 places for the whole
//! machine. A guest that sends each packet from another address occupies one place with each. So the number of
//! addresses that a guest may have in use at a time is limited. Packets from further addresses are dropped
//! silently, because an answer would itself look up the neighbour. Addresses are counted by bridge port or
//! interface.

use super::host::sysctl;
use super::plan::{Pinned, Plan, Scope};
use super::script::{Script, from_guests, names, set};
use super::tracking::BRIDGES;
use super::{TABLE, bridge};

/// Addresses of one family that a guest may use at once. Privacy extensions of IPv6 use about ten.
const AT_ONCE: u32 = 32;
/// How many more a minute. Each counts anew after five minutes, also one in constant use: otherwise a guest that
/// keeps its addresses in use would get more with time. So 40 can be in use permanently.
const MORE_PER_MINUTE: u32 = 8;
/// Maximum addresses of one family that a guest has in use: ten guests fit into the default table.
const ADDRESSES: u32 = AT_ONCE + 5 * MORE_PER_MINUTE;
/// The same for IPv4 on an interface of its own, where ARP is counted separately from IP: a set cannot belong to
/// two tables.
const WITH_ARP: u32 = 2 * ADDRESSES;
/// Places for neighbours that are not outgate's guests.
const OTHERS: u64 = 128;
/// In table inet after `sources`, before tracking; in table bridge after the shares of port 53.
const BEFORE: i32 = -295;
const BRIDGED: i32 = bridge::PRIORITY + 2;

/// The kernel's settings, one for each family.
const SETTINGS: [&str; 2] = ["net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"];

/// Returns warnings about the machine's tables, one sentence each. `alone`: how many of the guests have an
/// interface that is not a bridge port, and no addresses that they are bound to.
pub(super) fn too_small(guests: usize, alone: usize, places: &[(&'static str, u64)]) -> Vec<String> {
    let of = |guests: usize, each: u32| u64::try_from(guests).unwrap_or(u64::MAX).saturating_mul(each.into());
    let needed = |setting: &str| {
        let more = if setting.contains("ipv4") { of(alone, WITH_ARP - ADDRESSES) } else { 0 };
        of(guests.max(1), ADDRESSES).saturating_add(more).saturating_add(OTHERS)
    };
    let small = places.iter().map(|(setting, places)| (setting, places, needed(setting)));
    small
        .filter(|(_, places, needed)| *places < needed)
        .map(|(setting, places, needed)| {
            let enough = needed.checked_next_power_of_two().unwrap_or(needed);
            format!(
                "the kernel's neighbour table has {places} places, and {guests} guests may need {needed}: write \
                 \"{setting} = {enough}\" into /etc/sysctl.d/60-outgate.conf and run `sysctl -w {setting}={enough}`"
            )
        })
        .collect()
}

/// Returns how many neighbours the kernel keeps, by setting; none if a namespace hides it.
pub(super) fn places() -> Vec<(&'static str, u64)> {
    let read = |setting: &'static str| {
        let value = sysctl(&format!("/proc/sys/{}", setting.replace('.', "/")))?;
        Some((setting, value.parse().ok()?))
    };
    SETTINGS.into_iter().filter_map(read).collect()
}

/// Writes the sets and chains of table inet.
pub(super) fn write(plan: &Plan, script: &mut Script) {
    near(plan, false, script);
    script.hook("neighbours", "filter", "prerouting", BEFORE);
    script.rule(format!("{} goto near", from_guests(plan)), "addresses in use by each interface");
    script.end_chain();
}

/// Writes the same for table bridge.
pub(super) fn write_bridged(plan: &Plan, script: &mut Script) {
    near(plan, true, script);
    script.hook("neighbours", "filter", "prerouting", BRIDGED);
    let scope = match plan.scope {
        Scope::Bridges => format!("meta ibrname {}", names(&plan.guests)),
        Scope::Ports => format!("iifname @{}", bridge::PORTS),
    };
    script.rule(format!("{scope} goto near"), "addresses in use by each port");
    script.end_chain();
}

/// Writes a separate table for ARP on interfaces that are not bridges: a request enters its sender into the
/// neighbour table (RFC 826), and none of the other tables sees it. The kernel accepts only answers that it asked
/// for.
pub(super) fn write_arp(plan: &Plan, script: &mut Script) {
    if !plan.here.has_arp_tables {
        return;
    }
    if plan.guests.is_empty() {
        return script.no_table("arp", TABLE);
    }
    script.table("arp");
    script.interfaces(BRIDGES, &plan.here.bridges, "guests' interfaces that are bridges");
    script.set("near4", "ifname . ipv4_addr", "the IPv4 addresses that each interface asks from");
    script.set("fresh4", "ifname", "the interfaces that lately had a new one");
    script.hook("neighbours", "filter", "input", 0);
    for (interface, pinned) in &plan.pinned {
        let whose = pinned.label(interface);
        let own = pinned.v4_text();
        let own = own.iter().map(String::as_str).chain(["0.0.0.0"]);
        let rule = format!("iifname \"{interface}\" arp saddr ip != {} counter drop", set(own));
        script.rule(rule, format!("spoofed: ARP of an address that is not of {whose}"));
    }
    script.rule(format!("iifname @{BRIDGES} accept"), "counted by its ports, in table bridge");
    script.rule(format!("{} arp operation request goto near", from_guests(plan)), "addresses it asks from");
    script.end_chain();
    script.chain("near");
    for (interface, pinned) in &plan.pinned {
        let (few4, _) = few(pinned);
        if !few4.is_empty() {
            let rule = format!("iifname \"{interface}\" arp saddr ip {} accept", set(few4));
            script.rule(rule, "one of its few addresses");
        }
    }
    script.rule("iifname . arp saddr ip @near4 accept", "one that is in use");
    counted("", "arp saddr ip", 4, script);
    script.rule("counter drop", "no place for an address");
    script.end_chain();
    script.end_table();
}

/// Writes the rules that accept an address that is in use, and one more within the rate.
fn counted(is: &str, field: &str, family: u8, script: &mut Script) {
    let nobody = if family == 4 { "0.0.0.0" } else { "::" };
    script.rule(format!("{field} {nobody} accept"), "nobody yet");
    let key = format!("iifname . {field}");
    let over = format!("limit rate over {MORE_PER_MINUTE}/minute burst {AT_ONCE} packets");
    script.rule(
        format!("{is} update @fresh{family} {{ iifname {over} }} counter drop"),
        format!("over {AT_ONCE} addresses in use: one more neighbour for the kernel"),
    );
    script.rule(format!("{is} add @near{family} {{ {key} }} accept"), "one more");
}

/// Uses sets with the interface in each element, so that a later interface also has its share.
fn near(plan: &Plan, bridged: bool, script: &mut Script) {
    for (family, kind) in [(4, "ipv4_addr"), (6, "ipv6_addr")] {
        let comment = format!("the IPv{family} addresses in use by each interface");
        script.set(&format!("near{family}"), &format!("ifname . {kind}"), &comment);
        script.set(&format!("fresh{family}"), "ifname", "the interfaces that lately had a new one");
    }
    let mut fields = match bridged {
        true => vec![("ether type ip", "ip saddr", 4), ("ether type ip6", "ip6 saddr", 6)],
        false => vec![("meta nfproto ipv4", "ip saddr", 4), ("meta nfproto ipv6", "ip6 saddr", 6)],
    };
    if bridged {
        fields.push(("ether type arp", "arp saddr ip", 4));
    }
    // An address of a few that are pinned is also remembered, because the next packet from it is then found at
    // once. In a full set it gets no place, and needs none.
    for (is, field, family) in &fields {
        script.chain(&format!("known_{}", field.replace(' ', "_")));
        script.rule(format!("{is} add @near{family} {{ iifname . {field} }} accept"), "one of its few addresses");
        script.end_chain();
    }
    script.chain("near");
    if !bridged {
        script.rule(format!("iifname @{BRIDGES} accept"), "counted by its ports, in table bridge");
    }
    for (_, field, family) in &fields {
        script.rule(format!("iifname . {field} @near{family} accept"), "one that is in use");
    }
    for (interface, pinned) in &plan.pinned {
        let (few4, few6) = few(pinned);
        for (_, field, family) in &fields {
            let nets = if *family == 4 { &few4 } else { &few6 };
            if !nets.is_empty() {
                let known = field.replace(' ', "_");
                let rule = format!("iifname \"{interface}\" {field} {} goto known_{known}", set(nets));
                script.rule(rule, "one of its few addresses");
            }
        }
    }
    for (is, field, family) in fields {
        counted(is, field, family, script);
    }
    if bridged {
        script.rule("ether type != { ip, ip6, arp } accept", "what has no neighbours");
    }
    script.rule("counter drop", "no place for an address");
    script.end_chain();
}

/// Returns whether the guest is bound to so few IPv4 addresses, or none.
pub(super) fn is_few(pinned: &Pinned) -> bool {
    few(pinned).0.len() == pinned.v4.len()
}

/// Returns the nets of a family if they contain no more addresses than a guest may use: these need no counting.
fn few(pinned: &Pinned) -> (Vec<String>, Vec<String>) {
    let v4: u64 = pinned.v4.iter().map(|net| 1u64 << (32 - net.prefix_len())).sum();
    let v6 = pinned.v6.iter().map(|net| 1u128.checked_shl((128 - net.prefix_len()).into()).unwrap_or(u128::MAX));
    let v6 = v6.fold(0u128, u128::saturating_add);
    let v4 = if v4 <= u64::from(ADDRESSES) { pinned.v4_text() } else { Vec::new() };
    // One place is for the link-local address.
    let v6 = if v6 < u128::from(ADDRESSES) { pinned.v6_text() } else { Vec::new() };
    (v4, v6)
}
