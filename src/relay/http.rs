//! One exchange of plain HTTP/1.x: a request that was judged goes to the upstream, the answer comes
//! back, bodies streamed both ways at once.
//!
//! Heads arrive here parsed and leave re-serialised; bodies are re-framed, so that what one side sends
//! is never what the other side's parser has to make sense of. Interim answers (1xx) are passed on.
//! Whether there is a next request, and to whom, is for the caller.

use super::scratch::{Kept, MIN_CHUNK};
use super::{Clock, Meter, Watch, close};
use crate::identify::Parsed;
use crate::identify::chunked::{CHUNK_END, ChunkHeader, Decoder, Part};
use crate::identify::http::{Body as RequestBody, Downstream, ResponseBody, ResponseHead, Upgrade, Version};
use crate::relay::scratch;
use crate::relay::scratch::MAX_CHUNK;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Interim answers (1xx) to one request; more is a broken upstream.
const MAX_INTERIM: u32 = 16;

/// How far is read past the chunk in hand; bounds what of the next message is kept.
const AHEAD: u64 = 16 << 10;

/// The two ends of a connection to an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Bond {
    /// The upstream's address.
    pub peer: SocketAddr,
    /// Ours towards it.
    pub local: SocketAddr,
}

/// A connection to an upstream, kept from one exchange to the next.
#[derive(Debug)]
pub struct Peer {
    /// Its ends.
    pub bond: Bond,
    /// The connection.
    pub stream: TcpStream,
    /// Bytes of it that were read and not used.
    pub input: Vec<u8>,
    /// Exchanges it has served.
    pub served: u64,
}

/// A request that may go out.
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
    /// The guest would keep its connection.
    pub keep_alive: bool,
    /// It asks to become a WebSocket.
    pub upgrade: bool,
    /// It may be sent twice without harm (RFC 9110 §9.2.2) and has no body.
    pub repeatable: bool,
}

/// How an exchange ended well.
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
    /// Bytes of an answer were sent to the guest already, so that it can't be given another.
    pub answered: bool,
}

/// Whose fault a failed exchange was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The upstream closed a kept connection before it saw the request; a request that may be repeated
    /// can be sent again on a new one.
    Stale,
    /// The upstream broke off, or its answer can't be read in one way only.
    Upstream,
    /// The body of the request is malformed.
    GuestMalformed,
    /// The guest is gone.
    GuestGone,
    /// Nothing moved for the idle time.
    Idle,
    /// The flow was revoked or the daemon is stopping.
    Stopped,
}

