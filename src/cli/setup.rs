//! `outgate setup`: from the package to a guarded guest. It shows what is on this host, writes what guards an interface,
//! and undoes that.

mod change;
mod configuration;
mod daemon_json;
mod diff;
mod docker;
mod outcome;
mod overview;
mod plan;
mod record;

use super::interrupt::Interrupt;
use super::{Config, Exit, Failure, Outcome, error_json, files, listen, systemd};
use clap::Args;
use outgate::config::CONFIG_FILE;
use outgate::system;
use outgate::text::printable;
use plan::{Request, Todo};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Guard guests' interfaces: configuration, listeners, firewall and services in one step
///
/// Without --guest-interface it shows what is on this host and the command that would guard each interface, and changes
/// nothing. With it, it writes what is missing into /etc/outgate/conf.d/50-setup.toml, makes systemd listen there
/// (`listen apply`), enables and starts outgate-firewall.service and outgate-host.service, starts the daemon, and checks
/// the result. For Docker's bridges it also writes "dns" into /etc/docker/daemon.json, because dockerd otherwise asks
/// for containers from this host's own network, past the policy.
///
/// Everything is checked first: where something is in the way, nothing is changed. Where a later step fails, or a signal
/// such as that of Ctrl-C comes, what was there is put back. It can be repeated, and with another interface it adds.
/// Requires root, except for the overview and --dry-run.
///
/// --json prints one object. Where it fails that has `error`, the text that is on standard error too.
///
/// Exit code 0 if the guests are guarded, 1 if not, 6 if they are but another firewall blocks them, or dockerd has to be
/// restarted before containers' names are guarded.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate setup
  outgate setup --guest-interface br0 --dry-run
  outgate setup --guest-interface br0
  outgate setup --guest-interface docker0 --guest-interface 'br-*'
  outgate setup --migrate
  outgate setup --undo")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
    /// An interface by which guests' packets enter: a bridge, an interface of its own, or a pattern such as br-*
    #[arg(long, value_name = "INTERFACE")]
    guest_interface: Vec<String>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Put back what setup changed, and open the guests
    #[arg(long, conflicts_with_all = ["guest_interface", "migrate"])]
    undo: bool,
    /// Move hand-written drop-ins of outgate's socket units away, so that [listen] alone says where it listens
    #[arg(long)]
    migrate: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Held while setup runs.
const LOCK: &str = "/run/outgate-setup.lock";

/// The files that setup reads and writes.
#[derive(Clone, Debug)]
struct Paths {
    /// The configuration file.
    config: PathBuf,
    /// The one that setup writes beside it.
    own: PathBuf,
    /// What it changed.
    record: PathBuf,
    /// Where drop-ins are moved to.
    drop_ins: PathBuf,
    /// Where the operator's units are.
    units: PathBuf,
}

impl Paths {
    fn of(config: Option<&Path>) -> Paths {
        let config = config.unwrap_or(Path::new(CONFIG_FILE));
        let own = config.parent().unwrap_or(Path::new("")).join("conf.d").join(configuration::NAME);
        Paths {
            config: config.to_owned(),
            own,
            record: "/var/lib/outgate-host/setup.json".into(),
            drop_ins: "/var/lib/outgate-host/setup-drop-ins".into(),
            units: "/etc/systemd/system".into(),
        }
    }
}

/// What a run says: each line at once, or all of them in one JSON object at the end.
struct Teller<'o> {
    out: &'o mut dyn Write,
    is_json: bool,
    lines: Vec<String>,
    /// Whether the operator wants it to end.
    interrupt: Interrupt,
}

