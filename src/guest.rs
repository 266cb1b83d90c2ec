//! A guest, identified once: when its connection is accepted, or when its certificate is known.

use crate::config::is_probe;
use crate::limits::Usage;
use crate::source::Source;
use prometheus::IntCounter;
use std::sync::Arc;

/// A guest as its connections and queries carry it from stage to stage.
#[derive(Clone, Debug)]
pub struct Guest {
    /// What the policy knows it by.
    pub source: Source,
    /// What it has in use of its limits.
    pub usage: Arc<Usage>,
    /// Its name in log and metrics, and its counters.
    pub counters: Arc<GuestCounters>,
}

/// A declared guest, or all undeclared ones together, with its counters.
#[derive(Debug)]
pub struct GuestCounters {
    /// Its declared name, or else the name in its certificate.
    pub name: Option<Arc<str>>,
    /// Flows that ended; indexed by [`Verdict`](crate::reason::Verdict).
    pub connections: [IntCounter; 4],
    /// Bytes from the guest and to the guest.
    pub bytes: [IntCounter; 2],
    /// Whether it is a probe of outgate's own, of which nothing is counted or logged.
    pub is_probe: bool,
}

impl Guest {
    /// Its declared name, or else the name in its certificate.
    pub fn name(&self) -> Option<&str> {
        self.counters.name.as_deref()
    }
}

impl GuestCounters {
    /// Returns the same counters under another name.
    pub fn renamed(&self, name: &str) -> GuestCounters {
        GuestCounters {
            name: Some(name.into()),
            connections: self.connections.clone(),
            bytes: self.bytes.clone(),
            is_probe: is_probe(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl GuestCounters {
        /// Counters that no metrics show.
        pub(crate) fn for_tests(name: Option<&str>) -> GuestCounters {
            let counter = || IntCounter::new("test", "test").unwrap();
            GuestCounters {
                name: name.map(Into::into),
                connections: std::array::from_fn(|_| counter()),
                bytes: std::array::from_fn(|_| counter()),
                is_probe: name.is_some_and(is_probe),
            }
        }
    }
}
