//! Loads that hold tunnels open: streams, idle tunnels, and small exchanges beside somebody's streams.

use crate::meter::{Clock, Memory, Report, Tally, print, round};
use crate::rates::{Common, repeat};
use crate::wire::{self, Failure, Outcome, RAW_PORT, Route, discard};
use serde_json::json;
use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

const GIB: f64 = (1_u64 << 30) as f64;
/// Bytes written or taken at a time.
const BLOCK: usize = 1 << 20;
/// Tunnels opened and closed before idle ones are.
const WARM: u64 = 100;

#[derive(clap::Args)]
pub(crate) struct BulkArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// MiB in all
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// Send instead of receiving
    #[arg(long)]
    pub(crate) up: bool,
}

pub(crate) async fn bulk(args: BulkArgs) -> Outcome<()> {
    let (route, up) = (args.common.route(RAW_PORT), args.up);
    let stream = move |bytes| {
        let route = route.clone();
        async move {
            let stream = route.open().await?;
            if up { send(stream, bytes).await } else { receive(stream, bytes).await }
        }
    };
    measure(if up { "bulk-up" } else { "bulk" }, &args, stream).await
}

/// Runs as many streams as are wanted, of so many bytes each, and reports what a GiB costs.
pub(crate) async fn measure<F>(load: &str, args: &BulkArgs, stream: impl Fn(u64) -> F) -> Outcome<()>
where
    F: Future<Output = Outcome<()>> + Send + 'static,
{
    let c = &args.common;
    let each = (args.mib << 20) / c.concurrency.max(1) as u64;
    let mut streams = JoinSet::new();
    let clock = Clock::start(&c.pid);
    for _ in 0..c.concurrency {
        streams.spawn(stream(each));
    }
    let mut tally = Tally::default();
    let all = async {
        while let Some(ended) = streams.join_next().await {
            let outcome = ended.unwrap_or_else(|_| Err(Failure::new("panic")));
            tally.note(Duration::ZERO, outcome);
        }
    };
    let late = tokio::time::timeout(Duration::from_secs(c.seconds), all).await.is_err();
    let (wall, cpu) = clock.stop();
    if late {
        tally.fail("did not end in time", streams.len() as u64);
    }
    let moved = (tally.ok() as u64 * each) as f64;
    let mut report = Report::from_iter([("load".into(), json!(load)), ("seconds".into(), round(wall))]);
    tally.counts(&mut report);
    report.insert("gib_per_s".into(), round(moved / GIB / wall));
    if let Some(cpu) = cpu {
        report.insert("cpu_s_per_gib".into(), round(cpu / (moved / GIB)));
        report.insert("cpu_share".into(), round(cpu / wall));
    }
    print(report);
    Ok(())
}

async fn receive(mut stream: TcpStream, bytes: u64) -> Outcome<()> {
    stream.write_all(format!("<{bytes}\n").as_bytes()).await?;
    match discard(&stream, bytes, &mut vec![0; BLOCK]).await? {
        all if all == bytes => Ok(()),
        _ => Err(Failure::new("a cut stream")),
    }
}

pub(crate) async fn send<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: u64) -> Outcome<()> {
    stream.write_all(format!(">{bytes}\n").as_bytes()).await?;
    // Of every value, as in most files: one byte alone is what no first line of any protocol ends.
    let block: Vec<u8> = (0..BLOCK as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        stream.write_all(&block[..part]).await?;
        left -= part as u64;
    }
    stream.flush().await?;
    // The origin says when it has it all; until then some of it is in buffers on the way.
    stream.read_u8().await?;
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    common: Common,
    /// How many tunnels
    #[arg(short = 'n', default_value_t = 5_000)]
    total: u64,
    /// Seconds before the memory is read
    #[arg(long, default_value_t = 3)]
    settle: u64,
}

