//! The ruleset as text for nft(8): table `inet outgate`, table `inet outgate_timeouts` from `tracking`, table
//! `bridge outgate` from `bridge` and table `arp outgate` from `neighbours`. All are replaced in one transaction,
//! which `nft -f` makes of its input; but the second keeps its objects, which connection tracking entries point
//! to. Every rule has its comment, which `nft list` also shows.
//!
//! A guest's packet passes, in this order: `sources` (before connection tracking: does the source belong to it?),
//! `neighbours` (is its address one too many?), `untracked` (may it have an entry there?), `arrivals` (where may
//! it go? TCP is assigned to the transparent listener here), `queries` (DNS, by NAT), then `input` or `forwarded`,
//! which accept what was admitted and nothing else.

use super::plan::{DirectListener, FamilyListeners, Plan};
use super::presence::{CANARY, EnforcedLimits};
use super::{MARK_LISTENER, MARK_MASK, MARK_PINNED, MARK_REPLY, TABLE, br_netfilter, bridge, neighbours, tracking};
use std::fmt::Display;
use std::net::{SocketAddr, SocketAddrV4};

/// Chains with their rules, under construction.
#[derive(Default)]
pub(super) struct Script {
    text: String,
}

impl Script {
    /// Opens a table that replaces an existing one.
    pub(super) fn table(&mut self, family: &str) {
        self.no_table(family, TABLE);
        self.text.push_str(&format!("table {family} {TABLE} {{\n"));
    }

    /// Deletes a table if it exists.
    pub(super) fn no_table(&mut self, family: &str, name: &str) {
        // Adding an existing table changes nothing, so the delete never fails.
        self.text.push_str(&format!("table {family} {name}\ndelete table {family} {name}\n"));
    }

    /// Opens a table whose rules are replaced, and whose objects stay.
    pub(super) fn lasting_table(&mut self, family: &str, name: &str) {
        let table = format!("{family} {name}");
        self.text.push_str(&format!("table {table}\nflush table {table}\ntable {table} {{\n"));
    }

    pub(super) fn set(&mut self, name: &str, kind: &str, comment: &str) {
        self.text.push_str(&format!(
            "\t# {comment}\n\tset {name} {{\n\t\ttype {kind}\n\t\tsize 65536\n\t\tflags dynamic,timeout\n\t\ttimeout 5m\n\t}}\n\n"
        ));
    }

    /// Writes a set whose elements others than packets change. They stay; the flag says that they are not compared.
    pub(super) fn kept_set(&mut self, name: &str, kind: &str, comment: &str) {
        self.text.push_str(&format!("\t# {comment}\n\tset {name} {{\n\t\t{kind}\n\t\tflags timeout\n\t}}\n\n"));
    }

    /// Writes a set of names that `apply` and the watcher change.
    pub(super) fn interfaces(&mut self, name: &str, members: &[String], comment: &str) {
        self.text.push_str(&format!("\t# {comment}\n\tset {name} {{\n\t\ttype ifname\n"));
        if !members.is_empty() {
            self.text.push_str(&format!("\t\telements = {}\n", names(members)));
        }
        self.text.push_str("\t}\n\n");
    }

    /// Writes the lifetimes of connection tracking entries in seconds, by state; returns the name to refer to it.
    /// The name contains the values, because an existing object cannot be changed.
    pub(super) fn timeouts(&mut self, name: &str, protocol: &str, states: &[(&str, u64)]) -> String {
        let name = states.iter().fold(format!("{name}_{protocol}"), |name, (_, seconds)| format!("{name}_{seconds}"));
        let states: Vec<String> = states.iter().map(|(state, seconds)| format!("{state} : {seconds}")).collect();
        // It applies to both families; nft requires one to be named.
        self.text.push_str(&format!(
            "\tct timeout {name} {{\n\t\tprotocol {protocol};\n\t\tl3proto ip;\n\t\tpolicy = {{ {} }};\n\t}}\n\n",
            states.join(", ")
        ));
        name
    }

    /// Opens a chain that other chains call.
    pub(super) fn chain(&mut self, name: &str) {
        self.text.push_str(&format!("\tchain {name} {{\n"));
    }

    /// Opens a chain that the kernel calls.
    pub(super) fn hook(&mut self, name: &str, kind: &str, hook: &str, priority: i32) {
        self.chain(name);
        self.text.push_str(&format!("\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n"));
    }

    /// Writes a rule; the comment has 128 bytes at most and no quotes.
    pub(super) fn rule(&mut self, rule: impl Display, comment: impl Display) {
        self.text.push_str(&format!("\t\t{rule} comment \"{comment}\"\n"));
    }

