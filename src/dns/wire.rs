//! DNS messages, RFC 1035: reads queries strictly and writes replies. Fields and codes are hickory's types. The
//! name is not, because a DNS name may hold any byte, and [`HostName::parse`] is the only way to create a name
//! here. Pure functions on byte slices.

use crate::name::HostName;
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use std::net::IpAddr;

/// UDP payload if the query does not state one (RFC 1035 §2.3.4), and the smallest it may state (RFC 6891 §6.2.3).
const PLAIN_UDP: u16 = 512;
/// UDP payload that a reply never exceeds, so that it is not fragmented (the DNS flag day of 2020).
const MAX_UDP: u16 = 1232;
/// The longest name on the wire, in bytes, including its root (RFC 1035 §2.3.4).
const MAX_WIRE_NAME: usize = 255;
/// The name of a record for the question's name: a pointer to the byte after the header (RFC 1035 §4.1.4).
const QUESTION_NAME: u16 = 0xc00c;
const HEADER: usize = 12;

/// A query whose reply can include its question.
#[derive(Clone, Debug)]
pub(super) struct Query<Q> {
    pub(super) metadata: Metadata,
    /// The question as in the message, including its letters' case.
    pub(super) question: Q,
    pub(super) edns: Option<Edns>,
    pub(super) kind: RecordType,
    pub(super) class: DNSClass,
}

/// The contents of a query's OPT record (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    payload: u16,
    pub(super) version: u8,
    dnssec_ok: bool,
}

/// The name in a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum QuestionName {
    /// A host name.
    Host(HostName),
    /// The root.
    Root,
    /// A name that no host can have.
    Unfit,
}

/// The kind of a message.
#[derive(Debug)]
pub(super) enum Message<'a> {
    /// A query with one question, and its name.
    Query(Query<&'a [u8]>, QuestionName),
    /// An invalid query; the reply has this code and no question.
    Wrong(Metadata, ResponseCode),
    /// Not a query. It is ignored, because an answer to it could start a loop (RFC 5625 §6.1 recommends the same).
    Noise,
}

/// An extended error (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExtendedError {
    pub(super) code: u16,
    pub(super) text: &'static str,
}

/// The reply to a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) code: ResponseCode,
    pub(super) addresses: &'a [IpAddr],
    /// The TTL of the addresses, in seconds.
    pub(super) ttl: u32,
    pub(super) error: Option<ExtendedError>,
}

impl Reply<'_> {
    /// Creates a reply without records.
    pub(super) fn empty(code: ResponseCode, error: Option<ExtendedError>) -> Reply<'static> {
        Reply { code, addresses: &[], ttl: 0, error }
    }
}

/// Reads one whole message.
pub(super) fn read(message: &[u8]) -> Message<'_> {
    let mut decoder = BinDecoder::new(message);
    let Ok(header) = Header::read(&mut decoder) else { return Message::Noise };
    let (metadata, counts) = (header.metadata, header.counts);
    if metadata.message_type == MessageType::Response {
        return Message::Noise;
    }
    if metadata.op_code != OpCode::Query {
        return Message::Wrong(metadata, ResponseCode::NotImp);
    }
    match read_body(message, decoder, metadata, counts) {
        Some((query, asked)) => Message::Query(query, asked),
        None => Message::Wrong(metadata, ResponseCode::FormErr),
    }
}

/// Reads the rest of a query; `None` if its format is wrong. A query may have no records except one OPT.
fn read_body<'a>(
    message: &'a [u8],
    mut decoder: BinDecoder<'a>,
    metadata: Metadata,
    counts: HeaderCounts,
) -> Option<(Query<&'a [u8]>, QuestionName)> {
    if (counts.queries, counts.answers, counts.authorities) != (1, 0, 0) || counts.additionals > 1 {
        return None;
    }
    let asked = read_name(&mut decoder)?;
    let kind = RecordType::read(&mut decoder).ok()?;
    let class = DNSClass::from(read_u16(&mut decoder)?);
    let question = message.get(HEADER..decoder.index())?;
    let edns = if counts.additionals == 1 { Some(read_opt(&mut decoder)?) } else { None };
    decoder.is_empty().then_some((Query { metadata, question, edns, kind, class }, asked))
}

