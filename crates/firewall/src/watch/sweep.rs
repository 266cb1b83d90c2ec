//! Sweeps expired connection tracking entries. They count until the kernel's collector finds them, and that is
//! once a minute if most of the others live long: a guest that may have 15,000 entries then has 100,000. So once
//! an eighth of the table is filled, this makes the kernel check all of them, each second. That takes about 50 ms
//! with 100,000 entries.

use crate::host::sysctl;
use crate::netlink::{self, DUMP};
use rustix::net::netlink::NETFILTER;
use std::io;
use std::time::{Duration, Instant};

/// Interval between two checks of the number of entries.
const LOOK: Duration = Duration::from_secs(1);
/// The fill level from which on it sweeps: one of so many parts of the table.
const SHARE: u64 = 8;
/// It rests for this many times as long as it worked, up to the maximum: on a busy machine it seems to work for
/// long.
const REST: u32 = 10;
const LONGEST_REST: Duration = Duration::from_secs(4);
/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Interval between two log lines about how much was swept.
const SAY: Duration = Duration::from_secs(600);

/// `IPCTNL_MSG_CT_GET` of `NFNL_SUBSYS_CTNETLINK` (linux/netfilter/nfnetlink_conntrack.h).
const GET: u16 = (1 << 8) | 1;
/// A family that no entry belongs to, so that the kernel checks all entries and reports none.
const NONE: u8 = 5;

/// Starts a thread that sweeps for as long as the process lives.
///
/// # Errors
/// Those of the system.
pub fn keep_swept(say: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("sweep".to_owned()).spawn(move || {
        let (mut said, mut failed) = (None::<Instant>, String::new());
        loop {
            std::thread::sleep(LOOK);
            let Some((before, limit)) = filled() else { continue };
            // Without a limit there is nothing to sweep for.
            if limit == 0 || before < limit / SHARE {
                continue;
            }
            let begun = Instant::now();
            let swept = sweep().map_err(|error| error.to_string());
            let took = begun.elapsed();
            if swept.is_ok() {
                failed.clear();
            }
            match (swept, filled()) {
                (Err(error), _) if error != failed => {
                    say(&format!("expired entries of connection tracking cannot be removed: {error}"));
                    failed = error;
                }
                (Ok(()), Some((after, _))) if said.is_none_or(|said| said.elapsed() >= SAY) => {
                    say(&format!(
                        "connection tracking: {before} entries of at most {limit}, {after} after the expired \
                                  ones were removed"
                    ));
                    said = Some(Instant::now());
                }
                _ => {}
            }
            std::thread::sleep(took.saturating_mul(REST).min(LONGEST_REST));
        }
    })?;
    Ok(())
}

/// Returns how many entries there are, and how many there may be.
fn filled() -> Option<(u64, u64)> {
    let read = |name: &str| sysctl(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))?.parse().ok();
    Some((read("count")?, read("max")?))
}

/// Makes the kernel check each entry, which frees the expired ones.
fn sweep() -> io::Result<()> {
    // The body is struct nfgenmsg.
    netlink::ask(Some(NETFILTER), (GET, DUMP, &[NONE, 0, 0, 0]), PATIENCE, |_| true)
}
