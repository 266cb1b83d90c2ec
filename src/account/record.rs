//! The record of one flow: the flow reports to it, and its drop closes it.

use super::event::Event;
use super::{Account, ListenerLabel, Metrics};
use crate::endpoint::Endpoint;
use crate::identify::Claim;
use crate::live::Flow;
use crate::policy::{Location, Permit};
use crate::reason::{Reason, Verdict, Why};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// A guest's raw text is kept only up to this many bytes; the log also cuts it at 253.
const KEEP_SHOWN: usize = 253;

/// The cause if the guest never asked for anything.
const LEFT: &str = "the guest left before it showed what it wants";

/// The record of one flow, plain-HTTP request or DNS query, from accept to end. Dropping it ends it: the
/// metrics count it and its log line is queued. A record that was neither permitted nor refused counts as
/// refused, `malformed`: the guest left before it showed what it wants.
pub struct Record {
    account: Arc<Account>,
    flow: Arc<Flow>,
    slot: Option<u32>,
    /// The number of announced searches for flows to revoke when it made its claim.
    searches: u32,
    permitted: bool,
    observed: bool,
    cancelled: bool,
    /// Whether its line as a long-lived flow was queued.
    announced: AtomicBool,
    reason: Reason,
    cause: Option<&'static str>,
    shown: Option<Box<[u8]>>,
    original: Option<Endpoint>,
    upstream: Option<Endpoint>,
    egress: Option<Endpoint>,
}

/// Counts a connection as open while it lives.
pub struct Active {
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

    /// Sets the original destination of the guest's packets, before they were redirected here.
    pub fn original(&mut self, original: SocketAddr) {
        self.original = Some(original.into());
    }

    /// Sets what the flow asks for, as far as it is known now, and adds the flow to the table of live flows.
    /// Call it before each decision, so that a list that changes meanwhile finds the flow.
    pub fn claim(&mut self, claim: &Claim) {
        self.searches = self.account.live.searches();
        self.flow.set_claim(claim.clone());
        if self.slot.is_none() && self.flow.listener() != ListenerLabel::Dns {
            self.slot = Some(self.account.live.insert(&self.flow));
        }
    }

    /// Whether [`LiveFlows::revoke_where`](crate::live::LiveFlows::revoke_where) announced a search after the claim.
    /// That search may have missed this flow, if the flow was not connected yet. A search announced after the call of
    /// [`upstream`](Self::upstream) finds the address, since both lock the flow.
    pub fn was_searched(&self) -> bool {
        self.account.live.searches() != self.searches
    }

    /// Stores what the guest wrote as its destination if it is not a valid claim. Any bytes: the log escapes
    /// and cuts them.
    pub fn shown(&mut self, text: &[u8]) {
        self.shown = Some(text.iter().copied().take(KEEP_SHOWN).collect());
    }

    /// Whether the policy has already permitted it.
    pub fn is_permitted(&self) -> bool {
        self.permitted
    }

    /// Records that the policy permitted it.
    pub fn permit(&mut self, permit: &Permit) {
        self.permitted_by(permit.rule().cloned(), permit.observed());
    }

    /// Records how long the policy took to decide.
    pub fn decided_in(&self, time: Duration) {
        if !self.is_of_a_probe() {
            self.account.metrics.decision.observe(time.as_secs_f64());
        }
    }

    /// Records how long the resolver took to answer.
    pub fn resolved_in(&self, time: Duration) {
        if !self.is_of_a_probe() {
            self.account.metrics.resolve.observe(time.as_secs_f64());
        }
    }

    /// Records how long connecting to the upstream took.
    pub fn dialled_in(&self, time: Duration) {
        if !self.is_of_a_probe() {
            self.account.metrics.dial.observe(time.as_secs_f64());
        }
    }

    /// Records that it was refused, failed, or was closed early. The first reason stays; `rule` is the rule
    /// that decided, if any.
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

    /// Records that it is connected to `peer`, from `local`.
    pub fn upstream(&mut self, peer: SocketAddr, local: SocketAddr) {
        self.upstream = Some(peer.into());
        self.flow.connected(peer.into());
        self.egress = Some(local.into());
    }

    /// Returns the flow as it stands in the table of live flows, to wait for its revocation.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Queues the line of a flow that lives longer than 60 s; its `duration_ms` is null. Only the first call
    /// queues it.
    pub fn still_open(&self) {
        if self.announced.swap(true, Ordering::Relaxed) || self.is_of_a_probe() {
            return;
        }
        let (claim, rule) = self.flow.facts();
        let (verdict, reason) = self.outcome();
        self.account.log.push(self.event(claim, rule, verdict, reason, None));
    }

    /// Ends the record without counting or logging it: the connection ended before its first byte.
    pub fn cancel(mut self) {
        self.cancelled = true;
    }

    fn is_of_a_probe(&self) -> bool {
        self.flow.guest().is_probe
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
        // The cause for a guest that left early, see `outcome`.
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
            self.account.live.remove(&self.flow, slot);
        }
        let metrics = &self.account.metrics;
        metrics.settle(&self.flow);
        if self.cancelled || self.is_of_a_probe() {
            return;
        }
        let listener = self.flow.listener();
        let (verdict, reason) = self.outcome();
        metrics.ended(listener, verdict, reason, self.flow.guest());
        let age = self.flow.age();
        if self.upstream.is_some() {
            metrics.connection.observe(age.as_secs_f64());
        }
        // For DNS the log has only the refusals: an allowed query is followed by the flow it is for.
        if listener == ListenerLabel::Dns && matches!(verdict, Verdict::Allowed | Verdict::Observed) {
            return;
        }
        let (claim, rule) = self.flow.take_facts();
        let event = Event { shown: self.shown.take(), ..self.event(claim, rule, verdict, reason, Some(age)) };
        self.account.log.push(event);
    }
}

impl Active {
    pub(super) fn new(metrics: &Metrics, listener: ListenerLabel) -> Active {
        let gauge = metrics.active_gauge(listener).cloned();
        if let Some(gauge) = &gauge {
            gauge.inc();
        }
        Active { gauge }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.dec();
        }
    }
}
