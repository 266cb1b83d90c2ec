//! Copies of configurations that root keeps where the daemon cannot write: the one that `firewall apply` applied
//! last, the one with which the daemon last started successfully, and the interfaces that any of the former named.
//! Because of them, a typo in the file neither leaves a guest unguarded nor cuts a guest off, even after a reboot.

use super::{CONFIG_FILE, ConfigError, Settings, Surroundings, read_file};
use crate::whitelist::replace::{Attributes, replace};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the copies of [`CONFIG_FILE`] are.
pub const COPIES: &str = "/var/lib/outgate-host";
/// File with the names of guests' interfaces, one a line.
const INTERFACES: &str = "interfaces";

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
        let (text, writable) = read_file(&self.original).map_err(io::Error::other)?;
        let now = Settings::parse(&text, &self.original, writable, &Surroundings::of_this_process());
        if !now.is_ok_and(|(now, _)| now == *settings) {
            return Err(io::Error::other(format!("{} changed meanwhile", self.original.display())));
        }
        let meta = self.original.metadata()?;
        // Whoever may read the original may also read the copy that the daemon reads.
        let attributes = match copy {
            Copy::Applied => Attributes::PRIVATE,
            Copy::Worked => {
                // A file of the daemon's own user is also for its group.
                let group = if meta.uid() == 0 { 0 } else { 0o040 };
                Attributes { owner: Some((0, meta.gid())), mode: 0o600 | (meta.mode() & 0o044) | group }
            }
        };
        self.make_folder()?;
        let path = self.folder.join(copy.file());
        replace(&path, text.as_bytes(), attributes)
    }

    /// Returns the copy, if there is a reliable one.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, somebody else may have written it, or this version cannot use it.
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
        let (text, _) = read_file(&path)?;
        let surroundings = Surroundings::of_this_process();
        // Relative paths in it start from the original's folder.
        let (settings, problems) = Settings::parse(&text, &self.original, false, &surroundings)?;
        if problems.iter().any(super::Diagnostic::is_error) {
            return Err(ConfigError::Invalid(problems));
        }
        let made = meta.modified().ok().and_then(|made| jiff::Timestamp::try_from(made).ok());
        let made = made.map(|made| made.strftime("%F %T UTC").to_string()).unwrap_or_default();
        Ok(Some(KeptConfiguration { settings, path, made }))
    }

    /// Adds names and patterns of guests' interfaces to the recorded ones.
    ///
    /// # Errors
    /// Those of the system.
    pub fn note_interfaces(&self, interfaces: &[String]) -> io::Result<()> {
        let mut all = self.interfaces();
        let before = all.len();
        all.extend(interfaces.iter().cloned());
        if all.len() == before {
            return Ok(());
        }
        self.make_folder()?;
        let lines: String = all.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        replace(&self.folder.join(INTERFACES), lines.as_bytes(), Attributes::PRIVATE)
    }

    /// Returns the guests' interfaces that any applied configuration named.
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
