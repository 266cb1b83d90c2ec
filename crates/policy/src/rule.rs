//! The rule language as data: what a line of a whitelist file means, whatever its source.

use ipnet::IpNet;
use outgate_proto::target::{Protocols, Transport};
use std::sync::Arc;

pub use super::nets::AddressSet;

/// Allow or deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Allows a flow.
    Allow,
    /// Refuses a flow, whatever other rules allow.
    Deny,
}

/// How far below (or at) a base name a rule reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Only `base`.
    Exact,
    /// `*.base`: exactly one label in front.
    OneLabel,
    /// `**.base`: one or more labels in front.
    Below,
    /// `.base`: the base and everything below it.
    SelfAndBelow,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A literal name, canonical (as [`HostName`](outgate_proto::name::HostName)), and how far it reaches.
    Name {
        /// The canonical name after the wildcard prefix.
        base: &'a str,
        /// The reach.
        scope: Scope,
    },
    /// A name with globs inside labels. Lower-case; `*` and `?` never cross a dot; classes contain ranges and single
    /// characters of `a-z 0-9 _ -`, never a negation; braces contain no dots. `scope` is the prefix in front:
    /// `Exact` none, `Below` `**.`, `SelfAndBelow` `.` (a leading `*.` is a label of the pattern itself).
    Glob {
        /// The pattern after the prefix, e.g. `api-*.example.com`.
        pattern: &'a str,
        /// `Exact`, `Below` or `SelfAndBelow`.
        scope: Scope,
    },
    /// A regex that must match the whole canonical name.
    Regex(&'a str),
    /// A regex from yagna: searched, case-insensitive, white space ignored.
    SearchRegex(&'a str),
    /// Addresses, for a guest that asks for an address.
    Net(IpNet),
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// First, at least 1.
    pub first: u16,
    /// Last, at least `first`.
    pub last: u16,
}

impl Ports {
    /// Every port.
    pub const ALL: Ports = Ports { first: 1, last: u16::MAX };
    /// Is `port` in the range?
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// The transports, ports and protocols that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// A bare host in an `allow`: http on 80, https on 443.
    Web,
    /// `host:ports`: TCP on these; 80 is http, 443 https, others anything.
    Ports(Ports),
    /// `http://`.
    Http(Ports),
    /// `https://`.
    Https(Ports),
    /// `tcp://`: any bytes, including HTTP/2 in clear.
    Tcp(Ports),
    /// `udp://`.
    Udp(Ports),
    /// `quic://`.
    Quic(Ports),
    /// Golem's lists: TCP, every port; 80 is http, 443 https, others anything.
    Golem,
    /// A bare host in a `deny`: every transport, port and protocol.
    Everything,
}

/// What a rule allows on one transport and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The permitted protocols (on UDP and QUIC: all).
    pub protocols: Protocols,
    /// The rule names that very port (so that it lifts `blocked_ports`).
    pub names_port: bool,
}

/// What a rule says besides its subject. Interned: many rules share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Allow or deny.
    pub effect: Effect,
    /// Transports, ports, protocols.
    pub reach: Reach,
    /// `ech=allow`.
    pub ech_allowed: bool,
    /// `to=`.
    pub to: Option<Arc<[IpNet]>>,
    /// `until=`: the last day (UTC) on which the rule applies.
    pub until: Option<jiff::civil::Date>,
}

impl Reach {
    /// Does the reach include `port` on `transport`, and for which protocols? A UDP reach includes QUIC on its
    /// ports, because that is UDP with a name to judge.
    pub fn serves(self, transport: Transport, port: u16) -> Option<Served> {
        use outgate_proto::target::Protocol::{H2c, Http, Tls};
        let by_port = match port {
            80 => Protocols::only(Http),
            443 => Protocols::only(Tls),
            // Names that a stream shows must be the host's, and those of HTTP/2 are not read.
            _ => Protocols::ALL.without(Protocols::only(H2c)),
        };
        let (wanted, ports, protocols) = match self {
            Reach::Web if port == 80 || port == 443 => (Transport::Tcp, Ports::ALL, by_port),
            Reach::Web => return None,
            Reach::Ports(ports) => (Transport::Tcp, ports, by_port),
            Reach::Golem => (Transport::Tcp, Ports::ALL, by_port),
            Reach::Http(ports) => (Transport::Tcp, ports, Protocols::only(Http)),
            Reach::Https(ports) => (Transport::Tcp, ports, Protocols::only(Tls)),
            Reach::Tcp(ports) => (Transport::Tcp, ports, Protocols::ALL),
            Reach::Udp(ports) => (Transport::Udp, ports, Protocols::ALL),
            Reach::Quic(ports) => (Transport::Quic, ports, Protocols::ALL),
            Reach::Everything => (transport, Ports::ALL, Protocols::ALL),
        };
        let names_port = ports.first == ports.last;
        let carried = wanted == transport || (wanted, transport) == (Transport::Udp, Transport::Quic);
        (carried && ports.contains(port)).then_some(Served { protocols, names_port })
    }

    /// Which protocols on `port` does a `deny` rule of this reach refuse? As [`serves`](Self::serves), but
    /// `deny host:443` refuses every protocol on the port.
    pub fn denies(self, transport: Transport, port: u16) -> Option<Protocols> {
        let served = self.serves(transport, port)?;
        Some(match self {
            Reach::Ports(_) => Protocols::ALL,
            Reach::Http(_) => served.protocols.union(Protocols::only(outgate_proto::target::Protocol::H2c)),
            _ => served.protocols,
        })
    }
}
