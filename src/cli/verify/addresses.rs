//! The addresses of a run: of networks that no route of this machine leads to, and that no guest has, so that they
//! are nobody's while it lasts.

use crate::cli::routes::overlap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where addresses are chosen from: benchmarking (RFC 2544, RFC 5180), and documentation (RFC 5737, RFC 3849), which
/// no network uses. The first is sometimes a VPN's.
const RANGES: [IpNet; 6] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32)),
];
/// The prefixes of eight addresses.
const EIGHT: (u8, u8) = (29, 125);
/// Maximum number of places that are looked at in one range.
const PLACES: usize = 4096;

/// The IP families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Family {
    #[serde(rename = "ipv4")]
    V4,
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    pub(super) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// Returns the word in answers.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    /// Returns the option of ip(8).
    pub(super) const fn option(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }

    pub(super) const fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Addresses {
    /// This machine's, towards the sentinel.
    pub(super) host: IpAddr,
    /// The sentinel's.
    pub(super) sentinel: IpAddr,
    /// The two guests', which this machine routes.
    pub(super) guests: [IpAddr; 2],
    /// The second guest's on the link, past this machine.
    pub(super) direct: IpAddr,
    /// Nobody's.
    pub(super) nobody: IpAddr,
}

/// Returns the ranges that a run may use: those that the operator names for a family, else the built-in ones.
pub(super) fn ranges(named: &[IpNet], family: Family) -> Vec<IpNet> {
    let of = |nets: &[IpNet]| nets.iter().filter(|net| Family::of(net.addr()) == family).copied().collect::<Vec<_>>();
    let own = of(named);
    if own.is_empty() { of(&RANGES) } else { own }
}

/// Chooses addresses of these ranges. `taken`: networks that are in use.
///
/// # Errors
/// Why there are none.
pub(super) fn choose(ranges: &[IpNet], taken: &[IpNet]) -> Result<Addresses, String> {
    for range in ranges {
        let free = |place: &IpNet| !taken.iter().any(|net| overlap(net, place));
        let place = match range {
            IpNet::V4(net) => {
                net.subnets(EIGHT.0).ok().and_then(|places| places.map(IpNet::V4).take(PLACES).find(free))
            }
            IpNet::V6(net) => {
                net.subnets(EIGHT.1).ok().and_then(|places| places.map(IpNet::V6).take(PLACES).find(free))
            }
        };
        if let Some(place) = place {
            return Ok(within(place));
        }
    }
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    Err(format!(
        "routes or guests of this machine take all of {}; name a network that is free with --range",
        ranges.join(", ")
    ))
}

fn within(place: IpNet) -> Addresses {
    let at = |last: u8| match place {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from_bits(net.network().to_bits() | u32::from(last))),
        IpNet::V6(net) => IpAddr::V6(Ipv6Addr::from_bits(net.network().to_bits() | u128::from(last))),
    };
    Addresses { host: at(1), sentinel: at(2), guests: [at(3), at(4)], direct: at(5), nobody: at(6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_place_is_taken_that_no_route_covers() {
        let v4 = ranges(&[], Family::V4);
        let first = |taken: &[&str]| choose(&v4, &nets(taken)).map(|found| found.sentinel.to_string());
        assert_eq!(first(&[]).unwrap(), "198.18.0.2");
        assert_eq!(first(&["198.18.0.4/32", "198.18.0.8/30"]).unwrap(), "198.18.0.18");
        assert_eq!(first(&["198.16.0.0/12"]).unwrap(), "192.0.2.2");
        let all = ["198.16.0.0/12", "192.0.2.0/24", "198.51.100.0/24", "203.0.0.0/8"];
        assert!(first(&all).unwrap_err().contains("--range"));
        let v6 = choose(&ranges(&[], Family::V6), &nets(&["2001:2::/64"])).unwrap();
        assert_eq!(v6.guests[0].to_string(), "2001:db8::3", "4,096 places of eight addresses are within the first /64");
        let named = ranges(&nets(&["10.9.0.0/16"]), Family::V4);
        assert_eq!(choose(&named, &[]).unwrap().host.to_string(), "10.9.0.1");
        assert_eq!(ranges(&nets(&["10.9.0.0/16"]), Family::V6).len(), 2, "the other family keeps its own");
        assert!(choose(&nets(&["10.9.0.0/30"]), &[]).is_err(), "too small");
    }
}
