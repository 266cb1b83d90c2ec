//! Per-guest limits: open connections, and the rates of new connections, requests, DNS queries and new names.
//!
//! A guest is identified by its declared or certified name if it has one, else by its address (in IPv6 by its
//! /64, since a guest usually owns all of it). Counters are atomics behind a short lock per shard. A guest that
//! has become quiet leaves no state behind.
//!
//! A guest over a rate is delayed before it is refused: an early event waits for its turn, [`PATIENCE`] at
//! most, and is refused only if it would have to wait longer. That time and the rate bound how much waits;
//! where waiting uses memory of its own, a number bounds it as well.

pub mod overload;

use crate::lock::lock;
use crate::reason::Reason;
use crate::semaphore::SemaphorePermit;
use crate::source::holder;
use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use overload::{Relief, Room, Stage};
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const SHARDS: usize = 16;
/// A shard with more guests than this is swept for quiet ones before it grows.
const SWEEP_AT: usize = 256;
/// Guests that a shard tracks separately: 65,536 in all shards. While these are all busy, further guests share
/// one set of limits, so that made-up sources use no memory.
const MAX_IN_SHARD: usize = 4096;
/// Shortest time between two sweeps of a full shard, in nanoseconds.
const SWEEP_PAUSE: u64 = SECOND;

/// Open TLS handshakes of one address before the certificate is known. They are short, and count apart from the
/// guest's connections.
const MAX_HANDSHAKES: u32 = 256;

/// Connections over a limit that may receive a refusal at once; further ones are reset.
const MAX_REFUSALS: u32 = 512;
/// One guest's share of the free refusal slots is one part in this many: 64 slots while nobody else floods.
const REFUSAL_SHARE: u32 = 8;

/// `[limits]` of the configuration; per guest unless a field differs. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitSettings {
    /// Connections open at once.
    pub connections: Option<u32>,
    /// New connections per second; also the burst.
    pub new_connections_per_second: Option<u32>,
    /// Plain-HTTP requests per second; also the burst. A CONNECT does not count: a connection has only one.
    pub requests_per_second: Option<u32>,
    /// DNS queries per second, whatever the answer; also the burst.
    pub dns_queries_per_second: Option<u32>,
    /// New names per second, on all listeners together. A new name is one that DNS servers are asked for and
    /// that nobody has asked for before. The burst is twenty seconds' worth.
    pub new_names_per_second: Option<u32>,
    /// Time from accept to decision.
    pub handshake_timeout: Option<Duration>,
    /// A flow on which no data moved for this long is closed.
    pub idle_timeout: Option<Duration>,
    /// Time from the end of a plain-HTTP request to the head of its response.
    pub response_timeout: Option<Duration>,
    /// Connections open at once in the whole daemon; no guest gets more than a quarter.
    pub total_connections: Option<u32>,
    /// Bytes of memory that the process may use before it refuses and closes connections.
    pub memory: Option<u64>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A flow.
    Flow,
    /// A handshake; its certificate will show whose flow it is. Until then it counts by its address, apart from
    /// the flows of the guest with that address.
    Handshake,
    /// DNS: short, and open flows need it to stay useful. Light guests get it in every stage of overload.
    Names,
}

/// How long a connection, request, query or name over its guest's rate waits at most.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Lookups that one guest may have in flight: an eighth of what the resolver accepts at once.
const MAX_LOOKUPS: u32 = 512;
/// The burst of new names, in seconds' worth: they come in bursts, as when a page or a job begins.
const NAMES_AT_ONCE: u64 = 20;
/// A name that was asked for before reveals nothing new to its servers; asking again costs this part of a new name.
const KNOWN_NAME: u64 = 16;
/// Names of one guest that may wait for their turn to be looked up.
const MAX_WAITING_NAMES: u32 = 64;
/// DNS queries of one guest that wait for their turn. Each keeps a copy of its message.
const MAX_WAITING_QUERIES: u32 = 512;

