//! Rate-limits a message and counts how often it was suppressed.

use crate::lock::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Permits a message at most once in an interval.
#[derive(Debug)]
pub struct Throttle {
    between: Duration,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    at: Option<Instant>,
    /// How many messages were suppressed since then.
    untold: u64,
}

impl Throttle {
    /// Creates a throttle with at least this much time between two messages.
    pub fn new(between: Duration) -> Throttle {
        Throttle { between, last: Mutex::default() }
    }

    /// If it is time for the message again, returns how many were suppressed since the last one; else `None`.
    pub fn turn(&self) -> Option<u64> {
        self.turn_at(Instant::now())
    }

    fn turn_at(&self, now: Instant) -> Option<u64> {
        let mut last = lock(&self.last);
        if last.at.is_some_and(|at| now.saturating_duration_since(at) < self.between) {
            last.untold += 1;
            return None;
        }
        last.at = Some(now);
        Some(std::mem::take(&mut last.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_one_in_so_long_is_told_and_how_many_were_not() {
        let seldom = Throttle::new(Duration::from_secs(1));
        let now = Instant::now();
        let turns = [0, 1, 999, 1000, 1001, 5000].map(|ms| seldom.turn_at(now + Duration::from_millis(ms)));
        assert_eq!(turns, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
