//! Notices that whitelist files changed. A thread of its own turns file system events into "look again" ticks; the
//! daemon reads and compiles.
//!
//! Events are only a hint: a watch on a file ends with the first rename, a network file system sends no events,
//! and a full queue loses some. Therefore folders are watched: those of the list, those that links lead to, and
//! their parents, in which a folder may be replaced. The content of an event is hardly used, and stat(2) is called
//! every two seconds to see whether anything differs.

use super::read::FolderStamp;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A change is reported when nothing more happened for this long…
const QUIET: Duration = Duration::from_millis(100);
/// …or after this time, if the writing does not end.
const PATIENCE: Duration = Duration::from_millis(400);
/// Interval between two comparisons of what stat(2) reports.
const POLL: Duration = Duration::from_secs(2);
/// Interval between two ticks without any sign of change.
const REREAD: Duration = Duration::from_secs(60);
/// How many events may wait in the queue.
const BACKLOG: usize = 256;
/// The most folders watched.
const MAX_FOLDERS: usize = 256;

/// Something to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// A folder and the files in it.
    Folder(PathBuf),
    /// One file.
    File(PathBuf),
}

impl Watched {
    fn path(&self) -> &Path {
        match self {
            Watched::Folder(path) | Watched::File(path) => path,
        }
    }

    /// Returns whether a change of `path` certainly affects this.
    fn holds(&self, path: &Path) -> bool {
        match self {
            Watched::Folder(folder) => path.parent() == Some(folder),
            Watched::File(file) => path == file,
        }
    }
}

/// A running watch; it ends when this is dropped.
#[derive(Debug)]
pub struct FileWatcher {
    over: Arc<AtomicBool>,
    messages: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    /// An event (or a lost one) touched these paths; if empty, anything may have changed.
    Touched(Vec<PathBuf>),
    Stop,
}

