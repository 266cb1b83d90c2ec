//! The decision: [`Policy::decide`] turns a [`Claim`] into a [`Permit`] or a [`Refusal`].
//!
//! Pure: no IO, no clock, no async, no log. A `Policy` is an immutable snapshot, except for the bits that record
//! which rules were used. A reload makes a new one and swaps it. Only this module can make a `Permit`.
//!
//! Two layers: [`Rules`], the compiled list, is made by a [`Builder`] when files change and is shared by `Arc`. A
//! `Policy` adds the configuration to it (modes, guests and the files that apply to each) and is cheap to make again.

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::restriction,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "a test that panics fails, as it should"
    ),
    warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)
)]

mod agreement;
pub mod cooperate;
mod evaluation;
mod globs;
mod guests;
mod names;
mod near_miss;
mod nets;
mod parents;
mod ports;
mod regexes;
pub mod rule;
mod rules;
mod store;
mod usage;

pub use agreement::Agreement;
pub use guests::{Identity, PolicyError};
pub use rules::{BuildError, Builder, FileId, RuleKind, Rules};
pub use usage::Mark;

use ipnet::IpNet;
use outgate_proto::identify::Claim;
use outgate_proto::name::HostName;
use outgate_proto::reason::Reason;
use outgate_proto::source::Source;
use outgate_proto::target::{Protocols, Target};
use std::net::IpAddr;
use std::sync::Arc;

/// `mode` of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What a rule allows passes.
    #[default]
    Whitelist,
    /// As `Whitelist`, but what no rule allows passes too and is reported as observed.
    Observe,
    /// Everything passes, except for `deny` rules, floor, blocked ports and ECH.
    All,
    /// Nothing passes.
    None,
}

impl Mode {
    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Whitelist => "whitelist",
            Mode::Observe => "observe",
            Mode::All => "all",
            Mode::None => "none",
        }
    }
}

/// How an undeclared source is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The files that no guest names apply to it.
    Shared,
    /// Refused.
    None,
}

/// One `[[guest]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSettings {
    /// Its name, unique; a metric label.
    pub name: String,
    /// The addresses that belong to this guest.
    pub addresses: Vec<IpNet>,
    /// Its mode if it differs from the daemon's.
    pub mode: Option<Mode>,
    /// The files (names within the whitelist dir) that apply to it; `None`: all files that no guest names.
    pub files: Option<Vec<String>>,
    /// The guest reaches nothing outside of this; `None`: no such limit.
    pub agreed: Option<Arc<Agreement>>,
}

/// The part of the configuration that the decision needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySettings {
    /// The mode of guests that do not have their own.
    pub mode: Mode,
    /// `ech = "allow"`: encrypted_client_hello is allowed for every rule.
    pub ech_allowed: bool,
    /// The declared guests.
    pub guests: Vec<GuestSettings>,
    /// How the other sources are treated.
    pub unknown: Unknown,
    /// Ports that are refused unless the deciding rule names that very port.
    pub blocked_ports: Vec<u16>,
}

/// The policy in force: a compiled list with the configuration applied to it.
#[derive(Debug)]
pub struct Policy {
    rules: Arc<Rules>,
    guests: guests::Guests,
    ech_allowed: bool,
    /// Sorted.
    blocked_ports: Box<[u16]>,
    /// There is no usable configuration.
    unconfigured: bool,
}

impl Policy {
    /// Applies `settings` to `rules`. The time depends only on the number of guests and files.
    ///
    /// # Errors
    /// When a guest names a file that the list does not have, or two guests share a name or address.
    pub fn new(rules: Arc<Rules>, settings: PolicySettings) -> Result<Policy, PolicyError> {
        let mut blocked_ports = settings.blocked_ports.clone();
        blocked_ports.sort_unstable();
        let guests = guests::Guests::new(&rules, &settings)?;
        let blocked_ports = blocked_ports.into();
        Ok(Policy { rules, guests, ech_allowed: settings.ech_allowed, blocked_ports, unconfigured: false })
    }

    /// The policy without a usable configuration: everybody is refused, with [`Reason::NotConfigured`].
    ///
    /// # Errors
    /// As for [`Policy::new`], with no files at all.
    pub fn unconfigured(settings: PolicySettings) -> Result<Policy, PolicyError> {
        Ok(Policy { unconfigured: true, ..Policy::new(Arc::default(), settings)? })
    }

    /// May the flow pass?
    ///
    /// While [`Claim::spoken`] is `None`, the permit lists the permitted protocols. Decide again once the protocol
    /// is known, because another rule, or the mode `observe`, may then decide.
    pub fn decide(&self, claim: &Claim) -> Result<Permit, Refusal> {
        evaluation::decide(self, claim)
    }

    /// May the guest look up `name` in DNS: could some rule allow it on some port? A flow to the name is
    /// decided separately.
    pub fn permit_name(&self, source: &Source, name: &HostName) -> Result<NamePermit, NameRefusal> {
        evaluation::permit_name(self, source, name)
    }

    /// Could anything that the guest may show open TCP `port` for it? If not, every stream would be
    /// refused, whatever it shows.
    pub fn could_allow_port(&self, source: &Source, port: u16) -> bool {
        self.could_allow(source, port, false)
    }

