//! The inside of a tunnel, from the moment both ends are connected until nothing is left to judge.
//!
//! Every name shown in clear must be the tunnel's: in each ClientHello, including a second one after a
//! HelloRetryRequest, and in each request of plain HTTP. The protocol must be one that the rule allows.

use super::connection::{Connection, Heard, say};
use super::establish::PermittedFlow;
use super::refuse::{Dialect, Ended, Refused, cut};
use super::{Relaying, Step, http};
use crate::account::Record;
use crate::dial::Upstream;
use crate::identify::hello::{ClientHello, ClientRecords, Flight, Forwardable, HELD, Hello, ServerFlight};
use crate::identify::{Claim, HostSearch, OtherName, Parsed, Sniff, asks_for_tls, sniff_on};
use crate::listener::ListenerLabel;
use crate::reason::{Reason, Why};
use crate::relay::http::{ConnectionAddresses, UpstreamConnection};
use crate::relay::{self, Listened, Supervision, Tunnel, close};
use crate::target::{Host, Protocol};
use std::pin::Pin;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

/// How long a guest may pause after a byte that may begin a TLS record, where raw bytes are allowed, before that
/// byte is treated as raw.
const UNCLEAR: Duration = Duration::from_millis(300);

/// A tunnel that is permitted and connected.
pub(super) struct OpenTunnel {
    /// How its guest arrived.
    pub(super) listener: ListenerLabel,
    /// Its record, what was asked for, and what was permitted while the protocol was not yet known.
    pub(super) flow: PermittedFlow,
    /// The connection to the upstream.
    pub(super) upstream: Upstream,
}

impl OpenTunnel {
    /// Decides again for what the guest speaks.
    fn decide_again(&mut self, connection: &Connection, claim: &Claim) -> Result<(), Reason> {
        self.flow.decide_again(&connection.services, claim, self.upstream.peer)
    }

    /// The claim, now that it is known what the guest speaks.
    fn claim_speaking(&self, protocol: Protocol) -> Claim {
        Claim { spoken: Some(protocol), ..self.flow.claim.clone() }
    }

    /// Ends it: closes its record, resets the upstream, and tells the guest.
    async fn end(self: Box<Self>, mut connection: Box<Connection>, why: impl Into<Why>, dialect: Dialect<'_>) -> Ended {
        let OpenTunnel { flow, upstream, .. } = *self;
        let refused = Refused::new(flow.record, why, Some(flow.claim.target)).with_upstream(upstream.stream);
        refused.tell(&mut connection.stream, dialect).await
    }
}

/// What is malformed about a stream whose syntax is valid.
const TOO_LATE: Why = Why::malformed("a ClientHello came too late to be judged");
const TOO_EARLY: Why = Why::malformed("more came behind the ClientHello than may before the server answered");
const CUT_HELLO: Why = Why::malformed("the connection ended within a ClientHello");

/// Judges the protocol inside. Boxed, because by its types HTTP inside could lead to a tunnel again.
pub(super) fn serve(
    connection: Box<Connection>,
    opened: Box<OpenTunnel>,
) -> Pin<Box<dyn Future<Output = Result<Step, Ended>> + Send>> {
    match opened.flow.permit.protocols().contains(Protocol::Raw) {
        true => Box::pin(serve_any(connection, opened)),
        false => Box::pin(serve_known(connection, opened)),
    }
}

