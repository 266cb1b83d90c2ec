//! Other firewalls on the machine: an accept of outgate's does not override their drop, and a packet that one of
//! their chains drops never reaches a listener. This module evaluates, chain by chain, what packets of a guest's
//! path would meet there: in those of nftables (ufw, firewalld, iptables-nft) and, if in use, of iptables-legacy.
//! It reports the line that admits guests. It changes nothing of other firewalls.

mod chains;
mod iptables;
mod nftables;
mod packets;

#[cfg(test)]
mod tests;

use super::host::Host;
use super::plan::Plan;
use super::tool;
use super::{TABLES, host};
use chains::{Base, Hook, Table};
use outgate_files::shell::quoted;
use packets::{Addresses, Sample};
use std::collections::BTreeSet;

/// Interfaces that are evaluated; guests on the others meet the same chains.
const MOST_INTERFACES: usize = 64;

/// Returns what is in the way, one sentence with its remedy each.
pub(super) fn in_the_way(plan: &Plan, host: &Host) -> Vec<String> {
    let interfaces: Vec<&str> = plan.guest_links(host).take(MOST_INTERFACES).map(|link| link.name.as_str()).collect();
    if interfaces.is_empty() {
        return Vec::new();
    }
    let tables = tables();
    if tables.iter().all(|table| table.bases.is_empty()) {
        return Vec::new();
    }
    let addresses = Addresses::look();
    let mut found = Vec::new();
    for interface in interfaces {
        let samples = packets::of(plan, host, interface, &addresses);
        let by_bridge = host.matches_bridges;
        found.extend(tables.iter().flat_map(|table| blocking(table, interface, by_bridge, &samples)));
    }
    found
}

/// Returns the tables of others.
fn tables() -> Vec<Table> {
    let mut tables = Vec::new();
    let ruleset = tool::listed(&["ruleset"], "to list other rulesets").unwrap_or_default();
    let mut by_name = nftables::tables(&ruleset, |name| TABLES.iter().any(|(_, own)| name == *own));
    let families = [("ip", "/proc/net/ip_tables_names"), ("ip6", "/proc/net/ip6_tables_names")];
    for (family, legacy_names) in families {
        let is_v6 = family == "ip6";
        let (nft, legacy) = match is_v6 {
            false => (("iptables-nft-save", "iptables"), ("iptables-legacy-save", "iptables-legacy")),
            true => (("ip6tables-nft-save", "ip6tables"), ("ip6tables-legacy-save", "ip6tables-legacy")),
        };
        let is_made_by_iptables = |table: &Table| {
            table.bases.iter().any(|base| base.family == family && base.name.chars().all(|c| c.is_ascii_uppercase()))
        };
        if by_name.values().any(is_made_by_iptables)
            && let Ok(saved) = tool::run(nft.0, &[], "", "to list its rules")
        {
            for (name, table) in iptables::tables(&saved, nft.1, is_v6) {
                by_name.remove(&(family.to_owned(), name));
                tables.push(table);
            }
        }
        if host::sysctl(legacy_names).is_some_and(|names| !names.is_empty())
            && let Ok(saved) = tool::run(legacy.0, &[], "", "to list its rules")
        {
            tables.extend(iptables::tables(&saved, legacy.1, is_v6).into_iter().map(|(_, table)| table));
        }
    }
    for base in by_name.values_mut().flat_map(|table| &mut table.bases) {
        if base.hook == Hook::Ingress && base.devices.is_empty() {
            base.devices = devices(base);
        }
    }
    let mut others: Vec<_> = by_name.into_iter().collect();
    others.sort_by(|one, other| one.0.cmp(&other.0));
    tables.extend(others.into_iter().map(|(_, table)| table));
    tables
}

/// Returns the devices whose packets an `ingress` chain sees. Some versions of nft(8) print this only as text:
/// `device "eth0"`, or `devices = { "eth0", "eth1" }`.
fn devices(base: &Base) -> Vec<String> {
    let listed = ["list", "chain", &base.family, &base.table, &base.name];
    let listed = tool::run("nft", &listed, "", "to list its devices").unwrap_or_default();
    let named = listed.lines().find(|line| line.contains(" hook ingress ")).unwrap_or_default();
    let before_priority = named.split(" priority ").next().unwrap_or_default();
    let words = before_priority.split([' ', '{', '}', ',', '=', '"']).filter(|word| !word.is_empty());
    words.skip_while(|word| !word.starts_with("device")).skip(1).map(str::to_owned).collect()
}

