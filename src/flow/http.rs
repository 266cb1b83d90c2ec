//! HTTP from the first to the last request of a connection: on a proxy port, on a redirected connection, and in
//! clear inside a tunnel. Each request is parsed strictly, and is judged, counted and logged by itself.

use super::idle_upstreams::{IdleUpstream, UpstreamSlot};
use super::{
    Connection, Deadline, Ended, Filled, Relaying, Services, Step, confirm, decide, decide_unnamed, open_record, reach,
    refuse, transparent, tunnel,
};
use crate::account::{Limit, Record};
use crate::identify::http::{Body, HeadError, RequestHead, RequestTarget, Upgrade};
use crate::identify::{Claim, Evidence, Parsed};
use crate::limits::Pace;
use crate::listener::Listener;
use crate::policy::Permit;
use crate::reason::{Cause, Reason, Verdict, Why};
use crate::relay::http::{ConnectionAddresses, Done, Failed, Fault, Outgoing, UpstreamConnection, exchange};
use crate::relay::{Supervision, Tunnel, Turn, close};
use crate::source::Source;
use crate::target::{Host, Protocol, Target, Transport};
use std::future::poll_fn;
use std::io::ErrorKind::WouldBlock;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// The answer to a successful CONNECT (RFC 9110 §9.3.6).
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// A request that must not be sent twice uses a kept connection only if that was known to be good this recently.
/// Otherwise an upstream that is just closing the connection could swallow the request.
const FRESH: Duration = Duration::from_secs(1);

/// What one request costs in addition to the bytes of its stream, in the bytes that [`Turn`] counts: two make a turn.
const COST: usize = 128 << 10;
/// The additional cost where a connection has to be made for it: one makes a turn then.
const DIAL_COST: usize = 128 << 10;

/// What is malformed about requests whose syntax is valid.
const NO_URI: Why = Why::malformed("a request to the proxy port names no full URI");
const NO_PROXY: Why = Why::malformed("a CONNECT was sent to what is no proxy");
const HALF_SAID: Why = Why::malformed("the request came in pieces that read differently from the whole");

/// How a server can fail to answer (RFC 9209 §2.3).
const CLOSED: Cause = Cause::typed("the server closed the connection before it answered", "connection_terminated");
const SILENT: Cause = Cause::typed("the server sent no response", "http_response_timeout");

/// The tunnel that carries the HTTP: all requests in it must be for the tunnel's target.
pub(super) struct EnclosingTunnel {
    /// The claim that the tunnel was opened for.
    pub(super) claim: Claim,
    /// The tunnel's own record; it stays open and may be revoked.
    pub(super) record: Record,
    /// How much of the first request was sent to the upstream before it was known to be one.
    pub(super) sent: usize,
}

/// A connection that carries HTTP.
struct Session {
    connection: Box<Connection>,
    listener: Listener,
    tunnel_around: Option<EnclosingTunnel>,
    upstream: Option<UpstreamSlot>,
    /// Requests that were sent together take turns with other connections'.
    turn: Turn,
}

/// What follows a request that was served.
enum Next {
    /// Another request.
    Request,
    /// A tunnel to this target.
    Connect(Target),
    /// A WebSocket with this upstream.
    WebSocket(Box<(UpstreamConnection, Record)>),
}

/// A CONNECT that the policy permitted.
pub(super) struct PermittedConnect {
    pub(super) record: Record,
    claim: Claim,
    permit: Permit,
}

/// What [`early_connect`] found in the first bytes of a connection.
pub(super) enum EarlyConnect {
    /// A refused CONNECT, with the answer that ends the connection.
    Refused(Vec<u8>),
    /// A permitted CONNECT.
    Permitted(Box<PermittedConnect>),
    /// Anything else; nothing was done about it.
    NotConnect,
}

