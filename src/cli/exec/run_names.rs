//! The names of a run. All of them derive from the guest's name, so that a run finds what an earlier one of that
//! name left behind.

use std::path::{Path, PathBuf};

/// The folder of root's that contains the locks of runs. It is not in the daemon's, whose user could move it away.
const FOLDER: &str = "/run/outgate-exec";
/// Prefix of the host's end of each pair.
pub(super) const PREFIX: &str = "og-";

/// The names of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The guest's name.
    pub(super) guest: String,
    /// The host's end of the pair, 11 of the 15 bytes that an interface name may have.
    pub(super) interface: String,
    /// The network namespace, as ip-netns(8) knows it.
    pub(super) namespace: String,
}

impl Names {
    /// Returns the names for the guest of this name, which must be a valid guest name.
    pub(super) fn of(guest: &str) -> Names {
        let digest = ring::digest::digest(&ring::digest::SHA256, guest.as_bytes());
        let digits: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Names { guest: guest.to_owned(), interface: format!("{PREFIX}{digits}"), namespace: format!("outgate-{guest}") }
    }

    /// Returns the lock that is held for as long as the run lasts.
    pub(super) fn lock(&self) -> PathBuf {
        folder().join(format!("{}.lock", self.guest))
    }

    /// Returns the file under which ip-netns(8) keeps the namespace.
    pub(super) fn handle(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }
}

/// Returns the folder of the locks.
pub(super) fn folder() -> &'static Path {
    Path::new(FOLDER)
}

/// Returns the lock that is held while a run creates its guest, so that two runs do not choose the same address.
/// No guest's lock has this name.
pub(super) fn line() -> PathBuf {
    folder().join("line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_a_length_that_the_kernel_takes_and_each_guests_own() {
        let long = Names::of(&"x".repeat(64));
        assert!(long.interface.len() <= 15 && long.namespace.len() < 255);
        assert_eq!(Names::of("job"), Names::of("job"));
        assert_ne!(Names::of("job").interface, Names::of("job2").interface);
    }
}
