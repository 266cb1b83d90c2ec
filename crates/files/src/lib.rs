//! Files that the operator writes: how they are opened, how a change is noticed, how they are replaced, what is wrong
//! with them, and how the commands that repair it are quoted.

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::restriction,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "a test that panics fails, as it should"
    ),
    warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)
)]

pub mod diagnostic;
pub mod replace;
pub mod shell;
pub mod sums;
pub mod version;

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens a regular file for reading. Returns it with its properties, or `None` if it is something else, such as a
/// folder, a socket, or a FIFO, for whose writer it does not wait. `more` are further flags of open(2).
///
/// # Errors
/// Those of open(2) and fstat(2).
pub fn open_regular(path: &Path, more: OFlags) -> io::Result<Option<(File, Metadata)>> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | more;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        // A socket, or a device without a driver.
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(None),
        opened => opened?,
    };
    let meta = file.metadata()?;
    Ok(meta.is_file().then_some((file, meta)))
}

/// The stat(2) values of a file, with links followed: device, inode, size, mode, and the times of the last change of
/// its content and of its inode in seconds and nanoseconds. They differ when the file was replaced or changed.
/// `None` if stat(2) fails.
pub type Stamp = Option<[i64; 8]>;

/// Returns the current stamp of the file at `path`.
pub fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some([
        meta.dev().cast_signed(),
        meta.ino().cast_signed(),
        meta.size().cast_signed(),
        meta.mode().into(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, mknodat};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_regular_file_is_opened_and_anything_else_is_told_apart_at_once() {
        let folder = std::env::temp_dir().join(format!("outgate-open-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        std::fs::write(path("file"), "four").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        let open = |name: &str| open_regular(&path(name), OFlags::empty()).unwrap();
        for name in ["file", "link"] {
            assert_eq!(open(name).unwrap().1.len(), 4, "{name}");
        }
        for name in ["fifo", "socket", "."] {
            assert!(open(name).is_none(), "{name}");
        }
        let missing = open_regular(&path("none"), OFlags::empty()).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_stamp_differs_when_the_file_was_written_or_replaced_and_only_then() {
        let path = std::env::temp_dir().join(format!("outgate-stamp-{}", std::process::id()));
        assert_eq!(stamp(&path), None);
        std::fs::write(&path, "one").unwrap();
        let first = stamp(&path);
        assert_eq!(first, stamp(&path));
        std::fs::write(&path, "two!").unwrap();
        let second = stamp(&path);
        assert_ne!(first, second, "another size");
        let other = path.with_extension("new");
        std::fs::write(&other, "two!").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(second, stamp(&path), "another file");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(stamp(&path), None);
    }
}
