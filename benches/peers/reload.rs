//! A list that is rewritten under the eyes of a client: how long until the new one is in force, how long the
//! client waits meanwhile, and what reading it costs.

use crate::meter::{Clock, Report, Tally, print, round};
use crate::rates::Common;
use crate::wire::{self, Failure, Outcome, RAW_PORT, Route};
use serde_json::json;
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What a phase goes on for after the new name is let through: the old list is freed only then.
const AFTER: Duration = Duration::from_secs(1);
/// Between two questions after the new name. They cost the proxy too, in both phases alike.
const POLL: Duration = Duration::from_millis(5);
/// Before the first phase.
const SETTLE: Duration = Duration::from_secs(1);
/// The longest that one exchange may take.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// The list that the proxy reads
    #[arg(long)]
    list: PathBuf,
    /// What takes its place, by a rename; so it has to be made anew for each run
    #[arg(long)]
    next: PathBuf,
    /// The name that the new list lets through and the old one does not
    #[arg(long)]
    new: String,
    /// How long each phase goes on at least, without a reload and with one
    #[arg(long, default_value_t = 5)]
    each_seconds: u64,
}

/// What became of the client, and of the proxy meanwhile.
struct Phase {
    exchanges: Tally,
    /// When the slowest exchange began, after the phase did.
    slowest_at: Duration,
    through: Option<Duration>,
    cpu: Option<f64>,
}

pub(crate) async fn reload(args: Args) -> Outcome<()> {
    // A daemon with a long list may listen before it is done reading it, and has things to put away then.
    for _ in 0..2 {
        let route = args.common.route(RAW_PORT);
        in_time(async { wire::echo(&mut route.open().await?).await }).await?;
        sleep(SETTLE).await;
    }
    let mut quiet = phase(&args, false).await?;
    if let Some(after) = quiet.through {
        return Err(Failure::new(&format!("{} was let through after {after:?}, before it was to be", args.new)));
    }
    let mut busy = phase(&args, true).await?;
    let mut report = Report::from_iter([("load".into(), json!("reload"))]);
    match busy.through {
        Some(through) => drop(report.insert("through_s".into(), round(through.as_secs_f64()))),
        None => busy.exchanges.fail("the new name was never let through", 1),
    }
    quiet.exchanges.times("quiet_", &mut report);
    busy.exchanges.times("busy_", &mut report);
    report.insert("busy_max_at_s".into(), round(busy.slowest_at.as_secs_f64()));
    if let (Some(without), Some(with)) = (quiet.cpu, busy.cpu) {
        // The client costs the proxy what it cost before; the rest is the reload's.
        let client = without * busy.exchanges.ok() as f64 / quiet.exchanges.ok().max(1) as f64;
        report.insert("cpu_s".into(), round(with - client));
    }
    let mut all = quiet.exchanges;
    all.join(busy.exchanges);
    all.counts(&mut report);
    print(report);
    Ok(())
}

/// One tunnel after another; with a list to `replace` at least until the new name is let through.
async fn phase(args: &Args, replace: bool) -> Outcome<Phase> {
    let each = Duration::from_secs(args.each_seconds);
    let clock = Clock::start(&args.common.pid);
    let start = Instant::now();
    let end = Cell::new(start + if replace { Duration::from_secs(args.common.seconds) } else { each });
    if replace {
        fs::rename(&args.next, &args.list)?;
    }
    let route = args.common.route(RAW_PORT);
    let client = async {
        let (mut tally, mut slowest) = (Tally::default(), (Duration::ZERO, Duration::ZERO));
        while Instant::now() < end.get() {
            let begun = Instant::now();
            let outcome = in_time(async { wire::echo(&mut route.open().await?).await }).await;
            let took = begun.elapsed();
            slowest = slowest.max((took, begun - start));
            tally.note(took, outcome);
        }
        (tally, slowest.1)
    };
    let bare = args.common.bare();
    let target = format!("{}:{RAW_PORT}", args.new);
    let watch = async {
        let mut tally = Tally::default();
        while Instant::now() < end.get() {
            match in_time(ask(&bare, &target)).await {
                Ok(200..=299) => {
                    end.set((start + each).max(Instant::now() + AFTER));
                    return (tally, Some(start.elapsed()));
                }
                Ok(403) => {}
                Ok(other) => tally.fail(&format!("status {other} to the new name"), 1),
                Err(failure) => tally.fail(&failure.to_string(), 1),
            }
            sleep(POLL).await;
        }
        (tally, None)
    };
    let ((mut exchanges, slowest_at), (asked, through)) = tokio::join!(client, watch);
    exchanges.join(asked);
    let (_, cpu) = clock.stop();
    Ok(Phase { exchanges, slowest_at, through, cpu })
}

async fn ask(route: &Route, target: &str) -> Outcome<u16> {
    wire::ask_connect(&mut route.dial().await?, target).await
}

pub(crate) async fn in_time<T>(exchange: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::time::timeout(LIMIT, exchange).await.unwrap_or_else(|_| Err(Failure::new("not done in time")))
}
