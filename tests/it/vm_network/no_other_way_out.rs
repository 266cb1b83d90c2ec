//! Nothing gets out but what outgate dials, whatever guests send and whatever becomes of the daemon.

use crate::world::client::{ACCESS_DENIED, Get};
use crate::world::client_hello::Hello;
use crate::world::dns::{A, AAAA};
use crate::world::guarded_network::{EVIL6, GuardedNetwork, STRANGER, STRANGER6};
use crate::world::namespace::Namespace;
use crate::world::outgate::Outgate;
use crate::world::stub_resolver::{query, receive};
use crate::world::vmnet::{ask, nft, send_raw};
use crate::world::{EVIL, GOOD, GOOD6, eventually};
use rustix::process::Signal;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

#[test]
#[ignore = "requires root and network namespaces"]
fn the_policy_answers_queries_to_every_server_and_the_server_gets_none() {
    let network = GuardedNetwork::new();
    let _outgate = network.start(network.setup("good.test\n"));
    let good6: Ipv6Addr = GOOD6.parse().unwrap();
    for guest in [&network.one, &network.three] {
        for server in [IpAddr::from(STRANGER), STRANGER6.into(), EVIL.into(), EVIL6.into()] {
            guest.ask_at(server, "good.test", A).assert_is([GOOD]);
            guest.ask_at(server, "good.test", AAAA).assert_is([good6]);
            guest.ask_at(server, "evil.test", A).assert_blocked("not_whitelisted");
            guest.ask_at_tcp(server, "good.test", A).assert_is([GOOD]);
            guest.ask_at_tcp(server, "evil.test", AAAA).assert_blocked("not_whitelisted");
        }
    }
    network.assert_no_leaks();
    assert!(network.dns.names().iter().all(|name| name == "good.test"), "{:?}", network.dns.names());
    // A client that is not a guest reaches that server, which gives another answer.
    let socket = network.net.gateway.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect((STRANGER, 53)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    socket.send(&query("good.test", A).bytes()).unwrap();
    receive(&socket).expect("it is there").assert_is([EVIL]);
    assert!(network.queries_at_stranger() > 0);
}

/// Sends three packets of a protocol; waits until this machine's ICMP says that one of them was
/// administratively prohibited (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1). An answer fails.
#[track_caller]
fn assert_prohibited(guest: &Namespace, to: IpAddr, protocol: u8, payload: &[u8]) {
    let (domain, icmp, prohibited, echo_reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, [3, 13], 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, [1, 1], 129),
    };
    let mut errors = guest.run(|| Socket::new(domain, Type::RAW, Some(icmp))).unwrap();
    errors.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    send_raw(guest, None, &to.to_string(), protocol, payload);
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let mut packet = [0; 512];
        let length = errors.read(&mut packet).expect("an ICMP error");
        assert!(Instant::now() < give_up, "no ICMP error for protocol {protocol}");
        // IPv4 comes with its header.
        let message = &packet[if to.is_ipv4() { 20 } else { 0 }..length];
        assert_ne!(message[0], echo_reply, "somebody answered");
        let about = message.get(8 + if to.is_ipv4() { 9 } else { 6 });
        if message[..2] == prohibited && about == Some(&protocol) {
            return;
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn packets_of_other_kinds_are_refused_by_icmp_and_counted() {
    let network = GuardedNetwork::new();
    let _outgate = network.start(network.setup("good.test\n11.0.0.66\n"));
    let counted = |what: &str| network.net.counted(&format!("refused: {what}"));
    let before = ["UDP", "ICMP", "ICMPv6", "other protocols"].map(counted);
    for guest in [&network.one, &network.three] {
        for server in [IpAddr::from(STRANGER), STRANGER6.into()] {
            let to = if server.is_ipv4() { format!("{server}:443") } else { format!("[{server}]:443") };
            let error = ask(&guest.namespace, &to).expect_err("QUIC does not pass");
            assert!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::PermissionDenied), "{error}");
            let (protocol, echo): (u8, &[u8]) = match server {
                IpAddr::V4(_) => (1, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]),
                IpAddr::V6(_) => (58, &[128, 0, 0, 0, 0, 1, 0, 1]),
            };
            assert_prohibited(&guest.namespace, server, protocol, echo);
            assert_prohibited(&guest.namespace, server, 47, &[0; 24]);
        }
    }
    let after = ["UDP", "ICMP", "ICMPv6", "other protocols"].map(counted);
    // What two guests sent: UDP and GRE over both families, three packets each of all but UDP.
    let grown: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(grown.iter().zip([4, 6, 6, 12]).all(|(grown, sent)| *grown >= sent), "{grown:?}");
    network.assert_no_leaks();
}

/// Guests reach what is allowed, over both families.
#[track_caller]
fn assert_served(network: &GuardedNetwork) {
    for guest in [&network.one, &network.three] {
        let addresses = guest.addresses("good.test");
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        for address in addresses {
            assert_eq!(guest.https(address, "good.test").unwrap(), 200, "{address}");
        }
        assert_eq!(guest.tls_refusal(EVIL6, "evil.test"), Some(ACCESS_DENIED));
    }
}

fn relaunch(outgate: &mut Outgate) {
    outgate.launch();
    outgate.await_ready();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn nothing_gets_out_whatever_happens_to_daemon_or_ruleset_and_service_resumes_by_itself() {
    let network = GuardedNetwork::new();
    let limits = "[limits]\nconnections = 0\nnew_connections_per_second = 0\ndns_queries_per_second = 0\n";
    let mut outgate = network.setup("good.test\n").tables(limits).write();
    network.apply(&outgate);
    network.storm();
    relaunch(&mut outgate);
    assert_served(&network);
    network.storm();

    outgate.signal(Signal::STOP);
    let mut held = network.one.dial(EVIL, 443).expect("the kernel accepts in its place");
    held.say(Hello::naming("evil.test").record());
    network.storm();
    outgate.signal(Signal::CONT);
    assert_eq!(held.alert(), Some(ACCESS_DENIED));
    assert_served(&network);

    // An open flow whose packets carry EVIL's address.
    let mut open = network.three.dial(EVIL6, 443).unwrap().tls("good.test").unwrap();
    assert_eq!(open.get("good.test", "/").unwrap().status, 200);
    outgate.signal(Signal::KILL);
    outgate.ended();
    assert!(open.get("good.test", "/").is_err());
    network.storm();
    relaunch(&mut outgate);
    assert_served(&network);

    assert!(outgate.stop().success());
    network.storm();
    relaunch(&mut outgate);
    assert_served(&network);

    let mut open = [IpAddr::from(EVIL), EVIL6.into()].map(|evil| network.one.dial(evil, 443).unwrap());
    nft(&network.net.gateway, "flush ruleset");
    open.iter_mut().for_each(|wire| wire.say(Hello::naming("good.test").record()));
    network.storm();
    assert!(network.one.https(GOOD, "good.test").is_err(), "without the ruleset nothing is brought in");
    outgate.signal(Signal::KILL);
    outgate.ended();
    network.storm();
    relaunch_unready(&mut outgate);
    network.apply(&outgate);
    outgate.await_ready();
    assert_served(&network);
    drop(open);

    // What kept them in: without it they get out.
    network.firewall(&outgate, "remove");
    let _ = network.one.dial(EVIL, 443);
    eventually("a packet reaches EVIL", || network.net.leaked() > 0);
}

/// Starts it where the ruleset is missing: it says so and is not ready.
fn relaunch_unready(outgate: &mut Outgate) {
    outgate.launch();
    outgate.await_admin(|response| response.status == 503 && response.text().contains("firewall"));
}
