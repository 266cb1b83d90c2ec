//! The addresses of this machine's interfaces, as ip(8) lists them.

use super::tool::{self, FirewallError};
use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface.
    pub interface: String,
    /// The address with the length of its network's prefix.
    pub net: IpNet,
    /// Where it is valid (rtnetlink(7)): `global`, `link`, `host` and others.
    pub scope: String,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Info>,
}

#[derive(Deserialize)]
struct Info {
    local: Option<String>,
    prefixlen: Option<u8>,
    #[serde(default)]
    scope: String,
}

/// Returns every address of this machine, in the order of the interfaces.
///
/// # Errors
/// [`FirewallError`] if ip(8) is missing or fails.
pub fn interface_addresses() -> Result<Vec<InterfaceAddress>, FirewallError> {
    let listed = tool::json("ip", &["-j", "addr", "show"], "to list addresses")?;
    let listed: Vec<Listed> =
        serde_json::from_value(listed).map_err(|source| FirewallError::Unreadable { program: "ip", source })?;
    Ok(listed.into_iter().flat_map(of_interface).collect())
}

fn of_interface(Listed { ifname, addr_info }: Listed) -> Vec<InterfaceAddress> {
    let address = |Info { local, prefixlen, scope }: Info| {
        let net = IpNet::new(local?.parse::<IpAddr>().ok()?, prefixlen?).ok()?;
        Some(InterfaceAddress { interface: ifname.clone(), net, scope })
    };
    addr_info.into_iter().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_interface_network_and_scope() {
        let text = r#"[{"ifname":"lo"},{},{"ifname":"br0","addr_info":[{"family":"inet","local":"10.42.42.1","prefixlen":24,
            "scope":"global"},{"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"},{"prefixlen":24},{"local":"?","prefixlen":8}]}]"#;
        let listed: Vec<Listed> = serde_json::from_str(text).unwrap();
        let found: Vec<InterfaceAddress> = listed.into_iter().flat_map(of_interface).collect();
        let address = |net: &str, scope: &str| InterfaceAddress {
            interface: "br0".to_owned(),
            net: net.parse().unwrap(),
            scope: scope.to_owned(),
        };
        assert_eq!(found, [address("10.42.42.1/24", "global"), address("fe80::1/64", "link")]);
    }
}
