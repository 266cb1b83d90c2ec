//! A connection of which the first bytes were read already: they come first.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// rustls reads 4 KiB at a time, which is four system calls a record. What is there is read at once, 64 KiB at most,
/// which costs a third less CPU time for the same bytes.
const MOST: usize = 64 << 10;

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
}

impl Socket {
    /// `ahead` was read of `stream`.
    pub fn new(stream: TcpStream, ahead: Vec<u8>) -> Socket {
        Socket { stream, ahead, used: 0, most: MOST }
    }

    /// The connection alone.
    pub fn into_tcp(self) -> TcpStream {
        self.stream
    }

    /// Reads no more than so many bytes at once from now on; 64 KiB is the most in any case.
    pub fn read_at_most(&mut self, bytes: usize) {
        self.most = bytes.min(MOST);
    }

    /// How many bytes were read and not yet used.
    pub fn held(&self) -> usize {
        self.ahead.len()
    }

    /// The connection.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads what there is, and keeps what `buf` has no room for.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.is_empty() {
                scratch.resize(MOST, 0);
            }
            let size = self.most.max(buf.remaining()).min(scratch.len());
            let mut all = ReadBuf::new(scratch.get_mut(..size).unwrap_or_default());
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut all))?;
            let (part, rest) = all.filled().split_at(buf.remaining().min(all.filled().len()));
            buf.put_slice(part);
            self.ahead.extend_from_slice(rest);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            return this.poll_ahead(cx, buf);
        }
        let rest = this.ahead.get(this.used..).unwrap_or_default();
        let part = rest.get(..buf.remaining()).unwrap_or(rest);
        buf.put_slice(part);
        this.used += part.len();
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
