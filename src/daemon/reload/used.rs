//! Since when uses of rules are counted, and when they are written to the state dir. `whitelist::used` defines
//! the content and the format.

use crate::policy::Rules;
use crate::whitelist::last_good::KeepError;
use crate::whitelist::used::{self, UsageFile};
use jiff::Timestamp;
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Shortest time between two regular writes; a crash loses no more than this.
const EVERY: Duration = Duration::from_secs(300);

/// The counting of uses over all lists of one run.
pub(super) struct Counting {
    since: Timestamp,
    /// When it was last written, or the run began.
    written: Instant,
    /// Number and sum of the marks in the file.
    last: Option<(usize, u64)>,
}

impl Counting {
    /// Continues with the saved counts and marks them in `rules`. If nothing can be restored, the counting begins now.
    pub(super) fn start(state: &Path, rules: &Rules) -> Counting {
        let kept = used::restore(state).unwrap_or_else(|error| {
            if !matches!(error, KeepError::Nothing) {
                let file = state.join(used::FILE_NAME);
                tracing::warn!(file = %file.display(), %error, "the record of used rules cannot be read; counting \
                                                                starts again");
            }
            UsageFile { since: whole_seconds(Timestamp::now()), used: HashSet::new() }
        });
        rules.note_used(&kept.used);
        Counting { since: kept.since, written: Instant::now(), last: None }
    }

    /// Returns since when uses are counted.
    pub(super) fn since(&self) -> Timestamp {
        self.since
    }

    /// Writes which rules were used, if the last write is long enough ago.
    pub(super) fn keep_sometimes(&mut self, state: &Path, rules: &Rules) {
        if self.written.elapsed() >= EVERY {
            self.keep(state, rules);
        }
    }

    /// Writes which rules were used, unless the file already has that content.
    pub(super) fn keep(&mut self, state: &Path, rules: &Rules) {
        self.written = Instant::now();
        let used = rules.used_marks();
        let now = Some((used.len(), used.iter().fold(0u64, |sum, mark| sum.wrapping_add(mark.0))));
        if now == self.last {
            return;
        }
        match used::save(state, &UsageFile { since: self.since, used }) {
            Ok(()) => self.last = now,
            Err(error) => {
                tracing::warn!(%error, dir = %state.display(), "which rules were used cannot be kept for the next start");
            }
        }
    }
}

/// Rounds to the precision of the file, so that it reads the same after a restart.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Mark;
    use crate::whitelist::{Files, build};
    use std::fs;

    fn rules() -> Rules {
        build(&Files::from_memory([("a.rules", "ipfs.io\nb.test\n")]), jiff::civil::date(2026, 11, 23)).unwrap().0
    }

    #[test]
    fn counting_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let since = Timestamp::from_second(1_700_000_000).unwrap();
        let before = rules();
        // `ipfs.io` in a.rules.
        let used = HashSet::from([Mark(0x8835_0337_3177_9fec)]);
        used::save(dir.path(), &UsageFile { since, used }).unwrap();
        let mut counting = Counting::start(dir.path(), &before);
        assert_eq!((counting.since(), before.used()), (since, 1));
        counting.keep(dir.path(), &before);
        let after = rules();
        assert_eq!(Counting::start(dir.path(), &after).since(), since);
        assert_eq!(after.used_lines().map(|(_, line)| line).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_broken_file_is_ignored_and_replaced_at_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(used::FILE_NAME), "outgate used rules 1\nnonsense").unwrap();
        let (rules, before) = (rules(), whole_seconds(Timestamp::now()));
        let mut counting = Counting::start(dir.path(), &rules);
        assert!(counting.since() >= before && rules.used() == 0);
        counting.keep(dir.path(), &rules);
        assert!(used::restore(dir.path()).is_ok());
    }
}
