//! Root's part of the proof: for each guests' interface a sentinel outside and two guests, and the sockets that take
//! rights. It starts the probes, and writes what they report. What is wrong with an interface is tried again; what an
//! operator took away is not.

use super::super::network::{Guests, Network, Traces, Untried, sweep_proofs};
use super::assignment::{Assignment, Handles, RoundReport};
use super::{NetArguments, Place};
use crate::cli::ask::Daemon;
use crate::cli::exec::warn;
use crate::cli::interrupt::Interrupt;
use crate::cli::{Exit, Failure, Outcome, bridge, systemd};
use outgate::config::Settings;
use outgate::files::replace::{Attributes, replace};
use outgate::firewall::{GuestEntry, Host, guest_entries};
use outgate::lock::lock;
use outgate::proof::{Checked, FOLDER, InterfaceProof, Proof, since_boot};
use outgate::system;
use outgate::text::printable;
use rustix::net::sockopt::socket_peercred;
use sd_notify::NotifyState;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The user of the probes.
const USER: &str = "outgate-proof";
/// Most interfaces that are proven.
const MOST: u8 = 64;
/// How often interfaces and configuration are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How soon a signal is noticed.
const TICK: Duration = Duration::from_millis(500);
/// The longest report, in bytes; and the longest name of an interface with its escapes.
const MAX_REPORT: u64 = 1 << 20;
const MAX_NAME: u64 = 256;
/// Most checks of a report, and most characters of what one of them saw.
const MAX_CHECKS: usize = 256;
const MAX_SEEN: usize = 300;

/// What a probe gets that asks for an interface.
type Handouts = Arc<Mutex<BTreeMap<String, Handout>>>;
/// A round of an interface, and the number of the pair of guests.
type Told = (String, u64, RoundReport);

