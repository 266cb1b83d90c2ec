//! Watches whether the firewall is in place, as far as a process without privileges can tell: for the
//! metric, for `/readyz`, for `outgate status`, and loudly in the log when it goes.

use crate::firewall;
use crate::flow::House;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks; each is two datagrams to loopback.
const INTERVAL: Duration = Duration::from_secs(2);

/// Knows whether there should be a firewall.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    wanted: bool,
}

impl Guard {
    pub(super) fn new(wanted: bool) -> Guard {
        Guard { wanted }
    }

    /// Why guests may not be held by the firewall that the configuration asks for, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        let missing = self.wanted && firewall::in_place() == Some(false);
        missing.then(|| "the firewall is not in place; run `outgate firewall apply`".to_owned())
    }

    /// Keeps the metric true and says what changes. Never returns.
    pub(super) async fn watch(self, house: Arc<House>) {
        let mut before = None;
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            let now = firewall::in_place();
            house.account.metrics().set_firewall_in_place(now == Some(true));
            if self.wanted && now != before {
                match now {
                    Some(true) => tracing::info!("the firewall is in place"),
                    Some(false) => tracing::error!("the firewall is not in place; run `outgate firewall apply`"),
                    None => tracing::warn!("it cannot be told whether the firewall is in place"),
                }
            }
            before = now;
        }
    }
}
