//! The address floor: the special-purpose ranges that no guest reaches, whatever name led there, unless the
//! operator lifts it. Tables and one pure lookup; the parent module handles guests' and own addresses, and what
//! lifts the floor.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of the floor: a prefix and the document that excludes it from the public Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<A> {
    net: A,
    prefix: u8,
    /// The registry's name for the range.
    pub name: &'static str,
    /// The document that reserves it.
    pub document: &'static str,
}

/// Returns name and document of the range that contains `address`; `None` for a public address.
///
/// IPv6 has a positive test first: outside 2000::/3 nothing has been allocated (RFC 4291 §2.4, IANA's IPv6
/// address space registry), so addresses that are not in the tables are refused as well. That covers every form
/// that embeds an IPv4 address except 6to4, Teredo and ISATAP; these have their own entries.
pub fn special_purpose(address: IpAddr) -> Option<(&'static str, &'static str)> {
    match address {
        IpAddr::V4(address) => V4.iter().find(|block| block.holds_v4(address)).map(Block::label),
        IpAddr::V6(address) => special_purpose_v6(address),
    }
}

fn special_purpose_v6(address: Ipv6Addr) -> Option<(&'static str, &'static str)> {
    if GLOBAL_UNICAST.holds_v6(address) {
        if let Some(block) = V6_WITHIN_GLOBAL.iter().find(|block| block.holds_v6(address)) {
            return Some(block.label());
        }
        return is_isatap(address).then_some(("ISATAP", "RFC 5214"));
    }
    let known = V6_OUTSIDE_GLOBAL.iter().find(|block| block.holds_v6(address));
    Some(known.map_or(("outside global unicast", "RFC 4291"), Block::label))
}

/// Whether it has an ISATAP interface identifier, which carries an IPv4 address under any prefix (RFC 5214
/// §6.1; the universal/local bit may have either value).
fn is_isatap(address: Ipv6Addr) -> bool {
    let [_, _, _, _, high, low, _, _] = address.segments();
    high & 0xfdff == 0 && low == 0x5efe
}

impl<A> Block<A> {
    const fn label(&self) -> (&'static str, &'static str) {
        (self.name, self.document)
    }
}

impl Block<Ipv4Addr> {
    fn holds_v4(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        address.to_bits() & mask == self.net.to_bits()
    }
}

impl Block<Ipv6Addr> {
    fn holds_v6(&self, address: Ipv6Addr) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        address.to_bits() & mask == self.net.to_bits()
    }
}

const fn v4(net: [u8; 4], prefix: u8, name: &'static str, document: &'static str) -> Block<Ipv4Addr> {
    let [a, b, c, d] = net;
    Block { net: Ipv4Addr::new(a, b, c, d), prefix, name, document }
}

const fn v6(net: [u16; 8], prefix: u8, name: &'static str, document: &'static str) -> Block<Ipv6Addr> {
    let [a, b, c, d, e, f, g, h] = net;
    Block { net: Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix, name, document }
}

/// IANA IPv4 Special-Purpose Address Registry, and multicast.
const V4: [Block<Ipv4Addr>; 19] = [
    v4([0, 0, 0, 0], 8, "this network", "RFC 791"),
    v4([10, 0, 0, 0], 8, "private use", "RFC 1918"),
    v4([100, 64, 0, 0], 10, "shared address space", "RFC 6598"),
    v4([127, 0, 0, 0], 8, "loopback", "RFC 1122"),
    v4([169, 254, 0, 0], 16, "link local", "RFC 3927"),
    v4([172, 16, 0, 0], 12, "private use", "RFC 1918"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments", "RFC 6890"),
    v4([192, 0, 2, 0], 24, "documentation (TEST-NET-1)", "RFC 5737"),
    v4([192, 31, 196, 0], 24, "AS112-v4", "RFC 7535"),
    v4([192, 52, 193, 0], 24, "AMT", "RFC 7450"),
    v4([192, 88, 99, 0], 24, "6to4 relay anycast", "RFC 7526"),
    v4([192, 168, 0, 0], 16, "private use", "RFC 1918"),
    v4([192, 175, 48, 0], 24, "AS112 direct delegation", "RFC 7534"),
    v4([198, 18, 0, 0], 15, "benchmarking", "RFC 2544"),
    v4([198, 51, 100, 0], 24, "documentation (TEST-NET-2)", "RFC 5737"),
    v4([203, 0, 113, 0], 24, "documentation (TEST-NET-3)", "RFC 5737"),
    v4([224, 0, 0, 0], 4, "multicast", "RFC 5771"),
    v4([255, 255, 255, 255], 32, "limited broadcast", "RFC 919"),
    v4([240, 0, 0, 0], 4, "reserved", "RFC 1112"),
];

const GLOBAL_UNICAST: Block<Ipv6Addr> = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, "global unicast", "RFC 4291");

