//! Node descriptors: a requestor's node id and what it may ask for, signed through a chain of Golem's own
//! certificates (JSON, <https://schemas.golem.network/v1/>).
//!
//! A signature is Ed25519 over the canonical JSON (RFC 8785) of what it signs, and a certificate's fingerprint is
//! SHA-512 over the same. Each link may grant only what it has itself: permissions, uses of its key, days.
//! `rules.json` lists the trusted chains by fingerprint.

use super::{MAX_INPUT, hex, unhex};
use jiff::Timestamp;
use ring::digest::{SHA512, digest};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashSet;
use url::Url;

const DESCRIPTOR_SCHEMA: &str = "https://schemas.golem.network/v1/node-descriptor.schema.json";
const CERTIFICATE_SCHEMA: &str = "https://schemas.golem.network/v1/certificate.schema.json";
/// Maximum number of certificates in a chain.
const MAX_CHAIN: usize = 16;

/// The content of a descriptor that passed all checks.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// The requestor's node id, in lower case.
    pub node_id: String,
    /// What it may ask for.
    pub permissions: Permissions,
    /// SHA-512 of the certificates of its chain, the one that signed it first.
    pub fingerprints: Vec<String>,
}

/// What a requestor may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Permissions {
    /// `"all"`.
    All(All),
    /// Only these.
    Details(Details),
}

/// The word `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum All {
    /// The word.
    All,
}

/// Permissions one by one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Details {
    /// For outgoing traffic; `None` permits none.
    pub outbound: Option<Outbound>,
}

/// Permitted destinations.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outbound {
    /// Anywhere.
    Unrestricted,
    /// These URLs.
    Urls(HashSet<Url>),
}

