//! Protocols that show no name: known by the name for which outgate's DNS gave the guest the address.

use crate::world::client::Guest;
use crate::world::dns::{A, AAAA};
use crate::world::guarded_network::{GuardedNetwork, ODD6, STRANGER, STRANGER6};
use crate::world::outgate::Outgate;
use crate::world::{ODD, eventually};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::IpAddr;

const RULES: &str = "tcp://odd.test:2222\ntcp://odd.test:7\nshared.test\n";
const BANNER: &[u8] = b"SSH-2.0-test\r\n";

/// On ODD a server that speaks first, and one that sends back what it gets.
fn serve(network: &GuardedNetwork) {
    for odd in [IpAddr::from(ODD), ODD6.into()] {
        network.internet.serve((odd, 2222), |mut tap| {
            let _ = tap.write_all(BANNER);
            let mut word = [0; 6];
            if tap.read_exact(&mut word).is_ok() {
                let _ = tap.write_all(&word);
            }
            tap.finish();
        });
        network.internet.echo((odd, 7));
        // Open on the internet, but no rule's.
        network.internet.echo((odd, 2223));
    }
}

/// Do both servers answer the guest as they should?
#[track_caller]
fn assert_reached(guest: &Guest, address: IpAddr) {
    let mut wire = guest.dial(address, 2222).unwrap();
    assert_eq!(wire.take_bytes(BANNER.len()), BANNER, "the server speaks first, {address}");
    wire.say("hello\n");
    assert_eq!(wire.take_bytes(6), b"hello\n");
    let mut wire = guest.dial(address, 7).unwrap();
    wire.say(b"\x00raw\xff");
    assert_eq!(wire.take_bytes(5), b"\x00raw\xff", "the client speaks first, {address}");
    wire.finish();
    assert!(wire.is_over());
}

#[track_caller]
fn assert_refused(guest: &Guest, address: IpAddr) {
    for port in [2222, 7] {
        assert!(guest.is_reset(address, port), "{address} port {port}");
    }
}

fn idle(outgate: &Outgate) {
    eventually("no flow is open", || outgate.metric("active_connections", &[]) == 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn raw_bytes_go_to_an_allowed_name_that_the_guest_looked_up() {
    let network = GuardedNetwork::new();
    serve(&network);
    let outgate = network.start(network.setup(RULES));
    let (v4, v6) = (IpAddr::from(ODD), IpAddr::from(ODD6));
    assert_refused(&network.one, v4);
    network.one.ask_at(STRANGER, "odd.test", A).assert_is([ODD]);
    assert_reached(&network.one, v4);
    network.one.ask_at(STRANGER6, "odd.test", AAAA).assert_is([ODD6]);
    assert_reached(&network.one, v6);
    for original in ["11.0.0.30:2222", "[2600:10::30]:7"] {
        let fields = [("original", original), ("name", "odd.test"), ("verdict", "allowed"), ("evidence", "dns")];
        outgate.await_log(&fields);
    }
    // By which family the gateway dials is its own affair.
    let seen = || network.internet.seen(ODD).len() + network.internet.seen(ODD6).len();
    assert_eq!(seen(), 4);

    // A guest that never looked the name up, and one that looked up another name at that address.
    assert_refused(&network.two, v4);
    assert_refused(&network.three, v6);
    network.three.ask_at(STRANGER, "shared.test", A).assert_is([ODD]);
    assert_refused(&network.three, v4);
    // A port of no rule's, for the guest that asked.
    assert!(network.one.is_reset(v4, 2223) && network.one.is_reset(v6, 2223));
    assert_eq!(seen(), 4);
    // Told as soon as it was clear that the guest waits for the server's word.
    outgate.await_counted("denied", "not_whitelisted", 6.0);
    outgate.await_counted("denied", "port_not_allowed", 4.0);
    assert_eq!(outgate.counted("denied", "timeout"), 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_declared_guest_may_ask_over_one_family_and_connect_over_the_other() {
    let network = GuardedNetwork::new();
    serve(&network);
    let guest = "[[guest]]\nname = \"c\"\naddresses = [\"10.43.0.3\", \"fd43::3\"]\n";
    let _outgate = network.start(network.setup(RULES).tables(guest));
    network.three.ask_at(STRANGER, "odd.test", AAAA).assert_is([ODD6]);
    assert_reached(&network.three, ODD6.into());
    network.three.ask_at(STRANGER6, "odd.test", A).assert_is([ODD]);
    assert_reached(&network.three, ODD.into());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_binding_and_its_flows_end_with_its_rule() {
    let network = GuardedNetwork::new();
    serve(&network);
    let outgate = network.start(network.setup(RULES));
    network.one.ask_at(STRANGER, "odd.test", A).assert_is([ODD]);
    let mut open = [2222, 7].map(|port| network.one.dial(ODD, port).unwrap());
    assert_eq!(open[0].take_bytes(BANNER.len()), BANNER);
    open[1].say("ping\n");
    assert_eq!(open[1].take_bytes(5), b"ping\n");
    outgate.replace_rules("tcp://odd.test:2222\nshared.test\n");
    assert!(open[1].is_over(), "its rule is gone");
    assert!(network.one.is_reset(ODD, 7));
    open[0].say("still\n");
    assert_eq!(open[0].take_bytes(6), b"still\n", "its rule stayed");

    outgate.replace_rules("shared.test\n");
    eventually("the list is in force", || network.one.ask_at(STRANGER, "odd.test", A).code != 0);
    assert_refused(&network.one, ODD.into());
    outgate.replace_rules(RULES);
    eventually("the list is in force", || network.two.ask_at(STRANGER, "odd.test", A).code == 0);
    assert_refused(&network.one, ODD.into());
    assert_reached(&network.two, ODD.into());
    network.one.ask_at(STRANGER, "odd.test", A).assert_is([ODD]);
    assert_reached(&network.one, ODD.into());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bindings_survive_a_restart_and_a_new_query_restores_them_after_a_crash() {
    let network = GuardedNetwork::new();
    serve(&network);
    let mut outgate = network.start(network.setup(RULES));
    network.one.ask_at(STRANGER, "odd.test", A).assert_is([ODD]);
    network.one.ask_at(STRANGER6, "odd.test", AAAA).assert_is([ODD6]);
    idle(&outgate);
    assert!(outgate.stop().success());
    outgate.launch();
    outgate.await_ready();
    assert_reached(&network.one, ODD.into());
    assert_reached(&network.one, ODD6.into());
    assert_refused(&network.two, ODD.into());
    assert_refused(&network.three, ODD6.into());

    network.three.ask_at(STRANGER, "odd.test", A).assert_is([ODD]);
    outgate.signal(Signal::KILL);
    outgate.ended();
    outgate.launch();
    outgate.await_ready();
    assert_refused(&network.two, ODD.into());
    assert_reached(&network.one, ODD.into());
    network.three.ask_at(STRANGER, "odd.test", A).assert_is([ODD]);
    assert_reached(&network.three, ODD.into());
}
