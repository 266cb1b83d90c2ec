//! The half of `outgate exec` that is outside, up to the start of the command: namespaces, the inner half
//! (`inside`) as their first process, and its orders. ip(8) gives it its network and mount namespace.

use super::inside::{self, Identity, Order};
use super::messages::{self, ToInner};
use super::terminal;
use crate::cli::Failure;
use crate::cli::bridge::tool;
use outgate::system::User;
use rustix::fs::{Dev, fstat, makedev};
use rustix::io::ioctl_fionbio;
use rustix::process::Signal;
use rustix::termios::{isatty, ttyname};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Variables that name a proxy, in lower case; outgate needs none.
const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "all_proxy"];
/// Extra descriptors that the inner half itself has open while it closes the caller's.
const OWN: i32 = 16;
/// Maximum depth of folders below /dev that are searched for a terminal, and maximum number of entries examined.
const MAX_DEPTH: u32 = 4;
const MAX_DEVICES: usize = 65_536;
/// Folders below /dev that are the command's own in any case.
const OTHERS: [&str; 3] = ["/dev/pts", "/dev/shm", "/dev/mqueue"];
/// The longest error output of the inner half, in bytes.
const MAX_COMPLAINT: u64 = 64 << 10;

/// How a command starts.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Start {
    /// The server in its resolv.conf; `None` if it has none.
    pub(in crate::cli) nameserver: Option<Ipv4Addr>,
    /// What it sees of /run.
    pub(in crate::cli) show: Vec<PathBuf>,
    /// Its user; `None` for root.
    pub(in crate::cli) user: Option<User>,
    /// A program that is mounted as [`Start::PROGRAM`], even if the user may not search the folders above it.
    pub(in crate::cli) program: Option<PathBuf>,
}

/// Input, output and error output of a command.
pub(in crate::cli) struct Streams(pub(in crate::cli) [OwnedFd; 3]);

impl Streams {
    /// Returns those of this process.
    pub(in crate::cli) fn own() -> io::Result<Streams> {
        let own = |descriptor: BorrowedFd<'_>| descriptor.try_clone_to_owned();
        Ok(Streams([own(io::stdin().as_fd())?, own(io::stdout().as_fd())?, own(io::stderr().as_fd())?]))
    }

    /// Returns which of them are terminals.
    pub(super) fn terminals(&self) -> [bool; 3] {
        self.0.each_ref().map(isatty)
    }
}

/// A command that was started, or is about to be.
pub(in crate::cli) struct Running {
    /// The inner half.
    pub(super) child: Child,
    /// The socket for messages to it.
    pub(super) talk: OwnedFd,
    /// Passed on to it, except for terminals.
    pub(super) streams: Streams,
}

impl Start {
    /// Where [`Start::program`] is mounted.
    pub(in crate::cli) const PROGRAM: &str = inside::PROGRAM;

    /// Starts the inner half, which waits for [`ToInner::Start`] before it runs `program`. The calling thread must
    /// outlive it, because the kernel ends it with that thread.
    pub(in crate::cli) fn run(
        &self,
        namespace: &str,
        program: &[OsString],
        streams: Streams,
    ) -> Result<Running, Failure> {
        let (talk, theirs) = messages::pair()?;
        let terminals = streams.terminals();
        let order = Order {
            caller: std::process::id(),
            nameserver: self.nameserver,
            show: self.show.clone(),
            program: self.program.clone(),
            identity: self.user.as_ref().map(Identity::from),
            terminals,
            hide: terminals_of(&streams),
        };
        let order = serde_json::to_string(&order).map_err(io::Error::from)?;
        // This path is valid even if an update has just replaced the program.
        let this = format!("/proc/{}/exe", std::process::id());
        let mut command = Command::new(tool::find("ip")?);
        command.args(["netns", "exec", namespace, &this, inside::WORD, &order]).args(program);
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped());
        for name in std::env::vars_os().map(|(name, _)| name) {
            if name.to_str().is_some_and(|name| PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))) {
                command.env_remove(name);
            }
        }
        for name in inside::INHERITED {
            command.env_remove(name);
        }
        // It is the first process of its namespace.
        command.env("LISTEN_PID", "1").env("LISTEN_FDS", (highest()?.saturating_add(OWN)).to_string());
        // This end never blocks.
        ioctl_fionbio(&talk, true).map_err(io::Error::from)?;
        let child = first_of_its_processes(&mut command)?;
        let handed: Vec<BorrowedFd<'_>> = streams
            .0
            .iter()
            .zip(terminals)
            .filter(|(_, terminal)| !terminal)
            .map(|(stream, _)| stream.as_fd())
            .collect();
        // If it has already ended, it reports the reason.
        let _ = messages::send(&talk, ToInner::Descriptors, &handed);
        Ok(Running { child, talk, streams })
    }
}

