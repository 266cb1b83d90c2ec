//! The TCP ports that any rule of a list could allow. They are checked before a guest has shown a name, so that a
//! connection to a port which no name could open is refused at once instead of at a deadline.

use super::rule::{Effect, Ports, Reach};
use super::rules::Compiled;

/// The ports, as ordered ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenPorts {
    any: Box<[Ports]>,
    /// Those that a rule names as a single port, which lifts `blocked_ports`.
    named: Box<[Ports]>,
    /// Those on which a rule allows any bytes.
    raw: Box<[Ports]>,
}

impl OpenPorts {
    pub(super) fn of<'a>(terms: impl Iterator<Item = &'a Compiled>) -> OpenPorts {
        let allowing = terms.filter(|compiled| compiled.terms.effect == Effect::Allow && !compiled.expired());
        OpenPorts::to(&allowing.map(|compiled| compiled.terms.reach).collect::<Vec<Reach>>())
    }

    pub(super) fn to(reaches: &[Reach]) -> OpenPorts {
        let any: Vec<Ports> = reaches.iter().flat_map(|reach| tcp_ports(*reach)).flatten().collect();
        let named = any.iter().copied().filter(|ports| ports.first == ports.last).collect();
        let raw = reaches.iter().flat_map(|reach| raw_ports(*reach)).flatten().collect();
        OpenPorts { any: merged(any), named: merged(named), raw: merged(raw) }
    }

    /// Could a rule allow `port`? With `blocked`, only one that names that very port.
    pub(super) fn contains(&self, port: u16, blocked: bool) -> bool {
        within(if blocked { &self.named } else { &self.any }, port)
    }

    /// As [`contains`](Self::contains): could a rule allow any bytes on `port`?
    pub(super) fn contains_raw(&self, port: u16, blocked: bool) -> bool {
        self.contains(port, blocked) && within(&self.raw, port)
    }
}

fn within(ranges: &[Ports], port: u16) -> bool {
    let after = ranges.partition_point(|ports| ports.first <= port);
    ranges.get(..after).and_then(<[Ports]>::last).is_some_and(|ports| ports.contains(port))
}

fn tcp_ports(reach: Reach) -> [Option<Ports>; 2] {
    let single = |port| Some(Ports { first: port, last: port });
    match reach {
        Reach::Web => [single(80), single(443)],
        Reach::Ports(ports) | Reach::Http(ports) | Reach::Https(ports) | Reach::Tcp(ports) => [Some(ports), None],
        Reach::Golem | Reach::Everything => [Some(Ports::ALL), None],
        Reach::Udp(_) | Reach::Quic(_) => [None, None],
    }
}

/// Where any bytes may pass: on ports 80 and 443 only with `tcp://`, see [`Reach::serves`].
fn raw_ports(reach: Reach) -> [Option<Ports>; 3] {
    match reach {
        Reach::Tcp(ports) => [Some(ports), None, None],
        Reach::Ports(ports) => [(1, 79), (81, 442), (444, u16::MAX)].map(|(first, last)| {
            let (first, last) = (first.max(ports.first), last.min(ports.last));
            (first <= last).then_some(Ports { first, last })
        }),
        Reach::Golem | Reach::Everything => raw_ports(Reach::Ports(Ports::ALL)),
        Reach::Web | Reach::Http(_) | Reach::Https(_) | Reach::Udp(_) | Reach::Quic(_) => [None; 3],
    }
}

fn merged(mut ranges: Vec<Ports>) -> Box<[Ports]> {
    ranges.sort_unstable_by_key(|ports| (ports.first, ports.last));
    let mut apart: Vec<Ports> = Vec::new();
    for next in ranges {
        match apart.last_mut() {
            Some(last) if next.first <= last.last.saturating_add(1) => last.last = last.last.max(next.last),
            _ => apart.push(next),
        }
    }
    apart.into()
}

#[cfg(test)]
mod tests {
    use super::super::rule::Terms;
    use super::*;

    fn open(reaches: &[Reach]) -> OpenPorts {
        let terms = |reach| Terms { effect: Effect::Allow, reach, ech_allowed: false, to: None, until: None };
        let compiled: Vec<Compiled> = reaches.iter().map(|reach| Compiled::new(terms(*reach), false)).collect();
        OpenPorts::of(compiled.iter())
    }

    #[test]
    fn ranges_that_touch_or_overlap_are_one() {
        let ports = |first, last| Reach::Ports(Ports { first, last });
        let open = open(&[ports(8000, 8100), ports(8101, 8200), ports(8050, 8060), Reach::Web, Reach::Udp(Ports::ALL)]);
        for (port, is_open) in [
            (79, false),
            (80, true),
            (81, false),
            (443, true),
            (7999, false),
            (8000, true),
            (8200, true),
            (8201, false),
        ] {
            assert_eq!(open.contains(port, false), is_open, "{port}");
        }
    }

    #[test]
    fn a_blocked_port_is_open_only_where_a_rule_names_it() {
        let all = open(&[Reach::Golem]);
        assert!(all.contains(25, false) && !all.contains(25, true));
        let named = open(&[Reach::Golem, Reach::Tcp(Ports { first: 25, last: 25 })]);
        assert!(named.contains(25, true) && !named.contains(587, true));
    }

    #[test]
    fn any_bytes_may_pass_where_serves_says_so() {
        let ports = |first, last| Ports { first, last };
        for reach in [
            Reach::Web,
            Reach::Ports(ports(1, 90)),
            Reach::Ports(ports(443, 443)),
            Reach::Ports(ports(400, 500)),
            Reach::Http(ports(8080, 8080)),
            Reach::Https(Ports::ALL),
            Reach::Tcp(ports(80, 81)),
            Reach::Golem,
            Reach::Udp(Ports::ALL),
        ] {
            let open = open(&[reach]);
            for port in [1, 79, 80, 81, 90, 91, 400, 442, 443, 444, 500, 8080, u16::MAX] {
                let served = reach.serves(outgate_proto::target::Transport::Tcp, port);
                let raw = served.is_some_and(|served| served.protocols.contains(outgate_proto::target::Protocol::Raw));
                assert_eq!(open.contains_raw(port, false), raw, "{reach:?} port {port}");
            }
        }
        let blocked = open(&[Reach::Golem]);
        assert!(!blocked.contains_raw(25, true));
    }

    #[test]
    fn a_list_that_allows_nothing_opens_nothing() {
        assert!(!open(&[]).contains(443, false));
        let deny = Terms { effect: Effect::Deny, reach: Reach::Everything, ech_allowed: false, to: None, until: None };
        assert!(!OpenPorts::of([Compiled::new(deny, false)].iter()).contains(443, false));
    }
}