    pub(super) fn end_chain(&mut self) {
        self.text.push_str("\t}\n\n");
    }

    pub(super) fn end_table(&mut self) {
        while self.text.ends_with("\n\n") {
            self.text.pop();
        }
        self.text.push_str("}\n");
    }
}

/// Returns the whole ruleset.
pub(super) fn write(plan: &Plan) -> String {
    let mut script = Script::default();
    tracking::write_lifetimes(plan, &mut script);
    script.table("inet");
    tracking::write(plan, &mut script);
    if !plan.guests.is_empty() {
        between(plan, &mut script);
        neighbours::write(plan, &mut script);
        sources(plan, &mut script);
        listeners(plan, &mut script);
        arrivals(plan, &mut script);
        queries(plan, &mut script);
        br_netfilter::write(plan, &mut script);
        leftovers(plan, &mut script);
    }
    refused(&mut script);
    users(plan, &mut script);
    script.end_table();
    bridge::write(plan, &mut script);
    neighbours::write_arp(plan, &mut script);
    script.text
}

/// Returns the script that removes all tables.
pub(super) fn nothing(plan: &Plan) -> String {
    let mut script = Script::default();
    plan.tables().for_each(|(family, name)| script.no_table(family, name));
    script.text
}

/// Returns `{ a, b }`, each quoted.
pub(super) fn names<'n>(names: impl IntoIterator<Item = &'n String>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

/// Returns `{ a, b }`.
pub(super) fn set<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("{{ {} }}", items.join(", "))
}

/// Returns the statement that writes `mark` into outgate's bits.
pub(super) fn marked(mark: u32) -> String {
    format!("meta mark set meta mark & {:#010x} | {mark:#010x}", !MARK_MASK)
}

pub(super) fn has_mark(mark: u32) -> String {
    format!("meta mark & {MARK_MASK:#010x} == {mark:#010x}")
}

pub(super) fn from_guests(plan: &Plan) -> String {
    format!("iifname {}", names(&plan.guests))
}

/// Silently drops packets with a spoofed source, or a destination that does not match the frame: the owner of the
/// address did not send the packet, or nobody was addressed.
fn sources(plan: &Plan, script: &mut Script) {
    script.interfaces(PORTS, &plan.ports, "the ports of guests' bridges");
    script.hook("sources", "filter", "prerouting", -300);
    frames(script);
    script.rule(format!("{} goto sources_of_guests", from_guests(plan)), GUESTS);
    pinned_sources(plan, "", script);
    script.end_chain();
    script.chain("sources_of_guests");
    // Only for guests: clusters that share an address do this on purpose.
    for addressed in ["ip daddr != 224.0.0.0/4 fib daddr type != broadcast", "ip6 daddr != ff00::/8"] {
        script.rule(
            format!("meta pkttype {{ broadcast, multicast }} {addressed} counter drop"),
            "a packet for one address in a frame for many (RFC 1122 section 3.3.6)",
        );
    }
    let martian = "a loopback address from outside";
    for (field, range) in
        [("ip saddr", "127.0.0.0/8"), ("ip6 saddr", "::1"), ("ip daddr", "127.0.0.0/8"), ("ip6 daddr", "::1")]
    {
        script.rule(format!("{field} {range} counter drop"), martian);
    }
    pinned_sources(plan, &format!("{} accept", has_mark(MARK_PINNED)), script);
    script.rule(format!("{UNSPECIFIED_ND} accept"), "IPv6: is this address taken? (RFC 4862)");
    if plan.allow_dhcp {
        script.rule(format!("{DHCP_UNSPECIFIED} accept"), "DHCP before there is an address");
    }
    script.rule(
        "fib saddr . iif oif missing counter drop",
        "spoofed: the way back to the source is another interface, or none",
    );
    script.end_chain();
    for (n, (interface, pinned)) in plan.pinned.iter().enumerate() {
        script.chain(&format!("guest_{n}"));
        let whose = pinned.label(interface);
        for (field, nets) in [("ip saddr", pinned.v4_text()), ("ip6 saddr", pinned.v6_text())] {
            if !nets.is_empty() {
                script.rule(format!("{field} {} accept", set(nets)), &whose);
            }
        }
        script.rule(format!("{UNSPECIFIED_ND} accept"), "IPv6: is this address taken? (RFC 4862)");
        let local = if plan.allow_dhcp { ND_AND_SOLICITATION } else { ND };
        script.rule(
            format!("ip6 saddr fe80::/10 {local} accept"),
            "IPv6 neighbour discovery from its link-local address",
        );
        if plan.allow_dhcp {
            script.rule(format!("ip6 saddr fe80::/10 {DHCPV6} accept"), "DHCPv6 from its link-local address");
            script.rule(format!("{DHCP_UNSPECIFIED} accept"), "DHCP before there is an address");
        }
        script.rule("counter drop", format!("spoofed: not an address of {whose}"));
        script.end_chain();
    }
}

