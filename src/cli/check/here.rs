//! `outgate check --here`: what the files alone do not show, and what would prevent `run` from starting on this
//! machine: socket units, addresses, owners and modes of what the daemon uses, guests' interfaces.

use crate::cli::systemd;
use outgate::accept::{self, SocketUse, socket_unit};
use outgate::config::Settings;
use outgate::control;
use outgate::daemon;
use outgate::diagnostic::{Diagnostic, Severity};
use outgate::firewall::{Host, Plan};
use outgate::system::{self, User};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The user as whom the unit runs the daemon.
const USER: &str = "outgate";

/// Returns everything that is in the way on this machine.
pub(super) fn problems(settings: &Settings) -> Vec<Diagnostic> {
    let file = settings.path.clone().unwrap_or_default();
    let problem = |severity| move |text: String| (severity, text);
    let mut found: Vec<(Severity, String)> = Vec::new();
    found.extend(listeners(settings).into_iter().map(problem(Severity::Error)));
    found.extend(unusable(settings).map(problem(Severity::Error)));
    found.extend(interfaces(settings).into_iter().map(problem(Severity::Warning)));
    found.into_iter().map(|(severity, text)| Diagnostic::whole_file(severity, &file, text)).collect()
}

/// Returns the first of the daemon's files that this process's user cannot use.
pub(super) fn unusable_as(settings: &Settings, user: Option<&User>) -> Option<String> {
    system::check(&daemon::needs(settings), user).err().map(|error| error.to_string())
}

fn listeners(settings: &Settings) -> Vec<String> {
    let configured: Vec<(SocketUse, SocketAddr)> = settings.listen.listeners().collect();
    if systemd::is_init() {
        // A unit that is not used holds nothing.
        let shown = |unit: &str| if systemd::is_used(unit) { systemd::show(unit, "Listen") } else { String::new() };
        // The package's unit, or the one that `outgate listen apply` wrote.
        let held =
            |kind: SocketUse, address| format!("{}\n{}", shown(kind.unit()), shown(&socket_unit::name(kind, address)));
        let missing = accept::not_held(&configured, held);
        return missing.map(|error| error.to_string()).into_iter().collect();
    }
    // A running daemon holds them.
    if settings.listen.control.as_deref().is_some_and(|socket| control::client(socket).get("/status").is_ok()) {
        return Vec::new();
    }
    let fails = |(kind, address): &(SocketUse, SocketAddr)| {
        let error = TcpListener::bind(address).err()?;
        Some(format!("cannot listen on {address} ({}): {error}", kind.key()))
    };
    configured.iter().filter_map(fails).collect()
}

/// Checks as the daemon's user, if root runs this and that user exists: root may read everything.
fn unusable(settings: &Settings) -> Option<String> {
    let user = User::find(USER).ok().filter(|_| system::is_root());
    let Some(user) = user else { return unusable_as(settings, None) };
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["check", "--needs-of", USER]).stdin(Stdio::null());
    if let Some(config) = &settings.path {
        command.arg("--config").arg(config);
    }
    let output = command.uid(user.uid).gid(user.gid).output().ok()?;
    if output.status.success() {
        return None;
    }
    // It may not be able to read the configuration itself.
    let said = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&said).trim().to_owned())
}

fn interfaces(settings: &Settings) -> Vec<String> {
    if !settings.firewall.is_wanted() {
        return Vec::new();
    }
    match Host::look() {
        Ok(host) => Plan::new(&settings.plan_input(), &host).in_the_way(&host),
        Err(error) => vec![error.to_string()],
    }
}
