//! Reads files from disk: which files of a dir belong to the list, whether they may be trusted, and their bytes,
//! all as of one moment. The parsers interpret the content. Problems found here are kept with the set, so that
//! they are reported together with those of the parsers.

use super::report::Problems;
use outgate_files::diagnostic::Severity;
use outgate_files::{Stamp, open_regular, stamp};
use outgate_files::{replace, sums};
use outgate_golem::rules as provider;
use outgate_policy::cooperate;
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::fmt;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file, in bytes.
pub const MAX_FILE: u64 = 64 << 20;
/// The largest set, in bytes.
pub const MAX_TOTAL: u64 = 256 << 20;
/// The most files in a set.
pub const MAX_FILES: usize = 4096;
/// How often a dir is read again because it changed in the meantime.
const ATTEMPTS: usize = 3;

/// SHA-256 over the names and contents of a set of files.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub(super) [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The format of a file, determined by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `*.rules`.
    Native,
    /// `*.lst`: hosts.
    Strict,
    /// `*regex*.lst`.
    Regex,
    /// `*.json`.
    Json,
    /// A Golem provider's `rules.json`, which contains no hosts.
    ProviderRules,
}

impl Format {
    /// Returns the format of a file called `name`, or `None` if it is not part of a list.
    pub(super) fn of(name: &str) -> Option<Format> {
        if name.starts_with('.') || name.starts_with('#') {
            return None;
        }
        match name.rsplit_once('.')?.1 {
            "rules" => Some(Format::Native),
            "lst" if name.contains("regex") => Some(Format::Regex),
            "lst" => Some(Format::Strict),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// One file: its name within the dir, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    name: Arc<str>,
    format: Format,
    bytes: Vec<u8>,
}

impl SourceFile {
    /// Returns `None` if a file of that name is not part of a list. A name that is a whole path belongs to a file
    /// of a provider's data dir.
    pub(super) fn new(name: &str, bytes: Vec<u8>) -> Option<SourceFile> {
        let format = match name.rsplit_once('/') {
            Some((_, provider::RULES)) => Format::ProviderRules,
            Some((_, file)) => Format::of(file)?,
            None => Format::of(name)?,
        };
        Some(SourceFile { name: Arc::from(name), format, bytes })
    }

    /// The name within the dir.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }
}

/// A set of whitelist files in name order, and the problems found while reading them.
#[derive(Clone, Debug, Default)]
pub struct Files {
    dir: Option<PathBuf>,
    files: Vec<SourceFile>,
    problems: Problems,
}

impl Files {
    /// Reads the files of `dir`, or takes the shipped ones if there is no dir, and adds those of a Golem
    /// provider's data dir.
    pub fn of(dir: Option<&Path>, data_dir: Option<&Path>) -> Files {
        let mut files = dir.map_or_else(Files::shipped, Files::read);
        if let Some(data_dir) = data_dir {
            files.read_provider(data_dir);
        }
        files
    }

    /// Returns an empty set.
    pub fn none() -> Files {
        Files { dir: None, files: Vec::new(), problems: Problems::default() }
    }

    /// Adds list and rules of a data dir. If one of them is missing, yagna continues without it.
    fn read_provider(&mut self, data_dir: &Path) {
        // Its files are named by their whole path, which must not be mistaken for one within the whitelist dir.
        let absolute = std::path::absolute(data_dir);
        let data_dir = absolute.as_deref().unwrap_or(data_dir);
        let checked = match data_dir.metadata() {
            Ok(meta) if meta.is_dir() => check_dir(&meta),
            _ => {
                let remedy = "correct [golem].data_dir, or let the daemon's user search it";
                Err(Unreadable { message: "there is no such data dir".to_owned(), remedy })
            }
        };
        if let Err(refused) = checked {
            let name: Arc<str> = Arc::from(data_dir.to_string_lossy());
            return self.problems.whole(&name, Severity::Error, refused.message, refused.remedy);
        }
        for path in provider::files(data_dir).into_iter().filter(|path| path.symlink_metadata().is_ok()) {
            self.read_also(&path);
        }
    }

    /// Returns the provider's rules, if there are any.
    pub fn outbound(&self) -> Option<provider::Outbound> {
        let rules = self.files.iter().find(|file| file.format == Format::ProviderRules)?;
        // A set with broken rules is not compiled.
        Some(provider::Outbound::parse(&rules.bytes).unwrap_or_else(|_| provider::Outbound::closed()))
    }

    /// Reads the files of `dir`. Never fails: anything that could not be read is an error of the set, and is
    /// reported when the set is compiled.
    ///
    /// A dir that changes while it is read is read again, so that links swapped all at once are seen either all
    /// before or all after the swap.
    pub fn read(dir: &Path) -> Files {
        let mut stamp = FolderStamp::of(dir);
        let mut files = read_once(dir);
        for _ in 1..ATTEMPTS {
            let after = FolderStamp::of(dir);
            if after == stamp {
                break;
            }
            stamp = after;
            files = read_once(dir);
        }
        files
    }

    /// Builds a set from memory; files without a whitelist file name are left out.
    pub fn from_memory<N: AsRef<str>, B: Into<Vec<u8>>>(files: impl IntoIterator<Item = (N, B)>) -> Files {
        let files = files.into_iter().filter_map(|(name, bytes)| SourceFile::new(name.as_ref(), bytes.into()));
        Files::from_sources(files.collect())
    }

    /// Builds a set of these files.
    pub(super) fn from_sources(mut files: Vec<SourceFile>) -> Files {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Files { files, ..Files::default() }
    }

    /// Adds a file from elsewhere (Golem's data dir) with the same checks; it is named by its whole path.
    pub fn read_also(&mut self, path: &Path) {
        let name = path.to_string_lossy();
        match read_file(path, MAX_FILE).map(|bytes| SourceFile::new(&name, bytes)) {
            Ok(Some(file)) => self.files.push(file),
            Ok(None) => {
                let message = "a whitelist file is named *.rules, *.lst or *.json".to_owned();
                self.problems.whole(&Arc::from(name), Severity::Error, message, "rename it");
            }
            Err(refused) => self.problems.whole(&Arc::from(name), Severity::Error, refused.message, refused.remedy),
        }
    }

    /// Returns the dir that the files come from.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The files in name order.
    pub fn iter(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter()
    }

    /// Returns the number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns whether the set has no files.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Returns a hash that is equal for equal sets, unreadable files included.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut part = |bytes: &[u8]| {
            hash.update(&bytes.len().to_le_bytes());
            cooperate::pieces(bytes).for_each(|piece| hash.update(piece));
        };
        for file in &self.files {
            part(file.name.as_bytes());
            part(&file.bytes);
        }
        part(self.problems.clone().report(None).to_string().as_bytes());
        let mut fingerprint = [0; 32];
        for (to, from) in fingerprint.iter_mut().zip(hash.finish().as_ref()) {
            *to = *from;
        }
        Fingerprint(fingerprint)
    }

