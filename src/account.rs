//! Accounting: metrics, the access log, the top refusals.
//!
//! A flow opens a [`Record`] when it is accepted, reports to it what it learns, and drops it at the end. The
//! drop counts the metrics and queues the log line, so a flow that ends by an error or a panic is recorded like
//! any other. Nothing here decides anything or touches a guest's socket. Nothing on a flow's thread renders,
//! writes or waits: the log has its own thread for the lines. When it can't keep up, it drops refusals first
//! and counts what it drops.

mod conntrack;
mod digest;
mod event;
mod fold;
mod health;
mod line;
mod metrics;
mod process;
mod queue;
mod record;
mod refusals;
mod sink;

pub use conntrack::tracked;
pub use health::OnFailure;
pub use line::{FIELDS, LogField};
pub use metrics::{Limit, MetricDescription, Metrics, Sums};
pub(crate) use process::{files_listed, files_open};
pub use record::{Active, Record};
pub use refusals::RefusalView;

use crate::guest::GuestCounters;
use crate::identify::Claim;
use crate::listener::ListenerLabel;
use crate::live::{Flow, FlowView, LiveFlows};
use crate::lock::lock;
use crate::policy::NearMiss;
use crate::reason::Verdict;
use arc_swap::ArcSwap;
use hashbrown::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Standard output.
    #[default]
    Stdout,
    /// The systemd journal's socket.
    Journal,
    /// A file, opened for append and reopened on SIGHUP.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// `[log]` of the configuration; by default all lines go to standard output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// The sink.
    pub access: AccessLog,
    /// Log only flows that were not allowed.
    pub denied_only: bool,
    /// What happens to traffic while the log can't be written.
    pub on_failure: OnFailure,
}

/// Why accounting can't start or can't apply new settings.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The access log can't be opened.
    #[error("{}: the access log can't be opened: {source}", path.display())]
    Open {
        /// The path that was to be opened.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A thread of the access log can't be started.
    #[error("a thread for the access log can't be started: {0}")]
    Thread(std::io::Error),
    /// The metrics can't be registered.
    #[error("the metrics can't be registered: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Returns what the documentation says of each metric, in the order of their names.
///
/// # Errors
/// [`AccountError::Metrics`] if two metrics have one name, which a test would have found.
pub fn describe_metrics() -> Result<Vec<MetricDescription>, AccountError> {
    Ok(Metrics::described()?.1)
}

/// Finds the rule that comes nearest to a refused claim. It is called on the log's thread.
pub type Advice = Box<dyn Fn(&Claim) -> Option<NearMiss> + Send + Sync>;

/// The accounting of the whole daemon; one per process.
pub struct Account {
    metrics: Arc<Metrics>,
    guests: ArcSwap<Guests>,
    live: LiveFlows,
    log: digest::Log,
    next_id: AtomicU64,
    started: Instant,
    /// Start time in seconds since 1970; it makes the flow ids of two runs differ.
    epoch: u64,
}

/// Totals for the status page and `outgate status`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Totals {
    /// Version of the program.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Open connections.
    pub active: i64,
    /// Flows and requests that ended, by verdict.
    pub connections: std::collections::BTreeMap<&'static str, u64>,
    /// Bytes from the guests.
    pub bytes_up: u64,
    /// Bytes to the guests.
    pub bytes_down: u64,
    /// Generation of the whitelist in force; 0 before the first.
    pub whitelist_generation: i64,
    /// Rules in force.
    pub whitelist_rules: i64,
    /// Whether the last reload succeeded.
    pub whitelist_ok: bool,
    /// Panics caught.
    pub panics: u64,
    /// Log lines dropped.
    pub log_dropped: u64,
    /// Whether the log can't be written now.
    pub log_failing: bool,
}

struct Guests {
    by_name: HashMap<Box<str>, Arc<GuestCounters>, foldhash::fast::RandomState>,
    other: Arc<GuestCounters>,
}

impl Account {
    /// Opens the access log, starts its threads and registers the metrics. `guests` are the names of the
    /// declared guests. They are the only text from outside the program that becomes labels.
    pub fn start(log: &LogSettings, guests: &[String]) -> Result<Arc<Account>, AccountError> {
        let metrics = Arc::new(Metrics::new()?);
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let log = digest::Log::start(log, &metrics, epoch)?;
        Ok(Arc::new(Account {
            guests: ArcSwap::from_pointee(Guests::new(guests, None, &metrics)),
            metrics,
            live: LiveFlows::default(),
            log,
            next_id: AtomicU64::new(1),
            started: Instant::now(),
            epoch,
        }))
    }

    /// Applies new settings. If the new log can't be opened, nothing changes. Flows of a removed guest are no
    /// longer counted under any guest.
    pub fn reconfigure(&self, log: &LogSettings, guests: &[String]) -> Result<(), AccountError> {
        self.log.reconfigure(log, &self.metrics)?;
        let old = self.guests.load();
        self.guests.store(Arc::new(Guests::new(guests, Some(&old), &self.metrics)));
        Ok(())
    }

