//! What a guest shows: first bytes in, a [`Claim`] out.
//!
//! The parsers below are pure functions over byte slices (no IO, no clock), strict where two
//! implementations could read the same bytes differently. `flow` feeds them.

pub mod chunked;
pub mod hello;
pub mod http;
pub mod socks;

use crate::target::{Protocol, Target, Transport};
use std::net::IpAddr;

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
    /// The guest's address.
    pub source: IpAddr,
    /// Host and port asked for.
    pub target: Target,
    /// TCP, UDP or QUIC.
    pub transport: Transport,
    /// What the first bytes speak; `None` while none has been seen.
    pub spoken: Option<Protocol>,
    /// A ClientHello with encrypted_client_hello (RFC 9849) was shown.
    pub ech: bool,
    /// What named the destination.
    pub evidence: Evidence,
}
