//! Vetted addresses in, one connection out: Happy Eyeballs (RFC 8305) over the vetted set only.

use std::time::Duration;

/// `[dial]` of the configuration, as far as connecting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialSettings {
    /// Bound on the whole attempt, over all addresses.
    pub connect_timeout: Duration,
}
