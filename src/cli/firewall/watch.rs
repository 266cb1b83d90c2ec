//! `outgate firewall watch`: while it runs, what was applied also holds for interfaces that appear later. Its only
//! input is the kernel's events about interfaces, and the files that `apply` reads.

use super::super::{Config, Failure, Outcome, bridge};
use super::{in_line, printable};
use clap::Args;
use outgate::config::{self, SYSTEM_CONTROL, Settings};
use outgate::control::host::{self, ReportSender};
use outgate::files::Stamp;
use outgate::firewall::{
    self, AppliedState, Events, Finding, FindingKind, GuardReport, Host, Mended, Plan, Presence, Seal,
};
use outgate::system;
use outgate::trouble::{HostReport, Trouble, TroubleCause};
use sd_notify::NotifyState;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Interval between two full inspections.
const FULL: Duration = Duration::from_secs(60);
/// Interval between two checks of what changes without any event, so that a change is reported within 10 s.
const QUIET: Duration = Duration::from_secs(7);
/// Minimum interval between two reports on what others have changed.
const REPORT: Duration = Duration::from_secs(2);
/// Reports and quiet checks rest for this many times as long as they take, in case there are so many interfaces or
/// rules that they would occupy a CPU, but no longer than until the next full inspection.
const SHARE: u32 = 10;
/// Interval between two checks of what causes no event: whether br_netfilter is loaded, and whether the
/// configuration has changed.
const SECOND: Duration = Duration::from_secs(1);
/// The first pause before another look at a container that has no address yet; each is twice as long as the one before.
const SETTLE: Duration = Duration::from_millis(100);
/// How many such looks there are.
const SETTLING: u32 = 5;
/// Pause after each inspection, so that interfaces that constantly appear and disappear do not occupy a CPU.
const PAUSE: Duration = Duration::from_millis(100);

/// Keep the applied firewall in force for interfaces that appear later
///
/// Runs until it is told to stop; `outgate-host.service` runs it. When an interface or a bridge port appears, and
/// within seven seconds in any case, it does what `apply` would do for them: it isolates and guards guests' ports,
/// adds them to the ruleset, adds the routing rules that keep them closed, and applies their kernel settings. It
/// never opens anything and never installs a ruleset: a change of the configuration waits for `apply`, and after
/// `remove` it has nothing to do. Requires root.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate firewall watch
  systemctl status outgate-host.service")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    if !system::is_root() {
        return Err(firewall::FirewallError::NotRoot.into());
    }
    let mut events = Events::subscribe()
        .map_err(|error| Failure::Failed(format!("changes of interfaces cannot be received: {error}")))?;
    firewall::keep_swept(say)
        .map_err(|error| Failure::Failed(format!("the thread that sweeps connection tracking: {error}")))?;
    let sender =
        ReportSender::start().map_err(|error| Failure::Failed(format!("the thread that tells the daemon: {error}")))?;
    let mut watch = Watch {
        config: arguments.config.file().map(Path::to_owned),
        sender: Some(sender),
        looks_left: SETTLING,
        ..Watch::default()
    };
    let mut full = Instant::now();
    loop {
        if Instant::now() >= full {
            watch.host = None;
            full = Instant::now() + FULL;
        }
        let state = watch.look();
        watch.send_report();
        system::notify(&[NotifyState::Ready, NotifyState::Status(&state), NotifyState::Watchdog]);
        std::thread::sleep(PAUSE);
        let mut quiet = Instant::now() + QUIET;
        loop {
            let changed = events
                .wait(full.min(quiet).min(watch.again.unwrap_or(full)).min(Instant::now() + SECOND))
                .map_err(|error| Failure::Failed(format!("changes cannot be received: {error}")))?;
            watch.report_due |= changed.rules;
            if changed.interfaces {
                watch.looks_left = SETTLING;
            }
            if changed.interfaces || Instant::now() >= full || watch.wants_a_look() {
                break;
            }
            if Instant::now() >= quiet {
                let begun = Instant::now();
                if !watch.is_as_before() {
                    break;
                }
                quiet = Instant::now() + (begun.elapsed() * SHARE).clamp(QUIET, FULL);
            }
            watch.send_report();
        }
    }
}

