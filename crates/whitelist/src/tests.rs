//! From files to rules, one sentence of the rule language at a time.

mod files;
mod golem;

use super::*;
use outgate_policy::rule::{Effect, Ports, Reach, Scope};
use proptest::prelude::*;

const TODAY: Date = Date::constant(2026, 11, 23);

/// Records every file and rule it receives, as text: `file:line subject terms`.
#[derive(Debug, Default)]
struct Recorder {
    files: Vec<String>,
    rules: Vec<(String, String, Terms)>,
}

impl Sink for &mut Recorder {
    type File = usize;
    type Error = String;

    fn file(&mut self, name: &str) -> usize {
        self.files.push(name.to_owned());
        self.files.len() - 1
    }

    fn rule(&mut self, file: usize, line: u32, subject: &Subject<'_>, terms: &Terms) -> Result<(), String> {
        if matches!(subject, Subject::Name { base: "unwanted.test", .. }) {
            return Err("the sink takes no such rule".to_owned());
        }
        let subject = match subject {
            Subject::Name { base, scope } => format!("{scope:?} {base}"),
            Subject::Glob { pattern, scope } => format!("Glob {scope:?} {pattern}"),
            Subject::Regex(regex) => format!("Regex {regex}"),
            Subject::SearchRegex(regex) => format!("Search {regex}"),
            Subject::Net(net) => format!("Net {net}"),
        };
        self.rules.push((format!("{}:{line}", self.files[file]), subject, terms.clone()));
        Ok(())
    }
}

fn compiled(name: &str, text: impl AsRef<[u8]>) -> Result<(Recorder, Loaded), Report> {
    let mut recorder = Recorder::default();
    let files = Files::from_memory([(name, text.as_ref())]);
    let (_, loaded) = compile(&files, TODAY, &mut recorder)?;
    Ok((recorder, loaded))
}

/// Returns the only rule of a line that causes no warning.
#[track_caller]
fn rule(line: &str) -> (String, Terms) {
    let (recorder, loaded) = compiled("a.rules", format!("{line}\n")).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(recorder.rules.len(), 1, "{line}");
    let (_, subject, terms) = recorder.rules.into_iter().next().unwrap();
    (subject, terms)
}

#[track_caller]
fn subject(line: &str) -> String {
    rule(line).0
}

#[track_caller]
fn reach(line: &str) -> Reach {
    rule(line).1.reach
}

/// Asserts that the report on one file has exactly one error, at this column, with these words.
#[track_caller]
fn refused(line: &str, column: u32, words: &str) {
    let report = compiled("a.rules", format!("{line}\n")).err().unwrap_or_else(|| panic!("{line} was taken"));
    let errors: Vec<_> = report.errors().collect();
    assert_eq!(errors.len(), 1, "{report}");
    let shown = errors[0].to_string();
    assert!(shown.contains(words), "{shown}");
    assert_eq!((errors[0].line, errors[0].column), (1, column), "{shown}");
    assert!(!errors[0].remedy.is_empty(), "{shown}");
}

/// Asserts that the line is accepted, with one warning that contains these words.
#[track_caller]
fn warned(name: &str, text: &str, words: &str) {
    let (_, loaded) = compiled(name, text).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(loaded.warnings.len(), 1, "{text}: {:?}", loaded.warnings);
    let shown = loaded.warnings[0].to_string();
    assert!(shown.contains(words), "{shown}");
}

const fn one(port: u16) -> Ports {
    Ports { first: port, last: port }
}

#[test]
fn a_host_alone_is_that_host_for_the_web() {
    assert_eq!(rule("ipfs.io"), ("Exact ipfs.io".to_owned(), native::plain_terms(Effect::Allow, Reach::Web)));
    assert_eq!(subject("  IPFS.io. \t# comment"), "Exact ipfs.io");
    assert_eq!(subject("ipfs.io/"), "Exact ipfs.io");
    assert_eq!(subject("ipfs.io#comment"), "Exact ipfs.io");
}

#[test]
fn underscores_and_double_hyphens_are_names() {
    assert_eq!(subject("a_b.good.test"), "Exact a_b.good.test");
    assert_eq!(subject("r3---x.good.test"), "Exact r3---x.good.test");
}

#[test]
fn the_three_wildcards_differ_in_depth() {
    assert_eq!(subject("*.ipfs.io"), "OneLabel ipfs.io");
    assert_eq!(subject("**.ipfs.io"), "Below ipfs.io");
    assert_eq!(subject(".IPFS.io"), "SelfAndBelow ipfs.io");
}

