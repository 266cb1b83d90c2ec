//! Overload: how full the daemon is, in four stages, and what a stage means for a new connection. Pure
//! arithmetic on figures that others measure; the daemon closes the connections that are already open.
//!
//! The access policy is the same in every stage.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// A guest with fewer connections than this never counts as having more than its share: so few cannot fill the daemon.
const SMALL: u32 = 16;
/// Below this part of its bound, memory does not matter.
const PLENTY: f64 = 0.65;
/// With at most this many open connections, they are not what uses the memory.
const FEW: u32 = 16;

/// How full the daemon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// There is room.
    #[default]
    Normal,
    /// Guests with more than their share get no new connections.
    Heavy,
    /// Nobody gets a new connection, except DNS connections of guests below their share.
    Full,
    /// The longest idle flows are closed as well.
    Closing,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Stage; 4] = [Stage::Normal, Stage::Heavy, Stage::Full, Stage::Closing];

    /// Metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Normal => "0",
            Stage::Heavy => "1",
            Stage::Full => "2",
            Stage::Closing => "3",
        }
    }

    fn from_number(number: u8) -> Stage {
        Stage::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }
}

/// A resource that can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Memory, in bytes.
    Memory,
    /// Open file descriptors.
    Files,
    /// Connections of guests.
    Connections,
}

impl Resource {
    /// Its name in a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Files => "open files",
            Resource::Connections => "connections",
        }
    }

    /// The share of the bound at which each stage begins, and the share below which it ends. The operator sets
    /// the bound of connections, and all of it may be used: no connection is closed because of it.
    const fn thresholds(self) -> ([f64; 3], [f64; 3]) {
        match self {
            Resource::Memory | Resource::Files => ([0.70, 0.80, 0.90], [0.65, 0.75, 0.85]),
            Resource::Connections => ([0.70, 1.0, f64::INFINITY], [0.65, 0.99, f64::INFINITY]),
        }
    }
}

/// How much of a resource is in use, and how much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// In use.
    pub used: u64,
    /// How much there is; 0 for no bound.
    pub bound: u64,
}

impl Level {
    /// Returns the part in use; 0 without a bound.
    pub fn share(self) -> f64 {
        if self.bound == 0 { 0.0 } else { self.used as f64 / self.bound as f64 }
    }
}

/// All measurements of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Levels {
    /// Memory.
    pub memory: Level,
    /// File descriptors.
    pub files: Level,
    /// Connections of guests.
    pub connections: Level,
}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// The stage.
    pub stage: Stage,
    /// The stage that the gate applies: it counts connections itself, one by one.
    pub gate: Stage,
    /// The scarcest resource.
    pub resource: Resource,
    /// How much of it is in use.
    pub share: f64,
}

/// Turns measurements into stages, and remembers earlier ones.
#[derive(Debug, Default)]
pub struct StageTracker {
    stages: [Stage; 3],
    /// Memory that is set aside because connections do not hold it, in bytes.
    aside: u64,
    /// The most connections since memory was last below its first stage.
    peak: u32,
}

impl StageTracker {
    /// Returns the stage now. Call it a few times a second.
    pub fn step(&mut self, levels: &Levels) -> Judgement {
        let memory = self.without_aside(levels);
        let all = [
            (Resource::Memory, memory.share()),
            (Resource::Files, levels.files.share()),
            (Resource::Connections, levels.connections.share()),
        ];
        let mut worst = Judgement { stage: Stage::Normal, gate: Stage::Normal, resource: Resource::Memory, share: 0.0 };
        for ((resource, share), stage) in all.into_iter().zip(&mut self.stages) {
            *stage = next(*stage, share, resource.thresholds());
            let of_gate = if resource == Resource::Connections { (*stage).min(Stage::Heavy) } else { *stage };
            let gate = worst.gate.max(of_gate);
            if (*stage, share) > (worst.stage, worst.share) {
                worst = Judgement { stage: *stage, gate, resource, share };
            }
            worst.gate = gate;
        }
        worst
    }

    /// Returns the memory that connections do not hold, as far as can be known, in bytes.
    pub fn aside(&self) -> u64 {
        self.aside
    }

