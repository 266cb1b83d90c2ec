//! Tries URLs from where this process is: the system's resolver, TCP, TLS with the system's certificates, HTTP.
//! Each has a deadline, and several run at a time. Whether a failure is the policy's or the server's is decided
//! here if the answer shows it, and otherwise by the caller.

use outgate::lock::lock;
use outgate::reason::{Reason, Verdict};
use outgate::target::{Host, Protocol, Target};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, Stream};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time limit of one URL.
pub(super) const PER_URL: Duration = Duration::from_secs(10);
/// URLs at a time.
pub(super) const AT_ONCE: usize = 8;
/// How long a silent connection must stay open to count as one: outgate waits 300 ms for the guest's first bytes,
/// and then dials.
const SILENCE: Duration = Duration::from_secs(2);
/// The longest response head that is read, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Maximum number of a name's addresses that are tried.
const MAX_ADDRESSES: usize = 4;

/// What is to be tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Wanted {
    /// As given.
    pub(in crate::cli) url: String,
    /// A name, or an address without brackets.
    pub(in crate::cli) host: String,
    pub(in crate::cli) address: Option<IpAddr>,
    port: u16,
    pub(super) speaks: Speaks,
    pub(super) path: String,
}

/// The protocol on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Speaks {
    /// HTTP inside TLS.
    Https,
    /// HTTP.
    Http,
    /// The server sends first.
    Nothing,
}

/// The last stage that an attempt reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) enum Stage {
    Dns,
    Connect,
    Tls,
    Http,
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) enum Ending {
    /// The server was reached.
    Passes,
    /// Outgate refused.
    Refused,
    /// The server, or the path to it, failed.
    Failed,
    /// Either of the two.
    Unclear,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Found {
    pub(super) url: String,
    pub(in crate::cli) ending: Ending,
    pub(in crate::cli) stage: Stage,
    pub(super) milliseconds: u64,
    /// Of the server's answer.
    pub(in crate::cli) status: Option<u16>,
    /// Outgate's reason, if its answer contains one.
    pub(in crate::cli) reason: Option<String>,
    /// What was observed.
    pub(in crate::cli) detail: Option<String>,
}

impl Stage {
    pub(in crate::cli) const fn as_str(self) -> &'static str {
        match self {
            Stage::Dns => "dns",
            Stage::Connect => "connect",
            Stage::Tls => "tls",
            Stage::Http => "http",
        }
    }
}

impl Wanted {
    /// Creates an attempt for the URL that leads to `target`, with the protocol `speaks`.
    pub(super) fn new(url: &str, target: &Target, speaks: Option<Protocol>, path: String) -> Wanted {
        let (host, address) = match &target.host {
            Host::Name(name) => (name.to_string(), None),
            Host::Addr(address) => (address.to_string(), Some(*address)),
        };
        let speaks = match (speaks, target.port) {
            (Some(Protocol::Tls), _) | (None, 443) => Speaks::Https,
            (Some(Protocol::Http), _) | (None, 80) => Speaks::Http,
            _ => Speaks::Nothing,
        };
        Wanted { url: url.to_owned(), host, address, port: target.port, speaks, path }
    }
}

impl Found {
    pub(super) fn new(url: &str, ending: Ending, stage: Stage, detail: impl Into<String>) -> Found {
        let (url, detail) = (url.to_owned(), Some(detail.into()));
        Found { url, ending, stage, milliseconds: 0, status: None, reason: None, detail }
    }
}

/// Tries all of them; returns the findings in the same order.
pub(super) fn all(wanted: &[Wanted]) -> Vec<Found> {
    let tls = tls();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(wanted.len())));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(wanted.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(wanted) = wanted.get(at) else { return };
                    let one = one(wanted, &tls);
                    lock(&found).push((at, one));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, found)| found).collect()
}

/// Tries one that is at these addresses, from where the calling thread is.
pub(in crate::cli) fn at(wanted: &Wanted, addresses: &[IpAddr]) -> Found {
    let addresses: Vec<SocketAddr> = addresses.iter().map(|address| SocketAddr::new(*address, wanted.port)).collect();
    let deadline = Instant::now() + PER_URL;
    go_to(wanted, &addresses, &tls(), deadline).unwrap_or_else(|found| found)
}

