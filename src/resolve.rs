//! A permit in, vetted addresses out: asks DNS for the name (one query a name in flight, TTLs
//! honoured, failures remembered briefly) and holds the whole answer against the address floor.
//! Only this module can make a [`Vetted`].
//!
//! Flows run on one runtime a core; lookups run on the control runtime, and the flows share what they
//! find. [`Resolver::try_vet`] answers at once where nothing has to be asked.
//!
//! While no server answers, what was known lately serves on for a day, for flows and for guests' DNS
//! alike (RFC 8767): an address that worked an hour ago most likely works now, and it is vetted like any.

mod address_screen;
pub mod answer;
mod cache;
mod dns_answer;
pub mod floor;
mod hosts;
mod locality;
mod lookup;
mod server;
mod tls_roots;
mod upstream;

#[cfg(test)]
mod tests;

pub use address_screen::VetError;
pub use answer::{Answer, Family, LookupError};
pub use dns_answer::DnsAnswer;
pub use server::{Channel, NameServer};
pub use upstream::AddressKind;

use crate::name::HostName;
use crate::policy::{AddressTerms, NamePermit, Permit};
use crate::target::{Host, Target};
use arc_swap::ArcSwap;
use cache::{Cache, Entry, Outcome};
use ipnet::IpNet;
use locality::Localities;
use lookup::Sources;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Addresses that a [`Vetted`] holds at most: as many as are ever dialled.
pub const MAX_VETTED: usize = 6;

/// Flows that wait for lookups at once, over all names.
const MAX_WAITING: usize = 65_536;

/// The right to start one lookup. It is held until the lookup has landed and then dropped, so that whoever
/// gives it can limit how many a guest has under way.
pub type Ticket = Box<dyn std::any::Any + Send>;

/// May a lookup be started for whoever wants a name? Asked only where nobody else is looking it up.
pub enum Start {
    /// Yes.
    Now(Ticket),
    /// Not yet: to be asked again after this long, unless the name is known by then.
    After(Duration),
    /// No.
    Refused,
}

/// Between two looks at resolv.conf and the hosts file.
const FILE_CHECK: Duration = Duration::from_secs(5);

/// Between two trials of servers that nobody asks; and where the last was in vain.
const TRIAL: Duration = Duration::from_secs(4);
const TRIAL_IN_DOUBT: Duration = Duration::from_secs(1);

/// `[resolver]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// In the order in which they are asked; empty: those of `/etc/resolv.conf`.
    pub servers: Vec<NameServer>,
    /// Names found in this file (hosts(5)) are not asked upstream.
    pub hosts_file: Option<PathBuf>,
    /// A server that has not answered after this is taken for dead; a lookup lasts twice this at most.
    pub timeout: Duration,
}

/// What the address floor needs to know beyond the IANA registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloorSettings {
    /// `[dial].permit_addresses`: taken out of the floor for every rule.
    pub permitted: Vec<IpNet>,
    /// The addresses of declared guests.
    pub guests: Vec<IpNet>,
    /// Outgate's own listeners; never reachable, whatever permits. An unspecified address stands for
    /// every address of this machine.
    pub listeners: Vec<SocketAddr>,
}

/// Addresses that a flow may be connected to, in the order to try them. Never empty, at most
/// [`MAX_VETTED`].
#[derive(Clone, Copy)]
pub struct Vetted {
    addresses: [SocketAddr; MAX_VETTED],
    count: usize,
}

impl Vetted {
    /// The addresses, ports included.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.addresses.get(..self.count).unwrap_or_default()
    }

    /// For tests of the stages behind: addresses that nobody vetted.
    #[cfg(test)]
    pub(crate) fn of(addresses: &[SocketAddr]) -> Vetted {
        let mut vetted = Vetted::new(std::iter::repeat_n(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addresses.len()), 0);
        vetted.addresses.iter_mut().zip(addresses).for_each(|(slot, address)| *slot = *address);
        vetted
    }

    fn new(addresses: impl Iterator<Item = IpAddr>, port: u16) -> Vetted {
        let mut vetted =
            Vetted { addresses: [SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0); MAX_VETTED], count: 0 };
        for (slot, address) in vetted.addresses.iter_mut().zip(addresses) {
            *slot = SocketAddr::new(address, port);
            vetted.count += 1;
        }
        vetted
    }
}