/// As [`serve`], where raw bytes are not allowed: nothing is sent on before the protocol is known.
async fn serve_known(mut connection: Box<Connection>, opened: Box<OpenTunnel>) -> Result<Step, Ended> {
    let mut scanned = 0;
    loop {
        match sniff_on(&connection.input, scanned) {
            Sniff::NeedMore => scanned = connection.input.len(),
            Sniff::Tls => return tls(connection, opened, EarlyBytes::default()).await,
            Sniff::Http => return plain_http(connection, opened, EarlyBytes::default()).await,
            Sniff::H2c => return Box::pin(http2(connection, opened, EarlyBytes::default())).await,
            Sniff::Raw => return raw(connection, opened, EarlyBytes::default(), false).await,
        }
        let why = match connection.hear(&opened.flow.record).await {
            Heard::Bytes => continue,
            Heard::End if connection.input.is_empty() => return Err(Ended::Closed),
            Heard::End => Why::malformed("the connection ended before it could be told what is spoken"),
            Heard::Timeout => Reason::Timeout.into(),
            Heard::Revoked(reason) => reason.into(),
        };
        return Err(opened.end(connection, why, Dialect::Silent).await);
    }
}

/// What passed in a tunnel before its protocol was known.
#[derive(Default)]
struct EarlyBytes {
    /// Bytes of a server that spoke first, not yet written to the guest.
    to_guest: Vec<u8>,
    /// How many bytes at the front of the input were sent to the upstream.
    sent: usize,
    /// How many bytes at the front of the input were already sniffed.
    scanned: usize,
    /// Until when the guest may continue before its one unclear byte is sent.
    patience: Option<Instant>,
    /// How often it asked for TLS in a message of another protocol, whose clients need not show a name.
    tls_requests: u8,
}

/// PostgreSQL clients ask for encryption by GSSAPI and then by TLS, and no more.
const MAX_TLS_REQUESTS: u8 = 2;

/// As [`serve`], where raw bytes are allowed too. The server may speak first, and the guest's bytes do not wait
/// until the protocol is clear: the beginning of a request line is sent on as it arrives. Once the bytes are known
/// to be a request, it is judged before the rest of it is sent. Only a single byte that may begin a TLS record is
/// held, and not for long.
///
/// A tunnel may stay here for its whole life, so the rare futures are boxed.
async fn serve_any(mut connection: Box<Connection>, mut opened: Box<OpenTunnel>) -> Result<Step, Ended> {
    let mut early = EarlyBytes::default();
    let why = loop {
        match sniff_on(&connection.input, early.scanned) {
            Sniff::H2c => return Box::pin(http2(connection, opened, early)).await,
            Sniff::Raw => match tls_request(&connection, &opened, &early) {
                None => return Box::pin(raw(connection, opened, early, false)).await,
                Some(Parsed::Partial) => early.scanned = connection.input.len(),
                Some(Parsed::Complete { len, .. }) => {
                    let rest = connection.input.split_off(len.min(connection.input.len()));
                    if let Err(why) = send_unclear(&connection, &mut opened, &mut early).await {
                        break why;
                    }
                    connection.input = rest;
                    let tls_requests = early.tls_requests.saturating_add(1);
                    early = EarlyBytes { to_guest: early.to_guest, tls_requests, ..EarlyBytes::default() };
                    continue;
                }
            },
            Sniff::Tls if early.sent == 0 => return Box::pin(tls(connection, opened, early)).await,
            Sniff::Tls => break TOO_LATE,
            Sniff::Http => return Box::pin(plain_http(connection, opened, early)).await,
            Sniff::NeedMore => early.scanned = connection.input.len(),
        }
        let may_be_tls = matches!(connection.input.as_slice(), [0x14..=0x18]);
        if connection.input.len() > early.sent
            && !may_be_tls
            && let Err(why) = send_unclear(&connection, &mut opened, &mut early).await
        {
            break why;
        }
        match listen(&mut connection, &mut opened, &mut early).await {
            Listened::Guest => {
                // From its first byte on, the guest has the handshake timeout.
                if early.scanned == 0 {
                    connection.deadline.restart(connection.services.gate.settings().handshake_timeout);
                    early.patience = Some(Instant::now() + UNCLEAR);
                }
            }
            // Passes on the end of a guest that sent nothing, or nothing that could be identified.
            Listened::GuestEnded => return Box::pin(raw(connection, opened, early, true)).await,
            Listened::Silent => {
                if let Err(why) = send_unclear(&connection, &mut opened, &mut early).await {
                    break why;
                }
            }
            Listened::Idle => break Reason::Timeout.into(),
            Listened::Closed => return Err(cut(&connection.stream, &opened.upstream.stream)),
            Listened::Stopped => break opened.flow.record.flow().revocation().unwrap_or(Reason::Revoked).into(),
        }
    };
    Err(Box::pin(opened.end(connection, why, Dialect::Silent)).await)
}

