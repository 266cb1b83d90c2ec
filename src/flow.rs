//! One connection's life, straight down: the only module that calls the stages.
//!
//! ```text
//! accept -> identify -> decide -> resolve -> dial -> relay -> account
//! ```
//!
//! `serve` takes a connection off a listener and sees it to its end. Each `Step` is a boxed future of
//! its own that is freed before the next begins, so an idle tunnel costs little more than its two
//! sockets. What goes from step to step is boxed as well: an async function keeps its arguments twice,
//! and copies them into each one it calls. The record of a flow is opened as soon as something is known
//! of it and is closed, counted and logged wherever the flow ends, panics included.

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

use crate::accept::{Accepted, Gate, NamePace, Purpose, Reserve, Slot};
use crate::account::{Account, Active, Limit, Listener, Meter, Record};
use crate::config::Settings;
use crate::dial::{self, DialSettings, Upstream};
use crate::dns::Bindings;
use crate::firewall::{Seal, Shares};
use crate::identify::{Claim, Evidence};
use crate::policy::{Permit, Policy, Refusal};
use crate::reason::{Reason, Why};
use crate::relay::{self, End, GuestStream, Side, Tunnel, Watch, close, scratch};
use crate::resolve::{Resolver, Start};
use crate::source::Source;
use arc_swap::ArcSwap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use turn_away::turn_away;

/// What is read of a connection on its way in, in bytes.
const FIRST_WORDS: usize = 4096;

/// What every flow needs; one for the daemon.
pub struct Services {
    /// The policy in force and the settings that change with a reload.
    pub live: Arc<ArcSwap<Live>>,
    /// Limits and what each guest has in use.
    pub gate: Arc<Gate>,
    /// What turns a connection away when no file descriptor is left for it.
    pub reserve: Reserve,
    /// What `proxy_tls` takes, where there is one.
    pub guest_tls: Option<GuestTls>,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Names behind the addresses that guests were told.
    pub bindings: Arc<Bindings>,
    /// Connections to upstreams between requests.
    pub idle_upstreams: Arc<IdleUpstreams>,
    /// Records.
    pub account: Arc<Account>,
    /// Done when the daemon is stopping: kept connections end after the request in hand.
    pub stop: CancellationToken,
}

impl Services {
    /// Drops the bindings of names that their guest may not ask for any more, and of guests that are gone.
    /// To be called after a new policy is in force; takes a microsecond a binding.
    pub fn drop_bindings(&self) {
        self.bindings.revise();
        self.drop_late_bindings();
    }

    /// The same for one that was noted while that went on.
    pub fn drop_late_bindings(&self) {
        let policy = Arc::clone(&self.live.load().policy);
        self.bindings.retain(|source, guest, name| {
            policy.guest(&source.into()).name == guest && policy.permit_name(source, name).is_ok()
        });
    }
}

/// The snapshot that one decision is made on.
pub struct Live {
    /// The rules and modes.
    pub policy: Arc<Policy>,
    /// How to connect.
    pub dial: DialSettings,
    /// The firewall that the configuration asks for, if it does.
    pub seal: Option<Seal>,
    /// What its rules have of the limits.
    pub shares: Option<Shares>,
}

impl Live {
    /// What holds under these settings.
    pub fn new(policy: Arc<Policy>, settings: &Settings) -> Live {
        Live { policy, dial: settings.dial, seal: settings.seal(), shares: settings.shares() }
    }
}

/// One connection on its way from accept to relay.
struct Connection {
    services: Arc<Services>,
    guest: GuestStream,
    source: SocketAddr,
    /// Who that is.
    who: Source,
    /// Where the guest's packets went, if they were brought here without its knowing.
    original: Option<SocketAddr>,
    slot: Slot,
    active: Active,
    /// Bytes read and not yet used.
    input: Vec<u8>,
    /// The decision must have been made by then.
    deadline: Deadline,
}

/// What comes next for a flow that goes on.
enum Step {
    /// Judge what is spoken in a tunnel.
    Tunnel(Box<Connection>, Box<tunnel::OpenTunnel>),
    /// Carry bytes: nothing more is to be judged.
    Relay(Box<Relaying>),
}

/// What is left of a [`Connection`] once nothing more is to be judged.
struct Relaying {
    tunnel: Tunnel,
    record: Record,
    idle: Option<Duration>,
    slot: Slot,
    active: Active,
    /// The record of the tunnel around a WebSocket that was opened inside it.
    outer: Option<Record>,
}

/// A flow that ends here: refused, failed, finished or gone. Whoever returns it has already told the
/// guest and filled in the record.
struct Ended;

/// By which kind of listener a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// `proxy`: the guest says where it wants to go.
    Proxy,
    /// `proxy_tls`: the same inside TLS.
    ProxyTls,
    /// `transparent`: TPROXY left the original destination as the socket's own address.
    Transparent,
    /// `redirect`: connection tracking knows the original destination.
    Redirect,
}

