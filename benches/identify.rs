//! What it costs to tell where a flow wants to go: one head or hello each, from a whole buffer.

#![allow(clippy::pedantic, clippy::restriction, reason = "a measurement that fails ends")]
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "a measurement that fails ends")]
#![warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use outgate::identify::hello::Hello;
use outgate::identify::http::{Parsed, RequestHead};
use outgate::identify::{sniff, socks};
use std::hint::black_box;

const CONNECT: &[u8] = b"CONNECT registry.good.test:443 HTTP/1.1\r\nHost: registry.good.test:443\r\n\
    User-Agent: curl/7.88.1\r\nProxy-Connection: Keep-Alive\r\n\r\n";

const GET: &[u8] = b"GET http://registry.good.test/v2/library/alpine/manifests/latest?ns=docker.io HTTP/1.1\r\n\
    Host: registry.good.test\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate\r\n\
    Referer: http://registry.good.test/\r\n\
    Cookie: session=4f9d2c7be1a04c5d8f6a; theme=dark; seen=1\r\n\
    Connection: keep-alive\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    If-None-Match: \"33a64df551425fcc55e4d42a148795d9f25f89d4\"\r\n\
    Cache-Control: max-age=0\r\n\
    Priority: u=0, i\r\n\r\n";

const HELLO: &[u8] = include_bytes!("../crates/proto/tests/data/hello-curl.bin");
const HELLO_POST_QUANTUM: &[u8] = include_bytes!("../crates/proto/tests/data/hello-postquantum.bin");
const SOCKS: &[u8] = b"\x05\x01\x00\x03\x12registry.good.test\x01\xbb";

fn heads(c: &mut Criterion) {
    for (name, head) in [("connect", CONNECT), ("get_12_fields", GET)] {
        let mut group = c.benchmark_group("identify/head");
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function(name, |b| b.iter(|| RequestHead::parse(black_box(head), 0)));
        let mut out = Vec::with_capacity(2048);
        group.bench_function(format!("{name}/write"), |b| {
            let Ok(Parsed::Complete { head, .. }) = RequestHead::parse(head, 0) else { panic!("a whole head") };
            b.iter(|| {
                out.clear();
                black_box(&head).write_request(&mut out);
            });
        });
    }
}

fn hellos(c: &mut Criterion) {
    let mut group = c.benchmark_group("identify/hello");
    let in_bytes: Vec<u8> = HELLO.get(5..).unwrap_or_default().iter().flat_map(|b| [22, 3, 1, 0, 1, *b]).collect();
    for (name, hello) in [("517", HELLO), ("1800", HELLO_POST_QUANTUM), ("517_in_records_of_1", in_bytes.as_slice())] {
        group.throughput(Throughput::Bytes(hello.len() as u64));
        group.bench_function(name, |b| b.iter(|| Hello::parse(black_box(hello))));
    }
}

fn first_bytes(c: &mut Criterion) {
    let mut group = c.benchmark_group("identify/sniff");
    for (name, bytes) in [("tls", HELLO), ("http", GET), ("raw", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")] {
        group.bench_function(name, |b| b.iter(|| sniff(black_box(bytes))));
    }
    group.finish();
    c.bench_function("identify/socks", |b| b.iter(|| socks::parse_request(black_box(SOCKS))));
}

criterion_group!(benches, heads, hellos, first_bytes);
criterion_main!(benches);
