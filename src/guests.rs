//! Guests that are registered while the daemon runs: who they are, and what their manifests hold them to.
//! They are kept in a folder beside the control socket, so for as long as the machine is up. What the
//! policy makes of them, and when, is for `policy` and the daemon.

mod apply;
mod keep;

pub use apply::{Application, Taken};
pub use keep::{KeepError, folder};

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

/// Guests at a time at most.
pub const MAX_GUESTS: usize = 4096;
/// URLs that the manifests of all of them name at most.
pub const MAX_URLS: usize = 65_536;

/// A guest that was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its name, unique among all guests.
    pub name: String,
    /// The addresses that are this guest.
    pub addresses: Vec<IpNet>,
    /// The interface by which its packets come, and no others'.
    pub interface: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// What its manifest holds it to; `None` where it has none.
    pub manifest: Option<Agreed>,
}

/// What a provider and a job agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// What the job asked for: of URLs scheme, host and port, each once.
    pub access: Access,
    /// The provider's rule that took it; `None` where the daemon went by no provider's rules.
    pub rule: Option<Rule>,
}

impl Agreed {
    /// What a manifest asks for, without what counts for nothing.
    pub fn on(access: Access, rule: Option<Rule>) -> Agreed {
        let Access::Urls(mut urls) = access else { return Agreed { access, rule } };
        let mut seen = HashSet::new();
        for url in &mut urls {
            url.set_fragment(None);
            url.set_query(None);
            if !url.cannot_be_a_base() {
                url.set_path("");
                // Refused for schemes without a host alone.
                let _ = url.set_username("").and_then(|()| url.set_password(None));
            }
        }
        urls.retain(|url| seen.insert(url.clone()));
        Agreed { access: Access::Urls(urls), rule }
    }

    /// What the accepting rule grants under these settings and the provider's rules as they are now.
    pub fn mode(&self, settings: &Settings, rules: Option<&Outbound>) -> Mode {
        let default = Outbound::default();
        let rules = rules.unwrap_or(&default);
        match (&self.access, &self.rule) {
            (Access::None, _) => Mode::None,
            // The provider's rules are not asked any more, so nobody says what this one grants.
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
    /// Why it cannot be a guest beside one with this name and these addresses, if so.
    fn clash(&self, other: &str, others: &[IpNet]) -> Option<String> {
        let Registered { name, addresses, .. } = self;
        if other == *name {
            return Some(format!("there is a guest {name} already"));
        }
        let shared = addresses.iter().find(|net| others.iter().any(|o| o.contains(*net) || net.contains(o)));
        shared.map(|net| format!("{net} of {name} is already an address of {other}; an address is one guest's"))
    }

    fn pin(&self) -> Option<Pin> {
        let interface = self.interface.clone()?;
        Some(Pin { guest: self.name.clone(), interface, addresses: self.addresses.clone() })
    }
}

/// One of those that are registered, with what its manifest comes to for the policy.
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

    /// What the policy needs of it.
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

/// The guests that are registered now. No two share a name or an address.
#[derive(Debug, Default)]
pub struct Registry {
    /// Where they are kept.
    folder: Option<PathBuf>,
    guests: Vec<Held>,
}

impl Registry {
    /// Those that were kept by the last daemon with this control socket since the machine came up. They are
    /// checked as if they were new: the file is the daemon's, and root goes by it as well.
    ///
    /// # Errors
    /// Where they cannot be read; whether there were any is not known then.
    pub fn restore(control: Option<&Path>) -> Result<Registry, KeepError> {
        let mut registry = Registry::empty(control);
        let Some(folder) = registry.folder.clone() else { return Ok(registry) };
        for guest in keep::restore(&folder)? {
            cooperate::step();
            let addresses: Vec<String> = guest.addresses.iter().map(ToString::to_string).collect();
            let sound = identity(&guest.name, &addresses, guest.interface.as_deref()).map_err(|wrong| wrong.join("; "));
            sound.and_then(|_| registry.take(guest)).map_err(|why| keep::unsound(&folder, why))?;
        }
        Ok(registry)
    }

    /// None, to be kept beside this control socket.
    pub fn empty(control: Option<&Path>) -> Registry {
        Registry { folder: control.map(folder), guests: Vec::new() }
    }

    /// In the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Registered> {
        self.guests.iter().map(|held| &held.guest)
    }

    /// The guest of this name.
    pub fn get(&self, name: &str) -> Option<&Registered> {
        self.iter().find(|guest| guest.name == name)
    }

    /// The settings with these guests among those of the configuration.
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

    /// Lets those go that do not go with the configuration: what stands in a file comes first. The clashes.
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

    /// Registers one more. Nothing is changed on an error.
    ///
    /// # Errors
    /// Where it does not go with those that there are, or cannot be kept.
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
            return Err(format!("{MAX_GUESTS} guests are registered, and there is room for no more"));
        }
        let urls = |guest: &Registered| guest.manifest.as_ref().map_or(0, Agreed::urls);
        if self.iter().map(urls).sum::<usize>() + urls(&guest) > MAX_URLS {
            return Err(format!("the manifests of all guests name {MAX_URLS} URLs, and there is room for no more"));
        }
        self.guests.push(Held::new(guest));
        Ok(())
    }

    /// Ends the registration. Nothing is changed on an error.
    ///
    /// # Errors
    /// Where there is none of this name, or what is left cannot be kept.
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

    /// Keeps those that there are, and no others.
    ///
    /// # Errors
    /// Where they cannot be written, or could not be read again.
    pub fn keep(&self) -> Result<(), String> {
        let folder = self.folder.as_deref().ok_or("without a control socket nothing can be kept")?;
        let guests: Vec<&Registered> = self.iter().collect();
        keep::save(folder, &guests).map_err(|error| format!("{}: the guests cannot be kept: {error}", folder.display()))
    }
}

/// Why a guest does not go with those of the configuration, if so.
fn clash_with(settings: &Settings, guest: &Registered) -> Option<String> {
    settings.policy.guests.iter().find_map(|other| guest.clash(&other.name, &other.addresses))
}

#[cfg(test)]
mod tests;
