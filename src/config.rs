//! The configuration: from the file that the operator wrote to checked [`Settings`], one struct a stage.
//!
//! Everything that the file alone can decide is checked here, and all of its problems are reported at once.
//! Whether an address can be bound or a folder read is checked where it is used.

mod checked;
mod copies;

mod document;
mod firewall;
mod forms;
mod guests;
mod keys;
mod listeners;
mod paths;
mod problems;
mod reference;
mod sources;
mod table;
mod trial;
mod values;
mod written;

pub use copies::{COPIES, Copies, Copy, KeptConfiguration};

pub use paths::{CONFIG_FILE, SYSTEM_CONTROL, SYSTEM_STATE, WHITELIST_DIR};

pub(crate) use guests::identity;
pub use problems::nearest;
pub use reference::manual;
pub use sources::stamps;
pub use trial::{KeyPlace, Trial};
pub use values::{is_guest_name, is_probe};

use crate::accept::SocketUse;
use crate::account::LogSettings;
use crate::diagnostic::{Diagnostic, Severity};
use crate::dial::DialSettings;
use crate::files::version::LaterVersion;
use crate::firewall::FirewallSettings;
use crate::golem::rules::{Mode as Grant, Outbound};
use crate::limits::LimitSettings;
use crate::policy::{Mode, PolicySettings};
use crate::resolve::{FloorSettings, ResolverSettings};
use crate::tls::TlsSettings;
use forms::Reader;
use ipnet::IpNet;
use paths::{Places, Surroundings};
use problems::Problems;
use sources::Sources;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The whole configuration, checked.
///
/// [`Settings::default`] is the configuration of an empty file at [`CONFIG_FILE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file it was read from; `None` if there was none.
    pub path: Option<PathBuf>,
    /// The files that were read after it, of the folder `conf.d` beside it.
    pub more: Vec<PathBuf>,
    /// The SHA-256 over the files that it was read from, as [`outgate_files::sums`] computes it; `None` for a text that
    /// is in no file.
    pub sha256: Option<String>,
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
    /// `[proof]`.
    pub proof: ProofSettings,
    /// `[state].dir`.
    pub state_dir: PathBuf,
    /// `[tls]`, if it names a certificate.
    pub tls: Option<TlsSettings>,
    /// `[golem]`, if it names a data dir.
    pub golem: Option<GolemSettings>,
}

/// `[proof]` of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProofSettings {
    /// URLs that guests must reach.
    pub must_pass: Vec<String>,
}

impl ProofSettings {
    /// Maximum number of URLs.
    pub const MOST: usize = 16;
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
    /// The same inside TLS.
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
    /// Returns the addresses on which sockets for this use listen.
    pub fn addresses(&self, kind: SocketUse) -> &[SocketAddr] {
        match kind {
            SocketUse::Proxy => &self.proxy,
            SocketUse::ProxyTls => &self.proxy_tls,
            SocketUse::Transparent => &self.transparent,
            SocketUse::Redirect => &self.redirect,
            SocketUse::Dns => &self.dns,
            SocketUse::Admin => self.admin.as_slice(),
            SocketUse::AdminTls => self.admin_tls.as_slice(),
        }
    }

    /// Returns all listeners, in the order of [`SocketUse`].
    pub fn listeners(&self) -> impl Iterator<Item = (SocketUse, SocketAddr)> {
        SocketUse::ALL.into_iter().flat_map(|kind| self.addresses(kind).iter().map(move |address| (kind, *address)))
    }

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
    /// It is a copy that a later version wrote.
    #[error(transparent)]
    Later(LaterVersion),
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
            ConfigError::Later(why) => {
                vec![Diagnostic::whole_file(Severity::Error, &why.path.clone(), why.to_string())]
            }
            ConfigError::Folder { path, why, remedy } => {
                vec![Diagnostic::whole_file(Severity::Error, &path, format!("{why}; {remedy}"))]
            }
        }
    }
}

