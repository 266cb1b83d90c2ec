//! Refusals as HTTP/1.1 answers.

use crate::reason::{Reason, Why};
use crate::target::Target;
use std::io::Write;

/// Answers HTTP/2 in clear with HTTP/1.1, which its clients treat as the end at once. A GOAWAY could carry the
/// reason, but gRPC then retries for as long as its caller waits, and its C core (1.85) aborts the process on a
/// GOAWAY with HTTP_1_1_REQUIRED.
pub(super) fn to_http2(why: Why) -> Vec<u8> {
    refusal(why, None, &[], true)
}

/// A whole HTTP/1.1 answer: status, Proxy-Status (RFC 9209) and a body in JSON, or in HTML where the request's
/// Accept prefers it. `head` is the request's head as received. It is only searched for Accept, so it may be
/// cut or malformed.
pub(super) fn refusal(why: Why, target: Option<&Target>, head: &[u8], close: bool) -> Vec<u8> {
    with_status(why, why.reason.http_status(), target, head, close)
}

/// As [`refusal`], with an explicit status (405, 431, 505 for malformed heads).
pub(super) fn with_status(why: Why, status: u16, target: Option<&Target>, head: &[u8], close: bool) -> Vec<u8> {
    answer(why, (status, &why.message()), target, head, close)
}

/// The answer to a client that sends HTTP in clear to a TLS port.
pub(super) fn to_clear_text(head: &[u8]) -> Vec<u8> {
    let message = "TLS is spoken on this port; write the proxy as https://host:port.";
    answer(Reason::Malformed.into(), (Reason::Malformed.http_status(), message), None, head, true)
}

fn answer(why: Why, (status, message): (u16, &str), target: Option<&Target>, head: &[u8], close: bool) -> Vec<u8> {
    let reason = why.reason;
    let destination = target.map(Target::to_string).unwrap_or_default();
    let (kind, body) = if prefers_html(head) {
        ("text/html; charset=utf-8", html(reason, message, &destination))
    } else {
        ("application/json", json(reason, message, &destination))
    };
    let mut answer = Vec::with_capacity(512);
    let connection = if close { "close" } else { "keep-alive" };
    // Writing to a Vec cannot fail.
    let _ = write!(
        answer,
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Proxy-Status: outgate; error={}; details=\"{reason}\"\r\nConnection: {connection}\r\n\r\n{body}",
        phrase(status),
        body.len(),
        why.proxy_error(),
    );
    answer
}

/// The part of an answer made here that the request takes: the answer to HEAD omits the body that its length describes
/// (RFC 9110 §9.3.2).
pub(super) fn for_method<'a>(answer: &'a [u8], request: &[u8]) -> &'a [u8] {
    if !request.starts_with(b"HEAD ") {
        return answer;
    }
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    answer.get(..head).unwrap_or(answer)
}

fn json(reason: Reason, message: &str, destination: &str) -> String {
    // A destination is a canonical host and port or empty: nothing in it needs escaping.
    format!("{{\"reason\":\"{reason}\",\"destination\":\"{destination}\",\"message\":\"{message}\"}}\n")
}

fn html(reason: Reason, message: &str, destination: &str) -> String {
    let to =
        if destination.is_empty() { String::new() } else { format!("<p>Destination: <code>{destination}</code></p>") };
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Refused by outgate</title>\
         <h1>Refused by outgate</h1><p>{message}</p>{to}<p>Reason: <code>{reason}</code></p></html>\n"
    )
}

/// Does the Accept header name text/html, and name it before any application/json?
fn prefers_html(head: &[u8]) -> bool {
    let Some(accept) = head.split(|b| *b == b'\n').find_map(accept_value) else { return false };
    let accept = accept.to_ascii_lowercase();
    let find = |what: &[u8]| accept.windows(what.len()).position(|window| window == what);
    match (find(b"text/html"), find(b"application/json")) {
        (Some(html), Some(json)) => html < json,
        (Some(_), None) => true,
        _ => false,
    }
}

fn accept_value(line: &[u8]) -> Option<&[u8]> {
    let (name, value) = line.split_at_checked(7)?;
    name.eq_ignore_ascii_case(b"accept:").then_some(value)
}

/// The reason phrases of the statuses used here (RFC 9110 §15, RFC 6585).
const fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_answer_says_why_in_status_header_and_body() {
        let target = Target::parse(b"evil.test:443", None).unwrap();
        let answer = refusal(Reason::NotWhitelisted.into(), Some(&target), b"CONNECT evil.test:443 HTTP/1.1\r\n", true);
        let (head, body) = text(&answer).split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"));
        assert!(head.contains("Proxy-Status: outgate; error=http_request_denied; details=\"not_whitelisted\""));
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["reason"], "not_whitelisted");
        assert_eq!(body["destination"], "evil.test:443");
    }

    #[test]
    fn browsers_get_a_page() {
        let browser = b"GET / HTTP/1.1\r\nAccept: text/html,application/xhtml+xml,*/*;q=0.8\r\n\r\n";
        assert!(text(&refusal(Reason::Ech.into(), None, browser, true)).contains("text/html; charset=utf-8"));
        for other in [&b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff\n\n"] {
            assert!(text(&refusal(Reason::Ech.into(), None, other, true)).contains("application/json"));
        }
    }

    #[test]
    fn every_reason_has_a_status_with_a_phrase() {
        for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::None) {
            assert_ne!(phrase(reason.http_status()), "Error", "{reason}");
        }
    }
}
