//! The kinds of listeners, and how a flow that arrived through one is counted.

/// The kind of listener that accepted a guest's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// `proxy`: the guest names its destination.
    Proxy,
    /// `proxy_tls`: the same inside TLS.
    ProxyTls,
    /// `transparent`: TPROXY left the original destination as the socket's own address.
    Transparent,
    /// `redirect`: connection tracking knows the original destination.
    Redirect,
}

/// How a flow arrived: the metric label and log field `listener`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Listener {
    /// HTTP forward and CONNECT.
    Proxy,
    /// SOCKS5.
    Socks,
    /// TPROXY.
    Transparent,
    /// nft REDIRECT.
    Redirect,
    /// UDP.
    Udp,
    /// The guests' DNS.
    Dns,
}

impl Listener {
    /// Those that carry flows, in the order of their discriminants: all but [`Dns`](Self::Dns).
    pub const FLOWS: [Listener; 5] =
        [Listener::Proxy, Listener::Socks, Listener::Transparent, Listener::Redirect, Listener::Udp];

    /// Metric label and log value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Listener::Proxy => "proxy",
            Listener::Socks => "socks",
            Listener::Transparent => "transparent",
            Listener::Redirect => "redirect",
            Listener::Udp => "udp",
            Listener::Dns => "dns",
        }
    }
}

impl From<ListenerKind> for Listener {
    /// How a connection is counted until more is known of it.
    fn from(kind: ListenerKind) -> Listener {
        match kind {
            ListenerKind::Proxy | ListenerKind::ProxyTls => Listener::Proxy,
            ListenerKind::Transparent => Listener::Transparent,
            ListenerKind::Redirect => Listener::Redirect,
        }
    }
}
