//! `outgate firewall`: prints, applies, removes and inspects the ruleset and the routing that direct guests'
//! traffic to outgate and refuse the rest, and keeps them in force for interfaces that appear later.

mod watch;

use super::exec::warn;
use super::lock::Lock;
use super::{Config, Exit, Failure, Outcome, bridge};
use super::{systemd, table};
use clap::{Args, Subcommand};
use outgate::config::{ConfigError, Copies, Copy, Settings};
use outgate::firewall::{self, FirewallError, Host, Plan, Status};
use outgate::text::{grouped, printable};
use serde_json::json;
use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Direct guests' traffic to outgate and refuse the rest, whether or not the daemon runs
///
/// Uses the nftables tables `outgate` (inet, bridge and arp) and `inet outgate_timeouts`, and routing rules that keep
/// guests closed even after nftables is flushed. The kernel's state is the only record: after a change of [firewall],
/// [[guest]] or [listen], apply again. For interfaces that are added later, run `watch`, or apply again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate firewall print
  outgate firewall apply
  outgate firewall status --json | jq .differences")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Print(PrintArguments),
    Apply(ApplyArguments),
    Remove(RemoveArguments),
    Status(StatusArguments),
    Watch(watch::Arguments),
}

/// Print the ruleset and routing that `apply` would install
///
/// Changes nothing. Without root it assumes that the kernel can match bridges.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate firewall print
  outgate firewall print --config ./outgate.toml | less
  outgate firewall print --json | jq -r .ruleset | nft -c -f -")]
struct PrintArguments {
    #[command(flatten)]
    common: Common,
}

/// Install the ruleset and routing, or update them
///
/// Closes before it opens: routing rules, then the ruleset in one transaction, then bridge ports and kernel settings.
/// It can be repeated at any time; open connections stay open. Requires root.
///
/// An invalid configuration is not applied, and a ruleset that is in place stays. If there is none, the last applied
/// configuration is applied again, from a copy that root keeps. Without a copy, all known guest interfaces are closed
/// completely. The exit code is 1 in each case.
///
/// Exit code 0 if it is in force, 1 if it was not applied completely, 6 if it was and something on this machine defeats
/// it: another firewall blocks guests, or Docker's resolver lets names past. The warnings say what, with the remedy.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate firewall apply
  outgate firewall apply --config ./outgate.toml")]
struct ApplyArguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    kept: CopiesArguments,
}

/// Remove the ruleset and routing, and list the interfaces that are open then
///
/// Bridge ports are no longer isolated and guarded. Kernel settings of guests' interfaces (rp_filter and the like)
/// stay as they are. Requires root.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate firewall remove")]
struct RemoveArguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    kept: CopiesArguments,
}

/// Check that everything is in place: differences, counters, and other firewalls that block guests
///
/// Exit code 0 if everything is in place, 1 if not. Requires root.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate firewall status
  outgate firewall status --json | jq '.counters[] | select(.packets > 0)'")]
