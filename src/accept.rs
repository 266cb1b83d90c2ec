//! Listeners and per-guest limits: a connection comes in, an [`Accepted`] goes on.
//!
//! One accept loop a listener and worker thread. Running out of file descriptors pauses the loop
//! instead of spinning it, and who waits is reset meanwhile. Which guest it is and what it wants is for
//! the stages behind; how full the daemon is, is measured elsewhere and only heeded here.

mod incoming;
mod inherit;
pub mod limits;
mod listen;
pub mod overload;
mod reserve;
mod sockets;

pub use incoming::Incoming;
pub use inherit::{Missing, not_held};
pub use limits::{Gate, LimitSettings, NamePace, Names, Pace, Place, Purpose, QueryPace, Slot, Telling};
pub use listen::{ListenError, SocketUse};
pub use reserve::Reserve;
pub use sockets::{Shares, Sockets, Unclaimed};

use crate::reason::Reason;
use crate::throttle::Throttle;
use std::future::Future;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
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
    /// The guest's end, non-blocking and not yet given to a runtime.
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
    pub listener: Incoming,
    /// What holds them to the limits.
    pub gate: &'a Arc<Gate>,
    /// What turns them away when no file descriptor is left.
    pub reserve: &'a Reserve,
    /// What they are for.
    pub purpose: Purpose,
}

/// What went wrong with accepting.
#[derive(Debug)]
pub enum AcceptFailure {
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
    mut trouble: impl FnMut(AcceptFailure),
) {
    let Entrance { listener, gate, reserve, purpose } = entrance;
    let said = Throttle::new(SAY_AGAIN);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return,
            accepted = listener.next() => accepted,
        };
        match accepted {
            Ok((stream, source)) => {
                let at = Instant::now();
                let source = canonical(source);
                let Some(stream) = reserve.check(stream) else {
                    trouble(AcceptFailure::Reset(source));
                    continue;
                };
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
                trouble(AcceptFailure::Pause);
                if said.turn().is_some() {
                    tracing::warn!(%error, "accepting pauses; who cannot be accepted is reset where that is possible");
                }
                for source in reserve.reset(&listener) {
                    trouble(AcceptFailure::Reset(source));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The address as the rest of the daemon knows it: IPv4 that came in on an IPv6 socket is IPv4.
fn canonical(source: SocketAddr) -> SocketAddr {
    SocketAddr::new(source.ip().to_canonical(), source.port())
}

/// Errors of accept(2) that concern the one connection that was to be accepted, not the listener.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied | WouldBlock)
}
