//! What the daemon gives up once it has what it needs: another user's name instead of root's
//! ([`User`]), every capability ([`give_up`]), writing anywhere but in its own folders and running
//! anything ([`fence_files`], Landlock), and all system calls that it has no use for
//! ([`fence_calls`], seccomp). Capabilities, user and Landlock are a matter of each thread, so the first
//! three come before any second thread exists and are inherited; the last takes in all threads at once.
//! What the folders are, and when, is for the daemon to say. A command of `outgate exec` has a filter of its own
//! ([`fence_command`]).

mod access;
mod calls;
mod command;
mod files;
mod privileges;
mod users;

pub use access::{AccessError, Need, Use, check};
pub use calls::fence_calls;
pub use command::fence_command;
pub use files::fence_files;
pub use privileges::{PrivilegeError, give_up, is_privileged};
pub use users::{User, UserError};

/// What the command line says about confinement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confine {
    /// Whom to become once all listeners are open.
    pub user: Option<User>,
    /// Landlock and seccomp; capabilities go in any case.
    pub sandbox: bool,
}

impl Default for Confine {
    fn default() -> Confine {
        Confine { user: None, sandbox: true }
    }
}
