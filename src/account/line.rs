//! Rendering of an access log line: one JSON object in pure ASCII.
//!
//! Everything outside printable ASCII is escaped as `\uXXXX`. This covers line and paragraph separators,
//! bidirectional controls and terminal escapes at once, whoever wrote them.

use super::event::{Event, What};
use crate::endpoint::Endpoint;
use jiff::Timestamp;
use std::cell::RefCell;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// A guest's text takes at most this many bytes, escapes included.
const MAX_TEXT: usize = 253;

/// An event with what folding and the policy add to it.
pub(super) struct Line {
    pub(super) event: Event,
    /// Refusals that this line stands for; `None` means one.
    pub(super) count: Option<u64>,
    /// How the nearest rule misses.
    pub(super) advice: Option<std::sync::Arc<str>>,
    /// Whether it stands for several destinations.
    pub(super) others: bool,
}

/// A field of the access log, for the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogField {
    /// The key.
    pub name: &'static str,
    /// The JSON type, and when the field is null or absent.
    pub shape: &'static str,
    /// What the value is; Markdown.
    pub meaning: &'static str,
}

const fn field(name: &'static str, shape: &'static str, meaning: &'static str) -> LogField {
    LogField { name, shape, meaning }
}

/// All fields of a line, in the order in which they are written; a test compares the two.
pub const FIELDS: [LogField; 21] = [
    field("ts", "string", "the time, RFC 3339, UTC, with milliseconds"),
    field("flow", "string", "id; as in `outgate flows`"),
    field("listener", "string", "`proxy`, `socks`, `transparent`, `redirect` or `dns`"),
    field("guest", "string or null", "the declared name; null for a source that nobody declared"),
    field("source", "string", "the guest's address and port"),
    field(
        "original",
        "string or null",
        "the address and port that the guest connected to, where the firewall brought it here; else null",
    ),
    field(
        "destination",
        "string or null",
        "host and port asked for; of a DNS query the name alone. If it is not valid, what the guest wrote, escaped and cut at 253 bytes; `(others)` where one line stands for several",
    ),
    field("name", "string or null", "the host name of a valid destination"),
    field("port", "number or null", "the port of a valid destination; null for a DNS query"),
    field("verdict", "string", "`allowed`, `denied`, `failed` or `observed`"),
    field("reason", "string", "see [reasons](reasons.md)"),
    field(
        "cause",
        "string, or absent",
        "what was malformed, or how a server failed, in a fixed phrase; only where it is known",
    ),
    field("rule", "string or null", "`file:line` of the rule that decided"),
    field(
        "evidence",
        "string or null",
        "what named the destination: `connect` (CONNECT or SOCKS name), `host` (a request), `sni` (a ClientHello that was brought here), `dns` (a DNS query, or the name for which this guest was told the address), `address` (the address itself)",
    ),
    field("upstream", "string or null", "the server's address and port"),
    field("egress", "string or null", "our address and port towards the server"),
    field("bytes_up", "number", "bytes to the upstream"),
    field("bytes_down", "number", "bytes to the guest"),
    field(
        "duration_ms",
        "number or null",
        "milliseconds since the connection was accepted or the request came; null in the line at one minute, while it is still open",
    ),
    field(
        "count",
        "number, or absent",
        "refusals of one guest for one destination and reason are folded: the first is logged at once, the rest as one line each 10 s with their number",
    ),
    field("advice", "string, or absent", "the nearest rule, and why it does not match"),
];

/// Appends the line with its newline, the fields in the order of [`FIELDS`].
pub(super) fn render(line: &Line, epoch: u64, into: &mut Vec<u8>) {
    let Line { event, count, advice, others } = line;
    let claim = event.claim.as_ref().filter(|_| !others);
    let what = if *others { What::Others } else { event.what() };
    let port = claim.filter(|_| !matches!(what, What::Host(_))).map(|claim| claim.target.port);
    let mut object = Object { into, open: false };
    object.field("ts").moment(event.at);
    let _ = write!(object.field("flow").quoted(), "{epoch:x}-{:x}", event.id);
    object.text("listener", Some(event.listener.as_str()));
    object.text("guest", event.guest.name.as_deref());
    object.endpoint("source", Some(event.source));
    object.endpoint("original", event.original.filter(|_| !others));
    match &what {
        What::Target(target) => drop(write!(object.field("destination").quoted(), "{target}")),
        what => object.text("destination", what.text().as_deref()),
    }
    object.text("name", claim.and_then(|claim| claim.target.host.name()).map(|name| name.as_str()));
    object.number("port", port.map(u64::from));
    object.text("verdict", Some(event.verdict.as_str()));
    object.text("reason", Some(event.reason.as_str()));
    if let Some(cause) = event.cause.filter(|_| !others) {
        object.text("cause", Some(cause));
    }
    match event.rule.as_ref().filter(|_| !others) {
        Some(rule) => drop(write!(object.field("rule").quoted(), "{rule}")),
        None => object.text("rule", None),
    }
    object.text("evidence", claim.map(|claim| claim.evidence.as_str()));
    object.endpoint("upstream", event.upstream);
    object.endpoint("egress", event.egress);
    object.number("bytes_up", Some(event.bytes_up));
    object.number("bytes_down", Some(event.bytes_down));
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    object.number("duration_ms", event.duration.map(millis));
    if count.is_some() {
        object.number("count", *count);
    }
    if advice.is_some() {
        object.text("advice", advice.as_deref());
    }
    into.extend_from_slice(b"}\n");
}

