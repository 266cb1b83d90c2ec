//! Ways to end a TCP connection: pass on the end, reset, or close so that the last bytes arrive.

use super::{Side, Turn, scratch};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// How long [`after`] may take to write the last bytes and to discard what still arrives.
const LINGER: Duration = Duration::from_secs(2);
/// How much of what the peer still sends is read and discarded meanwhile.
const DISCARD: usize = 256 << 10;
/// How much of it is read at once.
const PART: usize = 64 << 10;

/// Sends FIN: no more bytes from this side. Reading goes on.
pub(crate) fn finish(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// Makes the coming close of `stream` a reset (RST), whatever is still to be sent.
pub(crate) fn reset(stream: &impl Side) {
    // If this fails, the close is an ordinary one, which ends the connection as well.
    let _ = stream.socket().set_zero_linger();
}

/// Signals the end of the stream, as far as that is possible without waiting.
pub(crate) async fn announce(stream: &mut impl Side) {
    tokio::select! {
        biased;
        _ = stream.shutdown() => {}
        () = std::future::ready(()) => {}
    }
}

/// Writes `last_words`, then closes so that they arrive: a close with unread bytes in the receive queue would send
/// RST, and the peer would lose them (RFC 9112 §9.6).
pub(crate) async fn after(stream: &mut impl Side, last_words: &[u8]) {
    let farewell = async {
        if stream.write_all(last_words).await.is_err() || stream.shutdown().await.is_err() {
            return;
        }
        let mut left = DISCARD;
        // Many connections that end together, and whose peers send much, must not hold up others.
        let mut turn = Turn::default();
        while left > 0 {
            turn.next(PART).await;
            match turn.rest(discard(stream)).await {
                Ok(n @ 1..) => left = left.saturating_sub(n),
                Ok(0) | Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

/// Reads once and discards the bytes. Returns how many there were.
async fn discard(stream: &mut impl Side) -> io::Result<usize> {
    poll_fn(|cx| {
        scratch::with(PART, |buffer| {
            let mut part = ReadBuf::new(buffer);
            match Pin::new(&mut *stream).poll_read(cx, &mut part) {
                Poll::Ready(read) => Poll::Ready(read.map(|()| part.filled().len())),
                Poll::Pending => Poll::Pending,
            }
        })
    })
    .await
}
