//! Connection tracking: there is one table for the whole machine, and a guest that fills it takes everybody off
//! the network. So only the necessary entries exist for guests: port 53, whose queries NAT redirects to
//! [listen].dns. All other traffic of theirs is not tracked; it meets a socket of this machine or is refused.
//!
//! Counting entries (`ct count`) would not limit them: it omits those of ended connections, an entry can be
//! revived by packets that are not a connection's first, and each new one traverses a list of all. The limit for
//! port 53 is packets a second before tracking, times the seconds that an entry lives after the last packet, in
//! whatever state; a packet that keeps an entry alive is counted too.

mod rations;

pub(super) use rations::{Rations, largest, too_small};

use super::plan::{DirectListener, Plan, Scope};
use super::script::{GUESTS, Script, from_guests, has_mark, marked, names, pass_between, set, to_address};
use super::{MARK_CROWDED, TIMEOUTS, bridge, tool};

/// After `sources`, before tracking (-200).
const BEFORE: i32 = -290;
/// After tracking, before NAT (-100).
const AFTER: i32 = -190;
/// In table bridge, after `arriving`.
const BRIDGED: i32 = bridge::PRIORITY + 1;

/// Packets of TCP to port 53 that a guest may send a second: about 40 connections with a query each. Excess
/// packets are dropped, and TCP sends them again.
const TCP_RATE: u32 = 400;
/// The guests of one bridge together may send as much as this many single guests; each of its ports has its own
/// share.
const OF_A_BRIDGE: u32 = 64;
/// The set of guests' bridges.
pub(super) const BRIDGES: &str = "guest_bridges";

/// Lifetimes, in seconds, of an entry of TCP to port 53 in each state. A connection that is idle for longer gets a
/// new entry at the guest's next packet.
const NAMES_TCP: [(&str, u32); 8] = [
    ("syn_sent", 3),
    ("syn_recv", 2),
    ("established", 5),
    ("fin_wait", 5),
    ("close_wait", 5),
    ("last_ack", 3),
    ("time_wait", 1),
    ("close", 1),
];
/// Lifetime, in seconds, of the entry of an ended connection that the daemon or a host user opened. The kernel's
/// own two minutes would be 24,000 entries at 200 connections a second.
const ENDED: u32 = 3;
/// The same for an unanswered connection: a dead server would cause 60,000 at 500 connections a second.
const UNANSWERED: u32 = 10;
/// The same for a host user's connection that one side has ended: the other side can stay open for as long as it
/// likes.
const HALF_ENDED: u32 = 30;

/// Writes the sets and chains of table inet.
pub(super) fn write(plan: &Plan, script: &mut Script) {
    if !plan.users.is_empty() {
        beginning(plan, script);
    }
    if plan.guests.is_empty() {
        return;
    }
    script.interfaces(BRIDGES, &plan.here.bridges, "guests' interfaces that are bridges");
    names_shares(plan, script);
    arriving(plan, script);
    if plan.allow_inbound_replies {
        strays(plan, script);
    }
    answers(plan, script);
}

/// Returns the matches for traffic to the DNS listener, direct or by NAT: the only guests' traffic that is
/// tracked.
fn queries(plan: &Plan) -> Vec<String> {
    let mut matches = Vec::new();
    for (nfproto, listeners) in [("ipv4", &plan.v4), ("ipv6", &plan.v6)] {
        if listeners.dns.is_some() {
            matches.push(format!("meta nfproto {nfproto} meta l4proto {{ tcp, udp }} th dport 53"));
        }
        for listener in listeners.open.iter().filter(|listener| listener.udp && listener.address.port() != 53) {
            let port = listener.address.port();
            matches.push(format!("{} meta l4proto {{ tcp, udp }} th dport {port}", to_address(listener.address)));
        }
    }
    matches
}

/// Returns the match for answers of the DNS listener, which NAT gives the address of the server that was asked.
fn replies(plan: &Plan) -> Option<String> {
    let ports = ports_of(plan.v4.open.iter().chain(&plan.v6.open), &[]);
    (!ports.is_empty()).then(|| format!("meta l4proto {{ tcp, udp }} th sport {} fib saddr type local", set(ports)))
}

