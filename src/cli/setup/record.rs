//! What setup changed, so that it can be undone: kept by root in one file, with a version number.

use super::files::{self, Content};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The version of the form. A program that finds a later one changes nothing.
const VERSION: u32 = 1;

/// What was changed since setup ran first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// Whether there was a firewall before.
    pub(super) had_firewall: bool,
    /// Files that setup wrote, in that order.
    pub(super) files: Vec<WrittenFile>,
    /// Drop-ins that it moved away.
    pub(super) moved: Vec<MovedFile>,
    /// Units that it enabled.
    pub(super) enabled: Vec<String>,
    /// Units that it started.
    pub(super) started: Vec<String>,
    /// Units that it disabled.
    pub(super) disabled: Vec<String>,
}

/// A file that setup wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WrittenFile {
    pub(super) path: PathBuf,
    /// What was there; `None` if it did not exist.
    pub(super) before: Option<Content>,
    /// What setup wrote; `None` if it removed the file.
    pub(super) after: Option<String>,
    /// What an earlier run wrote, which is still there if the last run was killed before it wrote the file. Absent in
    /// records of before there was this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) earlier: Option<String>,
    /// Whether its folder did not exist before.
    #[serde(default)]
    pub(super) made_folder: bool,
}

impl WrittenFile {
    /// Whether setup wrote this; `None` if the file does not exist.
    pub(super) fn is_ours(&self, text: Option<&str>) -> bool {
        text == self.after.as_deref() || (text.is_some() && text == self.earlier.as_deref())
    }

    /// Whether this was there before setup ran; `None` if the file does not exist.
    pub(super) fn is_before(&self, text: Option<&str>) -> bool {
        text == self.before.as_ref().map(|content| content.text.as_str())
    }
}

/// A file that setup moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MovedFile {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
}

impl Record {
    /// Of a run that changed nothing yet.
    pub(super) fn new(had_firewall: bool) -> Record {
        let (files, moved, enabled, started, disabled) = Default::default();
        Record { version: VERSION, had_firewall, files, moved, enabled, started, disabled }
    }

    /// Reads it; `None` if setup changed nothing.
    ///
    /// # Errors
    /// One line with a remedy if it cannot be read, or a later version wrote it.
    pub(super) fn read(path: &Path) -> Result<Option<Record>, String> {
        let Some(content) = files::read(path)? else { return Ok(None) };
        let unreadable = |why: &str| {
            format!("{}: {why}; what it says was changed is to be undone by hand, then remove it", path.display())
        };
        let value: serde_json::Value =
            serde_json::from_str(&content.text).map_err(|error| unreadable(&format!("not JSON: {error}")))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) if version > u64::from(VERSION) => {
                return Err(format!(
                    "{}: a later outgate wrote it (version {version}, this one knows {VERSION}); run that one",
                    path.display()
                ));
            }
            _ => return Err(unreadable("it has no version")),
        }
        serde_json::from_value(value).map(Some).map_err(|error| unreadable(&error.to_string()))
    }

    /// Writes it, for root alone.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| format!("{}: {error}", path.display()))?;
        files::write(path, &Content { mode: 0o600, ..Content::new(text) })
    }

    /// Adds what a later run changes. What was there before the first stays what is put back, unless somebody else wrote
    /// the file in between: then it is what he wrote.
    pub(super) fn add(&mut self, later: &Record) {
        for file in &later.files {
            let Some(known) = self.files.iter_mut().find(|known| known.path == file.path) else {
                self.files.push(file.clone());
                continue;
            };
            let found = file.before.as_ref().map(|content| content.text.as_str());
            if known.is_ours(found) {
                known.earlier = found.map(str::to_owned);
            } else {
                known.earlier = None;
                known.before.clone_from(&file.before);
            }
            known.after.clone_from(&file.after);
            known.made_folder |= file.made_folder;
        }
        self.moved.extend(later.moved.iter().cloned());
        let units = [
            (&mut self.enabled, &later.enabled),
            (&mut self.started, &later.started),
            (&mut self.disabled, &later.disabled),
        ];
        for (known, more) in units {
            let new: Vec<String> = more.iter().filter(|unit| !known.contains(unit)).cloned().collect();
            known.extend(new);
        }
    }

    /// Returns what setup did to a file.
    pub(super) fn of(&self, path: &Path) -> Option<&WrittenFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(path: &str, before: Option<&str>, after: &str) -> WrittenFile {
        let before = before.map(|text| Content::new(text.to_owned()));
        WrittenFile { path: path.into(), before, after: Some(after.to_owned()), earlier: None, made_folder: false }
    }

    /// A run that was killed left what was there before it, which setup still knows.
    #[test]
    fn a_run_that_wrote_nothing_leaves_a_file_of_setups() {
        let mut record = Record::new(false);
        for (before, after) in [(None, "one"), (Some("one"), "two"), (Some("one"), "three")] {
            let mut run = Record::new(false);
            run.files.push(wrote("/a", before, after));
            record.add(&run);
            for (text, is_ours) in [(Some(after), true), (before, before.is_some()), (Some("mine"), false)] {
                assert_eq!(record.of(Path::new("/a")).unwrap().is_ours(text), is_ours, "{text:?} after {after}");
            }
            assert!(record.files[0].is_before(None), "{record:?}");
        }
    }

    #[test]
    fn what_the_operator_wrote_in_between_is_what_is_put_back() {
        let mut record = Record::new(false);
        for (before, after) in [(Some("{}"), "dns"), (Some("mine"), "mine, dns")] {
            let mut run = Record::new(false);
            run.files.push(wrote("/a", before, after));
            record.add(&run);
        }
        assert_eq!(record.files, [wrote("/a", Some("mine"), "mine, dns")]);
    }

    #[test]
    fn what_was_there_first_is_what_is_put_back() {
        let mut record = Record::new(false);
        let mut first = Record::new(false);
        first.files.push(wrote("/a", None, "one"));
        first.enabled.push("u.service".to_owned());
        record.add(&first);
        let mut second = Record::new(true);
        second.files = vec![wrote("/a", Some("one"), "two"), wrote("/b", Some("b"), "c")];
        second.enabled.push("u.service".to_owned());
        record.add(&second);
        let a = WrittenFile { earlier: Some("one".to_owned()), ..wrote("/a", None, "two") };
        assert_eq!(record.files, [a, wrote("/b", Some("b"), "c")]);
        assert_eq!((record.enabled.len(), record.had_firewall), (1, false));
        assert_eq!(record.of(Path::new("/a")).and_then(|file| file.after.as_deref()), Some("two"));

        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().canonicalize().unwrap().join("state/setup.json");
        assert_eq!(Record::read(&path), Ok(None));
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path), Ok(Some(record)));
        let text = std::fs::read_to_string(&path).unwrap();
        // packaging/debian/postrm looks for a file in this form.
        assert!(text.contains("\n      \"path\": \"/a\",\n"), "{text}");
        for (text, wanted) in [
            (
                text.replace("\"version\": 1", "\"version\": 2"),
                "a later outgate wrote it (version 2, this one knows 1)",
            ),
            (text.replace("\"version\": 1,", ""), "it has no version"),
            (text.get(..20).unwrap().to_owned(), "not JSON"),
            (text.replace("\"moved\": [],", ""), "missing field `moved`"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Record::read(&path).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
