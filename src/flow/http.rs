//! HTTP from the first to the last request of a connection: on a proxy port, on a redirected connection, and in
//! clear inside a tunnel. Each request is parsed strictly, and is judged, counted and logged by itself.

use super::connection::{Connection, Heard, open_record};
use super::establish::{PermittedFlow, decide};
use super::refuse::{Dialect, Ended, Refused};
use super::{Relaying, Step, http_answer, proxied};
use crate::account::{Limit, Record};
use crate::guest::Guest;
use crate::identify::http::{Body, HeadError, RequestHead, RequestTarget, Upgrade};
use crate::identify::{Claim, Evidence, Parsed};
use crate::limits::Pace;
use crate::listener::ListenerLabel;
use crate::reason::{Cause, Reason, Why};
use crate::relay::http::{ConnectionAddresses, Done, Failed, Fault, Outgoing, UpstreamConnection, exchange};
use crate::relay::{IdleUpstream, Supervision, Tunnel, Turn, UpstreamSlot, close};
use crate::services::Services;
use crate::target::{Host, Protocol, Target};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

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
    /// What the tunnel was opened for. Its record stays open, and it may be revoked.
    pub(super) flow: PermittedFlow,
    /// How much of the first request was sent to the upstream before it was known to be one.
    pub(super) sent: usize,
}

