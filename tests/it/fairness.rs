//! What all guests share while they are over their limits: a guest that floods takes its own share of
//! the answers, and no other guest's.

use crate::world::client::Guest;
use crate::world::http::Response;
use crate::world::{World, eventually};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

/// One connection a guest; every further one is over the limit.
const ONE_EACH: &str = "[limits]\nconnections = 1\nnew_connections_per_second = 0";

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
fn a_guest_that_floods_while_over_its_limit_does_not_keep_others_from_being_told_about_theirs() {
    let Some(world) = World::new() else { return };
    let outgate = world.setup("good.test\n").tables(ONE_EACH).start();
    let held = (world.guest.tunnel("good.test:443"), world.neighbour.tunnel("good.test:443"));
    let enough = AtomicBool::new(false);
    let answers: Vec<Response> = std::thread::scope(|scope| {
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
