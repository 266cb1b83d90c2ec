//! Opens listening sockets: one per worker thread on the same port (SO_REUSEPORT), so that each thread accepts
//! for itself. A port that another process holds is an error.

use super::inherit::Missing;
use super::socket_unit;
use crate::listener::ListenerKind;
use outgate_proto::enum_of_words;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Length of the queue of connections not yet accepted.
const BACKLOG: i32 = 4096;

enum_of_words! {
    /// What a listening socket is for: one for each key of `[listen]` that names addresses. Sockets are opened,
    /// inherited, checked and listed in this order.
    pub enum SocketUse {
        /// The explicit proxy.
        Proxy = "[listen].proxy",
        /// The same inside TLS.
        ProxyTls = "[listen].proxy_tls",
        /// Guests' connections brought by TPROXY.
        Transparent = "[listen].transparent",
        /// Host users' connections brought by REDIRECT.
        Redirect = "[listen].redirect",
        /// The guests' resolver.
        Dns = "[listen].dns",
        /// Metrics and health.
        Admin = "[listen].admin",
        /// The same inside TLS.
        AdminTls = "[listen].admin_tls",
    }
    /// Returns the key in the configuration.
    pub fn key
}

impl SocketUse {
    /// Returns the kind of listener that its connections come through; `None` where they are no flows of guests.
    pub const fn listener_kind(self) -> Option<ListenerKind> {
        match self {
            SocketUse::Proxy => Some(ListenerKind::Proxy),
            SocketUse::ProxyTls => Some(ListenerKind::ProxyTls),
            SocketUse::Transparent => Some(ListenerKind::Transparent),
            SocketUse::Redirect => Some(ListenerKind::Redirect),
            SocketUse::Dns | SocketUse::Admin | SocketUse::AdminTls => None,
        }
    }

    /// Whether it has a single socket, which no worker thread serves.
    pub(super) const fn is_single(self) -> bool {
        match self {
            SocketUse::Admin | SocketUse::AdminTls => true,
            SocketUse::Proxy | SocketUse::ProxyTls | SocketUse::Transparent | SocketUse::Redirect | SocketUse::Dns => {
                false
            }
        }
    }

    /// Whether its sockets have IP_TRANSPARENT.
    pub(super) const fn is_transparent(self) -> bool {
        match self {
            SocketUse::Transparent => true,
            SocketUse::Proxy
            | SocketUse::ProxyTls
            | SocketUse::Redirect
            | SocketUse::Dns
            | SocketUse::Admin
            | SocketUse::AdminTls => false,
        }
    }

    /// Whether it has a datagram socket beside each listener.
    pub const fn has_datagrams(self) -> bool {
        match self {
            SocketUse::Dns => true,
            SocketUse::Proxy
            | SocketUse::ProxyTls
            | SocketUse::Transparent
            | SocketUse::Redirect
            | SocketUse::Admin
            | SocketUse::AdminTls => false,
        }
    }

    /// Returns what a unit of this name holds; of two kinds, the one without TLS. `None`: it is not one of our units.
    pub fn of_unit(name: &str) -> Option<SocketUse> {
        // The one without TLS comes first.
        SocketUse::ALL.into_iter().find(|kind| kind.unit() == name).or_else(|| socket_unit::use_of(name))
    }

    /// The package's socket unit that holds such listeners.
    pub const fn unit(self) -> &'static str {
        match self {
            SocketUse::Proxy | SocketUse::ProxyTls => "outgate.socket",
            SocketUse::Transparent => "outgate-transparent.socket",
            SocketUse::Redirect => "outgate-redirect.socket",
            SocketUse::Dns => "outgate-dns.socket",
            SocketUse::Admin | SocketUse::AdminTls => "outgate-admin.socket",
        }
    }
}

/// Why listening sockets are not available, with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A socket cannot be opened.
    #[error("cannot listen on {address} ({}): {source}{}", .kind.key(), open_remedy(.source, *.kind))]
    Open {
        /// The address.
        address: SocketAddr,
        /// Its use.
        kind: SocketUse,
        /// The kernel's error.
        source: io::Error,
    },
    /// A socket from the service manager is not usable.
    #[error("socket {index} of those that the service manager handed over cannot be used: {source}")]
    Inherited {
        /// Its index, from 0; its descriptor number is 3 more.
        index: usize,
        /// Why.
        source: io::Error,
    },
    /// The service manager handed over sockets, but not for these listeners.
    #[error("{}", super::inherit::remedy(.0))]
    Missing(Vec<Missing>),
    /// A socket from the service manager has IP_TRANSPARENT where it must not, or lacks it where it must have it.
    #[error(
        "{address} ({}) {} below [Socket], by `systemctl edit {unit}`; then run `systemctl stop {unit}` and \
         `systemctl restart outgate.service`",
        .kind.key(), transparency(*.kind), unit = .kind.unit()
    )]
    Transparency {
        /// The address.
        address: SocketAddr,
        /// Its use.
        kind: SocketUse,
    },
}

fn open_remedy(error: &io::Error, kind: SocketUse) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied if kind.is_transparent() => {
            "; start as root, or by a socket unit with Transparent=yes"
        }
        io::ErrorKind::AddrInUse => "; end the program that holds this port, or choose another in [listen]",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE or a socket unit",
        _ => "",
    }
}

fn transparency(kind: SocketUse) -> &'static str {
    match kind.is_transparent() {
        true => "came without IP_TRANSPARENT, so it would get no guest's connection: write Transparent=yes",
        false => "came with IP_TRANSPARENT, which is for [listen].transparent alone: write Transparent=no",
    }
}

/// Opens `count` non-blocking listeners on `address`.
///
/// With port 0 the kernel chooses one port for all. Sockets that share a port by SO_REUSEPORT would
/// also share it with another process of this user, so a first socket without it makes sure that the
/// port is free.
pub(super) fn open(address: SocketAddr, count: usize, kind: SocketUse) -> Result<Vec<TcpListener>, ListenError> {
    open_with(address, count, kind, |_| Ok(()))
}

/// Works as [`open`], with IP_TRANSPARENT or IPV6_TRANSPARENT (ip(7)), without which TPROXY delivers nothing.
/// Requires CAP_NET_ADMIN or CAP_NET_RAW, for this call alone.
pub(super) fn open_transparent(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, ListenError> {
    let transparent = |socket: &Socket| match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    };
    open_with(address, count, SocketUse::Transparent, transparent)
}

fn open_with(
    address: SocketAddr,
    count: usize,
    kind: SocketUse,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> Result<Vec<TcpListener>, ListenError> {
    let fail = |source| ListenError::Open { address, kind, source };
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
        let listeners = open("127.0.0.1:0".parse().unwrap(), 3, SocketUse::Proxy).unwrap();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
    }

    #[test]
    fn a_port_in_use_is_an_error_with_a_remedy_even_for_a_second_outgate() {
        let first = open("127.0.0.1:0".parse().unwrap(), 2, SocketUse::Proxy).unwrap();
        let error = open(first[0].local_addr().unwrap(), 2, SocketUse::Proxy).unwrap_err();
        assert!(matches!(&error, ListenError::Open { source, .. } if source.kind() == io::ErrorKind::AddrInUse));
        assert!(error.to_string().contains("choose another in [listen]"), "{error}");
    }
}
