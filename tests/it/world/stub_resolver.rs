//! A guest's stub resolver without a library: queries of any form over UDP and TCP, and parsed replies.

use super::client::Guest;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Where guests ask.
pub const RESOLVER: &str = "10.42.42.1:53";
/// How long an answer may take on a busy machine.
const WAIT: Duration = Duration::from_secs(15);
/// After this time nothing more is expected.
pub const SILENCE: Duration = Duration::from_millis(400);

/// Response codes (RFC 6895 §2.3).
pub const NOERROR: u16 = 0;
pub const FORMERR: u16 = 1;
pub const SERVFAIL: u16 = 2;
pub const NXDOMAIN: u16 = 3;
pub const NOTIMP: u16 = 4;
pub const REFUSED: u16 = 5;
pub const BADVERS: u16 = 16;

/// A parsed reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub id: u16,
    /// The upper bits of the OPT record included.
    pub code: u16,
    pub truncated: bool,
    pub question: Vec<u8>,
    pub addresses: Vec<IpAddr>,
    /// Of the answers.
    pub ttls: Vec<u32>,
    /// Records of the authority section.
    pub authority: u16,
    /// There is an OPT record.
    pub edns: bool,
    /// Extended error: code and text.
    pub extended: Option<(u16, String)>,
    /// Bytes of all of it.
    pub length: usize,
}

impl Reply {
    /// NXDOMAIN, marked as blocked for this reason, and without anything that could be cached.
    #[track_caller]
    pub fn assert_blocked(&self, reason: &str) {
        assert_eq!(self.code, NXDOMAIN, "{self:?}");
        self.assert_says(reason);
    }

    /// No addresses, and the reason why.
    #[track_caller]
    pub fn assert_says(&self, reason: &str) {
        assert_eq!(self.extended, Some((15, reason.to_owned())), "{self:?}");
        assert!(self.addresses.is_empty() && self.authority == 0, "{self:?}");
    }

    /// No error and no data.
    #[track_caller]
    pub fn assert_no_data(&self) {
        assert_eq!((self.code, self.authority, self.addresses.len()), (NOERROR, 0, 0), "{self:?}");
    }

    /// These addresses.
    #[track_caller]
    pub fn assert_is<T: Into<IpAddr>, const N: usize>(&self, addresses: [T; N]) {
        assert_eq!((self.code, &self.addresses), (NOERROR, &addresses.map(Into::into).to_vec()), "{self:?}");
    }
}

/// A query that is not sent yet.
#[derive(Clone, Debug)]
pub struct Query {
    pub name: Vec<u8>,
    pub kind: u16,
    pub class: u16,
    pub id: u16,
    /// Payload and version of an OPT record.
    pub edns: Option<(u16, u8)>,
}

/// A plain query with EDNS, as most resolvers send it.
pub fn query(name: &str, kind: u16) -> Query {
    Query { name: wire_name(name), kind, class: 1, id: 0x1234, edns: Some((1232, 0)) }
}

impl Query {
    /// Without EDNS.
    pub fn plain(mut self) -> Query {
        self.edns = None;
        self
    }

    /// With another id.
    pub fn id(mut self, id: u16) -> Query {
        self.id = id;
        self
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let [high, low] = self.id.to_be_bytes();
        let mut bytes = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())];
        bytes.extend(&self.name);
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(self.class.to_be_bytes());
        if let Some((payload, version)) = self.edns {
            bytes.extend([0, 0, 41]);
            bytes.extend(payload.to_be_bytes());
            bytes.extend([0, version, 0, 0, 0, 0]);
        }
        bytes
    }
}

impl Guest {
    /// A UDP socket towards a resolver, which need not be where the packet ends up.
    pub fn udp_to(&self, resolver: &str) -> UdpSocket {
        let resolver: SocketAddr = resolver.parse().unwrap();
        let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = self.namespace.run(|| UdpSocket::bind((any, 0)).unwrap());
        // Replies from any other address or port do not come through.
        socket.connect(resolver).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket
    }

    /// Asks over UDP.
    #[track_caller]
    pub fn dns(&self, query: &Query) -> Reply {
        self.dns_raw(&query.bytes(), WAIT).expect("a reply over UDP")
    }