/// Identifies who shares one set of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Named(u64),
    Address(IpAddr),
    Handshake(IpAddr),
}

/// What one guest has in use of its limits.
#[derive(Debug, Default)]
pub struct Usage {
    live: AtomicU32,
    /// Connections that are receiving the refusal for being over a limit.
    refusals: AtomicU32,
    connections: Rate,
    /// Lookups of names in flight.
    lookups: AtomicU32,
    /// Names that wait for their turn to be looked up.
    waiting_names: AtomicU32,
    /// DNS queries that wait for their turn.
    waiting_queries: AtomicU32,
    names: Rate,
    requests: Rate,
    queries: Rate,
    /// Refusals for queries over the rate.
    rebukes: Rate,
    /// Wakes idle connections, so that they close.
    evict_idle: Notify,
}

/// How a request compares with its guest's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Within the rate.
    Now,
    /// Over the rate: it must wait this long.
    After(Duration),
    /// Too far over the rate to wait.
    Over,
}

/// How a guest's DNS query compares with the rate.
#[derive(Debug)]
pub enum QueryPace {
    /// Within the rate.
    Now,
    /// Over the rate: it must wait this long, and hold the permit meanwhile.
    After(Duration, GuestPermit),
    /// Too far over the rate to wait; it gets a refusal.
    Over,
    /// So far over the rate that even a refusal would encourage more: it gets no answer.
    Flood,
}

/// Whether a name may be looked up.
#[derive(Debug)]
pub enum NamePace {
    /// Yes, for as long as the permit is held.
    Now(GuestPermit),
    /// Not yet: ask again after this long, since another guest may have asked for it by then.
    After(Duration),
    /// No: the guest asks for too many new names, or has too many lookups in flight.
    Over,
}

/// A rate limit by the generic cell rate algorithm: the time, in nanoseconds, at which the bucket is full again.
#[derive(Debug, Default)]
struct Rate(AtomicU64);

/// The bounds of a [`Rate`]. Times are nanoseconds.
#[derive(Clone, Copy)]
struct RateBounds {
    /// What one event costs.
    cost: u64,
    /// What may be used at once.
    burst: u64,
    /// How long an event may be delayed.
    patience: u64,
}

impl RateBounds {
    /// Allows `rate` events per second, with a burst of one second's worth.
    fn per_second(rate: u32, patience: Duration) -> RateBounds {
        RateBounds { cost: (SECOND / u64::from(rate.max(1))).max(1), burst: SECOND, patience: nanos(patience) }
    }
}

impl Rate {
    /// Counts one event at `now` and returns how long it has to wait. An error is by how much that wait exceeds
    /// the patience; then the event was not counted.
    fn take(&self, now: u64, terms: RateBounds) -> Result<Duration, Duration> {
        let mut full_at = self.0.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(terms.cost);
            let wait = next.saturating_sub(now.saturating_add(terms.burst));
            if wait > terms.patience {
                return Err(Duration::from_nanos(wait - terms.patience));
            }
            match self.0.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Duration::from_nanos(wait)),
                Err(seen) => full_at = seen,
            }
        }
    }

    fn is_quiet(&self, now: u64) -> bool {
        self.0.load(Ordering::Relaxed) <= now
    }
}

const SECOND: u64 = 1_000_000_000;

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One part of the guests.
#[derive(Default)]
struct Shard {
    guests: HashMap<Key, Arc<Usage>, RandomState>,
    /// The number of guests at which it is next swept for quiet ones.
    sweep_at: usize,
    /// When it was last swept.
    swept: u64,
    /// Usage shared by all guests for whom there is no room.
    crowd: Arc<Usage>,
}

/// The limits and what each guest has in use.
pub struct Gate {
    settings: ArcSwap<LimitSettings>,
    total: AtomicU32,
    refusals: AtomicU32,
    relief: Relief,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    start: Instant,
}

/// Counts a connection among its guest's and the daemon's connections. Released on drop.
pub struct Slot {
    usage: Arc<Usage>,
    gate: Arc<Gate>,
    turn: Option<Instant>,
}

