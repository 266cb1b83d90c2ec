//! Network namespaces without a name: they exist as long as this process has them open. So those of a killed run, and
//! every interface in them, are gone with it.

use crate::cli::Failure;
use crate::cli::bridge::tool;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
#[derive(Clone, Debug)]
pub(super) struct Namespace(Arc<File>);

impl Namespace {
    /// Makes one, with its loopback interface up.
    pub(super) fn new() -> Result<Namespace, Failure> {
        let make = || -> io::Result<File> {
            unshare_network()?;
            File::open(OWN)
        };
        // A thread of its own: this one stays where it is.
        let made = std::thread::scope(|scope| scope.spawn(make).join());
        let handle = made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it ended early")));
        let handle = handle.map_err(|error| Failure::Failed(format!("cannot make a network namespace: {error}")))?;
        let namespace = Namespace(Arc::new(handle));
        namespace.ip("-4", "link set dev lo up\n")?;
        Ok(namespace)
    }

    /// Returns the path by which ip(8) finds it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Moves the calling thread into it. Sockets and processes of the thread then belong there.
    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Runs `work` inside, in a thread of its own.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let inside = || {
            self.enter()?;
            work()
        };
        let ended = std::thread::scope(|scope| scope.spawn(inside).join());
        ended.unwrap_or_else(|_| Err(io::Error::other("the thread that enters it ended early")))
    }

    /// Runs lines of ip(8) inside.
    pub(super) fn ip(&self, family: &'static str, lines: &str) -> Result<(), Failure> {
        let ran = self.run(|| {
            tool::run("ip", &[family, "-batch", "-"], lines, "to set up a namespace").map_err(io::Error::other)
        });
        ran.map(drop).map_err(|error| Failure::Failed(error.to_string()))
    }

    /// Writes a kernel setting inside. One that this kernel does not have needs no change.
    pub(super) fn set(&self, path: &str, value: &str) {
        let _ = self.run(|| fs::write(path, value));
    }
}

#[expect(deprecated, reason = "what is not safe is to unshare the table of descriptors, and this does not")]
fn unshare_network() -> io::Result<()> {
    Ok(rustix::thread::unshare(UnshareFlags::NEWNET)?)
}

/// Returns the number of this process's own network namespace.
pub(super) fn own_number() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(OWN)?.ino())
}
