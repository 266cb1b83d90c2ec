//! `outgate whitelist`: shows and edits the lists, by the same rules as `check`.

use super::{Config, Exit, Failure, Outcome, ask, bridge};
use bridge::{Edited, Question, UsedLines};
use clap::{Args, Subcommand};
use outgate::config::Settings;
use outgate::diagnostic::Diagnostic;
use outgate::text::{counted, printable};
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Show and edit the whitelist files
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate whitelist list
  outgate whitelist add ipfs.io
  outgate whitelist lint")]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(ListArguments),
    Add(AddArguments),
    Remove(RemoveArguments),
    Lint(LintArguments),
    Reload(ask::ReloadArguments),
}

/// Print every rule with its file and line
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate whitelist list
  outgate whitelist list --file local.rules
  outgate whitelist list --json | jq -r '.[] | select(.until != null) | .rule'")]
struct ListArguments {
    #[command(flatten)]
    config: Config,
    /// Only the rules of this file
    #[arg(short, long, value_name = "NAME")]
    file: Option<String>,
    /// Print a JSON array of objects instead of text
    #[arg(long)]
    json: bool,
}

/// Add rules to local.rules, unless `check` would refuse them
///
/// The whole list is checked with the new rule before anything is written. A running daemon notices the change by
/// itself.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate whitelist add ipfs.io
  outgate whitelist add 'tcp://github.com:22 until=2027-01-31 owner=ops note=\"mirror job\"'
  outgate whitelist add 'deny **.evil.test'")]
struct AddArguments {
    #[command(flatten)]
    edit: Edit,
}

/// Which rules, in the list of which configuration.
#[derive(Args, Debug)]
struct Edit {
    #[command(flatten)]
    config: Config,
    /// A rule as written in a file; quote it if it contains spaces or *
    #[arg(value_name = "RULE", required = true)]
    rules: Vec<String>,
}

/// Remove rules from the *.rules files
///
/// Give a rule as it is written there, without owner= and note=. Comments and order are kept.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate whitelist remove ipfs.io
  outgate whitelist remove 'deny **.evil.test'")]
struct RemoveArguments {
    #[command(flatten)]
    edit: Edit,
}

/// Warn about rules that are too broad, shadowed by others, expired or never used
///
/// The running daemon knows which rules were never used. If it cannot be reached, or uses another list, a note on
/// standard error says so, and there are no warnings about unused rules. Exit code 0 even if there are warnings; 1 if
/// the list is invalid.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate whitelist lint
  outgate whitelist lint --json | jq length")]
struct LintArguments {
    #[command(flatten)]
    daemon: ask::Daemon,
    /// Print a JSON array of objects instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    match &arguments.action {
        Action::List(arguments) => list(arguments, out),
        Action::Add(arguments) => add(&arguments.edit, out),
        Action::Remove(arguments) => remove(&arguments.edit, out),
        Action::Lint(arguments) => lint(arguments, out),
        Action::Reload(arguments) => ask::reload(arguments, out),
    }
}

/// One rule of `list --json`.
#[derive(Serialize)]
struct Row {
    file: String,
    line: u32,
    /// As written, without a trailing comment.
    rule: String,
    /// In canonical form, without owner and note.
    canonical: String,
    until: Option<String>,
    owner: Option<String>,
    note: Option<String>,
}

fn list(arguments: &ListArguments, out: &mut dyn Write) -> Outcome {
    let (settings, _) = Settings::load(arguments.config.file())?;
    let files = bridge::files(&settings);
    let rules = bridge::list(&files).map_err(Failure::Invalid)?;
    let mut rules = rules.filter(|rule| arguments.file.as_deref().is_none_or(|file| *rule.file == *file)).peekable();
    if let (Some(file), None) = (&arguments.file, rules.peek())
        && !files.iter().any(|found| found.name() == file)
    {
        return Err(Failure::Failed(format!(
            "the whitelist has no file {file:?}; `outgate whitelist list` shows those it has"
        )));
    }
    if !arguments.json {
        for rule in rules {
            writeln!(out, "{}:{}: {}", printable(&rule.file), rule.line, printable(&rule.source))?;
        }
        return Ok(Exit::Good);
    }
    // A million rules are written one by one, not collected.
    let mut before = "[\n";
    for rule in rules {
        let canonical = rule.canonical.unwrap_or_else(|| rule.source.clone());
        let row = Row {
            file: rule.file.to_string(),
            line: rule.line,
            rule: rule.source.into(),
            canonical: canonical.into(),
            until: rule.terms.until.map(|day| day.to_string()),
            owner: rule.owner.map(Into::into),
            note: rule.note.map(Into::into),
        };
        write!(out, "{before}  ")?;
        serde_json::to_writer(&mut *out, &row).map_err(io::Error::from)?;
        before = ",\n";
    }
    out.write_all(if before == "[\n" { b"[]\n" } else { b"\n]\n" })?;
    Ok(Exit::Good)
}