/// Permission to keep a connection over a limit until it has received its refusal. Released on drop.
pub struct RefusalSlot {
    usage: Arc<Usage>,
    gate: Arc<Gate>,
}

/// One of a guest's permits of a kind: for a lookup in flight, or for something that waits.
pub type GuestPermit = SemaphorePermit<UsageCounter>;

/// How many of a kind a guest has in use.
#[derive(Debug)]
pub struct UsageCounter {
    usage: Arc<Usage>,
    kind: fn(&Usage) -> &AtomicU32,
}

/// Applies its guest's budget to the names that one flow or query looks up.
pub struct Names {
    usage: Arc<Usage>,
    gate: Arc<Gate>,
    /// While it waits: its permit, and the latest end of the wait.
    waiting: Option<(GuestPermit, Instant)>,
}

impl Usage {
    /// Takes a permit of a kind if the guest has fewer than `most` in use.
    fn permit(self: &Arc<Usage>, kind: fn(&Usage) -> &AtomicU32, most: u32) -> Option<GuestPermit> {
        SemaphorePermit::try_acquire(UsageCounter { usage: Arc::clone(self), kind }, most)
    }
}

impl Gate {
    /// Creates the gate.
    pub fn new(settings: LimitSettings) -> Arc<Gate> {
        Arc::new(Gate {
            settings: ArcSwap::from_pointee(settings),
            total: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            relief: Relief::new(MAX_REFUSALS),
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::default(),
            start: Instant::now(),
        })
    }

    /// Applies new limits from now on; usage stays counted.
    pub fn reconfigure(&self, settings: LimitSettings) {
        self.settings.store(Arc::new(settings));
    }

    /// Returns the limits in force.
    pub fn settings(&self) -> LimitSettings {
        **self.settings.load()
    }

    /// Returns the number of open connections in the whole daemon.
    pub fn total(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }

    /// Sets how full the daemon is, and the number of connections from which on a guest is over its share.
    pub fn relieve(&self, stage: Stage, fair: u32) {
        self.relief.set(stage, fair);
    }

    /// Sets what the file descriptors are enough for.
    pub fn set_room(&self, room: Room) {
        self.relief.set_room(room);
    }

    /// Returns how many connections may be open at once, by the configuration and by the file descriptors.
    pub fn most(&self) -> u32 {
        self.settings.load().total_connections.unwrap_or(u32::MAX).min(self.relief.connections())
    }

    /// Returns how many guests have open connections.
    pub fn guests(&self) -> usize {
        let mut guests = 0;
        self.each_guest(|usage| guests += usize::from(usage.live.load(Ordering::Relaxed) > 0));
        guests
    }

    /// Closes idle connections of guests that have more than their share.
    pub fn evict_idle(&self) {
        let fair = self.relief.fair();
        self.each_guest(|usage| {
            if usage.live.load(Ordering::Relaxed) >= fair {
                usage.evict_idle.notify_waiters();
            }
        });
    }

    /// Returns what the guest of this name has in use; without a name, the guest at this address. The name is its
    /// declared one, or that of its certificate.
    pub fn usage(&self, name: Option<&str>, address: IpAddr, now: Instant) -> Arc<Usage> {
        let key = match name {
            Some(name) => Key::Named(self.hasher.hash_one(name)),
            None => Key::Address(holder(address)),
        };
        self.usage_of(key, now)
    }

    /// Returns what the address has in use by handshakes whose certificate is not known yet.
    pub fn handshakes(&self, address: IpAddr, now: Instant) -> Arc<Usage> {
        self.usage_of(Key::Handshake(holder(address)), now)
    }

