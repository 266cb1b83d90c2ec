//! What the policy must do, sentence by sentence of the rule language. `written` is a small reader of rule lines for
//! these tests only; `oracle` compares everything with a naive matcher.

mod agreements;
mod guests;
mod near;
mod oracle;
mod subjects;
mod usage;
mod written;

use super::rule::Subject;
use super::*;
use guests::{guest, with_guests};
use jiff::civil::{Date, date};
use outgate_proto::identify::Evidence;
use outgate_proto::target::{Host, Protocol, Transport};
use written::line;

pub(super) const TODAY: Date = date(2026, 11, 23);

/// A list of one file.
fn rules(lines: &[&str]) -> Arc<Rules> {
    files(&[("a.rules", lines)])
}

fn files(files: &[(&str, &[&str])]) -> Arc<Rules> {
    let mut builder = Builder::new(TODAY);
    for (name, lines) in files {
        let file = builder.file(name);
        for (number, text) in (1..).zip(*lines) {
            let rule = line(text);
            builder.rule(file, number, &rule.subject(), &rule.terms).unwrap();
        }
    }
    Arc::new(builder.build().unwrap())
}

fn settings() -> PolicySettings {
    PolicySettings {
        mode: Mode::Whitelist,
        ech_allowed: false,
        guests: Vec::new(),
        unknown: Unknown::Shared,
        blocked_ports: vec![25, 465, 587],
    }
}

fn policy(lines: &[&str]) -> Policy {
    Policy::new(rules(lines), settings()).unwrap()
}

fn in_mode(mode: Mode, lines: &[&str]) -> Policy {
    Policy::new(rules(lines), PolicySettings { mode, ..settings() }).unwrap()
}

/// A TCP flow from which nothing has been read yet.
fn claim(target: &str) -> Claim {
    Claim {
        source: IpAddr::from([10, 42, 42, 7]).into(),
        target: Target::parse(target.as_bytes(), Some(443)).unwrap(),
        transport: Transport::Tcp,
        spoken: None,
        ech: false,
        evidence: Evidence::Connect,
    }
}

fn speaking(target: &str, protocol: Protocol) -> Claim {
    Claim { spoken: Some(protocol), ..claim(target) }
}

fn over(transport: Transport, target: &str) -> Claim {
    Claim { transport, ..claim(target) }
}

fn from(source: &str, target: &str) -> Claim {
    Claim { source: source.parse::<IpAddr>().unwrap().into(), ..claim(target) }
}

fn reason(policy: &Policy, claim: &Claim) -> Reason {
    policy.decide(claim).map_or_else(|refusal| refusal.reason, |_| Reason::None)
}

fn refused_by(policy: &Policy, claim: &Claim) -> (Reason, Option<String>) {
    let refusal = policy.decide(claim).unwrap_err();
    (refusal.reason, refusal.rule.map(|rule| rule.to_string()))
}

fn allowed_by(policy: &Policy, claim: &Claim) -> Option<String> {
    policy.decide(claim).unwrap().rule().map(ToString::to_string)
}

/// Checks which of `hosts` the rule allows.
#[track_caller]
fn takes(rule: &str, hosts: &[&str], not: &[&str]) {
    let policy = policy(&[rule]);
    for host in hosts {
        assert_eq!(reason(&policy, &claim(host)), Reason::None, "`{rule}` should take {host}");
    }
    for host in not {
        assert_eq!(reason(&policy, &claim(host)), Reason::NotWhitelisted, "`{rule}` should not take {host}");
    }
}

const LOOKALIKES: [&str; 4] = ["evil-ipfs.io", "xipfs.io", "ipfs.io.evil.test", "ipfs.io.evil"];

