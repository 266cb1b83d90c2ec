//! The inside of a tunnel, from the moment both ends are connected until nothing more is to be judged.
//!
//! Whatever shows a name in clear is held to the tunnel's: each ClientHello, a second one after a
//! HelloRetryRequest too, and each request of plain HTTP. What is spoken must be what the rule allows.

use super::{Ended, Filled, Relaying, Visit, decide, http, refuse};
use crate::account::{Listener, Record};
use crate::dial::Upstream;
use crate::identify::hello::{ClientHello, ClientRecords, Flight, HELD, Hello, ServerFlight, Walk};
use crate::identify::{Claim, Parsed, Sniff, sniff};
use crate::policy::Permit;
use crate::reason::Reason;
use crate::relay::http::{Bond, Peer};
use crate::relay::{self, Heard, Tunnel, Watch, close};
use crate::target::Protocol;
use std::task::Context;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a guest may stop within what could become a hello or a request line, where raw bytes are
/// allowed, before what it said is taken for those.
const UNCLEAR: Duration = Duration::from_millis(300);

/// A tunnel that was permitted, dialled and confirmed to the guest.
pub(super) struct Opened {
    /// By which door it came.
    pub(super) listener: Listener,
    /// Its record.
    pub(super) record: Record,
    /// What was asked for.
    pub(super) claim: Claim,
    /// What was permitted, the protocol not yet known.
    pub(super) permit: Permit,
    /// The other end.
    pub(super) upstream: Upstream,
}

/// Judges what is spoken inside.
pub(super) async fn serve(mut visit: Visit, mut opened: Opened) -> Result<Relaying, Ended> {
    if opened.permit.protocols().contains(Protocol::Raw) {
        return serve_any(visit, opened).await;
    }
    loop {
        match sniff(&visit.input) {
            Sniff::NeedMore => {}
            Sniff::Tls => return tls(visit, opened, Vec::new()).await,
            Sniff::Http => return plain_http(visit, opened, Vec::new()).await,
            Sniff::Raw => return raw(visit, opened, Spoken::default(), false),
        }
        let reason = match hear(&mut visit, &opened.record).await {
            Filled::Bytes => continue,
            Filled::End if visit.input.is_empty() => return Err(Ended),
            Filled::End => opened.record.flow().revocation().unwrap_or(Reason::Malformed),
            Filled::Timeout => Reason::Timeout,
        };
        opened.record.refuse(reason, None);
        close::reset(&visit.guest);
        return Err(Ended);
    }
}

/// What has passed in a tunnel before it was known what is spoken in it.
#[derive(Default)]
struct Spoken {
    /// Bytes of a server that spoke first, not yet taken by the guest.
    to_guest: Vec<u8>,
    /// How many bytes at the front of the input have gone to the upstream.
    sent: usize,
}

/// As [`serve`], where raw bytes are allowed too. The server may speak first. A guest that stops within
/// what could still become a hello or a request line speaks neither, as far as can be told; its bytes go
/// on, and a hello or a request that then comes of them is too late to be judged and is refused.
async fn serve_any(mut visit: Visit, mut opened: Opened) -> Result<Relaying, Ended> {
    let mut spoken = Spoken::default();
    loop {
        let reason = match sniff(&visit.input) {
            Sniff::Raw => return raw(visit, opened, spoken, false),
            Sniff::Tls if spoken.sent == 0 => return tls(visit, opened, spoken.to_guest).await,
            Sniff::Http if spoken.sent == 0 => return plain_http(visit, opened, spoken.to_guest).await,
            Sniff::Tls | Sniff::Http => Reason::Malformed,
            Sniff::NeedMore => match listen(&mut visit, &mut opened, &mut spoken).await? {
                Filled::Bytes => continue,
                // The end of a guest that said nothing, or nothing that could be told apart, is passed on.
                Filled::End => return raw(visit, opened, spoken, true),
                Filled::Timeout if spoken.sent < visit.input.len() => {
                    send_unclear(&visit, &mut opened, &mut spoken).await?;
                    continue;
                }
                Filled::Timeout => Reason::Timeout,
            },
        };
        opened.record.refuse(reason, None);
        close::reset(&visit.guest);
        close::reset(&opened.upstream.stream);
        return Err(Ended);
    }
}

/// Sends on what the guest has said so far, as raw bytes.
async fn send_unclear(visit: &Visit, opened: &mut Opened, spoken: &mut Spoken) -> Result<(), Ended> {
    let claim = Claim { spoken: Some(Protocol::Raw), ..opened.claim.clone() };
    if judge(visit, opened, &claim).is_err() {
        close::reset(&visit.guest);
        return Err(Ended);
    }
    let rest = visit.input.get(spoken.sent..).unwrap_or_default();
    opened.upstream.stream.write_all(rest).await.map_err(|_| Ended)?;
    relay::Meter::up(&opened.record.meter(), rest.len());
    spoken.sent = visit.input.len();
    Ok(())
}