struct StatusArguments {
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
struct Common {
    #[command(flatten)]
    config: Config,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Where copies of what was applied are.
#[derive(Args, Debug)]
struct CopiesArguments {
    /// Where root keeps a copy of what was applied [default: /var/lib/outgate-host for
    /// /etc/outgate/outgate.toml; no copy of another file]
    #[arg(long, value_name = "DIR")]
    copies: Option<PathBuf>,
}

impl CopiesArguments {
    fn of(&self, common: &Common) -> Option<Copies> {
        Copies::of(common.config.file(), self.copies.as_deref())
    }
}

impl From<FirewallError> for Failure {
    fn from(error: FirewallError) -> Failure {
        Failure::Failed(printable(&error.to_string()))
    }
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    // Without root it would fail at the first file that only root reads, whose name helps nobody.
    if !matches!(arguments.command, Command::Print(_)) && !outgate::system::is_root() {
        return Err(FirewallError::NotRoot.into());
    }
    match &arguments.command {
        Command::Print(arguments) => print(&arguments.common, out),
        Command::Apply(arguments) => apply(&arguments.common, arguments.kept.of(&arguments.common), out),
        Command::Remove(arguments) => remove(&arguments.common, arguments.kept.of(&arguments.common), out),
        Command::Status(arguments) => status(&arguments.common, out),
        Command::Watch(arguments) => watch::run(arguments),
    }
}

/// How often `status` looks again if interfaces appear or disappear in the meantime.
const RETRIES: usize = 3;
/// The lock of processes that change the firewall.
const LINE: &str = "/run/outgate-firewall/lock";

/// Serialises everything from reading the guests to applying their ruleset: of two overlapping runs, the slower
/// one would restore the earlier guests. If no lock is available, as on a read-only system, the firewall is more
/// important.
pub(super) fn in_line() -> Option<Lock> {
    let line = Path::new(LINE);
    // systemd-tmpfiles creates it for a unit that cannot; if it cannot be created, the lock fails.
    let _ = line.parent().map(|folder| DirBuilder::new().mode(0o700).create(folder));
    Lock::wait(line).ok()
}

fn plan(config: Option<&Path>) -> Result<(Settings, Plan, Host), Failure> {
    let (settings, _) = Settings::load(config)?;
    let (plan, host) = plan_for(&bridge::with_pins(&settings)?)?;
    Ok((settings, plan, host))
}

/// Plans the firewall of these settings for this machine. Changes nothing.
pub(super) fn plan_for(settings: &Settings) -> Result<(Plan, Host), Failure> {
    let host = Host::look()?;
    Ok((Plan::new(&settings.plan_input(), &host), host))
}

fn print(common: &Common, out: &mut dyn Write) -> Outcome {
    let (settings, _) = Settings::load(common.config.file())?;
    let (plan, host) = plan_for(&bridge::with_known(settings)?)?;
    let (ruleset, routing, settings) = (plan.ruleset(), plan.routing_lines(), plan.sysctl_lines(&host));
    if common.json {
        let routing: Vec<&String> = routing.iter().filter(|line| !line.starts_with('#')).collect();
        let notes: Vec<&String> = plan.faults().iter().chain(plan.notes()).collect();
        return write_json(&json!({ "ruleset": ruleset, "routing": routing, "sysctl": settings, "notes": notes }), out);
    }
    for note in plan.faults().iter().chain(plan.notes()) {
        writeln!(out, "# note: {}", printable(note))?;
    }
    writeln!(out, "# Ruleset, for nft -f -")?;
    write!(out, "{ruleset}")?;
    writeln!(out, "\n# Routing, for ip -4 -batch - and for ip -6 -batch -")?;
    routing.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    writeln!(out, "\n# Kernel settings of guests' interfaces, for sysctl -p -; `remove` leaves them")?;
    settings.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    Ok(Exit::Good)
}

/// Keeps a copy of what was applied; returns what prevented that.
fn keep(copies: Option<&Copies>, settings: &Settings) -> Option<String> {
    let copies = copies?;
    let noted = copies.note_interfaces(&settings.firewall.guest_interfaces);
    let kept = noted.and_then(|()| copies.keep(Copy::Applied, settings));
    kept.err().map(|error| format!("no copy of this configuration is kept for a start with an invalid one: {error}"))
}

/// Applies it for another command, which has its own output.
pub(super) fn apply_quietly(config: Option<&Path>) -> Result<(), Failure> {
    let _in_line = in_line();
    let (settings, plan, host) = plan(config)?;
    let applied = firewall::apply(&plan, &host)?;
    // Obstacles to a copy are reported by `apply` itself.
    let _ = keep(Copies::of(config, None).as_ref(), &settings);
    match applied.faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(format!("the firewall: {}", printable(&applied.faults.join("; "))))),
    }
}

/// Removes it for another command, and writes what is open then.
pub(super) fn remove_for(config: &Config, out: &mut dyn Write) -> Outcome {
    let common = Common { config: config.clone(), json: false };
    let copies = Copies::of(common.config.file(), None);
    remove(&common, copies, out)
}

/// Inspects it for another command. Returns what other firewalls drop beside it, one sentence each.
pub(super) fn state(config: Option<&Path>) -> Result<(Status, Vec<String>), Failure> {
    let (settings, _) = Settings::load(config)?;
    let (plan, host) = plan_for(&bridge::with_pins(&settings)?)?;
    let status = firewall::status(&plan, &host)?;
    let cut_off = status.warnings.iter().filter(|warning| !plan.notes().contains(warning)).cloned().collect();
    Ok((status, cut_off))
}

