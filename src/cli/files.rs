//! Files that `setup` and `listen apply` write as root. No link is followed on the way to them: who may write in a folder
//! there could otherwise have root write elsewhere.

use outgate::files::replace::{Attributes, remove_leftovers, replace};
use outgate::shell::quoted;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
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
///
/// # Errors
/// One line with a remedy: a link on the way, a file system that is full or read-only. The file is as it was then.
pub(super) fn write(path: &Path, content: &Content) -> Result<(), String> {
    let (folder, name) = parts(path)?;
    let opened = make_folder(folder).map_err(|error| refused(folder, error))?;
    tidy_in(&opened, name);
    let attributes = Attributes { owner: Some((content.user, content.group)), mode: content.mode };
    replace(&at(&opened, name), content.text.as_bytes(), attributes).map_err(|error| unwritten(path, folder, &error))
}

/// Removes a file, if there is one.
///
/// # Errors
/// As [`write`] has.
pub(super) fn remove(path: &Path) -> Result<(), String> {
    let (folder, name) = parts(path)?;
    let opened = match open_folder(folder) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.map_err(|error| refused(folder, error))?,
    };
    tidy_in(&opened, name);
    // Asked first: a file system that is read-only says that, and not that there is none.
    match fs::symlink_metadata(at(&opened, name)).and_then(|_| fs::remove_file(at(&opened, name))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| unwritten(path, folder, &error)),
    }
}

/// Removes what a run that was killed left of writing this file. Callers hold a lock.
pub(super) fn tidy(path: &Path) {
    if let Ok((folder, name)) = parts(path)
        && let Ok(folder) = open_folder(folder)
    {
        tidy_in(&folder, name);
    }
}

fn tidy_in(folder: &OwnedFd, name: &Path) {
    // Nobody reads what stays.
    let _ = remove_leftovers(&at(folder, Path::new("")), |left| Path::new(left) == name);
}

/// Returns the folder and the name of a file.
fn parts(path: &Path) -> Result<(&Path, &Path), String> {
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok((folder, Path::new(name))),
        _ => Err(format!("{}: not the path of a file", path.display())),
    }
}

fn open_folder(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Opens a folder, and makes it and those above it where there is none: each in one that was opened without a link, since
/// `mkdir` follows those on the way.
fn make_folder(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let (above, name) = match (open_folder(folder), folder.parent(), folder.file_name()) {
        (Err(Errno::NOENT), Some(above), Some(name)) => (make_folder(above)?, name),
        (opened, _, _) => return opened,
    };
    let is_new = match mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => false,
        made => made.map(|()| true)?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat2(&above, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    if is_new {
        // Whatever the umask is: the daemon reads there.
        fchmod(&made, Mode::from_raw_mode(0o755))?;
    }
    Ok(made)
}

/// Says why a file could not be written, and what to do.
fn unwritten(path: &Path, folder: &Path, error: &io::Error) -> String {
    let folder = folder.to_string_lossy();
    let folder = quoted(&folder);
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("; free some space there, `df -h {folder}` shows how much there is, and run it again")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("; mount it writable, `findmnt --target {folder}` shows it, and run it again")
        }
        io::ErrorKind::IsADirectory => "; move that folder away, and run it again".to_owned(),
        io::ErrorKind::ResourceBusy => "; it is a mount point: unmount it, and run it again".to_owned(),
        io::ErrorKind::PermissionDenied => {
            format!("; `lsattr -d {folder}` shows whether files there may be changed: allow that, and run it again")
        }
        _ => String::new(),
    };
    format!("{}: {error}{remedy}", path.display())
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
        Errno::NOTDIR => format!("{}: a file is where a folder belongs; move it away", path.display()),
        error => unwritten(path, path, &io::Error::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
        // Nor what is left of a run that was killed.
        for change in [&|| write(&path, &was), &|| remove(&path)] as [&dyn Fn() -> Result<(), String>; 2] {
            fs::write(scratch.join("docker/.daemon.json.7-0.outgate-new"), "half").unwrap();
            change().unwrap();
            assert!(!scratch.join("docker/.daemon.json.7-0.outgate-new").exists());
        }
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
        // Nor where folders have to be made, or by a link to nothing.
        symlink("nowhere", scratch.join("dangling")).unwrap();
        for path in [scratch.join("folder/conf.d/f"), scratch.join("dangling/f"), scratch.join("dangling/conf.d/f")] {
            let error = write(&path, &Content::new("ours".to_owned())).unwrap_err();
            assert!(error.contains("root follows none"), "{error}");
        }
        assert!(!scratch.join("theirs/conf.d").exists() && !scratch.join("nowhere").exists());
        fs::create_dir(scratch.join("g")).unwrap();
        assert!(read(&scratch.join("g")).unwrap_err().contains("not a regular file"));
        assert!(
            write(&scratch.join("theirs/f/g"), &Content::new(String::new())).unwrap_err().contains("a file is where")
        );
    }
}
