//! Interfaces in other network namespaces that are stacked on one of this machine's (macvlan, ipvlan): their
//! packets leave by it without passing any rule here. The kernel assigns numbers to the namespaces that are
//! connected with this one, and lists the links of such a number to processes with CAP_NET_ADMIN there
//! (rtnetlink(7), linux/net_namespace.h).

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use std::io;
use std::time::Duration;

/// Kinds of interfaces that are stacked on another.
pub(crate) const KINDS: [&str; 4] = ["macvlan", "macvtap", "ipvlan", "ipvtap"];
/// Maximum number of namespaces inspected.
const MOST: usize = 4096;
/// How long the kernel may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum number of messages of one dump.
const MOST_MESSAGES: usize = 65_536;

const HEAD: usize = 16;
/// `struct ifinfomsg`; `struct rtgenmsg` occupies 4 with its padding.
const LINK: usize = 16;
const GENERIC: usize = 4;
const GET_LINK: u16 = 18;
const GET_NAMESPACE: u16 = 90;
/// `NLM_F_REQUEST`, `NLM_F_DUMP`.
const REQUEST: u16 = 0x001;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NETNSA_NSID` and `NETNSA_PID`.
const NAMESPACE: u16 = 1;
const PROCESS: u16 = 2;
/// `IFLA_LINK`, `IFLA_LINKINFO` with `IFLA_INFO_KIND`, `IFLA_LINK_NETNSID`, `IFLA_TARGET_NETNSID`.
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
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    let ask = |message: &[u8]| -> io::Result<Vec<Vec<u8>>> {
        sendto(&socket, message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        answers(|buffer| recv(&socket, buffer, RecvFlags::empty()).map(|(_, length)| length), is_dump(message))
    };
    let mut ids = Vec::new();
    for answer in ask(&request(GET_NAMESPACE, REQUEST | DUMP, &[0; GENERIC]))? {
        ids.extend(attribute(&answer, HEAD + GENERIC, NAMESPACE).and_then(number));
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
            let links = match ask(&request(GET_LINK, REQUEST | DUMP, &body)) {
                Ok(links) => links,
                // The namespace is gone, belongs to a foreign user namespace, or no module of this kind is loaded.
                Err(error) if error.raw_os_error().is_some() => continue,
                Err(error) => return Err(error),
            };
            for link in links {
                // A kernel that cannot filter by kind lists all.
                let is_kind = attribute(&link, HEAD + LINK, INFO)
                    .and_then(|info| attribute(info, 0, INFO_KIND))
                    .is_some_and(|word| word.strip_suffix(b"\0").unwrap_or(word) == kind.as_bytes());
                let parent = attribute(&link, HEAD + LINK, PARENT).and_then(number);
                let place = attribute(&link, HEAD + LINK, PARENT_NAMESPACE).and_then(number);
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
    let mut body = vec![0; GENERIC];
    push(&mut body, PROCESS, &std::process::id().to_ne_bytes());
    let own = ask(&request(GET_NAMESPACE, REQUEST, &body))?;
    let own = own.first().and_then(|answer| attribute(answer, HEAD + GENERIC, NAMESPACE)).and_then(number);
    let mut here: Vec<StackedLink> =
        found.into_iter().filter(|(place, _)| Some(*place) == own).map(|(_, stacked_links)| stacked_links).collect();
    here.sort();
    here.dedup();
    Ok(here)
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn is_dump(request: &[u8]) -> bool {
    request.get(6..8).is_some_and(|flags| flags == (REQUEST | DUMP).to_ne_bytes())
}

fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Reads the messages of one answer; one, or those of a whole dump.
fn answers(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>, dump: bool) -> io::Result<Vec<Vec<u8>>> {
    let mut messages = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while messages.len() < MOST_MESSAGES {
        let length = match read(&mut buffer) {
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = buffer.get(..length).unwrap_or_default();
        while let Some((message, rest)) = first(bytes) {
            match message.get(4..6).and_then(|kind| kind.first_chunk()).map(|kind| u16::from_ne_bytes(*kind)) {
                Some(DONE) => return Ok(messages),
                Some(ERROR) => {
                    let code = message.get(HEAD..HEAD + 4).and_then(number).unwrap_or_default();
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                _ => messages.push(message.to_vec()),
            }
            bytes = rest;
        }
        if !dump && !messages.is_empty() {
            return Ok(messages);
        }
    }
    Ok(messages)
}

/// Returns the first message, and what follows it.
fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let message = bytes.get(..length).filter(|message| message.len() >= HEAD)?;
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Returns the value of the first attribute of this kind after the first `start` bytes.
fn attribute(message: &[u8], start: usize, kind: u16) -> Option<&[u8]> {
    let mut left = message.get(start..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*left.first_chunk()?));
        let this = u16::from_ne_bytes(*left.get(2..)?.first_chunk()?);
        let value = left.get(4..length)?;
        // The two highest bits are flags about its layout.
        if this & 0x3fff == kind {
            return Some(value);
        }
        left = left.get(length.next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others_and_what_is_cut_short_is_none() {
        let mut message = vec![9; 20];
        push(&mut message, 7, b"abc");
        push(&mut message, 37, &5i32.to_ne_bytes());
        assert_eq!(attribute(&message, 20, 7), Some(&b"abc"[..]));
        assert_eq!(attribute(&message, 20, 37).and_then(number), Some(5));
        assert_eq!(attribute(&message, 20, 8), None);
        for length in 0..message.len() {
            assert_eq!(attribute(&message[..length], 20, 37), None, "{length}");
        }
        // A length of zero does not lead to an endless loop.
        assert_eq!(attribute(&[0; 12], 0, 1), None);
    }

    #[test]
    fn an_answer_is_read_to_its_end_or_its_error() {
        let one = request(16, 0, &[1, 2, 3, 4]);
        let done = request(DONE, 0, &[0; 4]);
        let error = request(ERROR, 0, &(-95i32).to_ne_bytes());
        let read = |parts: Vec<Vec<u8>>, dump| {
            let mut parts = parts.into_iter();
            let next = |buffer: &mut [u8]| {
                let part = parts.next().ok_or(Errno::AGAIN)?;
                buffer[..part.len()].copy_from_slice(&part);
                Ok(part.len())
            };
            answers(next, dump)
        };
        assert_eq!(read(vec![[one.clone(), one.clone()].concat(), done], true).unwrap(), [one.clone(), one.clone()]);
        assert_eq!(read(vec![one.clone()], false).unwrap(), vec![one.clone()]);
        assert_eq!(read(vec![one, error], true).unwrap_err().raw_os_error(), Some(95));
    }
}