fn arriving(plan: &Plan, script: &mut Script) {
    script.chain("untracked_of_guests");
    pass_between(plan, "between_guests_untracked", script);
    for query in queries(plan) {
        script.rule(format!("{query} goto names"), "DNS, which NAT brings to [listen].dns");
    }
    let why = "no entry in connection tracking: it meets a socket of this machine's, or is refused";
    if plan.allow_inbound_replies {
        // Answers to connections from outside are distinguished by their entry.
        script.rule("tcp flags & (fin | syn | rst | ack) == syn notrack", why);
        script.rule("meta l4proto tcp socket transparent 1 notrack", why);
        for listener in plan.v4.open.iter().chain(&plan.v6.open).filter(|listener| !listener.udp) {
            let to = to_address(listener.address);
            script.rule(format!("{to} tcp dport {} notrack", listener.address.port()), why);
        }
        if plan.allow_dhcp {
            script.rule("udp dport { 67, 547 } notrack", "DHCP takes no entry");
        }
    } else {
        script.rule("notrack", why);
    }
    script.end_chain();
    script.hook("untracked", "filter", "prerouting", BEFORE);
    script.rule(format!("{} goto untracked_of_guests", from_guests(plan)), GUESTS);
    script.end_chain();
}

/// Where tracked TCP that answers nothing is judged.
pub(super) const STRAYS: &str = "meta l4proto tcp ct state != untracked jump strays";

/// With `allow_inbound_replies`, a packet without a socket may be an answer to a connection from outside, so it is
/// tracked. If it is not, it is the end of a handshake by SYN cookie, or invalid: it passes within a small share,
/// under an entry that is gone after a second.
fn strays(plan: &Plan, script: &mut Script) {
    let kinds = [("tcp", TCP_RATE, TCP_RATE)];
    shares(plan, &Shares { group: "strays", kinds: &kinds, verdict: "return" }, script);
    script.rule("counter drop", "over its share of TCP that no socket knows: sent again later");
    script.end_chain();
}

/// How much of something each guest may send, from whatever address.
struct Shares<'s> {
    /// The chain that judges it.
    group: &'s str,
    /// Protocol, packets a second, and burst.
    kinds: &'s [(&'s str, u32, u32)],
    /// The verdict on packets within the share.
    verdict: &'s str,
}

/// Writes the sets and chains; the last chain stays open for packets over the share.
fn shares(plan: &Plan, shares: &Shares<'_>, script: &mut Script) {
    let Shares { group, kinds, verdict } = *shares;
    for (kind, ..) in kinds {
        script.set(&format!("{group}_{kind}"), "ifname", "how quickly it comes by each interface");
    }
    for n in 0..plan.pinned.len() {
        script.chain(&format!("{group}_{n}"));
        for (kind, rate, burst) in kinds {
            let rule = format!("meta l4proto {kind} {} {verdict}", limit(*rate, *burst));
            script.rule(rule, "within its guest's share");
        }
        script.rule(format!("goto {group}_over"), "over it");
        script.end_chain();
    }
    script.chain(group);
    for (field, is_v4) in [("ip saddr", true), ("ip6 saddr", false)] {
        let of = plan.pinned.values().enumerate().flat_map(|(n, pinned)| {
            let nets = if is_v4 { pinned.v4_text() } else { pinned.v6_text() };
            nets.into_iter().map(move |net| format!("{net} : goto {group}_{n}"))
        });
        let of: Vec<String> = of.collect();
        if !of.is_empty() {
            script.rule(format!("{field} vmap {}", set(of)), "guests with an interface have a share of their own");
        }
    }
    script.rule(format!("{} goto {group}_over", has_mark(MARK_CROWDED)), "its port is over its share");
    // There may be many guests behind a bridge; each of its ports has its own share, in table bridge.
    let by = format!("iifname @{BRIDGES} ");
    of_interface(shares, &by, OF_A_BRIDGE, script);
    script.rule(format!("{by}goto {group}_over"), "over it, or there is no place to count it");
    of_interface(shares, "", 1, script);
    script.rule(format!("goto {group}_over"), "over it, or there is no place to count it");
    script.end_chain();
    script.chain(&format!("{group}_over"));
}

fn of_interface(shares: &Shares<'_>, by: &str, many: u32, script: &mut Script) {
    let Shares { group, kinds, verdict } = *shares;
    for (kind, rate, burst) in kinds {
        let within = limit(rate.saturating_mul(many), burst.saturating_mul(many));
        let rule = format!("{by}meta l4proto {kind} update @{group}_{kind} {{ iifname {within} }} {verdict}");
        script.rule(rule, "within the share of its interface");
    }
}

fn names_shares(plan: &Plan, script: &mut Script) {
    let rations = plan.rations;
    let kinds = [("udp", rations.queries, rations.burst()), ("tcp", TCP_RATE, TCP_RATE)];
    shares(plan, &Shares { group: "names", kinds: &kinds, verdict: "accept" }, script);
    script.rule("meta l4proto tcp counter drop", "over its share of port 53: TCP, which sends it again");
    script.rule("counter goto refused", "over its share of port 53: UDP");
    script.end_chain();
}

