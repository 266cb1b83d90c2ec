//! A computation manifest: what a job asks for. Only the fields about outgoing traffic are read, and the days on
//! which the manifest is valid.

use super::{MAX_INPUT, base64};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

/// Maximum number of URLs of one manifest.
const MAX_URLS: usize = 4096;

/// What a job asks to access.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Nothing.
    None,
    /// These URLs; scheme, host and port of each count.
    Urls(Vec<Url>),
    /// Any destination.
    Unrestricted,
}

/// A parsed manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// What it asks for.
    pub access: Access,
    /// The base64 text that a signature is made over.
    pub encoded: String,
    /// Start of its validity.
    pub created: Timestamp,
    /// End of its validity.
    pub expires: Timestamp,
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Over [`MAX_INPUT`] bytes.
    #[error("the manifest is larger than {} KiB", MAX_INPUT >> 10)]
    TooLarge,
    /// More URLs than a manifest may have.
    #[error("the manifest asks for more than {MAX_URLS} URLs")]
    TooMany,
    /// Neither JSON nor base64 of it.
    #[error("the manifest is neither JSON nor base64 of JSON")]
    Encoding,
    /// JSON that is not a manifest, or is truncated.
    #[error("not a manifest: {0}")]
    Form(serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    created_at: Timestamp,
    expires_at: Timestamp,
    comp_manifest: Option<CompManifest>,
}

#[derive(Deserialize)]
struct CompManifest {
    net: Option<Net>,
}

#[derive(Deserialize)]
struct Net {
    inet: Option<Inet>,
}

#[derive(Deserialize)]
struct Inet {
    out: Option<Out>,
}

#[derive(Deserialize)]
struct Out {
    urls: Option<Vec<Url>>,
    unrestricted: Option<Unrestricted>,
}

#[derive(Deserialize)]
struct Unrestricted {
    urls: bool,
}

impl Manifest {
    /// Reads a manifest as JSON, or as base64 of it, which is how a demand contains it.
    ///
    /// # Errors
    /// [`ManifestError`]. An expired manifest is not an error; see [`Manifest::dates`].
    pub fn read(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() as u64 > MAX_INPUT {
            return Err(ManifestError::TooLarge);
        }
        let text = bytes.trim_ascii();
        let (json, encoded) = if text.starts_with(b"{") {
            (bytes.to_vec(), STANDARD.encode(bytes))
        } else {
            let json = base64(text).ok_or(ManifestError::Encoding)?;
            (json, String::from_utf8_lossy(text).into_owned())
        };
        let document: Document = serde_json::from_slice(&json).map_err(ManifestError::Form)?;
        let out = document.comp_manifest.and_then(|comp| comp.net?.inet?.out);
        let access = match out {
            Some(Out { unrestricted: Some(Unrestricted { urls: true }), .. }) => Access::Unrestricted,
            Some(Out { urls: Some(urls), .. }) if urls.len() > MAX_URLS => return Err(ManifestError::TooMany),
            Some(Out { urls: Some(urls), .. }) if !urls.is_empty() => Access::Urls(urls),
            _ => Access::None,
        };
        Ok(Manifest { access, encoded, created: document.created_at, expires: document.expires_at })
    }

    /// Returns what is wrong with its dates at `now`, if anything. yagna does not check them.
    pub fn dates(&self, now: Timestamp) -> Option<String> {
        if now < self.created {
            return Some(format!("the manifest is not valid yet: it was created at {}", self.created));
        }
        (now > self.expires).then(|| format!("the manifest expired at {}", self.expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(net: &str) -> String {
        format!(
            r#"{{"version":"0.1.0","createdAt":"2022-09-07T02:57:00.000000Z","expiresAt":"2100-01-01T00:01:00.000000Z","payload":[],"compManifest":{{"version":"0.1.0","net":{net}}}}}"#
        )
    }

    fn access(net: &str) -> Access {
        Manifest::read(with(net).as_bytes()).unwrap().access
    }

    #[test]
    fn what_asks_for_no_url_asks_for_nothing() {
        for net in [
            "null",
            "{}",
            r#"{"inet":null}"#,
            r#"{"inet":{}}"#,
            r#"{"inet":{"out":{}}}"#,
            r#"{"inet":{"out":{"protocols":["https"],"urls":[]}}}"#,
            r#"{"inet":{"out":{"unrestricted":{"urls":false}}}}"#,
        ] {
            assert_eq!(access(net), Access::None, "{net}");
        }
        let bare = r#"{"createdAt":"2022-09-07T02:57:00Z","expiresAt":"2100-01-01T00:01:00Z"}"#;
        assert_eq!(Manifest::read(bare.as_bytes()).unwrap().access, Access::None);
    }

    #[test]
    fn urls_and_unrestricted_are_told_apart() {
        let urls = [Url::parse("https://ipfs.io/").unwrap(), Url::parse("tcp://github.com:22").unwrap()].to_vec();
        assert_eq!(
            access(r#"{"inet":{"out":{"urls":["https://ipfs.io","tcp://github.com:22"]}}}"#),
            Access::Urls(urls)
        );
        let both = r#"{"inet":{"out":{"urls":["https://ipfs.io"],"unrestricted":{"urls":true}}}}"#;
        assert_eq!(access(both), Access::Unrestricted);
    }

    #[test]
    fn plain_and_encoded_manifests_are_the_same_and_signed_as_base64() {
        let plain = with(r#"{"inet":{"out":{"urls":["https://ipfs.io"]}}}"#);
        let encoded = STANDARD.encode(&plain);
        let one = Manifest::read(plain.as_bytes()).unwrap();
        let other = Manifest::read(format!("\n{encoded}\n").as_bytes()).unwrap();
        assert_eq!((&one.access, &one.encoded), (&other.access, &other.encoded));
        assert_eq!(one.encoded, encoded);
    }

    #[test]
    fn broken_cut_and_large_manifests_are_refused_in_words() {
        let plain = with("{}");
        for cut in 1..plain.len() {
            assert!(matches!(Manifest::read(&plain.as_bytes()[..cut]), Err(ManifestError::Form(_))), "cut at {cut}");
        }
        for text in ["", "not base64!", "e30"] {
            assert!(
                matches!(Manifest::read(text.as_bytes()), Err(ManifestError::Encoding | ManifestError::Form(_))),
                "{text}"
            );
        }
        let large = vec![b' '; (MAX_INPUT + 1) as usize];
        assert!(matches!(Manifest::read(&large), Err(ManifestError::TooLarge)));
        let urls = vec![r#""https://a.io""#; MAX_URLS + 1].join(",");
        let many = with(&format!(r#"{{"inet":{{"out":{{"urls":[{urls}]}}}}}}"#));
        assert!(matches!(Manifest::read(many.as_bytes()), Err(ManifestError::TooMany)));
    }

    #[test]
    fn dates_are_told_and_no_error() {
        let manifest = Manifest::read(with("{}").as_bytes()).unwrap();
        let at = |time: &str| manifest.dates(time.parse().unwrap());
        assert_eq!(at("2026-01-01T00:00:00Z"), None);
        assert!(at("2022-09-07T02:56:59Z").unwrap().contains("not valid yet"));
        assert!(at("2100-01-01T00:01:01Z").unwrap().contains("expired"));
    }
}
