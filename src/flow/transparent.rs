//! A connection that was redirected here without the guest's knowledge (TPROXY, REDIRECT). The stream itself
//! must show its destination; of the original destination only the port is used.
//!
//! TLS shows a server name, and each HTTP request shows a Host. A stream that shows neither is known by the
//! name for which outgate's DNS gave this guest this address, or else by the address. Where such raw bytes may
//! pass, the guest has [`SILENCE`] to show a name. After that it counts as a client that waits for the server
//! to speak first.

use super::http;
use super::tunnel::{self, OpenTunnel};
use super::{Connection, Ended, Filled, Services, Step, decide, decide_as, decide_unnamed, reach, refuse};
use crate::account::Record;
use crate::identify::hello::Hello;
use crate::identify::{Claim, Evidence, Parsed, Sniff, sniff_on};
use crate::listener::Listener;
use crate::reason::{Reason, Why};
use crate::relay::close;
use crate::source::Source;
use crate::target::{Host, Protocol, Target, Transport};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// How long a guest may be silent, or unclear, before its protocol counts as one in which the server speaks
/// first. Counted from [`serve`], where any rule allows raw bytes on the port.
const SILENCE: Duration = Duration::from_millis(300);

/// Ports of HTTP and https.
const WEB: [u16; 2] = [80, 443];

/// A redirected connection with its listener and its original destination.
struct TransparentConnection {
    connection: Box<Connection>,
    listener: Listener,
    original: SocketAddr,
}

/// Serves a connection whose original destination is `original`.
pub(super) async fn serve(
    connection: Box<Connection>,
    listener: Listener,
    original: SocketAddr,
) -> Result<Step, Ended> {
    let mut connection = TransparentConnection { connection, listener, original };
    if !connection.is_heard() {
        let (Ok(claim) | Err(claim)) = connection.meant(Protocol::Raw);
        return Err(connection.refuse_raw(claim));
    }
    // If only another name permits raw bytes, a guest that waits for the server is refused at that time.
    let patience = connection.could_be_raw().then(|| Instant::now() + SILENCE);
    let mut scanned = 0;
    loop {
        match sniff_on(&connection.connection.input, scanned) {
            Sniff::NeedMore => scanned = connection.connection.input.len(),
            Sniff::Tls => return connection.tls().await,
            Sniff::Http => return http::serve_transparent(connection.connection, listener).await,
            Sniff::H2c => return connection.http2().await,
            Sniff::Raw => return connection.raw_flow().await,
        }
        let filled = tokio::select! {
            biased;
            filled = connection.connection.fill() => filled,
            () = until(patience) => return connection.raw_flow().await,
        };
        let why = match filled {
            Filled::Bytes => continue,
            // A port scanner, or a client that changed its mind: nothing was asked.
            Filled::End if scanned == 0 => return Err(Ended),
            Filled::End | Filled::Revoked(_) => {
                Why::malformed("the connection ended before it could be told what is spoken")
            }
            Filled::Timeout => Reason::Timeout.into(),
        };
        connection.connection.record(listener).refuse(why, None);
        close::reset(&connection.connection.guest);
        return Err(Ended);
    }
}

/// What a guest means that asks a proxy for an address which outgate's DNS gave it: one of the names, judged as
/// if the connection were redirected. `None` if the guest did not get the address from outgate's DNS, or if the
/// address itself is permitted.
///
/// # Errors
/// The latest name, if neither a name nor the address is permitted on the port.
pub(super) fn bound(
    services: &Services,
    who: &Source,
    source: SocketAddr,
    target: &Target,
) -> Option<Result<(), Claim>> {
    let Host::Addr(address) = target.host else { return None };
    let live = services.live.load();
    let names = services.bindings.names(source.ip(), live.policy.guest(who).name, address);
    let claim = |host, evidence| Claim {
        source: who.clone(),
        target: Target { host, port: target.port },
        transport: Transport::Tcp,
        spoken: None,
        ech: false,
        evidence,
    };
    let mut refused = None;
    for name in names {
        let named = claim(Host::Name(name), Evidence::Dns);
        match live.policy.decide(&named) {
            Ok(_) => return Some(Ok(())),
            Err(_) => refused = refused.or(Some(named)),
        }
    }
    let by_address = live.policy.decide(&claim(Host::Addr(address), Evidence::Address)).is_ok();
    refused.filter(|_| !by_address).map(Err)
}

