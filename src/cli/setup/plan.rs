//! What setup has to change, found and checked before anything is written.

use super::configuration::{self, Wanted};
use super::daemon_json::{self, Dns};
use super::docker::{self, Docker};
use super::files::{self, Content};
use super::listen::{self, Replace};
use super::record::Record;
use super::systemd::{self, show};
use super::{Failure, Paths, diff};
use crate::cli::{bridge, firewall as applied};
use outgate::accept::SocketUse;
use outgate::config::{Settings, Trial, nearest};
use outgate::firewall::docker::AskedFromHere;
use outgate::firewall::{self, Host, InterfaceAddress, Presence, fits, tool};
use outgate::shell::quoted;
use outgate::system;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The units that guard guests.
pub(super) const UNITS: [&str; 3] = ["outgate-firewall.service", "outgate-host.service", "outgate-proof-net.service"];
/// The daemon's.
pub(super) const SERVICE: &str = "outgate.service";
/// Docker's.
pub(super) const DOCKER: &str = "docker.service";
/// What has to run where there is no systemd.
pub(super) const BY_HAND: &str =
    "`outgate firewall apply`, `outgate run` and, for interfaces that come later, `outgate firewall watch`";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'r> {
    pub(super) interfaces: &'r [String],
    pub(super) migrate: bool,
}

/// A file and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileChange {
    pub(super) path: PathBuf,
    /// What is there; `None` if it does not exist.
    pub(super) before: Option<Content>,
    /// What will be; `None` to remove it.
    pub(super) after: Option<Content>,
}

impl FileChange {
    pub(super) fn diff(&self) -> String {
        let text = |content: &'_ Option<Content>| content.as_ref().map(|content| content.text.clone());
        diff::unified(&self.path, text(&self.before).as_deref(), text(&self.after).as_deref())
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "path": self.path, "diff": self.diff() })
    }
}

/// A drop-in that is moved away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DropIn {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    pub(super) content: Content,
}

/// What has to be done.
#[derive(Debug)]
pub(super) struct Todo {
    pub(super) notes: Vec<String>,
    pub(super) files: Vec<FileChange>,
    pub(super) drop_ins: Vec<DropIn>,
    pub(super) listen: Option<listen::Plan>,
    /// Units to enable.
    pub(super) enable: Vec<&'static str>,
    /// Units to start.
    pub(super) start: Vec<&'static str>,
    /// Whether the ruleset has to be made anew by a unit that runs.
    pub(super) apply: bool,
    /// Whether dockerd runs and has not read its file since setup wrote it, or will not have.
    pub(super) docker: bool,
    /// Whether there is a firewall now.
    pub(super) has_firewall: bool,
}

impl Todo {
    /// Finds out what has to be done, and whether it can be. Changes nothing.
    pub(super) fn plan(paths: &Paths, request: Request<'_>) -> Result<Todo, Failure> {
        let record = Record::read(&paths.record).map_err(Failure::Failed)?;
        let has_systemd = systemd::is_init();
        let host = Host::look()?;
        let mut notes = Vec::new();
        let mut problems = Vec::new();
        for name in request.interfaces {
            match interface(name, &host) {
                Ok(note) => notes.extend(note),
                Err(why) => problems.push(why),
            }
        }
        if !problems.is_empty() {
            return Err(Failure::Failed(problems.join("\n")));
        }
        let mut files = Vec::new();
        let (settings, configured) = configure(paths, request, record.as_ref(), &mut notes)?;
        files.extend(configured);
        let (file, is_stale) = for_docker(request, record.as_ref(), has_systemd, &mut notes)?;
        let docker = is_stale || file.is_some();
        files.extend(file);
        let drop_ins = if request.migrate { drop_ins(paths)? } else { Vec::new() };
        if request.migrate {
            notes.extend(surplus(&drop_ins, &settings));
        }
        let replace = if drop_ins.is_empty() { Replace::Nothing } else { Replace::DropIns };
        let listen = if has_systemd { Some(listen::prepare(&settings, replace)?) } else { None };
        // Root alone may read who is registered.
        let is_root = system::is_root();
        let known = if is_root { bridge::with_pins(&settings)? } else { bridge::with_known(settings.clone())? };
        let (plan, _) = applied::plan_for(&known)?;
        if let Some(fault) = plan.faults().first() {
            return Err(Failure::Failed(format!("nothing was changed: {fault}")));
        }
        if is_root && plan.is_wanted() {
            tool::run("nft", &["-c", "-f", "-"], &plan.ruleset(), "the ruleset (nothing was changed)")?;
        }
        let mut todo = Todo {
            notes,
            docker: docker && Docker::look(&docker_unit(has_systemd)).runs(),
            has_firewall: firewall::is_any_there(),
            files,
            drop_ins,
            listen,
            enable: Vec::new(),
            start: Vec::new(),
            apply: false,
        };
        if has_systemd {
            todo.plan_units(&settings);
        }
        Ok(todo)
    }

