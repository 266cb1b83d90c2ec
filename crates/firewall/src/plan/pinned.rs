//! Which addresses are bound to which interface.

use super::Plan;
use crate::settings::Pin;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;

/// The guests and addresses that are bound to one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) guests: Vec<String>,
    pub(crate) v4: Vec<Ipv4Net>,
    pub(crate) v6: Vec<Ipv6Net>,
}

/// Returns the guests and addresses of each interface.
pub(super) fn by_interface(pins: &[Pin]) -> BTreeMap<String, Pinned> {
    let mut by_interface: BTreeMap<String, Pinned> = BTreeMap::new();
    for pin in pins {
        let pinned = by_interface.entry(pin.interface.clone()).or_default();
        pinned.guests.push(pin.guest.clone());
        for net in &pin.addresses {
            match net {
                IpNet::V4(net) => pinned.v4.push(*net),
                IpNet::V6(net) => pinned.v6.push(*net),
            }
        }
    }
    for pinned in by_interface.values_mut() {
        // nft refuses ranges within ranges.
        pinned.v4 = Ipv4Net::aggregate(&pinned.v4);
        pinned.v6 = Ipv6Net::aggregate(&pinned.v6);
    }
    by_interface
}

impl Plan {
    /// Returns every address that is bound to some interface.
    pub(crate) fn pinned_addresses(&self) -> (Vec<String>, Vec<String>) {
        let v4: Vec<Ipv4Net> = self.pinned.values().flat_map(|pinned| pinned.v4.iter().copied()).collect();
        let v6: Vec<Ipv6Net> = self.pinned.values().flat_map(|pinned| pinned.v6.iter().copied()).collect();
        (texts(&Ipv4Net::aggregate(&v4)), texts(&Ipv6Net::aggregate(&v6)))
    }
}

impl Pinned {
    /// Returns the interface and its guests, for comments, in 80 bytes at most.
    pub(crate) fn label(&self, interface: &str) -> String {
        let guests = self.guests.join(" ");
        let mut label = format!("{interface}: {guests}");
        // Names of guests and interfaces are ASCII, so a cut never splits a character.
        label.truncate(80);
        label
    }

    pub(crate) fn v4_text(&self) -> Vec<String> {
        texts(&self.v4)
    }

    pub(crate) fn v6_text(&self) -> Vec<String> {
        texts(&self.v6)
    }
}

fn texts<T: ToString>(nets: &[T]) -> Vec<String> {
    nets.iter().map(T::to_string).collect()
}