/// What is wrong with a descriptor; the texts are those of yagna's library.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// Over [`MAX_INPUT`] bytes, or too many certificates in the chain.
    #[error("The node descriptor is too large")]
    TooLarge,
    /// Not JSON, or truncated.
    #[error("Invalid json: {0}")]
    Json(serde_json::Error),
    /// JSON of another form.
    #[error("Json does not conform to schema: {0}")]
    Form(serde_json::Error),
    /// Of another version or another type.
    #[error("Unsupported schema for structure {structure}: {schema}")]
    Schema {
        /// The expected structure.
        structure: &'static str,
        /// The schema that it declares.
        schema: String,
    },
    /// A key or signature that is not hexadecimal text of the right length.
    #[error("Invalid {0}")]
    Value(&'static str),
    /// The signature does not match the content.
    #[error("Invalid signature")]
    Signature,
    /// It claims more than the certificate above has.
    #[error("{0} extended")]
    Extended(&'static str),
    /// The certificate above may not sign certificates.
    #[error("Certificate signing not permitted")]
    MayNotSign,
    /// The certificate may not sign descriptors.
    #[error("Certificate cannot sign Node Descriptor")]
    MayNotSignNode,
    /// It has expired.
    #[error("Expired: was valid to {0}")]
    Expired(Timestamp),
    /// It is not valid yet.
    #[error("Not valid yet: will be valid from {0}")]
    NotYet(Timestamp),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SignedDescriptor {
    #[serde(rename = "$schema")]
    schema: String,
    node_descriptor: Value,
    signature: Signature<SignedCertificate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedCertificate {
    #[serde(rename = "$schema")]
    schema: String,
    certificate: Value,
    signature: Box<Signature<Signer>>,
}

#[derive(Deserialize)]
struct Signature<S> {
    algorithm: Algorithm,
    value: String,
    signer: S,
}

#[derive(Deserialize)]
struct Algorithm {
    encryption: Encryption,
}

#[derive(Clone, Copy, Deserialize)]
enum Encryption {
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// The method of OpenPGP cards: they sign the hash instead of the text.
    #[serde(rename = "EdDSAOpenPGP")]
    OpenPgp,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Signer {
    Itself(Itself),
    Certificate(SignedCertificate),
}

#[derive(Deserialize)]
enum Itself {
    #[serde(rename = "self")]
    Itself,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    key_usage: KeyUsage,
    permissions: Permissions,
    public_key: Key,
    validity_period: Period,
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum KeyUsage {
    All(All),
    Limited(HashSet<Usage>),
}

#[derive(PartialEq, Eq, Hash, Deserialize)]
enum Usage {
    #[serde(rename = "signCertificate")]
    Certificates,
    #[serde(rename = "signManifest")]
    Manifests,
    #[serde(rename = "signNode")]
    Nodes,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Period {
    not_before: Timestamp,
    not_after: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeDescriptor {
    node_id: String,
    permissions: Permissions,
    validity_period: Period,
}

impl Descriptor {
    /// Reads and checks a signed node descriptor as of `now`.
    ///
    /// # Errors
    /// [`DescriptorError`].
    pub fn read(bytes: &[u8], now: Timestamp) -> Result<Descriptor, DescriptorError> {
        if bytes.len() as u64 > MAX_INPUT {
            return Err(DescriptorError::TooLarge);
        }
        // If a name appears twice, the last one counts, for the signed content as for the parsed one.
        let value: Value = serde_json::from_slice(bytes).map_err(DescriptorError::Json)?;
        let signed: SignedDescriptor = form(value)?;
        schema(&signed.schema, DESCRIPTOR_SCHEMA, "node descriptor")?;
        let (certificate, fingerprints) = chain(&signed.signature.signer)?;
        verify(&signed.node_descriptor, &signed.signature, &certificate.public_key)?;
        let descriptor: NodeDescriptor = form(signed.node_descriptor)?;
        within(&certificate.permissions, &descriptor.permissions)?;
        if !certificate.key_usage.has(&Usage::Nodes) {
            return Err(DescriptorError::MayNotSignNode);
        }
        certificate.validity_period.holds(descriptor.validity_period)?;
        // Those above it are valid for longer.
        let Period { not_before, not_after } = descriptor.validity_period;
        if now < not_before {
            return Err(DescriptorError::NotYet(not_before));
        }
        if now > not_after {
            return Err(DescriptorError::Expired(not_after));
        }
        Ok(Descriptor {
            node_id: descriptor.node_id.to_ascii_lowercase(),
            permissions: descriptor.permissions,
            fingerprints,
        })
    }
}

/// Checks a certificate and all above it; returns it with the fingerprints, its own first.
fn chain(leaf: &SignedCertificate) -> Result<(Certificate, Vec<String>), DescriptorError> {
    let mut links = vec![leaf];
    while let Some(SignedCertificate { signature, .. }) = links.last()
        && let Signer::Certificate(above) = &signature.signer
    {
        if links.len() >= MAX_CHAIN {
            return Err(DescriptorError::TooLarge);
        }
        links.push(above);
    }
    let mut above: Option<Certificate> = None;
    for link in links.iter().rev() {
        schema(&link.schema, CERTIFICATE_SCHEMA, "certificate")?;
        let certificate: Certificate = form(link.certificate.clone())?;
        // The last one is self-signed.
        let signer = above.as_ref().unwrap_or(&certificate);
        verify(&link.certificate, &link.signature, &signer.public_key)?;
        within(&signer.permissions, &certificate.permissions)?;
        signer.key_usage.gives(&certificate.key_usage)?;
        signer.validity_period.holds(certificate.validity_period)?;
        above = Some(certificate);
    }
    let fingerprints = links.iter().map(|link| Ok(hex(digest(&SHA512, &canonical(&link.certificate)?).as_ref())));
    let fingerprints = fingerprints.collect::<Result<_, DescriptorError>>()?;
    above.map(|leaf| (leaf, fingerprints)).ok_or(DescriptorError::Signature)
}

fn form<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, DescriptorError> {
    serde_json::from_value(value).map_err(DescriptorError::Form)
}

fn schema(found: &str, wanted: &str, structure: &'static str) -> Result<(), DescriptorError> {
    if found == wanted { Ok(()) } else { Err(DescriptorError::Schema { structure, schema: found.to_owned() }) }
}

fn canonical(value: &Value) -> Result<Vec<u8>, DescriptorError> {
    serde_json_canonicalizer::to_vec(value).map_err(DescriptorError::Form)
}

fn verify<S>(signed: &Value, signature: &Signature<S>, key: &Key) -> Result<(), DescriptorError> {
    let text = canonical(signed)?;
    let value = unhex(&signature.value).filter(|value| value.len() == 64);
    let value = value.ok_or(DescriptorError::Value("signature value"))?;
    let key = unhex(&key.key).filter(|key| key.len() == 32).ok_or(DescriptorError::Value("public key"))?;
    let key = UnparsedPublicKey::new(&ED25519, key);
    match signature.algorithm.encryption {
        Encryption::EdDsa => key.verify(&text, &value),
        Encryption::OpenPgp => key.verify(digest(&SHA512, &text).as_ref(), &value),
    }
    .map_err(|_| DescriptorError::Signature)
}

/// Checks that `above` covers `below`, so that its holder may grant it.
fn within(above: &Permissions, below: &Permissions) -> Result<(), DescriptorError> {
    let fits = match (above, below) {
        (Permissions::All(_), _) => true,
        (Permissions::Details(_), Permissions::All(_)) => false,
        (Permissions::Details(above), Permissions::Details(below)) => match (&above.outbound, &below.outbound) {
            (_, None) | (Some(Outbound::Unrestricted), _) => true,
            (None, Some(_)) | (Some(Outbound::Urls(_)), Some(Outbound::Unrestricted)) => false,
            (Some(Outbound::Urls(above)), Some(Outbound::Urls(below))) => below.is_subset(above),
        },
    };
    if fits { Ok(()) } else { Err(DescriptorError::Extended("Permissions")) }
}

impl KeyUsage {
    fn has(&self, usage: &Usage) -> bool {
        match self {
            KeyUsage::All(_) => true,
            KeyUsage::Limited(usages) => usages.contains(usage),
        }
    }

    /// Checks that a key of this use may sign a certificate for a key of use `below`.
    fn gives(&self, below: &KeyUsage) -> Result<(), DescriptorError> {
        match (self, below) {
            (KeyUsage::All(_), _) => Ok(()),
            (KeyUsage::Limited(above), KeyUsage::Limited(below)) if below.is_subset(above) => {
                if self.has(&Usage::Certificates) { Ok(()) } else { Err(DescriptorError::MayNotSign) }
            }
            _ => Err(DescriptorError::Extended("Key usage")),
        }
    }
}

impl Period {
    fn holds(self, below: Period) -> Result<(), DescriptorError> {
        let within = self.not_before <= below.not_before && below.not_after <= self.not_after;
        if within { Ok(()) } else { Err(DescriptorError::Extended("Validity period")) }
    }
}

#[cfg(test)]
mod tests;
