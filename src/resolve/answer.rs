//! What is known of a name: its addresses by family with their lifetimes, or why there are none.

use super::AddressKind;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most addresses kept of one family. The rest of a longer answer is neither judged nor dialled.
pub const MAX_PER_FAMILY: usize = 64;

/// How long after its TTL an answer may still be used while no server answers (RFC 8767 §5 suggests one to
/// three days at most).
const STALE_FOR: Duration = Duration::from_secs(86_400);

/// The TTL shown for names of the hosts file, which have none.
const HOSTS_TTL: Duration = Duration::from_secs(60);

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// NXDOMAIN (RFC 8020).
    #[error("the name does not exist")]
    NoSuchName,
    /// NODATA for both families (RFC 2308 §2.2).
    #[error("the name has no addresses")]
    NoAddresses,
    /// A name that is never asked upstream: `localhost`, `.local`, a metadata service.
    #[error("the name is reserved and never asked upstream")]
    Reserved,
    /// A server answered with this response code (RFC 6895 §2.3), or with an unreadable message.
    #[error("the server answered with {0}")]
    Refused(&'static str),
    /// No query could be sent to any server.
    #[error("no server could be reached")]
    Unreachable,
    /// No server answered in time.
    #[error("no server answered in time")]
    Timeout,
    /// Neither the configuration nor resolv.conf names a server.
    #[error("no server is configured")]
    NoServers,
    /// Too many names are being looked up, or too many flows wait.
    #[error("too many lookups at once")]
    Busy,
    /// The guest asks for too many new names, or has too many lookups in flight.
    #[error("too many new names of one guest")]
    Crowded,
    /// The resolver's runtime has ended.
    #[error("the resolver has stopped")]
    Stopped,
}

impl LookupError {
    /// Whether DNS has answered that there is none, rather than not answered at all.
    pub fn is_knowledge(self) -> bool {
        matches!(self, LookupError::NoSuchName | LookupError::NoAddresses)
    }
}

/// The addresses of a name.
#[derive(Debug)]
pub struct Answer {
    v4: Family,
    v6: Family,
    clearance: Clearance,
}

/// One address family of an [`Answer`].
#[derive(Clone, Debug)]
pub struct Family {
    addresses: Box<[IpAddr]>,
    /// Why there are none, if so.
    absence: Option<LookupError>,
    /// Expiry; `None`: never (the hosts file).
    until: Option<Instant>,
    /// Whether it is used although it is outdated.
    stale: bool,
}

impl Answer {
    pub(super) fn new(v4: Family, v6: Family) -> Answer {
        Answer { v4, v6, clearance: Clearance::default() }
    }

    /// Creates an answer from the hosts file, which does not expire.
    pub(super) fn fixed(addresses: &[IpAddr]) -> Answer {
        let family = |wanted: fn(&IpAddr) -> bool| {
            let addresses: Box<[IpAddr]> = addresses.iter().copied().filter(wanted).take(MAX_PER_FAMILY).collect();
            let absence = addresses.is_empty().then_some(LookupError::NoAddresses);
            Family { addresses, absence, until: None, stale: false }
        };
        Answer::new(family(IpAddr::is_ipv4), family(IpAddr::is_ipv6))
    }

    /// Returns the IPv4 addresses.
    pub fn v4(&self) -> &Family {
        &self.v4
    }

    /// Returns the IPv6 addresses.
    pub fn v6(&self) -> &Family {
        &self.v6
    }

    /// Returns every address, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.v4.addresses.iter().chain(&*self.v6.addresses).copied()
    }

    /// Returns the addresses of one family.
    pub(super) fn family(&self, kind: AddressKind) -> &Family {
        match kind {
            AddressKind::V4 => &self.v4,
            AddressKind::V6 => &self.v6,
        }
    }

    /// Whether neither family has exceeded its TTL.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.v4.is_fresh(now) && self.v6.is_fresh(now)
    }

    pub(super) fn clearance(&self) -> &Clearance {
        &self.clearance
    }
}

