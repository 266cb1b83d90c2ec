//! The decision itself: combines the rules found for a host into one decision on a claim.

use super::guests::GuestPolicy;
use super::rule::{AddressSet, Effect, Reach, Served, Terms};
use super::rules::{Compiled, Rules};
use super::store::{RulePosition, RuleRecord};
use super::{AddressTerms, Mode, NamePermit, NameRefusal, Permit, Policy, Refusal};
use ipnet::IpNet;
use outgate_proto::identify::Claim;
use outgate_proto::name::HostName;
use outgate_proto::reason::Reason;
use outgate_proto::source::Source;
use outgate_proto::target::{Host, Protocol, Protocols};
use std::sync::Arc;

/// What one rule, whose subject matches the host, decides about a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleVerdict {
    /// Allows these protocols.
    Allows(Protocols),
    /// Denies these protocols.
    Denies(Protocols),
    /// Would allow it, except for this.
    Near(Near),
    /// Does not apply.
    Nothing,
}

/// What keeps a rule from allowing a claim. The later the variant, the nearer the rule came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Near {
    Expired,
    Port,
    Protocol,
    Ech,
}

impl Near {
    fn reason(self, spoken: Option<Protocol>) -> Reason {
        match self {
            Near::Expired => Reason::RuleExpired,
            Near::Port => Reason::PortNotAllowed,
            Near::Protocol => protocol_reason(spoken),
            Near::Ech => Reason::Ech,
        }
    }
}

/// The reason for refusing this protocol where another one may be allowed.
pub(super) fn protocol_reason(spoken: Option<Protocol>) -> Reason {
    if spoken == Some(Protocol::H2c) { Reason::H2c } else { Reason::ProtocolNotAllowed }
}

/// One claim, with the parts of the policy that apply to it.
#[derive(Debug)]
pub(super) struct Evaluation<'a> {
    pub(super) claim: &'a Claim,
    pub(super) guest_policy: &'a GuestPolicy,
    blocked: bool,
    ech_allowed: bool,
}

/// The combined verdicts of all rules so far. The result does not depend on the order of the rules, or on whether a
/// rule is added twice.
#[derive(Debug, Default)]
struct Verdicts<'a> {
    allowed: FirstRules,
    denied: FirstRules,
    near: Option<(Near, RulePosition)>,
    to: AddressScope<'a>,
    /// Some rule that allows uses `tcp://`.
    any_bytes: bool,
    /// Some rule that allows, or denies, is not yet noted as used.
    unused: Unused,
}

/// For which effect there are rules not yet noted as used.
#[derive(Debug, Default)]
struct Unused {
    allow: bool,
    deny: bool,
}

/// For each of [`Protocol::ALL`] the first rule that covers it.
#[derive(Debug, Default)]
struct FirstRules([Option<RulePosition>; Protocol::ALL.len()]);

/// The `to=` of the rules that allow.
#[derive(Debug, Default)]
enum AddressScope<'a> {
    #[default]
    Anywhere,
    One(&'a Arc<[IpNet]>),
    Several(Vec<IpNet>),
}

