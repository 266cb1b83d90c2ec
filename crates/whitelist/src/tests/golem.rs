//! Golem's own files.

use super::*;
use std::fs;

#[test]
fn golems_lists_are_read_unchanged() {
    let data = |name: &str| fs::read(format!("{}/../../tests/data/golem/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (strict, loaded) = compiled("strict.lst", data("strict.lst")).unwrap();
    let addresses = strict.rules.iter().filter(|(_, subject, _)| subject.starts_with("Net ")).count();
    assert_eq!((strict.rules.len(), loaded.rules, loaded.warnings.len(), addresses), (24, 24, 0, 4));
    assert_eq!(
        strict.rules[0],
        ("strict.lst:1".to_owned(), "Net 3.122.207.83/32".to_owned(), native::plain_terms(Effect::Allow, Reach::Golem))
    );
    let (regex, loaded) = compiled("regex.lst", data("regex.lst")).unwrap();
    assert_eq!((regex.rules.len(), loaded.warnings.len()), (4, 0));
    assert_eq!(regex.rules[2].1, r"Search .*\.dev\.golem\.network$");
    let (json, loaded) = compiled("domain_whitelist.json", data("domain_whitelist.json")).unwrap();
    assert!(loaded.warnings.is_empty());
    let subjects = |recorder: &Recorder| recorder.rules.iter().map(|rule| rule.1.clone()).collect::<Vec<_>>();
    assert_eq!(subjects(&json), [subjects(&strict), subjects(&regex)].concat());
    assert_eq!(json.rules[1].0, "domain_whitelist.json:7");
}

#[test]
fn golems_match_defaults_to_strict_and_names_are_folded() {
    let (recorder, _) = compiled(
        "x.json",
        r#"{"patterns":[{"domain":"IPFS.io"},{"domain":"[2001:db8::1]","match":"strict"}],"extra":1}"#,
    )
    .unwrap();
    assert_eq!(recorder.rules[0].1, "Exact ipfs.io");
    assert_eq!(recorder.rules[1].1, "Net 2001:db8::1/128");
}

#[test]
fn what_would_allow_everything_in_yagna_is_an_error() {
    for line in ["", "   ", "# comment", "  # comment", "()", "(?:)"] {
        let text = format!("^a\\.test$\n{line}\n^b\\.test$\n");
        let result = compiled("regex.lst", &text);
        if line == "()" {
            continue;
        }
        let report = result.err().unwrap_or_else(|| panic!("{line:?} was taken"));
        assert_eq!(report.errors().map(|error| error.line).collect::<Vec<_>>(), [2], "{report}");
    }
    for json in
        [r#"{"patterns":[{"domain":"","match":"regex"}]}"#, r##"{"patterns":[{"domain":"# x","match":"regex"}]}"##]
    {
        assert!(compiled("a.json", json).is_err(), "{json}");
    }
}

#[test]
fn unanchored_regexes_of_golems_are_shown_a_hostile_name() {
    for (regex, hostile) in [
        (r"mainnet\.infura\.io", ".example"),
        (r"golem\.network$", "evilgolem.network"),
        (r"^ipfs\.io", "ipfs.io.evil.example"),
        (r"^api.github.com$", "api"),
        (r".*", "."),
        (r"a|b$", "."),
        (r"^.*\.github\.io$", ".github.io"),
    ] {
        let (_, loaded) = compiled("regex.lst", format!("{regex}\n")).unwrap();
        let shown = loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().concat();
        assert!(shown.contains("such as `") && shown.contains(hostile), "{regex}: {shown}");
        let name = shown.split("such as `").nth(1).unwrap().split('`').next().unwrap();
        let yagna = regex::RegexBuilder::new(regex).case_insensitive(true).ignore_whitespace(true).build().unwrap();
        assert!(yagna.is_match(name) && outgate_proto::name::HostName::parse(name).is_ok(), "{regex}: {name}");
    }
}

#[test]
fn regexes_of_golems_are_lower_cased_as_yagna_does_it() {
    let regexes = ["^API\\.Golem\\.network$", r"^\D+\.golem\.network$", r"^a\\d\.golem\.network$"];
    let (recorder, loaded) = compiled("regex.lst", regexes.join("\n") + "\n").unwrap();
    let subjects: Vec<&str> = recorder.rules.iter().map(|rule| rule.1.as_str()).collect();
    assert_eq!(subjects[..2], [r"Search ^api\.golem\.network$", r"Search ^\d+\.golem\.network$"]);
    let changed: Vec<_> =
        loaded.warnings.iter().filter(|warning| warning.to_string().contains("lower-cases")).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert!(changed[0].to_string().contains(r"`\D` is `\d`"), "{}", changed[0]);
}

#[test]
fn broken_files_of_golems_are_explained() {
    for (name, text, words) in [
        ("strict.lst", "ipfs.io\n*.ipfs.io\n", "strict.lst:2:1: `*.ipfs.io` is neither a host nor an address"),
        ("strict.lst", "# x\n", "strict.lst:1:1"),
        ("strict.lst", "ipfs.io:443\n", "ports are not allowed here"),
        ("regex.lst", "a(b\n", "regex.lst:1:2: regex: unclosed group"),
        ("a.json", "{\"patterns\":[\n  {\"domain\":7}]}", "a.json:2:3: not an entry of a whitelist"),
        ("a.json", "{\"patterns\":[\n  {\"domain\":\"a.test\",\"match\":\"glob\"}]}", "a.json:2:3: not an entry"),
        ("a.json", "{\"patterns\":[{\"domain\":\"a b\"}]}", "a.json:1:14: `a b` is neither"),
        ("a.json", "{\"patterns\":[{\"domain\":\"a.te", "not valid JSON"),
        ("a.json", "", "not valid JSON"),
        ("a.json", "{\"patterns\":[],\"patterns\":[]}", "duplicate field"),
        ("a.json", "{}", "missing field"),
    ] {
        let report = compiled(name, text).err().unwrap_or_else(|| panic!("{text} was taken")).to_string();
        assert!(report.contains(words), "{report}");
    }
}

#[test]
fn a_providers_rules_are_files_of_the_set_without_rules_of_ours() {
    use outgate_golem::rules::Mode;
    let rules = |enabled: bool, everyone: &str| {
        let text = format!("{{\"outbound\":{{\"enabled\":{enabled},\"everyone\":\"{everyone}\"}}}}");
        compiled("data/rules.json", text).unwrap()
    };
    for (enabled, everyone, granted, warnings) in [
        (true, "all", Mode::All, 1),
        (true, "whitelist", Mode::Whitelist, 0),
        (true, "none", Mode::None, 0),
        (false, "all", Mode::None, 0),
    ] {
        let (recorder, loaded) = rules(enabled, everyone);
        assert_eq!(
            (recorder.rules.len(), loaded.outbound.map(|rules| rules.without_manifest()), loaded.warnings.len()),
            (0, Some(granted), warnings),
            "{everyone}"
        );
    }
    assert!(rules(true, "all").1.warnings[0].to_string().contains("[golem].max_mode"));
    let report = compiled("data/rules.json", "{\"outbound\":\n{\"enabled\":tru").err().unwrap().to_string();
    assert!(report.contains("data/rules.json:2:") && report.contains("not valid rules of ya-provider"), "{report}");
    // In the whitelist dir, a file of that name is a list.
    assert!(compiled("rules.json", "{\"outbound\":{\"enabled\":true,\"everyone\":\"all\"}}").is_err());
}
