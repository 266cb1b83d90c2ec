//! The log's thread: takes the events that flows queued, updates the top refusals, folds, asks for advice,
//! renders, and passes the lines to the sink. It never waits for the sink, so the top refusals stay current
//! while a disk hangs.

use super::event::{Event, Key};
use super::fold::{Fold, deserves_advice};
use super::health::Health;
use super::line::{Line, render};
use super::queue::Queue;
use super::refusals::{RefusalView, Refusals};
use super::sink::{Batch, Sink};
use super::{AccessLog, AccountError, Advice, ListenerLabel, LogSettings, Metrics, lock};
use crate::identify::Claim;
use crate::reason::{Reason, Verdict};
use crate::target::Host;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How often the queue is polled while it is active.
const POLL: Duration = Duration::from_millis(20);
/// After so many empty polls the thread sleeps until it is woken.
const IDLE_POLLS: u32 = 5;
/// After a batch this large, the next one follows without a pause.
const BUSY: usize = 2048;

/// The flows' side of the log; dropping it ends the thread.
pub(super) struct Log {
    shared: Arc<LogShared>,
}

/// What the flows and the threads of the log share.
struct LogShared {
    queue: Queue,
    refusals: Mutex<Refusals>,
    /// What was allowed and failed.
    failures: Mutex<Refusals>,
    advice: Mutex<Option<Advice>>,
    output: Mutex<Output>,
    stop: AtomicBool,
    flushes: Mutex<Flushes>,
    flushed: Condvar,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    epoch: u64,
}

struct Output {
    settings: LogSettings,
    /// `None`: the log is off.
    sink: Option<Arc<Sink>>,
}

#[derive(Default)]
struct Flushes {
    asked: u64,
    done: u64,
}

impl Log {
    pub(super) fn start(settings: &LogSettings, metrics: &Arc<Metrics>, epoch: u64) -> Result<Log, AccountError> {
        let health = Arc::new(Health::new(metrics));
        let sink = open(&settings.access, metrics, &health)?;
        health.adopt(sink.as_deref().map(Sink::number), settings.on_failure);
        let shared = Arc::new(LogShared {
            queue: Queue::new(Arc::clone(metrics)),
            refusals: Mutex::default(),
            failures: Mutex::default(),
            advice: Mutex::default(),
            output: Mutex::new(Output { settings: settings.clone(), sink }),
            stop: AtomicBool::new(false),
            flushes: Mutex::default(),
            flushed: Condvar::new(),
            metrics: Arc::clone(metrics),
            health,
            epoch,
        });
        let worker = Worker { shared: Arc::clone(&shared), fold: Fold::default() };
        let thread = thread::Builder::new()
            .name("outgate-log".into())
            .spawn(move || worker.run())
            .map_err(AccountError::Thread)?;
        shared.queue.set_reader(thread.thread().clone());
        Ok(Log { shared })
    }

    pub(super) fn push(&self, event: Event) {
        self.shared.queue.push(event);
    }

    pub(super) fn reconfigure(&self, settings: &LogSettings, metrics: &Arc<Metrics>) -> Result<(), AccountError> {
        let mut output = lock(&self.shared.output);
        if output.settings.access != settings.access {
            output.sink = open(&settings.access, metrics, &self.shared.health)?;
        }
        self.shared.health.adopt(output.sink.as_deref().map(Sink::number), settings.on_failure);
        output.settings = settings.clone();
        Ok(())
    }

    pub(super) fn reopen(&self) {
        if let Some(sink) = &lock(&self.shared.output).sink {
            sink.reopen();
        }
    }

    /// Whether nothing new may be let through, because the log is failing.
    #[inline]
    pub(super) fn refuses(&self) -> bool {
        self.shared.health.refuses()
    }

    /// Returns why the log is failing, if it is, and what to do.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.health.trouble()
    }

    pub(super) fn set_advice(&self, advice: Advice) {
        *lock(&self.shared.advice) = Some(advice);
    }

    pub(super) fn refusals(&self, limit: usize) -> Vec<RefusalView> {
        lock(&self.shared.refusals).top(limit)
    }

    pub(super) fn failures(&self, limit: usize) -> Vec<RefusalView> {
        lock(&self.shared.failures).top(limit)
    }

    pub(super) fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut flushes = lock(&self.shared.flushes);
        flushes.asked += 1;
        let mine = flushes.asked;
        self.shared.queue.wake();
        while flushes.done < mine {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            flushes = match self.shared.flushed.wait_timeout(flushes, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        drop(flushes);
        let sink = lock(&self.shared.output).sink.clone();
        if let Some(sink) = sink {
            sink.wait_idle(deadline);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.queue.wake();
    }
}

fn open(access: &AccessLog, metrics: &Arc<Metrics>, health: &Arc<Health>) -> Result<Option<Arc<Sink>>, AccountError> {
    match access {
        AccessLog::Off => Ok(None),
        access => Ok(Some(Arc::new(Sink::open(access, metrics, health)?))),
    }
}

/// Returns what to do when a client asked a proxy for an address and no rule covers it.
fn unbound(event: &Event) -> Option<&'static str> {
    let target = event.claim.as_ref().map(|claim| &claim.target.host);
    let by_proxy = matches!(event.listener, ListenerLabel::Proxy | ListenerLabel::Socks);
    let unlisted = by_proxy && event.reason == Reason::NotWhitelisted && matches!(target, Some(Host::Addr(_)));
    unlisted.then_some(
        "the client looked the name up itself, and not with outgate's DNS; let the proxy do it (socks5h:// in place of \
         socks5://, CONNECT to the name)",
    )
}

