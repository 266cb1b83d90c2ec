//! `outgate exec`: runs a command in namespaces of its own, as a guest. `requirements` checks the requirements;
//! `enclosure` creates and removes guest and network namespace. Two halves of this program supervise the command
//! and communicate through `messages`: `inside` is the first process of its namespaces. Outside, `start` starts that
//! process, `watch` waits for the end and forwards signals, and `terminal` relays the caller's terminal. `apparmor`
//! keeps the rights of outgate's own profile from all that is started.

mod apparmor;
mod enclosure;
pub(super) mod inside;
mod messages;
mod pool;
mod requirements;
mod run_names;
mod start;
mod terminal;
mod watch;

pub(super) use enclosure::{Enclosure, Order};
pub(super) use requirements::Requirements;
pub(super) use start::{Start, Streams};
pub(super) use watch::{CommandSignals, code_of};

use super::ask::Daemon;
use super::credentials::Credentials;
use super::{Exit, Failure, Outcome};
use clap::Args;
use outgate::system::User;
use outgate::text::printable;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};

/// Run a command as a guest, with outgate as its only way out
///
/// Creates a network namespace, registers it with the running daemon as a guest, and runs the command in it. With a
/// manifest the command reaches what the manifest names, without one what the shared lists allow. It needs no proxy
/// setting. Only IPv4 is available; outgate's DNS resolves names. The command gets your input, output, working
/// directory and environment (without proxy variables). If input or output is your terminal, the command gets a
/// terminal of its own, which is relayed to yours. No other descriptor is passed on. The command sees only what
/// --show names of /run, and only its own processes. It runs without capabilities and cannot gain any; sockets of
/// families other than unix, IP and routing netlink, io_uring, keys and calls of other architectures (i386, x32) are
/// refused. SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGTSTP are forwarded to it. When it has ended, or outgate is
/// killed, what it left running is killed, and guest and namespace are removed.
///
/// Requires root, a daemon with a transparent listener, and guest_interfaces = ["og-*"] in [firewall]. The exit code
/// is the command's; 128 plus the signal's number if a signal killed it; 127 if there is no such command. If the
/// command could not be started, it is outgate's own: 1, 2, 3.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sudo outgate exec --name build -- make test
  outgate exec --name job-7 --user runner --manifest manifest.json -- ./job.sh
  outgate exec --name agent --address 10.79.3.7 --user agent -- bash
  outgate exec --name job-8 --show /run/yagna -- exe-unit")]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: Daemon,
    /// The guest's name: 1 to 64 of a-z A-Z 0-9 . _ -
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The guest's address [default: the first free one of 10.79.0.0/16]
    #[arg(short, long, value_name = "ADDR")]
    address: Option<Ipv4Addr>,
    /// The user that the command runs as [default: the user who called sudo, otherwise root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// The manifest of the job: JSON, or base64 of it
    #[arg(short, long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    credentials: Credentials,
    /// A file, folder or socket in /run that the command sees; may be given several times
    #[arg(long, value_name = "PATH", value_parser = below_run)]
    show: Vec<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    let Arguments { daemon, name, address, user, manifest, credentials, show, command } = arguments;
    let requirements = Requirements::find(daemon.config.file(), name)?;
    let user = user_of(user.as_deref())?;
    // From here on, a signal undoes what was created.
    let mut watch = CommandSignals::new()?;
    let order = Order { daemon, name, address: *address, manifest: manifest.as_deref(), credentials };
    let enclosure = Enclosure::make(&order)?;
    if requirements.nameserver.is_none() {
        warn("[listen].dns has no IPv4 address that guests reach, so the command has no DNS");
    }
    if user.is_none() {
        warn(
            "the command runs as root, and a namespace does not confine a process that may write root's files; choose \
              --user",
        );
    }
    let start = Start { nameserver: requirements.nameserver, show: show.clone(), user, program: None };
    let ran = run_in(&enclosure, &start, command, &mut watch);
    for fault in enclosure.end() {
        warn(&fault);
    }
    Ok(Exit::Command(ran?))
}

fn run_in(
    enclosure: &Enclosure,
    start: &Start,
    command: &[OsString],
    watch: &mut CommandSignals,
) -> Result<u8, Failure> {
    let running = start.run(enclosure.namespace(), command, Streams::own()?)?;
    Ok(code_of(watch.wait(running, None)?))
}

/// Prints a warning, for problems that do not justify a failure, on standard error.
pub(super) fn warn(text: &str) {
    // If this fails, there is nowhere left to report it.
    let _ = writeln!(io::stderr(), "outgate: warning: {}", printable(text));
}

/// Returns the user as whom the command runs; `None` is root.
fn user_of(named: Option<&str>) -> Result<Option<User>, Failure> {
    let caller = || std::env::var("SUDO_USER").ok().filter(|_| std::env::var_os("SUDO_UID").is_some());
    match named.map(str::to_owned).or_else(caller) {
        Some(name) if name != "root" => User::find(&name).map(Some).map_err(|e| Failure::Failed(e.to_string())),
        _ => Ok(None),
    }
}

fn below_run(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let mut rest = path.strip_prefix("/run").ok().into_iter().flat_map(Path::components).peekable();
    let plain = rest.peek().is_some() && rest.all(|part| matches!(part, Component::Normal(_)));
    if plain {
        Ok(path.to_owned())
    } else {
        Err("write a path below /run; everything else is visible anyway".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_lies_below_run() {
        assert_eq!(below_run("/run/yagna/gsb.sock"), Ok(PathBuf::from("/run/yagna/gsb.sock")));
        for wrong in ["/run", "/run/", "/run/../etc", "run/x", "/tmp/x", "/runner/x", ""] {
            assert!(below_run(wrong).is_err(), "{wrong}");
        }
    }
}
