//! Where a sink's lines go, and how they are written there: a file, standard output, the journal.

use super::Batch;
use crate::account::{AccessLog, AccountError};
use crate::reason::Verdict;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Pause before the next try if the sink accepts nothing.
const RETRY: Duration = Duration::from_millis(10);
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The result of one try.
#[derive(Default)]
pub(super) struct Written {
    /// Lines that were written.
    pub(super) lines: usize,
    /// Lines that were lost because the sink was busy.
    pub(super) lost: Vec<Verdict>,
    /// Why the rest was not written.
    pub(super) error: Option<io::Error>,
}

/// An open sink.
pub(super) enum Output {
    Stream { file: File, path: Option<PathBuf>, torn: bool },
    Journal { socket: UnixDatagram, path: PathBuf },
}

impl Output {
    pub(super) fn open(access: &AccessLog) -> Result<Output, AccountError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| AccountError::Open { path, source }
        };
        match access {
            AccessLog::Stdout | AccessLog::Off => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(at(Path::new("/dev/stdout")))?;
                Ok(Output::Stream { file: stdout.into(), path: None, torn: false })
            }
            AccessLog::File(path) => {
                let file = open_file(path).map_err(at(path))?;
                Ok(Output::Stream { file, path: Some(path.clone()), torn: false })
            }
            AccessLog::Journal => Output::journal(PathBuf::from(JOURNAL)).map_err(at(Path::new(JOURNAL))),
        }
    }

    pub(super) fn journal(path: PathBuf) -> io::Result<Output> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // Not kept connected: sending by path survives a restart of the journal.
        UnixDatagram::unbound()?.connect(&path)?;
        Ok(Output::Journal { socket, path })
    }

    /// Returns its place as an operator calls it.
    pub(super) fn place(&self) -> String {
        match self {
            Output::Stream { path: Some(path), .. } => path.display().to_string(),
            Output::Stream { path: None, .. } => "standard output".to_owned(),
            Output::Journal { .. } => "the journal".to_owned(),
        }
    }

    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Output::Stream { file, path: Some(path), torn } = self {
            *file = open_file(path)?;
            *torn = false;
        }
        Ok(())
    }

    /// Writes the lines. Lines that stay in the batch were not written, and then there is an error.
    pub(super) fn write(&mut self, batch: &mut Batch, closed: impl Fn() -> bool) -> Written {
        match self {
            Output::Stream { file, torn, .. } => write_stream(file, torn, batch, closed),
            Output::Journal { socket, path } => write_journal(socket, path, batch),
        }
    }
}

/// Opens the file non-blocking, so that a FIFO without a reader is an error here and a full one is noticed
/// below. On a regular file the flag has no effect.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

pub(super) fn write_stream(file: &mut File, torn: &mut bool, batch: &mut Batch, closed: impl Fn() -> bool) -> Written {
    let mut written = Written::default();
    if *torn && !batch.lines.is_empty() {
        // The last line in the file is incomplete: don't append to it.
        match retry(&closed, || file.write(b"\n")) {
            Ok(_) => *torn = false,
            Err(error) => return Written { error: Some(error), ..written },
        }
    }
    let bytes = std::mem::take(&mut batch.bytes);
    let (mut done, mut line_start) = (0, 0);
    while let Some(left) = bytes.get(done..).filter(|left| !left.is_empty()) {
        match retry(&closed, || file.write(left)) {
            Ok(0) => written.error = Some(ErrorKind::WriteZero.into()),
            Ok(more) => done += more,
            Err(error) => written.error = Some(error),
        }
        while let Some(line) = batch.lines.front()
            && line_start + line.len <= done
        {
            line_start += line.len;
            written.lines += 1;
            batch.lines.pop_front();
        }
        *torn = done > line_start;
        if written.error.is_some() {
            break;
        }
    }
    batch.bytes = bytes.get(line_start..).unwrap_or_default().to_vec();
    written
}

/// Repeats while the stream accepts nothing, until the sink is closed.
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

/// Sends one datagram per line in the journal's native protocol. If the journal is busy, or the line is too
/// long for it, the line is lost; if there is no journal, the rest is kept.
fn write_journal(socket: &UnixDatagram, path: &Path, batch: &mut Batch) -> Written {
    let bytes = std::mem::take(&mut batch.bytes);
    let mut left = bytes.as_slice();
    let mut written = Written::default();
    let mut entry = Vec::with_capacity(2048);
    while let Some(line) = batch.lines.front().copied() {
        let Some((text, rest)) = left.split_at_checked(line.len) else { break };
        // 6: informational, 5: notice, as in syslog(3).
        let priority = if line.verdict == Verdict::Allowed { 6 } else { 5 };
        entry.clear();
        // Writing to a Vec cannot fail.
        let _ = write!(entry, "PRIORITY={priority}\nSYSLOG_IDENTIFIER=outgate\nMESSAGE=");
        entry.extend_from_slice(text);
        match socket.send_to(&entry, path) {
            Ok(_) => written.lines += 1,
            Err(error)
                if error.kind() == ErrorKind::WouldBlock
                    || rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::MSGSIZE) =>
            {
                written.lost.push(line.verdict);
            }
            Err(error) => {
                written.error = Some(error);
                break;
            }
        }
        batch.lines.pop_front();
        left = rest;
    }
    batch.bytes = left.to_vec();
    written
}