/// Judges a CONNECT that arrived together with the connection, if its head is complete and nothing follows it.
pub(super) fn early_connect(services: &Services, source: SocketAddr, first: &[u8]) -> EarlyConnect {
    let Ok(Parsed::Complete { head, len }) = RequestHead::parse(first, 0) else { return EarlyConnect::NotConnect };
    let RequestTarget::Authority(target) = &head.target else { return EarlyConnect::NotConnect };
    let who = Source::from(source.ip());
    // An address that stands for a name needs more than this.
    let bound = transparent::bound(services, &who, source, target).is_some();
    if bound || len != first.len() {
        return EarlyConnect::NotConnect;
    }
    let record = open_record(services, Listener::Proxy, source, &who, None);
    match permit_connect(services, who, record, target.clone()) {
        Ok(asked) => EarlyConnect::Permitted(Box::new(asked)),
        Err((reason, claim)) => EarlyConnect::Refused(refuse::http(reason, Some(&claim.target), first, true)),
    }
}

/// Judges a CONNECT by its authority. The protocol inside it is judged later.
fn permit_connect(
    services: &Services,
    source: Source,
    mut record: Record,
    target: Target,
) -> Result<PermittedConnect, (Reason, Claim)> {
    let claim = claim(source, target, None, Evidence::Connect);
    match decide(services, &claim, &mut record) {
        Ok(permit) => Ok(PermittedConnect { record, claim, permit }),
        Err(refusal) => Err((refusal.reason, claim)),
    }
}

/// Opens the tunnel for a CONNECT that is all of the connection's input.
pub(super) async fn connect(mut connection: Box<Connection>, asked: PermittedConnect) -> Result<Step, Ended> {
    let raw = std::mem::take(&mut connection.input);
    Session { connection, listener: Listener::Proxy, tunnel_around: None, upstream: None, turn: Turn::default() }
        .open(asked, &raw)
        .await
}

fn claim(source: Source, target: Target, spoken: Option<Protocol>, evidence: Evidence) -> Claim {
    Claim { source, target, transport: Transport::Tcp, spoken, ech: false, evidence }
}

/// Serves a connection on a proxy port.
pub(super) async fn serve(connection: Box<Connection>) -> Result<Step, Ended> {
    Session { connection, listener: Listener::Proxy, tunnel_around: None, upstream: None, turn: Turn::default() }
        .run()
        .await
}

/// Serves HTTP on a redirected connection: each request's Host names the destination.
pub(super) async fn serve_transparent(connection: Box<Connection>, listener: Listener) -> Result<Step, Ended> {
    Session { connection, listener, tunnel_around: None, upstream: None, turn: Turn::default() }.run().await
}

/// Serves HTTP in clear inside a tunnel; `upstream` is connected already.
pub(super) async fn serve_inside(
    connection: Box<Connection>,
    listener: Listener,
    tunnel_around: EnclosingTunnel,
    upstream: UpstreamConnection,
) -> Result<Step, Ended> {
    let kept = Box::new(IdleUpstream {
        claim: tunnel_around.claim.clone(),
        target: tunnel_around.claim.target.clone(),
        peer: upstream,
        since: Instant::now(),
        half_said: tunnel_around.sent > 0,
        spent: false,
    });
    let mut session =
        Session { connection, listener, tunnel_around: Some(tunnel_around), upstream: None, turn: Turn::default() };
    session.keep(kept);
    session.run().await
}

impl Session {
    async fn run(mut self) -> Result<Step, Ended> {
        let mut scanned = 0;
        loop {
            if self.connection.input.len() == scanned {
                self.more(scanned > 0).await?;
            }
            // The head borrows from `raw`, so nothing of it is copied before it is judged.
            let raw = std::mem::take(&mut self.connection.input);
            let next = match RequestHead::parse(&raw, scanned) {
                Ok(Parsed::Partial) => {
                    scanned = raw.len();
                    self.connection.input = raw;
                    continue;
                }
                Ok(Parsed::Complete { head, len }) => {
                    self.connection.input = raw.get(len..).unwrap_or_default().to_vec();
                    self.turn.next(COST).await;
                    self.serve(&head, &raw).await?
                }
                Err(error) => return self.malformed(&raw, error).await,
            };
            match next {
                Next::Request => {
                    scanned = 0;
                    self.reuse(raw);
                    self.rearm();
                }
                Next::Connect(target) => return self.connect(target, &raw).await,
                Next::WebSocket(with) => return Ok(Step::Relay(Box::new(self.websocket(*with)))),
            }
        }
    }

