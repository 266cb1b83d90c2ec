//! Per-guest limits: how many connections at once, how many new ones and requests a second.
//!
//! A guest is its name where it has one, declared or certified, else its address (in IPv6 its /64, since a guest
//! usually owns all of it). Counting is by atomics behind a short lock a shard; a guest that has gone
//! quiet leaves no trace behind.

use super::overload::{Relief, Room, Stage};
use crate::reason::Reason;
use crate::source::Source;
use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const SHARDS: usize = 16;
/// A shard with more guests than this is swept for quiet ones before it grows.
const SWEEP_AT: usize = 256;
/// Guests of a shard that are told apart: 65,536 in all. Who comes while they are all busy shares one set
/// of limits with the others that do, so that made-up sources take no memory.
const MAX_IN_SHARD: usize = 4096;
/// A full shard is swept no more often than this, in microseconds.
const SWEEP_PAUSE: u64 = 1_000_000;

/// Handshakes of one address whose certificate is still to come: they are short, and count apart from the guest's
/// connections.
const MOST_AT_THE_DOOR: u32 = 256;

/// How many connections that are over a limit may be told so at once; the rest are reset.
const MAX_TOLD: u32 = 512;
/// One guest's share of the places that are free: 64 while nobody else floods.
const TOLD_SHARE: u32 = 8;

/// `[limits]` of the configuration; per guest unless it says otherwise. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitSettings {
    /// Connections open at once.
    pub connections: Option<u32>,
    /// New connections a second; as many may come at once.
    pub new_connections_per_second: Option<u32>,
    /// Plain-HTTP requests a second; as many may come at once.
    pub requests_per_second: Option<u32>,
    /// DNS queries a second; as many may come at once.
    pub dns_queries_per_second: Option<u32>,
    /// From accept to decision.
    pub handshake_timeout: Option<Duration>,
    /// A flow on which nothing moved for this long is closed.
    pub idle_timeout: Option<Duration>,
    /// From the end of a plain-HTTP request to the head of its response.
    pub response_timeout: Option<Duration>,
    /// Connections open at once in the whole daemon; no guest gets more than a quarter.
    pub total_connections: Option<u32>,
    /// Bytes of memory that the process may take before it refuses and closes connections.
    pub memory: Option<u64>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A flow.
    Flow,
    /// A handshake whose certificate will say whose flow it is. Until then it counts by its address, apart from the
    /// flows of whoever has that.
    Handshake,
    /// DNS: short, and without it what is open already is of less use. Light guests get it in every stage of
    /// overload.
    Names,
}

/// Lookups that one guest may have under way: an eighth of what the resolver takes on at once.
const MAX_LOOKUPS: u32 = 512;

/// Who shares one set of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Named(u64),
    Address(IpAddr),
    Doorstep(IpAddr),
}

/// What one guest has in use. Times are microseconds since the gate was made.
#[derive(Debug, Default)]
struct Usage {
    live: AtomicU32,
    /// Connections being told that they are over a limit.
    told: AtomicU32,
    connections: Cell,
    /// Lookups of names under way.
    lookups: AtomicU32,
    requests: Cell,
    queries: Cell,
    /// Answers that say "too quick".
    rebukes: Cell,
    /// Wakes connections on which nothing is under way, that they end.
    ease: Notify,
}

/// How a guest's DNS query comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Within the rate.
    Fair,
    /// Over it; to be told so.
    Quick,
    /// So far over it that being told so would be worth sending more: not to be answered.
    Flood,
}

/// One rate limit by the generic cell rate algorithm: the time at which the bucket is full again.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    /// Takes one event of `per_second` at `now` (µs); false if it comes too early. A second's worth
    /// may come at once.
    fn take(&self, now: u64, per_second: u32) -> bool {
        let interval = 1_000_000 / u64::from(per_second.max(1));
        let mut full_at = self.0.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(interval);
            if next > now.saturating_add(1_000_000) {
                return false;
            }
            match self.0.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => full_at = seen,
            }
        }
    }

    fn is_quiet(&self, now: u64) -> bool {
        self.0.load(Ordering::Relaxed) <= now
    }
}

/// Says which guest a source is, where it has a name: a number that stays the guest's over reloads.
type Named = Arc<dyn Fn(&Source) -> Option<u64> + Send + Sync>;

/// A part of the guests.
#[derive(Default)]
struct Shard {
    guests: HashMap<Key, Arc<Usage>, RandomState>,
    /// It is swept for quiet guests when it has grown to this.
    sweep_at: usize,
    /// When it was last swept.
    swept: u64,
    /// All guests for whom there is no room.
    crowd: Arc<Usage>,
}

