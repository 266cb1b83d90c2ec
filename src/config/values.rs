//! Parses single values of the configuration: strictly, and with the remedy in the error. Pure functions; the
//! caller knows the place in the file.

use super::problems::nearest;
use crate::name::HostName;
use crate::resolve::{Channel, NameServer};
use crate::target::Target;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Reads the address of a listener, `ip:port`; `port` is the one that a remedy shows.
pub(super) fn listener(text: &str, port: u16) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| listener_remedy(text, port))?;
    let broadcast = matches!(address.ip(), IpAddr::V4(v4) if v4.is_broadcast());
    if address.ip().is_multicast() || broadcast {
        return Err(format!("{text:?} is a multicast or broadcast address, on which nothing can listen"));
    }
    Ok(address)
}

fn listener_remedy(text: &str, port: u16) -> String {
    let written = text.trim().trim_start_matches('*');
    let bare = written.strip_prefix(':').unwrap_or(written);
    if bare.parse::<u16>().is_ok() {
        return format!("{text:?} is only a port; write \"127.0.0.1:{bare}\"");
    }
    if let Ok(address) = written.parse::<IpAddr>() {
        return format!("{text:?} has no port; write \"{}\"", SocketAddr::new(address, port));
    }
    if let Some((host, port)) = written.rsplit_once(':') {
        if let (Ok(host), Ok(port)) = (host.parse::<Ipv6Addr>(), port.parse::<u16>()) {
            return format!("an IPv6 address needs brackets; write \"[{host}]:{port}\"");
        }
        if host.parse::<IpAddr>().is_err() && port.parse::<u16>().is_ok() {
            return format!(
                "{host:?} is not an address, and a listener cannot have a name; write \"127.0.0.1:{port}\""
            );
        }
    }
    format!("{text:?} is not an address with port; write for example \"127.0.0.1:{port}\"")
}

/// Reads a range of addresses, `address` or `address/length`, without host bits.
pub(super) fn net(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is neither an address nor a range; write for example \"10.0.0.5/32\"");
    let net = match text.split_once('/') {
        None => IpNet::from(text.parse::<IpAddr>().map_err(|_| wrong())?),
        Some((_, length)) if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) => return Err(wrong()),
        Some(_) => text.parse::<IpNet>().map_err(|_| wrong())?,
    };
    if net.trunc() != net {
        let host = IpNet::from(net.addr());
        return Err(format!("{text:?} has bits set beyond its length; write \"{}\" or \"{host}\"", net.trunc()));
    }
    match net {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => {
            Err(format!("{text:?} is an IPv4 address in IPv6 form; write it as IPv4"))
        }
        _ => Ok(net),
    }
}

/// Reads one of `[resolver].servers`.
pub(super) fn server(text: &str) -> Result<NameServer, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return address_or(text, 53).map(NameServer::plain).ok_or_else(|| {
            format!(
                "{text:?} is not the address of a DNS server; write for example \"9.9.9.9\" or \"[2620:fe::fe]:53\""
            )
        });
    };
    let (place, name) = rest.split_once('#').unwrap_or((rest, ""));
    let name = HostName::parse(name).ok();
    let (form, server) = match scheme {
        "tls" => {
            let of = |name| Some(NameServer { address: address_or(place, 853)?, channel: Channel::Tls { name } });
            ("tls://ip[:port]#name", name.and_then(of))
        }
        "https" => {
            let (place, path) = place.find('/').map_or((place, ""), |slash| place.split_at(slash));
            let path = Some(path).filter(|path| is_path(path)).map(Box::from);
            let of = |(name, path)| {
                let channel = Channel::Https { name, path };
                Some(NameServer { address: address_or(place, 443)?, channel })
            };
            ("https://ip[:port]/dns-query#name", name.zip(path).and_then(of))
        }
        _ => return Err(format!("{text:?}: DNS servers are \"ip[:port]\", \"tls://…\" or \"https://…\"")),
    };
    let why = "is not of the form";
    server.ok_or_else(|| format!("{text:?} {why} \"{form}\"; the name is the one on the server's certificate"))
}

fn address_or(text: &str, port: u16) -> Option<SocketAddr> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match (bracketed, text.parse::<IpAddr>()) {
        (Some(inner), _) => SocketAddr::new(IpAddr::V6(inner.parse().ok()?), port),
        (None, Ok(address)) => SocketAddr::new(address, port),
        (None, Err(_)) => text.parse::<SocketAddr>().ok()?,
    };
    let ip = address.ip();
    (address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()).then_some(address)
}

