//! Listening sockets that the service manager opened and passed to the daemon (sd_listen_fds(3)). So the daemon
//! needs no privilege for its listeners, and connections that arrive during a restart wait in them.
//!
//! A socket belongs to the listener with its address, whatever the name of its unit.

use super::listen::{ListenError, SocketUse};
use super::socket_unit;
use listenfd::ListenFd;
use socket2::SockRef;
use std::fmt::Write;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// The variable with the number of inherited sockets; empty or absent for none.
const LISTEN_FDS: &str = "LISTEN_FDS";
/// The variable with each socket's name. By default this is the name of its unit (systemd.socket(5)).
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// The inherited sockets that were not taken yet.
#[derive(Debug)]
pub(super) struct Inherited {
    tcp: Vec<(SocketAddr, TcpListener)>,
    udp: Vec<(SocketAddr, UdpSocket)>,
    /// What each socket is for, judged by its unit's name, where the unit is one of ours.
    units: Vec<(SocketUse, SocketAddr)>,
}

/// A configured listener for which no socket was inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What it is for.
    pub kind: SocketUse,
    /// Its address.
    pub address: SocketAddr,
}

impl Inherited {
    /// Takes over the sockets that the service manager left for this process; `None` if it opened none.
    pub(super) fn take() -> Result<Option<Inherited>, ListenError> {
        if std::env::var_os(LISTEN_FDS).is_none_or(|count| count.is_empty()) {
            return Ok(None);
        }
        let names = std::env::var(LISTEN_FDNAMES).unwrap_or_default();
        let mut names = names.split(':');
        let mut all = ListenFd::from_env();
        if all.len() == 0 {
            // They were left for another process.
            return Ok(None);
        }
        let mut inherited = Inherited { tcp: Vec::new(), udp: Vec::new(), units: Vec::new() };
        for index in 0..all.len() {
            let at = inherited.sort_in(&mut all, index).map_err(|source| ListenError::Inherited { index, source })?;
            inherited.units.extend(names.next().and_then(SocketUse::of_unit).zip(at));
        }
        Ok(Some(inherited))
    }

    /// Takes one socket and returns its address; `None` where no socket has this number.
    fn sort_in(&mut self, all: &mut ListenFd, index: usize) -> io::Result<Option<SocketAddr>> {
        if let Ok(Some(udp)) = all.take_udp_socket(index) {
            udp.set_nonblocking(true)?;
            let at = udp.local_addr()?;
            self.udp.push((at, udp));
            return Ok(Some(at));
        }
        if let Some(tcp) = all.take_tcp_listener(index)? {
            if !SockRef::from(&tcp).is_listener()? {
                return Err(io::Error::other("it is a connection; the socket unit must not have Accept=yes"));
            }
            tcp.set_nonblocking(true)?;
            let at = tcp.local_addr()?;
            self.tcp.push((at, tcp));
            return Ok(Some(at));
        }
        Ok(None)
    }

    /// Returns what each socket is for, judged by its unit's name.
    pub(super) fn units(&self) -> &[(SocketUse, SocketAddr)] {
        &self.units
    }

    /// Takes all listeners at the address.
    pub(super) fn tcp(&mut self, kind: SocketUse, address: SocketAddr) -> Result<Vec<TcpListener>, ListenError> {
        let found = extract(&mut self.tcp, address);
        for listener in &found {
            let socket = SockRef::from(listener);
            let transparent = if address.is_ipv4() { socket.ip_transparent_v4() } else { socket.ip_transparent_v6() };
            let transparent = transparent.map_err(|source| ListenError::Open { address, kind, source })?;
            if transparent != kind.is_transparent() {
                // Put them back: no connection must wait in them unserved.
                self.tcp.extend(found.into_iter().map(|listener| (address, listener)));
                return Err(ListenError::Transparency { address, kind });
            }
        }
        Ok(found)
    }

    /// Takes all datagram sockets at the address.
    pub(super) fn udp(&mut self, address: SocketAddr) -> Vec<UdpSocket> {
        extract(&mut self.udp, address)
    }

    /// Returns the sockets that no configured listener has taken.
    pub(super) fn rest(self) -> (Vec<TcpListener>, Vec<UdpSocket>) {
        let tcp = self.tcp.into_iter().map(|(_, listener)| listener).collect();
        (tcp, self.udp.into_iter().map(|(_, socket)| socket).collect())
    }
}

fn extract<T>(from: &mut Vec<(SocketAddr, T)>, address: SocketAddr) -> Vec<T> {
    // Not the whole address: a scope or a flow label does not make it another listener.
    let same = |at: &SocketAddr| (at.ip(), at.port()) == (address.ip(), address.port());
    from.extract_if(.., |(at, _)| same(at)).map(|(_, socket)| socket).collect()
}

/// Returns an error for the configured listeners that the socket units do not hold. `units` returns what
/// systemctl(1) shows as `Listen` of the units that may hold such a listener.
pub fn not_held(
    configured: &[(SocketUse, SocketAddr)],
    units: impl Fn(SocketUse, SocketAddr) -> String,
) -> Option<ListenError> {
    let configured = configured.iter().map(|&(kind, address)| Missing { kind, address });
    let missing = configured.filter(|Missing { kind, address }| {
        let shown = units(*kind, *address);
        !socket_unit::holds(&shown, *kind, *address)
    });
    let missing: Vec<Missing> = missing.collect();
    (!missing.is_empty()).then_some(ListenError::Missing(missing))
}

/// Returns the text for an operator whose configuration has listeners that no socket unit holds.
pub(super) fn remedy(missing: &[Missing]) -> String {
    let mut text = String::new();
    for Missing { kind, address } in missing {
        _ = writeln!(text, "no socket unit listens on {address}, which {} has", kind.key());
    }
    text.push_str("Run `outgate listen apply` as root, or take the address out of the configuration.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_unit_holds_is_told_by_what_systemctl_shows() {
        let at = |kind, address: &str| (kind, address.parse().unwrap());
        let configured = [at(SocketUse::Proxy, "127.0.0.1:3128"), at(SocketUse::Dns, "[fd42::1]:53")];
        let shown = |dns: &str| {
            let dns = dns.to_owned();
            move |kind, _| match kind {
                SocketUse::Dns => dns.clone(),
                _ => "127.0.0.1:3128 (Stream)\n127.0.0.1:3128 (Stream)".to_owned(),
            }
        };
        assert!(not_held(&configured, shown("[fd42::1]:53 (Datagram)\n[fd42::1]:53 (Stream)")).is_none());
        for lacking in ["", "[fd42::1]:53 (Stream)", "[fd42::1]:5353 (Stream)\n[fd42::1]:5353 (Datagram)"] {
            let error = not_held(&configured, shown(lacking)).unwrap().to_string();
            assert_eq!(
                error,
                "no socket unit listens on [fd42::1]:53, which [listen].dns has\n\
                 Run `outgate listen apply` as root, or take the address out of the configuration."
            );
        }
    }
}
