//! Locks between runs of this program. Each is a file that only root can open, under flock(2), so that a lock is
//! released when the process that holds it ends, for whatever reason.

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest wait for a lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interval between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// A held lock; released when this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` if another process holds it.
    pub(super) fn take(path: &Path) -> io::Result<Option<Lock>> {
        loop {
            let mut options = OpenOptions::new();
            let flags = OFlags::NOFOLLOW.bits().cast_signed();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
            let file = file.open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // The last holder may have removed the file in between, and the next one then creates another.
            if file.metadata()?.nlink() > 0 {
                return Ok(Some(Lock { path: path.to_owned(), _file: file }));
            }
        }
    }

    /// Waits for the lock, 30 s at most.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn wait(path: &Path) -> io::Result<Lock> {
        let give_up = Instant::now() + PATIENCE;
        let failed = |error: io::Error| {
            let why = format!("{}: cannot be taken as a lock: {error}; remove it", path.display());
            io::Error::new(error.kind(), why)
        };
        loop {
            if let Some(lock) = Lock::take(path).map_err(failed)? {
                return Ok(lock);
            }
            if Instant::now() >= give_up {
                let why = format!("{}: another run of outgate has held this for 30 s", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Releases the lock and removes its file.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_until_it_is_let_go() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let first = Lock::take(&path).unwrap().unwrap();
        assert!(Lock::take(&path).unwrap().is_none());
        drop(first);
        let second = Lock::take(&path).unwrap().unwrap();
        second.remove().unwrap();
        assert!(!path.exists());
        assert!(Lock::wait(&path).is_ok());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = Lock::wait(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("{}: cannot be taken as a lock", path.display())), "{error}");
    }
}
