//! Copies of configurations that root keeps where the daemon cannot write: the one that `firewall apply` applied
//! last, the one with which the daemon last started successfully, and the interfaces that any of the former named.
//! Because of them, a typo in the file neither leaves a guest unguarded nor cuts a guest off, even after a reboot.

use super::sources::Sources;
use super::{CONFIG_FILE, ConfigError, Settings, Surroundings};
use crate::diagnostic::Diagnostic;
use crate::files::replace::{Attributes, replace};
use crate::files::version::{LaterVersion, of_first_line};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the copies of [`CONFIG_FILE`] are.
pub const COPIES: &str = "/var/lib/outgate-host";
/// File with the names of guests' interfaces, one a line.
const INTERFACES: &str = "interfaces";

/// First line of that file, before the version of its form. Before version 1 there was none.
const INTERFACES_NAME: &str = "# outgate, guests' interfaces, version ";
const INTERFACES_VERSION: u64 = 1;
/// Last line of a copy, before the version of its form: there, lines keep their numbers. Before version 1 there was none.
const COPY_NAME: &str = "# A copy that outgate keeps, version ";
const COPY_VERSION: u64 = 1;

/// Selects a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The configuration that `firewall apply` applied last.
    Applied,
    /// The configuration with which the daemon last started successfully.
    Worked,
}

impl Copy {
    const fn file(self) -> &'static str {
        match self {
            Copy::Applied => "applied.toml",
            Copy::Worked => "worked.toml",
        }
    }
}

/// The copies of one configuration file.
#[derive(Clone, Debug)]
pub struct Copies {
    folder: PathBuf,
    original: PathBuf,
}

/// A copy that was read.
#[derive(Debug)]
pub struct KeptConfiguration {
    /// Its settings.
    pub settings: Settings,
    /// Its path.
    pub path: PathBuf,
    /// When it was made, to the second, in UTC; empty if the system does not report it.
    pub made: String,
}

impl Copies {
    /// Returns the copies of the file `config`, by default [`CONFIG_FILE`], in `folder`. Without a folder, only
    /// [`CONFIG_FILE`] has copies.
    pub fn of(config: Option<&Path>, folder: Option<&Path>) -> Option<Copies> {
        let original = config.unwrap_or(Path::new(CONFIG_FILE));
        let folder = folder.or_else(|| (original == Path::new(CONFIG_FILE)).then_some(Path::new(COPIES)))?;
        Some(Copies { folder: folder.to_owned(), original: original.to_owned() })
    }

    /// Copies the file from which `settings` were read.
    ///
    /// # Errors
    /// Those of the system, and if the content of the file has changed since; the last copy is then kept.
    pub fn keep(&self, copy: Copy, settings: &Settings) -> io::Result<()> {
        if !self.original.exists() {
            // The built-in configuration needs no copy, and the file may have been lost.
            return Ok(());
        }
        let sources = Sources::read(&self.original).map_err(io::Error::other)?;
        let surroundings = Surroundings::of_this_process();
        let is_same = |sources: &Sources| {
            let read = Settings::parse(sources, &surroundings);
            // A copy of several files is one file.
            read.is_ok_and(|(read, problems)| {
                !problems.iter().any(Diagnostic::is_error)
                    && Settings { more: settings.more.clone(), sha256: settings.sha256.clone(), ..read } == *settings
            })
        };
        let text = sources.text();
        let is_whole = settings.more.iter().map(PathBuf::as_path).eq(sources.more());
        if !is_whole || !is_same(&sources) || !is_same(&Sources::of(&self.original, text.clone())) {
            return Err(io::Error::other(format!("{} changed meanwhile", self.original.display())));
        }
        let attributes = match copy {
            Copy::Applied => Attributes::PRIVATE,
            Copy::Worked => readers(sources.metas())?,
        };
        self.make_folder()?;
        let path = self.folder.join(copy.file());
        let line_end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        replace(&path, format!("{text}{line_end}{COPY_NAME}{COPY_VERSION}\n").as_bytes(), attributes)
    }