/// The limits and what each guest has in use.
pub struct Gate {
    settings: ArcSwap<LimitSettings>,
    named: Named,
    total: AtomicU32,
    told: AtomicU32,
    relief: Relief,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    start: Instant,
}

/// A connection's place among its guest's. Gives it back on drop.
pub struct Slot {
    usage: Arc<Usage>,
    gate: Arc<Gate>,
}

/// Leave to keep a connection that is over a limit until it has been told so. Gives it back on drop.
pub struct Telling {
    usage: Arc<Usage>,
    gate: Arc<Gate>,
}

/// A lookup that a guest has under way. Gives its place back on drop.
#[derive(Debug)]
pub struct Looking {
    usage: Arc<Usage>,
}

impl Gate {
    /// `named` gives the number of the guest that a source is by name, if it has one.
    pub fn new(settings: LimitSettings, named: Named) -> Arc<Gate> {
        Arc::new(Gate {
            settings: ArcSwap::from_pointee(settings),
            named,
            total: AtomicU32::new(0),
            told: AtomicU32::new(0),
            relief: Relief::new(MAX_TOLD),
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::default(),
            start: Instant::now(),
        })
    }

    /// Other limits from now on; what is in use stays counted.
    pub fn reconfigure(&self, settings: LimitSettings) {
        self.settings.store(Arc::new(settings));
    }

    /// The limits in force.
    pub fn settings(&self) -> LimitSettings {
        **self.settings.load()
    }

    /// Connections open now in the whole daemon.
    pub fn total(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }

    /// Sets how full the daemon is, and the number of connections from which on a guest has more than its
    /// share.
    pub fn relieve(&self, stage: Stage, fair: u32) {
        self.relief.set(stage, fair);
    }

    /// Sets what there are file descriptors for.
    pub fn set_room(&self, room: Room) {
        self.relief.set_room(room);
    }

    /// Connections that may be open at once: as configured, and as there are file descriptors for.
    pub fn most(&self) -> u32 {
        self.settings.load().total_connections.unwrap_or(u32::MAX).min(self.relief.connections())
    }

    /// How many guests have connections open.
    pub fn guests(&self) -> usize {
        let mut guests = 0;
        self.each_guest(|usage| guests += usize::from(usage.live.load(Ordering::Relaxed) > 0));
        guests
    }

    /// Ends the connections of guests with more than their share on which nothing is under way.
    pub fn ease(&self) {
        let fair = self.relief.fair();
        self.each_guest(|usage| {
            if usage.live.load(Ordering::Relaxed) >= fair {
                usage.ease.notify_waiters();
            }
        });
    }

    /// A place for a new connection of `source`, or why there is none.
    pub fn admit(self: &Arc<Self>, source: impl Into<Source>, purpose: Purpose, now: Instant) -> Result<Slot, Reason> {
        let settings = self.settings.load();
        let source = source.into();
        let usage = match purpose {
            Purpose::Handshake => self.usage_of(Key::Doorstep(holder(source.address)), now),
            Purpose::Flow | Purpose::Names => self.usage(&source, now),
        };
        if let Some(rate) = settings.new_connections_per_second
            && !usage.connections.take(self.micros(now), rate)
        {
            return Err(Reason::LimitRate);
        }
        let (part, bound) = match purpose {
            Purpose::Handshake => (16, Some(MOST_AT_THE_DOOR)),
            Purpose::Flow | Purpose::Names => (4, None),
        };
        let share = settings.total_connections.map(|total| (total / part).max(1));
        let most = [settings.connections, share, bound].into_iter().flatten().min().unwrap_or(u32::MAX);
        if usage.live.fetch_add(1, Ordering::Relaxed) >= most {
            usage.live.fetch_sub(1, Ordering::Relaxed);
            return Err(Reason::LimitConnections);
        }
        let all = self.total.fetch_add(1, Ordering::Relaxed);
        // From here on the drop gives back what was counted.
        let slot = Slot { usage, gate: Arc::clone(self) };
        let before = slot.usage.live.load(Ordering::Relaxed).saturating_sub(1);
        let most = settings.total_connections.unwrap_or(u32::MAX).min(self.relief.connections());
        match all < most && self.relief.admits(before, purpose == Purpose::Names) {
            true => Ok(slot),
            false => Err(Reason::LimitTotal),
        }
    }

    /// Counts one DNS query of `source`. Over the rate as many a second are told so as would be answered.
    pub fn query(&self, source: impl Into<Source>, now: Instant) -> Pace {
        let Some(rate) = self.settings.load().dns_queries_per_second else { return Pace::Fair };
        let (usage, now) = (self.usage(&source.into(), now), self.micros(now));
        match () {
            () if usage.queries.take(now, rate) => Pace::Fair,
            () if usage.rebukes.take(now, rate) => Pace::Quick,
            () => Pace::Flood,
        }
    }

