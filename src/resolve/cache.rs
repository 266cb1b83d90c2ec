//! The names that are known and those being looked up: a bounded map in shards, shared by all threads. It
//! ensures that a name is looked up only once, however many flows want it.

use super::answer::{Answer, LookupError};
use crate::limits::{GuestPermit, NamePace};
use crate::lock::lock;
use crate::name::HostName;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The result of a lookup.
pub(super) type Outcome = Result<Arc<Answer>, LookupError>;

/// What a flow waits on for a name that is being looked up; `None` until there is an outcome.
pub(super) type Arrival = watch::Receiver<Option<Outcome>>;

const SHARDS: usize = 64;
/// Most names kept, at most about 400 bytes each (a long name with four addresses).
const CAPACITY: usize = 65_536;
/// Most lookups at once. Each uses a task and up to two sockets per server.
const MAX_IN_FLIGHT: usize = 4096;

/// The shared map.
#[derive(Debug)]
pub(super) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    next_flight: AtomicU64,
    in_flight: AtomicUsize,
}

/// A table rather than a map, so that the hash that selects the shard is also used within it.
type Shard = HashTable<(HostName, Slot)>;

#[derive(Debug)]
enum Slot {
    InFlight {
        id: u64,
        arrival: Arrival,
    },
    Known(Arc<Answer>),
    /// No server gave a newer answer; they are asked again after this time (RFC 8767 §5).
    Stale(Arc<Answer>, Instant),
    Failed(LookupError, Instant),
}

/// The result of [`Cache::enter`].
pub(super) enum Entry {
    /// Known already.
    Ready(Outcome),
    /// Another flow looks it up; wait with it.
    Wait(Arrival),
    /// Nobody looks it up yet and the caller may not; try again after this long.
    Later(Duration),
    /// Nobody looks it up yet: the caller must do it and finish the lookup. Families of `previous` that are
    /// still fresh need not be asked for.
    Leader {
        /// The right and duty to report the outcome.
        in_flight: InFlight,
        /// What the other flows wait on.
        arrival: Arrival,
        /// What was known of the name, with at least one family outdated.
        previous: Option<Arc<Answer>>,
    },
}

/// A lookup in flight. If it is dropped before it finishes, the waiting flows get [`LookupError::Stopped`], and
/// the name stays unknown.
pub(super) struct InFlight {
    cache: Arc<Cache>,
    name: HostName,
    id: u64,
    sender: watch::Sender<Option<Outcome>>,
    /// Given back when the lookup finishes.
    _permit: GuestPermit,
}

impl Cache {
    /// Creates an empty cache.
    pub(super) fn new() -> Cache {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Cache { shards, hasher: RandomState::default(), next_flight: AtomicU64::new(0), in_flight: AtomicUsize::new(0) }
    }

    /// Returns what is known of `name` now, without a query.
    pub(super) fn get(&self, name: &HostName, now: Instant) -> Option<Outcome> {
        let hash = self.hasher.hash_one(name);
        self.shard(hash).find(hash, is(name))?.1.outcome(now)
    }

    /// Joins or leads the lookup of `name`. Leading requires a permit for a lookup of the guest, which `start` may give.
    pub(super) fn enter(
        self: &Arc<Cache>,
        name: &HostName,
        start: &mut impl FnMut(bool) -> NamePace,
        now: Instant,
    ) -> Entry {
        let hash = self.hasher.hash_one(name);
        let mut shard = self.shard(hash);
        let (previous, is_new) = match shard.find(hash, is(name)) {
            Some((_, Slot::InFlight { arrival, .. })) => return Entry::Wait(arrival.clone()),
            Some((_, slot)) => match slot.outcome(now) {
                Some(outcome) => return Entry::Ready(outcome),
                None => (slot.answer(), false),
            },
            None => (None, true),
        };
        let permit = match start(is_new) {
            NamePace::Now(permit) => permit,
            NamePace::After(wait) => return Entry::Later(wait),
            NamePace::Over => return Entry::Ready(Err(LookupError::Crowded)),
        };
        if self.in_flight.load(Ordering::Relaxed) >= MAX_IN_FLIGHT || !make_room(&mut shard, now) {
            return Entry::Ready(Err(LookupError::Busy));
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let id = self.next_flight.fetch_add(1, Ordering::Relaxed);
        let (sender, arrival) = watch::channel(None);
        let slot = Slot::InFlight { id, arrival: arrival.clone() };
        match shard.entry(hash, is(name), |(name, _)| self.hasher.hash_one(name)) {
            hash_table::Entry::Occupied(mut place) => place.get_mut().1 = slot,
            hash_table::Entry::Vacant(place) => drop(place.insert((name.clone(), slot))),
        }
        let in_flight = InFlight { cache: self.clone(), name: name.clone(), id, sender, _permit: permit };
        Entry::Leader { in_flight, arrival, previous }
    }

    /// Forgets everything. Lookups in flight still reach waiting flows, but are not kept.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            // Freed outside of the lock.
            let old = std::mem::take(&mut *lock(shard));
            drop(old);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The table itself uses the low bits for its buckets and the top seven for its tags.
        let index = usize::try_from((hash >> 32) % SHARDS as u64).unwrap_or(0);
        lock(&self.shards[index])
    }
}