/// Formats a time in RFC 3339, UTC, with milliseconds.
pub(super) fn rfc3339(time: SystemTime) -> String {
    format!("{:.3}", Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Converts a guest's text for the log: bytes that are not UTF-8 become `\xNN`, and the text is cut so that it
/// takes at most 253 bytes when escaped.
pub(super) fn clip(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().min(MAX_TEXT));
    let mut room = MAX_TEXT;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match room.checked_sub(escaped_len(c)) {
                Some(left) => room = left,
                None => return text,
            }
            text.push(c);
        }
        for byte in chunk.invalid() {
            // The backslash itself is escaped.
            match room.checked_sub(5) {
                Some(left) => room = left,
                None => return text,
            }
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// A JSON object being written. It is written by hand: a serializer with a string for each field would cost
/// several times as much per line, and each plain-HTTP request is a line.
struct Object<'a> {
    into: &'a mut Vec<u8>,
    open: bool,
}

impl Object<'_> {
    /// Writes the key, which must be a fixed word of the program; the value must follow.
    fn field(&mut self, key: &str) -> Value<'_> {
        self.into.extend_from_slice(if self.open { b",\"" } else { b"{\"" });
        self.open = true;
        self.into.extend_from_slice(key.as_bytes());
        self.into.extend_from_slice(b"\":");
        Value(self.into)
    }

    fn text(&mut self, key: &str, text: Option<&str>) {
        match (self.field(key), text) {
            (value, Some(text)) => drop(value.quoted().write_str(text)),
            (value, None) => value.0.extend_from_slice(b"null"),
        }
    }

    fn number(&mut self, key: &str, number: Option<u64>) {
        match (self.field(key), number) {
            (value, Some(number)) => digits(value.0, number),
            (value, None) => value.0.extend_from_slice(b"null"),
        }
    }

    fn endpoint(&mut self, key: &str, endpoint: Option<Endpoint>) {
        let Some(Endpoint { ip, port }) = endpoint else { return self.text(key, None) };
        let mut quoted = self.field(key).quoted();
        match ip {
            IpAddr::V4(ip) => {
                for (index, octet) in ip.octets().into_iter().enumerate() {
                    if index > 0 {
                        quoted.0.push(b'.');
                    }
                    digits(quoted.0, u64::from(octet));
                }
                quoted.0.push(b':');
                digits(quoted.0, u64::from(port));
            }
            IpAddr::V6(_) => drop(write!(quoted, "{}", Endpoint { ip, port })),
        }
    }
}

/// The place of a value.
struct Value<'a>(&'a mut Vec<u8>);

impl<'a> Value<'a> {
    /// Starts a string. Text written to it is escaped; the drop ends it.
    fn quoted(self) -> Quoted<'a> {
        self.0.push(b'"');
        Quoted(self.0)
    }

    /// Writes a time in the format of [`rfc3339`]. The text of the last second is cached for later lines.
    fn moment(self, time: SystemTime) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let quoted = self.quoted();
        SECOND.with_borrow_mut(|(second, text)| {
            if *second != Some(since.as_secs()) {
                let whole = rfc3339(time);
                *text = whole.split('.').next().unwrap_or_default().to_owned();
                *second = Some(since.as_secs());
            }
            quoted.0.extend_from_slice(text.as_bytes());
        });
        let millis = since.subsec_millis();
        quoted.0.push(b'.');
        quoted.0.extend(
            [millis / 100, millis / 10 % 10, millis % 10].map(|digit| b'0' + u8::try_from(digit).unwrap_or_default()),
        );
        quoted.0.push(b'Z');
    }
}

thread_local! {
    /// The last rendered second, since 1970, and its text up to the fraction.
    static SECOND: RefCell<(Option<u64>, String)> = const { RefCell::new((None, String::new())) };
}