/// Returns the chains of the table that certainly drop some of these packets. `by_bridge`: whether rules can match
/// the bridge of a port.
fn blocking(table: &Table, interface: &str, by_bridge: bool, samples: &[Sample]) -> Vec<String> {
    let dropped_by = |base| samples.iter().filter(|sample| table.drops(base, &sample.packet)).collect::<Vec<_>>();
    let with_dropped = table.bases.iter().map(|base| (base, dropped_by(base)));
    // ufw creates its chains in the tables of iptables, and has none while it is inactive.
    let is_ufw = table.rules.keys().any(|chain| chain.starts_with("ufw"));
    let sentence = |(base, dropped): (&Base, Vec<&Sample>)| sentence(base, interface, is_ufw, by_bridge, &dropped);
    with_dropped.filter_map(sentence).collect()
}

/// Returns the sentence about a chain; nothing if it drops nothing.
fn sentence(base: &Base, interface: &str, is_ufw: bool, by_bridge: bool, dropped: &[&Sample]) -> Option<String> {
    let first = dropped.first()?;
    let Base { family, table, name, hook, .. } = base;
    let what = match hook {
        Hook::Ingress | Hook::Prerouting | Hook::Input => "what is brought to the listeners from",
        // It has no connection tracking entry that "established" could match.
        Hook::Output => "what the listeners answer to guests behind",
        Hook::Forward => "answers of guests behind",
    };
    let (direction, short) = if *hook == Hook::Output { ("oifname", "-o") } else { ("iifname", "-i") };
    let (plain, interface) = (interface, quoted(interface));
    // Chains of bridges and of devices see the ports.
    let names = dropped.iter().map(|sample| match hook {
        Hook::Output => sample.packet.output.as_str(),
        _ => sample.packet.input.as_str(),
    });
    let condition = match hook {
        Hook::Output if family == "bridge" && by_bridge => format!("meta obrname {}", for_nft(plain)),
        _ if family == "bridge" && by_bridge => format!("meta ibrname {}", for_nft(plain)),
        _ => format!("{direction} {}", one_of(names)),
    };
    // While it reloads it has a second table, `firewalld_policy_drop`.
    let is_firewalld = table.starts_with("firewalld");
    let remedy = match (table.as_str(), &base.program, hook) {
        _ if is_firewalld => {
            format!("firewall-cmd --permanent --zone=trusted --add-interface={interface} && firewall-cmd --reload")
        }
        // ufw drops what is for no address of this machine before it evaluates its users' rules.
        (_, _, Hook::Input) if is_ufw => format!(
            "sed -i {} /etc/ufw/before.rules && ufw allow in on {interface} && ufw reload",
            // The line that may be there already goes first, so that running it twice does no harm.
            quoted(&format!(
                "/^-A ufw-before-input -i {plain} -j ACCEPT$/d; /-A ufw-before-input -j ufw-not-local/i -A ufw-before-input -i {plain} -j ACCEPT"
            ))
        ),
        (_, _, Hook::Output) if is_ufw => format!("ufw allow out on {interface}"),
        (_, _, Hook::Forward) if is_ufw => format!("ufw route allow in on {interface}"),
        ("filter", Some(program), _) => format!("{program} -I {name} {short} {interface} -j ACCEPT"),
        (_, Some(program), _) => format!("{program} -t {table} -I {name} {short} {interface} -j ACCEPT"),
        (_, None, _) => format!("nft insert rule {family} {table} {name} {condition} accept"),
    };
    let whose = match &base.program {
        Some(program) if program.ends_with("-legacy") => format!("table {table} of {program}"),
        _ => format!("table {family} {table}"),
    };
    // The rules in their own files return when those are loaded again.
    let lasts = is_ufw || is_firewalld;
    let keep = if lasts { "" } else { ", and write it where that firewall's rules are loaded from" };
    Some(format!(
        "chain {name} of {whose} drops {what} {plain} ({}): run `{remedy}`{keep} (outgate's ruleset still refuses the rest)",
        first.what
    ))
}

/// Formats these names for nft(8) in a shell command.
fn one_of<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    match names.iter().copied().collect::<Vec<_>>().as_slice() {
        [name] => for_nft(name),
        names => {
            let quoted_names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            quoted(&format!("{{ {} }}", quoted_names.join(", "))).into_owned()
        }
    }
}

/// Formats the name of an interface for nft(8) in a shell command: in quotes if it is not a plain word.
fn for_nft(interface: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if interface.starts_with(|c: char| c.is_ascii_alphabetic()) && interface.chars().all(plain) {
        return interface.to_owned();
    }
    quoted(&format!("\"{interface}\"")).into_owned()
}
