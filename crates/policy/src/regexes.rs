//! Regex rules: all of them in one set, so that a name is scanned once, however many there are.
//!
//! A pattern is parsed alone and printed back from its syntax tree before it is anchored or joined. So text such as
//! `a)|(b`, or a comment in verbose mode, cannot escape the anchors. Names are ASCII, so character classes are
//! reduced to ASCII, which keeps the automaton small.

use super::nets::NONE;
use super::rules::BuildError;
use foldhash::fast::RandomState;
use regex::{RegexBuilder, RegexSet, RegexSetBuilder};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::literal::{ExtractKind, Extractor};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look};
use std::collections::HashMap;

/// Compiled size of one regex, in bytes.
const MAX_SIZE: usize = 256 << 10;
/// Compiled size of all together, in bytes.
const MAX_TOTAL_SIZE: usize = 32 << 20;
/// Number of regexes.
const MAX_COUNT: usize = 10_000;
/// Memory for the part of the automaton that is built while matching, in bytes.
const CACHE_SIZE: usize = 8 << 20;
/// Depth of nested groups.
const MAX_NESTING: u32 = 50;

/// Names above all names that one regex matches.
type Tails = Box<[Box<str>]>;

/// The compiled set. A value is the newest record of a regex; the others are chained to it.
#[derive(Debug, Default)]
pub(super) struct Regexes {
    set: Option<RegexSet>,
    heads: Vec<u32>,
    written: Vec<Box<str>>,
    tails: Vec<Tails>,
}

impl Regexes {
    /// Calls `found` with the newest record of every regex that matches the name.
    pub(super) fn matching(&self, name: &str, mut found: impl FnMut(u32)) {
        let Some(set) = &self.set else { return };
        // Most names match nothing, and this check needs no allocation.
        if set.is_match(name) {
            for head in set.matches(name).into_iter().filter_map(|index| self.heads.get(index)) {
                found(*head);
            }
        }
    }

    /// The names above all names of the regex at `index`, as far as they can be determined.
    pub(super) fn tails(&self, index: usize) -> impl Iterator<Item = &str> {
        self.tails.get(index).into_iter().flatten().map(|tail| &**tail)
    }

    /// The regex at `index` as it is written.
    pub(super) fn written(&self, index: usize) -> String {
        self.written.get(index).map_or_else(String::new, |pattern| format!("/{pattern}/"))
    }
}

/// Collects regexes.
#[derive(Debug, Default)]
pub(super) struct RegexesBuilder {
    printed: Vec<String>,
    heads: Vec<u32>,
    written: Vec<Box<str>>,
    tails: Vec<Tails>,
    known: HashMap<(Box<str>, bool), u32, RandomState>,
}

impl RegexesBuilder {
    /// Returns the index of a regex, and a reference to its newest record. `search`: as yagna reads it, anywhere in
    /// the name, in either case, white space ignored; otherwise it must match the whole name.
    pub(super) fn slot(&mut self, pattern: &str, search: bool) -> Result<(u32, &mut u32), BuildError> {
        let key = (Box::from(pattern), search);
        let index = match self.known.get(&key) {
            Some(index) => *index,
            None => {
                let (printed, tails) = compile(pattern, search)?;
                let index = u32::try_from(self.heads.len()).map_err(|_| BuildError::TooLarge)?;
                self.printed.push(printed);
                self.heads.push(NONE);
                self.written.push(Box::from(pattern));
                self.tails.push(tails);
                self.known.insert(key, index);
                index
            }
        };
        Ok((index, self.heads.get_mut(index as usize).ok_or(BuildError::TooLarge)?))
    }

    pub(super) fn build(self) -> Result<Regexes, BuildError> {
        let too_many = BuildError::TooManyRegexes { count: MAX_COUNT, limit: MAX_TOTAL_SIZE >> 20 };
        if self.printed.len() > MAX_COUNT {
            return Err(too_many);
        }
        let set = match self.printed.is_empty() {
            true => None,
            false => Some(
                RegexSetBuilder::new(&self.printed)
                    .size_limit(MAX_TOTAL_SIZE)
                    .dfa_size_limit(CACHE_SIZE)
                    .build()
                    .map_err(|_| too_many)?,
            ),
        };
        Ok(Regexes { set, heads: self.heads, written: self.written, tails: self.tails })
    }
}

/// Checks one regex and prints it in a form for the set. Also returns the names above all names that it matches.
fn compile(pattern: &str, search: bool) -> Result<(String, Tails), BuildError> {
    let problem = |error: &dyn std::fmt::Display| BuildError::Regex { problem: last_line(&error.to_string()) };
    let tree = ParserBuilder::new()
        .nest_limit(MAX_NESTING)
        .case_insensitive(search)
        .ignore_whitespace(search)
        .build()
        .parse(pattern)
        .map_err(|error| problem(&error))?;
    let tree = in_ascii(tree);
    let printed = if search { format!("(?:{tree})") } else { format!("\\A(?:{tree})\\z") };
    match RegexBuilder::new(&printed).size_limit(MAX_SIZE).build() {
        Ok(_) => Ok((printed, tails(&tree, search))),
        Err(regex::Error::CompiledTooBig(_)) => Err(BuildError::RegexTooLarge { limit: MAX_SIZE >> 10 }),
        Err(error) => Err(problem(&error)),
    }
}

