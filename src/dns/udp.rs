//! Queries over UDP: one socket per worker thread, whose buffers are reused for every query. A query gets its
//! own task only if servers have to be asked, or if its guest is over its rate.

use super::backlog::Backlog;
use super::responder::{Over, Processed, Responder};
use crate::semaphore::SemaphorePermit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use tokio::net::UdpSocket;

/// The largest query that is read in full, in bytes.
const MAX_QUERY: usize = 4096;
/// Queries answered before the thread's flows get their turn.
const BATCH: usize = 32;
/// Queries received at once when more arrive than are answered; receiving one costs a tenth of answering it.
const INTAKE: usize = 1024;
/// Queries of one socket that wait for the resolver at once; the rest get no answer and are retried by the guest.
const MAX_WAITING: u32 = 8192;
/// Queries of one socket that wait because their guest is over its rate. They use no other query's place.
const MAX_EARLY: u32 = 4096;
/// Clients do not use ports below this (RFC 6335 §6), but a service that answers everything may: two such
/// services would answer each other for ever.
const LEAST_PORT: u16 = 1024;
/// The exception: resolvers may be configured to query from this port.
const DNS_PORT: u16 = 53;

/// Serves the socket for as long as it is polled.
pub(super) async fn serve(responder: &Arc<Responder>, socket: &Arc<UdpSocket>) {
    let mut service = Service {
        responder,
        socket,
        reply: Vec::with_capacity(MAX_QUERY),
        waiting: Arc::default(),
        early: Arc::default(),
    };
    let mut buffer = vec![0; MAX_QUERY];
    let mut backlog = Backlog::default();
    loop {
        if backlog.is_empty() {
            if socket.readable().await.is_err() {
                // The runtime ends.
                return;
            }
            // If answers keep up with the queries, no queue is needed.
            let mut attended = 0;
            while attended < BATCH
                && let Some((message, source)) = receive(socket, &mut buffer)
            {
                service.attend(message, source);
                attended += 1;
            }
            if attended == BATCH {
                take_in(responder, socket, &mut buffer, &mut backlog);
            }
        } else {
            take_in(responder, socket, &mut buffer, &mut backlog);
            for _ in 0..BATCH {
                let Some(received) = backlog.pop() else { break };
                service.attend(&received.message, received.source);
                backlog.reuse(received);
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Returns the next query of the socket; `None` if there is no more.
fn receive<'b>(socket: &UdpSocket, buffer: &'b mut [u8]) -> Option<(&'b [u8], SocketAddr)> {
    // An error is "nothing more", or an ICMP message about an earlier reply.
    let (length, source) = socket.try_recv_from(buffer).ok()?;
    Some((buffer.get(..length)?, source))
}

/// Receives the waiting queries. One without a place gets no answer, and the guest retries.
fn take_in(responder: &Responder, socket: &UdpSocket, buffer: &mut [u8], backlog: &mut Backlog) {
    for _ in 0..INTAKE {
        let Some((message, source)) = receive(socket, buffer) else { break };
        if !backlog.push(message, source) {
            responder.unanswered();
        }
    }
}

/// One socket, and the buffers and counters for its queries.
struct Service<'s> {
    responder: &'s Arc<Responder>,
    socket: &'s Arc<UdpSocket>,
    reply: Vec<u8>,
    waiting: Arc<AtomicU32>,
    early: Arc<AtomicU32>,
}

impl Service<'_> {
    fn attend(&mut self, message: &[u8], source: SocketAddr) {
        if source.port() < LEAST_PORT && source.port() != DNS_PORT {
            return;
        }
        match self.responder.attend(message, source, Over::Udp, &mut self.reply) {
            Processed::Silence => {}
            // A full send buffer loses a reply, as any network may.
            Processed::Reply => send(self.socket, &self.reply, source),
            Processed::Wait(later) => {
                let (in_use, most) = match later.is_early() {
                    true => (&self.early, MAX_EARLY),
                    false => (&self.waiting, MAX_WAITING),
                };
                let permit = SemaphorePermit::try_acquire(Arc::clone(in_use), most);
                let (responder, socket) = (Arc::clone(self.responder), Arc::clone(self.socket));
                if let Some(permit) = permit {
                    tokio::spawn(async move {
                        let mut reply = Vec::new();
                        if responder.attend_later(later, &mut reply).await {
                            send(&socket, &reply, source);
                        }
                        drop(permit);
                    });
                }
            }
        }
    }
}

fn send(socket: &UdpSocket, reply: &[u8], source: SocketAddr) {
    let _ = socket.try_send_to(reply, source);
}
