//! The files of a configuration: the one that is named, and after it those in the folder [`CONF_D`] beside it, in
//! the order of their names. What they say is merged: tables are joined, `[[…]]` are appended, and any other key may
//! be set by one file only.

use super::document::{self, Table, Value};
use super::keys::TABLES;
use super::paths::started_as;
use super::problems::Problems;
use super::table::{self, bracketed};
use super::{CONFIG_FILE, ConfigError};
use crate::diagnostic::Severity;
use crate::files::{self, Stamp, sums};
use crate::shell::quoted;
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder with further files, beside the configuration file.
const CONF_D: &str = "conf.d";
/// The largest configuration file that is read, in bytes; also the sum of those in [`CONF_D`].
const MAX_FILE: u64 = 4 << 20;
/// The most files that are read of [`CONF_D`].
const MAX_FILES: usize = 1000;

/// The files, as read.
pub(super) struct Sources {
    /// The one that is named.
    main: Source,
    /// The others, in order.
    more: Vec<Source>,
    /// What is wrong with the folder of the others.
    folder: Option<(PathBuf, String)>,
}

/// One file.
struct Source {
    path: PathBuf,
    /// The text, or why it is not used.
    text: Result<String, String>,
    /// Whether everybody may write to it.
    is_open: bool,
    meta: Option<Metadata>,
}

impl Sources {
    /// Reads the file, and the folder beside it if it exists. What is wrong with that folder is part of what
    /// [`merged`](Self::merged) reports.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] if the named file cannot be read.
    pub(super) fn read(path: &Path) -> Result<Sources, ConfigError> {
        let mut sources = Sources::read_alone(path)?;
        let folder = folder_of(path);
        match inside(&folder) {
            Ok(files) => sources.read_more(files),
            Err(why) => sources.folder = Some((folder, why)),
        }
        Ok(sources)
    }

    /// Returns the SHA-256 over names and contents: names as seen from the folder of the named file. `None` if one was
    /// not read.
    pub(super) fn sha256(&self) -> Option<String> {
        let folder = self.main.path.parent().unwrap_or(Path::new(""));
        let mut files = Vec::new();
        for source in std::iter::once(&self.main).chain(&self.more) {
            source.meta.as_ref()?;
            let name = source.path.strip_prefix(folder).unwrap_or(&source.path).to_string_lossy().into_owned();
            files.push((name, source.text.as_ref().ok()?.as_bytes()));
        }
        Some(sums::of(files.iter().map(|(name, content)| (name.as_str(), [*content]))))
    }

    /// Reads the file, whatever stands beside it.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`].
    pub(super) fn read_alone(path: &Path) -> Result<Sources, ConfigError> {
        let (text, meta) = read_file(path, MAX_FILE, Role::Named)
            .map_err(|why| ConfigError::Unreadable { path: path.to_owned(), why })?;
        let is_open = meta.mode() & 0o002 != 0;
        let main = Source { path: path.to_owned(), text: Ok(text), is_open, meta: Some(meta) };
        Ok(Sources { main, more: Vec::new(), folder: None })
    }

    /// For a text that is `path`'s, whatever stands beside it.
    pub(super) fn of(path: &Path, text: String) -> Sources {
        let main = Source { path: path.to_owned(), text: Ok(text), is_open: false, meta: None };
        Sources { main, more: Vec::new(), folder: None }
    }

    fn read_more(&mut self, files: Vec<PathBuf>) {
        let mut left = MAX_FILE;
        for path in files {
            let read = is_safe_link(&path).and_then(|()| read_file(&path, left, Role::Further));
            let (text, meta) = match read {
                Ok((text, meta)) => (flaw(&path, &meta).map_or(Ok(text), Err), Some(meta)),
                Err(why) => (Err(why), None),
            };
            left = left.saturating_sub(text.as_ref().map_or(0, |text| text.len() as u64));
            self.more.push(Source { path, text, is_open: false, meta });
        }
    }

    /// Gives a further file this text, in place of the one that was read, or takes it out.
    pub(super) fn put(&mut self, path: &Path, text: Option<&str>) {
        self.more.retain(|source| source.path != path);
        if let Some(text) = text {
            let source = Source { path: path.to_owned(), text: Ok(text.to_owned()), is_open: false, meta: None };
            self.more.push(source);
            self.more.sort_by(|one, other| one.path.cmp(&other.path));
        }
    }

