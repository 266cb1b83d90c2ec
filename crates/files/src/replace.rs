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
    // As `replaced_name` reads it.
    let temporary = dir.join(format!(".{}.{}-{count}{SUFFIX}", name.to_string_lossy(), std::process::id()));
    let result = write(&temporary, attributes, fill).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // Report the first error, not that of the removal.
        let _ = fs::remove_file(&temporary);
    }
    result?;
    File::open(dir)?.sync_all()
}

/// Removes temporary files that a process which was killed left in a folder, for files whose names `is_one` accepts. For
/// callers that hold a lock, since another process may be about to rename such a file.
///
/// # Errors
/// Those of readdir(3) and unlink(2).
pub fn remove_leftovers(folder: &Path, is_one: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().and_then(replaced_name).is_some_and(&is_one) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Returns the name of the file that a temporary file was to replace.
fn replaced_name(temporary: &str) -> Option<&str> {
    let (name, numbers) = temporary.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    let (process, count) = numbers.split_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(process) && is_number(count)).then_some(name)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("outgate-leftovers-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let file = folder.join("a.toml");
        // What a process leaves that is killed before it renames.
        let left = std::cell::RefCell::new(Vec::new());
        let failed = replace_by(&file, Attributes::PRIVATE, |out| {
            out.write_all(b"half")?;
            let entry = fs::read_dir(&folder)?.next().unwrap()?;
            left.borrow_mut().push(entry.file_name());
            Err(io::ErrorKind::Other.into())
        });
        assert!(failed.is_err() && fs::read_dir(&folder).unwrap().count() == 0);
        let left = left.into_inner().pop().unwrap();
        let kept = ["a.toml", ".b.toml.7-0.outgate-new", ".a.toml.7.outgate-new", ".a.toml.x-0.outgate-new"];
        for name in kept {
            fs::write(folder.join(name), "kept").unwrap();
        }
        fs::write(folder.join(&left), "half").unwrap();
        remove_leftovers(&folder, |name| name == "a.toml").unwrap();
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let mut kept = kept.map(std::ffi::OsString::from);
        names.sort();
        kept.sort();
        assert_eq!(names, kept);
        fs::remove_dir_all(&folder).unwrap();
    }
}
