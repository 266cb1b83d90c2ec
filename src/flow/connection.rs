//! One connection of a guest on its way from accept to relay.

use super::refuse::Ended;
use crate::account::{Active, Record};
use crate::guest::Guest;
use crate::limits::Slot;
use crate::listener::ListenerLabel;
use crate::reason::Reason;
use crate::relay::{GuestStream, Side, close};
use crate::services::Services;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// One connection of a guest, until its bytes are relayed.
pub(super) struct Connection {
    pub(super) services: Arc<Services>,
    /// The guest's end.
    pub(super) stream: GuestStream,
    /// The guest's address and port.
    pub(super) source: SocketAddr,
    pub(super) guest: Guest,
    /// The original destination, if the connection was redirected here without the guest's knowledge.
    pub(super) original: Option<SocketAddr>,
    pub(super) slot: Slot,
    pub(super) active: Active,
    /// Bytes read and not yet used.
    pub(super) input: Vec<u8>,
    /// The time by which the decision must have been made.
    pub(super) deadline: Deadline,
}

/// The result of waiting for the guest's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    Bytes,
    End,
    Timeout,
}

/// The result of waiting for the guest's bytes while its flow may be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Bytes,
    End,
    Timeout,
    Revoked(Reason),
}

impl From<Filled> for Heard {
    fn from(filled: Filled) -> Heard {
        match filled {
            Filled::Bytes => Heard::Bytes,
            Filled::End => Heard::End,
            Filled::Timeout => Heard::Timeout,
        }
    }
}

impl Connection {
    /// Opens the record of one of its flows or requests.
    pub(super) fn record(&mut self, listener: ListenerLabel) -> Record {
        self.services.refresh(&mut self.guest);
        open_record(&self.services, listener, self.source, &self.guest, self.original)
    }

    /// Reads once more into `input`, within the deadline.
    pub(super) async fn fill(&mut self) -> Filled {
        fill(&mut self.stream, &mut self.input, &mut self.deadline).await
    }

    /// As [`fill`](Self::fill), but also ends when the flow is revoked.
    pub(super) async fn hear(&mut self, record: &Record) -> Heard {
        tokio::select! {
            biased;
            filled = self.fill() => filled.into(),
            reason = record.flow().revoked() => Heard::Revoked(reason),
        }
    }

    /// Writes to the guest. If that fails, the connection is reset, and the record gets the reason if there is one.
    pub(super) async fn say(&mut self, bytes: &[u8], record: &mut Record) -> Result<(), Ended> {
        let limit = self.services.gate.settings().idle_timeout;
        say(&mut self.stream, bytes, record, limit).await.map_err(|reason| {
            if let Some(reason) = reason {
                record.refuse(reason, None);
            }
            close::reset(&self.stream);
            Ended::Closed
        })
    }

    /// As [`say`](Self::say), while there is no record.
    pub(super) async fn say_unrecorded(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let mut deadline = Deadline::after(self.services.gate.settings().idle_timeout);
        let said = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        tokio::select! {
            biased;
            said = said => said.map_err(|_| Ended::Closed),
            () = deadline.passed() => Err(Ended::Closed),
        }
    }

    /// Ends it while nothing is in progress. Without TLS, closing the socket is enough.
    pub(super) async fn leave(&mut self) -> Ended {
        if !self.stream.ends_with_socket() {
            close::announce(&mut self.stream).await;
        }
        Ended::Closed
    }
}

/// Opens the record of a flow of `guest`, which connected from `source`.
pub(super) fn open_record(
    services: &Services,
    listener: ListenerLabel,
    source: SocketAddr,
    guest: &Guest,
    original: Option<SocketAddr>,
) -> Record {
    let mut record = services.account.open(listener, source, &guest.counters);
    if let Some(original) = original {
        record.original(original);
    }
    record
}

/// Writes `bytes` within `limit`, unless the flow is revoked. `Err(None)`: the other end is gone.
pub(super) async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    record: &Record,
    limit: Option<Duration>,
) -> Result<(), Option<Reason>> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut deadline = Deadline::after(limit);
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    tokio::select! {
        biased;
        written = written => written.map_err(|_| None),
        reason = record.flow().revoked() => Err(Some(reason)),
        () = deadline.passed() => Err(Some(Reason::Timeout)),
    }
}

/// Reads once into `input`, within the deadline.
pub(super) async fn fill(
    stream: &mut (impl AsyncRead + Unpin),
    input: &mut Vec<u8>,
    deadline: &mut Deadline,
) -> Filled {
    // Most heads and hellos fit; a guest that sends one byte at a time does not make the buffer grow.
    if input.capacity() - input.len() < 512 {
        input.reserve(2048);
    }
    tokio::select! {
        biased;
        read = stream.read_buf(input) => match read {
            Ok(1..) => Filled::Bytes,
            Ok(0) | Err(_) => Filled::End,
        },
        () = deadline.passed() => Filled::Timeout,
    }
}

/// One deadline for a whole hand-shake, on one timer.
pub(super) struct Deadline {
    at: Option<Instant>,
    sleep: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Deadline {
    pub(super) fn at(at: Option<Instant>) -> Deadline {
        Deadline { at, sleep: None }
    }

    pub(super) fn after(time: Option<Duration>) -> Deadline {
        Deadline::at(time.map(|time| Instant::now() + time))
    }

    /// Restarts the same timer for a deadline `time` from now.
    pub(super) fn restart(&mut self, time: Option<Duration>) {
        self.at = time.map(|time| Instant::now() + time);
        match (self.at, &mut self.sleep) {
            (Some(at), Some(sleep)) => sleep.as_mut().reset(at),
            _ => self.sleep = None,
        }
    }

    /// Waits until the deadline, or for ever if there is none.
    pub(super) async fn passed(&mut self) {
        match self.at {
            Some(at) => self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at))).await,
            None => std::future::pending().await,
        }
    }
}
