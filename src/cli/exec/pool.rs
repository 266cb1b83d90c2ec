//! Chooses a command's address: the requested one, or the first of 10.79.0.0/16 that no guest has and that this
//! machine uses for nothing else.

use crate::cli::Failure;
use crate::cli::bridge::tool;
use crate::cli::routes;
use ipnet::Ipv4Net;
use serde_json::Value;
use std::net::Ipv4Addr;

/// The host's end of every pair. A link-local address (RFC 3927), so that it conflicts with no network.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 79, 1);
/// The range that addresses are chosen from.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 79, 0, 0), 16);

/// Returns an address for one more guest, beside those of the daemon's answer.
pub(super) fn choose(wanted: Option<Ipv4Addr>, guests: &Value) -> Result<Ipv4Addr, Failure> {
    if let Some(wanted) = wanted {
        let routes = tool::json("ip", &["-4", "-j", "route", "show", "table", "local"], "to list its addresses")?;
        return fit(wanted, &routes::v4(routes::nets(&routes)));
    }
    let mut taken = routes::v4(routes::taken("-4")?);
    taken.extend(routes::v4(routes::of_guests(guests)));
    let why = format!(
        "every address of {POOL} belongs to a guest or is covered by a route of this machine; use \
                       --address"
    );
    first_free(POOL, &taken).ok_or(Failure::Failed(why))
}

/// Checks whether this address can be a guest's, on a machine with these addresses.
fn fit(wanted: Ipv4Addr, own: &[Ipv4Net]) -> Result<Ipv4Addr, Failure> {
    let nobodys = wanted.is_loopback()
        || wanted.is_multicast()
        || wanted.is_broadcast()
        || wanted.octets().first() == Some(&0)
        || wanted == GATEWAY;
    if nobodys {
        return Err(Failure::Usage(format!("{wanted} cannot be a guest's address")));
    }
    if own.iter().any(|net| net.contains(&wanted)) {
        return Err(Failure::Failed(format!("{wanted} is an address of this machine; choose another")));
    }
    Ok(wanted)
}

fn first_free(pool: Ipv4Net, taken: &[Ipv4Net]) -> Option<Ipv4Addr> {
    let overlapping: Vec<&Ipv4Net> = taken.iter().filter(|net| pool.contains(*net) || net.contains(&pool)).collect();
    pool.hosts().find(|host| !overlapping.iter().any(|net| net.contains(host)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_address_is_taken_that_no_guest_and_no_route_has() {
        assert_eq!(first_free(POOL, &[]), Some(Ipv4Addr::new(10, 79, 0, 1)));
        let guests = json!({"guests": [{"addresses": ["10.79.0.1/32", "fd00::/8"]}, {"addresses": ["10.79.0.2/31"]}]});
        let mut taken = routes::v4(routes::of_guests(&guests));
        assert_eq!(first_free(POOL, &taken), Some(Ipv4Addr::new(10, 79, 0, 4)));
        let more = json!([{"dst": "default"}, {"dst": "0.0.0.0/1"}, {"dst": "10.79.0.4"}]);
        taken.extend(routes::v4(routes::nets(&more)));
        assert_eq!(first_free(POOL, &taken), Some(Ipv4Addr::new(10, 79, 0, 5)));
        taken.extend(routes::v4(routes::nets(&json!([{"dst": "10.0.0.0/8"}]))));
        assert_eq!(first_free(POOL, &taken), None);
    }

    #[test]
    fn an_address_that_is_asked_for_can_be_a_guests() {
        let own = [Ipv4Net::from(Ipv4Addr::new(192, 0, 2, 1))];
        assert!(fit(Ipv4Addr::new(192, 0, 2, 9), &own).is_ok());
        for wrong in ["192.0.2.1", "127.0.0.1", "0.1.2.3", "224.0.0.1", "255.255.255.255", "169.254.79.1"] {
            assert!(fit(wrong.parse().unwrap(), &own).is_err(), "{wrong}");
        }
    }
}
