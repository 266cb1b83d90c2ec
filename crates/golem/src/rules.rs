//! `rules.json` and `domain_whitelist.json` of a provider's data dir, as yagna's negotiation applies them.
//! The crate `outgate-whitelist` decides how the daemon uses the list; here it is matched to the letter.

use super::MAX_INPUT;
use outgate_files::open_regular;
use regex::{RegexSet, RegexSetBuilder};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Name of the rules file in the data dir.
pub const RULES: &str = "rules.json";
/// Name of the list in the data dir.
pub const WHITELIST: &str = "domain_whitelist.json";
/// The folder with certificates in the data dir.
pub const CERT_DIR: &str = "cert-dir";

/// What a rule permits, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing.
    None,
    /// What the list contains.
    Whitelist,
    /// Everything.
    All,
}

impl Mode {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::None => "none",
            Mode::Whitelist => "whitelist",
            Mode::All => "all",
        }
    }
}

/// The rule of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CertRule {
    /// What it permits.
    pub mode: Mode,
}

/// The part of `rules.json` about outgoing traffic.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outbound {
    /// `false` refuses every manifest that asks for any access.
    pub enabled: bool,
    /// For manifests without any certificate.
    pub everyone: Mode,
    /// By SHA-512 of the certificate, for signed manifests.
    #[serde(default)]
    pub audited_payload: HashMap<String, CertRule>,
    /// By SHA-512 of the certificate, for requestors with a node descriptor.
    #[serde(default)]
    pub partner: HashMap<String, CertRule>,
}

#[derive(Deserialize)]
struct RulesFile {
    outbound: Outbound,
}

/// The hosts of the list.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    strict: HashSet<String>,
    regexes: RegexSet,
}

#[derive(Deserialize)]
struct Patterns {
    patterns: Vec<Pattern>,
}

#[derive(Deserialize)]
struct Pattern {
    domain: String,
    #[serde(default, rename = "match")]
    matching: Matching,
}

/// How an entry of the list is matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// One host.
    #[default]
    Strict,
    /// A regex for hosts.
    Regex,
}

impl Matching {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Matching::Strict => "strict",
            Matching::Regex => "regex",
        }
    }
}

/// Why a file of the data dir cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Over [`MAX_INPUT`] bytes.
    #[error("{}: is larger than {} KiB", path.display(), MAX_INPUT >> 10)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It does not have yagna's format.
    #[error("{}:{}:{}: {source}", path.display(), source.line(), source.column())]
    Form {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A regex that yagna could not compile either.
    #[error("{}: {source}", path.display())]
    Regex {
        /// Which.
        path: PathBuf,
        /// Why.
        source: regex::Error,
    },
}

/// Returns the files of a data dir that apply to guests without a manifest.
pub fn files(data_dir: &Path) -> [PathBuf; 2] {
    [WHITELIST, RULES].map(|name| data_dir.join(name))
}

/// Reads a file of at most [`MAX_INPUT`] bytes; `None` if there is none.
///
/// # Errors
/// [`RulesError::Io`] and [`RulesError::TooLarge`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, RulesError> {
    let failed = |source| RulesError::Io { path: path.to_owned(), source };
    let opened = match open_regular(path, OFlags::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let Some((file, _)) = opened else {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")));
    };
    let mut bytes = Vec::new();
    file.take(MAX_INPUT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(RulesError::TooLarge { path: path.to_owned() });
    }
    Ok(Some(bytes))
}

impl Default for Outbound {
    /// Returns what yagna writes if there is no file.
    fn default() -> Outbound {
        Outbound { enabled: true, everyone: Mode::Whitelist, audited_payload: HashMap::new(), partner: HashMap::new() }
    }
}

