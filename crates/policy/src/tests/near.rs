//! What the operator learns about a refused flow.

use super::*;

#[track_caller]
fn advice(lines: &[&str], claim: &Claim) -> String {
    let policy = policy(lines);
    assert!(policy.decide(claim).is_err());
    policy.near_miss(claim).map_or_else(String::new, |near| format!("{}: {}", near.rule.unwrap(), near.advice))
}

#[test]
fn depth_is_explained() {
    let deep = claim("a.b.ipfs.io");
    assert_eq!(advice(&["*.ipfs.io"], &deep), "a.rules:1: `*.ipfs.io` allows one label only; `.ipfs.io` would match");
    assert_eq!(advice(&["ipfs.io"], &deep), "a.rules:1: `ipfs.io` allows that host only; `.ipfs.io` would match");
    assert_eq!(
        advice(&["io", ".io.test", "ipfs.io", "b.ipfs.io"], &deep),
        "a.rules:4: `b.ipfs.io` allows that host only; `.b.ipfs.io` would match"
    );
    assert_eq!(
        advice(&["*-1.ipfs.io"], &claim("a.b-1.ipfs.io")),
        "a.rules:1: `*-1.ipfs.io` allows no further labels in front; `.*-1.ipfs.io` would match"
    );
}

#[test]
fn the_apex_is_explained() {
    for rule in ["*.ipfs.io", "**.ipfs.io"] {
        assert_eq!(
            advice(&[rule], &claim("ipfs.io")),
            format!("a.rules:1: `{rule}` does not allow `ipfs.io` itself; `.ipfs.io` would match")
        );
    }
    assert_eq!(
        advice(&["www.ipfs.io"], &claim("ipfs.io")),
        "a.rules:1: `www.ipfs.io` allows that host only; `ipfs.io` would match"
    );
    assert_eq!(
        advice(&["ipfs.io"], &claim("www.ipfs.io:8443")),
        "a.rules:1: `ipfs.io` allows that host only; `.ipfs.io:8443` would match"
    );
}

#[test]
fn ports_and_protocols_are_explained() {
    assert_eq!(
        advice(&["ipfs.io"], &claim("ipfs.io:8443")),
        "a.rules:1: `ipfs.io` allows http on port 80 and https on port 443; `ipfs.io:8443` would match"
    );
    assert_eq!(
        advice(&["https://ipfs.io"], &speaking("ipfs.io:443", Protocol::Raw)),
        "a.rules:1: `ipfs.io` allows https on port 443; `tcp://ipfs.io:443` would match"
    );
    assert_eq!(
        advice(&["https://ipfs.io"], &claim("ipfs.io:80")),
        "a.rules:1: `ipfs.io` allows https on port 443; `http://ipfs.io` would match"
    );
    assert_eq!(
        advice(&["http://ipfs.io"], &claim("ipfs.io:443")),
        "a.rules:1: `ipfs.io` allows http on port 80; `https://ipfs.io` would match"
    );
    assert_eq!(
        advice(&["http://203.0.113.7:8080"], &speaking("203.0.113.7:443", Protocol::Tls)),
        "a.rules:1: `203.0.113.7` allows http on port 8080; `https://203.0.113.7` would match"
    );
    assert_eq!(
        advice(&["ipfs.io:20-30"], &claim("ipfs.io:25")),
        "a.rules:1: port 25 is blocked for rules that do not name it; `ipfs.io:25` would match"
    );
    assert_eq!(
        advice(&["203.0.113.0/24"], &over(Transport::Udp, "203.0.113.7:53")),
        "a.rules:1: `203.0.113.0/24` allows http on port 80 and https on port 443; `udp://203.0.113.7:53` would match"
    );
    assert_eq!(
        advice(&["ipfs.io"], &over(Transport::Quic, "ipfs.io:443")),
        "a.rules:1: `ipfs.io` allows http on port 80 and https on port 443; `quic://ipfs.io` would match"
    );
}

#[test]
fn days_ech_and_deny_are_explained() {
    assert_eq!(
        advice(&["ipfs.io until=2026-01-31"], &claim("ipfs.io")),
        "a.rules:1: `ipfs.io` was valid until 2026-01-31"
    );
    assert_eq!(
        advice(&[".ipfs.io"], &Claim { ech: true, ..speaking("a.ipfs.io", Protocol::Tls) }),
        "a.rules:1: `.ipfs.io` allows it without encrypted ClientHello; `a.ipfs.io ech=allow` would match"
    );
    assert_eq!(
        advice(&["a.ipfs.io", "deny .ipfs.io"], &claim("a.ipfs.io")),
        "a.rules:2: `deny .ipfs.io` refuses it, even if another rule allows it"
    );
}

#[test]
fn another_guests_rule_is_explained() {
    let policy = with_guests(Unknown::None);
    let near = policy.near_miss(&from("10.0.0.9", "seven.io")).unwrap();
    assert_eq!(near.rule.unwrap().to_string(), "vm-7.rules:1");
    assert_eq!(near.advice, "`seven.io` is in a file that does not apply to this guest");
}

#[test]
fn a_typing_error_is_explained() {
    for typed in ["ipsf.io", "ipf.io", "ipfss.io", "ipfs.ip", "1pfs.io"] {
        assert_eq!(advice(&["ipfs.io"], &claim(typed)), "a.rules:1: `ipfs.io` is one letter away", "{typed}");
    }
    assert_eq!(advice(&[".ipfs.io"], &claim("a.b.ipsf.io")), "a.rules:1: `.ipfs.io` is one letter away");
    assert_eq!(advice(&["ipfs.io"], &claim("isf.io")), "");
}

#[test]
fn nothing_is_near_what_is_allowed_or_far_away() {
    let policy = policy(&["ipfs.io", "deny x.io", "until.io until=2020-01-01"]);
    assert_eq!(policy.near_miss(&claim("ipfs.io")), None);
    assert_eq!(policy.near_miss(&claim("other.test")), None);
    assert_eq!(policy.near_miss(&claim("a.x.io")), None);
    assert_eq!(policy.near_miss(&claim("a.until.io")), None);
}

#[test]
fn what_is_only_observed_is_explained_too() {
    let policy = in_mode(Mode::Observe, &["*.ipfs.io"]);
    assert!(policy.near_miss(&claim("a.b.ipfs.io")).is_some());
    assert_eq!(policy.near_miss(&claim("b.ipfs.io")), None);
    assert_eq!(in_mode(Mode::All, &["*.ipfs.io"]).near_miss(&claim("a.b.ipfs.io")), None);
}
