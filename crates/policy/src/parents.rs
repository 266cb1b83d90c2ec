//! The names above allowed names: `golem.network` and `network`, if a rule allows `*.golem.network`. DNS must not
//! answer that they do not exist, or clients that walk down from the top give up early (RFC 8020). Only names that
//! no rule matches are looked up here, and never for flows.
//!
//! The `allow` rules of each file are sorted by their names read backwards, four bytes a rule. So all names below
//! another one are neighbours, and one binary search per file finds whether there are any.

use super::globs;
use super::rule::Effect;
use super::rules::Rules;
use super::store::{RuleRecord, Shape};
use crate::cooperate;
use outgate_proto::name::MAX_NAME;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

/// How many characters of a name, from its end, are in a sorting key.
const KEY: usize = 16;
/// Bits of one character in a key, and bits of the rule's place, which follows all characters.
const CHARACTER: u32 = 6;
const PLACE: u32 = 32;
/// The last character of a key.
const LAST: u128 = (1 << CHARACTER) - 1;

/// How many globs with one tail are checked for a name between tail and pattern; if there are more, one of them
/// counts as a match.
const MAX_INNER: usize = 64;

/// The index.
#[derive(Debug, Default)]
pub(super) struct Parents {
    /// Rules of names and globs by file, then by their literal tail read backwards.
    records: Box<[u32]>,
    /// The range of each file's rules in `records`.
    files: Vec<(u16, Range<usize>)>,
    /// The globs in `records` that have a label between their tail and the names they match.
    inner: Box<[u32]>,
    /// Literal tails of regexes, by file, then backwards.
    regexes: Vec<(u16, Box<str>)>,
}

impl Parents {
    pub(super) fn of(rules: &Rules) -> Parents {
        let mut parts: BTreeMap<u16, Vec<u128>> = BTreeMap::new();
        // Rules of one file are mostly added together.
        let (mut last, mut part) = (0, Vec::new());
        let mut inner: BTreeMap<u16, Vec<u128>> = BTreeMap::new();
        let mut regexes = Vec::new();
        for record in rules.records().filter(|record| is_open(rules, record)) {
            let file = record.position().file;
            match record.shape() {
                Shape::Net => {}
                Shape::Regex => regexes.extend(rules.regex_tails(&record).map(|tail| (file, Box::from(tail)))),
                shape => {
                    if file != last {
                        parts.entry(last).or_default().append(&mut part);
                        last = file;
                    }
                    part.push(u128::from(record.at()));
                    if shape == Shape::Glob && rules.glob(&record).is_some_and(globs::Glob::is_deep) {
                        inner.entry(file).or_default().push(u128::from(record.at()));
                    }
                }
            }
        }
        parts.entry(last).or_default().append(&mut part);
        let mut records = Vec::with_capacity(parts.values().map(Vec::len).sum());
        let mut files = Vec::with_capacity(parts.len());
        for (file, mut part) in parts {
            sort(&mut part, 0, &|at| text(rules, at));
            let start = records.len();
            records.extend(part.into_iter().map(place));
            files.push((file, start..records.len()));
        }
        inner.values_mut().for_each(|part| sort(part, 0, &|at| text(rules, at)));
        let inner = inner.into_values().flatten().map(place).collect();
        regexes.sort_unstable_by(|(one, a): &(u16, Box<str>), (other, b)| {
            one.cmp(other).then_with(|| backwards(a.as_bytes(), b.as_bytes()))
        });
        regexes.dedup();
        Parents { records: records.into(), files, inner, regexes }
    }

    /// Do the files that `sees` accepts allow some name below `name`?
    pub(super) fn has_below(&self, rules: &Rules, name: &str, sees: impl Fn(u16) -> bool) -> bool {
        let listed = self.files.iter().filter(|(file, _)| sees(*file)).any(|(_, range)| {
            let part = self.records.get(range.clone()).unwrap_or_default();
            has_below(part.len(), |at| part.get(at).map_or(&[], |at| text(rules, *at)), name)
        });
        listed || self.regex_below(name, &sees) || self.within_glob(rules, name, &sees)
    }

