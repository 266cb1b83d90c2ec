//! `outgate explain`: would this pass? Evaluates the daemon's policy over the current files, without the daemon
//! and without DNS.

mod url;

use super::{Config, Exit, Failure, Outcome, bridge};
use clap::Args;
use outgate::config::{CONFIG_FILE, Settings, nearest};
use outgate::identify::Claim;
use outgate::policy::{AddressTerms, Identity, Location, Mode, Policy, Refusal, Unknown};
use outgate::reason::{Reason, Verdict};
use outgate::resolve::FloorSettings;
use outgate::shell::{in_quotes, quoted};
use outgate::source::Source;
use outgate::target::{Host, Protocol, Target, Transport};
use outgate::text::printable;
use outgate::whitelist::Files;
use serde::Serialize;
use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use url::{UrlError, UrlRequest};

/// How many lines of a JSON entry are shown after its first.
const ENTRY_LINES: usize = 4;
/// The longest line that `--stdin` accepts, in bytes.
const MAX_LINE: u64 = 16 << 10;

/// Would this pass? Shows the rule that decides, or the rule to add
///
/// Accepts URLs as they are pasted (path, query and fragment are ignored), hosts (as https) and host:port (any
/// protocol): https://ipfs.io/ipfs/x, wss://host, tcp://host:22, h2c://host:50051 (HTTP/2 in clear), udp://host:123,
/// quic://host, ipfs.io, ipfs.io:8443. Reads the files as they are now. It needs neither daemon nor DNS, so the
/// addresses behind a name are not checked. Exit code 0 if all pass, 1 if any is refused.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate explain https://ipfs.io/ipfs/x
  outgate explain --guest vm-7 tcp://github.com:22 registry.npmjs.org
  outgate explain --json https://evil.test | jq -r '.[].suggestion'
  outgate explain --stdin < urls.txt | jq -r 'select(.verdict == \"denied\") | .url'")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
    /// Decide for this guest: its name, or an address [default: a source that is not a declared guest]
    #[arg(short, long, value_name = "NAME|ADDR")]
    guest: Option<String>,
    /// Print a JSON array of objects instead of text
    #[arg(long)]
    json: bool,
    /// Read URLs from standard input, one per line; answer each line, even a blank one, with one JSON object per line
    #[arg(long, conflicts_with = "urls")]
    stdin: bool,
    /// What a guest would request
    #[arg(value_name = "URL", required_unless_present = "stdin")]
    urls: Vec<String>,
}

/// The decision on one URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct UrlDecision {
    /// As given.
    url: String,
    verdict: &'static str,
    reason: &'static str,
    /// `file:line` of the rule that decided.
    rule: Option<String>,
    /// That line.
    rule_text: Option<String>,
    /// `file:line` of the nearest rule.
    near: Option<String>,
    /// Why it does not match, or what else to do.
    advice: Option<String>,
    /// The line that would allow it.
    suggestion: Option<String>,
    #[serde(skip)]
    passes: bool,
}

pub(super) fn run(arguments: &Arguments, input: &mut dyn BufRead, out: &mut dyn Write) -> Outcome {
    let (settings, _) = Settings::load(arguments.config.file())?;
    let settings = bridge::with_known(settings)?;
    let source = source(arguments.guest.as_deref(), &settings)?;
    let mut judge = Judge::new(settings, source)?;
    if arguments.stdin {
        return stream(&mut judge, input, out);
    }
    let answers: Vec<UrlDecision> = arguments.urls.iter().map(|url| judge.answer(url)).collect();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&answers).map_err(io::Error::from)?)?;
    } else {
        let config = arguments.config.file();
        answers.iter().try_for_each(|answer| judge.write(answer, config, out))?;
    }
    Ok(exit(answers.iter().all(|answer| answer.passes)))
}

