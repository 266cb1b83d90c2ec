//! Ways through the kernel to bypass a network namespace, tried from a command by `kernel_bypasses.c`: sockets of
//! other families, calls that no filter sees into, calls by other numbers; and other processes, those outside and the
//! first one inside.

use super::{ExecHost, Ran, compile, fresh};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Stdio};

/// The program, run by a command and not by it.
struct Bypasses {
    host: ExecHost,
    _folder: tempfile::TempDir,
    program: String,
}

impl Bypasses {
    fn new() -> Bypasses {
        let host = ExecHost::new();
        let (folder, program) = compile("kernel_bypasses.c");
        Bypasses { host, _folder: folder, program }
    }

    fn inside(&self, user: &str, arguments: &[&str]) -> Ran {
        self.host.exec(&fresh(), &[&["--user", user, "--", &self.program], arguments].concat())
    }

    fn outside(&self, arguments: &[&str]) -> Ran {
        Command::new(&self.program).args(arguments).stdin(Stdio::null()).output().unwrap().into()
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn every_user_can_open_sockets_of_few_families_only() {
    let bypasses = Bypasses::new();
    for user in ["nobody", "root"] {
        let ran = bypasses.inside(user, &["families"]);
        // unix, IPv4, IPv6, and of netlink what asks for routes.
        assert_eq!(ran.out, "1 2 10 netlink-0 \n", "{user}: {ran:?}");
    }
    // In a network namespace of its own it has root's powers over that namespace, but no more families.
    let within = bypasses.host.shell(&["--user", "nobody"], &format!("unshare -Urn {} families", bypasses.program));
    assert_eq!(within.out, "1 2 10 netlink-0 \n", "{within:?}");
    let tools = "ip -4 -o address show dev eth0 | grep -c 10.79; getent hosts good.test | grep -c good.test";
    let ran = bypasses.host.shell(&["--user", "nobody"], tools);
    assert_eq!(ran.out, "1\n1\n", "what asks the kernel for addresses works: {ran:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn io_uring_keys_and_terminal_input_ioctls_are_refused_as_by_a_kernel_without_them() {
    let bypasses = Bypasses::new();
    let expected = "setup:ENOSYS enter:ENOSYS register:ENOSYS add_key:ENOSYS request_key:ENOSYS keyctl:ENOSYS \
                    sti:EPERM sti-high:EPERM none:ENOSYS \n";
    for user in ["nobody", "root"] {
        assert_eq!(bypasses.inside(user, &["refused"]).out, expected, "{user}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "requires root and network namespaces"]
fn calls_by_the_numbers_of_i386_and_x32_are_killed() {
    let bypasses = Bypasses::new();
    let killed = Some(128 + Signal::SYS.as_raw());
    for user in ["nobody", "root"] {
        let ran = bypasses.inside(user, &["x32"]);
        assert_eq!((ran.code, ran.out.as_str()), (killed, ""), "{user}: {ran:?}");
        let ran = bypasses.inside(user, &["i386"]);
        // A kernel without i386 knows no such interrupt.
        let expected = if bypasses.outside(&["i386"]).code == Some(0) { killed } else { Some(128 + 11) };
        assert_eq!((ran.code, ran.out.as_str()), (expected, ""), "{user}: {ran:?}");
    }
    // Whatever the command starts.
    let ran = bypasses.host.shell(&[], &format!("{} x32; echo $?", bypasses.program));
    assert!(ran.out.starts_with("159"), "{ran:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_first_process_inside_is_out_of_reach() {
    let bypasses = Bypasses::new();
    for user in ["nobody", "root"] {
        let ran = bypasses.inside(user, &["init"]);
        let denied = "trace:EPERM seize:EPERM read:EPERM mem:EACCES fd:EACCES ns:EACCES getfd:EPERM alive\n";
        assert_eq!((ran.out.as_str(), ran.code), (denied, Some(0)), "{user}: {ran:?}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn processes_and_shared_memory_outside_are_not_visible() {
    let bypasses = Bypasses::new();
    let as_nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let other = |rest: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(as_nobody).args(rest);
        command
    };
    // A number that nothing inside has.
    let mut child = (0..1000)
        .map(|_| other(&["sleep", "300"]).stdin(Stdio::null()).spawn().unwrap())
        .find_map(|mut child| match child.id() {
            high if high > 200 => Some(child),
            _ => {
                child.kill().unwrap();
                child.wait().unwrap();
                None
            }
        })
        .unwrap();
    let pid = child.id().to_string();
    let queue = Ran::from(other(&["ipcmk", "-Q"]).output().unwrap());
    let queue = queue.out.trim().rsplit(' ').next().unwrap().to_owned();
    let shared = format!("/dev/shm/{}", fresh());
    std::fs::write(&shared, "").unwrap();
    let gone = "mem:ENOENT kill:ESRCH pidfd:ESRCH trace:ESRCH \n";
    for user in ["nobody", "root"] {
        assert_eq!(bypasses.inside(user, &["outside", &pid]).out, gone, "{user}");
    }
    // Nor where it mounts what it may.
    let within = format!("unshare -Urm sh -c 'mount -t proc proc /proc; {} outside {pid}'", bypasses.program);
    assert_eq!(bypasses.host.shell(&["--user", "nobody"], &within).out, gone);
    let within = format!("unshare -Urm sh -c 'umount -l /proc; {} outside {pid}'", bypasses.program);
    assert_eq!(bypasses.host.shell(&["--user", "nobody"], &within).out, gone);
    let ran =
        bypasses.host.shell(&["--user", "nobody"], &format!("ipcs -q -i {queue}; ls {shared} /dev/pts; ls /proc"));
    assert!(!ran.out.contains("65534") && !ran.out.contains(&shared), "{ran:?}");
    let numbers: Vec<u32> = ran.out.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().all(|number| *number < 100) && numbers.contains(&1), "{ran:?}");
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::KILL).unwrap();
    child.wait().unwrap();
    std::fs::remove_file(&shared).unwrap();
    Command::new("ipcrm").args(["-q", &queue]).status().unwrap();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_command_gets_no_descriptors_but_its_input_and_outputs() {
    let bypasses = Bypasses::new();
    let config = bypasses.host.outgate.config().display().to_string();
    let program = bypasses.host.outgate.command(&[]).get_program().to_str().unwrap().to_owned();
    let name = fresh();
    let line = format!("{program} exec --config {config} --name {name} -- sh -c 'ls /proc/$$/fd; env | grep LISTEN'");
    let mut shell = Command::new("bash");
    // A gap, a file, a socket's like, and one with a large number.
    shell.args(["-c", &format!("exec 5</etc/passwd 9<> <(:) 200>/dev/null; {line}")]).stdin(Stdio::null());
    let ran = bypasses.host.run(shell);
    // The shell opens none of its own for this.
    assert_eq!(ran.out, "0\n1\n2\n", "{ran:?}");
}
