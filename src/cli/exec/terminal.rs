//! Relays the caller's terminal, while the command has one of its own: bytes both ways, size, and modes. The
//! terminal is raw while the command has it, so that the command's terminal interprets the keys. It is restored at
//! each stop and at the end. Input that was typed but not read, and the terminal's answers to the command's
//! output, are then discarded: the caller's shell would run them.

use super::start::Streams;
use rustix::fs::{Dev, Mode, OFlags, makedev, open};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{getpgrp, getsid};
use rustix::termios::{
    OptionalActions, OutputModes, QueueSelector, Termios, isatty, tcflush, tcgetattr, tcgetpgrp, tcgetwinsize,
    tcsetattr, tcsetwinsize,
};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most bytes in transit in one direction.
const CHUNK: usize = 16 << 10;
/// How long a terminal may accept nothing of the last output of an ended command.
const DRAIN: Duration = Duration::from_secs(2);
/// How long to wait for the remaining output of a stopped command.
const SOON: Duration = Duration::from_millis(20);
/// Maximum number of chunks relayed then: the command's other processes may continue to write.
const LAST_CHUNKS: usize = 64;
/// Maximum number of ancestors examined.
const ANCESTORS: usize = 64;

/// The caller's terminal and the other side of the command's.
pub(super) struct Terminal {
    /// The caller's; opened again, because other users of it must not see that it is non-blocking.
    tty: AsyncFd<OwnedFd>,
    /// The command's, until nobody has it open any more.
    master: Option<AsyncFd<OwnedFd>>,
    /// Whether the caller's is also the command's input.
    is_input: bool,
    /// Whether others may write to it in the meantime, as in a pipeline. It then processes their output itself.
    shared: bool,
    /// Its modes before it became raw.
    before: Option<Termios>,
    /// Whether the command has asked for it, or was given it.
    wanted: bool,
    out: Chunk,
    typed: Chunk,
}

impl Terminal {
    /// Returns the terminal among these streams, if there is one. Must be called within a runtime.
    pub(super) fn of(streams: &Streams, master: OwnedFd) -> io::Result<Option<Terminal>> {
        let [input, output, errors] = &streams.0;
        let Some(stream) = [output, errors, input].into_iter().find(|stream| isatty(stream)) else { return Ok(None) };
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let again = open(format!("/proc/self/fd/{}", stream.as_raw_fd()), flags, Mode::empty());
        let tty = again.or_else(|_| open("/dev/tty", flags, Mode::empty()))?;
        ioctl_fionbio(&master, true)?;
        let master = Some(watched(master)?);
        let terminal = Terminal {
            tty: watched(tty)?,
            master,
            is_input: isatty(input),
            shared: !isatty(input) || !isatty(output),
            before: None,
            wanted: false,
            out: Chunk::new(),
            typed: Chunk::new(),
        };
        terminal.set_up();
        Ok(Some(terminal))
    }

    /// Initialises the command's terminal from the caller's. Its output is not processed twice for the caller's.
    fn set_up(&self) {
        self.resize();
        if let (Ok(mut modes), Some(master)) = (tcgetattr(&self.tty), &self.master) {
            modes.output_modes.remove(OutputModes::OPOST);
            // A terminal that accepts no modes works without them.
            let _ = tcsetattr(master, OptionalActions::Now, &modes);
        }
    }

    /// Copies the size.
    pub(super) fn resize(&self) {
        if let (Ok(size), Some(master)) = (tcgetwinsize(&self.tty), &self.master) {
            let _ = tcsetwinsize(master, size);
        }
    }

    /// Returns whether this process may read from it and configure it.
    pub(super) fn is_ours(&self) -> bool {
        match tcgetpgrp(&self.tty) {
            Ok(foreground) => foreground == getpgrp(),
            // Not this session's terminal, so no process is stopped for reading from it.
            Err(Errno::NOTTY) => self.is_input,
            Err(_) => false,
        }
    }

    /// Returns whether others may write to it, or it is not both input and output.
    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Gives it to the command, as soon as it is this process's.
    pub(super) fn give(&mut self) {
        if !self.wanted {
            self.wanted = true;
            let modes = tcgetattr(&self.tty);
            let post = !self.shared && modes.is_ok_and(|modes| modes.output_modes.contains(OutputModes::OPOST));
            if let Some(master) = self.master.as_ref().filter(|_| post)
                && let Ok(mut modes) = tcgetattr(master)
            {
                modes.output_modes.insert(OutputModes::OPOST);
                let _ = tcsetattr(master, OptionalActions::Now, &modes);
            }
        }
        self.refresh();
    }

    /// Makes it raw if it is this process's and not raw yet.
    pub(super) fn refresh(&mut self) {
        if !self.wanted || self.before.is_some() || !self.is_ours() {
            return;
        }
        self.resize();
        if let Ok(before) = tcgetattr(&self.tty) {
            let mut raw = before.clone();
            raw.make_raw();
            if self.shared {
                raw.output_modes = before.output_modes;
            }
            if tcsetattr(&self.tty, OptionalActions::Drain, &raw).is_ok() {
                self.before = Some(before);
            }
        }
    }

