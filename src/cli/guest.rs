//! `outgate guest`: lists the guests of the running daemon and changes them, for as long as the machine is up.
//! Permanent guests belong in the configuration.

use super::ask::{self, Daemon, Show};
use super::bridge::{self, Application, Question};
use super::credentials::{self, Credentials};
use super::{Exit, Failure, Outcome, explain, firewall};
use clap::{Args, Subcommand};
use outgate::config::Settings;
use outgate::golem::manifest::{Access, Manifest};
use outgate::text::printable;
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;

/// Register guests with the running daemon, and restrict them to their manifests
///
/// For temporary guests: each rented VM, each job. Registrations survive a restart of the daemon, but not a reboot;
/// permanent guests are [[guest]] sections of the configuration. Changes require root or the daemon's own user.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate guest add vm-7 --address 10.42.42.7 --interface tap7 --manifest manifest.json
  outgate guest list
  outgate guest remove vm-7")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Add(AddArguments),
    List(ListArguments),
    Remove(RemoveArguments),
}

/// Register a guest
///
/// Without a manifest the guest is like those of the configuration: it reaches what the shared lists allow, in the
/// mode of the daemon. With a manifest it reaches only what the manifest names (scheme, host and port), within the
/// provider's rule that accepts the manifest: `whitelist` means the list, `all` means everything. If no rule accepts
/// it, nothing is registered, and yagna's reason is printed. Address floor, `deny` rules and limits apply in any
/// case. A guest whose manifest asks for nothing reaches nothing.
///
/// With an interface, and if the configuration has a firewall, the firewall is applied again, so that only this
/// interface may use the guest's addresses.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate guest add vm-7 --address 10.42.42.7
  outgate guest add vm-7 --address 10.42.42.7 --address 2001:db8:7::/64 --interface tap7
  outgate guest add job-1 --address 10.42.42.8 --manifest manifest.json
  outgate guest add job-2 --address 10.42.42.9 --manifest m.b64 --signature m.sig --certificate req.pem")]
struct AddArguments {
    #[command(flatten)]
    daemon: Daemon,
    /// The guest's name: 1 to 64 of a-z A-Z 0-9 . _ -
    #[arg(value_name = "NAME")]
    name: String,
    /// An address or range of the guest; may be given several times
    #[arg(short, long = "address", value_name = "ADDR", required = true)]
    addresses: Vec<String>,
    /// The interface by which its packets arrive: its tap, or its port of a bridge
    #[arg(short, long, value_name = "NAME")]
    interface: Option<String>,
    /// The manifest of the job: JSON, or base64 of it
    #[arg(short, long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    credentials: Credentials,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

/// List the guests: those of the configuration and those that were registered
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate guest list
  outgate guest list --json | jq -r '.guests[] | select(.registered) | .name'")]
struct ListArguments {
    #[command(flatten)]
    answer: ask::AnswerArguments,
}

/// End the registration and the connections of a guest
///
/// Its addresses then belong to no guest, and [guests].unknown applies to them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate guest remove vm-7")]
struct RemoveArguments {
    #[command(flatten)]
    daemon: Daemon,
    /// The guest's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    match &arguments.command {
        Command::Add(arguments) => add(arguments, out),
        Command::List(arguments) => list(arguments, out),
        Command::Remove(arguments) => remove(arguments, out),
    }
}

fn add(arguments: &AddArguments, out: &mut dyn Write) -> Outcome {
    let AddArguments { daemon, name, addresses, interface, manifest, credentials, json } = arguments;
    let mut application = Application {
        name: name.clone(),
        addresses: addresses.clone(),
        interface: interface.clone(),
        ..Application::default()
    };
    application.manifest = manifest.as_deref().map(credentials::read_manifest).transpose()?;
    credentials.fill(&mut application)?;
    let mut added = register(daemon, &application)?;
    if *json {
        return ask::write_json(&added.answer, out);
    }
    let changed = added.answer.get("changed").and_then(Value::as_bool).unwrap_or(true);
    let what = if changed { "is registered" } else { "was already registered, with the same settings" };
    writeln!(out, "{name} {what}{}", held(added.answer.get("guest").unwrap_or(&Value::Null)))?;
    for warning in added.warnings.drain(..) {
        writeln!(out, "warning: {}", printable(&warning))?;
    }
    Ok(Exit::Good)
}

/// A guest that the daemon registered.
pub(super) struct Added {
    /// The daemon's answer.
    pub(super) answer: Value,
    /// The daemon's warnings, and what of the manifest is refused in any case.
    pub(super) warnings: Vec<String>,
}

/// Registers a guest, and applies the firewall if one is configured and the guest has an interface. On an error,
/// nothing of the guest remains.
pub(super) fn register(daemon: &Daemon, application: &Application) -> Result<Added, Failure> {
    // What may fail comes first: a guest that is registered but not restricted by the firewall would be the worst
    // case.
    let config = daemon.config.file();
    let (settings, _) = Settings::load_leniently(config)?;
    let pinned = application.interface.is_some() && settings.firewall.is_wanted();
    if pinned && Some(daemon.socket()?) != settings.listen.control {
        let why = "--interface requires the configuration of the daemon behind --socket, because the firewall is made \
                   from it";
        return Err(Failure::Usage(format!("{why}; name it with --config")));
    }
    let refused = refused_all_the_same(&settings, application);
    let mut answer = daemon.ask(Question::Register(application))?;
    let told = answer.get("warnings").and_then(Value::as_array).into_iter().flatten();
    let mut warnings: Vec<String> = told.filter_map(Value::as_str).map(str::to_owned).collect();
    warnings
        .extend(refused.into_iter().filter(|line| !warnings.iter().any(|old| same_url(old, line))).collect::<Vec<_>>());
    if pinned && let Err(failure) = firewall::apply_quietly(config) {
        let new = answer.get("changed").and_then(Value::as_bool).unwrap_or(true);
        return Err(if new { taken_back(daemon, &application.name, failure) } else { failure });
    }
    if let Some(interface) = application.interface.as_deref().filter(|name| !exists(name)) {
        warnings.push(format!(
            "interface {interface} does not exist now: if that is its name, the guest is held to it once it does; else \
             remove the guest and add it with another"
        ));
    }
    if let Value::Object(fields) = &mut answer {
        fields.insert("warnings".to_owned(), warnings.clone().into());
    }
    Ok(Added { answer, warnings })
}