pub(super) fn decide(policy: &Policy, claim: &Claim) -> Result<Permit, Refusal> {
    let rules = &policy.rules;
    let evaluation = Evaluation::open(policy, claim).map_err(|reason| refusal(rules, reason, None))?;
    let mut verdicts = Verdicts::default();
    rules.matching(&claim.target.host, |record, compiled| {
        verdicts.add(rules, &record, compiled, evaluation.ask(&record, compiled));
    });

    let denied = verdicts.denied.protocols();
    let asked = claim.spoken.map_or(Protocols::ALL, Protocols::only);
    if asked.without(denied).is_empty() {
        return Err(evaluation.denied(rules, &verdicts, asked));
    }
    let listed = evaluation.guest_policy.mode != Mode::All && !verdicts.allowed.protocols().is_empty();
    let allowed = match evaluation.verdict_without_rule(&verdicts) {
        _ if listed => verdicts.allowed.protocols(),
        Ok(protocols) => protocols,
        Err((reason, position)) => return Err(refusal(rules, reason, position)),
    };
    let protocols = allowed.without(denied);
    if protocols.is_empty() {
        return Err(evaluation.denied(rules, &verdicts, allowed));
    }
    let protocols = evaluation.agreed(protocols).map_err(|reason| refusal(rules, reason, None))?;
    if verdicts.unused.allow {
        note_use(rules, &evaluation, Effect::Allow);
    }
    let position = if listed { verdicts.allowed.first(protocols) } else { None };
    Ok(Permit {
        target: claim.target.clone(),
        protocols,
        rule: position.and_then(|position| rules.location(position)),
        observed: evaluation.guest_policy.mode == Mode::Observe && !listed,
        any_bytes: verdicts.any_bytes || !listed,
        addresses: AddressTerms {
            to: if listed { verdicts.to.into_terms() } else { None },
            denied: denied_addresses(rules, claim),
        },
    })
}

/// Notes as used all the rules with this effect, not only the one that is reported: without the rules that stay
/// unused, every decision so far would have been the same. Evaluates the rules once more, but only until each has
/// been noted.
#[cold]
#[inline(never)]
fn note_use(rules: &Rules, evaluation: &Evaluation<'_>, effect: Effect) {
    rules.matching(&evaluation.claim.target.host, |record, compiled| {
        match (evaluation.ask(&record, compiled), effect) {
            (RuleVerdict::Allows(_), Effect::Allow) | (RuleVerdict::Denies(_), Effect::Deny) => {
                rules.usage().note(record.position())
            }
            _ => {}
        }
    });
}

pub(super) fn permit_name(policy: &Policy, source: &Source, name: &HostName) -> Result<NamePermit, NameRefusal> {
    let rules = &policy.rules;
    let refuse = |reason, position| NameRefusal { refusal: refusal(rules, reason, position), is_parent: false };
    if policy.unconfigured {
        return Err(refuse(Reason::NotConfigured, None));
    }
    let Some(guest_policy) = policy.guests.guest_policy(source) else {
        return Err(refuse(Reason::UnknownGuest, None));
    };
    if guest_policy.mode == Mode::None {
        return Err(refuse(Reason::ModeNone, None));
    }
    let (mut denied, mut allowed, mut open, mut expired) = (None, false, false, None);
    let mut to = AddressScope::default();
    rules.matching(&Host::Name(name.clone()), |record, compiled| {
        let position = record.position();
        match compiled.terms.effect {
            Effect::Deny if compiled.expired() || compiled.terms.reach != Reach::Everything => {}
            Effect::Deny => denied = earliest(denied, position),
            Effect::Allow if !guest_policy.sees(&record) => {}
            Effect::Allow if compiled.expired() => expired = earliest(expired, position),
            Effect::Allow => {
                allowed = true;
                match &compiled.terms.to {
                    Some(nets) => to.extend(nets),
                    None => open = true,
                }
            }
        }
    });
    if denied.is_some() {
        return Err(refuse(Reason::DeniedByRule, denied));
    }
    if !allowed && guest_policy.mode == Mode::Whitelist {
        let reason = if expired.is_some() { Reason::RuleExpired } else { Reason::NotWhitelisted };
        let is_parent = rules.allow_below(name.as_str(), |file| guest_policy.sees_file(file));
        return Err(NameRefusal { is_parent, ..refuse(reason, expired) });
    }
    if let Some(agreed) = guest_policy.agreed.as_ref().filter(|agreed| !agreed.has_name(name)) {
        return Err(NameRefusal { is_parent: agreed.has_below(name), ..refuse(Reason::NotWhitelisted, None) });
    }
    let denied = rules.denied();
    let denied = if denied.is_partial() { Arc::new(denied.whole()) } else { Arc::clone(denied) };
    Ok(NamePermit {
        name: name.clone(),
        observed: guest_policy.mode == Mode::Observe && !allowed,
        open: open || guest_policy.mode != Mode::Whitelist,
        to: if guest_policy.mode == Mode::All { None } else { to.into_terms() },
        denied,
    })
}

