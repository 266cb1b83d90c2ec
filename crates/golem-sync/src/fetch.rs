//! Reads a source to bytes: from a file, or over https with the system's roots, within limits of size, time and
//! redirects; and the minisign signature beside it, if a key was given. The names here are the operator's own, so
//! the system's resolver looks them up. `unpack` interprets the bytes.

use super::{Source, SyncError};
use minisign_verify::{PublicKey, Signature};
use outgate_golem::MAX_INPUT;
use outgate_golem::rules;
use rustls::crypto::ring;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::http::header::TRANSFER_ENCODING;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// The largest source, in bytes, before decompression.
pub const MAX_SOURCE: u64 = 4 << 20;
/// The longest time for all requests together, by default.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The longest time to look up a name, and to make one connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Redirects of one request; GitHub's releases need two.
const REDIRECTS: u32 = 5;
/// Suffix of a signature's name.
const SIGNATURE: &str = ".minisig";
/// The lists of a folder.
const NAMES: [&str; 2] = ["strict.lst", "regex.lst"];

/// Returns the files of a source that is a folder; any other source as it is.
pub(super) fn spread(source: &Source) -> Vec<Source> {
    match source {
        Source::Path(folder) if folder.is_dir() => {
            let present = NAMES.iter().map(|name| folder.join(name)).filter(|path| path.symlink_metadata().is_ok());
            let present: Vec<Source> = present.map(Source::Path).collect();
            // If there is neither, the error names the one that everybody has.
            if present.is_empty() { vec![Source::Path(folder.join("strict.lst"))] } else { present }
        }
        other => vec![other.clone()],
    }
}

/// Reads a minisign public key: its line in base64, or the path of the file that minisign made.
///
/// # Errors
/// Why it is neither.
pub fn public_key(text: &str) -> Result<PublicKey, String> {
    if let Ok(key) = PublicKey::from_base64(text.trim()) {
        return Ok(key);
    }
    let bytes = rules::read(Path::new(text)).map_err(|error| error.to_string())?;
    let bytes = bytes.ok_or_else(|| format!("{text} is neither a minisign public key nor a file with one"))?;
    // A comment precedes the key.
    let line = String::from_utf8_lossy(&bytes).lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned);
    let key = line.and_then(|line| PublicKey::from_base64(line.trim()).ok());
    key.ok_or_else(|| format!("{text}: no minisign public key in it"))
}

/// Fetches sources until a deadline.
pub struct Fetcher {
    key: Option<PublicKey>,
    until: Instant,
}

impl Fetcher {
    /// Creates a fetcher that has this much time from now, for everything that it fetches.
    pub fn new(key: Option<PublicKey>, patience: Duration) -> Fetcher {
        Fetcher { key, until: Instant::now() + patience }
    }

    /// Returns the name and the bytes of a source. If there is a key, the signature is verified.
    pub(super) fn get(&self, source: &Source, say: &mut dyn FnMut(&str)) -> Result<(String, Vec<u8>), SyncError> {
        let bytes = self.bytes(source, MAX_SOURCE, say)?;
        if let Some(key) = &self.key {
            self.verify(key, source, &bytes, say)?;
        }
        let name = match source {
            Source::Web(url) => without_query(url).to_owned(),
            Source::Path(path) => path.to_string_lossy().into_owned(),
        };
        Ok((name, bytes))
    }

    fn bytes(&self, source: &Source, limit: u64, say: &mut dyn FnMut(&str)) -> Result<Vec<u8>, SyncError> {
        match source {
            Source::Web(url) => {
                say(&format!("fetching {url}"));
                self.download(url, limit)
            }
            Source::Path(path) => read(path, limit),
        }
    }

