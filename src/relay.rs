//! Relays bytes both ways: tunnels here, the bodies of plain HTTP in [`http`].
//!
//! A tunnel owns no buffer. Each worker thread has one large scratch buffer; what is read into it is written at
//! once, and only what the other side does not accept is kept with the flow. The cost of bulk data depends on the
//! size of the reads, so reads grow up to the whole scratch while the other side keeps up, and shrink when it does
//! not. The total that the flows of a thread keep is bounded.

pub mod close;
mod fairness;
pub mod http;
mod idle_upstreams;
pub mod scratch;
mod side;

pub use idle_upstreams::IdleUpstreams;
pub(crate) use idle_upstreams::{IdleUpstream, UpstreamSlot};
pub use side::{GuestStream, Sealed, Side};

use crate::identify::HostSearch;
use crate::live::Flow;
pub(crate) use fairness::Turn;
use scratch::{MAX_CHUNK, MIN_CHUNK, ThreadBuffer};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// A flow that lives longer than this is reported while it is open.
const MINUTE: Duration = Duration::from_secs(60);

/// What a relay obeys, and what it reports to.
#[derive(Clone, Copy)]
pub struct Supervision<'a> {
    /// Its flow: counts the bytes, and may be revoked.
    pub flow: &'a Flow,
    /// The flow of the tunnel around it, which may be revoked too.
    pub around: Option<&'a Flow>,
    /// How long the flow may be idle.
    pub idle: Option<Duration>,
    /// Called once if the flow lives longer than a minute, or already has.
    pub long_lived: &'a (dyn Fn() + Sync),
}

impl Supervision<'_> {
    /// Ready when the flow is to end. Only for the one task that carries it.
    fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.around {
            Some(around) if around.poll_revoked(cx).is_ready() => Poll::Ready(()),
            _ => self.flow.poll_revoked(cx).map(drop),
        }
    }
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides are done.
    Closed,
    /// One side broke off; the other was reset.
    Broken,
    /// Nothing moved for the idle time.
    Idle,
    /// The flow was revoked.
    Stopped,
    /// The guest showed another name than it was permitted for.
    OtherName,
}

/// One direction of a tunnel.
#[derive(Debug)]
struct Lane {
    kept: ThreadBuffer,
    /// How many bytes the next read asks for.
    chunk: usize,
    turn: Turn,
    state: LaneState,
    /// Searches what was read before it is sent on.
    search: Option<Box<HostSearch>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneState {
    Open,
    /// The reading side has ended; the kept bytes are still to be written.
    Ended,
    /// The end was passed on.
    Finished,
}

/// A tunnel between a guest and an upstream, both connected.
#[derive(Debug)]
pub struct Tunnel {
    guest: GuestStream,
    upstream: TcpStream,
    up: Lane,
    down: Lane,
    broken: bool,
}

/// A direction of a tunnel that broke.
enum Broken {
    /// The reading side was reset.
    Read,
    /// The writing side accepts no more; what it sent before may still be read.
    Write,
    /// What was read must not be sent on.
    OtherName,
}

impl Tunnel {
    /// `to_upstream` and `to_guest` are bytes already read that go first.
    pub fn new(guest: impl Into<GuestStream>, upstream: TcpStream, to_upstream: Vec<u8>, to_guest: Vec<u8>) -> Tunnel {
        let guest = guest.into();
        Tunnel { guest, upstream, up: Lane::new(to_upstream), down: Lane::new(to_guest), broken: false }
    }

    /// If `ended`, the guest's side was already read to its end; the end is passed on.
    #[must_use]
    pub fn guest_ended(mut self, ended: bool) -> Tunnel {
        if ended {
            self.up.state = LaneState::Ended;
        }
        self
    }

    /// Searches what the guest sends from now on for other names.
    #[must_use]
    pub fn searched(mut self, search: Option<Box<HostSearch>>) -> Tunnel {
        self.up.search = search;
        self
    }

    /// The name for which the tunnel ended with [`End::OtherName`].
    pub fn shown(&self) -> Option<&[u8]> {
        self.up.search.as_ref().map(|search| search.shown())
    }

    /// Relays until both sides are done, nothing moved for the idle time, or the flow is stopped. Drop the tunnel
    /// afterwards, which closes both connections.
    ///
    /// The end of one side is passed on (half-close) and the other goes on. Unless both reached their end
    /// ([`End::Closed`]), both connections are reset, so that nobody takes a cut stream for a complete one.
    pub async fn run(&mut self, supervision: Supervision<'_>) -> End {
        let mut clock = Clock::new(&supervision);
        // Timer entries must not move once polled; the relay itself never moves out of its task.
        let sleep = tokio::time::sleep_until(clock.next());
        tokio::pin!(sleep);
        let end = poll_fn(|cx| {
            if supervision.poll_revoked(cx).is_ready() {
                return Poll::Ready(End::Stopped);
            }
            if let Poll::Ready(end) = self.turn(cx, supervision.flow) {
                return Poll::Ready(end);
            }
            let moved = self.has_moved();
            clock.poll(cx, sleep.as_mut(), moved)
        })
        .await;
        if !matches!(end, End::Closed) {
            close::reset(&self.guest);
            close::reset(&self.upstream);
        }
        end
    }

