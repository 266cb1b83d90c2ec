//! What requests and responses share: where a head ends, its field lines, and what the fields say
//! about framing, connection and upgrade.

use super::{Flaw, HeadError, Upgrade, Version};
use memchr::{memchr, memrchr};

/// The most tokens that the Connection fields of a head may hold together. Every field of the head
/// is compared with each.
const MAX_CONNECTION_TOKENS: usize = 32;

/// A field line; the value has no white space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// A token, in its original case.
    pub name: &'a [u8],
    /// Visible characters, spaces, tabs and bytes over 0x7f.
    pub value: &'a [u8],
}

/// What the fields of a head say, as far as it matters to us.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) expect_continue: bool,
    connection_upgrade: bool,
    connection_tokens: usize,
    upgrade: Option<Offer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    WebSocket,
    /// WebSocket among others, or more than once.
    Muddled,
    Other,
}

/// The fields that we read or never forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldKind {
    Host,
    ContentLength,
    TransferEncoding,
    /// A name that CGI-like servers map onto a framing field.
    FramingLookalike,
    Connection,
    Upgrade,
    Expect,
    Trailer,
    /// For this connection only (RFC 9110 §7.6.1), or for a proxy.
    HopByHop,
    EndToEnd,
}

impl FieldKind {
    pub(super) fn of(name: &[u8]) -> FieldKind {
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        match name.len() {
            4 if is("host") => FieldKind::Host,
            14 if is("content-length") => FieldKind::ContentLength,
            17 if is("transfer-encoding") => FieldKind::TransferEncoding,
            14 if is("content_length") => FieldKind::FramingLookalike,
            17 if is("transfer_encoding") => FieldKind::FramingLookalike,
            10 if is("connection") => FieldKind::Connection,
            7 if is("upgrade") => FieldKind::Upgrade,
            7 if is("trailer") => FieldKind::Trailer,
            6 if is("expect") => FieldKind::Expect,
            2 if is("te") => FieldKind::HopByHop,
            10 if is("keep-alive") => FieldKind::HopByHop,
            14 if is("http2-settings") => FieldKind::HopByHop,
            6.. if name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"proxy-")) => FieldKind::HopByHop,
            _ => FieldKind::EndToEnd,
        }
    }
}

impl<'a> Facts<'a> {
    pub(super) fn gather(fields: &[Field<'a>], version: Version) -> Result<Facts<'a>, Flaw> {
        let mut facts = Facts::default();
        for field in fields {
            match FieldKind::of(field.name) {
                FieldKind::Host if facts.host.replace(field.value).is_some() => return Err(Flaw::Host),
                FieldKind::ContentLength => {
                    let length = content_length(field.value).ok_or(Flaw::Framing)?;
                    if facts.content_length.replace(length).is_some() {
                        return Err(Flaw::Framing);
                    }
                }
                FieldKind::TransferEncoding => {
                    if facts.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Flaw::Framing);
                    }
                    facts.chunked = true;
                }
                FieldKind::FramingLookalike => return Err(Flaw::Framing),
                FieldKind::Connection => facts.add_connection(field.value)?,
                FieldKind::Upgrade => facts.add_upgrade(field.value),
                FieldKind::Expect => {
                    if facts.expect_continue || !field.value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Flaw::Expect);
                    }
                    facts.expect_continue = true;
                }
                FieldKind::Host | FieldKind::Trailer | FieldKind::HopByHop | FieldKind::EndToEnd => {}
            }
        }
        if facts.chunked && (facts.content_length.is_some() || version == Version::Http10) {
            return Err(Flaw::Framing);
        }
        Ok(facts)
    }

    /// The upgrade that the head offers or agrees to.
    pub(super) fn upgrade(&self) -> Result<Option<Upgrade>, Flaw> {
        match self.upgrade {
            Some(Offer::WebSocket) if self.connection_upgrade => Ok(Some(Upgrade::WebSocket)),
            Some(Offer::WebSocket | Offer::Muddled) => Err(Flaw::Upgrade),
            Some(Offer::Other) | None => Ok(None),
        }
    }

    /// May another message follow on the connection (RFC 9112 §9.3)?
    pub(super) fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Reads a Connection field, which must not make anyone drop fields that frame or route the message.
    fn add_connection(&mut self, value: &[u8]) -> Result<(), Flaw> {
        for token in tokens(value) {
            self.connection_tokens += 1;
            if !token.iter().all(|byte| is_token(*byte)) || self.connection_tokens > MAX_CONNECTION_TOKENS {
                return Err(Flaw::Connection);
            }
            match FieldKind::of(token) {
                FieldKind::Host
                | FieldKind::ContentLength
                | FieldKind::TransferEncoding
                | FieldKind::FramingLookalike
                | FieldKind::Connection
                | FieldKind::Expect => return Err(Flaw::Connection),
                FieldKind::Upgrade => self.connection_upgrade = true,
                FieldKind::Trailer | FieldKind::HopByHop | FieldKind::EndToEnd => {}
            }
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
        Ok(())
    }

    fn add_upgrade(&mut self, value: &[u8]) {
        for token in tokens(value) {
            let websocket = token.eq_ignore_ascii_case(b"websocket");
            self.upgrade = Some(match self.upgrade {
                None if websocket => Offer::WebSocket,
                None | Some(Offer::Other) if !websocket => Offer::Other,
                _ => Offer::Muddled,
            });
        }
    }
}

