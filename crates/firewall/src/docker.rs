//! Docker's own resolver, where it lets containers' names past the guests' DNS listener.
//!
//! In a network that a user made, containers ask 127.0.0.11, which dockerd answers. It asks the servers of the
//! machine's resolv.conf, from within the container's network, where the firewall brings the query to the listener.
//! But a server on a loopback address can be reached only from this machine's own network, so dockerd asks it from
//! there; later versions (26.1, not 20.10) do so for a server with an IPv6 address too, if the container has none. Such a
//! query meets no rule. With `dns` in daemon.json, dockerd asks that server instead, from within the container's network.

use super::host::{Host, fits};
use super::plan::Plan;
use super::{processes, tool};
use rustix::param::clock_ticks_per_second;
use serde_json::Value;
use std::cell::OnceCell;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where dockerd's configuration is, unless it is told otherwise.
pub const DAEMON_FILE: &str = "/etc/docker/daemon.json";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What dockerd reads if the file above names nothing but systemd-resolved's own address.
const RESOLVED: (&str, &str) = ("127.0.0.53", "/run/systemd/resolve/resolv.conf");
/// Where dockerd may be.
const FOLDERS: [&str; 5] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/snap/bin"];
/// The first version that does so. Between 20.10, which does not, and 26.1, which does, none was tried.
const IPV6_FROM_HERE: u32 = 21;
/// How inexact the start of a process is: the kernel tells the time of its boot in whole seconds.
const SLACK: Duration = Duration::from_secs(2);

/// Returns what is wrong, with its remedy, if names of containers in a guarded network leave past the listener.
pub(super) fn leaking_names(plan: &Plan, host: &Host) -> Option<String> {
    let pattern = guarded_network(plan, host)?;
    let running = Dockerd::running();
    if running.is_none() && !is_installed() {
        return None;
    }
    let arguments = running.as_ref().map(|running| running.arguments.as_slice()).unwrap_or_default();
    let file = daemon_file(arguments);
    let given: Vec<String> = option(arguments, "--dns").map(str::to_owned).collect();
    let shown = file.display();
    let configured = match configured(&file) {
        Ok(servers) => servers,
        // dockerd itself does not start with such a file.
        Err(why) => return Some(format!("{shown} cannot be read: {why}; correct it, for dockerd to start with it")),
    };
    let from_here = AskedFromHere::default();
    // dockerd does not ask such a loopback address from here, but nor does any container reach it.
    let is_reachable = |server: &String| server.parse().is_ok_and(|ip| !from_here.includes(ip));
    let all = |servers: &[String]| !servers.is_empty() && servers.iter().all(is_reachable);
    if all(&given) {
        return None;
    }
    let server = asked_from_here(RESOLV_CONF, |ip| from_here.includes(ip))?;
    let how = format!("dockerd asks {server} for them from this machine's own network");
    let what = "names that containers ask for leave past [listen].dns";
    if all(&configured) {
        return running.is_some_and(|running| running.is_older_than(&file)).then(|| {
            format!(
                "{what}: {how}, since it was started before {shown} was changed: run `systemctl restart docker.service`"
            )
        });
    }
    let pattern = outgate_files::shell::quoted(&pattern);
    Some(format!(
        "{what}: {how}: run `outgate setup --guest-interface {pattern}`, which writes \"dns\" into {shown}, or write it \
         yourself and restart docker"
    ))
}

/// Returns the interface or pattern of `guest_interfaces` that covers a network which a user made, if there is one,
/// or will be.
fn guarded_network(plan: &Plan, host: &Host) -> Option<String> {
    let exists = |pattern: &str| host.links.iter().any(|link| is_network(&link.name) && fits(pattern, &link.name));
    // Any name that dockerd may choose.
    let will = |pattern: &str| pattern.strip_suffix('*').is_some_and(|start| "br-".starts_with(start));
    plan.guests.iter().find(|pattern| will(pattern) || exists(pattern)).cloned()
}

