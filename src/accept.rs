//! Listeners and per-guest limits: a connection comes in, an [`Accepted`] goes on.
//!
//! One accept loop a listener and worker thread. Running out of file descriptors pauses the loop
//! instead of spinning it, and who waits is reset meanwhile. Which guest it is and what it wants is for
//! the stages behind; how full the daemon is, is measured elsewhere and only heeded here.

mod inherit;
pub mod limits;
mod listen;
pub mod overload;
mod sockets;

pub use inherit::Missing;
pub use limits::{Gate, LimitSettings, Looking, Pace, Purpose, Slot, Telling};
pub use listen::{Kind, ListenError};
pub use sockets::{Shares, Sockets, Unclaimed};

use crate::reason::Reason;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// How long accepting pauses when the process or the system is out of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections that are reset between two pauses, where no descriptor is left for them.
const RESETS: usize = 64;
/// How often the log says that accepting pauses.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// A connection that came in.
#[derive(Debug)]
pub struct Accepted {
    /// The guest's end.
    pub stream: TcpStream,
    /// The guest's address and port.
    pub source: SocketAddr,
    /// When it came in; deadlines count from here.
    pub at: Instant,
    /// Its place among the guest's connections, or why it has none (it is then told so and closed).
    pub slot: Result<Slot, Reason>,
}

/// A listener and what its connections are for.
pub struct Entrance<'a> {
    /// Where they come in.
    pub listener: TcpListener,
    /// What holds them to the limits.
    pub gate: &'a Arc<Gate>,
    /// What they are for.
    pub purpose: Purpose,
}

/// What went wrong with accepting.
#[derive(Debug)]
pub enum Trouble {
    /// It pauses (EMFILE, ENFILE, ENOBUFS, ENOMEM). Who comes waits in the listener's queue.
    Pause,
    /// A connection of this source was reset, because no file descriptor is left for it.
    Reset(SocketAddr),
}

/// Accepts until `stop` is done, handing each connection to `serve` and saying what goes wrong.
pub async fn run(
    entrance: Entrance<'_>,
    stop: impl Future<Output = ()>,
    mut serve: impl FnMut(Accepted),
    mut trouble: impl FnMut(Trouble),
) {
    let Entrance { listener, gate, purpose } = entrance;
    let mut spare = Spare::of(&listener);
    let mut said: Option<Instant> = None;
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, source)) => {
                let at = Instant::now();
                let source = SocketAddr::new(source.ip().to_canonical(), source.port());
                // Failing only means Nagle stays on; the flow works all the same.
                let _ = stream.set_nodelay(true);
                let slot = gate.admit(source.ip(), purpose, at);
                let is_refused = slot.is_err();
                serve(Accepted { stream, source, at, slot });
                if is_refused {
                    // It is to be gone before the next comes: a flood of them is not to use up descriptors.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                trouble(Trouble::Pause);
                if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    tracing::warn!(%error, "accepting pauses; who cannot be accepted is reset where that is possible");
                    said = Some(Instant::now());
                }
                for source in spare.reset(&listener).await {
                    trouble(Trouble::Reset(source));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A descriptor in reserve. When there is none left for a connection, the reserve is given up for as long as
/// it takes to accept and reset it: a refusal at once instead of a wait without end. It is of no use where
/// it is the whole system that has none left, or where the limit was lowered below what is open.
struct Spare(Option<OwnedFd>);

impl Spare {
    fn of(listener: &TcpListener) -> Spare {
        Spare(listener.as_fd().try_clone_to_owned().ok())
    }

    /// Resets who waits, [`RESETS`] at most; gives their addresses.
    async fn reset(&mut self, listener: &TcpListener) -> Vec<SocketAddr> {
        let mut sources = Vec::new();
        while sources.len() < RESETS {
            if self.0.take().is_none() {
                *self = Spare::of(listener);
                break;
            }
            // Another thread may have taken the place; then this fails as before.
            let accepted = poll_fn(|cx| Poll::Ready(listener.poll_accept(cx))).await;
            if let Poll::Ready(Ok((stream, source))) = &accepted {
                let _ = stream.set_zero_linger();
                sources.push(SocketAddr::new(source.ip().to_canonical(), source.port()));
            }
            let more = matches!(accepted, Poll::Ready(Ok(_)));
            drop(accepted);
            *self = Spare::of(listener);
            if !more {
                break;
            }
        }
        sources
    }
}

/// Errors of accept(2) that concern the one connection that was to be accepted, not the listener.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied | WouldBlock)
}
