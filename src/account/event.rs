//! The data of one log line, not yet rendered: what flows send to the log's thread.

use super::ListenerLabel;
use crate::endpoint::Endpoint;
use crate::guest::GuestCounters;
use crate::identify::Claim;
use crate::policy::Location;
use crate::reason::{Reason, Verdict};
use crate::source::holder;
use crate::target::{Host, Target};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Bytes that a server may send first, and a guest before its second hello. A refused flow that carried more
/// gets a line of its own.
const CARRIED_LITTLE: u64 = 64 << 10;

/// The data of one line.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) at: SystemTime,
    pub(super) id: u64,
    pub(super) listener: ListenerLabel,
    pub(super) guest: Arc<GuestCounters>,
    pub(super) source: Endpoint,
    pub(super) original: Option<Endpoint>,
    pub(super) claim: Option<Claim>,
    /// The guest's raw text if it is not a valid claim.
    pub(super) shown: Option<Box<[u8]>>,
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    /// The cause behind the reason, as a fixed phrase.
    pub(super) cause: Option<&'static str>,
    pub(super) rule: Option<Location>,
    pub(super) upstream: Option<Endpoint>,
    pub(super) egress: Option<Endpoint>,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    /// `None` while the flow is still open.
    pub(super) duration: Option<Duration>,
}

/// Who asked for what and why it was refused: the key of folding and of the top refusals.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) who: Who,
    pub(super) what: What,
    pub(super) reason: Reason,
    pub(super) cause: Option<&'static str>,
}

/// A guest as the log counts it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// Declared.
    Guest(Arc<str>),
    /// Not declared: its address; for IPv6 its /64, which belongs to one guest.
    Address(IpAddr),
    /// All guests beyond those that are tracked separately.
    Anyone,
}

/// A destination as the log counts it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Target(Target),
    /// A name in a DNS query.
    Host(Host),
    Text(Box<[u8]>),
    Endpoint(Endpoint),
    Nothing,
    /// All destinations beyond those that are tracked separately.
    Others,
}

impl Event {
    /// Whether it was refused, or failed without carrying anything. A guest can cause such lines at will, so
    /// they are folded, and dropped first. A refusal inside a tunnel counts as one, although it had an
    /// upstream. A flow that was permitted and then cut does not.
    pub(super) fn is_refusal(&self) -> bool {
        let carried = self.bytes_up.saturating_add(self.bytes_down);
        match (self.verdict, self.reason) {
            (_, Reason::Revoked | Reason::ShuttingDown) => false,
            // Closed to make room for others.
            (_, Reason::LimitTotal) if self.upstream.is_some() => false,
            (Verdict::Denied, _) => carried <= CARRIED_LITTLE,
            (Verdict::Failed, _) => self.upstream.is_none() || carried == 0,
            (Verdict::Allowed | Verdict::Observed, _) => false,
        }
    }

    pub(super) fn key(&self) -> Key {
        Key { who: Who::of(&self.guest, self.source), what: self.what(), reason: self.reason, cause: self.cause }
    }

    pub(super) fn what(&self) -> What {
        match (&self.claim, &self.shown, self.original) {
            (Some(claim), ..) if self.listener == ListenerLabel::Dns => What::Host(claim.target.host.clone()),
            (Some(claim), ..) => What::Target(claim.target.clone()),
            (None, Some(text), _) => What::Text(text.clone()),
            (None, None, Some(original)) => What::Endpoint(original),
            (None, None, None) => What::Nothing,
        }
    }
}

impl Who {
    pub(super) fn of(guest: &GuestCounters, source: Endpoint) -> Who {
        match &guest.name {
            Some(name) => Who::Guest(Arc::clone(name)),
            None => Who::Address(holder(source.ip)),
        }
    }
}

impl What {
    /// Returns it as text for the log: safe to escape, and cut where a guest wrote it.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            What::Target(target) => Some(target.to_string()),
            What::Host(host) => Some(host.to_string()),
            What::Text(text) => Some(super::line::clip(text)),
            What::Endpoint(endpoint) => Some(endpoint.to_string()),
            What::Nothing => None,
            What::Others => Some("(others)".to_owned()),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Guest(name) => f.write_str(name),
            Who::Address(IpAddr::V4(ip)) => ip.fmt(f),
            Who::Address(IpAddr::V6(ip)) => write!(f, "{ip}/64"),
            Who::Anyone => f.write_str("(others)"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::identify::Evidence;
    use crate::target::Transport;

    /// Returns a refused CONNECT of an undeclared guest.
    pub(in crate::account) fn event(name: &str) -> Event {
        event_of(None, "10.0.0.1", name)
    }

    pub(in crate::account) fn event_of(guest: Option<&str>, source: &str, name: &str) -> Event {
        let ip: IpAddr = source.parse().unwrap();
        Event {
            at: SystemTime::now(),
            id: 1,
            listener: ListenerLabel::Proxy,
            guest: Arc::new(GuestCounters::for_tests(guest)),
            source: Endpoint { ip, port: 40000 },
            original: None,
            claim: Some(Claim {
                source: ip.into(),
                target: Target::parse(name.as_bytes(), Some(443)).unwrap(),
                transport: Transport::Tcp,
                spoken: None,
                ech: false,
                evidence: Evidence::Connect,
            }),
            shown: None,
            verdict: Verdict::Denied,
            reason: Reason::NotWhitelisted,
            cause: None,
            rule: None,
            upstream: None,
            egress: None,
            bytes_up: 0,
            bytes_down: 0,
            duration: Some(Duration::from_millis(1)),
        }
    }
}
