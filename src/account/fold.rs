//! Folding of repeated refusals: the first line is written at once, then one line with a count for each window
//! that had more.
//!
//! Three bounds apply: keys in all, keys of one guest, and guests with more keys than that. Everything beyond
//! is folded too, by guest and reason only, into "(others)". The sum of `count` over the lines (1 where it is
//! absent) is the number of refusals. It has no clock of its own: callers pass the time.

use super::event::{Event, Key, What, Who};
use super::line::Line;
use crate::reason::Reason;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long repetitions are collected.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
const MAX_KEYS: usize = 10_000;
const MAX_KEYS_OF_ONE: usize = 1_000;
const MAX_OTHERS: usize = 1_000;

#[derive(Default)]
pub(super) struct Fold {
    entries: HashMap<Key, Entry, foldhash::fast::RandomState>,
    of_one: HashMap<Who, usize, foldhash::fast::RandomState>,
    others: usize,
    /// Keys in the order in which their windows end: all windows have the same length.
    ends: VecDeque<(Instant, Key)>,
}

#[derive(Default)]
struct Entry {
    count: u64,
    last: Option<Box<Event>>,
    advice: Option<Arc<str>>,
}

impl Fold {
    /// Adds a refusal. Returns it if it is the first of its kind and must be written now.
    pub(super) fn offer(&mut self, key: &Key, event: Event, now: Instant) -> Option<Event> {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.add(event);
            return None;
        }
        if self.has_room(&key.who) {
            *self.of_one.entry(key.who.clone()).or_default() += 1;
            self.open(key.clone(), now);
            return Some(event);
        }
        let mut key = Key { who: key.who.clone(), what: What::Others, reason: key.reason, cause: None };
        if !self.entries.contains_key(&key) {
            if self.others >= MAX_OTHERS {
                // Past the bound there is one entry per reason, so never more entries than reasons.
                key.who = Who::Anyone;
            }
            if !self.entries.contains_key(&key) {
                self.others += 1;
                self.open(key.clone(), now);
            }
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.add(event);
        }
        None
    }

    /// Stores the advice for later lines.
    pub(super) fn advise(&mut self, key: &Key, advice: Arc<str>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.advice = Some(advice);
        }
    }

    /// Writes the lines of the windows that have ended. The key of an empty window is forgotten.
    pub(super) fn tick(&mut self, now: Instant, mut write: impl FnMut(Line)) {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            let Some((_, key)) = self.ends.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            match entry.close(&key) {
                Some(line) => {
                    write(line);
                    self.ends.push_back((now + WINDOW, key));
                }
                None => self.forget(&key),
            }
        }
    }

    /// Writes the lines of all windows, ended or not, and clears everything.
    pub(super) fn finish(&mut self, mut write: impl FnMut(Line)) {
        let Fold { mut entries, ends, .. } = std::mem::take(self);
        for (_, key) in ends {
            if let Some(line) = entries.get_mut(&key).and_then(|entry| entry.close(&key)) {
                write(line);
            }
        }
    }

    /// Returns when the next window ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.front().map(|(end, _)| *end)
    }

    fn has_room(&self, who: &Who) -> bool {
        self.entries.len() - self.others < MAX_KEYS && self.of_one.get(who).is_none_or(|keys| *keys < MAX_KEYS_OF_ONE)
    }

    fn open(&mut self, key: Key, now: Instant) {
        self.ends.push_back((now + WINDOW, key.clone()));
        self.entries.insert(key, Entry::default());
    }

    fn forget(&mut self, key: &Key) {
        self.entries.remove(key);
        if key.what == What::Others {
            self.others -= 1;
        } else if let Some(keys) = self.of_one.get_mut(&key.who) {
            *keys -= 1;
            if *keys == 0 {
                self.of_one.remove(&key.who);
            }
        }
        if self.entries.is_empty() {
            *self = Fold::default();
        }
    }
}

impl Entry {
    fn add(&mut self, event: Event) {
        self.count += 1;
        match &mut self.last {
            Some(last) => **last = event,
            none => *none = Some(Box::new(event)),
        }
    }

    fn close(&mut self, key: &Key) -> Option<Line> {
        let event = *self.last.take()?;
        let count = std::mem::take(&mut self.count);
        let others = key.what == What::Others;
        Some(Line { event, count: Some(count), advice: self.advice.clone(), others })
    }
}