#[test]
fn a_bare_host_is_http_on_80_and_https_on_443() {
    let policy = policy(&["ipfs.io"]);
    let spoken = |target, protocol| reason(&policy, &speaking(target, protocol));
    assert_eq!(spoken("ipfs.io:80", Protocol::Http), Reason::None);
    assert_eq!(spoken("ipfs.io:443", Protocol::Tls), Reason::None);
    for (target, protocol) in [
        ("ipfs.io:80", Protocol::Tls),
        ("ipfs.io:80", Protocol::Raw),
        ("ipfs.io:443", Protocol::Http),
        ("ipfs.io:443", Protocol::Raw),
    ] {
        assert_eq!(spoken(target, protocol), Reason::ProtocolNotAllowed, "{target} {protocol:?}");
    }
    assert_eq!(refused_by(&policy, &claim("ipfs.io:22")), (Reason::PortNotAllowed, Some("a.rules:1".into())));
    assert_eq!(reason(&policy, &over(Transport::Udp, "ipfs.io:443")), Reason::PortNotAllowed);
    assert_eq!(reason(&policy, &over(Transport::Quic, "ipfs.io:443")), Reason::PortNotAllowed);
    let permit = policy.decide(&claim("ipfs.io:443")).unwrap();
    assert_eq!(permit.protocols(), Protocols::only(Protocol::Tls));
    assert_eq!((permit.target().to_string().as_str(), permit.observed()), ("ipfs.io:443", false));
}

#[test]
fn ports_after_a_host_stand_instead_of_80_and_443() {
    let policy = policy(&["a.io:8443", "b.io:8000-8100", "c.io:*", "d.io:80"]);
    for target in ["a.io:8443", "b.io:8000", "b.io:8100", "c.io:1", "c.io:65535", "c.io:80"] {
        assert_eq!(reason(&policy, &claim(target)), Reason::None, "{target}");
    }
    for target in ["a.io:443", "a.io:8442", "b.io:7999", "b.io:8101", "b.io:80", "d.io:443"] {
        assert_eq!(reason(&policy, &claim(target)), Reason::PortNotAllowed, "{target}");
    }
    for protocol in [Protocol::Http, Protocol::Tls, Protocol::Raw] {
        assert_eq!(reason(&policy, &speaking("a.io:8443", protocol)), Reason::None, "{protocol:?}");
    }
    assert_eq!(reason(&policy, &speaking("c.io:443", Protocol::Raw)), Reason::ProtocolNotAllowed);
    assert_eq!(reason(&policy, &speaking("c.io:80", Protocol::Tls)), Reason::ProtocolNotAllowed);
}

#[test]
fn a_scheme_gives_transport_port_and_protocol() {
    let policy = policy(&[
        "https://a.io",
        "http://b.io:8080",
        "tcp://c.io:22",
        "udp://d.io:123",
        "quic://e.io",
        "udp://f.io:443",
    ]);
    assert_eq!(reason(&policy, &speaking("a.io:443", Protocol::Tls)), Reason::None);
    assert_eq!(reason(&policy, &claim("a.io:80")), Reason::PortNotAllowed);
    assert_eq!(reason(&policy, &speaking("b.io:8080", Protocol::Http)), Reason::None);
    assert_eq!(reason(&policy, &speaking("b.io:8080", Protocol::Tls)), Reason::ProtocolNotAllowed);
    for protocol in [Protocol::Http, Protocol::Tls, Protocol::Raw] {
        assert_eq!(reason(&policy, &speaking("c.io:22", protocol)), Reason::None, "{protocol:?}");
    }
    assert_eq!(reason(&policy, &over(Transport::Udp, "d.io:123")), Reason::None);
    assert_eq!(reason(&policy, &claim("d.io:123")), Reason::PortNotAllowed);
    assert_eq!(reason(&policy, &over(Transport::Quic, "e.io:443")), Reason::None);
    assert_eq!(reason(&policy, &over(Transport::Udp, "e.io:443")), Reason::PortNotAllowed);
    assert_eq!(reason(&policy, &over(Transport::Quic, "f.io:443")), Reason::None);
}

#[test]
fn tcp_allows_raw_bytes_on_the_web_ports_too() {
    let policy = policy(&["tcp://a.io:443", "a.io"]);
    assert_eq!(allowed_by(&policy, &speaking("a.io:443", Protocol::Raw)), Some("a.rules:1".into()));
    assert_eq!(allowed_by(&policy, &speaking("a.io:80", Protocol::Http)), Some("a.rules:2".into()));
}

#[test]
fn deny_wins_whatever_the_order_and_the_file() {
    let list = [("a.rules", &[".ipfs.io", "deny a.ipfs.io"][..]), ("b.rules", &["deny *.b.ipfs.io", "x.b.ipfs.io"])];
    let policy = Policy::new(files(&list), settings()).unwrap();
    assert_eq!(refused_by(&policy, &claim("a.ipfs.io")), (Reason::DeniedByRule, Some("a.rules:2".into())));
    assert_eq!(refused_by(&policy, &claim("x.b.ipfs.io")), (Reason::DeniedByRule, Some("b.rules:1".into())));
    assert_eq!(allowed_by(&policy, &claim("b.ipfs.io")), Some("a.rules:1".into()));
    assert_eq!(reason(&policy, &over(Transport::Udp, "a.ipfs.io:53")), Reason::DeniedByRule);
}

