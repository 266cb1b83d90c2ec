//! HTTP heads: no split changes the outcome, and what is written reads as what was read. The first
//! byte chooses the split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate_proto::identify::http::{
    Body, Downstream, HeadError, MAX_FIELDS, MAX_HEAD, Parsed, RequestHead, ResponseHead, Version,
};
use outgate_proto::identify::{Sniff, sniff};

fuzz_target!(|data: &[u8]| {
    let Some((choice, stream)) = data.split_first() else { return };
    check_request(stream, usize::from(*choice) + 1);
    check_response(stream, usize::from(*choice) + 1);
});

/// The outcome of a head that comes in pieces of `size` bytes.
fn in_pieces<T>(
    stream: &[u8],
    size: usize,
    read: impl Fn(&[u8], usize) -> Result<Option<T>, HeadError>,
) -> Result<Option<T>, HeadError> {
    let mut scanned = 0;
    while scanned < stream.len() {
        let end = stream.len().min(scanned + size);
        if let Some(outcome) = read(&stream[..end], scanned)? {
            return Ok(Some(outcome));
        }
        scanned = end;
    }
    Ok(None)
}

/// A flaw may be told from another by the split, but not by the guest.
fn seen<T>(outcome: Result<T, HeadError>) -> Result<T, (u16, outgate_proto::reason::Reason)> {
    outcome.map_err(|error| (error.status(), error.reason()))
}

fn request(stream: &[u8], scanned: usize) -> Result<Option<(Vec<u8>, usize, bool)>, HeadError> {
    Ok(match RequestHead::parse(stream, scanned)? {
        Parsed::Complete { head, len } => {
            let mut out = Vec::new();
            head.write_request(&mut out);
            Some((out, len, head.keep_alive))
        }
        Parsed::Partial => None,
    })
}

fn check_request(stream: &[u8], size: usize) {
    assert_eq!(seen(in_pieces(stream, size, request)), seen(request(stream, 0)));
    let Ok(Parsed::Complete { head, len }) = RequestHead::parse(stream, 0) else { return };
    assert_eq!(sniff(stream), Sniff::Http);
    assert!(stream[..len].ends_with(b"\r\n\r\n"));
    assert!(head.version == Version::Http10 || head.host.is_some());
    assert!(head.method != b"CONNECT" || head.body == Body::None);
    let mut first = Vec::new();
    head.write_request(&mut first);
    // Our own fields and spaces come on top of what may have been at the limits.
    if head.fields.len() + 2 > MAX_FIELDS || first.len() > MAX_HEAD {
        return;
    }
    let again = match RequestHead::parse(&first, 0) {
        Ok(Parsed::Complete { head, len }) if len == first.len() => head,
        other => panic!("{}: {other:?}", first.escape_ascii()),
    };
    assert_eq!(again.method, head.method);
    assert_eq!(again.destination(80), head.destination(80));
    assert_eq!((again.body, again.upgrade, again.expect_continue), (head.body, head.upgrade, head.expect_continue));
    for field in &again.fields {
        let name = field.name.to_ascii_lowercase();
        assert!(!name.starts_with(b"proxy-") && !matches!(name.as_slice(), b"te" | b"keep-alive"));
    }
    let mut second = Vec::new();
    again.write_request(&mut second);
    assert_eq!(first, second);
}

fn response(stream: &[u8], scanned: usize) -> Result<Option<(Vec<u8>, usize)>, HeadError> {
    const GUEST: Downstream = Downstream { version: Version::Http11, keep_alive: true };
    Ok(match ResponseHead::parse(stream, scanned)? {
        Parsed::Complete { head, len } => {
            let mut out = Vec::new();
            let sent = head.write_response(head.body_for(b"GET"), GUEST, &mut out);
            match ResponseHead::parse(&out, 0) {
                Ok(Parsed::Complete { head: again, len }) => {
                    assert_eq!((len, again.status), (out.len(), head.status));
                    assert_eq!(again.body_for(b"GET"), sent.body);
                }
                other => panic!("{}: {other:?}", out.escape_ascii()),
            }
            Some((out, len))
        }
        Parsed::Partial => None,
    })
}

fn check_response(stream: &[u8], size: usize) {
    // Whatever the flaw of an answer, the guest sees a 502.
    assert_eq!(in_pieces(stream, size, response).map_err(drop), response(stream, 0).map_err(drop));
}
