//! The socket units that `outgate listen apply` writes: one for each address of `[listen]` (systemd.socket(5)).

use super::listen::SocketUse;
use std::fmt::Write;
use std::net::SocketAddr;

/// How the names of these units begin.
pub const PREFIX: &str = "outgate-listen-";
/// How the names of socket units end.
const SUFFIX: &str = ".socket";
/// How often a unit lists one address at most. More threads than that share these sockets.
const MOST_LINES: usize = 4;

/// Returns the name of the unit for this listener, such as `outgate-listen-dns-10.42.42.1-53.socket`.
pub fn name(kind: SocketUse, address: SocketAddr) -> String {
    // A unit's name may have colons, but no brackets and no percent sign (systemd.unit(5)).
    let host = address.to_string();
    let host = host.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']).replace('%', "_");
    format!("{PREFIX}{}-{host}-{}{SUFFIX}", word(kind), address.port())
}

/// Returns what the unit of this name is for; `None` if it is not one of these.
pub(super) fn use_of(name: &str) -> Option<SocketUse> {
    let rest = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let named = |kind: &SocketUse| rest.strip_prefix(&word(*kind)).is_some_and(|rest| rest.starts_with('-'));
    // `proxy-tls` begins with `proxy` too.
    SocketUse::ALL.into_iter().filter(named).max_by_key(|kind| word(*kind).len())
}

/// The key's last word, as names of units have it.
fn word(kind: SocketUse) -> String {
    kind.key().trim_start_matches("[listen].").replace('_', "-")
}

/// Whether the sockets that systemctl(1) shows as `Listen` of units are all that this listener requires.
pub fn holds(shown: &str, kind: SocketUse, address: SocketAddr) -> bool {
    let has = |way: &str| shown.lines().any(|line| line == format!("{address} ({way})"));
    has("Stream") && (!kind.has_datagrams() || has("Datagram"))
}

/// Returns the text of the unit; `source` is the configuration file, `cpus` the number of worker threads, which have a socket
/// each.
pub fn text(kind: SocketUse, address: SocketAddr, source: &str, cpus: usize) -> String {
    let mut text = format!(
        "# Written by `outgate listen apply` from [listen] of {source}, which replaces and removes this file.\n\
         [Unit]\n\
         Description=Egress proxy: {} {address}\n\
         Documentation=man:outgate(1)\n\n\
         [Socket]\n\
         Service=outgate.service\n",
        kind.key(),
    )
    // The `%` of a scope; a single one would begin a specifier (systemd.unit(5)).
    .replace(&address.to_string(), &address.to_string().replace('%', "%%"));
    for line in socket(kind, address, cpus) {
        _ = writeln!(text, "{line}");
    }
    text.push_str("\n[Install]\nWantedBy=sockets.target outgate.service\n");
    text
}

/// Returns the lines below `[Socket]`, without `Service=`.
fn socket(kind: SocketUse, address: SocketAddr, cpus: usize) -> Vec<String> {
    let each = if kind.is_single() { 1 } else { cpus.clamp(1, MOST_LINES) };
    let address = address.to_string().replace('%', "%%");
    let mut lines = Vec::new();
    if kind.has_datagrams() {
        lines.extend((0..each).map(|_| format!("ListenDatagram={address}")));
    }
    lines.extend((0..each).map(|_| format!("ListenStream={address}")));
    if kind.is_transparent() {
        lines.push("Transparent=yes".to_owned());
    }
    if !kind.is_single() {
        lines.push("ReusePort=yes".to_owned());
    }
    // The interface may come later.
    lines.extend(["FreeBind=yes", "BindIPv6Only=ipv6-only"].map(str::to_owned));
    if !kind.is_single() {
        lines.push("Backlog=4096".to_owned());
    }
    lines.push("NoDelay=yes".to_owned());
    if kind.has_datagrams() {
        // Replies for addresses that answer no ARP wait in the send buffer, 4 KiB for each.
        lines.extend(["ReceiveBuffer=1M", "SendBuffer=8M"].map(str::to_owned));
    }
    // Connections wait while the daemon restarts, and however often it does.
    lines.push("TriggerLimitIntervalSec=0".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_its_unit_is_for() {
        for (kind, address, wanted) in [
            (SocketUse::Dns, "10.42.42.1:53", "outgate-listen-dns-10.42.42.1-53.socket"),
            (SocketUse::ProxyTls, "[fd42::1]:3443", "outgate-listen-proxy-tls-fd42::1-3443.socket"),
            (SocketUse::Transparent, "[::]:3129", "outgate-listen-transparent-::-3129.socket"),
            (SocketUse::Admin, "127.0.0.1:3190", "outgate-listen-admin-127.0.0.1-3190.socket"),
            (SocketUse::AdminTls, "127.0.0.1:3191", "outgate-listen-admin-tls-127.0.0.1-3191.socket"),
            (SocketUse::Proxy, "[fe80::1%3]:3128", "outgate-listen-proxy-fe80::1_3-3128.socket"),
        ] {
            let name = name(kind, address.parse().unwrap());
            assert_eq!(name, wanted);
            assert_eq!(use_of(&name), Some(kind));
        }
        for other in ["outgate.socket", "outgate-listen-.socket", "outgate-listen-dns.socket", "outgate-listen-dns-1-2"]
        {
            assert_eq!(use_of(other), None, "{other}");
        }
    }

    /// What the package's units have is what `listen apply` would write for the same addresses.
    #[test]
    fn the_units_of_the_package_have_the_same_sockets() {
        for kind in SocketUse::ALL {
            let path = format!("{}/systemd/{}", env!("CARGO_MANIFEST_DIR"), kind.unit());
            let unit = std::fs::read_to_string(&path).unwrap();
            let section = unit.split("[Socket]\n").nth(1).unwrap().split("\n[").next().unwrap();
            let lines: Vec<&str> =
                section.lines().filter(|line| line.contains('=') && !line.starts_with('#')).collect();
            let addresses: std::collections::BTreeSet<SocketAddr> =
                lines.iter().filter_map(|line| line.strip_prefix("ListenStream=")?.parse().ok()).collect();
            let mut wanted = vec!["Service=outgate.service".to_owned()];
            for address in addresses {
                wanted.extend(
                    socket(kind, address, MOST_LINES)
                        .into_iter()
                        .filter(|line| !wanted.contains(line))
                        .collect::<Vec<_>>(),
                );
            }
            wanted.sort();
            let mut lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
            lines.sort();
            assert_eq!(lines, wanted, "{path}");
        }
    }

    #[test]
    fn a_scope_is_no_specifier() {
        let text = text(SocketUse::Proxy, "[fe80::1%3]:3128".parse().unwrap(), "/etc/outgate/outgate.toml", 2);
        assert!(
            text.contains("\nListenStream=[fe80::1%%3]:3128\nListenStream=[fe80::1%%3]:3128\nReusePort=yes\n"),
            "{text}"
        );
        assert!(text.contains("Description=Egress proxy: [listen].proxy [fe80::1%%3]:3128\n"), "{text}");
    }
}
