//! How much memory and how many file descriptors are in use, and how many there are: /proc/self, getrlimit(2),
//! and the process's control group (version 2). Files that are read often stay open, so that they can be read
//! when no descriptor is left. A value that cannot be read counts as unbounded.

use crate::account::{files_listed, files_open};
use crate::limits::overload::Level;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Mount point of the control groups.
const GROUPS: &str = "/sys/fs/cgroup";
/// How often the bounds are read again: `systemctl set-property` changes them while the daemon runs.
const REFRESH: Duration = Duration::from_secs(10);
/// How often descriptors are counted where the kernel does not report their number.
const RECOUNT: Duration = Duration::from_secs(2);

pub(super) struct Gauges {
    statm: Option<File>,
    page: u64,
    group: Option<Group>,
    read: Instant,
    counted: Option<Counted>,
}

/// A memory-bounded control group: the process's own, with the smallest bound of it and its ancestors.
struct Group {
    bound: u64,
    current: File,
    stat: File,
}

/// A count of descriptors, and the number of connections at that time.
struct Counted {
    at: Instant,
    files: u64,
    live: u32,
}

impl Gauges {
    pub(super) fn new() -> Gauges {
        Gauges {
            statm: File::open("/proc/self/statm").ok(),
            page: rustix::param::page_size() as u64,
            group: Group::of_this_process(),
            read: Instant::now(),
            counted: None,
        }
    }

    /// Returns the memory level for the nearer of two bounds. `configured` applies to the process's resident
    /// memory. The control group's bound also counts what the kernel keeps for the process (socket buffers).
    /// Neither counts files in the page cache: the kernel frees them when memory is needed.
    pub(super) fn memory(&mut self, configured: Option<u64>) -> Level {
        if self.read.elapsed() >= REFRESH {
            self.read = Instant::now();
            // Without free descriptors, the files already open are kept.
            if let Some(group) = Group::of_this_process() {
                self.group = Some(group);
            }
        }
        let resident = self.resident();
        let own = Level { used: resident, bound: configured.unwrap_or(0) };
        let group =
            self.group.as_ref().map(|group| Level { used: group.used().unwrap_or(resident), bound: group.bound });
        [own, group.unwrap_or_default()].into_iter().fold(own, nearer)
    }

    /// Returns the file descriptors in use, and the soft limit.
    pub(super) fn files(&mut self, live: u32, refusals: u32) -> Level {
        let bound = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(0);
        let used = files_open().unwrap_or_else(|| self.estimate(live, refusals, bound));
        Level { used, bound }
    }

    fn resident(&self) -> u64 {
        let text = self.statm.as_ref().and_then(read_again).unwrap_or_default();
        resident_pages(&text).unwrap_or(0).saturating_mul(self.page)
    }

    /// Estimates the descriptors: the last count, plus two per new connection. If that exceeds half of the
    /// limit, they are counted again, but not too often.
    fn estimate(&mut self, live: u32, refusals: u32, bound: u64) -> u64 {
        let guess = |counted: &Counted| {
            let more = u64::from(live.saturating_sub(counted.live)) * 2;
            let less = u64::from(counted.live.saturating_sub(live)) * 2;
            (counted.files + more + u64::from(refusals)).saturating_sub(less)
        };
        let old = self.counted.as_ref().map(|counted| (guess(counted), counted.at.elapsed()));
        if old.is_none_or(|(files, age)| files > bound / 2 && age >= RECOUNT)
            && let Some(files) = files_listed()
        {
            self.counted = Some(Counted { at: Instant::now(), files, live });
            return files;
        }
        old.map_or(0, |(files, _)| files)
    }
}

/// Returns the level with the larger share in use; one with a bound before one without.
fn nearer(one: Level, other: Level) -> Level {
    if other.bound > 0 && (one.bound == 0 || other.share() > one.share()) { other } else { one }
}

impl Group {
    /// Returns the group of this process, with the smallest bound of it and its ancestors.
    fn of_this_process() -> Option<Group> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        Group::at(Path::new(GROUPS), path_of(&own)?)
    }

    /// Opens the group at `path`. In a container, `path` may be the host's path while only the container's own
    /// group is mounted. Then the group is at the root of the mount.
    fn at(mount: &Path, path: &Path) -> Option<Group> {
        let own = mount.join(path);
        let own = if own.join("memory.current").exists() { own } else { mount.to_owned() };
        let around = own.ancestors().take_while(|folder| folder.starts_with(mount));
        let bounds = around.flat_map(|folder| ["memory.max", "memory.high"].map(|name| folder.join(name)));
        let bound = bounds.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()?;
        let open = |name: &str| File::open(own.join(name)).ok();
        Some(Group { bound, current: open("memory.current")?, stat: open("memory.stat")? })
    }

    /// Returns the memory that the group uses and that the kernel cannot reclaim easily.
    fn used(&self) -> Option<u64> {
        let current: u64 = read_again(&self.current)?.trim().parse().ok()?;
        let stat = read_again(&self.stat)?;
        Some(current.saturating_sub(reclaimable(&stat)))
    }
}

