//! What a name may lead to, and how it is looked up: the address floor on the address dialled,
//! rebinding, dead servers, one query in flight.

use crate::world::dns::{A, AAAA, Answer};
use crate::world::{CDN, EVIL, GOOD, GOOD6, World};
use std::net::{IpAddr, TcpListener};
use std::sync::Barrier;
use std::time::Duration;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_that_leads_into_the_floor_is_refused() {
    let world = World::new();
    let outgate = world.setup(".good.test\n").tables("[limits]\nnew_connections_per_second = 0").start();
    let floor = [
        "169.254.169.254",
        "10.0.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "192.168.1.1",
        "172.16.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "203.0.113.7",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "fd00:ec2::254",
        "fe80::1",
        "::ffff:10.0.0.1",
        "::ffff:11.0.0.10",
        "::11.0.0.10",
        "2002:a00:1::1",
        "2001::1",
        "2001:db8::1",
        "ff02::1",
        "100::1",
        "3fff::1",
        // The gateway itself, and the guests.
        "11.0.0.1",
        "10.42.42.1",
        "10.42.42.3",
        "2600:10::1",
    ];
    for (turn, address) in floor.iter().enumerate() {
        let name = format!("n{turn}.good.test");
        world.dns.set(&name, [ip(address)]);
        let refusal = world.guest.connect(&format!("{name}:443")).0;
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, "address_floor"), "{address}");
        let refusal = world.guest.get(&name, "/");
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, "address_floor"), "{address}");
        assert_eq!(world.guest.socks_name(&name, 443).0, Some(2), "{address}");
    }
    assert!(world.internet.all().is_empty());
    outgate.await_counted("denied", "address_floor", 3.0 * floor.len() as f64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_answer_with_one_floor_address_in_it_is_refused_whole() {
    let world = World::new();
    let _outgate = world.outgate(".good.test\n");
    world.dns.set("mixed.good.test", [ip("11.0.0.10"), ip("10.0.0.1")]);
    world.dns.set("last.good.test", [ip("127.0.0.1"), ip("11.0.0.10")]);
    for name in ["mixed.good.test", "last.good.test"] {
        let refusal = world.guest.connect(&format!("{name}:443")).0;
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, "address_floor"), "{name}");
    }
    assert!(world.internet.all().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_alias_is_followed_and_its_target_is_checked_against_the_floor() {
    let world = World::new();
    let _outgate = world.outgate("good.test\ncdn-ok.test\n");
    world.dns.set("good.test", Answer::Alias("cdn-bad.test"));
    world.dns.set("cdn-ok.test", Answer::Alias("inside.test"));
    world.dns.set("inside.test", [ip("10.0.0.1")]);
    assert_eq!(world.guest.get("good.test", "/").status, 200, "the name asked for is what counts");
    assert_eq!(world.internet.requests(CDN)[0].header("host"), ["good.test"]);
    assert_eq!(world.guest.get("cdn-ok.test", "/").reason(), "address_floor");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_rebinding_name_never_reaches_the_loopback() {
    let world = World::new();
    let outgate = world.setup("good.test\n").tables("[limits]\nnew_connections_per_second = 0").start();
    let loopback = world.gateway.run(|| {
        [80, 443].map(|port| {
            let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        })
    });
    let answers = [GOOD.into(), ip("127.0.0.1")].map(|address| Answer::Addresses(vec![address], 0));
    world.dns.cycle("good.test", answers.into());
    let mut granted = 0;
    for _ in 0..500 {
        let (response, _) = world.guest.connect("good.test:443");
        match response.status {
            200 => granted += 1,
            403 => assert_eq!(response.reason(), "address_floor"),
            other => panic!("{other}: {}", response.text()),
        }
    }
    assert!(granted > 0, "the public address must be dialled when it is given");
    assert!(loopback.iter().all(|listener| listener.accept().is_err()), "the loopback was dialled");
    assert!(world.internet.all().iter().all(|seen| seen.local.unwrap().ip() == IpAddr::from(GOOD)));
    assert_eq!(outgate.counted("denied", "address_floor") + f64::from(granted), 500.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn to_and_permit_addresses_open_the_floor_for_their_ranges() {
    let world = World::new();
    // Another service of the gateway's machine: reachable only where the operator says so.
    let service = world.gateway.run(|| TcpListener::bind("10.42.42.1:8080").unwrap());
    service.set_nonblocking(true).unwrap();
    world.dns.set("inside.good.test", [ip("10.42.42.1")]);
    world.dns.set("private.good.test", [ip("10.0.0.5")]);
    {
        let _outgate = world.outgate(
            "inside.good.test:8080 to=10.42.42.1/32\nprivate.good.test to=10.0.0.5/32\ngood.test to=11.0.0.20/32\n",
        );
        assert_eq!(world.guest.connect("inside.good.test:8080").0.status, 200);
        assert!(service.accept().is_ok());
        let far = world.guest.connect("private.good.test:443").0;
        assert_ne!(far.reason(), "address_floor", "lifted, though nobody is there");
        assert_eq!(world.guest.get("good.test", "/").status, 403, "the name may lead there and nowhere else");
    }
    let outgate = world.setup("inside.good.test:*\n").tables("[dial]\npermit_addresses = [\"10.42.42.0/24\"]").start();
    assert_eq!(world.guest.connect("inside.good.test:8080").0.status, 200);
    let own = world.guest.connect("inside.good.test:3128").0;
    assert_eq!((own.status, own.reason().as_str()), (403, "address_floor"), "outgate's own listeners never");
    outgate.await_counted("denied", "address_floor", 1.0);
    world.assert_untouched(GOOD);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn deny_rules_of_addresses_hold_for_what_is_dialled() {
    let world = World::new();
    let _outgate = world.outgate("good.test\ncdn-ok.test\ndeny 11.0.0.10\n");
    let refusal = world.guest.get("good.test", "/");
    assert_eq!((refusal.status, refusal.reason().as_str()), (403, "denied_by_rule"));
    assert_eq!(world.guest.get("cdn-ok.test", "/").status, 200);
    world.assert_untouched(GOOD);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn own_listeners_are_out_of_reach_by_every_name_and_address() {
    let world = World::new();
    world.dns.set("self.good.test", [ip("11.0.0.1")]);
    let rules = ".good.test:*\n0.0.0.0/0:*\n";
    let tables = "[dial]\npermit_addresses = [\"0.0.0.0/0\"]";
    let _outgate = world.setup(rules).listen("proxy = [\"0.0.0.0:3128\"]").tables(tables).start();
    for target in [
        "self.good.test:3128",
        "10.42.42.1:3128",
        "11.0.0.1:3128",
        "127.0.0.1:3128",
        "127.0.0.1:3190",
        "127.0.0.2:3128",
    ] {
        let refusal = world.guest.connect(target).0;
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, "address_floor"), "{target}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn ipv6_is_dialled_and_the_other_family_is_tried_when_one_fails() {
    let world = World::new();
    let _outgate = world.outgate(".good.test\n");
    let v6 = ip(GOOD6);
    world.dns.set("six.good.test", [v6]);
    world.dns.set("dead6.good.test", [ip("2600:10::99"), GOOD.into()]);
    world.dns.set("dead4.good.test", [v6, ip("11.0.0.99")]);
    assert_eq!(world.guest.get("six.good.test", "/").status, 200);
    assert_eq!(world.internet.requests(v6).len(), 1);
    assert_eq!(world.guest.get("dead6.good.test", "/").status, 200);
    assert_eq!(world.guest.get("dead4.good.test", "/").status, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn failures_of_dns_and_of_the_origin_are_told_apart() {
    let world = World::new();
    let outgate = world.setup(".good.test:*\n").resolver("servers = [\"11.0.0.53\"]\ntimeout_ms = 400").start();
    world.dns.set("gone.good.test", Answer::NxDomain);
    world.dns.set("lost.good.test", Answer::ServFail);
    world.dns.set("mute.good.test", Answer::Drop);
    world.dns.set("none.good.test", Answer::Addresses(vec![], 60));
    for name in ["gone.good.test", "lost.good.test", "mute.good.test", "none.good.test"] {
        let response = world.guest.connect(&format!("{name}:443")).0;
        let reason = response.reason();
        assert!(
            (response.status, reason.as_str()) == (502, "resolve_failed")
                || (response.status, reason.as_str()) == (504, "timeout"),
            "{name}: {} {reason}",
            response.status
        );
    }
    assert_eq!(world.guest.socks_name("gone.good.test", 443).0, Some(4));
    let closed = world.guest.connect("a.good.test:4443").0;
    assert_eq!((closed.status, closed.reason().as_str()), (502, "dial_failed"));
    assert_eq!(world.guest.socks_name("a.good.test", 4443).0, Some(5));
    outgate.await_counted("failed", "dial_failed", 2.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_dead_first_server_does_not_keep_names_from_being_resolved() {
    let world = World::new();
    let deaf = world.internet.bind_udp((crate::world::DEAF, 53));
    let _outgate =
        world.setup("good.test\n").resolver("servers = [\"11.0.0.54\", \"11.0.0.53\"]\ntimeout_ms = 500").start();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    drop(deaf);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_is_asked_for_once_however_many_guests_want_it_at_once() {
    let world = World::new();
    let _outgate = world.outgate("good.test\n");
    let late = Answer::Late(Duration::from_millis(150), Box::new(Answer::from([GOOD])));
    world.dns.set("good.test", late);
    let barrier = Barrier::new(40);
    std::thread::scope(|scope| {
        for turn in 0..40 {
            let guest = if turn % 2 == 0 { &world.guest } else { &world.neighbour };
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                assert_eq!(guest.get("good.test", "/").status, 200);
            });
        }
    });
    // Over UDP a resolver may ask again when an answer is late; that is not once a guest.
    assert!(world.dns.count("good.test", A) <= 3, "{:?}", world.dns.log());
    assert!(world.dns.count("good.test", AAAA) <= 3, "{:?}", world.dns.log());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_answer_is_kept_for_its_ttl_and_a_failure_for_a_moment() {
    let world = World::new();
    let _outgate = world.outgate(".good.test\n");
    world.dns.set("lost.good.test", Answer::ServFail);
    assert_eq!(world.guest.get("a.good.test", "/").status, 200);
    world.dns.set("a.good.test", [EVIL]);
    for _ in 0..10 {
        assert_eq!(world.guest.get("a.good.test", "/").status, 200);
        assert_eq!(world.guest.get("lost.good.test", "/").status, 502);
    }
    assert_eq!(world.internet.requests(GOOD).len(), 11, "the first answer holds");
    world.assert_untouched(EVIL);
    let failed = world.dns.count("lost.good.test", A);
    assert!(failed < 10, "ten requests in a row asked {failed} times for a name that fails");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_answer_of_ttl_zero_is_asked_for_again() {
    let world = World::new();
    let _outgate = world.outgate("good.test\n");
    world.dns.set("good.test", Answer::Addresses(vec![GOOD.into()], 0));
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    world.dns.set("good.test", Answer::Addresses(vec![CDN.into()], 0));
    crate::world::eventually("the new address is dialled", || {
        world.guest.get("good.test", "/");
        !world.internet.requests(CDN).is_empty()
    });
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_hosts_file_of_the_machine_and_its_search_list_are_not_consulted() {
    let world = World::new();
    let _outgate = world.outgate("localhost\ngood\n");
    assert_ne!(world.guest.get("localhost", "/").status, 200);
    assert_ne!(world.guest.get("good", "/").status, 200);
    assert!(world.dns.names().iter().all(|name| name == "localhost" || name == "good"), "{:?}", world.dns.names());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn names_of_the_configured_hosts_file_are_not_asked_upstream() {
    let world = World::new();
    let mut outgate = world.setup("good.test\n").resolver("servers = [\"11.0.0.53\"]\nhosts_file = \"HOSTS\"").write();
    let hosts = outgate.path("hosts");
    std::fs::write(&hosts, "11.0.0.20 good.test\n").unwrap();
    let config = std::fs::read_to_string(outgate.config()).unwrap();
    std::fs::write(outgate.config(), config.replace("HOSTS", hosts.to_str().unwrap())).unwrap();
    outgate.launch();
    outgate.await_ready();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.internet.requests(CDN).len(), 1);
    assert!(world.dns.log().is_empty());
}