#[test]
fn deny_holds_in_every_mode_but_none() {
    for mode in [Mode::Whitelist, Mode::Observe, Mode::All] {
        let policy = in_mode(mode, &["deny ipfs.io", "deny 203.0.113.0/24", "ipfs.io"]);
        for target in ["ipfs.io", "ipfs.io:22", "203.0.113.7"] {
            assert_eq!(reason(&policy, &claim(target)), Reason::DeniedByRule, "{mode:?} {target}");
        }
    }
    assert_eq!(refused_by(&in_mode(Mode::None, &["deny ipfs.io"]), &claim("ipfs.io")), (Reason::ModeNone, None));
}

#[test]
fn http_2_in_clear_takes_a_rule_for_any_bytes() {
    let lines = ["a.io", "b.io:50051", "tcp://c.io:50051", "tcp://d.io:*", "deny http://d.io:50051", "http://e.io:81"];
    let whitelist = policy(&lines);
    for target in ["a.io:80", "a.io:443", "b.io:50051", "e.io:81"] {
        assert_eq!(reason(&whitelist, &speaking(target, Protocol::H2c)), Reason::H2c, "{target}");
    }
    for target in ["c.io:50051", "d.io:80", "d.io:443"] {
        assert_eq!(reason(&whitelist, &speaking(target, Protocol::H2c)), Reason::None, "{target}");
    }
    assert_eq!(reason(&whitelist, &speaking("d.io:50051", Protocol::H2c)), Reason::DeniedByRule);
    assert_eq!(reason(&whitelist, &speaking("z.io:50051", Protocol::H2c)), Reason::NotWhitelisted);
    assert_eq!(reason(&in_mode(Mode::All, &lines), &speaking("a.io:80", Protocol::H2c)), Reason::None);
    assert!(in_mode(Mode::Observe, &lines).decide(&speaking("a.io:80", Protocol::H2c)).unwrap().observed());
    let advice = whitelist.near_miss(&speaking("b.io:50051", Protocol::H2c)).unwrap().advice;
    assert!(advice.ends_with("`tcp://b.io:50051` would match"), "{advice}");
}

#[test]
fn deny_of_one_protocol_waits_for_what_is_spoken() {
    let policy = policy(&["ipfs.io:8443", "deny https://ipfs.io:8443"]);
    let permit = policy.decide(&claim("ipfs.io:8443")).unwrap();
    assert_eq!(permit.protocols(), Protocols::only(Protocol::Http).union(Protocols::only(Protocol::Raw)));
    assert_eq!(reason(&policy, &speaking("ipfs.io:8443", Protocol::Http)), Reason::None);
    let refused = refused_by(&policy, &speaking("ipfs.io:8443", Protocol::Tls));
    assert_eq!(refused, (Reason::DeniedByRule, Some("a.rules:2".into())));
}

#[test]
fn deny_of_all_that_is_allowed_refuses_at_once() {
    let policy = policy(&["ipfs.io", "deny http://ipfs.io:443", "deny https://ipfs.io"]);
    assert_eq!(refused_by(&policy, &claim("ipfs.io:443")), (Reason::DeniedByRule, Some("a.rules:3".into())));
    assert_eq!(reason(&policy, &claim("ipfs.io:80")), Reason::None);
}

#[test]
fn deny_of_a_port_is_whatever_is_spoken_there() {
    let policy = policy(&["tcp://ipfs.io:443", "deny ipfs.io:443"]);
    assert_eq!(reason(&policy, &speaking("ipfs.io:443", Protocol::Raw)), Reason::DeniedByRule);
}

