//! Connections that were brought to outgate without the guest's knowing, by TPROXY and by REDIRECT: the
//! stream shows where it wants to go, and the original destination gives only the port.

use crate::world::client::{ACCESS_DENIED, Get, Tls, Wire};
use crate::world::client_hello::{Hello, hello_retry_request, in_records_of, record};
use crate::world::dns::Answer;
use crate::world::outgate::{Outgate, Setup};
use crate::world::{CDN, EVIL, GOOD, GOOD6, ODD, World, eventually, pki};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RULES: &str = "good.test\n*.good.test\ncdn-ok.test\nodd.test\n";

/// Brings all TCP of both guests to the transparent listeners; nothing else of a firewall.
const TPROXY: &str = "table inet bring {
    chain prerouting {
        type filter hook prerouting priority mangle; policy accept;
        iifname { g1, g2 } meta l4proto tcp ip daddr != 10.42.42.1 tproxy ip to :3129 meta mark set 1 accept
        iifname { g1, g2 } meta l4proto tcp ip6 daddr != fd42::1 tproxy ip6 to :3129 meta mark set 1 accept
    }
}";

/// Sends what a user of the gateway itself opens to the redirect listener.
pub const REDIRECT: &str = "table inet send {
    chain output {
        type nat hook output priority -100; policy accept;
        meta skuid 65534 meta l4proto tcp redirect to :3130
    }
}";

pub fn nft(world: &World, script: &str) {
    let load = || {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft is installed");
        nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "{script}");
    };
    world.gateway.run(load);
}

pub fn setup(world: &World, rules: &str) -> Setup {
    nft(world, TPROXY);
    for family in ["-4", "-6"] {
        for line in ["rule add fwmark 1 lookup 100", "route add local default dev lo table 100"] {
            let arguments = ["-n", world.gateway.name(), family].into_iter().chain(line.split(' '));
            assert!(Command::new("ip").args(arguments).status().expect("iproute2 is installed").success(), "{line}");
        }
    }
    world.setup(rules).listen("proxy = []\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]")
}

fn start(world: &World, rules: &str) -> Outgate {
    setup(world, rules).start()
}

fn dial(world: &World, address: impl Into<IpAddr>, port: u16) -> Wire {
    Wire::dial(&world.guest.namespace, SocketAddr::new(address.into(), port)).expect("the gateway takes it")
}