fn digits(into: &mut Vec<u8>, number: u64) {
    let mut text = [0; 20];
    let mut left = number;
    let mut length = 0;
    for place in text.iter_mut().rev() {
        *place = b'0' + (left % 10) as u8;
        left /= 10;
        length += 1;
        if left == 0 {
            break;
        }
    }
    into.extend_from_slice(text.get(text.len() - length..).unwrap_or_default());
}

/// A JSON string in printable ASCII (RFC 8259 §7).
struct Quoted<'a>(&'a mut Vec<u8>);

impl Drop for Quoted<'_> {
    fn drop(&mut self) {
        self.0.push(b'"');
    }
}

impl fmt::Write for Quoted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
            self.0.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        for c in text.chars() {
            let short = match c {
                '"' | '\\' => c as u8,
                '\n' => b'n',
                '\r' => b'r',
                '\t' => b't',
                '\u{8}' => b'b',
                '\u{c}' => b'f',
                ' '..='~' => {
                    self.0.push(c as u8);
                    continue;
                }
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let nibbles = [12, 8, 4, 0].map(|shift| char::from_digit(u32::from(*unit >> shift & 15), 16));
                        self.0.extend_from_slice(b"\\u");
                        self.0.extend(nibbles.into_iter().flatten().map(|nibble| nibble as u8));
                    }
                    continue;
                }
            };
            self.0.extend_from_slice(&[b'\\', short]);
        }
        Ok(())
    }
}

/// Whether the character needs no escape, if it has no short one.
fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~')
}

fn escaped_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if is_plain(c) => 1,
        c => 6 * c.len_utf16(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn json(text: &str) -> String {
        let mut out = Vec::new();
        Value(&mut out).quoted().write_str(text).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_could_move_a_cursor_or_break_a_line_is_escaped_and_reads_back_the_same() {
        let hostile = "a\r\n\t\u{1b}[2J\u{9b}\u{7f}\u{2028}\u{2029}\u{202e}\u{2066}\u{200b}\u{feff}\"\\é😀";
        let json = json(hostile);
        assert!(json.bytes().all(|b| (b' '..=b'~').contains(&b)), "{json}");
        assert!(json.contains("\\u202e") && json.contains("\\u001b") && json.contains("\\ud83d\\ude00"), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }

    #[test]
    fn text_is_cut_at_253_bytes_as_it_stands_in_the_log() {
        for c in ["a", "\"", "\n", "\u{1}", "é", "😀", "\u{202e}"] {
            let json = json(&clip(c.repeat(64 * 1024).as_bytes()));
            assert!(json.len() <= 253 + 2 && json.len() > 253 - 12, "{c:?}: {}", json.len());
        }
        let json = json(&clip(&[0xff; 1000]));
        assert!(json.len() <= 253 + 2 && json.starts_with("\"\\\\xff\\\\xff"), "{json}");
        assert_eq!(clip("a".repeat(253).as_bytes()).len(), 253);
    }

    #[test]
    fn times_have_milliseconds_and_are_utc() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(1_700_000_000_120_999);
        assert_eq!(rfc3339(time), "2023-11-14T22:13:20.120Z");
        for offset in [0, 1, 879, 880, 86_400_000, 1] {
            let time = time + Duration::from_millis(offset);
            let mut out = Vec::new();
            Value(&mut out).moment(time);
            assert_eq!(out, format!("\"{}\"", rfc3339(time)).into_bytes());
        }
    }

    #[test]
    fn a_line_has_the_documented_fields_in_their_order() {
        let mut event = crate::account::event::tests::event("good.test");
        event.cause = Some("a cause");
        let mut out = Vec::new();
        render(&Line { event, count: Some(2), advice: Some("advice".into()), others: false }, 1, &mut out);
        let text = String::from_utf8(out).unwrap();
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(object.len(), FIELDS.len());
        let places: Vec<usize> =
            FIELDS.iter().map(|field| text.find(&format!("\"{}\":", field.name)).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn numbers_and_addresses_read_as_they_are_written_elsewhere() {
        let mut out = Vec::new();
        let mut object = Object { into: &mut out, open: false };
        let ends =
            ["0.0.0.0:0", "255.10.9.100:65535", "[2001:db8::1]:443"].map(|end| end.parse::<SocketAddr>().unwrap());
        for number in [0, 9, 10, 1_234_567_890, u64::MAX] {
            object.number("number", Some(number));
        }
        ends.into_iter().for_each(|end| object.endpoint("end", Some(end.into())));
        object.endpoint("end", None);
        let wanted = r#"{"number":0,"number":9,"number":10,"number":1234567890,"number":18446744073709551615,"end":"0.0.0.0:0","end":"255.10.9.100:65535","end":"[2001:db8::1]:443","end":null"#;
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }
}