#[derive(Default)]
struct Watch {
    config: Option<PathBuf>,
    /// The last state seen; its interfaces are inspected anew each time, the rest once a minute.
    host: Option<Host>,
    /// The plan that applied to interfaces at the last look.
    plan: Option<Plan>,
    /// The configuration that was in force last.
    applied: Option<Settings>,
    /// The last faults, so that each is logged once.
    said: Vec<String>,
    /// What the last inspection found; empty if there was nothing to inspect, or if that failed.
    found: GuardReport,
    /// The report for the daemon.
    report: HostReport,
    /// When the report was made.
    reported: Option<Instant>,
    /// How long making it took.
    report_took: Duration,
    /// Whether something has changed since.
    report_due: bool,
    /// The stamps of the configuration's files at the last look.
    files: Vec<(PathBuf, Stamp)>,
    /// The interfaces that carry no guests, by the last readable file.
    not_guests: Vec<String>,
    /// The daemon's socket.
    socket: PathBuf,
    sender: Option<ReportSender>,
    told: Option<Instant>,
    /// When to look again although nothing has changed: a container gets its addresses after its port, without any
    /// event here.
    again: Option<Instant>,
    /// How many such looks there are left after the last change of interfaces.
    looks_left: u32,
}

impl Watch {
    /// Returns whether something has changed that no interface event reported.
    fn wants_a_look(&self) -> bool {
        (self.report_due && self.may_report())
            || self.again.is_some_and(|at| Instant::now() >= at)
            || self.files != self.files_now()
            || self.host.as_ref().is_some_and(firewall::br_netfilter_has_come)
    }

    /// Returns whether everything that causes no event is as at the last look. True if no firewall was applied.
    fn is_as_before(&self) -> bool {
        let (Some(plan), Some(host)) = (&self.plan, &self.host) else { return true };
        host.again().is_ok_and(|now| firewall::is_as_reported(plan, &now, &self.not_guests, &self.found))
    }

    /// Returns whether enough time has passed since the last report.
    fn may_report(&self) -> bool {
        let pause = (self.report_took * SHARE).clamp(REPORT, FULL);
        self.reported.is_none_or(|reported| reported.elapsed() >= pause)
    }

    fn files_now(&self) -> Vec<(PathBuf, Stamp)> {
        config::stamps(self.config.as_deref())
    }

    /// Reports to the daemon, at once if something is new, otherwise at intervals.
    fn send_report(&mut self) {
        let is_new = self.told.is_none_or(|told| self.reported.is_some_and(|reported| reported > told));
        if is_new || self.told.is_none_or(|told| told.elapsed() >= host::EVERY) {
            if let Some(sender) = &self.sender {
                sender.send(&self.socket, &self.report);
            }
            self.told = Some(Instant::now());
        }
    }

    /// Inspects and mends; returns a status line.
    fn look(&mut self) -> String {
        let (mended, ports) = match self.mend() {
            Ok(Some((mended, interfaces))) => (mended, Some(interfaces)),
            Ok(None) => (Mended::default(), None),
            Err(failure) => {
                let blind = format!("outgate-host.service cannot inspect the firewall: {}", plain(&failure));
                self.report =
                    HostReport { troubles: vec![Trouble::new(TroubleCause::Watcher, blind)], ..HostReport::default() };
                self.found = GuardReport::default();
                (self.reported, self.report_due) = (Some(Instant::now()), false);
                (Mended { faults: vec![plain(&failure)], ..Mended::default() }, None)
            }
        };
        for done in &mended.done {
            say(done);
        }
        for fault in mended.faults.iter().filter(|fault| !self.said.contains(fault)) {
            say(&format!("failed: {fault}"));
        }
        if mended.faults.is_empty() && !self.said.is_empty() {
            say("nothing fails any more");
        }
        let state = match (mended.faults.first(), ports) {
            (Some(fault), _) => format!("failed: {}", printable(fault)),
            (None, None) => "the firewall is not applied; nothing to watch".to_owned(),
            (None, Some(ports)) => format!("watching; bridge ports of guests: {ports}"),
        };
        self.said = mended.faults;
        state
    }

