//! Keeping what was applied in force for interfaces that come later: [`Events`] tells that there is another,
//! [`mend`] does for it what `apply` would have done, without touching the rules. It only ever closes: what a
//! changed configuration would open waits for `apply`. When to look, and at which configuration, is for the
//! command.

mod events;
mod sweep;

pub use events::Events;
pub use sweep::keep_swept;

use super::host::Host;
use super::plan::{Plan, Scope};
use super::routing::{self, Difference, Routing};
use super::tool::{self, FirewallError};
use super::{Presence, Seal, TABLE, apply, bridge, ports, presence, script, tracking};
use serde_json::Value;

/// How a configuration stands to what is in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was applied.
    InForce,
    /// Another was, or its tables are gone.
    Other,
    /// Nothing of outgate's is there.
    Nothing,
}

/// How does the configuration with this seal stand to what is in the kernel? Without a seal: none can be read.
///
/// # Errors
/// [`FirewallError`] where it cannot be found out.
pub fn standing(seal: Option<Seal>) -> Result<Standing, FirewallError> {
    let presence = seal.map(presence);
    if presence == Some(Presence::InPlace) {
        return Ok(Standing::InForce);
    }
    let applied = presence.is_some_and(Presence::is_there) || !Routing::closed_interfaces()?.is_empty();
    Ok(if applied { Standing::Other } else { Standing::Nothing })
}

/// What mending came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was changed, a sentence each.
    pub done: Vec<String>,
    /// What could not be, a sentence each.
    pub faults: Vec<String>,
}

/// Brings ports, sets of ports, routing rules and kernel settings to what `plan` has for the interfaces there
/// are. What is stale goes only if the plan is the one that was applied (`in_force`).
pub fn mend(plan: &Plan, host: &Host, in_force: bool) -> Mended {
    let mut mended = Mended::default();
    // First what a neighbour depends on.
    for port in ports::guard(plan, host, &mut mended.faults) {
        mended.done.push(format!("bridge port {port} is isolated and guarded"));
    }
    if !plan.guests.is_empty() {
        let bridges = &plan.here.bridges;
        let mut of = vec![("inet", script::PORTS, &plan.ports)];
        let families = ["inet", "arp"].into_iter().filter(|family| *family != "arp" || plan.here.has_arp_tables);
        of.extend(families.map(|family| (family, tracking::BRIDGES, bridges)));
        if plan.scope == Scope::Ports {
            of.push(("bridge", bridge::PORTS, &plan.ports));
        }
        let lines: Vec<String> = of.into_iter().flat_map(|of| elements(of, in_force, &mut mended.faults)).collect();
        carry_out(&lines, &mut mended);
    }
    match plan.routing.compare() {
        Ok(differences) => differences.iter().for_each(|difference| route(difference, in_force, &mut mended)),
        Err(error) => mended.faults.push(error.to_string()),
    }
    apply::set_sysctls(plan, host, &mut mended.faults);
    mended
}

/// The lines of nft(8) that bring a set of interfaces to the plan's.
fn elements(
    (family, set, wanted): (&'static str, &'static str, &Vec<String>),
    in_force: bool,
    faults: &mut Vec<String>,
) -> Vec<String> {
    let found = match tool::json("nft", &["-j", "list", "set", family, TABLE, set], "to list the ports it covers") {
        Ok(found) => found,
        Err(error) => {
            faults.push(format!("{error}; `outgate firewall apply` puts the ruleset in place"));
            return Vec::new();
        }
    };
    let items = found.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let elements = items.iter().filter_map(|item| item.get("set")?.get("elem")?.as_array()).flatten();
    let covered: Vec<&str> = elements.filter_map(Value::as_str).collect();
    let missing = wanted.iter().filter(|name| !covered.contains(&name.as_str()));
    let line = |verb: &str, name: &str| format!("{verb} element {family} {TABLE} {set} {{ \"{name}\" }}");
    let mut lines: Vec<String> = missing.map(|name| line("add", name)).collect();
    // A name that stays would hold whatever has it next.
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
