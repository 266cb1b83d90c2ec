//! The kernel settings of guests' interfaces.

use super::Plan;
use crate::host::{self, Host};

/// Bytes of packets, with the kernel's overhead for each, that wait for one neighbour to be resolved: about five
/// replies.
const UNRESOLVED: &str = "4096";

impl Plan {
    /// Returns the kernel settings of guests' interfaces, as lines of sysctl.conf(5).
    pub fn sysctl_lines(&self, host: &Host) -> Vec<String> {
        let settings = self.sysctls(host);
        settings.into_iter().map(|(path, value)| format!("{} = {value}", sysctl_name(&path))).collect()
    }

    /// Returns the kernel settings that guests' interfaces should have, by path.
    pub(crate) fn sysctls(&self, host: &Host) -> Vec<(String, &'static str)> {
        let mut settings = Vec::new();
        for link in self.guest_links(host) {
            let name = &link.name;
            for (key, value) in [
                // A second layer behind the ruleset's spoof check, in case somebody flushes it.
                ("rp_filter", "1"),
                // 127.0.0.0/8 stays this machine's own.
                ("route_localnet", "0"),
                ("accept_redirects", "0"),
                ("send_redirects", "0"),
                ("accept_source_route", "0"),
                // No unsolicited sender becomes a neighbour; requests are counted.
                ("arp_accept", "0"),
            ] {
                settings.push((format!("/proc/sys/net/ipv4/conf/{name}/{key}"), value));
            }
            // Packets that wait for a guest without an ARP reply still count in the send buffer of their socket,
            // and all guests share that of DNS. The kernel keeps the newest packet in any case.
            settings.push((format!("/proc/sys/net/ipv4/neigh/{name}/unres_qlen_bytes"), UNRESOLVED));
            if host.ipv6 {
                for key in ["accept_ra", "accept_redirects", "accept_source_route", "accept_untracked_na"] {
                    settings.push((format!("/proc/sys/net/ipv6/conf/{name}/{key}"), "0"));
                }
                settings.push((format!("/proc/sys/net/ipv6/neigh/{name}/unres_qlen_bytes"), UNRESOLVED));
            }
        }
        settings
    }

    /// Returns those of the kernel settings that currently differ, one sentence each.
    pub(crate) fn other_sysctls(&self, host: &Host) -> Vec<String> {
        let other = |(path, value): (String, &'static str)| {
            let now = host::sysctl(&path).filter(|now| now != value)?;
            Some(format!("{path} is {now} and should be {value}"))
        };
        self.sysctls(host).into_iter().filter_map(other).collect()
    }
}

fn sysctl_name(path: &str) -> String {
    // sysctl(8) accepts slashes, which names that contain dots require.
    path.trim_start_matches("/proc/sys/").to_owned()
}