    /// Returns the SHA-256 over names and contents, in hexadecimal, that an operator can compute as well: it is that of
    /// what sha256sum(1) prints for the files in this order.
    pub fn sha256(&self) -> String {
        sums::of(self.files.iter().map(|file| (&*file.name, cooperate::pieces(&file.bytes))))
    }

    pub(super) fn problems(&self) -> &Problems {
        &self.problems
    }

    /// Replaces the content of the file `name`, or adds the file.
    pub(super) fn replace(&mut self, name: &str, bytes: Vec<u8>) {
        match self.files.iter_mut().find(|file| &*file.name == name) {
            Some(file) => file.bytes = bytes,
            None => self.files.extend(SourceFile::new(name, bytes)),
        }
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

/// What stat(2) reports for a dir and everything in it, with links followed. It changes whenever files are
/// written, replaced, added, removed or linked elsewhere. Cheap enough to take every second or two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FolderStamp(Vec<(PathBuf, Stamp)>);

impl FolderStamp {
    /// Of a single file.
    pub(super) fn of_file(path: &Path) -> FolderStamp {
        FolderStamp(vec![(path.to_path_buf(), stamp(path))])
    }

    /// Of a dir.
    pub(super) fn of(path: &Path) -> FolderStamp {
        let mut entries = vec![(path.to_path_buf(), stamp(path))];
        if let Ok(list) = std::fs::read_dir(path) {
            for entry in list.flatten().take(MAX_FILES) {
                let path = entry.path();
                let stamp = stamp(&path);
                entries.push((path, stamp));
            }
        }
        entries.sort();
        FolderStamp(entries)
    }
}

fn read_once(dir: &Path) -> Files {
    let mut set = Files { dir: Some(dir.to_path_buf()), ..Files::default() };
    let whole: Arc<str> = Arc::from(dir.to_string_lossy());
    let names = match listing(dir) {
        Ok(names) => names,
        Err(refused) => {
            set.problems.whole(&whole, Severity::Error, refused.message, refused.remedy);
            return set;
        }
    };
    if names.len() > MAX_FILES {
        let message = format!("the dir holds more than {MAX_FILES} files");
        set.problems.whole(&whole, Severity::Error, message, "join them, or move others elsewhere");
        return set;
    }
    let mut left = MAX_TOTAL;
    for name in names {
        read_entry(dir, &name, &mut left, &mut set);
    }
    set
}

/// Endings that dpkg(1), ucf(1) and rpm(8) give to versions of a file that are not in force. Nobody has to do anything
/// about them.
const LEFT_BY_PACKAGES: [&str; 11] = [
    ".dpkg-dist",
    ".dpkg-old",
    ".dpkg-new",
    ".dpkg-tmp",
    ".dpkg-bak",
    ".dpkg-remove",
    ".ucf-dist",
    ".ucf-old",
    ".rpmnew",
    ".rpmsave",
    ".rpmorig",
];

/// Reads one entry of the dir into the set, or records why it is left out.
fn read_entry(dir: &Path, name: &OsStr, left: &mut u64, set: &mut Files) {
    let shown: Arc<str> = Arc::from(name.to_string_lossy());
    let path = dir.join(name);
    let Some(format) = name.to_str().and_then(Format::of) else {
        // A Kubernetes volume keeps its generations in dot directories; they are there on purpose.
        let is_dir = path.is_dir();
        let is_left_over = |ending: &&str| shown.ends_with(*ending);
        let expected = (is_dir && shown.starts_with('.'))
            || shown.ends_with(replace::SUFFIX)
            || (!is_dir && LEFT_BY_PACKAGES.iter().any(is_left_over));
        if !expected {
            let message = if is_dir { "a directory is not read" } else { "skipped, not a whitelist file" };
            let remedy = "whitelist files are named *.rules, *.lst or *.json, without a dot in front";
            set.problems.whole(&shown, Severity::Warning, message.to_owned(), remedy);
        }
        return;
    };
    match read_file(&path, MAX_FILE.min(*left)) {
        Ok(bytes) => {
            *left = left.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            set.files.push(SourceFile { name: shown, format, bytes });
        }
        Err(refused) => set.problems.whole(&shown, Severity::Error, refused.message, refused.remedy),
    }
}

/// Why something is not read.
struct Unreadable {
    message: String,
    remedy: &'static str,
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => "let the daemon's user read it",
            io::ErrorKind::NotFound => "create it, or correct the path or link",
            _ => "",
        };
        Unreadable { message: format!("cannot be read: {error}"), remedy }
    }
}