/// Returns a client that trusts the certificate authorities of this machine, or why there is none.
fn tls() -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this machine trusts no certificate authority; install ca-certificates".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn one(wanted: &Wanted, tls: &Result<Arc<ClientConfig>, String>) -> Found {
    let start = Instant::now();
    let deadline = start + PER_URL;
    let mut found = go(wanted, tls, deadline).unwrap_or_else(|found| found);
    found.milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    found
}

/// Returns a finding in either case; `Err` is one that ended the attempt early.
fn go(wanted: &Wanted, tls: &Result<Arc<ClientConfig>, String>, deadline: Instant) -> Result<Found, Found> {
    let ended = |stage| move |error: io::Error| of_error(&wanted.url, stage, &error);
    let addresses = match wanted.address {
        Some(address) => vec![SocketAddr::new(address, wanted.port)],
        None => resolve(&wanted.host, wanted.port, deadline).map_err(ended(Stage::Dns))?,
    };
    go_to(wanted, &addresses, tls, deadline)
}

/// The same, with the addresses known.
fn go_to(
    wanted: &Wanted,
    addresses: &[SocketAddr],
    tls: &Result<Arc<ClientConfig>, String>,
    deadline: Instant,
) -> Result<Found, Found> {
    let ended = |stage| move |error: io::Error| of_error(&wanted.url, stage, &error);
    let mut wire = connect(addresses, deadline).map_err(ended(Stage::Connect))?;
    match wanted.speaks {
        Speaks::Nothing => {
            wire.deadline = deadline.min(Instant::now() + SILENCE);
            let detail = match wire.read(&mut [0; 512]) {
                Ok(0) => "the server closed the connection",
                Ok(_) => "the server sent data",
                Err(error) if is_timeout(&error) => "connected",
                Err(error) => return Err(of_error(&wanted.url, Stage::Connect, &error)),
            };
            Ok(Found::new(&wanted.url, Ending::Passes, Stage::Connect, detail))
        }
        Speaks::Http => ask(wanted, &mut wire),
        Speaks::Https => {
            let config = tls.clone().map_err(|why| Found::new(&wanted.url, Ending::Failed, Stage::Tls, why))?;
            let name =
                ServerName::try_from(wanted.host.clone()).map_err(io::Error::other).map_err(ended(Stage::Tls))?;
            let mut session =
                ClientConnection::new(config, name).map_err(io::Error::other).map_err(ended(Stage::Tls))?;
            while session.is_handshaking() {
                session.complete_io(&mut wire).map_err(ended(Stage::Tls))?;
            }
            ask(wanted, &mut Stream::new(&mut session, &mut wire))
        }
    }
}

/// Returns the finding for an error. A reset is outgate's if the policy refuses, and otherwise the server's.
fn of_error(url: &str, stage: Stage, error: &io::Error) -> Found {
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if matches!(alert, Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied))) {
        return Found::new(url, Ending::Refused, stage, "alert access_denied");
    }
    let ending = match error.kind() {
        _ if alert.is_some() || is_timeout(error) => Ending::Failed,
        // The kernel's errors for packets that the firewall refuses.
        ErrorKind::PermissionDenied | ErrorKind::HostUnreachable => Ending::Unclear,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Ending::Unclear,
        _ if stage == Stage::Dns => Ending::Unclear,
        _ => Ending::Failed,
    };
    let detail = if is_timeout(error) { "no answer in time".to_owned() } else { error.to_string() };
    Found::new(url, ending, stage, detail)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Looks up a name like a program that uses no proxy, which is what this tests.
fn resolve(host: &str, port: u16, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    let (tell, told) = sync_channel(1);
    let host = host.to_owned();
    // The C library has no deadline. A thread that hangs ends with the process.
    std::thread::spawn(move || {
        #[expect(
            clippy::disallowed_methods,
            reason = "the operator's own URL, from a namespace that reaches outgate alone"
        )]
        let found = (host.as_str(), port).to_socket_addrs().map(|found| found.take(MAX_ADDRESSES).collect());
        let _ = tell.send(found);
    });
    told.recv_timeout(left(deadline)?).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