    fn plan_units(&mut self, settings: &Settings) {
        let is_active = |unit: &&str| show(unit, "ActiveState") == "active";
        let guards = settings.firewall.is_wanted();
        for unit in UNITS.into_iter().filter(|_| guards) {
            let state = show(unit, "UnitFileState");
            if state != "enabled" {
                self.enable.push(unit);
            }
        }
        let wanted = UNITS.into_iter().filter(|_| guards).chain([SERVICE]);
        self.start = wanted.filter(|unit| !is_active(unit)).collect();
        let is_in_place = settings.seal().is_none_or(|seal| firewall::presence(seal) == Presence::InPlace);
        self.apply = guards && !is_in_place && !self.start.contains(&UNITS[0]);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.drop_ins.is_empty() && self.units().is_empty() && !self.docker && !self.listens()
    }

    fn listens(&self) -> bool {
        self.listen.as_ref().is_some_and(|listen| !listen.is_empty())
    }

    /// Returns what is done with units, a command each.
    fn units(&self) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        if !self.enable.is_empty() {
            commands.push(format!("systemctl enable {}", self.enable.join(" ")));
        }
        if self.apply {
            commands.push(format!("systemctl reload {}", UNITS[0]));
        }
        if !self.start.is_empty() {
            commands.push(format!("systemctl start {}", self.start.join(" ")));
        }
        commands
    }

    /// Returns what is done beside the files, a line each that begins with a verb.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.files.iter().map(|change| format!("write {}", change.path.display())).collect();
        lines.extend(
            self.drop_ins.iter().map(|moved| format!("move {} to {}", moved.from.display(), moved.to.display())),
        );
        lines.extend(self.listen.iter().flat_map(|listen| listen.lines("")));
        lines.extend(self.units().iter().map(|command| format!("run `{command}`")));
        if self.docker {
            lines.push("restart dockerd, if no container runs".to_owned());
        }
        if self.listen.is_none() && !self.is_empty() {
            lines.push(format!("leave to you, since systemd does not run this machine: {BY_HAND}"));
        }
        lines
    }

    pub(super) fn to_json(&self) -> Value {
        let files: Vec<Value> = self.files.iter().map(FileChange::to_json).collect();
        let moved: Vec<Value> =
            self.drop_ins.iter().map(|moved| json!({ "from": moved.from, "to": moved.to })).collect();
        json!({
            "changed": !self.is_empty(), "files": files, "drop_ins": moved, "units": self.units(),
            "listen": self.listen.as_ref().map(listen::Plan::to_json), "restart_docker": self.docker,
        })
    }
}

/// The command that guards these interfaces.
pub(super) fn command<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let option = |name: &str| {
        // A name may look like an option.
        let to = if name.starts_with('-') { '=' } else { ' ' };
        format!(" --guest-interface{to}{}", quoted(name))
    };
    format!("outgate setup{}", names.into_iter().map(option).collect::<String>())
}

