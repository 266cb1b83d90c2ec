//! Reduces the process's privileges to those that its work requires: which privileges are dropped when, and
//! what must still be possible without them. The `system` module implements each drop.

use super::DaemonError;
use crate::account::{AccessLog, Account};
use crate::config::{self, Settings};
use crate::control::{self, ControlError};
use crate::registered_guests;
use crate::system::{self, Confine, Need, Use, User};
use crate::tls::TlsSettings;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// What confines the daemon, for the metrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sandbox {
    sandbox: bool,
    landlock: u8,
}

/// The result of giving up privileges.
pub(super) struct GivenUp {
    pub(super) sandbox: Sandbox,
    /// The control socket, if one is configured and could be opened.
    pub(super) control: Option<UnixListener>,
    /// The socket for reports of root's watcher, in the same folder.
    pub(super) host: Option<UnixListener>,
    /// The first thing that is not usable any more.
    pub(super) unusable: Option<DaemonError>,
}

/// Gives up user and capabilities, checks whether the files are usable without them, and confines writing to
/// the daemon's own folders. Call it when every listener is open and before any thread starts: threads inherit
/// all of it.
///
/// `control` opens the control socket in between: as the user who will own it, and before writing in its folder
/// is barred.
///
/// # Errors
/// [`DaemonError::Privileges`]; what is not usable without privileges is part of the result.
pub(super) fn give_up(
    settings: &Settings,
    confine: &Confine,
    control: impl FnOnce() -> Result<Option<UnixListener>, ControlError>,
) -> Result<GivenUp, DaemonError> {
    let mut unusable = None;
    if system::is_privileged() || confine.user.is_some() {
        system::give_up(confine.user.as_ref())?;
        unusable = system::check(&needs(settings), confine.user.as_ref()).err().map(DaemonError::from);
        report_lists(settings, confine.user.as_ref());
        let user = confine.user.as_ref().map_or("unchanged", |user| user.name.as_str());
        tracing::info!(user, "all privileges are given up");
    }
    let control = control().unwrap_or_else(|error| {
        unusable.get_or_insert(error.into());
        None
    });
    let host = settings.listen.control.as_deref().filter(|_| control.is_some()).and_then(|control| {
        let path = control::host::path(control);
        control::host::open(&path)
            .map_err(|error| {
                tracing::error!(path = %path.display(), %error, "reports of outgate-host.service cannot \
                                                                              be received")
            })
            .ok()
    });
    if !confine.sandbox {
        tracing::warn!(
            "--no-sandbox: a vulnerability in outgate would expose every file and system call that its user has; find \
             out what the sandbox breaks, then remove the option"
        );
        return Ok(GivenUp { sandbox: Sandbox { sandbox: false, landlock: 0 }, control, host, unusable });
    }
    let sandbox = Sandbox { sandbox: true, landlock: system::fence_files(&writable(settings)) };
    Ok(GivenUp { sandbox, control, host, unusable })
}

/// Bars every system call that only the start needed. Call it once all threads run.
pub(super) fn bar_calls(sandbox: Sandbox, account: &Account) {
    let seccomp = sandbox.sandbox && system::fence_calls();
    account.metrics().set_sandbox(sandbox.landlock, seccomp);
    tracing::debug!(landlock = sandbox.landlock, seccomp, "the sandbox");
}

/// Returns what a reload, a rotated log or the end of the daemon will need, except for the lists.
pub fn needs(settings: &Settings) -> Vec<Need> {
    // Also those of which the settings have nothing, because they could not be read.
    let config = settings.path.iter().flat_map(|path| config::stamps(Some(path)));
    let config = config.filter(|(_, stamp)| stamp.is_some()).map(|(path, _)| Need { path, what: Use::Read });
    let state = Need { path: settings.state_dir.clone(), what: Use::Keep };
    let control = settings.listen.control.as_deref().and_then(folder_of);
    let control = control.map(|path| Need { path, what: Use::Make });
    let log = log_file(settings).map(|path| Need { path: path.to_owned(), what: Use::Append });
    let guests =
        settings.listen.control.as_deref().map(|path| Need { path: registered_guests::folder(path), what: Use::Keep });
    let tls = settings.tls.iter().flat_map(TlsSettings::files);
    let tls = tls.map(|path| Need { path: path.to_owned(), what: Use::Read });
    config.chain([state]).chain(control).chain(guests).chain(log).chain(tls).collect()
}

/// Logs which lists can't be read any more. The code that reads them decides whether to continue with the last
/// good ones.
fn report_lists(settings: &Settings, user: Option<&User>) {
    let Some(dir) = &settings.whitelist_dir else { return };
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in [dir.clone()].into_iter().chain(files.filter(|path| is_list(path))) {
        if let Err(error) = system::check(&[Need { path, what: Use::Read }], user) {
            tracing::error!("{error}");
        }
    }
}

/// Returns the folders in which the running daemon creates or replaces files.
fn writable(settings: &Settings) -> Vec<PathBuf> {
    let log = log_file(settings).map(|path| path.canonicalize().unwrap_or_else(|_| path.to_owned()));
    let guests = settings.listen.control.as_deref().map(registered_guests::folder);
    [settings.state_dir.clone()].into_iter().chain(guests).chain(log.as_deref().and_then(folder_of)).collect()
}

fn log_file(settings: &Settings) -> Option<&Path> {
    match &settings.log.access {
        AccessLog::File(path) => Some(path),
        AccessLog::Stdout | AccessLog::Journal | AccessLog::Off => None,
    }
}

fn folder_of(path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?;
    Some(if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() })
}

/// Whether the file is part of a list, by its name; other files may be unreadable.
fn is_list(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden
        && path.extension().is_some_and(|extension| extension == "rules" || extension == "lst" || extension == "json")
}