/// An https GET to `address`, the hello naming `sni`.
pub fn https_get(world: &World, address: impl Into<IpAddr>, sni: &str) -> io::Result<u16> {
    let mut tls: Tls = dial(world, address, 443).tls(sni)?;
    Ok(tls.get(sni, "/hi")?.status)
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_server_name_decides_and_the_gateway_dials() {
    let world = World::new();
    let outgate = start(&world, RULES);
    assert_eq!(https_get(&world, GOOD, "good.test").unwrap(), 200);
    world.assert_asked_only(&["good.test"]);
    let line = outgate.await_log(&[("name", "good.test"), ("verdict", "allowed")]);
    assert_eq!((line["listener"].as_str(), line["evidence"].as_str()), (Some("transparent"), Some("sni")));
    assert_eq!((line["original"].as_str(), line["rule"].as_str()), (Some("11.0.0.10:443"), Some("main.rules:1")));

    // To the attacker's address under a good name: GOOD is reached, EVIL gets nothing.
    assert_eq!(https_get(&world, EVIL, "good.test").unwrap(), 200);
    assert_eq!(world.internet.seen(GOOD).len(), 2);
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn ipv6_is_filtered_the_same_way() {
    let world = World::new();
    let outgate = start(&world, RULES);
    let evil: IpAddr = "2600:10::66".parse().unwrap();
    assert_eq!(https_get(&world, evil, "good.test").unwrap(), 200);
    assert!(https_get(&world, GOOD6.parse::<IpAddr>().unwrap(), "evil.test").is_err());
    world.assert_untouched(evil);
    let line = outgate.await_log(&[("name", "good.test"), ("verdict", "allowed")]);
    assert_eq!(line["original"], "[2600:10::66]:443");
    assert!(line["source"].as_str().unwrap().starts_with("[fd42::2]"), "{line}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_that_no_rule_allows_gets_the_alert_and_no_server_is_asked() {
    let world = World::new();
    let outgate = start(&world, RULES);
    for name in ["evil.test", "xgood.test", "good.test.evil.test", "a.b.good.test"] {
        let mut wire = dial(&world, GOOD, 443);
        wire.say(Hello::naming(name).record());
        assert_eq!(wire.alert(), Some(ACCESS_DENIED), "{name}");
    }
    world.assert_asked_only(&[]);
    world.assert_untouched(GOOD);
    outgate.await_counted("denied", "not_whitelisted", 4.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn https_without_a_name_is_refused_unless_a_rule_allows_the_address() {
    let world = World::new();
    let outgate = start(&world, "good.test\n11.0.0.20\n");
    let mut wire = dial(&world, GOOD, 443);
    wire.say(Hello::nameless().record());
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    world.assert_untouched(GOOD);
    outgate.await_counted("denied", "no_name", 1.0);

    let hello = Hello::nameless().record();
    let mut wire = dial(&world, CDN, 443);
    wire.say(&hello);
    eventually("the hello arrives", || world.internet.bytes(CDN) == hello.len() as u64);
    world.assert_asked_only(&[]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_hello_is_read_however_it_is_cut_and_refused_where_it_is_not_whole_in_time() {
    let world = World::new();
    let outgate = setup(&world, RULES).tables("[limits]\nhandshake_timeout_ms = 2000").start();
    for size in [1, 50] {
        let cut = |flight: Vec<u8>| vec![in_records_of(size, &flight[5..])];
        let tls = dial(&world, EVIL, 443).tls_with(pki::client(), "good.test", cut);
        assert_eq!(tls.unwrap().get("good.test", "/").unwrap().status, 200, "records of {size}");
    }
    world.internet.sink((ODD, 443));
    let hello = Hello::naming("ODD.test.").post_quantum().record();
    let mut wire = dial(&world, EVIL, 443);
    wire.say_slowly(hello.chunks(900), Duration::from_millis(30));
    eventually("the hello arrives as it was sent", || {
        world.internet.seen(ODD).first().is_some_and(|seen| seen.bytes == hello)
    });
    let mut wire = dial(&world, EVIL, 443);
    wire.say_slowly(hello.chunks(1).take(100), Duration::from_millis(40));
    assert!(wire.is_over());
    eventually("a timeout is counted", || outgate.metric("connections_total", &[("reason", "timeout")]) == 1.0);
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn hellos_that_can_be_read_in_two_ways_are_malformed() {
    let world = World::new();
    let outgate = start(&world, RULES);
    let cases = [
        Hello::nameless().names(&[b"good.test", b"evil.test"]).record(),
        Hello::naming("good.test").names(&[b"evil.test"]).record(),
        Hello::naming("evil.test\0.good.test").record(),
        Hello::naming("11.0.0.10").record(),
        Hello::naming("good.test:443").record(),
        record(22, &[]).repeat(100),
        [&[22, 3, 1, 2, 0][..], &[0xAB; 512]].concat(),
    ];
    for hello in &cases {
        let mut wire = dial(&world, GOOD, 443);
        wire.say(hello);
        assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    }
    world.assert_untouched(GOOD);
    world.assert_asked_only(&[]);
    outgate.await_counted("denied", "malformed", cases.len() as f64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn encrypted_client_hello_requires_permission() {
    let world = World::new();
    let hello = Hello::naming("odd.test").ech().record();
    world.internet.sink((ODD, 443));
    {
        let outgate = start(&world, RULES);
        let mut wire = dial(&world, ODD, 443);
        wire.say(&hello);
        assert_eq!(wire.alert(), Some(ACCESS_DENIED));
        world.assert_untouched(ODD);
        outgate.await_counted("denied", "ech", 1.0);
    }
    let _outgate = world.setup("odd.test ech=allow\n").listen("proxy = []\ntransparent = [\"0.0.0.0:3129\"]").start();
    let mut wire = dial(&world, ODD, 443);
    wire.say(&hello);
    eventually("the hello arrives", || world.internet.bytes(ODD) == hello.len() as u64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_second_hello_with_another_name_is_closed() {
    let world = World::new();
    let outgate = start(&world, RULES);
    world.internet.serve((ODD, 443), |mut tap| {
        let mut first = vec![0; Hello::naming("odd.test").record().len()];
        if tap.read_exact(&mut first).is_ok() {
            let _ = tap.write_all(&hello_retry_request());
        }
        tap.drain();
    });
    let first = Hello::naming("odd.test").record();
    let retry = hello_retry_request();
    for (second, passes) in [(&first, true), (&Hello::naming("good.test").record(), false)] {
        let before = world.internet.seen(ODD).len();
        let mut wire = dial(&world, EVIL, 443);
        wire.say(&first);
        assert_eq!(wire.take_bytes(retry.len()), retry);
        wire.say(second);
        if passes {
            eventually("both hellos arrive", || world.internet.bytes(ODD) == 2 * first.len() as u64);
        } else {
            assert!(wire.is_over());
            assert_eq!(world.internet.seen(ODD)[before].count, first.len() as u64);
        }
    }
    outgate.await_counted("denied", "name_mismatch", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn each_request_in_clear_is_judged_by_its_own_host() {
    let world = World::new();
    let outgate = start(&world, RULES);
    let get = |host: &str| format!("GET /hi HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut wire = dial(&world, EVIL, 80);
    wire.say([get("good.test"), get("evil.test"), get("cdn-ok.test"), get("good.test:80")].concat());
    assert_eq!(wire.hear("GET").status, 200);
    let refused = wire.hear("GET");
    assert_eq!((refused.status, refused.reason().as_str()), (403, "not_whitelisted"));
    assert_eq!(wire.hear("GET").status, 200);
    assert_eq!(wire.hear("GET").status, 200);
    world.assert_untouched(EVIL);
    world.assert_asked_only(&["cdn-ok.test", "good.test"]);
    assert_eq!(world.internet.requests(CDN)[0].header("host"), ["cdn-ok.test"]);
    outgate.await_counted("denied", "not_whitelisted", 1.0);
    let line = outgate.await_log(&[("name", "cdn-ok.test"), ("verdict", "allowed")]);
    assert_eq!((line["original"].as_str(), line["evidence"].as_str()), (Some("11.0.0.66:80"), Some("host")));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn requests_that_two_parsers_could_read_differently_are_400() {
    let world = World::new();
    let outgate = start(&world, RULES);
    let cases = [
        ("another port", "GET / HTTP/1.1\r\nHost: good.test:81\r\n\r\n", "name_mismatch"),
        ("URI and Host differ", "GET http://good.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", "name_mismatch"),
        ("a URI with another port", "GET http://good.test:81/ HTTP/1.1\r\nHost: good.test:81\r\n\r\n", "name_mismatch"),
        ("CONNECT", "CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n", "malformed"),
        ("no Host", "GET / HTTP/1.1\r\n\r\n", "malformed"),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n", "malformed"),
        (
            "two framings",
            "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "malformed",
        ),
        ("bare line feeds", "GET / HTTP/1.1\nHost: good.test\n\n", "malformed"),
        ("an address in disguise", "GET / HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", "malformed"),
    ];
    for (what, request, reason) in cases {
        let mut wire = dial(&world, GOOD, 80);
        wire.say(request);
        let response = wire.hear("GET");
        assert_eq!((response.status, response.reason().as_str()), (400, reason), "{what}");
        assert!(wire.is_over(), "{what}");
    }
    let mut wire = dial(&world, GOOD, 80);
    wire.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(wire.is_over());
    world.assert_untouched(GOOD);
    world.assert_asked_only(&[]);
    outgate.await_counted("denied", "malformed", 6.0);
    outgate.await_counted("denied", "h2c", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_request_without_a_host_has_no_name_unless_a_rule_allows_the_address() {
    let world = World::new();
    let _outgate = start(&world, "good.test\n11.0.0.20\n");
    let ask = |address: std::net::Ipv4Addr| {
        let mut wire = dial(&world, address, 80);
        wire.say("GET /hi HTTP/1.0\r\n\r\n");
        wire.hear("GET")
    };
    let refused = ask(GOOD);
    assert_eq!((refused.status, refused.reason().as_str()), (403, "no_name"));
    assert_eq!(ask(CDN).status, 200);
    world.assert_untouched(GOOD);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_port_that_no_rule_allows_is_reset_before_the_guests_first_byte() {
    let world = World::new();
    let outgate = start(&world, RULES);
    for port in [22, 25, 5432] {
        let asked = Instant::now();
        // The reset may be there before connect(2) is done.
        let wire = Wire::dial(&world.guest.namespace, SocketAddr::new(GOOD.into(), port));
        let error = wire.and_then(|mut wire| wire.rest()).expect_err("a reset, no orderly end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(asked.elapsed() < Duration::from_secs(5), "the handshake deadline is twice that");
    }
    world.assert_untouched(GOOD);
    outgate.await_counted("denied", "not_whitelisted", 3.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn raw_bytes_pass_to_an_address_that_a_rule_allows_for_them_whoever_speaks_first() {
    let world = World::new();
    let _outgate = start(&world, "tcp://11.0.0.30:2222\ntcp://11.0.0.30:7\n");
    world.internet.serve((ODD, 2222), |mut tap| {
        let _ = tap.write_all(b"SSH-2.0-test\r\n");
        let mut word = [0; 6];
        if tap.read_exact(&mut word).is_ok() {
            let _ = tap.write_all(&word);
        }
        tap.finish();
    });
    world.internet.echo((ODD, 7));
    let mut wire = dial(&world, ODD, 2222);
    assert_eq!(wire.take_bytes(14), b"SSH-2.0-test\r\n");
    wire.say("hello\n");
    assert_eq!(wire.take_bytes(6), b"hello\n");

    let mut wire = dial(&world, ODD, 7);
    wire.say(b"\x00\x01raw\xff");
    assert_eq!(wire.take_bytes(6), b"\x00\x01raw\xff");
    wire.finish();
    assert!(wire.is_over());

    let mut wire = dial(&world, GOOD, 2222);
    wire.say("SSH-2.0-client\r\n");
    assert!(wire.rest().is_err());
    world.assert_untouched(GOOD);
    world.assert_asked_only(&[]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_is_still_checked_where_raw_bytes_may_pass() {
    let world = World::new();
    let outgate = start(&world, "tcp://11.0.0.30:8443\ngood.test:8443\n");
    world.internet.sink((ODD, 8443));
    world.internet.sink((GOOD, 8443));
    let hello = Hello::naming("evil.test").record();
    let mut wire = dial(&world, ODD, 8443);
    wire.say(&hello);
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    world.assert_untouched(ODD);

    // The name decides even where the address alone would be allowed.
    let hello = Hello::naming("good.test").record();
    let mut wire = dial(&world, ODD, 8443);
    wire.say(&hello);
    eventually("the hello is at GOOD", || world.internet.bytes(GOOD) == hello.len() as u64);
    world.assert_untouched(ODD);

    // Shown too late: the connection was taken for one that waits for its server.
    let mut wire = dial(&world, ODD, 8443);
    eventually("the server was dialled", || world.internet.seen(ODD).len() == 1);
    wire.say(Hello::naming("evil.test").record());
    assert!(wire.is_over());
    assert_eq!(world.internet.bytes(ODD), 0);
    eventually("both are counted", || outgate.metric("connections_total", &[("verdict", "denied")]) == 2.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn nothing_of_the_gateway_is_reached_through_its_own_listener() {
    let world = World::new();
    let outgate = setup(&world, "good.test\n**.good.test\n").top("mode = \"all\"").start();
    let admin = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:3190\r\n\r\n";
    // Straight to the listener, and to an address behind which the admin port is.
    for (address, port) in [("10.42.42.1", 3129), ("11.0.0.1", 3190), ("fd42::1", 3129)] {
        let mut wire = dial(&world, address.parse::<IpAddr>().unwrap(), port);
        wire.say(admin);
        let response = wire.hear("GET");
        assert_ne!(response.status, 200, "{address}: {}", response.text());
        let mut wire = dial(&world, address.parse::<IpAddr>().unwrap(), port);
        wire.say("GET /metrics HTTP/1.0\r\n\r\n");
        let response = wire.hear("GET");
        assert_eq!((response.status, response.reason().as_str()), (403, "address_floor"), "{address}");
    }
    assert_eq!(outgate.counted("allowed", "none"), 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_over_its_limit_is_answered_in_its_own_protocol() {
    let world = World::new();
    let outgate = setup(&world, RULES).tables("[limits]\nconnections = 1").start();
    let _held = dial(&world, GOOD, 443);
    eventually("the first has the place", || outgate.metric("active_connections", &[]) == 1.0);
    let mut wire = dial(&world, GOOD, 443);
    wire.say(Hello::naming("good.test").record());
    assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    let mut wire = dial(&world, GOOD, 80);
    wire.say("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n");
    let response = wire.hear("GET");
    assert_eq!((response.status, response.reason().as_str()), (429, "limit_connections"));
    outgate.await_counted("denied", "limit_connections", 2.0);
    assert_eq!(outgate.metric("connections_total", &[("listener", "transparent")]), 2.0);
    world.assert_untouched(GOOD);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_removed_rule_closes_what_it_allowed_and_nothing_else() {
    let world = World::new();
    let outgate = start(&world, RULES);
    let mut good = dial(&world, EVIL, 443).tls("good.test").unwrap();
    let mut cdn = dial(&world, EVIL, 443).tls("cdn-ok.test").unwrap();
    assert_eq!(good.get("good.test", "/").unwrap().status, 200);
    assert_eq!(cdn.get("cdn-ok.test", "/").unwrap().status, 200);
    outgate.replace_rules("cdn-ok.test\n");
    eventually("one flow is revoked", || outgate.metric("flows_revoked_total", &[]) == 1.0);
    assert!(good.get("good.test", "/").is_err());
    assert_eq!(cdn.get("cdn-ok.test", "/").unwrap().status, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn redirected_sockets_of_the_host_are_judged_like_a_guest_s() {
    let world = World::new();
    nft(&world, REDIRECT);
    let outgate = world.setup(RULES).listen("proxy = []\nredirect = [\"0.0.0.0:3130\"]").start();
    // A user of the gateway's own, whose sockets the rule above sends there.
    let request = |host: &str| {
        let connect = || {
            let output = Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS", "-m", "10"])
                .args(["-o", "/dev/null", "-w", "%{http_code}", "--resolve", &format!("{host}:80:{EVIL}")])
                .arg(format!("http://{host}/hi"))
                .output();
            String::from_utf8_lossy(&output.expect("setpriv and curl are installed").stdout).into_owned()
        };
        world.gateway.run(connect)
    };
    assert_eq!(request("good.test"), "200");
    assert_eq!(request("evil.test"), "403");
    world.assert_untouched(EVIL);
    let line = outgate.await_log(&[("name", "good.test"), ("verdict", "allowed")]);
    assert_eq!((line["listener"].as_str(), line["original"].as_str()), (Some("redirect"), Some("11.0.0.66:80")));

    // A connection to the listener itself was not redirected.
    let wire = Wire::dial(&world.guest.namespace, "10.42.42.1:3130".parse::<SocketAddr>().unwrap());
    assert!(wire.and_then(|mut wire| wire.rest()).is_err());
    eventually("it is counted", || outgate.counted("denied", "address_floor") == 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_allowed_name_that_leads_into_the_floor_is_refused_in_both_protocols() {
    let world = World::new();
    let outgate = start(&world, ".good.test\n");
    let floor = ["169.254.169.254", "10.0.0.1", "127.0.0.1", "::1", "64:ff9b::a9fe:a9fe", "11.0.0.1", "10.42.42.3"];
    for (turn, address) in floor.iter().enumerate() {
        let name = format!("n{turn}.good.test");
        world.dns.set(&name, [address.parse::<IpAddr>().unwrap()]);
        let mut wire = dial(&world, GOOD, 443);
        wire.say(Hello::naming(&name).record());
        assert_eq!(wire.alert(), Some(ACCESS_DENIED), "{address}");
        let mut wire = dial(&world, GOOD, 80);
        wire.say(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        let refused = wire.hear("GET");
        assert_eq!((refused.status, refused.reason().as_str()), (403, "address_floor"), "{address}");
    }
    assert!(world.internet.all().is_empty());
    outgate.await_counted("denied", "address_floor", 2.0 * floor.len() as f64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_rebinding_name_leads_to_its_public_address_or_nowhere() {
    let world = World::new();
    let _outgate = setup(&world, "good.test\n").tables("[limits]\nnew_connections_per_second = 0").start();
    let loopback = world.gateway.run(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:80").unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    });
    let answers = [GOOD.into(), "127.0.0.1".parse().unwrap()].map(|address| Answer::Addresses(vec![address], 0));
    world.dns.cycle("good.test", answers.into());
    let mut passed = 0;
    for _ in 0..500 {
        let mut wire = dial(&world, EVIL, 80);
        wire.say("GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
        let response = wire.hear("GET");
        match response.status {
            200 => passed += 1,
            403 => assert_eq!(response.reason(), "address_floor"),
            other => panic!("{other}: {}", response.text()),
        }
    }
    assert!((1..500).contains(&passed), "both answers must have come up: {passed}");
    assert!(loopback.accept().is_err(), "the loopback was dialled");
    assert_eq!(world.internet.seen(GOOD).len(), passed);
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn names_that_encode_data_reach_no_server_by_hello_or_host() {
    let world = World::new();
    let outgate = setup(&world, RULES).tables("[limits]\nnew_connections_per_second = 0").start();
    for turn in 0..500u64 {
        let name = format!("{:060x}.evil.test", turn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut wire = dial(&world, GOOD, 443);
        wire.say(Hello::naming(&name).record());
        assert_eq!(wire.alert(), Some(ACCESS_DENIED));
        let mut wire = dial(&world, GOOD, 80);
        wire.say(format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"));
        assert_eq!(wire.hear("GET").status, 403);
    }
    world.assert_asked_only(&[]);
    outgate.await_counted("denied", "not_whitelisted", 1000.0);
    assert!(world.internet.all().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn three_thousand_slow_sockets_of_one_guest_do_not_hinder_the_other() {
    let world = World::new();
    let limits = "[limits]\nconnections = 2000\nnew_connections_per_second = 0";
    let outgate = setup(&world, RULES).tables(limits).start();
    let before = outgate.memory();
    let target = SocketAddr::new(GOOD.into(), 443);
    let held: Vec<_> = world.guest.namespace.run(|| {
        let slow = |_| {
            let mut stream = std::net::TcpStream::connect(target).ok()?;
            // The beginning of a hello that never gets whole.
            stream.write_all(&[22, 3, 1, 2, 0, 1]).ok()?;
            Some(stream)
        };
        (0..3000).filter_map(slow).collect()
    });
    assert!(held.len() >= 2000, "{} of 3000 sockets", held.len());
    for _ in 0..100 {
        let mut wire = Wire::dial(&world.neighbour.namespace, SocketAddr::new(EVIL.into(), 80)).unwrap();
        wire.say("GET /hi HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
        assert_eq!(wire.hear("GET").status, 200);
    }
    let grown = outgate.memory().saturating_sub(before);
    assert!(grown < 3000 * 24 * 1024, "{grown} bytes for 3,000 sockets");
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn options_for_a_whole_server_go_to_the_named_host() {
    let world = World::new();
    let outgate = start(&world, RULES);
    let ask = |host: &str| {
        let mut wire = dial(&world, EVIL, 80);
        wire.say(format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        wire.hear("OPTIONS")
    };
    assert_eq!(ask("good.test").status, 200);
    let requests = world.internet.requests(GOOD);
    assert_eq!((requests.len(), requests[0].target.as_str()), (1, "*"));
    assert_eq!(requests[0].header("host"), ["good.test"]);
    assert_eq!(ask("evil.test").reason(), "not_whitelisted");
    world.assert_untouched(EVIL);
    outgate.await_counted("denied", "not_whitelisted", 1.0);
}

/// Runs a program in the guest's namespace; returns its exit code and output.
fn in_guest(world: &World, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = world.guest.namespace.run(|| Command::new(program).args(arguments).stdin(Stdio::null()).output());
    let output = output.unwrap_or_else(|error| panic!("{program} is installed: {error}"));
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// What curl, OpenSSL and Python make of TLS for a name at an address.
fn reports(world: &World, name: &str) -> [String; 3] {
    let at = format!("{name}:443:{ODD}");
    let (code, curl) = in_guest(world, "curl", &["-sSk", "-m", "20", "--resolve", &at, &format!("https://{name}/")]);
    assert_eq!(code, Some(35), "{curl}");
    let to = format!("{ODD}:443");
    let (_, openssl) = in_guest(world, "openssl", &["s_client", "-connect", &to, "-servername", name]);
    let script = "import socket, ssl, sys\ns = socket.create_connection((sys.argv[1], 443))\n\
                  try: ssl._create_unverified_context().wrap_socket(s, server_hostname=sys.argv[2])\n\
                  except OSError as e: print(type(e).__name__, e)";
    let (_, python) = in_guest(world, "python3", &["-c", script, &ODD.to_string(), name]);
    [curl, openssl, python]
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_dead_server_of_an_allowed_name_is_a_network_failure_and_not_a_refusal() {
    let world = World::new();
    world.dns.set("lost.test", Answer::ServFail);
    let outgate = start(&world, "odd.test\nlost.test\n");
    // Nothing listens on ODD's port 443.
    for name in ["odd.test", "lost.test"] {
        let mut wire = dial(&world, ODD, 443);
        wire.say(Hello::naming(name).record());
        assert_eq!(wire.rest().map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset), "{name}");
        let [curl, openssl, python] = reports(&world, name);
        for said in [&curl, &openssl] {
            // OpenSSL writes the number of ECONNRESET.
            let reset = said.to_lowercase().contains("reset") || said.contains("errno=104");
            assert!(reset && !said.contains("access denied"), "{said}");
        }
        assert!(python.starts_with("ConnectionResetError"), "{python}");
    }
    outgate.await_counted("failed", "dial_failed", 4.0);
    outgate.await_counted("failed", "resolve_failed", 4.0);
    // And what is refused looks like it.
    let [curl, openssl, python] = reports(&world, "evil.test");
    for said in [&curl, &openssl, &python] {
        assert!(said.to_lowercase().replace('_', " ").contains("access denied"), "{said}");
    }

    let config = outgate.config();
    let ask = |arguments: &[&str]| {
        let all = [&["denied", "--config", config.to_str().unwrap()], arguments].concat();
        String::from_utf8(outgate.command(&all).output().unwrap().stdout).unwrap()
    };
    eventually("the view has both", || {
        let rows: serde_json::Value = serde_json::from_str(&ask(&["--failed", "--json"])).unwrap();
        let has =
            |destination: &str, reason: &str| {
                rows["failures"].as_array().unwrap().iter().any(|row| {
                    row["destination"] == destination && row["reason"] == reason && row["verdict"] == "failed"
                })
            };
        has("odd.test:443", "dial_failed") && has("lost.test:443", "resolve_failed")
    });
    let table = ask(&["--failed"]);
    assert!(table.contains("odd.test:443") && !table.contains("evil.test"), "{table}");
    assert!(!ask(&[]).contains("odd.test"), "what failed was not denied");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_server_that_does_not_answer_the_hello_is_a_network_failure_in_a_tunnel_too() {
    let world = World::new();
    let outgate = world.setup("odd.test\n").tables("[limits]\nidle_timeout_s = 1").start();
    world.internet.sink((ODD, 443));
    let mut wire = world.guest.tunnel("odd.test:443");
    wire.say(Hello::naming("odd.test").record());
    assert_eq!(wire.rest().map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionReset));
    outgate.await_counted("failed", "timeout", 1.0);
}
