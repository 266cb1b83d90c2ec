//! Tables of nftables, as `nft -j list ruleset` prints them (libnftables-json(5)).

use super::chains::{Action, Base, Condition, Hook, Rule, Table, Test};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::HashMap;
use std::net::IpAddr;

/// Returns the tables by family and name, except for those whose names satisfy `is_own`.
pub(super) fn tables(items: &[Value], is_own: impl Fn(&str) -> bool) -> HashMap<(String, String), Table> {
    let mut tables: HashMap<(String, String), Table> = HashMap::new();
    let sets = Sets::of(items);
    let table_of = |item: &Value| (text(item, "family"), text(item, "table"));
    for chain in items.iter().filter_map(|item| item.get("chain")) {
        // NAT decides the destination, and drops nothing.
        if is_own(&text(chain, "table")) || text(chain, "type") == "nat" {
            continue;
        }
        let table = tables.entry(table_of(chain)).or_default();
        if let Some(hook) = Hook::of(&text(chain, "hook")) {
            table.bases.push(Base {
                family: text(chain, "family"),
                table: text(chain, "table"),
                name: text(chain, "name"),
                hook,
                devices: chain.get("dev").map(words).unwrap_or_default(),
                drops_the_rest: text(chain, "policy") == "drop",
                program: None,
            });
        }
    }
    for rule in items.iter().filter_map(|item| item.get("rule")) {
        if let Some(table) = tables.get_mut(&table_of(rule)) {
            let statements = rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let known = Known { sets: &sets, family: text(rule, "family"), table: text(rule, "table") };
            table.rules.entry(text(rule, "chain")).or_default().extend(known.rules(statements));
        }
    }
    tables
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns one word, or several.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(word) => vec![word.clone()],
        Value::Number(number) => vec![number.to_string()],
        Value::Array(values) => values.iter().flat_map(words).collect(),
        _ => Vec::new(),
    }
}

/// The contents of named sets and maps, by family, table and name.
struct Sets<'v>(HashMap<(String, String, String), &'v [Value]>);

impl<'v> Sets<'v> {
    fn of(items: &'v [Value]) -> Sets<'v> {
        let sets = items.iter().filter_map(|item| item.get("set").or_else(|| item.get("map")));
        let elements =
            |set: &'v Value| set.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Sets(sets.map(|set| ((text(set, "family"), text(set, "table"), text(set, "name")), elements(set))).collect())
    }
}

/// What the rules of one table refer to.
struct Known<'v> {
    sets: &'v Sets<'v>,
    family: String,
    table: String,
}