/// Restricts the addresses of a guest with its own interface to that interface, except for packets that are
/// already `checked`.
fn pinned_sources(plan: &Plan, checked: &str, script: &mut Script) {
    if plan.pinned.is_empty() {
        return;
    }
    let chains = plan.pinned.keys().enumerate().map(|(n, name)| format!("\"{name}\" : goto guest_{n}"));
    script.rule(format!("iifname vmap {}", set(chains)), "guests with an interface of their own");
    if !checked.is_empty() {
        script.rule(checked, "checked on its bridge port");
    }
    let (v4, v6) = plan.pinned_addresses();
    for (field, nets) in [("ip saddr", v4), ("ip6 saddr", v6)] {
        if !nets.is_empty() {
            let rule = format!("iifname != \"lo\" {field} {} counter drop", set(nets));
            script.rule(rule, "spoofed: the address of a guest that has another interface");
        }
    }
}

/// Drops frames for link-local MACs (IEEE 802.1Q section 8.6.3). A bridge passes them to this machine as the
/// port's own, not as the bridge's, so that no rule about guests would see them.
fn frames(script: &mut Script) {
    // Matched by the MAC and on every interface, because a port that is younger than the ruleset has no name in
    // it.
    script.rule(
        "ether daddr 01:80:c2:00:00:00-01:80:c2:00:00:0f counter drop",
        "a frame for the next bridge; IP is never in one",
    );
    script.rule(format!("iifname @{PORTS} counter drop"), "guests' packets arrive on the bridge, never on its port");
}

/// Writes what guests may reach of this machine by its own addresses.
fn listeners(plan: &Plan, script: &mut Script) {
    script.chain("listeners");
    script.rule(
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 counter accept",
        "IPv6 neighbour discovery, never from beyond the link",
    );
    if plan.allow_dhcp {
        script.rule("icmpv6 type nd-router-solicit ip6 hoplimit 255 counter accept", "router solicitation");
        script.rule("udp sport 68 udp dport 67 counter accept", "DHCP");
        script.rule(format!("{DHCPV6} counter accept"), "DHCPv6");
    }
    for listener in plan.v4.open.iter().chain(&plan.v6.open) {
        open(listener, "counter accept", script);
    }
    script.end_chain();
}

fn open(listener: &DirectListener, verdict: &str, script: &mut Script) {
    let protocols: &[&str] = if listener.udp { &["tcp", "udp"] } else { &["tcp"] };
    for protocol in protocols {
        let rule = format!("{} {protocol} dport {} {verdict}", to_address(listener.address), listener.address.port());
        script.rule(rule, format!("[listen].{}", listener.key));
    }
}

/// Returns the match for a listener's address; an unspecified one matches every local address of its family.
pub(super) fn to_address(address: SocketAddr) -> String {
    match (address.ip().is_unspecified(), address) {
        (false, SocketAddr::V4(v4)) => format!("ip daddr {}", v4.ip()),
        (false, SocketAddr::V6(v6)) => format!("ip6 daddr {}", v6.ip()),
        (true, SocketAddr::V4(_)) => "meta nfproto ipv4 fib daddr type local".to_owned(),
        (true, SocketAddr::V6(_)) => "meta nfproto ipv6 fib daddr type local".to_owned(),
    }
}

/// Writes the chains for packets between guests of one network, where that is allowed: with br_netfilter they pass the
/// chains of this table from within the bridge. A packet that one sends through this machine's address to the other
/// is not forwarded all the same, by the routing rule of its interface.
fn between(plan: &Plan, script: &mut Script) {
    if !plan.allows_between_any() {
        return;
    }
    for (chain, verdict) in [("between_guests", "counter accept"), ("between_guests_untracked", "notrack accept")] {
        script.chain(chain);
        for entry in &plan.between {
            let of = format!("iifname \"{}\"", entry.interface);
            if entry.is_allowed {
                // The second field is the interface by which the destination must be reached.
                script.rule(format!("{of} fib daddr . iif oif exists {verdict}"), "to another guest of its network");
                script.rule(format!("{of} {ND} ip6 daddr ff02::/16 {verdict}"), "who has that guest's address");
            }
            script.rule(format!("{of} return"), "and no more, or not at all");
        }
        script.end_chain();
    }
}

