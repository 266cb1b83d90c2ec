//! What all guests share while they are over their limits: a guest that floods takes its own share of
//! the answers, and no other guest's.

use crate::world::client::Guest;
use crate::world::dns::A;
use crate::world::http::Response;
use crate::world::stub_resolver::{NOERROR, RESOLVER, framed, query};
use crate::world::{PROXY, Raise, World, eventually};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One connection a guest; every further one is over the limit.
const ONE_EACH: &str = "[limits]\nconnections = 1\nnew_connections_per_second = 0\nhandshake_timeout_ms = 120000";

/// Opens connections that say nothing, until `enough`: each would hold a place for two seconds.
fn flood(guest: &Guest, enough: &AtomicBool) -> Vec<TcpStream> {
    let mut held = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        held.extend(guest.proxies(50));
        if held.len() > 3000 {
            held.drain(..1000).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
    }
    held
}

fn is_told(response: &Response) -> bool {
    response.status == 429 && response.reason() == "limit_connections"
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_that_floods_while_over_its_limit_does_not_keep_others_from_being_told_about_theirs() {
    let world = World::new();
    let outgate = world.setup("good.test\n").tables(ONE_EACH).start();
    let held = (world.guest.tunnel("good.test:443"), world.neighbour.tunnel("good.test:443"));
    let enough = AtomicBool::new(false);
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let _raise = Raise(&enough);
        let flooding = scope.spawn(|| flood(&world.guest, &enough));
        eventually("the flood is on", || outgate.counted("denied", "limit_connections") >= 600.0);
        let answers = (0..20).map(|_| world.neighbour.get("good.test", "/")).collect();
        enough.store(true, Ordering::Relaxed);
        drop(flooding.join().unwrap());
        answers
    });
    let told = answers.iter().filter(|answer| is_told(answer)).count();
    assert_eq!(told, 20, "of 20 refusals beside a flood: {answers:?}");

    eventually("the guest itself is told again", || is_told(&world.guest.get("good.test", "/")));
    drop(held);
    for guest in [&world.guest, &world.neighbour] {
        eventually("a place is free again", || guest.get("good.test", "/").status == 200);
    }
}

/// Connections of the guest that sends one request behind the other.
const PIPELINES: usize = 600;

/// Keeps connections to `address` full of `message`, reads what is answered and connects again where it is closed, until
/// `stop`. Gives the number of bytes that were answered.
fn pipeline(guest: &Guest, address: &str, message: &[u8], stop: &AtomicBool, begun: &AtomicU64) {
    let block = message.repeat((16 << 10) / message.len() + 1);
    let open = || {
        let stream = guest.namespace.run(|| TcpStream::connect(address)).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((stream, 0))
    };
    let mut wires: Vec<Option<(TcpStream, usize)>> = (0..PIPELINES).map(|_| open()).collect();
    let mut scratch = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        for wire in &mut wires {
            let Some((stream, sent)) = wire else {
                *wire = open();
                continue;
            };
            let mut ended = false;
            match stream.write(&block[*sent..]) {
                Ok(count) => *sent = (*sent + count) % block.len(),
                Err(error) => ended = error.kind() != ErrorKind::WouldBlock,
            }
            match stream.read(&mut scratch) {
                Ok(0) => ended = true,
                Ok(count) => drop(begun.fetch_add(count as u64, Ordering::Relaxed)),
                Err(error) => ended |= error.kind() != ErrorKind::WouldBlock,
            }
            if ended {
                *wire = None;
            }
        }
    }
}

/// How long each of the neighbour's requests took, every one of which is answered.
fn times(count: usize, mut ask: impl FnMut()) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            ask();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times
}

fn assert_neighbour_is_served(limits: &str, what: &str, address: &str, message: &[u8]) {
    let world = World::new();
    let listen = format!("proxy = [\"{PROXY}\"]\ndns = [\"{RESOLVER}\"]");
    let _outgate = world.setup("good.test\n").listen(&listen).tables(limits).start();
    let by_http = || assert_eq!(world.neighbour.get("good.test", "/").status, 200);
    let by_dns = || assert_eq!(world.neighbour.dns_tcp(&query("good.test", A)).code, NOERROR);
    let idle = [times(30, by_http)[15], times(30, by_dns)[15]];
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| pipeline(&world.guest, address, message, &stop, &answered));
        let _end = Raise(&stop);
        eventually("the pipelines are answered", || answered.load(Ordering::Relaxed) > 10_000);
        // What it costs others it costs in every round; a busy machine rather not in all three.
        let mut best = [Duration::MAX; 2];
        for _ in 0..3 {
            let busy = [times(20, by_http)[10], times(20, by_dns)[10]];
            best = [best[0].min(busy[0]), best[1].min(busy[1])];
        }
        println!("{what}: medians {idle:?} alone, {best:?} beside");
        for (idle, best) in idle.into_iter().zip(best) {
            assert!(best < (3 * idle).max(Duration::from_millis(250)), "{what}: {best:?} where {idle:?} is usual");
        }
    });
}

const REFUSED: &[u8] = b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n";
const ALLOWED: &[u8] = b"HEAD http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n";
const NO_LIMITS: &str =
    "[limits]\nconnections = 0\nnew_connections_per_second = 0\nrequests_per_second = 0\ndns_queries_per_second = 0";

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_that_pipelines_on_many_connections_does_not_keep_its_neighbour_waiting() {
    assert_neighbour_is_served("", "refused requests, default limits", PROXY, REFUSED);
    assert_neighbour_is_served("", "allowed requests, default limits", PROXY, ALLOWED);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_without_a_limit_that_floods_does_not_keep_others_waiting() {
    assert_neighbour_is_served(NO_LIMITS, "refused requests, no limits", PROXY, REFUSED);
    assert_neighbour_is_served(NO_LIMITS, "allowed requests, no limits", PROXY, ALLOWED);
    let queries = framed(&query("evil.test", A).bytes());
    assert_neighbour_is_served(NO_LIMITS, "DNS over TCP, no limits", RESOLVER, &queries);
}