impl Known<'_> {
    /// Returns the rules that one rule is equivalent to: a verdict map is one rule for each of its elements.
    fn rules(&self, statements: &[Value]) -> Vec<Rule> {
        let mut conditions = Vec::new();
        for statement in statements {
            let Some((kind, body)) = statement.as_object().and_then(|fields| fields.iter().next()) else {
                // Some versions print null for what they cannot express.
                conditions.push(Test::Unknown.into());
                continue;
            };
            let target = || text(body, "target");
            let action = match kind.as_str() {
                "match" => {
                    self.condition(body, &mut conditions);
                    continue;
                }
                "accept" => Action::Accept,
                "drop" | "reject" => Action::Drop,
                "jump" => Action::Jump(target()),
                "goto" => Action::Goto(target()),
                "return" => Action::Return,
                "queue" | "fwd" | "tproxy" | "synproxy" => Action::Elsewhere,
                "vmap" => return self.each(body, &conditions),
                "counter" | "log" | "mangle" | "notrack" | "set" | "map" | "comment" | "dup" | "flow" | "ct helper"
                | "ct timeout" | "ct expectation" | "secmark" | "last" | "continue" => continue,
                // Rates, quotas and what iptables modules do.
                _ => {
                    conditions.push(Test::Unknown.into());
                    continue;
                }
            };
            return vec![Rule { conditions, action }];
        }
        Vec::new()
    }

    fn each(&self, map: &Value, conditions: &[Condition]) -> Vec<Rule> {
        let (left, data) = (map.get("key").unwrap_or(&Value::Null), map.get("data").unwrap_or(&Value::Null));
        let named = data.as_str().and_then(|name| self.elements(name));
        let elements = named.or_else(|| data.get("set").and_then(Value::as_array).map(Vec::as_slice));
        let Some(elements) = elements else {
            return vec![Rule {
                conditions: [conditions, &[Test::Unknown.into()]].concat(),
                action: Action::Elsewhere,
            }];
        };
        let of_element = |element: &Value| {
            let [key, verdict] = element.as_array()?.as_slice() else { return None };
            let mut all = conditions.to_vec();
            self.compare(left, key, false, &mut all);
            let mut rules = self.rules(std::slice::from_ref(verdict));
            let action = rules.pop().map_or(Action::Continue, |rule| rule.action);
            Some(Rule { conditions: all, action })
        };
        elements.iter().filter_map(of_element).collect()
    }

    fn elements(&self, name: &str) -> Option<&[Value]> {
        let key = (self.family.clone(), self.table.clone(), name.strip_prefix('@')?.to_owned());
        self.sets.0.get(&key).copied()
    }

    fn condition(&self, body: &Value, conditions: &mut Vec<Condition>) {
        let null = &Value::Null;
        let (left, right) = (body.get("left").unwrap_or(null), body.get("right").unwrap_or(null));
        match body.get("op").and_then(Value::as_str) {
            Some("==" | "in") => self.compare(left, right, false, conditions),
            Some("!=") => self.compare(left, right, true, conditions),
            _ => conditions.push(Test::Unknown.into()),
        }
    }

    /// Adds the conditions for `left` being, or not being, one of `right`.
    fn compare(&self, left: &Value, right: &Value, negated: bool, conditions: &mut Vec<Condition>) {
        let Some(right) = self.values(right) else { return conditions.push(Test::Unknown.into()) };
        let words = || right.iter().flat_map(|value| words(value)).collect::<Vec<String>>();
        let key = |kind: &str| left.get(kind).and_then(|body| body.get("key")).and_then(Value::as_str);
        let payload = left.get("payload");
        let test = match (key("meta"), key("ct"), payload) {
            (Some("iifname" | "iif"), ..) => Test::Input(words()),
            (Some("oifname" | "oif"), ..) => Test::Output(words()),
            (Some("ibrname" | "obrname"), ..) => Test::Bridge(words()),
            (Some("l4proto"), ..) => Test::Protocol(words()),
            (Some("nfproto" | "protocol"), ..) => family(&words()),
            (_, Some("state"), _) => Test::State(words()),
            (_, Some(_), _) => Test::Entry,
            (_, _, Some(payload)) => {
                let (protocol, field) = (text(payload, "protocol"), text(payload, "field"));
                // The protocol of a field has to be present, whatever is required of the field.
                match protocol.as_str() {
                    "ip" | "ip6" => conditions.push(Test::IsV6(protocol == "ip6").into()),
                    "tcp" | "udp" | "icmp" | "icmpv6" | "igmp" | "sctp" | "dccp" | "udplite" | "esp" | "ah"
                    | "comp" => {
                        conditions.push(Test::Protocol(vec![protocol.clone()]).into());
                    }
                    "arp" => conditions.push(Test::Protocol(Vec::new()).into()),
                    _ => {}
                }
                let addresses = || right.iter().map(|value| addresses(value)).collect::<Option<Vec<_>>>();
                let ports = || right.iter().map(|value| ports(value)).collect::<Option<Vec<_>>>();
                match (protocol.as_str(), field.as_str()) {
                    ("ip" | "ip6", "saddr") => addresses().map_or(Test::Unknown, Test::Source),
                    ("ip" | "ip6", "daddr") => addresses().map_or(Test::Unknown, Test::Destination),
                    ("ip", "protocol") | ("ip6", "nexthdr") => Test::Protocol(words()),
                    ("ether", "type") => family(&words()),
                    ("tcp" | "udp" | "th", "sport") => ports().map_or(Test::Unknown, Test::SourcePort),
                    ("tcp" | "udp" | "th", "dport") => ports().map_or(Test::Unknown, Test::DestinationPort),
                    _ => Test::Unknown,
                }
            }
            _ if is_type_of_destination(left) => Test::DestinationType(words()),
            _ => Test::Unknown,
        };
        let negated = negated && !matches!(test, Test::Unknown | Test::Entry);
        conditions.push(Condition { test, negated });
    }

    /// Returns the single values that `right` stands for; `None` if they cannot be determined.
    fn values<'v>(&'v self, right: &'v Value) -> Option<Vec<&'v Value>> {
        let plain = |element: &'v Value| match element.get("elem") {
            Some(inner) => inner.get("val").unwrap_or(inner),
            None => element,
        };
        Some(match right {
            Value::String(name) if name.starts_with('@') => self.elements(name)?.iter().map(plain).collect(),
            Value::Object(fields) if fields.contains_key("set") => {
                fields.get("set")?.as_array()?.iter().map(plain).collect()
            }
            other => vec![other],
        })
    }
}

/// Returns the test for one of the two families.
fn family(words: &[String]) -> Test {
    match words {
        [family] if matches!(family.as_str(), "ipv4" | "ip" | "2") => Test::IsV6(false),
        [family] if matches!(family.as_str(), "ipv6" | "ip6" | "10") => Test::IsV6(true),
        // ARP and the like belong to neither.
        [other] if matches!(other.as_str(), "arp" | "vlan" | "8021q" | "8021ad") => Test::Protocol(Vec::new()),
        _ => Test::Unknown,
    }
}

fn is_type_of_destination(left: &Value) -> bool {
    left.get("fib").is_some_and(|fib| {
        text(fib, "result") == "type" && fib.get("flags").is_some_and(|flags| words(flags) == ["daddr"])
    })
}

/// Returns the first and last address of an address, a network or a range.
fn addresses(value: &Value) -> Option<(IpAddr, IpAddr)> {
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        let net = IpNet::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()?;
        return Some((net.network(), net.broadcast()));
    }
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some((first.as_str()?.parse().ok()?, last.as_str()?.parse().ok()?));
    }
    let address = value.as_str()?.parse().ok()?;
    Some((address, address))
}

/// Returns the first and last port of a port or a range.
fn ports(value: &Value) -> Option<(u16, u16)> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some((port(first)?, port(last)?));
    }
    Some((port(value)?, port(value)?))
}
