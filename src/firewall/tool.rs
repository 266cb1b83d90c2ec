//! Running nft(8), ip(8) and their like, with what they are fed and what they said.

use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why the firewall could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// Changing and reading the ruleset is root's.
    #[error("only root may read or change the firewall; run it with sudo")]
    NotRoot,
    /// The configuration asks for no firewall.
    #[error("the configuration asks for no firewall; set [firewall].guest_interfaces (or host_users)")]
    NotWanted,
    /// A program is missing or cannot be run.
    #[error("cannot run {program}: {source}; install the package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A program refused.
    #[error("{program} refused {what}: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What it was to do.
        what: &'static str,
        /// What it said.
        said: String,
    },
    /// What a program printed is not what was expected.
    #[error("{program} printed what cannot be read: {source}")]
    Unreadable {
        /// The program.
        program: &'static str,
        /// Where the reading failed.
        source: serde_json::Error,
    },
}

/// Runs `program`; gives what it printed.
pub(crate) fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
    what: &'static str,
) -> Result<String, FirewallError> {
    let missing = |source| FirewallError::Missing { program, package: package(program), source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path())
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect::<Vec<_>>().join("; ");
    let said = if said.is_empty() { output.status.to_string() } else { said };
    Err(FirewallError::Refused { program, what, said })
}

/// Runs `program` and reads what it printed as JSON; nothing is an empty list.
pub(crate) fn json(program: &'static str, arguments: &[&str], what: &'static str) -> Result<Value, FirewallError> {
    let text = run(program, arguments, "", what)?;
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&text).map_err(|source| FirewallError::Unreadable { program, source })
}

/// What nft(8) lists with these arguments: each item is an object of one field, its kind.
pub(super) fn listed(arguments: &[&str], what: &'static str) -> Result<Vec<Value>, FirewallError> {
    let arguments: Vec<&str> = ["-j", "list"].iter().chain(arguments).copied().collect();
    Ok(items(json("nft", &arguments, what)?))
}

/// The items of what nft(8) printed as JSON.
pub(super) fn items(mut printed: Value) -> Vec<Value> {
    let Some(Value::Array(mut items)) = printed.get_mut("nftables").map(Value::take) else { return Vec::new() };
    items.retain(|item| item.get("metainfo").is_none());
    items
}

/// Where `program` is, for who starts it in a surrounding of its own.
pub(crate) fn find(program: &'static str) -> Result<PathBuf, FirewallError> {
    let candidates: Vec<PathBuf> = std::env::split_paths(&path()).map(|folder| folder.join(program)).collect();
    let missing = || {
        let source = io::Error::from(io::ErrorKind::NotFound);
        FirewallError::Missing { program, package: package(program), source }
    };
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(missing)
}

/// The folders of administrators' programs are not on everybody's path.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for folder in ["/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !std::env::split_paths(&path).any(|entry| entry == Path::new(folder)) {
            path.push(":");
            path.push(folder);
        }
    }
    path
}

fn package(program: &str) -> &'static str {
    match program {
        "nft" => "nftables",
        "ip" => "iproute2",
        "unshare" => "util-linux",
        "getent" => "libc-bin",
        _ => "iptables",
    }
}