    /// Returns where a key of a table is set first: the file, the line and the column, from 1.
    pub(super) fn place_of(&self, table: &str, key: &str) -> Option<(PathBuf, u32, u32)> {
        let start = |text: &str| {
            let parsed = document::parse(text, 0, &mut Problems::default());
            let table = parsed.into_iter().find(|entry| entry.key == table)?;
            let Value::Table(keys) = table.node.value else { return None };
            Some(keys.into_iter().find(|entry| entry.key == key)?.span.start)
        };
        self.find(start)
    }

    /// Returns the named file.
    pub(super) fn path(&self) -> &Path {
        &self.main.path
    }

    /// Returns the further files that are used, in order.
    pub(super) fn more(&self) -> impl Iterator<Item = &Path> {
        self.more.iter().filter(|source| source.text.is_ok()).map(|source| source.path.as_path())
    }

    /// Returns the text of all files that are used, which is that of the named file if there is no other. Of several
    /// files the comments are lost.
    pub(super) fn text(&self) -> String {
        if self.more().next().is_none() {
            return self.main.text.clone().unwrap_or_default();
        }
        let names: Vec<String> = self.used().map(|source| source.path.display().to_string()).collect();
        format!("# One file made of {}\n\n{}", names.join(", "), document::to_toml(self.merged().0))
    }

    /// Returns owner and mode of the files that are used.
    pub(super) fn metas(&self) -> impl Iterator<Item = &Metadata> {
        self.used().filter_map(|source| source.meta.as_ref())
    }

    /// Returns what all files say together, and what is wrong with the files and where they contradict each other.
    pub(super) fn merged(&self) -> (Table, Problems) {
        let mut problems = Problems::default();
        let mut merged = Table::new();
        for source in self.all() {
            let base = problems.add(&source.path, source.text.as_deref().unwrap_or_default());
            match &source.text {
                Ok(text) => {
                    if source.is_open {
                        let message = "everyone on this machine may write to this file; run `chmod o-w` on it";
                        problems.whole(Severity::Warning, base, message);
                    }
                    let parsed = document::parse(text, base, &mut problems);
                    merge(&mut merged, parsed, None, &mut problems);
                }
                Err(why) => problems.whole(Severity::Error, base, why.clone()),
            }
        }
        if let Some((folder, why)) = &self.folder {
            let base = problems.add(folder, "");
            problems.whole(Severity::Error, base, why.clone());
        }
        (merged, problems)
    }

    /// Returns the first place in the files that are used at which `search` finds something, which returns a byte
    /// offset: the file, the line and the column, from 1.
    pub(super) fn find(&self, search: impl Fn(&str) -> Option<usize>) -> Option<(PathBuf, u32, u32)> {
        self.used().find_map(|source| {
            let text = source.text.as_deref().unwrap_or_default();
            let (line, column) = Problems::new(&source.path, text).position(search(text)?);
            Some((source.path.clone(), line, column))
        })
    }

    fn all(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.main).chain(&self.more)
    }

    fn used(&self) -> impl Iterator<Item = &Source> {
        self.all().filter(|source| source.text.is_ok())
    }
}

/// Returns the folder with further files for a configuration file.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(CONF_D)
}

/// Returns what a change of the configuration changes: the stamps of the file, of the folder beside it and of what
/// is in it. Without `path`, of [`CONFIG_FILE`].
pub fn stamps(path: Option<&Path>) -> Vec<(PathBuf, Stamp)> {
    let path = path.unwrap_or(Path::new(CONFIG_FILE));
    let folder = folder_of(path);
    let inside = list(&folder).unwrap_or_default();
    let all = [path.to_owned(), folder].into_iter().chain(inside.into_iter().take(MAX_FILES));
    all.map(|path| (path.clone(), files::stamp(&path))).collect()
}

/// Returns why there is a folder with further files and no file that it stands beside, if so: what it says would be
/// ignored.
pub(super) fn orphans(path: &Path) -> Option<ConfigError> {
    let folder = folder_of(path);
    let is_used = list(&folder).is_ok_and(|files| !files.is_empty());
    let why = format!("read with {} only, which is not there; make it, it may be empty", path.display());
    is_used.then_some(ConfigError::Unreadable { path: folder, why })
}