struct Worker {
    shared: Arc<LogShared>,
    fold: Fold,
}

impl Worker {
    fn run(mut self) {
        let mut events = Vec::new();
        let mut idle = 0;
        loop {
            let stop = self.shared.stop.load(Ordering::Acquire);
            let asked = lock(&self.shared.flushes).asked;
            self.shared.queue.take(&mut events);
            let taken = events.len();
            let finish = stop || asked != lock(&self.shared.flushes).done;
            self.digest(&mut events, finish);
            if finish {
                lock(&self.shared.flushes).done = asked;
                self.shared.flushed.notify_all();
            }
            if stop {
                return;
            }
            idle = if taken == 0 { idle + 1 } else { 0 };
            if taken < BUSY {
                self.pause(idle);
            }
        }
    }

    /// Waits until the next poll: a moment, or, while nothing happens, until an event, a flush or the end of a window.
    fn pause(&self, idle: u32) {
        let LogShared { queue, .. } = &*self.shared;
        match idle {
            0..IDLE_POLLS => thread::park_timeout(POLL),
            // There is one more poll after this before the thread sleeps.
            IDLE_POLLS => queue.sleep(),
            _ => {
                match self.fold.next_end() {
                    Some(end) => thread::park_timeout(end.saturating_duration_since(Instant::now())),
                    None => thread::park(),
                }
                queue.sleep();
            }
        }
        if idle < IDLE_POLLS {
            queue.awake();
        }
    }

    fn digest(&mut self, events: &mut Vec<Event>, finish: bool) {
        let now = Instant::now();
        let (sink, denied_only) = {
            let output = lock(&self.shared.output);
            (output.sink.clone(), output.settings.denied_only)
        };
        let mut batch = Batch::default();
        let epoch = self.shared.epoch;
        let mut write = |line: &Line| {
            if sink.is_some() && !(denied_only && line.event.verdict == Verdict::Allowed) {
                batch.push(line.event.verdict, line.event.is_refusal(), |bytes| render(line, epoch, bytes));
            }
        };
        for event in events.drain(..) {
            if let Some(line) = self.take_in(event, now) {
                write(&line);
            }
        }
        self.fold.tick(now, |line| write(&line));
        if finish {
            self.fold.finish(|line| write(&line));
        }
        if let Some(sink) = sink {
            sink.send(batch);
        }
        // After a flood, free its memory.
        if events.capacity() > 4 * BUSY {
            *events = Vec::new();
        }
    }

    /// Counts the event in the tables; returns the line to write for it now, if any.
    fn take_in(&mut self, event: Event, now: Instant) -> Option<Line> {
        let observed = event.verdict == Verdict::Observed && event.duration.is_some();
        if event.verdict == Verdict::Failed && event.duration.is_some() {
            lock(&self.shared.failures).add(&event.key(), &event);
        }
        if !event.is_refusal() && !observed {
            return Some(Line { event, count: None, advice: None, others: false });
        }
        let key = event.key();
        let ranked = observed || event.verdict == Verdict::Denied;
        let new = ranked && lock(&self.shared.refusals).add(&key, &event);
        if observed {
            let advice = if new { self.advise(&key, event.claim.as_ref()) } else { None };
            return Some(Line { event, count: None, advice, others: false });
        }
        let event = self.fold.offer(&key, event, now)?;
        let advice = self.advise(&key, event.claim.as_ref()).or_else(|| {
            let unbound: Arc<str> = unbound(&event)?.into();
            self.fold.advise(&key, Arc::clone(&unbound));
            lock(&self.shared.refusals).advise(&key, Arc::clone(&unbound));
            Some(unbound)
        });
        Some(Line { event, count: None, advice, others: false })
    }

    /// Asks for the nearest rule and stores the answer for the key.
    fn advise(&mut self, key: &Key, claim: Option<&Claim>) -> Option<Arc<str>> {
        let claim = claim.filter(|_| deserves_advice(key.reason))?;
        let near = {
            let advice = lock(&self.shared.advice);
            let ask = advice.as_ref()?;
            catch_unwind(AssertUnwindSafe(|| ask(claim)))
        };
        let near = match near {
            Ok(near) => near?,
            Err(_) => {
                self.shared.metrics.panicked();
                return None;
            }
        };
        let text: Arc<str> = match &near.rule {
            Some(rule) => format!("{rule}: {}", near.advice),
            None => near.advice,
        }
        .into();
        self.fold.advise(key, Arc::clone(&text));
        lock(&self.shared.refusals).advise(key, Arc::clone(&text));
        Some(text)
    }
}
