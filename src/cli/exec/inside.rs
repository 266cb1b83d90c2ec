//! The half of `outgate exec` that is inside: the first process of the command's namespaces of processes, this program
//! once more. It makes what the command sees (`mounts`) and its terminal, starts it by way of `command`, reaps what
//! there is to reap, passes signals on, and ends with the command's exit code. With it the kernel ends whatever else is
//! left in the namespace. It ends too where the half outside does, and nobody inside can end or trace it. Not on the
//! command line, for it takes the surroundings that only its caller makes (`start`); of those it takes the namespaces,
//! power over them, and nothing that root has on the machine.

mod command;
mod mounts;

pub(super) use command::Identity;
pub(super) use mounts::PROGRAM;

use super::talk::{Say, Tell, receive, send};
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

/// What the first argument is, when this program is to be that.
pub(super) const WORD: &str = "exec-inside";
/// What is not yet the command is ended by these as it would be.
const ENDING: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];
/// Variables by which a service manager tells what it hands over (sd_listen_fds(3)); here they tell what to close.
pub(super) const INHERITED: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// What the second argument says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Whose mounts stay as they are.
    pub(super) caller: u32,
    /// The server in its resolv.conf; `None`: it has none.
    pub(super) nameserver: Option<Ipv4Addr>,
    /// What it sees of /run.
    pub(super) show: Vec<PathBuf>,
    /// What it finds as [`PROGRAM`].
    pub(super) program: Option<PathBuf>,
    /// As whom the command runs; `None`: as who this is.
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

/// Is this half, where this process was started for that; else `None`.
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

/// Runs the command; its exit code.
fn run(order: &Order, program: &[OsString]) -> io::Result<u8> {
    let namespace = |process: &str, kind: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
    let caller = order.caller.to_string();
    for kind in ["mnt", "pid"] {
        if namespace("self", kind)? == namespace(&caller, kind)? {
            return Err(io::Error::other(format!("{WORD} takes namespaces of its own")));
        }
    }
    let talk = Arc::new(fcntl_dupfd_cloexec(io::stdin(), 0)?);
    unreachable()?;
    close_the_rest()?;
    own_ipc()?;
    mounts::prepare(order)?;
    let Some((Say::Descriptors, handed)) = receive(&talk)? else { return Ok(0) };
    let (master, terminal) = own_terminal(order)?.unzip();
    send(&talk, Tell::Ready, &master.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(master);
    let foreground = match receive(&talk)? {
        Some((Say::Start(foreground), _)) => foreground,
        Some((Say::Signal(signal, _), _)) if ENDING.contains(&signal) => return Ok(code_of_signal(signal.as_raw())),
        _ => return Ok(0),
    };
    // Without a terminal too: the caller's is not this session's.
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

/// Ends with the half outside, and cannot be looked into by anybody of the same user. Signals from inside do not
/// reach the first process of a namespace, unless it asks for them.
fn unreachable() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// The command gets its input and outputs and no other descriptor: one that the caller has open by chance may be a
/// connection, or its terminal. How many there may be, [`INHERITED`] says.
fn close_the_rest() -> io::Result<()> {
    let numbers = fs::read_dir("/proc/self/fd")?.flatten();
    let highest = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).max().unwrap_or(2);
    let told = std::env::var("LISTEN_FDS").ok().and_then(|told| told.parse::<i32>().ok()).unwrap_or(0);
    let last = told.saturating_add(2);
    // All numbers up to there are taken, for what closes them ends at the first that is not.
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

/// Both sides of a terminal of its own, where it has one.
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

/// Starts the command in a process group of its own, so that a terminal can stop it. Its number.
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

/// Nothing more is needed than to signal the command, whoever it is. With this it is also out of reach for a command
/// of the same user, which has none.
fn give_up() -> io::Result<()> {
    let (none, kill) = (CapabilitySet::empty(), CapabilitySet::KILL);
    Ok(set_capabilities(None, CapabilitySets { effective: kill, permitted: kill, inheritable: none })?)
}

/// While this process group has the terminal, which it has until then, it may give it away.
fn take_foreground(terminal: &OwnedFd, pid: Pid) {
    if tcgetpgrp(terminal).is_ok_and(|foreground| foreground == rustix::process::getpgrp()) {
        // A command that has ended by now needs none.
        let _ = tcsetpgrp(terminal, pid);
    }
}

/// Does what the half outside says, and ends the command with it.
fn listen(talk: &OwnedFd, pid: Pid, terminal: Option<&OwnedFd>) {
    // Of one that has ended nobody need be told: its number is its own until this process ends.
    while let Ok(Some((said, _))) = receive(talk) {
        let _ = match said {
            Say::Signal(signal, true) => kill_process_group(pid, signal),
            Say::Signal(signal, false) => kill_process(pid, signal),
            Say::Foreground => {
                terminal.into_iter().for_each(|terminal| take_foreground(terminal, pid));
                kill_process_group(pid, Signal::CONT)
            }
            Say::Continue => kill_process_group(pid, Signal::CONT),
            Say::Descriptors | Say::Start(_) => Ok(()),
        };
    }
    let _ = kill_process(pid, Signal::KILL);
}

/// Waits for the command's end, and for that of every process whose parent is gone; the command's exit code.
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
                    // It asked before it had it.
                    let _ = kill_process_group(pid, Signal::CONT);
                } else {
                    let stopped = Tell::Stopped(by == Some(Signal::STOP.as_raw()));
                    let told = if wants && terminal.is_some() { Tell::WantsTerminal } else { stopped };
                    // Without the half outside this one ends.
                    let _ = send(talk, told, &[]);
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The exit code, as shells have it, where this tells of an end.
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
