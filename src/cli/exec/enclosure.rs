//! A guest on this machine: a network namespace, a pair of interfaces whose inner end is its only one, and its
//! registration with the daemon. It is created closed: the outer end stays down until the address is bound to it
//! and the firewall enforces that. An error on the way undoes the earlier steps.

use super::pool::{self, GATEWAY};
use super::run_names::{self, Names};
use super::{apparmor, warn};
use crate::cli::ask::Daemon;
use crate::cli::bridge::{Application, Question, tool};
use crate::cli::credentials::{self, Credentials};
use crate::cli::lock::Lock;
use crate::cli::{Failure, guest};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long remaining processes in a namespace are killed before giving up.
const KILLING: Duration = Duration::from_secs(5);
/// Interval between two checks for remaining processes.
const PAUSE: Duration = Duration::from_millis(20);

/// What is to be created.
pub(in crate::cli) struct Order<'a> {
    /// The daemon that registers it.
    pub(in crate::cli) daemon: &'a Daemon,
    /// Its name.
    pub(in crate::cli) name: &'a str,
    /// Its address; `None` for one of the pool.
    pub(in crate::cli) address: Option<Ipv4Addr>,
    /// The manifest of its job.
    pub(in crate::cli) manifest: Option<&'a Path>,
    /// What accompanies the manifest.
    pub(in crate::cli) credentials: &'a Credentials,
}

/// A namespace that is a guest.
pub(in crate::cli) struct Enclosure {
    names: Names,
    daemon: Daemon,
    /// Whether the guest is registered.
    registered: bool,
    lock: Lock,
}

impl Enclosure {
    /// Creates it.
    pub(in crate::cli) fn make(order: &Order<'_>) -> Result<Enclosure, Failure> {
        // Also since a command with a profile of its own may be out of reach for signals from that one.
        apparmor::leave_profile().map_err(|error| Failure::Failed(error.to_string()))?;
        let names = Names::of(order.name);
        let mut application = Application {
            name: names.guest.clone(),
            interface: Some(names.interface.clone()),
            ..Application::default()
        };
        application.manifest = order.manifest.map(credentials::read_manifest).transpose()?;
        order.credentials.fill(&mut application)?;
        // Whether there is a daemon is checked before anything is created.
        order.daemon.ask(Question::Guests)?;
        let lock = lock(&names)?;
        let _in_line = Lock::wait(&run_names::line()).map_err(|error| Failure::Failed(error.to_string()))?;
        let guests = order.daemon.ask(Question::Guests)?;
        let mut enclosure = Enclosure { names, daemon: order.daemon.clone(), registered: false, lock };
        if let Err(failure) = enclosure.sweep(&guests) {
            // The name's owner is known without it.
            let _ = enclosure.lock.remove();
            return Err(failure);
        }
        match enclosure.build(order.address, application) {
            Ok(()) => Ok(enclosure),
            Err(failure) => {
                enclosure.end().iter().for_each(|fault| warn(fault));
                Err(failure)
            }
        }
    }

    /// Returns its name in ip-netns(8).
    pub(in crate::cli) fn namespace(&self) -> &str {
        &self.names.namespace
    }

    /// Removes what a killed run of this name left behind; a guest that is not from such a run is an error.
    fn sweep(&mut self, guests: &Value) -> Result<(), Failure> {
        let Names { guest: name, interface, .. } = &self.names;
        let text = |guest: &Value, key: &str| guest.get(key).and_then(Value::as_str).map(str::to_owned);
        for guest in guests.get("guests").and_then(Value::as_array).into_iter().flatten() {
            let (its_name, its_interface) = (text(guest, "name"), text(guest, "interface"));
            let (same_name, same_interface) =
                (its_name.as_ref() == Some(name), its_interface.as_ref() == Some(interface));
            match (same_name, same_interface) {
                (true, true) => self.registered = true,
                (true, false) => return Err(Failure::Failed(format!("a guest {name} exists already"))),
                (false, true) => {
                    let whose = its_name.unwrap_or_default();
                    return Err(Failure::Failed(format!(
                        "{interface} is the interface of {whose}; choose another name"
                    )));
                }
                (false, false) => {}
            }
        }
        let faults = self.clear();
        if faults.is_empty() { Ok(()) } else { Err(Failure::Failed(faults.join("; "))) }
    }

