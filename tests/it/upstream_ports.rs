//! Connections to upstreams that outlive what they were made for: those kept between requests, and the pairs of ports
//! that wait out their minute (TIME_WAIT) after a guest ended what it had.

use crate::transparent;
use crate::world::Raise;
use crate::world::client::Wire;
use crate::world::outgate::{Outgate, Setup};
use crate::world::stub_resolver::{RESOLVER, query};
use crate::world::{GOOD, GOOD6, ODD, PROXY, World, eventually};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// ODD over IPv6.
const ODD6: &str = "2600:10::30";
/// Ports that the gateway has for connections of its own.
const PORTS: usize = 200;
const UNLIMITED: &str = "[limits]\nnew_connections_per_second = 0\nrequests_per_second = 0";

/// Every listener, for both families.
fn every_listener(world: &World, rules: &str) -> Setup {
    let listen = format!(
        "proxy = [\"{PROXY}\", \"[fd42::1]:3128\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\ndns = [\"{RESOLVER}\", \"[fd42::1]:53\"]"
    );
    transparent::setup(world, rules).listen(&listen)
}

/// A request on a connection that stays open.
#[track_caller]
fn ask(wire: &mut Wire, uri: &str, host: &str) {
    wire.say(format!("GET {uri} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let answer = wire.hear("GET");
    assert_eq!(answer.status, 200, "{uri}, {host}: {}", answer.text());
}

/// A kept connection to GOOD through each listener, whose upstream must be closed, and one of the neighbour's, which
/// must stay.
fn keep(world: &World) -> Vec<(&'static str, Wire)> {
    let mut kept = Vec::new();
    let mut wire = world.guest.proxy();
    ask(&mut wire, "http://good.test/", "good.test");
    kept.push(("proxy", wire));
    let mut wire = world.guest.tunnel("good.test:80");
    ask(&mut wire, "/", "good.test");
    kept.push(("connect", wire));
    let mut wire = Wire::dial(&world.guest.namespace, SocketAddr::from((GOOD, 80))).unwrap();
    ask(&mut wire, "/", "good.test");
    kept.push(("transparent", wire));
    let mut wire = world.neighbour.proxy();
    ask(&mut wire, "http://other.test/", "other.test");
    kept.push(("neighbour", wire));
    assert!(world.internet.seen(GOOD).iter().all(|seen| !seen.ended), "all are kept");
    kept
}

#[track_caller]
fn assert_goes(change: impl FnOnce(&Outgate)) {
    let world = World::new();
    let guests = "[[guest]]\nname = \"vm-2\"\naddresses = [\"10.42.42.2\"]\n\
                  [[guest]]\nname = \"vm-3\"\naddresses = [\"10.42.42.3\"]\n";
    world.dns.set("other.test", [ODD]);
    world.internet.serve((ODD, 80), |mut tap| {
        let _ = crate::world::http::serve(&mut tap);
    });
    let outgate = every_listener(&world, "good.test\nother.test\n").tables(guests).start();
    let kept = keep(&world);
    assert_eq!(world.internet.seen(GOOD).len(), 3);
    change(&outgate);
    eventually("what nobody may use is closed", || world.internet.seen(GOOD).iter().all(|seen| seen.ended));
    assert!(world.internet.seen(ODD).iter().all(|seen| !seen.ended), "what others may use is kept");
    let mut neighbour = kept.into_iter().next_back().unwrap().1;
    ask(&mut neighbour, "http://other.test/again", "other.test");
    assert_eq!(world.internet.seen(ODD).len(), 1, "on the same connection");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_kept_connection_is_closed_with_its_rule() {
    assert_goes(|outgate| outgate.replace_rules("other.test\n"));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_kept_connection_is_closed_when_its_address_is_denied() {
    assert_goes(|outgate| outgate.replace_rules("good.test\nother.test\ndeny 11.0.0.10\n"));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_kept_connection_is_closed_with_its_guest() {
    assert_goes(|outgate| {
        let config = fs::read_to_string(outgate.config()).unwrap();
        let vm_2 = "[[guest]]\nname = \"vm-2\"\naddresses = [\"10.42.42.2\"]\n";
        assert!(config.contains(vm_2));
        fs::write(outgate.config(), config.replace(vm_2, "")).unwrap();
        outgate.signal(Signal::HUP);
    });
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_kept_connection_is_closed_while_its_guest_reads_no_answer() {
    let world = World::new();
    let outgate = world.setup("good.test\nother.test\n").tables(UNLIMITED).start();
    let mut wire = world.guest.proxy();
    ask(&mut wire, "http://good.test/", "good.test");
    // Refusals until they are no longer read: none of its requests reaches another upstream.
    let mut sender = wire.clone_sender();
    sender.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let flood = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n".repeat(1000);
    while sender.write_all(flood.as_bytes()).is_ok() {}
    assert!(!world.internet.seen(GOOD)[0].ended);
    outgate.replace_rules("other.test\n");
    eventually("it is closed", || world.internet.seen(GOOD)[0].ended);
}

/// Has few ports, and reuses none of its own accord.
fn few_ports(world: &World) {
    world.gateway.run(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("20000 {}", 20000 + PORTS - 1)).unwrap();
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "0").unwrap();
    });
}

/// Pairs of ports towards this origin that wait, in the gateway.
fn waiting(world: &World, address: IpAddr, port: u16) -> usize {
    let file = if address.is_ipv4() { "/proc/thread-self/net/tcp" } else { "/proc/thread-self/net/tcp6" };
    let text = world.gateway.run(|| fs::read_to_string(file).unwrap());
    let words = match address {
        IpAddr::V4(v4) => format!("{:08X}", u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => {
            v6.octets().chunks(4).map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap()))).collect()
        }
    };
    let remote = format!("{words}:{port:04X}");
    let row = |line: &'_ str| {
        let mut columns = line.split_whitespace().skip(1).map(str::to_owned);
        let local = columns.next()?;
        (columns.next()? == remote && columns.next()? == "06").then_some(local)
    };
    // A row may be read twice where the table changes meanwhile.
    text.lines().filter_map(row).collect::<BTreeSet<String>>().len()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn requests_that_alternate_between_hosts_leave_no_ports_waiting() {
    let world = World::new();
    few_ports(&world);
    world.dns.set("six.good.test", [GOOD6.parse::<IpAddr>().unwrap()]);
    world.dns.set("seven.good.test", [GOOD6.parse::<IpAddr>().unwrap()]);
    let outgate = every_listener(&world, ".good.test\nother.test\n").tables(UNLIMITED).start();
    let good6: IpAddr = GOOD6.parse().unwrap();
    for (address, one, two) in
        [(IpAddr::from(GOOD), "a.good.test", "b.good.test"), (good6, "six.good.test", "seven.good.test")]
    {
        let mut proxy = world.guest.proxy();
        let mut brought = Wire::dial(&world.guest.namespace, SocketAddr::from((GOOD, 80))).unwrap();
        for turn in 0..2 * PORTS {
            for host in [one, two] {
                ask(&mut proxy, &format!("http://{host}/{turn}"), host);
                ask(&mut brought, &format!("/{turn}"), host);
            }
        }
        // Nor do connections that the guest leaves after a request.
        for _ in 0..2 * PORTS {
            let mut wire = world.guest.proxy();
            ask(&mut wire, &format!("http://{one}/"), one);
        }
        assert_eq!(world.neighbour.get(one, "/").status, 200);
        assert!(waiting(&world, address, 80) <= 5, "{}", waiting(&world, address, 80));
    }
    assert_eq!(outgate.counted("failed", "dial_failed"), 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn tunnels_that_a_guest_ends_leave_ports_for_its_neighbour() {
    let world = World::new();
    few_ports(&world);
    let odd6: IpAddr = ODD6.parse().unwrap();
    world.dns.set("six.test", [odd6]);
    world.internet.echo((ODD, 7));
    world.internet.echo((odd6, 7));
    let outgate = every_listener(&world, "tcp://odd.test:7\ntcp://six.test:7\n").tables(UNLIMITED).start();
    world.guest.lookup("odd.test").assert_is([ODD]);
    assert!(world.guest.dns(&query("six.test", crate::world::dns::AAAA)).code == 0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _raise = Raise(&over);
        let neighbour = scope.spawn(|| {
            let mut served = 0;
            while !over.load(Ordering::Relaxed) || served < 10 {
                for name in ["odd.test:7", "six.test:7"] {
                    echo(world.neighbour.tunnel(name));
                    served += 1;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            served
        });
        let begin = Instant::now();
        for (address, name) in [(IpAddr::from(ODD), "odd.test"), (odd6, "six.test")] {
            for turn in 0..3 * PORTS {
                match (turn % 3, address) {
                    (0, _) => echo(world.guest.tunnel(&format!("{name}:7"))),
                    (1, IpAddr::V4(_)) => {
                        echo(Wire::dial(&world.guest.namespace, SocketAddr::new(address, 7)).unwrap());
                    }
                    _ => {
                        let (reply, wire) = world.guest.socks_name(name, 7);
                        assert_eq!(reply, Some(0), "{name}, {turn}");
                        echo(wire);
                    }
                }
            }
            let left = waiting(&world, address, 7);
            println!("{name}: {left} ports wait after {:?}", begin.elapsed());
            assert!(left > PORTS / 2, "the attack does not work, {left} ports wait");
            assert!(left <= PORTS, "{left}");
        }
        over.store(true, Ordering::Relaxed);
        assert!(neighbour.join().unwrap() >= 10);
    });
    assert_eq!(outgate.counted("failed", "dial_failed"), 0.0);
}

/// Ends it first, and sees the server's end.
#[track_caller]
fn echo(mut wire: Wire) {
    // Neither TLS nor HTTP from the first byte, so that outgate does not wait for more.
    wire.say([0]);
    assert_eq!(wire.take_bytes(1), [0]);
    wire.finish();
    assert_eq!(wire.rest().unwrap(), b"");
}
