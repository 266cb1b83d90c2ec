//! What one guest and its provider agreed on: the guest reaches no other destinations, whatever the list allows. An
//! agreement never allows anything; it only restricts.

use super::evaluation::protocol_reason;
use super::ports::OpenPorts;
use super::rule::Reach;
use outgate_proto::identify::Claim;
use outgate_proto::name::HostName;
use outgate_proto::reason::Reason;
use outgate_proto::target::{Host, Protocols};
use std::collections::{HashMap, HashSet};

/// The destinations that were agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    hosts: HashMap<Host, Vec<Reach>>,
    /// Names above those of `hosts`.
    parents: HashSet<Box<str>>,
    ports: OpenPorts,
}

impl Agreement {
    /// An agreement on only these.
    pub fn on(destinations: impl IntoIterator<Item = (Host, Reach)>) -> Agreement {
        let mut agreement = Agreement::default();
        for (host, reach) in destinations {
            if let Host::Name(name) = &host {
                let mut rest = name.as_str();
                while let Some((_, parent)) = rest.split_once('.') {
                    agreement.parents.insert(Box::from(parent));
                    rest = parent;
                }
            }
            let reaches = agreement.hosts.entry(host).or_default();
            if !reaches.contains(&reach) {
                reaches.push(reach);
            }
        }
        agreement.ports = OpenPorts::to(&agreement.hosts.values().flatten().copied().collect::<Vec<Reach>>());
        agreement
    }

    /// Returns the protocols that are permitted for the claim's target.
    ///
    /// # Errors
    /// The part of the claim that was not agreed on: the host, the port, or the protocol there.
    pub(super) fn limit(&self, claim: &Claim) -> Result<Protocols, Reason> {
        let reaches = self.hosts.get(&claim.target.host).ok_or(Reason::NotWhitelisted)?;
        let served = reaches.iter().filter_map(|reach| reach.serves(claim.transport, claim.target.port));
        let protocols = served.fold(Protocols::NONE, |all, served| all.union(served.protocols));
        match claim.spoken {
            _ if protocols.is_empty() => Err(Reason::PortNotAllowed),
            Some(spoken) if !protocols.contains(spoken) => Err(protocol_reason(Some(spoken))),
            _ => Ok(protocols),
        }
    }

    /// May the guest look up the name?
    pub(super) fn has_name(&self, name: &HostName) -> bool {
        self.hosts.contains_key(&Host::Name(name.clone()))
    }

    /// Is it above a name that was agreed on?
    pub(super) fn has_below(&self, name: &HostName) -> bool {
        self.parents.contains(name.as_str())
    }

    /// Was anything agreed on for this TCP port, or, with `raw`, any bytes?
    pub(super) fn opens(&self, port: u16, raw: bool) -> bool {
        if raw { self.ports.contains_raw(port, false) } else { self.ports.contains(port, false) }
    }
}
