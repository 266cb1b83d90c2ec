//! Where lines go: standard output, a file, the journal. Each sink has a thread of its own, so a
//! disk that hangs or a pipe that nobody reads holds up nothing but that thread; behind it lines
//! are kept up to a bound, refusals up to half of it, and the rest is dropped and counted.

use super::{AccessLog, AccountError, Metrics, lock};
use crate::reason::Verdict;
use rustix::fs::OFlags;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that wait for the sink at most.
const CAPACITY: usize = 1024 * 1024;
/// Of these, refusals at most.
const REFUSALS: usize = CAPACITY / 2;
/// Pause before another try where the sink takes nothing.
const RETRY: Duration = Duration::from_millis(10);
const JOURNAL: &str = "/run/systemd/journal/socket";

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

/// A sink and its thread, which ends when this is dropped and what waits is written or can't be.
pub(super) struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Pending {
    batch: Batch,
    reopen: bool,
    busy: bool,
    closed: bool,
}

enum Target {
    Stream { file: File, path: Option<PathBuf>, torn: bool },
    Journal { socket: UnixDatagram, path: PathBuf },
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
}

impl Sink {
    /// Opens what `access` names, which is not [`AccessLog::Off`], and starts its thread.
    pub(super) fn open(access: &AccessLog, metrics: &Arc<Metrics>) -> Result<Sink, AccountError> {
        Sink::over(Target::open(access)?, metrics)
    }

    fn over(target: Target, metrics: &Arc<Metrics>) -> Result<Sink, AccountError> {
        let shared =
            Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new(), metrics: Arc::clone(metrics) });
        let writer = Writer { shared: Arc::clone(&shared), target, failing: false };
        thread::Builder::new()
            .name("outgate-log-out".into())
            .spawn(move || writer.run())
            .map_err(AccountError::Thread)?;
        Ok(Sink { shared })
    }

    /// Hands the lines over; those there is no room for are dropped and counted.
    pub(super) fn send(&self, batch: Batch) {
        if batch.lines.is_empty() {
            return;
        }
        let mut pending = lock(&self.shared.pending);
        if pending.batch.lines.is_empty() && batch.bytes.len() <= REFUSALS {
            pending.batch = batch;
        } else {
            let mut at = 0;
            for line in batch.lines {
                let bytes = batch.bytes.get(at..at + line.len).unwrap_or_default();
                at += line.len;
                let into = &mut pending.batch;
                let full = into.bytes.len() + line.len > CAPACITY
                    || (line.refusal && into.refusal_bytes + line.len > REFUSALS);
                if full {
                    self.shared.metrics.log_dropped(line.verdict, 1);
                } else {
                    into.bytes.extend_from_slice(bytes);
                    into.count(line);
                }
            }
        }
        drop(pending);
        self.shared.changed.notify_all();
    }

    /// Opens the file anew before the next line is written.
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
    shared: Arc<Shared>,
    target: Target,
    /// The last write failed: one complaint is enough.
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        while let Some((batch, reopen)) = self.next() {
            if reopen && let Err(error) = self.target.reopen() {
                self.failed(&error);
            }
            self.write(batch);
        }
    }

    fn next(&self) -> Option<(Batch, bool)> {
        let mut pending = lock(&self.shared.pending);
        if pending.busy {
            pending.busy = false;
            self.shared.changed.notify_all();
        }
        while pending.batch.lines.is_empty() && !pending.reopen {
            if pending.closed {
                return None;
            }
            pending = self.wait(pending);
        }
        pending.busy = true;
        Some((std::mem::take(&mut pending.batch), std::mem::take(&mut pending.reopen)))
    }

    fn wait<'a>(&self, pending: MutexGuard<'a, Pending>) -> MutexGuard<'a, Pending> {
        self.shared.changed.wait(pending).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&mut self, mut batch: Batch) {
        let closed = || lock(&self.shared.pending).closed;
        match self.target.write(&mut batch, closed) {
            Ok(()) => self.failing = false,
            Err(error) => self.failed(&error),
        }
        for line in batch.lines {
            self.shared.metrics.log_dropped(line.verdict, 1);
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.shared.metrics.log_failed();
        if !self.failing {
            tracing::warn!(%error, "the access log can't be written; lines are dropped and counted");
        }
        self.failing = true;
    }
}

