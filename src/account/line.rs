//! A line of the access log, rendered: one JSON object in pure ASCII.
//!
//! Everything outside printable ASCII is escaped as `\uXXXX`, which takes care of line and
//! paragraph separators, bidirectional controls and terminal escapes at once, whoever wrote them.

use super::event::{Event, What};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::ser::Formatter;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::SystemTime;

/// What a guest wrote takes this many bytes at most, escapes included.
const MAX_TEXT: usize = 253;

/// An event with what folding and the policy add to it.
pub(super) struct Line {
    pub(super) event: Event,
    /// Refusals that this line stands for; `None`: one.
    pub(super) count: Option<u64>,
    /// How the nearest rule misses.
    pub(super) advice: Option<std::sync::Arc<str>>,
    /// Stands for several destinations.
    pub(super) others: bool,
}

/// Appends the line with its newline.
pub(super) fn render(line: &Line, epoch: u64, into: &mut Vec<u8>) {
    let start = into.len();
    let mut serializer = serde_json::Serializer::with_formatter(&mut *into, Ascii);
    if let Err(error) = Fields::of(line, epoch).serialize(&mut serializer) {
        tracing::error!(%error, "a log line can't be rendered");
        into.truncate(start);
        return;
    }
    into.push(b'\n');
}

/// A time in RFC 3339, UTC, with milliseconds.
pub(super) fn rfc3339(time: SystemTime) -> String {
    format!("{:.3}", Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The id of a flow: no two runs of the daemon use the same.
pub(super) fn flow_id(epoch: u64, id: u64) -> String {
    format!("{epoch:x}-{id:x}")
}

/// Text of a guest's for the log: what is not UTF-8 becomes `\xNN`, and the whole is cut so that it
/// takes 253 bytes at most when it is escaped.
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

/// The fields in the order of the documentation.
#[derive(Serialize)]
struct Fields<'a> {
    ts: String,
    flow: String,
    listener: &'static str,
    guest: Option<&'a str>,
    source: String,
    original: Option<String>,
    destination: Option<String>,
    name: Option<&'a str>,
    port: Option<u16>,
    verdict: &'static str,
    reason: &'static str,
    rule: Option<String>,
    evidence: Option<&'static str>,
    upstream: Option<String>,
    egress: Option<String>,
    bytes_up: u64,
    bytes_down: u64,
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(line: &'a Line, epoch: u64) -> Fields<'a> {
        let event = &line.event;
        let claim = event.claim.as_ref().filter(|_| !line.others);
        let what = if line.others { What::Others } else { event.key().what };
        let has_port = !matches!(what, What::Host(_));
        Fields {
            ts: rfc3339(event.at),
            flow: flow_id(epoch, event.id),
            listener: event.listener.as_str(),
            guest: event.guest.name.as_deref(),
            source: event.source.to_string(),
            original: event.original.filter(|_| !line.others).map(|original| original.to_string()),
            destination: what.text(),
            name: claim.and_then(|claim| claim.target.host.name()).map(|name| name.as_str()),
            port: claim.filter(|_| has_port).map(|claim| claim.target.port),
            verdict: event.verdict.as_str(),
            reason: event.reason.as_str(),
            rule: event.rule.as_ref().filter(|_| !line.others).map(|rule| rule.to_string()),
            evidence: claim.map(|claim| claim.evidence.as_str()),
            upstream: event.upstream.map(|upstream| upstream.to_string()),
            egress: event.egress.map(|egress| egress.to_string()),
            bytes_up: event.bytes_up,
            bytes_down: event.bytes_down,
            duration_ms: event.duration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            count: line.count,
            advice: line.advice.as_deref(),
        }
    }
}

/// Compact JSON in printable ASCII.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !is_plain(c)) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = tail.chars();
            for unit in chars.next().into_iter().flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec()) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Stands for itself in a line. The characters below the space that JSON has short escapes for do
/// not come here.
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

    fn json(text: &str) -> String {
        let mut out = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Ascii)).unwrap();
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
    }
}