    /// Mends, and returns what was done and how many ports there are; nothing if no firewall was applied.
    fn mend(&mut self) -> Result<Option<(Mended, usize)>, Failure> {
        let _in_line = in_line();
        let mut faults = Vec::new();
        let Some(basis) = self.basis(&mut faults)? else {
            // The daemon itself sees that there is none.
            (self.found, self.report) = (GuardReport::default(), HostReport::default());
            (self.report_due, self.plan) = (false, None);
            return Ok(None);
        };
        let host = match &self.host {
            Some(host) => host.again()?,
            None => Host::look()?,
        };
        let in_force = matches!(basis, Basis::InForce(_));
        let settings = match basis {
            Basis::InForce(settings) | Basis::Remembered(settings) => settings,
            Basis::Kernel => Settings { firewall: firewall::held(&host)?, ..Settings::default() },
        };
        let plan = Plan::new(&settings.plan_input(), &host);
        let came = self.host.as_ref().is_some_and(|before| before.sees_br_netfilter_come(&host));
        let mut mended = firewall::mend(&plan, &host, in_force, came);
        let pause = SETTLE * (1 << (SETTLING - self.looks_left));
        self.again = (mended.is_unsettled && self.looks_left > 0).then(|| Instant::now() + pause);
        self.looks_left = self.looks_left.saturating_sub(1);
        self.report_on(&plan, &host, &mended)?;
        mended.faults.splice(..0, faults);
        let ports = plan.guest_port_count(&host);
        (self.host, self.plan) = (Some(host), Some(plan));
        Ok(Some((mended, ports)))
    }

    /// Makes the report for the daemon, unless it was made just now: with many rules this takes a while.
    fn report_on(&mut self, plan: &Plan, host: &Host, mended: &Mended) -> Result<(), Failure> {
        if !self.may_report() {
            self.report_due = true;
            return Ok(());
        }
        let begun = Instant::now();
        // The state after mending.
        let host = host.again()?;
        self.found = firewall::report(plan, &host, &self.not_guests);
        let unmended =
            mended.faults.iter().map(|fault| Finding { kind: FindingKind::PortUnguarded, text: fault.clone() });
        self.found.findings.extend(unmended);
        self.report = self.found.clone().into();
        (self.reported, self.report_due, self.report_took) = (Some(Instant::now()), false, begun.elapsed());
        Ok(())
    }

    /// Returns the basis to apply; nothing if no firewall was applied.
    fn basis(&mut self, faults: &mut Vec<String>) -> Result<Option<Basis>, Failure> {
        self.files = self.files_now();
        let now = Settings::load(self.config.as_deref()).map_err(Failure::from);
        let now = now.and_then(|(settings, _)| bridge::with_pins(&settings));
        if let Ok(settings) = &now {
            self.not_guests.clone_from(&settings.not_guests);
        }
        let control = now.as_ref().ok().or(self.applied.as_ref()).and_then(|settings| settings.listen.control.clone());
        self.socket = host::path(control.as_deref().unwrap_or(Path::new(SYSTEM_CONTROL)));
        let applied_state = firewall::applied_state(now.as_ref().ok().map(seal))?;
        match (applied_state, now) {
            (AppliedState::Nothing, _) => {
                self.applied = None;
                return Ok(None);
            }
            (AppliedState::InForce, Ok(settings)) => {
                self.applied = Some(settings.clone());
                return Ok(Some(Basis::InForce(settings)));
            }
            (_, Ok(_)) => {
                faults.push("the ruleset is not that of the configuration: run `outgate firewall apply`".to_owned());
            }
            (_, Err(failure)) => faults.push(plain(&failure)),
        }
        // Another one may have been applied since, unnoticed.
        let remembered = match &self.applied {
            Some(applied) if applied_state == AppliedState::Flushed => Some(applied),
            Some(applied) => Some(applied).filter(|_| firewall::presence(seal(applied)) == Presence::InPlace),
            None => None,
        };
        Ok(Some(remembered.cloned().map_or(Basis::Kernel, Basis::Remembered)))
    }
}

/// The basis on which interfaces are guarded. It never includes an edit that nobody has applied: the edit may name
/// the interface of its author's own session.
enum Basis {
    /// The configuration, which is in force.
    InForce(Settings),
    /// The one that was in force last.
    Remembered(Settings),
    /// Only the kernel's own rules.
    Kernel,
}

fn seal(settings: &Settings) -> Seal {
    Seal::of(&settings.firewall, &settings.listen.for_firewall())
}

/// If nobody reads it, the watcher continues in any case.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "outgate: {}", printable(line));
}

fn plain(failure: &Failure) -> String {
    failure.to_string().trim_start_matches("outgate: ").to_owned()
}
