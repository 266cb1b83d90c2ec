//! The collector that gathers the problems of all files of the configuration before any is reported.

use crate::diagnostic::{Diagnostic, Severity};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Gathers the problems of all files and turns byte offsets into places. Offsets count through the files as if each
/// began where the one before it ends.
#[derive(Default)]
pub(super) struct Problems {
    sources: Vec<Source>,
    found: Vec<(usize, Diagnostic)>,
    errors: usize,
}

/// One file.
struct Source {
    file: PathBuf,
    text: String,
    /// The offset of its first byte.
    base: usize,
    /// The offset at which the text stops being valid TOML, if it does.
    broken_at: Option<usize>,
}

impl Problems {
    /// For one file.
    pub(super) fn new(file: &Path, text: &str) -> Problems {
        let mut problems = Problems::default();
        problems.add(file, text);
        problems
    }

    /// Adds a file; returns the offset of its first byte.
    pub(super) fn add(&mut self, file: &Path, text: &str) -> usize {
        // One more than its bytes, so that its end is not the beginning of the next.
        let base = self.sources.last().map_or(0, |last| last.base + last.text.len() + 1);
        self.sources.push(Source { file: file.to_owned(), text: text.to_owned(), base, broken_at: None });
        base
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.note(Severity::Error, span.start, message.into());
    }

    pub(super) fn warn(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.note(Severity::Warning, span.start, message.into());
    }

    /// Records the errors of a parser that recovers from errors. Most of what it reports directly after an error
    /// is not a real error, and neither is what readers report behind it.
    pub(super) fn syntax<'m>(&mut self, errors: impl Iterator<Item = (Range<usize>, &'m str)>) {
        let mut last_line = None;
        let mut errors: Vec<_> = errors.collect();
        errors.sort_by_key(|(span, _)| span.start);
        for (span, message) in errors {
            let line = self.position(span.start).0;
            if last_line.is_none_or(|last| line > last + 1) {
                self.push(Severity::Error, span.start, format!("not TOML: {message}"));
            }
            last_line = Some(line);
            if let Some(source) = self.sources.iter_mut().rfind(|source| source.base <= span.start) {
                source.broken_at.get_or_insert(span.start);
            }
        }
    }

    /// Returns whether a text is not TOML, so that what was read from it is not what was meant.
    pub(super) fn is_broken(&self) -> bool {
        self.sources.iter().any(|source| source.broken_at.is_some())
    }

    /// Records a problem with the file that starts at `base` as a whole.
    pub(super) fn whole(&mut self, severity: Severity, base: usize, message: impl Into<String>) {
        let Some(source) = self.source(base) else { return };
        let diagnostic = Diagnostic::whole_file(severity, &source.file, message);
        self.keep(base, diagnostic);
    }

    /// Returns how many errors there are so far. Those behind the end of valid TOML do not count.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    /// Returns where an offset is, for a message about what is at the offset `reader`: "line 7", and in another file
    /// "line 7 of FILE".
    pub(super) fn place(&self, offset: usize, reader: usize) -> String {
        let line = self.position(offset).0;
        match (self.source(offset), self.source(reader)) {
            (Some(one), Some(other)) if one.base != other.base => format!("line {line} of {}", one.file.display()),
            _ => format!("line {line}"),
        }
    }

    /// Returns the problems in the order of the files.
    pub(super) fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(offset, _)| *offset);
        self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }

    fn note(&mut self, severity: Severity, offset: usize, message: String) {
        let broken_at = self.source(offset).and_then(|source| source.broken_at);
        let broken = broken_at.is_some_and(|at| self.position(offset).0 >= self.position(at).0);
        if !broken {
            self.push(severity, offset, message);
        }
    }

    fn push(&mut self, severity: Severity, offset: usize, message: String) {
        let (line, column) = self.position(offset);
        let file = self.source(offset).map(|source| source.file.clone()).unwrap_or_default();
        let message = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let remedy = String::new();
        self.keep(offset, Diagnostic { severity, file, line, column, message, remedy });
    }

    fn keep(&mut self, offset: usize, diagnostic: Diagnostic) {
        self.errors += usize::from(diagnostic.is_error());
        self.found.push((offset, diagnostic));
    }

    fn source(&self, offset: usize) -> Option<&Source> {
        self.sources.iter().rfind(|source| source.base <= offset)
    }

    /// Returns line and column, both from 1, of a byte offset within its file.
    pub(super) fn position(&self, offset: usize) -> (u32, u32) {
        let Some(source) = self.source(offset) else { return (1, 1) };
        let mut at = (offset - source.base).min(source.text.len());
        while !source.text.is_char_boundary(at) {
            at -= 1;
        }
        let before = source.text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().trim_start_matches('\u{feff}').chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }
}

/// Returns the candidate that `word` is most likely a misspelling of, if any is close enough.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_lines_and_characters() {
        let text = "a = 1\nü = \"é\" # x\nlast";
        let mut problems = Problems::new(Path::new("f.toml"), text);
        problems.error(text.find('l').unwrap()..text.len(), "third");
        problems.warn(text.find('#').unwrap()..text.len(), "second\nline");
        problems.error(0..1, "first");
        let lines: Vec<String> = problems.into_sorted().iter().map(Diagnostic::to_string).collect();
        assert_eq!(lines, ["f.toml:1:1: first", "f.toml:2:9: warning: second line", "f.toml:3:1: third"]);
    }

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let keys = ["proxy", "proxy_tls", "admin", "connections"];
        assert_eq!(nearest("proxi", keys), Some("proxy"));
        assert_eq!(nearest("Conections", keys), Some("connections"));
        assert_eq!(nearest("zzz", keys), None);
    }
}