    /// Returns the copy, if there is a reliable one.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, somebody else may have written it, a later version wrote it, or this one
    /// cannot use it.
    pub fn load(&self, copy: Copy) -> Result<Option<KeptConfiguration>, ConfigError> {
        let path = self.folder.join(copy.file());
        let unreadable = |why: String| ConfigError::Unreadable { path: path.clone(), why };
        let meta = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            meta => meta.map_err(|error| unreadable(error.to_string()))?,
        };
        let folder = self.folder.metadata().map_err(|error| unreadable(error.to_string()))?;
        if !meta.is_file() || !is_roots(&folder) || meta.mode() & 0o022 != 0 {
            return Err(unreadable("users other than root may have written it".to_owned()));
        }
        let text = Sources::read_alone(&path)?.text();
        let remedy = "correct the configuration itself, or install that version again";
        let last = text.lines().next_back().map(|line| format!("{line}\n")).unwrap_or_default();
        let version = of_first_line(last.as_bytes(), COPY_NAME.as_bytes()).unwrap_or(COPY_VERSION);
        LaterVersion::check(&path, version, COPY_VERSION, remedy).map_err(ConfigError::Later)?;
        let surroundings = Surroundings::of_this_process();
        // Relative paths in it start from the original's folder.
        let (settings, problems) = Settings::parse(&Sources::of(&self.original, text), &surroundings)?;
        if problems.iter().any(Diagnostic::is_error) {
            return Err(ConfigError::Invalid(problems));
        }
        let made = meta.modified().ok().and_then(|made| jiff::Timestamp::try_from(made).ok());
        let made = made.map(|made| made.strftime("%F %T UTC").to_string()).unwrap_or_default();
        Ok(Some(KeptConfiguration { settings, path, made }))
    }

    /// Adds names and patterns of guests' interfaces to the recorded ones.
    ///
    /// # Errors
    /// Those of the system, and if a later version wrote them: what it recorded would be lost.
    pub fn note_interfaces(&self, interfaces: &[String]) -> io::Result<()> {
        self.interfaces_version().map_err(io::Error::other)?;
        let mut all = self.interfaces();
        all.extend(interfaces.iter().cloned());
        let names: String = all.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        let text = format!("{INTERFACES_NAME}{INTERFACES_VERSION}\n{names}");
        let path = self.folder.join(INTERFACES);
        if all.is_empty() || std::fs::read(&path).is_ok_and(|kept| kept == text.as_bytes()) {
            return Ok(());
        }
        self.make_folder()?;
        replace(&path, text.as_bytes(), Attributes::PRIVATE)
    }

    /// Checks the version of the recorded interfaces.
    ///
    /// # Errors
    /// If a later version wrote them.
    pub fn interfaces_version(&self) -> Result<(), LaterVersion> {
        let path = self.folder.join(INTERFACES);
        let bytes = std::fs::read(&path).unwrap_or_default();
        let version = of_first_line(&bytes, INTERFACES_NAME.as_bytes()).unwrap_or(INTERFACES_VERSION);
        let remedy = "remove it, then run `outgate firewall apply`";
        LaterVersion::check(&path, version, INTERFACES_VERSION, remedy)
    }

    /// Returns the guests' interfaces that any applied configuration named. Of a later version, the lines that are
    /// names: they are closed, which opens nobody.
    pub fn interfaces(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(self.folder.join(INTERFACES)).unwrap_or_default();
        let names = text.lines().filter(|line| super::values::is_interface(line, true));
        names.map(str::to_owned).collect()
    }

    /// Returns whether nothing was applied.
    pub fn is_empty(&self) -> bool {
        !self.folder.join(Copy::Applied.file()).exists() && self.interfaces().is_empty()
    }

    /// Removes what `firewall apply` kept.
    ///
    /// # Errors
    /// Those of the system.
    pub fn forget_applied(&self) -> io::Result<()> {
        self.forget(Copy::Applied)?;
        gone(std::fs::remove_file(self.folder.join(INTERFACES)))
    }

    fn forget(&self, copy: Copy) -> io::Result<()> {
        gone(std::fs::remove_file(self.folder.join(copy.file())))
    }

    fn make_folder(&self) -> io::Result<()> {
        if !self.folder.exists() {
            DirBuilder::new().recursive(true).mode(0o755).create(&self.folder)?;
            // Independent of the umask, because the daemon reads there.
            std::fs::set_permissions(&self.folder, Permissions::from_mode(0o755))?;
        }
        match is_roots(&self.folder.metadata()?) {
            true => Ok(()),
            false => {
                let why = format!("{}: users other than root may write there", self.folder.display());
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
        }
    }
}

/// Returns the attributes of a copy for the daemon: anyone who may read each of the originals may also read it.
///
/// # Errors
/// If some originals are for one group and others for another, since a file has one group.
fn readers<'m>(originals: impl Iterator<Item = &'m Metadata>) -> io::Result<Attributes> {
    let (open, closed): (Vec<_>, Vec<_>) = originals.partition(|meta| meta.mode() & 0o004 != 0);
    // Those for everybody restrict nothing, unless there are no others.
    let deciding = if closed.is_empty() { open } else { closed };
    let mode = deciding.iter().fold(0o044, |mode, meta| {
        // A file of the daemon's own user is also for its group.
        let group = if meta.uid() == 0 { 0 } else { 0o040 };
        mode & (meta.mode() | group)
    });
    let group = deciding.first().map_or(0, |meta| meta.gid());
    if mode == 0o040 && deciding.iter().any(|meta| meta.gid() != group) {
        let why = "its files are for different groups, and a copy is for one; give them the same group";
        return Err(io::Error::other(why));
    }
    Ok(Attributes { owner: Some((0, group)), mode: 0o600 | mode })
}

/// Returns whether this is root's folder, in which nobody else can write.
fn is_roots(meta: &Metadata) -> bool {
    meta.is_dir() && meta.uid() == 0 && meta.mode() & 0o022 == 0
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
