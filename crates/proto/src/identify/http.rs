//! HTTP/1.x heads, read so that no other parser can read them differently, and written anew.
//!
//! A head that any two implementations could read in two ways (RFC 9112 §11.2) is an error, even where the RFC would
//! let a server repair it. The bytes that were received are never sent on. Instead a head is written from what was
//! understood. [`chunked`](super::chunked) frames the bodies; other modules do the reading, the deadlines and the
//! relay.

mod fields;
mod request;
mod response;

pub use super::Parsed;
pub use fields::Field;
pub use request::{HostPort, RequestHead, RequestTarget};
pub use response::{Downstream, ResponseBody, ResponseHead, Sent};

pub(crate) use fields::is_token;
pub(super) use fields::{field_line, is_field_value};

use crate::reason::{Cause, Reason, Why};
use std::fmt;

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
    /// No body, and no field that announces one.
    None,
    /// Content-Length, in bytes.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// A protocol that a connection may be upgraded to. All others are stripped from requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455.
    WebSocket,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// More bytes or fields than a head may have.
    TooLarge,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// The preface of HTTP/2 (RFC 9113 §3.4).
    Preface,
    /// A method that is never forwarded.
    Method,
    /// The names in the head differ from one another.
    NameMismatch,
    /// It can be read in more than one way, or in none.
    Malformed(Flaw),
}

impl HeadError {
    /// What is wrong, in a fixed phrase for log and answers.
    pub const fn phrase(self) -> &'static str {
        match self {
            HeadError::TooLarge => "the head is too large",
            HeadError::Version => "the HTTP version is not 1.0 or 1.1",
            HeadError::Preface => "HTTP/2 is spoken in clear",
            HeadError::Method => "the method is not allowed",
            HeadError::NameMismatch => "request target and Host differ",
            HeadError::Malformed(flaw) => flaw.phrase(),
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}

impl std::error::Error for HeadError {}

impl From<Flaw> for HeadError {
    fn from(flaw: Flaw) -> HeadError {
        HeadError::Malformed(flaw)
    }
}

/// What makes a head malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A line that does not end in CR LF, or a CR or LF inside one.
    LineEnd,
    /// An empty line in place of the first line.
    EmptyLine,
    /// The first line does not have its three parts.
    FirstLine,
    /// The method is not an upper-case token of at most 32 bytes.
    MethodToken,
    /// The request target has none of the four forms, or one that its method does not allow.
    Target,
    /// A line that starts with white space (obs-fold).
    Fold,
    /// A field without colon, or whose name is not a token.
    FieldName,
    /// A control character in a field value.
    FieldValue,
    /// Content-Length or Transfer-Encoding that could be read in two ways.
    Framing,
    /// Host missing, repeated, or not `host[:port]`.
    Host,
    /// Connection is not a token list, or names a field that must not be dropped.
    Connection,
    /// An Expect other than `100-continue`.
    Expect,
    /// An invalid WebSocket upgrade.
    Upgrade,
}

impl Flaw {
    /// What is wrong, in a fixed phrase for log and answers.
    pub const fn phrase(self) -> &'static str {
        match self {
            Flaw::LineEnd => "a line does not end in CR LF",
            Flaw::EmptyLine => "an empty line stands in front of the head",
            Flaw::FirstLine => "the first line is malformed",
            Flaw::MethodToken => "the method is malformed",
            Flaw::Target => "the request target is malformed",
            Flaw::Fold => "a field line starts with white space",
            Flaw::FieldName => "a field name is malformed",
            Flaw::FieldValue => "a field value has a control character",
            Flaw::Framing => "the message framing is ambiguous",
            Flaw::Host => "the Host field is missing, repeated or malformed",
            Flaw::Connection => "the Connection field is malformed",
            Flaw::Expect => "the Expect field is malformed",
            Flaw::Upgrade => "the Upgrade field is malformed",
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}

impl std::error::Error for Flaw {}

impl HeadError {
    /// The reason and the cause to count and log.
    pub const fn why(self) -> Why {
        Why::because(self.reason(), Cause::of(self.phrase()))
    }

    /// The reason to count.
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
    /// The version as written in a first line.
    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Version::Http10 => b"HTTP/1.0",
            Version::Http11 => b"HTTP/1.1",
        }
    }

    /// Reads the version of a first line; only upper case is valid (RFC 9112 §2.3).
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
