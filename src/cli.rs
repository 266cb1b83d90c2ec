//! The command line: from the arguments to an exit code. Each command has its own file; it receives its arguments
//! and an output, and returns an exit status. Commands use the rest of the program through `bridge`.

mod ask;
mod bridge;
mod check;
mod credentials;
mod exec;
mod explain;
mod files;
mod firewall;
mod golem;
mod guest;
mod interrupt;
mod listen;
mod lock;
mod man;
mod routes;
mod run;
mod setup;
mod systemd;
mod table;
mod verify;
mod whitelist;

use clap::{Args, CommandFactory, Parser, Subcommand};
use outgate::config::ConfigError;
use outgate::diagnostic::Diagnostic;
use outgate::text::printable;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

/// Parses the process's arguments, runs the command and returns the exit code: 0 success, 1 the answer is no or it
/// failed, 2 usage, 3 the daemon cannot be reached. Errors go to standard error.
pub(crate) fn main() -> ExitCode {
    if let Some(exit) = exec::inside::take_over().or_else(golem::probe::take_over) {
        return exit;
    }
    let parsed = match Program::try_parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Good };
            // If this fails, there is nowhere left to report it.
            let _ = error.print();
            return exit.into();
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let result = dispatch(parsed.command, &mut out).and_then(|exit| {
        out.flush()?;
        Ok(exit)
    });
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // Earlier results are printed first.
            let _ = out.flush();
            failure.report();
            failure.exit().into()
        }
    }
}

/// The exit status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Done, or the answer is yes.
    Good,
    /// The answer is no, or it failed.
    No,
    /// The arguments are not valid.
    Usage,
    /// The daemon cannot be reached.
    Unreachable,
    /// The firewall was applied, and something else cuts guests off.
    CutOff,
    /// A command was run, and this is its own exit code.
    Command(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Good => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::CutOff => 6,
            Exit::Command(code) => code,
        })
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It failed; one line that names the remedy.
    #[error("outgate: {0}")]
    Failed(String),
    /// Files of the operator's have errors; a line a problem.
    #[error("{}", .0.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Diagnostic>),
    /// The daemon refuses; a line a problem.
    #[error("outgate: the daemon refuses{}", .0.iter().map(|line| format!("\n{}", printable(line))).collect::<String>())]
    Refused(Vec<String>),
    /// The arguments do not fit together.
    #[error("outgate: {0}")]
    Usage(String),
    /// The daemon cannot be reached.
    #[error("outgate: {0}")]
    Unreachable(String),
    /// The answer could not be written.
    #[error("outgate: cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Invalid(error.into_diagnostics())
    }
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Failure::Failed(_) | Failure::Invalid(_) | Failure::Refused(_) | Failure::Output(_) => Exit::No,
            Failure::Usage(_) => Exit::Usage,
            Failure::Unreachable(_) => Exit::Unreachable,
        }
    }

    /// Returns the text without the program's name, for a sentence that has it already.
    fn unnamed(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("outgate: ").map(str::to_owned).unwrap_or(text)
    }

    fn report(&self) {
        // A reader such as head(1) that closes the pipe early is not an error worth reporting.
        if !matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            let _ = writeln!(io::stderr(), "{self}");
        }
    }
}

type Outcome = Result<Exit, Failure>;

/// Returns what a command that changes something prints with --json where it fails.
fn error_json(failure: &Failure, dry_run: bool) -> serde_json::Value {
    serde_json::json!({ "error": failure.unnamed(), "dry_run": dry_run })
}

/// Filters the outbound connections of a machine that runs untrusted guests.
///
/// Every connection that a guest opens to the outside passes through outgate, which lets through what the operator's
/// whitelist names, refuses the rest at once with the reason, and counts both. `outgate firewall` closes every other
/// way out.
#[derive(Parser)]
#[command(name = "outgate", version, disable_help_subcommand = true, max_term_width = HELP_WIDTH, after_help = AFTER_HELP)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

/// The longest line of a help text, in characters.
const HELP_WIDTH: usize = 100;

const AFTER_HELP: &str = "\
Examples:
  outgate run                               listen on 127.0.0.1:3128, with the built-in list
  outgate check                             are the configuration and the lists valid?
  outgate explain https://ipfs.io/ipfs/x    would this pass? if not, which rule would allow it?
  outgate whitelist add ipfs.io             allow it
  outgate denied                            what was refused, and which rule comes nearest
  outgate setup --guest-interface br0       guard the guests of a bridge, as a service
  outgate firewall apply                    close every other way out for guests
  outgate verify                            try all ways out, as a guest
  outgate exec --name job -- make test      run a command as a guest

Exit codes:
  0  success
  1  the answer is no, or the command failed
  2  the arguments are not valid
  3  the daemon cannot be reached
  6  the firewall is applied, but another firewall blocks guests";

