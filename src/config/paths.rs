//! Default places of the control socket, the state and the configuration file. Root and system services use those
//! of the file-system hierarchy; everybody else uses those of the XDG base directories.

use rustix::fs::OFlags;
use std::env;
use std::ffi::OsString;
use std::fs::{DirBuilder, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The configuration file that is read if none is named.
pub const CONFIG_FILE: &str = "/etc/outgate/outgate.toml";
/// The whitelist dir if none is named.
pub const WHITELIST_DIR: &str = "/etc/outgate/whitelist";
/// The control socket of a daemon that runs as a system service.
pub const SYSTEM_CONTROL: &str = "/run/outgate/control.sock";
/// The state dir of a daemon that runs as a system service.
pub const SYSTEM_STATE: &str = "/var/lib/outgate";

/// Properties of the process that determine the places.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) uid: u32,
    pub(super) runtime_directory: Option<PathBuf>,
    pub(super) state_directory: Option<PathBuf>,
    pub(super) xdg_runtime_dir: Option<PathBuf>,
    pub(super) xdg_state_home: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
}

/// The places that apply if the configuration names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) control: PathBuf,
    pub(super) state: PathBuf,
}

impl Surroundings {
    /// Returns those of this process. Relative paths in the XDG variables are ignored, as the XDG base directory
    /// specification requires.
    pub(super) fn of_this_process() -> Surroundings {
        Surroundings {
            uid: started_as(),
            runtime_directory: first_path(env::var_os("RUNTIME_DIRECTORY")),
            state_directory: first_path(env::var_os("STATE_DIRECTORY")),
            xdg_runtime_dir: first_path(env::var_os("XDG_RUNTIME_DIR")),
            xdg_state_home: first_path(env::var_os("XDG_STATE_HOME")),
            home: first_path(env::var_os("HOME")),
        }
    }

    /// Returns the places; `system` if the system's own configuration file is in use, so that every user who looks
    /// for the daemon finds it at the same socket.
    pub(super) fn places(&self, system: bool) -> Places {
        if self.uid == 0 || system {
            return Places { control: self.control_or(SYSTEM_CONTROL), state: self.state_or(SYSTEM_STATE) };
        }
        let runtime = match &self.xdg_runtime_dir {
            Some(dir) => dir.join("outgate"),
            None => PathBuf::from(format!("/tmp/outgate-{}", self.uid)),
        };
        let state = match (&self.xdg_state_home, &self.home) {
            (Some(dir), _) => dir.join("outgate"),
            (None, Some(home)) => home.join(".local/state/outgate"),
            (None, None) => runtime.join("state"),
        };
        Places { control: self.control_or(runtime.join("control.sock")), state: self.state_or(state) }
    }

    /// Returns the socket in systemd's RuntimeDirectory=, which has precedence over every other default.
    fn control_or(&self, otherwise: impl Into<PathBuf>) -> PathBuf {
        self.runtime_directory.as_ref().map_or_else(|| otherwise.into(), |dir| dir.join("control.sock"))
    }

    fn state_or(&self, otherwise: impl Into<PathBuf>) -> PathBuf {
        self.state_directory.clone().unwrap_or_else(|| otherwise.into())
    }
}

/// Returns the user as whom this process first asked. A daemon that becomes another user later (`run --user`)
/// keeps its places, also at a reload.
pub(super) fn started_as() -> u32 {
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| rustix::process::geteuid().as_raw())
}

/// Creates a directory with `mode`, its parents included, or checks that an existing one is safe. A directory
/// created here is given to `owner`, a user and a group.
///
/// # Errors
/// Those of mkdir(2), and [`io::ErrorKind::PermissionDenied`] if somebody else could swap its contents: it is not
/// a directory, has an owner other than this user, `owner` or root, or is writable by everybody without the sticky
/// bit.
pub(super) fn make_safe(dir: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        // The owner has to traverse the parents, which remain root's.
        let above = if owner.is_some() { 0o755 } else { mode };
        DirBuilder::new().recursive(true).mode(above).create(parent)?;
    }
    match (DirBuilder::new().mode(mode).create(dir), owner) {
        (Ok(()), Some(owner)) => give(dir, owner)?,
        (Err(error), _) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let uid = owner.map_or_else(|| rustix::process::geteuid().as_raw(), |(uid, _)| uid);
    let link = std::fs::symlink_metadata(dir)?;
    match flaw(&link, &std::fs::metadata(dir)?, uid) {
        Some(flaw) => Err(io::Error::new(io::ErrorKind::PermissionDenied, flaw)),
        None => Ok(()),
    }
}

