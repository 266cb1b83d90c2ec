//! The life of one connection from start to end: the only module that carries a flow through the stages.
//!
//! ```text
//! accept -> identify -> policy -> resolve -> dial -> relay -> account
//! ```
//!
//! [`meet`] takes a connection from an accept loop, and `serve` serves it to its end. There is one way to an upstream,
//! `establish`, and one to a refusal, `refuse`. What a protocol adds is a reader of its first bytes and the
//! `refuse::Dialect` in which its guests are answered.
//!
//! Each `Step` is a boxed future of its own that is freed before the next begins, so an idle tunnel costs little more
//! than its two sockets. The values that pass from step to step are boxed too: an async function stores its arguments
//! twice and copies them into each one it calls. A flow's record is opened as soon as something is known about the
//! flow. It is closed, counted and logged wherever the flow ends, also by a panic.

mod connection;
mod establish;
mod guest_tls;
mod http;
mod http_answer;
mod over_limit;
mod proxied;
mod refuse;
mod socks;
mod transparent;
mod tunnel;

use crate::accept::Accepted;
use crate::account::{Active, Record};
use crate::endpoint::canonical;
use crate::limits::{Purpose, Slot};
use crate::listener::{ListenerKind, ListenerLabel};
use crate::reason::Reason;
use crate::relay::{End, Supervision, Tunnel, scratch};
use crate::services::Services;
use connection::{Connection, Deadline, Filled, open_record};
use refuse::{Dialect, Ended, Refused};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// How many bytes [`meet`] reads from a new connection at most.
const FIRST_BYTES: usize = 4096;

/// The next step of a flow that goes on.
enum Step {
    /// Judge the protocol inside a tunnel.
    Tunnel(Box<Connection>, Box<tunnel::OpenTunnel>),
    /// Relay bytes: nothing is left to judge.
    Relay(Box<Relaying>),
}

/// The parts of a [`Connection`] that are still needed when nothing is left to judge.
struct Relaying {
    tunnel: Tunnel,
    record: Record,
    idle: Option<Duration>,
    slot: Slot,
    active: Active,
    /// The record of the tunnel around a WebSocket that was opened inside it.
    outer: Option<Record>,
}

/// The original destination of a connection; `None` on a proxy listener, where the guest names it itself.
fn original_of(kind: ListenerKind, stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    match kind {
        ListenerKind::Proxy | ListenerKind::ProxyTls => Ok(None),
        ListenerKind::Transparent => stream.local_addr().map(canonical).map(Some),
        ListenerKind::Redirect => original_destination(stream).map(canonical).map(Some),
    }
}

/// SO_ORIGINAL_DST, and its counterpart for IPv6 (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
/// Fails for a connection that was not redirected.
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let (socket, local) = (socket2::SockRef::from(stream), stream.local_addr()?);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // With connection tracking, a connection that was not redirected has its own address as the original one.
    original?.as_socket().filter(|original| *original != local).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A new connection and the first bytes that were read from it.
struct Arrival {
    kind: ListenerKind,
    accepted: Accepted,
    first: Vec<u8>,
    /// A CONNECT that was already permitted; `first` holds its head and nothing else.
    connect: Option<Box<establish::PermittedFlow>>,
}

/// What a connection on this listener needs its slot for.
pub fn purpose(services: &Services, kind: ListenerKind) -> Purpose {
    let by_certificate = match kind {
        ListenerKind::ProxyTls => services.guest_tls.as_ref().is_some_and(|tls| tls.names_guests()),
        ListenerKind::Proxy | ListenerKind::Transparent | ListenerKind::Redirect => false,
    };
    if by_certificate { Purpose::Handshake } else { Purpose::Flow }
}

/// Starts a new connection. Under load its first bytes have already arrived: a CONNECT that the policy refuses
/// is answered and closed before anything is allocated for it. Everything else gets its own task.
///
/// Call this on the runtime that is to serve the connection.
pub fn meet(services: &Arc<Services>, kind: ListenerKind, accepted: Accepted) {
    // A panic ends this connection, not the listener.
    let arrival = catch_unwind(AssertUnwindSafe(|| read_first(services, kind, accepted)));
    if let Ok(Some(arrival)) = arrival {
        tokio::spawn(serve(Arc::clone(services), arrival));
    }
}

/// Reads once. Returns `None` if the connection was answered and is done.
fn read_first(services: &Services, kind: ListenerKind, accepted: Accepted) -> Option<Arrival> {
    let mut arrival = Arrival { kind, accepted, first: Vec::new(), connect: None };
    // Over a limit it is refused, and over its guest's rate it waits, both in a task of its own.
    let Ok(slot) = &arrival.accepted.slot else { return Some(arrival) };
    if slot.turn().is_some() {
        return Some(arrival);
    }
    scratch::with(FIRST_BYTES, |buffer| {
        // An error or the end of the stream shows up again at the next read.
        if let Ok(len) = (&arrival.accepted.stream).read(buffer) {
            arrival.first.extend_from_slice(buffer.get(..len).unwrap_or_default());
        }
    });
    match kind {
        ListenerKind::Proxy => {}
        ListenerKind::ProxyTls | ListenerKind::Transparent | ListenerKind::Redirect => return Some(arrival),
    }
    let Accepted { stream, source, guest, .. } = &arrival.accepted;
    match http::early_connect(services, *source, guest, &arrival.first) {
        http::EarlyConnect::Refused(answer) => {
            // Only a head was read and it is now answered: an ordinary close delivers the answer. Nothing
            // was written to this socket before, so a write can only fail if the guest is gone.
            let _ = io::Write::write(&mut &*stream, &answer);
            return None;
        }
        http::EarlyConnect::Permitted(flow) => arrival.connect = Some(flow),
        http::EarlyConnect::NotConnect => {}
    }
    Some(arrival)
}

