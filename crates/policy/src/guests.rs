//! Which guest a source is, and what applies to it: each guest's mode and its view, the set of files whose `allow`
//! rules apply to it.

use super::agreement::Agreement;
use super::nets::{NONE, NetTable};
use super::rules::Rules;
use super::store::RuleRecord;
use super::{Mode, PolicySettings, Unknown};
use ipnet::IpNet;
use outgate_proto::source::{Source, Standing};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Why a configuration does not fit a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A guest's `whitelist` names a file that the list does not have.
    #[error("guest `{guest}`: the whitelist dir has no file `{file}`")]
    UnknownFile {
        /// The guest's name.
        guest: String,
        /// The file's name.
        file: String,
    },
    /// Two guests have the same name.
    #[error("two guests are named `{name}`")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Two guests have the same address.
    #[error("the guests `{first}` and `{second}` share the address {address}")]
    DuplicateAddress {
        /// The address or network.
        address: IpNet,
        /// The guest declared first.
        first: String,
        /// The other.
        second: String,
    },
}

/// Which guest a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Its declared name, or else the name in its certificate; `None` if there is neither.
    pub name: Option<&'a str>,
    /// Its position among the declared guests, from 0.
    pub index: Option<usize>,
    /// Is the source served at all? If not, all its requests are refused as
    /// [`UnknownGuest`](outgate_proto::reason::Reason::UnknownGuest).
    pub known: bool,
}

/// What applies to one source.
#[derive(Debug)]
pub(super) struct GuestPolicy {
    pub(super) mode: Mode,
    pub(super) agreed: Option<Arc<Agreement>>,
    files: Arc<FileSet>,
}

#[derive(Debug)]
pub(super) struct Guests {
    /// Unique in this process, so that a [`Source`] shows whether it was identified here.
    generation: u32,
    declared: Vec<(Box<str>, GuestPolicy)>,
    undeclared: Option<GuestPolicy>,
    sources: NetTable,
    by_name: HashMap<Box<str>, u32>,
}

/// The last generation that was used.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// One bit per file.
#[derive(Debug, Default)]
struct FileSet(Vec<u64>);

impl Guests {
    pub(super) fn new(rules: &Rules, settings: &PolicySettings) -> Result<Guests, PolicyError> {
        let ids: HashMap<&str, usize> = rules.files().iter().enumerate().map(|(id, name)| (&**name, id)).collect();
        let mut shared = FileSet::default();
        (0..rules.files().len()).for_each(|id| shared.insert(id));
        let mut own = Vec::with_capacity(settings.guests.len());
        for guest in &settings.guests {
            let Some(files) = &guest.files else {
                own.push(None);
                continue;
            };
            let mut set = FileSet::default();
            for file in files {
                let id = *ids
                    .get(file.as_str())
                    .ok_or_else(|| PolicyError::UnknownFile { guest: guest.name.clone(), file: file.clone() })?;
                set.insert(id);
                shared.remove(id);
            }
            own.push(Some(Arc::new(set)));
        }
        let shared = Arc::new(shared);
        let guest_policy =
            |mode: Option<Mode>, files: Option<Arc<FileSet>>, agreed: Option<Arc<Agreement>>| GuestPolicy {
                mode: mode.unwrap_or(settings.mode),
                agreed,
                files: files.unwrap_or_else(|| Arc::clone(&shared)),
            };
        let mut guests = Guests {
            generation: GENERATION.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            declared: Vec::with_capacity(own.len()),
            undeclared: (settings.unknown == Unknown::Shared).then(|| guest_policy(None, None, None)),
            sources: NetTable::default(),
            by_name: HashMap::with_capacity(settings.guests.len()),
        };
        for (guest, files) in settings.guests.iter().zip(own) {
            let index = u32::try_from(guests.declared.len()).unwrap_or(Standing::UNDECLARED);
            if guests.by_name.insert(Box::from(guest.name.as_str()), index).is_some() {
                return Err(PolicyError::DuplicateName { name: guest.name.clone() });
            }
            guests.place(&guest.name, &guest.addresses)?;
            guests
                .declared
                .push((Box::from(guest.name.as_str()), guest_policy(guest.mode, files, guest.agreed.clone())));
        }
        Ok(guests)
    }

    /// Enters the addresses of the guest that is declared next. Of nested networks the narrowest counts.
    fn place(&mut self, name: &str, addresses: &[IpNet]) -> Result<(), PolicyError> {
        let index = u32::try_from(self.declared.len()).unwrap_or(NONE);
        for address in addresses {
            let slot = self.sources.slot(*address);
            if *slot != NONE && *slot != index {
                let first = self.declared.get(*slot as usize).map_or_else(String::new, |(first, _)| first.to_string());
                return Err(PolicyError::DuplicateAddress { address: *address, first, second: name.to_owned() });
            }
            *slot = index;
        }
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Finds out which guest this is.
    pub(super) fn source_at(&self, address: IpAddr, certified: Option<Arc<str>>) -> Source {
        let index = self.search(address, certified.as_deref()).unwrap_or(Standing::UNDECLARED);
        Source::identified(address, certified, Standing { generation: self.generation, index })
    }

    /// Was the source identified by these guests?
    pub(super) fn has_identified(&self, source: &Source) -> bool {
        source.standing().generation == self.generation
    }

    pub(super) fn of<'a>(&'a self, source: &'a Source) -> Identity<'a> {
        match self.index(source).and_then(|index| Some((index, self.declared.get(index)?))) {
            Some((index, (name, _))) => Identity { name: Some(name), index: Some(index), known: true },
            None => Identity { name: source.certified.as_deref(), index: None, known: self.undeclared.is_some() },
        }
    }

    /// What applies to `source`; `None` if it is unknown.
    pub(super) fn guest_policy(&self, source: &Source) -> Option<&GuestPolicy> {
        match self.index(source).and_then(|index| self.declared.get(index)) {
            Some((_, guest_policy)) => Some(guest_policy),
            None => self.undeclared.as_ref(),
        }
    }

    fn index(&self, source: &Source) -> Option<usize> {
        let index = match self.has_identified(source) {
            true => Some(source.standing().index).filter(|index| *index != Standing::UNDECLARED),
            false => self.search(source.address, source.certified.as_deref()),
        };
        index.map(|index| index as usize)
    }

    /// A certificate with an undeclared name is treated as an unknown source, even from a declared guest's address.
    fn search(&self, address: IpAddr, certified: Option<&str>) -> Option<u32> {
        match certified {
            Some(name) => self.by_name.get(name).copied(),
            None => self.sources.holding(address).next(),
        }
    }
}

impl GuestPolicy {
    /// Does the `allow` rule apply here?
    pub(super) fn sees(&self, record: &RuleRecord) -> bool {
        self.sees_file(record.position().file)
    }

    /// Do the `allow` rules of this file apply here?
    pub(super) fn sees_file(&self, file: u16) -> bool {
        self.files.contains(usize::from(file))
    }
}

impl FileSet {
    fn insert(&mut self, id: usize) {
        if self.0.len() <= id / 64 {
            self.0.resize(id / 64 + 1, 0);
        }
        if let Some(word) = self.0.get_mut(id / 64) {
            *word |= 1 << (id % 64);
        }
    }

    fn remove(&mut self, id: usize) {
        if let Some(word) = self.0.get_mut(id / 64) {
            *word &= !(1 << (id % 64));
        }
    }

    fn contains(&self, id: usize) -> bool {
        self.0.get(id / 64).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }
}
