//! Edits whitelist files: adds and removes a rule, keeps comments and order, holds a lock, and never writes a list
//! that `check` would refuse. A reader always finds either the whole old file or the whole new one.

use super::native::parse_line;
use super::parse::{self, Rule, canonical, lines};
use super::read::{Files, Format, SourceFile};
use super::report::{Report, quote};
use super::{Loaded, Sink, compile};
use jiff::civil::Date;
use outgate_files::diagnostic::Diagnostic;
use outgate_files::replace::{Attributes, replace};
use outgate_policy::Location;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file that [`add`] writes to.
pub const LOCAL: &str = "local.rules";

const HEADER: &str = "# Rules added on this machine with `outgate whitelist add`; edit freely.\n";
/// How long an edit waits for another edit to finish.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// What [`add`] did.
#[derive(Clone, Debug)]
pub enum Added {
    /// The rule was written to the file.
    Written {
        /// Where.
        at: Location,
        /// Warnings about the whole list.
        warnings: Vec<Diagnostic>,
    },
    /// Nothing was changed; the same rule is already here.
    Already(Location),
}

/// Why an edit was not made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The rule, or the list with it, is not valid.
    #[error("{0}")]
    Invalid(Report),
    /// The text from the command line is no rule.
    #[error("{} is not a rule{}: {message}", quote(.rule), at(*.column))]
    NotARule {
        /// The text.
        rule: String,
        /// Where it is wrong, in characters from 1; 0 if all of it is.
        column: u32,
        /// What is wrong, with the remedy.
        message: String,
    },
    /// No such rule.
    #[error("no file contains the rule {}{}", quote(.rule), also(.near))]
    NotFound {
        /// The rule that was searched for.
        rule: String,
        /// Rules for the same host with other terms, and their places.
        near: Vec<(Location, String)>,
    },
    /// The rule is only in a file that this module does not edit.
    #[error("the rule is in {0}, which is in Golem's form; edit that file, or add a `deny` rule")]
    NotEditable(Location),
    /// The file was changed by someone else while its new content was being prepared.
    #[error("{} was changed in the meantime; run this again", .0.display())]
    Changed(PathBuf),
    /// Another edit still holds the lock after `LOCK_PATIENCE`.
    #[error("another edit of {} is in progress", .0.display())]
    Busy(PathBuf),
    /// The system refused the operation.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The path concerned.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

fn at(column: u32) -> String {
    if column > 0 { format!(", from character {column}") } else { String::new() }
}

fn also(near: &[(Location, String)]) -> String {
    let near: Vec<String> =
        near.iter().map(|(at, rule)| format!("; {at} has {}, write it in full", quote(rule))).collect();
    near.concat()
}

/// Adds the rule `text` to `local.rules` in `dir`. First compiles the whole list with it into `sink`, and writes
/// nothing if that fails.
pub fn add<S: Sink>(dir: &Path, text: &str, today: Date, sink: S) -> Result<Added, EditError> {
    let text = text.trim();
    let wanted = canonical_of(text, today)?;
    let _lock = lock(dir)?;
    let mut files = Files::read(dir);
    for file in files.iter().filter(|file| file.format() == Format::Native) {
        if let Some((line, _)) = rules_of(file).find(|(_, rule)| *rule == wanted) {
            return Ok(Added::Already(Location { file: file.shared_name(), line }));
        }
    }
    let old = files.iter().find(|file| file.name() == LOCAL).map(|file| file.bytes().to_vec());
    if old.as_ref().is_some_and(|old| !old.is_empty() && !old.ends_with(b"\n")) {
        // The last line is half written: the new rule would become its end.
        compile(&files, today, Nowhere).map_err(EditError::Invalid)?;
    }
    let mut bytes = old.unwrap_or_else(|| HEADER.as_bytes().to_vec());
    let end: &[u8] = if bytes.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(end);
    let line = u32::try_from(bytes.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u32::MAX);
    files.replace(LOCAL, bytes.clone());
    let (_, Loaded { warnings, .. }) = compile(&files, today, sink).map_err(EditError::Invalid)?;
    write(&dir.join(LOCAL), &bytes)?;
    Ok(Added::Written { at: Location { file: LOCAL.into(), line }, warnings })
}