#[test]
fn globs_stay_within_labels() {
    assert_eq!(subject("bor[0-9].golem.network"), "Glob Exact bor[0-9].golem.network");
    assert_eq!(subject("{a,b}.x.io"), "Glob Exact {a,b}.x.io");
    assert_eq!(subject("API-*.x.io"), "Glob Exact api-*.x.io");
    assert_eq!(subject("*.api-?.x.io"), "Glob Exact *.api-?.x.io");
    assert_eq!(subject("**.api-?.x.io"), "Glob Below api-?.x.io");
    assert_eq!(subject(".[a-f].x.io:80"), "Glob SelfAndBelow [a-f].x.io");
    assert_eq!(subject("[0-9].x.io"), "Glob Exact [0-9].x.io");
    assert_eq!(subject("api-*.bücher.example"), "Glob Exact api-*.xn--bcher-kva.example");
    warned("a.rules", "*.*.x.io\n", "exactly 2 labels in front; write `**.x.io`");
}

#[test]
fn broken_globs_are_explained() {
    refused("[!a].x.io", 2, "a negated class");
    refused("x[^a].x.io", 3, "a negated class");
    refused("{a.b,c}.x.io", 3, "a dot within braces");
    refused("{a,,c}.x.io", 1, "an empty alternative");
    refused("{a,{b,c}}.x.io", 4, "braces within braces");
    refused("{a,b.x.io", 1, "not closed");
    refused("{a, b}.x.io", 1, "not closed");
    refused("a].x.io", 2, "without its opening bracket");
    refused("[a.x.io", 1, "not closed");
    refused("[].x.io", 1, "an empty class");
    refused("[z-a].x.io", 1, "not a class of characters");
    refused("a.**.x.io", 3, "`**` within a name");
    refused("***.x.io", 1, "`**` within a name");
    refused("a,b.x.io", 2, "a comma outside braces");
    refused("-*.x.io", 1, "hyphen");
    refused("!good.test", 1, "`deny` rule");
    refused("192.168.*", 1, "unrelated owners");
    refused("192.168.*.1", 1, "192.0.2.0/24");
}

#[test]
fn regexes_match_whole_names() {
    assert_eq!(subject(r"/bor[0-9]+\.golem\.network/"), r"Regex bor[0-9]+\.golem\.network");
    assert_eq!(subject(r"/Bor\.golem\.network/"), r"Regex (?i)Bor\.golem\.network");
    assert_eq!(subject(r"/(?i)Bor\.golem\.network/"), r"Regex (?i)Bor\.golem\.network");
    assert_eq!(reach(r"/bor\.golem\.network/:8000-8100"), Reach::Ports(Ports { first: 8000, last: 8100 }));
    assert_eq!(reach(r"https:///bor\.golem\.network/"), Reach::Https(one(443)));
    assert_eq!(subject(r"/^bor\.golem\.network$/ # anchors do no harm"), r"Regex ^bor\.golem\.network$");
}

#[test]
fn broken_regexes_are_explained_with_their_place() {
    refused("/bor[0-9/", 5, "regex: unclosed character class");
    refused("/a(b/", 3, "regex: unclosed group");
    refused("/bor", 1, "the regex is not closed");
    refused("//", 2, "an empty regex");
    refused("/a b/", 3, "a space within the regex");
    refused("/a # b/", 3, "a space within the regex");
    refused("/a#b/", 3, "a comment starts within the regex");
    refused(r"/bücher\.de/", 3, "not ASCII");
    refused(&format!("/{}a{}/", "(".repeat(100), ")".repeat(100)), 52, "regex:");
    refused(r"/a\.good\.test/path", 16, "unexpected text");
    warned("a.rules", "/https:.*good\\.test/\n", "matches no host name");
}

#[test]
fn addresses_are_addresses_in_one_notation() {
    assert_eq!(subject("203.0.113.7"), "Net 203.0.113.7/32");
    assert_eq!(subject("203.0.113.0/24"), "Net 203.0.113.0/24");
    assert_eq!(subject("203.0.113.0/24:8443"), "Net 203.0.113.0/24");
    assert_eq!(subject("[2001:db8::]/32"), "Net 2001:db8::/32");
    assert_eq!(subject("[2001:DB8::1]:8443"), "Net 2001:db8::1/128");
    assert_eq!(subject("https://203.0.113.7/"), "Net 203.0.113.7/32");
    refused("2001:db8::/32", 1, "write an IPv6 address in brackets");
    refused("[2001:db8::/32]", 1, "with the length behind the bracket");
    refused("[fe80::1%eth0]", 1, "zones are not supported");
    refused("[::ffff:203.0.113.7]", 1, "write `203.0.113.7`");
    refused("203.0.113.7/24", 13, "write `203.0.113.0/24` for the range, or `203.0.113.7`");
    refused("203.0.113.0/33", 13, "not a prefix length");
    refused("203.0.113.0/024", 13, "not a prefix length");
    for text in ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "256.1.1.1", "1.2.3", "good.0x7"] {
        refused(text, 1, "four decimal numbers");
    }
}