/// Changes the owner of a directory, through an open descriptor and never through a link: the directory under this
/// name may have been swapped.
fn give(dir: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let flags = i32::try_from((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits()).unwrap_or(0);
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(dir)?;
    fchown(dir, Some(uid), Some(gid))
}

/// Returns whether everybody may swap the contents of this directory. Does not check whether it belongs to
/// somebody else.
pub(super) fn is_open(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|found| found.is_dir() && found.mode() & 0o1002 == 0o002)
}

/// Returns what lets somebody else swap the contents of a directory; `link` is the directory entry itself.
fn flaw(link: &Metadata, found: &Metadata, uid: u32) -> Option<&'static str> {
    let theirs = |entry: &Metadata| entry.uid() != uid && entry.uid() != 0;
    if !found.is_dir() {
        return Some("it is not a directory");
    }
    if theirs(link) || theirs(found) {
        return Some("it belongs to another user");
    }
    (found.mode() & 0o1002 == 0o002).then_some("it is writable by everybody")
}

/// Returns the first path of a variable, if absolute; systemd separates several with colons.
fn first_path(value: Option<OsString>) -> Option<PathBuf> {
    let value = value?;
    env::split_paths(&value).next().filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Surroundings {
        Surroundings {
            uid: 1000,
            xdg_runtime_dir: Some("/run/user/1000".into()),
            xdg_state_home: Some("/home/u/state".into()),
            home: Some("/home/u".into()),
            ..Surroundings::default()
        }
    }

    fn places(surroundings: &Surroundings, system: bool) -> (String, String) {
        let places = surroundings.places(system);
        (places.control.display().to_string(), places.state.display().to_string())
    }

    fn pair(control: &str, state: &str) -> (String, String) {
        (control.to_owned(), state.to_owned())
    }

    #[test]
    fn root_and_the_system_configuration_have_the_system_places() {
        let system = pair("/run/outgate/control.sock", "/var/lib/outgate");
        assert_eq!(places(&Surroundings { uid: 0, ..user() }, false), system);
        assert_eq!(places(&user(), true), system);
    }

    #[test]
    fn users_have_the_xdg_places_and_their_fallbacks() {
        assert_eq!(places(&user(), false), pair("/run/user/1000/outgate/control.sock", "/home/u/state/outgate"));
        let bare = Surroundings { xdg_runtime_dir: None, xdg_state_home: None, ..user() };
        assert_eq!(places(&bare, false), pair("/tmp/outgate-1000/control.sock", "/home/u/.local/state/outgate"));
        let homeless = Surroundings { home: None, ..bare };
        assert_eq!(places(&homeless, false), pair("/tmp/outgate-1000/control.sock", "/tmp/outgate-1000/state"));
    }

    #[test]
    fn directories_that_systemd_made_go_first() {
        let service = Surroundings {
            runtime_directory: Some("/run/outgate-a".into()),
            state_directory: Some("/var/lib/outgate-a".into()),
            ..user()
        };
        assert_eq!(places(&service, true), pair("/run/outgate-a/control.sock", "/var/lib/outgate-a"));
    }

    #[test]
    fn a_private_directory_is_made_closed_and_a_shared_one_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("a/b");
        make_safe(&dir, 0o700, None).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        make_safe(&dir, 0o700, None).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(make_safe(&dir, 0o700, None).is_err());
        let link = scratch.path().join("a/link");
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        assert!(make_safe(&link, 0o700, None).is_err());
    }
}
