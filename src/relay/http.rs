//! One exchange of plain HTTP/1.x: a judged request goes to the upstream and the answer comes back, with bodies
//! streamed both ways at once.
//!
//! Heads arrive here parsed and leave re-serialised; bodies are re-framed. So neither side's parser ever reads the
//! framing that the other side sent. Interim answers (1xx) are passed on. The caller decides whether there is a next
//! request, and to whom.

mod body;

use super::scratch::{self, MIN_CHUNK, ThreadBuffer};
use super::{Clock, GuestStream, Side, Supervision, close};
use crate::identify::Parsed;
use crate::identify::http::{Body as RequestBody, Downstream, HeadError, ResponseBody, ResponseHead, Upgrade, Version};
use crate::live::Flow;
use crate::reason::Cause;
use body::{Body, BodyFault};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// Interim answers (1xx) to one request; more is a broken upstream.
const MAX_INTERIM: u32 = 16;

/// What can be wrong with an answer besides its syntax; the types are from RFC 9209 §2.3.
const CUT: Cause = Cause::typed("the server broke off within its response", "http_response_incomplete");
const TOO_LARGE: Cause = Cause::typed("the response's head is too large", "http_response_header_section_size");
const TOO_MANY: Cause = Cause::typed("there are too many interim responses", "http_protocol_error");
const UNASKED: Cause = Cause::typed("the server switched to a protocol that was not asked for", "http_upgrade_failed");

/// The two ends of a connection to an upstream.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionAddresses {
    /// The upstream's address.
    pub peer: SocketAddr,
    /// Our address on this connection.
    pub local: SocketAddr,
}

/// A connection to an upstream, kept from one exchange to the next.
#[derive(Debug)]
pub struct UpstreamConnection {
    /// Its addresses.
    pub addresses: ConnectionAddresses,
    /// The connection.
    pub stream: TcpStream,
    /// Bytes that were read from it and not used.
    pub input: Vec<u8>,
    /// Exchanges it has served.
    pub served: u64,
}

/// A request that may be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// The head, serialised for the upstream.
    pub head: Vec<u8>,
    /// How its body is framed.
    pub body: RequestBody,
    /// It is a HEAD request: the answer has no body.
    pub is_head: bool,
    /// The guest's version decides how the answer is framed.
    pub version: Version,
    /// The guest wants to keep its connection.
    pub keep_alive: bool,
    /// It asks to become a WebSocket.
    pub upgrade: bool,
    /// It may be sent twice without harm (RFC 9110 §9.2.2) and has no body.
    pub repeatable: bool,
    /// How long the head of the answer may take once the request has been sent.
    pub patience: Option<Duration>,
}

/// How an exchange succeeded.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    /// Answered.
    Answered {
        /// The guest's connection can carry another request.
        guest_reusable: bool,
        /// The upstream's connection can.
        upstream_reusable: bool,
    },
    /// The upstream switched to WebSocket; what follows are its bytes.
    Upgraded,
}

/// How an exchange failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong.
    pub fault: Fault,
    /// Bytes of an answer were already sent to the guest, so it cannot get another one.
    pub answered: bool,
}

/// Whose fault a failed exchange was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The upstream closed a kept connection before it saw the request; a request that may be repeated
    /// can be sent again on a new one.
    Stale,
    /// The upstream broke off before a byte of its answer.
    Closed,
    /// The upstream's answer is cut, or can't be read in one way only.
    Response(Cause),
    /// The body of the request is malformed, for this reason.
    GuestMalformed(&'static str),
    /// The guest is gone.
    GuestGone,
    /// The head of the answer did not come in time.
    Silent,
    /// Nothing moved for the idle time.
    Idle,
    /// The flow was revoked or the daemon is stopping.
    Stopped,
}

