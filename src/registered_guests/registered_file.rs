//! Registered guests on disk: one file in a folder of the daemon's own beside its control socket. If that is below
//! /run, the file is lost when the machine stops, and so are the guests.

use super::Registered;
use crate::files;
use crate::files::replace::{Attributes, replace};
use crate::files::version::LaterVersion;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Name of the file in the folder.
const FILE_NAME: &str = "guests.json";
/// The version of its form.
const VERSION: u64 = 1;
/// The largest file, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Why registered guests are not available.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file cannot be read.
    #[error("{}: the guests that were registered cannot be read: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else may have written the file.
    #[error("{}: is not the daemon's own file; remove it and register its guests again", .0.display())]
    Foreign(PathBuf),
    /// The file contains something that was never registered.
    #[error("{}: {why}; remove it and register its guests again", path.display())]
    Unsound {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A later version wrote it.
    #[error(transparent)]
    Later(#[from] LaterVersion),
    /// The file is damaged.
    #[error("{}: the guests that were registered cannot be read: {source}; remove it and register them again", path.display())]
    Form {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl KeepError {
    /// Returns whether this user may not read it.
    pub fn is_permission(&self) -> bool {
        matches!(self, KeepError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Returns the folder that belongs to a control socket.
pub fn folder(control: &Path) -> PathBuf {
    let mut name = control.as_os_str().to_owned();
    name.push(".guests");
    PathBuf::from(name)
}

/// Returns the error for a file that is not a valid set of guests.
pub(super) fn unsound(folder: &Path, why: String) -> KeepError {
    KeepError::Unsound { path: folder.join(FILE_NAME), why }
}

/// The content of the file. Before version 1 it was the list of guests alone.
#[derive(Serialize)]
struct Written<'g> {
    version: u64,
    guests: &'g [&'g Registered],
}

/// What is read of it first.
#[derive(Deserialize)]
struct Head {
    version: u64,
}

/// What is read then.
#[derive(Deserialize)]
struct Content {
    guests: Vec<Registered>,
}

/// Reads the guests that were kept; none if there is no file.
pub(super) fn restore(folder: &Path) -> Result<Vec<Registered>, KeepError> {
    let path = folder.join(FILE_NAME);
    let failed = |source| KeepError::Io { path: path.clone(), source };
    let opened = match files::open_regular(&path, OFlags::NOFOLLOW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    let Some((file, meta)) = opened else { return Err(KeepError::Foreign(path)) };
    if !is_ours(&meta, folder).map_err(failed)? {
        return Err(KeepError::Foreign(path));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    let form = |source| KeepError::Form { path: path.clone(), source };
    if bytes.trim_ascii_start().starts_with(b"[") {
        return serde_json::from_slice(&bytes).map_err(form);
    }
    // Of a later version nothing else is known.
    let head: Head = serde_json::from_slice(&bytes).map_err(form)?;
    let remedy = "install that version again, or remove the file and register its guests again";
    LaterVersion::check(&path, head.version, VERSION, remedy)?;
    let content: Content = serde_json::from_slice(&bytes).map_err(form)?;
    Ok(content.guests)
}

/// Returns whether only this user, or the owner of the folder that holds the socket, can have written it. Root
/// reads it for that owner.
fn is_ours(file: &Metadata, folder: &Path) -> io::Result<bool> {
    let folder_meta = folder.symlink_metadata()?;
    let above = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.metadata()?,
        _ => Path::new(".").metadata()?,
    };
    let mut owners = [rustix::process::geteuid().as_raw(), above.uid()].into_iter();
    let owned = folder_meta.is_dir() && file.uid() == folder_meta.uid() && owners.any(|owner| owner == file.uid());
    let closed = (file.mode() | folder_meta.mode()) & 0o022 == 0;
    let kept = above.mode() & 0o1002 != 0o0002;
    Ok(owned && closed && kept)
}

/// Saves these guests and no others.
pub(super) fn save(folder: &Path, guests: &[&Registered]) -> io::Result<()> {
    let bytes = serde_json::to_vec(&Written { version: VERSION, guests }).map_err(io::Error::from)?;
    // A file that cannot be read again would prevent the next daemon from starting.
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    if !is_ours(&folder.symlink_metadata()?, folder)? {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "other users may write in the folders above"));
    }
    replace(&folder.join(FILE_NAME), &bytes, Attributes::PRIVATE)
}