#[test]
fn deny_of_addresses_goes_along_with_names() {
    let address = |policy: &Policy, claim: &Claim, address: &str| {
        policy.decide(claim).unwrap().addresses().denied.contains(address.parse().unwrap())
    };
    let whole = policy(&["ipfs.io:*", "deny 203.0.113.0/24", "deny 198.51.100.1 until=2020-01-01"]);
    assert!(address(&whole, &claim("ipfs.io"), "203.0.113.7"));
    assert!(address(&whole, &claim("ipfs.io"), "::ffff:203.0.113.7"));
    assert!(!address(&whole, &claim("ipfs.io"), "203.0.114.7"));
    assert!(!address(&whole, &claim("ipfs.io"), "198.51.100.1"));
    let first = whole.decide(&claim("ipfs.io")).unwrap();
    let second = whole.decide(&claim("ipfs.io:22")).unwrap();
    assert!(Arc::ptr_eq(&first.addresses().denied, &second.addresses().denied));

    let partial =
        policy(&["ipfs.io:*", "udp://ipfs.io:53", "deny 203.0.113.0/24:22", "deny https://198.51.100.1:8443"]);
    assert!(address(&partial, &claim("ipfs.io:22"), "203.0.113.7"));
    assert!(!address(&partial, &claim("ipfs.io:23"), "203.0.113.7"));
    assert!(!address(&partial, &over(Transport::Udp, "ipfs.io:53"), "203.0.113.7"));
    assert!(address(&partial, &claim("ipfs.io:8443"), "198.51.100.1"));
    assert!(address(&partial, &speaking("ipfs.io:8443", Protocol::Tls), "198.51.100.1"));
    assert!(!address(&partial, &speaking("ipfs.io:8443", Protocol::Http), "198.51.100.1"));
}

#[test]
fn a_rule_holds_through_its_last_day() {
    let policy = policy(&[
        "a.io until=2026-11-23",
        "b.io until=2026-11-22",
        "c.io until=2027-01-31",
        "deny d.io until=2026-11-22",
        "d.io",
    ]);
    assert_eq!(reason(&policy, &claim("a.io")), Reason::None);
    assert_eq!(refused_by(&policy, &claim("b.io")), (Reason::RuleExpired, Some("a.rules:2".into())));
    assert_eq!(reason(&policy, &claim("b.io:22")), Reason::NotWhitelisted);
    assert_eq!(reason(&policy, &claim("d.io")), Reason::None);
    assert_eq!(policy.rules().next_expiry(), Some(TODAY));
}

#[test]
fn a_list_in_force_ends_its_rules_on_a_new_day_without_being_built_again() {
    let policy = policy(&["a.io until=2026-11-23", "b.io until=2026-11-24", "c.io"]);
    policy.rules().expire(date(2026, 11, 24));
    assert_eq!(reason(&policy, &claim("a.io")), Reason::RuleExpired);
    assert_eq!(reason(&policy, &claim("b.io")), Reason::None);
    assert_eq!(reason(&policy, &claim("c.io")), Reason::None);
}

#[test]
fn the_most_specific_reason_is_given_with_its_rule() {
    let lines = ["x.io until=2020-01-01", "x.io:22", "https://x.io:8443", "y.io"];
    let policy = policy(&lines);
    let ech = |target| Claim { ech: true, ..speaking(target, Protocol::Tls) };
    assert_eq!(refused_by(&policy, &claim("x.io:443")), (Reason::PortNotAllowed, Some("a.rules:2".into())));
    assert_eq!(
        refused_by(&policy, &speaking("x.io:8443", Protocol::Raw)),
        (Reason::ProtocolNotAllowed, Some("a.rules:3".into()))
    );
    assert_eq!(refused_by(&policy, &ech("x.io:8443")), (Reason::Ech, Some("a.rules:3".into())));
    assert_eq!(refused_by(&policy, &ech("y.io:443")), (Reason::Ech, Some("a.rules:4".into())));
    assert_eq!(refused_by(&policy, &claim("z.io")), (Reason::NotWhitelisted, None));
}

#[test]
fn encrypted_hellos_pass_where_the_rule_or_the_configuration_says_so() {
    let ech = |target| Claim { ech: true, ..speaking(target, Protocol::Tls) };
    let lines = ["a.io", "b.io ech=allow", "c.io", ".c.io ech=allow"];
    let strict = policy(&lines);
    assert_eq!(reason(&strict, &ech("a.io")), Reason::Ech);
    assert_eq!(reason(&strict, &ech("b.io")), Reason::None);
    assert_eq!(allowed_by(&strict, &ech("c.io")), Some("a.rules:4".into()));
    let open = Policy::new(rules(&lines), PolicySettings { ech_allowed: true, ..settings() }).unwrap();
    assert_eq!(reason(&open, &ech("a.io")), Reason::None);
    for mode in [Mode::Observe, Mode::All] {
        let policy = in_mode(mode, &lines);
        assert_eq!(reason(&policy, &ech("z.io")), Reason::Ech, "{mode:?}");
    }
    assert_eq!(reason(&in_mode(Mode::All, &lines), &ech("b.io")), Reason::Ech);
    assert_eq!(allowed_by(&in_mode(Mode::Observe, &lines), &ech("b.io")), Some("a.rules:2".into()));
}