/// Whether the line gets advice on rules: a rule is missing or slightly wrong, or `observe` let it pass without one.
pub(super) fn deserves_advice(reason: Reason) -> bool {
    reason.would_pass_with_a_rule() || reason == Reason::None
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::{event, event_of};
    use super::*;

    struct World {
        fold: Fold,
        now: Instant,
        first: usize,
        lines: Vec<(String, u64)>,
    }

    impl World {
        fn new() -> World {
            World { fold: Fold::default(), now: Instant::now(), first: 0, lines: Vec::new() }
        }
        fn refuse(&mut self, event: Event) {
            let key = event.key();
            if self.fold.offer(&key, event, self.now).is_some() {
                self.first += 1;
            }
        }
        fn pass(&mut self, time: Duration) {
            self.now += time;
            let lines = &mut self.lines;
            self.fold.tick(self.now, |line| {
                let what = if line.others { What::Others } else { line.event.key().what };
                lines.push((what.text().unwrap(), line.count.unwrap()));
            });
        }
    }

    #[test]
    fn the_first_refusal_is_written_at_once_and_repetitions_once_a_window() {
        let mut world = World::new();
        for _ in 0..500 {
            world.refuse(event("evil.test"));
        }
        assert_eq!(world.first, 1);
        world.pass(WINDOW - Duration::from_millis(1));
        assert!(world.lines.is_empty());
        world.pass(Duration::from_millis(1));
        assert_eq!(world.lines, [("evil.test:443".to_owned(), 499)]);
        world.refuse(event("evil.test"));
        world.pass(WINDOW);
        assert_eq!(world.lines.pop(), Some(("evil.test:443".to_owned(), 1)));
        assert_eq!(world.first, 1);
    }

    #[test]
    fn after_a_quiet_window_a_refusal_is_a_first_one_again_and_nothing_is_kept() {
        let mut world = World::new();
        world.refuse(event("evil.test"));
        world.pass(WINDOW);
        assert!(world.lines.is_empty());
        assert!(world.fold.entries.is_empty() && world.fold.of_one.is_empty() && world.fold.ends.is_empty());
        world.refuse(event("evil.test"));
        assert_eq!(world.first, 2);
    }

    #[test]
    fn reasons_guests_and_destinations_are_told_apart() {
        let mut world = World::new();
        world.refuse(event("evil.test"));
        world.refuse(Event { reason: Reason::DeniedByRule, ..event("evil.test") });
        world.refuse(event("evil2.test"));
        world.refuse(event_of(Some("vm-1"), "10.0.0.1", "evil.test"));
        world.refuse(event_of(Some("vm-2"), "10.0.0.1", "evil.test"));
        world.refuse(event_of(None, "10.0.0.2", "evil.test"));
        assert_eq!(world.first, 6);
    }

    #[test]
    fn a_guest_that_invents_names_is_folded_into_others_and_leaves_room_for_its_neighbours() {
        let mut world = World::new();
        for n in 0..100_000 {
            world.refuse(event_of(Some("bad"), "10.0.0.1", &format!("n{n}.test")));
        }
        assert_eq!(world.first, MAX_KEYS_OF_ONE);
        world.refuse(event_of(Some("good"), "10.0.0.2", "typo.test"));
        assert_eq!(world.first, MAX_KEYS_OF_ONE + 1);
        world.pass(WINDOW);
        assert_eq!(world.lines, [("(others)".to_owned(), 100_000 - MAX_KEYS_OF_ONE as u64)]);
    }

    #[test]
    fn memory_is_bounded_however_many_sources_there_are() {
        let mut world = World::new();
        let total = 50_000u32;
        for n in 0..total {
            let source = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n / 2).to_string();
            world.refuse(event_of(None, &source, &format!("n{n}.test")));
        }
        assert_eq!(world.first, MAX_KEYS);
        assert!(world.fold.entries.len() <= MAX_KEYS + MAX_OTHERS + Reason::ALL.len());
        world.pass(WINDOW);
        let counted: u64 = world.lines.iter().map(|(_, count)| count).sum();
        assert_eq!(counted + MAX_KEYS as u64, u64::from(total));
        world.pass(WINDOW);
        assert!(world.fold.entries.is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_guest() {
        let mut world = World::new();
        for n in 1..=0xffff {
            world.refuse(event_of(None, &format!("2001:db8::{n:x}"), "evil.test"));
        }
        assert_eq!(world.first, 1);
    }
}
