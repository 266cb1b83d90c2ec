//! Determines the guest of a client certificate: the first dNSName of its subjectAltName, else the CN of its
//! subject (RFC 5280 §4.1.2.6, §4.2.1.6).

use crate::config::is_guest_name;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Returns the guest's name in the client's verified certificate.
pub fn certified_name(stream: &super::Stream) -> Option<Arc<str>> {
    let (_, connection) = stream.get_ref();
    guest_name(connection.peer_certificates()?.first()?)
}

/// Returns the guest's name in a certificate; `None` if there is none, or if a guest may not have that name. An
/// invalid dNSName does not fall back to the CN, and several CNs count as none.
fn guest_name(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()?.map(|extension| &extension.value.general_names);
    let dns = names.into_iter().flatten().find_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let name = match dns {
        Some(name) => name,
        None => {
            let mut names = certificate.subject().iter_common_name();
            let name = names.next()?.as_str().ok()?;
            if names.next().is_some() {
                return None;
            }
            name
        }
    };
    is_guest_name(name).then(|| name.into())
}

/// Most certificates behind the client's own. The library searches a path from it to an authority before it
/// verifies any signature. The hundreds that fit in one message have so many paths that this would take
/// seconds, in which the thread does nothing else.
const MOST_BEHIND: usize = 4;

/// Returns a verifier that accepts what `verifier` accepts, if at most `MOST_BEHIND` other certificates are
/// sent along and, if it `must_name` a guest, the certificate contains a guest's name.
pub(super) fn careful(verifier: Arc<dyn ClientCertVerifier>, must_name: bool) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Careful { verifier, must_name })
}

/// Checks that there are not too many certificates for a path search.
///
/// # Errors
/// With more than `most` behind the first one.
pub fn check_length(behind: &[CertificateDer<'_>], most: usize) -> Result<(), Error> {
    if behind.len() <= most {
        return Ok(());
    }
    let why: Box<dyn std::error::Error + Send + Sync> =
        format!("{} certificates follow the first one; at most {most} are allowed", behind.len()).into();
    Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::from(why)))))
}

#[derive(Debug)]
struct Careful {
    verifier: Arc<dyn ClientCertVerifier>,
    must_name: bool,
}

impl ClientCertVerifier for Careful {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_length(intermediates, MOST_BEHIND)?;
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        if self.must_name && guest_name(end_entity).is_none() {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    /// Returns the guest in a certificate with these dNSNames, e-mail addresses (which do not count) and CNs.
    fn guest(names: &[&str], emails: &[&str], commons: &[&str]) -> Option<String> {
        let mut params = CertificateParams::default();
        let email = emails.iter().map(|text| SanType::Rfc822Name((*text).try_into().unwrap()));
        let dns = names.iter().map(|text| SanType::DnsName((*text).try_into().unwrap()));
        params.subject_alt_names = email.chain(dns).collect();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for common in commons {
            params.distinguished_name.push(DnType::CommonName, *common);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        guest_name(certificate.der()).map(|name| name.to_string())
    }

    #[test]
    fn the_first_dns_name_is_the_guest_and_without_one_the_common_name() {
        assert_eq!(guest(&["vm-7", "vm-8"], &[], &["vm-9"]).as_deref(), Some("vm-7"));
        assert_eq!(guest(&["vm-7.guests.test"], &["a@b.test"], &[]).as_deref(), Some("vm-7.guests.test"));
        assert_eq!(guest(&[], &["a@b.test"], &["vm-9"]).as_deref(), Some("vm-9"));
        assert_eq!(guest(&[], &[], &["vm-9"]).as_deref(), Some("vm-9"));
    }

    #[test]
    fn a_long_chain_is_refused_before_a_way_through_it_is_looked_for() {
        let one = CertificateDer::from(vec![0x30, 0]);
        assert!(check_length(&vec![one.clone(); 4], 4).is_ok());
        let error = check_length(&vec![one; 5], 4).unwrap_err();
        assert!(error.to_string().contains("5 certificates follow the first one"), "{error}");
    }

    #[test]
    fn what_no_guest_may_be_called_is_nobody() {
        assert_eq!(guest(&["*.guests.test"], &[], &["vm-9"]), None, "and not the common name");
        assert_eq!(guest(&[], &[], &["vm 9"]), None);
        assert_eq!(guest(&[], &[], &["vm-9\nvm-8"]), None);
        assert_eq!(guest(&[], &[], &[&"v".repeat(65)]), None);
        assert_eq!(guest(&[], &[], &[]), None);
        assert_eq!(guest_name(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
    }
}
