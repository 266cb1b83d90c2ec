//! Identifies the source of a connection, as far as the connection shows it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The address of a connection and, if it presented a client certificate, the name in it. The name has precedence:
/// a connection with a certificate belongs to the guest of that name, or to no declared guest, whatever its
/// address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub address: IpAddr,
    /// The name in the verified certificate.
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

/// Returns the address that identifies an undeclared guest: its own, in IPv6 its /64, since a guest usually owns all
/// of it.
pub fn holder(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}
