//! Listeners and per-guest limits: a connection comes in, an [`Accepted`] goes on.
//!
//! One accept loop a listener and worker thread. Running out of file descriptors pauses the loop
//! instead of spinning it. Which guest it is and what it wants is for the stages behind.

mod inherit;
pub mod limits;
mod listen;
mod sockets;

pub use inherit::Missing;
pub use limits::{Gate, LimitSettings, Looking, Pace, Slot, Telling};
pub use listen::{Kind, ListenError};
pub use sockets::{Shares, Sockets, Unclaimed};

use crate::reason::Reason;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// How long accepting pauses when the process or the system is out of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

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

/// Accepts until `stop` is done, handing each connection to `serve`.
///
/// `paused` is called each time accepting has to pause (EMFILE, ENFILE, ENOBUFS, ENOMEM).
pub async fn run(
    listener: TcpListener,
    gate: &Arc<Gate>,
    stop: impl Future<Output = ()>,
    mut serve: impl FnMut(Accepted),
    mut paused: impl FnMut(&std::io::Error),
) {
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
                serve(Accepted { stream, source, at, slot: gate.admit(source.ip(), at) });
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                paused(&error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Errors of accept(2) that concern the one connection that was to be accepted, not the listener.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied | WouldBlock)
}
