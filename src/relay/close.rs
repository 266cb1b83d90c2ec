//! Ways to end a TCP connection: pass on the end, reset, or close so that the last words arrive.

use super::{Side, Turn, scratch};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// How long the last words may take to be taken.
const LINGER: Duration = Duration::from_secs(2);
/// How much of what the peer still sends is read and thrown away meanwhile.
const DISCARD: usize = 256 << 10;
/// And how much of it at once.
const PART: usize = 64 << 10;

/// Sends FIN: no more bytes from this side. Reading goes on.
pub(crate) fn finish(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// Makes the coming close of `stream` a reset (RST), whatever is still to be sent.
pub(crate) fn reset(stream: &impl Side) {
    // Failing leaves an ordinary close, which ends the connection as well.
    let _ = stream.socket().set_zero_linger();
}

/// Says that this is the end, as far as that can be said at once.
pub(crate) async fn announce(stream: &mut impl Side) {
    tokio::select! {
        biased;
        _ = stream.shutdown() => {}
        () = std::future::ready(()) => {}
    }
}

/// Writes `last_words`, then closes so that they arrive: a close with unread bytes in the receive
/// queue would send RST and take the words with it (RFC 9112 §9.6).
pub(crate) async fn after(stream: &mut impl Side, last_words: &[u8]) {
    let farewell = async {
        if stream.write_all(last_words).await.is_err() || stream.shutdown().await.is_err() {
            return;
        }
        let mut left = DISCARD;
        // Many that end together, and were sending much, are not to hold up others.
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

/// Reads once and throws it away: how many bytes it were.
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