/// Returns which of these URLs are refused whatever the list allows, and why: blocked ports, `deny` rules,
/// addresses that no guest reaches, hosts that cannot be distinguished from others, and UDP, which has no
/// listener.
pub(super) fn refused_in_any_case<'u>(
    settings: &Settings,
    urls: impl Iterator<Item = &'u str>,
) -> Result<Vec<(&'u str, String)>, Failure> {
    let mut settings = settings.clone();
    settings.policy.mode = Mode::All;
    settings.golem = None;
    settings.policy.guests.clear();
    settings.policy.unknown = Unknown::Shared;
    let source = source(None, &settings)?;
    let mut judge = Judge::new(settings, source.clone())?;
    let refused = |url: &'u str| {
        let asked = UrlRequest::parse(url).ok();
        if asked.as_ref().is_some_and(|asked| asked.claim(&source).transport == Transport::Udp) {
            return Some((url, "only DNS has a listener for UDP".to_owned()));
        }
        let answer = judge.answer(url);
        let rule = answer.rule.map(|rule| format!(" by {rule}")).unwrap_or_default();
        let port = asked.map(|asked| asked.target.port);
        let blocked = port.filter(|port| judge.settings.policy.blocked_ports.contains(port));
        let blocked = blocked.map(|port| format!("{port} is in [dial].blocked_ports, so a rule must name it"));
        let advice = answer.advice.or(blocked).map(|advice| format!("; {advice}")).unwrap_or_default();
        (!answer.passes).then(|| (url, format!("{}{rule}{advice}", answer.reason)))
    };
    Ok(urls.filter_map(refused).collect())
}

/// The policy's decision on a URL, for callers with other output.
#[derive(Clone, Debug)]
pub(super) struct Explained {
    /// Whether it passes.
    pub(super) passes: bool,
    /// The reason, if not.
    pub(super) reason: String,
    /// The rule, and what to do.
    pub(super) advice: Option<String>,
}

/// Decides each of these URLs for the guest of this name, which may be one registered at run time.
pub(super) fn as_guest(settings: Settings, guest: &str, urls: &[String]) -> Result<Vec<Explained>, Failure> {
    let settings = bridge::with_known(settings)?;
    let source = source(Some(guest), &settings)?;
    let mut judge = Judge::new(settings, source)?;
    let explained = |url: &String| {
        let UrlDecision { passes, reason, rule, near, advice, suggestion, .. } = judge.answer(url);
        let at = rule.or(near).map(|rule| format!("{rule}: ")).unwrap_or_default();
        let words = advice.or(suggestion.map(|rule| format!("`{rule}` would allow it")));
        let advice = words.map(|words| format!("{at}{words}"));
        Explained { passes, reason: reason.to_owned(), advice }
    };
    Ok(urls.iter().map(explained).collect())
}

/// Returns where a URL leads over TCP, and the protocol used there.
pub(super) fn destination(url: &str) -> Result<(Target, Option<Protocol>), String> {
    let UrlRequest { target, transport, spoken } = UrlRequest::parse(url).map_err(|error| error.to_string())?;
    match transport {
        Transport::Tcp => Ok((target, spoken)),
        Transport::Udp | Transport::Quic => Err("only DNS has a listener for UDP".to_owned()),
    }
}

fn exit(all_pass: bool) -> Exit {
    if all_pass { Exit::Good } else { Exit::No }
}

/// Answers line by line, so that the caller may wait for each answer.
fn stream(judge: &mut Judge, input: &mut dyn BufRead, out: &mut dyn Write) -> Outcome {
    let mut all_pass = true;
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut *input).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let cut = !line.ends_with(b"\n") && line.len() as u64 == MAX_LINE;
        let text = String::from_utf8_lossy(&line);
        let answer = match text.trim() {
            url if cut => {
                skip_line(input)?;
                malformed(&url.chars().take(80).collect::<String>(), &UrlError::TooLong)
            }
            url => judge.answer(url),
        };
        all_pass &= answer.passes;
        serde_json::to_writer(&mut *out, &answer).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(exit(all_pass))
}

fn skip_line(input: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let buffered = input.fill_buf()?;
        let (length, done) = match buffered.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffered.len(), buffered.is_empty()),
        };
        input.consume(length);
        if done {
            return Ok(());
        }
    }
}

/// Returns the source for `--guest`. Without it, an address that no operator declares.
fn source(guest: Option<&str>, settings: &Settings) -> Result<Source, Failure> {
    let nowhere = Source::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let Some(wanted) = guest else { return Ok(nowhere) };
    let guests = &settings.policy.guests;
    if guests.iter().any(|guest| guest.name == wanted) {
        // By name, because a guest that is identified by its certificate may have no address.
        return Ok(Source::certified(nowhere.address, wanted));
    }
    if let Ok(address) = wanted.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let hint = match nearest(wanted, guests.iter().map(|guest| guest.name.as_str())) {
        Some(near) => format!("did you mean {near}?"),
        None if guests.is_empty() => "the configuration declares no guest; write an address".to_owned(),
        None => format!("the declared guests are {}", names(settings)),
    };
    Err(Failure::Usage(format!("no guest is called {wanted:?}: {hint}")))
}

