//! `outgate verify` in a network that leaks without the firewall: what it says of a healthy network and of one with a
//! hole, and that nothing of a run is left behind, however it ended.

use crate::world::Raise;
use crate::world::eventually;
use crate::world::firewall_watcher::Watcher;
use crate::world::guarded_network::GuardedNetwork;
use crate::world::outgate::Outgate;
use crate::world::ran::Ran;
use crate::world::vmnet::{nft, shell};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one interface may take.
const PER_INTERFACE: Duration = Duration::from_secs(15);

fn verify(net: &GuardedNetwork, outgate: &Outgate, more: &[&str]) -> Ran {
    let config = outgate.config();
    let mut command = outgate.command(&["verify", "--config", config.to_str().unwrap()]);
    command.args(more);
    Ran::of(net.net.gateway.run(|| command.output()).expect("outgate runs"))
}

/// The answer in JSON, and the exit code.
#[track_caller]
fn verified(net: &GuardedNetwork, outgate: &Outgate, interface: &str) -> (i32, Value) {
    let ran = verify(net, outgate, &["--json", "--interface", interface]);
    let answer = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}{}", ran.out, ran.err));
    (ran.code, answer)
}

/// The checks with this result, as `check family`.
fn with(answer: &Value, result: &str) -> Vec<String> {
    let rows = answer["interfaces"][0]["checks"].as_array().into_iter().flatten();
    let rows = rows.filter(|row| row["result"] == result);
    rows.map(|row| format!("{} {}", row["check"].as_str().unwrap(), row["family"].as_str().unwrap())).collect()
}

/// What a run may leave behind: interfaces, routes, neighbours, routing rules, elements of sets that do not expire,
/// registered guests.
fn traces(net: &GuardedNetwork, outgate: &Outgate) -> String {
    let kernel = "ip -o link show | grep -o 'ogv[^@:]*'; ip route show proto 247; ip -6 route show proto 247; \
                  ip neigh show | grep -E '^(198.18|2001:2:)' | grep -v FAILED; ip rule show | grep ogv; \
                  ip -6 rule show | grep ogv; nft list ruleset | grep -v expires | grep ogv; true";
    let mut traces = shell(&net.net.gateway, kernel);
    let guests = std::fs::read_to_string(outgate.path("control.sock.guests/guests.json")).unwrap_or_default();
    if guests.contains("@verify") {
        traces.push_str(&guests);
    }
    traces
}

/// The causes of trouble that the daemon reports.
fn troubles(net: &GuardedNetwork, outgate: &Outgate) -> Vec<String> {
    let config = outgate.config();
    let mut command = outgate.command(&["status", "--json", "--config", config.to_str().unwrap()]);
    let status = Ran::of(net.net.gateway.run(|| command.output()).expect("outgate runs")).json();
    let troubles = status["troubles"].as_array().unwrap();
    troubles.iter().map(|trouble| trouble["cause"].as_str().unwrap().to_owned()).collect()
}

/// Checks that a result names exactly these checks.
#[track_caller]
fn assert_found(answer: &Value, result: &str, wanted: &[&str]) {
    assert_eq!(with(answer, result), wanted, "{answer:#}");
}

fn state(answer: &Value) -> &str {
    answer["interfaces"][0]["state"].as_str().unwrap()
}

fn summary(answer: &Value) -> &str {
    answer["interfaces"][0]["summary"].as_str().unwrap()
}

/// The DNS and the transparent listener, over both families.
const LISTENERS: [&str; 4] =
    ["dns_listener ipv4", "dns_listener ipv6", "transparent_listener ipv4", "transparent_listener ipv6"];

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_of_a_healthy_network_are_guarded_and_nothing_is_left_behind() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    // Others' rules that accept before ours open nothing.
    let accepting = "table inet other { chain early { type filter hook prerouting priority -400; accept; }; \
                     chain f { type filter hook forward priority -100; iifname { br0, r3 } accept; }; \
                     chain i { type filter hook input priority -100; iifname { br0, r3 } accept; }; }";
    nft(&net.net.gateway, accepting);
    let begun = Instant::now();
    let ran = verify(&net, &outgate, &["--url", "http://good.test/hi"]);
    let took = begun.elapsed();
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.out);
    assert!(took < PER_INTERFACE * 2, "{took:?}");
    assert!(ran.out.contains("guests of br0 are guarded\n"), "{}", ran.out);
    assert!(ran.out.ends_with("guests of r* are guarded\n"), "{}", ran.out);
    assert!(ran.out.contains("url http://good.test/hi") && !ran.out.contains("not applicable"), "{}", ran.out);
    assert_eq!(traces(&net, &outgate), "");
    // Nothing of it is logged or counted.
    assert_eq!(outgate.log(), Vec::<Value>::new());
    assert_eq!(outgate.counted("denied", "not_whitelisted"), 0.0);
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_url_that_guests_do_not_reach_is_told_with_the_command_that_says_why() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    let ran = verify(&net, &outgate, &["--interface", "br0", "--url", "http://evil.test/"]);
    assert_eq!(ran.code, 1, "{}", ran.out);
    let last = ran.out.lines().last().unwrap();
    assert!(last.starts_with("guests of br0 are guarded, and do not reach what they should"), "{last}");
    let explained = as_printed(&net, last);
    assert!(explained.contains("whitelist add"), "{explained}");
    net.assert_no_leaks();
}