fn limit(rate: u32, burst: u32) -> String {
    format!("limit rate {rate}/second burst {burst} packets")
}

fn to_guests(plan: &Plan) -> String {
    format!("oifname {}", names(&plan.guests))
}

/// Writes the rules for what this machine sends to guests.
fn answers(plan: &Plan, script: &mut Script) {
    script.chain("answers_to_guests");
    if let Some(replies) = replies(plan) {
        let why = "DNS: NAT gives it the address of the server that was asked";
        script.rule(format!("{replies} return"), why);
        script.rule("meta l4proto { icmp, icmpv6 } return", "and errors the query they are about");
    }
    let why = "no entry in connection tracking: what it answers has none";
    if plan.allow_inbound_replies {
        script.rule("meta l4proto tcp fib saddr type != local notrack", why);
        for listener in plan.v4.open.iter().chain(&plan.v6.open).filter(|listener| !listener.udp) {
            let from = to_address(listener.address).replace("daddr", "saddr");
            script.rule(format!("{from} tcp sport {} notrack", listener.address.port()), why);
        }
        if plan.allow_dhcp {
            script.rule("udp sport { 67, 547 } notrack", why);
        }
    } else {
        script.rule("notrack", why);
    }
    script.end_chain();
    script.hook("answers", "filter", "output", BEFORE);
    script.rule(format!("{} goto answers_to_guests", to_guests(plan)), "what guests are sent");
    script.end_chain();
}

