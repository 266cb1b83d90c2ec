//! X.509: the certificates that a provider trusts, and the signature over a manifest.
//!
//! A chain is valid if each certificate in it is valid now and was signed by the next one, which is an authority,
//! and the last one is a self-signed one of the provider's (RFC 5280 §6, without policies and revocation, which
//! yagna does not check). An unknown critical extension makes it invalid, name constraints included.
//!
//! Only certificates of that chain count. To yagna, all certificates that came with a signature count, whether
//! related to it or not, so that anybody could append one that the provider's rules contain.

use super::{base64, hex};
use jiff::Timestamp;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use ring::digest::{self, digest};
use ring::signature::{self, UnparsedPublicKey};
use std::path::Path;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry as oid;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::rules::{self, CERT_DIR, RulesError};

/// Maximum number of certificates in a chain.
const MAX_CHAIN: usize = 16;
/// Maximum number of files of the folder.
const MAX_FILES: usize = 4096;

/// What can be wrong; the texts are yagna's.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Neither DER nor PEM, or base64 of one of them.
    #[error("the certificate is neither DER nor PEM, nor base64 of one of them")]
    Encoding,
    /// No chain leads to a certificate of the provider's.
    #[error("Invalid certificate")]
    Untrusted {
        /// Why, in addition to yagna's text.
        why: String,
    },
    /// Not base64.
    #[error("the signature is not base64")]
    SignatureEncoding,
    /// An unsupported hash.
    #[error("Unknown signature algorithm: {0}")]
    Algorithm(String),
    /// The signature belongs to another text, or to another key.
    #[error("Invalid signature.")]
    Signature,
}

/// A certificate, DER.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Der(Vec<u8>);

/// The certificates of a provider's `cert-dir`.
#[derive(Clone, Debug, Default)]
pub struct Store {
    trusted: Vec<Der>,
}

/// The hash of a signature.
#[derive(Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Der {
    fn parse(&self) -> Option<X509Certificate<'_>> {
        X509Certificate::from_der(&self.0).ok().map(|(_, certificate)| certificate)
    }

    /// Returns its name in rules: SHA-512, in hexadecimal.
    fn id(&self) -> String {
        hex(digest(&digest::SHA512, &self.0).as_ref())
    }
}

/// Returns all certificates of a file: PEM, one after the other, or one in DER.
fn read(bytes: &[u8]) -> Option<Vec<Der>> {
    if X509Certificate::from_der(bytes).is_ok() {
        return Some(vec![Der(bytes.to_vec())]);
    }
    let blocks = Pem::iter_from_buffer(bytes).collect::<Result<Vec<_>, _>>().ok()?;
    let found: Vec<Der> =
        blocks.into_iter().filter(|block| block.label == "CERTIFICATE").map(|block| Der(block.contents)).collect();
    (!found.is_empty() && found.iter().all(|der| der.parse().is_some())).then_some(found)
}

impl Store {
    /// Reads the folder; skips files that are not X.509 certificates, as yagna does.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of(data_dir: &Path) -> Result<Store, RulesError> {
        let dir = data_dir.join(CERT_DIR);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Store::default()),
            Err(source) => return Err(RulesError::Io { path: dir, source }),
        };
        let mut trusted = Vec::new();
        for entry in entries.flatten().take(MAX_FILES) {
            if entry.path().is_file() {
                trusted.extend(rules::read(&entry.path())?.and_then(|bytes| read(&bytes)).into_iter().flatten());
            }
        }
        Ok(Store { trusted })
    }

    /// Checks the chain of `certificate` (the signer's last, as in yagna) and the `signature` (base64) that it
    /// made over `text`. Returns the ids of the chain, the signer's first.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn verify(
        &self,
        certificate: &[u8],
        signature: &[u8],
        algorithm: &str,
        text: &str,
        now: Timestamp,
    ) -> Result<Vec<String>, ChainError> {
        let given = read(certificate).or_else(|| read(&base64(certificate)?)).ok_or(ChainError::Encoding)?;
        let signature = base64(signature).ok_or(ChainError::SignatureEncoding)?;
        let leaf = given.last().and_then(Der::parse).ok_or(ChainError::Encoding)?;
        let chain = self.lead_to_trust(&given, now).map_err(|why| ChainError::Untrusted { why })?;
        let hash = Hash::named(algorithm).ok_or_else(|| ChainError::Algorithm(algorithm.to_owned()))?;
        if !signed(leaf.public_key(), hash, text.as_bytes(), &signature) {
            return Err(ChainError::Signature);
        }
        Ok(chain.into_iter().map(Der::id).collect())
    }

    /// Follows the chain of the last given certificate to a self-signed one of the store; otherwise returns where
    /// it ends.
    fn lead_to_trust<'c>(&'c self, given: &'c [Der], now: Timestamp) -> Result<Vec<&'c Der>, String> {
        let mut current = given.last().ok_or("there is none")?;
        let mut chain = Vec::new();
        for below in 0..MAX_CHAIN {
            chain.push(current);
            let certificate = current.parse().ok_or("a certificate of the chain cannot be read")?;
            let subject = certificate.subject();
            let (from, to) = (certificate.validity().not_before, certificate.validity().not_after);
            if now.as_second() < from.timestamp() {
                return Err(format!("{subject} is not valid before {from}"));
            }
            if now.as_second() > to.timestamp() {
                return Err(format!("{subject} expired at {to}"));
            }
            if below > 0 {
                is_authority(&certificate, below - 1).map_err(|why| format!("{subject} {why}"))?;
            }
            if certificate.extensions().iter().any(|extension| extension.critical && !is_understood(&extension.oid)) {
                return Err(format!("{subject} has a critical extension that is not understood"));
            }
            if subject == certificate.issuer() {
                let known = self.trusted.contains(current);
                return if known { Ok(chain) } else { Err(format!("{subject} is not in {CERT_DIR}")) };
            }
            let issuer = self.issuer(current, &self.trusted).or_else(|| self.issuer(current, given));
            current = issuer
                .ok_or_else(|| format!("{}, who signed {subject}, is not in {CERT_DIR}", certificate.issuer()))?;
        }
        Err("the chain is too long".to_owned())
    }

    /// Returns the certificate among these that signed `certificate`, other than itself.
    fn issuer<'c>(&self, certificate: &Der, among: &'c [Der]) -> Option<&'c Der> {
        let parsed = certificate.parse()?;
        among.iter().find(|candidate| {
            *candidate != certificate
                && candidate
                    .parse()
                    .is_some_and(|issuer| issuer.subject() == parsed.issuer() && issued(&parsed, issuer.public_key()))
        })
    }
}

