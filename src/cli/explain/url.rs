//! Converts what an operator pastes to a guest's request. A URL is parsed by hand, because its host must be read
//! exactly as outgate reads it.

use outgate::identify::{Claim, Evidence};
use outgate::name::{HostName, NameError};
use outgate::source::Source;
use outgate::target::{Host, Protocol, Target, TargetError, Transport};
use std::net::Ipv6Addr;

/// The request of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UrlRequest {
    /// Host and port.
    pub(super) target: Target,
    /// The transport.
    pub(super) transport: Transport,
    /// The protocol; `None` if the URL does not specify it.
    pub(super) spoken: Option<Protocol>,
}

/// Why a text is not a URL that could be requested; names what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UrlError {
    #[error("the URL is empty; write a URL, a host, or host:port")]
    Empty,
    #[error("the scheme `{0}` is unknown; write https, http, wss, ws, tcp, h2c, udp or quic")]
    Scheme(String),
    #[error("a user name and password before the host are not accepted; leave out everything up to the @")]
    UserInfo,
    #[error("`{0}://` needs a port; write {0}://host:port")]
    NoPort(&'static str),
    #[error("an IPv6 address needs brackets; write [{0}]")]
    Ipv6(Ipv6Addr),
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("too long for a URL")]
    TooLong,
}

struct Scheme {
    name: &'static str,
    transport: Transport,
    spoken: Option<Protocol>,
    port: Option<u16>,
}

const fn tcp(name: &'static str, spoken: Protocol, port: Option<u16>) -> Scheme {
    Scheme { name, transport: Transport::Tcp, spoken: Some(spoken), port }
}

const SCHEMES: [Scheme; 8] = [
    tcp("https", Protocol::Tls, Some(443)),
    tcp("http", Protocol::Http, Some(80)),
    tcp("wss", Protocol::Tls, Some(443)),
    tcp("ws", Protocol::Http, Some(80)),
    tcp("tcp", Protocol::Raw, None),
    tcp("h2c", Protocol::H2c, None),
    Scheme { name: "udp", transport: Transport::Udp, spoken: None, port: None },
    Scheme { name: "quic", transport: Transport::Quic, spoken: None, port: Some(443) },
];

impl UrlRequest {
    /// Parses a URL (its path, query and fragment are ignored), a bare host (as https) or `host:port` (any
    /// protocol). Unicode names are converted to A-labels, as a browser would.
    pub(super) fn parse(text: &str) -> Result<UrlRequest, UrlError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => (Some(known(scheme)?), rest),
            _ => (None, text),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        if let Ok(address) = authority.parse::<Ipv6Addr>() {
            return Err(UrlError::Ipv6(address));
        }
        let authority = in_ascii(authority)?;
        let Some(scheme) = scheme else { return bare(&authority) };
        let target = match (Target::parse(authority.as_bytes(), scheme.port), scheme.port) {
            (Err(TargetError::NoPort), None) => return Err(UrlError::NoPort(scheme.name)),
            (target, _) => target?,
        };
        Ok(UrlRequest { target, transport: scheme.transport, spoken: scheme.spoken })
    }

    /// Returns the claim of a guest at `source` that requests this through the proxy.
    pub(super) fn claim(&self, source: &Source) -> Claim {
        let evidence = match (&self.target.host, self.transport, self.spoken) {
            (_, Transport::Tcp, Some(Protocol::Http)) => Evidence::Host,
            (_, Transport::Tcp, _) => Evidence::Connect,
            (Host::Addr(_), ..) => Evidence::Address,
            (_, Transport::Udp, _) => Evidence::Dns,
            (_, Transport::Quic, _) => Evidence::Sni,
        };
        let (target, transport, spoken) = (self.target.clone(), self.transport, self.spoken);
        Claim { source: source.clone(), target, transport, spoken, ech: false, evidence }
    }

    /// Returns the narrowest plain rule that allows it.
    pub(super) fn rule(&self) -> String {
        let Target { host, port } = &self.target;
        match (self.transport, self.spoken, port) {
            (Transport::Udp, ..) => format!("udp://{host}:{port}"),
            (Transport::Quic, _, 443) => format!("quic://{host}"),
            (Transport::Quic, ..) => format!("quic://{host}:{port}"),
            (_, Some(Protocol::Raw | Protocol::H2c), _) => format!("tcp://{host}:{port}"),
            (_, Some(Protocol::Http) | None, 80) | (_, Some(Protocol::Tls) | None, 443) => host.to_string(),
            (_, Some(Protocol::Http), _) => format!("http://{host}:{port}"),
            (_, Some(Protocol::Tls), _) => format!("https://{host}:{port}"),
            (_, None, _) => format!("{host}:{port}"),
        }
    }
}

fn known(written: &str) -> Result<&'static Scheme, UrlError> {
    let found = SCHEMES.iter().find(|scheme| scheme.name.eq_ignore_ascii_case(written));
    found.ok_or_else(|| UrlError::Scheme(written.chars().take(20).collect()))
}

fn bare(authority: &str) -> Result<UrlRequest, UrlError> {
    let with_port = Target::parse(authority.as_bytes(), None);
    let (target, spoken) = match with_port {
        Err(TargetError::NoPort) => (Target::parse(authority.as_bytes(), Some(443))?, Some(Protocol::Tls)),
        target => (target?, None),
    };
    Ok(UrlRequest { target, transport: Transport::Tcp, spoken })
}

