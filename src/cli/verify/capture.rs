//! What arrives in a namespace, by the check that sent it. It reads whole frames, so that a packet counts whether or
//! not anything listens.

use super::addresses::Addresses;
use super::namespace::Namespace;
use super::packet::{ICMP, ICMP6, Packet, Round, of_frame};
use crate::cli::Failure;
use outgate::lock::lock;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Every protocol (ETH_P_ALL), in network byte order as packet(7) wants it.
const ALL: u16 = 0x0003_u16.to_be();
/// How soon a capture notices that it is to end.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of frames that may wait for the thread that reads them.
const BACKLOG: usize = 4 << 20;

/// Which packets a capture counts.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    /// Packets to these addresses.
    Arrivals(Vec<IpAddr>),
    /// ICMP to these addresses, from others than the second ones, which are this machine's.
    Answers(Vec<IpAddr>, Vec<IpAddr>),
}

impl Filter {
    /// Returns those of the sentinel, the second guest and the first guest, with these addresses of each family. `own`:
    /// this machine's.
    pub(super) fn of(addresses: &[Addresses], own: Vec<IpAddr>) -> [Filter; 3] {
        let [mut sentinels, mut second, mut first] = [Vec::new(), Vec::new(), Vec::new()];
        for Addresses { sentinel, guests: [one, two], direct, .. } in addresses.iter().copied() {
            sentinels.push(sentinel);
            second.extend([two, direct]);
            first.push(one);
        }
        [Filter::Arrivals(sentinels), Filter::Arrivals(second), Filter::Answers(first, own)]
    }
}

/// What was seen of one check.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Packets.
    pub(super) packets: u64,
    /// The first of them, in words.
    pub(super) first: String,
}

#[derive(Debug, Default)]
struct State {
    seen: Mutex<HashMap<u8, Seen>>,
    /// What this machine itself answered by ICMP.
    told: Mutex<HashMap<u8, Seen>>,
    /// Packets that come from no check.
    others: Mutex<Seen>,
    ended: AtomicBool,
}

/// A running capture; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Capture(Arc<State>);

impl Capture {
    /// Starts looking in a namespace.
    pub(super) fn start(namespace: &Namespace, filter: Filter, round: Arc<Round>) -> Result<Capture, Failure> {
        let socket = namespace.run(open);
        let socket = socket.map_err(|error| Failure::Failed(format!("packets cannot be watched: {error}")))?;
        Capture::on(socket, filter, round)
    }

    /// Starts looking at what this socket receives.
    pub(super) fn on(socket: Socket, filter: Filter, round: Arc<Round>) -> Result<Capture, Failure> {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let started = std::thread::Builder::new().spawn(move || watch(socket, &filter, &round, &shared));
        started.map_err(|error| Failure::Failed(format!("the thread that watches packets: {error}")))?;
        Ok(Capture(state))
    }

    /// Returns what was seen of a check.
    pub(super) fn of(&self, check: u8) -> Option<Seen> {
        lock(&self.0.seen).get(&check).cloned()
    }

    /// Returns whether this machine answered a check by ICMP.
    pub(super) fn was_told(&self, check: u8) -> bool {
        lock(&self.0.told).contains_key(&check)
    }

    /// Returns how many packets came from no check.
    pub(super) fn others(&self) -> u64 {
        lock(&self.0.others).packets
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

/// Opens a socket that receives every packet of the calling thread's namespace.
///
/// # Errors
/// Those of the system.
pub(super) fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ALL))))?;
    socket.set_read_timeout(Some(PAUSE))?;
    // More than the limit of the system is cut down to it.
    let _ = socket.set_recv_buffer_size(BACKLOG);
    Ok(socket)
}

fn watch(mut socket: Socket, filter: &Filter, round: &Round, state: &State) {
    let mut frame = vec![0; 1 << 16];
    while !state.ended.load(Ordering::Relaxed) {
        match socket.read(&mut frame) {
            Ok(length) => {
                if let Some(packet) = frame.get(..length).and_then(of_frame) {
                    note(&packet, filter, round, state);
                }
            }
            Err(error) if is_pause(&error) => {}
            // The interface is gone, and with it all that could come.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NETDOWN.raw_os_error()) => {}
            Err(_) => return,
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn note(packet: &Packet<'_>, filter: &Filter, round: &Round, state: &State) {
    let count = |seen: &mut Seen| {
        seen.packets = seen.packets.saturating_add(1);
        if seen.first.is_empty() {
            seen.first = packet.to_string();
        }
    };
    match filter {
        Filter::Arrivals(to) if to.contains(&packet.to) && !packet.is_of_the_link() => match round.check_of(packet) {
            Some(check) => count(lock(&state.seen).entry(check).or_default()),
            None => count(&mut lock(&state.others)),
        },
        Filter::Answers(to, own) if to.contains(&packet.to) && matches!(packet.protocol, ICMP | ICMP6) => {
            if packet.is_of_the_link() || to.contains(&packet.source) {
                return;
            }
            if let Some(check) = round.check_of(packet) {
                // Nobody else is on this link.
                let is_local = matches!(packet.source, IpAddr::V6(source) if source.is_unicast_link_local());
                let place = if is_local || own.contains(&packet.source) { &state.told } else { &state.seen };
                count(lock(place).entry(check).or_default());
            }
        }
        _ => {}
    }
}
