//! Listening sockets that the service manager opened and passed to the daemon (sd_listen_fds(3)). So the daemon
//! needs no privilege for its listeners, and connections that arrive during a restart wait in them.
//!
//! A socket belongs to the listener with its address, whatever the name of its unit.

use super::listen::{ListenError, SocketUse};
use listenfd::ListenFd;
use socket2::SockRef;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// The variable with the number of inherited sockets; empty or absent for none.
const LISTEN_FDS: &str = "LISTEN_FDS";
/// The variable with each socket's name. By default this is the name of its unit (systemd.socket(5)).
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// How often a drop-in lists one address at most, as the units do. More threads than that share these sockets.
const MOST_LINES: usize = 4;
/// Of a unit's drop-ins, systemd applies the last one by name last, and an empty line in it removes what
/// earlier ones set. So this name sorts after `override.conf`, which is where `systemctl edit` writes.
const DROP_IN: &str = "zz-listen.conf";

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
/// systemctl(1) shows of a unit's `Listen`, by kind; `each` is the number of worker threads.
pub fn not_held(
    configured: &[(SocketUse, SocketAddr)],
    each: usize,
    units: impl Fn(SocketUse) -> String,
) -> Option<ListenError> {
    let configured: Vec<Missing> = configured.iter().map(|&(kind, address)| Missing { kind, address }).collect();
    let is_missing = |listener: &&Missing| {
        let shown = units(listener.kind);
        let has = |way: &str| shown.contains(&format!("{} ({way})", listener.address));
        !(has("Stream") && (!listener.kind.has_datagrams() || has("Datagram")))
    };
    let missing: Vec<Missing> = configured.iter().filter(is_missing).copied().collect();
    (!missing.is_empty()).then_some(ListenError::Missing { missing, configured, each })
}

/// Returns the text for an operator whose configuration has listeners that no socket unit holds: which ones,
/// and the whole drop-in for each unit. `configured` are all listeners, since a drop-in replaces what the unit
/// has; `each` is the number of worker threads, which have one socket each.
///
/// The commands work whether the daemon runs or not, and while clients try to connect. A connection to a socket
/// that is still listening starts the daemon, and systemd starts no socket of a running daemon. So the sockets
/// are stopped first. They come back with the service, which wants the enabled ones.
pub(super) fn remedy(missing: &[Missing], configured: &[Missing], each: usize) -> String {
    let mut text = String::new();
    let mut units: BTreeMap<&str, SocketUse> = BTreeMap::new();
    for Missing { kind, address } in missing {
        _ = writeln!(text, "no socket unit listens on {address}, which {} has", kind.key());
        units.insert(kind.unit(), *kind);
    }
    for (unit, kind) in &units {
        let mine = configured.iter().filter(|listener| listener.kind.unit() == *unit);
        _ = write!(text, "\nWrite into /etc/systemd/system/{unit}.d/{DROP_IN}:\n\n{}", drop_in(*kind, mine, each));
    }
    let names = units.keys().copied().collect::<Vec<_>>().join(" ");
    _ = write!(
        text,
        "\nand then:\n\n    systemctl daemon-reload\n    systemctl enable {names}\n    systemctl stop {names}\n    \
         systemctl restart outgate.service\n\n\
         Or take the address out of the configuration."
    );
    text
}

