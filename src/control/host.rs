//! The socket by which root's watcher tells the daemon what root alone can see; both ends. A report is a line of JSON,
//! and nothing comes back. Anybody may connect, but only root is listened to (SO_PEERCRED, unix(7)), so that the watcher
//! needs no right to write in the daemon's folder.

use crate::trouble::HostReport;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as Listener, UnixStream as Stream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Beside the control socket.
const NAME: &str = "host.sock";
/// The longest report, in bytes.
const MAX_REPORT: usize = 1 << 20;
/// Watchers that are listened to at once; one comes before the one that it replaces is gone.
const MAX_WATCHERS: usize = 4;
/// How long the daemon may take to read.
const PATIENCE: Duration = Duration::from_secs(1);
/// A watcher that was silent for so long is one that is not there.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Between two reports.
pub const EVERY: Duration = Duration::from_secs(3);

/// Where it is, beside this control socket.
pub fn path(control: &Path) -> PathBuf {
    control.with_file_name(NAME)
}

/// Opens the daemon's end, in the place of what a dead daemon left.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> io::Result<Listener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Listener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What was heard last, and when.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Option<(HostReport, Instant)>>);

impl Heard {
    /// The last report, and how long ago it came.
    pub fn last(&self) -> Option<(HostReport, Duration)> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.as_ref().map(|(report, at)| (report.clone(), at.elapsed()))
    }

    fn note(&self, report: HostReport) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((report, Instant::now()));
    }
}

/// Listens to whoever is root. Never returns but on an error at the start.
///
/// # Errors
/// What the system says.
pub async fn hear(socket: Listener, heard: Arc<Heard>) -> io::Result<()> {
    let socket = UnixListener::from_std(socket)?;
    let mut watchers = JoinSet::new();
    loop {
        let Ok((watcher, _)) = socket.accept().await else {
            // Where descriptors have run out, trying at once helps nobody.
            tokio::time::sleep(crate::admin::http::ACCEPT_PAUSE).await;
            continue;
        };
        while watchers.try_join_next().is_some() {}
        if watchers.len() < MAX_WATCHERS && watcher.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
            watchers.spawn(listen_to(watcher, Arc::clone(&heard)));
        }
    }
}

async fn listen_to(watcher: UnixStream, heard: Arc<Heard>) {
    let mut watcher = BufReader::new(watcher);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut watcher).take(u64::try_from(MAX_REPORT).unwrap_or(u64::MAX));
        match bounded.read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 && line.ends_with(b"\n") => {}
            _ => return,
        }
        match serde_json::from_slice(&line) {
            Ok(report) => heard.note(report),
            Err(error) => {
                return tracing::warn!(%error, "what outgate-host.service tells cannot be read; is it of another version?");
            }
        }
    }
}

/// The watcher's end. It has a thread of its own, for a daemon that was taken over could make it wait.
#[derive(Debug)]
pub struct Teller(SyncSender<(PathBuf, HostReport)>);

impl Teller {
    /// Starts it.
    ///
    /// # Errors
    /// What the system says.
    pub fn start() -> io::Result<Teller> {
        let (ask, asked) = sync_channel::<(PathBuf, HostReport)>(1);
        let mut line = Line::default();
        let work = move || asked.iter().for_each(|(path, report)| line.tell(&path, &report));
        std::thread::Builder::new().name("tell".to_owned()).spawn(work)?;
        Ok(Teller(ask))
    }

    /// Tells the daemon that listens at `path`, if there is one. Never waits: while it does not read, nothing is told.
    pub fn tell(&self, path: &Path, report: &HostReport) {
        let _ = self.0.try_send((path.to_owned(), report.clone()));
    }
}

/// The connection to the daemon.
#[derive(Debug, Default)]
struct Line {
    socket: Option<(PathBuf, Stream)>,
}

impl Line {
    fn tell(&mut self, path: &Path, report: &HostReport) {
        let Ok(mut message) = serde_json::to_vec(report) else { return };
        message.push(b'\n');
        // The second time after a daemon was replaced.
        for _ in 0..2 {
            if self.socket.as_ref().is_none_or(|(at, _)| at != path) {
                self.socket = connected(path).ok().map(|socket| (path.to_owned(), socket));
            }
            match self.socket.as_mut().map(|(_, socket)| socket.write_all(&message)) {
                Some(Ok(())) | None => return,
                // What was written in part makes no sense any more.
                Some(Err(_)) => self.socket = None,
            }
        }
    }
}

fn connected(path: &Path) -> io::Result<Stream> {
    let socket = Stream::connect(path)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trouble::{Guarded, Trouble, TroubleCause};

    #[tokio::test(flavor = "multi_thread")]
    async fn root_is_heard_over_daemons_that_come_and_go_and_nobody_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = path(&dir.path().join("control.sock"));
        let guarding = vec![Guarded { interface: "br0".to_owned(), guests: 3 }];
        let long = Trouble::new(TroubleCause::Routing, "gone: ".repeat(10_000));
        let report = HostReport { guarding, unguarded: vec!["docker0".to_owned()], troubles: vec![long] };
        let mut teller = Line::default();
        teller.tell(&at, &report);
        for _ in 0..2 {
            let heard = Arc::new(Heard::default());
            let hearing = tokio::spawn(hear(open(&at).unwrap(), Arc::clone(&heard)));
            for junk in [&b"{}}\n"[..], b"no JSON", &vec![b' '; MAX_REPORT + 1]] {
                // What cannot be read is no report.
                let _ = connected(&at).unwrap().write_all(junk);
            }
            // Nobody else than root is ever heard, so for them one moment shows as much as a long time.
            let is_root = rustix::process::geteuid().is_root();
            let give_up = Instant::now() + Duration::from_secs(if is_root { 10 } else { 1 });
            while heard.last().is_none() && Instant::now() < give_up {
                teller.tell(&at, &report);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(heard.last().map(|(report, _)| report), is_root.then(|| report.clone()));
            hearing.abort();
            let _ = hearing.await;
        }
    }
}
