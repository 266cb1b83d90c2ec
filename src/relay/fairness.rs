//! Decides who moves bytes when: flows that move much take turns, and all others need not wait for them.
//!
//! A worker runs all tasks that are ready, one after the other, and then looks for events. If each of a hundred
//! streams moved a quarter of a megabyte in between, a flow with a single byte would wait a hundred turns at every
//! step. So between two looks only one of the streams has a turn and the rest wait in a queue, first come, first
//! served. A flow that moves little does not queue: the first [`FREE`] bytes each time it is woken need no turn.
//!
//! A task of its own, the scheduler, calls the next flow after each look. It goes on whatever happens to the flows
//! that it called, so a flow that does not use its turn does not hold up the others.

use crate::lock::lock;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// What a flow may move in one turn: 256 KiB, plus what its last read brought beyond.
const TURN: usize = 256 << 10;
/// What it may move without a turn each time it is woken: 64 KiB, plus what its last read brought beyond.
const FREE: usize = 64 << 10;

thread_local! {
    static TURNS: SharedTurns = SharedTurns::default();
}

type SharedTurns = Arc<Mutex<Turns>>;

/// The turns of one thread.
#[derive(Debug, Default)]
struct Turns {
    waiting: VecDeque<Arc<Waiter>>,
    /// A flow has had a turn since the scheduler ran last.
    taken: bool,
    scheduler: Scheduler,
}

#[derive(Debug, Default)]
enum Scheduler {
    /// There is none yet, or its runtime has ended.
    #[default]
    Missing,
    Asleep(Waker),
    /// It runs after the next look for events.
    Awake,
}

/// A place in the queue.
#[derive(Debug)]
struct Waiter {
    waits: AtomicBool,
    waker: Mutex<Waker>,
}

/// The turns of one direction of a flow.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Its place while it is in the queue or was just called from it.
    waiter: Option<Arc<Waiter>>,
    /// Bytes moved since it was last woken.
    moved: usize,
    /// It has a turn, not only the free bytes.
    mine: bool,
}

impl Turn {
    /// Call this each time before bytes are moved. Returns `false` if it has to wait; its task is woken later.
    pub(crate) fn begin(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(waiter) = &self.waiter {
            if waiter.waits_with(cx) {
                return false;
            }
            (self.waiter, self.moved, self.mine) = (None, 0, true);
            return true;
        }
        // A flow that moved much when it was last woken will do so again.
        let much = std::mem::take(&mut self.moved) >= FREE;
        self.mine = false;
        !much || self.take(cx)
    }

    /// Counts bytes that were moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes);
    }

    /// Waits until work may be done that costs as much as moving `cost` bytes.
    pub(crate) async fn next(&mut self, cost: usize) {
        poll_fn(|cx| match if self.waiter.is_some() { self.begin(cx) } else { self.goes_on(cx) } {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        self.moved(cost);
    }

    /// Waits for the other end. If that was not ready at once, earlier work no longer counts: a flow that waits for
    /// the other end each time does not delay others.
    pub(crate) async fn rest<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
        poll_fn(|cx| {
            let polled = wait.as_mut().poll(cx);
            if polled.is_pending() {
                (self.moved, self.mine) = (0, false);
            }
            polled
        })
        .await
    }

    /// May it move more? Returns `false` if it has to wait; its task is woken later.
    pub(crate) fn goes_on(&mut self, cx: &mut Context<'_>) -> bool {
        match self.mine {
            _ if self.moved < FREE => true,
            false => self.take(cx),
            true if self.moved < TURN => true,
            true => {
                self.queue(cx);
                false
            }
        }
    }

    /// Takes the turn if it is free, or else a place in the queue.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        self.mine = TURNS.with(|turns| {
            let mut held = lock(turns);
            let free = !held.taken && held.waiting.is_empty();
            if free {
                held.taken = true;
                rouse(turns, held);
            }
            free
        });
        if !self.mine {
            self.queue(cx);
        }
        self.mine
    }

    fn queue(&mut self, cx: &mut Context<'_>) {
        let waiter = Arc::new(Waiter { waits: AtomicBool::new(true), waker: Mutex::new(cx.waker().clone()) });
        self.waiter = Some(Arc::clone(&waiter));
        TURNS.with(|turns| {
            let mut held = lock(turns);
            held.waiting.push_back(waiter);
            rouse(turns, held);
        });
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(waiter) = &self.waiter {
            waiter.waits.store(false, Ordering::Relaxed);
        }
    }
}

impl Waiter {
    /// Does it still wait? If so, the task of `cx` will be woken.
    fn waits_with(&self, cx: &Context<'_>) -> bool {
        let mut waker = lock(&self.waker);
        waker.clone_from(cx.waker());
        self.waits.load(Ordering::Relaxed)
    }

    /// Wakes its task if it still waits. Returns whether it did.
    fn call(&self) -> bool {
        let waker = lock(&self.waker);
        let waits = self.waits.swap(false, Ordering::Relaxed);
        if waits {
            waker.wake_by_ref();
        }
        waits
    }
}

