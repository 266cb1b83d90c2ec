//! Literal names by hash: one table of exact names and of the bases of `*.base`, `**.base` and `.base`, with one
//! lookup for each suffix of a name that could be in it. The names themselves are in the [`Store`].
//!
//! Among a million names the cost of a decision is its cache misses. So the table is divided into lines of 64 bytes,
//! each with a byte of the hash for every place. A name that is not in the table costs one miss. A name that is
//! costs two, the second for its rule. A hashbrown table keeps bytes and places apart; with one for exact names and
//! another for bases, a decision took 1.2 µs where this takes 0.5.

use super::rules::BuildError;
use super::store::{Said, Shape, Store};
use crate::cooperate;
use foldhash::fast::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A canonical name split at its dots.
pub(super) struct Labels<'a> {
    text: &'a str,
    starts: [u8; MAX_LABELS],
    count: usize,
}

/// A name of 253 bytes has at most 127 labels.
const MAX_LABELS: usize = 127;

/// The names of all rules, by the place of the first rule of each.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// A power of two of them, or none.
    lines: Vec<Line>,
    /// Names in all lines.
    count: usize,
    /// Bit n: some name or base has n labels. Avoids the lookup of suffixes that cannot be there.
    depths: u128,
    /// The same, only for bases.
    base_depths: u128,
    hasher: RandomState,
}

/// A cache line of the table. A name is in the line that its hash selects, or in the first line after it that had room.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    tags: [u8; WIDTH],
    used: u8,
    /// A name that belongs here is in a later line.
    spilt: bool,
    places: [u32; WIDTH],
}

/// Names in a line.
const WIDTH: usize = 12;

/// At most this many eighths of a table's places are used, so that hardly any line is full.
const FULL: usize = 6;

/// The most lines that are made before there are names for them: enough for 38 million.
const MAX_LINES: usize = 1 << 22;

impl<'a> Labels<'a> {
    pub(super) fn of(text: &'a str) -> Labels<'a> {
        let mut starts = [0; MAX_LABELS];
        let mut count = 1;
        for (at, byte) in text.bytes().enumerate() {
            if byte == b'.'
                && let (Some(start), Ok(next)) = (starts.get_mut(count), u8::try_from(at.saturating_add(1)))
            {
                *start = next;
                count += 1;
            }
        }
        Labels { text, starts, count }
    }

    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Where label `index` starts; the end of the text (and a dot more) past the last.
    pub(super) fn start(&self, index: usize) -> usize {
        if index < self.count { self.starts.get(index).map_or(0, |at| usize::from(*at)) } else { self.text.len() + 1 }
    }

    /// The last `labels` labels; the empty text for none.
    pub(super) fn tail(&self, labels: usize) -> &'a str {
        self.text.get(self.start(self.count.saturating_sub(labels))..).unwrap_or_default()
    }
}

impl Names {
    /// Adds a rule of a name.
    pub(super) fn insert(&mut self, store: &mut Store, name: &str, said: Said, terms: u32) -> Result<(), BuildError> {
        let depth = bit(label_count(name));
        self.depths |= depth;
        if said.shape != Shape::Exact {
            self.base_depths |= depth;
        }
        let hash = self.hash(name.as_bytes());
        if let Some(head) = self.find(store, hash, name.as_bytes()) {
            return store.push_same_name(said, terms, head);
        }
        let at = store.push_name(said, terms, name)?;
        if self.count >= room(self.lines.len()) {
            self.grow(store, self.lines.len() * 2);
        }
        self.count += 1;
        put(&mut self.lines, hash, at);
        Ok(())
    }

    /// The first rule of a name or base.
    pub(super) fn get(&self, store: &Store, name: &str) -> Option<u32> {
        self.find(store, self.hash(name.as_bytes()), name.as_bytes())
    }

