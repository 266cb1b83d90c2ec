//! `outgate exec`: commands in namespaces of their own. The tests check what the origins and the DNS server saw of
//! them. `exec/start_and_end.rs` and `exec/leftover_processes.rs` test what is left after their end,
//! `exec/kernel_bypasses.rs` ways out other than the network, `exec/terminal.rs` the caller's terminal, and
//! `exec/probe.rs` `outgate golem probe`, which makes its requests from such a namespace.

mod kernel_bypasses;
mod leftover_processes;
mod no_other_way_out;
mod probe;
mod start_and_end;
mod terminal;

use crate::world::guarded_network::GuardedNetwork;
use crate::world::outgate::{Outgate, Setup};
use crate::world::{CDN, EVIL, GOOD, GOOD6, namespace, pki};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// Listeners for guests over both families.
const LISTEN: &str = "proxy = [\"10.42.42.1:3128\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\n\
                      dns = [\"10.42.42.1:53\", \"[fd42::1]:53\"]";
const FIREWALL: &str = "[firewall]\nguest_interfaces = [\"og-*\"]\n";
const RULES: &str = "good.test\ncdn-ok.test\n";

/// A name that no other test has, because names of namespaces are unique on a machine.
fn fresh() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}{}-{}", namespace::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A program of these tests, in a place where every user may run it.
fn compile(source: &str) -> (TempDir, String) {
    let folder = tempfile::Builder::new().prefix("outgate-exec-").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/exec").join(source);
    let program = folder.path().join("program");
    let status = Command::new("cc").arg("-pthread").arg("-o").arg(&program).arg(source).status().unwrap();
    assert!(status.success(), "a C compiler builds it");
    (folder, program.to_str().unwrap().to_owned())
}

/// The network with a daemon in the gateway, where commands are run.
struct ExecHost {
    outgate: Outgate,
    network: GuardedNetwork,
}