/// Runs one exchange. `input` holds the guest's bytes after the head, and afterwards those after the
/// request (a pipelined one).
pub async fn exchange(
    guest: &mut GuestStream,
    input: &mut Vec<u8>,
    upstream: &mut UpstreamConnection,
    request: Outgoing,
    supervision: Supervision<'_>,
) -> Result<Done, Failed> {
    let idle = supervision.idle;
    let fresh = upstream.served == 0;
    let patience = request.patience;
    let mut exchange = match Exchange::new(input, request) {
        Ok(exchange) => exchange,
        Err(fault) => return Err(Failed { fault, answered: false }),
    };
    let mut ends = Ends { guest, input, upstream };
    // The timeout depends on which side has to act.
    let mut awaited = exchange.is_awaited();
    let mut clock = Clock::new(&Supervision { idle: if awaited { patience } else { idle }, ..supervision });
    let sleep = tokio::time::sleep_until(clock.next());
    tokio::pin!(sleep);
    let outcome = poll_fn(|cx| {
        if supervision.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(Fault::Stopped));
        }
        if let Poll::Ready(outcome) = exchange.poll(cx, &mut ends, supervision.flow) {
            return Poll::Ready(outcome);
        }
        let moved = std::mem::take(&mut exchange.moved);
        if awaited != exchange.is_awaited() {
            awaited = !awaited;
            clock.set_idle(if awaited { patience } else { idle }, sleep.as_mut());
        }
        clock.poll(cx, sleep.as_mut(), moved).map(|_| Err(if awaited { Fault::Silent } else { Fault::Idle }))
    })
    .await;
    ends.upstream.served += 1;
    outcome.map_err(|fault| {
        let untouched = !fresh && !exchange.heard && exchange.repeatable;
        let fault = if fault == Fault::Closed && untouched { Fault::Stale } else { fault };
        // A final answer may follow interim ones, but not in the middle of one.
        Failed { fault, answered: exchange.answered || !exchange.interim_answers.is_empty() }
    })
}

/// The two sides of an exchange.
struct Ends<'a> {
    guest: &'a mut GuestStream,
    /// Bytes of the guest that were read and not used.
    input: &'a mut Vec<u8>,
    upstream: &'a mut UpstreamConnection,
}

/// The state of one exchange.
struct Exchange {
    request: Body,
    /// The upstream accepts no more of the request; its answer may still come.
    upload_broken: bool,
    uploaded: bool,
    answer: Option<Body>,
    /// Interim answers on their way to the guest.
    interim_answers: ThreadBuffer,
    interim: u32,
    /// How much of the upstream's head was searched for its end.
    scanned: usize,
    is_head: bool,
    version: Version,
    guest_reusable: bool,
    upstream_reusable: bool,
    upgrade: bool,
    upgraded: bool,
    repeatable: bool,
    heard: bool,
    answered: bool,
    moved: bool,
    /// The guest has sent nothing since its request, so a reset by it would be noticed.
    silent: bool,
}

impl Exchange {
    fn new(input: &mut Vec<u8>, request: Outgoing) -> Result<Exchange, Fault> {
        let Outgoing { head, body, is_head, version, keep_alive, upgrade, repeatable, patience: _ } = request;
        let mut first = head;
        let mut upload = Body::new(body.into(), true);
        if !upload.is_done() && !input.is_empty() {
            let taken = upload.take(input, &mut first).map_err(|fault| fault.of_guest())?;
            input.drain(..taken);
        }
        upload.kept = ThreadBuffer::new(first);
        Ok(Exchange {
            request: upload,
            upload_broken: false,
            uploaded: false,
            answer: None,
            interim_answers: ThreadBuffer::default(),
            interim: 0,
            scanned: 0,
            is_head,
            version,
            guest_reusable: keep_alive,
            upstream_reusable: true,
            upgrade,
            upgraded: false,
            repeatable,
            heard: false,
            answered: false,
            moved: false,
            silent: true,
        })
    }

    /// Is it the upstream that has to act, and is its answer still to begin?
    fn is_awaited(&self) -> bool {
        let sent = self.uploaded || self.upload_broken || !self.request.kept.is_empty() || self.request.is_done();
        self.answer.is_none() && sent
    }

