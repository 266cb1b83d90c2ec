//! Records the tables as they were right after they were applied, so that the watcher detects later changes by
//! others. It cannot load the ruleset into an empty namespace as [`inspect::status`](super::inspect::status) does:
//! its unit may create no namespace. There is one file for each network namespace, in the folder with the lock of
//! `apply`.

use super::{TABLES, br_netfilter, inspect, tool};
use outgate_files::replace::{Attributes, replace};
use outgate_files::version::LaterVersion;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder that also contains the lock of `apply`.
const FOLDER: &str = "/run/outgate-firewall";

/// Said if there is none that can be read.
const UNKNOWN: &str = "there is no record of what `apply` put in place, so changes to it are not noticed: run `outgate \
                       firewall apply`";
/// The version of the record's form. Before version 1 it had none.
const VERSION: u64 = 1;

/// Digests by table and by chain or set.
type Tables = BTreeMap<String, BTreeMap<String, String>>;

/// What `apply` records.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Snapshot {
    #[serde(default)]
    version: u64,
    tables: Tables,
    /// What `apply` could not put in force.
    faults: Vec<String>,
}

/// What is read of a record first.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    version: u64,
}

impl Snapshot {
    /// Reads a record.
    ///
    /// # Errors
    /// One sentence with a remedy.
    fn read(path: &Path, bytes: &[u8]) -> Result<Snapshot, String> {
        let unknown = |_| UNKNOWN.to_owned();
        let head: Head = serde_json::from_slice(bytes).map_err(unknown)?;
        let remedy = "changes to the firewall are not noticed until you run `outgate firewall apply`";
        LaterVersion::check(path, head.version, VERSION, remedy).map_err(|why| why.to_string())?;
        serde_json::from_slice(bytes).map_err(unknown)
    }

    fn take() -> Tables {
        let tables = TABLES.into_iter().filter_map(|(family, name)| {
            let items = tool::listed(&["table", family, name], "to list its table").ok()?;
            let places = inspect::by_place(&items).into_iter();
            // Tables of lifetimes keep objects of earlier configurations, and these decide nothing.
            let places = places.filter(|(place, _)| !place.starts_with("ct timeout "));
            let digests = places.map(|(place, items)| (place, digest(&items)));
            Some((format!("{family} {name}"), digests.collect()))
        });
        tables.collect()
    }
}

fn digest(items: &[serde_json::Value]) -> String {
    // The watcher itself creates that chain anew.
    let text = serde_json::Value::from(items.to_vec()).to_string().replace(br_netfilter::OLDER, br_netfilter::YOUNGER);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn path() -> io::Result<PathBuf> {
    let namespace = Path::new("/proc/self/ns/net").metadata()?.ino();
    Ok(Path::new(FOLDER).join(format!("tables-{namespace}.json")))
}

/// Records the present tables as the required ones, and what could not be put in force.
///
/// # Errors
/// Those of the system; then nothing is recorded.
pub(super) fn note(faults: &[String]) -> io::Result<()> {
    let snapshot = Snapshot { version: VERSION, tables: Snapshot::take(), faults: faults.to_vec() };
    let noted = replace(&path()?, &serde_json::to_vec(&snapshot)?, Attributes::PRIVATE);
    if noted.is_err() {
        forget();
    }
    noted
}

/// Deletes the record.
pub(super) fn forget() {
    // Without a record, `differences` reports only that the record is missing.
    let _ = path().and_then(std::fs::remove_file);
}

/// Returns the differences from the record, one sentence a table, and what `apply` could not do.
pub(super) fn differences() -> Vec<String> {
    let noted = path()
        .and_then(|path| Ok((std::fs::read(&path)?, path)))
        .map_err(|_| UNKNOWN.to_owned())
        .and_then(|(bytes, path)| Snapshot::read(&path, &bytes));
    let now = Snapshot::take();
    let noted = match noted {
        Ok(noted) => noted,
        Err(why) => return if now.is_empty() { Vec::new() } else { vec![why] },
    };
    let of_apply = |fault: &String| format!("not in force; `apply` reported: {fault}: run `outgate firewall apply`");
    let mut differences: Vec<String> = noted.faults.iter().map(of_apply).collect();
    for (table, wanted) in &noted.tables {
        let Some(found) = now.get(table) else {
            differences.push(format!("table {table} is missing: run `outgate firewall apply`"));
            continue;
        };
        let differing = inspect::unequal(wanted, found);
        if !differing.is_empty() {
            differences.push(format!(
                "table {table} was changed since it was applied ({differing}): run `outgate firewall apply`"
            ));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_version_and_a_later_one_is_known_as_such() {
        let read = |text: &str| Snapshot::read(Path::new("/run/tables-1.json"), text.as_bytes());
        let noted = Snapshot { version: VERSION, tables: Tables::new(), faults: vec!["x".to_owned()] };
        assert_eq!(read(&serde_json::to_string(&noted).unwrap()).unwrap(), noted);
        // Before version 1 it had none.
        assert_eq!(read("{\"tables\":{},\"faults\":[\"x\"]}").unwrap(), Snapshot { version: 0, ..noted });
        let why = read("{\"version\":2,\"tables\":[]}").unwrap_err();
        assert!(
            why.contains("tables-1.json: a later outgate wrote it (version 2")
                && why.contains("`outgate firewall apply`"),
            "{why}"
        );
        assert!(read("{").unwrap_err().starts_with("there is no record"));
    }
}
