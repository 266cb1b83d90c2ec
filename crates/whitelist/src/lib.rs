//! Whitelist files, from disk to rules: reads, parses, guards and compiles them; watches, keeps, edits and lints
//! them; and records which rules were used.
//!
//! [`read::Files`] is one consistent set of files. [`compile`] turns it into whatever a [`Sink`] builds, or into a
//! [`Report`] of everything that is wrong with it. On an error the half-filled sink is dropped, so a list is never
//! half applied. `policy` decides what a rule means for a flow; the daemon decides when to reload and what to do
//! when a reload fails.

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::restriction,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "a test that panics fails, as it should"
    ),
    warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)
)]

pub mod edit;
pub mod last_good;
pub mod lint;
pub mod read;
pub mod report;
pub mod shipped;
pub mod used;
pub mod watch;

mod glob;
mod golem;
mod native;
mod options;
mod parse;
mod pattern;
mod public_suffix;
mod subject;

use jiff::civil::Date;
use outgate_files::diagnostic::Diagnostic;
use outgate_golem::rules::Outbound;
use outgate_policy::cooperate;
use outgate_policy::rule::{Subject, Terms};
use outgate_policy::{BuildError, Builder, FileId, Rules};
use parse::Rule;
use report::Problems;
use std::fmt::Display;
use std::path::Path;

pub use read::{Files, Fingerprint};
pub use report::Report;
pub use used::UsedLines;

/// Accepts rules and makes a policy of them.
pub trait Sink {
    /// How the sink refers to a file.
    type File: Copy;
    /// Why the sink cannot accept a rule; shown to the operator at the rule's line.
    type Error: Display;

    /// Announces the approximate number of rules. A hint; the sink may ignore it.
    fn make_room(&mut self, _rules: usize) {}

    /// Announces a file of the whitelist; its rules follow.
    fn file(&mut self, name: &str) -> Self::File;

    /// Accepts one rule from `line` (from 1) of `file`.
    fn rule(&mut self, file: Self::File, line: u32, subject: &Subject<'_>, terms: &Terms) -> Result<(), Self::Error>;
}

impl Sink for Builder {
    type File = FileId;
    type Error = BuildError;

    fn make_room(&mut self, rules: usize) {
        Builder::make_room(self, rules);
    }

    fn file(&mut self, name: &str) -> FileId {
        Builder::file(self, name)
    }

    fn rule(&mut self, file: FileId, line: u32, subject: &Subject<'_>, terms: &Terms) -> Result<(), BuildError> {
        Builder::rule(self, file, line, subject, terms)
    }
}

/// What a valid set of files yields beside the rules themselves.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Findings that deserve a look but do not invalidate the list.
    pub warnings: Vec<Diagnostic>,
    /// Over names and contents; equal for an unchanged set.
    pub fingerprint: Fingerprint,
    /// Over names and contents: [`Files::sha256`].
    pub sha256: String,
    /// Files read.
    pub files: usize,
    /// Rules read, expired ones and duplicates included.
    pub rules: u64,
    /// A Golem provider's rules, if there are any.
    pub outbound: Option<Outbound>,
}

impl Loaded {
    /// The result for an empty set of files.
    pub fn none() -> Loaded {
        let files = Files::none();
        let (warnings, fingerprint) = (Vec::new(), files.fingerprint());
        Loaded { warnings, fingerprint, sha256: files.sha256(), files: 0, rules: 0, outbound: None }
    }
}

/// Turns a set of files into rules. `today` (UTC) only decides which rules are reported as expired.
///
/// Returns the filled sink, or every problem of every file; in that case the sink is dropped.
pub fn compile<S: Sink>(files: &Files, today: Date, mut sink: S) -> Result<(S, Loaded), Report> {
    let mut problems = files.problems().clone();
    let mut rules = 0;
    sink.make_room(files.iter().map(|file| parse::count(file.bytes())).sum());
    for file in files.iter() {
        let id = sink.file(file.name());
        let mut take = |rule: &Rule<'_>| {
            cooperate::step();
            rules += 1;
            sink.rule(id, rule.line, &rule.subject, rule.terms).map_err(|error| error.to_string())
        };
        parse::file(file, today, &mut problems, &mut take);
    }
    let warnings = problems.into_warnings().map_err(|problems| problems.report(files.dir()))?;
    let (fingerprint, outbound) = (files.fingerprint(), files.outbound());
    let sha256 = files.sha256();
    Ok((sink, Loaded { warnings, fingerprint, sha256, files: files.len(), rules, outbound }))
}

/// Turns a set of files into the rules that the daemon applies.
pub fn build(files: &Files, today: Date) -> Result<(Rules, Loaded), Report> {
    let (builder, loaded) = compile(files, today, Builder::new(today))?;
    let rules = builder.build().map_err(|error| Report::whole(files.dir(), error.to_string()))?;
    Ok((rules, loaded))
}

/// Describes how a Golem regex is wider than the names of one owner, with an example. Returns `None` if it is not
/// wider, or is not a valid regex.
pub fn breadth(regex: &str) -> Option<String> {
    let pattern = pattern::analyse(&regex.to_lowercase(), pattern::Matching::Search).ok()?;
    pattern.wide.map(|wide| wide.to_string())
}

/// Returns whether a `.lst` file of this name, with or without a path in front, is a list of regexes.
pub fn is_of_regexes(name: &str) -> bool {
    read::Format::of(name.rsplit('/').next().unwrap_or(name)) == Some(read::Format::Regex)
}

/// Returns today's date in UTC, which `until=` is compared with.
pub fn today() -> Date {
    jiff::tz::Offset::UTC.to_datetime(jiff::Timestamp::now()).date()
}

/// Reads `dir` and compiles what is there.
pub fn load<S: Sink>(dir: &Path, today: Date, sink: S) -> Result<(S, Loaded), Report> {
    compile(&Files::read(dir), today, sink)
}

/// One rule as a file holds it, for `whitelist list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// File name within the whitelist dir.
    pub file: std::sync::Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// The rule as written, without a trailing comment.
    pub source: Box<str>,
    /// The rule in canonical form (lower case, A-labels), without note and owner, if that differs.
    pub canonical: Option<Box<str>>,
    /// Everything the rule specifies beside its subject.
    pub terms: Terms,
    /// `owner=`.
    pub owner: Option<Box<str>>,
    /// `note=`.
    pub note: Option<Box<str>>,
}

/// Returns every rule of a set, in file and line order, or the report if the set is not valid.
pub fn list(files: &Files, today: Date) -> Result<impl Iterator<Item = Listed>, Report> {
    let mut problems: Problems = files.problems().clone();
    let mut listed = Vec::new();
    for file in files.iter() {
        let mut take = |rule: &Rule<'_>| {
            let canonical = parse::canonical(&rule.subject, rule.terms);
            listed.push(Listed {
                file: file.shared_name(),
                line: rule.line,
                source: Box::from(rule.source),
                canonical: (canonical != rule.source).then(|| canonical.into_boxed_str()),
                terms: rule.terms.clone(),
                owner: rule.owner.map(Box::from),
                note: rule.note.map(Box::from),
            });
            Ok(())
        };
        parse::file(file, today, &mut problems, &mut take);
    }
    problems.into_warnings().map_err(|problems| problems.report(files.dir()))?;
    Ok(listed.into_iter())
}

#[cfg(test)]
#[path = "../../../tests/it/rights.rs"]
mod rights;
#[cfg(test)]
mod tests;