    /// Reuses the buffer of the last head for the next.
    fn reuse(&mut self, mut raw: Vec<u8>) {
        if self.connection.input.is_empty() {
            raw.clear();
            self.connection.input = raw;
        }
    }

    /// Serves one request of any form.
    async fn serve(&mut self, head: &RequestHead<'_>, raw: &[u8]) -> Result<Next, Ended> {
        // A CONNECT is not counted as a request: it is the last one of its connection, and connections are counted.
        let is_connect = matches!(head.target, RequestTarget::Authority(_));
        if !is_connect && !self.wait_for_turn().await {
            let mut record = self.connection.record(self.listener);
            record.refuse(Limit::Requests.why(Reason::LimitRate), None);
            drop(record);
            // The last answer. Otherwise a client that keeps asking would be refused as quickly as it asks.
            return self.last_answer(Reason::LimitRate, None, raw).await;
        }
        let asked = match (&self.tunnel_around, self.connection.original) {
            (Some(tunnel_around), _) => target_inside_tunnel(tunnel_around, head),
            (None, Some(original)) => target_of_transparent_request(original, head),
            (None, None) => match &head.target {
                RequestTarget::Authority(target) => return Ok(Next::Connect(target.clone())),
                RequestTarget::Absolute { target, .. } => Ok((target.clone(), Evidence::Host)),
                RequestTarget::Origin(_) | RequestTarget::Asterisk => Err(NO_URI),
            },
        };
        match asked {
            Ok((target, evidence)) => self.forward(self.claim(target, Some(Protocol::Http), evidence), head, raw).await,
            Err(why) => {
                let mut record = self.connection.record(self.listener);
                if let Some(shown) = &head.host {
                    record.shown(shown.host.to_string().as_bytes());
                }
                record.refuse(why, None);
                drop(record);
                self.last_answer(why, None, raw).await
            }
        }
    }

    /// Delays a request over its guest's rate until its turn. Returns false if that would take too long.
    async fn wait_for_turn(&self) -> bool {
        match self.connection.slot.request(Instant::now()) {
            Pace::Now => true,
            Pace::After(wait) => {
                self.connection.services.account.metrics().paced(Limit::Requests);
                tokio::time::sleep(wait).await;
                true
            }
            Pace::Over => {
                self.connection.services.account.metrics().over(Limit::Requests);
                false
            }
        }
    }

    /// Waits for more of the guest's bytes. Between requests, an idle connection just ends.
    async fn more(&mut self, within_head: bool) -> Result<(), Ended> {
        let stop = self.connection.services.stop.clone();
        let tunnel_around = self.tunnel_around.as_ref().map(|tunnel_around| Arc::clone(tunnel_around.record.flow()));
        let evicted = self.connection.slot.evicted();
        let may_go = !within_head && tunnel_around.is_none();
        let revoked = poll_fn(move |cx| tunnel_around.as_ref().map_or(Poll::Pending, |flow| flow.poll_revoked(cx)));
        let (connection, turn) = (&mut self.connection, &mut self.turn);
        let filled = tokio::select! {
            biased;
            filled = turn.rest(connection.fill()) => filled,
            reason = revoked => Filled::Revoked(reason),
            () = stop.cancelled(), if !within_head => Filled::End,
            // The cheapest connection to close: it has no request in progress.
            () = evicted, if may_go => {
                connection.services.account.metrics().closed_for_others(1);
                Filled::End
            }
        };
        let why = match filled {
            Filled::Bytes => {
                if !within_head {
                    self.connection.deadline.restart(self.connection.services.gate.settings().handshake_timeout);
                }
                return Ok(());
            }
            Filled::Timeout if within_head => Reason::Timeout.into(),
            Filled::End if within_head => Why::malformed("the connection ended within the head of a request"),
            Filled::End | Filled::Timeout | Filled::Revoked(_) => {
                if !self.close_enclosing() {
                    self.connection.take_leave().await;
                }
                return Err(Ended);
            }
        };
        let raw = std::mem::take(&mut self.connection.input);
        self.note_unread(&raw, why);
        self.last_answer(why, None, &raw).await
    }

