//! The answers of `explain`, with lists and configurations on disk.

use super::*;
use clap::Parser;
use std::fs;
use tempfile::TempDir;

#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    arguments: Arguments,
}

struct Case {
    scratch: TempDir,
}

impl Case {
    /// A configuration and the content of `main.rules`.
    fn new(config: &str, rules: &str) -> Case {
        let scratch = tempfile::tempdir().unwrap();
        let case = Case { scratch };
        fs::create_dir(case.scratch.path().join("lists")).unwrap();
        fs::write(case.scratch.path().join("o.toml"), format!("{config}\n[whitelist]\ndir = \"lists\"\n")).unwrap();
        case.file("main.rules", rules)
    }

    fn file(self, name: &str, content: &str) -> Case {
        fs::write(self.scratch.path().join("lists").join(name), content).unwrap();
        self
    }

    fn run(&self, arguments: &[&str], input: &str) -> (Result<Exit, String>, String) {
        let config = self.scratch.path().join("o.toml");
        let mut words = vec!["explain", "--config", config.to_str().unwrap()];
        words.extend(arguments);
        let typed = Typed::try_parse_from(words).unwrap();
        let mut out = Vec::new();
        let outcome = run(&typed.arguments, &mut input.as_bytes(), &mut out);
        (outcome.map_err(|failure| failure.to_string()), String::from_utf8(out).unwrap())
    }

    /// Returns the answers for `arguments`, and whether all pass.
    fn answers(&self, arguments: &[&str]) -> (bool, Vec<serde_json::Value>) {
        let with_json: Vec<&str> = ["--json"].iter().chain(arguments).copied().collect();
        let (outcome, text) = self.run(&with_json, "");
        (outcome.unwrap() == Exit::Good, serde_json::from_str(&text).unwrap())
    }

    /// Returns verdict, reason and rule of one URL.
    #[track_caller]
    fn verdict(&self, arguments: &[&str]) -> String {
        let (_, answers) = self.answers(arguments);
        let [answer] = answers.as_slice() else { panic!("{answers:?}") };
        let text = |key: &str| answer[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text("verdict"), text("reason"), text("rule"))
    }
}

#[test]
fn an_answer_has_the_documented_fields() {
    let case = Case::new("", "# head\n  ipfs.io  # why\n");
    let (all, answers) = case.answers(&["https://ipfs.io/x?y#z", "https://a.ipfs.io"]);
    assert!(!all);
    let first = serde_json::json!({
        "url": "https://ipfs.io/x?y#z", "verdict": "allowed", "reason": "none", "rule": "main.rules:2",
        "rule_text": "ipfs.io  # why", "near": null, "advice": null, "suggestion": null,
    });
    assert_eq!(answers[0], first);
    assert_eq!(answers[1]["verdict"], "denied");
    assert_eq!(answers[1]["reason"], "not_whitelisted");
    assert_eq!(answers[1]["suggestion"], "a.ipfs.io");
    assert_eq!(answers[1].as_object().unwrap().len(), 8);
}

#[test]
fn urls_are_judged_by_port_and_protocol() {
    let case = Case::new("", "ipfs.io\nhttps://tls.test:8443\ntcp://raw.test:22\nudp://time.test:123\nquic://q.test\n");
    for (url, expected) in [
        ("http://ipfs.io", "allowed none main.rules:1"),
        ("wss://ipfs.io/s", "allowed none main.rules:1"),
        ("ipfs.io", "allowed none main.rules:1"),
        ("ipfs.io:8443", "denied port_not_allowed main.rules:1"),
        ("https://tls.test:8443", "allowed none main.rules:2"),
        ("http://tls.test:8443", "denied protocol_not_allowed main.rules:2"),
        ("tcp://raw.test:22", "allowed none main.rules:3"),
        ("udp://time.test:123", "allowed none main.rules:4"),
        ("quic://q.test", "allowed none main.rules:5"),
        ("ftp://ipfs.io", "denied malformed -"),
        ("https://u@ipfs.io", "denied malformed -"),
        ("http://0x7f.1", "denied malformed -"),
    ] {
        assert_eq!(case.verdict(&[url]), expected, "{url}");
    }
}

