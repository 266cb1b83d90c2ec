//! Asks systemd about units, and changes them, by systemctl(1).

use outgate::text::printable;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether systemd is this machine's init (sd_booted(3)).
pub(super) fn is_init() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Returns a property of a unit; empty if it has none.
pub(super) fn show(unit: &str, property: &str) -> String {
    // In a process group of its own: what Ctrl-C ended would be taken for a unit without this property.
    let output = Command::new("systemctl").args(["show", "-P", property, unit]).process_group(0).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Whether a unit is active, or will be after the next boot.
pub(super) fn is_used(unit: &str) -> bool {
    show(unit, "ActiveState") == "active" || show(unit, "UnitFileState") == "enabled"
}

/// Runs systemctl(1) with these arguments; an error names the command.
pub(super) fn systemctl(arguments: &[&str]) -> Result<(), String> {
    let failed = |why: String| format!("`systemctl {}` failed: {why}", arguments.join(" "));
    // In a process group of its own: Ctrl-C is for this program, which puts back what it began. And what it tells a service
    // manager is not this process's.
    let mut command = Command::new("systemctl");
    command.args(arguments).process_group(0).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET");
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(printable(String::from_utf8_lossy(&output.stderr).trim()))),
    }
}