    /// Resets the guest's connection if the tunnel around this session was revoked. Returns whether it was.
    fn close_enclosing(&mut self) -> bool {
        if let Some(tunnel_around) = &mut self.tunnel_around
            && let Some(reason) = tunnel_around.record.flow().revocation()
        {
            tunnel_around.record.refuse(reason, None);
            close::reset(&self.connection.guest);
            return true;
        }
        false
    }

    /// Restarts the deadline for the next request: the idle timeout until its first byte, then the handshake timeout.
    fn rearm(&mut self) {
        let limits = self.connection.services.gate.settings();
        let begun = !self.connection.input.is_empty();
        self.connection.deadline.restart(if begun { limits.handshake_timeout } else { limits.idle_timeout });
    }

    /// Opens and closes a record for a head that could not be read, with its first line.
    fn note_unread(&self, raw: &[u8], why: Why) {
        let mut record = self.connection.record(self.listener);
        record.shown(raw.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default());
        record.refuse(why, None);
    }

    async fn malformed<T>(&mut self, raw: &[u8], error: HeadError) -> Result<T, Ended> {
        self.note_unread(raw, error.why());
        let answer = refuse::http_status(error.why(), error.status(), None, raw, true);
        close::after(&mut self.connection.guest, &answer).await;
        Err(Ended)
    }

    /// Answers a refused request. Keeps the connection if no request body is in the way.
    async fn answer(
        &mut self,
        reason: Reason,
        target: Option<&Target>,
        head: &RequestHead<'_>,
        raw: &[u8],
    ) -> Result<Next, Ended> {
        let busy = head.body != Body::None || self.connection.services.stop.is_cancelled();
        // A guest whose request is refused inside a tunnel has no other request to make there.
        if !head.keep_alive || busy || self.tunnel_around.is_some() {
            return self.last_answer(reason, target, raw).await;
        }
        let answer = refuse::http(reason, target, raw, false);
        // The answer to HEAD omits the body that its length describes (RFC 9110 §9.3.2).
        let len = if head.method == b"HEAD" { refuse::head_len(&answer) } else { answer.len() };
        let mut deadline = Deadline::after(self.connection.services.gate.settings().idle_timeout);
        let guest = &mut self.connection.guest;
        let written = async {
            guest.write_all(answer.get(..len).unwrap_or(&answer)).await?;
            guest.flush().await
        };
        tokio::select! {
            biased;
            written = written => written.map(|()| Next::Request).map_err(|_| Ended),
            () = deadline.passed() => Err(Ended),
        }
    }

    /// Answers and closes.
    async fn last_answer<T>(&mut self, why: impl Into<Why>, target: Option<&Target>, raw: &[u8]) -> Result<T, Ended> {
        let answer = refuse::http(why, target, raw, true);
        let head_only = raw.starts_with(b"HEAD ");
        let len = if head_only { refuse::head_len(&answer) } else { answer.len() };
        close::after(&mut self.connection.guest, answer.get(..len).unwrap_or(&answer)).await;
        Err(Ended)
    }

    fn claim(&self, target: Target, spoken: Option<Protocol>, evidence: Evidence) -> Claim {
        claim(self.connection.who.clone(), target, spoken, evidence)
    }

