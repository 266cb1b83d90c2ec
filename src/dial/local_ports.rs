//! Selects the port to connect from.
//!
//! The kernel selects one, but never one whose pair with the remote address is still in TIME_WAIT for its
//! minute. Guests can cause such pairs: when a guest ends a tunnel first, we end the connection to the upstream
//! first. So when the kernel has no port left, this module selects one. A port that was bound by its number may
//! be paired with the same remote address again while the former connection waits, if both sides use timestamps
//! (RFC 6191, RFC 7323 §5.8).

use arc_swap::ArcSwapOption;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How many ports are tried. Most ports in use are in TIME_WAIT, so the first few will do.
const TRIES: u16 = 64;
/// How long the kernel is not asked first after it had no port left: it checks all ports before it fails, which
/// takes milliseconds.
const SHORT: Duration = Duration::from_secs(5);
/// Shares no divisor with most numbers of ports, so that the tries spread.
const STEP: u16 = 7919;

/// The ports to select from; set while the kernel is short of ports.
static SHORTAGE: ArcSwapOption<Shortage> = ArcSwapOption::const_empty();

struct Shortage {
    until: Instant,
    ports: Ports,
}

/// The ports for outgoing connections (ip(7), `ip_local_port_range` and `ip_local_reserved_ports`).
#[derive(Debug, PartialEq, Eq)]
struct Ports {
    all: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
}

/// Connects to `address`.
#[expect(clippy::disallowed_methods, reason = "dial::connect calls it, with a vetted address")]
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let known = SHORTAGE.load_full().filter(|shortage| Instant::now() < shortage.until);
    if let Some(shortage) = &known
        && let Some(connected) = pick(&shortage.ports, address).await
    {
        return connected;
    }
    let connected = super::socket(address)?.connect(address).await;
    match connected {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && known.is_none() => {
            let ports = Ports::read();
            let picked = pick(&ports, address).await;
            // If that does not help either, there is no address to connect from.
            if picked.is_some() {
                SHORTAGE.store(Some(Arc::new(Shortage { until: Instant::now() + SHORT, ports })));
            }
            picked.unwrap_or(Err(error))
        }
        other => other,
    }
}

/// Connects from a port selected here; `None` if every port tried is in use.
#[expect(clippy::disallowed_methods, reason = "dial::connect calls it, with a vetted address")]
async fn pick(ports: &Ports, address: SocketAddr) -> Option<io::Result<TcpStream>> {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    for port in ports.tries(RandomState::new().hash_one(address)) {
        let Ok(socket) = super::socket(address) else { return None };
        if socket.bind(SocketAddr::new(any, port)).is_err() {
            continue;
        }
        match socket.connect(address).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse) => {}
            other => return Some(other),
        }
    }
    None
}

impl Ports {
    /// Reads the kernel's current settings. Reading /proc does not block.
    fn read() -> Ports {
        let text = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        Ports::parse(&text("ip_local_port_range"), &text("ip_local_reserved_ports"))
    }

    fn parse(range: &str, reserved: &str) -> Ports {
        let mut ends = range.split_whitespace().map_while(|end| end.parse().ok());
        let all = match (ends.next(), ends.next()) {
            (Some(first), Some(last)) => first..=last,
            // The kernel's own default.
            _ => 32768..=60999,
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
        };
        Ports { all, reserved: reserved.split(',').filter_map(range).collect() }
    }

    /// Returns ports to try, in an order that depends on `seed`.
    fn tries(&self, seed: u64) -> impl Iterator<Item = u16> {
        let (first, last) = (*self.all.start(), *self.all.end());
        let count = u64::from(last.saturating_sub(first)) + 1;
        let port = move |turn: u16| {
            let offset = seed.wrapping_add(u64::from(turn) * u64::from(STEP)) % count;
            first.saturating_add(u16::try_from(offset).unwrap_or(0))
        };
        (0..TRIES).map(port).filter(|port| !self.reserved.iter().any(|range| range.contains(port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_ranges_are_read() {
        let ports = Ports::parse("32768\t60999\n", "40000-40010,50000\n");
        assert_eq!(ports, Ports { all: 32768..=60999, reserved: vec![40000..=40010, 50000..=50000] });
        assert_eq!(Ports::parse("", "\n"), Ports { all: 32768..=60999, reserved: Vec::new() });
    }

    #[test]
    fn tries_are_within_the_range_and_none_is_reserved() {
        let ports = Ports { all: 1000..=1009, reserved: vec![1003..=1004] };
        for seed in [0, 7, u64::MAX] {
            let mut tried: Vec<u16> = ports.tries(seed).collect();
            tried.sort_unstable();
            tried.dedup();
            assert_eq!(tried, [1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009]);
        }
        let one = Ports { all: 65535..=65535, reserved: Vec::new() };
        assert!(one.tries(3).all(|port| port == 65535));
    }
}
