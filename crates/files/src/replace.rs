//! Replaces a file so that a reader, or a machine that loses power, finds either the whole old content or the
//! whole new one: a temporary file beside it, fsync, rename, fsync of the dir.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Suffix of the temporary names; in a dir listing it marks a change in progress.
pub const SUFFIX: &str = ".outgate-new";

/// Owner and permissions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// User and group; `None` for the process's own.
    pub owner: Option<(u32, u32)>,
    /// As chmod(2) expects it.
    pub mode: u32,
}

impl Attributes {
    /// The process's own, with no access for others.
    pub const PRIVATE: Attributes = Attributes { owner: None, mode: 0o600 };

    /// Returns those of a file.
    pub fn of(meta: &Metadata) -> Attributes {
        Attributes { owner: Some((meta.uid(), meta.gid())), mode: meta.mode() & 0o7777 }
    }
}

/// Writes `bytes` to `path`. If `path` is a link, the link itself is replaced.
pub fn replace(path: &Path, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
    replace_by(path, attributes, |file| file.write_all(bytes))
}

/// Like [`replace`], with the content that `fill` writes.
pub fn replace_by(
    path: &Path,
    attributes: Attributes,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file");
    let (dir, name) = (path.parent().ok_or_else(missing)?, path.file_name().ok_or_else(missing)?);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".{}.{}-{count}{SUFFIX}", name.to_string_lossy(), std::process::id()));
    let result = write(&temporary, attributes, fill).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // Report the first error, not that of the removal.
        let _ = fs::remove_file(&temporary);
    }
    result?;
    File::open(dir)?.sync_all()
}

fn write(path: &Path, attributes: Attributes, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    fill(&mut file)?;
    let own = file.metadata()?;
    if let Some((user, group)) = attributes.owner.filter(|owner| *owner != (own.uid(), own.gid())) {
        fchown(&file, Some(user), Some(group))?;
    }
    // The running daemon may not call chmod(2); it only creates private files.
    if own.mode() & 0o7777 != attributes.mode {
        file.set_permissions(Permissions::from_mode(attributes.mode))?;
    }
    file.sync_all()
}