/// Returns the authority with its host in A-labels.
fn in_ascii(authority: &str) -> Result<String, UrlError> {
    if authority.is_ascii() {
        return Ok(authority.to_owned());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.is_ascii() => (host, Some(port)),
        _ => (authority, None),
    };
    let host = HostName::parse_unicode(host).map_err(|error: NameError| TargetError::Name(error))?;
    Ok(port.map_or_else(|| host.to_string(), |port| format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match UrlRequest::parse(text) {
            Ok(asked) => {
                let spoken = asked.spoken.map_or("any", Protocol::rule_word);
                format!("{} {} {spoken}", asked.transport.as_str(), asked.target)
            }
            Err(error) => format!("{error}"),
        }
    }

    #[test]
    fn urls_are_read_as_operators_paste_them() {
        for (url, expected) in [
            ("https://ipfs.io", "tcp ipfs.io:443 https"),
            ("https://ipfs.io/", "tcp ipfs.io:443 https"),
            ("HTTPS://IPFS.io:8443/a/b?x=http://y#z", "tcp ipfs.io:8443 https"),
            ("https://ipfs.io?x=a@b", "tcp ipfs.io:443 https"),
            ("https://ipfs.io#a@b:1", "tcp ipfs.io:443 https"),
            ("http://ipfs.io/x", "tcp ipfs.io:80 http"),
            ("ws://ipfs.io", "tcp ipfs.io:80 http"),
            ("wss://ipfs.io/socket", "tcp ipfs.io:443 https"),
            ("tcp://ipfs.io:22", "tcp ipfs.io:22 tcp"),
            ("h2c://ipfs.io:50051", "tcp ipfs.io:50051 h2c"),
            ("udp://time.test:123", "udp time.test:123 any"),
            ("quic://ipfs.io", "quic ipfs.io:443 any"),
            ("quic://ipfs.io:8443", "quic ipfs.io:8443 any"),
            ("ipfs.io", "tcp ipfs.io:443 https"),
            (" ipfs.io. \n", "tcp ipfs.io:443 https"),
            ("ipfs.io/ipfs/x", "tcp ipfs.io:443 https"),
            ("ipfs.io/?u=https://x.test", "tcp ipfs.io:443 https"),
            ("ipfs.io:22", "tcp ipfs.io:22 any"),
            ("203.0.113.7", "tcp 203.0.113.7:443 https"),
            ("http://203.0.113.7:8080/", "tcp 203.0.113.7:8080 http"),
            ("[2001:db8::1]:22", "tcp [2001:db8::1]:22 any"),
            ("https://[2001:db8::1]/", "tcp [2001:db8::1]:443 https"),
            ("https://Bücher.example:8443/", "tcp xn--bcher-kva.example:8443 https"),
            ("bücher.example", "tcp xn--bcher-kva.example:443 https"),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
    }

    #[test]
    fn what_outgate_would_not_take_is_refused_with_a_remedy() {
        for (url, expected) in [
            ("", "the URL is empty; write a URL, a host, or host:port"),
            ("ftp://ipfs.io", "the scheme `ftp` is unknown; write https, http, wss, ws, tcp, h2c, udp or quic"),
            (
                "https://u:p@ipfs.io/",
                "a user name and password before the host are not accepted; leave out everything up to the @",
            ),
            (
                "ipfs.io:443@evil.test",
                "a user name and password before the host are not accepted; leave out everything up to the @",
            ),
            ("tcp://ipfs.io", "`tcp://` needs a port; write tcp://host:port"),
            ("udp://ipfs.io/", "`udp://` needs a port; write udp://host:port"),
            ("2001:db8::1", "an IPv6 address needs brackets; write [2001:db8::1]"),
            ("https://", "the name is empty"),
            ("https:///path", "the name is empty"),
            ("ipfs.io:65979", "the port is not a number from 1 to 65535 without sign or leading zero"),
            ("https://ipfs.io:0443", "the port is not a number from 1 to 65535 without sign or leading zero"),
            ("http://0x7f.1/", "the last label is a number, so other software would read an address"),
            ("http://2130706433/", "the last label is a number, so other software would read an address"),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
        for url in
            ["https://ipfs.io\\@evil.test", "https://ip fs.io", "*.ipfs.io", "https://%69pfs.io", "a..b", "mailto:x"]
        {
            assert!(UrlRequest::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn the_rule_for_a_url_is_the_plainest_one() {
        for (url, rule) in [
            ("https://ipfs.io/x", "ipfs.io"),
            ("http://ipfs.io", "ipfs.io"),
            ("ipfs.io:443", "ipfs.io"),
            ("https://ipfs.io:80", "https://ipfs.io:80"),
            ("https://ipfs.io:8443", "https://ipfs.io:8443"),
            ("http://ipfs.io:8080", "http://ipfs.io:8080"),
            ("ipfs.io:8443", "ipfs.io:8443"),
            ("tcp://ipfs.io:443", "tcp://ipfs.io:443"),
            ("h2c://ipfs.io:50051", "tcp://ipfs.io:50051"),
            ("udp://ipfs.io:123", "udp://ipfs.io:123"),
            ("quic://ipfs.io", "quic://ipfs.io"),
            ("quic://ipfs.io:1", "quic://ipfs.io:1"),
            ("https://203.0.113.7", "203.0.113.7"),
            ("[2001:db8::1]:22", "[2001:db8::1]:22"),
        ] {
            assert_eq!(UrlRequest::parse(url).unwrap().rule(), rule, "{url}");
        }
    }
}
