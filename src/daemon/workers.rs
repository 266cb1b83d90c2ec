//! The worker threads: each accepts at listeners of its own, and serves what it accepted to the end.

use super::listeners::WorkerListeners;
use super::watchdog::Watchdog;
use crate::accept::{self, AcceptFailure, Entrance, Incoming};
use crate::dns;
use crate::flow;
use crate::services::Services;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Starts the worker threads, each with its listeners.
pub(super) fn spawn(
    services: &Arc<Services>,
    per_worker: Vec<WorkerListeners>,
    v6: bool,
    watchdog: &Watchdog,
    end: &CancellationToken,
) -> io::Result<Vec<JoinHandle<()>>> {
    let spawn = |(index, listeners)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (services, watchdog, end) = (Arc::clone(services), watchdog.clone(), end.clone());
        let work = async move {
            tokio::spawn(watchdog.beat(index));
            work(services, listeners, v6, end).await;
        };
        std::thread::Builder::new().name(format!("outgate-{index}")).spawn(move || runtime.block_on(work))
    };
    per_worker.into_iter().enumerate().map(spawn).collect()
}

/// The work of a worker thread: accepts and serves until the end.
async fn work(services: Arc<Services>, listeners: WorkerListeners, v6: bool, end: CancellationToken) {
    if let Err(error) = dns::serve(&services, (listeners.dns_udp, listeners.dns_tcp), v6, &end) {
        tracing::error!(%error, "a DNS listener cannot be served");
    }
    for (kind, listener) in listeners.flows {
        let listener = match Incoming::new(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "a listener cannot be served");
                continue;
            }
        };
        let services = Arc::clone(&services);
        tokio::spawn(async move {
            let serve = |accepted| flow::meet(&services, kind, accepted);
            let trouble = |trouble| match trouble {
                AcceptFailure::Pause => services.account.metrics().accept_failed(),
                AcceptFailure::Reset(source) => flow::reset_unseen(&services, kind, source),
            };
            let purpose = flow::purpose(&services, kind);
            let guest_at = &|address| services.guest_at(address, None);
            let (gate, reserve) = (&services.gate, &services.reserve);
            let entrance = Entrance { listener, guest_at, gate, reserve, purpose };
            accept::run(entrance, services.stop.cancelled(), serve, trouble).await;
        });
    }
    end.cancelled().await;
}
