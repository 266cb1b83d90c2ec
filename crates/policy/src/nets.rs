//! Addresses by prefix: a table from networks to values, with one lookup for each prefix length in use, and the
//! [`AddressSet`] of `deny` rules that an upstream address is checked against. IPv4-mapped IPv6 (RFC 4291 §2.5.5.2)
//! is always IPv4.

use super::rule::Reach;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use ipnet::IpNet;
use outgate_proto::target::{Protocol, Transport};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

/// End of a chain.
pub(super) const NONE: u32 = u32::MAX;

/// Networks of both families, each with a value.
#[derive(Clone, Debug, Default)]
pub(super) struct NetTable {
    slots: HashTable<(Prefix, u32)>,
    /// Prefix lengths in use, longest first.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    bits: u128,
    length: u8,
    v6: bool,
}

impl NetTable {
    /// The value at `net`, initially `NONE`.
    pub(super) fn slot(&mut self, net: IpNet) -> &mut u32 {
        let prefix = Prefix::of(net);
        let lengths = if prefix.v6 { &mut self.lengths_v6 } else { &mut self.lengths_v4 };
        if let Err(at) = lengths.binary_search_by(|length| prefix.length.cmp(length)) {
            lengths.insert(at, prefix.length);
        }
        let hasher = &self.hasher;
        let hash = hasher.hash_one(prefix);
        let entry = self.slots.entry(hash, |(other, _)| *other == prefix, |(other, _)| hasher.hash_one(other));
        &mut entry.or_insert((prefix, NONE)).into_mut().1
    }

    /// The values of all networks that contain `address`, longest prefix first.
    pub(super) fn holding(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        let (bits, v6, width) = match address.to_canonical() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), false, 32),
            IpAddr::V6(v6) => (v6.to_bits(), true, 128),
        };
        let lengths = if v6 { &self.lengths_v6 } else { &self.lengths_v4 };
        lengths.iter().filter_map(move |length| {
            let prefix = Prefix { bits: keep(bits, *length, width), length: *length, v6 };
            self.slots.find(self.hasher.hash_one(prefix), |(other, _)| *other == prefix).map(|(_, value)| *value)
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn shrink(&mut self) {
        let hasher = &self.hasher;
        self.slots.shrink_to_fit(|(prefix, _)| hasher.hash_one(prefix));
    }
}

impl Prefix {
    fn of(net: IpNet) -> Prefix {
        match net {
            IpNet::V4(v4) => Prefix {
                bits: keep(u128::from(v4.addr().to_bits()), v4.prefix_len(), 32),
                length: v4.prefix_len(),
                v6: false,
            },
            IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
                (Some(v4), Some(length)) => {
                    Prefix { bits: keep(u128::from(v4.to_bits()), length, 32), length, v6: false }
                }
                _ => {
                    Prefix { bits: keep(v6.addr().to_bits(), v6.prefix_len(), 128), length: v6.prefix_len(), v6: true }
                }
            },
        }
    }
}

/// The first `length` of `width` bits.
fn keep(bits: u128, length: u8, width: u8) -> u128 {
    let drop = u32::from(width.saturating_sub(length));
    bits.checked_shr(drop).and_then(|kept| kept.checked_shl(drop)).unwrap_or(0)
}

/// The addresses that `deny` rules refuse to a flow. Cloning is cheap; [`contains`](Self::contains) takes one hash
/// lookup for each prefix length in use, however many networks there are.
#[derive(Clone, Debug, Default)]
pub struct AddressSet {
    nets: Arc<DeniedNets>,
    concern: Concern,
}

/// Which of the networks apply.
#[derive(Clone, Copy, Debug, Default)]
enum Concern {
    /// All: each is denied wholly.
    #[default]
    All,
    /// Those that are denied to one flow.
    Flow(Transport, u16, Option<Protocol>),
    /// Those that are denied to every flow.
    Whole,
}

/// The networks of all `deny` rules, each with the reaches it is denied for.
#[derive(Clone, Debug, Default)]
pub(super) struct DeniedNets {
    table: NetTable,
    links: Vec<(Reach, u32)>,
    /// Some network is not denied wholly.
    partial: bool,
}

impl AddressSet {
    /// A set of networks that are denied wholly.
    pub fn new(nets: impl IntoIterator<Item = IpNet>) -> AddressSet {
        let mut denied = DeniedNets::default();
        for net in nets {
            denied.insert(net, Reach::Everything);
        }
        AddressSet { nets: Arc::new(denied), concern: Concern::All }
    }

