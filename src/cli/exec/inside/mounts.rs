//! What the command sees of the machine's files: everything that its user may see, except for what bypasses the
//! namespaces. /run is empty, because the sockets there bypass the network; /proc and the terminals are its own,
//! and so are queues and shared memory. This requires a mount namespace made for this purpose, and power over it,
//! as root or not.

use super::Order;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};
use std::ffi::CStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The path of a program that the command must find, even without permission to search the folders above it.
pub(in crate::cli) const PROGRAM: &str = "/run/outgate";
/// The hidden folder: its sockets give access to system services that can do what the network refuses, for example
/// look up names (systemd-resolved, nscd) or start whole processes (a user's systemd, Docker).
const RUN: &str = "/run";
/// Options of the file system that replaces it.
const RUN_OPTIONS: &CStr = c"mode=755,size=1m";
/// Where every program looks for its name server.
const RESOLV: &str = "/etc/resolv.conf";
/// The file that is mounted over it.
const OWN_RESOLV: &str = "/run/.outgate-resolv.conf";
/// Terminals of programs; the folder also contains the caller's.
const PTS: &str = "/dev/pts";
/// The usual options: members of group tty may write to terminals that allow it. The second is without that group,
/// for a user namespace.
const PTS_OPTIONS: [&CStr; 2] = [c"newinstance,ptmxmode=0666,mode=0620,gid=5", c"newinstance,ptmxmode=0666,mode=0620"];
/// Creates terminals there.
const OWN_PTMX: &str = "/dev/pts/ptmx";
const PTMX: &str = "/dev/ptmx";
/// Maximum number of links that are followed, the same as the kernel's.
const MAX_LINKS: usize = 40;

/// Mounts everything. Must be called by the first process of the namespaces.
pub(super) fn prepare(order: &Order) -> io::Result<()> {
    let home = std::env::current_dir().map_err(within("the working directory"))?;
    let shown: Vec<(&Path, OwnedFd, Metadata)> =
        order.show.iter().map(|path| seen(path, path)).collect::<io::Result<_>>()?;
    let program = order.program.as_deref().map(|path| seen(path, Path::new(PROGRAM))).transpose()?;
    let nothing = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    lay("proc", "/proc", "proc", nothing, c"").map_err(within("/proc"))?;
    terminals(order).map_err(within("/dev"))?;
    memory()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    lay("outgate", RUN, "tmpfs", flags, RUN_OPTIONS).map_err(within(RUN))?;
    if let Some(nameserver) = order.nameserver {
        write_resolv(nameserver).map_err(within(OWN_RESOLV))?;
    }
    for (path, handle, meta) in shown.iter().chain(&program) {
        show(path, handle, meta).map_err(within(&path.display().to_string()))?;
    }
    if order.nameserver.is_some() {
        resolve_by_own().map_err(within(RESOLV))?;
    }
    std::env::set_current_dir(&home).map_err(within(&format!("the working directory, {}", home.display())))
}

fn lay(source: &str, at: &str, kind: &str, flags: MountFlags, options: &CStr) -> io::Result<()> {
    Ok(mount(source, at, kind, flags, options)?)
}

/// Provides only the command's own terminals: the owner of the caller's terminal could open it, read the input and
/// configure it. Virtual consoles belong to others in any case.
fn terminals(order: &Order) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    match PTS_OPTIONS.iter().map(|options| lay("devpts", PTS, "devpts", flags, options)).find(Result::is_ok) {
        Some(_) => {}
        None if !Path::new(PTS).exists() && !order.has_terminal() => {}
        None => return Err(io::Error::other("/dev/pts cannot be mounted for terminals of its own")),
    }
    // A device of this kind creates terminals in the folder beside it; a container's mount would not.
    if fs::symlink_metadata(PTMX).is_ok_and(|meta| meta.file_type().is_char_device()) && Path::new(OWN_PTMX).exists() {
        mount_bind(OWN_PTMX, PTMX)?;
    }
    let consoles = fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
    let consoles = consoles.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_console));
    for path in consoles.chain(order.hide.iter().cloned()) {
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_char_device()) {
            mount_bind("/dev/null", &path)?;
        }
    }
    Ok(())
}