/// Returns the declared guests, for a message.
fn names(settings: &Settings) -> String {
    let guests = &settings.policy.guests;
    let mut names: Vec<&str> = guests.iter().take(10).map(|guest| guest.name.as_str()).collect();
    if guests.len() > names.len() {
        names.push("…");
    }
    names.join(", ")
}

fn malformed(url: &str, error: &UrlError) -> UrlDecision {
    UrlDecision {
        url: url.to_owned(),
        verdict: Verdict::Denied.as_str(),
        reason: Reason::Malformed.as_str(),
        rule: None,
        rule_text: None,
        near: None,
        advice: Some(error.to_string()),
        suggestion: None,
        passes: false,
    }
}

/// Everything that the answers depend on.
struct Judge {
    policy: Policy,
    settings: Settings,
    floor: FloorSettings,
    source: Source,
    files: Files,
    /// Offsets of a file's lines, once they were needed.
    starts: HashMap<String, Vec<usize>>,
}

impl Judge {
    /// Uses the lists as they are now; returns their errors if they are not valid.
    fn new(settings: Settings, source: Source) -> Result<Judge, Failure> {
        let lists = bridge::compile(&settings);
        let Some(policy) = lists.policy else {
            return Err(Failure::Invalid(lists.diagnostics.into_iter().filter(|found| found.is_error()).collect()));
        };
        let (floor, files) = (settings.floor(), lists.files);
        Ok(Judge { policy, settings, floor, source, files, starts: HashMap::new() })
    }

    fn answer(&mut self, url: &str) -> UrlDecision {
        let asked = match UrlRequest::parse(url) {
            Ok(asked) => asked,
            Err(error) => return malformed(url, &error),
        };
        let claim = asked.claim(&self.source);
        let (verdict, reason, rule, floor) = self.decide(&asked, &claim);
        let passes = matches!(verdict, Verdict::Allowed | Verdict::Observed);
        let near = if verdict == Verdict::Allowed || floor.is_some() { None } else { self.policy.near_miss(&claim) };
        let (near, advice) = near.map(|near| (near.rule.map(|rule| rule.to_string()), near.advice)).unzip();
        let outside = near.as_ref().is_some_and(Option::is_none);
        let near = near.flatten();
        let helps = floor.is_none() && !outside && allowable(verdict, reason);
        UrlDecision {
            url: url.to_owned(),
            verdict: verdict.as_str(),
            reason: reason.as_str(),
            rule_text: rule.as_ref().and_then(|rule| self.line(&rule.file, rule.line)),
            rule: rule.map(|rule| rule.to_string()),
            near,
            advice: floor
                .or_else(|| (reason == Reason::UnknownGuest).then(|| self.advice(reason, url)).flatten())
                .or(advice)
                .or_else(|| self.advice(reason, url)),
            suggestion: helps.then(|| asked.rule()),
            passes,
        }
    }

    /// Returns verdict, reason, deciding rule, and why the address is out of reach if that is the reason.
    fn decide(&self, asked: &UrlRequest, claim: &Claim) -> (Verdict, Reason, Option<Location>, Option<String>) {
        let address = match asked.target.host {
            Host::Addr(address) => Some(SocketAddr::new(address, asked.target.port)),
            Host::Name(_) => None,
        };
        let floor = |terms: &AddressTerms| address.and_then(|address| bridge::in_floor(&self.floor, address, terms));
        let permit = match self.policy.decide(claim) {
            Ok(permit) => permit,
            Err(Refusal { reason, rule }) => {
                // A rule alone would not help: the address would stay out of reach, and the user must know that.
                let floor = if allowable(Verdict::Denied, reason) { floor(&AddressTerms::default()) } else { None };
                return (reason.verdict(), reason, rule, floor);
            }
        };
        let terms = permit.addresses();
        if address.is_some_and(|address| terms.denied.contains(address.ip())) {
            return (Verdict::Denied, Reason::DeniedByRule, None, None);
        }
        match floor(terms) {
            Some(why) => (Verdict::Denied, Reason::AddressFloor, permit.rule().cloned(), Some(why)),
            None if permit.observed() => (Verdict::Observed, Reason::None, None, None),
            None => (Verdict::Allowed, Reason::None, permit.rule().cloned(), None),
        }
    }

