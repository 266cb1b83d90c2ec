//! Follows what `outgate-proof-net.service` writes, for metrics, `/readyz` and `outgate status`. A proof that was seen and
//! falls silent is a trouble; one that was never started, or was stopped, is not.

use crate::account::Metrics;
use crate::lock::lock;
use crate::proof::{Check, CheckResult, InterfaceProof, OLD, Proof, Standing, since_boot};
use crate::trouble::{Trouble, TroubleCause};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a round may take. One that ended within this time after the start may have begun before it.
const ROUND: Duration = Duration::from_secs(30);

/// The file, and what was read of it.
#[derive(Clone, Debug)]
pub(super) struct ProofWatch(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    path: PathBuf,
    /// Who must own the file.
    owner: u32,
    /// When this daemon started, as [`since_boot`] has it.
    started: Duration,
    /// Which file was read last: device, inode, time of change.
    stamp: Option<(u64, u64, i64, i64)>,
    /// The last one that could be read.
    proof: Option<Proof>,
    /// Why the present one cannot be read.
    error: Option<String>,
    /// Rounds and foreign packets of each interface that were counted.
    counted: HashMap<String, (u64, u64)>,
}

impl ProofWatch {
    pub(super) fn new(path: PathBuf, owner: u32) -> ProofWatch {
        ProofWatch(Arc::new(Mutex::new(State { path, owner, started: since_boot(), ..State::default() })))
    }

    /// Reads the file if it is another one, and updates the metrics.
    pub(super) fn look(&self, metrics: &Metrics) {
        let mut state = lock(&self.0);
        state.read();
        let State { proof, counted, .. } = &mut *state;
        let running = proof.as_ref().filter(|proof| !proof.is_stopped);
        let interfaces = running.map(|proof| proof.interfaces.as_slice()).unwrap_or_default();
        count(interfaces, counted, metrics);
        let now = since_boot();
        for check in Check::ALL {
            metrics.set_enforcement(check, state_of(check, interfaces, now));
        }
    }

    /// Returns what is wrong.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let state = lock(&self.0);
        let Some(proof) = state.proof.as_ref().filter(|proof| !proof.is_stopped) else {
            let unreadable = |why: &String| {
                let text = format!("{why}: run `systemctl restart outgate-proof-net.service`");
                Trouble::new(TroubleCause::Enforcement, text)
            };
            return state.error.iter().map(unreadable).collect();
        };
        let now = since_boot();
        let wrong = proof.interfaces.iter().filter_map(|interface| match interface.standing(now) {
            good if good.is_good() => None,
            // Nobody answered because this daemon was not there yet; the next round tells.
            Standing::CutOff(_) if Duration::from_millis(interface.at) < state.started + ROUND => None,
            wrong => Some(wrong),
        });
        wrong.filter_map(|one| Some(Trouble::new(TroubleCause::Enforcement, one.text()?))).collect()
    }

    /// Returns what `outgate status` shows; null if there is no proof.
    pub(super) fn shown(&self) -> Value {
        let state = lock(&self.0);
        let Some(proof) = state.proof.as_ref().filter(|proof| !proof.is_stopped) else { return Value::Null };
        let now = since_boot();
        let shown = proof.interfaces.iter().map(|interface| {
            json!({
                "interface": interface.interface, "state": interface.standing(now).as_str(),
                "age_seconds": interface.age(now).as_secs(), "rounds": interface.rounds,
            })
        });
        shown.collect()
    }
}

impl State {
    fn read(&mut self) {
        let stamp = fs::metadata(&self.path).map(|facts| (facts.dev(), facts.ino(), facts.ctime(), facts.ctime_nsec()));
        match stamp {
            Ok(stamp) if self.stamp == Some(stamp) => return,
            Ok(stamp) => self.stamp = Some(stamp),
            Err(error) => {
                self.stamp = None;
                // What was known grows old.
                self.error =
                    (error.kind() != io::ErrorKind::NotFound).then(|| format!("{}: {error}", self.path.display()));
                return;
            }
        }
        match Proof::read(&self.path, self.owner) {
            Ok(proof) => (self.proof, self.error) = (Some(proof), None),
            Err(error) => self.error = Some(error.to_string()),
        }
    }
}

/// Counts rounds that are new.
fn count(interfaces: &[InterfaceProof], counted: &mut HashMap<String, (u64, u64)>, metrics: &Metrics) {
    counted.retain(|name, _| interfaces.iter().any(|interface| interface.interface == *name));
    for interface in interfaces {
        let (rounds, packets) = counted.entry(interface.interface.clone()).or_default();
        if interface.rounds != *rounds {
            let mut failed: Vec<Check> =
                interface.checks.iter().filter(|one| is_wrong(one.result)).map(|one| one.check).collect();
            failed.dedup();
            failed.into_iter().for_each(|check| metrics.enforcement_failed(check));
        }
        metrics.sentinel_packets(interface.other_packets.saturating_sub(*packets));
        (*rounds, *packets) = (interface.rounds, interface.other_packets);
    }
}