#[test]
fn ports_stand_behind_a_colon() {
    assert_eq!(reach("good.test:8443"), Reach::Ports(one(8443)));
    assert_eq!(reach("good.test:8000-8100"), Reach::Ports(Ports { first: 8000, last: 8100 }));
    assert_eq!(reach("good.test:*"), Reach::Ports(Ports::ALL));
    assert_eq!(reach("*.good.test:8443/"), Reach::Ports(one(8443)));
    for port in ["0", "65536", "0443", "+443", "", "https", "1-", "-1"] {
        refused(&format!("good.test:{port}"), if port == "1-" { 13 } else { 11 }, "is not a port");
    }
    refused("good.test:80,443", 11, "a line of its own");
    refused("good.test:90-80", 11, "write `80-90`");
}

#[test]
fn schemes_give_transport_port_and_protocol() {
    assert_eq!(reach("https://good.test"), Reach::Https(one(443)));
    assert_eq!(reach("HTTPS://good.test:8443/"), Reach::Https(one(8443)));
    assert_eq!(reach("http://good.test"), Reach::Http(one(80)));
    assert_eq!(reach("wss://good.test"), Reach::Https(one(443)));
    assert_eq!(reach("ws://good.test:*"), Reach::Http(Ports::ALL));
    assert_eq!(reach("tcp://good.test:22"), Reach::Tcp(one(22)));
    assert_eq!(reach("udp://good.test:123"), Reach::Udp(one(123)));
    assert_eq!(reach("quic://good.test"), Reach::Quic(one(443)));
    assert_eq!(subject("https://*.good.test"), "OneLabel good.test");
    refused("tcp://good.test", 16, "write `tcp://good.test:port` with the port");
    refused("udp://good.test/", 16, "has no default port");
    refused("htps://good.test", 1, "did you mean `https://`?");
    refused("gopher://good.test", 1, "unknown scheme `gopher`");
    refused("http:/good.test", 6, "write `http://host`");
    refused("https:good.test", 7, "write `https://host`");
    refused("https://", 9, "the host is missing");
}

#[test]
fn a_path_is_an_error_that_says_so() {
    refused("https://good.test/simple/", 18, "a rule has no path; write `https://good.test`");
    refused("good.test:8443/x", 15, "write `good.test:8443`");
    refused("203.0.113.7/x", 13, "a rule has no path");
    refused("user@good.test", 5, "user name");
    refused("https://user:pw@good.test", 16, "user name");
}

#[test]
fn deny_reaches_everything_unless_it_says_what() {
    assert_eq!(rule("deny good.test").1, native::plain_terms(Effect::Deny, Reach::Everything));
    assert_eq!(rule("deny  https://good.test").1.reach, Reach::Https(one(443)));
    assert_eq!(rule("deny good.test:25").1.reach, Reach::Ports(one(25)));
    assert_eq!(subject("deny 0.0.0.0/0"), "Net 0.0.0.0/0");
    assert_eq!(subject("deny *.com"), "OneLabel com");
    assert_eq!(subject(r"deny /.*\.com/"), r"Regex .*\.com");
    assert_eq!(subject("deny *"), "Regex .*");
    assert_eq!(subject("deny.good.test"), "Exact deny.good.test");
    refused("deny", 5, "`deny` without a host");
    refused("deny good.test ech=allow", 16, "has no effect on a `deny`");
    refused("deny good.test to=10.0.0.1", 16, "has no effect on a `deny`");
    refused("allow good.test", 1, "leave out `allow`");
}

