//! Opening listening sockets: one a worker thread on the same port (SO_REUSEPORT), so that each
//! thread accepts for itself, and a port that somebody else holds is an error.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Length of the queue of connections not yet accepted.
const BACKLOG: i32 = 4096;

/// The purpose that takes a privilege.
const TRANSPARENT: &str = "[listen].transparent";

/// A socket that could not be opened, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({purpose}): {source}{}", remedy(.source, .purpose))]
pub struct ListenError {
    /// Where.
    pub address: SocketAddr,
    /// What for: the key in the configuration.
    pub purpose: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

fn remedy(error: &io::Error, purpose: &str) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied if purpose == TRANSPARENT => {
            "; start as root, or by a socket unit with Transparent=yes"
        }
        io::ErrorKind::AddrInUse => "; end the program that holds this port, or choose another in [listen]",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE or a socket unit",
        _ => "",
    }
}

/// Opens `count` non-blocking listeners on `address`.
///
/// With port 0 the kernel chooses one port for all. Sockets that share a port by SO_REUSEPORT would
/// also share it with another process of this user, so a first socket without it makes sure that the
/// port is free.
pub fn open(address: SocketAddr, count: usize, purpose: &'static str) -> Result<Vec<TcpListener>, ListenError> {
    open_with(address, count, purpose, |_| Ok(()))
}

/// As [`open`], with IP_TRANSPARENT or IPV6_TRANSPARENT (ip(7)), without which TPROXY delivers nothing.
/// Takes CAP_NET_ADMIN or CAP_NET_RAW, for this call alone.
pub fn open_transparent(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, ListenError> {
    let transparent = |socket: &Socket| match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    };
    open_with(address, count, TRANSPARENT, transparent)
}

fn open_with(
    address: SocketAddr,
    count: usize,
    purpose: &'static str,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> Result<Vec<TcpListener>, ListenError> {
    let fail = |source| ListenError { address, purpose, source };
    let probe = socket(address, false).map_err(fail)?;
    let address = probe.local_addr().ok().and_then(|local| local.as_socket()).unwrap_or(address);
    drop(probe);
    (0..count.max(1))
        .map(|_| {
            let socket = socket(address, true)?;
            prepare(&socket)?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(TcpListener::from(socket))
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(fail)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listeners_of_one_address_share_its_port() {
        let listeners = open("127.0.0.1:0".parse().unwrap(), 3, "test").unwrap();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
    }

    #[test]
    fn a_port_in_use_is_an_error_with_a_remedy_even_for_a_second_outgate() {
        let first = open("127.0.0.1:0".parse().unwrap(), 2, "proxy").unwrap();
        let error = open(first[0].local_addr().unwrap(), 2, "proxy").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("choose another in [listen]"), "{error}");
    }
}
