//! The firewall of a machine whose guests may go out through outgate alone: an nftables ruleset and
//! routing rules that bring guests' traffic to the listeners and refuse the rest, whether the daemon
//! runs or not. This module plans them from the configuration, writes them down, applies, removes and
//! inspects them with nft(8) and ip(8); the kernel's state is the only record. What the listeners do
//! with what is brought to them is for the stages.
//!
//! Three layers, each closed by itself: table `inet outgate` (guests' packets to the listeners, all
//! else rejected), table `bridge outgate` (guests on one bridge kept apart, addresses pinned to
//! ports), and routing rules that prohibit forwarding for guests even when somebody flushes nftables.

mod apply;
mod bridge;
mod host;
mod inspect;
mod others;
mod plan;
mod routing;
mod script;
mod tool;

pub use apply::{Applied, Removed, apply, remove};
pub use host::Host;
pub use inspect::{Counter, Status, status};
pub use plan::Plan;
pub use tool::FirewallError;

use ipnet::IpNet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

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

/// The name of both tables.
const TABLE: &str = "outgate";
/// The bits of the packet mark (skb->mark) that are outgate's; all others are left as they are.
const MARK_MASK: u32 = 0x0700_0000;
/// Mark: on its way to the transparent listener.
const MARK_LISTENER: u32 = 0x0100_0000;
/// Mark: the answer to a connection that came from outside.
const MARK_REPLY: u32 = 0x0200_0000;
/// Mark: its source was checked on the bridge port by which it came.
const MARK_PINNED: u32 = 0x0400_0000;
/// The routing table that delivers everything to this machine.
const ROUTES: u32 = 3129;

/// Sending a datagram here fails with EPERM while the ruleset is in place: a process without any
/// privilege can tell. 127.0.0.0/8 is this machine's own, so that nothing leaves it either way.
const CANARY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 49), 9);
/// As `CANARY`, but nothing of outgate's is in the way.
const CONTROL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 50), 9);

/// Is the ruleset in place? Two datagrams to loopback addresses tell, without privileges and
/// without blocking. `None` where it cannot be told, for example because something else refuses
/// this process all datagrams to loopback.
pub fn in_place() -> Option<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    let refused = |address: SocketAddrV4| match socket.send_to(&[], address) {
        Ok(_) => Some(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(true),
        Err(_) => None,
    };
    match (refused(CONTROL), refused(CANARY)) {
        (Some(false), told) => told,
        _ => None,
    }
}

#[cfg(test)]
mod tests;