impl Outbound {
    /// Reads `rules.json` of a data dir; yagna's defaults if there is none.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn of(data_dir: &Path) -> Result<Outbound, RulesError> {
        let path = data_dir.join(RULES);
        let Some(bytes) = read(&path)? else { return Ok(Outbound::default()) };
        Outbound::parse(&bytes).map_err(|source| RulesError::Form { path, source })
    }

    /// Parses the text of a `rules.json`.
    ///
    /// # Errors
    /// If it does not have yagna's format.
    pub fn parse(text: &[u8]) -> Result<Outbound, serde_json::Error> {
        serde_json::from_slice(text).map(|RulesFile { outbound }| outbound)
    }

    /// Returns rules that permit nothing.
    pub fn closed() -> Outbound {
        Outbound { enabled: false, everyone: Mode::None, ..Outbound::default() }
    }

    /// Returns the mode granted to a guest without a manifest.
    pub fn without_manifest(&self) -> Mode {
        if self.enabled { self.everyone } else { Mode::None }
    }
}

impl Hosts {
    /// Reads `domain_whitelist.json` of a data dir; no hosts if there is none.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn of(data_dir: &Path) -> Result<Hosts, RulesError> {
        let path = data_dir.join(WHITELIST);
        let Some(bytes) = read(&path)? else { return Ok(Hosts::default()) };
        let Patterns { patterns } = match serde_json::from_slice(&bytes) {
            Ok(patterns) => patterns,
            Err(source) => return Err(RulesError::Form { path, source }),
        };
        // Lower-cased before they are compiled, `\S` and `\D` included: yagna does the same.
        let of = |matching| {
            let all = patterns.iter().filter(move |pattern| pattern.matching == matching);
            all.map(|pattern| pattern.domain.to_lowercase())
        };
        let regexes = RegexSetBuilder::new(of(Matching::Regex)).case_insensitive(true).ignore_whitespace(true).build();
        let regexes = regexes.map_err(|source| RulesError::Regex { path, source })?;
        Ok(Hosts { strict: of(Matching::Strict).collect(), regexes })
    }

    /// Returns whether the list contains this host.
    pub fn contains(&self, host: &str) -> bool {
        self.strict.contains(&host.to_lowercase()) || self.regexes.is_match(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(json: &str) -> Result<Hosts, RulesError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(WHITELIST), json).unwrap();
        Hosts::of(dir.path())
    }

    #[test]
    fn hosts_are_matched_to_the_letter() {
        let hosts = hosts(
            r#"{"patterns":[{"domain":"IPFS.io"},{"domain":"10.0.0.1","match":"strict"},{"domain":"do main.com # x","match":"regex"},{"domain":"^\\D+\\.test$","match":"regex"}]}"#,
        )
        .unwrap();
        for host in ["ipfs.io", "IPFS.IO", "10.0.0.1", "domain.com", "mydomain.comx", "domainacom"] {
            assert!(hosts.contains(host), "{host}");
        }
        for host in ["x.ipfs.io", "ipfs.io.", "do main.co", "a.test"] {
            assert!(!hosts.contains(host), "{host}");
        }
        assert!(hosts.contains("1.test"), "`\\D` becomes `\\d` when it is lower-cased");
    }

    #[test]
    fn without_files_yagnas_defaults_hold() {
        let dir = tempfile::tempdir().unwrap();
        let rules = Outbound::of(dir.path()).unwrap();
        assert!(rules.enabled && rules.everyone == Mode::Whitelist && rules.partner.is_empty());
        assert!(!Hosts::of(dir.path()).unwrap().contains("ipfs.io"));
    }

    #[test]
    fn broken_files_are_named_with_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join(RULES);
        for (text, words) in [
            ("{\n\"outbound\": {\"enabled\": true,\n", "rules.json:3:"),
            (r#"{"outbound":{"enabled":true,"everyone":"some"}}"#, "unknown variant `some`"),
            (r#"{"outbound":{"everyone":"all"}}"#, "missing field `enabled`"),
        ] {
            std::fs::write(&rules, text).unwrap();
            let error = Outbound::of(dir.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        std::fs::write(&rules, vec![b' '; (MAX_INPUT + 1) as usize]).unwrap();
        assert!(Outbound::of(dir.path()).unwrap_err().to_string().contains("larger than 1024 KiB"));
        assert!(
            hosts(r#"{"patterns":[{"domain":"(","match":"regex"}]}"#).unwrap_err().to_string().contains("regex parse")
        );
    }
}
