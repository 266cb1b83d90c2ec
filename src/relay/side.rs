//! The two sides of a relay: a TCP connection, and a guest's, which may be inside TLS.

use super::fairness::after_next_look;
use super::scratch;
use crate::tls::Stream as TlsStream;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection that is relayed. Shutting it down passes on the end and leaves the other direction open.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The TCP connection below.
    fn socket(&self) -> &TcpStream;

    /// Does closing the socket alone signal the end completely?
    fn ends_with_socket(&self) -> bool;

    /// What reading has cost beyond the bytes that it returned, in bytes, since the last call.
    fn take_surcharge(&mut self) -> usize {
        0
    }
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
    Tls(Box<Sealed>),
}

/// A connection inside TLS. Bytes that it read ahead, and bytes that its peer has not accepted, count among those
/// that all flows of the thread keep.
#[derive(Debug)]
pub struct Sealed {
    stream: TlsStream,
    kept: usize,
    /// The fault that ended reading; each later read returns it again.
    fault: Option<io::ErrorKind>,
}

/// The most that is encrypted and not yet sent, 64 KiB.
const MOST_SEALED: usize = 64 << 10;

impl Sealed {
    fn new(mut stream: TlsStream) -> Sealed {
        // The handshake came before the flow's first turn, so it does not count.
        stream.get_mut().0.take_surcharge();
        Sealed { stream, kept: 0, fault: None }
    }

    /// Reads, but no more at once than is fair to the others on this thread.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault.into()));
        }
        self.stream.get_mut().0.refill();
        let (polled, fault) = self.with(|stream| poll_records(stream, cx, buf));
        self.fault = fault;
        if polled.is_pending() && self.stream.get_ref().0.is_spent() {
            after_next_look(cx);
        }
        polled
    }

    /// Runs `work` on the stream, within the limit on what it may keep.
    fn with<T>(&mut self, work: impl FnOnce(&mut TlsStream) -> T) -> T {
        let most = scratch::allowance().min(MOST_SEALED);
        let (socket, session) = self.stream.get_mut();
        socket.read_at_most(most);
        session.set_buffer_limit(Some(most));
        let done = work(&mut self.stream);
        let (socket, session) = self.stream.get_ref();
        let kept = socket.held() + if session.wants_write() { most } else { 0 };
        scratch::recount(self.kept, kept);
        self.kept = kept;
        done
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        scratch::recount(self.kept, 0);
    }
}

impl GuestStream {
    /// The connection itself, if it is not inside TLS.
    pub fn in_clear(&self) -> Option<&TcpStream> {
        match self {
            GuestStream::Clear(stream) => Some(stream),
            GuestStream::Tls(_) => None,
        }
    }
}

impl From<TlsStream> for GuestStream {
    fn from(stream: TlsStream) -> GuestStream {
        GuestStream::Tls(Box::new(Sealed::new(stream)))
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
            GuestStream::Tls(sealed) => sealed.stream.get_ref().0.tcp(),
        }
    }

    fn ends_with_socket(&self) -> bool {
        // An end without close_notify is a cut stream (RFC 8446 §6.1).
        self.in_clear().is_some()
    }

    fn take_surcharge(&mut self) -> usize {
        match self {
            GuestStream::Clear(_) => 0,
            GuestStream::Tls(sealed) => sealed.stream.get_mut().0.take_surcharge(),
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_read(cx, buf),
            GuestStream::Tls(sealed) => sealed.poll_read(cx, buf),
        }
    }
}

