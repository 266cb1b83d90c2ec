//! The top refusals: what `outgate denied` and the status page show.
//!
//! A bounded table. When it is full, the least frequent rows are removed. A guest that invents names loses its
//! own rows before those of others.

use super::event::{Event, Key, Who};
use super::line::rfc3339;
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::SystemTime;

/// Rows kept when the table is thinned out; it may grow to twice that.
const KEEP: usize = 1_000;
/// Of these, rows of one guest.
const KEEP_OF_ONE: usize = 200;

#[derive(Default)]
pub(super) struct Refusals {
    rows: HashMap<Key, Row, foldhash::fast::RandomState>,
}

struct Row {
    count: u64,
    first: SystemTime,
    last: SystemTime,
    verdict: &'static str,
    rule: Option<String>,
    advice: Option<Arc<str>>,
}

/// A row of `outgate denied`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RefusalView {
    /// The declared guest, or the address of an undeclared one.
    pub guest: String,
    /// Host and port, or the guest's own text, cut.
    pub destination: Option<String>,
    /// `denied`, or `observed` in that mode; `failed` for failures.
    pub verdict: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// The cause behind the reason, if the reason has several.
    pub cause: Option<&'static str>,
    /// The rule that decided, `file:line`.
    pub rule: Option<String>,
    /// How often.
    pub count: u64,
    /// First time, RFC 3339.
    pub first: String,
    /// Last time, RFC 3339.
    pub last: String,
    /// How the nearest rule misses.
    pub advice: Option<String>,
}

impl Refusals {
    /// Counts one. Returns whether it is new, so that advice is worth asking for.
    pub(super) fn add(&mut self, key: &Key, event: &Event) -> bool {
        if let Some(row) = self.rows.get_mut(key) {
            row.count += 1;
            row.last = event.at;
            return false;
        }
        if self.rows.len() >= 2 * KEEP {
            self.thin_out();
        }
        let row = Row {
            count: 1,
            first: event.at,
            last: event.at,
            verdict: event.verdict.as_str(),
            rule: event.rule.as_ref().map(|rule| rule.to_string()),
            advice: None,
        };
        self.rows.insert(key.clone(), row);
        true
    }

    pub(super) fn advise(&mut self, key: &Key, advice: Arc<str>) {
        if let Some(row) = self.rows.get_mut(key) {
            row.advice = Some(advice);
        }
    }

    /// Returns the most frequent ones first.
    pub(super) fn top(&self, limit: usize) -> Vec<RefusalView> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_unstable_by_key(|(_, row)| Reverse((row.count, row.last)));
        rows.truncate(limit);
        rows.into_iter().map(|(key, row)| row.view(key)).collect()
    }

    fn thin_out(&mut self) {
        let mut rows: Vec<_> = self.rows.drain().collect();
        rows.sort_unstable_by_key(|(_, row)| Reverse((row.count, row.last)));
        let mut of_one: HashMap<Who, usize, foldhash::fast::RandomState> = HashMap::default();
        for (key, row) in rows {
            if self.rows.len() >= KEEP {
                break;
            }
            let kept = of_one.entry(key.who.clone()).or_default();
            if *kept < KEEP_OF_ONE {
                *kept += 1;
                self.rows.insert(key, row);
            }
        }
    }
}

impl Row {
    fn view(&self, key: &Key) -> RefusalView {
        RefusalView {
            guest: key.who.to_string(),
            destination: key.what.text(),
            verdict: self.verdict,
            reason: key.reason.as_str(),
            cause: key.cause,
            rule: self.rule.clone(),
            count: self.count,
            first: rfc3339(self.first),
            last: rfc3339(self.last),
            advice: self.advice.as_deref().map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::{event, event_of};
    use super::*;

    fn add(refusals: &mut Refusals, event: &Event) {
        refusals.add(&event.key(), event);
    }

    #[test]
    fn the_most_frequent_comes_first() {
        let mut refusals = Refusals::default();
        for (name, times) in [("b.test", 2), ("c.test", 3), ("a.test", 1)] {
            (0..times).for_each(|_| add(&mut refusals, &event(name)));
        }
        let top: Vec<_> = refusals.top(2).into_iter().map(|row| (row.destination.unwrap(), row.count)).collect();
        assert_eq!(top, [("c.test:443".to_owned(), 3), ("b.test:443".to_owned(), 2)]);
    }

    #[test]
    fn a_guest_that_invents_names_does_not_push_out_the_rows_of_others() {
        let mut refusals = Refusals::default();
        add(&mut refusals, &event_of(Some("good"), "10.0.0.2", "typo.test"));
        for n in 0..50_000 {
            add(&mut refusals, &event_of(Some("bad"), "10.0.0.1", &format!("n{n}.test")));
        }
        assert!(refusals.rows.len() <= 2 * KEEP);
        assert!(refusals.top(usize::MAX).iter().any(|row| row.guest == "good"));
    }
}