/// Runs the first command that a sentence has in backquotes, as it is printed.
#[track_caller]
fn as_printed(net: &GuardedNetwork, sentence: &str) -> String {
    let line = sentence.split('`').nth(1).unwrap_or_else(|| panic!("{sentence}"));
    let folder = Path::new(env!("CARGO_BIN_EXE_outgate")).parent().unwrap();
    let run = || {
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        Command::new("sh").args(["-c", line]).env("PATH", path).output()
    };
    let ran = Ran::of(net.net.gateway.run(run).expect("a shell"));
    format!("{}{}", ran.out, ran.err)
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_flushed_ruleset_is_told_by_what_guests_then_reach_and_the_remedy_closes_it() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    nft(&net.net.gateway, "flush ruleset");
    // The routing rules still forward nothing, so what is open is this machine.
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (1, "open"), "{answer:#}");
    let host = ["host_tcp ipv4", "host_tcp ipv6", "host_udp ipv4", "host_udp ipv6"];
    let spoofed = ["spoofed_source ipv4", "spoofed_source ipv6"];
    let leaks: Vec<String> =
        with(&answer, "leak").into_iter().filter(|leak| !spoofed.contains(&leak.as_str())).collect();
    assert_eq!(leaks, host, "{answer:#}");
    assert_found(&answer, "failed", &LISTENERS);
    assert_eq!(net.net.leaked(), 0);
    as_printed(&net, summary(&answer));
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (0, "guarded"), "{answer:#}");
    assert_eq!(traces(&net, &outgate), "");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn without_rules_of_one_family_exactly_its_ways_out_are_named() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    nft(&net.net.gateway, "flush ruleset");
    shell(&net.net.gateway, "ip -6 rule del pref 44 iif br0 prohibit");
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (1, "open"), "{answer:#}");
    let leaks = with(&answer, "leak");
    for check in [
        "tcp_80",
        "tcp_443",
        "tcp_22",
        "udp_443",
        "udp_123",
        "udp_9999",
        "dns_over_udp",
        "dns_over_tcp",
        "dns_over_tls",
        "ping",
        "other_protocols",
        "ttl_2",
    ] {
        assert!(leaks.contains(&format!("{check} ipv6")), "{check}: {answer:#}");
        assert!(!leaks.contains(&format!("{check} ipv4")), "{check}: {answer:#}");
    }
    assert!(summary(&answer).contains("tcp_443 ipv6"), "{answer:#}");
    assert_eq!(traces(&net, &outgate), "");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_open_pattern_and_an_open_link_are_told() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    nft(&net.net.gateway, "flush ruleset");
    // What is missing at the others of its kind is missing at a stand-in.
    shell(
        &net.net.gateway,
        "for i in br0 r3; do ip rule del pref 44 iif $i prohibit; ip -6 rule del pref 44 iif $i prohibit; done; \
         ip link set p1 type bridge_slave isolated off",
    );
    let (_, answer) = verified(&net, &outgate, "r3");
    let leaks = with(&answer, "leak");
    assert_eq!(answer["interfaces"][0]["interface"], "r*");
    for leak in ["tcp_443 ipv4", "tcp_443 ipv6", "udp_9999 ipv4", "other_guest_udp ipv4", "host_tcp ipv4"] {
        assert!(leaks.contains(&leak.to_owned()), "{leak}: {answer:#}");
    }
    let (_, answer) = verified(&net, &outgate, "br0");
    let leaks = with(&answer, "leak");
    for leak in ["other_guest_tcp ipv4", "other_guest_udp ipv6", "other_guest_ping ipv4", "ping ipv4", "ttl_2 ipv6"] {
        assert!(leaks.contains(&leak.to_owned()), "{leak}: {answer:#}");
    }
    assert_eq!(traces(&net, &outgate), "");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn without_the_rule_for_dns_or_without_the_daemon_guests_are_cut_off() {
    let net = GuardedNetwork::new();
    let mut outgate = net.start(net.setup("good.test\n"));
    nft(&net.net.gateway, "delete chain inet outgate queries");
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (1, "cut_off"), "{answer:#}");
    assert_found(&answer, "leak", &[]);
    assert_found(&answer, "failed", &LISTENERS[..2]);
    as_printed(&net, summary(&answer));
    assert_eq!(verified(&net, &outgate, "br0").0, 0);
    outgate.stop();
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (1, "cut_off"), "{answer:#}");
    assert_found(&answer, "leak", &[]);
    assert_found(&answer, "failed", &LISTENERS);
    assert!(summary(&answer).contains("`systemctl start outgate`"), "{answer:#}");
    assert!(answer["notes"].to_string().contains("not registered with the daemon"), "{answer:#}");
    assert_eq!(traces(&net, &outgate), "");
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn declared_guests_and_a_proxy_alone_are_also_verified_and_the_watcher_may_run() {
    let net = GuardedNetwork::new();
    let tables = "[[guest]]\nname = \"one\"\naddresses = [\"10.42.42.2\", \"fd42::2\"]\ninterface = \"p1\"\n\
                  [firewall]\nguest_interfaces = [\"br0\", \"r3\", \"r4\", \"gone\", \"og-*\"]\n";
    let listen = "proxy = [\"10.42.42.1:3128\"]";
    let outgate = net.start(net.bare("good.test\n").listen(listen).tables(tables));
    std::fs::copy(outgate.config(), net.net.path("outgate.toml")).unwrap();
    let _watcher = Watcher::start(&net.net);
    let ended = AtomicBool::new(false);
    let (ran, causes) = std::thread::scope(|scope| {
        let _raise = Raise(&ended);
        let causes = scope.spawn(|| {
            let mut causes = BTreeSet::new();
            while !ended.load(Ordering::Relaxed) {
                causes.extend(troubles(&net, &outgate));
                std::thread::sleep(Duration::from_millis(200));
            }
            causes
        });
        let ran = verify(&net, &outgate, &["--json"]);
        ended.store(true, Ordering::Relaxed);
        (ran, causes.join().unwrap())
    });
    assert!(causes.iter().all(|cause| cause == "interface_missing"), "a run is no trouble: {causes:?}");
    let answer = ran.json();
    assert_eq!(ran.code, 0, "{answer:#}");
    let states: Vec<&str> = (0..5).map(|n| answer["interfaces"][n]["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["guarded", "not_applicable", "not_applicable", "not_applicable", "guarded"], "{answer:#}");
    assert_found(&answer, "not_applicable", &LISTENERS);
    let rows = answer["interfaces"][0]["checks"].as_array().unwrap();
    let proxy = rows.iter().find(|row| row["check"] == "proxy_listener").unwrap();
    // A registered guest, and no unknown one, which would be refused for that.
    assert_eq!(proxy["seen"], "403 not_whitelisted");
    // A single interface alone is not "guarded".
    assert_eq!(verified(&net, &outgate, "r3").0, 1);
    eventually("the watcher keeps nothing of it either", || traces(&net, &outgate).is_empty());
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn what_is_not_there_is_not_applicable_and_addresses_give_way_to_routes() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    shell(
        &net.net.gateway,
        "echo 1 > /proc/sys/net/ipv6/conf/br0/disable_ipv6; ip route add 198.18.0.0/15 dev up0; ip route add \
         192.0.2.0/25 dev up0",
    );
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (0, "guarded"), "{answer:#}");
    for row in answer["interfaces"][0]["checks"].as_array().unwrap() {
        let wanted = if row["family"] == "ipv6" { ("not_applicable", "br0 has no IPv6") } else { ("ok", "") };
        let reason = row["reason"].as_str().unwrap_or_default();
        assert_eq!((row["result"].as_str().unwrap(), reason), wanted, "{row:#}");
    }
    shell(
        &net.net.gateway,
        "ip route add 192.0.2.128/25 dev up0; ip route add 198.51.100.0/24 dev up0; ip route add \
         203.0.113.0/24 dev up0",
    );
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!(code, 1, "nothing was tried: {answer:#}");
    assert!(answer.to_string().contains("name a network that is free with --range"), "{answer:#}");
    let ran = verify(&net, &outgate, &["--interface", "br0", "--range", "10.99.0.0/24"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(traces(&net, &outgate), "");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn what_cannot_be_verified_is_an_error_that_says_why() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    let ran = verify(&net, &outgate, &["--interface", "br7"]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.err);
    let why = "outgate: br7 is not a guests' interface; [firewall].guest_interfaces has br0, r*\n";
    assert_eq!(ran.err, why);
    assert_eq!(verify(&net, &outgate, &["--url", "udp://a.test:1"]).code, 2);
    let bare = net.bare("").write();
    let ran = verify(&net, &bare, &[]);
    assert!(ran.code == 1 && ran.err.contains("set [firewall].guest_interfaces"), "{}", ran.err);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    let ran = Ran::of(command.arg("verify").uid(65534).gid(65534).output().unwrap());
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "outgate: only root may make the namespaces of guests; run it with sudo\n")
    );
    // As libvirt's bridges: a new port forwards after 4 s.
    shell(&net.net.gateway, "ip link set br0 type bridge stp_state 1 forward_delay 200");
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (0, "guarded"), "{answer:#}");
    // A new port of such a bridge listens for half a minute first.
    shell(&net.net.gateway, "ip link set br0 type bridge stp_state 1 forward_delay 1500");
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (1, "not_checked"), "{answer:#}");
    assert!(summary(&answer).contains("forward_delay"), "{answer:#}");
    assert_eq!(traces(&net, &outgate), "");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_interrupted_run_removes_everything_and_the_next_one_what_a_killed_one_left() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    // A bridge takes its MTU and MAC from its ports, if nobody sets them.
    shell(&net.net.gateway, "ip link set p1 mtu 9000; ip link set p2 mtu 9000");
    let bridge = || shell(&net.net.gateway, "ip -o link show br0 | grep -o 'mtu [0-9]*\\|ether [^ ]*'");
    let before = bridge();
    assert!(before.contains("mtu 9000"), "{before}");
    let start = || {
        let config = outgate.config();
        let mut command = outgate.command(&["verify", "--config", config.to_str().unwrap()]);
        command.stdout(Stdio::null());
        let child = net.net.gateway.run(|| command.spawn()).expect("outgate runs");
        let both = || {
            let traces = traces(&net, &outgate);
            traces.contains("ogv-1") && traces.contains("198.18.0.3 dev br0") && traces.contains("@verify-1")
        };
        eventually("it has made its guests", both);
        assert_eq!(bridge(), before, "what the guests of this bridge see is as it was");
        child
    };
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = start();
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(traces(&net, &outgate), "");
    }
    let mut child = start();
    child.kill().unwrap();
    child.wait().unwrap();
    let left = traces(&net, &outgate);
    assert!(left.contains("198.18.0.3 dev br0") && left.contains("@verify-1"), "{left}");
    eventually("its interfaces end with it", || !shell(&net.net.gateway, "ip -o link show").contains("ogv"));
    let (code, answer) = verified(&net, &outgate, "r*");
    assert_eq!((code, state(&answer)), (0, "guarded"), "{answer:#}");
    assert_eq!(traces(&net, &outgate), "");
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn what_others_send_to_the_sentinel_is_counted_apart_and_alarms_nobody() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    let ended = AtomicBool::new(false);
    let (code, answer) = std::thread::scope(|scope| {
        let _raise = Raise(&ended);
        scope.spawn(|| {
            let socket = net.net.gateway.run(|| UdpSocket::bind("0.0.0.0:700")).unwrap();
            while !ended.load(Ordering::Relaxed) {
                // There is no route to it before the run and after it.
                let _ = socket.send_to(b"from this machine itself", "198.18.0.2:9999");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let verified = verified(&net, &outgate, "br0");
        ended.store(true, Ordering::Relaxed);
        verified
    });
    assert_eq!((code, state(&answer)), (0, "guarded"), "{answer:#}");
    assert!(answer["interfaces"][0]["other_packets"].as_u64().unwrap() > 20, "{answer:#}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_mode_that_allows_every_name_is_no_leak_and_asks_no_server() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("").top("mode = \"all\""));
    let (code, answer) = verified(&net, &outgate, "br0");
    assert_eq!((code, state(&answer)), (0, "guarded"), "{answer:#}");
    assert_found(&answer, "not_applicable", &[]);
    let asked: Vec<String> = net.dns.log().iter().map(|query| format!("{query:?}")).collect();
    assert!(!asked.iter().any(|query| query.contains("verify")), "{asked:?}");
    net.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn two_runs_at_a_time_do_not_meet_and_an_interface_of_that_name_is_left_alone() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n"));
    shell(&net.net.gateway, "ip link add rogv1 type veth peer name other0");
    net.apply(&outgate);
    let rules = || shell(&net.net.gateway, "ip rule show | grep -c 'iif rogv1 prohibit'");
    assert_eq!(rules(), "1\n");
    let (code, answer) = verified(&net, &outgate, "r*");
    assert_eq!((code, state(&answer)), (1, "not_checked"), "{answer:#}");
    assert_eq!((rules().as_str(), shell(&net.net.gateway, "ip -o link show rogv1 | wc -l").as_str()), ("1\n", "1\n"));
    let both = std::thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| verify(&net, &outgate, &["--interface", "br0"])));
        runs.map(|run| run.join().unwrap())
    });
    let mut codes = both.each_ref().map(|ran| ran.code);
    codes.sort_unstable();
    assert_eq!(codes, [0, 1]);
    assert!(both.iter().any(|ran| ran.err.contains("another `outgate verify` is running")));
}
