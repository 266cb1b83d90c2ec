//! Near misses, for the operator: which rule almost allows a refused flow, and what would allow it.
//!
//! First come the rules of the same host, which fail on port, protocol, day, ECH or guest; then those of names above
//! and below it; last a name that is one letter away. All of this uses lookups, never a walk over the list.

use super::evaluation::{Evaluation, Near, RuleVerdict};
use super::names::Labels;
use super::rule::{Effect, Ports, Reach};
use super::rules::{Compiled, Rules};
use super::store::{RuleRecord, Shape};
use super::{NearMiss, Policy};
use outgate_proto::identify::Claim;
use outgate_proto::target::{Host, Protocol, Protocols, Transport};

/// How many spellings are looked up at most; this takes well under a millisecond.
const MAX_SPELLINGS: u32 = 4_000;

/// The characters of a name, except dots.
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789-_";

pub(super) fn near_miss(policy: &Policy, claim: &Claim) -> Option<NearMiss> {
    if policy.decide(claim).is_ok_and(|permit| !permit.observed()) {
        return None;
    }
    let evaluation = Evaluation::open(policy, claim).ok()?;
    if evaluation.agreed(Protocols::ALL).is_err() {
        // Even if the list also refuses the claim, its rules do not help.
        let spoken = claim.spoken.map_or_else(String::new, |spoken| format!(" for {}", spoken.rule_word()));
        return Some(NearMiss {
            rule: None,
            advice: format!("the guest's manifest does not name {}{spoken}", claim.target),
        });
    }
    let search = Search { rules: &policy.rules, evaluation };
    let (record, advice) = search.same_host().or_else(|| match &claim.target.host {
        Host::Name(name) => search.related(&Labels::of(name.as_str())).or_else(|| search.mistyped(name.as_str())),
        Host::Addr(_) => None,
    })?;
    Some(NearMiss { rule: Some(policy.rules.location(record.position())?), advice })
}

struct Search<'a> {
    rules: &'a Rules,
    evaluation: Evaluation<'a>,
}

type Found = (RuleRecord, String);

/// Why a rule for the same host does not allow the claim. The later the variant, the likelier the cause.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum MissCause {
    OtherGuest,
    Near(Near),
    Denied,
}

impl<'a> Search<'a> {
    fn same_host(&self) -> Option<Found> {
        let mut best: Option<(MissCause, RuleRecord, &Compiled)> = None;
        self.rules.matching(&self.evaluation.claim.target.host, |record, compiled| {
            let cause = match self.evaluation.ask(&record, compiled) {
                RuleVerdict::Denies(_) => MissCause::Denied,
                RuleVerdict::Near(near) => MissCause::Near(near),
                RuleVerdict::Nothing if self.is_elsewhere(&record, compiled) => MissCause::OtherGuest,
                RuleVerdict::Allows(_) | RuleVerdict::Nothing => return,
            };
            let nearer = best.is_none_or(|(so_far, first, _)| {
                cause > so_far || (cause == so_far && record.position() < first.position())
            });
            if nearer {
                best = Some((cause, record, compiled));
            }
        });
        best.map(|(cause, record, compiled)| (record, self.explain(cause, &record, compiled)))
    }

    /// Is it an allow rule that fails only because it is for another guest?
    fn is_elsewhere(&self, record: &RuleRecord, compiled: &Compiled) -> bool {
        compiled.terms.effect == Effect::Allow && !compiled.expired() && !self.evaluation.guest_policy.sees(record)
    }

