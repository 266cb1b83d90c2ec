//! The files that setup writes as root. No link is followed on the way to them: who may write in a folder there could
//! otherwise have root write elsewhere.

use outgate::files::replace::{Attributes, replace};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The largest file that is read, in bytes.
const MOST: u64 = 4 << 20;

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) text: String,
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Content {
    /// The same file with another text.
    pub(super) fn with(&self, text: String) -> Content {
        Content { text, ..self.clone() }
    }

    /// A file of this process's user, which everybody may read.
    pub(super) fn new(text: String) -> Content {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Content { text, mode: 0o644, user, group }
    }
}

/// Reads a file; `None` if it does not exist.
///
/// # Errors
/// One line with a remedy: a link on the way, or anything but a text file of at most 4 MiB.
pub(super) fn read(path: &Path) -> Result<Option<Content>, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOENT) => return Ok(None),
        opened => File::from(opened.map_err(|error| refused(path, error))?),
    };
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(format!("{}: not a regular file; move it away", path.display()));
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST {
        return Err(format!(
            "{}: larger than {} MiB, which this file never is; move it away",
            path.display(),
            MOST >> 20
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8; save it as UTF-8", path.display()))?;
    Ok(Some(Content { text, mode: meta.mode() & 0o7777, user: meta.uid(), group: meta.gid() }))
}

/// Writes a file; makes its folder if there is none.
pub(super) fn write(path: &Path, content: &Content) -> Result<(), String> {
    let (folder, name) = within(path)?;
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let attributes = Attributes { owner: Some((content.user, content.group)), mode: content.mode };
    replace(&at(&folder, &name), content.text.as_bytes(), attributes).map_err(failed)
}

/// Removes a file, if there is one.
pub(super) fn remove(path: &Path) -> Result<(), String> {
    if !path.parent().is_some_and(Path::exists) {
        return Ok(());
    }
    let (folder, name) = within(path)?;
    match fs::remove_file(at(&folder, &name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| format!("{}: {error}", path.display())),
    }
}

/// Opens the folder of a file, and makes it if there is none; returns the file's name with it.
fn within(path: &Path) -> Result<(OwnedFd, PathBuf), String> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{}: not the path of a file", path.display()));
    };
    if !folder.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
        // Whatever the umask is: the daemon reads there.
        let made = made.and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o755)));
        made.map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    Ok((opened.map_err(|error| refused(folder, error))?, name.into()))
}

/// The path of a file in an open folder, which stays that folder whatever is done to its path.
fn at(folder: &OwnedFd, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)
}

fn refused(path: &Path, error: Errno) -> String {
    match error {
        Errno::LOOP => format!(
            "{}: it is a link, or leads over one, and root follows none to a file that it writes; put the file itself there",
            path.display()
        ),
        Errno::ACCESS => format!("{}: {}; run as root", path.display(), io::Error::from(error)),
        error => format!("{}: {}", path.display(), io::Error::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_is_read_and_written_as_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path().canonicalize().unwrap();
        let path = scratch.join("docker/daemon.json");
        assert_eq!(read(&path), Ok(None));
        remove(&path).unwrap();
        write(&path, &Content::new("{}".to_owned())).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let was = read(&path).unwrap().unwrap();
        assert_eq!((was.text.as_str(), was.mode), ("{}", 0o640));
        write(&path, &was.with("{ }".to_owned())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{ }");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        remove(&path).unwrap();
        assert_eq!(read(&path), Ok(None));
        assert_eq!(fs::read_dir(scratch.join("docker")).unwrap().count(), 0);
    }

    #[test]
    fn no_link_is_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path().canonicalize().unwrap();
        fs::create_dir(scratch.join("theirs")).unwrap();
        fs::write(scratch.join("theirs/f"), "theirs").unwrap();
        symlink("theirs", scratch.join("folder")).unwrap();
        symlink("theirs/f", scratch.join("f")).unwrap();
        for path in [scratch.join("folder/f"), scratch.join("f")] {
            assert!(read(&path).unwrap_err().contains("put the file itself there"));
        }
        let path = scratch.join("folder/f");
        assert!(write(&path, &Content::new("ours".to_owned())).unwrap_err().contains("root follows none"));
        assert!(remove(&path).unwrap_err().contains("root follows none"));
        assert_eq!(fs::read_to_string(scratch.join("theirs/f")).unwrap(), "theirs");
        fs::create_dir(scratch.join("g")).unwrap();
        assert!(read(&scratch.join("g")).unwrap_err().contains("not a regular file"));
    }
}
