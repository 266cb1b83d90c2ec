use super::*;
use proptest::prelude::*;

/// Captured with curl 7.88, Python 3.11 and `openssl s_client` 3.0 asking for `good.test`; the
/// post-quantum one is the latter with the key share of X25519MLKEM768 and padding put in.
const CAPTURED: [(&str, &[u8], Option<&str>); 6] = [
    ("curl", include_bytes!("../../../tests/data/hello-curl.bin"), Some("good.test")),
    ("openssl 1.3", include_bytes!("../../../tests/data/hello-openssl-tls13.bin"), Some("good.test")),
    ("openssl 1.2", include_bytes!("../../../tests/data/hello-openssl-tls12.bin"), Some("good.test")),
    ("no name", include_bytes!("../../../tests/data/hello-openssl-no-name.bin"), None),
    ("python", include_bytes!("../../../tests/data/hello-python.bin"), Some("good.test")),
    ("post-quantum", include_bytes!("../../../tests/data/hello-postquantum.bin"), Some("good.test")),
];
/// Whole captured flights: a handshake with HelloRetryRequest, and plain ones.
const RETRY_CLIENT: &[u8] = include_bytes!("../../../tests/data/retry-client.bin");
const RETRY_SERVER: &[u8] = include_bytes!("../../../tests/data/retry-server.bin");
const TLS13_CLIENT: &[u8] = include_bytes!("../../../tests/data/tls13-client.bin");
const TLS13_SERVER: &[u8] = include_bytes!("../../../tests/data/tls13-server.bin");
const TLS12_CLIENT: &[u8] = include_bytes!("../../../tests/data/tls12-client.bin");
const TLS12_SERVER: &[u8] = include_bytes!("../../../tests/data/tls12-server.bin");

const CURL: &[u8] = CAPTURED[0].1;

fn vec8(data: &[u8]) -> Vec<u8> {
    [&[u8::try_from(data.len()).unwrap()], data].concat()
}

fn vec16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().as_slice(), &vec16(data)].concat()
}

fn entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind], vec16(name).as_slice()].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &vec16(&entry(0, name)))
}

fn sigalgs() -> Vec<u8> {
    extension(13, &vec16(&[4, 3, 8, 4]))
}

/// A ClientHello message with these extensions.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(vec8(&[9; 32]));
    body.extend(vec16(&[0x13, 1, 0xc0, 0x2f]));
    body.extend(vec8(&[0]));
    body.extend(vec16(&extensions.concat()));
    handshake(1, &body)
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1], vec16(payload).as_slice()].concat()
}

/// The message in records of `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|part| record(22, part)).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    record(22, &message(extensions))
}

fn parse(stream: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    Ok(match Hello::parse(stream)? {
        Parsed::Complete { head, len } => {
            assert_eq!(len, head.len);
            Some(head)
        }
        Parsed::Partial => None,
    })
}

