//! Commands that query the running daemon over its control socket: `status`, `denied`, `flows` and `whitelist
//! reload`. The daemon answers in JSON; `--json` prints it unchanged, otherwise it is printed as a table.

use super::table;
use super::{Config, Exit, Failure, Outcome, bridge};
use bridge::Question;
use clap::Args;
use outgate::config::{SYSTEM_CONTROL, Settings};
use outgate::text::{bytes, counted, duration, grouped, printable};
use serde_json::Value;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Show the state of the daemon
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate status
  outgate status --json | jq .whitelist_rules")]
pub(super) struct StatusArguments {
    #[command(flatten)]
    answer: AnswerArguments,
}

/// Show what was refused most, for which guests, and the nearest rule
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate denied
  outgate denied --limit 10
  outgate denied --failed
  outgate denied --json | jq -r '.refusals[].destination'")]
pub(super) struct DeniedArguments {
    #[command(flatten)]
    answer: AnswerArguments,
    /// Maximum number of rows
    #[arg(short = 'n', long, value_name = "ROWS", default_value_t = 50)]
    limit: usize,
    /// Show what was allowed but failed: names that did not resolve, servers that were down or broke the connection
    #[arg(long)]
    failed: bool,
}

/// Show the open connections
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate flows
  outgate flows --json | jq -r '.flows[] | select(.guest == \"vm-7\") | .destination'")]
pub(super) struct FlowsArguments {
    #[command(flatten)]
    answer: AnswerArguments,
    /// Maximum number of rows
    #[arg(short = 'n', long, value_name = "ROWS", default_value_t = 1000)]
    limit: usize,
}

/// Make the daemon read configuration and lists again
///
/// The daemon notices changed lists by itself; this command also reports whether they are valid. Exit code 1 if they
/// are not: the previous configuration and lists then stay in force.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate whitelist reload
  outgate check && outgate whitelist reload")]
pub(super) struct ReloadArguments {
    #[command(flatten)]
    daemon: Daemon,
}