/// Returns whether it is the name of a bridge that dockerd makes for a user's network: `br-` and 12 hexadecimal digits.
pub fn is_network(name: &str) -> bool {
    begins_network(name) && name.len() == "br-".len() + 12
}

/// Returns whether names of such bridges can begin like this, with a digit at least.
pub fn begins_network(stem: &str) -> bool {
    let id = stem.strip_prefix("br-").filter(|id| (1..=12).contains(&id.len()));
    id.is_some_and(|id| id.bytes().all(|c| c.is_ascii_hexdigit()))
}

/// Which servers dockerd asks for containers from this machine's own network, past the listener.
#[derive(Debug, Default)]
pub struct AskedFromHere {
    /// It takes a program to tell, so it is asked at most once, and only if there is such a server.
    over_ipv6: OnceCell<bool>,
}

impl AskedFromHere {
    /// Returns whether this server is one of them: this machine itself and, by the installed version, one with an IPv6
    /// address.
    pub fn includes(&self, server: IpAddr) -> bool {
        let server = server.to_canonical();
        server.is_loopback()
            || server.is_unspecified()
            || (server.is_ipv6() && *self.over_ipv6.get_or_init(asks_ipv6_from_here))
    }
}

/// Returns whether dockerd is installed here.
pub fn is_installed() -> bool {
    FOLDERS.iter().any(|folder| Path::new(folder).join("dockerd").exists())
}

/// A dockerd whose containers may be behind this machine's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dockerd {
    /// The words that it was started with.
    pub arguments: Vec<String>,
    /// When, to the second or so.
    pub started: Option<SystemTime>,
}

impl Dockerd {
    /// Returns the one that runs in this machine's network: one in a container or in another network is somebody
    /// else's.
    pub fn running() -> Option<Dockerd> {
        let here = processes::network_namespace("self")?;
        let (process, arguments) = processes::all().find_map(|process| {
            let arguments = arguments_of(&process);
            let program = arguments.first()?.rsplit('/').next()?.to_owned();
            let is = program == "dockerd" && processes::network_namespace(&process) == Some(here);
            is.then_some((process, arguments))
        })?;
        Some(Dockerd { arguments, started: started(&process) })
    }

    /// Returns whether it runs since before this file was written, and so has not read it. Exact to two seconds.
    pub fn is_older_than(&self, file: &Path) -> bool {
        let changed = fs::metadata(file).and_then(|found| found.modified()).ok();
        self.started.zip(changed).is_some_and(|(started, changed)| changed > started + SLACK)
    }
}

/// Returns the words that a process was started with; none if it is gone.
fn arguments_of(process: &str) -> Vec<String> {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Returns when a process was started.
fn started(process: &str) -> Option<SystemTime> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may contain spaces and brackets; the start is the twentieth field after it (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u64 = fields.split(' ').nth(19)?.parse().ok()?;
    let booted = fs::read_to_string("/proc/stat").ok()?;
    let booted: u64 = booted.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let since_boot = Duration::from_millis(ticks.checked_mul(1000)?.checked_div(clock_ticks_per_second())?);
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(booted) + since_boot)
}

/// Returns the file that dockerd reads when it is started with these words.
pub fn daemon_file(arguments: &[String]) -> PathBuf {
    option(arguments, "--config-file").next().unwrap_or(DAEMON_FILE).into()
}

/// Returns each value of an option, written `--option value` or `--option=value`.
pub fn option<'a>(arguments: &'a [String], name: &'a str) -> impl Iterator<Item = &'a str> {
    let after = arguments.iter().skip(1).map(Some).chain([None]);
    arguments.iter().zip(after).filter_map(move |(word, next)| match word.strip_prefix(name)? {
        "" => next.map(String::as_str),
        rest => rest.strip_prefix('='),
    })
}

