//! The subject of a rule in the native form: scheme, host (name, wildcard, glob, regex or address), ports. Every
//! mistake worth a sentence has its own message, with the correct notation.

use super::glob;
use super::native::odd_blank;
use super::pattern::{self, Matching};
use super::public_suffix::Wide;
use super::report::{Fault, quote};
use ipnet::IpNet;
use outgate_policy::rule::{Ports, Reach, Scope, Subject};
use outgate_proto::name::{HostName, NameError};
use outgate_proto::target::{Host, parse_port};
use std::net::IpAddr;

/// A subject that owns its parts.
#[derive(Clone, Debug)]
pub(super) enum Owned {
    /// A literal name.
    Name { base: HostName, scope: Scope },
    /// Globs inside labels.
    Glob { pattern: String, scope: Scope },
    /// A regex for the whole name, and how broad it is.
    Regex { text: String, wide: Option<Wide> },
    /// `*` or `**` alone.
    Every,
    /// Addresses.
    Net(IpNet),
}

impl Owned {
    /// Returns the subject in the form that the policy expects.
    pub(super) fn borrow(&self) -> Subject<'_> {
        match self {
            Owned::Name { base, scope } => Subject::Name { base: base.as_str(), scope: *scope },
            Owned::Glob { pattern, scope } => Subject::Glob { pattern, scope: *scope },
            Owned::Regex { text, .. } => Subject::Regex(text),
            Owned::Every => Subject::Regex(".*"),
            Owned::Net(net) => Subject::Net(*net),
        }
    }
}

/// The result of parsing; `reach` is that of an allowing rule.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) subject: Owned,
    pub(super) reach: Reach,
    pub(super) warnings: Vec<Fault>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    None,
    Http,
    Https,
    Tcp,
    Udp,
    Quic,
}

const SCHEMES: [(&str, Scheme); 7] = [
    ("https", Scheme::Https),
    ("http", Scheme::Http),
    ("wss", Scheme::Https),
    ("ws", Scheme::Http),
    ("tcp", Scheme::Tcp),
    ("udp", Scheme::Udp),
    ("quic", Scheme::Quic),
];

/// Returns how many bytes of `text` the subject occupies: up to a blank or a comment, and for a regex at least
/// through its closing slash.
pub(super) fn length(text: &str) -> Result<usize, Fault> {
    let host_at = text.find("://").filter(|at| text.bytes().take(*at).all(|b| b.is_ascii_alphanumeric()));
    let host_at = host_at.map_or(0, |at| at + 3);
    let host = text.get(host_at..).unwrap_or_default();
    let regex = host.starts_with('/') && host.get(1..).is_some_and(|rest| !stops(rest.chars().next()));
    let scanned = if regex { host_at + regex_length(host).map_err(|fault| fault.shifted(host_at))? } else { 0 };
    let rest = text.get(scanned..).unwrap_or_default();
    let length = scanned + rest.find(|c: char| c == '#' || c.is_whitespace()).unwrap_or(rest.len());
    match text.get(length..).and_then(|rest| rest.chars().next()) {
        Some(blank) if !stops(Some(blank)) => Err(odd_blank(length, blank)),
        _ => Ok(length),
    }
}

/// Returns whether a subject ends here: at the end of a line, a blank or a comment.
fn stops(next: Option<char>) -> bool {
    matches!(next, None | Some(' ' | '\t' | '#'))
}

/// Returns the bytes from the opening slash through the closing one.
fn regex_length(text: &str) -> Result<usize, Fault> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '/' => return Ok(at + 1),
            '#' => {
                let remedy = "close it with `/` before the comment; a name cannot contain `#`";
                return Err(Fault::new(at, "a comment starts within the regex", remedy));
            }
            blank if blank.is_whitespace() => {
                return Err(Fault::new(
                    at,
                    "a space within the regex",
                    "a name cannot contain one; close the regex with \
                                                                       `/`",
                ));
            }
            _ => {}
        }
    }
    Err(Fault::new(0, "the regex is not closed", "end it with `/`; a rule has no path"))
}

