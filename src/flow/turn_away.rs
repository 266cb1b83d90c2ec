//! Connections over a limit: they get a refusal in their own protocol, without a place.

use super::{Services, note_refused, open_record, original_of, refuse};
use crate::identify::{Sniff, sniff};
use crate::listener::{Listener, ListenerKind};
use crate::reason::Reason;
use crate::relay::{GuestStream, Side, close};
use crate::source::Source;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// How long a connection over a limit may take to send its first bytes before it is reset without an answer.
const TURN_AWAY: Duration = Duration::from_secs(2);

/// Refuses a connection over a limit in the protocol that it uses, without a place for it.
pub(super) async fn turn_away(
    services: &Arc<Services>,
    door: ListenerKind,
    mut stream: GuestStream,
    (source, who): (SocketAddr, &Source),
    reason: Reason,
) {
    let why = note_refused(services, reason);
    let telling = services.gate.tell(who, Instant::now());
    let answer = match &telling {
        Some(_) => tokio::time::timeout(TURN_AWAY, refusal(&mut stream, door, reason)).await,
        None => Ok(None),
    };
    let (listener, answer) = answer.ok().flatten().unwrap_or((door.into(), Vec::new()));
    let original = original_of(door, stream.socket()).ok().flatten();
    open_record(services, listener, source, who, original).refuse(why, None);
    if answer.is_empty() {
        close::reset(&stream);
    } else {
        close::after(&mut stream, &answer).await;
    }
    drop((stream, telling));
}

/// Reads just enough to choose the answer. Returns `None` if the other end is gone or no answer fits.
async fn refusal(stream: &mut GuestStream, door: ListenerKind, reason: Reason) -> Option<(Listener, Vec<u8>)> {
    let mut first = [0u8; 1024];
    let read = stream.read(&mut first).await.ok().filter(|read| *read > 0)?;
    if door != ListenerKind::Proxy {
        // Over a limit there is no handshake: a failed one tells the client as much, and costs nothing.
        let said = first.get(..read)?;
        return match sniff(said) {
            Sniff::Tls => Some((door.into(), refuse::TLS_ALERT.to_vec())),
            Sniff::Http if door != ListenerKind::ProxyTls => {
                Some((door.into(), refuse::http(reason, None, said, true)))
            }
            Sniff::Http => Some((door.into(), refuse::http_in_clear(said))),
            Sniff::H2c if door != ListenerKind::ProxyTls => Some((door.into(), refuse::http2(reason))),
            Sniff::H2c | Sniff::Raw | Sniff::NeedMore => None,
        };
    }
    if first.first() != Some(&crate::identify::socks::VERSION) {
        return Some((Listener::Proxy, refuse::http(reason, None, first.get(..read)?, true)));
    }
    // SOCKS has a reply code for this only after the greeting.
    stream.write_all(&crate::identify::socks::ACCEPT).await.ok()?;
    stream.flush().await.ok()?;
    stream.read(&mut first).await.ok().filter(|read| *read > 0)?;
    Some((Listener::Socks, crate::identify::socks::reply(reason.socks_reply()).to_vec()))
}
