//! Guests that are registered while the daemon runs: their identities, and what their manifests permit. They are
//! kept in a folder beside the control socket, and therefore only until the machine restarts. `policy` and the
//! daemon decide what follows from them, and when.

mod application;
mod registered_file;

pub use application::{Application, Taken};
pub use registered_file::{KeepError, folder};

use crate::config::{Settings, identity};
use crate::cooperate;
use crate::firewall::Pin;
use crate::golem::destination::destination;
use crate::golem::manifest::Access;
use crate::golem::negotiation::Rule;
use crate::golem::rules::Outbound;
use crate::policy::{Agreement, GuestSettings, Mode};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of guests at a time.
pub const MAX_GUESTS: usize = 4096;
/// Maximum number of URLs that all of their manifests name together.
pub const MAX_URLS: usize = 65_536;

/// A guest that was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its name, unique among all guests.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// The interface that its packets, and no other guest's, come from.
    pub interface: Option<String>,
    /// When it was registered.
    pub since: Timestamp,
    /// What its manifest permits; `None` if it has none.
    pub manifest: Option<Agreed>,
}

/// The agreement between a provider and a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// What the job asked for: scheme, host and port of each URL, each once.
    pub access: Access,
    /// The provider's rule that accepted it; `None` if the daemon applied no provider's rules.
    pub rule: Option<Rule>,
}

impl Agreed {
    /// Returns the agreement for what a manifest asks for, without the parts of a URL that have no effect.
    pub fn on(access: Access, rule: Option<Rule>) -> Agreed {
        let Access::Urls(mut urls) = access else { return Agreed { access, rule } };
        let mut seen = HashSet::new();
        for url in &mut urls {
            url.set_fragment(None);
            url.set_query(None);
            if !url.cannot_be_a_base() {
                url.set_path("");
                // Fails only for schemes without a host.
                let _ = url.set_username("").and_then(|()| url.set_password(None));
            }
        }
        urls.retain(|url| seen.insert(url.clone()));
        Agreed { access: Access::Urls(urls), rule }
    }

    /// Returns the mode that the accepting rule grants under these settings and the provider's current rules.
    pub fn mode(&self, settings: &Settings, rules: Option<&Outbound>) -> Mode {
        let default = Outbound::default();
        let rules = rules.unwrap_or(&default);
        match (&self.access, &self.rule) {
            (Access::None, _) => Mode::None,
            // The provider's rules no longer apply, so nothing defines what this rule grants.
            (_, Some(_)) if settings.golem.is_none() => Mode::None,
            (_, Some(rule)) => settings.mode_of(rule.mode(rules)),
            (_, None) => settings.mode_of(rules.without_manifest()),
        }
    }

    fn agreement(&self) -> Option<Arc<Agreement>> {
        match &self.access {
            Access::Urls(urls) => Some(Arc::new(Agreement::on(urls.iter().filter_map(|url| destination(url).ok())))),
            Access::None | Access::Unrestricted => None,
        }
    }

    fn urls(&self) -> usize {
        match &self.access {
            Access::Urls(urls) => urls.len(),
            Access::None | Access::Unrestricted => 0,
        }
    }
}

impl Registered {
    /// Returns why it cannot be a guest beside one with this name and these addresses, if so.
    fn clash(&self, other: &str, others: &[IpNet]) -> Option<String> {
        let Registered { name, addresses, .. } = self;
        if other == *name {
            return Some(format!("a guest {name} exists already"));
        }
        let shared = addresses.iter().find(|net| others.iter().any(|o| o.contains(*net) || net.contains(o)));
        shared.map(|net| {
            format!(
                "{net} of {name} is already an address of {other}; an address belongs to one guest \
                                  alone"
            )
        })
    }

    fn pin(&self) -> Option<Pin> {
        let interface = self.interface.clone()?;
        Some(Pin { guest: self.name.clone(), interface, addresses: self.addresses.clone() })
    }
}

/// A registered guest, with its manifest in the form that the policy uses.
#[derive(Debug)]
struct Held {
    guest: Registered,
    agreement: Option<Arc<Agreement>>,
}

impl Held {
    fn new(guest: Registered) -> Held {
        let agreement = guest.manifest.as_ref().and_then(Agreed::agreement);
        Held { guest, agreement }
    }

    /// Returns what the policy needs of it.
    fn settings(&self, settings: &Settings, rules: Option<&Outbound>) -> GuestSettings {
        GuestSettings {
            name: self.guest.name.clone(),
            addresses: self.guest.addresses.clone(),
            mode: self.guest.manifest.as_ref().map(|agreed| agreed.mode(settings, rules)),
            files: None,
            agreed: self.agreement.clone(),
        }
    }
}

/// The registered guests. No two share a name or an address.
#[derive(Debug, Default)]
pub struct Registry {
    /// The folder that keeps them.
    folder: Option<PathBuf>,
    guests: Vec<Held>,
}

