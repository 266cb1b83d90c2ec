//! What only root can see of the guard, for the daemon: the guarded interfaces, the unguarded ones, and what is
//! wrong.

use crate::host::{Host, Link};
use crate::owners::Owners;
use crate::plan::Plan;
use crate::{docker, others, ports, snapshot, unguarded};

/// Maximum number of findings.
const MOST: usize = 100;

/// What only root can see of the guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardReport {
    /// Guests' interfaces that exist and are guarded.
    pub guarding: Vec<GuardedInterface>,
    /// Interfaces that look like guests' and are not guarded.
    pub unguarded: Vec<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A guests' interface that exists and is guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedInterface {
    /// Its name.
    pub name: String,
    /// The number of guests behind it: the number of a bridge's ports, or 1.
    pub guests: usize,
    /// Whether they may reach each other.
    pub between_guests: bool,
}

/// One thing that is wrong with the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// What is wrong and how to repair it, one sentence.
    pub text: String,
}

/// What a [`Finding`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// The tables are missing, or were changed since they were applied.
    Ruleset,
    /// Routing rules or routes are missing.
    Routing,
    /// Another firewall drops traffic that is directed to the listeners.
    OtherFirewall,
    /// An interface that the configuration names does not exist.
    InterfaceMissing,
    /// A guests' bridge port is not isolated or guarded, or a setting of its interface differs.
    PortUnguarded,
    /// This machine has guests behind interfaces that are not guarded.
    UnguardedGuests,
    /// Names that containers in a guarded network ask for leave past the DNS listener.
    DockerDns,
}

/// Returns whether everything that changes without an event is as it was when `report` was made: flags of ports,
/// kernel settings, the listeners' route, and guests that bypass the rules.
pub fn is_as_reported(plan: &Plan, host: &Host, not_guests: &[String], report: &GuardReport) -> bool {
    let of = |kind| report.findings.iter().filter(move |finding| finding.kind == kind);
    let told = |kind| of(kind).next().is_some();
    let texts = unguarded::find(plan, host, not_guests).texts;
    let has_same_owners = || {
        let before = Owners::in_force();
        Owners::look(plan, host, &before) == before
    };
    texts.iter().eq(of(FindingKind::UnguardedGuests).map(|finding| &finding.text))
        && docker::leaking_names(plan, host).iter().eq(of(FindingKind::DockerDns).map(|finding| &finding.text))
        && (told(FindingKind::Routing) || routing(plan).is_empty())
        && (told(FindingKind::PortUnguarded)
            || (ports::differences(plan, host).is_empty() && plan.other_sysctls(host).is_empty()))
        // A container may get another address at any time.
        && has_same_owners()
}

/// Inspects everything that can be in the way of `plan`, which was applied. `not_guests`: interfaces and patterns
/// that carry no guests.
pub fn report(plan: &Plan, host: &Host, not_guests: &[String]) -> GuardReport {
    let mut findings = Vec::new();
    let mut add = |kind, texts: Vec<String>| findings.extend(texts.into_iter().map(|text| Finding { kind, text }));
    add(FindingKind::Ruleset, snapshot::differences());
    add(FindingKind::Routing, routing(plan));
    add(FindingKind::OtherFirewall, others::in_the_way(plan, host));
    add(FindingKind::InterfaceMissing, plan.missing(host));
    let mut unguarded_ports = ports::differences(plan, host);
    unguarded_ports.extend(plan.other_sysctls(host));
    add(
        FindingKind::PortUnguarded,
        unguarded_ports.into_iter().map(|text| format!("{text}: run `outgate firewall apply`")).collect(),
    );
    let unguarded = unguarded::find(plan, host, not_guests);
    add(FindingKind::UnguardedGuests, unguarded.texts);
    add(FindingKind::DockerDns, docker::leaking_names(plan, host).into_iter().collect());
    if findings.len() > MOST {
        let more = findings.len() - MOST;
        findings.truncate(MOST);
        let text = format!("and {more} more: run `outgate firewall status`");
        findings.push(Finding { kind: FindingKind::PortUnguarded, text });
    }
    let guarding = plan.guest_links(host).filter(|link| !link.is_probe).map(|link| GuardedInterface {
        name: link.name.clone(),
        guests: guests(link, host),
        between_guests: link.is_bridge && plan.allows_between_guests(&link.name),
    });
    GuardReport { guarding: guarding.collect(), unguarded: unguarded.names, findings }
}

/// Returns the number of a bridge's ports; else 1.
fn guests(link: &Link, host: &Host) -> usize {
    if link.is_bridge { host.ports_of(|bridge| bridge == link.name).filter(|port| !port.is_probe).count() } else { 1 }
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
