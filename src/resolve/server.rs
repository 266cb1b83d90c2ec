//! One of `[resolver].servers`: its address and its protocol.

use crate::name::HostName;
use std::fmt;
use std::net::SocketAddr;

/// A DNS server. It is always addressed by IP address, so that no name has to be looked up first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// The address it listens on.
    pub address: SocketAddr,
    /// The protocol.
    pub channel: Channel,
}

/// The protocol of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Unencrypted: UDP, and TCP if an answer does not fit (RFC 1035, RFC 7766).
    Plain,
    /// DNS over TLS (RFC 7858).
    Tls {
        /// The name that its certificate must have.
        name: HostName,
    },
    /// DNS over HTTPS (RFC 8484).
    Https {
        /// The name that its certificate must have.
        name: HostName,
        /// The path of the URL, with the leading slash.
        path: Box<str>,
    },
}

impl NameServer {
    /// Creates an unencrypted server.
    pub const fn plain(address: SocketAddr) -> NameServer {
        NameServer { address, channel: Channel::Plain }
    }

    /// Whether it must present a certificate.
    pub(super) fn is_encrypted(&self) -> bool {
        self.channel != Channel::Plain
    }
}

impl fmt::Display for NameServer {
    /// Formats it as in the configuration, always with the port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match &self.channel {
            Channel::Plain => address.fmt(f),
            Channel::Tls { name } => write!(f, "tls://{address}#{name}"),
            Channel::Https { name, path } => write!(f, "https://{address}{path}#{name}"),
        }
    }
}
