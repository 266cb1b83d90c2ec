//! `outgate proof` in a network that leaks without the firewall: what it proves of a healthy network, what it says of
//! one with a hole and for how long, and that guests' counters and the log have nothing of it.

use crate::world::guarded_network::GuardedNetwork;
use crate::world::outgate::Outgate;
use crate::world::ran::Ran;
use crate::world::vmnet::{nft, shell};
use crate::world::{Raise, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

const TABLES: &str = "[proof]\nmust_pass = [\"http://good.test/hi\"]\n";
/// How long a test waits for what must show. A change shows within 50 s; the machine may be busy.
const SOON: Duration = Duration::from_secs(120);

/// The proof of one daemon, with this test in the place of the service manager.
struct Proof<'n> {
    net: &'n GuardedNetwork,
    outgate: &'n Outgate,
    folder: PathBuf,
    root: Child,
}

impl<'n> Proof<'n> {
    fn start(net: &'n GuardedNetwork, outgate: &'n Outgate) -> Proof<'n> {
        let folder = outgate::proof::folder(Some(&outgate.path("control.sock")));
        let mut command = outgate.command(&["proof", "net", "--config", outgate.config().to_str().unwrap()]);

        let root = net.net.gateway.run(|| command.spawn()).unwrap();
        Proof { net, outgate, folder, root }
    }

    /// Runs the probe of an interface, again and again, as the unit does: without any capability.
    fn probe<'s>(&'s self, scope: &'s Scope<'s, '_>, interface: &'s str, stop: &'s AtomicBool) {
        let instance = interface.replace('*', "\\x2a");
        let link = self.folder.join("net").join(instance);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", link.display()));
                command.args(["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
                command.args([env!("CARGO_BIN_EXE_outgate"), "proof", "run", interface, "--folder"]).arg(&self.folder);
                let mut child = command.spawn().unwrap();
                while child.try_wait().unwrap().is_none() {
                    std::thread::sleep(Duration::from_millis(50));
                    if stop.load(Ordering::Relaxed) {
                        let _ = child.kill();
                    }
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
    }

    /// What `outgate proof` answers.
    fn shown(&self) -> (i32, Value) {
        let mut command =
            self.outgate.command(&["proof", "--json", "--config", self.outgate.config().to_str().unwrap()]);
        let ran = Ran::of(self.net.net.gateway.run(|| command.output()).unwrap());
        (ran.code, serde_json::from_str(&ran.out).unwrap_or(Value::Null))
    }

    /// Waits until it is as wanted.
    #[track_caller]
    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let give_up = Instant::now() + SOON;
        loop {
            let (_, shown) = self.shown();
            if wanted(&shown) {
                return shown;
            }
            assert!(Instant::now() < give_up, "{what}: {shown:#}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn readyz(&self) -> (u16, String) {
        self.outgate.admin("/readyz").map_or((0, String::new()), |answer| (answer.status, answer.text()))
    }

    /// What it has put on the machine.
    fn traces(&self) -> String {
        let kernel = "ip -o link show | grep -o 'ogp[^@:]*'; ip route show proto 248; ip -6 route show proto 248; \
                      ip rule show | grep ogp; nft list ruleset | grep -v expires | grep ogp; true";
        shell(&self.net.net.gateway, kernel)
    }

    fn stop(&mut self) {
        kill_process(Pid::from_child(&self.root), Signal::TERM).unwrap();
        assert!(self.root.wait().unwrap().success());
    }
}

impl Drop for Proof<'_> {
    fn drop(&mut self) {
        let _ = self.root.kill();
        let _ = self.root.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn state<'a>(shown: &'a Value, interface: &str) -> &'a str {
    let all = shown["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|one| one["interface"] == interface).and_then(|one| one["state"].as_str()).unwrap_or_default()
}

fn are_proven(shown: &Value) -> bool {
    shown["proven"] == true && ["br0", "r*"].iter().all(|interface| state(shown, interface) == "proven")
}

/// The checks of an interface with this result.
fn with(shown: &Value, interface: &str, result: &str) -> Vec<String> {
    let all = shown["interfaces"].as_array().unwrap();
    let one = all.iter().find(|one| one["interface"] == interface).unwrap();
    let rows = one["checks"].as_array().unwrap().iter().filter(|row| row["result"] == result);
    rows.map(|row| format!("{} {}", row["check"].as_str().unwrap(), row["family"].as_str().unwrap())).collect()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_are_proven_to_be_guarded_and_a_hole_shows_until_it_is_closed() {
    let net = GuardedNetwork::new();
    let outgate = net.start(net.setup("good.test\n").tables(TABLES));
    let before = outgate.metrics();
    let proof = &mut Proof::start(&net, &outgate);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (seen, stop) = (&*proof, &stop);
        let _raise = Raise(stop);
        eventually("the namespaces are there", || seen.folder.join("net/br0").exists());
        seen.probe(scope, "br0", stop);
        seen.probe(scope, "r*", stop);
        let shown = seen.until("it is proven", are_proven);
        assert_eq!(seen.shown().0, 0);
        assert_eq!(with(&shown, "br0", "not_applicable"), [""; 0], "{shown:#}");
        assert!(with(&shown, "br0", "ok").contains(&"other_protocols ipv6".to_owned()), "{shown:#}");
        eventually("metrics have it", || outgate.metric("enforcement_ok", &[("check", "tcp_443")]) == 1.0);
        assert!(
            outgate
                .metrics()
                .iter()
                .filter(|(name, _)| name.starts_with("outgate_enforcement_ok"))
                .all(|(_, ok)| *ok == 1.0)
        );
        assert_eq!(seen.readyz().0, 200, "{}", seen.readyz().1);

        // Nothing of it is counted, logged or listed.
        let after = outgate.metrics();
        for name in [
            "outgate_connections_total",
            "outgate_bytes_total",
            "outgate_guest_connections_total",
            "outgate_guest_bytes_total",
        ] {
            let of = |all: &std::collections::BTreeMap<String, f64>| -> Vec<(String, f64)> {
                all.iter()
                    .filter(|(series, _)| series.starts_with(name))
                    .map(|(series, value)| (series.clone(), *value))
                    .collect()
            };
            assert_eq!(of(&before), of(&after));
        }
        assert_eq!(outgate.log(), Vec::<Value>::new());
        for command in [["guest", "list"], ["denied", "--json"]] {
            let mut command = outgate.command(&command);
            command.args(["--config", outgate.config().to_str().unwrap()]);
            let ran = Ran::of(net.net.gateway.run(|| command.output()).unwrap());
            assert!(!ran.out.contains("proof"), "{}", ran.out);
        }

        // What somebody else sends to the sentinel, where this machine forwards it, is not answered, and alarms nobody.
        let said = shell(
            &net.net.internet,
            "ip route add 198.18.0.0/15 via 11.0.0.1; timeout 1 bash -c 'echo > /dev/tcp/198.18.0.2/80' || echo silent; \
             ip route del 198.18.0.0/15",
        );
        assert_eq!(said.trim(), "silent");
        let foreign = |shown: &Value| shown["interfaces"][0]["other_packets"].as_u64().unwrap_or_default();
        assert!(are_proven(&seen.until("it is counted apart", |shown| foreign(shown) > 0)));

        // What is open shows, in each place, and the remedy closes it.
        nft(&net.net.gateway, "flush ruleset");
        shell(&net.net.gateway, "ip -6 rule del pref 44 iif br0 prohibit");
        let begun = Instant::now();
        let shown = seen.until("the hole is seen", |shown| state(shown, "br0") == "open");
        println!("a hole is seen after {:?}", begun.elapsed());
        let leaks = with(&shown, "br0", "leak");
        for leak in ["tcp_443 ipv6", "udp_9999 ipv6", "ping ipv6", "host_tcp ipv4"] {
            assert!(leaks.contains(&leak.to_owned()), "{leak}: {shown:#}");
        }
        assert!(!leaks.contains(&"tcp_443 ipv4".to_owned()), "{shown:#}");
        eventually("the metric says so", || outgate.metric("enforcement_ok", &[("check", "tcp_443")]) == 0.0);
        assert!(outgate.metric("enforcement_failures_total", &[("check", "tcp_443")]) >= 1.0);
        eventually("and /readyz", || {
            seen.readyz().0 == 503 && seen.readyz().1.contains("guests of br0 are NOT guarded (")
        });
        net.apply(&outgate);
        seen.until("it is closed", are_proven);

        // What is deleted by hand is made again.
        let rounds = |shown: &Value| shown["interfaces"][0]["rounds"].as_u64().unwrap_or_default();
        let (_, before) = seen.shown();
        shell(&net.net.gateway, "ip link del ogp0a");
        let more = rounds(&before) + 1;
        seen.until("it goes on", |shown| rounds(shown) > more && are_proven(shown));
    });
    proof.stop();
    assert_eq!(proof.traces(), "");
    let (code, shown) = proof.shown();
    assert_eq!((code, &shown["is_stopped"]), (1, &Value::Bool(true)), "what is stopped proves nothing");
    eventually("what is stopped is no trouble, and never reads as ok", || {
        proof.readyz().0 == 200 && !outgate.metrics().keys().any(|name| name.starts_with("outgate_enforcement_ok"))
    });
}
