use super::*;

fn answer(head: &str) -> Result<ResponseHead<'_>, HeadError> {
    match ResponseHead::parse(head.as_bytes(), 0)? {
        Parsed::Complete { head: parsed, len } => {
            assert_eq!(len, head.len());
            Ok(parsed)
        }
        Parsed::Partial => panic!("partial: {head:?}"),
    }
}

pub(super) const GUEST: Downstream = Downstream { version: Version::Http11, keep_alive: true };
pub(super) const OLD_GUEST: Downstream = Downstream { version: Version::Http10, keep_alive: true };

fn forwarded(head: &str, to: Downstream) -> (String, Sent) {
    let head = answer(head).unwrap();
    let mut out = Vec::new();
    let sent = head.write_response(head.body_for(b"GET"), to, &mut out);
    (String::from_utf8(out).unwrap(), sent)
}

#[test]
fn response_bodies_are_framed_by_rfc_9112() {
    let body = |head: &str, method: &str| answer(head).unwrap().body_for(method.as_bytes());
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(body(length, "GET"), ResponseBody::Length(5));
    assert_eq!(body(length, "HEAD"), ResponseBody::None);
    assert_eq!(body(length, "CONNECT"), ResponseBody::None);
    assert_eq!(body("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET"), ResponseBody::Chunked);
    assert_eq!(body("HTTP/1.1 200 OK\r\n\r\n", "GET"), ResponseBody::UntilClose);
    assert_eq!(body("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "GET"), ResponseBody::Length(0));
    assert_eq!(body("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET"), ResponseBody::None);
    assert_eq!(body("HTTP/1.1 204 No Content\r\n\r\n", "GET"), ResponseBody::None);
    assert_eq!(body("HTTP/1.1 100 Continue\r\n\r\n", "GET"), ResponseBody::None);
}

#[test]
fn responses_that_could_be_framed_in_two_ways_are_refused() {
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "A : b",
        "A: b\r\n c",
        "A: b\nB: c",
        "A: b\0",
        "Connection: content-length",
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n");
        assert!(ResponseHead::parse(head.as_bytes(), 0).is_err(), "{lines:?}");
    }
    for head in [
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 099 x\r\n\r\n",
        "HTTP/1.1 600 x\r\n\r\n",
        "HTTP/1.1 20 x\r\n\r\n",
        "HTTP/1.1 2000 x\r\n\r\n",
        "HTTP/1.1  200 x\r\n\r\n",
        "HTTP/1.1 +20 x\r\n\r\n",
        "HTTP/1.1 200 \x1b[2J\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\n",
    ] {
        assert!(ResponseHead::parse(head.as_bytes(), 0).is_err(), "{head:?}");
    }
    let fields = "A: b\r\n".repeat(MAX_RESPONSE_FIELDS + 1);
    assert_eq!(answer(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")), Err(HeadError::TooLarge));
    assert_eq!(ResponseHead::parse(&[b'A'; MAX_RESPONSE_HEAD], 0), Err(HeadError::TooLarge));
}

#[test]
fn responses_keep_what_is_end_to_end_in_order() {
    let head = "HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nProxy-Status: forged\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
                set-cookie: b\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\nSet-Cookie: c\r\n\r\n";
    let (text, sent) = forwarded(head, GUEST);
    assert_eq!(
        text,
        "HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nset-cookie: b\r\nSet-Cookie: c\r\nContent-Length: 2\r\n\r\n"
    );
    assert_eq!(sent, Sent { body: ResponseBody::Length(2), keep_alive: true });
    assert!(!answer(head).unwrap().keep_alive(b"GET"));
    assert_eq!(
        forwarded("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", GUEST).0,
        "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"
    );
}

#[test]
fn a_guest_with_http_1_0_gets_chunked_bodies_until_close() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Digest\r\n\r\n";
    assert_eq!(
        forwarded(head, OLD_GUEST),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned(),
            Sent { body: ResponseBody::UntilClose, keep_alive: false }
        )
    );
    assert_eq!(
        forwarded(head, GUEST),
        (
            "HTTP/1.1 200 OK\r\nTrailer: Digest\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            Sent { body: ResponseBody::Chunked, keep_alive: true }
        )
    );
    let (text, sent) = forwarded("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", OLD_GUEST);
    assert!(text.ends_with("Connection: keep-alive\r\n\r\n") && sent.keep_alive);
    let (text, sent) = forwarded("HTTP/1.1 200 OK\r\n\r\n", GUEST);
    assert!(text.ends_with("Connection: close\r\n\r\n") && !sent.keep_alive);
}

#[test]
fn switching_protocols_is_to_websocket_or_to_nothing() {
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-A: b\r\n\r\n";
    assert_eq!(answer(head).unwrap().upgrade, Some(Upgrade::WebSocket));
    let (text, _) = forwarded(head, GUEST);
    assert_eq!(
        text,
        "HTTP/1.1 101 Switching Protocols\r\nSec-A: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    for lines in ["", "Upgrade: h2c\r\nConnection: Upgrade\r\n", "Upgrade: websocket\r\n"] {
        assert_eq!(answer(&format!("HTTP/1.1 101 x\r\n{lines}\r\n")).unwrap().upgrade, None, "{lines}");
    }
    let ok = "HTTP/1.1 200 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(answer(ok).unwrap().upgrade, None);
    assert!(answer("HTTP/1.1 103 Early Hints\r\n\r\n").unwrap().is_interim());
    assert_eq!(forwarded("HTTP/1.1 100 Continue\r\n\r\n", GUEST).0, "HTTP/1.1 100 Continue\r\n\r\n");
}

#[test]
fn a_cr_in_a_status_line_outweighs_its_version() {
    let head = b"HTTP/0.1 101 a\rb\r\n";
    assert_eq!(ResponseHead::parse(head, 0).unwrap_err().status(), 400);
    assert_eq!(ResponseHead::parse(&head[..16], 15).unwrap_err().status(), 400);
}