    /// The right of `source` to one more lookup of a name that nobody is asking for yet. The resolver has
    /// a bound for all of them together, and no guest may take it up alone.
    pub fn lookup(&self, source: impl Into<Source>, now: Instant) -> Option<Looking> {
        let usage = self.usage(&source.into(), now);
        // From here on the drop gives back what was counted.
        let looking = Looking { usage };
        let before = looking.usage.lookups.fetch_add(1, Ordering::Relaxed);
        (before < MAX_LOOKUPS).then_some(looking)
    }

    /// Connections being told now that they are over a limit, in the whole daemon.
    pub fn telling(&self) -> u32 {
        self.told.load(Ordering::Relaxed)
    }

    /// May a connection of `source` that was not admitted be kept until it has been told why? A guest
    /// holds an eighth of the places that are free at most, so the more guests flood, the fewer each
    /// holds, and one that does not still finds a place.
    pub fn tell(self: &Arc<Self>, source: impl Into<Source>, now: Instant) -> Option<Telling> {
        let usage = self.usage(&source.into(), now);
        // From here on the drop gives back what was counted.
        let telling = Telling { usage, gate: Arc::clone(self) };
        let mine = telling.usage.told.fetch_add(1, Ordering::Relaxed);
        let all = self.told.fetch_add(1, Ordering::Relaxed);
        // Without what this guest holds itself, that its share does not shrink with each it takes.
        let most = self.relief.told();
        let free = most.saturating_sub(all.saturating_sub(mine));
        (all < most && mine < (free / TOLD_SHARE).max(1)).then_some(telling)
    }

    fn usage(&self, source: &Source, now: Instant) -> Arc<Usage> {
        let key = match (self.named)(source) {
            Some(number) => Key::Named(number),
            None => Key::Address(holder(source.address)),
        };
        self.usage_of(key, now)
    }

    fn usage_of(&self, key: Key, now: Instant) -> Arc<Usage> {
        let shard = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let Some(shard) = self.shards.get(shard) else { return Arc::default() };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = shard.guests.get(&key) {
            return Arc::clone(usage);
        }
        let now = self.micros(now);
        let is_full = shard.guests.len() >= MAX_IN_SHARD;
        if is_full && now.saturating_sub(shard.swept) < SWEEP_PAUSE {
            return Arc::clone(&shard.crowd);
        }
        if is_full || shard.guests.len() >= shard.sweep_at.max(SWEEP_AT) {
            shard.swept = now;
            // Somebody who holds a place also holds the Arc, so a count of one is a guest without.
            shard.guests.retain(|_, usage| {
                let cells = [&usage.connections, &usage.requests, &usage.queries, &usage.rebukes];
                Arc::strong_count(usage) > 1 || cells.into_iter().any(|cell| !cell.is_quiet(now))
            });
            // Twice as many before the next sweep, so that each newcomer pays for two at the most.
            shard.sweep_at = shard.guests.len() * 2;
            if shard.guests.len() >= MAX_IN_SHARD {
                return Arc::clone(&shard.crowd);
            }
        }
        Arc::clone(shard.guests.entry(key).or_default())
    }

    fn each_guest(&self, mut visit: impl FnMut(&Usage)) {
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.guests.values().chain([&shard.crowd]).for_each(|usage| visit(usage));
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        // The start lies a second back, so that a first full burst does not meet the clock's zero.
        let since = now.saturating_duration_since(self.start).as_micros();
        u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1_000_000)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.usage.lookups.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slot {
    /// Counts one plain-HTTP request; false if the guest sends them too quickly.
    pub fn request(&self, now: Instant) -> bool {
        match self.gate.settings.load().requests_per_second {
            Some(rate) => self.usage.requests.take(self.gate.micros(now), rate),
            None => true,
        }
    }

    /// Ready when the daemon is overloaded and this guest has more than its share, so that a connection on
    /// which nothing is under way is better closed.
    pub fn eased(&self) -> impl Future<Output = ()> + Send + use<> {
        let usage = Arc::clone(&self.usage);
        async move { usage.ease.notified().await }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.usage.live.fetch_sub(1, Ordering::Relaxed);
        self.gate.total.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.usage.told.fetch_sub(1, Ordering::Relaxed);
        self.gate.told.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("usage", &self.usage).finish_non_exhaustive()
    }
}

/// The address that stands for an undeclared guest: itself, in IPv6 its /64.
pub fn holder(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
