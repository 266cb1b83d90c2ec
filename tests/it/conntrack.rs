//! A guest against the kernel's connection tracking table, which all of the machine shares: whatever it sends, few
//! entries are its own, and neighbour, the host's own services and the admin listener are served meanwhile. The tests
//! check the kernel's count in the gateway and what the others get.

use crate::world::client::Guest;
use crate::world::guarded_network::{GuardedNetwork, STRANGER, STRANGER6};
use crate::world::namespace::Namespace;
use crate::world::outgate::Outgate;
use crate::world::stub_resolver::{framed, query, read_framed};
use crate::world::vmnet::{Vmnet, connect, nft, shell, succeed};
use crate::world::{GOOD, Raise};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const FLOOD: &str = include_str!("world/flood.py");

/// Entries that a guest may have by port 53 at once under [`LIMITS`]: 1,000 datagrams a second for 3 s, 400 packets of
/// TCP for 6 s, and what may come at once.
const BY_QUERIES: u64 = 8_000;
/// A low limit, so that a flood of a second is far over it.
const LIMITS: &str = "[limits]\ndns_queries_per_second = 1000\n";
/// Entries of packets that might have been answers to the outside: 400 a second for a second, and what may come at
/// once.
const BY_STRAYS: u64 = 2_500;
/// Entries of one round of what the others do meanwhile: a fetch, what the daemon opens for it, a query and
/// its question upstream, the host's listener and the admin listener.
const A_ROUND: u64 = 8;

const PINNED: &str = "[[guest]]\nname = \"one\"\ninterface = \"p1\"\naddresses = [\"10.42.42.2\", \"fd42::2\"]\n\
    [[guest]]\nname = \"two\"\ninterface = \"p2\"\naddresses = [\"10.42.42.3\", \"fd42::3\"]\n\
    [[guest]]\nname = \"three\"\ninterface = \"r3\"\naddresses = [\"10.43.0.3\", \"fd43::3\"]\n";

const FIREWALL: &str = "[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n";

fn entries(gateway: &Namespace) -> u64 {
    let read = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    gateway.run(read).expect("the kernel counts").trim().parse().expect("a number")
}

/// Entries that are left once the kernel was made to look at each: it sweeps those that are over seldom.
fn settled(gateway: &Namespace) -> u64 {
    shell(gateway, "cat /proc/net/nf_conntrack >/dev/null");
    entries(gateway)
}

/// A guest that floods.
struct Attacker<'w> {
    namespace: &'w Namespace,
    /// The gateway's MAC on its link.
    gateway: String,
    sources: [&'static str; 2],
}

impl<'w> Attacker<'w> {
    fn new(network: &'w GuardedNetwork, guest: &'w Guest, link: &str, sources: [&'static str; 2]) -> Attacker<'w> {
        // Its own stack says nothing to what comes back.
        nft(
            &guest.namespace,
            "table inet mute { chain out { type filter hook output priority 0; tcp flags & rst == rst drop; meta l4proto icmp drop; }; }",
        );
        let found = shell(&network.net.gateway, &format!("ip -o link show {link} | sed 's/.*ether //; s/ .*//'"));
        Attacker { namespace: &guest.namespace, gateway: found.trim().replace(':', ""), sources }
    }

    /// Floods; says how many packets were sent.
    fn flood(&self, how: Value) -> Value {
        let mut how = how;
        let v6 = how["v6"] == json!(true);
        how["gateway"] = json!(self.gateway);
        how["source"] = json!(self.sources[usize::from(v6)]);
        if how.get("seconds").is_none() {
            how["seconds"] = json!(1);
        }
        let mut command = Command::new("python3");
        command.args(["-c", FLOOD, &how.to_string()]);
        let said = succeed(self.namespace.run(|| command.output()).expect("python3 is installed"));
        serde_json::from_str(&said).expect("it says how many")
    }
}

/// What the others got while somebody flooded.
#[derive(Debug, Default)]
struct Served {
    fetches: u32,
    failed: Vec<String>,
    /// Entries at most, beyond those that were there before.
    entries: u64,
    flooded: Value,
}

/// Floods, and meanwhile lets the neighbour fetch, the internet come to the host's own listener, and
/// Prometheus to the admin listener.
fn meanwhile(
    network: &GuardedNetwork,
    outgate: &Outgate,
    neighbour: &Guest,
    flood: impl FnOnce() -> Value + Send,
) -> Served {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| {
            // Also where it fails.
            let _end = Raise(&over);
            flood()
        });
        let before = settled(&network.net.gateway);
        let mut served = Served::default();
        while !over.load(Ordering::Acquire) || served.fetches == 0 {
            match neighbour.https(GOOD, "good.test") {
                Ok(200) => served.fetches += 1,
                other => served.failed.push(format!("the neighbour: {other:?}")),
            }
            let reply = neighbour.ask_at([8, 8, 8, 8], "good.test", crate::world::dns::A);
            if reply.addresses != [IpAddr::from(GOOD)] {
                served.failed.push(format!("the neighbour's DNS: {:?}", reply.addresses));
            }
            match connect(&network.net.internet, "11.0.0.1:22").as_deref() {
                Ok("here\n") => {}
                other => served.failed.push(format!("the host's own listener: {other:?}")),
            }
            if outgate.admin("/healthz").is_none_or(|response| response.status != 200) {
                served.failed.push("the admin listener".to_owned());
            }
            served.entries = served.entries.max(settled(&network.net.gateway).saturating_sub(before));
        }
        served.flooded = attack.join().expect("the flood ends");
        served
    })
}

