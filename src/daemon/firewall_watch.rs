//! Checks whether the firewall is in place, as far as an unprivileged process can determine it.

use crate::firewall::{self, Presence};
use crate::services::Services;
use std::sync::Arc;

/// Compares the firewall with the one that the configuration in force asks for.
#[derive(Clone)]
pub(super) struct FirewallWatch(Arc<Services>);

impl FirewallWatch {
    pub(super) fn new(services: &Arc<Services>) -> FirewallWatch {
        FirewallWatch(Arc::clone(services))
    }

    /// Returns how much of the configured firewall is seen; `None` if none is configured.
    fn seen(&self) -> Option<Presence> {
        let seal = self.0.snapshot.load().seal;
        seal.map(firewall::presence)
    }

    /// Returns why the configured firewall may not confine guests, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        if !self.is_configured() {
            return firewall::is_any_there().then(|| UNASKED.to_owned());
        }
        self.seen().and_then(complaint).map(str::to_owned)
    }

    /// Returns which limits in the current ruleset are outdated, if any. The ruleset confines guests all the same.
    pub(super) fn outdated(&self) -> Option<String> {
        let enforced_limits = self.0.snapshot.load().enforced_limits;
        enforced_limits.filter(|_| self.seen() == Some(Presence::InPlace))?.complaint()
    }

    /// Whether the configuration in force asks for a firewall.
    pub(super) fn is_configured(&self) -> bool {
        self.0.snapshot.load().seal.is_some()
    }

    /// Updates its metrics.
    pub(super) fn count(&self) {
        let metrics = self.0.account.metrics();
        metrics.set_firewall_in_place(self.seen() == Some(Presence::InPlace));
        metrics.set_firewall_configured(self.is_configured());
    }
}

/// The complaint about a ruleset that is in place although the configuration asks for none.
const UNASKED: &str = "a firewall is in place, but the configuration has none: set [firewall].guest_interfaces again, \
                       or run `outgate firewall remove`, which opens the guests";

/// Returns what is wrong, and what to do.
fn complaint(seen: Presence) -> Option<&'static str> {
    match seen {
        Presence::InPlace => None,
        Presence::Outdated => Some(
            "the firewall in place was made from another configuration; run `outgate firewall apply`, and restart outgate if [listen] changed",
        ),
        Presence::Missing => Some("the firewall is not in place; run `outgate firewall apply`"),
        Presence::Unknown => Some(
            "it is not known whether the firewall is in place: datagrams to 127.78.0.0/15 must not be filtered by \
             others",
        ),
    }
}