fn drop_in<'a>(kind: SocketUse, listeners: impl Iterator<Item = &'a Missing>, each: usize) -> String {
    // The empty line removes what the unit has, for every Listen key, and so also what an earlier drop-in set
    // (systemd.socket(5)). There must not be a second one.
    let mut text = String::from("    [Socket]\n    ListenStream=\n");
    for Missing { kind, address } in listeners {
        let keys: &[&str] = if kind.has_datagrams() { &["ListenStream", "ListenDatagram"] } else { &["ListenStream"] };
        let each = if kind.is_single() { 1 } else { each.min(MOST_LINES) };
        // The `%` of a scope; a single one would begin a specifier (systemd.unit(5)).
        let address = address.to_string().replace('%', "%%");
        for key in keys {
            (0..each).for_each(|_| _ = writeln!(text, "    {key}={address}"));
        }
    }
    text.push_str("    ReusePort=yes\n    FreeBind=yes\n    BindIPv6Only=ipv6-only\n");
    if kind.is_transparent() {
        text.push_str("    Transparent=yes\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(kind: SocketUse, address: &str) -> Missing {
        Missing { kind, address: address.parse().unwrap() }
    }

    #[test]
    fn what_no_unit_holds_is_told_by_what_systemctl_shows() {
        let at = |kind, address: &str| (kind, address.parse().unwrap());
        let configured = [at(SocketUse::Proxy, "127.0.0.1:3128"), at(SocketUse::Dns, "[fd42::1]:53")];
        let shown = |dns: &str| {
            let dns = dns.to_owned();
            move |kind| {
                if kind == SocketUse::Dns {
                    dns.clone()
                } else {
                    "127.0.0.1:3128 (Stream)\n127.0.0.1:3128 (Stream)".to_owned()
                }
            }
        };
        assert!(not_held(&configured, 2, shown("[fd42::1]:53 (Datagram)\n[fd42::1]:53 (Stream)")).is_none());
        for lacking in ["", "[fd42::1]:53 (Stream)", "[fd42::1]:5353 (Stream)\n[fd42::1]:5353 (Datagram)"] {
            let error = not_held(&configured, 2, shown(lacking)).unwrap().to_string();
            assert!(error.starts_with("no socket unit listens on [fd42::1]:53, which [listen].dns has\n\n"), "{error}");
        }
    }

    #[test]
    fn the_remedy_names_what_is_missing_and_has_all_addresses_of_its_unit() {
        let missing = [listener(SocketUse::Dns, "10.42.42.1:53"), listener(SocketUse::Transparent, "[::]:3129")];
        let configured = [
            listener(SocketUse::Proxy, "127.0.0.1:3128"),
            listener(SocketUse::Transparent, "0.0.0.0:3129"),
            missing[1],
            missing[0],
        ];
        let text = remedy(&missing, &configured, 2);
        assert!(text.starts_with(
            "no socket unit listens on 10.42.42.1:53, which [listen].dns has\n\
             no socket unit listens on [::]:3129, which [listen].transparent has\n\n"
        ));
        let dns = "/etc/systemd/system/outgate-dns.socket.d/zz-listen.conf:\n\n    [Socket]\n    ListenStream=\n    \
                   ListenStream=10.42.42.1:53\n    ListenStream=10.42.42.1:53\n    \
                   ListenDatagram=10.42.42.1:53\n    ListenDatagram=10.42.42.1:53\n    ReusePort=yes\n";
        assert!(text.contains(dns), "{text}");
        let transparent = "outgate-transparent.socket.d/zz-listen.conf:\n\n    [Socket]\n    ListenStream=\n    \
                           ListenStream=0.0.0.0:3129\n    ListenStream=0.0.0.0:3129\n    ListenStream=[::]:3129\n    \
                           ListenStream=[::]:3129\n    ReusePort=yes\n    FreeBind=yes\n    \
                           BindIPv6Only=ipv6-only\n    Transparent=yes\n";
        assert!(text.contains(transparent), "{text}");
        assert!(text.contains("systemctl stop outgate-dns.socket outgate-transparent.socket\n"), "{text}");
        assert!(!text.contains("3128"), "{text}");
    }

    #[test]
    fn listeners_of_two_keys_that_share_a_unit_are_both_in_its_drop_in() {
        let missing = [listener(SocketUse::AdminTls, "10.0.0.1:3191")];
        let text = remedy(&missing, &[listener(SocketUse::Admin, "127.0.0.1:3190"), missing[0]], 2);
        let both = "outgate-admin.socket.d/zz-listen.conf:\n\n    [Socket]\n    ListenStream=\n    \
                    ListenStream=127.0.0.1:3190\n    ListenStream=10.0.0.1:3191\n    ReusePort=yes\n";
        assert!(text.contains(both), "{text}");
    }

    /// Returns what the socket holds by systemd.socket(5): an empty assignment to any Listen key resets the list.
    fn held(drop_in: &str) -> Vec<(&str, &str)> {
        let mut held = vec![("ListenStream", "what the unit has")];
        for (key, value) in drop_in.lines().filter_map(|line| line.trim().split_once('=')) {
            match (key.starts_with("Listen"), value) {
                (true, "") => held.clear(),
                (true, _) => held.push((key, value)),
                _ => {}
            }
        }
        held
    }

    #[test]
    fn a_drop_in_leaves_exactly_the_configured_listeners_for_every_kind() {
        for kind in SocketUse::ALL {
            for each in [1, 2, 4, 64] {
                let all = [listener(kind, "10.42.42.1:5300"), listener(kind, "[fd42::1]:5300")];
                let text = drop_in(kind, all.iter(), each);
                let held = held(&text);
                for listener in &all {
                    let address = listener.address.to_string();
                    let of = |key| held.iter().filter(|(name, value)| *name == key && *value == address).count();
                    assert_eq!(of("ListenStream"), if kind.is_single() { 1 } else { each.min(4) }, "{kind:?}: {text}");
                    assert_eq!(
                        of("ListenDatagram"),
                        if kind == SocketUse::Dns { each.min(4) } else { 0 },
                        "{kind:?}: {text}"
                    );
                }
                assert!(!held.iter().any(|(_, value)| value.contains("unit")), "{text}");
            }
        }
    }
}