pub(super) fn run(arguments: &NetArguments) -> Outcome {
    if !system::is_root() {
        return Err(Failure::Failed("only root may make the namespaces of guests; run it with sudo".to_owned()));
    }
    let place = &Place::of(&arguments.config)?;
    let at = |error: io::Error| Failure::Failed(format!("{}: {error}", place.folder.display()));
    // The default folder has the locks, which are for the whole machine.
    for folder in [Path::new(FOLDER), &place.folder, &place.namespaces()] {
        DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(at)?;
    }
    let stop = Interrupt::watch()?;
    let handouts = Handouts::default();
    let (tell, told) = sync_channel::<Told>(usize::from(MOST));
    listen(place, &handouts, tell).map_err(at)?;
    let mut net = Net {
        daemon: Daemon::from(arguments.config.clone()),
        place: place.clone(),
        handouts,
        places: BTreeMap::new(),
        faults: BTreeSet::new(),
        made: 0,
    };
    sweep_proofs()?;
    let mut look = Instant::now();
    while !stop.has_come() {
        if Instant::now() >= look {
            net.look(&stop);
            net.write(false)?;
            look = Instant::now() + LOOK;
            let text = format!("{} interfaces", net.places.len());
            system::notify(&[NotifyState::Ready, NotifyState::Watchdog, NotifyState::Status(&text)]);
        }
        match told.recv_timeout(TICK) {
            Ok((interface, number, report)) => {
                net.note(&interface, number, report);
                net.write(false)?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    lock(&net.handouts).clear();
    for (_, at) in std::mem::take(&mut net.places) {
        net.take_down(&at);
    }
    net.write(true)?;
    Ok(Exit::Good)
}

/// The task of an interface's probe.
#[derive(Debug)]
struct Handout {
    /// The number of the pair of guests.
    number: u64,
    task: Arc<(Assignment, Handles)>,
    /// The probe that has it.
    probe: Option<UnixStream>,
}

impl Drop for Handout {
    fn drop(&mut self) {
        // It tries from guests that are gone, and is to begin anew.
        if let Some(probe) = &self.probe {
            let _ = probe.shutdown(Shutdown::Both);
        }
    }
}

/// A guests' interface.
#[derive(Debug)]
struct At {
    /// The number of its names, addresses and MACs.
    number: u8,
    entry: GuestEntry,
    proof: InterfaceProof,
    pair: Option<Pair>,
}

/// Two guests and their sentinel. The guests go first.
#[derive(Debug)]
struct Pair {
    guests: Guests,
    network: Network,
    assignment: Assignment,
}

struct Net {
    daemon: Daemon,
    place: Place,
    handouts: Handouts,
    places: BTreeMap<String, At>,
    /// What was said last, so that each is said once.
    faults: BTreeSet<String>,
    /// How many pairs were made.
    made: u64,
}

impl Net {
    /// Looks at configuration and interfaces, and makes what is missing.
    fn look(&mut self, stop: &Interrupt) {
        let mut faults = BTreeSet::new();
        match self.wanted() {
            Ok((settings, host, entries)) => {
                self.forget_others(&entries);
                for entry in entries {
                    if stop.has_come() {
                        return;
                    }
                    self.tend(&entry, &settings, &host);
                }
                faults.extend(self.places.values().filter_map(|at| at.proof.fault.clone()));
            }
            // The interfaces that are known are proven all the same.
            Err(failure) => {
                faults.insert(failure.to_string());
            }
        }
        faults.difference(&self.faults).for_each(|fault| warn(fault.trim_start_matches("outgate: ")));
        self.faults = faults;
    }

    fn wanted(&self) -> Result<(Settings, Host, Vec<GuestEntry>), Failure> {
        let (settings, _) = Settings::load(self.daemon.config.file())?;
        let settings = bridge::with_pins(&settings)?;
        let host = Host::look()?;
        let entries = guest_entries(&settings.firewall.guest_interfaces, &host);
        Ok((settings, host, entries))
    }

    /// Takes down what is at interfaces that are no guests' any more.
    fn forget_others(&mut self, entries: &[GuestEntry]) {
        let gone: Vec<String> =
            self.places.keys().filter(|name| !entries.iter().any(|entry| entry.name() == *name)).cloned().collect();
        for name in gone {
            lock(&self.handouts).remove(&name);
            if let Some(at) = self.places.remove(&name) {
                self.take_down(&at);
            }
        }
    }

    /// Makes the guests of an interface, or makes them anew if something of them is gone or has changed.
    fn tend(&mut self, entry: &GuestEntry, settings: &Settings, host: &Host) {
        let name = entry.name().to_owned();
        let number = (0..MOST).find(|number| self.places.values().all(|at| at.number != *number));
        let at = self.places.entry(name.clone()).or_insert_with(|| At {
            number: number.unwrap_or(MOST),
            entry: entry.clone(),
            proof: InterfaceProof { interface: name.clone(), ..now(InterfaceProof::default()) },
            pair: None,
        });
        if at.number == MOST {
            at.proof.not_applicable = Some(format!("{MOST} interfaces are proven, and this is one more"));
            return;
        }
        if let Some(pair) = &mut at.pair {
            pair.network.register_again();
            pair.network.settings = settings.clone();
            let is_same = at.entry == *entry
                && pair.guests.are_there(host)
                && pair.network.is_there(host)
                && Assignment::new(&pair.network, &pair.guests, &settings.proof.must_pass) == pair.assignment;
            if is_same {
                // Its probe could not be started.
                let path = at.proof.fault.is_some().then(|| pair.guests.first.path());
                if let Some(fault) = path.map(|path| self.start(&name, &path).err())
                    && let Some(at) = self.places.get_mut(&name)
                {
                    at.proof.fault = fault;
                }
                return;
            }
            lock(&self.handouts).remove(&name);
            at.pair = None;
        }
        at.entry = entry.clone();
        let made = make(&self.daemon, entry, settings, host, at.number);
        match made {
            Ok((pair, handles)) => {
                (at.proof.fault, at.proof.not_applicable) = (None, None);
                self.made = self.made.wrapping_add(1);
                let task = Arc::new((pair.assignment.clone(), handles));
                let path = pair.guests.first.path();
                at.pair = Some(pair);
                lock(&self.handouts).insert(name.clone(), Handout { number: self.made, task, probe: None });
                let fault = self.start(&name, &path).err();
                if let Some(at) = self.places.get_mut(&name) {
                    at.proof.fault = fault;
                }
            }
            Err(Untried::NotApplicable(why)) => (at.proof.not_applicable, at.proof.fault) = (Some(why), None),
            Err(Untried::Failed(why)) => (at.proof.fault, at.proof.not_applicable) = (Some(why), None),
        }
    }

    /// Starts the probe of an interface anew. Without a service manager, somebody else does.
    fn start(&self, interface: &str, namespace: &str) -> Result<(), String> {
        let instance = escaped(interface);
        let link = self.place.namespaces().join(&instance);
        let _ = fs::remove_file(&link);
        symlink(namespace, &link).map_err(|error| format!("{}: {error}", link.display()))?;
        if !system::has_manager() {
            return Ok(());
        }
        let unit = unit_of(&instance);
        // It may have ended too often while the one before was gone.
        let _ = systemd::systemctl(&["reset-failed", &unit]);
        systemd::systemctl(&["restart", "--no-block", &unit])
    }

    fn take_down(&self, at: &At) {
        let instance = escaped(&at.proof.interface);
        let _ = fs::remove_file(self.place.namespaces().join(&instance));
        if system::has_manager() && at.pair.is_some() {
            // It ends with its connection as well.
            let _ = systemd::systemctl(&["stop", "--no-block", &unit_of(&instance)]);
        }
    }

    fn note(&mut self, interface: &str, number: u64, report: RoundReport) {
        let is_current = lock(&self.handouts).get(interface).is_some_and(|handout| handout.number == number);
        let Some(at) = self.places.get_mut(interface).filter(|_| is_current) else { return };
        let sound = |checked: Checked| Checked {
            family: checked.family.chars().take(8).collect(),
            seen: printable(&checked.seen.chars().take(MAX_SEEN).collect::<String>()),
            url: checked.url.map(|url| printable(&url.chars().take(MAX_SEEN).collect::<String>())),
            ..checked
        };
        at.proof = now(InterfaceProof {
            // Whatever was wrong with its start, it runs.
            fault: None,
            rounds: at.proof.rounds.saturating_add(1),
            other_packets: at.proof.other_packets.saturating_add(report.other_packets),
            checks: report.checks.into_iter().take(MAX_CHECKS).map(sound).collect(),
            ..at.proof.clone()
        });
    }

    /// Writes what is known.
    fn write(&self, is_stopped: bool) -> Result<(), Failure> {
        let interfaces = self.places.values().map(|at| at.proof.clone()).collect();
        let proof = Proof::new(interfaces, is_stopped);
        let text = serde_json::to_vec(&proof).map_err(io::Error::from)?;
        let file = self.place.file();
        replace(&file, &text, Attributes { mode: 0o644, ..Attributes::PRIVATE })
            .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))
    }
}

/// Returns the proof with the present time.
fn now(proof: InterfaceProof) -> InterfaceProof {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX);
    InterfaceProof { at, at_unix: unix.as_secs(), ..proof }
}

