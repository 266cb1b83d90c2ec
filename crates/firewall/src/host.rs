//! The properties of this machine that the plan depends on: interfaces and the bridges whose ports they are, the
//! abilities of the kernel's nftables, users. Everything is queried at that moment.

use super::tool::{self, FirewallError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The machine, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Every network interface.
    pub(super) links: Vec<Link>,
    /// Whether rules can match the bridge that a frame's port belongs to.
    pub(super) matches_bridges: bool,
    /// Whether rules can set the lifetime of a connection tracking entry.
    pub(super) has_ct_timeouts: bool,
    /// Whether rules can see ARP on interfaces that are not bridge ports.
    pub(super) has_arp_tables: bool,
    /// How many entries the connection tracking table can hold; `None` if there is no table yet.
    pub(super) most_tracked: Option<u64>,
    /// How many neighbours the kernel keeps, by setting.
    pub(super) neighbours: Vec<(&'static str, u64)>,
    /// Whether br_netfilter passes the frames of bridges through the IP rules, or may do so at any moment.
    pub(super) filters_bridges: bool,
    /// Whether the kernel supports IPv6.
    pub(super) ipv6: bool,
    /// The interfaces of default routes.
    pub(super) default_routes: Vec<String>,
}

/// What others may know of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface<'h> {
    /// Its name.
    pub name: &'h str,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// The driver's name for its kind: `tap`, `tun`, `veth`, `bridge`; empty for hardware.
    pub kind: &'h str,
    /// The bridge that it is a port of.
    pub bridge: Option<&'h str>,
    /// Whether it is the interface of one of outgate's own guests.
    pub is_probe: bool,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    /// The interface that it is stacked on, if that is one of this machine's.
    pub(super) parent: Option<String>,
    pub(super) is_bridge: bool,
    /// The driver's name for its kind (IFLA_INFO_KIND): `tun`, `veth`, `macvlan`; empty for hardware.
    pub(super) kind: String,
    /// The kernel's number, in this namespace, for the namespace that its other end or parent is in, if that is
    /// another one.
    pub(super) peer_namespace: Option<i32>,
    /// Its other end's number there.
    pub(super) peer_index: Option<u32>,
    /// The bridge that it is a port of.
    pub(super) master: Option<String>,
    /// Whether it is isolated from other isolated ports of its bridge.
    pub(super) isolated: bool,
    /// Whether it is a port that takes no part in spanning tree and multicast routing ([`GUARD`]).
    pub(super) guarded: bool,
    /// Whether it is a port on which its bridge received another root of the spanning tree.
    pub(super) heard_root: bool,
    /// Whether this bridge learns MACs from frames that no rule sees, those for link-local MACs.
    pub(super) learns_unseen: bool,
    /// Whether it is the interface of one of outgate's own guests, which are guarded and do not count.
    pub(super) is_probe: bool,
}

/// The beginning of the alias (ip-link(8)) of an interface that `outgate verify` or the running proof made.
pub const PROBE_ALIAS: &str = "outgate probe ";

/// Settings of guests' ports beside `isolated`, as arguments of ip(8). The mask sends frames for link-local MACs,
/// which are mostly BPDUs, through table bridge instead of to the protocol's own handler; it cannot include the
/// bit of pause frames, which a bridge drops itself. If the mask is lost, `guard` disables the port at its first
/// BPDU. A port marked as a router's would receive all multicast.
pub(super) const GUARD: [&str; 6] = ["guard", "on", "mcast_router", "0", "group_fwd_mask", GUARD_MASK];
/// Their settings without it.
pub(super) const NO_GUARD: [&str; 6] = ["guard", "off", "mcast_router", "1", "group_fwd_mask", "0"];
const GUARD_MASK: &str = "0xfffd";

#[derive(Deserialize)]
struct IpLink {
    ifname: String,
    #[serde(default)]
    ifalias: String,
    #[serde(default)]
    ifindex: u32,
    link: Option<String>,
    link_index: Option<u32>,
    link_netnsid: Option<i32>,
    master: Option<String>,
    #[serde(default)]
    linkinfo: LinkInfo,
}

#[derive(Default, Deserialize)]
struct LinkInfo {
    info_kind: Option<String>,
    info_slave_kind: Option<String>,
    #[serde(default)]
    info_data: BridgeData,
    #[serde(default)]
    info_slave_data: PortData,
}

/// Fields of a bridge; other kinds of interfaces lack them.
#[derive(Default, Deserialize)]
struct BridgeData {
    bridge_id: Option<String>,
    stp_state: Option<u32>,
    no_linklocal_learn: Option<u32>,
    /// Which of the two kinds a `tun` device is.
    #[serde(rename = "type")]
    device: Option<serde_json::Value>,
}

/// Fields of a bridge's port. An old kernel lacks the fields that it does not print.
#[derive(Default, Deserialize)]
struct PortData {
    #[serde(default)]
    isolated: bool,
    #[serde(default)]
    guard: bool,
    multicast_router: Option<u32>,
    group_fwd_mask: Option<String>,
    /// The bridge that the port considers nearest to the root on its segment.
    bridge_id: Option<String>,
}

impl PortData {
    fn is_guarded(&self) -> bool {
        let mask = self.group_fwd_mask.as_deref().is_none_or(|mask| mask == GUARD_MASK);
        self.guard && self.multicast_router.is_none_or(|router| router == 0) && mask
    }
}

