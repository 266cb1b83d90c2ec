//! The destination of a flow: [`Host`], and [`Target`] = host and port, with strict parsers for both; and the
//! names of what is spoken there, [`Transport`] and [`Protocol`].

use crate::enum_of_words;
use crate::name::{HostName, NameError};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A requested host: a name, or an address literal in its one canonical notation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name.
    Name(HostName),
    /// An address literal.
    Addr(IpAddr),
}

/// A host and a port, 1 to 65535.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

/// Why a text is not a host or not a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither address nor name.
    #[error("{0}")]
    Name(#[from] NameError),
    /// Brackets without an IPv6 address in them, or with a zone.
    #[error("not an IPv6 address in brackets")]
    Brackets,
    /// No port where one is required.
    #[error("the port is missing")]
    NoPort,
    /// Not 1 to 65535 in plain digits.
    #[error("the port is not a number from 1 to 65535 without sign or leading zero")]
    BadPort,
}

/// The transport a flow uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP datagrams of any protocol.
    Udp,
    /// QUIC, judged by the SNI of its Initial packets.
    Quic,
}

enum_of_words! {
    /// The protocol of a TCP flow, determined by the guest's first bytes.
    pub enum Protocol {
        /// HTTP/1.x in clear.
        Http = "http",
        /// HTTP/2 in clear, whose names outgate does not read.
        H2c = "h2c",
        /// TLS.
        Tls = "https",
        /// Anything else, including protocols in which the server sends first.
        Raw = "tcp",
    }
    /// Returns the word by which a rule and the answers of `explain` name it: `https` is any TLS, `tcp` any bytes.
    pub fn rule_word
}

/// A set of [`Protocol`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Protocols(u8);

impl Protocols {
    /// No protocol.
    pub const NONE: Protocols = Protocols(0);
    /// Every protocol.
    pub const ALL: Protocols = Protocols(15);

    /// Returns the set of one protocol.
    pub const fn only(protocol: Protocol) -> Protocols {
        Protocols(match protocol {
            Protocol::Http => 1,
            Protocol::Tls => 2,
            Protocol::Raw => 4,
            Protocol::H2c => 8,
        })
    }

    /// Returns whether `protocol` is in the set.
    pub const fn contains(self, protocol: Protocol) -> bool {
        self.0 & Protocols::only(protocol).0 != 0
    }

    /// Returns the union of both sets.
    pub const fn union(self, other: Protocols) -> Protocols {
        Protocols(self.0 | other.0)
    }

    /// Returns the intersection of both sets.
    pub const fn both(self, other: Protocols) -> Protocols {
        Protocols(self.0 & other.0)
    }

    /// Returns this set without the members of `other`.
    pub const fn without(self, other: Protocols) -> Protocols {
        Protocols(self.0 & !other.0)
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl Host {
    /// Parses a host as it is written in an authority: `name`, `192.0.2.1` or `[2001:db8::1]`.
    ///
    /// An IPv4 address is accepted only in dotted-quad form without leading zeros; every other notation of an
    /// address (RFC 3986 §7.4 lists them) is an error, never a name.
    pub fn parse(text: &[u8]) -> Result<Host, TargetError> {
        if let Some(rest) = text.strip_prefix(b"[") {
            let inner = rest.strip_suffix(b"]").ok_or(TargetError::Brackets)?;
            let inner = std::str::from_utf8(inner).map_err(|_| TargetError::Brackets)?;
            let address: Ipv6Addr = inner.parse().map_err(|_| TargetError::Brackets)?;
            return Ok(Host::Addr(IpAddr::V6(address)));
        }
        if text.last().is_some_and(u8::is_ascii_digit)
            && let Some(address) = std::str::from_utf8(text).ok().and_then(|t| t.parse::<Ipv4Addr>().ok())
        {
            return Ok(Host::Addr(IpAddr::V4(address)));
        }
        Ok(Host::Name(HostName::parse(text)?))
    }

    /// Returns the name, if it is one.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Host::Name(name) => Some(name),
            Host::Addr(_) => None,
        }
    }
}

impl Target {
    /// Reads `host:port`; without `default_port` the port is required.
    pub fn parse(text: &[u8], default_port: Option<u16>) -> Result<Target, TargetError> {
        let colon = match text.first() {
            Some(b'[') => {
                let close = text.iter().position(|b| *b == b']').ok_or(TargetError::Brackets)?;
                match text.get(close + 1) {
                    None => None,
                    Some(b':') => Some(close + 1),
                    Some(_) => return Err(TargetError::Brackets),
                }
            }
            _ => text.iter().position(|b| *b == b':'),
        };
        let (host, port) = match colon {
            Some(at) => {
                let (host, rest) = text.split_at(at);
                (host, parse_port(rest.get(1..).unwrap_or_default())?)
            }
            None => (text, default_port.ok_or(TargetError::NoPort)?),
        };
        Ok(Target { host: Host::parse(host)?, port })
    }
}

/// Reads a port: 1 to 5 digits, no sign, no leading zero, 1 to 65535.
pub fn parse_port(text: &[u8]) -> Result<u16, TargetError> {
    if text.is_empty() || text.len() > 5 || text.first() == Some(&b'0') || !text.iter().all(u8::is_ascii_digit) {
        return Err(TargetError::BadPort);
    }
    let value = text.iter().fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    u16::try_from(value).map_err(|_| TargetError::BadPort)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => name.fmt(f),
            Host::Addr(IpAddr::V4(address)) => address.fmt(f),
            Host::Addr(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Transport {
    /// Returns the word for it in rules, `explain` and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Quic => "quic",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<String, TargetError> {
        Target::parse(text.as_bytes(), None).map(|t| t.to_string())
    }

    #[test]
    fn authorities_have_one_reading() {
        assert_eq!(target("Good.test:443").unwrap(), "good.test:443");
        assert_eq!(target("203.0.113.7:80").unwrap(), "203.0.113.7:80");
        assert_eq!(target("[2001:DB8::1]:8443").unwrap(), "[2001:db8::1]:8443");
        assert_eq!(Target::parse(b"good.test", Some(80)).unwrap().port, 80);
    }

    #[test]
    fn ports_are_plain_digits_in_range() {
        for port in ["", "0", "65979", "+443", "0443", "443 ", "-1", "99999", "4 3", "065535", "١"] {
            assert_eq!(target(&format!("good.test:{port}")), Err(TargetError::BadPort), "{port:?}");
        }
        assert_eq!(target("good.test:65535").unwrap(), "good.test:65535");
        assert_eq!(target("good.test"), Err(TargetError::NoPort));
    }

    #[test]
    fn addresses_in_disguise_are_no_hosts() {
        for text in ["2130706433:80", "0x7f.1:80", "127.0.0.1.:80", "0177.0.0.1:80", "127.1:80", "127.0.0.01:80"] {
            assert_eq!(target(text), Err(TargetError::Name(NameError::LooksLikeAddress)), "{text}");
        }
        for text in ["[good.test]:443", "[::1", "[fe80::1%25lo]:80", "[::1]x:80", "[127.0.0.1]:80"] {
            assert_eq!(target(text), Err(TargetError::Brackets), "{text}");
        }
        assert!(target("::1:80").is_err());
        assert!(target("user@good.test:80").is_err());
        assert!(target("a.test:1:2").is_err());
    }
}
