//! Distinguishes TLS, HTTP and anything else by a stream's first bytes. Determines only the kind; the parser of that
//! kind decides whether the bytes are valid.

/// A stream whose first line reaches this length without an end goes to the HTTP parser, which refuses it.
pub const MAX_SNIFF: usize = super::http::MAX_HEAD;

/// No server accepts a word of this length as a method.
const MAX_METHOD: usize = 256;

/// What a stream inside a tunnel, or on a transparent listener, seems to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    /// TLS records: parse a [`ClientHello`](super::hello::ClientHello).
    Tls,
    /// HTTP/2 in clear: preface and settings, after which it has no names that we could read.
    H2c,
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
/// Deliberately wider than the parsers: anything that a lenient server would accept as TLS or as an HTTP request
/// must reach the strict parser and be refused there, not pass as raw bytes. So a record of any type counts as TLS
/// (servers skip a leading warning alert). A request line may contain white space of any kind and amount, also in
/// front of it, including bytes that a server may swallow before it reads the method.
pub fn sniff(buf: &[u8]) -> Sniff {
    sniff_on(buf, 0)
}

/// As [`sniff`], after [`Sniff::NeedMore`] for the first `scanned` bytes of the same stream: they are not
/// searched again, so that the work is linear in the bytes however they are split.
pub fn sniff_on(buf: &[u8], scanned: usize) -> Sniff {
    let buf = buf.get(..MAX_SNIFF).unwrap_or(buf);
    if let Some(sniffed) = sniff_preface(buf) {
        return sniffed;
    }
    match buf {
        [0x14..=0x18] => return Sniff::NeedMore,
        [0x14..=0x18, 3, ..] => return Sniff::Tls,
        [0x80..=0xff, ..] => return sniff_sslv2(buf),
        _ => {}
    }
    let line = buf.trim_ascii_start();
    let head = line.get(..MAX_METHOD).unwrap_or(line);
    let Some(gap) = head.iter().position(|byte| !super::http::is_token(*byte)) else {
        return if line.len() >= MAX_METHOD { Sniff::Raw } else { unfinished(buf) };
    };
    let (method, rest) = line.split_at(gap);
    if method.is_empty() || !rest.first().is_some_and(is_blank) {
        return Sniff::Raw;
    }
    // A version may have begun in the bytes searched before.
    let searched = scanned.saturating_sub(buf.len() - rest.len()).saturating_sub(6);
    sniff_line(buf, rest.get(searched..).unwrap_or_default())
}

/// The preface of HTTP/2 and the header of the SETTINGS frame that must follow it (RFC 9113 §3.4); `None` for
/// anything else, including a request line that only resembles it.
fn sniff_preface(buf: &[u8]) -> Option<Sniff> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const FRAME_HEADER: usize = 9;
    const SETTINGS: u8 = 4;
    let Some(frame) = buf.strip_prefix(PREFACE) else {
        return (!buf.is_empty() && PREFACE.starts_with(buf)).then_some(Sniff::NeedMore);
    };
    // The first four bytes are length and type, the fifth is the flags, the rest is the stream number.
    let sound = frame.get(3).is_none_or(|kind| *kind == SETTINGS)
        && frame.iter().take(FRAME_HEADER).skip(5).all(|byte| *byte == 0);
    match sound {
        false => None,
        true if frame.len() < FRAME_HEADER => Some(Sniff::NeedMore),
        true => Some(Sniff::H2c),
    }
}

/// A ClientHello in the SSL 2.0 format (RFC 5246 §E.2), which old servers still answer and which has no field for a
/// name. All its lengths must fit, since other protocols also begin with such a byte.
fn sniff_sslv2(buf: &[u8]) -> Sniff {
    /// Bytes before the variable parts, the two length bytes included.
    const FRONT: u16 = 11;
    if let [_, _, kind, ..] = buf
        && *kind != 1
    {
        return Sniff::Raw;
    }
    if let [_, _, _, major, minor, ..] = buf
        && !matches!((major, minor), (3, 0..=4) | (0, 2))
    {
        return Sniff::Raw;
    }
    let &[high, low, _, _, _, suites_high, suites_low, session_high, session_low, challenge_high, challenge_low, ..] =
        buf
    else {
        return Sniff::NeedMore;
    };
    let length = u16::from_be_bytes([high & 0x7f, low]);
    let suites = u16::from_be_bytes([suites_high, suites_low]);
    let session = u16::from_be_bytes([session_high, session_low]);
    let challenge = u16::from_be_bytes([challenge_high, challenge_low]);
    let parts = [FRONT - 2, suites, session, challenge].into_iter().try_fold(0u16, u16::checked_add);
    let sound = parts == Some(length) && suites > 0 && suites % 3 == 0 && matches!(challenge, 16..=32);
    if sound { Sniff::Tls } else { Sniff::Raw }
}

