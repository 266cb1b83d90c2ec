//! Docker on this machine: whether dockerd is there, which of its files and flags count, and which containers run.

use outgate::firewall::{fits, tool};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What dockerd reads unless a flag names another file.
const DAEMON_JSON: &str = "/etc/docker/daemon.json";
/// The bridge that dockerd makes.
const BRIDGE: &str = "docker0";
/// Its address if nothing says otherwise.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1));
/// How inexact the start of a process is.
const SLACK: Duration = Duration::from_secs(2);
/// Where the program may be.
const FOLDERS: [&str; 5] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/snap/bin"];

/// dockerd, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Docker {
    pub(super) is_installed: bool,
    pub(super) runs: bool,
    /// The arguments that it runs with, or that its unit gives it.
    pub(super) arguments: Vec<String>,
    /// Its number, while it runs.
    process: Option<u32>,
}

impl Docker {
    /// Looks. `unit` is the ExecStart= of docker.service, as systemctl(1) shows it; empty if there is none.
    pub(super) fn look(unit: &str) -> Docker {
        // One in a container, or in another network, is somebody else's.
        let own = network_of("self");
        let running = processes().find(|(process, arguments)| {
            let program = arguments.first().and_then(|program| program.rsplit('/').next());
            program == Some("dockerd") && network_of(&process.to_string()) == own
        });
        let has_program = || FOLDERS.iter().any(|folder| Path::new(folder).join("dockerd").exists());
        let of_unit = || unit.split([' ', ';']).map(str::to_owned).collect();
        Docker {
            is_installed: running.is_some() || !unit.is_empty() || has_program(),
            runs: running.is_some(),
            process: running.as_ref().map(|(process, _)| *process),
            arguments: running.map_or_else(of_unit, |(_, arguments)| arguments),
        }
    }

    /// Whether it runs since before this file was written.
    pub(super) fn is_older_than(&self, file: &Path) -> bool {
        let started = self.process.and_then(started);
        let written = std::fs::metadata(file).and_then(|meta| meta.modified()).ok();
        // The kernel tells the time of its boot in whole seconds.
        started.zip(written).is_some_and(|(started, written)| started + SLACK < written)
    }

    /// The file that dockerd reads.
    pub(super) fn file(&self) -> PathBuf {
        self.flag("--config-file").next().map_or_else(|| DAEMON_JSON.into(), PathBuf::from)
    }

    /// The servers that flags name. dockerd does not start where the file names some too.
    pub(super) fn servers(&self) -> Vec<&str> {
        self.flag("--dns").collect()
    }

    fn flag<'d>(&'d self, name: &'d str) -> impl Iterator<Item = &'d str> {
        self.arguments.iter().enumerate().filter_map(move |(n, argument)| match argument.strip_prefix(name)? {
            "" => self.arguments.get(n + 1).map(String::as_str),
            value => value.strip_prefix('='),
        })
    }
}

/// Whether containers' traffic may enter by an interface of this name or pattern.
pub(super) fn carries_containers(name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(stem) => fits(name, BRIDGE) || "br-".starts_with(stem) || is_network(stem, false),
        None => name == BRIDGE || is_network(name, true),
    }
}

/// Whether a name or pattern can be meant for nothing but Docker's bridges.
pub(super) fn is_for_containers(name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(stem) => stem.starts_with("docker") || stem == "br-" || is_network(stem, false),
        None => carries_containers(name),
    }
}

/// Whether it is `br-` and the id of a network: 12 hexadecimal digits, or the first of them.
fn is_network(name: &str, whole: bool) -> bool {
    let Some(id) = name.strip_prefix("br-") else { return false };
    let is_long_enough = if whole { id.len() == 12 } else { (1..=12).contains(&id.len()) };
    is_long_enough && id.bytes().all(|c| c.is_ascii_hexdigit())
}

/// The address of docker0 or, before it exists, the one that it will have: `bip` of the file, or Docker's default.
pub(super) fn address(bip: Option<IpAddr>) -> IpAddr {
    let shown = tool::json("ip", &["-j", "-4", "addr", "show", "dev", BRIDGE], "to read the address of docker0");
    let of_bridge = shown.ok().and_then(|shown| {
        let addresses = shown.as_array()?.iter().filter_map(|link| link.get("addr_info")?.as_array());
        addresses.flatten().find_map(|address| address.get("local")?.as_str()?.parse().ok())
    });
    of_bridge.or(bip).unwrap_or(ADDRESS)
}

/// Whether a container runs; `None` if docker(1) cannot say it.
pub(super) fn has_containers() -> Option<bool> {
    // A dockerd that hangs does not answer.
    let command = ["10", "docker", "ps", "--quiet"];
    let output = Command::new("timeout").args(command).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| !output.stdout.trim_ascii().is_empty())
}

/// What identifies the network namespace of a process: each has its own file there, which needs no privilege.
fn network_of(process: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{process}/net/dev")).ok().map(|meta| meta.ino())
}

/// Every process of this machine, and its arguments.
fn processes() -> impl Iterator<Item = (u32, Vec<String>)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let process = entry.file_name().to_string_lossy().parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Some((process, words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()))
    })
}

/// When a process was started, to the second or so.
fn started(process: u32) -> Option<SystemTime> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may have spaces (proc_pid_stat(5)).
    let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    let millis = ticks.checked_mul(1000)?.checked_div(rustix::param::clock_ticks_per_second())?;
    Some(UNIX_EPOCH + Duration::from_secs(boot) + Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_process_is_older_than_what_was_written_later() {
        let me = Docker { process: Some(std::process::id()), ..Docker::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
        assert!(me.is_older_than(file.path()));
        file.as_file().set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        assert!(!me.is_older_than(file.path()) && !Docker::default().is_older_than(file.path()));
        assert!(started(std::process::id()).unwrap() < SystemTime::now() + Duration::from_secs(2));
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let words = "/usr/bin/dockerd --dns 10.0.0.1 --dns=127.0.0.53 --dns-search x --config-file=/srv/d.json";
        let docker = Docker { arguments: words.split(' ').map(str::to_owned).collect(), ..Docker::default() };
        assert_eq!(docker.servers(), ["10.0.0.1", "127.0.0.53"]);
        assert_eq!(docker.file(), Path::new("/srv/d.json"));
        assert_eq!(Docker::default().file(), Path::new(DAEMON_JSON));
    }
}
