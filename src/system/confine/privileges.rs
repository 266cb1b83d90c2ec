//! Gives up capabilities and, if requested, the user, permanently (capabilities(7), credentials(7)). All of this
//! applies to the calling thread, so it is done while there is no other.

use super::User;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::io;

/// Why privileges can't be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Only root can become another user.
    #[error("--user requires root; start outgate as root, or as {0} and without --user")]
    NotRoot(String),
    /// Existing threads would keep what this one gives up.
    #[error(
        "privileges must be given up before threads are started, and there are {0}; this is a defect, please report it"
    )]
    Threads(usize),
    /// The kernel refuses a step.
    #[error("cannot give up privileges: {step}: {source}")]
    Kernel {
        /// The step that failed.
        step: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Returns whether there is something to give up: user id 0 or any capability.
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root() || capabilities(None).is_ok_and(|sets| !sets.permitted.is_empty())
}

/// Gives up all capabilities of all sets, and the possibility to gain any by running a program; becomes `user`, if
/// one is given. Call it while the process has one thread.
///
/// # Errors
/// [`PrivilegeError`]. Some privileges may already be gone then, and the process must not continue.
pub fn give_up(user: Option<&User>) -> Result<(), PrivilegeError> {
    if let Some(user) = user
        && !rustix::process::geteuid().is_root()
    {
        return Err(PrivilegeError::NotRoot(user.name.clone()));
    }
    if let Ok(threads) = std::fs::read_dir("/proc/self/task").map(Iterator::count)
        && threads != 1
    {
        return Err(PrivilegeError::Threads(threads));
    }
    close_ways_back();
    if let Some(user) = user {
        become_user(user)?;
    }
    step("ambient capabilities", clear_ambient_capability_set())?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    step("capset", set_capabilities(None, sets))?;
    step("no_new_privs", set_no_new_privs(true))
}

/// Prevents a program that is run later from gaining capabilities again. If the process may not set these bits (a
/// container without CAP_SETPCAP), no_new_privs alone does it.
fn close_ways_back() {
    use CapabilitiesSecureBits as Bits;
    let bits = Bits::NO_ROOT
        | Bits::NO_ROOT_LOCKED
        | Bits::KEEP_CAPS_LOCKED
        | Bits::NO_CAP_AMBIENT_RAISE
        | Bits::NO_CAP_AMBIENT_RAISE_LOCKED;
    if let Err(error) = set_capabilities_secure_bits(bits) {
        tracing::debug!(%error, "securebits stay as they are");
    }
    // The kernel reports where its capabilities end, which may be beyond those this program knows.
    for capability in (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        match capability_is_in_bounding_set(capability) {
            Err(_) => break,
            Ok(false) => {}
            Ok(true) => {
                if let Err(error) = remove_capability_from_bounding_set(capability) {
                    tracing::debug!(%error, "the bounding set stays as it is");
                    break;
                }
            }
        }
    }
}

fn become_user(user: &User) -> Result<(), PrivilegeError> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    step("setgroups", set_thread_groups(&groups))?;
    step("setresgid", set_thread_res_gid(gid, gid, gid))?;
    step("setresuid", set_thread_res_uid(uid, uid, uid))
}

fn step(step: &'static str, result: Result<(), Errno>) -> Result<(), PrivilegeError> {
    match result {
        Ok(()) => Ok(()),
        // A kernel without ambient capabilities has nothing to clear.
        Err(Errno::INVAL) if step == "ambient capabilities" => Ok(()),
        Err(errno) => Err(PrivilegeError::Kernel { step, source: errno.into() }),
    }
}
