//! A query as a guest's resolver sends it, and what of the answer says whose it is.

use outgate::reason::Reason;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Record types (RFC 1035, RFC 3596, RFC 6891).
pub(super) const A: u16 = 1;
pub(super) const AAAA: u16 = 28;
const OPT: u16 = 41;
/// The option of an extended error (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
/// Maximum number of records that are read.
const MAX_RECORDS: usize = 64;
/// Maximum number of labels of a name.
const MAX_LABELS: usize = 128;

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    id: u16,
    code: u16,
    /// Outgate's reason, if the answer is outgate's refusal.
    pub(super) reason: Option<Reason>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Answer {
    /// Returns the usual name of its response code (RFC 6895).
    pub(super) fn code(&self) -> String {
        match self.code {
            0 => "NOERROR".to_owned(),
            2 => "SERVFAIL".to_owned(),
            3 => "NXDOMAIN".to_owned(),
            5 => "REFUSED".to_owned(),
            code => format!("response code {code}"),
        }
    }
}

/// Returns a query with EDNS, so that the answer may say more than a code.
pub(super) fn query(id: u16, labels: &[&str], kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    // Recursion desired; one question, one additional record.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in labels {
        bytes.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1, 0]);
    bytes.extend(OPT.to_be_bytes());
    bytes.extend(1232_u16.to_be_bytes());
    bytes.extend([0; 6]);
    bytes
}

/// Reads the answer to the query with this id; `None` if it is none.
pub(super) fn answer(id: u16, bytes: &[u8]) -> Option<Answer> {
    let u16_at = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let flags = u16_at(2)?;
    if u16_at(0)? != id || flags & 0x8000 == 0 {
        return None;
    }
    let mut answer = Answer { id, code: flags & 0xf, ..Answer::default() };
    let mut at = 12;
    for _ in 0..usize::from(u16_at(4)?).min(MAX_RECORDS) {
        at = after_name(bytes, at)?.checked_add(4)?;
    }
    let records = [u16_at(6)?, u16_at(8)?, u16_at(10)?].into_iter().map(usize::from).sum::<usize>();
    for _ in 0..records.min(MAX_RECORDS) {
        at = after_name(bytes, at)?;
        let (kind, length) = (u16_at(at)?, usize::from(u16_at(at.checked_add(8)?)?));
        let start = at.checked_add(10)?;
        let data = bytes.get(start..start.checked_add(length)?)?;
        match kind {
            A => answer.addresses.extend(<[u8; 4]>::try_from(data).ok().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)))),
            AAAA => {
                answer.addresses.extend(<[u8; 16]>::try_from(data).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))));
            }
            OPT => answer.reason = reason(data),
            _ => {}
        }
        at = start.checked_add(length)?;
    }
    Some(answer)
}

/// Returns outgate's reason in the options of an OPT record.
fn reason(mut options: &[u8]) -> Option<Reason> {
    while let Some((head, rest)) = options.split_at_checked(4) {
        let [kind_high, kind_low, high, low] = <[u8; 4]>::try_from(head).ok()?;
        let (value, next) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        if u16::from_be_bytes([kind_high, kind_low]) == EXTENDED_ERROR {
            let text = std::str::from_utf8(value.get(2..)?).ok()?;
            return Reason::ALL.into_iter().find(|reason| reason.as_str() == text);
        }
        options = next;
    }
    None
}

fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    for _ in 0..MAX_LABELS {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return at.checked_add(1),
            // A pointer ends a name.
            192.. => return at.checked_add(2),
            _ => at = at.checked_add(length)?.checked_add(1)?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response to [`query`] with these records behind the question.
    fn response(code: u8, counts: [u8; 2], records: &[u8]) -> Vec<u8> {
        let query = query(7, &["a", "test"], A);
        let question = &query[12..query.len() - 11];
        [&[0, 7, 0x81, code, 0, 1, 0, counts[0], 0, 0, 0, counts[1]][..], question, records].concat()
    }

    #[test]
    fn an_answer_is_outgates_if_its_extended_error_is_one_of_our_reasons() {
        let with = |text: &str| {
            let length = u8::try_from(text.len()).unwrap();
            let head = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, length + 6, 0, 15, 0, length + 2, 0, 15];
            answer(7, &response(3, [0, 1], &[&head[..], text.as_bytes()].concat())).unwrap()
        };
        assert_eq!(
            (with("malformed").reason, with("malformed").code()),
            (Some(Reason::Malformed), "NXDOMAIN".to_owned())
        );
        assert_eq!(with("blocked by us").reason, None);
        let plain = answer(7, &response(0, [1, 0], &[192, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 11, 0, 0, 10])).unwrap();
        assert_eq!((plain.reason, plain.addresses), (None, vec![IpAddr::from([11, 0, 0, 10])]));
        assert_eq!(answer(8, &response(0, [0, 0], &[])), None, "another query's");
        assert_eq!(answer(7, &query(7, &["a"], A)), None, "a query");
    }

    #[test]
    fn what_is_cut_off_is_no_panic() {
        let whole = response(0, [1, 0], &[192, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 11, 0, 0, 10]);
        for length in 0..whole.len() {
            assert_eq!(answer(7, &whole[..length]), None);
        }
    }
}
