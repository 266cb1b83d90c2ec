//! The socket through which root's watcher reports to the daemon what only root can see; both sides. A report is a
//! line of JSON, and there is no answer. Anybody may connect, but only root's reports are read (SO_PEERCRED,
//! unix(7)), so that the watcher needs no right to write in the daemon's folder.

use crate::firewall::{FindingKind, GuardReport};
use crate::lock::lock;
use crate::trouble::{BetweenGuests, Guarded, HostReport, Trouble, TroubleCause};
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as Listener, UnixStream as Stream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// File name, beside the control socket.
const NAME: &str = "host.sock";
/// The longest report, in bytes.
const MAX_REPORT: usize = 1 << 20;
/// Simultaneous watchers; a new one may connect before the one that it replaces is gone.
const MAX_WATCHERS: usize = 4;
/// How long the watcher waits for the daemon to read.
const PATIENCE: Duration = Duration::from_secs(1);
/// After this time without a report, the watcher counts as absent.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Interval between two reports.
pub const EVERY: Duration = Duration::from_secs(3);

impl From<GuardReport> for HostReport {
    fn from(report: GuardReport) -> HostReport {
        let guarding = report.guarding.into_iter().map(|guarded| Guarded {
            interface: guarded.name,
            guests: guarded.guests,
            between_guests: if guarded.between_guests { BetweenGuests::Allow } else { BetweenGuests::Refuse },
        });
        let troubles = report.findings.into_iter().map(|finding| Trouble::new(finding.kind.into(), finding.text));
        HostReport { guarding: guarding.collect(), unguarded: report.unguarded, troubles: troubles.collect() }
    }
}

impl From<FindingKind> for TroubleCause {
    fn from(kind: FindingKind) -> TroubleCause {
        match kind {
            FindingKind::Ruleset => TroubleCause::Ruleset,
            FindingKind::Routing => TroubleCause::Routing,
            FindingKind::OtherFirewall => TroubleCause::OtherFirewall,
            FindingKind::InterfaceMissing => TroubleCause::InterfaceMissing,
            FindingKind::PortUnguarded => TroubleCause::PortUnguarded,
            FindingKind::UnguardedGuests => TroubleCause::UnguardedGuests,
            FindingKind::DockerDns => TroubleCause::DockerDns,
        }
    }
}

/// Returns the path of the socket, beside this control socket.
pub fn path(control: &Path) -> PathBuf {
    control.with_file_name(NAME)
}

/// Opens the daemon's side, and replaces the socket of a dead daemon.
///
/// # Errors
/// Those of the system.
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

/// The last report received, and when.
#[derive(Debug, Default)]
pub struct HostReports(Mutex<Option<(HostReport, Instant)>>);

impl HostReports {
    /// Returns the last report, and how long ago it arrived.
    pub fn last(&self) -> Option<(HostReport, Duration)> {
        let reports = lock(&self.0);
        reports.as_ref().map(|(report, at)| (report.clone(), at.elapsed()))
    }

    fn note(&self, report: HostReport) {
        *lock(&self.0) = Some((report, Instant::now()));
    }
}

/// Reads the reports of every root peer. Returns only on an error at the start.
///
/// # Errors
/// Those of the system.
pub async fn receive(socket: Listener, reports: Arc<HostReports>) -> io::Result<()> {
    let socket = UnixListener::from_std(socket)?;
    let mut watchers = JoinSet::new();
    loop {
        let Ok((watcher, _)) = socket.accept().await else {
            // If descriptors have run out, an immediate retry does not help.
            tokio::time::sleep(crate::admin::http_connection::ACCEPT_PAUSE).await;
            continue;
        };
        while watchers.try_join_next().is_some() {}
        if watchers.len() < MAX_WATCHERS && watcher.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
            watchers.spawn(read_reports(watcher, Arc::clone(&reports)));
        }
    }
}

async fn read_reports(watcher: UnixStream, reports: Arc<HostReports>) {
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
            Ok(report) => reports.note(report),
            Err(error) => {
                return tracing::warn!(%error, "the report of outgate-host.service cannot be read; does it run another \
                                               version?");
            }
        }
    }
}

/// The watcher's side. It has its own thread, because a compromised daemon could make it wait.
#[derive(Debug)]
pub struct ReportSender(SyncSender<(PathBuf, HostReport)>);

impl ReportSender {
    /// Starts the thread.
    ///
    /// # Errors
    /// Those of the system.
    pub fn start() -> io::Result<ReportSender> {
        let (ask, asked) = sync_channel::<(PathBuf, HostReport)>(1);
        let mut line = Line::default();
        let work = move || asked.iter().for_each(|(path, report)| line.send(&path, &report));
        std::thread::Builder::new().name("tell".to_owned()).spawn(work)?;
        Ok(ReportSender(ask))
    }

    /// Sends a report to the daemon that listens at `path`, if there is one. Never waits: while the daemon does
    /// not read, reports are dropped.
    pub fn send(&self, path: &Path, report: &HostReport) {
        let _ = self.0.try_send((path.to_owned(), report.clone()));
    }
}

/// The connection to the daemon.
#[derive(Debug, Default)]
struct Line {
    socket: Option<(PathBuf, Stream)>,
}

impl Line {
    fn send(&mut self, path: &Path, report: &HostReport) {
        let Ok(mut message) = serde_json::to_vec(report) else { return };
        message.push(b'\n');
        // The second attempt is for a daemon that was replaced.
        for _ in 0..2 {
            if self.socket.as_ref().is_none_or(|(at, _)| at != path) {
                self.socket = connected(path).ok().map(|socket| (path.to_owned(), socket));
            }
            match self.socket.as_mut().map(|(_, socket)| socket.write_all(&message)) {
                Some(Ok(())) | None => return,
                // A partly written report makes the rest of the connection useless.
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
    use crate::trouble::{BetweenGuests, Guarded, Trouble, TroubleCause};

    #[tokio::test(flavor = "multi_thread")]
    async fn root_is_heard_over_daemons_that_come_and_go_and_nobody_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = path(&dir.path().join("control.sock"));
        let guarding = vec![Guarded { interface: "br0".to_owned(), guests: 3, between_guests: BetweenGuests::Allow }];
        let long = Trouble::new(TroubleCause::Routing, "gone: ".repeat(10_000));
        let report = HostReport { guarding, unguarded: vec!["docker0".to_owned()], troubles: vec![long] };
        let mut sender = Line::default();
        sender.send(&at, &report);
        for _ in 0..2 {
            let reports = Arc::new(HostReports::default());
            let hearing = tokio::spawn(receive(open(&at).unwrap(), Arc::clone(&reports)));
            for junk in [&b"{}}\n"[..], b"no JSON", &vec![b' '; MAX_REPORT + 1]] {
                // Unreadable input is not a report.
                let _ = connected(&at).unwrap().write_all(junk);
            }
            // Only root's reports are ever read, so for other users one moment shows as much as a long time.
            let is_root = rustix::process::geteuid().is_root();
            let give_up = Instant::now() + Duration::from_secs(if is_root { 10 } else { 1 });
            while reports.last().is_none() && Instant::now() < give_up {
                sender.send(&at, &report);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(reports.last().map(|(report, _)| report), is_root.then(|| report.clone()));
            hearing.abort();
            let _ = hearing.await;
        }
    }
}