    fn explain(&self, cause: MissCause, record: &RuleRecord, compiled: &Compiled) -> String {
        let claim = self.evaluation.claim;
        let rule = self.rules.written(record);
        let port = claim.target.port;
        let mut would = self.would_match(&claim.target.host.to_string());
        // The rule is shown without its protocol and port, which are what differs.
        if *would == *rule {
            would = format!("{}://{would}", if port == 80 { "http" } else { "https" });
        }
        match cause {
            MissCause::Denied => format!("`deny {rule}` refuses it, even if another rule allows it"),
            MissCause::OtherGuest => format!("`{rule}` is in a file that does not apply to this guest"),
            MissCause::Near(Near::Ech) => {
                format!("`{rule}` allows it without encrypted ClientHello; `{would} ech=allow` would match")
            }
            MissCause::Near(Near::Expired) => match compiled.terms.until {
                Some(until) => format!("`{rule}` was valid until {until}"),
                None => format!("`{rule}` has expired"),
            },
            MissCause::Near(Near::Protocol) if claim.spoken == Some(Protocol::H2c) => {
                format!("`{rule}` requires a name, and outgate reads none in HTTP/2 without TLS; `{would}` would match")
            }
            MissCause::Near(Near::Protocol) => {
                format!("`{rule}` allows {}; `{would}` would match", allowed(compiled.terms.reach))
            }
            MissCause::Near(Near::Port) => match compiled.terms.reach.serves(claim.transport, port) {
                Some(_) => {
                    format!("port {port} is blocked for rules that do not name it; `{would}` would match")
                }
                None => format!("`{rule}` allows {}; `{would}` would match", allowed(compiled.terms.reach)),
            },
        }
    }

    /// Finds rules whose names are above or below the requested name, the closest first.
    fn related(&self, name: &Labels<'_>) -> Option<Found> {
        for depth in (1..=name.count()).rev() {
            let base = name.tail(depth);
            let front = name.count() - depth;
            let wildcards = self.rules.of_base(base, depth);
            if let Some(record) = self.first(wildcards) {
                let rule = self.rules.written(&record);
                let would = self.would_match(&format!(".{base}"));
                let why = match (record.shape(), front) {
                    (Shape::OneLabel, 2..) => Some(format!("`{rule}` allows one label only; `{would}` would match")),
                    (Shape::OneLabel | Shape::Below, 0) => {
                        Some(format!("`{rule}` does not allow `{base}` itself; `{would}` would match"))
                    }
                    _ => None,
                };
                if let Some(why) = why {
                    return Some((record, why));
                }
            }
            // A rule for a single label is no hint for the names below it.
            if front == 0 || depth < 2 {
                continue;
            }
            let alone = self.rules.of_name(base);
            if let Some(record) = self.first(alone) {
                let would = self.would_match(&format!(".{base}"));
                return Some((record, format!("`{base}` allows that host only; `{would}` would match")));
            }
            if let Some(record) = self.glob(base) {
                let rule = self.rules.written(&record);
                let would = self.would_match(&format!(".{rule}"));
                return Some((record, format!("`{rule}` allows no further labels in front; `{would}` would match")));
            }
        }
        let www = format!("www.{}", name.text());
        let record = self.first(self.rules.of_name(&www))?;
        let would = self.would_match(name.text());
        Some((record, format!("`{www}` allows that host only; `{would}` would match")))
    }

    fn glob(&self, name: &str) -> Option<RuleRecord> {
        let mut first: Option<RuleRecord> = None;
        self.rules.matching_globs(&Labels::of(name), |record| {
            if self.is_open(&record) && first.is_none_or(|first| record.position() < first.position()) {
                first = Some(record);
            }
        });
        first
    }

    /// Finds a rule for a name with one letter more, less, changed, or swapped with its neighbour.
    fn mistyped(&self, name: &str) -> Option<Found> {
        let labels = Labels::of(name);
        let mut left = MAX_SPELLINGS;
        let mut record = one_letter_away(name, &mut left, |typed| self.first(self.rules.of_name(typed)));
        for depth in (2..=labels.count().min(3)).filter(|depth| self.rules.has_depth(*depth)) {
            let under = |typed: &str| self.first(self.rules.of_base(typed, depth));
            record = record.or_else(|| one_letter_away(labels.tail(depth), &mut left, under));
        }
        let record = record?;
        Some((record, format!("`{}` is one letter away", self.rules.written(&record))))
    }

    /// The first of these that allows something to this guest today.
    fn first(&self, records: impl Iterator<Item = RuleRecord>) -> Option<RuleRecord> {
        records.filter(|record| self.is_open(record)).min_by_key(|record| record.position())
    }

