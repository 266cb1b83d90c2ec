//! Compares what is in force with the plan. The ruleset is compared in the form that the kernel prints: the plan's
//! own is loaded into an empty network namespace and printed there, so that no second description of it can become
//! outdated.

use super::host::Host;
use super::plan::Plan;
use super::script::PORTS;
use super::tool::{self, FirewallError};
use super::{TABLES, apply, bridge, docker, others, ports};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Everything of the plan is in place, and nothing else of outgate's.
    pub in_place: bool,
    /// Existing interfaces that guests enter by.
    pub interfaces: Vec<String>,
    /// Those of them that are bridges whose guests may reach each other.
    pub between_guests_allowed: Vec<String>,
    /// What is missing or differs, one sentence each.
    pub differences: Vec<String>,
    /// Warnings although everything is as planned: other firewalls, things that will not work.
    pub warnings: Vec<String>,
    /// The ruleset's counters.
    pub counters: Vec<Counter>,
}

/// Packets of the rules with one comment in one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// `inet`, `bridge` or `arp`.
    pub family: String,
    /// The chain.
    pub chain: String,
    /// The rule's comment.
    pub rule: String,
    /// Packets that the rules matched since the ruleset was applied.
    pub packets: u64,
}

/// Inspects what is in force.
///
/// # Errors
/// [`FirewallError`] if it cannot be inspected.
pub fn status(plan: &Plan, host: &Host) -> Result<Status, FirewallError> {
    apply::check_root()?;
    let mut differences = plan.faults().to_vec();
    differences.extend(plan.missing(host));
    let mut counters = Vec::new();
    let planned = planned_tables(plan)?;
    for (family, name) in TABLES {
        let wanted = planned.get(&(family.to_owned(), name.to_owned()));
        let found = table(family, name);
        match (wanted, &found) {
            (None, None) => {}
            (Some(_), None) => differences.push(format!("table {family} {name} is missing")),
            (None, Some(_)) => differences.push(format!(
                "table {family} {name} exists, but the configuration does not \
                                                         need it"
            )),
            (Some(wanted), Some(found)) => {
                let chains = differing(wanted, found);
                if !chains.is_empty() {
                    differences.push(format!("table {family} {name} differs from the configuration: {chains}"));
                }
            }
        }
        if let (Some(wanted), Some(found)) = (wanted, &found) {
            for difference in elements((family, name), wanted, found, host) {
                // A port may be missing in the sets of several tables.
                if !differences.contains(&difference) {
                    differences.push(difference);
                }
            }
        }
        counters.extend(found.as_ref().map(|found| counted(family, found)).unwrap_or_default());
    }
    for difference in plan.routing.compare()? {
        let family = difference.family;
        differences.extend(difference.missing.iter().map(|line| format!("routing: `ip {family} {line}` is missing")));
        differences.extend(
            difference.surplus.iter().map(|line| format!("routing: `ip {family} {line}` would remove a stale one")),
        );
    }
    differences.extend(ports::differences(plan, host));
    differences.extend(plan.other_sysctls(host));
    let mut warnings = plan.notes().to_vec();
    warnings.extend(others::in_the_way(plan, host));
    warnings.extend(docker::leaking_names(plan, host));
    let interfaces = plan.guest_links(host).map(|link| link.name.clone()).collect();
    let bridges = plan.here.bridges.iter();
    let between_guests_allowed = bridges.filter(|bridge| plan.allows_between_guests(bridge)).cloned().collect();
    let in_place = plan.is_wanted() && differences.is_empty();
    Ok(Status { in_place, interfaces, between_guests_allowed, differences, warnings, counters })
}

/// Returns a table as the kernel prints it; `None` if there is none.
fn table(family: &'static str, name: &'static str) -> Option<Vec<Value>> {
    tool::listed(&["table", family, name], "to list its table").ok()
}

/// Tables by family and name.
type Tables = BTreeMap<(String, String), Vec<Value>>;

/// Returns the plan's tables, printed by a kernel namespace that contains nothing else.
fn planned_tables(plan: &Plan) -> Result<Tables, FirewallError> {
    if !plan.is_wanted() {
        return Ok(BTreeMap::new());
    }
    let arguments = ["--net", "--", "sh", "-c", "nft -f - && nft -j list ruleset"];
    let text = tool::run("unshare", &arguments, &plan.ruleset(), "to load the ruleset into an empty namespace")?;
    let printed: Value =
        serde_json::from_str(&text).map_err(|source| FirewallError::Unreadable { program: "nft", source })?;
    let mut tables = Tables::new();
    for item in tool::items(printed) {
        let Some((kind, fields)) = body(&item) else { continue };
        let name = text_of(fields, if kind == "table" { "name" } else { "table" });
        if let (Some(family), Some(name)) = (text_of(fields, "family"), name) {
            tables.entry((family.to_owned(), name.to_owned())).or_default().push(item);
        }
    }
    Ok(tables)
}

