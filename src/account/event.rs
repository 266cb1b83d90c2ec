//! What the log's thread is told of a flow: the data of one line, not yet rendered.

use super::Listener;
use crate::identify::Claim;
use crate::policy::Location;
use crate::reason::{Reason, Verdict};
use crate::target::{Host, Target};
use prometheus::IntCounter;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a server may say first, and a guest before its second hello, in bytes; a refused flow that
/// carried more gets a line of its own.
const CARRIED_LITTLE: u64 = 64 << 10;

/// Address and port, without the flow label and scope that make a `SocketAddr` a third larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

/// A declared guest, or all the others, with its counters.
#[derive(Debug)]
pub(super) struct Guest {
    /// `None`: not declared.
    pub(super) name: Option<Arc<str>>,
    /// By [`Verdict`].
    pub(super) connections: [IntCounter; 4],
    /// Up, down.
    pub(super) bytes: [IntCounter; 2],
}

/// The data of one line.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) at: SystemTime,
    pub(super) id: u64,
    pub(super) listener: Listener,
    pub(super) guest: Arc<Guest>,
    pub(super) source: Endpoint,
    pub(super) original: Option<Endpoint>,
    pub(super) claim: Option<Claim>,
    /// Raw text of the guest's where no claim could be made of it.
    pub(super) shown: Option<Box<[u8]>>,
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    /// What is behind the reason, in a fixed phrase.
    pub(super) cause: Option<&'static str>,
    pub(super) rule: Option<Location>,
    pub(super) upstream: Option<Endpoint>,
    pub(super) egress: Option<Endpoint>,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    /// `None` while the flow is still open.
    pub(super) duration: Option<Duration>,
}

/// Who asked for what and why it was refused: what folding and the top refusals go by.
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
    /// Not declared: its address; for IPv6 its /64, which is one guest's.
    Address(IpAddr),
    /// More than are told apart.
    Anyone,
}

/// A destination as the log counts it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Target(Target),
    /// A name asked of the DNS.
    Host(Host),
    Text(Box<[u8]>),
    Endpoint(Endpoint),
    Nothing,
    /// More than are told apart.
    Others,
}

impl Event {
    /// Refused, or failed without having carried anything: lines of this kind a guest makes at will,
    /// so they are folded, and dropped first. A refusal inside a tunnel is one although it had an
    /// upstream; a flow that was let through and then cut is none.
    pub(super) fn is_refusal(&self) -> bool {
        let carried = self.bytes_up.saturating_add(self.bytes_down);
        match (self.verdict, self.reason) {
            (_, Reason::Revoked | Reason::ShuttingDown) => false,
            // Closed to make room.
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
            (Some(claim), ..) if self.listener == Listener::Dns => What::Host(claim.target.host.clone()),
            (Some(claim), ..) => What::Target(claim.target.clone()),
            (None, Some(text), _) => What::Text(text.clone()),
            (None, None, Some(original)) => What::Endpoint(original),
            (None, None, None) => What::Nothing,
        }
    }
}

impl Who {
    pub(super) fn of(guest: &Guest, source: Endpoint) -> Who {
        match (&guest.name, source.ip) {
            (Some(name), _) => Who::Guest(Arc::clone(name)),
            (None, IpAddr::V6(ip)) => Who::Address(IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into())),
            (None, v4) => Who::Address(v4),
        }
    }
}

impl Guest {
    /// The same counters under another name.
    pub(super) fn renamed(&self, name: &str) -> Guest {
        Guest { name: Some(name.into()), connections: self.connections.clone(), bytes: self.bytes.clone() }
    }
}

impl What {
    /// As text for the log: safe to escape, cut where a guest wrote it.
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

impl From<SocketAddr> for Endpoint {
    /// IPv4-mapped IPv6 becomes IPv4, so that one host has one spelling in the log.
    fn from(address: SocketAddr) -> Endpoint {
        Endpoint { ip: address.ip().to_canonical(), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port).fmt(f)
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

    /// A refused CONNECT of an undeclared guest.
    pub(in crate::account) fn event(name: &str) -> Event {
        event_of(None, "10.0.0.1", name)
    }

    pub(in crate::account) fn event_of(guest: Option<&str>, source: &str, name: &str) -> Event {
        let counter = || IntCounter::new("test", "test").unwrap();
        let ip: IpAddr = source.parse().unwrap();
        Event {
            at: SystemTime::now(),
            id: 1,
            listener: Listener::Proxy,
            guest: Arc::new(Guest {
                name: guest.map(Into::into),
                connections: std::array::from_fn(|_| counter()),
                bytes: std::array::from_fn(|_| counter()),
            }),
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
