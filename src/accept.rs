//! Listeners and per-guest limits: turns each incoming connection into an [`Accepted`].
//!
//! Each listener has one accept loop per worker thread. When file descriptors run out, the loop pauses instead
//! of spinning and meanwhile resets the waiting connections. What a connection asks for is the concern of later
//! stages, and `daemon::relief` measures how full the daemon is.

mod incoming;
mod inherit;
mod listen;
mod reserve;
pub mod socket_unit;
mod sockets;

pub use incoming::Incoming;
pub use inherit::{Missing, not_held};
pub use listen::{ListenError, SocketUse};
pub use reserve::Reserve;
pub use sockets::{Sockets, Unclaimed, WorkerSockets};

use crate::endpoint::canonical;
use crate::guest::Guest;
use crate::limits::{Gate, Purpose, Slot};
use crate::reason::Reason;
use crate::throttle::Throttle;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long accepting pauses when the process or the system is out of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections that are reset between two pauses because no descriptor is left for them.
const RESETS: usize = 64;
/// How often the log reports that accepting pauses.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The guest's end, non-blocking and not yet given to a runtime.
    pub stream: TcpStream,
    /// The guest's address and port.
    pub source: SocketAddr,
    /// When it was accepted; deadlines count from here.
    pub at: Instant,
    /// The guest at that address.
    pub guest: Guest,
    /// Its slot among the guest's connections, or why it has none (it then gets a refusal and is closed).
    pub slot: Result<Slot, Reason>,
}

/// A listener and what its connections are for.
pub struct Entrance<'a> {
    /// Where they arrive.
    pub listener: Incoming,
    /// Finds out which guest is at an address.
    pub guest_at: &'a (dyn Fn(IpAddr) -> Guest + Sync),
    /// Enforces the limits.
    pub gate: &'a Arc<Gate>,
    /// Resets them when no file descriptor is left.
    pub reserve: &'a Reserve,
    /// What they are for.
    pub purpose: Purpose,
}

/// What went wrong with accepting.
#[derive(Debug)]
pub enum AcceptFailure {
    /// Accepting pauses (EMFILE, ENFILE, ENOBUFS, ENOMEM). New connections wait in the listener's queue.
    Pause,
    /// A connection from this source was reset, because no file descriptor is left for it.
    Reset(SocketAddr),
}

/// Accepts until `stop` is done. Passes each connection to `serve` and reports failures to `trouble`.
pub async fn run(
    entrance: Entrance<'_>,
    stop: impl Future<Output = ()>,
    mut serve: impl FnMut(Accepted),
    mut trouble: impl FnMut(AcceptFailure),
) {
    let Entrance { listener, guest_at, gate, reserve, purpose } = entrance;
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
                let guest = guest_at(source.ip());
                let slot = match purpose {
                    Purpose::Handshake => gate.admit(&gate.handshakes(source.ip(), at), purpose, at),
                    Purpose::Flow | Purpose::Names => gate.admit(&guest.usage, purpose, at),
                };
                let is_refused = slot.is_err();
                serve(Accepted { stream, source, at, guest, slot });
                if is_refused {
                    // Let it close before the next accept: a flood of refused connections must not use up descriptors.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                trouble(AcceptFailure::Pause);
                if said.turn().is_some() {
                    tracing::warn!(%error, "accepting pauses; connections that cannot be accepted are reset where that \
                                            is possible");
                }
                for source in reserve.reset(&listener) {
                    trouble(AcceptFailure::Reset(source));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the error of accept(2) concerns only the one connection that was to be accepted, not the listener.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied | WouldBlock)
}
