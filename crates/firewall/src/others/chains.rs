//! Evaluates a packet in chains of rules, whoever wrote them and in whatever language: a condition may hold, not
//! hold, or be unknown here. An unknown condition counts in the packet's favour, so a packet that is reported as
//! dropped is really dropped.

use std::collections::HashMap;
use std::net::IpAddr;

/// Maximum number of rules evaluated for one packet; Kubernetes has tens of thousands.
const MOST_RULES: usize = 200_000;
/// Maximum depth of nested chains; the kernel allows 16.
const DEEPEST: usize = 32;

/// Where the kernel calls chains (`enum nf_inet_hooks`, and `ingress` of devices).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Ingress,
    Prerouting,
    Input,
    Output,
    Forward,
}

impl Hook {
    /// Returns the hook for a name of nft(8).
    pub(super) fn of(name: &str) -> Option<Hook> {
        Some(match name {
            "ingress" => Hook::Ingress,
            "prerouting" => Hook::Prerouting,
            "input" => Hook::Input,
            "output" => Hook::Output,
            "forward" => Hook::Forward,
            _ => return None,
        })
    }
}

/// What connection tracking knows of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracked {
    Untracked,
    New,
    Established,
}

impl Tracked {
    const fn as_str(self) -> &'static str {
        match self {
            Tracked::Untracked => "untracked",
            Tracked::New => "new",
            Tracked::Established => "established",
        }
    }
}

/// A packet, as one hook sees it.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) hook: Hook,
    /// The bridge, if the packet is seen as the frame on one of its ports.
    pub(super) frame_of: Option<String>,
    /// The input interface; empty for what this machine sends.
    pub(super) input: String,
    /// The output interface; empty before it is known.
    pub(super) output: String,
    pub(super) is_v6: bool,
    pub(super) is_udp: bool,
    /// `None` for any address of the family.
    pub(super) source: Option<IpAddr>,
    pub(super) destination: Option<IpAddr>,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) tracked: Tracked,
    /// Whether its destination is an address of this machine.
    pub(super) is_local: bool,
}

/// What a condition examines, and the value that it requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// Names, or stems that end in `*`.
    Input(Vec<String>),
    Output(Vec<String>),
    /// The bridge of either port.
    Bridge(Vec<String>),
    IsV6(bool),
    /// Names as in /etc/protocols, or numbers.
    Protocol(Vec<String>),
    Source(Vec<(IpAddr, IpAddr)>),
    Destination(Vec<(IpAddr, IpAddr)>),
    SourcePort(Vec<(u16, u16)>),
    DestinationPort(Vec<(u16, u16)>),
    /// In lower case.
    State(Vec<String>),
    /// Another property of its connection tracking entry: a packet without an entry fulfils neither such a
    /// condition nor its negation.
    Entry,
    /// The address type of its destination, in lower case.
    DestinationType(Vec<String>),
    /// Something else.
    Unknown,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) test: Test,
    pub(super) negated: bool,
}

impl From<Test> for Condition {
    fn from(test: Test) -> Condition {
        Condition { test, negated: false }
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
    /// The rule decides nothing.
    Continue,
    /// Something else decides, for example a program behind a queue.
    Elsewhere,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// A chain that the kernel calls.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// As in nft(8): `inet`, `ip`, `ip6`, `bridge`, `netdev`.
    pub(super) family: String,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) hook: Hook,
    /// The devices of an `ingress` chain.
    pub(super) devices: Vec<String>,
    pub(super) drops_the_rest: bool,
    /// The program that changes it, if that is not nft(8): `iptables`, `ip6tables-legacy` and the like.
    pub(super) program: Option<String>,
}

/// One table's chains: those that the kernel calls, and the rules of all chains by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) bases: Vec<Base>,
    pub(super) rules: HashMap<String, Vec<Rule>>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    No,
    Maybe,
    Yes,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Truth {
        if holds { Truth::Yes } else { Truth::No }
    }
}

/// How a packet leaves a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
    Returned,
}

impl Condition {
    fn holds(&self, packet: &Packet) -> Truth {
        match (self.test.holds(packet), self.negated) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (truth, _) => truth,
        }
    }
}