/// Reads the question's name. It cannot be compressed, because nothing precedes it.
fn read_name(decoder: &mut BinDecoder<'_>) -> Option<QuestionName> {
    let mut text = [0u8; MAX_WIRE_NAME];
    let mut length = 0usize;
    let mut fit = true;
    loop {
        let size = read_u8_below(decoder, 64)?;
        let label = read_slice(decoder, usize::from(size))?;
        if label.is_empty() {
            break;
        }
        // A dot within a label would look like two labels.
        fit &= !label.contains(&b'.');
        let end = length.checked_add(label.len())?;
        // The dot replaces the next length byte, so one byte is left for the root.
        text.get_mut(length..end)?.copy_from_slice(label);
        *text.get_mut(end)? = b'.';
        length = end + 1;
        if length >= MAX_WIRE_NAME {
            return None;
        }
    }
    let text = text.get(..length)?;
    if text.is_empty() {
        return Some(QuestionName::Root);
    }
    let name = if fit { HostName::parse(text).ok() } else { None };
    Some(name.map_or(QuestionName::Unfit, QuestionName::Host))
}

fn read_opt(decoder: &mut BinDecoder<'_>) -> Option<Edns> {
    let root = read_u8_below(decoder, 1)?;
    let kind = RecordType::read(decoder).ok()?;
    if root != 0 || kind != RecordType::OPT {
        return None;
    }
    let payload = read_u16(decoder)?;
    let [_, version, flags, _] = decoder.read_u32().ok()?.unverified().to_be_bytes();
    let length = read_u16(decoder)?;
    let mut options = read_slice(decoder, usize::from(length))?;
    while !options.is_empty() {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let [_, _, high, low] = *head;
        options = rest.get(usize::from(u16::from_be_bytes([high, low]))..)?;
    }
    Some(Edns { payload, version, dnssec_ok: flags & 0x80 != 0 })
}

fn read_u8_below(decoder: &mut BinDecoder<'_>, bound: u8) -> Option<u8> {
    decoder.read_u8().ok()?.verify_unwrap(|byte| *byte < bound).ok()
}

fn read_u16(decoder: &mut BinDecoder<'_>) -> Option<u16> {
    // Every value is valid here; the caller interprets it.
    Some(decoder.read_u16().ok()?.unverified())
}

fn read_slice<'a>(decoder: &mut BinDecoder<'a>, length: usize) -> Option<&'a [u8]> {
    Some(decoder.read_slice(length).ok()?.unverified())
}

impl<Q: AsRef<[u8]>> Query<Q> {
    /// Returns how large a reply over UDP may be, in bytes.
    pub(super) fn udp_limit(&self) -> u16 {
        self.edns.map_or(PLAIN_UDP, |edns| edns.payload.clamp(PLAIN_UDP, MAX_UDP))
    }

    /// Returns the same query with an owned question, for a reply that has to wait.
    pub(super) fn to_owned(&self) -> Query<Box<[u8]>> {
        let Query { metadata, edns, kind, class, .. } = *self;
        Query { metadata, question: self.question.as_ref().into(), edns, kind, class }
    }

    /// Replaces `into` with the reply. If it would exceed `limit` bytes, it has as many records as fit and is
    /// marked as truncated. Some clients, such as old musl, have no TCP to ask again and use the records that
    /// there are (RFC 2181 §9 lets others ignore them).
    pub(super) fn reply(&self, reply: &Reply<'_>, limit: u16, into: &mut Vec<u8>) -> Result<(), ProtoError> {
        let question = self.question.as_ref();
        let record = 12 + if self.kind == RecordType::AAAA { 16 } else { 4 };
        let opt = self.edns.map_or(0, |_| 11 + reply.error.map_or(0, |error| 6 + error.text.len()));
        let room = usize::from(limit).saturating_sub(HEADER + question.len() + opt);
        let addresses = reply.addresses.get(..room / record).unwrap_or(reply.addresses);
        let truncated = addresses.len() < reply.addresses.len();

        into.clear();
        let mut encoder = BinEncoder::new(into);
        let mut metadata = answering(&self.metadata);
        metadata.response_code = reply.code;
        metadata.truncation = truncated;
        let counts = HeaderCounts {
            queries: 1,
            answers: u16::try_from(addresses.len()).unwrap_or(u16::MAX),
            authorities: 0,
            additionals: u16::from(self.edns.is_some()),
        };
        Header { metadata, counts }.emit(&mut encoder)?;
        encoder.emit_vec(question)?;
        for address in addresses {
            encoder.emit_u16(QUESTION_NAME)?;
            self.kind.emit(&mut encoder)?;
            DNSClass::IN.emit(&mut encoder)?;
            encoder.emit_u32(reply.ttl)?;
            match address {
                IpAddr::V4(v4) => {
                    encoder.emit_u16(4)?;
                    encoder.emit_vec(&v4.octets())?;
                }
                IpAddr::V6(v6) => {
                    encoder.emit_u16(16)?;
                    encoder.emit_vec(&v6.octets())?;
                }
            }
        }
        if let Some(edns) = self.edns {
            emit_opt(&mut encoder, edns, reply)?;
        }
        Ok(())
    }
}