impl ListenerKind {
    /// What the connection counts as until more is known.
    const fn listener(self) -> Listener {
        match self {
            ListenerKind::Proxy | ListenerKind::ProxyTls => Listener::Proxy,
            ListenerKind::Transparent => Listener::Transparent,
            ListenerKind::Redirect => Listener::Redirect,
        }
    }

    /// Where the guest's packets went; `None` at the door that is no secret.
    fn original(self, stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
        match self {
            ListenerKind::Proxy | ListenerKind::ProxyTls => Ok(None),
            ListenerKind::Transparent => stream.local_addr().map(canonical).map(Some),
            ListenerKind::Redirect => original_destination(stream).map(canonical).map(Some),
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// SO_ORIGINAL_DST, and its twin for IPv6 (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h). A
/// connection that nobody redirected has none.
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let (socket, local) = (socket2::SockRef::from(stream), stream.local_addr()?);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // Where connections are tracked, one that nobody redirected has its own address.
    original?.as_socket().filter(|original| *original != local).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A connection and what it said on its way in.
struct Arrival {
    door: ListenerKind,
    accepted: Accepted,
    first: Vec<u8>,
    /// A CONNECT that was permitted already; its head is all there is in `first`.
    asked: Option<Box<http::PermittedConnect>>,
}

/// What a connection at this door takes a place for.
pub fn purpose(services: &Services, door: ListenerKind) -> Purpose {
    let by_certificate =
        door == ListenerKind::ProxyTls && services.guest_tls.as_ref().is_some_and(GuestTls::names_guests);
    if by_certificate { Purpose::Handshake } else { Purpose::Flow }
}

/// Takes a connection in. Under load its first words are there by then: a CONNECT that the policy refuses is
/// answered and gone before anything is made for it, and everything else gets a task of its own.
///
/// To be called on the runtime that is to serve it.
pub fn meet(services: &Arc<Services>, door: ListenerKind, accepted: Accepted) {
    // A panic ends this connection and not the listener.
    let arrival = catch_unwind(AssertUnwindSafe(|| greet(services, door, accepted)));
    if let Ok(Some(arrival)) = arrival {
        tokio::spawn(serve(Arc::clone(services), arrival));
    }
}

/// What is said is read once; `None` where it was answered.
fn greet(services: &Services, door: ListenerKind, accepted: Accepted) -> Option<Arrival> {
    let mut arrival = Arrival { door, accepted, first: Vec::new(), asked: None };
    // Over a limit it is told so, and over its guest's rate it waits, in a task of its own.
    let Ok(slot) = &arrival.accepted.slot else { return Some(arrival) };
    if slot.turn().is_some() {
        return Some(arrival);
    }
    scratch::with(FIRST_WORDS, |buffer| {
        // An error or the end is met again by whoever reads on.
        if let Ok(len) = (&arrival.accepted.stream).read(buffer) {
            arrival.first.extend_from_slice(buffer.get(..len).unwrap_or_default());
        }
    });
    if door == ListenerKind::Proxy {
        let Accepted { stream, source, .. } = &arrival.accepted;
        match http::early_connect(services, *source, &arrival.first) {
            http::EarlyConnect::Refused(answer) => {
                // A head alone was read and it is answered: an ordinary close delivers that. What cannot be
                // written to a socket that nothing was written to is for somebody who is gone.
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

/// Counts a connection that was reset because no file descriptor is left for it.
pub fn reset_unseen(services: &Services, door: ListenerKind, source: SocketAddr) {
    let why = note_refused(services, Reason::LimitTotal);
    open_record(services, door.listener(), source, &source.ip().into(), None).refuse(why, None);
}

/// Everything up to the relay.
async fn open(services: Arc<Services>, arrival: Arrival) -> Result<Step, Ended> {
    let Arrival { door, accepted: Accepted { stream, source, at, slot }, first, asked } = arrival;
    let who = Source::from(source.ip());
    let Ok(stream) = TcpStream::from_std(stream) else {
        // The kernel has no place for it in the runtime's event queue (epoll_ctl(2), ENOSPC and ENOMEM).
        let record = asked.map(|asked| asked.record);
        record
            .unwrap_or_else(|| open_record(&services, door.listener(), source, &who, None))
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
    let active = services.account.active(door.listener());
    let mut deadline = Deadline::at(limits.handshake_timeout.map(|timeout| at + timeout));
    let original = match door.original(&stream) {
        Ok(original) => original,
        Err(_) => {
            // Somebody spoke to the listener itself, which is for redirected connections alone.
            open_record(&services, door.listener(), source, &who, None).refuse(Reason::AddressFloor, None);
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
        return transparent::serve(connection, door.listener(), original).await;
    }
    if let Some(asked) = asked {
        return http::connect(connection, *asked).await;
    }
    match if connection.input.is_empty() { connection.fill().await } else { Filled::Bytes } {
        Filled::Bytes => {}
        // Port scanners and health checks: nothing was asked, so there is nothing to count.
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

/// Has a connection over its guest's rate wait for its turn.
pub(crate) async fn wait_for_turn(services: &Services, slot: &Slot) {
    if let Some(turn) = slot.turn() {
        services.account.metrics().paced(Limit::NewConnections);
        tokio::time::sleep_until(turn).await;
    }
}

/// Counts a connection that has no place by the limit that it came over; gives the reason with that as its cause.
pub(crate) fn note_refused(services: &Services, reason: Reason) -> Why {
    let limit = match reason {
        Reason::LimitConnections => Limit::Connections,
        Reason::LimitRate => Limit::NewConnections,
        _ => Limit::Total,
    };
    services.account.metrics().over(limit);
    limit.why(reason)
}

/// The last stage: bytes both ways until the end.
async fn relay(mut relaying: Box<Relaying>) {
    let Relaying { tunnel, record, idle, outer, .. } = &mut *relaying;
    let meter = record.meter();
    let flow = Arc::clone(record.flow());
    let around = outer.as_ref().map(|outer| Arc::clone(outer.flow()));
    let stopped = |cx: &mut Context<'_>| match &around {
        Some(around) if around.poll_revoked(cx).is_ready() => Poll::Ready(()),
        _ => flow.poll_revoked(cx).map(drop),
    };
    match tunnel.run(Watch { meter: &meter, idle: *idle, age: flow.age(), stopped, long: || record.still_open() }).await
    {
        End::Closed | End::Broken => {}
        End::Idle => record.refuse(Reason::Timeout, None),
        End::OtherName => {
            record.shown(tunnel.shown().unwrap_or_default());
            record.refuse(Reason::NameMismatch, None);
        }
        End::Stopped => record.refuse(flow.revocation().unwrap_or(Reason::Revoked), None),
    }
    // Nobody waits for the end of a connection until it has been accounted for, and no place is free before.
    let Relaying { tunnel, record, outer, slot, active, .. } = *relaying;
    drop((tunnel, record, outer, slot, active));
}

/// What came of waiting for the guest's bytes.
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
    let mut record = services.account.open(listener, source, live.policy.guest(who).name);
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

    /// As [`fill`](Self::fill), while the flow may be revoked.
    async fn hear(&mut self, record: &Record) -> Filled {
        tokio::select! {
            biased;
            filled = self.fill() => filled,
            reason = record.flow().revoked() => Filled::Revoked(reason),
        }
    }

    /// Says something to the guest. Where it does not take it the flow ends, and the record says why.
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

    /// Ends a connection on which nothing is under way. In clear, closing it says so.
    async fn take_leave(&mut self) {
        if !self.guest.ends_with_socket() {
            close::announce(&mut self.guest).await;
        }
    }

    /// Decides, and notes the decision in the record.
    fn decide(&self, claim: &Claim, record: &mut Record) -> Result<Permit, Refusal> {
        decide(&self.services, claim, record)
    }
}

/// Decides on the snapshot in force, and notes the decision in the record.
fn decide(services: &Services, claim: &Claim, record: &mut Record) -> Result<Permit, Refusal> {
    decide_as(services, claim, record, |reason| reason)
}

/// As [`decide`], where the stream itself must show a name: one that shows none, to an address that no
/// rule is about, lacks just that.
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
    // What was let through before the log failed is judged again and goes on.
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

/// Resolves and dials what was permitted. The reason of a failure is in the record.
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

/// What holds the lookups of one flow or query to its guest's budget.
pub(crate) fn may_look_up(services: &Services, source: impl Into<Source>) -> impl FnMut(bool) -> Start + Send {
    let mut names = services.gate.names(source, Instant::now());
    let mut waited = false;
    move |is_new| match names.ask(is_new, Instant::now()) {
        NamePace::Now(place) => Start::Now(Box::new(place)),
        NamePace::After(wait) => {
            if !std::mem::replace(&mut waited, true) {
                services.account.metrics().paced(Limit::NewNames);
            }
            Start::After(wait)
        }
        NamePace::Over => Start::Refused,
    }
}

/// Judges again what is now connected. A reload judges a live flow by the address it is connected to, so
/// one that came into force while there was none yet has passed it by; the record shows the address
/// before the policy is read here, so that either the reload or this finds it. Where none came since the
/// decision there is nothing to judge.
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

impl relay::Meter for Meter {
    fn up(&self, bytes: usize) {
        Meter::up(self, bytes);
    }

    fn down(&self, bytes: usize) {
        Meter::down(self, bytes);
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

    /// The same timer for another deadline, `time` from now.
    fn restart(&mut self, time: Option<Duration>) {
        self.at = time.map(|time| Instant::now() + time);
        match (self.at, &mut self.sleep) {
            (Some(at), Some(sleep)) => sleep.as_mut().reset(at),
            _ => self.sleep = None,
        }
    }

    /// Waits until the deadline; for ever where there is none.
    async fn passed(&mut self) {
        match self.at {
            Some(at) => self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at))).await,
            None => std::future::pending().await,
        }
    }
}

/// Reads once into `input`, within the deadline.
async fn fill(stream: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>, deadline: &mut Deadline) -> Filled {
    // Most heads and hellos fit; a guest that sends one byte at a time does not make it grow.
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
