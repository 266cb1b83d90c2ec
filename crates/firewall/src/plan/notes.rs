//! What the operator should know of a plan before it is applied.

use super::{Plan, Scope};
use crate::host::Host;

impl Plan {
    /// Returns the missing interfaces that the configuration names, one sentence each.
    pub(crate) fn missing(&self, host: &Host) -> Vec<String> {
        let named = self.guests.iter().filter(|name| !name.ends_with('*') && host.link(name).is_none());
        named
            .map(|name| {
                format!(
                    "interface {name} of [firewall].guest_interfaces is missing: if it has another name now, its \
                     guests are not guarded"
                )
            })
            .collect()
    }

    /// Returns what in the configuration does not fit the interfaces and users of this machine, one sentence each.
    pub fn in_the_way(&self, host: &Host) -> Vec<String> {
        self.faults.iter().cloned().chain(self.missing(host)).chain(self.lockouts(host)).collect()
    }

    /// Returns the guests' interfaces that carry this machine's own default route, one sentence each.
    pub(crate) fn lockouts(&self, host: &Host) -> Vec<String> {
        let own = host.default_routes.iter().filter(|name| self.is_guest(name));
        own.map(|name| {
            format!(
                "{name} carries this machine's default route: everything that arrives by it counts as a guest, so \
                 sessions to this machine (SSH) by {name} end; `outgate firewall remove` at the console undoes it"
            )
        })
        .collect()
    }

    /// Returns what will not work as the configuration may suggest, one sentence each.
    pub(super) fn remarks(&self, host: &Host) -> Vec<String> {
        let mut notes = self.lockouts(host);
        let guests = !self.guests.is_empty();
        for (family, listeners) in [("IPv4", &self.v4), ("IPv6", &self.v6)] {
            if guests && listeners.transparent.is_none() {
                notes.push(format!(
                    "{family}: [listen].transparent has no {family} address, so guests' {family} connections are refused"
                ));
            }
            if !self.users.is_empty() && listeners.redirect.is_none() {
                notes.push(format!(
                    "{family}: [listen].redirect has no {family} address, so host users' {family} connections are refused"
                ));
            }
        }
        if guests && self.v4.dns.is_none() && self.v6.dns.is_none() {
            notes.push("[listen].dns has no address that guests reach, so their queries are refused".to_owned());
        }
        for pattern in self.guests.iter().filter(|pattern| pattern.ends_with('*')) {
            notes.push(format!(
                "{pattern}: the ruleset also covers interfaces that appear later, but the routing rule that keeps them \
                 closed when nftables is flushed names each interface: keep outgate-host.service (`outgate firewall \
                 watch`) running, or run `outgate firewall apply` after one was added"
            ));
        }
        if self.scope == Scope::Ports && self.guest_links(host).any(|link| link.is_bridge) {
            notes.push(
                "this kernel's nftables cannot match bridges (nft_meta_bridge), so ports are named one by one: keep \
                 outgate-host.service (`outgate firewall watch`) running, or run `outgate firewall apply` after one \
                 was added"
                    .to_owned(),
            );
        }
        if !host.has_arp_tables && self.guest_links(host).any(|link| !link.is_bridge) {
            notes.push(
                "this kernel has no tables for ARP (CONFIG_NF_TABLES_ARP), so a guest with an interface of its own can fill the \
                 neighbour table with the addresses of its subnet: give it a route of /32"
                    .to_owned(),
            );
        }
        if !host.has_ct_timeouts {
            notes.push(
                "this kernel cannot say how long an entry of connection tracking lives (nfnetlink_cttimeout), so \
                 entries of queries stay for as long as the kernel's own settings say: guests can use ten times as \
                 many"
                    .to_owned(),
            );
        } else if self.here.daemon.is_none() {
            notes.push(
                "there is no user outgate, so the entries of connections that the daemon opens stay in connection tracking \
                 for two minutes after they have ended"
                    .to_owned(),
            );
        }
        for link in self.guest_links(host) {
            if let Some(bridge) = link.master.as_deref().filter(|bridge| !self.is_guest(bridge)) {
                let name = &link.name;
                notes.push(format!(
                    "{name} is a port of {bridge}, which is where its packets enter; put \"{bridge}\" into \
                     [firewall].guest_interfaces: until then all frames of {name} are dropped"
                ));
            }
        }
        for (interface, pinned) in &self.pinned {
            let Some(link) = host.link(interface) else { continue };
            if !self.is_guest(interface) && !link.master.as_deref().is_some_and(|bridge| self.is_guest(bridge)) {
                notes.push(format!(
                    "{interface} of {} is neither in [firewall].guest_interfaces nor a port of a bridge that is: \
                     nothing brings its traffic here",
                    pinned.guests.join(", ")
                ));
            }
        }
        notes
    }
}
