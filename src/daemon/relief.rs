//! Watches how full the daemon is and reacts: it informs the gate, closes the longest idle flows, and reports
//! it. It has its own thread, because it reads files and walks all flows. `limits::overload` defines how full
//! is too full.

mod gauges;

use crate::limits::overload::{Judgement, Level, Levels, Resource, Room, Stage, StageTracker, fair_share};
use crate::lock::lock;
use crate::relay::scratch;
use crate::services::Services;
use gauges::Gauges;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time between two measurements.
const TICK: Duration = Duration::from_millis(250);
/// Time between two checks of which flows move bytes, while there is room.
const LOOK: Duration = Duration::from_secs(10);
/// A flow that has carried nothing for this long is idle.
const IDLE: Duration = Duration::from_secs(1);
/// From this share on, flows that are not idle are closed as well. Otherwise the kernel would end the daemon and
/// with it all flows.
const DIRE: f64 = 0.97;
/// One in this many connections is closed at a time, but at least [`CLOSE_AT_LEAST`].
const CLOSE_ONE_OF: u32 = 50;
const CLOSE_AT_LEAST: u32 = 16;

/// How full the daemon is, for status reports.
#[derive(Clone, Default)]
pub(super) struct Relief(Arc<Mutex<Option<Said>>>);

/// The report on a stage.
#[derive(Clone, Debug)]
struct Said {
    stage: Stage,
    sentence: String,
}

impl Relief {
    /// Measures once, and then until `end` on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(services: &Arc<Services>, workers: usize, end: CancellationToken) -> io::Result<Relief> {
        let relief = Relief::default();
        let mut overseer = Overseer::new(Arc::clone(services), workers, relief.clone());
        // Before the first connection, so that the limits already apply to it.
        overseer.tick();
        std::thread::Builder::new().name("outgate-relief".into()).spawn(move || {
            while !end.is_cancelled() {
                std::thread::sleep(TICK);
                overseer.tick();
            }
        })?;
        Ok(relief)
    }

    /// Returns a sentence on the overload, if there is one.
    pub(super) fn overload(&self) -> Option<String> {
        self.said(Stage::Heavy)
    }

    /// Returns a sentence on the overload if nobody gets new connections. If only the heaviest guests get none,
    /// the daemon still does its job for the others, and is ready.
    pub(super) fn not_ready(&self) -> Option<String> {
        self.said(Stage::Full)
    }

    fn said(&self, least: Stage) -> Option<String> {
        let said = lock(&self.0);
        said.as_ref().filter(|said| said.stage >= least).map(|said| said.sentence.clone())
    }

    fn say(&self, said: Option<Said>) {
        *lock(&self.0) = said;
    }
}

struct Overseer {
    services: Arc<Services>,
    workers: usize,
    relief: Relief,
    gauges: Gauges,
    watch: StageTracker,
    stage: Stage,
    last: Instant,
    looked: Instant,
    /// Whether the operator was warned that there are too few descriptors.
    warned: bool,
}

impl Overseer {
    fn new(services: Arc<Services>, workers: usize, relief: Relief) -> Overseer {
        Overseer {
            services,
            workers,
            relief,
            gauges: Gauges::new(),
            watch: StageTracker::default(),
            stage: Stage::Normal,
            last: Instant::now(),
            looked: Instant::now(),
            warned: false,
        }
    }

    fn tick(&mut self) {
        let levels = self.measure();
        let aside = self.watch.aside();
        let judged = self.watch.step(&levels);
        if self.watch.aside() > aside {
            tracing::warn!(
                "{} MiB of memory stay in use, of {} MiB, although the connections do not explain it; overload is \
                 judged by the other measures. If the lists need it, give the daemon more ([limits].memory_mib, \
                 MemoryMax)",
                levels.memory.used >> 20,
                levels.memory.bound >> 20
            );
        }
        let fair = self.fair(&judged, &levels);
        self.services.gate.relieve(judged.gate, fair);
        let now = Instant::now();
        self.services.account.metrics().set_overload(judged.stage as u8, now - self.last);
        self.last = now;
        if judged.stage >= Stage::Heavy || now - self.looked >= LOOK {
            self.services.account.live().look();
            self.looked = now;
        }
        let closed = if judged.stage == Stage::Closing { self.close(judged.share) } else { 0 };
        self.tell(&judged, fair, closed);
    }