/// Does a Connection field among `fields` name `name`?
pub(super) fn is_listed(fields: &[Field<'_>], name: &[u8]) -> bool {
    fields
        .iter()
        .filter(|field| FieldKind::of(field.name) == FieldKind::Connection)
        .any(|field| tokens(field.value).any(|token| token.eq_ignore_ascii_case(name)))
}

/// Writes the fields that are forwarded unchanged. The caller writes all those that `FieldKind` knows by name.
/// `trailer`: the Trailer field is forwarded too.
pub(super) fn write_end_to_end(fields: &[Field<'_>], trailer: bool, out: &mut Vec<u8>) {
    // Most Connection fields name no field, and then no lookup is necessary.
    let option =
        |token: &[u8]| [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|o| token.eq_ignore_ascii_case(o));
    let listing = fields
        .iter()
        .filter(|field| FieldKind::of(field.name) == FieldKind::Connection)
        .any(|field| tokens(field.value).any(|token| !option(token)));
    for field in fields {
        let passes = match FieldKind::of(field.name) {
            FieldKind::EndToEnd => !(listing && is_listed(fields, field.name)),
            FieldKind::Trailer => trailer && !(listing && is_listed(fields, field.name)),
            _ => false,
        };
        if passes {
            write_field(field.name, field.value, out);
        }
    }
}

pub(super) fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// The elements of a comma-separated list, without the empty ones (RFC 9110 §5.6.1.2).
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|token| !token.is_empty())
}

/// Plain decimal digits: no sign, no list, no leading zero, no overflow.
fn content_length(value: &[u8]) -> Option<u64> {
    let leading_zero = value.len() > 1 && value.first() == Some(&b'0');
    if value.is_empty() || leading_zero || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.iter().try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}

// --- lines --------------------------------------------------------------------------------------

/// Returns the end of the head that starts at `start`, if its blank line has arrived. `scanned` bytes were searched
/// before.
pub(super) fn find_end(buf: &[u8], start: usize, scanned: usize) -> Option<usize> {
    let mut at = start.max(scanned.saturating_sub(3));
    loop {
        let lf = at + memchr(b'\n', buf.get(at..)?)?;
        let from = lf.saturating_sub(3);
        if from >= start && buf.get(from..=lf) == Some(b"\r\n\r\n") {
            return Some(lf + 1);
        }
        at = lf + 1;
    }
}

/// Checks the lines that were completed since `scanned` in an incomplete head, so that a flaw is reported with its
/// line and not with the blank line.
pub(super) fn check_new_lines(
    buf: &[u8],
    start: usize,
    scanned: usize,
    first_line: impl Fn(&[u8]) -> Result<(), HeadError>,
) -> Result<(), HeadError> {
    let mut at = scanned.max(start);
    while let Some(lf) = buf.get(at..).and_then(|rest| memchr(b'\n', rest)).map(|found| at + found) {
        let before = buf.get(start..lf).unwrap_or_default();
        let line_start = memrchr(b'\n', before).map_or(0, |found| found + 1);
        let line = before.get(line_start..).unwrap_or_default().strip_suffix(b"\r").ok_or(Flaw::LineEnd)?;
        if line_start == 0 {
            first_line(line)?;
        } else {
            field_line(line)?;
        }
        at = lf + 1;
    }
    let tail = buf.get(at.min(scanned.saturating_sub(1)).max(start)..).unwrap_or_default();
    let tail = memrchr(b'\n', tail).map_or(tail, |lf| tail.get(lf + 1..).unwrap_or_default());
    match memchr(b'\r', tail) {
        Some(cr) if cr + 1 < tail.len() => Err(Flaw::LineEnd.into()),
        _ => Ok(()),
    }
}

/// The first line and the rest of a head.
pub(super) fn split_line(head: &[u8]) -> Result<(&[u8], &[u8]), Flaw> {
    let lf = memchr(b'\n', head).ok_or(Flaw::LineEnd)?;
    let (line, rest) = head.split_at(lf);
    Ok((line.strip_suffix(b"\r").ok_or(Flaw::LineEnd)?, rest.get(1..).unwrap_or_default()))
}

/// All field lines of a head, up to its blank line; `max` of them at most.
pub(super) fn field_lines(mut lines: &[u8], max: usize) -> Result<Vec<Field<'_>>, HeadError> {
    let mut fields = Vec::with_capacity(16);
    let mut count = 0usize;
    loop {
        let (line, rest) = split_line(lines)?;
        if line.is_empty() {
            break;
        }
        let field = field_line(line)?;
        count += 1;
        if count <= max {
            fields.push(field);
        }
        lines = rest;
    }
    if count > max { Err(HeadError::TooLarge) } else { Ok(fields) }
}

/// Reads a field line without its line end (RFC 9112 §5).
pub(in crate::identify) fn field_line(line: &[u8]) -> Result<Field<'_>, Flaw> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Flaw::Fold);
    }
    let colon = memchr(b':', line).ok_or(Flaw::FieldName)?;
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Flaw::FieldName);
    }
    let value = value.get(1..).unwrap_or_default();
    if !is_field_value(value) {
        return Err(Flaw::FieldValue);
    }
    Ok(Field { name, value: trim(value) })
}

/// Tabs, spaces, visible characters and bytes over 0x7f (RFC 9110 §5.5). Reads every byte without an early exit,
/// which the compiler turns into vector code.
pub(in crate::identify) fn is_field_value(value: &[u8]) -> bool {
    value.iter().fold(true, |sound, byte| sound & ((*byte >= 0x20 && *byte != 0x7f) | (*byte == b'\t')))
}

/// tchar of RFC 9110 §5.6.2.
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// Removes the spaces and tabs around a value; other white space cannot occur.
fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    value.get(start..end).unwrap_or_default()
}