impl Registry {
    /// Reads the guests that the last daemon with this control socket kept since the machine started. They are
    /// checked as if they were new: the daemon owns the file, and root also relies on it.
    ///
    /// # Errors
    /// If they cannot be read; it is then unknown whether there were any.
    pub fn restore(control: Option<&Path>) -> Result<Registry, KeepError> {
        let mut registry = Registry::empty(control);
        let Some(folder) = registry.folder.clone() else { return Ok(registry) };
        for guest in registered_file::restore(&folder)? {
            cooperate::step();
            let addresses: Vec<String> = guest.addresses.iter().map(ToString::to_string).collect();
            let sound = identity(&guest.name, &addresses, guest.interface.as_deref()).map_err(|wrong| wrong.join("; "));
            sound.and_then(|_| registry.take(guest)).map_err(|why| registered_file::unsound(&folder, why))?;
        }
        Ok(registry)
    }

    /// Returns an empty registry, to be kept beside this control socket.
    pub fn empty(control: Option<&Path>) -> Registry {
        Registry { folder: control.map(folder), guests: Vec::new() }
    }

    /// Returns the guests in order of registration.
    pub fn iter(&self) -> impl Iterator<Item = &Registered> {
        self.guests.iter().map(|held| &held.guest)
    }

    /// Returns the guest of this name.
    pub fn get(&self, name: &str) -> Option<&Registered> {
        self.iter().find(|guest| guest.name == name)
    }

    /// Returns the settings with these guests added to those of the configuration.
    ///
    /// # Errors
    /// The first clash with a guest of the configuration, and what to do.
    pub fn over(&self, settings: &Settings, rules: Option<&Outbound>) -> Result<Settings, String> {
        let mut all = settings.clone();
        for held in &self.guests {
            cooperate::step();
            if let Some(clash) = clash_with(settings, &held.guest) {
                let name = &held.guest.name;
                return Err(format!(
                    "{clash}; {name} was registered at run time, and `outgate guest remove {name}` ends that"
                ));
            }
            all.firewall.pins.extend(held.guest.pin());
            all.policy.guests.push(held.settings(settings, rules));
        }
        Ok(all)
    }

    /// Removes the guests that clash with the configuration, which has precedence. Returns the clashes.
    pub fn yield_to(&mut self, settings: &Settings) -> Vec<String> {
        let mut clashes = Vec::new();
        self.guests.retain(|held| {
            let clash = clash_with(settings, &held.guest);
            let stays = clash.is_none();
            clashes.extend(clash);
            stays
        });
        clashes
    }

    /// Registers one more guest. Changes nothing on an error.
    ///
    /// # Errors
    /// If it clashes with the existing guests, or cannot be kept.
    pub fn add(&mut self, guest: Registered, settings: &Settings) -> Result<(), String> {
        if let Some(clash) = clash_with(settings, &guest) {
            return Err(clash);
        }
        self.take(guest)?;
        self.keep().inspect_err(|_| drop(self.guests.pop()))
    }

    fn take(&mut self, guest: Registered) -> Result<(), String> {
        if let Some(clash) = self.iter().find_map(|other| guest.clash(&other.name, &other.addresses)) {
            return Err(clash);
        }
        if self.guests.len() >= MAX_GUESTS {
            return Err(format!("{MAX_GUESTS} guests are registered, which is the maximum"));
        }
        let urls = |guest: &Registered| guest.manifest.as_ref().map_or(0, Agreed::urls);
        if self.iter().map(urls).sum::<usize>() + urls(&guest) > MAX_URLS {
            return Err(format!("the manifests of all guests name {MAX_URLS} URLs, which is the maximum"));
        }
        self.guests.push(Held::new(guest));
        Ok(())
    }

    /// Ends the registration. Changes nothing on an error.
    ///
    /// # Errors
    /// If there is no guest of this name, or the remaining ones cannot be kept.
    pub fn remove(&mut self, name: &str) -> Result<Registered, String> {
        let Some(at) = self.iter().position(|guest| guest.name == name) else {
            return Err(format!("no guest {name:?} was registered at run time"));
        };
        let gone = self.guests.remove(at);
        match self.keep() {
            Ok(()) => Ok(gone.guest),
            Err(why) => {
                self.guests.insert(at, gone);
                Err(why)
            }
        }
    }

    /// Writes the current guests to disk, in place of all earlier ones.
    ///
    /// # Errors
    /// If they cannot be written, or could not be read again.
    pub fn keep(&self) -> Result<(), String> {
        let folder = self.folder.as_deref().ok_or("without a control socket no guests can be kept")?;
        let guests: Vec<&Registered> = self.iter().collect();
        registered_file::save(folder, &guests)
            .map_err(|error| format!("{}: the guests cannot be kept: {error}", folder.display()))
    }
}

/// Returns why a guest clashes with those of the configuration, if so.
fn clash_with(settings: &Settings, guest: &Registered) -> Option<String> {
    settings.policy.guests.iter().find_map(|other| guest.clash(&other.name, &other.addresses))
}

#[cfg(test)]
mod tests;