fn refusal(rules: &Rules, reason: Reason, position: Option<RulePosition>) -> Refusal {
    // For flows and DNS queries alike: a guest whose query was refused never opens the flow.
    if let (Reason::DeniedByRule, Some(position)) = (reason, position) {
        rules.usage().note(position);
    }
    Refusal { reason, rule: position.and_then(|position| rules.location(position)) }
}

fn earliest(so_far: Option<RulePosition>, position: RulePosition) -> Option<RulePosition> {
    Some(so_far.map_or(position, |first| first.min(position)))
}

impl<'a> Evaluation<'a> {
    /// Checks everything that does not depend on the list.
    pub(super) fn open(policy: &'a Policy, claim: &'a Claim) -> Result<Evaluation<'a>, Reason> {
        if policy.unconfigured {
            return Err(Reason::NotConfigured);
        }
        let guest_policy = policy.guests.guest_policy(&claim.source).ok_or(Reason::UnknownGuest)?;
        if guest_policy.mode == Mode::None {
            return Err(Reason::ModeNone);
        }
        let blocked = policy.is_blocked(claim.target.port);
        Ok(Evaluation { claim, guest_policy, blocked, ech_allowed: policy.ech_allowed })
    }

    /// What happens to the claim if no rule allows it.
    fn verdict_without_rule(&self, verdicts: &Verdicts<'_>) -> Result<Protocols, (Reason, Option<RulePosition>)> {
        let near = verdicts.near.map(|(near, position)| (near.reason(self.claim.spoken), Some(position)));
        if self.guest_policy.mode == Mode::Whitelist {
            return Err(near.unwrap_or((Reason::NotWhitelisted, None)));
        }
        let reason = match () {
            () if self.claim.ech && !self.ech_allowed => Reason::Ech,
            () if self.blocked => Reason::PortNotAllowed,
            () => return Ok(Protocols::ALL),
        };
        // The operator looks for a rule that fails for the same reason.
        let position = near.filter(|(same, _)| *same == reason && self.guest_policy.mode == Mode::Observe);
        Err(position.unwrap_or((reason, None)))
    }

    /// Limits what the list allows to what the guest's agreement allows.
    pub(super) fn agreed(&self, allowed: Protocols) -> Result<Protocols, Reason> {
        let Some(agreed) = &self.guest_policy.agreed else { return Ok(allowed) };
        let both = allowed.both(agreed.limit(self.claim)?);
        if both.is_empty() { Err(protocol_reason(self.claim.spoken)) } else { Ok(both) }
    }

    /// The refusal by the `deny` rules that left none of `protocols`.
    fn denied(&self, rules: &Rules, verdicts: &Verdicts<'_>, protocols: Protocols) -> Refusal {
        if verdicts.unused.deny {
            note_use(rules, self, Effect::Deny);
        }
        refusal(rules, Reason::DeniedByRule, verdicts.denied.first(protocols))
    }

    /// What does this rule decide?
    pub(super) fn ask(&self, record: &RuleRecord, compiled: &Compiled) -> RuleVerdict {
        // Taken apart, so that the compiler asks about a new field. `Verdicts::add` joins `to`.
        let Terms { effect, reach, ech_allowed, to: _, until: _ } = &compiled.terms;
        let (transport, port) = (self.claim.transport, self.claim.target.port);
        match effect {
            Effect::Deny if compiled.expired() => RuleVerdict::Nothing,
            Effect::Deny => reach.denies(transport, port).map_or(RuleVerdict::Nothing, RuleVerdict::Denies),
            Effect::Allow if !self.guest_policy.sees(record) => RuleVerdict::Nothing,
            Effect::Allow => {
                match (self.weigh(reach.serves(transport, port), *ech_allowed), compiled.expired()) {
                    (RuleVerdict::Allows(_) | RuleVerdict::Near(Near::Ech), true) => RuleVerdict::Near(Near::Expired),
                    // A rule that has expired and would not have allowed this either counts as removed.
                    (_, true) => RuleVerdict::Nothing,
                    (verdict, false) => verdict,
                }
            }
        }
    }

    fn weigh(&self, served: Option<Served>, ech_allowed: bool) -> RuleVerdict {
        let Some(served) = served.filter(|served| served.names_port || !self.blocked) else {
            return RuleVerdict::Near(Near::Port);
        };
        match self.claim.spoken {
            Some(protocol) if !served.protocols.contains(protocol) => RuleVerdict::Near(Near::Protocol),
            _ if self.claim.ech && !ech_allowed && !self.ech_allowed => RuleVerdict::Near(Near::Ech),
            _ => RuleVerdict::Allows(served.protocols),
        }
    }
}

