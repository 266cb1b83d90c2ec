//! The chunked transfer coding (RFC 9112 §7.1): decoding and encoding.
//!
//! The decoder returns which ranges of its input are body. It drops chunk extensions and checks trailers, so that
//! the re-framed body contains only what was understood. It keeps no input but the trailers.

use super::http::{Field, Flaw, field_line, is_field_value};
use std::fmt;
use std::ops::Range;

/// The longest chunk-size line, extensions included and line end not, in bytes.
pub const MAX_CHUNK_LINE: usize = 256;
/// The longest trailer section, in bytes.
pub const MAX_TRAILERS: usize = 8 * 1024;
/// What ends a body without trailers, after the last chunk.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The bytes between a chunk's data and the next size.
pub const CHUNK_END: &[u8] = b"\r\n";

/// 16 hexadecimal digits, so that a size always fits 64 bits.
const MAX_DIGITS: u8 = 16;

/// Why a chunked body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkError {
    /// A size that is not 1 to 16 hexadecimal digits.
    Size,
    /// A control character in an extension.
    Extension,
    /// A chunk-size line over [`MAX_CHUNK_LINE`] bytes.
    LongLine,
    /// No CR LF where one is required.
    LineEnd,
    /// A trailer that is not a field.
    Trailer(Flaw),
    /// A field that must not come after the body (RFC 9110 §6.5.1).
    ForbiddenTrailer,
    /// Trailers of more than [`MAX_TRAILERS`] bytes.
    LongTrailers,
}

impl ChunkError {
    /// What is wrong, in a fixed phrase for log and answers.
    pub const fn phrase(self) -> &'static str {
        match self {
            ChunkError::Size => "a chunk size is malformed",
            ChunkError::Extension => "a chunk extension is malformed",
            ChunkError::LongLine => "a chunk-size line is too long",
            ChunkError::LineEnd => "a line or chunk does not end in CR LF",
            ChunkError::Trailer(_) => "a trailer is malformed",
            ChunkError::ForbiddenTrailer => "a trailer frames, routes or authorises the message",
            ChunkError::LongTrailers => "the trailers are too long",
        }
    }
}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}

impl std::error::Error for ChunkError {}

/// What one call of [`Decoder::decode`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// How many bytes of the input were consumed.
    pub consumed: usize,
    /// What was found in them.
    pub part: Part,
}

/// A part of a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Framing alone; the whole input is consumed.
    More,
    /// Body bytes: this range of the input.
    Data(Range<usize>),
    /// The body has ended; the bytes after `consumed` are the next message.
    End,
}

/// The state between two pieces of a chunked body.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    /// Bytes of the size line so far.
    line: usize,
    digits: u8,
    size: u64,
    /// The trailer lines as received; the last one may be incomplete.
    trailers: Vec<u8>,
    /// Where the incomplete one starts.
    trailer_start: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// White space after the size, allowed only before `;`.
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
    End,
}

impl Decoder {
    /// A decoder at the start of a body.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// How many bytes of the current chunk are still to come; 0 between two chunks.
    pub fn left(&self) -> u64 {
        if self.state == State::Data { self.size } else { 0 }
    }

