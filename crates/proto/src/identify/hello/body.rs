//! The inside of a ClientHello: fixed fields, extensions, server name.

use super::HelloError;
use crate::name::HostName;

/// The most extensions that are read; real hellos have at most about 25.
const MAX_EXTENSIONS: usize = 96;

const SERVER_NAME: u16 = 0;
const PRE_SHARED_KEY: u16 = 41;
const ECH_OUTER_EXTENSIONS: u16 = 0xfd00;

/// encrypted_client_hello (RFC 9849), its numbers in the drafts, and its predecessor encrypted_server_name. A server
/// that supports one of them may see another name than we do.
const ENCRYPTED: [u16; 9] = [0xfe0d, 0xfe0c, 0xfe0b, 0xfe0a, 0xfe09, 0xfe08, 0xff02, 0xff03, 0xffce];

/// What the body shows.
pub(super) struct Shown {
    pub(super) sni: Option<HostName>,
    pub(super) ech: bool,
}

/// Reads the body of a ClientHello message.
pub(super) fn read(body: &[u8]) -> Result<Shown, HelloError> {
    let mut rest = Bytes(body);
    // Versions from SSL 3 on; a later one is negotiated by extension (RFC 8446 §4.1.2).
    if rest.u8()? != 3 {
        return Err(HelloError::Structure);
    }
    rest.take(1 + 32)?;
    if rest.vec8()?.len() > 32 {
        return Err(HelloError::Structure);
    }
    let suites = rest.vec16()?;
    // Without the null compression no server accepts a hello (RFC 5246 §7.4.1.2).
    if suites.is_empty() || !suites.len().is_multiple_of(2) || !rest.vec8()?.contains(&0) {
        return Err(HelloError::Structure);
    }
    // A very old hello has no extensions at all.
    let mut shown = Shown { sni: None, ech: false };
    if rest.is_empty() {
        return Ok(shown);
    }
    let extensions = rest.vec16()?;
    if !rest.is_empty() {
        return Err(HelloError::Structure);
    }
    read_extensions(Bytes(extensions), &mut shown)?;
    Ok(shown)
}

fn read_extensions(mut rest: Bytes<'_>, shown: &mut Shown) -> Result<(), HelloError> {
    let mut seen = [0u16; MAX_EXTENSIONS];
    let mut count = 0;
    while !rest.is_empty() {
        let kind = rest.u16()?;
        let data = rest.vec16()?;
        if seen.iter().take(count).any(|earlier| *earlier == kind) {
            return Err(HelloError::Extensions);
        }
        *seen.get_mut(count).ok_or(HelloError::Extensions)? = kind;
        count += 1;
        match kind {
            // This extension occurs only inside an encrypted hello (RFC 9849 §5.1).
            ECH_OUTER_EXTENSIONS => return Err(HelloError::Structure),
            SERVER_NAME => shown.sni = Some(server_name(data)?),
            // It binds everything before it, so nothing may follow it (RFC 8446 §4.2.11).
            PRE_SHARED_KEY if !rest.is_empty() => return Err(HelloError::Structure),
            kind if ENCRYPTED.contains(&kind) => shown.ech = true,
            kind if !is_well_shaped(kind, data) => return Err(HelloError::Structure),
            _ => {}
        }
    }
    Ok(())
}

/// RFC 6066 §3. Exactly one entry, of type host_name: unknown types have no known length, so the bytes after one
/// could be read as anything.
fn server_name(data: &[u8]) -> Result<HostName, HelloError> {
    let mut outer = Bytes(data);
    let mut list = Bytes(outer.vec16()?);
    if !outer.is_empty() || list.u8()? != 0 {
        return Err(HelloError::NameList);
    }
    let name = list.vec16()?;
    if !list.is_empty() || name.is_empty() {
        return Err(HelloError::NameList);
    }
    Ok(HostName::parse(name)?)
}

/// Do the vectors inside the known extensions end where they must? None of them names anything, but a hello that a
/// server refuses must not reach the upstream.
fn is_well_shaped(kind: u16, data: &[u8]) -> bool {
    let mut rest = Bytes(data);
    read_shape(kind, &mut rest).is_ok() && rest.is_empty()
}

fn read_shape(kind: u16, rest: &mut Bytes<'_>) -> Result<(), HelloError> {
    match kind {
        // status_request: of type OCSP, responders and extensions (RFC 6066 §8).
        5 if rest.u8()? == 1 => rest.vec16().and_then(|_| rest.vec16()).map(drop),
        // supported_groups, signature_algorithms, signature_algorithms_cert: u16 list of u16.
        10 | 13 | 50 => whole(rest.vec16()?, 2),
        // ec_point_formats, certificate types, psk_key_exchange_modes: u8 list of bytes.
        11 | 19 | 20 | 45 => whole(rest.vec8()?, 1),
        // compress_certificate, supported_versions: u8 list of u16.
        27 | 43 => whole(rest.vec8()?, 2),
        // application_layer_protocol_negotiation: u16 list of u8 strings.
        16 => each(rest.vec16()?, |list| full(list.vec8()?)),
        // pre_shared_key: identities with their ages, binders.
        PRE_SHARED_KEY => {
            each(rest.vec16()?, |list| {
                full(list.vec16()?)?;
                list.take(4).map(drop)
            })?;
            each(rest.vec16()?, |list| full(list.vec8()?))
        }
        // cookie: u16 bytes.
        44 => full(rest.vec16()?),
        // certificate_authorities: u16 list of u16 names.
        47 => each(rest.vec16()?, |list| full(list.vec16()?)),
        // key_share: u16 list, empty to ask for a retry, of group and key.
        51 => match rest.vec16()? {
            [] => Ok(()),
            list => each(list, |list| {
                list.u16()?;
                full(list.vec16()?)
            }),
        },
        // ticket_request: two counts.
        58 => rest.u16().map(drop),
        // renegotiation_info: u8 bytes, empty in a first hello.
        0xff01 => rest.vec8().map(drop),
        // extended_master_secret, early_data: nothing.
        23 | 42 => Ok(()),
        _ => {
            rest.0 = &[];
            Ok(())
        }
    }
}

/// Not empty.
fn full(data: &[u8]) -> Result<(), HelloError> {
    if data.is_empty() { Err(HelloError::Structure) } else { Ok(()) }
}

/// One or more elements of `size` bytes.
fn whole(list: &[u8], size: usize) -> Result<(), HelloError> {
    if list.is_empty() || !list.len().is_multiple_of(size) { Err(HelloError::Structure) } else { Ok(()) }
}

/// One or more elements, each read by `read`.
fn each<'a>(list: &'a [u8], read: impl Fn(&mut Bytes<'a>) -> Result<(), HelloError>) -> Result<(), HelloError> {
    full(list)?;
    let mut rest = Bytes(list);
    while !rest.is_empty() {
        read(&mut rest)?;
    }
    Ok(())
}

/// The bytes that are left to read. A read past their end returns [`HelloError::Structure`].
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Structure)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, HelloError> {
        let (byte, rest) = self.0.split_first().ok_or(HelloError::Structure)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let (bytes, rest) = self.0.split_first_chunk::<2>().ok_or(HelloError::Structure)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    fn vec8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vec16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}
