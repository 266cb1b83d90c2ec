//! Finds the lists in the content of a source: an archive, recognised by its first bytes, or one list, recognised
//! by its name. All in memory and within limits; a name in an archive is only displayed, never used as a path. The
//! whitelist's parsers decide whether a line is an entry.

use super::{List, SyncError};
use flate2::read::MultiGzDecoder;
use outgate_golem::MAX_INPUT;
use std::io::{self, Read};
use tar::{Archive, Entry};

/// The largest archive, in bytes, once it is decompressed.
const MAX_UNPACKED: u64 = 16 << 20;
/// The lists that the providers' installer reads, in the order in which their entries are kept.
const NAMES: [&str; 2] = ["strict.lst", "regex.lst"];
/// Two empty blocks end an archive.
const TAIL: usize = 1024;

/// Returns the lists in `bytes`, whose source is called `name`.
pub(super) fn lists(name: &str, bytes: Vec<u8>) -> Result<Vec<List>, SyncError> {
    let packed = bytes.starts_with(&[0x1f, 0x8b]);
    let bytes = if packed { inflate(name, &bytes)? } else { bytes };
    if is_tar(&bytes) || (!packed && name.ends_with(".tar")) {
        return unpack(name, &bytes);
    }
    let file = name.rsplit('/').next().unwrap_or(name);
    if packed || !file.ends_with(".lst") || file.starts_with(['.', '#']) {
        return Err(failed(name, "neither a tar archive (optionally compressed with gzip) nor a list named *.lst"));
    }
    if bytes.len() as u64 > MAX_INPUT {
        return Err(SyncError::TooLarge { from: name.to_owned(), limit: MAX_INPUT });
    }
    Ok(vec![List { name: name.to_owned(), text: bytes }])
}

/// Detects tar by the standard: the magic word follows the fields of the first header.
fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}

fn inflate(name: &str, bytes: &[u8]) -> Result<Vec<u8>, SyncError> {
    let mut unpacked = Vec::new();
    let read = MultiGzDecoder::new(bytes).take(MAX_UNPACKED + 1).read_to_end(&mut unpacked);
    read.map_err(|error| failed(name, &format!("the compressed data is damaged or incomplete: {error}")))?;
    if unpacked.len() as u64 > MAX_UNPACKED {
        return Err(SyncError::TooLarge { from: name.to_owned(), limit: MAX_UNPACKED });
    }
    Ok(unpacked)
}

fn unpack(name: &str, bytes: &[u8]) -> Result<Vec<List>, SyncError> {
    let damaged = |error: io::Error| failed(name, &format!("the archive is damaged or incomplete: {error}"));
    // An archive that was truncated between two files looks like a shorter one.
    if bytes.len() < TAIL || bytes.iter().rev().take(TAIL).any(|byte| *byte != 0) {
        return Err(failed(name, "the archive is incomplete: its end is missing"));
    }
    let mut found: [Option<List>; 2] = [None, None];
    for entry in Archive::new(bytes).entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let file = path.rsplit('/').next().unwrap_or(&path);
        let Some((_, place)) = NAMES.iter().zip(&mut found).find(|(name, _)| **name == file) else { continue };
        let shown = format!("{name}/{path}");
        if place.is_some() {
            return Err(failed(&shown, "the archive has two lists of this name, so it is ambiguous"));
        }
        *place = Some(list(shown, entry)?);
    }
    let lists: Vec<List> = found.into_iter().flatten().collect();
    if lists.is_empty() {
        return Err(failed(name, "the archive has neither a strict.lst nor a regex.lst"));
    }
    Ok(lists)
}

fn list(name: String, entry: Entry<'_, &[u8]>) -> Result<List, SyncError> {
    if !entry.header().entry_type().is_file() {
        return Err(failed(&name, "is not a regular file"));
    }
    let size = entry.size();
    if size > MAX_INPUT {
        return Err(SyncError::TooLarge { from: name, limit: MAX_INPUT });
    }
    let mut text = Vec::new();
    let read = entry.take(MAX_INPUT).read_to_end(&mut text);
    read.map_err(|error| failed(&name, &format!("the archive is damaged: {error}")))?;
    if text.len() as u64 != size {
        return Err(failed(&name, "the archive is incomplete: this file is truncated"));
    }
    // The file is complete, so a last line without a line end is not half a line.
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    Ok(List { name, text })
}

