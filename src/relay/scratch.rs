//! The scratch buffer of a worker thread, and the bytes that flows keep when a peer is slow.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// The largest read: the whole scratch, 1 MiB. Measured on loopback, a relay costs 0.3 s of CPU a GiB
/// with it and 0.8 s with 16 KiB.
pub(crate) const MAX_CHUNK: usize = 1 << 20;
/// The first read of a flow, and each read after the peer did not keep up, 64 KiB.
pub(crate) const MIN_CHUNK: usize = 64 << 10;
/// When the flows of a thread keep more than this, reads are [`TIGHT_CHUNK`] at most: 64 MiB, or less where memory
/// is bounded.
static KEPT_SOFT: AtomicUsize = AtomicUsize::new(MOST_KEPT);
/// See [`KEPT_SOFT`].
const MOST_KEPT: usize = 64 << 20;
/// A read while memory is tight, 8 KiB.
const TIGHT_CHUNK: usize = 8 << 10;

/// Limits what the flows of all `threads` threads keep to an eighth of `memory` bytes. 0: only the usual limit of 64
/// MiB a thread.
pub fn keep_within(memory: u64, threads: usize) {
    let share = usize::try_from(memory / 8).unwrap_or(usize::MAX) / threads.max(1);
    let most = if memory == 0 { MOST_KEPT } else { share.min(MOST_KEPT) };
    KEPT_SOFT.store(most, Ordering::Relaxed);
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static KEPT: Cell<usize> = const { Cell::new(0) };
}

/// Lends the first `size` bytes of the thread's scratch, [`MAX_CHUNK`] at most. The loan ends before the caller can
/// await, so one buffer serves every flow of the thread.
pub(crate) fn with<T>(size: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.is_empty() {
            scratch.resize(MAX_CHUNK, 0);
        }
        let size = size.clamp(1, MAX_CHUNK);
        match scratch.get_mut(..size) {
            Some(part) => work(part),
            None => work(&mut []),
        }
    })
}

/// How much a read may ask for, given what this thread's flows keep already.
pub(crate) fn allowance() -> usize {
    if KEPT.get() > KEPT_SOFT.load(Ordering::Relaxed) { TIGHT_CHUNK } else { MAX_CHUNK }
}

/// Counts that a flow of this thread now keeps `now` bytes instead of `before`.
pub(crate) fn recount(before: usize, now: usize) {
    KEPT.set(KEPT.get().saturating_sub(before) + now);
}

/// Bytes kept by all flows of this thread.
#[cfg(test)]
pub(crate) fn kept_by_thread() -> usize {
    KEPT.get()
}

/// Bytes that a peer has not accepted yet, in order. Uses no memory while there are none.
#[derive(Debug, Default)]
pub(crate) struct ThreadBuffer {
    bytes: Vec<u8>,
    sent: usize,
    /// Whether bytes moved since this was last cleared; for the idle clock.
    pub(crate) moved: bool,
}

impl ThreadBuffer {
    /// Starts with `bytes` to write.
    pub(crate) fn new(bytes: Vec<u8>) -> ThreadBuffer {
        KEPT.set(KEPT.get() + bytes.len());
        ThreadBuffer { bytes, sent: 0, moved: false }
    }

    /// Adds bytes to be written after those kept already.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        KEPT.set(KEPT.get() + rest.len());
        self.bytes.extend_from_slice(rest);
    }

    /// Nothing left to write?
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes what is kept. Ready when nothing is left, neither here nor in `to`, which may hold encrypted bytes
    /// that are not sent yet. Returns how many bytes were written since it was last ready.
    pub(crate) fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.is_empty() {
            return Pin::new(to).poll_flush(cx).map_ok(|()| 0);
        }
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *to).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.sent += n;
                    self.moved = true;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        ready!(Pin::new(to).poll_flush(cx))?;
        let written = self.bytes.len();
        self.release();
        Poll::Ready(Ok(written))
    }

    /// Removes and returns what was not written.
    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.bytes.get(self.sent..).unwrap_or_default().to_vec();
        self.release();
        rest
    }

    fn release(&mut self) {
        KEPT.set(KEPT.get().saturating_sub(self.bytes.len()));
        self.bytes = Vec::new();
        self.sent = 0;
    }
}

impl Drop for ThreadBuffer {
    fn drop(&mut self) {
        self.release();
    }
}
