//! Live flows: what each asks for, how many bytes it has carried, and whether it must end. `outgate flows` shows
//! them, and a new list is checked against them.
//!
//! A flow enters the table with its first claim and leaves it with its record. Bytes are counted only in the
//! flow. The totals are updated when somebody reads them and when the flow ends, so a read of a tunnel touches
//! no memory that other threads write.

mod evict;

use crate::endpoint::Endpoint;
use crate::guest::GuestCounters;
use crate::identify::Claim;
use crate::listener::ListenerLabel;
use crate::lock::lock;
use crate::policy::Location;
use crate::reason::Reason;
use crate::source::holder;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A live flow as other tasks see it.
#[derive(Debug)]
pub struct Flow {
    id: u64,
    started: Instant,
    carried: [AtomicU64; 2],
    settled: [AtomicU64; 2],
    /// The bytes carried at the last look. Only the code that looks writes it; the byte path only counts.
    seen: AtomicU64,
    guest: Arc<GuestCounters>,
    source: Endpoint,
    listener: ListenerLabel,
    /// The [`Reason`] as a number; `Reason::None` while the flow may live.
    revoked: AtomicU8,
    changing: Mutex<Changing>,
}

/// A row of `outgate flows`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FlowView {
    /// The id, as in the log.
    pub flow: String,
    /// The listener.
    pub listener: &'static str,
    /// The declared guest.
    pub guest: Option<String>,
    /// Address and port of the guest.
    pub source: String,
    /// Host and port.
    pub destination: String,
    /// What named the destination.
    pub evidence: &'static str,
    /// `tcp`, `udp` or `quic`.
    pub transport: &'static str,
    /// The rule that allows it, `file:line`.
    pub rule: Option<String>,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// Bytes from the guest.
    pub bytes_up: u64,
    /// Bytes to the guest.
    pub bytes_down: u64,
}

/// What changes while a flow lives, apart from its counters.
#[derive(Debug, Default)]
struct Changing {
    claim: Option<Claim>,
    upstream: Option<Endpoint>,
    rule: Option<Location>,
    waker: Option<Waker>,
    /// The flow's age, in tenths of a second, at the first look that found the bytes as they are.
    moved: u32,
}

impl Flow {
    /// A flow of `guest` that has just begun. `id` is unique in this process.
    pub fn new(id: u64, listener: ListenerLabel, source: SocketAddr, guest: Arc<GuestCounters>) -> Flow {
        Flow {
            id,
            started: Instant::now(),
            carried: [AtomicU64::new(0), AtomicU64::new(0)],
            settled: [AtomicU64::new(0), AtomicU64::new(0)],
            seen: AtomicU64::new(0),
            guest,
            source: source.into(),
            listener,
            revoked: AtomicU8::new(Reason::None as u8),
            changing: Mutex::new(Changing::default()),
        }
    }

    /// Ends the flow for `reason` by waking its task. The first reason stays; returns `false` if there was one.
    pub fn revoke(&self, reason: Reason) -> bool {
        self.revoke_by(reason, None)
    }

