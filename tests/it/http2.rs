//! HTTP/2 in clear: outgate reads no name in it, so it is refused where a name is required, and passes where a rule
//! allows any bytes.

use crate::transparent;
use crate::world::client::{Guest, Wire};
use crate::world::outgate::Outgate;
use crate::world::stub_resolver::RESOLVER;
use crate::world::{EVIL, GOOD, ODD, World};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const RULES: &str = "good.test\nodd.test:50052\ntcp://odd.test:50051\n";
/// Preface and SETTINGS (RFC 9113 §3.4), then a request whose :authority is evil.test.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
                         \0\0\x0e\x01\x05\0\0\0\x01\x82\x86\x84\x41\x09evil.test";

/// Status and reason of an answer in HTTP/1.1, which clients of HTTP/2 take for the end; the connection must end
/// with it.
fn refused(wire: &mut Wire) -> (u16, String) {
    let answer = wire.hear("GET");
    assert!(wire.rest().expect("an end, and no reset before the answer was read").is_empty());
    (answer.status, answer.reason())
}

#[test]
#[ignore = "requires root and network namespaces"]
fn http2_passes_a_tunnel_only_with_a_rule_for_any_bytes() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    world.internet.echo((ODD, 50051));
    world.internet.echo((ODD, 50052));
    let socks = |port| {
        let (reply, wire) = world.guest.socks_name("odd.test", port);
        assert_eq!(reply, Some(0));
        wire
    };
    for mut wire in [world.guest.tunnel("odd.test:50051"), socks(50051)] {
        wire.say_slowly([&OPENING[..10], &OPENING[10..30], &OPENING[30..]], Duration::from_millis(20));
        assert_eq!(wire.take_bytes(OPENING.len()), OPENING, "every byte comes back from the origin");
    }
    let passed = world.internet.bytes(ODD);
    for mut wire in [world.guest.tunnel("odd.test:50052"), socks(50052), world.guest.tunnel("good.test:80")] {
        wire.say(OPENING);
        assert_eq!(refused(&mut wire), (505, "h2c".to_owned()));
    }
    assert_eq!((world.internet.bytes(ODD), world.internet.bytes(GOOD)), (passed, 0));
    outgate.await_counted("denied", "h2c", 3.0);
    let line = outgate.await_log(&[("reason", "h2c"), ("destination", "odd.test:50052")]);
    assert!(line["advice"].as_str().unwrap().contains("tcp://odd.test:50052"), "{line}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_http2_client_that_speaks_to_the_proxy_as_its_server_gets_an_error() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    wire.say(OPENING);
    assert_eq!(refused(&mut wire), (505, "h2c".to_owned()));
    let mut wire = world.guest.proxy();
    wire.say("GET http://good.test/ HTTP/2.0\r\nHost: good.test\r\n\r\n");
    let refusal = wire.hear("GET");
    assert_eq!((refusal.status, refusal.reason().as_str()), (505, "malformed"), "a request line is no HTTP/2");
    outgate.await_counted("denied", "h2c", 1.0);
    assert!(world.internet.all().is_empty() && world.dns.log().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_request_after_the_preface_does_not_bypass_the_names() {
    let world = World::new();
    let outgate = world.outgate("tcp://good.test:80\n");
    let mut wire = world.guest.tunnel("good.test:80");
    wire.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /stolen HTTP/1.1\r\nHost: evil.test\r\n\r\n");
    assert!(wire.is_over());
    assert!(world.internet.requests(GOOD).iter().all(|request| request.target != "/stolen"));
    outgate.await_counted("denied", "h2c", 1.0);
}

fn dial(guest: &Guest, address: impl Into<IpAddr>, port: u16) -> Wire {
    Wire::dial(&guest.namespace, SocketAddr::new(address.into(), port)).expect("the gateway takes it")
}

#[test]
#[ignore = "requires root and network namespaces"]
fn transparent_http2_goes_to_the_name_that_dns_gave() {
    let world = World::new();
    let listen = format!("proxy = []\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\ndns = [\"{RESOLVER}\"]");
    let outgate: Outgate = transparent::setup(&world, RULES).listen(&listen).start();
    world.internet.echo((ODD, 50051));
    world.internet.echo((ODD, 50052));
    for port in [50051, 50052] {
        let mut wire = dial(&world.guest, ODD, port);
        wire.say(OPENING);
        assert_eq!(refused(&mut wire), (505, "h2c".to_owned()), "{port}: nobody asked for the name");
    }
    world.guest.lookup("odd.test").assert_is([ODD]);
    let mut wire = dial(&world.guest, ODD, 50051);
    wire.say_slowly([&OPENING[..20], &OPENING[20..]], Duration::from_millis(20));
    assert_eq!(wire.take_bytes(OPENING.len()), OPENING);
    let passed = world.internet.bytes(ODD);
    let mut wire = dial(&world.guest, ODD, 50052);
    wire.say(OPENING);
    assert_eq!(refused(&mut wire).1, "h2c");
    let mut wire = dial(&world.guest, EVIL, 80);
    wire.say(OPENING);
    assert_eq!(refused(&mut wire).1, "h2c");
    let mut wire = dial(&world.neighbour, ODD, 50051);
    wire.say(OPENING);
    assert_eq!(refused(&mut wire).1, "h2c", "what another guest was told counts for nobody else");
    assert_eq!(world.internet.bytes(ODD), passed);
    world.assert_untouched(EVIL);
    outgate.await_counted("denied", "h2c", 5.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn explain_says_what_the_wire_does() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let config = outgate.config();
    let explain = |url: &str| {
        let output =
            outgate.command(&["explain", "--json", "--config", config.to_str().unwrap(), url]).output().unwrap();
        let answers: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |key: &str| answers[0][key].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", text("verdict"), text("reason"), text("suggestion"))
    };
    assert_eq!(explain("h2c://odd.test:50051"), "allowed none ");
    assert_eq!(explain("h2c://odd.test:50052"), "denied h2c tcp://odd.test:50052");
    assert_eq!(explain("h2c://good.test:80"), "denied h2c tcp://good.test:80");
    assert_eq!(explain("tcp://odd.test:50051"), "allowed none ");
}
