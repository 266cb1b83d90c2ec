//! The policy against a matcher that walks over all rules and is too simple to be wrong.

use super::written::Line;
use super::*;
use crate::rule::{Effect, Ports, Reach};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const FILES: [&str; 3] = ["a.rules", "b.rules", "c.rules"];

/// A rule, the file it is in and its line.
type Placed = (usize, u32, Line);

/// What is visible of a decision from outside.
#[derive(Debug, PartialEq)]
enum Seen {
    Permit { protocols: Protocols, rule: Option<String>, observed: bool, to: Vec<IpNet> },
    Refusal { reason: Reason, rule: Option<String> },
}

fn seen(policy: &Policy, claim: &Claim) -> Seen {
    match policy.decide(claim) {
        Ok(permit) => Seen::Permit {
            protocols: permit.protocols(),
            rule: permit.rule().map(ToString::to_string),
            observed: permit.observed(),
            to: sorted(permit.addresses().to.iter().flat_map(|to| to.iter().copied()).collect()),
        },
        Err(refusal) => Seen::Refusal { reason: refusal.reason, rule: refusal.rule.map(|rule| rule.to_string()) },
    }
}

fn sorted(mut nets: Vec<IpNet>) -> Vec<IpNet> {
    nets.sort();
    nets.dedup();
    nets
}

// ---- the naive matcher ----

