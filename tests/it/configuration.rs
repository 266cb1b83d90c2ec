//! The configuration file as the commands and the daemon read it: which file it is, and what stands beside it. On
//! loopback, without root.

use crate::world::firewall_watcher::Watcher;
use crate::world::ran::Ran;
use crate::world::vmnet::{Vmnet, succeed};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
    assert_eq!(ran.json()["configuration"], json!([shown(&one)]));
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
    assert_eq!(folder.status()["configuration"], json!([file]));
    let ran = folder.run(&["status"]);
    assert!(ran.out.lines().any(|line| line.starts_with("configuration ") && line.ends_with(&file)), "{}", ran.out);
}

/// Writes a file of `conf.d`, which it makes: nobody else may write there.
fn put(folder: &Path, name: &str, text: &str) {
    let folder = folder.join("conf.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), text).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn a_reload_takes_over_what_came_into_the_folder_beside_the_file() {
    let folder = Folder::new("");
    let daemon = folder.daemon();
    let reload = || folder.run(&["whitelist", "reload"]);
    put(folder.dir.path(), "10-guest.toml", "[[guest]]\nname = \"vm-7\"\naddresses = [\"10.42.42.7\"]\n");
    let ran = reload();
    assert!(
        ran.code == 0 && ran.out.lines().any(|line| line.starts_with("changed ") && line.ends_with("yes")),
        "{}",
        ran.out
    );
    let files = [folder.path("outgate.toml"), folder.path("conf.d/10-guest.toml")];
    assert_eq!(folder.status()["configuration"], json!(files));
    let shown = files.map(|file| file.display().to_string()).join(", ");
    assert!(folder.run(&["status"]).out.contains(&shown));
    let check = folder.run(&["check"]);
    assert!(check.code == 0 && check.out.starts_with(&format!("configuration: {shown}\n")), "{}", check.out);
    // It is in force: who is not declared is refused from now on.
    let explained = folder.run(&["explain", "--guest", "vm-7", "ipfs.io:443"]);
    assert_eq!(explained.code, 0, "{}{}", explained.out, explained.err);

    // What takes a restart is told, wherever it stands; and a contradiction changes nothing.
    put(folder.dir.path(), "20-more.toml", "[listen]\ndns = [\"127.0.0.1:0\"]\n");
    let ran = reload();
    assert!(ran.code == 0 && ran.out.contains("listen.dns"), "{}", ran.out);
    put(folder.dir.path(), "30-twice.toml", "[listen]\ndns = []\n");
    let ran = reload();
    let said = format!("{}{}", ran.out, ran.err);
    assert!(ran.code != 0 && said.contains("30-twice.toml:2:1: `dns` in [listen] is set in line 2 of"), "{said}");
    assert_eq!(folder.status()["configuration"].as_array().unwrap().len(), 3);
    fs::set_permissions(folder.path("conf.d/30-twice.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    let ran = reload();
    let said = format!("{}{}", ran.out, ran.err);
    assert!(ran.code != 0 && said.contains("run `chmod go-w "), "{said}");
    drop(daemon);
}

#[test]
#[ignore = "requires root"]
fn the_copy_that_worked_last_has_what_stood_in_the_folder() {
    crate::rights::require();
    let folder = Folder::new("");
    // The daemon answers at a socket that only the folder names.
    let main = fs::read_to_string(folder.path("outgate.toml")).unwrap().replace("control = \"control.sock\"\n", "");
    fs::write(folder.path("outgate.toml"), &main).unwrap();
    put(folder.dir.path(), "socket.toml", "[listen]\ncontrol = \"other.sock\"\n");
    let copies = folder.path("copies").display().to_string();
    let ran = folder.run(&["check", "--keep", "--copies", &copies]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    put(folder.dir.path(), "socket.toml", "nonsense = [\n");

    let ear = UnixDatagram::bind(folder.path("notify")).unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let mut command = folder.command(&["run", "--copies", &copies]);
    command.env("NOTIFY_SOCKET", folder.path("notify")).stdout(Stdio::null()).stderr(Stdio::null());
    let _daemon = Daemon(command.spawn().unwrap());
    let socket = folder.path("other.sock").display().to_string();
    let end = Instant::now() + Duration::from_secs(20);
    let status = loop {
        let ran = folder.run(&["status", "--json", "--socket", &socket]);
        if ran.code == 0 {
            break ran.json();
        }
        assert!(Instant::now() < end, "the daemon does not answer: {}", ran.err);
        while ear.recv(&mut [0; 4096]).is_ok() {}
    };
    assert_eq!(status["troubles"][0]["cause"], "configuration", "{status}");
    let why = status["troubles"][0]["text"].as_str().unwrap();
    assert!(why.contains("conf.d/socket.toml:1:") && why.contains("worked.toml"), "{why}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_firewall_and_its_watcher_go_by_all_files() {
    let net = Vmnet::new();
    let folder = net.path("");
    net.config("");
    put(&folder, "10-firewall.toml", "[firewall]\nguest_interfaces = [\"br0\"]\n");
    succeed(net.firewall(&["apply"]));
    assert!(net.status().0, "{}", net.status().1);
    let watcher = Watcher::start(&net);
    assert!(watcher.first.contains("watching"), "{}", watcher.first);
    // An edit that nobody has applied is told within a second or two, and so is that it is gone.
    put(&folder, "20-more.toml", "[firewall]\nallow_dhcp = true\n");
    watcher.hears("not that of the configuration");
    fs::remove_file(folder.join("conf.d/20-more.toml")).unwrap();
    watcher.hears("STATUS=watching");
    put(&folder, "20-more.toml", "[firewall]\nguest_interfaces = []\n");
    let said = watcher.hears("STATUS=failed");
    assert!(said.contains("20-more.toml:2:1"), "{said}");
    assert!(net.firewall(&["apply"]).status.code() == Some(1), "a contradiction is not applied");
}
