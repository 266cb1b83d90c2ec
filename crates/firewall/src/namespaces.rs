//! Interfaces in other network namespaces that are stacked on one of this machine's (macvlan, ipvlan): their
//! packets leave by it without passing any rule here. The kernel assigns numbers to the namespaces that are
//! connected with this one, and lists the links of such a number to processes with CAP_NET_ADMIN there
//! (rtnetlink(7), linux/net_namespace.h).

use super::netlink::{self, DUMP, REQUEST, attribute, number, push, u32_at};
use super::processes;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

/// Kinds of interfaces that are stacked on another.
pub const KINDS: [&str; 4] = ["macvlan", "macvtap", "ipvlan", "ipvtap"];
/// Maximum number of namespaces inspected.
const MOST: usize = 4096;
/// How long the kernel may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of messages of one dump.
const MOST_MESSAGES: usize = 65_536;

/// `struct ifinfomsg`; `struct rtgenmsg` occupies 4 with its padding.
const LINK: usize = 16;
const GENERIC: usize = 4;
const GET_LINK: u16 = 18;
const GET_NAMESPACE: u16 = 90;
/// `NETNSA_NSID` and `NETNSA_PID`.
const NAMESPACE: u16 = 1;
const PROCESS: u16 = 2;
/// `IFLA_ADDRESS`, `IFLA_LINK`, `IFLA_LINKINFO` with `IFLA_INFO_KIND`, `IFLA_LINK_NETNSID`, `IFLA_TARGET_NETNSID`.
const ADDRESS: u16 = 1;
const PARENT: u16 = 5;
const INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const PARENT_NAMESPACE: u16 = 37;
const TARGET_NAMESPACE: u16 = 46;

/// An interface of another namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StackedLink {
    /// One of [`KINDS`].
    pub(super) kind: &'static str,
    /// The index of the local interface that it is stacked on.
    pub(super) on: u32,
}

/// Returns the interfaces of other namespaces that are stacked on one of this namespace's, sorted, each kind and
/// place once.
///
/// # Errors
/// Those of the system. A namespace that disappears in the meantime is skipped.
pub(super) fn stacked_links() -> io::Result<Vec<StackedLink>> {
    let mut ids = Vec::new();
    for answer in ask(GET_NAMESPACE, DUMP, &[0; GENERIC])? {
        ids.extend(attribute(&answer, GENERIC, NAMESPACE).and_then(number));
    }
    ids.truncate(MOST);
    let mut found = Vec::new();
    for id in &ids {
        for kind in KINDS {
            let mut body = vec![0; LINK];
            push(&mut body, TARGET_NAMESPACE, &id.to_ne_bytes());
            let mut info = Vec::new();
            push(&mut info, INFO_KIND, kind.as_bytes());
            push(&mut body, INFO, &info);
            let links = match ask(GET_LINK, DUMP, &body) {
                Ok(links) => links,
                // The namespace is gone, belongs to a foreign user namespace, or no module of this kind is loaded.
                Err(error) if error.raw_os_error().is_some() => continue,
                Err(error) => return Err(error),
            };
            for link in links {
                // A kernel that cannot filter by kind lists all.
                let is_kind = attribute(&link, LINK, INFO)
                    .and_then(|info| attribute(info, 0, INFO_KIND))
                    .is_some_and(|word| word.strip_suffix(b"\0").unwrap_or(word) == kind.as_bytes());
                let parent = attribute(&link, LINK, PARENT).and_then(number);
                let place = attribute(&link, LINK, PARENT_NAMESPACE).and_then(number);
                if let (true, Some(parent), Some(place)) = (is_kind, parent, place) {
                    found.push((place, StackedLink { kind, on: u32::from_ne_bytes(parent.to_ne_bytes()) }));
                }
            }
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    // By now the kernel has also assigned a number to this namespace, if one of those is stacked on it.
    let own = number_of(std::process::id())?;
    let mut here: Vec<StackedLink> =
        found.into_iter().filter(|(place, _)| Some(*place) == own).map(|(_, stacked_links)| stacked_links).collect();
    here.sort();
    here.dedup();
    Ok(here)
}

/// Returns the number that the kernel has assigned here to the network namespace of a process.
///
/// # Errors
/// Those of the system.
fn number_of(process: u32) -> io::Result<Option<i32>> {
    let mut body = vec![0; GENERIC];
    push(&mut body, PROCESS, &process.to_ne_bytes());
    let answers = ask(GET_NAMESPACE, REQUEST, &body)?;
    let number = answers.first().and_then(|answer| attribute(answer, GENERIC, NAMESPACE)).and_then(number);
    // -1 is none.
    Ok(number.filter(|number| *number >= 0))
}

/// The numbers of processes' network namespaces. Many processes share one, and it is asked for once.
#[derive(Debug, Default)]
pub(super) struct Numbers(HashMap<u64, Option<i32>>);

impl Numbers {
    /// Returns that of a process; `None` if it has none, or cannot be told.
    pub(super) fn of(&mut self, process: &str) -> Option<i32> {
        let ask = || number_of(process.parse().ok()?).ok()?;
        *self.0.entry(processes::network_namespace(process)?).or_insert_with(ask)
    }
}

fn ask(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut bodies = Vec::new();
    netlink::ask(None, (kind, flags, body), PATIENCE, |body| {
        bodies.push(body.to_vec());
        flags == DUMP && bodies.len() < MOST_MESSAGES
    })?;
    Ok(bodies)
}

/// Returns the MAC of each interface in the namespace with this number, by the interface's index.
///
/// # Errors
/// Those of the system.
pub(super) fn macs(namespace: i32) -> io::Result<BTreeMap<u32, String>> {
    let mut body = vec![0; LINK];
    push(&mut body, TARGET_NAMESPACE, &namespace.to_ne_bytes());
    let mac = |link: Vec<u8>| {
        let index = u32_at(&link, 4)?;
        let mac: [u8; 6] = attribute(&link, LINK, ADDRESS)?.try_into().ok()?;
        Some((index, mac.map(|byte| format!("{byte:02x}")).join(":")))
    };
    Ok(ask(GET_LINK, DUMP, &body)?.into_iter().filter_map(mac).collect())
}
