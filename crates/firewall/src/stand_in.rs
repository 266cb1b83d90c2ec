//! Interfaces that stand in for guests' while `outgate verify` tries the ways out: by which a guest's packets can be
//! sent, and the same protection as the others of their kind have. If a stand-in were better protected than they are, the
//! checks would miss their holes, so a missing flag or rule of theirs is missing here too.

use super::host::{Host, Link, fits, sysctl};
use super::plan::{Plan, Scope};
use super::settings::PlanInput;
use super::tool::{self, FirewallError};
use super::watch::{AppliedState, applied_state};
use super::{TABLE, bridge, ports, routing, script};

/// A way by which guests' packets enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEntry {
    /// A bridge, to which a port can be added.
    Bridge(String),
    /// A pattern of `guest_interfaces`; an interface whose name fits can be added.
    Pattern(String),
    /// An interface of one guest: nothing else can send through it.
    Single(String),
    /// An interface that does not exist.
    Missing(String),
}

impl GuestEntry {
    /// Returns the interface or pattern.
    pub fn name(&self) -> &str {
        let (GuestEntry::Bridge(name)
        | GuestEntry::Pattern(name)
        | GuestEntry::Single(name)
        | GuestEntry::Missing(name)) = self;
        name
    }

    /// Returns whether packets of this interface are judged as those of the entry.
    pub fn covers(&self, interface: &str) -> bool {
        match self {
            GuestEntry::Pattern(pattern) => pattern == interface || fits(pattern, interface),
            entry => entry.name() == interface,
        }
    }
}

/// Returns how guests' packets enter this machine, in the order of `guest_interfaces`: bridges come before the pattern
/// that they match, and a pattern that matches bridges alone is none of its own.
pub fn guest_entries(guest_interfaces: &[String], host: &Host) -> Vec<GuestEntry> {
    let mut entries: Vec<GuestEntry> = Vec::new();
    let mut add = |entry: GuestEntry| {
        if !entries.iter().any(|old| old.name() == entry.name()) {
            entries.push(entry);
        }
    };
    for pattern in guest_interfaces {
        let (bridges, others): (Vec<&Link>, Vec<&Link>) =
            host.links.iter().filter(|link| fits(pattern, &link.name)).partition(|link| link.is_bridge);
        bridges.iter().for_each(|link| add(GuestEntry::Bridge(link.name.clone())));
        match (pattern.ends_with('*'), bridges.is_empty(), others.is_empty()) {
            (true, true, _) | (true, _, false) => add(GuestEntry::Pattern(pattern.clone())),
            (false, true, false) => add(GuestEntry::Single(pattern.clone())),
            (false, true, true) => add(GuestEntry::Missing(pattern.clone())),
            (_, false, _) => {}
        }
    }
    entries
}

