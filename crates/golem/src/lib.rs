//! The inputs of a provider's decisions on Golem Network, read as yagna reads them: the manifest of a job, the
//! rules and the list of hosts, and the certificates that give a job additional rights.
//!
//! | module | reads |
//! |---|---|
//! | [`manifest`] | what a job asks for |
//! | [`destination`] | one of the URLs that it names |
//! | [`rules`] | `rules.json` and `domain_whitelist.json` of the provider's data dir |
//! | [`x509`] | `cert-dir`, and the signature over a manifest |
//! | [`descriptor`] | a requestor's node descriptor, signed with Golem's own certificates |
//! | [`negotiation`] | all of them, and derives yagna's answer in yagna's words |
//!
//! Nothing here runs for individual flows: list and rules become part of the policy when it is built.

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::restriction,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "a test that panics fails, as it should"
    ),
    warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)
)]

pub mod descriptor;
pub mod destination;
pub mod manifest;
pub mod negotiation;
pub mod rules;
pub mod x509;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

/// The largest manifest, certificate, signature, descriptor or rules file, in bytes.
pub const MAX_INPUT: u64 = 1 << 20;

/// Decodes base64 (RFC 4648 §4, with padding); white space is ignored.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

/// Encodes each byte as two hexadecimal digits, in lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Decodes such a text, in either case.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect::<Option<Vec<u8>>>()?;
    rest.is_empty().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_goes_both_ways_and_takes_nothing_else() {
        assert_eq!(unhex(&hex(&[0, 0x7f, 0xff])).as_deref(), Some(&[0, 0x7f, 0xff][..]));
        assert_eq!(unhex("aB").as_deref(), Some(&[0xab][..]));
        assert!(["a", "0x", "zz", "é"].into_iter().all(|text| unhex(text).is_none()));
    }
}