    /// Calls `found` with the first rule of the name itself and of each base that it ends in, and with the number of
    /// labels before it.
    pub(super) fn matching(&self, store: &Store, name: &Labels<'_>, mut found: impl FnMut(u32, usize)) {
        let up_to = bit(name.count()).wrapping_sub(1);
        let mut depths = (self.base_depths & up_to) | (self.depths & bit(name.count()));
        while depths != 0 {
            // Looked up together, so that the processor waits for several lines at once.
            let mut tails = [(false, "", 0, 0); 4];
            for tail in &mut tails {
                if depths == 0 {
                    break;
                }
                let depth = depths.trailing_zeros() as usize;
                depths &= depths - 1;
                let text = name.tail(depth);
                let hash = self.hash(text.as_bytes());
                *tail = (self.may_have(hash), text, hash, depth);
            }
            for (_, text, hash, depth) in tails.into_iter().filter(|(likely, ..)| *likely) {
                if let Some(head) = self.find(store, hash, text.as_bytes()) {
                    found(head, name.count() - depth);
                }
            }
        }
    }

    /// Could a base have this many labels?
    pub(super) fn has_base_depth(&self, labels: usize) -> bool {
        self.base_depths & bit(labels) != 0
    }

    /// Could the hash be that of a name in the table?
    fn may_have(&self, hash: u64) -> bool {
        self.lines.get(index(hash, self.lines.len())).is_some_and(|line| line.spilt || line.has_tag(tag_of(hash)))
    }

    fn find(&self, store: &Store, hash: u64, name: &[u8]) -> Option<u32> {
        let mut index = index(hash, self.lines.len());
        loop {
            let line = self.lines.get(index)?;
            let tagged = line.tags.iter().zip(line.places).take(usize::from(line.used));
            let mut alike = tagged.filter(|(tag, _)| **tag == tag_of(hash)).map(|(_, place)| place);
            let found = alike.find(|place| store.name_at(*place) == name);
            if found.is_some() || !line.spilt {
                return found;
            }
            index = (index + 1) & (self.lines.len() - 1);
        }
    }

    /// Makes room for this many names.
    pub(super) fn make_room(&mut self, store: &Store, names: usize) {
        let lines = std::iter::successors(Some(1), |lines: &usize| lines.checked_mul(2));
        let lines = lines.take_while(|lines| *lines <= MAX_LINES).find(|lines| room(*lines) >= names);
        if let Some(lines) = lines.filter(|lines| *lines > self.lines.len()) {
            self.grow(store, lines);
        }
    }

    /// Grows to this many lines, more than before.
    fn grow(&mut self, store: &Store, lines: usize) {
        let mut lines = vec![Line::EMPTY; lines.max(1)];
        let places = self.lines.iter().flat_map(|line| line.places.iter().take(usize::from(line.used)));
        let places = places.inspect(|_| cooperate::step());
        places.for_each(|place| put(&mut lines, self.hash(store.name_at(*place)), *place));
        self.lines = lines;
    }

    fn hash(&self, name: &[u8]) -> u64 {
        let mut state = self.hasher.build_hasher();
        state.write(name);
        state.finish()
    }
}

impl Line {
    const EMPTY: Line = Line { tags: [0; WIDTH], used: 0, spilt: false, places: [0; WIDTH] };

    /// Is the tag among those of the line? Compares without a branch for each.
    fn has_tag(&self, wanted: u8) -> bool {
        self.tags.iter().fold(false, |any, tag| any | (*tag == wanted))
    }
}

/// How many names this many lines hold before there must be more lines.
fn room(lines: usize) -> usize {
    lines * WIDTH / 8 * FULL
}

/// Enters a name that is not in the table yet. There must be room.
fn put(lines: &mut [Line], hash: u64, place: u32) {
    let (count, mut index) = (lines.len(), index(hash, lines.len()));
    while let Some(line) = lines.get_mut(index) {
        let at = usize::from(line.used);
        if let (Some(tag), Some(room)) = (line.tags.get_mut(at), line.places.get_mut(at)) {
            (*tag, *room) = (tag_of(hash), place);
            line.used += 1;
            return;
        }
        line.spilt = true;
        index = (index + 1) & (count - 1);
    }
}

