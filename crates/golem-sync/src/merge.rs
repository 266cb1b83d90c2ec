//! Merges lists to the entries of one file, in ya-provider's own format, and compares them with the file of the
//! last time. A file that was not written by this command, or was edited since, is treated as foreign. Nothing is
//! written here.

use super::{Gathered, List, Origin, SyncError};
use jiff::civil::Date;
use outgate_golem::rules::Matching;
use outgate_whitelist::Files;
use outgate_whitelist::read::MAX_FILE;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The name of the file in the whitelist dir.
pub const FILE: &str = "golem-published.json";

/// A host or a regex.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// As published.
    pub domain: String,
    /// Its kind.
    #[serde(default, rename = "match")]
    pub matching: Matching,
}

/// Identifies a file that was written by this command. Readers of the list ignore it.
#[derive(Serialize, Deserialize)]
struct Mark {
    sources: Vec<Origin>,
    /// Hash of the entries, so that an edit is detected.
    entries_sha256: String,
}

#[derive(Deserialize)]
struct Document {
    published_by_sync: Mark,
    patterns: Vec<Entry>,
}

/// The file of the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its entries.
    pub entries: Vec<Entry>,
}

/// The effect of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// In the order in which they are published.
    pub added: Vec<Entry>,
    /// In their previous order.
    pub removed: Vec<Entry>,
}

impl Change {
    /// Returns whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// Returns the entries of all lists: hosts, then regexes, as published, each once.
///
/// # Errors
/// [`SyncError::Invalid`] with every problem of every list, and [`SyncError::Empty`].
pub fn entries(gathered: &Gathered, today: Date) -> Result<Vec<Entry>, SyncError> {
    let lists = gathered.lists.iter().map(|list| (list.name.as_str(), list.text.as_slice()));
    let files = Files::from_memory(lists);
    let listed: Vec<_> = outgate_whitelist::list(&files, today).map_err(SyncError::Invalid)?.collect();
    let (regexes, hosts): (Vec<&List>, Vec<&List>) =
        gathered.lists.iter().partition(|list| outgate_whitelist::is_of_regexes(&list.name));
    let (mut seen, mut entries) = (HashSet::new(), Vec::new());
    for (lists, matching) in [(hosts, Matching::Strict), (regexes, Matching::Regex)] {
        for list in lists {
            for rule in listed.iter().filter(|rule| *rule.file == *list.name) {
                let entry = Entry { domain: rule.source.to_string(), matching };
                if seen.insert(entry.clone()) {
                    entries.push(entry);
                }
            }
        }
    }
    if entries.is_empty() { Err(SyncError::Empty) } else { Ok(entries) }
}

/// Reads the file of the last time, if there is one.
///
/// # Errors
/// [`SyncError::NotOurs`] for a file that was not written by this command, or was edited, and [`SyncError::Io`].
pub fn current(dir: &Path) -> Result<Option<Current>, SyncError> {
    let path = dir.join(FILE);
    let failed = |source| SyncError::Io { path: path.clone(), source };
    let meta = match fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let not_ours = |why| SyncError::NotOurs { path: path.clone(), why };
    let foreign = "was not written by `outgate golem sync` and is left alone; give it another name that ends in .json, \
                   or remove it, and run this again";
    if !meta.is_file() {
        return Err(not_ours(foreign));
    }
    let mut bytes = Vec::new();
    File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)).map_err(failed)?;
    let Ok(Document { published_by_sync: mark, patterns }) = serde_json::from_slice(&bytes) else {
        return Err(not_ours(foreign));
    };
    if mark.entries_sha256 != digest(&patterns) {
        return Err(not_ours(
            "was edited since `outgate golem sync` wrote it, and is left alone; put rules of your own into another file \
             (`outgate whitelist add`, `deny` for what you do not want), remove this one, and run this again",
        ));
    }
    Ok(Some(Current { bytes, entries: patterns }))
}

