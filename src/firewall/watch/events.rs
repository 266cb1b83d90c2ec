//! The kernel's word that an interface came, went, or became the port of another bridge (rtnetlink(7)). It is
//! taken for a hint to look, and for nothing else. What a guest can bring about at will, its carrier going up and
//! down a thousand times a second, is no such change.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

/// RTMGRP_LINK of rtnetlink(7).
const LINKS: u32 = 1;
/// What one read takes; the kernel cuts no message in two, and one for a card with many virtual functions is long.
const READ: usize = 64 << 10;
/// What may wait meanwhile. What does not fit is told as an error, after which all is looked at.
const QUEUE: usize = 1 << 20;
/// More interfaces than these are forgotten, which costs a look.
const MOST: usize = 65_536;

/// Changes of the interfaces of this network namespace.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
    buffer: Vec<u8>,
    seen: Seen,
}

impl Events {
    /// Listens from now on.
    ///
    /// # Errors
    /// What the system says.
    pub fn subscribe() -> io::Result<Events> {
        // NETLINK_ROUTE is number 0, which is what no protocol means.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        set_socket_recv_buffer_size(&socket, QUEUE)?;
        bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
        Ok(Events { socket, buffer: vec![0; READ], seen: Seen::default() })
    }

    /// Waits for a change, until `until` at most; was there one?
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&mut self, until: Instant) -> io::Result<bool> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // None at all would be for ever.
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left.max(Duration::from_millis(1))))?;
            match recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, length)) => {
                    if self.seen.take_in(self.buffer.get(..length).unwrap_or_default()) {
                        return Ok(true);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOBUFS) => {
                    self.seen = Seen::default();
                    return Ok(true);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Name and master of each interface, as told last.
#[derive(Debug, Default)]
struct Seen(HashMap<u32, (Vec<u8>, Option<u32>)>);

/// `struct nlmsghdr` and `struct ifinfomsg` (netlink(7), rtnetlink(7)).
const HEAD: usize = 16;
const LINK: usize = 16;
const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
const NAME: u16 = 3;
const MASTER: u16 = 10;

impl Seen {
    /// Takes in what one read gave; is anything another than before? What cannot be read is.
    fn take_in(&mut self, mut bytes: &[u8]) -> bool {
        let mut changed = bytes.is_empty();
        while !bytes.is_empty() {
            let Some((kind, body, rest)) = message(bytes) else { return true };
            changed |= match kind {
                NEW_LINK | DELETED_LINK => self.link(kind == DELETED_LINK, body).unwrap_or(true),
                _ => false,
            };
            bytes = rest;
        }
        changed
    }

    fn link(&mut self, deleted: bool, body: &[u8]) -> Option<bool> {
        let (family, index, mut attributes) = (body.first()?, u32_at(body, 4)?, body.get(LINK..)?);
        // The same once more in a bridge's words.
        if *family != 0 {
            return Some(false);
        }
        if deleted {
            self.0.remove(&index);
            return Some(true);
        }
        let (mut name, mut master) = (Vec::new(), None);
        while !attributes.is_empty() {
            let length = usize::from(u16_at(attributes, 0)?);
            let value = attributes.get(4..length)?;
            match u16_at(attributes, 2)? {
                NAME => name = value.to_vec(),
                MASTER => master = u32_at(value, 0),
                _ => {}
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let now = (name, master);
        Some(self.0.insert(index, now.clone()) != Some(now))
    }
}

/// The kind of the first message, its body, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let body = bytes.get(HEAD..length)?;
    Some((u16_at(bytes, 4)?, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(kind: u16, family: u8, index: u32, name: &str, master: Option<u32>, carrier: u8) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend([carrier; 8]);
        body.extend(attribute(NAME, name.as_bytes()));
        // IFLA_CARRIER.
        body.extend(attribute(33, &[carrier]));
        body.extend(master.map(|master| attribute(MASTER, &master.to_ne_bytes())).unwrap_or_default());
        let mut bytes = u32::try_from(HEAD + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn an_interface_that_is_new_has_another_name_or_bridge_or_is_gone_is_a_change_and_its_carrier_is_none() {
        let mut seen = Seen::default();
        let cases = [
            (link(NEW_LINK, 0, 7, "tap7", None, 0), true),
            (link(NEW_LINK, 0, 7, "tap7", None, 1), false),
            (link(NEW_LINK, 0, 7, "tap7", Some(2), 1), true),
            (link(NEW_LINK, 7, 7, "tap7", Some(2), 1), false),
            (link(NEW_LINK, 0, 7, "tap7", Some(2), 0), false),
            (link(NEW_LINK, 0, 7, "tap8", Some(2), 0), true),
            (link(NEW_LINK, 0, 7, "tap8", None, 0), true),
            (link(DELETED_LINK, 7, 7, "tap8", Some(2), 0), false),
            (link(DELETED_LINK, 0, 7, "tap8", None, 0), true),
            (link(NEW_LINK, 0, 7, "tap8", None, 0), true),
            // Two in one read.
            ([link(NEW_LINK, 0, 7, "tap8", None, 1), link(NEW_LINK, 0, 9, "r9", None, 1)].concat(), true),
            ([link(NEW_LINK, 0, 9, "r9", None, 0), link(NEW_LINK, 0, 7, "tap8", None, 1)].concat(), false),
        ];
        for (n, (bytes, changed)) in cases.into_iter().enumerate() {
            assert_eq!(seen.take_in(&bytes), changed, "case {n}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_a_change() {
        let whole = link(NEW_LINK, 0, 7, "tap7", Some(2), 0);
        let mut seen = Seen::default();
        assert!(seen.take_in(&whole) && !seen.take_in(&whole));
        for length in 0..whole.len() {
            assert!(seen.take_in(&whole[..length]), "{length}");
        }
        let endless = [0u8; 64];
        assert!(seen.take_in(&endless));
    }

    #[test]
    fn it_waits_no_longer_than_it_is_told() {
        let mut events = Events::subscribe().unwrap();
        let begun = Instant::now();
        while events.wait(begun + Duration::from_millis(50)).unwrap() {}
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}
