//! One certificate authority a test process, and both ends of TLS that use it.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);

struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let pem = certificate.pem();
        let certificate = certificate.der().clone();
        Authority { certificate, pem, issuer: Issuer::new(params, key), leaves: Mutex::default() }
    }

    fn leaf(&self, name: &str) -> Arc<CertifiedKey> {
        let make = || {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            // OpenSSL takes a certificate for self-signed when subject and issuer are of one name.
            params.distinguished_name.push(DnType::CommonName, name);
            let leaf = params.signed_by(&key, &self.issuer).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let key = ring::sign::any_supported_type(&key).unwrap();
            Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key))
        };
        Arc::clone(self.leaves.lock().unwrap().entry(name.to_owned()).or_insert_with(make))
    }
}

/// What a server of another make needs, in PEM.
pub struct Pems {
    /// The authority's certificate.
    pub authority: String,
    /// The server's.
    pub certificate: String,
    /// The server's key.
    pub key: String,
}

/// A certificate for this name, with its key.
pub fn pems(name: &str) -> Pems {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, &AUTHORITY.issuer).unwrap().pem();
    Pems { authority: AUTHORITY.pem.clone(), certificate, key: key.serialize_pem() }
}

/// Makes a certificate for whatever name the hello asks for.
#[derive(Debug)]
struct AnyName;

impl ResolvesServerCert for AnyName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(AUTHORITY.leaf(hello.server_name().unwrap_or("nameless.test")))
    }
}

/// An origin's TLS.
pub fn server() -> Arc<ServerConfig> {
    static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(AnyName));
        Arc::new(config)
    });
    Arc::clone(&CONFIG)
}

/// A client's TLS, trusting the test authority alone.
pub fn client() -> Arc<ClientConfig> {
    Arc::new(client_config())
}

/// As [`client`], but the hello carries no server name.
pub fn client_without_sni() -> Arc<ClientConfig> {
    let mut config = client_config();
    config.enable_sni = false;
    Arc::new(config)
}

fn client_config() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(AUTHORITY.certificate.clone()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}
