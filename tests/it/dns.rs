//! The guests' DNS from outside: what a guest's socket received, and what the DNS server upstream was
//! asked.

use super::world::dns::{A, AAAA, Answer};
use super::world::outgate::{Outgate, Setup};
use super::world::stub_resolver::{
    BADVERS, FORMERR, NOERROR, NOTIMP, NXDOMAIN, REFUSED, RESOLVER, Reply, SERVFAIL, SILENCE, framed, query,
    read_framed, receive, wire_labels,
};
use super::world::{CDN, DEAF, GOOD, GOOD6, PROXY, World, eventually};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

const TXT: u16 = 16;
const HTTPS: u16 = 65;
const AXFR: u16 = 252;
const ANY: u16 = 255;
const NO_RATE: &str = "[limits]\ndns_queries_per_second = 0";

fn setup(world: &World, rules: &str) -> Setup {
    world.setup(rules).listen(&format!("proxy = [\"{PROXY}\"]\ndns = [\"{RESOLVER}\"]"))
}

fn queries(outgate: &Outgate, verdict: &str, reason: &str) -> f64 {
    outgate.metric("dns_queries_total", &[("verdict", verdict), ("reason", reason)])
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_allowed_name_is_answered_with_its_addresses_for_a_minute_at_most() {
    let world = World::new();
    world.dns.set("good.test", Answer::Addresses(vec![GOOD.into(), CDN.into()], 3600));
    let outgate = setup(&world, "good.test\n").start();
    for _ in 0..3 {
        let reply = world.guest.lookup("good.test");
        reply.assert_is([GOOD, CDN]);
        assert!(reply.ttls.iter().all(|ttl| (1..=60).contains(ttl)), "{reply:?}");
        assert_eq!((reply.extended, reply.id, reply.authority), (None, 0x1234, 0));
    }
    // The question comes back as it was asked, letters' case included.
    let shouted = world.guest.lookup("GoOd.TEST");
    shouted.assert_is([GOOD, CDN]);
    assert_eq!(shouted.question, query("GoOd.TEST", A).bytes()[12..27]);
    assert_eq!((world.dns.count("good.test", A), world.dns.count("good.test", AAAA)), (1, 1));
    assert_eq!(queries(&outgate, "allowed", "none"), 4.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_family_without_listeners_and_other_types_are_no_data_and_never_nxdomain() {
    let world = World::new();
    world.dns.set("good.test", Answer::Addresses(vec![GOOD.into(), GOOD6.parse().unwrap()], 60));
    let _outgate = setup(&world, "good.test\n.other.test\n").start();
    world.guest.lookup("good.test").assert_is([GOOD]);
    for kind in [AAAA, TXT, HTTPS, AXFR, ANY, 64, 12, 2, 6, 10, 99] {
        for reply in [world.guest.dns(&query("good.test", kind)), world.guest.dns_tcp(&query("good.test", kind))] {
            reply.assert_no_data();
            assert_eq!(reply.extended, None);
        }
    }
    assert!(world.dns.log().iter().all(|asked| asked.kind == A || asked.kind == AAAA), "{:?}", world.dns.log());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn ipv6_addresses_are_answered_where_an_ipv6_listener_is() {
    let world = World::new();
    world.dns.set("good.test", Answer::Addresses(vec![GOOD.into(), GOOD6.parse().unwrap()], 60));
    let listen = "proxy = [\"[fd42::1]:3128\"]\ndns = [\"10.42.42.1:53\", \"[fd42::1]:53\"]";
    let _outgate = world.setup("good.test\n").listen(listen).start();
    world.guest.dns(&query("good.test", AAAA)).assert_is([GOOD6.parse::<Ipv6Addr>().unwrap()]);
    let socket = world.guest.udp_to("[fd42::1]:53");
    socket.send(&query("good.test", A).bytes()).unwrap();
    receive(&socket).expect("a reply over IPv6").assert_is([GOOD]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn names_that_no_rule_allows_never_reach_the_upstream_server() {
    let world = World::new();
    let outgate = setup(&world, "good.test\ndeny bad.good.test\n").tables(NO_RATE).start();
    let socket = world.guest.udp_to(RESOLVER);
    for index in 0..500u16 {
        let name = format!("{:060x}.evil.test", u128::from(index) << 100 | 0xabc);
        socket.send(&query(&name, A).id(index).bytes()).unwrap();
        let reply = receive(&socket).expect("a reply");
        assert_eq!(reply.id, index);
        reply.assert_blocked("not_whitelisted");
    }
    for (name, reason) in
        [("evil.test", "not_whitelisted"), ("xgood.test", "not_whitelisted"), ("bad.good.test", "denied_by_rule")]
    {
        world.guest.lookup(name).assert_blocked(reason);
        world.guest.dns_tcp(&query(name, A)).assert_blocked(reason);
        world.guest.dns(&query(name, TXT)).assert_blocked(reason);
    }
    let bare = world.guest.dns(&query("evil.test", A).plain());
    assert_eq!((bare.code, bare.edns, bare.extended), (NXDOMAIN, false, None));
    assert_eq!(world.dns.log(), []);
    assert_eq!(queries(&outgate, "denied", "not_whitelisted"), 507.0);
    assert_eq!(queries(&outgate, "denied", "denied_by_rule"), 3.0);
    outgate.await_log(&[("listener", "dns"), ("destination", "bad.good.test"), ("reason", "denied_by_rule")]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_that_is_not_a_host_name_is_never_looked_up() {
    let world = World::new();
    let _outgate = setup(&world, "deny x.test\n").top("mode = \"all\"").tables(NO_RATE).start();
    let labels: [&[&[u8]]; 8] = [
        &[b"evil.good", b"test"],
        &[b"good\\", b"test"],
        &[b"go\0od", b"test"],
        &[b"good", b"te st"],
        &[b"127", b"0", b"0", b"1"],
        &[b"0x7f", b"1"],
        &[b"g\xc3\xb6\xc3\xb6d", b"test"],
        &[b"*", b"test"],
    ];
    for name in labels {
        let asked = world.guest.dns(&super::world::stub_resolver::Query { name: wire_labels(name), ..query("a", A) });
        asked.assert_blocked("malformed");
    }
    world.guest.lookup("localhost").assert_blocked("address_floor");
    world.guest.lookup("x.test").assert_blocked("denied_by_rule");
    assert_eq!(world.dns.log(), []);
    world.guest.lookup("evil.test").assert_is([super::world::EVIL]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn names_above_allowed_ones_exist() {
    let world = World::new();
    let tables = "[[guest]]\nname = \"a\"\naddresses = [\"10.42.42.2\"]\n\
                  [[guest]]\nname = \"b\"\naddresses = [\"10.42.42.3\"]\nwhitelist = [\"b.rules\"]\n";
    let rules = "a.b.good.test\n*.wild.example\n/x[0-9]+\\.regex\\.example/\napi-*.glob.example\n";
    let _outgate = setup(&world, rules).file("b.rules", "only.b.example2\n").tables(tables).start();
    for name in ["b.good.test", "good.test", "test", "wild.example", "regex.example", "glob.example", "example"] {
        let reply = world.guest.lookup(name);
        reply.assert_no_data();
        reply.assert_says("not_whitelisted");
        world.neighbour.lookup(name).assert_blocked("not_whitelisted");
    }
    world.guest.dns(&query("", 2)).assert_no_data();
    for name in ["c.b.good.test", "xtest", "x.glob.example", "ample"] {
        world.guest.lookup(name).assert_blocked("not_whitelisted");
    }
    world.neighbour.lookup("b.example2").assert_no_data();
    world.guest.lookup("b.example2").assert_blocked("not_whitelisted");
    assert_eq!(world.dns.log(), []);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_answer_with_an_address_of_the_floor_is_refused_whole_unless_the_rule_lifts_it() {
    let world = World::new();
    let inside = Ipv4Addr::new(10, 9, 9, 9);
    world.dns.set("inside.test", [inside]);
    world.dns.set("mixed.test", [GOOD, inside]);
    world.dns.set("own.test", [Ipv4Addr::new(11, 0, 0, 1)]);
    world.dns.set("neighbour.test", [Ipv4Addr::new(10, 42, 42, 3)]);
    world.dns.set("denied.test", [CDN]);
    world.dns.set("lifted.test", [inside]);
    world.dns.set("both.test", Answer::Addresses(vec![GOOD.into(), "fd00::1".parse().unwrap()], 60));
    let rules = "inside.test\nmixed.test\nown.test\nneighbour.test\ndenied.test\ndeny 11.0.0.20\n\
                 lifted.test to=10.9.9.9/32\nboth.test\n";
    let outgate = setup(&world, rules).start();
    for (name, reason) in [
        ("inside.test", "address_floor"),
        ("mixed.test", "address_floor"),
        ("own.test", "address_floor"),
        ("neighbour.test", "address_floor"),
        ("denied.test", "denied_by_rule"),
    ] {
        let reply = world.guest.lookup(name);
        assert_eq!(reply.code, NOERROR);
        reply.assert_says(reason);
    }
    world.guest.lookup("lifted.test").assert_is([inside]);
    // Refused for that type alone.
    world.guest.lookup("both.test").assert_is([GOOD]);
    assert_eq!(queries(&outgate, "denied", "address_floor"), 4.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_upstream_servers_answer_is_passed_on() {
    let world = World::new();
    world.dns.set("broken.test", Answer::ServFail);
    world.dns.set("only6.test", [GOOD6.parse::<IpAddr>().unwrap()]);
    let outgate = setup(&world, "nowhere.test\nbroken.test\nonly6.test\nreset.test\n").start();
    // Without IPv6 listeners too: a name that does not exist has no addresses of either family (RFC 8020).
    for kind in [AAAA, A] {
        let gone = world.guest.dns(&query("nowhere.test", kind));
        assert_eq!((gone.code, gone.extended, gone.authority), (NXDOMAIN, None, 0), "{kind}");
    }
    let broken = world.guest.lookup("broken.test");
    assert_eq!((broken.code, broken.extended), (SERVFAIL, Some((23, "resolve_failed".to_owned()))));
    world.guest.lookup("only6.test").assert_no_data();
    world.guest.dns(&query("only6.test", AAAA)).assert_no_data();
    world.guest.dns(&query("broken.test", AAAA)).assert_no_data();
    outgate.await_log(&[("listener", "dns"), ("destination", "broken.test"), ("verdict", "failed")]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn edns_is_honoured_and_what_does_not_fit_comes_over_tcp() {
    let world = World::new();
    let many: Vec<IpAddr> = (1..=40).map(|last| Ipv4Addr::new(11, 1, 1, last).into()).collect();
    world.dns.set("many.test", Answer::Addresses(many.clone(), 60));
    let _outgate = setup(&world, "many.test\n").start();
    for asked in [
        query("many.test", A).plain(),
        super::world::stub_resolver::Query { edns: Some((100, 0)), ..query("many.test", A) },
    ] {
        let reply = world.guest.dns(&asked);
        // A client without TCP makes do with what fits.
        assert!(reply.truncated && reply.length <= 512 && reply.length > 512 - 16, "{reply:?}");
        assert_eq!(reply.addresses, many[..reply.addresses.len()]);
        assert_eq!(reply.edns, asked.edns.is_some());
        let whole = world.guest.dns_tcp(&asked);
        assert!(!whole.truncated);
        assert_eq!(whole.addresses, many);
    }
    let whole = world.guest.dns(&super::world::stub_resolver::Query { edns: Some((4096, 0)), ..query("many.test", A) });
    assert!(!whole.truncated && whole.addresses == many && whole.length <= 1232, "{whole:?}");
    let version =
        world.guest.dns(&super::world::stub_resolver::Query { edns: Some((1232, 1)), ..query("many.test", A) });
    assert_eq!((version.code, version.addresses.len()), (BADVERS, 0));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn one_connection_carries_many_queries_and_a_slow_one_holds_up_none() {
    let world = World::new();
    world.dns.set("slow.test", Answer::Late(Duration::from_millis(700), Box::new([CDN].into())));
    let _outgate = setup(&world, "good.test\nslow.test\n").tables(NO_RATE).start();
    let mut stream = world.guest.dns_stream();
    let mut bytes = framed(&query("slow.test", A).id(1).bytes());
    for id in 2..20 {
        let name = if id % 2 == 0 { "good.test" } else { "evil.test" };
        bytes.extend(framed(&query(name, A).id(id).bytes()));
    }
    // Cut anywhere.
    let (head, tail) = bytes.split_at(bytes.len() - 7);
    stream.write_all(head).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    stream.write_all(tail).unwrap();
    let mut order = Vec::new();
    for _ in 1..20 {
        let reply = read_framed(&mut stream).expect("a reply each");
        match reply.id {
            1 => reply.assert_is([CDN]),
            id if id % 2 == 0 => reply.assert_is([GOOD]),
            _ => reply.assert_blocked("not_whitelisted"),
        }
        order.push(reply.id);
    }
    assert_eq!(order.last(), Some(&1), "{order:?}");
    stream.write_all(&framed(&query("good.test", A).bytes())).unwrap();
    read_framed(&mut stream).expect("the connection stays").assert_is([GOOD]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn connections_count_among_the_guests_and_end_with_too_long_a_query() {
    let world = World::new();
    let _outgate = setup(&world, "good.test\n").tables("[limits]\nconnections = 2\n").start();
    let mut first = world.guest.dns_stream();
    let second = world.guest.dns_stream();
    let mut third = world.guest.dns_stream();
    assert!(read_framed(&mut third).is_none(), "over the limit");
    drop(second);
    first.write_all(&[0xff, 0xff, 0, 0]).unwrap();
    assert!(read_framed(&mut first).is_none(), "no query is that long");
    eventually("places come back", || {
        let mut stream = world.guest.dns_stream();
        stream.write_all(&framed(&query("good.test", A).bytes())).is_ok() && read_framed(&mut stream).is_some()
    });
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_that_was_just_allowed_works_at_once_and_one_just_removed_does_not() {
    let world = World::new();
    let outgate = setup(&world, "good.test\n").tables(NO_RATE).start();
    world.guest.lookup("good.test").assert_is([GOOD]);
    world.guest.lookup("other.test").assert_blocked("not_whitelisted");
    outgate.replace_rules("other.test\n");
    eventually("the new list is in force", || world.guest.lookup("other.test").code == NOERROR);
    world.guest.lookup("other.test").assert_is([GOOD]);
    world.guest.lookup("good.test").assert_blocked("not_whitelisted");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn recent_answers_are_served_while_the_upstream_server_is_down() {
    let world = World::new();
    world.dns.set("good.test", Answer::Addresses(vec![GOOD.into()], 1));
    let resolver = "servers = [\"11.0.0.53\"]\ntimeout_ms = 1000";
    let _outgate = setup(&world, "good.test\nother.test\n").resolver(resolver).start();
    let fresh = world.guest.lookup("good.test");
    fresh.assert_is([GOOD]);
    assert_eq!(fresh.extended, None);
    let World { dns, guest, .. } = world;
    drop(dns);
    std::thread::sleep(Duration::from_millis(1200));
    for _ in 0..3 {
        let start = Instant::now();
        let stale = guest.lookup("good.test");
        stale.assert_is([GOOD]);
        assert!(stale.ttls == [30] && stale.extended == Some((3, String::new())), "{stale:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "within twice the timeout: {:?}", start.elapsed());
    }
    let start = Instant::now();
    let unknown = guest.lookup("other.test");
    assert_eq!((unknown.code, unknown.extended.map(|(code, _)| code)), (SERVFAIL, Some(22)));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_dead_first_server_costs_less_than_twice_the_timeout() {
    let world = World::new();
    // Silent: without a socket there the kernel would refuse in its place.
    let _deaf = world.internet.bind_udp((DEAF, 53));
    let _outgate =
        setup(&world, "good.test\nother.test\n").resolver("servers = [\"11.0.0.54\", \"11.0.0.53\"]").start();
    for name in ["good.test", "other.test"] {
        let start = Instant::now();
        world.guest.lookup(name).assert_is([GOOD]);
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
}

/// Sends all queries at once; returns the replies, until none has come for a while.
fn flood(world: &World, queries: impl Iterator<Item = Vec<u8>>) -> Vec<Reply> {
    let socket = world.guest.udp_to(RESOLVER);
    queries.for_each(|query| drop(socket.send(&query)));
    socket.set_read_timeout(Some(2 * SILENCE)).unwrap();
    std::iter::from_fn(|| receive(&socket)).collect()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_that_asks_too_quickly_waits_then_is_refused_and_then_gets_no_answer() {
    let world = World::new();
    let outgate = setup(&world, "good.test\n").tables("[limits]\ndns_queries_per_second = 10\n").start();
    let replies = flood(&world, (0..300).map(|id| query("evil.test", A).id(id).bytes()));
    let told: Vec<_> = replies.iter().filter(|reply| reply.code == SERVFAIL).collect();
    assert!(told.iter().all(|reply| reply.extended == Some((0, "limit_rate".to_owned()))), "{told:?}");
    assert!(!told.is_empty() && replies.len() < 150, "{} replies, {} of them SERVFAIL", replies.len(), told.len());
    let answered = replies.iter().filter(|reply| reply.code == NXDOMAIN).count();
    assert!(answered >= 20, "ten at once, ten within the second: {answered}");
    world.neighbour.lookup("good.test").assert_is([GOOD]);
    eventually("all are counted", || {
        queries(&outgate, "denied", "limit_rate") + queries(&outgate, "denied", "not_whitelisted") == 300.0
    });
    assert_eq!(world.dns.names(), ["good.test", "good.test"]);
    let paced = outgate.metric("limit_reached_total", &[("limit", "dns_queries_per_second"), ("outcome", "paced")]);
    assert!(paced >= 10.0, "{paced}");
    outgate.await_log(&[("reason", "limit_rate"), ("cause", "over [limits].dns_queries_per_second")]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn cached_names_are_answered_as_often_as_a_guests_workers_ask() {
    let world = World::new();
    let outgate = setup(&world, "good.test\n").start();
    world.guest.lookup("good.test").assert_is([GOOD]);
    let ask = |worker: u16| {
        // A resolver of the C library's kind: A and AAAA together, and both are waited for.
        let socket = world.guest.udp_to(RESOLVER);
        for round in 0..250u16 {
            let id = worker * 1000 + round * 2;
            socket.send(&query("good.test", A).id(id).bytes()).unwrap();
            socket.send(&query("good.test", AAAA).id(id + 1).bytes()).unwrap();
            for _ in 0..2 {
                let reply = receive(&socket).unwrap_or_else(|| panic!("silence in round {round} of worker {worker}"));
                assert_eq!(reply.code, NOERROR, "round {round} of worker {worker}: {reply:?}");
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|worker| scope.spawn(move || ask(worker))).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    assert_eq!(queries(&outgate, "allowed", "none"), 4001.0);
    assert_eq!(queries(&outgate, "denied", "limit_rate"), 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn malformed_messages_are_refused_or_ignored_and_harm_nothing() {
    let world = World::new();
    let _outgate = setup(&world, "good.test\n").tables(NO_RATE).start();
    let sound = query("good.test", A).plain().bytes();
    let with = |at: usize, byte: u8| {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        bytes
    };
    let twice_edns = {
        let mut bytes = query("good.test", A).bytes();
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        bytes[11] = 2;
        bytes
    };
    for (what, bytes, code) in [
        ("NOTIFY", with(2, 0x20), NOTIMP),
        ("UPDATE", with(2, 0x28), NOTIMP),
        ("no question", with(5, 0), FORMERR),
        ("two questions", with(5, 2), FORMERR),
        ("an answer in a query", with(7, 1), FORMERR),
        ("a compressed name", with(12, 0xc0), FORMERR),
        ("a label past the end", with(12, 63), FORMERR),
        ("bytes behind it", [sound.as_slice(), b"x"].concat(), FORMERR),
        ("cut short", sound[..sound.len() - 1].to_vec(), FORMERR),
        ("two OPT records", twice_edns, FORMERR),
        ("class CH", with(sound.len() - 1, 3), REFUSED),
        ("class ANY", with(sound.len() - 1, 255), REFUSED),
    ] {
        let reply = world.guest.dns_raw(&bytes, Duration::from_secs(15)).unwrap_or_else(|| panic!("silence: {what}"));
        assert_eq!((reply.code, reply.id, reply.addresses.len()), (code, 0x1234, 0), "{what}");
        assert!(reply.length <= bytes.len(), "{what}: no more than was sent");
    }
    for (what, bytes) in
        [("a response", with(2, 0x81)), ("a fragment of a header", sound[..11].to_vec()), ("nothing", Vec::new())]
    {
        assert_eq!(world.guest.dns_raw(&bytes, SILENCE), None, "{what}");
    }
    let mut noise = 1u32;
    let socket = world.guest.udp_to(RESOLVER);
    for length in 0..2000 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        })
        .take(length % 600)
        .collect();
        let _ = socket.send(&bytes);
    }
    assert_eq!(world.dns.log(), []);
    // What it sent more than the socket holds is lost, and a query behind it may be.
    let again = query("good.test", A).plain().bytes();
    eventually("queries are answered", || world.guest.dns_raw(&again, SILENCE).is_some());
    world.guest.lookup("good.test").assert_is([GOOD]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn queries_from_service_ports_get_no_answer() {
    let world = World::new();
    let _outgate = setup(&world, "good.test\n").start();
    for (port, answered) in [(7, false), (19, false), (53, true), (1023, false), (1024, true)] {
        let socket = world.guest.namespace.run(|| std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap());
        socket.connect(RESOLVER).unwrap();
        let wait = if answered { Duration::from_secs(15) } else { SILENCE };
        socket.set_read_timeout(Some(wait)).unwrap();
        socket.send(&query("good.test", A).bytes()).unwrap();
        assert_eq!(receive(&socket).is_some(), answered, "port {port}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn each_guest_has_its_own_mode() {
    let world = World::new();
    let tables = "[[guest]]\nname = \"vm-2\"\naddresses = [\"10.42.42.2\"]\nmode = \"none\"\n";
    {
        let _outgate = setup(&world, "good.test\n").tables(tables).start();
        world.guest.lookup("good.test").assert_blocked("mode_none");
        world.neighbour.lookup("good.test").assert_blocked("unknown_guest");
    }
    assert_eq!(world.dns.log(), []);
    let outgate = setup(&world, "good.test\ndeny evil.test\n").top("mode = \"observe\"").start();
    world.guest.lookup("good.test").assert_is([GOOD]);
    world.guest.lookup("cdn-ok.test").assert_is([CDN]);
    world.guest.lookup("evil.test").assert_blocked("denied_by_rule");
    assert_eq!(queries(&outgate, "observed", "none"), 1.0);
}