#[track_caller]
fn assert_served(served: &Served, how: &Value, strays: u64) {
    println!("{how}: {} entries at most, {} fetches; {}", served.entries, served.fetches, served.flooded);
    assert!(served.failed.is_empty(), "{how}: {served:?}");
    assert!(served.flooded["sent"].as_u64().is_some_and(|sent| sent > 500), "{how}: {served:?}");
    let by_queries = if how["port"] == json!(53) { BY_QUERIES } else { 0 };
    let bound = by_queries + strays + A_ROUND * u64::from(served.fetches) + 50;
    assert!(served.entries < bound, "{how}: {bound} are too many: {served:?}");
}

/// Whatever a guest may send to open, half open, close and reopen.
fn floods() -> Vec<Value> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for kind in ["md5", "paws", "syn", "ack", "fin", "rst", "revive"] {
            all.push(json!({ "kind": kind, "v6": v6 }));
        }
        // Port 53 is the one that has entries.
        for kind in ["udp", "md5", "revive", "ack"] {
            all.push(json!({ "kind": kind, "v6": v6, "port": 53 }));
        }
        all.push(json!({ "kind": "md5", "v6": v6, "port": 53, "target": if v6 { "fd42::1" } else { "10.42.42.1" } }));
    }
    all
}

#[test]
#[ignore = "requires root and network namespaces"]
fn no_flood_of_an_undeclared_guest_on_the_neighbours_bridge_fills_connection_tracking() {
    let network = GuardedNetwork::new();
    let outgate = network.start(network.setup("good.test\n").tables(LIMITS));
    let _ssh = network.net.listener("0.0.0.0:22");
    let attacker = Attacker::new(&network, &network.one, "br0", ["10.42.42.2", "fd42::2"]);
    // Sources that it invents, of its prefix: 70,000 of one port.
    let invented = [("syn", 443), ("udp", 53), ("syn", 53)]
        .map(|(kind, port)| json!({ "kind": kind, "v6": true, "port": port, "sources": 70_000 }));
    for how in floods().into_iter().chain(invented) {
        let served = meanwhile(&network, &outgate, &network.two, || attacker.flood(how.clone()));
        assert_served(&served, &how, 0);
    }
    let (good, status) = network.status(&outgate);
    assert!(good, "{status}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn no_flood_of_a_declared_guest_fills_connection_tracking_where_answers_to_the_outside_are_tracked_too() {
    let network = GuardedNetwork::new();
    let listen = "proxy = [\"10.43.0.1:3128\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\n\
                  dns = [\"10.42.42.1:53\", \"[fd42::1]:53\"]";
    let tables = format!("{FIREWALL}allow_inbound_replies = true\nallow_dhcp = true\n{LIMITS}{PINNED}");
    let outgate = network.start(network.bare("good.test\n").listen(listen).tables(&tables));
    let _ssh = network.net.listener("0.0.0.0:22");
    // By a bridge's port and by an interface of its own in turn; `tests/run --all` has each flood by both.
    let both = std::env::var_os("OUTGATE_TEST_ALL").is_some();
    for (place, (guest, link, sources)) in
        [(&network.one, "br0", ["10.42.42.2", "fd42::2"]), (&network.three, "r3", ["10.43.0.3", "fd43::3"])]
            .into_iter()
            .enumerate()
    {
        let attacker = Attacker::new(&network, guest, link, sources);
        let proxy = ["md5", "revive", "ack", "fin"]
            .map(|kind| json!({ "kind": kind, "v6": false, "port": 3128, "target": "10.43.0.1" }));
        let dhcp = json!({ "kind": "udp", "v6": true, "port": 547, "sources": 70_000 });
        let floods = floods().into_iter().chain(proxy).chain([dhcp]).enumerate();
        for (_, how) in floods.filter(|(turn, _)| both || turn % 2 == place) {
            let served = meanwhile(&network, &outgate, &network.two, || attacker.flood(how.clone()));
            assert_served(&served, &how, BY_STRAYS);
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn queries_of_guests_that_no_reply_can_reach_cost_the_neighbour_no_answer() {
    let network = GuardedNetwork::new();
    let mut tables = "[guests]\nunknown = \"shared\"\n".to_owned();
    // Addresses that answer no ARP, with what the limits as they are built in let through.
    for number in 100..110 {
        let addresses = format!("[\"10.43.0.{number}\", \"fd43::1:{number:x}\"]");
        let _ = write!(tables, "[[guest]]\nname = \"flood{number}\"\ninterface = \"r3\"\naddresses = {addresses}\n");
    }
    let outgate = network.start(network.setup("good.test\n").top("").tables(&tables));
    let _ssh = network.net.listener("0.0.0.0:22");
    shell(&network.net.gateway, "ip route add 10.43.0.96/27 dev r3; ip -6 route add fd43::1:0/112 dev r3");
    let attacker = Attacker::new(&network, &network.three, "r3", ["10.43.0.100", "fd43::1:64"]);
    for v6 in [false, true] {
        let how = json!({ "kind": "replay", "v6": v6, "port": 53, "guests": 10, "each": 30_000, "seconds": 6 });
        let served = meanwhile(&network, &outgate, &network.two, || attacker.flood(how.clone()));
        println!("{how}: {} entries at most, {} fetches; {}", served.entries, served.fetches, served.flooded);
        assert!(served.failed.is_empty(), "{how}: {served:?}");
        // 5,000 a second for 3 s, what may come at once, and what a busy machine is late to sweep; far more was tried.
        assert!(served.entries < 30_000 + A_ROUND * u64::from(served.fetches), "{how}: {served:?}");
        assert!(served.flooded["sent"].as_u64().is_some_and(|sent| sent > 60_000), "{how}: {served:?}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_floods_fill_connection_tracking_without_the_rules_against_them() {
    let network = GuardedNetwork::new();
    let _outgate = network.start(network.setup("good.test\n"));
    let attacker = Attacker::new(&network, &network.one, "br0", ["10.42.42.2", "fd42::2"]);
    for chain in
        ["outgate untracked", "outgate answers", "outgate_timeouts lifetimes", "outgate_timeouts own_lifetimes"]
    {
        shell(&network.net.gateway, &format!("nft flush chain inet {chain}"));
    }
    for kind in ["md5", "paws", "fin", "rst", "revive"] {
        let before = settled(&network.net.gateway);
        let said = attacker.flood(json!({ "kind": kind, "v6": false }));
        let more = entries(&network.net.gateway) - before;
        println!("{kind}: {more} entries; {said}");
        assert!(more > said["tried"].as_u64().unwrap() / 2 && more > 200, "{kind}: {more} entries of {said}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_metrics_show_the_number_and_the_limit_of_entries() {
    let network = GuardedNetwork::new();
    let outgate = network.start(network.setup("good.test\n"));
    let limit = network.net.gateway.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max"));
    assert_eq!(outgate.metric("conntrack_limit", &[]), limit.unwrap().trim().parse::<f64>().unwrap());
    let before = outgate.metric("conntrack_entries", &[]);
    // Sockets of the gateway itself, whose datagrams are not answered.
    network.net.gateway.run(|| {
        for _ in 0..100 {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"lost", (GOOD, 9)).unwrap();
        }
    });
    assert!(outgate.metric("conntrack_entries", &[]) >= before + 90.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_that_speaks_from_hundreds_of_addresses_takes_few_places_among_the_neighbours() {
    let network = GuardedNetwork::new();
    let prefix = "[[guest]]\nname = \"three\"\ninterface = \"r3\"\naddresses = [\"10.43.0.3\", \"fd43:0:0:0::/64\"]\n";
    let setup = network.setup("good.test\n").top("").tables(&format!("[guests]\nunknown = \"shared\"\n{prefix}"));
    let outgate = network.start(setup);
    let _ssh = network.net.listener("0.0.0.0:22");
    shell(&network.net.gateway, "ip -6 route add fd43::/64 dev r3; ip route add 10.43.0.0/24 dev r4");
    let known = |link: &str| {
        let lines = shell(
            &network.net.gateway,
            &format!("ip -4 neigh show nud all dev {link}; ip -6 neigh show nud all dev {link}"),
        );
        // What the kernel knows by itself, multicast, takes no place.
        lines.lines().filter(|line| !line.contains("NOARP")).count()
    };
    for (guest, link, sources, [gateway4, gateway]) in [
        (&network.one, "br0", ["10.42.42.2", "fd42::2"], ["10.42.42.1", "fd42::1"]),
        (&network.three, "r3", ["10.43.0.3", "fd43::3"], ["10.43.0.1", "fd43::1"]),
        (&network.four, "r4", ["10.43.0.4", "fd43::4"], ["10.43.0.1", "fd43::1"]),
    ] {
        assert_eq!(guest.https(GOOD, "good.test").unwrap(), 200);
        let attacker = Attacker::new(&network, guest, link, sources);
        for how in [
            json!({ "kind": "syn", "v6": true, "sources": 700 }),
            json!({ "kind": "ack", "v6": true, "sources": 700 }),
            json!({ "kind": "udp", "v6": true, "sources": 700, "port": 9 }),
            json!({ "kind": "solicit", "v6": true, "sources": 700, "target": gateway }),
            json!({ "kind": "arp", "v6": false, "sources": 200, "target": gateway4 }),
            json!({ "kind": "syn", "v6": false, "sources": 200 }),
        ] {
            let before = known(link);
            let served = meanwhile(&network, &outgate, &network.two, || attacker.flood(how.clone()));
            assert!(served.failed.is_empty(), "{how}: {served:?}");
            let after = known(link);
            println!("{link} {how}: {before} to {after} neighbours, {}", served.flooded);
            assert!(after <= 2 * (32 + 40) + 8, "{link} {how}: {after} neighbours");
        }
        assert_eq!(guest.https(GOOD, "good.test").unwrap(), 200, "and the guest itself goes on by the address it has");
    }
    assert!(network.net.counted("over 32 addresses in use") > 100);
    let (good, status) = network.status(&outgate);
    assert!(good, "{status}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_with_thousands_of_connections_takes_no_entry_for_them_and_notices_nothing() {
    let network = GuardedNetwork::new();
    // A guest gets a quarter of what the daemon's files are enough for. Not every root may open more.
    let files = rustix::process::Rlimit { current: Some(100_000), maximum: Some(100_000) };
    let raised = rustix::process::setrlimit(rustix::process::Resource::Nofile, files);
    let many: u64 = if raised.is_ok() { 4_096 } else { 2_000 };
    let limits = "[limits]\nnew_connections_per_second = 0\nconnections = 4097\nhandshake_timeout_ms = 300000\n";
    let _outgate = network.start(network.setup("good.test\n").tables(limits));
    let before = settled(&network.net.gateway);
    let to = SocketAddr::from((GOOD, 443));
    let open: Vec<TcpStream> = network
        .three
        .namespace
        .run(|| (0..many).map(|_| TcpStream::connect(to).expect("the gateway takes it")).collect());
    assert_eq!(network.three.https(GOOD, "good.test").unwrap(), 200);
    assert!(open.iter().all(crate::world::client::is_open), "none was ended");
    let more = entries(&network.net.gateway).saturating_sub(before);
    println!("{more} entries for {} connections", open.len());
    assert!(more < 50, "{more} entries for {} connections", open.len());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_dns_connection_that_was_idle_for_longer_than_its_entry_lives_goes_on() {
    let network = GuardedNetwork::new();
    let _outgate = network.start(network.setup("good.test\n"));
    for server in [IpAddr::from(STRANGER), STRANGER6.into()] {
        let server = SocketAddr::new(server, 53);
        let mut stream = network.one.namespace.run(|| TcpStream::connect(server)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let mut ask = || {
            stream.write_all(&framed(&query("good.test", crate::world::dns::A).bytes())).unwrap();
            read_framed(&mut stream).expect("a reply over TCP").assert_is([GOOD]);
        };
        ask();
        // Five seconds, and the daemon's own ten are not over.
        std::thread::sleep(Duration::from_secs(6));
        shell(&network.net.gateway, "cat /proc/net/nf_conntrack >/dev/null");
        ask();
    }
}

/// Opens and closes as quickly as it can, as a user of the host; says how often.
const HOST_USER: &str = "
import os, socket, sys, time
os.setgid(65534)
os.setuid(65534)
kind, family, to, port = sys.argv[1:]
family = getattr(socket, family)
tried, end = 0, time.monotonic() + 30
while tried < 20000 and time.monotonic() < end:
    s = socket.socket(family, socket.SOCK_DGRAM if kind.startswith('udp') else socket.SOCK_STREAM)
    s.setblocking(False)
    if kind == 'reset':
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    if kind == 'udp-from-anywhere':
        s.bind(('127.%d.%d.2' % (1 + tried // 200 % 200, 1 + tried % 200), 0))
    try:
        s.connect((to % (1 + tried // 5000) if '%' in to else to, int(port)))
        if kind.startswith('udp'):
            s.send(b'nonsense')
    except OSError:
        pass
    s.close()
    tried += 1
print(tried)
";

#[test]
#[ignore = "requires root and network namespaces"]
fn no_flood_of_a_host_user_fills_connection_tracking() {
    let network = GuardedNetwork::new();
    let listen =
        "proxy = []\nredirect = [\"127.0.0.1:3130\", \"[::1]:3130\"]\ndns = [\"127.0.0.1:5353\", \"[::1]:5353\"]";
    let tables = format!("[firewall]\nhost_users = [\"nobody\"]\n{LIMITS}");
    let outgate = network.start(network.bare("good.test\n").listen(listen).tables(&tables));
    let _ssh = network.net.listener("0.0.0.0:22");
    for (kind, family, to, port) in [
        ("close", "AF_INET", "13.0.0.%d", "443"),
        ("close", "AF_INET6", "2600:77::%d", "443"),
        ("reset", "AF_INET", "13.0.0.%d", "443"),
        ("reset", "AF_INET6", "2600:77::%d", "443"),
        ("udp", "AF_INET", "13.0.0.%d", "53"),
        ("udp", "AF_INET6", "2600:77::%d", "53"),
        ("udp", "AF_INET6", "::1", "5353"),
        ("udp-from-anywhere", "AF_INET", "127.0.0.1", "5353"),
    ] {
        let before = settled(&network.net.gateway);
        let mut command = Command::new("python3");
        command.args(["-c", HOST_USER, kind, family, to, port]);
        let said = succeed(network.net.gateway.run(|| command.output()).expect("python3 is installed"));
        let tried: u64 = said.trim().parse().expect("how often");
        let more = settled(&network.net.gateway).saturating_sub(before);
        println!("{kind} {family} {port}: {more} entries of {tried}");
        assert!(more < BY_QUERIES && tried > BY_QUERIES, "{kind} {family} {port}: {more} entries of {tried}");
        assert_eq!(connect(&network.net.internet, "11.0.0.1:22").unwrap(), "here\n");
    }
    let (good, status) = network.status(&outgate);
    assert!(good, "{status}");
}

/// For how many more seconds the entries of what this guest asked live.
fn lives(gateway: &Namespace, guest: IpAddr) -> Vec<u64> {
    let table = shell(gateway, "cat /proc/net/nf_conntrack");
    let entries = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let source = |fields: &[&str]| fields.iter().find_map(|field| field.strip_prefix("src=")?.parse::<IpAddr>().ok());
    let of_guest = entries.filter(|fields| source(fields) == Some(guest));
    of_guest.map(|fields| fields.get(4).and_then(|seconds| seconds.parse().ok()).expect("seconds")).collect()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_entry_lives_no_longer_for_a_ruleset_that_was_applied_meanwhile() {
    let network = GuardedNetwork::new();
    let outgate = network.start(network.setup("good.test\n"));
    let config = std::fs::read_to_string(outgate.config()).unwrap();
    let patient = |seconds: u32| config.replace("[resolver]\n", &format!("[resolver]\ntimeout_ms = {seconds}000\n"));
    assert_ne!(patient(1), config);
    for (server, guest) in [(IpAddr::from(STRANGER), "10.42.42.2"), (STRANGER6.into(), "fd42::2")] {
        let server = SocketAddr::new(server, 53);
        let (mut stream, socket) = network.one.namespace.run(|| {
            let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.connect(server).unwrap();
            (TcpStream::connect(server).unwrap(), socket)
        });
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let question = query("good.test", crate::world::dns::A).bytes();
        // The same once more, a longer patience and a shorter one.
        for timeout in [None, None, Some(4), Some(1)] {
            if let Some(timeout) = timeout {
                std::fs::write(outgate.config(), patient(timeout)).unwrap();
            }
            network.apply(&outgate);
            stream.write_all(&framed(&question)).unwrap();
            read_framed(&mut stream).expect("a reply over TCP").assert_is([GOOD]);
            socket.send(&question).unwrap();
            assert!(socket.recv(&mut [0; 512]).unwrap() > 20);
            let lives = lives(&network.net.gateway, guest.parse().unwrap());
            println!("{guest} {timeout:?}: {lives:?}");
            assert!(lives.len() == 2 && lives.iter().all(|seconds| *seconds <= 5), "{lives:?}");
            // With what earlier ones left behind.
            let (good, status) = network.status(&outgate);
            assert!(good, "{status}");
        }
    }
    // Chains of another version's.
    for line in [
        "delete chain inet outgate_timeouts own_lifetimes",
        "add chain inet outgate_timeouts own_lifetimes { type filter hook output priority -180; }",
        "add chain inet outgate_timeouts former",
        "add rule inet outgate_timeouts own_lifetimes jump former",
    ] {
        nft(&network.net.gateway, line);
    }
    assert!(!network.status(&outgate).0);
    network.apply(&outgate);
    let (good, status) = network.status(&outgate);
    assert!(good, "{status}");
    network.firewall(&outgate, "remove");
    let left = shell(&network.net.gateway, "nft list tables");
    assert!(!left.contains("outgate"), "{left}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn small_tables_and_firewalls_that_need_tracked_packets_are_reported_with_the_line_to_write() {
    let net = Vmnet::new();
    let many: String =
        (0..60).map(|n| format!("[[guest]]\nname = \"vm-{n}\"\naddresses = [\"10.42.43.{n}\"]\n")).collect();
    std::fs::create_dir(net.path("lists")).unwrap();
    let lists = format!("[whitelist]\ndir = \"{}\"\n", net.path("lists").display());
    let said = net.apply(&format!("{FIREWALL}{lists}{many}"));
    assert!(said.contains("net.netfilter.nf_conntrack_max = "), "{said}");
    let config = net.path("outgate.toml");
    let mut check = Command::new(env!("CARGO_BIN_EXE_outgate"));
    check.args(["check", "--config"]).arg(config);
    let said = succeed(net.gateway.run(|| check.output()).unwrap());
    assert!(said.contains("warning: the kernel's connection tracking table has"), "{said}");

    let said = net.apply(&format!("{FIREWALL}{lists}"));
    assert!(!said.contains("nf_conntrack_max"), "{said}");
    let _brought = net.transparent();
    nft(
        &net.gateway,
        "table inet filter { chain out { type filter hook output priority 0; policy drop; ct state established accept; \
         oifname lo accept; }; chain in { type filter hook input priority 0; policy drop; ct state established accept; \
         iifname { lo, up0 } accept; iifname br0 ct state new accept; }; }",
    );
    let quickly = || {
        let to = "11.0.0.66:443".parse().unwrap();
        net.one.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))
    };
    assert!(quickly().is_err());
    let (_, status) = net.status();
    let warnings = status["warnings"].to_string();
    for line in
        ["nft insert rule inet filter out oifname br0 accept", "nft insert rule inet filter in iifname br0 accept"]
    {
        assert!(warnings.contains(line), "{warnings}");
        shell(&net.gateway, line);
    }
    assert_eq!(connect(&net.one, "11.0.0.66:443").unwrap(), "here\n");
    let (_, status) = net.status();
    assert!(!status["warnings"].to_string().contains("br0 accept"), "{status}");
}
