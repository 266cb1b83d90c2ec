//! The configuration file as written: which keys exist, with which type, and where each is in the file. `checked`
//! decides what the values mean.
//!
//! The tables are walked by hand rather than derived, because a derived reader stops at the first mistake and an
//! operator wants to see all of them at once.

use super::diagnostic::{Problems, nearest};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A key's value and its place, if the key is present.
pub(super) type Given<T> = Option<Spanned<T>>;
/// A list with the place of each element.
pub(super) type List<T> = Given<Vec<Spanned<T>>>;

/// Every section and its keys; the first is the top of the file.
pub(super) const KEYS: [(&str, &[&str]); 13] = [
    ("", &["mode", "ech"]),
    ("listen", &["proxy", "proxy_tls", "transparent", "redirect", "dns", "udp", "admin", "admin_tls", "control"]),
    ("tls", &["certificate", "key", "client_ca"]),
    ("whitelist", &["dir"]),
    ("resolver", &["servers", "hosts_file", "timeout_ms"]),
    ("dial", &["permit_addresses", "blocked_ports", "connect_timeout_ms"]),
    ("firewall", &["guest_interfaces", "not_guests", "host_users", "allow_dhcp", "allow_inbound_replies"]),
    (
        "limits",
        &[
            "connections",
            "new_connections_per_second",
            "requests_per_second",
            "dns_queries_per_second",
            "new_names_per_second",
            "handshake_timeout_ms",
            "idle_timeout_s",
            "response_timeout_s",
            "total_connections",
            "memory_mib",
        ],
    ),
    ("guests", &["unknown"]),
    ("guest", &["name", "interface", "addresses", "mode", "whitelist"]),
    ("golem", &["data_dir", "max_mode"]),
    ("log", &["access", "denied_only", "on_failure"]),
    ("state", &["dir"]),
];

#[derive(Default)]
pub(super) struct Raw {
    pub(super) mode: Given<String>,
    pub(super) ech: Given<String>,
    pub(super) listen: RawListen,
    pub(super) tls: RawTls,
    pub(super) whitelist_dir: Given<String>,
    pub(super) resolver: RawResolver,
    pub(super) dial: RawDial,
    pub(super) firewall: RawFirewall,
    pub(super) limits: RawLimits,
    pub(super) unknown: Given<String>,
    pub(super) guests: Vec<RawGuest>,
    pub(super) golem: RawGolem,
    pub(super) access: Given<String>,
    pub(super) denied_only: Given<bool>,
    pub(super) on_failure: Given<String>,
    pub(super) state_dir: Given<String>,
}

#[derive(Default)]
pub(super) struct RawListen {
    pub(super) proxy: List<String>,
    pub(super) proxy_tls: List<String>,
    pub(super) transparent: List<String>,
    pub(super) redirect: List<String>,
    pub(super) dns: List<String>,
    pub(super) udp: List<String>,
    pub(super) admin: Given<String>,
    pub(super) admin_tls: Given<String>,
    pub(super) control: Given<String>,
}

#[derive(Default)]
pub(super) struct RawTls {
    pub(super) certificate: Given<String>,
    pub(super) key: Given<String>,
    pub(super) client_ca: Given<String>,
}

#[derive(Default)]
pub(super) struct RawResolver {
    pub(super) servers: List<String>,
    pub(super) hosts_file: Given<String>,
    pub(super) timeout_ms: Given<i64>,
}

#[derive(Default)]
pub(super) struct RawDial {
    pub(super) permit_addresses: List<String>,
    pub(super) blocked_ports: List<i64>,
    pub(super) connect_timeout_ms: Given<i64>,
}

#[derive(Default)]
pub(super) struct RawFirewall {
    pub(super) guest_interfaces: List<String>,
    pub(super) not_guests: List<String>,
    pub(super) host_users: List<String>,
    pub(super) allow_dhcp: Given<bool>,
    pub(super) allow_inbound_replies: Given<bool>,
}

