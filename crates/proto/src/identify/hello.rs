//! The ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2) of a TLS stream that does not end here: which name it asks
//! for, and whether it hides another.
//!
//! The parser is our own, because libraries read a hello to answer it and hide what they tolerated: an address or an
//! unknown name type in the place of the name, encrypted_client_hello, bytes after the message. Anything that a
//! server could read in another way is an error. Nothing is answered and nothing decrypted here; [`ServerFlight`]
//! and [`ClientRecords`] watch for the second hello that a server may ask for.

mod body;
mod retry;

pub use retry::{ClientRecords, Flight, Forwardable, HELD, ServerFlight};

use super::Parsed;
use crate::name::{HostName, NameError};
use crate::reason::Why;
use std::fmt;

/// The longest ClientHello message, including its four-byte header, in bytes. Real ones have 200 bytes to 2 KiB; RFC
/// 8446 §5.1 limits a record's payload to the same number.
pub const MAX_HELLO: usize = 16 * 1024;
/// The most bytes of a stream that a hello can occupy: every byte of it in a record of its own. A caller that keeps
/// this much of the stream always keeps enough.
pub const MAX_HELLO_STREAM: usize = MAX_HELLO * (RECORD_HEADER + 1);

/// Type, version and length of a TLSPlaintext (RFC 8446 §5.1).
const RECORD_HEADER: usize = 5;
/// The longest payload of a TLSPlaintext.
const MAX_PLAINTEXT: usize = 16 * 1024;
const HANDSHAKE_HEADER: usize = 4;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// What a ClientHello shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name, canonical; `None` where the extension is absent.
    pub sni: Option<HostName>,
    /// Whether encrypted_client_hello (RFC 9849) or one of its drafts is present, valid or not.
    pub ech: bool,
    /// How many bytes of the stream the hello's records occupy.
    pub len: usize,
}

/// Why a stream does not start with a valid ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// The first record is not a handshake record of SSL 3 or later.
    NotHandshake,
    /// An empty record, or one longer than 2^14 bytes.
    RecordLength,
    /// The first message is not a ClientHello.
    NotHello,
    /// Over [`MAX_HELLO`].
    TooLong,
    /// A length inside does not fit, or bytes follow where none may.
    Structure,
    /// An extension twice, or more extensions than anyone sends.
    Extensions,
    /// The list of server names does not hold exactly one host name.
    NameList,
    /// The server name is not a host name.
    Name(NameError),
}

impl HelloError {
    /// What is wrong, in a fixed phrase for log and answers.
    pub const fn phrase(self) -> &'static str {
        match self {
            HelloError::NotHandshake => "not a TLS handshake record",
            HelloError::RecordLength => "a TLS record has a length that is not allowed",
            HelloError::NotHello => "not a ClientHello",
            HelloError::TooLong => "the ClientHello is too long",
            HelloError::Structure => "the ClientHello is malformed",
            HelloError::Extensions => "an extension is repeated, or there are too many",
            HelloError::NameList => "the server_name extension does not hold exactly one host name",
            HelloError::Name(_) => "the server name is malformed",
        }
    }
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}

impl std::error::Error for HelloError {}

impl From<NameError> for HelloError {
    fn from(flaw: NameError) -> HelloError {
        HelloError::Name(flaw)
    }
}

impl HelloError {
    /// The reason and the cause to count and log.
    pub const fn why(self) -> Why {
        Why::malformed(self.phrase())
    }
}

/// Does a stream that starts like this carry TLS? Records of every type count: a server skips a warning in front of
/// the hello, so such a record must not pass as another protocol.
pub fn looks_like_tls(buf: &[u8]) -> bool {
    matches!(buf, [0x14..=0x18, 3, ..])
}

/// Reads the ClientHello at the front of a stream, over any number of records and calls.
///
/// Remembers how far it got, so that the work over all calls is linear in the bytes. Copies nothing if the hello
/// fits in one record.
#[derive(Debug, Default)]
pub struct Hello {
    /// Where the next record starts: everything before it was copied to `message`.
    at: usize,
    /// The handshake message assembled from its records; empty as long as one record may hold all of it.
    message: Vec<u8>,
}

impl Hello {
    /// A reader at the start of a stream.
    pub fn new() -> Hello {
        Hello::default()
    }

    /// Reads a whole buffer at once, like [`Hello::new`] followed by [`advance`](Self::advance).
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn parse(buf: &[u8]) -> Result<Parsed<ClientHello>, HelloError> {
        Hello::new().advance(buf)
    }

    /// Reads on. `buf` is the stream from its start: the same bytes as in the last call and any number after them.
    /// The split over calls does not change the outcome.
    ///
    /// # Errors
    /// [`HelloError`], mostly as soon as the deciding byte has arrived.
    pub fn advance(&mut self, buf: &[u8]) -> Result<Parsed<ClientHello>, HelloError> {
        loop {
            let record = buf.get(self.at..).unwrap_or_default();
            let Some(length) = record_length(record)? else { return Ok(Parsed::Partial) };
            let payload = record.get(RECORD_HEADER..).unwrap_or_default();
            let whole = payload.get(..length);
            let payload = whole.unwrap_or(payload);
            let missing = self.missing(payload)?;
            if missing.is_some_and(|missing| length > missing) {
                return Err(HelloError::Structure);
            }
            if whole.is_none() {
                return Ok(Parsed::Partial);
            }
            let end = self.at + RECORD_HEADER + length;
            let last = missing == Some(length);
            if last && self.message.is_empty() {
                return complete(payload, end);
            }
            self.message.extend_from_slice(payload);
            if last {
                return complete(&self.message, end);
            }
            self.at = end;
        }
    }

    /// Returns how many bytes of the message follow those that were copied; `None` while its length is unknown.
    /// `payload` is the available part of the next record.
    fn missing(&self, payload: &[u8]) -> Result<Option<usize>, HelloError> {
        let mut header = self.message.iter().chain(payload);
        if header.next().is_some_and(|kind| *kind != 1) {
            return Err(HelloError::NotHello);
        }
        let (Some(a), Some(b), Some(c)) = (header.next(), header.next(), header.next()) else { return Ok(None) };
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        let total = usize::try_from(length).map_err(|_| HelloError::TooLong)?.saturating_add(HANDSHAKE_HEADER);
        if total > MAX_HELLO {
            return Err(HelloError::TooLong);
        }
        // The copied bytes never reach the end of the message, so this does not go below zero.
        Ok(Some(total.saturating_sub(self.message.len())))
    }
}

fn complete(message: &[u8], len: usize) -> Result<Parsed<ClientHello>, HelloError> {
    let body = message.get(HANDSHAKE_HEADER..).unwrap_or_default();
    let body::Shown { sni, ech } = body::read(body)?;
    Ok(Parsed::Complete { head: ClientHello { sni, ech, len }, len })
}

/// The payload length of the handshake record that starts here; `None` while its header is incomplete.
fn record_length(record: &[u8]) -> Result<Option<usize>, HelloError> {
    let mut header = record.iter();
    if header.next().is_some_and(|kind| *kind != HANDSHAKE) || header.next().is_some_and(|major| *major != 3) {
        return Err(HelloError::NotHandshake);
    }
    let (Some(_), Some(high), Some(low)) = (header.next(), header.next(), header.next()) else { return Ok(None) };
    match usize::from(u16::from_be_bytes([*high, *low])) {
        0 => Err(HelloError::RecordLength),
        length if length > MAX_PLAINTEXT => Err(HelloError::RecordLength),
        length => Ok(Some(length)),
    }
}

#[cfg(test)]
mod tests;
