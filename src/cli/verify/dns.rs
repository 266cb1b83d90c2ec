//! A query as a guest's resolver sends it, and what of the answer says whose it is.

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use outgate::reason::Reason;
use std::io;
use std::net::IpAddr;

/// The option of an extended error (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
/// The largest answer over UDP that a guest takes, in bytes (<https://www.dnsflagday.net/2020/>).
const PAYLOAD: u16 = 1232;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    code: ResponseCode,
    /// Outgate's reason, if the answer is outgate's refusal.
    pub(super) reason: Option<Reason>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Answer {
    /// Returns the usual name of its response code (RFC 6895).
    pub(super) fn code(&self) -> String {
        match self.code {
            ResponseCode::NoError => "NOERROR".to_owned(),
            ResponseCode::ServFail => "SERVFAIL".to_owned(),
            ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
            ResponseCode::Refused => "REFUSED".to_owned(),
            code => format!("response code {}", u16::from(code)),
        }
    }
}

/// Returns a query with EDNS, so that the answer may say more than a code.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if the labels are no name.
pub(super) fn query(id: u16, labels: &[&str], kind: RecordType) -> io::Result<Vec<u8>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let mut name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).map_err(invalid)?;
    name.set_fqdn(true);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    message.add_query(Query::query(name, kind)).set_edns(edns);
    message.to_vec().map_err(invalid)
}

/// Reads the answer to the query with this id; `None` if it is none.
pub(super) fn answer(id: u16, bytes: &[u8]) -> Option<Answer> {
    let message = Message::from_vec(bytes).ok()?;
    if message.metadata.id != id || message.metadata.message_type != MessageType::Response {
        return None;
    }
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    let reason = message.edns.as_ref().and_then(reason);
    Some(Answer { code: message.metadata.response_code, reason, addresses: addresses.collect() })
}

/// Returns outgate's reason in the options.
fn reason(edns: &Edns) -> Option<Reason> {
    let Some(EdnsOption::Unknown(_, value)) = edns.option(EdnsCode::Unknown(EXTENDED_ERROR)) else { return None };
    // Behind the code is a text.
    let text = std::str::from_utf8(value.get(2..)?).ok()?;
    Reason::ALL.into_iter().find(|reason| reason.as_str() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response to [`query`] with these records behind the question.
    fn response(code: u8, counts: [u8; 2], records: &[u8]) -> Vec<u8> {
        let query = query(7, &["a", "test"], RecordType::A).unwrap();
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
        assert_eq!(answer(7, &query(7, &["a"], RecordType::A).unwrap()), None, "a query");
    }

    #[test]
    fn a_query_is_what_a_resolver_sends() {
        let sent = query(0x102, &["x", "not a name"], RecordType::AAAA).unwrap();
        let wanted = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\x01\x01x\x0anot a name\0\0\x1c\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";
        assert_eq!(sent, wanted);
        assert!(query(1, &["x".repeat(64).as_str()], RecordType::A).is_err());
    }

    #[test]
    fn what_is_cut_off_is_no_panic() {
        let whole = response(0, [1, 0], &[192, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 11, 0, 0, 10]);
        for length in 0..whole.len() {
            assert_eq!(answer(7, &whole[..length]), None);
        }
    }
}
