//! Waits for a command's end; meanwhile forwards signals to it, relays its terminal, and stops and continues
//! together with it.

use super::messages::{ToInner, ToOuter, receive};
use super::start::Running;
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

/// A signal for an ended child may merge with that for another, so this also checks by itself. There is also no
/// notification when a job comes to the foreground.
const LOOK: Duration = Duration::from_secs(1);

/// The signals; caught for as long as the process lives, so that what was created is removed again.
pub(in crate::cli) struct CommandSignals {
    runtime: Runtime,
    child: Stream,
    size: Stream,
    goes_on: Stream,
    asked: [(Stream, Signal); 5],
}

/// An event to handle.
enum Event {
    /// Check the child.
    Look,
    /// Forward a signal.
    Asked(Signal),
    /// The terminal has another size.
    Size,
    /// This process continues, or its terminal was relayed.
    Refresh,
    /// A message of the inner half, or its end.
    Told(Option<(ToOuter, Vec<OwnedFd>)>),
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

    /// Starts the command and waits for its end; kills it at the deadline, if there is one.
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
                    Event::Told(Some((ToOuter::Ready, handed))) => terminal = begin(&running, handed)?,
                    Event::Told(Some((ToOuter::Stopped(hard), _))) => {
                        catch_up(&mut terminal).await;
                        stop(&running, &mut terminal, hard);
                    }
                    Event::Told(Some((ToOuter::WantsTerminal, _))) => {
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

/// Returns a message of the inner half, if there is one now.
fn hear(socket: &OwnedFd) -> io::Result<Option<(ToOuter, Vec<OwnedFd>)>> {
    receive(socket)
}

async fn turn(terminal: &mut Option<Terminal>) {
    match terminal {
        Some(terminal) => terminal.turn().await,
        None => std::future::pending().await,
    }
}

/// Relays what a stopped command had written, before this process also stops.
async fn catch_up(terminal: &mut Option<Terminal>) {
    if let Some(terminal) = terminal {
        terminal.catch_up().await;
    }
}

/// Starts the command. If one end is not an interactive terminal, as in a pipeline, the command gets the terminal
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
    running.say(ToInner::Start(foreground));
    Ok(terminal)
}

/// Handles a stopped command: this process also stops, with its process group, until it is resumed. If nobody
/// would resume it, the command continues at once, as with the kernel's own rule, unless SIGSTOP stopped it, whose
/// sender will undo it.
fn stop(running: &Running, terminal: &mut Option<Terminal>, hard: bool) {
    if pause(terminal) || !hard {
        running.say(ToInner::Continue);
    }
}

/// Handles a command that was stopped because it is in the background of its terminal and wants to read from or
/// configure it.
fn give(running: &Running, terminal: &mut Option<Terminal>) {
    if terminal.as_ref().is_some_and(|terminal| !terminal.is_ours()) {
        pause(terminal);
    }
    match terminal {
        // In the background again: the command asks once more, and this process stops once more.
        Some(terminal) if !terminal.is_ours() && can_stop() => running.say(ToInner::Continue),
        Some(terminal) => {
            terminal.give();
            running.say(ToInner::Foreground);
        }
        None => running.say(ToInner::Continue),
    }
}

/// Stops this process group, if somebody would resume it, and returns whether it did. Its other members did not
/// receive the key.
fn pause(terminal: &mut Option<Terminal>) -> bool {
    let stops = can_stop();
    if stops {
        terminal.iter_mut().for_each(Terminal::restore);
        // This cannot fail: this process is in the group.
        let _ = kill_current_process_group(Signal::STOP);
        terminal.iter_mut().for_each(Terminal::refresh);
    }
    stops
}

/// Returns whether the signal came from a key, which is for the whole foreground process group. The command is not
/// in this group, which the terminal signals.
fn came_from_the_terminal(signal: Signal) -> bool {
    let of_keys = [Signal::INT, Signal::QUIT, Signal::TSTP].contains(&signal);
    let foreground = || tcgetpgrp(File::open("/dev/tty").ok()?).ok();
    of_keys && foreground() == Some(getpgrp())
}

/// Returns the exit code for this end, as in shells.
pub(in crate::cli) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128_i32.saturating_add(signal)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
