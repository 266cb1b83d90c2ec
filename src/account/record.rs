//! The record of one flow: told what happens, and closed by its drop.

use super::event::{Endpoint, Event};
use super::flows::Flow;
use super::{Account, Listener, Metrics};
use crate::identify::Claim;
use crate::policy::{Location, Permit};
use crate::reason::{Reason, Verdict, Why};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Bytes that a guest wrote beyond this are not even kept; the log cuts what is left at 253.
const KEEP_SHOWN: usize = 253;

/// The cause where nothing was asked for.
const LEFT: &str = "the guest left before it showed what it wants";

/// The record of one flow, plain-HTTP request or DNS query, from accept to end. Dropping it ends
/// it: the metrics count it and its log line is queued. A record that was neither permitted nor
/// refused counts as refused, `malformed`: the guest left before it showed what it wants.
pub struct Record {
    account: Arc<Account>,
    flow: Arc<Flow>,
    slot: Option<u32>,
    /// Searches for flows to revoke that were announced when it made its claim.
    searches: u32,
    permitted: bool,
    observed: bool,
    cancelled: bool,
    /// Its line as a long-lived flow was queued.
    announced: AtomicBool,
    reason: Reason,
    cause: Option<&'static str>,
    shown: Option<Box<[u8]>>,
    original: Option<Endpoint>,
    upstream: Option<Endpoint>,
    egress: Option<Endpoint>,
}

/// Counts the bytes of a flow. Cheap to clone and to call; what is counted after the record was
/// dropped is lost.
#[derive(Clone)]
pub struct Meter(Arc<Flow>);

/// Counts a connection as open while it lives.
pub struct Active {
    listener: Listener,
    gauge: Option<prometheus::IntGauge>,
}

impl Record {
    pub(super) fn new(account: Arc<Account>, flow: Flow) -> Record {
        Record {
            account,
            flow: Arc::new(flow),
            slot: None,
            searches: 0,
            permitted: false,
            observed: false,
            cancelled: false,
            announced: AtomicBool::new(false),
            reason: Reason::None,
            cause: None,
            shown: None,
            original: None,
            upstream: None,
            egress: None,
        }
    }

    /// The flow came by another kind of listener than it seemed (a proxy port spoke SOCKS).
    pub fn set_listener(&mut self, listener: Listener) {
        self.flow.set_listener(listener);
    }

    /// Where the guest's packets went before they were brought here.
    pub fn original(&mut self, original: SocketAddr) {
        self.original = Some(original.into());
    }

    /// What the flow asks for, as far as it is known now; puts it into the table of live flows. To
    /// be called before each decision, so that a list that changes meanwhile finds the flow.
    pub fn claim(&mut self, claim: &Claim) {
        self.searches = self.account.flows.searches();
        self.flow.set_claim(claim.clone());
        if self.slot.is_none() && self.flow.listener() != Listener::Dns {
            self.slot = Some(self.account.flows.insert(&self.flow));
        }
    }

    /// Was a search by [`Account::revoke_where`] announced since the claim? It may have passed this flow by, if the flow
    /// was not connected yet. One that is announced after [`upstream`](Self::upstream) was called finds the address: both lock the flow.
    pub fn was_searched(&self) -> bool {
        self.account.flows.searches() != self.searches
    }

    /// What the guest wrote as its destination where no claim could be made of it. Any bytes: the
    /// log escapes and cuts them.
    pub fn shown(&mut self, text: &[u8]) {
        self.shown = Some(text.iter().copied().take(KEEP_SHOWN).collect());
    }

    /// Did the policy let it through before?
    pub fn is_permitted(&self) -> bool {
        self.permitted
    }

    /// The policy let it through.
    pub fn permit(&mut self, permit: &Permit) {
        self.permitted_by(permit.rule().cloned(), permit.observed());
    }

    /// The policy took this long to decide.
    pub fn decided_in(&self, time: Duration) {
        self.account.metrics.decision.observe(time.as_secs_f64());
    }

    /// The resolver took this long to answer.
    pub fn resolved_in(&self, time: Duration) {
        self.account.metrics.resolve.observe(time.as_secs_f64());
    }

    /// Connecting to the upstream took this long.
    pub fn dialled_in(&self, time: Duration) {
        self.account.metrics.dial.observe(time.as_secs_f64());
    }

