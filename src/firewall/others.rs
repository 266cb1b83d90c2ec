//! Other firewalls on the machine: an accept of outgate's is no accept of theirs, and a chain of
//! theirs that drops what nobody allowed would drop what is brought to the listeners. Found are
//! nftables chains (ufw, firewalld, iptables-nft) and, where they are in use, those of
//! iptables-legacy; told is the line that lets guests through. Nothing of others is changed.

use super::host::Host;
use super::plan::Plan;
use super::tool;
use super::{TABLES, host};
use crate::shell::quoted;
use serde_json::Value;
use std::collections::BTreeSet;

/// A chain of somebody else's that the kernel calls.
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: String,
}

/// What is in the way, one sentence with its remedy each.
pub(super) fn in_the_way(plan: &Plan, host: &Host) -> Vec<String> {
    let interfaces: Vec<String> = plan.guest_links(host).map(|link| link.name.clone()).collect();
    if interfaces.is_empty() {
        return Vec::new();
    }
    let hooks: &[&str] =
        if plan.allow_inbound_replies { &["input", "output", "forward"] } else { &["input", "output"] };
    let mut found = Vec::new();
    if let Ok(ruleset) = tool::json("nft", &["-j", "list", "ruleset"], "to list other rulesets") {
        found.extend(nftables(&ruleset, hooks, &interfaces));
    }
    for (names, save) in
        [("/proc/net/ip_tables_names", "iptables-legacy-save"), ("/proc/net/ip6_tables_names", "ip6tables-legacy-save")]
    {
        if host::sysctl(names).is_some_and(|tables| tables.lines().any(|table| table == "filter"))
            && let Ok(saved) = tool::run(save, &["-t", "filter"], "", "to list its rules")
        {
            found.extend(legacy(&saved, save, hooks, &interfaces));
        }
    }
    found
}

fn nftables(ruleset: &Value, hooks: &[&str], interfaces: &[String]) -> Vec<String> {
    let empty = Vec::new();
    let items = ruleset.get("nftables").and_then(Value::as_array).unwrap_or(&empty);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let rules: Vec<&Value> = items.iter().filter_map(|item| item.get("rule")).collect();
    let mut found = Vec::new();
    for chain in items.iter().filter_map(|item| item.get("chain")) {
        let base = Chain {
            family: text(chain, "family"),
            table: text(chain, "table"),
            name: text(chain, "name"),
            hook: text(chain, "hook"),
        };
        let applies =
            matches!(base.family.as_str(), "inet" | "ip" | "ip6") && TABLES.iter().all(|(_, own)| base.table != *own);
        if !applies || !hooks.contains(&base.hook.as_str()) || text(chain, "type") != "filter" {
            continue;
        }
        let of_table = |rule: &&Value| text(rule, "family") == base.family && text(rule, "table") == base.table;
        let table: Vec<&Value> = rules.iter().copied().filter(of_table).collect();
        let last = table.iter().rfind(|rule| text(rule, "chain") == base.name);
        let closes = text(chain, "policy") == "drop" || last.is_some_and(|rule| refuses_all(rule));
        if !closes {
            continue;
        }
        let lets = |interface: &&String| table.iter().any(|rule| accepts(rule, &base.hook, interface));
        for interface in interfaces.iter().filter(|interface| !lets(interface)) {
            found.push(base.sentence(interface));
        }
    }
    found
}

impl Chain {
    fn sentence(&self, interface: &str) -> String {
        let Chain { family, table, name, hook } = self;
        let what = match hook.as_str() {
            "input" => "what is brought to the listeners from",
            // It has no entry in connection tracking that "established" could mean.
            "output" => "what the listeners answer to guests behind",
            _ => "answers of guests behind",
        };
        let (direction, short) = if hook == "output" { ("oifname", "-o") } else { ("iifname", "-i") };
        let ufw =
            table == "filter" && name.eq_ignore_ascii_case(hook) && std::path::Path::new("/etc/ufw/ufw.conf").exists();
        let (plain, interface) = (interface, quoted(interface));
        let remedy = match (table.as_str(), family.as_str()) {
            ("firewalld", _) => {
                format!("firewall-cmd --permanent --zone=trusted --add-interface={interface} && firewall-cmd --reload")
            }
            // ufw drops what is for no address of this machine before it looks at its users' rules.
            _ if ufw && hook == "input" => format!(
                "sed -i {} /etc/ufw/before.rules && ufw allow in on {interface} && ufw reload",
                quoted(&format!("/-A ufw-before-input -j ufw-not-local/i -A ufw-before-input -i {plain} -j ACCEPT"))
            ),
            _ if ufw && hook == "output" => format!("ufw allow out on {interface}"),
            _ if ufw => format!("ufw route allow in on {interface}"),
            ("filter", "ip") if name.chars().all(|c| c.is_ascii_uppercase()) => {
                format!("iptables -I {name} {short} {interface} -j ACCEPT")
            }
            ("filter", "ip6") if name.chars().all(|c| c.is_ascii_uppercase()) => {
                format!("ip6tables -I {name} {short} {interface} -j ACCEPT")
            }
            _ => format!("nft insert rule {family} {table} {name} {direction} {} accept", for_nft(plain)),
        };
        format!(
            "chain {name} of table {family} {table} drops {what} {plain}; run `{remedy}` (outgate's ruleset still refuses the rest)"
        )
    }
}

