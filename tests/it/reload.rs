//! A list that changes while the daemon runs, and one that is broken: all or nothing, whatever
//! way an editor saves, and only the flows that the new list refuses end.

use crate::world::client::Get;
use crate::world::outgate::Outgate;
use crate::world::{CDN, EVIL, GOOD, GOOD6, ODD, World, eventually};
use rustix::process::Signal;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub fn allows(world: &World, name: &str) -> bool {
    match world.guest.get(name, "/").status {
        200 => true,
        403 => false,
        other => panic!("{name}: {other}"),
    }
}

/// Waits until exactly one of the two names passes.
#[track_caller]
fn await_swap(world: &World, now: &str, no_more: &str, how: &str) {
    eventually(&format!("{how}: {now} is allowed"), || allows(world, now));
    assert!(!allows(world, no_more), "{how}: {no_more} is refused");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_new_list_is_in_force_however_it_was_saved() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let rules = outgate.rules();
    let (good, cdn) = ("good.test", "cdn-ok.test");
    assert!(allows(&world, good) && !allows(&world, cdn));

    outgate.replace_rules("cdn-ok.test\n");
    await_swap(&world, cdn, good, "renamed over");

    fs::write(&rules, "good.test\n").unwrap();
    await_swap(&world, good, cdn, "written in place");

    let mut file = OpenOptions::new().write(true).truncate(true).open(&rules).unwrap();
    file.write_all(b"# first half\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    file.write_all(b"cdn-ok.test\n").unwrap();
    drop(file);
    await_swap(&world, cdn, good, "written in two halves");

    fs::rename(&rules, rules.with_extension("rules~")).unwrap();
    fs::write(&rules, "good.test\n").unwrap();
    await_swap(&world, good, cdn, "moved away as a backup and written anew");

    fs::remove_file(&rules).unwrap();
    fs::write(outgate.whitelist().join("other.rules"), "cdn-ok.test\n").unwrap();
    await_swap(&world, cdn, good, "removed, and another file made");

    let target = outgate.path("elsewhere.rules");
    fs::write(&target, "good.test\n").unwrap();
    fs::remove_file(outgate.whitelist().join("other.rules")).unwrap();
    symlink(&target, &rules).unwrap();
    await_swap(&world, good, cdn, "a link to a file elsewhere");

    let fresh = outgate.path("elsewhere.new");
    fs::write(&fresh, "cdn-ok.test\n").unwrap();
    fs::rename(&fresh, &target).unwrap();
    await_swap(&world, cdn, good, "the link's target renamed over");
    assert_eq!(outgate.metric("whitelist_last_reload_successful", &[]), 1.0);
    assert!(outgate.metric("whitelist_reloads_total", &[("result", "success")]) >= 6.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_swap_of_the_data_link_as_kubernetes_does_it_is_seen() {
    let world = World::new();
    let outgate = world.outgate("# empty\n");
    let dir = outgate.whitelist();
    let version = |name: &str, rules: &str| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("list.rules"), rules).unwrap();
        symlink(name, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    version("..one", "good.test\n");
    symlink("..data/list.rules", dir.join("list.rules")).unwrap();
    await_swap(&world, "good.test", "cdn-ok.test", "the first version");
    version("..two", "cdn-ok.test\n");
    fs::remove_dir_all(dir.join("..one")).unwrap();
    await_swap(&world, "cdn-ok.test", "good.test", "the second version");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_signal_reloads() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let generation = outgate.metric("whitelist_generation", &[]);
    outgate.replace_rules("cdn-ok.test\n");
    outgate.signal(Signal::HUP);
    await_swap(&world, "cdn-ok.test", "good.test", "SIGHUP");
    // The list is in force a moment before it is counted.
    eventually("the new list is counted", || outgate.metric("whitelist_generation", &[]) > generation);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_thousand_signals_and_requests_cost_a_few_reloads_and_each_request_is_answered() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let reloads = || outgate.metric("whitelist_reloads_total", &[]);
    let before = reloads();
    // Takes seconds to read, so that the others arrive in the meantime.
    let long: String = (0..200_000).map(|number| format!("host-{number}.example.net\n")).collect();
    outgate.replace_rules(format!("{long}cdn-ok.test\n"));
    outgate.signal(Signal::HUP);
    let answers = std::thread::scope(|scope| {
        let ask = || {
            let mut stream = UnixStream::connect(outgate.path("control.sock")).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
            stream.write_all(b"POST /reload HTTP/1.0\r\nContent-Length: 0\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let asking: Vec<_> = (0..200).map(|_| scope.spawn(ask)).collect();
        for _ in 0..1_000 {
            outgate.signal(Signal::HUP);
        }
        asking.into_iter().map(|asking| asking.join().unwrap()).collect::<Vec<_>>()
    });
    for answer in &answers {
        assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("\"generation\""), "{answer}");
    }
    await_swap(&world, "cdn-ok.test", "good.test", "the long list");
    // One at least, and a few for signals and changes on disk that came when the first was done.
    let cost = reloads() - before;
    assert!((1.0..=20.0).contains(&cost), "{cost} reloads");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn tunnels_that_the_new_list_refuses_end_and_others_stay() {
    let world = World::new();
    let rules = "good.test\ncdn-ok.test\ntcp://odd.test:7\n";
    let outgate = world.outgate(rules);
    world.internet.echo((ODD, 7));
    let mut tls = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
    let mut other = world.guest.tunnel("cdn-ok.test:443").tls("cdn-ok.test").unwrap();
    let mut raw = world.guest.tunnel("odd.test:7");
    let mut kept = world.guest.proxy();
    kept.say("GET http://cdn-ok.test/ HTTP/1.1\r\nHost: cdn-ok.test\r\n\r\n");
    assert_eq!(kept.hear("GET").status, 200);
    for tls in [(&mut tls, "good.test"), (&mut other, "cdn-ok.test")] {
        assert_eq!(tls.0.get(tls.1, "/").unwrap().status, 200);
    }
    raw.say("x");
    assert_eq!(raw.take_bytes(1), b"x");

    outgate.replace_rules("cdn-ok.test\n");
    assert!(tls.sock.is_over());
    assert!(raw.is_over());
    assert_eq!(other.get("cdn-ok.test", "/").unwrap().status, 200);
    kept.say("GET http://cdn-ok.test/ HTTP/1.1\r\nHost: cdn-ok.test\r\n\r\n");
    assert_eq!(kept.hear("GET").status, 200);
    eventually("two flows were revoked", || outgate.metric("flows_revoked_total", &[]) == 2.0);
    outgate.await_log(&[("name", "good.test"), ("reason", "revoked")]);
    outgate.await_log(&[("name", "odd.test"), ("reason", "revoked")]);
    eventually("the origin sees the end", || world.internet.seen(GOOD).iter().all(|seen| seen.ended));
    assert!(world.internet.seen(CDN).iter().all(|seen| !seen.ended));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_reload_that_changes_nothing_for_a_flow_keeps_it_though_the_rule_moved() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let mut tls = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
    outgate.replace_rules("# a comment\ncdn-ok.test\n.good.test\n");
    await_swap(&world, "cdn-ok.test", "evil.test", "renamed over");
    assert_eq!(tls.get("good.test", "/").unwrap().status, 200);
    assert_eq!(outgate.metric("flows_revoked_total", &[]), 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn flows_end_when_the_address_they_are_connected_to_is_denied() {
    let world = World::new();
    world.dns.set("six.test", [GOOD6.parse::<std::net::IpAddr>().unwrap()]);
    let outgate = world.outgate("good.test\nsix.test\n");
    let mut tls = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
    let mut six = world.guest.tunnel("six.test:443").tls("six.test").unwrap();
    let mut kept = world.guest.proxy();
    let request = "GET http://good.test/kept HTTP/1.1\r\nHost: good.test\r\n\r\n";
    kept.say(request);
    assert_eq!(kept.hear("GET").status, 200);
    let before = world.internet.requests(GOOD).len();

    outgate.replace_rules("good.test\nsix.test\ndeny 11.0.0.0/24\n");
    assert!(tls.sock.is_over(), "the name is still allowed, the address is not");
    outgate.await_log(&[("name", "good.test"), ("reason", "revoked")]);
    kept.say(request);
    let refusal = kept.hear("GET");
    assert_eq!((refusal.status, refusal.reason().as_str()), (403, "denied_by_rule"));
    assert_eq!(world.internet.requests(GOOD).len(), before, "nothing goes over the kept connection any more");
    assert_eq!(six.get("six.test", "/").unwrap().status, 200, "the other address is none of that");
    assert_eq!(outgate.metric("flows_revoked_total", &[]), 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_revoked_tunnel_is_reset_on_both_sides_and_not_closed_normally() {
    let world = World::new();
    let outgate = world.outgate("tcp://odd.test:7\ncdn-ok.test\ntcp://odd.test:8\n");
    let (ends, seen) = std::sync::mpsc::channel();
    for port in [7, 8] {
        let ends = ends.clone();
        world.internet.serve((ODD, port), move |mut tap| {
            let _ = tap.write_all(b"banner");
            let end = std::io::copy(&mut tap, &mut std::io::sink()).map_err(|error| error.kind());
            let _ = ends.send(end.map(|_| ()));
        });
    }
    let mut spoken = world.guest.tunnel("odd.test:7");
    spoken.say("a word");
    let silent = world.guest.tunnel("odd.test:8");
    eventually("the word arrives", || world.internet.bytes(ODD) == 6);
    outgate.replace_rules("cdn-ok.test\n");
    for mut wire in [spoken, silent] {
        assert_eq!(wire.take_bytes(6), b"banner");
        assert_eq!(wire.rest().map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
        let end = seen.recv_timeout(Duration::from_secs(15)).expect("the origin's connection ends");
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_reload_with_one_broken_file_changes_nothing_at_all() {
    let world = World::new();
    let outgate = world.setup("good.test\n").file("second.rules", "cdn-ok.test\n").start();
    let config = fs::read_to_string(outgate.config()).unwrap();
    let failures = || outgate.metric("whitelist_reloads_total", &[("result", "failure")]);
    let changes_hold = || world.neighbour.get("good.test", "/").reason() == "unknown_guest";
    let unchanged = || {
        assert!(allows(&world, "good.test") && allows(&world, "cdn-ok.test") && !allows(&world, "other.test"));
        assert_eq!(world.neighbour.get("good.test", "/").status, 200, "guests are as before");
        let held: Vec<_> = (0..4).map(|_| world.guest.tunnel("good.test:443")).collect();
        assert_eq!(held.len(), 4, "limits are as before");
    };

    // The files: one is broken, the other would allow more.
    fs::write(outgate.whitelist().join("second.rules"), "cdn-ok.test\n*.com\n").unwrap();
    eventually("the broken file is noticed", || failures() >= 1.0);
    outgate.replace_rules("good.test\nother.test\n");
    eventually("the other file is noticed", || failures() >= 2.0);
    unchanged();

    // And the configuration together with them.
    let tables = "[limits]\nconnections = 2\n[[guest]]\nname = \"vm-2\"\naddresses = [\"10.42.42.2\"]\n";
    fs::write(outgate.config(), format!("ech = \"allow\"\n{config}{tables}")).unwrap();
    let before = failures();
    outgate.signal(Signal::HUP);
    eventually("the signal is heeded", || failures() > before);
    unchanged();
    assert!(!outgate.metrics().keys().any(|series| series.contains("vm-2")));

    // Everything at once when the list is sound again.
    fs::write(outgate.whitelist().join("second.rules"), "cdn-ok.test\n").unwrap();
    eventually("the list is taken", || allows(&world, "other.test"));
    assert!(!changes_hold(), "files alone were read");
    outgate.signal(Signal::HUP);
    eventually("guests are as configured", changes_hold);
    let mut held: Vec<_> = (0..2).map(|_| world.guest.tunnel("good.test:443")).collect();
    assert_eq!(world.guest.get("good.test", "/").reason(), "limit_connections");
    held.clear();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn half_a_line_never_widens_the_list() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    // Not truncated: an empty list is a sound one, and might be read before the rest is written.
    let mut file = OpenOptions::new().write(true).open(outgate.rules()).unwrap();
    // Without its second half the line would name another host.
    file.write_all(b"good.test\nother.test").unwrap();
    for _ in 0..60 {
        assert!(!allows(&world, "other.test"));
        assert!(allows(&world, "good.test"), "the last good list stays");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(outgate.metric("whitelist_last_reload_successful", &[]), 0.0);
    file.write_all(b".example\ncdn-ok.test\n").unwrap();
    drop(file);
    await_swap(&world, "cdn-ok.test", "other.test", "the second half");
    // The metric follows the swap.
    eventually("success is told", || outgate.metric("whitelist_last_reload_successful", &[]) == 1.0);
}

/// Breaks the list, waits until the daemon says so, and checks that the last good one is in force.
#[track_caller]
fn old_list_survives(world: &World, outgate: &Outgate, what: &str, breakage: impl FnOnce()) {
    outgate.replace_rules("good.test\n");
    eventually(&format!("{what}: the list is sound before"), || {
        outgate.metric("whitelist_last_reload_successful", &[]) == 1.0 && allows(world, "good.test")
    });
    breakage();
    eventually(&format!("{what}: the metric says that the reload failed"), || {
        outgate.metric("whitelist_last_reload_successful", &[]) == 0.0
    });
    assert!(allows(world, "good.test"), "{what}: the last good list stays");
    assert!(!allows(world, "cdn-ok.test"), "{what}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_broken_list_changes_nothing() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let rules = outgate.rules();
    let write = |bytes: &[u8]| fs::write(&rules, bytes).unwrap();
    old_list_survives(&world, &outgate, "a bad line", || write(b"cdn-ok.test\nhttp://good.test/path\n"));
    old_list_survives(&world, &outgate, "not UTF-8", || write(b"cdn-ok.test\n\xff\xfe\n"));
    old_list_survives(&world, &outgate, "NUL", || write(b"cdn-ok.test\0\n"));
    old_list_survives(&world, &outgate, "a list too broad", || write(b"cdn-ok.test\n*\n"));
    old_list_survives(&world, &outgate, "one bad file of two", || {
        fs::write(outgate.whitelist().join("second.rules"), "cdn-ok.test\n*.com\n").unwrap();
    });
    fs::remove_file(outgate.whitelist().join("second.rules")).unwrap();
    old_list_survives(&world, &outgate, "writable by other users", || {
        write(b"cdn-ok.test\n");
        fs::set_permissions(&rules, fs::Permissions::from_mode(0o666)).unwrap();
    });
    old_list_survives(&world, &outgate, "a folder with the name of a list", || {
        fs::create_dir(outgate.whitelist().join("folder.rules")).unwrap();
    });
    fs::remove_dir(outgate.whitelist().join("folder.rules")).unwrap();
    old_list_survives(&world, &outgate, "a link to nowhere", || {
        symlink("nowhere", outgate.whitelist().join("dangling.rules")).unwrap();
    });
    fs::remove_file(outgate.whitelist().join("dangling.rules")).unwrap();
    old_list_survives(&world, &outgate, "the whole directory gone", || {
        fs::rename(outgate.whitelist(), outgate.path("away")).unwrap();
    });
    fs::rename(outgate.path("away"), outgate.whitelist()).unwrap();
    eventually("sound again", || outgate.metric("whitelist_last_reload_successful", &[]) == 1.0);
    assert!(outgate.metric("whitelist_reloads_total", &[("result", "failure")]) >= 9.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_empty_list_is_valid_and_refuses_everything() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let mut tunnel = world.guest.tunnel("good.test:443");
    outgate.replace_rules("");
    assert!(tunnel.is_over());
    assert!(!allows(&world, "good.test"));
    assert_eq!(outgate.metric("whitelist_last_reload_successful", &[]), 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_start_with_a_broken_list_uses_the_last_good_one_and_says_so() {
    let world = World::new();
    let mut outgate = world.outgate("good.test\n");
    assert!(allows(&world, "good.test"));
    assert!(outgate.stop().success());
    fs::write(outgate.rules(), "cdn-ok.test\n*\n").unwrap();
    outgate.launch();
    outgate.await_admin(|response| response.status != 0);
    eventually("the proxy serves", || allows(&world, "good.test"));
    assert!(!allows(&world, "cdn-ok.test"));
    let ready = outgate.admin("/readyz").unwrap();
    assert!(ready.text().contains("last good"), "{}: {}", ready.status, ready.text());
    assert_eq!(outgate.metric("whitelist_last_reload_successful", &[]), 0.0);
    outgate.replace_rules("cdn-ok.test\n");
    await_swap(&world, "cdn-ok.test", "good.test", "mended");
    outgate.await_ready();
}

/// Does something to the list of a daemon.
type Breakage = fn(&Outgate);

/// What can happen to a list, and how to do it to the list of this daemon.
const BREAKAGES: [(&str, Breakage); 5] = [
    ("the file may not be read", |outgate| chmod(&outgate.rules(), 0)),
    ("the folder may not be read", |outgate| chmod(&outgate.whitelist(), 0)),
    ("the folder is deleted", |outgate| fs::remove_dir_all(outgate.whitelist()).unwrap()),
    ("not UTF-8", |outgate| fs::write(outgate.rules(), b"cdn-ok.test\n\xff\xfe\n").unwrap()),
    ("cut short", |outgate| fs::write(outgate.rules(), b"cdn-ok.test").unwrap()),
];

fn chmod(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_list_that_became_unreadable_stays_in_force_even_after_a_restart() {
    let world = World::new();
    for (what, breakage) in BREAKAGES {
        let mut outgate = world.setup("good.test\n").write();
        outgate.become_nobody();
        outgate.launch();
        outgate.await_ready();
        let mut tunnel = world.guest.tunnel("good.test:443").tls("good.test").unwrap();

        breakage(&outgate);
        eventually(&format!("{what}: the metric says that the reload failed"), || {
            outgate.metric("whitelist_last_reload_successful", &[]) == 0.0
        });
        assert!(allows(&world, "good.test") && !allows(&world, "cdn-ok.test"), "{what}: the last good list stays");
        assert_eq!(tunnel.get("good.test", "/").unwrap().status, 200, "{what}: no flow is ended");
        assert_ne!(outgate.admin("/readyz").unwrap().status, 200, "{what}: it says that something is wrong");
        drop(tunnel);

        assert!(outgate.stop().success(), "{what}");
        outgate.launch();
        outgate.await_admin(|response| response.status != 0);
        eventually(&format!("{what}: the proxy serves again"), || allows(&world, "good.test"));
        assert!(!allows(&world, "cdn-ok.test"), "{what}: after a restart");
        assert_eq!(outgate.metric("whitelist_last_reload_successful", &[]), 0.0, "{what}: after a restart");

        // And the same without a list to fall back on.
        assert!(outgate.stop().success(), "{what}");
        for entry in fs::read_dir(outgate.path("state")).unwrap().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
        outgate.launch();
        assert_eq!(outgate.ended().code(), Some(1), "{what}: no list at all");
        assert!(!outgate.errors().contains("panicked"), "{}", outgate.errors());
        if outgate.whitelist().exists() {
            chmod(&outgate.whitelist(), 0o755);
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_file_that_is_removed_takes_its_rules_with_it() {
    let world = World::new();
    let outgate = world.setup("good.test\n").file("second.rules", "cdn-ok.test\n").start();
    let mut tunnel = world.guest.tunnel("good.test:443");
    fs::remove_file(outgate.rules()).unwrap();
    assert!(tunnel.is_over());
    await_swap(&world, "cdn-ok.test", "good.test", "one file of two removed");
    fs::remove_file(outgate.whitelist().join("second.rules")).unwrap();
    eventually("a folder without files allows nothing", || !allows(&world, "cdn-ok.test"));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_start_with_a_broken_list_and_none_kept_is_refused() {
    let world = World::new();
    for rules in ["good.test\n*\n", "good.test"] {
        let mut outgate = world.setup(rules).write();
        outgate.launch();
        assert_eq!(outgate.ended().code(), Some(1), "{rules:?}");
        let errors = outgate.errors();
        assert!(errors.contains("main.rules:"), "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
    let mut outgate = world.setup("good.test\n").write();
    fs::remove_dir_all(outgate.whitelist()).unwrap();
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    assert!(outgate.errors().contains("whitelist"), "{}", outgate.errors());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_rule_set_flipped_under_load_is_one_or_the_other_and_never_both_or_neither() {
    let world = World::new();
    let tables = "[limits]\nnew_connections_per_second = 0\nrequests_per_second = 0";
    let outgate = world.setup("good.test\n").tables(tables).start();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for _ in 0..300 {
                assert!(!allows(&world, "evil.test"));
            }
        });
        let mut turn = 0;
        while !asking.is_finished() {
            turn += 1;
            outgate.replace_rules(if turn % 2 == 0 { "good.test\n" } else { "cdn-ok.test\n" });
            std::thread::sleep(Duration::from_millis(20));
        }
        asking.join().unwrap();
    });
    outgate.replace_rules("cdn-ok.test\n");
    await_swap(&world, "cdn-ok.test", "good.test", "the last write counts");
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn changed_settings_are_taken_up_and_bad_ones_are_not() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let config = fs::read_to_string(outgate.config()).unwrap();
    fs::write(outgate.config(), format!("mode = \"none\"\n{config}")).unwrap();
    outgate.signal(Signal::HUP);
    eventually("mode none holds", || world.guest.get("good.test", "/").reason() == "mode_none");

    fs::write(outgate.config(), format!("mdoe = \"all\"\n{config}")).unwrap();
    outgate.signal(Signal::HUP);
    eventually("the error is reported", || outgate.errors().contains("mdoe"));
    assert_eq!(world.guest.get("good.test", "/").reason(), "mode_none", "a bad configuration changes nothing");

    fs::write(outgate.config(), config).unwrap();
    outgate.signal(Signal::HUP);
    eventually("back to the whitelist", || allows(&world, "good.test"));
}

/// Runs a command of docs/operations.md in a folder; returns the first word of what it prints.
fn documented(command: &str, folder: &std::path::Path) -> String {
    let page = include_str!("../../docs/operations.md");
    assert!(page.contains(command), "docs/operations.md does not have {command}");
    let printed = std::process::Command::new("sh").args(["-c", command]).current_dir(folder).output().unwrap();
    String::from_utf8(printed.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn hosts_are_compared_by_the_sums_of_list_and_configuration_which_a_shell_prints_too() {
    const LIST: &str = "sha256sum *.rules *.lst *.json 2>/dev/null | LC_ALL=C sort -k2 | sha256sum";
    const CONFIGURATION: &str = "LC_ALL=C sh -c 'sha256sum outgate.toml conf.d/*.toml 2>/dev/null' | sha256sum";
    let world = World::new();
    let mut outgate = world.outgate("good.test\n");
    let folder = outgate.config().parent().unwrap().to_owned();
    let shown = |outgate: &Outgate| {
        let (mut list, mut configuration) = (String::new(), String::new());
        // A reload may come between the two questions.
        eventually("metrics and /readyz say the same, with one series each", || {
            let answer = outgate.admin("/readyz").unwrap();
            let sum = |name: &str| answer.header(name).unwrap_or_default().to_owned();
            (list, configuration) = (sum("outgate-list-sha256"), sum("outgate-config-sha256"));
            let wanted = [("config", &configuration), ("list", &list)]
                .map(|(what, sum)| format!("outgate_{what}_info{{sha256=\"{sum}\"}}"));
            outgate.metrics().into_keys().filter(|name| name.contains("_info{sha256=")).eq(wanted)
        });
        (list, configuration)
    };
    let lists = outgate.whitelist();
    let computed = || (documented(LIST, &lists), documented(CONFIGURATION, &folder));
    let first = computed();
    assert_eq!(shown(&outgate), first);
    // A second file whose name comes first, and one of another kind.
    fs::write(outgate.whitelist().join("00-more.lst"), "cdn-ok.test\n").unwrap();
    eventually("the sum of the new list is shown", || shown(&outgate).0 != first.0);
    assert_eq!(shown(&outgate), computed());
    // What is broken is not in force.
    let second = computed();
    fs::write(outgate.whitelist().join("00-more.lst"), "exmaple.org:8O80\n").unwrap();
    eventually("the list is refused", || outgate.admin("/readyz").is_some_and(|answer| answer.status == 503));
    assert_eq!(shown(&outgate), second);
    fs::write(outgate.whitelist().join("00-more.lst"), "cdn-ok.test\n").unwrap();
    outgate.await_ready();
    // A comment is a change of the file; so is another file of the configuration.
    let mut file = OpenOptions::new().append(true).open(outgate.config()).unwrap();
    file.write_all(b"# a comment\n").unwrap();
    fs::create_dir(folder.join("conf.d")).unwrap();
    fs::write(folder.join("conf.d/50-more.toml"), "[limits]\nconnections = 100\n").unwrap();
    assert_eq!(shown(&outgate), second, "nothing was read again yet");
    outgate.signal(Signal::HUP);
    eventually("the sum of the new configuration is shown", || shown(&outgate).1 != second.1);
    assert_eq!(shown(&outgate), computed());
    // What takes a restart is not in force.
    let third = computed();
    fs::write(folder.join("conf.d/60-more.toml"), "[listen]\nredirect = [\"127.0.0.1:3130\"]\n").unwrap();
    let reloaded =
        outgate.command(&["whitelist", "reload", "--config", outgate.config().to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8_lossy(&reloaded.stdout).contains("listen.redirect"), "{reloaded:?}");
    assert_eq!(shown(&outgate), third);
    let status =
        outgate.command(&["status", "--json", "--config", outgate.config().to_str().unwrap()]).output().unwrap().stdout;
    let status = String::from_utf8(status).unwrap();
    assert!(status.contains(&format!("\"list_sha256\": \"{}\"", third.0)), "{status}");
    assert!(status.contains(&format!("\"config_sha256\": \"{}\"", third.1)), "{status}");
}
