//! Landlock: the whole tree may be read, as far as file modes allow. Nothing may be written outside the named
//! folders, no program executed, and no process outside signalled. Best effort: older kernels enforce less, and
//! some nothing.
//!
//! TCP ports may be bound, since dialling selects some by number (`dial/local_ports.rs`); the system call filter
//! prevents listening on them.
//!
//! Reading is not restricted: lists may be links to anywhere, and a reload may name another `hosts_file` or
//! contain a link that leads elsewhere. File modes protect what guests could otherwise gain through an open file
//! descriptor; they apply to the daemon, since it has no capability.

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::path::PathBuf;

/// Requests rights up to this version of Landlock's interface. Later versions restrict sockets by path, which the
/// journal and the service manager need.
const KNOWN: ABI = ABI::V6;

/// Restricts the calling thread, and everything it starts from now on, to write only beneath `writable`. Skips
/// missing folders. Returns the version of Landlock's interface in force, or 0 if the kernel has none, and then
/// logs why.
pub fn fence_files(writable: &[PathBuf]) -> u8 {
    match restrict(writable) {
        Ok(0) => {
            tracing::warn!("this kernel has no Landlock: only file modes limit what the daemon can write");
            0
        }
        Ok(version) => version,
        Err(error) => {
            tracing::warn!(%error, "Landlock cannot be used: only file modes limit what the daemon can write");
            0
        }
    }
}

fn restrict(writable: &[PathBuf]) -> Result<u8, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(scopes())?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate;
    let mut ruleset = match PathFd::new("/") {
        Ok(root) => ruleset.add_rule(PathBeneath::new(root, read))?,
        Err(_) => ruleset,
    };
    for folder in writable {
        if let Ok(folder) = PathFd::new(folder) {
            ruleset = ruleset.add_rule(PathBeneath::new(folder, write))?;
        }
    }
    let status = ruleset.restrict_self()?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Ok(0),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(effective_abi as u8),
        _ => Ok(0),
    }
}

/// Returns the scopes to restrict. A service manager may listen on an abstract socket (sd_notify(3)).
fn scopes() -> BitFlags<Scope> {
    let notify = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    match notify.as_encoded_bytes().starts_with(b"@") {
        true => Scope::Signal.into(),
        false => Scope::Signal | Scope::AbstractUnixSocket,
    }
}
