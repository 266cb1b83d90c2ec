//! The handshake, and what is said of one that came to nothing.

use super::{Socket, Stream};
use rustls::{CertificateError, Error, ServerConfig};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Between two lines on handshakes that failed at one listener.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// A handshake that came to nothing.
#[derive(Debug)]
pub struct Refused {
    /// The metric label.
    pub reason: &'static str,
    /// In words.
    pub why: String,
    /// The connection, where the alert is on its way: closed with bytes unread it would be reset, and the alert lost.
    pub stream: Option<TcpStream>,
}

/// Takes a connection through its handshake.
///
/// # Errors
/// [`Refused`], also when `deadline` is done first. The client was sent the alert.
pub async fn shake(
    socket: Socket,
    config: Arc<ServerConfig>,
    deadline: impl Future<Output = ()>,
) -> Result<Stream, Refused> {
    let handshake = async {
        // An alert is tried to be written only once, and the runtime takes a connection that is so new for one that
        // cannot be written to.
        if let Err(error) = socket.tcp().writable().await {
            return Err(Refused::of(&error));
        }
        let accepting = tokio_rustls::TlsAcceptor::from(config).accept(socket).into_fallible();
        accepting.await.map_err(|(error, socket)| Refused { stream: Some(socket.into_tcp()), ..Refused::of(&error) })
    };
    tokio::select! {
        biased;
        done = handshake => done,
        () = deadline => Err(Refused::timeout()),
    }
}

impl Refused {
    /// The connection began with what no TLS begins with.
    pub fn not_tls() -> Refused {
        Refused { reason: "not_tls", why: "it does not begin like TLS".to_owned(), stream: None }
    }

    /// It did not come to its end in time.
    pub fn timeout() -> Refused {
        Refused { reason: "timeout", why: "the handshake took too long".to_owned(), stream: None }
    }

    fn of(error: &io::Error) -> Refused {
        let reason = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::NoCertificatesPresented) => "no_client_certificate",
            Some(Error::InvalidCertificate(error)) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => "client_certificate_expired",
                // An authority of the same name has another key.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => "client_certificate_untrusted",
                CertificateError::ApplicationVerificationFailure => "client_certificate_unnamed",
                _ => "client_certificate",
            },
            Some(Error::InvalidMessage(_)) => "not_tls",
            Some(Error::AlertReceived(_)) => "client_refuses",
            Some(_) => "protocol",
            None => "broken_off",
        };
        let why = match reason {
            "client_certificate_unnamed" => "no guest's name is in the client's certificate".to_owned(),
            _ => error.to_string(),
        };
        Refused { reason, why, stream: None }
    }
}

/// What the log says of a listener's handshakes that failed: a line each, but in a flood one a second.
#[derive(Debug)]
pub struct Complaints {
    listener: &'static str,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    at: Option<Instant>,
    /// Handshakes since that got no line.
    untold: u64,
}

impl Complaints {
    /// Of the listener of this name.
    pub fn new(listener: &'static str) -> Complaints {
        Complaints { listener, last: Mutex::default() }
    }

    /// The listener.
    pub fn listener(&self) -> &'static str {
        self.listener
    }

    /// Says in the log that a handshake with `peer` failed.
    pub fn tell(&self, peer: Option<SocketAddr>, refused: &Refused) {
        let Some(untold) = self.turn(Instant::now()) else { return };
        let peer = peer.map(|peer| peer.to_string());
        let Refused { reason, why, .. } = refused;
        let untold = (untold > 0).then_some(untold);
        tracing::warn!(listener = self.listener, peer, reason, why, untold, "a TLS handshake failed");
    }

    /// How many got no line since the last that did, if this one gets one.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.is_some_and(|at| now.saturating_duration_since(at) < BETWEEN_LINES) {
            last.untold += 1;
            return None;
        }
        last.at = Some(now);
        Some(std::mem::take(&mut last.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_one_a_second_is_told_and_how_many_were_not() {
        let complaints = Complaints::new("proxy_tls");
        let now = Instant::now();
        let turns = [0, 1, 999, 1000, 1001, 5000].map(|ms| complaints.turn(now + Duration::from_millis(ms)));
        assert_eq!(turns, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