    /// Takes a slot for a new connection of the guest with this usage, or returns why there is none. For
    /// [`Purpose::Handshake`] it is the usage of [`handshakes`](Self::handshakes).
    pub fn admit(self: &Arc<Self>, usage: &Arc<Usage>, purpose: Purpose, now: Instant) -> Result<Slot, Reason> {
        let settings = self.settings.load();
        let mut turn = None;
        if let Some(rate) = settings.new_connections_per_second {
            let wait = usage.connections.take(self.nanos(now), RateBounds::per_second(rate, PATIENCE));
            let wait = wait.map_err(|_| Reason::LimitRate)?;
            turn = (!wait.is_zero()).then(|| now + wait);
        }
        let (part, bound) = match purpose {
            Purpose::Handshake => (16, Some(MAX_HANDSHAKES)),
            Purpose::Flow | Purpose::Names => (4, None),
        };
        let share = settings.total_connections.map(|total| (total / part).max(1));
        let most = [settings.connections, share, bound].into_iter().flatten().min().unwrap_or(u32::MAX);
        if usage.live.fetch_add(1, Ordering::Relaxed) >= most {
            usage.live.fetch_sub(1, Ordering::Relaxed);
            return Err(Reason::LimitConnections);
        }
        let all = self.total.fetch_add(1, Ordering::Relaxed);
        // From here on, the drop takes the count back.
        let slot = Slot { usage: Arc::clone(usage), gate: Arc::clone(self), turn };
        let before = slot.usage.live.load(Ordering::Relaxed).saturating_sub(1);
        let most = settings.total_connections.unwrap_or(u32::MAX).min(self.relief.connections());
        match all < most && self.relief.admits(before, purpose == Purpose::Names) {
            true => Ok(slot),
            false => Err(Reason::LimitTotal),
        }
    }

    /// Counts one DNS query of the guest with this usage. Queries too far over the rate get refusals, at most as many per second
    /// as the rate allows answers.
    pub fn query(&self, usage: &Arc<Usage>, now: Instant) -> QueryPace {
        let Some(rate) = self.settings.load().dns_queries_per_second else { return QueryPace::Now };
        let now = self.nanos(now);
        let permit = match usage.queries.take(now, RateBounds::per_second(rate, PATIENCE)) {
            Ok(Duration::ZERO) => return QueryPace::Now,
            Ok(wait) => usage.permit(|usage| &usage.waiting_queries, MAX_WAITING_QUERIES).map(|permit| (wait, permit)),
            Err(_) => None,
        };
        match permit {
            Some((wait, permit)) => QueryPace::After(wait, permit),
            None if usage.rebukes.take(now, RateBounds::per_second(rate, Duration::ZERO)).is_ok() => QueryPace::Over,
            None => QueryPace::Flood,
        }
    }

    /// Returns what applies the guest's budget of new names to the lookups of one flow or query of the guest with this
    /// usage. The resolver bounds all lookups together, and no guest may use that up alone.
    pub fn names(self: &Arc<Self>, usage: &Arc<Usage>) -> Names {
        Names { usage: Arc::clone(usage), gate: Arc::clone(self), waiting: None }
    }

    /// Returns how many connections in the whole daemon are receiving the refusal for being over a limit.
    pub fn refusals(&self) -> u32 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Returns permission to keep a connection of the guest with this usage, which was not admitted, until it has
    /// received the reason. A guest holds at most an eighth of the free slots. So the more guests flood, the fewer each
    /// holds, and a guest that does not flood still finds one.
    pub fn refusal_slot(self: &Arc<Self>, usage: &Arc<Usage>) -> Option<RefusalSlot> {
        // From here on, the drop takes the count back.
        let slot = RefusalSlot { usage: Arc::clone(usage), gate: Arc::clone(self) };
        let mine = slot.usage.refusals.fetch_add(1, Ordering::Relaxed);
        let all = self.refusals.fetch_add(1, Ordering::Relaxed);
        // Not counting what this guest holds itself, so that its share does not shrink with each slot it takes.
        let most = self.relief.refusals();
        let free = most.saturating_sub(all.saturating_sub(mine));
        (all < most && mine < (free / REFUSAL_SHARE).max(1)).then_some(slot)
    }

