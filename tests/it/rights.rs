//! What tests require of the process that runs them: root, with the capabilities to make network namespaces.
//!
//! A test that requires it is marked `#[ignore = "requires root"]` or `"requires root and network namespaces"`, so libtest
//! shows it as ignored and says why. Started as root, the test program starts itself again with `--include-ignored`, and
//! these tests run. Each start decides anew. A build script would decide for the one who compiles, and would be part of
//! every build of the package. In CI nothing may be ignored: there the tests run in any case, and fail in [`require`].

use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a measurement has in its name. It is ignored until it is started by name and with `--ignored`.
const MEASUREMENT: &str = "measurement";

/// Runs before `main`, since libtest reads its arguments first of all and offers no other way in.
#[used]
#[expect(unsafe_code, reason = "an attribute that the compiler cannot check; the function only starts a program")]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = include_ignored;

fn has_root() -> bool {
    let wanted = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    geteuid().is_root() && capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

/// Does this process have to run the tests that are marked?
fn is_to_run_all() -> bool {
    has_root() || std::env::var("CI").as_deref() == Ok("true")
}

/// Fails a test that is run without what it requires. It never passes.
#[track_caller]
pub(crate) fn require() {
    assert!(has_root(), "requires root, with CAP_NET_ADMIN and CAP_SYS_ADMIN");
}

fn decides_itself(argument: &[u8]) -> bool {
    matches!(argument, b"--ignored" | b"--include-ignored")
}

/// The arguments of this process. `std::env::args` need not have them before `main`.
fn command_line() -> Vec<Vec<u8>> {
    let line = std::fs::read("/proc/self/cmdline").expect("/proc is mounted");
    line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

extern "C" fn include_ignored() {
    let line = command_line();
    let Some((program, arguments)) = line.split_first() else { return };
    if !is_to_run_all() || arguments.iter().any(|argument| decides_itself(argument)) {
        return;
    }
    let mut again = Command::new("/proc/self/exe");
    again.arg0(OsStr::from_bytes(program)).args(["--include-ignored", "--skip", MEASUREMENT]);
    let error = again.args(arguments.iter().map(|argument| OsStr::from_bytes(argument))).exec();
    eprintln!("the test program could not start itself with --include-ignored: {error}");
}

/// Fails if the program was not started again, which would leave out most tests silently.
#[test]
fn no_test_is_ignored_where_it_can_run() {
    assert!(!is_to_run_all() || command_line().iter().any(|argument| decides_itself(argument)));
}
