//! The command line as scripts see it: what is printed where, and the exit codes.

use crate::world::ran::Ran;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A configuration with a whitelist dir, and `outgate` run with it.
struct Operator {
    dir: TempDir,
}

impl Operator {
    fn new(config: &str, rules: &str) -> Operator {
        let operator = Operator { dir: tempfile::Builder::new().prefix("outgate-cli-").tempdir().unwrap() };
        fs::create_dir(operator.path("lists")).unwrap();
        let config = format!("{config}\n[whitelist]\ndir = \"lists\"\n[state]\ndir = \"state\"\n");
        fs::write(operator.path("o.toml"), config).unwrap();
        fs::write(operator.path("lists/main.rules"), rules).unwrap();
        operator
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `outgate` with `--config` behind the other arguments.
    fn run(&self, arguments: &[&str]) -> Ran {
        let config = self.path("o.toml");
        let mut command = outgate();
        command.args(arguments).arg("--config").arg(config);
        Ran::of(command.output().unwrap())
    }
}

fn outgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Ran {
    Ran::of(outgate().args(arguments).output().unwrap())
}

#[test]
fn help_and_version_exit_0_and_invalid_arguments_exit_2() {
    for arguments in [&["--help"][..], &["explain", "--help"], &["whitelist", "add", "--help"]] {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
        assert!(ran.out.contains("Examples:"), "{}", ran.out);
    }
    assert_eq!(run(&["--version"]).out, format!("outgate {}\n", env!("CARGO_PKG_VERSION")));
    for arguments in
        [&[][..], &["chek"], &["explain"], &["whitelist"], &["check", "--frobnicate"], &["completions", "tcsh"]]
    {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}");
        assert!(!ran.err.is_empty());
    }
}

