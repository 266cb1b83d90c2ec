//! SOCKS5 (RFC 1928), without authentication and only for CONNECT: reads greeting and request, writes replies. The
//! policy decides which destinations are allowed.

use super::Parsed;
use crate::name::MAX_NAME;
use crate::reason::{Cause, Reason, Why};
use crate::target::{Host, Target};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first byte of SOCKS5.
pub const VERSION: u8 = 5;
/// The first byte of SOCKS4, which is refused.
pub const VERSION_4: u8 = 4;
/// The answer to a greeting that offers "no authentication".
pub const ACCEPT: [u8; 2] = [VERSION, 0];
/// The reply when the connection is open.
pub const GRANTED: [u8; 10] = reply(0);
/// The longest greeting, in bytes.
pub const MAX_GREETING: usize = 2 + 255;
/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 5 + 255 + 2;

/// The greeting offered "no authentication": answer with [`ACCEPT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting;

/// A request to CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The destination. An address in the domain field counts as that address.
    pub target: Target,
}

/// Why a greeting or a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocksError {
    /// SOCKS4.
    Version4,
    /// Some other version.
    Version,
    /// Another version in a request, after a SOCKS5 greeting.
    RequestVersion,
    /// "No authentication" is not among the methods offered.
    NoMethod,
    /// BIND, UDP ASSOCIATE or an unknown command.
    Command,
    /// The reserved byte is not 0.
    Reserved,
    /// Neither IPv4, IPv6 nor domain.
    AddressType,
    /// The domain is not a host in its only valid notation.
    Host,
    /// Port 0.
    Port,
}

impl SocksError {
    /// What is wrong, in a fixed phrase for log and answers.
    pub const fn phrase(self) -> &'static str {
        match self {
            SocksError::Version4 => "SOCKS4 is not supported",
            SocksError::Version => "not SOCKS5",
            SocksError::RequestVersion => "the version in the request is not 5",
            SocksError::NoMethod => "no acceptable authentication method is offered",
            SocksError::Command => "only CONNECT is supported",
            SocksError::Reserved => "the reserved byte is not 0",
            SocksError::AddressType => "the address type is not supported",
            SocksError::Host => "the host is malformed",
            SocksError::Port => "the port is 0",
        }
    }
}

impl fmt::Display for SocksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phrase())
    }
}

impl std::error::Error for SocksError {}

impl SocksError {
    /// The reason and the cause to count and log.
    pub const fn why(self) -> Why {
        Why::because(self.reason(), Cause::of(self.phrase()))
    }

    /// The reason to count.
    pub const fn reason(self) -> Reason {
        match self {
            SocksError::Command => Reason::ProtocolNotAllowed,
            SocksError::Version4
            | SocksError::Version
            | SocksError::RequestVersion
            | SocksError::NoMethod
            | SocksError::Reserved
            | SocksError::AddressType
            | SocksError::Host
            | SocksError::Port => Reason::Malformed,
        }
    }

    /// Writes the answer: `05 FF` to a greeting, its own refusal to SOCKS4, a reply with the code of
    /// [`reply`](Self::reply) to a request, and nothing to a client that does not use SOCKS. Close after it.
    pub fn write_answer(self, out: &mut Vec<u8>) {
        match self {
            SocksError::Version => {}
            SocksError::Version4 => out.extend_from_slice(&[0, 0x5b, 0, 0, 0, 0, 0, 0]),
            SocksError::NoMethod => out.extend_from_slice(&[VERSION, 0xff]),
            _ => out.extend_from_slice(&reply(self.reply())),
        }
    }

    /// The reply code (RFC 1928 §6).
    pub const fn reply(self) -> u8 {
        match self {
            SocksError::Command => 7,
            SocksError::AddressType => 8,
            SocksError::Host | SocksError::Port => 2,
            SocksError::Version4
            | SocksError::Version
            | SocksError::RequestVersion
            | SocksError::NoMethod
            | SocksError::Reserved => 1,
        }
    }
}