/// Returns the servers of `dns` in daemon.json; none if there is no file.
fn configured(file: &Path) -> Result<Vec<String>, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let servers = value.get("dns").and_then(Value::as_array).into_iter().flatten();
    Ok(servers.filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Returns the first server that dockerd would ask from this machine's network, by this resolv.conf.
fn asked_from_here(file: &str, asks_from_here: impl Fn(IpAddr) -> bool) -> Option<String> {
    let mut servers = nameservers(&fs::read_to_string(file).unwrap_or_default());
    if let [only] = servers.as_slice()
        && only == RESOLVED.0
    {
        servers = nameservers(&fs::read_to_string(RESOLVED.1).unwrap_or_default());
    }
    servers.into_iter().find(|server| {
        // An IPv6 address may have a zone.
        let address = server.split('%').next().unwrap_or_default().parse();
        address.is_ok_and(&asks_from_here)
    })
}

/// Returns whether the dockerd that is installed asks servers with IPv6 addresses from this machine's network.
fn asks_ipv6_from_here() -> bool {
    let told = tool::run("dockerd", &["--version"], "", "to learn Docker's version");
    // What cannot be told counts as the version that leaks.
    told.ok().as_deref().and_then(major).is_none_or(|major| major >= IPV6_FROM_HERE)
}

/// Returns the first number of `Docker version 26.1.5+dfsg1, build …`.
fn major(text: &str) -> Option<u32> {
    text.strip_prefix("Docker version ")?.split('.').next()?.parse().ok()
}

/// Returns the servers of a resolv.conf(5).
fn nameservers(text: &str) -> Vec<String> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next())?
    });
    servers.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_a_resolv_conf() {
        let text =
            "# nameserver 9.9.9.9\nsearch example.org\nnameserver 127.0.0.1\n nameserver  10.0.0.1 x\nnameserver\n";
        assert_eq!(nameservers(text), ["127.0.0.1", "10.0.0.1"]);
    }

    #[test]
    fn an_option_is_found_in_both_forms_and_another_that_begins_alike_is_not() {
        let words = ["dockerd", "--dns", "10.0.0.1", "--dns=10.0.0.2", "--dns-search", "x", "--dns-opt=y", "--dns"];
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(option(&words, "--dns").collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
    }

    #[test]
    fn this_machine_is_asked_from_here_and_ipv6_addresses_by_later_versions() {
        for (over_ipv6, wanted) in [
            (false, ["127.0.0.53", "::1", "0.0.0.0", "::ffff:127.0.0.1"].as_slice()),
            (true, &["127.0.0.53", "::1", "0.0.0.0", "::ffff:127.0.0.1", "fd00::1"]),
        ] {
            let from_here = AskedFromHere { over_ipv6: OnceCell::from(over_ipv6) };
            let all = ["127.0.0.53", "::1", "0.0.0.0", "10.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fd00::1"];
            let found: Vec<&str> = all.into_iter().filter(|ip| from_here.includes(ip.parse().unwrap())).collect();
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_version_is_told_by_its_first_number() {
        assert_eq!(major("Docker version 26.1.5+dfsg1, build a72d7cd\n"), Some(26));
        assert_eq!(major("Docker version 20.10.24+dfsg1, build 297e128\n"), Some(20));
        assert_eq!(major("podman version 4.3.1"), None);
    }

    #[test]
    fn a_process_is_older_than_what_was_written_later() {
        let me = Dockerd { arguments: Vec::new(), started: started(&std::process::id().to_string()) };
        let file = tempfile::NamedTempFile::new().unwrap();
        let now = SystemTime::now();
        file.as_file().set_modified(now + Duration::from_secs(60)).unwrap();
        assert!(me.is_older_than(file.path()));
        file.as_file().set_modified(now - Duration::from_secs(3600)).unwrap();
        assert!(!me.is_older_than(file.path()) && !Dockerd::default().is_older_than(file.path()));
        assert!(me.started.unwrap() < now + SLACK);
    }
}