/// Returns whether a check is as it should be everywhere, and when it was last made; `None` if nothing tries it.
fn state_of(check: Check, interfaces: &[InterfaceProof], now: Duration) -> Option<(bool, u64)> {
    let tried = interfaces.iter().filter(|interface| interface.not_applicable.is_none());
    let of_check = tried.filter_map(|interface| {
        let mut results = interface.checks.iter().filter(|one| one.check == check).map(|one| one.result).peekable();
        results.peek()?;
        let results: Vec<CheckResult> = results.filter(|result| *result != CheckResult::NotApplicable).collect();
        if results.is_empty() {
            return None;
        }
        let ok =
            results.iter().all(|result| !is_wrong(*result)) && interface.fault.is_none() && interface.age(now) <= OLD;
        Some((ok, interface.at_unix))
    });
    of_check.reduce(|(ok, at), (other, other_at)| (ok && other, at.min(other_at)))
}

const fn is_wrong(result: CheckResult) -> bool {
    matches!(result, CheckResult::Leak | CheckResult::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Checked;

    fn interface(name: &str, rounds: u64, at: u64, results: &[(Check, CheckResult)]) -> InterfaceProof {
        let checks = results.iter().map(|(check, result)| Checked {
            check: *check,
            family: "ipv4".to_owned(),
            url: None,
            result: *result,
            seen: String::new(),
        });
        InterfaceProof {
            interface: name.to_owned(),
            rounds,
            at,
            at_unix: at / 1000,
            checks: checks.collect(),
            ..InterfaceProof::default()
        }
    }

    #[test]
    fn the_worst_interface_and_the_oldest_round_count() {
        let now = Duration::from_secs(1000);
        let good =
            interface("a", 1, 990_000, &[(Check::Ping, CheckResult::Ok), (Check::Url, CheckResult::NotApplicable)]);
        let bad = interface("b", 1, 980_000, &[(Check::Ping, CheckResult::Leak)]);
        let old = interface("c", 1, 800_000, &[(Check::Ping, CheckResult::Ok)]);
        let state = |all: &[InterfaceProof]| state_of(Check::Ping, all, now);
        assert_eq!(state(std::slice::from_ref(&good)), Some((true, 990)));
        assert_eq!(state(&[good.clone(), bad]), Some((false, 980)));
        assert_eq!(state(&[good.clone(), old]), Some((false, 800)), "a dead probe never reads as ok");
        assert_eq!(state_of(Check::Url, &[good], now), None);
    }

    #[test]
    fn rounds_count_once_and_packets_as_they_come() {
        let metrics = Metrics::new().unwrap();
        let mut counted = HashMap::new();
        let mut one = interface("a", 1, 0, &[(Check::Ping, CheckResult::Failed), (Check::Ping, CheckResult::Leak)]);
        one.other_packets = 3;
        count(std::slice::from_ref(&one), &mut counted, &metrics);
        count(std::slice::from_ref(&one), &mut counted, &metrics);
        (one.rounds, one.other_packets) = (2, 5);
        count(&[one], &mut counted, &metrics);
        let text = metrics.render();
        assert!(text.contains("outgate_enforcement_failures_total{check=\"ping\"} 2"), "{text}");
        assert!(text.contains("outgate_enforcement_sentinel_packets_total 5"), "{text}");
    }

    #[test]
    fn a_proof_that_was_stopped_is_no_trouble_and_one_that_fell_silent_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rounds.json");
        let watch = ProofWatch::new(path.clone(), rustix::process::getuid().as_raw());
        let metrics = Metrics::new().unwrap();
        let write = |interfaces: Vec<InterfaceProof>, is_stopped| {
            let text = serde_json::to_string(&Proof::new(interfaces, is_stopped)).unwrap();
            fs::write(path.with_extension("new"), text).unwrap();
            fs::rename(path.with_extension("new"), &path).unwrap();
            watch.look(&metrics);
        };
        watch.look(&metrics);
        assert!(watch.troubles().is_empty() && watch.shown().is_null(), "it was never started");
        let at = u64::try_from(since_boot().as_millis()).unwrap();
        write(vec![interface("br0", 1, at, &[(Check::Ping, CheckResult::Ok)])], false);
        assert!(watch.troubles().is_empty());
        assert_eq!(watch.shown()[0]["state"], "proven");
        assert!(metrics.render().contains("outgate_enforcement_ok{check=\"ping\"} 1"));
        write(vec![interface("br0", 2, at, &[(Check::Ping, CheckResult::Leak)])], false);
        assert!(watch.troubles()[0].text.contains("guests of br0 are NOT guarded (ping ipv4)"));
        assert!(metrics.render().contains("outgate_enforcement_ok{check=\"ping\"} 0"));
        let unanswered = [(Check::DnsListener, CheckResult::Failed)];
        write(vec![interface("br0", 3, at, &unanswered)], false);
        assert!(watch.troubles().is_empty(), "the round may be from before the start");
        lock(&watch.0).started = Duration::ZERO;
        if since_boot() > ROUND {
            assert!(watch.troubles()[0].text.contains("do not get through to outgate (dns_listener ipv4)"));
        }
        write(vec![interface("br0", 4, 0, &[(Check::Ping, CheckResult::Ok)])], false);
        if since_boot() > OLD {
            assert!(watch.troubles()[0].text.contains("nothing has proven"), "{:?}", watch.troubles());
            fs::remove_file(&path).unwrap();
            watch.look(&metrics);
            assert!(!watch.troubles().is_empty(), "it is not over because the file is gone");
        }
        write(Vec::new(), true);
        assert!(watch.troubles().is_empty() && !metrics.render().contains("outgate_enforcement_ok{"));
        fs::write(&path, "{").unwrap();
        watch.look(&metrics);
        assert!(watch.troubles()[0].text.contains("systemctl restart outgate-proof-net.service"));
    }
}