/// The line of a hash in a table of this many lines. The tag uses the other end of the hash.
fn index(hash: u64, lines: usize) -> usize {
    usize::try_from(hash & u64::from(u32::MAX)).unwrap_or(0) & lines.wrapping_sub(1)
}

fn tag_of(hash: u64) -> u8 {
    hash.to_be_bytes()[0]
}

/// How many labels a base has; none for the root.
pub(super) fn label_count(base: &str) -> usize {
    if base.is_empty() { 0 } else { base.bytes().filter(|byte| *byte == b'.').count() + 1 }
}

/// Bit `index` of a set of label counts.
pub(super) fn bit(index: usize) -> u128 {
    u32::try_from(index).ok().and_then(|index| 1u128.checked_shl(index)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::store::RulePosition;
    use super::*;
    use outgate_proto::name::MAX_NAME;

    #[test]
    fn tails_are_cut_at_dots() {
        let labels = Labels::of("a.bc.def");
        assert_eq!(labels.count(), 3);
        let tails: Vec<_> = (0..=4).map(|n| labels.tail(n)).collect();
        assert_eq!(tails, ["", "def", "bc.def", "a.bc.def", "a.bc.def"]);
        assert_eq!(Labels::of("io").tail(1), "io");
    }

    #[test]
    fn the_longest_name_has_as_many_labels_as_there_is_room_for() {
        let name = vec!["a"; MAX_LABELS].join(".");
        assert_eq!(name.len(), MAX_NAME);
        let labels = Labels::of(&name);
        assert_eq!(labels.count(), MAX_LABELS);
        assert_eq!(labels.tail(MAX_LABELS), name);
    }

    #[test]
    fn every_name_is_found_among_many_and_no_other() {
        let (mut store, mut names) = (Store::default(), Names::default());
        let said = |line, shape| Said { position: RulePosition { file: 0, line }, shape };
        let name = |index: u32| format!("n{index}.io");
        for index in 0..20_000 {
            names.insert(&mut store, &name(index), said(index, Shape::Exact), 0).unwrap();
            if index.is_multiple_of(3) {
                names.insert(&mut store, &name(index), said(index, Shape::Below), 0).unwrap();
            }
        }
        for index in 0..40_000 {
            let found = names.get(&store, &name(index)).and_then(|at| store.get(at));
            assert_eq!(found.map(|record| record.position().line), (index < 20_000).then_some(index));
        }
        assert_eq!(names.count, 20_000);
        assert!(names.has_base_depth(2) && !names.has_base_depth(1));
        assert!(names.lines.len() * size_of::<Line>() < 20_000 * 16, "no more than 16 bytes a name");
    }

    #[test]
    fn room_that_was_asked_for_is_there_and_names_before_it_stay() {
        let (mut store, mut names) = (Store::default(), Names::default());
        let said = Said { position: RulePosition { file: 0, line: 1 }, shape: Shape::Exact };
        names.insert(&mut store, "a.io", said, 0).unwrap();
        names.make_room(&store, 1000);
        let lines = names.lines.len();
        assert!(room(lines) >= 1000 && room(lines / 2) < 1000);
        names.make_room(&store, 10);
        (0..1000).for_each(|index| names.insert(&mut store, &format!("n{index}.io"), said, 0).unwrap());
        assert_eq!(names.lines.len(), lines, "there was room for 1152");
        assert!(names.get(&store, "a.io").is_some() && names.get(&store, "n999.io").is_some());
        names.make_room(&store, usize::MAX);
        assert_eq!(names.lines.len(), lines);
    }

    #[test]
    fn names_whose_line_is_full_stand_in_the_next() {
        let mut lines = vec![Line::EMPTY; 4];
        // All belong to the last line; some go to the first.
        (0..20).for_each(|place| put(&mut lines, 3, place));
        let kept: Vec<u8> = lines.iter().map(|line| line.used).collect();
        assert_eq!(kept, [8, 0, 0, 12]);
        assert!(lines[3].spilt && !lines[0].spilt);
    }
}
