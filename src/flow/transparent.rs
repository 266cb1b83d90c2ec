//! A connection that was redirected here without the guest's knowledge (TPROXY, REDIRECT). The stream itself
//! must show its destination; of the original destination only the port is used.
//!
//! TLS shows a server name, and each HTTP request shows a Host. A stream that shows neither is known by the
//! name for which outgate's DNS gave this guest this address, or else by the address. Where such raw bytes may
//! pass, the guest has [`SILENCE`] to show a name. After that it counts as a client that waits for the server
//! to speak first.

use super::connection::{Connection, Filled};
use super::establish::{decide_refusal, establish};
use super::refuse::{Dialect, Ended, Refused};
use super::{Step, http, proxied, tunnel};
use crate::identify::hello::ClientHello;
use crate::identify::{Claim, Evidence, Sniff, sniff_on};
use crate::listener::ListenerLabel;
use crate::reason::{Reason, Why};
use crate::target::{Host, Protocol, Target};
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
    listener: ListenerLabel,
    original: SocketAddr,
}

/// Serves a connection whose original destination is `original`.
pub(super) async fn serve(
    connection: Box<Connection>,
    listener: ListenerLabel,
    original: SocketAddr,
) -> Result<Step, Ended> {
    let mut redirected = TransparentConnection { connection, listener, original };
    if !redirected.is_heard() {
        let (Ok(claim) | Err(claim)) = redirected.meant(Protocol::Raw);
        return Err(redirected.refuse_raw(claim).await);
    }
    // If only another name permits raw bytes, a guest that waits for the server is refused at that time.
    let patience = redirected.could_be_raw().then(|| Instant::now() + SILENCE);
    let mut scanned = 0;
    loop {
        match sniff_on(&redirected.connection.input, scanned) {
            Sniff::NeedMore => scanned = redirected.connection.input.len(),
            Sniff::Tls => return redirected.tls().await,
            Sniff::Http => return http::serve(redirected.connection, listener).await,
            Sniff::H2c => return redirected.http2().await,
            Sniff::Raw => return redirected.raw_flow().await,
        }
        let filled = tokio::select! {
            biased;
            filled = redirected.connection.fill() => filled,
            () = until(patience) => return redirected.raw_flow().await,
        };
        let why = match filled {
            Filled::Bytes => continue,
            // A port scanner, or a client that changed its mind: nothing was asked.
            Filled::End if scanned == 0 => return Err(Ended::Closed),
            Filled::End => Why::malformed("the connection ended before it could be told what is spoken"),
            Filled::Timeout => Reason::Timeout.into(),
        };
        let refused = Refused::new(redirected.connection.record(listener), why, None);
        return Err(refused.tell(&mut redirected.connection.stream, Dialect::Silent).await);
    }
}

