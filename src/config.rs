//! The configuration: from the file that the operator wrote to checked [`Settings`], one struct a stage.
//!
//! Everything that the file alone can decide is checked here, and all of its problems are reported at once.
//! Whether an address can be bound or a folder read is checked where it is used.

mod checked;
mod copies;
mod diagnostic;
mod firewall;
mod guests;
mod listeners;
mod paths;
mod raw;
mod unavailable;
mod values;

pub use copies::{COPIES, Copies, Copy, KeptConfiguration};
pub use diagnostic::{Diagnostic, Severity};
pub use paths::{CONFIG_FILE, SYSTEM_CONTROL, SYSTEM_STATE, WHITELIST_DIR};

pub(crate) use diagnostic::nearest;
pub(crate) use guests::identity;
pub(crate) use values::is_guest_name;

use crate::account::LogSettings;
use crate::dial::DialSettings;
use crate::firewall::{FirewallSettings, Seal, Shares};
use crate::golem::rules::{Mode as Grant, Outbound};
use crate::limits::LimitSettings;
use crate::policy::{Mode, PolicySettings, Unknown};
use crate::resolve::{FloorSettings, ResolverSettings};
use crate::tls::TlsSettings;
use diagnostic::Problems;
use ipnet::IpNet;
use paths::{Places, Surroundings};
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest configuration file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The whole configuration, checked.
///
/// [`Settings::default`] is the configuration of an empty file at [`CONFIG_FILE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file it was read from; `None` if there was none.
    pub path: Option<PathBuf>,
    /// `[listen]`.
    pub listen: ListenSettings,
    /// `[whitelist].dir`; `None` for the compiled-in list, if there is neither a configuration file nor a
    /// whitelist dir.
    pub whitelist_dir: Option<PathBuf>,
    /// `mode`, `ech`, `[guests]`, `[[guest]]` and `[dial].blocked_ports`.
    pub policy: PolicySettings,
    /// `[dial].permit_addresses`: exempt from the address floor.
    pub floor_permitted: Vec<IpNet>,
    /// `[resolver]`.
    pub resolver: ResolverSettings,
    /// `[dial]`.
    pub dial: DialSettings,
    /// `[firewall]`, and the guests that are bound to an interface.
    pub firewall: FirewallSettings,
    /// `[firewall].not_guests`: interfaces and patterns that look like guests' interfaces but carry no guests.
    pub not_guests: Vec<String>,
    /// `[limits]`.
    pub limits: LimitSettings,
    /// `[log]`.
    pub log: LogSettings,
    /// `[state].dir`.
    pub state_dir: PathBuf,
    /// `[tls]`, if it names a certificate.
    pub tls: Option<TlsSettings>,
    /// `[golem]`, if it names a data dir.
    pub golem: Option<GolemSettings>,
}

/// `[golem]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GolemSettings {
    /// The provider's data dir, with its list and rules.
    pub data_dir: PathBuf,
    /// What the provider's rules may grant at most.
    pub max_mode: Grant,
}

/// `[listen]` of the configuration. Listeners on IPv6 addresses accept no IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// HTTP forward, CONNECT and SOCKS5.
    pub proxy: Vec<SocketAddr>,
    /// The same inside TLS; always empty in this version.
    pub proxy_tls: Vec<SocketAddr>,
    /// TPROXY.
    pub transparent: Vec<SocketAddr>,
    /// nft REDIRECT.
    pub redirect: Vec<SocketAddr>,
    /// The guests' DNS, UDP and TCP.
    pub dns: Vec<SocketAddr>,
    /// TPROXY for UDP; always empty in this version.
    pub udp: Vec<SocketAddr>,
    /// Read-only HTTP for metrics, health and the status page.
    pub admin: Option<SocketAddr>,
    /// Metrics and health over TLS.
    pub admin_tls: Option<SocketAddr>,
    /// The unix socket of the control protocol.
    pub control: Option<PathBuf>,
}

impl ListenSettings {
    /// Returns the settings without any listener that guests use.
    pub fn without_guests(&self) -> ListenSettings {
        let none = Vec::new;
        let (proxy, proxy_tls, transparent) = (none(), none(), none());
        let (redirect, dns, udp) = (none(), none(), none());
        ListenSettings { proxy, proxy_tls, transparent, redirect, dns, udp, ..self.clone() }
    }