fn emit_opt(encoder: &mut BinEncoder<'_>, edns: Edns, reply: &Reply<'_>) -> Result<(), ProtoError> {
    const EDE: u16 = 15;
    encoder.emit_u8(0)?;
    RecordType::OPT.emit(encoder)?;
    encoder.emit_u16(MAX_UDP)?;
    encoder.emit_u8(reply.code.high())?;
    encoder.emit_u8(0)?;
    encoder.emit_u16(if edns.dnssec_ok { 0x8000 } else { 0 })?;
    let Some(error) = reply.error else { return encoder.emit_u16(0) };
    let text = u16::try_from(error.text.len()).unwrap_or(0);
    encoder.emit_u16(text + 6)?;
    encoder.emit_u16(EDE)?;
    encoder.emit_u16(text + 2)?;
    encoder.emit_u16(error.code)?;
    encoder.emit_vec(error.text.as_bytes())
}

/// Replaces `into` with a reply to an invalid query.
pub(super) fn reject(metadata: &Metadata, code: ResponseCode, into: &mut Vec<u8>) -> Result<(), ProtoError> {
    into.clear();
    let mut metadata = answering(metadata);
    metadata.response_code = code;
    Header { metadata, counts: HeaderCounts::default() }.emit(&mut BinEncoder::new(into))
}