/// Serves a tunnel to an address that stands for a name, after the guest was told that it is open. From here on
/// it is like a redirected connection. Boxed, because by its types HTTP inside could lead to a tunnel again.
pub(super) fn serve_named(
    mut connection: Box<Connection>,
    listener: ListenerLabel,
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
        Claim { spoken, ..proxied::claim(&self.connection.guest, target, evidence) }
    }

    /// The possible destinations of a guest that shows no name: the names for which it got this address, and
    /// then the address itself.
    fn candidates(&self) -> impl Iterator<Item = Claim> {
        let Connection { services, source, guest, .. } = &*self.connection;
        let address = self.original.ip();
        let names = services.bindings.names(source.ip(), guest.name(), address);
        let named = names.into_iter().map(|name| self.claim(Host::Name(name), None, Evidence::Dns));
        named.chain(std::iter::once(self.claim(Host::Addr(address), None, Evidence::Address)))
    }

    /// The first candidate for which this protocol is permitted; else the one whose refusal explains most.
    fn meant(&mut self, spoken: Protocol) -> Result<Claim, Claim> {
        self.refresh();
        let snapshot = self.connection.services.snapshot.load();
        let mut refused = None;
        for claim in self.candidates() {
            match snapshot.policy.decide(&claim) {
                Ok(permit) if permit.protocols().contains(spoken) => return Ok(claim),
                // A name explains more than an address, and the latest name most.
                _ => refused = refused.or(Some(claim)),
            }
        }
        Err(refused.unwrap_or_else(|| self.claim(Host::Addr(self.original.ip()), None, Evidence::Address)))
    }

    /// Identifies the guest again if another policy has come into force.
    fn refresh(&mut self) {
        let Connection { services, guest, .. } = &mut *self.connection;
        services.refresh(guest);
    }

    /// Is it worth reading from the guest? It is if any name in the stream could open this port, or if clients
    /// on this port speak first and can get a refusal in their protocol.
    fn is_heard(&self) -> bool {
        let Connection { services, guest, .. } = &*self.connection;
        let port = self.original.port();
        WEB.contains(&port) || services.snapshot.load().policy.could_allow_port(&guest.source, port)
    }

    /// Could any name or address open this port for raw bytes?
    fn could_be_raw(&self) -> bool {
        let Connection { services, guest, .. } = &*self.connection;
        services.snapshot.load().policy.could_allow_raw(&guest.source, self.original.port())
    }

    /// Refuses a stream that cannot be answered in its own protocol.
    async fn refuse_raw(mut self, claim: Claim) -> Ended {
        let claim = Claim { spoken: Some(Protocol::Raw), ..claim };
        let record = self.connection.record(self.listener);
        let (services, otherwise) = (&self.connection.services, Reason::ProtocolNotAllowed);
        let refused = decide_refusal(services, claim, record, Reason::NotWhitelisted, otherwise);
        refused.tell(&mut self.connection.stream, Dialect::Silent).await
    }

    /// Serves a stream that is neither TLS nor HTTP, or not yet known to be.
    async fn raw_flow(mut self) -> Result<Step, Ended> {
        match self.meant(Protocol::Raw) {
            Ok(claim) => self.open(claim).await,
            Err(claim) => Err(self.refuse_raw(claim).await),
        }
    }

    /// HTTP/2 in clear, which shows no name that could be judged.
    async fn http2(mut self) -> Result<Step, Ended> {
        let claim = match self.meant(Protocol::H2c) {
            Ok(claim) => return self.open(claim).await,
            Err(claim) => Claim { spoken: Some(Protocol::H2c), ..claim },
        };
        let record = self.connection.record(self.listener);
        // An HTTP/1.1 request would show a name, which may be allowed.
        let refused = decide_refusal(&self.connection.services, claim, record, Reason::H2c, Reason::H2c);
        Err(refused.tell(&mut self.connection.stream, Dialect::Http2).await)
    }

    /// Continues as a tunnel to this destination.
    async fn open(mut self, claim: Claim) -> Result<Step, Ended> {
        let record = self.connection.record(self.listener);
        match establish(&self.connection, self.listener, claim, record, Reason::NotWhitelisted).await {
            Ok(opened) => {
                self.connection.deadline.restart(self.connection.services.gate.settings().handshake_timeout);
                Ok(Step::Tunnel(self.connection, opened))
            }
            Err(refused) => Err(refused.tell(&mut self.connection.stream, Dialect::Silent).await),
        }
    }

    /// TLS: the ClientHello names the destination.
    async fn tls(mut self) -> Result<Step, Ended> {
        let record = self.connection.record(self.listener);
        let refused = match tunnel::read_hello(&mut self.connection, &record).await {
            Ok(hello) => {
                let (claim, len) = self.claim_of(hello);
                match establish(&self.connection, self.listener, claim, record, Reason::NoName).await {
                    Ok(opened) => return tunnel::pass_hello(self.connection, opened, len, false).await,
                    Err(refused) => refused,
                }
            }
            Err(why) => Refused::new(record, why, None),
        };
        Err(refused.tell(&mut self.connection.stream, Dialect::Tls).await)
    }

    /// The claim of a ClientHello, and the hello's length.
    fn claim_of(&self, hello: ClientHello) -> (Claim, usize) {
        let (host, evidence) = match hello.sni {
            Some(name) => (Host::Name(name), Evidence::Sni),
            None => (Host::Addr(self.original.ip()), Evidence::Address),
        };
        let claim = self.claim(host, Some(Protocol::Tls), evidence);
        (Claim { ech: hello.ech, ..claim }, hello.len)
    }
}
