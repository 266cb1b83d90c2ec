//! `outgate golem probe`: tries the URLs that a job would ask for, from a guest made only for that. `attempt` runs
//! in its namespace; this module combines its findings with the policy's decisions.

pub(in crate::cli) mod attempt;

use crate::cli::ask::{Daemon, write_json};
use crate::cli::credentials::Credentials;
use crate::cli::exec::{CommandSignals, Enclosure, Order, Requirements, Start, Streams, code_of, warn};
use crate::cli::explain::{self, Explained};
use crate::cli::{Exit, Failure, Outcome};
use attempt::{AT_ONCE, Ending, Found, PER_URL, Wanted};
use clap::Args;
use outgate::system::User;
use outgate::text::printable;
use serde::Serialize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Maximum number of URLs.
const MAX_URLS: usize = 64;
/// The longest URL, in bytes.
const MAX_URL: usize = 1024;
/// The longest report from inside, in bytes.
const MAX_REPORT: u64 = 1 << 20;
/// Time allowed for starting and reporting, in addition to the URLs.
const AROUND: Duration = Duration::from_secs(15);
/// The first argument that selects the role of the process inside.
const WORD: &str = "probe-inside";
/// The user as whom it runs there.
const USER: &str = "nobody";

/// Try URLs as a job would, from a temporary guest
///
/// Creates a guest as `outgate exec` does, with the manifest if there is one, and requests each URL from inside: the
/// name through outgate's DNS, the connection, TLS with this machine's certificates, a GET; for tcp://host:port only
/// the connection. Reports how far each one got, and what `outgate explain` says about those that were refused. Each
/// URL gets 10 s; at most 64 are tried. Exit code 0 if all pass, 1 if not. The requirements are those of `outgate
/// exec`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sudo outgate golem probe https://registry.golem.network tcp://github.com:22
  outgate golem probe --manifest manifest.json https://ipfs.io/ipfs/x
  outgate golem probe --json https://ipfs.io | jq -r '.[] | select(.outcome != \"passes\") | .url'")]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: Daemon,
    /// The manifest of the job: JSON, or base64 of it
    #[arg(short, long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    credentials: Credentials,
    /// A JSON array instead of text
    #[arg(long)]
    json: bool,
    /// What a job would request
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
}

/// The result for one URL.
#[derive(Debug, Serialize)]
struct UrlReport {
    url: String,
    /// `passes`, `refused` or `failed`.
    outcome: &'static str,
    /// The last stage reached: `dns`, `connect`, `tls` or `http`.
    stage: &'static str,
    milliseconds: u64,
    /// The status of the server's answer.
    status: Option<u16>,
    /// Outgate's reason.
    reason: Option<String>,
    /// What was observed.
    detail: Option<String>,
    /// The policy's advice beside the reason.
    advice: Option<String>,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    let Arguments { daemon, manifest, credentials, json, urls } = arguments;
    if urls.len() > MAX_URLS {
        return Err(Failure::Usage(format!("{} URLs are too many; one run tries at most {MAX_URLS}", urls.len())));
    }
    let wanted = urls.iter().map(|url| wanted(url)).collect::<Result<Vec<Wanted>, Failure>>()?;
    let name = format!("probe-{}", std::process::id());
    let ground = Requirements::find(daemon.config.file(), &name)?;
    let user = User::find(USER).map_err(|error| Failure::Failed(error.to_string()))?;
    let mut watch = CommandSignals::new()?;
    let order = Order { daemon, name: &name, address: None, manifest: manifest.as_deref(), credentials };
    let enclosure = Enclosure::make(&order)?;
    let program = Some(std::env::current_exe()?);
    let start = Start { nameserver: ground.nameserver, show: Vec::new(), user: Some(user), program };
    let found = try_all(&enclosure, &start, &wanted, &mut watch);
    // While it is a guest; if the policy cannot be evaluated, the findings stand alone.
    let explained = explain::as_guest(ground.settings, &name, urls).unwrap_or_default();
    enclosure.end().iter().for_each(|fault| warn(fault));
    let mut explained = explained.into_iter();
    let answers: Vec<UrlReport> = found?.into_iter().map(|found| answer(found, explained.next())).collect();
    let exit = if answers.iter().all(|answer| answer.outcome == "passes") { Exit::Good } else { Exit::No };
    if *json {
        write_json(&serde_json::to_value(&answers).map_err(io::Error::from)?, out)?;
    } else {
        answers.iter().try_for_each(|answer| write(answer, out))?;
    }
    Ok(exit)
}

