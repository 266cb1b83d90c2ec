//! Runs nft(8), ip(8) and similar programs, with their input and output.

use serde_json::Value;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why the firewall could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// Only root can change and read the ruleset.
    #[error("only root may read or change the firewall; run it with sudo")]
    NotRoot,
    /// The configuration requires no firewall.
    #[error("the configuration has no firewall; set [firewall].guest_interfaces (or host_users)")]
    NotWanted,
    /// A program is missing or cannot be run.
    #[error("cannot run {program}: {source}; install the package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that contains it.
        package: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A program refused.
    #[error("{program} refused {what}: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The purpose of the call.
        what: &'static str,
        /// Its error message.
        said: String,
    },
    /// The output of a program is not as expected.
    #[error("{program} printed output that cannot be read: {source}")]
    Unreadable {
        /// The program.
        program: &'static str,
        /// The parse error.
        source: serde_json::Error,
    },
}

/// Runs `program`; returns its output.
pub fn run(
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
        // A program that exits early reports the reason on its standard error.
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

/// Runs `program` and parses its output as JSON; no output is an empty list.
pub fn json(program: &'static str, arguments: &[&str], what: &'static str) -> Result<Value, FirewallError> {
    let text = run(program, arguments, "", what)?;
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&text).map_err(|source| FirewallError::Unreadable { program, source })
}

/// Returns what nft(8) lists with these arguments: each item is an object of one field, its kind.
pub(super) fn listed(arguments: &[&str], what: &'static str) -> Result<Vec<Value>, FirewallError> {
    let arguments: Vec<&str> = ["-j", "list"].iter().chain(arguments).copied().collect();
    Ok(items(json("nft", &arguments, what)?))
}

/// Returns the items of nft(8)'s JSON output.
pub(super) fn items(mut printed: Value) -> Vec<Value> {
    let Some(Value::Array(mut items)) = printed.get_mut("nftables").map(Value::take) else { return Vec::new() };
    items.retain(|item| item.get("metainfo").is_none());
    items
}

/// Returns the path of `program`, for callers that start it in an environment of their own.
pub fn find(program: &'static str) -> Result<PathBuf, FirewallError> {
    let candidates: Vec<PathBuf> = std::env::split_paths(&path()).map(|folder| folder.join(program)).collect();
    let missing = || {
        let source = io::Error::from(io::ErrorKind::NotFound);
        FirewallError::Missing { program, package: package(program), source }
    };
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(missing)
}

/// Returns the search path with the folders of administrators' programs, which not every user has.
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
