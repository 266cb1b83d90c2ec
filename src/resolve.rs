//! Turns a permit into vetted addresses: asks DNS for the name (one query per name in flight, TTLs respected,
//! failures remembered briefly) and checks the whole answer against the address floor. Only this module can
//! create a [`Vetted`].
//!
//! Flows run on one runtime per core; lookups run on the control runtime, and the flows share their results.
//! [`Resolver::try_vet`] answers at once if no server has to be asked.
//!
//! While no server answers, recent answers stay in use for a day, for flows and for guests' DNS alike (RFC
//! 8767): an address that worked an hour ago most likely still works, and it is vetted like any other.

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

use crate::limits::NamePace;
use crate::lock::lock;
use crate::name::HostName;
use crate::policy::{AddressTerms, NamePermit, Permit};
use crate::semaphore::SemaphorePermit;
use crate::target::{Host, Target};
use arc_swap::ArcSwap;
use cache::{Cache, Entry, Outcome};
use ipnet::IpNet;
use locality::Localities;
use lookup::Sources;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Most addresses in a [`Vetted`]: no more are ever dialled.
pub const MAX_VETTED: usize = 6;

/// Flows that may wait for lookups at once, over all names.
const MAX_WAITING: u32 = 65_536;

/// Time between two checks of resolv.conf and the hosts file.
const FILE_CHECK: Duration = Duration::from_secs(5);

/// Time between two trials of servers that get no queries; below it, the time after a failed trial.
const TRIAL: Duration = Duration::from_secs(4);
const TRIAL_IN_DOUBT: Duration = Duration::from_secs(1);

/// `[resolver]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// The servers in the order in which they are asked; empty: those of `/etc/resolv.conf`.
    pub servers: Vec<NameServer>,
    /// Names in this file (hosts(5)) are not asked upstream.
    pub hosts_file: Option<PathBuf>,
    /// A server that has not answered after this counts as dead; a lookup lasts at most twice this.
    pub timeout: Duration,
}

/// What the address floor uses besides the IANA registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloorSettings {
    /// `[dial].permit_addresses`: excluded from the floor for every rule.
    pub permitted: Vec<IpNet>,
    /// The addresses of declared guests.
    pub guests: Vec<IpNet>,
    /// Outgate's own listeners; never reachable, whatever permits them. An unspecified address stands for every
    /// address of this machine.
    pub listeners: Vec<SocketAddr>,
}

/// Addresses that a flow may be connected to, in the order in which to try them. Never empty, at most [`MAX_VETTED`].
#[derive(Clone, Copy)]
pub struct Vetted {
    addresses: [SocketAddr; MAX_VETTED],
    count: usize,
}

impl Vetted {
    /// Returns the addresses, including ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.addresses.get(..self.count).unwrap_or_default()
    }

    /// Creates unvetted addresses, for tests of later stages.
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