    fn verify(
        &self,
        key: &PublicKey,
        source: &Source,
        bytes: &[u8],
        say: &mut dyn FnMut(&str),
    ) -> Result<(), SyncError> {
        let beside = signature_of(source);
        let text = self.bytes(&beside, MAX_INPUT, say).map_err(|error| match error {
            SyncError::Failed { from, why } => SyncError::Signature { from, why },
            SyncError::TooLarge { from, .. } => {
                SyncError::Signature { from, why: "too large for a signature".to_owned() }
            }
            SyncError::Io { path, source } => {
                SyncError::Signature { from: path.display().to_string(), why: source.to_string() }
            }
            other => other,
        })?;
        let wrong = |why: String| SyncError::Signature { from: beside.to_string(), why };
        let text = std::str::from_utf8(&text).map_err(|_| wrong("no minisign signature".to_owned()))?;
        let signature = Signature::decode(text).map_err(|error| wrong(format!("no minisign signature: {error}")))?;
        // Signatures of the bytes instead of their hash are equally valid, and programs other than minisign make
        // them.
        key.verify(bytes, &signature, true).map_err(|error| wrong(format!("the signature is not valid: {error}")))?;
        // A list's name distinguishes hosts from regexes, and whoever serves it could change the name.
        match file_name(source) {
            Some(name) if name.ends_with(".lst") && !is_for(signature.trusted_comment(), name) => {
                let why = format!("its trusted comment does not say `file:{name}`, as minisign's own comments do");
                Err(wrong(format!("{why}; sign it under this name, or sign an archive")))
            }
            _ => Ok(()),
        }
    }

    fn download(&self, url: &str, limit: u64) -> Result<Vec<u8>, SyncError> {
        let left = self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let answer = agent(url)?.get(url).config().timeout_global(Some(left)).build().call();
        let mut answer = answer.map_err(|error| explained(url, error, limit))?;
        // Anybody on the path could end the connection, and a truncated list looks like a shorter one.
        let chunked = answer.headers().get(TRANSFER_ENCODING).is_some();
        if answer.body().content_length().is_none() && !chunked {
            let why = "the server does not state the length of its answer, so a part of it could pass for the whole";
            return Err(SyncError::Failed { from: url.to_owned(), why: why.to_owned() });
        }
        let body = answer.body_mut().with_config().limit(limit).read_to_vec();
        body.map_err(|error| explained(url, error, limit))
    }
}

/// Returns whether the comment, which is also signed, names the file.
fn is_for(comment: &str, name: &str) -> bool {
    comment.split_whitespace().filter_map(|word| word.strip_prefix("file:")).any(|file| file == name)
}

/// Returns the file name of a source, without its path.
fn file_name(source: &Source) -> Option<&str> {
    match source {
        Source::Web(url) => without_query(url).rsplit('/').next(),
        Source::Path(path) => path.file_name()?.to_str(),
    }
}

/// Returns a client that trusts the certificate authorities of this machine.
fn agent(url: &str) -> Result<Agent, SyncError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let why = format!(
            "this machine trusts no certificate authority ({}); install ca-certificates, or name a file with SSL_CERT_FILE",
            if errors.is_empty() { "none is installed".to_owned() } else { errors.join(", ") }
        );
        return Err(SyncError::Failed { from: url.to_owned(), why });
    }
    let roots = found.certs.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build();
    let config = Agent::config_builder()
        .https_only(true)
        .max_redirects(REDIRECTS)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .user_agent(concat!("outgate/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls);
    Ok(config.build().new_agent())
}

/// Converts an error, with a message, and distinguishes failures that waiting may resolve from others.
fn explained(url: &str, error: ureq::Error, limit: u64) -> SyncError {
    use ureq::Error;
    let source = url.to_owned();
    let later = |why: String| SyncError::Unreachable { from: url.to_owned(), why };
    let failed = |why: String| SyncError::Failed { from: url.to_owned(), why };
    match error {
        Error::BodyExceedsLimit(_) => SyncError::TooLarge { from: source, limit },
        Error::StatusCode(code @ (408 | 429 | 500..=599)) => later(format!("the server answers {code}")),
        Error::StatusCode(code) => failed(format!("the server answers {code}")),
        Error::TooManyRedirects => failed(format!("redirects more than {REDIRECTS} times")),
        Error::RequireHttpsOnly(to) => failed(format!("redirects to {to}, and only https:// is followed")),
        Error::Rustls(error) => failed(distrusted(&error)),
        Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => failed(distrusted(error)),
            None => later(error.to_string()),
        },
        Error::Timeout(what) => later(format!("took too long ({what})")),
        Error::HostNotFound => later("there is no such host".to_owned()),
        Error::ConnectionFailed => later("no connection".to_owned()),
        Error::ConnectProxyFailed(why) => later(format!("the proxy named in the environment refuses: {why}")),
        other => failed(other.to_string()),
    }
}