/// Returns the files to read in a folder, in order; none if it does not exist.
fn inside(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let meta = match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        meta => meta.map_err(|error| failure(&error, Role::Further))?,
    };
    if !meta.is_dir() {
        return Err("not a folder; remove it, or make it a folder with *.toml files".to_owned());
    }
    is_safe_link(folder)?;
    if let Some(flaw) = flaw(folder, &meta) {
        return Err(flaw);
    }
    let files = list(folder).map_err(|error| failure(&error, Role::Further))?;
    if files.len() > MAX_FILES {
        return Err(format!("{} files, and at most {MAX_FILES} are read; join them", files.len()));
    }
    Ok(files)
}

/// Returns the files in a folder that are part of a configuration by their names, in order.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(is_part) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Whether a file of this name is read: not hidden, no backup of an editor or of dpkg.
fn is_part(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".") && name.ends_with(b".toml")
}

/// Returns what lets others than root, or than the user who reads, change a file or folder.
fn flaw(path: &Path, meta: &Metadata) -> Option<String> {
    let name = quoted(&path.to_string_lossy()).into_owned();
    if is_theirs(meta) {
        return Some(format!(
            "it belongs to another user, who could change the configuration; run `chown root {name}`"
        ));
    }
    let others = meta.mode() & 0o022 != 0;
    others.then(|| format!("others than its owner may write to it; run `chmod go-w {name}`"))
}

/// Refuses a symbolic link that somebody else made.
fn is_safe_link(path: &Path) -> Result<(), String> {
    let link = fs::symlink_metadata(path).map_err(|error| failure(&error, Role::Further))?;
    let name = quoted(&path.to_string_lossy()).into_owned();
    match link.is_symlink() && is_theirs(&link) {
        true => Err(format!("the link belongs to another user; run `chown -h root {name}`")),
        false => Ok(()),
    }
}

fn is_theirs(meta: &Metadata) -> bool {
    meta.uid() != 0 && meta.uid() != started_as()
}

/// Adds a file's keys to those of the files before it. `of` is the table, if it is not the top.
fn merge(into: &mut Table, from: Table, of: Option<&'static table::Table>, problems: &mut Problems) {
    for entry in from {
        let Some(first) = into.iter_mut().find(|first| first.key == entry.key) else {
            into.push(entry);
            continue;
        };
        let table = of.is_none().then(|| TABLES.iter().find(|table| table.name == entry.key)).flatten();
        match (&mut first.node.value, entry.node.value) {
            (Value::Table(one), Value::Table(other)) if of.is_none() => merge(one, other, table, problems),
            (Value::List(one), Value::List(other)) if table.is_some_and(|table| table.is_list) => one.extend(other),
            _ => {
                let place = problems.place(first.span.start, entry.span.start);
                let table = of.map(|table| format!(" in {}", bracketed(table))).unwrap_or_default();
                let remedy = "leave one of them out";
                problems.error(entry.span, format!("`{}`{table} is set in {place} as well; {remedy}", entry.key));
            }
        }
    }
}

/// What a file is, which decides what to do where it cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The one that is named.
    Named,
    /// One of [`CONF_D`], or the folder.
    Further,
}

/// Returns the text and the properties of a regular file of at most `most` bytes, or what is wrong and what to do.
fn read_file(path: &Path, most: u64, role: Role) -> Result<(String, Metadata), String> {
    let failed = |error: io::Error| failure(&error, role);
    let Some((file, meta)) = files::open_regular(path, OFlags::empty()).map_err(failed)? else {
        return Err(match role {
            Role::Named => "not a regular file; name the configuration file itself".to_owned(),
            Role::Further => "not a regular file; remove it, or rename it".to_owned(),
        });
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        let limit = MAX_FILE >> 20;
        return Err(match role {
            Role::Named => format!("larger than {limit} MiB; this cannot be a configuration file"),
            Role::Further => format!("with this file those of the folder are larger than {limit} MiB; shorten them"),
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, meta)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
            Err(format!("line {line} is not UTF-8; save the file as UTF-8"))
        }
    }
}

/// Returns an error of the system, and what to do.
fn failure(error: &io::Error, role: Role) -> String {
    let remedy = match (error.kind(), role) {
        (io::ErrorKind::NotFound, Role::Named) => "; name another file with --config",
        (io::ErrorKind::NotFound, Role::Further) => "; remove the link",
        (io::ErrorKind::PermissionDenied, _) => "; let this user read it",
        _ => "",
    };
    format!("{error}{remedy}")
}

#[cfg(test)]
mod tests;