fn connect(addresses: &[SocketAddr], deadline: Instant) -> io::Result<Wire> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        #[expect(clippy::disallowed_methods, reason = "a probe is the guest itself, and dials as guests do")]
        let connected = socket.connect_timeout(&(*address).into(), left(deadline)?);
        match connected {
            Ok(()) => return Ok(Wire { stream: socket.into(), deadline }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A connection on which nothing waits beyond the deadline.
struct Wire {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Sends a GET, and evaluates the head of the answer.
fn ask(wanted: &Wanted, stream: &mut (impl Read + Write)) -> Result<Found, Found> {
    let ended = |error: io::Error| of_error(&wanted.url, Stage::Http, &error);
    let usual = if wanted.speaks == Speaks::Https { 443 } else { 80 };
    let port = if wanted.port == usual { String::new() } else { format!(":{}", wanted.port) };
    let host = match wanted.address {
        Some(IpAddr::V6(address)) => format!("[{address}]"),
        _ => wanted.host.clone(),
    };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}{port}\r\nUser-Agent: outgate/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        wanted.path,
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(ended)?;
    let mut head = Vec::new();
    let mut buffer = [0; 2048];
    while head.len() < MAX_HEAD && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut buffer).map_err(ended)? {
            0 => break,
            length => head.extend(buffer.iter().take(length)),
        }
    }
    Ok(of_head(&wanted.url, &String::from_utf8_lossy(&head)))
}

/// Attributes an answer to the server, unless outgate marks it as its own (RFC 9209).
pub(in crate::cli) fn of_head(url: &str, head: &str) -> Found {
    let head = head.split("\r\n\r\n").next().unwrap_or_default();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse::<u16>().ok());
    let Some(status) = status else {
        return Found::new(url, Ending::Failed, Stage::Http, "the answer is not HTTP/1");
    };
    let fields = lines.filter_map(|line| line.split_once(':'));
    let said = fields.filter(|(name, _)| name.eq_ignore_ascii_case("proxy-status")).map(|(_, value)| value.trim());
    let ours = said.filter(|value| value.starts_with("outgate;")).find_map(|value| {
        let word = value.split("details=\"").nth(1)?.split('"').next()?;
        Reason::ALL.into_iter().find(|reason| reason.as_str() == word)
    });
    let ending = match ours.map(Reason::verdict) {
        None => Ending::Passes,
        Some(Verdict::Failed) => Ending::Failed,
        Some(_) => Ending::Refused,
    };
    let reason = ours.map(|reason| reason.as_str().to_owned());
    Found {
        url: url.to_owned(),
        ending,
        stage: Stage::Http,
        milliseconds: 0,
        status: Some(status),
        reason,
        detail: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_servers_unless_outgate_says_that_it_is_its_own() {
        let of = |head: &str| {
            let found = of_head("http://a.test", head);
            (found.ending, found.status, found.reason)
        };
        assert_eq!(of("HTTP/1.1 403 Forbidden\r\n\r\n"), (Ending::Passes, Some(403), None));
        let ours = |word: &str| {
            format!("HTTP/1.1 403 Forbidden\r\nProxy-Status: outgate; error=x; details=\"{word}\"\r\n\r\n")
        };
        let reason = |word: &str| Some(word.to_owned());
        assert_eq!(of(&ours("not_whitelisted")), (Ending::Refused, Some(403), reason("not_whitelisted")));
        assert_eq!(of(&ours("dial_failed")), (Ending::Failed, Some(403), reason("dial_failed")));
        assert_eq!(
            of("HTTP/1.1 200 OK\r\nProxy-Status: other; details=\"ech\"\r\n\r\n"),
            (Ending::Passes, Some(200), None)
        );
        assert_eq!(of("SSH-2.0-x\r\n").0, Ending::Failed);
        assert_eq!(of("").0, Ending::Failed);
    }
}
