//! The firewall of a machine whose guests may reach the network only through outgate: an nftables ruleset and
//! routing rules that direct guests' traffic to the listeners and refuse the rest, whether the daemon runs or not.
//! This module plans them from the configuration, formats, applies, removes and inspects them with nft(8) and
//! ip(8); the kernel's state is the only record. The stages decide what the listeners do with the traffic.
//!
//! There are three layers, each of which fails closed: table `inet outgate` (directs guests' packets to the
//! listeners, rejects all others), table `bridge outgate` (isolates guests on one bridge from each other, binds
//! addresses to ports; `arp outgate` if there is no bridge), and routing rules that prohibit forwarding for guests
//! even if somebody flushes nftables.

mod apply;
mod br_netfilter;
mod bridge;
mod host;
mod inspect;
mod namespaces;
mod neighbours;
mod netlink;
mod others;
mod plan;
mod ports;
mod routing;
mod script;
mod snapshot;
pub mod tool;
mod tracking;
mod unguarded;
mod watch;

pub use apply::{Applied, Removed, apply, remove};
pub use br_netfilter::has_come as br_netfilter_has_come;
pub use host::Host;
pub use host::fits;
pub use inspect::{Counter, Status, status};
pub(crate) use namespaces::KINDS as STACKED_KINDS;
pub use plan::Plan;
pub use tool::FirewallError;
pub(crate) use unguarded::HOST_NETWORK;
pub use watch::{AppliedState, Change, Events, Mended, applied_state, held, is_as_reported, keep_swept, mend, report};

use crate::config::{ListenSettings, Settings};
use ipnet::IpNet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use tracking::Rations;

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
}

impl FirewallSettings {
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

/// Returns the tables of this machine's kernel that are too small for the guests of the configuration, one
/// sentence each with the line to write.
pub fn small_tables(settings: &Settings) -> Vec<String> {
    if !settings.firewall.is_wanted() {
        return Vec::new();
    }
    let guests = settings.policy.guests.len();
    let mut found = neighbours::too_small(guests, 0, &neighbours::places());
    found.extend(tracking::too_small(settings, guests, tracking::largest()));
    found
}

/// The name of the tables of rules.
const TABLE: &str = "outgate";
/// The name of the table that sets the lifetimes of connection tracking entries.
const TIMEOUTS: &str = "outgate_timeouts";
/// All tables: family and name.
const TABLES: [(&str, &str); 4] = [("inet", TABLE), ("inet", TIMEOUTS), ("bridge", TABLE), ("arp", TABLE)];
/// The bits of the packet mark (skb->mark) that outgate uses; all others stay unchanged.
const MARK_MASK: u32 = 0x0700_0000;
/// Mark: directed to the transparent listener.
const MARK_LISTENER: u32 = 0x0100_0000;
/// Mark: the answer to a connection that came from outside.
const MARK_REPLY: u32 = 0x0200_0000;
/// Mark: its ingress port has exceeded its query rate.
const MARK_CROWDED: u32 = 0x0300_0000;
/// Mark: its source was checked on its ingress bridge port.
const MARK_PINNED: u32 = 0x0400_0000;
/// The routing table that delivers everything to this machine.
const ROUTES: u32 = 3129;

/// Sending a datagram to this address fails with EPERM while the ruleset is in place, so an unprivileged process
/// can test it. 127.0.0.0/8 belongs to this machine, so nothing leaves it in either case.
const CANARY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 49), 9);
/// Like `CANARY`, but outgate does not block this address.
const CONTROL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 50), 9);

/// Identifies the configuration a ruleset was made from, as an address that the ruleset refuses: the ruleset of
/// another configuration refuses a different address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal(SocketAddrV4);

impl Seal {
    /// Returns the seal of this configuration's ruleset.
    pub fn of(firewall: &FirewallSettings, listen: &ListenSettings) -> Seal {
        let ListenSettings { proxy, proxy_tls, transparent, redirect, dns, udp, .. } = listen;
        let text = format!("{firewall:?} {proxy:?} {proxy_tls:?} {transparent:?} {redirect:?} {dns:?} {udp:?}");
        Seal(drawn(&text, 78, 0))
    }
}

