//! From the file as written to [`Settings`]: parses every value strictly, fills in defaults for missing keys, and
//! reports every wrong value with what to write instead.

use super::diagnostic::Problems;
use super::raw::{Given, List, Raw};
use super::values::{self, Zero};
use super::{GolemSettings, ListenSettings, Settings, WHITELIST_DIR, firewall, guests, listeners};
use crate::account::{AccessLog, LogSettings, OnFailure};
use crate::golem::rules::Mode as Grant;
use crate::limits::LimitSettings;
use crate::policy::{Mode, Unknown};
use crate::resolve::ResolverSettings;
use crate::tls::TlsSettings;
use ipnet::IpNet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

/// The words for [`Mode`].
const MODES: [(&str, Mode); 4] =
    [("whitelist", Mode::Whitelist), ("observe", Mode::Observe), ("all", Mode::All), ("none", Mode::None)];

const DAY_S: u32 = 86_400;

/// Checks everything; relative paths start from `folder`, the configuration file's.
pub(super) fn check(raw: &Raw, mut settings: Settings, folder: &Path, problems: &mut Problems<'_>) -> Settings {
    let policy = &mut settings.policy;
    policy.mode = raw.mode.as_ref().and_then(|given| mode(given, problems, "every guest")).unwrap_or(policy.mode);
    policy.ech_allowed = choice(&raw.ech, "ech", &[("deny", false), ("allow", true)], problems).unwrap_or(false);
    let (declared, pins) = guests::check(&raw.guests, names_guests(raw), problems);
    policy.guests = declared;
    let by_default = if raw.guests.is_empty() { Unknown::Shared } else { Unknown::None };
    let words = [("shared", Unknown::Shared), ("none", Unknown::None)];
    policy.unknown = choice(&raw.unknown, "unknown", &words, problems).unwrap_or(by_default);
    if let Some(given) = &raw.dial.blocked_ports {
        policy.blocked_ports = ports(given.get_ref(), problems);
    }
    settings.floor_permitted = permitted(&raw.dial.permit_addresses, problems);
    settings.listen = listeners::check(&raw.listen, settings.listen, folder, problems);
    settings.firewall = firewall::check(raw, pins, &settings.listen, problems);
    settings.not_guests = firewall::not_guests(raw, problems);
    settings.whitelist_dir = Some(match &raw.whitelist_dir {
        Some(given) => path(given, "dir", folder, problems),
        None => WHITELIST_DIR.into(),
    });
    settings.resolver = check_resolver(raw, settings.resolver, folder, problems);
    let connect = &mut settings.dial.connect_timeout;
    *connect =
        milliseconds(&raw.dial.connect_timeout_ms, "connect_timeout_ms", 1..=600_000, problems).unwrap_or(*connect);
    settings.limits = check_limits(raw, settings.limits, problems);
    settings.log = check_log(raw, settings.log, folder, problems);
    if let Some(given) = &raw.state_dir {
        settings.state_dir = path(given, "dir", folder, problems);
    }
    settings.tls = check_tls(raw, &settings.listen, folder, problems);
    settings.golem = check_golem(raw, folder, problems);
    listeners::warn_of_exposure(&raw.listen, &settings, problems);
    settings
}

/// Reads a mode and warns if it allows more than the rules do; `whom` completes the warning.
pub(super) fn mode(given: &Spanned<String>, problems: &mut Problems<'_>, whom: &str) -> Option<Mode> {
    let mode = match values::choice("mode", given.get_ref(), &MODES) {
        Ok(mode) => mode,
        Err(wrong) => {
            problems.error(given.span(), wrong);
            return None;
        }
    };
    match mode {
        Mode::All => problems.warn(
            given.span(),
            format!(
                "mode \"all\" lets {whom} reach every public address, whatever the \
                                                 list says"
            ),
        ),
        Mode::Observe => problems.warn(
            given.span(),
            format!(
                "mode \"observe\" lets {whom} through even without a rule; change it to \"whitelist\" when the list is \
                 complete"
            ),
        ),
        Mode::Whitelist | Mode::None => {}
    }
    Some(mode)
}

fn choice<T: Copy>(given: &Given<String>, key: &str, words: &[(&str, T)], problems: &mut Problems<'_>) -> Option<T> {
    let given = given.as_ref()?;
    values::choice(key, given.get_ref(), words).map_err(|wrong| problems.error(given.span(), wrong)).ok()
}

/// Reads a path; relative ones start from the configuration file's folder.
fn path(given: &Spanned<String>, key: &str, folder: &Path, problems: &mut Problems<'_>) -> PathBuf {
    if given.get_ref().is_empty() {
        problems.error(given.span(), format!("`{key}` is empty; write a path, or leave the key out for the default"));
    }
    folder.join(given.get_ref())
}

