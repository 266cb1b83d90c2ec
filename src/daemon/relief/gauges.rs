//! What is in use and what there is, of memory and file descriptors: /proc/self, getrlimit(2), and the
//! control group of the process (version 2). Files that are read often are kept open, so that they can be
//! read when no descriptor is left. What cannot be read counts as unbounded.

use crate::accept::overload::Level;
use crate::account::{files_listed, files_open};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// How often the bounds are read anew: `systemctl set-property` changes them while the daemon runs.
const REFRESH: Duration = Duration::from_secs(10);
/// How often descriptors are counted where the kernel does not tell their number.
const RECOUNT: Duration = Duration::from_secs(2);

pub(super) struct Gauges {
    statm: Option<File>,
    page: u64,
    group: Option<Group>,
    read: Instant,
    counted: Option<Counted>,
}

/// A control group, or one around it, that bounds memory.
struct Group {
    bound: u64,
    current: File,
    stat: File,
}

/// A count of descriptors, and the connections that there were then.
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

    /// Memory, held against the bound that is nearest: `configured`, which is for what the process has
    /// resident, or that of its control group, which counts what the kernel keeps for it (socket buffers)
    /// as well. Files in the page cache count in neither: they go when the memory is wanted.
    pub(super) fn memory(&mut self, configured: Option<u64>) -> Level {
        if self.read.elapsed() >= REFRESH {
            self.read = Instant::now();
            // Out of descriptors, what is open stays.
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

    /// File descriptors, of those that the soft limit allows.
    pub(super) fn files(&mut self, live: u32, telling: u32) -> Level {
        let bound = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(0);
        let used = files_open().unwrap_or_else(|| self.estimate(live, telling, bound));
        Level { used, bound }
    }

    fn resident(&self) -> u64 {
        let text = self.statm.as_ref().and_then(read_again).unwrap_or_default();
        resident_pages(&text).unwrap_or(0).saturating_mul(self.page)
    }

    /// Two a connection on top of what was counted last; counted again, and not too often, where that is
    /// more than half of what there is.
    fn estimate(&mut self, live: u32, telling: u32, bound: u64) -> u64 {
        let guess = |counted: &Counted| {
            let more = u64::from(live.saturating_sub(counted.live)) * 2;
            let less = u64::from(counted.live.saturating_sub(live)) * 2;
            (counted.files + more + u64::from(telling)).saturating_sub(less)
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

/// The one of which more is in use; a bound before none.
fn nearer(one: Level, other: Level) -> Level {
    if other.bound > 0 && (one.bound == 0 || other.share() > one.share()) { other } else { one }
}

impl Group {
    /// The group of this process, with the smallest bound of it and those around it.
    fn of_this_process() -> Option<Group> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        Group::at(Path::new(GROUPS), path_of(&own)?)
    }

    /// In a container the path may be the host's, while only the container's own group is mounted: then it
    /// is at the root of the mount.
    fn at(mount: &Path, path: &Path) -> Option<Group> {
        let own = mount.join(path);
        let own = if own.join("memory.current").exists() { own } else { mount.to_owned() };
        let around = own.ancestors().take_while(|folder| folder.starts_with(mount));
        let bounds = around.flat_map(|folder| ["memory.max", "memory.high"].map(|name| folder.join(name)));
        let bound = bounds.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()?;
        let open = |name: &str| File::open(own.join(name)).ok();
        Some(Group { bound, current: open("memory.current")?, stat: open("memory.stat")? })
    }

    /// What the group uses and would not give back by itself.
    fn used(&self) -> Option<u64> {
        let current: u64 = read_again(&self.current)?.trim().parse().ok()?;
        let stat = read_again(&self.stat)?;
        Some(current.saturating_sub(reclaimable(&stat)))
    }
}

/// Page cache and what the kernel can free at once, in bytes (memory.stat).
fn reclaimable(stat: &str) -> u64 {
    let lines = stat.lines().filter_map(|line| line.split_once(' '));
    let wanted = lines.filter(|(key, _)| matches!(*key, "inactive_file" | "active_file" | "slab_reclaimable"));
    wanted.filter_map(|(_, value)| value.parse::<u64>().ok()).fold(0, u64::saturating_add)
}

/// The path of the version 2 group (cgroups(7)), without the slash in front.
fn path_of(text: &str) -> Option<&Path> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A group outside of this process's view begins with "..", and is not to be had.
    let path = if path.split('/').any(|part| part == "..") { "" } else { path };
    Some(Path::new(path))
}

/// The second field, see proc(5).
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// A file of the kernel's from its beginning: it is made anew for each reader that begins there.
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

    /// A tree that looks like that of a service with a bound in a slice with a tighter one.
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
