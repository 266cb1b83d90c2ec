//! Guests that are registered while the daemon runs: who they are, and what their manifests hold them to.
//! They are kept in a folder beside the control socket, so for as long as the machine is up. What the
//! policy makes of them, and when, is for `policy` and the daemon.

mod apply;
mod keep;

pub use apply::{Application, Taken};
pub use keep::{KeepError, folder};

use crate::config::Settings;
use crate::firewall::Pin;
use crate::golem::destination::destination;
use crate::golem::manifest::Access;
use crate::golem::negotiation::Rule;
use crate::golem::rules::Outbound;
use crate::policy::{Agreement, GuestSettings, Mode};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Guests at a time at most.
pub const MAX_GUESTS: usize = 4096;

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
    /// What the job asked for.
    pub access: Access,
    /// The provider's rule that took it; `None` where the daemon goes by no provider's rules.
    pub rule: Option<Rule>,
}

impl Agreed {
    /// What the accepting rule grants under these settings and the provider's rules as they are now.
    pub fn mode(&self, settings: &Settings, rules: Option<&Outbound>) -> Mode {
        let default = Outbound::default();
        let rules = rules.unwrap_or(&default);
        match (&self.access, &self.rule) {
            (Access::None, _) => Mode::None,
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
}

impl Registered {
    /// What the policy needs of it.
    fn settings(&self, settings: &Settings, rules: Option<&Outbound>) -> GuestSettings {
        GuestSettings {
            name: self.name.clone(),
            addresses: self.addresses.clone(),
            mode: self.manifest.as_ref().map(|agreed| agreed.mode(settings, rules)),
            files: None,
            agreed: self.manifest.as_ref().and_then(Agreed::agreement),
        }
    }

    /// Why it cannot be a guest beside `others`, if so.
    fn clash(&self, others: &[GuestSettings]) -> Option<String> {
        let Registered { name, addresses, .. } = self;
        others.iter().find_map(|other| {
            if other.name == *name {
                return Some(format!("there is a guest {name} already"));
            }
            let shared =
                addresses.iter().find(|net| other.addresses.iter().any(|o| o.contains(*net) || net.contains(o)));
            shared.map(|net| {
                format!("{net} of {name} is already an address of {}; an address is one guest's", other.name)
            })
        })
    }
}

/// The guests that are registered now.
#[derive(Debug, Default)]
pub struct Registry {
    /// Where they are kept.
    folder: Option<PathBuf>,
    guests: Vec<Registered>,
}

impl Registry {
    /// Those that were kept by the last daemon with this control socket since the machine came up.
    ///
    /// # Errors
    /// Where they cannot be read; whether there were any is not known then.
    pub fn restore(control: Option<&Path>) -> Result<Registry, KeepError> {
        let folder = control.map(folder);
        let guests = folder.as_deref().map(keep::restore).transpose()?.unwrap_or_default();
        Ok(Registry { folder, guests })
    }

    /// None, to be kept beside this control socket.
    pub fn empty(control: Option<&Path>) -> Registry {
        Registry { folder: control.map(folder), guests: Vec::new() }
    }

    /// In the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Registered> {
        self.guests.iter()
    }

    /// The guest of this name.
    pub fn get(&self, name: &str) -> Option<&Registered> {
        self.guests.iter().find(|guest| guest.name == name)
    }

    /// The settings with these guests among those of the configuration.
    ///
    /// # Errors
    /// The first clash with a guest of the configuration, and what to do.
    pub fn over(&self, settings: &Settings, rules: Option<&Outbound>) -> Result<Settings, String> {
        let mut settings = settings.clone();
        for guest in &self.guests {
            if let Some(clash) = guest.clash(&settings.policy.guests) {
                let name = &guest.name;
                return Err(format!(
                    "{clash}; {name} was registered at run time, and `outgate guest remove {name}` ends that"
                ));
            }
            settings.firewall.pins.extend(guest.pin());
            let guest = guest.settings(&settings, rules);
            settings.policy.guests.push(guest);
        }
        Ok(settings)
    }

    /// Lets those go that do not go with the configuration: what stands in a file comes first. The clashes.
    pub fn yield_to(&mut self, settings: &Settings) -> Vec<String> {
        let mut clashes = Vec::new();
        self.guests.retain(|guest| {
            let clash = guest.clash(&settings.policy.guests);
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
        let others = self.over(settings, None)?;
        if let Some(clash) = guest.clash(&others.policy.guests) {
            return Err(clash);
        }
        if self.guests.len() >= MAX_GUESTS {
            return Err(format!("{MAX_GUESTS} guests are registered, and there is room for no more"));
        }
        self.guests.push(guest);
        self.keep().inspect_err(|_| drop(self.guests.pop()))
    }

    /// Ends the registration. Nothing is changed on an error.
    ///
    /// # Errors
    /// Where there is none of this name, or what is left cannot be kept.
    pub fn remove(&mut self, name: &str) -> Result<(), String> {
        let Some(at) = self.guests.iter().position(|guest| guest.name == name) else {
            return Err(format!("no guest {name:?} was registered at run time"));
        };
        let gone = self.guests.remove(at);
        self.keep().inspect_err(|_| self.guests.insert(at, gone))
    }

    fn keep(&self) -> Result<(), String> {
        let folder = self.folder.as_deref().ok_or("without a control socket nothing can be kept")?;
        keep::save(folder, &self.guests)
            .map_err(|error| format!("{}: the guests cannot be kept: {error}", folder.display()))
    }
}

impl Registered {
    fn pin(&self) -> Option<Pin> {
        let interface = self.interface.clone()?;
        Some(Pin { guest: self.name.clone(), interface, addresses: self.addresses.clone() })
    }
}

#[cfg(test)]
mod tests;
