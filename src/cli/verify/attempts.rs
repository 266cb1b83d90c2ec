//! What a guest does in each check, from sockets in its namespace. An attempt says what it saw; what arrived where is
//! for the captures.

use super::addresses::{Addresses, Family};
use super::checks::Task;
use super::dns::{self, Answer};
use super::packet::{ESP, GRE, ICMP, ICMP6, Round, SCTP, TCP, UDP};
use super::sockets::{Kind, Sockets};
use crate::cli::golem::probe::attempt::{self, Ending, Found, Wanted};
use hickory_resolver::proto::rr::RecordType;
use outgate::proof::Check;
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a connection may take that must not come about: a packet takes microseconds here.
const WAIT: Duration = Duration::from_millis(1200);
/// How long to wait for what must not come back.
const SILENCE: Duration = Duration::from_millis(600);
/// The time limit of what must get through, on a busy machine.
const LONG: Duration = Duration::from_secs(4);
/// How often a listener is asked over UDP.
const TRIES: u32 = 4;
/// The longest head of an answer that is read, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Servers that guests know everywhere. Only packets that leak reach them.
const PUBLIC: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888))];
/// Where clouds tell a machine its secrets.
const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
/// A name that no server knows (RFC 2606).
const NO_NAME: &str = "verify.outgate.invalid";
/// A label that no host has, so that the name is refused in every mode, and never looked up.
const UNFIT: &str = "not a name";
/// The first port that traceroute(8) sends to.
const TRACEROUTE: u16 = 33434;

/// What an attempt saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) seen: String,
    pub(super) verdict: Verdict,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    Leak,
    Failed,
}

/// What the attempts of one family require.
#[derive(Debug)]
pub(in crate::cli) struct Context {
    /// The proxy of the family that guests reach.
    pub(super) proxy: Option<SocketAddr>,
    /// The port of the status page.
    pub(super) admin_port: Option<u16>,
    /// The sockets that only root can make.
    pub(super) sockets: Arc<Sockets>,
    pub(super) round: Arc<Round>,
    pub(super) addresses: Addresses,
    /// Whether the second guest is on the same link.
    pub(super) share_link: bool,
    /// This machine's address, as the guests see it first.
    pub(super) gateway: IpAddr,
    /// Sockets of this machine at that address that no guest may reach.
    pub(super) services: Option<(TcpListener, UdpSocket)>,
    pub(super) urls: Vec<Wanted>,
}

fn ok(seen: impl Into<String>) -> Told {
    Told { seen: seen.into(), verdict: Verdict::Ok }
}

fn leak(seen: impl Into<String>) -> Told {
    Told { seen: seen.into(), verdict: Verdict::Leak }
}

fn failed(seen: impl Into<String>) -> Told {
    Told { seen: seen.into(), verdict: Verdict::Failed }
}

/// Tries one thing; the calling thread is in the first guest's namespace.
///
/// # Errors
/// If it cannot be tried, for example because the address is already gone.
pub(super) fn attempt(task: Task, context: &Context) -> io::Result<Told> {
    let one = Attempt { task, context };
    let Addresses { sentinel, guests: [_, other], direct, .. } = context.addresses;
    let others: Vec<IpAddr> = std::iter::once(other).chain(context.share_link.then_some(direct)).collect();
    match task.check {
        Check::DnsListener => one.dns_listener(),
        Check::TransparentListener => one.refusal(SocketAddr::new(sentinel, 80), "/"),
        Check::ProxyListener => one.proxy(),
        Check::Url => one.url(),
        Check::Tcp80 => one.tcp(sentinel, 80),
        Check::Tcp443 => one.tcp(sentinel, 443),
        Check::Tcp22 => one.tcp(sentinel, 22),
        Check::DnsOverTls => one.tcp(sentinel, 853),
        Check::Udp443 => one.udp(&[sentinel], 443),
        Check::Udp123 => one.udp(&[sentinel], 123),
        Check::Udp9999 => one.udp(&[sentinel], 9999),
        Check::DnsOverUdp => one.foreign_dns(Attempt::ask_udp),
        Check::DnsOverTcp => one.foreign_dns(Attempt::ask_tcp),
        Check::Ping => one.ping(&[sentinel, public(task.family)]),
        Check::OtherProtocols => one.other_protocols(sentinel),
        Check::Ttl2 => one.ttl_2(sentinel),
        Check::SpoofedSource => one.spoofed_source(),
        Check::Metadata => one.metadata(),
        Check::HostTcp => one.host_tcp(),
        Check::HostUdp => one.host_udp(),
        Check::HostSsh => one.host_port(22),
        Check::HostAdmin => one.host_port(context.admin_port.unwrap_or(0)),
        Check::OtherGuestTcp => {
            let seen: Vec<Told> = others.iter().map(|other| one.tcp(*other, 22)).collect::<io::Result<_>>()?;
            Ok(joined(seen))
        }
        Check::OtherGuestUdp => one.udp(&others, 9999),
        Check::OtherGuestPing => one.ping(&others),
    }
}