/// Parses a subject; `token` has the [`length`] computed above.
pub(super) fn parse(token: &str) -> Result<Parsed, Fault> {
    let (scheme, host_at) = scheme(token)?;
    let rest = token.get(host_at..).unwrap_or_default();
    let mut warnings = Vec::new();
    let (host, tail) = split_host(rest).map_err(|fault| fault.shifted(host_at))?;
    if host.is_empty() {
        return Err(Fault::new(host_at, "the host is missing", "write `host`, `host:port` or `https://host`"));
    }
    let address = if host.starts_with('/') { None } else { address(host).map_err(|fault| fault.shifted(host_at))? };
    let tail_at = host_at + host.len();
    let (subject, ports_at) = match address {
        Some(address) => {
            let (net, used) = net(address, tail).map_err(|fault| fault.shifted(tail_at))?;
            (Owned::Net(net), tail_at + used)
        }
        None => {
            let subject = name(host, &mut warnings).map_err(|fault| explain_host(host, fault).shifted(host_at))?;
            (subject, tail_at)
        }
    };
    for warning in &mut warnings {
        warning.at += host_at;
    }
    let ports = ports(token, ports_at)?;
    let reach = reach(scheme, ports, token)?;
    Ok(Parsed { subject, reach, warnings })
}

/// Returns the scheme and where the host starts.
fn scheme(token: &str) -> Result<(Scheme, usize), Fault> {
    let folded = token.to_ascii_lowercase();
    if let Some((word, _)) = folded.split_once("://")
        && !word.starts_with('/')
    {
        if let Some((_, scheme)) = SCHEMES.iter().find(|(name, _)| *name == word) {
            return Ok((*scheme, word.len() + 3));
        }
        let message = format!("unknown scheme {}", quote(word));
        let nearest = SCHEMES.iter().map(|(name, _)| (strsim::damerau_levenshtein(name, word), name)).min();
        let remedy = match nearest {
            Some((distance, name)) if distance <= 2 && distance < name.len().min(word.len()) => {
                format!("did you mean `{name}://`?")
            }
            _ => {
                "the schemes are https, http, wss, ws, tcp, udp and quic; for others write `tcp://host:port`".to_owned()
            }
        };
        return Err(Fault::new(0, message, remedy));
    }
    for (name, _) in SCHEMES {
        if let Some(rest) = folded.strip_prefix(name).and_then(|rest| rest.strip_prefix(':'))
            && !rest.starts_with(|c: char| c.is_ascii_digit() || c == '*')
        {
            let message = format!("`{name}:` is not followed by two slashes");
            return Err(Fault::new(name.len() + 1, message, format!("write `{name}://host`")));
        }
    }
    Ok((Scheme::None, 0))
}

/// Returns the host and what follows it (prefix length, port, slash).
fn split_host(text: &str) -> Result<(&str, &str), Fault> {
    if text.starts_with('/') {
        if text == "/" {
            return Ok(("", text));
        }
        return Ok(text.split_at(regex_length(text)?));
    }
    if let Some(at) = text.find('@') {
        return Err(Fault::new(at, "a rule has no user name", "write the host alone"));
    }
    // A bracket at the start begins an IPv6 address if it contains a colon, else the class of a glob.
    if text.starts_with('[')
        && let Some(close) = text.find(']')
        && text.get(..close).is_some_and(|inner| inner.contains(':'))
    {
        return Ok(text.split_at(close + 1));
    }
    let bare = text.split('/').next().unwrap_or_default();
    if bare.matches(':').count() > 1 && bare.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) {
        let remedy = format!("write an IPv6 address in brackets, `[{bare}]`");
        return Err(Fault::new(0, "more than one colon", remedy));
    }
    Ok(text.split_at(text.find([':', '/']).unwrap_or(text.len())))
}

/// Returns the address if `host` is one; an error if it is an address in an unsupported notation.
fn address(host: &str) -> Result<Option<IpAddr>, Fault> {
    let address = match Host::parse(host.as_bytes()) {
        Ok(Host::Addr(address)) => address,
        Ok(Host::Name(_)) => return Ok(None),
        Err(_) if host.starts_with('[') && host.contains(':') => {
            let message = format!("{} is not an IPv6 address in brackets", quote(host));
            let remedy = "write `[2001:db8::1]`, or `[2001:db8::]/32` with the length behind the bracket; zones are not \
                 supported";
            return Err(Fault::new(0, message, remedy));
        }
        Err(_) => return Ok(None),
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Fault::new(0, "an IPv4 address written as IPv6", format!("write `{v4}`")));
    }
    Ok(Some(address))
}

