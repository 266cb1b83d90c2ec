//! The kernel's neighbour tables (ARP, and neighbour discovery of IPv6): 1,024 places for the whole
//! machine as it comes, and a guest that speaks from another address with each packet takes one with
//! each. So a guest has some addresses in use at a time, and what comes from more is dropped in silence,
//! for an answer would itself look up the neighbour. Counted is by bridge port or interface.

use super::bridge;
use super::host::{Host, sysctl};
use super::plan::{Pinned, Plan, Scope};
use super::script::{Script, names, set};

/// Addresses of one family that a guest may use within five minutes: privacy extensions of IPv6 take some ten, and ten
/// guests fit into the table as it comes.
pub(super) const ADDRESSES: u32 = 64;
/// The same of all guests that come after `apply` together.
const OF_LATE_ONES: u32 = 256;
/// Places for what is no guest of ours.
const OTHERS: u64 = 128;
/// In table inet after `sources`, before tracking; in table bridge after the shares of port 53.
const BEFORE: i32 = -295;
const BRIDGED: i32 = bridge::PRIORITY + 2;

/// The kernel's settings, by the family that they are of.
const SETTINGS: [&str; 2] = ["net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"];

/// What the operator should know of the machine's tables, one sentence each.
pub(super) fn too_small(guests: usize, places: &[(&'static str, u64)]) -> Vec<String> {
    let needed =
        u64::try_from(guests.max(1)).unwrap_or(u64::MAX).saturating_mul(ADDRESSES.into()).saturating_add(OTHERS);
    let small = places.iter().filter(|(_, places)| *places < needed);
    small
        .map(|(setting, places)| {
            let enough = needed.checked_next_power_of_two().unwrap_or(needed);
            format!(
                "the kernel's neighbour table has {places} places, and {guests} guests may take {needed}: write \
                 \"{setting} = {enough}\" into /etc/sysctl.d/60-outgate.conf and run `sysctl -w {setting}={enough}`"
            )
        })
        .collect()
}

/// How many neighbours the kernel keeps, by setting; none where a namespace hides it.
pub(super) fn places() -> Vec<(&'static str, u64)> {
    let read = |setting: &'static str| {
        let value = sysctl(&format!("/proc/sys/{}", setting.replace('.', "/")))?;
        Some((setting, value.parse().ok()?))
    };
    SETTINGS.into_iter().filter_map(read).collect()
}

/// The guests' interfaces that are no bridges, in table inet.
pub(super) fn own_interfaces(plan: &Plan, host: &Host) -> Vec<String> {
    let now = plan.guest_links(host).filter(|link| !link.is_bridge).map(|link| link.name.clone());
    let later = plan.pinned.keys().filter(|name| host.link(name).is_none() && plan.is_guest(name)).cloned();
    let mut all: Vec<String> = now.chain(later).collect();
    all.sort();
    all.dedup();
    all
}

/// The chains of table inet.
pub(super) fn write(plan: &Plan, script: &mut Script) {
    for (n, interface) in plan.here.interfaces.iter().enumerate() {
        one(n, plan.pinned.get(interface), false, script);
    }
    late(false, script);
    script.hook("neighbours", "filter", "prerouting", BEFORE);
    by_name(&plan.here.interfaces, script);
    // On a bridge it is counted by port, in table bridge.
    if !plan.here.bridges.is_empty() {
        script.rule(format!("iifname {} accept", names(&plan.here.bridges)), "counted by its ports");
    }
    script.rule(format!("iifname {} goto near_late", names(&plan.guests)), "interfaces that came later");
    script.end_chain();
}

/// The chains of table bridge.
pub(super) fn write_bridged(plan: &Plan, script: &mut Script) {
    if plan.ports.is_empty() && matches!(plan.scope, Scope::Ports(_)) {
        return;
    }
    for (n, port) in plan.ports.iter().enumerate() {
        one(n, plan.pinned.get(port), true, script);
    }
    late(true, script);
    script.hook("neighbours", "filter", "prerouting", BRIDGED);
    by_name(&plan.ports, script);
    if matches!(plan.scope, Scope::Bridges) {
        script.rule(format!("meta ibrname {} goto near_late", names(&plan.guests)), "ports that came later");
    }
    script.end_chain();
}

fn by_name(interfaces: &[String], script: &mut Script) {
    if !interfaces.is_empty() {
        let chains = interfaces.iter().enumerate().map(|(n, name)| format!("\"{name}\" : goto near_{n}"));
        script.rule(format!("iifname vmap {}", set(chains)), "each has its own");
    }
}

fn late(bridged: bool, script: &mut Script) {
    chain("late", OF_LATE_ONES, None, bridged, script);
}

fn one(n: usize, pinned: Option<&Pinned>, bridged: bool, script: &mut Script) {
    chain(&n.to_string(), ADDRESSES, pinned, bridged, script);
}

fn chain(which: &str, most: u32, pinned: Option<&Pinned>, bridged: bool, script: &mut Script) {
    script.addresses(&format!("near4_{which}"), "ipv4_addr", most);
    script.addresses(&format!("near6_{which}"), "ipv6_addr", most);
    script.chain(&format!("near_{which}"));
    let (few4, few6) = pinned.map(few).unwrap_or_default();
    let fields =
        [("ip saddr", 4, "0.0.0.0", &few4), ("ip6 saddr", 6, "::", &few6), ("arp saddr ip", 4, "0.0.0.0", &few4)];
    for (field, family, nobody, few) in fields {
        if family == 4 && field.starts_with("arp") && !bridged {
            continue;
        }
        let known = set(std::iter::once(nobody).chain(few.iter().map(String::as_str)));
        script.rule(format!("{field} {known} accept"), "nobody yet, or one of its few addresses");
        let rule = format!("update @near{family}_{which} {{ {field} }} accept");
        // Only frames of that family have the field.
        script.rule(rule, "one of the addresses in use");
    }
    if bridged {
        script.rule("ether type != { ip, ip6, arp } accept", "what has no neighbours");
    }
    script.rule("counter drop", format!("over {most} addresses in use: one more neighbour for the kernel"));
    script.end_chain();
}

/// The nets of a family that hold no more addresses than a guest may use: these need no counting.
fn few(pinned: &Pinned) -> (Vec<String>, Vec<String>) {
    let v4: u64 = pinned.v4.iter().map(|net| 1u64 << (32 - net.prefix_len())).sum();
    let v6 = pinned.v6.iter().map(|net| 1u128.checked_shl((128 - net.prefix_len()).into()).unwrap_or(u128::MAX));
    let v6 = v6.fold(0u128, u128::saturating_add);
    let v4 = if v4 <= u64::from(ADDRESSES) { pinned.v4_text() } else { Vec::new() };
    // One place is for the link-local address.
    let v6 = if v6 < u128::from(ADDRESSES) { pinned.v6_text() } else { Vec::new() };
    (v4, v6)
}
