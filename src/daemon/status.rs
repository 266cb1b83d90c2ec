//! What the daemon says of its own state: on `/readyz` and the status page, to `outgate status`, and in `systemctl
//! status`.

use super::relief::Relief;
use super::troubles::Troubles;
use crate::account::Sums;
use crate::services::Services;
use crate::trouble::Trouble;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Knows the daemon's state.
#[derive(Clone)]
pub(super) struct Status {
    services: Arc<Services>,
    troubles: Troubles,
    relief: Relief,
}

impl Status {
    pub(super) fn new(services: &Arc<Services>, troubles: Troubles, relief: Relief) -> Status {
        Status { services: Arc::clone(services), troubles, relief }
    }

    /// Returns why the daemon is not ready: nothing if it is.
    pub(super) fn not_ready(&self) -> Vec<String> {
        self.by_readiness().0
    }

    /// Returns what `systemctl status` shows.
    pub(super) fn line(&self) -> String {
        let open = self.services.gate.total();
        let (not_ready, others) = self.by_readiness();
        if !not_ready.is_empty() {
            return format!("Not ready: {}; {open} connections open", not_ready.join("; "));
        }
        let but = others.into_iter().next().or_else(|| self.relief.overload()).or_else(|| self.troubles.outdated());
        let but = but.map(|but| format!(", but {but}")).unwrap_or_default();
        format!("Ready{but}; {open} connections open")
    }

    /// Returns what `outgate status` shows besides the account's totals. `configuration` are the files in force.
    pub(super) fn shown(&self, configuration: &[PathBuf]) -> Value {
        let mut shown = self.troubles.shown();
        let all = texts(&self.troubles.now()).into_iter().chain(self.relief.overload()).chain(self.troubles.outdated());
        let all: Vec<String> = all.collect();
        let trouble = (!all.is_empty()).then(|| all.join("; "));
        if let Some(shown) = shown.as_object_mut() {
            let Sums { list, configuration: sum } = self.services.account.metrics().sums();
            shown.insert("configuration".to_owned(), json!(configuration));
            shown.insert("config_sha256".to_owned(), json!(sum));
            shown.insert("list_sha256".to_owned(), json!(list));
            shown.insert("open_connections".to_owned(), self.services.gate.total().into());
            shown.insert("trouble".to_owned(), trouble.into());
        }
        shown
    }

    /// Returns what makes the daemon not ready, and the other troubles.
    fn by_readiness(&self) -> (Vec<String>, Vec<String>) {
        let (unready, others): (Vec<_>, Vec<_>) =
            self.troubles.now().into_iter().partition(|trouble| trouble.cause.makes_unready());
        (texts(&unready).into_iter().chain(self.relief.not_ready()).collect(), texts(&others))
    }
}

/// Returns the sentences of the troubles, without one that is the same as the sentence before it.
fn texts(troubles: &[Trouble]) -> Vec<String> {
    let mut texts: Vec<String> = troubles.iter().map(|trouble| trouble.text.clone()).collect();
    texts.dedup();
    texts
}
