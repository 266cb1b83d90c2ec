//! A sample of what guests send and load, end to end: by the firewall, the listeners and the dial.

use crate::world::client::{ACCESS_DENIED, Get};
use crate::world::client_hello::{Hello, record};
use crate::world::dns::{A, AAAA};
use crate::world::guarded_network::{EVIL6, GuardedNetwork, STRANGER, STRANGER6};
use crate::world::http::{digest, pattern};
use crate::world::{CDN, EVIL, GOOD, GOOD6};
use std::net::{IpAddr, Ipv6Addr};

/// Bytes of a large transfer.
const LARGE: usize = 64 << 20;

#[test]
#[ignore = "requires root and network namespaces"]
fn hellos_that_show_no_name_or_hide_it_or_never_end_are_refused() {
    let network = GuardedNetwork::new();
    let outgate = network.start(network.setup("good.test\n"));
    let cases = [
        ("no server name", Hello::nameless().record(), "no_name"),
        ("an empty list", Hello::nameless().entries(&[]).record(), "malformed"),
        ("an empty name", Hello::naming("").record(), "malformed"),
        ("another type first", Hello::nameless().entries(&[(7, b"x"), (0, b"good.test")]).record(), "malformed"),
        ("ECH under an allowed name", Hello::naming("good.test").ech().record(), "ech"),
        ("16 MiB announced", record(22, &[1, 0xff, 0xff, 0xff, 3, 3]), "malformed"),
        ("empty records", record(22, &[]).repeat(1000), "malformed"),
    ];
    for (what, hello, reason) in &cases {
        let before = outgate.counted("denied", reason);
        for (guest, to) in [(&network.one, IpAddr::from(GOOD)), (&network.three, GOOD6.parse().unwrap())] {
            let mut wire = guest.dial(to, 443).unwrap();
            wire.say(hello);
            assert_eq!(wire.alert(), Some(ACCESS_DENIED), "{what}, {to}");
        }
        outgate.await_counted("denied", reason, before + 2.0);
    }
    assert!(network.internet.all().is_empty());
    assert_eq!(network.dns.log(), []);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn requests_on_one_connection_are_judged_one_by_one_and_a_websocket_passes() {
    let network = GuardedNetwork::new();
    let _outgate = network.start(network.setup("good.test\ncdn-ok.test\n"));
    let get = |host: &str| format!("GET /hi HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for (guest, evil) in [(&network.one, IpAddr::from(EVIL)), (&network.three, EVIL6.into())] {
        let mut wire = guest.dial(evil, 80).unwrap();
        wire.say([get("good.test"), get("evil.test"), get("cdn-ok.test")].concat());
        let statuses = [(); 3].map(|()| wire.hear("GET").status);
        assert_eq!(statuses, [200, 403, 200]);
        wire.say(
            "GET /websocket HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        assert_eq!(wire.hear("GET").status, 101);
        for frame in [&b"\x81\x85\x01\x02\x03\x04igonn"[..], b"\x82\x00\xff\xfe"] {
            wire.say(frame);
            assert_eq!(wire.take_bytes(frame.len()), frame);
        }
        wire.finish();
        assert!(wire.is_over());
    }
    let hosts: Vec<_> = network.internet.requests(CDN).iter().map(|request| request.header("host").concat()).collect();
    assert_eq!(hosts, ["cdn-ok.test", "cdn-ok.test"]);
    network.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_with_only_ipv6_addresses_is_reached_over_ipv6_whatever_the_guest_connects_to() {
    let network = GuardedNetwork::new();
    let _outgate = network.start(network.setup("only6.test\n"));
    let good6: Ipv6Addr = GOOD6.parse().unwrap();
    network.one.ask_at(STRANGER, "only6.test", A).assert_no_data();
    network.one.ask_at(STRANGER6, "only6.test", AAAA).assert_is([good6]);
    assert_eq!(network.one.https(good6, "only6.test").unwrap(), 200);
    assert_eq!(network.three.http(EVIL, "only6.test").status, 200);
    assert_eq!((network.internet.seen(good6).len(), network.internet.seen(GOOD).len()), (2, 0));
    network.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn large_transfers_arrive_whole_both_ways() {
    let network = GuardedNetwork::new();
    let _outgate = network.start(network.setup("good.test\n"));
    let body = pattern(LARGE);
    let mut tls = network.one.dial(GOOD, 443).unwrap().tls("good.test").unwrap();
    let response = tls.get("good.test", &format!("/bytes/{LARGE}")).unwrap();
    assert!(response.body == body, "{} bytes came down, or not those", response.body.len());
    let mut wire = network.three.dial(EVIL6, 80).unwrap();
    wire.say(format!("POST /upload HTTP/1.1\r\nHost: good.test\r\nContent-Length: {LARGE}\r\n\r\n"));
    let mut sender = wire.clone_sender();
    std::io::Write::write_all(&mut sender, &body).unwrap();
    assert_eq!(wire.hear("POST").text(), format!("{LARGE} {:x}", digest(0, &body)));
}
