//! Globs inside labels. A pattern has a fixed number of labels, so it is split: the literal labels at its end select
//! a bucket by hash, then the rarest literal piece of the rest selects the few candidates, and only what remains of
//! those between their literal ends is matched. Remainders with classes or braces use `globset`, with `/` for `.` so
//! that no wildcard crosses a dot, and equal ones share a matcher. Remainders with only `*` and `?` are matched
//! here, as a regex for each would take 10 KiB and be cold in every cache. Patterns without `*` and `?` stand for
//! few names and are expanded to those.

use super::names::{Labels, bit, label_count};
use super::nets::NONE;
use super::rule::Scope;
use super::rules::BuildError;
use foldhash::fast::RandomState;
use globset::{Candidate, GlobBuilder, GlobMatcher};
use outgate_proto::name::MAX_NAME;
use std::collections::HashMap;
use std::hash::BuildHasher;

/// A pattern that stands for more names than this is not expanded.
const MAX_EXPANSION: usize = 64;

/// Sizes of the pieces of inner literals that are looked up at every position of a name.
const WINDOWS: [usize; 4] = [8, 4, 2, 1];

/// The compiled globs. A value is the newest record of a pattern; the others are chained to it.
#[derive(Debug, Default)]
pub(super) struct Globs {
    globs: Vec<Glob>,
    matchers: Vec<GlobMatcher>,
    tails: HashMap<Box<str>, Vec<Bucket>, RandomState>,
    /// Bit n: some literal tail has n labels.
    depths: u128,
    /// From the hash of a bucket and a literal piece to the globs that need that piece. Two pieces with the same
    /// hash cost a comparison, no more.
    groups: HashMap<u64, Box<[u32]>, RandomState>,
    hasher: RandomState,
}

/// The globs of one literal tail with the same number of labels in front of it.
#[derive(Debug, Default)]
struct Bucket {
    id: u32,
    labels: usize,
    /// For each kind of lookup, the lengths of the pieces in use.
    prefixes: Vec<usize>,
    suffixes: Vec<usize>,
    windows: Vec<usize>,
    /// Some glob has no literal piece.
    bare: bool,
}

/// One pattern.
#[derive(Debug)]
pub(super) struct Glob {
    pattern: Box<str>,
    scope: Scope,
    /// Lengths of the literal ends of the part before the literal tail.
    prefix: u16,
    suffix: u16,
    /// Length of the part before the literal tail, without the dot between them.
    front: u16,
    remainder: Remainder,
    head: u32,
}

/// The part between the literal ends.
#[derive(Clone, Copy, Debug)]
enum Remainder {
    /// Literals, `*` and `?`.
    Wild,
    /// Classes or braces too: the matcher at this index.
    Matcher(u32),
}

/// Where a literal piece of a glob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Anchor {
    Prefix,
    Suffix,
    Inside,
    Nowhere,
}

impl Globs {
    /// Calls `found` with the newest record of every pattern that matches the name, perhaps more than once.
    pub(super) fn matching(&self, name: &Labels<'_>, mut found: impl FnMut(u32)) {
        if self.globs.is_empty() {
            return;
        }
        let mut path = [0; MAX_NAME];
        for (to, from) in path.iter_mut().zip(name.text().bytes()) {
            *to = if from == b'.' { b'/' } else { from };
        }
        for depth in (0..name.count()).filter(|depth| self.depths & bit(*depth) != 0) {
            let Some(buckets) = self.tails.get(name.tail(depth)) else { continue };
            let end = name.start(name.count() - depth).saturating_sub(1);
            for bucket in buckets {
                let Some(first) = (name.count() - depth).checked_sub(bucket.labels) else { continue };
                if let Some(part) = path.get(name.start(first)..end) {
                    self.matching_in(bucket, part, first, &mut found);
                }
            }
        }
    }

    /// The pattern at `index`.
    pub(super) fn get(&self, index: usize) -> Option<&Glob> {
        self.globs.get(index)
    }

