//! Whether the access log can be written: its sink reports it, every flow reads it.
//!
//! A log is failing once its sink has returned nothing but errors for [`GRACE`], and until the sink writes a
//! line again. A slow sink is not failing, however much is dropped meanwhile: guests can make a log slow, and
//! must not be able to stop traffic that way.

use super::{Metrics, lock};
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a sink must return nothing but errors before the log counts as failing.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// What happens to traffic while the access log can't be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Traffic continues; lines that find no room are dropped and counted.
    #[default]
    Continue,
    /// Nothing new is let through.
    Refuse,
}

/// The health of the log whose sink is in use.
pub(super) struct Health {
    /// The log is failing and therefore nothing new is let through. Flows read only this.
    refusing: AtomicBool,
    state: Mutex<SinkHealth>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct SinkHealth {
    /// The sink in use; 0 for none.
    sink: u64,
    /// The last number given to a sink.
    numbers: u64,
    on_failure: OnFailure,
    failing: Option<Failing>,
}

struct Failing {
    place: String,
    error: String,
    remedy: &'static str,
}

impl Health {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Health {
        Health { refusing: AtomicBool::new(false), state: Mutex::default(), metrics: Arc::clone(metrics) }
    }

    /// Returns a number for a sink that is about to be opened.
    pub(super) fn number(&self) -> u64 {
        let mut state = lock(&self.state);
        state.numbers += 1;
        state.numbers
    }

    /// Sets the sink in use, `None` if the log is off, and what a failure means. Reports of other sinks are
    /// ignored from now on.
    pub(super) fn adopt(&self, sink: Option<u64>, on_failure: OnFailure) {
        self.change(|state| {
            let sink = sink.unwrap_or(0);
            if state.sink != sink {
                state.failing = None;
            }
            state.sink = sink;
            state.on_failure = on_failure;
        });
    }

    /// Reports that this sink, at this place, has returned nothing but errors for [`GRACE`].
    pub(super) fn failing(&self, sink: u64, place: &str, error: &io::Error) {
        self.change(|state| {
            if state.sink == sink && state.failing.is_none() {
                let remedy = remedy(error);
                state.failing = Some(Failing { place: place.to_owned(), error: error.to_string(), remedy });
            }
        });
    }

    /// Reports that this sink wrote a line.
    pub(super) fn well(&self, sink: u64) {
        self.change(|state| {
            if state.sink == sink {
                state.failing = None;
            }
        });
    }

    /// Whether nothing new may be let through.
    #[inline]
    pub(super) fn refuses(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Returns what is wrong, what follows from it, and what to do.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.state).trouble()
    }

    fn change(&self, change: impl FnOnce(&mut SinkHealth)) {
        let (before, now) = {
            let mut state = lock(&self.state);
            let before = state.trouble();
            change(&mut state);
            let failing = state.failing.is_some();
            self.refusing.store(failing && state.on_failure == OnFailure::Refuse, Ordering::Relaxed);
            self.metrics.set_log_failing(failing);
            (before, state.trouble())
        };
        // Outside the lock: standard error may be on the same disk.
        match (before, now) {
            (before, Some(now)) if before.as_ref() != Some(&now) => tracing::error!("{now}"),
            (Some(_), None) => tracing::info!("the access log is well again"),
            _ => {}
        }
    }
}

impl SinkHealth {
    fn trouble(&self) -> Option<String> {
        let Failing { place, error, remedy } = self.failing.as_ref()?;
        let follows = match self.on_failure {
            OnFailure::Continue => "traffic goes on unrecorded",
            OnFailure::Refuse => {
                "guests get nothing new (log_failed), as [log].on_failure = \"refuse\" says, until a line is written"
            }
        };
        Some(format!("the access log can't be written: {place}: {error}; {follows}. {remedy}"))
    }
}

/// Returns what the operator can do about the error.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "Make room there (`df -h` shows the disk, `df -i` its inodes); the room of a log file that was deleted is free after a reload (SIGHUP)"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "Mount it for writing again: `findmnt` shows the mount, `dmesg` why the kernel made it read-only"
        }
        ErrorKind::PermissionDenied | ErrorKind::NotFound => {
            "The daemon's user must be able to write there, and the folder must be there"
        }
        ErrorKind::BrokenPipe => {
            "Whoever read it is gone: restart outgate with a reader, or set [log].access and reload"
        }
        ErrorKind::ConnectionRefused => "See `systemctl status systemd-journald`",
        _ => "`dmesg` may say what is wrong with the disk; [log].access may name another place",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> (Health, u64) {
        let health = Health::new(&Arc::new(Metrics::new().unwrap()));
        let sink = health.number();
        health.adopt(Some(sink), OnFailure::Refuse);
        (health, sink)
    }

    fn full() -> io::Error {
        io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
    }

    #[test]
    fn a_failing_log_refuses_until_a_line_is_written_and_says_what_to_do() {
        let (health, sink) = health();
        assert!(!health.refuses() && health.trouble().is_none());
        health.failing(sink, "/var/log/a", &full());
        assert!(health.refuses());
        let trouble = health.trouble().unwrap();
        assert!(trouble.contains("/var/log/a: No space left") && trouble.contains("df -h"), "{trouble}");
        health.well(sink);
        assert!(!health.refuses() && health.trouble().is_none());
    }

    #[test]
    fn the_key_takes_effect_in_the_midst_of_a_failure() {
        let (health, sink) = health();
        health.failing(sink, "/a", &full());
        health.adopt(Some(sink), OnFailure::Continue);
        assert!(!health.refuses());
        assert!(health.trouble().unwrap().contains("goes on"));
        health.adopt(Some(sink), OnFailure::Refuse);
        assert!(health.refuses());
    }

    #[test]
    fn a_sink_that_is_no_longer_in_use_is_not_listened_to() {
        let (health, old) = health();
        health.failing(old, "/a", &full());
        let new = health.number();
        health.adopt(Some(new), OnFailure::Refuse);
        assert!(!health.refuses(), "a new place was opened");
        health.failing(old, "/a", &full());
        assert!(!health.refuses());
        health.failing(new, "/b", &full());
        health.well(old);
        assert!(health.refuses());
        health.adopt(None, OnFailure::Refuse);
        assert!(!health.refuses(), "a log that is off does not fail");
    }
}