    fn poll(&mut self, cx: &mut Context<'_>, ends: &mut Ends<'_>, flow: &Flow) -> Poll<Result<Done, Fault>> {
        let uploading = self.poll_upload(cx, ends, flow)?;
        if uploading.is_ready() && self.answer.is_none() {
            self.notice_reset(cx, ends.guest)?;
        }
        let answering = self.poll_answer(cx, ends, flow);
        self.moved |= std::mem::take(&mut self.request.kept.moved) | std::mem::take(&mut self.interim_answers.moved);
        if let Some(answer) = &mut self.answer {
            self.moved |= std::mem::take(&mut answer.kept.moved);
        }
        ready!(answering)?;
        if self.upgraded {
            return Poll::Ready(Ok(Done::Upgraded));
        }
        // If the answer came before the whole request was read, the rest of the request blocks the next one.
        let whole = uploading.is_ready() && !self.upload_broken;
        Poll::Ready(Ok(Done::Answered {
            guest_reusable: self.guest_reusable && whole,
            upstream_reusable: self.upstream_reusable && whole && ends.upstream.input.is_empty(),
        }))
    }

    /// Fails if the guest reset its connection: it waits for no answer. A guest that only ended its own stream, or
    /// that already sends the next request, still waits.
    fn notice_reset(&mut self, cx: &mut Context<'_>, guest: &GuestStream) -> Result<(), Fault> {
        if !self.silent {
            return Ok(());
        }
        let mut byte = [0u8; 1];
        match guest.socket().poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(_)) => {
                self.silent = false;
                Ok(())
            }
            Poll::Ready(Err(_)) => Err(Fault::GuestGone),
        }
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>, ends: &mut Ends<'_>, flow: &Flow) -> Result<Poll<()>, Fault> {
        if self.uploaded || self.upload_broken {
            return Ok(Poll::Ready(()));
        }
        let Ends { guest, input, upstream } = ends;
        match self.request.poll(cx, *guest, &mut upstream.stream, input, &|n| flow.count_up(n)) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(())) => {
                self.uploaded = true;
                Ok(Poll::Ready(()))
            }
            // The upstream may have answered already (413, 401) and closed.
            Poll::Ready(Err(BodyFault::Write)) => {
                self.upload_broken = true;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(fault)) => Err(fault.of_guest()),
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>, ends: &mut Ends<'_>, flow: &Flow) -> Poll<Result<(), Fault>> {
        let Ends { guest, upstream, .. } = ends;
        while self.answer.is_none() {
            // Interim answers are sent before more is read, so that they cannot pile up.
            flow.count_down(ready!(self.interim_answers.poll_flush(cx, *guest)).map_err(|_| Fault::GuestGone)?);
            if self.upgraded {
                return Poll::Ready(Ok(()));
            }
            if upstream.input.len() == self.scanned || !self.head(&mut upstream.input)? {
                // Pieces of a head do not restart the timeout.
                if !ready!(poll_more(cx, upstream)) {
                    return Poll::Ready(Err(if self.heard { Fault::Response(CUT) } else { Fault::Closed }));
                }
                self.heard = true;
            }
        }
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        self.answered = true;
        let UpstreamConnection { stream, input, .. } = upstream;
        ready!(answer.poll(cx, stream, *guest, input, &|n| flow.count_down(n))).map_err(|fault| match fault {
            BodyFault::Write => Fault::GuestGone,
            fault => fault.of_upstream(),
        })?;
        Poll::Ready(Ok(()))
    }

    /// Takes one complete head from the front of `input`. An interim one is queued for the guest, a final one starts
    /// the answer. Returns false if more bytes are needed.
    fn head(&mut self, input: &mut Vec<u8>) -> Result<bool, Fault> {
        let parsed = ResponseHead::parse(input, self.scanned).map_err(|error| Fault::Response(flaw(error)))?;
        let Parsed::Complete { head, len } = parsed else {
            self.scanned = input.len();
            return Ok(false);
        };
        self.scanned = 0;
        let method: &[u8] = if self.is_head { b"HEAD" } else { b"GET" };
        let mut written = Vec::with_capacity(len + 64);
        if head.status < 200 {
            self.interim(&head, &mut written)?;
            input.drain(..len);
            return Ok(true);
        }
        let body = head.body_for(method);
        self.upstream_reusable &= head.keep_alive(method);
        // A request that is not completely sent yet blocks the next one, so its sender is told not to send one.
        let keep_alive = self.guest_reusable && self.uploaded;
        let sent = head.write_response(body, Downstream { version: self.version, keep_alive }, &mut written);
        self.guest_reusable = sent.keep_alive;
        let mut answer = Body::new(body.into(), sent.body == ResponseBody::Chunked);
        let rest = input.get(len..).unwrap_or_default();
        let taken = answer.take(rest, &mut written).map_err(|fault| fault.of_upstream())?;
        answer.kept = ThreadBuffer::new(written);
        input.drain(..len + taken);
        self.answer = Some(answer);
        Ok(true)
    }

    /// Handles an answer below 200: 101 ends the exchange, others are passed on to guests that know them.
    fn interim(&mut self, head: &ResponseHead<'_>, written: &mut Vec<u8>) -> Result<(), Fault> {
        self.interim += 1;
        let switches = head.status == 101;
        let asked = self.upgrade && head.upgrade == Some(Upgrade::WebSocket);
        if self.interim > MAX_INTERIM {
            return Err(Fault::Response(TOO_MANY));
        }
        if switches && !asked {
            return Err(Fault::Response(UNASKED));
        }
        self.moved = true;
        if switches || self.version == Version::Http11 {
            let to = Downstream { version: self.version, keep_alive: true };
            head.write_response(ResponseBody::None, to, written);
            self.answered |= switches;
        }
        self.upgraded = switches;
        self.interim_answers = ThreadBuffer::new(std::mem::take(written));
        Ok(())
    }
}