pub(crate) async fn idle(args: IdleArgs) -> Outcome<()> {
    let c = args.common;
    let route = c.route(RAW_PORT);
    // What a proxy takes at its first tunnels and then keeps is no price of the others.
    let first = route.clone();
    let warm = async move |_: &mut Option<()>| wire::echo(&mut first.open().await?).await;
    repeat(&c, WARM, Rc::new(warm)).await;
    sleep(Duration::from_secs(1)).await;
    let held = Rc::new(RefCell::new(Vec::new()));
    let hold = held.clone();
    let once = async move |_: &mut Option<()>| {
        let mut stream = route.open().await?;
        wire::echo(&mut stream).await?;
        hold.borrow_mut().push(stream);
        Ok(())
    };
    let before = Memory::of(&c.pid);
    let tally = repeat(&c, args.total, Rc::new(once)).await;
    sleep(Duration::from_secs(args.settle)).await;
    let after = Memory::of(&c.pid);
    // One that the proxy has closed has its end to be read.
    let waits = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
    let alive = held.borrow().iter().filter(|stream| stream.try_read(&mut [0]).is_err_and(waits)).count();
    let mut report = Report::from_iter([("load".into(), json!("idle")), ("alive".into(), json!(alive))]);
    tally.counts(&mut report);
    if !c.pid.is_empty() {
        let each = |after: f64, before: f64| round((after - before) / alive.max(1) as f64);
        report.insert("kib_per_tunnel".into(), each(after.pss, before.pss));
        report.insert("rss_kib_per_tunnel".into(), each(after.rss, before.rss));
        report.insert("base_mib".into(), round(before.pss / 1024.0));
    }
    print(report);
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct FairArgs {
    #[command(flatten)]
    common: Common,
    /// Address of the client with the small exchanges
    #[arg(long, default_value = "127.0.0.2")]
    small_from: IpAddr,
    /// Seconds without the streams, and with them
    #[arg(long, default_value_t = 4)]
    each_seconds: u64,
}

/// What the two clients of `fair` have in common.
#[derive(Default)]
struct Streams {
    stop: AtomicBool,
    bytes: AtomicU64,
    errors: AtomicU64,
}

pub(crate) async fn fair(args: FairArgs) -> Outcome<()> {
    let c = args.common;
    let small = Route { from: Some(args.small_from), ..c.route(RAW_PORT) };
    let time = Duration::from_secs(args.each_seconds.min(c.seconds / 2));
    let mut report = Report::from_iter([("load".into(), json!("fair"))]);
    let mut quiet = small_exchanges(&small, time).await;
    let streams = Arc::new(Streams::default());
    let (shared, route, count) = (streams.clone(), c.route(RAW_PORT), c.concurrency);
    // A thread of its own, so that the small client waits for the proxy and not for this one's reads.
    let fast = std::thread::spawn(move || wire::block_on(stream_until_stopped(route, count, shared)));
    sleep(Duration::from_millis(500)).await;
    let begun = streams.bytes.load(Ordering::Relaxed);
    let mut busy = small_exchanges(&small, time).await;
    let moved = streams.bytes.load(Ordering::Relaxed) - begun;
    streams.stop.store(true, Ordering::Relaxed);
    if fast.join().is_err() {
        busy.0.fail("the streams panicked", 1);
    }
    for (name, (exchanges, opened)) in [("quiet", &mut quiet), ("busy", &mut busy)] {
        exchanges.times(&format!("{name}_"), &mut report);
        opened.times(&format!("{name}_open_"), &mut report);
    }
    let mut all = quiet.0;
    for more in [quiet.1, busy.0, busy.1] {
        all.join(more);
    }
    if moved == 0 {
        all.fail("nothing was streamed", 1);
    }
    all.fail("a stream", streams.errors.load(Ordering::Relaxed));
    all.counts(&mut report);
    report.insert("gib_per_s".into(), round(moved as f64 / GIB / time.as_secs_f64()));
    print(report);
    Ok(())
}

/// One byte there and back on an open tunnel, ten times; then once on a new one. With a pause of 1 ms
/// each time, since who wants the whole CPU does not suffer from sharing it.
async fn small_exchanges(route: &Route, time: Duration) -> (Tally, Tally) {
    let (mut exchanges, mut opened) = (Tally::default(), Tally::default());
    let start = Instant::now();
    let mut kept = None;
    let timed = async |route: &Route, kept: &mut Option<_>| {
        let begun = Instant::now();
        let outcome = async {
            if kept.is_none() {
                *kept = Some(route.open().await?);
            }
            match kept {
                Some(stream) => wire::echo(stream).await,
                None => Ok(()),
            }
        };
        let limit = Duration::from_secs(5);
        let outcome = tokio::time::timeout(limit, outcome).await.unwrap_or_else(|_| Err(Failure::new("5 s")));
        (begun.elapsed(), outcome)
    };
    // The tunnel that is there already when the streams begin is opened outside the count.
    let (_, first) = timed(route, &mut kept).await;
    if first.is_err() {
        exchanges.note(Duration::ZERO, first);
        return (exchanges, opened);
    }
    for turn in 0_u64.. {
        if start.elapsed() >= time {
            break;
        }
        let (took, outcome) =
            if turn % 11 == 10 { timed(route, &mut None).await } else { timed(route, &mut kept).await };
        let tally = if turn % 11 == 10 { &mut opened } else { &mut exchanges };
        tally.note(took, outcome);
        sleep(Duration::from_millis(1)).await;
    }
    (exchanges, opened)
}

async fn stream_until_stopped(route: Route, count: usize, shared: Arc<Streams>) {
    let mut streams = JoinSet::new();
    for _ in 0..count {
        let (route, shared) = (route.clone(), shared.clone());
        streams.spawn(async move {
            let outcome = async {
                let mut stream = route.open().await?;
                stream.write_all(format!("<{}\n", 1_u64 << 40).as_bytes()).await?;
                let mut scratch = vec![0; BLOCK];
                while !shared.stop.load(Ordering::Relaxed) {
                    let taken = discard(&stream, BLOCK as u64, &mut scratch).await?;
                    if taken < BLOCK as u64 {
                        return Err(Failure::new("a cut stream"));
                    }
                    shared.bytes.fetch_add(taken, Ordering::Relaxed);
                }
                Ok(())
            };
            if outcome.await.is_err() {
                shared.errors.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // A stream that stands still does not see that it should stop.
    let stopped = async {
        while !shared.stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(200)).await;
    };
    stopped.await;
    while let Some(ended) = streams.try_join_next() {
        if ended.is_err() {
            shared.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}
