//! The metrics: names, labels and buckets in one place, and the handles that count them.
//!
//! Every handle is looked up once, at the start, into an array, so an event costs one
//! atomic addition. Labels are fixed words, of enums where there is one, and the names of declared guests: the program and
//! the configuration fix the number of series.

mod maker;
mod proof;

pub use maker::MetricDescription;

pub(super) use maker::Maker;

use super::ListenerLabel;
use super::conntrack::Tracking;
use super::process::Process;
use crate::guest::GuestCounters;
use crate::live::Flow;
use crate::lock::lock;
use crate::reason::{Cause, Reason, Verdict, Why};
use crate::trouble::TroubleCause;
use outgate_proto::enum_of_words;
use prometheus::{
    Counter, CounterVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Outcomes of a flow: one per reason, and `observed` after them.
const OUTCOMES: usize = Reason::ALL.len() + 1;
/// Label of undeclared guests.
const OTHER: &str = "other";
/// Stages of overload; time in stage 0 is not counted.
const STAGES: [&str; 3] = ["1", "2", "3"];
/// What happens to something over a limit.
const PACED_OR_REFUSED: [&str; 2] = ["paced", "refused"];
const DIRECTIONS: [&str; 2] = ["up", "down"];
const DECISION_BUCKETS: [f64; 12] = [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 1e-2];
const WAIT_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const CONNECTION_BUCKETS: [f64; 13] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

enum_of_words! {
    /// The keys of `[limits]` whose limit can be reached.
    pub enum Limit {
        /// Connections open at once.
        Connections = "connections",
        /// New connections per second.
        NewConnections = "new_connections_per_second",
        /// Plain-HTTP requests per second.
        Requests = "requests_per_second",
        /// DNS queries per second.
        Queries = "dns_queries_per_second",
        /// New names per second.
        NewNames = "new_names_per_second",
        /// Connections open at once in the whole daemon, by the key or by what file descriptors or memory allow.
        Total = "total_connections",
    }
    /// Returns the key.
    pub fn key
}

impl Limit {
    /// Returns the reason of a refusal by this limit, with the key as its cause.
    pub const fn why(self, reason: Reason) -> Why {
        let phrase = match self {
            Limit::Connections => "over [limits].connections",
            Limit::NewConnections => "over [limits].new_connections_per_second",
            Limit::Requests => "over [limits].requests_per_second",
            Limit::Queries => "over [limits].dns_queries_per_second",
            Limit::NewNames => "over [limits].new_names_per_second",
            Limit::Total => "over [limits].total_connections, or short of memory or file descriptors",
        };
        Why::because(reason, Cause::of(phrase))
    }
}

/// How many labels of listeners carry flows.
const FLOWS: usize = ListenerLabel::FLOWS.len();

/// The sums of what is in force, in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Of the whitelist files.
    pub list: String,
    /// Of the configuration files; `None` if there is none.
    pub configuration: Option<String>,
}

/// All metrics of the daemon. Records count what flows do; the setters here are for everything else.
pub struct Metrics {
    registry: Registry,
    connections: [[IntCounter; OUTCOMES]; FLOWS],
    active: [IntGauge; FLOWS],
    bytes: [[IntCounter; 2]; FLOWS],
    dns: [IntCounter; OUTCOMES],
    pub(super) decision: Histogram,
    pub(super) resolve: Histogram,
    pub(super) dial: Histogram,
    pub(super) connection: Histogram,
    guest_connections: IntCounterVec,
    guest_bytes: IntCounterVec,
    whitelist: Whitelist,
    revoked: IntCounter,
    firewall_configured: IntGauge,
    troubles: IntGaugeVec,
    proof: proof::Proof,
    list_info: IntGaugeVec,
    configuration_info: IntGaugeVec,
    sums: Mutex<Sums>,
    firewall: IntGauge,
    landlock: IntGauge,
    seccomp: IntGauge,
    certificate: Certificate,
    panics: IntCounter,
    accept_errors: IntCounter,
    log_dropped: [IntCounter; 4],
    log_errors: IntCounter,
    log_failing: IntGauge,
    limits: [[IntCounter; PACED_OR_REFUSED.len()]; Limit::ALL.len()],
    overload: Overload,
    process: Process,
    tracking: Tracking,
}

