//! The guests' resolver: the same policy and upstream as for flows, over UDP and TCP. It stores its answers as
//! bindings, which identify the names behind raw protocols on transparent listeners.
//!
//! Each worker thread has its own UDP socket and TCP listener on every address (SO_REUSEPORT), and answers what
//! is known without a task or a wait. The firewall redirects guests' port 53 here, whatever server they ask;
//! the kernel's connection tracking then makes the reply appear to come from that server. A reply leaves
//! through the socket that received its query: on a specific address, that is the address asked. On an
//! unspecified address (`0.0.0.0`) the kernel chooses the reply's source by its route. That is correct if each
//! guest asks the address nearest to it. With several addresses on one interface, the configuration should name
//! them instead.

mod answers;
mod backlog;
mod responder;
mod tcp;
mod udp;
mod wire;

pub use answers::refusals;

use crate::accept::{self, Entrance, Incoming};
use crate::limits::Purpose;
use crate::services::Services;
use responder::Responder;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Serves one worker thread's share of the listeners on the current runtime until `end`. `v6`: guests'
/// connections also arrive over IPv6, so AAAA records are useful to them.
///
/// # Errors
/// When a socket cannot be served by the runtime.
pub fn serve(
    services: &Arc<Services>,
    (udp, tcp): (Vec<UdpSocket>, Vec<TcpListener>),
    v6: bool,
    end: &CancellationToken,
) -> io::Result<()> {
    let responder = Arc::new(Responder { services: Arc::clone(services), v6 });
    for socket in udp {
        let socket = Arc::new(tokio::net::UdpSocket::from_std(socket)?);
        let (responder, stop) = (Arc::clone(&responder), end.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = udp::serve(&responder, &socket) => {}
            }
        });
    }
    for listener in tcp {
        let listener = Incoming::new(listener)?;
        let responder = Arc::clone(&responder);
        tokio::spawn(async move {
            let trouble = |_| responder.services.account.metrics().accept_failed();
            let serve = |accepted| drop(tokio::spawn(tcp::serve(Arc::clone(&responder), accepted)));
            let Services { gate, reserve, .. } = &*responder.services;
            let guest_at = &|address| responder.services.guest_at(address, None);
            let entrance = Entrance { listener, guest_at, gate, reserve, purpose: Purpose::Names };
            accept::run(entrance, responder.services.stop.cancelled(), serve, trouble).await;
        });
    }
    Ok(())
}
