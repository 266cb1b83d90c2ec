//! The last step before the command, in a process that then becomes it: AppArmor profile, user, no capability, system
//! call filter. Only the change of user requires root.

use super::{WORD, leave_profile};
use crate::cli::Failure;
use outgate::system::{User, fence_command, give_up};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The first argument that selects this role.
pub(super) const BECOME: &str = "exec-become";
/// The exit codes of shells for a command that does not exist, and for one that cannot be run.
const MISSING: u8 = 127;
const UNFIT: u8 = 126;

/// The user as whom the command runs, in messages between processes of this program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli::exec) struct Identity {
    name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl From<&User> for Identity {
    fn from(User { name, uid, gid, groups }: &User) -> Identity {
        Identity { name: name.clone(), uid: *uid, gid: *gid, groups: groups.clone() }
    }
}

impl Identity {
    /// Returns the user id.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    fn user(self) -> User {
        let Identity { name, uid, gid, groups } = self;
        User { name, uid, gid, groups }
    }
}

/// Returns the second argument for becoming this user, or staying the current one.
pub(super) fn argument(identity: Option<&Identity>) -> io::Result<String> {
    Ok(serde_json::to_string(&identity)?)
}

/// Becomes the command. Returns only on a failure.
pub(super) fn become_it(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let identity = arguments.next().and_then(|text| serde_json::from_slice(text.as_encoded_bytes()).ok());
    let (Some(identity), Some(program)) = (identity, arguments.next()) else {
        let failure = Failure::Usage(format!("{BECOME} is for {WORD} alone"));
        failure.report();
        return failure.exit().into();
    };
    let identity: Option<Identity> = identity;
    let user = identity.map(Identity::user);
    // The profile first: without new privileges, kernels may refuse the change.
    let confined = leave_profile().and_then(|()| give_up(user.as_ref()).map_err(io::Error::other));
    let (failure, code) = match confined.and_then(|()| fence_command()) {
        Err(error) => {
            let failure = Failure::Failed(error.to_string());
            let code = failure.exit().into();
            (failure, code)
        }
        Ok(()) => {
            let error = Command::new(&program).args(arguments).exec();
            let code = if error.kind() == io::ErrorKind::NotFound { MISSING } else { UNFIT };
            (Failure::Failed(format!("{}: {error}", program.display())), code.into())
        }
    };
    failure.report();
    code
}
