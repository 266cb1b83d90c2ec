//! `outgate golem sync`: brings the published list into the whitelist dir, and shows it before it is written.

use crate::cli::bridge::{self, failed_sync};
use crate::cli::{Config, Exit, Failure, Outcome};
use clap::Args;
use outgate::config::{Settings, WHITELIST_DIR};
use outgate::golem::rules;
use outgate::text::printable;
use outgate::whitelist::edit::Whole;
use outgate_golem_sync::fetch::{DEADLINE, Fetcher, public_key};
use outgate_golem_sync::merge::{self, Change, Current, Entry, FILE};
use outgate_golem_sync::{self as sync, Gathered, PUBLISHED, Source, SyncError};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Bring the published list for providers into the whitelist
///
/// Fetches the list, checks it, shows what it changes, and writes it to golem-published.json in [whitelist].dir, the
/// only file that this command writes. A running daemon notices the change by itself. Nothing is written if a list is
/// invalid, has no entries, lacks more than half of those in force, or adds a regex that matches names of unrelated
/// owners. A file that this command did not write is not overwritten. The proxy in HTTPS_PROXY is used. Exit code 0
/// on success (also with --dry-run, and with --offline-ok if a source cannot be reached), 1 otherwise.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate golem sync --dry-run
  outgate golem sync --from https://example.org/lists.tar.gz --public-key lists.pub
  outgate golem sync --from ./strict.lst --from ./regex.lst
  outgate golem sync --json | jq -r '.added[].domain'")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
    /// Source of the list: an https:// URL or a path, either of an archive (tar, optionally compressed with gzip)
    /// that contains strict.lst or regex.lst, or of a *.lst file, which holds regexes if its name contains regex; or
    /// the path of a folder with such files. Several sources are joined [default: what Golem Factory publishes on
    /// GitHub]
    #[arg(long, value_name = "SOURCE", value_parser = Source::parse)]
    from: Vec<Source>,
    /// A minisign public key, or a file with one: each source must have a valid signature beside it, SOURCE.minisig
    #[arg(long, value_name = "KEY|FILE")]
    public_key: Option<String>,
    /// Show what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the list even if it lacks more than half of the entries in force, or all of one kind
    #[arg(long)]
    allow_shrink: bool,
    /// Write the list even if new regexes match names of unrelated owners
    #[arg(long)]
    allow_wide: bool,
    /// Exit code 0, with a warning, if a source cannot be reached; for timers
    #[arg(long)]
    offline_ok: bool,
    /// Time limit for all downloads together, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The answer for scripts.
#[derive(Serialize)]
struct SyncReport<'a> {
    /// Whether the file would change.
    changed: bool,
    /// Whether it was written.
    written: bool,
    file: &'a Path,
    source: Vec<String>,
    added: &'a [Entry],
    removed: &'a [Entry],
    entries: usize,
}

/// What was determined before anything is shown or written.
struct Update {
    current: Option<Current>,
    gathered: Gathered,
    entries: Vec<Entry>,
    change: Change,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    let key = arguments.public_key.as_deref().map(public_key).transpose();
    let key = key.map_err(|why| Failure::Usage(format!("--public-key: {}", printable(&why))))?;
    let (settings, _) = Settings::load(arguments.config.file())?;
    let dir = settings.whitelist_dir.as_deref().ok_or_else(no_dir)?;
    let default = [Source::Web(PUBLISHED.to_owned())];
    let sources = if arguments.from.is_empty() { &default[..] } else { &arguments.from };
    let fetcher = Fetcher::new(key, Duration::from_secs(arguments.timeout));
    let update = match prepare(dir, sources, &fetcher, arguments) {
        Ok(update) => update,
        Err(error @ SyncError::Unreachable { .. }) if arguments.offline_ok => {
            tell(&format!("outgate: warning: {error}"));
            return Ok(Exit::Good);
        }
        Err(error) => return Err(failed_sync(error)),
    };
    let written = put(dir, &update, !arguments.dry_run)?;
    let path = dir.join(FILE);
    if arguments.json {
        let answer = SyncReport {
            changed: !update.change.is_empty(),
            written,
            file: &path,
            source: update.gathered.origins.iter().map(|origin| origin.from.clone()).collect(),
            added: &update.change.added,
            removed: &update.change.removed,
            entries: update.entries.len(),
        };
        writeln!(out, "{}", serde_json::to_string_pretty(&answer).map_err(io::Error::from)?)?;
    } else {
        show(out, &path, &update, written)?;
    }
    if let Some(data_dir) = settings.data_dir() {
        warn_of_negotiation(data_dir, &update.entries);
    }
    Ok(Exit::Good)
}