impl Test {
    fn holds(&self, packet: &Packet) -> Truth {
        let named = |patterns: &[String], name: &str| {
            Truth::from(!name.is_empty() && patterns.iter().any(|pattern| crate::host::fits(pattern, name)))
        };
        let within =
            |ranges: &[(IpAddr, IpAddr)], address: Option<IpAddr>| match address {
                Some(address) => Truth::from(ranges.iter().any(|(first, last)| {
                    first.is_ipv4() == address.is_ipv4() && *first <= address && address <= *last
                })),
                // A range of all addresses of the family contains this one as well.
                None if ranges.iter().any(|(first, last)| first.is_unspecified() && is_last(*last)) => Truth::Yes,
                None => Truth::Maybe,
            };
        let among = |ranges: &[(u16, u16)], port| Truth::from(ranges.iter().any(|(a, b)| (*a..=*b).contains(&port)));
        let (name, number) = if packet.is_udp { ("udp", "17") } else { ("tcp", "6") };
        match self {
            Test::Input(patterns) => named(patterns, &packet.input),
            Test::Output(patterns) => named(patterns, &packet.output),
            Test::Bridge(patterns) => named(patterns, packet.frame_of.as_deref().unwrap_or_default()),
            Test::IsV6(v6) => (*v6 == packet.is_v6).into(),
            Test::Protocol(names) => names.iter().any(|known| known == name || known == number).into(),
            Test::Source(ranges) => within(ranges, packet.source),
            Test::Destination(ranges) => within(ranges, packet.destination),
            Test::SourcePort(ranges) => among(ranges, packet.source_port),
            Test::DestinationPort(ranges) => among(ranges, packet.destination_port),
            Test::State(states) => states.iter().any(|state| state == packet.tracked.as_str()).into(),
            Test::DestinationType(kinds) => {
                let kind = if packet.is_local { "local" } else { "unicast" };
                kinds.iter().any(|known| known == kind).into()
            }
            Test::Entry if packet.tracked == Tracked::Untracked => Truth::No,
            Test::Entry | Test::Unknown => Truth::Maybe,
        }
    }
}

fn is_last(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_bits() == u128::MAX,
    }
}

impl Base {
    /// Returns whether the kernel calls it for this packet.
    fn is_for(&self, packet: &Packet) -> bool {
        let of_device = self.devices.contains(&packet.input);
        let is_frame = packet.frame_of.is_some();
        let sees = match (self.family.as_str(), self.hook) {
            (_, Hook::Ingress) => of_device,
            ("bridge", _) => is_frame,
            ("ip", _) => !is_frame && !packet.is_v6,
            ("ip6", _) => !is_frame && packet.is_v6,
            _ => !is_frame,
        };
        self.hook == packet.hook && sees
    }
}

impl Table {
    /// Returns whether this chain certainly drops the packet.
    pub(super) fn drops(&self, base: &Base, packet: &Packet) -> bool {
        if !base.is_for(packet) {
            return false;
        }
        match self.through((&base.name, 0), packet, 0, &mut 0) {
            End::Accepted => false,
            End::Dropped => true,
            End::Returned => base.drops_the_rest,
        }
    }

    /// Returns how the packet leaves the chain, from this rule of it on.
    fn through(&self, (chain, first): (&str, usize), packet: &Packet, depth: usize, looked_at: &mut usize) -> End {
        if depth > DEEPEST {
            return End::Accepted;
        }
        let rules = self.rules.get(chain).map(Vec::as_slice).unwrap_or_default();
        for (n, rule) in rules.iter().enumerate().skip(first) {
            *looked_at += 1;
            if *looked_at > MOST_RULES {
                return End::Accepted;
            }
            let truth = rule.conditions.iter().map(|condition| condition.holds(packet)).min().unwrap_or(Truth::Yes);
            if truth == Truth::No {
                continue;
            }
            match &rule.action {
                Action::Accept | Action::Elsewhere => return End::Accepted,
                Action::Drop if truth == Truth::Yes => return End::Dropped,
                Action::Drop | Action::Continue => {}
                Action::Return if truth == Truth::Yes => return End::Returned,
                // What follows may drop it; returning may not.
                Action::Return => {
                    return match self.through((chain, n + 1), packet, depth, looked_at) {
                        End::Accepted => End::Accepted,
                        End::Dropped | End::Returned => End::Returned,
                    };
                }
                Action::Jump(to) | Action::Goto(to) => {
                    let is_goto = matches!(rule.action, Action::Goto(_));
                    match self.through((to, 0), packet, depth + 1, looked_at) {
                        End::Accepted => return End::Accepted,
                        End::Dropped if truth == Truth::Yes => return End::Dropped,
                        End::Returned if is_goto && truth == Truth::Yes => return End::Returned,
                        End::Dropped | End::Returned => {}
                    }
                }
            }
        }
        End::Returned
    }
}
