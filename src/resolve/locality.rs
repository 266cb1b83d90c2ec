//! Is an address one of this machine's own, and is there a route to it? Asked of the kernel at the
//! moment it matters, without privilege and without a packet.
//!
//! Netlink would answer directly, but the sandbox bars AF_NETLINK, and a list of interface addresses
//! read beforehand is stale when it counts. What an ordinary UDP socket gives away:
//!
//! * `bind` to a foreign address fails with EADDRNOTAVAIL. Success proves nothing, because the
//!   sysctl `ip_nonlocal_bind` lets every bind succeed; failure is proof.
//! * `connect` to an own address makes the kernel pick that very address as source, which
//!   getsockname(2) shows. That is exact for IPv6 (RFC 6724, rule 1). For IPv4 a match is proof, but
//!   a secondary address of a subnet is answered from its primary one, so a mismatch is not.
//! * An IPv4 socket bound to 127.0.0.1 gets EINVAL from `connect` when the route leaves the machine.
//!   The sysctl `route_localnet` lifts that; again failure is proof.
//!
//! Where both sysctls are on, an IPv4 address that cannot be proved foreign counts as ours.
//! Not seen: whole IPv6 prefixes routed to `lo` (`ip -6 route add local`).

use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer of the kernel is taken for current.
pub(super) const FRESH: Duration = Duration::from_secs(2);

/// Bound on remembered addresses; an entry takes about 40 bytes.
const REMEMBERED: usize = 8192;

/// Where an address is, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locality {
    /// An address of this machine.
    Ours,
    /// Another machine's, and there is a route. IPv4 addresses are not tested for a route.
    Elsewhere,
    /// Not ours, and no route leads there.
    Unroutable,
}

/// The kernel's answers of the last [`FRESH`] seconds.
#[derive(Debug, Default)]
pub(super) struct Localities {
    recent: Mutex<Recent>,
}

impl Localities {
    /// Where is `address`? An error means that the kernel could not be asked (no file descriptor left).
    pub(super) fn of(&self, address: IpAddr, now: Instant) -> io::Result<Locality> {
        // A v4-mapped address is, to the kernel, the IPv4 address within.
        let address = address.to_canonical();
        if let Some((asked, locality)) = self.recent().get(&address)
            && now.saturating_duration_since(*asked) < FRESH
        {
            return Ok(*locality);
        }
        let locality = probe(address)?;
        let mut recent = self.recent();
        if recent.len() >= REMEMBERED {
            recent.retain(|_, (asked, _)| now.saturating_duration_since(*asked) < FRESH);
            if recent.len() >= REMEMBERED {
                recent.clear();
            }
        }
        recent.insert(address, (now, locality));
        Ok(locality)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Recent = HashMap<IpAddr, (Instant, Locality), foldhash::fast::RandomState>;

/// The discard port (RFC 863); `connect` on UDP sends nothing, so any would do.
const PORT: u16 = 9;

fn probe(address: IpAddr) -> io::Result<Locality> {
    match address {
        IpAddr::V4(address) => probe_v4(address),
        IpAddr::V6(address) => probe_v6(address),
    }
}

fn probe_v4(address: Ipv4Addr) -> io::Result<Locality> {
    if address.is_unspecified() {
        // The kernel takes 0.0.0.0 for this machine.
        return Ok(Locality::Ours);
    }
    match UdpSocket::bind((address, 0)) {
        Err(error) if is(&error, Errno::ADDRNOTAVAIL) => return Ok(Locality::Elsewhere),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    if socket.connect((address, PORT)).is_ok() && socket.local_addr()?.ip() == IpAddr::V4(address) {
        return Ok(Locality::Ours);
    }
    let from_loopback = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    match from_loopback.connect((address, PORT)) {
        Err(error) if is(&error, Errno::INVAL) => Ok(Locality::Elsewhere),
        Err(error) if is_unroutable(&error) => Ok(Locality::Unroutable),
        _ => Ok(Locality::Ours),
    }
}

fn probe_v6(address: Ipv6Addr) -> io::Result<Locality> {
    if address.is_unspecified() {
        return Ok(Locality::Ours);
    }
    let socket = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        // A kernel without IPv6, or with it switched off.
        Err(error) if is(&error, Errno::AFNOSUPPORT) || is(&error, Errno::ADDRNOTAVAIL) => {
            return Ok(Locality::Unroutable);
        }
        other => other?,
    };
    match socket.connect((address, PORT)) {
        Ok(()) if socket.local_addr()?.ip() == IpAddr::V6(address) => Ok(Locality::Ours),
        Ok(()) => Ok(Locality::Elsewhere),
        Err(error) if is_unroutable(&error) => Ok(Locality::Unroutable),
        Err(error) => Err(error),
    }
}

/// What `connect` says when no route leads to a foreign address, or one that prohibits it.
fn is_unroutable(error: &io::Error) -> bool {
    [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ADDRNOTAVAIL, Errno::ACCESS, Errno::INVAL, Errno::NETDOWN]
        .iter()
        .any(|errno| is(error, *errno))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locality(text: &str) -> Locality {
        Localities::default().of(text.parse().unwrap(), Instant::now()).unwrap()
    }

    #[test]
    fn every_address_of_the_loopback_network_is_ours() {
        for text in ["127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "::ffff:127.0.0.1", "::"] {
            assert_eq!(locality(text), Locality::Ours, "{text}");
        }
    }

    /// The kernel's own list; empty where /proc does not show it.
    fn listed_by_the_kernel() -> Vec<IpAddr> {
        let trie = std::fs::read_to_string("/proc/self/net/fib_trie").unwrap_or_default();
        let lines: Vec<&str> = trie.lines().map(str::trim).collect();
        let v4 =
            lines.windows(2).filter(|pair| pair[1] == "/32 host LOCAL").filter_map(|pair| pair[0].strip_prefix("|-- "));
        let v4 = v4.map(|text| text.parse().unwrap());
        let inet6 = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
        let v6 = inet6.lines().filter_map(|line| u128::from_str_radix(line.get(..32)?, 16).ok());
        // Link-local addresses cannot be asked for without a zone; the floor has them.
        let v6 = v6.map(Ipv6Addr::from_bits).filter(|address| !address.is_unicast_link_local()).map(IpAddr::V6);
        v4.chain(v6).collect()
    }

    #[test]
    fn every_address_that_the_kernel_lists_is_ours_secondary_ones_included() {
        for address in listed_by_the_kernel() {
            assert_eq!(Localities::default().of(address, Instant::now()).unwrap(), Locality::Ours, "{address}");
        }
    }

    #[test]
    fn a_foreign_address_is_not_ours() {
        for text in ["11.22.33.44", "192.0.2.1", "2606:4700::1111"] {
            assert_ne!(locality(text), Locality::Ours, "{text}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let localities = Localities::default();
        let now = Instant::now();
        for index in 0..20_000u32 {
            localities.of(IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + index)), now).unwrap();
        }
        assert!(localities.recent.lock().unwrap().len() <= REMEMBERED);
    }
}
