//! `outgate listen`: makes systemd hold the sockets that `[listen]` names, one unit for each address.

use super::files::{self, Content};
use super::lock::Lock;
use super::systemd::{self, show, systemctl};
use super::{Config, Exit, Failure, Outcome, bridge, error_json};
use clap::{Args, Subcommand};
use outgate::accept::{SocketUse, socket_unit};
use outgate::config::Settings;
use outgate::diagnostic::Diagnostic;
use outgate::files::replace::remove_leftovers;
use outgate::shell::quoted;
use outgate::system;
use outgate::text::{counted, printable};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the operator's units are (systemd.unit(5)).
const FOLDER: &str = "/etc/systemd/system";
const SERVICE: &str = "outgate.service";
/// Held while units are written and started, so that two runs do not undo each other.
const LOCK: &str = "/run/outgate-listen.lock";
/// The longest wait for a unit to be active after systemd has started it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Make systemd listen where [listen] says
///
/// Each address of [listen] is held by a socket unit, so that the daemon requires no privilege and a restart refuses
/// no connection. The units follow the configuration: nothing else has to be edited.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate listen apply
  outgate listen apply --dry-run")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Apply(ApplyArguments),
}

/// Write, start and stop socket units so that they are what [listen] says
///
/// One unit for each address, in /etc/systemd/system. Only units of new addresses are started and only those of
/// addresses that are gone are stopped, with the restart of the daemon: sockets that stay are never closed, and no
/// connection to them is refused. A unit of the package stays while [listen] has all its addresses; else it is disabled,
/// and the addresses that stay get units of their own. Nothing is written unless `check` finds no error and the new
/// addresses are free. If the daemon does not come up, everything is put back. Requires root.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate listen apply
  outgate listen apply --dry-run
  outgate listen apply --json | jq .started")]
struct ApplyArguments {
    #[command(flatten)]
    config: Config,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also replace units with drop-ins of yours that have addresses which [listen] does not have
    #[arg(long)]
    replace: bool,
    /// Print one JSON object instead of text; where it fails, one with `error`
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    let Command::Apply(arguments) = &arguments.command;
    let outcome = apply(arguments, out);
    if let (Err(failure), true) = (&outcome, arguments.json) {
        // A pipe that is closed is why it failed.
        let _ = writeln!(out, "{:#}", error_json(failure, arguments.dry_run));
    }
    outcome
}

/// A listener of the configuration.
type Listener = (SocketUse, SocketAddr);

/// Which units of the package make way, beside those that listen where [listen] does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replace {
    /// None with drop-ins: they stay, whatever [listen] says.
    NoDropIns,
    /// None with drop-ins: an address that only a drop-in has is an error.
    Nothing,
    /// Those with such a drop-in too.
    Surplus,
    /// Those with any drop-in.
    DropIns,
}

/// What has to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// New units, by name: the listener and the unit's text.
    start: BTreeMap<String, (Listener, String)>,
    /// Our own units whose address is gone.
    stop: BTreeSet<String>,
    /// Units of the package that have addresses which the configuration does not have.
    disable: BTreeSet<String>,
    /// How many listeners stay as they are.
    unchanged: usize,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.start.is_empty() && self.stop.is_empty() && self.disable.is_empty()
    }

    /// Returns the units of the package that will be disabled.
    pub(super) fn disabled(&self) -> impl Iterator<Item = &str> {
        self.disable.iter().map(String::as_str)
    }

    /// Returns what changes, a line each; `would` precedes each.
    pub(super) fn lines(&self, would: &str) -> Vec<String> {
        let started = self
            .start
            .iter()
            .map(|(unit, ((kind, address), _))| format!("{would}listen on {address} ({}): {unit}", kind.key()));
        let stopped = self.stop.iter().map(|unit| format!("{would}stop and remove {unit}"));
        let disabled = self
            .disable
            .iter()
            .map(|unit| format!("{would}stop and disable {unit}: units of their own have the addresses of [listen]"));
        started.chain(stopped).chain(disabled).collect()
    }

    /// Returns the same for scripts.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let started: Vec<_> = self
            .start
            .iter()
            .map(|(unit, ((kind, address), _))| json!({ "unit": unit, "key": kind.key(), "address": address }))
            .collect();
        json!({ "started": started, "stopped": self.stop, "disabled": self.disable, "unchanged": self.unchanged })
    }
}