    async fn connect(mut self, target: Target, raw: &[u8]) -> Result<Step, Ended> {
        let Connection { services, who, source, .. } = &*self.connection;
        match (transparent::bound(services, who, *source, &target), &target.host) {
            (Some(Ok(())), Host::Addr(address)) => {
                let original = SocketAddr::new(*address, target.port);
                self.connection.tell(ESTABLISHED).await?;
                return transparent::serve_bound(self.connection, self.listener, original).await;
            }
            (Some(Err(claim)), _) => {
                let mut record = self.connection.record(self.listener);
                let reason = match self.connection.decide(&claim, &mut record) {
                    Err(refusal) => refusal.reason,
                    // Another policy came into force since.
                    Ok(_) => Reason::Revoked,
                };
                record.refuse(reason, None);
                drop(record);
                return self.refuse_connect(reason, &claim, raw).await;
            }
            _ => {}
        }
        match permit_connect(
            &self.connection.services,
            self.connection.who.clone(),
            self.connection.record(self.listener),
            target,
        ) {
            Ok(asked) => self.open(asked, raw).await,
            Err((reason, claim)) => self.refuse_connect(reason, &claim, raw).await,
        }
    }

    async fn open(mut self, asked: PermittedConnect, raw: &[u8]) -> Result<Step, Ended> {
        let PermittedConnect { mut record, claim, permit } = asked;
        match reach(&self.connection.services, &claim, &permit, &mut record).await {
            Ok(upstream) => {
                self.connection.say(ESTABLISHED, &mut record).await?;
                let opened = tunnel::OpenTunnel { listener: self.listener, record, claim, permit, upstream };
                Ok(Step::Tunnel(self.connection, Box::new(opened)))
            }
            Err(reason) => {
                drop(record);
                self.refuse_connect(reason, &claim, raw).await
            }
        }
    }

    async fn refuse_connect(mut self, reason: Reason, claim: &Claim, raw: &[u8]) -> Result<Step, Ended> {
        if let Some(guest) = self.connection.guest.in_clear()
            && self.connection.input.is_empty()
            && reason.verdict() == Verdict::Denied
            && matches!(guest.try_read(&mut [0]), Err(error) if error.kind() == WouldBlock)
        {
            // No unread bytes prevent the delivery of the answer, so an ordinary close delivers it.
            let answer = refuse::http(reason, Some(&claim.target), raw, true);
            match guest.try_write(&answer) {
                // The connection is so new that the runtime does not know yet that it is writable.
                Err(error) if error.kind() == WouldBlock => {}
                _ => return Err(Ended),
            }
        }
        self.last_answer(reason, Some(&claim.target), raw).await
    }