    /// Reads the next piece of the stream, `input`, and stops after the first run of body bytes. Call again with the
    /// bytes that were not consumed. After [`Part::End`] it consumes nothing more.
    ///
    /// # Errors
    /// [`ChunkError`]; both sides must be closed, because the end of the body is unknown.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, ChunkError> {
        let mut at = 0;
        while self.state != State::End {
            let Some(byte) = input.get(at) else { return Ok(Decoded { consumed: at, part: Part::More }) };
            match self.state {
                State::Data => {
                    let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                    let end = input.len().min(at.saturating_add(left));
                    let taken = u64::try_from(end - at).unwrap_or(u64::MAX);
                    self.size = self.size.saturating_sub(taken);
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Decoded { consumed: end, part: Part::Data(at..end) });
                }
                State::Trailer => self.take_trailer_byte(*byte)?,
                _ => self.take_framing_byte(*byte)?,
            }
            at += 1;
        }
        Ok(Decoded { consumed: at, part: Part::End })
    }

    /// Is the body over?
    pub fn is_done(&self) -> bool {
        self.state == State::End
    }

    /// The trailers, once the body is over.
    pub fn trailers(&self) -> impl Iterator<Item = Field<'_>> {
        let lines = if self.is_done() { self.trailers.as_slice() } else { &[] };
        lines.split(|byte| *byte == b'\n').filter_map(|line| field_line(line.strip_suffix(b"\r")?).ok())
    }

    /// Writes the end of the body with its trailers: last chunk, trailers, blank line.
    pub fn write_end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"0\r\n");
        for field in self.trailers() {
            for part in [field.name, b": ", field.value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    fn take_framing_byte(&mut self, byte: u8) -> Result<(), ChunkError> {
        match self.state {
            State::Size | State::Blank | State::Extension if byte != b'\r' => {
                self.line += 1;
                if self.line > MAX_CHUNK_LINE {
                    return Err(ChunkError::LongLine);
                }
            }
            _ => {}
        }
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.take_digit(byte)?,
            (State::Size, b';') if self.digits > 0 => State::Extension,
            (State::Size, b' ' | b'\t') if self.digits > 0 => State::Blank,
            (State::Size, b'\r') if self.digits > 0 => State::SizeLf,
            (State::Size, b'\n') if self.digits > 0 => return Err(ChunkError::LineEnd),
            (State::Size, _) => return Err(ChunkError::Size),
            (State::Blank, b' ' | b'\t') => State::Blank,
            (State::Blank, b';') => State::Extension,
            (State::Blank, _) => return Err(ChunkError::Size),
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\n') => return Err(ChunkError::LineEnd),
            (State::Extension, byte) if is_field_value(&[byte]) => State::Extension,
            (State::Extension, _) => return Err(ChunkError::Extension),
            (State::SizeLf, b'\n') if self.size == 0 => State::Trailer,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                (self.line, self.digits) = (0, 0);
                State::Size
            }
            (State::SizeLf | State::DataCr | State::DataLf, _) => return Err(ChunkError::LineEnd),
            (State::Data | State::Trailer | State::End, _) => self.state,
        };
        Ok(())
    }

    fn take_digit(&mut self, byte: u8) -> Result<State, ChunkError> {
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => byte - b'A' + 10,
        };
        if self.digits >= MAX_DIGITS {
            return Err(ChunkError::Size);
        }
        self.digits += 1;
        self.size = (self.size << 4) | u64::from(value);
        Ok(State::Size)
    }

    fn take_trailer_byte(&mut self, byte: u8) -> Result<(), ChunkError> {
        if self.trailers.len() >= MAX_TRAILERS {
            return Err(ChunkError::LongTrailers);
        }
        self.trailers.push(byte);
        if byte != b'\n' {
            return Ok(());
        }
        let line = self.trailers.get(self.trailer_start..self.trailers.len() - 1).unwrap_or_default();
        let line = line.strip_suffix(b"\r").ok_or(ChunkError::LineEnd)?;
        if line.is_empty() {
            self.trailers.truncate(self.trailer_start);
            self.state = State::End;
            return Ok(());
        }
        let field = field_line(line).map_err(ChunkError::Trailer)?;
        if is_forbidden(field.name) {
            return Err(ChunkError::ForbiddenTrailer);
        }
        self.trailer_start = self.trailers.len();
        Ok(())
    }
}

/// The header of a chunk of `size` bytes; empty if it is 0, because that would end the body. The data follows it,
/// then [`CHUNK_END`].
#[derive(Clone, Copy, Debug)]
pub struct ChunkHeader {
    text: [u8; 18],
    start: usize,
}

impl ChunkHeader {
    /// The header for `size` bytes.
    pub fn new(size: usize) -> ChunkHeader {
        let mut text = *b"0000000000000000\r\n";
        let mut left = size;
        let mut start = 16;
        for (at, digit) in text.iter_mut().enumerate().take(16).rev() {
            if left == 0 {
                break;
            }
            *digit = b"0123456789abcdef".get(left & 15).copied().unwrap_or(b'0');
            left >>= 4;
            start = at;
        }
        ChunkHeader { text, start: if size == 0 { text.len() } else { start } }
    }
}

