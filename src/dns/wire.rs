//! DNS messages, RFC 1035: a query in, strictly, and a reply out. Fields and codes are hickory's; the
//! name is not, for a name may hold any byte there, and [`HostName::parse`] is the only door for names.
//! Pure functions over byte slices.

use crate::name::HostName;
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use std::net::IpAddr;

/// UDP payload where the query says nothing of it (RFC 1035 §2.3.4), and the least it may say (RFC 6891
/// §6.2.3).
const PLAIN_UDP: u16 = 512;
/// UDP payload that is never exceeded, so that no reply is fragmented (the DNS flag day of 2020).
const MAX_UDP: u16 = 1232;
/// The longest name on the wire, in bytes, its root included (RFC 1035 §2.3.4).
const MAX_WIRE_NAME: usize = 255;
/// The name of a record that is the question's: a pointer to right behind the header (RFC 1035 §4.1.4).
const QUESTION_NAME: u16 = 0xc00c;
const HEADER: usize = 12;

/// A query that can be answered with a question.
#[derive(Clone, Debug)]
pub(super) struct Query<Q> {
    pub(super) metadata: Metadata,
    /// The question as it stands in the message, its letters' case included.
    pub(super) question: Q,
    pub(super) edns: Option<Edns>,
    pub(super) kind: RecordType,
    pub(super) class: DNSClass,
}

/// What a query says by its OPT record (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    payload: u16,
    pub(super) version: u8,
    dnssec_ok: bool,
}

/// The name that a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A host name.
    Host(HostName),
    /// The root.
    Root,
    /// What no host can be named.
    Unfit,
}

/// What a message is.
#[derive(Debug)]
pub(super) enum Message<'a> {
    /// A query with one question, and its name.
    Query(Query<&'a [u8]>, Asked),
    /// A query that cannot be taken, to be answered with this code and no question.
    Wrong(Metadata, ResponseCode),
    /// No query at all; to be ignored, as an answer to it could start a loop (RFC 5625 §6.1 is of the
    /// same mind).
    Noise,
}

/// An extended error (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExtendedError {
    pub(super) code: u16,
    pub(super) text: &'static str,
}

/// What a query is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) code: ResponseCode,
    pub(super) addresses: &'a [IpAddr],
    /// Of the addresses, in seconds.
    pub(super) ttl: u32,
    pub(super) error: Option<ExtendedError>,
}

impl Reply<'_> {
    /// No records.
    pub(super) fn empty(code: ResponseCode, error: Option<ExtendedError>) -> Reply<'static> {
        Reply { code, addresses: &[], ttl: 0, error }
    }
}

/// Reads one message, all of it.
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

/// `None` where the format is wrong. Records other than one OPT have no place in a query.
fn read_body<'a>(
    message: &'a [u8],
    mut decoder: BinDecoder<'a>,
    metadata: Metadata,
    counts: HeaderCounts,
) -> Option<(Query<&'a [u8]>, Asked)> {
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

/// The name of the question; nothing in it may be compressed, as nothing stands before it.
fn read_name(decoder: &mut BinDecoder<'_>) -> Option<Asked> {
    let mut text = [0u8; MAX_WIRE_NAME];
    let mut length = 0usize;
    let mut fit = true;
    loop {
        let size = read_u8_below(decoder, 64)?;
        let label = read_slice(decoder, usize::from(size))?;
        if label.is_empty() {
            break;
        }
        // A dot within a label would read as two labels.
        fit &= !label.contains(&b'.');
        let end = length.checked_add(label.len())?;
        // The dot takes the place of the next length, so what is left is the root's.
        text.get_mut(length..end)?.copy_from_slice(label);
        *text.get_mut(end)? = b'.';
        length = end + 1;
        if length >= MAX_WIRE_NAME {
            return None;
        }
    }
    let text = text.get(..length)?;
    if text.is_empty() {
        return Some(Asked::Root);
    }
    let name = if fit { HostName::parse(text).ok() } else { None };
    Some(name.map_or(Asked::Unfit, Asked::Host))
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
    // Any value is one; what it means is for the caller.
    Some(decoder.read_u16().ok()?.unverified())
}

fn read_slice<'a>(decoder: &mut BinDecoder<'a>, length: usize) -> Option<&'a [u8]> {
    Some(decoder.read_slice(length).ok()?.unverified())
}

impl<Q: AsRef<[u8]>> Query<Q> {
    /// What a reply over UDP may take, in bytes.
    pub(super) fn udp_limit(&self) -> u16 {
        self.edns.map_or(PLAIN_UDP, |edns| edns.payload.clamp(PLAIN_UDP, MAX_UDP))
    }

    /// The same with a question of its own, for a reply that has to wait.
    pub(super) fn to_owned(&self) -> Query<Box<[u8]>> {
        let Query { metadata, edns, kind, class, .. } = *self;
        Query { metadata, question: self.question.as_ref().into(), edns, kind, class }
    }

    /// Replaces `into` by the reply. Where it would take more than `limit` bytes it has no records and
    /// says that it is truncated (RFC 2181 §9).
    pub(super) fn reply(&self, reply: &Reply<'_>, limit: u16, into: &mut Vec<u8>) -> Result<(), ProtoError> {
        let question = self.question.as_ref();
        let record = 12 + if self.kind == RecordType::AAAA { 16 } else { 4 };
        let opt = self.edns.map_or(0, |_| 11 + reply.error.map_or(0, |error| 6 + error.text.len()));
        let whole = HEADER + question.len() + reply.addresses.len() * record + opt;
        let truncated = whole > usize::from(limit);
        let addresses = if truncated { &[] } else { reply.addresses };

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

/// Replaces `into` by a reply to a query that cannot be taken.
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
