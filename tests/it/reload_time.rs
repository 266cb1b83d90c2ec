//! How soon a changed list is in force, on lists as long as operators have them. The figures are the
//! documented ones for a release build; a debug build, whose code is not what is shipped, gets five
//! times as long.

use crate::world::{PATIENCE, World};
use std::fmt::Write;
use std::time::{Duration, Instant};

const SLACK: u32 = if cfg!(debug_assertions) { 30 } else { 1 };
/// The documented time to close what a list in force refuses.
const REVOKED: Duration = Duration::from_secs(1).saturating_mul(SLACK);
const ROUNDS: usize = 3;

/// `names` names of one operator and `globs` globs, and room for one rule more at the end.
fn list(names: usize, globs: usize) -> String {
    let mut text = String::new();
    for index in 0..names {
        let dot = if index % 4 == 0 { "." } else { "" };
        writeln!(text, "{dot}host{index:07}.tenant{}.example.net", index % 997).unwrap();
    }
    for index in 0..globs {
        writeln!(text, "api-{index}-*.example.org").unwrap();
    }
    text
}

/// How many times as long as elsewhere this waits: a long list takes a debug build long, beside tests that take the
/// CPU longer still.
const PATIENCES: u32 = 8;

/// Swaps one allowed host for another at the end of a long list, by rename. Gives how long after the
/// rename the new host passes, and how long until the last tunnel to the old one is closed.
fn swap(world: &World, outgate: &crate::world::outgate::Outgate, text: &str, now: &str, old: &str) -> [Duration; 2] {
    let tunnels: Vec<_> = (0..50).map(|_| world.guest.tunnel(&format!("{old}:443"))).collect();
    let kept: Vec<_> = (0..50).map(|_| world.guest.tunnel("other.test:443")).collect();
    let fresh = outgate.whitelist().join(".main.rules.new");
    std::fs::write(&fresh, format!("{text}other.test\n{now}\n")).unwrap();
    std::fs::rename(fresh, outgate.rules()).unwrap();
    let written = Instant::now();
    let times = std::thread::scope(|scope| {
        let closed = scope.spawn(|| {
            for mut tunnel in tunnels {
                assert!((0..PATIENCES).any(|_| tunnel.is_over()), "a tunnel to {old} is still open");
            }
            written.elapsed()
        });
        let give_up = Instant::now() + PATIENCE * PATIENCES;
        while world.guest.get(now, "/").status != 200 {
            assert!(Instant::now() < give_up, "{now} is not allowed");
            std::thread::sleep(Duration::from_millis(5));
        }
        let in_force = written.elapsed();
        [in_force, closed.join().unwrap()]
    });
    assert_eq!(world.guest.get(old, "/").status, 403);
    assert!(kept.iter().all(|tunnel| crate::world::client::is_open(tunnel.stream())), "others must not notice");
    times
}

#[track_caller]
fn check_reload_time(world: &World, text: &str, limit: Duration) {
    let tables = "[limits]\nnew_connections_per_second = 0\nhandshake_timeout_ms = 60000";
    let begin = Instant::now();
    let outgate = world.setup(&format!("{text}other.test\ngood.test\n")).tables(tables).start();
    println!("{} rules: ready after {:?}", text.lines().count() + 2, begin.elapsed());
    let mut rounds = Vec::new();
    for turn in 0..ROUNDS {
        let (now, old) = if turn % 2 == 0 { ("cdn-ok.test", "good.test") } else { ("good.test", "cdn-ok.test") };
        let [in_force, closed] = swap(world, &outgate, text, now, old);
        println!("  in force after {in_force:?}, all refused tunnels closed after {closed:?}");
        rounds.push((in_force, closed));
    }
    // A machine that is busy elsewhere may cost one round; a daemon that is slow is slow in each.
    rounds.sort();
    let (in_force, closed) = rounds[ROUNDS / 2];
    assert!(in_force <= limit, "in force only after {in_force:?}");
    assert!(closed <= limit + REVOKED, "closed only after {closed:?}");
    assert_eq!(outgate.metric("flows_revoked_total", &[]), (50 * ROUNDS) as f64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_list_of_100_000_rules_is_in_force_within_a_second_of_its_last_write() {
    let world = World::new();
    check_reload_time(&world, &list(99_000, 998), Duration::from_secs(1) * SLACK);
}

/// Only in a release build: a debug build would delay the other tests.
#[cfg(not(debug_assertions))]
#[test]
#[ignore = "requires root and network namespaces"]
fn a_list_of_a_million_rules_is_in_force_within_two_seconds_of_its_last_write() {
    let world = World::new();
    check_reload_time(&world, &list(1_000_000, 5_000), Duration::from_secs(2));
}
