//! Which addresses of this machine's are in use, so that a command chooses others: the networks that its routes lead
//! to, and those of the daemon's guests.

use super::Failure;
use super::bridge::tool;
use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;
use std::net::IpAddr;

/// The shortest prefixes that count, of IPv4 and IPv6: shorter ones are a default route, as some VPNs write it in halves.
const SHORTEST: (u8, u8) = (8, 16);

/// Returns the networks that the routes of all tables lead to. `family`: `-4` or `-6`.
pub(super) fn taken(family: &str) -> Result<Vec<IpNet>, Failure> {
    let routes = tool::json("ip", &[family, "-j", "route", "show", "table", "all"], "to list routes")?;
    Ok(nets(&routes))
}

/// Returns the networks that these routes, as ip(8) prints them, lead to.
pub(super) fn nets(routes: &Value) -> Vec<IpNet> {
    let destinations = routes.as_array().into_iter().flatten().filter_map(|route| route.get("dst")?.as_str());
    let nets = destinations.filter_map(|text| {
        let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse::<IpNet>().ok().or_else(alone)
    });
    let counts = |net: &IpNet| match net {
        IpNet::V4(net) => net.prefix_len() >= SHORTEST.0,
        IpNet::V6(net) => net.prefix_len() >= SHORTEST.1,
    };
    nets.filter(counts).collect()
}

/// Returns the addresses of the guests in the daemon's answer.
pub(super) fn of_guests(guests: &Value) -> impl Iterator<Item = IpNet> {
    let guests = guests.get("guests").and_then(Value::as_array).into_iter().flatten();
    let addresses = guests.filter_map(|guest| guest.get("addresses")?.as_array()).flatten();
    addresses.filter_map(|address| address.as_str()?.parse().ok())
}

/// Returns those of IPv4.
pub(super) fn v4(nets: impl IntoIterator<Item = IpNet>) -> Vec<Ipv4Net> {
    let only = |net| if let IpNet::V4(net) = net { Some(net) } else { None };
    nets.into_iter().filter_map(only).collect()
}

/// Returns whether two networks share an address.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn default_routes_and_their_halves_cover_nothing() {
        let routes = json!([{"dst": "default"}, {"dst": "0.0.0.0/1"}, {"dst": "10.79.0.4"}, {"dst": "10.0.0.0/8"},
            {"dst": "8000::/1"}, {"dst": "2001:db8::/32"}, {"dst": "fe80::1"}]);
        let nets: Vec<String> = nets(&routes).iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.79.0.4/32", "10.0.0.0/8", "2001:db8::/32", "fe80::1/128"]);
    }

    #[test]
    fn addresses_of_guests_are_of_both_families() {
        let guests = json!({"guests": [{"addresses": ["10.79.0.1/32", "fd00::/8"]}, {"addresses": ["10.79.0.2/31"]}]});
        assert_eq!(of_guests(&guests).count(), 3);
        let all: Vec<String> = v4(of_guests(&guests)).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["10.79.0.1/32", "10.79.0.2/31"]);
    }
}
