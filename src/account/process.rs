//! The usual `process_*` metrics, read from /proc/self at each scrape.
//!
//! Only /proc/self is read, so the values are also available under `ProtectProc=invisible` and under
//! `ProcSubset=pid` (see proc(5) for the fields).

use super::lock;
use super::metrics::Maker;
use prometheus::{Counter, Gauge, IntGauge};
use std::fs;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) struct Process {
    /// Locked from one reading to the increment: a counter can only be added to.
    cpu: Mutex<Counter>,
    open_fds: IntGauge,
    max_fds: Gauge,
    virtual_bytes: IntGauge,
    resident_bytes: IntGauge,
    threads: IntGauge,
}

impl Process {
    pub(super) fn new(make: &Maker) -> Result<Process, prometheus::Error> {
        let cpu = Counter::new("process_cpu_seconds_total", "User and system CPU time spent in seconds.")?;
        let max_fds = Gauge::new("process_max_fds", "Limit on open file descriptors.")?;
        let start = Gauge::new("process_start_time_seconds", "Start of the process in seconds since 1970.")?;
        make.register("gauge", start.clone())?;
        // Accounting starts with the process; the sandbox hides the boot time that /proc would need.
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Ok(Process {
            cpu: Mutex::new(make.register("counter", cpu)?),
            open_fds: make.gauge("process_open_fds", "Open file descriptors.")?,
            max_fds: make.register("gauge", max_fds)?,
            virtual_bytes: make.gauge("process_virtual_memory_bytes", "Virtual memory in bytes.")?,
            resident_bytes: make.gauge("process_resident_memory_bytes", "Resident memory in bytes.")?,
            threads: make.gauge("process_threads", "Threads.")?,
        })
    }

    /// Reads the values again; a value that can't be read stays as it was.
    pub(super) fn refresh(&self) {
        if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(parse_stat) {
            let seconds = stat.cpu_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            let cpu = lock(&self.cpu);
            cpu.inc_by((seconds - cpu.get()).max(0.0));
            self.threads.set(stat.threads);
            self.virtual_bytes.set(stat.virtual_bytes);
            let page = i64::try_from(rustix::param::page_size()).unwrap_or(4096);
            self.resident_bytes.set(stat.resident_pages.saturating_mul(page));
        }
        if let Some(count) = files_open().or_else(files_listed) {
            self.open_fds.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        self.max_fds.set(limit.current.map_or(f64::INFINITY, |limit| limit as f64));
    }
}

struct Stat {
    cpu_ticks: u64,
    threads: i64,
    virtual_bytes: i64,
    resident_pages: i64,
}

/// Parses the text of /proc/self/stat. The name in the second field may contain spaces and parentheses, so
/// counting starts after the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // `fields` begins with field 3 of proc(5).
    let field = |n: usize| fields.get(n - 3).copied();
    let ticks = |n: usize| field(n)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: ticks(14)?.saturating_add(ticks(15)?),
        threads: field(20)?.parse().ok()?,
        virtual_bytes: field(23)?.parse().ok()?,
        resident_pages: field(24)?.parse().ok()?,
    })
}

/// Returns the number of this process's open file descriptors where it is cheap to read: Linux 6.2 and later
/// report it as the size of the directory.
pub(crate) fn files_open() -> Option<u64> {
    fs::metadata("/proc/self/fd").ok().map(|folder| folder.len()).filter(|count| *count > 0)
}

/// Works as [`files_open`], but counts the entries: 100,000 take tens of milliseconds. The count includes its
/// own descriptor.
pub(crate) fn files_listed() -> Option<u64> {
    u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let numbers: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = parse_stat(&format!("7 (a) b (c) S {}", numbers.join(" "))).unwrap();
        assert_eq!((stat.cpu_ticks, stat.threads), (14 + 15, 20));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (23, 24));
        assert!(parse_stat("7 (a) S 1 2").is_none());
    }
}