fn apply(common: &Common, copies: Option<Copies>, out: &mut dyn Write) -> Outcome {
    let _in_line = in_line();
    let config = common.config.file();
    let wanted = |made: (Settings, Plan, Host)| match made.1.is_wanted() || copies.as_ref().is_none_or(Copies::is_empty)
    {
        true => Ok(made),
        // An empty file is valid, and requires no firewall.
        false => Err(Failure::Failed(format!(
            "{}; to remove the firewall that was applied before, which opens its guests, run `outgate firewall remove`",
            FirewallError::NotWanted
        ))),
    };
    let (settings, plan, host) = match plan(config).and_then(wanted) {
        Ok(made) => made,
        Err(failure) => return Err(close_at_least(config, copies.as_ref(), failure, out)),
    };
    let mut applied = firewall::apply(&plan, &host)?;
    applied.warnings.extend(keep(copies.as_ref(), &settings));
    let whole = applied.faults.is_empty();
    if common.json {
        let answer = json!({
            "applied": whole, "interfaces": applied.interfaces, "faults": applied.faults, "warnings": applied.warnings,
            "cut_off": applied.cut_off, "leaks": applied.leaks
        });
        write_json(&answer, out)?;
    } else {
        let interfaces = listed(&applied.interfaces, "none exists yet");
        writeln!(out, "the firewall is in place; guests' interfaces: {interfaces}")?;
        write_list("warning", &applied.warnings, out)?;
        write_list("failed", &applied.faults, out)?;
    }
    Ok(match (whole, applied.cut_off.is_empty() && applied.leaks.is_empty()) {
        (false, _) => Exit::No,
        (true, false) => Exit::CutOff,
        (true, true) => Exit::Good,
    })
}

/// Handles a broken configuration. A ruleset that is in place stays as it is. If there is none, the configuration
/// that was applied last is applied again. Otherwise guests' interfaces are closed altogether, those that can be
/// read and those that any earlier configuration named: guests must not gain access because of a typing error.
fn close_at_least(config: Option<&Path>, copies: Option<&Copies>, failure: Failure, out: &mut dyn Write) -> Failure {
    if firewall::is_any_there() {
        return failure;
    }
    // Prints what it can beside the failure itself; a closed pipe changes nothing.
    let readable = Settings::load_leniently(config).map(|(settings, _)| settings).unwrap_or_default();
    match again(copies, &readable.firewall.guest_interfaces) {
        Ok(Some(said)) => {
            let _ = writeln!(out, "{said}");
            return failure;
        }
        Ok(None) => {}
        Err(why) => {
            let _ = writeln!(out, "the configuration that was applied last cannot be applied: {}", printable(&why));
        }
    }
    let mut closed = readable;
    closed.listen = closed.listen.without_guests();
    closed.firewall.pins.clear();
    if let Some(Err(later)) = copies.map(Copies::interfaces_version) {
        let _ = writeln!(out, "{}", printable(&later.to_string()));
    }
    closed.firewall.guest_interfaces.extend(copies.map(Copies::interfaces).unwrap_or_default());
    closed.firewall.guest_interfaces.sort();
    closed.firewall.guest_interfaces.dedup();
    if closed.firewall.guest_interfaces.is_empty() {
        return failure;
    }
    let applied = Host::look().and_then(|host| firewall::apply(&Plan::new(&closed.plan_input(), &host), &host));
    let _ = match applied {
        Ok(_) => writeln!(out, "guests' interfaces are closed completely until the configuration is valid and applied"),
        Err(error) => writeln!(out, "guests' interfaces could not be closed either: {}", printable(&error.to_string())),
    };
    failure
}

/// Applies what was applied last, also for the interfaces in `also` that were named since; returns the message
/// about it, or why it cannot be applied.
fn again(copies: Option<&Copies>, also: &[String]) -> Result<Option<String>, String> {
    let Some(copies) = copies else { return Ok(None) };
    let Some(mut kept) = copies.load(Copy::Applied).map_err(|error| error.to_string())? else { return Ok(None) };
    let named = &mut kept.settings.firewall.guest_interfaces;
    let new: Vec<String> = also.iter().filter(|name| !named.contains(name)).cloned().collect();
    named.extend(new);
    let (plan, host) =
        bridge::with_pins(&kept.settings).and_then(|all| plan_for(&all)).map_err(|failure| failure.to_string())?;
    let applied = firewall::apply(&plan, &host).map_err(|error| error.to_string())?;
    let faults: String = applied.faults.iter().map(|fault| format!("\nfailed: {}", printable(fault))).collect();
    Ok(Some(format!(
        "the configuration that was applied last is in force again, {} of {}; correct the file and run `outgate \
         firewall apply`{faults}",
        kept.path.display(),
        kept.made
    )))
}

