//! Response heads: read from upstreams, which may be hostile too, and written for guests.

use super::fields::{self, Facts, Field, check_new_lines, field_lines, find_end, is_field_value, split_line};
use super::{Flaw, HeadError, MAX_RESPONSE_FIELDS, MAX_RESPONSE_HEAD, Parsed, Upgrade, Version};

/// The framing of a response body (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// No body, whatever the fields say.
    None,
    /// Content-Length, in bytes.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// Until the sender closes.
    UntilClose,
}

/// The guest that a response is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downstream {
    /// The version of the guest's request.
    pub version: Version,
    /// Whether to keep the connection to the guest if the framing allows it.
    pub keep_alive: bool,
}

/// What a written response head promises the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// How the body must be framed towards the guest. `UntilClose` where the upstream's is chunked means: without
    /// the chunk framing and without trailers.
    pub body: ResponseBody,
    /// Whether the connection to the guest is kept after the body.
    pub keep_alive: bool,
}

/// A response head whose framing has one reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead<'a> {
    /// The upstream's version.
    pub version: Version,
    /// 100 to 599. Below 200 another head follows, except after 101.
    pub status: u16,
    /// The reason phrase, possibly empty.
    pub phrase: &'a [u8],
    /// All fields in their order, including those that are not forwarded.
    pub fields: Vec<Field<'a>>,
    /// The protocol that a 101 switches to. `None` on a 101 means: to something that was not requested, so close.
    pub upgrade: Option<Upgrade>,
    content_length: Option<u64>,
    chunked: bool,
    persists: bool,
}

impl<'a> ResponseHead<'a> {
    /// Reads the head at the front of `buf`, at most [`MAX_RESPONSE_HEAD`] bytes and
    /// [`MAX_RESPONSE_FIELDS`] fields. `scanned` is as for
    /// [`RequestHead::parse`](super::RequestHead::parse).
    ///
    /// # Errors
    /// [`HeadError`]; the upstream's fault, so 502 to the guest.
    pub fn parse(buf: &'a [u8], scanned: usize) -> Result<Parsed<ResponseHead<'a>>, HeadError> {
        let window = buf.get(..MAX_RESPONSE_HEAD).unwrap_or(buf);
        if let Some(end) = find_end(window, 0, scanned) {
            let head = window.get(..end).unwrap_or_default();
            return Ok(Parsed::Complete { head: ResponseHead::read(head)?, len: end });
        }
        check_new_lines(window, 0, scanned, |line| status_line(line).map(drop))?;
        if buf.len() >= MAX_RESPONSE_HEAD { Err(HeadError::TooLarge) } else { Ok(Parsed::Partial) }
    }

    fn read(head: &'a [u8]) -> Result<ResponseHead<'a>, HeadError> {
        let (line, rest) = split_line(head)?;
        let (version, status, phrase) = status_line(line)?;
        let fields = field_lines(rest, MAX_RESPONSE_FIELDS)?;
        let facts = Facts::gather(&fields, version)?;
        let (content_length, chunked) = (facts.content_length, facts.chunked);
        // These have no body (RFC 9110 §8.6), but a server that announces one may send one.
        if (status < 200 || status == 204) && (chunked || content_length.is_some_and(|length| length > 0)) {
            return Err(Flaw::Framing.into());
        }
        let upgrade = if status == 101 { facts.upgrade().unwrap_or(None) } else { None };
        let persists = facts.persists(version);
        Ok(ResponseHead { version, status, phrase, fields, upgrade, content_length, chunked, persists })
    }

    /// A 1xx other than 101: another head follows, and an HTTP/1.0 guest must not get this one (RFC 9110 §15.2).
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// How the body is framed if this answers a request with `method`.
    pub fn body_for(&self, method: &[u8]) -> ResponseBody {
        let tunnel = method == b"CONNECT" && (200..300).contains(&self.status);
        if self.status < 200 || matches!(self.status, 204 | 304) || method == b"HEAD" || tunnel {
            ResponseBody::None
        } else if self.chunked {
            ResponseBody::Chunked
        } else {
            self.content_length.map_or(ResponseBody::UntilClose, ResponseBody::Length)
        }
    }

    /// May the connection to the upstream carry another request after the body of an answer to
    /// `method`?
    pub fn keep_alive(&self, method: &[u8]) -> bool {
        self.persists && self.body_for(method) != ResponseBody::UntilClose
    }

    /// Writes the head for the guest: our version and framing, and all end-to-end fields in their original order and
    /// case. It leaves out the same fields as [`RequestHead::write_request`](super::RequestHead::write_request), so
    /// that no upstream can pose as the proxy (`Proxy-*`).
    ///
    /// `body` is the result of [`body_for`](Self::body_for). An HTTP/1.0 guest gets a chunked body until close.
    pub fn write_response(&self, body: ResponseBody, to: Downstream, out: &mut Vec<u8>) -> Sent {
        let old = to.version == Version::Http10;
        let body = if old && body == ResponseBody::Chunked { ResponseBody::UntilClose } else { body };
        let switches = self.upgrade.is_some();
        let keep_alive = (to.keep_alive || self.is_interim()) && body != ResponseBody::UntilClose && !switches;
        out.extend_from_slice(Version::Http11.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.status.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.phrase);
        out.extend_from_slice(b"\r\n");
        fields::write_end_to_end(&self.fields, body == ResponseBody::Chunked, out);
        match (body, self.content_length) {
            (ResponseBody::Length(length), _) => write_length(length, out),
            // The length that an answer to GET would have had; no body follows after HEAD or in a 304.
            (ResponseBody::None, Some(length)) if self.status >= 200 && self.status != 204 => write_length(length, out),
            (ResponseBody::Chunked, _) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            (ResponseBody::None | ResponseBody::UntilClose, _) => {}
        }
        match (switches, keep_alive, old) {
            (true, _, _) => out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
            (false, false, _) => out.extend_from_slice(b"Connection: close\r\n"),
            (false, true, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            (false, true, false) => {}
        }
        out.extend_from_slice(b"\r\n");
        Sent { body, keep_alive }
    }
}

fn write_length(length: u64, out: &mut Vec<u8>) {
    fields::write_field(b"Content-Length", length.to_string().as_bytes(), out);
}

/// `HTTP/1.x SP 3DIGIT [SP phrase]`. Many servers omit the last space, and nothing is ambiguous about it.
fn status_line(line: &[u8]) -> Result<(Version, u16, &[u8]), HeadError> {
    if line.is_empty() {
        return Err(Flaw::EmptyLine.into());
    }
    // Checked first: a CR in the line is seen before the line's end if the line arrives in pieces.
    if !is_field_value(line) {
        return Err(Flaw::FirstLine.into());
    }
    let (version, rest) = line.split_at_checked(8).ok_or(Flaw::FirstLine)?;
    let version = Version::parse(version)?;
    let (status, phrase) = match rest {
        [b' ', a, b, c] => ([a, b, c], &[][..]),
        [b' ', a, b, c, b' ', phrase @ ..] => ([a, b, c], phrase),
        _ => return Err(Flaw::FirstLine.into()),
    };
    if !status.iter().all(|digit| digit.is_ascii_digit()) {
        return Err(Flaw::FirstLine.into());
    }
    let status = status.iter().fold(0u16, |sum, digit| sum * 10 + u16::from(**digit - b'0'));
    if !(100..600).contains(&status) {
        return Err(Flaw::FirstLine.into());
    }
    Ok((version, status, phrase))
}