impl std::fmt::Debug for Vetted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Vetted").field(&self.addresses()).finish()
    }
}

/// Why a resolver cannot be set up as told.
#[derive(Debug, thiserror::Error)]
pub enum ResolveSetupError {
    /// The hosts file cannot be read.
    #[error("hosts file {path}: {source}")]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No socket could be opened.
    #[error("socket: {0}")]
    Socket(#[source] io::Error),
    /// The DNS client refuses its configuration.
    #[error("DNS client: {0}")]
    Client(String),
}

/// Turns permits into vetted addresses. Shared by all threads of the daemon.
#[derive(Debug)]
pub struct Resolver {
    state: ArcSwap<State>,
    /// Held while a new state is made, so that two changes cannot undo one another.
    changing: Mutex<()>,
    cache: Arc<Cache>,
    localities: Localities,
    waiting: AtomicUsize,
    started: Instant,
    runtime: Handle,
}

/// What a change of configuration or of a watched file replaces as a whole.
#[derive(Debug)]
struct State {
    sources: Sources,
    floor: FloorSettings,
    /// Counts the states, from 1.
    generation: u64,
}

impl Resolver {
    /// Makes a resolver whose lookups run on `runtime`, which must have its IO and time drivers on.
    ///
    /// A missing or empty resolv.conf is no error: it is looked at again every 5 s, and until then
    /// lookups fail.
    pub fn start(
        settings: &ResolverSettings,
        floor: FloorSettings,
        runtime: Handle,
    ) -> Result<Arc<Resolver>, ResolveSetupError> {
        let state = State { sources: Sources::open(settings)?, floor, generation: 1 };
        let resolver = Arc::new(Resolver {
            state: ArcSwap::from_pointee(state),
            changing: Mutex::new(()),
            cache: Arc::new(Cache::new()),
            localities: Localities::open().map_err(ResolveSetupError::Socket)?,
            waiting: AtomicUsize::new(0),
            started: Instant::now(),
            runtime,
        });
        resolver.runtime.spawn(watch_files(Arc::downgrade(&resolver)));
        resolver.runtime.spawn(watch_servers(Arc::downgrade(&resolver)));
        Ok(resolver)
    }

    /// Takes over new settings, all or none: on an error everything stays as it was. What is known of
    /// names is forgotten where the servers change.
    pub fn reconfigure(&self, settings: &ResolverSettings, floor: FloorSettings) -> Result<(), ResolveSetupError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.state.load_full();
        let sources = current.sources.reopen(settings)?;
        self.replace(&current, sources, floor);
        Ok(())
    }

    /// The DNS servers, where all of them failed lately and none has answered since.
    pub fn all_failing(&self) -> Option<String> {
        self.state.load().sources.upstreams().all_failing()
    }

    /// The DNS servers, where none of them answers whatever is asked.
    pub fn all_silent(&self) -> Option<String> {
        self.state.load().sources.upstreams().all_silent()
    }

