//! What a decision costs, with ten names and with a million, and with 5,000 globs that share one
//! tail. Before the timings it prints what building the list takes in time and resident memory.
//!
//! Each round asks for another of 10,000 hosts, so that little of the list is in a cache. Time is that
//! which the thread had a processor, as the kernel counts it: other load on the machine does not show,
//! but for the caches it takes.

#![allow(clippy::pedantic, clippy::restriction, reason = "a measurement that fails ends")]
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "a measurement that fails ends")]
#![warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use jiff::civil::date;
use outgate::identify::{Claim, Evidence};
use outgate::policy::rule::{Effect, Reach, Scope, Subject, Terms};
use outgate::policy::{Builder, Mode, Policy, PolicySettings, Rules, Unknown};
use outgate::target::{Target, Transport};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const GLOBS: u32 = 5_000;
const CIDRS: u32 = 100_000;
const REGEXES: u32 = 1_000;
const HOSTS: u32 = 10_000;

/// How the globs are made.
#[derive(Clone, Copy)]
enum Globs {
    /// `api-17-*.x.example`: one tail, many prefixes.
    Prefix,
    /// `*-17-*.x.example`: one tail, nothing literal at either end.
    Middle,
    /// `api-*.x17.example`: as many tails.
    Tails,
}

/// The base of name `index`: 15 to 21 bytes, as in published lists.
fn base(index: u32) -> String {
    let scrambled = index.wrapping_mul(2_654_435_761);
    let zone = ["com", "io", "network", "co.uk", "org"][index as usize % 5];
    format!("h{scrambled:08x}-{}.{zone}", index % 1000)
}

/// Every third name is a suffix, the rest are exact.
fn scope(index: u32) -> Scope {
    if index.is_multiple_of(3) { Scope::SelfAndBelow } else { Scope::Exact }
}

fn glob(kind: Globs, index: u32) -> String {
    match kind {
        Globs::Prefix => format!("api-{index}-*.x.example"),
        Globs::Middle => format!("*-{index}-*.x.example"),
        Globs::Tails => format!("api-*.x{index}.example"),
    }
}

fn allow() -> Terms {
    Terms { effect: Effect::Allow, reach: Reach::Web, ech_allowed: false, to: None, until: None }
}

fn build(names: u32, globs: Option<Globs>, cidrs: u32, regexes: u32) -> Rules {
    let mut builder = Builder::new(date(2026, 11, 23));
    let file = builder.file("bench.rules");
    let terms = allow();
    for index in 0..names {
        let base = base(index);
        let subject = Subject::Name { base: &base, scope: scope(index) };
        builder.rule(file, index + 1, &subject, &terms).expect("a name");
    }
    for index in globs.iter().flat_map(|_| 0..GLOBS) {
        let pattern = glob(globs.unwrap_or(Globs::Prefix), index);
        let subject = Subject::Glob { pattern: &pattern, scope: Scope::Exact };
        builder.rule(file, names + index + 1, &subject, &terms).expect("a glob");
    }
    for index in 0..regexes {
        let pattern = format!(r"node{index}-[0-9]+\.x{}\.example", index % 50);
        builder.rule(file, names + index + 1, &Subject::Regex(&pattern), &terms).expect("a regex");
    }
    for index in 0..cidrs {
        let [_, a, b, c] = index.wrapping_mul(40_503).to_be_bytes();
        let net = format!("{}.{a}.{b}.{c}/{}", 11 + index % 200, 12 + index % 21);
        let subject = Subject::Net(net.parse().expect("a network"));
        builder.rule(file, names + index + 1, &subject, &terms).expect("a network");
    }
    builder.build().expect("within limits")
}

fn policy(rules: Rules) -> Policy {
    let settings = PolicySettings {
        mode: Mode::Whitelist,
        ech_allowed: false,
        guests: Vec::new(),
        unknown: Unknown::Shared,
        blocked_ports: vec![25, 465, 587],
    };
    Policy::new(Arc::new(rules), settings).expect("no guests")
}

