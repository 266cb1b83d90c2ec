//! Opens all listeners of the daemon before its first connection. The guests' sockets are dealt to the worker threads.

use crate::accept::{ListenError, Shares, SocketUse, Sockets, Unclaimed};
use crate::config::ListenSettings;
use crate::listener::ListenerKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// Pause after an error before a socket without a configured listener accepts again.
const PAUSE: Duration = Duration::from_millis(100);

/// The open listeners.
pub(super) struct Listeners {
    /// One share per worker thread.
    pub(super) shares: Vec<Share>,
    pub(super) admin: Vec<TcpListener>,
    pub(super) admin_tls: Vec<TcpListener>,
    /// The addresses of all listeners for guests and operators. Port 0 in the configuration asks for any.
    pub(super) bound: Vec<SocketAddr>,
    pub(super) unclaimed: Unclaimed,
    /// Whether the sockets stay open when this process ends.
    pub(super) inherited: bool,
}

/// The sockets that one worker thread serves.
#[derive(Default)]
pub(super) struct Share {
    pub(super) flows: Vec<(ListenerKind, TcpListener)>,
    pub(super) dns_tcp: Vec<TcpListener>,
    pub(super) dns_udp: Vec<UdpSocket>,
}

impl Listeners {
    /// Opens all listeners, or takes them over from the service manager. If some cannot be opened, the rest is
    /// opened all the same, and the first error is returned with them.
    ///
    /// # Errors
    /// [`ListenError`] if an inherited socket is not usable.
    pub(super) fn open(
        listen: &ListenSettings,
        workers: usize,
    ) -> Result<(Listeners, Option<ListenError>), ListenError> {
        Ok(Listeners::of(Sockets::new(workers)?, listen, workers))
    }

    /// Works as [`open`](Self::open) without a usable configuration. It uses the inherited sockets, each by the
    /// name of its unit, or else the built-in listeners.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(super) fn open_by_unit(
        built_in: &ListenSettings,
        workers: usize,
    ) -> Result<(Listeners, ListenSettings), ListenError> {
        let sockets = Sockets::new(workers)?;
        let listen = match sockets.units() {
            None => built_in.clone(),
            Some(units) => by_unit(built_in, units),
        };
        let (listeners, fault) = Listeners::of(sockets, &listen, workers);
        if let Some(fault) = fault {
            tracing::error!("{fault}");
        }
        Ok((listeners, listen))
    }

    fn of(mut sockets: Sockets, listen: &ListenSettings, workers: usize) -> (Listeners, Option<ListenError>) {
        let mut shares: Vec<Share> = (0..workers).map(|_| Share::default()).collect();
        let mut bound = Vec::new();
        let mut fault = None;
        for (kind, listener_kind, addresses) in [
            (SocketUse::Proxy, ListenerKind::Proxy, &listen.proxy),
            (SocketUse::ProxyTls, ListenerKind::ProxyTls, &listen.proxy_tls),
            (SocketUse::Transparent, ListenerKind::Transparent, &listen.transparent),
            (SocketUse::Redirect, ListenerKind::Redirect, &listen.redirect),
        ] {
            for address in addresses {
                let opened = had(sockets.tcp(kind, *address), &mut fault);
                bound.extend(address_of(&opened));
                hand_out(opened, &mut shares, |share, listener| share.flows.push((listener_kind, listener)));
            }
        }
        for address in &listen.dns {
            let tcp = had(sockets.tcp(SocketUse::Dns, *address), &mut fault);
            let address = address_of(&tcp).unwrap_or(*address);
            let udp = had(sockets.udp(SocketUse::Dns, address), &mut fault);
            bound.push(address);
            hand_out(tcp, &mut shares, |share, listener| share.dns_tcp.push(listener));
            hand_out(udp, &mut shares, |share, socket| share.dns_udp.push(socket));
        }
        let mut single = |kind, address: Option<SocketAddr>| {
            let opened = address.map(|address| had(sockets.tcp(kind, address), &mut fault)).unwrap_or_default();
            bound.extend(address_of(&opened));
            opened.into_iter().flatten().collect()
        };
        let (admin, admin_tls) =
            (single(SocketUse::Admin, listen.admin), single(SocketUse::AdminTls, listen.admin_tls));
        let inherited = sockets.are_inherited();
        let (unclaimed, missing) = sockets.finish();
        fault = fault.or(missing);
        (Listeners { shares, admin, admin_tls, bound, unclaimed, inherited }, fault)
    }

    /// Removes the TLS listeners, which require a certificate; the caller resets their connections.
    pub(super) fn without_tls(&mut self) -> Vec<TcpListener> {
        let mut taken: Vec<TcpListener> = std::mem::take(&mut self.admin_tls);
        for share in &mut self.shares {
            taken.extend(
                share
                    .flows
                    .extract_if(.., |(listener_kind, _)| *listener_kind == ListenerKind::ProxyTls)
                    .map(|(_, listener)| listener),
            );
        }
        taken
    }
}

/// Returns the listen settings that match these sockets.
fn by_unit(built_in: &ListenSettings, units: Vec<(SocketUse, SocketAddr)>) -> ListenSettings {
    let mut listen = built_in.without_listeners();
    for (kind, address) in units {
        let list = match kind {
            SocketUse::Proxy | SocketUse::ProxyTls => &mut listen.proxy,
            SocketUse::Transparent => &mut listen.transparent,
            SocketUse::Redirect => &mut listen.redirect,
            SocketUse::Dns => &mut listen.dns,
            SocketUse::Admin | SocketUse::AdminTls => {
                listen.admin = Some(address);
                continue;
            }
        };
        if !list.contains(&address) {
            list.push(address);
        }
    }
    listen
}

/// Returns what could be opened; the first error is stored.
fn had<T: Default>(opened: Result<T, ListenError>, fault: &mut Option<ListenError>) -> T {
    opened.unwrap_or_else(|error| {
        fault.get_or_insert(error);
        T::default()
    })
}

fn address_of(opened: &Shares<TcpListener>) -> Option<SocketAddr> {
    opened.first()?.first()?.local_addr().ok()
}

fn hand_out<T>(opened: Shares<T>, shares: &mut [Share], mut to: impl FnMut(&mut Share, T)) {
    for (sockets, share) in opened.into_iter().zip(shares) {
        sockets.into_iter().for_each(|socket| to(share, socket));
    }
}

/// Resets every connection to a socket that no configured listener uses. Otherwise it would wait forever, since
/// the socket belongs to the service manager and stays open. Must be called within a runtime.
pub(super) fn turn_away(unclaimed: Unclaimed) {
    for socket in unclaimed.udp {
        warn_of(socket.local_addr().ok());
    }
    for listener in &unclaimed.tcp {
        warn_of(listener.local_addr().ok());
    }
    reset(unclaimed.tcp);
}

/// Resets every connection to these listeners. Must be called within a runtime.
pub(super) fn reset(listeners: Vec<TcpListener>) {
    for listener in listeners {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { continue };
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(stream.set_zero_linger()),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        });
    }
}

fn warn_of(address: Option<SocketAddr>) {
    let address = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
    tracing::warn!(
        "a socket unit listens on {address}, which no key of [listen] has: connections to it are reset; `systemctl \
         list-sockets` shows the unit"
    );
}