/// Returns whether this is a device for the kernel's screen: /dev/console, /dev/tty1, /dev/vcsa1.
fn is_console(name: &str) -> bool {
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    name == "console" || name.starts_with("vcs") || name.strip_prefix("tty").is_some_and(number)
}

/// Mounts separate shared memory and queues: they have names, and processes of the same user can find them.
fn memory() -> io::Result<()> {
    let is_folder = |path: &str| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    if is_folder("/dev/shm") {
        lay("outgate", "/dev/shm", "tmpfs", flags, c"mode=1777").map_err(within("/dev/shm"))?;
    }
    if is_folder("/dev/mqueue") {
        match mount("mqueue", "/dev/mqueue", "mqueue", flags | MountFlags::NOEXEC, c"") {
            // A kernel without queues.
            Ok(()) | Err(Errno::NODEV) => {}
            Err(error) => return Err(within("/dev/mqueue")(error.into())),
        }
    }
    Ok(())
}

fn write_resolv(nameserver: Ipv4Addr) -> io::Result<()> {
    let text =
        format!("# Written by `outgate exec`: outgate answers, whichever server is asked.\nnameserver {nameserver}\n");
    readable(Path::new(OWN_RESOLV), &text)
}

/// Opens the file at `path`, to be shown at `at`.
fn seen<'p>(path: &Path, at: &'p Path) -> io::Result<(&'p Path, OwnedFd, Metadata)> {
    let handle = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let handle = handle.map_err(|error| within(&path.display().to_string())(error.into()))?;
    let meta = fs::metadata(path)?;
    Ok((at, handle, meta))
}

fn show(path: &Path, handle: &OwnedFd, meta: &Metadata) -> io::Result<()> {
    if meta.is_dir() {
        make_folder(path)?;
    } else if !path.exists() {
        // If a parent folder is already shown, the file exists and is the host's.
        make_file(path)?;
    }
    Ok(mount_bind(format!("/proc/self/fd/{}", handle.as_raw_fd()), path)?)
}

/// Mounts the file with the name server over the existing one. The existing one may be the host's, so it is not
/// written to.
fn resolve_by_own() -> io::Result<()> {
    let target = followed(Path::new(RESOLV))?;
    if !target.exists() {
        if !target.starts_with(RUN) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such file; create an empty one"));
        }
        make_file(&target)?;
    }
    Ok(mount_bind(OWN_RESOLV, &target)?)
}

/// Returns the path at the end of links, whether anything exists there or not.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => {
                let folder = path.parent().map(fs::canonicalize).transpose()?.unwrap_or_default();
                path = plain(&folder.join(target));
            }
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from(io::ErrorKind::InvalidInput))
}

/// Returns the path without `..` and `.`, which cross no link in the paths that systems put here.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            part => plain.push(part),
        }
    }
    // Usually a link, whose target no longer exists.
    plain.strip_prefix("/var/run").map(|rest| Path::new(RUN).join(rest)).unwrap_or(plain)
}

/// Sets the mode independently of the umask, which is the command's.
fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_folder)?;
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn make_file(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), make_folder)?;
    File::create_new(path).map(drop)
}

fn readable(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

pub(super) fn within(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_to_where_nothing_lies() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(scratch.path()).unwrap();
        std::os::unix::fs::symlink("../x/./stub", folder.join("resolv")).unwrap();
        let expected = folder.parent().unwrap().join("x/stub");
        assert_eq!(followed(&folder.join("resolv")).unwrap(), expected);
        assert_eq!(followed(&folder.join("none")).unwrap(), folder.join("none"));
        std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
        assert!(followed(&folder.join("loop")).is_err());
    }

    #[test]
    fn consoles_are_told_from_devices_that_jobs_use() {
        for console in ["console", "tty0", "tty63", "vcs", "vcsa1", "vcsu2"] {
            assert!(is_console(console), "{console}");
        }
        for device in ["tty", "ttyS0", "ttyUSB0", "ttyACM1", "null", "kvm", "ptmx"] {
            assert!(!is_console(device), "{device}");
        }
    }
}
