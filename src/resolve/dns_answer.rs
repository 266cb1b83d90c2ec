//! What the reply to a guest's DNS query may contain: the addresses of one family, after they were all checked
//! against the floor. It is not a permission to dial them: a flow to the name is vetted separately.

use super::AddressKind;
use super::address_screen::VetError;
use super::answer::Answer;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses of one family that a guest may see; empty if the name has none. Only the resolver creates one.
#[derive(Clone, Debug)]
pub struct DnsAnswer {
    answer: Arc<Answer>,
    kind: AddressKind,
    ttl: Duration,
    stale: bool,
}

impl DnsAnswer {
    /// Returns the addresses, at most [`MAX_PER_FAMILY`](super::answer::MAX_PER_FAMILY).
    pub fn addresses(&self) -> &[IpAddr] {
        self.answer.family(self.kind).addresses()
    }

    /// Returns the remaining TTL; zero for a stale answer.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether it is stale because no server gave a newer answer (RFC 8767).
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Creates it from an answer that passed the screen.
    pub(super) fn of(answer: Arc<Answer>, kind: AddressKind, now: Instant) -> Result<DnsAnswer, VetError> {
        let family = answer.family(kind);
        let (ttl, stale) = (family.ttl(now), family.is_stale());
        match family.absence() {
            // There are IPv4 addresses, or the lookup would have failed. Some resolvers, such as musl's, fail a
            // whole name because of one family; that must not happen because of the less important one.
            Some(why) if !why.is_knowledge() && kind == AddressKind::V4 => Err(why.into()),
            _ => Ok(DnsAnswer { answer, kind, ttl, stale }),
        }
    }
}