    fn is_open(&self, record: &RuleRecord) -> bool {
        self.evaluation.guest_policy.sees(record)
            && self
                .rules
                .compiled(record)
                .is_some_and(|compiled| !compiled.expired() && compiled.terms.effect == Effect::Allow)
    }

    /// The rule for `host` that would allow the transport, port and protocol of the claim.
    fn would_match(&self, host: &str) -> String {
        let claim = self.evaluation.claim;
        let port = claim.target.port;
        match (claim.transport, claim.spoken, port) {
            (Transport::Udp, ..) => format!("udp://{host}:{port}"),
            (Transport::Quic, _, 443) => format!("quic://{host}"),
            (Transport::Quic, ..) => format!("quic://{host}:{port}"),
            (Transport::Tcp, None | Some(Protocol::Http), 80) | (Transport::Tcp, None | Some(Protocol::Tls), 443) => {
                host.to_owned()
            }
            (Transport::Tcp, Some(Protocol::Raw | Protocol::H2c), _) => format!("tcp://{host}:{port}"),
            (Transport::Tcp, Some(Protocol::Tls), 80) => format!("https://{host}:80"),
            (Transport::Tcp, Some(Protocol::Http), 443) => format!("http://{host}:443"),
            (Transport::Tcp, ..) => format!("{host}:{port}"),
        }
    }
}

/// What a reach allows, in words.
fn allowed(reach: Reach) -> String {
    let on = |what: &str, ports: Ports| match ports {
        Ports::ALL => format!("{what} on every port"),
        Ports { first, last } if first == last => format!("{what} on port {first}"),
        Ports { first, last } => format!("{what} on ports {first} to {last}"),
    };
    match reach {
        Reach::Web => "http on port 80 and https on port 443".to_owned(),
        Reach::Ports(Ports { first: 80, last: 80 }) => "http on port 80".to_owned(),
        Reach::Ports(Ports { first: 443, last: 443 }) => "https on port 443".to_owned(),
        Reach::Ports(ports) if ports.contains(80) || ports.contains(443) => {
            format!("{} (80 is http, 443 https)", on("TCP", ports))
        }
        Reach::Ports(ports) => on("TCP", ports),
        Reach::Golem => "TCP on every port (80 is http, 443 https)".to_owned(),
        Reach::Http(ports) => on("http", ports),
        Reach::Https(ports) => on("https", ports),
        Reach::Tcp(ports) => on("any TCP", ports),
        Reach::Udp(ports) => on("UDP", ports),
        Reach::Quic(ports) => on("QUIC", ports),
        Reach::Everything => "everything".to_owned(),
    }
}

/// Asks about the texts that differ from `text` by one edit, at most `left` times. Returns the first answer. Dots
/// stay where they are.
fn one_letter_away<T>(text: &str, left: &mut u32, mut ask: impl FnMut(&str) -> Option<T>) -> Option<T> {
    let mut ask = |bytes: &[u8]| {
        *left = left.checked_sub(1)?;
        std::str::from_utf8(bytes).ok().and_then(&mut ask)
    };
    let mut typed = text.as_bytes().to_vec();
    for at in 0..typed.len().saturating_sub(1) {
        typed.swap(at, at + 1);
        let answer = ask(&typed);
        typed.swap(at, at + 1);
        if answer.is_some() {
            return answer;
        }
    }
    for at in 0..=text.len() {
        let (head, tail) = text.split_at_checked(at)?;
        let mut between = |middle: &[u8], tail: &[u8]| {
            typed.clear();
            typed.extend_from_slice(head.as_bytes());
            typed.extend_from_slice(middle);
            typed.extend_from_slice(tail);
            ask(&typed)
        };
        let after = match tail.as_bytes().split_first() {
            Some((b'.', _)) | None => None,
            Some((_, after)) => Some(after),
        };
        let changed = after.and_then(|after| {
            between(b"", after).or_else(|| ALPHABET.iter().find_map(|letter| between(&[*letter], after)))
        });
        let answer = changed.or_else(|| ALPHABET.iter().find_map(|letter| between(&[*letter], tail.as_bytes())));
        if answer.is_some() {
            return answer;
        }
    }
    None
}
