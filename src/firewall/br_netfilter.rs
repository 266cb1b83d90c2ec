//! br_netfilter: with `net.bridge.bridge-nf-call-iptables` on, which Docker and Kubernetes set, what comes by a
//! bridge meets the prerouting chains from within the bridge and not again. The socket that `tproxy` gave the packet
//! is taken from it after that, in ip_rcv(); only the mark stays. So one chain more gives it the socket back, in the
//! moment between: at the place of br_netfilter's own hook, which ends the prerouting chains, and in front of it.
//!
//! Of two hooks at one place the kernel calls the younger one first (nf_hook_entries_grow()), and br_netfilter hooks
//! itself in once, with the first bridge of a network namespace. Hence the chain has to be younger than that: each
//! `apply` makes it anew, and the watcher does where br_netfilter came later. Without br_netfilter it has nothing to
//! do: no packet that arrives has the mark yet.

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
/// What its first rule says, by which one sees whether it is younger than br_netfilter.
pub(super) const YOUNGER: &str = "br_netfilter was there before this chain";
pub(super) const OLDER: &str = "br_netfilter was not there before this chain";

pub(super) fn write(plan: &Plan, script: &mut Script) {
    if plan.v4.transparent.is_none() && plan.v6.transparent.is_none() {
        return;
    }
    script.hook(CHAIN, "filter", "prerouting", PLACE);
    let others = format!("meta mark & {MARK_MASK:#010x} != {MARK_LISTENER:#010x} return");
    script.rule(others, if plan.here.filters_bridges { YOUNGER } else { OLDER });
    for (nfproto, doors) in families(plan) {
        let Some(transparent) = doors.transparent else { continue };
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

/// Is br_netfilter there and the chain that is in the kernel older? Not where there is no such chain. `came`: it was not
/// there a moment ago.
///
/// # Errors
/// [`FirewallError`] where what nft(8) prints cannot be read.
pub(super) fn is_older(host: &Host, came: bool) -> Result<bool, FirewallError> {
    if !host.filters_bridges {
        return Ok(false);
    }
    let items = match tool::listed(&["chain", "inet", TABLE, CHAIN], "to list the chain for br_netfilter") {
        // There is none in a ruleset without a transparent listener.
        Err(FirewallError::Refused { .. }) => return Ok(false),
        listed => listed?,
    };
    let says = |item: &Value| item.pointer("/rule/comment").and_then(Value::as_str) == Some(OLDER);
    // Unloaded and loaded again it is younger, whatever the chain says.
    Ok(came || items.iter().any(says))
}

/// Makes the chain anew, as the kernel has it and whatever configuration it came from.
///
/// # Errors
/// [`FirewallError`] where nft(8) refuses; the chain is as before then.
pub(super) fn renew() -> Result<(), FirewallError> {
    let printed = tool::run("nft", &["list", "chain", "inet", TABLE, CHAIN], "", "to list the chain for br_netfilter")?;
    let renewed = format!("delete chain inet {TABLE} {CHAIN}\n{}", printed.replace(OLDER, YOUNGER));
    tool::run("nft", &["-f", "-"], &renewed, "to make the chain for br_netfilter anew")?;
    Ok(())
}

impl Host {
    /// Was br_netfilter not there at this look, and is it at the `later` one?
    pub fn sees_br_netfilter_come(&self, later: &Host) -> bool {
        !self.filters_bridges && later.filters_bridges
    }
}

/// Has br_netfilter come since this machine was looked at?
pub fn has_come(host: &Host) -> bool {
    !host.filters_bridges && host.links.iter().any(|link| link.is_bridge) && host::has_br_netfilter()
}