#[derive(Default)]
pub(super) struct RawLimits {
    pub(super) connections: Given<i64>,
    pub(super) new_connections_per_second: Given<i64>,
    pub(super) requests_per_second: Given<i64>,
    pub(super) dns_queries_per_second: Given<i64>,
    pub(super) new_names_per_second: Given<i64>,
    pub(super) handshake_timeout_ms: Given<i64>,
    pub(super) idle_timeout_s: Given<i64>,
    pub(super) response_timeout_s: Given<i64>,
    pub(super) total_connections: Given<i64>,
    pub(super) memory_mib: Given<i64>,
}

pub(super) struct RawGuest {
    /// Place of the `[[guest]]`.
    pub(super) span: Range<usize>,
    pub(super) name: Given<String>,
    pub(super) interface: Given<String>,
    pub(super) addresses: List<String>,
    pub(super) mode: Given<String>,
    pub(super) whitelist: List<String>,
}

#[derive(Default)]
pub(super) struct RawGolem {
    pub(super) data_dir: Given<String>,
    pub(super) max_mode: Given<String>,
}

/// Reads a file. Reports and leaves out what cannot be read.
pub(super) fn read(text: &str, problems: &mut Problems<'_>) -> Raw {
    let (document, errors) = DeTable::parse_recoverable(text);
    problems.syntax(errors.iter().map(|error| (error.span().unwrap_or_default(), error.message())));
    let mut raw = Raw::default();
    let mut top = Section::new("", document.get_ref());
    raw.mode = top.take("mode", problems);
    raw.ech = top.take("ech", problems);
    for (key, value) in top.rest {
        read_section(&mut raw, key, value, problems);
    }
    raw
}

fn read_section(raw: &mut Raw, key: Key<'_, '_>, value: Value<'_, '_>, problems: &mut Problems<'_>) {
    let Some((name, _)) = KEYS.iter().find(|(name, _)| !name.is_empty() && *name == key.get_ref()) else {
        return report_unknown("", key, problems);
    };
    if *name == "guest" {
        return read_guests(raw, value, problems);
    }
    let DeValue::Table(table) = value.get_ref() else {
        let found = value.get_ref().type_str();
        return problems
            .error(key.span(), format!("`{name}` is a section, not {found}; write `[{name}]` and its keys below"));
    };
    let mut section = Section::new(name, table);
    let s = &mut section;
    match *name {
        "listen" => raw.listen = read_listen(s, problems),
        "limits" => raw.limits = read_limits(s, problems),
        "tls" => {
            raw.tls.certificate = s.take("certificate", problems);
            raw.tls.key = s.take("key", problems);
            raw.tls.client_ca = s.take("client_ca", problems);
        }
        "whitelist" => raw.whitelist_dir = s.take("dir", problems),
        "resolver" => {
            raw.resolver.servers = s.take("servers", problems);
            raw.resolver.hosts_file = s.take("hosts_file", problems);
            raw.resolver.timeout_ms = s.take("timeout_ms", problems);
        }
        "dial" => {
            raw.dial.permit_addresses = s.take("permit_addresses", problems);
            raw.dial.blocked_ports = s.take("blocked_ports", problems);
            raw.dial.connect_timeout_ms = s.take("connect_timeout_ms", problems);
        }
        "firewall" => {
            raw.firewall.guest_interfaces = s.take("guest_interfaces", problems);
            raw.firewall.not_guests = s.take("not_guests", problems);
            raw.firewall.host_users = s.take("host_users", problems);
            raw.firewall.allow_dhcp = s.take("allow_dhcp", problems);
            raw.firewall.allow_inbound_replies = s.take("allow_inbound_replies", problems);
        }
        "guests" => raw.unknown = s.take("unknown", problems),
        "golem" => {
            raw.golem.data_dir = s.take("data_dir", problems);
            raw.golem.max_mode = s.take("max_mode", problems);
        }
        "log" => {
            raw.access = s.take("access", problems);
            raw.denied_only = s.take("denied_only", problems);
            raw.on_failure = s.take("on_failure", problems);
        }
        _ => raw.state_dir = s.take("dir", problems),
    }
    section.finish(problems);
}

