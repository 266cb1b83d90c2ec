//! Waiting for a command's end, while signals that come for it are passed on, its terminal is carried on, and it stops
//! and goes on with this process.

use super::start::Running;
use super::talk::{Say, Tell, receive};
use super::terminal::{Terminal, can_stop, watched};
use rustix::process::{Signal, getpgrp, kill_current_process_group};
use rustix::termios::tcgetpgrp;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// A child that ended may be told of in the same signal as another, so this looks by itself too. Nor is anybody told
/// when a job comes to the foreground.
const LOOK: Duration = Duration::from_secs(1);

/// The signals; caught for as long as the process lives, so that what was made is taken away again.
pub(in crate::cli) struct CommandSignals {
    runtime: Runtime,
    child: Stream,
    size: Stream,
    goes_on: Stream,
    asked: [(Stream, Signal); 5],
}

/// What there is to do.
enum Event {
    /// Look at the child.
    Look,
    /// Hand on a signal.
    Asked(Signal),
    /// The terminal has another size.
    Size,
    /// This process goes on, or its terminal was carried on.
    Refresh,
    /// The half inside says something, or nothing any more.
    Told(Option<(Tell, Vec<OwnedFd>)>),
}

impl CommandSignals {
    /// Starts catching them.
    pub(in crate::cli) fn new() -> io::Result<CommandSignals> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let child = signal(SignalKind::child())?;
        let size = signal(SignalKind::window_change())?;
        let goes_on = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        let asked = [
            (signal(SignalKind::terminate())?, Signal::TERM),
            (signal(SignalKind::interrupt())?, Signal::INT),
            (signal(SignalKind::hangup())?, Signal::HUP),
            (signal(SignalKind::quit())?, Signal::QUIT),
            (signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?, Signal::TSTP),
        ];
        drop(entered);
        Ok(CommandSignals { runtime, child, size, goes_on, asked })
    }

    /// Has the command started and waits for its end; kills it at the deadline, if there is one.
    pub(in crate::cli) fn wait(&mut self, mut running: Running, deadline: Option<Instant>) -> io::Result<ExitStatus> {
        let CommandSignals { runtime, child, size, goes_on, asked } = self;
        let [(term, t), (int, i), (hup, h), (quit, q), (tstp, z)] = asked;
        runtime.block_on(async {
            let talk = watched(running.talk.try_clone()?)?;
            let (mut terminal, mut silent) = (None::<Terminal>, false);
            let status = loop {
                if let Some(status) = running.child.try_wait()? {
                    break status;
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    running.child.kill()?;
                }
                let event = tokio::select! {
                    _ = child.recv() => Event::Look,
                    () = tokio::time::sleep(LOOK) => Event::Refresh,
                    _ = term.recv() => Event::Asked(*t),
                    _ = int.recv() => Event::Asked(*i),
                    _ = hup.recv() => Event::Asked(*h),
                    _ = quit.recv() => Event::Asked(*q),
                    _ = tstp.recv() => Event::Asked(*z),
                    _ = size.recv() => Event::Size,
                    _ = goes_on.recv() => Event::Refresh,
                    told = talk.async_io(Interest::READABLE, hear), if !silent => Event::Told(told?),
                    () = turn(&mut terminal) => Event::Look,
                };
                match event {
                    Event::Look => {}
                    Event::Asked(signal) => running.signal(signal, came_from_the_terminal(signal)),
                    Event::Size => terminal.iter().for_each(Terminal::resize),
                    Event::Refresh => terminal.iter_mut().for_each(Terminal::refresh),
                    Event::Told(None) => silent = true,
                    Event::Told(Some((Tell::Ready, handed))) => terminal = begin(&running, handed)?,
                    Event::Told(Some((Tell::Stopped(hard), _))) => {
                        catch_up(&mut terminal).await;
                        stop(&running, &mut terminal, hard);
                    }
                    Event::Told(Some((Tell::WantsTerminal, _))) => {
                        catch_up(&mut terminal).await;
                        give(&running, &mut terminal);
                    }
                }
            };
            if let Some(terminal) = &mut terminal {
                terminal.drain().await;
            }
            drop(terminal);
            running.complain();
            Ok(status)
        })
    }
}

/// What the half inside says, if it says something now.
fn hear(socket: &OwnedFd) -> io::Result<Option<(Tell, Vec<OwnedFd>)>> {
    receive(socket)
}

async fn turn(terminal: &mut Option<Terminal>) {
    match terminal {
        Some(terminal) => terminal.turn().await,
        None => std::future::pending().await,
    }
}

/// Shows what a command that was stopped had written, before this process stops as well.
async fn catch_up(terminal: &mut Option<Terminal>) {
    if let Some(terminal) = terminal {
        terminal.catch_up().await;
    }
}

/// Has the command started. Where something else than a person is at one end, as in a pipeline, it gets the terminal
/// when it asks.
fn begin(running: &Running, handed: Vec<OwnedFd>) -> io::Result<Option<Terminal>> {
    let mut terminal = match handed.into_iter().next() {
        Some(master) => Terminal::of(&running.streams, master)?,
        None => None,
    };
    let mut foreground = false;
    if let Some(terminal) = terminal.as_mut().filter(|terminal| !terminal.is_shared() && terminal.is_ours()) {
        terminal.give();
        foreground = true;
    }
    running.say(Say::Start(foreground));
    Ok(terminal)
}

/// The command was stopped; so this process stops, with its process group, until it is woken. Where nobody would wake
/// it the command goes on at once, as kernels have it, unless by SIGSTOP, which whoever sent it will undo.
fn stop(running: &Running, terminal: &mut Option<Terminal>, hard: bool) {
    if pause(terminal) || !hard {
        running.say(Say::Continue);
    }
}

/// The command was stopped, for it is in the background of its terminal and wants to read from that or set it up.
fn give(running: &Running, terminal: &mut Option<Terminal>) {
    if terminal.as_ref().is_some_and(|terminal| !terminal.is_ours()) {
        pause(terminal);
    }
    match terminal {
        // Again in the background: it asks once more, and this stops once more.
        Some(terminal) if !terminal.is_ours() && can_stop() => running.say(Say::Continue),
        Some(terminal) => {
            terminal.give();
            running.say(Say::Foreground);
        }
        None => running.say(Say::Continue),
    }
}

/// Stops this process group, where somebody would wake it, and says whether it did. The others in it did not see the
/// key.
fn pause(terminal: &mut Option<Terminal>) -> bool {
    let stops = can_stop();
    if stops {
        terminal.iter_mut().for_each(Terminal::restore);
        // It cannot fail: this process is in it.
        let _ = kill_current_process_group(Signal::STOP);
        terminal.iter_mut().for_each(Terminal::refresh);
    }
    stops
}

/// What keys stand for is for the whole process group. The command is not in this one, which the terminal signals.
fn came_from_the_terminal(signal: Signal) -> bool {
    let of_keys = [Signal::INT, Signal::QUIT, Signal::TSTP].contains(&signal);
    let foreground = || tcgetpgrp(File::open("/dev/tty").ok()?).ok();
    of_keys && foreground() == Some(getpgrp())
}

/// The exit code that tells of this end, as shells have it.
pub(in crate::cli) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128_i32.saturating_add(signal)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
