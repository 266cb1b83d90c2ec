//! The limit on new names: how many look-ups a guest can cause under an allowed wildcard, through every listener, and
//! that no other guest is affected.

use crate::world::dns::{A, Answer};
use crate::world::outgate::Outgate;
use crate::world::stub_resolver::{NOERROR, RESOLVER, SERVFAIL, query, receive};
use crate::world::{GOOD, PROXY, World};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// `[limits].new_names_per_second` of these tests; twenty seconds' worth may come at once.
const RATE: usize = 5;
const BURST: usize = 20 * RATE;

fn start(world: &World) -> Outgate {
    let listen = format!("proxy = [\"{PROXY}\"]\ndns = [\"{RESOLVER}\"]");
    // The wildcard takes one label, as a tunnel through a name would.
    world.setup("*.good.test\n").listen(&listen).tables(&format!("[limits]\nnew_names_per_second = {RATE}")).start()
}

/// Different names that the DNS server was asked for.
fn asked(world: &World) -> BTreeSet<String> {
    world.dns.names().into_iter().collect()
}

fn paced(outgate: &Outgate) -> f64 {
    outgate.metric("limit_reached_total", &[("limit", "new_names_per_second"), ("outcome", "paced")])
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_number_of_new_names_is_limited_at_every_listener_and_the_neighbour_is_served() {
    let world = World::new();
    let outgate = start(&world);
    let begun = Instant::now();
    let dns = |worker: usize| {
        let socket = world.guest.udp_to(RESOLVER);
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        for index in 0..300 {
            socket.send(&query(&format!("d{worker}x{index}.good.test"), A).bytes()).unwrap();
            receive(&socket);
        }
    };
    let http = |worker: usize| {
        let mut wire = world.guest.proxy();
        for index in 0..40 {
            let host = format!("h{worker}x{index}.good.test");
            wire.say(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            let response = wire.hear("GET");
            assert!(matches!(response.status, 200 | 429), "{response:?}");
            if response.status == 429 {
                assert_eq!(response.reason(), "limit_names");
            }
        }
    };
    let connect = |worker: usize| {
        for index in 0..20 {
            let (response, _) = world.guest.connect(&format!("c{worker}x{index}.good.test:443"));
            assert!(matches!(response.status, 200 | 429), "{response:?}");
        }
    };
    let socks = |worker: usize| {
        for index in 0..20 {
            let (reply, _) = world.guest.socks_name(format!("s{worker}x{index}.good.test"), 443);
            assert!(matches!(reply, Some(0 | 2)), "{reply:?}");
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || dns(worker));
            scope.spawn(move || http(worker));
            scope.spawn(move || connect(worker));
            scope.spawn(move || socks(worker));
        }
        // Names of its own, each of them new, while that goes on.
        for index in 0..20 {
            let host = format!("n{index}.good.test");
            assert_eq!(world.neighbour.get(&host, "/").status, 200, "{host}");
            world.neighbour.lookup(&format!("m{index}.good.test")).assert_is([GOOD]);
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let of_neighbour = |name: &&String| name.starts_with(['n', 'm']);
    let (of_neighbour, of_guest): (Vec<_>, Vec<_>) = asked(&world).into_iter().partition(|name| of_neighbour(&name));
    let most = BURST + (seconds * RATE as f64) as usize + 1;
    println!("{} new names in {seconds:.1} s, {most} at most", of_guest.len());
    assert_eq!(of_neighbour.len(), 40);
    assert!((BURST..=most).contains(&of_guest.len()), "{} new names in {seconds} s", of_guest.len());
    assert!(outgate.counted("denied", "limit_names") >= 1.0);
    outgate.await_log(&[("reason", "limit_names"), ("cause", "over [limits].new_names_per_second")]);
    assert!(outgate.metric("dns_queries_total", &[("verdict", "denied"), ("reason", "limit_names")]) >= 1.0);
    assert!(outgate.metric("limit_reached_total", &[("limit", "new_names_per_second"), ("outcome", "refused")]) >= 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_that_goes_on_over_its_budget_is_slowed_down_and_what_it_knows_costs_it_nothing() {
    let world = World::new();
    let outgate = start(&world);
    let ask = |name: String| world.guest.dns(&query(&name, A));
    let names = (0..BURST + 4 * RATE).map(|index| format!("n{index}.good.test"));
    for name in names.clone() {
        let reply = ask(name.clone());
        assert_eq!(reply.code, NOERROR, "{name}: {reply:?}");
    }
    assert!(paced(&outgate) >= 1.0, "the last of them had to wait");
    let before = asked(&world);
    let begun = Instant::now();
    for name in names.cycle().take(1000) {
        assert_eq!(ask(name).code, NOERROR);
    }
    println!("1,000 known names in {:?}", begun.elapsed());
    assert_eq!(asked(&world), before);
    assert_eq!(outgate.metric("dns_queries_total", &[("verdict", "denied"), ("reason", "limit_names")]), 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_whose_answers_live_no_time_is_new_only_once() {
    let world = World::new();
    world.dns.set("fleeting.good.test", Answer::Addresses(vec![GOOD.into()], 0));
    let outgate = start(&world);
    for round in 0..2 * BURST {
        let reply = world.guest.dns(&query("fleeting.good.test", A));
        assert_eq!(reply.code, NOERROR, "round {round}: {reply:?}");
    }
    assert!(world.dns.count("fleeting.good.test", A) > BURST, "it was asked for again and again");
    assert_eq!(paced(&outgate), 0.0);
    assert_ne!(world.guest.dns(&query("another.good.test", A)).code, SERVFAIL);
    assert_eq!(world.guest.get("one-more.good.test", "/").status, 200);
}