/// Returns what to try for a URL.
pub(in crate::cli) fn wanted(url: &str) -> Result<Wanted, Failure> {
    if url.len() > MAX_URL {
        let start: String = url.chars().take(80).collect();
        return Err(Failure::Usage(format!("{start}…: longer than {MAX_URL} bytes, the limit for a URL")));
    }
    let (target, speaks) = explain::destination(url).map_err(|why| Failure::Usage(format!("{url}: {why}")))?;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/");
    let path = path.split('#').next().filter(|path| path.bytes().all(|byte| byte.is_ascii_graphic()));
    let path = path.map(|path| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") });
    Ok(Wanted::new(url, &target, speaks, path.unwrap_or_else(|| "/".to_owned())))
}

/// Tries the URLs from inside.
fn try_all(
    enclosure: &Enclosure,
    start: &Start,
    wanted: &[Wanted],
    watch: &mut CommandSignals,
) -> Result<Vec<Found>, Failure> {
    let order = serde_json::to_string(wanted).map_err(io::Error::from)?;
    let program: [OsString; 3] = [Start::PROGRAM.into(), WORD.into(), order.into()];
    let (stdout, writer) = io::pipe()?;
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let streams = Streams([File::open("/dev/null")?.into(), writer.into(), stderr]);
    let running = start.run(enclosure.namespace(), &program, streams)?;
    let reader = std::thread::spawn(move || {
        let mut report = Vec::new();
        stdout.take(MAX_REPORT).read_to_end(&mut report).map(|_| report)
    });
    let rounds = u32::try_from(wanted.len().div_ceil(AT_ONCE)).unwrap_or(u32::MAX);
    let deadline = Instant::now() + PER_URL.saturating_mul(rounds) + AROUND;
    let code = code_of(watch.wait(running, Some(deadline))?);
    let report = reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader ended early")))?;
    let found: Option<Vec<Found>> = serde_json::from_slice(&report).ok();
    let found = found.filter(|found: &Vec<Found>| code == 0 && found.len() == wanted.len());
    found.ok_or_else(|| {
        Failure::Failed(format!(
            "the process that tries the URLs ended with code {code} and without a \
                                                 report"
        ))
    })
}

/// Combines a finding with the policy's decision.
fn answer(found: Found, explained: Option<Explained>) -> UrlReport {
    let Found { url, ending, stage, milliseconds, status, reason, detail } = found;
    let refusing = explained.filter(|explained| !explained.passes);
    let outcome = match ending {
        Ending::Passes => "passes",
        Ending::Refused => "refused",
        Ending::Failed => "failed",
        // A name that does not exist and one that is refused look the same, and so do two resets.
        Ending::Unclear if refusing.is_some() => "refused",
        Ending::Unclear => "failed",
    };
    let refusing = refusing.filter(|_| outcome == "refused");
    let (by_policy, advice) = refusing.map(|explained| (explained.reason, explained.advice)).unzip();
    let reason = reason.or(by_policy);
    UrlReport { url, outcome, stage: stage.as_str(), milliseconds, status, reason, detail, advice: advice.flatten() }
}

fn write(answer: &UrlReport, out: &mut dyn Write) -> io::Result<()> {
    let UrlReport { url, outcome, stage, milliseconds, status, reason, detail, advice } = answer;
    write!(out, "{outcome:8} {}  {stage}, {milliseconds} ms", printable(url))?;
    let status = status.map(|status| format!("status {status}"));
    for part in [status.as_deref(), reason.as_deref(), detail.as_deref()].into_iter().flatten() {
        write!(out, ", {}", printable(part))?;
    }
    writeln!(out)?;
    if let Some(advice) = advice {
        writeln!(out, "         {}", printable(advice))?;
    }
    Ok(())
}

/// Tries URLs if this process was started for that; otherwise returns `None`.
pub(in crate::cli) fn take_over() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|word| word != Path::new(WORD).as_os_str()) {
        return None;
    }
    let order: Option<Vec<Wanted>> =
        arguments.next().and_then(|order| serde_json::from_slice(order.as_encoded_bytes()).ok());
    let report = order.map(|wanted| serde_json::to_writer(io::stdout().lock(), &attempt::all(&wanted)));
    let failure = match report {
        Some(Ok(())) => return Some(Exit::Good.into()),
        Some(Err(error)) => Failure::Output(error.into()),
        None => Failure::Usage(format!("{WORD} is for `outgate golem probe` alone")),
    };
    failure.report();
    Some(failure.exit().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golem::probe::attempt::{Speaks, Stage};

    #[test]
    fn a_url_is_tried_with_its_path_and_without_its_fragment() {
        let path = |url: &str| wanted(url).unwrap().path;
        assert_eq!(path("https://a.test/b/c?d=e#f"), "/b/c?d=e");
        assert_eq!(path("https://a.test?d"), "/?d");
        assert_eq!(path("a.test"), "/");
        assert_eq!(path("http://a.test/b c"), "/", "what would tear the request apart is left out");
        assert_eq!(wanted("tcp://a.test:22").unwrap().speaks, Speaks::Nothing);
        assert!(wanted("udp://a.test:53").is_err() && wanted("https://").is_err());
    }

    #[test]
    fn what_looks_the_same_from_inside_is_told_apart_by_the_policy() {
        let found = || Found::new("https://a.test", Ending::Unclear, Stage::Dns, "no address");
        let explained = |passes| Explained { passes, reason: "not_whitelisted".to_owned(), advice: None };
        assert_eq!(answer(found(), Some(explained(true))).outcome, "failed");
        let refused = answer(found(), Some(explained(false)));
        assert_eq!((refused.outcome, refused.reason.as_deref()), ("refused", Some("not_whitelisted")));
        assert_eq!(answer(found(), None).outcome, "failed");
    }
}
