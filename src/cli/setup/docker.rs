//! Docker on this machine: whether dockerd is there, which of its files and flags count, and which containers run.

use outgate::firewall::docker::{Dockerd, begins_network, daemon_file, is_installed, is_network, option};
use outgate::firewall::{fits, interface_addresses};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The bridge that dockerd makes.
const BRIDGE: &str = "docker0";
/// Its address if nothing says otherwise.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1));

/// dockerd, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Docker {
    pub(super) is_installed: bool,
    running: Option<Dockerd>,
    /// The arguments that it runs with, or that its unit gives it.
    arguments: Vec<String>,
}

impl Docker {
    /// Looks. `unit` is the ExecStart= of docker.service, as systemctl(1) shows it; empty if there is none.
    pub(super) fn look(unit: &str) -> Docker {
        let running = Dockerd::running();
        let of_unit = || unit.split([' ', ';']).map(str::to_owned).collect();
        Docker {
            is_installed: running.is_some() || !unit.is_empty() || is_installed(),
            arguments: running.as_ref().map_or_else(of_unit, |running| running.arguments.clone()),
            running,
        }
    }

    /// Whether it runs.
    pub(super) fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it runs since before this file was written.
    pub(super) fn is_older_than(&self, file: &Path) -> bool {
        self.running.as_ref().is_some_and(|running| running.is_older_than(file))
    }

    /// The file that dockerd reads.
    pub(super) fn file(&self) -> PathBuf {
        daemon_file(&self.arguments)
    }

    /// The servers that flags name. dockerd does not start where the file names some too.
    pub(super) fn servers(&self) -> Vec<&str> {
        option(&self.arguments, "--dns").collect()
    }
}

/// Whether containers' traffic may enter by an interface of this name or pattern.
pub(super) fn carries_containers(name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(stem) => fits(name, BRIDGE) || "br-".starts_with(stem) || begins_network(stem),
        None => name == BRIDGE || is_network(name),
    }
}

/// Whether a name or pattern can be meant for nothing but Docker's bridges.
pub(super) fn is_for_containers(name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(stem) => stem.starts_with("docker") || stem == "br-" || begins_network(stem),
        None => carries_containers(name),
    }
}

/// The address of docker0 or, before it exists, the one that it will have: `bip` of the file, or Docker's default.
pub(super) fn address(bip: Option<IpAddr>) -> IpAddr {
    let of_bridge = interface_addresses()
        .unwrap_or_default()
        .into_iter()
        .find_map(|address| (address.interface == BRIDGE && address.net.addr().is_ipv4()).then(|| address.net.addr()));
    of_bridge.or(bip).unwrap_or(ADDRESS)
}

/// Whether a container runs; `None` if docker(1) cannot say it.
pub(super) fn has_containers() -> Option<bool> {
    // A dockerd that hangs does not answer.
    let command = ["10", "docker", "ps", "--quiet"];
    let output = Command::new("timeout").args(command).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| !output.stdout.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use outgate::firewall::docker::DAEMON_FILE;

    #[test]
    fn bridges_of_containers_are_told_from_others() {
        for (name, carries, is_for) in [
            ("docker0", true, true),
            ("docker*", true, true),
            ("br-0123456789ab", true, true),
            ("br-*", true, true),
            ("br-0a*", true, true),
            ("br*", true, false),
            ("*", true, false),
            ("br0", false, false),
            ("br-lan", false, false),
            ("br-0123456789", false, false),
            ("br-lan*", false, false),
            ("tap*", false, false),
        ] {
            assert_eq!((carries_containers(name), is_for_containers(name)), (carries, is_for), "{name}");
        }
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let words = "/usr/bin/dockerd --dns 10.0.0.1 --dns=127.0.0.53 --dns-search x --config-file=/srv/d.json";
        let docker = Docker { arguments: words.split(' ').map(str::to_owned).collect(), ..Docker::default() };
        assert_eq!(docker.servers(), ["10.0.0.1", "127.0.0.53"]);
        assert_eq!(docker.file(), Path::new("/srv/d.json"));
        assert_eq!(Docker::default().file(), Path::new(DAEMON_FILE));
    }
}
