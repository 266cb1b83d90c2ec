//! A second name in raw bytes: in a stream that none of our parsers accepts as HTTP, but some server may.
//!
//! Servers differ widely in what they read as a request. Python's `http.server` splits the first line at control
//! characters and reads heads whose lines end with CR alone. Node's reads RTSP and ICE as well. Java's accepts any
//! method and any version, line feeds among them. So where raw bytes may pass, a stream that begins as a request to
//! any of these is searched to its end for names that are not its own: in `Host` lines, in whole URIs and in the
//! targets of CONNECT. Nothing is parsed further: such a line in a body counts too.
//!
//! Memory is bounded, and a stream that begins in another way costs nothing once that is known.

use super::Parsed;
use super::http::HostPort;
use crate::target::Target;
use memchr::memchr2;

/// The longest name with its port, white space aside; anything longer is not our name.
const MAX_NAME: usize = 300;

/// No server reads a longer first line to its end. Python's reads 64 KiB, Node's 16.
const MAX_FIRST_LINE: usize = 128 << 10;

/// A longer first word is not the method of a later request: Node's methods are a fixed list, and Python's are names
/// of functions.
const MAX_METHOD: u8 = 64;

/// The size of blocks that are searched without an early exit, which the compiler turns into vector code.
const BLOCK: usize = 64;

/// Recognises what PostgreSQL's clients ask before anything else, and its length: whether TLS, or GSSAPI's
/// encryption, may follow (its documentation, "Message Formats": SSLRequest and GSSENCRequest). `Partial` if it is
/// incomplete.
pub fn asks_for_tls(buf: &[u8]) -> Option<Parsed<()>> {
    const LENGTH: usize = 8;
    [[0, 0, 0, 8, 4, 210, 22, 47], [0, 0, 0, 8, 4, 210, 22, 48]].iter().find_map(|request: &[u8; LENGTH]| match buf {
        [] => None,
        _ if buf.starts_with(request) => Some(Parsed::Complete { head: (), len: LENGTH }),
        _ if request.starts_with(buf) => Some(Parsed::Partial),
        _ => None,
    })
}

/// The stream showed another name than its own, and must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherName;

/// Searches one direction of a raw stream.
#[derive(Debug)]
pub struct HostSearch {
    /// The target that the stream was permitted for.
    own: Target,
    /// The beginning of the stream, until it is known whether there is anything to search.
    first: Option<FirstLine>,
    state: State,
    /// The first line has ended.
    later: bool,
    /// What may be a name, as far as it was read.
    name: Vec<u8>,
}

/// The position of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the beginning of a line, white space aside.
    Start,
    /// In its first word.
    Word(Word),
    /// After the first word.
    Gap(Word),
    /// After `Host` and a byte that is white space to some servers and a line end to others.
    Split,
    /// In what may be the scheme of a URI: how much of `://` was read.
    Scheme(u8),
    /// In the authority of a URI, or in the target of CONNECT.
    Authority,
    /// After an authority that is not our own.
    Foreign(Version),
    /// In the value of a Host field.
    Value,
    /// After it: the next line may continue it. `cr`: the line ended with CR, so that LF may follow.
    Folding { cr: bool },
    /// Anything else, until the next line.
    Rest,
}

/// What is still missing of a version after a URI, which makes the line a request: its letters, `/` and a digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Blank,
    Letters,
    Digit,
}

/// The first word of a line, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    length: u8,
    host: bool,
    connect: bool,
    get: bool,
}

impl Word {
    const EMPTY: Word = Word { length: 0, host: true, connect: true, get: true };

    fn push(self, byte: u8) -> Word {
        let goes_on = |word: &[u8], so_far: bool| so_far && follows(word, self.length, byte);
        Word {
            length: self.length.saturating_add(1),
            host: goes_on(b"host", self.host),
            connect: goes_on(b"connect", self.connect),
            get: goes_on(b"get", self.get),
        }
    }

    fn is_host(self) -> bool {
        self.host && self.length == 4
    }

    fn is_connect(self) -> bool {
        self.connect && self.length == 7
    }

    /// With this method Python's server requires no version.
    fn is_get(self) -> bool {
        self.get && self.length == 3
    }
}

