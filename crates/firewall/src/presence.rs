//! What an unprivileged process can tell of the ruleset: whether it is in place, and from what configuration and
//! limits it was made. The ruleset refuses datagrams to certain addresses of loopback, and anyone can try to send one.

use super::settings::{FirewallSettings, GuestLimits, ListenerAddresses};
use super::tracking::Rations;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

/// Sending a datagram to this address fails with EPERM while the ruleset is in place, so an unprivileged process
/// can test it. 127.0.0.0/8 belongs to this machine, so nothing leaves it in either case.
pub(super) const CANARY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 49), 9);
/// Like `CANARY`, but outgate does not block this address.
const CONTROL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 79, 71, 50), 9);

/// Identifies the configuration a ruleset was made from, as an address that the ruleset refuses: the ruleset of
/// another configuration refuses a different address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal(SocketAddrV4);

impl Seal {
    /// Returns the seal of this configuration's ruleset.
    pub fn of(firewall: &FirewallSettings, listen: &ListenerAddresses) -> Seal {
        let ListenerAddresses { proxy, proxy_tls, transparent, redirect, dns, udp } = listen;
        let FirewallSettings { guest_interfaces, host_users, allow_dhcp, allow_inbound_replies, pins, between_guests } =
            firewall;
        // A ruleset that is in place when outgate is upgraded was made from this text too: where the text changes, it
        // counts as another configuration's. So what is new is added at the end, and only where it is set.
        let mut text = format!(
            "FirewallSettings {{ guest_interfaces: {guest_interfaces:?}, host_users: {host_users:?}, allow_dhcp: \
             {allow_dhcp}, allow_inbound_replies: {allow_inbound_replies}, pins: {pins:?} }} {proxy:?} {proxy_tls:?} \
             {transparent:?} {redirect:?} {dns:?} {udp:?}"
        );
        if !between_guests.is_empty() {
            text.push_str(&format!(" {between_guests:?}"));
        }
        Seal(drawn(&text, 78, 0))
    }

    pub(super) fn address(self) -> SocketAddrV4 {
        self.0
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
    pub fn of(firewall: &FirewallSettings, limits: &GuestLimits) -> EnforcedLimits {
        Rations::new(firewall, limits).into()
    }

    pub(super) fn addresses(&self) -> [SocketAddrV4; 4] {
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
/// outgate` and the routing rules, with [`status`](super::status).
pub fn presence(seal: Seal) -> Presence {
    sensed(Some(seal))
}

/// Tests whether there is any ruleset of outgate's, from whatever configuration. Like [`presence`].
pub fn is_any_there() -> bool {
    sensed(None).is_there()
}

/// Like [`presence`]; without a seal to look for, a present ruleset counts as outdated.
pub(super) fn sensed(seal: Option<Seal>) -> Presence {
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
