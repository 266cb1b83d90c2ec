//! A DNS server for tests: UDP and TCP on one loopback port, on its own thread. A closure answers, and the
//! server records the queries.

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Builder;

/// A running server; it stops when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

pub(super) struct Query {
    pub(super) name: String,
    /// 4 for A, 6 for AAAA.
    pub(super) family: u8,
    pub(super) tcp: bool,
}

#[derive(Clone)]
pub(super) struct Reply {
    records: Vec<Made>,
    ttl: u32,
    soa_minimum: Option<u32>,
    code: u8,
    truncated: bool,
    silent: bool,
    lowered: bool,
    delay: Duration,
}

#[derive(Clone)]
pub(super) struct Made {
    owner: Option<String>,
    data: RData,
}

pub(super) fn a(address: &str) -> Made {
    Made { owner: None, data: RData::A(A(address.parse().unwrap())) }
}

pub(super) fn aaaa(address: &str) -> Made {
    Made { owner: None, data: RData::AAAA(AAAA(address.parse().unwrap())) }
}

pub(super) fn cname(target: &str) -> Made {
    Made { owner: None, data: RData::CNAME(CNAME(absolute(target))) }
}

impl Made {
    pub(super) fn of(mut self, owner: &str) -> Made {
        self.owner = Some(owner.to_string());
        self
    }
}

impl Reply {
    const BLANK: Reply = Reply {
        records: Vec::new(),
        ttl: 0,
        soa_minimum: None,
        code: 0,
        truncated: false,
        silent: false,
        lowered: false,
        delay: Duration::ZERO,
    };

    /// Returns the records that match the question, and all CNAMEs.
    pub(super) fn records(ttl: u32, records: &[Made]) -> Reply {
        Reply { records: records.to_vec(), ttl, soa_minimum: Some(30), ..Reply::BLANK }
    }
    pub(super) fn none(soa_minimum: u32) -> Reply {
        Reply { soa_minimum: Some(soa_minimum), ..Reply::BLANK }
    }
    pub(super) fn no_such_name(soa_minimum: u32) -> Reply {
        Reply { code: 3, soa_minimum: Some(soa_minimum), ..Reply::BLANK }
    }
    pub(super) fn code(code: u8) -> Reply {
        Reply { code, ..Reply::BLANK }
    }
    pub(super) fn truncated() -> Reply {
        Reply { truncated: true, ..Reply::BLANK }
    }
    pub(super) fn silence() -> Reply {
        Reply { silent: true, ..Reply::BLANK }
    }
    /// The question is returned in lower case, as some middleboxes and spoofers do.
    pub(super) fn lowered(mut self) -> Reply {
        self.lowered = true;
        self
    }
    pub(super) fn after(mut self, milliseconds: u64) -> Reply {
        self.delay = Duration::from_millis(milliseconds);
        self
    }
}

impl Server {
    /// Returns the questions so far, sorted in pairs as they arrive: "A good.test", over TCP with " tcp".
    pub(super) fn asked(&self) -> Vec<String> {
        let mut log = self.log.lock().unwrap().clone();
        // The two families are asked at once, so their order means nothing.
        for pair in log.chunks_mut(2) {
            pair.sort();
        }
        log
    }
}

type Answerer = Arc<dyn Fn(&Query) -> Reply + Send + Sync>;

pub(super) fn serve(answer: impl Fn(&Query) -> Reply + Send + Sync + 'static) -> Server {
    let (udp, tcp) = loop {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(tcp) = std::net::TcpListener::bind(udp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    udp.set_nonblocking(true).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let address = udp.local_addr().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let answer: Answerer = Arc::new(answer);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (for_udp, for_tcp) = ((answer.clone(), log.clone()), (answer, log.clone()));
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            tokio::select! {
                () = over_udp(UdpSocket::from_std(udp).unwrap(), for_udp) => {}
                () = over_tcp(TcpListener::from_std(tcp).unwrap(), for_tcp) => {}
                _ = stopped => {}
            }
        });
    });
    Server { address, log, _stop: stop }
}

type Shared = (Answerer, Arc<Mutex<Vec<String>>>);

async fn over_udp(socket: UdpSocket, shared: Shared) {
    let socket = Arc::new(socket);
    let mut buffer = [0; 4096];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let Some((delay, reply)) = respond(&buffer[..length], false, &shared) else { continue };
        let socket = socket.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = socket.send_to(&reply, peer).await;
        });
    }
}

async fn over_tcp(listener: TcpListener, shared: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = connection(stream, &shared).await;
        });
    }
}

async fn connection(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut message = vec![0; length.into()];
        stream.read_exact(&mut message).await?;
        if let Some((delay, reply)) = respond(&message, true, shared) {
            tokio::time::sleep(delay).await;
            stream.write_u16(u16::try_from(reply.len()).unwrap()).await?;
            stream.write_all(&reply).await?;
        }
    }
}

fn respond(message: &[u8], tcp: bool, (answer, log): &Shared) -> Option<(Duration, Vec<u8>)> {
    let request = Message::from_vec(message).unwrap();
    let question = request.queries.first().unwrap();
    let name = question.name().to_ascii().trim_end_matches('.').to_lowercase();
    let kind = question.query_type();
    let family = if kind == RecordType::A { 4 } else { 6 };
    log.lock().unwrap().push(format!("{kind} {name}{}", if tcp { " tcp" } else { "" }));
    let reply = answer(&Query { name: name.clone(), family, tcp });
    if reply.silent {
        return None;
    }
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    let mut echoed = question.clone();
    if reply.lowered {
        echoed.set_name(question.name().to_lowercase());
    }
    response.add_query(echoed);
    response.metadata.response_code = ResponseCode::from(0, reply.code);
    response.metadata.truncation = reply.truncated;
    response.metadata.recursion_available = true;
    for made in reply.records {
        let fits = made.data.record_type() == kind || made.data.record_type() == RecordType::CNAME;
        if fits {
            let owner = made.owner.map_or_else(|| question.name().clone(), |owner| absolute(&owner));
            response.add_answer(Record::from_rdata(owner, reply.ttl, made.data));
        }
    }
    if let (true, Some(minimum)) = (response.answers.is_empty(), reply.soa_minimum) {
        let soa = SOA::new(absolute("ns.test"), absolute("ops.test"), 1, 3600, 600, 86400, minimum);
        response.add_authority(Record::from_rdata(absolute("test"), 3600, RData::SOA(soa)));
    }
    Some((reply.delay, response.to_vec().unwrap()))
}

fn absolute(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}
