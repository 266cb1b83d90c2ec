//! What is printed: one row for each check, and for each interface a sentence.

use super::checks::{Task, expected};
use super::network::Untried;
use crate::cli::table;
use outgate::proof::{Check, CheckResult, Checked};
use outgate::text::printable;
use serde::Serialize;
use std::io::{self, Write};

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli) struct Row {
    /// The check.
    pub(super) check: Check,
    /// `ipv4` or `ipv6`.
    family: &'static str,
    /// The URL, for the check `url`.
    url: Option<String>,
    expected: &'static str,
    seen: String,
    /// The result.
    pub(super) result: CheckResult,
    /// Why it means nothing here, if it does not.
    reason: Option<String>,
    #[serde(skip)]
    must_pass: bool,
    /// Whether it is not applicable only because it could not be tried.
    #[serde(skip)]
    is_missing: bool,
}

/// Whether the guests of an interface are guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Nothing gets past outgate, and outgate answers.
    Guarded,
    /// Something gets past it.
    Open,
    /// Nothing gets past it, and outgate does not answer.
    CutOff,
    /// Nothing gets past it, and a URL that was named is not reached.
    Unreached,
    /// Something, or everything, could not be tried.
    NotChecked,
    /// Nothing can be tried at an interface like this.
    NotApplicable,
}

/// An interface's part.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// The interface, or the pattern of `guest_interfaces`.
    pub(super) interface: String,
    pub(super) state: State,
    /// In a sentence, with the remedy.
    pub(super) summary: String,
    /// Packets at the sentinel that no check sent.
    pub(super) other_packets: u64,
    pub(super) checks: Vec<Row>,
}

impl Row {
    pub(super) fn new(task: Task, url: Option<String>, seen: String, result: CheckResult) -> Row {
        let Task { check, family, .. } = task;
        Row {
            check,
            family: family.as_str(),
            url,
            expected: expected(check),
            seen,
            result,
            reason: None,
            must_pass: check.must_pass(),
            is_missing: false,
        }
    }

    pub(super) fn untried(task: Task, url: Option<String>, why: &Untried) -> Row {
        let (reason, is_missing) = (Some(why.why().to_owned()), matches!(why, Untried::Failed(_)));
        Row { reason, is_missing, ..Row::new(task, url, "-".to_owned(), CheckResult::NotApplicable) }
    }

    /// Returns what the proof keeps of it.
    pub(super) fn checked(&self) -> Checked {
        Checked {
            check: self.check,
            family: self.family.to_owned(),
            url: self.url.clone(),
            result: if self.is_missing { CheckResult::Failed } else { self.result },
            seen: self.reason.as_ref().unwrap_or(&self.seen).clone(),
        }
    }

    fn name(&self) -> String {
        match &self.url {
            Some(url) => format!("{} {url}", self.check.as_str()),
            None => format!("{} {}", self.check.as_str(), self.family),
        }
    }
}

/// How commands in remedies name the configuration: empty, or ` --config FILE`.
pub(super) type OfConfig<'a> = &'a str;

impl Report {
    /// Draws the conclusion. `has_daemon`: whether the daemon answered on its control socket.
    pub(super) fn of(
        interface: &str,
        checks: Vec<Row>,
        other_packets: u64,
        has_daemon: bool,
        config: OfConfig<'_>,
    ) -> Report {
        let named = |result: CheckResult, is: &dyn Fn(&Row) -> bool| {
            let rows = checks.iter().filter(|row| row.result == result && is(row));
            rows.map(Row::name).collect::<Vec<_>>().join(", ")
        };
        let leaks = named(CheckResult::Leak, &|_| true);
        let untried = named(CheckResult::Failed, &|row| !row.must_pass);
        let silent = named(CheckResult::Failed, &|row| row.check != Check::Url);
        let unreached = named(CheckResult::Failed, &|row| row.check == Check::Url);
        let guests = format!("guests of {interface}");
        let (state, summary) = if !leaks.is_empty() {
            let remedy = format!("run `outgate firewall apply{config}`, then `outgate firewall status{config}`");
            (State::Open, format!("{guests} are NOT guarded ({leaks}): {remedy}"))
        } else if !untried.is_empty() {
            (State::NotChecked, format!("{guests}: not everything could be tried ({untried}); run it again"))
        } else if !silent.is_empty() {
            let remedy = match has_daemon {
                true => format!(
                    "run `outgate firewall apply{config}`; if that does not help, `outgate firewall status{config}` says \
                     what is in the way"
                ),
                false => {
                    "start outgate with `systemctl start outgate`; if it runs, `outgate status` says what is wrong"
                        .to_owned()
                }
            };
            let what = format!("nothing gets past outgate, and it does not answer ({silent})");
            (State::CutOff, format!("{guests} are cut off: {what}: {remedy}"))
        } else if !unreached.is_empty() {
            let urls =
                checks.iter().filter(|row| row.result == CheckResult::Failed).filter_map(|row| row.url.as_deref());
            let ask: Vec<String> =
                urls.map(|url| format!("`outgate explain{config} {}`", outgate::shell::quoted(url))).collect();
            (
                State::Unreached,
                format!("{guests} are guarded, and do not reach what they should ({unreached}): {}", ask.join(", ")),
            )
        } else if let Some(row) = checks.iter().find(|row| row.is_missing) {
            let why = row.reason.as_deref().unwrap_or_default();
            (State::NotChecked, format!("{guests}: {} could not be tried: {why}", row.family))
        } else {
            (State::Guarded, format!("{guests} are guarded"))
        };
        Report { interface: interface.to_owned(), state, summary, other_packets, checks }
    }