/// Is `byte` the next of `word`, in any case, after its first `read` bytes?
fn follows(word: &[u8], read: u8, byte: u8) -> bool {
    word.get(usize::from(read)).is_some_and(|letter| byte.eq_ignore_ascii_case(letter))
}

/// The beginning of a stream: may any server accept it as a request?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FirstLine {
    read: usize,
    previous: u8,
    /// The first word; `None` after it.
    word: Option<Word>,
    /// The word after the first white space, as a target.
    target: Aim,
    /// The same after the first space: Java's server reads everything before it as the method, and only CR LF as an
    /// end.
    java: Aim,
    /// How much of `HTTP/` was read since the last white space.
    http: Option<u8>,
    /// The line has ended for all servers but Java's.
    ended: bool,
}

/// What is known of a word that may be a request target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// White space comes before it.
    Before,
    /// It begins with the next byte that is not blank.
    Next,
    /// It may be a scheme.
    Scheme,
    /// It was a scheme if a slash follows.
    Colon,
    /// It is not a target.
    Never,
}

/// What is known of a stream's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seems {
    Open,
    /// Some server reads it as a request, and the search continues in this state.
    Request(State),
    Other,
}

impl FirstLine {
    const NEW: FirstLine = FirstLine {
        read: 0,
        previous: 0,
        word: Some(Word::EMPTY),
        target: Aim::Before,
        java: Aim::Before,
        http: Some(0),
        ended: false,
    };

    fn push(&mut self, byte: u8) -> Seems {
        let blank = is_gap(byte);
        if let Some(state) = self.java.push(byte, byte == b' ') {
            return Seems::Request(state);
        }
        // Any number of these may come first.
        if self.read == 0 && blank {
            return Seems::Open;
        }
        self.read = self.read.saturating_add(1);
        let previous = std::mem::replace(&mut self.previous, byte);
        if byte == b'\n' && previous == b'\r' {
            return Seems::Other;
        }
        self.ended |= byte == b'\n' || self.read > MAX_FIRST_LINE;
        if !self.ended
            && let Some(state) = self.line(byte, blank)
        {
            return Seems::Request(state);
        }
        if self.ended && self.java == Aim::Never { Seems::Other } else { Seems::Open }
    }

    /// Reads a byte as servers do that end lines with LF.
    fn line(&mut self, byte: u8, blank: bool) -> Option<State> {
        match self.word {
            Some(word) if blank && (word.is_get() || word.is_connect()) => return Some(State::Gap(word)),
            Some(_) if blank => self.word = None,
            Some(word) => self.word = Some(word.push(byte)),
            None => {}
        }
        self.http = match self.http {
            _ if blank => Some(0),
            Some(read) if follows(b"http/", read, byte) => Some(read.saturating_add(1)),
            _ => None,
        };
        if self.http == Some(5) { Some(State::Rest) } else { self.target.push(byte, blank) }
    }

    /// Returns how many of these bytes decide nothing.
    fn skip(&self, bytes: &[u8]) -> usize {
        match self.java {
            Aim::Before if self.ended => memchr2(b' ', b'\n', bytes).unwrap_or(bytes.len()),
            _ => 0,
        }
    }
}

impl Aim {
    /// Returns the state of the search if this is a path, `*`, or a URI.
    fn push(&mut self, byte: u8, blank: bool) -> Option<State> {
        *self = match *self {
            Aim::Before | Aim::Next if blank => Aim::Next,
            Aim::Before => Aim::Before,
            // A path may begin with its slash written as %2f.
            Aim::Next if matches!(byte, b'/' | b'*' | b'%') => return Some(State::Rest),
            Aim::Next if byte.is_ascii_alphabetic() => Aim::Scheme,
            Aim::Scheme if byte == b':' => Aim::Colon,
            Aim::Scheme if is_scheme(byte) => Aim::Scheme,
            Aim::Colon if byte == b'/' => return Some(State::Scheme(2)),
            Aim::Next | Aim::Scheme | Aim::Colon | Aim::Never => Aim::Never,
        };
        None
    }
}