    /// Measures, and applies what follows from the bounds alone.
    fn measure(&mut self) -> Levels {
        let Services { gate, account, .. } = &*self.services;
        let settings = gate.settings();
        let live = gate.total();
        let memory = self.gauges.memory(settings.memory);
        let files = self.gauges.files(live, gate.refusals());
        let room = match files.bound {
            0 => Room { connections: u32::MAX, ..Room::of(u64::MAX) },
            files => Room::of(files),
        };
        gate.set_room(room);
        let most = gate.most();
        if let Some(wanted) = settings.total_connections.filter(|wanted| *wanted > most && !self.warned) {
            self.warned = true;
            tracing::warn!(
                "{} file descriptors are enough for {most} of the {wanted} connections in [limits].total_connections; \
                 raise LimitNOFILE in a drop-in of outgate.service (`ulimit -n` in a shell), or lower that number",
                files.bound
            );
        }
        scratch::keep_within(memory.bound, self.workers);
        account.metrics().set_room(memory.used, memory.bound, most);
        let connections = Level { used: live.into(), bound: if most == u32::MAX { 0 } else { most.into() } };
        Levels { memory, files, connections }
    }

    /// Returns the number of connections from which on a guest is over its share.
    fn fair(&self, judged: &Judgement, levels: &Levels) -> u32 {
        if judged.stage == Stage::Normal {
            return u32::MAX;
        }
        let live = u32::try_from(levels.connections.used).unwrap_or(u32::MAX);
        fair_share(live, judged.share, self.services.gate.guests())
    }

    /// Closes some of the longest idle flows; returns how many.
    fn close(&self, share: f64) -> usize {
        let Services { gate, account, .. } = &*self.services;
        let count = (gate.total() / CLOSE_ONE_OF).max(CLOSE_AT_LEAST) as usize;
        gate.evict_idle();
        let closed = match account.live().close_idlest(count, IDLE) {
            0 if share >= DIRE => account.live().close_idlest(count, Duration::ZERO),
            closed => closed,
        };
        account.metrics().closed_for_others(closed);
        closed
    }

    /// Logs and publishes what has changed.
    fn tell(&mut self, judged: &Judgement, fair: u32, closed: usize) {
        let sentence = sentence(judged, fair);
        if closed > 0 {
            tracing::warn!(closed, "idle flows are closed to make room: {sentence}");
        }
        match judged.stage {
            stage if stage == self.stage => {}
            Stage::Normal => tracing::info!("the overload is over"),
            stage if stage > self.stage => tracing::warn!("{sentence}"),
            _ => tracing::info!("{sentence}"),
        }
        self.stage = judged.stage;
        let said = Said { stage: judged.stage, sentence };
        self.relief.say(Some(said).filter(|said| said.stage > Stage::Normal));
    }
}

/// Without measurements, old values must not keep anybody out.
impl Drop for Overseer {
    fn drop(&mut self) {
        self.services.gate.relieve(Stage::Normal, u32::MAX);
    }
}

fn sentence(judged: &Judgement, fair: u32) -> String {
    let what = match judged.stage {
        Stage::Normal => return String::new(),
        Stage::Heavy => format!("guests with {fair} connections or more get no new ones"),
        Stage::Full => "no guest gets a new connection".to_owned(),
        Stage::Closing => "no guest gets a new connection, and the longest idle flows are closed".to_owned(),
    };
    let Judgement { stage, resource, share, .. } = judged;
    // The share is between 0 and slightly above 1.
    let percent = (share * 100.0).round();
    let verb = if *resource == Resource::Memory { "is" } else { "are" };
    format!("overload, stage {}: {} {verb} at {percent} % of the bound; {what}", stage.as_str(), resource.as_str())
}