    /// Returns the settings without any listener but the control socket.
    pub fn without_listeners(&self) -> ListenSettings {
        ListenSettings { admin: None, admin_tls: None, ..self.without_guests() }
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What happened and what to do.
        why: String,
    },
    /// The file has errors; all problems are listed, warnings included, in the order of the file.
    #[error("{}", lines(.0))]
    Invalid(Vec<Diagnostic>),
    /// A folder that outgate keeps files in cannot be created or is not safe to use.
    #[error("{}: {why}; {remedy}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

impl ConfigError {
    /// Returns the problems, one a line of output, for every kind of error.
    pub fn into_diagnostics(self) -> Vec<Diagnostic> {
        match self {
            ConfigError::Invalid(diagnostics) => diagnostics,
            ConfigError::Unreadable { path, why } => vec![Diagnostic::whole_file(Severity::Error, &path, why)],
            ConfigError::Folder { path, why, remedy } => {
                vec![Diagnostic::whole_file(Severity::Error, &path, format!("{why}; {remedy}"))]
            }
        }
    }
}

impl Settings {
    /// Reads `path`, or [`CONFIG_FILE`] if it exists, or else uses the defaults. Returns warnings beside the
    /// settings.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] if a file is named but cannot be read, and [`ConfigError::Invalid`] with all
    /// problems if the file contains an error.
    pub fn load(path: Option<&Path>) -> Result<(Settings, Vec<Diagnostic>), ConfigError> {
        let (settings, diagnostics) = Settings::load_leniently(path)?;
        if diagnostics.iter().any(Diagnostic::is_error) {
            return Err(ConfigError::Invalid(diagnostics));
        }
        Ok((settings, diagnostics))
    }

    /// Like [`load`](Self::load), but returns errors beside the settings, with the default for each wrong value.
    /// For callers that only look: `check`, and commands that query a running daemon.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], and [`ConfigError::Invalid`] if the file is not even TOML.
    pub fn load_leniently(path: Option<&Path>) -> Result<(Settings, Vec<Diagnostic>), ConfigError> {
        let surroundings = Surroundings::of_this_process();
        let system = Path::new(CONFIG_FILE);
        let Some(path) = path.or_else(|| system.exists().then_some(system)) else {
            return Ok((Settings::without_file(&surroundings, Path::new(WHITELIST_DIR)), Vec::new()));
        };
        let (text, writable) = read_file(path)?;
        Settings::parse(&text, path, writable, &surroundings)
    }

