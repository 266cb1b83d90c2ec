//! The kinds of listeners, and the label under which a flow that arrived through one is counted.

use outgate_proto::enum_of_words;

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

enum_of_words! {
    /// The metric label and log field `listener` of a flow or query: how it arrived. One [`ListenerKind`] may have several:
    /// a proxy port is `proxy` or `socks`, by what its guest speaks.
    pub enum ListenerLabel {
        /// HTTP forward and CONNECT.
        Proxy = "proxy",
        /// SOCKS5.
        Socks = "socks",
        /// TPROXY.
        Transparent = "transparent",
        /// nft REDIRECT.
        Redirect = "redirect",
        /// UDP.
        Udp = "udp",
        /// The guests' DNS. It is the last: what comes before it carries flows.
        Dns = "dns",
    }
    /// Metric label and log value.
    pub fn as_str
}

impl ListenerLabel {
    /// Those that carry flows, in the order of their discriminants: all but [`Dns`](Self::Dns).
    pub const FLOWS: [ListenerLabel; ListenerLabel::Dns as usize] = match ListenerLabel::ALL.split_first_chunk() {
        Some((flows, [ListenerLabel::Dns])) => *flows,
        // While it is compiled: a label after `Dns` would be counted as a query.
        _ => panic!("`Dns` must be the last label"),
    };
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
