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

use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file for reading, without waiting for a writer if it is a FIFO (open(2)). `more` are further flags. The
/// caller checks what kind of file it is.
pub fn open_at_once(path: &Path, more: OFlags) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | more;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
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
