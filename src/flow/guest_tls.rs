//! The handshake of a `proxy_tls` connection, before the first request, and the guest's identity by its certificate.

use super::connection::{Deadline, Filled, fill};
use super::over_limit;
use super::refuse::{Dialect, Ended};
use crate::guest::Guest;
use crate::limits::{Purpose, Slot};
use crate::listener::ListenerKind;
use crate::reason::Reason;
use crate::relay::{GuestStream, close};
use crate::services::Services;
use crate::tls::{self, FailedHandshake, GuestTls, Socket};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The first byte of a handshake record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// A connection after its handshake.
pub(super) struct Shaken {
    pub(super) stream: GuestStream,
    /// Whose it is, by its certificate if it presented one.
    pub(super) guest: Guest,
    /// Its slot. A guest known by a certificate holds one among the slots of that guest, no longer among
    /// those of its address.
    pub(super) slot: Slot,
}

/// Runs the TLS handshake of a connection from which `first` was already read. Failures are counted. A client
/// that sends HTTP in clear gets an HTTP answer which says that this port requires TLS.
pub(super) async fn handshake(
    services: &Arc<Services>,
    mut stream: TcpStream,
    source: SocketAddr,
    guest: Guest,
    slot: Slot,
    mut first: Vec<u8>,
    deadline: &mut Deadline,
) -> Result<Shaken, Ended> {
    let Some(guest_tls) = &services.guest_tls else {
        // Without it there is no such listener.
        close::reset(&stream);
        return Err(Ended::Closed);
    };
    if first.is_empty() {
        match fill(&mut stream, &mut first, deadline).await {
            Filled::Bytes => {}
            // Port scanners and health checks.
            Filled::End => return Err(Ended::Closed),
            Filled::Timeout => return Err(note(guest_tls, services, source, &FailedHandshake::timeout())),
        }
    }
    if first.first() != Some(&HANDSHAKE) {
        let ended = note(guest_tls, services, source, &FailedHandshake::not_tls());
        let is_http = first.first().is_some_and(u8::is_ascii_alphabetic);
        let dialect = if is_http { Dialect::ClearToTls { head: &first } } else { Dialect::Silent };
        dialect.refuse(&mut stream.into(), Reason::Malformed.into(), None).await;
        return Err(ended);
    }
    match tls::handshake(Socket::new(stream, first), guest_tls.config(), deadline.passed()).await {
        Ok(stream) => match tls::certified_name(&stream) {
            Some(name) => admit(services, stream.into(), source, name, slot).await,
            None => Ok(Shaken { stream: stream.into(), guest, slot }),
        },
        Err(mut refused) => {
            let ended = note(guest_tls, services, source, &refused);
            if let Some(stream) = &mut refused.stream {
                close::after(stream, b"").await;
            }
            Err(ended)
        }
    }
}

/// Counts and logs a handshake that failed.
fn note(guest_tls: &GuestTls, services: &Services, source: SocketAddr, refused: &FailedHandshake) -> Ended {
    let complaints = guest_tls.complaints();
    services.account.metrics().handshake_refused(complaints.listener(), refused.fault.as_str());
    complaints.tell(Some(source), refused);
    Ended::Closed
}

/// Gives a guest with a certificate a slot of its own, in exchange for that of its handshake.
async fn admit(
    services: &Arc<Services>,
    stream: GuestStream,
    source: SocketAddr,
    name: Arc<str>,
    handshake: Slot,
) -> Result<Shaken, Ended> {
    let guest = services.guest_at(source.ip(), Some(name));
    drop(handshake);
    match services.gate.admit(&guest.usage, Purpose::Flow, Instant::now()) {
        Ok(slot) => {
            services.wait_for_turn(&slot).await;
            Ok(Shaken { stream, guest, slot })
        }
        // Inside TLS it is served as on a proxy port.
        Err(reason) => Err(over_limit::refuse(services, ListenerKind::Proxy, stream, source, &guest, reason).await),
    }
}
