//! A probe: without any right, in the network of a guest of one interface. It is given its task and sockets, and reports
//! each round. It ends when the other side does.

use super::super::capture::{Capture, Filter};
use super::super::network::{Untried, random};
use super::super::packet::Round;
use super::super::report::Row;
use super::super::trial::Trial;
use super::assignment::{Assignment, Given, RoundReport, receive};
use super::{Place, RunArguments};
use crate::cli::golem::probe::{self, attempt::Wanted};
use crate::cli::interrupt::Interrupt;
use crate::cli::{Exit, Failure, Outcome};
use outgate::proof::{CheckResult, EVERY, JITTER};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between the starts of two attempts: this machine answers with few ICMP errors a second, and must answer guests too.
const GAP: Duration = Duration::from_millis(200);

/// Before what failed is tried once more.
const REST: Duration = Duration::from_secs(2);

pub(super) fn run(arguments: &RunArguments) -> Outcome {
    let socket = Place { folder: arguments.folder.clone() }.socket();
    let lost = |error: io::Error| {
        let remedy = "run `systemctl start outgate-proof-net.service`, which starts this as well";
        Failure::Failed(format!("{}: {error}; {remedy}", socket.display()))
    };
    let mut stream = UnixStream::connect(&socket).map_err(lost)?;
    writeln!(stream, "{}", arguments.interface).map_err(lost)?;
    let (assignment, mut given) = receive(&mut stream).map_err(lost)?;
    given.urls = assignment.urls.iter().map(|url| probe::wanted(url)).collect::<Result<Vec<Wanted>, Failure>>()?;
    // Once the other side is gone, or wants it to begin anew, this process is of no use.
    let mut other = stream.try_clone().map_err(lost)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "there is nothing to flush, and a round may still take half a minute"
    )]
    let end = move || {
        let _ = other.read(&mut [0]);
        std::process::exit(0);
    };
    std::thread::Builder::new().spawn(end)?;
    loop {
        let begun = Instant::now();
        let report = round(&assignment, &given)?;
        let mut line = serde_json::to_vec(&report).map_err(io::Error::from)?;
        line.push(b'\n');
        if stream.write_all(&line).is_err() {
            return Ok(Exit::Good);
        }
        std::thread::sleep(pause().saturating_sub(begun.elapsed()));
    }
}

/// Returns the time between the starts of this round and the next.
fn pause() -> Duration {
    let spread = u64::try_from(JITTER.as_millis()).unwrap_or(u64::MAX).saturating_mul(2).max(1);
    EVERY.saturating_sub(JITTER) + Duration::from_millis(random() % spread)
}

fn round(assignment: &Assignment, given: &Given) -> Result<RoundReport, Failure> {
    let round = Arc::new(Round::new(random(), assignment.senders()));
    let all: Vec<_> = assignment.addresses().copied().collect();
    let filters = Filter::of(&all, assignment.own());
    let mut captures = Vec::new();
    for (socket, filter) in given.captures.iter().zip(filters) {
        captures.push(Capture::on(socket.try_clone()?, filter, Arc::clone(&round))?);
    }
    let [sentinel, second, answers] = captures.as_slice() else {
        return Err(Failure::Failed("a capture is missing".to_owned()));
    };
    let mut trial = Trial {
        tasks: assignment.tasks(),
        contexts: assignment.contexts(given, &round),
        captures: [sentinel, second, answers],
        namespace: None,
        urls: &given.urls,
        gap: GAP,
    };
    let never = Interrupt::default();
    let mut rows = trial.run(&never)?.unwrap_or_default();
    // A machine that was busy for a moment is no fault of the guard. What got out is never taken back.
    let again = |row: &Row, why: &Option<Untried>| why.is_none() && row.result == CheckResult::Failed;
    let at: Vec<usize> = (0..rows.len())
        .filter(|at| rows.get(*at).zip(trial.tasks.get(*at)).is_some_and(|(row, (_, why))| again(row, why)))
        .collect();
    if !at.is_empty() {
        std::thread::sleep(REST);
        trial.tasks = at.iter().filter_map(|at| trial.tasks.get(*at).cloned()).collect();
        for (at, row) in at.into_iter().zip(trial.run(&never)?.unwrap_or_default()) {
            rows.get_mut(at).into_iter().for_each(|place| *place = row.clone());
        }
    }
    Ok(RoundReport { checks: rows.iter().map(|row| row.checked()).collect(), other_packets: sentinel.others() })
}
