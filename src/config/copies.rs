//! Copies of configurations that root keeps where the daemon cannot write: the one that `firewall apply` applied last,
//! the one with which the daemon came up last, and which interfaces any of the former named. By them a typo in the file
//! opens nobody and stops nobody, a reboot included.

use super::{CONFIG_FILE, ConfigError, Settings, Surroundings, read_file};
use crate::whitelist::replace::{Attributes, replace};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where the copies of [`CONFIG_FILE`] are.
pub const COPIES: &str = "/var/lib/outgate-host";
/// The names of guests' interfaces, one a line.
const INTERFACES: &str = "interfaces";

/// Which copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// What `firewall apply` applied last.
    Applied,
    /// With what the daemon came up last.
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
    /// What it says.
    pub settings: Settings,
    /// Where it is.
    pub path: PathBuf,
    /// The day and second on which it was made, in UTC; empty where the system does not say.
    pub made: String,
}

impl Copies {
    /// Those of the file `config`, by default [`CONFIG_FILE`], in `folder`. Without a folder there are copies of
    /// [`CONFIG_FILE`] alone.
    pub fn of(config: Option<&Path>, folder: Option<&Path>) -> Option<Copies> {
        let original = config.unwrap_or(Path::new(CONFIG_FILE));
        let folder = folder.or_else(|| (original == Path::new(CONFIG_FILE)).then_some(Path::new(COPIES)))?;
        Some(Copies { folder: folder.to_owned(), original: original.to_owned() })
    }

    /// Keeps the file from which `settings` were read.
    ///
    /// # Errors
    /// What the system says, and where the file says something else by now; the last copy stays then.
    pub fn keep(&self, copy: Copy, settings: &Settings) -> io::Result<()> {
        if !self.original.exists() {
            // What is built in needs no copy, and the file may have been lost.
            return Ok(());
        }
        let (text, writable) = read_file(&self.original).map_err(io::Error::other)?;
        let now = Settings::parse(&text, &self.original, writable, &Surroundings::of_this_process());
        if !now.is_ok_and(|(now, _)| now == *settings) {
            return Err(io::Error::other(format!("{} changed meanwhile", self.original.display())));
        }
        let meta = self.original.metadata()?;
        // Whoever may read the one may read what the daemon reads of the other.
        let attributes = match copy {
            Copy::Applied => Attributes::PRIVATE,
            Copy::Worked => {
                // A file of the daemon's own user is for its group too.
                let group = if meta.uid() == 0 { 0 } else { 0o040 };
                Attributes { owner: Some((0, meta.gid())), mode: 0o600 | (meta.mode() & 0o044) | group }
            }
        };
        self.make_folder()?;
        let path = self.folder.join(copy.file());
        replace(&path, text.as_bytes(), attributes)
    }

    /// The copy, if there is one that can be relied on.
    ///
    /// # Errors
    /// [`ConfigError`] where it cannot be read, somebody else may have written it, or this version cannot use it.
    pub fn load(&self, copy: Copy) -> Result<Option<KeptConfiguration>, ConfigError> {
        let path = self.folder.join(copy.file());
        let unreadable = |why: String| ConfigError::Unreadable { path: path.clone(), why };
        let meta = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            meta => meta.map_err(|error| unreadable(error.to_string()))?,
        };
        let folder = self.folder.metadata().map_err(|error| unreadable(error.to_string()))?;
        if !meta.is_file() || !is_roots(&folder) || meta.mode() & 0o022 != 0 {
            return Err(unreadable("others than root may have written it".to_owned()));
        }
        let (text, _) = read_file(&path)?;
        let surroundings = Surroundings::of_this_process();
        // What it says of other files is meant from where the original is.
        let (settings, problems) = Settings::parse(&text, &self.original, false, &surroundings)?;
        if problems.iter().any(super::Diagnostic::is_error) {
            return Err(ConfigError::Invalid(problems));
        }
        let made = meta.modified().ok().and_then(|made| jiff::Timestamp::try_from(made).ok());
        let made = made.map(|made| made.strftime("%F %T UTC").to_string()).unwrap_or_default();
        Ok(Some(KeptConfiguration { settings, path, made }))
    }

    /// Notes names and patterns of guests' interfaces beside those that are noted.
    ///
    /// # Errors
    /// What the system says.
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

    /// The guests' interfaces that any configuration applied named.
    pub fn interfaces(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(self.folder.join(INTERFACES)).unwrap_or_default();
        let names = text.lines().filter(|line| super::values::is_interface(line, true));
        names.map(str::to_owned).collect()
    }

    /// Was nothing applied?
    pub fn is_empty(&self) -> bool {
        !self.folder.join(Copy::Applied.file()).exists() && self.interfaces().is_empty()
    }

    /// Removes what `firewall apply` kept.
    ///
    /// # Errors
    /// What the system says.
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
            // Whatever the umask is: the daemon reads there.
            std::fs::set_permissions(&self.folder, Permissions::from_mode(0o755))?;
        }
        match is_roots(&self.folder.metadata()?) {
            true => Ok(()),
            false => {
                let why = format!("{}: others than root may write there", self.folder.display());
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
        }
    }
}

/// Root's folder, in which nobody else writes.
fn is_roots(meta: &Metadata) -> bool {
    meta.is_dir() && meta.uid() == 0 && meta.mode() & 0o022 == 0
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
