//! The handshake, and the log lines for failed ones.

use super::{Socket, Stream};
use crate::throttle::Throttle;
use rustls::{CertificateError, Error, ServerConfig};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Shortest time between two log lines for the same fault at one listener.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection did not begin with TLS, or did not continue as TLS.
    NotTls,
    /// It did not finish in time.
    Timeout,
    /// The client closed the connection.
    BrokenOff,
    /// The client rejects our certificate or another part of our offer.
    ClientRefuses,
    /// The two sides share no version, cipher or protocol, or the client violated the protocol.
    Protocol,
    /// A certificate is required, and the client has none.
    NoClientCertificate,
    /// The client's certificate has expired or is not valid yet.
    ClientCertificateExpired,
    /// It is not from a known authority.
    ClientCertificateUntrusted,
    /// It contains no guest's name.
    ClientCertificateUnnamed,
    /// It is invalid for another reason.
    ClientCertificate,
}

impl Fault {
    /// All, in the order of their discriminants.
    pub const ALL: [Fault; 10] = [
        Fault::NotTls,
        Fault::Timeout,
        Fault::BrokenOff,
        Fault::ClientRefuses,
        Fault::Protocol,
        Fault::NoClientCertificate,
        Fault::ClientCertificateExpired,
        Fault::ClientCertificateUntrusted,
        Fault::ClientCertificateUnnamed,
        Fault::ClientCertificate,
    ];

    /// Metric label and log value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Fault::NotTls => "not_tls",
            Fault::Timeout => "timeout",
            Fault::BrokenOff => "broken_off",
            Fault::ClientRefuses => "client_refuses",
            Fault::Protocol => "protocol",
            Fault::NoClientCertificate => "no_client_certificate",
            Fault::ClientCertificateExpired => "client_certificate_expired",
            Fault::ClientCertificateUntrusted => "client_certificate_untrusted",
            Fault::ClientCertificateUnnamed => "client_certificate_unnamed",
            Fault::ClientCertificate => "client_certificate",
        }
    }

    fn of(error: &io::Error) -> Fault {
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            // The library's own bound on messages is an untyped error.
            let is_message = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::Other);
            return if is_message { Fault::Protocol } else { Fault::BrokenOff };
        };
        match error {
            Error::NoCertificatesPresented => Fault::NoClientCertificate,
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Fault::ClientCertificateExpired,
                // An authority with the same name has another key.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Fault::ClientCertificateUntrusted,
                CertificateError::ApplicationVerificationFailure => Fault::ClientCertificateUnnamed,
                _ => Fault::ClientCertificate,
            },
            Error::InvalidMessage(_) => Fault::NotTls,
            Error::AlertReceived(_) => Fault::ClientRefuses,
            _ => Fault::Protocol,
        }
    }
}

/// A failed handshake.
#[derive(Debug)]
pub struct FailedHandshake {
    /// The kind of failure.
    pub fault: Fault,
    /// The failure in words.
    pub why: String,
    /// The connection, if an alert is being sent: closing it with unread bytes would reset it, and the alert
    /// would be lost.
    pub stream: Option<TcpStream>,
}

/// Performs the handshake of a connection.
///
/// # Errors
/// [`FailedHandshake`], also when `deadline` is done first. The client was sent the alert.
pub async fn handshake(
    socket: Socket,
    config: Arc<ServerConfig>,
    deadline: impl Future<Output = ()>,
) -> Result<Stream, FailedHandshake> {
    let handshake = async {
        // The library tries only once to write an alert, and the runtime assumes that a connection this new is
        // not writable yet.
        if let Err(error) = socket.tcp().writable().await {
            return Err(FailedHandshake::of(&error));
        }
        let accepting = tokio_rustls::TlsAcceptor::from(config).accept(socket).into_fallible();
        accepting.await.map_err(|(error, socket)| FailedHandshake {
            stream: Some(socket.into_tcp()),
            ..FailedHandshake::of(&error)
        })
    };
    tokio::select! {
        biased;
        done = handshake => done,
        () = deadline => Err(FailedHandshake::timeout()),
    }
}

impl FailedHandshake {
    /// Returns the error for a connection that does not begin with TLS.
    pub fn not_tls() -> FailedHandshake {
        FailedHandshake { fault: Fault::NotTls, why: "it does not begin like TLS".to_owned(), stream: None }
    }

    /// Returns the error for a handshake that did not finish in time.
    pub fn timeout() -> FailedHandshake {
        FailedHandshake { fault: Fault::Timeout, why: "the handshake took too long".to_owned(), stream: None }
    }

    fn of(error: &io::Error) -> FailedHandshake {
        let fault = Fault::of(error);
        let why = match fault {
            Fault::ClientCertificateUnnamed => "no guest's name is in the client's certificate".to_owned(),
            _ => error.to_string(),
        };
        FailedHandshake { fault, why, stream: None }
    }
}

/// Logs the failed handshakes of a listener: one line each, but in a flood only one per second and fault.
#[derive(Debug)]
pub struct Complaints {
    listener: &'static str,
    lines: [Throttle; Fault::ALL.len()],
}

impl Complaints {
    /// Creates it for the listener of this name.
    pub fn new(listener: &'static str) -> Complaints {
        Complaints { listener, lines: Fault::ALL.map(|_| Throttle::new(BETWEEN_LINES)) }
    }

    /// Returns the listener's name.
    pub fn listener(&self) -> &'static str {
        self.listener
    }

    /// Logs that a handshake with `peer` failed.
    pub fn tell(&self, peer: Option<SocketAddr>, refused: &FailedHandshake) {
        let FailedHandshake { fault, why, .. } = refused;
        let Some(untold) = self.lines.get(*fault as usize).and_then(Throttle::turn) else { return };
        let peer = peer.map(|peer| peer.to_string());
        let reason = fault.as_str();
        let untold = (untold > 0).then_some(untold);
        tracing::warn!(listener = self.listener, peer, reason, why, untold, "a TLS handshake failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_own_line() {
        let complaints = Complaints::new("proxy_tls");
        let turn = |fault: Fault| complaints.lines.get(fault as usize).unwrap().turn();
        let turns = [Fault::Timeout, Fault::Timeout, Fault::NotTls].map(turn);
        assert_eq!(turns, [Some(0), None, Some(0)]);
        assert!(Fault::ALL.iter().enumerate().all(|(index, fault)| *fault as usize == index));
    }
}