fn remove(common: &Common, copies: Option<Copies>, out: &mut dyn Write) -> Outcome {
    let _in_line = in_line();
    // The present state is removed, whether the configuration is valid or not.
    let settings = match Settings::load_leniently(common.config.file()) {
        Ok((settings, _)) => settings,
        Err(ConfigError::Invalid(_)) => Settings::default(),
        Err(error) => return Err(error.into()),
    };
    // What it would find is what is wanted now.
    let proof_is_stopped = stop_proof();
    let host = Host::look()?;
    let mut removed = firewall::remove(&Plan::new(&settings.plan_input(), &host), &host)?;
    if let Some(Err(error)) = copies.map(|copies| copies.forget_applied()) {
        removed.faults.push(format!("the copy of what was applied is still there: {error}"));
    }
    let whole = removed.faults.is_empty();
    if common.json {
        let answer = json!({
            "removed": whole, "open": removed.open, "patterns": removed.patterns,
            "forwarding": removed.forwarding, "faults": removed.faults, "proof_stopped": proof_is_stopped
        });
        write_json(&answer, out)?;
    } else {
        let open: Vec<String> = removed.open.iter().chain(&removed.patterns).cloned().collect();
        writeln!(out, "the firewall is removed")?;
        if proof_is_stopped {
            writeln!(out, "{PROOF} is stopped: nothing is guarded that it could prove")?;
        }
        if !open.is_empty() {
            let beyond = if removed.forwarding {
                "and, because this machine forwards, the networks behind it"
            } else {
                "this machine does not forward"
            };
            writeln!(
                out,
                "open now: {}; guests there reach this machine's own services, each other, {beyond}",
                printable(&open.join(", "))
            )?;
        }
        write_list("failed", &removed.faults, out)?;
    }
    Ok(if whole { Exit::Good } else { Exit::No })
}

/// The unit of the running proof.
const PROOF: &str = "outgate-proof-net.service";

/// Stops the proof; returns whether it ran.
fn stop_proof() -> bool {
    systemd::is_init()
        && systemd::show(PROOF, "ActiveState") == "active"
        && systemd::systemctl(&["stop", PROOF]).inspect_err(|why| warn(why)).is_ok()
}

fn status(common: &Common, out: &mut dyn Write) -> Outcome {
    let (settings, _) = Settings::load(common.config.file())?;
    let settings = bridge::with_pins(&settings)?;
    let (mut plan, mut host) = plan_for(&settings)?;
    let mut status = firewall::status(&plan, &host)?;
    for _ in 0..RETRIES {
        let now = host.again()?;
        if status.in_place || now == host {
            break;
        }
        // An interface appeared or disappeared in the meantime, and the watcher has handled it: no difference.
        (plan, host) = (Plan::new(&settings.plan_input(), &now), now);
        status = firewall::status(&plan, &host)?;
    }
    let exit = if status.in_place { Exit::Good } else { Exit::No };
    if common.json {
        write_json(&serde_json::to_value(&status).map_err(io::Error::from)?, out)?;
        return Ok(exit);
    }
    let interfaces = listed(&status.interfaces, "none exists yet");
    if status.in_place {
        writeln!(out, "the firewall is in place; guests' interfaces: {interfaces}")?;
    } else {
        writeln!(out, "the firewall is not in place as configured; run `outgate firewall apply`")?;
    }
    if !status.between_guests_allowed.is_empty() {
        let bridges = printable(&status.between_guests_allowed.join(", "));
        writeln!(out, "guests of one network reach each other: {bridges}")?;
    }
    write_list("differs", &status.differences, out)?;
    write_list("warning", &status.warnings, out)?;
    let rows: Vec<Vec<String>> = status
        .counters
        .iter()
        .filter(|counter| counter.packets > 0)
        .map(|counter| vec![grouped(counter.packets), counter.chain.clone(), printable(&counter.rule)])
        .collect();
    if !rows.is_empty() {
        writeln!(out)?;
        table::write(out, &["PACKETS", "CHAIN", "RULE"], &rows)?;
    }
    Ok(exit)
}

fn write_list(word: &str, lines: &[String], out: &mut dyn Write) -> io::Result<()> {
    lines.iter().try_for_each(|line| writeln!(out, "{word}: {}", printable(line)))
}

fn write_json(answer: &serde_json::Value, out: &mut dyn Write) -> Outcome {
    writeln!(out, "{}", serde_json::to_string_pretty(answer).map_err(io::Error::from)?)?;
    Ok(Exit::Good)
}

fn listed(names: &[String], none: &str) -> String {
    if names.is_empty() { none.to_owned() } else { printable(&names.join(", ")) }
}
