//! Queries over TCP (RFC 7766): several per connection, answered in the order in which answers arrive. A
//! connection counts among its guest's connections like any other, and is closed when it sends no whole query
//! for a while.

use super::responder::{Over, Processed, Responder};
use crate::accept::Accepted;
use crate::relay::Turn;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// The largest query, in bytes.
const MAX_QUERY: usize = 4096;
/// Queries of one connection that wait for the resolver at once; no more are read meanwhile.
const MAX_WAITING: usize = 32;
/// What one query costs beyond the bytes of a stream, in the unit that measures turns.
const COST: usize = 16 << 10;
/// How long a connection may take to send the next whole query, or to accept a reply (RFC 7766 §6.2.3 asks for
/// seconds).
const IDLE: Duration = Duration::from_secs(10);

/// Serves one connection.
pub(super) async fn serve(responder: Arc<Responder>, accepted: Accepted) {
    let Accepted { stream, source, at, slot, .. } = accepted;
    let slot = match slot {
        Ok(slot) => slot,
        Err(reason) => {
            // It is closed, and the guest tries again.
            responder.services.note_over_limit(reason);
            return;
        }
    };
    let Ok(mut stream) = TcpStream::from_std(stream) else { return };
    responder.services.wait_for_turn(&slot).await;
    let (mut reader, mut writer) = stream.split();
    let mut input = Vec::with_capacity(512);
    let mut reply = Vec::with_capacity(512);
    let mut waiting: JoinSet<Vec<u8>> = JoinSet::new();
    let mut patience = at + IDLE;
    let mut ended = false;
    let mut turn = Turn::default();
    loop {
        while waiting.len() < MAX_WAITING {
            let message = match next(&mut input) {
                Next::Query(message) => message,
                Next::More => break,
                Next::TooLong => return,
            };
            turn.next(COST).await;
            patience = Instant::now() + IDLE;
            match responder.attend(&message, source, Over::Tcp, &mut reply) {
                // Not a query, or one of a flood.
                Processed::Silence => return,
                Processed::Reply => {
                    if send(&mut writer, &reply).await.is_err() {
                        return;
                    }
                }
                Processed::Wait(later) => {
                    let responder = Arc::clone(&responder);
                    waiting.spawn(async move {
                        let mut reply = Vec::new();
                        let answered = responder.attend_later(later, &mut reply).await;
                        if answered { reply } else { Vec::new() }
                    });
                }
            }
        }
        if ended && waiting.is_empty() {
            break;
        }
        let has_room = !ended && waiting.len() < MAX_WAITING;
        tokio::select! {
            Some(done) = waiting.join_next(), if !waiting.is_empty() => {
                let Ok(reply) = done else { return };
                patience = Instant::now() + IDLE;
                if !reply.is_empty() && send(&mut writer, &reply).await.is_err() {
                    return;
                }
            }
            read = turn.rest(reader.read_buf(&mut input)), if has_room => match read {
                // The guest has sent all its queries and may still read answers.
                Ok(0) => ended = true,
                Ok(_) => {}
                Err(_) => return,
            },
            () = sleep_until(patience), if waiting.is_empty() => return,
            () = responder.services.stop.cancelled(), if waiting.is_empty() => return,
        }
    }
    drop(slot);
}

/// What is at the front of the input.
enum Next {
    /// A whole query, removed from the input.
    Query(Vec<u8>),
    /// Less than a whole query.
    More,
    /// Longer than any query may be.
    TooLong,
}

fn next(input: &mut Vec<u8>) -> Next {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return Next::More };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > MAX_QUERY {
        return Next::TooLong;
    }
    let Some(message) = rest.get(..length) else { return Next::More };
    let message = message.to_vec();
    input.drain(..length + 2);
    Next::Query(message)
}

/// Sends length and reply in one write (RFC 7766 §8).
async fn send(writer: &mut WriteHalf<'_>, reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let frame = [&length.to_be_bytes(), reply].concat();
    timeout(IDLE, writer.write_all(&frame)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_taken_one_by_one_however_they_are_cut() {
        let mut input = Vec::new();
        let mut taken = Vec::new();
        for byte in [0u8, 3, 1, 2, 3, 0, 1, 9, 0] {
            input.push(byte);
            while let Next::Query(message) = next(&mut input) {
                taken.push(message);
            }
        }
        assert_eq!(taken, [vec![1, 2, 3], vec![9]]);
        assert_eq!(input, [0]);
    }

    #[test]
    fn a_length_past_any_query_is_known_at_once() {
        assert!(matches!(next(&mut vec![0x10, 1]), Next::TooLong));
        assert!(matches!(next(&mut vec![0x10, 0]), Next::More));
    }
}
