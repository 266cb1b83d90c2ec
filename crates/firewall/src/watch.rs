//! Keeps what was applied in force for interfaces that appear later: [`Events`] reports a new one, and [`mend`]
//! does for it what `apply` would have done, without changing the rules. It only ever closes: what a changed
//! configuration would open waits for `apply`. The command decides when to look, and at which configuration.

mod events;
mod report;
mod sweep;

pub use events::{Change, Events};
pub use report::{Finding, FindingKind, GuardReport, GuardedInterface, is_as_reported, report};
pub use sweep::keep_swept;

use super::host::Host;
use super::owners::{self, Owners};
use super::plan::{Plan, Scope};
use super::presence::{Presence, Seal, sensed};
use super::routing::{self, Difference, Routing};
use super::settings::FirewallSettings;
use super::tool::{self, FirewallError};
use super::{TABLE, apply, br_netfilter, bridge, ports, script, tracking};
use serde_json::Value;

/// How a configuration relates to the state of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppliedState {
    /// It was applied.
    InForce,
    /// Another one was applied.
    Other,
    /// Something was applied, and its tables are gone.
    Flushed,
    /// Nothing of outgate's is there.
    Nothing,
}

/// Compares the configuration with this seal with the state of the kernel. Without a seal: no configuration can be
/// read.
///
/// # Errors
/// [`FirewallError`] if it cannot be determined.
pub fn applied_state(seal: Option<Seal>) -> Result<AppliedState, FirewallError> {
    Ok(match sensed(seal) {
        Presence::InPlace => AppliedState::InForce,
        Presence::Outdated => AppliedState::Other,
        presence @ (Presence::Missing | Presence::Unknown) => match Routing::closed_interfaces()?.is_empty() {
            true => AppliedState::Nothing,
            false if presence == Presence::Missing => AppliedState::Flushed,
            false => AppliedState::Other,
        },
    })
}

/// Returns what outgate's own rules in the kernel restrict, from whatever configuration they were made: the
/// interfaces of the ruleset; if that is gone, those with a routing rule.
///
/// # Errors
/// [`FirewallError`] if it cannot be determined.
pub fn held(host: &Host) -> Result<FirewallSettings, FirewallError> {
    let mut guest_interfaces = guests_of_ruleset();
    if guest_interfaces.is_empty() {
        let closed = Routing::closed_interfaces()?;
        let is_closed = |name: &String| closed.contains(name);
        // Guests behind a port enter by its bridge, which is also listed.
        let is_port = |name: &str| host.link(name).and_then(|link| link.master.as_ref()).is_some_and(is_closed);
        guest_interfaces = closed.iter().filter(|name| !is_port(name)).cloned().collect();
    }
    Ok(FirewallSettings { guest_interfaces, ..FirewallSettings::default() })
}

/// Returns the interfaces whose packets the present ruleset does not forward.
fn guests_of_ruleset() -> Vec<String> {
    let items = tool::listed(&["chain", "inet", TABLE, script::FORWARDED], "to list the interfaces that it names")
        .unwrap_or_default();
    let rules = items.iter().filter_map(|item| item.get("rule")?.get("expr")?.as_array());
    // Accepted packets enter by the same interfaces, under more conditions.
    let refusing = rules.filter(|rule| rule.iter().any(|statement| statement.get("goto").is_some()));
    let matches = refusing.flatten().filter_map(|statement| statement.get("match"));
    let by_name = matches.filter(|test| test.pointer("/left/meta/key").and_then(Value::as_str) == Some("iifname"));
    let names = |test: &Value| -> Option<Vec<String>> {
        let right = test.get("right")?;
        let many = right.get("set").and_then(Value::as_array).map(Vec::as_slice);
        let names = many.unwrap_or(std::slice::from_ref(right)).iter().filter_map(Value::as_str);
        Some(names.map(str::to_owned).collect())
    };
    by_name.filter_map(names).flatten().collect()
}

/// The result of mending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was changed, a sentence each.
    pub done: Vec<String>,
    /// What could not be changed, a sentence each.
    pub faults: Vec<String>,
    /// Whether a guest's port has a container behind it that has no address yet, or none that is known.
    pub is_unsettled: bool,
}

