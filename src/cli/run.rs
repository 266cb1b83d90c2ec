//! `outgate run`: the daemon in the foreground.

use super::{Config, Exit, Failure, Outcome, bridge};
use clap::Args;
use outgate::config::{ConfigError, Copies, Copy, Settings};
use outgate::daemon::Basis;
use outgate::system::{self, Confine, User};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// Run the daemon, in the foreground, until SIGTERM or SIGINT
///
/// Without a configuration file it listens on 127.0.0.1:3128 (proxy) and 127.0.0.1:3190 (admin) and uses the built-in
/// whitelist. SIGHUP reads configuration and lists again. A transparent listener requires root or CAP_NET_ADMIN at
/// the start; `outgate firewall apply` installs the ruleset that directs guests to it. Once the listeners are open,
/// every capability is given up permanently.
///
/// Under a service manager (NOTIFY_SOCKET is set) it starts even if the configuration or the lists are invalid: with
/// the last configuration that worked, from a copy that root keeps. Without a copy it refuses everything with
/// `not_configured` until the files have changed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate run
  outgate run --config ./outgate.toml --log-level debug
  sudo outgate run --user outgate
  curl -x http://127.0.0.1:3128 https://ipfs.io/")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
    /// What to log on standard error: error, warn, info, debug, trace, or a filter as in RUST_LOG [default: $RUST_LOG
    /// or info]
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Become this user once all listeners are open; requires root. The state dir and the folder of the control
    /// socket are created for it
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Where the copy of the last configuration that worked is kept [default: /var/lib/outgate-host for
    /// /etc/outgate/outgate.toml; no copy for another file]
    #[arg(long, value_name = "DIR")]
    copies: Option<PathBuf>,
    /// Run without Landlock and the system call filter; only for a kernel or C library on which they break the
    /// daemon, and only until that is reported
    #[arg(long)]
    no_sandbox: bool,
}

/// The DNS library logs names that guests asked for; the access log contains them, escaped.
const DEFAULT_LEVEL: &str = "info,hickory_resolver=error,hickory_net=error,hickory_proto=error";

pub(super) fn run(arguments: Arguments) -> Outcome {
    log_to_stderr(arguments.log_level.clone())?;
    let confine = confine(arguments.user.as_deref(), !arguments.no_sandbox)?;
    let basis = match Settings::load(arguments.config.file()) {
        Ok((settings, warnings)) => {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            Basis::Current(settings)
        }
        Err(error) if system::has_manager() => otherwise(&arguments, error),
        Err(error) => return Err(error.into()),
    };
    bridge::run_daemon(basis, &confine).map_err(Failure::Failed)?;
    Ok(Exit::Good)
}

/// Returns the basis if the configuration cannot be used.
fn otherwise(arguments: &Arguments, error: ConfigError) -> Basis {
    let config = arguments.config.file();
    let problems = error.into_diagnostics();
    problems.iter().for_each(|problem| tracing::error!("{problem}"));
    let first = problems.iter().find(|problem| problem.is_error()).map(ToString::to_string).unwrap_or_default();
    match Copies::of(config, arguments.copies.as_deref()).map(|copies| copies.load(Copy::Worked)) {
        Some(Ok(Some(kept))) => {
            let why = format!(
                "the configuration is invalid ({first}); the one that worked on {} is in force, {}: correct the file \
                 and run `outgate whitelist reload`",
                kept.made,
                kept.path.display()
            );
            tracing::error!("{why}");
            return Basis::KeptConfiguration(kept.settings, why);
        }
        Some(Err(error)) => tracing::error!("the copy of the configuration that worked last cannot be used: {error}"),
        Some(Ok(None)) | None => {}
    }
    // The listeners are taken from what can be read of it.
    let rest = Settings::load_leniently(config).map(|(settings, _)| settings);
    let settings = rest.unwrap_or_else(|_| Settings {
        path: config.map(PathBuf::from).or_else(|| Settings::default().path),
        ..Settings::default()
    });
    Basis::Nothing(settings, first)
}

fn confine(user: Option<&str>, sandbox: bool) -> Result<Confine, Failure> {
    let Some(name) = user else { return Ok(Confine { user: None, sandbox }) };
    if !system::is_root() {
        return Err(Failure::Usage("--user requires root; start outgate as that user, and without --user".to_owned()));
    }
    let user = User::find(name).map_err(|error| Failure::Failed(error.to_string()))?;
    Ok(Confine { user: Some(user), sandbox })
}

fn log_to_stderr(level: Option<String>) -> Result<(), Failure> {
    let from_environment = || std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let wanted = level.or_else(from_environment).unwrap_or_else(|| DEFAULT_LEVEL.to_owned());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        Failure::Usage(format!("{wanted:?} is not a log level ({error}); write error, warn, info, debug or trace"))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    // The journal adds its own timestamps.
    let installed = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    installed.map_err(|error| Failure::Failed(format!("the log cannot be set up: {error}")))
}
