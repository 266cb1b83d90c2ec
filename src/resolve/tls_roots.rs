//! The certificate authorities that vouch for DNS servers with a certificate: those that this machine trusts.
//! Certificate errors are logged here, because the user of the connection only learns that there is none.

use crate::throttle::Throttle;
use crate::tls::check_length;
use hickory_resolver::net::NetError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// Most certificates behind the server's own; a path search through hundreds would take seconds.
const MOST_BEHIND: usize = 8;
/// Each lookup may try to connect; one log line per this time is enough.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

/// Returns a client that trusts the authorities of `SSL_CERT_FILE` and `SSL_CERT_DIR`, or of the system's folders.
pub(super) fn client() -> Result<ClientConfig, NetError> {
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if taken == 0 {
        let why = "this machine trusts no certificate authority, so no DNS server with a certificate can be used";
        let remedy = "install ca-certificates, or name a file with SSL_CERT_FILE";
        return Err(NetError::from(format!("{why}; {remedy}")));
    }
    let provider = Arc::new(ring::default_provider());
    let failed = |error: &dyn std::fmt::Display| NetError::from(error.to_string());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let verifier =
        LoggingVerifier { verifier: verifier.map_err(|error| failed(&error))?, told: Throttle::new(BETWEEN_LINES) };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(&error))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// Wraps the library's own verifier, which decides, and logs its refusals.
#[derive(Debug)]
struct LoggingVerifier {
    verifier: Arc<WebPkiServerVerifier>,
    told: Throttle,
}

impl LoggingVerifier {
    fn tell(&self, name: &ServerName<'_>, error: &Error) {
        if self.told.turn().is_some() {
            tracing::error!(
                name = %name.to_str(),
                %error,
                "a DNS server's certificate is not valid, so the server is not asked; check its name in \
                 [resolver].servers, or name its authority with SSL_CERT_FILE"
            );
        }
    }
}

impl ServerCertVerifier for LoggingVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = check_length(intermediates, MOST_BEHIND)
            .and_then(|()| self.verifier.verify_server_cert(certificate, intermediates, name, ocsp, now));
        verdict.inspect_err(|error| self.tell(name, error))
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
