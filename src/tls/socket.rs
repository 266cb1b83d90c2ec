//! The connection below TLS: what was read of it before, what is read ahead, and how much of it is given out at once.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// rustls reads 4 KiB at a time, which is four system calls a record. What is there is read at once, 64 KiB at most,
/// which costs a third less CPU time for the same bytes.
const MOST: usize = 64 << 10;

/// Records that are opened in one go.
const AT_ONCE: usize = 16;

/// What a record counts at least, 4 KiB: to open one takes as long as to copy that, and one that changes keys longer.
const PRICE: usize = 4 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A TCP connection, and what was read of it before it was known to be TLS.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    ahead: Vec<u8>,
    used: usize,
    /// The most that is read at once.
    most: usize,
    budget: RecordBudget,
}

/// What is given out, by records.
#[derive(Debug)]
struct RecordBudget {
    record: RecordProgress,
    /// Records that may still be begun; without bound during the handshake.
    allowed: usize,
    extra_cost: usize,
}

/// Where in a TLS record the bytes are that are taken out next (RFC 8446 §5.1: type, version, length).
#[derive(Clone, Copy, Debug, Default)]
struct RecordProgress {
    header: [u8; 5],
    /// Bytes of the header that were taken.
    begun: usize,
    /// Bytes of the body that are still to come.
    left: usize,
}

impl RecordProgress {
    /// Does what comes next begin a record?
    fn is_over(&self) -> bool {
        self.left == 0 && self.begun == 0
    }

    /// How many of `bytes` belong to this record or to its header. What is taken of them is noted; the length of
    /// the record, header included, is given when its header ends.
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

    /// How many of `bytes` are given out: as far as records may be begun.
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
    /// `ahead` was read of `stream`.
    pub fn new(stream: TcpStream, ahead: Vec<u8>) -> Socket {
        Socket {
            stream,
            ahead,
            used: 0,
            most: MOST,
            budget: RecordBudget { record: RecordProgress::default(), allowed: usize::MAX, extra_cost: 0 },
        }
    }

    /// The connection alone.
    pub fn into_tcp(self) -> TcpStream {
        self.stream
    }

    /// Reads no more than so many bytes at once from now on; 64 KiB is the most in any case.
    pub fn read_at_most(&mut self, bytes: usize) {
        self.most = bytes.min(MOST);
    }

    /// Bounds what is given out until this is called again: 16 records, 256 KiB at most. Who reads on gets nothing and
    /// is not woken.
    pub fn refill(&mut self) {
        self.budget.allowed = AT_ONCE;
    }

    /// Has all been given out that [`refill`](Self::refill) allows?
    pub fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }

    /// What small records have cost beyond their bytes since this was last asked.
    pub fn take_surcharge(&mut self) -> usize {
        std::mem::take(&mut self.budget.extra_cost)
    }

    /// How many bytes were read and not yet used.
    pub fn held(&self) -> usize {
        self.ahead.len()
    }

    /// The connection.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads what there is.
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