/// Runs one exchange. `input` holds the guest's bytes after the head, and afterwards those after the
/// request (a pipelined one).
pub async fn exchange<M, S, L>(
    guest: &mut TcpStream,
    input: &mut Vec<u8>,
    upstream: &mut Peer,
    request: Outgoing,
    watch: Watch<'_, M, S, L>,
) -> Result<Done, Failed>
where
    M: Meter,
    S: FnMut(&mut Context<'_>) -> Poll<()>,
    L: FnOnce(),
{
    let Watch { meter, idle, age, mut stopped, long } = watch;
    let fresh = upstream.served == 0;
    let mut exchange = match Exchange::new(input, request) {
        Ok(exchange) => exchange,
        Err(fault) => return Err(Failed { fault, answered: false }),
    };
    let mut clock = Clock::new(idle, age, long);
    let sleep = tokio::time::sleep_until(clock.next());
    tokio::pin!(sleep);
    let outcome = poll_fn(|cx| {
        if stopped(cx).is_ready() {
            return Poll::Ready(Err(Fault::Stopped));
        }
        if let Poll::Ready(outcome) = exchange.poll(cx, guest, input, upstream, meter) {
            return Poll::Ready(outcome);
        }
        let moved = std::mem::take(&mut exchange.moved);
        clock.poll(cx, sleep.as_mut(), moved).map(|_| Err(Fault::Idle))
    })
    .await;
    upstream.served += 1;
    outcome.map_err(|fault| {
        let untouched = !fresh && !exchange.heard && exchange.repeatable;
        let fault = if fault == Fault::Upstream && untouched { Fault::Stale } else { fault };
        // A final answer may follow interim ones, but not in the middle of one.
        Failed { fault, answered: exchange.answered || !exchange.words.is_empty() }
    })
}

/// A body on its way: how it comes in, how it goes out, what the receiver has not taken yet.
#[derive(Debug)]
struct Body {
    framing: Incoming,
    rechunk: bool,
    kept: Kept,
    chunk: usize,
}

#[derive(Debug)]
enum Incoming {
    Length(u64),
    Chunked(Box<Decoder>),
    UntilClose,
    Done,
}

/// What can go wrong with a body; the caller knows which side is which.
enum BodyFault {
    Read,
    Write,
    Malformed,
}

impl Body {
    /// `rechunk` says whether a chunked body stays chunked.
    fn new(framing: Incoming, rechunk: bool) -> Body {
        Body { framing, rechunk, kept: Kept::default(), chunk: MIN_CHUNK }
    }

    fn is_done(&self) -> bool {
        matches!(self.framing, Incoming::Done)
    }

    /// Takes body bytes from the front of `data` and adds to `out` what is to be sent for them.
    /// Returns how many were taken; fewer than all only where the body ended.
    fn take(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyFault> {
        match &mut self.framing {
            Incoming::Done => Ok(0),
            Incoming::UntilClose => {
                out.extend_from_slice(data);
                Ok(data.len())
            }
            Incoming::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
                out.extend_from_slice(data.get(..take).unwrap_or_default());
                *left -= take as u64;
                if *left == 0 {
                    self.framing = Incoming::Done;
                }
                Ok(take)
            }
            Incoming::Chunked(decoder) => {
                let taken = recode(decoder, self.rechunk, data, out)?;
                if decoder.is_done() {
                    self.framing = Incoming::Done;
                }
                Ok(taken)
            }
        }
    }

    /// Moves the body on; ready when all of it was written. Bytes read past its end go to `over`.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        over: &mut Vec<u8>,
        left: &mut usize,
        count: &impl Fn(usize),
    ) -> Poll<Result<(), BodyFault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            count(ready!(self.kept.poll_flush(cx, to)).map_err(|_| BodyFault::Write)?);
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if *left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Not into the next message, or, where its start is not known, not far.
            let within = match &self.framing {
                Incoming::Length(length) => *length,
                Incoming::Chunked(decoder) => decoder.left().saturating_add(AHEAD),
                Incoming::UntilClose | Incoming::Done => u64::MAX,
            };
            let want = usize::try_from(within).unwrap_or(usize::MAX).min(self.chunk);
            let read = ready!(self.poll_piece(cx, from, to, want.min(scratch::allowance()), over, count))?;
            *left = left.saturating_sub(read);
        }
    }

    /// One read and, if the receiver takes it, one write.
    fn poll_piece<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        want: usize,
        over: &mut Vec<u8>,
        count: &impl Fn(usize),
    ) -> Poll<Result<usize, BodyFault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        scratch::with(want, |buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(|_| BodyFault::Read)?;
            let data = buffer.filled();
            self.kept.moved = true;
            if data.is_empty() {
                if matches!(self.framing, Incoming::UntilClose) {
                    self.framing = Incoming::Done;
                    return Poll::Ready(Ok(0));
                }
                return Poll::Ready(Err(BodyFault::Read));
            }
            if let Incoming::Chunked(_) = self.framing {
                let mut out = Vec::with_capacity(data.len() + 64);
                let taken = self.take(data, &mut out)?;
                over.extend_from_slice(data.get(taken..).unwrap_or_default());
                self.send(cx, to, &out, count)?;
            } else {
                if let Incoming::Length(left) = &mut self.framing {
                    *left = left.saturating_sub(data.len() as u64);
                    if *left == 0 {
                        self.framing = Incoming::Done;
                    }
                }
                self.send(cx, to, data, count)?;
            }
            if data.len() == want && self.kept.is_empty() {
                self.chunk = (self.chunk * 2).min(MAX_CHUNK);
            } else if !self.kept.is_empty() {
                self.chunk = MIN_CHUNK;
            }
            Poll::Ready(Ok(data.len()))
        })
    }

    /// Writes what the receiver takes and keeps the rest.
    fn send<W>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        mut data: &[u8],
        count: &impl Fn(usize),
    ) -> Result<(), BodyFault>
    where
        W: AsyncWrite + Unpin,
    {
        while !data.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, data) {
                Poll::Ready(Ok(n @ 1..)) => {
                    count(n);
                    data = data.get(n..).unwrap_or_default();
                }
                Poll::Ready(_) => return Err(BodyFault::Write),
                Poll::Pending => {
                    self.kept.keep(data);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The state of one exchange.
struct Exchange {
    request: Body,
    /// The upstream no longer takes the request; its answer may still come.
    upload_broken: bool,
    uploaded: bool,
    answer: Option<Body>,
    /// Interim answers, and the final head, on their way to the guest.
    words: Kept,
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
    /// The guest has said nothing more since its request, so a reset of its would be noticed.
    silent: bool,
}

impl Exchange {
    fn new(input: &mut Vec<u8>, request: Outgoing) -> Result<Exchange, Fault> {
        let Outgoing { head, body, is_head, version, keep_alive, upgrade, repeatable } = request;
        let mut first = head;
        let mut upload = Body::new(body.into(), true);
        if !upload.is_done() && !input.is_empty() {
            let taken = upload.take(input, &mut first).map_err(|_| Fault::GuestMalformed)?;
            input.drain(..taken);
        }
        upload.kept = Kept::new(first);
        Ok(Exchange {
            request: upload,
            upload_broken: false,
            uploaded: false,
            answer: None,
            words: Kept::default(),
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

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        guest: &mut TcpStream,
        input: &mut Vec<u8>,
        upstream: &mut Peer,
        meter: &impl Meter,
    ) -> Poll<Result<Done, Fault>> {
        let uploading = self.poll_upload(cx, guest, input, upstream, meter)?;
        if uploading.is_ready() && self.answer.is_none() {
            self.notice_reset(cx, guest)?;
        }
        let answering = self.poll_answer(cx, guest, upstream, meter);
        self.moved |= std::mem::take(&mut self.request.kept.moved) | std::mem::take(&mut self.words.moved);
        if let Some(answer) = &mut self.answer {
            self.moved |= std::mem::take(&mut answer.kept.moved);
        }
        ready!(answering)?;
        if self.upgraded {
            return Poll::Ready(Ok(Done::Upgraded));
        }
        // An answer that came before the whole request was read leaves the rest of it in the way.
        let whole = uploading.is_ready() && !self.upload_broken;
        Poll::Ready(Ok(Done::Answered {
            guest_reusable: self.guest_reusable && whole,
            upstream_reusable: self.upstream_reusable && whole && upstream.input.is_empty(),
        }))
    }

    /// A guest that reset its connection waits for no answer. One that only said its last word, or
    /// sends the next request already, does.
    fn notice_reset(&mut self, cx: &mut Context<'_>, guest: &TcpStream) -> Result<(), Fault> {
        if !self.silent {
            return Ok(());
        }
        let mut byte = [0u8; 1];
        match guest.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(_)) => {
                self.silent = false;
                Ok(())
            }
            Poll::Ready(Err(_)) => Err(Fault::GuestGone),
        }
    }

    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        guest: &mut TcpStream,
        input: &mut Vec<u8>,
        upstream: &mut Peer,
        meter: &impl Meter,
    ) -> Result<Poll<()>, Fault> {
        if self.uploaded || self.upload_broken {
            return Ok(Poll::Ready(()));
        }
        let mut left = 2 * MAX_CHUNK;
        match self.request.poll(cx, guest, &mut upstream.stream, input, &mut left, &|n| meter.up(n)) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(())) => {
                self.uploaded = true;
                Ok(Poll::Ready(()))
            }
            // It may have answered already (413, 401) and closed.
            Poll::Ready(Err(BodyFault::Write)) => {
                self.upload_broken = true;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(Err(BodyFault::Read)) => Err(Fault::GuestGone),
            Poll::Ready(Err(BodyFault::Malformed)) => Err(Fault::GuestMalformed),
        }
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        guest: &mut TcpStream,
        upstream: &mut Peer,
        meter: &impl Meter,
    ) -> Poll<Result<(), Fault>> {
        while self.answer.is_none() {
            // Interim answers go out before more is read, so that they cannot pile up.
            meter.down(ready!(self.words.poll_flush(cx, guest)).map_err(|_| Fault::GuestGone)?);
            if self.upgraded {
                return Poll::Ready(Ok(()));
            }
            if upstream.input.len() == self.scanned || !self.head(&mut upstream.input)? {
                ready!(poll_more(cx, upstream))?;
                self.heard = true;
                self.moved = true;
            }
        }
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        self.answered = true;
        let mut left = 2 * MAX_CHUNK;
        let Peer { stream, input, .. } = upstream;
        ready!(answer.poll(cx, stream, guest, input, &mut left, &|n| meter.down(n))).map_err(|fault| match fault {
            BodyFault::Read | BodyFault::Malformed => Fault::Upstream,
            BodyFault::Write => Fault::GuestGone,
        })?;
        Poll::Ready(Ok(()))
    }

    /// Takes one head from the front of `input`, if it is whole: an interim one becomes words for the
    /// guest, a final one starts the answer. False where more bytes are needed.
    fn head(&mut self, input: &mut Vec<u8>) -> Result<bool, Fault> {
        let parsed = ResponseHead::parse(input, self.scanned).map_err(|_| Fault::Upstream)?;
        let Parsed::Complete { head, len } = parsed else {
            self.scanned = input.len();
            return Ok(false);
        };
        self.scanned = 0;
        let method: &[u8] = if self.is_head { b"HEAD" } else { b"GET" };
        let mut words = Vec::with_capacity(len + 64);
        if head.status < 200 {
            self.interim(&head, &mut words)?;
            input.drain(..len);
            return Ok(true);
        }
        let body = head.body_for(method);
        self.upstream_reusable &= head.keep_alive(method);
        // A request that is not all sent yet is in the way of the next: its sender is told not to.
        let keep_alive = self.guest_reusable && self.uploaded;
        let sent = head.write_response(body, Downstream { version: self.version, keep_alive }, &mut words);
        self.guest_reusable = sent.keep_alive;
        let mut answer = Body::new(body.into(), sent.body == ResponseBody::Chunked);
        let rest = input.get(len..).unwrap_or_default();
        let taken = answer.take(rest, &mut words).map_err(|_| Fault::Upstream)?;
        answer.kept = Kept::new(words);
        input.drain(..len + taken);
        self.answer = Some(answer);
        Ok(true)
    }

    /// An answer below 200: 101 ends the exchange, others are passed on to guests that know them.
    fn interim(&mut self, head: &ResponseHead<'_>, words: &mut Vec<u8>) -> Result<(), Fault> {
        self.interim += 1;
        let switches = head.status == 101;
        let asked = self.upgrade && head.upgrade == Some(Upgrade::WebSocket);
        if self.interim > MAX_INTERIM || (switches && !asked) {
            return Err(Fault::Upstream);
        }
        if switches || self.version == Version::Http11 {
            let to = Downstream { version: self.version, keep_alive: true };
            head.write_response(ResponseBody::None, to, words);
            self.answered |= switches;
        }
        self.upgraded = switches;
        self.words = Kept::new(std::mem::take(words));
        Ok(())
    }
}