    /// Returns the differences in `new` that require a restart, as `section.key`. Everything else of `new` may be
    /// applied while the daemon runs.
    pub fn restart_needed(&self, new: &Settings) -> Vec<&'static str> {
        let (old_listen, new_listen) = (&self.listen, &new.listen);
        [
            ("listen.proxy", old_listen.proxy != new_listen.proxy),
            ("listen.proxy_tls", old_listen.proxy_tls != new_listen.proxy_tls),
            ("listen.transparent", old_listen.transparent != new_listen.transparent),
            ("listen.redirect", old_listen.redirect != new_listen.redirect),
            ("listen.dns", old_listen.dns != new_listen.dns),
            ("listen.udp", old_listen.udp != new_listen.udp),
            ("listen.admin", old_listen.admin != new_listen.admin),
            ("listen.admin_tls", old_listen.admin_tls != new_listen.admin_tls),
            ("listen.control", old_listen.control != new_listen.control),
            ("whitelist.dir", self.whitelist_dir != new.whitelist_dir),
            ("state.dir", self.state_dir != new.state_dir),
            ("tls", self.tls != new.tls),
            ("golem.data_dir", self.data_dir() != new.data_dir()),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// `[golem].data_dir`.
    pub fn data_dir(&self) -> Option<&Path> {
        self.golem.as_ref().map(|golem| golem.data_dir.as_path())
    }

    /// Returns the settings for the policy under these provider's rules; without rules, what yagna does without
    /// any. Without `[golem]`, the rules have no effect.
    pub fn policy_with(&self, rules: Option<&Outbound>) -> PolicySettings {
        let granted = |rules: &Outbound| self.mode_of(rules.without_manifest());
        PolicySettings { mode: rules.map_or_else(|| granted(&Outbound::default()), granted), ..self.policy.clone() }
    }

    /// Returns the mode for a provider's rule that grants this much, limited by `max_mode`. Without `[golem]`
    /// there are no such rules, and the mode is that of the configuration.
    pub fn mode_of(&self, granted: Grant) -> Mode {
        match self.golem.as_ref().map(|golem| granted.min(golem.max_mode)) {
            None => self.policy.mode,
            Some(Grant::None) => Mode::None,
            Some(Grant::Whitelist) => Mode::Whitelist,
            Some(Grant::All) => Mode::All,
        }
    }

    /// Returns what identifies the firewall of these settings; `None` if the settings require no firewall.
    pub fn seal(&self) -> Option<Seal> {
        self.firewall.is_wanted().then(|| Seal::of(&self.firewall, &self.listen))
    }

    /// Returns the part of `[limits]` and `[resolver]` that the kernel's rules use; `None` if there should be no
    /// rules.
    pub fn shares(&self) -> Option<Shares> {
        self.firewall.is_wanted().then(|| Shares::of(self))
    }

    /// Returns what the address floor needs: permitted ranges, guests' addresses, and outgate's listeners.
    pub fn floor(&self) -> FloorSettings {
        let listen = &self.listen;
        let lists = [&listen.proxy, &listen.proxy_tls, &listen.transparent, &listen.redirect, &listen.dns, &listen.udp];
        let listeners = lists.into_iter().flatten().chain(&listen.admin).chain(&listen.admin_tls);
        FloorSettings {
            permitted: self.floor_permitted.clone(),
            guests: self.policy.guests.iter().flat_map(|guest| guest.addresses.iter().copied()).collect(),
            listeners: listeners.copied().collect(),
        }
    }

    /// Returns line and column, from 1, of the first `"word"` in the configuration file, for problems that show
    /// only after other files have been read; (1, 1) if the file no longer contains it.
    pub(crate) fn place_of_word(&self, word: &str) -> (u32, u32) {
        let text = self.path.as_deref().and_then(|path| read_file(path).ok());
        let (text, _) = text.unwrap_or_default();
        let found = [format!("\"{word}\""), format!("'{word}'")].iter().find_map(|quoted| text.find(quoted));
        Problems::new(Path::new(""), &text).position(found.unwrap_or(0))
    }

    /// Like [`place_of_word`](Self::place_of_word), for a key at the start of a line.
    pub(crate) fn place_of_key(&self, key: &str) -> (u32, u32) {
        let text = self.path.as_deref().and_then(|path| read_file(path).ok());
        let (text, _) = text.unwrap_or_default();
        let line = text.lines().position(|line| line.trim_start().starts_with(key));
        (line.and_then(|line| u32::try_from(line + 1).ok()).unwrap_or(1), 1)
    }

    /// Creates the state dir and the folders of the control socket if they are missing, for `owner`, a user and a
    /// group, or else for this process.
    ///
    /// # Errors
    /// [`ConfigError::Folder`] if one cannot be created, or if somebody else could change what is in it.
    pub fn make_folders(&self, owner: Option<(u32, u32)>) -> Result<(), ConfigError> {
        let folder = |path: &Path, mode, remedy| {
            let made = paths::make_safe(path, mode, owner);
            made.map_err(|why| ConfigError::Folder { path: path.to_owned(), why, remedy })
        };
        if let Some(parent) = self.listen.control.as_deref().and_then(Path::parent) {
            // Root's socket is also for a group, and its own mode protects it.
            let mode = if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 };
            let parent = if parent == Path::new("") { Path::new(".") } else { parent };
            if paths::is_open(parent) {
                // Someone who swaps the socket can lie to the operator's commands, but cannot change what passes.
                tracing::warn!(
                    folder = %parent.display(),
                    "everyone may replace the control socket; run `chmod o-w` on its folder, or choose another \
                     [listen].control"
                );
            } else {
                folder(parent, mode, "choose another [listen].control")?;
            }
        }
        if let Some(guests) = self.listen.control.as_deref().map(crate::guests::folder) {
            folder(&guests, 0o700, "remove it, or choose another [listen].control")?;
        }
        folder(&self.state_dir, 0o700, "choose another [state].dir")
    }

