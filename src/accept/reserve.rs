//! One file descriptor kept in reserve, so that a connection that cannot be served is reset at once and does not wait.

use crate::accept::{Incoming, RESETS, canonical};
use crate::lock::lock;
use socket2::SockRef;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The process's reserve descriptor. When no descriptor is left for a connection, the reserve is closed just
/// long enough to accept and reset that connection.
///
/// All listeners and threads share one reserve. While it is closed, another thread's accept may take its
/// descriptor, since nothing can hold that accept off. That thread then finds the reserve missing and gives the
/// descriptor back. The reserve does not help when the whole system is out of descriptors, or when the limit
/// was lowered below what is open.
#[derive(Debug, Default)]
pub struct Reserve {
    kept: Mutex<Option<OwnedFd>>,
    /// Whether `kept` holds one; false from before it is closed until it is filled again.
    held: AtomicBool,
}

impl Reserve {
    /// Creates the reserve. If no descriptor is free, the next connection's descriptor becomes the reserve.
    pub fn take() -> Reserve {
        let reserve = Reserve::default();
        reserve.keep(&mut reserve.kept());
        reserve
    }

    /// Refills the reserve, if needed, after `stream` was accepted. If it is missing and no other descriptor is
    /// free, `stream` got the last one: it is reset, its descriptor becomes the reserve, and `None` is
    /// returned.
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

    /// Resets the connections that wait at `listener`, [`RESETS`] at most; returns their addresses.
    pub(super) fn reset(&self, listener: &Incoming) -> Vec<SocketAddr> {
        let mut sources = Vec::new();
        let mut kept = self.kept();
        while sources.len() < RESETS && self.keep(&mut kept) {
            self.held.store(false, Ordering::Release);
            kept.take();
            // Another thread may have taken the descriptor; then this fails as before.
            let Ok((stream, source)) = listener.waiting() else { break };
            reset(stream);
            sources.push(canonical(source));
        }
        self.keep(&mut kept);
        sources
    }

    fn kept(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        lock(&self.kept)
    }

    /// Fills the reserve if it is missing; returns whether there is one now.
    fn keep(&self, kept: &mut Option<OwnedFd>) -> bool {
        if kept.is_none() {
            // Any open file works. Unlike a listener, this one blocks nothing when it is closed elsewhere.
            *kept = std::io::stderr().as_fd().try_clone_to_owned().ok();
        }
        self.held.store(kept.is_some(), Ordering::Release);
        kept.is_some()
    }
}

fn reset(stream: TcpStream) {
    // If this fails, the connection is closed normally instead of reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}
