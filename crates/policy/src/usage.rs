//! Which rules have been used: a bit for each line of each file, set when a rule on it first allows a flow that
//! passes, or refuses one. The operator's tools evaluate it.
//!
//! A [`Mark`] identifies a rule beyond the list it was compiled in, so that its use stays known over reloads and
//! restarts, wherever the rule has moved within its file.

use super::rule::{Effect, Ports, Reach, Terms};
use super::store::{RulePosition, Shape};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many lines of a file can be noted. The largest file that can be read has no more.
const MAX_LINES: usize = 1 << 26;

/// A rule by its file, subject and terms: equal for the same rule in every version of the list, and over restarts.
/// 64 bits, so that two of a million rules are hardly ever equal; if they are, both count as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub u64);

/// The lines with a rule that was used, by file.
#[derive(Debug, Default)]
pub(super) struct Usage {
    files: Vec<Box<[AtomicU64]>>,
}

impl Usage {
    /// For files with these numbers of lines, none used.
    pub(super) fn new(lines: &[u32]) -> Usage {
        let words = |lines: &u32| (*lines as usize).saturating_add(1).min(MAX_LINES).div_ceil(64);
        Usage { files: lines.iter().map(|lines| (0..words(lines)).map(|_| AtomicU64::new(0)).collect()).collect() }
    }

    /// Is the line already noted? Also true if there is no room to note it.
    pub(super) fn contains(&self, position: RulePosition) -> bool {
        self.word(position).is_none_or(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Notes the line. Writes only what is new, so that threads which decide by the same rules do not invalidate
    /// each other's cache lines.
    pub(super) fn note(&self, position: RulePosition) {
        if let Some((word, bit)) = self.word(position)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// How many lines were noted.
    pub(super) fn count(&self) -> u64 {
        self.files.iter().flatten().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// The noted lines, from 1, with the number of their file; in order.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, u32)> {
        let words = self.files.iter().enumerate().flat_map(|(file, words)| (0u32..).zip(words).map(move |w| (file, w)));
        words.flat_map(|(file, (index, word))| {
            let bits = word.load(Ordering::Relaxed);
            let set = (0..64u32).filter(move |bit| bits.checked_shr(*bit).is_some_and(|rest| rest & 1 == 1));
            set.map(move |bit| (file, index.saturating_mul(64).saturating_add(bit)))
        })
    }

    fn word(&self, position: RulePosition) -> Option<(&AtomicU64, u64)> {
        let word = self.files.get(usize::from(position.file))?.get(position.line as usize / 64)?;
        Some((word, 1 << (position.line % 64)))
    }
}

/// FNV-1a, 64 bits: later versions of the program must understand what is stored today, and the standard library's
/// hashes promise nothing.
#[derive(Clone, Copy)]
pub(super) struct Hash(u64);

impl Hash {
    /// The hash for the rules of one file.
    pub(super) fn of_file(name: &str) -> Hash {
        let mut hash = Hash(0xcbf2_9ce4_8422_2325);
        hash.part(name.as_bytes());
        hash
    }

    /// The hash of terms alone.
    pub(super) fn of_terms(terms: &Terms) -> Hash {
        // The text that is hashed here must never change, or uses counted before are lost.
        let Terms { effect, reach, ech_allowed, to, until } = terms;
        let effect = match effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        };
        let every = Ports { first: 0, last: 0 };
        let (reach, ports) = match *reach {
            Reach::Web => ("web", every),
            Reach::Ports(ports) => ("ports", ports),
            Reach::Http(ports) => ("http", ports),
            Reach::Https(ports) => ("https", ports),
            Reach::Tcp(ports) => ("tcp", ports),
            Reach::Udp(ports) => ("udp", ports),
            Reach::Quic(ports) => ("quic", ports),
            Reach::Golem => ("golem", every),
            Reach::Everything => ("everything", every),
        };
        let mut text = format!("{effect} {reach} {}-{} ech={}", ports.first, ports.last, ech_allowed);
        if let Some(until) = until {
            _ = write!(text, " until={until}");
        }
        for net in to.iter().flat_map(|nets| nets.iter()) {
            _ = write!(text, " to={net}");
        }
        let mut hash = Hash::of_file("");
        hash.part(text.as_bytes());
        hash
    }

    /// The mark of one rule in the file of this hash.
    pub(super) fn rule(mut self, shape: Shape, subject: &str, terms: Hash) -> Mark {
        self.part(&[shape as u8]);
        self.part(subject.as_bytes());
        self.part(&terms.0.to_le_bytes());
        Mark(self.0)
    }

    fn part(&mut self, bytes: &[u8]) {
        // No name, pattern or path contains the byte that ends a part.
        for byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: u16, line: u32) -> RulePosition {
        RulePosition { file, line }
    }

    #[test]
    fn lines_are_noted_once_and_come_back_in_order() {
        let usage = Usage::new(&[3, 200]);
        for position in [at(1, 200), at(0, 3), at(1, 1), at(1, 64), at(1, 63), at(0, 3)] {
            assert_eq!(usage.contains(position), position == at(0, 3) && usage.count() > 2, "{position:?}");
            usage.note(position);
            assert!(usage.contains(position));
        }
        assert_eq!(usage.lines().collect::<Vec<_>>(), [(0, 3), (1, 1), (1, 63), (1, 64), (1, 200)]);
        assert_eq!(usage.count(), 5);
    }

    #[test]
    fn a_line_without_room_is_not_noted_and_asks_for_nothing() {
        let usage = Usage::new(&[3]);
        for position in [at(1, 1), at(0, 64), at(0, u32::MAX)] {
            usage.note(position);
            assert!(usage.contains(position));
        }
        assert_eq!(usage.count(), 0);
    }

    #[test]
    fn a_million_lines_take_little_more_than_a_bit_each() {
        let usage = Usage::new(&[1_000_000]);
        assert!(usage.files[0].len() * 8 < 126_000);
        assert!(Usage::new(&[u32::MAX]).files[0].len() * 8 <= MAX_LINES / 8);
    }

    #[test]
    fn the_mark_of_a_rule_is_the_same_in_every_version_of_the_program() {
        let terms = Terms { effect: Effect::Allow, reach: Reach::Web, ech_allowed: false, to: None, until: None };
        let mark = Hash::of_file("a.rules").rule(Shape::Exact, "ipfs.io", Hash::of_terms(&terms));
        assert_eq!(mark, Mark(0x8835_0337_3177_9fec));
    }
}
