//! Regexes in whitelist files: a few short ones, since a list of many is the same code again at a
//! thousand times the cost. Bit 0 of the first byte chooses between the native form and Golem's.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

mod lists;

const MAX_LINES: usize = 4;
const MAX_BYTES: usize = 400;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((format, text)) = data.split_first() else { return Corpus::Reject };
    if text.len() > MAX_BYTES || text.iter().filter(|byte| **byte == b'\n').count() > MAX_LINES {
        return Corpus::Reject;
    }
    lists::check(if format & 1 == 0 { "a.rules" } else { "regex.lst" }, text);
    Corpus::Keep
});
