//! Literal names by hash: a table of exact names, and one of the bases of `*.base`, `**.base` and
//! `.base` that is asked once for each suffix of a name. The names themselves are in the [`Store`].

use super::rules::BuildError;
use super::store::{Said, Shape, Store};
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

/// The names of all rules, by the place of the first rule of each.
#[derive(Debug, Default)]
pub(super) struct Names {
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
    /// Adds a rule of a name.
    pub(super) fn insert(&mut self, store: &mut Store, name: &str, said: Said, terms: u32) -> Result<(), BuildError> {
        let exact = said.shape == Shape::Exact;
        let table = if exact { &mut self.exact } else { &mut self.bases };
        let hash = hash(&self.hasher, name.as_bytes());
        if let Some(head) = table.find(hash, |at| store.name_at(*at) == name.as_bytes()) {
            return store.push_same_name(said, terms, *head);
        }
        let at = store.push_name(said, terms, name)?;
        table.insert_unique(hash, at, |at| self::hash(&self.hasher, store.name_at(*at)));
        if !exact {
            self.depths |= bit(label_count(name));
        }
        Ok(())
    }

    /// The first rule of the exact name.
    pub(super) fn exact(&self, store: &Store, name: &str) -> Option<u32> {
        self.find(&self.exact, store, name)
    }

    /// The first rule of a base of `labels` labels.
    pub(super) fn base(&self, store: &Store, base: &str, labels: usize) -> Option<u32> {
        if self.has_depth(labels) { self.find(&self.bases, store, base) } else { None }
    }

    /// Could a base have this many labels?
    pub(super) fn has_depth(&self, labels: usize) -> bool {
        self.depths & bit(labels) != 0
    }

    fn find(&self, table: &HashTable<u32>, store: &Store, name: &str) -> Option<u32> {
        if table.is_empty() {
            return None;
        }
        let name = name.as_bytes();
        table.find(hash(&self.hasher, name), |at| store.name_at(*at) == name).copied()
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

fn hash(hasher: &RandomState, name: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(name);
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::MAX_NAME;

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
}
