//! `outgate golem`: commands for providers on Golem Network.

pub(super) mod probe;
mod sync;

use super::credentials::{self, Credentials};
use super::{Config, Exit, Failure, Outcome, explain};
use clap::{Args, Subcommand};
use outgate::config::Settings;
use outgate::golem::manifest::{Access, Manifest};
use outgate::golem::negotiation::{Provider, Rejection, Rule};
use outgate::golem::rules;
use outgate::text::printable;
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;

/// Commands for providers on Golem Network
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate golem accepts --data-dir ~/.local/share/ya-provider manifest.json
  outgate golem probe --manifest manifest.json https://ipfs.io/ipfs/x
  outgate golem sync --dry-run")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Accepts(AcceptsArguments),
    Probe(probe::Arguments),
    Sync(sync::Arguments),
}

/// Check whether this provider would accept a job with this manifest, as yagna's negotiation does
///
/// Reads rules.json, domain_whitelist.json and cert-dir of the provider's data dir. If no rule accepts the manifest,
/// it prints yagna's reason. It warns about URLs that yagna accepts but outgate refuses: blocked ports, `deny` rules,
/// addresses that no guest reaches, UDP. Exit code 0 if the job would be accepted, 1 if not.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate golem accepts --data-dir ~/.local/share/ya-provider manifest.json
  outgate golem accepts --data-dir D manifest.b64 --signature sig.b64 --certificate req.cert.pem
  outgate golem accepts --data-dir D manifest.json --node-descriptor node.signed.json --requestor 0x1234…
  outgate golem accepts --json --data-dir D manifest.json | jq -r .text")]
struct AcceptsArguments {
    #[command(flatten)]
    config: Config,
    /// The provider's data dir
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    credentials: Credentials,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The manifest: JSON, or base64 of it
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
}

/// The answer for scripts.
#[derive(Serialize)]
struct Acceptance {
    accepted: bool,
    /// The rule that accepts it.
    rule: Option<&'static str>,
    /// Yagna's text, if none does.
    text: Option<String>,
    /// Why a certificate is not trusted.
    notes: Vec<String>,
    warnings: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    match &arguments.command {
        Command::Accepts(arguments) => accepts(arguments, out),
        Command::Probe(arguments) => probe::run(arguments, out),
        Command::Sync(arguments) => sync::run(arguments, out),
    }
}

fn accepts(arguments: &AcceptsArguments, out: &mut dyn Write) -> Outcome {
    if !arguments.data_dir.is_dir() {
        let dir = arguments.data_dir.display();
        return Err(Failure::Failed(format!(
            "{dir} is not a folder; --data-dir is the one in which ya-provider keeps {}",
            rules::RULES
        )));
    }
    let provider = Provider::of(&arguments.data_dir).map_err(|error| Failure::Failed(error.to_string()))?;
    let manifest = Manifest::read(&credentials::read(&arguments.manifest)?)
        .map_err(|error| Failure::Failed(format!("{}: {error}", arguments.manifest.display())))?;
    let now = jiff::Timestamp::now();
    let decision = provider.negotiate(&manifest, &arguments.credentials.read()?, now);
    let mut warnings: Vec<String> =
        manifest.dates(now).map(|why| format!("{why}; yagna does not check that")).into_iter().collect();
    if decision.is_ok() {
        let (settings, _) = Settings::load(arguments.config.file())?;
        warnings.extend(refused_later(&settings, &manifest)?);
    }
    let accepted = decision.is_ok();
    let (rule, rejection) = match decision {
        Ok(rule) => (Some(rule), None),
        Err(rejection) => (None, Some(rejection)),
    };
    if arguments.json {
        let (text, notes) = rejection.map(|Rejection { text, notes }| (text, notes)).unzip();
        let answer = Acceptance {
            accepted,
            rule: rule.as_ref().map(Rule::as_str),
            text,
            notes: notes.unwrap_or_default(),
            warnings,
        };
        writeln!(out, "{}", serde_json::to_string_pretty(&answer).map_err(io::Error::from)?)?;
    } else {
        write(out, rule.as_ref(), rejection, &warnings)?;
    }
    Ok(if accepted { Exit::Good } else { Exit::No })
}

fn write(
    out: &mut dyn Write,
    rule: Option<&Rule>,
    rejection: Option<Rejection>,
    warnings: &[String],
) -> io::Result<()> {
    match rule {
        Some(rule @ Rule::NotRequested) => writeln!(out, "accepted: {}", rule.as_str())?,
        Some(rule) => writeln!(out, "accepted by the {} rule", rule.as_str())?,
        None => {}
    }
    if let Some(Rejection { text, notes }) = rejection {
        writeln!(out, "{}", printable(&text))?;
        for note in notes {
            writeln!(out, "note: {}", printable(&note))?;
        }
    }
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {}", printable(warning)))
}

/// Returns what was agreed and would still be refused, even with a rule for everything that the manifest names.
fn refused_later(settings: &Settings, manifest: &Manifest) -> Result<Vec<String>, Failure> {
    let Access::Urls(urls) = &manifest.access else { return Ok(Vec::new()) };
    let refused = explain::refused_in_any_case(settings, urls.iter().map(|url| url.as_str()))?;
    Ok(refused.into_iter().map(|(url, why)| format!("{url} is accepted, but outgate refuses it: {why}")).collect())
}