/// Writes the jump to a chain of `between`.
pub(super) fn pass_between(plan: &Plan, chain: &str, script: &mut Script) {
    if plan.allows_between_any() {
        script.rule(format!("jump {chain}"), "[[interface]].between_guests");
    }
}

/// Writes where guests' packets may go, decided before routing.
fn arrivals(plan: &Plan, script: &mut Script) {
    script.chain("admitted");
    script.rule("jump listeners", "this machine's own addresses: these listeners");
    script.rule("fib daddr type local goto refused", "and nothing else of this machine");
    if plan.allow_inbound_replies {
        script.rule(tracking::STRAYS, "TCP that no socket here knows, and that answers nothing");
    }
    for (nfproto, listeners) in families(plan) {
        let Some(transparent) = listeners.transparent else { continue };
        let family = if transparent.is_ipv4() { "ip" } else { "ip6" };
        script.rule(
            format!(
                "meta nfproto {nfproto} meta l4proto tcp tproxy {family} to {} {} counter accept",
                target(transparent),
                marked(MARK_LISTENER)
            ),
            "[listen].transparent; without a listener the next rules refuse",
        );
    }
    script.rule("goto refused", "whatever else");
    script.end_chain();

    script.chain("arrivals_of_guests");
    pass_between(plan, "between_guests", script);
    if plan.allow_inbound_replies {
        script.rule(
            format!("ct direction reply ct state established {} counter accept", marked(MARK_REPLY)),
            "answers to connections that came from outside",
        );
    }
    for (nfproto, listeners) in families(plan) {
        if listeners.dns.is_some() {
            let rule = format!("meta nfproto {nfproto} meta l4proto {{ tcp, udp }} th dport 53 counter accept");
            script.rule(rule, "DNS, to whatever server: brought to [listen].dns below");
        }
    }
    script.rule("goto admitted", "all else of guests'");
    script.end_chain();
    script.hook("arrivals", "filter", "prerouting", -150);
    script.rule(format!("{} goto arrivals_of_guests", from_guests(plan)), GUESTS);
    script.end_chain();
}

/// Redirects queries to any server to the DNS listener.
fn queries(plan: &Plan, script: &mut Script) {
    script.hook("queries", "nat", "prerouting", -100);
    let guests = from_guests(plan);
    for (nfproto, listeners) in families(plan) {
        let Some(dns) = listeners.dns else { continue };
        // A guest that asks one of several listeners directly gets that one.
        for listener in listeners.open.iter().filter(|listener| listener.udp && listener.address.port() == 53) {
            let rule =
                format!("{guests} {} meta l4proto {{ tcp, udp }} th dport 53 accept", to_address(listener.address));
            script.rule(rule, "asked directly");
        }
        script.rule(
            format!("{guests} meta nfproto {nfproto} meta l4proto {{ tcp, udp }} th dport 53 {}", brought(dns)),
            "any server a guest asks is [listen].dns",
        );
    }
    script.end_chain();
}

/// Writes the rules after routing: to this machine only what was admitted, and no forwarding.
fn leftovers(plan: &Plan, script: &mut Script) {
    let guests = from_guests(plan);
    script.chain("input_of_guests");
    if plan.allow_inbound_replies {
        let rule = "ct direction reply ct state established counter accept";
        script.rule(rule, "answers to connections that this machine opened");
    }
    script
        .rule(format!("{} socket transparent 1 accept", has_mark(MARK_LISTENER)), "handed to the transparent listener");
    script.rule("jump listeners", "listeners for guests");
    script.rule("goto refused", "nothing else of this machine");
    script.end_chain();
    script.hook("input", "filter", "input", -10);
    script.rule(format!("{guests} goto input_of_guests"), GUESTS);
    script.end_chain();

    script.hook(FORWARDED, "filter", "forward", -10);
    if plan.allow_inbound_replies {
        script.rule(
            format!(
                "{guests} oifname != {} {} ct direction reply ct state established counter accept",
                names(&plan.guests),
                has_mark(MARK_REPLY)
            ),
            "answers to connections that came from outside, never to other guests",
        );
    }
    pass_between(plan, "between_guests", script);
    script.rule(format!("{guests} goto refused"), "nothing passes by itself");
    script.end_chain();
}