/// Returns whether the extension is evaluated, or does not restrict who may sign what.
fn is_understood(extension: &oid::Oid<'_>) -> bool {
    let known = [
        oid::OID_X509_EXT_BASIC_CONSTRAINTS,
        oid::OID_X509_EXT_KEY_USAGE,
        oid::OID_X509_EXT_EXTENDED_KEY_USAGE,
        oid::OID_X509_EXT_SUBJECT_ALT_NAME,
    ];
    known.contains(extension)
}

/// Checks that it may sign certificates, with so many authorities below it (RFC 5280 §4.2.1.3, §4.2.1.9).
fn is_authority(certificate: &X509Certificate<'_>, below: usize) -> Result<(), String> {
    let constraints = certificate.basic_constraints().ok().flatten().map(|extension| extension.value);
    let Some(constraints) = constraints.filter(|constraints| constraints.ca) else {
        return Err("is not an authority".to_owned());
    };
    if constraints.path_len_constraint.is_some_and(|most| usize::try_from(most).is_ok_and(|most| below > most)) {
        return Err("may not have that many authorities below it".to_owned());
    }
    match certificate.key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.key_cert_sign() => Ok(()),
        _ => Err("may not sign certificates".to_owned()),
    }
}

/// Returns whether the certificate was signed with this key.
fn issued(certificate: &X509Certificate<'_>, key: &SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &certificate.signature_algorithm.algorithm;
    let hashes = [
        (oid::OID_PKCS1_SHA256WITHRSA, Hash::Sha256),
        (oid::OID_PKCS1_SHA384WITHRSA, Hash::Sha384),
        (oid::OID_PKCS1_SHA512WITHRSA, Hash::Sha512),
        (oid::OID_SIG_ECDSA_WITH_SHA256, Hash::Sha256),
        (oid::OID_SIG_ECDSA_WITH_SHA384, Hash::Sha384),
        (oid::OID_SIG_ECDSA_WITH_SHA512, Hash::Sha512),
    ];
    let hash = hashes.iter().find(|(known, _)| known == algorithm).map(|(_, hash)| *hash);
    let text = certificate.tbs_certificate.as_ref();
    hash.is_some_and(|hash| signed(key, hash, text, &certificate.signature_value.data))
}

/// Returns whether the text was signed with this key: RSA of 2048 to 8192 bits (PKCS #1 v1.5), or ECDSA on P-256
/// or P-384.
fn signed(key: &SubjectPublicKeyInfo<'_>, hash: Hash, text: &[u8], value: &[u8]) -> bool {
    let raw = key.subject_public_key.data.as_ref();
    match key.parsed() {
        Ok(PublicKey::RSA(_)) => UnparsedPublicKey::new(hash.rsa(), raw).verify(text, value).is_ok(),
        Ok(PublicKey::EC(_)) => {
            let prehash = digest(hash.digest(), text);
            let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            match curve {
                Some(curve) if curve == oid::OID_EC_P256 => {
                    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(raw);
                    let value = p256::ecdsa::DerSignature::try_from(value);
                    matches!((key, value), (Ok(key), Ok(value)) if key.verify_prehash(prehash.as_ref(), &value).is_ok())
                }
                Some(curve) if curve == oid::OID_NIST_EC_P384 => {
                    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(raw);
                    let value = p384::ecdsa::DerSignature::try_from(value);
                    matches!((key, value), (Ok(key), Ok(value)) if key.verify_prehash(prehash.as_ref(), &value).is_ok())
                }
                _ => false,
            }
        }
        _ => false,
    }
}

impl Hash {
    fn named(name: &str) -> Option<Hash> {
        match name.to_ascii_lowercase().as_str() {
            "sha256" => Some(Hash::Sha256),
            "sha384" => Some(Hash::Sha384),
            "sha512" => Some(Hash::Sha512),
            _ => None,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha384 => &digest::SHA384,
            Hash::Sha512 => &digest::SHA512,
        }
    }

    fn rsa(self) -> &'static signature::RsaParameters {
        match self {
            Hash::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Hash::Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Hash::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        }
    }
}
