//! Whitelist files. What is accepted has a canonical form that means the same, and without the last
//! line's end nothing is accepted: a half-written line must never widen the list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate::policy::Builder;
use outgate::whitelist::{self, Files};

const DAY: jiff::civil::Date = jiff::civil::date(2026, 11, 23);

fn files(name: &str, text: &[u8]) -> Files {
    Files::from_memory([(name, text.to_vec())])
}

fuzz_target!(|data: &[u8]| {
    for name in ["a.rules", "strict.lst", "regex.lst", "domain_whitelist.json"] {
        let files = files(name, data);
        let accepted = whitelist::compile(&files, DAY, Builder::new(DAY));
        let Ok((builder, loaded)) = accepted else { continue };
        // A glob or regex over the size limits is an error of the build, never a panic.
        let _ = builder.build();
        let listed: Vec<_> = whitelist::list(&files, DAY).expect("what compiles can be listed").collect();
        assert_eq!(listed.len() as u64, loaded.kinds.total());
        if name == "a.rules" {
            check(data, &listed);
        }
    }
});

fn check(data: &[u8], listed: &[whitelist::Listed]) {
    for rule in listed {
        // `None`: as it was written.
        let Some(canonical) = &rule.canonical else { continue };
        let again = files("a.rules", format!("{canonical}\n").as_bytes());
        let again: Vec<_> = match whitelist::list(&again, DAY) {
            Ok(again) => again.collect(),
            // `wide=yes` is no part of the meaning, so the guard may object to what it allowed.
            Err(report) if report.to_string().contains("wide=yes") => continue,
            Err(report) => panic!("{canonical:?} is not accepted again: {report}"),
        };
        let [again] = again.as_slice() else { panic!("{canonical:?} is not one rule") };
        assert_eq!(again.terms, rule.terms);
        // A canonical form is its own.
        assert_eq!(again.canonical.as_ref().unwrap_or(canonical), canonical);
    }
    let cut = data.strip_suffix(b"\n").unwrap_or_default();
    if !listed.is_empty() && !cut.is_empty() && !cut.ends_with(b"\n") {
        assert!(whitelist::list(&files("a.rules", cut), DAY).is_err(), "a line without its end was accepted");
    }
}
