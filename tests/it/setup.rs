//! `outgate setup` on a host without systemd, with its own /etc and /var/lib: what it shows, what is in the way, what it
//! writes and puts back. tests/vm/service.py has the services.

use crate::world::eventually;
use crate::world::namespace::{self, Namespace};
use crate::world::ran::Ran;
use serde_json::Value;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// A bridge with a port, an interface that carries the default route, and Docker's bridge.
const LINKS: &str = "\
link set lo up
link add br0 type bridge
link add docker0 type bridge
link add port1 type veth peer name port2
link set port1 master br0
link add up0 type veth peer name up1
link set up0 up
link set up1 up
addr add 11.0.0.2/24 dev up0
route add default via 11.0.0.1 dev up0
";
const OWN: &str = "/etc/outgate/conf.d/50-setup.toml";

struct Host {
    namespace: Namespace,
    dir: TempDir,
}

impl Host {
    fn new(config: &str) -> Host {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        crate::rights::require();
        let name = format!("{}{}s{}", namespace::PREFIX, std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let [namespace] = Namespace::create([name]);
        namespace::batch(Some(&namespace), LINKS);
        let dir = tempfile::Builder::new().prefix("outgate-setup-").tempdir().unwrap();
        // Others than root look too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let host = Host { namespace, dir };
        fs::create_dir_all(host.path("/etc/outgate/whitelist")).unwrap();
        fs::create_dir_all(host.path("/var/lib")).unwrap();
        fs::write(host.path("/etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        fs::write(host.path("/etc/outgate/whitelist/a.rules"), "good.test\n").unwrap();
        fs::write(host.path("/etc/outgate/outgate.toml"), config).unwrap();
        host
    }

    /// Where a file of this host is.
    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file.trim_start_matches('/'))
    }

    /// Runs a line of shell on this host.
    fn shell(&self, line: &str) -> Ran {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_outgate"));
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let (etc, state) = (self.path("/etc"), self.path("/var/lib"));
        let mounts = format!(
            "mount --bind {} /etc && mount --bind {} /var/lib && mount -t tmpfs none /run",
            etc.display(),
            state.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{mounts} && {line}")]);
        command.env("PATH", path).env_remove("RUST_LOG").env_remove("OUTGATE_CONFIG");
        Ran::of(self.namespace.run(|| command.output().expect("unshare is installed")))
    }

    /// Starts a process of dockerd's name in this network.
    fn dockerd(&self) -> Child {
        let process =
            self.namespace.run(|| Command::new("bash").args(["-c", "exec -a dockerd sleep 600"]).spawn().unwrap());
        let line = format!("/proc/{}/cmdline", process.id());
        eventually("bash(1) becomes it", || fs::read_to_string(&line).is_ok_and(|line| line.starts_with("dockerd")));
        process
    }

    /// Every file that setup may write, with its content.
    fn files(&self) -> String {
        let line =
            "find /etc/outgate /etc/docker /var/lib /etc/systemd -type f -exec tail -v -n +1 {} + 2>/dev/null | sort";
        self.shell(line).out
    }
}

#[test]
#[ignore = "requires root"]
fn the_overview_shows_this_host_and_the_commands_that_guard_it() {
    let host = Host::new("");
    let before = host.files();
    let shown = host.shell("outgate setup");
    assert_eq!((shown.code, shown.err.as_str()), (0, ""), "{}", shown.out);
    for wanted in [
        "this host's way out   up0\n",
        "systemd               does not run this machine\n",
        "firewall              missing\n",
    ] {
        assert!(shown.out.contains(wanted), "no {wanted:?} in {}", shown.out);
    }
    let rows: Vec<&str> = shown.out.lines().skip_while(|line| !line.starts_with("INTERFACE")).skip(1).collect();
    assert!(rows.len() >= 2 && !rows.iter().any(|row| row.starts_with("up")), "{}", shown.out);
    for name in ["br0", "docker0"] {
        let row = rows.iter().find(|row| row.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{rows:?}"));
        let command = &row[row.find("outgate setup").unwrap()..];
        let tried = host.shell(&format!("{command} --dry-run"));
        assert_eq!(tried.code, 0, "{command}: {}", tried.err);
        assert!(tried.out.contains(&format!("+guest_interfaces = [\"{name}\"]")), "{}", tried.out);
    }
    let answer = host.shell("outgate setup --json").json();
    let found = answer["interfaces"].as_array().unwrap().iter().find(|found| found["name"] == "br0").unwrap();
    assert_eq!((&found["kind"], &found["ports"], &found["guarded"]), (&"bridge".into(), &1.into(), &false.into()));
    assert_eq!(answer["uplinks"], serde_json::json!(["up0"]));
    // As dnsmasq of libvirt's.
    let sockets = host.namespace.run(|| [53, 67].map(|port| UdpSocket::bind(("0.0.0.0", port)).unwrap()));
    let tried = host.shell("outgate setup --guest-interface br0 --dry-run");
    assert!(tried.code == 0 && tried.out.contains("+allow_dhcp = true\n"), "{}{}", tried.out, tried.err);
    let answer = host.shell("outgate setup --json").json();
    assert_eq!((&answer["dns_on_port_53"], &answer["dhcp_server"]), (&true.into(), &true.into()));
    drop(sockets);
    // A process of dockerd's name counts if it is in this network.
    let dockerd = || Command::new("bash").args(["-c", "exec -a dockerd sleep 60"]).spawn().unwrap();
    for is_here in [false, true] {
        let mut process = if is_here { host.namespace.run(dockerd) } else { dockerd() };
        let line = format!("/proc/{}/cmdline", process.id());
        eventually("bash(1) becomes it", || fs::read_to_string(&line).is_ok_and(|line| line.starts_with("dockerd")));
        let answer = host.shell("outgate setup --json").json();
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(answer["docker"]["running"] == Value::Bool(true), is_here, "{answer}");
    }
    // Whoever is logged in may look, and try.
    for line in ["outgate setup", "outgate setup --guest-interface br0 --dry-run"] {
        let ran = host.shell(&format!("setpriv --reuid=65534 --regid=65534 --clear-groups {line}"));
        assert_eq!(ran.code, 0, "{line}: {}{}", ran.out, ran.err);
    }
    let refused = host.shell("setpriv --reuid=65534 --regid=65534 --clear-groups outgate setup --guest-interface br0");
    assert!(refused.code == 1 && refused.err.contains("run as root"), "{}", refused.err);
    assert_eq!(host.files(), before);
}

#[test]
#[ignore = "requires root"]
fn what_is_in_the_way_is_told_and_nothing_is_changed() {
    let host = Host::new("[firewall]\nguest_interfaces = [\"tap7\"]\n[listen]\ntransparent = [\"0.0.0.0:3129\"]\n");
    let before = host.files();
    for (line, code, wanted) in [
        ("--guest-interface up0", 1, "up0: up0 carries this machine's default route"),
        ("--guest-interface 'u*'", 1, "u*: up0 carries this machine's default route"),
        ("--guest-interface port1", 1, "port1 is a port of br0, which is where its packets enter: name br0"),
        (
            "--guest-interface br1",
            1,
            "there is no interface br1 (did you mean br0?): there are br0, docker0; for one that comes later write a pattern, such as 'br1*'",
        ),
        ("--guest-interface 'a b'", 1, "\"a b\" is not a network interface"),
        ("--guest-interface 'l*'", 1, "\"lo\", which is this machine itself"),
        (
            "--guest-interface br0",
            1,
            "/etc/outgate/outgate.toml:2:1: `guest_interfaces` of [firewall] is set here, without br0; write `guest_interfaces = [\"tap7\", \"br0\"]` there",
        ),
        (
            "--guest-interface br0 --config /etc/passwd",
            2,
            "the services read /etc/outgate/outgate.toml and not /etc/passwd",
        ),
        ("--undo --migrate", 2, "cannot be used with"),
    ] {
        let ran = host.shell(&format!("outgate setup {line}"));
        assert!(ran.code == code && ran.err.contains(wanted), "{line}: {} {}{}", ran.code, ran.out, ran.err);
    }
    // With the line that was printed it goes on.
    let config = "[firewall]\nguest_interfaces = [\"tap7\", \"br0\"]\n[listen]\ntransparent = [\"0.0.0.0:3129\"]\n";
    assert_eq!(host.files(), before);
    fs::write(host.path("/etc/outgate/outgate.toml"), config).unwrap();
    let ran = host.shell("outgate setup --guest-interface br0 --dry-run");
    assert!(
        ran.code == 0 && ran.out.contains("+dns = [") && !ran.out.contains("+guest_interfaces"),
        "{}{}",
        ran.out,
        ran.err
    );
    // The mistake of another file is that file's.
    fs::create_dir(host.path("/etc/outgate/conf.d")).unwrap();
    fs::write(host.path("/etc/outgate/conf.d/90.toml"), "[limits]\nconnections = \"many\"\n").unwrap();
    let ran = host.shell("outgate setup --guest-interface br0");
    assert!(ran.code == 1 && ran.err.contains("/etc/outgate/conf.d/90.toml:2:15:"), "{}", ran.err);
    fs::remove_file(host.path("/etc/outgate/conf.d/90.toml")).unwrap();
    fs::write(host.path("/etc/outgate/theirs"), "").unwrap();
    symlink("/etc/outgate/theirs", host.path(OWN)).unwrap();
    let ran = host.shell("outgate setup --guest-interface br0");
    assert!(ran.code == 1 && ran.err.contains("root follows none to a file that it writes"), "{}", ran.err);
    fs::remove_file(host.path(OWN)).unwrap();
    // Without the file beside which conf.d is read; and the command that makes it.
    fs::remove_file(host.path("/etc/outgate/outgate.toml")).unwrap();
    let ran = host.shell("outgate setup --guest-interface br0 --dry-run");
    assert!(ran.code == 1 && ran.err.contains("outgate.toml does not exist"), "{}", ran.err);
    let command = ran.err.split('`').nth(1).unwrap();
    let ran = host.shell(&format!("{command} && outgate setup --guest-interface br0 --dry-run"));
    assert_eq!(ran.code, 0, "{command}: {}", ran.err);
}

#[test]
#[ignore = "requires root"]
fn without_systemd_it_writes_the_configuration_and_says_what_to_run() {
    let host = Host::new("");
    let before = host.files();
    let ran = host.shell("outgate setup --guest-interface br0 --json");
    assert_eq!(ran.code, 1, "{}", ran.err);
    let said = ran.json()["said"].to_string();
    let by_hand = said.split("Run by hand, as root: `").nth(1).unwrap().split('`').next().unwrap().to_owned();
    assert_eq!(by_hand, "outgate firewall apply");
    let text = fs::read_to_string(host.path(OWN)).unwrap();
    assert!(text.contains("dns = [\"0.0.0.0:1053\"") && text.contains("guest_interfaces = [\"br0\"]"), "{text}");
    assert_eq!(fs::metadata(host.path(OWN)).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(
        fs::metadata(host.path("/var/lib/outgate-host/setup.json")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let ran = host.shell(&format!("{by_hand} && outgate firewall status && outgate setup"));
    assert!(ran.code == 0 && ran.out.contains("br0        bridge"), "{}{}", ran.out, ran.err);
    assert!(ran.out.lines().any(|line| line.starts_with("br0 ") && line.ends_with("yes      -")), "{}", ran.out);
    let first = host.files();
    let again = host.shell("outgate setup --guest-interface br0");
    assert!(again.code == 1 && again.out.starts_with("nothing to change\n"), "{}{}", again.out, again.err);
    assert_eq!(host.files(), first);
    // A second interface is added, and what is undone is what was there before the first.
    let second = host.shell("outgate setup --guest-interface 'tap*'");
    assert!(
        second.out.contains("-guest_interfaces = [\"br0\"]\n+guest_interfaces = [\"br0\", \"tap*\"]\n"),
        "{}",
        second.out
    );
    assert!(second.out.contains("note: no interface fits tap* yet"), "{}", second.out);
    // Not over what somebody wrote since; with the command that is printed it goes on.
    let written = fs::read_to_string(host.path(OWN)).unwrap();
    fs::write(host.path(OWN), format!("{written}# mine\n")).unwrap();
    let refused = host.shell("outgate setup --undo");
    assert!(
        refused.code == 1 && refused.err.contains("nothing was undone") && refused.err.contains("\n+# mine\n"),
        "{}",
        refused.err
    );
    // It is a file of the operator's then, and setup adds nothing to it.
    let lacking: String =
        written.lines().filter(|line| !line.starts_with("dns")).map(|line| format!("{line}\n")).collect();
    fs::write(host.path(OWN), lacking).unwrap();
    let ran = host.shell("outgate setup --guest-interface br0");
    let wanted = "50-setup.toml: changed by hand since setup wrote it, so setup leaves it alone; write there: [listen] | dns = [";
    assert!(ran.code == 1 && ran.err.contains(wanted), "{}", ran.err);
    fs::write(host.path(OWN), format!("{written}# mine\n")).unwrap();
    let command = refused.err.rsplit('`').nth(1).unwrap().to_owned();
    assert_eq!(fs::read_to_string(host.path(OWN)).unwrap(), format!("{written}# mine\n"));
    let tried = host.shell("outgate setup --undo --dry-run");
    assert_eq!(tried.code, 1, "{}", tried.out);
    let undone = host.shell(&format!("{command} && outgate setup --undo"));
    assert_eq!(undone.code, 0, "{command}: {}", undone.err);
    assert!(undone.out.contains("open now: br0"), "{}", undone.out);
    fs::remove_file(host.path(&format!("{OWN}.kept"))).unwrap();
    assert_eq!(host.files(), before);
    let nothing = host.shell("outgate setup --undo --json").json();
    assert_eq!(nothing["undone"], Value::Bool(false));
}

/// All that is wrong with the interfaces is told at once, and every remedy works as printed.
#[test]
#[ignore = "requires root"]
fn interfaces_that_cannot_be_guarded_are_told_together() {
    let host = Host::new("");
    let before = host.files();
    let ran = host.shell("outgate setup --guest-interface br0 --guest-interface br1 --guest-interface port1");
    assert!(
        ran.code == 1 && ran.err.contains("there is no interface br1") && ran.err.contains("port1 is a port of br0"),
        "{}",
        ran.err
    );
    namespace::batch(Some(&host.namespace), "link add br\u{e9}x type bridge\nlink add name -x type bridge\n");
    host.shell("ip link set dev br\u{e9}x up");
    let shown = host.shell("outgate setup").out;
    assert!(
        shown
            .lines()
            .any(|line| line.starts_with("br\u{e9}x") && line.ends_with("give it another name, with usual characters")),
        "{shown}"
    );
    assert!(shown.contains("outgate setup --guest-interface=-x"), "{shown}");
    assert_eq!(host.shell("outgate setup --guest-interface=-x --dry-run").code, 0);
    let ran = host.shell("outgate setup --guest-interface br\u{e9}x");
    assert!(ran.code == 1 && ran.err.contains("give it another one"), "{}", ran.err);
    let command = ran.err.split('`').nth(1).unwrap();
    let ran = host.shell(&format!("{command} && outgate setup --guest-interface guests0 --dry-run"));
    assert!(
        ran.code == 0 && ran.out.contains("+guest_interfaces = [\"guests0\"]"),
        "{command}: {}{}",
        ran.out,
        ran.err
    );
    assert_eq!(host.files(), before);
}

/// With --json standard output is one object, also where it fails.
#[test]
#[ignore = "requires root"]
fn every_answer_in_json_is_one_object() {
    let host = Host::new("");
    for (line, wanted) in [
        ("setup --guest-interface br1 --json", "there is no interface br1"),
        ("setup --guest-interface br0 --json --config /etc/passwd", "the services read"),
        ("setup --migrate --json --dry-run --config /none", "/none"),
        ("listen apply --json", "systemd does not run this machine"),
    ] {
        let ran = host.shell(&format!("outgate {line}"));
        assert!(ran.code != 0 && ran.err.contains(wanted), "{line}: {}{}", ran.out, ran.err);
        let answer = ran.json();
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(wanted)), "{line}: {answer}");
    }
    for line in ["setup --json", "setup --guest-interface br0 --json --dry-run", "setup --undo --json"] {
        let answer = host.shell(&format!("outgate {line}")).json();
        assert!(answer.is_object() && answer.get("error").is_none(), "{line}: {answer}");
    }
}

/// What a file system does not take is told with a remedy, and nothing is changed; nor does root follow a link.
#[test]
#[ignore = "requires root"]
fn a_file_that_cannot_be_written_leaves_everything_as_it_was() {
    let host = Host::new("");
    fs::create_dir_all(host.path("/etc/outgate/conf.d")).unwrap();
    fs::create_dir_all(host.path("/var/lib/outgate-host")).unwrap();
    let setup = "outgate setup --guest-interface br0";
    let before = host.files();
    let full = "mount -t tmpfs -o size=4k,mode=755 none {} && dd if=/dev/zero of={}/x bs=4k count=1 2>/dev/null";
    for folder in ["/etc/outgate/conf.d", "/var/lib/outgate-host"] {
        for (obstacle, wanted) in [
            (full.replace("{}", folder), "No space left on device (os error 28); free some space there"),
            (format!("mount --bind -o ro {folder} {folder}"), "Read-only file system (os error 30); mount it writable"),
        ] {
            // Where the record was written first it is removed again.
            let ran = host.shell(&format!("{obstacle}; {setup}"));
            assert!(
                ran.code == 1 && ran.err.contains(wanted) && ran.err.contains(folder),
                "{obstacle}: {}{}",
                ran.out,
                ran.err
            );
            let put_back = ["nothing was changed", "what was there before was put back"];
            assert!(put_back.iter().any(|text| ran.err.contains(text)), "{obstacle}: {}", ran.err);
            let command = ran.err.split('`').nth(1).unwrap();
            assert!(host.shell(&format!("{obstacle}; {command}")).out.contains(folder), "{command}");
            assert_eq!(host.files(), before, "{obstacle}");
        }
    }
    // A folder that a user could point elsewhere.
    fs::remove_dir(host.path("/var/lib/outgate-host")).unwrap();
    fs::remove_dir(host.path("/etc/outgate/conf.d")).unwrap();
    fs::create_dir(host.path("/etc/theirs")).unwrap();
    for (link, to) in [
        ("/var/lib/outgate-host", "/etc/theirs"),
        ("/etc/outgate/conf.d", "/etc/theirs"),
        ("/etc/outgate/conf.d", "/etc/nowhere"),
    ] {
        symlink(to, host.path(link)).unwrap();
        let ran = host.shell(setup);
        assert!(
            ran.code == 1 && ran.err.contains(link) && ran.err.contains("root follows none"),
            "{}{}",
            ran.out,
            ran.err
        );
        assert_eq!(fs::read_dir(host.path("/etc/theirs")).unwrap().count(), 0, "{link}");
        assert!(!host.path("/etc/nowhere").exists());
        fs::remove_file(host.path(link)).unwrap();
    }
    // A lock that is none.
    let ran = host.shell(&format!("mkdir /run/outgate-setup.lock; {setup}"));
    assert!(ran.code == 1 && ran.err.contains("/run/outgate-setup.lock: cannot be taken as a lock"), "{}", ran.err);
}

/// Killed between the record and the file that it tells of: the next run goes on, and `--undo` puts back what was there first.
#[test]
#[ignore = "requires root"]
fn a_killed_run_is_no_change_by_hand() {
    let host = Host::new("");
    let before = host.files();
    let record = "/var/lib/outgate-host/setup.json";
    // Before it told anything.
    let left = host.path("/var/lib/outgate-host/.setup.json.7-0.outgate-new");
    fs::create_dir_all(host.path("/var/lib/outgate-host")).unwrap();
    fs::write(&left, "half").unwrap();
    let undone = host.shell("outgate setup --undo");
    assert!(undone.code == 0 && !left.exists(), "{}{}", undone.out, undone.err);
    for first in [false, true] {
        if first {
            host.shell("outgate setup --guest-interface br0");
        }
        let was = fs::read(host.path(OWN)).ok();
        host.shell("outgate setup --guest-interface 'tap*'");
        // As if it had been killed before it wrote the file, and while it did.
        match was {
            Some(was) => fs::write(host.path(OWN), was).unwrap(),
            None => fs::remove_file(host.path(OWN)).unwrap(),
        }
        fs::write(host.path("/etc/outgate/conf.d/.50-setup.toml.7-0.outgate-new"), "half").unwrap();
        let kept = fs::read(host.path(record)).unwrap();
        let undone = host.shell("outgate setup --undo");
        assert_eq!(undone.code, 0, "{}{}", undone.out, undone.err);
        assert_eq!(host.files(), before, "undone, first: {first}");
        if first {
            host.shell("outgate setup --guest-interface br0");
        }
        fs::create_dir_all(host.path("/var/lib/outgate-host")).unwrap();
        fs::write(host.path(record), kept).unwrap();
        let again = host.shell("outgate setup --guest-interface 'tap*'");
        assert!(again.err.is_empty() && again.out.contains("\n+guest_interfaces = ["), "{}{}", again.out, again.err);
        let undone = host.shell("outgate setup --undo");
        assert_eq!(undone.code, 0, "{}{}", undone.out, undone.err);
        assert_eq!(host.files(), before, "again and undone, first: {first}");
    }
}

/// Docker's file belongs to the operator: what he writes between two runs is not lost when setup is undone.
#[test]
#[ignore = "requires root"]
fn what_the_operator_wrote_into_dockers_file_is_kept() {
    let host = Host::new("");
    let file = host.path("/etc/docker/daemon.json");
    let mut dockerd = host.dockerd();
    let setup = "outgate setup --guest-interface docker0";
    // No folder at first, and none in the end.
    let ran = host.shell(setup);
    assert!(fs::read_to_string(&file).is_ok_and(|text| text.contains("\"dns\"")), "{}{}", ran.out, ran.err);
    let ran = host.shell("outgate setup --undo");
    assert!(!host.path("/etc/docker").exists(), "{}{}", ran.out, ran.err);
    fs::create_dir(host.path("/etc/docker")).unwrap();
    fs::write(&file, "{\"debug\": true}").unwrap();
    host.shell(setup);
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"debug\": true, \"dns\": [\"172.17.0.1\"]}");
    fs::write(&file, "{\"mtu\": 1400}").unwrap();
    host.shell(setup);
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"mtu\": 1400, \"dns\": [\"172.17.0.1\"]}");
    let ran = host.shell("outgate setup --undo");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"mtu\": 1400}", "{}{}", ran.out, ran.err);
    // With the command that is printed the file of before is back, and not none.
    host.shell(setup);
    fs::write(&file, "{\"mtu\": 1300, \"dns\": [\"172.17.0.1\"]}").unwrap();
    let refused = host.shell("outgate setup --undo");
    assert!(refused.code == 1 && refused.err.contains("it is not overwritten"), "{}", refused.err);
    let command = refused.err.rsplit('`').nth(1).unwrap();
    let ran = host.shell(&format!("{command} && outgate setup --undo"));
    assert_eq!(fs::read_to_string(&file).unwrap_or_default(), "{\"mtu\": 1400}", "{}{}", ran.out, ran.err);
    dockerd.kill().unwrap();
    dockerd.wait().unwrap();
}

/// A file that a later version wrote is not misread.
#[test]
#[ignore = "requires root"]
fn a_record_of_a_later_version_is_left_alone() {
    let host = Host::new("");
    fs::create_dir(host.path("/var/lib/outgate-host")).unwrap();
    fs::write(host.path("/var/lib/outgate-host/setup.json"), "{\"version\": 7}").unwrap();
    for line in ["outgate setup --undo", "outgate setup --guest-interface br0"] {
        let ran = host.shell(line);
        assert!(
            ran.code == 1 && ran.err.contains("a later outgate wrote it (version 7, this one knows 1)"),
            "{}",
            ran.err
        );
    }
}
