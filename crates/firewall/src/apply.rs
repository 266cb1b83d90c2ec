//! Applies and removes the firewall. Applying first closes, then opens: routing rules, the ruleset in one
//! transaction, ports and kernel settings. Each step can be repeated; an error names the step, and what is in
//! force in the meantime.

use super::host::{self, Host};
use super::plan::Plan;
use super::routing::{self, Routing};
use super::tool::{self, FirewallError};
use super::{bridge, docker, others, ports, script, snapshot, tracking};
use std::io::Write;

/// The result of applying.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Steps that failed, or that the configuration requires and this machine does not support.
    pub faults: Vec<String>,
    /// Warnings: other firewalls in the way, and things that will not work.
    pub warnings: Vec<String>,
    /// Those of the warnings that report guests being cut off.
    pub cut_off: Vec<String>,
    /// Those of the warnings that report what leaves past outgate all the same.
    pub leaks: Vec<String>,
    /// Existing interfaces that are now closed except through outgate.
    pub interfaces: Vec<String>,
}

/// The result of removing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces whose guests outgate no longer restricts.
    pub open: Vec<String>,
    /// Patterns of interfaces that may appear later.
    pub patterns: Vec<String>,
    /// Whether forwarding is on, so that their packets can go anywhere.
    pub forwarding: bool,
    /// Steps that failed.
    pub faults: Vec<String>,
}

/// Applies the plan.
///
/// # Errors
/// [`FirewallError`] if nothing was changed, or if the ruleset could not be put in place: the old one, if there
/// was one, then remains in force.
pub fn apply(plan: &Plan, host: &Host) -> Result<Applied, FirewallError> {
    check_root()?;
    if !plan.is_wanted() {
        return Err(FirewallError::NotWanted);
    }
    // If nft refuses the ruleset, the routing made for it must not remain.
    let ruleset = tracking::without_chains() + &plan.ruleset();
    tool::run("nft", &["-c", "-f", "-"], &ruleset, "the ruleset (nothing was changed)")?;
    for sentence in plan.lockouts(host) {
        // A later message may not reach the session that it is about.
        let _ = writeln!(std::io::stderr(), "WARNING: {sentence}");
    }
    for difference in plan.routing.compare()? {
        routing::settle(&difference)?;
    }
    // After the slow steps, so that ports learn little in between.
    let ruleset = ruleset + &bridge::carried_over(plan, host);
    tool::run("nft", &["-f", "-"], &ruleset, "the ruleset (the routing rules are in place: guests are not forwarded)")?;
    let mut applied = Applied { faults: plan.faults().to_vec(), ..Applied::default() };
    ports::guard(plan, host, &mut applied.faults);
    set_sysctls(plan, host, &mut applied.faults);
    applied.warnings = plan.notes().to_vec();
    if let Err(error) = snapshot::note(&applied.faults) {
        applied.warnings.push(format!("changes that others make to the tables will not be noticed: {error}"));
    }
    applied.warnings.extend(plan.missing(host));
    applied.cut_off = others::in_the_way(plan, host);
    applied.warnings.extend(applied.cut_off.iter().cloned());
    applied.leaks = docker::leaking_names(plan, host).into_iter().collect();
    applied.warnings.extend(applied.leaks.iter().cloned());
    applied.interfaces = plan.guest_links(host).map(|link| link.name.clone()).collect();
    Ok(applied)
}

/// Removes everything that outgate put into the kernel, whatever the current configuration is. The kernel settings
/// that `apply` set for guests' interfaces stay: they do no harm.
///
/// # Errors
/// [`FirewallError`] if nothing was changed.
pub fn remove(plan: &Plan, host: &Host) -> Result<Removed, FirewallError> {
    check_root()?;
    let mut removed = Removed { patterns: plan.wildcards(), ..Removed::default() };
    removed.open = Routing::closed_interfaces()?;
    // Guests behind a port enter by its bridge, which is listed.
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

/// Sets the kernel settings of guests' interfaces.
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
    if host::is_root() { Ok(()) } else { Err(FirewallError::NotRoot) }
}