    /// Reopens the log's file (SIGHUP, after rotation). If that fails, the old file is still written,
    /// `log_errors_total` counts it, and it is retried until it succeeds.
    pub fn reopen(&self) {
        self.log.reopen();
    }

    /// Whether nothing new may be let through, because the log can't be written and the settings require it.
    /// One relaxed load.
    #[inline]
    pub fn refuses(&self) -> bool {
        self.log.refuses()
    }

    /// Returns why the log can't be written, if so, and what to do.
    pub fn log_trouble(&self) -> Option<String> {
        self.log.trouble()
    }

    /// Sets the function that explains near misses; the last one set is used.
    pub fn set_advice(&self, advice: Advice) {
        self.log.set_advice(advice);
    }

    /// Closes the folding windows and waits until all lines are written, 1 s at most. Blocks; for the end of
    /// the program.
    pub fn flush(&self) {
        self.log.flush(Duration::from_secs(1));
    }

    /// Returns the counters of the guest of this name; without a name, those of all undeclared guests.
    pub fn counters(&self, guest: Option<&str>) -> Arc<GuestCounters> {
        let guests = self.guests.load();
        match guest {
            None => Arc::clone(&guests.other),
            Some(name) => match guests.by_name.get(name) {
                Some(guest) => Arc::clone(guest),
                // It has its name from a certificate, or it was removed a moment ago.
                None => Arc::new(guests.other.renamed(name)),
            },
        }
    }

    /// Opens the record of a flow, of a plain-HTTP request, or of a DNS query of `guest`.
    pub fn open(self: &Arc<Self>, listener: ListenerLabel, source: SocketAddr, guest: &Arc<GuestCounters>) -> Record {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Record::new(Arc::clone(self), Flow::new(id, listener, source, Arc::clone(guest)))
    }

    /// Counts a connection in `active_connections` for as long as the returned value lives. One per connection;
    /// records do not count there.
    pub fn active(&self, listener: ListenerLabel) -> Active {
        Active::new(&self.metrics, listener)
    }

    /// Returns the metrics that other modules set.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns all metrics as Prometheus text, version 0.0.4.
    pub fn scrape(&self) -> String {
        self.live.each(|flow| self.metrics.settle(flow));
        self.metrics.render()
    }

    /// Returns the live flows.
    pub fn live(&self) -> &LiveFlows {
        &self.live
    }

    /// Returns the live flows that have a claim, oldest first, `limit` at most, and the number of all.
    pub fn flows(&self, limit: usize) -> (Vec<FlowView>, usize) {
        let (flows, total) = self.live.oldest(limit);
        (flows.iter().filter_map(|flow| flow.view(self.epoch)).collect(), total)
    }

    /// Returns what was refused most often (and, in the mode `observe`, what would have been), most frequent
    /// first, `limit` at most. The table is bounded: it forgets rare refusals in a flood.
    pub fn refusals(&self, limit: usize) -> Vec<RefusalView> {
        self.log.refusals(limit)
    }

    /// Returns what was allowed and failed, most frequent first.
    pub fn failures(&self, limit: usize) -> Vec<RefusalView> {
        self.log.failures(limit)
    }

    /// Returns the totals for the operator.
    pub fn totals(&self) -> Totals {
        self.live.each(|flow| self.metrics.settle(flow));
        let (bytes_up, bytes_down) = self.metrics.bytes();
        let connections = Verdict::ALL.iter().map(|v| (v.as_str(), self.metrics.connections(*v))).collect();
        Totals {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            active: self.metrics.active_connections(),
            connections,
            bytes_up,
            bytes_down,
            whitelist_generation: self.metrics.generation(),
            whitelist_rules: self.metrics.rules(),
            whitelist_ok: self.metrics.whitelist_ok(),
            panics: self.metrics.panics(),
            log_dropped: self.metrics.dropped(),
            log_failing: self.log.trouble().is_some(),
        }
    }
}

impl Guests {
    fn new(names: &[String], old: Option<&Guests>, metrics: &Metrics) -> Guests {
        let mut by_name: HashMap<Box<str>, Arc<GuestCounters>, _> = HashMap::default();
        for name in names {
            let guest = match old.and_then(|old| old.by_name.get(name.as_str())) {
                Some(guest) => Arc::clone(guest),
                None => Arc::new(metrics.guest(Some(name))),
            };
            by_name.insert(name.as_str().into(), guest);
        }
        for name in old.iter().flat_map(|old| old.by_name.keys()) {
            if !by_name.contains_key(name) {
                metrics.forget_guest(name);
            }
        }
        let other = match old {
            Some(old) => Arc::clone(&old.other),
            None => Arc::new(metrics.guest(None)),
        };
        Guests { by_name, other }
    }
}

#[cfg(test)]
mod tests;