/// Which daemon's answer, and in what form.
#[derive(Args, Debug)]
pub(super) struct AnswerArguments {
    #[command(flatten)]
    pub(super) daemon: Daemon,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which daemon.
#[derive(Args, Clone, Debug)]
pub(super) struct Daemon {
    #[command(flatten)]
    pub(super) config: Config,
    /// The daemon's control socket [default: as configured]
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl From<Config> for Daemon {
    /// The daemon of this configuration.
    fn from(config: Config) -> Daemon {
        Daemon { config, socket: None }
    }
}

pub(super) fn status(arguments: &StatusArguments, out: &mut dyn Write) -> Outcome {
    let mut answer = arguments.answer.daemon.ask(Question::Status)?;
    if arguments.answer.json {
        return write_json(&answer, out);
    }
    write_guard(&answer, out)?;
    if let Some(facts) = answer.as_object_mut() {
        // Already printed above.
        for key in ["firewall_configured", "guarding", "unguarded", "proof", "troubles"] {
            facts.remove(key);
        }
    }
    write_facts("", &answer, out)?;
    Ok(Exit::Good)
}

/// Writes the first lines: which interfaces are guarded, which are not, and what is wrong.
fn write_guard(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    let list = |key: &str| answer.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value, key: &str| printable(value.get(key).and_then(Value::as_str).unwrap_or_default());
    let is_configured = answer.get("firewall_configured").and_then(Value::as_bool) == Some(true);
    for guarded in list("guarding") {
        let guests = guarded.get("guests").and_then(Value::as_u64).unwrap_or_default();
        let between = match guarded.get("between_guests").and_then(Value::as_str) {
            Some("allow") => ", who reach each other",
            _ => "",
        };
        writeln!(out, "guarding {}: {}{between}", text(guarded, "interface"), counted(guests, "guest"))?;
    }
    match answer.get("guarding") {
        Some(Value::Array(guarding)) if guarding.is_empty() => {
            writeln!(out, "guarding NOTHING: no guest interface exists")?
        }
        Some(Value::Array(_)) => {}
        _ if is_configured => writeln!(out, "guarding: not known; run `outgate firewall status` as root")?,
        _ => writeln!(out, "guarding NOTHING: no firewall is configured")?,
    }
    for proof in list("proof") {
        let age = proof.get("age_seconds").and_then(Value::as_u64).unwrap_or_default();
        let interface = text(proof, "interface");
        match proof.get("state").and_then(Value::as_str) {
            Some("proven") => writeln!(out, "proven {age} s ago: {interface}")?,
            Some("pending") => writeln!(out, "not proven yet: {interface}")?,
            Some("not_applicable") => writeln!(out, "not provable: {interface}; `outgate proof` says why")?,
            // A trouble below says more.
            _ => writeln!(out, "NOT PROVEN: {interface}")?,
        }
    }
    if is_configured && answer.get("proof").is_some_and(Value::is_null) {
        writeln!(out, "proven: nothing; run `systemctl enable --now outgate-proof-net.service`")?;
    }
    for interface in list("unguarded").iter().filter_map(Value::as_str) {
        writeln!(out, "NOT guarded: {}", printable(interface))?;
    }
    for trouble in list("troubles") {
        writeln!(out, "TROUBLE {}: {}", text(trouble, "cause"), text(trouble, "text"))?;
    }
    Ok(())
}

pub(super) fn denied(arguments: &DeniedArguments, out: &mut dyn Write) -> Outcome {
    let (question, list, none) = match arguments.failed {
        true => (Question::Failed(arguments.limit), "failures", "nothing failed so far"),
        false => (Question::Denied(arguments.limit), "refusals", "nothing was refused so far"),
    };
    let mut answer = arguments.answer.daemon.ask(question)?;
    if !arguments.answer.json {
        explain(&mut answer, list);
    }
    let columns = ["count", "guest", "destination", "verdict", "reason", "rule", "last", "advice"]
        .map(|key| (key, shown as Show));
    write_rows(&answer, arguments.answer.json, (list, &columns), none, out)
}

/// Shows the cause in the advice column if there is no advice.
fn explain(answer: &mut Value, list: &str) {
    let rows = answer.get_mut(list).and_then(Value::as_array_mut);
    for row in rows.into_iter().flatten().filter_map(Value::as_object_mut) {
        if row.get("advice").is_none_or(Value::is_null)
            && let Some(cause) = row.get("cause").cloned()
        {
            row.insert("advice".to_owned(), cause);
        }
    }
}

pub(super) fn flows(arguments: &FlowsArguments, out: &mut dyn Write) -> Outcome {
    let answer = arguments.answer.daemon.ask(Question::Flows(arguments.limit))?;
    let columns: [(&str, Show); 9] = [
        ("flow", shown),
        ("guest", shown),
        ("source", shown),
        ("listener", shown),
        ("destination", shown),
        ("age_seconds", shown_duration),
        ("bytes_up", shown_bytes),
        ("bytes_down", shown_bytes),
        ("rule", shown),
    ];
    write_rows(&answer, arguments.answer.json, ("flows", &columns), "no connection is open", out)
}

pub(super) fn reload(arguments: &ReloadArguments, out: &mut dyn Write) -> Outcome {
    let answer = arguments.daemon.ask(Question::Reload)?;
    write_facts("", &answer, out)?;
    Ok(Exit::Good)
}

impl Daemon {
    /// Sends the daemon a question.
    pub(super) fn ask(&self, question: Question<'_>) -> Result<Value, Failure> {
        bridge::ask(&self.socket()?, question)
    }