#[test]
fn blocked_ports_need_a_rule_that_names_them() {
    let policy = policy(&["a.io:25", "b.io:*", "c.io:20-30", "tcp://d.io:587"]);
    assert_eq!(reason(&policy, &claim("a.io:25")), Reason::None);
    assert_eq!(reason(&policy, &claim("d.io:587")), Reason::None);
    assert_eq!(refused_by(&policy, &claim("b.io:25")), (Reason::PortNotAllowed, Some("a.rules:2".into())));
    assert_eq!(reason(&policy, &claim("c.io:25")), Reason::PortNotAllowed);
    assert_eq!(reason(&policy, &claim("c.io:26")), Reason::None);
    for mode in [Mode::Observe, Mode::All] {
        assert_eq!(reason(&in_mode(mode, &[]), &claim("z.io:25")), Reason::PortNotAllowed, "{mode:?}");
    }
    assert_eq!(allowed_by(&in_mode(Mode::Observe, &["a.io:25"]), &claim("a.io:25")), Some("a.rules:1".into()));
    assert_eq!(reason(&in_mode(Mode::All, &["a.io:25"]), &claim("a.io:25")), Reason::PortNotAllowed);
}

#[test]
fn to_restricts_where_the_name_may_resolve() {
    let policy = policy(&["a.io to=10.0.0.5/32", ".a.io", "a.io:443 to=10.0.0.6/32,10.0.0.5/32", "b.io"]);
    let to = |target: &str| policy.decide(&claim(target)).unwrap().addresses().to.clone();
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    assert_eq!(to("a.io:80").as_deref(), Some(&[net("10.0.0.5/32")][..]));
    assert_eq!(to("a.io:443").as_deref(), Some(&[net("10.0.0.5/32"), net("10.0.0.6/32")][..]));
    assert_eq!(to("x.a.io:443"), None);
    assert_eq!(to("b.io"), None);
    let all = in_mode(Mode::All, &["a.io to=10.0.0.5/32"]);
    assert_eq!(all.decide(&claim("a.io")).unwrap().addresses().to, None);
}

#[test]
fn golems_entries_take_every_port_but_the_blocked_ones() {
    let policy = policy(&["golem a.io", "golem 203.0.113.7", "golem /^b\\.io$/"]);
    for target in ["a.io:80", "a.io:22", "a.io:65535", "203.0.113.7:1", "b.io:7"] {
        assert_eq!(reason(&policy, &claim(target)), Reason::None, "{target}");
    }
    assert_eq!(reason(&policy, &claim("a.io:25")), Reason::PortNotAllowed);
    assert_eq!(reason(&policy, &speaking("a.io:443", Protocol::Raw)), Reason::ProtocolNotAllowed);
    assert_eq!(reason(&policy, &speaking("a.io:8443", Protocol::Raw)), Reason::None);
    assert_eq!(reason(&policy, &over(Transport::Udp, "a.io:53")), Reason::PortNotAllowed);
}

#[test]
fn observe_lets_through_what_no_rule_allows_and_says_so() {
    let policy = in_mode(Mode::Observe, &["a.io", "deny https://z.io:8443"]);
    let permit = policy.decide(&claim("b.io:22")).unwrap();
    assert!(permit.observed() && permit.rule().is_none());
    assert_eq!(permit.protocols(), Protocols::ALL);
    assert!(!policy.decide(&claim("a.io")).unwrap().observed());
    assert!(policy.decide(&speaking("a.io", Protocol::Raw)).unwrap().observed());
    let denied = policy.decide(&claim("z.io:8443")).unwrap();
    assert_eq!(denied.protocols(), Protocols::ALL.without(Protocols::only(Protocol::Tls)));
    assert_eq!(reason(&policy, &speaking("z.io:8443", Protocol::Tls)), Reason::DeniedByRule);
}

