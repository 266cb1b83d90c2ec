//! The life of one connection from start to end: the only module that calls the stages.
//!
//! ```text
//! accept -> identify -> decide -> resolve -> dial -> relay -> account
//! ```
//!
//! `serve` takes a connection from a listener and serves it to its end. Each `Step` is a boxed future of its
//! own that is freed before the next begins, so an idle tunnel costs little more than its two sockets. The
//! values that pass from step to step are boxed too: an async function stores its arguments twice and copies
//! them into each one it calls. A flow's record is opened as soon as something is known about the flow. It is
//! closed, counted and logged wherever the flow ends, also by a panic.

mod guest_tls;
mod http;
mod idle_upstreams;
mod refuse;
mod socks;
mod transparent;
mod tunnel;
mod turn_away;

pub use guest_tls::GuestTls;
pub use idle_upstreams::IdleUpstreams;

use crate::accept::{Accepted, Reserve};
use crate::account::{Account, Active, Limit, Record};
use crate::config::Settings;
use crate::dial::{self, DialSettings, Upstream};
use crate::dns::Bindings;
use crate::firewall::{Seal, Shares};
use crate::identify::{Claim, Evidence};
use crate::limits::{Gate, NamePace, Purpose, Slot};
use crate::listener::{Listener, ListenerKind};
use crate::policy::{Permit, Policy, Refusal};
use crate::reason::{Reason, Why};
use crate::relay::{End, GuestStream, Side, Supervision, Tunnel, close, scratch};
use crate::resolve::Resolver;
use crate::source::Source;
use arc_swap::ArcSwap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use turn_away::turn_away;

/// How many bytes [`meet`] reads from a new connection at most.
const FIRST_WORDS: usize = 4096;

/// What every flow needs; one for the daemon.
pub struct Services {
    /// The policy in force and the settings that change with a reload.
    pub live: Arc<ArcSwap<Live>>,
    /// Limits and what each guest has in use.
    pub gate: Arc<Gate>,
    /// Resets a connection when no file descriptor is left for it.
    pub reserve: Reserve,
    /// The TLS state of `proxy_tls`, if there is such a listener.
    pub guest_tls: Option<GuestTls>,
    /// Resolves names to addresses.
    pub resolver: Arc<Resolver>,
    /// The names behind the addresses that outgate's DNS gave to guests.
    pub bindings: Arc<Bindings>,
    /// Idle connections to upstreams, between requests.
    pub idle_upstreams: Arc<IdleUpstreams>,
    /// Opens the records.
    pub account: Arc<Account>,
    /// Cancelled when the daemon stops: kept connections then end after the current request.
    pub stop: CancellationToken,
}

impl Services {
    /// Drops the bindings of names that their guest may not look up any more, and of guests that are gone. Call
    /// this after a new policy is in force; it takes a microsecond per binding.
    pub fn drop_bindings(&self) {
        self.bindings.revise();
        self.drop_late_bindings();
    }

    /// Drops those that were added while [`drop_bindings`](Self::drop_bindings) ran.
    pub fn drop_late_bindings(&self) {
        let policy = Arc::clone(&self.live.load().policy);
        self.bindings.retain(|source, guest, name| {
            policy.guest(&source.into()).name == guest && policy.permit_name(source, name).is_ok()
        });
    }
}

/// The snapshot that one decision uses.
pub struct Live {
    /// The rules and modes.
    pub policy: Arc<Policy>,
    /// How to connect.
    pub dial: DialSettings,
    /// The firewall that the configuration asks for, if any.
    pub seal: Option<Seal>,
    /// The parts of the limits that its rules enforce.
    pub shares: Option<Shares>,
}

impl Live {
    /// The snapshot for this policy and these settings.
    pub fn new(policy: Arc<Policy>, settings: &Settings) -> Live {
        Live { policy, dial: settings.dial, seal: settings.seal(), shares: settings.shares() }
    }
}

/// One connection on its way from accept to relay.
struct Connection {
    services: Arc<Services>,
    guest: GuestStream,
    source: SocketAddr,
    /// Which guest that is.
    who: Source,
    /// The original destination, if the connection was redirected here without the guest's knowledge.
    original: Option<SocketAddr>,
    slot: Slot,
    active: Active,
    /// Bytes read and not yet used.
    input: Vec<u8>,
    /// The time by which the decision must have been made.
    deadline: Deadline,
}

/// The next step of a flow that goes on.
enum Step {
    /// Judge the protocol inside a tunnel.
    Tunnel(Box<Connection>, Box<tunnel::OpenTunnel>),
    /// Relay bytes: nothing is left to judge.
    Relay(Box<Relaying>),
}