fn answering(query: &Metadata) -> Metadata {
    let mut metadata = Metadata::response_from_request(query);
    metadata.recursion_available = true;
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::op::Message as Second;
    use hickory_resolver::proto::rr::RData;
    use proptest::prelude::*;

    fn message(labels: &[&[u8]], kind: u16, tail: &[u8]) -> Vec<u8> {
        let opt = u8::from(!tail.is_empty());
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, opt];
        for label in labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(*label);
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(tail);
        bytes
    }

    /// Returns an OPT record of payload 4096, DO set, with these options.
    fn opt(options: &[u8]) -> Vec<u8> {
        let length = u16::try_from(options.len()).unwrap().to_be_bytes();
        [&[0, 0, 41, 0x10, 0, 0, 0, 0x80, 0], &length[..], options].concat()
    }

    fn asked(bytes: &[u8]) -> Option<QuestionName> {
        match read(bytes) {
            Message::Query(_, asked) => Some(asked),
            Message::Wrong(..) | Message::Noise => None,
        }
    }

    fn code(bytes: &[u8]) -> Option<ResponseCode> {
        match read(bytes) {
            Message::Wrong(_, code) => Some(code),
            Message::Query(..) | Message::Noise => None,
        }
    }

    #[test]
    fn names_come_through_the_one_door() {
        let host = |text| Some(QuestionName::Host(HostName::parse(text).unwrap()));
        assert_eq!(asked(&message(&[b"GOOD", b"Test"], 1, &[])), host("good.test"));
        assert_eq!(asked(&message(&[b"a_b", b"x--y", b"io"], 28, &opt(&[]))), host("a_b.x--y.io"));
        assert_eq!(asked(&message(&[], 2, &[])), Some(QuestionName::Root));
        for labels in [&[b"evil.good".as_slice(), b"test"][..], &[b"."], &[b"a", b"1"], &[b"a b"], &[b"\0"]] {
            assert_eq!(asked(&message(labels, 1, &[])), Some(QuestionName::Unfit), "{labels:?}");
        }
    }

    #[test]
    fn the_longest_name_is_255_bytes_on_the_wire() {
        let label = [b'a'; 63];
        let most = [&label[..], &label, &label, &label[..61]];
        assert!(matches!(asked(&message(&most, 1, &[])), Some(QuestionName::Host(_))));
        let more = [&label[..], &label, &label, &label[..62]];
        assert_eq!(code(&message(&more, 1, &[])), Some(ResponseCode::FormErr));
    }

    #[test]
    fn options_must_fill_their_record_and_are_not_read() {
        assert!(asked(&message(&[b"a", b"io"], 1, &opt(&[0, 10, 0, 2, 1, 2, 0, 12, 0, 0]))).is_some());
        for options in [&[0, 10, 0, 3, 1, 2][..], &[0, 10, 0], &[0]] {
            assert_eq!(code(&message(&[b"a", b"io"], 1, &opt(options))), Some(ResponseCode::FormErr), "{options:?}");
        }
        let other = [0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(code(&message(&[b"a", b"io"], 1, &other)), Some(ResponseCode::FormErr), "an A record in a query");
    }

    #[test]
    fn a_reply_is_read_by_others_as_it_was_meant() {
        let bytes = message(&[b"GooD", b"test"], 28, &opt(&[]));
        let Message::Query(query, _) = read(&bytes) else { panic!() };
        let addresses: Vec<IpAddr> = (0..20).map(|n| IpAddr::from([0x2600, 0, 0, 0, 0, 0, 0, n])).collect();
        let error = Some(ExtendedError { code: 3, text: "old" });
        let reply = Reply { code: ResponseCode::NoError, addresses: &addresses, ttl: 30, error };
        let mut out = vec![1, 2, 3];
        query.reply(&reply, query.udp_limit(), &mut out).unwrap();
        let seen = Second::from_vec(&out).unwrap();
        assert_eq!(
            (seen.metadata.id, seen.metadata.recursion_available, seen.metadata.truncation),
            (0x1234, true, false)
        );
        assert_eq!(seen.queries[0].name().to_ascii(), "GooD.test.");
        let found: Vec<IpAddr> = seen
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            })
            .collect();
        assert_eq!(found, addresses);
        assert!(seen.answers.iter().all(|record| record.ttl == 30 && record.name.to_ascii() == "GooD.test."));
        let edns = seen.edns.unwrap();
        assert_eq!((edns.max_payload(), edns.flags().dnssec_ok, edns.version()), (1232, true, 0));
    }

    #[test]
    fn a_reply_never_exceeds_its_limit_and_says_when_it_had_to_be_cut() {
        let bytes = message(&[b"good", b"test"], 1, &[]);
        let Message::Query(query, _) = read(&bytes) else { panic!() };
        let mut out = Vec::new();
        for count in 0..64u8 {
            let addresses: Vec<IpAddr> = (0..count).map(|n| IpAddr::from([11, 0, 0, n])).collect();
            let reply = Reply { code: ResponseCode::NoError, addresses: &addresses, ttl: 1, error: None };
            query.reply(&reply, query.udp_limit(), &mut out).unwrap();
            let seen = Second::from_vec(&out).unwrap();
            assert!(out.len() <= 512);
            assert_eq!(seen.metadata.truncation, seen.answers.len() != usize::from(count));
            assert_eq!(seen.metadata.truncation, 12 + 15 + usize::from(count) * 16 > 512);
            assert_eq!(seen.answers.len(), usize::from(count).min((512 - 27) / 16));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_without_a_panic_and_answered_in_form(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80), shape in 0..3u8,
        ) {
            if shape > 0 && bytes.len() > 12 {
                // Make it resemble a query, so that more than the header is read.
                bytes[2] = 1;
                bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, shape - 1]);
            }
            let mut out = Vec::new();
            match read(&bytes) {
                Message::Noise => return Ok(()),
                Message::Wrong(metadata, code) => reject(&metadata, code, &mut out).unwrap(),
                Message::Query(query, _) => {
                    let error = Some(ExtendedError { code: 15, text: "not_whitelisted" });
                    let reply = Reply::empty(ResponseCode::NXDomain, error);
                    query.to_owned().reply(&reply, query.udp_limit(), &mut out).unwrap();
                    prop_assert!(out.len() <= bytes.len() + 21);
                }
            }
            prop_assert_eq!(Second::from_vec(&out).unwrap().metadata.id.to_be_bytes().to_vec(), bytes[..2].to_vec());
        }
    }
}