#[test]
fn mode_all_asks_no_list() {
    let permit = in_mode(Mode::All, &["a.io"]).decide(&speaking("a.io", Protocol::Raw)).unwrap();
    assert!(!permit.observed() && permit.rule().is_none());
    assert_eq!(permit.protocols(), Protocols::ALL);
}

#[test]
fn the_first_rule_by_file_and_line_is_reported() {
    let mut builder = Builder::new(TODAY);
    let (first, second) = (builder.file("a.rules"), builder.file("b.rules"));
    for (file, number, text) in
        [(second, 1, "ipfs.io"), (first, 9, ".ipfs.io"), (first, 3, "/ipfs\\.io/"), (first, 5, "ipfs.*")]
    {
        let rule = line(text);
        builder.rule(file, number, &rule.subject(), &rule.terms).unwrap();
    }
    let policy = Policy::new(Arc::new(builder.build().unwrap()), settings()).unwrap();
    assert_eq!(allowed_by(&policy, &claim("ipfs.io")), Some("a.rules:3".into()));
    assert_eq!(allowed_by(&policy, &claim("ipfs.com")), Some("a.rules:5".into()));
}

#[test]
fn duplicates_are_counted_and_cost_nothing() {
    let lines = vec!["ipfs.io"; 1000];
    let policy = policy(&lines);
    assert_eq!(policy.rules().counts()[0], (RuleKind::Exact, 1000));
    assert_eq!(policy.rules().of_name("ipfs.io").count(), 1);
    assert_eq!(allowed_by(&policy, &claim("ipfs.io")), Some("a.rules:1".into()));
}

#[test]
fn rules_are_counted_by_kind() {
    let rules = rules(&[
        "a.io",
        "*.b.io",
        ".c.io",
        "**.d.io",
        "x-*.io",
        "{a,b,c}.io",
        "/a/",
        "golem /b/",
        "203.0.113.7",
        "deny a.io",
        "deny /z/",
    ]);
    let counts = rules.counts().map(|(kind, count)| format!("{}={count}", kind.as_str()));
    assert_eq!(counts, ["exact=1", "suffix=3", "glob=2", "regex=2", "address=1", "deny=2"]);
}

#[test]
fn the_next_expiry_is_the_earliest_to_come() {
    assert_eq!(rules(&["a.io"]).next_expiry(), None);
    let rules = rules(&["a.io until=2020-01-01", "b.io until=2027-05-05", "c.io until=2027-01-31"]);
    assert_eq!(rules.next_expiry(), Some(date(2027, 1, 31)));
}

#[test]
fn what_cannot_be_compiled_is_refused_with_its_reason() {
    let mut builder = Builder::new(TODAY);
    let file = builder.file("a.rules");
    let terms = line("x").terms;
    for (pattern, problem) in [
        ("a[9-0]*.io", "invalid range"),
        ("a[.io*", "a class in brackets"),
        ("a[]*.io", "`[]` is empty"),
        ("{a.b,c}*.io", "braces hold no dots"),
        ("{a*.io", "braces hold no dots"),
        ("{a*", "not closed"),
        ("a}*", "out of place"),
        ("a/*", "out of place"),
        ("A*", "out of place"),
        ("[!a]*.io", "a class in brackets"),
        ("a*..io", "label is empty"),
        ("a*.", "label is empty"),
        ("a\\*", "out of place"),
    ] {
        let glob = Subject::Glob { pattern, scope: rule::Scope::Exact };
        let error = builder.rule(file, 1, &glob, &terms).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains(pattern), "{error}");
    }
    assert!(builder.rule(file, 1, &Subject::Regex("("), &terms).is_err());
    assert!(builder.rule(file, 1, &Subject::Name { base: "", scope: rule::Scope::Exact }, &terms).is_err());
    let long = "a".repeat(300);
    assert!(builder.rule(file, 1, &Subject::Name { base: &long, scope: rule::Scope::Below }, &terms).is_err());
    assert_eq!(builder.build().unwrap().counts().iter().map(|(_, count)| count).sum::<u64>(), 0);
}

