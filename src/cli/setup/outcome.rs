//! Whether guests are guarded in the end.

use super::{Arguments, Config, Exit, Failure, Teller};
use crate::cli::ask::Daemon;
use crate::cli::{bridge, firewall as applied, verify};
use bridge::Question;
use outgate::config::Settings;
use outgate::trouble::TroubleCause;
use serde_json::Value;
use std::time::{Duration, Instant};

/// The longest wait for a daemon that has just been started, and for the first look of the firewall's watcher.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(200);

/// Checks the firewall and the daemon, and says what is wrong.
pub(super) fn verify(config: &Config, teller: &mut Teller<'_>) -> Result<Exit, Failure> {
    let (settings, _) = Settings::load(config.file())?;
    let troubles = match settings.listen.control.as_deref() {
        Some(socket) => troubles(socket, teller)?,
        None => Vec::new(),
    };
    if !settings.firewall.is_wanted() {
        teller.say("no guests' interface is configured: `outgate setup` shows those of this host")?;
        return Ok(if troubles.iter().any(|(cause, _)| !is_minor(cause)) { Exit::No } else { Exit::Good });
    }
    let (status, cut_off) = applied::state(config.file())?;
    status.differences.iter().try_for_each(|line| teller.say(&format!("differs: {line}")))?;
    cut_off.iter().try_for_each(|line| teller.say(&format!("warning: {line}")))?;
    let mut is_wrong = !status.in_place;
    for (cause, text) in &troubles {
        is_wrong |= !is_minor(cause);
        if *cause != TroubleCause::OtherFirewall.as_str() {
            teller.say(&format!("{}: {text}", if is_minor(cause) { "warning" } else { "trouble" }))?;
        }
    }
    let interfaces = match status.interfaces.is_empty() {
        true => "none exists yet".to_owned(),
        false => status.interfaces.join(", "),
    };
    Ok(match (is_wrong, cut_off.is_empty()) {
        (true, _) => {
            teller.say("NOT guarded as configured: see above, and `outgate status`")?;
            Exit::No
        }
        (false, false) => {
            teller.say(&format!("guarded, and cut off by another firewall: {interfaces}"))?;
            Exit::CutOff
        }
        (false, true) => {
            teller.say(&format!("guarded: {interfaces}. `outgate whitelist add NAME` lets guests reach a name"))?;
            Exit::Good
        }
    })
}

/// Tries every way out as a guest would, as `outgate verify` does, and shows what came of it. Returns `exit`, or the
/// exit of a check that failed, and what JSON has of it.
pub(super) fn try_out(arguments: &Arguments, exit: Exit, teller: &mut Teller<'_>) -> Result<(Exit, Value), Failure> {
    if !verify::is_applicable(&arguments.config)? {
        teller.say(
            "`outgate verify` has nothing to try: a second guest cannot enter by the interface of one; see \"What to \
             check\" in docs/networks.md for what to try in the guest",
        )?;
        return Ok((exit, Value::Null));
    }
    let order = verify::Order {
        daemon: &Daemon::from(arguments.config.clone()),
        interfaces: &[],
        urls: &[],
        ranges: &[],
        json: arguments.json,
    };
    let mut text = Vec::new();
    let tried = verify::verify(&order, &mut text);
    let verified = match arguments.json {
        true => serde_json::from_slice(&text).unwrap_or(Value::Null),
        false => {
            teller.show(&String::from_utf8_lossy(&text))?;
            Value::Null
        }
    };
    // Where another firewall cuts guests off, outgate does not answer.
    let told_before = matches!(exit, Exit::CutOff);
    Ok(match tried? {
        other if !told_before && !matches!(other, Exit::Good) => (other, verified),
        _ => (exit, verified),
    })
}

/// Whether guests of the configuration are guarded all the same: other firewalls are told with the ruleset's state, and
/// whether something else carries guests too is for the operator to decide. A dockerd that has to be restarted was told
/// before, and has an exit code of its own.
fn is_minor(cause: &str) -> bool {
    const MINOR: [TroubleCause; 3] =
        [TroubleCause::OtherFirewall, TroubleCause::UnguardedGuests, TroubleCause::DockerDns];
    MINOR.iter().any(|minor| minor.as_str() == cause)
}

/// Returns the daemon's troubles, cause and text, once it runs and what passes by itself has passed.
fn troubles(socket: &std::path::Path, teller: &Teller<'_>) -> Result<Vec<(String, String)>, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        teller.go_on().map_err(|why| {
            let checks = "`outgate verify` checks whether guests are guarded, and `outgate setup --undo` puts back";
            Failure::Failed(format!("{why}; everything was changed as shown, and not checked: {checks}"))
        })?;
        let answer = bridge::ask(socket, Question::Status);
        let is_last = Instant::now() >= until;
        match answer {
            Ok(answer) => {
                let found = of(&answer);
                if is_last || found.iter().all(|(cause, _)| is_minor(cause)) {
                    return Ok(found);
                }
            }
            Err(failure) if is_last => return Err(failure),
            Err(_) => {}
        }
        std::thread::sleep(PAUSE);
    }
}

fn of(answer: &Value) -> Vec<(String, String)> {
    let text = |trouble: &Value, key: &str| trouble.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let troubles = answer.get("troubles").and_then(Value::as_array).into_iter().flatten();
    troubles.map(|trouble| (text(trouble, "cause"), text(trouble, "text"))).collect()
}
