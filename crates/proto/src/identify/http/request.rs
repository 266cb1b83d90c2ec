//! Request heads: read from guests, written for upstreams.

use super::fields::{self, Facts, Field, check_new_lines, field_lines, find_end, is_token, split_line};
use super::{Body, Flaw, HeadError, MAX_FIELDS, MAX_HEAD, Parsed, Upgrade, Version};
use crate::target::{Host, Target, TargetError};

/// The longest method, in bytes.
const MAX_METHOD: usize = 32;
/// The port of an `http` URI and of a Host field without port.
const HTTP_PORT: u16 = 80;

/// A Host field: a host, and a port if one is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port as written; `None` stands for the default of whatever carries the request.
    pub port: Option<u16>,
}

/// A request target (RFC 9112 §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestTarget<'a> {
    /// authority-form, only with CONNECT. The port is always written.
    Authority(Target),
    /// absolute-form with the scheme `http`, or `ws`, which is the same in clear (RFC 6455 §3).
    Absolute {
        /// Host and port of the URI, 80 where none is written.
        target: Target,
        /// What follows the authority: empty, or from its `/` or `?` on.
        path_and_query: &'a [u8],
    },
    /// origin-form: path and query, from the `/` on.
    Origin(&'a [u8]),
    /// `*`, only with OPTIONS.
    Asterisk,
}

/// A request head in which every name agrees and whose framing has one reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// An upper-case token of 1 to 32 bytes; never TRACE, TRACK, PURGE or PRI.
    pub method: &'a [u8],
    /// The request target.
    pub target: RequestTarget<'a>,
    /// The guest's version.
    pub version: Version,
    /// The Host field; always present in HTTP/1.1, and equal to the authority of the target if that has one.
    pub host: Option<HostPort>,
    /// All fields in their order, including those that are not forwarded.
    pub fields: Vec<Field<'a>>,
    /// How the body is framed.
    pub body: Body,
    /// The guest may send another request after this one.
    pub keep_alive: bool,
    /// The guest waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// What the guest wants the connection to become.
    pub upgrade: Option<Upgrade>,
}

impl HostPort {
    /// Reads the value of a Host field: `host` or `host:port`.
    ///
    /// # Errors
    /// For anything that is not a host, including userinfo, lists, paths and empty ports.
    pub fn parse(value: &[u8]) -> Result<HostPort, TargetError> {
        match Target::parse(value, None) {
            Ok(Target { host, port }) => Ok(HostPort { host, port: Some(port) }),
            Err(TargetError::NoPort) => Ok(HostPort { host: Host::parse(value)?, port: None }),
            Err(error) => Err(error),
        }
    }
}

