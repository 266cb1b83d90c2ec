//! Judges addresses by the floor, by what lifts it, and by what nothing lifts. An answer is judged as a whole,
//! because one that mixes public and private addresses is more often an attack than a mistake.

use super::answer::{Answer, LookupError};
use super::locality::{FRESH, Localities, Locality};
use super::{AddressKind, FloorSettings, Vetted, floor};
use crate::policy::{AddressTerms, NamePermit};
use crate::reason::Reason;
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Instant;

/// Why a permit led to no address. The text is for the operator: it contains addresses, which a guest must not see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VetError {
    /// The name has no addresses, or no server could answer.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// An address lies in a special-purpose range.
    #[error("{address} is {range} ({document})")]
    SpecialPurpose {
        /// The address.
        address: IpAddr,
        /// The range's name in the registry.
        range: &'static str,
        /// The document that reserves it.
        document: &'static str,
    },
    /// An address of a declared guest.
    #[error("{0} belongs to a guest")]
    Guest(IpAddr),
    /// An address of this machine.
    #[error("{0} belongs to this machine")]
    Own(IpAddr),
    /// One of outgate's own listeners.
    #[error("outgate itself listens on {0}")]
    Listener(IpAddr),
    /// An address outside of the rule's `to=`.
    #[error("{0} is not in to= of the rule")]
    OutsideTo(IpAddr),
    /// A `deny` rule for addresses contains it.
    #[error("{0} is denied by a rule")]
    Denied(IpAddr),
    /// The kernel could not tell whose address it is.
    #[error("it is not known whether {0} belongs to this machine: {1}")]
    Undecided(IpAddr, std::io::ErrorKind),
}

impl VetError {
    /// Returns the reason for the guest and the metrics.
    pub fn reason(&self) -> Reason {
        match self {
            VetError::Lookup(LookupError::Timeout) => Reason::Timeout,
            VetError::Lookup(LookupError::Crowded) => Reason::LimitNames,
            VetError::Lookup(_) | VetError::Undecided(..) => Reason::ResolveFailed,
            VetError::Denied(_) => Reason::DeniedByRule,
            VetError::SpecialPurpose { .. }
            | VetError::Guest(_)
            | VetError::Own(_)
            | VetError::Listener(_)
            | VetError::OutsideTo(_) => Reason::AddressFloor,
        }
    }
}

/// Everything that is needed to judge an address at one moment.
pub(super) struct AddressScreen<'a> {
    pub(super) floor: &'a FloorSettings,
    pub(super) generation: u64,
    pub(super) localities: &'a Localities,
    pub(super) now: Instant,
    /// Milliseconds since the resolver's start, for [`Clearance`](super::answer::Clearance).
    pub(super) clock: u64,
}

