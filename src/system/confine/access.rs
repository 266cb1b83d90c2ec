//! Checks in advance the file access that the daemon needs while it runs: a reload must not be the first to
//! discover that a file can't be read without privileges.

use super::User;
use crate::shell::quoted;
use rustix::fs::{Access, access};
use std::io;
use std::path::{Path, PathBuf};

/// What a path is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read: a file, or a folder that is listed.
    Read,
    /// A folder in which files are created, replaced and read again.
    Keep,
    /// A folder in which a socket is created.
    Make,
    /// A file that is appended to, and created if it is missing.
    Append,
}

/// A path and what it is needed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The path.
    pub path: PathBuf,
    /// Its use.
    pub what: Use,
}

/// What the daemon could not do without privileges, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}: {who} may not {verb} it: {source}; {remedy}", path.display())]
pub struct AccessError {
    /// The file or folder.
    pub path: PathBuf,
    /// The user.
    pub who: String,
    /// Read or write.
    pub verb: &'static str,
    /// The kernel's error.
    pub source: io::Error,
    /// A command.
    pub remedy: String,
}

/// Checks each of `needs` with the current rights of this process, which runs as `user` or as whoever started it.
///
/// # Errors
/// The first need that is not met. A missing path is reported by its user.
pub fn check(needs: &[Need], user: Option<&User>) -> Result<(), AccessError> {
    needs.iter().try_for_each(|need| {
        let may = |path: &Path, wanted| ask(path, wanted, need, user);
        match need.what {
            Use::Read if need.path.is_dir() => may(&need.path, Access::READ_OK | Access::EXEC_OK),
            Use::Read => may(&need.path, Access::READ_OK),
            Use::Keep => {
                may(&need.path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
                // Files that an earlier start left there as another user.
                let entries = std::fs::read_dir(&need.path).into_iter().flatten().flatten();
                entries.map(|entry| entry.path()).try_for_each(|path| may(&path, Access::READ_OK))
            }
            Use::Make => may(&need.path, Access::WRITE_OK | Access::EXEC_OK),
            Use::Append if need.path.exists() => may(&need.path, Access::WRITE_OK),
            Use::Append => need.path.parent().map_or(Ok(()), |folder| may(folder, Access::WRITE_OK | Access::EXEC_OK)),
        }
    })
}

fn ask(path: &Path, wanted: Access, need: &Need, user: Option<&User>) -> Result<(), AccessError> {
    let Err(errno) = access(path, wanted) else { return Ok(()) };
    if errno == rustix::io::Errno::NOENT {
        return Ok(());
    }
    let verb = if wanted.contains(Access::WRITE_OK) { "write to" } else { "read" };
    let (who, remedy) = match user {
        Some(user) => (format!("user {}", user.name), remedy(need, &user.name)),
        None if rustix::process::geteuid().is_root() => {
            let remedy = format!("{}, or run as its owner with --user", remedy(need, "root"));
            ("root without capabilities".to_owned(), remedy)
        }
        None => ("this user without capabilities".to_owned(), "change its owner or mode".to_owned()),
    };
    Err(AccessError { path: path.to_owned(), who, verb, source: errno.into(), remedy })
}

fn remedy(need: &Need, name: &str) -> String {
    let path = need.path.to_string_lossy();
    let path = quoted(&path);
    match need.what {
        Use::Read => format!(
            "run `setfacl -R -m u:{name}:rX {path}`, and make sure that each folder above may be \
                              searched"
        ),
        Use::Keep => format!("run `chown -R {name}: {path}`"),
        Use::Make => format!("run `chown {name}: {path}`, or choose another [listen].control"),
        Use::Append => format!("run `touch {path} && chown {name}: {path}`"),
    }
}