impl Target {
    fn open(access: &AccessLog) -> Result<Target, AccountError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| AccountError::Open { path, source }
        };
        match access {
            AccessLog::Stdout | AccessLog::Off => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(at(Path::new("/dev/stdout")))?;
                Ok(Target::Stream { file: stdout.into(), path: None, torn: false })
            }
            AccessLog::File(path) => {
                let file = open_file(path).map_err(at(path))?;
                Ok(Target::Stream { file, path: Some(path.clone()), torn: false })
            }
            AccessLog::Journal => Target::journal(PathBuf::from(JOURNAL)).map_err(at(Path::new(JOURNAL))),
        }
    }

    fn journal(path: PathBuf) -> io::Result<Target> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // Not kept connected: sending by path survives a restart of the journal.
        UnixDatagram::unbound()?.connect(&path)?;
        Ok(Target::Journal { socket, path })
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Target::Stream { file, path: Some(path), torn } = self {
            *file = open_file(path)?;
            *torn = false;
        }
        Ok(())
    }

    /// Writes the lines. Those that stay in the batch were not written.
    fn write(&mut self, batch: &mut Batch, closed: impl Fn() -> bool) -> io::Result<()> {
        match self {
            Target::Stream { file, torn, .. } => write_stream(file, torn, batch, closed),
            Target::Journal { socket, path } => write_journal(socket, path, batch),
        }
    }
}

/// Not blocking, so that a FIFO without a reader is an error here and a full one is noticed below;
/// on a regular file the flag does nothing.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

fn write_stream(file: &mut File, torn: &mut bool, batch: &mut Batch, closed: impl Fn() -> bool) -> io::Result<()> {
    if *torn {
        // The rest of a line is missing in the file: don't append to it.
        retry(&closed, || file.write(b"\n"))?;
        *torn = false;
    }
    let bytes = std::mem::take(&mut batch.bytes);
    let (mut done, mut line_start) = (0, 0);
    while let Some(left) = bytes.get(done..).filter(|left| !left.is_empty()) {
        let written = retry(&closed, || file.write(left))?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        done += written;
        while let Some(line) = batch.lines.front()
            && line_start + line.len <= done
        {
            line_start += line.len;
            batch.lines.pop_front();
        }
        *torn = done > line_start;
    }
    Ok(())
}

/// Repeats while the stream takes nothing, until the sink is no longer wanted.
fn retry(closed: &impl Fn() -> bool, mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match write() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if closed() {
                    return Err(error);
                }
                thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}

/// One datagram a line in the journal's native protocol. A journal that is busy costs the line.
fn write_journal(socket: &UnixDatagram, path: &Path, batch: &mut Batch) -> io::Result<()> {
    let bytes = std::mem::take(&mut batch.bytes);
    let mut left = bytes.as_slice();
    let mut unwritten = VecDeque::new();
    let mut result = Ok(());
    let mut entry = Vec::with_capacity(2048);
    for line in batch.lines.drain(..) {
        let Some((text, rest)) = left.split_at_checked(line.len) else { break };
        left = rest;
        // 6: informational, 5: notice, as in syslog(3).
        let priority = if line.verdict == Verdict::Allowed { 6 } else { 5 };
        entry.clear();
        write!(entry, "PRIORITY={priority}\nSYSLOG_IDENTIFIER=outgate\nMESSAGE=")?;
        entry.extend_from_slice(text);
        match socket.send_to(&entry, path) {
            Ok(_) => {}
            Err(error) => {
                unwritten.push_back(line);
                if error.kind() != ErrorKind::WouldBlock {
                    result = Err(error);
                }
            }
        }
    }
    batch.lines = unwritten;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lines: &[(&str, Verdict)]) -> Batch {
        let mut batch = Batch::default();
        for (line, verdict) in lines {
            batch.push(*verdict, *verdict == Verdict::Denied, |bytes| bytes.extend_from_slice(line.as_bytes()));
        }
        batch
    }

    #[test]
    fn the_journal_gets_one_entry_a_line_and_a_full_one_costs_lines_but_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let sink = Sink::over(Target::journal(path).unwrap(), &metrics).unwrap();
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
        write_stream(&mut file, &mut torn, &mut lines, || false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"half\":\n{\"a\":1}\n");
        assert!(!torn && lines.lines.is_empty());
    }

    #[test]
    fn a_pipe_without_a_reader_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let metrics = Arc::new(Metrics::new().unwrap());
        assert!(matches!(Sink::open(&AccessLog::File(path), &metrics), Err(AccountError::Open { .. })));
    }
}
