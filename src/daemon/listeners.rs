//! Opens all listeners of the daemon before its first connection. The guests' sockets are dealt to the worker threads.

use crate::accept::{ListenError, SocketUse, Sockets, Unclaimed, WorkerSockets};
use crate::config::ListenSettings;
use crate::listener::ListenerKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// Pause after an error before a socket without a configured listener accepts again.
const PAUSE: Duration = Duration::from_millis(100);

/// The open listeners.
pub(super) struct Listeners {
    /// By worker thread.
    pub(super) per_worker: Vec<WorkerListeners>,
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
pub(super) struct WorkerListeners {
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
        let mut per_worker: Vec<WorkerListeners> = (0..workers).map(|_| WorkerListeners::default()).collect();
        let mut bound = Vec::new();
        let mut fault = None;
        for kind in SocketUse::ALL {
            let Some(listener_kind) = kind.listener_kind() else { continue };
            for address in listen.addresses(kind) {
                let opened = or_note_fault(sockets.tcp(kind, *address), &mut fault);
                bound.extend(address_of(&opened));
                hand_out(opened, &mut per_worker, |worker, listener| worker.flows.push((listener_kind, listener)));
            }
        }
        for address in &listen.dns {
            let tcp = or_note_fault(sockets.tcp(SocketUse::Dns, *address), &mut fault);
            let address = address_of(&tcp).unwrap_or(*address);
            let udp = or_note_fault(sockets.udp(SocketUse::Dns, address), &mut fault);
            bound.push(address);
            hand_out(tcp, &mut per_worker, |worker, listener| worker.dns_tcp.push(listener));
            hand_out(udp, &mut per_worker, |worker, socket| worker.dns_udp.push(socket));
        }
        let mut single = |kind, address: Option<SocketAddr>| {
            let opened =
                address.map(|address| or_note_fault(sockets.tcp(kind, address), &mut fault)).unwrap_or_default();
            bound.extend(address_of(&opened));
            opened.into_iter().flatten().collect()
        };
        let (admin, admin_tls) =
            (single(SocketUse::Admin, listen.admin), single(SocketUse::AdminTls, listen.admin_tls));
        let inherited = sockets.are_inherited();
        let (unclaimed, missing) = sockets.finish();
        fault = fault.or(missing);
        (Listeners { per_worker, admin, admin_tls, bound, unclaimed, inherited }, fault)
    }

    /// Removes the TLS listeners, which require a certificate; the caller resets their connections.
    pub(super) fn without_tls(&mut self) -> Vec<TcpListener> {
        let mut taken: Vec<TcpListener> = std::mem::take(&mut self.admin_tls);
        for worker in &mut self.per_worker {
            taken.extend(
                worker
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

/// Returns what could be opened, or nothing; the first error is noted.
fn or_note_fault<T: Default>(opened: Result<T, ListenError>, fault: &mut Option<ListenError>) -> T {
    opened.unwrap_or_else(|error| {
        fault.get_or_insert(error);
        T::default()
    })
}

fn address_of(opened: &WorkerSockets<TcpListener>) -> Option<SocketAddr> {
    opened.first()?.first()?.local_addr().ok()
}

fn hand_out<T>(
    opened: WorkerSockets<T>,
    per_worker: &mut [WorkerListeners],
    mut to: impl FnMut(&mut WorkerListeners, T),
) {
    for (sockets, worker) in opened.into_iter().zip(per_worker) {
        sockets.into_iter().for_each(|socket| to(worker, socket));
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