/// Returns whether an interface of this name exists, or cannot be looked for.
fn exists(interface: &str) -> bool {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    let index = socket.and_then(|socket| rustix::net::netdevice::name_to_index(socket, interface));
    index != Err(rustix::io::Errno::NODEV)
}

/// Returns what of a manifest no rule could allow.
fn refused_all_the_same(settings: &Settings, application: &Application) -> Vec<String> {
    let manifest = application.manifest.as_ref().and_then(|text| Manifest::read(text.as_bytes()).ok());
    let Some(Manifest { access: Access::Urls(urls), .. }) = manifest else { return Vec::new() };
    match explain::refused_in_any_case(settings, urls.iter().map(|url| url.as_str())) {
        Ok(refused) => {
            refused.into_iter().map(|(url, why)| format!("{url} was agreed on, but is refused: {why}")).collect()
        }
        // The daemon may use its last good list.
        Err(failure) => vec![format!("it is not known which of its URLs are refused in any case: {failure}")],
    }
}

/// Removes a guest that is not bound to its interface. Returns the original failure, and whether anything remains.
fn taken_back(daemon: &Daemon, name: &str, failure: Failure) -> Failure {
    match end(daemon, name) {
        // The firewall may fail again here; the first failure was already reported.
        Ok(_) => failure,
        Err(more) => Failure::Failed(format!("{failure}; and {name} is still registered: {more}")),
    }
}

/// Returns whether two warnings are about the same URL, which is their first word.
fn same_url(one: &str, other: &str) -> bool {
    one.split(' ').next() == other.split(' ').next()
}

/// Describes a guest's restrictions in words.
fn held(guest: &Value) -> String {
    let word = |key| guest.get(key).and_then(Value::as_str);
    let by = word("rule").map_or_else(String::new, |rule| format!(", by the {rule} rule"));
    match guest.get("manifest") {
        None => String::new(),
        Some(Value::String(asks)) if asks == "none" => {
            "; its manifest asks for nothing, so it reaches nothing".to_owned()
        }
        Some(asks) => {
            let mode = match word("mode") {
                Some("all") => "everything",
                Some("none") => "nothing",
                Some("observe") => "everything, observed",
                _ => "what the list allows",
            };
            format!(": {} within {mode}{by}", shown_manifest(asks))
        }
    }
}

fn shown_manifest(asks: &Value) -> String {
    match asks.get("urls").and_then(Value::as_array) {
        Some(urls) => {
            let mut shown: Vec<String> = urls.iter().take(3).filter_map(Value::as_str).map(printable).collect();
            let count = asks.get("count").and_then(Value::as_u64).unwrap_or_default();
            let more = count.saturating_sub(shown.len() as u64);
            shown.extend((more > 0).then(|| format!("{more} more")));
            shown.join(", ")
        }
        None => printable(asks.as_str().unwrap_or("-")),
    }
}

fn list(arguments: &ListArguments, out: &mut dyn Write) -> Outcome {
    let answer = arguments.answer.daemon.ask(Question::Guests)?;
    let columns: [(&str, Show); 7] = [
        ("name", ask::shown),
        ("addresses", ask::shown),
        ("interface", ask::shown),
        ("mode", ask::shown),
        ("rule", ask::shown),
        ("manifest", shown_manifest),
        ("registered", ask::shown),
    ];
    ask::write_rows(&answer, arguments.answer.json, ("guests", &columns), "there is no guest", out)
}

fn remove(arguments: &RemoveArguments, out: &mut dyn Write) -> Outcome {
    let RemoveArguments { daemon, name, json } = arguments;
    let (answer, fault) = end(daemon, name)?;
    if *json {
        ask::write_json(&answer, out)?;
    } else {
        let revoked = answer.get("revoked").and_then(Value::as_u64).unwrap_or_default();
        writeln!(out, "{name} is not a guest any more; connections ended: {revoked}")?;
    }
    fault.map_or(Ok(Exit::Good), Err)
}

/// Ends a registration; returns the daemon's answer, and why the firewall could not be updated.
pub(super) fn end(daemon: &Daemon, name: &str) -> Result<(Value, Option<Failure>), Failure> {
    if !bridge::is_guest_name(name) {
        return Err(Failure::Usage(format!("{name:?} is not a guest name: 1 to 64 of a-z A-Z 0-9 . _ -")));
    }
    let answer = daemon.ask(Question::Remove(name))?;
    let (settings, _) = Settings::load_leniently(daemon.config.file())?;
    let pinned = answer.get("pinned").and_then(Value::as_bool).unwrap_or(true);
    let follow = pinned && settings.firewall.is_wanted();
    let fault = if follow { firewall::apply_quietly(daemon.config.file()).err() } else { None };
    Ok((answer, fault))
}