/// Waits for the guest's next bytes; a tunnel that is revoked meanwhile counts as ended.
async fn hear(visit: &mut Visit, record: &Record) -> Filled {
    let flow = record.flow();
    tokio::select! {
        biased;
        filled = visit.fill() => filled,
        _ = flow.revoked() => Filled::End,
    }
}

/// Waits for the guest's next bytes and lets the server speak meanwhile: some protocols begin so.
async fn listen(visit: &mut Visit, opened: &mut Opened, spoken: &mut Spoken) -> Result<Filled, Ended> {
    let Opened { record, upstream, .. } = opened;
    let unclear = spoken.sent < visit.input.len();
    let wait = if unclear { Some(UNCLEAR) } else { visit.house.gate.settings().idle_timeout };
    let meter = record.meter();
    let flow = std::sync::Arc::clone(record.flow());
    let stopped = |cx: &mut Context<'_>| flow.poll_revoked(cx).map(drop);
    let watch = Watch { meter: &meter, idle: wait, stopped, long: || record.still_open() };
    let heard = relay::listen(&mut visit.guest, &mut upstream.stream, &mut spoken.to_guest, watch).await;
    match heard {
        Heard::Guest => Ok(visit.fill_now().await),
        Heard::Idle => Ok(Filled::Timeout),
        Heard::Closed => Err(Ended),
        Heard::Stopped => {
            record.refuse(flow.revocation().unwrap_or(Reason::Revoked), None);
            close::reset(&visit.guest);
            Err(Ended)
        }
    }
}

/// Neither TLS nor HTTP.
fn raw(mut visit: Visit, mut opened: Opened, spoken: Spoken, guest_ended: bool) -> Result<Relaying, Ended> {
    let claim = Claim { spoken: Some(Protocol::Raw), ..opened.claim.clone() };
    if judge(&visit, &mut opened, &claim).is_err() {
        close::reset(&visit.guest);
        return Err(Ended);
    }
    let rest = visit.input.split_off(spoken.sent.min(visit.input.len()));
    Ok(relaying(visit, opened, rest, spoken.to_guest, guest_ended))
}

/// HTTP in clear: each request is judged by itself.
async fn plain_http(mut visit: Visit, opened: Opened, to_guest: Vec<u8>) -> Result<Relaying, Ended> {
    let Opened { listener, record, claim, upstream, .. } = opened;
    visit.guest.write_all(&to_guest).await.map_err(|_| Ended)?;
    let peer = Peer::new(upstream.stream, Bond { peer: upstream.peer, local: upstream.local });
    // Boxed, for the session inside could in its turn lead to a tunnel as far as types go.
    Box::pin(http::serve_inside(visit, listener, http::Inside { claim, record }, peer)).await
}

/// Decides again, now that more is known, and holds the connected address to the new permit.
fn judge(visit: &Visit, opened: &mut Opened, claim: &Claim) -> Result<(), Reason> {
    let permit = decide(&visit.house, claim, &mut opened.record).map_err(|refusal| refusal.reason)?;
    if let Err(error) = visit.house.resolver.screen(&permit, &[opened.upstream.peer.ip()]) {
        opened.record.refuse(error.reason(), None);
        return Err(error.reason());
    }
    opened.permit = permit;
    Ok(())
}

/// TLS: the hello decides.
async fn tls(mut visit: Visit, mut opened: Opened, to_guest: Vec<u8>) -> Result<Relaying, Ended> {
    let len = match hello(&mut visit, &mut opened).await {
        Ok(len) => len,
        Err(reason) => return alert(visit, opened, reason).await,
    };
    visit.guest.write_all(&to_guest).await.map_err(|_| Ended)?;
    let rest = visit.input.split_off(len);
    let hello = std::mem::replace(&mut visit.input, rest);
    match watch(&mut visit, &mut opened, hello).await {
        Ok(Watched { to_guest, guest_ended }) => {
            let input = std::mem::take(&mut visit.input);
            Ok(relaying(visit, opened, input, to_guest, guest_ended))
        }
        Err(Some(reason)) => alert(visit, opened, reason).await,
        Err(None) => Err(Ended),
    }
}

/// Reads a ClientHello at the front of the input and judges it. Returns its length.
async fn hello(visit: &mut Visit, opened: &mut Opened) -> Result<usize, Reason> {
    let mut reader = Hello::new();
    let shown = loop {
        match reader.advance(&visit.input) {
            Ok(Parsed::Complete { head, .. }) => break head,
            Ok(Parsed::Partial) => {}
            Err(error) => return Err(error.reason()),
        }
        match hear(visit, &opened.record).await {
            Filled::Bytes => {}
            Filled::End => return Err(opened.record.flow().revocation().unwrap_or(Reason::Malformed)),
            Filled::Timeout => return Err(Reason::Timeout),
        }
    };
    let ClientHello { sni, len, .. } = &shown;
    let claim = opened.claim.with_hello(&shown).inspect_err(|_| {
        if let Some(sni) = sni {
            opened.record.shown(sni.as_str().as_bytes());
        }
    })?;
    judge(visit, opened, &claim)?;
    opened.claim = claim;
    Ok(*len)
}

