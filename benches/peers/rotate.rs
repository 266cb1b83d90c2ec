//! Handshakes at an even pace while the proxy's certificate and key are replaced: whether one of them fails, how
//! long the slowest takes, and whether each new certificate gets into use.

use crate::meter::{Report, Tally, print, round};
use crate::pki::{Authority, Pair};
use crate::proxy_tls::{TlsProxy, TlsProxyArgs};
use crate::rates::Common;
use crate::reload::in_time;
use crate::wire::{Failure, Outcome, RAW_PORT, Route};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;
use tokio::time::{sleep, sleep_until};

/// Between the new certificate and its key. outgate, which looks every two seconds, has to have the right pair
/// before the next one comes.
const GAP: Duration = Duration::from_millis(700);
/// The link that Kubernetes, too, brings a pair into force by: to a folder with cert.pem and key.pem.
const LINK: &str = "..data";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    proxy: TlsProxyArgs,
    /// Folder with the link `..data` to where the proxy's cert.pem and key.pem are
    #[arg(long)]
    files: PathBuf,
    /// New connections a second
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// How often the pair is replaced; the middle one of these times by the link, else by two renames
    #[arg(long, default_value_t = 6)]
    times: u32,
    /// Milliseconds before, between and after. Of this length, each time comes elsewhere between two of
    /// outgate's looks, and one of them meets with a pair that does not fit
    #[arg(long, default_value_t = 3250)]
    every_ms: u32,
    /// Send SIGHUP to the process after each time
    #[arg(long)]
    hup: bool,
}

/// What the clients have met with.
#[derive(Default)]
struct Met {
    exchanges: Tally,
    certificates: HashSet<Vec<u8>>,
    /// How long the slowest exchange took, and when it was due.
    slowest: (Duration, Duration),
    /// Which exchange is to begin next.
    next: u32,
}

pub(crate) async fn rotate(args: Args) -> Outcome<()> {
    let (proxy, route) = (TlsProxy::new(&args.proxy)?, args.common.route(RAW_PORT));
    // Made before it matters: signing takes the clients' CPU.
    let authority = Authority::read(&args.proxy.pki)?;
    let pairs: io::Result<Vec<Pair>> = (0..args.times).map(|_| authority.pair()).collect();
    let pairs = pairs?;
    in_time(proxy.exchange(&route)).await?;
    let start = Instant::now();
    let (met, replaced) = tokio::join!(pace(&args, proxy, route, start), replace(&args, &pairs));
    let wall = start.elapsed().as_secs_f64();
    replaced?;
    let Met { mut exchanges, certificates, slowest, .. } = met;
    let mut report = Report::from_iter([("load".into(), json!("rotate")), ("seconds".into(), round(wall))]);
    let unseen = (pairs.len() + 1).saturating_sub(certificates.len());
    exchanges.fail("a certificate that no client saw", unseen as u64);
    exchanges.times("", &mut report);
    exchanges.counts(&mut report);
    report.insert("per_s".into(), round(exchanges.ok() as f64 / wall));
    report.insert("replaced".into(), json!(pairs.len()));
    report.insert("certificates".into(), json!(certificates.len()));
    report.insert("max_at_s".into(), round(slowest.1.as_secs_f64()));
    print(report);
    Ok(())
}

/// Exchanges that are due one after another, whether or not those before are done; at most
/// `common.concurrency` at a time.
async fn pace(args: &Args, proxy: TlsProxy, route: Route, start: Instant) -> Met {
    let met = Rc::new(RefCell::new(Met::default()));
    let total = u64::from(args.rate) * u64::from(args.every_ms) * u64::from(args.times + 1) / 1000;
    let between = Duration::from_secs(1) / args.rate.max(1);
    let side_by_side = LocalSet::new();
    for _ in 0..args.common.concurrency {
        let (met, proxy, route) = (met.clone(), proxy.clone(), route.clone());
        side_by_side.spawn_local(async move {
            loop {
                let number = met.borrow().next;
                if u64::from(number) >= total {
                    break;
                }
                met.borrow_mut().next += 1;
                let due = start + between * number;
                // What the timer is late by is not the proxy's doing; that nobody was free to begin is.
                let early = due > Instant::now();
                sleep_until(due.into()).await;
                let begun = if early { Instant::now() } else { due };
                let outcome = in_time(proxy.exchange(&route)).await;
                met.borrow_mut().note(begun.elapsed(), due - start, outcome.map(|stream| leaf(&stream)));
            }
        });
    }
    side_by_side.await;
    met.take()
}

/// The certificate that the proxy showed.
fn leaf(stream: &tokio_rustls::client::TlsStream<tokio::net::TcpStream>) -> Option<Vec<u8>> {
    Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
}

impl Met {
    fn note(&mut self, took: Duration, due: Duration, outcome: Outcome<Option<Vec<u8>>>) {
        self.slowest = self.slowest.max((took, due));
        let outcome = outcome.and_then(|leaf| leaf.ok_or_else(|| Failure::new("no certificate")));
        let outcome = outcome.map(|leaf| {
            self.certificates.insert(leaf);
        });
        self.exchanges.note(took, outcome);
    }
}

async fn replace(args: &Args, pairs: &[Pair]) -> io::Result<()> {
    let every = Duration::from_millis(args.every_ms.into());
    for (number, pair) in pairs.iter().enumerate() {
        sleep(every.saturating_sub(if number > 0 { GAP } else { Duration::ZERO })).await;
        if number == pairs.len() / 2 {
            let folder = format!("..{number}");
            fs::create_dir(args.files.join(&folder))?;
            pair.write(&args.files.join(&folder))?;
            symlink(&folder, args.files.join("..next"))?;
            fs::rename(args.files.join("..next"), args.files.join(LINK))?;
            sleep(GAP).await;
        } else {
            let folder = args.files.join(LINK);
            for (name, text) in [("cert.pem", &pair.certificate), ("key.pem", &pair.key)] {
                fs::write(folder.join("next"), text)?;
                fs::rename(folder.join("next"), folder.join(name))?;
                if name == "cert.pem" {
                    sleep(GAP).await;
                }
            }
        }
        if let (true, Some(&pid)) = (args.hup, args.common.pid.first()) {
            let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
            kill_process(pid, Signal::HUP)?;
        }
    }
    Ok(())
}
