//! The sockets of a guest that only root can make. `outgate verify` makes each where it is needed; the proof's probe
//! has no rights, and is given them.

use super::addresses::{Addresses, Family};
use super::packet::{ESP, GRE, ICMP, ICMP6, SCTP};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// One such socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::cli) enum Kind {
    /// A raw one of a protocol.
    Raw(Family, u8),
    /// UDP from the sentinel's address.
    AsSentinel(Family),
    /// UDP from nobody's address.
    AsNobody(Family),
}

impl Kind {
    /// Returns all of a family.
    pub(in crate::cli) fn of(family: Family) -> [Kind; 6] {
        let echo = if family == Family::V4 { ICMP } else { ICMP6 };
        let [echo, gre, esp, sctp] = [echo, GRE, ESP, SCTP].map(|protocol| Kind::Raw(family, protocol));
        [echo, gre, esp, sctp, Kind::AsSentinel(family), Kind::AsNobody(family)]
    }

    /// Makes it; the calling thread is in the guest's namespace.
    ///
    /// # Errors
    /// Those of the system.
    pub(in crate::cli) fn make(self, addresses: &Addresses) -> io::Result<Socket> {
        let Addresses { sentinel, nobody, guests: [own, _], .. } = *addresses;
        match self {
            Kind::Raw(_, protocol) => bound(own, Type::RAW, Some(Protocol::from(i32::from(protocol))), false),
            Kind::AsSentinel(_) => bound(sentinel, Type::DGRAM, None, true),
            Kind::AsNobody(_) => bound(nobody, Type::DGRAM, None, true),
        }
    }
}

fn bound(own: IpAddr, kind: Type, protocol: Option<Protocol>, is_foreign: bool) -> io::Result<Socket> {
    let own = SocketAddr::new(own, 0);
    let socket = Socket::new(Domain::for_address(own), kind, protocol)?;
    if is_foreign && own.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else if is_foreign {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.bind(&own.into())?;
    Ok(socket)
}

/// Where they come from.
#[derive(Debug)]
pub(in crate::cli) enum Sockets {
    /// They are made.
    Made,
    /// They were given.
    Given(Vec<(Kind, Socket)>),
}

impl Sockets {
    /// Returns one.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::NotFound`] if it was not given.
    pub(super) fn get(&self, kind: Kind, addresses: &Addresses) -> io::Result<Socket> {
        match self {
            Sockets::Made => kind.make(addresses),
            Sockets::Given(all) => {
                let found = all.iter().find(|(given, _)| *given == kind);
                let none = || io::Error::new(io::ErrorKind::NotFound, "root could not make the socket for it");
                found.ok_or_else(none)?.1.try_clone()
            }
        }
    }
}