fn failed(source: &str, why: &str) -> SyncError {
    SyncError::Failed { from: source.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;
    use tar::{Builder, EntryType, Header};

    fn header(path: &str, size: usize) -> Header {
        let mut header = Header::new_ustar();
        // Written unchanged, where the library would refuse or repair it.
        for (to, from) in header.as_old_mut().name.iter_mut().zip(path.bytes()) {
            *to = from;
        }
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, text) in files {
            builder.append(&header(path, text.len()), *text).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn texts(name: &str, bytes: Vec<u8>) -> Result<Vec<(String, String)>, String> {
        let lists = lists(name, bytes).map_err(|error| error.to_string())?;
        Ok(lists.into_iter().map(|list| (list.name, String::from_utf8(list.text).unwrap())).collect())
    }

    #[test]
    fn lists_are_found_anywhere_in_an_archive_and_all_else_is_passed_over() {
        let files: [(&str, &[u8]); 5] = [
            ("certs/root.pem", b"x"),
            ("whitelist/regex.lst", b"^a$\n"),
            ("whitelist/._strict.lst", b"junk"),
            ("whitelist/strict.lst", b"a.test\n"),
            ("strict.lst.bak", b"junk"),
        ];
        let wanted = [("x.tgz/whitelist/strict.lst", "a.test\n"), ("x.tgz/whitelist/regex.lst", "^a$\n")];
        let wanted = wanted.map(|(name, text)| (name.to_owned(), text.to_owned()));
        for bytes in [tar(&files), gzip(&tar(&files))] {
            assert_eq!(texts("x.tgz", bytes).unwrap(), wanted);
        }
        assert_eq!(texts("dir/strict.lst", b"a.test\n".to_vec()).unwrap()[0].1, "a.test\n");
    }

    #[test]
    fn a_last_line_without_an_end_is_whole_in_an_archive() {
        let found = texts("x.tar", tar(&[("strict.lst", b"a.test\nb.test"), ("regex.lst", b"")])).unwrap();
        assert_eq!((found[0].1.as_str(), found[1].1.as_str()), ("a.test\nb.test\n", ""));
    }

    #[test]
    fn names_in_an_archive_lead_nowhere() {
        for path in ["../../../etc/strict.lst", "/etc/outgate/strict.lst", "./strict.lst", "a//../strict.lst"] {
            let found = texts("x.tar", tar(&[(path, b"a.test\n")])).unwrap();
            assert_eq!(found, [(format!("x.tar/{path}"), "a.test\n".to_owned())]);
        }
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Directory, EntryType::Fifo, EntryType::GNUSparse] {
            let mut header = header("strict.lst", 0);
            header.set_entry_type(kind);
            header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
            header.set_cksum();
            let mut builder = Builder::new(Vec::new());
            builder.append(&header, &b""[..]).unwrap();
            let error = texts("x.tar", builder.into_inner().unwrap()).unwrap_err();
            assert!(error.contains("not a regular file") || error.contains("damaged"), "{kind:?}: {error}");
        }
    }

    #[test]
    fn what_is_cut_or_damaged_is_refused() {
        let whole = tar(&[("strict.lst", b"a.test\n"), ("regex.lst", b"^a$\n")]);
        let packed = gzip(&whole);
        for length in [0, 1, 2, 10, packed.len() / 2, packed.len() - 4, packed.len() - 1] {
            assert!(texts("x.tar.gz", packed[..length].to_vec()).is_err(), "{length} bytes");
        }
        // At 1024 the first file is complete, and the second has not begun.
        for length in [100, 512, 600, 1024, 1536, whole.len() - 512] {
            let error = texts("x.tar", whole[..length].to_vec()).unwrap_err();
            assert!(error.contains("incomplete"), "{length} bytes: {error}");
        }
        let mut damaged = packed;
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        assert!(texts("x.tgz", damaged).is_err());
        let mut damaged = whole;
        damaged[150] ^= 0x01;
        assert!(texts("x.tar", damaged).unwrap_err().contains("damaged"));
        let mut lying = tar(&[("strict.lst", b"a.test\n")]);
        lying[..512].copy_from_slice(header("strict.lst", 900_000).as_bytes());
        assert!(texts("x.tar", lying).unwrap_err().contains("truncated"));
    }

    #[test]
    fn archives_and_lists_beyond_the_bounds_are_refused() {
        let bomb = gzip(&vec![0; MAX_UNPACKED as usize + 1]);
        assert!(bomb.len() < 1 << 20, "it is small on the way");
        assert!(texts("x.tgz", bomb).unwrap_err().contains("larger than 16384 KiB"));
        let large = vec![b'a'; MAX_INPUT as usize + 1];
        assert!(texts("x.tar", tar(&[("strict.lst", &large)])).unwrap_err().contains("x.tar/strict.lst: is larger"));
        assert!(texts("strict.lst", large).unwrap_err().contains("larger than 1024 KiB"));
    }

    #[test]
    fn what_is_no_list_and_has_none_is_refused() {
        let other = tar(&[("README", b"x")]);
        assert!(texts("x.tar", other.clone()).unwrap_err().contains("neither a strict.lst nor a regex.lst"));
        let twice = tar(&[("a/strict.lst", b"a.test\n"), ("b/strict.lst", b"b.test\n")]);
        assert!(texts("x.tar", twice).unwrap_err().contains("two lists of this name"));
        for (name, bytes) in [
            ("page.html", b"<html>".to_vec()),
            ("strict.lst", gzip(b"a.test\n")),
            ("https://a.test/", Vec::new()),
            (".strict.lst", b"a.test\n".to_vec()),
        ] {
            assert!(texts(name, bytes).unwrap_err().contains("neither a tar archive"), "{name}");
        }
        assert!(texts("x.tar", b"no archive".to_vec()).is_err());
        assert!(texts("x.tar", vec![0; 10_240]).unwrap_err().contains("neither a strict.lst"));
    }
}