/// Fetches the lists and compares them with the file of the last time.
fn prepare(dir: &Path, sources: &[Source], fetcher: &Fetcher, arguments: &Arguments) -> Result<Update, SyncError> {
    let current = merge::current(dir)?;
    let mut say = |what: &str| {
        if io::stderr().is_terminal() {
            tell(&format!("outgate: {what}"));
        }
    };
    let gathered = sync::gather(sources, fetcher, &mut say)?;
    let entries = bridge::published(&gathered)?;
    let change = merge::change(current.as_ref(), &entries, arguments.allow_shrink)?;
    if !arguments.allow_wide {
        merge::narrow(&change)?;
    }
    Ok(Update { current, gathered, entries, change })
}

/// Writes the file, if it differs and `write` is set. Returns whether it did.
fn put(dir: &Path, update: &Update, write: bool) -> Result<bool, Failure> {
    if update.change.is_empty() {
        return Ok(false);
    }
    let new = merge::render(&update.gathered.origins, &update.entries)?;
    let old = update.current.as_ref().map(|current| current.bytes.as_slice());
    for warning in bridge::put(dir, Whole { name: FILE, old, new: &new }, write)? {
        tell(&warning.to_string());
    }
    Ok(write)
}

fn show(out: &mut dyn Write, path: &Path, update: &Update, written: bool) -> io::Result<()> {
    let Change { added, removed } = &update.change;
    for (sign, entries) in [('-', removed), ('+', added)] {
        for entry in entries {
            writeln!(out, "{sign} {} ({})", printable(&entry.domain), entry.matching.as_str())?;
        }
    }
    let file = printable(&path.display().to_string());
    let entries = match update.entries.len() {
        1 => "1 entry".to_owned(),
        many => format!("{many} entries"),
    };
    let what = match (written, update.change.is_empty()) {
        (true, _) => "written",
        (false, true) => "unchanged",
        (false, false) => "not written",
    };
    writeln!(out, "{what}: {file}: {entries}, {} added, {} removed", added.len(), removed.len())
}

/// Warns that a provider whose own list lacks these hosts gets no job that asks for them.
fn warn_of_negotiation(data_dir: &Path, entries: &[Entry]) {
    let list = data_dir.join(rules::WHITELIST);
    let lacks = match merge::unknown_to_provider(&list, entries) {
        Some(0) => return,
        Some(count) => {
            format!("lacks {} of this list", if count == 1 { "1 entry".into() } else { format!("{count} entries") })
        }
        None => "cannot be read and may lack some of this list".to_owned(),
    };
    tell(&format!(
        "outgate: warning: ya-provider accepts jobs by its own {}, which {lacks}; add them there as its user: \
         ya-provider whitelist add -t strict -p HOST… (-t regex for regexes)",
        list.display()
    ));
}

fn no_dir() -> Failure {
    Failure::Failed(format!(
        "there is no whitelist dir to write to; create {WHITELIST_DIR}, or name a configuration with --config"
    ))
}

fn tell(line: &str) {
    // If this fails, there is nowhere left to report it.
    let _ = writeln!(io::stderr(), "{}", printable(line));
}