/// How full the daemon is, and the effects.
struct Overload {
    stage: IntGauge,
    seconds: [Counter; STAGES.len()],
    closed: IntCounter,
    memory_used: IntGauge,
    memory_bound: IntGauge,
    most: IntGauge,
}

/// What is known of the certificate of the TLS listeners; empty if there is none.
struct Certificate {
    expires: IntGaugeVec,
    successful: IntGaugeVec,
    refused: IntCounterVec,
}

/// The metrics of the list in force.
struct Whitelist {
    rules: IntGaugeVec,
    rules_of_all_kinds: AtomicI64,
    /// Kinds that have a series.
    kinds: Mutex<BTreeSet<&'static str>>,
    generation: IntGauge,
    reload_successful: IntGauge,
    reload_time: IntGauge,
    reloads: [IntCounter; 2],
}

impl Metrics {
    pub(crate) fn new() -> Result<Metrics, prometheus::Error> {
        Metrics::described().map(|(metrics, _)| metrics)
    }

    /// Makes the metrics, and what the documentation says of each, in the order of the names.
    pub(super) fn described() -> Result<(Metrics, Vec<MetricDescription>), prometheus::Error> {
        let make = Maker::new();
        let connections = make.counters(
            "outgate_connections_total",
            "Connections, plain-HTTP requests and UDP flows that ended.",
            &["listener", "verdict", "reason"],
        )?;
        let active = make.gauges("outgate_active_connections", "Open connections.", &["listener"])?;
        let bytes = make.counters("outgate_bytes_total", "Bytes carried.", &["listener", "direction"])?;
        let dns =
            make.counters("outgate_dns_queries_total", "DNS queries answered to guests.", &["verdict", "reason"])?;
        let dropped = make.counters(
            "outgate_log_dropped_total",
            "Access log lines that were not written because the log could not keep up or failed.",
            &["verdict"],
        )?;
        let limits = make.counters(
            "outgate_limit_reached_total",
            "Connections, requests, DNS queries and names that came over a limit, by the key of [limits] and what became of them: they waited for their turn, or were refused.",
            &["limit", "outcome"],
        )?;
        make.gauges("outgate_build_info", "Always 1; the label says what runs.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let verdict = |n: usize| Verdict::ALL.get(n).map_or("", |verdict| verdict.as_str());
        let listener = |n: usize| ListenerLabel::FLOWS.get(n).map_or("", |listener| listener.as_str());
        let troubles = make.gauges("outgate_trouble", "1 while something is wrong that cuts guests off, lets them out or soon may, by its kind; `outgate status` says what and what mends it.", &["cause"])?;
        for cause in TroubleCause::ALL {
            troubles.with_label_values(&[cause.as_str()]);
        }
        let list_info = make.gauges("outgate_list_info", "Always 1; the label is the SHA-256 over the whitelist files in force, the same on hosts with the same list.", &["sha256"])?;
        let configuration_info = make.gauges(
            "outgate_config_info",
            "Always 1; the label is the SHA-256 over the configuration files in force. None without a file.",
            &["sha256"],
        )?;
        let metrics = Metrics {
            proof: proof::Proof::new(&make)?,
            list_info,
            configuration_info,
            sums: Mutex::default(),
            connections: std::array::from_fn(|l| {
                std::array::from_fn(|o| {
                    let (verdict, reason) = outcome(o);
                    connections.with_label_values(&[listener(l), verdict, reason])
                })
            }),
            active: std::array::from_fn(|l| active.with_label_values(&[listener(l)])),
            bytes: std::array::from_fn(|l| DIRECTIONS.map(|d| bytes.with_label_values(&[listener(l), d]))),
            dns: std::array::from_fn(|o| {
                let (verdict, reason) = outcome(o);
                dns.with_label_values(&[verdict, reason])
            }),
            decision: make.histogram(
                "outgate_decision_seconds",
                "Time the policy took to decide.",
                &DECISION_BUCKETS,
            )?,
            resolve: make.histogram("outgate_resolve_seconds", "Time to resolve a name.", &WAIT_BUCKETS)?,
            dial: make.histogram("outgate_dial_seconds", "Time to connect to an upstream.", &WAIT_BUCKETS)?,
            connection: make.histogram(
                "outgate_connection_seconds",
                "Life of a flow that reached its upstream.",
                &CONNECTION_BUCKETS,
            )?,
            guest_connections: make.counters(
                "outgate_guest_connections_total",
                "Connections and requests that ended, by declared guest.",
                &["guest", "verdict"],
            )?,
            guest_bytes: make.counters(
                "outgate_guest_bytes_total",
                "Bytes carried, by declared guest.",
                &["guest", "direction"],
            )?,
            whitelist: Whitelist::new(&make)?,
            revoked: make.counter("outgate_flows_revoked_total", "Flows closed because a new list refuses them.")?,
            firewall: make.gauge("outgate_firewall_in_place", "1 if the table of the firewall that the configuration asks for is seen in place; `outgate firewall status` looks at all of it.")?,
            firewall_configured: make.gauge("outgate_firewall_configured", "1 if the configuration in force asks for a firewall.")?,
            troubles,
            landlock: make.gauge("outgate_landlock_abi", "Version of Landlock that confines the daemon's writing; 0 without.")?,
            seccomp: make.gauge("outgate_seccomp_enabled", "1 if the system call filter is in force.")?,
            certificate: Certificate::new(&make)?,
            panics: make.counter("outgate_panics_total", "Panics caught; each ended one flow.")?,
            accept_errors: make.counter("outgate_accept_errors_total", "Connections that could not be accepted.")?,
            log_dropped: std::array::from_fn(|v| dropped.with_label_values(&[verdict(v)])),
            log_errors: make.counter("outgate_log_errors_total", "Failed writes to and openings of the access log.")?,
            log_failing: make.gauge("outgate_log_failing", "1 while the access log can't be written: nothing but errors for 5 s. Then [log].on_failure says what becomes of traffic.")?,
            limits: Limit::ALL.map(|limit| PACED_OR_REFUSED.map(|outcome| limits.with_label_values(&[limit.key(), outcome]))),
            overload: Overload::new(&make)?,
            process: Process::new(&make)?,
            tracking: Tracking::new(&make)?,
            registry: make.registry,
        };
        let mut described = make.described.into_inner();
        described.sort_by(|one, other| one.name.cmp(&other.name));
        Ok((metrics, described))
    }

    /// Records that a list came into force: its number and its rules by kind. Kinds are fixed words of the program.
    pub fn whitelist_loaded(&self, generation: u64, rules: &[(&'static str, usize)]) {
        self.whitelist.set_rules(rules);
        self.whitelist.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.whitelist.reloaded(true);
    }

    /// Records the sums of list and configuration in force, by which hosts can be compared.
    pub fn set_sums(&self, list: &str, configuration: Option<&str>) {
        let mut sums = lock(&self.sums);
        for (info, sum) in [(&self.list_info, Some(list)), (&self.configuration_info, configuration)] {
            // One series each: a scrape in between finds none, which is better than two.
            info.reset();
            if let Some(sum) = sum {
                info.with_label_values(&[sum]).set(1);
            }
        }
        *sums = Sums { list: list.to_owned(), configuration: configuration.map(str::to_owned) };
    }

    /// Returns them.
    pub fn sums(&self) -> Sums {
        lock(&self.sums).clone()
    }

    /// Records that a list was refused; the one in force stays.
    pub fn whitelist_failed(&self) {
        self.whitelist.reloaded(false);
    }

    /// Records that a list was read again and is already in force.
    pub fn whitelist_unchanged(&self) {
        self.whitelist.reloaded(true);
    }

    /// Sets whether the ruleset is in place, as far as this can be determined.
    pub fn set_firewall_in_place(&self, in_place: bool) {
        self.firewall.set(i64::from(in_place));
    }

    /// Sets whether the configuration in force asks for a firewall.
    pub fn set_firewall_configured(&self, configured: bool) {
        self.firewall_configured.set(i64::from(configured));
    }

    /// Sets whether there is a trouble of this kind.
    pub fn set_trouble(&self, cause: &'static str, is_there: bool) {
        self.troubles.with_label_values(&[cause]).set(i64::from(is_there));
    }

    /// Sets which parts of the sandbox confine the daemon itself.
    pub fn set_sandbox(&self, landlock_abi: u8, seccomp: bool) {
        self.landlock.set(i64::from(landlock_abi));
        self.seccomp.set(i64::from(seccomp));
    }

    /// Sets until when the certificate in use is valid, in seconds since 1970.
    pub fn certificate_expires(&self, at: i64) {
        self.certificate.expires.with_label_values::<&str>(&[]).set(at);
        self.certificate.successful.with_label_values::<&str>(&[]).set(1);
    }

    /// Records that a new certificate or key cannot be used; the one in use stays.
    pub fn certificate_failed(&self) {
        self.certificate.successful.with_label_values::<&str>(&[]).set(0);
    }

    /// Creates the series of a TLS listener's handshake failures, one per reason. They begin at 0, so that a
    /// first failure is an increase.
    pub fn expect_handshakes(&self, listener: &'static str, reasons: impl IntoIterator<Item = &'static str>) {
        for reason in reasons {
            self.certificate.refused.with_label_values(&[listener, reason]).inc_by(0);
        }
    }

    /// Counts a handshake at one of outgate's own TLS listeners that ended without a connection. Listener and
    /// reason are fixed words of the program.
    pub fn handshake_refused(&self, listener: &'static str, reason: &'static str) {
        self.certificate.refused.with_label_values(&[listener, reason]).inc();
    }

    /// Counts a caught panic.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Counts a DNS query that was answered as asked; refused and failed ones have a record.
    pub fn query_answered(&self, observed: bool) {
        let outcome = if observed { Reason::ALL.len() } else { Reason::None as usize };
        if let Some(counter) = self.dns.get(outcome) {
            counter.inc();
        }
    }

    /// Counts a DNS query of a flood, which got no answer. These are counted only here: a log line for each
    /// would be work that a guest can cause without end.
    pub fn query_unanswered(&self) {
        if let Some(counter) = self.dns.get(Reason::LimitRate as usize) {
            counter.inc();
        }
    }

    /// Counts something over a limit that waits for its turn.
    pub fn paced(&self, limit: Limit) {
        self.limit_reached(limit, 0);
    }

    /// Counts something over a limit that is refused.
    pub fn over(&self, limit: Limit) {
        self.limit_reached(limit, 1);
    }

    fn limit_reached(&self, limit: Limit, outcome: usize) {
        if let Some(counter) = self.limits.get(limit as usize).and_then(|outcomes| outcomes.get(outcome)) {
            counter.inc();
        }
    }

    /// Counts a connection that could not be accepted.
    pub fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// Sets how full the daemon is, from 0 to 3, and for how long it has been so since the last call.
    pub fn set_overload(&self, stage: u8, lasted: Duration) {
        self.overload.stage.set(i64::from(stage));
        if let Some(seconds) = usize::from(stage).checked_sub(1).and_then(|index| self.overload.seconds.get(index)) {
            seconds.inc_by(lasted.as_secs_f64());
        }
    }

    /// Sets the memory in use and its bound in bytes, 0 for none, and how many connections may be open at once.
    pub fn set_room(&self, used: u64, bound: u64, most: u32) {
        let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.overload.memory_used.set(bytes(used));
        self.overload.memory_bound.set(bytes(bound));
        self.overload.most.set(i64::from(most));
    }

    /// Counts flows and connections that were closed to make room for others.
    pub fn closed_for_others(&self, count: usize) {
        self.overload.closed.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Renders the registry as text. Live flows must have been settled before.
    pub(crate) fn render(&self) -> String {
        self.process.refresh();
        self.tracking.refresh();
        let mut text = String::with_capacity(32 * 1024);
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics can't be rendered");
        }
        text
    }

    /// Counts one flow or query that ended.
    pub(super) fn ended(&self, listener: ListenerLabel, verdict: Verdict, reason: Reason, guest: &GuestCounters) {
        let outcome = match verdict {
            Verdict::Observed => Reason::ALL.len(),
            _ => reason as usize,
        };
        let row = self.connections.get(listener as usize).unwrap_or(&self.dns);
        if let Some(counter) = row.get(outcome) {
            counter.inc();
        }
        if listener != ListenerLabel::Dns
            && let Some(counter) = guest.connections.get(verdict as usize)
        {
            counter.inc();
        }
    }

    /// Adds what the flow has carried since it was last settled to the byte counters.
    pub(super) fn settle(&self, flow: &Flow) {
        if flow.guest().is_probe {
            return;
        }
        let row = self.bytes.get(flow.listener() as usize);
        for (n, carried) in flow.unsettled().into_iter().enumerate() {
            if carried == 0 {
                continue;
            }
            if let Some(counter) = row.and_then(|row| row.get(n)) {
                counter.inc_by(carried);
            }
            if let Some(counter) = flow.guest().bytes.get(n) {
                counter.inc_by(carried);
            }
        }
    }

    pub(super) fn active_gauge(&self, listener: ListenerLabel) -> Option<&IntGauge> {
        self.active.get(listener as usize)
    }

    /// Counts flows that a new list ended.
    pub fn flows_revoked(&self, count: usize) {
        self.revoked.inc_by(count as u64);
    }

    pub(super) fn log_dropped(&self, verdict: Verdict, lines: u64) {
        if let Some(counter) = self.log_dropped.get(verdict as usize) {
            counter.inc_by(lines);
        }
    }

    pub(super) fn log_failed(&self) {
        self.log_errors.inc();
    }

    pub(super) fn set_log_failing(&self, failing: bool) {
        self.log_failing.set(i64::from(failing));
    }

    /// Returns the counters of a declared guest, or with `None` those of all undeclared ones.
    pub(super) fn guest(&self, name: Option<&str>) -> GuestCounters {
        let label = name.unwrap_or(OTHER);
        GuestCounters {
            name: name.map(Into::into),
            connections: Verdict::ALL.map(|v| self.guest_connections.with_label_values(&[label, v.as_str()])),
            bytes: DIRECTIONS.map(|direction| self.guest_bytes.with_label_values(&[label, direction])),
            is_probe: false,
        }
    }

    /// Removes the series of a guest.
    pub(super) fn forget_guest(&self, name: &str) {
        if name == OTHER {
            return;
        }
        // An error means that the series does not exist, which is what is wanted.
        for verdict in Verdict::ALL {
            let _ = self.guest_connections.remove_label_values(&[name, verdict.as_str()]);
        }
        for direction in DIRECTIONS {
            let _ = self.guest_bytes.remove_label_values(&[name, direction]);
        }
    }

    pub(super) fn connections(&self, verdict: Verdict) -> u64 {
        let of = |n: usize| outcome(n).0 == verdict.as_str();
        self.connections
            .iter()
            .flat_map(|row| row.iter().enumerate())
            .filter(|(n, _)| of(*n))
            .map(|(_, c)| c.get())
            .sum()
    }

    pub(super) fn active_connections(&self) -> i64 {
        self.active.iter().map(IntGauge::get).sum()
    }

    pub(super) fn bytes(&self) -> (u64, u64) {
        self.bytes.iter().fold((0, 0), |(up, down), [u, d]| (up + u.get(), down + d.get()))
    }

    pub(super) fn generation(&self) -> i64 {
        self.whitelist.generation.get()
    }

    pub(super) fn rules(&self) -> i64 {
        self.whitelist.rules_of_all_kinds.load(Ordering::Relaxed)
    }

    pub(super) fn whitelist_ok(&self) -> bool {
        self.whitelist.reload_successful.get() == 1
    }

    pub(super) fn panics(&self) -> u64 {
        self.panics.get()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.log_dropped.iter().map(IntCounter::get).sum()
    }
}

impl Overload {
    fn new(make: &Maker) -> Result<Overload, prometheus::Error> {
        let opts = Opts::new("outgate_overload_seconds_total", "Time spent in each stage of overload.");
        let seconds = make.register("counter", CounterVec::new(opts, &["stage"])?)?;
        Ok(Overload {
            stage: make.gauge(
                "outgate_overload_stage",
                "0: there is room; 1: the heaviest guests get no new connections; 2: nobody does; 3: the longest idle flows are closed.",
            )?,
            seconds: STAGES.map(|stage| seconds.with_label_values(&[stage])),
            closed: make.counter("outgate_overload_closed_total", "Flows and idle connections closed to make room.")?,
            memory_used: make.gauge("outgate_memory_used_bytes", "Memory that is held against the bound.")?,
            memory_bound: make.gauge("outgate_memory_bound_bytes", "Memory that may be used; 0 for no bound.")?,
            most: make.gauge(
                "outgate_connections_bound",
                "Connections that may be open at once, as configured and as there are file descriptors for.",
            )?,
        })
    }
}

impl Whitelist {
    fn new(make: &Maker) -> Result<Whitelist, prometheus::Error> {
        let reloads = make.counters("outgate_whitelist_reloads_total", "Whitelist loads.", &["result"])?;
        Ok(Whitelist {
            rules: make.gauges("outgate_whitelist_rules", "Rules in force.", &["kind"])?,
            rules_of_all_kinds: AtomicI64::new(0),
            kinds: Mutex::default(),
            generation: make.gauge("outgate_whitelist_generation", "Number of the list in force, from 1.")?,
            reload_successful: make
                .gauge("outgate_whitelist_last_reload_successful", "1 if the last load of the list succeeded.")?,
            reload_time: make.gauge(
                "outgate_whitelist_last_reload_timestamp_seconds",
                "Time of the last load of the list, whether it succeeded or not.",
            )?,
            reloads: ["success", "failure"].map(|result| reloads.with_label_values(&[result])),
        })
    }

    /// Sets the rules by kind. Kinds that are gone stay at 0, so a concurrent scrape never finds a list without rules.
    fn set_rules(&self, rules: &[(&'static str, usize)]) {
        let mut kinds = lock(&self.kinds);
        for gone in kinds.iter().filter(|kind| !rules.iter().any(|(other, _)| other == *kind)) {
            self.rules.with_label_values(&[*gone]).set(0);
        }
        let mut of_all_kinds = 0i64;
        for (kind, count) in rules {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            self.rules.with_label_values(&[*kind]).set(count);
            of_all_kinds = of_all_kinds.saturating_add(count);
            kinds.insert(kind);
        }
        self.rules_of_all_kinds.store(of_all_kinds, Ordering::Relaxed);
    }

    fn reloaded(&self, successful: bool) {
        let [success, failure] = &self.reloads;
        if successful {
            success.inc()
        } else {
            failure.inc()
        }
        self.reload_successful.set(i64::from(successful));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.reload_time.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}

/// Returns the labels of an outcome: verdict, reason.
fn outcome(n: usize) -> (&'static str, &'static str) {
    match Reason::ALL.get(n) {
        Some(reason) => (reason.verdict().as_str(), reason.as_str()),
        None => (Verdict::Observed.as_str(), Reason::None.as_str()),
    }
}

impl Certificate {
    fn new(make: &Maker) -> Result<Certificate, prometheus::Error> {
        Ok(Certificate {
            expires: make.gauges(
                "outgate_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use ends, in seconds since 1970.",
                &[],
            )?,
            successful: make.gauges(
                "outgate_tls_last_reload_successful",
                "1 if certificate and key could be used when they last changed.",
                &[],
            )?,
            refused: make.counters(
                "outgate_tls_handshakes_refused_total",
                "Handshakes that failed at a listener inside TLS.",
                &["listener", "reason"],
            )?,
        })
    }
}
