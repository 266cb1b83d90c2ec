//! What a guest shows: first bytes in, a [`Claim`] out.
//!
//! The parsers below are pure functions over byte slices (no IO, no clock), strict where two implementations could
//! read the same bytes differently. `flow` feeds them, keeps the buffers and the deadlines, and sends on to the
//! upstream what it let through.

pub mod chunked;
pub mod hello;
pub mod http;
mod second_host;
mod sniff;
pub mod socks;

pub use second_host::{HostSearch, OtherName, asks_for_tls};
pub use sniff::{MAX_SNIFF, Sniff, sniff, sniff_on};

use crate::reason::Reason;
use crate::source::Source;
use crate::target::{Host, Protocol, Target, Transport};
use hello::ClientHello;

/// The outcome of parsing the front of a byte stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A complete message in the first `len` bytes; the bytes after them belong to what comes next.
    Complete {
        /// The message.
        head: T,
        /// Its length, from the start of the buffer.
        len: usize,
    },
    /// Valid so far, but not complete yet.
    Partial,
}

/// What named the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// A CONNECT authority or a SOCKS5 request.
    Connect,
    /// The server name of a ClientHello.
    Sni,
    /// The URI or Host of an HTTP request.
    Host,
    /// A binding made by outgate's own DNS.
    Dns,
    /// The address alone.
    Address,
}

impl Evidence {
    /// The log value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Evidence::Connect => "connect",
            Evidence::Sni => "sni",
            Evidence::Host => "host",
            Evidence::Dns => "dns",
            Evidence::Address => "address",
        }
    }
}

/// Everything the policy judges: who asks, for what, and what has been shown so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The guest that asks.
    pub source: Source,
    /// The requested host and port.
    pub target: Target,
    /// TCP, UDP or QUIC.
    pub transport: Transport,
    /// What is spoken, as far as it has been judged; `None` before that. It changes when the stream shows more. Requests
    /// inside a tunnel have records and claims of their own.
    pub spoken: Option<Protocol>,
    /// A ClientHello with encrypted_client_hello (RFC 9849) was shown.
    pub ech: bool,
    /// What named the destination.
    pub evidence: Evidence,
}

impl Claim {
    /// The claim after its stream has shown `hello`: `spoken` is TLS, and the server name must be the target's.
    /// Applies to a first hello and to one after a HelloRetryRequest.
    ///
    /// # Errors
    /// [`Reason::NoName`] if the target is a name and the hello shows none, [`Reason::NameMismatch`] if it shows
    /// another, or any name where the target is an address.
    pub fn with_hello(&self, hello: &ClientHello) -> Result<Claim, Reason> {
        match (&self.target.host, &hello.sni) {
            (Host::Name(asked), Some(shown)) if asked == shown => {}
            (Host::Addr(_), None) => {}
            (Host::Name(_), None) => return Err(Reason::NoName),
            (Host::Name(_) | Host::Addr(_), Some(_)) => return Err(Reason::NameMismatch),
        }
        Ok(Claim { spoken: Some(Protocol::Tls), ech: self.ech || hello.ech, ..self.clone() })
    }

    /// The claim after its stream has shown an HTTP request for `shown`: `spoken` is HTTP, and the host and (if one
    /// is written) the port must be the target's.
    ///
    /// # Errors
    /// [`Reason::NoName`] if the target is a name and the request has no Host (HTTP/1.0), [`Reason::NameMismatch`]
    /// if it has another.
    pub fn with_host(&self, shown: Option<&http::HostPort>) -> Result<Claim, Reason> {
        match (&self.target.host, shown) {
            (asked, Some(shown)) if *asked == shown.host => {
                if shown.port.is_some_and(|port| port != self.target.port) {
                    return Err(Reason::NameMismatch);
                }
            }
            (_, Some(_)) => return Err(Reason::NameMismatch),
            (Host::Addr(_), None) => {}
            (Host::Name(_), None) => return Err(Reason::NoName),
        }
        Ok(Claim { spoken: Some(Protocol::Http), ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(target: &str) -> Claim {
        Claim {
            source: std::net::IpAddr::from([10, 0, 0, 7]).into(),
            target: Target::parse(target.as_bytes(), None).unwrap(),
            transport: Transport::Tcp,
            spoken: None,
            ech: false,
            evidence: Evidence::Connect,
        }
    }

    fn hello(sni: Option<&str>) -> ClientHello {
        ClientHello { sni: sni.map(|name| crate::name::HostName::parse(name).unwrap()), ech: false, len: 0 }
    }

    fn host(text: &str) -> http::HostPort {
        http::HostPort::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_hello_must_show_the_name_that_was_asked_for() {
        let named = claim("good.test:443");
        let confirmed = named.with_hello(&hello(Some("GOOD.test."))).unwrap();
        assert_eq!(confirmed.spoken, Some(Protocol::Tls));
        assert_eq!(confirmed.target, named.target);
        assert_eq!(named.with_hello(&hello(Some("evil.test"))), Err(Reason::NameMismatch));
        assert_eq!(named.with_hello(&hello(None)), Err(Reason::NoName));
    }

    #[test]
    fn a_hello_towards_an_address_must_show_no_name() {
        let address = claim("203.0.113.7:443");
        assert!(address.with_hello(&hello(None)).is_ok());
        assert_eq!(address.with_hello(&hello(Some("good.test"))), Err(Reason::NameMismatch));
    }

    #[test]
    fn ech_in_any_hello_stays_with_the_claim() {
        let first = claim("good.test:443").with_hello(&ClientHello { ech: true, ..hello(Some("good.test")) }).unwrap();
        assert!(first.with_hello(&hello(Some("good.test"))).unwrap().ech);
    }

    #[test]
    fn a_host_field_must_be_the_target_in_host_and_port() {
        let named = claim("good.test:8080");
        assert_eq!(named.with_host(Some(&host("good.test"))).unwrap().spoken, Some(Protocol::Http));
        assert!(named.with_host(Some(&host("good.test:8080"))).is_ok());
        assert_eq!(named.with_host(Some(&host("good.test:80"))), Err(Reason::NameMismatch));
        assert_eq!(named.with_host(Some(&host("evil.test:8080"))), Err(Reason::NameMismatch));
        assert_eq!(named.with_host(None), Err(Reason::NoName));
        let address = claim("[2001:db8::1]:80");
        assert!(address.with_host(Some(&host("[2001:DB8::1]"))).is_ok());
        assert!(address.with_host(None).is_ok());
        assert_eq!(address.with_host(Some(&host("good.test"))), Err(Reason::NameMismatch));
    }
}
