//! Who asks, as far as its connection shows.

use std::net::IpAddr;
use std::sync::Arc;

/// Where a connection comes from and, if it came with a certificate for clients, the name in that. The name comes
/// first: who shows one is the guest of that name, or none that is declared, whatever its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub address: IpAddr,
    /// The name in the certificate, which was verified.
    pub certified: Option<Arc<str>>,
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Source {
        Source { address, certified: None }
    }
}

impl From<&Source> for Source {
    fn from(source: &Source) -> Source {
        source.clone()
    }
}
