//! Declared guests: modes, guests with files of their own, and undeclared ones.

use crate::world::client_hello::Hello;
use crate::world::{CDN, EVIL, GOOD, ODD, World};

const GUESTS: &str = r#"
[[guest]]
name = "vm-2"
addresses = ["10.42.42.2"]
whitelist = ["vm-2.rules"]

[[guest]]
name = "vm-3"
addresses = ["10.42.42.3"]
"#;

#[test]
#[ignore = "requires root and network namespaces"]
fn each_guest_has_only_its_own_files() {
    let world = World::new();
    let outgate = world.setup("cdn-ok.test\n").file("vm-2.rules", "good.test\n").tables(GUESTS).start();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.guest.get("cdn-ok.test", "/").status, 403, "a guest with files of its own has no others");
    assert_eq!(world.neighbour.get("cdn-ok.test", "/").status, 200, "without: all files that no guest names");
    assert_eq!(world.neighbour.get("good.test", "/").status, 403);
    for (guest, verdict, count) in [("vm-2", "allowed", 1.0), ("vm-2", "denied", 1.0), ("vm-3", "allowed", 1.0)] {
        crate::world::eventually("flows are counted by guest", || {
            outgate.metric("guest_connections_total", &[("guest", guest), ("verdict", verdict)]) == count
        });
    }
    outgate.await_log(&[("guest", "vm-2"), ("name", "good.test"), ("verdict", "allowed"), ("rule", "vm-2.rules:1")]);
    assert_eq!(world.internet.requests(GOOD).len(), 1);
    assert_eq!(world.internet.requests(CDN).len(), 1);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn deny_rules_of_every_file_apply_to_every_guest() {
    let world = World::new();
    let rules = "deny bad.good.test\ncdn-ok.test\n";
    let _outgate = world.setup(rules).file("vm-2.rules", ".good.test\n").tables(GUESTS).start();
    assert_eq!(world.guest.get("fine.good.test", "/").status, 200);
    assert_eq!(world.guest.get("bad.good.test", "/").reason(), "denied_by_rule");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn as_soon_as_a_guest_is_declared_others_are_unknown() {
    let world = World::new();
    let one = "[[guest]]\nname = \"vm-2\"\naddresses = [\"10.42.42.2\"]\n";
    {
        let outgate = world.setup("good.test\n").tables(one).start();
        assert_eq!(world.guest.get("good.test", "/").status, 200);
        let refusal = world.neighbour.get("good.test", "/");
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, "unknown_guest"));
        assert_eq!(world.neighbour.connect("good.test:443").0.reason(), "unknown_guest");
        assert_eq!(world.neighbour.socks_name("good.test", 443).0, Some(2));
        outgate.await_counted("denied", "unknown_guest", 3.0);
        assert_eq!(world.internet.requests(GOOD).len(), 1);
    }
    let _outgate = world.setup("good.test\n").tables(&format!("{one}[guests]\nunknown = \"shared\"\n")).start();
    assert_eq!(world.neighbour.get("good.test", "/").status, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn mode_none_allows_nothing() {
    let world = World::new();
    let outgate = world.setup("good.test\n").top("mode = \"none\"").start();
    let refusal = world.guest.get("good.test", "/");
    assert_eq!((refusal.status, refusal.reason().as_str()), (403, "mode_none"));
    assert_eq!(world.guest.connect("good.test:443").0.reason(), "mode_none");
    assert!(world.dns.log().is_empty() && world.internet.all().is_empty());
    outgate.await_counted("denied", "mode_none", 2.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn mode_all_allows_everything_except_what_is_denied() {
    let world = World::new();
    world.dns.set("inside.test", [std::net::Ipv4Addr::new(10, 0, 0, 1)]);
    let _outgate = world.setup("deny cdn-bad.test\ndeny 11.0.0.66\n").top("mode = \"all\"").start();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.guest.https_get("cdn-ok.test:443", "cdn-ok.test", "/").unwrap().status, 200);
    for (target, reason) in [
        ("cdn-bad.test:80", "denied_by_rule"),
        ("evil.test:80", "denied_by_rule"),
        ("inside.test:80", "address_floor"),
        ("127.0.0.1:80", "address_floor"),
        ("good.test:25", "port_not_allowed"),
    ] {
        let refusal = world.guest.connect(target).0;
        assert_eq!((refusal.status, refusal.reason().as_str()), (403, reason), "{target}");
    }
    world.internet.sink((ODD, 443));
    let mut wire = world.guest.tunnel("odd.test:443");
    wire.say(Hello::naming("odd.test").ech().record());
    assert!(wire.is_over());
    let mut wire = world.guest.tunnel("good.test:443");
    wire.say(Hello::naming("other.test").record());
    assert!(wire.is_over(), "names agree in every mode");
    assert_eq!(world.internet.bytes(ODD), 0);
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn mode_observe_allows_and_reports_what_no_rule_allows() {
    let world = World::new();
    let outgate = world.setup("good.test\ndeny cdn-bad.test\n").top("mode = \"observe\"").start();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.guest.get("evil.test", "/").status, 200);
    assert_eq!(world.guest.get("cdn-bad.test", "/").reason(), "denied_by_rule");
    outgate.await_log(&[("name", "evil.test"), ("verdict", "observed")]);
    outgate.await_log(&[("name", "good.test"), ("verdict", "allowed")]);
    assert_eq!(outgate.metric("connections_total", &[("verdict", "observed")]), 1.0);
    assert_eq!(world.internet.requests(EVIL).len(), 1);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guests_mode_overrides_the_daemons() {
    let world = World::new();
    let tables = "[[guest]]\nname = \"closed\"\naddresses = [\"10.42.42.2\"]\nmode = \"none\"\n\
                  [[guest]]\nname = \"open\"\naddresses = [\"10.42.42.3\"]\nmode = \"all\"\n";
    let _outgate = world.setup("good.test\n").tables(tables).start();
    assert_eq!(world.guest.get("good.test", "/").reason(), "mode_none");
    assert_eq!(world.neighbour.get("cdn-ok.test", "/").status, 200);
}