/// Does the guest ask to switch to TLS? Checked only where its hello is then judged by a name.
fn tls_request(connection: &Connection, opened: &OpenTunnel, early: &EarlyBytes) -> Option<Parsed<()>> {
    let judged = !opened.flow.permit.any_bytes() && matches!(opened.flow.claim.target.host, Host::Name(_));
    if judged && early.tls_requests < MAX_TLS_REQUESTS { asks_for_tls(&connection.input) } else { None }
}

/// Waits for the guest's next bytes and lets the server send meanwhile: in some protocols the server begins.
async fn listen(connection: &mut Connection, opened: &mut OpenTunnel, early: &mut EarlyBytes) -> Listened {
    let OpenTunnel { flow: PermittedFlow { record, .. }, upstream, .. } = opened;
    let idle = connection.services.gate.settings().idle_timeout;
    let supervision = Supervision { flow: record.flow(), around: None, idle, long_lived: &|| record.still_open() };
    let Connection { stream, input, .. } = connection;
    relay::listen(stream, &mut upstream.stream, input, &mut early.to_guest, early.patience, supervision).await
}

/// Sends to the upstream what the guest has sent so far, as raw bytes.
async fn send_unclear(connection: &Connection, opened: &mut OpenTunnel, early: &mut EarlyBytes) -> Result<(), Why> {
    early.patience = None;
    opened.decide_again(connection, &opened.claim_speaking(Protocol::Raw))?;
    let rest = connection.input.get(early.sent..).unwrap_or_default();
    forward(connection, opened, rest).await.map_err(|why| why.unwrap_or(Reason::DialFailed.into()))?;
    early.sent = connection.input.len();
    Ok(())
}

/// Sends bytes to the upstream and counts them.
async fn forward(connection: &Connection, opened: &mut OpenTunnel, bytes: &[u8]) -> Result<(), Option<Why>> {
    let limit = connection.services.gate.settings().idle_timeout;
    say(&mut opened.upstream.stream, bytes, &opened.flow.record, limit)
        .await
        .map_err(|reason| reason.map(Why::from))?;
    opened.flow.record.flow().count_up(bytes.len());
    Ok(())
}

/// Relays what is neither TLS nor HTTP as far as we can tell. Some servers may read it otherwise, so it is searched
/// for names other than its own, unless `tcp://` permits any bytes.
async fn raw(
    mut connection: Box<Connection>,
    mut opened: Box<OpenTunnel>,
    early: EarlyBytes,
    guest_ended: bool,
) -> Result<Step, Ended> {
    if let Err(reason) = opened.decide_again(&connection, &opened.claim_speaking(Protocol::Raw)) {
        return Err(opened.end(connection, reason, Dialect::Silent).await);
    }
    let search = match opened.flow.permit.any_bytes() {
        true => None,
        false => match search(&opened.flow.claim, &connection.input, guest_ended) {
            Ok(search) => search,
            Err(shown) => {
                opened.flow.record.shown(&shown);
                return Err(opened.end(connection, Reason::NameMismatch, Dialect::Silent).await);
            }
        },
    };
    let rest = connection.input.split_off(early.sent.min(connection.input.len()));
    Ok(relaying(connection, opened, rest, early.to_guest, guest_ended, search))
}

