//! Packets as they are seen on an Ethernet interface, and what in them says from which check they come.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

/// Numbers of protocols (IANA).
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const GRE: u8 = 47;
pub(super) const ESP: u8 = 50;
pub(super) const ICMP6: u8 = 58;
pub(super) const SCTP: u8 = 132;

/// Bytes of a marker: what all of a run have in common, and two hexadecimal digits for the check.
const STEM: &str = "outgate-verify-";

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) source: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    /// Source and destination, of TCP and UDP.
    pub(super) ports: Option<(u16, u16)>,
    /// What follows the IP header.
    pub(super) body: &'a [u8],
}

impl fmt::Display for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            ICMP => "ICMP",
            TCP => "TCP",
            UDP => "UDP",
            GRE => "GRE",
            ESP => "ESP",
            ICMP6 => "ICMPv6",
            SCTP => "SCTP",
            _ => "protocol",
        };
        write!(f, "{name}")?;
        if name == "protocol" {
            write!(f, " {}", self.protocol)?;
        }
        write!(f, " from {}", self.source)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Reads an Ethernet frame; `None` if it has no IP packet.
pub(super) fn of_frame(frame: &[u8]) -> Option<Packet<'_>> {
    match u16_at(frame, 12)? {
        0x0800 | 0x86dd => of_ip(frame.get(14..)?),
        _ => None,
    }
}

/// Reads an IP packet, of which the end may be missing.
fn of_ip(bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    let (source, to, protocol, body): (IpAddr, IpAddr, u8, &[u8]) = match first >> 4 {
        4 => {
            let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
            let to: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
            let length = usize::from(first & 0xf) * 4;
            (Ipv4Addr::from(source).into(), Ipv4Addr::from(to).into(), *bytes.get(9)?, bytes.get(length..)?)
        }
        6 => {
            let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let to: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
            (Ipv6Addr::from(source).into(), Ipv6Addr::from(to).into(), *bytes.get(6)?, bytes.get(40..)?)
        }
        _ => return None,
    };
    let ports = match protocol {
        TCP | UDP => u16_at(body, 0).zip(u16_at(body, 2)),
        _ => None,
    };
    Some(Packet { source, to, protocol, ports, body })
}

impl Packet<'_> {
    /// Returns the packet that an ICMP error is about.
    fn quoted(&self) -> Option<Packet<'_>> {
        let kind = *self.body.first()?;
        let is_error = match self.protocol {
            ICMP => matches!(kind, 3 | 5 | 11 | 12),
            ICMP6 => kind < 128,
            _ => false,
        };
        if is_error { of_ip(self.body.get(8..)?) } else { None }
    }

    /// Returns whether it keeps a link running: neighbour discovery, router discovery, group membership.
    pub(super) fn is_of_the_link(&self) -> bool {
        let kind = self.body.first().copied().unwrap_or_default();
        match self.protocol {
            ICMP6 => matches!(kind, 130..=137 | 143),
            // IGMP, and the options in front of MLD.
            0 | 2 => true,
            _ => false,
        }
    }
}

/// What all checks of a run send, so that it is told from anybody else's.
#[derive(Debug)]
pub(super) struct Round {
    stem: Vec<u8>,
    /// The addresses that the checks send from.
    senders: Vec<IpAddr>,
    /// The check behind each source port of TCP and UDP: a SYN has no room for a marker.
    ports: Mutex<HashMap<(u8, u16), u8>>,
}

impl Round {
    /// Creates one with a number that nobody else has.
    pub(super) fn new(number: u64, senders: Vec<IpAddr>) -> Round {
        Round { stem: format!("{STEM}{number:016x}-").into_bytes(), senders, ports: Mutex::default() }
    }

    /// Returns the marker of a check: text that fits into a label of a name.
    pub(super) fn marker(&self, check: u8) -> String {
        format!("{}{check:02x}", String::from_utf8_lossy(&self.stem))
    }

    /// Notes that a check sends from this port.
    pub(super) fn sends_from(&self, protocol: u8, port: u16, check: u8) {
        outgate::lock::lock(&self.ports).insert((protocol, port), check);
    }

    /// Returns the check that this packet, or the one that it is about, comes from.
    pub(super) fn check_of(&self, packet: &Packet<'_>) -> Option<u8> {
        self.marked(packet.body).or_else(|| self.by_port(packet)).or_else(|| self.by_port(&packet.quoted()?))
    }

    fn marked(&self, body: &[u8]) -> Option<u8> {
        let at = body.windows(self.stem.len()).position(|window| window == self.stem)?;
        let start = at.checked_add(self.stem.len())?;
        let digits = body.get(start..start.checked_add(2)?)?;
        u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    fn by_port(&self, packet: &Packet<'_>) -> Option<u8> {
        let (port, _) = packet.ports.filter(|_| self.senders.contains(&packet.source))?;
        outgate::lock::lock(&self.ports).get(&(packet.protocol, port)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
    const OUT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    fn v4(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        bytes.extend(source.octets().iter().chain(&to.octets()).chain(body));
        bytes
    }

    fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &kind.to_be_bytes(), packet].concat()
    }

    #[test]
    fn a_check_is_told_by_its_marker_by_its_port_and_by_what_an_error_is_about() {
        let round = Round::new(7, vec![ONE.into()]);
        round.sends_from(TCP, 0x1234, 9);
        let check = |bytes: &[u8]| round.check_of(&of_frame(&frame(0x0800, bytes)).unwrap());
        let marked = [&[0, 1, 0, 2, 0, 0, 0, 0][..], round.marker(0xa5).as_bytes()].concat();
        assert_eq!(check(&v4(OUT, ONE, UDP, &marked)), Some(0xa5), "whoever the sender is, as after NAT");
        assert_eq!(check(&v4(ONE, OUT, TCP, &[0x12, 0x34, 0, 80])), Some(9));
        assert_eq!(check(&v4(OUT, ONE, TCP, &[0x12, 0x34, 0, 80])), None, "another host that has the same port");
        assert_eq!(check(&v4(ONE, OUT, UDP, &[0x12, 0x34, 0, 80])), None, "another protocol");
        let about = [&[11, 0, 0, 0, 0, 0, 0, 0][..], &v4(ONE, OUT, TCP, &[0x12, 0x34, 0, 80])].concat();
        assert_eq!(check(&v4(OUT, ONE, ICMP, &about)), Some(9));
        assert_eq!(
            Round::new(8, vec![]).check_of(&of_frame(&frame(0x0800, &v4(OUT, ONE, UDP, &marked))).unwrap()),
            None
        );
    }

    #[test]
    fn what_is_no_whole_packet_is_none_and_no_panic() {
        let whole = frame(0x0800, &v4(ONE, OUT, UDP, &[0, 1, 0, 2, 0, 0, 0, 0]));
        for length in 0..whole.len() {
            let _ = of_frame(&whole[..length]).map(|packet| Round::new(1, vec![ONE.into()]).check_of(&packet));
        }
        assert_eq!(of_frame(&frame(0x0806, &[0; 28])), None);
        let mut six = vec![0x60, 0, 0, 0, 0, 0, ICMP6, 255];
        six.extend([0; 32]);
        six.extend([135, 0]);
        assert!(of_frame(&frame(0x86dd, &six)).unwrap().is_of_the_link());
        for length in 0..six.len() {
            assert_eq!(of_frame(&frame(0x86dd, &six[..length])).is_some(), length >= 40);
        }
    }
}