/// Serves a tunnel to an address that stands for a name, after the guest was told that it is open. From here on
/// it is like a redirected connection. Boxed, because by its types HTTP inside could lead to a tunnel again.
pub(super) fn serve_bound(
    mut connection: Box<Connection>,
    listener: Listener,
    original: SocketAddr,
) -> Pin<Box<dyn Future<Output = Result<Step, Ended>> + Send>> {
    connection.original = Some(original);
    Box::pin(serve(connection, listener, original))
}

/// Waits until that time, or for ever if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl TransparentConnection {
    fn claim(&self, host: Host, spoken: Option<Protocol>, evidence: Evidence) -> Claim {
        let target = Target { host, port: self.original.port() };
        Claim { source: self.connection.who.clone(), target, transport: Transport::Tcp, spoken, ech: false, evidence }
    }

    /// The possible destinations of a guest that shows no name: the names for which it got this address, and
    /// then the address itself.
    fn candidates(&self) -> impl Iterator<Item = Claim> {
        let source = self.connection.source.ip();
        let live = self.connection.services.live.load();
        let address = self.original.ip();
        let names =
            self.connection.services.bindings.names(source, live.policy.guest(&self.connection.who).name, address);
        let named = names.into_iter().map(|name| self.claim(Host::Name(name), None, Evidence::Dns));
        named.chain(std::iter::once(self.claim(Host::Addr(address), None, Evidence::Address)))
    }

    /// The first candidate for which this protocol is permitted; else the one whose refusal explains most.
    fn meant(&self, spoken: Protocol) -> Result<Claim, Claim> {
        let live = self.connection.services.live.load();
        let mut refused = None;
        for claim in self.candidates() {
            match live.policy.decide(&claim) {
                Ok(permit) if permit.protocols().contains(spoken) => return Ok(claim),
                // A name explains more than an address, and the latest name most.
                _ => refused = refused.or(Some(claim)),
            }
        }
        Err(refused.unwrap_or_else(|| self.claim(Host::Addr(self.original.ip()), None, Evidence::Address)))
    }

    /// Is it worth reading from the guest? It is if any name in the stream could open this port, or if clients
    /// on this port speak first and can get a refusal in their protocol.
    fn is_heard(&self) -> bool {
        let (source, port) = (self.connection.source.ip(), self.original.port());
        WEB.contains(&port) || self.connection.services.live.load().policy.could_allow_port(source, port)
    }

    /// Could any name or address open this port for raw bytes?
    fn could_be_raw(&self) -> bool {
        let (source, port) = (self.connection.source.ip(), self.original.port());
        self.connection.services.live.load().policy.could_allow_raw(source, port)
    }

    /// Refuses a stream that cannot be answered in its own protocol.
    fn refuse_raw(&self, claim: Claim) -> Ended {
        let claim = Claim { spoken: Some(Protocol::Raw), ..claim };
        let mut record = self.connection.record(self.listener);
        if decide(&self.connection.services, &claim, &mut record).is_ok() {
            // Another policy came into force since.
            record.refuse(Reason::ProtocolNotAllowed, None);
        }
        close::reset(&self.connection.guest);
        Ended
    }

    /// Serves a stream that is neither TLS nor HTTP, or not yet known to be.
    async fn raw_flow(self) -> Result<Step, Ended> {
        let claim = match self.meant(Protocol::Raw) {
            Ok(claim) => claim,
            Err(claim) => return Err(self.refuse_raw(claim)),
        };
        self.open(claim).await
    }

    /// HTTP/2 in clear, which shows no name that could be judged.
    async fn http2(mut self) -> Result<Step, Ended> {
        let claim = match self.meant(Protocol::H2c) {
            Ok(claim) => return self.open(claim).await,
            Err(claim) => Claim { spoken: Some(Protocol::H2c), ..claim },
        };
        let mut record = self.connection.record(self.listener);
        let unnamed = claim.evidence == Evidence::Address;
        let decision = decide_as(&self.connection.services, &claim, &mut record, |reason| match reason {
            // An HTTP/1.1 request would show a name, which may be allowed.
            Reason::NotWhitelisted if unnamed => Reason::H2c,
            reason => reason,
        });
        // Another policy may have come into force since.
        let reason = decision.map_or_else(|refusal| refusal.reason, |_| Reason::H2c);
        record.refuse(reason, None);
        drop(record);
        close::after(&mut self.connection.guest, &refuse::http2(reason)).await;
        Err(Ended)
    }

    /// Continues as a tunnel to this destination.
    async fn open(mut self, claim: Claim) -> Result<Step, Ended> {
        let mut record = self.connection.record(self.listener);
        let reached = match decide(&self.connection.services, &claim, &mut record) {
            Ok(permit) => {
                reach(&self.connection.services, &claim, &permit, &mut record).await.map(|upstream| (permit, upstream))
            }
            Err(refusal) => Err(refusal.reason),
        };
        let Ok((permit, upstream)) = reached else {
            close::reset(&self.connection.guest);
            return Err(Ended);
        };
        self.connection.deadline.restart(self.connection.services.gate.settings().handshake_timeout);
        let opened = OpenTunnel { listener: self.listener, record, claim, permit, upstream };
        Ok(Step::Tunnel(self.connection, Box::new(opened)))
    }

    /// TLS: the ClientHello names the destination.
    async fn tls(mut self) -> Result<Step, Ended> {
        let mut record = self.connection.record(self.listener);
        let (claim, len) = match self.hello(&mut record).await {
            Ok(read) => read,
            Err(why) => return self.alert(record, why).await,
        };
        let permit = match decide_unnamed(&self.connection.services, &claim, &mut record) {
            Ok(permit) => permit,
            Err(refusal) => return self.alert(record, refusal.reason).await,
        };
        match reach(&self.connection.services, &claim, &permit, &mut record).await {
            Ok(upstream) => {
                let opened = OpenTunnel { listener: self.listener, record, claim, permit, upstream };
                tunnel::pass_hello(self.connection, Box::new(opened), len, false).await
            }
            Err(reason) => self.alert(record, reason).await,
        }
    }

    /// Reads the ClientHello at the front of the input. Returns its claim and its length.
    async fn hello(&mut self, record: &mut Record) -> Result<(Claim, usize), Why> {
        let mut reader = Hello::new();
        loop {
            match reader.advance(&self.connection.input) {
                Ok(Parsed::Complete { head, .. }) => {
                    let (host, evidence) = match head.sni {
                        Some(name) => (Host::Name(name), Evidence::Sni),
                        None => (Host::Addr(self.original.ip()), Evidence::Address),
                    };
                    let claim = self.claim(host, Some(Protocol::Tls), evidence);
                    return Ok((Claim { ech: head.ech, ..claim }, head.len));
                }
                Ok(Parsed::Partial) => {}
                Err(error) => return Err(error.why()),
            }
            match self.connection.hear(record).await {
                Filled::Bytes => {}
                Filled::End => return Err(tunnel::CUT_HELLO),
                Filled::Timeout => return Err(Reason::Timeout.into()),
                Filled::Revoked(reason) => return Err(reason.into()),
            }
        }
    }

    async fn alert(mut self, mut record: Record, why: impl Into<Why>) -> Result<Step, Ended> {
        let why = why.into();
        record.refuse(why, None);
        drop(record);
        refuse::tls(&mut self.connection.guest, why.reason).await;
        Err(Ended)
    }
}
