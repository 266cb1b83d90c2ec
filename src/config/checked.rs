//! From the file as written to [`Settings`]: what each value is used for, and what the values have to be together.
//! Reports everything that does not fit, with what to write instead.

use super::forms::Item;
use super::keys::{Golem, Limits, Log, Proof, Resolver};
use super::paths::Places;
use super::problems::Problems;
use super::table::Setting;
use super::written::Written;
use super::{GolemSettings, ListenSettings, ProofSettings, Settings, firewall, guests, listeners};
use crate::account::{AccessLog, LogSettings, OnFailure};
use crate::dial::DialSettings;
use crate::golem::rules::Mode as Grant;
use crate::limits::LimitSettings;
use crate::policy::{Mode, PolicySettings, Unknown};
use crate::resolve::ResolverSettings;
use crate::tls::TlsSettings;
use ipnet::IpNet;
use std::ops::Range;

/// Checks everything; `places` holds for the control socket and the state dir where the file names none.
pub(super) fn check(written: &Written, places: Places, problems: &mut Problems) -> Settings {
    if let Some(mode) = written.top.mode.given() {
        warn_of_mode(*mode, &written.top.mode.span, problems, "every guest");
    }
    let (declared, pins) = guests::check(&written.guest, names_guests(written), problems);
    let by_default = if written.guest.is_empty() { Unknown::Shared } else { Unknown::None };
    let policy = PolicySettings {
        mode: written.top.mode.value,
        ech_allowed: written.top.ech.value,
        guests: declared,
        unknown: written.guests.unknown.given().copied().unwrap_or(by_default),
        blocked_ports: distinct(&written.dial.blocked_ports.value),
    };
    let listen = listeners::check(&written.listen, places.control, problems);
    let settings = Settings {
        path: None,
        more: Vec::new(),
        sha256: None,
        policy,
        floor_permitted: permitted(&written.dial.permit_addresses.value, problems),
        firewall: firewall::check(&written.firewall, &written.interface, pins, &listen, problems),
        not_guests: written.firewall.not_guests.value.iter().map(|name| name.value.clone()).collect(),
        whitelist_dir: Some(written.whitelist.dir.value.clone()),
        resolver: check_resolver(&written.resolver, problems),
        dial: DialSettings { connect_timeout: written.dial.connect_timeout_ms.value },
        limits: check_limits(&written.limits, problems),
        log: check_log(&written.log, problems),
        proof: check_proof(&written.proof, problems),
        state_dir: written.state.dir.given().cloned().unwrap_or(places.state),
        tls: check_tls(written, &listen, problems),
        golem: check_golem(&written.golem, &written.top.mode, problems),
        listen,
    };
    firewall::warn_of_shared_networks(&written.guest, &settings.firewall.guest_interfaces, problems);
    listeners::warn_of_exposure(&written.listen, &settings, problems);
    settings
}

/// Warns of a mode that allows more than the rules do; `whom` completes the warning.
pub(super) fn warn_of_mode(mode: Mode, span: &Option<Range<usize>>, problems: &mut Problems, whom: &str) {
    let message = match mode {
        Mode::All => format!("mode \"all\" lets {whom} reach every public address, whatever the list says"),
        Mode::Observe => format!(
            "mode \"observe\" lets {whom} through even without a rule; change it to \"whitelist\" when the list is complete"
        ),
        Mode::Whitelist | Mode::None => return,
    };
    problems.warn(span.clone().unwrap_or_default(), message);
}

fn distinct(ports: &[Item<u16>]) -> Vec<u16> {
    let mut distinct = Vec::with_capacity(ports.len());
    for port in ports {
        if !distinct.contains(&port.value) {
            distinct.push(port.value);
        }
    }
    distinct
}

fn permitted(given: &[Item<IpNet>], problems: &mut Problems) -> Vec<IpNet> {
    for Item { value: net, span } in given.iter().filter(|item| item.value.prefix_len() < 8) {
        problems.warn(span.clone(), format!("{net} opens most of the address floor, for every rule and guest"));
    }
    given.iter().map(|item| item.value).collect()
}

fn check_proof(given: &Proof, problems: &mut Problems) -> ProofSettings {
    if let Some(one_more) = given.must_pass.value.get(ProofSettings::MOST) {
        problems
            .error(one_more.span.clone(), format!("more than {} URLs; leave some of them out", ProofSettings::MOST));
    }
    ProofSettings { must_pass: given.must_pass.value.iter().map(|url| url.value.clone()).collect() }
}

