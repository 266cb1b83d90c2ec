//! Identifies the source of a connection, as far as the connection shows it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// The address of a connection and, if it presented a client certificate, the name in it. The name has precedence:
/// a connection with a certificate belongs to the guest of that name, or to no declared guest, whatever its
/// address.
#[derive(Clone, Debug)]
pub struct Source {
    /// The address.
    pub address: IpAddr,
    /// The name in the verified certificate.
    pub certified: Option<Arc<str>>,
    standing: Standing,
}

/// Which guest a source is in one policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// The generation of that policy; 0 if none has been asked.
    pub generation: u32,
    /// The guest's position among the declared guests; [`Standing::UNDECLARED`] if it is none of them.
    pub index: u32,
}

impl Standing {
    /// None of the declared guests.
    pub const UNDECLARED: u32 = u32::MAX;
}

impl Source {
    /// A source that a policy has identified.
    pub fn identified(address: IpAddr, certified: Option<Arc<str>>, standing: Standing) -> Source {
        Source { address, certified, standing }
    }

    /// A source with a certificate that no policy has identified yet.
    pub fn certified(address: IpAddr, name: &str) -> Source {
        Source { address, certified: Some(name.into()), standing: Standing::default() }
    }

    /// Which guest that is, as the policy found that identified it.
    pub fn standing(&self) -> Standing {
        self.standing
    }
}

impl From<IpAddr> for Source {
    /// A source without a certificate that no policy has identified yet.
    fn from(address: IpAddr) -> Source {
        Source { address, certified: None, standing: Standing::default() }
    }
}

/// The same source, whatever policies found about it.
impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        (self.address, &self.certified) == (other.address, &other.certified)
    }
}

impl Eq for Source {}

/// Returns the address that identifies an undeclared guest: its own, in IPv6 its /64, since a guest usually owns all
/// of it.
pub fn holder(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}
