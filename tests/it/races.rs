//! What happens between two stages: a list that changes while a flow connects, servers that break off
//! before the guest has spoken, refusals of flows that had an upstream already.

use crate::world::client::ACCESS_DENIED;
use crate::world::client_hello::Hello;
use crate::world::{ADMIN, GOOD, ODD, World, eventually};
use std::io::Write;
use std::process::Command;

/// Runs nft in the internet's namespace.
fn nft(world: &World, arguments: &[&str]) {
    let status = world.internet.run(|| Command::new("nft").args(arguments).status());
    assert!(status.expect("nft is installed").success(), "{arguments:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_address_denied_while_a_request_was_connecting_to_it_gets_no_byte() {
    let world = World::new();
    let outgate = world.outgate("odd.test\ngood.test\n");
    world.internet.sink((ODD, 80));
    nft(&world, &["add table ip hold"]);
    nft(&world, &["add chain ip hold input { type filter hook input priority 0; }"]);
    nft(&world, &["add rule ip hold input ip daddr 11.0.0.30 tcp dport 80 drop"]);
    let mut wire = world.guest.proxy();
    wire.say("GET http://odd.test/ HTTP/1.1\r\nHost: odd.test\r\n\r\n");
    eventually("the name was looked up, so the flow connects", || world.dns.names().contains(&"odd.test".to_owned()));
    outgate.replace_rules("odd.test\ngood.test\ndeny 11.0.0.30\n");
    eventually("the new list is in force", || outgate.metric("whitelist_generation", &[]) == 2.0);
    nft(&world, &["delete table ip hold"]);
    // The kernel sends the SYN again after a second, and is answered now.
    let response = wire.hear("GET");
    assert_eq!((response.status, response.reason().as_str()), (403, "revoked"));
    assert_eq!(world.internet.bytes(ODD), 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn refusals_inside_tunnels_are_folded_and_shown_like_all_others() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    for _ in 0..20 {
        let mut wire = world.guest.tunnel("good.test:443");
        wire.say(Hello::naming("evil.test").record());
        assert_eq!(wire.alert(), Some(ACCESS_DENIED));
    }
    outgate.await_counted("denied", "name_mismatch", 20.0);
    outgate.await_log(&[("reason", "name_mismatch")]);
    let lines = outgate.log().into_iter().filter(|line| line["reason"] == "name_mismatch").count();
    assert!(lines < 5, "{lines} lines for one guest and one destination");
    let denied =
        outgate.command(&["denied", "--json", "--config", outgate.config().to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&denied.stdout).into_owned();
    assert!(text.contains("name_mismatch") && text.contains("good.test"), "{text}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_server_that_speaks_first_and_breaks_off_does_not_count_as_finished() {
    let world = World::new();
    let _outgate = world.outgate("tcp://odd.test:2222\n");
    world.internet.serve((ODD, 2222), |mut tap| {
        let _ = tap.write_all(&[b'x'; 1000]);
        // A reset at once would overtake the bytes.
        std::thread::sleep(std::time::Duration::from_millis(300));
        tap.reset();
    });
    let mut wire = world.guest.tunnel("odd.test:2222");
    let error = wire.rest().expect_err("a cut stream must not look whole");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_unspecified_address_is_never_dialled_even_with_an_open_floor() {
    let world = World::new();
    let port = ADMIN.rsplit(':').next().unwrap();
    world.dns.set("zero.test", [std::net::Ipv4Addr::UNSPECIFIED]);
    let outgate = world
        .setup(&format!("0.0.0.0:{port}\n[::]:{port}\nzero.test:{port} to=0.0.0.0/0\n"))
        .tables("[dial]\npermit_addresses = [\"0.0.0.0/0\", \"::/0\"]")
        .start();
    for host in [format!("0.0.0.0:{port}"), format!("[::]:{port}"), format!("zero.test:{port}")] {
        let response = world.guest.get(&host, "/metrics");
        assert_eq!((response.status, response.reason().as_str()), (403, "address_floor"), "{host}");
    }
    outgate.await_counted("denied", "address_floor", 3.0);
    world.assert_untouched(GOOD);
}