#[test]
fn options_stand_in_any_order() {
    let line = r#"good.test note="why # not" to=10.0.0.5/32,[fd00::]/8,10.0.0.5 ech=allow owner=ops wide=yes until=2027-01-31 # x"#;
    let files = Files::from_memory([("a.rules", format!("{line}\n"))]);
    let listed: Vec<Listed> = list(&files, TODAY).unwrap().collect();
    assert_eq!((listed[0].note.as_deref(), listed[0].owner.as_deref()), (Some("why # not"), Some("ops")));
    assert_eq!(&*listed[0].source, line.strip_suffix(" # x").unwrap());
    let canonical = "good.test until=2027-01-31 ech=allow to=10.0.0.5/32,fd00::/8";
    assert_eq!(listed[0].canonical.as_deref(), Some(canonical));
    let terms = rule(line).1;
    assert_eq!(terms.until, Some(Date::constant(2027, 1, 31)));
    assert!(terms.ech_allowed);
    assert_eq!(terms.to.unwrap().len(), 2);
}

#[test]
fn broken_options_are_explained() {
    refused("good.test util=2027-01-31", 11, "did you mean `until=`?");
    refused("good.test colour=red", 11, "unknown option `colour`; the options are");
    refused("good.test until=2027-02-30", 17, "is not a date");
    refused("good.test until=31.01.2027", 17, "write year, month and day");
    refused("good.test until=2027-1-31", 17, "is not a date");
    refused("good.test until=", 11, "has no value");
    refused("good.test owner=a owner=b", 19, "is there twice");
    refused("good.test ech=deny", 15, "the only one is `ech=allow`");
    refused("good.test wide=no", 16, "the only one is `wide=yes`");
    refused("good.test to=10.0.0.5/24", 23, "write `10.0.0.0/24`");
    refused("good.test to=10.0.0.0/8,x.test", 25, "is not an address");
    refused("good.test note=\"open", 16, "the quote is not closed");
    refused("good.test note=\"x\"owner=y", 19, "a space is missing");
    refused("good.test because", 11, "a comment starts with `#`");
    refused("good.test evil.test", 11, "write one rule per line");
    refused("good.test\u{a0}evil.test", 10, "use plain spaces");
    refused("\u{a0}good.test", 1, "use plain spaces");
}

#[test]
fn names_that_are_not_ascii_go_through_idna() {
    assert_eq!(subject("Bücher.example"), "Exact xn--bcher-kva.example");
    assert_eq!(subject("*.faß.de"), "OneLabel xn--fa-hia.de");
    refused("①②⑦.0.0.1", 1, "four decimal numbers");
    refused("a\u{301}\u{200d}.example", 1, "IDNA");
    warned("a.rules", "ｉｐｆｓ.io\n", "is read as `ipfs.io`");
    refused("good..test", 1, "a label is empty");
    refused("go$od.test", 1, "not allowed in a host name");
    warned("a.rules", "intranet\n", "single label");
}

#[test]
fn patterns_over_public_suffixes_need_wide() {
    for pattern in [
        "*",
        "**",
        "*.com",
        "**.com",
        ".github.io",
        ".amazonaws.com",
        "**.amazonaws.com",
        "*.co.uk",
        "*.s3.amazonaws.com",
        "*.blob.core.windows.net",
        "api-*.github.io",
        "?.com",
        "a.*.com",
        "foo.*",
        "[0-9].network",
        r"/.*\.com/",
        r"/.*golem\.network/",
        r"/.*/",
        r"/api.github.com/",
        r"/[a-z0-9]+\.amazonaws\.com/",
        r"/.+\.io|a\.b\.io/",
        r"/(a|b[0-9])\.network/",
        "https://*.workers.dev",
        "*.test",
    ] {
        let report = compiled("a.rules", format!("{pattern}\n")).err().unwrap_or_else(|| panic!("{pattern} was taken"));
        assert!(report.to_string().contains("lets in names of unrelated owners, such as `"), "{report}");
        warned("a.rules", &format!("{pattern} wide=yes\n"), "unrelated owners");
    }
}

#[test]
fn the_stranger_shown_for_a_glob_passes_it() {
    for (glob, scope) in [
        ("api-*.github.io", Scope::Exact),
        ("[0-9].network", Scope::Exact),
        ("a.*.com", Scope::Exact),
        ("{a,b}-?.workers.dev", Scope::Exact),
        ("{a,b}-?.dev", Scope::Below),
    ] {
        let subject = subject::Owned::Glob { pattern: glob.to_owned(), scope };
        let wide = public_suffix::breadth(&subject).unwrap_or_else(|| panic!("{glob}"));
        let regex = regex::Regex::new(&format!("^(?:{})$", glob::regex(glob, scope))).unwrap();
        assert!(regex.is_match(&wide.example), "{glob}: {}", wide.example);
    }
}