/// The parts of a [`Connection`] that are still needed when nothing is left to judge.
struct Relaying {
    tunnel: Tunnel,
    record: Record,
    idle: Option<Duration>,
    slot: Slot,
    active: Active,
    /// The record of the tunnel around a WebSocket that was opened inside it.
    outer: Option<Record>,
}

/// A flow that ends here: refused, failed, finished or gone. The function that returns it has already answered
/// the guest and filled in the record.
struct Ended;

/// The original destination of a connection; `None` on a proxy listener, where the guest names it itself.
fn original_of(kind: ListenerKind, stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    match kind {
        ListenerKind::Proxy | ListenerKind::ProxyTls => Ok(None),
        ListenerKind::Transparent => stream.local_addr().map(canonical).map(Some),
        ListenerKind::Redirect => original_destination(stream).map(canonical).map(Some),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// SO_ORIGINAL_DST, and its counterpart for IPv6 (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
/// Fails for a connection that was not redirected.
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let (socket, local) = (socket2::SockRef::from(stream), stream.local_addr()?);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // With connection tracking, a connection that was not redirected has its own address as the original one.
    original?.as_socket().filter(|original| *original != local).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A new connection and the first bytes that were read from it.
struct Arrival {
    door: ListenerKind,
    accepted: Accepted,
    first: Vec<u8>,
    /// A CONNECT that was already permitted; `first` holds its head and nothing else.
    asked: Option<Box<http::PermittedConnect>>,
}

/// What a connection on this listener needs its place for.
pub fn purpose(services: &Services, door: ListenerKind) -> Purpose {
    let by_certificate =
        door == ListenerKind::ProxyTls && services.guest_tls.as_ref().is_some_and(GuestTls::names_guests);
    if by_certificate { Purpose::Handshake } else { Purpose::Flow }
}

/// Starts a new connection. Under load its first bytes have already arrived: a CONNECT that the policy refuses
/// is answered and closed before anything is allocated for it. Everything else gets its own task.
///
/// Call this on the runtime that is to serve the connection.
pub fn meet(services: &Arc<Services>, door: ListenerKind, accepted: Accepted) {
    // A panic ends this connection, not the listener.
    let arrival = catch_unwind(AssertUnwindSafe(|| greet(services, door, accepted)));
    if let Ok(Some(arrival)) = arrival {
        tokio::spawn(serve(Arc::clone(services), arrival));
    }
}

/// Reads once. Returns `None` if the connection was answered and is done.
fn greet(services: &Services, door: ListenerKind, accepted: Accepted) -> Option<Arrival> {
    let mut arrival = Arrival { door, accepted, first: Vec::new(), asked: None };
    // Over a limit it is refused, and over its guest's rate it waits, both in a task of its own.
    let Ok(slot) = &arrival.accepted.slot else { return Some(arrival) };
    if slot.turn().is_some() {
        return Some(arrival);
    }
    scratch::with(FIRST_WORDS, |buffer| {
        // An error or the end of the stream shows up again at the next read.
        if let Ok(len) = (&arrival.accepted.stream).read(buffer) {
            arrival.first.extend_from_slice(buffer.get(..len).unwrap_or_default());
        }
    });
    if door == ListenerKind::Proxy {
        let Accepted { stream, source, .. } = &arrival.accepted;
        match http::early_connect(services, *source, &arrival.first) {
            http::EarlyConnect::Refused(answer) => {
                // Only a head was read and it is now answered: an ordinary close delivers the answer. Nothing
                // was written to this socket before, so a write can only fail if the guest is gone.
                let _ = io::Write::write(&mut &*stream, &answer);
                return None;
            }
            http::EarlyConnect::Permitted(asked) => arrival.asked = Some(asked),
            http::EarlyConnect::NotConnect => {}
        }
    }
    Some(arrival)
}

/// Serves one connection.
async fn serve(services: Arc<Services>, arrival: Arrival) {
    let mut step = Box::pin(open(services, arrival)).await;
    loop {
        step = match step {
            Ok(Step::Tunnel(connection, opened)) => tunnel::serve(connection, opened).await,
            Ok(Step::Relay(relaying)) => return Box::pin(relay(relaying)).await,
            Err(Ended) => return,
        }
    }
}

/// Counts a connection that was reset because no file descriptor was left for it.
pub fn reset_unseen(services: &Services, door: ListenerKind, source: SocketAddr) {
    let why = note_refused(services, Reason::LimitTotal);
    open_record(services, door.into(), source, &source.ip().into(), None).refuse(why, None);
}

/// Runs everything up to the relay.
async fn open(services: Arc<Services>, arrival: Arrival) -> Result<Step, Ended> {
    let Arrival { door, accepted: Accepted { stream, source, at, slot }, first, asked } = arrival;
    let who = Source::from(source.ip());
    let Ok(stream) = TcpStream::from_std(stream) else {
        // The kernel has no space for it in the runtime's event queue (epoll_ctl(2), ENOSPC and ENOMEM).
        let record = asked.map(|asked| asked.record);
        record
            .unwrap_or_else(|| open_record(&services, door.into(), source, &who, None))
            .refuse(Reason::LimitTotal, None);
        return Err(Ended);
    };
    let slot = match slot {
        Ok(slot) => slot,
        Err(reason) => {
            turn_away(&services, door, stream.into(), (source, &who), reason).await;
            return Err(Ended);
        }
    };
    wait_for_turn(&services, &slot).await;
    let limits = services.gate.settings();
    let active = services.account.active(door.into());
    let mut deadline = Deadline::at(limits.handshake_timeout.map(|timeout| at + timeout));
    let original = match original_of(door, &stream) {
        Ok(original) => original,
        Err(_) => {
            // A client connected to the listener directly, but it accepts only redirected connections.
            open_record(&services, door.into(), source, &who, None).refuse(Reason::AddressFloor, None);
            close::reset(&stream);
            return Err(Ended);
        }
    };
    let (guest, who, slot, input) = match door {
        ListenerKind::ProxyTls => {
            let identified =
                Box::pin(guest_tls::handshake(&services, stream, source, slot, first, &mut deadline)).await?;
            (identified.guest, identified.who, identified.slot, Vec::new())
        }
        ListenerKind::Proxy | ListenerKind::Transparent | ListenerKind::Redirect => (stream.into(), who, slot, first),
    };
    let mut connection = Box::new(Connection { services, guest, source, who, original, slot, active, input, deadline });
    if let Some(original) = original {
        return transparent::serve(connection, door.into(), original).await;
    }
    if let Some(asked) = asked {
        return http::connect(connection, *asked).await;
    }
    match if connection.input.is_empty() { connection.fill().await } else { Filled::Bytes } {
        Filled::Bytes => {}
        // Port scanners and health checks: they requested nothing, so there is nothing to count.
        Filled::End | Filled::Revoked(_) => {
            connection.take_leave().await;
            return Err(Ended);
        }
        Filled::Timeout => {
            connection.record(Listener::Proxy).refuse(Reason::Timeout, None);
            connection.take_leave().await;
            return Err(Ended);
        }
    }
    match connection.input.first() {
        Some(4 | 5) => socks::serve(connection).await,
        _ => http::serve(connection).await,
    }
}

/// Delays a connection over its guest's rate until its turn.
pub(crate) async fn wait_for_turn(services: &Services, slot: &Slot) {
    if let Some(turn) = slot.turn() {
        services.account.metrics().paced(Limit::NewConnections);
        tokio::time::sleep_until(turn).await;
    }
}

/// Counts a connection that got no place under the limit that it exceeded. Returns the reason with that as its cause.
pub(crate) fn note_refused(services: &Services, reason: Reason) -> Why {
    let limit = match reason {
        Reason::LimitConnections => Limit::Connections,
        Reason::LimitRate => Limit::NewConnections,
        _ => Limit::Total,
    };
    services.account.metrics().over(limit);
    limit.why(reason)
}

/// The last stage: relays bytes both ways until the end.
async fn relay(mut relaying: Box<Relaying>) {
    let Relaying { tunnel, record, idle, outer, .. } = &mut *relaying;
    let supervision = Supervision {
        flow: record.flow(),
        around: outer.as_ref().map(|outer| &**outer.flow()),
        idle: *idle,
        long_lived: &|| record.still_open(),
    };
    match tunnel.run(supervision).await {
        End::Closed | End::Broken => {}
        End::Idle => record.refuse(Reason::Timeout, None),
        End::OtherName => {
            record.shown(tunnel.shown().unwrap_or_default());
            record.refuse(Reason::NameMismatch, None);
        }
        End::Stopped => record.refuse(record.flow().revocation().unwrap_or(Reason::Revoked), None),
    }
    // The sockets close first, so that the peers do not wait for the accounting. The place becomes free after it.
    let Relaying { tunnel, record, outer, slot, active, .. } = *relaying;
    drop((tunnel, record, outer, slot, active));
}

/// The result of waiting for the guest's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    Bytes,
    End,
    Timeout,
    /// The flow was revoked meanwhile.
    Revoked(Reason),
}

/// The record of a flow of `who`, from address and port `source`.
fn open_record(
    services: &Services,
    listener: Listener,
    source: SocketAddr,
    who: &Source,
    original: Option<SocketAddr>,
) -> Record {
    let live = services.live.load();
    let counters = services.account.counters(live.policy.guest(who).name);
    let mut record = services.account.open(listener, source, &counters);
    if let Some(original) = original {
        record.original(original);
    }
    record
}

impl Connection {
    fn record(&self, listener: Listener) -> Record {
        open_record(&self.services, listener, self.source, &self.who, self.original)
    }

    /// Reads once more into `input`, within the deadline.
    async fn fill(&mut self) -> Filled {
        fill(&mut self.guest, &mut self.input, &mut self.deadline).await
    }

    /// As [`fill`](Self::fill), but also ends when the flow is revoked.
    async fn hear(&mut self, record: &Record) -> Filled {
        tokio::select! {
            biased;
            filled = self.fill() => filled,
            reason = record.flow().revoked() => Filled::Revoked(reason),
        }
    }

    /// Writes to the guest. If that fails, the connection is reset, and the record gets the reason if there is one.
    async fn say(&mut self, bytes: &[u8], record: &mut Record) -> Result<(), Ended> {
        let limit = self.services.gate.settings().idle_timeout;
        say(&mut self.guest, bytes, record, limit).await.map_err(|reason| {
            if let Some(reason) = reason {
                record.refuse(reason, None);
            }
            close::reset(&self.guest);
            Ended
        })
    }

    /// As [`say`](Self::say), before there is a record.
    async fn tell(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let mut deadline = Deadline::after(self.services.gate.settings().idle_timeout);
        let told = async {
            self.guest.write_all(bytes).await?;
            self.guest.flush().await
        };
        tokio::select! {
            biased;
            told = told => told.map_err(|_| Ended),
            () = deadline.passed() => Err(Ended),
        }
    }

    /// Ends a connection with nothing in progress. Without TLS, closing the socket is enough.
    async fn take_leave(&mut self) {
        if !self.guest.ends_with_socket() {
            close::announce(&mut self.guest).await;
        }
    }

    /// Decides, and enters the decision in the record.
    fn decide(&self, claim: &Claim, record: &mut Record) -> Result<Permit, Refusal> {
        decide(&self.services, claim, record)
    }
}

/// Decides on the snapshot in force, and enters the decision in the record.
fn decide(services: &Services, claim: &Claim, record: &mut Record) -> Result<Permit, Refusal> {
    decide_as(services, claim, record, |reason| reason)
}

/// As [`decide`], for a stream that must itself show a name. If it shows none and no rule matches its address,
/// the reason is [`Reason::NoName`].
fn decide_unnamed(services: &Services, claim: &Claim, record: &mut Record) -> Result<Permit, Refusal> {
    let unnamed = claim.evidence == Evidence::Address;
    decide_as(services, claim, record, |reason| match reason {
        Reason::NotWhitelisted if unnamed => Reason::NoName,
        reason => reason,
    })
}

fn decide_as(
    services: &Services,
    claim: &Claim,
    record: &mut Record,
    explain: impl Fn(Reason) -> Reason,
) -> Result<Permit, Refusal> {
    let start = std::time::Instant::now();
    record.claim(claim);
    let decision = services.live.load().policy.decide(claim);
    let decision = decision.map_err(|refusal| Refusal { reason: explain(refusal.reason), ..refusal });
    record.decided_in(start.elapsed());
    // A flow that was permitted before the log failed is decided again and goes on.
    let goes_on = record.is_permitted();
    let permit = match decision {
        Ok(permit) => permit,
        Err(refusal) => {
            record.refuse(refusal.reason, refusal.rule.clone());
            return Err(refusal);
        }
    };
    record.permit(&permit);
    if services.account.refuses() && !goes_on {
        record.refuse(Reason::LogFailed, None);
        return Err(Refusal { reason: Reason::LogFailed, rule: permit.rule().cloned() });
    }
    Ok(permit)
}

/// Resolves and dials a permitted target. If that fails, the reason is in the record.
async fn reach(services: &Services, claim: &Claim, permit: &Permit, record: &mut Record) -> Result<Upstream, Reason> {
    let start = std::time::Instant::now();
    let vetted = match services.resolver.try_vet(permit) {
        Some(known) => known,
        None => {
            let flow = Arc::clone(record.flow());
            let answer = tokio::select! {
                biased;
                answer = services.resolver.vet(permit, may_look_up(services, &claim.source)) => answer,
                reason = flow.revoked() => {
                    record.refuse(reason, None);
                    return Err(reason);
                }
            };
            record.resolved_in(start.elapsed());
            answer
        }
    };
    let vetted = vetted.map_err(|error| {
        match error.reason() {
            reason @ Reason::LimitNames => {
                services.account.metrics().over(Limit::NewNames);
                record.refuse(Limit::NewNames.why(reason), None);
            }
            reason => record.refuse(reason, None),
        }
        error.reason()
    })?;
    let start = std::time::Instant::now();
    let settings = services.live.load().dial;
    let flow = Arc::clone(record.flow());
    let dialled = tokio::select! {
        biased;
        dialled = dial::connect(&vetted, &settings) => dialled,
        reason = flow.revoked() => {
            record.refuse(reason, None);
            return Err(reason);
        }
    };
    match dialled {
        Ok(upstream) => {
            record.dialled_in(start.elapsed());
            record.upstream(upstream.peer, upstream.local);
            confirm(services, claim, upstream.peer, record).inspect_err(|_| close::reset(&upstream.stream))?;
            Ok(upstream)
        }
        Err(error) => {
            record.refuse(error.reason(), None);
            Err(error.reason())
        }
    }
}

/// Returns the check that keeps the lookups of one flow or query within its guest's budget.
pub(crate) fn may_look_up(services: &Services, source: impl Into<Source>) -> impl FnMut(bool) -> NamePace + Send {
    let mut names = services.gate.names(source, Instant::now());
    let mut waited = false;
    move |is_new| {
        let pace = names.ask(is_new, Instant::now());
        if matches!(pace, NamePace::After(_)) && !std::mem::replace(&mut waited, true) {
            services.account.metrics().paced(Limit::NewNames);
        }
        pace
    }
}

/// Decides again once the flow is connected. A reload judges a live flow by its connected address, so it misses
/// a flow that has none yet. The record gets the address before the policy is read here, so either the reload
/// or this check finds the flow. If no reload came since the decision, there is nothing to judge.
fn confirm(services: &Services, claim: &Claim, peer: SocketAddr, record: &mut Record) -> Result<(), Reason> {
    if !record.was_searched() {
        return Ok(());
    }
    let (reason, rule) = match services.live.load().policy.decide(claim) {
        Ok(permit) => match services.resolver.screen(&permit, &[peer.ip()]) {
            Ok(()) => return Ok(()),
            Err(error) => (error.reason(), None),
        },
        Err(refusal) => (refusal.reason, refusal.rule),
    };
    tracing::debug!(%reason, "the list changed while a flow was connecting");
    record.refuse(Reason::Revoked, rule);
    Err(Reason::Revoked)
}

/// Writes `bytes` within `limit`, unless the flow is revoked. `Err(None)`: the other end is gone.
async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    record: &Record,
    limit: Option<Duration>,
) -> Result<(), Option<Reason>> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut deadline = Deadline::after(limit);
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    tokio::select! {
        biased;
        written = written => written.map_err(|_| None),
        reason = record.flow().revoked() => Err(Some(reason)),
        () = deadline.passed() => Err(Some(Reason::Timeout)),
    }
}

