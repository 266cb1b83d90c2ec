//! What can be wrong with a machine's guard: one vocabulary for `/readyz`, `outgate status`, the log, the status
//! page, the metric `outgate_trouble` and the alerts.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of trouble. [`TroubleCause::as_str`] is the metric's label, and the anchor in the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleCause {
    /// The firewall's tables are missing, or are not those of the configuration.
    Ruleset,
    /// Routing rules or routes of the firewall are missing.
    Routing,
    /// Another firewall drops traffic that is directed to the listeners.
    OtherFirewall,
    /// An interface that the configuration names does not exist.
    InterfaceMissing,
    /// A guests' bridge port is not isolated or guarded, or a setting of its interface differs.
    PortUnguarded,
    /// This machine has guests behind interfaces that are not guarded.
    UnguardedGuests,
    /// Names that containers in a guarded network ask for leave past the DNS listener.
    DockerDns,
    /// The running proof found a way past outgate, or guests that are cut off, or fell silent.
    Enforcement,
    /// `outgate-host.service` sends no reports, so the state of the other causes is unknown.
    Watcher,
    /// No DNS server answers.
    Resolver,
    /// The lists cannot be used in their current form.
    List,
    /// The configuration cannot be used in its current form.
    Configuration,
    /// The certificate has expired, or its files cannot be used.
    Certificate,
    /// The access log can't be written.
    Log,
    /// Lines of the access log were lost, because they arrive faster than they can be written.
    LogDropped,
    /// The kernel's connection tracking table is nearly full.
    Conntrack,
}

impl TroubleCause {
    /// All of them.
    pub const ALL: [TroubleCause; 16] = [
        TroubleCause::Ruleset,
        TroubleCause::Routing,
        TroubleCause::OtherFirewall,
        TroubleCause::InterfaceMissing,
        TroubleCause::PortUnguarded,
        TroubleCause::UnguardedGuests,
        TroubleCause::DockerDns,
        TroubleCause::Enforcement,
        TroubleCause::Watcher,
        TroubleCause::Resolver,
        TroubleCause::List,
        TroubleCause::Configuration,
        TroubleCause::Certificate,
        TroubleCause::Log,
        TroubleCause::LogDropped,
        TroubleCause::Conntrack,
    ];

    /// Returns whether a daemon with this trouble is not ready. Lost log lines cut nobody off and give nobody
    /// access, and a guest can cause them at will.
    pub const fn makes_unready(self) -> bool {
        !matches!(self, TroubleCause::LogDropped)
    }

    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            TroubleCause::Ruleset => "ruleset",
            TroubleCause::Routing => "routing",
            TroubleCause::OtherFirewall => "other_firewall",
            TroubleCause::InterfaceMissing => "interface_missing",
            TroubleCause::PortUnguarded => "port_unguarded",
            TroubleCause::UnguardedGuests => "unguarded_guests",
            TroubleCause::DockerDns => "docker_dns",
            TroubleCause::Enforcement => "enforcement",
            TroubleCause::Watcher => "watcher",
            TroubleCause::Resolver => "resolver",
            TroubleCause::List => "list",
            TroubleCause::Configuration => "configuration",
            TroubleCause::Certificate => "certificate",
            TroubleCause::Log => "log",
            TroubleCause::LogDropped => "log_dropped",
            TroubleCause::Conntrack => "conntrack",
        }
    }
}

impl fmt::Display for TroubleCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Its kind.
    pub cause: TroubleCause,
    /// What is wrong and how to repair it, one sentence.
    pub text: String,
}

impl Trouble {
    /// Creates a trouble of this kind.
    pub fn new(cause: TroubleCause, text: impl Into<String>) -> Trouble {
        Trouble { cause, text: text.into() }
    }
}

/// What `outgate firewall watch` reports to the daemon: everything that only root can see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Guests' interfaces that exist and are guarded, with the number of guests behind each.
    pub guarding: Vec<Guarded>,
    /// Interfaces that look like guests' and are not guarded.
    pub unguarded: Vec<String>,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
}

/// A guarded interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarded {
    /// Its name.
    pub interface: String,
    /// The number of a bridge's ports, or 1.
    pub guests: usize,
    /// Whether they reach each other. A watcher of an earlier version does not say, and knew no way to allow it.
    #[serde(default)]
    pub between_guests: BetweenGuests,
}

/// Whether the guests of one network reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetweenGuests {
    /// They do not.
    #[default]
    Refuse,
    /// They do, and the rest of the guard is the same.
    Allow,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_the_same_everywhere() {
        for cause in TroubleCause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }
}
