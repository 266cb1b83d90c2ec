//! The daemon under test: configured, started in the gateway's namespace, watched and stopped.

use super::client::Wire;
use super::http::Response;
use super::namespace::Namespace;
use super::service_manager::ServiceManager;
use super::{ADMIN, PATIENCE, PROXY, World, eventually};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A configuration that is not written yet.
pub struct Setup {
    namespace: Arc<Namespace>,
    top: String,
    listen: String,
    resolver: String,
    tables: String,
    rules: Vec<(String, Vec<u8>)>,
}

impl World {
    /// A daemon with `rules` in its `main.rules`, not yet started.
    pub fn setup(&self, rules: &str) -> Setup {
        Setup::within(Arc::clone(&self.gateway), rules)
    }

    /// A daemon with `rules`, ready.
    #[track_caller]
    pub fn outgate(&self, rules: &str) -> Outgate {
        self.setup(rules).start()
    }
}

impl Setup {
    /// A daemon in this namespace with `rules` in its `main.rules`, not yet started.
    pub fn within(namespace: Arc<Namespace>, rules: &str) -> Setup {
        Setup {
            namespace,
            top: String::new(),
            listen: format!("proxy = [\"{PROXY}\"]"),
            resolver: "servers = [\"11.0.0.53\"]".to_owned(),
            tables: String::new(),
            rules: vec![("main.rules".to_owned(), rules.into())],
        }
    }

    /// Adds keys outside of any table, e.g. `mode = "none"`.
    pub fn top(mut self, lines: &str) -> Setup {
        self.top.push_str(lines);
        self.top.push('\n');
        self
    }

    /// Replaces the listeners.
    pub fn listen(mut self, lines: &str) -> Setup {
        lines.clone_into(&mut self.listen);
        self
    }

    /// Replaces the resolver's settings.
    pub fn resolver(mut self, lines: &str) -> Setup {
        lines.clone_into(&mut self.resolver);
        self
    }

    /// Adds whole tables, e.g. `[limits]` with its keys.
    pub fn tables(mut self, lines: &str) -> Setup {
        self.tables.push_str(lines);
        self.tables.push('\n');
        self
    }

    /// Adds a whitelist file.
    pub fn file(mut self, name: &str, content: impl AsRef<[u8]>) -> Setup {
        self.rules.push((name.to_owned(), content.as_ref().to_vec()));
        self
    }

    /// Writes all files, starts nothing.
    pub fn write(self) -> Outgate {
        let dir = tempfile::Builder::new().prefix("outgate-it-").tempdir().expect("a directory for the test");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_outgate"));
        let (user, starter, arguments) = (None, Vec::new(), Vec::new());
        let (child, manager, environment) = (None, None, Vec::new());
        let namespace = self.namespace;
        let outgate = Outgate { dir, namespace, child, program, user, manager, starter, arguments, environment };
        fs::create_dir(outgate.whitelist()).unwrap();
        fs::create_dir(outgate.path("state")).unwrap();
        for (name, content) in &self.rules {
            fs::write(outgate.whitelist().join(name), content).unwrap();
        }
        let root = outgate.dir.path().display();
        let config = format!(
            "{}\n[listen]\n{}\nadmin = \"{ADMIN}\"\ncontrol = \"{root}/control.sock\"\n\
             [whitelist]\ndir = \"{root}/whitelist\"\n[resolver]\n{}\n\
             [log]\naccess = \"{root}/access.log\"\n[state]\ndir = \"{root}/state\"\n{}\n",
            self.top, self.listen, self.resolver, self.tables
        );
        fs::write(outgate.config(), config).unwrap();
        outgate
    }

    /// Writes all files, starts the daemon and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Outgate {
        let mut outgate = self.write();
        outgate.launch();
        outgate.await_ready();
        outgate
    }
}

/// A daemon and its files; killed and removed when dropped.
pub struct Outgate {
    dir: TempDir,
    namespace: Arc<Namespace>,
    child: Option<Child>,
    program: PathBuf,
    /// User and group that it runs as; root if there is none.
    user: Option<(u32, u32)>,
    manager: Option<ServiceManager>,
    /// The command that starts it, if it is not started directly.
    starter: Vec<String>,
    /// What follows `run --config F`.
    arguments: Vec<String>,
    /// Its environment variables besides those of the tests.
    environment: Vec<(&'static str, PathBuf)>,
}

impl Outgate {
    /// From now on the daemon is started as a service manager would.
    pub fn managed(&mut self, manager: ServiceManager) {
        self.manager = Some(manager);
    }

    /// From now on the daemon runs as `nobody`, who owns its directory but not the whitelist: root may
    /// read everything, whatever the mode of a file.
    pub fn become_nobody(&mut self) {
        const NOBODY: u32 = 65534;
        let program = self.path("outgate");
        // The tests' own copy may be in a folder that only root may enter.
        fs::copy(&self.program, &program).unwrap();
        self.program = program;
        self.user = Some((NOBODY, NOBODY));
        let own = |path: &Path| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        own(self.dir.path());
        own(&self.path("state"));
        own(&self.config());
    }

    /// From now on the program is started by this command, which must replace itself by it.
    pub fn start_by(&mut self, words: &[&str]) {
        self.starter = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// More arguments for `run`, from the next start on.
    pub fn run_with(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    }

    /// From the next start on it has this in its environment.
    pub fn run_in(&mut self, name: &'static str, value: impl Into<PathBuf>) {
        self.environment.push((name, value.into()));
    }

    /// A path within the daemon's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path("outgate.toml")
    }