/// Removes every line of `dir`'s `*.rules` that holds the rule `text`: the same host, effect, ports and terms, in
/// any notation. Note and owner are not compared. Returns the places of the removed lines.
pub fn remove(dir: &Path, text: &str, today: Date) -> Result<Vec<Location>, EditError> {
    let text = text.trim();
    let wanted = canonical_of(text, today)?;
    let _lock = lock(dir)?;
    let files = Files::read(dir);
    let mut removed = Vec::new();
    let mut changes = Vec::new();
    for file in files.iter().filter(|file| file.format() == Format::Native) {
        let gone: Vec<u32> = rules_of(file).filter(|(_, rule)| *rule == wanted).map(|(line, _)| line).collect();
        if !gone.is_empty() {
            changes.push((dir.join(file.name()), without(file.bytes(), &gone)));
            removed.extend(gone.into_iter().map(|line| Location { file: file.shared_name(), line }));
        }
    }
    if removed.is_empty() {
        return Err(not_found(&files, text, &wanted, today));
    }
    for (path, bytes) in changes {
        write(&path, &bytes)?;
    }
    Ok(removed)
}

/// A file to be written as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// Its name in the dir.
    pub name: &'a str,
    /// Its content as far as the caller knows; `None` if there is no such file.
    pub old: Option<&'a [u8]>,
    /// Its new content.
    pub new: &'a [u8],
}

/// Writes a file if the whole list is valid with it; without `write`, only checks whether it is. A new file gets
/// the owner of its dir. Returns the warnings about the file.
pub fn put<S: Sink>(
    dir: &Path,
    file: Whole<'_>,
    write: bool,
    today: Date,
    sink: S,
) -> Result<Vec<Diagnostic>, EditError> {
    let _lock = lock(dir)?;
    let mut files = Files::read(dir);
    let path = dir.join(file.name);
    if files.iter().find(|found| found.name() == file.name).map(SourceFile::bytes) != file.old {
        return Err(EditError::Changed(path));
    }
    files.replace(file.name, file.new.to_vec());
    let (_, Loaded { warnings, .. }) = compile(&files, today, sink).map_err(EditError::Invalid)?;
    if write {
        place(dir, &path, file.new).map_err(|source| EditError::Io { path: path.clone(), source })?;
    }
    Ok(warnings.into_iter().filter(|warning| warning.file == Path::new(file.name)).collect())
}

/// Replaces a file and keeps its attributes, or creates one for the dir's owner, who could not replace root's file.
/// The attributes are set before the file has its name: the dir's owner could put a link there at any moment.
fn place(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let attributes = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Attributes::of(&meta),
        _ => {
            let dir = std::fs::metadata(dir)?;
            let for_another = rustix::process::geteuid().is_root() && dir.uid() != 0;
            Attributes { owner: for_another.then(|| (dir.uid(), dir.gid())), mode: 0o644 }
        }
    };
    replace(path, bytes, attributes)
}

/// Returns the canonical form of one rule from a command line.
fn canonical_of(text: &str, today: Date) -> Result<String, EditError> {
    let single = Files::from_memory([("rule.rules", format!("{text}\n"))]);
    let mut found = Vec::new();
    let mut problems = single.problems().clone();
    for file in single.iter() {
        parse::file(file, today, &mut problems, &mut |rule: &Rule<'_>| {
            found.push(canonical(&rule.subject, rule.terms));
            Ok(())
        });
    }
    problems.into_warnings().map_err(|problems| {
        // The file has no name that anybody knows.
        let report = problems.report(None);
        let first = report.errors().next();
        let (column, message) = first.map(|error| (error.column, error.text())).unwrap_or_default();
        EditError::NotARule { rule: text.to_owned(), column, message }
    })?;
    match (found.pop(), found.is_empty()) {
        (Some(rule), true) => Ok(rule),
        _ => Err(EditError::NotFound { rule: text.to_owned(), near: Vec::new() }),
    }
}

/// Returns the rules of a native file with their lines; skips invalid lines.
fn rules_of(file: &SourceFile) -> impl Iterator<Item = (u32, String)> {
    let text = std::str::from_utf8(file.bytes()).unwrap_or_default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    lines(text).filter_map(|(number, line)| {
        let parsed = parse_line(line).ok()??;
        Some((number, canonical(&parsed.subject.borrow(), &parsed.terms)))
    })
}

fn not_found(files: &Files, text: &str, wanted: &str, today: Date) -> EditError {
    let mut near = Vec::new();
    let mut golem = None;
    let host = |rule: &str| rule.split(' ').find(|word| *word != "deny").unwrap_or_default().to_owned();
    for file in files.iter() {
        if file.format() == Format::Native {
            let same = rules_of(file).filter(|(_, rule)| host(rule) == host(wanted));
            near.extend(same.map(|(line, rule)| (Location { file: file.shared_name(), line }, rule)));
            continue;
        }
        let mut take = |rule: &Rule<'_>| {
            if golem.is_none() && canonical(&rule.subject, rule.terms) == wanted {
                golem = Some(Location { file: file.shared_name(), line: rule.line });
            }
            Ok(())
        };
        parse::file(file, today, &mut super::report::Problems::default(), &mut take);
    }
    near.truncate(5);
    match golem {
        Some(at) => EditError::NotEditable(at),
        None => EditError::NotFound { rule: text.to_owned(), near },
    }
}