/// IANA IPv6 Special-Purpose Address Registry, as far as it is within 2000::/3, and the former 6bone. The first
/// match provides the name, so ranges within 2001::/23 come before it.
const V6_WITHIN_GLOBAL: [Block<Ipv6Addr>; 16] = [
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "Teredo", "RFC 4380"),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128, "port control protocol anycast", "RFC 7723"),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128, "TURN anycast", "RFC 8155"),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 3], 128, "DNS-SD service registration anycast", "RFC 9665"),
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, "benchmarking", "RFC 5180"),
    v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32, "AMT", "RFC 7450"),
    v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48, "AS112-v6", "RFC 7535"),
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, "ORCHID", "RFC 4843"),
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, "ORCHIDv2", "RFC 7343"),
    v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28, "drone remote identification", "RFC 9374"),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "IETF protocol assignments", "RFC 2928"),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation", "RFC 3849"),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4", "RFC 3056"),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, "AS112 direct delegation", "RFC 7534"),
    v6([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16, "6bone", "RFC 3701"),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation", "RFC 9637"),
];

/// Names for addresses that the positive test refuses; the list need not be complete.
const V6_OUTSIDE_GLOBAL: [Block<Ipv6Addr>; 13] = [
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified", "RFC 4291"),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback", "RFC 4291"),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, "IPv4-compatible", "RFC 4291"),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4-mapped", "RFC 4291"),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, "NAT64", "RFC 6052"),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "local-use NAT64", "RFC 8215"),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "discard only", "RFC 6666"),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, "dummy prefix", "RFC 9780"),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "segment routing SIDs", "RFC 9602"),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "unique local", "RFC 4193"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link local", "RFC 4291"),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site local", "RFC 3879"),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast", "RFC 4291"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> bool {
        special_purpose(text.parse().unwrap()).is_some()
    }

    #[test]
    fn every_table_entry_has_no_bits_below_its_prefix() {
        for block in &V4 {
            assert!(block.holds_v4(block.net), "{}", block.name);
        }
        for block in V6_WITHIN_GLOBAL.iter().chain(&V6_OUTSIDE_GLOBAL) {
            assert!(block.holds_v6(block.net), "{}", block.name);
        }
    }

    #[test]
    fn ipv4_ranges_are_refused_from_first_to_last_and_their_neighbours_pass() {
        // First, last, the neighbour below and the one above ("" if that is in the floor too).
        for [first, last, below, above] in [
            ["0.0.0.0", "0.255.255.255", "", "1.0.0.0"],
            ["10.0.0.0", "10.255.255.255", "9.255.255.255", "11.0.0.0"],
            ["100.64.0.0", "100.127.255.255", "100.63.255.255", "100.128.0.0"],
            ["127.0.0.0", "127.255.255.255", "126.255.255.255", "128.0.0.0"],
            ["169.254.0.0", "169.254.255.255", "169.253.255.255", "169.255.0.0"],
            ["172.16.0.0", "172.31.255.255", "172.15.255.255", "172.32.0.0"],
            ["192.0.0.0", "192.0.0.255", "191.255.255.255", "192.0.1.0"],
            ["192.0.2.0", "192.0.2.255", "192.0.1.255", "192.0.3.0"],
            ["192.31.196.0", "192.31.196.255", "192.31.195.255", "192.31.197.0"],
            ["192.52.193.0", "192.52.193.255", "192.52.192.255", "192.52.194.0"],
            ["192.88.99.0", "192.88.99.255", "192.88.98.255", "192.88.100.0"],
            ["192.168.0.0", "192.168.255.255", "192.167.255.255", "192.169.0.0"],
            ["192.175.48.0", "192.175.48.255", "192.175.47.255", "192.175.49.0"],
            ["198.18.0.0", "198.19.255.255", "198.17.255.255", "198.20.0.0"],
            ["198.51.100.0", "198.51.100.255", "198.51.99.255", "198.51.101.0"],
            ["203.0.113.0", "203.0.113.255", "203.0.112.255", "203.0.114.0"],
            ["224.0.0.0", "239.255.255.255", "223.255.255.255", ""],
            ["240.0.0.0", "255.255.255.255", "", ""],
        ] {
            assert!(refused(first), "{first}");
            assert!(refused(last), "{last}");
            assert!(below.is_empty() || !refused(below), "{below}");
            assert!(above.is_empty() || !refused(above), "{above}");
        }
    }

    #[test]
    fn ipv6_ranges_within_global_unicast_are_refused_from_first_to_last_and_their_neighbours_pass() {
        let high = "ffff:ffff:ffff:ffff:ffff:ffff";
        for [first, last, below, above] in [
            [
                "2001::",
                "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
                "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001:200::",
            ],
            ["2001:db8::", &format!("2001:db8:{high}"), &format!("2001:db7:{high}"), "2001:db9::"],
            ["2002::", &format!("2002:ffff:{high}"), &format!("2001:ffff:{high}"), "2003::"],
            [
                "2620:4f:8000::",
                "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
                "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
                "2620:4f:8001::",
            ],
            ["3ffe::", &format!("3ffe:ffff:{high}"), &format!("3ffd:ffff:{high}"), ""],
            ["3fff::", &format!("3fff:fff:{high}"), "", "3fff:1000::"],
        ] {
            assert!(refused(first), "{first}");
            assert!(refused(last), "{last}");
            assert!(below.is_empty() || !refused(below), "{below}");
            assert!(above.is_empty() || !refused(above), "{above}");
        }
    }

    #[test]
    fn outside_of_global_unicast_every_ipv6_address_is_refused() {
        for text in [
            "::",
            "::1",
            "::2",
            "::8.8.8.8",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "100:0:0:1::1",
            "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "4000::",
            "5f00::1",
            "fc00::",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff00::",
            "ff02::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            assert!(refused(text), "{text}");
        }
        assert!(!refused("2000::"));
        assert!(!refused("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        assert!(!refused("2606:4700:4700::1111"));
    }

    #[test]
    fn forms_that_embed_an_ipv4_address_are_refused() {
        for text in ["2002:7f00:1::", "2001:0:4136:e378::1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1"] {
            assert!(refused(text), "{text}");
        }
    }

    #[test]
    fn metadata_services_are_in_the_floor() {
        for text in ["169.254.169.254", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"] {
            assert!(refused(text), "{text}");
        }
    }

    #[test]
    fn the_narrowest_range_gives_the_name() {
        assert_eq!(special_purpose("2001::1".parse().unwrap()), Some(("Teredo", "RFC 4380")));
        assert_eq!(special_purpose("2001:5::1".parse().unwrap()), Some(("IETF protocol assignments", "RFC 2928")));
        assert_eq!(special_purpose("255.255.255.255".parse().unwrap()), Some(("limited broadcast", "RFC 919")));
        assert_eq!(special_purpose("4000::1".parse().unwrap()), Some(("outside global unicast", "RFC 4291")));
    }
}