/// As [`parse`], with the bytes in pieces that end at `cuts`.
fn parse_in_pieces(stream: &[u8], cuts: impl Iterator<Item = usize>) -> Result<Option<ClientHello>, HelloError> {
    let mut reader = Hello::new();
    for cut in cuts.chain([stream.len()]) {
        if let Parsed::Complete { head, .. } = reader.advance(&stream[..cut.min(stream.len())])? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn name(stream: &[u8]) -> Result<Option<String>, HelloError> {
    Ok(parse(stream)?.expect("a whole hello").sni.map(|name| name.to_string()))
}

fn payload(stream: &[u8]) -> &[u8] {
    &stream[RECORD_HEADER..]
}

#[test]
fn hellos_of_real_clients_are_read() {
    for (client, stream, expected) in CAPTURED {
        let hello = parse(stream).unwrap().expect(client);
        assert_eq!(hello.sni.as_ref().map(HostName::as_str), expected, "{client}");
        assert_eq!((hello.ech, hello.len), (false, stream.len()), "{client}");
        assert!(looks_like_tls(stream));
    }
}

#[test]
fn a_hello_of_rustls_is_read() {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(config.into(), "good.test".try_into().unwrap()).unwrap();
    let mut stream = Vec::new();
    client.write_tls(&mut stream).unwrap();
    assert_eq!(name(&stream).unwrap().unwrap(), "good.test");
}

#[test]
fn records_and_segments_of_any_size_give_the_same_hello() {
    for (client, stream, _) in CAPTURED {
        let whole = parse(stream).unwrap().unwrap();
        for size in [1, 2, 3, 4, 5, 7, 64, 100, 253] {
            let split = records(payload(stream), size);
            let expected = ClientHello { len: split.len(), ..whole.clone() };
            assert_eq!(parse(&split).unwrap().as_ref(), Some(&expected), "{client} in records of {size}");
            assert_eq!(parse_in_pieces(&split, 0..split.len()).unwrap().as_ref(), Some(&expected), "{client}");
        }
        assert_eq!(parse_in_pieces(stream, 0..stream.len()).unwrap(), Some(whole), "{client}");
        assert_eq!(parse(&stream[..stream.len() - 1]).unwrap(), None, "{client}");
    }
}

#[test]
fn what_follows_the_hello_is_left_alone() {
    let early = [CURL, &record(20, &[1]), &record(23, &[0; 40])].concat();
    assert_eq!(parse(&early).unwrap().unwrap().len, CURL.len());
    let next = [CURL, &record(22, &[20, 0, 0, 0])].concat();
    assert_eq!(parse(&next).unwrap().unwrap().len, CURL.len());
}

#[test]
fn great_hellos_pass_up_to_the_cap() {
    for size in [1_800, 8_000, 15_000, MAX_HELLO] {
        let rest = size - message(&[sni(b"good.test"), extension(21, &[])]).len();
        let message = message(&[extension(21, &vec![0; rest]), sni(b"good.test")]);
        assert_eq!(message.len(), size);
        for record_size in [size, 1_200, 1] {
            let stream = records(&message, record_size);
            assert!(stream.len() <= MAX_HELLO_STREAM);
            assert_eq!(name(&stream).unwrap().unwrap(), "good.test", "{size} in records of {record_size}");
        }
    }
}

#[test]
fn a_hello_over_the_cap_is_refused_by_its_first_bytes() {
    let header = |length: usize| [&[1u8], &u32::try_from(length).unwrap().to_be_bytes()[1..]].concat();
    assert_eq!(parse(&record(22, &header(0xff_ffff))), Err(HelloError::TooLong));
    assert_eq!(parse(&record(22, &header(MAX_HELLO - 3))), Err(HelloError::TooLong));
    assert_eq!(parse(&record(22, &header(MAX_HELLO - 4))).unwrap(), None);
    assert_eq!(parse(&records(&header(0xff_ffff), 1)), Err(HelloError::TooLong));
}

#[test]
fn the_work_for_a_hello_in_single_bytes_is_linear() {
    let filler = vec![0; 16_000];
    let stream = records(&message(&[extension(21, &filler), sni(b"good.test")]), 1);
    let start = std::time::Instant::now();
    assert!(parse_in_pieces(&stream, 0..stream.len()).unwrap().is_some());
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn streams_that_start_with_something_else_are_refused() {
    let message = message(&[sni(b"good.test")]);
    for kind in [0, 20, 21, 23, 24, 0x80] {
        let stream = [record(kind, &[1, 0]), record(22, &message)].concat();
        assert_eq!(parse(&stream), Err(HelloError::NotHandshake), "{kind}");
    }
    for stream in ["GET / HTTP/1.1\r\n", "SSH-2.0-x\r\n", "\u{16}\u{2}\u{1}"] {
        assert_eq!(parse(stream.as_bytes()), Err(HelloError::NotHandshake), "{stream:?}");
    }
    // SSLv2.
    assert_eq!(parse(&[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10]), Err(HelloError::NotHandshake));
    assert_eq!(parse(&[22, 3, 1, 0, 0]), Err(HelloError::RecordLength));
    assert_eq!(parse(&[22, 3, 1, 0x40, 1]), Err(HelloError::RecordLength));
    assert_eq!(parse(&record(22, &handshake(2, &[0; 40]))), Err(HelloError::NotHello));
    assert_eq!(parse(b"\x16\x03\x01\x02\x00random garbage"), Err(HelloError::NotHello));
    let pause = [record(22, &message[..50]), record(22, &[]), record(22, &message[50..])].concat();
    assert_eq!(parse(&pause), Err(HelloError::RecordLength));
    let alert = [record(22, &message[..50]), record(21, &[1, 0]), record(22, &message[50..])].concat();
    assert_eq!(parse(&alert), Err(HelloError::NotHandshake));
}

#[test]
fn bytes_behind_the_hello_in_its_record_are_refused() {
    let message = message(&[sni(b"good.test")]);
    let trailing = [message.as_slice(), &[0]].concat();
    assert_eq!(parse(&record(22, &trailing)), Err(HelloError::Structure));
    let two = [message.as_slice(), &super::tests::message(&[sni(b"evil.test")])].concat();
    assert_eq!(parse(&record(22, &two)), Err(HelloError::Structure));
    assert_eq!(parse(&records(&two, 100)), Err(HelloError::Structure));
    // Known from the header on, before the rest arrives.
    assert_eq!(parse(&record(22, &trailing)[..20]), Err(HelloError::Structure));
}

#[test]
fn exactly_one_host_name_is_taken() {
    let names = |entries: &[Vec<u8>]| hello(&[extension(0, &vec16(&entries.concat())), sigalgs()]);
    let good = entry(0, b"good.test");
    let evil = entry(0, b"evil.test");
    assert!(parse(&names(std::slice::from_ref(&good))).is_ok());
    for entries in [
        &[][..],
        &[good.clone(), evil.clone()],
        &[evil.clone(), good.clone()],
        &[good.clone(), good.clone()],
        &[entry(7, b"good.test")],
        &[entry(7, b"x"), good.clone()],
        &[good.clone(), entry(7, b"x")],
        &[good.clone(), vec![0]],
        &[entry(0, b"")],
    ] {
        let error = parse(&names(entries)).unwrap_err();
        assert!(matches!(error, HelloError::NameList | HelloError::Structure), "{entries:?}: {error}");
    }
    for data in [&[][..], &[0], &[0, 3, 0, 0], &[0, 4, 0, 0, 1, b'a', 0], &[0, 12, 0, 0, 8]] {
        assert!(parse(&hello(&[extension(0, data)])).is_err(), "{data:?}");
    }
}

#[test]
fn an_extension_stands_once_wherever_it_is() {
    let twice = [sni(b"good.test"), sigalgs(), sni(b"good.test")];
    assert_eq!(parse(&hello(&twice)), Err(HelloError::Extensions));
    let unknown = [extension(0x0a0a, &[]), sni(b"good.test"), extension(0x0a0a, &[])];
    assert_eq!(parse(&hello(&unknown)), Err(HelloError::Extensions));
    let many: Vec<_> = (100..300).map(|kind| extension(kind, &[])).collect();
    assert_eq!(parse(&hello(&many)), Err(HelloError::Extensions));
}

#[test]
fn names_normalise_or_are_refused() {
    assert_eq!(name(&hello(&[sni(b"GOOD.Test.")])).unwrap().unwrap(), "good.test");
    assert_eq!(name(&hello(&[sni(b"a_b.r3---x.test")])).unwrap().unwrap(), "a_b.r3---x.test");
    let long = vec![b'a'; 64];
    let longer = "abcdefgh.".repeat(33);
    for bad in [
        b"evil.test\0.good.test".as_slice(),
        b"good.test..",
        b".good.test",
        b".",
        b"good test",
        b"good.test\r\n",
        b"*.good.test",
        b"good.test:443",
        b"g\xc3\xb6\xc3\xb6d.test",
        b"\xff.test",
        b"%67ood.test",
        b"203.0.113.66",
        b"::1",
        b"[::1]",
        b"2130706433",
        b"0x7f.1",
        b"127.1",
        &long,
        longer.as_bytes(),
    ] {
        assert!(matches!(parse(&hello(&[sni(bad)])), Err(HelloError::Name(_))), "{}", bad.escape_ascii());
    }
}

#[test]
fn ech_shows_in_every_form() {
    let outer = [&[0, 0, 1, 0, 1, 5][..], &vec16(&[1; 32]), &vec16(&[2; 100])].concat();
    for (kind, data) in [(0xfe0d, outer.as_slice()), (0xfe0d, &[]), (0xfe0d, &[1]), (0xfe0d, &[9; 3]), (0xffce, &[1])] {
        let hello = parse(&hello(&[sni(b"good.test"), extension(kind, data)])).unwrap().unwrap();
        assert!(hello.ech, "{kind:x}");
        assert_eq!(hello.sni.unwrap().as_str(), "good.test");
    }
    assert!(!parse(&hello(&[sni(b"good.test")])).unwrap().unwrap().ech);
}

#[test]
fn what_belongs_into_an_encrypted_hello_is_refused_in_the_clear() {
    let outer = extension(0xfd00, &[2, 0, 10]);
    assert_eq!(parse(&hello(&[sni(b"good.test"), outer])), Err(HelloError::Structure));
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let sound = message(&[sni(b"good.test"), sigalgs()]);
    // Every length byte, one off: session id, suites, compression, extensions, and those inside.
    let body = HANDSHAKE_HEADER + 2 + 32;
    for at in [body, body + 34, body + 39, body + 42, body + 46, body + 48, body + 51] {
        for delta in [1, 255] {
            let mut broken = sound.clone();
            broken[at] = broken[at].wrapping_add(delta);
            assert!(parse(&record(22, &broken)).is_err(), "byte {at} by {delta}");
        }
    }
    let psk = extension(41, &[vec16(&[vec16(&[1; 8]), vec![0; 4]].concat()), vec16(&vec8(&[2; 32]))].concat());
    assert!(parse(&hello(&[sni(b"good.test"), psk.clone()])).is_ok());
    assert_eq!(parse(&hello(&[psk, sni(b"good.test")])), Err(HelloError::Structure));
}

#[test]
fn a_hello_without_extensions_names_nothing() {
    let mut message = message(&[]);
    message.truncate(message.len() - 2);
    message[3] -= 2;
    assert_eq!(name(&record(22, &message)).unwrap(), None);
}

// --- the second hello ---------------------------------------------------------------------------

fn flight(bytes: &[u8], piece: usize) -> Flight {
    let mut watcher = ServerFlight::new();
    bytes.chunks(piece).map(|part| watcher.push(part)).last().unwrap_or(Flight::NeedMore)
}

#[test]
fn a_hello_retry_request_is_told_from_a_server_hello() {
    for piece in [1, 2, 5, 17, 10_000] {
        assert_eq!(flight(RETRY_SERVER, piece), Flight::HelloRetryRequest, "pieces of {piece}");
        assert_eq!(flight(TLS13_SERVER, piece), Flight::Other, "pieces of {piece}");
        assert_eq!(flight(TLS12_SERVER, piece), Flight::Other, "pieces of {piece}");
    }
    assert_eq!(flight(&RETRY_SERVER[..40], 1), Flight::NeedMore);
    assert_eq!(flight(b"HTTP/1.1 400 Bad Request\r\n\r\n", 1), Flight::Other);
    assert_eq!(flight(&[], 1), Flight::NeedMore);
}

#[test]
fn a_retry_shows_behind_alerts_and_in_records_of_any_size() {
    let message = payload(RETRY_SERVER).get(..usize::from(RETRY_SERVER[4])).unwrap();
    for size in [1, 3, 40] {
        let stream = [record(21, &[1, 112]), record(20, &[1]), records(message, size)].concat();
        assert_eq!(flight(&stream, 1), Flight::HelloRetryRequest);
        assert_eq!(flight(&stream, stream.len()), Flight::HelloRetryRequest);
    }
    assert_eq!(flight(&record(22, &handshake(0, &[])), 1), Flight::Other);
}

#[test]
fn a_server_that_sends_alerts_without_end_counts_as_a_retry() {
    assert_eq!(flight(&record(21, &[1, 0]).repeat(600), 100), Flight::HelloRetryRequest);
    assert_eq!(flight(&record(20, &[]).repeat(2_000), 100), Flight::HelloRetryRequest);
}

#[test]
fn the_client_is_held_at_its_next_handshake_record() {
    for (client, ccs) in [(RETRY_CLIENT, 6), (TLS12_CLIENT, 0)] {
        let first = parse(client).unwrap().unwrap().len;
        let rest = &client[first..];
        assert_eq!(ClientRecords::new().advance(rest), Ok(Forwardable::UpTo(ccs)));
        let mut records = ClientRecords::new();
        for at in 0..rest.len() {
            let expected = if at < ccs { Forwardable::All } else { Forwardable::UpTo(0) };
            assert_eq!(records.advance(&rest[at..=at]), Ok(expected), "byte {at}");
        }
    }
    let retry = parse(RETRY_CLIENT).unwrap().unwrap().len;
    let second = parse(&RETRY_CLIENT[retry + 6..]).unwrap().unwrap();
    assert_eq!(second.sni.unwrap().as_str(), "good.test");
    let first = parse(TLS13_CLIENT).unwrap().unwrap().len;
    assert_eq!(ClientRecords::new().advance(&TLS13_CLIENT[first..]), Ok(Forwardable::All));
}

#[test]
fn early_data_goes_on_and_what_is_no_record_does_not() {
    let early = [record(20, &[1]), record(23, &[22; 300]), record(21, &[1, 0])].concat();
    let stream = [early.as_slice(), &record(22, &[1])].concat();
    for piece in [1, 3, 7, 1_000] {
        let mut records = ClientRecords::new();
        let mut passed = 0;
        for part in stream.chunks(piece) {
            match records.advance(part).unwrap() {
                Forwardable::All => passed += part.len(),
                Forwardable::UpTo(at) => {
                    passed += at;
                    break;
                }
            }
        }
        assert_eq!(passed, early.len());
    }
    assert_eq!(ClientRecords::new().advance(&[24, 3, 3]), Err(HelloError::NotHandshake));
    assert_eq!(ClientRecords::new().advance(&[23, 2]), Err(HelloError::NotHandshake));
    assert_eq!(ClientRecords::new().advance(&[23, 3, 3, 0xff, 0xff]), Err(HelloError::RecordLength));
}

// --- against rustls -----------------------------------------------------------------------------

enum Oracle {
    Name(Option<String>),
    Partial,
    Refused,
    /// A valid hello that rustls does not want to serve.
    Unserved,
}

fn oracle(mut stream: &[u8]) -> Oracle {
    let mut acceptor = rustls::server::Acceptor::default();
    while !stream.is_empty() {
        if acceptor.read_tls(&mut stream).is_err() {
            return Oracle::Refused;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Oracle::Name(accepted.client_hello().server_name().map(str::to_owned)),
            Ok(None) => {}
            Err((rustls::Error::PeerIncompatible(_), _)) => return Oracle::Unserved,
            Err(_) => return Oracle::Refused,
        }
    }
    Oracle::Partial
}

/// We refuse what rustls refuses (or report ECH, which only rustls reads inside). Where both accept, the names are
/// the same.
fn agrees_with_rustls(stream: &[u8]) {
    let ours = parse(stream);
    match (oracle(stream), &ours) {
        (_, Err(_)) | (Oracle::Unserved, _) | (Oracle::Partial, Ok(None)) => {}
        (Oracle::Refused, Ok(Some(hello))) if hello.ech => {}
        (Oracle::Name(name), Ok(Some(hello))) => {
            let name = name.map(|name| name.trim_end_matches('.').to_owned());
            assert_eq!(name.as_deref(), hello.sni.as_ref().map(HostName::as_str));
        }
        // rustls reads inside a record that we still wait for, or the other way round.
        (Oracle::Refused, Ok(None)) => {}
        (Oracle::Refused, Ok(Some(_))) => panic!("rustls refuses {}", stream.escape_ascii()),
        (Oracle::Name(_), Ok(None)) => panic!("rustls needs no more than {}", stream.escape_ascii()),
        (Oracle::Partial, Ok(Some(_))) => panic!("rustls waits behind {}", stream.escape_ascii()),
    }
}

#[test]
fn every_byte_of_a_hello_may_change_without_rustls_seeing_another_name() {
    for (_, stream, _) in CAPTURED.iter().filter(|(_, stream, _)| stream.len() < 600) {
        for at in 0..stream.len() {
            for change in [1u8, 0x20, 0x80, 0xff] {
                let mut changed = stream.to_vec();
                changed[at] ^= change;
                agrees_with_rustls(&changed);
            }
        }
    }
}

/// Valid and odd extensions, in any order and number.
fn any_extensions() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let name = prop_oneof![
        Just(b"good.test".to_vec()),
        "[a-zA-Z0-9_.-]{0,20}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..12),
        "[0-9.]{1,15}".prop_map(String::into_bytes),
    ];
    let kinds = prop::sample::select(vec![0u16, 5, 10, 11, 13, 16, 23, 27, 35, 41, 43, 44, 45, 51, 0xff01, 0xfe0d, 99]);
    let one = prop_oneof![
        3 => name.prop_map(|name| sni(&name)),
        2 => Just(sigalgs()),
        2 => (kinds, prop::collection::vec(0u8..5, 0..8)).prop_map(|(kind, data)| extension(kind, &data)),
    ];
    prop::collection::vec(one, 0..6)
}

proptest! {
    #[test]
    fn any_hello_is_read_as_rustls_reads_it(extensions in any_extensions(), size in 1usize..400) {
        let stream = records(&message(&extensions), size);
        agrees_with_rustls(&stream);
        prop_assert_eq!(
            parse(&stream).map(|hello| hello.map(|hello| (hello.sni, hello.ech))),
            parse(&record(22, &message(&extensions))).map(|hello| hello.map(|hello| (hello.sni, hello.ech)))
        );
    }

    #[test]
    fn no_bytes_panic_and_no_split_matters(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        patch in prop::collection::vec((0usize..600, any::<u8>()), 0..4),
        which in 0usize..6,
        mut cuts in prop::collection::vec(0usize..600, 0..8),
    ) {
        let mut stream = CAPTURED[which].1.to_vec();
        for (at, byte) in patch {
            if let Some(slot) = stream.get_mut(at) {
                *slot = byte;
            }
        }
        cuts.sort_unstable();
        prop_assert_eq!(parse_in_pieces(&stream, cuts.iter().copied()), parse(&stream));
        prop_assert_eq!(parse_in_pieces(&bytes, cuts.iter().copied()), parse(&bytes));
        let framed = record(22, &bytes);
        prop_assert_eq!(parse_in_pieces(&framed, cuts.iter().copied()), parse(&framed));
        flight(&bytes, 3);
        let _ = ClientRecords::new().advance(&bytes);
    }
}
