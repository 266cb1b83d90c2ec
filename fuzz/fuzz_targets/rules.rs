//! Whitelist files: the properties are asserted where the rule language is known.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| outgate::whitelist::fuzz_rules(data));