impl Teller<'_> {
    /// Says one line, or several in one text.
    fn say(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            let line = printable(line);
            if self.is_json {
                self.lines.push(line);
            } else {
                writeln!(self.out, "{line}")?;
            }
        }
        // A step may take long.
        self.out.flush()
    }

    /// Shows a text as it is, if not in JSON, where it is part of the object.
    fn show(&mut self, text: &str) -> io::Result<()> {
        if self.is_json {
            return Ok(());
        }
        for line in text.split_inclusive('\n') {
            write!(self.out, "{}", printable(line.trim_end_matches('\n')))?;
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    /// Ends the run: prints the object.
    fn end(&mut self, mut answer: Value, exit: Exit) -> Outcome {
        if self.is_json {
            if let Some(fields) = answer.as_object_mut() {
                fields.insert("said".to_owned(), std::mem::take(&mut self.lines).into());
            }
            writeln!(self.out, "{answer:#}")?;
        }
        Ok(exit)
    }

    /// Says that the operator interrupted the run, if so.
    ///
    /// # Errors
    /// Then.
    fn go_on(&self) -> Result<(), String> {
        if self.interrupt.has_come() { Err("interrupted by a signal".to_owned()) } else { Ok(()) }
    }
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    let paths = Paths::of(arguments.config.file());
    let mut teller = Teller { out, is_json: arguments.json, lines: Vec::new(), interrupt: Interrupt::default() };
    let outcome = attempt(arguments, &paths, &mut teller);
    if let Err(failure) = &outcome {
        let answer = error_json(failure, arguments.dry_run);
        // A pipe that is closed is why it failed.
        let _ = teller.end(answer, failure.exit());
    }
    outcome
}

fn attempt(arguments: &Arguments, paths: &Paths, teller: &mut Teller<'_>) -> Outcome {
    if arguments.guest_interface.is_empty() && !arguments.migrate && !arguments.undo {
        return overview::show(paths, arguments.json, teller.out);
    }
    if !arguments.dry_run {
        if !system::is_root() {
            let why = "run as root: it writes the configuration and starts services; --dry-run shows what it would do";
            return Err(Failure::Failed(why.to_owned()));
        }
        if paths.config != Path::new(CONFIG_FILE) {
            let why = format!(
                "the services read {CONFIG_FILE} and not {}: leave --config and OUTGATE_CONFIG out, or add --dry-run",
                paths.config.display()
            );
            return Err(Failure::Usage(why));
        }
    }
    let lock = |path| super::lock::Lock::wait(path).map_err(|error| Failure::Failed(error.to_string()));
    let _lock = if arguments.dry_run { None } else { Some(lock(Path::new(LOCK))?) };
    if !arguments.dry_run {
        let failed = |error| Failure::Failed(format!("signals cannot be caught: {error}; nothing was changed"));
        teller.interrupt = Interrupt::watch().map_err(failed)?;
    }
    if arguments.undo { undo(arguments, paths, teller) } else { guard(arguments, paths, teller) }
}

fn guard(arguments: &Arguments, paths: &Paths, teller: &mut Teller<'_>) -> Outcome {
    let request = Request { interfaces: &arguments.guest_interface, migrate: arguments.migrate };
    let todo = Todo::plan(paths, request)?;
    for note in &todo.notes {
        teller.say(&format!("note: {note}"))?;
    }
    for change in &todo.files {
        teller.show(&change.diff())?;
    }
    for drop_in in &todo.drop_ins {
        teller.show(&format!("{}, to {}:\n{}", drop_in.from.display(), drop_in.to.display(), drop_in.content.text))?;
    }
    let mut answer = todo.to_json();
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("dry_run".to_owned(), arguments.dry_run.into());
    }
    if todo.is_empty() {
        teller.say("nothing to change")?;
    }
    if arguments.dry_run {
        todo.lines().iter().try_for_each(|line| teller.say(&format!("would {line}")))?;
        return teller.end(answer, Exit::Good);
    }
    let docker = change::carry_out(&todo, paths, teller)?;
    if !systemd::is_init() {
        teller.say(&format!("systemd does not run this machine. Run by hand, as root: {}", plan::BY_HAND))?;
        return teller.end(answer, Exit::No);
    }
    let exit = match outcome::verify(&arguments.config, teller)? {
        Exit::Good => docker,
        other => other,
    };
    let (exit, verified) = match exit {
        Exit::Good | Exit::CutOff => outcome::try_out(arguments, exit, teller)?,
        other => (other, Value::Null),
    };
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("guarded".to_owned(), matches!(exit, Exit::Good | Exit::CutOff).into());
        fields.insert("verify".to_owned(), verified);
    }
    teller.end(answer, exit)
}

fn undo(arguments: &Arguments, paths: &Paths, teller: &mut Teller<'_>) -> Outcome {
    let found = record::Record::read(&paths.record).map_err(Failure::Failed)?;
    if !arguments.dry_run {
        // Of a run that was killed before it changed anything.
        files::tidy(&paths.record);
    }
    let Some(record) = found else {
        teller.say(&format!("nothing to undo: there is no {}", paths.record.display()))?;
        return teller.end(json!({ "dry_run": arguments.dry_run, "undone": false }), Exit::Good);
    };
    let back = change::Back::plan(&record, paths)?;
    for change in &back.files {
        teller.show(&change.diff())?;
    }
    let files: Vec<Value> = back.files.iter().map(plan::FileChange::to_json).collect();
    let answer = json!({ "dry_run": arguments.dry_run, "undone": !arguments.dry_run, "files": files });
    if arguments.dry_run {
        back.lines().iter().try_for_each(|line| teller.say(&format!("would {line}")))?;
        return teller.end(answer, Exit::Good);
    }
    let exit = back.carry_out(paths, &arguments.config, teller)?;
    teller.end(answer, exit)
}