fn read_listen(s: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> RawListen {
    RawListen {
        proxy: s.take("proxy", problems),
        proxy_tls: s.take("proxy_tls", problems),
        transparent: s.take("transparent", problems),
        redirect: s.take("redirect", problems),
        dns: s.take("dns", problems),
        udp: s.take("udp", problems),
        admin: s.take("admin", problems),
        admin_tls: s.take("admin_tls", problems),
        control: s.take("control", problems),
    }
}

fn read_limits(s: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> RawLimits {
    RawLimits {
        connections: s.take("connections", problems),
        new_connections_per_second: s.take("new_connections_per_second", problems),
        requests_per_second: s.take("requests_per_second", problems),
        dns_queries_per_second: s.take("dns_queries_per_second", problems),
        new_names_per_second: s.take("new_names_per_second", problems),
        handshake_timeout_ms: s.take("handshake_timeout_ms", problems),
        idle_timeout_s: s.take("idle_timeout_s", problems),
        response_timeout_s: s.take("response_timeout_s", problems),
        total_connections: s.take("total_connections", problems),
        memory_mib: s.take("memory_mib", problems),
    }
}

fn read_guests(raw: &mut Raw, value: Value<'_, '_>, problems: &mut Problems<'_>) {
    let DeValue::Array(guests) = value.get_ref() else {
        return problems.error(value.span(), "guests are a list; write `[[guest]]` with two brackets, once per guest");
    };
    for guest in guests.iter() {
        let DeValue::Table(table) = guest.get_ref() else {
            problems.error(guest.span(), "a guest is a section; write `[[guest]]` and its keys below");
            continue;
        };
        let mut section = Section::new("guest", table);
        raw.guests.push(RawGuest {
            span: guest.span(),
            name: section.take("name", problems),
            interface: section.take("interface", problems),
            addresses: section.take("addresses", problems),
            mode: section.take("mode", problems),
            whitelist: section.take("whitelist", problems),
        });
        section.finish(problems);
    }
}

type Key<'a, 'i> = &'a Spanned<std::borrow::Cow<'i, str>>;
type Value<'a, 'i> = &'a Spanned<DeValue<'i>>;

/// One table, and which of its keys have not been read yet.
struct Section<'a, 'i> {
    name: &'static str,
    rest: Vec<(Key<'a, 'i>, Value<'a, 'i>)>,
}

impl<'a, 'i> Section<'a, 'i> {
    fn new(name: &'static str, table: &'a DeTable<'i>) -> Section<'a, 'i> {
        Section { name, rest: table.iter().collect() }
    }

    fn take<T: ReadValue>(&mut self, key: &'static str, problems: &mut Problems<'_>) -> Given<T> {
        debug_assert!(KEYS.iter().any(|(name, keys)| *name == self.name && keys.contains(&key)), "{key}");
        let at = self.rest.iter().position(|(written, _)| written.get_ref() == key)?;
        let (_, value) = self.rest.swap_remove(at);
        T::read(key, value, problems).map(|read| Spanned::new(value.span(), read))
    }

    fn finish(self, problems: &mut Problems<'_>) {
        for (key, _) in self.rest {
            report_unknown(self.name, key, problems);
        }
    }
}

fn report_unknown(section: &str, key: Key<'_, '_>, problems: &mut Problems<'_>) {
    let word: &str = key.get_ref();
    let own = KEYS.iter().find(|(name, _)| *name == section).map(|(_, keys)| *keys).unwrap_or_default();
    let elsewhere: Vec<String> =
        KEYS.iter().filter(|(_, keys)| keys.contains(&word)).map(|(name, _)| bracketed(name)).collect();
    let place = if section.is_empty() { String::new() } else { format!(" in {}", bracketed(section)) };
    let hint = if !elsewhere.is_empty() {
        format!("; it belongs in {}", elsewhere.join(" or "))
    } else if section.is_empty() {
        let names = KEYS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty());
        match nearest(word, own.iter().copied().chain(names)) {
            Some(near) if own.contains(&near) => format!("; did you mean `{near}`?"),
            Some(near) => format!("; did you mean `{}`?", bracketed(near)),
            None => nearest_anywhere(word),
        }
    } else {
        match nearest(word, own.iter().copied()) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => nearest_anywhere(word),
        }
    };
    problems.error(key.span(), format!("unknown key `{word}`{place}{hint}"));
}