    /// Returns the memory level without the memory that connections do not hold. An allocator may keep freed
    /// memory, and a list has a fixed size. So memory still in use after half of the connections (or nearly
    /// all) have closed is not held by connections, and refusing more of them will not free it. Enough of it is
    /// set aside that the rest is half full, and the stages are computed from the rest.
    fn without_aside(&mut self, levels: &Levels) -> Level {
        let Level { used, bound } = levels.memory;
        let live = u32::try_from(levels.connections.used).unwrap_or(u32::MAX);
        if levels.memory.share() < PLENTY {
            (self.aside, self.peak) = (0, live);
            return levels.memory;
        }
        self.peak = self.peak.max(live);
        let rest = |aside: u64| Level { used: used.saturating_sub(aside), bound: bound.saturating_sub(aside).max(1) };
        let is_short = rest(self.aside).share() >= PLENTY;
        if is_short && (live <= FEW || live <= self.peak / 2) {
            self.aside = used.saturating_mul(2).saturating_sub(bound);
            self.peak = live;
        }
        rest(self.aside)
    }
}

/// Returns the next stage. A stage ends at a lower share than it begins, so that it does not flap.
fn next(stage: Stage, share: f64, (begin, end): ([f64; 3], [f64; 3])) -> Stage {
    let reached = |thresholds: [f64; 3]| thresholds.into_iter().filter(|threshold| share >= *threshold).count();
    let (up, stay) = (reached(begin), reached(end));
    let now = usize::from(stage as u8);
    Stage::ALL.get(now.clamp(up, stay)).copied().unwrap_or(stage)
}

/// Returns one guest's fair share, in connections, if `guests` guests have some and one more should find room.
/// The total is estimated from the `share` of the resource that the `live` connections use.
pub fn fair_share(live: u32, share: f64, guests: usize) -> u32 {
    if share <= 0.0 {
        return u32::MAX;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float too large saturates")]
    let each = (f64::from(live) / share / (guests as f64 + 1.0)).ceil() as u32;
    each.max(SMALL)
}

/// How many connections the file descriptors are enough for, and how many refusals may be under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Connections.
    pub connections: u32,
    /// Connections over a limit that are receiving a refusal.
    pub refusals: u32,
}

impl Room {
    /// Descriptors that the daemon has open beside its flows: listeners, runtimes, logs, state, lookups.
    const OWN: u64 = 64;

    /// Computes it for `files` descriptors. A flow needs two; the rest is the daemon's own and a reserve.
    pub fn of(files: u64) -> Room {
        let refusals = (files / 16).clamp(1, 512);
        let rest = files.saturating_sub(Room::OWN + files / 32 + refusals) / 2;
        Room { connections: u32::try_from(rest).unwrap_or(u32::MAX), refusals: u32::try_from(refusals).unwrap_or(1) }
    }
}

/// The overload state that the gate reads at every accept; the code that measures writes it.
#[derive(Debug)]
pub(super) struct Relief {
    stage: AtomicU8,
    fair: AtomicU32,
    connections: AtomicU32,
    refusals: AtomicU32,
}

impl Relief {
    /// Admits everybody until something is measured.
    pub(super) fn new(refusals: u32) -> Relief {
        Relief {
            stage: AtomicU8::new(Stage::Normal as u8),
            fair: AtomicU32::new(u32::MAX),
            connections: AtomicU32::new(u32::MAX),
            refusals: AtomicU32::new(refusals),
        }
    }

