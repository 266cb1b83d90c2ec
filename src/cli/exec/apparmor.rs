//! Leaves the package's AppArmor profile (`packaging/apparmor/outgate`), which permits outgate to create user namespaces
//! on systems that restrict them (Ubuntu 23.10 and later). A program without a profile of its own runs with its
//! parent's, so without this step every command would have that right. After it, this process and what it starts are
//! unconfined, as if the profile did not exist, and a command that has a profile of its own gets it. A change at the
//! next execve(2) (`exec unconfined`) would take that one from it.

use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// The label that the profile gives. With another mode it is an operator's profile, which stays.
const LABEL: &[u8] = b"outgate (unconfined)";
/// The files in which the kernel shows the label of the calling thread, and accepts a change. The second is that of
/// kernels before 5.8; there it may belong to another security module, whose labels are different.
const FILES: [&str; 2] = ["/proc/thread-self/attr/apparmor/current", "/proc/thread-self/attr/current"];
/// The change: aa_change_profile(2). The kernel reads it only from a single write.
const CHANGE: &[u8] = b"changeprofile unconfined";

/// Leaves the profile, if the calling thread has it. Applies to this thread, and to the threads and processes that it
/// starts afterwards. Without AppArmor, or with any other label, nothing changes.
///
/// # Errors
/// If the label can't be read, or is still the same after the change. Then nothing may be started for a guest, because
/// it would have the right. The message names the remedy.
pub(super) fn leave_profile() -> io::Result<()> {
    leave(&FILES.map(Path::new))
}

fn leave(files: &[&Path]) -> io::Result<()> {
    let change = || -> io::Result<()> {
        let Some(file) = file_with_label(files)? else { return Ok(()) };
        File::options().write(true).open(file)?.write_all(CHANGE)?;
        match file_with_label(files)? {
            None => Ok(()),
            Some(_) => Err(io::Error::other("the kernel accepted the change and did not make it")),
        }
    };
    change().map_err(|error| {
        let why = format!(
            "the AppArmor profile of outgate cannot be left ({error}), and with it the command could create user \
             namespaces; unload it: `apparmor_parser --remove /etc/apparmor.d/outgate`"
        );
        io::Error::new(error.kind(), why)
    })
}

/// Returns the file that contains [`LABEL`]; `None` if the label is another one or there is none.
fn file_with_label<'p>(files: &[&'p Path]) -> io::Result<Option<&'p Path>> {
    for file in files {
        match fs::read(file) {
            Ok(label) => return Ok((label.trim_ascii_end() == LABEL).then_some(*file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The module is not active.
            Err(error) if [Errno::INVAL, Errno::OPNOTSUPP].iter().any(|errno| is(&error, *errno)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_profile_of_the_package_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (none, file) = (folder.path().join("none"), folder.path().join("current"));
        for (label, wanted) in [
            ("outgate (unconfined)\n", "changeprofile unconfined"),
            ("outgate (unconfined)", "changeprofile unconfined"),
            ("outgate (enforce)\n", "outgate (enforce)\n"),
            ("outgate//&docker-default (mixed)\n", "outgate//&docker-default (mixed)\n"),
            ("unconfined\n", "unconfined\n"),
            ("system_u:system_r:unconfined_service_t:s0\0", "system_u:system_r:unconfined_service_t:s0\0"),
        ] {
            fs::write(&file, label).unwrap();
            leave(&[&none, &file]).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), wanted, "{label:?}");
        }
    }

    #[test]
    fn without_apparmor_nothing_happens() {
        let folder = tempfile::tempdir().unwrap();
        leave(&[&folder.path().join("none")]).unwrap();
        leave(&[]).unwrap();
    }

    #[test]
    fn a_label_that_cannot_be_read_is_an_error_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let error = leave(&[folder.path()]).unwrap_err().to_string();
        assert!(error.contains("`apparmor_parser --remove /etc/apparmor.d/outgate`"), "{error}");
    }
}