fn is(name: &HostName) -> impl Fn(&(HostName, Slot)) -> bool {
    move |(other, _)| other == name
}

impl InFlight {
    /// Publishes a preliminary outcome to current and later waiting flows.
    pub(super) fn show(&self, outcome: Outcome) {
        self.sender.send_replace(Some(outcome));
    }

    /// Finishes the lookup with a partly stale answer, which is used until `again`.
    pub(super) fn finish_stale(self, answer: Arc<Answer>, again: Instant) {
        self.replace(Some(Slot::Stale(answer.clone(), again)));
        self.sender.send_replace(Some(Ok(answer)));
    }

    /// Finishes the lookup. The waiting flows get the outcome. An answer is kept as long as one of its families
    /// is fresh, a failure for `failure_lifetime`. An answer that was never fresh (a TTL of 0) is kept as an
    /// outdated one, which records that its name has been asked for.
    pub(super) fn finish(self, outcome: Outcome, failure_lifetime: Duration, now: Instant) {
        let slot = match &outcome {
            Ok(answer) => Slot::Known(answer.clone()),
            Err(error) => Slot::Failed(*error, now + failure_lifetime),
        };
        self.replace(Some(slot));
        self.sender.send_replace(Some(outcome));
    }

    /// Replaces this lookup's slot with `slot`; if the cache was cleared meanwhile, it has no slot.
    fn replace(&self, slot: Option<Slot>) {
        let hash = self.cache.hasher.hash_one(&self.name);
        let mut shard = self.cache.shard(hash);
        let mine = |(name, at): &(HostName, Slot)| {
            matches!(at, Slot::InFlight { id, .. } if *id == self.id) && *name == self.name
        };
        if let Ok(mut place) = shard.find_entry(hash, mine) {
            match slot {
                Some(slot) => place.get_mut().1 = slot,
                None => drop(place.remove()),
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.replace(None);
        self.cache.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slot {
    fn outcome(&self, now: Instant) -> Option<Outcome> {
        match self {
            Slot::InFlight { arrival, .. } => arrival.borrow().clone(),
            Slot::Known(answer) => answer.is_fresh(now).then(|| Ok(answer.clone())),
            Slot::Stale(answer, until) => (*until > now).then(|| Ok(answer.clone())),
            Slot::Failed(error, until) => (*until > now).then_some(Err(*error)),
        }
    }

    fn answer(&self) -> Option<Arc<Answer>> {
        match self {
            Slot::Known(answer) | Slot::Stale(answer, _) => Some(answer.clone()),
            Slot::InFlight { .. } | Slot::Failed(..) => None,
        }
    }

    /// Returns when the slot becomes useless; `None` for a lookup in flight, which must stay.
    fn expiry(&self, now: Instant) -> Option<Instant> {
        match self {
            Slot::InFlight { .. } => None,
            Slot::Known(answer) => Some(now + answer.v4().ttl(now).max(answer.v6().ttl(now))),
            Slot::Stale(_, until) | Slot::Failed(_, until) => Some(*until),
        }
    }
}

/// Makes room for one more name: removes expired names first; if none has expired, the eighth that would expire
/// soonest. Returns `false` if there is still no room.
fn make_room(shard: &mut Shard, now: Instant) -> bool {
    const PER_SHARD: usize = CAPACITY / SHARDS;
    if shard.len() < PER_SHARD {
        return true;
    }
    shard.retain(|(_, slot)| slot.expiry(now).is_none_or(|expiry| expiry > now));
    if shard.len() < PER_SHARD {
        return true;
    }
    // An eighth at once, so that a full shard is not searched for every new name.
    let mut expiries: Vec<Instant> = shard.iter().filter_map(|(_, slot)| slot.expiry(now)).collect();
    let eighth = PER_SHARD / 8;
    if expiries.len() > eighth {
        let (_, cut, _) = expiries.select_nth_unstable(eighth);
        let cut = *cut;
        let mut left = eighth + 1;
        shard.retain(|(_, slot)| {
            let goes = left > 0 && slot.expiry(now).is_some_and(|expiry| expiry <= cut);
            left -= usize::from(goes);
            !goes
        });
    }
    shard.len() < PER_SHARD
}

#[cfg(test)]
mod tests {
    use super::super::answer::Family;
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn answer(until: Instant) -> Outcome {
        let v4 = Family::found(vec!["11.0.0.1".parse().unwrap()], until);
        Ok(Arc::new(Answer::new(v4, Family::absent(LookupError::NoAddresses, until))))
    }

    fn lead(cache: &Arc<Cache>, text: &str, now: Instant) -> (InFlight, Arrival) {
        match cache.enter(&name(text), &mut |_| NamePace::Now(GuestPermit::for_tests(&Arc::default())), now) {
            Entry::Leader { in_flight, arrival, .. } => (in_flight, arrival),
            Entry::Ready(_) | Entry::Wait(_) | Entry::Later(_) => panic!("{text} is taken"),
        }
    }

    #[test]
    fn the_first_leads_and_the_others_wait() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let (in_flight, _) = lead(&cache, "a.test", now);
        let Entry::Wait(arrival) = cache.enter(&name("a.test"), &mut |_| NamePace::Over, now) else { panic!() };
        assert!(cache.get(&name("a.test"), now).is_none());
        in_flight.finish(answer(now + Duration::from_secs(5)), Duration::ZERO, now);
        assert!(matches!(&*arrival.borrow(), Some(Ok(_))));
        assert!(matches!(cache.get(&name("a.test"), now), Some(Ok(_))));
        assert!(cache.get(&name("a.test"), now + Duration::from_secs(5)).is_none());
        assert_eq!(cache.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn leading_requires_a_permit_which_is_given_back_at_the_end() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let crowded = cache.enter(&name("a.test"), &mut |_| NamePace::Over, now);
        assert!(matches!(crowded, Entry::Ready(Err(LookupError::Crowded))));
        let usage = Arc::default();
        let Entry::Leader { in_flight, .. } =
            cache.enter(&name("a.test"), &mut |_| NamePace::Now(GuestPermit::for_tests(&usage)), now)
        else {
            panic!("nobody leads yet");
        };
        assert_eq!(Arc::strong_count(&usage), 2);
        in_flight.finish(answer(now + Duration::from_secs(5)), Duration::ZERO, now);
        assert_eq!(Arc::strong_count(&usage), 1);
        assert!(matches!(cache.enter(&name("a.test"), &mut |_| NamePace::Over, now), Entry::Ready(Ok(_))));
    }

    #[test]
    fn a_flight_that_is_lost_leaves_the_name_free_and_its_waiters_told() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let (in_flight, arrival) = lead(&cache, "a.test", now);
        drop(in_flight);
        assert!(arrival.has_changed().is_err());
        lead(&cache, "a.test", now);
        assert_eq!(cache.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_lands_after_the_cache_was_cleared_is_not_kept() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let (old, arrival) = lead(&cache, "a.test", now);
        cache.clear();
        let (new, _) = lead(&cache, "a.test", now);
        old.finish(answer(now + Duration::from_secs(5)), Duration::ZERO, now);
        assert!(matches!(&*arrival.borrow(), Some(Ok(_))));
        assert!(cache.get(&name("a.test"), now).is_none());
        new.finish(Err(LookupError::Timeout), Duration::from_secs(1), now);
        assert!(matches!(cache.get(&name("a.test"), now), Some(Err(LookupError::Timeout))));
    }

    #[test]
    fn however_many_names_are_asked_for_the_cache_stays_within_its_bound() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        for index in 0..2 * CAPACITY {
            let (in_flight, _) = lead(&cache, &format!("n{index}.test"), now);
            in_flight.finish(answer(now + Duration::from_secs(60)), Duration::ZERO, now);
        }
        let kept: usize = cache.shards.iter().map(|shard| lock(shard).len()).sum();
        assert!(kept <= CAPACITY && kept > CAPACITY / 2, "{kept}");
    }

    #[test]
    fn what_has_expired_goes_before_what_is_current() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let later = now + Duration::from_secs(30);
        let (in_flight, _) = lead(&cache, "long.test", now);
        in_flight.finish(answer(now + Duration::from_secs(3600)), Duration::ZERO, now);
        for index in 0..2 * CAPACITY {
            let (in_flight, _) = lead(&cache, &format!("n{index}.test"), now);
            in_flight.finish(answer(now + Duration::from_secs(10)), Duration::ZERO, now);
        }
        lead(&cache, "one-more.test", later);
        assert!(matches!(cache.get(&name("long.test"), later), Some(Ok(_))));
    }

    #[test]
    fn names_under_way_are_bounded() {
        let (cache, now) = (Arc::new(Cache::new()), Instant::now());
        let lookups: Vec<_> = (0..MAX_IN_FLIGHT).map(|index| lead(&cache, &format!("n{index}.test"), now)).collect();
        assert!(matches!(
            cache.enter(&name("one-more.test"), &mut |_| NamePace::Now(GuestPermit::for_tests(&Arc::default())), now),
            Entry::Ready(Err(LookupError::Busy))
        ));
        drop(lookups);
        lead(&cache, "one-more.test", now);
    }
}