    /// Serves one plain-HTTP request: decide, reach, exchange.
    async fn forward(&mut self, claim: Claim, head: &RequestHead<'_>, raw: &[u8]) -> Result<Next, Ended> {
        let mut record = self.connection.record(self.listener);
        let decision = match self.connection.original {
            Some(_) => decide_unnamed(&self.connection.services, &claim, &mut record),
            None => self.connection.decide(&claim, &mut record),
        };
        let permit = match decision {
            Ok(permit) => permit,
            Err(refusal) => {
                drop(record);
                return self.answer(refusal.reason, Some(&claim.target), head, raw).await;
            }
        };
        let mut repeated = false;
        loop {
            let sent = self.tunnel_around.as_mut().map_or(0, |tunnel_around| std::mem::take(&mut tunnel_around.sent));
            let mut upstream = match self.upstream(&claim, &permit, is_repeatable(head), &mut record).await {
                Ok(upstream) => upstream,
                Err(reason) => {
                    drop(record);
                    return self.answer(reason, Some(&claim.target), head, raw).await;
                }
            };
            let mut written = Vec::with_capacity(512);
            head.write_request(&mut written);
            if upstream.half_said {
                upstream.half_said = false;
                // The bytes sent before must match how we write the request, or the upstream and we read different
                // requests.
                match raw.get(..sent).and_then(|sent| written.strip_prefix(sent)) {
                    Some(rest) => written = rest.to_vec(),
                    None => {
                        upstream.peer.abort();
                        record.refuse(HALF_SAID, None);
                        drop(record);
                        return self.last_answer(HALF_SAID, Some(&claim.target), raw).await;
                    }
                }
            }
            match self.exchange(head, written, &mut upstream.peer, &mut record).await {
                Ok(Done::Answered { guest_reusable, upstream_reusable }) => {
                    upstream.since = Instant::now();
                    upstream.spent = matches!(head.body, Body::None | Body::Length(0));
                    upstream.claim = claim;
                    match upstream_reusable {
                        true => self.keep(upstream),
                        false => upstream.close(),
                    }
                    if record.flow().revocation().is_some()
                        && let Some(kept) = self.upstream.as_ref().and_then(UpstreamSlot::take)
                    {
                        // The reload that revoked it may have searched the kept connections before this was one.
                        kept.close();
                    }
                    if guest_reusable && !self.connection.services.stop.is_cancelled() {
                        return Ok(Next::Request);
                    }
                    drop(record);
                    close::after(&mut self.connection.guest, b"").await;
                    return Err(Ended);
                }
                Ok(Done::Upgraded) => return Ok(Next::WebSocket(Box::new((upstream.peer, record)))),
                Err(Failed { fault: Fault::Stale, .. }) if !repeated => repeated = true,
                Err(failed) => {
                    upstream.peer.abort();
                    return self.failed(failed, &claim.target, raw, record).await;
                }
            }
        }
    }

    /// Returns the kept connection if it leads to the same target and is still good, or else a new one.
    async fn upstream(
        &mut self,
        claim: &Claim,
        permit: &Permit,
        repeatable: bool,
        record: &mut Record,
    ) -> Result<Box<IdleUpstream>, Reason> {
        if let Some(kept) = self.upstream.as_ref().and_then(UpstreamSlot::take) {
            if kept.target == *permit.target()
                && kept.peer.is_idle()
                && (repeatable || kept.since.elapsed() < FRESH)
                && self.connection.services.resolver.screen(permit, &[kept.peer.addresses.peer.ip()]).is_ok()
            {
                record.upstream(kept.peer.addresses.peer, kept.peer.addresses.local);
                // A reload could not find it any more in its slot, and this flow had no address until now.
                if let Err(reason) = confirm(&self.connection.services, claim, kept.peer.addresses.peer, record) {
                    kept.peer.abort();
                    return Err(reason);
                }
                return Ok(kept);
            }
            kept.close();
        }
        self.turn.moved(DIAL_COST);
        let upstream = reach(&self.connection.services, claim, permit, record).await?;
        let addresses = ConnectionAddresses { peer: upstream.peer, local: upstream.local };
        Ok(Box::new(IdleUpstream {
            claim: claim.clone(),
            target: permit.target().clone(),
            peer: UpstreamConnection::new(upstream.stream, addresses),
            since: Instant::now(),
            half_said: false,
            spent: false,
        }))
    }

    /// Keeps a connection for the next request.
    fn keep(&mut self, kept: Box<IdleUpstream>) {
        let idle_upstreams = &self.connection.services.idle_upstreams;
        self.upstream.get_or_insert_with(|| idle_upstreams.slot()).put(kept);
    }