impl<'a> Verdicts<'a> {
    fn add(&mut self, rules: &Rules, record: &RuleRecord, compiled: &'a Compiled, verdict: RuleVerdict) {
        let position = record.position();
        match verdict {
            RuleVerdict::Allows(protocols) => {
                self.unused.allow |= !rules.usage().contains(position);
                self.allowed.add(protocols, position);
                self.any_bytes |= matches!(compiled.terms.reach, Reach::Tcp(_));
                if let Some(to) = &compiled.terms.to {
                    self.to.extend(to);
                }
            }
            RuleVerdict::Denies(protocols) => {
                self.unused.deny |= !rules.usage().contains(position);
                self.denied.add(protocols, position);
            }
            RuleVerdict::Near(near) => {
                self.near = match self.near {
                    Some((nearest, first)) if nearest > near || (nearest == near && first <= position) => {
                        Some((nearest, first))
                    }
                    _ => Some((near, position)),
                };
            }
            RuleVerdict::Nothing => {}
        }
    }
}

impl FirstRules {
    fn add(&mut self, protocols: Protocols, position: RulePosition) {
        for (first, protocol) in self.0.iter_mut().zip(Protocol::ALL) {
            if protocols.contains(protocol) {
                *first = earliest(*first, position);
            }
        }
    }

    fn protocols(&self) -> Protocols {
        let spoken_of = self.0.iter().zip(Protocol::ALL).filter(|(first, _)| first.is_some());
        spoken_of.fold(Protocols::NONE, |all, (_, protocol)| all.union(Protocols::only(protocol)))
    }

    /// The first rule that covers any of `protocols`.
    fn first(&self, protocols: Protocols) -> Option<RulePosition> {
        self.0
            .iter()
            .zip(Protocol::ALL)
            .filter(|(_, protocol)| protocols.contains(*protocol))
            .filter_map(|(first, _)| *first)
            .min()
    }
}

impl<'a> AddressScope<'a> {
    fn extend(&mut self, more: &'a Arc<[IpNet]>) {
        match self {
            AddressScope::Anywhere => *self = AddressScope::One(more),
            AddressScope::One(one) if *one == more => {}
            AddressScope::One(one) => *self = AddressScope::Several(one.iter().chain(more.iter()).copied().collect()),
            AddressScope::Several(several) => several.extend_from_slice(more),
        }
    }

    fn into_terms(self) -> Option<Arc<[IpNet]>> {
        match self {
            AddressScope::Anywhere => None,
            AddressScope::One(one) => Some(Arc::clone(one)),
            AddressScope::Several(mut several) => {
                several.sort_unstable();
                several.dedup();
                Some(several.into())
            }
        }
    }
}

/// The `deny` rules of addresses that apply to a name's addresses. If the guest asked for an address itself, they
/// were applied already.
fn denied_addresses(rules: &Rules, claim: &Claim) -> Arc<AddressSet> {
    let denied = rules.denied();
    match claim.target.host {
        Host::Name(_) if !denied.is_partial() => Arc::clone(denied),
        Host::Name(_) => Arc::new(denied.narrowed(claim.transport, claim.target.port, claim.spoken)),
        Host::Addr(_) => Arc::clone(rules.none_denied()),
    }
}
