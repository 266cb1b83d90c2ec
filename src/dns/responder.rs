//! Processes one query from its bytes to the bytes of its reply: the guest's rate, strict parsing, the policy,
//! and only then the resolver. If no server has to be asked, the reply is ready at once.
//!
//! | the query | the reply |
//! |---|---|
//! | over the guest's rate | the answer, a little later; SERVFAIL if it would be much later; no answer in a flood |
//! | over the guest's budget of new names | the answer, a little later; SERVFAIL if it would be much later |
//! | not a query, or a response | no answer |
//! | opcode, format, EDNS version, class | NOTIMP, FORMERR, BADVERS, REFUSED |
//! | a name that no rule could allow | NXDOMAIN, extended error 15 and the reason |
//! | a name above one that some rule allows | no data, the same extended error |
//! | an allowed name, not A or AAAA; AAAA without IPv6 listeners, where the name exists | no data |
//! | an allowed name with an address in the floor | no data, extended error 15 and the reason |
//! | an allowed name that does not exist | NXDOMAIN |
//! | no server could answer | SERVFAIL, extended error 14, 22 or 23 |
//! | an allowed name while the access log fails and nothing may pass unlogged | SERVFAIL, extended error 14 |
//!
//! No reply has an SOA record, so replies without addresses are not cached (RFC 2308 §5): a newly allowed name
//! works at once.

use super::answers;
use super::wire::{self, ExtendedError, Message, Query, QuestionName, Reply};
use crate::account::Limit;
use crate::guest::Guest;
use crate::identify::{Claim, Evidence};
use crate::limits::{GuestPermit, QueryPace};
use crate::listener::ListenerLabel;
use crate::name::HostName;
use crate::policy::{NamePermit, Refusal};
use crate::reason::{Reason, Why};
use crate::resolve::{AddressKind, DnsAnswer, LookupError, VetError};
use crate::services::{Services, Snapshot};
use crate::target::{Host, Target, Transport};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The longest TTL in a reply, so that a name removed from the list soon stops working.
const MAX_TTL: Duration = Duration::from_secs(60);
/// The TTL of a stale answer (RFC 8767 §5).
const STALE_TTL: Duration = Duration::from_secs(30);

/// Extended errors, RFC 8914 §4.
pub(super) mod extended {
    pub(in crate::dns) const OTHER: u16 = 0;
    pub(in crate::dns) const STALE_ANSWER: u16 = 3;
    pub(in crate::dns) const NOT_READY: u16 = 14;
    pub(in crate::dns) const BLOCKED: u16 = 15;
    pub(in crate::dns) const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub(in crate::dns) const NETWORK_ERROR: u16 = 23;
}

/// Answers queries; one per worker thread.
pub(super) struct Responder {
    pub(super) services: Arc<Services>,
    /// Whether guests' connections can arrive through IPv6 listeners.
    pub(super) v6: bool,
}

/// The result of processing a message.
pub(super) enum Processed {
    /// No reply must be sent.
    Silence,
    /// The reply is ready.
    Reply,
    /// The query has to wait.
    Wait(Box<Waiting>),
}

/// A waiting query.
pub(super) enum Waiting {
    /// It waits for its turn: its guest is over its rate.
    Turn(Early),
    /// It waits for the resolver, which asks servers.
    Servers(Asking),
}

/// A query that came too early.
pub(super) struct Early {
    message: Box<[u8]>,
    client: Client,
    over: Over,
    turn: Instant,
    permit: GuestPermit,
}

/// A query for a name that the resolver looks up.
pub(super) struct Asking {
    granted: Granted<Box<[u8]>>,
    kind: AddressKind,
}

impl Waiting {
    /// Whether it waits because its guest is over its rate.
    pub(super) fn is_early(&self) -> bool {
        matches!(self, Waiting::Turn(_))
    }
}

/// A query for a permitted name.
struct Granted<Q> {
    query: Query<Q>,
    permit: NamePermit,
    client: Client,
    /// The largest reply, in bytes.
    limit: u16,
    /// AAAA without IPv6 listeners: the reply only shows whether the name exists (RFC 8020).
    existence: bool,
}

/// Where a query came from.
struct Client {
    source: SocketAddr,
    guest: Guest,
    /// The bindings' revision before the guest was identified and its query judged.
    under: u64,
}

/// The transport of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Udp,
    Tcp,
}

/// A query that is refused or failed: its answer, and why.
struct RefusedQuery {
    code: ResponseCode,
    extended: u16,
    refusal: Refusal,
}

