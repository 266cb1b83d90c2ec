//! Which names pass: whitelist forms, CONNECT targets, the notations of addresses, and that
//! nothing is looked up before the policy said yes.

use crate::world::dns::A;
use crate::world::{CDN, EVIL, GOOD, World};

#[test]
#[ignore = "requires root and network namespaces"]
fn wildcards_reach_as_deep_as_they_say_and_no_further() {
    let world = World::new();
    world.dns.set("a.b.good.test", [GOOD]);
    for (rule, allowed, refused) in [
        ("good.test", vec!["good.test"], vec!["a.good.test", "xgood.test", "good.test.evil.test", "test"]),
        ("*.good.test", vec!["a.good.test"], vec!["good.test", "a.b.good.test", "a-good.test"]),
        ("**.good.test", vec!["a.good.test", "a.b.good.test"], vec!["good.test", "xgood.test"]),
        (".good.test", vec!["good.test", "a.good.test", "a.b.good.test"], vec!["xgood.test", "good.test.evil.test"]),
        (
            "/a[0-9]+\\.good\\.test/",
            vec!["a1.good.test"],
            vec!["a1.good.test.evil.test", "xa1.good.test", "a1xgood.test"],
        ),
        ("a[0-3].good.test", vec!["a2.good.test"], vec!["a4.good.test", "a.good.test"]),
        ("{a,b}.good.test", vec!["a.good.test", "b.good.test"], vec!["c.good.test", "ab.good.test"]),
        ("api-*.good.test", vec!["api-1.good.test"], vec!["api-1.evil.good.test", "api.good.test"]),
    ] {
        let _outgate = world.outgate(&format!("{rule}\n"));
        world.dns.forget();
        for name in &allowed {
            assert_eq!(world.guest.get(name, "/").status, 200, "{rule} allows {name}");
        }
        for name in &refused {
            assert_eq!(world.guest.get(name, "/").status, 403, "{rule} does not allow {name}");
            assert_eq!(world.guest.connect(&format!("{name}:443")).0.status, 403, "{rule} does not allow {name}");
            assert_ne!(world.guest.socks_name(name, 443).0, Some(0), "{rule} does not allow {name}");
        }
        assert!(
            world.dns.names().iter().all(|name| allowed.contains(&name.as_str())),
            "{rule}: {:?}",
            world.dns.names()
        );
    }
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_deny_rule_wins_whatever_the_order() {
    let world = World::new();
    for rules in [".good.test\ndeny bad.good.test\n", "deny bad.good.test\n.good.test\n"] {
        let _outgate = world.outgate(rules);
        assert_eq!(world.guest.get("fine.good.test", "/").status, 200);
        let refusal = world.guest.get("bad.good.test", "/");
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, "denied_by_rule"));
    }
    assert_eq!(world.dns.count("bad.good.test", A), 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_rule_past_its_date_refuses_and_says_so() {
    let world = World::new();
    let _outgate = world.outgate("good.test until=2020-01-01\ncdn-ok.test until=2999-12-31 owner=ops note=\"long\"\n");
    let refusal = world.guest.get("good.test", "/");
    assert_eq!((refusal.status, refusal.reason().as_str()), (403, "rule_expired"));
    assert_eq!(world.guest.get("cdn-ok.test", "/").status, 200);
    world.assert_untouched(GOOD);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_connect_target_is_a_host_and_a_port_in_plain_digits_or_malformed() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let targets = [
        "good.test:65979",
        "good.test:0",
        "good.test",
        "good.test:",
        "good.test:+443",
        "good.test:0443",
        "good.test:443x",
        "good.test: 443",
        "good.test:-1",
        "good.test:1e2",
        "http://good.test:443",
        "http://good.test:443/",
        "good.test:443/",
        "user@good.test:443",
        "[good.test]:443",
        "good.test:443,evil.test:443",
        "good.test:443:443",
        "::1:443",
        ":443",
        "*",
        "/",
        "%67ood.test:443",
        ".good.test:443",
        "good.test..:443",
        "go_od..test:443",
        "good\u{0}.test:443",
    ];
    for target in targets {
        let mut wire = world.guest.proxy();
        wire.say(format!("CONNECT {target} HTTP/1.1\r\nHost: good.test:443\r\n\r\n"));
        let refusal = wire.hear("CONNECT");
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "malformed"), "{target:?}");
        assert!(wire.is_over(), "{target:?}");
    }
    for fields in ["Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n"] {
        let refusal =
            world.guest.ask(format!("CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n{fields}\r\nabcd"));
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "malformed"), "{fields:?}");
    }
    assert!(world.dns.log().is_empty() && world.internet.all().is_empty());
    outgate.await_counted("denied", "malformed", targets.len() as f64 + 2.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_host_field_of_connect_must_name_the_target() {
    let world = World::new();
    let _outgate = world.outgate("good.test\n");
    for host in ["evil.test:443", "good.test:80", "cdn-ok.test"] {
        let refusal = world.guest.ask(format!("CONNECT good.test:443 HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "name_mismatch"), "{host}");
    }
    assert!(world.internet.all().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn obfuscated_addresses_are_malformed_and_never_looked_up() {
    let world = World::new();
    let outgate = world.outgate("* wide=yes\n** wide=yes\n0.0.0.0/0\n");
    let loopback = world.gateway.run(|| std::net::TcpListener::bind("127.0.0.1:80").unwrap());
    loopback.set_nonblocking(true).unwrap();
    let mut count = 0.0;
    for host in [
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.01",
        "0",
        "127.0.0.1.",
        "256.256.256.256",
        "0xa9fea9fe",
        "%31%32%37.0.0.1",
        "１２７.0.0.1",
        "①②⑦.0.0.1",
        "[fe80::1%25lo]",
        "[::1",
        "[127.0.0.1]",
        "1.2.3",
        "good.test.1",
        "good.0x7f",
    ] {
        let refusal = world.guest.connect(&format!("{host}:80")).0;
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "malformed"), "CONNECT {host}");
        let refusal = world.guest.get(host, "/");
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "malformed"), "GET {host}");
        count += 2.0;
        if !host.starts_with('[') {
            let (reply, _) = world.guest.socks_name(host, 80);
            assert_ne!(reply, Some(0), "SOCKS {host}");
            count += 1.0;
        }
    }
    assert!(world.dns.log().is_empty() && world.internet.all().is_empty());
    assert!(loopback.accept().is_err(), "something reached the gateway's loopback");
    outgate.await_counted("denied", "malformed", count);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn plain_addresses_need_a_rule_for_addresses_and_pass_the_floor() {
    let world = World::new();
    let _outgate = world.outgate(".test wide=yes\n11.0.0.10\n[2600:10::]/32\n127.0.0.0/8\n");
    assert_eq!(world.guest.get("11.0.0.10", "/").status, 200);
    assert_eq!(world.guest.get("[2600:10::10]", "/").status, 200);
    for (host, reason) in
        [("11.0.0.66", "not_whitelisted"), ("11.0.0.20", "not_whitelisted"), ("127.0.0.1", "address_floor")]
    {
        let refusal = world.guest.connect(&format!("{host}:80")).0;
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, reason), "{host}");
    }
    for host in ["[::ffff:127.0.0.1]", "[::ffff:11.0.0.10]", "[64:ff9b::b00:a]"] {
        assert_eq!(
            world.guest.connect(&format!("{host}:80")).0.status,
            403,
            "an IPv4 address inside an IPv6 one: {host}"
        );
    }
    assert!(world.dns.log().is_empty());
    world.assert_untouched(EVIL);
    world.assert_untouched(CDN);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_address_where_the_guest_shows_another_name_is_judged_by_the_name() {
    let world = World::new();
    let _outgate = world.outgate("good.test\n11.0.0.66\n");
    let mut wire = world.guest.tunnel("11.0.0.66:443");
    wire.say(crate::world::client_hello::Hello::naming("cdn-bad.test").record());
    assert!(wire.is_over());
    assert_eq!(world.internet.bytes(EVIL), 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn names_that_encode_data_are_never_looked_up() {
    let world = World::new();
    let outgate =
        world.setup("good.test\n").tables("[limits]\nnew_connections_per_second = 0\nrequests_per_second = 0").start();
    let mut kept = world.guest.proxy();
    for turn in 0..500u64 {
        let name = format!("{:060x}.evil.test", turn.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        assert_eq!(world.guest.connect(&format!("{name}:443")).0.status, 403);
        assert_eq!(world.guest.socks_name(&name, 443).0, Some(2));
        kept.say(format!("GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        assert_eq!(kept.hear("GET").status, 403);
        // And in the field that the URI should have decided.
        let refusal = world.guest.ask(format!("GET http://good.test/ HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "name_mismatch"));
    }
    assert!(world.dns.log().is_empty(), "{:?}", world.dns.names());
    assert!(world.internet.all().is_empty());
    outgate.await_counted("denied", "not_whitelisted", 1500.0);
    outgate.await_counted("denied", "name_mismatch", 500.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn mail_ports_are_refused_unless_a_rule_names_them() {
    let world = World::new();
    world.internet.sink((GOOD, 25));
    {
        let _outgate = world.outgate("good.test\ncdn-ok.test:*\ntcp://odd.test:20-30\n");
        for (target, reason) in [
            ("good.test:25", "port_not_allowed"),
            ("good.test:8443", "port_not_allowed"),
            ("cdn-ok.test:25", "port_not_allowed"),
            ("cdn-ok.test:587", "port_not_allowed"),
            ("odd.test:25", "port_not_allowed"),
        ] {
            let refusal = world.guest.connect(target).0;
            assert_eq!((refusal.status, refusal.reason().as_str()), (403, reason), "{target}");
        }
        assert!(world.dns.log().is_empty() && world.internet.all().is_empty());
    }
    let _outgate = world.outgate("tcp://good.test:25\n");
    let _wire = world.guest.tunnel("good.test:25");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn schemes_give_port_and_protocol() {
    let world = World::new();
    let _outgate = world.outgate("https://good.test\nhttp://cdn-ok.test/\n");
    assert_eq!(world.guest.https_get("good.test:443", "good.test", "/").unwrap().status, 200);
    let refusal = world.guest.get("good.test", "/");
    assert_eq!((refusal.status, refusal.reason().as_str()), (403, "port_not_allowed"));
    assert_eq!(world.guest.get("cdn-ok.test", "/").status, 200);
    assert_eq!(world.guest.connect("cdn-ok.test:443").0.reason(), "port_not_allowed");
}