impl<'a> RequestHead<'a> {
    /// Reads the head at the front of `buf`, at most [`MAX_HEAD`] bytes and [`MAX_FIELDS`] fields. One CR LF in
    /// front, which some clients send between requests, is read with it.
    ///
    /// After [`Parsed::Partial`], call again with more bytes after the same ones and with `scanned` = the length of
    /// the buffer before; 0 at first. The work over all calls is linear in the bytes, and the outcome is the same,
    /// however they are split. A flaw is reported as soon as its line is complete.
    ///
    /// # Errors
    /// [`HeadError`]; answer with its status and close.
    pub fn parse(buf: &'a [u8], scanned: usize) -> Result<Parsed<RequestHead<'a>>, HeadError> {
        let window = buf.get(..MAX_HEAD).unwrap_or(buf);
        let start = if window.starts_with(b"\r\n") { 2 } else { 0 };
        if let Some(end) = find_end(window, start, scanned) {
            let head = window.get(start..end).unwrap_or_default();
            return Ok(Parsed::Complete { head: RequestHead::read(head)?, len: end });
        }
        check_new_lines(window, start, scanned, |line| RequestLine::read(line).map(drop))?;
        if buf.len() >= MAX_HEAD { Err(HeadError::TooLarge) } else { Ok(Parsed::Partial) }
    }

    /// `head` runs from the first line through the blank one.
    fn read(head: &'a [u8]) -> Result<RequestHead<'a>, HeadError> {
        let (line, rest) = split_line(head)?;
        let RequestLine { method, target, version } = RequestLine::read(line)?;
        let fields = field_lines(rest, MAX_FIELDS)?;
        let facts = Facts::gather(&fields, version)?;
        let host = match facts.host {
            Some(value) => Some(HostPort::parse(value).map_err(|_| Flaw::Host)?),
            None if version == Version::Http11 => return Err(Flaw::Host.into()),
            None => None,
        };
        agree(&target, host.as_ref())?;
        let body = match facts.content_length {
            Some(length) => Body::Length(length),
            None if facts.chunked => Body::Chunked,
            None => Body::None,
        };
        // Some clients state explicitly that there is no body: Java's on a WebSocket, WinINET on a CONNECT.
        let bare = matches!(body, Body::None | Body::Length(0));
        if method == b"CONNECT" && !bare {
            return Err(Flaw::Framing.into());
        }
        let upgrade = facts.upgrade()?;
        if upgrade.is_some() && (method != b"GET" || version != Version::Http11 || !bare) {
            return Err(Flaw::Upgrade.into());
        }
        // Without a body, and from an HTTP/1.0 client, the expectation means nothing (RFC 9110 §10.1.1).
        let expect_continue = facts.expect_continue && version == Version::Http11 && body != Body::None;
        let keep_alive = facts.persists(version);
        Ok(RequestHead { method, target, version, host, fields, body, keep_alive, expect_continue, upgrade })
    }

    /// The destination of the request: the authority of its target, else its Host field, with `port` if that has
    /// none. `None` for an HTTP/1.0 request without either.
    pub fn destination(&self, port: u16) -> Option<Target> {
        match &self.target {
            RequestTarget::Authority(target) | RequestTarget::Absolute { target, .. } => Some(target.clone()),
            RequestTarget::Origin(_) | RequestTarget::Asterisk => {
                let host = self.host.as_ref()?;
                Some(Target { host: host.host.clone(), port: host.port.unwrap_or(port) })
            }
        }
    }

    /// Writes the head for the upstream: origin-form, our own Host (without port 80), our own framing, and all other
    /// fields in their original order and case.
    ///
    /// It leaves out Connection and the fields that it names, Keep-Alive, TE, HTTP2-Settings, every Upgrade but
    /// WebSocket and all of `Proxy-*` (RFC 9110 §7.6.1). It adds neither X-Forwarded-For nor Via: an origin need not
    /// know addresses and software on the inside. An HTTP/1.0 request without Host is sent as HTTP/1.0 without one;
    /// every other as HTTP/1.1. A CONNECT is not forwarded: its head is written as `CONNECT host:port`, for a proxy
    /// further up.
    pub fn write_request(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method);
        out.push(b' ');
        let host = self.write_target(out);
        out.push(b' ');
        let version = if host.is_some() { Version::Http11 } else { Version::Http10 };
        out.extend_from_slice(version.as_bytes());
        out.extend_from_slice(b"\r\n");
        if let Some(host) = host {
            fields::write_field(b"Host", host.as_bytes(), out);
        }
        fields::write_end_to_end(&self.fields, self.body == Body::Chunked, out);
        if self.expect_continue {
            out.extend_from_slice(b"Expect: 100-continue\r\n");
        }
        match self.body {
            Body::None => {}
            Body::Length(length) => fields::write_field(b"Content-Length", length.to_string().as_bytes(), out),
            Body::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        if self.upgrade == Some(Upgrade::WebSocket) {
            out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Writes the request target and returns the value of Host.
    fn write_target(&self, out: &mut Vec<u8>) -> Option<String> {
        match &self.target {
            RequestTarget::Authority(target) => {
                let authority = target.to_string();
                out.extend_from_slice(authority.as_bytes());
                Some(authority)
            }
            RequestTarget::Absolute { target, path_and_query } => {
                // OPTIONS on an authority as a whole is `*` at the origin (RFC 9112 §3.2.4).
                match path_and_query.first() {
                    None if self.method == b"OPTIONS" => out.push(b'*'),
                    Some(b'/') => {}
                    None | Some(_) => out.push(b'/'),
                }
                out.extend_from_slice(path_and_query);
                Some(host_value(&target.host, Some(target.port)))
            }
            RequestTarget::Origin(path) => {
                out.extend_from_slice(path);
                self.host.as_ref().map(|host| host_value(&host.host, host.port))
            }
            RequestTarget::Asterisk => {
                out.push(b'*');
                self.host.as_ref().map(|host| host_value(&host.host, host.port))
            }
        }
    }
}

fn host_value(host: &Host, port: Option<u16>) -> String {
    // Without the formatting machinery, because this runs for every request.
    let mut value = host.name().map_or_else(|| host.to_string(), |name| name.as_str().to_owned());
    if let Some(port) = port.filter(|port| *port != HTTP_PORT) {
        value.push(':');
        value.push_str(&port.to_string());
    }
    value
}

/// Checks that the authority of the target and the Host field are the same. RFC 9112 §3.2.2 lets a proxy overwrite
/// Host, but a reader of both must not have to know that.
fn agree(target: &RequestTarget<'_>, host: Option<&HostPort>) -> Result<(), HeadError> {
    let Some(host) = host else { return Ok(()) };
    let (asked, port) = match target {
        RequestTarget::Authority(target) => (target, host.port.unwrap_or(target.port)),
        RequestTarget::Absolute { target, .. } => (target, host.port.unwrap_or(HTTP_PORT)),
        RequestTarget::Origin(_) | RequestTarget::Asterisk => return Ok(()),
    };
    if asked.host == host.host && asked.port == port { Ok(()) } else { Err(HeadError::NameMismatch) }
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: RequestTarget<'a>,
    version: Version,
}

impl<'a> RequestLine<'a> {
    /// Reads three parts with one space between them and only visible ASCII in them.
    fn read(line: &'a [u8]) -> Result<RequestLine<'a>, HeadError> {
        if line.is_empty() {
            return Err(Flaw::EmptyLine.into());
        }
        if !line.iter().fold(true, |sound, byte| sound & matches!(byte, 0x20..=0x7e)) {
            return Err(Flaw::FirstLine.into());
        }
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Flaw::FirstLine.into());
        };
        if line == b"PRI * HTTP/2.0" {
            return Err(HeadError::Preface);
        }
        // The version comes first: in another version, the rest may mean something else.
        let version = Version::parse(version)?;
        check_method(method)?;
        Ok(RequestLine { method, target: read_target(method, target)?, version })
    }
}

/// Lower case is refused because a server that ignores case would frame the answer to `head` differently than we do.
/// The methods refused by name make servers echo (TRACE, TRACK), drop (PURGE) or misread (PRI, the HTTP/2 preface)
/// what they hold.
fn check_method(method: &[u8]) -> Result<(), HeadError> {
    if method.is_empty()
        || method.len() > MAX_METHOD
        || !method.iter().all(|byte| is_token(*byte) && !byte.is_ascii_lowercase())
    {
        return Err(Flaw::MethodToken.into());
    }
    match method {
        b"TRACE" | b"TRACK" | b"PURGE" | b"PRI" => Err(HeadError::Method),
        _ => Ok(()),
    }
}

/// `target` is visible ASCII without spaces.
fn read_target<'a>(method: &[u8], target: &'a [u8]) -> Result<RequestTarget<'a>, Flaw> {
    if target.contains(&b'#') {
        return Err(Flaw::Target);
    }
    if method == b"CONNECT" {
        return Target::parse(target, None).map(RequestTarget::Authority).map_err(|_| Flaw::Target);
    }
    match target {
        b"*" if method == b"OPTIONS" => return Ok(RequestTarget::Asterisk),
        [b'/', ..] => return Ok(RequestTarget::Origin(target)),
        _ => {}
    }
    let rest = ["http://", "ws://"].into_iter().find_map(|scheme| {
        let (written, rest) = target.split_at_checked(scheme.len())?;
        written.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    });
    let rest = rest.ok_or(Flaw::Target)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path_and_query) = rest.split_at(end);
    let target = Target::parse(authority, Some(HTTP_PORT)).map_err(|_| Flaw::Target)?;
    Ok(RequestTarget::Absolute { target, path_and_query })
}