    pub(crate) fn revoke_by(&self, reason: Reason, rule: Option<Location>) -> bool {
        let mut changing = lock(&self.changing);
        // All writers hold the lock; readers without it only check whether there is a reason.
        if self.revoked.load(Ordering::Relaxed) != Reason::None as u8 || reason == Reason::None {
            return false;
        }
        if rule.is_some() {
            changing.rule = rule;
        }
        self.revoked.store(reason as u8, Ordering::Release);
        let waker = changing.waker.take();
        drop(changing);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Returns the reason of its revocation, if it was revoked.
    pub fn revocation(&self) -> Option<Reason> {
        let reason = usize::from(self.revoked.load(Ordering::Acquire));
        Reason::ALL.get(reason).copied().filter(|reason| *reason != Reason::None)
    }

    /// Waits until the flow is revoked. Only for the one task that carries it: of several waiting tasks, only
    /// the one that polled last is woken.
    pub async fn revoked(&self) -> Reason {
        poll_fn(|cx| self.poll_revoked(cx)).await
    }

    /// Works as [`revoked`](Self::revoked), for a hand-written future.
    pub fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        if let Some(reason) = self.revocation() {
            return Poll::Ready(reason);
        }
        let mut changing = lock(&self.changing);
        if let Some(reason) = self.revocation() {
            return Poll::Ready(reason);
        }
        match &mut changing.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Returns the time since it was accepted.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the bytes from the guest and to the guest.
    pub fn carried(&self) -> (u64, u64) {
        let [up, down] = &self.carried;
        (up.load(Ordering::Relaxed), down.load(Ordering::Relaxed))
    }

    /// Checks whether bytes have moved since the last look. Returns for how long none have moved, as far as the
    /// looks show.
    pub(crate) fn look(&self) -> Duration {
        let age = u32::try_from(self.age().as_millis() / 100).unwrap_or(u32::MAX);
        let (up, down) = self.carried();
        let carried = up.wrapping_add(down);
        let mut changing = lock(&self.changing);
        if self.seen.swap(carried, Ordering::Relaxed) != carried {
            changing.moved = age;
        }
        Duration::from_millis(100) * age.saturating_sub(changing.moved)
    }

    /// Returns the address it is connected to, if it is.
    pub fn upstream(&self) -> Option<SocketAddr> {
        lock(&self.changing).upstream.map(SocketAddr::from)
    }

    pub(crate) fn connected(&self, peer: Endpoint) {
        lock(&self.changing).upstream = Some(peer);
    }

    /// Returns what it asks for, as far as it is known.
    pub fn claim(&self) -> Option<Claim> {
        lock(&self.changing).claim.clone()
    }

    /// Counts bytes from the guest.
    #[inline]
    pub fn count_up(&self, bytes: usize) {
        self.carried[0].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes to the guest.
    #[inline]
    pub fn count_down(&self, bytes: usize) {
        self.carried[1].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Returns the bytes up and down that no caller has received yet. With several callers at once, each byte
    /// is returned to only one.
    pub(crate) fn unsettled(&self) -> [u64; 2] {
        let unsettled = |carried: &AtomicU64, settled: &AtomicU64| {
            let now = carried.load(Ordering::Relaxed);
            now.saturating_sub(settled.fetch_max(now, Ordering::Relaxed))
        };
        let ([up, down], [settled_up, settled_down]) = (&self.carried, &self.settled);
        [unsettled(up, settled_up), unsettled(down, settled_down)]
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn guest(&self) -> &Arc<GuestCounters> {
        &self.guest
    }

    /// The guest as far as sharing is concerned: its name, or else the address that identifies it.
    fn owner(&self) -> Result<&str, IpAddr> {
        self.guest.name.as_deref().ok_or_else(|| holder(self.source.ip))
    }

    pub(crate) fn source(&self) -> Endpoint {
        self.source
    }

    pub(crate) fn listener(&self) -> ListenerLabel {
        self.listener
    }

    pub(crate) fn set_claim(&self, claim: Claim) {
        lock(&self.changing).claim = Some(claim);
    }

    pub(crate) fn set_rule(&self, rule: Option<Location>) {
        lock(&self.changing).rule = rule;
    }

    /// Returns claim and rule, for the line at the flow's start.
    pub(crate) fn facts(&self) -> (Option<Claim>, Option<Location>) {
        let changing = lock(&self.changing);
        (changing.claim.clone(), changing.rule.clone())
    }

    /// Takes claim and rule, for the line at the flow's end.
    pub(crate) fn take_facts(&self) -> (Option<Claim>, Option<Location>) {
        let mut changing = lock(&self.changing);
        (changing.claim.take(), changing.rule.take())
    }

    /// Returns the row to show, `None` without a claim. `epoch` is the first half of the id.
    pub(crate) fn view(&self, epoch: u64) -> Option<FlowView> {
        let (claim, rule) = self.facts();
        let claim = claim?;
        let (bytes_up, bytes_down) = self.carried();
        Some(FlowView {
            flow: flow_id(epoch, self.id),
            listener: self.listener().as_str(),
            guest: self.guest.name.as_deref().map(str::to_owned),
            source: self.source.to_string(),
            destination: claim.target.to_string(),
            evidence: claim.evidence.as_str(),
            transport: claim.transport.as_str(),
            rule: rule.map(|rule| rule.to_string()),
            age_seconds: (self.age().as_secs_f64() * 1000.0).round() / 1000.0,
            bytes_up,
            bytes_down,
        })
    }
}

const SHARDS: usize = 64;

/// The flows that have a claim, in shards. A lock is held only while pointers are copied.
#[derive(Default)]
pub struct LiveFlows {
    shards: Shards,
    /// How many searches for flows to revoke were announced.
    searches: AtomicU32,
}

struct Shards([Mutex<Slab>; SHARDS]);

/// Slots are reused, so adding and removing a flow needs no hashing.
#[derive(Default)]
struct Slab {
    slots: Vec<Option<Arc<Flow>>>,
    free: Vec<u32>,
}

impl Default for Shards {
    fn default() -> Shards {
        Shards(std::array::from_fn(|_| Mutex::default()))
    }
}

impl LiveFlows {
    /// Adds a flow; returns its slot, which removes it again.
    pub(crate) fn insert(&self, flow: &Arc<Flow>) -> u32 {
        let mut slab = lock(self.shard(flow.id));
        if let Some(free) = slab.free.pop()
            && let Some(slot) = slab.slots.get_mut(free as usize)
        {
            *slot = Some(Arc::clone(flow));
            return free;
        }
        slab.slots.push(Some(Arc::clone(flow)));
        u32::try_from(slab.slots.len() - 1).unwrap_or(u32::MAX)
    }

    pub(crate) fn remove(&self, flow: &Flow, slot: u32) {
        let mut slab = lock(self.shard(flow.id));
        let Slab { slots, free } = &mut *slab;
        let Some(taken) = slots.get_mut(slot as usize).and_then(Option::take) else { return };
        free.push(slot);
        if free.len() == slots.len() && slots.len() > 1024 {
            // After a flood, free its memory.
            *slab = Slab::default();
        }
        drop(slab);
        drop(taken);
    }

    /// Announces a new policy; call it as soon as that is in force. From now on, a flow that an earlier policy
    /// decided judges itself again once it is connected. [`revoke_where`](Self::revoke_where) calls it too.
    pub fn announce_search(&self) {
        self.searches.fetch_add(1, Ordering::AcqRel);
    }

    /// Calls `decide` with the claim of each flow and the address it is connected to, and revokes the flows that it
    /// refuses. Returns their number. Takes a microsecond or two per flow: not for a thread that serves flows.
    ///
    /// No flow escapes if the caller first puts the new policy in force and each flow enters its claim before it
    /// asks the policy.
    pub fn revoke_where(
        &self,
        decide: impl Fn(&Claim, Option<SocketAddr>) -> Option<(Reason, Option<Location>)>,
    ) -> usize {
        self.announce_search();
        let mut revoked = 0;
        self.each(|flow| {
            if let Some((reason, rule)) = flow.claim().and_then(|claim| decide(&claim, flow.upstream()))
                && flow.revoke_by(reason, rule)
            {
                revoked += 1;
            }
        });
        revoked
    }

    /// Checks which flows have moved bytes. [`close_idlest`](Self::close_idlest) knows idle times only from
    /// these checks. About 100 ns per flow.
    pub fn look(&self) {
        self.each(|flow| {
            flow.look();
        });
    }

    /// Ends up to `count` flows on which no byte moved for `idle`, with the reason `limit_total`. It always
    /// takes the guest with the most remaining flows, and of these the one that has been idle longest. Returns
    /// how many it ended. Not for a thread that serves flows.
    pub fn close_idlest(&self, count: usize, idle: Duration) -> usize {
        let mut live = Vec::new();
        self.each(|flow| live.push(Arc::clone(flow)));
        evict::idlest(&live, count, idle).filter(|flow| flow.revoke(Reason::LimitTotal)).count()
    }

    /// Returns how many such searches were announced.
    pub(crate) fn searches(&self) -> u32 {
        self.searches.load(Ordering::Acquire)
    }

    /// Calls `visit` with each flow, without holding a lock.
    pub(crate) fn each(&self, mut visit: impl FnMut(&Arc<Flow>)) {
        let mut live = Vec::new();
        for shard in &self.shards.0 {
            live.extend(lock(shard).slots.iter().flatten().cloned());
            live.drain(..).for_each(|flow| visit(&flow));
        }
    }

    /// Returns the `limit` oldest flows in order, and the number of all flows.
    pub(crate) fn oldest(&self, limit: usize) -> (Vec<Arc<Flow>>, usize) {
        let (mut oldest, mut total) = (Vec::new(), 0);
        self.each(|flow| {
            total += 1;
            oldest.push(Arc::clone(flow));
            if oldest.len() >= limit.saturating_mul(2).max(1024) {
                keep_oldest(&mut oldest, limit);
            }
        });
        keep_oldest(&mut oldest, limit);
        (oldest, total)
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
    fn shard(&self, id: u64) -> &Mutex<Slab> {
        &self.shards.0[usize::try_from(id % SHARDS as u64).unwrap_or(0)]
    }
}

/// Returns the id of a flow: no two runs of the daemon use the same. `epoch` is the daemon's start in seconds since 1970.
pub(crate) fn flow_id(epoch: u64, id: u64) -> String {
    format!("{epoch:x}-{id:x}")
}

fn keep_oldest(flows: &mut Vec<Arc<Flow>>, limit: usize) {
    flows.sort_unstable_by_key(|flow| flow.id);
    flows.truncate(limit);
}
