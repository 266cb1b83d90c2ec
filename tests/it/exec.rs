//! `outgate exec`: commands in namespaces of their own, judged by what the origins and the DNS server saw of them.
//! What is left when they have ended, in whatever way, is `exec/ends.rs` and `exec/left.rs`; other ways out than the
//! network are `exec/doors.rs`, the caller's terminal is `exec/screen.rs`; `outgate golem probe`, which asks from such
//! a namespace, is `exec/probe.rs`.

mod doors;
mod ends;
mod left;
mod probe;
mod screen;
mod tight;

use crate::world::outgate::{Outgate, Setup};
use crate::world::whole::Whole;
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

/// A name that no other test has: namespaces have one for the whole machine.
fn fresh() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}{}-{}", namespace::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A program of these tests, where whoever it is may run it.
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
struct House {
    outgate: Outgate,
    whole: Whole,
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

impl House {
    fn new() -> Option<House> {
        House::with(House::usual)
    }

    fn usual(whole: &Whole) -> Setup {
        whole.bare(RULES).listen(LISTEN).tables(FIREWALL)
    }

    fn with(setup: impl FnOnce(&Whole) -> Setup) -> Option<House> {
        let whole = Whole::new()?;
        let outgate = whole.start(setup(&whole));
        let house = House { outgate, whole };
        fs::write(house.path("roots.pem"), pki::pems("good.test").authority).unwrap();
        Some(house)
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
        self.whole.net.gateway.run(|| command.output()).unwrap().into()
    }

    /// `outgate exec` with these arguments.
    fn exec(&self, name: &str, arguments: &[&str]) -> Ran {
        self.run(self.outgate(&[&["exec", "--name", name], arguments].concat()))
    }