/// Returns the kind of an item, and its fields.
fn body(item: &Value) -> Option<(&str, &Value)> {
    let (kind, body) = item.as_object()?.iter().next()?;
    Some((kind, body))
}

fn text_of<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).and_then(Value::as_str)
}

/// Returns the names of chains and sets that differ, joined.
fn differing(wanted: &[Value], found: &[Value]) -> String {
    let (wanted, mut found) = (by_place(wanted), by_place(found));
    // Those of earlier configurations stay, for the entries that point to them.
    found.retain(|place, _| !place.starts_with("ct timeout ") || wanted.contains_key(place));
    unequal(&wanted, &found)
}

/// Returns the names of everything that is not the same in both, joined.
pub(super) fn unequal<T: PartialEq>(one: &BTreeMap<String, T>, other: &BTreeMap<String, T>) -> String {
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let unequal = names.into_iter().filter(|name| one.get(*name) != other.get(*name));
    unequal.map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Returns the contents of a table, by chain or set, without values that change by themselves.
pub(super) fn by_place(items: &[Value]) -> BTreeMap<String, Vec<Value>> {
    let mut places: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for item in items {
        let Some((kind, fields)) = body(item) else { continue };
        let place = match kind {
            "rule" => format!("chain {}", text_of(fields, "chain").unwrap_or_default()),
            _ => format!("{kind} {}", text_of(fields, "name").unwrap_or_default()),
        };
        places.entry(place).or_default().push(still(fields, kind == "set"));
    }
    places
}

/// Returns `value` without handles, counts and what sets have learnt.
fn still(value: &Value, is_set: bool) -> Value {
    match value {
        Value::Object(fields) => {
            let moving = |key: &str| matches!(key, "handle" | "packets" | "bytes") || (is_set && key == "elem");
            let kept = fields.iter().filter(|(key, _)| !moving(key));
            Value::Object(kept.map(|(key, value)| (key.clone(), still(value, false))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(|value| still(value, false)).collect()),
        other => other.clone(),
    }
}

/// Returns which elements are missing in the sets that `apply` and the watcher fill, and which are surplus.
fn elements((family, table): (&str, &str), wanted: &[Value], found: &[Value], host: &Host) -> Vec<String> {
    let mut differences = Vec::new();
    let found = filled(found);
    for (set, wanted) in filled(wanted) {
        let found = found.get(&set).cloned().unwrap_or_default();
        for name in wanted.difference(&found) {
            let is_port = [PORTS, bridge::PORTS, bridge::OPEN_PORTS].contains(&set.as_str());
            differences.push(match host.link(name).filter(|_| is_port) {
                Some(_) => format!("bridge port {name} is not covered: it came after the ruleset"),
                None => {
                    format!("set {set} of table {family} {table} does not name {name}: run `outgate firewall apply`")
                }
            });
        }
        differences.extend(found.difference(&wanted).map(|name| {
            format!(
                "set {set} of table {family} {table} still names {name} and would hold whatever interface has that \
                 name next: run `outgate firewall apply`"
            )
        }));
    }
    differences
}

/// Returns the elements of each set, except for sets that learn theirs from packets.
fn filled(items: &[Value]) -> BTreeMap<String, BTreeSet<String>> {
    let learns = |set: &Value| {
        let flags = set.get("flags").map(Value::to_string).unwrap_or_default();
        ["dynamic", "timeout"].iter().any(|flag| flags.contains(flag))
    };
    let sets = items.iter().filter_map(|item| item.get("set")).filter(|set| !learns(set));
    let elements = |set: &Value| {
        let elements = set.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        elements.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    sets.filter_map(|set| Some((text_of(set, "name")?.to_owned(), elements(set)))).collect()
}

fn counted(family: &str, items: &[Value]) -> Vec<Counter> {
    let mut counters: Vec<Counter> = Vec::new();
    for (_, rule) in items.iter().filter_map(body).filter(|(kind, _)| *kind == "rule") {
        let statements = rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let packets = statements.iter().find_map(|statement| statement.get("counter")?.get("packets")?.as_u64());
        let (Some(packets), Some(chain), Some(comment)) = (packets, text_of(rule, "chain"), text_of(rule, "comment"))
        else {
            continue;
        };
        match counters.iter_mut().find(|counter| counter.chain == chain && counter.rule == comment) {
            Some(counter) => counter.packets = counter.packets.saturating_add(packets),
            None => counters.push(Counter {
                family: family.to_owned(),
                chain: chain.to_owned(),
                rule: comment.to_owned(),
                packets,
            }),
        }
    }
    counters
}
