//! Metrics of the running proof. Their only label is a word of [`Check`]; until there is a proof there are no series.

use super::Maker;
use crate::proof::Check;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

pub(super) struct Proof {
    ok: IntGaugeVec,
    checked: IntGaugeVec,
    failures: IntCounterVec,
    packets: IntCounter,
}

impl Proof {
    pub(super) fn new(make: &Maker) -> Result<Proof, prometheus::Error> {
        Ok(Proof {
            ok: make.gauges(
                "outgate_enforcement_ok",
                "1 while the last round of the proof found this check as it should be at every guests' interface, and is not older than 120 s; 0 otherwise.",
                &["check"],
            )?,
            checked: make.gauges(
                "outgate_enforcement_checked_timestamp_seconds",
                "When the check was last made, in seconds since 1970; of several interfaces the oldest.",
                &["check"],
            )?,
            failures: make.counters(
                "outgate_enforcement_failures_total",
                "Rounds of the proof in which the check was not as it should be, each interface counted.",
                &["check"],
            )?,
            packets: make.counter(
                "outgate_enforcement_sentinel_packets_total",
                "Packets at the proof's sentinel that none of its checks sent: somebody else's.",
            )?,
        })
    }
}

impl super::Metrics {
    /// Sets whether a check is as it should be at every interface, and when it was made. `None`: nothing tries it.
    pub fn set_enforcement(&self, check: Check, state: Option<(bool, u64)>) {
        let word = [check.as_str()];
        match state {
            Some((ok, at)) => {
                // From the start, so that the first failure is seen to be one.
                self.proof.failures.with_label_values(&word);
                self.proof.ok.with_label_values(&word).set(i64::from(ok));
                self.proof.checked.with_label_values(&word).set(i64::try_from(at).unwrap_or(i64::MAX));
            }
            // An error means that there is no series, which is what is wanted.
            None => {
                let _ = self.proof.ok.remove_label_values(&word);
                let _ = self.proof.checked.remove_label_values(&word);
            }
        }
    }

    /// Counts a round in which a check was not as it should be.
    pub fn enforcement_failed(&self, check: Check) {
        self.proof.failures.with_label_values(&[check.as_str()]).inc();
    }

    /// Counts packets at the sentinel that no check sent.
    pub fn sentinel_packets(&self, count: u64) {
        self.proof.packets.inc_by(count);
    }
}
