//! The DNS servers: sends one query and returns the records of one family. hickory implements the protocol.
//! This module decides which server is asked, and when the next one is, because hickory's own pool gives up on
//! the first SERVFAIL and asks a dead server again for every name.

use super::answer::{Family, LookupError, MAX_PER_FAMILY};
use super::server::{Channel, NameServer};
use super::tls_roots;
use crate::name::HostName;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver as Hickory, TokioResolver};
use rustls::ClientConfig;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Servers beyond this number are not used.
const MAX_SERVERS: usize = 8;
/// How long a server that did not answer is asked after the others.
const SICK: Duration = Duration::from_secs(15);
/// No answer is used for longer than this.
const MAX_TTL: Duration = Duration::from_secs(86_400);
/// Bounds on how long "there is none" is used, whatever the SOA says (RFC 2308 §5).
const NEGATIVE_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a failure to get any answer is remembered.
pub(super) const FAILURE_TTL: Duration = Duration::from_secs(2);
/// How long a flow or a query with a usable stale answer waits for a new one.
const STALE_PATIENCE: Duration = Duration::from_millis(1800);
/// The log's text for a silent server.
const NO_ANSWER: &str = "no answer in time";
/// How long a server may take to answer [`Upstreams::try_out`].
const TRIAL: Duration = Duration::from_secs(2);
/// Trials in a row without any answer before it is reported: one datagram may be lost.
const TRIALS: u32 = 2;
/// Names followed within one answer; hickory itself follows eight across answers.
const MAX_CHAIN: usize = 16;

/// The servers in the operator's order, with their known health.
#[derive(Debug)]
pub(super) struct Upstreams {
    servers: Vec<Server>,
    timeout: Duration,
    started: Instant,
    /// Milliseconds after `started` at which a server last answered.
    answered: AtomicU64,
    /// Trials since then that no server answered.
    silent: AtomicU32,
}

#[derive(Debug)]
struct Server {
    what: NameServer,
    resolver: TokioResolver,
    /// Milliseconds after `Upstreams::started` until which the server is asked last; 0 means healthy.
    sick_until: AtomicU64,
}

/// Which addresses to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// A records (RFC 1035).
    V4,
    /// AAAA records (RFC 3596).
    V6,
}

impl Upstreams {
    /// Prepares queries to `servers`; nothing is sent yet. A server counts as dead after `timeout`.
    pub(super) fn new(servers: &[NameServer], timeout: Duration) -> Result<Upstreams, NetError> {
        let servers = servers.get(..MAX_SERVERS).unwrap_or(servers);
        // Loaded once for all servers, and only if one of them uses a certificate.
        let tls = servers.iter().any(NameServer::is_encrypted).then(tls_roots::client).transpose()?;
        let servers = servers
            .iter()
            .map(|server| {
                let resolver = hickory(server, tls.as_ref(), timeout)?;
                Ok(Server { what: server.clone(), resolver, sick_until: AtomicU64::new(0) })
            })
            .collect::<Result<_, NetError>>()?;
        let (answered, silent) = (AtomicU64::new(0), AtomicU32::new(0));
        Ok(Upstreams { servers, timeout, started: Instant::now(), answered, silent })
    }

    /// Asks for one family of `name`. Ends within twice the timeout, whatever the servers do.
    pub(super) async fn ask(self: &Arc<Upstreams>, name: &HostName, kind: AddressKind) -> Family {
        let deadline = Instant::now() + self.timeout * 2;
        let found = match query_name(name) {
            Some(name) => self.ask_in_turn(&name, kind, deadline).await,
            None => Err(Absence { why: LookupError::NoSuchName, ttl: Some(MAX_TTL) }),
        };
        let now = Instant::now();
        match found {
            Ok((addresses, ttl)) => Family::found(addresses, now + ttl.min(MAX_TTL)),
            Err(absence) => {
                let (least, most) = NEGATIVE_TTL;
                let known = absence.why.is_knowledge();
                let ttl = if known { absence.ttl.unwrap_or(least).clamp(least, most) } else { FAILURE_TTL };
                Family::absent(absence.why, now + ttl)
            }
        }
    }

