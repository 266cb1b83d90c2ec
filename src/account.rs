//! Accounting: metrics, the access log, the table of live flows, the top refusals.
//!
//! A flow opens a [`Record`] when it is accepted, reports to it what it learns, and drops it at the end. The
//! drop counts the metrics and queues the log line, so a flow that ends by an error or a panic is recorded like
//! any other. Nothing here decides anything or touches a guest's socket. Nothing on a flow's thread renders,
//! writes or waits: the log has its own thread for the lines. When it can't keep up, it drops refusals first
//! and counts what it drops.

mod digest;
mod event;
mod evict;
mod flows;
mod fold;
mod health;
mod line;
mod metrics;
mod process;
mod queue;
mod record;
mod refusals;
mod sink;
mod tracking;

pub use flows::{Flow, FlowView};
pub use health::OnFailure;
pub use line::{FIELDS, LogField};
pub use metrics::{Limit, MetricDescription, Metrics};
pub(crate) use process::{files_listed, files_open};
pub use record::{Active, Meter, Record};
pub use refusals::RefusalView;
pub use tracking::tracked;

use crate::identify::Claim;
use crate::policy::{Location, NearMiss};
use crate::reason::{Reason, Verdict};
use arc_swap::ArcSwap;
use event::Guest;
use flows::Table;
use hashbrown::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The kind of listener through which a flow arrived; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Listener {
    /// HTTP forward and CONNECT.
    Proxy,
    /// SOCKS5.
    Socks,
    /// TPROXY.
    Transparent,
    /// nft REDIRECT.
    Redirect,
    /// UDP.
    Udp,
    /// The guests' DNS.
    Dns,
}

impl Listener {
    /// The listeners that carry flows, in the order of their discriminants: all but [`Dns`](Self::Dns).
    pub const FLOWS: [Listener; 5] =
        [Listener::Proxy, Listener::Socks, Listener::Transparent, Listener::Redirect, Listener::Udp];

    /// Metric label and log value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Listener::Proxy => "proxy",
            Listener::Socks => "socks",
            Listener::Transparent => "transparent",
            Listener::Redirect => "redirect",
            Listener::Udp => "udp",
            Listener::Dns => "dns",
        }
    }
}

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
    flows: Table,
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
    by_name: HashMap<Box<str>, Arc<Guest>, foldhash::fast::RandomState>,
    other: Arc<Guest>,
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
            flows: Table::default(),
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

    /// Opens the record of a flow, of a plain-HTTP request, or of a DNS query. `guest` is the name of the
    /// declared guest, if it is one.
    pub fn open(self: &Arc<Self>, listener: Listener, source: SocketAddr, guest: Option<&str>) -> Record {
        let guests = self.guests.load();
        let guest = match guest {
            None => Arc::clone(&guests.other),
            Some(name) => match guests.by_name.get(name) {
                Some(guest) => Arc::clone(guest),
                // The guest was removed while the flow was being accepted.
                None => Arc::new(guests.other.renamed(name)),
            },
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Record::new(Arc::clone(self), Flow::new(id, listener, source, guest))
    }

    /// Counts a connection in `active_connections` for as long as the returned value lives. One per connection;
    /// records do not count there.
    pub fn active(&self, listener: Listener) -> Active {
        Active::new(&self.metrics, listener)
    }

    /// Returns the metrics that other modules set.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns all metrics as Prometheus text, version 0.0.4.
    pub fn scrape(&self) -> String {
        self.flows.each(|flow| self.metrics.settle(flow));
        self.metrics.render()
    }

    /// Announces a new policy; call it as soon as that is in force. From now on, a flow that an earlier policy
    /// decided judges itself again once it is connected. [`revoke_where`](Self::revoke_where) calls it too.
    pub fn announce_search(&self) {
        self.flows.announce_search();
    }

    /// Calls `judge` with the claim of each live flow and the address it is connected to, and revokes the flows
    /// that it refuses. Returns their number. Takes a microsecond or two per flow: not for a thread that serves
    /// flows.
    ///
    /// No flow escapes if the caller first puts the new policy in force and each flow calls [`Record::claim`]
    /// before it asks the policy.
    pub fn revoke_where(
        &self,
        judge: impl Fn(&Claim, Option<SocketAddr>) -> Option<(Reason, Option<Location>)>,
    ) -> usize {
        self.announce_search();
        let mut revoked = 0;
        self.flows.each(|flow| {
            if let Some((reason, rule)) = flow.claim().and_then(|claim| judge(&claim, flow.upstream()))
                && flow.revoke_by(reason, rule)
            {
                revoked += 1;
                if reason == Reason::Revoked {
                    self.metrics.flow_revoked();
                }
            }
        });
        revoked
    }

    /// Checks which flows have moved bytes. [`close_idlest`](Self::close_idlest) knows idle times only from
    /// these checks. About 100 ns per flow.
    pub fn look(&self) {
        self.flows.each(|flow| {
            flow.look();
        });
    }

    /// Ends up to `count` flows on which no byte moved for `idle`, with the reason `limit_total`. It always
    /// takes the guest with the most remaining flows, and of these the one that has been idle longest. Returns
    /// how many it ended. Not for a thread that serves flows.
    pub fn close_idlest(&self, count: usize, idle: Duration) -> usize {
        let mut live = Vec::new();
        self.flows.each(|flow| live.push(Arc::clone(flow)));
        let closed = evict::idlest(&live, count, idle).filter(|flow| flow.revoke(Reason::LimitTotal)).count();
        self.metrics.closed_for_others(closed);
        closed
    }

    /// Returns the live flows that have a claim, oldest first, `limit` at most, and the number of all.
    pub fn snapshot(&self, limit: usize) -> (Vec<FlowView>, usize) {
        let (flows, total) = self.flows.oldest(limit);
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
        self.flows.each(|flow| self.metrics.settle(flow));
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
        let mut by_name: HashMap<Box<str>, Arc<Guest>, _> = HashMap::default();
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

/// Locks the mutex, even if a thread panicked while it held it: the data behind these locks is valid after
/// every statement.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
