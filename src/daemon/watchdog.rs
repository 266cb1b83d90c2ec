//! Reports to the service manager while the daemon runs: that it is alive (watchdog), and its status.
//!
//! Alive means that every worker thread gets round to its tasks. Each has a task that only counts up now and
//! then. When one count stops, the watchdog gets no more reports, and the service manager restarts the daemon.

use crate::system;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often the status is reported if no watchdog requires a shorter interval.
const REPORT: Duration = Duration::from_secs(5);
/// Longest reported status, in characters.
const STATUS: usize = 900;
/// Longest time between two beats of a worker thread.
const BEAT: Duration = Duration::from_secs(1);

/// The beat count of one worker thread.
#[derive(Debug, Default)]
struct Beat(AtomicU64);

/// The beat counts of all worker threads.
#[derive(Clone, Debug)]
pub(super) struct Watchdog {
    beats: Arc<[Beat]>,
    /// Time between two reports, and the longest time between two beats.
    every: Duration,
    watched: bool,
}

impl Watchdog {
    /// Creates it for this number of worker threads, at the service manager's interval (sd_watchdog_enabled(3)).
    pub(super) fn new(workers: usize) -> Watchdog {
        Watchdog::at(workers, system::watchdog())
    }

    fn at(workers: usize, limit: Option<Duration>) -> Watchdog {
        // Three times as often as required, so that one late report does no harm.
        let every = limit.map_or(REPORT, |limit| (limit / 3).clamp(Duration::from_millis(1), REPORT));
        Watchdog { beats: (0..workers).map(|_| Beat::default()).collect(), every, watched: limit.is_some() }
    }

    /// Counts beats for the worker thread `index`, on its own runtime, for as long as it is polled.
    ///
    /// It also runs without a watchdog. A runtime makes a system call to wake itself for each new timer that is
    /// due before all others. With a beat due soon, no deadline of a flow is due first.
    pub(super) async fn beat(self, index: usize) {
        let mut ticks = tokio::time::interval(self.every.min(BEAT));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(Beat(count)) = self.beats.get(index) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reports for as long as it is polled. `state` returns one line on the daemon's status.
    pub(super) async fn report(self, state: impl Fn() -> String) {
        let mut watch = StallDetector::default();
        let mut last_status = String::new();
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let silent = watch.silent(&self.counts(), Instant::now(), self.every * 2);
            match silent {
                _ if !self.watched => {}
                None => system::notify(&[sd_notify::NotifyState::Watchdog]),
                Some(worker) => tracing::error!(
                    worker,
                    "a worker thread is stuck; the watchdog is not notified until \
                                                         it recovers"
                ),
            }
            // systemd drops a message of more than 4 KiB.
            let now: String = state().chars().take(STATUS).collect();
            if now != last_status {
                system::notify(&[sd_notify::NotifyState::Status(&now)]);
                last_status = now;
            }
        }
    }

    fn counts(&self) -> Vec<u64> {
        self.beats.iter().map(|Beat(count)| count.load(Ordering::Relaxed)).collect()
    }
}

/// When each thread's count was last seen to change.
#[derive(Debug, Default)]
struct StallDetector(Vec<(u64, Instant)>);

impl StallDetector {
    /// Returns the first thread whose count has not changed for longer than `limit`.
    fn silent(&mut self, counts: &[u64], now: Instant, limit: Duration) -> Option<usize> {
        if self.0.len() != counts.len() {
            self.0 = counts.iter().map(|count| (*count, now)).collect();
        }
        for ((last, since), count) in self.0.iter_mut().zip(counts) {
            if last != count {
                (*last, *since) = (*count, now);
            }
        }
        self.0.iter().position(|(_, since)| now.saturating_duration_since(*since) > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_stands_still_is_found_and_one_that_goes_on_again_is_forgiven() {
        let (mut watch, limit) = (StallDetector::default(), Duration::from_secs(2));
        let mut after = async |counts: &[u64]| {
            tokio::time::advance(Duration::from_millis(1500)).await;
            watch.silent(counts, Instant::now(), limit)
        };
        assert_eq!(after(&[0, 0]).await, None);
        assert_eq!(after(&[1, 0]).await, None, "one period may be late");
        assert_eq!(after(&[2, 0]).await, Some(1));
        assert_eq!(after(&[3, 1]).await, None);
        assert_eq!(after(&[3, 2]).await, None);
        assert_eq!(after(&[3, 3]).await, Some(0));
    }

    #[test]
    fn a_runtime_that_is_blocked_does_not_beat() {
        let watchdog = Watchdog::at(2, Some(Duration::from_millis(30)));
        let wedged = watchdog.clone();
        let threads = [watchdog.clone(), wedged].into_iter().enumerate().map(|(index, watchdog)| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    tokio::spawn(watchdog.beat(index));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if index == 1 {
                        std::thread::sleep(Duration::from_millis(600));
                    } else {
                        tokio::time::sleep(Duration::from_millis(600)).await;
                    }
                });
            })
        });
        let threads: Vec<_> = threads.collect();
        std::thread::sleep(Duration::from_millis(150));
        let before = watchdog.counts();
        std::thread::sleep(Duration::from_millis(350));
        let after = watchdog.counts();
        assert!(after[0] > before[0], "{before:?} {after:?}");
        assert_eq!(after[1], before[1], "{before:?} {after:?}");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn reports_come_three_times_as_often_as_the_watchdog_wants_and_beats_only_where_there_is_one() {
        assert_eq!(Watchdog::at(1, Some(Duration::from_secs(3))).every, Duration::from_secs(1));
        assert_eq!(Watchdog::at(1, Some(Duration::from_secs(600))).every, REPORT);
        assert!(!Watchdog::at(1, None).watched);
    }
}
