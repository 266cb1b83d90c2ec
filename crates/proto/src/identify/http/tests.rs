mod properties;
mod responses;

use super::*;
use crate::target::Target;

fn parse(head: &str) -> Result<RequestHead<'_>, HeadError> {
    match RequestHead::parse(head.as_bytes(), 0)? {
        Parsed::Complete { head: parsed, len } => {
            assert_eq!(len, head.len());
            Ok(parsed)
        }
        Parsed::Partial => panic!("partial: {head:?}"),
    }
}

fn flaw(head: &str) -> Flaw {
    match parse(head) {
        Err(HeadError::Malformed(flaw)) => flaw,
        other => panic!("{head:?}: {other:?}"),
    }
}

/// A GET of `/` on good.test with these lines between Host and the end.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: good.test\r\n{lines}\r\n")
}

fn rewritten(head: &str) -> String {
    let mut out = Vec::new();
    parse(head).unwrap().write_request(&mut out);
    String::from_utf8(out).unwrap()
}

/// The outcome without the parts that borrow from the buffer.
type Outcome = Result<Option<(Vec<u8>, usize)>, HeadError>;

fn outcome(parsed: Result<Parsed<RequestHead<'_>>, HeadError>) -> Outcome {
    Ok(match parsed? {
        Parsed::Complete { head, len } => {
            let mut out = Vec::new();
            head.write_request(&mut out);
            out.extend(format!("{:?}", (head.keep_alive, head.expect_continue)).into_bytes());
            Some((out, len))
        }
        Parsed::Partial => None,
    })
}

fn in_pieces(buf: &[u8], cuts: impl Iterator<Item = usize>) -> Outcome {
    let mut scanned = 0;
    for cut in cuts.chain([buf.len()]) {
        let so_far = &buf[..cut.min(buf.len())];
        let outcome = outcome(RequestHead::parse(so_far, scanned));
        if outcome != Ok(None) {
            return outcome;
        }
        scanned = so_far.len();
    }
    Ok(None)
}

type Seen = Result<Option<(Vec<u8>, usize)>, (u16, crate::reason::Reason)>;

/// Status and reason, or what was understood: the part of an outcome that no split may change.
fn seen(outcome: Outcome) -> Seen {
    outcome.map_err(|error| (error.status(), error.reason()))
}

// --- what is accepted ---------------------------------------------------------------------------

