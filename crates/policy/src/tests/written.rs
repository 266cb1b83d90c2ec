//! Reads the forms of rule that the tests write, without any of the checks of the real reader.

use crate::rule::{Effect, Ports, Reach, Scope, Subject, Terms};
use ipnet::IpNet;
use std::sync::Arc;

/// A rule that owns its text.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) host: String,
    pub(super) golem: bool,
    pub(super) terms: Terms,
}

impl Line {
    pub(super) fn subject(&self) -> Subject<'_> {
        let host = self.host.as_str();
        if let Some(regex) = host.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
            return if self.golem { Subject::SearchRegex(regex) } else { Subject::Regex(regex) };
        }
        if let Ok(net) = host.replace(['[', ']'], "").parse::<IpNet>() {
            return Subject::Net(net);
        }
        if let Ok(address) = host.replace(['[', ']'], "").parse::<std::net::IpAddr>() {
            return Subject::Net(address.into());
        }
        let (scope, rest) = match host {
            "*" => (Scope::OneLabel, ""),
            "**" => (Scope::Below, ""),
            _ => match (host.strip_prefix("**."), host.strip_prefix("*."), host.strip_prefix('.')) {
                (Some(rest), ..) => (Scope::Below, rest),
                (_, Some(rest), _) => (Scope::OneLabel, rest),
                (_, _, Some(rest)) => (Scope::SelfAndBelow, rest),
                _ => (Scope::Exact, host),
            },
        };
        match (rest.contains(['*', '?', '[', '{']), scope) {
            (false, _) => Subject::Name { base: rest, scope },
            (true, Scope::OneLabel) => Subject::Glob { pattern: host, scope: Scope::Exact },
            (true, _) => Subject::Glob { pattern: rest, scope },
        }
    }
}

pub(super) fn line(text: &str) -> Line {
    let mut words = text.split(' ');
    let mut rule = words.next().unwrap();
    let (deny, golem) = (rule == "deny", rule == "golem");
    if deny || golem {
        rule = words.next().unwrap();
    }
    let mut terms = Terms {
        effect: if deny { Effect::Deny } else { Effect::Allow },
        reach: Reach::Web,
        ech_allowed: false,
        to: None,
        until: None,
    };
    for option in words {
        match option.split_once('=').unwrap() {
            ("until", day) => terms.until = Some(day.parse().unwrap()),
            ("ech", "allow") => terms.ech_allowed = true,
            ("to", nets) => {
                terms.to = Some(nets.split(',').map(|net| net.parse::<IpNet>().unwrap()).collect::<Arc<[_]>>())
            }
            other => panic!("{other:?}"),
        }
    }
    let (scheme, rest) = rule.split_once("://").map_or((None, rule), |(scheme, rest)| (Some(scheme), rest));
    let (host, ports) = match rest.rsplit_once(':') {
        Some((host, port)) if !rest.starts_with('/') && !port.contains(']') => (host, Some(ports(port))),
        _ => (rest, None),
    };
    terms.reach = match (scheme, ports) {
        (None, _) if golem => Reach::Golem,
        (None, None) if deny => Reach::Everything,
        (None, None) => Reach::Web,
        (None, Some(ports)) => Reach::Ports(ports),
        (Some("http"), ports) => Reach::Http(ports.unwrap_or(one(80))),
        (Some("https"), ports) => Reach::Https(ports.unwrap_or(one(443))),
        (Some("quic"), ports) => Reach::Quic(ports.unwrap_or(one(443))),
        (Some("tcp"), Some(ports)) => Reach::Tcp(ports),
        (Some("udp"), Some(ports)) => Reach::Udp(ports),
        other => panic!("{other:?}"),
    };
    Line { host: host.to_owned(), golem, terms }
}

fn one(port: u16) -> Ports {
    Ports { first: port, last: port }
}

fn ports(text: &str) -> Ports {
    match text.split_once('-') {
        _ if text == "*" => Ports::ALL,
        Some((first, last)) => Ports { first: first.parse().unwrap(), last: last.parse().unwrap() },
        None => one(text.parse().unwrap()),
    }
}
