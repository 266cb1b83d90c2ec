//! Why a flow was allowed or refused: one vocabulary for metrics, the access log, the answers to guests and the
//! documentation.

use crate::enum_of_words;
use std::borrow::Cow;
use std::fmt;

enum_of_words! {
    /// The reason of a verdict. Its word, [`Reason::as_str`], is the metric label, the log value, the `details` of an
    /// answer and the anchor in the documentation.
    pub enum Reason {
        /// Allowed.
        None = "none",
        /// No rule allows the destination.
        NotWhitelisted = "not_whitelisted",
        /// A `deny` rule refuses it.
        DeniedByRule = "denied_by_rule",
        /// The rule that would allow it has expired (`until`).
        RuleExpired = "rule_expired",
        /// A rule allows the host, but not on this port.
        PortNotAllowed = "port_not_allowed",
        /// A rule allows host and port, but not for this protocol.
        ProtocolNotAllowed = "protocol_not_allowed",
        /// The address is in the floor: private, special-purpose, outgate's own or another guest's.
        AddressFloor = "address_floor",
        /// The connection shows no name where one is required.
        NoName = "no_name",
        /// The names that the connection shows differ.
        NameMismatch = "name_mismatch",
        /// The guest's bytes have no single valid interpretation.
        Malformed = "malformed",
        /// The ClientHello carries encrypted_client_hello.
        Ech = "ech",
        /// The guest's mode is `none`.
        ModeNone = "mode_none",
        /// The source is not a declared guest.
        UnknownGuest = "unknown_guest",
        /// The name could not be resolved.
        ResolveFailed = "resolve_failed",
        /// No vetted address could be connected to, or the upstream closed prematurely.
        DialFailed = "dial_failed",
        /// A deadline passed.
        Timeout = "timeout",
        /// A later list or policy refuses what was allowed before.
        Revoked = "revoked",
        /// The guest has too many connections.
        LimitConnections = "limit_connections",
        /// The guest exceeds its rate.
        LimitRate = "limit_rate",
        /// The daemon has too many connections.
        LimitTotal = "limit_total",
        /// The daemon is stopping.
        ShuttingDown = "shutting_down",
        /// The guest wants to look up too many names that nobody has asked for before.
        LimitNames = "limit_names",
        /// HTTP/2 in clear is used where names must be judged.
        H2c = "h2c",
        /// The upstream's response is malformed or truncated.
        ProtocolError = "protocol_error",
        /// The access log can't be written, and without it nothing is allowed.
        LogFailed = "log_failed",
        /// There is no configuration or list to apply.
        NotConfigured = "not_configured",
    }
    /// Returns the metric label, log value and the `details` of an answer.
    pub fn as_str
}

enum_of_words! {
    /// The outcome of a flow. Its word is the metric label and log value.
    pub enum Verdict {
        /// Allowed by the policy, and the destination was reached.
        Allowed = "allowed",
        /// Refused.
        Denied = "denied",
        /// Allowed by the policy, but it failed.
        Failed = "failed",
        /// Allowed because the mode is `observe`; no rule allows it.
        Observed = "observed",
    }
    /// Returns the metric label and log value.
    pub fn as_str
}

impl Reason {
    /// Returns the verdict on a flow that ends for this reason.
    pub const fn verdict(self) -> Verdict {
        match self {
            Reason::None => Verdict::Allowed,
            Reason::ResolveFailed
            | Reason::DialFailed
            | Reason::Timeout
            | Reason::ProtocolError
            | Reason::LogFailed => Verdict::Failed,
            Reason::NotWhitelisted
            | Reason::DeniedByRule
            | Reason::RuleExpired
            | Reason::PortNotAllowed
            | Reason::ProtocolNotAllowed
            | Reason::AddressFloor
            | Reason::NoName
            | Reason::NameMismatch
            | Reason::Malformed
            | Reason::Ech
            | Reason::ModeNone
            | Reason::UnknownGuest
            | Reason::Revoked
            | Reason::LimitConnections
            | Reason::LimitRate
            | Reason::LimitTotal
            | Reason::ShuttingDown
            | Reason::LimitNames
            | Reason::H2c
            | Reason::NotConfigured => Verdict::Denied,
        }
    }