    /// The pattern at `index` as it is written.
    pub(super) fn written(&self, index: usize) -> String {
        self.globs.get(index).map_or_else(String::new, |glob| match glob.scope {
            Scope::Below => format!("**.{}", glob.pattern),
            Scope::SelfAndBelow => format!(".{}", glob.pattern),
            Scope::Exact | Scope::OneLabel => glob.pattern.to_string(),
        })
    }

    /// `front`: how many labels the name has before `part`.
    fn matching_in(&self, bucket: &Bucket, part: &[u8], front: usize, found: &mut impl FnMut(u32)) {
        let mut look = |anchor: Anchor, piece: &[u8]| {
            let group = self.groups.get(&key(&self.hasher, bucket.id, anchor, piece));
            for glob in group.into_iter().flatten().filter_map(|index| self.globs.get(*index as usize)) {
                if self.takes(glob, part, front) {
                    found(glob.head);
                }
            }
        };
        for piece in bucket.prefixes.iter().filter_map(|length| part.get(..*length)) {
            look(Anchor::Prefix, piece);
        }
        for piece in bucket.suffixes.iter().filter_map(|length| part.get(part.len().checked_sub(*length)?..)) {
            look(Anchor::Suffix, piece);
        }
        for piece in bucket.windows.iter().flat_map(|length| part.windows(*length)) {
            look(Anchor::Inside, piece);
        }
        if bucket.bare {
            look(Anchor::Nowhere, b"");
        }
    }

    fn takes(&self, glob: &Glob, part: &[u8], front: usize) -> bool {
        let placed = match glob.scope {
            Scope::Exact => front == 0,
            Scope::OneLabel => front == 1,
            Scope::Below => front >= 1,
            Scope::SelfAndBelow => true,
        };
        placed
            && glob.split(part).is_some_and(|(written, rest)| match glob.remainder {
                Remainder::Wild => takes_wild(written, rest),
                Remainder::Matcher(index) => self
                    .matchers
                    .get(index as usize)
                    .is_some_and(|matcher| matcher.is_match_candidate(&Candidate::from_bytes(rest))),
            })
    }
}

impl Glob {
    /// The literal labels at its end.
    pub(super) fn tail(&self) -> &str {
        tail_of(&self.pattern)
    }

    /// Are there labels between the tail and the names that it matches?
    pub(super) fn is_deep(&self) -> bool {
        label_count(front_of(&self.pattern)) > 1 || self.scope != Scope::Exact
    }

    /// Does it match names of more than `labels` labels?
    pub(super) fn reaches_past(&self, labels: usize) -> bool {
        let own = label_count(&self.pattern);
        own > labels || (own == labels && self.scope != Scope::Exact)
    }

    /// The part between the literal ends, in the pattern and in `part`, if `part` has those ends.
    fn split<'a>(&'a self, part: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let front = self.pattern.as_bytes().get(..usize::from(self.front))?;
        let cut = |text: &'a [u8]| {
            let (head, rest) = text.split_at_checked(usize::from(self.prefix))?;
            let (rest, tail) = rest.split_at_checked(rest.len().checked_sub(usize::from(self.suffix))?)?;
            Some((head, rest, tail))
        };
        let ((prefix, written, suffix), (head, rest, tail)) = (cut(front)?, cut(part)?);
        let same = |written: &[u8], path: &[u8]| written.iter().zip(path).all(|(written, path)| is(*written, *path));
        (same(prefix, head) && same(suffix, tail)).then_some((written, rest))
    }
}

/// Is the byte of a path the literal byte of a pattern?
fn is(written: u8, path: u8) -> bool {
    written == path || (written == b'.' && path == b'/')
}

