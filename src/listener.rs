//! The kinds of listeners, and the label under which a flow that arrived through one is counted.

/// The kind of listener that accepted a guest's connection: it decides how [`flow`](crate::flow) treats the connection.
/// Which sockets there are is [`SocketUse`](crate::accept::SocketUse): some of those carry no flows.
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

/// The metric label and log field `listener` of a flow or query: how it arrived. One [`ListenerKind`] may have several:
/// a proxy port is `proxy` or `socks`, by what its guest speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ListenerLabel {
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

impl ListenerLabel {
    /// Those that carry flows, in the order of their discriminants: all but [`Dns`](Self::Dns).
    pub const FLOWS: [ListenerLabel; 5] = [
        ListenerLabel::Proxy,
        ListenerLabel::Socks,
        ListenerLabel::Transparent,
        ListenerLabel::Redirect,
        ListenerLabel::Udp,
    ];

    /// Metric label and log value.
    pub const fn as_str(self) -> &'static str {
        match self {
            ListenerLabel::Proxy => "proxy",
            ListenerLabel::Socks => "socks",
            ListenerLabel::Transparent => "transparent",
            ListenerLabel::Redirect => "redirect",
            ListenerLabel::Udp => "udp",
            ListenerLabel::Dns => "dns",
        }
    }
}

impl From<ListenerKind> for ListenerLabel {
    /// How a connection is counted until more is known of it.
    fn from(kind: ListenerKind) -> ListenerLabel {
        match kind {
            ListenerKind::Proxy | ListenerKind::ProxyTls => ListenerLabel::Proxy,
            ListenerKind::Transparent => ListenerLabel::Transparent,
            ListenerKind::Redirect => ListenerLabel::Redirect,
        }
    }
}
