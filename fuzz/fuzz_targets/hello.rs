//! ClientHellos: neither segments nor records change what is seen, and rustls sees the same. The first
//! byte chooses the split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate_proto::identify::Parsed;
use outgate_proto::identify::hello::{
    ClientHello, ClientRecords, Flight, Forwardable, Hello, HelloError, MAX_HELLO, MAX_HELLO_STREAM, ServerFlight,
};

fuzz_target!(|data: &[u8]| {
    let Some((choice, stream)) = data.split_first() else { return };
    let size = usize::from(*choice) + 1;
    let whole = parse(stream);
    assert_eq!(in_pieces(stream, size), whole);
    assert!(stream.len() < MAX_HELLO_STREAM || whole != Ok(None));
    check_records(stream, size, &whole);
    check_rustls(stream, &whole);
    // The same bytes as the inside of one record: so the fuzzer need not find lengths.
    if (1..=MAX_HELLO).contains(&stream.len()) {
        let framed = record(stream);
        let whole = parse(&framed);
        assert_eq!(in_pieces(&framed, size), whole);
        check_rustls(&framed, &whole);
    }
    check_watchers(stream, size);
});

type Outcome = Result<Option<ClientHello>, HelloError>;

fn parse(stream: &[u8]) -> Outcome {
    Ok(match Hello::parse(stream)? {
        Parsed::Complete { head, len } => {
            assert!(len == head.len && len <= stream.len());
            Some(head)
        }
        Parsed::Partial => None,
    })
}

fn in_pieces(stream: &[u8], size: usize) -> Outcome {
    let mut reader = Hello::new();
    for end in (size..stream.len()).step_by(size).chain([stream.len()]) {
        if let Parsed::Complete { head, .. } = reader.advance(&stream[..end])? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("at most 2^14").to_be_bytes();
    [&[22, 3, 1], length.as_slice(), payload].concat()
}

/// The same message in records of another size shows the same.
fn check_records(stream: &[u8], size: usize, whole: &Outcome) {
    let Ok(Some(hello)) = whole else { return };
    let mut message = Vec::new();
    let mut rest = &stream[..hello.len];
    while let [_, _, _, high, low, payload @ ..] = rest {
        let (payload, next) = payload.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend_from_slice(payload);
        rest = next;
    }
    let split: Vec<u8> = message.chunks(size).flat_map(record).collect();
    let expected = ClientHello { len: split.len(), ..hello.clone() };
    assert_eq!(parse(&split), Ok(Some(expected)));
}

/// Whatever rustls refuses we refuse, and where both take a hello they see one name.
fn check_rustls(stream: &[u8], whole: &Outcome) {
    let Ok(Some(hello)) = whole else { return };
    let mut rest = &stream[..hello.len];
    let mut acceptor = rustls::server::Acceptor::default();
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).expect("a slice can be read");
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello_of_rustls = accepted.client_hello();
                let name = hello_of_rustls.server_name().map(|name| name.trim_end_matches('.'));
                assert_eq!(name, hello.sni.as_ref().map(|name| name.as_str()));
                assert!(rest.is_empty());
                return;
            }
            Ok(None) => {}
            // It does not serve what it could read, or it looked inside ECH.
            Err((rustls::Error::PeerIncompatible(_), _)) => return,
            Err(_) if hello.ech => return,
            Err((error, _)) => panic!("rustls refuses: {error}"),
        }
    }
    panic!("rustls wants more");
}

fn check_watchers(stream: &[u8], size: usize) {
    let mut pieces = ServerFlight::new();
    let last = stream.chunks(size).map(|piece| pieces.push(piece)).last().unwrap_or(Flight::NeedMore);
    assert_eq!(last, ServerFlight::new().push(stream));

    let whole = ClientRecords::new().advance(stream);
    let mut records = ClientRecords::new();
    let mut passed = 0;
    for piece in stream.chunks(size) {
        match records.advance(piece) {
            Ok(Forwardable::All) => passed += piece.len(),
            Ok(Forwardable::UpTo(at)) => {
                assert_eq!(whole, Ok(Forwardable::UpTo(passed + at)));
                return;
            }
            Err(error) => {
                assert_eq!(whole, Err(error));
                return;
            }
        }
    }
    assert_eq!(whole, Ok(Forwardable::All));
}