/// Fills `buf` from the records that have already arrived. One read of the stream returns one record at most, 16
/// KiB, but the cost of sending the bytes on depends on the size of the write. A fault after them is returned
/// besides, because the stream itself would read on.
fn poll_records(
    stream: &mut TlsStream,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> (Poll<io::Result<()>>, Option<io::ErrorKind>) {
    let before = buf.filled().len();
    while buf.remaining() > 0 {
        let filled = buf.filled().len();
        let polled = Pin::new(&mut *stream).poll_read(cx, buf);
        let fault = match &polled {
            Poll::Ready(Err(error)) => Some(error.kind()),
            _ => None,
        };
        match polled {
            Poll::Ready(Ok(())) if buf.filled().len() > filled => {}
            // The end or an empty socket shows up again at the next read.
            _ if filled > before => return (Poll::Ready(Ok(())), fault),
            other => return (other, fault),
        }
    }
    (Poll::Ready(Ok(())), None)
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_write(cx, buf),
            GuestStream::Tls(sealed) => sealed.with(|stream| Pin::new(stream).poll_write(cx, buf)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_flush(cx),
            GuestStream::Tls(sealed) => sealed.with(|stream| Pin::new(stream).poll_flush(cx)),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            GuestStream::Tls(sealed) => sealed.with(|stream| Pin::new(stream).poll_shutdown(cx)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::{ThreadBuffer, kept_by_thread};
    use super::*;
    use crate::tls::Socket;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use std::future::poll_fn;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A guest's end of a connection inside TLS, and ours.
    async fn pair() -> (tokio_rustls::client::TlsStream<TcpStream>, GuestStream) {
        let signed = rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
        let (der, key) = (signed.cert.der().clone(), signed.signing_key.serialize_der());
        let server = rustls::ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![der.clone()], PrivateKeyDer::try_from(key).unwrap()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der).unwrap();
        let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        let name = ServerName::try_from("gateway.test").unwrap();
        let (guest, near) = tokio::join!(
            tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, guest),
            tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(Socket::new(near, Vec::new())),
        );
        (guest.unwrap(), near.unwrap().into())
    }

    #[tokio::test]
    async fn what_is_sealed_for_a_slow_reader_counts_as_kept_until_it_is_sent() {
        let (mut guest, mut near) = pair().await;
        let data = vec![7; 64 << 20];
        let mut written = 0;
        // Writes until the sockets are full and some encrypted bytes cannot be sent.
        poll_fn(|cx| {
            while let Poll::Ready(done) = Pin::new(&mut near).poll_write(cx, &data[written..]) {
                written += done.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        assert_eq!(kept_by_thread(), MOST_SEALED);
        let mut kept = ThreadBuffer::default();
        let waits = poll_fn(|cx| Poll::Ready(kept.poll_flush(cx, &mut near).is_pending())).await;
        assert!(waits, "nothing is kept by the flow, but something is by TLS");
        let mut got = vec![0; written];
        let flush = poll_fn(|cx| kept.poll_flush(cx, &mut near));
        let (flushed, read) = tokio::join!(flush, guest.read_exact(&mut got));
        assert_eq!((flushed.unwrap(), read.unwrap()), (0, written));
        assert_eq!(kept_by_thread(), 0);
        assert!(got == data[..written]);
    }

    #[tokio::test]
    async fn one_read_takes_what_is_there_and_what_was_read_ahead_counts_as_kept() {
        let (mut guest, mut near) = pair().await;
        let data: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        guest.write_all(&data).await.unwrap();
        guest.flush().await.unwrap();
        let mut first = vec![0; 10];
        near.read_exact(&mut first).await.unwrap();
        let kept = kept_by_thread();
        assert!(kept > 0 && kept <= 64 << 10, "{kept}");
        let mut rest = vec![0; data.len()];
        let read = near.read(&mut rest).await.unwrap();
        assert!(read > 16 << 10, "more than one record: {read}");
        near.read_exact(&mut rest[read..data.len() - 10]).await.unwrap();
        rest.truncate(data.len() - 10);
        assert!([first, rest].concat() == data);
        assert_eq!(kept_by_thread(), 0);
        guest.write_all(&data).await.unwrap();
        near.read_exact(&mut [0; 10]).await.unwrap();
        assert!(kept_by_thread() > 0);
        drop(near);
        assert_eq!(kept_by_thread(), 0);
    }

    #[tokio::test]
    async fn small_records_are_read_a_few_at_a_time_and_cost_more_than_their_bytes() {
        let (mut guest, mut near) = pair().await;
        for _ in 0..100 {
            guest.write_all(b"x").await.unwrap();
        }
        guest.flush().await.unwrap();
        let mut got = Vec::new();
        while got.len() < 100 {
            let read = near.read_buf(&mut got).await.unwrap();
            assert!(read <= 17, "sixteen, and one that had begun: {read}");
        }
        assert!(near.take_surcharge() > 4000 * 100);
    }

    #[tokio::test]
    async fn records_without_data_let_others_in_between() {
        let (mut guest, mut near) = pair().await;
        for _ in 0..30 {
            guest.get_mut().1.refresh_traffic_keys().unwrap();
        }
        guest.write_all(b"x").await.unwrap();
        guest.flush().await.unwrap();
        near.socket().readable().await.unwrap();
        let mut buffer = [0; 10];
        let first =
            poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_read(cx, &mut ReadBuf::new(&mut buffer)).is_pending()));
        assert!(first.await, "some new keys, and the byte is not yet read");
        assert_eq!(near.read(&mut buffer).await.unwrap(), 1, "but it is woken");
    }

    #[tokio::test]
    async fn a_fault_is_met_again_by_whoever_reads_on() {
        let (mut guest, mut near) = pair().await;
        guest.write_all(b"good").await.unwrap();
        guest.flush().await.unwrap();
        // A record that was not encrypted.
        guest
            .get_mut()
            .0
            .write_all(&[23, 3, 3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        // Both have arrived by then.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut got = [0; 10];
        // Bytes that arrived together with the fault may be lost.
        if let Ok(read) = near.read(&mut got).await {
            assert_eq!(read, 4);
        }
        assert!(near.read(&mut got).await.is_err());
        assert!(near.read(&mut got).await.is_err());
    }
}
