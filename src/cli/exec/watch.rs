//! Waiting for a command's end, while signals that come for it are passed on to it.

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// A child that ended may be told of in the same signal as another, so this looks by itself too.
const LOOK: Duration = Duration::from_secs(1);

/// The signals; caught for as long as the process lives, so that what was made is taken away again.
pub(in crate::cli) struct Watch {
    runtime: Runtime,
    child: Stream,
    asked: [(Stream, Signal); 4],
}

impl Watch {
    /// Starts catching them.
    pub(in crate::cli) fn new() -> io::Result<Watch> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let child = signal(SignalKind::child())?;
        let asked = [
            (signal(SignalKind::terminate())?, Signal::TERM),
            (signal(SignalKind::interrupt())?, Signal::INT),
            (signal(SignalKind::hangup())?, Signal::HUP),
            (signal(SignalKind::quit())?, Signal::QUIT),
        ];
        drop(entered);
        Ok(Watch { runtime, child, asked })
    }

    /// Waits for the end; kills it at the deadline, if there is one.
    pub(in crate::cli) fn wait(&mut self, child: &mut Child, deadline: Option<Instant>) -> io::Result<ExitStatus> {
        let Watch { runtime, child: ended, asked: [(term, t), (int, i), (hup, h), (quit, q)] } = self;
        runtime.block_on(async {
            loop {
                if let Some(status) = child.try_wait()? {
                    return Ok(status);
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    child.kill()?;
                }
                let asked = tokio::select! {
                    _ = ended.recv() => None,
                    () = tokio::time::sleep(LOOK) => None,
                    _ = term.recv() => Some(*t),
                    _ = int.recv() => Some(*i),
                    _ = hup.recv() => Some(*h),
                    _ = quit.recv() => Some(*q),
                };
                if let Some(signal) = asked.filter(|signal| !came_from_the_terminal(*signal)) {
                    pass_on(child, signal);
                }
            }
        })
    }
}

/// A terminal sends what its keys stand for to the command as well.
fn came_from_the_terminal(signal: Signal) -> bool {
    let of_keys = signal == Signal::INT || signal == Signal::QUIT;
    of_keys && tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground == getpgrp())
}

fn pass_on(child: &Child, signal: Signal) {
    // It was not waited for yet, so the number is still its own; if it has ended there is nobody to tell.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The exit code that tells of this end, as shells have it.
pub(in crate::cli) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128_i32.saturating_add(signal)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
