//! Listeners and per-guest limits: a connection comes in, an `Accepted` goes on.

use std::time::Duration;

/// `[limits]` of the configuration; per guest unless it says otherwise. `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// Connections open at once.
    pub connections: Option<u32>,
    /// New connections a second.
    pub new_connections_per_second: Option<u32>,
    /// Plain-HTTP requests a second.
    pub requests_per_second: Option<u32>,
    /// DNS queries a second.
    pub dns_queries_per_second: Option<u32>,
    /// From accept to decision.
    pub handshake_timeout: Option<Duration>,
    /// A flow on which nothing moved for this long is closed.
    pub idle_timeout: Option<Duration>,
    /// Connections open at once in the whole daemon; no guest gets more than a quarter.
    pub total_connections: Option<u32>,
}
