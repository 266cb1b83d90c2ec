//! What counts as used, and how it stays known over versions of the list.

use super::*;

/// The lines of all files that were used.
fn used(rules: &Rules) -> Vec<String> {
    rules.used_lines().map(|(file, line)| format!("{file}:{line}")).collect()
}

#[test]
fn a_rule_is_used_when_it_allows_a_flow_and_not_when_it_merely_comes_near() {
    let policy = policy(&["a.test", "b.test until=2026-11-22", "c.test:8443", "d.test"]);
    for target in ["b.test", "c.test", "x.test"] {
        assert!(policy.decide(&claim(target)).is_err());
    }
    assert_eq!(used(policy.rules()), Vec::<String>::new());
    for _ in 0..3 {
        assert!(policy.decide(&claim("a.test")).is_ok());
    }
    assert_eq!((used(policy.rules()), policy.rules().used()), (vec!["a.rules:1".to_owned()], 1));
}

#[test]
fn all_rules_that_allow_a_flow_are_used_whatever_their_form() {
    let policy = policy(&[
        "www.a.test",
        ".a.test",
        "*.a.test",
        "w{w,v}w.a.test",
        "w*w.a.test",
        r"/w+\.a\.test/",
        "www.a.test:443",
        "b.test",
        "**.test",
        "203.0.113.0/24",
    ]);
    assert!(policy.decide(&claim("www.a.test")).is_ok());
    let lines: Vec<u32> = policy.rules().used_lines().map(|(_, line)| line).collect();
    // The first name of line 4 is that of line 1, and of identical rules in one file only the first is kept.
    assert_eq!(lines, [1, 2, 3, 5, 6, 7, 9]);
    assert!(policy.decide(&claim("wvw.a.test")).is_ok() && policy.decide(&claim("203.0.113.9")).is_ok());
    let lines: Vec<u32> = policy.rules().used_lines().map(|(_, line)| line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 9, 10]);
}

#[test]
fn a_deny_is_used_when_it_refuses_and_what_it_overrules_is_not() {
    let policy = policy(&["deny .a.test", "www.a.test", "deny www.a.test", "deny b.test:25", "b.test"]);
    assert_eq!(reason(&policy, &claim("www.a.test")), Reason::DeniedByRule);
    assert_eq!(used(policy.rules()), ["a.rules:1", "a.rules:3"]);
    assert!(policy.decide(&claim("b.test")).is_ok());
    assert_eq!(used(policy.rules()), ["a.rules:1", "a.rules:3", "a.rules:5"]);
}

#[test]
fn a_deny_that_keeps_a_name_from_dns_is_used() {
    let policy = policy(&["deny a.test", "b.test"]);
    let source = &"10.42.42.7".parse::<IpAddr>().unwrap().into();
    let ask = |name: &str| policy.permit_name(source, &HostName::parse(name.as_bytes()).unwrap());
    assert!(ask("a.test").is_err() && ask("b.test").is_ok());
    // A name that was only looked up is not used yet.
    assert_eq!(used(policy.rules()), ["a.rules:1"]);
}

#[test]
fn in_modes_that_let_through_more_a_rule_that_would_allow_is_used_all_the_same() {
    for mode in [Mode::Observe, Mode::All] {
        let policy = in_mode(mode, &["a.test", "b.test"]);
        assert!(policy.decide(&claim("a.test")).is_ok() && policy.decide(&claim("x.test")).is_ok());
        assert_eq!(used(policy.rules()), ["a.rules:1"], "{mode:?}");
    }
}

#[test]
fn the_same_rule_in_another_guests_file_is_not_used() {
    let list = files(&[("vm-7.rules", &["a.test"]), ("vm-8.rules", &["a.test"])]);
    let guests = ["7", "8"].map(|last| {
        guest(&format!("vm-{last}"), &format!("10.0.0.{last}/32"), None, Some(&[&format!("vm-{last}.rules")]))
    });
    let policy = Policy::new(list, PolicySettings { guests: guests.into(), ..settings() }).unwrap();
    assert!(policy.decide(&from("10.0.0.8", "a.test")).is_ok());
    assert_eq!(used(policy.rules()), ["vm-8.rules:1"]);
}

#[test]
fn what_was_used_stays_used_in_the_next_version_wherever_the_rule_stands_in_its_file() {
    let forms = [
        "a.test",
        "*.a.test",
        "**.b.test",
        ".c.test:8443",
        "d-*.test",
        ".e-*.test",
        r"/f+\.test/",
        "203.0.113.7",
        "[2001:db8::]/32",
        "deny g.test",
        "tcp://h.test:22 to=10.0.0.5/32",
        "i.test until=2027-01-01 ech=allow",
    ];
    let before = rules(&forms);
    let claims = ["a.test", "x.a.test", "x.y.b.test", "c.test:8443", "d-1.test", "x.e-1.test", "ff.test"]
        .into_iter()
        .chain(["203.0.113.7", "[2001:db8::1]", "g.test", "h.test:22", "i.test"]);
    let policy = Policy::new(Arc::clone(&before), settings()).unwrap();
    claims.for_each(|target| drop(policy.decide(&claim(target))));
    assert_eq!(before.used(), forms.len() as u64);

    let moved: Vec<&str> = ["new.test", "*.new.test"].into_iter().chain(forms.into_iter().rev()).collect();
    let after = rules(&moved);
    after.note_used(&before.used_marks());
    assert_eq!(after.used_lines().map(|(_, line)| line).collect::<Vec<_>>(), (3..=14).collect::<Vec<_>>());
}

#[test]
fn a_rule_that_says_something_else_or_stands_in_another_file_is_a_new_one() {
    let before = policy(&["a.test"]);
    assert!(before.decide(&claim("a.test")).is_ok());
    let marks = before.rules().used_marks();
    assert_eq!(marks.len(), 1);
    for changed in ["*.a.test", "a.test:443", "a.test until=2027-01-01", "a.test ech=allow", "a.test to=10.0.0.5/32"] {
        let after = rules(&[changed]);
        after.note_used(&marks);
        assert_eq!(after.used(), 0, "{changed}");
    }
    let elsewhere = files(&[("b.rules", &["a.test"])]);
    elsewhere.note_used(&marks);
    assert_eq!(elsewhere.used(), 0);
    let same = rules(&["a.test"]);
    same.note_used(&marks);
    assert_eq!(same.used(), 1);
}
