//! Loads and counterparts for comparing outgate with other proxies: an origin, a bare relay as the
//! floor, and clients that measure. `run.py` beside this file sets the stage, starts the peers and
//! prints the tables; this program knows nothing of any proxy but its address and its process.

#![allow(clippy::pedantic, clippy::restriction, reason = "a measurement that fails ends")]
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "a measurement that fails ends")]
#![warn(clippy::dbg_macro, clippy::todo, clippy::unimplemented)]

mod hold;
mod meter;
mod origin;
mod pipelines;
mod pki;
mod proxy_tls;
mod rates;
mod relay;
mod reload;
mod rotate;
mod wire;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "peers", about = "Loads for comparing egress proxies. Each load prints one line of JSON.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve raw bytes, HTTP, and HTTP over TLS
    Origin(origin::Args),
    /// Make the certificates of a run
    Pki(pki::Args),
    /// Relay and do nothing else: what the kernel charges, and a runtime
    Relay(relay::Args),
    /// CONNECT, one byte there and back, close
    Tunnels(rates::Args),
    /// Plain HTTP on kept connections, 1 KiB an answer
    Http(rates::Args),
    /// CONNECT to a name that is not allowed
    Refused(rates::Args),
    /// A TLS handshake with the origin, one request, close
    Tls(rates::Args),
    /// Streams through tunnels: CPU time for each GiB
    Bulk(hold::BulkArgs),
    /// Tunnels held open: memory for each
    Idle(hold::IdleArgs),
    /// Small exchanges of one client while another one streams
    Fair(hold::FairArgs),
    /// Plain requests of one client while another one sends them on many connections, one behind the other
    Pipelines(pipelines::Args),
    /// One tunnel after another while the list is rewritten
    Reload(reload::Args),
    /// A TLS handshake with the proxy, CONNECT, one byte there and back, close
    Handshake(proxy_tls::Args),
    /// Streams through the proxy's TLS: CPU time for each GiB
    TlsBulk(proxy_tls::TlsBulkArgs),
    /// Handshakes at an even pace while the proxy's certificate is replaced
    Rotate(rotate::Args),
}

fn main() -> ExitCode {
    // `cargo bench` runs every bench, with --bench among the arguments; this one takes root and minutes.
    if std::env::args_os().len() < 2 || std::env::args_os().any(|argument| argument == "--bench") {
        println!("peers: not run by `cargo bench`; see `sudo python3 benches/peers/run.py --help`");
        return ExitCode::SUCCESS;
    }
    let command = Cli::parse().command;
    meter::raise_open_files();
    let outcome = match command {
        Command::Origin(args) => origin::run(args).map_err(wire::Failure::from),
        Command::Pki(args) => pki::run(args).map_err(wire::Failure::from),
        Command::Relay(args) => wire::block_on(relay::run(args)).map_err(wire::Failure::from),
        Command::Tunnels(args) => wire::block_on(rates::tunnels(args)),
        Command::Http(args) => wire::block_on(rates::http(args)),
        Command::Refused(args) => wire::block_on(rates::refused(args)),
        Command::Tls(args) => wire::block_on(rates::tls(args)),
        Command::Bulk(args) => wire::block_on(hold::bulk(args)),
        Command::Idle(args) => wire::block_on(hold::idle(args)),
        Command::Fair(args) => wire::block_on(hold::fair(args)),
        Command::Pipelines(args) => wire::block_on(pipelines::pipelines(args)),
        Command::Reload(args) => wire::block_on(reload::reload(args)),
        Command::Handshake(args) => wire::block_on(proxy_tls::handshake(args)),
        Command::TlsBulk(args) => wire::block_on(proxy_tls::bulk(args)),
        Command::Rotate(args) => wire::block_on(rotate::rotate(args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("peers: {failure}");
            ExitCode::FAILURE
        }
    }
}
