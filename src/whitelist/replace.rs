//! Replacing a file so that a reader, and a machine that loses power, finds the old content or the
//! new one whole: a temporary file beside it, fsync, rename, fsync of the dir.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How the temporary names end; a dir listing that meets one is looking at a change under way.
pub(super) const SUFFIX: &str = ".outgate-new";

/// Writes `bytes` to `path`. Mode and owner are those of `like`, or `mode` and the process's own.
/// `path` must not be a link, or the link is what gets replaced.
pub(crate) fn replace(path: &Path, bytes: &[u8], like: Option<&Metadata>, mode: u32) -> io::Result<()> {
    replace_by(path, like, mode, |file| file.write_all(bytes))
}

/// As [`replace`], with whatever `fill` writes.
pub(super) fn replace_by(
    path: &Path,
    like: Option<&Metadata>,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file");
    let (dir, name) = (path.parent().ok_or_else(missing)?, path.file_name().ok_or_else(missing)?);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".{}.{}-{count}{SUFFIX}", name.to_string_lossy(), std::process::id()));
    let result = write(&temporary, like, mode, fill).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // What went wrong first is what to report.
        let _ = fs::remove_file(&temporary);
    }
    result?;
    File::open(dir)?.sync_all()
}

fn write(
    path: &Path,
    like: Option<&Metadata>,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    fill(&mut file)?;
    if let Some(like) = like {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
    }
    let mode = like.map_or(mode, |like| like.mode() & 0o7777);
    // The running daemon has no chmod(2), and makes private files alone.
    if file.metadata()?.mode() & 0o7777 != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.sync_all()
}
