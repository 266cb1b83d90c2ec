//! Applying and removing. Applying closes first and opens then: routing rules, the ruleset in one
//! transaction, ports and kernel settings. Each step can be repeated; what fails is named, with what
//! holds meanwhile.

use super::host::{self, Host};
use super::plan::Plan;
use super::routing::{self, Routing};
use super::tool::{self, FirewallError};
use super::{bridge, others, ports, script, snapshot, tracking};
use std::io::Write;

/// What applying came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Steps that failed, or that the configuration asks for and this machine cannot give.
    pub faults: Vec<String>,
    /// What deserves a look: other firewalls in the way, things that will not work.
    pub warnings: Vec<String>,
    /// Of those what cuts guests off all the same.
    pub cut_off: Vec<String>,
    /// Interfaces that are there and are closed now but for outgate.
    pub interfaces: Vec<String>,
}

/// What removing came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces whose guests are held by nothing of outgate's any more.
    pub open: Vec<String>,
    /// Patterns of interfaces that may come later.
    pub patterns: Vec<String>,
    /// Is forwarding on, so that their packets go anywhere?
    pub forwarding: bool,
    /// Steps that failed.
    pub faults: Vec<String>,
}

/// Puts the plan in force.
///
/// # Errors
/// [`FirewallError`] where nothing was changed, or where the ruleset could not be put in place: the
/// old one holds then, if there was one.
pub fn apply(plan: &Plan, host: &Host) -> Result<Applied, FirewallError> {
    check_root()?;
    if !plan.is_wanted() {
        return Err(FirewallError::NotWanted);
    }
    // A ruleset that nft refuses must not leave routing behind that was made for it.
    let ruleset = tracking::without_chains() + &plan.ruleset();
    tool::run("nft", &["-c", "-f", "-"], &ruleset, "the ruleset (nothing was changed)")?;
    for sentence in plan.lockouts(host) {
        // Now or never: what is told afterwards may not reach the session that it is about.
        let _ = writeln!(std::io::stderr(), "WARNING: {sentence}");
    }
    for difference in plan.routing.compare()? {
        routing::settle(&difference)?;
    }
    // After what takes time, so that little is learnt in between.
    let ruleset = ruleset + &bridge::carried_over(plan, host);
    tool::run("nft", &["-f", "-"], &ruleset, "the ruleset (the routing rules are in place: guests are not forwarded)")?;
    let mut applied = Applied { faults: plan.faults().to_vec(), ..Applied::default() };
    ports::guard(plan, host, &mut applied.faults);
    set_sysctls(plan, host, &mut applied.faults);
    applied.warnings = plan.notes().to_vec();
    if let Err(error) = snapshot::note(&applied.faults) {
        applied.warnings.push(format!("changes that others make to the tables will not be seen: {error}"));
    }
    applied.warnings.extend(plan.missing(host));
    applied.cut_off = others::in_the_way(plan, host);
    applied.warnings.extend(applied.cut_off.iter().cloned());
    applied.interfaces = plan.guest_links(host).map(|link| link.name.clone()).collect();
    Ok(applied)
}

/// Removes everything that outgate put into the kernel, whatever the configuration says now. What
/// `apply` set of the kernel's settings for guests' interfaces stays: it is no hindrance.
///
/// # Errors
/// [`FirewallError`] where nothing was changed.
pub fn remove(plan: &Plan, host: &Host) -> Result<Removed, FirewallError> {
    check_root()?;
    let mut removed = Removed { patterns: plan.wildcards(), ..Removed::default() };
    removed.open = Routing::closed_interfaces()?;
    // Guests behind a port enter by its bridge, which is named.
    removed.open.retain(|name| host.link(name).is_some_and(|link| link.master.is_none()));
    removed.open.extend(plan.guest_links(host).map(|link| link.name.clone()));
    removed.open.sort();
    removed.open.dedup();
    tool::run("nft", &["-f", "-"], &script::nothing(plan), "to delete its tables")?;
    snapshot::forget();
    for difference in Routing::none(host).compare()? {
        if let Err(error) = routing::settle(&difference) {
            removed.faults.push(error.to_string());
        }
    }
    ports::release(plan, host, &removed.open, &mut removed.faults);
    let on = |path: &str| host::sysctl(path).is_some_and(|value| value != "0");
    removed.forwarding = on("/proc/sys/net/ipv4/ip_forward") || on("/proc/sys/net/ipv6/conf/all/forwarding");
    Ok(removed)
}

/// Kernel settings of guests' interfaces.
pub(super) fn set_sysctls(plan: &Plan, host: &Host, faults: &mut Vec<String>) {
    for (path, value) in plan.sysctls(host) {
        // A setting that the kernel does not have needs no value.
        if host::sysctl(&path).is_some_and(|now| now != value)
            && let Err(error) = std::fs::write(&path, value)
        {
            faults.push(format!("{path} cannot be set to {value}: {error}"));
        }
    }
}

pub(super) fn check_root() -> Result<(), FirewallError> {
    if crate::system::is_root() { Ok(()) } else { Err(FirewallError::NotRoot) }
}