/// Gives interfaces of this machine, which are still down, the protection that the others of their kind have; that of
/// the plan if there are no others and a firewall is applied.
///
/// # Errors
/// [`FirewallError`] if ip(8) fails. What was done then is undone by [`dismiss`].
pub fn admit(input: &PlanInput, host: &Host, names: &[String]) -> Result<(), FirewallError> {
    let host = &host.again()?;
    let plan = Plan::new(input, host);
    let applied = applied_state(Some(plan.seal))? != AppliedState::Nothing;
    for link in host.links.iter().filter(|link| names.contains(&link.name)) {
        let siblings: Vec<&Link> = siblings(&plan, host, link).filter(|other| !names.contains(&other.name)).collect();
        let have = |is: &dyn Fn(&Link) -> bool| match siblings.is_empty() {
            true => applied,
            false => siblings.iter().all(|sibling| is(sibling)),
        };
        if link.master.is_some() {
            let isolated = ports::is_to_be_isolated(&plan, link) && have(&|sibling| sibling.isolated);
            ports::stand_in(&link.name, isolated, have(&|sibling| sibling.guarded))?;
            add_to_sets(&plan, &link.name);
        } else {
            set_sysctls(&plan, host, link, siblings.first().copied(), applied);
        }
        for family in if host.ipv6 { &["-4", "-6"][..] } else { &["-4"] } {
            let closed = routing::closed_interfaces(family)?;
            if have(&|sibling| closed.contains(&sibling.name)) && !closed.contains(&link.name) {
                let line = format!("{}\n", routing::prohibit_line("add", &link.name));
                let added = tool::run("ip", &[family, "-batch", "-"], &line, "to close an interface");
                // The watcher may have been faster.
                if let Err(error) = added
                    && !routing::closed_interfaces(family)?.contains(&link.name)
                {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Removes what [`admit`] added for interfaces of these names that do not exist any more: one that exists is somebody
/// else's. Returns what failed.
pub fn dismiss(names: &[String]) -> Vec<String> {
    let is_gone =
        |name: &&String| tool::run("ip", &["link", "show", "dev", name], "", "to look for an interface").is_err();
    let names: Vec<&String> = names.iter().filter(is_gone).collect();
    let mut faults = Vec::new();
    for family in ["-4", "-6"] {
        // A kernel without IPv6 has no such rules.
        let closed = routing::closed_interfaces(family).unwrap_or_default();
        let stale = closed.iter().filter(|name| names.contains(name));
        let lines: String = stale.map(|name| format!("{}\n", routing::prohibit_line("del", name))).collect();
        if !lines.is_empty()
            && let Err(error) = tool::run("ip", &[family, "-batch", "-"], &lines, "to remove a routing rule")
            && routing::closed_interfaces(family).is_ok_and(|now| now.iter().any(|name| names.contains(&name)))
        {
            faults.push(error.to_string());
        }
    }
    for name in names {
        for (family, set) in [("inet", script::PORTS), ("bridge", bridge::PORTS)] {
            // An element, set or table that is not there needs no change.
            let _ = tool::run("nft", &["delete", "element", family, TABLE, set, &element(name)], "", "to change a set");
        }
    }
    faults
}

/// Returns the interfaces of the same kind: the other ports of its bridge, or the other guests' interfaces.
fn siblings<'h>(plan: &'h Plan, host: &'h Host, link: &'h Link) -> impl Iterator<Item = &'h Link> {
    host.links.iter().filter(move |other| match &link.master {
        Some(bridge) => other.master.as_ref() == Some(bridge),
        None => {
            let alike =
                |pattern: &String| pattern.ends_with('*') && fits(pattern, &link.name) && fits(pattern, &other.name);
            other.master.is_none() && !other.is_bridge && plan.guests.iter().any(alike)
        }
    })
}

fn element(name: &str) -> String {
    format!("{{ \"{name}\" }}")
}

fn add_to_sets(plan: &Plan, name: &str) {
    let of_bridge = (plan.scope == Scope::Ports).then_some(("bridge", bridge::PORTS));
    for (family, set) in [("inet", script::PORTS)].into_iter().chain(of_bridge) {
        // Without the table there is nothing to add it to, and the checks say so.
        let _ = tool::run("nft", &["add", "element", family, TABLE, set, &element(name)], "", "to change a set");
    }
}

/// Copies the sibling's kernel settings; without one, sets those of the plan.
fn set_sysctls(plan: &Plan, host: &Host, link: &Link, sibling: Option<&Link>, applied: bool) {
    let own = |path: &String| path.split('/').any(|part| part == link.name);
    for (path, value) in plan.sysctls(host).into_iter().filter(|(path, _)| own(path)) {
        let theirs = sibling.and_then(|sibling| sysctl(&path.replace(&link.name, &sibling.name)));
        let wanted = theirs.or_else(|| applied.then(|| value.to_owned()));
        // A setting that this kernel does not have is nobody's.
        let _ = wanted.map(|wanted| std::fs::write(&path, wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, is_bridge: bool) -> Link {
        Link { name: name.to_owned(), is_bridge, ..Link::default() }
    }

    #[test]
    fn each_way_in_is_told_by_what_can_be_added_to_it() {
        let guest_interfaces = ["br0", "tap0", "r*", "virbr*", "veth-guest*", "gone"].map(str::to_owned).to_vec();
        let links =
            vec![link("br0", true), link("eth0", false), link("r3", false), link("tap0", false), link("virbr1", true)];
        let host = Host { links, ..Host::default() };
        let entries = guest_entries(&guest_interfaces, &host);
        let expected = [
            GuestEntry::Bridge("br0".to_owned()),
            GuestEntry::Single("tap0".to_owned()),
            GuestEntry::Pattern("r*".to_owned()),
            GuestEntry::Bridge("virbr1".to_owned()),
            GuestEntry::Pattern("veth-guest*".to_owned()),
            GuestEntry::Missing("gone".to_owned()),
        ];
        assert_eq!(entries, expected);
        assert!(expected[2].covers("r3") && expected[2].covers("r*") && !expected[2].covers("br0"));
        assert!(expected[0].covers("br0") && !expected[0].covers("br01"));
    }
}