    /// Returns the HTTP status of a refusal (RFC 9110 §15); 200 for [`Reason::None`].
    pub const fn http_status(self) -> u16 {
        match self {
            Reason::None => 200,
            Reason::Malformed | Reason::NameMismatch => 400,
            Reason::LimitConnections | Reason::LimitRate | Reason::LimitNames => 429,
            Reason::ResolveFailed | Reason::DialFailed | Reason::ProtocolError => 502,
            Reason::LimitTotal | Reason::ShuttingDown | Reason::LogFailed | Reason::NotConfigured => 503,
            Reason::H2c => 505,
            Reason::Timeout => 504,
            Reason::NotWhitelisted
            | Reason::DeniedByRule
            | Reason::RuleExpired
            | Reason::PortNotAllowed
            | Reason::ProtocolNotAllowed
            | Reason::AddressFloor
            | Reason::NoName
            | Reason::Ech
            | Reason::ModeNone
            | Reason::UnknownGuest
            | Reason::Revoked => 403,
        }
    }

    /// Returns the Proxy-Status error type of a refusal (RFC 9209 §2.3).
    pub const fn proxy_error(self) -> &'static str {
        match self {
            Reason::Malformed | Reason::NameMismatch | Reason::H2c => "http_request_error",
            Reason::LimitConnections | Reason::LimitRate | Reason::LimitTotal | Reason::LimitNames => {
                "connection_limit_reached"
            }
            Reason::ResolveFailed => "dns_error",
            Reason::DialFailed => "connection_refused",
            Reason::ProtocolError => "http_protocol_error",
            Reason::Timeout => "connection_timeout",
            Reason::AddressFloor => "destination_ip_prohibited",
            Reason::ShuttingDown | Reason::None => "proxy_internal_response",
            Reason::LogFailed => "proxy_internal_error",
            Reason::NotConfigured => "proxy_configuration_error",
            Reason::NotWhitelisted
            | Reason::DeniedByRule
            | Reason::RuleExpired
            | Reason::PortNotAllowed
            | Reason::ProtocolNotAllowed
            | Reason::NoName
            | Reason::Ech
            | Reason::ModeNone
            | Reason::UnknownGuest
            | Reason::Revoked => "http_request_denied",
        }
    }

    /// Returns the SOCKS5 reply code of a refusal (RFC 1928 §6); 0 for [`Reason::None`].
    pub const fn socks_reply(self) -> u8 {
        match self {
            Reason::None => 0,
            Reason::ResolveFailed | Reason::Timeout => 4,
            Reason::DialFailed | Reason::ProtocolError => 5,
            Reason::Malformed | Reason::LogFailed | Reason::NotConfigured => 1,
            Reason::NotWhitelisted
            | Reason::DeniedByRule
            | Reason::RuleExpired
            | Reason::PortNotAllowed
            | Reason::ProtocolNotAllowed
            | Reason::AddressFloor
            | Reason::NoName
            | Reason::NameMismatch
            | Reason::Ech
            | Reason::ModeNone
            | Reason::UnknownGuest
            | Reason::Revoked
            | Reason::LimitConnections
            | Reason::LimitRate
            | Reason::LimitTotal
            | Reason::ShuttingDown
            | Reason::LimitNames
            | Reason::H2c => 2,
        }
    }

    /// Returns whether one more rule would allow what is refused for this reason.
    pub const fn would_pass_with_a_rule(self) -> bool {
        match self {
            Reason::NotWhitelisted
            | Reason::RuleExpired
            | Reason::PortNotAllowed
            | Reason::ProtocolNotAllowed
            | Reason::H2c => true,
            Reason::None
            | Reason::DeniedByRule
            | Reason::AddressFloor
            | Reason::NoName
            | Reason::NameMismatch
            | Reason::Malformed
            | Reason::Ech
            | Reason::ModeNone
            | Reason::UnknownGuest
            | Reason::ResolveFailed
            | Reason::DialFailed
            | Reason::Timeout
            | Reason::Revoked
            | Reason::LimitConnections
            | Reason::LimitRate
            | Reason::LimitTotal
            | Reason::ShuttingDown
            | Reason::LimitNames
            | Reason::ProtocolError
            | Reason::LogFailed
            | Reason::NotConfigured => false,
        }
    }

    /// Returns one sentence for the guest. It names the remedy if there is one, but no internal addresses, rules or
    /// errors.
    pub const fn message(self) -> &'static str {
        match self {
            Reason::None => "Allowed.",
            Reason::NotWhitelisted => {
                "This destination is not on the operator's whitelist. Ask the operator to allow it."
            }
            Reason::DeniedByRule => "The operator denies this destination.",
            Reason::RuleExpired => "The operator's permission for this destination has expired.",
            Reason::PortNotAllowed => "The host is allowed, but not on this port.",
            Reason::ProtocolNotAllowed => "The host and port are allowed, but not for this protocol.",
            Reason::AddressFloor => "The destination is at an address that guests may not reach.",
            Reason::NoName => "The connection shows no host name, and one is required here.",
            Reason::NameMismatch => "The host names in this connection differ from one another.",
            Reason::Malformed => "The request is malformed.",
            Reason::Ech => "Encrypted ClientHello is not allowed here; turn it off in the client.",
            Reason::ModeNone => "This guest is not allowed any outbound connection.",
            Reason::UnknownGuest => "This source is not a known guest.",
            Reason::ResolveFailed => "The host name could not be resolved.",
            Reason::DialFailed => "The destination could not be connected to.",
            Reason::Timeout => "The destination or the client took too long.",
            Reason::Revoked => "The permission for this destination was withdrawn.",
            Reason::LimitConnections => "This guest has too many open connections.",
            Reason::LimitRate => "This guest opens connections or sends requests too quickly.",
            Reason::LimitTotal => "The gateway has too many open connections.",
            Reason::ShuttingDown => "The gateway is restarting; try again.",
            Reason::LimitNames => "This guest asks for too many new host names; try again in a while.",
            Reason::ProtocolError => "The destination's response is malformed or was cut.",
            Reason::H2c => "HTTP/2 in clear is not allowed here; use HTTP/1.1 or TLS.",
            Reason::LogFailed => {
                "The gateway cannot keep its records and lets nothing through meanwhile; try again later."
            }
            Reason::NotConfigured => {
                "The gateway has no usable configuration and lets nothing through meanwhile; try again later."
            }
        }
    }
}