    pub(super) fn set(&self, stage: Stage, fair: u32) {
        self.fair.store(fair, Ordering::Relaxed);
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub(super) fn set_room(&self, room: Room) {
        self.connections.store(room.connections, Ordering::Relaxed);
        self.refusals.store(room.refusals, Ordering::Relaxed);
    }

    /// Returns how many connections there are descriptors for.
    pub(super) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns how many connections may receive a refusal at once.
    pub(super) fn refusals(&self) -> u32 {
        self.refusals.load(Ordering::Relaxed)
    }

    pub(super) fn fair(&self) -> u32 {
        self.fair.load(Ordering::Relaxed)
    }

    /// Whether a guest with `live` connections may open one more. In every stage, guests below their share may
    /// open `essential` ones.
    pub(super) fn admits(&self, live: u32, essential: bool) -> bool {
        match Stage::from_number(self.stage.load(Ordering::Relaxed)) {
            Stage::Normal => true,
            Stage::Heavy => live < self.fair(),
            Stage::Full | Stage::Closing => essential && live < self.fair(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(percent: u64, live: u64) -> Levels {
        Levels {
            memory: Level { used: percent * 10, bound: 1000 },
            connections: Level { used: live, bound: 0 },
            ..Levels::default()
        }
    }

    #[test]
    fn stages_begin_at_their_shares_and_end_a_little_below() {
        let mut watch = StageTracker::default();
        let mut at = |percent| watch.step(&memory(percent, 1000)).stage;
        let stages =
            [(69, 0), (70, 1), (66, 1), (64, 0), (80, 2), (76, 2), (74, 1), (90, 3), (86, 3), (84, 2), (30, 0)];
        for (percent, stage) in stages {
            assert_eq!(at(percent), Stage::ALL[stage], "{percent} %");
        }
        assert_eq!(at(99), Stage::Closing, "a stage may be skipped");
    }

    #[test]
    fn the_scarcest_thing_decides_and_without_a_bound_nothing_is_scarce() {
        let levels = Levels {
            memory: Level { used: 75, bound: 100 },
            files: Level { used: 85, bound: 100 },
            connections: Level { used: 1_000_000, bound: 0 },
        };
        let judged = StageTracker::default().step(&levels);
        assert_eq!((judged.stage, judged.resource), (Stage::Full, Resource::Files));
        let unbounded = Levels { memory: Level { used: 1 << 40, bound: 0 }, ..Levels::default() };
        assert_eq!(StageTracker::default().step(&unbounded).stage, Stage::Normal);
    }

    #[test]
    fn all_connections_that_are_configured_may_be_used_and_nobody_is_closed_for_their_number() {
        let at = |used| {
            let connections = Level { used, bound: 100 };
            StageTracker::default().step(&Levels { connections, ..Levels::default() })
        };
        assert_eq!([69, 70, 99, 100, 200].map(|used| at(used).stage as u8), [0, 1, 1, 2, 2]);
        assert_eq!([69, 70, 99, 100, 200].map(|used| at(used).gate as u8), [0, 1, 1, 1, 1], "the gate counts itself");
        let memory = Level { used: 85, bound: 100 };
        let connections = Level { used: 100, bound: 100 };
        let both = StageTracker::default().step(&Levels { memory, connections, ..Levels::default() });
        assert_eq!((both.resource, both.gate), (Resource::Connections, Stage::Full));
    }

    #[test]
    fn memory_that_no_connection_holds_refuses_nobody_but_what_is_left_is_still_watched() {
        let mut watch = StageTracker::default();
        assert_eq!(watch.step(&memory(95, 1000)).stage, Stage::Closing);
        assert_eq!(watch.step(&memory(95, 600)).stage, Stage::Closing);
        assert_eq!(watch.step(&memory(95, 500)).stage, Stage::Normal, "half of them are gone, the memory is not");
        assert_eq!(watch.step(&memory(95, 1000)).stage, Stage::Normal, "which is used again");
        assert_eq!(watch.step(&memory(99, 1000)).stage, Stage::Closing, "until there is no more");
        watch.step(&memory(50, 1000));
        assert_eq!(watch.step(&memory(75, 1000)).stage, Stage::Heavy, "and all begins anew");
        assert_eq!(
            StageTracker::default().step(&memory(95, 3)).stage,
            Stage::Normal,
            "a list that is too long for the bound"
        );
    }

    #[test]
    fn a_share_leaves_room_for_one_guest_more() {
        // 750 connections take three quarters, so there is room for 1000.
        assert_eq!(fair_share(750, 0.75, 1), 500);
        assert_eq!(fair_share(750, 0.75, 3), 250);
        assert_eq!(fair_share(7, 0.7, 1), SMALL);
        assert_eq!(fair_share(7, 0.0, 1), u32::MAX);
    }

    #[test]
    fn light_guests_get_connections_until_nobody_does_and_essential_ones_even_then() {
        let relief = Relief::new(1);
        let admits = |stage| {
            relief.set(stage, 20);
            [(19, false), (20, false), (19, true), (20, true)].map(|(live, essential)| relief.admits(live, essential))
        };
        assert_eq!(admits(Stage::Normal), [true; 4]);
        assert_eq!(admits(Stage::Heavy), [true, false, true, false]);
        assert_eq!(admits(Stage::Full), [false, false, true, false]);
        assert_eq!(admits(Stage::Closing), [false, false, true, false]);
    }

    #[test]
    fn descriptors_are_enough_for_what_is_let_in() {
        assert!(Room::of(262_144).connections > 100_000, "the unit's limit is enough for the default");
        for files in [0, 1, 64, 256, 1024, 20_000, 1 << 20, 1 << 40] {
            let Room { connections, refusals } = Room::of(files);
            assert!(
                u64::from(connections) * 2 + u64::from(refusals) <= files.max(1),
                "{files}: {connections} {refusals}"
            );
        }
    }
}
