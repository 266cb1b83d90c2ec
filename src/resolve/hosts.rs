//! The hosts file, hosts(5): an address, then the names for it. This is our own parser, because the libraries
//! do not parse names and addresses with [`HostName`]. The file is the operator's; a line that cannot be read
//! is skipped and reported.

use super::answer::Answer;
use crate::name::HostName;
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// The largest hosts file read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The names of a hosts file and their addresses.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    names: HashMap<HostName, Arc<Answer>, foldhash::fast::RandomState>,
}

impl Hosts {
    /// Reads `path`. Unusable lines are skipped with a warning.
    pub(super) fn read(path: &Path) -> io::Result<Hosts> {
        let mut text = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
        if u64::try_from(text.len()).is_ok_and(|length| length > MAX_FILE) {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is larger than 16 MiB; shorten it, or name another in [resolver].hosts_file",
            ));
        }
        Ok(Hosts::parse(&text, |line, word| {
            tracing::warn!(file = %path.display(), line, word, "this word of the hosts file is not a valid address or name, so it is skipped; correct it");
        }))
    }

    /// Returns the addresses of `name`.
    pub(super) fn get(&self, name: &HostName) -> Option<&Arc<Answer>> {
        if self.names.is_empty() { None } else { self.names.get(name) }
    }

    fn parse(text: &[u8], mut skipped: impl FnMut(usize, String)) -> Hosts {
        let mut addresses: HashMap<HostName, Vec<IpAddr>> = HashMap::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
            let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            let Some(first) = words.next() else { continue };
            let Some(address) = std::str::from_utf8(first).ok().and_then(|word| word.parse::<IpAddr>().ok()) else {
                skipped(index + 1, String::from_utf8_lossy(first).into_owned());
                continue;
            };
            for word in words {
                match HostName::parse(word) {
                    Ok(name) => addresses.entry(name).or_default().push(address),
                    Err(_) => skipped(index + 1, String::from_utf8_lossy(word).into_owned()),
                }
            }
        }
        let names = addresses.into_iter().map(|(name, all)| (name, Arc::new(Answer::fixed(&all)))).collect();
        Hosts { names }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_comments_and_several_addresses_are_read() {
        let text = b"# head\n11.0.0.1\tA.example b.example # tail\r\n\n2606::1 a.example\n11.0.0.2 a.example";
        let hosts = Hosts::parse(text, |line, word| panic!("{line}: {word}"));
        let answer = hosts.get(&HostName::parse("a.example").unwrap()).unwrap();
        assert_eq!(answer.v4().addresses(), ["11.0.0.1".parse::<IpAddr>().unwrap(), "11.0.0.2".parse().unwrap()]);
        assert_eq!(answer.v6().addresses(), ["2606::1".parse::<IpAddr>().unwrap()]);
        assert!(hosts.get(&HostName::parse("b.example").unwrap()).is_some());
        assert!(hosts.get(&HostName::parse("c.example").unwrap()).is_none());
    }

    #[test]
    fn what_is_no_address_or_no_name_is_skipped_and_reported() {
        let mut seen = Vec::new();
        let hosts = Hosts::parse(b"127.1 a.example\n11.0.0.1 b.example c_:d 1.2\nfe80::1%lo x.y", |line, word| {
            seen.push((line, word))
        });
        assert_eq!(seen, [(1, "127.1".into()), (2, "c_:d".into()), (2, "1.2".into()), (3, "fe80::1%lo".to_string())]);
        assert!(hosts.get(&HostName::parse("a.example").unwrap()).is_none());
        assert!(hosts.get(&HostName::parse("b.example").unwrap()).is_some());
    }
}
