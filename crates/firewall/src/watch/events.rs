//! Kernel events: an interface appeared, disappeared, or became the port of another bridge; routing rules
//! (rtnetlink(7)) or rules of nftables changed. An event is only a hint to look. What a guest can cause at will,
//! its carrier going up and down a thousand times a second, does not count as a change.

use crate::netlink::{READ, message, u16_at, u32_at};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::collections::HashMap;
use std::io;
use std::time::Instant;

/// RTNLGRP_LINK, RTNLGRP_IPV4_RULE and RTNLGRP_IPV6_RULE (linux/rtnetlink.h), a bit each.
const ROUTING: u32 = 1 | (1 << 7) | (1 << 18);
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h). It does not report what sets learn from packets.
const RULES: u32 = 1 << 6;
/// Size of the queue. An overflow is reported as an error, after which everything is inspected.
const QUEUE: usize = 1 << 20;
/// If there are more interfaces, all are forgotten, which costs one more look.
const MOST: usize = 65_536;

/// What changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Interfaces.
    pub interfaces: bool,
    /// Rules of nftables or of routing.
    pub rules: bool,
}

impl Change {
    /// Everything may have changed.
    const ALL: Change = Change { interfaces: true, rules: true };

    fn is_any(self) -> bool {
        self.interfaces || self.rules
    }
}

/// Changes within this network namespace.
#[derive(Debug)]
pub struct Events {
    routing: OwnedFd,
    nftables: OwnedFd,
    buffer: Vec<u8>,
    seen: Seen,
}

impl Events {
    /// Subscribes to events from now on.
    ///
    /// # Errors
    /// Those of the system.
    pub fn subscribe() -> io::Result<Events> {
        let listen = |protocol, groups| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
            set_socket_recv_buffer_size(&socket, QUEUE)?;
            bind(&socket, &SocketAddrNetlink::new(0, groups))?;
            Ok::<_, io::Error>(socket)
        };
        // NETLINK_ROUTE is number 0, which `None` selects.
        let (routing, nftables) = (listen(None, ROUTING)?, listen(Some(netlink::NETFILTER), RULES)?);
        Ok(Events { routing, nftables, buffer: vec![0; READ], seen: Seen::default() })
    }

    /// Waits for a change, at most until `until`; returns what changed.
    ///
    /// # Errors
    /// Those of the system.
    pub fn wait(&mut self, until: Instant) -> io::Result<Change> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut sockets = [PollFd::new(&self.routing, PollFlags::IN), PollFd::new(&self.nftables, PollFlags::IN)];
            match poll(&mut sockets, Some(&timeout)) {
                Ok(0) if left.is_zero() => return Ok(Change::default()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let change = self.drain()?;
            if change.is_any() || left.is_zero() {
                return Ok(change);
            }
        }
    }

    /// Reads all pending messages.
    fn drain(&mut self) -> io::Result<Change> {
        let mut change = Change::default();
        loop {
            match recv(&self.routing, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, length)) => {
                    let told = self.seen.take_in(self.buffer.get(..length).unwrap_or_default());
                    change =
                        Change { interfaces: change.interfaces | told.interfaces, rules: change.rules | told.rules };
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => {
                    self.seen = Seen::default();
                    change = Change::ALL;
                }
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match recv(&self.nftables, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => change.rules = true,
                Err(Errno::AGAIN) => return Ok(change),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Name and master of each interface, as last reported.
#[derive(Debug, Default)]
struct Seen(HashMap<u32, (Vec<u8>, Option<u32>)>);

/// `struct ifinfomsg` (rtnetlink(7)).
const LINK: usize = 16;
const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
const NEW_RULE: u16 = 32;
const DELETED_RULE: u16 = 33;
const NAME: u16 = 3;
const MASTER: u16 = 10;

impl Seen {
    /// Records the content of one read; returns what differs from before. Unreadable content counts as a change.
    fn take_in(&mut self, mut bytes: &[u8]) -> Change {
        let mut changed = if bytes.is_empty() { Change::ALL } else { Change::default() };
        while !bytes.is_empty() {
            let Some((kind, body, rest)) = message(bytes) else { return Change::ALL };
            match kind {
                NEW_LINK | DELETED_LINK => {
                    changed.interfaces |= self.link(kind == DELETED_LINK, body).unwrap_or(true);
                }
                NEW_RULE | DELETED_RULE => changed.rules = true,
                _ => {}
            }
            bytes = rest;
        }
        changed
    }

    fn link(&mut self, deleted: bool, body: &[u8]) -> Option<bool> {
        let (family, index, mut attributes) = (body.first()?, u32_at(body, 4)?, body.get(LINK..)?);
        // The same event again, in the format of bridges.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{HEAD, push};
    use std::time::Duration;

    fn link(kind: u16, family: u8, index: u32, name: &str, master: Option<u32>, carrier: u8) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend([carrier; 8]);
        push(&mut body, NAME, name.as_bytes());
        // IFLA_CARRIER.
        push(&mut body, 33, &[carrier]);
        if let Some(master) = master {
            push(&mut body, MASTER, &master.to_ne_bytes());
        }
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
            assert_eq!(seen.take_in(&bytes), Change { interfaces: changed, rules: false }, "case {n}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_a_change() {
        let whole = link(NEW_LINK, 0, 7, "tap7", Some(2), 0);
        let mut seen = Seen::default();
        assert!(seen.take_in(&whole).interfaces && !seen.take_in(&whole).is_any());
        for length in 0..whole.len() {
            assert!(seen.take_in(&whole[..length]).is_any(), "{length}");
        }
        let endless = [0u8; 64];
        assert!(seen.take_in(&endless).is_any());
    }

    #[test]
    #[ignore = "requires root"]
    fn it_waits_no_longer_than_it_is_told() {
        crate::rights::require();
        let mut events = Events::subscribe().unwrap();
        let begun = Instant::now();
        while events.wait(begun + Duration::from_millis(50)).unwrap().is_any() {}
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}