    /// Returns the daemon's socket. A configuration with errors is accepted: the daemon may run in any case.
    pub(super) fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let (settings, _) = Settings::load_leniently(self.config.file())?;
        let Some(socket) = settings.listen.control else {
            let why = "the configuration has no control socket; set [listen].control, or name one with --socket";
            return Err(Failure::Unreachable(why.to_owned()));
        };
        // Without a configuration, a user's own daemon has precedence over the system's.
        let system = Path::new(SYSTEM_CONTROL);
        let own = settings.path.is_some() || socket.exists() || !system.exists();
        Ok(if own { socket } else { system.to_owned() })
    }
}

pub(super) fn write_json(answer: &Value, out: &mut dyn Write) -> Outcome {
    writeln!(out, "{}", serde_json::to_string_pretty(answer).map_err(io::Error::from)?)?;
    Ok(Exit::Good)
}

/// Writes an object as lines of key and value; keys of nested objects are joined by dots.
fn write_facts(prefix: &str, answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    let Value::Object(facts) = answer else {
        return writeln!(out, "{}", shown(answer));
    };
    for (key, value) in facts {
        let key = format!("{prefix}{}", printable(key));
        match value {
            Value::Object(_) => write_facts(&format!("{key}."), value, out)?,
            _ => {
                let text = match key.rsplit('_').next() {
                    Some("seconds") => shown_duration(value),
                    _ if key.starts_with("bytes_") => shown_bytes(value),
                    _ => shown(value),
                };
                writeln!(out, "{:28}  {text}", key.replace('_', " "))?;
            }
        }
    }
    Ok(())
}

pub(super) type Show = fn(&Value) -> String;

/// Writes the list of objects under a name in the answer, as a table of these columns.
pub(super) fn write_rows(
    answer: &Value,
    json: bool,
    list: (&str, &[(&str, Show)]),
    none: &str,
    out: &mut dyn Write,
) -> Outcome {
    if json {
        return write_json(answer, out);
    }
    let (name, columns) = list;
    let rows = answer.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        writeln!(out, "{none}")?;
        return Ok(Exit::Good);
    }
    let heading = |(key, _): &(&str, Show)| key.trim_end_matches("_seconds").replace('_', " ").to_uppercase();
    let headings: Vec<String> = columns.iter().map(heading).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let cell = |row: &Value, (key, show): &(&str, Show)| row.get(key).map_or_else(|| "-".to_owned(), show);
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect()).collect();
    table::write(out, &headings, &cells)?;
    if let Some(total) = answer.get("total").and_then(Value::as_u64).filter(|total| *total > rows.len() as u64) {
        writeln!(out, "{} of {} shown; --limit shows more", grouped(rows.len() as u64), grouped(total))?;
    }
    Ok(Exit::Good)
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), grouped),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(_) => printable(&value.to_string()),
    }
}

fn shown_bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| shown(value), bytes)
}

fn shown_duration(value: &Value) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds; a float saturates")]
    let whole = |seconds: f64| seconds as u64;
    value.as_f64().map_or_else(|| shown(value), |seconds| duration(whole(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table(answer: &Value, columns: &[(&str, Show)]) -> String {
        let mut out = Vec::new();
        write_rows(answer, false, ("flows", columns), "no connection is open", &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rows_become_a_table_that_cannot_steer_the_terminal() {
        let answer = json!({"total": 1204, "flows": [
            {"flow": "a1", "guest": null, "source": "10.0.0.1:5", "listener": "proxy", "destination": "x\u{1b}[2J:443",
             "age_seconds": 61.5, "bytes_up": 20480, "bytes_down": 0, "rule": "a.rules:3"}
        ]});
        let columns: [(&str, Show); 4] =
            [("guest", shown), ("destination", shown), ("age_seconds", shown_duration), ("bytes_up", shown_bytes)];
        let expected = "GUEST  DESTINATION     AGE    BYTES UP\n-      x\\u{1b}[2J:443  1m 1s  20 KiB\n\
            1 of 1,204 shown; --limit shows more\n";
        assert_eq!(table(&answer, &columns), expected);
    }

    #[test]
    fn no_rows_are_said_in_words() {
        assert_eq!(table(&json!({"total": 0, "flows": []}), &[("a", shown)]), "no connection is open\n");
    }

    #[test]
    fn facts_are_lines() {
        let mut out = Vec::new();
        let status =
            json!({"version": "0.1.0", "uptime_seconds": 3661, "connections": {"denied": 1204}, "whitelist_ok": true});
        write_facts("", &status, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["connections.denied", "1,204"]), "{text}");
        assert!(lines.contains(&vec!["uptime", "seconds", "1h", "1m"]), "{text}");
        assert!(lines.contains(&vec!["whitelist", "ok", "yes"]), "{text}");
    }

    #[test]
    fn a_named_socket_goes_before_the_configured_one() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("o.toml");
        std::fs::write(&path, "mode = 1\n[listen]\ncontrol = \"c.sock\"").unwrap();
        let config = Config { config: Some(path) };
        let configured = Daemon { config: config.clone(), socket: None };
        assert_eq!(configured.socket().unwrap(), scratch.path().join("c.sock"));
        let named = Daemon { config, socket: Some("/x".into()) };
        assert_eq!(named.socket().unwrap(), Path::new("/x"));
    }
}
