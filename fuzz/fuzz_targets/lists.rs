//! What holds for any whitelist file that is accepted: it can be listed, each rule has a canonical form
//! that means the same, and without the last line's end nothing is accepted, since a half-written line
//! must never widen the list. Shared by the targets `rules` and `regexes`.

use outgate_policy::Builder;
use outgate_whitelist::{self as whitelist, Files, Listed};

const DAY: jiff::civil::Date = jiff::civil::date(2026, 11, 23);

/// Reads one file, and where it is accepted holds it to all that.
pub fn check(name: &str, text: &[u8]) {
    let files = file(name, text);
    let Ok((builder, loaded)) = whitelist::compile(&files, DAY, Builder::new(DAY)) else { return };
    // A glob or regex over the size limits is an error of the build, never a panic.
    let _ = builder.build();
    let listed: Vec<_> = whitelist::list(&files, DAY).expect("what compiles can be listed").collect();
    assert_eq!(listed.len() as u64, loaded.rules);
    if name == "a.rules" {
        listed.iter().for_each(means_the_same);
    }
    let cut = text.strip_suffix(b"\n").unwrap_or_default();
    if !name.ends_with(".json") && !cut.is_empty() && !cut.ends_with(b"\n") {
        assert!(whitelist::list(&file(name, cut), DAY).is_err(), "a line without its end was accepted");
    }
}

fn file(name: &str, text: &[u8]) -> Files {
    Files::from_memory([(name, text.to_vec())])
}

fn means_the_same(rule: &Listed) {
    // `None`: as it was written.
    let Some(canonical) = &rule.canonical else { return };
    let again = file("a.rules", format!("{canonical}\n").as_bytes());
    let again: Vec<_> = match whitelist::list(&again, DAY) {
        Ok(again) => again.collect(),
        // `wide=yes` is no part of the meaning, so the guard may object to what it allowed.
        Err(report) if report.to_string().contains("wide=yes") => return,
        Err(report) => panic!("{canonical:?} is not accepted again: {report}"),
    };
    let [again] = again.as_slice() else { panic!("{canonical:?} is not one rule") };
    assert_eq!(again.terms, rule.terms);
    // A canonical form is its own.
    assert_eq!(again.canonical.as_ref().unwrap_or(canonical), canonical);
}
