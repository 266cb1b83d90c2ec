//! What the operating system wants of a daemon: signals, limits on open files, the service manager.

mod confine;

pub use confine::{
    AccessError, Confine, Need, PrivilegeError, Use, User, UserError, check, fence_calls, fence_command, fence_files,
    give_up, is_privileged,
};

use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the daemon acts on.
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// SIGHUP: read configuration and lists again, reopen the log.
    Reload,
    /// SIGTERM or SIGINT: stop.
    Stop,
}

impl Signals {
    /// Starts listening; must be called within a runtime.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.hangup.recv() => SignalRequest::Reload,
            _ = self.terminate.recv() => SignalRequest::Stop,
            _ = self.interrupt.recv() => SignalRequest::Stop,
        }
    }
}

/// Raises the soft limit on open files to the hard one and returns it. Two a tunnel are needed.
pub fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Opens a file for reading, without waiting for whoever may write into a FIFO of that name (open(2)). `more`
/// are further flags. What kind of file it is, the caller asks.
pub fn open_at_once(path: &Path, more: OFlags) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | more;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// What stat(2) says of a file, after links, that tells whether it is another than before; `None` where it says nothing.
pub type Stamp = Option<[i64; 6]>;

/// The stamp of the file at `path` now.
pub fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    let (device, inode, size) = (meta.dev().cast_signed(), meta.ino().cast_signed(), meta.size().cast_signed());
    Some([device, inode, size, meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()])
}

/// Tells the service manager (sd_notify(3)), if there is one.
pub fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// How often at least the service manager wants to hear from this process, if at all
/// (sd_watchdog_enabled(3)).
pub fn watchdog() -> Option<std::time::Duration> {
    sd_notify::watchdog_enabled()
}

/// Is there a service manager that waits for this process to be ready (sd_notify(3))?
pub fn has_manager() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// Is this process root?
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How many CPUs this process may run on; at least 1.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
