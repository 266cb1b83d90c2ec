//! Names in TLS through a tunnel: the tunnel's name and that of every ClientHello must agree,
//! however the hello is cut, and what cannot be read in one way only is refused.

use crate::world::client::{ACCESS_DENIED, Get, Wire};
use crate::world::client_hello::{Hello, hello_retry_request, in_records_of, record};
use crate::world::openssl::Server;
use crate::world::{CDN, EVIL, GOOD, ODD, World, eventually, pki};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const RULES: &str = "good.test\n*.good.test\ncdn-ok.test\nodd.test\n";

#[test]
#[ignore = "requires root and network namespaces"]
fn an_allowed_name_is_reached_and_no_other_name_is_asked_for() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let response = world.guest.https_get("good.test:443", "good.test", "/hi").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "hello\n"));
    let seen = world.internet.seen(GOOD);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].sni.as_deref(), Some("good.test"));
    assert_eq!(seen[0].requests[0].target, "/hi");
    world.assert_asked_only(&["good.test"]);

    outgate.await_counted("allowed", "none", 1.0);
    let line = outgate.await_log(&[("name", "good.test"), ("verdict", "allowed"), ("reason", "none")]);
    assert_eq!(line["listener"], "proxy");
    assert_eq!(line["port"], 443);
    assert_eq!(line["rule"], "main.rules:1");
    assert_eq!(line["upstream"], "11.0.0.10:443");
    assert!(line["source"].as_str().unwrap().starts_with("10.42.42.2"), "{line}");
    assert_eq!(line["bytes_up"], seen[0].count, "what the log counts is what the origin got");
    assert!(line["bytes_down"].as_u64().unwrap() > 500, "{line}");
    assert_eq!(outgate.metric("bytes_total", &[("listener", "proxy"), ("direction", "up")]), seen[0].count as f64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_tunnel_with_another_name_in_the_hello_is_closed_before_a_byte_is_forwarded() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.tunnel("cdn-ok.test:443");
    wire.say(Hello::naming("cdn-bad.test").record());
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    assert_eq!(world.internet.bytes(CDN), 0);
    world.assert_asked_only(&["cdn-ok.test"]);
    outgate.await_counted("denied", "name_mismatch", 1.0);
    outgate.await_log(&[("verdict", "denied"), ("reason", "name_mismatch")]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn two_allowed_names_do_not_mix_in_one_tunnel() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.tunnel("good.test:443");
    wire.say(Hello::naming("cdn-ok.test").record());
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    assert_eq!(world.internet.bytes(GOOD) + world.internet.bytes(CDN), 0);
    outgate.await_counted("denied", "name_mismatch", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_records_of_a_hello_change_nothing() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    for size in [1, 4, 50, 100] {
        let cut = |flight: Vec<u8>| vec![in_records_of(size, &flight[5..])];
        let tls = world.guest.tunnel("good.test:443").tls_with(pki::client(), "good.test", cut);
        assert_eq!(tls.unwrap().get("good.test", "/").unwrap().status, 200, "records of {size}");

        let mut wire = world.guest.tunnel("good.test:443");
        wire.say(Hello::naming("evil.test").records_of(size));
        assert_eq!(wire.alert(), Some(ACCESS_DENIED), "records of {size}");
    }
    outgate.await_counted("denied", "name_mismatch", 4.0);
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_segments_of_a_hello_change_nothing() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let cut = |flight: Vec<u8>| flight.chunks(1).map(<[u8]>::to_vec).collect();
    let tls = world.guest.tunnel("good.test:443").tls_with(pki::client(), "good.test", cut);
    assert_eq!(tls.unwrap().get("good.test", "/").unwrap().status, 200);

    let mut wire = world.guest.tunnel("cdn-ok.test:443");
    wire.say_slowly(Hello::naming("cdn-bad.test").record().chunks(7), Duration::from_millis(2));
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    assert_eq!(world.internet.bytes(CDN), 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_hello_that_is_not_whole_at_the_deadline_is_refused_however_steadily_it_comes() {
    let world = World::new();
    let outgate = world.setup(RULES).tables("[limits]\nhandshake_timeout_ms = 1500").start();
    let mut wire = world.guest.tunnel("good.test:443");
    let hello = Hello::naming("good.test").record();
    wire.say_slowly(hello.chunks(1).take(100), Duration::from_millis(40));
    assert!(wire.is_over());
    assert_eq!(world.internet.bytes(GOOD), 0);
    eventually("a timeout is counted", || outgate.metric("connections_total", &[("reason", "timeout")]) == 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_hello_that_takes_25_seconds_is_cut_off_at_the_10_that_are_the_default() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let hello = Hello::naming("good.test").record();
    let begin = Instant::now();
    let mut wire = world.guest.tunnel("good.test:443");
    let mut sender = wire.clone_sender();
    let sending = std::thread::spawn(move || {
        for byte in hello.chunks(1).take(250) {
            if sender.write_all(byte).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("25 s of one byte after the other were taken");
    });
    assert!(wire.is_over());
    let elapsed = begin.elapsed();
    assert!(elapsed > Duration::from_secs(9) && elapsed < Duration::from_secs(16), "{elapsed:?}");
    drop(wire);
    sending.join().unwrap();
    assert_eq!(world.internet.bytes(GOOD), 0);
    eventually("a timeout is counted", || outgate.metric("connections_total", &[("reason", "timeout")]) == 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_large_post_quantum_hello_in_two_segments_arrives_whole() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    world.internet.sink((ODD, 443));
    for hello in [
        Hello::naming("odd.test").post_quantum().record(),
        Hello::naming("odd.test").post_quantum().extension(21, vec![0; 12_000]).record(),
    ] {
        let before = world.internet.seen(ODD).len();
        let mut wire = world.guest.tunnel("odd.test:443");
        wire.say_slowly(hello.chunks(900), Duration::from_millis(30));
        eventually("the origin has the whole hello", || {
            world.internet.seen(ODD).get(before).is_some_and(|seen| seen.count >= hello.len() as u64)
        });
        assert_eq!(world.internet.seen(ODD)[before].bytes, hello);
        drop(wire);
        eventually("the connection ends", || world.internet.seen(ODD)[before].ended);
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bytes_after_the_hello_in_the_same_segment_arrive_once_and_in_order() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    world.internet.sink((ODD, 443));
    let early = [Hello::naming("odd.test").record(), record(20, &[1]), record(23, &[0xEE; 3000])].concat();
    let mut wire = world.guest.tunnel("odd.test:443");
    wire.say(&early);
    eventually("the origin has it all", || world.internet.bytes(ODD) >= early.len() as u64);
    assert_eq!(world.internet.seen(ODD)[0].bytes, early);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bytes_sent_along_with_connect_are_judged_and_forwarded_like_later_ones() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    world.internet.sink((ODD, 443));
    let connect = |name: &str| format!("CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n").into_bytes();
    let hello = Hello::naming("odd.test").record();

    let mut wire = world.guest.proxy();
    wire.say([connect("odd.test"), hello.clone()].concat());
    assert_eq!(wire.hear("CONNECT").status, 200);
    eventually("the origin has the hello", || world.internet.bytes(ODD) >= hello.len() as u64);
    assert_eq!(world.internet.seen(ODD)[0].bytes, hello);

    let mut wire = world.guest.proxy();
    wire.say([connect("evil.test"), hello.clone()].concat());
    assert_eq!(wire.hear("CONNECT").status, 403);
    let mut wire = world.guest.proxy();
    wire.say([connect("good.test"), hello].concat());
    assert!(wire.is_over());
    assert_eq!(world.internet.bytes(GOOD), 0);
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn hellos_with_more_or_less_than_one_readable_name_are_malformed() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let two_extensions = Hello::naming("good.test").names(&[b"evil.test"]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("two names, the good one first", Hello::nameless().names(&[b"good.test", b"evil.test"]).record()),
        ("two names, the good one last", Hello::nameless().names(&[b"evil.test", b"good.test"]).record()),
        ("the same name twice", Hello::nameless().names(&[b"good.test", b"good.test"]).record()),
        ("two extensions", two_extensions.record()),
        ("an empty list", Hello::nameless().names(&[]).record()),
        ("an empty name", Hello::naming("").record()),
        ("another name type first", Hello::nameless().entries(&[(7, b"x"), (0, b"good.test")]).record()),
        ("NUL", Hello::naming("evil.test\0.good.test").record()),
        ("a leading dot", Hello::naming(".good.test").record()),
        ("two trailing dots", Hello::naming("good.test..").record()),
        ("a space", Hello::naming("good.test ").record()),
        ("line ends", Hello::naming("good.test\r\n").record()),
        ("a port", Hello::naming("good.test:443").record()),
        ("a wildcard", Hello::naming("*.good.test").record()),
        ("a percent escape", Hello::naming("%67ood.test").record()),
        ("not UTF-8", Hello::naming(b"g\xff\xfed.test").record()),
        ("Unicode", Hello::naming("gооd.test").record()),
        ("a long label", Hello::naming(format!("{}.good.test", "a".repeat(64))).record()),
        ("a long name", Hello::naming(format!("{}good.test", "a.".repeat(130))).record()),
        ("an IPv4 address", Hello::naming("11.0.0.10").record()),
        ("an IPv6 address", Hello::naming("::1").record()),
        ("a decimal address", Hello::naming("2130706433").record()),
        ("a hexadecimal address", Hello::naming("0x7f.1").record()),
    ];
    for (what, hello) in &cases {
        let mut wire = world.guest.tunnel("good.test:443");
        wire.say(hello);
        assert_eq!(wire.alert(), Some(ACCESS_DENIED), "{what}");
    }
    assert_eq!(world.internet.bytes(GOOD), 0);
    world.assert_asked_only(&["good.test"]);
    outgate.await_counted("denied", "malformed", cases.len() as f64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn upper_case_and_one_trailing_dot_are_the_same_name() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    world.internet.sink((ODD, 443));
    for (target, name) in [("ODD.test:443", "odd.test"), ("odd.test:443", "ODD.TEST."), ("odd.test.:443", "odd.test")] {
        let before = world.internet.bytes(ODD);
        let hello = Hello::naming(name).record();
        let mut wire = world.guest.tunnel(target);
        wire.say(&hello);
        eventually("the hello arrives as it was sent", || world.internet.bytes(ODD) == before + hello.len() as u64);
    }
    world.assert_asked_only(&["odd.test"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn hello_bombs_are_cut_off_and_cost_no_memory() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let endless = {
        let mut message = vec![1, 0xff, 0xff, 0xff];
        message.resize(200_000, 0);
        in_records_of(16_000, &message)
    };
    let before = outgate.memory();
    for (what, bytes) in [
        ("a length of 16 MiB", endless),
        ("a hello of 60 KB", Hello::naming("good.test").extension(21, vec![0; 60_000]).records_of(16_000)),
        ("records without content", record(22, &[]).repeat(10_000)),
        ("warnings first", [record(21, &[1, 90]).repeat(100), Hello::naming("good.test").record()].concat()),
        ("garbage after a record header", [&[22, 3, 1, 2, 0][..], &[0xAB; 512]].concat()),
    ] {
        let mut wire = world.guest.tunnel("good.test:443");
        wire.say(&bytes);
        assert!(wire.is_over(), "{what}");
    }
    assert_eq!(world.internet.bytes(GOOD), 0);
    assert!(outgate.memory() < before + 16 * 1024 * 1024);
    outgate.await_counted("denied", "malformed", 5.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn encrypted_client_hello_is_refused_unless_the_rule_or_the_configuration_allows_it() {
    let world = World::new();
    world.internet.sink((ODD, 443));
    let hello = Hello::naming("odd.test").ech().record();
    {
        let outgate = world.outgate(RULES);
        let mut wire = world.guest.tunnel("odd.test:443");
        wire.say(&hello);
        assert_eq!(wire.alert(), Some(ACCESS_DENIED));
        assert_eq!(world.internet.bytes(ODD), 0);
        outgate.await_counted("denied", "ech", 1.0);
    }
    for setup in [world.setup("odd.test ech=allow\n"), world.setup("odd.test\n").top("ech = \"allow\"")] {
        let outgate = setup.start();
        let before = world.internet.bytes(ODD);
        let mut wire = world.guest.tunnel("odd.test:443");
        wire.say(&hello);
        eventually("the hello arrives", || world.internet.bytes(ODD) == before + hello.len() as u64);
        let mut wire = world.guest.tunnel("odd.test:443");
        wire.say(Hello::naming("evil.test").ech().record());
        assert_eq!(wire.alert(), Some(ACCESS_DENIED), "the outer name is judged all the same");
        outgate.await_counted("denied", "name_mismatch", 1.0);
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn https_without_a_name_in_a_tunnel_is_refused_as_no_name() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let tls = world.guest.tunnel("good.test:443").tls_with(pki::client_without_sni(), "good.test", |hello| vec![hello]);
    assert!(tls.is_err());
    assert_eq!(world.internet.bytes(GOOD), 0);
    outgate.await_counted("denied", "no_name", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_second_hello_after_a_retry_request_is_judged_like_the_first() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    world.internet.serve((ODD, 443), |mut tap| {
        let mut first = vec![0; Hello::naming("odd.test").record().len()];
        if tap.read_exact(&mut first).is_ok() {
            let _ = tap.write_all(&hello_retry_request());
        }
        tap.drain();
    });
    let first = Hello::naming("odd.test").record();
    let retry = hello_retry_request();

    let mut wire = world.guest.tunnel("odd.test:443");
    wire.say(&first);
    assert_eq!(wire.take_bytes(retry.len()), retry);
    wire.say(&first);
    eventually("the same name twice passes", || world.internet.bytes(ODD) == 2 * first.len() as u64);
    drop(wire);

    for second in [
        Hello::naming("evil.test").record(),
        Hello::nameless().record(),
        [record(20, &[1]), Hello::naming("evil.test").records_of(20)].concat(),
    ] {
        let before = world.internet.seen(ODD).len();
        let mut wire = world.guest.tunnel("odd.test:443");
        wire.say(&first);
        assert_eq!(wire.take_bytes(retry.len()), retry);
        wire.say(&second);
        assert!(wire.is_over());
        eventually("the origin's connection ends", || {
            world.internet.seen(ODD)[before].ended || outgate.metric("active_connections", &[]) == 0.0
        });
        let forwarded = world.internet.seen(ODD)[before].bytes.clone();
        assert!(!forwarded.windows(9).any(|window| window == b"evil.test"), "the second hello was forwarded");
        assert!(forwarded.len() <= first.len() + 6, "no handshake byte after the first hello may be forwarded");
    }
    eventually("the three are counted", || outgate.metric("connections_total", &[("verdict", "denied")]) == 3.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn openssl_answers_openssls_retry_request_through_the_tunnel() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    // A server that wants a key share that the client did not send.
    let server = Server::start(&world, ODD, "odd.test", &["-tls1_3", "-groups", "P-384"]);
    let (answer, said) = server.ask(&world.guest, "odd.test", &["-groups", "X25519:P-384"], "through a tunnel");
    assert_eq!(answer, "lennut a hguorht", "{said}");
    assert_eq!(server.hellos(), 2, "there was a second hello");

    // And without a retry, in TLS 1.3 and in 1.2.
    for options in [["-groups", "P-384"], ["-groups", "P-384:X25519"]] {
        assert_eq!(server.ask(&world.guest, "odd.test", &options, "abc").0, "cba", "{options:?}");
    }
    drop(server);
    let server = Server::start(&world, ODD, "odd.test", &["-tls1_2"]);
    assert_eq!(server.ask(&world.guest, "odd.test", &[], "abc").0, "cba", "TLS 1.2");
    assert_eq!(server.hellos(), 1);
    eventually("all are counted", || outgate.counted("allowed", "none") == 4.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_second_hello_with_another_name_does_not_reach_openssl() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let server = Server::start(&world, ODD, "odd.test", &["-tls1_3", "-groups", "P-384"]);
    let first = Hello::naming("odd.test").record();
    let retry = |wire: &mut Wire| {
        wire.say(&first);
        let head = wire.take_bytes(5);
        assert_eq!(head[0], 22, "the server answers by a handshake record");
        let body = wire.take_bytes(usize::from(u16::from_be_bytes([head[3], head[4]])));
        assert_eq!(body[0], 2, "a ServerHello");
        assert!(body.windows(4).any(|window| window == [0xcf, 0x21, 0xad, 0x74]), "one that asks for a retry");
    };

    let mut wire = world.guest.tunnel("odd.test:443");
    retry(&mut wire);
    wire.say(&first);
    eventually("a second hello with the same name arrives", || server.hellos() == 2);
    drop(wire);

    let mut count = 0.0;
    for second in [
        Hello::naming("evil.test").record(),
        Hello::naming("cdn-ok.test").record(),
        [record(20, &[1]), Hello::naming("evil.test").record()].concat(),
        Hello::nameless().records_of(40),
        Hello::naming("odd.test").names(&[b"evil.test"]).record(),
    ] {
        let before = server.hellos();
        let mut wire = world.guest.tunnel("odd.test:443");
        retry(&mut wire);
        wire.say(&second);
        assert_eq!(wire.alert(), Some(ACCESS_DENIED));
        count += 1.0;
        eventually("it is counted", || outgate.metric("connections_total", &[("verdict", "denied")]) == count);
        assert_eq!(server.hellos(), before + 1, "the server has the first hello and no second one");
    }
}
