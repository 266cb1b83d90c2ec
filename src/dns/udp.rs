//! Queries over UDP: one socket a worker thread, its buffers used again for every query. A query gets a
//! task of its own only where servers have to be asked, or where its guest is too quick.

use super::desk::{Desk, Over, Step};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UdpSocket;

/// The largest query that is read in full, in bytes.
const MAX_QUERY: usize = 4096;
/// Queries answered before the thread's flows get their turn.
const BATCH: usize = 32;
/// Queries of one socket that wait for the resolver at once; the rest meet silence and come again.
const MAX_WAITING: usize = 8192;
/// Queries of one socket that wait because their guest is too quick. They take nobody else's place.
const MAX_EARLY: usize = 4096;
/// Ports below this are no client's (RFC 6335 §6), but may be those of a service that answers whatever
/// comes: two such would talk to one another for ever.
const LEAST_PORT: u16 = 1024;
/// Except for resolvers that are told to ask from it.
const DNS_PORT: u16 = 53;

/// Serves the socket for as long as it is polled.
pub(super) async fn serve(desk: &Arc<Desk>, socket: &Arc<UdpSocket>) {
    let mut query = vec![0u8; MAX_QUERY];
    let mut reply = Vec::with_capacity(MAX_QUERY);
    let (waiting, early) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    loop {
        if socket.readable().await.is_err() {
            // The runtime ends.
            return;
        }
        for _ in 0..BATCH {
            // An error is "nothing more", or an ICMP message about an earlier reply.
            let Ok((length, source)) = socket.try_recv_from(&mut query) else { break };
            if source.port() < LEAST_PORT && source.port() != DNS_PORT {
                continue;
            }
            let Some(message) = query.get(..length) else { continue };
            match desk.attend(message, source, Over::Udp, &mut reply) {
                Step::Silence => {}
                // A full send buffer loses a reply, as any network does.
                Step::Reply => drop(socket.try_send_to(&reply, source)),
                Step::Wait(later) => {
                    let seat = match later.is_early() {
                        true => Seat::take(&early, MAX_EARLY),
                        false => Seat::take(&waiting, MAX_WAITING),
                    };
                    let (desk, socket) = (Arc::clone(desk), Arc::clone(socket));
                    if let Some(seat) = seat {
                        tokio::spawn(async move {
                            let mut reply = Vec::new();
                            if desk.attend_later(later, &mut reply).await {
                                send(&socket, &reply, source);
                            }
                            drop(seat);
                        });
                    }
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn send(socket: &UdpSocket, reply: &[u8], source: SocketAddr) {
    let _ = socket.try_send_to(reply, source);
}

/// A place among the queries that wait.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(waiting: &Arc<AtomicUsize>, most: usize) -> Option<Seat> {
        let seat = Seat(Arc::clone(waiting));
        (waiting.fetch_add(1, Ordering::Relaxed) < most).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
