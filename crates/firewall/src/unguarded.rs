//! Finds possible guests on this machine that no guarded interface carries: taps, bridges with taps or with
//! containers' ends, interfaces that use a card of this machine's without passing its rules, containers in its
//! own network, and guests that can start such containers.

use super::fits;
use super::host::{Host, Link};
use super::namespaces;
use super::plan::Plan;
use super::{control_sockets, processes};
use std::collections::BTreeSet;

/// The name for containers in this machine's own network.
pub const HOST_NETWORK: &str = "host-network";
/// The name for guests that hold the socket of a container daemon.
pub const CONTAINER_CONTROL: &str = "container-control";
/// Maximum number of containers named in one sentence.
const MOST_NAMED: usize = 3;
const NAME_IT: &str = "in [firewall].not_guests and run `outgate whitelist reload`";

/// The guests that are not guarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unguarded {
    /// In the form that `not_guests` accepts.
    pub(super) names: Vec<String>,
    /// What is wrong, a sentence each.
    pub(super) texts: Vec<String>,
}

/// Finds them. `not_guests`: what the configuration declares not to be guests.
pub(super) fn find(plan: &Plan, host: &Host, not_guests: &[String]) -> Unguarded {
    let is_known = |name: &str| not_guests.iter().any(|pattern| fits(pattern, name));
    let mut found = Unguarded::default();
    let interfaces: Vec<&str> = interfaces(host).filter(|name| !plan.is_guest(name) && !is_known(name)).collect();
    if !interfaces.is_empty() {
        let names = interfaces.join(", ");
        found.texts.push(format!(
            "NOT guarded: {names}, which may carry guests: name them in [firewall].guest_interfaces and run `outgate \
             firewall apply`, or {NAME_IT}"
        ));
        found.names.extend(interfaces.into_iter().map(str::to_owned));
    }
    let passing: Vec<String> = passing(host).into_iter().filter(|name| !is_known(name)).collect();
    if !passing.is_empty() {
        let names = passing.join(", ");
        found.texts.push(format!(
            "NOT guarded: {names}: their traffic leaves without passing any rule of this machine: give those guests a \
             bridge that [firewall].guest_interfaces names, or name {names} {NAME_IT}"
        ));
        found.names.extend(passing);
    }
    let containers = if is_known(HOST_NETWORK) { BTreeSet::new() } else { containers_here() };
    if !containers.is_empty() {
        let containers = some_of(&containers);
        found.texts.push(format!(
            "NOT guarded: {HOST_NETWORK}: container {containers} uses the network of this machine itself: start it in a \
             network that [firewall].guest_interfaces names, or name {HOST_NETWORK} {NAME_IT}"
        ));
        found.names.push(HOST_NETWORK.to_owned());
    }
    let holders = if is_known(CONTAINER_CONTROL) { BTreeSet::new() } else { control_sockets::holders(plan, host) };
    if !holders.is_empty() {
        let holders = some_of(&holders);
        found.texts.push(format!(
            "NOT guarded: {CONTAINER_CONTROL}: container {holders}: it can start others outside of every guarded \
             network: take the socket from it, or name {CONTAINER_CONTROL} {NAME_IT}"
        ));
        found.names.push(CONTAINER_CONTROL.to_owned());
    }
    found
}

/// Returns the first of these, joined, and how many more there are.
fn some_of(all: &BTreeSet<impl ToString>) -> String {
    let shown: Vec<String> = all.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    let more = all.len().saturating_sub(MOST_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// Returns taps, and bridges with taps or containers' ends of veth pairs.
fn interfaces(host: &Host) -> impl Iterator<Item = &str> {
    let carries = |link: &Link| matches!(link.kind.as_str(), "tap" | "veth");
    let is_guests = move |link: &&Link| match (link.is_bridge, &link.master) {
        (true, _) => host.ports_of(|bridge| bridge == link.name).any(carries),
        (false, None) => link.kind == "tap",
        (false, Some(_)) => false,
    };
    host.links.iter().filter(is_guests).map(|link| link.name.as_str())
}

/// Returns interfaces that are stacked on another, as `macvlan@eth0`: those in other namespaces, and local ones
/// that a virtual machine reads as a device.
fn passing(host: &Host) -> BTreeSet<String> {
    let here = host.links.iter().filter(|link| matches!(link.kind.as_str(), "macvtap" | "ipvtap"));
    let mut names: BTreeSet<String> =
        here.map(|link| format!("{}@{}", link.kind, link.parent.as_deref().unwrap_or_default())).collect();
    // If this query fails, the rest is reported in any case.
    for stacked_links in namespaces::stacked_links().unwrap_or_default() {
        if let Some(parent) = host.links.iter().find(|link| link.index == stacked_links.on) {
            names.insert(format!("{}@{}", stacked_links.kind, parent.name));
        }
    }
    names
}

/// Returns containers with a process in this network namespace, by the beginning of their ids.
fn containers_here() -> BTreeSet<String> {
    let Some(own) = processes::network_namespace("self") else { return BTreeSet::new() };
    // This process may itself run in a container, whose network is then the guarded one.
    let around = processes::container_of("self");
    let containers = processes::all().filter_map(|process| {
        let container = processes::container_of(&process).filter(|container| Some(container) != around.as_ref())?;
        (processes::network_namespace(&process) == Some(own)).then_some(container)
    });
    containers.collect()
}
