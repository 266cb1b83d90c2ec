//! Versions of the files that outgate keeps for itself. One of a later version is refused with a sentence and not
//! misread, since what was added to it may change what the rest means.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

/// A file that a later outgate wrote. Its text names the file, both versions and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaterVersion {
    /// The file.
    pub path: PathBuf,
    /// Its version.
    pub found: u64,
    /// The latest version that this program reads.
    pub known: u64,
    /// What to do.
    pub remedy: &'static str,
}

impl LaterVersion {
    /// Checks the version `found` of a file. `known` is the latest that the caller reads.
    ///
    /// # Errors
    /// If `found` is later.
    pub fn check(path: &Path, found: u64, known: u64, remedy: &'static str) -> Result<(), LaterVersion> {
        match found > known {
            true => Err(LaterVersion { path: path.to_owned(), found, known, remedy }),
            false => Ok(()),
        }
    }
}

impl fmt::Display for LaterVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LaterVersion { path, found, known, remedy } = self;
        write!(
            out,
            "{}: a later outgate wrote it (version {found} of this file, and this program reads up to {known}); {remedy}",
            path.display()
        )
    }
}

impl Error for LaterVersion {}

/// Returns the version behind `name` in the first line; `None` if the line has another form.
pub fn of_first_line(bytes: &[u8], name: &[u8]) -> Option<u64> {
    let rest = bytes.strip_prefix(name)?;
    let line = rest.get(..rest.iter().position(|byte| *byte == b'\n')?)?;
    // A sign would be read too.
    let digits = std::str::from_utf8(line).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_version_is_refused_and_the_sentence_has_all_that_helps() {
        let check = |found| LaterVersion::check(Path::new("/s/file"), found, 2, "remove it");
        assert_eq!((check(0), check(2)), (Ok(()), Ok(())));
        assert_eq!(
            check(3).unwrap_err().to_string(),
            "/s/file: a later outgate wrote it (version 3 of this file, and this program reads up to 2); remove it"
        );
    }

    #[test]
    fn the_version_of_a_first_line_is_a_whole_number() {
        let of = |text: &str| of_first_line(text.as_bytes(), b"form ");
        assert_eq!((of("form 1\nrest"), of("form 12\n")), (Some(1), Some(12)));
        for other in
            ["form 1", "form \n", "form x\n", "form +1\n", "form 1 \n", "format 1\n", "", "form 99999999999999999999\n"]
        {
            assert_eq!(of(other), None, "{other:?}");
        }
    }
}