impl AddressScreen<'_> {
    /// Judges a whole answer and returns its addresses in the order in which to try them.
    pub(super) fn vet(&self, answer: &Answer, port: u16, terms: &AddressTerms) -> Result<Vetted, VetError> {
        let fresh = u64::try_from(FRESH.as_millis()).unwrap_or(0);
        let cleared = match answer.clearance().get(self.generation, self.clock, fresh) {
            Some(v6_first) => Some(v6_first),
            None => self.clear(answer),
        };
        match cleared {
            // Clear of the floor and of the listeners, whatever the permit says; only the permit is left to check.
            Some(_) if terms.to.is_none() => {
                answer.addresses().try_for_each(|address| not_denied(address, terms))?;
            }
            _ => answer.addresses().try_for_each(|address| self.check(address, port, terms))?,
        }
        let v6_first = cleared.unwrap_or_else(|| self.is_routed(answer));
        let vetted = in_order(answer, port, v6_first);
        if vetted.addresses().is_empty() { Err(LookupError::NoAddresses.into()) } else { Ok(vetted) }
    }

    /// Checks whether a guest may see the answer's addresses of this family. All of them together must satisfy
    /// one of the permit's terms.
    pub(super) fn screen_family(
        &self,
        answer: &Answer,
        kind: AddressKind,
        permit: &NamePermit,
    ) -> Result<(), VetError> {
        let fresh = u64::try_from(FRESH.as_millis()).unwrap_or(0);
        let cleared =
            answer.clearance().get(self.generation, self.clock, fresh).or_else(|| self.clear(answer)).is_some();
        let addresses = answer.family(kind).addresses();
        let mut refused = Err(VetError::Lookup(LookupError::NoAddresses));
        for terms in permit.terms() {
            refused = addresses.iter().try_for_each(|address| match cleared && terms.to.is_none() {
                true => not_denied(*address, &terms),
                // A name has no port. Addresses of outgate's own listeners are refused anyway as this machine's.
                false => self.check(*address, 0, &terms),
            });
            if refused.is_ok() {
                break;
            }
        }
        refused
    }

    /// Judges one address.
    pub(super) fn check(&self, address: IpAddr, port: u16, terms: &AddressTerms) -> Result<(), VetError> {
        // Connecting to the unspecified address reaches this machine's loopback, whatever a rule says.
        if address.to_canonical().is_unspecified() {
            return Err(VetError::Own(address));
        }
        if self.is_listener(address, port)? {
            return Err(VetError::Listener(address));
        }
        not_denied(address, terms)?;
        if let Some(to) = &terms.to {
            return if holds(to, address) { Ok(()) } else { Err(VetError::OutsideTo(address)) };
        }
        if holds(&self.floor.permitted, address) {
            return Ok(());
        }
        if let Some((range, document)) = floor::special_purpose(address) {
            return Err(VetError::SpecialPurpose { address, range, document });
        }
        if holds(&self.floor.guests, address) {
            return Err(VetError::Guest(address));
        }
        match self.locality(address)? {
            Locality::Ours => Err(VetError::Own(address)),
            Locality::Elsewhere | Locality::Unroutable => Ok(()),
        }
    }

    /// Checks whether every address of the answer is public, foreign and not ours, so that no permit is needed.
    /// If so, it records that and returns whether IPv6 goes first.
    fn clear(&self, answer: &Answer) -> Option<bool> {
        let clear = answer.addresses().all(|address| {
            floor::special_purpose(address).is_none()
                && !holds(&self.floor.guests, address)
                && !self.floor.listeners.iter().any(|listener| listener.ip() == address)
                && matches!(self.locality(address), Ok(Locality::Elsewhere | Locality::Unroutable))
        });
        if !clear {
            return None;
        }
        let v6_first = self.is_routed(answer);
        answer.clearance().set(self.generation, self.clock, v6_first);
        Some(v6_first)
    }

    /// Whether the answer has an IPv6 address with a route to it.
    fn is_routed(&self, answer: &Answer) -> bool {
        answer
            .v6()
            .addresses()
            .first()
            .is_some_and(|address| matches!(self.locality(*address), Ok(Locality::Elsewhere | Locality::Ours)))
    }

    fn is_listener(&self, address: IpAddr, port: u16) -> Result<bool, VetError> {
        let canonical = address.to_canonical();
        let mut candidates = self.floor.listeners.iter().filter(|listener| listener.port() == port).peekable();
        if candidates.peek().is_none() {
            return Ok(false);
        }
        let mut any_own = false;
        for listener in candidates {
            if listener.ip().to_canonical() == canonical {
                return Ok(true);
            }
            any_own |= listener.ip().is_unspecified();
        }
        Ok(any_own && self.locality(address)? == Locality::Ours)
    }

    fn locality(&self, address: IpAddr) -> Result<Locality, VetError> {
        self.localities.of(address, self.now).map_err(|error| VetError::Undecided(address, error.kind()))
    }
}

fn not_denied(address: IpAddr, terms: &AddressTerms) -> Result<(), VetError> {
    if terms.denied.contains(address) { Err(VetError::Denied(address)) } else { Ok(()) }
}

fn holds(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// Interleaves the families (RFC 8305 §4). Without a route IPv6 comes last, in case the kernel's view is wrong
/// or changes.
fn in_order(answer: &Answer, port: u16, v6_first: bool) -> Vetted {
    let (v4, v6) = (answer.v4().addresses(), answer.v6().addresses());
    if v6.is_empty() {
        return Vetted::new(v4.iter().copied(), port);
    }
    if !v6_first {
        return Vetted::new(v4.iter().chain(v6).copied(), port);
    }
    let longest = v4.len().max(v6.len());
    let pairs = (0..longest).flat_map(|index| [v6.get(index), v4.get(index)]);
    Vetted::new(pairs.flatten().copied(), port)
}
