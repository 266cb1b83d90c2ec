//! Opens one connection to vetted addresses: Happy Eyeballs (RFC 8305) over the vetted set only.
//!
//! The order of the addresses is that of [`Vetted`]; which of them a flow may reach was decided before. The
//! relay uses the socket.

mod local_ports;

use crate::reason::Reason;
use crate::resolve::Vetted;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

/// Time between the starts of two attempts (RFC 8305 §5, "Connection Attempt Delay").
const STAGGER: Duration = Duration::from_millis(250);

/// `[dial]` of the configuration, as far as it concerns connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialSettings {
    /// Bound on the whole attempt, over all addresses.
    pub connect_timeout: Duration,
}

/// A connection to the upstream, TCP_NODELAY set.
#[derive(Debug)]
pub struct Upstream {
    /// The connection, registered with the runtime that called [`connect`].
    pub stream: TcpStream,
    /// The remote address.
    pub peer: SocketAddr,
    /// The local address.
    pub local: SocketAddr,
}

/// Why there is no connection. The text is for the operator: it contains addresses.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Every address failed; the last failure.
    #[error("{address}: {source}")]
    Failed {
        /// The address that failed last.
        address: SocketAddr,
        /// The error.
        source: io::Error,
    },
    /// No address answered in time.
    #[error("{address}: no answer within {} ms", .after.as_millis())]
    Timeout {
        /// The first address tried.
        address: SocketAddr,
        /// The bound that was exceeded.
        after: Duration,
    },
    /// There was no address to try.
    #[error("no address to connect to")]
    NoAddress,
}

impl DialError {
    /// Returns the reason for the guest and the metrics.
    pub fn reason(&self) -> Reason {
        match self {
            // The kernel gave up by itself, before our bound.
            DialError::Failed { source, .. } if source.kind() == io::ErrorKind::TimedOut => Reason::Timeout,
            DialError::Failed { .. } | DialError::NoAddress => Reason::DialFailed,
            DialError::Timeout { .. } => Reason::Timeout,
        }
    }
}

/// Connects to the first of the vetted addresses that answers.
///
/// Tries the addresses in their order, the next one as soon as one fails or after 250 ms of silence. The first
/// connection wins, and the other attempts are dropped.
pub async fn connect(vetted: &Vetted, settings: &DialSettings) -> Result<Upstream, DialError> {
    let addresses = vetted.addresses();
    let first = *addresses.first().ok_or(DialError::NoAddress)?;
    let bound = settings.connect_timeout;
    let connected = match addresses {
        [only] => timeout(bound, attempt(*only)).await,
        several => timeout(bound, race(several)).await,
    };
    let (stream, peer) = connected.map_err(|_| DialError::Timeout { address: first, after: bound })??;
    let finish = || {
        stream.set_nodelay(true)?;
        stream.local_addr()
    };
    let local = finish().map_err(|source| DialError::Failed { address: peer, source })?;
    Ok(Upstream { stream, peer, local })
}

type Attempted = Result<(TcpStream, SocketAddr), DialError>;

async fn attempt(address: SocketAddr) -> Attempted {
    match local_ports::connect(address).await {
        Ok(stream) => Ok((stream, address)),
        Err(source) => Err(DialError::Failed { address, source }),
    }
}

/// Creates a socket of the family of `address`, not yet bound.
fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // So that its port can be bound again while it is in TIME_WAIT for a minute.
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

async fn race(addresses: &[SocketAddr]) -> Attempted {
    let mut waiting = addresses.iter();
    let mut running = Vec::with_capacity(addresses.len());
    let mut failure = DialError::NoAddress;
    while let Some(address) = waiting.next() {
        running.push(Box::pin(attempt(*address)));
        let next_start = Instant::now() + STAGGER;
        loop {
            let ended = tokio::select! {
                biased;
                ended = FirstOf(&mut running) => ended,
                () = sleep_until(next_start), if waiting.len() > 0 => break,
            };
            match ended {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            }
            // One failed: the next need not wait. After the last address, wait for the running ones.
            if waiting.len() > 0 || running.is_empty() {
                break;
            }
        }
    }
    Err(failure)
}

/// Completes with the first attempt that ends, and removes it. Pending for ever if there are none.
struct FirstOf<'a, F>(&'a mut Vec<Pin<Box<F>>>);