    /// It was refused, could not be done, or was closed before its time. The first reason stays;
    /// `rule` is the one that decided, if it was a rule.
    pub fn refuse(&mut self, why: impl Into<Why>, rule: Option<Location>) {
        let Why { reason, cause } = why.into();
        if self.reason != Reason::None {
            return;
        }
        self.reason = reason;
        self.cause = cause.map(|cause| cause.phrase());
        if rule.is_some() {
            self.flow.set_rule(rule);
        }
    }

    /// It is connected: to `peer`, from `local`.
    pub fn upstream(&mut self, peer: SocketAddr, local: SocketAddr) {
        self.upstream = Some(peer.into());
        self.flow.connected(peer.into());
        self.egress = Some(local.into());
    }

    /// Where its bytes are counted.
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.flow))
    }

    /// The flow as the table of live flows has it: to wait for its revocation.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Queues the line of a flow that lives past 60 s; its `duration_ms` is null. Once, however often
    /// it is called.
    pub fn still_open(&self) {
        if self.announced.swap(true, Ordering::Relaxed) {
            return;
        }
        let (claim, rule) = self.flow.facts();
        let (verdict, reason) = self.outcome();
        self.account.log.push(self.event(claim, rule, verdict, reason, None));
    }

    /// Ends the record without a trace: the connection ended before its first byte.
    pub fn cancel(mut self) {
        self.cancelled = true;
    }

    pub(super) fn permitted_by(&mut self, rule: Option<Location>, observed: bool) {
        self.permitted = true;
        self.observed = observed;
        self.flow.set_rule(rule);
    }

    fn outcome(&self) -> (Verdict, Reason) {
        let reason = match self.reason {
            Reason::None => self.flow.revocation().unwrap_or(Reason::None),
            reason => reason,
        };
        match reason {
            Reason::None if self.observed => (Verdict::Observed, reason),
            Reason::None if self.permitted => (Verdict::Allowed, reason),
            Reason::None => (Verdict::Denied, Reason::Malformed),
            reason => (reason.verdict(), reason),
        }
    }

    fn event(
        &self,
        claim: Option<Claim>,
        rule: Option<Location>,
        verdict: Verdict,
        reason: Reason,
        duration: Option<Duration>,
    ) -> Event {
        let (bytes_up, bytes_down) = self.flow.carried();
        // What the record says of a guest that left, see `outcome`.
        let left = (self.reason == Reason::None && reason == Reason::Malformed).then_some(LEFT);
        Event {
            at: SystemTime::now(),
            id: self.flow.id(),
            listener: self.flow.listener(),
            guest: Arc::clone(self.flow.guest()),
            source: self.flow.source(),
            original: self.original,
            claim,
            shown: self.shown.clone(),
            verdict,
            reason,
            cause: self.cause.or(left),
            rule,
            upstream: self.upstream,
            egress: self.egress,
            bytes_up,
            bytes_down,
            duration,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.account.flows.remove(&self.flow, slot);
        }
        let metrics = &self.account.metrics;
        metrics.settle(&self.flow);
        if self.cancelled {
            return;
        }
        let listener = self.flow.listener();
        let (verdict, reason) = self.outcome();
        metrics.ended(listener, verdict, reason, self.flow.guest());
        let age = self.flow.age();
        if self.upstream.is_some() {
            metrics.connection.observe(age.as_secs_f64());
        }
        // Of DNS, the log has the refusals alone: an allowed query is followed by the flow it is for.
        if listener == Listener::Dns && matches!(verdict, Verdict::Allowed | Verdict::Observed) {
            return;
        }
        let (claim, rule) = self.flow.take_facts();
        let event = Event { shown: self.shown.take(), ..self.event(claim, rule, verdict, reason, Some(age)) };
        self.account.log.push(event);
    }
}

impl Meter {
    /// Bytes from the guest were carried on.
    #[inline]
    pub fn up(&self, bytes: usize) {
        self.0.up(bytes);
    }

    /// Bytes to the guest were carried on.
    #[inline]
    pub fn down(&self, bytes: usize) {
        self.0.down(bytes);
    }
}

impl Active {
    pub(super) fn new(metrics: &Metrics, listener: Listener) -> Active {
        let gauge = metrics.active_gauge(listener).cloned();
        if let Some(gauge) = &gauge {
            gauge.inc();
        }
        Active { listener, gauge }
    }

    /// The connection came by another kind of listener than it seemed.
    pub fn set_listener(&mut self, account: &Account, listener: Listener) {
        if listener != self.listener {
            *self = Active::new(&account.metrics, listener);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.dec();
        }
    }
}
