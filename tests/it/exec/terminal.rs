//! A caller's terminal, and what a command does to it. The test runs a shell with job control on a terminal of its
//! own, and checks what appears there and what that shell then does.

use super::{ExecHost, compile, fresh};
use crate::world::eventually;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// What the caller's shell says when it waits.
const PROMPT: &str = "caller> ";
/// How long this waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Screen<'h> {
    host: &'h ExecHost,
    master: OwnedFd,
    shell: Child,
    seen: String,
}

impl ExecHost {
    /// A shell in the gateway, on a terminal of its own.
    fn screen(&self) -> Screen<'_> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let mut command = Command::new("setsid");
        command.args(["-c", "bash", "--norc", "--noprofile", "--noediting", "-i"]);
        command.env("PS1", PROMPT).env("TERM", "dumb").env_remove("SUDO_USER").env_remove("SUDO_UID");
        let own = || terminal.try_clone().unwrap();
        command.stdin(own()).stdout(own()).stderr(own());
        let shell = self.network.net.gateway.run(|| command.spawn()).unwrap();
        ioctl_fionbio(&master, true).unwrap();
        let mut screen = Screen { host: self, master, shell, seen: String::new() };
        screen.expect(PROMPT);
        screen
    }

    /// The line that runs a command so.
    fn line(&self, name: &str, rest: &str) -> String {
        let command = self.outgate(&["exec", "--name", name]);
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
        format!("{} {rest}", words.join(" "))
    }
}