/// Searches what the guest has sent so far. Returns the search if it is not finished yet, or the other name as the
/// error.
fn search(claim: &Claim, said: &[u8], ended: bool) -> Result<Option<Box<HostSearch>>, Vec<u8>> {
    let mut search = Box::new(HostSearch::new(&claim.target));
    let goes_on = search.push(said).and_then(|goes_on| {
        if goes_on && ended {
            search.end()?;
        }
        Ok(goes_on && !ended)
    });
    match goes_on {
        Ok(true) => Ok(Some(search)),
        Ok(false) => Ok(None),
        Err(OtherName) => Err(search.shown().to_vec()),
    }
}

/// Relays HTTP/2 in clear, where it is permitted.
async fn http2(mut connection: Box<Connection>, mut opened: Box<OpenTunnel>, early: EarlyBytes) -> Result<Step, Ended> {
    if let Err(reason) = opened.decide_again(&connection, &opened.claim_speaking(Protocol::H2c)) {
        return Err(opened.end(connection, reason, Dialect::Http2).await);
    }
    let rest = connection.input.split_off(early.sent.min(connection.input.len()));
    Ok(relaying(connection, opened, rest, early.to_guest, false, None))
}

/// Serves HTTP in clear: each request is judged by itself.
async fn plain_http(
    mut connection: Box<Connection>,
    opened: Box<OpenTunnel>,
    early: EarlyBytes,
) -> Result<Step, Ended> {
    let OpenTunnel { listener, mut flow, upstream } = *opened;
    connection.say(&early.to_guest, &mut flow.record).await?;
    let peer =
        UpstreamConnection::new(upstream.stream, ConnectionAddresses { peer: upstream.peer, local: upstream.local });
    http::serve_inside(connection, listener, http::EnclosingTunnel { flow, sent: early.sent }, peer).await
}

/// TLS: the ClientHello decides.
async fn tls(mut connection: Box<Connection>, mut opened: Box<OpenTunnel>, early: EarlyBytes) -> Result<Step, Ended> {
    let nameless = early.tls_requests > 0;
    let len = match hello(&mut connection, &mut opened, nameless).await {
        Ok(len) => len,
        Err(why) => return Err(opened.end(connection, why, Dialect::Tls).await),
    };
    connection.say(&early.to_guest, &mut opened.flow.record).await?;
    pass_hello(connection, opened, len, nameless).await
}

/// Sends on the judged ClientHello, which is the first `len` bytes of the input, and what follows it. `nameless`: a
/// second one need not show a name.
///
/// Where raw bytes may pass, the server need not speak TLS: Java's HTTP server reads a hello as part of a method. So
/// the guest's bytes are searched from the hello on.
pub(super) async fn pass_hello(
    mut connection: Box<Connection>,
    mut opened: Box<OpenTunnel>,
    len: usize,
    nameless: bool,
) -> Result<Step, Ended> {
    let rest = connection.input.split_off(len.min(connection.input.len()));
    let hello = std::mem::replace(&mut connection.input, rest);
    let may_be_raw = opened.flow.permit.protocols().contains(Protocol::Raw) && !opened.flow.permit.any_bytes();
    let mut search = may_be_raw.then(|| Box::new(HostSearch::new(&opened.flow.claim.target)));
    let watched = watch(&mut connection, &mut opened, hello, nameless, &mut search).await;
    let input = std::mem::take(&mut connection.input);
    let searched = watched.and_then(|watched| look_through(&mut opened, &mut search, &input).map(|()| watched));
    match searched {
        Ok(BeforeServerHello { to_guest, guest_ended }) => {
            Ok(relaying(connection, opened, input, to_guest, guest_ended, search))
        }
        Err(Some(why)) => Err(opened.end(connection, why, Dialect::Tls).await),
        Err(None) => Err(Ended::Closed),
    }
}