fn add(edit: &Edit, out: &mut dyn Write) -> Outcome {
    let (settings, _) = Settings::load(edit.config.file())?;
    for rule in &edit.rules {
        match bridge::add(dir(&settings)?, rule)? {
            Edited::Already(at) => writeln!(out, "already there: {at}: {}", printable(rule.trim()))?,
            Edited::Written(at, warnings) => {
                writeln!(out, "added: {at}: {}", printable(rule.trim()))?;
                let own =
                    warnings.iter().filter(|warning| warning.line == at.line && warning.file.ends_with(&*at.file));
                own.for_each(warn);
            }
        }
    }
    Ok(Exit::Good)
}

fn remove(edit: &Edit, out: &mut dyn Write) -> Outcome {
    let (settings, _) = Settings::load(edit.config.file())?;
    for rule in &edit.rules {
        for at in bridge::remove(dir(&settings)?, rule)? {
            writeln!(out, "removed: {at}: {}", printable(rule.trim()))?;
        }
    }
    Ok(Exit::Good)
}

/// The longest wait for the daemon to have the list in force that is in the files, as just after an edit.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

fn lint(arguments: &LintArguments, out: &mut dyn Write) -> Outcome {
    let (settings, _) = Settings::load(arguments.daemon.config.file())?;
    let until = Instant::now() + PATIENCE;
    let (files, used) = loop {
        let files = bridge::files(&settings);
        let answer = arguments.daemon.ask(Question::Used).map_err(|failure| failure.to_string());
        let is_answered = answer.is_ok();
        let used = answer.and_then(|answer| bridge::used(answer, &files));
        if used.is_ok() || !is_answered || Instant::now() >= until {
            break (files, used);
        }
        // An edit takes the daemon half a second.
        std::thread::sleep(PAUSE);
    };
    let findings = bridge::lint(&settings, &files, used.as_ref().ok()).map_err(Failure::Invalid)?;
    if let Some(caveat) = caveat(&used) {
        // If this fails, there is nowhere left to report it.
        let _ = writeln!(io::stderr(), "{}", printable(&caveat));
    }
    if arguments.json {
        let rows: Vec<super::check::Problem> = findings.iter().map(Into::into).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows).map_err(io::Error::from)?)?;
        return Ok(Exit::Good);
    }
    for finding in &findings {
        writeln!(out, "{}", printable(&finding.to_string()))?;
    }
    writeln!(out, "{}", counted(findings.len() as u64, "warning"))?;
    Ok(Exit::Good)
}

/// Returns what limits the daemon's information on rules that were never used.
fn caveat(used: &Result<UsedLines, String>) -> Option<String> {
    match used {
        Ok(used) => {
            let hours = used.since().duration_until(jiff::Timestamp::now()).as_hours();
            let since = used.since();
            (hours < 24).then(|| {
                format!(
                    "outgate: uses have been counted only since {since}; a rule that was not used since then may \
                         still be needed"
                )
            })
        }
        Err(why) => {
            let why = why.strip_prefix("outgate: ").unwrap_or(why);
            Some(format!("outgate: never-used rules were not checked: {why}"))
        }
    }
}

fn warn(warning: &Diagnostic) {
    // If this fails, there is nowhere left to report it.
    let _ = writeln!(io::stderr(), "{}", printable(&warning.to_string()));
}

fn dir(settings: &Settings) -> Result<&Path, Failure> {
    settings.whitelist_dir.as_deref().ok_or_else(|| {
        let dir = outgate::config::WHITELIST_DIR;
        Failure::Failed(format!(
            "the built-in list cannot be edited; create {dir}, or name a configuration with --config"
        ))
    })
}
