//! SOCKS5 (RFC 1928): the same policy as CONNECT, in its own vocabulary.

use crate::world::client::{ACCESS_DENIED, Get};
use crate::world::client_hello::Hello;
use crate::world::{CDN, EVIL, GOOD, World, eventually};
use std::io::Read;
use std::time::Duration;

const RULES: &str = "good.test\ncdn-ok.test\n";
const V4_GOOD: [u8; 5] = [1, 11, 0, 0, 10];

#[test]
#[ignore = "requires root and network namespaces"]
fn a_socks_tunnel_to_an_allowed_name_carries_tls_and_http() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let (reply, wire) = world.guest.socks_name("good.test", 443);
    assert_eq!(reply, Some(0));
    assert_eq!(wire.tls("good.test").unwrap().get("good.test", "/").unwrap().status, 200);
    let (reply, mut wire) = world.guest.socks_name("GOOD.test.", 80);
    assert_eq!(reply, Some(0));
    wire.say("GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
    assert_eq!(wire.hear("GET").status, 200);
    world.assert_asked_only(&["good.test"]);
    eventually("both are counted", || {
        outgate.metric("connections_total", &[("listener", "socks"), ("verdict", "allowed")]) >= 2.0
    });
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_name_inside_a_socks_tunnel_must_be_the_tunnels() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let (_, mut wire) = world.guest.socks_name("cdn-ok.test", 443);
    wire.say(Hello::naming("cdn-bad.test").record());
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    assert_eq!(world.internet.bytes(CDN), 0);
    outgate.await_counted("denied", "name_mismatch", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bind_udp_and_addresses_get_their_own_replies() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    assert_eq!(world.guest.socks(2, &V4_GOOD, 443).0, Some(7), "BIND");
    assert_eq!(world.guest.socks(3, &V4_GOOD, 443).0, Some(7), "UDP ASSOCIATE");
    assert_eq!(world.guest.socks(9, &V4_GOOD, 443).0, Some(7), "a command that does not exist");
    assert_eq!(world.guest.socks(1, &V4_GOOD, 443).0, Some(2), "an address that no rule allows");
    assert_eq!(world.guest.socks(1, &[2, 1, 2, 3], 443).0, Some(8), "an address type that does not exist");
    let v6 = [&[4][..], &"2600:10::10".parse::<std::net::Ipv6Addr>().unwrap().octets()].concat();
    assert_eq!(world.guest.socks(1, &v6, 443).0, Some(2));
    assert_eq!(world.guest.socks_name("evil.test", 443).0, Some(2));
    assert_eq!(world.guest.socks_name("good.test", 22).0, Some(2));
    assert!(world.internet.all().is_empty() && world.dns.log().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_address_that_a_rule_allows_is_dialled() {
    let world = World::new();
    let _outgate = world.outgate("11.0.0.10\n");
    let (reply, mut wire) = world.guest.socks(1, &V4_GOOD, 80);
    assert_eq!(reply, Some(0));
    wire.say("GET / HTTP/1.1\r\nHost: 11.0.0.10\r\nConnection: close\r\n\r\n");
    assert_eq!(wire.hear("GET").status, 200);
    assert!(world.dns.log().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn domain_bytes_that_are_not_a_name_are_refused() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let names: [&[u8]; 9] = [
        b"evil.test\0.good.test",
        b"good.test\0",
        b"",
        b"good.test\r\n",
        b"11.0.0.10.",
        b"2130706433",
        b"g\xff\xfe.test",
        b"good.test:443",
        b"*.good.test",
    ];
    for name in names {
        let (reply, mut wire) = world.guest.socks_name(name, 443);
        assert!(!matches!(reply, Some(0)), "{:?}", String::from_utf8_lossy(name));
        assert!(wire.is_over());
    }
    let (reply, _) = world.guest.socks_name("a".repeat(255), 443);
    assert_ne!(reply, Some(0));
    assert!(world.internet.all().is_empty() && world.dns.log().is_empty());
    outgate.await_counted("denied", "malformed", 10.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn only_socks5_without_authentication_is_accepted() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    wire.say([5, 1, 2]);
    let mut reply = [0u8; 2];
    assert!(wire.read_exact(&mut reply).is_err() || reply == [5, 0xff], "no method in common: {reply:?}");
    for bytes in [&[4, 1, 1, 187, 11, 0, 0, 10, 0][..], &[5, 0], &[5, 1, 0, 4, 1, 0, 1, 11, 0, 0, 10, 1, 187], &[0; 20]]
    {
        let mut wire = world.guest.proxy();
        wire.say(bytes);
        assert!(wire.is_over(), "{bytes:?}");
    }
    assert!(world.internet.all().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn every_refusal_after_the_greeting_is_a_socks5_reply() {
    let world = World::new();
    let outgate = world.setup(RULES).tables("[limits]\nhandshake_timeout_ms = 1500").start();
    let greeted = || {
        let mut wire = world.guest.proxy();
        wire.say([5, 1, 0]);
        assert_eq!(wire.take_bytes(2), [5, 0]);
        wire
    };
    let general_failure = [5, 1, 0, 1, 0, 0, 0, 0, 0, 0];
    for request in [&[4, 1, 0, 80, 11, 0, 0, 10, 0][..], &[0; 10], b"GET / HTTP/1.1\r\n\r\n", &[6, 1, 0, 1], &[5, 1, 9]]
    {
        let mut wire = greeted();
        wire.say(request);
        assert_eq!(wire.rest().unwrap(), general_failure, "{request:?}");
    }
    let mut cut = greeted();
    cut.say([5, 1, 0, 3]);
    cut.finish();
    assert_eq!(cut.rest().unwrap(), general_failure, "the guest's end within its request");
    let mut slow = greeted();
    slow.say([5, 1]);
    assert_eq!(slow.rest().unwrap()[..2], [5, 4], "too slow");
    assert!(world.internet.all().is_empty());
    outgate.await_counted("denied", "malformed", 6.0);
    outgate.await_log(&[("listener", "socks"), ("cause", "the version in the request is not 5")]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_handshake_in_single_bytes_or_in_one_piece_is_understood() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let request = [&[5, 1, 0, 5, 1, 0, 3, 9][..], b"good.test", &[0, 80]].concat();
    let http = b"GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n";
    let mut slow = world.guest.proxy();
    slow.say_slowly(request.chunks(1), Duration::from_millis(3));
    let mut quick = world.guest.proxy();
    quick.say([&request[..], http].concat());
    slow.say(http);
    for wire in [&mut slow, &mut quick] {
        assert_eq!(wire.take_bytes(2), [5, 0]);
        assert_eq!(wire.take_bytes(10)[..2], [5, 0]);
        assert_eq!(wire.hear("GET").status, 200);
    }
    assert_eq!(world.internet.requests(GOOD).len(), 2);
    world.assert_untouched(EVIL);
}