/// `rest` follows the method, or the part of the line that was searched before. If a line feed or a NUL comes before
/// the version, there is none: no server reads on past either.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tls_and_http_are_known_by_their_first_bytes() {
        assert_eq!(sniff(&[0x16, 3, 1]), Sniff::Tls);
        assert_eq!(sniff(&[0x15, 3, 1]), Sniff::Tls);
        assert_eq!(sniff(b"GET / HTTP/1.1\r\n"), Sniff::Http);
        assert_eq!(sniff(b"FOO http://good.test/?a=b HTTP/1.0"), Sniff::Http);
        assert_eq!(sniff(b"PRI * HTTP/2.1\r\n\r\nSM"), Sniff::Http);
        assert_eq!(sniff(b"CONNECT evil.test:443 HTTP/1.1"), Sniff::Http);
    }

    #[test]
    fn http_2_in_clear_is_preface_and_settings() {
        let whole = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0";
        for end in 0..whole.len() {
            assert_eq!(sniff(&whole[..end]), Sniff::NeedMore, "{end}");
        }
        assert_eq!(sniff(whole), Sniff::H2c);
        assert_eq!(sniff(&[&whole[..], b"\0\x03\0\0\0\x64GET / HTTP/1.1\r\n"].concat()), Sniff::H2c);
        // Without settings after it, it is not HTTP/2, and some server might read on for a request.
        for other in [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n".as_slice(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x01",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\x01",
            b"PRI * HTTP/2.0\r\nHost: evil.test\r\n\r\n",
            b"PRI * HTTP/2.0\n",
            b" PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0",
        ] {
            assert_eq!(sniff(other), Sniff::Http, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn everything_else_is_raw_as_soon_as_it_can_be_told() {
        for bytes in [
            b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(),
            b"\0",
            b"{\"id\":1",
            b"\x80\x2e\x02",
            b"\x80\x2e\x01\x04\x00",
            b"\x80\0\x01\x03\0\0\0\0\0\0\x10",
            b"\x16\x02",
            b"EHLO good.test\r\n",
            b"PING\r\n",
            b"GET key\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"GET /\0 HTTP/1.1",
            b"a\xff",
        ] {
            assert_eq!(sniff(bytes), Sniff::Raw, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_hello_of_ssl_2_is_tls_when_its_lengths_fit() {
        let hello = [&[0x80, 28, 1, 3, 1, 0, 3, 0, 0, 0, 16][..], &[7; 19]].concat();
        assert_eq!(sniff(&hello), Sniff::Tls);
        assert_eq!(sniff(&hello[..10]), Sniff::NeedMore);
        let other = [&[0x80, 29, 1, 3, 1, 0, 3, 0, 0, 0, 16][..], &[7; 19]].concat();
        assert_eq!(sniff(&other), Sniff::Raw);
    }

    #[test]
    fn what_may_still_become_a_request_needs_more() {
        for bytes in [b"".as_slice(), b"\x16", b"G", b"GET", b"GET ", b"GET / HTT", b"\r\n", b"SSH-2.0-x", b"GET /a b"]
        {
            assert_eq!(sniff(bytes), Sniff::NeedMore, "{}", bytes.escape_ascii());
        }
        let line = |len: usize| [b"GET /".as_slice(), &vec![b'A'; len - 5]].concat();
        assert_eq!(sniff(&line(MAX_SNIFF - 1)), Sniff::NeedMore);
        assert_eq!(sniff(&line(MAX_SNIFF)), Sniff::Http);
        assert_eq!(sniff(&[b'A'; MAX_METHOD - 1]), Sniff::NeedMore);
        assert_eq!(sniff(&[b'A'; MAX_METHOD]), Sniff::Raw);
    }

    #[test]
    fn what_was_searched_before_need_not_be_searched_again() {
        for text in [b"GET / HTTP/1.1\r\n".as_slice(), b"GET /a b\r\nX", b"G\0", b" \tFOO\tbar\thttp/1.0\n"] {
            let mut verdict = Sniff::NeedMore;
            let mut scanned = 0;
            for end in 1..=text.len() {
                verdict = sniff_on(&text[..end], scanned);
                assert_eq!(verdict, sniff(&text[..end]), "{}", text[..end].escape_ascii());
                if verdict != Sniff::NeedMore {
                    break;
                }
                scanned = end;
            }
            assert_ne!(verdict, Sniff::NeedMore);
        }
    }

    #[test]
    fn requests_that_only_lenient_servers_read_are_requests() {
        for bytes in [
            b"\r\n\r\nGET / HTTP/1.1".as_slice(),
            b"\nGET / HTTP/1.1",
            b" GET / HTTP/1.1",
            b"GET  / HTTP/1.1",
            b"GET\t/\tHTTP/1.1",
            b"GET\x0b/\x0cHTTP/1.1",
            b"GET /a b HTTP/1.1",
            b"GET /\x01 HTTP/1.1",
            b"GET / http/1.1",
            b"get / HTTP/1.1",
            b"GET HTTP/1.1",
        ] {
            assert_eq!(sniff(bytes), Sniff::Http, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_verdict_never_changes_with_more_bytes(
            bytes in prop_oneof![
                "[A-Z \r\n]{0,6}[ -~]{0,12} ?HTTP/1\\.1[\r\n]{0,3}".prop_map(String::into_bytes),
                (0..24usize, prop::collection::vec(prop::sample::select(b"\0\x04G".to_vec()), 0..12)).prop_map(
                    |(cut, tail)| [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[cut.saturating_sub(12)..], &tail].concat(),
                ),
                prop::collection::vec(prop::sample::select(b"\x16\x03\0 \tG/HTP\r\n.1".to_vec()), 0..24),
                prop::collection::vec(any::<u8>(), 0..24),
            ],
        ) {
            let mut verdict = Sniff::NeedMore;
            for end in 0..=bytes.len() {
                let next = sniff(&bytes[..end]);
                prop_assert!(verdict == Sniff::NeedMore || next == verdict, "{:?} then {:?}", verdict, next);
                verdict = next;
            }
        }

        #[test]
        fn whatever_the_request_parser_takes_is_sniffed_as_http(
            line in "[A-Z]{1,8} /[!-~]{0,12} HTTP/1\\.[01]\r\nHost: good\\.test\r\n\r\n",
        ) {
            if super::super::http::RequestHead::parse(line.as_bytes(), 0).is_ok() {
                prop_assert_eq!(sniff(line.as_bytes()), Sniff::Http);
            }
        }
    }
}
