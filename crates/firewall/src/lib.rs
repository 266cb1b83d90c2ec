//! The firewall of a machine whose guests may reach the network only through outgate: an nftables ruleset and
//! routing rules that direct guests' traffic to the listeners and refuse the rest, whether the daemon runs or not.
//! This crate plans them from a [`PlanInput`], formats, applies, removes, inspects and mends them with nft(8) and
//! ip(8); the kernel's state is the only record. The daemon reads the configuration, decides when to look, and
//! decides what the listeners do with the traffic.
//!
//! There are three layers, each of which fails closed: table `inet outgate` (directs guests' packets to the
//! listeners, rejects all others), table `bridge outgate` (isolates guests on one bridge from each other, binds
//! addresses to ports; `arp outgate` if there is no bridge), and routing rules that prohibit forwarding for guests
//! even if somebody flushes nftables.

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::restriction,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "a test that panics fails, as it should"
    ),
    warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)
)]

mod addresses;
mod apply;
mod br_netfilter;
mod bridge;
mod control_sockets;
pub mod docker;
mod host;
mod inspect;
mod namespaces;
mod neighbours;
mod netlink;
mod others;
mod owners;
mod plan;
mod ports;
mod presence;
mod processes;
mod routing;
mod script;
mod settings;
mod snapshot;
mod stand_in;
pub mod tool;
mod tracking;
mod unguarded;
mod watch;

pub use addresses::{InterfaceAddress, interface_addresses};
pub use apply::{Applied, Removed, apply, remove};
pub use br_netfilter::has_come as br_netfilter_has_come;
pub use host::{Host, Interface};
pub use host::{PROBE_ALIAS, fits, user_number};
pub use inspect::{Counter, Status, status};
pub use namespaces::KINDS as STACKED_KINDS;
pub use plan::Plan;
pub use presence::{EnforcedLimits, Presence, Seal, is_any_there, presence};
pub use settings::{BetweenGuests, FirewallSettings, GuestLimits, ListenerAddresses, Pin, PlanInput};
pub use stand_in::{GuestEntry, admit, dismiss, guest_entries};
pub use tool::FirewallError;
pub use unguarded::{CONTAINER_CONTROL, HOST_NETWORK};
pub use watch::{
    AppliedState, Change, Events, Finding, FindingKind, GuardReport, GuardedInterface, Mended, applied_state, held,
    is_as_reported, keep_swept, mend, report,
};

/// Returns the tables of this machine's kernel that are too small for the guests of the configuration, one
/// sentence each with the line to write.
pub fn small_tables(input: &PlanInput) -> Vec<String> {
    if !input.firewall.is_wanted() {
        return Vec::new();
    }
    let mut found = neighbours::too_small(input.guests, 0, &neighbours::places());
    found.extend(tracking::too_small(input, input.guests, tracking::largest()));
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

#[cfg(test)]
#[path = "../../../tests/it/rights.rs"]
mod rights;
#[cfg(test)]
mod tests;