impl Responder {
    /// Processes one message; a reply replaces the contents of `into`.
    pub(super) fn attend(&self, message: &[u8], source: SocketAddr, over: Over, into: &mut Vec<u8>) -> Processed {
        let now = Instant::now();
        let under = self.services.bindings.revision();
        let client = Client { source, guest: self.services.guest_at(source.ip(), None), under };
        match self.services.gate.query(&client.guest.usage, now) {
            QueryPace::Now => self.answer(message, client, over, true, into),
            QueryPace::After(wait, permit) => {
                self.services.account.metrics().paced(Limit::Queries);
                let early = Early { message: message.into(), client, over, turn: now + wait, permit };
                Processed::Wait(Box::new(Waiting::Turn(early)))
            }
            QueryPace::Over => {
                self.services.account.metrics().over(Limit::Queries);
                self.answer(message, client, over, false, into)
            }
            QueryPace::Flood => {
                self.services.account.metrics().over(Limit::Queries);
                self.unanswered();
                Processed::Silence
            }
        }
    }

    /// Identifies the guest of a query anew, after a wait in which another policy may have come into force.
    fn refresh(&self, client: &mut Client) {
        client.under = self.services.bindings.revision();
        self.services.refresh(&mut client.guest);
    }

    /// Counts a query that gets no answer.
    pub(super) fn unanswered(&self) {
        self.services.account.metrics().query_unanswered();
    }

    /// Answers one message now; it is refused if it is not `in_time`.
    fn answer(&self, message: &[u8], client: Client, over: Over, in_time: bool, into: &mut Vec<u8>) -> Processed {
        let (query, asked) = match wire::read(message) {
            Message::Noise => return Processed::Silence,
            Message::Wrong(metadata, code) => {
                let reason = if code == ResponseCode::NotImp { Reason::ProtocolNotAllowed } else { Reason::Malformed };
                assert_documented(reason, (code, None));
                self.log(&client, None, &Refusal { reason, rule: None });
                return wire::reject(&metadata, code, into).map_or(Processed::Silence, |()| Processed::Reply);
            }
            Message::Query(query, asked) => (query, asked),
        };
        let limit = if over == Over::Tcp { u16::MAX } else { query.udp_limit() };
        let decided = match in_time {
            // Queries to servers would carry data out that nothing records.
            true => {
                self.decide(&query, &asked, &client.guest).and_then(|permit| match self.services.account.refuses() {
                    false => Ok(permit),
                    true => Err(RefusedQuery::new(ResponseCode::ServFail, extended::NOT_READY, Reason::LogFailed)),
                })
            }
            false => Err(RefusedQuery::new(ResponseCode::ServFail, extended::OTHER, Reason::LimitRate)),
        };
        let permit = match decided {
            Ok(permit) => permit,
            Err(refused) => {
                // A guest over its rate gets one folded line, whatever it asks for.
                let named = Some(&asked).filter(|_| in_time);
                self.log(&client, named, &refused.refusal);
                return send(&query, &refused.reply(), limit, into);
            }
        };
        let existence = query.kind == RecordType::AAAA && !self.v6;
        let kind = match query.kind {
            RecordType::A => AddressKind::V4,
            RecordType::AAAA if existence => AddressKind::V4,
            RecordType::AAAA => AddressKind::V6,
            _ => {
                self.services.account.metrics().query_answered(permit.observed());
                return send(&query, &Reply::empty(ResponseCode::NoError, None), limit, into);
            }
        };
        match self.services.resolver.try_dns_answer(&permit, kind) {
            Some(told) => self.tell(&Granted { query, permit, client, limit, existence }, told, into),
            None => {
                let granted = Granted { query: query.to_owned(), permit, client, limit, existence };
                Processed::Wait(Box::new(Waiting::Servers(Asking { granted, kind })))
            }
        }
    }

    /// Waits for its turn, the resolver or both; returns false if there is nothing to send.
    pub(super) async fn attend_later(&self, waiting: Box<Waiting>, into: &mut Vec<u8>) -> bool {
        let early = match *waiting {
            Waiting::Servers(asking) => return self.ask(asking, into).await,
            Waiting::Turn(early) => early,
        };
        let Early { message, mut client, over, turn, permit } = early;
        tokio::time::sleep_until(turn).await;
        self.refresh(&mut client);
        // From here on, it waits for servers like any other query.
        drop(permit);
        match self.answer(&message, client, over, true, into) {
            Processed::Silence => false,
            Processed::Reply => true,
            Processed::Wait(waiting) => match *waiting {
                Waiting::Servers(asking) => self.ask(asking, into).await,
                // A query waits for its turn only once.
                Waiting::Turn(_) => false,
            },
        }
    }

