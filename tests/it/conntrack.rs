//! A guest against the kernel's connection tracking table, which is the whole machine's: whatever it
//! sends, few entries are its own, and neighbour, the host's own services and the admin listener are
//! served meanwhile. Judged by the kernel's count in the gateway and by what the others get.

use crate::world::GOOD;
use crate::world::client::Guest;
use crate::world::namespace::Namespace;
use crate::world::outgate::Outgate;
use crate::world::vmnet::{connect, nft, shell, succeed};
use crate::world::whole::Whole;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const FLOOD: &str = include_str!("world/flood.py");

/// Entries that a guest may have by port 53 at once: 1,000 datagrams a second for 3 s, 400 packets of TCP for
/// some 5 s, and what the kernel has not swept yet.
const BY_QUERIES: u64 = 8_000;
/// Entries of packets that might have been answers to the outside: 400 a second for a second, twice that at
/// once, and what the kernel has not swept yet.
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
    fn new(whole: &'w Whole, guest: &'w Guest, link: &str, sources: [&'static str; 2]) -> Attacker<'w> {
        // Its own stack says nothing to what comes back.
        nft(
            &guest.namespace,
            "table inet mute { chain out { type filter hook output priority 0; tcp flags & rst == rst drop; meta l4proto icmp drop; }; }",
        );
        let found = shell(&whole.net.gateway, &format!("ip -o link show {link} | sed 's/.*ether //; s/ .*//'"));
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
fn meanwhile(whole: &Whole, outgate: &Outgate, neighbour: &Guest, flood: impl FnOnce() -> Value + Send) -> Served {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| {
            let said = flood();
            over.store(true, Ordering::Release);
            said
        });
        let before = settled(&whole.net.gateway);
        let mut served = Served::default();
        while !over.load(Ordering::Acquire) || served.fetches == 0 {
            match neighbour.https(GOOD, "good.test") {
                Ok(200) => served.fetches += 1,
                other => served.failed.push(format!("the neighbour: {other:?}")),
            }
            let reply = neighbour.ask_at([8, 8, 8, 8], "good.test", crate::world::dns::A);
            if reply.addresses != [std::net::IpAddr::from(GOOD)] {
                served.failed.push(format!("the neighbour's DNS: {:?}", reply.addresses));
            }
            match connect(&whole.net.internet, "11.0.0.1:22").as_deref() {
                Ok("here\n") => {}
                other => served.failed.push(format!("the host's own listener: {other:?}")),
            }
            if outgate.admin("/healthz").is_none_or(|response| response.status != 200) {
                served.failed.push("the admin listener".to_owned());
            }
            served.entries = served.entries.max(entries(&whole.net.gateway).saturating_sub(before));
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
fn no_flood_of_an_undeclared_guest_on_the_neighbours_bridge_fills_connection_tracking() {
    let Some(whole) = Whole::new() else { return };
    let outgate = whole.start(whole.setup("good.test\n"));
    let _ssh = whole.net.listener("0.0.0.0:22");
    let attacker = Attacker::new(&whole, &whole.one, "br0", ["10.42.42.2", "fd42::2"]);
    // Sources that it invents, of its prefix: 70,000 of one port.
    let invented = [("syn", 443), ("udp", 53), ("syn", 53)]
        .map(|(kind, port)| json!({ "kind": kind, "v6": true, "port": port, "sources": 70_000 }));
    for how in floods().into_iter().chain(invented) {
        let served = meanwhile(&whole, &outgate, &whole.two, || attacker.flood(how.clone()));
        assert_served(&served, &how, 0);
    }
    let (good, status) = whole.status(&outgate);
    assert!(good, "{status}");
}

#[test]
fn no_flood_of_a_declared_guest_fills_connection_tracking_where_answers_to_the_outside_are_tracked_too() {
    let Some(whole) = Whole::new() else { return };
    let listen = "proxy = [\"10.43.0.1:3128\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\n\
                  dns = [\"10.42.42.1:53\", \"[fd42::1]:53\"]";
    let tables = format!("{FIREWALL}allow_inbound_replies = true\nallow_dhcp = true\n{PINNED}");
    let outgate = whole.start(whole.bare("good.test\n").listen(listen).tables(&tables));
    let _ssh = whole.net.listener("0.0.0.0:22");
    for (guest, link, sources) in
        [(&whole.one, "br0", ["10.42.42.2", "fd42::2"]), (&whole.three, "r3", ["10.43.0.3", "fd43::3"])]
    {
        let attacker = Attacker::new(&whole, guest, link, sources);
        let proxy = ["md5", "revive", "ack", "fin"]
            .map(|kind| json!({ "kind": kind, "v6": false, "port": 3128, "target": "10.43.0.1" }));
        let dhcp = json!({ "kind": "udp", "v6": true, "port": 547, "sources": 70_000 });
        for how in floods().into_iter().chain(proxy).chain([dhcp]) {
            let served = meanwhile(&whole, &outgate, &whole.two, || attacker.flood(how.clone()));
            assert_served(&served, &how, BY_STRAYS);
        }
    }
}

#[test]
fn the_floods_are_such_as_fill_it_where_the_ruleset_does_not_keep_them_out() {
    let Some(whole) = Whole::new() else { return };
    let _outgate = whole.start(whole.setup("good.test\n"));
    let attacker = Attacker::new(&whole, &whole.one, "br0", ["10.42.42.2", "fd42::2"]);
    for chain in ["untracked", "answers", "lifetimes", "own_lifetimes"] {
        // One that is not there has nothing in it.
        shell(&whole.net.gateway, &format!("nft flush chain inet outgate {chain} || true"));
    }
    for kind in ["md5", "paws", "fin", "rst", "revive"] {
        let before = settled(&whole.net.gateway);
        let said = attacker.flood(json!({ "kind": kind, "v6": false }));
        let more = entries(&whole.net.gateway) - before;
        println!("{kind}: {more} entries; {said}");
        assert!(more > said["tried"].as_u64().unwrap() / 2 && more > 200, "{kind}: {more} entries of {said}");
    }
}