impl Family {
    pub(super) fn found(addresses: Vec<IpAddr>, until: Instant) -> Family {
        Family { addresses: addresses.into_boxed_slice(), absence: None, until: Some(until), stale: false }
    }

    pub(super) fn absent(why: LookupError, until: Instant) -> Family {
        Family { addresses: Box::default(), absence: Some(why), until: Some(until), stale: false }
    }

    /// Returns the addresses, at most [`MAX_PER_FAMILY`].
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Returns why there are no addresses; `None` if there are some.
    pub fn absence(&self) -> Option<LookupError> {
        self.absence
    }

    /// Returns how long it may still be used: the rest of the smallest TTL in the answer, including CNAMEs.
    pub fn ttl(&self, now: Instant) -> Duration {
        self.until.map_or(HOSTS_TTL, |until| until.saturating_duration_since(now))
    }

    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// Returns this family as stale, unless it is too old to be used while no server answers (RFC 8767).
    pub(super) fn as_stale(&self, now: Instant) -> Option<Family> {
        let is_known = self.absence.is_none_or(LookupError::is_knowledge);
        let is_late = self.until.is_some_and(|until| until <= now);
        let serves = is_known && self.until.is_none_or(|until| until + STALE_FOR > now);
        serves.then(|| Family { stale: is_late, ..self.clone() })
    }

    /// Whether it is used although it is outdated.
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }
}

/// Records that a whole answer was found clear of the floor, under which settings and when, so that the next
/// flow need not check again. Nothing is recorded for an answer that is not clear.
#[derive(Debug, Default)]
pub(super) struct Clearance(AtomicU64);

/// Layout: settings' generation, whether IPv6 goes first, milliseconds since the resolver's start.
const CLOCK_BITS: u32 = 40;
const V6_FIRST: u64 = 1 << CLOCK_BITS;
const GENERATION_SHIFT: u32 = CLOCK_BITS + 1;

impl Clearance {
    /// Returns whether IPv6 goes first, if the answer was cleared under `generation` less than `fresh`
    /// milliseconds before `clock`.
    pub(super) fn get(&self, generation: u64, clock: u64, fresh: u64) -> Option<bool> {
        let packed = self.0.load(Ordering::Relaxed);
        let cleared_at = packed & (V6_FIRST - 1);
        let same = packed != 0 && packed >> GENERATION_SHIFT == generation & (u64::MAX >> GENERATION_SHIFT);
        (same && clock.saturating_sub(cleared_at) < fresh).then_some(packed & V6_FIRST != 0)
    }

    /// Records that the answer is clear.
    pub(super) fn set(&self, generation: u64, clock: u64, v6_first: bool) {
        let packed = generation << GENERATION_SHIFT | if v6_first { V6_FIRST } else { 0 } | clock & (V6_FIRST - 1);
        self.0.store(packed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clearance_holds_for_its_generation_and_time_alone() {
        let clearance = Clearance::default();
        assert_eq!(clearance.get(0, 0, 2000), None);
        clearance.set(1, 500, true);
        assert_eq!(clearance.get(1, 2499, 2000), Some(true));
        assert_eq!(clearance.get(1, 2500, 2000), None);
        assert_eq!(clearance.get(2, 500, 2000), None);
        clearance.set(2, 500, false);
        assert_eq!(clearance.get(2, 500, 2000), Some(false));
    }

    #[test]
    fn a_family_counts_its_ttl_down() {
        let now = Instant::now();
        let family = Family::found(vec!["11.0.0.1".parse().unwrap()], now + Duration::from_secs(10));
        assert_eq!(family.ttl(now + Duration::from_secs(4)), Duration::from_secs(6));
        assert!(family.is_fresh(now + Duration::from_secs(9)));
        assert!(!family.is_fresh(now + Duration::from_secs(10)));
    }
}
