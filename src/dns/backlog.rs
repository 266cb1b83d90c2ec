//! Queries that were received and not answered yet. Guests take turns, whoever sends more.
//!
//! A socket delivers queries in the order of their arrival. If guests together send more than a thread can
//! answer, the heaviest senders would fill the socket's buffer, and the kernel would drop the queries of
//! others. So queries are received at once and wait here, a bounded number per guest, and guests are served in
//! turn.

use crate::source::holder;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// The approximate number of waiting queries in all; three times as many is the maximum. Guests share it equally.
const MOST: usize = 4096;
/// Queries of one guest that wait. Later ones would be answered after its resolver has given up.
const MOST_OF_ONE: usize = 256;

/// A message and its source.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) message: Vec<u8>,
    pub(super) source: SocketAddr,
}

/// The waiting queries of one thread and socket.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    guests: HashMap<IpAddr, VecDeque<Received>>,
    /// Guests with waiting queries, the next one first.
    turns: VecDeque<IpAddr>,
    held: usize,
    /// Buffers for reuse.
    spare: Vec<Vec<u8>>,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Adds a message; returns false if its guest already has its share of the places.
    pub(super) fn push(&mut self, message: &[u8], source: SocketAddr) -> bool {
        let guest = holder(source.ip());
        let part = (MOST / (self.turns.len() + 1)).clamp(1, MOST_OF_ONE);
        let waits = self.guests.get(&guest).map_or(0, VecDeque::len);
        let is_full = match waits {
            // A guest's first query gets a place, unless too many guests wait already.
            0 => self.turns.len() >= MOST,
            _ => self.held >= 2 * MOST,
        };
        if is_full || waits >= part {
            return false;
        }
        if waits == 0 {
            self.turns.push_back(guest);
        }
        let queue = self.guests.entry(guest).or_default();
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(message);
        queue.push_back(Received { message: copy, source });
        self.held += 1;
        true
    }

    /// Takes the first message of the guest whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Received> {
        let guest = self.turns.pop_front()?;
        let queue = self.guests.get_mut(&guest)?;
        let first = queue.pop_front()?;
        if queue.is_empty() {
            self.guests.remove(&guest);
        } else {
            self.turns.push_back(guest);
        }
        self.held -= 1;
        Some(first)
    }

    /// Keeps a message's buffer for reuse.
    pub(super) fn reuse(&mut self, received: Received) {
        if self.spare.len() < MOST_OF_ONE {
            self.spare.push(received.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(guest: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, guest], port))
    }

    #[test]
    fn guests_are_served_in_turn_however_much_one_of_them_sent() {
        let mut backlog = Backlog::default();
        for port in 0..10_000 {
            backlog.push(b"flood", from(1, port));
        }
        assert!(backlog.push(b"one", from(2, 7)) && backlog.push(b"two", from(2, 8)));
        let first: Vec<_> = (0..4).filter_map(|_| backlog.pop()).map(|received| received.source).collect();
        assert_eq!(first, [from(1, 0), from(2, 7), from(1, 1), from(2, 8)]);
        let mut rest = 0;
        while let Some(received) = backlog.pop() {
            assert_eq!(received.source.ip(), from(1, 0).ip());
            backlog.reuse(received);
            rest += 1;
        }
        assert_eq!(rest, MOST_OF_ONE - 2);
        assert!(backlog.is_empty() && backlog.guests.is_empty() && backlog.turns.is_empty());
    }

    #[test]
    fn who_comes_last_has_a_place_and_all_together_are_bounded() {
        let mut backlog = Backlog::default();
        for guest in 0..=255 {
            for port in 0..1000 {
                backlog.push(b"flood", from(guest, port));
            }
        }
        assert!(backlog.push(b"late", SocketAddr::from(([10, 1, 0, 1], 5))));
        assert!(backlog.held <= 3 * MOST, "{}", backlog.held);
        let sources = (0..u16::MAX).map(|number| SocketAddr::from(([10, 2, (number >> 8) as u8, number as u8], 5)));
        for source in sources {
            backlog.push(b"spoofed", source);
        }
        assert!(backlog.held <= 3 * MOST, "{}", backlog.held);
        assert_eq!((backlog.guests.len(), backlog.turns.len()), (MOST, MOST));
    }

    #[test]
    fn an_ipv6_guest_is_its_64() {
        let mut backlog = Backlog::default();
        for last in 1..1000_u16 {
            backlog.push(b"flood", SocketAddr::from(([0xfd42, 0, 0, 0, 0, 0, 0, last], 5)));
        }
        assert_eq!(backlog.held, MOST_OF_ONE);
    }
}