/// Returns the page cache and the slab memory that the kernel can free at once, in bytes (memory.stat).
fn reclaimable(stat: &str) -> u64 {
    let lines = stat.lines().filter_map(|line| line.split_once(' '));
    let wanted = lines.filter(|(key, _)| matches!(*key, "inactive_file" | "active_file" | "slab_reclaimable"));
    wanted.filter_map(|(_, value)| value.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// Returns the path of the version 2 group (cgroups(7)), without the leading slash.
fn path_of(text: &str) -> Option<&Path> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A group outside of this process's view begins with ".." and is not accessible.
    let path = if path.split('/').any(|part| part == "..") { "" } else { path };
    Some(Path::new(path))
}

/// Parses the second field, see proc(5).
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Reads a kernel file from its beginning: the kernel generates it again for a reader that starts there.
fn read_again(file: &File) -> Option<String> {
    let mut text = vec![0; 8192];
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64).ok()? {
            0 => break,
            more => length += more,
        }
    }
    text.truncate(length);
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Creates a tree like that of a service with a bound, in a slice.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let mount = tempfile::tempdir().unwrap();
        let path = PathBuf::from("system.slice/outgate.service");
        let own = mount.path().join(&path);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("memory.max"), "1073741824\n").unwrap();
        fs::write(own.join("memory.high"), "max\n").unwrap();
        fs::write(own.join("memory.current"), "500000000\n").unwrap();
        fs::write(own.join("memory.stat"), "anon 1\ninactive_file 100000000\nfile 9\nactive_file 50000000\n").unwrap();
        (mount, path)
    }

    #[test]
    fn the_smallest_bound_around_a_process_counts_and_page_cache_does_not() {
        let (mount, path) = tree();
        let group = Group::at(mount.path(), &path).unwrap();
        assert_eq!((group.bound, group.used()), (1 << 30, Some(350_000_000)));
        fs::write(mount.path().join("system.slice/memory.high"), "800000000\n").unwrap();
        assert_eq!(Group::at(mount.path(), &path).unwrap().bound, 800_000_000);
    }

    #[test]
    fn a_container_finds_its_own_group_at_the_root_of_the_mount() {
        let (mount, path) = tree();
        let inside = mount.path().join(&path);
        let group = Group::at(&inside, Path::new("machine.slice/pod-7")).unwrap();
        assert_eq!(group.bound, 1 << 30);
        assert_eq!(path_of("1:name=systemd:/a\n0::/b/c\n"), Some(Path::new("b/c")));
        assert_eq!(path_of("0::/../x\n"), Some(Path::new("")));
        assert_eq!(path_of("4:memory:/x\n"), None);
    }

    #[test]
    fn without_any_bound_there_is_no_group() {
        let (mount, path) = tree();
        fs::write(mount.path().join(&path).join("memory.max"), "max\n").unwrap();
        assert!(Group::at(mount.path(), &path).is_none());
    }

    #[test]
    fn the_bound_that_is_nearer_counts() {
        let level = |used, bound| Level { used, bound };
        assert_eq!(nearer(level(5, 10), level(6, 10)), level(6, 10));
        assert_eq!(nearer(level(5, 10), level(6, 20)), level(5, 10));
        assert_eq!(nearer(level(5, 0), level(1, 20)), level(1, 20));
        assert_eq!(nearer(level(5, 10), level(9, 0)), level(5, 10));
    }

    #[test]
    fn a_file_kept_open_shows_what_is_new() {
        let mut gauges = Gauges::new();
        let before = gauges.memory(Some(1 << 40)).used;
        assert!(before > 1 << 20, "{before}");
        let more = vec![1u8; 64 << 20];
        assert!(gauges.memory(Some(1 << 40)).used >= before + (32 << 20));
        drop(more);
        let files = gauges.files(0, 0);
        assert!(files.used >= 3 && files.bound >= files.used, "{files:?}");
    }
}
