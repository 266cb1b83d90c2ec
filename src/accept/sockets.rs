//! The source of listening sockets: the service manager passed them to the daemon, or they are opened here. In
//! both cases each worker thread gets a share of every address.

use super::inherit::{Inherited, Missing};
use super::listen::{self, ListenError, SocketUse};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Receive and send buffer of a datagram socket, in bytes each, as far as the system allows. They hold bursts
/// of datagrams and those that wait to be sent.
const DATAGRAM_BUFFER: usize = 1 << 20;

/// The sockets of one address: a list per worker thread of those it serves, with at least one each.
pub type WorkerSockets<T> = Vec<Vec<T>>;

/// Hands out listening sockets.
#[derive(Debug)]
pub struct Sockets {
    inherited: Option<Inherited>,
    workers: usize,
    missing: Vec<Missing>,
}

/// Inherited sockets that no configured listener uses.
#[derive(Debug, Default)]
pub struct Unclaimed {
    /// Listeners: a client that connects waits forever unless somebody accepts.
    pub tcp: Vec<TcpListener>,
    /// Datagram sockets.
    pub udp: Vec<UdpSocket>,
}

impl Sockets {
    /// Creates it for this number of worker threads. Call it once: it takes the inherited sockets.
    ///
    /// # Errors
    /// When an inherited socket is not usable.
    pub fn new(workers: usize) -> Result<Sockets, ListenError> {
        let workers = workers.max(1);
        Ok(Sockets { inherited: Inherited::take()?, workers, missing: Vec::new() })
    }

    /// Whether sockets were inherited. They then outlive this process.
    pub fn are_inherited(&self) -> bool {
        self.inherited.is_some()
    }

    /// Returns what the inherited sockets are for, judged by the names of their units; `None` if none were inherited.
    pub fn units(&self) -> Option<Vec<(SocketUse, SocketAddr)>> {
        self.inherited.as_ref().map(|inherited| inherited.units().to_vec())
    }

    /// Returns the listeners at the address. With port 0 the kernel chooses one port for all.
    ///
    /// # Errors
    /// When a socket is not available. [`Sockets::finish`] reports the listeners without an inherited socket.
    pub fn tcp(&mut self, kind: SocketUse, address: SocketAddr) -> Result<WorkerSockets<TcpListener>, ListenError> {
        let fail = |source| ListenError::Open { address, kind, source };
        let count = if kind.is_single() { 1 } else { self.workers };
        let listeners = match &mut self.inherited {
            Some(inherited) => inherited.tcp(kind, address)?,
            None if kind.is_transparent() => listen::open_transparent(address, count)?,
            None => listen::open(address, count, kind)?,
        };
        self.note(Missing { kind, address }, listeners.is_empty());
        deal(listeners, count, TcpListener::try_clone).map_err(fail)
    }

    /// Returns the datagram sockets at the address.
    ///
    /// # Errors
    /// As for [`Sockets::tcp`].
    pub fn udp(&mut self, kind: SocketUse, address: SocketAddr) -> Result<WorkerSockets<UdpSocket>, ListenError> {
        let fail = |source| ListenError::Open { address, kind, source };
        let sockets = match &mut self.inherited {
            Some(inherited) => inherited.udp(address),
            None => open_udp(address, self.workers).map_err(fail)?,
        };
        for socket in &sockets {
            let socket = SockRef::from(socket);
            // An inherited socket may have a larger buffer than this process may ask for.
            if socket.recv_buffer_size().is_ok_and(|size| size < DATAGRAM_BUFFER) {
                // A smaller buffer only loses more of a burst.
                let _ = socket.set_recv_buffer_size(DATAGRAM_BUFFER);
            }
            if socket.send_buffer_size().is_ok_and(|size| size < DATAGRAM_BUFFER) {
                // Replies wait in it for guests whose link address the kernel has yet to find.
                let _ = socket.set_send_buffer_size(DATAGRAM_BUFFER);
            }
        }
        self.note(Missing { kind, address }, sockets.is_empty());
        deal(sockets, self.workers, UdpSocket::try_clone).map_err(fail)
    }

    /// Call it after all listeners have been asked for. Returns the unused inherited sockets, and
    /// [`ListenError::Missing`] if a listener has no socket.
    pub fn finish(self) -> (Unclaimed, Option<ListenError>) {
        let Sockets { inherited, missing, .. } = self;
        let (tcp, udp) = inherited.map(Inherited::rest).unwrap_or_default();
        let error = (!missing.is_empty()).then_some(ListenError::Missing(missing));
        (Unclaimed { tcp, udp }, error)
    }

    fn note(&mut self, listener: Missing, missing: bool) {
        if missing && !self.missing.contains(&listener) {
            self.missing.push(listener);
        }
    }
}

fn open_udp(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    // A shared port is also shared with this user's other processes. So a first, unshared socket checks that it
    // is free.
    drop(udp_socket(address, false)?);
    (0..count).map(|_| Ok(udp_socket(address, true)?.into())).collect()
}

fn udp_socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Deals sockets to `count` threads in turn. With fewer sockets than threads, several threads share a socket;
/// every socket is used.
fn deal<T>(sockets: Vec<T>, count: usize, again: impl Fn(&T) -> io::Result<T>) -> io::Result<WorkerSockets<T>> {
    let mut dealt: WorkerSockets<T> = (0..count).map(|_| Vec::new()).collect();
    let clones = (sockets.len()..count).filter_map(|thread| sockets.get(thread % sockets.len().max(1)));
    let clones = clones.map(again).collect::<io::Result<Vec<T>>>()?;
    for (index, socket) in sockets.into_iter().chain(clones).enumerate() {
        if let Some(worker) = dealt.get_mut(index % count.max(1)) {
            worker.push(socket);
        }
    }
    Ok(dealt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(sockets: u8, threads: usize) -> WorkerSockets<u8> {
        deal((0..sockets).collect(), threads, |socket| Ok(*socket)).unwrap()
    }

    #[test]
    fn every_thread_has_a_socket_and_every_socket_a_thread() {
        assert_eq!(dealt(2, 2), [[0], [1]]);
        assert_eq!(dealt(4, 2), [[0, 2], [1, 3]]);
        assert_eq!(dealt(1, 3), [[0], [0], [0]]);
        assert_eq!(dealt(2, 3), [[0], [1], [0]]);
        assert_eq!(dealt(3, 2), [vec![0, 2], vec![1]]);
        assert_eq!(dealt(0, 2), [[0; 0], [0; 0]]);
    }

    #[test]
    fn datagrams_of_all_threads_come_to_one_port_and_one_that_is_taken_is_an_error() {
        let mut own = Sockets { inherited: None, workers: 3, missing: Vec::new() };
        let any = "127.0.0.1:0".parse().unwrap();
        let port = own.tcp(SocketUse::Dns, any).unwrap()[0][0].local_addr().unwrap();
        let sockets = own.udp(SocketUse::Dns, port).unwrap();
        assert_eq!(sockets.len(), 3);
        assert!(sockets.iter().flatten().all(|socket| socket.local_addr().unwrap() == port));
        let error = own.udp(SocketUse::Dns, port).unwrap_err();
        assert!(matches!(&error, ListenError::Open { source, .. } if source.kind() == io::ErrorKind::AddrInUse));
        let (unclaimed, missing) = own.finish();
        assert!(unclaimed.tcp.is_empty() && missing.is_none());
    }
}
