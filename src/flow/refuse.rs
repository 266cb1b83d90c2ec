//! How a guest's connection ends other than by its own will: first its record is closed, then the upstream is reset,
//! and then the guest is told in its own protocol.

use super::http_answer;
use crate::account::Record;
use crate::identify::socks;
use crate::reason::{Verdict, Why};
use crate::relay::{GuestStream, close};
use crate::target::Target;
use std::io::ErrorKind::WouldBlock;
use tokio::net::TcpStream;

/// A fatal `access_denied` alert (RFC 8446 §6, RFC 5246 §7.2) in a record of version 3.3.
const TLS_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// The answer to a successful CONNECT (RFC 9110 §9.3.6).
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// How a connection has ended, so that nothing is left to do for it.
pub(super) enum Ended {
    /// It was refused or cut, its record is closed, and its guest was told what its [`Dialect`] has words for.
    Refused(Told),
    /// Closed without a refusal: the guest is done, has left or cannot be reached, or never came as far as a request.
    Closed,
}

/// Proof that a refusal was told. Only this module makes one.
pub(super) struct Told(());

/// A flow or request that was refused or failed, before its guest is told. Always boxed: it is passed up from step to
/// step.
#[must_use = "the guest has not been told yet"]
pub(super) struct Refused {
    /// It holds the reason.
    record: Record,
    why: Why,
    /// What was asked for.
    target: Option<Target>,
    /// To be reset before the guest is told.
    upstream: Option<TcpStream>,
}

impl Refused {
    /// Enters the reason in the record.
    pub(super) fn new(mut record: Record, why: impl Into<Why>, target: Option<Target>) -> Box<Refused> {
        let why = why.into();
        record.refuse(why, None);
        Refused::noted(record, why, target)
    }

    /// As [`new`](Self::new), for a record that holds its reason already.
    pub(super) fn noted(record: Record, why: impl Into<Why>, target: Option<Target>) -> Box<Refused> {
        Box::new(Refused { record, why: why.into(), target, upstream: None })
    }

    /// Also ends this connection, by a reset.
    pub(super) fn with_upstream(mut self: Box<Self>, upstream: TcpStream) -> Box<Refused> {
        self.upstream = Some(upstream);
        self
    }

    /// Closes the record and tells the guest. Returns what ends its connection.
    pub(super) async fn tell(self: Box<Self>, guest: &mut GuestStream, dialect: Dialect<'_>) -> Ended {
        let (why, target) = self.close();
        dialect.refuse(guest, why, target.as_ref()).await;
        Ended::Refused(Told(()))
    }

    /// Closes the record without an answer: an ordinary close follows.
    pub(super) fn end(self: Box<Self>) -> Ended {
        self.close();
        Ended::Refused(Told(()))
    }

    /// Closes the record and resets the upstream, so that only the answer is left to be sent.
    pub(super) fn close(self: Box<Self>) -> (Why, Option<Target>) {
        let Refused { record, why, target, upstream } = *self;
        drop(record);
        if let Some(upstream) = upstream {
            close::reset(&upstream);
        }
        (why, target)
    }
}

/// Resets both connections of a tunnel that one side broke off, so that the other side does not take what it
/// received for complete.
pub(super) fn cut(guest: &GuestStream, upstream: &TcpStream) -> Ended {
    close::reset(guest);
    close::reset(upstream);
    Ended::Refused(Told(()))
}

/// The protocol in which a guest learns what became of its request. No answer contains resolved addresses, rules or
/// internal errors.
#[derive(Clone, Copy)]
pub(super) enum Dialect<'a> {
    /// A CONNECT; `head` is all of the request, as received. `alone`: nothing follows it.
    Connect { head: &'a [u8], alone: bool },
    /// Any other HTTP/1 request, whole or in part, as received.
    Http { head: &'a [u8] },
    /// HTTP/1 that cannot be read, and the status that says so.
    UnreadableHttp { head: &'a [u8], status: u16 },
    /// HTTP in clear where TLS is spoken.
    ClearToTls { head: &'a [u8] },
    /// HTTP/2 in clear.
    Http2,
    /// SOCKS5, after its greeting.
    Socks,
    /// TLS, before the server has answered.
    Tls,
    /// These bytes say all.
    Bytes(&'a [u8]),
    /// Nothing can be said: the connection is reset.
    Silent,
}

impl Dialect<'_> {
    /// The answer when the tunnel is open.
    pub(super) fn granted(self) -> &'static [u8] {
        match self {
            Dialect::Connect { .. } => ESTABLISHED,
            Dialect::Socks => &socks::GRANTED,
            Dialect::Http { .. }
            | Dialect::UnreadableHttp { .. }
            | Dialect::ClearToTls { .. }
            | Dialect::Http2
            | Dialect::Tls
            | Dialect::Bytes(_)
            | Dialect::Silent => b"",
        }
    }

    /// Tells the guest, and closes its connection.
    pub(super) async fn refuse(self, guest: &mut GuestStream, why: Why, target: Option<&Target>) {
        match self {
            Dialect::Connect { head, alone } => {
                let answer = http_answer::refusal(why, target, head, true);
                if !(alone && why.reason.verdict() == Verdict::Denied && sent_at_once(guest, &answer)) {
                    close::after(guest, &answer).await;
                }
            }
            Dialect::Http { head } => {
                let answer = http_answer::refusal(why, target, head, true);
                close::after(guest, http_answer::for_method(&answer, head)).await;
            }
            Dialect::UnreadableHttp { head, status } => {
                close::after(guest, &http_answer::with_status(why, status, target, head, true)).await;
            }
            Dialect::ClearToTls { head } => close::after(guest, &http_answer::to_clear_text(head)).await,
            Dialect::Http2 => close::after(guest, &http_answer::to_http2(why)).await,
            Dialect::Socks => close::after(guest, &socks::reply(why.reason.socks_reply())).await,
            // A refusal is an alert, so that the client reports "access denied" and not "connection reset". A failure
            // of something allowed is a reset: clients treat a reset as a network fault and try again, but treat any
            // alert as the server's final answer.
            Dialect::Tls if why.reason.verdict() != Verdict::Failed => close::after(guest, &TLS_ALERT).await,
            Dialect::Bytes(answer) => close::after(guest, answer).await,
            Dialect::Tls | Dialect::Silent => close::reset(&*guest),
        }
    }
}

/// Sends the answer without waiting, if an ordinary close then delivers it. Returns whether the connection is done.
fn sent_at_once(guest: &GuestStream, answer: &[u8]) -> bool {
    let Some(socket) = guest.in_clear() else { return false };
    // Unread bytes would turn the close into a reset.
    if !matches!(socket.try_read(&mut [0]), Err(error) if error.kind() == WouldBlock) {
        return false;
    }
    // The connection may be so new that the runtime does not know yet that it is writable.
    !matches!(socket.try_write(answer), Err(error) if error.kind() == WouldBlock)
}