    /// Restores its previous modes.
    pub(super) fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            self.typed = Chunk::new();
            // A terminal that is gone, or that now belongs to another job, stays as it is.
            if self.is_ours() {
                let _ = tcsetattr(&self.tty, OptionalActions::Flush, &before);
                let _ = tcflush(&self.tty, QueueSelector::IFlush);
            }
        }
    }

    /// Relays some bytes; waits forever if there will be none.
    pub(super) async fn turn(&mut self) {
        let reads = self.before.is_some() && self.is_ours();
        let Terminal { tty, master, out, typed, .. } = self;
        let Some(other) = master else { return std::future::pending().await };
        let carried = tokio::select! {
            carried = carry(other, tty, out) => carried,
            carried = carry(tty, other, typed), if reads || !typed.is_empty() => carried,
        };
        if carried.is_err() {
            // Either nobody has the command's open any more, or the caller's is gone: then the command gets a
            // hangup.
            *master = None;
        }
    }

    /// Relays what the command wrote before it was stopped.
    pub(super) async fn catch_up(&mut self) {
        let Terminal { tty, master: Some(master), out, .. } = self else { return };
        for _ in 0..LAST_CHUNKS {
            if !matches!(tokio::time::timeout(SOON, carry(master, tty, out)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Relays the last output of the command. Must be called after it has ended.
    pub(super) async fn drain(&mut self) {
        let Terminal { tty, master, out, .. } = self;
        if let Some(master) = master.take() {
            while let Ok(Ok(())) = tokio::time::timeout(DRAIN, carry(&master, tty, out)).await {}
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Bytes in transit.
struct Chunk {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Chunk {
    fn new() -> Chunk {
        Chunk { bytes: vec![0; CHUNK].into_boxed_slice(), from: 0, to: 0 }
    }

    fn is_empty(&self) -> bool {
        self.from >= self.to
    }
}

/// Reads, or writes what was read before. An error means the end of either side.
async fn carry(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>, chunk: &mut Chunk) -> io::Result<()> {
    if chunk.is_empty() {
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut *chunk.bytes)?);
        let length = from.async_io(Interest::READABLE, read).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (chunk.from, chunk.to) = (0, length);
    } else {
        let left = chunk.bytes.get(chunk.from..chunk.to).unwrap_or_default();
        let length = to.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, left)?)).await?;
        chunk.from = chunk.from.saturating_add(length);
    }
    Ok(())
}

/// A descriptor that the runtime watches.
#[expect(deprecated, reason = "what is not safe is a type whose descriptor changes, and this one's does not")]
pub(super) fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// Returns whether somebody would resume this process if it stopped: a shell with job control that started its
/// process group.
pub(super) fn can_stop() -> bool {
    let (Ok(session), group) = (getsid(None), getpgrp()) else { return false };
    let mut process = "self".to_owned();
    for _ in 0..ANCESTORS {
        let Some(stat) = fs::read_to_string(format!("/proc/{process}/stat")).ok() else { return false };
        let Some([parent, its_group, its_session, _]) = of_stat(&stat) else { return false };
        if its_group != group.as_raw_nonzero().get() {
            return its_session == session.as_raw_nonzero().get();
        }
        process = parent.to_string();
    }
    false
}

/// Returns the device number of this process's controlling terminal, whatever its descriptors are; `None` if it
/// has none.
pub(super) fn controlling() -> Option<Dev> {
    let [_, _, _, number] = of_stat(&fs::read_to_string("/proc/self/stat").ok()?)?;
    (number != 0).then(|| device(number.cast_unsigned()))
}

/// Decodes the kernel's single number for a device (`new_encode_dev`): 12 bits of the major amid the 20 of the
/// minor.
fn device(number: u32) -> Dev {
    makedev((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

/// Returns parent, process group, session and terminal from /proc/PID/stat (proc_pid_stat(5)), which follow a name
/// that may contain anything.
fn of_stat(stat: &str) -> Option<[i32; 4]> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(1).map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??, fields.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_confuse_its_other_fields() {
        assert_eq!(of_stat("7 (a) R 1 2 (b) S 3 4 5 1088 -1"), Some([3, 4, 5, 1088]));
        assert_eq!(of_stat("7 (a) S 3 4 5"), None);
    }

    #[test]
    fn a_terminals_number_is_that_of_its_device() {
        // ttyS0, /dev/pts/3, /dev/pts/300, and the highest number.
        for (number, major, minor) in
            [(0x0440, 4, 64), (0x8803, 136, 3), (0x0010_882c, 136, 300), (0xffff_ffff, 0xfff, 0xf_ffff)]
        {
            assert_eq!(device(number), makedev(major, minor), "{number:#x}");
        }
    }
}
