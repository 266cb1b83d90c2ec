//! Looks up the user to become, in `/etc/passwd` and `/etc/group` only (passwd(5), group(5)): the name services of
//! the C library would load code and query servers, as root.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As in `/etc/passwd`.
    pub name: String,
    /// User id; never 0.
    pub uid: u32,
    /// The user's own group; never 0.
    pub gid: u32,
    /// All groups, the user's own first, each once.
    pub groups: Vec<u32>,
}

/// Why the process cannot become that user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No line names it.
    #[error("{PASSWD} has no user {0:?}; create one with `adduser --system --group {0}`, or name another with --user")]
    Unknown(String),
    /// It is root, so nothing would be given up.
    #[error("{0:?} is root or in root's group; name a user without privileges with --user")]
    Root(String),
    /// A file can't be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A line about this user is malformed.
    #[error("{path}:{line}: user id and group id must be numbers below 4294967295")]
    Malformed {
        /// The file.
        path: &'static str,
        /// From 1.
        line: usize,
    },
}

impl User {
    /// Finds `name`.
    ///
    /// # Errors
    /// [`UserError`]; each message names the remedy.
    pub fn find(name: &str) -> Result<User, UserError> {
        User::from_files(name, &read(PASSWD)?, &read(GROUP)?)
    }

    fn from_files(name: &str, passwd: &str, group: &str) -> Result<User, UserError> {
        // An empty name, or one with a colon, would match lines that are not entries.
        let is_name = !name.is_empty() && !name.contains([':', '\n', ',']) && !name.starts_with(['+', '-', '#']);
        let unknown = || UserError::Unknown(name.to_owned());
        let mut lines = (1..).zip(passwd.lines()).filter(|_| is_name);
        let (line, fields) = lines
            .find_map(|(line, text)| Some((line, text.strip_prefix(name)?.strip_prefix(':')?)))
            .ok_or_else(unknown)?;
        let malformed = |path, line| UserError::Malformed { path, line };
        let mut fields = fields.split(':').skip(1);
        let (uid, gid) = (id(fields.next()), id(fields.next()));
        let (Some(uid), Some(gid)) = (uid, gid) else { return Err(malformed(PASSWD, line)) };
        let mut groups = vec![gid];
        for (line, text) in (1..).zip(group.lines()) {
            let mut fields = text.split(':').skip(2);
            let (group, members) = (fields.next(), fields.next().unwrap_or_default());
            if !members.split(',').any(|member| member == name) {
                continue;
            }
            let group = id(group).ok_or_else(|| malformed(GROUP, line))?;
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        if uid == 0 || groups.contains(&0) {
            return Err(UserError::Root(name.to_owned()));
        }
        Ok(User { name: name.to_owned(), uid, gid, groups })
    }
}

/// Parses a number as these files contain it; the largest means "none" to the kernel.
fn id(text: Option<&str>) -> Option<u32> {
    let text = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn read(path: &'static str) -> Result<String, UserError> {
    let unreadable = |source| UserError::Unreadable { path, source };
    let mut bytes = Vec::new();
    File::open(Path::new(path)).map_err(unreadable)?.take(MAX_FILE).read_to_end(&mut bytes).map_err(unreadable)?;
    // Real names in other encodings do not affect ids.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\n\
        outgate-x:x:7:7::/:/bin/sh\n\
        outgate:x:994:993:Jos\u{e9}:/nonexistent:/usr/sbin/nologin\n\
        twisted:x:0x3:5::/:\n\
        minus:x:-1:5::/:\n\
        none:x:4294967295:5::/:\n\
        wheel:x:5:5::/:\n";
    const GROUPS: &str = "root:x:0:wheel\noutgate:x:993:\nkvm:x:104:qemu,outgate,x\nadm:x:4:outgate\nx:x:104:outgate\n";

    fn find(name: &str) -> Result<User, UserError> {
        User::from_files(name, USERS, GROUPS)
    }

    #[test]
    fn a_user_has_its_own_group_first_and_each_other_once() {
        let user = find("outgate").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (994, 993, vec![993, 104, 4]));
    }

    #[test]
    fn who_is_root_by_whatever_way_is_refused() {
        for name in ["root", "wheel"] {
            assert!(matches!(find(name), Err(UserError::Root(_))), "{name}");
        }
    }

    #[test]
    fn what_is_no_name_or_no_number_is_an_error() {
        for name in ["", "nobody", "outgate:x", "gate", "x", "\n", "+", "outgat"] {
            assert!(matches!(find(name), Err(UserError::Unknown(_))), "{name:?}");
        }
        for name in ["twisted", "minus", "none"] {
            assert!(matches!(find(name), Err(UserError::Malformed { path: PASSWD, .. })), "{name}");
        }
        let error = User::from_files("outgate", USERS, "a:x::outgate\n").unwrap_err();
        assert_eq!(error.to_string(), "/etc/group:1: user id and group id must be numbers below 4294967295");
    }
}