    async fn exchange(
        &mut self,
        head: &RequestHead<'_>,
        written: Vec<u8>,
        peer: &mut UpstreamConnection,
        record: &mut Record,
    ) -> Result<Done, Failed> {
        let limits = self.connection.services.gate.settings();
        let outgoing = Outgoing {
            head: written,
            body: head.body,
            is_head: head.method == b"HEAD",
            version: head.version,
            keep_alive: head.keep_alive,
            upgrade: head.upgrade == Some(Upgrade::WebSocket),
            repeatable: is_repeatable(head),
            patience: limits.response_timeout,
        };
        let supervision = Supervision {
            flow: record.flow(),
            around: self.tunnel_around.as_ref().map(|tunnel_around| &**tunnel_around.record.flow()),
            idle: limits.idle_timeout,
            long_lived: &|| record.still_open(),
        };
        let Connection { guest, input, .. } = &mut *self.connection;
        exchange(guest, input, peer, outgoing, supervision).await
    }

    /// Turns the connection into a WebSocket: its bytes are relayed unread.
    fn websocket(self, (peer, record): (UpstreamConnection, Record)) -> Relaying {
        let Connection { services, guest, slot, active, input, .. } = *self.connection;
        let tunnel = Tunnel::new(guest, peer.stream, input, peer.input);
        Relaying {
            tunnel,
            record,
            idle: services.gate.settings().idle_timeout,
            slot,
            active,
            outer: self.tunnel_around.map(|tunnel_around| tunnel_around.record),
        }
    }

    /// Ends the connection after a failed exchange, with an answer if none has begun.
    async fn failed(&mut self, failed: Failed, target: &Target, raw: &[u8], mut record: Record) -> Result<Next, Ended> {
        let why = match failed.fault {
            Fault::Stale | Fault::Closed => Some(Why::because(Reason::DialFailed, CLOSED)),
            Fault::Response(cause) => Some(Why::because(Reason::ProtocolError, cause)),
            Fault::GuestMalformed(phrase) => Some(Why::malformed(phrase)),
            Fault::Silent => Some(Why::because(Reason::Timeout, SILENT)),
            Fault::Idle => Some(Reason::Timeout.into()),
            Fault::Stopped => Some(record.flow().revocation().unwrap_or(Reason::Revoked).into()),
            Fault::GuestGone => None,
        };
        if let Some(why) = why {
            record.refuse(why, None);
        }
        drop(record);
        self.close_enclosing();
        match why {
            Some(why) if !failed.answered => self.last_answer(why, Some(target), raw).await,
            _ => {
                // A partial answer must not look like a complete one.
                close::reset(&self.connection.guest);
                Err(Ended)
            }
        }
    }
}

/// The destination of a request inside a tunnel: the tunnel's target, or none.
fn target_inside_tunnel(tunnel_around: &EnclosingTunnel, head: &RequestHead<'_>) -> Result<(Target, Evidence), Why> {
    let claim = &tunnel_around.claim;
    let target = match &head.target {
        RequestTarget::Origin(_) | RequestTarget::Asterisk => claim.with_host(head.host.as_ref())?.target,
        RequestTarget::Absolute { target, .. } if *target == claim.target => target.clone(),
        RequestTarget::Absolute { .. } => return Err(Reason::NameMismatch.into()),
        RequestTarget::Authority(_) => return Err(NO_PROXY),
    };
    Ok((target, claim.evidence))
}

/// The destination of a request on a connection to `original`: the host that it shows, on the original port. Without
/// a host (HTTP/1.0) it is the address itself.
fn target_of_transparent_request(original: SocketAddr, head: &RequestHead<'_>) -> Result<(Target, Evidence), Why> {
    if matches!(head.target, RequestTarget::Authority(_)) {
        // The guest uses its destination as a proxy, which is not supported here.
        return Err(NO_PROXY);
    }
    let Some(target) = head.destination(original.port()) else {
        return Ok((Target { host: Host::Addr(original.ip()), port: original.port() }, Evidence::Address));
    };
    if target.port == original.port() { Ok((target, Evidence::Host)) } else { Err(Reason::NameMismatch.into()) }
}

/// May the request be sent again if it is unknown whether the upstream saw it?
fn is_repeatable(head: &RequestHead<'_>) -> bool {
    head.body == Body::None && matches!(head.method, b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE")
}
