//! Connections to upstreams that wait for a guest's next request. They are stored where a reload can find them,
//! since no live flow exists meanwhile that could be revoked.

use super::http::UpstreamConnection;
use crate::identify::Claim;
use crate::lock::lock;
use crate::target::Target;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// A kept connection to an upstream, and its target. Always boxed, since it is moved with each request.
pub(crate) struct IdleUpstream {
    /// The claim that used it last.
    pub(crate) claim: Claim,
    pub(crate) target: Target,
    pub(crate) peer: UpstreamConnection,
    /// When it was last known to be good.
    pub(crate) since: Instant,
    /// The upstream already received the beginning of the first request.
    pub(crate) half_said: bool,
    /// All requests on it were answered and nothing can be in transit: a reset loses nothing.
    pub(crate) spent: bool,
}

impl IdleUpstream {
    /// Closes it, with a reset if nothing is in transit. After an ordinary close, the side that closes first
    /// keeps the pair of ports occupied for another minute (TIME_WAIT, RFC 9293 §3.6.1), and one guest could
    /// occupy all ports at once.
    pub(crate) fn close(self: Box<IdleUpstream>) {
        if self.spent {
            self.peer.abort();
        }
    }
}

type Waiting = Option<Box<IdleUpstream>>;

/// All idle connections.
#[derive(Default)]
pub struct IdleUpstreams {
    shards: [Mutex<Slab>; SHARDS],
}

const SHARDS: usize = 16;

#[derive(Default)]
struct Slab {
    slots: Vec<Option<Arc<Mutex<Waiting>>>>,
    free: Vec<usize>,
}

/// The slot of one guest's connection, which keeps at most one connection to an upstream. Closes the one in it
/// when dropped.
pub(crate) struct UpstreamSlot {
    idle_upstreams: Arc<IdleUpstreams>,
    waiting: Arc<Mutex<Waiting>>,
    shard: usize,
    slot: usize,
}

impl IdleUpstreams {
    /// Closes each connection for which `is_refused` holds, given its claim and the address it is connected to.
    pub fn close_where(&self, is_refused: impl Fn(&Claim, SocketAddr) -> bool) {
        for shard in &self.shards {
            let spots: Vec<_> = lock(shard).slots.iter().flatten().cloned().collect();
            for slot in spots {
                let mut waiting = lock(&slot);
                let refused = waiting.as_ref().is_some_and(|kept| is_refused(&kept.claim, kept.peer.addresses.peer));
                let taken = if refused { waiting.take() } else { None };
                drop(waiting);
                if let Some(kept) = taken {
                    kept.close();
                }
            }
        }
    }

    /// Returns an empty slot.
    pub(crate) fn slot(self: &Arc<IdleUpstreams>) -> UpstreamSlot {
        let waiting = Arc::new(Mutex::new(None));
        // Any spread will do.
        let shard = (Arc::as_ptr(&waiting).addr() >> 6) % SHARDS;
        let mut slot = 0;
        if let Some(shard) = self.shards.get(shard) {
            let Slab { slots, free } = &mut *lock(shard);
            slot = free.pop().unwrap_or(slots.len());
            match slots.get_mut(slot) {
                Some(empty) => *empty = Some(Arc::clone(&waiting)),
                None => slots.push(Some(Arc::clone(&waiting))),
            }
        }
        UpstreamSlot { idle_upstreams: Arc::clone(self), waiting, shard, slot }
    }
}

impl UpstreamSlot {
    /// Stores a connection until the next request.
    pub(crate) fn put(&self, kept: Box<IdleUpstream>) {
        let before = lock(&self.waiting).replace(kept);
        if let Some(before) = before {
            before.close();
        }
    }

    /// Takes the connection out again, if it is still there.
    pub(crate) fn take(&self) -> Option<Box<IdleUpstream>> {
        lock(&self.waiting).take()
    }
}

impl Drop for UpstreamSlot {
    fn drop(&mut self) {
        if let Some(shard) = self.idle_upstreams.shards.get(self.shard) {
            let mut slab = lock(shard);
            let Slab { slots, free } = &mut *slab;
            if let Some(slot) = slots.get_mut(self.slot) {
                *slot = None;
                free.push(self.slot);
            }
            if free.len() == slots.len() && slots.len() > 1024 {
                // A flood is over: give its memory back.
                *slab = Slab::default();
            }
        }
        if let Some(kept) = self.take() {
            kept.close();
        }
    }
}