/// Writes the lifetimes of entries: a separate table, whose rules are replaced and whose objects stay. If an
/// object is deleted, the kernel removes its times from the entries that point to it, and these get the kernel's
/// own, of days, at their next packet. The table also exists without any guest interface if there are host users.
pub(super) fn write_lifetimes(plan: &Plan, script: &mut Script) {
    if !plan.here.has_ct_timeouts || (plan.guests.is_empty() && !plan.host_opens()) {
        return script.no_table("inet", TIMEOUTS);
    }
    let seconds = |states: &[(&'static str, u32)]| -> Vec<(&'static str, u64)> {
        states.iter().map(|(state, seconds)| (*state, u64::from(*seconds))).collect()
    };
    let answered = seconds(&["unreplied", "replied"].map(|state| (state, plan.rations.patience)));
    script.lasting_table("inet", TIMEOUTS);
    let (mut names, mut strays) = ([const { String::new() }; 2], String::new());
    if !plan.guests.is_empty() {
        names = [script.timeouts("names", "udp", &answered), script.timeouts("names", "tcp", &seconds(&NAMES_TCP))];
        if plan.allow_inbound_replies {
            strays = script.timeouts("strays", "tcp", &seconds(&NAMES_TCP.map(|(state, _)| (state, 1))));
        }
    }
    let ended = u64::from(ENDED);
    let short = [("syn_sent", u64::from(UNANSWERED)), ("time_wait", ended), ("close", ended)];
    let opened: Vec<(&str, u64)> = [("established", plan.rations.idle)].into_iter().chain(short).collect();
    let begun = ["fin_wait", "close_wait"].map(|state| (state, u64::from(HALF_ENDED)));
    let begun: Vec<(&str, u64)> = opened.iter().copied().chain([("last_ack", ended)]).chain(begun).collect();
    let mut own = Vec::new();
    for (users, name, tcp, comment) in [
        (plan.here.daemon.iter().collect::<Vec<_>>(), "opened", opened, "what the daemon opens"),
        (plan.users.iter().collect(), "begun", begun, "what a host user begins"),
    ] {
        if !users.is_empty() {
            let objects = [script.timeouts(name, "udp", &answered), script.timeouts(name, "tcp", &tcp)];
            own.push((format!("meta skuid {}", set(users)), objects, comment));
        }
    }
    let new = |script: &mut Script, which: &str, objects: &[String; 2], comment: &str| {
        for (kind, object) in ["udp", "tcp"].iter().zip(objects) {
            let rule = format!("{which} ct state new meta l4proto {kind} ct timeout set \"{object}\"");
            script.rule(rule, comment);
        }
    };
    script.chain("lifetimes_of_guests");
    if !plan.guests.is_empty() {
        for query in queries(plan) {
            new(script, &query, &names, "DNS");
        }
    }
    if !strays.is_empty() {
        let others = format!("tcp dport != {}", set(query_ports(plan)));
        script.rule(format!("{others} ct state new ct timeout set \"{strays}\""), "TCP that answers nothing");
    }
    script.end_chain();
    script.hook("lifetimes", "filter", "prerouting", AFTER);
    if !plan.guests.is_empty() {
        script.rule(format!("{} goto lifetimes_of_guests", from_guests(plan)), GUESTS);
    }
    script.end_chain();
    script.hook("own_lifetimes", "filter", "output", AFTER);
    if let Some(replies) = replies(plan).filter(|_| !plan.guests.is_empty()) {
        let to = to_guests(plan);
        new(script, &format!("{to} {replies}"), &names, "DNS, answered after its entry was gone");
    }
    for (users, objects, comment) in &own {
        new(script, users, objects, comment);
    }
    script.end_chain();
    script.end_table();
}

/// Returns lines that remove the chains of that table, to precede the ruleset: they may be from another version,
/// with other priorities, which cannot be changed.
pub(super) fn without_chains() -> String {
    let Ok(items) = tool::listed(&["table", "inet", TIMEOUTS], "to list its table") else { return String::new() };
    let chains = items.iter().filter_map(|item| item.get("chain")?.get("name")?.as_str());
    let chains: String = chains.map(|name| format!("delete chain inet {TIMEOUTS} {name}\n")).collect();
    format!("flush table inet {TIMEOUTS}\n{chains}")
}

/// Writes how much host users may begin: NAT redirects them to the listeners, so all of theirs is tracked. It is
/// counted by user. The daemon's limits are half of what passes here, so that the daemon is the one that reports
/// an exceeded limit.
fn beginning(plan: &Plan, script: &mut Script) {
    let rations = plan.rations;
    // Direct queries are not redirected, and have entries in any case.
    let asked = set(ports_of(plan.v4.user_open.iter().chain(&plan.v6.user_open), &[53]));
    let queries = format!("meta l4proto udp th dport {asked}");
    let kinds = [
        ("tcp", "tcp flags & (fin | syn | rst | ack) == syn", limit(rations.begun, rations.begun), "new connections"),
        (
            "udp",
            queries.as_str(),
            limit(rations.queries.saturating_mul(2), rations.burst().saturating_mul(2)),
            "queries",
        ),
    ];
    for (kind, ..) in &kinds {
        script.set(&format!("begun_{kind}"), "uid", "how quickly each host user begins something");
    }
    script.hook("beginning", "filter", "output", BEFORE);
    let users = format!("meta skuid {}", set(&plan.users));
    for (kind, which, within, what) in kinds {
        let rule = format!("{users} {which} update @begun_{kind} {{ meta skuid {within} }} accept");
        script.rule(rule, "within the user's share");
        script.rule(format!("{users} {which} counter drop"), format!("over its share of {what}: sent again later"));
    }
    script.end_chain();
}

/// Returns the ports of DNS listeners, and the port that all DNS is redirected from.
fn query_ports(plan: &Plan) -> Vec<u16> {
    ports_of(plan.v4.open.iter().chain(&plan.v6.open), &[53])
}

/// Returns the ports of the DNS listeners among these, and some more, in order and each once.
fn ports_of<'d>(listeners: impl Iterator<Item = &'d DirectListener>, more: &[u16]) -> Vec<u16> {
    let dns = listeners.filter(|listener| listener.udp).map(|listener| listener.address.port());
    let mut ports: Vec<u16> = dns.chain(more.iter().copied()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Writes the chains of table bridge: what each port of an undeclared guest may send to port 53. The address is
/// not a criterion here, because such a guest may use any that is nobody else's.
pub(super) fn write_bridged(plan: &Plan, script: &mut Script) {
    let scope = match &plan.scope {
        Scope::Bridges => format!("meta ibrname {}", names(&plan.guests)),
        Scope::Ports => format!("iifname @{}", bridge::PORTS),
    };
    let ports = query_ports(plan);
    for kind in ["udp", "tcp"] {
        script.set(&format!("rates_{kind}"), "ifname", &format!("how quickly queries come by each port: {kind}"));
    }
    script.hook("rations", "filter", "prerouting", BRIDGED);
    if !plan.pinned.is_empty() {
        let pinned = names(plan.pinned.keys());
        script.rule(format!("iifname {pinned} accept"), "declared guests have a share of their own in table inet");
    }
    let rations = plan.rations;
    for (kind, rate, burst) in [("udp", rations.queries, rations.burst()), ("tcp", TCP_RATE, TCP_RATE)] {
        let queries = format!("{scope} meta l4proto {kind} th dport {}", set(&ports));
        let within = limit(rate, burst);
        let rule = format!("{queries} update @rates_{kind} {{ iifname {within} }} accept");
        script.rule(rule, "within the share of its port");
        script.rule(format!("{queries} {} accept", marked(MARK_CROWDED)), "over it: refused in table inet");
    }
    script.end_chain();
}