fn ports(given: &[Spanned<i64>], problems: &mut Problems<'_>) -> Vec<u16> {
    let mut ports = Vec::with_capacity(given.len());
    for item in given {
        match u16::try_from(*item.get_ref()) {
            Ok(port) if port != 0 => {
                if !ports.contains(&port) {
                    ports.push(port);
                }
            }
            _ => {
                problems.error(item.span(), format!("{} is not a port; write a number from 1 to 65535", item.get_ref()))
            }
        }
    }
    ports
}

fn permitted(given: &List<String>, problems: &mut Problems<'_>) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for item in given.iter().flat_map(|list| list.get_ref()) {
        match values::net(item.get_ref()) {
            Ok(net) => {
                if net.prefix_len() < 8 {
                    problems
                        .warn(item.span(), format!("{net} opens most of the address floor, for every rule and guest"));
                }
                nets.push(net);
            }
            Err(wrong) => problems.error(item.span(), wrong),
        }
    }
    nets
}

fn check_resolver(
    raw: &Raw,
    mut settings: ResolverSettings,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> ResolverSettings {
    for item in raw.resolver.servers.iter().flat_map(|list| list.get_ref()) {
        match values::server(item.get_ref()) {
            Ok(server) if settings.servers.contains(&server) => {
                problems.warn(item.span(), format!("{server} is listed twice"));
            }
            Ok(server) => settings.servers.push(server),
            Err(wrong) => problems.error(item.span(), wrong),
        }
    }
    let hosts = raw.resolver.hosts_file.as_ref().filter(|given| !given.get_ref().is_empty());
    settings.hosts_file = hosts.map(|given| path(given, "hosts_file", folder, problems));
    if let Some(timeout) = milliseconds(&raw.resolver.timeout_ms, "timeout_ms", 1..=60_000, problems) {
        settings.timeout = timeout;
    }
    settings
}

/// Returns whether a certificate alone may identify a guest.
fn names_guests(raw: &Raw) -> bool {
    let has_door = raw.listen.proxy_tls.as_ref().is_some_and(|list| !list.get_ref().is_empty());
    has_door && raw.tls.client_ca.as_ref().is_some_and(|path| !path.get_ref().is_empty())
}

fn check_tls(raw: &Raw, listen: &ListenSettings, folder: &Path, problems: &mut Problems<'_>) -> Option<TlsSettings> {
    let given = &raw.tls;
    let set = |key: &Given<String>| key.clone().filter(|text| !text.get_ref().is_empty());
    let (certificate, key, client_ca) = (set(&given.certificate), set(&given.key), set(&given.client_ca));
    let proxy = raw.listen.proxy_tls.as_ref().filter(|_| !listen.proxy_tls.is_empty()).map(Spanned::span);
    let admin = raw.listen.admin_tls.as_ref().filter(|_| listen.admin_tls.is_some()).map(Spanned::span);
    let wants = proxy.or(admin);
    match (&certificate, &key, wants) {
        (Some(certificate), Some(key), wants) => {
            if wants.is_none() {
                let remedy = "set [listen].proxy_tls or [listen].admin_tls, or leave it out";
                problems.warn(certificate.span(), format!("no listener uses this; {remedy}"));
            }
            let path = |given: &Spanned<String>| folder.join(given.get_ref());
            let client_ca = client_ca.as_ref().map(path);
            return Some(TlsSettings { certificate: path(certificate), key: path(key), client_ca });
        }
        (Some(one), None, _) => problems.error(one.span(), "a certificate requires its key; set [tls].key"),
        (None, Some(one), _) => problems.error(one.span(), "a key requires its certificate; set [tls].certificate"),
        (None, None, Some(listener)) => {
            problems.error(listener, "a listener with TLS requires [tls].certificate and [tls].key");
        }
        (None, None, None) => {
            if let Some(client_ca) = &client_ca {
                problems.error(client_ca.span(), "client_ca requires [tls].certificate and [tls].key");
            }
        }
    }
    None
}

fn check_limits(raw: &Raw, mut limits: LimitSettings, problems: &mut Problems<'_>) -> LimitSettings {
    let given = &raw.limits;
    for (key, number, limit) in [
        ("connections", &given.connections, &mut limits.connections),
        ("new_connections_per_second", &given.new_connections_per_second, &mut limits.new_connections_per_second),
        ("requests_per_second", &given.requests_per_second, &mut limits.requests_per_second),
        ("dns_queries_per_second", &given.dns_queries_per_second, &mut limits.dns_queries_per_second),
        ("new_names_per_second", &given.new_names_per_second, &mut limits.new_names_per_second),
        ("total_connections", &given.total_connections, &mut limits.total_connections),
    ] {
        if let Some(read) = limit_number(number, key, 1..=u32::MAX, problems) {
            *limit = read;
        }
    }
    if let Some(read) = limit_number(&given.handshake_timeout_ms, "handshake_timeout_ms", 1..=600_000, problems) {
        limits.handshake_timeout = read.map(|ms| Duration::from_millis(ms.into()));
        if let (None, Some(given)) = (read, &given.handshake_timeout_ms) {
            problems.warn(
                given.span(),
                "without a handshake timeout a guest may hold connections open that never ask for anything",
            );
        }
    }
    if let Some(read) = limit_number(&given.idle_timeout_s, "idle_timeout_s", 1..=365 * DAY_S, problems) {
        limits.idle_timeout = read.map(|s| Duration::from_secs(s.into()));
    }
    if let Some(read) = limit_number(&given.response_timeout_s, "response_timeout_s", 1..=365 * DAY_S, problems) {
        limits.response_timeout = read.map(|s| Duration::from_secs(s.into()));
    }
    if let Some(read) = limit_number(&given.memory_mib, "memory_mib", 1..=u32::MAX, problems) {
        limits.memory = read.map(|mib| u64::from(mib) << 20);
    }
    if let (Some(one), Some(total)) = (limits.connections, limits.total_connections)
        && one > total / 4
        && let Some(span) = given.connections.as_ref().or(given.total_connections.as_ref()).map(Spanned::span)
    {
        let quarter = total / 4;
        problems.warn(
            span,
            format!(
                "no guest gets more than a quarter of total_connections, so the limit is {quarter}, \
                                 not {one}"
            ),
        );
    }
    limits
}

/// Returns `Some(None)` for 0, which means no limit; `None` if the key is absent or wrong.
fn limit_number(
    given: &Given<i64>,
    key: &str,
    range: RangeInclusive<u32>,
    problems: &mut Problems<'_>,
) -> Option<Option<u32>> {
    let given = given.as_ref()?;
    let read = values::number(key, *given.get_ref(), range, Zero::IsNone);
    read.map_err(|wrong| problems.error(given.span(), wrong)).ok()
}

fn milliseconds(
    given: &Given<i64>,
    key: &str,
    range: RangeInclusive<u32>,
    problems: &mut Problems<'_>,
) -> Option<Duration> {
    let given = given.as_ref()?;
    let read = values::number(key, *given.get_ref(), range, Zero::IsWrong);
    let read = read.map_err(|wrong| problems.error(given.span(), wrong)).ok()?;
    read.map(|ms| Duration::from_millis(ms.into()))
}

fn check_log(raw: &Raw, default: LogSettings, folder: &Path, problems: &mut Problems<'_>) -> LogSettings {
    let access = match raw.access.as_ref().map(|given| (given, given.get_ref().as_str())) {
        None => default.access,
        Some((_, "stdout")) => AccessLog::Stdout,
        Some((_, "journal")) => AccessLog::Journal,
        Some((_, "off")) => AccessLog::Off,
        Some((_, text)) if text.contains('/') && !text.ends_with('/') => AccessLog::File(folder.join(text)),
        Some((given, text)) => {
            let words = "write \"stdout\", \"journal\", \"off\" or a path with a slash in it";
            problems.error(given.span(), format!("`access` is {text:?}; {words}"));
            default.access
        }
    };
    let words = [("continue", OnFailure::Continue), ("refuse", OnFailure::Refuse)];
    let on_failure = choice(&raw.on_failure, "on_failure", &words, problems).unwrap_or(default.on_failure);
    if let Some(given) = raw.on_failure.as_ref().filter(|_| access == AccessLog::Off && on_failure == OnFailure::Refuse)
    {
        problems.warn(given.span(), "`on_failure` has no effect if `access` is \"off\"");
    }
    let denied_only = raw.denied_only.as_ref().map_or(default.denied_only, |given| *given.get_ref());
    LogSettings { access, denied_only, on_failure }
}

fn check_golem(raw: &Raw, folder: &Path, problems: &mut Problems<'_>) -> Option<GolemSettings> {
    let words = [("all", Grant::All), ("whitelist", Grant::Whitelist), ("none", Grant::None)];
    let max_mode = choice(&raw.golem.max_mode, "max_mode", &words, problems).unwrap_or(Grant::All);
    let Some(given) = raw.golem.data_dir.as_ref().filter(|given| !given.get_ref().is_empty()) else {
        if let Some(given) = raw.golem.max_mode.as_ref().filter(|_| max_mode != Grant::All) {
            problems.warn(given.span(), "`max_mode` has no effect without `data_dir`");
        }
        return None;
    };
    if let Some(mode) = &raw.mode {
        let remedy = "leave `mode` out; [golem].max_mode is the ceiling, and [[guest]].mode is for one guest";
        problems.error(mode.span(), format!("with [golem].data_dir the provider's rules.json sets the mode; {remedy}"));
    }
    Some(GolemSettings { data_dir: path(given, "data_dir", folder, problems), max_mode })
}
