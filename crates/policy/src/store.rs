//! All rules in one run of bytes: sixteen bytes each, followed by the rule's own text. So what a decision reads of a
//! rule is mostly in one or two cache lines, and a million rules take little more than their text.

use super::nets::NONE;
use super::rules::BuildError;
use crate::cooperate;
use outgate_proto::name::MAX_NAME;

/// How many rules of one subject are compared with a new one to drop duplicates.
const DEDUPLICATED: usize = 8;

/// Bytes of a rule without its text.
const HEADER: usize = 16;

/// The length that means: the text is that of another record, whose place is stored here.
const ELSEWHERE: u8 = u8::MAX;

/// Rules by their place in the run.
#[derive(Debug, Default)]
pub(super) struct Store {
    bytes: Vec<u8>,
}

/// One rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct RuleRecord {
    /// Its place.
    at: u32,
    /// The next rule with the same subject.
    pub(super) next: u32,
    pub(super) terms: u32,
    pub(super) said: Said,
}

/// The position of a rule and its kind of subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) position: RulePosition,
    pub(super) shape: Shape,
}

/// The position of a rule, in the order in which rules are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RulePosition {
    pub(super) file: u16,
    pub(super) line: u32,
}

/// The kind of subject that a rule has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Shape {
    Exact,
    OneLabel,
    Below,
    SelfAndBelow,
    Glob,
    Regex,
    Net,
}

impl RuleRecord {
    pub(super) fn position(&self) -> RulePosition {
        self.said.position
    }

    pub(super) fn shape(&self) -> Shape {
        self.said.shape
    }

    /// Its place in the run.
    pub(super) fn at(&self) -> u32 {
        self.at
    }
}

impl Store {
    /// Adds the first rule of a name. Returns its place, which a table keeps.
    pub(super) fn push_name(&mut self, said: Said, terms: u32, name: &str) -> Result<u32, BuildError> {
        let length = u8::try_from(name.len()).ok().filter(|length| usize::from(*length) <= MAX_NAME);
        let length = length.ok_or_else(|| BuildError::Name { name: name.chars().take(MAX_NAME).collect() })?;
        self.push(said, terms, NONE, length, name.as_bytes())
    }

    /// Adds another rule of the name whose first rule is at `head`, unless it is a duplicate.
    pub(super) fn push_same_name(&mut self, said: Said, terms: u32, head: u32) -> Result<(), BuildError> {
        if self.said_before(head, said, terms) {
            return Ok(());
        }
        let next = self.get(head).map_or(NONE, |record| record.next);
        let at = self.push(said, terms, next, ELSEWHERE, &head.to_le_bytes())?;
        self.put(head, 4, at.to_le_bytes());
        Ok(())
    }

    /// Adds a rule whose subject is kept elsewhere under `index`, in front of the chain at `head`, unless it is a
    /// duplicate.
    pub(super) fn push_index(&mut self, said: Said, terms: u32, index: u32, head: &mut u32) -> Result<(), BuildError> {
        if self.said_before(*head, said, terms) {
            return Ok(());
        }
        *head = self.push(said, terms, *head, 4, &index.to_le_bytes())?;
        Ok(())
    }

    pub(super) fn get(&self, at: u32) -> Option<RuleRecord> {
        let [l0, l1, l2, l3, n0, n1, n2, n3, t0, t1, t2, t3, f0, f1, _, shape] = *self.header(at)?;
        let position = RulePosition { file: u16::from_le_bytes([f0, f1]), line: u32::from_le_bytes([l0, l1, l2, l3]) };
        Some(RuleRecord {
            at,
            next: u32::from_le_bytes([n0, n1, n2, n3]),
            terms: u32::from_le_bytes([t0, t1, t2, t3]),
            said: Said { position, shape: Shape::read(shape)? },
        })
    }

    /// The rules chained from `head`.
    pub(super) fn chain(&self, head: Option<u32>) -> impl Iterator<Item = RuleRecord> {
        std::iter::successors(head.and_then(|head| self.get(head)), |last| self.get(last.next))
    }

    /// All rules, in the order in which they were added. Takes long if there are many.
    pub(super) fn all(&self) -> impl Iterator<Item = RuleRecord> {
        std::iter::successors(self.get(0), |last| {
            cooperate::step();
            let length = self.header(last.at)?[14];
            let text = if length == ELSEWHERE { size_of::<u32>() } else { usize::from(length) };
            self.get(last.at.checked_add(u32::try_from(HEADER + text).ok()?)?)
        })
    }

    /// The name of the rule at `at`, which is the first rule of its name.
    pub(super) fn name_at(&self, at: u32) -> &[u8] {
        let length = self.header(at).map_or(0, |header| header[14]);
        let start = (at as usize).saturating_add(HEADER);
        self.bytes.get(start..start.saturating_add(usize::from(length))).unwrap_or_default()
    }

    /// The name of any rule of a name.
    pub(super) fn name(&self, record: &RuleRecord) -> &str {
        std::str::from_utf8(self.name_bytes(record)).unwrap_or_default()
    }

    /// The same as bytes, so that a caller with many names need not check each one as UTF-8.
    pub(super) fn name_bytes(&self, record: &RuleRecord) -> &[u8] {
        let elsewhere = self.header(record.at).is_some_and(|header| header[14] == ELSEWHERE);
        self.name_at(if elsewhere { self.index(record) } else { record.at })
    }