/// Returns the range of an address and an optional prefix length, and the bytes of that length.
fn net(address: IpAddr, tail: &str) -> Result<(IpNet, usize), Fault> {
    let digits = tail.strip_prefix('/').unwrap_or_default();
    let digits = digits.split([':', '/']).next().unwrap_or_default();
    if digits.is_empty() {
        return Ok((IpNet::from(address), 0));
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    let plain =
        digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let length = if plain { digits.parse::<u8>().ok().filter(|length| *length <= most) } else { None };
    let Some(length) = length else {
        let message = format!("{} is not a prefix length", quote(digits));
        return Err(Fault::new(1, message, format!("write a number from 0 to {most}; a rule has no path")));
    };
    let net = IpNet::new_assert(address, length);
    if net.trunc() != net {
        let message = format!("the address has bits beyond its {length}-bit prefix");
        let (range, one) = (Host::Addr(net.trunc().addr()), Host::Addr(address));
        let remedy = format!("write `{range}/{length}` for the range, or `{one}` for the one address");
        return Err(Fault::new(1, message, remedy));
    }
    Ok((net, digits.len() + 1))
}

/// Parses one range of a `to=`: an address or CIDR, IPv6 with or without brackets.
pub(super) fn parse_net(text: &str) -> Result<IpNet, Fault> {
    let (host, tail) = text.split_at(text.rfind('/').unwrap_or(text.len()));
    let bracketed = host.starts_with('[');
    let wrapped = if host.contains(':') && !bracketed { format!("[{host}]") } else { host.to_owned() };
    let Some(address) = address(&wrapped)? else {
        let message = format!("{} is not an address", quote(text));
        return Err(Fault::new(0, message, "write addresses or ranges, as `to=192.0.2.7,198.51.100.0/24`"));
    };
    let (net, used) = net(address, tail).map_err(|fault| fault.shifted(host.len()))?;
    if used != tail.len() {
        return Err(Fault::new(host.len(), "the prefix length is missing", "write it behind the slash"));
    }
    Ok(net)
}

/// Parses a name, wildcard, glob or regex.
fn name(host: &str, warnings: &mut Vec<Fault>) -> Result<Owned, Fault> {
    if let Some(text) = host.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
        return regex(text, warnings).map_err(|fault| fault.shifted(1));
    }
    if matches!(host, "*" | "**") {
        return Ok(Owned::Every);
    }
    let (scope, base) = if let Some(base) = host.strip_prefix("**.") {
        (Scope::Below, base)
    } else if let Some(base) = host.strip_prefix("*.") {
        (Scope::OneLabel, base)
    } else if let Some(base) = host.strip_prefix('.') {
        (Scope::SelfAndBelow, base)
    } else {
        (Scope::Exact, host)
    };
    let base_at = host.len() - base.len();
    if glob::is_glob(base) {
        // A single `*` in front is an ordinary label of the pattern.
        let (scope, base, at) = if scope == Scope::OneLabel { (Scope::Exact, host, 0) } else { (scope, base, base_at) };
        let pattern = glob::parse(base, warnings).map_err(|fault| fault.shifted(at))?;
        return Ok(Owned::Glob { pattern, scope });
    }
    let base = literal(base, warnings).map_err(|fault| fault.shifted(base_at))?;
    if scope == Scope::Exact && base.parent().is_none() {
        let message = format!("{} is a single label; it is looked up as it is, no search domain is added", quote(host));
        warnings.push(Fault::new(0, message, "write the whole name"));
    }
    Ok(Owned::Name { base, scope })
}

/// Parses a literal name; warns if IDNA turned non-ASCII text into plain ASCII.
pub(super) fn literal(text: &str, warnings: &mut Vec<Fault>) -> Result<HostName, Fault> {
    let name = HostName::parse_unicode(text).map_err(|error| Fault::new(0, error.to_string(), ""))?;
    if !text.is_ascii() && !name.labels().any(|label| label.starts_with("xn--")) {
        let message = format!("{} is read as `{name}`", quote(text));
        warnings.push(Fault::new(0, message, format!("write `{name}`")));
    }
    Ok(name)
}