    /// Returns what to do about a reason of the policy that no rule can remedy.
    fn advice(&self, reason: Reason, url: &str) -> Option<String> {
        match reason {
            Reason::UnknownGuest if self.settings.policy.guests.is_empty() => {
                Some("[guests].unknown is \"none\" and no guest is declared; declare one with [[guest]]".to_owned())
            }
            Reason::UnknownGuest => {
                let config = self.settings.path.as_deref().filter(|path| *path != Path::new(CONFIG_FILE));
                let config = config.map(|path| format!(" --config {}", quoted(&path.to_string_lossy())));
                let (config, url) = (config.unwrap_or_default(), quoted(url));
                let guest = self.settings.policy.guests.first().map(|guest| guest.name.as_str()).unwrap_or_default();
                let others = match self.settings.policy.guests.len() {
                    0 | 1 => String::new(),
                    _ => format!(", or another of {}", names(&self.settings)),
                };
                Some(format!("an answer is for one guest: run `outgate explain --guest {guest} {url}{config}`{others}"))
            }
            Reason::ModeNone => {
                Some("the mode is \"none\", in which nothing passes, whatever the list says".to_owned())
            }
            Reason::DeniedByRule => {
                Some("a deny rule overrides every rule that allows; remove it to let this pass".to_owned())
            }
            _ => None,
        }
    }

    /// Returns line `number` (from 1) of a file of the list.
    fn line(&mut self, file: &str, number: u32) -> Option<String> {
        let bytes = self.files.iter().find(|candidate| candidate.name() == file)?.bytes();
        if !self.starts.contains_key(file) {
            let after = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            self.starts.insert(file.to_owned(), std::iter::once(0).chain(after).collect());
        }
        let start = *self.starts.get(file)?.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
        let mut lines = bytes.get(start..)?.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let mut text = String::from_utf8_lossy(lines.next()?).trim_start_matches('\u{feff}').trim().to_owned();
        // A JSON entry usually spans several lines.
        if text == "{" {
            for line in lines.take(ENTRY_LINES) {
                text.extend([" ", &*String::from_utf8_lossy(line)]);
                if line.contains(&b'}') {
                    break;
                }
            }
            text.truncate(text.trim_end_matches(',').len());
        }
        Some(text)
    }

    /// Returns the file to which a rule for this source belongs.
    fn file_to_edit(&self) -> &str {
        let Identity { index, .. } = self.policy.guest(&self.source);
        let guest = index.and_then(|index| self.settings.policy.guests.get(index));
        guest.and_then(|guest| guest.files.as_deref()?.first()).map_or("local.rules", String::as_str)
    }

    /// `config` is the file that the command line names.
    fn write(&self, answer: &UrlDecision, config: Option<&Path>, out: &mut dyn Write) -> io::Result<()> {
        let url = printable(&answer.url);
        match (&answer.rule, answer.passes) {
            (Some(rule), true) => writeln!(out, "{:8}  {url}  by {}", answer.verdict, printable(rule))?,
            (None, true) => writeln!(out, "{:8}  {url}  by the mode; no rule allows it", answer.verdict)?,
            (Some(rule), false) => {
                writeln!(out, "{:8}  {url}  {} by {}", answer.verdict, answer.reason, printable(rule))?;
            }
            (None, false) => writeln!(out, "{:8}  {url}  {}", answer.verdict, answer.reason)?,
        }
        if let Some(text) = &answer.rule_text {
            writeln!(out, "          rule:     {}", printable(text))?;
        }
        if let Some(near) = &answer.near {
            writeln!(out, "          nearest:  {}", printable(near))?;
        }
        if let Some(advice) = &answer.advice {
            writeln!(out, "          advice:   {}", printable(advice))?;
        }
        if let Some(rule) = &answer.suggestion {
            match self.file_to_edit() {
                "local.rules" => {
                    let config = config.map(|path| format!(" --config {}", quoted(&path.to_string_lossy())));
                    let (config, rule) = (config.unwrap_or_default(), in_quotes(rule));
                    writeln!(out, "          to allow: outgate whitelist add {rule}{config}")?;
                }
                file => writeln!(out, "          to allow: add the line  {rule}  to {file}")?,
            }
        }
        Ok(())
    }
}

/// Returns whether an additional rule would allow it.
fn allowable(verdict: Verdict, reason: Reason) -> bool {
    reason.would_pass_with_a_rule() || verdict == Verdict::Observed
}

#[cfg(test)]
mod tests;
