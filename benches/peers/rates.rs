//! Loads that are one small operation many times over: tunnels, plain HTTP, refusals, TLS. Each
//! reports operations a second, the time that one takes, and what it costs the proxy in CPU time.

use crate::meter::{Clock, Report, Tally, print, round};
use crate::wire::{self, Failure, HTTP_PORT, Outcome, RAW_PORT, Route, TLS_PORT};
use rustls::pki_types::ServerName;
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Bytes of the body that a plain request is answered with.
pub(crate) const BODY: usize = 1024;
/// Bytes of the body within TLS: the handshake is what is measured.
const TLS_BODY: usize = 64;
/// How long an operation may take that began before the deadline.
const GRACE: Duration = Duration::from_secs(5);

/// What every load needs to know.
#[derive(clap::Args, Clone)]
pub(crate) struct Common {
    /// Where connections go
    #[arg(long, default_value = "127.0.0.1:3128")]
    pub(crate) proxy: SocketAddr,
    /// No CONNECT and no absolute form: what is dialled is the origin or leads there by itself
    #[arg(long)]
    pub(crate) direct: bool,
    /// Name of the origin
    #[arg(long, default_value = "origin.test")]
    pub(crate) host: String,
    /// Address to dial from
    #[arg(long)]
    pub(crate) from: Option<IpAddr>,
    /// How many at a time
    #[arg(short, default_value_t = 64)]
    pub(crate) concurrency: usize,
    /// Processes of the proxy; their children are counted too
    #[arg(long)]
    pub(crate) pid: Vec<u32>,
    /// Nothing begins after this
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
}

impl Common {
    pub(crate) fn route(&self, port: u16) -> Route {
        let connect = (!self.direct).then(|| format!("{}:{port}", self.host));
        Route { dial: self.proxy, from: self.from, connect }
    }

    pub(crate) fn bare(&self) -> Route {
        Route { dial: self.proxy, from: self.from, connect: None }
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How many in all
    #[arg(short = 'n', default_value_t = 10_000)]
    total: u64,
    /// How many before the clock starts
    #[arg(long, default_value_t = 200)]
    warm: u64,
}

/// Does `once` `total` times, `c.concurrency` at a time. Each of those that run side by side has a place to
/// keep something from one time to the next.
pub(crate) async fn repeat<S: 'static>(
    c: &Common,
    total: u64,
    once: Rc<impl AsyncFn(&mut Option<S>) -> Outcome<()> + 'static>,
) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let left = Rc::new(Cell::new(total));
    let busy = Rc::new(Cell::new(0));
    let deadline = Instant::now() + Duration::from_secs(c.seconds);
    let side_by_side = LocalSet::new();
    for _ in 0..c.concurrency {
        let (tally, left, busy, once) = (tally.clone(), left.clone(), busy.clone(), once.clone());
        side_by_side.spawn_local(async move {
            let mut kept = None;
            while left.get() > 0 && Instant::now() < deadline {
                left.set(left.get() - 1);
                busy.set(busy.get() + 1);
                let start = Instant::now();
                let outcome = once(&mut kept).await;
                busy.set(busy.get() - 1);
                tally.borrow_mut().note(start.elapsed(), outcome);
            }
        });
    }
    if tokio::time::timeout_at((deadline + GRACE).into(), side_by_side).await.is_err() {
        tally.borrow_mut().fail("did not end in time", busy.get());
    }
    tally.take()
}

pub(crate) async fn rate<S: 'static>(
    load: &str,
    args: &Args,
    once: impl AsyncFn(&mut Option<S>) -> Outcome<()> + 'static,
) -> Outcome<()> {
    let once = Rc::new(once);
    let warm = repeat(&args.common, args.warm, once.clone()).await;
    if warm.ok() == 0 && args.warm > 0 {
        let mut report = Report::from_iter([("load".into(), json!(load))]);
        warm.counts(&mut report);
        print(report);
        return Err(Failure::new("nothing came through; the load was not begun"));
    }
    let clock = Clock::start(&args.common.pid);
    let mut tally = repeat(&args.common, args.total, once).await;
    let (wall, cpu) = clock.stop();
    let done = tally.ok().max(1) as f64;
    let mut report = Report::from_iter([("load".into(), json!(load)), ("seconds".into(), round(wall))]);
    tally.counts(&mut report);
    tally.times("", &mut report);
    report.insert("per_s".into(), round(tally.ok() as f64 / wall));
    if let Some(cpu) = cpu {
        report.insert("cpu_us".into(), round(cpu * 1e6 / done));
        report.insert("cpu_share".into(), round(cpu / wall));
    }
    print(report);
    Ok(())
}

pub(crate) async fn tunnels(args: Args) -> Outcome<()> {
    let route = args.common.route(RAW_PORT);
    let once = async move |_: &mut Option<()>| wire::echo(&mut route.open().await?).await;
    rate("tunnels", &args, once).await
}

pub(crate) async fn refused(args: Args) -> Outcome<()> {
    let route = args.common.bare();
    let target = format!("{}:{RAW_PORT}", args.common.host);
    let once = async move |_: &mut Option<()>| match wire::ask_connect(&mut route.dial().await?, &target).await? {
        400..=499 => Ok(()),
        other => Err(Failure::status(other)),
    };
    rate("refused", &args, once).await
}

pub(crate) async fn http(args: Args) -> Outcome<()> {
    let route = args.common.bare();
    let host = format!("{}:{HTTP_PORT}", args.common.host);
    let at = if args.common.direct { String::new() } else { format!("http://{host}") };
    let request = format!("GET {at}/{BODY} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let once = async move |kept: &mut Option<TcpStream>| {
        if let Some(mut stream) = kept.take() {
            // One that the proxy closed between two requests is no error; a client would ask anew.
            if let Ok(again) = wire::exchange(&mut stream, request.as_bytes(), BODY).await {
                *kept = again.then_some(stream);
                return Ok(());
            }
        }
        let mut stream = route.dial().await?;
        let again = wire::exchange(&mut stream, request.as_bytes(), BODY).await?;
        *kept = again.then_some(stream);
        Ok(())
    };
    rate("http", &args, once).await
}

pub(crate) async fn tls(args: Args) -> Outcome<()> {
    let route = args.common.route(TLS_PORT);
    let host = args.common.host.clone();
    let name = ServerName::try_from(host.clone()).map_err(|_| Failure::new("--host is no name"))?;
    let client = wire::tls_client();
    let request = format!("GET /{TLS_BODY} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let once = async move |_: &mut Option<()>| {
        let mut stream = client.connect(name.clone(), route.open().await?).await?;
        wire::exchange(&mut stream, request.as_bytes(), TLS_BODY).await?;
        Ok(())
    };
    rate("tls", &args, once).await
}
