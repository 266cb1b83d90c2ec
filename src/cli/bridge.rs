//! The commands' interface to the rest of the program, in one place: lists compiled into a policy, the address
//! floor without a resolver, edits, the daemon and its control socket.

use super::Failure;
use outgate::config::Settings;
pub(super) use outgate::config::is_guest_name;
use outgate::control::{self, ClientError};
use outgate::daemon::{self, Basis};
use outgate::diagnostic::{Diagnostic, Severity};
pub(super) use outgate::firewall::{fits, tool};
use outgate::golem::rules::Outbound;
use outgate::policy::{AddressTerms, Builder, Location, Policy};
pub(super) use outgate::registered_guests::Application;
use outgate::registered_guests::{KeepError, Registry};
use outgate::resolve::{FloorSettings, floor};
use outgate::system::Confine;
use outgate::text::printable;
use outgate::tls;
pub(super) use outgate::whitelist::UsedLines;
use outgate::whitelist::edit::{self, Added, EditError};
use outgate::whitelist::lint::{self, Usage};
use outgate::whitelist::{self, Files, Listed, Loaded, Report, today};
use outgate_golem_sync::{self as sync, SyncError};
use serde_json::Value;
use std::collections::HashSet;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// The lists as the daemon would use them.
pub(super) struct Lists {
    /// The files themselves.
    pub(super) files: Files,
    /// How many rules they contain.
    pub(super) rules: u64,
    /// What is wrong with them, or with the configuration that refers to them.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Findings beyond those.
    pub(super) more: usize,
    /// The policy; `None` if there is an error.
    pub(super) policy: Option<Policy>,
}

/// Returns the files that `settings` refer to, or the compiled-in ones.
pub(super) fn files(settings: &Settings) -> Files {
    Files::of(settings.whitelist_dir.as_deref(), settings.data_dir())
}

/// Returns the settings with names, addresses and interfaces of the guests that were registered at run time: a
/// firewall needs nothing else, and must not wait for a provider's files.
pub(super) fn with_pins(settings: &Settings) -> Result<Settings, Failure> {
    let registry = registered(settings).map_err(|error| Failure::Failed(error.to_string()))?;
    registry.over(settings, None).map_err(Failure::Failed)
}

/// Like [`with_pins`], with the modes and agreements of these guests, for read-only commands. If this user has no
/// permission to read the guests, prints a warning.
pub(super) fn with_known(settings: Settings) -> Result<Settings, Failure> {
    let registry = match registered(&settings) {
        Ok(registry) => registry,
        Err(error) if error.is_permission() => {
            let error = printable(&error.to_string());
            // If this fails, there is nowhere left to report it.
            let _ = writeln!(io::stderr(), "outgate: warning: {error}; the answer does not take them into account");
            return Ok(settings);
        }
        Err(error) => return Err(Failure::Failed(error.to_string())),
    };
    // With broken rules the lists cannot be compiled either, and that error is reported.
    let rules = settings.data_dir().and_then(|dir| Outbound::of(dir).ok());
    registry.over(&settings, rules.as_ref()).map_err(Failure::Failed)
}

/// Returns the registered guests that fit the configuration, as the daemon restores them at its start.
fn registered(settings: &Settings) -> Result<Registry, KeepError> {
    let mut registry = Registry::restore(settings.listen.control.as_deref())?;
    registry.yield_to(settings);
    Ok(registry)
}

/// Reads and compiles the lists and applies the configuration to them.
pub(super) fn compile(settings: &Settings) -> Lists {
    let files = files(settings);
    let mut lists = Lists { files, rules: 0, diagnostics: Vec::new(), more: 0, policy: None };
    let (rules, loaded) = match whitelist::build(&lists.files, today()) {
        Ok(built) => built,
        Err(report) => {
            lists.more = report.more;
            lists.diagnostics = of_report(report);
            return lists;
        }
    };
    let Loaded { warnings, outbound, .. } = loaded;
    lists.rules = loaded.rules;
    lists.diagnostics = of_list(warnings, settings.whitelist_dir.as_deref());
    lists.diagnostics.extend(missing_files(settings, &lists.files));
    if lists.diagnostics.iter().any(Diagnostic::is_error) {
        return lists;
    }
    match Policy::new(Arc::new(rules), settings.policy_with(outbound.as_ref())) {
        Ok(policy) => lists.policy = Some(policy),
        Err(error) => {
            let culprit = settings.whitelist_dir.clone().or_else(|| settings.path.clone()).unwrap_or_default();
            lists.diagnostics.push(Diagnostic::whole_file(Severity::Error, &culprit, error.to_string()));
        }
    }
    lists
}

