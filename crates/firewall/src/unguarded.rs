//! Finds possible guests on this machine that no guarded interface carries: taps, bridges with taps or with
//! containers' ends, interfaces that use a card of this machine's without passing its rules, and containers in its
//! own network.

use super::fits;
use super::host::{Host, Link};
use super::namespaces;
use super::plan::Plan;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The name for containers in this machine's own network.
pub const HOST_NETWORK: &str = "host-network";
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
        let shown: Vec<&str> = containers.iter().take(MOST_NAMED).map(String::as_str).collect();
        let more = containers.len().saturating_sub(MOST_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        found.texts.push(format!(
            "NOT guarded: {HOST_NETWORK}: container {}{more} uses the network of this machine itself: start it in a \
             network that [firewall].guest_interfaces names, or name {HOST_NETWORK} {NAME_IT}",
            shown.join(", ")
        ));
        found.names.push(HOST_NETWORK.to_owned());
    }
    found
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
    // Each namespace has its own file there, and its inode identifies a process's namespace without privileges.
    let namespace_of = |process: &str| Some(fs::metadata(format!("/proc/{process}/net/dev")).ok()?.ino());
    let container_of = |process: &str| {
        let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        groups.lines().find_map(container)
    };
    let Some(own) = namespace_of("self") else { return BTreeSet::new() };
    // This process may itself run in a container, whose network is then the guarded one.
    let around = container_of("self");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    let containers = numbers.filter_map(|process| {
        let container = container_of(&process).filter(|container| Some(container) != around.as_ref())?;
        (namespace_of(&process) == Some(own)).then_some(container)
    });
    containers.collect()
}

/// Returns the container that a line of /proc/PID/cgroup (cgroups(7)) belongs to. A container's supervisor does
/// not count.
fn container(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    let parts: Vec<&str> = path.split('/').collect();
    let is_id = |text: &str| text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit());
    let short = |id: &str| id.get(..12).map(str::to_owned);
    parts.iter().enumerate().find_map(|(n, part)| {
        let before = n.checked_sub(1).and_then(|n| parts.get(n)).copied().unwrap_or_default();
        // Docker, Podman, containerd and CRI-O under systemd: `docker-ID.scope`.
        if let Some((_, id)) = part.strip_suffix(".scope").and_then(|unit| unit.rsplit_once('-'))
            && is_id(id)
            && !part.contains("conmon")
        {
            return short(id);
        }
        // Without systemd: `docker/ID`, and pods' containers.
        if is_id(part) && (before == "docker" || before == "libpod" || before.starts_with("pod")) {
            return short(part);
        }
        if let Some(name) = part.strip_prefix("lxc.payload.") {
            return Some(name.to_owned());
        }
        let nspawn = before.strip_prefix("systemd-nspawn@").and_then(|unit| unit.strip_suffix(".service"));
        nspawn.filter(|_| *part == "payload").map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_from_their_supervisors_and_from_virtual_machines() {
        let id = "0123456789abcdef".repeat(4);
        for (line, wanted) in [
            (format!("0::/system.slice/docker-{id}.scope"), Some("0123456789ab")),
            (format!("0::/docker/{id}"), Some("0123456789ab")),
            (format!("4:memory:/docker/{id}/inner"), Some("0123456789ab")),
            (format!("0::/machine.slice/libpod-{id}.scope/container"), Some("0123456789ab")),
            (format!("0::/machine.slice/libpod-conmon-{id}.scope"), None),
            (format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"), Some("0123456789ab")),
            (format!("0::/kubepods/burstable/pod7/{id}"), Some("0123456789ab")),
            ("0::/lxc.payload.web/init.scope".to_owned(), Some("web")),
            ("0::/lxc.monitor.web".to_owned(), None),
            ("0::/machine.slice/systemd-nspawn@job.service/payload".to_owned(), Some("job")),
            ("0::/machine.slice/systemd-nspawn@job.service/supervisor".to_owned(), None),
            ("0::/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator".to_owned(), None),
            ("0::/system.slice/docker.service".to_owned(), None),
            (format!("0::/user.slice/{id}"), None),
            ("0::/".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(container(&line).as_deref(), wanted, "{line}");
        }
    }
}