#[test]
fn heads_of_real_clients_are_taken() {
    let head = parse(
        "CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\nUser-Agent: curl/7.88.1\r\n\
         Proxy-Connection: Keep-Alive\r\n\r\n",
    )
    .unwrap();
    assert_eq!(head.target, RequestTarget::Authority(Target::parse(b"good.test:443", None).unwrap()));
    assert!(head.keep_alive);

    let head = parse("GET http://good.test/a?b=c HTTP/1.1\r\nHost: good.test\r\nAccept: */*\r\n\r\n").unwrap();
    assert_eq!(head.destination(443).unwrap().to_string(), "good.test:80");
    let RequestTarget::Absolute { path_and_query, .. } = head.target else { panic!() };
    assert_eq!(path_and_query, b"/a?b=c");

    let head = parse("POST /up HTTP/1.1\r\nhost: Good.Test.:8080\r\ncontent-length: 5\r\nExpect: 100-Continue\r\n\r\n");
    let head = head.unwrap();
    assert_eq!(head.destination(80).unwrap().to_string(), "good.test:8080");
    assert_eq!((head.body, head.expect_continue), (Body::Length(5), true));

    let head = parse("CONNECT good.test:443 HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!((head.version, head.keep_alive, head.host), (Version::Http10, false, None));
    assert_eq!(parse("OPTIONS * HTTP/1.1\r\nHost: good.test\r\n\r\n").unwrap().target, RequestTarget::Asterisk);
    assert!(parse("CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:DB8:0::1]\r\n\r\n").is_ok());
}

#[test]
fn a_head_ends_at_its_blank_line_and_what_follows_is_left() {
    let stream = b"\r\nGET / HTTP/1.1\r\nHost: good.test\r\n\r\nGET /2 HTTP/1.1\r\n";
    let Parsed::Complete { len, .. } = RequestHead::parse(stream, 0).unwrap() else { panic!() };
    assert_eq!(stream.get(len..).unwrap(), b"GET /2 HTTP/1.1\r\n");
}

#[test]
fn keeping_the_connection_goes_by_version_and_connection() {
    assert!(parse(&get("")).unwrap().keep_alive);
    assert!(!parse(&get("Connection: foo, Close\r\n")).unwrap().keep_alive);
    assert!(parse("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap().keep_alive);
    assert!(!parse("GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n").unwrap().keep_alive);
}

// --- what is refused ----------------------------------------------------------------------------

#[test]
fn lines_end_in_cr_lf_alone() {
    for head in [
        "GET / HTTP/1.1\nHost: good.test\n\n",
        "GET / HTTP/1.1\r\nHost: good.test\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.test\r\nA: b\n\n",
        "GET / HTTP/1.1\nHost: good.test\r\n\r\n",
        "GET / HTTP/1.1\rHost: good.test\r\r",
        "GET / HTTP/1.1\r\nHost: good.test\rA: b\r\n\r\n",
        "GET / HTTP/1.1\r\r\nHost: good.test\r\n\r\n",
    ] {
        let error = RequestHead::parse(head.as_bytes(), 0).unwrap_err();
        assert_eq!(error.status(), 400, "{head:?}");
        assert_eq!(seen(in_pieces(head.as_bytes(), 0..head.len())), Err((400, crate::reason::Reason::Malformed)));
    }
}

#[test]
fn field_lines_have_one_reading() {
    for (line, expected) in [
        ("A : b", Flaw::FieldName),
        ("A\t: b", Flaw::FieldName),
        (": b", Flaw::FieldName),
        ("A", Flaw::FieldName),
        ("A b: c", Flaw::FieldName),
        ("A(b): c", Flaw::FieldName),
        ("Ä: c", Flaw::FieldName),
        (" A: b", Flaw::Fold),
        ("\tA: b", Flaw::Fold),
        ("A: b\r\n c", Flaw::Fold),
        (" ", Flaw::Fold),
        ("A: b\0c", Flaw::FieldValue),
        ("A: b\x1bc", Flaw::FieldValue),
        ("A: b\x7f", Flaw::FieldValue),
        ("A: b\rc", Flaw::FieldValue),
    ] {
        assert_eq!(flaw(&get(&format!("{line}\r\n"))), expected, "{line:?}");
    }
    assert_eq!(flaw("GET / HTTP/1.1\r\n Host: good.test\r\n\r\n"), Flaw::Fold);
    assert_eq!(parse(&get("A:\r\nB:  \t c d\t \r\n")).unwrap().fields[2], Field { name: b"B", value: b"c d" });
}

#[test]
fn at_most_one_empty_line_stands_in_front() {
    assert!(parse(&format!("\r\n{}", get(""))).is_ok());
    for front in ["\r\n\r\n", "\n", "\r", " ", "\0", "\u{feff}"] {
        let head = format!("{front}{}", get(""));
        assert_eq!(RequestHead::parse(head.as_bytes(), 0).unwrap_err().status(), 400, "{front:?}");
    }
}

#[test]
fn first_lines_have_one_reading() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.1x",
        "GET / HTTPS/1.1",
        "GET / x HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\u{e4} HTTP/1.1",
        "GET /#a HTTP/1.1",
        "GET /\u{b}a HTTP/1.1",
        "G(T / HTTP/1.1",
        "get / HTTP/1.1",
        "head / HTTP/1.1",
        "DESCRIBE rtsp://good.test/ RTSP/1.0",
        "SOURCE /mount ICE/1.0",
        "GET * HTTP/1.1",
        "GET good.test HTTP/1.1",
        "GET good.test:80 HTTP/1.1",
        "",
    ] {
        let head = format!("{line}\r\nHost: good.test\r\n\r\n");
        assert_eq!(RequestHead::parse(head.as_bytes(), 0).unwrap_err().status(), 400, "{line:?}");
        // The error comes with the line, not with the blank one.
        let line = format!("{line}\r\n");
        if line.len() > 2 {
            assert_eq!(RequestHead::parse(line.as_bytes(), 0).unwrap_err().status(), 400, "{line:?}");
        }
    }
    let long = format!("{} / HTTP/1.1\r\nHost: good.test\r\n\r\n", "A".repeat(33));
    assert_eq!(flaw(&long), Flaw::MethodToken);
}

#[test]
fn other_versions_and_methods_are_told_apart_from_malformed_ones() {
    for line in ["GET / HTTP/1.2", "GET / HTTP/2.0", "GET / HTTP/0.9", "PRI / HTTP/2.0", "PRI * HTTP/2.1"] {
        let error = RequestHead::parse(format!("{line}\r\n").as_bytes(), 0).unwrap_err();
        assert_eq!((error, error.status()), (HeadError::Version, 505), "{line}");
    }
    let error = RequestHead::parse(b"PRI * HTTP/2.0\r\n", 0).unwrap_err();
    assert_eq!((error, error.reason()), (HeadError::Preface, crate::reason::Reason::H2c));
    for method in ["TRACE", "TRACK", "PURGE", "PRI"] {
        let error = parse(&format!("{method} / HTTP/1.1\r\nHost: good.test\r\n\r\n")).unwrap_err();
        assert_eq!((error, error.status()), (HeadError::Method, 405), "{method}");
    }
}

#[test]
fn framing_has_one_reading() {
    for lines in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked;a=b",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: identity",
        "Transfer-Encoding:",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 4",
        "Content-Length: +4",
        "Content-Length: -4",
        "Content-Length: 0x4",
        "Content-Length: 4 4",
        "Content-Length: 4.0",
        "Content-Length: 04",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
        "Content-Length: 99999999999999999999999999",
        "Content_Length: 4",
        "transfer_encoding: chunked",
    ] {
        assert_eq!(flaw(&get(&format!("{lines}\r\n"))), Flaw::Framing, "{lines:?}");
    }
    assert_eq!(flaw("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Flaw::Framing);
    assert_eq!(parse(&get("Transfer-Encoding: Chunked\r\n")).unwrap().body, Body::Chunked);
    assert_eq!(parse(&get("Content-Length: 18446744073709551615\r\n")).unwrap().body, Body::Length(u64::MAX));
    assert_eq!(parse(&get("Content-Length: 0\r\n")).unwrap().body, Body::Length(0));
}

#[test]
fn connect_has_no_body() {
    let head = |line| format!("CONNECT good.test:443 HTTP/1.1\r\nHost: good.test\r\n{line}\r\n\r\n");
    for line in ["Content-Length: 5", "Content-Length: 00", "Transfer-Encoding: chunked"] {
        assert_eq!(flaw(&head(line)), Flaw::Framing, "{line}");
    }
    assert_eq!(parse(&head("Content-Length: 0")).unwrap().body, Body::Length(0));
}

#[test]
fn host_stands_once_and_is_a_host() {
    assert_eq!(flaw("GET / HTTP/1.1\r\n\r\n"), Flaw::Host);
    assert_eq!(flaw("CONNECT good.test:443 HTTP/1.1\r\n\r\n"), Flaw::Host);
    assert_eq!(flaw(&get("Host: good.test\r\n")), Flaw::Host);
    for host in [
        "",
        "good.test, evil.test",
        "evil.test@good.test",
        "evil.test@good.test:80",
        "good.test/",
        "good.test evil.test",
        "http://good.test",
        "good.test:",
        "good.test:0",
        "good.test:+80",
        "good.test:080",
        "good.test:65616",
        "good.test:80:80",
        "good.test..",
        ".good.test",
        "127.1",
        "2130706433",
        "0x7f.1",
        "::1",
        "[::1",
        "[::1]x",
        "[good.test]",
        "*",
        "g\u{f6}d.test",
        "good.test#",
        "good.test\\evil.test",
    ] {
        assert_eq!(flaw(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), Flaw::Host, "{host:?}");
    }
}

#[test]
fn connect_targets_are_host_and_port() {
    for target in [
        "good.test",
        "good.test:",
        "good.test:0",
        "good.test:65979",
        "good.test:+443",
        "good.test:0443",
        "good.test:443/",
        "/",
        "*",
        "http://good.test:443",
        "http://good.test",
        "evil.test@good.test:443",
        "good.test:443,evil.test:443",
        "2001:db8::1:443",
        "[good.test]:443",
        "[::1",
        "2130706433:443",
        "0x7f.1:443",
        "127.0.0.1.:443",
        "good.test:443#",
        "good.test:443?a",
    ] {
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: good.test\r\n\r\n");
        assert_eq!(flaw(&head), Flaw::Target, "{target}");
    }
    let two = "CONNECT good.test:443 evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n";
    assert_eq!(flaw(two), Flaw::FirstLine);
}

#[test]
fn absolute_targets_are_http_without_userinfo() {
    for target in [
        "https://good.test/",
        "ftp://good.test/",
        "file:///etc/passwd",
        "gopher://good.test/",
        "wss://good.test/",
        "ws:/good.test/",
        "ws://",
        "ws://u@good.test/",
        "http:good.test",
        "http:/good.test/",
        "http:///path",
        "http://",
        "http://u@good.test/",
        "http://u:p@good.test/",
        "http://good.test:443@evil.test/",
        "http://good.test:/",
        "http://good.test:0/",
        "http://good.test:65616/",
        "http://good.test\\@evil.test/",
        "http://good.test#@evil.test/",
        "http://127.1/",
        "http://%67ood.test/",
        "//good.test/#",
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: good.test\r\n\r\n");
        assert_eq!(flaw(&head), Flaw::Target, "{target}");
    }
}

#[test]
fn target_and_host_name_the_same_place() {
    let mismatch = |target: &str, host: &str| {
        let method = if target.starts_with("http") { "GET" } else { "CONNECT" };
        parse(&format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).err() == Some(HeadError::NameMismatch)
    };
    for (target, host) in [
        ("http://good.test/", "evil.test"),
        ("http://good.test/", "good.test:8080"),
        ("http://good.test:8080/", "good.test"),
        ("http://203.0.113.7/", "good.test"),
        ("good.test:443", "evil.test"),
        ("good.test:443", "good.test:80"),
        ("[2001:db8::1]:443", "[2001:db8::2]"),
    ] {
        assert!(mismatch(target, host), "{target} {host}");
    }
    for (target, host) in [
        ("http://good.test/", "GOOD.test."),
        ("http://good.test/", "good.test:80"),
        ("http://good.test:80/", "good.test"),
        ("http://good.test:8080/", "good.test:8080"),
        ("HTTP://good.test/", "good.test"),
        ("good.test:443", "good.test"),
        ("good.test:443", "good.test:443"),
    ] {
        assert!(!mismatch(target, host), "{target} {host}");
    }
    let error = HeadError::NameMismatch;
    assert_eq!((error.status(), error.reason().as_str()), (400, "name_mismatch"));
}

#[test]
fn connection_drops_nothing_that_frames_or_routes() {
    for value in ["Host", "close, content-length", "transfer-encoding", "Content_Length", "Expect", "a b", "\"x\""] {
        assert_eq!(flaw(&get(&format!("Connection: {value}\r\n"))), Flaw::Connection, "{value}");
    }
    assert_eq!(flaw(&get(&format!("Connection: {}\r\n", "a,".repeat(40)))), Flaw::Connection);
    assert!(parse(&get("Connection: , close,,\r\n")).is_ok());
}

#[test]
fn only_100_continue_is_expected() {
    for lines in ["Expect: 200-ok", "Expect:", "Expect: 100-continue\r\nExpect: 100-continue"] {
        assert_eq!(flaw(&get(&format!("{lines}\r\n"))), Flaw::Expect, "{lines}");
    }
    assert!(!parse(&get("Expect: 100-continue\r\n")).unwrap().expect_continue);
    let old = "POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
    assert!(!parse(old).unwrap().expect_continue);
}

#[test]
fn websocket_is_the_only_upgrade() {
    let head = get("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x\r\n");
    assert_eq!(parse(&head).unwrap().upgrade, Some(Upgrade::WebSocket));
    assert!(rewritten(&head).ends_with("Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    for lines in [
        "Upgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n",
    ] {
        assert_eq!(flaw(&get(lines)), Flaw::Upgrade, "{lines}");
    }
    let post = get("Connection: Upgrade\r\nUpgrade: websocket\r\n").replace("GET", "POST");
    assert_eq!(flaw(&post), Flaw::Upgrade);
    let old = get("Connection: Upgrade\r\nUpgrade: websocket\r\n").replace("1.1", "1.0");
    assert_eq!(flaw(&old), Flaw::Upgrade);
    let h2c = get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, TLS/1.0\r\nHTTP2-Settings: AAM\r\n");
    assert_eq!(parse(&h2c).unwrap().upgrade, None);
    assert_eq!(rewritten(&h2c), get(""));
}

#[test]
fn heads_too_large_are_told_apart() {
    let exact = |extra: usize| {
        let frame = get("A: \r\n").len();
        get(&format!("A: {}\r\n", "x".repeat(MAX_HEAD - frame + extra)))
    };
    assert!(parse(&exact(0)).is_ok());
    assert_eq!(RequestHead::parse(exact(1).as_bytes(), 0), Err(HeadError::TooLarge));
    assert_eq!(RequestHead::parse(&[b'A'; MAX_HEAD], 0), Err(HeadError::TooLarge));
    assert_eq!(RequestHead::parse(&[b'A'; MAX_HEAD - 1], 0), Ok(Parsed::Partial));
    assert!(parse(&get(&"A: b\r\n".repeat(MAX_FIELDS - 1))).is_ok());
    assert_eq!(parse(&get(&"A: b\r\n".repeat(MAX_FIELDS))), Err(HeadError::TooLarge));
    assert_eq!((HeadError::TooLarge.status(), HeadError::TooLarge.reason().as_str()), (431, "malformed"));
}

#[test]
fn the_work_for_a_head_in_single_bytes_is_linear() {
    let head = get(&format!("A: {}\r\n", "x".repeat(16_000)));
    let start = std::time::Instant::now();
    assert!(in_pieces(head.as_bytes(), 0..head.len()).unwrap().is_some());
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

// --- what is written ----------------------------------------------------------------------------

#[test]
fn requests_go_on_in_origin_form_with_our_host_and_framing() {
    let head = "POST http://Good.test:80/a HTTP/1.1\r\nX-A: 1\r\nHost: good.test\r\nTRANSFER-encoding: Chunked\r\n\
                Trailer: Digest\r\nX-b: 2\r\n\r\n";
    assert_eq!(
        rewritten(head),
        "POST /a HTTP/1.1\r\nHost: good.test\r\nX-A: 1\r\nTrailer: Digest\r\nX-b: 2\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let head = "PUT http://good.test:8080?q HTTP/1.1\r\nHost: good.test:8080\r\nExpect: 100-continue\r\n\
                Content-Length: 3\r\nTrailer: Digest\r\n\r\n";
    assert_eq!(
        rewritten(head),
        "PUT /?q HTTP/1.1\r\nHost: good.test:8080\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    );
    assert_eq!(
        rewritten("OPTIONS http://good.test HTTP/1.1\r\nHost: good.test\r\n\r\n"),
        "OPTIONS * HTTP/1.1\r\nHost: good.test\r\n\r\n"
    );
    assert_eq!(
        rewritten("GET WS://good.test?a HTTP/1.1\r\nHost: good.test\r\n\r\n"),
        "GET /?a HTTP/1.1\r\nHost: good.test\r\n\r\n"
    );
    assert_eq!(rewritten("GET / HTTP/1.0\r\nA: b\r\n\r\n"), "GET / HTTP/1.0\r\nA: b\r\n\r\n");
    assert_eq!(
        rewritten("GET http://[2001:db8::1]/ HTTP/1.0\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n"
    );
}

#[test]
fn what_is_meant_for_the_proxy_stays_here() {
    let head = get(
        "Connection: X-Drop, keep-alive\r\nX-Drop: 1\r\nx-drop: 2\r\nKeep-Alive: timeout=5\r\nProxy-Connection: a\r\n\
         Proxy-Authorization: Basic eA==\r\nproxy-foo: a\r\nTE: trailers\r\nTrailer: A\r\nX-Keep: 3\r\n",
    );
    assert_eq!(rewritten(&head), get("X-Keep: 3\r\n"));
}
