//! The connection below TLS: bytes that were read before, bytes read ahead, and a bound on what is passed on at once.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// rustls reads 4 KiB at a time, which is four system calls per record. Reading everything available at once,
/// up to 64 KiB, costs a third less CPU time for the same bytes.
const MOST: usize = 64 << 10;

/// Records that are decrypted in one turn.
const AT_ONCE: usize = 16;

/// The minimum cost of a record, 4 KiB: decrypting one takes as long as copying that much, and a key update
/// takes longer.
const PRICE: usize = 4 << 10;

thread_local! {
    /// Not the relay's scratch: that one is lent to a read from TLS while this one is filled from the socket.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A TCP connection, and the bytes that were read from it before it was known to be TLS.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    ahead: Vec<u8>,
    used: usize,
    /// The most that is read at once.
    most: usize,
    budget: RecordBudget,
}

/// A bound on what is passed on, by records.
#[derive(Debug)]
struct RecordBudget {
    record: RecordProgress,
    /// Records that may still be started; unbounded during the handshake.
    allowed: usize,
    extra_cost: usize,
}

/// The position of the next bytes within a TLS record (RFC 8446 §5.1: type, version, length).
#[derive(Clone, Copy, Debug, Default)]
struct RecordProgress {
    header: [u8; 5],
    /// Header bytes that were taken.
    begun: usize,
    /// Bytes of the body that are still missing.
    left: usize,
}

impl RecordProgress {
    /// Whether the next byte starts a record.
    fn is_over(&self) -> bool {
        self.left == 0 && self.begun == 0
    }

    /// Returns how many of `bytes` belong to this record or its header, and counts them as taken. When the
    /// header is complete, it also returns the length of the record, including the header.
    fn take(&mut self, bytes: &[u8]) -> (usize, Option<usize>) {
        if self.left > 0 {
            let part = self.left.min(bytes.len());
            self.left -= part;
            return (part, None);
        }
        let mut part = 0;
        for (to, from) in self.header.iter_mut().skip(self.begun).zip(bytes) {
            *to = *from;
            part += 1;
        }
        self.begun += part;
        if self.begun < self.header.len() {
            return (part, None);
        }
        let [.., high, low] = self.header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        self.begun = 0;
        let body = length.min(bytes.len() - part);
        self.left = length - body;
        (part + body, Some(self.header.len() + length))
    }
}

impl RecordBudget {
    fn is_spent(&self) -> bool {
        self.allowed == 0 && self.record.is_over()
    }

    /// Returns how many of `bytes` may be passed on, as far as records may be started.
    fn count(&mut self, bytes: &[u8]) -> usize {
        let mut len = 0;
        while let Some(rest) = bytes.get(len..).filter(|rest| !rest.is_empty()) {
            if self.is_spent() {
                break;
            }
            let (part, whole) = self.record.take(rest);
            len += part;
            let Some(length) = whole else { continue };
            self.allowed = self.allowed.saturating_sub(1);
            self.extra_cost = self.extra_cost.saturating_add(PRICE.saturating_sub(length));
        }
        len
    }
}

impl Socket {
    /// Creates it; `ahead` was already read from `stream`.
    pub fn new(stream: TcpStream, ahead: Vec<u8>) -> Socket {
        Socket {
            stream,
            ahead,
            used: 0,
            most: MOST,
            budget: RecordBudget { record: RecordProgress::default(), allowed: usize::MAX, extra_cost: 0 },
        }
    }

    /// Returns only the connection.
    pub fn into_tcp(self) -> TcpStream {
        self.stream
    }

    /// Limits later reads to this many bytes at once; 64 KiB is the maximum in any case.
    pub fn read_at_most(&mut self, bytes: usize) {
        self.most = bytes.min(MOST);
    }

    /// Sets how much is passed on until the next call: 16 records, 256 KiB at most. After that, a reader gets
    /// nothing and is not woken.
    pub fn refill(&mut self) {
        self.budget.allowed = AT_ONCE;
    }

    /// Whether everything that [`refill`](Self::refill) allows has been passed on.
    pub fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }

    /// Returns the cost of small records beyond their bytes since the last call.
    pub fn take_surcharge(&mut self) -> usize {
        std::mem::take(&mut self.budget.extra_cost)
    }

    /// Returns the size of the buffer of bytes that were read ahead.
    pub fn held(&self) -> usize {
        self.ahead.len()
    }

    /// Returns the connection.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads the available bytes.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.is_empty() {
                scratch.resize(MOST, 0);
            }
            let mut all = ReadBuf::new(scratch.get_mut(..self.most.max(1)).unwrap_or_default());
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut all))?;
            self.ahead.extend_from_slice(all.filled());
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_spent() {
            return Poll::Pending;
        }
        if this.ahead.is_empty() {
            ready!(this.poll_ahead(cx))?;
        }
        let rest = this.ahead.get(this.used..).unwrap_or_default();
        let part = rest.get(..buf.remaining()).unwrap_or(rest);
        let len = this.budget.count(part);
        buf.put_slice(part.get(..len).unwrap_or_default());
        this.used += len;
        if this.used >= this.ahead.len() {
            (this.ahead, this.used) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
