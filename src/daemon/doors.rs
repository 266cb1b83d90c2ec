//! Everything the daemon listens on, before its first connection: all of it or nothing. Sockets of guests
//! are dealt to the worker threads.

use crate::accept::{Kind, ListenError, Shares, Sockets, Unclaimed};
use crate::config::ListenSettings;
use crate::flow::Door;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// How long the socket of a stranger is accepted from no more after an error.
const PAUSE: Duration = Duration::from_millis(100);

/// The open listeners.
pub(super) struct Doors {
    /// A share for each worker thread.
    pub(super) shares: Vec<Share>,
    pub(super) admin: Vec<TcpListener>,
    pub(super) admin_tls: Vec<TcpListener>,
    /// Where guests and operators come in. Port 0 in the configuration asks for any.
    pub(super) bound: Vec<SocketAddr>,
    pub(super) unclaimed: Unclaimed,
    /// The sockets stay open when this process ends.
    pub(super) inherited: bool,
}

/// What one worker thread serves.
#[derive(Default)]
pub(super) struct Share {
    pub(super) flows: Vec<(Door, TcpListener)>,
    pub(super) dns_tcp: Vec<TcpListener>,
    pub(super) dns_udp: Vec<UdpSocket>,
}

impl Doors {
    /// Opens all of them, or takes them over from the service manager.
    pub(super) fn open(listen: &ListenSettings, workers: usize) -> Result<Doors, ListenError> {
        let mut sockets = Sockets::new(workers)?;
        let mut shares: Vec<Share> = (0..workers).map(|_| Share::default()).collect();
        let mut bound = Vec::new();
        for (kind, door, addresses) in [
            (Kind::Proxy, Door::Proxy, &listen.proxy),
            (Kind::ProxyTls, Door::ProxyTls, &listen.proxy_tls),
            (Kind::Transparent, Door::Transparent, &listen.transparent),
            (Kind::Redirect, Door::Redirect, &listen.redirect),
        ] {
            for address in addresses {
                let opened = sockets.tcp(kind, *address)?;
                bound.extend(address_of(&opened));
                hand_out(opened, &mut shares, |share, listener| share.flows.push((door, listener)));
            }
        }
        for address in &listen.dns {
            let tcp = sockets.tcp(Kind::Dns, *address)?;
            let address = address_of(&tcp).unwrap_or(*address);
            let udp = sockets.udp(Kind::Dns, address)?;
            bound.push(address);
            hand_out(tcp, &mut shares, |share, listener| share.dns_tcp.push(listener));
            hand_out(udp, &mut shares, |share, socket| share.dns_udp.push(socket));
        }
        let admin = listen.admin.map(|address| sockets.tcp(Kind::Admin, address)).transpose()?.unwrap_or_default();
        bound.extend(address_of(&admin));
        let tls = listen.admin_tls.map(|address| sockets.tcp(Kind::AdminTls, address)).transpose()?.unwrap_or_default();
        bound.extend(address_of(&tls));
        let inherited = sockets.are_inherited();
        let (admin, admin_tls) = (admin.into_iter().flatten().collect(), tls.into_iter().flatten().collect());
        Ok(Doors { shares, admin, admin_tls, bound, unclaimed: sockets.finish()?, inherited })
    }
}

fn address_of(opened: &Shares<TcpListener>) -> Option<SocketAddr> {
    opened.first()?.first()?.local_addr().ok()
}

fn hand_out<T>(opened: Shares<T>, shares: &mut [Share], mut to: impl FnMut(&mut Share, T)) {
    for (sockets, share) in opened.into_iter().zip(shares) {
        sockets.into_iter().for_each(|socket| to(share, socket));
    }
}

/// Resets whoever connects to a socket that no listener of the configuration is for: it would wait for
/// ever otherwise, for the socket is the service manager's and stays open. Must be called within a runtime.
pub(super) fn turn_away(unclaimed: Unclaimed) {
    for socket in unclaimed.udp {
        warn_of(socket.local_addr().ok());
    }
    for listener in unclaimed.tcp {
        warn_of(listener.local_addr().ok());
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
        "a socket unit holds {address}, which no key of [listen] has: connections to it are reset; \
         `systemctl list-sockets` shows the unit"
    );
}