/// Writes the refusals: they are sent at once (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1) and counted by
/// protocol.
fn refused(script: &mut Script) {
    script.chain("refused");
    script.rule(
        "fib daddr type { broadcast, multicast } counter drop",
        "nobody listens, and such packets must not be answered (RFC 1122)",
    );
    script.rule("meta l4proto tcp counter reject with tcp reset", "refused: TCP");
    for (protocol, label) in [("udp", "UDP"), ("icmp", "ICMP"), ("icmpv6", "ICMPv6")] {
        let rule = format!("meta l4proto {protocol} counter reject with icmpx type admin-prohibited");
        script.rule(rule, format!("refused: {label}"));
    }
    script.rule("counter reject with icmpx type admin-prohibited", "refused: other protocols");
    script.end_chain();
}

/// Writes the rules for sockets of this machine's users; and the canary, which lets an unprivileged daemon detect
/// the ruleset.
fn users(plan: &Plan, script: &mut Script) {
    script.hook("sockets", "filter", "output", 0);
    let canary = |at: SocketAddrV4| format!("{} . {}", at.ip(), at.port());
    let canaries =
        [CANARY, plan.seal.address()].into_iter().chain(EnforcedLimits::from(plan.rations).addresses()).map(canary);
    script.rule(
        format!("meta l4proto udp ip daddr . udp dport {} drop", set(canaries)),
        "by these outgate knows that it is in place, and from what configuration and limits",
    );
    if plan.users.is_empty() {
        return script.end_chain();
    }
    let theirs = format!("meta skuid {}", set(&plan.users));
    script.rule(format!("{theirs} goto users"), "[firewall].host_users");
    script.end_chain();

    script.chain("users");
    if plan.allow_inbound_replies {
        let rule = "ct direction reply ct state established counter accept";
        script.rule(rule, "answers to connections that came from outside");
    }
    for (_, listeners) in families(plan) {
        for listener in &listeners.user_open {
            open(listener, "counter accept", script);
        }
        for (listener, protocols, key) in
            [(listeners.redirect, "tcp", "redirect"), (listeners.user_dns, "{ tcp, udp }", "dns")]
        {
            let Some(address) = listener else { continue };
            let rule = format!(
                "ct status dnat {} meta l4proto {protocols} th dport {} counter accept",
                to_address(address),
                address.port()
            );
            script.rule(rule, format!("brought to [listen].{key}"));
        }
    }
    script.rule("goto refused", "other UDP, other protocols, loopback");
    script.end_chain();

    script.hook("user_sockets", "nat", "output", -100);
    script.rule(format!("{theirs} goto user_connections"), "[firewall].host_users");
    script.end_chain();
    script.chain("user_connections");
    for (nfproto, listeners) in families(plan) {
        for listener in &listeners.user_open {
            open(listener, "accept", script);
        }
        if let Some(dns) = listeners.user_dns {
            let rule = format!("meta nfproto {nfproto} meta l4proto {{ tcp, udp }} th dport 53 {}", brought(dns));
            script.rule(rule, "any server they ask is [listen].dns");
        }
        if let Some(redirect) = listeners.redirect {
            let rule = format!("meta nfproto {nfproto} meta l4proto tcp {}", brought(redirect));
            script.rule(rule, "[listen].redirect");
        }
    }
    script.end_chain();
}

pub(super) fn families(plan: &Plan) -> [(&'static str, &FamilyListeners); 2] {
    [("ipv4", &plan.v4), ("ipv6", &plan.v6)]
}

/// Returns the listener in the syntax of `tproxy`; an unspecified address means the interface's own.
pub(super) fn target(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { format!(":{}", address.port()) } else { address.to_string() }
}

/// Returns the NAT statement that redirects to a listener.
fn brought(listener: SocketAddr) -> String {
    match listener {
        _ if listener.ip().is_unspecified() => format!("counter redirect to :{}", listener.port()),
        SocketAddr::V4(_) => format!("counter dnat ip to {listener}"),
        SocketAddr::V6(_) => format!("counter dnat ip6 to {listener}"),
    }
}

/// The chain of table inet that prevents forwarding for guests.
pub(super) const FORWARDED: &str = "forwarded";
/// The comment of the rule that sends guests' packets to their own chain: all others pass with one comparison.
pub(super) const GUESTS: &str = "what guests send";

/// The set of bridge ports in table inet.
pub(super) const PORTS: &str = "ports";

/// Neighbour discovery (RFC 4861 section 7.1: the hop limit proves that no router passed it on).
const ND: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255";
const ND_AND_SOLICITATION: &str =
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 hoplimit 255";
const UNSPECIFIED_ND: &str = "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit } ip6 hoplimit 255";
const DHCP_UNSPECIFIED: &str = "ip saddr 0.0.0.0 udp sport 68 udp dport 67";
const DHCPV6: &str = "udp sport 546 udp dport 547 ip6 daddr { ff02::1:2, fe80::/10 }";
