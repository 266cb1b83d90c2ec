//! What only root can see of the guard, for the daemon: the guarded interfaces, the unguarded ones, and what is
//! wrong.

use super::super::host::{Host, Link};
use super::super::plan::Plan;
use super::super::{others, ports, snapshot, unguarded};
use crate::trouble::{Guarded, HostReport, Trouble, TroubleCause};

/// Maximum number of troubles reported.
const MOST: usize = 100;

/// Returns whether everything that changes without an event is as it was when `report` was made: flags of ports,
/// kernel settings, the listeners' route, and guests that bypass the rules.
pub fn is_as_reported(plan: &Plan, host: &Host, not_guests: &[String], report: &HostReport) -> bool {
    let of = |cause| report.troubles.iter().filter(move |trouble| trouble.cause == cause);
    let told = |cause| of(cause).next().is_some();
    let texts = unguarded::find(plan, host, not_guests).texts;
    texts.iter().eq(of(TroubleCause::UnguardedGuests).map(|trouble| &trouble.text))
        && (told(TroubleCause::Routing) || routing(plan).is_empty())
        && (told(TroubleCause::PortUnguarded)
            || (ports::differences(plan, host).is_empty() && plan.other_sysctls(host).is_empty()))
}

/// Inspects everything that can be in the way of `plan`, which was applied. `not_guests`: interfaces and patterns
/// that carry no guests.
pub fn report(plan: &Plan, host: &Host, not_guests: &[String]) -> HostReport {
    let mut troubles = Vec::new();
    let mut add = |cause, texts: Vec<String>| troubles.extend(texts.into_iter().map(|text| Trouble::new(cause, text)));
    add(TroubleCause::Ruleset, snapshot::differences());
    add(TroubleCause::Routing, routing(plan));
    add(TroubleCause::OtherFirewall, others::in_the_way(plan, host));
    add(TroubleCause::InterfaceMissing, plan.missing(host));
    let mut unguarded_ports = ports::differences(plan, host);
    unguarded_ports.extend(plan.other_sysctls(host));
    add(
        TroubleCause::PortUnguarded,
        unguarded_ports.into_iter().map(|text| format!("{text}: run `outgate firewall apply`")).collect(),
    );
    let unguarded = unguarded::find(plan, host, not_guests);
    add(TroubleCause::UnguardedGuests, unguarded.texts);
    if troubles.len() > MOST {
        let more = troubles.len() - MOST;
        troubles.truncate(MOST);
        let text = format!("and {more} more: run `outgate firewall status`");
        troubles.push(Trouble::new(TroubleCause::PortUnguarded, text));
    }
    let guarding =
        plan.guest_links(host).map(|link| Guarded { interface: link.name.clone(), guests: guests(link, host) });
    HostReport { guarding: guarding.collect(), unguarded: unguarded.names, troubles }
}

/// Returns the number of a bridge's ports; else 1.
fn guests(link: &Link, host: &Host) -> usize {
    if link.is_bridge { host.ports_of(|bridge| bridge == link.name).count() } else { 1 }
}

fn routing(plan: &Plan) -> Vec<String> {
    let differences = match plan.routing.compare() {
        Ok(differences) => differences,
        Err(error) => return vec![format!("routing rules cannot be looked at: {error}")],
    };
    let missing = differences.iter().flat_map(|difference| {
        let family = difference.family;
        difference
            .missing
            .iter()
            .map(move |line| format!("\"ip {family} {line}\" is missing: run `outgate firewall apply`"))
    });
    missing.collect()
}
