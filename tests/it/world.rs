//! The test world: two guests, a gateway and an "internet", each a network namespace of its own.
//!
//! ```text
//! guest 1  10.42.42.2 fd42::2 ─┐
//!                              ├─ gateway  10.42.42.1 fd42::1 | 11.0.0.1 2600:10::1 ── internet
//! guest 2  10.42.42.3 fd42::3 ─┘
//! ```
//!
//! The gateway forwards nothing, so what reaches the internet was dialled by outgate. The internet's
//! addresses look public because the address floor must not be opened for a test. A thread that
//! enters a namespace makes sockets there; they stay there when the thread is gone, so clients and
//! origins are ordinary code of the test process. Each test has a world of its own.

pub mod client;
pub mod client_hello;
pub mod dns;
pub mod firewall_watcher;
pub mod guarded_network;
pub mod http;
pub mod namespace;
pub mod openssl;
pub mod origin;
pub mod outgate;
pub mod pki;
pub mod ran;
pub mod service_manager;
pub mod stub_resolver;
pub mod tls_site;
pub mod vmnet;

use client::Guest;
use dns::Dns;
use namespace::Namespace;
use origin::Internet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Serves the names that rules allow.
pub const GOOD: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 10);
/// GOOD over IPv6.
pub const GOOD6: &str = "2600:10::10";
/// Shared by allowed and other names, as a CDN is.
pub const CDN: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 20);
/// The address of servers that a test scripts.
pub const ODD: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 30);
/// The DNS server.
pub const DNS: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 53);
/// Takes DNS queries and never answers.
pub const DEAF: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 54);
/// What no rule allows.
pub const EVIL: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 66);
/// The gateway as guests see it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 42, 1);
/// The gateway's proxy listener.
pub const PROXY: &str = "10.42.42.1:3128";
/// The gateway's admin listener.
pub const ADMIN: &str = "127.0.0.1:3190";

/// How long a test waits for what must happen. Generous, because the machine may be busy; no test
/// depends on how quick something was.
pub const PATIENCE: Duration = Duration::from_secs(15);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One world; all of it is removed when it is dropped.
pub struct World {
    /// 10.42.42.2
    pub guest: Guest,
    /// 10.42.42.3
    pub neighbour: Guest,
    /// Where outgate runs.
    pub gateway: Arc<Namespace>,
    /// The origins and what they saw.
    pub internet: Internet,
    /// The DNS server and what it was asked.
    pub dns: Dns,
}

impl World {
    /// Builds a world. It fails without root.
    pub fn new() -> World {
        crate::rights::require();
        namespace::sweep();
        let stem = format!("{}{}-{}", namespace::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let [guest, neighbour, gateway, internet] =
            Namespace::create([format!("{stem}-a"), format!("{stem}-b"), format!("{stem}-gw"), format!("{stem}-in")]);
        wire(&guest, &neighbour, &gateway, &internet);
        let dns = Dns::start(&internet, DNS);
        for (name, address) in [
            ("good.test", GOOD),
            ("*.good.test", GOOD),
            ("other.test", GOOD),
            ("cdn-ok.test", CDN),
            ("cdn-bad.test", CDN),
            ("odd.test", ODD),
            ("evil.test", EVIL),
            ("*.evil.test", EVIL),
        ] {
            dns.set(name, [address]);
        }
        World {
            guest: Guest::new(guest, Ipv4Addr::new(10, 42, 42, 2)),
            neighbour: Guest::new(neighbour, Ipv4Addr::new(10, 42, 42, 3)),
            gateway: Arc::new(gateway),
            internet: Internet::start(internet),
            dns,
        }
    }

    /// Nothing reached `address`: no connection, and so no byte.
    #[track_caller]
    pub fn assert_untouched(&self, address: impl Into<IpAddr>) {
        let seen = self.internet.seen(address);
        assert!(seen.is_empty(), "nothing may reach this address, but {seen:?} did");
    }

    /// DNS was asked for these names, each at least once, and for nothing else.
    #[track_caller]
    pub fn assert_asked_only(&self, names: &[&str]) {
        let mut asked = self.dns.names();
        asked.dedup();
        let mut wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        wanted.sort();
        assert_eq!(asked, wanted, "the names that DNS was asked for");
    }
}

fn wire(guest: &Namespace, neighbour: &Namespace, gateway: &Namespace, internet: &Namespace) {
    let (g, a, b, i) = (gateway.name(), guest.name(), neighbour.name(), internet.name());
    namespace::batch(
        None,
        &format!(
            "link add name g1 netns {g} type veth peer name eth0 netns {a}\n\
         link add name g2 netns {g} type veth peer name eth0 netns {b}\n\
         link add name up0 netns {g} type veth peer name eth0 netns {i}\n"
        ),
    );
    for (namespace, last) in [(guest, 2), (neighbour, 3)] {
        namespace::batch(
            Some(namespace),
            &format!(
                "link set lo up\nlink set eth0 up\n\
             addr add 10.42.42.{last}/24 dev eth0\naddr add fd42::{last}/64 dev eth0 nodad\n\
             route add default via 10.42.42.1\nroute add default via fd42::1\n"
            ),
        );
    }
    namespace::batch(
        Some(gateway),
        "link set lo up\nlink set g1 up\nlink set g2 up\nlink set up0 up\n\
         addr add 10.42.42.1 peer 10.42.42.2 dev g1\naddr add 10.42.42.1 peer 10.42.42.3 dev g2\n\
         addr add fd42::1 peer fd42::2 dev g1 nodad\naddr add fd42::1 peer fd42::3 dev g2 nodad\n\
         addr add 11.0.0.1/24 dev up0\naddr add 2600:10::1/64 dev up0 nodad\n",
    );
    let mut addresses = String::from("link set lo up\nlink set eth0 up\n");
    for address in [GOOD, CDN, ODD, DNS, DEAF, EVIL] {
        addresses.push_str(&format!("addr add {address}/24 dev eth0\n"));
    }
    for last in ["10", "20", "30", "66"] {
        addresses.push_str(&format!("addr add 2600:10::{last}/64 dev eth0 nodad\n"));
    }
    namespace::batch(Some(internet), &addresses);
    gateway.run(|| {
        for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            std::fs::write(path, "0").expect("forwarding is off in the gateway");
        }
    });
}

/// Sets a flag when it ends, even by a panic, so that no thread waits forever.
pub struct Raise<'f>(pub &'f AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Waits until `done` holds; fails with `what` when it does not within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < give_up, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
