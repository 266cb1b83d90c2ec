//! The two sides of a relay: a TCP connection, and a guest's, which may be inside TLS.

use crate::tls::Stream as TlsStream;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection that is relayed. To shut it down passes on the end and leaves the other direction open.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The connection below.
    fn socket(&self) -> &TcpStream;

    /// Does closing the socket say all that there is to say about the end?
    fn ends_with_socket(&self) -> bool;
}

impl Side for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }

    fn ends_with_socket(&self) -> bool {
        true
    }
}

/// A guest's connection.
#[derive(Debug)]
pub enum GuestStream {
    /// In clear.
    Clear(TcpStream),
    /// Inside TLS.
    Tls(Box<TlsStream>),
}

impl GuestStream {
    /// The connection itself, if there is no TLS around what the guest says.
    pub fn in_clear(&self) -> Option<&TcpStream> {
        match self {
            GuestStream::Clear(stream) => Some(stream),
            GuestStream::Tls(_) => None,
        }
    }
}

impl From<TcpStream> for GuestStream {
    fn from(stream: TcpStream) -> GuestStream {
        GuestStream::Clear(stream)
    }
}

impl Side for GuestStream {
    fn socket(&self) -> &TcpStream {
        match self {
            GuestStream::Clear(stream) => stream,
            GuestStream::Tls(stream) => stream.get_ref().0.tcp(),
        }
    }

    fn ends_with_socket(&self) -> bool {
        // An end without close_notify is a cut stream (RFC 8446 §6.1).
        self.in_clear().is_some()
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_read(cx, buf),
            GuestStream::Tls(stream) => poll_records(stream, cx, buf),
        }
    }
}

/// One read gives one record at most, 16 KiB. What is here already is taken at once, for what it costs to send it on
/// is decided by the size of the write.
fn poll_records(stream: &mut TlsStream, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    let before = buf.filled().len();
    while buf.remaining() > 0 {
        let filled = buf.filled().len();
        match Pin::new(&mut *stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() > filled => {}
            // The end, a fault and an empty socket will be met again.
            _ if filled > before => break,
            other => return other,
        }
    }
    Poll::Ready(Ok(()))
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_write(cx, buf),
            GuestStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_flush(cx),
            GuestStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            GuestStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
