//! What setup changed, so that it can be undone: kept by root in one file, with a version number.

use super::files::{self, Content};
use outgate::files::replace::{Attributes, replace};
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
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        replace(path, &text, Attributes::PRIVATE).map_err(failed)
    }

    /// Adds what a later run changed. What was there before the first stays what is put back.
    pub(super) fn add(&mut self, later: &Record) {
        for file in &later.files {
            match self.files.iter_mut().find(|known| known.path == file.path) {
                Some(known) => known.after.clone_from(&file.after),
                None => self.files.push(file.clone()),
            }
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

    /// Returns what setup wrote to a file last.
    pub(super) fn written(&self, path: &Path) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).and_then(|file| file.after.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(path: &str, before: Option<&str>, after: &str) -> WrittenFile {
        let before = before.map(|text| Content::new(text.to_owned()));
        WrittenFile { path: path.into(), before, after: Some(after.to_owned()) }
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
        assert_eq!(record.files, [wrote("/a", None, "two"), wrote("/b", Some("b"), "c")]);
        assert_eq!((record.enabled.len(), record.had_firewall), (1, false));
        assert_eq!(record.written(Path::new("/a")), Some("two"));

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