/// Does a remainder of literals, `*` and `?` match the text? As labels are matched one to one, only the last `*`
/// ever has to match more than it did.
fn takes_wild(written: &[u8], text: &[u8]) -> bool {
    let (mut w, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(t) {
        match written.get(w) {
            Some(b'*') => {
                star = Some((w, t));
                w += 1;
            }
            Some(b'?') if *byte != b'/' => (w, t) = (w + 1, t + 1),
            Some(literal) if is(*literal, *byte) => (w, t) = (w + 1, t + 1),
            _ => match star {
                Some((at, taken)) if text.get(taken).is_some_and(|byte| *byte != b'/') => {
                    star = Some((at, taken + 1));
                    (w, t) = (at + 1, taken + 1);
                }
                _ => return false,
            },
        }
    }
    written.get(w..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

fn key(hasher: &RandomState, bucket: u32, anchor: Anchor, piece: &[u8]) -> u64 {
    hasher.hash_one((bucket, anchor, piece))
}

/// Collects patterns. The rarest literal piece of each is known only when all have been added.
#[derive(Debug, Default)]
pub(super) struct Collector {
    globs: Vec<Glob>,
    matchers: Vec<GlobMatcher>,
    remainders: HashMap<Box<str>, u32, RandomState>,
    known: HashMap<(Box<str>, Scope), u32, RandomState>,
}

impl Collector {
    /// Returns the index of a checked pattern, and a reference to its newest record.
    pub(super) fn slot(&mut self, pattern: &str, scope: Scope) -> Result<(u32, &mut u32), BuildError> {
        let key = (Box::from(pattern), scope);
        let index = match self.known.get(&key) {
            Some(index) => *index,
            None => {
                let index = u32::try_from(self.globs.len()).map_err(|_| BuildError::TooLarge)?;
                let glob = self.take_apart(pattern, scope)?;
                self.globs.push(glob);
                self.known.insert(key, index);
                index
            }
        };
        let glob = self.globs.get_mut(index as usize).ok_or(BuildError::TooLarge)?;
        Ok((index, &mut glob.head))
    }

    fn take_apart(&mut self, pattern: &str, scope: Scope) -> Result<Glob, BuildError> {
        let too_long = || invalid(pattern, "it is too long");
        let front = front_of(pattern);
        let prefix = front.find(SPECIAL).unwrap_or(front.len());
        let suffix = front.rfind(SPECIAL).map_or(0, |at| front.len() - at - 1);
        let between = front.get(prefix..front.len() - suffix).unwrap_or_default();
        Ok(Glob {
            pattern: Box::from(pattern),
            scope,
            prefix: u16::try_from(prefix).map_err(|_| too_long())?,
            suffix: u16::try_from(suffix).map_err(|_| too_long())?,
            front: u16::try_from(front.len()).map_err(|_| too_long())?,
            remainder: self.remainder(pattern, between)?,
            head: NONE,
        })
    }

    fn remainder(&mut self, pattern: &str, between: &str) -> Result<Remainder, BuildError> {
        if !between.contains(['[', '{']) {
            return Ok(Remainder::Wild);
        }
        if let Some(index) = self.remainders.get(between) {
            return Ok(Remainder::Matcher(*index));
        }
        let glob = GlobBuilder::new(&between.replace('.', "/"))
            .literal_separator(true)
            .backslash_escape(false)
            .empty_alternates(true)
            .build()
            .map_err(|error| invalid(pattern, error.kind()))?;
        let index = u32::try_from(self.matchers.len()).map_err(|_| BuildError::TooLarge)?;
        self.matchers.push(glob.compile_matcher());
        self.remainders.insert(Box::from(between), index);
        Ok(Remainder::Matcher(index))
    }

    pub(super) fn build(self) -> Globs {
        let mut globs = Globs { globs: self.globs, matchers: self.matchers, ..Globs::default() };
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut found: HashMap<(&str, usize), u32, RandomState> = HashMap::default();
        let mut frequency: HashMap<u64, u32, RandomState> = HashMap::default();
        let mut choices = Vec::with_capacity(globs.globs.len());
        for glob in &globs.globs {
            let (tail, labels) = (tail_of(&glob.pattern), label_count(front_of(&glob.pattern)));
            let next = u32::try_from(buckets.len()).unwrap_or(NONE);
            let bucket = *found.entry((tail, labels)).or_insert(next);
            if bucket == next {
                buckets.push(Bucket { id: next, labels, ..Bucket::default() });
            }
            let pieces: Vec<_> = pieces(front_of(&glob.pattern))
                .into_iter()
                .map(|(anchor, piece)| {
                    (anchor, piece.len(), key(&globs.hasher, bucket, anchor, piece.replace('.', "/").as_bytes()))
                })
                .collect();
            for (_, _, key) in &pieces {
                *frequency.entry(*key).or_default() += 1;
            }
            choices.push((bucket, pieces));
        }
        let mut groups: HashMap<u64, Vec<u32>, RandomState> = HashMap::default();
        for (index, (bucket, pieces)) in (0u32..).zip(choices) {
            // The first of the rarest: anchored pieces come first and cost less to look up.
            let rarest = pieces.into_iter().min_by_key(|(_, _, key)| frequency.get(key).copied().unwrap_or(0));
            if let (Some((anchor, length, key)), Some(bucket)) = (rarest, buckets.get_mut(bucket as usize)) {
                bucket.note(anchor, length);
                groups.entry(key).or_default().push(index);
            }
        }
        let places: Vec<(Box<str>, u32)> =
            found.into_iter().map(|((tail, _), bucket)| (Box::from(tail), bucket)).collect();
        globs.groups = groups.into_iter().map(|(key, group)| (key, group.into_boxed_slice())).collect();
        let mut buckets: Vec<Option<Bucket>> = buckets.into_iter().map(Some).collect();
        for (tail, bucket) in places {
            globs.depths |= bit(label_count(&tail));
            let bucket = buckets.get_mut(bucket as usize).and_then(Option::take);
            globs.tails.entry(tail).or_default().extend(bucket);
        }
        globs
    }
}

impl Bucket {
    fn note(&mut self, anchor: Anchor, length: usize) {
        let lengths = match anchor {
            Anchor::Prefix => &mut self.prefixes,
            Anchor::Suffix => &mut self.suffixes,
            Anchor::Inside => &mut self.windows,
            Anchor::Nowhere => {
                self.bare = true;
                return;
            }
        };
        if !lengths.contains(&length) {
            lengths.push(length);
        }
    }
}

/// Characters that are not literal.
const SPECIAL: [char; 6] = ['*', '?', '[', ']', '{', '}'];

fn invalid(pattern: &str, problem: impl ToString) -> BuildError {
    BuildError::Glob { pattern: pattern.to_owned(), problem: problem.to_string() }
}

/// The labels of a pattern up to the last one that is not literal.
fn front_of(pattern: &str) -> &str {
    let last = pattern.rfind(SPECIAL).unwrap_or(0);
    let end = pattern.get(last..).and_then(|rest| rest.find('.')).map_or(pattern.len(), |dot| last + dot);
    pattern.get(..end).unwrap_or(pattern)
}

/// The literal labels after that.
fn tail_of(pattern: &str) -> &str {
    pattern.get(front_of(pattern).len() + 1..).unwrap_or_default()
}

/// The literal pieces by which a front can be found, cheapest first; never empty.
fn pieces(front: &str) -> Vec<(Anchor, &str)> {
    let mut pieces = Vec::new();
    let prefix = front.find(SPECIAL).unwrap_or(front.len());
    let suffix = front.rfind(SPECIAL).map_or(0, |at| at + 1);
    pieces.extend(front.get(..prefix).filter(|piece| !piece.is_empty()).map(|piece| (Anchor::Prefix, piece)));
    pieces.extend(front.get(suffix..).filter(|piece| !piece.is_empty()).map(|piece| (Anchor::Suffix, piece)));
    for run in inner_runs(front.get(prefix..suffix).unwrap_or_default()) {
        let Some(size) = WINDOWS.into_iter().find(|size| *size <= run.len()) else { continue };
        pieces.extend(run.get(..size).map(|piece| (Anchor::Inside, piece)));
        pieces.extend(run.get(run.len() - size..).map(|piece| (Anchor::Inside, piece)));
    }
    if pieces.is_empty() {
        pieces.push((Anchor::Nowhere, ""));
    }
    pieces
}

/// The literal runs outside of classes and braces, which every match must contain.
fn inner_runs(middle: &str) -> Vec<&str> {
    let mut runs = Vec::new();
    let mut depth = 0usize;
    let mut start = 0;
    for (at, byte) in middle.bytes().enumerate() {
        let special = matches!(byte, b'*' | b'?' | b'[' | b']' | b'{' | b'}');
        if special && depth == 0 {
            runs.extend(middle.get(start..at).filter(|run| !run.is_empty()));
        }
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if special {
            start = at + 1;
        }
    }
    runs
}

/// Checks the syntax of a pattern and folds runs of `*`, which would cross dots in `globset`.
pub(super) fn check(pattern: &str, scope: Scope) -> Result<String, BuildError> {
    if scope == Scope::OneLabel {
        return Err(invalid(pattern, "a leading `*.` belongs to the pattern itself"));
    }
    let mut folded = String::with_capacity(pattern.len());
    let (mut braces, mut class) = (0usize, None::<usize>);
    let mut last = '.';
    for (at, character) in pattern.char_indices() {
        let problem = match (character, class) {
            ('a'..='z' | '0'..='9' | '_' | '-', _) => None,
            (']', Some(open)) if at == open + 1 => Some("`[]` is empty"),
            (']', Some(_)) => {
                class = None;
                None
            }
            (_, Some(_)) => Some("a class in brackets holds letters, digits, `-` and `_` alone"),
            ('[', None) => {
                class = Some(at);
                None
            }
            ('{', None) => {
                braces += 1;
                None
            }
            ('}', None) if braces > 0 => {
                braces -= 1;
                None
            }
            (',', None) if braces > 0 => None,
            ('.', None) if braces > 0 => Some("braces hold no dots"),
            ('.', None) if last == '.' => Some("a label is empty"),
            ('.' | '*' | '?', None) => None,
            _ => Some("a character is out of place"),
        };
        if let Some(problem) = problem {
            return Err(invalid(pattern, problem));
        }
        if character != '*' || last != '*' {
            folded.push(character);
        }
        last = character;
    }
    match () {
        () if braces > 0 || class.is_some() => Err(invalid(pattern, "a bracket or brace is not closed")),
        () if last == '.' => Err(invalid(pattern, "a label is empty")),
        () => Ok(folded),
    }
}

/// The names that a checked pattern without `*` and `?` stands for; `None` if there are too many.
pub(super) fn expand(pattern: &str) -> Option<Vec<String>> {
    if pattern.contains(['*', '?']) {
        return None;
    }
    let mut names = vec![String::new()];
    let mut rest = pattern;
    while !rest.is_empty() {
        let literal = rest.find(['[', '{']).unwrap_or(rest.len());
        let (text, special) = rest.split_at_checked(literal)?;
        names.iter_mut().for_each(|name| name.push_str(text));
        let (choices, after) = match special.as_bytes().first() {
            None => break,
            Some(b'[') => {
                let (class, after) = special.get(1..)?.split_once(']')?;
                (class_members(class)?, after)
            }
            Some(_) => {
                let (alternatives, after) = special.get(1..)?.split_once('}')?;
                if alternatives.contains(['{', '[']) {
                    return None;
                }
                (alternatives.split(',').map(str::to_owned).collect(), after)
            }
        };
        if names.len().checked_mul(choices.len())? > MAX_EXPANSION {
            return None;
        }
        names = names.iter().flat_map(|name| choices.iter().map(move |choice| format!("{name}{choice}"))).collect();
        rest = after;
    }
    // An alternative may be empty; a text that is then not a name matches none.
    names.retain(|name| name.len() <= MAX_NAME && name.split('.').all(|label| !label.is_empty()));
    names.sort_unstable();
    names.dedup();
    Some(names)
}

/// The characters of a class such as `0-9a_`; `None` if `globset` must judge it.
fn class_members(class: &str) -> Option<Vec<String>> {
    let mut members = Vec::new();
    let bytes = class.as_bytes();
    let mut at = 0;
    while let Some(first) = bytes.get(at) {
        let (last, next) = match (bytes.get(at + 1), bytes.get(at + 2)) {
            (Some(b'-'), Some(last)) => (last, at + 3),
            _ => (first, at + 1),
        };
        if first > last {
            return None;
        }
        members.extend((*first..=*last).map(|byte| char::from(byte).to_string()));
        at = next;
    }
    Some(members)
}
