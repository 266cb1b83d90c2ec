//! `outgate proof`: the checks of `verify`, every half minute, at every guests' interface. `net`, as root, makes the guests
//! and the sentinel and opens what takes rights; one `probe` an interface, without any right, tries; `assignment` is
//! what it is given. Root writes what was found where the daemon reads it.

mod assignment;
mod net;
mod probe;

use crate::cli::ask::write_json;
use crate::cli::{Config, Exit, Failure, Outcome, table};
use clap::{Args, Subcommand};
use outgate::config::Settings;
use outgate::proof::{FILE_NAME, FOLDER, Proof, Standing, folder, since_boot};
use outgate::text::printable;
use serde_json::json;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Show whether guests are proven to be guarded, and since when
///
/// While `outgate-proof-net.service` runs, a guest of outgate's own behind every guests' interface tries every half minute
/// what `outgate verify` tries: what must not get out, and what must get through. This command shows the last round of
/// each interface. A round that is older than two minutes proves nothing.
///
/// Exit code 0 if the guests of all interfaces are proven to be guarded, 1 if not.
///
/// --json prints one object: `proven` (all of them), `is_stopped` and `interfaces`. Each interface has `interface`, `state`
/// (proven, open, cut_off, silent, pending, not_applicable), `text`, `age_seconds`, `rounds`, `other_packets` and
/// `checks`; each check has `check`, `family`, `url`, `result` (ok, leak, failed, not_applicable) and `seen`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  outgate proof
  outgate proof --json | jq -r '.interfaces[] | select(.state != \"proven\") | .text'
  systemctl status outgate-proof-net.service"
)]
pub(in crate::cli) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: Config,
}

#[derive(Subcommand, Debug)]
enum Command {
    Net(NetArguments),
    Run(RunArguments),
}

/// Where the parts of the proof find each other.
#[derive(Clone, Debug)]
struct Place {
    folder: PathBuf,
}

/// Make the proof's guests and its sentinel, and keep what their rounds find
///
/// Runs until it is told to stop; `outgate-proof-net.service` runs it, and it starts `outgate-proof@INTERFACE.service` for
/// each interface. Requires root.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate proof net
  systemctl enable --now outgate-proof-net.service")]
struct NetArguments {
    #[command(flatten)]
    config: Config,
}

/// Try every half minute what a guest of an interface must not reach, and what it must
///
/// Runs until `outgate proof net` stops; `outgate-proof@INTERFACE.service` runs it, without any right, in the network of
/// a guest of that interface.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate proof run br0
  systemctl status 'outgate-proof@*'")]
struct RunArguments {
    /// The guests' interface, or the pattern of guest_interfaces
    #[arg(value_name = "INTERFACE")]
    interface: String,
    /// The folder of the proof, which depends on the daemon's control socket
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    folder: PathBuf,
}

impl Place {
    /// The one of the daemon with this configuration.
    fn of(config: &Config) -> Result<Place, Failure> {
        let (settings, _) = Settings::load(config.file())?;
        Ok(Place { folder: folder(settings.listen.control.as_deref()) })
    }

    /// Where probes connect to.
    fn socket(&self) -> PathBuf {
        self.folder.join("net.sock")
    }

    /// The links to the network namespaces, as the units name them.
    fn namespaces(&self) -> PathBuf {
        self.folder.join("net")
    }

    fn file(&self) -> PathBuf {
        self.folder.join(FILE_NAME)
    }
}

pub(in crate::cli) fn run(arguments: &Arguments, out: &mut dyn Write) -> Outcome {
    match &arguments.command {
        Some(Command::Net(net)) => net::run(net),
        Some(Command::Run(run)) => probe::run(run),
        None => show(&Place::of(&arguments.config)?.file(), arguments.json, out),
    }
}

fn show(file: &Path, json: bool, out: &mut dyn Write) -> Outcome {
    let proof = Proof::read(file, 0).map_err(|error| {
        Failure::Failed(match error.kind() {
            io::ErrorKind::NotFound => {
                "nothing proves that guests are guarded: run `systemctl enable --now outgate-proof-net.service`"
                    .to_owned()
            }
            _ => format!("{error}: run `systemctl restart outgate-proof-net.service`"),
        })
    })?;
    let now = since_boot();
    let standings: Vec<Standing> = proof.interfaces.iter().map(|interface| interface.standing(now)).collect();
    let proven = !proof.is_stopped && standings.contains(&Standing::Proven) && standings.iter().all(Standing::is_good);
    if json {
        let interfaces = proof.interfaces.iter().zip(&standings).map(|(interface, standing)| {
            json!({
                "interface": interface.interface, "state": standing.as_str(), "text": standing.text(),
                "age_seconds": interface.age(now).as_secs(), "rounds": interface.rounds,
                "other_packets": interface.other_packets, "checks": interface.checks,
            })
        });
        let interfaces: Vec<_> = interfaces.collect();
        write_json(&json!({ "proven": proven, "is_stopped": proof.is_stopped, "interfaces": interfaces }), out)?;
    } else {
        let rows = proof.interfaces.iter().zip(&standings).map(|(interface, standing)| {
            let age = format!("{} s ago", interface.age(now).as_secs());
            let age = if interface.rounds == 0 { "-".to_owned() } else { age };
            [&interface.interface, &standing.as_str().replace('_', " "), &interface.rounds.to_string(), &age]
                .map(|cell| printable(cell))
                .to_vec()
        });
        table::write(out, &["INTERFACE", "STATE", "ROUNDS", "LAST"], &rows.collect::<Vec<_>>())?;
        for text in standings.iter().filter_map(Standing::text) {
            writeln!(out, "{}", printable(text))?;
        }
        if proof.is_stopped {
            writeln!(out, "the proof is stopped: run `systemctl start outgate-proof-net.service`")?;
        }
    }
    Ok(if proven { Exit::Good } else { Exit::No })
}
