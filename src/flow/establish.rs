//! The one way to an upstream: decide, resolve, dial, confirm. Everything that a guest can ask for goes through here.

use super::connection::Connection;
use super::refuse::Refused;
use super::tunnel::OpenTunnel;
use crate::account::{Limit, Record};
use crate::dial::{self, Upstream};
use crate::guest::Guest;
use crate::identify::{Claim, Evidence};
use crate::listener::ListenerLabel;
use crate::policy::Permit;
use crate::reason::Reason;
use crate::relay::close;
use crate::services::Services;
use std::net::SocketAddr;
use std::sync::Arc;

/// A flow that the policy permits.
pub(super) struct PermittedFlow {
    pub(super) record: Record,
    pub(super) claim: Claim,
    pub(super) permit: Permit,
}

/// Opens a tunnel for `claim`, whose record is `record`. `unnamed` is the reason to give for a stream that shows no
/// name and whose address no rule allows; see [`decide`].
pub(super) async fn establish(
    connection: &Connection,
    listener: ListenerLabel,
    claim: Claim,
    record: Record,
    unnamed: Reason,
) -> Result<Box<OpenTunnel>, Box<Refused>> {
    let flow = decide(&connection.services, claim, record, unnamed)?;
    reach(connection, listener, flow).await
}

/// Opens a tunnel for a flow that is permitted already.
pub(super) async fn reach(
    connection: &Connection,
    listener: ListenerLabel,
    mut flow: PermittedFlow,
) -> Result<Box<OpenTunnel>, Box<Refused>> {
    match flow.reach(&connection.services, &connection.guest).await {
        Ok(upstream) => Ok(Box::new(OpenTunnel { listener, flow, upstream })),
        Err(reason) => Err(flow.refused(reason)),
    }
}

/// Decides on the policy in force, and enters the decision in the record.
///
/// `unnamed` is the reason to give in place of `not_whitelisted` where only an address was asked for: a stream that
/// must itself show a name would be allowed with the right one.
pub(super) fn decide(
    services: &Services,
    claim: Claim,
    mut record: Record,
    unnamed: Reason,
) -> Result<PermittedFlow, Box<Refused>> {
    match permit(services, &claim, &mut record, unnamed) {
        Ok(permit) => Ok(PermittedFlow { record, claim, permit }),
        Err(reason) => Err(Refused::noted(record, reason, Some(claim.target))),
    }
}

/// Refuses what was just found to be refused, with the decision's reason in the record. If another policy has come
/// into force since and permits it, the reason is `otherwise`.
pub(super) fn decide_refusal(
    services: &Services,
    claim: Claim,
    record: Record,
    unnamed: Reason,
    otherwise: Reason,
) -> Box<Refused> {
    match decide(services, claim, record, unnamed) {
        Ok(flow) => flow.refused(otherwise),
        Err(refused) => refused,
    }
}

fn permit(services: &Services, claim: &Claim, record: &mut Record, unnamed: Reason) -> Result<Permit, Reason> {
    let start = std::time::Instant::now();
    record.claim(claim);
    let decision = services.snapshot.load().policy.decide(claim);
    record.decided_in(start.elapsed());
    // A flow that was permitted before the log failed is decided again and goes on.
    let goes_on = record.is_permitted();
    let permit = decision.map_err(|refusal| {
        let reason = match refusal.reason {
            Reason::NotWhitelisted if claim.evidence == Evidence::Address => unnamed,
            reason => reason,
        };
        record.refuse(reason, refusal.rule);
        reason
    })?;
    record.permit(&permit);
    if services.account.refuses() && !goes_on {
        record.refuse(Reason::LogFailed, None);
        return Err(Reason::LogFailed);
    }
    Ok(permit)
}

impl PermittedFlow {
    /// Ends it for this reason.
    pub(super) fn refused(self, reason: Reason) -> Box<Refused> {
        Refused::new(self.record, reason, Some(self.claim.target))
    }

    /// Resolves and dials the target. If that fails, the reason is in the record.
    pub(super) async fn reach(&mut self, services: &Services, guest: &Guest) -> Result<Upstream, Reason> {
        let PermittedFlow { record, permit, .. } = self;
        let flow = Arc::clone(record.flow());
        let start = std::time::Instant::now();
        let vetted = match services.resolver.try_vet(permit) {
            Some(known) => known,
            None => {
                let answer = tokio::select! {
                    biased;
                    answer = services.resolver.vet(permit, services.may_look_up(guest)) => answer,
                    reason = flow.revoked() => {
                        record.refuse(reason, None);
                        return Err(reason);
                    }
                };
                record.resolved_in(start.elapsed());
                answer
            }
        };
        let vetted = vetted.map_err(|error| {
            match error.reason() {
                reason @ Reason::LimitNames => {
                    services.account.metrics().over(Limit::NewNames);
                    record.refuse(Limit::NewNames.why(reason), None);
                }
                reason => record.refuse(reason, None),
            }
            error.reason()
        })?;
        let start = std::time::Instant::now();
        let settings = services.snapshot.load().dial;
        let dialled = tokio::select! {
            biased;
            dialled = dial::connect(&vetted, &settings) => dialled,
            reason = flow.revoked() => {
                record.refuse(reason, None);
                return Err(reason);
            }
        };
        match dialled {
            Ok(upstream) => {
                record.dialled_in(start.elapsed());
                self.confirm(services, upstream.peer, upstream.local)
                    .inspect_err(|_| close::reset(&upstream.stream))?;
                Ok(upstream)
            }
            Err(error) => {
                record.refuse(error.reason(), None);
                Err(error.reason())
            }
        }
    }

    /// Enters the connected address in the record, and decides again if a reload came since the decision.
    ///
    /// A reload judges a live flow by its connected address, so it misses a flow that has none yet. The record gets
    /// the address before the policy is read here, so either the reload or this check finds the flow.
    pub(super) fn confirm(&mut self, services: &Services, peer: SocketAddr, local: SocketAddr) -> Result<(), Reason> {
        self.record.upstream(peer, local);
        if !self.record.was_searched() {
            return Ok(());
        }
        let (reason, rule) = match services.snapshot.load().policy.decide(&self.claim) {
            Ok(permit) => match services.resolver.screen(&permit, &[peer.ip()]) {
                Ok(()) => return Ok(()),
                Err(error) => (error.reason(), None),
            },
            Err(refusal) => (refusal.reason, refusal.rule),
        };
        tracing::debug!(%reason, "the list changed while a flow was connecting");
        self.record.refuse(Reason::Revoked, rule);
        Err(Reason::Revoked)
    }

    /// Decides again, now that more is known, and checks the connected address against the new permit. If it is
    /// refused, the reason is in the record.
    pub(super) fn decide_again(&mut self, services: &Services, claim: &Claim, peer: SocketAddr) -> Result<(), Reason> {
        let permit = permit(services, claim, &mut self.record, Reason::NotWhitelisted)?;
        if let Err(error) = services.resolver.screen(&permit, &[peer.ip()]) {
            self.record.refuse(error.reason(), None);
            return Err(error.reason());
        }
        self.permit = permit;
        Ok(())
    }
}
