//! Records which name a guest asked for when it was given an address. For protocols that show no name, this is
//! the only evidence of what the guest asked for. Bounded per guest and in all; `state_file` saves it over a
//! restart.

mod state_file;

pub use state_file::BindingsFile;

use crate::lock::lock;
use crate::name::HostName;
use crate::source::holder;
use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Most bindings of one guest; a binding is an address and a name.
const MAX_OF_GUEST: usize = 4096;
/// Most bindings of all guests; each takes about 150 bytes.
const MAX_IN_ALL: usize = 131_072;
/// Most names of one address, for one guest.
const MAX_OF_ADDRESS: usize = 32;
const SHARDS: usize = 16;

/// Bounds on the TTL of a binding.
const TTL: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));
/// How much longer a binding lives: programs keep addresses past their TTL.
const GRACE: Duration = Duration::from_secs(600);
/// A binding whose life would be extended by less than this is not changed.
const RENEWAL: Duration = Duration::from_secs(5);

/// The names that outgate's own DNS has answered to guests, by guest and address. Shared by all threads.
#[derive(Debug)]
pub struct Bindings {
    shards: [Mutex<Shard>; SHARDS],
    total: AtomicUsize,
    changed: AtomicBool,
    revision: AtomicU64,
    hasher: RandomState,
}

type Shard = HashMap<GuestKey, Held, RandomState>;

/// A guest: its declared name, or else its address, in IPv6 its /64.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum GuestKey {
    Declared(Arc<str>),
    Address(IpAddr),
}

/// A borrowed [`GuestKey`] for lookups. It must have the same hash.
#[derive(Clone, Copy, Hash)]
enum GuestKeyRef<'a> {
    Declared(&'a str),
    Address(IpAddr),
}

/// The bindings of one guest.
#[derive(Debug)]
struct Held {
    /// An address of the guest, used to judge its bindings.
    source: IpAddr,
    addresses: HashMap<IpAddr, Vec<Bound>, RandomState>,
    count: usize,
}

/// A name for an address; the names of one address are sorted latest first.
#[derive(Clone, Debug)]
struct Bound {
    name: HostName,
    until: Instant,
}

/// One answer to a guest, to be recorded.
struct Note<'a> {
    source: IpAddr,
    guest: Option<&'a str>,
    name: &'a HostName,
    addresses: &'a [IpAddr],
    until: Instant,
}

/// One binding, to be saved or restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) source: IpAddr,
    /// The guest's declared name.
    pub(super) guest: Option<Arc<str>>,
    pub(super) address: IpAddr,
    pub(super) name: HostName,
    /// How much longer it lives.
    pub(super) left: Duration,
}

impl Default for Bindings {
    fn default() -> Bindings {
        Bindings {
            shards: std::array::from_fn(|_| Mutex::default()),
            total: AtomicUsize::new(0),
            changed: AtomicBool::new(false),
            revision: AtomicU64::new(0),
            hasher: RandomState::default(),
        }
    }
}

impl Bindings {
    /// Returns the names, latest first, for which the guest at `source` was given `address` and may still rely
    /// on it. `guest` is its declared name, if it has one.
    pub fn names(&self, source: IpAddr, guest: Option<&str>, address: IpAddr) -> Vec<HostName> {
        self.names_at(source, guest, address, Instant::now())
    }

    /// Records that the guest was told that `name` has these addresses, for `ttl`. The bindings live for the
    /// TTL, clamped to between 30 s and an hour, and ten minutes more.
    pub fn note(&self, source: IpAddr, guest: Option<&str>, name: &HostName, addresses: &[IpAddr], ttl: Duration) {
        let (least, most) = TTL;
        let until = Instant::now() + ttl.clamp(least, most) + GRACE;
        self.put(&Note { source, guest, name, addresses, until });
    }