#[test]
fn the_suggested_line_allows_what_was_asked() {
    let urls = [
        "https://a.test/x",
        "http://a.test",
        "https://a.test:8443",
        "http://a.test:8080",
        "a.test:8443",
        "a.test:25",
        "tcp://a.test:22",
        "tcp://a.test:443",
        "udp://a.test:123",
        "quic://a.test",
        "quic://a.test:8443",
        "https://11.0.0.7",
        "11.0.0.7:22",
        "https://[2600::1]:8443",
        "tcp://11.0.0.7:25",
        "https://Bücher.example",
    ];
    for url in urls {
        let (_, answers) = Case::new("", "").answers(&[url]);
        let suggestion = answers[0]["suggestion"].as_str().unwrap();
        let case = Case::new("", &format!("{suggestion}\n"));
        assert_eq!(case.verdict(&[url]), "allowed none main.rules:1", "{url} by {suggestion}");
    }
}

#[test]
fn addresses_in_the_floor_stay_out_of_reach_whatever_the_list_says() {
    let rules = "10.0.0.5:*\n10.0.0.6 to=10.0.0.6/32\n10.0.0.7\n127.0.0.1:*\ndeny 11.0.0.1\n";
    let case = Case::new("[dial]\npermit_addresses = [\"10.0.0.7\", \"127.0.0.1\"]\n", rules);
    for (url, expected) in [
        ("https://10.0.0.5", "denied address_floor main.rules:1"),
        ("https://10.0.0.6", "allowed none main.rules:2"),
        ("https://10.0.0.7", "allowed none main.rules:3"),
        ("http://127.0.0.1:3128", "denied address_floor main.rules:4"),
        ("http://127.0.0.1:8080", "allowed none main.rules:4"),
        ("http://169.254.169.254/latest", "denied not_whitelisted -"),
        ("https://11.0.0.1", "denied denied_by_rule main.rules:5"),
    ] {
        assert_eq!(case.verdict(&[url]), expected, "{url}");
    }
    let (_, answers) = case.answers(&["http://169.254.169.254/latest"]);
    assert_eq!(answers[0]["suggestion"], serde_json::Value::Null);
    assert!(answers[0]["advice"].as_str().unwrap().contains("[dial].permit_addresses"), "{answers:?}");
}

#[test]
fn a_guest_is_named_or_given_by_address_and_has_files_of_its_own() {
    let guests = "[[guest]]\nname = \"vm-7\"\naddresses = [\"10.1.0.7\"]\nwhitelist = [\"seven.rules\"]\n\
        [[guest]]\nname = \"vm-8\"\naddresses = [\"10.1.0.8\"]\n[[guest]]\nname = \"vm-9\"\naddresses = [\"10.1.0.9\"]\nmode = \"none\"\n";
    let case = Case::new(guests, "shared.test\n").file("seven.rules", "seven.test\n");
    for (guest, url, expected) in [
        ("vm-7", "seven.test", "allowed none seven.rules:1"),
        ("10.1.0.7", "seven.test", "allowed none seven.rules:1"),
        ("vm-7", "shared.test", "denied not_whitelisted -"),
        ("vm-8", "seven.test", "denied not_whitelisted -"),
        ("vm-8", "shared.test", "allowed none main.rules:1"),
        ("vm-9", "shared.test", "denied mode_none -"),
        ("10.1.0.1", "shared.test", "denied unknown_guest -"),
    ] {
        assert_eq!(case.verdict(&["--guest", guest, url]), expected, "{guest} {url}");
    }
    assert_eq!(case.verdict(&["shared.test"]), "denied unknown_guest -");
    let (_, text) = case.run(&["shared.test"], "");
    assert!(text.contains("run `outgate explain --guest vm-7 shared.test --config "), "{text}");
    assert!(text.contains("`, or another of vm-7, vm-8, vm-9"), "{text}");
    let (outcome, _) = case.run(&["--guest", "vm7", "shared.test"], "");
    assert_eq!(outcome.unwrap_err(), "outgate: no guest is called \"vm7\": did you mean vm-7?");
    let (_, text) = case.run(&["--guest", "vm-7", "other.test"], "");
    assert!(text.contains("to allow: add the line  other.test  to seven.rules"), "{text}");
}