/// Returns the bytes without the lines of these numbers (ascending).
fn without(bytes: &[u8], gone: &[u32]) -> Vec<u8> {
    let mut left = Vec::with_capacity(bytes.len());
    let bom = if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let (mark, text) = bytes.split_at(bom);
    left.extend_from_slice(mark);
    for (line, number) in text.split_inclusive(|byte| *byte == b'\n').zip(1u32..) {
        if gone.binary_search(&number).is_err() {
            left.extend_from_slice(line);
        }
    }
    left
}

/// Writes through links, so that a linked file stays linked.
fn write(path: &Path, bytes: &[u8]) -> Result<(), EditError> {
    let fail = |source| EditError::Io { path: path.to_path_buf(), source };
    let (real, like) = match path.canonicalize() {
        Ok(real) => {
            let meta = std::fs::metadata(&real).map_err(fail)?;
            (real, Some(meta))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_path_buf(), None),
        Err(error) => return Err(fail(error)),
    };
    let attributes = like.as_ref().map_or(Attributes { owner: None, mode: 0o644 }, Attributes::of);
    replace(&real, bytes, attributes).map_err(fail)
}

/// Locks the dir against other edits until the returned file is dropped.
fn lock(dir: &Path) -> Result<File, EditError> {
    use rustix::fs::{FlockOperation, flock};
    let fail = |source| EditError::Io { path: dir.to_path_buf(), source };
    let file = File::open(dir).map_err(fail)?;
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(EditError::Busy(dir.to_path_buf())),
            Err(error) => return Err(fail(error.into())),
        }
    }
}

/// A sink that keeps nothing, to check whether files are valid.
pub(super) struct Nowhere;

impl Sink for Nowhere {
    type File = ();
    type Error = std::convert::Infallible;

    fn file(&mut self, _: &str) {}

    fn rule(
        &mut self,
        (): (),
        _: u32,
        _: &outgate_policy::rule::Subject<'_>,
        _: &outgate_policy::rule::Terms,
    ) -> Result<(), Self::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const TODAY: Date = Date::constant(2026, 11, 23);

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn local(dir: &tempfile::TempDir) -> String {
        std::fs::read_to_string(dir.path().join(LOCAL)).unwrap()
    }

