//! One of `[resolver].servers`: where it is and how it is spoken to.

use crate::name::HostName;
use std::fmt;
use std::net::SocketAddr;

/// A DNS server. It is always connected to by its address, so that no name has to be looked up first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub channel: Channel,
}

/// How a server is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// In clear: UDP, and TCP where an answer does not fit (RFC 1035, RFC 7766).
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
        /// The path of the URL, with the slash in front.
        path: Box<str>,
    },
}

impl NameServer {
    /// One that is spoken to in clear.
    pub const fn plain(address: SocketAddr) -> NameServer {
        NameServer { address, channel: Channel::Plain }
    }

    /// Does it have to show a certificate?
    pub(super) fn is_encrypted(&self) -> bool {
        self.channel != Channel::Plain
    }
}

impl fmt::Display for NameServer {
    /// As it stands in the configuration, the port written out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match &self.channel {
            Channel::Plain => address.fmt(f),
            Channel::Tls { name } => write!(f, "tls://{address}#{name}"),
            Channel::Https { name, path } => write!(f, "https://{address}{path}#{name}"),
        }
    }
}