/// Watches `what`. The receiver's number increases whenever it is time to look again: within half a second of a
/// change that the kernel reports, within two seconds and that of any other, and once a minute. A tick does not
/// mean that something changed; compare fingerprints.
///
/// A path that does not exist yet is waited for. The only error is that the thread could not be started.
pub fn start(what: Vec<Watched>) -> std::io::Result<(FileWatcher, watch::Receiver<u64>)> {
    let (ticks, receiver) = watch::channel(0);
    let (messages, inbox) = sync_channel(BACKLOG);
    let events = messages.clone();
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let body = move || {
        let mut folders = Folders::new(&events);
        folders.follow(&what);
        run(&what, &mut folders, (&inbox, &stop), &ticks);
    };
    let thread = std::thread::Builder::new().name("whitelist-watch".to_owned()).spawn(body)?;
    Ok((FileWatcher { over, messages, thread: Some(thread) }, receiver))
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Wakes the thread. In a storm of events the queue may stay full, but then the thread does not sleep
        // either.
        let _ = self.messages.try_send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A change that was noticed but not reported yet.
struct Pending {
    first: Instant,
    last: Instant,
    /// It touched a watched path; otherwise stat(2) has to decide.
    sure: bool,
}

impl Pending {
    fn due(&self) -> Instant {
        (self.last + QUIET).min(self.first + PATIENCE)
    }
}

fn run(
    what: &[Watched],
    folders: &mut Folders,
    (inbox, over): (&Receiver<Message>, &AtomicBool),
    ticks: &watch::Sender<u64>,
) {
    let mut stamps = stamps(what);
    // A change between the caller's reading and this moment raised no event.
    ticks.send_modify(|count| *count = count.wrapping_add(1));
    let mut pending: Option<Pending> = None;
    let (mut polled, mut ticked) = (Instant::now(), Instant::now());
    loop {
        let due = pending.as_ref().map_or(polled + POLL, |pending| pending.due().min(polled + POLL));
        let message = inbox.recv_timeout(due.saturating_duration_since(Instant::now()));
        if over.load(Ordering::Acquire) {
            return;
        }
        match message {
            Ok(Message::Touched(paths)) => {
                let now = Instant::now();
                let sure = paths.is_empty() || paths.iter().any(|path| what.iter().any(|one| one.holds(path)));
                let pending = pending.get_or_insert(Pending { first: now, last: now, sure });
                pending.last = now;
                pending.sure |= sure;
                if now < pending.due() {
                    continue;
                }
            }
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        // Watches first: a later write raises an event, an earlier one shows in the stamps.
        folders.follow(what);
        let now = Instant::now();
        let told = pending.take_if(|pending| pending.due() <= now).is_some_and(|pending| pending.sure);
        let fresh = self::stamps(what);
        let changed = fresh != stamps;
        polled = now;
        if told || changed || ticked + REREAD <= now {
            stamps = fresh;
            ticked = now;
            ticks.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

fn stamps(what: &[Watched]) -> Vec<FolderStamp> {
    let stamp = |one: &Watched| match one {
        Watched::Folder(path) => FolderStamp::of(path),
        Watched::File(path) => FolderStamp::of_file(path),
    };
    what.iter().map(stamp).collect()
}

/// The folders that inotify watches, with the inode that each path referred to.
struct Folders {
    /// `None` if the system has no more watches available; then polling has to suffice.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Folders {
    fn new(messages: &SyncSender<Message>) -> Folders {
        let messages = messages.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            let paths = match event {
                // Reading a file is also an event: without this, a reload would cause the next one.
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
                Ok(event) if event.need_rescan() => Vec::new(),
                Ok(event) => event.paths,
                Err(_) => Vec::new(),
            };
            // A full queue means that a check is due anyway.
            let _ = messages.try_send(Message::Touched(paths));
        };
        let watcher = notify::recommended_watcher(handler);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "no file system events; whitelist changes are noticed by polling");
        }
        Folders { watcher: watcher.ok(), watched: BTreeMap::new() }
    }

    /// Watches every relevant folder, and no other. A path that now refers to a different folder is watched anew,
    /// since the kernel follows the inode.
    fn follow(&mut self, what: &[Watched]) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted = wanted(what);
        self.watched.retain(|path, inode| {
            let kept = wanted.get(path) == Some(inode);
            if !kept {
                // The watch may already have ended with its folder.
                let _ = watcher.unwatch(path);
            }
            kept
        });
        for (path, inode) in wanted {
            if !self.watched.contains_key(&path) && watcher.watch(&path, RecursiveMode::NonRecursive).is_ok() {
                self.watched.insert(path, inode);
            }
        }
    }
}

/// Returns the folders in which a change could affect what is read.
fn wanted(what: &[Watched]) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut folders = BTreeMap::new();
    let mut add = |path: &Path| {
        if folders.len() < MAX_FOLDERS
            && let Ok(meta) = path.metadata()
            && meta.is_dir()
        {
            folders.insert(path.to_path_buf(), (meta.dev(), meta.ino()));
        }
    };
    for one in what {
        let path = one.path();
        add(path);
        path.parent().into_iter().for_each(&mut add);
        let mut linked = vec![path.to_path_buf()];
        if let (Watched::Folder(_), Ok(entries)) = (one, path.read_dir()) {
            let links = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
            linked.extend(links.map(|entry| entry.path()).take(MAX_FOLDERS));
        }
        for link in linked {
            if let Ok(target) = link.canonicalize() {
                target.parent().into_iter().for_each(&mut add);
            }
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A watched folder `list` within a temporary one, its ticks, and the last count seen.
    struct World {
        root: tempfile::TempDir,
        ticks: watch::Receiver<u64>,
        _watch: FileWatcher,
    }

    impl World {
        fn new(prepare: impl FnOnce(&Path)) -> World {
            let root = tempfile::tempdir().unwrap();
            prepare(root.path());
            let (watch, ticks) = start(vec![Watched::Folder(root.path().join("list"))]).unwrap();
            // The thread arms its watches at once; give it the time on a busy machine.
            std::thread::sleep(Duration::from_millis(150));
            let mut ticks = ticks;
            // The first tick is for changes before the watches were armed.
            ticks.mark_unchanged();
            World { root, ticks, _watch: watch }
        }

        fn plain() -> World {
            World::new(|root| {
                fs::create_dir(root.join("list")).unwrap();
                fs::write(root.join("list/a.rules"), "a.test\n").unwrap();
            })
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        /// Returns whether a tick arrives within `limit`; if so, waits until no more arrive.
        fn ticks_within(&mut self, limit: Duration) -> bool {
            let until = Instant::now() + limit;
            while Instant::now() < until {
                if self.ticks.has_changed().unwrap() {
                    std::thread::sleep(PATIENCE);
                    self.ticks.mark_unchanged();
                    return true;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            false
        }

        fn noticed(&mut self) -> bool {
            self.ticks_within(Duration::from_secs(1))
        }
    }

    #[test]
    fn every_way_of_saving_a_file_is_noticed_time_and_again() {
        let mut world = World::plain();
        for round in 0..2 {
            let text = format!("r{round}.test\n");
            fs::write(world.path("list/a.rules"), &text).unwrap();
            assert!(world.noticed(), "written in place");
            fs::write(world.path("list/.a.swp"), &text).unwrap();
            fs::rename(world.path("list/.a.swp"), world.path("list/a.rules")).unwrap();
            assert!(world.noticed(), "renamed over");
            fs::write(world.path("outside"), &text).unwrap();
            fs::rename(world.path("outside"), world.path("list/a.rules")).unwrap();
            assert!(world.noticed(), "moved in from elsewhere");
            fs::remove_file(world.path("list/a.rules")).unwrap();
            fs::write(world.path("list/a.rules"), &text).unwrap();
            assert!(world.noticed(), "deleted and created");
            fs::set_permissions(world.path("list/a.rules"), fs::Permissions::from_mode(0o000)).unwrap();
            assert!(world.noticed(), "chmod 000");
            fs::set_permissions(world.path("list/a.rules"), fs::Permissions::from_mode(0o644)).unwrap();
            assert!(world.noticed(), "chmod 644");
            fs::write(world.path("list/new.rules"), &text).unwrap();
            assert!(world.noticed(), "a new file");
            fs::remove_file(world.path("list/new.rules")).unwrap();
            assert!(world.noticed(), "a file less");
        }
    }

    #[test]
    fn a_storm_of_events_does_not_keep_the_watch_from_ending() {
        let world = World::plain();
        let over = Arc::new(AtomicBool::new(false));
        let busy: Vec<_> = (0..2)
            .map(|writer| {
                let (path, over) = (world.path(&format!("list/{writer}.tmp")), Arc::clone(&over));
                std::thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        fs::write(&path, "x").unwrap();
                        fs::remove_file(&path).unwrap();
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let World { _watch, root, .. } = world;
        let (done, ended) = sync_channel(1);
        std::thread::spawn(move || {
            drop(_watch);
            let _ = done.send(());
        });
        let ended = ended.recv_timeout(Duration::from_secs(10));
        over.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|writer| writer.join().unwrap());
        drop(root);
        ended.expect("the watch ends");
    }

    #[test]
    fn reading_is_not_a_change() {
        let mut world = World::plain();
        for _ in 0..20 {
            let files = super::super::read::Files::read(&world.path("list"));
            assert_eq!(files.len(), 1);
        }
        assert!(!world.ticks_within(Duration::from_millis(600)));
    }

    #[test]
    fn a_folder_that_is_replaced_or_made_again_is_still_watched() {
        let mut world = World::plain();
        for round in 0..2 {
            fs::create_dir(world.path("next")).unwrap();
            fs::write(world.path("next/a.rules"), format!("n{round}.test\n")).unwrap();
            fs::rename(world.path("list"), world.path("old")).unwrap();
            fs::rename(world.path("next"), world.path("list")).unwrap();
            assert!(world.noticed(), "replaced");
            fs::write(world.path("list/a.rules"), "inside.test\n").unwrap();
            assert!(world.noticed(), "written in the new one");
            fs::remove_dir_all(world.path("old")).unwrap();
            fs::remove_dir_all(world.path("list")).unwrap();
            assert!(world.noticed(), "removed");
            fs::create_dir(world.path("list")).unwrap();
            assert!(world.noticed(), "made again");
            fs::write(world.path("list/a.rules"), "again.test\n").unwrap();
            assert!(world.noticed(), "written in the one made again");
        }
    }

    #[test]
    fn kubernetes_swaps_of_the_data_link_are_noticed() {
        let mut world = World::new(|root| {
            fs::create_dir_all(root.join("list/..one")).unwrap();
            fs::write(root.join("list/..one/a.rules"), "one.test\n").unwrap();
            symlink("..one", root.join("list/..data")).unwrap();
            symlink("..data/a.rules", root.join("list/a.rules")).unwrap();
        });
        let mut old = "..one".to_owned();
        for next in ["..two", "..three"] {
            let folder = world.path("list").join(next);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("a.rules"), format!("{}.test\n", next.trim_matches('.'))).unwrap();
            symlink(next, world.path("list/..data_tmp")).unwrap();
            fs::rename(world.path("list/..data_tmp"), world.path("list/..data")).unwrap();
            fs::remove_dir_all(world.path("list").join(&old)).unwrap();
            old = next.to_owned();
            assert!(world.noticed(), "{next}");
            let files = super::super::read::Files::read(&world.path("list"));
            assert_eq!(files.iter().map(|f| f.name()).collect::<Vec<_>>(), ["a.rules"]);
        }
    }

    #[test]
    fn targets_of_links_are_watched_where_they_are() {
        let mut world = World::new(|root| {
            fs::create_dir_all(root.join("far/away")).unwrap();
            fs::create_dir(root.join("list")).unwrap();
            fs::write(root.join("far/away/a.rules"), "a.test\n").unwrap();
            symlink(root.join("far/away/a.rules"), root.join("list/a.rules")).unwrap();
        });
        fs::write(world.path("far/away/a.rules"), "b.test\n").unwrap();
        assert!(world.noticed(), "target written in place");
        fs::write(world.path("far/away/tmp"), "c.test\n").unwrap();
        fs::rename(world.path("far/away/tmp"), world.path("far/away/a.rules")).unwrap();
        assert!(world.noticed(), "target renamed over");
    }

    #[test]
    fn a_linked_folder_is_followed_to_where_the_link_leads() {
        let mut world = World::new(|root| {
            fs::create_dir(root.join("one")).unwrap();
            fs::create_dir(root.join("two")).unwrap();
            fs::write(root.join("two/a.rules"), "two.test\n").unwrap();
            symlink("one", root.join("list")).unwrap();
        });
        symlink("two", world.path("link")).unwrap();
        fs::rename(world.path("link"), world.path("list")).unwrap();
        assert!(world.noticed(), "the link");
        fs::write(world.path("two/a.rules"), "more.test\n").unwrap();
        assert!(world.noticed(), "within its new target");
    }

    #[test]
    fn endless_writing_postpones_nothing() {
        let mut world = World::plain();
        let file = world.path("list/a.rules");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..60 {
                    fs::write(&file, format!("w{round}.test\n")).unwrap();
                    std::thread::sleep(Duration::from_millis(25));
                }
            });
            assert!(world.noticed());
        });
    }

    #[test]
    fn a_single_file_is_watched_without_its_neighbours() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("rules.json");
        fs::write(&path, "{}").unwrap();
        let (watch, ticks) = start(vec![Watched::File(path.clone())]).unwrap();
        std::thread::sleep(Duration::from_millis(150));
        let mut world = World { root, ticks, _watch: watch };
        world.ticks.mark_unchanged();
        fs::write(world.path("neighbour"), "x").unwrap();
        assert!(!world.ticks_within(Duration::from_millis(700)));
        fs::write(&path, "{ }").unwrap();
        assert!(world.noticed());
        fs::write(world.path("tmp"), "{  }").unwrap();
        fs::rename(world.path("tmp"), &path).unwrap();
        assert!(world.noticed());
    }

    #[test]
    fn without_events_polling_notices() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.rules"), "a.test\n").unwrap();
        let what = vec![Watched::Folder(root.path().to_path_buf())];
        let (ticks, receiver) = watch::channel(0);
        let (messages, inbox) = sync_channel(BACKLOG);
        let write = root.path().join("a.rules");
        let thread = std::thread::spawn(move || {
            let mut folders = Folders { watcher: None, watched: BTreeMap::new() };
            run(&what, &mut folders, (&inbox, &AtomicBool::new(false)), &ticks);
        });
        std::thread::sleep(Duration::from_millis(100));
        fs::write(write, "longer.test\n").unwrap();
        let until = Instant::now() + POLL + Duration::from_secs(1);
        while !receiver.has_changed().unwrap_or(false) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(receiver.has_changed().unwrap());
        messages.send(Message::Stop).unwrap();
        thread.join().unwrap();
    }
}
