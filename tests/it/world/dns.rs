//! A scripted DNS server, UDP and TCP, that logs every query. Not of a library, so that it can also do
//! what a server should not.

use super::namespace::Namespace;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The A record type.
pub const A: u16 = 1;
/// The AAAA record type.
pub const AAAA: u16 = 28;

/// What the server says to one query.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Those of the addresses that are of the type asked for, with this TTL in seconds.
    Addresses(Vec<IpAddr>, u32),
    /// An alias; the target's own script follows in the same answer.
    Alias(&'static str),
    /// The name does not exist.
    NxDomain,
    /// The server cannot say.
    ServFail,
    /// Silence.
    Drop,
    /// The answer comes this late.
    Late(Duration, Box<Answer>),
}

impl<T: Into<IpAddr>, const N: usize> From<[T; N]> for Answer {
    fn from(addresses: [T; N]) -> Answer {
        Answer::Addresses(addresses.map(Into::into).into(), 60)
    }
}

/// One query, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// In lower case, without trailing dot.
    pub name: String,
    /// The record type.
    pub kind: u16,
}

#[derive(Default)]
struct Shared {
    /// Each name's answers in turn, for A and AAAA apart.
    scripts: Mutex<HashMap<String, Script>>,
    log: Mutex<Vec<Query>>,
    stop: AtomicBool,
}

#[derive(Clone)]
struct Script {
    answers: Vec<Answer>,
    turns: HashMap<u16, usize>,
}

/// The server; it stops when dropped.
pub struct Dns {
    shared: Arc<Shared>,
    tcp: Arc<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl Dns {
    /// Listens on port 53 of `address`.
    pub fn start(namespace: &Namespace, address: impl Into<IpAddr>) -> Dns {
        let address = address.into();
        let (udp, tcp) = namespace.run(|| {
            (UdpSocket::bind((address, 53)).expect("port 53 is free"), TcpListener::bind((address, 53)).unwrap())
        });
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let tcp = Arc::new(tcp);
        let shared = Arc::new(Shared::default());
        let (for_udp, for_tcp, listener) = (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&tcp));
        let threads = vec![
            std::thread::spawn(move || serve_udp(&udp, &for_udp)),
            std::thread::spawn(move || serve_tcp(&listener, &for_tcp)),
        ];
        Dns { shared, tcp, threads }
    }

    /// From now on `name` (or `*.parent`, for names below) has this one answer.
    pub fn set(&self, name: &str, answer: impl Into<Answer>) {
        self.cycle(name, vec![answer.into()]);
    }

    /// From now on `name` has these answers in turn, repeatedly.
    pub fn cycle(&self, name: &str, answers: Vec<Answer>) {
        let script = Script { answers, turns: HashMap::new() };
        self.shared.scripts.lock().unwrap().insert(name.to_owned(), script);
    }

    /// Every query so far.
    pub fn log(&self) -> Vec<Query> {
        self.shared.log.lock().unwrap().clone()
    }

    /// The names of all queries, sorted, with repetitions.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.log().into_iter().map(|query| query.name).collect();
        names.sort();
        names
    }

    /// How often `name` was asked for this type.
    pub fn count(&self, name: &str, kind: u16) -> usize {
        self.log().iter().filter(|query| query.name == name && query.kind == kind).count()
    }

    /// Forgets the queries so far.
    pub fn forget(&self) {
        self.shared.log.lock().unwrap().clear();
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the accept: on Linux it fails once the socket is shut down.
        let _ = rustix::net::shutdown(&self.tcp, rustix::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0u8; 4096];
    while !shared.stop.load(Ordering::SeqCst) {
        // After a time-out `stop` is checked.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let Some((reply, delay)) = answer(&buffer[..length], shared) else { continue };
        if delay.is_zero() {
            let _ = socket.send_to(&reply, peer);
        } else if let Ok(socket) = socket.try_clone() {
            std::thread::spawn(move || {
                std::thread::sleep(delay);
                let _ = socket.send_to(&reply, peer);
            });
        }
    }
}

fn serve_tcp(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((mut stream, _)) = listener.accept() {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut length = [0u8; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                if stream.read_exact(&mut query).is_err() {
                    return;
                }
                let Some((reply, delay)) = answer(&query, &shared) else { continue };
                std::thread::sleep(delay);
                let length = u16::try_from(reply.len()).expect("answers are short").to_be_bytes();
                let _ = stream.write_all(&[&length[..], &reply].concat());
            }
        });
    }
}

/// Logs the query and builds its reply; `None` for silence.
fn answer(query: &[u8], shared: &Shared) -> Option<(Vec<u8>, Duration)> {
    let (name, after) = read_name(query, 12)?;
    let kind = u16::from_be_bytes([*query.get(after)?, *query.get(after + 1)?]);
    let question = query.get(12..after + 4)?;
    // NS of the root is outgate's own query, whether the server answers. No guest can cause it.
    if !(name.is_empty() && kind == 2) {
        shared.log.lock().unwrap().push(Query { name: name.clone(), kind });
    }

    let mut delay = Duration::ZERO;
    let mut records = Vec::new();
    let mut code = 0u8;
    let mut owner = name;
    for _ in 0..8 {
        let mut step = turn(shared, &owner, kind);
        while let Answer::Late(by, then) = step {
            delay += by;
            step = *then;
        }
        match step {
            Answer::Addresses(addresses, ttl) => {
                records.extend(addresses.iter().filter_map(|address| record(&owner, kind, *address, ttl)));
            }
            Answer::Alias(target) => {
                let mut data = wire_name(&owner);
                data.extend([0, 5, 0, 1, 0, 0, 0, 60]);
                let target_wire = wire_name(target);
                data.extend(u16::try_from(target_wire.len()).unwrap().to_be_bytes());
                data.extend(target_wire);
                records.push(data);
                owner = target.to_owned();
                continue;
            }
            Answer::NxDomain => code = 3,
            Answer::ServFail => code = 2,
            Answer::Drop => return None,
            Answer::Late(..) => unreachable!("taken apart above"),
        }
        break;
    }
    let count = u16::try_from(records.len()).unwrap().to_be_bytes();
    let mut reply = vec![query[0], query[1], 0x84 | (query[2] & 1), 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0];
    reply.extend(question);
    reply.extend(records.into_iter().flatten());
    Some((reply, delay))
}

fn turn(shared: &Shared, name: &str, kind: u16) -> Answer {
    let mut scripts = shared.scripts.lock().unwrap();
    let mut key = name.to_owned();
    while !scripts.contains_key(&key) {
        let Some((_, parent)) = key.trim_start_matches("*.").split_once('.') else { return Answer::NxDomain };
        key = format!("*.{parent}");
    }
    let script = scripts.get_mut(&key).expect("found above");
    let turn = script.turns.entry(kind).or_default();
    let index = *turn % script.answers.len();
    *turn += 1;
    script.answers[index].clone()
}

fn record(owner: &str, kind: u16, address: IpAddr, ttl: u32) -> Option<Vec<u8>> {
    let data = match (kind, address) {
        (A, IpAddr::V4(address)) => address.octets().to_vec(),
        (AAAA, IpAddr::V6(address)) => address.octets().to_vec(),
        _ => return None,
    };
    let mut record = wire_name(owner);
    record.extend(kind.to_be_bytes());
    record.extend([0, 1]);
    record.extend(ttl.to_be_bytes());
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    Some(record)
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.') {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// Reads an uncompressed name; gives it in lower case, and the offset after it.
fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}
