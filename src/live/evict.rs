//! Which flows to close first when there is no room: flows of the guest that has most, and of these the one
//! that has been idle longest. Other modules decide what counts as full.

use super::Flow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

/// Returns up to `count` of these flows, in the order in which to close them; none that moved bytes within `idle`.
pub(super) fn idlest(live: &[Arc<Flow>], count: usize, idle: Duration) -> impl Iterator<Item = &Arc<Flow>> {
    let owned = live.iter().map(|flow| (flow.owner(), flow.look(), flow));
    choose(owned, count, idle).into_iter()
}

/// The flows of one guest.
struct Group<F> {
    flows: usize,
    /// Flows that may be closed, and for how long they have been idle.
    candidates: Vec<(Duration, F)>,
}

fn choose<K: Eq + Hash, F>(all: impl Iterator<Item = (K, Duration, F)>, count: usize, idle: Duration) -> Vec<F> {
    let mut guests: HashMap<K, Group<F>> = HashMap::new();
    for (owner, quiet, flow) in all {
        let group = guests.entry(owner).or_insert_with(|| Group { flows: 0, candidates: Vec::new() });
        group.flows += 1;
        if quiet >= idle {
            group.candidates.push((quiet, flow));
        }
    }
    let mut groups: Vec<Group<F>> = guests.into_values().collect();
    for group in &mut groups {
        group.candidates.sort_by_key(|(quiet, _)| *quiet);
    }
    let mut heaviest: BinaryHeap<(usize, Reverse<usize>)> =
        groups.iter().enumerate().map(|(index, group)| (group.flows, Reverse(index))).collect();
    let mut chosen = Vec::new();
    while chosen.len() < count
        && let Some((flows, index)) = heaviest.pop()
    {
        // A guest without candidates is not tried again.
        if let Some((_, flow)) = groups.get_mut(index.0).and_then(|group| group.candidates.pop()) {
            chosen.push(flow);
            heaviest.push((flows.saturating_sub(1), index));
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