#[test]
fn modes_are_those_of_the_daemon() {
    assert_eq!(Case::new("mode = \"all\"", "").verdict(&["a.test"]), "allowed none -");
    assert_eq!(Case::new("mode = \"observe\"", "").verdict(&["a.test"]), "observed none -");
    assert_eq!(Case::new("mode = \"none\"", "a.test\n").verdict(&["a.test"]), "denied mode_none -");
    let (all, answers) = Case::new("mode = \"observe\"", "").answers(&["https://a.test"]);
    assert!(all);
    assert_eq!(answers[0]["suggestion"], "a.test");
}

#[test]
fn people_are_told_what_decides_and_what_to_do() {
    let case = Case::new("", "ipfs.io\ndeny evil.test\n");
    let (outcome, text) = case.run(&["https://ipfs.io/x", "https://b.test", "https://evil.test", "x://y"], "");
    assert_eq!(outcome, Ok(Exit::No));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "allowed   https://ipfs.io/x  by main.rules:1");
    assert_eq!(lines[1], "          rule:     ipfs.io");
    assert_eq!(lines[2], "denied    https://b.test  not_whitelisted");
    assert!(text.contains("          to allow: outgate whitelist add 'b.test'"), "{text}");
    assert!(text.contains("denied    https://evil.test  denied_by_rule by main.rules:2"), "{text}");
    assert!(text.contains("denied    x://y  malformed\n          advice:   the scheme `x` is unknown"), "{text}");
}

#[test]
fn standard_input_is_answered_line_by_line() {
    let case = Case::new("", "ipfs.io\n");
    let long = format!("https://ipfs.io/{}", "a".repeat(40_000));
    let input = format!("https://ipfs.io\n\n  http://ipfs.io/x \r\n{long}\nevil.test\nipfs.io");
    let (outcome, text) = case.run(&["--stdin"], &input);
    assert_eq!(outcome, Ok(Exit::No));
    let answers: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reasons: Vec<&str> = answers.iter().map(|answer| answer["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["none", "malformed", "none", "malformed", "not_whitelisted", "none"]);
    assert_eq!((answers[1]["url"].as_str(), answers[2]["url"].as_str()), (Some(""), Some("http://ipfs.io/x")));
    assert_eq!(case.run(&["--stdin"], "ipfs.io\n").0, Ok(Exit::Good));
    assert_eq!(case.run(&["--stdin"], "").0, Ok(Exit::Good));
}

#[test]
fn each_line_of_standard_input_has_one_line_of_output() {
    let case = Case::new("", "ipfs.io\n");
    let blank = " ".repeat(40_000);
    for (input, lines) in [
        ("\n", 1),
        ("\n\n\n", 3),
        ("ipfs.io\n\n", 2),
        ("  \t\r\nipfs.io", 2),
        ("\0\n\u{2028}\n", 2),
        (&format!("{blank}\nipfs.io\n"), 2),
        (&blank, 1),
        (&"a".repeat(16 << 10), 1),
        (&format!("{}\n", "a".repeat(16 << 10)), 1),
        (&format!("{}\n", "a".repeat((16 << 10) - 1)), 1),
    ] {
        for arguments in [&["--stdin"][..], &["--stdin", "--json"]] {
            let (_, text) = case.run(arguments, input);
            let answers = text.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Result<Vec<_>, _>>();
            assert_eq!(answers.unwrap().len(), lines, "{arguments:?} {:.30?} of {} bytes", input, input.len());
        }
    }
}

#[test]
fn an_invalid_list_has_no_answers() {
    let case = Case::new("", "ipfs.io\nhttps://x.test/path\n");
    let (outcome, text) = case.run(&["ipfs.io"], "");
    let error = outcome.unwrap_err();
    assert!(error.contains("lists/main.rules:2:"), "{error}");
    assert_eq!(text, "");
}

#[test]
fn an_entry_of_a_json_document_is_shown_whole() {
    let list = "{\n  \"patterns\": [\n    {\n      \"domain\": \"a.test\",\n      \"match\": \"strict\"\n    },\n    {\"domain\":\"b.test\"}\n  ]\n}\n";
    let case = Case::new("", "").file("golem.json", list);
    let (_, answers) = case.answers(&["a.test", "b.test"]);
    assert_eq!(
        (answers[0]["rule"].as_str(), answers[1]["rule"].as_str()),
        (Some("golem.json:3"), Some("golem.json:7"))
    );
    assert_eq!(answers[0]["rule_text"], r#"{ "domain": "a.test", "match": "strict" }"#);
    assert_eq!(answers[1]["rule_text"], r#"{"domain":"b.test"}"#);
}