    /// Is `address` denied? IPv4-mapped IPv6 addresses are treated as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.nets.table.holding(address).any(|head| self.nets.reaches(head).any(|reach| self.concerns(reach)))
    }

    /// Does it contain no network?
    pub fn is_empty(&self) -> bool {
        self.nets.table.is_empty()
    }

    pub(super) fn of(nets: DeniedNets) -> AddressSet {
        AddressSet { nets: Arc::new(nets), concern: Concern::All }
    }

    /// Must the set be narrowed to a flow before use?
    pub(super) fn is_partial(&self) -> bool {
        self.nets.partial
    }

    /// The part of the set that applies to one flow. While the protocol is unknown, a network that is denied for
    /// some protocol is denied.
    pub(super) fn narrowed(&self, transport: Transport, port: u16, spoken: Option<Protocol>) -> AddressSet {
        AddressSet { nets: Arc::clone(&self.nets), concern: Concern::Flow(transport, port, spoken) }
    }

    /// The part of the set that applies to every flow.
    pub(super) fn whole(&self) -> AddressSet {
        AddressSet { nets: Arc::clone(&self.nets), concern: Concern::Whole }
    }

    fn concerns(&self, reach: Reach) -> bool {
        match self.concern {
            Concern::All => true,
            Concern::Whole => reach == Reach::Everything,
            Concern::Flow(transport, port, spoken) => reach
                .denies(transport, port)
                .is_some_and(|protocols| spoken.is_none_or(|protocol| protocols.contains(protocol))),
        }
    }
}

impl DeniedNets {
    pub(super) fn insert(&mut self, net: IpNet, reach: Reach) {
        let slot = self.table.slot(net);
        let Ok(link) = u32::try_from(self.links.len()) else { return };
        self.links.push((reach, *slot));
        *slot = link;
        self.partial |= reach != Reach::Everything;
    }

    pub(super) fn shrink(&mut self) {
        self.table.shrink();
        self.links.shrink_to_fit();
    }

    fn reaches(&self, head: u32) -> impl Iterator<Item = Reach> {
        let link = |at: u32| self.links.get(at as usize);
        std::iter::successors(link(head), move |(_, next)| link(*next)).map(|(reach, _)| *reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nets: &[&str]) -> AddressSet {
        AddressSet::new(nets.iter().map(|net| net.parse().unwrap()))
    }

    fn holds(set: &AddressSet, address: &str) -> bool {
        set.contains(address.parse().unwrap())
    }

    #[test]
    fn networks_hold_their_first_and_last_address_and_no_neighbour() {
        let set = set(&["203.0.113.0/24", "198.51.100.7/32", "2001:db8::/32"]);
        for address in ["203.0.113.0", "203.0.113.255", "198.51.100.7", "2001:db8::", "2001:db8:ffff::1"] {
            assert!(holds(&set, address), "{address}");
        }
        for address in ["203.0.112.255", "203.0.114.0", "198.51.100.6", "2001:db7::", "2001:db9::", "::"] {
            assert!(!holds(&set, address), "{address}");
        }
    }

    #[test]
    fn a_network_of_length_zero_holds_its_family_alone() {
        let v4 = set(&["0.0.0.0/0"]);
        assert!(holds(&v4, "255.1.2.3") && holds(&v4, "0.0.0.0") && !holds(&v4, "2001:db8::1"));
        let v6 = set(&["::/0"]);
        assert!(holds(&v6, "2001:db8::1") && !holds(&v6, "192.0.2.1"));
    }

    #[test]
    fn mapped_addresses_and_networks_are_ipv4() {
        assert!(holds(&set(&["203.0.113.0/24"]), "::ffff:203.0.113.9"));
        assert!(holds(&set(&["::ffff:203.0.113.0/120"]), "203.0.113.9"));
        assert!(!holds(&set(&["::ffff:203.0.113.0/120"]), "203.0.114.9"));
    }

    #[test]
    fn host_bits_of_a_network_do_not_matter() {
        assert!(holds(&set(&["203.0.113.77/24"]), "203.0.113.1"));
    }

    #[test]
    fn longest_prefix_comes_first() {
        let mut table = NetTable::default();
        for (value, net) in ["10.0.0.0/8", "10.1.2.3/32", "10.1.0.0/16"].iter().enumerate() {
            *table.slot(net.parse().unwrap()) = u32::try_from(value).unwrap();
        }
        assert_eq!(table.holding("10.1.2.3".parse().unwrap()).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(table.holding("10.2.2.3".parse().unwrap()).collect::<Vec<_>>(), [0]);
    }
}
