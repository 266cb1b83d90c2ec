//! Converts a URL of a manifest to what outgate can enforce: scheme, host and port. The path is ignored, by yagna
//! as well as here.

use outgate_policy::rule::{Ports, Reach};
use outgate_proto::target::Host;
use url::Url;

/// Why a URL gives access to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// There is no host to connect to.
    #[error("it has no host")]
    NoHost,
    /// The host is not valid.
    #[error("its host is neither a name nor an address")]
    BadHost,
    /// The scheme has no default port, and the URL contains none.
    #[error("it has no port")]
    NoPort,
    /// No listener accepts it.
    #[error("only DNS has a listener for UDP")]
    Udp,
}

/// Returns where a guest may go by this URL, and which protocol it may use there: HTTP in clear for `http` and
/// `ws`, TLS for `https` and `wss`, any bytes for every other scheme.
///
/// # Errors
/// [`Unreachable`]: the guest cannot be given access to it.
pub fn destination(url: &Url) -> Result<(Host, Reach), Unreachable> {
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(Unreachable::NoHost)?;
    // For an unknown scheme, the crate leaves the host as it is written.
    let host = Host::parse(host.to_ascii_lowercase().as_bytes()).map_err(|_| Unreachable::BadHost)?;
    let port = url.port_or_known_default().filter(|port| *port != 0).ok_or(Unreachable::NoPort)?;
    let ports = Ports { first: port, last: port };
    let reach = match url.scheme() {
        "http" | "ws" => Reach::Http(ports),
        "https" | "wss" => Reach::Https(ports),
        "udp" | "quic" => return Err(Unreachable::Udp),
        _ => Reach::Tcp(ports),
    };
    Ok((host, reach))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_host_and_port_count() {
        let at = |port| Ports { first: port, last: port };
        for (url, host, reach) in [
            ("https://IPFS.io/ipfs/x?y#z", "ipfs.io", Reach::Https(at(443))),
            ("http://user:pass@a.test:8080", "a.test", Reach::Http(at(8080))),
            ("wss://a.test", "a.test", Reach::Https(at(443))),
            ("ws://a.test", "a.test", Reach::Http(at(80))),
            ("tcp://GitHub.com:22", "github.com", Reach::Tcp(at(22))),
            ("ftp://a.test", "a.test", Reach::Tcp(at(21))),
            ("https://[2001:db8::1]:8443", "[2001:db8::1]", Reach::Https(at(8443))),
            ("https://0x7f.1", "127.0.0.1", Reach::Https(at(443))),
        ] {
            let (given, what) = destination(&Url::parse(url).unwrap()).unwrap();
            assert_eq!((given.to_string().as_str(), what), (host, reach), "{url}");
        }
    }

    #[test]
    fn what_opens_nothing_is_said() {
        for (url, why) in [
            ("tcp://a.test", Unreachable::NoPort),
            ("tcp://a.test:0", Unreachable::NoPort),
            ("file:///etc/passwd", Unreachable::NoHost),
            ("mailto:x@a.test", Unreachable::NoHost),
            ("tcp://0x7f.1:22", Unreachable::BadHost),
            ("udp://a.test:123", Unreachable::Udp),
        ] {
            assert_eq!(destination(&Url::parse(url).unwrap()), Err(why), "{url}");
        }
    }
}
