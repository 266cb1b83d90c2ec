//! Tunnels beyond TLS: what may be spoken in them, who may speak first, how they end.

use crate::world::client::{ACCESS_DENIED, Get};
use crate::world::client_hello::Hello;
use crate::world::http::{digest, pattern};
use crate::world::{CDN, EVIL, GOOD, ODD, World, eventually};
use std::io::Write;
use std::time::Duration;

const RULES: &str = "good.test\ncdn-ok.test\nodd.test\ntcp://odd.test:22\ntcp://odd.test:7\n";

#[test]
#[ignore = "requires root and network namespaces"]
fn plain_http_through_a_tunnel_to_443_is_the_wrong_protocol() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.tunnel("good.test:443");
    wire.say("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n");
    let refusal = wire.hear("GET");
    assert!(refusal.status == 0 || (refusal.status == 403 && refusal.reason() == "protocol_not_allowed"));
    assert_eq!(world.internet.bytes(GOOD), 0);
    outgate.await_counted("denied", "protocol_not_allowed", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bytes_that_are_neither_tls_nor_http_need_a_tcp_rule() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut random = pattern(600);
    random[0] = 0xC1;
    for (port, bytes) in [
        (443, b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        (443, random.clone()),
        (443, b"EHLO guest\r\n".to_vec()),
        (80, random),
        (80, b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
    ] {
        let mut wire = world.guest.tunnel(&format!("good.test:{port}"));
        wire.say(&bytes);
        assert!(wire.is_over(), "{port}: {:?}", String::from_utf8_lossy(&bytes[..10]));
    }
    assert_eq!(world.internet.bytes(GOOD), 0);
    eventually("five refusals are counted", || outgate.metric("connections_total", &[("verdict", "denied")]) == 5.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn tls_through_a_tunnel_to_80_is_the_wrong_protocol() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.tunnel("good.test:80");
    wire.say(Hello::naming("good.test").record());
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    assert_eq!(world.internet.bytes(GOOD), 0);
    outgate.await_counted("denied", "protocol_not_allowed", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn http_in_a_tunnel_is_judged_request_by_request() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.tunnel("good.test:80");
    for turn in 0..3 {
        wire.say(format!("GET /{turn} HTTP/1.1\r\nHost: good.test\r\n\r\n"));
        assert_eq!(wire.hear("GET").text(), "hello\n", "turn {turn}");
    }
    wire.say("GET /stolen HTTP/1.1\r\nHost: evil.test\r\n\r\n");
    let refusal = wire.hear("GET");
    assert_eq!((refusal.status, refusal.reason().as_str()), (400, "name_mismatch"));
    let targets: Vec<String> = world.internet.requests(GOOD).into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/0", "/1", "/2"]);

    let mut wire = world.guest.tunnel("cdn-ok.test:80");
    wire.say(
        "GET /a HTTP/1.1\r\nHost: cdn-ok.test\r\n\r\n\
         GET /b HTTP/1.1\r\nHost: cdn-bad.test\r\n\r\n",
    );
    assert_eq!(wire.hear("GET").status, 200);
    assert_eq!(wire.hear("GET").status, 400, "pipelined, too");
    assert!(world.internet.requests(CDN).iter().all(|request| request.target == "/a"));
    world.assert_asked_only(&["cdn-ok.test", "good.test"]);
    outgate.await_counted("denied", "name_mismatch", 2.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_whole_uri_in_a_tunnel_must_be_of_the_tunnels_host() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let cases = [
        ("evil.test", "evil.test"),
        ("cdn-ok.test", "cdn-ok.test"),
        ("good.test:8080", "good.test:8080"),
        ("evil.test", "good.test"),
        ("good.test", "evil.test"),
    ];
    for (uri, host) in cases {
        let mut wire = world.guest.tunnel("good.test:80");
        wire.say(format!("GET http://{uri}/stolen HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let refusal = wire.hear("GET");
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "name_mismatch"), "{uri}, {host}");
        assert!(wire.is_over(), "{uri}, {host}");
    }
    assert_eq!(world.internet.bytes(GOOD) + world.internet.bytes(CDN), 0);
    world.assert_asked_only(&["good.test"]);
    outgate.await_counted("denied", "name_mismatch", cases.len() as f64);

    let mut wire = world.guest.tunnel("good.test:80");
    wire.say("GET http://good.test/own HTTP/1.1\r\nHost: good.test\r\n\r\n");
    assert_eq!(wire.hear("GET").status, 200);
    assert_eq!(world.internet.requests(GOOD)[0].target, "/own", "in origin form");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_vanished_guest_is_noticed_even_if_the_server_is_silent() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    for port in [7, 80, 443] {
        world.internet.sink((ODD, port));
    }
    let hello = Hello::naming("odd.test").record();
    let request = b"GET / HTTP/1.1\r\nHost: odd.test\r\n\r\n";
    for (what, port, said) in [
        ("nothing said", 7, &b""[..]),
        ("raw bytes", 7, b"some raw bytes"),
        ("a hello without an answer", 443, &hello),
        ("a request without an answer", 80, request),
    ] {
        let before = world.internet.seen(ODD).len();
        let mut wire = world.guest.tunnel(&format!("odd.test:{port}"));
        wire.say(said);
        eventually(what, || world.internet.seen(ODD).get(before).is_some_and(|seen| seen.count >= said.len() as u64));
        assert!(outgate.flows() >= 1, "{what}: the flow is in the table");
        wire.vanish();
        eventually(&format!("{what}: the flow goes from the table"), || outgate.flows() == 0);
        eventually(&format!("{what}: the origin sees the end"), || world.internet.seen(ODD)[before].ended);
    }
    eventually("no connection is left", || outgate.metric("active_connections", &[]) == 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_server_that_speaks_first_is_relayed_if_a_tcp_rule_allows_it() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    world.internet.serve((ODD, 22), |mut tap| {
        let _ = tap.write_all(b"SSH-2.0-Test\r\n");
        tap.drain();
    });
    let mut wire = world.guest.tunnel("odd.test:22");
    assert_eq!(wire.take_bytes(14), b"SSH-2.0-Test\r\n", "without a byte from the client");
    wire.say("SSH-2.0-Client\r\n");
    eventually("the client is heard", || world.internet.bytes(ODD) == 16);
    drop(wire);
    outgate.await_counted("allowed", "none", 1.0);

    let (refusal, _) = world.guest.connect("good.test:22");
    assert_eq!((refusal.status, refusal.reason().as_str()), (403, "port_not_allowed"));
    assert!(world.internet.seen(GOOD).is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_in_a_raw_tunnel_is_still_checked() {
    let world = World::new();
    let outgate = world.outgate("tcp://odd.test:22\n");
    world.internet.sink((ODD, 22));
    let mut wire = world.guest.tunnel("odd.test:22");
    wire.say(Hello::naming("evil.test").record());
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    let mut wire = world.guest.tunnel("odd.test:22");
    wire.say("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n");
    assert!(wire.is_over());
    // After the time in which a server may speak first.
    let mut wire = world.guest.tunnel("odd.test:22");
    std::thread::sleep(Duration::from_millis(600));
    wire.say(Hello::naming("evil.test").record());
    assert!(wire.is_over());
    assert_eq!(world.internet.bytes(ODD), 0);
    outgate.await_counted("denied", "name_mismatch", 3.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_half_close_is_passed_on_both_ways() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    world.internet.echo((ODD, 7));
    let body = pattern(2_000_000);
    let mut wire = world.guest.tunnel("odd.test:7");
    let mut sender = wire.clone_sender();
    let sent = body.clone();
    let sending = std::thread::spawn(move || {
        sender.write_all(&sent).unwrap();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let back = wire.rest().expect("the echo ends properly, after everything");
    sending.join().unwrap();
    assert_eq!((back.len(), digest(0, &back)), (body.len(), digest(0, &body)));
    assert!(world.internet.seen(ODD)[0].ended);
    outgate.await_counted("allowed", "none", 1.0);
    let line = outgate.await_log(&[("name", "odd.test"), ("verdict", "allowed")]);
    assert_eq!((line["bytes_up"].as_u64(), line["bytes_down"].as_u64()), (Some(2_000_000), Some(2_000_000)));

    world.internet.serve((ODD, 22), |mut tap| {
        let _ = tap.write_all(b"bye");
        tap.finish();
        tap.drain();
    });
    let mut wire = world.guest.tunnel("odd.test:22");
    assert_eq!(wire.rest().unwrap(), b"bye", "the server's end arrives while the client may still send");
    wire.say("still here");
    wire.finish();
    eventually("the server hears the client to its end", || {
        world.internet.seen(ODD).iter().any(|seen| seen.bytes == b"still here" && seen.ended)
    });
}

#[test]
#[ignore = "requires root and network namespaces"]
fn many_megabytes_pass_a_tunnel_unchanged_both_ways() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let mut tls = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
    let body = pattern(6_000_000);
    assert!(tls.get("good.test", "/bytes/6000000").unwrap().body == body, "down");
    write!(tls, "POST /upload HTTP/1.1\r\nHost: good.test\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    tls.write_all(&body).unwrap();
    assert_eq!(tls.get("good.test", "/").unwrap().text(), format!("{} {:x}", body.len(), digest(0, &body)), "up");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_silent_tunnel_ends_at_the_idle_timeout_and_a_busy_one_does_not() {
    let world = World::new();
    let outgate = world.setup(RULES).tables("[limits]\nidle_timeout_s = 2").start();
    world.internet.echo((ODD, 7));
    let mut silent = world.guest.tunnel("odd.test:7");
    let mut busy = world.guest.tunnel("odd.test:7");
    for _ in 0..12 {
        busy.say("x");
        assert_eq!(busy.take_bytes(1), b"x");
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(silent.is_over());
    busy.say("y");
    assert_eq!(busy.take_bytes(1), b"y");
    drop(busy);
    eventually("no connection is left", || outgate.metric("active_connections", &[]) == 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_silent_client_is_cut_off_at_the_handshake_timeout() {
    let world = World::new();
    let outgate = world.setup(RULES).tables("[limits]\nhandshake_timeout_ms = 1000").start();
    let mut nothing = world.guest.proxy();
    let mut half_a_head = world.guest.proxy();
    half_a_head.say("GET http://good.test/ HTTP/1.1\r\nHo");
    let mut half_of_socks = world.guest.proxy();
    half_of_socks.say([5, 1, 0]);
    let mut silent_tunnel = world.guest.tunnel("good.test:443");
    for (what, wire) in [
        ("nothing", &mut nothing),
        ("half a head", &mut half_a_head),
        ("half of SOCKS", &mut half_of_socks),
        ("a silent tunnel", &mut silent_tunnel),
    ] {
        assert!(wire.is_over(), "{what}");
    }
    eventually("no connection is left", || outgate.metric("active_connections", &[]) == 0.0);
    assert_eq!(world.internet.bytes(GOOD), 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_reset_upstream_ends_the_tunnel() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    world.internet.serve((ODD, 7), |mut tap| {
        let _ = std::io::Read::read(&mut tap, &mut [0u8; 1]);
    });
    let mut wire = world.guest.tunnel("odd.test:7");
    wire.say("a longer text than the server reads");
    assert!(wire.is_over());
    world.assert_untouched(EVIL);
}
