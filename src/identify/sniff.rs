//! Tells TLS, HTTP and anything else apart by a stream's first bytes. Reads nothing but the kind;
//! whether the bytes are sound is for the parser of that kind.

/// The first line of a stream that has reached this length without an end is handed to the HTTP
/// parser, which refuses it.
pub const MAX_SNIFF: usize = super::http::MAX_HEAD;

/// What a stream inside a tunnel, or on a transparent listener, seems to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    /// TLS records: parse a [`ClientHello`](super::hello::ClientHello).
    Tls,
    /// An HTTP request line, of any version: parse a [`RequestHead`](super::http::RequestHead).
    Http,
    /// Neither.
    Raw,
    /// It could still become TLS or HTTP.
    NeedMore,
}

/// Sniffs the front of a stream. A longer buffer never changes a verdict other than
/// [`Sniff::NeedMore`], and at [`MAX_SNIFF`] bytes there is always one.
///
/// Deliberately wider than the parsers: whatever a lenient server would take for TLS or for an
/// HTTP request must reach the strict parser and be refused there, not pass as raw bytes. So a
/// record of any type counts as TLS (servers skip a leading warning alert), and white space of any
/// kind and amount, in front too, may stand in a request line; bytes that a server may swallow
/// before it reads the method are no exception.
pub fn sniff(buf: &[u8]) -> Sniff {
    let buf = buf.get(..MAX_SNIFF).unwrap_or(buf);
    match buf {
        [0x14..=0x18] => return Sniff::NeedMore,
        [0x14..=0x18, 3, ..] => return Sniff::Tls,
        _ => {}
    }
    let line = buf.trim_ascii_start();
    let Some(gap) = line.iter().position(|byte| !super::http::is_token(*byte)) else {
        return unfinished(buf);
    };
    let (method, rest) = line.split_at(gap);
    if method.is_empty() || !rest.first().is_some_and(is_blank) {
        return Sniff::Raw;
    }
    sniff_line(buf, rest)
}

/// `rest` follows the method. A line feed or a NUL before the version ends all hope of one: no
/// server reads on past either.
fn sniff_line(buf: &[u8], rest: &[u8]) -> Sniff {
    let end = rest.iter().position(|byte| matches!(byte, b'\n' | 0));
    let line = rest.get(..end.unwrap_or(rest.len())).unwrap_or(rest);
    let version = line
        .windows(6)
        .any(|six| six.first().is_some_and(is_blank) && six.get(1..).is_some_and(|v| v.eq_ignore_ascii_case(b"HTTP/")));
    match (version, end) {
        (true, _) => Sniff::Http,
        (false, Some(_)) => Sniff::Raw,
        (false, None) => unfinished(buf),
    }
}

fn unfinished(buf: &[u8]) -> Sniff {
    if buf.len() >= MAX_SNIFF { Sniff::Http } else { Sniff::NeedMore }
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}