/// Waits for other runs that change units.
pub(super) fn lock() -> Result<Lock, Failure> {
    Lock::wait(Path::new(LOCK)).map_err(|error| Failure::Failed(error.to_string()))
}

/// Plans what makes systemd listen where `settings` say, and checks that it can. Changes nothing.
pub(super) fn prepare(settings: &Settings, replace: Replace) -> Result<Plan, Failure> {
    let plan = plan(settings, &own_units()?, replace)?;
    for name in plan.start.keys().chain(&plan.stop) {
        // What stands there has to be put back if a later step fails.
        files::read(&path_of(name)).map_err(|why| Failure::Failed(unreplaceable(name, &why)))?;
    }
    let taken: Vec<String> =
        plan.start.values().filter_map(|((kind, address), _)| taken(*kind, *address, &plan)).collect();
    match taken.is_empty() {
        true => Ok(plan),
        false => Err(Failure::Failed(format!("nothing was changed\n{}", taken.join("\n")))),
    }
}

fn apply(arguments: &ApplyArguments, out: &mut dyn Write) -> Outcome {
    if !systemd::is_init() {
        let why = "systemd does not run this machine; start `outgate run` as root, and it listens itself";
        return Err(Failure::Failed(why.to_owned()));
    }
    if !system::is_root() && !arguments.dry_run {
        return Err(Failure::Failed("run as root: it writes units and starts them".to_owned()));
    }
    let (settings, problems) = Settings::load_leniently(arguments.config.file())?;
    check(&settings, problems)?;
    let _lock = if arguments.dry_run { None } else { Some(lock()?) };
    let replace = if arguments.replace { Replace::Surplus } else { Replace::Nothing };
    let plan = prepare(&settings, replace)?;
    if !plan.is_empty() && !arguments.dry_run {
        carry_out(&plan)?;
    }
    tell(&plan, arguments, out)
}

/// Checks a configuration and its lists, as `outgate check` does; `problems` are those of the files.
pub(super) fn check(settings: &Settings, mut problems: Vec<Diagnostic>) -> Result<(), Failure> {
    problems.extend(bridge::tls_problem(settings));
    problems.extend(bridge::compile(settings).diagnostics);
    problems.retain(|problem| problem.is_error());
    if problems.is_empty() { Ok(()) } else { Err(Failure::Invalid(problems)) }
}

/// Returns the units that earlier runs wrote.
fn own_units() -> Result<BTreeSet<String>, Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("{FOLDER}: cannot be read: {error}"));
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(FOLDER).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.starts_with(socket_unit::PREFIX) && SocketUse::of_unit(&name).is_some() {
            found.insert(name);
        }
    }
    Ok(found)
}

fn plan(settings: &Settings, own: &BTreeSet<String>, replace: Replace) -> Result<Plan, Failure> {
    let source = settings.path.as_deref().unwrap_or(Path::new("the built-in configuration")).display().to_string();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let mut plan = Plan::default();
    let mut by_packaged: BTreeMap<&str, PackagedUnit> = BTreeMap::new();
    for kind in SocketUse::ALL {
        by_packaged.entry(kind.unit()).or_insert_with(|| PackagedUnit::look(kind.unit()));
    }
    let listeners: Vec<Listener> = settings.listen.listeners().collect();
    for (unit, state) in by_packaged.iter().filter(|(_, state)| state.is_used) {
        let is_wanted = |line: &&str| {
            let of_unit = listeners.iter().filter(|(kind, _)| kind.unit() == *unit);
            of_unit.into_iter().any(|(_, address)| line.starts_with(&format!("{address} (")))
        };
        match replace {
            _ if state.drop_ins.is_empty() => {}
            Replace::NoDropIns => continue,
            Replace::DropIns => {
                plan.disable.insert((*unit).to_owned());
                continue;
            }
            Replace::Nothing | Replace::Surplus => {}
        }
        let Some(surplus) = state.listen.lines().find(|line| !is_wanted(line)) else { continue };
        if let Some(drop_in) = state.drop_ins.first().filter(|_| replace == Replace::Nothing) {
            return Err(Failure::Failed(format!(
                "{unit} listens on {surplus} by {drop_in}, and [listen] has no such address: add it there, or run \
                 `outgate listen apply --replace`, which disables {unit} and gives each address of [listen] a unit"
            )));
        }
        plan.disable.insert((*unit).to_owned());
    }
    for (kind, address) in listeners {
        let packaged =
            by_packaged.get(kind.unit()).filter(|state| state.is_used && !plan.disable.contains(kind.unit()));
        if packaged.is_some_and(|state| socket_unit::holds(&state.listen, kind, address)) {
            plan.unchanged += 1;
            continue;
        }
        let name = socket_unit::name(kind, address);
        wanted.insert(name.clone());
        let text = socket_unit::text(kind, address, &source, system::cpus());
        if own.contains(&name) && show(&name, "ActiveState") == "active" {
            plan.unchanged += 1;
        } else {
            plan.start.insert(name, ((kind, address), text));
        }
    }
    plan.stop = own.difference(&wanted).cloned().collect();
    Ok(plan)
}

