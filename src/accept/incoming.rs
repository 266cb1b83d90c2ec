//! Taking connections off a listening socket, without giving them to the runtime yet: what can be answered
//! at once then costs no place in its event queue.

use rustix::net::SocketFlags;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A listening socket on the runtime that made this.
#[derive(Debug)]
pub struct Incoming(AsyncFd<TcpListener>);

impl Incoming {
    /// Registers a non-blocking `listener` with the runtime of this thread. Its connections have TCP_NODELAY.
    ///
    /// # Errors
    /// Where the runtime cannot watch it.
    pub fn new(listener: TcpListener) -> io::Result<Incoming> {
        // Connections inherit it (tcp(7)). Failing only means Nagle stays on; they work all the same.
        let _ = SockRef::from(&listener).set_tcp_nodelay(true);
        #[expect(
            deprecated,
            reason = "unsound for types that change or close their descriptor; a listener does neither"
        )]
        AsyncFd::with_interest(listener, Interest::READABLE).map(Incoming)
    }

    /// The next connection, non-blocking. The caller may drop the future; no connection is lost by that.
    pub(super) async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.async_io(Interest::READABLE, accept).await
    }

    /// The next connection if one waits, [`io::ErrorKind::WouldBlock`] if none does.
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