impl AsRef<[u8]> for ChunkHeader {
    fn as_ref(&self) -> &[u8] {
        self.text.get(self.start..).unwrap_or_default()
    }
}

/// Fields that would change what was decided on the head: framing, routing, request modifiers,
/// authentication, the nature of the content (RFC 9110 §6.5.1).
fn is_forbidden(name: &[u8]) -> bool {
    const NAMES: [&str; 40] = [
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "content_length",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "http2-settings",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "transfer_encoding",
        "upgrade",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "x-forwarded-for",
        "x-forwarded-host",
    ];
    let starts_proxy = name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"proxy-"));
    starts_proxy || NAMES.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Body, trailers as they are re-written, and what follows; `None` while the end has not arrived.
    type Outcome = Result<Option<(Vec<u8>, Vec<u8>, Vec<u8>)>, ChunkError>;

    fn decode(pieces: &[&[u8]]) -> Outcome {
        let mut decoder = Decoder::new();
        let mut body = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let mut input = *piece;
            loop {
                let Decoded { consumed, part } = decoder.decode(input)?;
                match part {
                    Part::Data(range) => {
                        assert!(!range.is_empty() && range.end <= consumed);
                        body.extend_from_slice(&input[range]);
                    }
                    Part::More => {
                        assert_eq!(consumed, input.len());
                        break;
                    }
                    Part::End => {
                        let mut end = Vec::new();
                        decoder.write_end(&mut end);
                        let mut rest = input[consumed..].to_vec();
                        rest.extend(pieces[index + 1..].concat());
                        return Ok(Some((body, end, rest)));
                    }
                }
                input = &input[consumed..];
            }
        }
        Ok(None)
    }

    fn error(input: &str) -> ChunkError {
        decode(&[input.as_bytes()]).unwrap_err()
    }

    fn body(input: &str) -> String {
        String::from_utf8(decode(&[input.as_bytes()]).unwrap().unwrap().0).unwrap()
    }

    #[test]
    fn chunks_become_the_body_and_what_follows_is_left() {
        let (body, end, rest) = decode(&[b"5\r\nhello\r\n00A\r\n 123456789\r\n0\r\n\r\nGET /"]).unwrap().unwrap();
        assert_eq!(
            (body.as_slice(), end.as_slice(), rest.as_slice()),
            (&b"hello 123456789"[..], LAST_CHUNK, &b"GET /"[..])
        );
        assert_eq!(decode(&[b"0\r\n\r\n"]).unwrap().unwrap().0, b"");
        assert_eq!(decode(&[b"5\r\nhel"]).unwrap(), None);
        assert_eq!(decode(&[b"0\r\n"]).unwrap(), None);
    }

    #[test]
    fn extensions_are_dropped_up_to_the_cap() {
        assert_eq!(body("5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n"), "hello");
        assert_eq!(body("5 \t;a\r\nhello\r\n0\r\n\r\n"), "hello");
        let most = "x".repeat(MAX_CHUNK_LINE - 2);
        assert_eq!(body(&format!("5;{most}\r\nhello\r\n0\r\n\r\n")), "hello");
        assert_eq!(error(&format!("5;{most}x")), ChunkError::LongLine);
        assert_eq!(error("5;a\nhello"), ChunkError::LineEnd);
        assert_eq!(error("5;a\rbc"), ChunkError::LineEnd);
        assert_eq!(error("5;a\0"), ChunkError::Extension);
    }

    #[test]
    fn sizes_are_plain_hexadecimal() {
        for size in ["", "\r", "0x1", "+1", "-1", " 1", "g", ";a", "1 \r", "1 1", "10000000000000001", "\u{b2}"] {
            assert_eq!(error(&format!("{size}\r\n")), ChunkError::Size, "{size:?}");
        }
        assert_eq!(error("00000000000000005\r\n"), ChunkError::Size);
        assert_eq!(body("0000000000000005\r\nhello\r\n0\r\n\r\n"), "hello");
        // The largest size is accepted and never overflows.
        assert_eq!(decode(&[b"ffffffffffffffff\r\n", &[b'x'; 100], &[b'y'; 100]]).unwrap(), None);
    }

    #[test]
    fn lines_and_chunks_end_in_cr_lf() {
        for input in
            ["5\nhello\r\n", "5\r\nhello\n", "5\r\nhello0\r\n", "5\r\nhello\r0", "5\rx", "0\r\n\n", "0\r\nA: b\n\r\n"]
        {
            assert_eq!(error(input), ChunkError::LineEnd, "{input:?}");
        }
        assert_eq!(error("5\r\nhello\r\n\r\n"), ChunkError::Size);
    }

    #[test]
    fn trailers_pass_unless_they_frame_route_or_authorise() {
        let (_, end, rest) = decode(&[b"0\r\nDigest:  x \r\nX-A: b\r\n\r\nrest"]).unwrap().unwrap();
        assert_eq!((end.as_slice(), rest.as_slice()), (&b"0\r\nDigest: x\r\nX-A: b\r\n\r\n"[..], &b"rest"[..]));
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "CONNECTION",
            "Authorization",
            "Proxy-Authorization",
            "TE",
            "Upgrade",
            "Cookie",
            "Set-Cookie",
            "Trailer",
            "Content-Type",
            "Range",
            "Expect",
            "Content_Length",
        ] {
            assert_eq!(error(&format!("0\r\nX-A: b\r\n{name}: x\r\n\r\n")), ChunkError::ForbiddenTrailer, "{name}");
        }
        assert_eq!(error("0\r\n A: b\r\n"), ChunkError::Trailer(Flaw::Fold));
        assert_eq!(error("0\r\nA : b\r\n"), ChunkError::Trailer(Flaw::FieldName));
        assert_eq!(error("0\r\nA: b\0\r\n"), ChunkError::Trailer(Flaw::FieldValue));
        assert_eq!(error("0\r\nGET / HTTP/1.1\r\n"), ChunkError::Trailer(Flaw::FieldName));
        assert_eq!(error(&format!("0\r\nA: {}", "x".repeat(MAX_TRAILERS))), ChunkError::LongTrailers);
        assert_eq!(error(&format!("0\r\n{}", "A: b\r\n".repeat(MAX_TRAILERS / 6 + 1))), ChunkError::LongTrailers);
    }

    #[test]
    fn chunk_headers_are_the_shortest_hexadecimal() {
        for (size, text) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (0x1234_abcd, "1234abcd\r\n"), (0, "")] {
            assert_eq!(ChunkHeader::new(size).as_ref(), text.as_bytes(), "{size}");
        }
        assert_eq!(ChunkHeader::new(usize::MAX).as_ref(), b"ffffffffffffffff\r\n");
    }

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        let part = prop::sample::select(vec![
            "3\r\nabc\r\n",
            "3;x=y\r\nabc\r\n",
            "1\r\n\n\r\n",
            "0\r\n",
            "\r\n",
            "X-A: b\r\n",
            "Host: x\r\n",
            "a",
            "\n",
            ";",
            "A\r\n0123456789\r\n",
            "3\r\nabcd\r\n",
            " ",
        ]);
        (prop::collection::vec(part, 0..6), any::<bool>()).prop_map(|(parts, ends)| {
            let end = if ends { "0\r\nX-T: 1\r\n\r\nrest" } else { "" };
            [parts.concat().as_bytes(), end.as_bytes()].concat()
        })
    }

    proptest! {
        #[test]
        fn no_split_changes_the_body(stream in any_stream(), mut cuts in prop::collection::vec(0usize..80, 0..6)) {
            let whole = decode(&[&stream]);
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().map(|cut| cut.min(stream.len())).chain([stream.len()]) {
                pieces.push(&stream[from..cut]);
                from = cut;
            }
            prop_assert_eq!(decode(&pieces), whole.clone());
            prop_assert_eq!(decode(&stream.chunks(1).collect::<Vec<_>>()), whole);
        }

        #[test]
        fn what_is_framed_reads_back(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5)) {
            let mut stream = Vec::new();
            for part in &parts {
                stream.extend_from_slice(ChunkHeader::new(part.len()).as_ref());
                stream.extend_from_slice(part);
                stream.extend_from_slice(CHUNK_END);
            }
            stream.extend_from_slice(LAST_CHUNK);
            prop_assert_eq!(decode(&[&stream]).unwrap().unwrap().0, parts.concat());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[&bytes]);
        }
    }
}