#[test]
fn dns_may_ask_for_names_that_some_rule_allows_on_some_port() {
    let policy = with_guests(Unknown::None);
    let asks = |source: &str, name: &str| {
        policy
            .permit_name(&source.parse::<IpAddr>().unwrap().into(), &HostName::parse(name).unwrap())
            .map(drop)
            .map_err(|refused| refused.refusal.reason)
    };
    assert_eq!(asks("10.0.0.7", "seven.io"), Ok(()));
    assert_eq!(asks("10.0.0.7", "eight.io"), Err(Reason::NotWhitelisted));
    assert_eq!(asks("10.0.0.7", "evil.io"), Err(Reason::DeniedByRule));
    assert_eq!(asks("10.0.0.8", "other.io"), Ok(()));
    assert_eq!(asks("2001:db8:9::1", "seven.io"), Err(Reason::ModeNone));
    assert_eq!(asks("192.0.2.1", "seven.io"), Err(Reason::UnknownGuest));
}

#[test]
fn names_above_allowed_ones_are_known_as_such_to_the_guests_that_may_ask_below() {
    let lines = [
        "a.b.one.io",
        "*.two.io",
        "**.three.io",
        ".four.io",
        "api-*.five.io",
        "x.*.deep.six.io",
        "/bor[0-9]+\\.golem\\.network/",
        "/(a|b)\\.(seven|eight)\\.io/",
        "deny z.denied.io",
        "old.expired.io until=2020-01-01",
        "[2001:db8::1]",
    ];
    let guests = vec![GuestSettings {
        name: "own".into(),
        addresses: vec!["10.0.0.7/32".parse().unwrap()],
        mode: None,
        files: Some(vec!["b.rules".into()]),
        agreed: None,
    }];
    let rules = files(&[("a.rules", &lines), ("b.rules", &["x.own.test", "a.io.example"])]);
    let policy = Policy::new(rules, PolicySettings { guests, ..settings() }).unwrap();
    let asks = |source: &str, name: &str| {
        policy
            .permit_name(&source.parse::<IpAddr>().unwrap().into(), &HostName::parse(name).unwrap())
            .map(drop)
            .map_err(|refused| (refused.refusal.reason, refused.is_parent))
    };
    for name in ["b.one.io", "one.io", "io", "two.io", "three.io", "five.io", "y.deep.six.io", "deep.six.io", "six.io"]
    {
        assert_eq!(asks("10.0.0.1", name), Err((Reason::NotWhitelisted, true)), "{name}");
        assert_eq!(asks("10.0.0.7", name), Err((Reason::NotWhitelisted, false)), "{name}");
    }
    for name in ["golem.network", "network", "seven.io", "eight.io"] {
        assert_eq!(asks("10.0.0.1", name), Err((Reason::NotWhitelisted, true)), "{name}");
    }
    for name in ["c.b.one.io", "xone.io", "denied.io", "expired.io", "o", "xio", "web.five.io", "own.test", "test"] {
        assert_eq!(asks("10.0.0.1", name), Err((Reason::NotWhitelisted, false)), "{name}");
    }
    for name in ["own.test", "test", "io.example", "example"] {
        assert_eq!(asks("10.0.0.7", name), Err((Reason::NotWhitelisted, true)), "{name}");
    }
    assert_eq!(asks("10.0.0.1", "four.io"), Ok(()));
    assert_eq!(asks("10.0.0.1", "a.b.three.io"), Ok(()));
}

#[test]
fn what_addresses_a_name_may_have_for_dns_is_what_some_flow_would_be_granted() {
    let policy = policy(&["a.io", "b.io to=10.0.0.1/32", "c.io", "c.io:8443 to=10.0.0.1/32", "deny 192.0.2.0/24"]);
    let terms = |name: &str| -> Vec<Option<usize>> {
        let permit = policy
            .permit_name(&"10.42.42.7".parse::<IpAddr>().unwrap().into(), &HostName::parse(name).unwrap())
            .unwrap();
        permit.terms().map(|terms| terms.to.map(|to| to.len())).collect()
    };
    assert_eq!(terms("a.io"), [None]);
    assert_eq!(terms("b.io"), [Some(1)]);
    assert_eq!(terms("c.io"), [Some(1), None]);
    let permit =
        policy.permit_name(&"10.42.42.7".parse::<IpAddr>().unwrap().into(), &HostName::parse("a.io").unwrap()).unwrap();
    assert!(permit.terms().all(|terms| terms.denied.contains("192.0.2.1".parse().unwrap())));
}
