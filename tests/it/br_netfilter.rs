//! Guests of a bridge on a machine where br_netfilter sends bridged frames through the rules for IP, as Docker and
//! Kubernetes set it: whatever came first, and while the setting changes.

use crate::world::Raise;
use crate::world::eventually;
use crate::world::firewall_watcher::Watcher;
use crate::world::namespace::{Namespace, batch};
use crate::world::vmnet::{EVIL, Vmnet, ask, connect, frames_for_the_port, hammer, hear, shell, succeed};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const GUESTS: &str = "[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n";
const PINNED: &str = "[[guest]]\nname = \"one\"\ninterface = \"p1\"\naddresses = [\"10.42.42.2\", \"fd42::2\"]\n";

/// Switches br_netfilter within a namespace; a kernel without it cannot show anything here.
fn switch(namespace: &Namespace, value: &str) -> bool {
    let set = |tables| std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{tables}"), value).is_ok();
    namespace.run(|| ["iptables", "ip6tables"].into_iter().all(set))
}

/// A network where it is on.
fn filtered() -> Vmnet {
    let net = Vmnet::new();
    assert!(switch(&net.gateway, "1"), "requires br_netfilter in the kernel: modprobe br_netfilter");
    net
}

/// Connects from a port of the guest's choice.
fn connect_from(guest: &Namespace, port: u16, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let socket = guest.run(|| Socket::new(Domain::for_address(to), Type::STREAM, None)).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], port).into() } else { ([0u16; 8], port).into() };
    socket.bind(&any.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    hear(socket.into()).unwrap()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_are_served_and_restricted_as_without_br_netfilter() {
    let net = filtered();
    for pins in ["", PINNED] {
        let said = net.apply(&format!("{GUESTS}{pins}"));
        assert!(!said.contains("bridge-nf") && !said.contains("failed"), "{said}");
        let (good, status) = net.status();
        assert!(good && !status["warnings"].to_string().contains("bridge-nf"), "{status}");
    }
    let (brought, ssh) = (net.transparent(), net.listener("[::]:22"));
    net.dns("10.42.42.1:53");
    net.dns("[fd42::1]:53");
    for (guest, v4, v6) in [(&net.one, "10.42.42.2", "fd42::2"), (&net.two, "10.42.42.3", "fd42::3")] {
        // One port to several places, each of them known by its own address, the listener's own port among them.
        for to in ["11.0.0.66:443", "11.0.0.67:443", "11.0.0.66:3129", "[2600:10::66]:443", "[2600:10::67]:22"] {
            assert_eq!(connect_from(guest, 7000, to), "here\n", "{to}");
            let source = if to.starts_with('[') { format!("[{v6}]:7000") } else { format!("{v4}:7000") };
            let (original, from) = brought.recv().unwrap();
            assert_eq!((original.to_string(), from.to_string()), (to.to_owned(), source));
        }
        for server in ["8.8.8.8:53", "[2001:4860:4860::8888]:53", "10.42.42.1:53"] {
            assert_eq!(ask(guest, server).unwrap(), "answer", "UDP {server}");
            assert_eq!(connect(guest, server).unwrap(), "here\n", "TCP {server}");
        }
    }
    // What is brought is not tracked: `names` alone is in the table.
    let tracked = shell(&net.gateway, "cat /proc/net/nf_conntrack");
    assert!(!tracked.contains("dport=443"), "{tracked}");

    for guest in [&net.one, &net.two] {
        EVIL.iter().for_each(|evil| hammer(guest, evil));
        for to in ["10.42.42.1:22", "[fd42::1]:22", "11.0.0.1:22"] {
            let error = connect(guest, to).expect_err("a service of the gateway's");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
        }
    }
    let neighbour = net.two.run(|| std::net::UdpSocket::bind("[::]:5300")).unwrap();
    neighbour.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = ask(&net.one, "10.42.42.3:5300");
    frames_for_the_port(&net.one, "10.42.42.2", "fd42::2");
    assert!(neighbour.recv(&mut [0; 16]).is_err(), "guests on one bridge do not reach each other");
    assert!(ssh.try_recv().is_err(), "a guest reached a service of the gateway's");
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn br_netfilter_may_be_switched_on_and_off_while_guests_connect() {
    let net = filtered();
    net.apply(GUESTS);
    let _brought = net.transparent();
    let over = AtomicBool::new(false);
    let (mut made, mut switched) = (0, 0);
    std::thread::scope(|scope| {
        let _raise = Raise(&over);
        let gateway = &net.gateway;
        let switching = scope.spawn(|| {
            let mut switched = 0;
            while !over.load(Ordering::Relaxed) {
                assert!(switch(gateway, if switched % 2 == 0 { "0" } else { "1" }));
                switched += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            switched
        });
        let begun = Instant::now();
        while made < 1000 {
            for (to, guest) in [("11.0.0.66:443", &net.one), ("[2600:10::66]:443", &net.two)] {
                let said = connect(guest, to);
                if !matches!(said.as_deref(), Ok("here\n")) {
                    over.store(true, Ordering::Relaxed);
                    panic!("connection {made} to {to}: {said:?}");
                }
                made += 1;
            }
            // 200 a second.
            std::thread::sleep((begun + Duration::from_millis(5) * made).saturating_duration_since(Instant::now()));
        }
        over.store(true, Ordering::Relaxed);
        switched = switching.join().unwrap();
    });
    println!("{made} connections while it was switched {switched} times");
    assert!(switched > 20);
    net.assert_no_leaks();
}

/// `outgate firewall ACTION` in a namespace that is not a gateway yet.
fn firewall(net: &Vmnet, namespace: &Namespace, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.arg("firewall").args(arguments).arg("--config").arg(net.path("outgate.toml")).stdin(Stdio::null());
    namespace.run(|| command.output()).expect("outgate runs")
}

/// br_netfilter hooks itself into a namespace with the first bridge there; in these the ruleset comes before.
#[test]
#[ignore = "requires root and network namespaces"]
fn br_netfilter_may_be_loaded_after_the_ruleset() {
    let net = filtered();
    let guest = &net.four;
    let listen = "transparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\ndns = [\"10.44.0.1:53\"]";
    net.config_listening(listen, "[firewall]\nguest_interfaces = [\"bx*\"]\n");
    for (host, is_watched) in [(&net.internet, false), (&net.three, true)] {
        succeed(firewall(&net, host, &["apply"]));
        let watcher = is_watched.then(|| Watcher::start_in(&net, host));
        batch(
            Some(host),
            &format!(
                "link add bx0 type bridge\nlink set bx0 up\naddr add 10.44.0.1/24 dev bx0\n\
                 addr add fd44::1/64 dev bx0 nodad\nlink add name b1 type veth peer name eth1 netns {}\n\
                 link set b1 master bx0\nlink set b1 up\n",
                guest.name()
            ),
        );
        batch(
            Some(guest),
            "link set eth1 up\naddr add 10.44.0.4/24 dev eth1\naddr add fd44::4/64 dev eth1 nodad\n\
             route add 12.0.0.0/8 via 10.44.0.1\nroute add 2600:12::/32 via fd44::1\n",
        );
        assert!(switch(host, "1"));
        let brought = net.transparent_in(host);
        if !is_watched {
            assert!(connect(guest, "12.0.0.66:443").is_err(), "nothing to show here: it came before");
            assert!(brought.try_recv().is_err());
            let status = firewall(&net, host, &["status"]);
            let said = String::from_utf8_lossy(&status.stdout);
            assert!(!status.status.success() && said.contains("again_from_bridges"), "{said}");
            assert!(said.contains("run `outgate firewall apply`"), "{said}");
            succeed(firewall(&net, host, &["apply"]));
        }
        eventually("the listener is found", || connect(guest, "12.0.0.66:443").is_ok_and(|said| said == "here\n"));
        assert_eq!(connect(guest, "[2600:12::66]:443").unwrap(), "here\n");
        eventually("all is in place", || firewall(&net, host, &["status"]).status.success());
        if let Some(watcher) = watcher {
            let said = watcher.kill();
            assert!(said.contains("br_netfilter was loaded"), "{said}");
        }
        batch(Some(guest), "link del eth1\n");
    }
}