/// Makes the scheduler run after the next look for events.
fn rouse(turns: &SharedTurns, mut held: MutexGuard<'_, Turns>) {
    match std::mem::replace(&mut held.scheduler, Scheduler::Awake) {
        Scheduler::Awake => {}
        Scheduler::Asleep(waker) => {
            drop(held);
            after_next_look(&mut Context::from_waker(&waker));
        }
        Scheduler::Missing => {
            drop(held);
            tokio::spawn(conduct(SchedulerTask(Arc::clone(turns))));
        }
    }
}

/// Wakes the task after the runtime has looked for events. A plain wake would put it into the queue of
/// tasks, and a runtime that always finds something there looks only every 61 tasks.
pub(super) fn after_next_look(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// Calls one flow after each look for events, for as long as any wait.
async fn conduct(on_duty: SchedulerTask) {
    poll_fn(|cx| {
        let mut held = lock(&on_duty.0);
        held.taken = false;
        while let Some(waiter) = held.waiting.pop_front() {
            if waiter.call() {
                held.taken = true;
                break;
            }
        }
        if held.taken {
            held.scheduler = Scheduler::Awake;
            drop(held);
            after_next_look(cx);
        } else {
            held.scheduler = Scheduler::Asleep(cx.waker().clone());
        }
        Poll::<()>::Pending
    })
    .await;
}

/// Marks the scheduler as missing when its runtime ends or it panics, and wakes all who wait for it.
struct SchedulerTask(SharedTurns);

impl Drop for SchedulerTask {
    fn drop(&mut self) {
        let mut held = lock(&self.0);
        held.scheduler = Scheduler::Missing;
        held.taken = false;
        let waiting = std::mem::take(&mut held.waiting);
        drop(held);
        for waiter in waiting {
            waiter.call();
        }
    }
}

/// Flows of this thread that wait for their turn.
#[cfg(test)]
pub(crate) fn waiting() -> usize {
    TURNS.with(|turns| lock(turns).waiting.iter().filter(|waiter| waiter.waits.load(Ordering::Relaxed)).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of `work` with the context of this task.
    async fn polled<T>(mut work: impl FnMut(&mut Context<'_>) -> T) -> T {
        poll_fn(|cx| Poll::Ready(work(cx))).await
    }

    /// A direction that has moved so much without a turn that it needs one now.
    fn heavy() -> Turn {
        Turn { waiter: None, moved: FREE, mine: false }
    }

    /// Waits until it may move, for some looks for events at most.
    async fn called(turn: &mut Turn) -> bool {
        for _ in 0..10 {
            if polled(|cx| turn.begin(cx)).await {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }

    #[tokio::test]
    async fn who_moves_little_never_waits_and_who_moves_much_waits_for_one_turn_of_each() {
        let (mut first, mut second, mut light) = (heavy(), heavy(), Turn::default());
        polled(|cx| {
            assert!(first.begin(cx) && !second.begin(cx), "one turn between two looks");
            for _ in 0..100 {
                light.moved(FREE - 1);
                assert!(light.goes_on(cx) && light.begin(cx));
            }
            first.moved(TURN - 1);
            assert!(first.goes_on(cx));
            first.moved(1);
            assert!(!first.goes_on(cx), "its turn is over");
        })
        .await;
        assert_eq!(waiting(), 2);
        assert!(called(&mut second).await);
        polled(|cx| assert!(!first.begin(cx), "the other has its turn")).await;
        assert!(called(&mut first).await, "although the other moved nothing and said nothing");
        assert_eq!(waiting(), 0);
    }

    #[tokio::test]
    async fn who_is_gone_or_does_not_come_when_called_holds_up_nobody() {
        let (mut first, mut gone, mut absent, mut last) = (heavy(), heavy(), heavy(), heavy());
        polled(|cx| {
            assert!(first.begin(cx));
            assert!([&mut gone, &mut absent, &mut last].into_iter().all(|turn| !turn.begin(cx)));
        })
        .await;
        drop((first, gone));
        assert_eq!(waiting(), 2);
        assert!(called(&mut last).await);
        assert_eq!(waiting(), 0);
    }

    #[tokio::test]
    async fn work_that_comes_without_a_wait_takes_turns_and_work_that_waits_for_the_other_end_does_not() {
        let (mut busy, mut calm) = (Turn::default(), Turn::default());
        let _held = {
            let mut other = heavy();
            assert!(polled(|cx| other.begin(cx)).await, "somebody else has the turn");
            other
        };
        busy.next(FREE).await;
        polled(|cx| assert!(pin!(busy.next(FREE)).poll(cx).is_pending(), "one is free, the next waits")).await;
        for _ in 0..10 {
            polled(|cx| assert!(pin!(calm.next(FREE)).poll(cx).is_ready())).await;
            calm.rest(tokio::task::yield_now()).await;
        }
    }

    #[test]
    fn turns_outlive_a_runtime_that_ended() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (mut one, mut other) = (heavy(), heavy());
        runtime().block_on(polled(|cx| assert!(one.begin(cx) && !other.begin(cx))));
        assert_eq!(waiting(), 0, "nobody would call");
        let (mut third, mut fourth) = (heavy(), heavy());
        runtime().block_on(async {
            assert!(called(&mut other).await && called(&mut one).await);
            polled(|cx| assert!(third.begin(cx) && !fourth.begin(cx))).await;
            assert!(called(&mut fourth).await, "there is a scheduler again");
        });
    }
}
