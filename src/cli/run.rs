//! `outgate run`: the daemon in the foreground.

use super::{Config, Exit, Failure, Outcome, bridge};
use crate::config::Settings;
use clap::Args;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;

/// Run the daemon, in the foreground, until SIGTERM or SIGINT
///
/// Without a configuration file it listens on 127.0.0.1:3128 (proxy) and 127.0.0.1:3190 (admin) and
/// uses the whitelist that is built in. SIGHUP reads configuration and lists again. A transparent
/// listener takes root, or CAP_NET_ADMIN, at the start; the ruleset that brings guests to it is
/// `outgate firewall apply`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outgate run
  outgate run --config ./outgate.toml --log-level debug
  curl -x http://127.0.0.1:3128 https://ipfs.io/")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: Config,
    /// What to log on standard error: error, warn, info, debug, trace, or as RUST_LOG has it
    /// [default: $RUST_LOG or info]
    #[arg(short, long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// The DNS library reports names that guests asked for; the access log has them, escaped.
const DEFAULT_LEVEL: &str = "info,hickory_resolver=error,hickory_net=error,hickory_proto=error";

pub(super) fn run(arguments: Arguments) -> Outcome {
    log_to_stderr(arguments.log_level)?;
    let (settings, warnings) = Settings::load(arguments.config.config.as_deref())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    bridge::run_daemon(settings).map_err(Failure::Failed)?;
    Ok(Exit::Good)
}

fn log_to_stderr(level: Option<String>) -> Result<(), Failure> {
    let from_environment = || std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let wanted = level.or_else(from_environment).unwrap_or_else(|| DEFAULT_LEVEL.to_owned());
    let filter = EnvFilter::try_new(&wanted).map_err(|error| {
        Failure::Usage(format!("{wanted:?} is no log level ({error}); write error, warn, info, debug or trace"))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    // The journal has its own clock.
    let installed = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    installed.map_err(|error| Failure::Failed(format!("the log cannot be set up: {error}")))
}