/// Changes ports, sets of ports, routing rules and kernel settings to what `plan` requires for the existing
/// interfaces. Stale ones are removed only if the plan is the one that was applied (`in_force`).
/// `br_netfilter_came`: whether br_netfilter was loaded since the last look.
pub fn mend(plan: &Plan, host: &Host, in_force: bool, br_netfilter_came: bool) -> Mended {
    let mut mended = Mended::default();
    // First what protects a neighbour.
    for port in ports::guard(plan, host, &mut mended.faults) {
        mended.done.push(format!("bridge port {port} is isolated and guarded"));
    }
    if !plan.guests.is_empty() {
        let bridges = &plan.here.bridges;
        let mut of = vec![("inet", script::PORTS, &plan.ports)];
        let tables = plan.tables().filter(|(family, name)| *name == TABLE && *family != "bridge");
        of.extend(tables.map(|(family, _)| (family, tracking::BRIDGES, bridges)));
        if plan.scope == Scope::Ports {
            of.push(("bridge", bridge::PORTS, &plan.ports));
            if plan.allows_between_any() {
                of.push(("bridge", bridge::OPEN_PORTS, &plan.open_ports));
            }
        }
        let lines: Vec<String> = of.into_iter().flat_map(|of| elements(of, in_force, &mut mended.faults)).collect();
        carry_out(&lines, &mut mended);
        let before = Owners::in_force();
        let owners = Owners::look(plan, host, &before);
        mended.is_unsettled = owners::is_unsettled(plan, host, &owners);
        match if owners == before { Ok(false) } else { owners.put().map(|()| true) } {
            Ok(true) => mended.done.push("addresses of containers are held to their bridge ports".to_owned()),
            Ok(false) => {}
            // Without its table, or with that of an earlier version, there is nothing to put it in.
            Err(_) if !in_force => {}
            Err(error) => mended.faults.push(error.to_string()),
        }
    }
    match br_netfilter::is_older(host, br_netfilter_came)
        .and_then(|older| if older { br_netfilter::renew().map(|()| true) } else { Ok(false) })
    {
        Ok(true) => mended
            .done
            .push("br_netfilter was loaded: guests' connections over bridges reach the listener again".to_owned()),
        Ok(false) => {}
        Err(error) => mended.faults.push(error.to_string()),
    }
    match plan.routing.compare() {
        Ok(differences) => differences.iter().for_each(|difference| route(difference, in_force, &mut mended)),
        Err(error) => mended.faults.push(error.to_string()),
    }
    apply::set_sysctls(plan, host, &mut mended.faults);
    mended
}

/// Returns the lines of nft(8) that change a set of interfaces to the plan's.
fn elements(
    (family, set, wanted): (&'static str, &'static str, &Vec<String>),
    in_force: bool,
    faults: &mut Vec<String>,
) -> Vec<String> {
    let items = match tool::listed(&["set", family, TABLE, set], "to list the ports it covers") {
        Ok(items) => items,
        Err(error) => {
            // A missing table is reported as a separate trouble.
            if tool::listed(&["table", family, TABLE], "to look for its table").is_ok() {
                faults.push(format!("{error}; `outgate firewall apply` puts the ruleset in place"));
            }
            return Vec::new();
        }
    };
    let elements = items.iter().filter_map(|item| item.get("set")?.get("elem")?.as_array()).flatten();
    let covered: Vec<&str> = elements.filter_map(Value::as_str).collect();
    let missing = wanted.iter().filter(|name| !covered.contains(&name.as_str()));
    let line = |verb: &str, name: &str| format!("{verb} element {family} {TABLE} {set} {{ \"{name}\" }}");
    let mut lines: Vec<String> = missing.map(|name| line("add", name)).collect();
    // A name that stays would restrict the next interface with that name.
    let stale = covered.iter().filter(|name| in_force && !wanted.iter().any(|port| port == *name));
    lines.extend(stale.map(|name| line("delete", name)));
    lines
}

fn carry_out(lines: &[String], mended: &mut Mended) {
    if lines.is_empty() {
        return;
    }
    match tool::run("nft", &["-f", "-"], &format!("{}\n", lines.join("\n")), "to change the ports it covers") {
        Ok(_) => mended.done.extend(lines.iter().map(|line| format!("nft {line}"))),
        Err(error) => mended.faults.push(error.to_string()),
    }
}

fn route(difference: &Difference, in_force: bool, mended: &mut Mended) {
    let mut wanted = Difference { surplus: Vec::new(), ..difference.clone() };
    if !in_force {
        wanted.missing.retain(|line| line.ends_with("prohibit"));
        wanted.gone.clear();
    }
    let family = wanted.family;
    match routing::settle(&wanted) {
        Ok(()) => {
            mended.done.extend(wanted.missing.iter().chain(&wanted.gone).map(|line| format!("ip {family} {line}")))
        }
        Err(error) => mended.faults.push(error.to_string()),
    }
}