    #[test]
    fn add_creates_local_rules_with_a_header_and_then_appends() {
        let dir = dir(&[]);
        let Added::Written { at, warnings } = add(dir.path(), "ipfs.io", TODAY, Nowhere).unwrap() else { panic!() };
        assert_eq!((at.to_string(), warnings.len()), ("local.rules:2".to_owned(), 0));
        add(dir.path(), " https://good.test note=\"why # not\"  # because", TODAY, Nowhere).unwrap();
        assert_eq!(local(&dir), format!("{HEADER}ipfs.io\nhttps://good.test note=\"why # not\"  # because\n"));
        assert_eq!(std::fs::metadata(dir.path().join(LOCAL)).unwrap().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn add_says_where_the_same_rule_stands_already() {
        let dir = dir(&[("10.rules", "# one\nIPFS.io. owner=ops # x\n")]);
        let Added::Already(at) = add(dir.path(), "ipfs.io", TODAY, Nowhere).unwrap() else { panic!() };
        assert_eq!(at.to_string(), "10.rules:2");
        assert!(!dir.path().join(LOCAL).exists());
    }

    #[test]
    fn add_refuses_what_check_refuses_and_writes_nothing() {
        let dir = dir(&[(LOCAL, "ipfs.io\n")]);
        for rule in ["*.com", "https://x.test/path", "", "# only a comment", "a.test\nb.test", "a.test\0", "x y.test"] {
            assert!(add(dir.path(), rule, TODAY, Nowhere).is_err(), "{rule:?}");
        }
        assert_eq!(local(&dir), "ipfs.io\n");
        std::fs::write(dir.path().join("other.rules"), "broken rule\n").unwrap();
        let error = add(dir.path(), "good.test", TODAY, Nowhere).unwrap_err();
        assert!(error.to_string().contains("other.rules:1:8"), "{error}");
        assert_eq!(local(&dir), "ipfs.io\n");
    }

    #[test]
    fn add_does_not_complete_a_half_written_last_line() {
        let dir = dir(&[(LOCAL, "a.test\nevil")]);
        let error = add(dir.path(), "good.test", TODAY, Nowhere).unwrap_err();
        assert!(error.to_string().contains("no newline"), "{error}");
        assert_eq!(local(&dir), "a.test\nevil");
    }

    #[test]
    fn remove_takes_the_line_and_keeps_everything_else_and_the_mode() {
        let text = "\u{feff}# head\r\n  a.test # one\r\n\r\nb.test:443 # two\r\nA.TEST. note=x\r\n# tail\r\n";
        let dir = dir(&[("x.rules", text)]);
        let path = dir.path().join("x.rules");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let removed = remove(dir.path(), "a.test", TODAY).unwrap();
        assert_eq!(removed.iter().map(|at| at.line).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "\u{feff}# head\r\n\r\nb.test:443 # two\r\n# tail\r\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn remove_of_a_rule_with_other_terms_names_the_near_one() {
        let dir = dir(&[("x.rules", "a.test until=2027-01-31\n")]);
        let error = remove(dir.path(), "a.test", TODAY).unwrap_err().to_string();
        assert!(error.contains("x.rules:1 has `a.test until=2027-01-31`"), "{error}");
        assert_eq!(remove(dir.path(), "a.test until=2027-01-31", TODAY).unwrap().len(), 1);
    }

    #[test]
    fn remove_does_not_edit_golems_files() {
        let dir = dir(&[("strict.lst", "b.test\na.test\n")]);
        let error = remove(dir.path(), "a.test", TODAY).unwrap_err();
        assert!(matches!(&error, EditError::NotEditable(at) if at.to_string() == "strict.lst:2"), "{error}");
    }

    #[test]
    fn a_linked_file_stays_linked() {
        let dir = dir(&[]);
        let elsewhere = tempfile::tempdir().unwrap();
        let real = elsewhere.path().join("shared.rules");
        std::fs::write(&real, "a.test\n").unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join(LOCAL)).unwrap();
        add(dir.path(), "b.test", TODAY, Nowhere).unwrap();
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "a.test\nb.test\n");
        assert!(dir.path().join(LOCAL).symlink_metadata().unwrap().is_symlink());
    }

    #[test]
    fn edits_at_the_same_time_all_arrive() {
        let dir = dir(&[]);
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = dir.path();
                scope.spawn(move || add(path, &format!("host{number}.test"), TODAY, Nowhere).unwrap());
            }
        });
        assert_eq!(local(&dir).lines().count(), 9);
    }

    #[test]
    fn a_whole_file_is_put_only_over_what_was_expected_and_into_a_sound_list() {
        let dir = dir(&[(LOCAL, "ipfs.io\n")]);
        let path = dir.path().join("own.lst");
        let put = |old: Option<&[u8]>, new: &[u8], write| {
            super::put(dir.path(), Whole { name: "own.lst", old, new }, write, TODAY, Nowhere)
        };
        put(None, b"a.test\n", false).unwrap();
        assert!(!path.exists(), "it was a look");
        assert!(put(None, b"a.test\n\n", true).unwrap()[0].message.contains("blank line"));
        assert!(matches!(put(None, b"b.test\n", true), Err(EditError::Changed(_))));
        assert!(matches!(put(Some(b"other"), b"b.test\n", true), Err(EditError::Changed(_))));
        assert!(matches!(put(Some(b"a.test\n\n"), b"b.test", true), Err(EditError::Invalid(_))));
        put(Some(b"a.test\n\n"), b"b.test\n", true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "b.test\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        std::fs::write(dir.path().join(LOCAL), "broken rule\n").unwrap();
        assert!(matches!(put(Some(b"b.test\n"), b"c.test\n", true), Err(EditError::Invalid(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "b.test\n");
    }

    #[test]
    #[ignore = "requires root"]
    fn what_root_puts_belongs_to_the_owner_of_the_dir() {
        crate::rights::require();
        let dir = dir(&[]);
        std::os::unix::fs::chown(dir.path(), Some(4321), Some(4322)).unwrap();
        put(dir.path(), Whole { name: "own.lst", old: None, new: b"a.test\n" }, true, TODAY, Nowhere).unwrap();
        let meta = std::fs::metadata(dir.path().join("own.lst")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (4321, 4322, 0o644));
    }

    #[test]
    fn bytes_without_lines_are_the_other_lines() {
        assert_eq!(without(b"a\nb\r\nc\n", &[2]), b"a\nc\n");
        assert_eq!(without(b"a\n", &[1]), b"");
    }
}
