//! The namespace has no other way out, even for a process with root's powers over its network.

use super::{ExecHost, RULES, fresh};
use crate::world::guarded_network::EVIL6;
use crate::world::namespace::Namespace;
use crate::world::vmnet::{ask, connect, hammer, send_raw};
use crate::world::{EVIL, GOOD, eventually};
use std::io::ErrorKind;
use std::net::TcpListener;

#[test]
#[ignore = "requires root and network namespaces"]
fn nothing_leaves_the_namespace_but_what_outgate_dials() {
    let host = ExecHost::new();
    let name = fresh();
    let mut child = host.start(&name, &["--", "sleep", "60"]);
    eventually("the guest is there", || host.guests().iter().any(|guest| guest["name"] == name.as_str()));
    let inner = || Namespace::named(&format!("outgate-{name}"));
    eventually("it has a way", || {
        inner().is_some_and(|inner| {
            connect(&inner, &format!("{GOOD}:80")).is_err_and(|e| e.kind() != ErrorKind::NetworkUnreachable)
        })
    });
    let inner = inner().unwrap();
    // Services of the host's, on all of its addresses.
    let services: Vec<TcpListener> = ["0.0.0.0:7777", "[::1]:7777", "127.0.0.1:7778"]
        .map(|address| host.network.net.gateway.run(|| TcpListener::bind(address)).unwrap())
        .into();
    for address in ["169.254.79.1", "10.42.42.1", "10.79.0.1", "127.0.0.1", "11.0.0.1"] {
        for port in [7777, 7778, 3190, 3128, 22] {
            if (address, port) != ("10.42.42.1", 3128) {
                assert!(connect(&inner, &format!("{address}:{port}")).is_err(), "{address}:{port}");
            }
        }
    }
    for service in services {
        service.set_nonblocking(true).unwrap();
        assert!(service.accept().is_err(), "nobody came");
    }
    hammer(&inner, &EVIL.to_string());
    for (protocol, payload) in [(1, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1][..]), (47, &[0; 24]), (200, &[0; 24])] {
        send_raw(&inner, None, &EVIL.to_string(), protocol, payload);
    }
    assert!(ask(&inner, &format!("{EVIL}:443")).is_err(), "UDP");
    // Addresses that it gives itself: another guest's, and one that belongs to no guest.
    for source in ["10.79.0.9", "10.42.42.2", "11.0.0.10"] {
        crate::world::vmnet::shell(&inner, &format!("ip address add {source}/32 dev eth0"));
        send_raw(&inner, Some(source), &EVIL.to_string(), 1, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]);
        let spoofed = format!("ip route replace default via 169.254.79.1 dev eth0 src {source}");
        crate::world::vmnet::shell(&inner, &spoofed);
        assert!(connect(&inner, &format!("{GOOD}:80")).is_err(), "from {source}");
    }
    // IPv6 is off; a process that may turn it on finds no one at the other end.
    assert!(connect(&inner, &format!("[{EVIL6}]:80")).is_err());
    inner.run(|| {
        for scope in ["all", "default", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "0").unwrap();
        }
    });
    crate::world::vmnet::shell(
        &inner,
        "ip address add fd79::2/64 dev eth0 nodad; ip -6 route replace default via fe80::1 dev eth0",
    );
    hammer(&inner, &EVIL6.to_string());
    host.network.assert_no_leaks();
    assert!(host.network.internet.all().is_empty() && host.network.dns.log().is_empty());
    drop(inner);
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_flow_of_the_command_ends_with_it() {
    let host = ExecHost::with(|network| ExecHost::usual(network).file("more.rules", RULES));
    host.network.internet.sink((crate::world::ODD, 8443));
    host.outgate.replace_rules("good.test\ntcp://11.0.0.30:8443\n");
    let name = fresh();
    let line = "exec 3<>/dev/tcp/11.0.0.30/8443; echo hello >&3; sleep 0.7; echo is there; sleep 60 & sleep 0.1";
    eventually("the rule holds and the server is heard of", || {
        host.exec(&name, &["--", "bash", "-c", line]);
        host.network.internet.bytes(crate::world::ODD) > 0
    });
    eventually("the origin sees the end", || {
        host.network.internet.seen(crate::world::ODD).iter().all(|seen| seen.ended)
    });
    assert_eq!(host.outgate.flows(), 0);
}
