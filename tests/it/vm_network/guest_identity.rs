//! How guests are identified by interface and address.

use crate::world::client::{ACCESS_DENIED, Guest, Wire};
use crate::world::client_hello::Hello;
use crate::world::dns::A;
use crate::world::guarded_network::{GuardedNetwork, STRANGER, STRANGER6};
use crate::world::stub_resolver::{SILENCE, query, receive};
use crate::world::vmnet::shell;
use crate::world::{CDN, EVIL, GOOD, eventually};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

const GUESTS: &str = "[[guest]]\nname = \"a\"\ninterface = \"p1\"\naddresses = [\"10.42.42.2\", \"fd42::2\"]\n\
                      whitelist = [\"a.rules\"]\n\
                      [[guest]]\nname = \"b\"\ninterface = \"r3\"\naddresses = [\"10.43.0.3\", \"fd43::3\"]\n\
                      whitelist = [\"b.rules\"]\n";

/// A connection from an address of the guest's choice.
fn dial_from(guest: &Guest, source: IpAddr, to: SocketAddr, wait: Duration) -> io::Result<Wire> {
    let socket = guest.namespace.run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&to.into(), wait)?;
    Wire::new(socket.into())
}

#[track_caller]
fn assert_has(guest: &Guest, name: &str, address: IpAddr) {
    assert_eq!(guest.ask_at(STRANGER, name, A).addresses, [address]);
    assert_eq!(guest.https(EVIL, name).unwrap(), 200, "{name} by TLS");
    assert_eq!(guest.http(EVIL, name).status, 200, "{name} by HTTP");
}

#[track_caller]
fn assert_has_not(guest: &Guest, name: &str, address: IpAddr, reason: &str) {
    for server in [IpAddr::from(STRANGER), STRANGER6.into()] {
        guest.ask_at(server, name, A).assert_blocked(reason);
    }
    assert_eq!(guest.tls_refusal(address, name), Some(ACCESS_DENIED), "{name} by TLS");
    let response = guest.http(address, name);
    assert_eq!((response.status, response.reason().as_str()), (403, reason), "{name} by HTTP");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn each_guest_has_its_own_names_and_an_undeclared_one_has_none() {
    let network = GuardedNetwork::new();
    let setup = network.setup("shared.test\n").tables(GUESTS);
    let outgate = network.start(setup.file("a.rules", "good.test\n").file("b.rules", "cdn-ok.test\n"));
    assert_has(&network.one, "good.test", GOOD.into());
    assert_has(&network.three, "cdn-ok.test", CDN.into());
    let served = (network.internet.seen(GOOD).len(), network.internet.seen(CDN).len());
    network.dns.forget();
    assert_has_not(&network.one, "cdn-ok.test", CDN.into(), "not_whitelisted");
    assert_has_not(&network.three, "good.test", GOOD.into(), "not_whitelisted");
    for name in ["good.test", "cdn-ok.test", "shared.test"] {
        assert_has_not(&network.four, name, GOOD.into(), "unknown_guest");
        assert_has_not(&network.two, name, GOOD.into(), "unknown_guest");
    }
    assert!(network.four.is_reset(GOOD, 22));
    assert_eq!(network.dns.log(), []);
    assert_eq!((network.internet.seen(GOOD).len(), network.internet.seen(CDN).len()), served);
    network.assert_no_leaks();
    for (guest, name) in [("a", "good.test"), ("b", "cdn-ok.test")] {
        outgate.await_log(&[("guest", guest), ("name", name), ("verdict", "allowed")]);
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn with_another_guests_address_a_guest_reaches_nothing() {
    let network = GuardedNetwork::new();
    let setup = network.setup("").tables(GUESTS);
    let _outgate = network.start(setup.file("a.rules", "cdn-ok.test\n").file("b.rules", "good.test\n"));
    // What b may, for a, for an undeclared one on a's bridge, and for one with an interface of its own.
    for guest in [&network.one, &network.two, &network.four] {
        shell(&guest.namespace, "ip addr add 10.43.0.3/32 dev eth0; ip addr add fd43::3/128 dev eth0 nodad");
        let before = network.net.counted("spoofed");
        for (source, to, server) in [
            ("10.43.0.3", SocketAddr::new(GOOD.into(), 443), SocketAddr::new(STRANGER.into(), 53)),
            ("fd43::3", "[2600:10::10]:443".parse().unwrap(), SocketAddr::new(STRANGER6.into(), 53)),
        ] {
            let source: IpAddr = source.parse().unwrap();
            let error = dial_from(guest, source, to, SILENCE).map(|_| ()).expect_err("it is dropped");
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{source}");
            let socket = guest.namespace.run(|| UdpSocket::bind((source, 0))).unwrap();
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket.send(&query("good.test", A).bytes()).unwrap();
            assert_eq!(receive(&socket), None);
        }
        eventually("each is counted", || network.net.counted("spoofed") >= before + 4);
    }
    assert_eq!((network.dns.log().len(), network.internet.all().len()), (0, 0));
    // The owner has what is its own.
    assert_has(&network.three, "good.test", GOOD.into());
    network.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_ipv6_64_is_one_guest_to_the_limits() {
    let network = GuardedNetwork::new();
    let outgate = network.start(network.setup("good.test\n").tables("[limits]\nconnections = 1\n"));
    shell(&network.one.namespace, "ip addr add fd42::abcd/64 dev eth0 nodad");
    let to: SocketAddr = "[2600:10::10]:443".parse().unwrap();
    let from = |guest: &Guest, source: &str| {
        let mut wire = dial_from(guest, source.parse().unwrap(), to, Duration::from_secs(15)).unwrap();
        wire.say(Hello::naming("good.test").record());
        wire
    };
    let _held = dial_from(&network.one, "fd42::2".parse().unwrap(), to, Duration::from_secs(15)).unwrap();
    eventually("the first has the place", || outgate.metric("active_connections", &[]) == 1.0);
    assert_eq!(from(&network.one, "fd42::abcd").alert(), Some(ACCESS_DENIED));
    outgate.await_counted("denied", "limit_connections", 1.0);
    // Another /64 has a place of its own.
    assert_eq!(network.three.https(to.ip(), "good.test").unwrap(), 200);
}