    fn parse(
        text: &str,
        path: &Path,
        writable: bool,
        surroundings: &Surroundings,
    ) -> Result<(Settings, Vec<Diagnostic>), ConfigError> {
        let mut problems = Problems::new(path, text);
        if writable {
            problems.warn_whole("everyone on this machine may write to this file; run `chmod o-w` on it");
        }
        let raw = raw::read(text, &mut problems);
        let defaults = Settings::at(surroundings.places(path == Path::new(CONFIG_FILE)));
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut settings = checked::check(&raw, defaults, folder, &mut problems);
        settings.path = Some(path.to_owned());
        unavailable::refuse(&raw, &mut problems);
        if problems.is_broken() {
            return Err(ConfigError::Invalid(problems.into_sorted()));
        }
        Ok((settings, problems.into_sorted()))
    }

    fn without_file(surroundings: &Surroundings, whitelist_dir: &Path) -> Settings {
        let whitelist_dir = whitelist_dir.exists().then(|| whitelist_dir.to_owned());
        Settings { path: None, whitelist_dir, ..Settings::at(surroundings.places(false)) }
    }

    fn at(places: Places) -> Settings {
        Settings {
            path: Some(CONFIG_FILE.into()),
            listen: ListenSettings {
                proxy: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 3128))],
                proxy_tls: Vec::new(),
                transparent: Vec::new(),
                redirect: Vec::new(),
                dns: Vec::new(),
                udp: Vec::new(),
                admin: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3190))),
                admin_tls: None,
                control: Some(places.control),
            },
            whitelist_dir: Some(WHITELIST_DIR.into()),
            policy: PolicySettings {
                mode: Mode::Whitelist,
                ech_allowed: false,
                guests: Vec::new(),
                unknown: Unknown::Shared,
                blocked_ports: vec![25, 465, 587],
            },
            floor_permitted: Vec::new(),
            resolver: ResolverSettings { servers: Vec::new(), hosts_file: None, timeout: Duration::from_secs(2) },
            dial: DialSettings { connect_timeout: Duration::from_secs(5) },
            firewall: FirewallSettings::default(),
            not_guests: Vec::new(),
            limits: LimitSettings {
                connections: Some(4096),
                new_connections_per_second: Some(500),
                requests_per_second: Some(1000),
                dns_queries_per_second: Some(5000),
                new_names_per_second: Some(20),
                handshake_timeout: Some(Duration::from_secs(10)),
                idle_timeout: Some(Duration::from_secs(3600)),
                response_timeout: Some(Duration::from_secs(300)),
                total_connections: Some(100_000),
                memory: None,
            },
            log: LogSettings::default(),
            state_dir: places.state,
            tls: None,
            golem: None,
        }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings::at(Places { control: SYSTEM_CONTROL.into(), state: SYSTEM_STATE.into() })
    }
}

fn lines(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n")
}

/// Returns the text of a regular file, and whether everybody may write to it.
fn read_file(path: &Path) -> Result<(String, bool), ConfigError> {
    let unreadable = |why: String| ConfigError::Unreadable { path: path.to_owned(), why };
    let remedy = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => "; name another file with --config",
        io::ErrorKind::PermissionDenied => "; let this user read it",
        _ => "",
    };
    let failed = |error: io::Error| unreadable(format!("{error}{}", remedy(&error)));
    // A FIFO would block open(2), so check first.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(unreadable("not a regular file; name the configuration file itself".to_owned()));
    }
    let file = File::open(path).map_err(failed)?;
    let writable = file.metadata().map_err(failed)?.mode() & 0o002 != 0;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable(format!("larger than {} MiB; this cannot be a configuration file", MAX_FILE >> 20)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, writable)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
            Err(unreadable(format!("line {line} is not UTF-8; save the file as UTF-8")))
        }
    }
}

#[cfg(test)]
mod tests;
