//! The record of used rules outside of the list itself: kept in the state dir over a restart, and sent by the
//! daemon to the command line. `policy` defines what counts as used.

use super::last_good::{KeepError, checksum};
use super::{Fingerprint, Rules};
use jiff::Timestamp;
use outgate_files::replace::{Attributes, replace};
use outgate_files::version::{LaterVersion, of_first_line};
use outgate_policy::Mark;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Name of the file in the state dir.
pub const FILE_NAME: &str = "whitelist.used";

/// First line of the file; the digit is the format version.
const MAGIC: &[u8] = b"outgate used rules 1\n";
/// The same without the version.
const NAME: &[u8] = b"outgate used rules ";
/// The format version.
const VERSION: u64 = 1;
/// Bytes of the checksum (SHA-256) behind it.
const CHECKSUM: usize = 32;
/// How many rules are kept, eight bytes each.
const MAX_KEPT: usize = 8 << 20;

/// What is kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageFile {
    /// When counting of uses began.
    pub since: Timestamp,
    /// The rules used since then.
    pub used: HashSet<Mark>,
}

/// Saves the used rules in `state`, atomically.
///
/// # Errors
/// When the file cannot be written, or more than eight million rules were used: a partial record would be false.
pub fn save(state: &Path, kept: &UsageFile) -> io::Result<()> {
    if kept.used.len() > MAX_KEPT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more rules were used than can be kept"));
    }
    let mut payload = kept.since.as_second().to_le_bytes().to_vec();
    payload.extend(kept.used.iter().flat_map(|mark| mark.0.to_le_bytes()));
    let bytes = [MAGIC, &checksum(&payload), &payload].concat();
    replace(&state.join(FILE_NAME), &bytes, Attributes::PRIVATE)
}

/// Reads back what [`save`] wrote.
///
/// # Errors
/// [`KeepError`]; counting then starts anew.
pub fn restore(state: &Path) -> Result<UsageFile, KeepError> {
    let path = state.join(FILE_NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(KeepError::Nothing),
        Err(error) => return Err(KeepError::Io(error)),
    };
    let most = u64::try_from(MAGIC.len() + CHECKSUM + 8 + 8 * MAX_KEPT).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(KeepError::Io)?;
    let remedy = "the record is replaced; to continue it, stop outgate and install that version again";
    LaterVersion::check(&path, of_first_line(&bytes, NAME).unwrap_or(VERSION), VERSION, remedy)?;
    decode(&bytes).ok_or(KeepError::Damaged)
}

fn decode(bytes: &[u8]) -> Option<UsageFile> {
    let (sum, payload) = bytes.strip_prefix(MAGIC)?.split_at_checked(CHECKSUM)?;
    if checksum(payload) != sum {
        return None;
    }
    let (since, marks) = payload.split_first_chunk::<8>()?;
    let since = Timestamp::from_second(i64::from_le_bytes(*since)).ok()?;
    let (marks, rest) = marks.as_chunks::<8>();
    let used = marks.iter().map(|mark| Mark(u64::from_le_bytes(*mark))).collect();
    rest.is_empty().then_some(UsageFile { since, used })
}

/// The lines whose rule was used, as the daemon reports them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedLines {
    /// When counting of uses began.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    since: Timestamp,
    /// Fingerprint of the files that contain the lines.
    fingerprint: String,
    /// By file, e.g. `3-17,20`.
    used: BTreeMap<String, Ranges>,
}

/// Lines, in order, as ranges with both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Ranges(Vec<(u32, u32)>);

impl UsedLines {
    /// Returns those of `rules`, compiled from the files with this fingerprint.
    pub fn of(rules: &Rules, fingerprint: Fingerprint, since: Timestamp) -> UsedLines {
        let mut used: BTreeMap<String, Ranges> = BTreeMap::new();
        for (file, line) in rules.used_lines() {
            match used.get_mut(&**file) {
                Some(ranges) => ranges.push(line),
                None => _ = used.insert(file.to_string(), Ranges(vec![(line, line)])),
            }
        }
        UsedLines { since, fingerprint: fingerprint.to_string(), used }
    }

    /// Returns when counting of uses began.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Returns whether the lines belong to the files with this fingerprint.
    pub fn are_of(&self, fingerprint: Fingerprint) -> bool {
        self.fingerprint == fingerprint.to_string()
    }