fn naive(list: &[Placed], settings: &PolicySettings, claim: &Claim) -> Seen {
    let guest =
        settings.guests.iter().find(|guest| guest.addresses.iter().any(|net| net.contains(&claim.source.address)));
    let refuse = |reason, placed: Option<&Placed>| Seen::Refusal { reason, rule: placed.map(place) };
    if guest.is_none() && settings.unknown == Unknown::None {
        return refuse(Reason::UnknownGuest, None);
    }
    let mode = guest.and_then(|guest| guest.mode).unwrap_or(settings.mode);
    if mode == Mode::None {
        return refuse(Reason::ModeNone, None);
    }
    let named =
        |file: &str| settings.guests.iter().any(|guest| guest.files.iter().flatten().any(|other| other == file));
    let in_view = |(file, ..): &&Placed| match guest.and_then(|guest| guest.files.as_ref()) {
        Some(files) => files.iter().any(|file_of| file_of == FILES[*file]),
        None => !named(FILES[*file]),
    };
    let mut about: Vec<&Placed> =
        list.iter().filter(|(.., line)| concerns(&line.host, line.golem, &claim.target.host)).collect();
    about.sort_by_key(|(file, number, _)| (*file, *number));

    let denies = |protocol: Protocol| {
        let is_http = |line: &Line| matches!(line.terms.reach, Reach::Http(_)) && protocol == Protocol::H2c;
        let as_denied = |line: &Line| if is_http(line) { Protocol::Http } else { protocol };
        about.iter().copied().find(|(.., line)| {
            let all_on_port = matches!(line.terms.reach, Reach::Ports(_)) && takes(line.terms.reach, claim).is_some();
            line.terms.effect == Effect::Deny
                && !is_over(line)
                && (all_on_port
                    || takes(line.terms.reach, claim).is_some_and(|spoken| spoken.contains(&as_denied(line))))
        })
    };
    let asked: Vec<Protocol> = claim.spoken.map_or(Protocol::ALL.to_vec(), |spoken| vec![spoken]);
    if asked.iter().all(|protocol| denies(*protocol).is_some()) {
        let first = asked.iter().filter_map(|protocol| denies(*protocol)).min_by_key(|placed| (placed.0, placed.1));
        return refuse(Reason::DeniedByRule, first);
    }

    let blocked = settings.blocked_ports.contains(&claim.target.port);
    let allows: Vec<&Placed> =
        about.iter().copied().filter(|placed| placed.2.terms.effect == Effect::Allow).filter(in_view).collect();
    let port_fits = |line: &Line| {
        takes(line.terms.reach, claim).is_some() && (!blocked || names(line.terms.reach, claim.target.port))
    };
    let protocol_fits = |line: &Line| {
        takes(line.terms.reach, claim).is_some_and(|spoken| claim.spoken.is_none_or(|one| spoken.contains(&one)))
    };
    let wrong_protocol = match claim.spoken {
        Some(Protocol::H2c) => Reason::H2c,
        _ => Reason::ProtocolNotAllowed,
    };
    let ech_fits = |line: &Line| !claim.ech || settings.ech_allowed || line.terms.ech_allowed;
    let counted: Vec<&Placed> = allows
        .iter()
        .copied()
        .filter(|(.., line)| !is_over(line) && port_fits(line) && protocol_fits(line) && ech_fits(line))
        .collect();

    let by_list = mode != Mode::All && !counted.is_empty();
    let allowed: Vec<Protocol> = if by_list {
        let any =
            |one: &Protocol| counted.iter().any(|(.., line)| takes(line.terms.reach, claim).unwrap().contains(one));
        Protocol::ALL.into_iter().filter(any).collect()
    } else {
        let first = |test: &dyn Fn(&Line) -> bool| allows.iter().copied().find(|(.., line)| test(line));
        let nearest = [
            (Reason::Ech, first(&|line| !is_over(line) && port_fits(line) && protocol_fits(line) && !ech_fits(line))),
            (wrong_protocol, first(&|line| !is_over(line) && port_fits(line) && !protocol_fits(line))),
            (Reason::PortNotAllowed, first(&|line| !is_over(line) && !port_fits(line))),
            (Reason::RuleExpired, first(&|line| is_over(line) && port_fits(line) && protocol_fits(line))),
        ];
        let nearest = nearest.into_iter().find(|(_, placed)| placed.is_some());
        match unlisted(mode, blocked, claim.ech && !settings.ech_allowed) {
            None => Protocol::ALL.to_vec(),
            Some(Reason::NotWhitelisted) => {
                let (reason, placed) = nearest.unwrap_or((Reason::NotWhitelisted, None));
                return refuse(reason, placed);
            }
            Some(reason) => {
                let same = nearest.filter(|(near, _)| mode == Mode::Observe && *near == reason);
                return refuse(reason, same.and_then(|(_, placed)| placed));
            }
        }
    };
    let left: Vec<Protocol> = allowed.iter().copied().filter(|one| denies(*one).is_none()).collect();
    if left.is_empty() {
        let first = allowed.iter().filter_map(|one| denies(*one)).min_by_key(|placed| (placed.0, placed.1));
        return refuse(Reason::DeniedByRule, first);
    }
    let reported = counted.iter().find(|(.., line)| {
        by_list && takes(line.terms.reach, claim).unwrap().iter().any(|protocol| left.contains(protocol))
    });
    let to = counted
        .iter()
        .filter(|_| by_list)
        .flat_map(|(.., line)| line.terms.to.iter().flat_map(|to| to.iter().copied()));
    Seen::Permit {
        protocols: left.iter().fold(Protocols::NONE, |all, one| all.union(Protocols::only(*one))),
        rule: reported.map(|placed| place(placed)),
        observed: mode == Mode::Observe && !by_list,
        to: sorted(to.collect()),
    }
}

/// Why a claim that no rule allows is refused.
fn unlisted(mode: Mode, blocked: bool, ech: bool) -> Option<Reason> {
    if mode == Mode::Whitelist {
        Some(Reason::NotWhitelisted)
    } else if ech {
        Some(Reason::Ech)
    } else if blocked {
        Some(Reason::PortNotAllowed)
    } else {
        None
    }
}

fn place((file, number, _): &Placed) -> String {
    format!("{}:{number}", FILES[*file])
}

fn is_over(line: &Line) -> bool {
    line.terms.until.is_some_and(|until| until < TODAY)
}

