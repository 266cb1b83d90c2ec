//! The body of a message on its way from one side to the other: read by its framing, and framed anew for the
//! receiver. The exchange around it knows which side is which and what a fault means.

use crate::identify::chunked::{CHUNK_END, ChunkError, ChunkHeader, Decoder, Part};
use crate::identify::http::{Body as RequestBody, ResponseBody};
use crate::relay::Side;
use crate::relay::fairness::Turn;
use crate::relay::scratch::{self, MAX_CHUNK, MIN_CHUNK, ThreadBuffer};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How far to read past the current chunk; limits how much of the next message is kept.
const AHEAD: u64 = 16 << 10;

/// A body on its way: its incoming framing, its outgoing framing, and what the receiver has not accepted yet.
#[derive(Debug)]
pub(super) struct Body {
    framing: Incoming,
    rechunk: bool,
    /// What the receiver has not accepted yet.
    pub(super) kept: ThreadBuffer,
    chunk: usize,
    turn: Turn,
}

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Incoming {
    Length(u64),
    Chunked(Box<Decoder>),
    UntilClose,
    Done,
}

/// What can go wrong with a body; the caller knows which side is which.
pub(super) enum BodyFault {
    Read,
    Write,
    Malformed(ChunkError),
}

impl Body {
    /// `rechunk`: a chunked body stays chunked.
    pub(super) fn new(framing: Incoming, rechunk: bool) -> Body {
        Body { framing, rechunk, kept: ThreadBuffer::default(), chunk: MIN_CHUNK, turn: Turn::default() }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.framing, Incoming::Done)
    }

    /// Takes body bytes from the front of `data` and adds the bytes to send for them to `out`. Returns how many were
    /// taken: fewer than all only if the body ended.
    pub(super) fn take(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyFault> {
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
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        over: &mut Vec<u8>,
        count: &impl Fn(usize),
    ) -> Poll<Result<(), BodyFault>>
    where
        R: Side,
        W: Side,
    {
        let over_with = self.is_done() && self.kept.is_empty();
        if !over_with && !self.turn.begin(cx) {
            return Poll::Pending;
        }
        loop {
            let flushed = ready!(self.kept.poll_flush(cx, to)).map_err(|_| BodyFault::Write)?;
            self.turn.moved(flushed);
            count(flushed);
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if !self.turn.goes_on(cx) {
                return Poll::Pending;
            }
            // Do not read into the next message, or, where its start is not known, not far.
            let within = match &self.framing {
                Incoming::Length(length) => *length,
                Incoming::Chunked(decoder) => decoder.left().saturating_add(AHEAD),
                Incoming::UntilClose | Incoming::Done => u64::MAX,
            };
            let want = usize::try_from(within).unwrap_or(usize::MAX).min(self.chunk);
            let piece = self.poll_piece(cx, from, to, want.min(scratch::allowance()), over, count);
            self.turn.moved(from.take_surcharge());
            let read = ready!(piece)?;
            self.turn.moved(read);
        }
    }

    /// Does one read and, if the receiver accepts it, one write.
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

    /// Writes what the receiver accepts and keeps the rest.
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

/// Decodes chunks from the front of `data` and adds the bytes to send for them to `out`: new chunks, or the bare
/// body. Returns how many bytes were taken.
fn recode(decoder: &mut Decoder, rechunk: bool, data: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyFault> {
    let mut taken = 0;
    while let Some(rest) = data.get(taken..).filter(|rest| !rest.is_empty()) {
        let decoded = decoder.decode(rest).map_err(BodyFault::Malformed)?;
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