#[derive(Subcommand)]
enum Command {
    Run(run::Arguments),
    Check(check::Arguments),
    Setup(setup::Arguments),
    Listen(listen::Arguments),
    Explain(explain::Arguments),
    Whitelist(whitelist::Arguments),
    Firewall(firewall::Arguments),
    Verify(verify::Arguments),
    Proof(verify::proof::Arguments),
    Status(ask::StatusArguments),
    Denied(ask::DeniedArguments),
    Flows(ask::FlowsArguments),
    Guest(guest::Arguments),
    Exec(exec::Arguments),
    Golem(golem::Arguments),
    Completions(man::CompletionsArguments),
    Man(man::ManArguments),
}

fn dispatch(command: Command, out: &mut dyn Write) -> Outcome {
    match command {
        Command::Run(arguments) => run::run(arguments),
        Command::Check(arguments) => check::run(&arguments, out),
        Command::Setup(arguments) => setup::run(&arguments, out),
        Command::Listen(arguments) => listen::run(&arguments, out),
        Command::Explain(arguments) => explain::run(&arguments, &mut io::stdin().lock(), out),
        Command::Whitelist(arguments) => whitelist::run(&arguments, out),
        Command::Firewall(arguments) => firewall::run(&arguments, out),
        Command::Verify(arguments) => verify::run(&arguments, out),
        Command::Proof(arguments) => verify::proof::run(&arguments, out),
        Command::Status(arguments) => ask::status(&arguments, out),
        Command::Denied(arguments) => ask::denied(&arguments, out),
        Command::Flows(arguments) => ask::flows(&arguments, out),
        Command::Guest(arguments) => guest::run(&arguments, out),
        Command::Exec(arguments) => exec::run(&arguments),
        Command::Golem(arguments) => golem::run(&arguments, out),
        Command::Completions(arguments) => man::completions(&arguments, Program::command(), out),
        Command::Man(arguments) => man::man(&arguments, Program::command(), out),
    }
}

/// Which configuration file.
#[derive(Args, Clone, Debug, Default)]
struct Config {
    /// Configuration file [default: $OUTGATE_CONFIG, or else /etc/outgate/outgate.toml if it exists]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Config {
    /// Returns the file that the command line names, or else the environment.
    fn file(&self) -> Option<&Path> {
        match &self.config {
            Some(file) => Some(file),
            None => file_of_environment(),
        }
    }

    /// Returns whether the environment names the file.
    fn is_of_environment(&self) -> bool {
        self.config.is_none() && file_of_environment().is_some()
    }
}

/// Returns the file that `OUTGATE_CONFIG` names; an empty variable names none.
fn file_of_environment() -> Option<&'static Path> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let read = || std::env::var_os("OUTGATE_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from);
    FILE.get_or_init(read).as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        fn visit(command: &mut clap::Command, path: &str, seen: &mut Vec<String>) {
            let help = command.render_long_help().to_string();
            let group = path == "outgate whitelist";
            assert!(help.contains("Examples:\n"), "{path}");
            assert!(group || help.contains(&format!("  {path}")), "{path}: {help}");
            seen.push(path.to_owned());
            for inner in command.get_subcommands_mut() {
                let path = format!("{path} {}", inner.get_name());
                visit(inner, &path, seen);
            }
        }
        let mut seen = Vec::new();
        visit(&mut Program::command(), "outgate", &mut seen);
        let commands = [
            "outgate",
            "outgate run",
            "outgate check",
            "outgate setup",
            "outgate listen",
            "outgate listen apply",
            "outgate explain",
            "outgate whitelist",
            "outgate whitelist list",
            "outgate whitelist add",
            "outgate whitelist remove",
            "outgate whitelist lint",
            "outgate whitelist reload",
            "outgate firewall",
            "outgate firewall print",
            "outgate firewall apply",
            "outgate firewall remove",
            "outgate firewall status",
            "outgate firewall watch",
            "outgate verify",
            "outgate proof",
            "outgate proof net",
            "outgate proof run",
            "outgate status",
            "outgate denied",
            "outgate flows",
            "outgate guest",
            "outgate guest add",
            "outgate guest list",
            "outgate guest remove",
            "outgate exec",
            "outgate golem",
            "outgate golem accepts",
            "outgate golem probe",
            "outgate golem sync",
            "outgate completions",
            "outgate man",
        ];
        assert_eq!(seen, commands);
    }

    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        let exits = [
            (Failure::Failed(String::new()), Exit::No),
            (Failure::Invalid(Vec::new()), Exit::No),
            (Failure::Usage(String::new()), Exit::Usage),
            (Failure::Unreachable(String::new()), Exit::Unreachable),
        ];
        for (failure, exit) in exits {
            assert_eq!(failure.exit(), exit, "{failure:?}");
        }
        // Within another failure the program is named once.
        let outer = Failure::Failed(format!("{}; put back", Failure::Failed("no".to_owned()).unnamed()));
        assert_eq!(outer.to_string(), "outgate: no; put back");
    }
}