    /// Returns how often the basis for judging bindings has changed. Read it before a name is judged, and again
    /// after the binding was noted. If it differs, the binding may have been noted too late to be dropped.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::SeqCst)
    }

    /// Counts a change of the basis for judging bindings. Call it when the change is in force, and before
    /// [`Bindings::retain`].
    pub fn revise(&self) {
        self.revision.fetch_add(1, Ordering::SeqCst);
    }

    /// Keeps the bindings for which `holds` returns true, given the guest's address, its declared name and the
    /// binding's name. Call it after a reload: bindings end with their rule and their guest.
    pub fn retain(&self, holds: impl Fn(IpAddr, Option<&str>, &HostName) -> bool) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|key, held| {
                let (source, guest) = (held.source, key.declared());
                self.prune(held, |bound| holds(source, guest, &bound.name));
                held.count > 0
            });
        }
    }

    /// Returns the number of bindings.
    pub fn len(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether anything has changed since the last call.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// Calls `each` with every binding that still lives.
    pub(super) fn each(&self, mut each: impl FnMut(Binding)) {
        let now = Instant::now();
        for shard in &self.shards {
            // Copied, so that no query waits for the work of `each`.
            let mut copied = Vec::new();
            for (key, held) in &*lock(shard) {
                let guest = match key {
                    GuestKey::Declared(name) => Some(Arc::clone(name)),
                    GuestKey::Address(_) => None,
                };
                for (address, bound) in held.bound().filter(|(_, bound)| bound.until > now) {
                    copied.push(Binding {
                        source: held.source,
                        guest: guest.clone(),
                        address,
                        name: bound.name.clone(),
                        left: bound.until - now,
                    });
                }
            }
            copied.into_iter().for_each(&mut each);
        }
    }

    /// Restores a saved binding.
    pub(super) fn restore(&self, binding: &Binding) {
        let Binding { source, guest, address, name, left } = binding;
        let until = Instant::now() + (*left).min(TTL.1 + GRACE);
        self.put(&Note { source: *source, guest: guest.as_deref(), name, addresses: &[*address], until });
    }

    fn names_at(&self, source: IpAddr, guest: Option<&str>, address: IpAddr, now: Instant) -> Vec<HostName> {
        let asked = GuestKeyRef::of(source, guest);
        let shard = self.shard(asked);
        let bound = shard.get(&asked).and_then(|held| held.addresses.get(&address.to_canonical()));
        let living = bound.into_iter().flatten().filter(|bound| bound.until > now);
        living.map(|bound| bound.name.clone()).collect()
    }

    fn put(&self, note: &Note<'_>) {
        let Note { source, guest, name, addresses, until } = *note;
        let asked = GuestKeyRef::of(source, guest);
        let mut shard = self.shard(asked);
        if self.len().saturating_add(addresses.len()) > MAX_IN_ALL && !self.relieve(&mut shard, Instant::now()) {
            return;
        }
        if !shard.contains_key(&asked) {
            shard.insert(asked.to_owned(), Held::new(source));
        }
        let Some(held) = shard.get_mut(&asked) else { return };
        held.source = source;
        let mut changed = false;
        for address in addresses {
            if held.count >= MAX_OF_GUEST {
                self.make_room(held, Instant::now());
            }
            let before = held.count;
            changed |= held.bind(address.to_canonical(), name, until);
            self.counted(before, held.count);
        }
        if changed {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Frees room: the guest with the most bindings of the shard loses some. Returns `false` if there is still
    /// no room.
    fn relieve(&self, shard: &mut Shard, now: Instant) -> bool {
        let Some(largest) = shard.values_mut().max_by_key(|held| held.count) else { return false };
        self.make_room(largest, now);
        shard.retain(|_, held| held.count > 0);
        self.len() < MAX_IN_ALL
    }

    /// Removes expired bindings; if these are few, also those that would expire soonest, up to a quarter in all.
    fn make_room(&self, held: &mut Held, now: Instant) {
        let wanted = (held.count / 4).max(1);
        let before = held.count;
        self.prune(held, |bound| bound.until > now);
        let more = wanted.saturating_sub(before - held.count);
        if more == 0 {
            return;
        }
        let mut ends: Vec<Instant> = held.bound().map(|(_, bound)| bound.until).collect();
        if ends.len() < more {
            return;
        }
        let (_, cut, _) = ends.select_nth_unstable(more - 1);
        let cut = *cut;
        let mut left = more;
        self.prune(held, |bound| {
            let goes = left > 0 && bound.until <= cut;
            left -= usize::from(goes);
            !goes
        });
    }

    fn prune(&self, held: &mut Held, mut keep: impl FnMut(&Bound) -> bool) {
        let before = held.count;
        let mut count = 0;
        held.addresses.retain(|_, names| {
            names.retain(&mut keep);
            count += names.len();
            !names.is_empty()
        });
        held.count = count;
        if count != before {
            self.changed.store(true, Ordering::Relaxed);
        }
        self.counted(before, count);
    }

    fn counted(&self, before: usize, after: usize) {
        if after >= before {
            self.total.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.total.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
    fn shard(&self, asked: GuestKeyRef<'_>) -> MutexGuard<'_, Shard> {
        let index = usize::try_from((self.hasher.hash_one(asked) >> 32) % SHARDS as u64).unwrap_or(0);
        lock(&self.shards[index])
    }
}

impl Held {
    fn new(source: IpAddr) -> Held {
        Held { source, addresses: HashMap::default(), count: 0 }
    }

    /// Adds or renews a binding; returns false if the change is negligible.
    fn bind(&mut self, address: IpAddr, name: &HostName, until: Instant) -> bool {
        let names = self.addresses.entry(address).or_default();
        let at = names.iter().position(|bound| bound.name == *name);
        match at {
            Some(0) if names.first().is_some_and(|bound| bound.until + RENEWAL > until) => return false,
            Some(at) => {
                let mut bound = names.remove(at);
                bound.until = bound.until.max(until);
                names.insert(0, bound);
            }
            None => {
                if names.len() >= MAX_OF_ADDRESS {
                    names.pop();
                    self.count -= 1;
                }
                names.insert(0, Bound { name: name.clone(), until });
                self.count += 1;
            }
        }
        true
    }

    fn bound(&self) -> impl Iterator<Item = (IpAddr, &Bound)> {
        self.addresses.iter().flat_map(|(address, names)| names.iter().map(|bound| (*address, bound)))
    }
}

impl GuestKey {
    fn declared(&self) -> Option<&str> {
        match self {
            GuestKey::Declared(name) => Some(name),
            GuestKey::Address(_) => None,
        }
    }
}

impl<'a> GuestKeyRef<'a> {
    fn of(source: IpAddr, guest: Option<&'a str>) -> GuestKeyRef<'a> {
        guest.map_or_else(|| GuestKeyRef::Address(holder(source)), GuestKeyRef::Declared)
    }

    fn to_owned(self) -> GuestKey {
        match self {
            GuestKeyRef::Declared(name) => GuestKey::Declared(name.into()),
            GuestKeyRef::Address(address) => GuestKey::Address(address),
        }
    }
}

impl Equivalent<GuestKey> for GuestKeyRef<'_> {
    fn equivalent(&self, key: &GuestKey) -> bool {
        match (self, key) {
            (GuestKeyRef::Declared(one), GuestKey::Declared(other)) => **one == **other,
            (GuestKeyRef::Address(one), GuestKey::Address(other)) => one == other,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn texts(names: &[HostName]) -> Vec<&str> {
        names.iter().map(HostName::as_str).collect()
    }

    const TTL_60: Duration = Duration::from_secs(60);

    #[test]
    fn a_guest_finds_the_names_it_was_given_for_an_address_and_nobody_elses() {
        let bindings = Bindings::default();
        let (one, two) = (ip("10.0.0.1"), ip("10.0.0.2"));
        bindings.note(one, None, &name("a.test"), &[ip("11.0.0.1"), ip("11.0.0.2")], TTL_60);
        bindings.note(one, None, &name("b.test"), &[ip("11.0.0.1")], TTL_60);
        assert_eq!(texts(&bindings.names(one, None, ip("11.0.0.1"))), ["b.test", "a.test"]);
        bindings.note(one, None, &name("a.test"), &[ip("11.0.0.1")], TTL_60);
        assert_eq!(texts(&bindings.names(one, None, ip("11.0.0.1"))), ["a.test", "b.test"]);
        assert_eq!(texts(&bindings.names(one, None, ip("::ffff:11.0.0.2"))), ["a.test"]);
        assert!(bindings.names(two, None, ip("11.0.0.1")).is_empty());
        assert!(bindings.names(one, Some("vm-1"), ip("11.0.0.1")).is_empty());
        assert_eq!(bindings.len(), 3);
    }

    #[test]
    fn a_declared_guest_is_one_over_its_addresses_and_an_ipv6_64_is_one() {
        let bindings = Bindings::default();
        bindings.note(ip("10.0.0.1"), Some("vm-1"), &name("a.test"), &[ip("11.0.0.1")], TTL_60);
        assert_eq!(bindings.names(ip("fd00::1"), Some("vm-1"), ip("11.0.0.1")).len(), 1);
        bindings.note(ip("fd00::1"), None, &name("b.test"), &[ip("11.0.0.1")], TTL_60);
        assert_eq!(texts(&bindings.names(ip("fd00::ffff"), None, ip("11.0.0.1"))), ["b.test"]);
        assert!(bindings.names(ip("fd00:0:0:1::1"), None, ip("11.0.0.1")).is_empty());
    }

    #[test]
    fn a_binding_lives_for_its_ttl_within_bounds_and_ten_minutes_more() {
        let bindings = Bindings::default();
        let guest = ip("10.0.0.1");
        for (text, ttl, lives) in [("short.test", 0, 630), ("long.test", 90_000, 4200), ("plain.test", 100, 700)] {
            bindings.note(guest, None, &name(text), &[ip("11.0.0.1")], Duration::from_secs(ttl));
            let found = |after| {
                let names = bindings.names_at(guest, None, ip("11.0.0.1"), Instant::now() + Duration::from_secs(after));
                texts(&names).contains(&text)
            };
            assert!(found(lives - 5) && !found(lives + 1), "{text}");
        }
    }

    #[test]
    fn what_is_not_retained_is_gone_and_the_rest_stays() {
        let bindings = Bindings::default();
        let guest = ip("10.0.0.1");
        bindings.note(guest, None, &name("a.test"), &[ip("11.0.0.1")], TTL_60);
        bindings.note(guest, None, &name("b.test"), &[ip("11.0.0.1")], TTL_60);
        bindings.note(guest, Some("vm-1"), &name("b.test"), &[ip("11.0.0.1")], TTL_60);
        bindings.retain(|source, guest, name| source == ip("10.0.0.1") && guest.is_none() && name.as_str() == "b.test");
        assert_eq!(texts(&bindings.names(guest, None, ip("11.0.0.1"))), ["b.test"]);
        assert!(bindings.names(guest, Some("vm-1"), ip("11.0.0.1")).is_empty());
        assert_eq!(bindings.len(), 1);
    }

    #[test]
    fn one_guest_has_a_bound_and_loses_what_would_expire_first() {
        let bindings = Bindings::default();
        let (guest, other) = (ip("10.0.0.1"), ip("10.0.0.2"));
        bindings.note(other, None, &name("a.test"), &[ip("11.0.0.1")], TTL_60);
        bindings.note(guest, None, &name("long.test"), &[ip("11.0.0.1")], Duration::from_secs(3600));
        for index in 0..2 * u32::try_from(MAX_OF_GUEST).unwrap() {
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0b01_0000 + index));
            bindings.note(guest, None, &name("many.test"), &[address], TTL_60);
        }
        assert!(bindings.len() <= MAX_OF_GUEST + 1 && bindings.len() > MAX_OF_GUEST / 2, "{}", bindings.len());
        assert_eq!(bindings.names(guest, None, ip("11.0.0.1")).len(), 1);
        assert_eq!(bindings.names(other, None, ip("11.0.0.1")).len(), 1);
    }

    #[test]
    fn one_address_has_a_bounded_number_of_names() {
        let bindings = Bindings::default();
        let guest = ip("10.0.0.1");
        for index in 0..100 {
            bindings.note(guest, None, &name(&format!("n{index}.test")), &[ip("11.0.0.1")], TTL_60);
        }
        let names = bindings.names(guest, None, ip("11.0.0.1"));
        assert_eq!((names.len(), names[0].as_str(), bindings.len()), (MAX_OF_ADDRESS, "n99.test", MAX_OF_ADDRESS));
    }

    #[test]
    fn all_guests_together_have_a_bound() {
        let bindings = Bindings::default();
        let addresses: Vec<IpAddr> =
            (0..16u32).map(|n| IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n))).collect();
        for index in 0..10_000u32 {
            let guest = IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + index));
            bindings.note(guest, None, &name("a.test"), &addresses, TTL_60);
        }
        assert!(bindings.len() <= MAX_IN_ALL, "{}", bindings.len());
        let mut counted = 0;
        bindings.each(|_| counted += 1);
        assert_eq!(counted, bindings.len());
    }
}
