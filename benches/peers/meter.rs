//! What is measured: CPU time and memory of processes, out of /proc (proc(5)), and what became of the
//! operations of a load.

use crate::wire::Outcome;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::{Duration, Instant};

/// A report under construction; it goes out as one line of JSON.
pub(crate) type Report = Map<String, Value>;

/// Rounded to four places, which is more than any of the figures is good for.
pub(crate) fn round(figure: f64) -> Value {
    json!((figure * 1e4).round() / 1e4)
}

pub(crate) fn print(report: Report) {
    println!("{}", Value::Object(report));
}

/// As many open files as the hard limit allows: loads hold thousands of connections.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused, the load runs into the limit and counts errors, which says it well enough.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The fields of /proc/PID/stat from the third on. The second is the command, which may hold blanks.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

fn numbered(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The given processes and all that descend from them and still run: nginx and HAProxy work in children.
fn family(roots: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u64)> =
        numbered("/proc").into_iter().filter_map(|pid| Some((pid, *stat(pid)?.get(1)?))).collect();
    let mut all = roots.to_vec();
    let mut next = 0;
    while let Some(&parent) = all.get(next) {
        for &(pid, of) in &parents {
            if of == u64::from(parent) && !all.contains(&pid) {
                all.push(pid);
            }
        }
        next += 1;
    }
    all
}

/// CPU time that a family of processes has had.
pub(crate) struct Cpu {
    /// Nanoseconds of each thread that runs.
    threads: HashMap<(u32, u32), u64>,
    /// Clock ticks of all, with the threads and children that have ended.
    ticks: u64,
    processes: usize,
}

impl Cpu {
    pub(crate) fn of(roots: &[u32]) -> Self {
        let family = family(roots);
        let mut cpu = Cpu { threads: HashMap::new(), ticks: 0, processes: family.len() };
        for pid in family {
            // utime, stime, cutime, cstime
            cpu.ticks += stat(pid).and_then(|fields| Some(fields.get(11..15)?.iter().sum::<u64>())).unwrap_or(0);
            for thread in numbered(&format!("/proc/{pid}/task")) {
                let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
                let spent = text.split_whitespace().next().and_then(|field| field.parse().ok());
                cpu.threads.insert((pid, thread), spent.unwrap_or(0));
            }
        }
        cpu
    }

    /// Seconds from `earlier` to here.
    ///
    /// Nanoseconds of the threads are finer, ticks (10 ms) are complete. So the ticks count where threads
    /// ended meanwhile, as tinyproxy's do with each connection, or where the kernel keeps no schedstat.
    pub(crate) fn since(&self, earlier: &Cpu) -> f64 {
        let spent = self.threads.iter().map(|(thread, now)| now - earlier.threads.get(thread).unwrap_or(&0).min(now));
        let fine = spent.sum::<u64>() as f64 / 1e9;
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let whole = self.ticks.saturating_sub(earlier.ticks) as f64 * tick;
        // utime and stime are cut to whole ticks, each for itself.
        let unsure = 3.0 * tick * self.processes as f64;
        if whole > fine + unsure { whole } else { fine }
    }
}

/// Memory of a family of processes, in KiB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident, shared pages counted in each process.
    pub(crate) rss: f64,
    /// Resident, shared pages divided by who shares them.
    pub(crate) pss: f64,
}

impl Memory {
    pub(crate) fn of(roots: &[u32]) -> Self {
        let mut sum = Memory::default();
        for pid in family(roots) {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            for line in text.lines() {
                let kib = || line.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0.0);
                if line.starts_with("Rss:") {
                    sum.rss += kib();
                } else if line.starts_with("Pss:") {
                    sum.pss += kib();
                }
            }
        }
        sum
    }
}

/// Wall and CPU time since it was made.
pub(crate) struct Clock {
    pids: Vec<u32>,
    start: Instant,
    cpu: Cpu,
}

impl Clock {
    pub(crate) fn start(pids: &[u32]) -> Self {
        let cpu = Cpu::of(pids);
        Clock { pids: pids.to_vec(), start: Instant::now(), cpu }
    }

    /// Seconds of wall clock, and of CPU where processes were named.
    pub(crate) fn stop(&self) -> (f64, Option<f64>) {
        let wall = self.start.elapsed().as_secs_f64();
        (wall, (!self.pids.is_empty()).then(|| Cpu::of(&self.pids).since(&self.cpu)))
    }
}

/// What became of the operations of a load.
#[derive(Default)]
pub(crate) struct Tally {
    micros: Vec<u32>,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn note(&mut self, took: Duration, outcome: Outcome<()>) {
        match outcome {
            Ok(()) => self.micros.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX)),
            Err(failure) => self.fail(&failure.to_string(), 1),
        }
    }

    pub(crate) fn fail(&mut self, kind: &str, times: u64) {
        if times > 0 {
            *self.errors.entry(kind.to_string()).or_default() += times;
        }
    }

    pub(crate) fn join(&mut self, other: Tally) {
        self.micros.extend(other.micros);
        for (kind, times) in other.errors {
            self.fail(&kind, times);
        }
    }

    pub(crate) fn ok(&self) -> usize {
        self.micros.len()
    }

    /// How many there were and what went wrong.
    pub(crate) fn counts(&self, report: &mut Report) {
        report.insert("ok".into(), json!(self.ok()));
        report.insert("errors".into(), json!(self.errors.values().sum::<u64>()));
        if !self.errors.is_empty() {
            report.insert("error_kinds".into(), json!(self.errors));
        }
    }

    /// The median, the 99th percentile and the longest, as `PREFIXp50_us`, `PREFIXp99_us` and `PREFIXmax_us`.
    pub(crate) fn times(&mut self, prefix: &str, report: &mut Report) {
        self.micros.sort_unstable();
        for percent in [50, 99] {
            let at = (self.micros.len() * percent / 100).min(self.micros.len().saturating_sub(1));
            report.insert(format!("{prefix}p{percent}_us"), json!(self.micros.get(at)));
        }
        report.insert(format!("{prefix}max_us"), json!(self.micros.last()));
    }
}
