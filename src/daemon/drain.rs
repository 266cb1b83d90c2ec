//! The end of the daemon: open flows may finish for a while, then the rest are ended.

use crate::reason::Reason;
use crate::services::Services;
use crate::system::{SignalRequest, Signals};
use std::time::Duration;
use tokio::time::Instant;

/// How long open flows may continue after SIGTERM if this process opened the listeners itself.
const DRAIN: Duration = Duration::from_secs(20);
/// How long a client should wait at most in a socket that outlives this process, until the next process accepts.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How long open flows may continue in any case.
const LEAST_DRAIN: Duration = Duration::from_secs(1);
/// How long flows may take to end once they were told to.
const LAST_CALL: Duration = Duration::from_millis(300);
/// Time that the service manager needs between two processes.
const TURN_AROUND: Duration = Duration::from_millis(700);

/// Returns how long open flows may continue after SIGTERM. Inherited sockets stay open, and new clients wait in
/// them: for this long, and while the next process starts, which takes about as long as this one took.
pub(super) fn grace(inherited: bool, start: Duration) -> Duration {
    if !inherited {
        return DRAIN;
    }
    LONGEST_WAIT.saturating_sub(LAST_CALL + TURN_AROUND).saturating_sub(start).max(LEAST_DRAIN)
}

/// Lets open flows finish, then ends the remaining ones.
pub(super) async fn drain(services: &Services, signals: &mut Signals, grace: Duration) {
    let open = services.gate.total();
    tracing::info!(open, "stopping; open connections get {:.1} s", grace.as_secs_f64());
    services.stop.cancel();
    let quiet = || services.gate.total() == 0 && services.gate.refusals() == 0;
    let until = Instant::now() + grace;
    while !quiet() && Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            // A second signal means at once.
            asked = signals.next() => if asked == SignalRequest::Stop { break },
        }
    }
    let ended = services.account.live().revoke_where(|_, _| Some((Reason::ShuttingDown, None)));
    if ended > 0 {
        tracing::info!(ended, "ended connections that were still open");
    }
    let until = Instant::now() + LAST_CALL;
    while !quiet() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