fn check_resolver(given: &Resolver, problems: &mut Problems) -> ResolverSettings {
    let mut servers = Vec::new();
    for Item { value: server, span } in &given.servers.value {
        if servers.contains(server) {
            problems.warn(span.clone(), format!("{server} is listed twice"));
        } else {
            servers.push(server.clone());
        }
    }
    ResolverSettings { servers, hosts_file: given.hosts_file.value.clone(), timeout: given.timeout_ms.value }
}

/// Returns whether a certificate alone may identify a guest.
fn names_guests(written: &Written) -> bool {
    let proxy_tls = &written.listen.proxy_tls;
    let has_listener = !proxy_tls.value.is_empty() || proxy_tls.is_wrong();
    has_listener && written.tls.client_ca.value.is_some()
}

fn check_tls(written: &Written, listen: &ListenSettings, problems: &mut Problems) -> Option<TlsSettings> {
    let given = &written.tls;
    let proxy = written.listen.proxy_tls.span.as_ref().filter(|_| !listen.proxy_tls.is_empty());
    let admin = written.listen.admin_tls.span.as_ref().filter(|_| listen.admin_tls.is_some());
    let span = |span: &Option<Range<usize>>| span.clone().unwrap_or_default();
    match (&given.certificate.value, &given.key.value, proxy.or(admin)) {
        (Some(certificate), Some(key), listener) => {
            if listener.is_none() {
                let remedy = "set [listen].proxy_tls or [listen].admin_tls, or leave it out";
                problems.warn(span(&given.certificate.span), format!("no listener uses this; {remedy}"));
            }
            let (certificate, key) = (certificate.clone(), key.clone());
            return Some(TlsSettings { certificate, key, client_ca: given.client_ca.value.clone() });
        }
        (Some(_), None, _) => {
            problems.error(span(&given.certificate.span), "a certificate requires its key; set [tls].key");
        }
        (None, Some(_), _) => {
            problems.error(span(&given.key.span), "a key requires its certificate; set [tls].certificate");
        }
        (None, None, Some(listener)) => {
            problems.error(listener.clone(), "a listener with TLS requires [tls].certificate and [tls].key");
        }
        (None, None, None) => {
            if given.client_ca.value.is_some() {
                problems.error(span(&given.client_ca.span), "client_ca requires [tls].certificate and [tls].key");
            }
        }
    }
    None
}

fn check_limits(given: &Limits, problems: &mut Problems) -> LimitSettings {
    let limits = LimitSettings {
        connections: given.connections.value,
        new_connections_per_second: given.new_connections_per_second.value,
        requests_per_second: given.requests_per_second.value,
        dns_queries_per_second: given.dns_queries_per_second.value,
        new_names_per_second: given.new_names_per_second.value,
        handshake_timeout: given.handshake_timeout_ms.value,
        idle_timeout: given.idle_timeout_s.value,
        response_timeout: given.response_timeout_s.value,
        total_connections: given.total_connections.value,
        memory: given.memory_mib.value,
    };
    if let (None, Some(span)) = (limits.handshake_timeout, &given.handshake_timeout_ms.span) {
        let message = "without a handshake timeout a guest may hold connections open that never ask for anything";
        problems.warn(span.clone(), message);
    }
    if let (Some(one), Some(total)) = (limits.connections, limits.total_connections)
        && one > total / 4
        && let Some(span) = given.connections.span.as_ref().or(given.total_connections.span.as_ref())
    {
        let quarter = total / 4;
        let message =
            format!("no guest gets more than a quarter of total_connections, so the limit is {quarter}, not {one}");
        problems.warn(span.clone(), message);
    }
    limits
}

fn check_log(given: &Log, problems: &mut Problems) -> LogSettings {
    let (access, on_failure) = (given.access.value.clone(), given.on_failure.value);
    if access == AccessLog::Off
        && on_failure == OnFailure::Refuse
        && let Some(span) = &given.on_failure.span
    {
        problems.warn(span.clone(), "`on_failure` has no effect if `access` is \"off\"");
    }
    LogSettings { access, denied_only: given.denied_only.value, on_failure }
}

fn check_golem(given: &Golem, mode: &Setting<Mode>, problems: &mut Problems) -> Option<GolemSettings> {
    let max_mode = given.max_mode.value;
    let Some(data_dir) = given.data_dir.value.clone() else {
        if let Some(span) = given.max_mode.span.clone().filter(|_| max_mode != Grant::All) {
            problems.warn(span, "`max_mode` has no effect without `data_dir`");
        }
        return None;
    };
    if let Some(span) = mode.span.clone() {
        let remedy = "leave `mode` out; [golem].max_mode is the ceiling, and [[guest]].mode is for one guest";
        problems.error(span, format!("with [golem].data_dir the provider's rules.json sets the mode; {remedy}"));
    }
    Some(GolemSettings { data_dir, max_mode })
}