/// Returns what `entries` change, unless they remove many of the entries in force and `shrink` does not allow
/// that.
///
/// # Errors
/// [`SyncError::Shrunk`].
pub fn change(current: Option<&Current>, entries: &[Entry], shrink: bool) -> Result<Change, SyncError> {
    let old = current.map(|current| current.entries.as_slice()).unwrap_or_default();
    let [had, has] = [old, entries].map(|entries| entries.iter().collect::<HashSet<&Entry>>());
    let added = entries.iter().filter(|entry| !had.contains(entry)).cloned().collect();
    let removed: Vec<Entry> = old.iter().filter(|entry| !has.contains(entry)).cloned().collect();
    if shrink {
        return Ok(Change { added, removed });
    }
    if removed.len() > old.len() / 2 {
        let (lost, all) = (removed.len(), old.len());
        return Err(SyncError::Shrunk(format!("the new list lacks {lost} of the {all} entries in force")));
    }
    for matching in [Matching::Strict, Matching::Regex] {
        let any = |entries: &[Entry]| entries.iter().any(|entry| entry.matching == matching);
        if any(old) && !any(entries) {
            let kind = matching.as_str();
            return Err(SyncError::Shrunk(format!(
                "the new list has no {kind} entries, and the list in force has some"
            )));
        }
    }
    Ok(Change { added, removed })
}

/// Checks the new entries for regexes that match names of unrelated owners, each with an example.
///
/// # Errors
/// [`SyncError::Wide`], if there are any.
pub fn narrow(change: &Change) -> Result<(), SyncError> {
    let regexes = change.added.iter().filter(|entry| entry.matching == Matching::Regex);
    let wide: Vec<String> = regexes
        .filter_map(|entry| {
            Some(format!("the new regex {:?} {}", entry.domain, outgate_whitelist::breadth(&entry.domain)?))
        })
        .collect();
    if wide.is_empty() { Ok(()) } else { Err(SyncError::Wide(wide)) }
}

/// Returns the content of a file with these entries, one a line.
///
/// # Errors
/// None known; a library makes the text.
pub fn render(origins: &[Origin], entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mark = Mark { sources: origins.to_vec(), entries_sha256: digest(entries) };
    let mut text = format!("{{\"published_by_sync\":{},\n\"patterns\":[\n", serde_json::to_string(&mark)?);
    for (index, entry) in entries.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { ",\n" });
        text.push_str(&serde_json::to_string(entry)?);
    }
    text.push_str("\n]}\n");
    Ok(text.into_bytes())
}

/// Returns how many of the entries a provider's own list lacks; `None` if the list cannot be read.
pub fn unknown_to_provider(list: &Path, entries: &[Entry]) -> Option<usize> {
    #[derive(Default, Deserialize)]
    struct Patterns {
        patterns: Vec<Entry>,
    }
    let known: Patterns = match outgate_golem::rules::read(list).ok()? {
        Some(bytes) => serde_json::from_slice(&bytes).ok()?,
        None => Patterns::default(),
    };
    let known: HashSet<&Entry> = known.patterns.iter().collect();
    Some(entries.iter().filter(|entry| !known.contains(entry)).count())
}

