//! Asks systemd about units, by systemctl(1).

use std::path::Path;
use std::process::Command;

/// Whether systemd is this machine's init (sd_booted(3)).
pub(super) fn is_init() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Returns a property of a unit; empty if it has none.
pub(super) fn show(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl").args(["show", "-P", property, unit]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Whether a unit is active, or will be after the next boot.
pub(super) fn is_used(unit: &str) -> bool {
    show(unit, "ActiveState") == "active" || show(unit, "UnitFileState") == "enabled"
}
