//! The firewall of a machine whose guests may go out through outgate alone: an nftables ruleset and
//! routing rules that bring guests' traffic to the listeners and refuse the rest, whether the daemon
//! runs or not. This module plans them from the configuration, writes them down, applies, removes and
//! inspects them with nft(8) and ip(8); the kernel's state is the only record. What the listeners do
//! with what is brought to them is for the stages.
//!
//! Three layers, each closed by itself: table `inet outgate` (guests' packets to the listeners, all
//! else rejected), table `bridge outgate` (guests on one bridge kept apart, addresses pinned to
//! ports; `arp outgate` where there is no bridge), and routing rules that prohibit forwarding for guests even
//! when somebody flushes nftables.

mod apply;
mod br_netfilter;
mod bridge;
mod host;
mod inspect;
mod namespaces;
mod neighbours;
mod others;
mod plan;
mod ports;
mod routing;
mod script;
mod snapshot;
pub(crate) mod tool;
mod tracking;
mod unguarded;
mod watch;

pub use apply::{Applied, Removed, apply, remove};
pub use br_netfilter::has_come as br_netfilter_has_come;
pub use host::Host;
pub(crate) use host::fits;
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
    /// Interfaces by which guests' packets enter; `*` at the end stands for any ending.
    pub guest_interfaces: Vec<String>,
    /// Users, by name or number, whose own sockets are brought to `redirect`.
    pub host_users: Vec<String>,
    /// May guests reach DHCP and router solicitation on this machine?
    pub allow_dhcp: bool,
    /// May guests answer connections that came from outside?
    pub allow_inbound_replies: bool,
    /// The guests that are held to an interface.
    pub pins: Vec<Pin>,
}

impl FirewallSettings {
    /// Does the configuration ask for a firewall at all?
    pub fn is_wanted(&self) -> bool {
        !self.guest_interfaces.is_empty() || !self.host_users.is_empty()
    }
}

/// A `[[guest]]` with an interface: these addresses are used on it, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The guest's name.
    pub guest: String,
    /// A bridge port or an interface of its own.
    pub interface: String,
    /// What the guest may use there.
    pub addresses: Vec<IpNet>,
}

/// Tables of this machine's kernel that are too small for the guests of the configuration, one sentence each
/// with the line to write.
pub(crate) fn small_tables(settings: &Settings) -> Vec<String> {
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
/// The name of the table that says how long entries of connection tracking live.
const TIMEOUTS: &str = "outgate_timeouts";
/// All tables: family and name.
const TABLES: [(&str, &str); 4] = [("inet", TABLE), ("inet", TIMEOUTS), ("bridge", TABLE), ("arp", TABLE)];
/// The bits of the packet mark (skb->mark) that are outgate's; all others are left as they are.
const MARK_MASK: u32 = 0x0700_0000;
/// Mark: on its way to the transparent listener.
const MARK_LISTENER: u32 = 0x0100_0000;
/// Mark: the answer to a connection that came from outside.
const MARK_REPLY: u32 = 0x0200_0000;
/// Mark: the port by which it came has sent more queries than it may.
const MARK_CROWDED: u32 = 0x0300_0000;
/// Mark: its source was checked on the bridge port by which it came.
const MARK_PINNED: u32 = 0x0400_0000;
/// The routing table that delivers everything to this machine.
const ROUTES: u32 = 3129;

/// Sending a datagram here fails with EPERM while the ruleset is in place: a process without any
/// privilege can tell. 127.0.0.0/8 is this machine's own, so that nothing leaves it either way.
const CANARY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 49), 9);
/// As `CANARY`, but nothing of outgate's is in the way.
const CONTROL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 50), 9);

/// What a ruleset was made from, as an address that it refuses: the ruleset of another configuration
/// refuses another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal(SocketAddrV4);

impl Seal {
    /// The seal of this configuration's ruleset.
    pub fn of(firewall: &FirewallSettings, listen: &ListenSettings) -> Seal {
        let ListenSettings { proxy, proxy_tls, transparent, redirect, dns, udp, .. } = listen;
        let text = format!("{firewall:?} {proxy:?} {proxy_tls:?} {transparent:?} {redirect:?} {dns:?} {udp:?}");
        Seal(drawn(&text, 78, 0))
    }
}

/// An address of 127.`network`.0.0/16 that is this text's own. `high`: bits that its third number has in any case.
fn drawn(text: &str, network: u8, high: u8) -> SocketAddrV4 {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut bytes = digest.as_ref().iter().copied();
    let mut next = || bytes.next().unwrap_or_default();
    let address = Ipv4Addr::new(127, network, next() | high, next());
    SocketAddrV4::new(address, u16::from_be_bytes([next(), next()]).max(1))
}

/// What of `[limits]` and `[resolver]` a ruleset was made from: an address that it refuses for each key. The daemon
/// takes a change over at a reload, the kernel's rules at `apply` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares([(&'static str, SocketAddrV4); 4]);

impl Shares {
    /// What these settings come to in a ruleset.
    pub fn of(settings: &Settings) -> Shares {
        Rations::new(settings).into()
    }

    fn addresses(&self) -> [SocketAddrV4; 4] {
        self.0.map(|(_, address)| address)
    }

    /// What the ruleset that is there was made from other values of, with the remedy. Nothing where that cannot be
    /// told, or where no ruleset is there. As [`presence`] without blocking.
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

impl From<Rations> for Shares {
    fn from(rations: Rations) -> Shares {
        // Never where `CANARY` and `CONTROL` are.
        Shares(rations.in_rules().map(|(key, value)| (key, drawn(&format!("{key} {value}"), 79, 0x80))))
    }
}

/// What can be told of the ruleset without privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there, as the configuration asks for it.
    InPlace,
    /// One is there, made from another configuration.
    Outdated,
    /// There is none.
    Missing,
    /// It cannot be told, for example because something else refuses this process all datagrams to
    /// loopback.
    Unknown,
}

impl Presence {
    /// Is some ruleset there?
    pub const fn is_there(self) -> bool {
        matches!(self, Presence::InPlace | Presence::Outdated)
    }
}

/// Is the ruleset in place that bears `seal`? Three datagrams to loopback addresses tell, without
/// blocking. They show that table `inet outgate` is there; its single chains, table `bridge outgate` and
/// the routing rules are shown to root alone, by [`status`].
pub fn presence(seal: Seal) -> Presence {
    sensed(Some(seal))
}

/// Is some ruleset of outgate's there, whatever it was made from? As [`presence`].
pub fn is_any_there() -> bool {
    sensed(None).is_there()
}

/// As [`presence`]; without a seal to look for a ruleset that is there is an outdated one.
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

/// Is a datagram to this address refused? `None` where it fails otherwise.
fn refused(socket: &UdpSocket, address: SocketAddrV4) -> Option<bool> {
    match socket.send_to(&[], address) {
        Ok(_) => Some(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(true),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests;