/// Returns what is wrong with certificate and key.
pub(super) fn tls_problem(settings: &Settings) -> Option<Diagnostic> {
    let tls = settings.tls.as_ref()?;
    let error = tls::load(tls).err()?;
    Some(settings.problem_at_key("certificate", Severity::Error, format!("[tls]: {error}")))
}

/// Returns the kernel tables that are too small for the guests.
pub(super) fn small_tables(settings: &Settings) -> Vec<Diagnostic> {
    let warning = |message| settings.problem_at_key("guest_interfaces", Severity::Warning, message);
    outgate::firewall::small_tables(&settings.plan_input()).into_iter().map(warning).collect()
}

/// Returns which limits in the kernel's rules are outdated.
pub(super) fn outdated_rules(settings: &Settings) -> Option<Diagnostic> {
    let message = settings.enforced_limits()?.complaint()?;
    Some(settings.problem_at_key("guest_interfaces", Severity::Warning, message))
}

/// Returns every file that a guest names and the list does not have, at the place of the name.
fn missing_files(settings: &Settings, files: &Files) -> Vec<Diagnostic> {
    let present: HashSet<&str> = files.iter().map(|file| file.name()).collect();
    let named =
        settings.policy.guests.iter().flat_map(|guest| guest.files.iter().flatten().map(move |file| (guest, file)));
    let missing = named.filter(|(_, file)| !present.contains(file.as_str()));
    missing
        .map(|(guest, file)| {
            let message =
                format!("guest {}: the whitelist dir has no file {file}; create it, or leave it out here", guest.name);
            settings.problem_at_word(file, Severity::Error, message)
        })
        .collect()
}

/// Returns why `address` is out of reach for a flow with these terms, as far as can be determined without asking
/// the kernel for this machine's addresses.
pub(super) fn in_floor(settings: &FloorSettings, address: SocketAddr, terms: &AddressTerms) -> Option<String> {
    let ip = address.ip();
    if settings.listeners.contains(&address) {
        return Some(format!("outgate itself listens on {address}, and no setting permits that"));
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
    guest.then(|| format!("{ip} is an address of another guest; {remedy}"))
}

/// Returns every rule of the files, in order.
pub(super) fn list(files: &Files) -> Result<impl Iterator<Item = Listed>, Vec<Diagnostic>> {
    whitelist::list(files, today()).map_err(of_report)
}

/// The result of adding a rule.
pub(super) enum Edited {
    /// It was written; the warnings are the whole list's.
    Written(Location, Vec<Diagnostic>),
    /// It was already there.
    Already(Location),
}

/// Adds a rule to `local.rules` of `dir`.
pub(super) fn add(dir: &Path, rule: &str) -> Result<Edited, Failure> {
    match edit::add(dir, rule, today(), Builder::new(today())) {
        Ok(Added::Written { at, warnings }) => Ok(Edited::Written(at, of_list(warnings, Some(dir)))),
        Ok(Added::Already(at)) => Ok(Edited::Already(at)),
        Err(error) => Err(failed_edit(error)),
    }
}

/// Removes a rule from the files of `dir`; returns its places.
pub(super) fn remove(dir: &Path, rule: &str) -> Result<Vec<Location>, Failure> {
    edit::remove(dir, rule, today()).map_err(failed_edit)
}

/// Writes a file of ours into `dir`, or only checks whether it could be, if the whole list is valid with it;
/// returns the warnings.
pub(super) fn put(dir: &Path, file: edit::Whole<'_>, write: bool) -> Result<Vec<Diagnostic>, Failure> {
    let warnings = edit::put(dir, file, write, today(), Builder::new(today())).map_err(failed_edit)?;
    Ok(of_list(warnings, Some(dir)))
}

/// Returns the entries of published lists, if they are valid.
pub(super) fn published(gathered: &sync::Gathered) -> Result<Vec<sync::merge::Entry>, SyncError> {
    sync::merge::entries(gathered, today())
}

/// Converts a failure with a published list to one of the command line.
pub(super) fn failed_sync(error: SyncError) -> Failure {
    match error {
        SyncError::Invalid(report) => {
            let mut problems = of_report(report);
            // The maker of an archive chooses the names in it.
            problems.iter_mut().for_each(|problem| problem.file = printable(&problem.file.to_string_lossy()).into());
            Failure::Invalid(problems)
        }
        error => Failure::Failed(printable(&error.to_string())),
    }
}

fn failed_edit(error: EditError) -> Failure {
    match error {
        EditError::Invalid(report) => Failure::Invalid(of_report(report)),
        error => Failure::Failed(error.to_string()),
    }
}

/// Returns what the daemon's answer reports on the use of the rules in `files`; otherwise, why it reports nothing.
pub(super) fn used(answer: Value, files: &Files) -> Result<UsedLines, String> {
    let used: UsedLines = serde_json::from_value(answer)
        .map_err(|_| "the daemon's answer cannot be read; does it run another version?")?;
    if !used.are_of(files.fingerprint()) {
        return Err("the daemon has another list in force; `outgate whitelist reload` says why".to_owned());
    }
    Ok(used)
}

/// Returns the lint warnings; those about unused rules only if their use is known.
pub(super) fn lint(
    settings: &Settings,
    files: &Files,
    used: Option<&UsedLines>,
) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    let apart: Vec<String> =
        settings.policy.guests.iter().flat_map(|guest| guest.files.iter().flatten().cloned()).collect();
    let found = lint::lint(files, today(), Usage { used, apart: &apart });
    found.map(|found| of_list(found, settings.whitelist_dir.as_deref())).map_err(of_report)
}