impl Host {
    /// Inspects this machine. If only root could determine an ability, that of current kernels is assumed.
    ///
    /// # Errors
    /// [`FirewallError`] if ip(8) is missing or fails.
    pub fn look() -> Result<Host, FirewallError> {
        let links = links()?;
        let can = |probe: &str| !is_root() || tool::run("nft", &["-c", "-f", "-"], probe, "a probe").is_ok();
        let matches_bridges =
            can("table bridge outgate-probe {\n\tchain probe {\n\t\tmeta ibrname \"outgate\" drop\n\t}\n}\n");
        let has_ct_timeouts = can(
            "table inet outgate-probe {\n\tct timeout probe {\n\t\tprotocol udp;\n\t\tl3proto ip;\n\t\tpolicy = { unreplied : 3 };\n\t}\n}\n",
        );
        let has_arp_tables = can("table arp outgate-probe\n");
        let most_tracked = super::tracking::largest();
        let neighbours = super::neighbours::places();
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        let filters_bridges = filters_bridges(&links);
        Ok(Host {
            links,
            filters_bridges,
            matches_bridges,
            has_ct_timeouts,
            has_arp_tables,
            most_tracked,
            neighbours,
            ipv6,
            default_routes: default_routes(),
        })
    }

    /// Returns the same machine with its current interfaces.
    ///
    /// # Errors
    /// [`FirewallError`] if ip(8) fails.
    pub fn again(&self) -> Result<Host, FirewallError> {
        let links = links()?;
        Ok(Host { filters_bridges: filters_bridges(&links), links, ..self.clone() })
    }

    /// Returns every network interface, in the order of the names.
    pub fn interfaces(&self) -> impl Iterator<Item = Interface<'_>> {
        self.links.iter().map(|link| Interface {
            name: &link.name,
            is_bridge: link.is_bridge,
            kind: &link.kind,
            bridge: link.master.as_deref(),
            is_probe: link.is_probe,
        })
    }

    /// Returns the interfaces of this machine's default routes.
    pub fn uplinks(&self) -> &[String] {
        &self.default_routes
    }

    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the ports of the bridges whose names satisfy `is`.
    pub(super) fn ports_of(&self, is: impl Fn(&str) -> bool) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.master.as_deref().is_some_and(&is))
    }
}

/// Returns every interface.
fn links() -> Result<Vec<Link>, FirewallError> {
    let found = tool::json("ip", &["-j", "-d", "link", "show"], "to list the interfaces")?;
    let found: Vec<IpLink> =
        serde_json::from_value(found).map_err(|source| FirewallError::Unreadable { program: "ip", source })?;
    let trees = |link: &IpLink| {
        let tree = &link.linkinfo.info_data;
        tree.stp_state.is_some_and(|state| state != 0).then(|| (plain(&link.ifname), tree.bridge_id.clone()))
    };
    let trees: BTreeMap<String, Option<String>> = found.iter().filter_map(trees).collect();
    let with_tree = |link: IpLink| {
        let above = link.linkinfo.info_slave_data.bridge_id.clone();
        let link = Link::from(link);
        let own = link.master.as_ref().and_then(|bridge| trees.get(bridge));
        Link { heard_root: own.is_some_and(|own| above.is_some() && *own != above), ..link }
    };
    let mut links: Vec<Link> = found.into_iter().map(with_tree).collect();
    links.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(links)
}

/// br_netfilter registers its hook in a network namespace with the first bridge there, and keeps it.
fn filters_bridges(links: &[Link]) -> bool {
    has_br_netfilter() && links.iter().any(|link| link.is_bridge)
}

/// Returns whether br_netfilter is loaded.
pub(super) fn has_br_netfilter() -> bool {
    Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

/// Returns the name without the peer that some versions append for a veth.
fn plain(name: &str) -> String {
    name.split('@').next().unwrap_or_default().to_owned()
}

/// Returns the interfaces of this machine's default routes; only warnings depend on it.
fn default_routes() -> Vec<String> {
    let mut names = Vec::new();
    for family in ["-4", "-6"] {
        let found = tool::json("ip", &[family, "-j", "route", "show", "default"], "to list routes");
        let Ok(serde_json::Value::Array(routes)) = found else { continue };
        for route in &routes {
            // A route with several next hops has an interface for each.
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
        let is_bridge = link.linkinfo.info_kind.as_deref() == Some("bridge");
        let is_tap = link.linkinfo.info_data.device.as_ref().is_some_and(|device| device == "tap");
        let state = &link.linkinfo.info_slave_data;
        Link {
            is_bridge,
            kind: if is_tap { "tap".to_owned() } else { link.linkinfo.info_kind.unwrap_or_default() },
            learns_unseen: is_bridge && link.linkinfo.info_data.no_linklocal_learn == Some(0),
            isolated: port && state.isolated,
            guarded: port && state.is_guarded(),
            heard_root: false,
            is_probe: link.ifalias.starts_with(PROBE_ALIAS),
            master: link.master.filter(|_| port),
            name: plain(&link.ifname),
            index: link.ifindex,
            parent: link.link,
            peer_namespace: link.link_netnsid,
            peer_index: link.link_index,
        }
    }
}

/// Returns whether `name` matches `pattern`, a name or one that ends in `*`.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(stem) => name.starts_with(stem),
        None => pattern == name,
    }
}

/// Returns whether this process is root.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the number of a user given by name or number; `None` if there is no such user.
pub fn user_number(user: &str) -> Option<u32> {
    if let Ok(number) = user.parse() {
        return Some(number);
    }
    // getent(1) queries what the system queries (nsswitch.conf), including LDAP and the like.
    let entry = tool::run("getent", &["passwd", "--", user], "", "to look up a user").ok()?;
    entry.split(':').nth(2)?.parse().ok()
}

/// Returns a kernel setting's value, without the line end; `None` if the kernel has no such setting.
pub(super) fn sysctl(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|value| value.trim().to_owned())
}