impl From<RequestBody> for Incoming {
    fn from(body: RequestBody) -> Incoming {
        match body {
            RequestBody::None | RequestBody::Length(0) => Incoming::Done,
            RequestBody::Length(length) => Incoming::Length(length),
            RequestBody::Chunked => Incoming::Chunked(Box::default()),
        }
    }
}

impl From<ResponseBody> for Incoming {
    fn from(body: ResponseBody) -> Incoming {
        match body {
            ResponseBody::None | ResponseBody::Length(0) => Incoming::Done,
            ResponseBody::Length(length) => Incoming::Length(length),
            ResponseBody::Chunked => Incoming::Chunked(Box::default()),
            ResponseBody::UntilClose => Incoming::UntilClose,
        }
    }
}

/// Decodes chunks from the front of `data` and writes what is to be sent for them: chunks of ours, or
/// the bare body. Returns how much was taken.
fn recode(decoder: &mut Decoder, rechunk: bool, data: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyFault> {
    let mut taken = 0;
    while let Some(rest) = data.get(taken..).filter(|rest| !rest.is_empty()) {
        let decoded = decoder.decode(rest).map_err(|_| BodyFault::Malformed)?;
        taken += decoded.consumed;
        match decoded.part {
            Part::Data(range) => {
                let piece = rest.get(range).unwrap_or_default();
                if rechunk {
                    out.extend_from_slice(ChunkHeader::new(piece.len()).as_ref());
                    out.extend_from_slice(piece);
                    out.extend_from_slice(CHUNK_END);
                } else {
                    out.extend_from_slice(piece);
                }
            }
            Part::More => {}
            Part::End => {
                if rechunk {
                    decoder.write_end(out);
                }
                break;
            }
        }
    }
    Ok(taken)
}

/// Reads more of the upstream's head. Its end before the head's is the upstream's fault.
fn poll_more(cx: &mut Context<'_>, upstream: &mut Peer) -> Poll<Result<(), Fault>> {
    let Peer { stream, input, .. } = upstream;
    scratch::with(MIN_CHUNK, |buffer| {
        let mut buffer = ReadBuf::new(buffer);
        match ready!(Pin::new(stream).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {
                input.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Err(Fault::Upstream)),
        }
    })
}

impl Peer {
    /// A new connection.
    pub fn new(stream: TcpStream, bond: Bond) -> Peer {
        Peer { bond, stream, input: Vec::new(), served: 0 }
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