    fn build(&mut self, address: Option<Ipv4Addr>, mut application: Application) -> Result<(), Failure> {
        let Names { interface, namespace, .. } = self.names.clone();
        // Asks again: what was swept no longer has an address.
        let address = pool::choose(address, &self.daemon.ask(Question::Guests)?)?;
        application.addresses = vec![address.to_string()];
        tool::run("ip", &["netns", "add", &namespace], "", "to make the network namespace")?;
        without_ipv6(&self.names)?;
        let host = format!(
            "link add name {interface} type veth peer name eth0 netns {namespace}\n\
             link set dev {interface} alias \"outgate exec {}\"\n\
             addr add {GATEWAY} peer {address}/32 dev {interface}\n",
            self.names.guest
        );
        tool::run("ip", &["-batch", "-"], &host, "to make the interfaces")?;
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        write_if_there(&path).map_err(|error| Failure::Failed(format!("{path}: {error}")))?;
        let inner = format!(
            "link set dev lo up\naddr add {address}/32 dev eth0\nlink set dev eth0 up\n\
             route add {GATEWAY} dev eth0\nroute add default via {GATEWAY} dev eth0\n"
        );
        tool::run("ip", &["-n", &namespace, "-batch", "-"], &inner, "to set up the interfaces of the namespace")?;
        let added = guest::register(&self.daemon, &application)?;
        self.registered = true;
        added.warnings.iter().for_each(|warning| warn(warning));
        tool::run("ip", &["link", "set", "dev", &interface, "up"], "", "to open the interface")?;
        Ok(())
    }

    /// Ends it: first what runs in it, then its network access, then guest and namespace. Returns what failed; a
    /// later run of the same name tries that again.
    pub(in crate::cli) fn end(mut self) -> Vec<String> {
        let mut faults = self.clear();
        if faults.is_empty()
            && let Err(error) = self.lock.remove()
        {
            faults.push(format!("its lock cannot be removed: {error}"));
        }
        faults
    }

    fn clear(&mut self) -> Vec<String> {
        let Names { guest: name, interface, namespace } = &self.names;
        let mut faults = Vec::new();
        let there = self.names.handle().exists();
        if there && let Err(failure) = kill_all(namespace) {
            faults.push(failure.to_string());
        }
        if tool::run("ip", &["link", "show", "dev", interface], "", "to look for an interface").is_ok()
            && let Err(error) = tool::run("ip", &["link", "delete", "dev", interface], "", "to remove the interface")
        {
            faults.push(error.to_string());
        }
        if self.registered {
            match guest::end(&self.daemon, name) {
                Ok((_, None)) => self.registered = false,
                Ok((_, Some(failure))) | Err(failure) => {
                    let what = "is still registered, or its address still pinned";
                    faults.push(format!("{name} {what}: {}", failure.to_string().trim_start_matches("outgate: ")));
                }
            }
        }
        if there && let Err(error) = tool::run("ip", &["netns", "delete", namespace], "", "to remove the namespace") {
            faults.push(error.to_string());
        }
        faults
    }
}

/// Takes the lock of this name, in a folder of root's.
fn lock(names: &Names) -> Result<Lock, Failure> {
    let folder = run_names::folder();
    let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", folder.display()));
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let found = fs::symlink_metadata(folder).map_err(failed)?;
    if !found.is_dir() || found.uid() != 0 || found.mode() & 0o077 != 0 {
        return Err(Failure::Failed(format!("{} is not root's own folder; remove it", folder.display())));
    }
    let name = &names.guest;
    let taken = || Failure::Failed(format!("{name} is in use: an `outgate exec` of this name is running"));
    Lock::take(&names.lock()).map_err(failed)?.ok_or_else(taken)
}

/// Disables IPv6 altogether, because there is no route out by IPv6: a program that tries it fails at once.
fn without_ipv6(names: &Names) -> Result<(), Failure> {
    let within = || -> io::Result<()> {
        let namespace = File::open(names.handle())?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        // The namespace of these files is that of the thread that opens them.
        write_if_there("/proc/sys/net/ipv6/conf/all/disable_ipv6")?;
        write_if_there("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    };
    // A separate thread, because the rest of this process stays in its namespace.
    let ended = std::thread::scope(|scope| scope.spawn(within).join());
    let done = ended.unwrap_or_else(|_| Err(io::Error::other("the thread that enters it ended early")));
    done.map_err(|error| Failure::Failed(format!("IPv6 cannot be turned off in the namespace: {error}")))
}

fn write_if_there(path: &str) -> io::Result<()> {
    match fs::write(path, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// Kills what runs in a namespace, and what that starts in the meantime.
fn kill_all(namespace: &str) -> Result<(), Failure> {
    let give_up = Instant::now() + KILLING;
    loop {
        let listed = tool::run("ip", &["netns", "pids", namespace], "", "to list what runs in the namespace")?;
        let pids: Vec<Pid> = listed.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect();
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() >= give_up {
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            return Err(Failure::Failed(format!(
                "cannot be killed: {}; they have no way out any more",
                pids.join(", ")
            )));
        }
        for pid in pids {
            // A process that ended in between is the desired result.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(PAUSE);
    }
}
