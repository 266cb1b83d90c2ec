//! From files on disk to a policy that decides: read, parse, guard, compile. On ten names, and on a
//! million exact and suffix names with five thousand globs.

#![allow(clippy::pedantic, clippy::restriction, reason = "a measurement that fails ends")]
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "a measurement that fails ends")]
#![warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)]

use criterion::{Criterion, criterion_group, criterion_main};
use outgate::policy::{Builder, Mode, Policy, PolicySettings, Unknown};
use outgate::whitelist::{self, Files};
use std::fmt::Write;
use std::sync::Arc;

fn list(names: usize, globs: usize) -> String {
    let mut text = String::new();
    for index in 0..names {
        let dot = if index % 4 == 0 { "." } else { "" };
        writeln!(text, "{dot}host{index:07}.tenant{}.example.net", index % 997).unwrap();
    }
    for index in 0..globs {
        writeln!(text, "api-{index}-*.example.org").unwrap();
    }
    text
}

fn load(dir: &std::path::Path) -> Policy {
    let today = jiff::civil::date(2026, 11, 23);
    let (builder, _) = whitelist::compile(&Files::read(dir), today, Builder::new(today)).unwrap();
    let settings = PolicySettings {
        mode: Mode::Whitelist,
        ech_allowed: false,
        guests: Vec::new(),
        unknown: Unknown::Shared,
        blocked_ports: vec![25, 465, 587],
    };
    Policy::new(Arc::new(builder.build().unwrap()), settings).unwrap()
}

fn reload(c: &mut Criterion) {
    let mut group = c.benchmark_group("reload");
    group.sample_size(10);
    for (label, names, globs) in [("10 names", 10, 0), ("1,000,000 names and 5,000 globs", 1_000_000, 5_000)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bench.rules"), list(names, globs)).unwrap();
        group.bench_function(label, |b| b.iter(|| load(dir.path())));
    }
    group.finish();
}

criterion_group!(benches, reload);
criterion_main!(benches);