/// One deadline for a whole hand-shake, on one timer.
struct Deadline {
    at: Option<Instant>,
    sleep: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Deadline {
    fn at(at: Option<Instant>) -> Deadline {
        Deadline { at, sleep: None }
    }

    fn after(time: Option<Duration>) -> Deadline {
        Deadline::at(time.map(|time| Instant::now() + time))
    }

    /// Restarts the same timer for a deadline `time` from now.
    fn restart(&mut self, time: Option<Duration>) {
        self.at = time.map(|time| Instant::now() + time);
        match (self.at, &mut self.sleep) {
            (Some(at), Some(sleep)) => sleep.as_mut().reset(at),
            _ => self.sleep = None,
        }
    }

    /// Waits until the deadline, or for ever if there is none.
    async fn passed(&mut self) {
        match self.at {
            Some(at) => self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at))).await,
            None => std::future::pending().await,
        }
    }
}

/// Reads once into `input`, within the deadline.
async fn fill(stream: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>, deadline: &mut Deadline) -> Filled {
    // Most heads and hellos fit; a guest that sends one byte at a time does not make the buffer grow.
    if input.capacity() - input.len() < 512 {
        input.reserve(2048);
    }
    tokio::select! {
        biased;
        read = stream.read_buf(input) => match read {
            Ok(1..) => Filled::Bytes,
            Ok(0) | Err(_) => Filled::End,
        },
        () = deadline.passed() => Filled::Timeout,
    }
}