    /// Moves what can be moved. Ready when both directions are finished or one broke.
    fn turn(&mut self, cx: &mut Context<'_>, flow: &Flow) -> Poll<End> {
        let Tunnel { guest, upstream, up, down, broken } = self;
        let last = down.state == LaneState::Finished;
        let up_done = up.poll(cx, guest, upstream, last, |n| flow.count_up(n));
        let last = up.state == LaneState::Finished;
        let down_done = down.poll(cx, upstream, guest, last, |n| flow.count_down(n));
        for (lane, done) in [(up, &up_done), (down, &down_done)] {
            match done {
                Poll::Ready(Err(Broken::Read)) => return Poll::Ready(End::Broken),
                Poll::Ready(Err(Broken::OtherName)) => return Poll::Ready(End::OtherName),
                Poll::Ready(Err(Broken::Write)) => {
                    *broken = true;
                    lane.state = LaneState::Finished;
                }
                _ => {}
            }
        }
        match (up_done, down_done) {
            (Poll::Ready(_), Poll::Ready(_)) if *broken => Poll::Ready(End::Broken),
            (Poll::Ready(_), Poll::Ready(_)) => Poll::Ready(End::Closed),
            _ => Poll::Pending,
        }
    }

    /// Whether bytes moved since the last call.
    fn has_moved(&mut self) -> bool {
        let moved = self.up.kept.moved || self.down.kept.moved;
        self.up.kept.moved = false;
        self.down.kept.moved = false;
        moved
    }
}

impl Lane {
    fn new(first: Vec<u8>) -> Lane {
        Lane {
            kept: ThreadBuffer::new(first),
            chunk: MIN_CHUNK,
            turn: Turn::default(),
            state: LaneState::Open,
            search: None,
        }
    }

    /// Moves what its turn allows. `last`: the other direction is finished, so the end of this one closes both.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        last: bool,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Broken>> {
        if self.state != LaneState::Finished && !self.turn.begin(cx) {
            return Poll::Pending;
        }
        loop {
            if self.state == LaneState::Finished {
                return Poll::Ready(Ok(()));
            }
            let flushed = ready!(self.kept.poll_flush(cx, to)).map_err(|_| Broken::Write)?;
            self.turn.moved(flushed);
            count(flushed);
            if self.state == LaneState::Ended {
                if !last || !to.ends_with_socket() {
                    // A peer that is already gone needs no end.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                }
                self.state = LaneState::Finished;
                continue;
            }
            if !self.turn.goes_on(cx) {
                return Poll::Pending;
            }
            // Searching costs several times as much as copying, so reads that are searched are shorter.
            let is_slow = self.search.as_ref().is_some_and(|search| !search.skips());
            let most = if is_slow { MIN_CHUNK } else { MAX_CHUNK };
            let want = self.chunk.min(scratch::allowance()).min(most);
            let moved = poll_move(cx, from, to, want, &mut self.kept, &mut self.search);
            self.turn.moved(from.take_surcharge());
            let (read, written) = ready!(moved)?;
            count(written);
            if read == 0 {
                if let Some(search) = &mut self.search {
                    search.end().map_err(|_| Broken::OtherName)?;
                }
                self.state = LaneState::Ended;
                continue;
            }
            self.turn.moved(read);
            self.chunk = match (written < read, read == want) {
                (true, _) => MIN_CHUNK,
                (false, true) => (self.chunk * 2).min(MAX_CHUNK),
                (false, false) => self.chunk,
            };
        }
    }
}

/// What ended [`listen`].
#[derive(Debug, PartialEq, Eq)]
pub enum Listened {
    /// The guest sent bytes; they were added to the input.
    Guest,
    /// The guest's stream ended.
    GuestEnded,
    /// Nothing moved for the idle time.
    Idle,
    /// The guest sent nothing until the given time, whatever the server did.
    Silent,
    /// One side broke off.
    Closed,
    /// The flow was revoked.
    Stopped,
}

/// How much is read from the guest at once, 8 KiB.
const SAID: usize = 8 << 10;

/// Relays what the upstream sends until the guest sends something, or has been silent until `patience`. What the
/// guest has not accepted by then is left in `to_guest`, whose bytes also go first.
pub async fn listen(
    guest: &mut GuestStream,
    upstream: &mut TcpStream,
    input: &mut Vec<u8>,
    to_guest: &mut Vec<u8>,
    patience: Option<Instant>,
    supervision: Supervision<'_>,
) -> Listened {
    let flow = supervision.flow;
    let mut down = Lane::new(std::mem::take(to_guest));
    let mut clock = Clock::new(&supervision);
    let sleep = tokio::time::sleep_until(clock.next());
    let silence = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now));
    tokio::pin!(sleep, silence);
    let heard = poll_fn(|cx| {
        if supervision.poll_revoked(cx).is_ready() {
            return Poll::Ready(Listened::Stopped);
        }
        if let Poll::Ready(heard) = poll_hear(cx, guest, input) {
            return Poll::Ready(heard);
        }
        if patience.is_some() && silence.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Listened::Silent);
        }
        match down.poll(cx, upstream, guest, false, |n| flow.count_down(n)) {
            Poll::Ready(Err(_)) => return Poll::Ready(Listened::Closed),
            // The server's end was passed on; the guest may still send something.
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        let moved = std::mem::take(&mut down.kept.moved);
        clock.poll(cx, sleep.as_mut(), moved).map(|_| Listened::Idle)
    })
    .await;
    *to_guest = down.kept.take_rest();
    heard
}