impl HostSearch {
    /// A search of a stream that was permitted for `own`.
    pub fn new(own: &Target) -> HostSearch {
        HostSearch {
            own: own.clone(),
            first: Some(FirstLine::NEW),
            state: State::Start,
            later: false,
            name: Vec::new(),
        }
    }

    /// Searches the next bytes of the stream, before they are sent on. Returns false if the bytes after them need no
    /// search.
    ///
    /// # Errors
    /// They, or the bytes before them, contain another name. None of these bytes may be sent on: without them the
    /// head that has the name is incomplete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool, OtherName> {
        let mut rest = bytes;
        while let Some(first) = &mut self.first {
            let (skipped, behind) = rest.split_at_checked(first.skip(rest)).unwrap_or((rest, &[]));
            first.previous = skipped.last().copied().unwrap_or(first.previous);
            let Some((byte, left)) = behind.split_first() else { return Ok(true) };
            match first.push(*byte) {
                Seems::Open => {}
                Seems::Request(state) => {
                    self.state = state;
                    self.first = None;
                }
                Seems::Other => return Ok(false),
            }
            rest = left;
        }
        let mut state = self.state;
        loop {
            if state == State::Rest {
                rest = rest.get(find_line_end(rest)..).unwrap_or_default();
            }
            let Some((byte, left)) = rest.split_first() else { break };
            state = self.step(state, *byte)?;
            rest = left;
        }
        self.state = state;
        Ok(true)
    }

    /// Is it only looking for the first byte that decides anything, which costs next to nothing? A megabyte of zeros
    /// may still become a request to Java's server.
    pub fn skips(&self) -> bool {
        self.first.as_ref().is_some_and(|first| first.ended && first.java == Aim::Before)
    }

    /// Ends the search where the stream ends.
    ///
    /// # Errors
    /// As [`push`](Self::push): the end would complete a head that has another name.
    pub fn end(&mut self) -> Result<(), OtherName> {
        match self.state {
            _ if self.first.is_some() => Ok(()),
            State::Value | State::Folding { .. } if !self.is_own() => Err(OtherName),
            State::Authority if !self.later && !self.is_own() => Err(OtherName),
            _ => Ok(()),
        }
    }

    /// The name that was not its own, for the log.
    pub fn shown(&self) -> &[u8] {
        &self.name
    }

    /// Processes one byte after the beginning of the stream.
    fn step(&mut self, state: State, byte: u8) -> Result<State, OtherName> {
        if let State::Folding { cr } = state {
            return match byte {
                b'\n' if cr => Ok(State::Folding { cr: false }),
                _ if is_blank(byte) => {
                    self.keep(b' ');
                    Ok(State::Value)
                }
                _ if !self.is_own() => Err(OtherName),
                _ => self.step(State::Start, byte),
            };
        }
        if is_line_end(byte) {
            let later = std::mem::replace(&mut self.later, true);
            return match state {
                State::Value => Ok(State::Folding { cr: byte == b'\r' }),
                State::Authority if !later && !self.is_own() => Err(OtherName),
                State::Word(word) | State::Gap(word) if word.is_host() && !matches!(byte, b'\r' | b'\n') => {
                    Ok(State::Split)
                }
                State::Split if !matches!(byte, b'\r' | b'\n') => Ok(State::Split),
                _ => Ok(State::Start),
            };
        }
        let blank = is_blank(byte);
        Ok(match state {
            State::Start if blank => State::Start,
            State::Split if blank => State::Split,
            State::Split if byte == b':' => self.value(),
            State::Start | State::Split => State::Word(Word::EMPTY.push(byte)),
            State::Word(word) | State::Gap(word) if byte == b':' && word.is_host() => self.value(),
            State::Word(_) if byte == b':' => State::Rest,
            State::Word(word) | State::Gap(word) if blank => State::Gap(word),
            State::Word(word) if word.length < MAX_METHOD => State::Word(word.push(byte)),
            State::Gap(word) if word.is_connect() => {
                self.name.clear();
                self.keep(byte);
                State::Authority
            }
            State::Gap(_) if byte.is_ascii_alphabetic() => State::Scheme(0),
            State::Scheme(0) if is_scheme(byte) => State::Scheme(0),
            State::Scheme(0) if byte == b':' => State::Scheme(1),
            State::Scheme(1) if byte == b'/' => State::Scheme(2),
            State::Scheme(2) if byte == b'/' => {
                self.name.clear();
                State::Authority
            }
            State::Authority if blank || matches!(byte, b'/' | b'?' | b'#') => {
                match self.is_own() {
                    true => State::Rest,
                    // In a first line anything after it may be a version.
                    false if !self.later => return Err(OtherName),
                    false if blank => State::Foreign(Version::Letters),
                    false => State::Foreign(Version::Blank),
                }
            }
            State::Authority => {
                self.keep(byte);
                State::Authority
            }
            State::Foreign(Version::Blank) if blank => State::Foreign(Version::Letters),
            State::Foreign(Version::Blank) => State::Foreign(Version::Blank),
            State::Foreign(Version::Letters) if blank || byte.is_ascii_alphabetic() => State::Foreign(Version::Letters),
            State::Foreign(Version::Letters) if byte == b'/' => State::Foreign(Version::Digit),
            State::Foreign(Version::Digit) if byte.is_ascii_digit() => return Err(OtherName),
            State::Value => {
                if !blank || !self.name.is_empty() {
                    self.keep(byte);
                }
                State::Value
            }
            _ => State::Rest,
        })
    }

    fn value(&mut self) -> State {
        self.name.clear();
        State::Value
    }

    fn keep(&mut self, byte: u8) {
        if self.name.len() <= MAX_NAME {
            self.name.push(byte);
        }
    }

    /// Is what was read the name that the stream was permitted for? An empty name is not.
    fn is_own(&self) -> bool {
        let end = self.name.iter().rposition(|byte| !is_blank(*byte)).map_or(0, |last| last + 1);
        let name = self.name.get(..end).unwrap_or_default();
        let fits = self.name.len() <= MAX_NAME;
        fits && HostPort::parse(name)
            .is_ok_and(|shown| shown.host == self.own.host && shown.port.is_none_or(|port| port == self.own.port))
    }
}