    /// Asks the servers one after the other: the next one when one fails, or has been silent for a moment. The
    /// first conclusive answer wins; later answers of slower servers are dropped.
    async fn ask_in_turn(self: &Arc<Upstreams>, name: &Name, kind: AddressKind, deadline: Instant) -> Found {
        let mut order = self.order().into_iter();
        let mut running = JoinSet::new();
        let mut silent: Vec<usize> = Vec::new();
        let mut failure = Absence { why: LookupError::NoServers, ttl: None };
        let mut next = order.next();
        while let Some(index) = next.take() {
            let (this, name) = (self.clone(), name.clone());
            running.spawn(async move { (index, this.ask_server(index, name, kind).await) });
            silent.push(index);
            let patience = if order.len() > 0 { Instant::now() + self.patience() } else { deadline };
            let wake = patience.min(deadline);
            while next.is_none() {
                match tokio::time::timeout_at(wake.into(), running.join_next()).await {
                    Ok(Some(Ok((index, result)))) => {
                        match result {
                            Err(absence) if !absence.why.is_knowledge() => {
                                silent.retain(|other| *other != index);
                                failure = absence.or(failure);
                                next = order.next();
                            }
                            knowledge => {
                                // Servers asked before the one that answered, and silent until now.
                                silent
                                    .iter()
                                    .take_while(|other| **other != index)
                                    .for_each(|other| self.mark_sick(*other, NO_ANSWER));
                                return knowledge;
                            }
                        }
                    }
                    // A panic within hickory, or a runtime that ends.
                    Ok(Some(Err(_))) => next = order.next(),
                    Ok(None) => return Err(failure),
                    Err(_) if Instant::now() >= deadline => return Err(failure.or_timeout()),
                    Err(_) => next = order.next(),
                }
            }
        }
        Err(failure)
    }

    async fn ask_server(&self, index: usize, name: Name, kind: AddressKind) -> Found {
        let Some(server) = self.servers.get(index) else { return Err(Absence::from(LookupError::NoServers)) };
        let wanted = match kind {
            AddressKind::V4 => RecordType::A,
            AddressKind::V6 => RecordType::AAAA,
        };
        let asked = tokio::time::timeout(self.timeout, server.resolver.lookup(name.clone(), wanted)).await;
        let result = match asked {
            Ok(Ok(lookup)) => addresses(&lookup, &name, kind),
            Ok(Err(error)) => {
                let absence = Absence::of(&error);
                if absence.is_out_of_reach() {
                    self.mark_sick(index, &error.to_string());
                }
                Err(absence)
            }
            Err(_) => {
                self.mark_sick(index, NO_ANSWER);
                Err(Absence::from(LookupError::Timeout))
            }
        };
        if !result.as_ref().is_err_and(Absence::is_out_of_reach) {
            server.sick_until.store(0, Ordering::Relaxed);
            self.note_answer();
        }
        result
    }

    fn note_answer(&self) {
        self.answered.store(self.clock(), Ordering::Relaxed);
        self.silent.store(0, Ordering::Relaxed);
    }

    /// Whether any server has answered within this time.
    pub(super) fn answered_within(&self, time: Duration) -> bool {
        self.clock().saturating_sub(self.answered.load(Ordering::Relaxed)) < millis(time)
    }

