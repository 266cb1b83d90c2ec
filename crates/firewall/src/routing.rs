//! Routing: delivers packets that are marked for the listener to this machine, and prevents forwarding of
//! everything else from a guest interface. The second half does not need nftables, which is its purpose. All of
//! these rules precede all others except the local table, so that no VPN's rule comes first.

use super::host::{Host, fits};
use super::plan::Plan;
use super::tool::{self, FirewallError};
use super::{MARK_LISTENER, MARK_MASK, MARK_REPLY, ROUTES};
use serde::Deserialize;

/// Priorities of ip-rule(8). 0 is the local table; others may use those after 44.
const REPLIES: u32 = 41;
const VALIDATION: u32 = 42;
const LISTENER: u32 = 43;
const PROHIBIT: u32 = 44;

/// The required rules; the same for IPv4 and IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Routing {
    rules: Vec<Rule>,
    ipv6: bool,
    /// The existing interfaces: rules for others have no effect.
    there: Vec<String>,
}

/// One rule of ip-rule(8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    priority: u32,
    /// As ip(8) accepts and prints it.
    mark: Option<u32>,
    interface: Option<String>,
    action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Lookup(String),
    Prohibit,
    /// Something that is not outgate's.
    Other,
}

/// A difference between the present and the required state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) family: &'static str,
    pub(super) missing: Vec<String>,
    pub(super) surplus: Vec<String>,
    /// Also surplus, but about interfaces that disappeared, as happens when a guest ends.
    pub(super) gone: Vec<String>,
}

#[derive(Deserialize)]
struct IpRule {
    priority: u32,
    fwmark: Option<String>,
    fwmask: Option<String>,
    iif: Option<String>,
    table: Option<String>,
    action: Option<String>,
    src: Option<String>,
    srclen: Option<u8>,
    not: Option<serde_json::Value>,
}

impl Routing {
    pub(super) fn new(plan: &Plan, host: &Host) -> Routing {
        let mut rules = Vec::new();
        if plan.guests.is_empty() {
            return Routing::none(host);
        }
        let lookup = |priority, mark, interface: Option<&str>, table: &str| Rule {
            priority,
            mark: Some(mark),
            interface: interface.map(str::to_owned),
            action: Action::Lookup(table.to_owned()),
        };
        if plan.allow_inbound_replies {
            rules.push(lookup(REPLIES, MARK_REPLY, None, "main"));
        }
        rules.push(lookup(VALIDATION, MARK_LISTENER, Some("lo"), "main"));
        rules.push(lookup(LISTENER, MARK_LISTENER, None, &ROUTES.to_string()));
        let there = host.links.iter().map(|link| link.name.as_str());
        let mut names: Vec<&str> = plan.guests.iter().map(String::as_str).filter(|name| !name.ends_with('*')).collect();
        names.extend(there.filter(|name| plan.guests.iter().any(|pattern| fits(pattern, name))));
        names.extend(plan.ports.iter().map(String::as_str));
        names.sort_unstable();
        names.dedup();
        rules.extend(names.into_iter().map(prohibit));
        Routing { rules, ..Routing::none(host) }
    }

    /// Returns comments and lines of `ip -batch` for display; they apply to both families.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for rule in &self.rules {
            let why = match (rule.priority, &rule.interface) {
                (REPLIES, _) => "answers to connections that came from outside leave as usual",
                (VALIDATION, _) => "the kernel checks source addresses in the usual tables",
                (LISTENER, _) => "what the ruleset marked for the transparent listener is delivered here",
                _ => "everything else from guests is not forwarded, with or without nftables",
            };
            lines.push(format!("# {why}"));
            lines.push(format!("rule add {}", rule.line()));
        }
        if !self.rules.is_empty() {
            lines.push("# every address is delivered to this machine".to_owned());
            lines.push(format!("route replace {}", route()));
        }
        lines
    }

    /// Returns the differences, by family.
    pub(super) fn compare(&self) -> Result<Vec<Difference>, FirewallError> {
        let families: &[&str] = if self.ipv6 { &["-4", "-6"] } else { &["-4"] };
        families.iter().map(|family| self.compare_family(family)).collect()
    }

    fn compare_family(&self, family: &'static str) -> Result<Difference, FirewallError> {
        let found = rules(family)?;
        let mut difference = Difference { family, ..Difference::default() };
        for rule in self.rules.iter().filter(|rule| !found.contains(rule)) {
            difference.missing.push(format!("rule add {}", rule.line()));
        }
        let mut seen: Vec<&Rule> = Vec::new();
        for rule in &found {
            if rule.is_ours() && (!self.rules.contains(rule) || seen.contains(&rule)) {
                let gone = rule.interface.as_ref().is_some_and(|name| name != "lo" && !self.there.contains(name));
                let place = if gone { &mut difference.gone } else { &mut difference.surplus };
                place.push(format!("rule del {}", rule.line()));
            }
            seen.push(rule);
        }
        let has_route = has_route(family)?;
        if !has_route && !self.rules.is_empty() {
            // The route comes first: a rule without it would let marked packets pass to the next rule.
            difference.missing.insert(0, format!("route replace {}", route()));
        }
        if has_route && self.rules.is_empty() {
            difference.surplus.push(format!("route flush table {ROUTES}"));
        }
        Ok(difference)
    }

    /// Returns the interfaces that are closed by a rule of IPv4, whatever the plan is.
    pub(super) fn closed_interfaces() -> Result<Vec<String>, FirewallError> {
        closed_interfaces("-4")
    }

    /// Returns no rules: the state after everything is removed.
    pub(super) fn none(host: &Host) -> Routing {
        let there = host.links.iter().map(|link| link.name.clone()).collect();
        Routing { rules: Vec::new(), ipv6: host.ipv6, there }
    }
}

