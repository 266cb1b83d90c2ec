//! What the commands need of the rest of the program, in one place: lists compiled into a policy,
//! the address floor without a resolver, edits, the daemon and its control socket.

use crate::config::{Diagnostic, Settings, Severity};
use crate::policy::rule::{Subject, Terms};
use crate::policy::{AddressTerms, BuildError, Builder, FileId, Policy};
use crate::resolve::{FloorSettings, floor};
use crate::whitelist::diagnostic as lists;
use crate::whitelist::{self, Files, Listed, Loaded, Report, Sink};
use jiff::civil::Date;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The lists as the daemon would use them.
pub(super) struct Lists {
    /// The files themselves.
    pub(super) files: Files,
    /// How many rules they hold.
    pub(super) rules: u64,
    /// What is wrong with them, or with the configuration that refers to them.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Findings beyond those.
    pub(super) more: usize,
    /// The policy; `None` where there is an error.
    pub(super) policy: Option<Policy>,
}

/// Today, UTC: the day by which `until=` goes.
pub(super) fn today() -> Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}

/// The files that `settings` speak of, or the compiled-in ones.
pub(super) fn files(settings: &Settings) -> Files {
    settings.whitelist_dir.as_deref().map_or_else(Files::shipped, Files::read)
}

/// Reads and compiles the lists and lays the configuration over them.
pub(super) fn compile(settings: &Settings) -> Lists {
    let files = files(settings);
    let mut lists = Lists { files, rules: 0, diagnostics: Vec::new(), more: 0, policy: None };
    let (compiling, loaded) = match whitelist::compile(&lists.files, today(), Compiling(Builder::new(today()))) {
        Ok(compiled) => compiled,
        Err(report) => {
            lists.more = report.more;
            lists.diagnostics = of_report(report);
            return lists;
        }
    };
    let Loaded { warnings, kinds, .. } = loaded;
    lists.rules = kinds.total();
    lists.diagnostics = of_list(warnings, settings.whitelist_dir.as_deref());
    lists.diagnostics.extend(missing_files(settings, &lists.files));
    let whole = |message: String| {
        let culprit = settings.whitelist_dir.clone().or_else(|| settings.path.clone()).unwrap_or_default();
        Diagnostic::whole_file(Severity::Error, &culprit, message)
    };
    match compiling.0.build() {
        Err(error) => lists.diagnostics.push(whole(error.to_string())),
        Ok(_) if lists.diagnostics.iter().any(Diagnostic::is_error) => {}
        Ok(rules) => match Policy::new(Arc::new(rules), settings.policy.clone()) {
            Ok(policy) => lists.policy = Some(policy),
            Err(error) => lists.diagnostics.push(whole(error.to_string())),
        },
    }
    lists
}

/// Every file that a guest names and the list does not have, at the place where the name stands.
fn missing_files(settings: &Settings, files: &Files) -> Vec<Diagnostic> {
    let present: HashSet<&str> = files.iter().map(|file| file.name()).collect();
    let path = settings.path.clone().unwrap_or_default();
    let named = settings.policy.guests.iter().flat_map(|guest| guest.files.iter().flatten().map(move |file| (guest, file)));
    let missing = named.filter(|(_, file)| !present.contains(file.as_str()));
    missing
        .map(|(guest, file)| {
            let (line, column) = settings.place_of_word(file);
            let message = format!("guest {}: the whitelist dir has no file {file}; make it, or leave it out here", guest.name);
            Diagnostic { severity: Severity::Error, file: path.clone(), line, column, message }
        })
        .collect()
}

/// Takes rules in for a [`Builder`].
struct Compiling(Builder);

impl Sink for Compiling {
    type File = FileId;
    type Error = BuildError;

    fn file(&mut self, name: &str) -> FileId {
        self.0.file(name)
    }

    fn rule(&mut self, file: FileId, line: u32, subject: &Subject<'_>, terms: &Terms) -> Result<(), BuildError> {
        self.0.rule(file, line, subject, terms)
    }
}

/// Why `address` is out of reach for a flow with these terms, as far as can be known without asking
/// the kernel which addresses are this machine's.
pub(super) fn in_floor(settings: &FloorSettings, address: SocketAddr, terms: &AddressTerms) -> Option<String> {
    let ip = address.ip();
    if settings.listeners.contains(&address) {
        return Some(format!("{address} is where outgate itself listens, and nothing permits that"));
    }
    if let Some(to) = &terms.to {
        let within = to.iter().any(|net| net.contains(&ip));
        return if within { None } else { Some(format!("{ip} is not in the rule's to=")) };
    }
    if settings.permitted.iter().any(|net| net.contains(&ip)) {
        return None;
    }
    let remedy = "if guests may reach it, put it into [dial].permit_addresses";
    if let Some((range, document)) = floor::special_purpose(ip) {
        return Some(format!("{ip} is in the address floor: {range} ({document}); {remedy}"));
    }
    let guest = settings.guests.iter().any(|net| net.contains(&ip));
    guest.then(|| format!("{ip} is another guest's; {remedy}"))
}

/// Every rule of the lists, in order.
pub(super) fn list(settings: &Settings) -> Result<impl Iterator<Item = Listed>, Vec<Diagnostic>> {
    whitelist::list(&files(settings), today()).map_err(of_report)
}

/// A report's findings in the words of the command line.
fn of_report(report: Report) -> Vec<Diagnostic> {
    of_list(report.diagnostics, report.dir.as_deref())
}

fn of_list(findings: Vec<lists::Diagnostic>, dir: Option<&Path>) -> Vec<Diagnostic> {
    let convert = |finding: lists::Diagnostic| {
        let file = dir.map_or_else(|| PathBuf::from(&*finding.file), |dir| dir.join(&*finding.file));
        let severity = match finding.severity {
            lists::Severity::Error => Severity::Error,
            lists::Severity::Warning => Severity::Warning,
        };
        let remedy = if finding.remedy.is_empty() { String::new() } else { format!("; {}", finding.remedy) };
        let message = format!("{}{remedy}", finding.message);
        Diagnostic { severity, file, line: finding.line, column: finding.column, message }
    };
    findings.into_iter().map(convert).collect()
}