/// Adds what the guest sends to `input`.
fn poll_hear(cx: &mut Context<'_>, guest: &mut GuestStream, input: &mut Vec<u8>) -> Poll<Listened> {
    scratch::with(SAID, |buffer| {
        let mut buffer = ReadBuf::new(buffer);
        match ready!(Pin::new(guest).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {
                input.extend_from_slice(buffer.filled());
                Poll::Ready(Listened::Guest)
            }
            Ok(()) => Poll::Ready(Listened::GuestEnded),
            Err(_) => Poll::Ready(Listened::Closed),
        }
    })
}

/// Reads up to `want` bytes into the thread's scratch and writes them; what is not accepted is kept. Returns how
/// many bytes were read (0: the end) and how many of them were written.
fn poll_move(
    cx: &mut Context<'_>,
    from: &mut impl Side,
    to: &mut impl Side,
    want: usize,
    kept: &mut ThreadBuffer,
    search: &mut Option<Box<HostSearch>>,
) -> Poll<Result<(usize, usize), Broken>> {
    scratch::with(want, |buffer| {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(|_| Broken::Read)?;
        let data = buffer.filled();
        if let Some(searching) = search
            && !searching.push(data).map_err(|_| Broken::OtherName)?
        {
            *search = None;
        }
        kept.moved = true;
        let mut written = 0;
        while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(Ok(n @ 1..)) => written += n,
                Poll::Ready(_) => return Poll::Ready(Err(Broken::Write)),
                Poll::Pending => {
                    kept.keep(rest);
                    break;
                }
            }
        }
        Poll::Ready(Ok((data.len(), written)))
    })
}

/// The idle deadline and the one-minute mark, on one timer that is re-armed only when it fires.
pub(crate) struct Clock<'a> {
    idle: Option<Duration>,
    last: Instant,
    minute: Instant,
    /// To be called at the minute, unless it was.
    long_lived: Option<&'a (dyn Fn() + Sync)>,
}

impl<'a> Clock<'a> {
    pub(crate) fn new(supervision: &Supervision<'a>) -> Clock<'a> {
        let now = Instant::now();
        let minute = now + MINUTE.saturating_sub(supervision.flow.age());
        Clock { idle: supervision.idle, last: now, minute, long_lived: Some(supervision.long_lived) }
    }

    pub(crate) fn next(&self) -> Instant {
        // Without either deadline the timer only fires once a day.
        let idle = self.idle.map_or_else(|| Instant::now() + Duration::from_secs(86_400), |idle| self.last + idle);
        if self.long_lived.is_some() { idle.min(self.minute) } else { idle }
    }

    /// Sets the idle timeout, counted from now.
    pub(crate) fn set_idle(&mut self, idle: Option<Duration>, sleep: Pin<&mut Sleep>) {
        self.idle = idle;
        self.last = Instant::now();
        // The timer may fire too early, never too late.
        if self.next() < sleep.deadline() {
            sleep.reset(self.next());
        }
    }

    /// Call this at each poll of the relay; `moved`: bytes moved since the last call.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>, moved: bool) -> Poll<End> {
        if moved {
            self.last = Instant::now();
        }
        while sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.idle.is_some_and(|idle| now >= self.last + idle) {
                return Poll::Ready(End::Idle);
            }
            if now >= self.minute
                && let Some(long_lived) = self.long_lived.take()
            {
                long_lived();
            }
            sleep.as_mut().reset(self.next().max(now + Duration::from_millis(1)));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
