//! Guests that are added and removed while the daemon runs, on the reload thread. Each change builds a new
//! policy, whose cost grows with the number of guests, not of rules. Each is saved before it takes effect.

use super::inbox::NotQueued;
use super::{Ask, ReloadWorker, Reloader, free};
use crate::config::is_probe;
use crate::firewall::Pin;
use crate::golem::manifest::Access;
use crate::lock::lock;
use crate::policy::GuestSettings;
use crate::reason::Reason;
use crate::registered_guests::{Application, Registered, Taken};
use crate::services::Snapshot;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::oneshot;

/// URLs of a manifest that are shown at most.
const SHOWN_URLS: usize = 20;

/// The result of a change of guests, or all reasons against it.
type Change = Result<Value, Vec<String>>;

impl Reloader {
    /// Registers a guest.
    pub(in crate::daemon) async fn register(&self, application: Box<Application>) -> Change {
        let (reply, answer) = oneshot::channel();
        self.change(Ask::Register(application, reply), answer).await
    }

    /// Ends the registration of the guest with this name, and its flows.
    pub(in crate::daemon) async fn remove(&self, name: String) -> Change {
        let (reply, answer) = oneshot::channel();
        self.change(Ask::Remove(name, reply), answer).await
    }

    async fn change(&self, ask: Ask, answer: oneshot::Receiver<Change>) -> Change {
        self.ask.ask(ask).map_err(|refused| vec![refused.to_string()])?;
        answer.await.unwrap_or_else(|_| Err(vec![NotQueued::Gone.to_string()]))
    }

    /// Returns all guests: the configured and the registered ones.
    pub(in crate::daemon) fn guests(&self) -> Arc<Value> {
        Arc::clone(&lock(&self.state).guests)
    }
}

impl ReloadWorker {
    pub(super) fn register(&mut self, application: &Application) -> Change {
        let Taken { guest, warnings } = application.decide_on(&self.settings, Timestamp::now())?;
        if let Some(there) = self.registry.get(&guest.name)
            && *there == (Registered { since: there.since, ..guest.clone() })
        {
            return Ok(json!({ "guest": self.shown(there), "changed": false, "warnings": warnings }));
        }
        let name = guest.name.clone();
        self.registry.add(guest, &self.settings).map_err(|why| vec![why])?;
        if let Err(why) = self.put_guests(None) {
            // The old policy stays in force, so the saved registrations must match it.
            self.registry.remove(&name).map_err(|undo| vec![why.clone(), undo])?;
            return Err(vec![why]);
        }
        let guest = self.registry.get(&name).map_or(Value::Null, |guest| self.shown(guest));
        if !is_probe(&name) {
            tracing::info!(name, %guest, "a guest was registered");
        }
        Ok(json!({ "guest": guest, "changed": true, "warnings": warnings }))
    }

    pub(super) fn end_registration(&mut self, name: &str) -> Change {
        let gone = self.registry.remove(name).map_err(|why| vec![why])?;
        let pinned = gone.interface.is_some();
        let revoked = match self.put_guests(Some(name)) {
            Ok(revoked) => revoked,
            Err(why) => {
                // It stays a guest, so that another try finds it.
                let back = self.registry.add(gone, &self.settings);
                return Err([Some(why), back.err()].into_iter().flatten().collect());
            }
        };
        if !is_probe(name) {
            tracing::info!(name, revoked, "a guest's registration ended");
        }
        Ok(json!({ "name": name, "revoked": revoked, "pinned": pinned }))
    }

    /// Puts the policy of the current guests in force, and ends the flows that it refuses and all flows of the
    /// guest that is gone. Returns their number.
    fn put_guests(&mut self, gone: Option<&str>) -> Result<usize, String> {
        let all = self.registry.over(&self.settings, self.lists.outbound())?;
        let policy = self.lists.policy(&all).map_err(|error| error.to_string())?;
        self.services.resolver.set_floor(self.floor(&all));
        let old = self.services.snapshot.swap(Arc::new(Snapshot::new(policy, &all)));
        let ended = gone.map_or(0, |gone| {
            let ended = self.services.account.live().revoke_where(|claim, _| {
                (old.policy.guest(&claim.source).name == Some(gone)).then_some((Reason::Revoked, None))
            });
            self.services.account.metrics().flows_revoked(ended);
            ended
        });
        let revoked = self.revoke();
        self.show_guests();
        free(old, None);
        Ok(ended + revoked)
    }

    /// Updates the list of guests that the control socket shows.
    pub(super) fn show_guests(&self) {
        let pins = &self.settings.firewall.pins;
        let configured = self.settings.policy.guests.iter().map(|guest| configured(guest, pins));
        let registered = self.registry.iter().filter(|guest| !is_probe(&guest.name));
        let guests: Vec<Value> = configured.chain(registered.map(|guest| self.shown(guest))).collect();
        lock(&self.state).guests = Arc::new(json!({ "guests": guests }));
    }

    fn shown(&self, guest: &Registered) -> Value {
        let Registered { name, addresses, interface, since, manifest } = guest;
        let mut shown = json!({
            "name": name, "addresses": addresses, "interface": interface, "registered": since,
        });
        if let (Some(agreed), Value::Object(fields)) = (manifest, &mut shown) {
            let mode = agreed.mode(&self.settings, self.lists.outbound());
            let rule = agreed.rule.as_ref().map(|rule| rule.as_str());
            fields.extend([
                ("manifest".to_owned(), shown_access(&agreed.access)),
                ("rule".to_owned(), json!(rule)),
                ("mode".to_owned(), json!(mode.as_str())),
            ]);
        }
        shown
    }
}

/// Returns what a manifest asks for. Of many URLs only the first are shown, because every reader of the list
/// gets all guests.
fn shown_access(access: &Access) -> Value {
    match access {
        Access::None => json!("none"),
        Access::Unrestricted => json!("unrestricted"),
        Access::Urls(urls) => json!({ "urls": urls.iter().take(SHOWN_URLS).collect::<Vec<_>>(), "count": urls.len() }),
    }
}

fn configured(guest: &GuestSettings, pins: &[Pin]) -> Value {
    let GuestSettings { name, addresses, mode, files, .. } = guest;
    let mode = mode.map(|mode| mode.as_str());
    let interface = pins.iter().find(|pin| pin.guest == *name).map(|pin| &pin.interface);
    json!({
        "name": name, "addresses": addresses, "interface": interface, "mode": mode, "whitelist": files,
        "registered": null,
    })
}
