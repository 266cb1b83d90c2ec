//! Collects everything that is wrong, from all its sources: for `/readyz`, the status page, `outgate status`,
//! the service manager, the log and the metrics. What only root can see comes from `outgate-host.service`.

use super::firewall_watch::FirewallWatch;
use super::proof_watch::ProofWatch;
use super::reload::Reloader;
use crate::account;
use crate::control::host::{HostReports, SILENCE};
use crate::lock::lock;
use crate::services::Services;
use crate::system;
use crate::trouble::{HostReport, Trouble, TroubleCause};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time between two checks.
const LOOK: Duration = Duration::from_secs(2);
/// How long no DNS server may answer guests' names before it is a trouble, although a server answers other
/// queries. This is longer than a server is passed over after a single failure, and one name that nobody
/// answers for causes such a failure.
const RESOLVERS: Duration = Duration::from_secs(20);
/// How long lost log lines are reported.
const LOST: Duration = Duration::from_secs(60);
/// Above this share, in percent, connection tracking counts as nearly full.
const TRACKED: i64 = 90;

/// What is known of the certificate in use.
#[derive(Debug)]
pub(super) struct Certificate {
    /// The last second in which it is valid, since 1970.
    expires: AtomicI64,
    /// Whether the files have changed and are not usable.
    unusable: AtomicBool,
}

impl Certificate {
    pub(super) fn new(expires: i64) -> Arc<Certificate> {
        Arc::new(Certificate { expires: AtomicI64::new(expires), unusable: AtomicBool::new(false) })
    }

    /// Records that the files were read again: until when the certificate is valid, `None` if they are not usable.
    pub(super) fn read_again(&self, expires: Option<i64>) {
        self.unusable.store(expires.is_none(), Ordering::Relaxed);
        if let Some(expires) = expires {
            self.expires.store(expires, Ordering::Relaxed);
        }
    }

    fn trouble(&self) -> Option<&'static str> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if i64::try_from(now).is_ok_and(|now| self.expires.load(Ordering::Relaxed) < now) {
            return Some("the certificate of [tls] has expired: replace it, and the new one is used at once");
        }
        let unusable = self.unusable.load(Ordering::Relaxed);
        unusable.then_some(
            "the files of [tls] cannot be used, and the previous certificate stays in use: `outgate check` says why",
        )
    }
}

/// Knows everything that is wrong.
#[derive(Clone)]
pub(super) struct Troubles {
    services: Arc<Services>,
    reloader: Reloader,
    guard: FirewallWatch,
    proof: ProofWatch,
    reports: Arc<HostReports>,
    /// Whether the watcher's reports can be received at all.
    hears: bool,
    certificate: Option<Arc<Certificate>>,
    started: Instant,
    /// Since when no DNS server has answered.
    unanswered: Arc<Mutex<Option<Instant>>>,
    /// How many log lines were lost, and when that number was last seen to grow.
    lost: Arc<Mutex<(u64, Option<Instant>)>>,
}

impl Troubles {
    pub(super) fn new(
        services: &Arc<Services>,
        reloader: &Reloader,
        reports: &Arc<HostReports>,
        hears: bool,
        certificate: Option<Arc<Certificate>>,
        proof: ProofWatch,
    ) -> Troubles {
        Troubles {
            services: Arc::clone(services),
            reloader: reloader.clone(),
            guard: FirewallWatch::new(services),
            proof,
            reports: Arc::clone(reports),
            hears,
            certificate,
            started: Instant::now(),
            unanswered: Arc::default(),
            lost: Arc::default(),
        }
    }

    /// Returns everything that is wrong now. Does not block.
    pub(super) fn now(&self) -> Vec<Trouble> {
        let mut troubles = self.reloader.troubles();
        let mut add = |cause, text: Option<String>| troubles.extend(text.map(|text| Trouble::new(cause, text)));
        add(TroubleCause::Ruleset, self.guard.trouble());
        add(TroubleCause::Log, self.services.account.log_trouble());
        add(TroubleCause::LogDropped, self.lost_lines());
        add(TroubleCause::Resolver, self.resolvers());
        add(TroubleCause::Certificate, self.certificate.as_ref().and_then(|known| known.trouble()).map(str::to_owned));
        add(TroubleCause::Conntrack, tracking());
        if self.guard.is_configured() {
            add(TroubleCause::Watcher, self.silence());
            troubles.extend(self.report().unwrap_or_default().troubles);
            troubles.extend(self.proof.troubles());
        }
        troubles
    }

    /// Returns which limits in the firewall's rules are outdated, if any. The firewall confines guests all the same.
    pub(super) fn outdated(&self) -> Option<String> {
        self.guard.outdated()
    }

    /// Returns what `outgate status` shows.
    pub(super) fn shown(&self) -> Value {
        let report = self.guard.is_configured().then(|| self.report()).flatten();
        let (guarding, unguarded) =
            report.map_or((Value::Null, Vec::new()), |report| (json!(report.guarding), report.unguarded));
        json!({
            "firewall_configured": self.guard.is_configured(),
            "guarding": guarding,
            "unguarded": unguarded,
            "proof": self.proof.shown(),
            "troubles": self.now(),
        })
    }