    /// Asks the resolver; returns false if there is nothing to send.
    async fn ask(&self, asking: Asking, into: &mut Vec<u8>) -> bool {
        let Asking { mut granted, kind } = asking;
        let may_look_up = self.services.may_look_up(&granted.client.guest);
        let told = self.services.resolver.dns_answer(&granted.permit, kind, may_look_up).await;
        self.refresh(&mut granted.client);
        let Granted { query, permit, client, limit, .. } = &granted;
        // The list may have changed meanwhile, and the reply must match the current one.
        let again = self.snapshot().policy.permit_name(&client.guest.source, permit.name());
        let processed = match again {
            Ok(_) => self.tell(&granted, told, into),
            Err(refused) => {
                let refused = RefusedQuery::by_policy(refused.refusal, refused.is_parent);
                self.log(client, Some(&QuestionName::Host(permit.name().clone())), &refused.refusal);
                send(query, &refused.reply(), *limit, into)
            }
        };
        matches!(processed, Processed::Reply)
    }

    /// Makes all decisions that do not require the resolver.
    fn decide(&self, query: &Query<&[u8]>, asked: &QuestionName, guest: &Guest) -> Result<NamePermit, RefusedQuery> {
        if query.edns.is_some_and(|edns| edns.version > 0) {
            return Err(RefusedQuery::new(ResponseCode::BADVERS, extended::OTHER, Reason::ProtocolNotAllowed));
        }
        if query.class != DNSClass::IN {
            return Err(RefusedQuery::new(ResponseCode::Refused, extended::BLOCKED, Reason::ProtocolNotAllowed));
        }
        match asked {
            QuestionName::Host(name) => self
                .snapshot()
                .policy
                .permit_name(&guest.source, name)
                .map_err(|refused| RefusedQuery::by_policy(refused.refusal, refused.is_parent)),
            // The root exists, and all names lie below it.
            QuestionName::Root => {
                Err(RefusedQuery::new(ResponseCode::NoError, extended::BLOCKED, Reason::NotWhitelisted))
            }
            QuestionName::Unfit => Err(RefusedQuery::new(ResponseCode::NXDomain, extended::BLOCKED, Reason::Malformed)),
        }
    }

    /// Builds the reply to a query whose name is permitted.
    fn tell<Q: AsRef<[u8]>>(
        &self,
        granted: &Granted<Q>,
        told: Result<DnsAnswer, VetError>,
        into: &mut Vec<u8>,
    ) -> Processed {
        let Granted { query, permit, client, limit, existence } = granted;
        let told = match told {
            Err(error @ VetError::Lookup(LookupError::NoSuchName | LookupError::Reserved | LookupError::Crowded)) => {
                return self.tell_failure(granted, &error, into);
            }
            _ if *existence => {
                self.services.account.metrics().query_answered(permit.observed());
                return send(query, &Reply::empty(ResponseCode::NoError, None), *limit, into);
            }
            Ok(told) => told,
            Err(error) => return self.tell_failure(granted, &error, into),
        };
        self.services.account.metrics().query_answered(permit.observed());
        if !told.addresses().is_empty() {
            let Client { source, guest, under } = client;
            self.services.bindings.note(source.ip(), guest.name(), permit.name(), told.addresses(), told.ttl());
            // A reload may have dropped the bindings that its list refuses before this one was noted.
            if self.services.bindings.revision() != *under {
                self.services.drop_late_bindings();
            }
        }
        let ttl = if told.is_stale() { STALE_TTL } else { told.ttl().min(MAX_TTL) };
        let stale = told.is_stale().then_some(ExtendedError { code: extended::STALE_ANSWER, text: "" });
        let reply = Reply {
            code: ResponseCode::NoError,
            addresses: told.addresses(),
            ttl: u32::try_from(ttl.as_secs()).unwrap_or(0),
            error: stale,
        };
        send(query, &reply, *limit, into)
    }

