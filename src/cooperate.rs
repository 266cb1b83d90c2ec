//! Long work that shares its CPU with flows. Where a machine has no CPU to spare, the scheduler lets a
//! thread go on for milliseconds while a flow that has become ready waits, up to the next tick of its
//! clock, and a system call over megabytes is not interrupted at all. So whoever takes long says so
//! ([`shared`]), and says in his loops where others may come in between.
//!
//! Nothing here changes what is computed; on a thread that never said that it shares, nothing happens.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a thread works before it lets others in. Less often than a flow could be served, since the
/// scheduler takes a thread that yields at its word and lets it wait for as long as the others like.
const TURN: Duration = Duration::from_micros(500);
/// Steps between two looks at the clock.
const STEPS: u32 = 64;

/// Bytes that are read, written or summed up in one go: what takes less than a tenth of a millisecond.
pub const PIECE: usize = 128 << 10;

thread_local! {
    static STEPS_LEFT: Cell<u32> = const { Cell::new(STEPS) };
    /// When this thread came in last; none for one that does not share its CPU.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// From now on this thread lets others in.
pub fn shared() {
    SINCE.set(Some(Instant::now()));
}

/// A step of at most a few microseconds is done. Costs a nanosecond or two.
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

/// A step that is worth a look at the clock is done.
pub fn piece() {
    if SINCE.get().is_some_and(|since| since.elapsed() >= TURN) {
        std::thread::yield_now();
        SINCE.set(Some(Instant::now()));
    }
}

/// The bytes in pieces, with a chance for others after each.
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