/// Checks a name or pattern of a guests' interface against this machine; returns what the operator should know.
fn interface(name: &str, host: &Host) -> Result<Option<String>, String> {
    if let Err(why) = outgate::config::guest_interface(name) {
        let exists = host.interfaces().any(|interface| interface.name == name);
        return Err(if exists { unusable(name) } else { why });
    }
    if let Some(uplink) = host.uplinks().iter().find(|uplink| fits(name, uplink)) {
        return Err(format!(
            "{name}: {uplink} carries this machine's default route, so everything that arrives by it would count as a guest; give \
             the guests a bridge of their own"
        ));
    }
    let mut fitting = host.interfaces().filter(|interface| fits(name, interface.name)).peekable();
    if name.ends_with('*') {
        let note = format!("no interface fits {name} yet; each is guarded as it comes");
        return Ok(fitting.peek().is_none().then_some(note));
    }
    match fitting.next() {
        Some(found) => match found.bridge {
            Some(bridge) => {
                Err(format!("{name} is a port of {bridge}, which is where its packets enter: name {bridge}"))
            }
            None => Ok(None),
        },
        None => {
            let names: Vec<&str> = candidates(host);
            let guess = nearest(name, names.iter().copied()).map(|near| format!(" (did you mean {near}?)"));
            let exist = if names.is_empty() {
                "no bridge or tap exists".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            Err(format!(
                "there is no interface {name}{}: {exist}; for one that comes later write a pattern, such as {}",
                guess.unwrap_or_default(),
                quoted(&format!("{name}*"))
            ))
        }
    }
}

/// Says of an interface that its name has characters which no configuration can have.
fn unusable(name: &str) -> String {
    let is = quoted(name);
    format!(
        "{name:?}: outgate takes no interface with such characters in its name; give it another one, for example guests0: `ip \
         link set dev {is} down && ip link set dev {is} name guests0 && ip link set dev guests0 up`"
    )
}

/// Returns the interfaces by which guests' packets may enter.
pub(super) fn candidates(host: &Host) -> Vec<&str> {
    let is_own = |name: &str| host.uplinks().iter().any(|uplink| uplink == name);
    let may = |interface: &outgate::firewall::Interface<'_>| {
        interface.is_bridge || (interface.bridge.is_none() && matches!(interface.kind, "tap" | "tun"))
    };
    host.interfaces().filter(may).map(|interface| interface.name).filter(|name| !is_own(name)).collect()
}

/// Returns what the configuration will mean, and the file of setup's if it changes.
fn configure(
    paths: &Paths,
    request: Request<'_>,
    record: Option<&Record>,
    notes: &mut Vec<String>,
) -> Result<(Settings, Option<FileChange>), Failure> {
    if !paths.config.exists() {
        return Err(Failure::Failed(format!(
            "{} does not exist, and conf.d beside it is read with it alone; make it, it may be empty: `install -D -m 644 \
             /dev/null {}`",
            paths.config.display(),
            quoted(&paths.config.to_string_lossy())
        )));
    }
    // A relative path of the command line is a link of nobody's.
    let own = std::path::absolute(&paths.own).unwrap_or_else(|_| paths.own.clone());
    let before = files::read(&own).map_err(Failure::Failed)?;
    let mut trial = Trial::read(Some(&paths.config))?;
    let mut change = None;
    if !request.interfaces.is_empty() {
        let known = record.and_then(|record| record.of(&own));
        let is_ours =
            before.as_ref().is_none_or(|content| known.is_some_and(|known| known.is_ours(Some(content.text.as_str()))));
        if is_ours {
            trial.put(&paths.own, None);
        }
        let (settings, _) = trial.load()?;
        let written = before.as_ref().filter(|_| is_ours).map(|content| content.text.as_str());
        let ipv6 = Path::new("/proc/net/if_inet6").exists();
        let mut all = written.map(configuration::interfaces_of).unwrap_or_default();
        all.extend(request.interfaces.iter().chain(&settings.firewall.guest_interfaces).cloned());
        let addresses = firewall::interface_addresses()?;
        let wanted = Wanted {
            interfaces: request.interfaces,
            ipv6,
            dns: &dns_addresses(&all, &addresses, ipv6),
            dhcp: has_dhcp_server() || written.is_some_and(|text| text.contains("allow_dhcp = true")),
        };
        let made = configuration::text(&trial, &settings, written, wanted).map_err(Failure::Invalid)?;
        notes.extend(made.notes);
        if let Some(text) = made.text {
            if !is_ours {
                return Err(Failure::Invalid(vec![configuration::changed(&own, &text)]));
            }
            trial.put(&paths.own, Some(&text));
            if before.as_ref().is_none_or(|content| content.text != text) {
                let after =
                    before.as_ref().map_or_else(|| Content::new(text.clone()), |content| content.with(text.clone()));
                change = Some(FileChange { path: own, before, after: Some(after) });
            }
        } else if let (Some(content), true) = (before, is_ours) {
            // Other files say all of it now.
            change = Some(FileChange { path: own, before: Some(content), after: None });
        }
    }
    let (settings, problems) = trial.load()?;
    listen::check(&settings, problems)?;
    Ok((settings, change))
}