    /// As [`could_allow_port`](Self::could_allow_port), for any bytes: could a protocol pass there whose server
    /// speaks first?
    pub fn could_allow_raw(&self, source: &Source, port: u16) -> bool {
        self.could_allow(source, port, true)
    }

    fn could_allow(&self, source: &Source, port: u16, raw: bool) -> bool {
        let Some(guest_policy) = self.guests.guest_policy(source) else { return false };
        if guest_policy.agreed.as_ref().is_some_and(|agreed| !agreed.opens(port, raw)) {
            return false;
        }
        let blocked = self.is_blocked(port);
        let open = self.rules.open_ports();
        let listed = || if raw { open.contains_raw(port, blocked) } else { open.contains(port, blocked) };
        match guest_policy.mode {
            Mode::None => false,
            Mode::Whitelist => listed(),
            Mode::All | Mode::Observe => !blocked || listed(),
        }
    }

    /// The rule that is nearest to the claim, and what would let the claim through; `None` if nothing is near, or
    /// the flow is allowed. Slower than [`decide`](Self::decide), but bounded.
    pub fn near_miss(&self, claim: &Claim) -> Option<NearMiss> {
        near_miss::near_miss(self, claim)
    }

    /// Finds out which guest is at `address`; `certified` is the name in its verified certificate, if it showed one.
    /// This policy need not search for the source again.
    pub fn source_at(&self, address: IpAddr, certified: Option<Arc<str>>) -> Source {
        self.guests.source_at(address, certified)
    }

    /// Did this policy identify the source?
    pub fn has_identified(&self, source: &Source) -> bool {
        self.guests.has_identified(source)
    }

    /// Which guest is `source`?
    pub fn guest<'a>(&'a self, source: &'a Source) -> Identity<'a> {
        self.guests.of(source)
    }

    /// Is a guest of this name declared?
    pub fn names_guest(&self, name: &str) -> bool {
        self.guests.has(name)
    }

    /// The compiled list.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    fn is_blocked(&self, port: u16) -> bool {
        self.blocked_ports.binary_search(&port).is_ok()
    }
}

/// The position of a rule: `file:line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// File name within the whitelist dir.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What the dialled address must satisfy beyond the floor; checked by `resolve`.
#[derive(Clone, Debug, Default)]
pub struct AddressTerms {
    /// From `to=`: only these addresses, with the floor lifted for them.
    pub to: Option<Arc<[IpNet]>>,
    /// The `deny` rules of addresses that apply to this flow.
    pub denied: Arc<rule::AddressSet>,
}

/// Permission to resolve and dial one target. Only [`Policy::decide`] makes one.
#[derive(Clone, Debug)]
pub struct Permit {
    target: Target,
    protocols: Protocols,
    rule: Option<Location>,
    observed: bool,
    any_bytes: bool,
    addresses: AddressTerms,
}

impl Permit {
    /// Where the flow may go.
    pub fn target(&self) -> &Target {
        &self.target
    }
    /// The protocols that are permitted there.
    pub fn protocols(&self) -> Protocols {
        self.protocols
    }
    /// The rule that allows it; `None` in the mode `all`, and in `observe` where no rule does.
    pub fn rule(&self) -> Option<&Location> {
        self.rule.as_ref()
    }
    /// Permitted only by mode `observe`.
    pub fn observed(&self) -> bool {
        self.observed
    }
    /// A rule uses `tcp://`, or no rule is required: bytes that are neither TLS nor HTTP may be anything.
    pub fn any_bytes(&self) -> bool {
        self.any_bytes
    }
    /// What the address must satisfy.
    pub fn addresses(&self) -> &AddressTerms {
        &self.addresses
    }
}

/// A refusal by the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The rule that decided, if any (a `deny` rule, an expired one, one for another port).
    pub rule: Option<Location>,
}

/// Permission to look up one name and to give its addresses to a guest, but not to dial them. Only
/// [`Policy::permit_name`] makes one.
#[derive(Clone, Debug)]
pub struct NamePermit {
    name: HostName,
    observed: bool,
    open: bool,
    to: Option<Arc<[IpNet]>>,
    denied: Arc<rule::AddressSet>,
}

impl NamePermit {
    /// The name that may be looked up.
    pub fn name(&self) -> &HostName {
        &self.name
    }
    /// Permitted only by mode `observe`.
    pub fn observed(&self) -> bool {
        self.observed
    }
    /// All of its addresses together must satisfy one of these terms, because a rule with `to=` may allow the name
    /// on one port and a rule without it on another.
    pub fn terms(&self) -> impl Iterator<Item = AddressTerms> + '_ {
        let within =
            self.to.iter().map(|to| AddressTerms { to: Some(Arc::clone(to)), denied: Arc::clone(&self.denied) });
        within.chain(self.open.then(|| AddressTerms { to: None, denied: Arc::clone(&self.denied) }))
    }
}

/// Why a guest may not look up a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRefusal {
    /// The refusal.
    pub refusal: Refusal,
    /// The guest may look up some name below this one, so the answer must not be that this one does not exist (RFC
    /// 8020).
    pub is_parent: bool,
}

/// The rule that is nearest to what was refused, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// Its position; `None` if the cause is not a rule, but the guest's agreement.
    pub rule: Option<Location>,
    /// Why it does not match and what would, e.g. "`*.ipfs.io` allows one label only; `.ipfs.io` would match".
    pub advice: String,
}

#[cfg(test)]
mod tests;
