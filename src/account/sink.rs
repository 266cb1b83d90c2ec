//! The sinks of log lines: standard output, a file, the journal. Each sink has its own thread, so a disk that
//! hangs or a pipe that nobody reads blocks only that thread. Lines for it are kept up to a bound, refusals up
//! to half of it; the rest is dropped and counted.
//!
//! After an error, a sink is retried with the same lines. So it finds out by itself, without new traffic, when
//! it can be written again.

mod output;

use super::health::{GRACE, Health};
use super::{AccessLog, AccountError, Metrics, lock};
use crate::reason::Verdict;
use output::Output;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that wait for the sink at most.
const CAPACITY: usize = 1024 * 1024;
/// Of these, refusals at most.
const REFUSALS: usize = CAPACITY / 2;
/// Pause before the next try after an error.
const FAILED_RETRY: Duration = Duration::from_millis(250);
/// Shortest time between two warnings about a sink that fails now and then.
const COMPLAINTS: Duration = Duration::from_secs(60);
/// Lines for a sink.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    lines: VecDeque<Meta>,
    refusal_bytes: usize,
}

#[derive(Clone, Copy)]
struct Meta {
    len: usize,
    verdict: Verdict,
    refusal: bool,
}

/// A sink and its thread. After the drop, the thread ends once waiting lines are written or can't be.
pub(super) struct Sink {
    shared: Arc<SinkQueue>,
}

/// What a sink and its thread share.
struct SinkQueue {
    pending: Mutex<Pending>,
    changed: Condvar,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// Its number in [`Health`].
    number: u64,
}

#[derive(Default)]
struct Pending {
    batch: Batch,
    reopen: bool,
    busy: bool,
    closed: bool,
}

impl Batch {
    /// Appends the line that `render` appends to the buffer.
    pub(super) fn push(&mut self, verdict: Verdict, refusal: bool, render: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        render(&mut self.bytes);
        let len = self.bytes.len() - start;
        self.count(Meta { len, verdict, refusal });
    }

    fn count(&mut self, line: Meta) {
        self.refusal_bytes += if line.refusal { line.len } else { 0 };
        self.lines.push_back(line);
    }

    /// Appends the lines of another batch; those without room are dropped and counted.
    fn append(&mut self, other: Batch, metrics: &Metrics) {
        if self.lines.is_empty() && other.bytes.len() <= REFUSALS {
            *self = other;
            return;
        }
        let mut at = 0;
        for line in other.lines {
            let bytes = other.bytes.get(at..at + line.len).unwrap_or_default();
            at += line.len;
            let full =
                self.bytes.len() + line.len > CAPACITY || (line.refusal && self.refusal_bytes + line.len > REFUSALS);
            if full {
                metrics.log_dropped(line.verdict, 1);
            } else {
                self.bytes.extend_from_slice(bytes);
                self.count(line);
            }
        }
    }
}

impl Sink {
    /// Opens the sink of `access`, which must not be [`AccessLog::Off`], and starts its thread.
    pub(super) fn open(access: &AccessLog, metrics: &Arc<Metrics>, health: &Arc<Health>) -> Result<Sink, AccountError> {
        Sink::over(Output::open(access)?, metrics, health)
    }