#[test]
fn the_inner_half_of_exec_is_not_a_command() {
    for word in ["exec-inside", "exec-become"] {
        let ran = run(&[word]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{word}");
    }
    for text in [run(&["--help"]).out, run(&["man"]).out, run(&["completions", "bash"]).out] {
        assert!(text.contains("exec") && !text.contains("exec-inside") && !text.contains("exec-become"), "{text}");
    }
    // Where namespaces are not its own it mounts nothing.
    let fields = "\"show\":[],\"terminals\":[false,false,false],\"hide\":[]";
    let order = format!("{{\"caller\":{},{fields}}}", std::process::id());
    let ran = run(&["exec-inside", &order, "/bin/true"]);
    assert!(ran.code == 1 && ran.err.contains("namespaces of its own"), "{}", ran.err);
}

#[test]
fn check_ends_with_a_summary_and_says_yes() {
    let operator = Operator::new("", "# a comment\nipfs.io\n*.ipfs.io\n");
    let ran = operator.run(&["check"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "1 file, 2 rules, 0 errors, 0 warnings\n"));
}

#[test]
fn check_reports_every_problem_of_configuration_and_lists_at_once() {
    let operator = Operator::new("mode = \"al\"\n[log]\nacess = \"off\"", "ipfs.io\nhttps://x.test/path\n*.com\n");
    let ran = operator.run(&["check"]);
    assert_eq!(ran.code, 1);
    let config = operator.path("o.toml").display().to_string();
    let rules = operator.path("lists/main.rules").display().to_string();
    for start in [format!("{config}:1:8: "), format!("{config}:3:1: "), format!("{rules}:2:"), format!("{rules}:3:")] {
        assert!(ran.out.lines().any(|line| line.starts_with(&start)), "{start}: {}", ran.out);
    }
    assert!(ran.out.lines().last().unwrap().ends_with(" 4 errors, 0 warnings"), "{}", ran.out);
    let report = operator.run(&["check", "--json"]).json();
    assert_eq!((&report["sound"], &report["errors"]), (&Value::Bool(false), &Value::from(4)));
    assert_eq!(report["problems"][0]["line"], 1);
}

#[test]
fn a_configuration_with_warnings_alone_is_valid() {
    let ran = Operator::new("mode = \"all\"", "").run(&["check"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("o.toml:1:8: warning: mode \"all\""), "{}", ran.out);
    assert!(ran.out.ends_with("0 errors, 1 warning\n"), "{}", ran.out);
}

#[test]
fn check_judges_files_alone_and_with_here_this_machine_too() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let operator = Operator::new(
        &format!(
            "[listen]\nproxy = [\"192.0.2.1:3128\", \"{port}\"]\nadmin = \"127.0.0.1:0\"\ntransparent = [\"127.0.0.1:0\"]\n\
             control = \"control.sock\"\n[firewall]\nguest_interfaces = [\"nosuch0\"]"
        ),
        "ipfs.io\n",
    );
    let ran = operator.run(&["check"]);
    assert_eq!(ran.code, 0, "{}", ran.out);
    let ran = operator.run(&["check", "--here"]);
    assert_eq!(ran.code, 1, "{}", ran.out);
    for part in
        ["cannot listen on 192.0.2.1:3128 ([listen].proxy)", &format!("cannot listen on {port}"), "interface nosuch0"]
    {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    assert!(!ran.out.contains("[listen].admin"), "{}", ran.out);
}

#[test]
fn a_file_that_a_guest_names_must_exist() {
    let guest = "[[guest]]\nname = \"vm-7\"\naddresses = [\"10.0.0.7\"]\nwhitelist = [\"main.rules\", \"seven.rules\"]";
    let ran = Operator::new(guest, "ipfs.io\n").run(&["check"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("o.toml:4:28: guest vm-7: the whitelist dir has no file seven.rules"), "{}", ran.out);
}

#[test]
fn a_configuration_that_is_missing_is_an_error_for_every_command() {
    let commands = [&["run"][..], &["explain", "ipfs.io"], &["whitelist", "list"], &["status"]];
    for arguments in commands {
        let ran = Ran::of(outgate().args(arguments).args(["--config", "/nonexistent/o.toml"]).output().unwrap());
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{arguments:?}");
        assert!(ran.err.starts_with("/nonexistent/o.toml: No such file"), "{}", ran.err);
    }
    let ran = run(&["check", "--config", "/nonexistent/o.toml"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.starts_with("/nonexistent/o.toml: No such file"), "{}", ran.out);
}

#[test]
fn a_whitelist_dir_that_is_missing_is_an_error_and_no_fallback() {
    let operator = Operator::new("", "");
    fs::remove_dir_all(operator.path("lists")).unwrap();
    for arguments in [&["check"][..], &["explain", "ipfs.io"], &["run"]] {
        assert_eq!(operator.run(arguments).code, 1, "{arguments:?}");
    }
}

#[test]
fn explain_says_yes_or_no_by_its_exit_code() {
    let operator = Operator::new("", "ipfs.io\n");
    assert_eq!(operator.run(&["explain", "https://ipfs.io/x"]).code, 0);
    let ran = operator.run(&["explain", "https://ipfs.io/x", "https://evil.test"]);
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    assert!(ran.out.contains("not_whitelisted"), "{}", ran.out);
    let answers = operator.run(&["explain", "--json", "https://evil.test"]).json();
    assert_eq!(answers[0]["suggestion"], "evil.test");
    assert_eq!(operator.run(&["explain", "--guest", "nobody", "ipfs.io"]).code, 2);
}

#[test]
fn explain_answers_ten_thousand_urls_from_standard_input() {
    let operator = Operator::new("", ".ipfs.io\n");
    let mut child = outgate()
        .args(["explain", "--stdin", "--config"])
        .arg(operator.path("o.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for index in 0..10_000 {
            writeln!(input, "https://h{index}.ipfs.{}/x", if index % 2 == 0 { "io" } else { "test" }).unwrap();
        }
    });
    let ran = Ran::of(child.wait_with_output().unwrap());
    writer.join().unwrap();
    let passed = ran.out.lines().filter(|line| line.contains("\"verdict\":\"allowed\"")).count();
    assert_eq!((ran.code, ran.out.lines().count(), passed), (1, 10_000, 5_000));
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let operator = Operator::new("", &"ipfs.io\n".repeat(20_000));
    let mut child = outgate()
        .args(["whitelist", "list", "--config"])
        .arg(operator.path("o.toml"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn rules_are_added_listed_and_removed() {
    let operator = Operator::new("", "# keep me\nipfs.io   # and me\n");
    let added = operator.run(&["whitelist", "add", "a.test", "deny b.test until=2099-12-31 note=\"why not\""]);
    assert_eq!((added.code, added.err.as_str()), (0, ""));
    assert!(added.out.starts_with("added: local.rules:"), "{}", added.out);
    assert!(operator.run(&["whitelist", "add", "A.test."]).out.starts_with("already there: local.rules:"));
    assert_eq!(operator.run(&["explain", "https://a.test"]).code, 0);

    let rules = operator.run(&["whitelist", "list", "--json"]).json();
    let row = rules.as_array().unwrap().iter().find(|row| row["note"] == "why not").unwrap();
    assert_eq!((&row["file"], &row["until"]), (&Value::from("local.rules"), &Value::from("2099-12-31")));
    let text = operator.run(&["whitelist", "list", "--file", "main.rules"]).out;
    assert_eq!(text, "main.rules:2: ipfs.io\n");
    assert_eq!(operator.run(&["whitelist", "list", "--file", "none.rules"]).code, 1);

    assert_eq!(operator.run(&["whitelist", "remove", "ipfs.io"]).out, "removed: main.rules:2: ipfs.io\n");
    assert_eq!(fs::read_to_string(operator.path("lists/main.rules")).unwrap(), "# keep me\n");
    let gone = operator.run(&["whitelist", "remove", "ipfs.io"]);
    assert_eq!((gone.code, gone.out.as_str()), (1, ""));
    assert!(gone.err.contains("`ipfs.io`"), "{}", gone.err);
}

#[test]
fn a_rule_that_check_would_refuse_is_not_added() {
    let operator = Operator::new("", "ipfs.io\n");
    for rule in ["https://x.test/path", "*.com", "a..b", "10.0.0.1 10.0.0.2"] {
        let ran = operator.run(&["whitelist", "add", rule]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{rule}");
        assert!(!ran.err.is_empty(), "{rule}");
    }
    assert!(!operator.path("lists/local.rules").exists());
}

#[test]
fn a_rule_of_the_command_line_that_is_none_is_told_without_a_file_that_nobody_has() {
    let operator = Operator::new("", "ipfs.io\n");
    for (rule, words) in
        [("a..b", "`a..b` is not a rule, from character"), ("x.test:99999", "`x.test:99999` is not a rule")]
    {
        let ran = operator.run(&["whitelist", "remove", rule]);
        assert!(ran.code == 1 && ran.err.contains(words) && !ran.err.contains("rule.rules"), "{}", ran.err);
    }
}

#[test]
fn what_package_managers_leave_in_the_whitelist_folder_is_no_warning() {
    let operator = Operator::new("", "ipfs.io\n");
    for left in ["20-packages.rules.dpkg-dist", "20-packages.rules.dpkg-old", "a.rules.ucf-dist", "b.rules.rpmnew"] {
        fs::write(operator.path(&format!("lists/{left}")), "not a rule at all").unwrap();
    }
    assert_eq!(operator.run(&["check"]).out, "1 file, 1 rule, 0 errors, 0 warnings\n");
    fs::write(operator.path("lists/mine.txt"), "ipfs.io\n").unwrap();
    assert!(operator.run(&["check"]).out.contains("mine.txt"), "a file that was meant to be read is told");
}

#[test]
fn lint_succeeds_on_a_valid_list_and_fails_on_an_invalid_one() {
    let operator = Operator::new("", "ipfs.io\nold.test until=2001-01-01\n");
    let ran = operator.run(&["whitelist", "lint"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("main.rules:2:"), "{}", ran.out);
    assert!(operator.run(&["whitelist", "lint", "--json"]).json().as_array().is_some_and(|rows| !rows.is_empty()));
    fs::write(operator.path("lists/main.rules"), "a..b\n").unwrap();
    assert_eq!(operator.run(&["whitelist", "lint"]).code, 1);
}

#[test]
fn an_unreachable_daemon_is_exit_code_3_with_the_socket_and_a_remedy() {
    let operator = Operator::new("[listen]\ncontrol = \"c.sock\"", "");
    let socket = operator.path("c.sock");
    for arguments in [&["status"][..], &["denied"], &["flows", "--json"], &["whitelist", "reload"]] {
        let ran = operator.run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{arguments:?}");
        assert!(ran.err.contains(&socket.display().to_string()), "{}", ran.err);
        assert!(ran.err.contains("systemctl start outgate"), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(operator.run(&["status"]).code, 3);
}

#[test]
fn run_reports_startup_errors_without_a_backtrace() {
    let operator = Operator::new("[listen]\nproxy = [\"3128\"]", "");
    let ran = operator.run(&["run"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    let expected =
        format!("{}:2:10: \"3128\" is only a port; write \"127.0.0.1:3128\"\n", operator.path("o.toml").display());
    assert_eq!(ran.err, expected);
    assert_eq!(operator.run(&["run", "--log-level", "a=b=c"]).code, 2);
}

#[test]
fn run_says_which_port_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let operator = Operator::new(&format!("[listen]\nproxy = [\"{address}\"]\nadmin = \"\"\ncontrol = \"c.sock\""), "");
    let ran = operator.run(&["run"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains(&address.to_string()), "{}", ran.err);
}

#[test]
fn the_manual_and_the_completions_are_printed() {
    let man = run(&["man"]);
    assert_eq!((man.code, man.err.as_str()), (0, ""));
    assert!(man.out.contains(".TH outgate 1") && man.out.contains("explain"), "{}", man.out);
    let man = run(&["man", "outgate.toml"]);
    assert_eq!((man.code, man.err.as_str()), (0, ""));
    assert!(man.out.contains(".TH outgate.toml 5") && man.out.contains("guest_interfaces"), "{}", man.out);
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("outgate"), "{shell}");
    }
}

#[test]
fn the_command_that_explain_prints_allows_what_was_asked_in_the_list_that_was_looked_at() {
    // A folder that a shell takes apart.
    let operator = Operator::new("", "");
    let folder = operator.path("the operator's own");
    fs::create_dir(&folder).unwrap();
    fs::rename(operator.path("lists"), folder.join("lists")).unwrap();
    fs::rename(operator.path("o.toml"), folder.join("o.toml")).unwrap();
    for url in ["https://a.test", "http://a.test:8080", "tcp://11.0.0.7:22", "https://[2600::1]:8443", "a.test:25"] {
        let explain = || {
            let mut command = outgate();
            command.args(["explain", url, "--config"]).arg(folder.join("o.toml"));
            Ran::of(command.output().unwrap())
        };
        let refused = explain();
        assert_eq!(refused.code, 1, "{}", refused.out);
        let printed = refused.out.lines().find_map(|line| line.trim().strip_prefix("to allow: ")).expect(&refused.out);
        let program = PathBuf::from(env!("CARGO_BIN_EXE_outgate"));
        let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
        let ran = Command::new("sh").args(["-c", printed]).env("PATH", path).output().unwrap();
        assert!(ran.status.success(), "{printed}: {ran:?}");
        assert_eq!(explain().code, 0, "{printed}");
    }
}
