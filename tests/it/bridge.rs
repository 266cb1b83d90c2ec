//! A hostile guest on a bridge: spanning tree, multicast queries, MACs without end. Judged by the bridge's own
//! state and by what a neighbour still gets; at ports that are there and at ports that come later, which
//! `outgate firewall watch` takes in hand.

use crate::world::eventually;
use crate::world::firewall_watcher::Watcher;
use crate::world::namespace::{self, Namespace};
use crate::world::vmnet::{Vmnet, ask, connect, nft, python, shell, succeed};
use serde_json::Value;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// One guest that is declared, and `two` that is not.
const ONE: &str = "[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n\
    [[guest]]\nname = \"one\"\ninterface = \"p1\"\naddresses = [\"10.42.42.2\", \"fd42::2\"]\n";

/// How long the watcher may take for a port: a second, and ten times that where the machine is busy with other
/// tests. By itself it looks only once a minute.
const SOON: Duration = Duration::from_secs(10);

/// What frames are made of.
const FRAMES: &str = "
import os, socket, struct, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
mac = s.getsockname()[4]
packed = lambda address: socket.inet_pton(socket.AF_INET6 if ':' in address else socket.AF_INET, address)
def checksum(data):
    total = sum(struct.unpack('!%dH' % ((len(data) + 1) // 2), data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total >> 16) + (total & 0xffff)
    return struct.pack('!H', ~total & 0xffff)
def bpdu(kind, version, to='0180c2000000'):
    root = bytes(2) + bytes.fromhex('000000000001')
    timers = struct.pack('!HHHHH', 0x8001, 0, 255 << 8, 2 << 8, 255 << 8)
    body = struct.pack('!HBB', 0, version, kind)
    if kind != 0x80:
        body += bytes(1) + root + bytes(4) + root + timers + bytes(version and 1)
    body = b'\\x42\\x42\\x03' + body
    s.send((bytes.fromhex(to) + mac + struct.pack('!H', len(body)) + body).ljust(60, b'\\0'))
def v4(protocol, source, to, body, flags=0):
    head = struct.pack('!BBHHHBBH', 0x46, 0, 24 + len(body), 1, flags, 1, protocol, 0) + packed(source) + packed(to) + b'\\x94\\x04\\0\\0'
    head = head[:10] + checksum(head) + head[12:]
    group = packed(to)
    s.send((b'\\x01\\x00\\x5e' + bytes([group[1] & 127]) + group[2:] + mac + b'\\x08\\x00' + head + body).ljust(60, b'\\0'))
def igmp(kind, source, to, flags=0):
    body = bytes([kind, 1, 0, 0]) + bytes(4)
    v4(2, source, to, body[:2] + checksum(body) + body[4:], flags)
def v6(source, to, first, rest, protocol, body):
    a, b = packed(source), packed(to)
    if protocol == 58:
        body = body[:2] + checksum(a + b + struct.pack('!II', len(body), 58) + body) + body[4:]
    payload = rest + body
    head = struct.pack('!IHBB', 6 << 28, len(payload), first, 1) + a + b
    s.send(b'\\x33\\x33' + b[12:] + mac + b'\\x86\\xdd' + head + payload)
ALERT = bytes.fromhex('3a00050200000100')
def mld(kind, source, to, more=b'', chain=ALERT, group='::'):
    v6(source, to, 0, chain, 58, bytes([kind, 0, 0, 0]) + struct.pack('!HH', 1, 0) + packed(group) + more)
";

#[track_caller]
fn send(guest: &Namespace, lines: &str) {
    python(guest, &format!("{FRAMES}\n{lines}"));
}

/// Everything that makes a guest the bridge's multicast querier or router.
const QUERIES: &str = "
me4, me6 = sys.argv[1:] if len(sys.argv) > 2 else ('10.42.42.3', 'fe80::1')
for _ in range(3):
    for flags in (0, 0x2000):
        igmp(0x11, me4, '224.0.0.1', flags)
        igmp(0x11, '0.0.0.0', '224.0.0.1', flags)
        igmp(0x30, me4, '224.0.0.106', flags)
    v4(103, me4, '224.0.0.13', bytes([0x20, 0, 0xdf, 0xff]))
    for source in (me6, '::', 'fd42::3', 'fd42::2'):
        mld(130, source, 'ff02::1')
        mld(130, source, 'ff02::1', bytes(4))
        mld(151, source, 'ff02::6a')
        mld(130, source, 'ff02::1', chain=bytes.fromhex('3c00050200000100') + bytes.fromhex('3a00010400000000'))
        mld(130, source, 'ff02::1', chain=bytes.fromhex('2c00050200000100') + bytes.fromhex('3a00000100000001'))
        v6(source, 'ff02::d', 103, b'', 103, bytes([0x20, 0, 0, 0]))
    time.sleep(0.02)
";

/// What ip(8) says of an interface of the gateway's.
fn link(net: &Vmnet, name: &str) -> Value {
    let printed: Value = serde_json::from_str(&shell(&net.gateway, &format!("ip -j -d link show dev {name}"))).unwrap();
    printed[0].clone()
}

fn port(net: &Vmnet, name: &str) -> Value {
    link(net, name)["linkinfo"]["info_slave_data"].clone()
}

fn bridge(net: &Vmnet) -> Value {
    link(net, "br0")["linkinfo"]["info_data"].clone()
}

fn is_guarded(net: &Vmnet, name: &str) -> bool {
    let port = port(net, name);
    port["isolated"] == true
        && port["guard"] == true
        && port["group_fwd_mask"] == "0xfffd"
        && port["multicast_router"] == 0
}

/// Turns the spanning tree on as libvirt does, with the shortest times there are, and waits for its end.
fn with_tree(net: &Vmnet) {
    shell(&net.gateway, "ip link set br0 type bridge stp_state 1 forward_delay 200 max_age 600 hello_time 100");
    settled(net);
}

/// All ports forward, and nothing has changed lately.
#[track_caller]
fn settled(net: &Vmnet) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !["p1", "p2"].iter().all(|name| port(net, name)["state"] == "forwarding")
        || bridge(net)["topology_change"] != 0
    {
        assert!(Instant::now() < give_up, "{:#}", bridge(net));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
fn assert_own_root(net: &Vmnet) {
    let tree = bridge(net);
    assert_eq!(tree["root_id"], tree["bridge_id"], "{tree:#}");
    assert_eq!((&tree["root_port"], &tree["forward_delay"], &tree["max_age"]), (&0.into(), &200.into(), &600.into()));
}

/// How many MACs the bridge has learnt by this port.
fn learnt(net: &Vmnet, name: &str) -> usize {
    let count = shell(&net.gateway, &format!("bridge fdb show brport {name} | grep -vc permanent || true"));
    count.trim().parse().unwrap()
}

/// A guest of its own kind, which comes when the others are there.
fn late(net: &Vmnet, name: &str) -> Namespace {
    let [guest] = Namespace::create([format!("{}-{name}", net.one.name())]);
    guest
}

/// Gives it a cable to the gateway.
fn plug(net: &Vmnet, guest: &Namespace, port: &str, bridge: Option<&str>) {
    let (gateway, name) = (net.gateway.name(), guest.name());
    namespace::batch(None, &format!("link add name {port} netns {gateway} type veth peer name eth0 netns {name}\n"));
    if let Some(bridge) = bridge {
        shell(&net.gateway, &format!("ip link set {port} master {bridge}"));
    }
    shell(&net.gateway, &format!("ip link set {port} up"));
    namespace::batch(
        Some(guest),
        "link set lo up\nlink set eth0 up\naddr add 10.42.42.9/24 dev eth0\naddr add fd42::9/64 dev eth0 nodad\n\
         route add default via 10.42.42.1\nroute add default via fd42::1\n",
    );
}

/// Whether the gateway finds the MAC of an address again.
fn finds(net: &Vmnet, address: &str) -> bool {
    shell(&net.gateway, "ip neigh flush dev br0; ip neigh flush dev br0 nud failed");
    let to = if address.contains(':') { format!("[{address}]:9") } else { format!("{address}:9") };
    let socket = net.gateway.run(|| UdpSocket::bind("[::]:0")).unwrap();
    let give_up = Instant::now() + Duration::from_secs(4);
    while Instant::now() < give_up {
        // After the answer that no host is there, the next packet asks again.
        let to = if address.contains(':') { to.clone() } else { format!("[::ffff:{address}]:9") };
        let _ = socket.send_to(b"where", &to);
        std::thread::sleep(Duration::from_millis(50));
        if shell(&net.gateway, &format!("ip neigh show {address} dev br0")).contains("lladdr") {
            return true;
        }
    }
    false
}

/// As if the membership of the neighbour's group had run out, after four minutes.
fn forget_groups(net: &Vmnet) {
    shell(
        &net.gateway,
        "bridge mdb show dev br0 | sed -n 's/.* port \\(p[0-9]*\\) grp \\([^ ]*\\) .*/bridge mdb del dev br0 port \\1 grp \\2/p' | sh",
    );
}

fn routers(net: &Vmnet) -> String {
    let shown: Value = serde_json::from_str(&shell(&net.gateway, "bridge -j -d mdb show dev br0")).unwrap();
    shown[0]["router"].to_string()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn no_bpdu_of_a_guest_changes_the_spanning_tree() {
    let net = Vmnet::new();
    with_tree(&net);
    assert_own_root(&net);
    // Without the firewall the guest is the root, and whoever comes later waits for its 255 s.
    send(&net.one, "bpdu(0, 0)");
    eventually("the guest is root", || bridge(&net)["root_port"] == 1);
    assert_eq!((bridge(&net)["forward_delay"].as_u64(), bridge(&net)["max_age"].as_u64()), (Some(25500), Some(25500)));
    net.apply(ONE);
    assert_own_root(&net);
    assert!(is_guarded(&net, "p1") && is_guarded(&net, "p2"), "{} {}", port(&net, "p1"), port(&net, "p2"));
    assert!(net.status().0, "{}", net.status().1);
    settled(&net);
    for guest in [&net.one, &net.two] {
        send(
            guest,
            "for _ in range(5):\n for to in ('0180c2000000', '0180c2000008', '01000ccccccd'):\n  \
             bpdu(0, 0, to); bpdu(0x80, 0, to); bpdu(2, 2, to); bpdu(2, 3, to)",
        );
    }
    eventually("they are counted", || net.counted("a frame for the next bridge") >= 80);
    assert_own_root(&net);
    assert_eq!(bridge(&net)["topology_change"], 0);
    // Nor does it cost a guest its own way: some bridge within themselves and do not know better.
    net.dns("10.42.42.1:53");
    for guest in [&net.one, &net.two] {
        assert_eq!(ask(guest, "10.42.42.1:53").unwrap(), "answer");
    }
    // A guest that is plugged in now talks after twice the forward delay, which is 2 s.
    let nine = late(&net, "9");
    let begun = Instant::now();
    plug(&net, &nine, "p9", Some("br0"));
    succeed(net.firewall(&["apply"]));
    eventually("it forwards", || port(&net, "p9")["state"] == "forwarding");
    assert_eq!(ask(&nine, "10.42.42.1:53").unwrap(), "answer");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_port_without_its_mask_is_disabled_by_its_first_bpdu_and_remove_restores_everything() {
    let net = Vmnet::new();
    with_tree(&net);
    let state = || {
        let flags = |name| {
            let port = port(&net, name);
            ["isolated", "guard", "group_fwd_mask", "multicast_router", "learning"].map(|key| port[key].to_string())
        };
        (flags("p1"), flags("p2"), bridge(&net)["no_linklocal_learn"].to_string())
    };
    let before = state();
    net.apply(ONE);
    shell(&net.gateway, "ip link set p1 type bridge_slave group_fwd_mask 0");
    let (good, status) = net.status();
    assert!(!good && status["differences"].to_string().contains("bridge port p1 is not guarded"), "{status}");
    send(&net.one, "bpdu(0, 0); bpdu(0x80, 0)");
    eventually("its port is off", || port(&net, "p1")["state"] == "disabled");
    assert_own_root(&net);
    net.dns("10.42.42.1:53");
    assert_eq!(ask(&net.two, "10.42.42.1:53").unwrap(), "answer");
    succeed(net.firewall(&["remove"]));
    assert_eq!(state(), before);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn only_the_ports_of_guests_are_guarded() {
    let net = Vmnet::new();
    // A bridge that is not a guest's, with the way out and one port that is a guest's by its name.
    shell(
        &net.gateway,
        "ip link set p2 nomaster; ip link add br1 type bridge; ip link set br1 up; ip link set p2 master br1",
    );
    net.apply("[firewall]\nguest_interfaces = [\"p1\"]\n");
    assert!(is_guarded(&net, "p1"), "{}", port(&net, "p1"));
    assert!(port(&net, "p2")["guard"] == false && port(&net, "p2")["isolated"] == false, "{}", port(&net, "p2"));
    assert_eq!(link(&net, "br1")["linkinfo"]["info_data"]["no_linklocal_learn"], 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn no_guest_becomes_the_multicast_querier_or_router_and_the_neighbour_keeps_ipv6() {
    let net = Vmnet::new();
    net.apply(ONE);
    let before = net.counted("a guest that poses as multicast router");
    send(&net.one, &QUERIES.replace("10.42.42.3", "10.42.42.2"));
    send(&net.two, QUERIES);
    // Of the declared guest the rest is spoofed.
    eventually("they are counted", || net.counted("a guest that poses as multicast router") - before > 60);
    forget_groups(&net);
    assert!(!routers(&net).contains("\"p"), "{}", routers(&net));
    for address in ["fd42::3", "fd42::2", "10.42.42.3", "10.42.42.2"] {
        assert!(finds(&net, address), "{address}");
    }
    for guest in [&net.one, &net.two] {
        send(guest, "mld(131, 'fe80::3', 'ff02::1:ff00:77', group='ff02::1:ff00:77')");
    }
    eventually("who joins a group is known", || {
        shell(&net.gateway, "bridge mdb show dev br0").matches("grp ff02::1:ff00:77").count() == 2
    });
    // More groups than the bridge keeps: it may then send all multicast to all ports, and no guest loses any.
    let many = "for n in range(5000):\n mld(131, 'fe80::3', 'ff05::1', group='ff05::%x' % (n + 16))";
    send(&net.two, many);
    assert!(finds(&net, "fd42::2"));
    // The same frames where the rules are gone: the bridge believes them, and the neighbour is not found, unless somebody's
    // groups come back or make it send all to all once more.
    nft(&net.gateway, "flush chain bridge outgate membership");
    let would_notice = (0..5).any(|_| {
        // With room for more, or the next one who joins any turns it off again.
        shell(
            &net.gateway,
            "ip link set br0 type bridge mcast_hash_max 65536; ip link set br0 type bridge mcast_snooping 1",
        );
        send(&net.two, QUERIES);
        forget_groups(&net);
        !finds(&net, "fd42::2")
    });
    assert!(would_notice);
    assert!(finds(&net, "10.42.42.2"), "ARP is for everybody");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_port_puts_a_bounded_number_of_macs_into_the_bridge() {
    let net = Vmnet::new();
    const FLOOD: &str = "
kinds = [b'\\x08\\x06' + bytes(46), b'\\x08\\x00\\x45' + bytes(45), b'\\x86\\xdd\\x60' + bytes(45), b'\\x88\\xb5' + bytes(46)]
for to in (b'\\xff' * 6, bytes.fromhex('0180c200000e'), bytes.fromhex('0180c2000000'), bytes.fromhex('020000000099')):
    for n in range(1000):
        s.send(to + b'\\x02' + os.urandom(5) + kinds[n % 4])
";
    let bare = Vmnet::new();
    send(&bare.two, FLOOD);
    assert!(learnt(&bare, "p2") > 3000, "without the firewall: {}", learnt(&bare, "p2"));
    drop(bare);
    net.apply(ONE);
    net.dns("10.42.42.1:53");
    assert_eq!(ask(&net.one, "10.42.42.1:53").unwrap(), "answer");
    // A machine with containers on a bridge of its own.
    let containers =
        "for n in range(40):\n s.send(b'\\xff' * 6 + b'\\x02\\0\\0\\0\\1' + bytes([n]) + b'\\x08\\x06' + bytes(46))";
    for _ in 0..3 {
        send(&net.two, containers);
    }
    eventually("all of them are known", || learnt(&net, "p2") >= 40);
    for guest in [&net.two, &net.one] {
        send(guest, FLOOD);
    }
    let (one, two) = (learnt(&net, "p1"), learnt(&net, "p2"));
    assert!(two <= 80, "{two} MACs by the port of who is not declared");
    assert!(one <= 4, "{one} MACs by the port that has one of its own");
    assert!(net.counted("flood: too many MACs") > 1000);
    // By now the query would be repeated; known addresses still pass, even after another `apply`.
    succeed(net.firewall(&["apply"]));
    let before = net.counted("flood: too many MACs");
    send(&net.two, containers);
    assert_eq!(net.counted("flood: too many MACs"), before);
    assert_eq!(ask(&net.one, "10.42.42.1:53").unwrap(), "answer");
    assert!(net.status().0, "{}", net.status().1);
}

#[track_caller]
fn eventually_timed(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    eventually(what, &mut holds);
    println!("{what} after {:?}", begun.elapsed());
    assert!(begun.elapsed() < SOON, "{what}: {:?}", begun.elapsed());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_port_that_comes_after_apply_is_guarded_within_a_second() {
    let net = Vmnet::new();
    with_tree(&net);
    net.apply(ONE);
    net.dns("10.42.42.1:53");
    let _brought = net.transparent();
    let watcher = Watcher::start(&net);
    let nine = late(&net, "9");
    plug(&net, &nine, "p9", Some("br0"));
    eventually_timed("the port is guarded", || is_guarded(&net, "p9"));
    let prohibited = || shell(&net.gateway, "ip -4 rule; ip -6 rule").matches("iif p9 prohibit").count();
    eventually_timed("its routing rules are there", || prohibited() == 2);
    eventually_timed("all is in place", || net.status().0);
    eventually("it forwards", || port(&net, "p9")["state"] == "forwarding");
    settled(&net);

    send(&nine, "for _ in range(5):\n bpdu(0, 0); bpdu(0x80, 0); bpdu(2, 2)");
    send(&nine, QUERIES);
    send(&nine, "for n in range(4000):\n s.send(b'\\xff' * 6 + b'\\x02' + os.urandom(5) + b'\\x08\\x06' + bytes(46))");
    assert_own_root(&net);
    assert!(learnt(&net, "p9") <= 80, "{}", learnt(&net, "p9"));
    forget_groups(&net);
    assert!(!routers(&net).contains("\"p"), "{}", routers(&net));
    for address in ["fd42::2", "fd42::3", "10.42.42.3"] {
        assert!(finds(&net, address), "{address}");
    }
    assert_eq!(ask(&net.two, "10.42.42.1:53").unwrap(), "answer");
    // It is served like any other.
    assert_eq!(connect(&nine, "11.0.0.66:443").unwrap(), "here\n");
    // Nor does it reach its neighbour, with or without the ruleset.
    nft(&net.gateway, "flush ruleset");
    assert!(
        nine.run(|| std::net::TcpStream::connect_timeout(&"10.42.42.3:22".parse().unwrap(), Duration::from_secs(2)))
            .is_err()
    );
    assert!(
        shell(&nine, "ip neigh show 10.42.42.3").contains("FAILED")
            || !shell(&nine, "ip neigh show 10.42.42.3").contains("lladdr")
    );
    net.assert_no_leaks();

    // Gone and back, as when a guest is started again.
    net.apply(ONE);
    shell(&net.gateway, "ip link del p9");
    eventually_timed("its rules go with it", || prohibited() == 0 && net.status().0);
    plug(&net, &nine, "p9", Some("br0"));
    eventually_timed("it is guarded again", || is_guarded(&net, "p9") && net.status().0);
    let said = watcher.kill();
    assert!(said.contains("bridge port p9 is isolated and guarded"), "{said}");

    // A root that was announced before the watcher ran is forgotten at once, not after the 255 s that it announced.
    shell(&net.gateway, "ip link del p9");
    plug(&net, &nine, "p9", Some("br0"));
    eventually("the guest is root", || {
        send(&nine, "bpdu(0, 0)");
        bridge(&net)["forward_delay"] == 25500
    });
    let _watcher = Watcher::start(&net);
    assert_own_root(&net);
    assert!(is_guarded(&net, "p9"), "{}", port(&net, "p9"));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_interface_that_comes_after_apply_is_closed_within_a_second() {
    let net = Vmnet::new();
    net.apply("[firewall]\nguest_interfaces = [\"br0\", \"tap*\"]\n");
    let watcher = Watcher::start(&net);
    shell(
        &net.gateway,
        "sysctl -qw net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_ra=2; ip tuntap add dev tap7 mode tap; ip link set tap7 up",
    );
    let setting = |path: &str| shell(&net.gateway, &format!("cat /proc/sys/net/{path}")).trim().to_owned();
    eventually_timed("its rules are there", || {
        shell(&net.gateway, "ip -4 rule; ip -6 rule").matches("iif tap7 prohibit").count() == 2
    });
    eventually_timed("its settings are", || {
        setting("ipv4/conf/tap7/rp_filter") == "1" && setting("ipv6/conf/tap7/accept_ra") == "0"
    });
    eventually_timed("all is in place", || net.status().0);
    drop(watcher);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_watcher_survives_failures_and_never_opens_anything() {
    let net = Vmnet::new();
    net.apply(ONE);
    // Killed; what appeared in the meantime is found at the next start.
    assert_eq!(Watcher::start(&net).kill(), "");
    let nine = late(&net, "9");
    plug(&net, &nine, "p9", Some("br0"));
    assert!(!is_guarded(&net, "p9"));
    let watcher = Watcher::start(&net);
    assert!(is_guarded(&net, "p9"), "it is ready after its first look");

    // Interfaces that go while it looks.
    let storm = "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do ip link add v$n type veth peer name w$n && ip link set v$n master br0; \
                 ip link set v$n up; ip link del v$n; done";
    for _ in 0..3 {
        shell(&net.gateway, storm);
    }
    // One port fewer than in any report: that inspection, and all before it, are over. Then as before.
    shell(&net.gateway, "ip link set p9 nomaster");
    watcher.hears("ports of guests: 2");
    shell(&net.gateway, "ip link set p9 master br0");
    watcher.hears("ports of guests: 3");
    assert!(net.status().0, "{}", net.status().1);

    // A configuration that would open more, not applied.
    let rules = || {
        shell(
            &net.gateway,
            "ip -4 rule; ip -6 rule; nft -s -t list ruleset; nft list set inet outgate ports 2>&1 || true",
        )
    };
    let before = rules();
    net.config("[firewall]\nguest_interfaces = [\"r3\"]\n");
    shell(&net.gateway, "ip tuntap add dev other mode tap");
    watcher.hears("not that of the configuration");
    shell(&net.gateway, "ip link del other");
    // This look began when the first had ended, so that it knew that configuration and another interface.
    watcher.hears("not that of the configuration");
    assert_eq!(rules(), before);
    // One that cannot be read: what was in force goes on.
    std::fs::write(net.path("outgate.toml"), "[firewall\n").unwrap();
    shell(&net.gateway, "ip link set p9 nomaster; ip link set p9 master br0");
    eventually_timed("it is guarded all the same", || is_guarded(&net, "p9"));
    assert_eq!(rules(), before);
    // Mended.
    net.config(ONE);
    shell(&net.gateway, "ip tuntap add other mode tap");
    watcher.hears("STATUS=watching; bridge ports of guests: 3");
    assert!(net.status().0, "{}", net.status().1);

    // After `remove` there is nothing to do.
    succeed(net.firewall(&["remove"]));
    let before = rules();
    shell(&net.gateway, "ip link set p9 nomaster; ip link set p9 master br0");
    watcher.hears("the firewall is not applied");
    assert!(!is_guarded(&net, "p9"));
    assert_eq!(rules(), before);
    let said = watcher.kill();
    assert!(!said.contains("Cannot find device"), "{said}");
}

/// An edit that nobody has applied may name the interface by which its author comes in. A watcher that is started
/// then goes by what the kernel holds.
#[test]
#[ignore = "requires root and network namespaces"]
fn a_watcher_that_is_started_after_an_edit_does_not_apply_it() {
    let net = Vmnet::new();
    let nine = late(&net, "9");
    shell(
        &net.gateway,
        "ip link add br1 type bridge; ip link set br1 up; ip link add p8 type veth peer name q8; ip link set p8 master br1; \
         sysctl -qw net.ipv4.conf.r3.rp_filter=0 net.ipv6.conf.r3.accept_ra=2 net.ipv4.conf.default.rp_filter=0",
    );
    // What of the gateway's names an interface that was never a guest's.
    let others = || {
        let settings = "cd /proc/sys/net; grep -s . ipv[46]/conf/r3/* ipv[46]/conf/br1/* ipv[46]/conf/p8/* || true";
        let rules = "(ip -4 rule; ip -6 rule; nft list ruleset) | grep -E 'r3|br1|p8' || true";
        let ports = (port(&net, "p8"), link(&net, "br1")["linkinfo"]["info_data"]["no_linklocal_learn"].clone());
        (shell(&net.gateway, settings), shell(&net.gateway, rules), format!("{ports:?}"))
    };
    let untouched = others();
    assert!(untouched.1.is_empty(), "{untouched:?}");
    let edits = [
        "[firewall]\nguest_interfaces = [\"br0\", \"br1\", \"r3\"]",
        "[firewall]\nguest_interfaces = [\"br1\", \"r*\"]",
        "[firewall]\nguest_interfaces = [\"r3\"]\n[[guest]]\nname = \"eight\"\ninterface = \"p8\"\naddresses = [\"10.42.42.8\"]",
        // Not sound.
        "[firewall]\nguest_interfaces = [\"br0\", \"br1\", \"r3\"]\nallow_everything = true",
        // Not even TOML.
        "[firewall\nguest_interfaces = [\"br1\", \"r3\"]",
        "",
    ];
    let prohibited = |name: &str| {
        shell(&net.gateway, "ip -4 rule; ip -6 rule").matches(&format!("iif {name} prohibit")).count() == 2
    };
    for (n, edit) in edits.into_iter().enumerate() {
        net.apply("[firewall]\nguest_interfaces = [\"br0\", \"tap*\"]\n");
        assert_eq!(Watcher::start(&net).kill(), "");
        net.config(edit);
        let watcher = Watcher::start(&net);
        plug(&net, &nine, "p9", Some("br0"));
        shell(&net.gateway, "ip tuntap add dev tap7 mode tap; ip link set tap7 up");
        eventually_timed("a port of what is held is guarded", || is_guarded(&net, "p9") && prohibited("p9"));
        eventually_timed("so is what fits a pattern that is held", || {
            prohibited("tap7") && shell(&net.gateway, "cat /proc/sys/net/ipv4/conf/tap7/rp_filter").trim() == "1"
        });
        let ports = shell(&net.gateway, "nft list set inet outgate ports");
        assert!(["p1", "p2", "p9"].iter().all(|name| ports.contains(&format!("\"{name}\""))), "{n}: {ports}");
        assert_eq!(others(), untouched, "{n}");

        // The ruleset is gone as well: only the routing rules are left, and they name the interfaces that they close.
        drop(watcher);
        nft(&net.gateway, "flush ruleset");
        shell(&net.gateway, "ip link del p9");
        let watcher = Watcher::start(&net);
        plug(&net, &nine, "p9", Some("br0"));
        eventually_timed("it is guarded again", || is_guarded(&net, "p9") && prohibited("p9"));
        assert_eq!(others(), untouched, "{n}, flushed");
        drop(watcher);
        shell(&net.gateway, "ip link del p9; ip link del tap7");
        net.config("[firewall]\nguest_interfaces = [\"br0\"]\n");
        succeed(net.firewall(&["remove"]));
    }
}

/// A watcher that runs sees two edits, of which the first was applied and the second was not.
#[test]
#[ignore = "requires root and network namespaces"]
fn a_watcher_that_missed_an_apply_follows_the_applied_configuration() {
    let net = Vmnet::new();
    net.apply("[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n");
    let watcher = Watcher::start(&net);
    shell(&net.gateway, "ip link del r3; ip link del r4");
    net.config("[firewall]\nguest_interfaces = [\"br0\"]\n");
    succeed(net.firewall(&["remove"]));
    net.apply("[firewall]\nguest_interfaces = [\"br0\"]\n");
    net.config("[firewall]\nguest_interfaces = [\"br0\", \"r3\"]\n");
    shell(&net.gateway, "ip tuntap add dev r7 mode tap; ip tuntap add dev r3 mode tap");
    let nine = late(&net, "9");
    plug(&net, &nine, "p9", Some("br0"));
    let rules = || shell(&net.gateway, "ip -4 rule; ip -6 rule");
    // All rules of a look come at once, and this one saw the others.
    eventually_timed("the port is guarded and has its rules", || {
        is_guarded(&net, "p9") && rules().matches("iif p9 prohibit").count() == 2
    });
    assert!(!rules().contains("iif r"), "{}", rules());
    assert!(watcher.kill().contains("not that of the configuration"));
}

/// With patterns alone there may be no interface and so no routing rule, but the ruleset is there.
#[test]
#[ignore = "requires root and network namespaces"]
fn a_watcher_that_cannot_read_the_configuration_says_so_before_any_guest_is_there() {
    let net = Vmnet::new();
    let taps = "[firewall]\nguest_interfaces = [\"tap*\"]\n";
    for broken in ["[firewall\n", "[firewall]\nguest_interfaces = [\"tap*\"]\nallow_everything = true\n"] {
        net.apply(taps);
        std::fs::write(net.path("outgate.toml"), broken).unwrap();
        let watcher = Watcher::start(&net);
        shell(&net.gateway, "ip tuntap add dev tap7 mode tap; ip link set tap7 up");
        eventually_timed("it is closed", || {
            shell(&net.gateway, "ip -4 rule; ip -6 rule").matches("iif tap7 prohibit").count() == 2
        });
        let said: Vec<String> = std::iter::once(watcher.first.clone()).chain(watcher.said.try_iter()).collect();
        let truth = |said: &String| said.contains("STATUS=failed") && said.contains("outgate.toml");
        assert!(said.iter().all(truth), "{said:?}");
        assert!(watcher.kill().contains("outgate.toml"));
        shell(&net.gateway, "ip link del tap7");
        net.config(taps);
        succeed(net.firewall(&["remove"]));
    }
}

/// A missing element of one of outgate's sets leaves a port uncovered, and a stale one applies to the next interface
/// of that name: `status` says which, whoever removed or added it.
#[test]
#[ignore = "requires root and network namespaces"]
fn status_says_which_element_of_a_set_is_missing_and_which_is_stale() {
    let net = Vmnet::new();
    net.apply(ONE);
    net.dns("10.42.42.1:53");
    for guest in [&net.one, &net.two] {
        // What the sets learn from packets does not count as a difference.
        assert_eq!(ask(guest, "10.42.42.1:53").unwrap(), "answer");
    }
    assert!(net.status().0, "{}", net.status().1);
    let mut sets = vec![("inet", "ports", "p1"), ("inet", "guest_bridges", "br0")];
    if shell(&net.gateway, "nft list table bridge outgate").contains("set guest_ports") {
        sets.push(("bridge", "guest_ports", "p2"));
    }
    if shell(&net.gateway, "nft list tables").contains("table arp outgate") {
        sets.push(("arp", "guest_bridges", "br0"));
    }
    for (family, set, there) in sets {
        nft(&net.gateway, &format!("delete element {family} outgate {set} {{ \"{there}\" }}"));
        nft(&net.gateway, &format!("add element {family} outgate {set} {{ \"gone7\" }}"));
        let (good, status) = net.status();
        let missing = match there {
            "br0" => format!("set {set} of table {family} outgate does not name br0: run `outgate firewall apply`"),
            _ => format!("bridge port {there} is not covered: it came after the ruleset"),
        };
        let stale = format!(
            "set {set} of table {family} outgate still names gone7 and would hold whatever interface has that name \
             next: run `outgate firewall apply`"
        );
        assert!(!good);
        assert_eq!(status["differences"], serde_json::json!([missing, stale]));
        succeed(net.firewall(&["apply"]));
        assert!(net.status().0, "{}", net.status().1);
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_carrier_that_flaps_costs_the_watcher_nothing() {
    let net = Vmnet::new();
    net.apply(ONE);
    let watcher = Watcher::start(&net);
    std::thread::sleep(Duration::from_millis(300));
    let looks = || {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", watcher.child.id())).unwrap();
        let fields: Vec<u64> =
            status.rsplit(") ").next().unwrap().split(' ').filter_map(|field| field.parse().ok()).collect();
        // Time of the children that it waited for, in clock ticks (proc(5), fields 16 and 17).
        fields[12] + fields[13]
    };
    let before = looks();
    shell(&net.two, "for n in $(seq 300); do ip link set eth0 down; ip link set eth0 up; done");
    assert!(looks() - before < 50, "{} ticks for nothing", looks() - before);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn expired_entries_do_not_fill_connection_tracking_while_the_watcher_runs() {
    let net = Vmnet::new();
    net.apply(ONE);
    let read = |name: &str| -> u64 {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        net.gateway.run(|| std::fs::read_to_string(path)).expect("the kernel tracks").trim().parse().expect("a number")
    };
    nft(
        &net.gateway,
        "table inet brief {\nct timeout brief {\nprotocol udp;\nl3proto ip;\npolicy = { unreplied : 5, replied : 5 };\n}\n\
         chain out {\ntype filter hook output priority -190;\nudp dport 9 ct timeout set \"brief\"\n}\n}\n",
    );
    let watcher = Watcher::start(&net);
    // An eighth, from which on it sweeps, and some more; alive for long enough that it sees them, whenever the kernel's
    // own collector comes by, and however long it takes to make them.
    let sweeps = read("max") / 8;
    net.gateway.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (end, mut rounds) = (Instant::now() + Duration::from_secs(3), 0);
        while Instant::now() < end || rounds < 3 {
            rounds += 1;
            for n in 0..u32::try_from(sweeps).unwrap() + 1000 {
                let _ = socket.send_to(b"x", (std::net::Ipv4Addr::from(0x7f01_0001 + n), 9));
            }
        }
    });
    println!("{} entries", read("count"));
    eventually("they are swept", || read("count") < sweeps);
    let said = watcher.kill();
    assert!(said.contains("after the expired ones were removed"), "{said}");
}