/// The protocols that a reach allows; `None` if transport or port differ.
fn takes(reach: Reach, claim: &Claim) -> Option<Vec<Protocol>> {
    let port = claim.target.port;
    let within = |ports: Ports| ports.first <= port && port <= ports.last;
    let usual = match port {
        80 => vec![Protocol::Http],
        443 => vec![Protocol::Tls],
        _ => vec![Protocol::Http, Protocol::Tls, Protocol::Raw],
    };
    match (reach, claim.transport) {
        (Reach::Everything, _) => Some(Protocol::ALL.to_vec()),
        (Reach::Web, Transport::Tcp) if port == 80 || port == 443 => Some(usual),
        (Reach::Golem, Transport::Tcp) => Some(usual),
        (Reach::Ports(ports), Transport::Tcp) if within(ports) => Some(usual),
        (Reach::Http(ports), Transport::Tcp) if within(ports) => Some(vec![Protocol::Http]),
        (Reach::Https(ports), Transport::Tcp) if within(ports) => Some(vec![Protocol::Tls]),
        (Reach::Tcp(ports), Transport::Tcp) if within(ports) => Some(Protocol::ALL.to_vec()),
        (Reach::Udp(ports), Transport::Udp | Transport::Quic) if within(ports) => Some(Protocol::ALL.to_vec()),
        (Reach::Quic(ports), Transport::Quic) if within(ports) => Some(Protocol::ALL.to_vec()),
        _ => None,
    }
}

fn names(reach: Reach, port: u16) -> bool {
    match reach {
        Reach::Ports(p) | Reach::Http(p) | Reach::Https(p) | Reach::Tcp(p) | Reach::Udp(p) | Reach::Quic(p) => {
            p.first == port && p.last == port
        }
        Reach::Web | Reach::Golem | Reach::Everything => false,
    }
}

/// Does the written host of a rule match the host?
fn concerns(written: &str, golem: bool, host: &Host) -> bool {
    let net = written.replace(['[', ']'], "");
    let net = net.parse::<IpNet>().ok().or_else(|| net.parse::<IpAddr>().ok().map(IpNet::from));
    let name = match (host, net) {
        (Host::Addr(address), Some(net)) => return net.contains(address),
        (Host::Addr(_), None) | (Host::Name(_), Some(_)) => return false,
        (Host::Name(name), None) => name.as_str(),
    };
    if let Some(pattern) = written.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
        let pattern = if golem { format!("(?ix){pattern}") } else { format!("^(?:{pattern})$") };
        return regex::Regex::new(&pattern).unwrap().is_match(name);
    }
    let labels: Vec<&str> = name.split('.').collect();
    let tail_takes = |pattern: &str, front: std::ops::RangeInclusive<usize>| {
        let wanted: Vec<&str> = pattern.split('.').collect();
        labels
            .len()
            .checked_sub(wanted.len())
            .is_some_and(|cut| front.contains(&cut) && wanted.iter().zip(&labels[cut..]).all(|(p, l)| glob(p, l)))
    };
    if let Some(rest) = written.strip_prefix("**.") {
        tail_takes(rest, 1..=usize::MAX)
    } else if let Some(rest) = written.strip_prefix('.') {
        tail_takes(rest, 0..=usize::MAX)
    } else {
        tail_takes(written, 0..=0)
    }
}

/// One label against one pattern, by trying everything.
fn glob(pattern: &str, label: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return label.is_empty() };
    let rest = &pattern[1..];
    let one = |fits: &dyn Fn(char) -> bool, rest: &str| {
        label.chars().next().is_some_and(|character| fits(character) && glob(rest, &label[1..]))
    };
    match first {
        '*' => (0..=label.len()).any(|skipped| glob(rest, &label[skipped..])),
        '?' => one(&|_| true, rest),
        '[' => {
            let (class, rest) = rest.split_once(']').unwrap();
            let members: Vec<char> = class.chars().collect();
            let fits = |character: char| match members[..] {
                [low, '-', high] => low <= character && character <= high,
                _ => members.contains(&character),
            };
            one(&fits, rest)
        }
        '{' => {
            let (choices, rest) = rest.split_once('}').unwrap();
            choices.split(',').any(|choice| glob(&format!("{choice}{rest}"), label))
        }
        literal => one(&|character| character == literal, rest),
    }
}

