//! Guests' bridge ports: isolates them from each other and excludes them from spanning tree and multicast routing,
//! undoes that, and reports it. These are settings of the port itself, so they remain when nftables is flushed,
//! and a new port has none of them until somebody sets them. `bridge` decides which frames may pass.

use super::host::{GUARD, Host, Link, NO_GUARD};
use super::plan::Plan;
use super::tool::{self, FirewallError};

/// Sets what is not set yet; returns the names of the ports that it changed.
pub(super) fn guard(plan: &Plan, host: &Host, faults: &mut Vec<String>) -> Vec<String> {
    let mut done = Vec::new();
    for bridge in unseen(plan, host) {
        no_linklocal_learn(&bridge.name, "1", faults);
    }
    for port in plan.guest_ports(host) {
        let isolated = is_to_be_isolated(plan, port);
        let bare = port.isolated != isolated || !port.guarded;
        if bare {
            set(&port.name, isolated, &GUARD, faults);
        }
        if port.heard_root {
            // What the bridge received before would remain valid for as long as the sender stated, four minutes at
            // most.
            for state in ["down", "up"] {
                change(&["link", "set", "dev", &port.name, state], &port.name, &format!("be set {state}"), faults);
            }
        }
        if bare || port.heard_root {
            done.push(port.name.clone());
        }
    }
    done
}

/// Undoes it for the ports of bridges that are now `open`, and for the plan's.
pub(super) fn release(plan: &Plan, host: &Host, open: &[String], faults: &mut Vec<String>) {
    let is_open = |bridge: &str| open.iter().any(|name| name == bridge);
    let mut ports: Vec<&Link> = host.ports_of(is_open).chain(plan.guest_ports(host)).collect();
    ports.sort_by(|one, other| one.name.cmp(&other.name));
    ports.dedup();
    for port in ports.into_iter().filter(|port| port.isolated || port.guarded) {
        set(&port.name, false, &NO_GUARD, faults);
    }
    for bridge in host.links.iter().filter(|link| link.is_bridge && !link.learns_unseen && is_open(&link.name)) {
        no_linklocal_learn(&bridge.name, "0", faults);
    }
}

/// Sets a port that stands in for a guest's.
pub(super) fn stand_in(port: &str, isolated: bool, guarded: bool) -> Result<(), FirewallError> {
    let arguments = arguments(port, isolated, if guarded { &GUARD } else { &[] });
    tool::run("ip", &arguments, "", "to protect a bridge port").map(drop)
}

/// Returns what is not as it should be, one sentence each.
pub(super) fn differences(plan: &Plan, host: &Host) -> Vec<String> {
    let mut differences = Vec::new();
    for port in plan.guest_ports(host) {
        let name = &port.name;
        match (port.isolated, is_to_be_isolated(plan, port)) {
            (false, true) => differences.push(format!("bridge port {name} is not isolated")),
            (true, false) => differences.push(format!(
                "bridge port {name} is isolated, so its guest does not reach others, which [[interface]] allows"
            )),
            _ => {}
        }
        if !port.guarded {
            differences.push(format!("bridge port {name} is not guarded ({})", GUARD.join(" ")));
        }
        if port.heard_root {
            let bridge = port.master.as_deref().unwrap_or_default();
            differences.push(format!("bridge {bridge} accepts spanning tree messages from bridge port {name}"));
        }
    }
    let learning = unseen(plan, host);
    differences.extend(learning.map(|link| format!("bridge {} learns unseen MACs (no_linklocal_learn 0)", link.name)));
    differences
}

/// Returns whether this guest's port may not reach others of its bridge.
pub(super) fn is_to_be_isolated(plan: &Plan, port: &Link) -> bool {
    !port.master.as_deref().is_some_and(|bridge| plan.allows_between_guests(bridge))
}

/// Returns the bridges of guests' ports that learn from frames that no rule sees.
fn unseen<'h>(plan: &Plan, host: &'h Host) -> impl Iterator<Item = &'h Link> {
    let masters: Vec<&str> = plan.guest_ports(host).filter_map(|port| port.master.as_deref()).collect();
    let is =
        move |link: &&Link| link.learns_unseen && (masters.contains(&link.name.as_str()) || plan.is_guest(&link.name));
    host.links.iter().filter(is)
}

fn set(port: &str, isolated: bool, rest: &[&str], faults: &mut Vec<String>) {
    let what = format!("be set to isolated {} {}", on_or_off(isolated), rest.join(" "));
    change(&arguments(port, isolated, rest), port, &what, faults);
}

/// Returns the arguments of ip(8) that set a port to this.
fn arguments<'a>(port: &'a str, isolated: bool, rest: &[&'a str]) -> Vec<&'a str> {
    let start = ["link", "set", "dev", port, "type", "bridge_slave", "isolated", on_or_off(isolated)];
    start.iter().chain(rest).copied().collect()
}

const fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn no_linklocal_learn(bridge: &str, value: &str, faults: &mut Vec<String>) {
    let arguments = ["link", "set", "dev", bridge, "type", "bridge", "no_linklocal_learn", value];
    change(&arguments, bridge, &format!("be set to no_linklocal_learn {value}"), faults);
}

/// An interface that disappeared in the meantime needs no change.
fn change(arguments: &[&str], interface: &str, what: &str, faults: &mut Vec<String>) {
    if let Err(error) = tool::run("ip", arguments, "", "to change a bridge port")
        && tool::run("ip", &["link", "show", "dev", interface], "", "to look for an interface").is_ok()
    {
        faults.push(format!("{interface} cannot {what}: {error}"));
    }
}
