//! Determines whether an address is one of this machine's own, and whether there is a route to it. It asks the
//! kernel at the moment it matters, without privilege and without a packet.
//!
//! Netlink would answer directly, but the sandbox bars AF_NETLINK, and a list of interface addresses read
//! beforehand may be stale when it is used. `bind` to the address is not a test: the sysctl `ip_nonlocal_bind`
//! lets every bind succeed. An ordinary UDP socket reveals it instead:
//!
//! * IPv4: IP_MULTICAST_IF with an address (ip(7)) looks the address up among the interfaces and in
//!   the local routing table, and fails with EADDRNOTAVAIL if it is in neither. Comparing the source
//!   that `connect` picks would miss secondary addresses: the kernel answers those from the primary
//!   address of the subnet.
//! * IPv6: `connect` to an own address makes the kernel pick that very address as source (RFC 6724,
//!   rule 1), which getsockname(2) shows; it also shows whether there is a route. It does not detect whole
//!   prefixes that somebody routed to `lo` (`ip -6 route add local`).

use crate::lock::lock;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long an answer of the kernel counts as current.
pub(super) const FRESH: Duration = Duration::from_secs(2);

/// Bound on remembered addresses; an entry takes about 40 bytes.
const REMEMBERED: usize = 8192;

/// Where an address is, seen from this machine.
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
#[derive(Debug)]
pub(super) struct Localities {
    recent: Mutex<Recent>,
    /// These never send. Opened once, so that they exist when file descriptors run out.
    v4: Socket,
    /// Only one thread at a time connects and disconnects it; `None` if the kernel has no IPv6.
    v6: Option<Mutex<Socket>>,
}

impl Localities {
    /// Opens the sockets that query the kernel.
    pub(super) fn open() -> io::Result<Localities> {
        let v4 = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        let v6 = match Socket::new(Domain::IPV6, Type::DGRAM, None) {
            Ok(socket) => Some(Mutex::new(socket)),
            Err(error) if is(&error, Errno::AFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Localities { recent: Mutex::default(), v4, v6 })
    }

    /// Returns where `address` is. An error means that the kernel did not answer.
    pub(super) fn of(&self, address: IpAddr, now: Instant) -> io::Result<Locality> {
        // To the kernel, a v4-mapped address is the IPv4 address in it.
        let address = address.to_canonical();
        if let Some((asked, locality)) = self.recent().get(&address)
            && now.saturating_duration_since(*asked) < FRESH
        {
            return Ok(*locality);
        }
        let locality = match address {
            IpAddr::V4(address) => probe_v4(&self.v4, address)?,
            IpAddr::V6(address) => match &self.v6 {
                Some(socket) => probe_v6(&lock(socket), address)?,
                None => Locality::Unroutable,
            },
        };
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
        lock(&self.recent)
    }
}

type Recent = HashMap<IpAddr, (Instant, Locality), foldhash::fast::RandomState>;

/// The discard port (RFC 863); `connect` on UDP sends nothing, so any port would do.
const PORT: u16 = 9;

fn probe_v4(socket: &Socket, address: Ipv4Addr) -> io::Result<Locality> {
    if address.is_unspecified() {
        // To connect(2), 0.0.0.0 is this machine; the option below does not accept it as an address.
        return Ok(Locality::Ours);
    }
    match socket.set_multicast_if_v4(&address) {
        Ok(()) => Ok(Locality::Ours),
        Err(error) if is(&error, Errno::ADDRNOTAVAIL) => Ok(Locality::Elsewhere),
        Err(error) => Err(error),
    }
}

#[expect(clippy::disallowed_methods, reason = "asks the kernel for its route; connect on UDP sends nothing")]
fn probe_v6(socket: &Socket, address: Ipv6Addr) -> io::Result<Locality> {
    if address.is_unspecified() {
        return Ok(Locality::Ours);
    }
    let connected = socket.connect(&SocketAddrV6::new(address, PORT, 0, 0).into());
    let source = connected.and_then(|()| socket.local_addr());
    // Otherwise the source chosen now would stay for the next address.
    rustix::net::connect_unspec(socket)?;
    match source {
        Ok(source) if source.as_socket_ipv6().is_some_and(|source| *source.ip() == address) => Ok(Locality::Ours),
        Ok(_) => Ok(Locality::Elsewhere),
        Err(error) if is_unroutable(&error) => Ok(Locality::Unroutable),
        Err(error) => Err(error),
    }
}

/// Whether `connect` reports that no route leads to a foreign address, or one that prohibits it.
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
        Localities::open().unwrap().of(text.parse().unwrap(), Instant::now()).unwrap()
    }

    #[test]
    fn every_address_of_the_loopback_network_is_ours() {
        for text in ["127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "::ffff:127.0.0.1", "::"] {
            assert_eq!(locality(text), Locality::Ours, "{text}");
        }
    }

    /// Returns the kernel's own list; empty if /proc does not show it.
    fn listed_by_the_kernel() -> Vec<IpAddr> {
        let trie = std::fs::read_to_string("/proc/self/net/fib_trie").unwrap_or_default();
        let lines: Vec<&str> = trie.lines().map(str::trim).collect();
        let v4 =
            lines.windows(2).filter(|pair| pair[1] == "/32 host LOCAL").filter_map(|pair| pair[0].strip_prefix("|-- "));
        let v4 = v4.map(|text| text.parse().unwrap());
        let inet6 = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
        let v6 = inet6.lines().filter_map(|line| u128::from_str_radix(line.get(..32)?, 16).ok());
        // Link-local addresses cannot be probed without a zone; the floor contains them.
        let v6 = v6.map(Ipv6Addr::from_bits).filter(|address| !address.is_unicast_link_local()).map(IpAddr::V6);
        v4.chain(v6).collect()
    }

    #[test]
    fn every_address_that_the_kernel_lists_is_ours_secondary_ones_included() {
        for address in listed_by_the_kernel() {
            assert_eq!(Localities::open().unwrap().of(address, Instant::now()).unwrap(), Locality::Ours, "{address}");
        }
    }

    #[test]
    fn a_foreign_address_is_not_ours() {
        for text in ["11.22.33.44", "192.0.2.1", "2606:4700::1111"] {
            assert_ne!(locality(text), Locality::Ours, "{text}");
        }
    }

    #[test]
    fn one_question_leaves_no_trace_in_the_next() {
        let localities = Localities::open().unwrap();
        let Some(socket) = &localities.v6 else { return };
        let socket = socket.lock().unwrap();
        let (own, foreign) = (Ipv6Addr::LOCALHOST, "2606:4700::1111".parse().unwrap());
        if probe_v6(&socket, own).unwrap() != Locality::Ours {
            return; // IPv6 is switched off here.
        }
        let first = probe_v6(&socket, foreign).unwrap();
        for _ in 0..3 {
            assert_eq!(probe_v6(&socket, own).unwrap(), Locality::Ours);
            assert_eq!(probe_v6(&socket, foreign).unwrap(), first);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let localities = Localities::open().unwrap();
        let now = Instant::now();
        for index in 0..20_000u32 {
            localities.of(IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + index)), now).unwrap();
        }
        assert!(localities.recent.lock().unwrap().len() <= REMEMBERED);
    }
}
