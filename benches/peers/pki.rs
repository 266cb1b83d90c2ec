//! Certificates for a run: an authority of its own, what a proxy shows at its TLS listener, and what a client shows
//! there. All keys are of the curve P-256.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::ring::{self, cipher_suite, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name on the proxy's certificate.
pub(crate) const PROXY: &str = "proxy.test";
/// The name on the client's.
const CLIENT: &str = "guest.test";
/// The one protocol inside that a proxy may be asked for (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for ca.pem and ca-key.pem, cert.pem and key.pem, both of these as pair.pem, client.pem and
    /// client-key.pem
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) fn run(args: Args) -> io::Result<()> {
    let dir = args.dir;
    fs::create_dir_all(&dir)?;
    let key = KeyPair::generate().map_err(wrong)?;
    fs::write(dir.join("ca.pem"), authority()?.self_signed(&key).map_err(wrong)?.pem())?;
    fs::write(dir.join("ca-key.pem"), key.serialize_pem())?;
    let issuer = Authority::read(&dir)?;
    let proxy = issuer.pair()?;
    proxy.write(&dir)?;
    fs::write(dir.join("pair.pem"), proxy.certificate + &proxy.key)?;
    let client = issuer.sign(CLIENT, ExtendedKeyUsagePurpose::ClientAuth)?;
    fs::write(dir.join("client.pem"), client.certificate)?;
    fs::write(dir.join("client-key.pem"), client.key)
}

fn wrong(why: impl Display) -> io::Error {
    io::Error::other(why.to_string())
}

/// The same each time: with the key alone to be read, the authority is known again.
fn authority() -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).map_err(wrong)?;
    params.distinguished_name.push(DnType::CommonName, "authority of this run");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params)
}

/// Who signs certificates.
pub(crate) struct Authority(Issuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let key = KeyPair::from_pem(&fs::read_to_string(dir.join("ca-key.pem"))?).map_err(wrong)?;
        Ok(Authority(Issuer::new(authority()?, key)))
    }

    /// One more for the proxy.
    pub(crate) fn pair(&self) -> io::Result<Pair> {
        self.sign(PROXY, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> io::Result<Pair> {
        let key = KeyPair::generate().map_err(wrong)?;
        let mut params = CertificateParams::new(vec![name.to_string()]).map_err(wrong)?;
        // OpenSSL takes a certificate for self-signed when subject and issuer are of one name.
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(purpose);
        let certificate = params.signed_by(&key, &self.0).map_err(wrong)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

impl Pair {
    /// As cert.pem and key.pem.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join("cert.pem"), &self.certificate)?;
        fs::write(dir.join("key.pem"), &self.key)
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(wrong)
}

fn key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(wrong)
}

fn roots(dir: &Path) -> io::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(&dir.join("ca.pem"))?);
    if added == 0 { Err(wrong("no authority in ca.pem")) } else { Ok(Arc::new(roots)) }
}

/// A server with outgate's own settings: tickets that it keeps no record of, and none at all where it asks
/// `clients` for certificates.
pub(crate) fn server(dir: &Path, clients: bool) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
    let builder = if clients {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(dir)?, provider).build();
        builder.with_client_cert_verifier(verifier.map_err(wrong)?)
    } else {
        builder.with_no_client_auth()
    };
    let (chain, key) = (certificates(&dir.join("cert.pem"))?, key(&dir.join("key.pem"))?);
    let mut config = builder.with_single_cert(chain, key).map_err(wrong)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if clients {
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = ring::Ticketer::new().map_err(wrong)?;
    }
    Ok(Arc::new(config))
}

/// A client that checks the server's certificate and resumes nothing; with `shows` it has one of its own.
///
/// It speaks TLS 1.3 with one suite and one key exchange, those that rustls and OpenSSL prefer: every row
/// does the same arithmetic.
pub(crate) fn client(dir: &Path, shows: bool) -> io::Result<Arc<ClientConfig>> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    provider.kx_groups = vec![kx_group::X25519];
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&TLS13]).map_err(wrong)?;
    let builder = builder.with_root_certificates(roots(dir)?);
    let mut config = if shows {
        let (chain, key) = (certificates(&dir.join("client.pem"))?, key(&dir.join("client-key.pem"))?);
        builder.with_client_auth_cert(chain, key).map_err(wrong)?
    } else {
        builder.with_no_client_auth()
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}