/// The cause of a reason that can have several: a fixed phrase, never anything that somebody sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    phrase: &'static str,
    proxy_error: Option<&'static str>,
}

impl Cause {
    /// Returns a cause with this phrase, half a sentence.
    pub const fn of(phrase: &'static str) -> Cause {
        Cause { phrase, proxy_error: None }
    }

    /// Like [`Cause::of`], with a Proxy-Status error type of its own (RFC 9209 §2.3).
    pub const fn typed(phrase: &'static str, proxy_error: &'static str) -> Cause {
        Cause { phrase, proxy_error: Some(proxy_error) }
    }

    /// Returns the phrase.
    pub const fn phrase(self) -> &'static str {
        self.phrase
    }
}

/// A reason and its cause, if known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// The reason.
    pub reason: Reason,
    /// The cause.
    pub cause: Option<Cause>,
}

impl Why {
    /// Returns [`Reason::Malformed`] with this phrase as its cause.
    pub const fn malformed(phrase: &'static str) -> Why {
        Why::because(Reason::Malformed, Cause::of(phrase))
    }

    /// Returns a reason with its cause.
    pub const fn because(reason: Reason, cause: Cause) -> Why {
        Why { reason, cause: Some(cause) }
    }

    /// Returns the Proxy-Status error type: the cause's, else the reason's.
    pub fn proxy_error(self) -> &'static str {
        self.cause.and_then(|cause| cause.proxy_error).unwrap_or(self.reason.proxy_error())
    }

    /// Returns one sentence for the guest.
    pub fn message(self) -> Cow<'static, str> {
        let message = self.reason.message();
        match self.cause {
            Some(Cause { phrase, .. }) => format!("{}: {phrase}.", message.trim_end_matches('.')).into(),
            None => message.into(),
        }
    }
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Why {
        Why { reason, cause: None }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_tables_are_in_the_order_of_the_discriminants() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{reason}");
        }
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index, "{}", verdict.as_str());
        }
    }

    #[test]
    fn no_two_reasons_share_a_word() {
        let words: HashSet<&str> = Reason::ALL.into_iter().map(Reason::as_str).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
