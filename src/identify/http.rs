//! HTTP/1.x heads, read so that no other parser can read them differently, and written anew.
//!
//! A head that any two implementations could take in two ways (RFC 9112 §11.2) is an error, even
//! where the RFC would let a server repair it. What goes on to the other side is never the bytes
//! that came in but a head written from what was understood. Bodies are framed by
//! [`chunked`](super::chunked); reading, deadlines and the relay are for others.

mod fields;
mod request;
mod response;

pub use super::Parsed;
pub use fields::Field;
pub use request::{HostPort, RequestHead, RequestTarget};
pub use response::{Downstream, ResponseBody, ResponseHead, Sent};

pub(crate) use fields::is_token;
pub(super) use fields::{field_line, is_field_value};

use crate::reason::Reason;

/// The longest request head, in bytes, blank line included.
pub const MAX_HEAD: usize = 16 * 1024;
/// The most fields in a request head.
pub const MAX_FIELDS: usize = 100;
/// The longest response head, in bytes, blank line included.
pub const MAX_RESPONSE_HEAD: usize = 64 * 1024;
/// The most fields in a response head.
pub const MAX_RESPONSE_FIELDS: usize = 200;

/// The version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// The framing of a request body (RFC 9112 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// No body, and no field that speaks of one.
    None,
    /// Content-Length, in bytes.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// A protocol that a connection may be upgraded to. Every other is stripped from requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455.
    WebSocket,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// More bytes or fields than a head may have.
    #[error("the head is too large")]
    TooLarge,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    /// The preface of HTTP/2 (RFC 9113 §3.4).
    #[error("HTTP/2 is spoken in clear")]
    Preface,
    /// A method that is never forwarded.
    #[error("the method is not allowed")]
    Method,
    /// The names in the head differ from one another.
    #[error("request target and Host differ")]
    NameMismatch,
    /// It can be read in more ways than one, or in none.
    #[error("{0}")]
    Malformed(#[from] Flaw),
}

/// What makes a head malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line that does not end in CR LF, or a CR or LF inside one.
    #[error("a line does not end in CR LF")]
    LineEnd,
    /// An empty line where the first line should stand.
    #[error("an empty line stands in front of the head")]
    EmptyLine,
    /// The first line does not have its three parts.
    #[error("the first line is malformed")]
    FirstLine,
    /// The method is not an upper-case token of at most 32 bytes.
    #[error("the method is malformed")]
    MethodToken,
    /// The request target has none of the four forms, or one that its method does not take.
    #[error("the request target is malformed")]
    Target,
    /// A line that starts with white space (obs-fold).
    #[error("a field line starts with white space")]
    Fold,
    /// A field without colon, or whose name is no token.
    #[error("a field name is malformed")]
    FieldName,
    /// A control character in a field value.
    #[error("a field value has a control character")]
    FieldValue,
    /// Content-Length or Transfer-Encoding that could be read in two ways.
    #[error("the message framing is ambiguous")]
    Framing,
    /// Host missing, repeated, or not `host[:port]`.
    #[error("the Host field is missing, repeated or malformed")]
    Host,
    /// Connection is no token list, or names a field that must not be dropped.
    #[error("the Connection field is malformed")]
    Connection,
    /// An Expect other than `100-continue`.
    #[error("the Expect field is malformed")]
    Expect,
    /// A WebSocket upgrade that is not one.
    #[error("the Upgrade field is malformed")]
    Upgrade,
}

impl HeadError {
    /// The reason to count and log.
    pub const fn reason(self) -> Reason {
        match self {
            HeadError::NameMismatch => Reason::NameMismatch,
            HeadError::Preface => Reason::H2c,
            HeadError::TooLarge | HeadError::Version | HeadError::Method | HeadError::Malformed(_) => Reason::Malformed,
        }
    }

    /// The HTTP status of the answer to the guest (RFC 9110 §15, RFC 6585 §5).
    pub const fn status(self) -> u16 {
        match self {
            HeadError::TooLarge => 431,
            HeadError::Version | HeadError::Preface => 505,
            HeadError::Method => 405,
            HeadError::NameMismatch | HeadError::Malformed(_) => 400,
        }
    }
}

impl Version {
    /// As it stands in a first line.
    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Version::Http10 => b"HTTP/1.0",
            Version::Http11 => b"HTTP/1.1",
        }
    }

    /// Reads the version of a first line; upper case alone (RFC 9112 §2.3).
    fn parse(text: &[u8]) -> Result<Version, HeadError> {
        match text {
            b"HTTP/1.1" => Ok(Version::Http11),
            b"HTTP/1.0" => Ok(Version::Http10),
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                Err(HeadError::Version)
            }
            _ => Err(Flaw::FirstLine.into()),
        }
    }
}

#[cfg(test)]
mod tests;
