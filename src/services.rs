//! What every connection and query needs, whatever carries it: the policy in force, limits, resolver, records.

use crate::accept::Reserve;
use crate::account::{Account, Limit};
use crate::bindings::Bindings;
use crate::config::Settings;
use crate::dial::DialSettings;
use crate::firewall::{EnforcedLimits, Seal};
use crate::guest::Guest;
use crate::limits::{Gate, NamePace, Slot};
use crate::policy::Policy;
use crate::reason::{Reason, Why};
use crate::relay::IdleUpstreams;
use crate::resolve::Resolver;
use crate::tls::GuestTls;
use arc_swap::ArcSwap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What every connection and query needs; one for the daemon.
pub struct Services {
    /// The policy in force and the settings that change with a reload.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Limits and what each guest has in use.
    pub gate: Arc<Gate>,
    /// Resets a connection when no file descriptor is left for it.
    pub reserve: Reserve,
    /// The TLS state of `proxy_tls`, if there is such a listener.
    pub guest_tls: Option<GuestTls>,
    /// Resolves names to addresses.
    pub resolver: Arc<Resolver>,
    /// The names behind the addresses that outgate's DNS gave to guests.
    pub bindings: Arc<Bindings>,
    /// Idle connections to upstreams, between requests.
    pub idle_upstreams: Arc<IdleUpstreams>,
    /// Opens the records.
    pub account: Arc<Account>,
    /// Cancelled when the daemon stops: kept connections then end after the current request.
    pub stop: CancellationToken,
}

/// What one decision uses; a reload replaces it as a whole.
pub struct Snapshot {
    /// The rules and modes.
    pub policy: Arc<Policy>,
    /// How to connect.
    pub dial: DialSettings,
    /// The firewall that the configuration asks for, if any.
    pub seal: Option<Seal>,
    /// The parts of the limits that its rules enforce.
    pub enforced_limits: Option<EnforcedLimits>,
}

impl Snapshot {
    /// The snapshot for this policy and these settings.
    pub fn new(policy: Arc<Policy>, settings: &Settings) -> Snapshot {
        Snapshot { policy, dial: settings.dial, seal: settings.seal(), enforced_limits: settings.enforced_limits() }
    }
}

impl Services {
    /// Identifies the guest at `address`; `certified` is the name in its verified certificate, if it showed one.
    pub fn guest_at(&self, address: IpAddr, certified: Option<Arc<str>>) -> Guest {
        let snapshot = self.snapshot.load();
        let source = snapshot.policy.source_at(address, certified);
        let name = snapshot.policy.guest(&source).name;
        let usage = self.gate.usage(name, address, Instant::now());
        let counters = self.account.counters(name);
        Guest { source, usage, counters }
    }

    /// Identifies the guest again if another policy has come into force since: the same address may have become
    /// another guest.
    pub fn refresh(&self, guest: &mut Guest) {
        if !self.snapshot.load().policy.has_identified(&guest.source) {
            *guest = self.guest_at(guest.source.address, guest.source.certified.clone());
        }
    }

    /// Returns the check that keeps the lookups of one flow or query within its guest's budget.
    pub fn may_look_up(&self, guest: &Guest) -> impl FnMut(bool) -> NamePace + Send + use<> {
        let mut names = self.gate.names(&guest.usage);
        let account = Arc::clone(&self.account);
        let mut waited = false;
        move |is_new| {
            let pace = names.ask(is_new, Instant::now());
            if matches!(pace, NamePace::After(_)) && !std::mem::replace(&mut waited, true) {
                account.metrics().paced(Limit::NewNames);
            }
            pace
        }
    }

    /// Delays a connection over its guest's rate until its turn.
    pub async fn wait_for_turn(&self, slot: &Slot) {
        if let Some(turn) = slot.turn() {
            self.account.metrics().paced(Limit::NewConnections);
            tokio::time::sleep_until(turn).await;
        }
    }

    /// Counts a connection that got no slot under the limit that it exceeded. Returns the reason with that as its
    /// cause.
    pub fn note_over_limit(&self, reason: Reason) -> Why {
        let limit = match reason {
            Reason::LimitConnections => Limit::Connections,
            Reason::LimitRate => Limit::NewConnections,
            _ => Limit::Total,
        };
        self.account.metrics().over(limit);
        limit.why(reason)
    }

    /// Drops the bindings of names that their guest may not look up any more, and of guests that are gone. Call
    /// this after a new policy is in force; it takes a microsecond per binding.
    pub fn drop_bindings(&self) {
        self.bindings.revise();
        self.drop_late_bindings();
    }

    /// Drops those that were added while [`drop_bindings`](Self::drop_bindings) ran.
    pub fn drop_late_bindings(&self) {
        let policy = Arc::clone(&self.snapshot.load().policy);
        self.bindings.retain(|address, guest, name| {
            let source = policy.source_at(address, None);
            policy.guest(&source).name == guest && policy.permit_name(&source, name).is_ok()
        });
    }
}
