//! br_netfilter: with `net.bridge.bridge-nf-call-iptables` on, which Docker and Kubernetes set, a packet from a
//! bridge passes the prerouting chains from within the bridge and not again. The socket that `tproxy` assigned to
//! the packet is removed after that, in ip_rcv(); only the mark stays. So one more chain assigns the socket again,
//! at the moment in between: at the place of br_netfilter's own hook, which ends the prerouting chains, and before
//! it.
//!
//! Of two hooks at one place, the kernel calls the younger one first (nf_hook_entries_grow()), and br_netfilter
//! registers its hook once, with the first bridge of a network namespace. Hence the chain has to be younger than
//! that hook: each `apply` creates it anew, and the watcher does so if br_netfilter was loaded later. Without
//! br_netfilter the chain has no effect: no arriving packet has the mark yet.

use super::host::{self, Host};
use super::plan::Plan;
use super::script::{Script, families, from_guests, target};
use super::tool::{self, FirewallError};
use super::{MARK_LISTENER, MARK_MASK, TABLE};
use serde_json::Value;

/// Where br_netfilter ends the chains of prerouting: NF_IP_PRI_FIRST.
const PLACE: i32 = i32::MIN;
/// The chain in table inet.
const CHAIN: &str = "again_from_bridges";
/// The comment of its first rule, which shows whether it is younger than br_netfilter.
pub(super) const YOUNGER: &str = "br_netfilter was there before this chain";
pub(super) const OLDER: &str = "br_netfilter was not there before this chain";

pub(super) fn write(plan: &Plan, script: &mut Script) {
    if plan.v4.transparent.is_none() && plan.v6.transparent.is_none() {
        return;
    }
    script.hook(CHAIN, "filter", "prerouting", PLACE);
    let others = format!("meta mark & {MARK_MASK:#010x} != {MARK_LISTENER:#010x} return");
    script.rule(others, if plan.here.filters_bridges { YOUNGER } else { OLDER });
    for (nfproto, listeners) in families(plan) {
        let Some(transparent) = listeners.transparent else { continue };
        let family = if transparent.is_ipv4() { "ip" } else { "ip6" };
        script.rule(
            format!(
                "{} meta nfproto {nfproto} meta l4proto tcp tproxy {family} to {} accept",
                from_guests(plan),
                target(transparent)
            ),
            "[listen].transparent, once more: br_netfilter loses the socket",
        );
    }
    script.end_chain();
}

/// Returns whether br_netfilter is loaded and the chain in the kernel is older than it; false if there is no such
/// chain. `came`: br_netfilter was not loaded a moment ago.
///
/// # Errors
/// [`FirewallError`] if the output of nft(8) cannot be read.
pub(super) fn is_older(host: &Host, came: bool) -> Result<bool, FirewallError> {
    if !host.filters_bridges {
        return Ok(false);
    }
    let items = match tool::listed(&["chain", "inet", TABLE, CHAIN], "to list the chain for br_netfilter") {
        // A ruleset without a transparent listener has no such chain.
        Err(FirewallError::Refused { .. }) => return Ok(false),
        listed => listed?,
    };
    let says = |item: &Value| item.pointer("/rule/comment").and_then(Value::as_str) == Some(OLDER);
    // After an unload and reload, br_netfilter is younger, whatever the chain's comment is.
    Ok(came || items.iter().any(says))
}

/// Creates the chain anew, with its rules as they are in the kernel, from whatever configuration.
///
/// # Errors
/// [`FirewallError`] if nft(8) refuses; the chain then stays unchanged.
pub(super) fn renew() -> Result<(), FirewallError> {
    let printed = tool::run("nft", &["list", "chain", "inet", TABLE, CHAIN], "", "to list the chain for br_netfilter")?;
    let renewed = format!("delete chain inet {TABLE} {CHAIN}\n{}", printed.replace(OLDER, YOUNGER));
    tool::run("nft", &["-f", "-"], &renewed, "to make the chain for br_netfilter anew")?;
    Ok(())
}

impl Host {
    /// Returns whether br_netfilter was absent at this look and is present at the `later` one.
    pub fn sees_br_netfilter_come(&self, later: &Host) -> bool {
        !self.filters_bridges && later.filters_bridges
    }
}

/// Returns whether br_netfilter was loaded since this machine was inspected.
pub fn has_come(host: &Host) -> bool {
    !host.filters_bridges && host.links.iter().any(|link| link.is_bridge) && host::has_br_netfilter()
}