    fn usage_of(&self, key: Key, now: Instant) -> Arc<Usage> {
        let shard = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let Some(shard) = self.shards.get(shard) else { return Arc::default() };
        let mut shard = lock(shard);
        if let Some(usage) = shard.guests.get(&key) {
            return Arc::clone(usage);
        }
        let now = self.nanos(now);
        let is_full = shard.guests.len() >= MAX_IN_SHARD;
        if is_full && now.saturating_sub(shard.swept) < SWEEP_PAUSE {
            return Arc::clone(&shard.crowd);
        }
        if is_full || shard.guests.len() >= shard.sweep_at.max(SWEEP_AT) {
            shard.swept = now;
            // Every slot and permit holds the Arc, so a count of one is a guest that has neither.
            shard.guests.retain(|_, usage| {
                let rates = [&usage.connections, &usage.requests, &usage.queries, &usage.rebukes, &usage.names];
                Arc::strong_count(usage) > 1 || rates.into_iter().any(|rate| !rate.is_quiet(now))
            });
            // The next sweep is at twice as many guests, so that each newcomer pays for at most two.
            shard.sweep_at = shard.guests.len() * 2;
            if shard.guests.len() >= MAX_IN_SHARD {
                return Arc::clone(&shard.crowd);
            }
        }
        Arc::clone(shard.guests.entry(key).or_default())
    }

    fn each_guest(&self, mut visit: impl FnMut(&Usage)) {
        for shard in &self.shards {
            let shard = lock(shard);
            shard.guests.values().chain([&shard.crowd]).for_each(|usage| visit(usage));
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

impl Names {
    /// Counts one name that is to be looked up; `is_new` if nobody has asked for it before. After a wait, call
    /// it again for the same name.
    pub fn ask(&mut self, is_new: bool, now: Instant) -> NamePace {
        let Some(permit) = self.usage.permit(|usage| &usage.lookups, MAX_LOOKUPS) else { return NamePace::Over };
        let Some(rate) = self.gate.settings.load().new_names_per_second else { return NamePace::Now(permit) };
        let mut terms = RateBounds::per_second(rate, Duration::ZERO);
        terms.burst *= NAMES_AT_ONCE;
        if !is_new {
            terms.cost = (terms.cost / KNOWN_NAME).max(1);
        }
        let Err(wait) = self.usage.names.take(self.gate.nanos(now), terms) else { return NamePace::Now(permit) };
        if self.waiting.is_none() {
            let permit = self.usage.permit(|usage| &usage.waiting_names, MAX_WAITING_NAMES);
            self.waiting = permit.map(|permit| (permit, now + PATIENCE));
        }
        match &self.waiting {
            Some((_, until)) if now + wait <= *until => NamePace::After(wait),
            _ => NamePace::Over,
        }
    }
}

impl Deref for UsageCounter {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        (self.kind)(&self.usage)
    }
}

impl Slot {
    /// Returns when its turn comes, for a connection over its guest's rate: it must not be served earlier.
    pub fn turn(&self) -> Option<Instant> {
        self.turn
    }

    /// Counts one plain-HTTP request.
    pub fn request(&self, now: Instant) -> Pace {
        let Some(rate) = self.gate.settings.load().requests_per_second else { return Pace::Now };
        match self.usage.requests.take(self.gate.nanos(now), RateBounds::per_second(rate, PATIENCE)) {
            Ok(Duration::ZERO) => Pace::Now,
            Ok(wait) => Pace::After(wait),
            Err(_) => Pace::Over,
        }
    }

    /// Completes when the daemon is overloaded and this guest has more than its share: then an idle connection
    /// should be closed.
    pub fn evicted(&self) -> impl Future<Output = ()> + Send + use<> {
        let usage = Arc::clone(&self.usage);
        async move { usage.evict_idle.notified().await }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.usage.live.fetch_sub(1, Ordering::Relaxed);
        self.gate.total.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for RefusalSlot {
    fn drop(&mut self) {
        self.usage.refusals.fetch_sub(1, Ordering::Relaxed);
        self.gate.refusals.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("usage", &self.usage).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
