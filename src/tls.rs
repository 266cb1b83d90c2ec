//! TLS at outgate's own listeners. It loads the certificate, the key and the authority for client certificates
//! from files, and again whenever they change. It performs the handshake and determines the client's name. The
//! listener decides who may connect, and for what.

mod client;
mod guest_tls;
mod handshake;
mod reload;
mod socket;

pub use client::{certified_name, check_length};
pub use guest_tls::GuestTls;
pub use handshake::{Complaints, FailedHandshake, Fault, handshake};
pub use reload::{CertificateReloader, CurrentTls};
pub use socket::Socket;

/// A connection inside TLS.
pub type Stream = tokio_rustls::server::TlsStream<Socket>;

use crate::files;
use rustix::fs::OFlags;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The only protocol within TLS (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// `[tls]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The certificate chain in PEM: outgate's own certificate first, then the intermediate ones.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// If set, clients need a certificate of one of these authorities, in PEM.
    pub client_ca: Option<PathBuf>,
}

impl TlsSettings {
    /// Returns the files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path)
    }
}

/// Why the files are not usable.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}{}", path.display(), remedy(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A file does not contain what it should.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Certificate and key do not work together.
    #[error("{} and {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// The error.
        source: rustls::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the daemon's user must be able to read it",
        _ => "",
    }
}

/// What handshakes need, and the certificate's expiry.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// For guests: a client certificate must name one.
    pub guests: Arc<ServerConfig>,
    /// For readers of metrics.
    pub admin: Arc<ServerConfig>,
    /// Whether clients are asked for a certificate.
    pub names_guests: bool,
    /// The last second of the certificate's validity, since 1970.
    pub expires: i64,
}

/// Reads the files.
///
/// # Errors
/// [`TlsError`]. An expired certificate is not an error here: clients will report it.
pub fn load(settings: &TlsSettings) -> Result<Loaded, TlsError> {
    let TlsSettings { certificate, key, client_ca } = settings;
    let chain = certificates(certificate)?;
    let expires = expiry(&chain).ok_or_else(|| content(certificate, "its first certificate cannot be read"))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?);
    let private = private.map_err(|error| content(key, &format!("holds no private key in PEM: {error}")))?;
    let pair = |source| TlsError::Pair { certificate: certificate.clone(), key: key.clone(), source };
    let verifier = client_ca.as_deref().map(verifier).transpose()?;
    let guests = verifier.clone().map(|verifier| client::careful(verifier, true));
    let admin = verifier.map(|verifier| client::careful(verifier, false));
    let admin = config(admin, chain.clone(), private.clone_key()).map_err(pair)?;
    let guests = config(guests, chain, private).map_err(pair)?;
    Ok(Loaded { guests, admin, names_guests: client_ca.is_some(), expires })
}

/// Returns a verifier that accepts clients with a certificate of one of the authorities in the file.
fn verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| content(path, &format!("an authority in it cannot be used: {error}")))?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|error| content(path, &error.to_string()))
}

fn config(
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let is_open = verifier.is_none();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if is_open {
        config.ticketer = ring::Ticketer::new()?;
    } else {
        // A resumed session shows no certificate, so a client with an expired one could continue for as long as
        // it likes.
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| content(path, &format!("is not PEM: {error}")))?;
    if all.is_empty() {
        return Err(content(path, "holds no certificate in PEM"));
    }
    let is_old = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.version() != X509Version::V3)
    };
    match all.iter().position(is_old) {
        Some(n) => {
            let number = n.saturating_add(1);
            let why = format!(
                "certificate {number} in it is not of X.509 version 3, and TLS takes no other: make it with an extension, \
                 as `openssl req -x509 -addext subjectAltName=DNS:NAME` and `openssl x509 -req -extfile` do"
            );
            Err(content(path, &why))
        }
        None => Ok(all),
    }
}

fn content(path: &Path, why: &str) -> TlsError {
    TlsError::Content { path: path.to_owned(), why: why.to_owned() }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let opened = files::open_regular(path, OFlags::empty()).map_err(failed)?;
    let (file, _) = opened.ok_or_else(|| content(path, "is not a regular file"))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(content(path, "is larger than 1 MiB, the limit for such a file"));
    }
    Ok(bytes)
}

fn expiry(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    Some(leaf.validity().not_after.timestamp())
}
