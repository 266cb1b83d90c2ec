//! The privileges that the daemon gives up once it has what it needs: root's user ID for another's ([`User`]),
//! every capability ([`give_up`]), writing outside its own folders and executing programs ([`fence_files`],
//! Landlock), and all system calls that it does not need ([`fence_calls`], seccomp). Capabilities, user and
//! Landlock apply to each thread, so the first three are done before a second thread exists, and are inherited;
//! the last applies to all threads at once. The daemon decides which folders, and when. A command of `outgate
//! exec` has its own filter ([`fence_command`]).

mod access;
mod calls;
mod command;
mod landlock;
mod privileges;
mod users;

pub use access::{AccessError, Need, Use, check};
pub use calls::fence_calls;
pub use command::fence_command;
pub use landlock::fence_files;
pub use privileges::{PrivilegeError, give_up, is_privileged};
pub use users::{User, UserError};

/// The command line's options for confinement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confine {
    /// The user to become once all listeners are open.
    pub user: Option<User>,
    /// Landlock and seccomp; capabilities are given up in any case.
    pub sandbox: bool,
}

impl Default for Confine {
    fn default() -> Confine {
        Confine { user: None, sandbox: true }
    }
}
