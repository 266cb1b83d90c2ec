//! What of this machine the plan depends on: interfaces and which bridge they are ports of, what the
//! kernel's nftables can do, users. Everything is asked of the kernel at that moment.

use super::tool::{self, FirewallError};
use serde::Deserialize;
use std::path::Path;

/// The machine, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Every network interface.
    pub(super) links: Vec<Link>,
    /// Can rules match the bridge that a frame's port belongs to?
    pub(super) matches_bridges: bool,
    /// Can rules say how long an entry of connection tracking lives?
    pub(super) has_ct_timeouts: bool,
    /// How many entries the connection tracking table takes; `None`: there is none yet.
    pub(super) most_tracked: Option<u64>,
    /// How many neighbours it keeps, by setting.
    pub(super) neighbours: Vec<(&'static str, u64)>,
    /// Does the kernel speak IPv6?
    pub(super) ipv6: bool,
    /// The interfaces of default routes.
    pub(super) default_routes: Vec<String>,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) is_bridge: bool,
    /// The bridge that it is a port of.
    pub(super) master: Option<String>,
    /// Is it kept apart from other isolated ports of its bridge?
    pub(super) isolated: bool,
}

#[derive(Deserialize)]
struct IpLink {
    ifname: String,
    master: Option<String>,
    #[serde(default)]
    linkinfo: LinkInfo,
}

#[derive(Default, Deserialize)]
struct LinkInfo {
    info_kind: Option<String>,
    info_slave_kind: Option<String>,
    #[serde(default)]
    info_slave_data: SlaveData,
}

#[derive(Default, Deserialize)]
struct SlaveData {
    #[serde(default)]
    isolated: bool,
}

impl Host {
    /// Looks at this machine. What only root may find out is taken for what current kernels can do.
    ///
    /// # Errors
    /// [`FirewallError`] where ip(8) is missing or fails.
    pub fn look() -> Result<Host, FirewallError> {
        let links = tool::json("ip", &["-j", "-d", "link", "show"], "to list the interfaces")?;
        let links: Vec<IpLink> =
            serde_json::from_value(links).map_err(|source| FirewallError::Unreadable { program: "ip", source })?;
        let probe = "table bridge outgate-probe {\n\tchain probe {\n\t\tmeta ibrname \"outgate\" drop\n\t}\n}\n";
        let matches_bridges =
            !crate::system::is_root() || tool::run("nft", &["-c", "-f", "-"], probe, "a probe").is_ok();
        let probe = "table inet outgate-probe {\n\tct timeout probe {\n\t\tprotocol udp;\n\t\tl3proto ip;\n\t\tpolicy = { unreplied : 3 };\n\t}\n}\n";
        let has_ct_timeouts =
            !crate::system::is_root() || tool::run("nft", &["-c", "-f", "-"], probe, "a probe").is_ok();
        let most_tracked = super::tracking::largest();
        let neighbours = super::neighbours::places();
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        let mut links: Vec<Link> = links.into_iter().map(Link::from).collect();
        links.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Host {
            links,
            matches_bridges,
            has_ct_timeouts,
            most_tracked,
            neighbours,
            ipv6,
            default_routes: default_routes(),
        })
    }

    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The ports of bridges whose name `is` picks.
    pub(super) fn ports_of(&self, is: impl Fn(&str) -> bool) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.master.as_deref().is_some_and(&is))
    }
}

/// The interfaces by which this machine goes out; only warnings depend on it.
fn default_routes() -> Vec<String> {
    let mut names = Vec::new();
    for family in ["-4", "-6"] {
        let found = tool::json("ip", &[family, "-j", "route", "show", "default"], "to list routes");
        let Ok(serde_json::Value::Array(routes)) = found else { continue };
        for route in &routes {
            // With several next hops each has an interface of its own.
            let hops = route.get("nexthops").and_then(serde_json::Value::as_array).into_iter().flatten();
            let interfaces = std::iter::once(route).chain(hops).filter_map(|hop| hop.get("dev")?.as_str());
            names.extend(interfaces.map(str::to_owned));
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

impl From<IpLink> for Link {
    fn from(link: IpLink) -> Link {
        let port = link.linkinfo.info_slave_kind.as_deref() == Some("bridge");
        Link {
            is_bridge: link.linkinfo.info_kind.as_deref() == Some("bridge"),
            master: link.master.filter(|_| port),
            isolated: link.linkinfo.info_slave_data.isolated,
            // A veth is printed with its peer by some versions.
            name: link.ifname.split('@').next().unwrap_or_default().to_owned(),
        }
    }
}

/// Does `name` fit `pattern`, a name or one that ends in `*`?
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(stem) => name.starts_with(stem),
        None => pattern == name,
    }
}

/// The number of a user that is given by name or number; `None`: there is none of that name.
pub(super) fn user_number(user: &str) -> Option<u32> {
    if let Ok(number) = user.parse() {
        return Some(number);
    }
    // getent(1) asks what the system asks (nsswitch.conf), LDAP and the like included.
    let entry = tool::run("getent", &["passwd", "--", user], "", "to look up a user").ok()?;
    entry.split(':').nth(2)?.parse().ok()
}

/// A kernel setting's value, without the line end; `None` where the kernel has no such setting.
pub(super) fn sysctl(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|value| value.trim().to_owned())
}
