//! Where packets are directed, and what may be reached directly, for each address family.

use crate::settings::ListenerAddresses;
use std::net::SocketAddr;

/// The listeners of one address family, as guests see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FamilyListeners {
    /// Destination of TCP.
    pub(crate) transparent: Option<SocketAddr>,
    /// Destination of DNS queries.
    pub(crate) dns: Option<SocketAddr>,
    /// What guests may connect to directly.
    pub(crate) open: Vec<DirectListener>,
    /// Destination of host users' TCP.
    pub(crate) redirect: Option<SocketAddr>,
    /// Destination of their DNS queries.
    pub(crate) user_dns: Option<SocketAddr>,
    /// What host users may connect to directly, loopback included.
    pub(crate) user_open: Vec<DirectListener>,
}

/// A listener that accepts direct connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectListener {
    pub(crate) address: SocketAddr,
    /// Its key in the configuration.
    pub(crate) key: &'static str,
    /// Whether it accepts UDP beside TCP.
    pub(crate) udp: bool,
}

impl FamilyListeners {
    /// Returns the listeners among these whose addresses satisfy `family`.
    pub(super) fn of(listen: &ListenerAddresses, family: impl Fn(&SocketAddr) -> bool) -> FamilyListeners {
        let of = |list: &[SocketAddr]| list.iter().copied().filter(&family).collect::<Vec<_>>();
        // A packet from outside for a loopback address is a martian, so guests cannot reach such a listener.
        let remote = |list: &[SocketAddr]| of(list).into_iter().filter(|address| !address.ip().is_loopback());
        let listener = |key, udp| move |address| DirectListener { address, key, udp };
        let proxies = [("proxy", &listen.proxy), ("proxy_tls", &listen.proxy_tls)];
        let mut listeners = FamilyListeners {
            transparent: remote(&listen.transparent).next(),
            dns: remote(&listen.dns).next(),
            redirect: of(&listen.redirect).first().copied(),
            user_dns: of(&listen.dns).first().copied(),
            ..FamilyListeners::default()
        };
        for (key, list) in proxies {
            listeners.open.extend(remote(list).map(listener(key, false)));
            listeners.user_open.extend(of(list).into_iter().map(listener(key, false)));
        }
        listeners.open.extend(remote(&listen.dns).map(listener("dns", true)));
        listeners.user_open.extend(of(&listen.dns).into_iter().map(listener("dns", true)));
        listeners
    }
}