/// Makes two guests behind an interface, their sentinel, and the sockets for a probe.
fn make(
    daemon: &Daemon,
    entry: &GuestEntry,
    settings: &Settings,
    host: &Host,
    number: u8,
) -> Result<(Pair, Handles), Untried> {
    match entry {
        GuestEntry::Bridge(_) | GuestEntry::Pattern(_) => {}
        GuestEntry::Single(name) => {
            let why = format!("{name} is the interface of one guest, and nothing else can send through it");
            return Err(Untried::NotApplicable(why));
        }
        GuestEntry::Missing(name) => return Err(Untried::NotApplicable(format!("{name} does not exist now"))),
    }
    let entries = std::slice::from_ref(entry);
    let traces = Traces::of_proof(number);
    let network =
        Network::make(daemon, settings.clone(), entries, host.clone(), &[], traces).map_err(Untried::failed)?;
    let guests = network.guests(entry)?;
    let assignment = Assignment::new(&network, &guests, &settings.proof.must_pass);
    let handles = assignment.handles(&network, &guests).map_err(Untried::failed)?;
    Ok((Pair { guests, network, assignment }, handles))
}

fn unit_of(instance: &str) -> String {
    format!("outgate-proof@{instance}.service")
}

/// Returns the name as systemd-escape(1) writes it.
fn escaped(name: &str) -> String {
    let mut out = String::new();
    for (at, byte) in name.bytes().enumerate() {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_') || (byte == b'.' && at > 0);
        match byte {
            _ if is_plain => out.push(char::from(byte)),
            b'/' => out.push('-'),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

/// Lets probes connect, each in a thread of its own.
fn listen(place: &Place, handouts: &Handouts, tell: SyncSender<Told>) -> io::Result<()> {
    let path = place.socket();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(&path)?;
    // Who it is counts.
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    let handouts = Arc::clone(handouts);
    let accept = move || {
        let open = Arc::new(AtomicU16::new(0));
        for probe in socket.incoming() {
            let Ok(probe) = probe else {
                // If descriptors have run out, an immediate retry does not help.
                std::thread::sleep(TICK);
                continue;
            };
            let may = socket_peercred(&probe).is_ok_and(|peer| may_report(peer.uid.as_raw()));
            if !may || open.load(Ordering::Relaxed) > u16::from(MOST).saturating_mul(2) {
                continue;
            }
            open.fetch_add(1, Ordering::Relaxed);
            let (handouts, tell, open) = (Arc::clone(&handouts), tell.clone(), Arc::clone(&open));
            let serve = move || {
                // A probe that is gone is started again, and its silence shows.
                let _ = serve(probe, &handouts, &tell);
                open.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().spawn(serve).is_err() {
                std::thread::sleep(TICK);
            }
        }
    };
    std::thread::Builder::new().spawn(accept)?;
    Ok(())
}

/// Returns whether a user's rounds count: those of the probes' user, or root's where it does not exist.
fn may_report(user: u32) -> bool {
    user == 0 || outgate::firewall::user_number(USER) == Some(user)
}

/// Gives a probe its task and reads its rounds.
fn serve(probe: UnixStream, handouts: &Handouts, tell: &SyncSender<Told>) -> io::Result<()> {
    let mut reader = BufReader::new(probe.try_clone()?);
    let mut name = String::new();
    (&mut reader).take(MAX_NAME).read_line(&mut name)?;
    let name = name.trim_end().to_owned();
    let (number, task) = {
        let mut handouts = lock(handouts);
        let handout = handouts.get_mut(&name).ok_or(io::ErrorKind::NotFound)?;
        // One at a time: the one before may hang.
        if let Some(before) = handout.probe.replace(probe.try_clone()?) {
            before.shutdown(Shutdown::Both)?;
        }
        (handout.number, Arc::clone(&handout.task))
    };
    let mut writer = probe;
    let (assignment, handles) = &*task;
    handles.send(assignment, &mut writer)?;
    drop(task);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(MAX_REPORT).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let report: RoundReport = serde_json::from_slice(&line)?;
        tell.send((name.clone(), number, report)).map_err(io::Error::other)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_escaped_as_systemd_does() {
        for (name, wanted) in [("br0", "br0"), ("veth*", "veth\\x2a"), ("br-a.1", "br\\x2da.1"), (".x", "\\x2ex")] {
            assert_eq!(escaped(name), wanted);
        }
    }
}
