//! `outgate firewall` in a network that leaks without it. The tests check what the internet, other guests and this
//! machine's sockets saw, and by what nftables counted.

use crate::world::eventually;
use crate::world::namespace::Namespace;
use crate::world::vmnet::{
    EVIL, Vmnet, WITH_ADMIN, admin, ask, connect, for_nobody, frames_for_the_port, hammer, nft, python, send_raw,
    shell, succeed,
};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

const BOTH: &str = "[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n";

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: std::io::Result<T>) {
    let error = outcome.expect_err("it must be refused");
    let told = matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::PermissionDenied
    );
    assert!(told, "it must be refused at once, and not by {error}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn without_the_firewall_everything_gets_out() {
    let net = Vmnet::new();
    for guest in [&net.one, &net.three] {
        for evil in EVIL {
            let before = net.leaked();
            hammer(guest, evil);
            // 4 connections, 4 datagrams, 7 protocols three times each.
            eventually("the internet sees what guests send", || net.leaked() - before >= 29);
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn nothing_gets_out_and_every_refusal_is_answered_without_a_daemon() {
    let net = Vmnet::new();
    net.apply(BOTH);
    for guest in [&net.one, &net.two, &net.three, &net.four] {
        for evil in EVIL {
            hammer(guest, evil);
            let at = |port| if evil.contains(':') { format!("[{evil}]:{port}") } else { format!("{evil}:{port}") };
            refused(connect(guest, &at(443)));
        }
    }
    // From guests whose allowance of ICMP errors (RFC 1812 section 4.3.2.8) is not used up.
    let fresh = Vmnet::new();
    fresh.apply(BOTH);
    for guest in [&fresh.one, &fresh.three] {
        refused(ask(guest, "11.0.0.66:443"));
        refused(ask(guest, "[2600:10::66]:443"));
        refused(ask(guest, "11.0.0.66:53"));
    }
    for net in [&net, &fresh] {
        net.assert_no_leaks();
    }
    for protocol in ["TCP", "UDP", "ICMP", "ICMPv6", "other protocols"] {
        assert!(net.counted(&format!("refused: {protocol}")) > 0, "{protocol} is counted");
    }
    assert_eq!(net.counted("spoofed"), 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn connections_reach_the_transparent_listener_and_queries_to_any_server_reach_dns() {
    let net = Vmnet::new();
    net.apply(BOTH);
    let brought = net.transparent();
    net.dns("10.42.42.1:53");
    net.dns("[fd42::1]:53");
    for (guest, sources) in [(&net.one, ["10.42.42.2", "fd42::2"]), (&net.three, ["10.43.0.3", "fd43::3"])] {
        for (to, source) in [("11.0.0.66:443", sources[0]), ("[2600:10::66]:22", sources[1])] {
            assert_eq!(connect(guest, to).unwrap(), "here\n", "{to}");
            let (original, from) = brought.recv().unwrap();
            assert_eq!((original.to_string(), from.ip().to_string()), (to.to_owned(), source.to_owned()));
        }
        for server in ["8.8.8.8:53", "11.0.0.66:53", "[2600:10::66]:53", "[2001:4860:4860::8888]:53", "10.42.42.1:53"] {
            assert_eq!(ask(guest, server).unwrap(), "answer", "UDP {server}");
            assert_eq!(connect(guest, server).unwrap(), "here\n", "TCP {server}");
        }
    }
    assert!(brought.try_recv().is_err(), "queries are not connections");
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_reach_only_the_gateways_listeners_for_guests() {
    let net = Vmnet::new();
    net.apply(BOTH);
    let _transparent = net.transparent();
    let (admin, ssh) = (net.listener("0.0.0.0:3190"), net.listener("[::]:22"));
    let proxy = net.listener("10.42.42.1:3128");
    let open = net.gateway.run(|| UdpSocket::bind("[::]:5353")).unwrap();
    let local = "ip -6 -o addr show dev br0 scope link | sed 's/.*inet6 //; s/\\/.*//'";
    let local = shell(&net.gateway, local).trim().to_owned();
    for guest in [&net.one, &net.three] {
        for address in ["10.42.42.1", "10.43.0.1", "11.0.0.1", "[fd42::1]", "[fd43::1]", "[2600:10::1]"] {
            for port in [22, 3129, 3130, 3190] {
                refused(connect(guest, &format!("{address}:{port}")));
            }
            let _ = ask(guest, &format!("{address}:5353")).map(|answer| panic!("{answer}"));
        }
    }
    // The kernel may send the reset for a link-local address out by another link (it asks for no
    // interface), so that silence is as good.
    let reached = python(
        &net.one,
        &format!(
            "import socket\ns = socket.socket(socket.AF_INET6)\ns.settimeout(2)\n\
             try:\n s.connect(('{local}', 22, 0, socket.if_nametoindex('eth0')))\n print('reached')\n\
             except (ConnectionRefusedError, TimeoutError):\n print('no')"
        ),
    );
    assert_eq!(reached, "no\n");
    for seen in [admin, ssh] {
        assert!(seen.try_recv().is_err(), "a guest reached a service of the gateway's");
    }
    open.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(open.recv(&mut [0; 9]).is_err());
    assert_eq!(connect(&net.one, "10.42.42.1:3128").unwrap(), "here\n");
    assert_eq!(proxy.recv().unwrap().1.ip().to_string(), "10.42.42.2");
}

/// Makes `guest` count what comes to it from other guests, but for resets: the gateway refuses in the
/// name of whom it refuses to connect to. What comes by lo are the guest's own errors.
fn watch(guest: &Namespace) {
    nft(
        guest,
        "table inet watch { chain in { type filter hook prerouting priority -300; iifname lo accept; tcp flags & rst == rst accept; ip saddr 10.0.0.0/8 ip saddr != \
         { 10.42.42.1, 10.43.0.1 } counter; ip6 saddr { fd42::2-fd42::ff, fd43::2-fd43::ff } counter; }; }",
    );
}

fn watched(guest: &Namespace) -> u64 {
    crate::world::vmnet::counters(guest, "inet", "watch").iter().map(|(_, packets)| packets).sum()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_do_not_reach_each_other_on_one_bridge_or_two_interfaces() {
    let net = Vmnet::new();
    [&net.one, &net.two, &net.three, &net.four].into_iter().for_each(watch);
    // Without ARP and neighbour discovery in the way: guests may know each other's MAC.
    let mac = |guest: &Namespace| shell(guest, "ip -o link show eth0 | sed 's/.*ether //; s/ .*//'").trim().to_owned();
    let two = mac(&net.two);
    shell(
        &net.one,
        &format!("ip neigh replace 10.42.42.3 lladdr {two} dev eth0; ip neigh replace fd42::3 lladdr {two} dev eth0"),
    );
    hammer(&net.one, "10.42.42.3");
    hammer(&net.one, "fd42::3");
    eventually("without the firewall they do", || watched(&net.two) > 20);
    let all = || [&net.one, &net.two, &net.three, &net.four].map(watched);
    let before = all();
    net.apply(BOTH);
    for (guest, others) in [
        (&net.one, ["10.42.42.3", "fd42::3", "10.43.0.3", "fd43::3"]),
        (&net.three, ["10.43.0.4", "fd43::4", "10.42.42.2", "fd42::2"]),
    ] {
        others.iter().for_each(|other| hammer(guest, other));
    }
    assert_eq!(all(), before);
    refused(connect(&net.three, "10.43.0.4:22"));
    // Two locks, each closed by itself: the table, and the ports' flag.
    shell(&net.gateway, "ip link set p1 type bridge_slave isolated off; ip link set p2 type bridge_slave isolated off");
    assert!(net.status().1["differences"].to_string().contains("bridge port p1 is not isolated"));
    hammer(&net.one, "10.42.42.3");
    hammer(&net.one, "fd42::3");
    assert!(net.counted("guests on one bridge") > 20);
    assert_eq!(all(), before);
    succeed(net.firewall(&["apply"]));
    nft(&net.gateway, "flush ruleset");
    hammer(&net.one, "10.42.42.3");
    hammer(&net.one, "fd42::3");
    hammer(&net.three, "10.43.0.4");
    assert_eq!(all(), before);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn spoofed_sources_are_dropped_and_counted() {
    let net = Vmnet::new();
    net.apply(BOTH);
    let brought = net.transparent();
    // So that the guests know the gateway's MAC: it answers no ARP of a spoofed source.
    for guest in [&net.one, &net.three] {
        EVIL.into_iter().for_each(|evil| send_raw(guest, None, evil, 47, &[0; 24]));
    }
    eventually("what is not spoofed is refused", || net.counted("refused: other") == 12);
    for (guest, v4, v6) in [(&net.one, "12.1.1.1", "2600:99::1"), (&net.three, "10.42.42.2", "fd42::2")] {
        shell(guest, &format!("ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad"));
        let before = net.counted("spoofed");
        send_raw(guest, Some(v4), "11.0.0.66", 47, &[0; 24]);
        send_raw(guest, Some(v6), "2600:10::66", 47, &[0; 24]);
        eventually("six packets are counted as spoofed", || net.counted("spoofed") == before + 6);
    }
    assert_eq!(net.counted("refused: other"), 12, "a spoofed source gets no answer");
    assert!(brought.try_recv().is_err());
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_flushed_ruleset_leaves_guests_closed() {
    let net = Vmnet::new();
    net.apply(BOTH);
    nft(&net.gateway, "flush ruleset");
    for guest in [&net.one, &net.three] {
        for evil in EVIL {
            hammer(guest, evil);
        }
        refused(connect(guest, "11.0.0.66:443"));
    }
    net.assert_no_leaks();
    let (good, status) = net.status();
    assert!(!good);
    assert!(status["differences"].to_string().contains("table inet outgate is missing"), "{status}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn applying_again_keeps_connections_and_status_reports_the_state() {
    let net = Vmnet::new();
    net.config(BOTH);
    assert!(!net.status().0, "nothing is in place yet");
    assert!(String::from_utf8_lossy(&net.firewall(&["apply"]).stdout).contains("br0, r3, r4"));
    let (good, status) = net.status();
    assert!(good, "{status}");
    let rules = || shell(&net.gateway, "ip -4 rule; ip -6 rule; nft -s -t list ruleset");
    let before = rules();
    succeed(net.firewall(&["apply"]));
    assert_eq!(rules(), before);
    nft(&net.gateway, "add rule inet outgate refused accept");
    let (good, status) = net.status();
    assert!(!good && status["differences"].to_string().contains("chain refused"), "{status}");
    succeed(net.firewall(&["apply"]));
    shell(&net.gateway, "ip -6 rule del pref 44 iif br0");
    let (good, status) = net.status();
    assert!(!good && status["differences"].to_string().contains("iif br0 prohibit"), "{status}");
    succeed(net.firewall(&["apply"]));
    // An interface that is not a guest's any more is opened, a new one is closed.
    net.apply("[firewall]\nguest_interfaces = [\"br0\"]\n");
    assert!(connect(&net.three, "11.0.0.66:1").is_err());
    assert!(net.leaked() > 0, "r3 is free to go");
    assert!(net.status().0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn remove_leaves_nothing_behind_and_names_open_interfaces() {
    let net = Vmnet::new();
    let state = || {
        shell(
            &net.gateway,
            "ip -4 rule; ip -6 rule; nft list ruleset; ip -4 route show table all; bridge -d link | grep -c 'isolated on' || true",
        )
    };
    let before = state();
    net.apply(BOTH);
    assert_ne!(state(), before);
    let said = succeed(net.firewall(&["remove"]));
    assert!(said.contains("open now: br0, r3, r4, r*"), "{said}");
    assert!(said.contains("because this machine forwards"), "{said}");
    assert_eq!(state(), before);
    succeed(net.firewall(&["remove"]));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn nft_and_ip_accept_the_printed_ruleset() {
    let net = Vmnet::new();
    let guests = "[[guest]]\nname = \"a\"\ninterface = \"p1\"\naddresses = [\"10.42.42.2\", \"fd42::/77\"]\n";
    for more in ["", guests, "allow_dhcp = true\nallow_inbound_replies = true\nhost_users = [\"nobody\"]\n"] {
        let listen = "redirect = [\"127.0.0.1:3130\", \"[::]:3131\"]\ntransparent = [\"10.42.42.1:3129\"]\ndns = [\"0.0.0.0:53\", \"[::]:5353\"]";
        net.config_listening(listen, &format!("{BOTH}{more}"));
        let printed = succeed(net.firewall(&["print", "--json"]));
        let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
        let script = printed["ruleset"].as_str().unwrap();
        std::fs::write(net.config_listening(listen, BOTH).with_extension("nft"), script).unwrap();
        let path = net.config_listening(listen, BOTH).with_extension("nft");
        shell(&net.gateway, &format!("nft -c -f {}", path.display()));
        for line in script.lines().filter(|line| line.starts_with("\t\t") && !line.contains(';')) {
            let words = ["type ", "typeof ", "size ", "flags ", "timeout ", "elements "];
            let of_set = words.iter().any(|word| line.trim_start().starts_with(word));
            assert!(of_set || line.contains(" comment \""), "a rule without a comment: {line}");
        }
        let routing: String =
            printed["routing"].as_array().unwrap().iter().map(|l| format!("{}\n", l.as_str().unwrap())).collect();
        let batch = path.with_extension("ip");
        std::fs::write(&batch, &routing).unwrap();
        for family in ["-4", "-6"] {
            shell(&net.gateway, &format!("ip {family} -batch {}", batch.display()));
            shell(
                &net.gateway,
                &format!(
                    "sed 's/rule add/rule del/; s/route replace/route del/' {} | ip {family} -batch -",
                    batch.display()
                ),
            );
        }
        let text = succeed(net.firewall(&["print"]));
        assert!(text.contains("# Ruleset") && text.contains("rule add pref 44 iif br0 prohibit"), "{text}");
    }
}

/// Sends an Ethernet frame, in hexadecimal, as it is.
fn frame(guest: &Namespace, hex: &str) {
    let program = format!(
        "import socket\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind(('eth0', 0))\n\
         s.send(bytes.fromhex('{}'))",
        hex.replace(' ', "")
    );
    python(guest, &program);
}

/// What the gateway knows to be the MAC of an address.
fn neighbour(net: &Vmnet, address: &str) -> String {
    shell(&net.gateway, &format!("ip neigh show {address} dev br0 | sed 's/.*lladdr //; s/ .*//'")).trim().to_owned()
}

fn mac(namespace: &Namespace, interface: &str) -> String {
    shell(namespace, &format!("ip -o link show {interface} | sed 's/.*ether //; s/ .*//'")).trim().replace(':', "")
}

const PINNED: &str = "[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n\
    [[guest]]\nname = \"one\"\ninterface = \"p1\"\naddresses = [\"10.42.42.2\", \"fd42::2\"]\n\
    [[guest]]\nname = \"two\"\ninterface = \"p2\"\naddresses = [\"10.42.42.3\", \"fd42::3\"]\n\
    [[guest]]\nname = \"three\"\ninterface = \"r3\"\naddresses = [\"10.43.0.3\", \"fd43::3\"]\n";

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_with_an_interface_uses_its_own_addresses_alone_and_no_other_guest_does() {
    let net = Vmnet::new();
    net.apply(PINNED);
    let brought = net.transparent();
    for (guest, v4, v6) in
        [(&net.one, "10.42.42.2", "fd42::2"), (&net.two, "10.42.42.3", "fd42::3"), (&net.three, "10.43.0.3", "fd43::3")]
    {
        for (to, source) in [("11.0.0.66:443", v4), ("[2600:10::66]:443", v6)] {
            assert_eq!(connect(guest, to).unwrap(), "here\n", "{to}");
            assert_eq!(brought.recv().unwrap().1.ip().to_string(), source);
        }
    }
    // Another address of the same network, the neighbour's, and that of a guest elsewhere.
    for (guest, addresses) in [
        (&net.one, ["10.42.42.9", "10.42.42.3", "10.43.0.3", "fd42::9", "fd42::3", "fd43::3"]),
        (&net.three, ["10.43.0.9", "10.42.42.2", "10.42.42.3", "fd43::9", "fd42::2", "fd42::3"]),
        (&net.four, ["10.43.0.3", "10.42.42.2", "10.42.42.3", "fd43::3", "fd42::2", "fd42::3"]),
    ] {
        // It knows the gateway's MAC, whatever it may ask by ARP.
        let _ = connect(guest, "11.0.0.66:1");
        let _ = connect(guest, "[2600:10::66]:1");
        for address in addresses {
            let before = net.counted("spoofed");
            let (length, to) = if address.contains(':') { ("128 nodad", "2600:10::66") } else { ("32", "11.0.0.66") };
            shell(
                guest,
                &format!(
                    "ip addr add {} dev eth0",
                    format!("{address}/{length}").replace(" nodad", "")
                        + if address.contains(':') { " nodad" } else { "" }
                ),
            );
            send_raw(guest, Some(address), to, 47, &[0; 24]);
            eventually(&format!("{address} is counted as spoofed"), || net.counted("spoofed") >= before + 3);
            shell(guest, &format!("ip addr del {address}/{} dev eth0", length.replace(" nodad", "")));
        }
    }
    while let Ok((_, from)) = brought.try_recv() {
        assert!(
            ["10.42.42.2", "10.43.0.3", "10.43.0.4", "fd42::2", "fd43::3", "fd43::4"]
                .contains(&from.ip().to_string().as_str())
        );
    }
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn no_guest_on_a_bridge_answers_for_another_or_takes_its_mac() {
    let net = Vmnet::new();
    let (evil, victim) = (mac(&net.one, "eth0"), mac(&net.two, "eth0"));
    let gateway = mac(&net.gateway, "br0");
    let colons = |mac: &str| {
        mac.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap().to_owned()).collect::<Vec<_>>().join(":")
    };
    // "10.42.42.3 is at the MAC of guest one", as an answer to the gateway.
    let lie = format!("{gateway} {evil} 0806 0001 0800 06 04 0002 {evil} 0a2a2a03 {gateway} 0a2a2a01");
    let honest = |net: &Vmnet| {
        let _ = connect(&net.two, "10.42.42.1:1");
        let _ = connect(&net.two, "[fd42::1]:1");
        assert_eq!(neighbour(net, "10.42.42.3"), colons(&victim));
    };
    honest(&net);
    shell(&net.gateway, "ip neigh flush all");
    let _ = net.gateway.run(|| UdpSocket::bind("10.42.42.1:0").unwrap().send_to(b"x", "10.42.42.3:9"));
    honest(&net);
    frame(&net.one, &lie);
    eventually("without the firewall the lie is believed", || {
        frame(&net.one, &lie);
        neighbour(&net, "10.42.42.3") == colons(&evil)
    });
    net.apply(PINNED);
    shell(&net.gateway, "ip neigh flush all");
    honest(&net);
    let _ = connect(&net.one, "10.42.42.1:1");
    let before = net.counted("spoofed");
    frame(&net.one, &lie);
    // The same with the victim's MAC in the ARP, with the victim's MAC on the frame, and as a request.
    frame(&net.one, &format!("{gateway} {evil} 0806 0001 0800 06 04 0002 {victim} 0a2a2a02 {gateway} 0a2a2a01"));
    frame(&net.one, &format!("{gateway} {victim} 0806 0001 0800 06 04 0002 {evil} 0a2a2a02 {gateway} 0a2a2a01"));
    frame(&net.one, &format!("ffffffffffff {evil} 0806 0001 0800 06 04 0001 {evil} 0a2a2a03 000000000000 0a2a2a01"));
    // A neighbour advertisement with override for fd42::3, from the guest's own address.
    let advert = "8800 0000 2000 0000 fd42 0000 0000 0000 0000 0000 0000 0003";
    python(
        &net.one,
        &format!(
            "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)\n\
             s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)\n\
             s.sendto(bytes.fromhex('{}' + '0201' + '{evil}'), ('fd42::1', 0))",
            advert.replace(' ', "")
        ),
    );
    assert!(net.counted("spoofed") >= before + 5);
    assert_eq!(neighbour(&net, "10.42.42.3"), colons(&victim));
    assert_eq!(neighbour(&net, "fd42::3"), colons(&victim));
    // Frames with the victim's MAC would have moved it to the liar's port.
    let learnt = shell(&net.gateway, &format!("bridge fdb show br br0 | grep {} | grep -v permanent", colons(&victim)));
    assert!(learnt.contains("dev p2") && !learnt.contains("dev p1"), "{learnt}");
    honest(&net);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_pinned_port_gets_only_frames_for_its_guest() {
    let net = Vmnet::new();
    net.apply(PINNED);
    watch(&net.one);
    let one = mac(&net.one, "eth0");
    nft(
        &net.one,
        "table inet stray { chain in { type filter hook prerouting priority -300; ip daddr 10.42.42.3 counter; }; }",
    );
    let stray =
        || crate::world::vmnet::counters(&net.one, "inet", "stray").iter().map(|(_, packets)| packets).sum::<u64>();
    // The gateway believes the forged answer, whichever way it came.
    let colons = one.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect::<Vec<_>>().join(":");
    shell(&net.gateway, &format!("ip neigh replace 10.42.42.3 lladdr {colons} dev br0"));
    let _ = connect(&net.one, "10.42.42.1:1");
    let socket = net.gateway.run(|| UdpSocket::bind("10.42.42.1:0")).unwrap();
    let _ = socket.send_to(b"for two", "10.42.42.3:9");
    eventually("the frame is counted", || net.counted("for another guest's eyes") == 1);
    assert_eq!(stray(), 0);
    nft(&net.gateway, "delete table bridge outgate");
    eventually("without the table it arrives", || {
        let _ = socket.send_to(b"for two", "10.42.42.3:9");
        stray() > 0
    });
}

#[test]
#[ignore = "requires root and network namespaces"]
fn frames_that_a_bridge_hands_up_as_its_ports_own_reach_nothing() {
    let net = Vmnet::new();
    let service = net.gateway.run(|| UdpSocket::bind("[::]:5300")).unwrap();
    service.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let heard = || std::iter::from_fn(|| service.recv(&mut [0; 9]).ok()).count();
    frames_for_the_port(&net.one, "10.42.42.2", "fd42::2");
    // To three MACs that bridges keep for themselves, seven datagrams and two echo requests each.
    assert!(heard() >= 21, "without the firewall a service hears them");
    // Of both families, the second of which may wait for neighbour discovery.
    eventually("the gateway answers whom they name", || net.leaked() >= 12);

    let pins = PINNED.replace("\"r*\"", "\"r3\"");
    let (one, rest) = pins.split_once("[[guest]]\nname = \"two\"").unwrap();
    let undeclared_two = format!("{one}[[guest]]{}", rest.split_once("[[guest]]").unwrap().1);
    net.apply(&undeclared_two);
    assert!(net.status().0, "{:?}", net.status());
    let before = net.leaked();
    // The last one's port is younger than the ruleset, which does not name it.
    shell(&net.gateway, "ip addr flush dev r4; ip link set r4 master br0");
    for (guest, v4, v6) in [
        (&net.one, "10.42.42.2", "fd42::2"),
        (&net.two, "10.42.42.3", "fd42::3"),
        (&net.three, "10.43.0.3", "fd43::3"),
        (&net.four, "10.42.42.4", "fd42::4"),
    ] {
        frames_for_the_port(guest, v4, v6);
        assert_eq!((heard(), net.leaked()), (0, before), "from {v4}");
    }
    let (good, status) = net.status();
    assert!(!good && status["differences"].to_string().contains("bridge port r4 is not covered"), "{status}");
    assert!(status["differences"].to_string().contains("iif r4 prohibit"), "{status}");
    // Each lock by itself: without the rule about MACs, the ports that it knows are closed by name.
    net.apply(&undeclared_two);
    assert!(net.status().0, "{:?}", net.status());
    let handle = "nft -a list chain inet outgate sources | sed -n '/ether daddr/ s/.*handle //p'";
    shell(&net.gateway, &format!("nft delete rule inet outgate sources handle $({handle})"));
    for (guest, v4, v6) in [(&net.one, "10.42.42.2", "fd42::2"), (&net.four, "10.42.42.4", "fd42::4")] {
        frames_for_the_port(guest, v4, v6);
        assert_eq!((heard(), net.leaked()), (0, before), "from {v4}");
    }
    // The port of a guest that ended is gone; that is not a fault, and applying again cleans up.
    succeed(net.firewall(&["apply"]));
    shell(&net.gateway, "ip link del r4");
    let (_, status) = net.status();
    assert!(!status["differences"].to_string().contains("routing"), "{status}");
    succeed(net.firewall(&["apply"]));
    assert!(!shell(&net.gateway, "ip rule; ip -6 rule").contains("r4"));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn applying_again_keeps_every_mac_and_only_a_guests_own_address_claims_one() {
    let net = Vmnet::new();
    net.apply(PINNED);
    net.dns("10.42.42.1:53");
    let victim = mac(&net.one, "eth0");
    let macs = || shell(&net.gateway, "nft list set bridge outgate macs | tr -d ' '").replace(':', "");
    // Neither frames other than IP nor ARP and IP of other addresses make the neighbour's MAC this port's.
    let others = [
        format!("ffffffffffff {victim} 88b5 {}", "00".repeat(46)),
        format!("ffffffffffff {victim} 0806 0001 0800 06 04 0001 {victim} 00000000 000000000000 0a2a2a02"),
        format!("ffffffffffff {victim} 0806 0001 0800 06 04 0001 {victim} 0a2a2a02 000000000000 0a2a2a01"),
    ];
    let steal = || others.iter().for_each(|other| frame(&net.two, other));
    shell(&net.gateway, "for set in macs ports taken; do nft flush set bridge outgate $set; done");
    steal();
    assert!(!macs().contains(&victim), "{}", macs());
    assert_eq!(ask(&net.one, "10.42.42.1:53").unwrap(), "answer");
    assert!(macs().contains(&format!("\"p1\".{victim}")), "{}", macs());
    // The liar has no MAC of its own yet; its own address with the neighbour's MAC would be a claim.
    shell(&net.gateway, "for set in macs ports taken; do nft flush set bridge outgate $set; done");
    assert_eq!(ask(&net.one, "10.42.42.1:53").unwrap(), "answer");
    let claim = format!("ffffffffffff {victim} 0806 0001 0800 06 04 0001 {victim} 0a2a2a03 000000000000 0a2a2a01");
    for _ in 0..2 {
        net.apply(PINNED);
        frame(&net.two, &claim);
        steal();
        // Its own it may have claimed by itself, asking for its gateway.
        let found = macs();
        let (right, wrong) = (format!("\"p1\".{victim}"), format!("\"p2\".{victim}"));
        assert!(found.contains(&right) && !found.contains(&wrong), "{found}");
        assert_eq!(ask(&net.one, "10.42.42.1:53").unwrap(), "answer");
        assert_eq!(connect(&net.two, "10.42.42.1:53").unwrap(), "here\n");
        shell(&net.gateway, "for set in macs ports taken; do nft flush set bridge outgate $set; done");
        assert_eq!(ask(&net.one, "10.42.42.1:53").unwrap(), "answer");
    }
    assert!(net.status().0, "{:?}", net.status());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn frames_for_a_declared_guest_do_not_go_to_an_undeclared_one() {
    let net = Vmnet::new();
    let declared = PINNED.split("[[guest]]").take(2).collect::<Vec<_>>().join("[[guest]]");
    net.apply(&declared);
    nft(
        &net.two,
        "table inet stray { chain in { type filter hook prerouting priority -300; ip daddr 10.42.42.2 counter; \
         ip6 daddr fd42::2 counter; }; }",
    );
    let stray =
        || crate::world::vmnet::counters(&net.two, "inet", "stray").iter().map(|(_, packets)| packets).sum::<u64>();
    // As if the undeclared one had taken the MAC while the declared one was silent.
    let two = shell(&net.two, "ip -o link show eth0 | sed 's/.*ether //; s/ .*//'").trim().to_owned();
    let _ = connect(&net.two, "10.42.42.1:1");
    for address in ["10.42.42.2", "fd42::2"] {
        shell(&net.gateway, &format!("ip neigh replace {address} lladdr {two} dev br0 nud permanent"));
    }
    let socket = net.gateway.run(|| UdpSocket::bind("[::]:0")).unwrap();
    let send = || ["[::ffff:10.42.42.2]:9", "[fd42::2]:9"].map(|to| socket.send_to(b"for one", to).is_ok());
    send();
    eventually("both frames are counted", || net.counted("for a declared guest") == 2);
    assert_eq!(stray(), 0);
    nft(&net.gateway, "delete table bridge outgate");
    eventually("without the table they arrive", || {
        send();
        stray() > 1
    });
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_missing_interface_and_the_interface_of_the_operators_session_are_reported() {
    let net = Vmnet::new();
    shell(&net.gateway, "ip route add default via 10.42.42.2 dev br0");
    net.config(BOTH);
    let output = net.firewall(&["apply"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("WARNING: br0 carries this machine's default route"), "{told}");
    shell(&net.gateway, "ip route del default; ip link set br0 down; ip link set br0 name brx; ip link set brx up");
    let (good, status) = net.status();
    assert!(!good && status["differences"].to_string().contains("interface br0 of"), "{status}");
    let output = net.firewall(&["apply"]);
    assert!(output.stderr.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("is missing"), "{output:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn answers_to_connections_from_outside_leave_where_that_is_allowed() {
    let net = Vmnet::new();
    let services: Vec<_> =
        [&net.one, &net.three].map(|guest| guest.run(|| std::net::TcpListener::bind("[::]:22").unwrap())).into();
    for service in &services {
        let service = service.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = service.accept() {
                let _ = std::io::Write::write_all(&mut stream, b"ssh\n");
            }
        });
    }
    let inside = ["10.42.42.2:22", "[fd42::2]:22", "10.43.0.3:22", "[fd43::3]:22"];
    let quick = |to: &str| {
        let to = to.parse().unwrap();
        net.internet.run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_millis(500)))
    };
    net.apply(BOTH);
    for to in inside {
        assert!(quick(to).is_err(), "{to}");
    }
    net.assert_no_leaks();
    net.apply(&format!("{BOTH}allow_inbound_replies = true\n"));
    for to in inside {
        assert_eq!(connect(&net.internet, to).unwrap(), "ssh\n", "{to}");
        assert_eq!(connect(&net.gateway, to).unwrap(), "ssh\n", "{to}");
    }
    let before = net.leaked();
    assert!(before > 0);
    for guest in [&net.one, &net.three] {
        for evil in EVIL {
            hammer(guest, evil);
        }
        refused(connect(guest, "11.0.0.66:443"));
    }
    hammer(&net.three, "10.42.42.2");
    // Resets of the connections above may still be on their way; nothing new is.
    assert!(net.leaked() <= before + 8, "{} more", net.leaked() - before);
    nft(&net.gateway, "flush ruleset");
    assert!(quick(inside[0]).is_err(), "answers are let through by the ruleset alone");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn dhcp_and_router_solicitation_reach_the_gateway_where_that_is_allowed() {
    let net = Vmnet::new();
    let server = net.gateway.run(|| UdpSocket::bind("0.0.0.0:67")).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let (one, gateway) = (mac(&net.one, "eth0"), "ffffffffffff");
    // 0.0.0.0:68 to 255.255.255.255:67, "hi".
    let discover =
        format!("{gateway} {one} 0800 4500 001e 0001 0000 40 11 7acf 00000000 ffffffff 0044 0043 000a 0000 6869");
    let heard = || {
        frame(&net.one, &discover);
        let mut message = [0; 16];
        server.recv(&mut message).map(|length| message[..length].to_vec())
    };
    eventually("the test's own message is sound", || heard().is_ok_and(|message| message == b"hi"));
    while server.recv(&mut [0; 16]).is_ok() {}
    net.apply(BOTH);
    assert!(heard().is_err());
    for pins in ["", PINNED.split_once("[[guest]]").unwrap().1] {
        let guests = if pins.is_empty() { String::new() } else { format!("[[guest]]{pins}") };
        net.apply(&format!("{BOTH}allow_dhcp = true\n{guests}"));
        eventually("the server hears it", || heard().is_ok_and(|message| message == b"hi"));
    }
    let _ = ask(&net.one, "11.0.0.66:67").map(|answer| panic!("{answer}"));
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn host_users_go_to_the_redirect_listener_and_nowhere_else() {
    let net = Vmnet::new();
    let listen = "redirect = [\"127.0.0.1:3130\", \"[::1]:3130\"]\ndns = [\"127.0.0.1:5353\"]";
    // Nothing is left of what was for guests.
    net.apply("[firewall]\nguest_interfaces = [\"br0\"]\n");
    net.config_listening(listen, "[firewall]\nhost_users = [\"nobody\"]\n");
    succeed(net.firewall(&["apply"]));
    assert!(net.status().0, "{:?}", net.status());
    let (redirect, redirect6) = (net.listener("127.0.0.1:3130"), net.listener("[::1]:3130"));
    let local = net.listener("127.0.0.1:8000");
    net.dns("127.0.0.1:5353");
    let program = |family: &str, kind: &str, to: &str, port: u16| {
        format!(
            "import os, socket\nos.setgid(65534)\nos.setuid(65534)\n\
             s = socket.socket(socket.{family}, socket.{kind})\ns.settimeout(5)\n\
             try:\n s.connect(('{to}', {port}))\n s.send(b'x')\n print(s.recv(9).decode().strip())\n\
             except OSError as error:\n print(type(error).__name__, error.errno)"
        )
    };
    let run = |family, kind, to, port| python(&net.gateway, &program(family, kind, to, port)).trim().to_owned();
    assert_eq!(run("AF_INET", "SOCK_STREAM", "11.0.0.66", 443), "here");
    assert_eq!(run("AF_INET6", "SOCK_STREAM", "2600:10::66", 443), "here");
    assert_eq!(run("AF_INET", "SOCK_STREAM", "127.0.0.1", 8000), "here", "by the redirect listener, which refuses it");
    assert_eq!((redirect.iter().take(2).count(), redirect6.iter().take(1).count()), (2, 1));
    assert!(local.try_recv().is_err());
    assert_eq!(run("AF_INET", "SOCK_DGRAM", "11.0.0.66", 53), "answer");
    for (family, to, port) in
        [("AF_INET", "11.0.0.66", 443), ("AF_INET", "127.0.0.1", 323), ("AF_INET6", "2600:10::66", 53)]
    {
        let outcome = run(family, "SOCK_DGRAM", to, port);
        assert!(outcome.contains("Error") && !outcome.contains("imeout"), "{to}: {outcome}");
    }
    net.assert_no_leaks();
    // Everybody else goes as before.
    let _ = connect(&net.gateway, "11.0.0.66:443");
    assert!(net.leaked() > 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn other_firewalls_that_would_drop_guests_traffic_are_named_with_the_line_that_allows_it() {
    let net = Vmnet::new();
    nft(
        &net.gateway,
        "table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established accept; iifname lo accept; }; }",
    );
    net.config("[firewall]\nguest_interfaces = [\"br0\"]\n");
    let output = net.firewall(&["apply"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(6), "applied, and guests are cut off all the same: {said}");
    let line = "nft insert rule inet filter input iifname br0 accept";
    assert!(said.contains(line), "{said}");
    let brought = net.transparent();
    assert!(
        net.one
            .run(|| std::net::TcpStream::connect_timeout(&"11.0.0.66:443".parse().unwrap(), Duration::from_millis(300)))
            .is_err()
    );
    shell(&net.gateway, line);
    assert_eq!(net.firewall(&["apply"]).status.code(), Some(0));
    assert_eq!(connect(&net.one, "11.0.0.66:443").unwrap(), "here\n");
    assert_eq!(brought.recv().unwrap().0.to_string(), "11.0.0.66:443");
    let (good, status) = net.status();
    assert!(good && !status["warnings"].to_string().contains("filter"), "{status}");

    nft(&net.gateway, "delete table inet filter");
    for (program, save) in [("iptables-nft", "of table ip filter"), ("iptables-legacy", "of iptables-legacy")] {
        shell(&net.gateway, &format!("{program} -P INPUT DROP"));
        let (_, status) = net.status();
        let warnings = status["warnings"].to_string();
        assert!(warnings.contains(save), "{program}: {warnings}");
        let remedy =
            warnings.split('`').find(|part| part.contains("-I INPUT -i br0 -j ACCEPT")).expect(&warnings).to_owned();
        shell(&net.gateway, &remedy.replacen("iptables ", &format!("{program} "), 1));
        let (_, status) = net.status();
        assert!(!status["warnings"].to_string().contains("INPUT"), "{program}: {status}");
        shell(&net.gateway, &format!("{program} -P INPUT ACCEPT; {program} -F INPUT"));
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn apply_fails_without_a_configured_firewall_and_with_an_unknown_user() {
    let net = Vmnet::new();
    net.config("");
    let output = net.firewall(&["apply"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("set [firewall].guest_interfaces"));
    net.config("[firewall]\nguest_interfaces = [\"br0\"]\nhost_users = [\"nobody-of-that-name\"]\n");
    let output = net.firewall(&["apply"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn limits_missing_in_the_kernels_rules_are_reported_without_an_outage() {
    let net = Vmnet::new();
    let lists = for_nobody(&net);
    let outgate = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(arguments).arg("--config").arg(net.path("outgate.toml"));
        let output = net.gateway.run(|| command.output()).expect("outgate runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let configure = |limits: &str| drop(net.config_listening(WITH_ADMIN, &format!("{BOTH}{lists}{limits}")));
    let complaint =
        |keys: &str| format!("the kernel's rules were made from other values of {keys}: run `outgate firewall apply`");
    let said = |what: &str| std::fs::read_to_string(net.path("stderr")).unwrap().matches(what).count();
    let queries = "[limits].dns_queries_per_second";
    // Without a ruleset there is nothing that it was made from.
    configure("[limits]\ndns_queries_per_second = 2000\n");
    assert!(!outgate(&["check"]).contains("other values"), "{}", outgate(&["check"]));
    succeed(net.firewall(&["apply"]));
    assert!(!outgate(&["check"]).contains("other values"), "{}", outgate(&["check"]));
    // At the start.
    configure("[limits]\ndns_queries_per_second = 3000\n");
    let mut daemon = net.daemon(65534);
    let pid = rustix::process::Pid::from_child(&daemon);
    eventually("it is ready", || admin(&net, "/readyz").starts_with("200"));
    eventually("it says so at the start", || said(&complaint(queries)) == 1);
    assert!(outgate(&["check"]).contains(&complaint(queries)), "{}", outgate(&["check"]));
    assert!(outgate(&["status"]).contains(&complaint(queries)), "{}", outgate(&["status"]));
    succeed(net.firewall(&["apply"]));
    eventually("nothing is wrong", || !outgate(&["status"]).contains("other values"));
    // Of a reload. What does not shape the rules is not told, and what cannot be less there neither.
    // The table before is [resolver].
    configure("timeout_ms = 1500\n[limits]\ndns_queries_per_second = 3000\nrequests_per_second = 7\n");
    assert!(!outgate(&["whitelist", "reload"]).contains("other values"));
    configure("timeout_ms = 9000\n[limits]\ndns_queries_per_second = 3000\nidle_timeout_s = 777\n");
    let both = "[limits].idle_timeout_s, [resolver].timeout_ms";
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    eventually("it says so of a reload", || said(&complaint(both)) == 1);
    let reload = outgate(&["whitelist", "reload"]);
    assert!(reload.contains(&complaint(both)), "{reload}");
    assert!(admin(&net, "/readyz").starts_with("200"), "{}", admin(&net, "/readyz"));
    assert!(admin(&net, "/metrics").contains("outgate_firewall_in_place 1"));
    assert_eq!(said("other values"), 2, "once each: {}", std::fs::read_to_string(net.path("stderr")).unwrap());
    let (good, status) = net.status();
    assert!(!good && status["differences"].to_string().contains("differs from the configuration"), "{status}");
    succeed(net.firewall(&["apply"]));
    assert!(net.status().0, "{}", net.status().1);
    assert!(!outgate(&["check"]).contains("other values"), "{}", outgate(&["check"]));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_unprivileged_daemon_knows_whether_the_firewall_is_in_place() {
    let net = Vmnet::new();
    let lists = for_nobody(&net);
    net.config_listening(WITH_ADMIN, &format!("{BOTH}{lists}"));
    let mut daemon = net.daemon(65534);
    let ask = |path: &str| admin(&net, path);
    eventually("the daemon says what is missing", || ask("/readyz").starts_with("503 the firewall is not in place"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert!(ask("/metrics").contains("outgate_firewall_in_place 0"));
    succeed(net.firewall(&["apply"]));
    assert!(ask("/readyz").starts_with("200"), "{}", ask("/readyz"));
    eventually("the metric follows", || ask("/metrics").contains("outgate_firewall_in_place 1"));
    nft(&net.gateway, "flush ruleset");
    assert!(ask("/readyz").starts_with("503 the firewall is not in place"));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