    fn over(output: Output, metrics: &Arc<Metrics>, health: &Arc<Health>) -> Result<Sink, AccountError> {
        let shared = Arc::new(SinkQueue {
            pending: Mutex::default(),
            changed: Condvar::new(),
            metrics: Arc::clone(metrics),
            health: Arc::clone(health),
            number: health.number(),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            output,
            unopened: false,
            failing: None,
            declared: false,
            complained: None,
        };
        thread::Builder::new()
            .name("outgate-log-out".into())
            .spawn(move || writer.run())
            .map_err(AccountError::Thread)?;
        Ok(Sink { shared })
    }

    /// Returns its number in [`Health`].
    pub(super) fn number(&self) -> u64 {
        self.shared.number
    }

    /// Queues the lines; those without room are dropped and counted.
    pub(super) fn send(&self, batch: Batch) {
        if batch.lines.is_empty() {
            return;
        }
        lock(&self.shared.pending).batch.append(batch, &self.shared.metrics);
        self.shared.changed.notify_all();
    }

    /// Reopens the file before the next line is written.
    pub(super) fn reopen(&self) {
        lock(&self.shared.pending).reopen = true;
        self.shared.changed.notify_all();
    }

    /// Waits until nothing is left to write.
    pub(super) fn wait_idle(&self, deadline: Instant) {
        let mut pending = lock(&self.shared.pending);
        while pending.busy || pending.reopen || !pending.batch.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            pending = match self.shared.changed.wait_timeout(pending, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        lock(&self.shared.pending).closed = true;
        self.shared.changed.notify_all();
    }
}

struct Writer {
    shared: Arc<SinkQueue>,
    output: Output,
    /// A reopen was requested and has not succeeded yet.
    unopened: bool,
    /// Since when the sink has returned nothing but errors, if it does.
    failing: Option<Instant>,
    /// Whether it was reported as failing.
    declared: bool,
    /// When a failed write was last logged.
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        while let Some((batch, reopen)) = self.next() {
            self.unopened |= reopen;
            // Meanwhile the file that is already open is written.
            let asked = self.unopened;
            let opened = if asked { self.output.reopen() } else { Ok(()) };
            self.unopened = opened.is_err();
            let (lines, written) = self.write(batch);
            // A reopened file that is as full as before is not an improvement.
            let progressed = lines > 0 || (asked && written.is_ok());
            self.note_outcome(progressed, opened.and(written));
        }
    }

    /// Waits for the next work: without delay, or a moment later if the last try failed.
    fn next(&self) -> Option<(Batch, bool)> {
        let mut pending = lock(&self.shared.pending);
        if pending.busy {
            pending.busy = false;
            self.shared.changed.notify_all();
        }
        let again = self.failing.map(|_| Instant::now() + FAILED_RETRY);
        loop {
            let wait = match again {
                Some(again) => again.saturating_duration_since(Instant::now()),
                None if pending.batch.lines.is_empty() => Duration::MAX,
                None => Duration::ZERO,
            };
            if wait.is_zero() || pending.reopen {
                break;
            }
            if pending.closed {
                // Lines that wait for another try get no more tries.
                for line in std::mem::take(&mut pending.batch).lines {
                    self.shared.metrics.log_dropped(line.verdict, 1);
                }
                return None;
            }
            pending = self.wait(pending, wait);
        }
        pending.busy = true;
        Some((std::mem::take(&mut pending.batch), std::mem::take(&mut pending.reopen)))
    }

    fn wait<'a>(&self, pending: MutexGuard<'a, Pending>, time: Duration) -> MutexGuard<'a, Pending> {
        let changed = &self.shared.changed;
        if time == Duration::MAX {
            return changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        changed.wait_timeout(pending, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Writes the lines. Returns how many were written, and why not all. After an error the rest is kept for
    /// another try.
    fn write(&mut self, mut batch: Batch) -> (usize, io::Result<()>) {
        let shared = &self.shared;
        let written = self.output.write(&mut batch, || lock(&shared.pending).closed);
        for verdict in written.lost {
            shared.metrics.log_dropped(verdict, 1);
        }
        let Some(error) = written.error else { return (written.lines, Ok(())) };
        batch.refusal_bytes = batch.lines.iter().filter(|line| line.refusal).map(|line| line.len).sum();
        let mut pending = lock(&shared.pending);
        let later = std::mem::replace(&mut pending.batch, batch);
        pending.batch.append(later, &shared.metrics);
        (written.lines, Err(error))
    }

    /// Updates the sink's state after a try; `progressed`: it wrote a line, or was reopened.
    fn note_outcome(&mut self, progressed: bool, result: io::Result<()>) {
        if progressed && !self.unopened {
            self.failing = None;
            if std::mem::take(&mut self.declared) {
                self.shared.health.well(self.shared.number);
            }
        }
        let Err(error) = result else {
            // A busy sink accepts nothing and returns no error. That neither ends a failure nor is one.
            if !self.declared {
                self.failing = None;
            }
            return;
        };
        self.shared.metrics.log_failed();
        let now = Instant::now();
        let since = *self.failing.get_or_insert(now);
        if !self.declared && now.duration_since(since) >= GRACE {
            self.declared = true;
            self.shared.health.failing(self.shared.number, &self.output.place(), &error);
        }
        if since == now && self.complained.is_none_or(|last| now.duration_since(last) >= COMPLAINTS) {
            self.complained = Some(now);
            tracing::warn!(%error, "the access log {} can't be written; it is tried again", self.output.place());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::OnFailure;
    use super::*;
    use output::{open_file, write_stream};
    use std::fs::OpenOptions;
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    fn batch(lines: &[(&str, Verdict)]) -> Batch {
        let mut batch = Batch::default();
        for (line, verdict) in lines {
            batch.push(*verdict, *verdict == Verdict::Denied, |bytes| bytes.extend_from_slice(line.as_bytes()));
        }
        batch
    }

    fn books() -> (Arc<Metrics>, Arc<Health>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        let health = Arc::new(Health::new(&metrics));
        (metrics, health)
    }

    /// Returns a sink at this path, in use under `refuse`.
    fn refusing(path: &Path) -> (Sink, Arc<Metrics>, Arc<Health>) {
        let (metrics, health) = books();
        let sink = Sink::open(&AccessLog::File(path.to_owned()), &metrics, &health).unwrap();
        health.adopt(Some(sink.number()), OnFailure::Refuse);
        (sink, metrics, health)
    }

    #[track_caller]
    fn eventually(what: &str, is: impl Fn() -> bool) {
        let give_up = Instant::now() + Duration::from_secs(30);
        while !is() {
            assert!(Instant::now() < give_up, "{what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_sink_that_returns_errors_is_failing_after_a_while_and_well_with_the_first_line_it_takes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, good) = (dir.path().join("log"), dir.path().join("good"));
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let (sink, metrics, health) = refusing(&path);
        let begun = Instant::now();
        sink.send(batch(&[("{\"a\":1}\n", Verdict::Allowed)]));
        eventually("it is failing", || health.refuses());
        assert!(begun.elapsed() >= GRACE);
        assert_eq!(metrics.dropped(), 0, "there is room for the line");
        sink.reopen();
        thread::sleep(Duration::from_secs(1));
        assert!(health.refuses(), "the same file is as full as before");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&good, &path).unwrap();
        sink.reopen();
        eventually("it is well without another line", || !health.refuses());
        assert_eq!(std::fs::read(&good).unwrap(), b"{\"a\":1}\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_anew_is_failing_and_is_tried_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder/log");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let (sink, _, health) = refusing(&path);
        std::fs::rename(path.parent().unwrap(), dir.path().join("away")).unwrap();
        sink.reopen();
        sink.send(batch(&[("{\"a\":1}\n", Verdict::Allowed)]));
        eventually("it is failing", || health.refuses());
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        eventually("it is well", || !health.refuses());
        assert_eq!(std::fs::read(dir.path().join("away/log")).unwrap(), b"{\"a\":1}\n", "nothing is lost meanwhile");
    }

    #[test]
    fn a_sink_that_takes_nothing_and_returns_no_error_is_not_failing_however_full_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (sink, metrics, health) = refusing(&path);
        let flood = [("{\"flood\":\"0123456789012345678901234567890123456789\"}\n", Verdict::Denied); 5000];
        let begun = Instant::now();
        while begun.elapsed() < GRACE + Duration::from_secs(2) {
            sink.send(batch(&flood));
            assert!(!health.refuses() && health.trouble().is_none());
            thread::sleep(Duration::from_millis(50));
        }
        assert!(metrics.dropped() > 5000);
    }

    #[test]
    fn what_waits_for_a_failing_sink_is_bounded() {
        let (sink, metrics, _) = refusing(Path::new("/dev/full"));
        let flood = [("{\"flood\":\"0123456789012345678901234567890123456789\"}\n", Verdict::Allowed); 5000];
        for _ in 0..20 {
            sink.send(batch(&flood));
            thread::sleep(Duration::from_millis(50));
        }
        // During a try, the thread holds all lines.
        let waiting = || lock(&sink.shared.pending).batch.bytes.len();
        eventually("it is full", || metrics.dropped() > 5000);
        assert!(waiting() <= CAPACITY);
        let lines = 20 * 5000 - metrics.dropped();
        assert!(lines <= (2 * CAPACITY / 50) as u64, "{lines}");
    }

    #[test]
    fn a_journal_that_is_gone_is_failing_and_gets_what_waits_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let (metrics, health) = books();
        let sink = Sink::over(Output::journal(path.clone()).unwrap(), &metrics, &health).unwrap();
        health.adopt(Some(sink.number()), OnFailure::Refuse);
        drop(journal);
        sink.send(batch(&[("{\"a\":1}\n", Verdict::Allowed)]));
        eventually("it is failing", || health.refuses());
        std::fs::remove_file(&path).unwrap();
        let journal = UnixDatagram::bind(&path).unwrap();
        eventually("it is well", || !health.refuses());
        let mut entry = [0; 256];
        assert!(journal.recv(&mut entry).unwrap() > 0);
    }

    #[test]
    fn the_journal_gets_one_entry_a_line_and_a_full_one_costs_lines_but_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let (metrics, health) = books();
        let sink = Sink::over(Output::journal(path).unwrap(), &metrics, &health).unwrap();
        sink.send(batch(&[("{\"a\":1}\n", Verdict::Allowed), ("{\"b\":2}\n", Verdict::Denied)]));
        let mut entry = [0; 256];
        let mut next = || {
            let length = journal.recv(&mut entry).unwrap();
            String::from_utf8_lossy(&entry[..length]).into_owned()
        };
        assert_eq!(next(), "PRIORITY=6\nSYSLOG_IDENTIFIER=outgate\nMESSAGE={\"a\":1}\n");
        assert_eq!(next(), "PRIORITY=5\nSYSLOG_IDENTIFIER=outgate\nMESSAGE={\"b\":2}\n");
        let flood = [("{}\n", Verdict::Denied); 5000];
        sink.send(batch(&flood));
        sink.wait_idle(Instant::now() + Duration::from_secs(5));
        let dropped = metrics.dropped();
        assert!(dropped > 0 && dropped < 5000, "{dropped}");
    }

    #[test]
    fn after_a_write_that_broke_off_the_next_line_starts_on_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, b"{\"half\":").unwrap();
        let mut file = open_file(&path).unwrap();
        let mut torn = true;
        let mut lines = batch(&[("{\"a\":1}\n", Verdict::Allowed)]);
        assert!(write_stream(&mut file, &mut torn, &mut lines, || false).error.is_none());
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"half\":\n{\"a\":1}\n");
        assert!(!torn && lines.lines.is_empty());
    }

    #[test]
    fn a_pipe_without_a_reader_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (metrics, health) = books();
        assert!(matches!(Sink::open(&AccessLog::File(path), &metrics, &health), Err(AccountError::Open { .. })));
    }
}