#[test]
fn patterns_within_one_owners_names_are_not_wide() {
    for pattern in [
        "*.ipfs.io",
        ".golem.network",
        "api-*.x.io",
        "*.someone.github.io",
        "github.io",
        "{a,b}.io",
        "example.{com,org}",
        "*.debian.org",
        "*.airflow.amazonaws.com",
        r"/bor[0-9]+\.golem\.network/",
        r"/(.*\.)?golem\.network/",
        r"/(ipfs|dweb)\.io/",
        r"/(foo|fob)\.com/",
        r"/([a-z]+\.)*golem\.network/",
        r"/a{3}\.x\.io/",
        r"/.*\.(a|b)\.golem\.network/",
        r"/(?i)ipfs\.io/",
        r"/^ipfs\.io$/",
    ] {
        subject(pattern);
    }
}

#[test]
fn everything_is_meant_by_a_lone_star_with_wide() {
    let (recorder, _) = compiled("a.rules", "* wide=yes\n").unwrap();
    assert_eq!(recorder.rules[0].1, "Regex .*");
}

#[test]
fn the_canonical_form_reads_back_as_the_same_rule() {
    for line in [
        "ipfs.io",
        "*.ipfs.io:8443",
        "**.ipfs.io:*",
        ".ipfs.io",
        "api-*.x.io:1-2",
        r"/a\.x\.io/",
        "203.0.113.0/24",
        "203.0.113.7",
        "[2001:db8::]/32",
        "[2001:db8::1]:22",
        "http://a.test",
        "https://a.test:8443",
        "tcp://a.test:22",
        "udp://a.test:*",
        "quic://a.test",
        "deny a.test",
        "deny tcp://a.test:22",
        "a.test to=10.0.0.1/32,fd00::/8 ech=allow until=2027-01-01",
    ] {
        let files = Files::from_memory([("a.rules", format!("{line}\n"))]);
        let listed: Vec<Listed> = list(&files, TODAY).unwrap().collect();
        let canonical = listed[0].canonical.as_deref().unwrap_or(&listed[0].source);
        assert_eq!(rule(canonical), rule(line), "{canonical}");
    }
}

proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(line in "\\PC{0,60}") {
        let _ = compiled("a.rules", format!("{line}\n"));
        let _ = compiled("regex.lst", format!("{line}\n"));
        let _ = compiled("strict.lst", format!("{line}\n"));
        let _ = compiled("a.json", &line);
    }

    #[test]
    fn no_rule_like_line_makes_the_parser_panic(line in r#"(deny )?(https?|tcp|quic|x)?(://|:/)?[*.a0/\[\]{},:?!\\()|+^$ ü-]{0,24}( (to|until|note|ech|wide|x)=["0-9a-z./,:-]{0,12}){0,2}"#) {
        let _ = compiled("a.rules", format!("{line}\n"));
        let _ = compiled("regex.lst", format!("{line}\n"));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for name in ["a.rules", "regex.lst", "a.lst", "a.json"] {
            let _ = compiled(name, &bytes);
        }
    }

    #[test]
    fn no_beginning_of_a_list_is_taken_unless_it_ends_with_a_line(hosts in proptest::collection::vec("[a-z]{1,8}(\\.[a-z]{2,8}){1,3}", 1..6), cut in any::<prop::sample::Index>()) {
        let text = hosts.iter().map(|host| format!("{host}\n")).collect::<String>();
        let beginning = &text[..cut.index(text.len())];
        let taken = compiled("a.rules", beginning).is_ok();
        prop_assert_eq!(taken, beginning.is_empty() || beginning.ends_with('\n'));
    }

    #[test]
    fn what_is_not_wide_stays_with_one_owner(regex in r"(\^)?(a|b\*|\[ab\]|\.|\.\*|\\\.|x\?|\(a\|c\\\.\)){0,5}(\\\.|\.)?(golem|ab)(\\\.|\.)(io|com)(\$)?") {
        // Whatever such a regex matches, it must not match a name that an attacker could register.
        let Ok(pattern) = pattern::analyse(&regex, pattern::Matching::Search) else { return Ok(()) };
        if pattern.wide.is_none() && !pattern.matches_nothing {
            let yagna = regex::RegexBuilder::new(&regex).case_insensitive(true).ignore_whitespace(true).build().unwrap();
            for name in ["evilgolem.io", "evilab.com", "golemxio.com", "golem.io.evil.org", "xab.io", "aab.com", "a.golem.io.evil.org", "ab-com.io", "golemaio"] {
                prop_assert!(!yagna.is_match(name) || regex.starts_with('^') && !regex.contains('*'), "{} matches {}", regex, name);
            }
        }
    }
}
