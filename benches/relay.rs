//! The relay on loopback sockets: bulk through a tunnel, and one exchange of plain HTTP of 1 KiB on
//! kept connections, by our own codec and, for comparison, by hyper's client. An origin thread
//! answers; the times are of the whole round, the kernel's part included.

#![allow(clippy::pedantic, clippy::restriction, reason = "a measurement that fails ends")]
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "a measurement that fails ends")]
#![warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use outgate::account::{AccessLog, Account, LogSettings, Record};
use outgate::identify::Parsed;
use outgate::identify::http::RequestHead;
use outgate::listener::ListenerLabel;
use outgate::relay::http::{ConnectionAddresses, Done, Outgoing, UpstreamConnection, exchange};
use outgate::relay::{GuestStream, Supervision, Tunnel};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::LazyLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BULK: usize = 64 << 20;
const REQUEST: &[u8] =
    b"GET http://origin.test/1k HTTP/1.1\r\nHost: origin.test\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n";

/// The flow that all relays here count for.
static FLOW: LazyLock<Record> = LazyLock::new(|| {
    let log = LogSettings { access: AccessLog::Off, ..LogSettings::default() };
    let account = Account::start(&log, &[]).unwrap();
    account.open(ListenerLabel::Proxy, SocketAddr::from(([192, 0, 2, 1], 40_000)), &account.counters(None))
});

fn supervision() -> Supervision<'static> {
    Supervision { flow: FLOW.flow(), around: None, idle: None, long_lived: &|| () }
}

/// An origin that answers each request head with 1 KiB.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n";
        let answer = [&head[..], &[b'x'; 1024]].concat();
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                while matches!(stream.read(&mut head), Ok(1..)) && stream.write_all(&answer).is_ok() {}
            });
        }
    });
    address
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn blocking(stream: TcpStream) -> std::net::TcpStream {
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

fn bulk(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = c.benchmark_group("relay");
    group.sample_size(10).throughput(Throughput::Bytes(BULK as u64));
    group.bench_function("tunnel, 64 MiB down", |b| {
        b.iter_batched(
            || {
                runtime.block_on(async {
                    let (guest, near) = pair().await;
                    let (far, source) = pair().await;
                    (blocking(guest), near, far, blocking(source))
                })
            },
            |(mut guest, near, far, mut source)| {
                let sink = std::thread::spawn(move || {
                    let mut part = vec![0; 1 << 20];
                    while matches!(guest.read(&mut part), Ok(1..)) {}
                });
                let send = std::thread::spawn(move || {
                    let part = vec![0; 1 << 20];
                    for _ in 0..BULK >> 20 {
                        source.write_all(&part).unwrap();
                    }
                });
                let mut tunnel = Tunnel::new(near, far, Vec::new(), Vec::new()).guest_ended(true);
                runtime.block_on(tunnel.run(supervision()));
                send.join().unwrap();
                sink.join().unwrap();
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn plain_http(c: &mut Criterion) {
    let mut group = c.benchmark_group("plain HTTP, 1 KiB, kept");
    group.bench_function("own codec", |b| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = origin();
        let (mut guest, near) = runtime.block_on(pair());
        let mut near = GuestStream::from(near);
        let far = runtime.block_on(TcpStream::connect(address)).unwrap();
        far.set_nodelay(true).unwrap();
        let addresses = ConnectionAddresses { peer: address, local: far.local_addr().unwrap() };
        let mut peer = UpstreamConnection::new(far, addresses);
        let mut answer = vec![0; 4096];
        b.iter(|| runtime.block_on(ours(&mut guest, &mut near, &mut peer, &mut answer)));
    });
    group.bench_function("hyper client", |b| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = origin();
        let (mut guest, mut near) = runtime.block_on(pair());
        let far = runtime.block_on(TcpStream::connect(address)).unwrap();
        far.set_nodelay(true).unwrap();
        let (mut send, connection) =
            runtime.block_on(hyper::client::conn::http1::handshake(TokioIo::new(far))).unwrap();
        runtime.spawn(connection);
        let mut answer = vec![0; 4096];
        b.iter(|| runtime.block_on(by_hyper(&mut guest, &mut near, &mut send, &mut answer)));
    });
    group.finish();
}

/// Parses the request, sends it on, passes the answer to the guest.
async fn ours(guest: &mut TcpStream, near: &mut GuestStream, peer: &mut UpstreamConnection, answer: &mut [u8]) {
    let Parsed::Complete { head, .. } = RequestHead::parse(REQUEST, 0).unwrap() else { unreachable!() };
    let mut written = Vec::with_capacity(512);
    head.write_request(&mut written);
    let request = Outgoing {
        head: written,
        body: head.body,
        is_head: false,
        version: head.version,
        keep_alive: head.keep_alive,
        upgrade: false,
        repeatable: true,
        patience: None,
    };
    let done = exchange(near, &mut Vec::new(), peer, request, supervision()).await;
    assert_eq!(done.unwrap(), Done::Answered { guest_reusable: true, upstream_reusable: true });
    assert!(guest.read(answer).await.unwrap() > 1024);
}

/// The same with hyper between us and the upstream.
async fn by_hyper(
    guest: &mut TcpStream,
    near: &mut TcpStream,
    send: &mut hyper::client::conn::http1::SendRequest<Empty<bytes::Bytes>>,
    answer: &mut [u8],
) {
    let Parsed::Complete { head, .. } = RequestHead::parse(REQUEST, 0).unwrap() else { unreachable!() };
    let mut request = hyper::Request::get("/1k").body(Empty::new()).unwrap();
    for field in &head.fields {
        let name = hyper::header::HeaderName::from_bytes(field.name).unwrap();
        request.headers_mut().append(name, hyper::header::HeaderValue::from_bytes(field.value).unwrap());
    }
    send.ready().await.unwrap();
    let response = send.send_request(request).await.unwrap();
    let mut out = Vec::with_capacity(2048);
    write!(out, "HTTP/1.1 {}\r\n", response.status()).unwrap();
    for (name, value) in response.headers() {
        out.extend_from_slice(name.as_ref());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.unwrap().into_data() {
            out.extend_from_slice(&data);
        }
    }
    near.write_all(&out).await.unwrap();
    assert!(guest.read(answer).await.unwrap() > 1024);
}

criterion_group!(benches, bulk, plain_http);
criterion_main!(benches);