/// What follows the first dot of each literal that the names of a regex end in. Empty if the regex does not
/// determine how they end, as yagna's regexes need not.
fn tails(tree: &Hir, search: bool) -> Tails {
    if search && !tree.properties().look_set_suffix().contains(Look::End) {
        return Box::default();
    }
    let literals = Extractor::new().kind(ExtractKind::Suffix).extract(tree);
    let texts =
        literals.literals().into_iter().flatten().filter_map(|literal| std::str::from_utf8(literal.as_bytes()).ok());
    let mut tails: Vec<Box<str>> = texts
        .filter_map(|text| text.split_once('.'))
        .map(|(_, tail)| tail.to_ascii_lowercase().into_boxed_str())
        .filter(|tail| !tail.is_empty())
        .collect();
    tails.sort_unstable();
    tails.dedup();
    tails.into()
}

/// The same tree without the characters that no name contains.
fn in_ascii(tree: Hir) -> Hir {
    match tree.into_kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Class(Class::Unicode(mut class)) => {
            class.intersect(&ClassUnicode::new([ClassUnicodeRange::new('\0', '\x7f')]));
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(class) => Hir::class(class),
        HirKind::Repetition(mut repetition) => {
            repetition.sub = Box::new(in_ascii(*repetition.sub));
            Hir::repetition(repetition)
        }
        // The text that a group captures is not needed here.
        HirKind::Capture(capture) => in_ascii(*capture.sub),
        HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(in_ascii).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.into_iter().map(in_ascii).collect()),
    }
}

/// The parser draws a picture over several lines; the last line describes the error.
fn last_line(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.trim().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(pattern: &str, search: bool, name: &str) -> bool {
        let mut builder = RegexesBuilder::default();
        *builder.slot(pattern, search).unwrap().1 = 7;
        let mut found = Vec::new();
        builder.build().unwrap().matching(name, |head| found.push(head));
        assert!(found.iter().all(|head| *head == 7));
        !found.is_empty()
    }

    #[test]
    fn a_regex_must_match_the_whole_name() {
        assert!(takes(r"bor[0-9]+\.golem\.network", false, "bor12.golem.network"));
        for name in ["xbor1.golem.network", "bor1.golem.network.evil.test", "bor.golem.network"] {
            assert!(!takes(r"bor[0-9]+\.golem\.network", false, name), "{name}");
        }
    }

    #[test]
    fn alternatives_and_closing_brackets_do_not_escape_the_anchors() {
        assert!(!takes("a|b", false, "ab") && !takes("a|b$", false, "xb") && takes("a|b$", false, "b"));
        assert!(RegexesBuilder::default().slot("a)|(?:b", false).is_err());
        assert!(!takes("(?x)a # x", false, "ab") && takes("(?x)a # x", false, "a"));
        assert!(!takes("(?m)^a$", false, "ab"));
    }

    #[test]
    fn a_dollar_does_not_stop_before_a_newline() {
        assert!(!takes("(?m)evil$", false, "evil\n.test"));
        assert!(!takes("evil$", false, "evil\n"));
    }

    #[test]
    fn yagnas_regexes_are_searched_in_either_case_with_white_space_ignored() {
        assert!(takes(r"IPFS \. io", true, "my.ipfs.io.evil.test"));
        assert!(takes(r"^ipfs\.io$ # the gateway", true, "ipfs.io"));
        assert!(!takes(r"^ipfs\.io$", true, "a.ipfs.io"));
    }

    #[test]
    fn classes_mean_the_same_after_they_are_cut_to_ascii() {
        assert!(takes(r"\w+\.\p{L}{2}", false, "a_1.io") && takes(r"[^é]+", false, "a.io"));
        assert!(!takes(r"é", true, "e") && !takes("[é]", true, "e"));
    }

    #[test]
    fn huge_regexes_are_refused_one_by_one() {
        for pattern in ["(a{1000}){1000}", r"((\w{1,100}){1,100}\.){1,50}"] {
            let error = RegexesBuilder::default().slot(pattern, false).map(|_| ()).unwrap_err();
            assert_eq!(error, BuildError::RegexTooLarge { limit: 256 }, "{pattern}");
        }
        let deep = format!("{}a{}", "(".repeat(200), ")".repeat(200));
        assert!(matches!(RegexesBuilder::default().slot(&deep, false), Err(BuildError::Regex { .. })));
    }

    #[test]
    fn too_many_regexes_are_refused() {
        let mut builder = RegexesBuilder::default();
        for index in 0..=MAX_COUNT {
            builder.printed.push(format!("\\A(?:{index})\\z"));
        }
        assert!(matches!(builder.build(), Err(BuildError::TooManyRegexes { .. })));
    }

    #[test]
    fn the_parsers_complaint_is_one_line() {
        let error = RegexesBuilder::default().slot("a(b", false).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "the regex is not valid: unclosed group");
    }
}
