//! What a command requires before it starts, how it ends, and that nothing is left afterwards.

use super::{ExecHost, FIREWALL, LISTEN, RULES, Ran, fresh};
use crate::world::eventually;
use crate::world::guarded_network::GuardedNetwork;
use crate::world::vmnet::{shell, succeed};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
}

/// The first line of what it says.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Does a process with this argument run?
fn runs(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| {
        line.starts_with(b"sleep\0") && line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

impl ExecHost {
    /// Nothing of any run is left on the machine or in the daemon.
    #[track_caller]
    pub(super) fn assert_clean(&self, name: &str) {
        assert!(!Path::new(&format!("/run/netns/outgate-{name}")).exists());
        assert!(!Path::new(&format!("/run/outgate-exec/{name}.lock")).exists());
        assert_eq!(self.guests(), Vec::<serde_json::Value>::new());
        let gateway = &self.network.net.gateway;
        let links = shell(gateway, "ip -o link show");
        assert!(!links.contains("og-"), "{links}");
        let kernel = shell(gateway, "nft list ruleset; ip rule");
        assert!(!kernel.contains("10.79."), "{kernel}");
        assert!(!kernel.lines().any(|line| line.contains("og-") && !line.contains("og-*")), "{kernel}");
        self.network.firewall(&self.outgate, "status");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_exit_code_is_the_commands() {
    let host = ExecHost::new();
    for (line, code) in [("true", 0), ("exit 7", 7), ("exit 3", 3), ("kill -9 $$", 137), ("no-such-command", 127)] {
        let name = fresh();
        let ran = host.exec(&name, &["--", "sh", "-c", line]);
        assert_eq!(ran.code, Some(code), "{line}: {}", ran.err);
        host.assert_clean(&name);
    }
    assert_eq!(host.exec(&fresh(), &["--", "/no/such/program"]).code, Some(127));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn signals_are_passed_on_and_nothing_is_left() {
    let host = ExecHost::new();
    let traps = "trap 'exit 41' TERM; trap 'exit 42' INT; trap 'exit 43' HUP; echo ready; while :; do sleep 0.1; done";
    for (which, code) in [(Signal::TERM, 41), (Signal::INT, 42), (Signal::HUP, 43)] {
        let name = fresh();
        let mut child = host.start(&name, &["--", "sh", "-c", traps]);
        assert_eq!(first_line(&mut child), "ready");
        signal(&child, which);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        host.assert_clean(&name);
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn processes_that_the_command_leaves_running_are_killed() {
    let host = ExecHost::new();
    let name = fresh();
    let mark = format!("1000.{name}").replace(|c: char| !c.is_ascii_digit() && c != '.', "");
    let ran = host.exec(&name, &["--", "sh", "-c", &format!("setsid sleep {mark} >/dev/null 2>&1 & sleep 0.2")]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(!runs(&mark), "it is gone");
    host.assert_clean(&name);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_killed_run_ends_its_command_and_the_next_run_of_that_name_cleans_up() {
    let host = ExecHost::new();
    let name = fresh();
    let mark = format!("1001.{name}").replace(|c: char| !c.is_ascii_digit() && c != '.', "");
    let line = format!("setsid sleep {mark} & echo ready; exec sleep {mark}");
    let mut child = host.start(&name, &["--", "sh", "-c", &line]);
    assert_eq!(first_line(&mut child), "ready");
    eventually("it runs", || runs(&mark));
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    eventually("the command is gone", || !runs(&mark));
    assert!(Path::new(&format!("/run/netns/outgate-{name}")).exists());
    assert_eq!(host.guests().len(), 1, "its address is still pinned to its interface");
    let ran = host.exec(&name, &["--", "sh", "-c", &host.curl("http://good.test/")]);
    assert_eq!(ran.out, "200 0\n", "{}", ran.err);
    host.assert_clean(&name);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_name_in_use_is_refused_and_stays_as_it_is() {
    let host = ExecHost::new();
    let name = fresh();
    let mut child = host.start(&name, &["--", "sh", "-c", "echo ready; sleep 60"]);
    assert_eq!(first_line(&mut child), "ready");
    let second = host.exec(&name, &["--", "true"]);
    assert!(second.code == Some(1) && second.err.contains("is in use"), "{second:?}");
    assert_eq!(host.guests().len(), 1);
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    host.assert_clean(&name);
    // A guest of that name that does not belong to a command.
    let config = host.outgate.config();
    let add = ["guest", "add", &name, "--address", "10.42.42.2", "--config", config.to_str().unwrap()];
    succeed(host.outgate.command(&add).output().unwrap());
    let second = host.exec(&name, &["--", "true"]);
    assert!(second.code == Some(1) && second.err.contains("exists already"), "{second:?}");
    assert_eq!(host.guests().len(), 1);
    let taken = host.shell(&["--address", "10.42.42.2"], "true");
    assert!(taken.code == Some(1) && taken.err.contains("already an address of"), "{taken:?}");
    assert_eq!(host.guests().len(), 1);
}

#[track_caller]
fn assert_refused(ran: &Ran, code: i32, words: &str) {
    assert!(ran.code == Some(code) && ran.err.contains(words), "{words}: {ran:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn missing_requirements_are_reported_before_anything_is_created() {
    let mut host = ExecHost::new();
    assert_refused(&host.exec("a b", &["--", "true"]), 2, "is not a guest name");
    assert_refused(&host.exec(&fresh(), &[]), 2, "COMMAND");
    assert_refused(&host.exec(&fresh(), &["--show", "/etc", "--", "true"]), 2, "below /run");
    let missing = host.path("none").display().to_string();
    assert_refused(&host.exec(&fresh(), &["--manifest", &missing, "--", "true"]), 1, "no such file");
    assert_refused(&host.exec(&fresh(), &["--address", "127.0.0.9", "--", "true"]), 2, "127.0.0.9");
    assert_refused(&host.exec(&fresh(), &["--address", "11.0.0.1", "--", "true"]), 1, "of this machine");
    let mut as_nobody = host.outgate(&["exec", "--name", &fresh(), "--", "true"]);
    as_nobody.uid(65534).gid(65534);
    if let Ok(output) = host.network.net.gateway.run(|| as_nobody.output()) {
        assert_refused(&output.into(), 1, "only root");
    }
    host.assert_clean(&fresh());
    assert!(host.outgate.stop().success());
    assert_refused(&host.exec(&fresh(), &["--", "true"]), 3, "control.sock");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_configuration_that_lacks_something_is_reported_with_the_line_to_write() {
    let uncovered = |network: &GuardedNetwork| {
        network.bare(RULES).listen(LISTEN).tables("[firewall]\nguest_interfaces = [\"br0\"]\n")
    };
    let host = ExecHost::with(uncovered);
    assert_refused(&host.exec(&fresh(), &["--", "true"]), 1, "guest_interfaces = [\"br0\", \"og-*\"]");
    host.assert_clean(&fresh());
    drop(host);
    let proxy = "proxy = [\"10.42.42.1:3128\"]\ntransparent = []";
    let host = ExecHost::with(|network| network.bare(RULES).listen(proxy).tables(FIREWALL));
    assert_refused(&host.exec(&fresh(), &["--", "true"]), 1, "[listen].transparent");
    host.assert_clean(&fresh());
}
