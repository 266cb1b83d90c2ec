//! The half of `outgate exec` that is inside: the first process of the command's PID namespace, this program
//! again. It sets up what the command sees (`mounts`) and its terminal, starts it through `command`, reaps
//! processes, forwards signals, and exits with the command's exit code. When it exits, the kernel ends everything
//! else in the namespace. It also exits when the outer half does, and nobody inside can end or trace it. It is not
//! on the command line, because it requires the environment that only its caller creates (`start`): the namespaces
//! and power over them, but nothing that root has on the machine.

mod command;
mod mounts;

pub(super) use command::Identity;
pub(super) use mounts::PROGRAM;

use super::apparmor::leave_profile;
use super::messages::{ToInner, ToOuter, receive, send};
use crate::cli::Failure;
use mounts::within;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, ioctl_tiocsctty, kill_process, kill_process_group,
    set_dumpable_behavior, set_parent_process_death_signal, setsid, wait,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{tcgetpgrp, tcsetpgrp};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

/// The first argument that selects this role.
pub(super) const WORD: &str = "exec-inside";
/// Before the command has started, these signals end it as they would end the command.
const ENDING: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];
/// Variables of a service manager that declare inherited descriptors (sd_listen_fds(3)); here they declare which
/// to close.
pub(super) const INHERITED: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The content of the second argument.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The process whose mounts stay as they are.
    pub(super) caller: u32,
    /// The server in its resolv.conf; `None` if it has none.
    pub(super) nameserver: Option<Ipv4Addr>,
    /// What it sees of /run.
    pub(super) show: Vec<PathBuf>,
    /// The program that is mounted as [`PROGRAM`].
    pub(super) program: Option<PathBuf>,
    /// The user as whom the command runs; `None` for that of this process.
    pub(super) identity: Option<Identity>,
    /// Which of the descriptors 0 to 2 are terminals.
    pub(super) terminals: [bool; 3],
    /// Devices that it does not see: the caller's terminals.
    pub(super) hide: Vec<PathBuf>,
}

impl Order {
    fn has_terminal(&self) -> bool {
        self.terminals.contains(&true)
    }
}

/// Runs as this half if this process was started for that; otherwise returns `None`.
pub(in crate::cli) fn take_over() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let word = arguments.next()?;
    if word == command::BECOME {
        return Some(command::become_it(arguments));
    }
    if word != WORD {
        return None;
    }
    let order = arguments.next().and_then(|order| serde_json::from_slice(order.as_encoded_bytes()).ok());
    let program: Vec<OsString> = arguments.collect();
    let failure = match order {
        Some(order) if !program.is_empty() => match run(&order, &program) {
            Ok(code) => return Some(code.into()),
            Err(error) => Failure::Failed(error.to_string()),
        },
        _ => Failure::Usage(format!("{WORD} is for `outgate exec` alone")),
    };
    failure.report();
    Some(failure.exit().into())
}

/// Runs the command; returns its exit code.
fn run(order: &Order, program: &[OsString]) -> io::Result<u8> {
    let namespace = |process: &str, kind: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
    let caller = order.caller.to_string();
    for kind in ["mnt", "pid"] {
        if namespace("self", kind)? == namespace(&caller, kind)? {
            return Err(io::Error::other(format!("{WORD} requires namespaces of its own")));
        }
    }
    // The kernel may have attached it again when it started this program.
    leave_profile()?;
    let talk = Arc::new(fcntl_dupfd_cloexec(io::stdin(), 0)?);
    unreachable()?;
    close_the_rest()?;
    own_ipc()?;
    mounts::prepare(order)?;
    let Some((ToInner::Descriptors, handed)) = receive(&talk)? else { return Ok(0) };
    let (master, terminal) = own_terminal(order)?.unzip();
    send(&talk, ToOuter::Ready, &master.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(master);
    let foreground = match receive(&talk)? {
        Some((ToInner::Start(foreground), _)) => foreground,
        Some((ToInner::Signal(signal, _), _)) if ENDING.contains(&signal) => {
            return Ok(code_of_signal(signal.as_raw()));
        }
        _ => return Ok(0),
    };
    // Also without a terminal: the caller's must not belong to this session.
    setsid()?;
    if let Some(terminal) = &terminal {
        ioctl_tiocsctty(terminal).map_err(|error| within("its terminal")(error.into()))?;
    }
    let pid = start(order, program, handed, terminal.as_ref())?;
    if let Some(terminal) = terminal.as_ref().filter(|_| foreground) {
        take_foreground(terminal, pid);
    }
    give_up()?;
    let (heard, held) = (Arc::clone(&talk), terminal.as_ref().map(AsFd::as_fd).map(|fd| fd.try_clone_to_owned()));
    let held = held.transpose()?;
    std::thread::Builder::new().spawn(move || listen(&heard, pid, held.as_ref()))?;
    reap(&talk, pid, terminal.as_ref())
}

/// Binds its life to that of the outer half, and prevents tracing by processes of the same user. Signals from
/// inside do not reach the first process of a namespace unless it installs a handler.
fn unreachable() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Closes all descriptors except the command's input and outputs: one that the caller has open by chance may be a
/// connection, or its terminal. [`INHERITED`] contains how many there may be.
fn close_the_rest() -> io::Result<()> {
    let numbers = fs::read_dir("/proc/self/fd")?.flatten();
    let highest = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).max().unwrap_or(2);
    let told = std::env::var("LISTEN_FDS").ok().and_then(|told| told.parse::<i32>().ok()).unwrap_or(0);
    let last = told.saturating_add(2);
    // All numbers up to there must be in use, because the closing call ends at the first one that is not.
    let mut fillers: Vec<OwnedFd> = Vec::new();
    while fillers.last().is_none_or(|filler| filler.as_raw_fd() <= last) {
        fillers.push(fcntl_dupfd_cloexec(io::stdin(), 3)?);
    }
    let closed = sd_notify::listen_fds()?.len();
    if highest > last || i32::try_from(closed).ok() != Some(told) {
        return Err(io::Error::other(format!("descriptors up to {highest} are open, and {closed} were closed")));
    }
    Ok(())
}