fn regex(text: &str, warnings: &mut Vec<Fault>) -> Result<Owned, Fault> {
    let pattern = pattern::analyse(text, Matching::Whole)?;
    if pattern.matches_nothing {
        let remedy = "names consist of `a-z 0-9 - _` and dots; there is no scheme, port or path in them";
        warnings.push(Fault::new(0, "the regex matches no host name", remedy));
    }
    let text = if pattern.upper_case && !text.starts_with("(?i)") { format!("(?i){text}") } else { text.to_owned() };
    Ok(Owned::Regex { text, wide: pattern.wide })
}

/// Adds the remedy to the message of the name parsers.
fn explain_host(host: &str, mut fault: Fault) -> Fault {
    if !fault.remedy.is_empty() || host.starts_with('/') {
        return fault;
    }
    let digits = host.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'*'));
    fault.remedy = if fault.message == NameError::LooksLikeAddress.to_string() || digits {
        "write an address as four decimal numbers without leading zeros, `192.0.2.7`, a range as `192.0.2.0/24`"
    } else if fault.message == NameError::Idna.to_string() {
        "correct the name, or write its A-labels (`xn--…`)"
    } else if fault.message == NameError::EmptyLabel.to_string() {
        "write `.example.com` for a name and all below it, with one dot between labels"
    } else {
        "write the host alone, as in `example.com`"
    }
    .to_owned();
    fault.message = format!("{}: {}", quote(host), fault.message);
    fault
}

/// Parses the ports from byte `at` of the token on; only a single slash may follow them.
fn ports(token: &str, at: usize) -> Result<Option<Ports>, Fault> {
    let tail = token.get(at..).unwrap_or_default();
    let (ports, after) = match tail.strip_prefix(':') {
        Some(rest) => {
            let (text, after) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (Some(port_range(text).map_err(|fault| fault.shifted(at + 1))?), after)
        }
        None => (None, tail),
    };
    let end = token.len() - after.len();
    if after.is_empty() || after == "/" {
        return Ok(ports);
    }
    if !after.starts_with('/') {
        return Err(Fault::new(end, "unexpected text behind the host", "write a port behind a colon, `host:8443`"));
    }
    let host = token.get(..end).unwrap_or_default();
    let remedy = format!("write {}", quote(host));
    Err(Fault::new(end, "a rule has no path", remedy))
}

/// Parses `8443`, `8000-8100` or `*`.
pub(super) fn port_range(text: &str) -> Result<Ports, Fault> {
    if text == "*" {
        return Ok(Ports::ALL);
    }
    let bad = |at: usize, text: &str| {
        let message = format!("{} is not a port", quote(text));
        let remedy = if text.contains(',') {
            "write one port or range per rule, each on a line of its own"
        } else {
            "write a number from 1 to 65535 without sign or leading zero, a range `8000-8100`, or `*`"
        };
        Fault::new(at, message, remedy)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let last_at = text.len() - last.len();
    let first = parse_port(first.as_bytes()).map_err(|_| bad(0, first))?;
    let last = parse_port(last.as_bytes()).map_err(|_| bad(last_at, last))?;
    if first > last {
        let message = format!("the range {first}-{last} is empty");
        return Err(Fault::new(0, message, format!("write `{last}-{first}`")));
    }
    Ok(Ports { first, last })
}

fn reach(scheme: Scheme, ports: Option<Ports>, token: &str) -> Result<Reach, Fault> {
    let one = |port| Ports { first: port, last: port };
    let required = |word: &str| {
        let host = token.trim_end_matches('/');
        let message = format!("`{word}://` has no default port");
        Fault::new(
            host.len(),
            message,
            format!("write {} with the port, or `:*` for all", quote(&format!("{host}:port"))),
        )
    };
    Ok(match (scheme, ports) {
        (Scheme::None, None) => Reach::Web,
        (Scheme::None, Some(ports)) => Reach::Ports(ports),
        (Scheme::Http, ports) => Reach::Http(ports.unwrap_or(one(80))),
        (Scheme::Https, ports) => Reach::Https(ports.unwrap_or(one(443))),
        (Scheme::Quic, ports) => Reach::Quic(ports.unwrap_or(one(443))),
        (Scheme::Tcp, Some(ports)) => Reach::Tcp(ports),
        (Scheme::Udp, Some(ports)) => Reach::Udp(ports),
        (Scheme::Tcp, None) => return Err(required("tcp")),
        (Scheme::Udp, None) => return Err(required("udp")),
    })
}