    /// The same, in the background.
    fn start(&self, name: &str, arguments: &[&str]) -> Child {
        let mut command = self.outgate(&[&["exec", "--name", name], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.whole.net.gateway.run(|| command.spawn()).unwrap()
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
        let internet = &self.whole.internet;
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
fn what_is_allowed_is_reached_without_a_proxy_setting_and_the_rest_is_refused() {
    let Some(house) = House::new() else { return };
    let line = ["http://good.test/hi", "https://good.test/hi", "https://evil.test/", "http://evil.test/"];
    let line: String = line.iter().map(|url| house.curl(url)).collect();
    let ran = house.shell(&[], &line);
    // No such name (6) is what outgate's DNS says to a name that no rule could allow.
    assert_eq!(ran.out, "200 0\n200 0\n000 6\n000 6\n", "{}", ran.err);
    assert!(ran.err.contains("runs as root"), "{}", ran.err);
    let pinned = format!("--resolve evil.test:443:{EVIL} --resolve evil.test:80:{EVIL}");
    let line = [format!("{pinned} https://evil.test/"), format!("{pinned} http://evil.test/")];
    let ran = house.shell(&[], &line.iter().map(|url| house.curl(url)).collect::<String>());
    assert_eq!(ran.out, "000 35\n403 0\n", "an alert, and an answer: {}", ran.err);
    assert_eq!(house.asked_of_good(), 2);
    house.whole.assert_tight();
}

#[test]
fn two_at_once_reach_what_their_own_manifests_name() {
    let Some(house) = House::new() else { return };
    let (one, two) = (fresh(), fresh());
    let manifests = [house.manifest("one", &["https://good.test"]), house.manifest("two", &["https://cdn-ok.test"])];
    let dir = house.path("").display().to_string();
    let line = |own: &str, other: &str| {
        let urls = house.curl("https://good.test/") + &house.curl("https://cdn-ok.test/");
        format!("touch {dir}/{own}; until [ -e {dir}/{other} ]; do sleep 0.05; done; {urls}")
    };
    let lines = [line("one-is-there", "two-is-there"), line("two-is-there", "one-is-there")];
    let children = [(&one, 0), (&two, 1)]
        .map(|(name, n): (_, usize)| house.start(name, &["--manifest", &manifests[n], "--", "sh", "-c", &lines[n]]));
    let [first, second] = children.map(|child| Ran::from(child.wait_with_output().unwrap()));
    assert_eq!(first.out, "200 0\n000 6\n", "{}", first.err);
    assert_eq!(second.out, "000 6\n200 0\n", "{}", second.err);
    assert_eq!((house.asked_of_good(), house.whole.internet.requests(CDN).len()), (1, 1));
    house.outgate.await_log(&[("guest", &one), ("name", "good.test"), ("verdict", "allowed")]);
    house.outgate.await_log(&[("guest", &two), ("name", "cdn-ok.test"), ("verdict", "allowed")]);
}

#[test]
fn a_manifest_that_asks_for_nothing_reaches_nothing_names_included() {
    let Some(house) = House::new() else { return };
    let manifest = house.manifest("nothing", &[]);
    let to_good = format!("--resolve good.test:443:{GOOD} https://good.test/");
    let line = "getent hosts good.test; echo $?; ".to_owned() + &house.curl(&to_good);
    let ran = house.shell(&["--manifest", &manifest], &line);
    assert_eq!(ran.out, "2\n000 35\n", "{}", ran.err);
    assert!(house.whole.dns.log().is_empty() && house.whole.internet.all().is_empty());
    house.whole.assert_tight();
}

#[test]
fn the_command_has_its_own_input_output_arguments_environment_and_folder() {
    let Some(house) = House::new() else { return };
    let script =
        "cat; echo \"$0|$1|$ODD|$http_proxy|$HTTPS_PROXY|$ALL_PROXY\"; env | grep ^odd; pwd; echo oops >&2; umask";
    let mut command = house.outgate(&["exec", "--name", &fresh(), "--", "sh", "-c", script, "a b", "-c"]);
    command.env("ODD", "kept").env("odd.name", "too").current_dir(house.path("state"));
    command.env("http_proxy", "http://x").env("HTTPS_PROXY", "http://x").env("ALL_PROXY", "http://x");
    fs::write(house.path("input"), "from outside\n").unwrap();
    command.stdin(fs::File::open(house.path("input")).unwrap());
    let ran = house.run(command);
    let state = fs::canonicalize(house.path("state")).unwrap();
    let umask = String::from_utf8(Command::new("sh").args(["-c", "umask"]).output().unwrap().stdout).unwrap();
    let expected = format!("from outside\na b|-c|kept|||\nodd.name=too\n{}\n{umask}", state.display());
    assert_eq!(ran.out.replace("odd.name=too\n", ""), expected.replace("odd.name=too\n", ""), "{}", ran.err);
    let mut command = house.outgate(&["exec", "--name", &fresh(), "--", "env"]);
    command.env("odd.name", "too");
    assert!(house.run(command).out.contains("odd.name=too\n"), "what no shell would hand on");
    assert!(ran.err.contains("oops"), "{}", ran.err);
}

#[test]
fn it_asks_outgates_dns_listener_whatever_the_hosts_resolver_is() {
    let Some(house) = House::new() else { return };
    let ran = house.shell(&[], "grep -v '^#' /etc/resolv.conf; ip -6 address show; ip -4 -o address show dev eth0");
    assert!(ran.out.starts_with("nameserver 10.42.42.1\n"), "{}", ran.out);
    assert!(ran.out.contains(" 10.79.0.1/32 ") && !ran.out.contains("inet6"), "{}", ran.out);
    let ran = house.shell(&["--address", "192.0.2.77"], "ip -4 -o address show dev eth0");
    assert!(ran.out.contains(" 192.0.2.77/32 "), "{}", ran.out);
}

#[test]
fn without_a_dns_listener_it_says_so_and_addresses_are_reached() {
    let listen = "proxy = []\ntransparent = [\"0.0.0.0:3129\"]";
    let setup = |whole: &Whole| whole.bare("good.test\n11.0.0.10\n").listen(listen).tables(FIREWALL);
    let Some(house) = House::with(setup) else { return };
    let ran = house.shell(&[], &house.curl(&format!("--resolve good.test:443:{GOOD} https://good.test/")));
    assert_eq!(ran.out, "200 0\n", "{}", ran.err);
    assert!(ran.err.contains("the command has no DNS"), "{}", ran.err);
}

#[test]
fn the_command_is_the_user_that_was_named_without_any_capability() {
    let Some(house) = House::new() else { return };
    let line = "id -un; id -u; grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status";
    let status = |out: &str, key: &str| {
        let line = out.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
        line.trim().to_owned()
    };
    let asked = house.shell(&["--user", "nobody"], line);
    let mut called = house.outgate(&["exec", "--name", &fresh(), "--", "sh", "-c", line]);
    called.env("SUDO_USER", "nobody").env("SUDO_UID", "65534");
    let called = house.run(called);
    let root = house.shell(&["--user", "root"], line);
    for (ran, user) in [(&asked, "nobody\n65534\n"), (&called, "nobody\n65534\n"), (&root, "root\n0\n")] {
        assert!(ran.out.starts_with(user), "{ran:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(&ran.out, set), "0000000000000000", "{set}: {ran:?}");
        }
        assert_eq!(status(&ran.out, "NoNewPrivs"), "1");
    }
    assert!(!asked.err.contains("runs as root") && root.err.contains("runs as root"), "{asked:?} {root:?}");
    let ran = house.shell(&["--user", "no-such-user"], "true");
    assert!(ran.code == Some(1) && ran.err.contains("no user"), "{ran:?}");
}

#[test]
fn of_run_it_sees_what_it_is_shown() {
    let Some(house) = House::new() else { return };
    let folder = PathBuf::from(format!("/run/{}", fresh()));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("word"), "seen\n").unwrap();
    let shown = folder.to_str().unwrap();
    let hidden = house.shell(&[], &format!("cat {shown}/word; ls /run"));
    let whole = house.shell(&["--show", shown], &format!("cat {shown}/word"));
    let one = house.shell(&["--show", &format!("{shown}/word")], &format!("cat {shown}/word; ls /run"));
    let both = ["--show", shown, "--show", &format!("{shown}/word")];
    let both = house.shell(&both, &format!("cat {shown}/word"));
    let within = {
        let mut command = house.outgate(&["exec", "--name", &fresh(), "--", "true"]);
        command.current_dir(&folder);
        house.run(command)
    };
    fs::remove_dir_all(&folder).unwrap();
    assert!(hidden.out.is_empty(), "{hidden:?}");
    assert_eq!((whole.out.as_str(), whole.code), ("seen\n", Some(0)), "{whole:?}");
    assert_eq!((both.out.as_str(), both.code), ("seen\n", Some(0)), "what is shown twice is not written to: {both:?}");
    assert!(one.out.starts_with("seen\n"), "{one:?}");
    assert!(within.code == Some(1) && within.err.contains("the working directory"), "{within:?}");
}
