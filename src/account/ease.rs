//! Which flows go first when there is no room: those of the guest with most of them, and of its flows the
//! one that has been idle longest. What counts as full is for others to say.

use super::flows::Flow;
use crate::accept::limits::holder;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Whose a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Owner<'a> {
    Declared(&'a str),
    Address(IpAddr),
}

/// Up to `count` of these flows, in the order in which they are to go; none that moved something within
/// `idle`.
pub(super) fn idlest(live: &[Arc<Flow>], count: usize, idle: Duration) -> impl Iterator<Item = &Arc<Flow>> {
    let owned = live.iter().map(|flow| {
        let owner = match &flow.guest().name {
            Some(name) => Owner::Declared(name),
            None => Owner::Address(holder(flow.source().ip)),
        };
        (owner, flow.look(), flow)
    });
    choose(owned, count, idle).into_iter()
}

fn choose<K: Copy + Eq + Hash + Ord, F>(
    all: impl Iterator<Item = (K, Duration, F)>,
    count: usize,
    idle: Duration,
) -> Vec<F> {
    let mut guests: HashMap<K, (usize, Vec<(Duration, F)>)> = HashMap::new();
    for (owner, quiet, flow) in all {
        let (flows, candidates) = guests.entry(owner).or_default();
        *flows += 1;
        if quiet >= idle {
            candidates.push((quiet, flow));
        }
    }
    for (_, candidates) in guests.values_mut() {
        candidates.sort_by_key(|(quiet, _)| *quiet);
    }
    let mut heaviest: BinaryHeap<(usize, K)> = guests.iter().map(|(owner, (flows, _))| (*flows, *owner)).collect();
    let mut chosen = Vec::new();
    while chosen.len() < count
        && let Some((flows, owner)) = heaviest.pop()
    {
        // A guest that has nothing to give is not asked again.
        if let Some((_, flow)) = guests.get_mut(&owner).and_then(|(_, candidates)| candidates.pop()) {
            chosen.push(flow);
            heaviest.push((flows - 1, owner));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(flows: &[(char, u64)], count: usize) -> Vec<(char, u64)> {
        let all = flows.iter().map(|(owner, quiet)| (*owner, Duration::from_secs(*quiet), (*owner, *quiet)));
        choose(all, count, Duration::from_secs(1))
    }

    #[test]
    fn the_longest_idle_of_the_heaviest_guest_go_first_until_another_is_as_heavy() {
        let flows = [('a', 5), ('a', 9), ('a', 7), ('a', 0), ('b', 100), ('b', 3)];
        assert_eq!(chosen(&flows, 2), [('a', 9), ('a', 7)]);
        let four = chosen(&flows, 4);
        assert!(four.contains(&('b', 100)) && four.contains(&('a', 5)), "{four:?}");
    }

    #[test]
    fn a_flow_that_carries_something_stays() {
        let flows = [('a', 0), ('a', 0), ('a', 0), ('b', 4)];
        assert_eq!(chosen(&flows, 10), [('b', 4)]);
        assert!(chosen(&[], 10).is_empty());
    }
}
