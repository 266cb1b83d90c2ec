//! What the daemon gives up, seen from outside: `/proc` says what each thread still has, and a process
//! that confines itself in the same way tries what it must not.

use crate::transparent;
use crate::world::outgate::Outgate;
use crate::world::{GOOD, World, eventually};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, kill_process, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_groups};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const NOBODY: u32 = 65534;

/// A field of each thread's `/proc/PID/task/TID/status`.
fn threads(outgate: &Outgate, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", outgate.pid())).unwrap();
    let status = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let value = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned));
        line.unwrap_or_default().split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    };
    status.map(value).collect()
}

/// Each thread has this in the field, and there is more than one thread.
#[track_caller]
fn assert_all(outgate: &Outgate, field: &str, wanted: &str) {
    let found = threads(outgate, field);
    assert!(found.len() > 3 && found.iter().all(|value| value == wanted), "{field}: {found:?}, not {wanted}");
}

#[track_caller]
fn assert_without_privileges(outgate: &Outgate) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_all(outgate, set, "0000000000000000");
    }
    assert_all(outgate, "NoNewPrivs", "1");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_daemon_started_as_root_has_no_privilege_left_and_transparent_flows_still_come() {
    let world = World::new();
    let mut outgate = transparent::setup(&world, "good.test\n").start();
    assert_without_privileges(&outgate);
    assert_all(&outgate, "Seccomp", "2");
    assert_eq!(outgate.metric("seccomp_enabled", &[]), 1.0);
    assert_eq!(transparent::https_get(&world, GOOD, "good.test").unwrap(), 200);
    // Threads that are started later, as for each answer of the control socket, inherit it all.
    let _ = outgate.flows();
    let names = threads(&outgate, "Name");
    assert!(names.iter().any(|name| name == "tokio-rt-worker"), "{names:?}");
    assert_without_privileges(&outgate);
    assert_all(&outgate, "Seccomp", "2");
    assert!(outgate.stop().success());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn without_the_sandbox_privileges_are_still_given_up_and_the_log_warns() {
    let world = World::new();
    let mut outgate = world.setup("good.test\n").write();
    outgate.run_with(&["--no-sandbox"]);
    outgate.launch();
    outgate.await_ready();
    assert_without_privileges(&outgate);
    assert_all(&outgate, "Seccomp", "0");
    assert_eq!((outgate.metric("seccomp_enabled", &[]), outgate.metric("landlock_abi", &[])), (0.0, 0.0));
    assert!(outgate.errors().contains("WARN --no-sandbox"), "{}", outgate.errors());
    assert_eq!(world.guest.get("good.test", "/").status, 200);
}

/// A daemon that becomes the user nobody, in a directory of that user; the daemon makes the state dir.
fn for_nobody(world: &World) -> Outgate {
    let mut outgate = world.setup("good.test\n").write();
    fs::remove_dir(outgate.path("state")).unwrap();
    chown(outgate.path(""), Some(NOBODY), Some(NOBODY)).unwrap();
    outgate.run_with(&["--user", "nobody"]);
    outgate
}

#[test]
#[ignore = "requires root and network namespaces"]
fn another_user_can_do_everything_that_the_daemon_does_later() {
    let world = World::new();
    let mut outgate = for_nobody(&world);
    outgate.launch();
    outgate.await_ready();
    assert_without_privileges(&outgate);
    for field in ["Uid", "Gid"] {
        assert_all(&outgate, field, "65534 65534 65534 65534");
    }
    assert_all(&outgate, "Groups", "65534");
    assert_eq!(world.guest.get("good.test", "/").status, 200);

    outgate.replace_rules("cdn-ok.test\n");
    eventually("the new list is in force", || world.guest.get("cdn-ok.test", "/").status == 200);
    outgate.await_log(&[("name", "cdn-ok.test")]);
    fs::rename(outgate.path("access.log"), outgate.path("access.log.1")).unwrap();
    outgate.signal(Signal::HUP);
    eventually("the log is opened anew", || outgate.path("access.log").exists());
    assert_eq!(outgate.metric("whitelist_last_reload_successful", &[]), 1.0);
    // Nothing of the configuration looks changed because another user reads it.
    assert!(!outgate.errors().contains("restart"), "{}", outgate.errors());
    let _ = outgate.flows();

    assert!(outgate.stop().success(), "{}", outgate.errors());
    for name in ["state", "state/whitelist.last-good", "control.sock", "access.log"] {
        assert_eq!(fs::metadata(outgate.path(name)).unwrap().uid(), NOBODY, "{name}");
    }
    outgate.launch();
    outgate.await_ready();
    assert_eq!(world.guest.get("cdn-ok.test", "/").status, 200);
}

/// Starts it, and it must end at once with this code and these words in what it says.
#[track_caller]
fn assert_refuses(outgate: &mut Outgate, code: i32, words: &[&str]) {
    outgate.launch();
    let ended = outgate.ended();
    let errors = outgate.errors();
    assert_eq!(ended.code(), Some(code), "{errors}");
    for word in words {
        assert!(errors.contains(word), "{word}: {errors}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_unknown_user_is_one_clear_line() {
    let world = World::new();
    let mut outgate = world.setup("good.test\n").write();
    outgate.run_with(&["--user", "nobody-of-this-name"]);
    assert_refuses(&mut outgate, 1, &["/etc/passwd has no user", "nobody-of-this-name", "adduser"]);
    outgate.run_with(&["--user", "root"]);
    assert_refuses(&mut outgate, 1, &["is root"]);
    outgate.become_nobody();
    outgate.run_with(&["--user", "nobody"]);
    assert_refuses(&mut outgate, 2, &["--user requires root"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn files_that_need_privileges_are_found_at_the_start() {
    let world = World::new();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();

    // Root reads everything while it has CAP_DAC_OVERRIDE.
    let mut outgate = world.setup("good.test\n").write();
    let config = outgate.config();
    chown(&config, Some(NOBODY), Some(NOBODY)).unwrap();
    mode(&config, 0o600);
    assert_refuses(&mut outgate, 1, &[config.to_str().unwrap(), "may not read", "setfacl", "--user"]);

    let mut outgate = world.setup("good.test\n").write();
    chown(outgate.rules(), Some(NOBODY), Some(NOBODY)).unwrap();
    mode(&outgate.rules(), 0o600);
    assert_refuses(&mut outgate, 1, &["main.rules", "may not read", "setfacl"]);

    // What an earlier start as root left, and a folder that the user nobody may not enter.
    let mut outgate = for_nobody(&world);
    fs::create_dir(outgate.path("state")).unwrap();
    mode(&outgate.path("state"), 0o700);
    assert_refuses(&mut outgate, 1, &["/state", "user nobody", "chown -R nobody: "]);
    do_as_printed(&mut outgate);
    let mut outgate = for_nobody(&world);
    fs::write(outgate.path("access.log"), "").unwrap();
    assert_refuses(&mut outgate, 1, &["/access.log", "user nobody may not write", "chown nobody: "]);
    do_as_printed(&mut outgate);

    // A path that a shell takes apart is in quotes: the command is for this folder, and for no other.
    let mut outgate = for_nobody(&world);
    let config = fs::read_to_string(outgate.config()).unwrap();
    let (folder, bystander) = (outgate.path("the state's own"), outgate.path("the"));
    let config = config.replace(outgate.path("state").to_str().unwrap(), folder.to_str().unwrap());
    fs::write(outgate.config(), config).unwrap();
    for path in [&folder, &bystander] {
        fs::create_dir(path).unwrap();
        mode(path, 0o700);
    }
    assert_refuses(&mut outgate, 1, &["/the state's own", "user nobody", "chown -R nobody: '"]);
    do_as_printed(&mut outgate);
    assert_eq!(fs::metadata(&bystander).unwrap().uid(), 0);
}

/// Runs the command that the daemon ended with, and then the daemon.
#[track_caller]
fn do_as_printed(outgate: &mut Outgate) {
    let errors = outgate.errors();
    let command = errors.split('`').nth(1).expect(&errors);
    let ran = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(ran.status.success(), "{command}: {ran:?}");
    outgate.launch();
    outgate.await_ready();
    assert!(outgate.stop().success(), "{}", outgate.errors());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_reload_that_wants_to_write_elsewhere_says_that_it_needs_a_restart() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let elsewhere = tempfile::Builder::new().prefix("outgate-it-").tempdir().unwrap();
    let (old, new) = (outgate.path("access.log"), elsewhere.path().join("access.log"));
    let config = fs::read_to_string(outgate.config()).unwrap();
    fs::write(outgate.config(), config.replace(old.to_str().unwrap(), new.to_str().unwrap())).unwrap();
    let reload = outgate.command(&["whitelist", "reload", "--config", outgate.config().to_str().unwrap()]).output();
    let reload = reload.unwrap();
    let said = String::from_utf8_lossy(&reload.stderr).into_owned() + &String::from_utf8_lossy(&reload.stdout);
    if outgate.metric("landlock_abi", &[]) > 0.0 {
        assert_eq!(reload.status.code(), Some(1), "{said}");
        assert!(said.contains("needs a restart") && said.contains(new.to_str().unwrap()), "{said}");
        assert!(!new.exists());
    }
    assert_eq!(world.guest.get("good.test", "/").status, 200);
}

/// What a confined process must still be able to do.
const ALLOWED: [&str; 4] = ["start a thread", "connect", "send a datagram", "write in a folder of its own"];
/// Tells the test below that it is the process which runs [`acts`]: `yes`, in the sandbox, or `no`.
const CONFINED: &str = "OUTGATE_TEST_CONFINED";
const TEST: &str = "privileges::even_root_can_do_nothing_in_the_sandbox_that_the_daemon_does_not_do";

/// What it must not, and root may.
const FORBIDDEN: [&str; 14] = [
    "listen",
    "open a packet socket",
    "open a netlink socket",
    "open a raw socket",
    "open a stream to a unix socket",
    "mount",
    "write in /etc",
    "change a mode",
    "signal another process",
    "get hold of another process",
    "enter a namespace",
    "change groups",
    "start a program",
    "become a program",
];

/// Starts this test once more, as a process that runs [`acts`], and gives what came of each.
fn try_acts(confined: &str) -> BTreeMap<String, String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--ignored", "--nocapture"]).env(CONFINED, confined);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let outcomes: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("act ")?.split_once(": "))
        .map(|(act, outcome)| (act.to_owned(), outcome.to_owned()))
        .collect();
    assert_eq!(outcomes.len(), ALLOWED.len() + FORBIDDEN.len(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    outcomes
}

#[test]
#[ignore = "requires root"]
fn even_root_can_do_nothing_in_the_sandbox_that_the_daemon_does_not_do() {
    if let Ok(confined) = std::env::var(CONFINED) {
        return acts(confined == "yes");
    }
    crate::rights::require();
    let free = try_acts("no");
    assert!(free.values().all(|outcome| outcome == "done"), "without the sandbox: {free:#?}");
    let held = try_acts("yes");
    for act in ALLOWED {
        assert_eq!(held[act], "done", "{act}");
    }
    for act in FORBIDDEN {
        assert_eq!(held[act], "forbidden", "{act}");
    }
}

/// Does each act, and prints what came of it.
fn acts(confined: bool) {
    let own = tempfile::Builder::new().prefix("outgate-it-").tempdir().unwrap();
    let file = own.path().join("file");
    fs::write(&file, "").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bound.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let namespace = File::open("/proc/self/ns/net").unwrap();
    let parent = getppid().unwrap_or(Pid::INIT);
    if confined {
        let folders = [own.path().to_owned()];
        assert!(outgate::system::fence_files(&folders) > 0, "this kernel has no Landlock");
        assert!(outgate::system::fence_calls());
    }
    println!();
    let report = |act: &str, outcome: io::Result<()>| match outcome {
        Ok(()) => println!("act {act}: done"),
        Err(error) if [Some(Errno::PERM), Some(Errno::ACCESS)].contains(&Errno::from_io_error(&error)) => {
            println!("act {act}: forbidden");
        }
        Err(error) => println!("act {act}: {error}"),
    };
    let thread = std::thread::Builder::new().spawn(|| {});
    report("start a thread", thread.map(|thread| thread.join().unwrap()));
    report("connect", TcpStream::connect(address).map(drop));
    let datagram = || UdpSocket::bind("127.0.0.1:0")?.send_to(b"hello", "127.0.0.1:9");
    report("send a datagram", datagram().map(drop));
    report("write in a folder of its own", fs::write(own.path().join("new"), "new"));

    report("listen", bound.listen(1));
    report("open a packet socket", Socket::new(Domain::PACKET, Type::RAW, None).map(drop));
    let netlink = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None);
    report("open a netlink socket", netlink.map(drop).map_err(io::Error::from));
    report("open a raw socket", Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).map(drop));
    report("open a stream to a unix socket", Socket::new(Domain::UNIX, Type::STREAM, None).map(drop));
    let mounted = mount("none", own.path(), "tmpfs", MountFlags::empty(), None);
    let mounted = mounted.and_then(|()| unmount(own.path(), UnmountFlags::DETACH));
    report("mount", mounted.map_err(io::Error::from));
    let stray = format!("/etc/outgate-it-{}", std::process::id());
    let write = OpenOptions::new().write(true).create_new(true).open(&stray);
    report("write in /etc", write.and_then(|_| fs::remove_file(&stray)));
    report("change a mode", fs::set_permissions(&file, Permissions::from_mode(0o600)));
    report("signal another process", kill_process(parent, Signal::CONT).map_err(io::Error::from));
    report("get hold of another process", pidfd_open(parent, PidfdFlags::empty()).map(drop).map_err(io::Error::from));
    let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    report("enter a namespace", entered.map_err(io::Error::from));
    report("change groups", set_thread_groups(&[]).map_err(io::Error::from));
    report("start a program", Command::new("/bin/true").status().map(drop));
    // The last: where it succeeds, nothing of this process is left, and echo says so.
    let remains = Command::new("/bin/echo").arg("act become a program: done").exec();
    report("become a program", Err(remains));
}