impl<F: Future> Future for FirstOf<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let ended = self.0.iter_mut().enumerate().find_map(|(index, future)| match future.as_mut().poll(context) {
            Poll::Ready(output) => Some((index, output)),
            Poll::Pending => None,
        });
        match ended {
            Some((index, output)) => {
                drop(self.0.swap_remove(index));
                Poll::Ready(output)
            }
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::TcpListener;

    const SETTINGS: DialSettings = DialSettings { connect_timeout: Duration::from_millis(700) };

    fn vetted(addresses: &[SocketAddr]) -> Vetted {
        Vetted::of(addresses)
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Returns an address that refuses: it was bound a moment ago.
    fn refusing() -> SocketAddr {
        listener().1
    }

    /// Returns a listener whose backlog is full, so that the kernel drops new connections: it neither answers
    /// nor refuses. Keep everything that is returned.
    async fn silent() -> (Socket, Vec<Result<TcpStream, tokio::time::error::Elapsed>>, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut filling = Vec::new();
        loop {
            let stream = timeout(Duration::from_millis(100), TcpStream::connect(address)).await;
            let full = stream.is_err();
            filling.push(stream.map(Result::unwrap));
            if full {
                return (socket, filling, address);
            }
        }
    }

    #[tokio::test]
    async fn a_connection_knows_both_its_ends_and_sends_at_once() {
        let (listener, address) = listener();
        let upstream = connect(&vetted(&[address]), &SETTINGS).await.unwrap();
        let (_accepted, from) = listener.accept().unwrap();
        assert_eq!((upstream.peer, upstream.local), (address, from));
        assert!(upstream.stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_refusal_is_told_at_once() {
        let start = Instant::now();
        let error = connect(&vetted(&[refusing()]), &SETTINGS).await.unwrap_err();
        assert_eq!(error.reason(), Reason::DialFailed);
        assert!(start.elapsed() < Duration::from_millis(100));
    }

    #[tokio::test]
    async fn silence_ends_at_the_bound_however_many_addresses_there_are() {
        let (_socket, _filling, address) = silent().await;
        for addresses in [vec![address], vec![address; 6]] {
            let start = Instant::now();
            let error = connect(&vetted(&addresses), &SETTINGS).await.unwrap_err();
            assert_eq!(error.reason(), Reason::Timeout);
            let took = start.elapsed();
            assert!(took >= SETTINGS.connect_timeout && took < SETTINGS.connect_timeout * 2, "{took:?}");
        }
    }

    #[tokio::test]
    async fn after_a_quarter_second_of_silence_the_second_address_wins() {
        let (_socket, _filling, dead) = silent().await;
        let (_listener, live) = listener();
        let start = Instant::now();
        let upstream = connect(&vetted(&[dead, live]), &SETTINGS).await.unwrap();
        assert_eq!(upstream.peer, live);
        let took = start.elapsed();
        assert!(took >= STAGGER && took < STAGGER + Duration::from_millis(150), "{took:?}");
    }

    #[tokio::test]
    async fn after_a_refusal_the_next_address_is_tried_at_once() {
        let (_listener, live) = listener();
        let start = Instant::now();
        let upstream = connect(&vetted(&[refusing(), refusing(), live]), &SETTINGS).await.unwrap();
        assert_eq!(upstream.peer, live);
        assert!(start.elapsed() < Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_refusal_while_others_are_silent_does_not_end_the_attempt() {
        let (_socket, _filling, dead) = silent().await;
        let start = Instant::now();
        let error = connect(&vetted(&[dead, refusing()]), &SETTINGS).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Timeout);
        assert!(start.elapsed() >= SETTINGS.connect_timeout);
    }

    #[tokio::test]
    async fn where_all_refuse_the_last_refusal_is_told() {
        let last = refusing();
        let error = connect(&vetted(&[refusing(), last]), &SETTINGS).await.unwrap_err();
        assert!(matches!(error, DialError::Failed { address, .. } if address == last));
    }

    #[tokio::test]
    async fn only_the_winner_stays_connected() {
        let (first, one) = listener();
        let (second, two) = listener();
        connect(&vetted(&[one, two]), &SETTINGS).await.unwrap();
        first.set_nonblocking(true).unwrap();
        second.set_nonblocking(true).unwrap();
        assert!(first.accept().is_ok());
        assert!(second.accept().is_err());
    }
}