/// Returns the names in `dir`, sorted; if there are too many, one more than the bound.
fn listing(dir: &Path) -> Result<Vec<std::ffi::OsString>, Unreadable> {
    let meta = std::fs::metadata(dir)?;
    if !meta.is_dir() {
        return Err(Unreadable { message: "is not a directory".to_owned(), remedy: "put the files into one" });
    }
    check_dir(&meta)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)?.take(MAX_FILES + 1) {
        names.push(entry?.file_name());
    }
    names.sort();
    Ok(names)
}

/// Reads a regular file that others cannot write, at most `limit` bytes.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Unreadable> {
    let Some((mut file, meta)) = open_regular(path, OFlags::empty())? else {
        let message = "is not a regular file".to_owned();
        return Err(Unreadable { message, remedy: "remove it, or give it another name" });
    };
    check(&meta, limit)?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default().saturating_add(1));
    let mut left = limit.saturating_add(1);
    while left > 0 {
        let read = Read::by_ref(&mut file).take(left.min(cooperate::PIECE as u64)).read_to_end(&mut bytes)?;
        if read == 0 {
            break;
        }
        left = left.saturating_sub(read as u64);
        cooperate::piece();
    }
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(too_big());
    }
    Ok(bytes)
}

/// Checks that nobody else may put files there.
fn check_dir(meta: &Metadata) -> Result<(), Unreadable> {
    if meta.mode() & 0o002 == 0 {
        return Ok(());
    }
    let message = "the dir is writable by other users, who could add rules".to_owned();
    Err(Unreadable { message, remedy: "chmod o-w it" })
}

fn check(meta: &Metadata, limit: u64) -> Result<(), Unreadable> {
    if meta.mode() & 0o002 != 0 {
        let message = "is writable by other users, who could add rules".to_owned();
        return Err(Unreadable { message, remedy: "chmod o-w it" });
    }
    if meta.len() > limit {
        return Err(too_big());
    }
    Ok(())
}

fn too_big() -> Unreadable {
    let message =
        format!("is too big: a file has at most {} MiB, the whole list {} MiB", MAX_FILE >> 20, MAX_TOTAL >> 20);
    Unreadable { message, remedy: "shorten it" }
}