impl BodyFault {
    /// The fault as one of the guest's request.
    fn of_guest(self) -> Fault {
        match self {
            BodyFault::Malformed(error) => Fault::GuestMalformed(error.phrase()),
            BodyFault::Read | BodyFault::Write => Fault::GuestGone,
        }
    }

    /// The fault as one of the upstream's answer.
    fn of_upstream(self) -> Fault {
        Fault::Response(match self {
            BodyFault::Malformed(error) => Cause::typed(error.phrase(), "http_response_transfer_coding"),
            BodyFault::Read | BodyFault::Write => CUT,
        })
    }
}

/// What is wrong with the head of an answer.
fn flaw(error: HeadError) -> Cause {
    match error {
        HeadError::TooLarge => TOO_LARGE,
        error => Cause::typed(error.phrase(), "http_protocol_error"),
    }
}

/// Reads more of the upstream's head. Returns false at the end of its stream.
fn poll_more(cx: &mut Context<'_>, upstream: &mut UpstreamConnection) -> Poll<bool> {
    let UpstreamConnection { stream, input, .. } = upstream;
    scratch::with(MIN_CHUNK, |buffer| {
        let mut buffer = ReadBuf::new(buffer);
        match ready!(Pin::new(stream).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {
                input.extend_from_slice(buffer.filled());
                Poll::Ready(true)
            }
            _ => Poll::Ready(false),
        }
    })
}

impl UpstreamConnection {
    /// A new connection.
    pub fn new(stream: TcpStream, addresses: ConnectionAddresses) -> UpstreamConnection {
        UpstreamConnection { addresses, stream, input: Vec::new(), served: 0 }
    }

    /// Is a kept connection still open and silent? Costs no system call while nothing happened.
    pub fn is_idle(&self) -> bool {
        let mut byte = [0u8; 1];
        let silent = matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        silent && self.input.is_empty()
    }

    /// Ends the connection at once.
    pub fn abort(self) {
        close::reset(&self.stream);
    }
}
