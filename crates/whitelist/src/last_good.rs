//! The last good list: after each successful load, the exact files are saved in the state dir, as one file with a
//! checksum. A restart with a broken list can then continue with the previous one. The daemon decides whether to
//! fall back to it.

use super::read::{Files, MAX_FILES, MAX_TOTAL, SourceFile};
use outgate_files::replace::{Attributes, replace_by};
use outgate_files::version::{LaterVersion, of_first_line};
use outgate_policy::cooperate;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Name of the file in the state dir.
pub const FILE_NAME: &str = "whitelist.last-good";

/// First line of the file; the digit is the format version.
const MAGIC: &[u8] = b"outgate last good whitelist 1\n";
/// The same without the version.
const NAME: &[u8] = b"outgate last good whitelist ";
/// The format version.
const VERSION: u64 = 1;
/// Bytes of the checksum (SHA-256) behind it.
const CHECKSUM: usize = 32;

/// Why no last good list is available.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// None was ever saved.
    #[error("no list has been kept yet")]
    Nothing,
    /// The file is damaged.
    #[error("the kept list is damaged")]
    Damaged,
    /// A later version wrote it.
    #[error(transparent)]
    Later(#[from] LaterVersion),
    /// Reading it failed.
    #[error("the kept list cannot be read: {0}")]
    Io(io::Error),
}

/// Saves `files` in `state`; call it with files that were just compiled without an error. Writes nothing if the
/// identical set is saved already.
pub fn save(state: &Path, files: &Files) -> io::Result<()> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    payload(files, &mut |piece| {
        hash.update(piece);
        Ok(())
    })?;
    let sum = hash.finish();
    let path = state.join(FILE_NAME);
    if head(&path).is_ok_and(|kept| kept.strip_prefix(MAGIC) == Some(sum.as_ref())) && restore(state).is_ok() {
        return Ok(());
    }
    replace_by(&path, Attributes::PRIVATE, |file| {
        file.write_all(&[MAGIC, sum.as_ref()].concat())?;
        payload(files, &mut |piece| file.write_all(piece))
    })
}

/// Passes the saved form of the files to `take`, piece by piece: each name and each content, preceded by its
/// length.
fn payload(files: &Files, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    for file in files.iter() {
        for part in [file.name().as_bytes(), file.bytes()] {
            take(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes())?;
            cooperate::pieces(part).try_for_each(&mut *take)?;
        }
    }
    Ok(())
}

/// Reads back what [`save`] wrote.
pub fn restore(state: &Path) -> Result<Files, KeepError> {
    let path = state.join(FILE_NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(KeepError::Nothing),
        Err(error) => return Err(KeepError::Io(error)),
    };
    let mut bytes = Vec::new();
    // Names and lengths are added to the contents; 1 KiB a file is more than they need.
    let most = MAX_TOTAL + u64::try_from(MAX_FILES).unwrap_or(u64::MAX).saturating_mul(1024);
    file.take(most).read_to_end(&mut bytes).map_err(KeepError::Io)?;
    let remedy = "mend the lists, and it is written anew, or install that version again";
    LaterVersion::check(&path, of_first_line(&bytes, NAME).unwrap_or(VERSION), VERSION, remedy)?;
    decode(&bytes).ok_or(KeepError::Damaged)
}

fn decode(bytes: &[u8]) -> Option<Files> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (sum, mut payload) = rest.split_at_checked(CHECKSUM)?;
    if checksum(payload) != sum {
        return None;
    }
    let mut files = Vec::new();
    while !payload.is_empty() {
        let name = std::str::from_utf8(pull(&mut payload)?).ok()?;
        let content = pull(&mut payload)?;
        files.push(SourceFile::new(name, content.to_vec())?);
    }
    Some(Files::from_sources(files))
}

pub(super) fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    let digest = ring::digest::digest(&ring::digest::SHA256, payload);
    sum.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    sum
}

fn pull<'p>(payload: &mut &'p [u8]) -> Option<&'p [u8]> {
    let (length, rest) = payload.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (part, rest) = rest.split_at_checked(length)?;
    *payload = rest;
    Some(part)
}

fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = vec![0; MAGIC.len() + CHECKSUM];
    File::open(path)?.read_exact(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_files_come_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(restore(dir.path()), Err(KeepError::Nothing)));
        let files = Files::from_memory([("a.rules", "ipfs.io\n"), ("b.lst", ""), ("c.json", "{\"patterns\":[]}")]);
        save(dir.path(), &files).unwrap();
        let kept = restore(dir.path()).unwrap();
        assert!(kept.iter().eq(files.iter()));
        assert_eq!(kept.fingerprint(), files.fingerprint());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unchanged_list_is_not_written_again_and_a_damaged_copy_is() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let files = Files::from_memory([("a.rules", "ipfs.io\n")]);
        let path = dir.path().join(FILE_NAME);
        save(dir.path(), &files).unwrap();
        let first = std::fs::metadata(&path).unwrap().ino();
        save(dir.path(), &files).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), first);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        save(dir.path(), &files).unwrap();
        assert!(restore(dir.path()).is_ok());
    }

    #[test]
    fn a_copy_of_a_later_version_is_named_as_such_and_replaced_by_the_next_sound_list() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::from_memory([("a.rules", "ipfs.io\n")]);
        let path = dir.path().join(FILE_NAME);
        save(dir.path(), &files).unwrap();
        let sound = std::fs::read(&path).unwrap();
        std::fs::write(&path, [NAME, b"2\n", sound.strip_prefix(MAGIC).unwrap()].concat()).unwrap();
        let why = restore(dir.path()).unwrap_err().to_string();
        assert!(
            why.contains("whitelist.last-good: a later outgate wrote it (version 2") && why.contains("mend the lists"),
            "{why}"
        );
        save(dir.path(), &files).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), sound);
        assert_eq!(MAGIC, [NAME, VERSION.to_string().as_bytes(), b"\n"].concat());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &Files::from_memory([("a.rules", "good.test.example.org\n")])).unwrap();
        let path = dir.path().join(FILE_NAME);
        let sound = std::fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut broken = sound.clone();
            broken[at] ^= 0x20;
            assert!(decode(&broken).is_none(), "byte {at}");
            assert!(decode(&sound[..at]).is_none(), "cut at {at}");
        }
        assert!(decode(&sound).is_some());
    }
}
