//! All checks of an interface: tries them from a guest, and joins what they saw with what arrived where.

use super::addresses::Family;
use super::attempts::{Context, Told, Verdict, attempt};
use super::capture::Capture;
use super::checks::{Task, is_dns};
use super::namespace::Namespace;
use super::network::Untried;
use super::report::Row;
use crate::cli::Failure;
use crate::cli::golem::probe::attempt::Wanted;
use crate::cli::interrupt::Interrupt;
use outgate::proof::{Check, CheckResult};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How long the attempts of one interface may take, and how much longer if there are URLs.
const LIMIT: Duration = Duration::from_secs(10);
const LIMIT_OF_URLS: Duration = Duration::from_secs(15);
/// How long a packet may be under way after the last attempt.
const SETTLE: Duration = Duration::from_millis(300);
/// How soon a signal is noticed.
const TICK: Duration = Duration::from_millis(100);
/// What a run of the checks takes.
#[derive(Debug)]
pub(in crate::cli) struct Trial<'a> {
    /// What is tried, and why something is not.
    pub(in crate::cli) tasks: Vec<(Task, Option<Untried>)>,
    /// What the attempts of each family require; `None` if it has no addresses.
    pub(in crate::cli) contexts: [Option<Arc<Context>>; 2],
    /// What arrives at the sentinel, at the second guest, and from outside at the first.
    pub(in crate::cli) captures: [&'a Capture; 3],
    /// The first guest's namespace; `None` if this process is in it.
    pub(in crate::cli) namespace: Option<Namespace>,
    pub(in crate::cli) urls: &'a [Wanted],
    /// Between the starts of two attempts, so that they stay below a guest's limits.
    pub(in crate::cli) gap: Duration,
}

impl Trial<'_> {
    /// Runs all; `None` after a signal.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(in crate::cli) fn run(&self, stop: &Interrupt) -> Result<Option<Vec<Row>>, Failure> {
        let (tell, told) = sync_channel::<(usize, io::Result<Told>)>(self.tasks.len().max(1));
        let mut rows: Vec<Option<Row>> = Vec::with_capacity(self.tasks.len());
        let url_of =
            |task: Task| self.urls.get(task.url).filter(|_| task.check == Check::Url).map(|url| url.url.clone());
        let mut running = 0_usize;
        for (at, (task, why)) in self.tasks.iter().enumerate() {
            if let Some(why) = why {
                rows.push(Some(Row::untried(*task, url_of(*task), why)));
                continue;
            }
            rows.push(None);
            let [v4, v6] = &self.contexts;
            let Some(context) = (if task.family == Family::V4 { v4 } else { v6 }).clone() else { continue };
            let (namespace, tell, task) = (self.namespace.clone(), tell.clone(), *task);
            // Not waited for longer than the limit: it ends by itself.
            std::thread::Builder::new().spawn(move || {
                let entered = namespace.map_or(Ok(()), |namespace| namespace.enter());
                let ended = entered.and_then(|()| attempt(task, &context));
                let _ = tell.send((at, ended));
            })?;
            running = running.saturating_add(1);
            if stop.has_come() {
                return Ok(None);
            }
            std::thread::sleep(self.gap);
        }
        let give_up = Instant::now() + if self.urls.is_empty() { LIMIT } else { LIMIT_OF_URLS };
        let mut ended: Vec<Option<io::Result<Told>>> = self.tasks.iter().map(|_| None).collect();
        while running > 0 && Instant::now() < give_up {
            if stop.has_come() {
                return Ok(None);
            }
            match told.recv_timeout(TICK) {
                Ok((at, one)) => {
                    if let Some(place) = ended.get_mut(at) {
                        *place = Some(one);
                    }
                    running = running.saturating_sub(1);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        std::thread::sleep(SETTLE);
        let finished = self.tasks.iter().zip(rows).zip(ended).map(|(((task, _), row), ended)| {
            row.unwrap_or_else(|| conclude(*task, url_of(*task), ended, self.captures))
        });
        Ok(Some(finished.collect()))
    }
}

/// Joins what an attempt saw with what arrived outside, at the other guest, and from outside.
fn conclude(task: Task, url: Option<String>, ended: Option<io::Result<Told>>, places: [&Capture; 3]) -> Row {
    let number = task.number();
    let [sentinel, second, answers] = places;
    let arrived = [(sentinel, "outside"), (second, "at the other guest"), (answers, "from outside")];
    for (capture, place) in arrived {
        // NAT also writes the asked server's address into this machine's own errors about DNS.
        let counts = !(is_dns(task.check) && place == "from outside");
        if let Some(seen) = capture.of(number).filter(|_| counts) {
            let packets = if seen.packets == 1 { "1 packet".to_owned() } else { format!("{} packets", seen.packets) };
            return Row::new(task, url, format!("{packets} {place}: {}", seen.first), CheckResult::Leak);
        }
    }
    match ended {
        Some(Ok(Told { seen, verdict })) => {
            let refused = seen == "nothing came back" && answers.was_told(number);
            let seen = if refused { "refused".to_owned() } else { seen };
            let result = match verdict {
                Verdict::Ok => CheckResult::Ok,
                Verdict::Leak => CheckResult::Leak,
                Verdict::Failed => CheckResult::Failed,
            };
            Row::new(task, url, seen, result)
        }
        Some(Err(error)) => Row::new(task, url, format!("could not be tried: {error}"), CheckResult::Failed),
        None => Row::new(task, url, "no end in time".to_owned(), CheckResult::Failed),
    }
}