    /// Returns whether a rule in this line was used.
    pub fn contains(&self, file: &str, line: u32) -> bool {
        self.used.get(file).is_some_and(|ranges| ranges.contains(line))
    }
}

impl Ranges {
    /// Adds a line behind the earlier ones.
    fn push(&mut self, line: u32) {
        match self.0.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(line) => *last = line,
            _ => self.0.push((line, line)),
        }
    }

    fn contains(&self, line: u32) -> bool {
        let behind = self.0.partition_point(|(first, _)| *first <= line);
        behind.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, last)| line <= *last)
    }
}

impl From<Ranges> for String {
    fn from(ranges: Ranges) -> String {
        let mut text = String::new();
        for (first, last) in ranges.0 {
            let comma = if text.is_empty() { "" } else { "," };
            _ = if first == last { write!(text, "{comma}{first}") } else { write!(text, "{comma}{first}-{last}") };
        }
        text
    }
}

impl TryFrom<String> for Ranges {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Ranges, Self::Error> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Ok((first.parse()?, last.parse()?))
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Ranges)
    }
}

fn write_time<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

fn read_time<'d, D: serde::Deserializer<'d>>(deserializer: D) -> Result<Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Files, build};

    fn kept() -> UsageFile {
        let used = (0..100u64).map(|n| Mark(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
        UsageFile { since: Timestamp::from_second(1_795_000_000).unwrap(), used }
    }

    #[test]
    fn what_was_used_and_since_when_come_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(restore(dir.path()), Err(KeepError::Nothing)));
        save(dir.path(), &kept()).unwrap();
        assert_eq!(restore(dir.path()).unwrap(), kept());
        save(dir.path(), &UsageFile { used: HashSet::new(), ..kept() }).unwrap();
        assert!(restore(dir.path()).unwrap().used.is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_record_of_a_later_version_is_named_as_such() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &kept()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let sound = std::fs::read(&path).unwrap();
        std::fs::write(&path, [NAME, b"2\n", sound.strip_prefix(MAGIC).unwrap()].concat()).unwrap();
        let why = restore(dir.path()).unwrap_err().to_string();
        assert!(
            why.contains("whitelist.used: a later outgate wrote it (version 2") && why.contains("install that version"),
            "{why}"
        );
        assert_eq!(MAGIC, [NAME, VERSION.to_string().as_bytes(), b"\n"].concat());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &kept()).unwrap();
        let sound = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
        for at in 0..sound.len() {
            let mut broken = sound.clone();
            broken[at] ^= 0x20;
            assert!(decode(&broken).is_none(), "byte {at}");
            assert!(decode(&sound[..at]).is_none(), "cut at {at}");
        }
        assert!(decode(&sound).is_some());
    }

    #[test]
    fn a_file_that_claims_too_much_is_not_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join(FILE_NAME)).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(matches!(restore(dir.path()), Err(KeepError::Damaged)));
    }

    #[test]
    fn lines_are_told_as_ranges_and_understood() {
        let files = Files::from_memory([("a.rules", "a.test\n".repeat(30)), ("b.rules", "b.test\n".into())]);
        let (rules, loaded) = build(&files, jiff::civil::date(2026, 11, 23)).unwrap();
        let mut told = UsedLines::of(&rules, loaded.fingerprint, kept().since);
        assert!(told.are_of(files.fingerprint()) && !told.contains("b.rules", 1));
        let mut ranges = Ranges(vec![(2, 2)]);
        [3, 4, 9, u32::MAX].into_iter().for_each(|line| ranges.push(line));
        told.used.insert("a.rules".into(), ranges);

        let text = serde_json::to_string(&told).unwrap();
        assert!(text.contains("\"used\":{\"a.rules\":\"2-4,9,4294967295\"}"), "{text}");
        let heard: UsedLines = serde_json::from_str(&text).unwrap();
        assert_eq!(heard, told);
        let lines: Vec<u32> = (0..12).filter(|line| heard.contains("a.rules", *line)).collect();
        assert_eq!(lines, [2, 3, 4, 9]);
        for nonsense in ["", "x", "1-", "-1", "1,,2", "99999999999"] {
            assert!(Ranges::try_from(nonsense.to_owned()).is_err(), "{nonsense}");
        }
    }
}