// ---- what to ask ----

fn label() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "ab", "a1", "b1", "a-b", "www", "api-1", "api-2"]).prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    vec(label(), 1..5).prop_map(|labels| labels.join("."))
}

fn pattern() -> impl Strategy<Value = String> {
    let special = select(vec![
        "a*",
        "*b",
        "api-*",
        "*-*",
        "a?",
        "[ab]1",
        "{a,b}",
        "{a,api-*}",
        "a{,1}",
        "*",
        "?",
        "*a*",
        "[a-b]*",
    ]);
    let part = prop_oneof![2 => label(), 1 => special.prop_map(str::to_owned)];
    (select(vec!["", "", ".", "**."]), vec(part, 1..4))
        .prop_map(|(front, labels)| format!("{front}{}", labels.join(".")))
}

fn address() -> impl Strategy<Value = String> {
    select(vec!["192.0.2.1", "192.0.2.2", "198.51.100.1", "[2001:db8::1]", "[2001:db8:1::1]"]).prop_map(str::to_owned)
}

fn rule_host() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => name(),
        3 => (select(vec!["*.", "**.", "."]), name()).prop_map(|(front, name)| format!("{front}{name}")),
        4 => pattern(),
        1 => select(vec![r"/a.*/", r"/(a|b)\.b/", r"/api-[0-9]\.\w+/", r"/b|a$/"]).prop_map(str::to_owned),
        1 => address(),
        1 => select(vec!["192.0.2.0/24", "0.0.0.0/0", "[2001:db8::/32]"]).prop_map(str::to_owned),
    ]
}

fn rule() -> impl Strategy<Value = Line> {
    let scheme = select(vec!["", "", "", "", "http://", "https://", "tcp://", "udp://", "quic://"]);
    let port = select(vec!["", "", "", ":443", ":80", ":25", ":22", ":20-30", ":*"]);
    let word = select(vec!["", "", "", "", "deny ", "deny ", "golem "]);
    let until = option::weighted(0.2, select(vec!["2026-11-22", "2026-11-23", "2027-01-01"]));
    let to = option::weighted(0.2, select(vec!["10.0.0.1/32", "10.0.0.1/32,10.0.0.2/32"]));
    (word, scheme, rule_host(), port, until, to, any::<bool>()).prop_map(
        |(word, scheme, host, port, until, to, ech)| {
            // A regex or `golem` rule names no scheme or port; `tcp://` and `udp://` need a port.
            let bare = host.starts_with('/') || word == "golem ";
            let (scheme, port) = match (scheme, port) {
                _ if bare => ("", ""),
                ("tcp://" | "udp://", "") => (scheme, ":22"),
                both => both,
            };
            let mut text = format!("{word}{scheme}{host}{port}");
            until.iter().for_each(|day| text.push_str(&format!(" until={day}")));
            to.iter().for_each(|nets| text.push_str(&format!(" to={nets}")));
            if ech {
                text.push_str(" ech=allow");
            }
            line(&text)
        },
    )
}

fn asked() -> impl Strategy<Value = Claim> {
    let host = prop_oneof![5 => name(), 1 => address()];
    let port = select(vec![443, 443, 80, 22, 25, 8443]);
    let transport = select(vec![Transport::Tcp, Transport::Tcp, Transport::Tcp, Transport::Udp, Transport::Quic]);
    let source = select(vec!["10.0.0.7", "10.0.0.8", "10.0.0.9"]);
    (host, port, transport, option::of(select(Protocol::ALL.to_vec())), any::<bool>(), source).prop_map(
        |(host, port, transport, spoken, ech, source)| Claim {
            source: source.parse::<IpAddr>().unwrap().into(),
            transport,
            spoken,
            ech,
            ..claim(&format!("{host}:{port}"))
        },
    )
}