/// A connection that carries HTTP.
struct Session {
    connection: Box<Connection>,
    listener: ListenerLabel,
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

/// What [`early_connect`] found in the first bytes of a connection.
pub(super) enum EarlyConnect {
    /// A refused CONNECT, with the answer that ends the connection.
    Refused(Vec<u8>),
    /// A permitted CONNECT.
    Permitted(Box<PermittedFlow>),
    /// Anything else; nothing was done about it.
    NotConnect,
}

/// Judges a CONNECT that arrived together with the connection, if its head is complete and nothing follows it.
pub(super) fn early_connect(services: &Services, source: SocketAddr, guest: &Guest, first: &[u8]) -> EarlyConnect {
    let Ok(Parsed::Complete { head, len }) = RequestHead::parse(first, 0) else { return EarlyConnect::NotConnect };
    let RequestTarget::Authority(target) = &head.target else { return EarlyConnect::NotConnect };
    // An address that stands for a name needs more than this.
    if len != first.len() || proxied::named_by_dns(services, source, guest, target).is_some() {
        return EarlyConnect::NotConnect;
    }
    let record = open_record(services, ListenerLabel::Proxy, source, guest, None);
    let claim = proxied::claim(guest, target.clone(), Evidence::Connect);
    match decide(services, claim, record, Reason::NotWhitelisted) {
        Ok(flow) => EarlyConnect::Permitted(Box::new(flow)),
        Err(refused) => {
            let (why, target) = refused.close();
            EarlyConnect::Refused(http_answer::refusal(why, target.as_ref(), first, true))
        }
    }
}

/// Opens the tunnel for a permitted CONNECT that is all of the connection's input.
pub(super) async fn connect(mut connection: Box<Connection>, flow: PermittedFlow) -> Result<Step, Ended> {
    let head = std::mem::take(&mut connection.input);
    let dialect = Dialect::Connect { head: &head, alone: true };
    proxied::open_permitted(connection, ListenerLabel::Proxy, flow, dialect).await
}

/// Serves HTTP on a proxy port, or on a redirected connection, where each request's Host names the destination.
pub(super) async fn serve(connection: Box<Connection>, listener: ListenerLabel) -> Result<Step, Ended> {
    Session { connection, listener, tunnel_around: None, upstream: None, turn: Turn::default() }.run().await
}

/// Serves HTTP in clear inside a tunnel; `upstream` is connected already.
pub(super) async fn serve_inside(
    connection: Box<Connection>,
    listener: ListenerLabel,
    tunnel_around: EnclosingTunnel,
    upstream: UpstreamConnection,
) -> Result<Step, Ended> {
    let kept = Box::new(IdleUpstream {
        claim: tunnel_around.flow.claim.clone(),
        target: tunnel_around.flow.claim.target.clone(),
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
                Err(error) => return Err(self.malformed(&raw, error).await),
            };
            match next {
                Next::Request => {
                    scanned = 0;
                    self.reuse(raw);
                    self.rearm();
                }
                Next::Connect(target) => {
                    let dialect = Dialect::Connect { head: &raw, alone: self.connection.input.is_empty() };
                    return proxied::open(self.connection, self.listener, target, Evidence::Connect, dialect).await;
                }
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
            // The guest learns the reason, and the operator also which limit it was.
            record.refuse(Limit::Requests.why(Reason::LimitRate), None);
            // The last answer. Otherwise a client that keeps asking would be refused as quickly as it asks.
            return Err(self.refuse(Refused::noted(record, Reason::LimitRate, None), raw).await);
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
            Ok((target, evidence)) => self.forward(self.claim(target, evidence), head, raw).await,
            Err(why) => {
                let mut record = self.connection.record(self.listener);
                if let Some(shown) = &head.host {
                    record.shown(shown.host.to_string().as_bytes());
                }
                Err(self.refuse(Refused::new(record, why, None), raw).await)
            }
        }
    }

    /// Tells the guest that its request is refused, and ends the connection.
    async fn refuse(&mut self, refused: Box<Refused>, head: &[u8]) -> Ended {
        refused.tell(&mut self.connection.stream, Dialect::Http { head }).await
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
        let tunnel_around =
            self.tunnel_around.as_ref().map(|tunnel_around| Arc::clone(tunnel_around.flow.record.flow()));
        let evicted = self.connection.slot.evicted();
        let may_go = !within_head && tunnel_around.is_none();
        let revoked = poll_fn(move |cx| tunnel_around.as_ref().map_or(Poll::Pending, |flow| flow.poll_revoked(cx)));
        let (connection, turn) = (&mut self.connection, &mut self.turn);
        let filled = tokio::select! {
            biased;
            filled = turn.rest(connection.fill()) => Heard::from(filled),
            reason = revoked => Heard::Revoked(reason),
            () = stop.cancelled(), if !within_head => Heard::End,
            // The cheapest connection to close: it has no request in progress.
            () = evicted, if may_go => {
                connection.services.account.metrics().closed_for_others(1);
                Heard::End
            }
        };
        let why = match filled {
            Heard::Bytes => {
                if !within_head {
                    self.connection.deadline.restart(self.connection.services.gate.settings().handshake_timeout);
                }
                return Ok(());
            }
            Heard::Timeout if within_head => Reason::Timeout.into(),
            Heard::End if within_head => Why::malformed("the connection ended within the head of a request"),
            Heard::End | Heard::Timeout | Heard::Revoked(_) => {
                return Err(match self.end_revoked_tunnel() {
                    Some(ended) => ended,
                    None => self.connection.leave().await,
                });
            }
        };
        let raw = std::mem::take(&mut self.connection.input);
        let refused = self.unread(&raw, why);
        Err(self.refuse(refused, &raw).await)
    }

    /// Resets the guest's connection if the tunnel around this session was revoked.
    fn end_revoked_tunnel(&mut self) -> Option<Ended> {
        let record = &mut self.tunnel_around.as_mut()?.flow.record;
        let reason = record.flow().revocation()?;
        record.refuse(reason, None);
        close::reset(&self.connection.stream);
        Some(Ended::Closed)
    }

    /// Restarts the deadline for the next request: the idle timeout until its first byte, then the handshake timeout.
    fn rearm(&mut self) {
        let limits = self.connection.services.gate.settings();
        let begun = !self.connection.input.is_empty();
        self.connection.deadline.restart(if begun { limits.handshake_timeout } else { limits.idle_timeout });
    }

    /// Refuses a head that could not be read; the record shows its first line.
    fn unread(&mut self, raw: &[u8], why: Why) -> Box<Refused> {
        let mut record = self.connection.record(self.listener);
        record.shown(raw.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default());
        Refused::new(record, why, None)
    }

    async fn malformed(&mut self, raw: &[u8], error: HeadError) -> Ended {
        let refused = self.unread(raw, error.why());
        let dialect = Dialect::UnreadableHttp { head: raw, status: error.status() };
        refused.tell(&mut self.connection.stream, dialect).await
    }

    /// Answers a refused request. Keeps the connection if no request body is in the way.
    async fn answer(&mut self, refused: Box<Refused>, head: &RequestHead<'_>, raw: &[u8]) -> Result<Next, Ended> {
        let busy = head.body != Body::None || self.connection.services.stop.is_cancelled();
        // A guest whose request is refused inside a tunnel has no other request to make there.
        if !head.keep_alive || busy || self.tunnel_around.is_some() {
            return Err(self.refuse(refused, raw).await);
        }
        let (why, target) = refused.close();
        let answer = http_answer::refusal(why, target.as_ref(), raw, false);
        self.connection.say_unrecorded(http_answer::for_method(&answer, raw)).await.map(|()| Next::Request)
    }

    fn claim(&self, target: Target, evidence: Evidence) -> Claim {
        Claim { spoken: Some(Protocol::Http), ..proxied::claim(&self.connection.guest, target, evidence) }
    }

    /// Serves one plain-HTTP request: decide, reach, exchange.
    async fn forward(&mut self, claim: Claim, head: &RequestHead<'_>, raw: &[u8]) -> Result<Next, Ended> {
        let record = self.connection.record(self.listener);
        let unnamed = if self.connection.original.is_some() { Reason::NoName } else { Reason::NotWhitelisted };
        let mut flow = match decide(&self.connection.services, claim, record, unnamed) {
            Ok(flow) => flow,
            Err(refused) => return self.answer(refused, head, raw).await,
        };
        let mut repeated = false;
        loop {
            let sent = self.tunnel_around.as_mut().map_or(0, |tunnel_around| std::mem::take(&mut tunnel_around.sent));
            let mut upstream = match self.upstream(&mut flow, is_repeatable(head)).await {
                Ok(upstream) => upstream,
                Err(reason) => return self.answer(flow.refused(reason), head, raw).await,
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
                        let refused = Refused::new(flow.record, HALF_SAID, Some(flow.claim.target));
                        return Err(self.refuse(refused, raw).await);
                    }
                }
            }
            match self.exchange(head, written, &mut upstream.peer, &mut flow.record).await {
                Ok(Done::Answered { guest_reusable, upstream_reusable }) => {
                    upstream.since = Instant::now();
                    upstream.spent = matches!(head.body, Body::None | Body::Length(0));
                    upstream.claim = flow.claim;
                    match upstream_reusable {
                        true => self.keep(upstream),
                        false => upstream.close(),
                    }
                    if flow.record.flow().revocation().is_some()
                        && let Some(kept) = self.upstream.as_ref().and_then(UpstreamSlot::take)
                    {
                        // The reload that revoked it may have searched the kept connections before this was one.
                        kept.close();
                    }
                    if guest_reusable && !self.connection.services.stop.is_cancelled() {
                        return Ok(Next::Request);
                    }
                    drop(flow.record);
                    close::after(&mut self.connection.stream, b"").await;
                    return Err(Ended::Closed);
                }
                Ok(Done::Upgraded) => return Ok(Next::WebSocket(Box::new((upstream.peer, flow.record)))),
                Err(Failed { fault: Fault::Stale, .. }) if !repeated => repeated = true,
                Err(failed) => {
                    upstream.peer.abort();
                    return Err(self.failed(failed, flow, raw).await);
                }
            }
        }
    }

    /// Returns the kept connection if it leads to the same target and is still good, or else a new one. If there is
    /// none, the reason is in the record.
    async fn upstream(&mut self, flow: &mut PermittedFlow, repeatable: bool) -> Result<Box<IdleUpstream>, Reason> {
        let services = &self.connection.services;
        if let Some(kept) = self.upstream.as_ref().and_then(UpstreamSlot::take) {
            let ConnectionAddresses { peer, local } = kept.peer.addresses;
            if kept.target == *flow.permit.target()
                && kept.peer.is_idle()
                && (repeatable || kept.since.elapsed() < FRESH)
                && services.resolver.screen(&flow.permit, &[peer.ip()]).is_ok()
            {
                // A reload could not find it any more in its slot, and this flow had no address until now.
                if let Err(reason) = flow.confirm(services, peer, local) {
                    kept.peer.abort();
                    return Err(reason);
                }
                return Ok(kept);
            }
            kept.close();
        }
        self.turn.moved(DIAL_COST);
        let upstream = flow.reach(services, &self.connection.guest).await?;
        let addresses = ConnectionAddresses { peer: upstream.peer, local: upstream.local };
        Ok(Box::new(IdleUpstream {
            claim: flow.claim.clone(),
            target: flow.permit.target().clone(),
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
            around: self.tunnel_around.as_ref().map(|tunnel_around| &**tunnel_around.flow.record.flow()),
            idle: limits.idle_timeout,
            long_lived: &|| record.still_open(),
        };
        let Connection { stream, input, .. } = &mut *self.connection;
        exchange(stream, input, peer, outgoing, supervision).await
    }

    /// Turns the connection into a WebSocket: its bytes are relayed unread.
    fn websocket(self, (peer, record): (UpstreamConnection, Record)) -> Relaying {
        let Connection { services, stream, slot, active, input, .. } = *self.connection;
        let tunnel = Tunnel::new(stream, peer.stream, input, peer.input);
        Relaying {
            tunnel,
            record,
            idle: services.gate.settings().idle_timeout,
            slot,
            active,
            outer: self.tunnel_around.map(|tunnel_around| tunnel_around.flow.record),
        }
    }

    /// Ends the connection after a failed exchange, with an answer if none has begun.
    async fn failed(&mut self, failed: Failed, flow: PermittedFlow, raw: &[u8]) -> Ended {
        let PermittedFlow { record, claim, .. } = flow;
        let why = match failed.fault {
            Fault::Stale | Fault::Closed => Why::because(Reason::DialFailed, CLOSED),
            Fault::Response(cause) => Why::because(Reason::ProtocolError, cause),
            Fault::GuestMalformed(phrase) => Why::malformed(phrase),
            Fault::Silent => Why::because(Reason::Timeout, SILENT),
            Fault::Idle => Reason::Timeout.into(),
            Fault::Stopped => record.flow().revocation().unwrap_or(Reason::Revoked).into(),
            Fault::GuestGone => {
                drop(record);
                return self.end_revoked_tunnel().unwrap_or_else(|| {
                    close::reset(&self.connection.stream);
                    Ended::Closed
                });
            }
        };
        let refused = Refused::new(record, why, Some(claim.target));
        // A partial answer must not look like a complete one.
        let dialect = if failed.answered { Dialect::Silent } else { Dialect::Http { head: raw } };
        self.end_revoked_tunnel();
        refused.tell(&mut self.connection.stream, dialect).await
    }
}

/// The destination of a request inside a tunnel: the tunnel's target, or none.
fn target_inside_tunnel(tunnel_around: &EnclosingTunnel, head: &RequestHead<'_>) -> Result<(Target, Evidence), Why> {
    let claim = &tunnel_around.flow.claim;
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
