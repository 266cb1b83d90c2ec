//! Long computations that share their CPU with flows. If a machine has no idle CPU, the scheduler lets a thread
//! run for milliseconds while a flow that has become ready waits, until the next tick of its clock; and a system
//! call over megabytes is not interrupted at all. So a thread with long work declares it ([`shared`]), and marks
//! in its loops where other threads may run.
//!
//! Nothing here changes what is computed; on a thread that never declared that it shares, nothing happens.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a thread works before it yields. It does not yield as often as a flow could be served, because the
/// scheduler makes a yielding thread wait for as long as the others want to run.
const TURN: Duration = Duration::from_micros(500);
/// Steps between two checks of the clock.
const STEPS: u32 = 64;

/// Bytes to read, write or hash in one go: less than a tenth of a millisecond of work.
pub const PIECE: usize = 128 << 10;

thread_local! {
    static STEPS_LEFT: Cell<u32> = const { Cell::new(STEPS) };
    /// When this thread's current turn began; `None` for a thread that does not share its CPU.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Declares that this thread yields to others from now on.
pub fn shared() {
    SINCE.set(Some(Instant::now()));
}

/// Marks the end of a step of at most a few microseconds. Costs a nanosecond or two.
#[inline]
pub fn step() {
    STEPS_LEFT.with(|left| match left.get().checked_sub(1) {
        Some(fewer) => left.set(fewer),
        None => {
            left.set(STEPS);
            piece();
        }
    });
}

/// Marks the end of a step that is long enough for a check of the clock.
pub fn piece() {
    if SINCE.get().is_some_and(|since| since.elapsed() >= TURN) {
        std::thread::yield_now();
        SINCE.set(Some(Instant::now()));
    }
}

/// Returns the bytes in pieces, and may yield after each.
pub fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(PIECE).inspect(|_| piece())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_shares_yields_after_its_turn_and_no_other_does() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..=STEPS).for_each(|_| step());
                assert_eq!(SINCE.get(), None);
                shared();
                let began = SINCE.get();
                (0..=STEPS).for_each(|_| step());
                assert!(SINCE.get() == began || began.is_some_and(|began| began.elapsed() >= TURN));
                std::thread::sleep(TURN);
                (0..STEPS).for_each(|_| step());
                assert_eq!(SINCE.get(), began, "the clock is not looked at with every step");
                step();
                assert!(SINCE.get() > began);
            });
        });
    }

    #[test]
    fn pieces_are_the_whole() {
        let bytes: Vec<u8> = (0..PIECE * 2 + 7).map(|at| (at % 251) as u8).collect();
        assert_eq!(pieces(&bytes).map(<[u8]>::len).collect::<Vec<_>>(), [PIECE, PIECE, 7]);
        assert_eq!(pieces(&bytes).collect::<Vec<_>>().concat(), bytes);
    }
}
