//! SOCKS5: a prefix is partial or decides as the whole does, and no message outgrows its bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate_proto::identify::Parsed;
use outgate_proto::identify::socks::{MAX_GREETING, MAX_REQUEST, parse_greeting, parse_request};
use outgate_proto::target::Target;

fuzz_target!(|data: &[u8]| {
    let (greeting, request) = (parse_greeting(data), parse_request(data));
    assert!(data.len() < MAX_GREETING || greeting != Ok(Parsed::Partial));
    assert!(data.len() < MAX_REQUEST || request != Ok(Parsed::Partial));
    for end in 0..data.len().min(MAX_REQUEST) {
        let so_far = parse_greeting(&data[..end]);
        assert!(so_far == Ok(Parsed::Partial) || so_far == greeting);
        let so_far = parse_request(&data[..end]);
        assert!(so_far == Ok(Parsed::Partial) || so_far == request);
    }
    if let Ok(Parsed::Complete { head, len }) = request {
        assert!(len <= data.len() && head.target.port != 0);
        assert_eq!(Target::parse(head.target.to_string().as_bytes(), None), Ok(head.target));
    } else if let Err(error) = request {
        let mut answer = Vec::new();
        error.write_answer(&mut answer);
        assert!(answer.len() <= 10);
    }
});
