//! Opening the sockets of the `dns` listeners: a UDP socket and a TCP listener a worker thread, on one
//! port.

use crate::accept::listen::{self, ListenError};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

const PURPOSE: &str = "[listen].dns";

/// Room for a burst of queries, in bytes, as far as the system allows.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What one worker thread serves of one address.
#[derive(Debug)]
pub struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Where they are.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// The same sockets once more.
    pub fn try_clone(&self) -> io::Result<Sockets> {
        Ok(Sockets { udp: self.udp.try_clone()?, tcp: self.tcp.try_clone()? })
    }
}

/// Opens `count` pairs of sockets on `address`. With port 0 the kernel chooses one port for all.
///
/// # Errors
/// When the address cannot be had, or somebody else has its port, by UDP or by TCP.
pub fn open(address: SocketAddr, count: usize) -> Result<Vec<Sockets>, ListenError> {
    let listeners = listen::open(address, count, PURPOSE)?;
    let address = listeners.first().and_then(|first| first.local_addr().ok()).unwrap_or(address);
    let fail = |source| ListenError { address, purpose: PURPOSE, source };
    // Shared ports are shared with other processes of this user too, so one that is not comes first.
    drop(socket(address, false).map_err(fail)?);
    let pair = |tcp| Ok(Sockets { udp: socket(address, true)?.into(), tcp });
    listeners.into_iter().map(pair).collect::<io::Result<Vec<_>>>().map_err(fail)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(shared)?;
    // A smaller buffer only loses more of a burst.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_and_tcp_of_all_threads_share_one_port() {
        let sockets = open("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        assert!(port != 0 && sockets.len() == 3);
        assert!(sockets.iter().all(|pair| pair.udp.local_addr().unwrap().port() == port));
        assert!(sockets.iter().all(|pair| pair.tcp.local_addr().unwrap().port() == port));
    }

    #[test]
    fn a_port_that_somebody_else_has_over_udp_is_an_error() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = open(taken.local_addr().unwrap(), 2).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    }
}
