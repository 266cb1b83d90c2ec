//! Tables of iptables, as `iptables-save` and its variants print them (iptables-extensions(8)). nft(8) shows only
//! part of those that iptables-nft made.

use super::chains::{Action, Base, Condition, Hook, Rule, Table, Test};
use ipnet::IpNet;
use std::iter::Peekable;
use std::net::IpAddr;

/// Returns the tables, by name. `program` changes their rules, `iptables` or the like.
pub(super) fn tables(saved: &str, program: &str, is_v6: bool) -> Vec<(String, Table)> {
    let family = if is_v6 { "ip6" } else { "ip" };
    let mut tables: Vec<(String, Table)> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push((name.to_owned(), Table::default()));
            continue;
        }
        let Some((table_name, table)) = tables.last_mut().filter(|(name, _)| name != "nat") else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            // User-defined chains have no policy.
            if let Some(hook) = Hook::of(&name.to_ascii_lowercase()).filter(|_| policy != "-") {
                table.bases.push(Base {
                    family: family.to_owned(),
                    table: table_name.clone(),
                    name: name.to_owned(),
                    hook,
                    devices: Vec::new(),
                    drops_the_rest: policy == "DROP",
                    program: Some(program.to_owned()),
                });
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let mut words = words(rule).into_iter();
            if let Some(chain) = words.next() {
                table.rules.entry(chain).or_default().push(read(words));
            }
        }
    }
    tables.retain(|(name, _)| name != "nat");
    tables
}

/// Splits a line into words, some of which are quoted.
fn words(line: &str) -> Vec<String> {
    let (mut found, mut word, mut quoted, mut escaped, mut begun) = (Vec::new(), String::new(), false, false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun || !word.is_empty() {
                    found.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => word.push(c),
        }
    }
    if begun || !word.is_empty() {
        found.push(word);
    }
    found
}

fn read(words: impl Iterator<Item = String>) -> Rule {
    let mut words = words.peekable();
    let (mut conditions, mut negated): (Vec<Condition>, bool) = (Vec::new(), false);
    while let Some(word) = words.next() {
        let test = match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-j" | "-g" => {
                let target = words.next().unwrap_or_default();
                return Rule { conditions, action: action(&target, word == "-g") };
            }
            // The options of a module state its condition.
            "-m" | "--comment" => {
                words.next();
                continue;
            }
            "-i" => Test::Input(vec![pattern(&mut words)]),
            "-o" => Test::Output(vec![pattern(&mut words)]),
            "-p" => Test::Protocol(list(&mut words)),
            "-s" => nets(&list(&mut words)).map_or(Test::Unknown, Test::Source),
            "-d" => nets(&list(&mut words)).map_or(Test::Unknown, Test::Destination),
            "--sport" | "--sports" => ports(&list(&mut words)).map_or(Test::Unknown, Test::SourcePort),
            "--dport" | "--dports" => ports(&list(&mut words)).map_or(Test::Unknown, Test::DestinationPort),
            "--ctstate" | "--state" => Test::State(list(&mut words)),
            "--ctstatus" => {
                words.next();
                Test::Entry
            }
            "--dst-type" => Test::DestinationType(list(&mut words)),
            _ => {
                while words.next_if(|next| !next.starts_with('-') && next != "!").is_some() {}
                Test::Unknown
            }
        };
        let test = match test {
            Test::Protocol(names) if names.iter().any(|name| name == "all") => {
                negated = false;
                continue;
            }
            other => other,
        };
        negated &= !matches!(test, Test::Unknown | Test::Entry);
        conditions.push(Condition { test, negated });
        negated = false;
    }
    Rule { conditions, action: Action::Continue }
}

/// Targets that do something and let the packet continue; chains may also have names in capitals.
const GO_ON: [&str; 22] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TRACE",
    "TTL",
];

fn action(target: &str, is_goto: bool) -> Action {
    match target {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" | "TARPIT" => Action::Drop,
        "RETURN" => Action::Return,
        "QUEUE" | "NFQUEUE" | "TPROXY" | "SYNPROXY" => Action::Elsewhere,
        _ if GO_ON.contains(&target) => Action::Continue,
        _ if is_goto => Action::Goto(target.to_owned()),
        _ => Action::Jump(target.to_owned()),
    }
}

fn pattern(words: &mut Peekable<impl Iterator<Item = String>>) -> String {
    let name = words.next().unwrap_or_default();
    name.strip_suffix('+').map_or_else(|| name.clone(), |stem| format!("{stem}*"))
}

/// Returns comma-separated values, in lower case.
fn list(words: &mut Peekable<impl Iterator<Item = String>>) -> Vec<String> {
    words.next().unwrap_or_default().split(',').map(str::to_ascii_lowercase).collect()
}

fn nets(values: &[String]) -> Option<Vec<(IpAddr, IpAddr)>> {
    let net = |value: &String| {
        let net = value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))?;
        Some((net.network(), net.broadcast()))
    };
    values.iter().map(net).collect()
}

fn ports(values: &[String]) -> Option<Vec<(u16, u16)>> {
    let range = |value: &String| {
        let (first, last) = value.split_once(':').unwrap_or((value, value));
        let first = if first.is_empty() { 0 } else { first.parse().ok()? };
        Some((first, if last.is_empty() { u16::MAX } else { last.parse().ok()? }))
    };
    values.iter().map(range).collect()
}
