//! Which name stood behind the address that a guest was given: for protocols that show no name, the
//! only evidence of what the guest asked for. Bounded for each guest and in all.

use crate::name::HostName;
use std::net::IpAddr;

/// The names that outgate's own DNS has answered to guests, by guest and address. Shared by all threads.
#[derive(Debug, Default)]
pub struct Bindings {}

impl Bindings {
    /// The names, latest first, for which the guest at `source` (its declared name in `guest`, if it has
    /// one) was given `address` and may still rely on it.
    pub fn names(&self, _source: IpAddr, _guest: Option<&str>, _address: IpAddr) -> Vec<HostName> {
        Vec::new()
    }
}