impl Running {
    /// Forwards a signal to the command, or to its whole process group.
    pub(super) fn signal(&self, signal: Signal, whole: bool) {
        self.say(ToInner::Signal(signal, whole));
    }

    /// Sends a message to the inner half; if that has ended, the message is dropped.
    pub(super) fn say(&self, what: ToInner) {
        let _ = messages::send(&self.talk, what, &[]);
    }

    /// Forwards the error output of the inner half, which has ended.
    pub(super) fn complain(&mut self) {
        let mut text = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            // What cannot be read or written is lost; the exit code stays.
            let _ = stderr.take(MAX_COMPLAINT).read_to_end(&mut text);
            let _ = io::stderr().write_all(&text);
        }
    }
}

/// Starts a process as the first of a PID namespace; this process stays where it is.
fn first_of_its_processes(command: &mut Command) -> Result<Child, Failure> {
    let failed = |what: &str, error: io::Error| Failure::Failed(format!("{what}: {error}"));
    let own = File::open("/proc/self/ns/pid")?;
    unshare_processes().map_err(|error| failed("cannot create a PID namespace", error))?;
    let child = command.spawn();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .map_err(|error| failed("cannot return to the first PID namespace", error.into()))?;
    child.map_err(|error| failed("cannot start ip(8)", error))
}

#[expect(deprecated, reason = "what is not safe is to unshare the table of descriptors, and this does not")]
fn unshare_processes() -> io::Result<()> {
    Ok(rustix::thread::unshare(UnshareFlags::NEWPID)?)
}

/// Returns the highest descriptor number of this process.
fn highest() -> io::Result<i32> {
    let numbers = fs::read_dir("/proc/self/fd")?.flatten();
    Ok(numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).max().unwrap_or(2))
}

/// Returns the devices of the caller's terminals, by all their names: those that are descriptors, and the one of
/// its session, which the command could otherwise open by its name.
fn terminals_of(streams: &Streams) -> Vec<PathBuf> {
    let terminals: Vec<&OwnedFd> = streams.0.iter().filter(|stream| isatty(stream)).collect();
    let mut numbers: Vec<Dev> = terminals.iter().filter_map(|stream| Some(fstat(stream).ok()?.st_rdev)).collect();
    numbers.extend(terminal::controlling());
    // A process that opens this one gets the terminal of its own session.
    numbers.retain(|number| *number != makedev(5, 0));
    let mut found = Vec::new();
    let mut left = MAX_DEVICES;
    devices(Path::new("/dev"), 0, &mut left, &mut |path, number| {
        if numbers.contains(&number) {
            found.push(path);
        }
    });
    // It may be elsewhere.
    let named = terminals.iter().filter_map(|stream| ttyname(stream, Vec::new()).ok());
    found.extend(named.map(|name| PathBuf::from(OsStr::from_bytes(name.as_bytes()))));
    // Those of programs are hidden in any case.
    found.retain(|path| !path.starts_with("/dev/pts") && path != Path::new("/dev/tty"));
    found
}

/// Passes every character device below a folder to `tell`.
fn devices(folder: &Path, depth: u32, left: &mut usize, tell: &mut dyn FnMut(PathBuf, Dev)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        *left = left.saturating_sub(1);
        let (path, Ok(meta)) = (entry.path(), entry.path().symlink_metadata()) else { continue };
        if meta.file_type().is_char_device() {
            tell(path, meta.rdev());
        } else if meta.is_dir()
            && depth < MAX_DEPTH
            && *left > 0
            && !OTHERS.iter().any(|other| path == Path::new(other))
        {
            devices(&path, depth + 1, left, tell);
        }
    }
}