    /// Takes over another floor; servers and what is known of names stay.
    pub fn set_floor(&self, floor: FloorSettings) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.state.load_full();
        self.replace(&current, current.sources.clone(), floor);
    }

    /// Vets what needs no query: address literals, names of the hosts file, names known or known to
    /// fail. `None`: [`vet`](Self::vet) has to ask.
    pub fn try_vet(&self, permit: &Permit) -> Option<Result<Vetted, VetError>> {
        self.try_vet_target(permit.target(), permit.addresses())
    }

    /// Vets the permit's target, asking DNS where necessary; at most twice the configured timeout, and what `start`
    /// has it wait. Dropping the future does not stop a query, which others may wait for. `start` is given whether
    /// the name is one that nobody has asked for before.
    pub async fn vet(&self, permit: &Permit, start: impl FnMut(bool) -> Start + Send) -> Result<Vetted, VetError> {
        self.vet_target(permit.target(), permit.addresses(), start).await
    }

    /// As [`try_vet`](Self::try_vet), for a guest's DNS query: what it may be told of one family.
    pub fn try_dns_answer(&self, permit: &NamePermit, kind: AddressKind) -> Option<Result<DnsAnswer, VetError>> {
        let now = Instant::now();
        let state = self.state.load();
        let outcome = self.known(&state, permit.name(), now)?;
        Some(
            outcome.map_err(VetError::from).and_then(|answer| self.answer_of_family(&state, answer, permit, kind, now)),
        )
    }

    /// As [`vet`](Self::vet), for a guest's DNS query.
    ///
    /// # Errors
    /// Where the name does not exist, where nobody could say, and where an address of the family must not
    /// be told. A name without addresses of the family is no error.
    pub async fn dns_answer(
        &self,
        permit: &NamePermit,
        kind: AddressKind,
        start: impl FnMut(bool) -> Start + Send,
    ) -> Result<DnsAnswer, VetError> {
        let answer = self.lookup(permit.name(), start).await?;
        self.answer_of_family(&self.state.load(), answer, permit, kind, Instant::now())
    }

    fn answer_of_family(
        &self,
        state: &State,
        answer: Arc<Answer>,
        permit: &NamePermit,
        kind: AddressKind,
        now: Instant,
    ) -> Result<DnsAnswer, VetError> {
        self.screen_of(state, now).screen_family(&answer, kind, permit)?;
        DnsAnswer::of(answer, kind, now)
    }

    /// Are all these addresses, taken from an [`Answer`] for the permit's name, within what the permit
    /// and the floor allow?
    pub fn screen(&self, permit: &Permit, addresses: &[IpAddr]) -> Result<(), VetError> {
        let state = self.state.load();
        let screen_of = self.screen_of(&state, Instant::now());
        addresses.iter().try_for_each(|address| screen_of.judge(*address, permit.target().port, permit.addresses()))
    }

    /// The addresses of `name`, unvetted: they must not be dialled. Ends within twice the timeout, and what `start` has
    /// it wait.
    pub async fn lookup(
        &self,
        name: &HostName,
        mut start: impl FnMut(bool) -> Start + Send,
    ) -> Result<Arc<Answer>, LookupError> {
        let mut arrival = loop {
            if let Some(outcome) = self.known(&self.state.load(), name, Instant::now()) {
                return outcome;
            }
            match self.cache.enter(name, &mut start, Instant::now()) {
                Entry::Ready(outcome) => return outcome,
                Entry::Wait(arrival) => break arrival,
                Entry::Leader { in_flight, arrival, previous } => {
                    let upstreams = self.state.load().sources.upstreams().clone();
                    self.runtime.spawn(lookup::look_up(upstreams, name.clone(), in_flight, previous));
                    break arrival;
                }
                Entry::Later(wait) => tokio::time::sleep(wait).await,
            }
        };
        let _seat = Seat::take(&self.waiting).ok_or(LookupError::Busy)?;
        let outcome = arrival.wait_for(Option::is_some).await.map_err(|_| LookupError::Stopped)?;
        outcome.clone().unwrap_or(Err(LookupError::Stopped))
    }

    fn try_vet_target(&self, target: &Target, terms: &AddressTerms) -> Option<Result<Vetted, VetError>> {
        let now = Instant::now();
        let state = self.state.load();
        match &target.host {
            Host::Addr(address) => {
                let judged = self.screen_of(&state, now).judge(*address, target.port, terms);
                Some(judged.map(|()| Vetted::new(std::iter::once(*address), target.port)))
            }
            Host::Name(name) => {
                let outcome = self.known(&state, name, now)?;
                Some(
                    outcome
                        .map_err(VetError::from)
                        .and_then(|answer| self.screen_of(&state, now).vet(&answer, target.port, terms)),
                )
            }
        }
    }

    async fn vet_target(
        &self,
        target: &Target,
        terms: &AddressTerms,
        start: impl FnMut(bool) -> Start + Send,
    ) -> Result<Vetted, VetError> {
        if let Some(vetted) = self.try_vet_target(target, terms) {
            return vetted;
        }
        let name = target.host.name().ok_or(LookupError::NoAddresses)?;
        let answer = self.lookup(name, start).await?;
        // Judged under the settings that hold now, not those from before the wait.
        let state = self.state.load();
        self.screen_of(&state, Instant::now()).vet(&answer, target.port, terms)
    }

    /// What is known of `name` without asking anybody.
    fn known(&self, state: &State, name: &HostName, now: Instant) -> Option<Outcome> {
        if let Some(answer) = state.sources.hosts().get(name) {
            return Some(Ok(answer.clone()));
        }
        // Reserved names never get into the cache, so they are looked for last.
        self.cache.get(name, now).or_else(|| is_reserved(name).then_some(Err(LookupError::Reserved)))
    }

    fn screen_of<'a>(&'a self, state: &'a State, now: Instant) -> address_screen::AddressScreen<'a> {
        let clock = u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        address_screen::AddressScreen {
            floor: &state.floor,
            generation: state.generation,
            localities: &self.localities,
            now,
            clock,
        }
    }

    fn replace(&self, current: &State, sources: Sources, floor: FloorSettings) {
        let emptied = !Arc::ptr_eq(sources.upstreams(), current.sources.upstreams());
        self.state.store(Arc::new(State { sources, floor, generation: current.generation + 1 }));
        if emptied {
            self.cache.clear();
        }
    }

    /// Looks whether resolv.conf or the hosts file changed, and takes them over; reads files.
    fn check_files(&self) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.state.load_full();
        match current.sources.refresh() {
            Ok(None) => {}
            Ok(Some(sources)) => self.replace(&current, sources, current.floor.clone()),
            Err(error) => tracing::warn!(%error, "resolver: what was read before stays in force"),
        }
    }
}