/// How a command ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl ExecHost {
    fn new() -> ExecHost {
        ExecHost::with(ExecHost::usual)
    }

    fn usual(network: &GuardedNetwork) -> Setup {
        network.bare(RULES).listen(LISTEN).tables(FIREWALL)
    }

    fn with(setup: impl FnOnce(&GuardedNetwork) -> Setup) -> ExecHost {
        let network = GuardedNetwork::new();
        let outgate = network.start(setup(&network));
        let host = ExecHost { outgate, network };
        fs::write(host.path("roots.pem"), pki::pems("good.test").authority).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.outgate.path(name)
    }

    /// `outgate` with these arguments and the configuration, to be run in the gateway.
    fn outgate(&self, arguments: &[&str]) -> Command {
        let (first, rest) = arguments.split_first().unwrap();
        let mut command = self.outgate.command(&[first]);
        command.args(["--config", self.outgate.config().to_str().unwrap()]).args(rest);
        for name in ["SUDO_USER", "SUDO_UID", "SUDO_GID"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, mut command: Command) -> Ran {
        self.network.net.gateway.run(|| command.output()).unwrap().into()
    }

    /// `outgate exec` with these arguments.
    fn exec(&self, name: &str, arguments: &[&str]) -> Ran {
        self.run(self.outgate(&[&["exec", "--name", name], arguments].concat()))
    }

    /// The same, in the background.
    fn start(&self, name: &str, arguments: &[&str]) -> Child {
        let mut command = self.outgate(&[&["exec", "--name", name], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.network.net.gateway.run(|| command.spawn()).unwrap()
    }

    /// A shell's line in a namespace of a new name.
    fn shell(&self, arguments: &[&str], line: &str) -> Ran {
        self.exec(&fresh(), &[arguments, &["--", "sh", "-c", line]].concat())
    }

    /// A manifest that asks for these URLs, or for nothing.
    fn manifest(&self, name: &str, urls: &[&str]) -> String {
        let mut manifest = json!({
            "version": "0.1.0", "createdAt": "2022-09-07T02:57:00.000000Z", "expiresAt": "2100-01-01T00:01:00.000000Z",
            "metadata": {"name": "App", "version": "0.1.0"}, "payload": [], "compManifest": {"version": "0.1.0"},
        });
        if !urls.is_empty() {
            let out = json!({"protocols": ["http", "https"], "urls": urls});
            manifest["compManifest"]["net"] = json!({"inet": {"out": out}});
        }
        fs::write(self.path(name), manifest.to_string()).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Status of a GET as curl knows it, 000 where there was none; and curl's exit code.
    fn curl(&self, url: &str) -> String {
        let roots = self.path("roots.pem").display().to_string();
        format!("curl -sS -o /dev/null -w '%{{http_code}} ' --max-time 20 --cacert {roots} {url}; echo $?;")
    }

    /// Requests that good.test saw, by whichever family outgate went there.
    fn asked_of_good(&self) -> usize {
        let internet = &self.network.internet;
        internet.requests(GOOD).len() + internet.requests(GOOD6.parse::<std::net::IpAddr>().unwrap()).len()
    }

    /// The guests that were registered.
    fn guests(&self) -> Vec<Value> {
        let config = self.outgate.config();
        let mut command = self.outgate.command(&["guest", "list", "--json", "--config", config.to_str().unwrap()]);
        let output = command.output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["guests"].as_array().unwrap().clone()
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_command_reaches_allowed_names_without_a_proxy_setting_and_nothing_else() {
    let host = ExecHost::new();
    let line = ["http://good.test/hi", "https://good.test/hi", "https://evil.test/", "http://evil.test/"];
    let line: String = line.iter().map(|url| host.curl(url)).collect();
    let ran = host.shell(&[], &line);
    // No such name (6) is what outgate's DNS says to a name that no rule could allow.
    assert_eq!(ran.out, "200 0\n200 0\n000 6\n000 6\n", "{}", ran.err);
    assert!(ran.err.contains("runs as root"), "{}", ran.err);
    let pinned = format!("--resolve evil.test:443:{EVIL} --resolve evil.test:80:{EVIL}");
    let line = [format!("{pinned} https://evil.test/"), format!("{pinned} http://evil.test/")];
    let ran = host.shell(&[], &line.iter().map(|url| host.curl(url)).collect::<String>());
    assert_eq!(ran.out, "000 35\n403 0\n", "an alert, and an answer: {}", ran.err);
    assert_eq!(host.asked_of_good(), 2);
    host.network.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn two_commands_at_once_reach_what_their_own_manifests_name() {
    let host = ExecHost::new();
    let (one, two) = (fresh(), fresh());
    let manifests = [host.manifest("one", &["https://good.test"]), host.manifest("two", &["https://cdn-ok.test"])];
    let dir = host.path("").display().to_string();
    let line = |own: &str, other: &str| {
        let urls = host.curl("https://good.test/") + &host.curl("https://cdn-ok.test/");
        format!("touch {dir}/{own}; until [ -e {dir}/{other} ]; do sleep 0.05; done; {urls}")
    };
    let lines = [line("one-is-there", "two-is-there"), line("two-is-there", "one-is-there")];
    let children = [(&one, 0), (&two, 1)]
        .map(|(name, n): (_, usize)| host.start(name, &["--manifest", &manifests[n], "--", "sh", "-c", &lines[n]]));
    let [first, second] = children.map(|child| Ran::from(child.wait_with_output().unwrap()));
    assert_eq!(first.out, "200 0\n000 6\n", "{}", first.err);
    assert_eq!(second.out, "000 6\n200 0\n", "{}", second.err);
    assert_eq!((host.asked_of_good(), host.network.internet.requests(CDN).len()), (1, 1));
    host.outgate.await_log(&[("guest", &one), ("name", "good.test"), ("verdict", "allowed")]);
    host.outgate.await_log(&[("guest", &two), ("name", "cdn-ok.test"), ("verdict", "allowed")]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_command_whose_manifest_asks_for_nothing_reaches_nothing_and_gets_no_dns() {
    let host = ExecHost::new();
    let manifest = host.manifest("nothing", &[]);
    let to_good = format!("--resolve good.test:443:{GOOD} https://good.test/");
    let line = "getent hosts good.test; echo $?; ".to_owned() + &host.curl(&to_good);
    let ran = host.shell(&["--manifest", &manifest], &line);
    assert_eq!(ran.out, "2\n000 35\n", "{}", ran.err);
    assert!(host.network.dns.log().is_empty() && host.network.internet.all().is_empty());
    host.network.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_command_has_its_own_input_output_arguments_environment_and_folder() {
    let host = ExecHost::new();
    let script =
        "cat; echo \"$0|$1|$ODD|$http_proxy|$HTTPS_PROXY|$ALL_PROXY\"; env | grep ^odd; pwd; echo oops >&2; umask";
    let mut command = host.outgate(&["exec", "--name", &fresh(), "--", "sh", "-c", script, "a b", "-c"]);
    command.env("ODD", "kept").env("odd.name", "too").current_dir(host.path("state"));
    command.env("http_proxy", "http://x").env("HTTPS_PROXY", "http://x").env("ALL_PROXY", "http://x");
    fs::write(host.path("input"), "from outside\n").unwrap();
    command.stdin(fs::File::open(host.path("input")).unwrap());
    let ran = host.run(command);
    let state = fs::canonicalize(host.path("state")).unwrap();
    let umask = String::from_utf8(Command::new("sh").args(["-c", "umask"]).output().unwrap().stdout).unwrap();
    let expected = format!("from outside\na b|-c|kept|||\nodd.name=too\n{}\n{umask}", state.display());
    assert_eq!(ran.out.replace("odd.name=too\n", ""), expected.replace("odd.name=too\n", ""), "{}", ran.err);
    let mut command = host.outgate(&["exec", "--name", &fresh(), "--", "env"]);
    command.env("odd.name", "too");
    assert!(host.run(command).out.contains("odd.name=too\n"), "what no shell would hand on");
    assert!(ran.err.contains("oops"), "{}", ran.err);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_command_asks_outgates_dns_listener_whatever_the_hosts_resolver_is() {
    let host = ExecHost::new();
    let ran = host.shell(&[], "grep -v '^#' /etc/resolv.conf; ip -6 address show; ip -4 -o address show dev eth0");
    assert!(ran.out.starts_with("nameserver 10.42.42.1\n"), "{}", ran.out);
    assert!(ran.out.contains(" 10.79.0.1/32 ") && !ran.out.contains("inet6"), "{}", ran.out);
    let ran = host.shell(&["--address", "192.0.2.77"], "ip -4 -o address show dev eth0");
    assert!(ran.out.contains(" 192.0.2.77/32 "), "{}", ran.out);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn exec_warns_without_a_dns_listener_and_addresses_are_reached() {
    let listen = "proxy = []\ntransparent = [\"0.0.0.0:3129\"]";
    let setup = |network: &GuardedNetwork| network.bare("good.test\n11.0.0.10\n").listen(listen).tables(FIREWALL);
    let host = ExecHost::with(setup);
    let ran = host.shell(&[], &host.curl(&format!("--resolve good.test:443:{GOOD} https://good.test/")));
    assert_eq!(ran.out, "200 0\n", "{}", ran.err);
    assert!(ran.err.contains("the command has no DNS"), "{}", ran.err);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_command_is_the_user_that_was_named_without_any_capability() {
    let host = ExecHost::new();
    let line = "id -un; id -u; grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status";
    let status = |out: &str, key: &str| {
        let line = out.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
        line.trim().to_owned()
    };
    let asked = host.shell(&["--user", "nobody"], line);
    let mut called = host.outgate(&["exec", "--name", &fresh(), "--", "sh", "-c", line]);
    called.env("SUDO_USER", "nobody").env("SUDO_UID", "65534");
    let called = host.run(called);
    let root = host.shell(&["--user", "root"], line);
    for (ran, user) in [(&asked, "nobody\n65534\n"), (&called, "nobody\n65534\n"), (&root, "root\n0\n")] {
        assert!(ran.out.starts_with(user), "{ran:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(&ran.out, set), "0000000000000000", "{set}: {ran:?}");
        }
        assert_eq!(status(&ran.out, "NoNewPrivs"), "1");
    }
    assert!(!asked.err.contains("runs as root") && root.err.contains("runs as root"), "{asked:?} {root:?}");
    let ran = host.shell(&["--user", "no-such-user"], "true");
    assert!(ran.code == Some(1) && ran.err.contains("no user"), "{ran:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_command_sees_only_what_show_names_of_run() {
    let host = ExecHost::new();
    let folder = PathBuf::from(format!("/run/{}", fresh()));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("word"), "seen\n").unwrap();
    let shown = folder.to_str().unwrap();
    let hidden = host.shell(&[], &format!("cat {shown}/word; ls /run"));
    let network = host.shell(&["--show", shown], &format!("cat {shown}/word"));
    let one = host.shell(&["--show", &format!("{shown}/word")], &format!("cat {shown}/word; ls /run"));
    let both = ["--show", shown, "--show", &format!("{shown}/word")];
    let both = host.shell(&both, &format!("cat {shown}/word"));
    let within = {
        let mut command = host.outgate(&["exec", "--name", &fresh(), "--", "true"]);
        command.current_dir(&folder);
        host.run(command)
    };
    fs::remove_dir_all(&folder).unwrap();
    assert!(hidden.out.is_empty(), "{hidden:?}");
    assert_eq!((network.out.as_str(), network.code), ("seen\n", Some(0)), "{network:?}");
    assert_eq!((both.out.as_str(), both.code), ("seen\n", Some(0)), "what is shown twice is not written to: {both:?}");
    assert!(one.out.starts_with("seen\n"), "{one:?}");
    assert!(within.code == Some(1) && within.err.contains("the working directory"), "{within:?}");
}
