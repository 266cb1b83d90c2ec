//! Plain requests of one client while another one sends many at once, one behind the other, on many connections.

use crate::meter::{Report, Tally, print, round};
use crate::proxy_tls::{TlsProxy, TlsProxyArgs};
use crate::rates::{BODY, Common};
use crate::wire::{self, Failure, HTTP_PORT, Outcome, Route};
use serde_json::json;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Requests that are written at a time.
const AT_ONCE: usize = 64;
/// How long the neighbour waits for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `-c` is how many connections send requests
    #[command(flatten)]
    common: Common,
    /// Address of the client that is to be served meanwhile
    #[arg(long)]
    small_from: Option<IpAddr>,
    /// Host that the many requests are for; one that is refused costs the proxy no origin
    #[arg(long, default_value = "origin.test")]
    asked: String,
    /// Seconds without the many requests, and with them
    #[arg(long, default_value_t = 4)]
    each_seconds: u64,
    /// The proxy is inside TLS: folder that `peers pki` made
    #[arg(long)]
    pki: Option<PathBuf>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How both clients connect.
#[derive(Clone)]
struct Way {
    route: Route,
    proxy: Option<TlsProxy>,
}

impl Way {
    async fn open(&self) -> Outcome<Box<dyn Stream>> {
        match &self.proxy {
            Some(proxy) => Ok(Box::new(proxy.open(&self.route).await?)),
            None => Ok(Box::new(self.route.dial().await?)),
        }
    }
}

/// What the two clients have in common.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    connected: AtomicU64,
}

pub(crate) async fn pipelines(args: Args) -> Outcome<()> {
    let c = &args.common;
    let host = format!("{}:{HTTP_PORT}", c.host);
    let at = |host: &str| if c.direct { String::new() } else { format!("http://{host}") };
    let small = format!("GET {}/{BODY} HTTP/1.1\r\nHost: {host}\r\n\r\n", at(&host));
    let asked = format!("{}:{HTTP_PORT}", args.asked);
    let many = format!("HEAD {}/{BODY} HTTP/1.1\r\nHost: {asked}\r\n\r\n", at(&asked)).repeat(AT_ONCE);
    let proxy = match &args.pki {
        Some(pki) => Some(TlsProxy::new(&TlsProxyArgs { pki: pki.clone(), client_certificate: false })?),
        None => None,
    };
    let way = Way { route: c.bare(), proxy };
    let from = args.small_from.or(way.route.from);
    let neighbour = Way { route: Route { from, ..way.route.clone() }, proxy: way.proxy.clone() };
    let time = Duration::from_secs(args.each_seconds);
    let mut quiet = exchanges(&neighbour, &small, time).await;
    let shared = Arc::new(Shared::default());
    let (theirs, count) = (shared.clone(), c.concurrency);
    let sending = std::thread::spawn(move || {
        // Below the origin and the neighbour, who share its CPU: who waits for the proxy is what is measured.
        let _ = rustix::process::setpriority_process(None, 19);
        wire::block_on(send_until_stopped(way, count, many, theirs));
    });
    // What it costs to connect is bounded by another limit, which is out of reach here.
    let begun = Instant::now();
    while shared.connected.load(Ordering::Relaxed) < count as u64 && begun.elapsed() < PATIENCE {
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(2)).await;
    let before = shared.answered.load(Ordering::Relaxed);
    let mut busy = exchanges(&neighbour, &small, time).await;
    let answered = shared.answered.load(Ordering::Relaxed) - before;
    shared.stop.store(true, Ordering::Relaxed);
    let mut report = Report::from_iter([("load".into(), json!("pipelines"))]);
    quiet.times("quiet_", &mut report);
    busy.times("busy_", &mut report);
    let mut all = quiet;
    all.join(busy);
    if sending.join().is_err() || answered == 0 {
        all.fail("nothing was answered to the many requests", 1);
    }
    all.counts(&mut report);
    report.insert("answered_kib_per_s".into(), round(answered as f64 / 1024.0 / time.as_secs_f64()));
    report.insert("connected".into(), json!(shared.connected.load(Ordering::Relaxed)));
    print(report);
    Ok(())
}

/// One request after the other on a kept connection, with a pause of 1 ms, and every tenth on a new one.
async fn exchanges(way: &Way, request: &str, time: Duration) -> Tally {
    let mut tally = Tally::default();
    let start = Instant::now();
    let mut kept: Option<Box<dyn Stream>> = None;
    for turn in 0_u64.. {
        if start.elapsed() >= time {
            break;
        }
        if turn % 10 == 0 {
            kept = None;
        }
        let begun = Instant::now();
        let once = async {
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => way.open().await?,
            };
            let again = wire::exchange(&mut stream, request.as_bytes(), BODY).await?;
            Ok(again.then_some(stream))
        };
        let outcome = tokio::time::timeout(PATIENCE, once).await.unwrap_or_else(|_| Err(Failure::new("20 s")));
        let outcome = outcome.map(|stream| kept = stream);
        tally.note(begun.elapsed(), outcome);
        sleep(Duration::from_millis(1)).await;
    }
    tally
}

async fn send_until_stopped(way: Way, count: usize, many: String, shared: Arc<Shared>) {
    let many: Arc<[u8]> = many.into_bytes().into();
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let (way, many, shared) = (way.clone(), many.clone(), shared.clone());
        clients.spawn(async move {
            while !shared.stop.load(Ordering::Relaxed) {
                if send(&way, &many, &shared).await.is_err() {
                    // As quickly as it may, and yet without taking the CPU from the client that is measured.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    while !shared.stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(10)).await;
    }
    clients.shutdown().await;
}

/// Sends as much as the proxy takes and throws away what it answers, until one side ends it.
async fn send(way: &Way, many: &[u8], shared: &Shared) -> Outcome<()> {
    let stream = way.open().await?;
    shared.connected.fetch_add(1, Ordering::Relaxed);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        loop {
            if let Err(error) = writer.write_all(many).await {
                return Failure::from(error);
            }
        }
    };
    let read = async {
        let mut scratch = [0; wire::HEAD];
        loop {
            match reader.read(&mut scratch).await {
                Ok(0) => return Failure::new("closed"),
                Ok(count) => drop(shared.answered.fetch_add(count as u64, Ordering::Relaxed)),
                Err(error) => return Failure::from(error),
            }
        }
    };
    // What is still answered after the proxy takes no more is not waited for.
    tokio::select! {
        failure = write => Err(failure),
        failure = read => Err(failure),
    }
}