/// Searches bytes that are about to be sent on for another name.
fn look_through(
    opened: &mut OpenTunnel,
    search: &mut Option<Box<HostSearch>>,
    bytes: &[u8],
) -> Result<(), Option<Why>> {
    let Some(searching) = search else { return Ok(()) };
    match searching.push(bytes) {
        Ok(true) => Ok(()),
        Ok(false) => {
            *search = None;
            Ok(())
        }
        Err(OtherName) => {
            opened.flow.record.shown(searching.shown());
            Err(Some(Reason::NameMismatch.into()))
        }
    }
}

/// Reads a ClientHello at the front of the input.
pub(super) async fn read_hello(connection: &mut Connection, record: &Record) -> Result<ClientHello, Why> {
    let mut reader = Hello::new();
    loop {
        match reader.advance(&connection.input) {
            Ok(Parsed::Complete { head, .. }) => return Ok(head),
            Ok(Parsed::Partial) => {}
            Err(error) => return Err(error.why()),
        }
        match connection.hear(record).await {
            Heard::Bytes => {}
            Heard::End => return Err(CUT_HELLO),
            Heard::Timeout => return Err(Reason::Timeout.into()),
            Heard::Revoked(reason) => return Err(reason.into()),
        }
    }
}

/// Reads a ClientHello at the front of the input and judges it. Returns its length.
async fn hello(connection: &mut Connection, opened: &mut OpenTunnel, nameless: bool) -> Result<usize, Why> {
    let shown = read_hello(connection, &opened.flow.record).await?;
    let ClientHello { sni, len, .. } = &shown;
    let claim = match opened.flow.claim.with_hello(&shown) {
        Err(Reason::NoName) if nameless => {
            Claim { spoken: Some(Protocol::Tls), ech: opened.flow.claim.ech || shown.ech, ..opened.flow.claim.clone() }
        }
        claim => claim.inspect_err(|_| {
            if let Some(sni) = sni {
                opened.flow.record.shown(sni.as_str().as_bytes());
            }
        })?,
    };
    opened.decide_again(connection, &claim)?;
    opened.flow.claim = claim;
    Ok(*len)
}

/// What was read but not sent on by [`watch`].
struct BeforeServerHello {
    to_guest: Vec<u8>,
    guest_ended: bool,
}

/// The guest's bytes after its hello, as far as they may be sent on.
#[derive(Default)]
struct AfterHello {
    records: ClientRecords,
    /// The input starts with a handshake record that is still to be judged.
    held: bool,
}

impl AfterHello {
    /// Removes from the input what may be sent on, and returns it.
    fn take(&mut self, input: &mut Vec<u8>) -> Result<Vec<u8>, Option<Why>> {
        if self.held {
            // No client sends two records before the server has answered.
            return if input.len() > HELD { Err(Some(TOO_EARLY)) } else { Ok(Vec::new()) };
        }
        let forward = match self.records.advance(input).map_err(|error| Some(error.why()))? {
            Forwardable::All => input.len(),
            Forwardable::UpTo(at) => {
                self.held = true;
                at
            }
        };
        let rest = input.split_off(forward);
        Ok(std::mem::replace(input, rest))
    }
}

