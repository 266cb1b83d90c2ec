//! The caller's terminal, while the command has one of its own: bytes both ways, size, and modes. The terminal is raw
//! while the command has it, so that keys mean what the command's terminal makes of them, and as it was before at each
//! stop and at the end, without what was typed but not read, or what the terminal answered to the command's output:
//! the caller's shell would run that.

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

/// The most that is on its way in one direction, in bytes.
const CHUNK: usize = 16 << 10;
/// How long a terminal may take nothing of what a command that has ended wrote last.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a command that was stopped is waited for to have written what it wrote.
const SOON: Duration = Duration::from_millis(20);
/// Chunks that are carried on then at most: others of the command may go on writing.
const LAST_CHUNKS: usize = 64;
/// Ancestors that are looked at most.
const ANCESTORS: usize = 64;

/// The caller's terminal and the other side of the command's.
pub(super) struct Terminal {
    /// The caller's; opened once more, for whoever else has it open must not see that it does not wait.
    tty: AsyncFd<OwnedFd>,
    /// The command's, until nobody has it open any more.
    master: Option<AsyncFd<OwnedFd>>,
    /// Is the caller's also the command's input?
    is_input: bool,
    /// May others write to it meanwhile, as in a pipeline? Then their output is made ready for it, by itself.
    shared: bool,
    /// How it was when it became raw.
    before: Option<Termios>,
    /// Has the command asked for it, or was it given to it?
    wanted: bool,
    out: Chunk,
    typed: Chunk,
}

impl Terminal {
    /// The one of these streams, if any is. To be called within a runtime.
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

    /// The command's terminal starts as the caller's is. What it writes is not made ready for the caller's twice.
    fn set_up(&self) {
        self.resize();
        if let (Ok(mut modes), Some(master)) = (tcgetattr(&self.tty), &self.master) {
            modes.output_modes.remove(OutputModes::OPOST);
            // One that takes no modes works without.
            let _ = tcsetattr(master, OptionalActions::Now, &modes);
        }
    }

    /// Takes over the size.
    pub(super) fn resize(&self) {
        if let (Ok(size), Some(master)) = (tcgetwinsize(&self.tty), &self.master) {
            let _ = tcsetwinsize(master, size);
        }
    }

    /// May this process read from it and set it up?
    pub(super) fn is_ours(&self) -> bool {
        match tcgetpgrp(&self.tty) {
            Ok(foreground) => foreground == getpgrp(),
            // Not this session's, so nobody is stopped for reading from it.
            Err(Errno::NOTTY) => self.is_input,
            Err(_) => false,
        }
    }

    /// May others write to it, or is it not both input and output?
    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Gives it to the command, as soon as it is ours.
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

    /// Makes it raw if it is ours and not yet so.
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

    /// Makes it as it was before.
    pub(super) fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            self.typed = Chunk::new();
            // A terminal that is gone, or that is another job's by now, stays as it is.
            if self.is_ours() {
                let _ = tcsetattr(&self.tty, OptionalActions::Flush, &before);
                let _ = tcflush(&self.tty, QueueSelector::IFlush);
            }
        }
    }

    /// Carries on some bytes; waits for ever where there will be none.
    pub(super) async fn turn(&mut self) {
        let reads = self.before.is_some() && self.is_ours();
        let Terminal { tty, master, out, typed, .. } = self;
        let Some(other) = master else { return std::future::pending().await };
        let carried = tokio::select! {
            carried = carry(other, tty, out) => carried,
            carried = carry(tty, other, typed), if reads || !typed.is_empty() => carried,
        };
        if carried.is_err() {
            // Either nobody has the command's open any more, or the caller's is gone: then the command hears of it.
            *master = None;
        }
    }

    /// Carries on what the command wrote before it was stopped.
    pub(super) async fn catch_up(&mut self) {
        let Terminal { tty, master: Some(master), out, .. } = self else { return };
        for _ in 0..LAST_CHUNKS {
            if !matches!(tokio::time::timeout(SOON, carry(master, tty, out)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Carries on what the command wrote last. To be called when it has ended.
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

/// Bytes on their way.
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

/// Reads, or writes what was read before. An error is the end of either side.
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

/// Would somebody wake this process if it stopped: is there a shell with job control that started its process group?
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

/// The device number of this process's controlling terminal, whatever its descriptors are; `None`: it has none.
pub(super) fn controlling() -> Option<Dev> {
    let [_, _, _, number] = of_stat(&fs::read_to_string("/proc/self/stat").ok()?)?;
    (number != 0).then(|| device(number.cast_unsigned()))
}

/// As the kernel prints a device in one number (`new_encode_dev`): 12 bits of the major amid the 20 of the minor.
fn device(number: u32) -> Dev {
    makedev((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

/// Parent, process group, session and terminal in /proc/PID/stat (proc_pid_stat(5)), which follow a name that may
/// hold anything.
fn of_stat(stat: &str) -> Option<[i32; 4]> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(1).map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??, fields.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_name_does_not_confuse_its_other_fields() {
        assert_eq!(of_stat("7 (a) R 1 2 (b) S 3 4 5 1088 -1"), Some([3, 4, 5, 1088]));
        assert_eq!(of_stat("7 (a) S 3 4 5"), None);
    }

    #[test]
    fn a_terminals_number_is_that_of_its_device() {
        // ttyS0, /dev/pts/3, /dev/pts/300, and the highest there is.
        for (number, major, minor) in
            [(0x0440, 4, 64), (0x8803, 136, 3), (0x0010_882c, 136, 300), (0xffff_ffff, 0xfff, 0xf_ffff)]
        {
            assert_eq!(device(number), makedev(major, minor), "{number:#x}");
        }
    }
}
