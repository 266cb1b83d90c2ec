//! A permit in, vetted addresses out: asks DNS for the name (one query a name in flight, TTLs
//! honoured, failures remembered briefly) and holds the whole answer against the address floor.
//! Only this module can make a [`Vetted`].

use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `[resolver]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// Servers for plain DNS (UDP, TCP where truncated); empty: those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// Names found in this file (hosts(5)) are not asked upstream.
    pub hosts_file: Option<PathBuf>,
    /// A server that has not answered after this is taken for dead; a lookup lasts twice this at most.
    pub timeout: Duration,
}

/// What the address floor needs to know beyond the IANA registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloorSettings {
    /// `[dial].permit_addresses`: taken out of the floor for every rule.
    pub permitted: Vec<IpNet>,
    /// The addresses of declared guests.
    pub guests: Vec<IpNet>,
    /// Outgate's own listeners; never reachable, whatever permits. An unspecified address stands for
    /// every address of this machine.
    pub listeners: Vec<SocketAddr>,
}

/// Addresses that a flow may be connected to, in the order to try them. Never empty.
#[derive(Clone, Debug)]
pub struct Vetted {
    addresses: Vec<SocketAddr>,
}

impl Vetted {
    /// The addresses, ports included.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}