/// Returns whether the text is a path for a request: no templates (RFC 8484 §4.1.1 requires them only for GET).
fn is_path(text: &str) -> bool {
    text.len() > 1
        && text.len() <= 256
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte))
}

/// Reads a number within a range, both ends included.
pub(super) fn number(key: &str, value: i64, range: RangeInclusive<u32>, zero: Zero) -> Result<Option<u32>, String> {
    match u32::try_from(value) {
        Ok(0) if zero == Zero::IsNone => Ok(None),
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => {
            let (first, last) = range.into_inner();
            let none = if zero == Zero::IsNone { ", or 0 for none" } else { "" };
            let why = if value == 0 { " (0 would leave no time at all)" } else { "" };
            Err(format!("`{key}` is {value}{why}; write a number from {first} to {last}{none}"))
        }
    }
}

/// What 0 means for a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zero {
    /// No limit.
    IsNone,
    /// Nothing sensible.
    IsWrong,
}

/// Reads one of a few words.
pub(super) fn choice<T: Copy>(key: &str, text: &str, words: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*meaning);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    let all = all.join(", ");
    Err(match nearest(text, words.iter().map(|(word, _)| *word)) {
        Some(near) => format!("`{key}` is {text:?}; did you mean {near:?}? It is one of {all}"),
        None => format!("`{key}` is {text:?}; it is one of {all}"),
    })
}

/// The first character of a probe's name: no guest's has it.
const PROBE: char = '@';

/// Returns whether this guest is a probe of outgate's own, which is not counted, logged or listed.
pub fn is_probe(name: &str) -> bool {
    name.starts_with(PROBE)
}

/// Returns whether the text is a label that a guest may have.
pub fn is_guest_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Reads a URL that guests must reach.
pub(super) fn must_pass(text: &str) -> Result<String, String> {
    let example = "write for example \"https://ipfs.io\"";
    let schemes = [("https://", 443), ("http://", 80)];
    let found = schemes.into_iter().find_map(|(scheme, port)| Some((text.strip_prefix(scheme)?, port)));
    let (rest, port) = found.ok_or_else(|| format!("{text:?} is not a URL of http or https; {example}"))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match Target::parse(authority.as_bytes(), Some(port)) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{text:?}: {error}; {example}")),
    }
}

/// Returns whether the text is a label that a guest may have, or one of a probe of outgate's own.
pub(super) fn is_guest_or_probe_name(text: &str) -> bool {
    is_guest_name(text.strip_prefix(PROBE).unwrap_or(text))
}

/// Returns whether the text is a name of a network interface (netdevice(7)), or with `pattern` one that ends in
/// `*`.
pub(super) fn is_interface(text: &str, pattern: bool) -> bool {
    let name = if pattern { text.strip_suffix('*').unwrap_or(text) } else { text };
    let fits = !name.is_empty() && name.len() <= 15 && name != "." && name != "..";
    fits && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'*' | b'"'))
}