/// Returns where the guests' DNS listens. By the kernel's redirection any address of this machine will do, also that of a bridge
/// that comes later, and port 1053 is nobody's else. But where an interface has several addresses the redirection
/// takes the first, and a reply to a guest of another subnet would leave from another: there it is one address for all guests.
fn dns_addresses(interfaces: &[String], addresses: &[InterfaceAddress], ipv6: bool) -> Vec<String> {
    let several = |is_v4: bool| {
        let is = |address: &&InterfaceAddress| address.net.addr().is_ipv4() == is_v4 && address.scope == "global";
        let of_guests: Vec<&InterfaceAddress> = addresses
            .iter()
            .filter(is)
            .filter(|address| interfaces.iter().any(|guest| fits(guest, &address.interface)))
            .collect();
        // Those of one interface stand together.
        let mut interfaces = of_guests.chunk_by(|one, other| one.interface == other.interface);
        let first = interfaces.find(|of_one| of_one.len() > 1).and_then(<[_]>::first);
        first.map(|address| address.net.addr().to_string())
    };
    let v4 = several(true).unwrap_or_else(|| "0.0.0.0".to_owned());
    let v6 = ipv6.then(|| several(false).unwrap_or_else(|| "::".to_owned()));
    std::iter::once(format!("{v4}:1053")).chain(v6.map(|v6| format!("[{v6}]:1053"))).collect()
}

/// Whether a DHCP server listens on this machine, as libvirt's dnsmasq does.
pub(super) fn has_dhcp_server() -> bool {
    is_bound("/proc/net/udp", 67)
}

/// Whether a socket of this file of /proc/net is bound to this port.
pub(super) fn is_bound(file: &str, port: u16) -> bool {
    let sockets = std::fs::read_to_string(file).unwrap_or_default();
    let suffix = format!(":{port:04X}");
    sockets.lines().skip(1).any(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&suffix)))
}

/// Returns the ExecStart= of Docker's unit.
pub(super) fn docker_unit(has_systemd: bool) -> String {
    if has_systemd { show(DOCKER, "ExecStart") } else { String::new() }
}

/// Returns what becomes of dockerd's file, and whether dockerd runs since before setup wrote it.
fn for_docker(
    request: Request<'_>,
    record: Option<&Record>,
    has_systemd: bool,
    notes: &mut Vec<String>,
) -> Result<(Option<FileChange>, bool), Failure> {
    let names: Vec<&str> =
        request.interfaces.iter().map(String::as_str).filter(|name| docker::carries_containers(name)).collect();
    if names.is_empty() {
        return Ok((None, false));
    }
    let found = Docker::look(&docker_unit(has_systemd));
    if !found.is_installed {
        if names.iter().any(|name| docker::is_for_containers(name)) {
            notes.push(format!(
                "Docker is not installed; once it is, run `{}` again for the names that containers ask for",
                command(request.interfaces.iter().map(String::as_str))
            ));
        }
        return Ok((None, false));
    }
    let path = found.file();
    let by_flags = found.servers();
    let from_here = AskedFromHere::default();
    if !by_flags.is_empty() {
        let given = by_flags.iter().filter_map(|server| server.parse().ok());
        return match given.into_iter().find(|server| from_here.includes(*server)) {
            Some(server) => Err(Failure::Failed(format!(
                "dockerd is started with --dns {server}, and {}, so containers' names go past outgate; leave that flag out \
                 of its unit (`systemctl edit docker`); nothing was changed",
                daemon_json::asked_from_here(server)
            ))),
            None => Ok((None, false)),
        };
    }
    let before = files::read(&path).map_err(Failure::Failed)?;
    let text = before.as_ref().map(|content| content.text.as_str());
    let address = docker::address(text.and_then(daemon_json::bip));
    match daemon_json::with_dns(&path, text, address, &from_here).map_err(|problem| Failure::Invalid(vec![problem]))? {
        Dns::Set(_) => {
            let is_ours = record.and_then(|record| record.of(&path)).is_some_and(|known| known.after.is_some());
            Ok((None, is_ours && found.is_older_than(&path)))
        }
        Dns::Put(text) => {
            let after =
                before.as_ref().map_or_else(|| Content::new(text.clone()), |content| content.with(text.clone()));
            if !found.runs() {
                notes.push("dockerd does not run; it reads its file when it is started".to_owned());
            }
            Ok((Some(FileChange { path, before, after: Some(after) }), false))
        }
    }
}

