//! One file descriptor kept in reserve, so that who cannot be served is told at once instead of waiting.

use crate::accept::{Incoming, RESETS, canonical};
use socket2::SockRef;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The process's descriptor in reserve. When none is left for a connection, the reserve is given up for as
/// long as it takes to accept and reset it.
///
/// There is one for all listeners and threads: whoever takes its place while it is given up (another
/// thread's accept cannot be held off) finds it missing and gives the place back. It is of no use where it is
/// the whole system that has no descriptors left, or where the limit was lowered below what is open.
#[derive(Debug, Default)]
pub struct Reserve {
    kept: Mutex<Option<OwnedFd>>,
    /// Whether `kept` holds one; false from before it is given up until it is kept again.
    held: AtomicBool,
}

impl Reserve {
    /// Takes a descriptor into reserve. Where there is none, the next connection's place becomes it.
    pub fn take() -> Reserve {
        let reserve = Reserve::default();
        reserve.keep(&mut reserve.kept());
        reserve
    }

    /// Makes sure of the reserve once `stream` was accepted. When it is missing and no other descriptor is
    /// free, `stream` was the last to get one: it is reset and its place kept, and there is nothing to serve.
    pub(super) fn check(&self, stream: TcpStream) -> Option<TcpStream> {
        if self.held.load(Ordering::Acquire) {
            return Some(stream);
        }
        let mut kept = self.kept();
        if self.keep(&mut kept) {
            return Some(stream);
        }
        reset(stream);
        self.keep(&mut kept);
        None
    }

    /// Resets who waits at `listener`, [`RESETS`] at most; gives their addresses.
    pub(super) fn reset(&self, listener: &Incoming) -> Vec<SocketAddr> {
        let mut sources = Vec::new();
        let mut kept = self.kept();
        while sources.len() < RESETS && self.keep(&mut kept) {
            self.held.store(false, Ordering::Release);
            kept.take();
            // Another thread may have taken the place; then this fails as before.
            let Ok((stream, source)) = listener.waiting() else { break };
            reset(stream);
            sources.push(canonical(source));
        }
        self.keep(&mut kept);
        sources
    }

    fn kept(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the reserve where it is missing; whether there is one now.
    fn keep(&self, kept: &mut Option<OwnedFd>) -> bool {
        if kept.is_none() {
            // Any open file does; this one holds up nothing when it is closed elsewhere, as a listener would.
            *kept = std::io::stderr().as_fd().try_clone_to_owned().ok();
        }
        self.held.store(kept.is_some(), Ordering::Release);
        kept.is_some()
    }
}

fn reset(stream: TcpStream) {
    // Failing only means that it is closed in order.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}
