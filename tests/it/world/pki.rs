//! One certificate authority a test process, and both ends of TLS that use it.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("the tests' authority"));

struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    leaves: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
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
            // OpenSSL considers a certificate self-signed if subject and issuer have the same name.
            params.distinguished_name.push(DnType::CommonName, name);
            let leaf = params.signed_by(&key, &self.issuer).unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let key = ring::sign::any_supported_type(&key).unwrap();
            Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key))
        };
        Arc::clone(self.leaves.lock().unwrap().entry(name.to_owned()).or_insert_with(make))
    }
}

/// What another TLS implementation requires, in PEM.
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

/// Puts a certificate for this name in a folder, with its key and authority, each by a rename.
pub fn install(folder: &Path, name: &str) {
    let pems = pems(name);
    fs::create_dir_all(folder).unwrap();
    for (file, text) in [("ca.pem", &pems.authority), ("cert.pem", &pems.certificate), ("key.pem", &pems.key)] {
        fs::write(folder.join("new"), text).unwrap();
        fs::rename(folder.join("new"), folder.join(file)).unwrap();
    }
}

/// Which certificate a client shows.
#[derive(Clone, Copy)]
pub enum Whose<'a> {
    /// No certificate.
    Nobodys,
    /// One with this dNSName.
    Of(&'a str),
    /// One with these dNSNames and this CN.
    Named(&'a [&'a str], &'a str),
    /// One with this name that has expired.
    Expired(&'a str),
    /// One with this name, of an untrusted authority.
    Strange(&'a str),
    /// One with this name, and with more intermediate certificates than any chain has.
    Crowded(&'a str),
}

/// A TLS client that trusts only the test authority, with a certificate of its own. `versions`: the protocol versions
/// it offers.
pub fn client_as(whose: Whose<'_>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots());
    let (names, common): (&[&str], &str) = match &whose {
        Whose::Nobodys => return builder.with_no_client_auth(),
        Whose::Of(name) | Whose::Expired(name) | Whose::Strange(name) | Whose::Crowded(name) => {
            (std::slice::from_ref(name), name)
        }
        Whose::Named(names, common) => (names, common),
    };
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !common.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common);
    }
    if matches!(whose, Whose::Expired(_)) {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    }
    let key = KeyPair::generate().unwrap();
    let certificate = match whose {
        Whose::Strange(_) => params.signed_by(&key, &Authority::new("a strange authority").issuer),
        _ => params.signed_by(&key, &AUTHORITY.issuer),
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut chain = vec![certificate.unwrap().der().clone()];
    if matches!(whose, Whose::Crowded(_)) {
        chain.extend((0..12).map(|_| Authority::new("the tests' authority").certificate));
    }
    builder.with_client_auth_cert(chain, key).unwrap()
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

/// A TLS client that trusts only the test authority.
pub fn client() -> Arc<ClientConfig> {
    Arc::new(client_config())
}

/// As [`client`], but the hello carries no server name.
pub fn client_without_sni() -> Arc<ClientConfig> {
    let mut config = client_config();
    config.enable_sni = false;
    Arc::new(config)
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(AUTHORITY.certificate.clone()).unwrap();
    roots
}

fn client_config() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots())
        .with_no_client_auth()
}
