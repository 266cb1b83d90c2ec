//! A counting semaphore whose permits are never waited for: at most so many at once, given back by drop. It has no lock
//! and no memory of its own; the counter is where its user has it.

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};

/// One of a limited number of permits. `C` leads to the counter of those in use.
#[derive(Debug)]
pub struct SemaphorePermit<C: Deref<Target = AtomicU32>>(C);

impl<C: Deref<Target = AtomicU32>> SemaphorePermit<C> {
    /// Takes a permit if fewer than `most` are in use.
    pub fn try_acquire(in_use: C, most: u32) -> Option<SemaphorePermit<C>> {
        // From here on, the drop takes the count back.
        let permit = SemaphorePermit(in_use);
        (permit.0.fetch_add(1, Ordering::Relaxed) < most).then_some(permit)
    }
}

impl<C: Deref<Target = AtomicU32>> Drop for SemaphorePermit<C> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn there_are_so_many_permits_and_each_comes_back() {
        let in_use = Arc::new(AtomicU32::new(0));
        let take = || SemaphorePermit::try_acquire(Arc::clone(&in_use), 2);
        let (first, second) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        assert_eq!(in_use.load(Ordering::Relaxed), 2, "a refusal takes nothing");
        drop(first);
        assert!(take().is_some());
        drop(second);
        assert_eq!(in_use.load(Ordering::Relaxed), 0);
    }
}