/// The name of an interface as nft(8) takes it from a shell: one that is no plain word of its own in its quotes.
fn for_nft(interface: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if interface.starts_with(|c: char| c.is_ascii_alphabetic()) && interface.chars().all(plain) {
        return interface.to_owned();
    }
    quoted(&format!("\"{interface}\"")).into_owned()
}

fn statements(rule: &Value) -> &[Value] {
    rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Does the rule refuse whatever comes to it?
fn refuses_all(rule: &Value) -> bool {
    let statements = statements(rule);
    let conditional =
        statements.iter().any(|statement| statement.get("match").is_some() || statement.get("xt").is_some());
    !conditional
        && statements.iter().any(|statement| statement.get("drop").is_some() || statement.get("reject").is_some())
}

/// Does the rule accept, or lead to where it may be accepted, what comes by the interface, or in `output`
/// goes out by it? What only concerns packets with an entry in connection tracking does not: guests' have none.
fn accepts(rule: &Value, hook: &str, interface: &str) -> bool {
    let statements = statements(rule);
    let verdict = ["accept", "jump", "goto"].iter().any(|verdict| statements.iter().any(|s| s.get(*verdict).is_some()));
    let mut named = BTreeSet::new();
    let wanted = if hook == "output" { ["oifname", "oif"] } else { ["iifname", "iif"] };
    let mut tracked = false;
    for condition in statements.iter().filter_map(|statement| statement.get("match")) {
        let left = condition.get("left");
        let right = condition.get("right").unwrap_or(&Value::Null);
        let key = left.and_then(|left| left.get("meta")?.get("key")?.as_str());
        if key.is_some_and(|key| wanted.contains(&key)) && condition.get("op").and_then(Value::as_str) == Some("==") {
            strings(right, &mut named);
        }
        if left.and_then(|left| left.get("ct")?.get("key")?.as_str()) == Some("state") {
            let mut states = BTreeSet::new();
            strings(right, &mut states);
            tracked |= hook != "forward" && !states.contains("untracked");
        }
    }
    verdict && !tracked && named.iter().any(|pattern| host::fits(pattern, interface))
}

fn strings(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            found.insert(text.clone());
        }
        Value::Array(values) => values.iter().for_each(|value| strings(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| strings(value, found)),
        _ => {}
    }
}

/// The same of `iptables-legacy-save`.
fn legacy(saved: &str, program: &str, hooks: &[&str], interfaces: &[String]) -> Vec<String> {
    let program = program.trim_end_matches("-save");
    let mut found = Vec::new();
    for chain in hooks.iter().map(|hook| hook.to_ascii_uppercase()) {
        if !saved.lines().any(|line| line.starts_with(&format!(":{chain} DROP"))) {
            continue;
        }
        let short = if chain == "OUTPUT" { "-o" } else { "-i" };
        for interface in interfaces {
            let allowed = saved.lines().any(|line| {
                line.contains(&format!(" {short} {interface} "))
                    && (line.contains("-j ACCEPT") || line.contains("-j ufw"))
            });
            if !allowed {
                found.push(format!(
                    "chain {chain} of {program} drops what comes or goes by {interface}; run `{program} -I {chain} {short} {} \
                     -j ACCEPT` (outgate's ruleset still refuses the rest)",
                    quoted(interface)
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_hands_nft_the_name_of_an_interface_as_it_is_or_in_its_quotes() {
        for (interface, wanted) in [
            ("br0", "br0"),
            ("eth0.100", "eth0.100"),
            ("0tap", "\"0tap\""),
            ("tap*", "\"tap*\""),
            ("a;b", "\"a;b\""),
            ("it's", "\"it's\""),
        ] {
            let said = Command::new("sh").arg("-c").arg(format!("printf %s {}", for_nft(interface))).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), wanted);
        }
    }
}
