//! Connections over a limit: they get a refusal in their own protocol, without a slot.

use super::connection::open_record;
use super::original_of;
use super::refuse::{Dialect, Ended, Refused};
use crate::guest::Guest;
use crate::identify::socks;
use crate::identify::{Sniff, sniff};
use crate::listener::{ListenerKind, ListenerLabel};
use crate::reason::Reason;
use crate::relay::{GuestStream, Side};
use crate::services::Services;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a connection over a limit may take to send its first bytes before it is reset without an answer.
const MOST_WAIT: Duration = Duration::from_secs(2);
/// How many of its bytes are read, to choose the answer.
const FIRST_BYTES: usize = 1024;

/// Refuses a connection over a limit in the protocol that it uses, without a slot.
pub(super) async fn refuse(
    services: &Services,
    kind: ListenerKind,
    mut stream: GuestStream,
    source: SocketAddr,
    guest: &Guest,
    reason: Reason,
) -> Ended {
    let why = services.note_over_limit(reason);
    let refusal_slot = services.gate.refusal_slot(&guest.usage);
    let mut first = [0; FIRST_BYTES];
    let found = match &refusal_slot {
        Some(_) => tokio::time::timeout(MOST_WAIT, dialect(&mut stream, kind, &mut first)).await.ok().flatten(),
        None => None,
    };
    let (listener, dialect) = found.unwrap_or((kind.into(), Dialect::Silent));
    let original = original_of(kind, stream.socket()).ok().flatten();
    let mut record = open_record(services, listener, source, guest, original);
    record.refuse(why, None);
    // The guest learns the reason, and the operator also which limit it was.
    let ended = Refused::noted(record, reason, None).tell(&mut stream, dialect).await;
    drop((stream, refusal_slot));
    ended
}

/// Reads just enough to choose the answer. Returns `None` if the other end is gone or no answer fits.
async fn dialect<'a>(
    stream: &mut GuestStream,
    kind: ListenerKind,
    first: &'a mut [u8; FIRST_BYTES],
) -> Option<(ListenerLabel, Dialect<'a>)> {
    let read = stream.read(first).await.ok().filter(|read| *read > 0)?;
    let may_be_socks = match kind {
        ListenerKind::Proxy => true,
        ListenerKind::ProxyTls | ListenerKind::Transparent | ListenerKind::Redirect => false,
    };
    if may_be_socks && first.first() == Some(&socks::VERSION) {
        // SOCKS has a reply code for this only after the greeting.
        stream.write_all(&socks::ACCEPT).await.ok()?;
        stream.flush().await.ok()?;
        stream.read(first).await.ok().filter(|read| *read > 0)?;
        return Some((ListenerLabel::Socks, Dialect::Socks));
    }
    let head = first.get(..read)?;
    let dialect = match (kind, sniff(head)) {
        (ListenerKind::Proxy, _) => Dialect::Http { head },
        // There is no handshake: a failed one tells the client as much, and costs nothing.
        (_, Sniff::Tls) => Dialect::Tls,
        (ListenerKind::ProxyTls, Sniff::Http) => Dialect::ClearToTls { head },
        (ListenerKind::Transparent | ListenerKind::Redirect, Sniff::Http) => Dialect::Http { head },
        (ListenerKind::Transparent | ListenerKind::Redirect, Sniff::H2c) => Dialect::Http2,
        (_, Sniff::H2c | Sniff::Raw | Sniff::NeedMore) => return None,
    };
    Some((kind.into(), dialect))
}
