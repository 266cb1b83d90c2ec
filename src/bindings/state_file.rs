//! Saves bindings over a restart: a file in the state dir, one binding per line. A thread of its own replaces
//! the whole file now and then and once more at the end. A file that cannot be read in full is not used at all,
//! with a warning: guests then ask again.

use super::{Binding, Bindings};
use crate::files::replace::{Attributes, replace};
use crate::files::version::{LaterVersion, of_first_line};
use crate::name::HostName;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name of the file in the state dir.
const FILE_NAME: &str = "dns.bindings";

/// First line of the file; the digit is the format version.
const MAGIC: &str = "outgate dns bindings 1";
/// The same without the version.
const NAME: &str = "outgate dns bindings ";
/// The format version.
const VERSION: u64 = 1;
/// Stands for an undeclared guest; no guest can have that name.
const NOBODY: &str = "@";
/// Time between two checks for changes to write.
const INTERVAL: Duration = Duration::from_secs(30);
/// The largest file that is read, in bytes: twice the size of all bindings.
const MAX_FILE: u64 = 96 << 20;

/// The thread that writes the file. Dropping it writes one last time and waits for that.
#[derive(Debug)]
pub struct BindingsFile {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl BindingsFile {
    /// Restores the saved bindings from the dir `state`, then saves changes.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(bindings: Arc<Bindings>, state: &Path) -> io::Result<BindingsFile> {
        let path = state.join(FILE_NAME);
        match load(&bindings, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(file = %path.display(), %error, "kept DNS bindings are not used"),
        }
        let _ = bindings.take_changed();
        let (stop, stopped) = sync_channel::<()>(1);
        let thread = std::thread::Builder::new().name("dns-bindings".into()).spawn(move || {
            let mut writer = Writer { bindings, path, failing: false };
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                writer.write();
            }
            writer.write();
        })?;
        Ok(BindingsFile { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for BindingsFile {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been reported already.
            let _ = thread.join();
        }
    }
}

struct Writer {
    bindings: Arc<Bindings>,
    path: PathBuf,
    failing: bool,
}

impl Writer {
    fn write(&mut self) {
        if !self.bindings.take_changed() && !self.failing {
            return;
        }
        let result = save(&self.bindings, &self.path);
        if let (Err(error), false) = (&result, self.failing) {
            tracing::warn!(file = %self.path.display(), %error, "DNS bindings cannot be kept for the next start");
        }
        self.failing = result.is_err();
    }
}

fn save(bindings: &Bindings, path: &Path) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = format!("{MAGIC}\n");
    bindings.each(|binding| {
        let until = (now + binding.left).as_secs();
        let guest = binding.guest.as_deref().unwrap_or(NOBODY);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{until} {} {guest} {} {}", binding.source, binding.address, binding.name);
    });
    text.push_str("end\n");
    replace(path, text.as_bytes(), Attributes::PRIVATE)
}

fn load(bindings: &Bindings, path: &Path) -> io::Result<()> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    let found = of_first_line(text.as_bytes(), NAME.as_bytes()).unwrap_or(VERSION);
    let remedy = "guests ask for their names again, and the file is replaced";
    LaterVersion::check(path, found, VERSION, remedy).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let read = parse(&text, now).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the file is damaged"))?;
    // The last one restored counts as the latest.
    read.iter().rev().for_each(|binding| bindings.restore(binding));
    Ok(())
}

/// Returns all bindings of a complete file that have time left; of those for one address, the latest first.
fn parse(text: &str, now: Duration) -> Option<Vec<Binding>> {
    let lines = text.strip_prefix(MAGIC)?.strip_prefix('\n')?.strip_suffix("end\n")?;
    let mut bindings = Vec::new();
    for line in lines.lines() {
        let mut words = line.split(' ');
        let until = Duration::from_secs(words.next()?.parse().ok()?);
        let source: IpAddr = words.next()?.parse().ok()?;
        let guest = Some(words.next()?).filter(|name| *name != NOBODY).map(Into::into);
        let address: IpAddr = words.next()?.parse().ok()?;
        let name = HostName::parse(words.next()?).ok()?;
        if words.next().is_some() {
            return None;
        }
        if let Some(left) = until.checked_sub(now).filter(|left| !left.is_zero()) {
            bindings.push(Binding { source, guest, address, name, left });
        }
    }
    Some(bindings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn filled() -> Arc<Bindings> {
        let bindings = Arc::new(Bindings::default());
        bindings.note(ip("10.0.0.1"), None, &name("a.test"), &[ip("11.0.0.1")], Duration::from_secs(60));
        bindings.note(ip("fd00::1"), Some("vm-1"), &name("b.test"), &[ip("2600::1")], Duration::from_secs(60));
        bindings
    }

    #[test]
    fn bindings_survive_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let first = filled();
        drop(BindingsFile::start(Arc::clone(&first), state.path()).unwrap());
        assert!(!state.path().join(FILE_NAME).exists(), "nothing had changed since the start");
        first.note(ip("10.0.0.1"), None, &name("c.test"), &[ip("11.0.0.1")], Duration::from_secs(60));
        let keeper = BindingsFile::start(Arc::clone(&first), state.path()).unwrap();
        first.note(ip("10.0.0.1"), None, &name("d.test"), &[ip("11.0.0.1")], Duration::from_secs(60));
        drop(keeper);
        let second = Arc::new(Bindings::default());
        let _keeper = BindingsFile::start(Arc::clone(&second), state.path()).unwrap();
        assert_eq!(second.len(), 4);
        assert_eq!(second.names(ip("10.0.0.1"), None, ip("11.0.0.1")).len(), 3);
        assert_eq!(second.names(ip("10.0.0.9"), Some("vm-1"), ip("2600::1")), [name("b.test")]);
    }

    #[test]
    fn a_damaged_file_is_not_used_in_part() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE_NAME);
        save(&filled(), &path).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            whole.replace("end\n", ""),
            whole.replace("a.test", "a..test"),
            whole.replace("11.0.0.1", "11.0.0"),
        ] {
            std::fs::write(&path, damaged).unwrap();
            let bindings = Arc::new(Bindings::default());
            let _keeper = BindingsFile::start(Arc::clone(&bindings), state.path()).unwrap();
            assert!(bindings.is_empty());
        }
    }

    #[test]
    fn a_file_of_a_later_version_is_named_as_such_and_not_used() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE_NAME);
        save(&filled(), &path).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, whole.replace(MAGIC, &format!("{NAME}2"))).unwrap();
        let bindings = Bindings::default();
        let why = load(&bindings, &path).unwrap_err().to_string();
        assert!(why.contains("dns.bindings: a later outgate wrote it (version 2"), "{why}");
        assert!(bindings.is_empty());
        assert_eq!(MAGIC, format!("{NAME}{VERSION}"));
    }

    #[test]
    fn what_has_expired_meanwhile_is_left_out() {
        let line = |until: u64| format!("{MAGIC}\n{until} 10.0.0.1 @ 11.0.0.1 a.test\nend\n");
        let now = Duration::from_secs(1000);
        assert_eq!(parse(&line(1000), now), Some(Vec::new()));
        let read = parse(&line(1001), now).unwrap();
        assert_eq!((read.len(), read[0].left, &read[0].guest), (1, Duration::from_secs(1), &None));
    }
}
