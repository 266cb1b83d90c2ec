//! The handshake of a `proxy_tls` connection, before the first request, and the guest's identity by its certificate.

use super::turn_away::turn_away;
use super::{Deadline, Ended, Filled, Services, fill, refuse, wait_for_turn};
use crate::limits::{Purpose, Slot};
use crate::listener::ListenerKind;
use crate::relay::{GuestStream, close};
use crate::source::Source;
use crate::tls::{self, Complaints, Live, Refused, Socket};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The first byte of a handshake record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// The settings for handshakes, and the log of those that fail.
pub struct GuestTls {
    live: Live,
    complaints: Complaints,
}

/// A guest after its handshake.
pub(super) struct IdentifiedGuest {
    pub(super) guest: GuestStream,
    /// Which guest it is, by its certificate if it presented one.
    pub(super) who: Source,
    /// Its place. A guest known by a certificate holds one among the places of that guest, no longer among
    /// those of its address.
    pub(super) slot: Slot,
}

impl GuestTls {
    /// Uses the settings that are in `live` at each handshake.
    pub fn new(live: Live) -> GuestTls {
        GuestTls { live, complaints: Complaints::new("proxy_tls") }
    }

    /// Can a certificate identify a guest?
    pub fn names_guests(&self) -> bool {
        self.live.load().names_guests
    }

    fn refuse(&self, services: &Services, source: SocketAddr, refused: &Refused) -> Ended {
        services.account.metrics().handshake_refused(self.complaints.listener(), refused.fault.as_str());
        self.complaints.tell(Some(source), refused);
        Ended
    }
}

/// Runs the TLS handshake of a connection from which `first` was already read. Failures are counted. A client
/// that sends HTTP in clear gets an HTTP answer which says that this port requires TLS.
pub(super) async fn handshake(
    services: &Arc<Services>,
    mut stream: TcpStream,
    source: SocketAddr,
    slot: Slot,
    mut first: Vec<u8>,
    deadline: &mut Deadline,
) -> Result<IdentifiedGuest, Ended> {
    let Some(guest_tls) = &services.guest_tls else {
        // Without it there is no such listener.
        close::reset(&stream);
        return Err(Ended);
    };
    if first.is_empty() {
        match fill(&mut stream, &mut first, deadline).await {
            Filled::Bytes => {}
            // Port scanners and health checks.
            Filled::End | Filled::Revoked(_) => return Err(Ended),
            Filled::Timeout => return Err(guest_tls.refuse(services, source, &Refused::timeout())),
        }
    }
    if first.first() != Some(&HANDSHAKE) {
        let ended = guest_tls.refuse(services, source, &Refused::not_tls());
        if first.first().is_some_and(u8::is_ascii_alphabetic) {
            close::after(&mut stream, &refuse::http_in_clear(&first)).await;
        } else {
            close::reset(&stream);
        }
        return Err(ended);
    }
    let config = Arc::clone(&guest_tls.live.load().guests);
    match tls::handshake(Socket::new(stream, first), config, deadline.passed()).await {
        Ok(stream) => {
            let who = Source { address: source.ip(), certified: tls::certified_name(&stream) };
            admit(services, stream.into(), source, who, slot).await
        }
        Err(mut refused) => {
            let ended = guest_tls.refuse(services, source, &refused);
            if let Some(stream) = &mut refused.stream {
                close::after(stream, b"").await;
            }
            Err(ended)
        }
    }
}

/// Gives a guest with a certificate a place of its own.
async fn admit(
    services: &Arc<Services>,
    guest: GuestStream,
    source: SocketAddr,
    who: Source,
    slot: Slot,
) -> Result<IdentifiedGuest, Ended> {
    if who.certified.is_none() {
        return Ok(IdentifiedGuest { guest, who, slot });
    }
    drop(slot);
    match services.gate.admit(&who, Purpose::Flow, Instant::now()) {
        Ok(slot) => {
            wait_for_turn(services, &slot).await;
            Ok(IdentifiedGuest { guest, who, slot })
        }
        Err(reason) => {
            turn_away(services, ListenerKind::Proxy, guest, (source, &who), reason).await;
            Err(Ended)
        }
    }
}