/// A question to the daemon.
#[derive(Clone, Copy, Debug)]
pub(super) enum Question<'a> {
    /// The totals.
    Status,
    /// At most so many of the destinations refused most.
    Denied(usize),
    /// Maximum number of rows of what was allowed and failed.
    Failed(usize),
    /// At most so many of the open flows.
    Flows(usize),
    /// Which rules were used.
    Used,
    /// Read configuration and lists again.
    Reload,
    /// The guests.
    Guests,
    /// Register a guest.
    Register(&'a Application),
    /// End the registration of the guest of this name.
    Remove(&'a str),
}

/// Sends a question to the daemon behind `socket`.
pub(super) fn ask(socket: &Path, question: Question<'_>) -> Result<Value, Failure> {
    let client = control::client(socket);
    let answer = match question {
        Question::Status => client.get("/status"),
        Question::Denied(limit) => client.get(&format!("/denied?limit={limit}")),
        Question::Failed(limit) => client.get(&format!("/failed?limit={limit}")),
        Question::Flows(limit) => client.get(&format!("/flows?limit={limit}")),
        Question::Used => client.get("/used"),
        Question::Reload => client.post("/reload", ""),
        Question::Guests => client.get("/guests"),
        Question::Register(application) => {
            client.post("/guests", &serde_json::to_string(application).map_err(io::Error::from)?)
        }
        Question::Remove(name) => client.delete(&format!("/guests/{name}")),
    };
    match answer.map_err(unanswered)? {
        (200, answer) => Ok(answer),
        (_, refusal) => Err(Failure::Refused(problems_of(&refusal))),
    }
}

fn unanswered(error: ClientError) -> Failure {
    let remedy = match &error {
        ClientError::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "join the group `outgate`, or run this as root"
        }
        ClientError::Unreachable { .. } => {
            "start it with `systemctl start outgate` or `outgate run`, or name its socket with --socket"
        }
        ClientError::Broken { .. } => "look at its log, `journalctl -u outgate`",
        ClientError::Unreadable(_) => return Failure::Failed(error.to_string()),
    };
    Failure::Unreachable(format!("{error}; {remedy}"))
}

/// Returns the lines of a refusal: `{"error": line}`, `{"problems": [lines]}` or the like.
fn problems_of(refusal: &Value) -> Vec<String> {
    match refusal {
        Value::String(line) => vec![line.clone()],
        Value::Array(items) => items.iter().flat_map(problems_of).collect(),
        Value::Object(fields) => fields.values().flat_map(problems_of).collect(),
        _ => Vec::new(),
    }
}

/// Runs the daemon until it receives a signal to stop.
pub(super) fn run_daemon(basis: Basis, confine: &Confine) -> Result<(), String> {
    daemon::run(basis, confine).map_err(|error| error.to_string())
}

/// Returns a report's findings, each with the file's path.
fn of_report(report: Report) -> Vec<Diagnostic> {
    of_list(report.diagnostics, report.dir.as_deref())
}

fn of_list(findings: Vec<Diagnostic>, dir: Option<&Path>) -> Vec<Diagnostic> {
    let within = |finding: Diagnostic| match dir {
        Some(dir) => finding.within(dir),
        None => finding,
    };
    findings.into_iter().map(within).collect()
}
