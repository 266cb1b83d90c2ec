//! How full the kernel's connection tracking table is, read at each scrape. The series are absent if the kernel
//! tracks nothing or a sandbox hides the numbers.

use super::metrics::Maker;
use prometheus::IntGaugeVec;
use std::fs;

pub(super) struct Tracking {
    entries: IntGaugeVec,
    limit: IntGaugeVec,
}

impl Tracking {
    pub(super) fn new(make: &Maker) -> Result<Tracking, prometheus::Error> {
        Ok(Tracking {
            entries: make.gauges(
                "outgate_conntrack_entries",
                "Entries in the kernel's connection tracking table.",
                &[],
            )?,
            limit: make.gauges(
                "outgate_conntrack_limit",
                "Entries that the kernel's connection tracking table takes; over it the machine opens no connection.",
                &[],
            )?,
        })
    }

    pub(super) fn refresh(&self) {
        for (gauge, found) in [(&self.entries, entries()), (&self.limit, setting("nf_conntrack_max"))] {
            match found {
                Some(found) => gauge.with_label_values::<&str>(&[]).set(found),
                None => gauge.reset(),
            }
        }
    }
}

/// Returns the entries in the kernel's connection tracking table, and its capacity.
pub fn tracked() -> Option<(i64, i64)> {
    entries().zip(setting("nf_conntrack_max"))
}

fn entries() -> Option<i64> {
    setting("nf_conntrack_count").or_else(|| {
        // `ProcSubset=pid` does not hide this file.
        parse_stat(&fs::read_to_string("/proc/self/net/stat/nf_conntrack").ok()?)
    })
}

fn setting(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?.trim().parse().ok()
}

/// Reads the first number of a line, in hexadecimal. There is one line per CPU, and this number is the
/// namespace's total.
fn parse_stat(text: &str) -> Option<i64> {
    i64::from_str_radix(text.lines().nth(1)?.split_ascii_whitespace().next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::parse_stat;

    #[test]
    fn entries_are_read_from_the_kernels_statistics() {
        let text = "entries  clashres found\n0003fffe  00000000 00000001\n0003fffe  00000000 00000000\n";
        assert_eq!(parse_stat(text), Some(262_142));
        for text in ["", "entries\n", "entries\n\n", "entries\nfewer\n"] {
            assert_eq!(parse_stat(text), None, "{text:?}");
        }
    }
}