/// Serves one connection.
async fn serve(services: Arc<Services>, arrival: Arrival) {
    let mut step = Box::pin(open(services, arrival)).await;
    loop {
        step = match step {
            Ok(Step::Tunnel(connection, opened)) => tunnel::serve(connection, opened).await,
            Ok(Step::Relay(relaying)) => return Box::pin(relay(relaying)).await,
            Err(Ended::Refused(_) | Ended::Closed) => return,
        }
    }
}

/// Counts a connection that was reset because no file descriptor was left for it.
pub fn reset_unseen(services: &Services, kind: ListenerKind, source: SocketAddr) {
    let why = services.note_over_limit(Reason::LimitTotal);
    let guest = services.guest_at(source.ip(), None);
    open_record(services, kind.into(), source, &guest, None).refuse(why, None);
}

/// Runs everything up to the relay.
async fn open(services: Arc<Services>, arrival: Arrival) -> Result<Step, Ended> {
    let Arrival { kind, accepted: Accepted { stream, source, at, guest, slot }, first, connect } = arrival;
    let Ok(stream) = TcpStream::from_std(stream) else {
        // The kernel has no space for it in the runtime's event queue (epoll_ctl(2), ENOSPC and ENOMEM).
        let record = connect.map(|flow| flow.record);
        let record = record.unwrap_or_else(|| open_record(&services, kind.into(), source, &guest, None));
        return Err(Refused::new(record, Reason::LimitTotal, None).end());
    };
    let slot = match slot {
        Ok(slot) => slot,
        Err(reason) => return Err(over_limit::refuse(&services, kind, stream.into(), source, &guest, reason).await),
    };
    services.wait_for_turn(&slot).await;
    let limits = services.gate.settings();
    let active = services.account.active(kind.into());
    let mut deadline = Deadline::at(limits.handshake_timeout.map(|timeout| at + timeout));
    let original = match original_of(kind, &stream) {
        Ok(original) => original,
        Err(_) => {
            // A client connected to the listener directly, but it accepts only redirected connections.
            let record = open_record(&services, kind.into(), source, &guest, None);
            let refused = Refused::new(record, Reason::AddressFloor, None);
            return Err(refused.tell(&mut stream.into(), Dialect::Silent).await);
        }
    };
    let (stream, guest, slot, input) = match kind {
        ListenerKind::ProxyTls => {
            let shaken =
                Box::pin(guest_tls::handshake(&services, stream, source, guest, slot, first, &mut deadline)).await?;
            (shaken.stream, shaken.guest, shaken.slot, Vec::new())
        }
        ListenerKind::Proxy | ListenerKind::Transparent | ListenerKind::Redirect => (stream.into(), guest, slot, first),
    };
    let mut connection =
        Box::new(Connection { services, stream, source, guest, original, slot, active, input, deadline });
    if let Some(original) = original {
        return transparent::serve(connection, kind.into(), original).await;
    }
    if let Some(flow) = connect {
        return http::connect(connection, *flow).await;
    }
    match if connection.input.is_empty() { connection.fill().await } else { Filled::Bytes } {
        Filled::Bytes => {}
        // Port scanners and health checks: they requested nothing, so there is nothing to count.
        Filled::End => return Err(connection.leave().await),
        Filled::Timeout => {
            connection.record(ListenerLabel::Proxy).refuse(Reason::Timeout, None);
            return Err(connection.leave().await);
        }
    }
    match connection.input.first() {
        Some(4 | 5) => socks::serve(connection).await,
        _ => http::serve(connection, ListenerLabel::Proxy).await,
    }
}

/// The last stage: relays bytes both ways until the end.
async fn relay(mut relaying: Box<Relaying>) {
    let Relaying { tunnel, record, idle, outer, .. } = &mut *relaying;
    let supervision = Supervision {
        flow: record.flow(),
        around: outer.as_ref().map(|outer| &**outer.flow()),
        idle: *idle,
        long_lived: &|| record.still_open(),
    };
    match tunnel.run(supervision).await {
        End::Closed | End::Broken => {}
        End::Idle => record.refuse(Reason::Timeout, None),
        End::OtherName => {
            record.shown(tunnel.shown().unwrap_or_default());
            record.refuse(Reason::NameMismatch, None);
        }
        End::Stopped => record.refuse(record.flow().revocation().unwrap_or(Reason::Revoked), None),
    }
    // The sockets close first, so that the peers do not wait for the accounting. The slot becomes free after it.
    let Relaying { tunnel, record, outer, slot, active, .. } = *relaying;
    drop((tunnel, record, outer, slot, active));
}