/// The bytes that end a line for some server or library.
const fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n'..=b'\r' | 0x1c..=0x1e | 0x85)
}

/// The bytes that some server reads as white space within a line.
const fn is_blank(byte: u8) -> bool {
    (byte <= b' ' || matches!(byte, 0x7f | 0xa0)) && !is_line_end(byte)
}

/// The bytes at which some server splits a request line. Other white space is left out, because other protocols begin
/// with such bytes.
const fn is_gap(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | 0x1c..=b' ' | 0x85 | 0xa0)
}

/// RFC 3986 §3.1.
const fn is_scheme(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// Returns the position of the first line end, or the length of `bytes` if there is none.
fn find_line_end(bytes: &[u8]) -> usize {
    let skipped = bytes
        .chunks(BLOCK)
        .take_while(|block| !block.iter().fold(false, |any, byte| any | is_line_end(*byte)))
        .map(<[u8]>::len)
        .sum();
    let rest = bytes.get(skipped..).unwrap_or_default();
    rest.iter().position(|byte| is_line_end(*byte)).map_or(bytes.len(), |at| skipped + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own() -> Target {
        Target::parse(b"good.test:8080", None).unwrap()
    }

    /// Sends a stream in these pieces and then ends it. Returns how many bytes get through, whether the search
    /// stopped, and whether the end gets through, which it does if the search stopped.
    fn through<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (usize, bool, bool) {
        let mut search = HostSearch::new(&own());
        let mut passed = 0;
        for piece in pieces {
            match search.push(piece) {
                Ok(true) => passed += piece.len(),
                Ok(false) => return (usize::MAX, true, true),
                Err(OtherName) => return (passed, false, false),
            }
        }
        (passed, false, search.end().is_ok())
    }

    /// The stream is cut, byte by byte or whole, and before the end of the head in either case.
    #[track_caller]
    fn is_cut(text: &[u8]) {
        let (passed, _, ended) = through(text.chunks(1));
        assert!(!ended && passed < text.len(), "{}", text.escape_ascii());
        for size in [2, 3, 7, text.len()] {
            assert!(!through(text.chunks(size)).2, "{size}: {}", text.escape_ascii());
        }
    }

    #[track_caller]
    fn passes(text: &[u8]) {
        for size in [1, 2, 3, 7, text.len()] {
            assert!(through(text.chunks(size)).2, "{size}: {}", text.escape_ascii());
        }
    }

    const LINES: [&str; 16] = [
        "GET / RTSP/1.0",
        "SOURCE / ICE/1.0",
        "\x0bGET / HTTP/1.1",
        "GET\x1c/\x1dHTTP/1.1",
        "GET /",
        "GET x",
        "FOO / BAR",
        "G:E=T, / HTTP/1.1",
        "FOO / ",
        "A\nB / X",
        "  / X",
        "OPTIONS * RTSP/1.0",
        "FOO x:/ X",
        "GET http://good.test:8080/ RTSP/1.0",
        "\r\n\r\nPOST /a X",
        "\u{a0}GET\u{85}x\u{1f}HTTP/1.1",
    ];

    fn latin1(text: &str) -> Vec<u8> {
        text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect()
    }

    #[test]
    fn another_host_in_what_any_server_takes_for_a_request_is_found() {
        let fields = [
            "Host: evil.test",
            "hOST:evil.test",
            "Host : evil.test",
            "Host\x0c\t: evil.test",
            " Host: evil.test",
            "X: y\rHost: evil.test",
            "X: y\x0bHost: evil.test",
            "X: y\u{85}Host: evil.test",
            "Host:\r\n evil.test",
            "Host: good.test\r\n evil.test",
            "Host: good.test\r\nHost: evil.test",
            "Host: good.test:80",
            "Host: good.test, evil.test",
            "Host: x@good.test",
            "Host: good.tes",
            "Host: xgood.test",
            "Host:",
            "Host: \0evil.test",
        ];
        for line in LINES {
            for field in fields {
                for (end, blank) in [("\r\n", "\r\n"), ("\n", "\n"), ("\r\n", "\r")] {
                    // Java's server does not end the first line at a bare LF, so neither do we.
                    let text = format!(
                        "{line}{}A: b{end}{field}{end}{blank}",
                        if line.contains("A\n") { "\r\n" } else { end }
                    );
                    is_cut(&latin1(&text));
                }
            }
        }
    }

    #[test]
    fn its_own_host_passes_however_it_is_written() {
        for line in LINES {
            for field in [
                "Host: good.test",
                "Host: GOOD.test:8080",
                "Host:\tgood.test. \t",
                "X-Forwarded-Host: evil.test",
                "A: Host: evil.test",
            ] {
                passes(&latin1(&format!("{line}\r\n{field}\r\nB: c\r\n\r\nbody")));
                passes(&latin1(&format!("{line}\r\n{field}\n")));
            }
        }
    }

    #[test]
    fn a_second_request_and_a_host_far_behind_are_found() {
        let first = b"GET / RTSP/1.0\r\nHost: good.test\r\n\r\n";
        is_cut(&[&first[..], b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"].concat());
        is_cut(&[&first[..], b"GET http://evil.test/ HTTP/1.1\r\n\r\n"].concat());
        is_cut(&[&first[..], b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n"].concat());
        is_cut(&[b"GET / RTSP/1.0\r\n", &b"X: 0123456789\r\n".repeat(6000)[..], b"Host: evil.test\r\n\r\n"].concat());
        is_cut(&[b"GET / RTSP/1.0\r\nX: ", &[b'a'; 90_000][..], b"\r\nHost: evil.test\r\n\r\n"].concat());
        is_cut(&[&[b'a'; 200_000][..], b" / X\r\nHost: evil.test\r\n\r\n"].concat());
        is_cut(&[b"\xff\n\0", &[b'a'; 2000][..], b"\n\xfe / X\r\nHost: evil.test\r\n\r\n"].concat());
    }

    #[test]
    fn another_authority_in_a_request_line_is_found() {
        for line in [
            "GET http://evil.test/",
            "FOO rtsp://evil.test X",
            "CONNECT evil.test:443 X",
            "FOO a://b@good.test/ X",
            "GET http://good.test:80/ X",
        ] {
            is_cut(format!("{line}\r\nHost: good.test\r\n\r\n").as_bytes());
        }
        assert!(!through([&b"GET http://evil.test"[..]]).2, "its end is one");
        assert!(!through([&b"GET / RTSP/1.0\r\nHost: evil.test"[..]]).2);
        passes(
            b"DESCRIBE rtsp://good.test:8080/a RTSP/1.0\r\nCSeq: 1\r\n\r\nSETUP rtsp://good.test/b RTSP/1.0\r\n\r\n",
        );
        passes(b"GET / RTSP/1.0\r\n\r\nsee http://other.test/ for more\r\nReferer: http://other.test/ a/1\r\n");
    }

    #[test]
    fn what_no_server_takes_for_a_request_is_left_alone_soon() {
        for text in [
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\nHost: evil.test\r\n".as_slice(),
            b"EHLO good.test\r\nHost: evil.test\r\n",
            b"a1 LOGIN user word\r\n",
            b"*3\r\n$3\r\nSET\r\n",
            b"{\"a\": 1}\nHost: evil.test\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\x20user name\n",
            b"USER x\r\n",
        ] {
            let mut search = HostSearch::new(&own());
            assert_eq!(search.push(text), Ok(false), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn an_address_has_to_be_that_address() {
        let own = Target::parse(b"[2001:db8::1]:8080", None).unwrap();
        let ask = |host: &str| HostSearch::new(&own).push(format!("GET / RTSP/1.0\r\nHost: {host}\r\n\r\n").as_bytes());
        assert_eq!(ask("[2001:DB8::1]"), Ok(true));
        assert_eq!(ask("[2001:db8::1]:8080"), Ok(true));
        assert_eq!(ask("good.test"), Err(OtherName));
    }

    #[test]
    fn a_question_for_tls_is_known_whole() {
        let ssl = [0, 0, 0, 8, 4, 210, 22, 47, 0x16, 3];
        for end in 1..8 {
            assert_eq!(asks_for_tls(&ssl[..end]), Some(Parsed::Partial));
        }
        assert_eq!(asks_for_tls(&ssl), Some(Parsed::Complete { head: (), len: 8 }));
        assert_eq!(asks_for_tls(&[0, 0, 0, 8, 4, 210, 22, 48]), Some(Parsed::Complete { head: (), len: 8 }));
        for other in [&b""[..], &[0, 0, 0, 9], &[0, 0, 0, 8, 4, 210, 22, 46], b"EHLO"] {
            assert_eq!(asks_for_tls(other), None);
        }
    }

    #[test]
    fn a_stream_without_a_first_line_is_only_skipped_until_something_decides() {
        let mut search = HostSearch::new(&own());
        assert_eq!((search.push(&[0; 1000]), search.skips()), (Ok(true), false), "a first line may still end");
        assert_eq!((search.push(&vec![0; MAX_FIRST_LINE]), search.skips()), (Ok(true), true));
        assert_eq!((search.push(b" /x HTTP/1.1\r\n"), search.skips()), (Ok(true), false), "a request to Java's server");
        assert_eq!(search.push(b"Host: evil.test\r\n\r\n"), Err(OtherName));
        let mut search = HostSearch::new(&own());
        search.push(&vec![0; MAX_FIRST_LINE + 1]).unwrap();
        assert_eq!(search.push(b" 1"), Ok(false), "and this is none");
    }

    #[test]
    fn memory_is_bounded() {
        let mut search = HostSearch::new(&own());
        search.push(b"GET / RTSP/1.0\r\nHost: ").unwrap();
        for _ in 0..1000 {
            search.push(&[b'a'; 1000]).unwrap();
        }
        assert!(search.name.capacity() < 1024);
        assert_eq!(search.push(b"\r\n\r\n"), Err(OtherName));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "((GET|A|\r\n|/| |\n|\r|Host|:|good\\.test|evil|http|/1|\x0b|x){0,24})",
            cut in 1usize..6,
        ) {
            let whole = through([text.as_bytes()]);
            let pieces = through(text.as_bytes().chunks(cut));
            prop_assert_eq!((whole.1, whole.2), (pieces.1, pieces.2));
        }
    }
}