impl Screen<'_> {
    /// Types it, as somebody at the keyboard would.
    fn keys(&mut self, text: &str) {
        let mut left = text.as_bytes();
        while !left.is_empty() {
            match rustix::io::write(&self.master, left) {
                Ok(length) => left = &left[length..],
                Err(error) => assert_eq!(std::io::Error::from(error).kind(), ErrorKind::WouldBlock),
            }
            self.look();
        }
    }

    fn look(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = rustix::io::read(&self.master, &mut buffer) {
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    /// Waits until this appears, and forgets all up to it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let give_up = Instant::now() + PATIENCE;
        loop {
            self.look();
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(Instant::now() < give_up, "no {text:?} in {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Types a line and waits for the prompt behind it; what appeared.
    #[track_caller]
    fn run(&mut self, line: &str) -> String {
        self.keys(&format!("{line}\n"));
        self.expect("\n");
        self.expect(PROMPT)
    }

    /// Is the terminal as a shell's commands find it?
    #[track_caller]
    fn assert_usual(&mut self) {
        let modes = self.run("stty -a");
        for mode in ["icanon", "isig", "echo", "opost", "onlcr", "icrnl"] {
            assert!(modes.split_whitespace().any(|word| word == mode), "{mode} in {modes}");
        }
    }

    /// Whether a program is running that reads each key.
    fn is_raw(&self) -> bool {
        tcgetattr(&self.master).is_ok_and(|modes| !modes.local_modes.contains(LocalModes::ICANON))
    }

    #[track_caller]
    fn await_raw(&self) {
        eventually("the command has the terminal", || self.is_raw());
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        let _ = self.host;
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn terminal_input_that_a_command_forges_does_not_reach_the_callers_shell() {
    let host = ExecHost::new();
    let (folder, program) = compile("kernel_bypasses.c");
    let mark = folder.path().join("mark").display().to_string();
    for user in ["nobody", "root"] {
        let mut screen = host.screen();
        // Descriptors above 2 too, and a terminal of the caller's by its name.
        screen.run("exec 7<>/dev/tty");
        let terminal = screen.run("tty").lines().next().unwrap().trim().to_owned();
        let name = fresh();
        let rest = format!("--user {user} -- {program} type 'touch {mark}\n'");
        screen.run(&host.line(&name, &rest.replace('\n', "\\n")));
        let line = format!(
            "--user {user} -- sh -c '{program} type \"touch {mark}$(printf \"\\\\n\\\\r\")\"; tty; ls /dev/pts; stat -c %t {terminal}'"
        );
        let seen = screen.run(&host.line(&name, &line));
        assert!(seen.contains("/dev/pts/0"), "{seen}");
        if terminal != "/dev/pts/0" {
            assert!(seen.contains("stat: "), "the caller's terminal is not there: {seen}");
        }
        assert!(screen.run("echo al\"\"ive").contains("alive"));
        assert!(!std::path::Path::new(&mark).exists(), "{user}");
        screen.assert_usual();
        host.assert_clean(&name);
    }
}

/// As on a serial console, whose device does not lie among those of programs: here by another name.
#[test]
#[ignore = "requires root and network namespaces"]
fn the_terminal_of_the_callers_session_is_hidden_though_no_descriptor_is_it() {
    let host = ExecHost::new();
    let mut screen = host.screen();
    let out = host.path("out").display().to_string();
    screen.run("exec unshare --mount --propagation private bash --norc --noprofile --noediting -i");
    screen.run("mount --bind $(tty) /dev/full");
    assert!(screen.run("echo its-\"\"here >/dev/full").contains("its-here"), "it is the terminal");
    let tries =
        "--user root -- sh -c 'echo reaches-\"\"it >/dev/full; stat -c %t:%T /dev/full; cat </dev/full; echo done'";
    for streams in [format!("</dev/null >{out} 2>&1"), format!("2>{out} </dev/null | cat >>{out}")] {
        let name = fresh();
        let seen = screen.run(&format!("{} {streams}", host.line(&name, tries)));
        let said = fs::read_to_string(&out).unwrap();
        assert!(!seen.contains("reaches-it"), "{seen}");
        assert!(said.contains("1:3\n") && said.contains("done"), "it is /dev/null: {said}");
        host.assert_clean(&name);
        fs::remove_file(&out).unwrap();
    }
    // One of the descriptors is the session's terminal by its other name: the command's own has that name too.
    let name = fresh();
    let own = "--user root -- sh -c 'echo reaches-\"\"it >/dev/full; echo its-\"\"own >/dev/tty'";
    let seen = screen.run(&format!("{} </dev/tty >{out} 2>&1", host.line(&name, own)));
    assert!(seen.contains("its-own") && !seen.contains("reaches-it"), "{seen} {}", fs::read_to_string(&out).unwrap());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn input_typed_for_the_command_is_not_run_by_the_callers_shell() {
    let host = ExecHost::new();
    let (folder, _program) = compile("kernel_bypasses.c");
    let mark = folder.path().join("mark");
    let mut screen = host.screen();
    let name = fresh();
    let line = host.line(&name, "--user nobody -- sh -c 'echo its-\"\"here; read go; sleep 1'");
    screen.keys(&format!("{line}\n"));
    screen.expect("its-here");
    screen.await_raw();
    screen.keys(&format!("go\ntouch {}\n", mark.display()));
    screen.expect(PROMPT);
    assert!(screen.run("echo al\"\"ive").contains("alive"));
    assert!(!mark.exists());
    screen.assert_usual();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn keys_sizes_and_job_control_work_as_without_outgate() {
    let host = ExecHost::new();
    let mut screen = host.screen();
    let name = fresh();
    // A shell with job control inside.
    screen.keys(&host.line(&name, "--user nobody -- env -u PS1 bash --norc --noprofile --noediting -i\n"));
    screen.expect("$ ");
    screen.keys("PS1='inner''> '\n");
    screen.expect("inner> ");
    screen.keys("stty size\n");
    screen.expect("24 80");
    screen.expect("inner> ");
    screen.keys("sleep 1000\n");
    screen.expect("sleep 1000");
    std::thread::sleep(Duration::from_millis(300));
    screen.keys("\x1a");
    screen.expect("Stopped");
    screen.expect("inner> ");
    screen.keys("fg\n");
    screen.expect("sleep 1000");
    std::thread::sleep(Duration::from_millis(300));
    screen.keys("\x03");
    screen.expect("inner> ");
    tcsetwinsize(&screen.master, Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let give_up = Instant::now() + PATIENCE;
    loop {
        screen.keys("stty size\n");
        screen.expect("\n");
        if screen.expect("inner> ").contains("33 101") {
            break;
        }
        assert!(Instant::now() < give_up, "the size is not taken over");
    }
    screen.keys("exit 5\n");
    screen.expect(PROMPT);
    assert!(screen.run("echo code=$?").contains("code=5"));
    screen.assert_usual();
    host.assert_clean(&name);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_run_stops_at_a_key_and_continues_by_fg() {
    let host = ExecHost::new();
    let mut screen = host.screen();
    let name = fresh();
    screen
        .keys(&host.line(&name, "--user nobody -- sh -c 'echo its-\"\"here; read x; echo got-$x; exec sleep 1000'\n"));
    screen.expect("its-here");
    screen.await_raw();
    screen.keys("\x1a");
    screen.expect("Stopped");
    screen.expect(PROMPT);
    screen.assert_usual();
    assert!(screen.run("jobs").contains("Stopped"));
    screen.keys("fg\n");
    screen.await_raw();
    screen.keys("hello\n");
    screen.expect("got-hello");
    screen.keys("\x03");
    screen.expect(PROMPT);
    assert!(screen.run("echo code=$?").contains("code=130"));
    screen.assert_usual();
    host.assert_clean(&name);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_command_in_the_background_or_a_pipeline_gets_the_terminal_when_it_asks() {
    let host = ExecHost::new();
    let mut screen = host.screen();
    let asks = "--user nobody -- sh -c 'echo its-\"\"here; read x </dev/tty; echo got-$x'";
    let name = fresh();
    screen.keys(&format!("{} &\n", host.line(&name, asks)));
    screen.expect("its-here");
    eventually("it is stopped", || screen.run("jobs").contains("Stopped"));
    screen.assert_usual();
    screen.keys("fg\n");
    screen.await_raw();
    screen.keys("one\n");
    screen.expect("got-one");
    screen.expect(PROMPT);
    // What writes beside it finds the terminal ready.
    screen.keys(&format!("{} | sed s/^/=/\n", host.line(&name, asks)));
    screen.expect("its-\"\"here");
    screen.await_raw();
    screen.keys("two\n");
    let seen = screen.expect("=got-two\r\n");
    assert!(seen.contains("=its-here\r\n"), "{seen:?}");
    screen.expect(PROMPT);
    // Without asking, none of it is the command's.
    let seen = screen.run(&format!("{} | sed s/^/=/", host.line(&name, "--user nobody -- echo hi")));
    assert!(seen.contains("=hi\r\n"), "{seen:?}");
    // A shell that has just started another program may miss a Ctrl-C (dash's `vforked`), so it becomes that.
    screen
        .keys(&format!("{} | cat\n", host.line(&name, "--user nobody -- sh -c 'echo its-\"\"here; exec sleep 1000'")));
    screen.expect("its-\"\"here");
    screen.expect("its-here");
    screen.keys("\x03");
    screen.expect(PROMPT);
    screen.assert_usual();
    host.assert_clean(&name);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_terminal_is_as_before_whatever_ends_the_run() {
    let host = ExecHost::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut screen = host.screen();
        let name = fresh();
        let line = host.line(&name, "--user nobody -- sh -c 'stty raw -echo; echo its-\"\"here; exec sleep 1000'\n");
        screen.keys(&line);
        screen.expect("its-here");
        screen.await_raw();
        let shell = screen.shell.id();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
        kill_process(Pid::from_raw(children.trim().parse().unwrap()).unwrap(), signal).unwrap();
        screen.expect(PROMPT);
        let code = format!("code={}", 128 + signal.as_raw());
        assert!(screen.run("echo code=$?").contains(&code));
        screen.assert_usual();
        host.assert_clean(&name);
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn pipes_and_files_are_the_callers_own_and_unchanged() {
    let host = ExecHost::new();
    let input = host.path("bytes");
    let bytes: Vec<u8> = (0..32_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&input, &bytes).unwrap();
    let mut command = host.outgate(&["exec", "--name", &fresh(), "--", "cat"]);
    command.stdin(fs::File::open(&input).unwrap());
    let output = host.network.net.gateway.run(|| command.output()).unwrap();
    assert!(output.status.success() && output.stdout == bytes, "{}", String::from_utf8_lossy(&output.stderr));
    // The same, and no copies of another's: by their numbers in the kernel.
    let number = |path: &str| fs::read_link(path).unwrap().display().to_string();
    let (reader, writer) = std::io::pipe().unwrap();
    let file = open(&input, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mine = {
        use std::os::fd::AsRawFd;
        number(&format!("/proc/self/fd/{}", writer.as_raw_fd()))
    };
    let line = "a=$(readlink /proc/$$/fd/1); b=$(readlink /proc/$$/fd/0); echo $a $b >&2; echo done";
    let mut command = host.outgate(&["exec", "--name", &fresh(), "--", "sh", "-c", line]);
    command.stdin(file).stdout(writer);
    let output = host.network.net.gateway.run(|| command.spawn_and_errors());
    drop(command);
    let text = String::from_utf8_lossy(&output);
    assert!(text.contains(&mine) && text.contains(input.to_str().unwrap()), "{mine}: {text}");
    assert_eq!(std::io::read_to_string(reader).unwrap(), "done\n");
}

/// Its error output, for a command whose output is somebody else's.
trait Errors {
    fn spawn_and_errors(&mut self) -> Vec<u8>;
}

impl Errors for Command {
    fn spawn_and_errors(&mut self) -> Vec<u8> {
        self.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap().stderr
    }
}