/// Derives an address of 127.`network`.0.0/16 from this text. `high`: bits that are always set in its third
/// number.
fn drawn(text: &str, network: u8, high: u8) -> SocketAddrV4 {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut bytes = digest.as_ref().iter().copied();
    let mut next = || bytes.next().unwrap_or_default();
    let address = Ipv4Addr::new(127, network, next() | high, next());
    SocketAddrV4::new(address, u16::from_be_bytes([next(), next()]).max(1))
}

/// The values of `[limits]` and `[resolver]` that a ruleset was made from, as an address for each key that the
/// ruleset refuses. The daemon applies a change at a reload, the kernel's rules only at `apply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnforcedLimits([(&'static str, SocketAddrV4); 4]);

impl EnforcedLimits {
    /// Returns the values for these settings.
    pub fn of(settings: &Settings) -> EnforcedLimits {
        Rations::new(settings).into()
    }

    fn addresses(&self) -> [SocketAddrV4; 4] {
        self.0.map(|(_, address)| address)
    }

    /// Returns the keys whose values differ from those that the present ruleset was made from, with the remedy.
    /// Returns `None` if that cannot be determined, or if there is no ruleset. Does not block, like [`presence`].
    pub fn complaint(&self) -> Option<String> {
        let socket = prober()?;
        if (refused(&socket, CONTROL)?, refused(&socket, CANARY)?) != (false, true) {
            return None;
        }
        let others = self.0.iter().filter(|(_, address)| refused(&socket, *address) == Some(false));
        let keys: Vec<&str> = others.map(|(key, _)| *key).collect();
        (!keys.is_empty()).then(|| {
            let keys = keys.join(", ");
            format!("the kernel's rules were made from other values of {keys}: run `outgate firewall apply`")
        })
    }
}

impl From<Rations> for EnforcedLimits {
    fn from(rations: Rations) -> EnforcedLimits {
        // Never equal to `CANARY` or `CONTROL`.
        EnforcedLimits(rations.in_rules().map(|(key, value)| (key, drawn(&format!("{key} {value}"), 79, 0x80))))
    }
}

/// What an unprivileged process can determine about the ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is in place, as the configuration requires.
    InPlace,
    /// There is one, made from another configuration.
    Outdated,
    /// There is none.
    Missing,
    /// It cannot be determined, for example because something else refuses all of this process's datagrams to
    /// loopback.
    Unknown,
}

impl Presence {
    /// Returns whether there is any ruleset.
    pub const fn is_there(self) -> bool {
        matches!(self, Presence::InPlace | Presence::Outdated)
    }
}

/// Tests whether the ruleset with this `seal` is in place, with three datagrams to loopback addresses, without
/// blocking. This shows that table `inet outgate` exists; only root can see its individual chains, table `bridge
/// outgate` and the routing rules, with [`status`].
pub fn presence(seal: Seal) -> Presence {
    sensed(Some(seal))
}

/// Tests whether there is any ruleset of outgate's, from whatever configuration. Like [`presence`].
pub fn is_any_there() -> bool {
    sensed(None).is_there()
}

/// Like [`presence`]; without a seal to look for, a present ruleset counts as outdated.
fn sensed(seal: Option<Seal>) -> Presence {
    let told = || {
        let socket = prober()?;
        let (control, canary) = (refused(&socket, CONTROL)?, refused(&socket, CANARY)?);
        let sealed = seal.map_or(Some(false), |seal| refused(&socket, seal.0))?;
        (!control).then_some((canary, sealed))
    };
    match told() {
        Some((true, true)) => Presence::InPlace,
        Some((true, false)) => Presence::Outdated,
        Some((false, _)) => Presence::Missing,
        None => Presence::Unknown,
    }
}

fn prober() -> Option<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Returns whether a datagram to this address is refused; `None` if it fails otherwise.
fn refused(socket: &UdpSocket, address: SocketAddrV4) -> Option<bool> {
    match socket.send_to(&[], address) {
        Ok(_) => Some(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(true),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests;
