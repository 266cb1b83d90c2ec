//! `outgate check`: checks what the operator wrote.

mod here;

use super::bridge;
use super::{Config, Exit, Failure, Outcome};
use clap::Args;
use outgate::config::{Copies, Copy, Settings};
use outgate::diagnostic::{Diagnostic, Severity};
use outgate::system::User;
use outgate::text::{counted, printable};
use outgate::trouble::TroubleCause;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Check the configuration and all whitelist files, without contacting the daemon
///
/// Prints every problem as file:line:col: message, then a summary. Exit code 0 if they are valid (warnings are
/// allowed), 1 if not. The result depends on the files alone, so a configuration can be checked on another machine or
/// under another path. `--here` also checks this machine: socket units, addresses, owners and modes, guests'
/// interfaces.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate check
  outgate check --config ./outgate.toml
  outgate check --here
  outgate check --json | jq '.problems[] | select(.severity == \"error\")'")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Also check what would keep `run` from starting on this machine
    #[arg(long)]
    here: bool,
    /// Only report what this user, as whom the process runs, cannot use
    #[arg(long, hide = true, value_name = "NAME")]
    needs_of: Option<String>,
    /// If it is valid, keep a copy for a start at which it is not; requires root
    #[arg(long)]
    keep: bool,
    /// Where the copy is kept [default: /var/lib/outgate-host for /etc/outgate/outgate.toml]
    #[arg(long, value_name = "DIR")]
    copies: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    sound: bool,
    configuration: Vec<PathBuf>,
    files: u64,
    rules: u64,
    errors: u64,
    warnings: u64,
    problems: Vec<Problem>,
}

/// One problem, for `--json`.
#[derive(Serialize)]
pub(super) struct Problem {
    severity: &'static str,
    file: String,
    line: u32,
    column: u32,
    message: String,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    if let Some(name) = &arguments.needs_of {
        let (settings, _) = Settings::load_leniently(arguments.config.file())?;
        let user = User::find(name).ok();
        return match here::unusable_as(&settings, user.as_ref()) {
            Some(why) => writeln!(out, "{why}").map(|()| Exit::No).map_err(Failure::from),
            None => Ok(Exit::Good),
        };
    }
    let mut configuration = Vec::new();
    let (mut problems, lists) = match Settings::load_leniently(arguments.config.file()) {
        Ok((settings, mut problems)) => {
            configuration.extend(settings.files().map(Path::to_owned));
            problems.extend(bridge::tls_problem(&settings));
            problems.extend(bridge::small_tables(&settings));
            problems.extend(bridge::outdated_rules(&settings));
            if arguments.here {
                problems.extend(here::problems(&settings));
            }
            (problems, Some(bridge::compile(&settings)))
        }
        Err(error) => (error.into_diagnostics(), None),
    };
    let (mut files, mut rules, mut more) = (0, 0, 0);
    if let Some(lists) = lists {
        (files, rules, more) = (lists.files.len() as u64, lists.rules, lists.more as u64);
        problems.extend(lists.diagnostics);
    }
    let errors = problems.iter().filter(|problem| problem.is_error()).count() as u64;
    let warnings = problems.len() as u64 - errors;
    let sound = errors == 0;
    if arguments.json {
        let problems = problems.iter().map(Problem::from).collect();
        let report = Report { sound, configuration, files, rules, errors, warnings, problems };
        writeln!(out, "{}", serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?)?;
    } else {
        if configuration.len() > 1 || arguments.config.is_of_environment() {
            let files: Vec<String> = configuration.iter().map(|file| file.display().to_string()).collect();
            writeln!(out, "configuration: {}", printable(&files.join(", ")))?;
        }
        for problem in &problems {
            writeln!(out, "{}", printable(&problem.to_string()))?;
        }
        if more > 0 {
            writeln!(out, "and {} more", counted(more, "problem"))?;
        }
        let summary =
            [counted(files, "file"), counted(rules, "rule"), counted(errors, "error"), counted(warnings, "warning")];
        writeln!(out, "{}", summary.join(", "))?;
    }
    if !sound {
        return Ok(Exit::No);
    }
    if arguments.keep {
        keep(arguments)?;
    }
    Ok(Exit::Good)
}

/// Returns whether a running daemon uses another configuration, or none.
fn is_unused(control: &Path) -> bool {
    let Ok(answer) = bridge::ask(control, bridge::Question::Status) else { return false };
    let troubles = answer.get("troubles").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut causes = troubles.iter().filter_map(|trouble| trouble.get("cause")?.as_str());
    causes.any(|cause| cause == TroubleCause::Configuration.as_str())
}

fn keep(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.file();
    let Some(copies) = Copies::of(config, arguments.copies.as_deref()) else {
        return Err(Failure::Usage("no copy of this file is kept; name a folder with --copies".to_owned()));
    };
    let (settings, _) = Settings::load(config)?;
    if settings.listen.control.as_deref().is_some_and(is_unused) {
        let why = "no copy is kept: the running daemon does not use this configuration; `outgate status` says why";
        return Err(Failure::Failed(why.to_owned()));
    }
    copies.keep(Copy::Worked, &settings).map_err(|error| Failure::Failed(format!("no copy is kept: {error}")))
}

impl From<&Diagnostic> for Problem {
    fn from(diagnostic: &Diagnostic) -> Problem {
        Problem {
            severity: if diagnostic.severity == Severity::Error { "error" } else { "warning" },
            file: diagnostic.file.display().to_string(),
            line: diagnostic.line,
            column: diagnostic.column,
            message: diagnostic.text(),
        }
    }
}