#[expect(deprecated, reason = "what is not safe is to unshare the table of descriptors, and this does not")]
fn own_ipc() -> io::Result<()> {
    rustix::thread::unshare(UnshareFlags::NEWIPC).map_err(|error| within("IPC of its own")(error.into()))
}

/// Opens both sides of a terminal of the command's own, if it has one.
fn own_terminal(order: &Order) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    if !order.has_terminal() {
        return Ok(None);
    }
    let make = || -> Result<(OwnedFd, OwnedFd), Errno> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = open("/dev/pts/ptmx", flags, Mode::empty())?;
        unlockpt(&master)?;
        let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        if let Some(identity) = &order.identity {
            // Programs open it by its name.
            fchown(&terminal, Some(Uid::from_raw(identity.uid())), None::<Gid>)?;
        }
        Ok((master, terminal))
    };
    make().map(Some).map_err(|error| within("its terminal")(error.into()))
}

/// Starts the command in a process group of its own, so that a terminal can stop it. Returns its process id.
fn start(order: &Order, program: &[OsString], handed: Vec<OwnedFd>, terminal: Option<&OwnedFd>) -> io::Result<Pid> {
    let mut handed = handed.into_iter();
    let mut next = |is_terminal| match terminal {
        Some(terminal) if is_terminal => terminal.try_clone(),
        _ => handed.next().ok_or_else(|| io::Error::other("a descriptor is missing")),
    };
    let [first, second, third] = order.terminals;
    let (input, output, errors) = (next(first)?, next(second)?, next(third)?);
    let mut command = Command::new("/proc/self/exe");
    command.arg(command::BECOME).arg(command::argument(order.identity.as_ref())?).args(program);
    command.stdin(input).stdout(output).stderr(errors).process_group(0);
    for name in INHERITED {
        command.env_remove(name);
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("a process without a number"))
}

/// Gives up everything except signalling the command, whatever its user. With this capability it is also out of
/// reach for a command of the same user, which has none.
fn give_up() -> io::Result<()> {
    let (none, kill) = (CapabilitySet::empty(), CapabilitySet::KILL);
    Ok(set_capabilities(None, CapabilitySets { effective: kill, permitted: kill, inheritable: none })?)
}

/// Gives the terminal to the command, while this process group has it; until then, it does.
fn take_foreground(terminal: &OwnedFd, pid: Pid) {
    if tcgetpgrp(terminal).is_ok_and(|foreground| foreground == rustix::process::getpgrp()) {
        // A command that has already ended does not need it.
        let _ = tcsetpgrp(terminal, pid);
    }
}

/// Executes the messages of the outer half, and ends the command when that half ends.
fn listen(talk: &OwnedFd, pid: Pid, terminal: Option<&OwnedFd>) {
    // Errors for an ended command can be ignored: its number is not reused until this process ends.
    while let Ok(Some((said, _))) = receive(talk) {
        let _ = match said {
            ToInner::Signal(signal, true) => kill_process_group(pid, signal),
            ToInner::Signal(signal, false) => kill_process(pid, signal),
            ToInner::Foreground => {
                terminal.into_iter().for_each(|terminal| take_foreground(terminal, pid));
                kill_process_group(pid, Signal::CONT)
            }
            ToInner::Continue => kill_process_group(pid, Signal::CONT),
            ToInner::Descriptors | ToInner::Start(_) => Ok(()),
        };
    }
    let _ = kill_process(pid, Signal::KILL);
}

/// Waits for the end of the command, and of every orphaned process; returns the command's exit code.
fn reap(talk: &OwnedFd, pid: Pid, terminal: Option<&OwnedFd>) -> io::Result<u8> {
    loop {
        match wait(WaitOptions::UNTRACED) {
            Ok(Some((which, status))) if which == pid => {
                if let Some(code) = ended(status) {
                    return Ok(code);
                }
                let by = status.stopping_signal();
                let wants = by.is_some_and(|by| [Signal::TTIN, Signal::TTOU].map(Signal::as_raw).contains(&by));
                let has = terminal.is_some_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == pid));
                if wants && has {
                    // It asked before it had the terminal.
                    let _ = kill_process_group(pid, Signal::CONT);
                } else {
                    let stopped = ToOuter::Stopped(by == Some(Signal::STOP.as_raw()));
                    let told = if wants && terminal.is_some() { ToOuter::WantsTerminal } else { stopped };
                    // Without the outer half, this one ends.
                    let _ = send(talk, told, &[]);
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the exit code, as in shells, if the status is that of an end.
fn ended(status: WaitStatus) -> Option<u8> {
    let code = status.exit_status().map(|code| u8::try_from(code).unwrap_or(1));
    code.or_else(|| status.terminating_signal().map(code_of_signal))
}

fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn these_are_no_commands_of_the_command_line() {
        let program = <super::super::super::Program as clap::CommandFactory>::command();
        assert!(program.get_subcommands().all(|found| ![WORD, command::BECOME].contains(&found.get_name())));
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!([9, 15, 31, 64].map(code_of_signal), [137, 143, 159, 192]);
        assert_eq!(code_of_signal(i32::MAX), 255);
    }
}