    fn tell_failure<Q: AsRef<[u8]>>(&self, granted: &Granted<Q>, error: &VetError, into: &mut Vec<u8>) -> Processed {
        let Granted { query, permit, client, limit, .. } = granted;
        use extended::{BLOCKED, NETWORK_ERROR, NO_REACHABLE_AUTHORITY, NOT_READY, OTHER};
        let answered = |code| {
            self.services.account.metrics().query_answered(permit.observed());
            Reply::empty(code, None)
        };
        let (code, extended, reason) = match error {
            VetError::Lookup(LookupError::NoSuchName) => {
                return send(query, &answered(ResponseCode::NXDomain), *limit, into);
            }
            VetError::Lookup(LookupError::NoAddresses) => {
                return send(query, &answered(ResponseCode::NoError), *limit, into);
            }
            VetError::Lookup(LookupError::Reserved) => (ResponseCode::NXDomain, BLOCKED, Reason::AddressFloor),
            VetError::Lookup(LookupError::Timeout | LookupError::Unreachable) => {
                (ResponseCode::ServFail, NO_REACHABLE_AUTHORITY, error.reason())
            }
            VetError::Lookup(LookupError::Refused(_)) => (ResponseCode::ServFail, NETWORK_ERROR, error.reason()),
            VetError::Lookup(LookupError::Crowded) => {
                self.services.account.metrics().over(Limit::NewNames);
                (ResponseCode::ServFail, OTHER, error.reason())
            }
            VetError::Lookup(LookupError::NoServers | LookupError::Busy | LookupError::Stopped) => {
                (ResponseCode::ServFail, NOT_READY, error.reason())
            }
            VetError::Undecided(..) => (ResponseCode::ServFail, OTHER, error.reason()),
            VetError::SpecialPurpose { .. }
            | VetError::Guest(_)
            | VetError::Own(_)
            | VetError::Listener(_)
            | VetError::OutsideTo(_)
            | VetError::Denied(_) => (ResponseCode::NoError, BLOCKED, error.reason()),
        };
        tracing::debug!(name = %permit.name(), %error, "a guest's DNS query");
        let refused = RefusedQuery::new(code, extended, reason);
        self.log(client, Some(&QuestionName::Host(permit.name().clone())), &refused.refusal);
        send(query, &refused.reply(), *limit, into)
    }

    fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.services.snapshot.load()
    }

    /// Counts a refusal or failure and logs it.
    fn log(&self, client: &Client, asked: Option<&QuestionName>, refusal: &Refusal) {
        let Client { source, guest, .. } = client;
        let mut record = self.services.account.open(ListenerLabel::Dns, *source, &guest.counters);
        match asked {
            Some(QuestionName::Host(name)) => record.claim(&claim(guest, name)),
            Some(QuestionName::Root) => record.shown(b"."),
            Some(QuestionName::Unfit) | None => {}
        }
        let why = match (refusal.reason, asked) {
            (Reason::Malformed, Some(_)) => Why::malformed("what is asked for is no host name"),
            (Reason::Malformed, None) => Why::malformed("the DNS message is out of form"),
            (reason @ Reason::LimitRate, _) => Limit::Queries.why(reason),
            (reason @ Reason::LimitNames, _) => Limit::NewNames.why(reason),
            (reason, _) => reason.into(),
        };
        record.refuse(why, refusal.rule.clone());
    }
}

impl RefusedQuery {
    fn new(code: ResponseCode, extended: u16, reason: Reason) -> RefusedQuery {
        RefusedQuery::with(code, extended, Refusal { reason, rule: None })
    }

    fn by_policy(refusal: Refusal, is_parent: bool) -> RefusedQuery {
        let (code, extended) = match refusal.reason {
            // Without a configuration nothing is known of any name: the client should ask again.
            Reason::NotConfigured => (ResponseCode::ServFail, extended::NOT_READY),
            _ if is_parent => (ResponseCode::NoError, extended::BLOCKED),
            _ => (ResponseCode::NXDomain, extended::BLOCKED),
        };
        RefusedQuery::with(code, extended, refusal)
    }

    fn with(code: ResponseCode, extended: u16, refusal: Refusal) -> RefusedQuery {
        assert_documented(refusal.reason, (code, Some(extended)));
        RefusedQuery { code, extended, refusal }
    }

    fn reply(&self) -> Reply<'static> {
        Reply::empty(self.code, Some(ExtendedError { code: self.extended, text: self.refusal.reason.as_str() }))
    }
}

/// Asserts that the documented answers have this one; does nothing in release builds.
#[expect(clippy::disallowed_macros, reason = "ends no release build, and every query of the tests passes here")]
fn assert_documented(reason: Reason, answer: answers::Answer) {
    debug_assert!(answers::possible(reason).contains(&answer), "dns/answers.rs lacks {answer:?} for {reason}");
}

/// Returns the claim of a log line. A query has no port; 443 is the usual one, and near misses are searched with it.
fn claim(guest: &Guest, name: &HostName) -> Claim {
    Claim {
        source: guest.source.clone(),
        target: Target { host: Host::Name(name.clone()), port: 443 },
        transport: Transport::Tcp,
        spoken: None,
        ech: false,
        evidence: Evidence::Dns,
    }
}

fn send<Q: AsRef<[u8]>>(query: &Query<Q>, reply: &Reply<'_>, limit: u16, into: &mut Vec<u8>) -> Processed {
    // Records that do not fit were left out before, so an error is a defect; without an answer the guest asks again.
    query.reply(reply, limit, into).map_or(Processed::Silence, |()| Processed::Reply)
}
