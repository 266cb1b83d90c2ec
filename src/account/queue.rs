//! The bounded queue from the flows to the log's thread. A sender makes no system call while the thread is awake.

use super::event::Event;
use super::{Metrics, lock};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;

const SHARDS: usize = 8;
/// Events a shard holds at most.
const CAPACITY: usize = 2048;
/// Of these, refusals at most: a flood of refusals leaves room for allowed flows.
const REFUSALS: usize = CAPACITY / 2;

pub(super) struct Queue {
    shards: [Mutex<Shard>; SHARDS],
    asleep: AtomicBool,
    reader: OnceLock<Thread>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Shard {
    events: Vec<Event>,
    refusals: usize,
}

impl Queue {
    pub(super) fn new(metrics: Arc<Metrics>) -> Queue {
        Queue {
            shards: std::array::from_fn(|_| Mutex::default()),
            asleep: AtomicBool::new(false),
            reader: OnceLock::new(),
            metrics,
        }
    }

    /// Sets the thread that calls [`take`](Self::take).
    pub(super) fn set_reader(&self, reader: Thread) {
        let _ = self.reader.set(reader);
    }

    /// Queues the event, or drops and counts it. It never waits for the reader.
    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
    pub(super) fn push(&self, event: Event) {
        let refusal = event.is_refusal();
        let mut shard = lock(&self.shards[usize::try_from(event.id % SHARDS as u64).unwrap_or(0)]);
        if shard.events.len() >= CAPACITY || (refusal && shard.refusals >= REFUSALS) {
            drop(shard);
            self.metrics.log_dropped(event.verdict, 1);
            return;
        }
        shard.refusals += usize::from(refusal);
        shard.events.push(event);
        drop(shard);
        // The reader sets `asleep` before its last look at the shards. So if that look missed this event, this
        // load, which comes after the lock, sees the flag.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Moves all events to the end of `into`, in the order of their time.
    pub(super) fn take(&self, into: &mut Vec<Event>) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.refusals = 0;
            if into.is_empty() {
                std::mem::swap(&mut shard.events, into);
            } else {
                into.append(&mut shard.events);
            }
        }
        into.sort_by_key(|event| event.at);
    }

    /// From now on an event wakes the reader. The caller must call [`take`](Self::take) once more after this.
    pub(super) fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    pub(super) fn wake(&self) {
        if let Some(reader) = self.reader.get() {
            reader.unpark();
        }
    }
}