/// Sends the hello on and relays until the server has shown that it wants no second one, or until that one was
/// judged too. What may be sent on next is then at the front of the input.
async fn watch(
    connection: &mut Connection,
    opened: &mut OpenTunnel,
    hello: Vec<u8>,
    nameless: bool,
    search: &mut Option<Box<HostSearch>>,
) -> Result<BeforeServerHello, Option<Why>> {
    let mut behind = AfterHello::default();
    let mut flight = ServerFlight::new();
    let mut guest_ended = false;
    let idle = connection.services.gate.settings().idle_timeout;
    let first = [hello, behind.take(&mut connection.input)?].concat();
    look_through(opened, search, &first)?;
    forward(connection, opened, &first).await?;
    connection.deadline.restart(idle);
    loop {
        let mut from_server = Vec::with_capacity(8 << 10);
        let mut from_guest = Vec::new();
        tokio::select! {
            read = opened.upstream.stream.read_buf(&mut from_server) => {
                match read {
                    Ok(1..) => {}
                    Ok(0) => return Err(None),
                    Err(_) => {
                        cut(&connection.stream, &opened.upstream.stream);
                        return Err(None);
                    }
                }
            }
            read = connection.stream.read_buf(&mut from_guest), if !guest_ended => {
                match read {
                    Ok(1..) => {}
                    Ok(0) => {
                        guest_ended = true;
                        // What is held is not judged, so the upstream must not wait for it either.
                        let _ = close::finish(&opened.upstream.stream);
                    }
                    Err(_) => {
                        cut(&connection.stream, &opened.upstream.stream);
                        return Err(None);
                    }
                }
            }
            () = connection.deadline.passed() => return Err(Some(Reason::Timeout.into())),
            reason = opened.flow.record.flow().revoked() => return Err(Some(reason.into())),
        }
        connection.deadline.restart(idle);
        connection.input.append(&mut from_guest);
        let more = behind.take(&mut connection.input)?;
        look_through(opened, search, &more)?;
        forward(connection, opened, &more).await?;
        match flight.push(&from_server) {
            Flight::Other => return Ok(BeforeServerHello { to_guest: from_server, guest_ended }),
            Flight::NeedMore => pass_down(connection, opened, &from_server).await?,
            Flight::HelloRetryRequest => {
                pass_down(connection, opened, &from_server).await?;
                return second(connection, opened, behind, nameless, search).await;
            }
        }
    }
}

async fn pass_down(connection: &mut Connection, opened: &OpenTunnel, bytes: &[u8]) -> Result<(), Option<Why>> {
    let limit = connection.services.gate.settings().idle_timeout;
    say(&mut connection.stream, bytes, &opened.flow.record, limit).await.map_err(|reason| reason.map(Why::from))?;
    opened.flow.record.flow().count_down(bytes.len());
    Ok(())
}

/// The server asked for another hello: the guest's next record, ChangeCipherSpec aside, is one.
async fn second(
    connection: &mut Connection,
    opened: &mut OpenTunnel,
    mut behind: AfterHello,
    nameless: bool,
    search: &mut Option<Box<HostSearch>>,
) -> Result<BeforeServerHello, Option<Why>> {
    connection.deadline.restart(connection.services.gate.settings().handshake_timeout);
    let mut outgoing = behind.take(&mut connection.input)?;
    while !behind.held {
        match connection.hear(&opened.flow.record).await {
            Heard::Bytes => outgoing.extend(behind.take(&mut connection.input)?),
            Heard::End => return Err(None),
            Heard::Timeout => return Err(Some(Reason::Timeout.into())),
            Heard::Revoked(reason) => return Err(Some(reason.into())),
        }
        if outgoing.len() > HELD {
            return Err(Some(TOO_EARLY));
        }
    }
    let len = hello(connection, opened, nameless).await.map_err(Some)?;
    outgoing.extend(connection.input.drain(..len.min(connection.input.len())));
    look_through(opened, search, &outgoing)?;
    forward(connection, opened, &outgoing).await?;
    Ok(BeforeServerHello { to_guest: Vec::new(), guest_ended: false })
}

fn relaying(
    connection: Box<Connection>,
    opened: Box<OpenTunnel>,
    to_upstream: Vec<u8>,
    to_guest: Vec<u8>,
    guest_ended: bool,
    search: Option<Box<HostSearch>>,
) -> Step {
    let Connection { services, stream, slot, active, .. } = *connection;
    let OpenTunnel { flow: PermittedFlow { record, .. }, upstream, .. } = *opened;
    let tunnel = Tunnel::new(stream, upstream.stream, to_upstream, to_guest).guest_ended(guest_ended).searched(search);
    let idle = services.gate.settings().idle_timeout;
    Step::Relay(Box::new(Relaying { tunnel, record, idle, slot, active, outer: None }))
}