    /// The whitelist directory.
    pub fn whitelist(&self) -> PathBuf {
        self.path("whitelist")
    }

    /// The file with the rules that the setup was given.
    pub fn rules(&self) -> PathBuf {
        self.whitelist().join("main.rules")
    }

    /// `outgate` with these arguments, in the gateway's namespace, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command
    }

    /// Starts the daemon; does not wait.
    pub fn launch(&mut self) {
        let config = self.config();
        let mut command = self.command(&["run", "--config", config.to_str().unwrap()]);
        if let [first, rest @ ..] = &self.starter[..] {
            let mut started = Command::new(first);
            started.args(rest).arg(command.get_program()).args(command.get_args());
            started.stdin(Stdio::null()).env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
            command = started;
        }
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        let handed = self.manager.as_ref().map(|manager| manager.wrap(&mut command));
        command.stdout(fs::File::create(self.path("stdout")).unwrap());
        command.stderr(fs::File::create(self.path("stderr")).unwrap());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        self.child = Some(self.namespace.run(|| command.spawn()).expect("the daemon starts"));
        drop(handed);
    }

    /// Waits until `/readyz` answers 200.
    #[track_caller]
    pub fn await_ready(&mut self) {
        self.await_admin(|response| response.status == 200);
    }

    /// Waits until `/readyz` answers as wanted.
    #[track_caller]
    pub fn await_admin(&mut self, mut wanted: impl FnMut(&Response) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if self.admin("/readyz").is_some_and(|response| wanted(&response)) {
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon ended ({ended:?}): {}", self.errors());
            assert!(Instant::now() < give_up, "the daemon does not get ready: {}", self.errors());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// GET from the admin listener; `None` if it can't be reached.
    pub fn admin(&self, path: &str) -> Option<Response> {
        self.admin_ask(&format!("GET {path} HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n"))
    }

    /// Any bytes to the admin listener.
    pub fn admin_ask(&self, request: &str) -> Option<Response> {
        let mut wire = Wire::dial(&self.namespace, ADMIN.parse::<SocketAddr>().unwrap()).ok()?;
        wire.say(request);
        Some(wire.hear(request.split(' ').next().unwrap_or_default()))
    }

    /// What it wrote to standard error so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// All samples of `/metrics`, by their series as written.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.admin("/metrics").map(|response| response.text()).unwrap_or_default();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(series, value)| (series.to_owned(), number(value)))
            .collect()
    }

    /// The sum of all series of this name (without prefix) that carry these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("outgate_{name}");
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let of_this_name = |series: &str| series == name || series.starts_with(&format!("{name}{{"));
        let carries_all = |series: &str| labels.iter().all(|label| series.contains(label));
        let metrics = self.metrics();
        metrics.iter().filter(|(series, _)| of_this_name(series) && carries_all(series)).map(|(_, value)| value).sum()
    }

    /// How many flows ended with this verdict and reason.
    pub fn counted(&self, verdict: &str, reason: &str) -> f64 {
        self.metric("connections_total", &[("verdict", verdict), ("reason", reason)])
    }

    /// Waits until this many flows have been counted with this verdict and reason.
    #[track_caller]
    pub fn await_counted(&self, verdict: &str, reason: &str, count: f64) {
        eventually(&format!("{count} flows counted as {verdict}, {reason}"), || self.counted(verdict, reason) >= count);
        assert_eq!(self.counted(verdict, reason), count, "flows counted as {verdict}, {reason}");
    }

    /// The access log, a JSON object a line; any other line fails the test.
    pub fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("access.log")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Waits for a line with these fields.
    #[track_caller]
    pub fn await_log(&self, fields: &[(&str, &str)]) -> Value {
        let matches = |line: &Value| fields.iter().all(|(field, value)| text(&line[*field]) == *value);
        let mut found = None;
        let what = format!("a log line with {fields:?}");
        let give_up = Instant::now() + PATIENCE;
        while found.is_none() {
            assert!(Instant::now() < give_up, "never came true: {what}; the log has {:#?}", self.log());
            found = self.log().into_iter().find(matches);
            std::thread::sleep(Duration::from_millis(5));
        }
        found.expect("the loop ends with one")
    }

    /// How many flows `outgate flows` shows.
    #[track_caller]
    pub fn flows(&self) -> u64 {
        let output = self.command(&["flows", "--json", "--config", self.config().to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        answer["total"].as_u64().expect("it has a total")
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("the daemon runs");
        let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("statm has pages");
        pages * rustix::param::page_size() as u64
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon was launched").id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).expect("the daemon runs");
    }

    /// Waits for the end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the daemon was launched");
        // A drain may last 20 s.
        let give_up = Instant::now() + Duration::from_secs(20) + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < give_up, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and the exit status.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended()
    }

    /// Replaces the rules as a careful editor does: a new file, renamed over the old one.
    pub fn replace_rules(&self, rules: impl AsRef<[u8]>) {
        let fresh = self.whitelist().join(".main.rules.new");
        fs::write(&fresh, rules).unwrap();
        fs::rename(fresh, self.rules()).unwrap();
    }
}

impl Drop for Outgate {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the daemon's standard error:\n{}", self.errors());
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or(f64::NAN)
}