fn distrusted(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(_) => {
            format!("{error}; if the authority is one of your own, name its file with SSL_CERT_FILE")
        }
        other => other.to_string(),
    }
}

/// Reads a file of at most `limit` bytes.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, SyncError> {
    let failed = |source: io::Error| SyncError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(SyncError::TooLarge { from: path.display().to_string(), limit });
    }
    Ok(bytes)
}

/// Returns the place of a source's signature.
fn signature_of(source: &Source) -> Source {
    match source {
        Source::Web(url) => {
            let path = without_query(url);
            let rest = url.strip_prefix(path).unwrap_or_default();
            Source::Web(format!("{path}{SIGNATURE}{rest}"))
        }
        Source::Path(path) => {
            let mut name = path.clone().into_os_string();
            name.push(SIGNATURE);
            Source::Path(name.into())
        }
    }
}

pub(super) fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn a_signature_says_which_list_it_is_of() {
        assert!(is_for("timestamp:1700000000\tfile:strict.lst\thashed", "strict.lst"));
        for comment in ["timestamp:1700000000\tfile:regex.lst\thashed", "strict.lst", "", "file:strict.lst.old"] {
            assert!(!is_for(comment, "strict.lst"), "{comment}");
        }
        let web = Source::Web("https://a.test/x/strict.lst?file=regex.lst".into());
        assert_eq!(file_name(&web), Some("strict.lst"));
    }

    #[test]
    fn a_signature_stands_beside_its_source() {
        let web = |url: &str| Source::Web(url.to_owned());
        assert_eq!(signature_of(&web("https://a.test/x.tgz?v=1#y")), web("https://a.test/x.tgz.minisig?v=1#y"));
        assert_eq!(signature_of(&web("https://a.test/x.tgz")), web("https://a.test/x.tgz.minisig"));
        assert_eq!(signature_of(&Source::Path("a/x.lst".into())), Source::Path("a/x.lst.minisig".into()));
    }

    #[test]
    fn a_folder_is_the_lists_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Source::Path(dir.path().to_owned());
        assert_eq!(spread(&folder), [Source::Path(dir.path().join("strict.lst"))], "which is then missed");
        for name in ["regex.lst", "strict.lst", "other.lst"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(spread(&folder), NAMES.map(|name| Source::Path(dir.path().join(name))));
    }

    #[test]
    fn files_beyond_the_bound_are_not_read() {
        let error = read(Path::new("/dev/zero"), 10 << 10).unwrap_err();
        assert_eq!(error.to_string(), "/dev/zero: is larger than 10 KiB, the limit for a list of hosts");
    }

    #[test]
    fn a_key_is_a_line_or_a_file_that_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pub");
        let file = path.to_str().unwrap();
        let key = STANDARD.encode([b"Ed12345678".as_slice(), &[7; 32]].concat());
        assert!(public_key(&key).is_ok());
        for (text, good) in [
            (format!("untrusted comment: minisign public key\n{key}\n"), true),
            (format!("{key}\r\n\n"), true),
            (String::new(), false),
            (format!("{key}\nnot the key\n"), false),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(public_key(file).is_ok(), good, "{text:?}");
        }
        assert!(public_key("/nonexistent").unwrap_err().contains("neither"));
    }
}
