//! Fetches the list that Golem Factory publishes for providers, or another in its format, from its source to a
//! separate file in the whitelist dir. This module defines sources and runs the steps; these submodules contain
//! them.
//!
//! | module | does |
//! |---|---|
//! | [`fetch`] | a source to bytes, and their signature |
//! | [`unpack`] | bytes to the two lists in them |
//! | [`merge`] | lists to entries, against the file of the last time |
//!
//! [`outgate_whitelist::edit`] writes the file, like every change of a list.

#![cfg_attr(
    test,
    allow(
        clippy::pedantic,
        clippy::restriction,
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "a test that panics fails, as it should"
    ),
    warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)
)]

pub mod fetch;
pub mod merge;
pub mod unpack;

use fetch::Fetcher;
use outgate_whitelist::Report;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where the providers' installer gets the lists.
pub const PUBLISHED: &str =
    "https://github.com/golemfactory/ya-installer-resources/releases/latest/download/resources.tar.gz";

/// A place of such a list: [`PUBLISHED`], or any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An `https://` URL.
    Web(String),
    /// An archive, a `.lst` file, or a folder with `strict.lst` and `regex.lst`.
    Path(PathBuf),
}

impl Source {
    /// Parses a source that an operator wrote.
    ///
    /// # Errors
    /// Why it is neither a path nor a URL that can be fetched.
    pub fn parse(text: &str) -> Result<Source, String> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            _ if text.is_empty() => Err("it is empty".to_owned()),
            Some("https") => Ok(Source::Web(text.to_owned())),
            Some("http") => {
                Err("anyone on the network path could change the list over http://; write https://, or name a file"
                    .into())
            }
            Some(other) => Err(format!("{other}:// is not supported; write https://, or name a file")),
            None => Ok(Source::Path(text.into())),
        }
    }
}

impl Source {
    /// Returns the source without its secrets, such as a password or a token, to be recorded.
    fn shown(&self) -> String {
        let Source::Web(url) = self else { return self.to_string() };
        let plain = fetch::without_query(url);
        match plain.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
                let host = authority.rsplit('@').next().unwrap_or(authority);
                format!("{scheme}://{host}{path}")
            }
            None => plain.to_owned(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Web(url) => f.write_str(url),
            Source::Path(path) => path.display().fmt(f),
        }
    }
}

/// The origin of a list, as it is recorded in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The source.
    pub from: String,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

/// One list as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Shown in front of a line number. Its ending distinguishes hosts from regexes.
    pub name: String,
    /// One entry a line.
    pub text: Vec<u8>,
}

/// Everything that was received.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// In the order of the sources.
    pub origins: Vec<Origin>,
    /// In the order of the sources; of one source, hosts first.
    pub lists: Vec<List>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The server cannot be reached or is too busy; it may work later.
    #[error("{from}: {why}; the list in force stays")]
    Unreachable {
        /// The source.
        from: String,
        /// What happened.
        why: String,
    },
    /// It cannot be fetched, and waiting does not help.
    #[error("{from}: {why}")]
    Failed {
        /// The source.
        from: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Larger than such a list needs to be.
    #[error("{from}: is larger than {} KiB, the limit for a list of hosts", limit >> 10)]
    TooLarge {
        /// The source.
        from: String,
        /// In bytes.
        limit: u64,
    },
    /// The signature is missing or was not made with the key.
    #[error("{from}: {why}; nothing was written")]
    Signature {
        /// The signature.
        from: String,
        /// What is wrong.
        why: String,
    },
    /// Lines that are not entries.
    #[error("{0}")]
    Invalid(Report),
    /// Lists without entries.
    #[error("the new list has no entries, which would remove the whole list; nothing was written")]
    Empty,
    /// Lists that have lost many entries.
    #[error("{0}; if that is right, run it again with --allow-shrink. Nothing was written")]
    Shrunk(String),
    /// New entries that match names of unrelated owners.
    #[error("{}; if that is intended, run it again with --allow-wide. Nothing was written", .0.join("; "))]
    Wide(Vec<String>),
    /// A file of that name was not written by outgate.
    #[error("{}: {why}", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Why it is not overwritten, and what to do.
        why: &'static str,
    },
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Fetches the lists of all sources, each with a valid signature if `fetcher` has a key. `say` receives messages
/// about what is being waited for.
///
/// # Errors
/// [`SyncError`] of the first source that fails.
pub fn gather(sources: &[Source], fetcher: &Fetcher, say: &mut dyn FnMut(&str)) -> Result<Gathered, SyncError> {
    let mut gathered = Gathered::default();
    for source in sources.iter().flat_map(fetch::spread) {
        let (name, bytes) = fetcher.get(&source, say)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        gathered.origins.push(Origin { from: source.shown(), sha256: outgate_golem::hex(digest.as_ref()) });
        gathered.lists.extend(unpack::lists(&name, bytes)?);
    }
    Ok(gathered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_https_urls_and_paths() {
        assert_eq!(Source::parse(PUBLISHED), Ok(Source::Web(PUBLISHED.to_owned())));
        assert_eq!(Source::parse("HTTPS://a.test/x.tgz"), Ok(Source::Web("HTTPS://a.test/x.tgz".to_owned())));
        assert_eq!(Source::parse("lists/strict.lst"), Ok(Source::Path("lists/strict.lst".into())));
        let secret = Source::parse("https://me:secret@a.test:8443/x.tgz?token=t#y").unwrap();
        assert_eq!(secret.shown(), "https://a.test:8443/x.tgz");
        for refused in ["http://a.test/strict.lst", "HTTP://a.test", "ftp://a.test/x", "file:///etc/x.lst", ""] {
            assert!(Source::parse(refused).is_err(), "{refused:?}");
        }
        assert!(Source::parse("http://a.test").unwrap_err().contains("write https://"));
    }
}