/// Refuses as TLS does, so that the client says "access denied" and not "connection reset".
async fn alert(mut visit: Visit, mut opened: Opened, reason: Reason) -> Result<Relaying, Ended> {
    opened.record.refuse(reason, None);
    let Opened { record, upstream, .. } = opened;
    drop(record);
    close::reset(&upstream.stream);
    drop(upstream);
    close::after(&mut visit.guest, &refuse::TLS_ALERT).await;
    Err(Ended)
}

/// What was read while watching.
struct Watched {
    to_guest: Vec<u8>,
    guest_ended: bool,
}

/// Sends the hello on and relays until the server has shown that it wants no second one, or until that
/// one was judged too. What may follow at once is then at the front of the input.
async fn watch(visit: &mut Visit, opened: &mut Opened, hello: Vec<u8>) -> Result<Watched, Option<Reason>> {
    let mut records = ClientRecords::new();
    let mut flight = ServerFlight::new();
    let mut outgoing = hello;
    // How much of the input was walked over, all of it held.
    let mut held = false;
    let mut guest_ended = false;
    let meter = opened.record.meter();
    visit.deadline.restart(visit.house.gate.settings().idle_timeout);
    loop {
        if !held {
            let forward = match records.walk(&visit.input).map_err(|error| Some(error.reason()))? {
                Walk::Forward => visit.input.len(),
                Walk::HandshakeAt(at) => {
                    held = true;
                    at
                }
            };
            outgoing.extend(visit.input.drain(..forward));
        }
        if !outgoing.is_empty() {
            opened.upstream.stream.write_all(&outgoing).await.map_err(|_| None)?;
            relay::Meter::up(&meter, outgoing.len());
            outgoing.clear();
        }
        let mut from_server = Vec::with_capacity(8 << 10);
        let flow = opened.record.flow();
        tokio::select! {
            read = opened.upstream.stream.read_buf(&mut from_server) => {
                if !matches!(read, Ok(1..)) {
                    return Err(None);
                }
            }
            filled = visit.fill(), if !guest_ended && visit.input.len() < HELD => {
                match filled {
                    Filled::Bytes => {}
                    Filled::End => {
                        guest_ended = true;
                        // What is held is not judged, so the upstream must not wait for it either.
                        let _ = close::finish(&opened.upstream.stream);
                    }
                    Filled::Timeout => return Err(Some(Reason::Timeout)),
                }
                continue;
            }
            reason = flow.revoked() => return Err(Some(reason)),
        }
        match flight.push(&from_server) {
            Flight::Other => return Ok(Watched { to_guest: from_server, guest_ended }),
            Flight::NeedMore => send(visit, &from_server, &meter).await?,
            Flight::HelloRetryRequest => {
                send(visit, &from_server, &meter).await?;
                return second(visit, opened, records, held).await;
            }
        }
    }
}

async fn send(visit: &mut Visit, bytes: &[u8], meter: &impl relay::Meter) -> Result<(), Option<Reason>> {
    visit.guest.write_all(bytes).await.map_err(|_| None)?;
    meter.down(bytes.len());
    Ok(())
}

/// The server asked for another hello: what comes next from the guest, ChangeCipherSpec aside, is one.
async fn second(
    visit: &mut Visit,
    opened: &mut Opened,
    mut records: ClientRecords,
    mut held: bool,
) -> Result<Watched, Option<Reason>> {
    visit.deadline.restart(visit.house.gate.settings().handshake_timeout);
    let mut outgoing = Vec::new();
    while !held {
        let forward = match records.walk(&visit.input).map_err(|error| Some(error.reason()))? {
            Walk::Forward => visit.input.len(),
            Walk::HandshakeAt(at) => {
                held = true;
                at
            }
        };
        outgoing.extend(visit.input.drain(..forward));
        if !held {
            match hear(visit, &opened.record).await {
                Filled::Bytes => {}
                Filled::End => return Err(None),
                Filled::Timeout => return Err(Some(Reason::Timeout)),
            }
        }
    }
    let len = hello(visit, opened).await.map_err(Some)?;
    outgoing.extend(visit.input.drain(..len));
    let meter = opened.record.meter();
    opened.upstream.stream.write_all(&outgoing).await.map_err(|_| None)?;
    relay::Meter::up(&meter, outgoing.len());
    Ok(Watched { to_guest: Vec::new(), guest_ended: false })
}

fn relaying(visit: Visit, opened: Opened, to_upstream: Vec<u8>, to_guest: Vec<u8>, guest_ended: bool) -> Relaying {
    let Visit { house, guest, slot, active, .. } = visit;
    let tunnel = Tunnel::new(guest, opened.upstream.stream, to_upstream, to_guest).guest_ended(guest_ended);
    let idle = house.gate.settings().idle_timeout;
    Relaying { tunnel, record: opened.record, idle, slot, active, outer: None }
}
