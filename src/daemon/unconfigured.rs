//! A daemon without usable configuration or lists, and without a usable copy of them. If it ended, the service
//! manager would restart it again and again, and meanwhile guests would hang in its sockets. So under a service
//! manager it stays. It refuses all guests at once with `not_configured` and reports why wherever it is asked.
//! It ends when something that it was built from has changed, so that the service manager restarts it.

use super::DaemonError;
use crate::account::LogSettings;
use crate::config::{CONFIG_FILE, Settings};
use crate::files::{self, Stamp};
use crate::golem::rules as provider;
use crate::policy::PolicySettings;
use crate::resolve::{NameServer, ResolverSettings};
use crate::tls::TlsSettings;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time between two checks of the files.
const LOOK: Duration = Duration::from_secs(1);
/// Time until the next start in any case: the cause may not be a file, or was fixed while it was read.
const RETRY: Duration = Duration::from_secs(60);

/// Why the daemon has no usable configuration, and which files may change that.
pub(super) struct Unconfigured {
    /// One line for status reports.
    pub(super) trouble: String,
    watched: Vec<PathBuf>,
    seen: Vec<(PathBuf, Stamp)>,
}

impl Unconfigured {
    /// Creates it; `settings` are those that could not be used.
    pub(super) fn new(fault: &DaemonError, settings: &Settings) -> Unconfigured {
        let whole = fault.to_string();
        let line = whole.lines().next().unwrap_or_default();
        let config = settings.path.clone().unwrap_or_else(|| CONFIG_FILE.into());
        let tls = settings.tls.iter().flat_map(TlsSettings::files).map(Path::to_owned);
        let provider = settings.data_dir().map(provider::files).into_iter().flatten();
        let lists = settings.whitelist_dir.clone();
        let watched: Vec<PathBuf> =
            [config, settings.conf_d()].into_iter().chain(lists).chain(tls).chain(provider).collect();
        let trouble = format!(
            "no configuration is in force, so everything is refused (not_configured): {line}; correct it, and the \
             daemon restarts by itself"
        );
        let seen = look(&watched);
        Unconfigured { trouble, watched, seen }
    }

    /// Waits until another start may have a different result.
    pub(super) async fn until_changed(&self) {
        let mut waited = Duration::ZERO;
        loop {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
            if look(&self.watched) != self.seen || waited >= RETRY {
                return;
            }
        }
    }
}

/// Returns the stamps of the paths. A folder is represented by itself and the files in it.
fn look(paths: &[PathBuf]) -> Vec<(PathBuf, Stamp)> {
    let mut seen = Vec::new();
    for path in paths {
        seen.push(one(path.clone()));
        let mut inside: Vec<PathBuf> =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        inside.sort_unstable();
        seen.extend(inside.into_iter().map(one));
    }
    seen
}

fn one(path: PathBuf) -> (PathBuf, Stamp) {
    let stamp = files::stamp(&path);
    (path, stamp)
}

/// Reduces the settings to those that can still be relied on: the listeners and the limits.
pub(super) fn remains(settings: Settings) -> Settings {
    Settings {
        whitelist_dir: None,
        policy: PolicySettings { guests: Vec::new(), ..settings.policy },
        tls: None,
        golem: None,
        log: LogSettings::default(),
        // No server is ever asked.
        resolver: ResolverSettings {
            servers: vec![NameServer::plain(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)))],
            hosts_file: None,
            ..settings.resolver
        },
        ..settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_a_file_changed_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let (config, lists) = (dir.path().join("outgate.toml"), dir.path().join("lists"));
        std::fs::create_dir(&lists).unwrap();
        std::fs::write(&config, "x").unwrap();
        let settings =
            Settings { path: Some(config.clone()), whitelist_dir: Some(lists.clone()), ..Settings::default() };
        let settles = async |fault: &DaemonError, change: &dyn Fn()| {
            let unconfigured = Unconfigured::new(fault, &settings);
            let quiet = tokio::time::timeout(RETRY / 2, unconfigured.until_changed()).await.is_err();
            change();
            (quiet, tokio::time::timeout(RETRY / 2, unconfigured.until_changed()).await.is_ok())
        };
        let fault = DaemonError::Unusable("outgate.toml:1:1: no TOML\nand more".to_owned());
        assert!(Unconfigured::new(&fault, &settings).trouble.contains("no TOML; correct it"));
        assert_eq!(settles(&fault, &|| ()).await, (true, false));
        assert_eq!(settles(&fault, &|| std::fs::write(&config, "y = 1").unwrap()).await, (true, true));
        assert_eq!(settles(&fault, &|| std::fs::write(lists.join("a.rules"), "ipfs.io").unwrap()).await, (true, true));
        assert_eq!(settles(&fault, &|| std::fs::remove_file(lists.join("a.rules")).unwrap()).await, (true, true));
        assert_eq!(settles(&fault, &|| std::fs::remove_file(&config).unwrap()).await, (true, true));
        // It also ends after a while in any case.
        assert!(tokio::time::timeout(RETRY * 2, Unconfigured::new(&fault, &settings).until_changed()).await.is_ok());
    }
}
