//! Whitelist files without regexes; those have a target of their own, because compiling them takes a
//! hundred times as long as all the rest and its coverage, in another crate's code, would draw every
//! mutation there.
//!
//! The first byte chooses the format, so that a run parses one file; digits do, for a corpus that can
//! be read.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

mod lists;

/// By the low bits of the first byte; the native form has the most to it.
const FORMATS: [&str; 4] = ["a.rules", "a.rules", "strict.lst", "domain_whitelist.json"];

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((format, text)) = data.split_first() else { return Corpus::Reject };
    let name = FORMATS[usize::from(format & 3)];
    if has_regex(name, text) {
        return Corpus::Reject;
    }
    lists::check(name, text);
    Corpus::Keep
});

fn has_regex(name: &str, text: &[u8]) -> bool {
    match name {
        "a.rules" => text.split(|byte| *byte == b'\n').any(begins_with_regex),
        "domain_whitelist.json" => text.windows(6).any(|word| word == b"\"regex"),
        _ => false,
    }
}

/// A native regex begins a line, or follows `deny`.
fn begins_with_regex(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.strip_prefix(b"deny").unwrap_or(line).trim_ascii_start().starts_with(b"/")
}
