//! What a guest's DNS query may be told: the addresses of one family, after the whole of them was
//! held against the floor. It is no leave to dial them: a flow to the name is vetted for itself.

use super::AddressKind;
use super::address_screen::VetError;
use super::answer::Answer;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses of one family that a guest may be told; none where the name has none. Only the resolver
/// makes one.
#[derive(Clone, Debug)]
pub struct DnsAnswer {
    answer: Arc<Answer>,
    kind: AddressKind,
    ttl: Duration,
    stale: bool,
}

impl DnsAnswer {
    /// The addresses, at most [`MAX_PER_FAMILY`](super::answer::MAX_PER_FAMILY).
    pub fn addresses(&self) -> &[IpAddr] {
        self.answer.family(self.kind).addresses()
    }

    /// What is left of the TTL; zero of a stale answer.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// No server would tell anything newer (RFC 8767).
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Takes an answer that passed the screen.
    pub(super) fn of(answer: Arc<Answer>, kind: AddressKind, now: Instant) -> Result<DnsAnswer, VetError> {
        let family = answer.family(kind);
        let (ttl, stale) = (family.ttl(now), family.is_stale());
        match family.absence() {
            // There are IPv4 addresses, or this would have been the outcome of the lookup. A resolver that
            // fails a whole name over one family, as musl's does, must not do so for the lesser one.
            Some(why) if !why.is_knowledge() && kind == AddressKind::V4 => Err(why.into()),
            _ => Ok(DnsAnswer { answer, kind, ttl, stale }),
        }
    }
}