    /// What was given as `index`.
    pub(super) fn index(&self, record: &RuleRecord) -> u32 {
        let start = (record.at as usize).saturating_add(HEADER);
        let index = self.bytes.get(start..).and_then(|rest| rest.first_chunk());
        index.map_or(NONE, |index| u32::from_le_bytes(*index))
    }

    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }

    fn header(&self, at: u32) -> Option<&[u8; HEADER]> {
        self.bytes.get(at as usize..)?.first_chunk()
    }

    fn push(&mut self, said: Said, terms: u32, next: u32, length: u8, text: &[u8]) -> Result<u32, BuildError> {
        let at = u32::try_from(self.bytes.len()).ok().filter(|at| *at != NONE).ok_or(BuildError::TooLarge)?;
        let mut header = [0; HEADER];
        let fields = said.position.line.to_le_bytes().into_iter().chain(next.to_le_bytes()).chain(terms.to_le_bytes());
        let fields = fields.chain(said.position.file.to_le_bytes()).chain([length, said.shape as u8]);
        header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(text);
        Ok(at)
    }

    /// Is one of the first rules from `head` a duplicate? It then keeps the earlier line.
    fn said_before(&mut self, head: u32, said: Said, terms: u32) -> bool {
        let same = self.chain(Some(head)).take(DEDUPLICATED).find(|record| {
            (record.terms, record.shape(), record.position().file) == (terms, said.shape, said.position.file)
        });
        if let Some(same) = same {
            self.put(same.at, 0, same.position().line.min(said.position.line).to_le_bytes());
        }
        same.is_some()
    }

    fn put(&mut self, at: u32, offset: usize, value: [u8; 4]) {
        let field = self.bytes.get_mut((at as usize).saturating_add(offset)..).and_then(|rest| rest.first_chunk_mut());
        if let Some(field) = field {
            *field = value;
        }
    }
}

impl Shape {
    fn read(byte: u8) -> Option<Shape> {
        const ALL: [Shape; 7] =
            [Shape::Exact, Shape::OneLabel, Shape::Below, Shape::SelfAndBelow, Shape::Glob, Shape::Regex, Shape::Net];
        ALL.get(usize::from(byte)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(file: u16, line: u32, shape: Shape) -> Said {
        Said { position: RulePosition { file, line }, shape }
    }

    #[test]
    fn rules_come_back_as_they_went_in() {
        let mut store = Store::default();
        for (shape, line) in [Shape::Exact, Shape::OneLabel, Shape::Below, Shape::SelfAndBelow].into_iter().zip(1..) {
            let said = said(u16::MAX, u32::MAX - line, shape);
            let at = store.push_name(said, line, "ipfs.io").unwrap();
            let record = store.get(at).unwrap();
            assert_eq!((record.said, record.terms, record.next), (said, line, NONE));
            assert_eq!((store.name(&record), store.name_at(at)), ("ipfs.io", &b"ipfs.io"[..]));
        }
        let mut head = NONE;
        for (shape, index) in [Shape::Glob, Shape::Regex, Shape::Net].into_iter().zip(7..) {
            store.push_index(said(1, 2, shape), 3, index, &mut head).unwrap();
            let record = store.get(head).unwrap();
            assert_eq!((record.shape(), store.index(&record)), (shape, index));
        }
        assert_eq!(store.chain(Some(head)).count(), 3);
    }

    #[test]
    fn all_rules_are_found_whatever_their_text() {
        let mut store = Store::default();
        assert_eq!(store.all().count(), 0);
        let head = store.push_name(said(0, 1, Shape::Exact), 0, "ipfs.io").unwrap();
        store.push_same_name(said(0, 2, Shape::Exact), 1, head).unwrap();
        store.push_index(said(0, 3, Shape::Net), 0, 7, &mut NONE.clone()).unwrap();
        store.push_name(said(0, 4, Shape::Below), 0, "").unwrap();
        store.push_name(said(0, 5, Shape::Exact), 0, &"a".repeat(MAX_NAME)).unwrap();
        store.push_name(said(0, 6, Shape::Exact), 0, "b").unwrap();
        assert_eq!(store.all().map(|record| record.position().line).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn rules_of_one_name_are_chained_and_know_it() {
        let mut store = Store::default();
        let head = store.push_name(said(0, 9, Shape::Exact), 0, "ipfs.io").unwrap();
        for terms in 1..20 {
            store.push_same_name(said(0, 1, Shape::Exact), terms, head).unwrap();
        }
        let terms: Vec<u32> = store.chain(Some(head)).map(|record| record.terms).collect();
        assert_eq!((terms.len(), terms[0], terms[1]), (20, 0, 19));
        assert!(store.chain(Some(head)).all(|record| store.name(&record) == "ipfs.io"));
    }

    #[test]
    fn the_same_said_twice_is_kept_once_with_its_first_line() {
        let mut store = Store::default();
        let head = store.push_name(said(0, 9, Shape::Exact), 0, "ipfs.io").unwrap();
        store.push_same_name(said(0, 3, Shape::Exact), 0, head).unwrap();
        store.push_same_name(said(0, 5, Shape::Exact), 0, head).unwrap();
        store.push_same_name(said(1, 1, Shape::Exact), 0, head).unwrap();
        let positions: Vec<_> =
            store.chain(Some(head)).map(|record| (record.position().file, record.position().line)).collect();
        assert_eq!(positions, [(0, 3), (1, 1)]);
    }

    #[test]
    fn a_name_longer_than_any_is_refused() {
        let long = "a".repeat(254);
        assert!(matches!(Store::default().push_name(said(0, 1, Shape::Exact), 0, &long), Err(BuildError::Name { .. })));
    }
}
