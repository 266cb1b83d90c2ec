//! Guests that hold the socket of a container daemon. Whoever can speak to it can start a container in any network
//! with any right, so no rule of this machine holds such a guest.

use super::host::Host;
use super::namespaces::Numbers;
use super::plan::Plan;
use super::processes;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the daemons listen by default.
const SOCKETS: [&str; 6] = [
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/buildkit/buildkitd.sock",
];

/// A container and the socket that it holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder {
    container: String,
    socket: &'static str,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds {}", self.container, self.socket)
    }
}

/// Returns the containers behind guests' interfaces that hold such a socket.
pub(super) fn holders(plan: &Plan, host: &Host) -> BTreeSet<Holder> {
    let guests: BTreeSet<i32> = plan.guest_ports(host).filter_map(|port| port.peer_namespace).collect();
    let sockets: Vec<(&'static str, Place)> =
        SOCKETS.into_iter().filter_map(|path| Some((path, place(path)?))).collect();
    if guests.is_empty() || sockets.is_empty() {
        return BTreeSet::new();
    }
    let mut holders = BTreeSet::new();
    let mut numbers = Numbers::default();
    for process in processes::all() {
        let Some(container) = processes::container_of(&process) else { continue };
        let Ok(mounts) = fs::read_to_string(format!("/proc/{process}/mountinfo")) else { continue };
        let Some((socket, _)) = sockets.iter().find(|(_, place)| mounts.lines().any(|line| shows(line, place))) else {
            continue;
        };
        if numbers.of(&process).is_some_and(|number| guests.contains(&number)) {
            holders.insert(Holder { container, socket });
        }
    }
    holders
}

/// A file, by its file system (as `major:minor`) and its path there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    device: String,
    path: PathBuf,
}

/// Returns the place of a socket that exists.
fn place(socket: &str) -> Option<Place> {
    let path = fs::canonicalize(socket).ok()?;
    let found = fs::metadata(&path).ok().filter(|found| found.file_type().is_socket())?;
    let device = format!("{}:{}", rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let of = mounts.lines().filter_map(Mount::read).filter(|mount| mount.device == device);
    let nearest =
        of.filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.as_os_str().len())?;
    let below = path.strip_prefix(&nearest.point).ok()?;
    Some(Place { device, path: joined(&nearest.root, below) })
}

/// Returns whether a mount shows this file: the file itself or a folder above it. Another mount may lie over it; that
/// counts all the same.
fn shows(line: &str, place: &Place) -> bool {
    Mount::read(line).is_some_and(|mount| mount.device == place.device && place.path.starts_with(&mount.root))
}

/// Like `join`, where the second may be empty.
fn joined(above: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { above.to_owned() } else { above.join(below) }
}

/// A line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
struct Mount {
    device: String,
    /// What of the file system it shows.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

impl Mount {
    fn read(line: &str) -> Option<Mount> {
        let mut fields = line.split(' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Mount { device: device.to_owned(), root: unescaped(root), point: unescaped(point) })
    }
}

/// Space, tab, line feed and backslash are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    PathBuf::from(text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_the_socket_or_of_a_folder_above_it_shows_it_and_no_other_does() {
        let place = Place { device: "0:25".to_owned(), path: PathBuf::from("/docker.sock") };
        for (line, wanted) in [
            ("812 790 0:25 /docker.sock /var/run/docker.sock rw,nosuid - tmpfs tmpfs rw", true),
            ("812 790 0:25 / /host/run rw,nosuid - tmpfs tmpfs rw", true),
            ("812 790 0:25 /docker.sock /with\\040space rw - tmpfs tmpfs rw", true),
            ("812 790 0:25 /docker /var/lib rw - tmpfs tmpfs rw", false),
            ("812 790 0:25 /docker.sock.old /x rw - tmpfs tmpfs rw", false),
            ("812 790 0:31 / /run rw - tmpfs tmpfs rw", false),
            ("812 790 0:31 /docker.sock /run rw - tmpfs tmpfs rw", false),
            ("", false),
            ("812 790 0:25", false),
        ] {
            assert_eq!(shows(line, &place), wanted, "{line}");
        }
    }

    #[test]
    fn a_socket_is_found_at_its_place_in_its_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let place = place(path.to_str().unwrap()).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(mounts.lines().any(|line| shows(line, &place)), "{place:?}\n{mounts}");
        assert!(super::place(folder.path().to_str().unwrap()).is_none(), "a folder is no socket");
    }
}