    /// Sends any bytes over UDP; `None` for silence.
    pub fn dns_raw(&self, bytes: &[u8], wait: Duration) -> Option<Reply> {
        let socket = self.udp_to(RESOLVER);
        socket.set_read_timeout(Some(wait)).unwrap();
        socket.send(bytes).unwrap();
        receive(&socket)
    }

    /// A TCP connection to the resolver.
    pub fn dns_stream(&self) -> TcpStream {
        let stream = self.namespace.run(|| TcpStream::connect(RESOLVER)).expect("the resolver accepts");
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    /// Asks over TCP.
    #[track_caller]
    pub fn dns_tcp(&self, query: &Query) -> Reply {
        let mut stream = self.dns_stream();
        stream.write_all(&framed(&query.bytes())).unwrap();
        read_framed(&mut stream).expect("a reply over TCP")
    }

    /// The IPv4 addresses of a name.
    #[track_caller]
    pub fn lookup(&self, name: &str) -> Reply {
        self.dns(&query(name, super::dns::A))
    }
}

/// The next reply on the socket; `None` for silence.
pub fn receive(socket: &UdpSocket) -> Option<Reply> {
    let mut buffer = [0u8; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    Some(take_apart(&buffer[..length]))
}

/// A message with its length in front.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// The next reply on the connection; `None` at its end.
pub fn read_framed(stream: &mut TcpStream) -> Option<Reply> {
    let mut length = [0u8; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(take_apart(&message))
}

/// A name of plain labels.
pub fn wire_name(name: &str) -> Vec<u8> {
    let labels: Vec<&[u8]> = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect();
    wire_labels(&labels)
}

/// A name of any labels.
pub fn wire_labels(labels: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in labels {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(*label);
    }
    wire.push(0);
    wire
}

fn take_apart(message: &[u8]) -> Reply {
    let u16_at = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    assert_eq!(message[2] & 0x80, 0x80, "a reply says that it is one");
    let mut reply = Reply {
        id: u16_at(0),
        code: u16::from(message[3] & 15),
        truncated: message[2] & 2 != 0,
        question: Vec::new(),
        addresses: Vec::new(),
        ttls: Vec::new(),
        authority: u16_at(8),
        edns: false,
        extended: None,
        length: message.len(),
    };
    let mut at = 12;
    if u16_at(4) == 1 {
        at = after_name(message, at) + 4;
        reply.question = message[12..at].to_vec();
    }
    for index in 0..u16_at(6) + u16_at(8) + u16_at(10) {
        at = after_name(message, at);
        let (kind, ttl, length) =
            (u16_at(at), u32::from(u16_at(at + 4)) << 16 | u32::from(u16_at(at + 6)), u16_at(at + 8));
        let data = &message[at + 10..at + 10 + usize::from(length)];
        at += 10 + usize::from(length);
        match (kind, data) {
            (1, data) => {
                reply.addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).unwrap()));
                reply.ttls.push(ttl);
            }
            (28, data) => {
                reply.addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).unwrap()));
                reply.ttls.push(ttl);
            }
            (41, mut options) => {
                assert!(index + 1 == u16_at(6) + u16_at(8) + u16_at(10), "the OPT record is the last");
                reply.edns = true;
                reply.code |= u16::try_from(ttl >> 24).unwrap() << 4;
                while let [0, code, high, low, rest @ ..] = options {
                    let (option, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
                    if *code == 15 {
                        let text = String::from_utf8(option[2..].to_vec()).unwrap();
                        reply.extended = Some((u16::from_be_bytes([option[0], option[1]]), text));
                    }
                    options = rest;
                }
            }
            (kind, _) => panic!("a record of type {kind} has no place in {reply:?}"),
        }
    }
    assert_eq!(at, message.len(), "nothing stands behind the last record");
    reply
}

fn after_name(message: &[u8], mut at: usize) -> usize {
    loop {
        match message[at] {
            0 => return at + 1,
            length if length & 0xc0 == 0xc0 => return at + 2,
            length => at += 1 + usize::from(length),
        }
    }
}