/// A reply with `code`; 0 is success. The bound address is always `0.0.0.0:0`: the guest need not know from which
/// address we dial.
pub const fn reply(code: u8) -> [u8; 10] {
    [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// Reads the greeting at the front of `buf`; a buffer of [`MAX_GREETING`] bytes always suffices.
///
/// # Errors
/// [`SocksError`], as soon as the deciding byte has arrived.
pub fn parse_greeting(buf: &[u8]) -> Result<Parsed<Greeting>, SocksError> {
    check_version(buf)?;
    let Some(count) = buf.get(1) else { return Ok(Parsed::Partial) };
    if *count == 0 {
        return Err(SocksError::NoMethod);
    }
    let len = 2 + usize::from(*count);
    let Some(methods) = buf.get(2..len) else { return Ok(Parsed::Partial) };
    if methods.contains(&0) { Ok(Parsed::Complete { head: Greeting, len }) } else { Err(SocksError::NoMethod) }
}

/// Reads the request at the front of `buf`; a buffer of [`MAX_REQUEST`] bytes always suffices.
///
/// # Errors
/// [`SocksError`], as soon as the deciding byte has arrived.
pub fn parse_request(buf: &[u8]) -> Result<Parsed<Request>, SocksError> {
    // The client has already received a SOCKS5 answer, whatever version it sends here.
    if buf.first().is_some_and(|version| *version != VERSION) {
        return Err(SocksError::RequestVersion);
    }
    let Some(command) = buf.get(1) else { return Ok(Parsed::Partial) };
    if *command != 1 {
        return Err(SocksError::Command);
    }
    let Some(reserved) = buf.get(2) else { return Ok(Parsed::Partial) };
    if *reserved != 0 {
        return Err(SocksError::Reserved);
    }
    let Some((host, port_at)) = read_host(buf)? else { return Ok(Parsed::Partial) };
    let Some([high, low]) = buf.get(port_at..).and_then(|rest| rest.first_chunk::<2>()) else {
        return Ok(Parsed::Partial);
    };
    match u16::from_be_bytes([*high, *low]) {
        0 => Err(SocksError::Port),
        port => Ok(Parsed::Complete { head: Request { target: Target { host, port } }, len: port_at + 2 }),
    }
}

/// Returns the host and the position of the port.
fn read_host(buf: &[u8]) -> Result<Option<(Host, usize)>, SocksError> {
    let Some((_, address)) = buf.split_at_checked(4) else {
        return match buf.get(3) {
            Some(1 | 3 | 4) | None => Ok(None),
            Some(_) => Err(SocksError::AddressType),
        };
    };
    match buf.get(3) {
        Some(1) => Ok(address.first_chunk::<4>().map(|a| (Host::Addr(IpAddr::V4(Ipv4Addr::from(*a))), 8))),
        Some(4) => Ok(address.first_chunk::<16>().map(|a| (Host::Addr(IpAddr::V6(Ipv6Addr::from(*a))), 20))),
        Some(3) => {
            let Some((len, rest)) = address.split_first() else { return Ok(None) };
            if *len == 0 {
                return Err(SocksError::Host);
            }
            let Some(domain) = rest.get(..usize::from(*len)) else { return Ok(None) };
            Ok(Some((parse_domain(domain)?, 5 + usize::from(*len))))
        }
        _ => Err(SocksError::AddressType),
    }
}

fn check_version(buf: &[u8]) -> Result<(), SocksError> {
    match buf.first() {
        None | Some(&VERSION) => Ok(()),
        Some(&VERSION_4) => Err(SocksError::Version4),
        Some(_) => Err(SocksError::Version),
    }
}

/// A name, or an address as text: clients put address literals here, IPv6 ones without brackets.
fn parse_domain(domain: &[u8]) -> Result<Host, SocksError> {
    if !domain.contains(&b':') {
        return Host::parse(domain).map_err(|_| SocksError::Host);
    }
    if domain.len() > MAX_NAME || domain.iter().any(|byte| matches!(byte, b'[' | b']')) {
        return Err(SocksError::Host);
    }
    let mut bracketed = [0u8; MAX_NAME + 2];
    let text = bracketed.get_mut(..domain.len() + 2).ok_or(SocksError::Host)?;
    for (to, from) in text.iter_mut().zip(b"[".iter().chain(domain).chain(b"]")) {
        *to = *from;
    }
    Host::parse(text).map_err(|_| SocksError::Host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn domain(name: &[u8], port: u16) -> Vec<u8> {
        let length = u8::try_from(name.len()).unwrap();
        [&[5, 1, 0, 3, length], name, &port.to_be_bytes()].concat()
    }

    fn target(bytes: &[u8]) -> Result<String, SocksError> {
        match parse_request(bytes)? {
            Parsed::Complete { head, len } => {
                assert_eq!(len, bytes.len());
                Ok(head.target.to_string())
            }
            Parsed::Partial => panic!("partial: {bytes:?}"),
        }
    }

    fn answer(error: SocksError) -> Vec<u8> {
        let mut out = Vec::new();
        error.write_answer(&mut out);
        out
    }

    #[test]
    fn a_greeting_must_offer_no_authentication() {
        assert_eq!(parse_greeting(&[5, 1, 0]), Ok(Parsed::Complete { head: Greeting, len: 3 }));
        assert_eq!(parse_greeting(&[5, 3, 1, 0, 2, 5, 1]), Ok(Parsed::Complete { head: Greeting, len: 5 }));
        let many = [&[5, 255][..], &[7; 254], &[0]].concat();
        assert_eq!(many.len(), MAX_GREETING);
        assert_eq!(parse_greeting(&many), Ok(Parsed::Complete { head: Greeting, len: MAX_GREETING }));
        for offered in [&[5, 0][..], &[5, 1, 2], &[5, 2, 1, 2]] {
            let error = parse_greeting(offered).unwrap_err();
            assert_eq!(answer(error), [5, 0xff], "{offered:?}");
        }
        for partial in [&[][..], &[5], &[5, 2], &[5, 2, 0]] {
            assert_eq!(parse_greeting(partial), Ok(Parsed::Partial), "{partial:?}");
        }
    }

    #[test]
    fn other_versions_are_refused_by_their_first_byte() {
        assert_eq!(answer(parse_greeting(&[4]).unwrap_err()), [0, 0x5b, 0, 0, 0, 0, 0, 0]);
        assert!(answer(parse_greeting(b"G").unwrap_err()).is_empty());
        for version in [0, 1, 4, 6, b'G'] {
            let error = parse_request(&[version]).unwrap_err();
            assert_eq!((error, answer(error)), (SocksError::RequestVersion, reply(1).to_vec()));
        }
    }

    #[test]
    fn connect_takes_names_and_addresses() {
        assert_eq!(target(&domain(b"Good.Test.", 443)).unwrap(), "good.test:443");
        assert_eq!(target(&[5, 1, 0, 1, 203, 0, 113, 7, 0, 80]).unwrap(), "203.0.113.7:80");
        let v6 = [&[5, 1, 0, 4, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1, 1, 187]].concat();
        assert_eq!(target(&v6).unwrap(), "[2001:db8::1]:443");
        let tunnel = [domain(b"good.test", 443).as_slice(), b"\x16\x03\x01"].concat();
        assert!(matches!(parse_request(&tunnel), Ok(Parsed::Complete { len, .. }) if len == tunnel.len() - 3));
    }

    #[test]
    fn an_address_in_the_domain_field_is_an_address() {
        assert_eq!(target(&domain(b"203.0.113.7", 80)).unwrap(), "203.0.113.7:80");
        assert_eq!(target(&domain(b"2001:db8::1", 80)).unwrap(), "[2001:db8::1]:80");
    }

    #[test]
    fn domains_that_are_no_hosts_are_not_allowed() {
        let long = "a".repeat(255);
        let addresses = ":".repeat(255);
        for name in [
            b"".as_slice(),
            b"evil.test\0.good.test",
            b"good.test..",
            b"good test",
            b"good.test:80",
            b"g\xc3\xb6d.test",
            b"\xff",
            b"2130706433",
            b"0x7f.1",
            b"127.1",
            b"127.0.0.1.",
            b"[::1]",
            b"fe80::1%lo",
            b"*.good.test",
            long.as_bytes(),
            addresses.as_bytes(),
        ] {
            let error = parse_request(&domain(name, 443)).unwrap_err();
            assert_eq!((error, error.reply()), (SocksError::Host, 2), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn what_is_not_supported_gets_its_own_reply() {
        for (bytes, code, reason) in [
            (&[5, 2][..], 7, "protocol_not_allowed"),
            (&[5, 3], 7, "protocol_not_allowed"),
            (&[5, 0], 7, "protocol_not_allowed"),
            (&[5, 1, 1], 1, "malformed"),
            (&[5, 1, 0, 2], 8, "malformed"),
            (&[5, 1, 0, 0], 8, "malformed"),
            (&[5, 1, 0, 3, 0], 2, "malformed"),
            (&[5, 1, 0, 1, 1, 2, 3, 4, 0, 0], 2, "malformed"),
        ] {
            let error = parse_request(bytes).unwrap_err();
            assert_eq!((error.reply(), error.reason().as_str()), (code, reason), "{bytes:?}");
            assert_eq!(answer(error), [5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
    }

    proptest! {
        #[test]
        fn a_prefix_is_partial_or_decides_as_the_whole(
            front in prop::sample::select(vec![&[5u8, 1, 0, 1][..], &[5, 1, 0, 3], &[5, 1, 0, 4], &[5, 1], &[5], &[]]),
            rest in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let bytes = [front, &rest].concat();
            let (request, greeting) = (parse_request(&bytes), parse_greeting(&bytes));
            for end in 0..bytes.len() {
                let so_far = parse_request(&bytes[..end]);
                prop_assert!(so_far == Ok(Parsed::Partial) || so_far == request);
                let so_far = parse_greeting(&bytes[..end]);
                prop_assert!(so_far == Ok(Parsed::Partial) || so_far == greeting);
            }
        }
    }
}