    fn regex_below(&self, name: &str, sees: &impl Fn(u16) -> bool) -> bool {
        let mut rest = self.regexes.as_slice();
        while let Some((file, _)) = rest.first() {
            let (part, behind) = rest.split_at(rest.partition_point(|(other, _)| other <= file));
            if sees(*file) && has_below(part.len(), |at| part.get(at).map_or(&[], |(_, tail)| tail.as_bytes()), name) {
                return true;
            }
            rest = behind;
        }
        false
    }

    /// Is `name` between the tail of a glob and the names it matches, as `b.x.io` for `a-*.b.x.io`'s sibling
    /// `a-*.*.x.io`? The labels in between are not compared.
    fn within_glob(&self, rules: &Rules, name: &str, sees: &impl Fn(u16) -> bool) -> bool {
        if self.inner.is_empty() {
            return false;
        }
        let labels = name.split('.').count();
        // The last one is the tail of a glob without literal labels at its end.
        let suffixes = name.match_indices('.').filter_map(|(at, _)| name.get(at + 1..)).chain([""]);
        let mut files = self.inner.iter().filter_map(|at| Some(rules.record(*at)?.position().file)).collect::<Vec<_>>();
        files.dedup();
        for (suffix, file) in suffixes.flat_map(|suffix| files.iter().map(move |file| (suffix, *file))) {
            if !sees(file) {
                continue;
            }
            let before = |at: &u32| match rules.record(*at) {
                Some(record) if record.position().file == file => {
                    backwards(text(rules, *at), suffix.as_bytes()) == Ordering::Less
                }
                Some(record) => record.position().file < file,
                None => false,
            };
            let start = self.inner.partition_point(before);
            let same = self.inner.iter().skip(start).map_while(|at| {
                let record = rules.record(*at)?;
                (record.position().file == file && rules.tail(&record) == suffix.as_bytes()).then_some(record)
            });
            for (count, record) in same.enumerate() {
                if count >= MAX_INNER || rules.glob(&record).is_some_and(|glob| glob.reaches_past(labels)) {
                    return true;
                }
            }
        }
        false
    }
}

/// Is one of the texts, sorted backwards, below `name`, or is `name` the tail of rules for names below it?
fn has_below<'a>(count: usize, text: impl Fn(usize) -> &'a [u8], name: &str) -> bool {
    // A wildcard's base, a glob's or regex's tail; an exact name would have been found before.
    let start = first_not(0..count, |at| backwards(text(at), name.as_bytes()) == Ordering::Less);
    if start < count && text(start) == name.as_bytes() {
        return true;
    }
    let mut buffer = [0u8; MAX_NAME + 1];
    let Some(below) = buffer.get_mut(..name.len() + 1) else { return false };
    below.iter_mut().zip(b".".iter().chain(name.as_bytes())).for_each(|(to, from)| *to = *from);
    let below: &[u8] = below;
    let first = first_not(start..count, |at| backwards(text(at), below) == Ordering::Less);
    first < count && text(first).ends_with(below)
}

/// Returns the first position at which `is_before` does not hold; it holds for none after that.
fn first_not(mut range: Range<usize>, is_before: impl Fn(usize) -> bool) -> usize {
    while range.start < range.end {
        let middle = range.start + (range.end - range.start) / 2;
        if is_before(middle) {
            range.start = middle + 1;
        } else {
            range.end = middle;
        }
    }
    range.start
}

fn is_open(rules: &Rules, record: &RuleRecord) -> bool {
    rules.compiled(record).is_some_and(|compiled| !compiled.expired() && compiled.terms.effect == Effect::Allow)
}

fn text(rules: &Rules, at: u32) -> &[u8] {
    rules.record(at).map_or(&[], |record| rules.tail(&record))
}

