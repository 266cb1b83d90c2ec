//! A configuration before it is written: the files as they are, except one of the folder `conf.d`, which has another
//! content or does not exist.

use super::paths::Surroundings;
use super::sources::Sources;
use super::{CONFIG_FILE, ConfigError, Settings};
use crate::diagnostic::Diagnostic;
use std::path::{Path, PathBuf};

/// The files of a configuration, of which one may be replaced in memory.
pub struct Trial {
    sources: Sources,
}

/// Where a key is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlace {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

impl Trial {
    /// Reads the configuration at `path`, by default [`CONFIG_FILE`], and the folder beside it.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] if there is no such file or it cannot be read.
    pub fn read(path: Option<&Path>) -> Result<Trial, ConfigError> {
        Ok(Trial { sources: Sources::read(path.unwrap_or(Path::new(CONFIG_FILE)))? })
    }

    /// Gives a file of the folder `conf.d` this text, or takes it out, in memory alone.
    pub fn put(&mut self, file: &Path, text: Option<&str>) {
        self.sources.put(file, text);
    }

    /// Returns what the files would mean. Problems of every kind are beside the settings.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if a file is not even TOML.
    pub fn load(&self) -> Result<(Settings, Vec<Diagnostic>), ConfigError> {
        Settings::parse(&self.sources, &Surroundings::of_this_process())
    }

    /// Returns where the files set `key` of `table`; `None` if none does.
    pub fn place_of(&self, table: &str, key: &str) -> Option<KeyPlace> {
        let (file, line, column) = self.sources.place_of(table, key)?;
        Some(KeyPlace { file, line, column })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_tried_without_being_written() {
        let scratch = tempfile::tempdir().unwrap();
        let main = scratch.path().join("main.toml");
        fs::write(&main, "[firewall]\n  guest_interfaces = [\"tap7\"]\n").unwrap();
        let folder = scratch.path().join("conf.d");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let (tried, other) = (folder.join("50-setup.toml"), folder.join("90-log.toml"));
        fs::write(&other, "[limits]\nconnections = 9\n").unwrap();
        fs::set_permissions(&other, Permissions::from_mode(0o644)).unwrap();
        let mut trial = Trial::read(Some(&main)).unwrap();
        // No listener that these guests reach.
        assert!(trial.load().unwrap().1.iter().any(Diagnostic::is_error));
        trial.put(&tried, Some("[listen]\ntransparent = [\"0.0.0.0:3129\"]\n"));
        let (settings, problems) = trial.load().unwrap();
        assert!(!problems.iter().any(Diagnostic::is_error), "{problems:?}");
        assert_eq!((settings.listen.transparent.len(), settings.limits.connections), (1, Some(9)));
        assert_eq!(settings.more, [tried.clone(), other]);
        assert!(!tried.exists());
        let at = trial.place_of("firewall", "guest_interfaces").unwrap();
        assert_eq!(at, KeyPlace { file: main, line: 2, column: 3 });
        assert_eq!(trial.place_of("listen", "transparent").unwrap().file, tried);
        assert_eq!(trial.place_of("listen", "dns"), None);
        trial.put(&tried, None);
        assert_eq!(trial.place_of("listen", "transparent"), None);
    }
}