    /// Asks all servers for the root's name servers, which each server has at hand (RFC 8109). Any answer shows
    /// that a server is reachable. The order of the servers does not change, because one that answers this may
    /// have no other answers.
    pub(super) async fn try_out(self: &Arc<Upstreams>) {
        let mut running = JoinSet::new();
        for index in 0..self.servers.len() {
            let this = Arc::clone(self);
            running.spawn(async move {
                let Some(server) = this.servers.get(index) else { return false };
                let asked = server.resolver.lookup(Name::root(), RecordType::NS);
                match tokio::time::timeout(this.timeout.min(TRIAL), asked).await {
                    Ok(Ok(_)) => true,
                    Ok(Err(error)) => !Absence::of(&error).is_out_of_reach(),
                    Err(_) => false,
                }
            });
        }
        while let Some(answered) = running.join_next().await {
            if answered.is_ok_and(|answered| answered) {
                return self.note_answer();
            }
        }
        if !self.servers.is_empty() {
            self.silent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns all servers if none of them answers any query.
    pub(super) fn all_silent(&self) -> Option<String> {
        (self.silent.load(Ordering::Relaxed) >= TRIALS).then(|| self.names())
    }

    /// Whether the last trial got no answer.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.silent.load(Ordering::Relaxed) > 0
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.servers.iter().map(|server| server.what.to_string()).collect();
        names.join(", ")
    }

    /// Returns how long a server may be silent before the next one is asked as well: long enough for most names
    /// that the server has to look up itself, short enough for a waiting flow.
    fn patience(&self) -> Duration {
        (self.timeout / 4).min(Duration::from_millis(400))
    }

    /// Returns the servers' indices in the order in which to ask them: the healthy ones in the operator's
    /// order, then the sick ones. When a sick server's time is up, a single query tries it; meanwhile the
    /// others still pass it over.
    fn order(&self) -> Vec<usize> {
        let clock = self.clock();
        let is_well = |server: &Server| {
            let until = server.sick_until.load(Ordering::Relaxed);
            let again = clock + millis(SICK);
            until == 0
                || (until <= clock
                    && server.sick_until.compare_exchange(until, again, Ordering::Relaxed, Ordering::Relaxed).is_ok())
        };
        let (mut well, sick): (Vec<_>, Vec<_>) =
            self.servers.iter().enumerate().partition(|(_, server)| is_well(server));
        well.extend(sick);
        well.into_iter().map(|(index, _)| index).collect()
    }

    fn mark_sick(&self, index: usize, why: &str) {
        if let Some(server) = self.servers.get(index) {
            let until = self.clock() + millis(SICK);
            if server.sick_until.swap(until, Ordering::Relaxed) == 0 {
                tracing::warn!(
                    server = %server.what,
                    why,
                    "a DNS server does not answer, so for 15 s the others are asked before it; check it, or name \
                     others in [resolver].servers"
                );
            }
        }
    }

    /// Returns how long to wait for the servers if a stale answer exists (RFC 8767 §5 suggests 1.8 s); zero
    /// while none of them is healthy.
    pub(super) fn stale_patience(&self) -> Duration {
        let clock = self.clock();
        let none_is_well = self.servers.iter().all(|server| server.sick_until.load(Ordering::Relaxed) > clock);
        if none_is_well { Duration::ZERO } else { self.timeout.min(STALE_PATIENCE) }
    }

    /// Returns all servers if none of them has answered since it last failed, for 15 s after that failure.
    pub(super) fn all_failing(&self) -> Option<String> {
        let clock = self.clock();
        let none_is_well = self.servers.iter().all(|server| server.sick_until.load(Ordering::Relaxed) > clock);
        (none_is_well && !self.servers.is_empty()).then(|| self.names())
    }

    /// Returns the servers that are asked last at present.
    #[cfg(test)]
    pub(super) fn sick(&self) -> Vec<std::net::SocketAddr> {
        let sick = self.servers.iter().filter(|server| server.sick_until.load(Ordering::Relaxed) > self.clock());
        sick.map(|server| server.what.address).collect()
    }

    fn clock(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

/// The addresses of one family and their TTL, or why there are none.
type Found = Result<(Vec<IpAddr>, Duration), Absence>;

#[derive(Clone, Copy, Debug)]
struct Absence {
    why: LookupError,
    ttl: Option<Duration>,
}

impl From<LookupError> for Absence {
    fn from(why: LookupError) -> Absence {
        Absence { why, ttl: None }
    }
}

impl Absence {
    fn of(error: &NetError) -> Absence {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => {
                let why = match none.response_code {
                    ResponseCode::NXDomain => LookupError::NoSuchName,
                    ResponseCode::NoError => LookupError::NoAddresses,
                    code => LookupError::Refused(code.to_str()),
                };
                Absence { why, ttl: none.negative_ttl.map(|seconds| Duration::from_secs(seconds.into())) }
            }
            NetError::Dns(DnsError::ResponseCode(code)) => LookupError::Refused(code.to_str()).into(),
            NetError::Timeout => LookupError::Timeout.into(),
            NetError::Io(_) | NetError::NoConnections | NetError::Busy => LookupError::Unreachable.into(),
            NetError::Truncated => LookupError::Refused("a truncated answer, over TCP as well").into(),
            _ => LookupError::Refused("a message that cannot be read").into(),
        }
    }

    /// Whether no server was reached that could have known.
    fn is_out_of_reach(&self) -> bool {
        matches!(self.why, LookupError::Timeout | LookupError::Unreachable)
    }

    /// Returns the more informative of two failures: a server's response rather than that none answered.
    fn or(self, earlier: Absence) -> Absence {
        if matches!(earlier.why, LookupError::Refused(_)) { earlier } else { self }
    }

    fn or_timeout(self) -> Absence {
        Absence::from(LookupError::Timeout).or(self)
    }
}

fn hickory(server: &NameServer, tls: Option<&ClientConfig>, timeout: Duration) -> Result<TokioResolver, NetError> {
    let ip = server.address.ip();
    let mut name_server = match &server.channel {
        Channel::Plain => NameServerConfig::udp_and_tcp(ip),
        Channel::Tls { name } => NameServerConfig::tls(ip, name.as_str().into()),
        Channel::Https { name, path } => NameServerConfig::https(ip, name.as_str().into(), Some((**path).into())),
    };
    for connection in &mut name_server.connections {
        connection.port = server.address.port();
    }
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    options.attempts = 0;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.num_concurrent_reqs = 1;
    // Over TCP the queries of all flows share one connection.
    options.max_active_requests = 4096;
    // CNAMEs are needed for the TTL and to check whose addresses an answer contains.
    options.preserve_intermediates = true;
    // 0x20: one more thing that a spoofed answer has to guess; a server that does not preserve the case is
    // asked over TCP. Within TLS nobody can spoof answers.
    options.case_randomization = !server.is_encrypted();
    let config = ResolverConfig::from_name_servers(vec![name_server]);
    let builder = Hickory::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    match tls {
        Some(tls) => builder.with_tls_config(tls.clone()).build(),
        None => builder.build(),
    }
}

/// Converts the name for hickory: absolute, so that no search domain is tried.
fn query_name(name: &HostName) -> Option<Name> {
    let mut name = Name::from_labels(name.labels().map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Returns the answer's addresses that belong to `name` or to a name it is an alias for. Records that are not
/// linked by the chain of CNAMEs are left out (RFC 5452 §6).
fn addresses(lookup: &Lookup, name: &Name, kind: AddressKind) -> Found {
    let records = lookup.answers();
    let mut chain = vec![name];
    let mut ttl = MAX_TTL;
    while chain.len() <= MAX_CHAIN
        && let Some(last) = chain.last()
        && let Some((record, target)) = records.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == **last => Some((record, &target.0)),
            _ => None,
        })
        && !chain.contains(&target)
    {
        ttl = ttl.min(Duration::from_secs(record.ttl.into()));
        chain.push(target);
    }
    let mut found = Vec::new();
    for record in records {
        let address = match (&record.data, kind) {
            (RData::A(address), AddressKind::V4) => IpAddr::V4(address.0),
            (RData::AAAA(address), AddressKind::V6) => IpAddr::V6(address.0),
            _ => continue,
        };
        if chain.contains(&&record.name) && found.len() < MAX_PER_FAMILY && !found.contains(&address) {
            ttl = ttl.min(Duration::from_secs(record.ttl.into()));
            found.push(address);
        }
    }
    if found.is_empty() { Err(LookupError::NoAddresses.into()) } else { Ok((found, ttl)) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
