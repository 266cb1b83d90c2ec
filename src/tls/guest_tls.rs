//! The TLS state of the `proxy_tls` listener.

use super::{Complaints, CurrentTls};
use rustls::ServerConfig;
use std::sync::Arc;

/// The settings for guests' handshakes, and the log of those that fail.
pub struct GuestTls {
    current: CurrentTls,
    complaints: Complaints,
}

impl GuestTls {
    /// Uses the settings that are in `current` at each handshake.
    pub fn new(current: CurrentTls) -> GuestTls {
        GuestTls { current, complaints: Complaints::new("proxy_tls") }
    }

    /// Can a certificate identify a guest?
    pub fn names_guests(&self) -> bool {
        self.current.load().names_guests
    }

    /// The settings for the next handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().guests)
    }

    /// The log of handshakes that fail.
    pub fn complaints(&self) -> &Complaints {
        &self.complaints
    }
}