fn claims(host: impl Fn(u32) -> String) -> Vec<Claim> {
    let claim = |index| Claim {
        source: std::net::IpAddr::from([10, 42, 42, 7]).into(),
        target: Target::parse(host(index).as_bytes(), Some(443)).expect("a host"),
        transport: Transport::Tcp,
        spoken: None,
        ech: false,
        evidence: Evidence::Sni,
    };
    (0..HOSTS).map(claim).collect()
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// How long this thread has had a processor (proc(5), schedstat).
fn on_cpu() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn measured(what: &str, rules: impl FnOnce() -> Rules) -> Policy {
    let (before, start) = (resident(), on_cpu());
    let rules = rules();
    let (took, grown) = (on_cpu() - start, resident().saturating_sub(before));
    let count: u64 = rules.counts().iter().map(|(_, count)| count).sum();
    println!(
        "{what}: {count} rules built in {took:.2?}, {} KiB resident, {} bytes a rule",
        grown >> 10,
        grown as u64 / count
    );
    policy(rules)
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500)).sample_size(30);
    let mut time = |what: &str, size: &str, policy: &Policy, allowed: bool, claims: &[Claim]| {
        for claim in claims.iter().step_by(997) {
            assert_eq!(policy.decide(claim).is_ok(), allowed, "{what}: {:?}", claim.target);
        }
        let mut next = 0;
        group.bench_function(BenchmarkId::new(what, size), |bencher| {
            bencher.iter_custom(|rounds| {
                let start = on_cpu();
                for _ in 0..rounds {
                    next = (next + 7919) % claims.len();
                    black_box(policy.decide(black_box(&claims[next])).is_ok());
                }
                on_cpu() - start
            });
        });
    };
    for (size, names) in [("10", 10u32), ("1000000", 1_000_000)] {
        let pick = move |index: u32| index.wrapping_mul(7_368_787) % (names / 3 * 3);
        let exact = claims(|index| base(pick(index) / 3 * 3 + 1));
        let deep = claims(|index| format!("a.b.c.{}", base(pick(index) / 3 * 3)));
        let miss = claims(|index| format!("cdn.www.{}", base(index + 2_000_000)));
        let prefix = measured(&format!("{size} names, globs by prefix"), || build(names, Some(Globs::Prefix), 0, 0));
        time("exact hit", size, &prefix, true, &exact);
        time("suffix hit, three labels below", size, &prefix, true, &deep);
        time("miss", size, &prefix, false, &miss);
        time("glob hit, one tail", size, &prefix, true, &claims(|index| format!("api-{}-eu.x.example", index % GLOBS)));
        time("glob miss, one tail", size, &prefix, false, &claims(|index| format!("app-{index}-eu.x.example")));
        drop(prefix);
        let middle = measured(&format!("{size} names, globs by middle"), || build(names, Some(Globs::Middle), 0, 0));
        time("glob hit, middle", size, &middle, true, &claims(|index| format!("web-{}-eu.x.example", index % GLOBS)));
        time("glob miss, middle", size, &middle, false, &claims(|index| format!("web-{index}a-eu.x.example")));
        drop(middle);
        let tails = measured(&format!("{size} names, globs by tail"), || build(names, Some(Globs::Tails), 0, 0));
        time("glob hit, many tails", size, &tails, true, &claims(|index| format!("api-eu.x{}.example", index % GLOBS)));
    }
    let regexes = measured("regexes", || build(0, None, 0, REGEXES));
    time("regex hit", "1000", &regexes, true, &claims(|i| format!("node{}-{i}.x{}.example", i % REGEXES, i % 50)));
    time("regex miss", "1000", &regexes, false, &claims(|i| format!("cdn.www.{}", base(i))));
    let nets = measured("networks", || build(0, None, CIDRS, 0));
    time("address miss", "100000", &nets, false, &claims(|index| format!("9.{}.{}.1", index % 250, index / 250)));
}

fn near_miss(criterion: &mut Criterion) {
    let policy = policy(build(1_000_000, Some(Globs::Prefix), 0, 0));
    let far = claims(|index| format!("cdn.www.{}", base(index + 2_000_000)));
    let mut next = 0;
    criterion.bench_function("near_miss/nothing near/1000000", |bencher| {
        bencher.iter_custom(|rounds| {
            let start = on_cpu();
            for _ in 0..rounds {
                next = (next + 7919) % far.len();
                black_box(policy.near_miss(&far[next]));
            }
            on_cpu() - start
        });
    });
}

criterion_group!(benches, decide, near_miss);
criterion_main!(benches);