fn digest(entries: &[Entry]) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for entry in entries {
        // No entry contains a line break.
        for part in [entry.matching.as_str(), " ", &entry.domain, "\n"] {
            hash.update(part.as_bytes());
        }
    }
    outgate_golem::hex(hash.finish().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Date = Date::constant(2026, 11, 23);

    fn gathered(lists: &[(&str, &str)]) -> Gathered {
        let lists = lists.iter().map(|(name, text)| List { name: (*name).into(), text: text.as_bytes().to_vec() });
        Gathered { origins: Vec::new(), lists: lists.collect() }
    }

    fn words(entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|entry| format!("{} {}", entry.matching.as_str(), entry.domain)).collect()
    }

    fn hosts(names: &[&str]) -> Vec<Entry> {
        names.iter().map(|name| Entry { domain: (*name).into(), matching: Matching::Strict }).collect()
    }

    fn holding(entries: Vec<Entry>) -> Current {
        Current { bytes: Vec::new(), entries }
    }

    #[test]
    fn entries_keep_the_order_of_the_lists_and_come_once() {
        let gathered = gathered(&[
            ("z/regex.lst", "^b\\.test$\n^a\\.test$\n"),
            ("z/strict.lst", "b.test\n10.0.0.1\nb.test\nA.test\n"),
            ("https://regex.test/y.tgz/strict.lst", "c.test\nb.test\n"),
        ]);
        let found = entries(&gathered, TODAY).unwrap();
        let wanted = [
            "strict b.test",
            "strict 10.0.0.1",
            "strict A.test",
            "strict c.test",
            "regex ^b\\.test$",
            "regex ^a\\.test$",
        ];
        assert_eq!(words(&found), wanted);
    }

    #[test]
    fn every_problem_is_named_with_its_place() {
        let gathered =
            gathered(&[("x/strict.lst", "a.test\n*.b.test\nc\u{1b}[2J.test\n"), ("x/regex.lst", "^a$\n(\n\n")]);
        let error = entries(&gathered, TODAY).unwrap_err().to_string();
        for place in ["x/strict.lst:3:2: ", "x/regex.lst:2:", "x/regex.lst:3:1: "] {
            assert!(error.lines().any(|line| line.starts_with(place)), "{place}: {error}");
        }
        assert!(!error.contains('\u{1b}'));
    }

    #[test]
    fn lists_without_entries_are_refused() {
        for lists in [&[][..], &[("strict.lst", "")], &[("strict.lst", "\n\n"), ("regex.lst", "")]] {
            assert!(matches!(entries(&gathered(lists), TODAY), Err(SyncError::Empty)), "{lists:?}");
        }
    }

    #[test]
    fn what_takes_much_away_needs_a_word() {
        let current = holding(hosts(&["a", "b", "c", "d"]));
        let with = |names: &[&str], shrink| change(Some(&current), &hosts(names), shrink);
        let changed = with(&["e", "c", "d"], false).unwrap();
        assert_eq!(
            (words(&changed.added), words(&changed.removed)),
            (vec!["strict e".into()], vec!["strict a".into(), "strict b".into()])
        );
        let error = with(&["d", "e", "f", "g"], false).unwrap_err().to_string();
        assert!(error.contains("lacks 3 of the 4 entries") && error.contains("--allow-shrink"), "{error}");
        assert_eq!(with(&["d"], true).unwrap().removed.len(), 3);
        assert!(with(&["d", "c", "b", "a"], false).unwrap().is_empty(), "order alone changes nothing");
        assert_eq!(change(None, &hosts(&["a"]), false).unwrap().added.len(), 1);
    }

    #[test]
    fn a_kind_that_is_gone_altogether_needs_a_word() {
        let mut both = hosts(&["a", "b", "c"]);
        both.push(Entry { domain: "^d$".into(), matching: Matching::Regex });
        let error = change(Some(&holding(both)), &hosts(&["a", "b", "c"]), false).unwrap_err().to_string();
        assert!(error.contains("no regex entries"), "{error}");
    }

    #[test]
    fn a_file_is_known_again_and_the_whitelist_reads_it_without_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(current(dir.path()).unwrap(), None);
        let mut all = hosts(&["a.test", "10.0.0.1"]);
        all.push(Entry { domain: r"^geth[0-9]*\.golem\.network$".into(), matching: Matching::Regex });
        let origins = [Origin { from: "https://a.test/\"x\".tgz".into(), sha256: "00".into() }];
        let bytes = render(&origins, &all).unwrap();
        fs::write(dir.path().join(FILE), &bytes).unwrap();
        assert_eq!(current(dir.path()).unwrap().unwrap(), Current { bytes: bytes.clone(), entries: all.clone() });
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.lines().nth(2), Some(r#"{"domain":"a.test","match":"strict"},"#));
        let (_, loaded) = outgate_whitelist::build(&Files::read(dir.path()), TODAY).unwrap();
        assert_eq!((loaded.rules, loaded.warnings), (3, vec![]));
        assert_eq!(unknown_to_provider(&dir.path().join(FILE), &all), Some(0));
        assert_eq!(unknown_to_provider(&dir.path().join("none.json"), &all), Some(3));
    }

    #[test]
    fn a_file_of_somebody_elses_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let ours = String::from_utf8(render(&[], &hosts(&["a.test", "b.test"])).unwrap()).unwrap();
        for (text, why) in [
            (r#"{"patterns":[{"domain":"mine.test"}]}"#.to_owned(), "was not written by"),
            ("a.test\n".to_owned(), "was not written by"),
            (String::new(), "was not written by"),
            (ours.replace("b.test", "c.test"), "was edited"),
            (ours.replace("\"strict\"}\n", "\"regex\"}\n"), "was edited"),
        ] {
            fs::write(&path, &text).unwrap();
            let error = current(dir.path()).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(FILE), "{text}: {error}");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(matches!(current(dir.path()), Err(SyncError::NotOurs { .. })));
    }
}