/// Returns the drop-ins of the package's socket units.
fn drop_ins(paths: &Paths) -> Result<Vec<DropIn>, Failure> {
    let units: BTreeSet<&str> = SocketUse::ALL.into_iter().map(SocketUse::unit).collect();
    let mut found = Vec::new();
    for unit in units {
        let folder = paths.units.join(format!("{unit}.d"));
        let mut names: Vec<_> = match std::fs::read_dir(&folder) {
            Ok(entries) => entries.flatten().map(|entry| entry.file_name()).collect(),
            Err(_) => continue,
        };
        names.retain(|name| name.to_string_lossy().ends_with(".conf"));
        names.sort();
        for name in names {
            let from = folder.join(&name);
            let to = paths.drop_ins.join(format!("{unit}.d")).join(&name);
            if to.exists() {
                let why = format!("{}: already moved there once; move that file away and run this again", to.display());
                return Err(Failure::Failed(why));
            }
            if let Some(content) = files::read(&from).map_err(Failure::Failed)? {
                found.push(DropIn { from, to, content });
            }
        }
    }
    Ok(found)
}

/// Returns what is said of drop-ins whose addresses the configuration does not have.
fn surplus(drop_ins: &[DropIn], settings: &Settings) -> Vec<String> {
    if drop_ins.is_empty() {
        return vec!["no socket unit has a drop-in".to_owned()];
    }
    let wanted: BTreeSet<SocketAddr> = settings.listen.listeners().map(|(_, address)| address).collect();
    let mut notes = BTreeSet::new();
    for drop_in in drop_ins {
        for line in drop_in.content.text.lines().map(str::trim) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let is_listener = matches!(key.trim(), "ListenStream" | "ListenDatagram");
            if let Some(address) = value.trim().parse::<SocketAddr>().ok().filter(|_| is_listener)
                && !wanted.contains(&address)
            {
                let file = drop_in.from.display();
                notes.insert(format!("{file} has {address}, which [listen] does not have: it is closed"));
            }
        }
    }
    notes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_is_shown_names_each_interface() {
        assert_eq!(command(["docker0", "br-*"]), "outgate setup --guest-interface docker0 --guest-interface 'br-*'");
        assert_eq!(command(["-x", "a'b"]), "outgate setup --guest-interface=-x --guest-interface 'a'\\''b'");
    }

    #[test]
    fn a_bound_port_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(is_bound("/proc/self/net/udp", port));
        drop(socket);
        assert!(!is_bound("/proc/self/net/udp", port) && !is_bound("/nowhere", port));
    }

    #[test]
    fn an_interface_with_several_addresses_gets_one_for_dns() {
        let address = |interface: &str, net: &str, scope: &str| InterfaceAddress {
            interface: interface.to_owned(),
            net: net.parse().unwrap(),
            scope: scope.to_owned(),
        };
        let addresses = [
            address("eth0", "11.0.0.2/24", "global"),
            address("eth0", "11.0.0.3/24", "global"),
            address("br0", "10.42.42.1/24", "global"),
            address("br0", "fe80::1/64", "link"),
            address("br0", "fd42:42::1/64", "global"),
            address("br1", "10.43.0.1/24", "global"),
            address("br1", "10.44.0.1/24", "global"),
        ];
        let dns = |names: &[&str], ipv6| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            dns_addresses(&names, &addresses, ipv6)
        };
        assert_eq!(dns(&["br0", "br2"], true), ["0.0.0.0:1053", "[::]:1053"]);
        assert_eq!(dns(&["br*"], true), ["10.43.0.1:1053", "[::]:1053"]);
        assert_eq!(dns(&["br1"], false), ["10.43.0.1:1053"]);
    }

    #[test]
    fn drop_ins_of_the_packages_units_are_found_and_no_others() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path().canonicalize().unwrap();
        let paths = Paths {
            units: scratch.join("units"),
            drop_ins: scratch.join("kept"),
            ..Paths::of(Some(&scratch.join("outgate.toml")))
        };
        assert_eq!(drop_ins(&paths).unwrap(), []);
        let text = "[Socket]\nListenStream=\nListenStream=10.42.42.1:5399\nListenStream = 127.0.0.1:3128\n";
        for name in ["outgate-dns.socket.d/override.conf", "outgate.service.d/golem.conf", "outgate.socket.d/x.conf~"] {
            std::fs::create_dir_all(paths.units.join(name).parent().unwrap()).unwrap();
            std::fs::write(paths.units.join(name), text).unwrap();
        }
        let found = drop_ins(&paths).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to, paths.drop_ins.join("outgate-dns.socket.d/override.conf"));
        let notes = surplus(&found, &Settings::default());
        assert!(notes.len() == 1 && notes[0].contains("10.42.42.1:5399"), "{notes:?}");
        files::write(&found[0].to, &found[0].content).unwrap();
        assert!(matches!(drop_ins(&paths), Err(Failure::Failed(why)) if why.contains("already moved")));
    }
}