/// What systemd knows of a unit of the package.
struct PackagedUnit {
    /// Whether it listens, or will after the next boot.
    is_used: bool,
    /// Its sockets, a line each: `ADDRESS (Stream)` or `ADDRESS (Datagram)`.
    listen: String,
    /// The operator's drop-ins.
    drop_ins: Vec<String>,
}

impl PackagedUnit {
    fn look(unit: &str) -> PackagedUnit {
        let drop_ins = show(unit, "DropInPaths").split_whitespace().map(str::to_owned).collect();
        PackagedUnit { is_used: systemd::is_used(unit), listen: show(unit, "Listen"), drop_ins }
    }
}

/// Says why the address of a new unit cannot be listened on, if so. A socket that the plan closes is in nobody's way.
fn taken(kind: SocketUse, address: SocketAddr, plan: &Plan) -> Option<String> {
    let closes = |unit: &String| {
        let shown = show(unit, "Listen");
        let held = shown.lines().filter_map(|line| line.strip_suffix(" (Stream)")?.parse().ok());
        held.into_iter().any(|held| overlap(held, address))
    };
    if plan.disable.iter().chain(&plan.stop).any(closes) {
        return None;
    }
    let layers = [(Type::STREAM, Protocol::TCP), (Type::DGRAM, Protocol::UDP)];
    let layers = layers.into_iter().filter(|(layer, _)| *layer == Type::STREAM || kind.has_datagrams());
    let error = layers.into_iter().find_map(|(layer, protocol)| try_bind(address, layer, protocol).err())?;
    let port = address.port();
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => {
            format!("; `ss -Hlntup 'sport = :{port}'` shows the program that has it: end it, or choose another address")
        }
        _ => String::new(),
    };
    Some(format!("cannot listen on {address} ({}): {error}{remedy}", kind.key()))
}

/// Whether the kernel lets only one of them listen. IPv6 sockets accept no IPv4 here.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && (one.ip() == other.ip() || is_any)
}

fn try_bind(address: SocketAddr, layer: Type, protocol: Protocol) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), layer, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    if layer == Type::STREAM {
        // What is left of closed connections is in nobody's way.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if layer == Type::STREAM {
        // With SO_REUSEADDR alone bind(2) succeeds beside a listener.
        socket.listen(1)?;
    }
    Ok(())
}

/// Does it, and restarts a daemon that runs. If it fails, everything is put back.
pub(super) fn carry_out(plan: &Plan) -> Result<(), Failure> {
    let serves = show(SERVICE, "ActiveState") == "active";
    tidy();
    let before = Before::of(plan)?;
    let done = change(plan, serves).and_then(|()| if serves { is_up(plan) } else { Ok(()) });
    done.map_err(|why| match before.put_back(plan, serves) {
        Ok(()) => Failure::Failed(format!("{why}; everything was put back")),
        Err(error) => Failure::Failed(format!("{why}; and it could not be put back: {error}")),
    })
}

/// Removes files that runs left which were killed while they wrote units. Callers hold the lock.
pub(super) fn tidy() {
    // systemd reads none of them.
    let _ = remove_leftovers(Path::new(FOLDER), |name| name.starts_with(socket_unit::PREFIX));
}