const fn public(family: Family) -> IpAddr {
    let [v4, v6] = PUBLIC;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// Joins what was seen of several destinations; the worst verdict counts.
fn joined(all: Vec<Told>) -> Told {
    let is = |verdict| all.iter().any(|told| told.verdict == verdict);
    let worst = [Verdict::Leak, Verdict::Failed].into_iter().find(|verdict| is(*verdict)).unwrap_or(Verdict::Ok);
    let mut seen: Vec<String> = Vec::new();
    for told in all.into_iter().filter(|told| told.verdict == worst) {
        if !seen.contains(&told.seen) {
            seen.push(told.seen);
        }
    }
    Told { seen: seen.join("; "), verdict: worst }
}

/// Returns an error of a socket in words.
fn words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied | ErrorKind::HostUnreachable => "refused".to_owned(),
        ErrorKind::ConnectionReset => "reset".to_owned(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "nothing came back".to_owned(),
        _ => error.to_string(),
    }
}

struct Attempt<'a> {
    task: Task,
    context: &'a Context,
}

impl Attempt<'_> {
    fn own(&self) -> IpAddr {
        let [own, _] = self.context.addresses.guests;
        own
    }

    fn marker(&self) -> String {
        self.context.round.marker(self.task.number())
    }

    fn privileged(&self, kind: Kind) -> io::Result<Socket> {
        self.context.sockets.get(kind, &self.context.addresses)
    }

    /// Makes a socket whose port says which check it belongs to.
    fn socket(&self, kind: Type) -> io::Result<Socket> {
        let own = SocketAddr::new(self.own(), 0);
        let socket = Socket::new(Domain::for_address(own), kind, None)?;
        socket.bind(&own.into())?;
        let port = socket.local_addr()?.as_socket().map_or(0, |bound| bound.port());
        let protocol = if kind == Type::STREAM { TCP } else { UDP };
        self.context.round.sends_from(protocol, port, self.task.number());
        Ok(socket)
    }

    fn connect(&self, to: SocketAddr, wait: Duration) -> io::Result<TcpStream> {
        let socket = self.socket(Type::STREAM)?;
        #[expect(clippy::disallowed_methods, reason = "a check is the guest itself, and dials as guests do")]
        socket.connect_timeout(&to.into(), wait)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(wait))?;
        stream.set_write_timeout(Some(wait))?;
        Ok(stream)
    }

    /// Makes a socket that also reports ICMP errors.
    fn datagrams(&self, to: SocketAddr, wait: Duration) -> io::Result<UdpSocket> {
        let socket = self.socket(Type::DGRAM)?;
        #[expect(clippy::disallowed_methods, reason = "a check is the guest itself, and sends as guests do")]
        socket.connect(&to.into())?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(wait))?;
        Ok(socket)
    }

    /// Connects and says something that has no name in it.
    fn tcp(&self, to: IpAddr, port: u16) -> io::Result<Told> {
        let mut stream = match self.connect(SocketAddr::new(to, port), WAIT) {
            Ok(stream) => stream,
            Err(error) => return Ok(ok(words(&error))),
        };
        stream.set_read_timeout(Some(SILENCE))?;
        let said = stream.write_all(format!("{}\r\n\r\n", self.marker()).as_bytes());
        Ok(ok(match said.and_then(|()| stream.read(&mut [0; 512])) {
            Ok(0) => "accepted by this machine, then closed".to_owned(),
            Ok(_) => "accepted by this machine, and answered".to_owned(),
            Err(error) => format!("accepted by this machine, then {}", words(&error)),
        }))
    }

    fn udp(&self, to: &[IpAddr], port: u16) -> io::Result<Told> {
        let mut all = Vec::new();
        for to in to {
            let socket = self.datagrams(SocketAddr::new(*to, port), SILENCE)?;
            // The error may be that of the packet itself.
            let sent = socket.send(self.marker().as_bytes());
            all.push(match sent.and_then(|_| socket.recv(&mut [0; 512])) {
                Ok(_) => leak(format!("an answer from {to}")),
                Err(error) => ok(words(&error)),
            });
        }
        Ok(joined(all))
    }

    fn ping(&self, to: &[IpAddr]) -> io::Result<Told> {
        let v6 = self.task.family == Family::V6;
        let protocol = if v6 { ICMP6 } else { ICMP };
        let mut echo = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0, self.task.number(), 0, 1];
        echo.extend(self.marker().bytes());
        if !v6 {
            // The kernel fills in that of ICMPv6 alone.
            let [high, low] = checksum(&echo).to_be_bytes();
            echo.splice(2..4, [high, low]);
        }
        self.send_raw(protocol, to, &echo)
    }

    fn other_protocols(&self, to: IpAddr) -> io::Result<Told> {
        // Long enough for what a firewall may read of each header.
        let payload = [&[0; 24][..], self.marker().as_bytes()].concat();
        for protocol in [GRE, ESP, SCTP] {
            self.send_raw(protocol, &[to], &payload)?;
        }
        Ok(ok("nothing came back"))
    }

    fn send_raw(&self, protocol: u8, to: &[IpAddr], payload: &[u8]) -> io::Result<Told> {
        let socket = self.privileged(Kind::Raw(self.task.family, protocol))?;
        for to in to {
            // A refusal of the packet before, or of this one, is what is wanted.
            let _ = socket.send_to(payload, &SocketAddr::new(*to, 0).into());
        }
        std::thread::sleep(SILENCE);
        Ok(ok("nothing came back"))
    }

    /// Sends packets that the second router would report.
    fn ttl_2(&self, sentinel: IpAddr) -> io::Result<Told> {
        for to in [sentinel, public(self.task.family)] {
            let socket = self.socket(Type::DGRAM)?;
            match self.task.family {
                Family::V4 => socket.set_ttl_v4(2)?,
                Family::V6 => socket.set_unicast_hops_v6(2)?,
            }
            // A refusal is what is wanted.
            let _ = socket.send_to(self.marker().as_bytes(), &SocketAddr::new(to, TRACEROUTE).into());
        }
        std::thread::sleep(SILENCE);
        Ok(ok("nothing came back"))
    }

    /// Sends a query whose answer would go to the sentinel, and a datagram from nobody's address.
    fn spoofed_source(&self) -> io::Result<Told> {
        let family = self.task.family;
        let query = self.query(&[UNFIT], RecordType::A)?;
        for (kind, to, payload) in [
            (Kind::AsSentinel(family), SocketAddr::new(public(family), 53), query.as_slice()),
            (Kind::AsNobody(family), SocketAddr::new(self.context.addresses.sentinel, 9999), self.marker().as_bytes()),
        ] {
            self.privileged(kind)?.send_to(payload, &to.into())?;
        }
        std::thread::sleep(SILENCE);
        Ok(ok("nothing came back"))
    }

    /// Returns a query for a name with the marker in front.
    fn query(&self, labels: &[&str], kind: RecordType) -> io::Result<Vec<u8>> {
        let marker = self.marker();
        let labels: Vec<&str> = std::iter::once(marker.as_str()).chain(labels.iter().copied()).collect();
        dns::query(u16::from(self.task.number()), &labels, kind)
    }

    fn ask_udp(&self, server: IpAddr, query: &[u8], wait: Duration) -> io::Result<Option<Answer>> {
        let socket = self.datagrams(SocketAddr::new(server, 53), wait)?;
        socket.send(query)?;
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer)?;
        Ok(buffer.get(..length).and_then(|bytes| dns::answer(u16::from(self.task.number()), bytes)))
    }

    fn ask_tcp(&self, server: IpAddr, query: &[u8], wait: Duration) -> io::Result<Option<Answer>> {
        let mut stream = self.connect(SocketAddr::new(server, 53), wait)?;
        let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
        stream.write_all(&[&length.to_be_bytes(), query].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut bytes)?;
        Ok(dns::answer(u16::from(self.task.number()), &bytes))
    }

    /// Asks servers of others: whatever answers must be outgate.
    fn foreign_dns(
        &self,
        ask: impl Fn(&Self, IpAddr, &[u8], Duration) -> io::Result<Option<Answer>>,
    ) -> io::Result<Told> {
        let query = self.query(&[UNFIT], RecordType::A)?;
        let servers = [self.context.addresses.sentinel, public(self.task.family)];
        let one = |server: IpAddr| match ask(self, server, &query, WAIT) {
            Ok(Some(answer)) => match answer.reason {
                Some(reason) => ok(format!("{}, {reason}", answer.code())),
                None => leak(format!("an answer that is not outgate's: {}", answer.code())),
            },
            Ok(None) => leak("an answer that is not outgate's, and no DNS"),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => ok("accepted, then closed"),
            Err(error) => ok(words(&error)),
        };
        Ok(joined(servers.map(one).into()))
    }

    fn dns_listener(&self) -> io::Result<Told> {
        let query = self.query(&[UNFIT], RecordType::A)?;
        let mut last = failed("nothing came back");
        for _ in 0..TRIES {
            match self.ask_udp(public(self.task.family), &query, LONG / TRIES) {
                Ok(Some(Answer { reason: Some(reason), .. })) => return Ok(ok(format!("its refusal: {reason}"))),
                Ok(answer) => {
                    let code = answer.map_or_else(String::new, |answer| format!(": {}", answer.code()));
                    return Ok(failed(format!("an answer that is not outgate's{code}")));
                }
                Err(error) => last = failed(words(&error)),
            }
        }
        Ok(last)
    }

    /// Asks for a name that is refused, and reads who answers.
    fn refusal(&self, to: SocketAddr, path: &str) -> io::Result<Told> {
        let head = match self.http(to, path, NO_NAME, LONG) {
            Ok(head) => head,
            Err(error) => return Ok(failed(words(&error))),
        };
        let Found { status, reason, .. } = attempt::of_head("", &head);
        Ok(match (reason, status) {
            (Some(reason), Some(status)) => ok(format!("{status} {reason}")),
            (_, Some(status)) => failed(format!("an answer that is not outgate's: status {status}")),
            _ => failed("the connection ended without an answer"),
        })
    }

    fn http(&self, to: SocketAddr, path: &str, host: &str, wait: Duration) -> io::Result<String> {
        let give_up = Instant::now() + wait;
        let mut stream = self.connect(to, wait)?;
        let marker = self.marker();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Outgate-Verify: {marker}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let (mut head, mut buffer) = (Vec::new(), [0; 2048]);
        while head.len() < MAX_HEAD && Instant::now() < give_up && !head.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => head.extend(buffer.iter().take(length)),
                Err(_) if !head.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    fn proxy(&self) -> io::Result<Told> {
        let Some(listener) = self.context.proxy else { return Ok(failed("there is none")) };
        let ip = if listener.ip().is_unspecified() { self.context.gateway } else { listener.ip() };
        self.refusal(SocketAddr::new(ip, listener.port()), &format!("http://{NO_NAME}/"))
    }

    fn metadata(&self) -> io::Result<Told> {
        let head = match self.http(SocketAddr::new(METADATA, 80), "/latest/meta-data/", "169.254.169.254", WAIT) {
            Ok(head) => head,
            Err(error) => return Ok(ok(words(&error))),
        };
        let Found { status, reason, .. } = attempt::of_head("", &head);
        Ok(match (reason, status) {
            (Some(reason), Some(status)) => ok(format!("{status} {reason}")),
            (_, Some(status)) => leak(format!("an answer that is not outgate's: status {status}")),
            _ => ok("accepted by this machine, then closed"),
        })
    }

    fn host_tcp(&self) -> io::Result<Told> {
        match &self.context.services {
            Some((listener, _)) => self.host_port(listener.local_addr()?.port()),
            None => Err(io::Error::other("this machine could not open a port to try")),
        }
    }

    fn host_udp(&self) -> io::Result<Told> {
        let Some((_, service)) = &self.context.services else {
            return Err(io::Error::other("this machine could not open a port to try"));
        };
        let socket = self.datagrams(service.local_addr()?, SILENCE)?;
        let sent = socket.send(self.marker().as_bytes());
        service.set_read_timeout(Some(SILENCE))?;
        let mut buffer = [0; 512];
        while let Ok(length) = service.recv(&mut buffer) {
            if buffer.get(..length) == Some(self.marker().as_bytes()) {
                return Ok(leak(format!("a datagram at {} of this machine", service.local_addr()?)));
            }
        }
        Ok(ok(match sent.and_then(|_| socket.recv(&mut buffer)) {
            Ok(_) => "an answer".to_owned(),
            Err(error) => words(&error),
        }))
    }

    fn host_port(&self, port: u16) -> io::Result<Told> {
        let to = SocketAddr::new(self.context.gateway, port);
        Ok(match self.connect(to, WAIT) {
            Ok(_) => leak(format!("connected to {to}, which is this machine")),
            Err(error) => ok(words(&error)),
        })
    }

    fn url(&self) -> io::Result<Told> {
        let Some(wanted) = self.context.urls.get(self.task.url) else { return Ok(failed("there is none")) };
        let addresses = match wanted.address {
            Some(address) => vec![address],
            None => match self.resolve(&wanted.host) {
                Ok(addresses) => addresses,
                Err(told) => return Ok(told),
            },
        };
        let Found { ending, stage, status, reason, detail, .. } = attempt::at(wanted, &addresses);
        let status = status.map(|status| format!("status {status}"));
        let parts: Vec<String> = [status, reason, detail].into_iter().flatten().collect();
        let seen = format!("{}: {}", stage.as_str(), parts.join(", "));
        Ok(if ending == Ending::Passes { ok(seen) } else { failed(seen) })
    }

    /// Looks up a name as a guest does, or says what was seen instead.
    fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, Told> {
        let labels: Vec<&str> = host.split('.').collect();
        for kind in [RecordType::A, RecordType::AAAA] {
            let query = dns::query(u16::from(self.task.number()), &labels, kind)
                .map_err(|error| failed(format!("dns: {}", words(&error))))?;
            match self.ask_udp(public(self.task.family), &query, LONG) {
                Ok(Some(answer)) if !answer.addresses.is_empty() => return Ok(answer.addresses),
                Ok(Some(Answer { reason: Some(reason), .. })) => return Err(failed(format!("dns: {reason}"))),
                Ok(_) => {}
                Err(error) => return Err(failed(format!("dns: {}", words(&error)))),
            }
        }
        Err(failed("dns: the name has no address"))
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u16::from_be_bytes([*high, *low]),
        [high] => u16::from_be_bytes([*high, 0]),
        _ => 0,
    });
    !words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum.wrapping_add(u16::from(carry))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_several_destinations_counts() {
        assert_eq!(joined(vec![ok("refused"), leak("an answer"), ok("refused")]), leak("an answer"));
        assert_eq!(joined(vec![ok("refused"), ok("refused"), ok("reset")]), ok("refused; reset"));
    }

    #[test]
    fn a_checksum_makes_the_sum_all_ones() {
        let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1, b'x'];
        let sum = checksum(&echo).to_be_bytes();
        echo.splice(2..4, sum);
        assert_eq!(checksum(&echo), 0);
    }
}