    /// Returns the watcher's last report, unless it is too old.
    fn report(&self) -> Option<HostReport> {
        self.reports.last().filter(|(_, ago)| *ago <= SILENCE).map(|(report, _)| report)
    }

    fn silence(&self) -> Option<String> {
        match self.reports.last() {
            Some((_, ago)) if ago <= SILENCE => None,
            Some((_, ago)) => Some(format!(
                "outgate-host.service has been silent for {} s, so it is not known which guests are guarded: run \
                 `systemctl restart outgate-host.service`",
                ago.as_secs()
            )),
            // When started by hand, the daemon does not require it.
            None if !self.hears || !system::has_manager() || self.started.elapsed() <= SILENCE => None,
            None => Some(
                "outgate-host.service does not run, so interfaces that appear later are not guarded, and it is not \
                 known which guests are guarded: run `systemctl enable --now outgate-host.service`"
                    .to_owned(),
            ),
        }
    }

    fn lost_lines(&self) -> Option<String> {
        let dropped = self.services.account.totals().log_dropped;
        let mut lost = lock(&self.lost);
        if dropped > lost.0 {
            *lost = (dropped, Some(Instant::now()));
        }
        lost.1.filter(|last| last.elapsed() < LOST).map(|_| {
            format!(
                "{dropped} lines of the access log were lost so far, because they come faster than they can be \
                 written: name a file on a faster disk in [log].access, or see `outgate denied` for the guest that \
                 causes them"
            )
        })
    }

    fn resolvers(&self) -> Option<String> {
        let told = |servers: &str| {
            format!(
                "no DNS server answers ({servers}), so no new name can be resolved: repair it, or name others in \
                 [resolver].servers"
            )
        };
        if let Some(servers) = self.services.resolver.all_silent() {
            return Some(told(&servers));
        }
        let mut since = lock(&self.unanswered);
        let Some(servers) = self.services.resolver.all_failing() else {
            *since = None;
            return None;
        };
        let since = since.get_or_insert_with(Instant::now);
        (since.elapsed() >= RESOLVERS).then(|| told(&servers))
    }

    /// Updates the metrics and logs what changes. Never returns.
    pub(super) async fn watch(self) {
        let mut before: Vec<Trouble> = Vec::new();
        let mut outdated_before = None;
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            ticks.tick().await;
            self.guard.count();
            let metrics = self.services.account.metrics();
            self.proof.look(metrics);
            let now = self.now();
            for cause in TroubleCause::ALL {
                metrics.set_trouble(cause.as_str(), now.iter().any(|trouble| trouble.cause == cause));
            }
            let news = now.iter().filter(|trouble| !known(&before, trouble) && !tells_itself(trouble.cause));
            for trouble in news {
                tracing::error!(cause = %trouble.cause, "{}", trouble.text);
            }
            for cause in TroubleCause::ALL {
                let of = |troubles: &[Trouble]| troubles.iter().any(|trouble| trouble.cause == cause);
                if of(&before) && !of(&now) && !tells_itself(cause) {
                    tracing::info!(%cause, "a trouble is over");
                }
            }
            before = now;
            let outdated = self.outdated();
            if let Some(complaint) = outdated.as_ref().filter(|_| outdated != outdated_before) {
                tracing::warn!("{complaint}");
            }
            outdated_before = outdated;
        }
    }
}

/// Whether it was there before. How long something is silent, how full a table is and how much was lost is not news.
fn known(before: &[Trouble], trouble: &Trouble) -> bool {
    let counts = matches!(trouble.cause, TroubleCause::Watcher | TroubleCause::Conntrack | TroubleCause::LogDropped);
    before.iter().any(|old| old == trouble || (old.cause == trouble.cause && counts))
}

/// Whether the code that finds this trouble logs it itself, at once and in more detail.
const fn tells_itself(cause: TroubleCause) -> bool {
    matches!(cause, TroubleCause::Log | TroubleCause::List | TroubleCause::Configuration | TroubleCause::Certificate)
}

fn tracking() -> Option<String> {
    let (entries, limit) = account::tracked()?;
    (limit > 0 && entries.saturating_mul(100) > limit.saturating_mul(TRACKED)).then(|| {
        format!(
            "connection tracking is nearly full, {entries} of {limit} entries: raise net.netfilter.nf_conntrack_max in \
             /etc/sysctl.d, and see `conntrack -L` for their owners"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_has_expired_or_cannot_be_replaced_is_a_trouble_until_another_is_there() {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let certificate = Certificate::new(now + 60);
        assert_eq!(certificate.trouble(), None);
        certificate.read_again(None);
        assert!(certificate.trouble().unwrap().contains("outgate check"));
        certificate.read_again(Some(now - 1));
        assert!(certificate.trouble().unwrap().contains("expired"));
        certificate.read_again(Some(now + 60));
        assert_eq!(certificate.trouble(), None);
    }

    #[test]
    fn how_long_the_watcher_is_silent_is_no_news() {
        let silent = |text: &str| Trouble::new(TroubleCause::Watcher, text);
        assert!(known(&[silent("11 s")], &silent("13 s")));
        assert!(!known(&[], &silent("11 s")));
        assert!(!known(&[Trouble::new(TroubleCause::Ruleset, "this")], &Trouble::new(TroubleCause::Ruleset, "that")));
    }
}
