//! Accepts connections without registering them with the runtime yet: a connection that is answered at once
//! then costs no place in the runtime's event queue.

use rustix::net::SocketFlags;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A listening socket, registered with the runtime of the thread that created it.
#[derive(Debug)]
pub struct Incoming(AsyncFd<TcpListener>);

impl Incoming {
    /// Registers a non-blocking `listener` with the runtime of this thread. Its connections have TCP_NODELAY.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(listener: TcpListener) -> io::Result<Incoming> {
        // Connections inherit TCP_NODELAY (tcp(7)). If this fails, only Nagle's algorithm stays on; they still work.
        let _ = SockRef::from(&listener).set_tcp_nodelay(true);
        #[expect(
            deprecated,
            reason = "unsound for types that change or close their descriptor; a listener does neither"
        )]
        AsyncFd::with_interest(listener, Interest::READABLE).map(Incoming)
    }

    /// Returns the next connection, non-blocking. Dropping the future loses no connection.
    pub(super) async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.async_io(Interest::READABLE, accept).await
    }

    /// Returns the next connection if one waits, [`io::ErrorKind::WouldBlock`] otherwise.
    pub(super) fn waiting(&self) -> io::Result<(TcpStream, SocketAddr)> {
        accept(self.0.get_ref())
    }
}

fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, source) = rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    // A TCP socket's peer has no other kind of address.
    let source = source.and_then(|source| source.try_into().ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((stream.into(), source))
}