    /// An interface at which nothing was tried: `state` says whether anything could have been.
    pub(super) fn untried(interface: &str, state: State, why: &str) -> Report {
        let word = if state == State::NotApplicable { "not applicable" } else { "not checked" };
        let summary = format!("guests of {interface}: {word}: {why}");
        Report { interface: interface.to_owned(), state, summary, other_packets: 0, checks: Vec::new() }
    }

    /// Writes the table, and the sentence as the last line.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let row = |row: &Row| {
            let result = match (row.result, &row.reason) {
                (CheckResult::Ok, _) => "ok".to_owned(),
                (CheckResult::Leak, _) => "LEAK".to_owned(),
                (CheckResult::Failed, _) => "FAILED".to_owned(),
                (CheckResult::NotApplicable, reason) => {
                    format!("not applicable: {}", reason.as_deref().unwrap_or_default())
                }
            };
            [row.name(), row.expected.to_owned(), row.seen.clone(), result].map(|cell| printable(&cell)).to_vec()
        };
        if !self.checks.is_empty() {
            let rows: Vec<Vec<String>> = self.checks.iter().map(row).collect();
            table::write(out, &["CHECK", "EXPECTED", "SEEN", "RESULT"], &rows)?;
        }
        if self.other_packets > 0 {
            writeln!(out, "packets at the sentinel that no check sent: {}", self.other_packets)?;
        }
        writeln!(out, "{}", printable(&self.summary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::verify::addresses::Family;

    fn row(check: Check, result: CheckResult) -> Row {
        Row::new(Task { check, family: Family::V6, url: 0 }, None, "seen".to_owned(), result)
    }

    #[test]
    fn the_worst_result_decides_and_names_its_checks() {
        let of = |rows: Vec<Row>| Report::of("br0", rows, 0, false, "");
        let healthy = of(vec![row(Check::Tcp80, CheckResult::Ok), row(Check::Ping, CheckResult::NotApplicable)]);
        assert_eq!((healthy.state, healthy.summary.as_str()), (State::Guarded, "guests of br0 are guarded"));
        let dead = of(vec![row(Check::DnsListener, CheckResult::Failed), row(Check::Tcp80, CheckResult::Ok)]);
        assert_eq!(dead.state, State::CutOff);
        assert!(dead.summary.contains("systemctl start outgate"), "{}", dead.summary);
        let behind = Report::of("br0", vec![row(Check::DnsListener, CheckResult::Failed)], 0, true, " --config x");
        assert!(behind.summary.contains("`outgate firewall apply --config x`"), "{}", behind.summary);
        assert!(dead.summary.contains("cut off") && dead.summary.contains("(dns_listener ipv6)"), "{}", dead.summary);
        let open = of(vec![row(Check::DnsListener, CheckResult::Failed), row(Check::Tcp443, CheckResult::Leak)]);
        assert_eq!(open.state, State::Open);
        assert!(open.summary.contains("NOT guarded (tcp_443 ipv6)"), "{}", open.summary);
        let without = |why: Untried| {
            let task = Task { check: Check::Tcp80, family: Family::V4, url: 0 };
            of(vec![row(Check::Tcp80, CheckResult::Ok), Row::untried(task, None, &why)])
        };
        assert_eq!(without(Untried::NotApplicable("no IPv6".to_owned())).state, State::Guarded);
        let taken = without(Untried::Failed("all is taken".to_owned()));
        assert_eq!(taken.state, State::NotChecked, "what was not tried is not guarded");
        assert!(taken.summary.contains("ipv4 could not be tried: all is taken"), "{}", taken.summary);
        let url = Row { url: Some("https://a.test".to_owned()), ..row(Check::Url, CheckResult::Failed) };
        let unreached = of(vec![url]);
        assert_eq!(unreached.state, State::Unreached);
        assert!(unreached.summary.contains("`outgate explain https://a.test`"), "{}", unreached.summary);
    }
}