/// Changes the present state to the required one: first adds what closes, then what opens, then removes what is
/// stale.
pub(super) fn settle(difference: &Difference) -> Result<(), FirewallError> {
    let closing = |line: &&String| line.ends_with("prohibit");
    let (first, second): (Vec<&String>, Vec<&String>) = difference.missing.iter().partition(closing);
    let lines = first.into_iter().chain(second).chain(&difference.surplus).chain(&difference.gone);
    let lines: String = lines.flat_map(|line| [line.as_str(), "\n"]).collect();
    if !lines.is_empty() {
        tool::run("ip", &[difference.family, "-batch", "-"], &lines, "routing rules")?;
    }
    Ok(())
}

impl Rule {
    fn line(&self) -> String {
        let mut line = format!("pref {}", self.priority);
        if let Some(mark) = self.mark {
            line.push_str(&format!(" fwmark {mark:#x}/{MARK_MASK:#x}"));
        }
        if let Some(interface) = &self.interface {
            line.push_str(&format!(" iif {interface}"));
        }
        match &self.action {
            Action::Lookup(table) => line.push_str(&format!(" lookup {table}")),
            Action::Prohibit | Action::Other => line.push_str(" prohibit"),
        }
        line
    }

    /// Returns whether outgate wrote this rule: only outgate's rules have its priority and its mark, or its
    /// priority and its action.
    fn is_ours(&self) -> bool {
        match self.priority {
            REPLIES | VALIDATION | LISTENER => self.mark.is_some() && self.action != Action::Other,
            PROHIBIT => self.interface.is_some() && self.mark.is_none() && self.action == Action::Prohibit,
            _ => false,
        }
    }
}

impl From<IpRule> for Rule {
    fn from(rule: IpRule) -> Rule {
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        let plain = rule.src.as_deref() == Some("all") && rule.srclen.is_none() && rule.not.is_none();
        let mask = rule.fwmask.as_deref().and_then(number);
        let mark = rule.fwmark.as_deref().and_then(number).filter(|_| mask == Some(MARK_MASK));
        let action = match (rule.action.as_deref(), rule.table) {
            _ if !plain || mark.is_some() != rule.fwmark.is_some() => Action::Other,
            (Some("prohibit"), _) => Action::Prohibit,
            (None, Some(table)) => Action::Lookup(table),
            _ => Action::Other,
        };
        Rule { priority: rule.priority, mark, interface: rule.iif, action }
    }
}

/// Returns the interfaces that are closed by a rule of this family.
pub(super) fn closed_interfaces(family: &'static str) -> Result<Vec<String>, FirewallError> {
    let found = rules(family)?.into_iter().filter(|rule| rule.is_ours() && rule.action == Action::Prohibit);
    Ok(found.filter_map(|rule| rule.interface).collect())
}

/// Returns the line of ip(8) that adds or deletes (`verb`) the rule which closes an interface.
pub(super) fn prohibit_line(verb: &str, interface: &str) -> String {
    format!("rule {verb} {}", prohibit(interface).line())
}

fn prohibit(interface: &str) -> Rule {
    Rule { priority: PROHIBIT, mark: None, interface: Some(interface.to_owned()), action: Action::Prohibit }
}

fn route() -> String {
    format!("local default dev lo table {ROUTES}")
}

fn rules(family: &'static str) -> Result<Vec<Rule>, FirewallError> {
    let found = tool::json("ip", &[family, "-j", "rule", "show"], "to list routing rules")?;
    let found: Vec<IpRule> =
        serde_json::from_value(found).map_err(|source| FirewallError::Unreadable { program: "ip", source })?;
    Ok(found.into_iter().map(Rule::from).collect())
}

fn has_route(family: &'static str) -> Result<bool, FirewallError> {
    // For a table that was never used, some versions report an error and others print nothing.
    let table = ROUTES.to_string();
    let found = tool::json("ip", &[family, "-j", "route", "show", "table", &table], "to list routes");
    let Ok(serde_json::Value::Array(routes)) = found else { return Ok(false) };
    let is = |route: &serde_json::Value, key: &str, value: &str| {
        route.get(key).and_then(serde_json::Value::as_str) == Some(value)
    };
    Ok(routes.iter().any(|route| is(route, "type", "local") && is(route, "dst", "default") && is(route, "dev", "lo")))
}