fn configured() -> impl Strategy<Value = PolicySettings> {
    let mode = || select(vec![Mode::Whitelist, Mode::Whitelist, Mode::Whitelist, Mode::Observe, Mode::All, Mode::None]);
    let files = || option::of(subsequence(FILES.to_vec(), 0..3));
    let guest_of = |name: &'static str, address: &'static str| {
        (option::of(mode()), files()).prop_map(move |(mode, files)| guest(name, address, mode, files.as_deref()))
    };
    let guests = (guest_of("seven", "10.0.0.7/32"), guest_of("eight", "10.0.0.8/31"));
    (mode(), any::<bool>(), option::of(guests), any::<bool>()).prop_map(|(mode, ech_allowed, guests, closed)| {
        PolicySettings {
            mode,
            ech_allowed,
            guests: guests.map_or(Vec::new(), |(seven, eight)| vec![seven, eight]),
            unknown: if closed { Unknown::None } else { Unknown::Shared },
            ..settings()
        }
    })
}

fn compiled(list: &[Placed]) -> Arc<Rules> {
    let mut builder = Builder::new(TODAY);
    let ids = FILES.map(|name| builder.file(name));
    for (file, number, line) in list {
        builder.rule(ids[*file], *number, &line.subject(), &line.terms).unwrap();
    }
    Arc::new(builder.build().unwrap())
}

fn list() -> impl Strategy<Value = Vec<Placed>> {
    vec((0..FILES.len(), rule()), 0..40)
        .prop_map(|rules| (1..).zip(rules).map(|(number, (file, line))| (file, number, line)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_is_that_of_the_naive_matcher_in_whatever_order_rules_come(
        (list, shuffled) in list().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        settings in configured(),
        claims in vec(asked(), 1..12),
    ) {
        let policy = Policy::new(compiled(&shuffled), settings.clone()).unwrap();
        for claim in claims {
            prop_assert_eq!(seen(&policy, &claim), naive(&list, &settings, &claim), "{:?}", claim);
            // Explaining never fails, and never explains what is allowed.
            let near = policy.near_miss(&claim);
            prop_assert!(near.is_none() || policy.decide(&claim).map_or(true, |permit| permit.observed()));
        }
    }

    #[test]
    fn names_that_dns_refuses_are_allowed_on_no_port(
        list in list(), settings in configured(), claims in vec(asked(), 1..12),
    ) {
        let policy = Policy::new(compiled(&list), settings).unwrap();
        for claim in claims {
            if let Host::Name(name) = &claim.target.host
                && policy.permit_name(&claim.source, name).is_err()
            {
                prop_assert!(policy.decide(&claim).is_err());
            }
        }
    }

    #[test]
    fn above_a_name_that_dns_may_ask_for_no_name_is_said_not_to_exist(
        list in list(), settings in configured(), claims in vec(asked(), 1..12),
    ) {
        let settings = PolicySettings { mode: Mode::Whitelist, ..settings };
        // A regex need not determine how its names end.
        let list: Vec<Placed> = list.into_iter().filter(|(.., line)| !line.host.starts_with('/')).collect();
        let policy = Policy::new(compiled(&list), settings).unwrap();
        for claim in claims {
            let Host::Name(name) = &claim.target.host else { continue };
            if policy.permit_name(&claim.source, name).is_err() {
                continue;
            }
            let above = std::iter::successors(name.parent(), |name| name.split_once('.').map(|(_, above)| above));
            for above in above.filter_map(|above| HostName::parse(above).ok()) {
                let asked = policy.permit_name(&claim.source, &above);
                prop_assert!(
                    asked.as_ref().map_or_else(
                        |refused| refused.is_parent || refused.refusal.reason == Reason::DeniedByRule,
                        |_| true
                    ),
                    "{} above {}: {:?}", above, name, asked
                );
            }
        }
    }
}
