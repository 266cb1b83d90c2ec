//! Configuration keys whose function this version does not have. They are read and checked like all others, so
//! that a file written for a later version is understood, and then refused: a guard that silently ignores an
//! instruction is worse than one that does not start.
//!
//! When a function is implemented, its line is removed here and nothing else changes.

use super::diagnostic::Problems;
use super::raw::{List, Raw};
use std::ops::Range;

/// Reports every such key that is set.
pub(super) fn refuse(raw: &Raw, problems: &mut Problems<'_>) {
    let listen = &raw.listen;
    let keys: [(&str, Option<Range<usize>>); 1] = [("[listen].udp (TPROXY for UDP)", list(&listen.udp))];
    for (key, span) in keys {
        if let Some(span) = span {
            problems.error(span, format!("{key} is not available in this version; leave it out"));
        }
    }
}

fn list<T>(key: &List<T>) -> Option<Range<usize>> {
    key.as_ref().filter(|list| !list.get_ref().is_empty()).map(toml::Spanned::span)
}
