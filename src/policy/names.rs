//! Literal names by hash: all text in one arena, a table of exact names, and one of the bases of
//! `*.base`, `**.base` and `.base` that is asked once for each suffix of a name.

use super::nets::NONE;
use super::rule::Scope;
use super::rules::{BuildError, Record};
use crate::name::MAX_NAME;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::{BuildHasher, Hasher};

/// A canonical name cut at its dots.
pub(super) struct Labels<'a> {
    text: &'a str,
    starts: [u8; MAX_LABELS],
    count: usize,
}

/// A name of 253 bytes has at most 127 labels.
const MAX_LABELS: usize = 127;

/// How many rules of one name are compared with a new one to drop what was said before.
const DEDUPLICATED: usize = 8;

/// The names of all rules. A table's value is the newest record of a name; the records of one name
/// are chained by `next`.
#[derive(Debug, Default)]
pub(super) struct Names {
    arena: String,
    exact: HashTable<u32>,
    bases: HashTable<u32>,
    /// Bit n: some base has n labels. Spares the look-up of suffixes that cannot be there.
    depths: u128,
    hasher: RandomState,
}

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
    /// Adds `record` for `base`, unless the same has been said of it already.
    pub(super) fn insert(
        &mut self,
        records: &mut Vec<Record>,
        base: &str,
        scope: Scope,
        mut record: Record,
    ) -> Result<(), BuildError> {
        let hash = self.hash(base);
        let table = if scope == Scope::Exact { &mut self.exact } else { &mut self.bases };
        let arena = &self.arena;
        let id = u32::try_from(records.len()).ok().filter(|id| *id != NONE).ok_or(BuildError::TooLarge)?;
        if let Some(head) = table.find_mut(hash, |id| text(arena, records, *id) == base) {
            if said_before(records, *head, &record) {
                return Ok(());
            }
            let same = records.get(*head as usize).ok_or(BuildError::TooLarge)?;
            (record.start, record.len, record.next) = (same.start, same.len, *head);
            *head = id;
            records.push(record);
            return Ok(());
        }
        record.start = u32::try_from(arena.len()).map_err(|_| BuildError::TooLarge)?;
        record.len = u8::try_from(base.len())
            .ok()
            .filter(|len| usize::from(*len) <= MAX_NAME)
            .ok_or_else(|| BuildError::Name { name: base.chars().take(MAX_NAME).collect() })?;
        record.next = NONE;
        self.arena.push_str(base);
        records.push(record);
        let (arena, hasher) = (&self.arena, &self.hasher);
        table.insert_unique(hash, id, |id| hash_text(hasher, text(arena, records, *id)));
        if scope != Scope::Exact {
            self.depths |= bit(label_count(base));
        }
        Ok(())
    }

    /// The newest record of the exact name.
    pub(super) fn exact(&self, records: &[Record], name: &str) -> Option<u32> {
        if self.exact.is_empty() {
            return None;
        }
        self.exact.find(self.hash(name), |id| text(&self.arena, records, *id) == name).copied()
    }

    /// The newest record of a base of `labels` labels.
    pub(super) fn base(&self, records: &[Record], base: &str, labels: usize) -> Option<u32> {
        if self.depths & bit(labels) == 0 {
            return None;
        }
        self.bases.find(self.hash(base), |id| text(&self.arena, records, *id) == base).copied()
    }

    /// Could a base have this many labels?
    pub(super) fn has_depth(&self, labels: usize) -> bool {
        self.depths & bit(labels) != 0
    }

    /// The text of a record of this table.
    pub(super) fn text(&self, record: &Record) -> &str {
        slice(&self.arena, record)
    }

    pub(super) fn shrink(&mut self) {
        self.arena.shrink_to_fit();
    }

    fn hash(&self, name: &str) -> u64 {
        hash_text(&self.hasher, name)
    }
}

/// How many labels a base has; none for the root.
pub(super) fn label_count(base: &str) -> usize {
    if base.is_empty() { 0 } else { base.bytes().filter(|byte| *byte == b'.').count() + 1 }
}

/// Bit `index` of a set of label counts.
pub(super) fn bit(index: usize) -> u128 {
    u32::try_from(index).ok().and_then(|index| 1u128.checked_shl(index)).unwrap_or(0)
}

fn hash_text(hasher: &RandomState, name: &str) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(name.as_bytes());
    state.finish()
}

fn text<'a>(arena: &'a str, records: &[Record], id: u32) -> &'a str {
    records.get(id as usize).map_or("", |record| slice(arena, record))
}

fn slice<'a>(arena: &'a str, record: &Record) -> &'a str {
    let start = record.start as usize;
    arena.get(start..start + usize::from(record.len)).unwrap_or_default()
}

/// Does one of the first records from `head` on say the same? It then keeps the earlier line.
pub(super) fn said_before(records: &mut [Record], mut head: u32, new: &Record) -> bool {
    for _ in 0..DEDUPLICATED {
        let Some(record) = records.get_mut(head as usize) else { return false };
        if (record.shape, record.terms, record.file) == (new.shape, new.terms, new.file) {
            record.line = record.line.min(new.line);
            return true;
        }
        head = record.next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_record_stays_small() {
        assert_eq!(std::mem::size_of::<Record>(), 20);
    }
}
