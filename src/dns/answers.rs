//! The table of the DNS answers to refused and failed queries, by reason, for the documentation. It decides nothing:
//! the responder chooses the answers, and asserts in debug builds that the table has each of them.

use super::responder::extended::{BLOCKED, NETWORK_ERROR, NO_REACHABLE_AUTHORITY, NOT_READY, OTHER};
use crate::reason::Reason;
use hickory_resolver::proto::op::ResponseCode;

/// An answer to a refused or failed query: the response code and the extended error (RFC 8914 §4). A message that
/// could not be read gets none.
pub(super) type Answer = (ResponseCode, Option<u16>);

const NO_DATA: Answer = (ResponseCode::NoError, Some(BLOCKED));
const BLOCKED_NAME: Answer = (ResponseCode::NXDomain, Some(BLOCKED));
const LATER: Answer = (ResponseCode::ServFail, Some(OTHER));
const UNREADY: Answer = (ResponseCode::ServFail, Some(NOT_READY));
const UNREACHABLE: Answer = (ResponseCode::ServFail, Some(NO_REACHABLE_AUTHORITY));

/// Returns the answers that a query can get for this reason; none where DNS has no such reason.
pub(super) const fn possible(reason: Reason) -> &'static [Answer] {
    match reason {
        Reason::NotWhitelisted | Reason::RuleExpired | Reason::DeniedByRule => &[BLOCKED_NAME, NO_DATA],
        Reason::ModeNone | Reason::UnknownGuest => &[BLOCKED_NAME],
        Reason::AddressFloor => &[NO_DATA, BLOCKED_NAME],
        Reason::ProtocolNotAllowed => &[
            (ResponseCode::NotImp, None),
            (ResponseCode::Refused, Some(BLOCKED)),
            (ResponseCode::BADVERS, Some(OTHER)),
        ],
        Reason::Malformed => &[(ResponseCode::FormErr, None), BLOCKED_NAME],
        Reason::ResolveFailed => &[UNREACHABLE, (ResponseCode::ServFail, Some(NETWORK_ERROR)), UNREADY, LATER],
        Reason::Timeout => &[UNREACHABLE],
        Reason::LimitRate | Reason::LimitNames => &[LATER],
        Reason::LogFailed | Reason::NotConfigured => &[UNREADY],
        // No query ends for one of these.
        Reason::None
        | Reason::PortNotAllowed
        | Reason::NoName
        | Reason::NameMismatch
        | Reason::Ech
        | Reason::DialFailed
        | Reason::Revoked
        | Reason::LimitConnections
        | Reason::LimitTotal
        | Reason::ShuttingDown
        | Reason::H2c
        | Reason::ProtocolError => &[],
    }
}

/// Returns the answers to a query that is refused or fails for this reason, as text: response codes, each with the
/// number of its extended error (RFC 8914) where there is one, for example `NXDOMAIN 15, no data 15`. Empty where
/// DNS has no such reason.
pub fn refusals(reason: Reason) -> String {
    let text = |(code, extended): &Answer| match extended {
        Some(number) => format!("{} {number}", mnemonic(*code)),
        None => mnemonic(*code).to_owned(),
    };
    possible(reason).iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Returns the usual name of a response code (RFC 6895 §2.3). NOERROR without addresses is "no data" (RFC 2308 §2.2).
fn mnemonic(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "no data",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_a_name() {
        for reason in Reason::ALL {
            assert!(!refusals(reason).contains('?'), "{reason}");
        }
        assert_eq!(refusals(Reason::DeniedByRule), "NXDOMAIN 15, no data 15");
        assert_eq!(refusals(Reason::ProtocolNotAllowed), "NOTIMP, REFUSED 15, BADVERS 0");
        assert_eq!(refusals(Reason::Ech), "");
    }
}