/// Returns whether the text is a user's name or number, as useradd(8) accepts it.
pub(super) fn is_user(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Returns whether the text is a file name of the whitelist dir, of a kind that is read.
pub(super) fn is_list_file(text: &str) -> bool {
    let kind = [".rules", ".lst", ".json"].iter().find_map(|ending| text.strip_suffix(ending));
    kind.is_some_and(|stem| !stem.is_empty()) && !text.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_is_wrong_is_answered_with_what_to_write() {
        for (text, remedy) in [
            ("3128", "\"3128\" is only a port; write \"127.0.0.1:3128\""),
            (":3128", "\":3128\" is only a port; write \"127.0.0.1:3128\""),
            ("*:80", "\"*:80\" is only a port; write \"127.0.0.1:80\""),
            ("10.0.0.1", "\"10.0.0.1\" has no port; write \"10.0.0.1:3128\""),
            ("::1", "\"::1\" has no port; write \"[::1]:3128\""),
            ("fe80::g:80", "\"fe80::g\" is not an address, and a listener cannot have a name; write \"127.0.0.1:80\""),
            (
                "localhost:80",
                "\"localhost\" is not an address, and a listener cannot have a name; write \"127.0.0.1:80\"",
            ),
            (
                "127.0.0.1:99999",
                "\"127.0.0.1:99999\" is not an address with port; write for example \"127.0.0.1:3128\"",
            ),
            ("224.0.0.1:80", "\"224.0.0.1:80\" is a multicast or broadcast address, on which nothing can listen"),
        ] {
            assert_eq!(listener(text, 3128).unwrap_err(), remedy);
        }
        assert_eq!(listener("[::1]:80", 1).unwrap().to_string(), "[::1]:80");
    }

    #[test]
    fn ranges_have_one_reading() {
        assert_eq!(net("10.0.0.5").unwrap().to_string(), "10.0.0.5/32");
        assert_eq!(net("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        let host_bits = net("10.0.0.5/8").unwrap_err();
        assert_eq!(host_bits, "\"10.0.0.5/8\" has bits set beyond its length; write \"10.0.0.0/8\" or \"10.0.0.5/32\"");
        for text in ["10.0.0.0/", "10/8", "10.0.0.0/33", "10.0.0.0/+8", "", "vm", "127.0.0.01", "::ffff:10.0.0.1"] {
            assert!(net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dns_servers_are_addresses_in_three_forms() {
        for (text, read) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("2620:fe::fe", "[2620:fe::fe]:53"),
            ("[2620:fe::fe]", "[2620:fe::fe]:53"),
            ("[2620:fe::fe]:54", "[2620:fe::fe]:54"),
            ("tls://9.9.9.9#dns.Quad9.net", "tls://9.9.9.9:853#dns.quad9.net"),
            ("tls://[2620:fe::fe]:8853#dns.quad9.net", "tls://[2620:fe::fe]:8853#dns.quad9.net"),
            ("https://9.9.9.9/dns-query#q.net", "https://9.9.9.9:443/dns-query#q.net"),
            ("https://[2620:fe::fe]:8443/a/b#q.net", "https://[2620:fe::fe]:8443/a/b#q.net"),
        ] {
            assert_eq!(server(text).map(|server| server.to_string()), Ok(read.to_owned()), "{text}");
        }
        for text in [
            "dns.google",
            "tls://9.9.9.9",
            "tls://dns.google#dns.google",
            "https://9.9.9.9#x",
            "sdns://x",
            "0.0.0.0",
            "9.9.9.9:0",
        ] {
            assert!(server(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_out_of_range_say_the_range_and_what_zero_means() {
        assert_eq!(number("connections", 0, 1..=9, Zero::IsNone), Ok(None));
        assert_eq!(number("connections", 9, 1..=9, Zero::IsNone), Ok(Some(9)));
        let long = number("connections", -1, 1..=9, Zero::IsNone).unwrap_err();
        assert_eq!(long, "`connections` is -1; write a number from 1 to 9, or 0 for none");
        let zero = number("timeout_ms", 0, 1..=9, Zero::IsWrong).unwrap_err();
        assert_eq!(zero, "`timeout_ms` is 0 (0 would leave no time at all); write a number from 1 to 9");
    }

    #[test]
    fn a_word_that_is_none_of_the_known_ones_is_answered_with_them() {
        let words = [("deny", 0), ("allow", 1)];
        assert_eq!(choice("ech", "allow", &words), Ok(1));
        let slip = choice("ech", "alow", &words).unwrap_err();
        assert_eq!(slip, "`ech` is \"alow\"; did you mean \"allow\"? It is one of \"deny\", \"allow\"");
        assert_eq!(choice("ech", "x", &words).unwrap_err(), "`ech` is \"x\"; it is one of \"deny\", \"allow\"");
    }

    #[test]
    fn names_of_guests_interfaces_users_and_files_are_plain() {
        assert!(is_guest_name("vm-7.a_B") && is_guest_name(&"a".repeat(64)));
        assert!(!is_guest_name("") && !is_guest_name("vm 7") && !is_guest_name(&"a".repeat(65)) && !is_guest_name("ü"));
        assert!(is_interface("tap7", false) && is_interface("tap*", true) && !is_interface("tap*", false));
        assert!(!is_interface("", true) && !is_interface("*", true) && !is_interface("sixteen-letters-", false));
        assert!(is_user("_apt") && is_user("1000") && !is_user("-r") && !is_user("a b"));
        assert!(is_list_file("vm-7.rules") && is_list_file("..a.lst"));
        assert!(!is_list_file("../a.rules") && !is_list_file(".rules") && !is_list_file("a.txt"));
    }
}