/// Compares from the last byte to the first.
fn backwards(one: &[u8], other: &[u8]) -> Ordering {
    one.iter().rev().cmp(other.iter().rev())
}

/// Sorts places of rules by their texts read backwards; the last `done` characters of all texts are the same.
///
/// The characters next to them are put beside each place and compared as one number. So a text, which may be
/// anywhere in memory, is read once for that many characters and not at each comparison.
fn sort<'a>(entries: &mut [u128], done: usize, text: &impl Fn(u32) -> &'a [u8]) {
    for entry in &mut *entries {
        cooperate::step();
        *entry = key(text(place(*entry)), done) << PLACE | u128::from(place(*entry));
    }
    entries.sort_unstable_by(|one, other| {
        cooperate::step();
        one.cmp(other)
    });
    for alike in entries.chunk_by_mut(|one, other| one >> PLACE == other >> PLACE) {
        // A text that has ended is equal to the others.
        let goes_on = alike.first().is_some_and(|entry| (entry >> PLACE) & LAST != 0);
        if alike.len() > 1 && goes_on {
            sort(alike, done + KEY, text);
        }
    }
}

/// The last characters of a text without the `done` at its end. A text that ends sooner has zeros there, and only
/// the end is smaller than any character of a name.
fn key(text: &[u8], done: usize) -> u128 {
    let last = text.iter().rev().skip(done).map(|byte| rank(*byte)).chain(std::iter::repeat(0)).take(KEY);
    last.fold(0, |key, rank| key << CHARACTER | u128::from(rank))
}

/// The rank of a byte among those that names consist of.
fn rank(byte: u8) -> u8 {
    match byte {
        b'-' => 1,
        b'.' => 2,
        b'0'..=b'9' => byte - b'0' + 3,
        b'_' => 13,
        b'a'..=b'z' => byte - b'a' + 14,
        // Names contain no other bytes; any rank will do as long as the order is consistent.
        _ => 0,
    }
}

/// The rule's place in the store, from an entry of the sort.
fn place(entry: u128) -> u32 {
    // The bits above are the key.
    u32::try_from(entry & u128::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[&'static str]) -> Vec<&'static str> {
        let mut names = names.to_vec();
        names.sort_unstable_by(|a, b| backwards(a.as_bytes(), b.as_bytes()));
        names
    }

    #[test]
    fn names_above_others_are_found_and_neighbours_are_not() {
        let names = sorted(&["a.b.test", "x-b.test", "c.testing", "d.xtest", "golem.network"]);
        for above in ["b.test", "test", "testing", "network", "golem.network"] {
            assert!(has_below(names.len(), |at| names[at].as_bytes(), above), "{above}");
        }
        for not in ["est", "b.tes", "x.b.test", "io", "etwork", "twork", "bor.golem.network"] {
            assert!(!has_below(names.len(), |at| names[at].as_bytes(), not), "{not}");
        }
    }

    #[test]
    fn places_are_sorted_as_their_texts_read_backwards_are() {
        let long = "zzzzzzzzzzzzzzzzzzzz-0123456789.test";
        let mut texts: Vec<String> =
            ["", "t", "test", "a.test", "a-test", "b.a.test", "9.test", "_.test", "z.test"]
                .map(str::to_owned)
                .into_iter()
                .chain((0..40).map(|index| {
                    format!("{}.{}{long}", "ab_9-."[index % 6..].repeat(index % 4), "c".repeat(index / 8))
                }))
                .collect();
        texts.push(long.to_owned());
        texts.push(long.to_owned());
        let mut places: Vec<u128> = (0..texts.len() as u128).collect();
        sort(&mut places, 0, &|at| texts[at as usize].as_bytes());
        let sorted: Vec<&str> = places.into_iter().map(|entry| texts[place(entry) as usize].as_str()).collect();
        let mut wanted: Vec<&str> = texts.iter().map(String::as_str).collect();
        wanted.sort_by(|a, b| backwards(a.as_bytes(), b.as_bytes()));
        assert_eq!(sorted, wanted);
    }
}
