//! The second ClientHello. A server may answer the first with a HelloRetryRequest (RFC 8446 §4.1.4), and then
//! answers the second, whatever name that has. So the client's handshake records after its first hello are held
//! until the server has shown whether it wants another.

use super::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, HANDSHAKE_HEADER, HelloError, RECORD_HEADER};

/// The most client bytes that a caller has to hold while [`ServerFlight`] has no answer: one record of maximum length.
pub const HELD: usize = RECORD_HEADER + MAX_CIPHERTEXT;

/// The longest payload of a TLSCiphertext (RFC 5246 §6.2.3; RFC 8446 §5.2 allows less).
const MAX_CIPHERTEXT: usize = 16 * 1024 + 2048;
/// Alerts and ChangeCipherSpecs that are skipped before the server's first message, in bytes.
const MAX_SKIPPED: usize = 1024;
const SERVER_HELLO: u8 = 2;
/// Header, version and random of a ServerHello.
const SHOWN: usize = HANDSHAKE_HEADER + 2 + 32;
/// SHA-256 of "HelloRetryRequest": the random that makes a ServerHello one (RFC 8446 §4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, //
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// What a server's first message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flight {
    /// Not enough bytes yet.
    NeedMore,
    /// A HelloRetryRequest: the next handshake record of the client must be a ClientHello, to be
    /// judged like the first.
    HelloRetryRequest,
    /// Anything else: there will be no second hello.
    Other,
}

/// Watches a server's first bytes for a HelloRetryRequest.
#[derive(Debug)]
pub struct ServerFlight {
    header: [u8; RECORD_HEADER],
    have_header: usize,
    /// Bytes left in the current record.
    left: usize,
    message: [u8; SHOWN],
    have_message: usize,
    skipped: usize,
    answer: Flight,
}

impl Default for ServerFlight {
    fn default() -> ServerFlight {
        ServerFlight::new()
    }
}

impl ServerFlight {
    /// A watcher at the start of the server's stream.
    pub const fn new() -> ServerFlight {
        ServerFlight {
            header: [0; RECORD_HEADER],
            have_header: 0,
            left: 0,
            message: [0; SHOWN],
            have_message: 0,
            skipped: 0,
            answer: Flight::NeedMore,
        }
    }

    /// Reads the next bytes of the server's stream, which all go to the client whatever the answer is. An answer
    /// other than [`Flight::NeedMore`] is final.
    ///
    /// A server that sends a kilobyte of alerts first counts as one that asked for another hello: the answer that
    /// lets less through.
    pub fn push(&mut self, bytes: &[u8]) -> Flight {
        for byte in bytes {
            if self.answer != Flight::NeedMore {
                break;
            }
            self.answer = self.take(*byte);
        }
        self.answer
    }

    fn take(&mut self, byte: u8) -> Flight {
        if self.left == 0 {
            return self.take_header(byte);
        }
        self.left -= 1;
        if self.left == 0 {
            self.have_header = 0;
        }
        if self.header.first() != Some(&HANDSHAKE) {
            return self.skip();
        }
        if let Some(slot) = self.message.get_mut(self.have_message) {
            *slot = byte;
            self.have_message += 1;
        }
        if self.message.first() != Some(&SERVER_HELLO) {
            return Flight::Other;
        }
        match self.message.last_chunk::<32>() {
            _ if self.have_message < SHOWN => Flight::NeedMore,
            Some(random) if *random == RETRY_RANDOM => Flight::HelloRetryRequest,
            _ => Flight::Other,
        }
    }

    fn take_header(&mut self, byte: u8) -> Flight {
        if let Some(slot) = self.header.get_mut(self.have_header) {
            *slot = byte;
            self.have_header += 1;
        }
        let sound = match self.have_header {
            1 => matches!(byte, CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE),
            2 => byte == 3,
            _ => true,
        };
        if !sound {
            return Flight::Other;
        }
        if self.have_header == RECORD_HEADER {
            let [_, _, _, high, low] = self.header;
            self.left = usize::from(u16::from_be_bytes([high, low]));
            if self.left == 0 {
                self.have_header = 0;
                return self.skip();
            }
        }
        Flight::NeedMore
    }

    /// Limits what may come before the first message.
    fn skip(&mut self) -> Flight {
        self.skipped += 1;
        if self.skipped > MAX_SKIPPED { Flight::HelloRetryRequest } else { Flight::NeedMore }
    }
}

/// How far the client's bytes may be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwardable {
    /// All of them.
    All,
    /// Only this many: a handshake record begins there. Hold the rest until [`ServerFlight`] has an answer.
    UpTo(usize),
}

/// Reads the client's records after its first hello: ChangeCipherSpec, early data and alerts are sent on, a
/// handshake record is held.
#[derive(Debug, Default)]
pub struct ClientRecords {
    header: [u8; RECORD_HEADER],
    have_header: usize,
    left: usize,
    held: bool,
}

impl ClientRecords {
    /// A reader at the first record after a hello.
    pub fn new() -> ClientRecords {
        ClientRecords::default()
    }

    /// Reads the next bytes of the client's stream. After [`Forwardable::UpTo`] every later byte is held too; start
    /// a new reader after the second hello, if there is one.
    ///
    /// # Errors
    /// [`HelloError::NotHandshake`] or [`HelloError::RecordLength`] for bytes that are not a TLS record: server and
    /// reader could disagree on where the next one begins.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Forwardable, HelloError> {
        if self.held {
            return Ok(Forwardable::UpTo(0));
        }
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.left > 0 {
                let step = self.left.min(bytes.len() - at);
                self.left -= step;
                at += step;
                continue;
            }
            if self.have_header == 0 && *byte == HANDSHAKE {
                self.held = true;
                return Ok(Forwardable::UpTo(at));
            }
            self.take_header(*byte)?;
            at += 1;
        }
        Ok(Forwardable::All)
    }

    fn take_header(&mut self, byte: u8) -> Result<(), HelloError> {
        if let Some(slot) = self.header.get_mut(self.have_header) {
            *slot = byte;
            self.have_header += 1;
        }
        match self.have_header {
            1 if !matches!(byte, CHANGE_CIPHER_SPEC | ALERT | APPLICATION_DATA) => Err(HelloError::NotHandshake),
            2 if byte != 3 => Err(HelloError::NotHandshake),
            RECORD_HEADER => {
                let [_, _, _, high, low] = self.header;
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.have_header = 0;
                if self.left > MAX_CIPHERTEXT { Err(HelloError::RecordLength) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }
}