/// Names that stand for this machine, its link or its cloud, wherever they are asked for (RFC 6761
/// §6.3, RFC 6762 §3).
fn is_reserved(name: &HostName) -> bool {
    let last = name.labels().next_back();
    matches!(last, Some("localhost" | "local")) || name.as_str() == "metadata.google.internal"
}

async fn watch_files(resolver: Weak<Resolver>) {
    loop {
        tokio::time::sleep(FILE_CHECK).await;
        let Some(resolver) = resolver.upgrade() else { return };
        // An error here is a panic in the check or a runtime that ends; neither stops the watch.
        let _ = tokio::task::spawn_blocking(move || resolver.check_files()).await;
    }
}

/// Tries the servers out while nobody else asks them, so that dead ones are known before a guest finds out. At once
/// again where none answered.
async fn watch_servers(resolver: Weak<Resolver>) {
    loop {
        let Some(upstreams) = resolver.upgrade().map(|resolver| resolver.state.load().sources.upstreams().clone())
        else {
            return;
        };
        if !upstreams.answered_within(TRIAL) {
            upstreams.try_out().await;
        }
        let wait = if upstreams.is_in_doubt() { TRIAL_IN_DOUBT } else { TRIAL };
        drop(upstreams);
        tokio::time::sleep(wait).await;
    }
}

/// One flow's place among those that wait.
struct Seat<'a>(&'a AtomicUsize);

impl Seat<'_> {
    fn take(waiting: &AtomicUsize) -> Option<Seat<'_>> {
        let seat = Seat(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(seat)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
