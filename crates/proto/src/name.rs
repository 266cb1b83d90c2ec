//! `HostName`: the only type that constructs a host name.
//!
//! Guests, whitelist files, DNS answers and logs all use [`HostName::parse`], because common parsers disagree with
//! one another: what one reads as a name, another reads as the address 127.0.0.1. A text that any of them could
//! read as an address is therefore not a name here. Only whitelist lines may contain Unicode
//! ([`HostName::parse_unicode`]); on the wire only ASCII is accepted.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The longest name, in bytes, without trailing dot (RFC 1035 §2.3.4 in presentation form).
pub const MAX_NAME: usize = 253;
/// The longest label, in bytes (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;

/// A host name in canonical form: lower-case ASCII (A-labels), 1 to 253 bytes, no trailing dot.
///
/// Labels have 1 to 63 bytes of `a-z 0-9 _ -`, neither first nor last a hyphen; the last label is
/// neither all digits nor a `0x` number, so that no name can be read as an IPv4 address by the
/// rules of inet_aton(3) or of the WHATWG URL standard. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Why a text is not a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or only a dot.
    #[error("the name is empty")]
    Empty,
    /// Over [`MAX_NAME`] bytes.
    #[error("the name is longer than 253 bytes")]
    TooLong,
    /// Two dots in a row, or one at the start.
    #[error("a label is empty (two dots in a row, or a dot at an end)")]
    EmptyLabel,
    /// Over [`MAX_LABEL`] bytes.
    #[error("a label is longer than 63 bytes")]
    LongLabel,
    /// A byte outside `a-z A-Z 0-9 _ - .`
    #[error("a character is not allowed in a host name (letters, digits, '-', '_' and '.' are)")]
    BadCharacter,
    /// A label starts or ends with `-`.
    #[error("a label starts or ends with a hyphen")]
    Hyphen,
    /// Other software would read it as an IPv4 address.
    #[error("the last label is a number, so other software would read an address")]
    LooksLikeAddress,
    /// IDNA (UTS-46) refuses it.
    #[error("not a valid internationalised name (IDNA, UTS-46)")]
    Idna,
}

impl HostName {
    /// Parses a name from the wire or from an ASCII line: any case, at most one trailing dot, both normalised
    /// away.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<HostName, NameError> {
        let text = text.as_ref();
        let text = text.strip_suffix(b".").unwrap_or(text);
        validate(text)?;
        let mut lower = [0u8; MAX_NAME];
        let lower = lower.get_mut(..text.len()).ok_or(NameError::TooLong)?;
        for (to, from) in lower.iter_mut().zip(text) {
            *to = from.to_ascii_lowercase();
        }
        let lower = std::str::from_utf8(lower).map_err(|_| NameError::BadCharacter)?;
        Ok(HostName(Arc::from(lower)))
    }

    /// Parses a name from an operator's file: like [`parse`](Self::parse), but converts non-ASCII text to A-labels
    /// by UTS-46 first (non-transitional, STD3 rules).
    pub fn parse_unicode(text: &str) -> Result<HostName, NameError> {
        if text.is_ascii() {
            return HostName::parse(text);
        }
        let ascii =
            idna::domain_to_ascii_strict(text.strip_suffix('.').unwrap_or(text)).map_err(|_| NameError::Idna)?;
        HostName::parse(ascii)
    }

    /// Returns the canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the labels from left to right.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// Returns the name without its first label; `None` for a single label.
    pub fn parent(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, parent)| parent)
    }
}

/// Checks a name in one pass over the bytes; `text` no longer has a trailing dot.
fn validate(text: &[u8]) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    let mut last: &[u8] = &[];
    for label in text.split(|byte| *byte == b'.') {
        validate_label(label)?;
        last = label;
    }
    let hex = last.len() >= 2 && last.starts_with(b"0") && matches!(last.get(1), Some(b'x' | b'X'));
    if hex || last.iter().all(u8::is_ascii_digit) {
        return Err(NameError::LooksLikeAddress);
    }
    Ok(())
}

fn validate_label(label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    if !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return Err(NameError::BadCharacter);
    }
    if label.len() > MAX_LABEL {
        return Err(NameError::LongLabel);
    }
    if label.starts_with(b"-") || label.ends_with(b"-") {
        return Err(NameError::Hyphen);
    }
    Ok(())
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostName({})", self.0)
    }
}

impl Hash for HostName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_one_trailing_dot_are_normalised() {
        assert_eq!(HostName::parse("IPFS.io.").unwrap().as_str(), "ipfs.io");
        assert_eq!(HostName::parse("r3---sn-x.a_b.io").unwrap().as_str(), "r3---sn-x.a_b.io");
        assert_eq!(HostName::parse("ipfs.io..").unwrap_err(), NameError::EmptyLabel);
    }

    #[test]
    fn what_others_read_as_an_address_is_no_name() {
        for text in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "0",
            "0x",
            "127.0.0.1.",
            "256.256.256.256",
            "ipfs.0x7",
            "ipfs.io.1",
        ] {
            assert_eq!(HostName::parse(text).unwrap_err(), NameError::LooksLikeAddress, "{text}");
        }
    }

    #[test]
    fn bytes_that_parsers_disagree_on_are_refused() {
        for text in [
            "evil.com\0.ipfs.io",
            "%69pfs.io",
            "ｉｐｆｓ.io",
            "ipfs。io",
            "ipfs.io:443@evil.com",
            "ipfs.io\\evil.com",
            "evil\\.ipfs.io",
            "ipfs.io:443",
            "ip fs.io",
            "*.ipfs.io",
            "[::1]",
            "ipfs.io/",
            "ipfs.io\r\n",
            "::1",
        ] {
            assert_eq!(HostName::parse(text).unwrap_err(), NameError::BadCharacter, "{text:?}");
        }
        for text in [".ipfs.io", "a..io", "..", ".."] {
            assert_eq!(HostName::parse(text).unwrap_err(), NameError::EmptyLabel, "{text}");
        }
        assert_eq!(HostName::parse("").unwrap_err(), NameError::Empty);
        assert_eq!(HostName::parse(".").unwrap_err(), NameError::Empty);
        assert_eq!(HostName::parse("-a.io").unwrap_err(), NameError::Hyphen);
        assert_eq!(HostName::parse("a-.io").unwrap_err(), NameError::Hyphen);
    }

    #[test]
    fn lengths_are_those_of_rfc_1035() {
        let label = "a".repeat(63);
        assert!(HostName::parse(format!("{label}.io")).is_ok());
        assert_eq!(HostName::parse(format!("{label}a.io")).unwrap_err(), NameError::LongLabel);
        let name = [label.as_str(); 4].join(".");
        assert_eq!(name.len(), 255);
        assert_eq!(HostName::parse(&name).unwrap_err(), NameError::TooLong);
        assert!(HostName::parse(&name[2..]).is_ok());
        assert!(HostName::parse(format!("{}.", &name[2..])).is_ok());
    }

    #[test]
    fn unicode_is_for_files_and_becomes_a_labels() {
        assert_eq!(HostName::parse_unicode("Bücher.example").unwrap().as_str(), "xn--bcher-kva.example");
        assert_eq!(HostName::parse_unicode("faß.de").unwrap().as_str(), "xn--fa-hia.de");
        assert!(HostName::parse("bücher.example").is_err());
        assert!(HostName::parse_unicode("①②⑦.0.0.1").is_err());
    }
}
