//! The checks: what must not get out and what must get through, for which family, and what is expected of each. None
//! depends on the answer to another.

use super::addresses::Family;
use super::network::{Guests, Network, Untried};
use super::own_addresses;
use outgate::proof::Check;
use std::net::{IpAddr, SocketAddr};

/// A check of one family; for [`Check::Url`], of one URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) check: Check,
    pub(super) family: Family,
    /// The place of the URL.
    pub(super) url: usize,
}

/// Returns whether the firewall brings it to the DNS listener, by NAT.
pub(super) const fn is_dns(check: Check) -> bool {
    matches!(check, Check::DnsListener | Check::DnsOverUdp | Check::DnsOverTcp)
}

/// Returns what is expected of a check.
pub(super) const fn expected(check: Check) -> &'static str {
    match check {
        Check::DnsListener => "an answer by outgate",
        Check::TransparentListener | Check::ProxyListener => "a refusal by outgate",
        Check::Url => "the server's answer",
        Check::DnsOverUdp | Check::DnsOverTcp => "outgate's refusal, nothing outside",
        Check::Metadata => "no answer but outgate's",
        Check::HostTcp | Check::HostUdp | Check::HostSsh | Check::HostAdmin => "no way to this machine",
        Check::OtherGuestTcp | Check::OtherGuestUdp | Check::OtherGuestPing => "nothing at the other guest",
        Check::SpoofedSource => "nothing outside, no answer",
        _ => "nothing outside",
    }
}

impl Task {
    /// Returns its number in packets.
    pub(super) fn number(self) -> u8 {
        let family = u8::from(self.family == Family::V6);
        (self.check as u8).saturating_mul(2).saturating_add(family)
    }
}

/// Returns the listeners of a family that guests reach.
pub(super) fn reachable(listeners: &[SocketAddr], family: Family) -> impl Iterator<Item = SocketAddr> {
    listeners.iter().copied().filter(move |at| Family::of(at.ip()) == family && !at.ip().is_loopback())
}

/// Returns all tasks of an interface, the ones that must pass first: they must not wait behind refusals.
pub(super) fn tasks(network: &Network, urls: usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    let listen = &network.settings.listen;
    for check in Check::ALL {
        for family in Family::BOTH {
            let is_there = match check {
                // Guests are told of no address of IPv6.
                Check::Metadata => family == Family::V4,
                Check::ProxyListener => reachable(&listen.proxy, family).next().is_some(),
                // The daemon chooses the family.
                Check::Url => family == Family::V4,
                Check::HostAdmin => listen.admin.is_some(),
                _ => true,
            };
            let count = if check == Check::Url { urls } else { usize::from(is_there) };
            tasks.extend((0..count).filter(|_| is_there).map(|url| Task { check, family, url }));
        }
    }
    tasks
}

/// Returns why a task is not tried here.
pub(super) fn untried(task: Task, network: &Network, guests: &Guests) -> Option<Untried> {
    let Task { check, family, .. } = task;
    if let Err(why) = network.of(family) {
        return Some(why.clone());
    }
    if let Some((_, why)) = guests.without.iter().find(|(without, _)| *without == family) {
        return Some(why.clone());
    }
    let listen = &network.settings.listen;
    let missing = |key: &str, listeners: &[SocketAddr]| {
        let none = reachable(listeners, family).next().is_none();
        let why = || format!("[listen].{key} has no {} address that guests reach", name(family));
        none.then(|| Untried::NotApplicable(why()))
    };
    // A query to a listener on every address is brought to one of the interface that it came by (nft `redirect`).
    let unaddressed = || {
        let is_any = reachable(&listen.dns, family).all(|at| at.ip().is_unspecified());
        let has_address = usable(family, &own_addresses(&guests.entry)).is_some();
        let why = || format!("{} has no {} address, so its guests have none", guests.entry, name(family));
        (is_any && !has_address).then(|| Untried::NotApplicable(why()))
    };
    match check {
        Check::DnsListener => missing("dns", &listen.dns).or_else(unaddressed),
        Check::TransparentListener => missing("transparent", &listen.transparent),
        Check::Url => missing("dns", &listen.dns).or_else(|| missing("transparent", &listen.transparent)),
        Check::OtherGuestTcp | Check::OtherGuestUdp | Check::OtherGuestPing => {
            let is_allowed = network.settings.firewall.allows_between_guests(&guests.entry);
            let why = || format!("[[interface]].between_guests allows it on {}", guests.entry);
            is_allowed.then(|| Untried::NotApplicable(why()))
        }
        _ => None,
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Returns the address of this machine that guests of an interface see first: the interface's own, else the one
/// towards the sentinel.
pub(super) fn gateway(family: Family, of_interface: &[IpAddr], host: IpAddr) -> IpAddr {
    usable(family, of_interface).unwrap_or(host)
}

/// Returns the first address of a family that is not only valid on one link.
fn usable(family: Family, addresses: &[IpAddr]) -> Option<IpAddr> {
    let is_usable = |address: &&IpAddr| {
        let is_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        Family::of(**address) == family && !is_local
    };
    addresses.iter().find(is_usable).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_a_number_of_its_own_that_a_marker_can_hold() {
        let tasks = Check::ALL.into_iter().flat_map(|check| Family::BOTH.map(|family| Task { check, family, url: 0 }));
        let mut numbers: Vec<u8> = tasks.map(Task::number).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }

    #[test]
    fn the_gateway_is_an_address_of_the_interface_before_any_other() {
        let own: Vec<IpAddr> = ["fe80::1", "10.42.42.1", "fd42::1"].map(|text| text.parse().unwrap()).to_vec();
        let host = "198.18.0.1".parse().unwrap();
        assert_eq!(gateway(Family::V4, &own, host).to_string(), "10.42.42.1");
        assert_eq!(gateway(Family::V6, &own, host).to_string(), "fd42::1");
        assert_eq!(gateway(Family::V4, &own[..1], host), host);
    }
}