/// Returns the nearest key of any section, for a word that resembles no key of its own section.
fn nearest_anywhere(word: &str) -> String {
    let all = KEYS.iter().flat_map(|(name, keys)| keys.iter().map(move |key| (*name, *key)));
    let near = nearest(word, all.clone().map(|(_, key)| key));
    match near.and_then(|near| all.clone().find(|(_, key)| *key == near)) {
        Some((section, key)) => format!("; the nearest known key is `{key}` in {}", bracketed(section)),
        None => "; the example in outgate.toml has all keys".to_owned(),
    }
}

fn bracketed(section: &str) -> String {
    match section {
        "" => "the top of the file".to_owned(),
        "guest" => "[[guest]]".to_owned(),
        _ => format!("[{section}]"),
    }
}

/// A type that a key's value may have.
trait ReadValue: Sized {
    fn read(key: &str, value: Value<'_, '_>, problems: &mut Problems<'_>) -> Option<Self>;
}

impl ReadValue for String {
    fn read(key: &str, value: Value<'_, '_>, problems: &mut Problems<'_>) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            other => {
                let found = other.type_str();
                problems.error(value.span(), format!("`{key}` is text in double quotes, not {found}"));
                None
            }
        }
    }
}

impl ReadValue for bool {
    fn read(key: &str, value: Value<'_, '_>, problems: &mut Problems<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            other => {
                let found = other.type_str();
                problems.error(value.span(), format!("`{key}` is true or false without quotes, not {found}"));
                None
            }
        }
    }
}

impl ReadValue for i64 {
    fn read(key: &str, value: Value<'_, '_>, problems: &mut Problems<'_>) -> Option<i64> {
        match value.get_ref() {
            DeValue::Integer(integer) => {
                let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
                if number.is_none() {
                    problems.error(value.span(), format!("the number of `{key}` is too large"));
                }
                number
            }
            DeValue::String(text) if text.parse::<i64>().is_ok() => {
                problems.error(value.span(), format!("`{key}` is a number; write {text} without quotes"));
                None
            }
            other => {
                let found = other.type_str();
                problems.error(value.span(), format!("`{key}` is a whole number, not {found}"));
                None
            }
        }
    }
}

impl<T: ReadValue> ReadValue for Vec<Spanned<T>> {
    fn read(key: &str, value: Value<'_, '_>, problems: &mut Problems<'_>) -> Option<Vec<Spanned<T>>> {
        let DeValue::Array(items) = value.get_ref() else {
            let remedy = match value.get_ref() {
                DeValue::String(text) if text.is_empty() => "write []".to_owned(),
                DeValue::String(text) => format!("write [{text:?}]"),
                DeValue::Integer(integer) => format!("write [{integer}]"),
                _ => "write it in square brackets".to_owned(),
            };
            problems.error(value.span(), format!("`{key}` is a list; {remedy}"));
            return None;
        };
        let mut read = |item: Value<'_, '_>| Some(Spanned::new(item.span(), T::read(key, item, problems)?));
        Some(items.iter().filter_map(&mut read).collect())
    }
}
