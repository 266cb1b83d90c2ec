//! The configuration file as the commands and the daemon read it: which file it is, and what stands beside it. On
//! loopback, without root.

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A folder with a configuration file, `outgate.toml`, and a list.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new(top: &str) -> Folder {
        let folder = Folder { dir: tempfile::Builder::new().prefix("outgate-conf-").tempdir().unwrap() };
        let rest = "[listen]\nproxy = [\"127.0.0.1:0\"]\nadmin = \"\"\ncontrol = \"control.sock\"\n\
            [whitelist]\ndir = \"lists\"\n[state]\ndir = \"state\"\n[log]\naccess = \"off\"\n";
        fs::create_dir(folder.path("lists")).unwrap();
        fs::write(folder.path("lists/main.rules"), "ipfs.io\n").unwrap();
        fs::write(folder.path("outgate.toml"), format!("{top}\n{rest}")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns `outgate` with these arguments and with the file in the environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = outgate(arguments);
        command.env("OUTGATE_CONFIG", self.path("outgate.toml"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Starts the daemon and waits until it answers.
    fn daemon(&self) -> Daemon {
        let mut command = self.command(&["run"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Daemon(child);
        let end = Instant::now() + Duration::from_secs(20);
        while self.run(&["status"]).code != 0 {
            assert!(Instant::now() < end, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    fn status(&self) -> Value {
        self.run(&["status", "--json"]).json()
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

fn outgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("OUTGATE_CONFIG").env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null());
    command
}

#[test]
fn the_environment_names_the_file_and_the_command_line_another_one() {
    let (one, other) = (Folder::new("mode = \"al\""), Folder::new("ech = \"al\""));
    let shown = |folder: &Folder| folder.path("outgate.toml").display().to_string();
    let ran = one.run(&["check"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains(&format!("configuration: {}\n", shown(&one))), "{}", ran.out);
    assert!(ran.out.contains(&format!("{}:1:8: `mode` is", shown(&one))), "{}", ran.out);
    let ran = one.run(&["check", "--config", &shown(&other)]);
    assert!(
        ran.out.contains(&format!("{}:1:7: `ech` is", shown(&other))) && !ran.out.contains("`mode`"),
        "{}",
        ran.out
    );
    let ran = one.run(&["check", "--json"]);
    assert_eq!(ran.json()["configuration"], serde_json::json!([shown(&one)]));
    // A file that is not there is an error with its name; an empty variable names none.
    let missing = one.path("missing.toml");
    let ran = Ran::of(outgate(&["explain", "x.test:443"]).env("OUTGATE_CONFIG", &missing).output().unwrap());
    assert!(ran.code != 0 && ran.err.contains(&missing.display().to_string()), "{}", ran.err);
    let ran = Ran::of(outgate(&["check", "--json"]).env("OUTGATE_CONFIG", "").output().unwrap());
    assert!(!ran.out.contains("No such file"), "{}", ran.out);
    let help = Ran::of(outgate(&["check", "--help"]).output().unwrap()).out;
    assert!(help.contains("$OUTGATE_CONFIG"), "{help}");
}

#[test]
fn the_status_names_the_file_that_the_daemon_read() {
    let folder = Folder::new("");
    let _daemon = folder.daemon();
    let file = folder.path("outgate.toml").display().to_string();
    assert_eq!(folder.status()["configuration"], serde_json::json!([file]));
    let ran = folder.run(&["status"]);
    assert!(ran.out.lines().any(|line| line.starts_with("configuration ") && line.ends_with(&file)), "{}", ran.out);
}