/// Checks a name or pattern of `[firewall].guest_interfaces`.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn guest_interface(text: &str) -> Result<(), String> {
    firewall::guest_interface(text).map(drop)
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
            if let Some(error) = sources::orphans(system) {
                return Err(error);
            }
            return Ok((Settings::without_file(&surroundings, Path::new(WHITELIST_DIR)), Vec::new()));
        };
        Settings::parse(&Sources::read(path)?, &surroundings)
    }

    /// Returns the differences in `new` that require a restart, as `section.key`. Everything else of `new` may be
    /// applied while the daemon runs.
    pub fn restart_needed(&self, new: &Settings) -> Vec<&'static str> {
        table::restart_needed(self, new)
    }

    /// Returns `new` with everything that requires a restart as it is here.
    pub(crate) fn reloaded(&self, new: Settings) -> Settings {
        let mut reloaded = new;
        table::keep_fixed(self, &mut reloaded);
        reloaded
    }

    /// Returns the files that it was read from, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.path.as_deref().into_iter().chain(self.more.iter().map(PathBuf::as_path))
    }

    /// Returns the folder for further files, whether it exists or not.
    pub fn conf_d(&self) -> PathBuf {
        sources::folder_of(self.path.as_deref().unwrap_or(Path::new(CONFIG_FILE)))
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

    /// Returns what the address floor needs: permitted ranges, guests' addresses, and outgate's listeners.
    pub fn floor(&self) -> FloorSettings {
        let listen = &self.listen;
        let listeners = SocketUse::ALL.into_iter().flat_map(|kind| listen.addresses(kind)).chain(&listen.udp);
        FloorSettings {
            permitted: self.floor_permitted.clone(),
            guests: self.policy.guests.iter().flat_map(|guest| guest.addresses.iter().copied()).collect(),
            listeners: listeners.copied().collect(),
        }
    }

    /// Returns a problem at the first `"word"` of the configuration, for problems that show only after other files
    /// have been read; at its beginning if the word is no longer there.
    pub fn problem_at_word(&self, word: &str, severity: Severity, message: String) -> Diagnostic {
        let quoted = [format!("\"{word}\""), format!("'{word}'")];
        self.problem_at(|text| quoted.iter().find_map(|quoted| text.find(quoted)), severity, message)
    }

    /// Like [`problem_at_word`](Self::problem_at_word), for a key at the start of a line.
    pub fn problem_at_key(&self, key: &str, severity: Severity, message: String) -> Diagnostic {
        let search = |text: &str| {
            let mut lines = text
                .split_inclusive('\n')
                .scan(0, |next, line| Some((std::mem::replace(next, *next + line.len()), line)));
            lines.find(|(_, line)| line.trim_start().starts_with(key)).map(|(start, _)| start)
        };
        self.problem_at(search, severity, message)
    }

    /// Returns the file in which a key stands at the start of a line, or else the named file.
    pub fn file_of_key(&self, key: &str) -> PathBuf {
        match self.problem_at_key(key, Severity::Error, String::new()).file {
            file if file.as_os_str().is_empty() => CONFIG_FILE.into(),
            file => file,
        }
    }

    fn problem_at(&self, search: impl Fn(&str) -> Option<usize>, severity: Severity, message: String) -> Diagnostic {
        let file = self.path.clone().unwrap_or_default();
        let sources = self.path.as_deref().and_then(|path| Sources::read(path).ok());
        let (file, line, column) = sources.and_then(|sources| sources.find(search)).unwrap_or((file, 1, 1));
        Diagnostic { severity, file, line, column, message, remedy: String::new() }
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
        if let Some(guests) = self.listen.control.as_deref().map(crate::registered_guests::folder) {
            folder(&guests, 0o700, "remove it, or choose another [listen].control")?;
        }
        folder(&self.state_dir, 0o700, "choose another [state].dir")
    }

    fn parse(sources: &Sources, surroundings: &Surroundings) -> Result<(Settings, Vec<Diagnostic>), ConfigError> {
        let (document, mut problems) = sources.merged();
        let path = sources.path();
        let folder = path.parent().unwrap_or(Path::new(""));
        let written = written::read(&document, &mut Reader { folder, problems: &mut problems });
        let places = surroundings.places(path == Path::new(CONFIG_FILE));
        let mut settings = checked::check(&written, places, &mut problems);
        settings.path = Some(path.to_owned());
        settings.more = sources.more().map(Path::to_owned).collect();
        settings.sha256 = sources.sha256();
        if problems.is_broken() {
            return Err(ConfigError::Invalid(problems.into_sorted()));
        }
        Ok((settings, problems.into_sorted()))
    }

    fn without_file(surroundings: &Surroundings, whitelist_dir: &Path) -> Settings {
        let whitelist_dir = whitelist_dir.exists().then(|| whitelist_dir.to_owned());
        Settings { path: None, whitelist_dir, ..Settings::at(surroundings.places(false)) }
    }

    /// Returns the settings of an empty file at [`CONFIG_FILE`].
    fn at(places: Places) -> Settings {
        let path = Path::new(CONFIG_FILE);
        let mut problems = Problems::new(path, "");
        let written = written::read(&[], &mut Reader { folder: Path::new(""), problems: &mut problems });
        Settings { path: Some(path.to_owned()), ..checked::check(&written, places, &mut problems) }
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

#[cfg(test)]
mod tests;