/// Writes the units, and has systemd start and stop what changes together with the daemon.
fn change(plan: &Plan, serves: bool) -> Result<(), String> {
    for (name, (_, text)) in &plan.start {
        files::write(&path_of(name), &Content::new(text.clone()))?;
    }
    let started: Vec<&str> = plan.start.keys().map(String::as_str).collect();
    let stopped: Vec<&str> = plan.stop.iter().chain(&plan.disable).map(String::as_str).collect();
    // Enabled by the service too, whose restart starts them: before the daemon, and in the moment in which there is none,
    // since systemd starts no socket beside a daemon that runs without it.
    if !started.is_empty() {
        systemctl(&[&["enable", "--quiet"], &started[..]].concat())?;
    }
    // The daemon still has these sockets, and serves them until its restart.
    if !stopped.is_empty() {
        systemctl(&[&["disable", "--quiet", "--now"], &stopped[..]].concat())?;
    }
    plan.stop.iter().try_for_each(|name| files::remove(&path_of(name)))?;
    systemctl(&["daemon-reload"])?;
    if serves { systemctl(&["restart", SERVICE]) } else { Ok(()) }
}

/// Waits until the new units listen and the daemon runs.
fn is_up(plan: &Plan) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let units = plan.start.keys().map(String::as_str).chain([SERVICE]);
        let Some(down) = units.into_iter().find(|unit| show(unit, "ActiveState") != "active") else {
            let status = show(SERVICE, "StatusText");
            return match status.contains("not_configured") {
                true => Err(format!("the daemon refuses everybody: {}", printable(&status))),
                false => Ok(()),
            };
        };
        if Instant::now() > until {
            return Err(format!("{down} is not active; `systemctl status {down}` says why"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The units as they were.
struct Before {
    /// Files of our own units; `None` where there is none.
    files: Vec<(PathBuf, Option<Content>)>,
    enabled: Vec<String>,
}

impl Before {
    fn of(plan: &Plan) -> Result<Before, Failure> {
        let read = |name: &String| {
            let path = path_of(name);
            let content = files::read(&path).map_err(|why| Failure::Failed(format!("{why}; nothing was changed")))?;
            Ok((path, content))
        };
        let files = plan.stop.iter().chain(plan.start.keys()).map(read).collect::<Result<_, Failure>>()?;
        let all = plan.stop.iter().chain(plan.start.keys()).chain(&plan.disable);
        let enabled = all.filter(|unit| show(unit, "UnitFileState") == "enabled").cloned().collect();
        Ok(Before { files, enabled })
    }

    fn put_back(&self, plan: &Plan, serves: bool) -> Result<(), String> {
        // Only those that were written: systemctl(1) fails for a unit without a file.
        let started: Vec<&str> = plan.start.keys().map(String::as_str).filter(|name| path_of(name).exists()).collect();
        if !started.is_empty() {
            systemctl(&[&["disable", "--quiet", "--now"], &started[..]].concat())?;
        }
        for (path, content) in &self.files {
            match content {
                Some(content) => files::write(path, content)?,
                None => files::remove(path)?,
            }
        }
        let again: Vec<&str> = self.enabled.iter().map(String::as_str).collect();
        systemctl(&["daemon-reload"])?;
        if !again.is_empty() {
            systemctl(&[&["enable", "--quiet"], &again[..]].concat())?;
        }
        if serves { systemctl(&["restart", SERVICE]) } else { Ok(()) }
    }
}

/// Says why a unit's file can be neither replaced nor put back.
fn unreplaceable(unit: &str, why: &str) -> String {
    match std::fs::read_link(path_of(unit)).is_ok_and(|to| to == Path::new("/dev/null")) {
        true => format!("{unit} is masked; run `systemctl unmask {}`; nothing was changed", quoted(unit)),
        false => format!("{why}; nothing was changed"),
    }
}

fn path_of(unit: &str) -> PathBuf {
    Path::new(FOLDER).join(unit)
}

fn tell(plan: &Plan, arguments: &ApplyArguments, out: &mut dyn Write) -> Outcome {
    if arguments.json {
        let mut answer = plan.to_json();
        if let Some(fields) = answer.as_object_mut() {
            fields.insert("dry_run".to_owned(), arguments.dry_run.into());
        }
        writeln!(out, "{answer:#}")?;
        return Ok(Exit::Good);
    }
    let would = if arguments.dry_run { "would " } else { "" };
    plan.lines(would).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    let unchanged = counted(plan.unchanged as u64, "listener");
    match plan.is_empty() {
        true => writeln!(out, "nothing to change: {unchanged}")?,
        false => writeln!(out, "{unchanged} unchanged, whose sockets stay open")?,
    }
    Ok(Exit::Good)
}