/// Why a resolver cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum ResolveSetupError {
    /// The hosts file cannot be read.
    #[error("the hosts file {path} cannot be read: {source}")]
    Hosts {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No socket could be opened.
    #[error("the resolver cannot open a socket: {0}")]
    Socket(#[source] io::Error),
    /// The DNS client rejects its configuration.
    #[error("the DNS client cannot be set up: {0}")]
    Client(String),
}

/// Turns permits into vetted addresses. Shared by all threads of the daemon.
#[derive(Debug)]
pub struct Resolver {
    state: ArcSwap<InForce>,
    /// Held while a new state is created, so that two changes cannot undo each other.
    changing: Mutex<()>,
    cache: Arc<Cache>,
    localities: Localities,
    /// Flows that wait for lookups.
    waiting: AtomicU32,
    started: Instant,
    runtime: Handle,
}

/// The part that a change of configuration or of a watched file replaces as a whole.
#[derive(Debug)]
struct InForce {
    sources: Sources,
    floor: FloorSettings,
    /// The number of the state, from 1.
    generation: u64,
}

impl Resolver {
    /// Creates a resolver whose lookups run on `runtime`, which must have its IO and time drivers enabled.
    ///
    /// A missing or empty resolv.conf is not an error: it is checked again every 5 s, and until then lookups fail.
    pub fn start(
        settings: &ResolverSettings,
        floor: FloorSettings,
        runtime: Handle,
    ) -> Result<Arc<Resolver>, ResolveSetupError> {
        let state = InForce { sources: Sources::open(settings)?, floor, generation: 1 };
        let resolver = Arc::new(Resolver {
            state: ArcSwap::from_pointee(state),
            changing: Mutex::new(()),
            cache: Arc::new(Cache::new()),
            localities: Localities::open().map_err(ResolveSetupError::Socket)?,
            waiting: AtomicU32::new(0),
            started: Instant::now(),
            runtime,
        });
        resolver.runtime.spawn(watch_files(Arc::downgrade(&resolver)));
        resolver.runtime.spawn(watch_servers(Arc::downgrade(&resolver)));
        Ok(resolver)
    }

    /// Applies new settings, all or none: on an error nothing changes. The cached names are cleared if the
    /// servers change.
    pub fn reconfigure(&self, settings: &ResolverSettings, floor: FloorSettings) -> Result<(), ResolveSetupError> {
        let _changing = lock(&self.changing);
        let current = self.state.load_full();
        let sources = current.sources.reopen(settings)?;
        self.replace(&current, sources, floor);
        Ok(())
    }

    /// Returns the DNS servers if all of them failed lately and none has answered since.
    pub fn all_failing(&self) -> Option<String> {
        self.state.load().sources.upstreams().all_failing()
    }

    /// Returns the DNS servers if none of them answers any query.
    pub fn all_silent(&self) -> Option<String> {
        self.state.load().sources.upstreams().all_silent()
    }

    /// Applies another floor; servers and cached names stay.
    pub fn set_floor(&self, floor: FloorSettings) {
        let _changing = lock(&self.changing);
        let current = self.state.load_full();
        self.replace(&current, current.sources.clone(), floor);
    }

    /// Vets what needs no query: address literals, names of the hosts file, and names whose answer or failure
    /// is cached. `None`: [`vet`](Self::vet) has to ask.
    pub fn try_vet(&self, permit: &Permit) -> Option<Result<Vetted, VetError>> {
        self.try_vet_target(permit.target(), permit.addresses())
    }

    /// Vets the permit's target and asks DNS if necessary. Takes at most twice the configured timeout, plus the
    /// wait that `start` orders. Dropping the future does not stop a query, since others may wait for it. `start` says
    /// whether the guest may have the name looked up; its argument is whether nobody has asked for it before.
    pub async fn vet(&self, permit: &Permit, start: impl FnMut(bool) -> NamePace + Send) -> Result<Vetted, VetError> {
        self.vet_target(permit.target(), permit.addresses(), start).await
    }

    /// Works as [`try_vet`](Self::try_vet), for a guest's DNS query: returns what its reply may contain of one family.
    pub fn try_dns_answer(&self, permit: &NamePermit, kind: AddressKind) -> Option<Result<DnsAnswer, VetError>> {
        let now = Instant::now();
        let state = self.state.load();
        let outcome = self.known(&state, permit.name(), now)?;
        Some(
            outcome.map_err(VetError::from).and_then(|answer| self.answer_of_family(&state, answer, permit, kind, now)),
        )
    }

    /// Works as [`vet`](Self::vet), for a guest's DNS query.
    ///
    /// # Errors
    /// If the name does not exist, if no server could answer, and if an address of the family must not be
    /// shown. A name without addresses of the family is not an error.
    pub async fn dns_answer(
        &self,
        permit: &NamePermit,
        kind: AddressKind,
        start: impl FnMut(bool) -> NamePace + Send,
    ) -> Result<DnsAnswer, VetError> {
        let answer = self.lookup(permit.name(), start).await?;
        self.answer_of_family(&self.state.load(), answer, permit, kind, Instant::now())
    }

    fn answer_of_family(
        &self,
        state: &InForce,
        answer: Arc<Answer>,
        permit: &NamePermit,
        kind: AddressKind,
        now: Instant,
    ) -> Result<DnsAnswer, VetError> {
        self.screen_of(state, now).screen_family(&answer, kind, permit)?;
        DnsAnswer::of(answer, kind, now)
    }

    /// Checks that all these addresses, taken from an [`Answer`] for the permit's name, are within what the
    /// permit and the floor allow.
    pub fn screen(&self, permit: &Permit, addresses: &[IpAddr]) -> Result<(), VetError> {
        let state = self.state.load();
        let screen_of = self.screen_of(&state, Instant::now());
        addresses.iter().try_for_each(|address| screen_of.check(*address, permit.target().port, permit.addresses()))
    }

    /// Returns the addresses of `name`, unvetted: they must not be dialled. Ends within twice the timeout, plus
    /// the wait that `start` orders.
    pub async fn lookup(
        &self,
        name: &HostName,
        mut start: impl FnMut(bool) -> NamePace + Send,
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
        let _permit = SemaphorePermit::try_acquire(&self.waiting, MAX_WAITING).ok_or(LookupError::Busy)?;
        let outcome = arrival.wait_for(Option::is_some).await.map_err(|_| LookupError::Stopped)?;
        outcome.clone().unwrap_or(Err(LookupError::Stopped))
    }

    fn try_vet_target(&self, target: &Target, terms: &AddressTerms) -> Option<Result<Vetted, VetError>> {
        let now = Instant::now();
        let state = self.state.load();
        match &target.host {
            Host::Addr(address) => {
                let judged = self.screen_of(&state, now).check(*address, target.port, terms);
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
        start: impl FnMut(bool) -> NamePace + Send,
    ) -> Result<Vetted, VetError> {
        if let Some(vetted) = self.try_vet_target(target, terms) {
            return vetted;
        }
        let name = target.host.name().ok_or(LookupError::NoAddresses)?;
        let answer = self.lookup(name, start).await?;
        // Judged under the current settings, not those from before the wait.
        let state = self.state.load();
        self.screen_of(&state, Instant::now()).vet(&answer, target.port, terms)
    }

    /// Returns what is known of `name` without a query.
    fn known(&self, state: &InForce, name: &HostName, now: Instant) -> Option<Outcome> {
        if let Some(answer) = state.sources.hosts().get(name) {
            return Some(Ok(answer.clone()));
        }
        // Reserved names are never in the cache, so they are checked last.
        self.cache.get(name, now).or_else(|| is_reserved(name).then_some(Err(LookupError::Reserved)))
    }

    fn screen_of<'a>(&'a self, state: &'a InForce, now: Instant) -> address_screen::AddressScreen<'a> {
        let clock = u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        address_screen::AddressScreen {
            floor: &state.floor,
            generation: state.generation,
            localities: &self.localities,
            now,
            clock,
        }
    }

    fn replace(&self, current: &InForce, sources: Sources, floor: FloorSettings) {
        let emptied = !Arc::ptr_eq(sources.upstreams(), current.sources.upstreams());
        self.state.store(Arc::new(InForce { sources, floor, generation: current.generation + 1 }));
        if emptied {
            self.cache.clear();
        }
    }

    /// Checks whether resolv.conf or the hosts file changed, and applies them; reads files.
    fn check_files(&self) {
        let _changing = lock(&self.changing);
        let current = self.state.load_full();
        match current.sources.refresh() {
            Ok(None) => {}
            Ok(Some(sources)) => self.replace(&current, sources, current.floor.clone()),
            Err(error) => {
                tracing::warn!(%error, "a file of the resolver cannot be read again, so what was read before stays in force; correct it")
            }
        }
    }
}

/// Whether the name always stands for this machine, its link or its cloud, wherever it is looked up (RFC 6761
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

/// Tries the servers while nobody else queries them, so that dead ones are known before a guest notices.
/// Retries sooner if none answered.
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
