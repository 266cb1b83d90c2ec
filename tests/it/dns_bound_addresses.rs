//! A guest asks the proxy for an address that outgate's DNS gave it for an allowed name. The binding decides, as for
//! connections that the firewall redirects.

use crate::world::client::{ACCESS_DENIED, Get, Wire};
use crate::world::client_hello::Hello;
use crate::world::dns::Answer;
use crate::world::outgate::Outgate;
use crate::world::stub_resolver::RESOLVER;
use crate::world::{CDN, EVIL, GOOD, ODD, PROXY, World, eventually};
use std::io::Write;
use std::net::Ipv4Addr;

fn start(world: &World, rules: &str) -> Outgate {
    world.setup(rules).listen(&format!("proxy = [\"{PROXY}\"]\ndns = [\"{RESOLVER}\"]")).start()
}

/// A tunnel to an address through either listener; `None` if it is refused.
fn open(world: &World, listener: &str, address: Ipv4Addr, port: u16) -> Option<Wire> {
    if listener == "socks" {
        let (reply, wire) = world.guest.socks(1, &[&[1][..], &address.octets()].concat(), port);
        return (reply == Some(0)).then_some(wire);
    }
    let (response, wire) = world.guest.connect(&format!("{address}:{port}"));
    (response.status == 200).then_some(wire)
}

const LISTENERS: [&str; 2] = ["connect", "socks"];

#[test]
#[ignore = "requires root and network namespaces"]
fn an_address_from_dns_counts_as_the_name_that_the_guest_looked_up() {
    let world = World::new();
    let outgate = start(&world, "good.test\ncdn-ok.test\ntcp://odd.test:22\n");
    world.internet.serve((ODD, 22), |mut tap| {
        let _ = tap.write_all(b"SSH-2.0-Test\r\n");
        tap.drain();
    });
    for listener in LISTENERS {
        assert!(open(&world, listener, GOOD, 443).is_none(), "{listener}: nobody was told this address");
    }
    let advised = outgate.await_log(&[("reason", "not_whitelisted"), ("listener", "socks")]);
    assert!(advised["advice"].as_str().unwrap().contains("socks5h"), "{advised}");
    let config = outgate.config();
    eventually("denied advises it as well", || {
        let output = outgate.command(&["denied", "--config", config.to_str().unwrap()]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("socks5h")
    });
    world.assert_untouched(GOOD);

    world.guest.lookup("good.test").assert_is([GOOD]);
    world.guest.lookup("odd.test").assert_is([ODD]);
    for listener in LISTENERS {
        let tls = open(&world, listener, GOOD, 443).expect(listener).tls("good.test");
        assert_eq!(tls.unwrap().get("good.test", "/").unwrap().status, 200, "{listener}");
        let mut wire = open(&world, listener, GOOD, 80).expect(listener);
        wire.say("GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
        assert_eq!(wire.hear("GET").status, 200, "{listener}");
        let mut wire = open(&world, listener, ODD, 22).expect(listener);
        assert_eq!(wire.take_bytes(14), b"SSH-2.0-Test\r\n", "{listener}: the server speaks first");

        // The name inside is checked as usual: as at a transparent listener the address gives the port.
        let mut wire = open(&world, listener, GOOD, 443).expect(listener);
        wire.say(Hello::naming("evil.test").record());
        assert_eq!(wire.alert(), Some(ACCESS_DENIED), "{listener}");
        let mut wire = open(&world, listener, GOOD, 80).expect(listener);
        wire.say("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n");
        assert_eq!(wire.hear("GET").reason(), "not_whitelisted", "{listener}");

        // The port is the rule's.
        assert!(open(&world, listener, ODD, 443).is_none(), "{listener}");
        assert!(open(&world, listener, GOOD, 22).is_none(), "{listener}");
    }
    outgate.await_log(&[("name", "odd.test"), ("reason", "port_not_allowed"), ("evidence", "dns")]);
    let line = outgate.await_log(&[("name", "odd.test"), ("verdict", "allowed"), ("listener", "socks")]);
    assert_eq!((line["original"].as_str(), line["evidence"].as_str()), (Some("11.0.0.30:22"), Some("dns")));
    assert!(world.neighbour.socks(1, &[1, 11, 0, 0, 10], 443).0 != Some(0), "another guest was told nothing");
    world.assert_untouched(EVIL);
    world.assert_untouched(CDN);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_name_is_dialled_within_floor_and_deny_rules() {
    let world = World::new();
    let outgate = start(&world, "good.test\ncdn-ok.test\n");
    world.guest.lookup("good.test").assert_is([GOOD]);
    // The name moves: the gateway dials where it is now, and not where the guest says.
    world.guest.lookup("cdn-ok.test").assert_is([CDN]);
    for listener in LISTENERS {
        let tls = open(&world, listener, CDN, 443).expect(listener).tls("good.test");
        assert_eq!(tls.unwrap().get("good.test", "/").unwrap().status, 200, "{listener}");
    }
    assert_eq!(world.internet.seen(CDN).len(), 0, "reached by its name, at its own address");
    outgate.replace_rules("good.test\ndeny 11.0.0.10\n");
    eventually("the list is in force", || outgate.metric("whitelist_generation", &[]) >= 2.0);
    let before = world.internet.seen(GOOD).len();
    for listener in LISTENERS {
        let refused = open(&world, listener, GOOD, 443).is_none_or(|mut wire| {
            wire.say(Hello::naming("good.test").record());
            wire.alert() == Some(ACCESS_DENIED)
        });
        assert!(refused, "{listener}");
        assert!(open(&world, listener, CDN, 443).is_none(), "{listener}: a binding goes with its rule");
    }
    assert_eq!(world.internet.seen(GOOD).len(), before);

    world.dns.set("inside.test", Answer::Addresses(vec![[10, 9, 8, 7].into()], 60));
    outgate.replace_rules("inside.test\n");
    eventually("the list is in force", || outgate.metric("whitelist_generation", &[]) >= 3.0);
    world.guest.lookup("inside.test").assert_no_data();
    for listener in LISTENERS {
        assert!(
            open(&world, listener, [10, 9, 8, 7].into(), 443).is_none(),
            "{listener}: no binding leads to the floor"
        );
    }
}
