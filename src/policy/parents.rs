//! The names above allowed names: `golem.network` and `network`, where a rule allows
//! `*.golem.network`. DNS must not say that they do not exist, or clients that walk down from the top
//! give up early (RFC 8020). Only a name that no rule takes is looked for here, and flows never are.
//!
//! The `allow` rules of each file lie sorted by their names read backwards, four bytes a rule, so that
//! all names below another one are neighbours and one binary search a file finds whether there are any.

use super::globs;
use super::rule::Effect;
use super::rules::Rules;
use super::store::{Record, Shape};
use crate::name::MAX_NAME;
use std::cmp::Ordering;
use std::ops::Range;

/// Bytes of a name, from its end, that stand in a sorting key.
const KEY: usize = 14;

/// Globs with one tail that are looked at for a name between tail and pattern; where there are more,
/// one of them is taken to match.
const MAX_INNER: usize = 64;

/// The index.
#[derive(Debug, Default)]
pub(super) struct Parents {
    /// Rules of names and globs by file, then by their literal tail read backwards.
    records: Box<[u32]>,
    /// Where the rules of each file lie in `records`.
    files: Vec<(u16, Range<usize>)>,
    /// Of `records` the globs that have a label between their tail and the names they take.
    inner: Box<[u32]>,
    /// Literal tails of regexes, by file, then backwards.
    regexes: Vec<(u16, Box<str>)>,
}

impl Parents {
    pub(super) fn of(rules: &Rules) -> Parents {
        let mut keyed: Vec<(u128, u32)> = Vec::new();
        let mut inner: Vec<(u128, u32)> = Vec::new();
        let mut regexes = Vec::new();
        for record in rules.records().filter(|record| is_open(rules, record)) {
            let file = record.place().file;
            match record.shape() {
                Shape::Net => {}
                Shape::Regex => regexes.extend(rules.regex_tails(&record).map(|tail| (file, Box::from(tail)))),
                shape => {
                    let entry = (key(file, rules.tail(&record).as_bytes()), record.at());
                    keyed.push(entry);
                    if shape == Shape::Glob && rules.glob(&record).is_some_and(globs::Glob::is_deep) {
                        inner.push(entry);
                    }
                }
            }
        }
        let sorted = |mut entries: Vec<(u128, u32)>| -> Box<[u32]> {
            entries.sort_unstable_by(|(one, a), (other, b)| {
                one.cmp(other).then_with(|| backwards(text(rules, *a), text(rules, *b)))
            });
            entries.into_iter().map(|(_, at)| at).collect()
        };
        let (records, inner) = (sorted(keyed), sorted(inner));
        regexes.sort_unstable_by(|(one, a): &(u16, Box<str>), (other, b)| {
            one.cmp(other).then_with(|| backwards(a.as_bytes(), b.as_bytes()))
        });
        regexes.dedup();
        let mut files: Vec<(u16, Range<usize>)> = Vec::new();
        for (index, at) in records.iter().enumerate() {
            let file = rules.record(*at).map_or(0, |record| record.place().file);
            match files.last_mut() {
                Some((last, range)) if *last == file => range.end = index + 1,
                _ => files.push((file, index..index + 1)),
            }
        }
        Parents { records, files, inner, regexes }
    }

    /// Do the files that `sees` knows allow some name below `name`?
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

    /// Is `name` one that lies between the tail of a glob and the names it takes, as `b.x.io` for
    /// `a-*.b.x.io`'s sibling `a-*.*.x.io`? What stands in the labels between is not compared.
    fn within_glob(&self, rules: &Rules, name: &str, sees: &impl Fn(u16) -> bool) -> bool {
        if self.inner.is_empty() {
            return false;
        }
        let labels = name.split('.').count();
        // The last is that of a glob without literal labels at its end.
        let suffixes = name.match_indices('.').filter_map(|(at, _)| name.get(at + 1..)).chain([""]);
        let mut files = self.inner.iter().filter_map(|at| Some(rules.record(*at)?.place().file)).collect::<Vec<_>>();
        files.dedup();
        for (suffix, file) in suffixes.flat_map(|suffix| files.iter().map(move |file| (suffix, *file))) {
            if !sees(file) {
                continue;
            }
            let before = |at: &u32| match rules.record(*at) {
                Some(record) if record.place().file == file => {
                    backwards(text(rules, *at), suffix.as_bytes()) == Ordering::Less
                }
                Some(record) => record.place().file < file,
                None => false,
            };
            let start = self.inner.partition_point(before);
            let same = self.inner.iter().skip(start).map_while(|at| {
                let record = rules.record(*at)?;
                (record.place().file == file && rules.tail(&record) == suffix).then_some(record)
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

/// Does one of the texts, sorted backwards, lie below `name`, or is it the tail of rules that do?
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

/// The first place at which `is_before` does not hold; it holds for none behind.
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

fn is_open(rules: &Rules, record: &Record) -> bool {
    rules.compiled(record).is_some_and(|compiled| !compiled.expired && compiled.terms.effect == Effect::Allow)
}

fn text(rules: &Rules, at: u32) -> &[u8] {
    rules.record(at).map_or(&[], |record| rules.tail(&record).as_bytes())
}

/// Compares from the last byte to the first.
fn backwards(one: &[u8], other: &[u8]) -> Ordering {
    one.iter().rev().cmp(other.iter().rev())
}

/// The file and the last bytes of a text, so that most comparisons need not touch the text itself. A
/// text that ends sooner has zeros there, and nothing but the end is smaller than any byte of a name.
fn key(file: u16, text: &[u8]) -> u128 {
    let last = text.iter().rev().copied().chain(std::iter::repeat(0)).take(KEY);
    last.fold(u128::from(file), |key, byte| key << 8 | u128::from(byte))
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
    fn keys_sort_as_the_texts_do() {
        let names = ["", "t", "test", "a.test", "a-test", "b.a.test", "zzzzzzzzzzzzzzzzzzzzzz.test"];
        for (a, b) in names.iter().flat_map(|a| names.iter().map(move |b| (a, b))) {
            let (one, other) = (key(1, a.as_bytes()), key(1, b.as_bytes()));
            assert!(one == other || one.cmp(&other) == backwards(a.as_bytes(), b.as_bytes()), "{a} {b}");
        }
        assert!(key(1, b"zz") < key(2, b"aa"));
    }
}
