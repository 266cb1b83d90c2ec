//! What a plan is made from: the parts of the configuration that the firewall depends on, as plain data. The reader
//! of the configuration checks them and fills them in.

use super::host::fits;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::time::Duration;

/// Everything in the configuration that a plan is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanInput {
    /// `[firewall]`, and the guests that are bound to an interface.
    pub firewall: FirewallSettings,
    /// Where the daemon listens for guests.
    pub listen: ListenerAddresses,
    /// What the daemon lets one guest do.
    pub limits: GuestLimits,
    /// The number of declared guests, with or without an interface.
    pub guests: usize,
}

/// `[firewall]` of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirewallSettings {
    /// Interfaces that guests' packets enter by; a final `*` matches any suffix.
    pub guest_interfaces: Vec<String>,
    /// Users, by name or number, whose own sockets are directed to `redirect`.
    pub host_users: Vec<String>,
    /// Whether guests may reach DHCP and router solicitation on this machine.
    pub allow_dhcp: bool,
    /// Whether guests may answer connections that came from outside.
    pub allow_inbound_replies: bool,
    /// The guests that are bound to an interface.
    pub pins: Vec<Pin>,
    /// Where guests of one bridge may or may not reach each other, in any order.
    pub between_guests: Vec<BetweenGuests>,
}

/// Whether the guests of one bridge reach each other, for the bridges that a name or pattern covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BetweenGuests {
    /// A bridge; a final `*` matches any suffix.
    pub interface: String,
    /// Whether they may.
    pub is_allowed: bool,
}

impl BetweenGuests {
    /// Returns whether the guests of this bridge may reach each other: the first entry that covers it decides.
    pub(super) fn decide<'b>(in_order: impl IntoIterator<Item = &'b BetweenGuests>, bridge: &str) -> bool {
        in_order.into_iter().find(|entry| fits(&entry.interface, bridge)).is_some_and(|entry| entry.is_allowed)
    }
}

impl FirewallSettings {
    /// Returns whether the guests of this interface, a bridge that `guest_interfaces` covers, may reach each other.
    pub fn allows_between_guests(&self, bridge: &str) -> bool {
        BetweenGuests::decide(self.between_guests_in_order(), bridge)
    }

    /// Returns the entries of `between_guests`, the longest name first: of those that cover a bridge, the first
    /// decides, and a name goes before a pattern.
    pub(super) fn between_guests_in_order(&self) -> Vec<&BetweenGuests> {
        let mut entries: Vec<&BetweenGuests> = self.between_guests.iter().collect();
        let rank = |entry: &BetweenGuests| (entry.interface.ends_with('*'), std::cmp::Reverse(entry.interface.len()));
        entries.sort_by_key(|entry| rank(entry));
        entries
    }

    /// Returns whether the configuration requires a firewall at all.
    pub fn is_wanted(&self) -> bool {
        !self.guest_interfaces.is_empty() || !self.host_users.is_empty()
    }
}

/// A `[[guest]]` with an interface: these addresses may be used on that interface, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The guest's name.
    pub guest: String,
    /// A bridge port or an interface of its own.
    pub interface: String,
    /// The addresses that the guest may use there.
    pub addresses: Vec<IpNet>,
}

/// The addresses of the listeners that guests and host users are directed to or may connect to, by their key in
/// `[listen]`. Of several, packets are directed to the first one that they can reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerAddresses {
    /// HTTP forward, CONNECT and SOCKS5.
    pub proxy: Vec<SocketAddr>,
    /// The same inside TLS.
    pub proxy_tls: Vec<SocketAddr>,
    /// TPROXY.
    pub transparent: Vec<SocketAddr>,
    /// nft REDIRECT, for host users.
    pub redirect: Vec<SocketAddr>,
    /// DNS, UDP and TCP.
    pub dns: Vec<SocketAddr>,
    /// TPROXY for UDP.
    pub udp: Vec<SocketAddr>,
}

/// The values of `[limits]` and `[resolver]` that bound how many packets a guest needs to send, and how many entries
/// of connection tracking the daemon needs for it. `None`: the configuration sets no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLimits {
    /// DNS queries of a guest a second.
    pub dns_queries_per_second: Option<u32>,
    /// Connections that a guest may open a second.
    pub new_connections_per_second: Option<u32>,
    /// Requests of plain HTTP of a guest a second, each of which may open a connection.
    pub requests_per_second: Option<u32>,
    /// Connections of a guest that are open at once.
    pub connections: Option<u32>,
    /// Connections of all guests that are open at once; no guest gets more than a quarter.
    pub total_connections: Option<u32>,
    /// How long a connection on which no data moves stays open.
    pub idle_timeout: Option<Duration>,
    /// After this time without an answer, a DNS server counts as dead.
    pub resolver_timeout: Duration,
}
