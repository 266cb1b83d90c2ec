//! Which guest a source is: files, modes and addresses of guests.

use super::*;

pub(super) fn guest(name: &str, address: &str, mode: Option<Mode>, files: Option<&[&str]>) -> GuestSettings {
    GuestSettings {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        mode,
        files: files.map(|files| files.iter().map(|file| (*file).to_owned()).collect()),
        agreed: None,
    }
}

fn at(address: &str) -> Source {
    address.parse::<IpAddr>().unwrap().into()
}

fn tenants() -> Arc<Rules> {
    files(&[
        ("shared.rules", &["shared.io", "deny evil.io"]),
        ("vm-7.rules", &["seven.io", "evil.io", "deny bad.shared.io"]),
        ("vm-8.rules", &["eight.io", "deny seven.io:22"]),
    ])
}

pub(super) fn with_guests(unknown: Unknown) -> Policy {
    let guests = vec![
        guest("vm-7", "10.0.0.7/32", None, Some(&["vm-7.rules"])),
        guest("vm-8", "10.0.0.8/32", Some(Mode::Observe), Some(&["vm-8.rules", "shared.rules"])),
        guest("vm-9", "10.0.0.9/32", None, None),
        guest("off", "2001:db8:9::/64", Some(Mode::None), None),
    ];
    Policy::new(tenants(), PolicySettings { guests, unknown, ..settings() }).unwrap()
}

#[test]
fn a_guest_is_held_to_its_own_files() {
    let policy = with_guests(Unknown::None);
    assert_eq!(allowed_by(&policy, &from("10.0.0.7", "seven.io")), Some("vm-7.rules:1".into()));
    assert_eq!(reason(&policy, &from("10.0.0.7", "shared.io")), Reason::NotWhitelisted);
    assert_eq!(reason(&policy, &from("10.0.0.9", "seven.io")), Reason::NotWhitelisted);
    // vm-8 names shared.rules, so that file no longer applies to guests that name no files.
    assert_eq!(reason(&policy, &from("10.0.0.9", "shared.io")), Reason::NotWhitelisted);
    assert_eq!(allowed_by(&policy, &from("10.0.0.8", "shared.io")), Some("shared.rules:1".into()));
}

#[test]
fn deny_holds_for_every_guest_whatever_its_files() {
    let policy = with_guests(Unknown::Shared);
    assert_eq!(reason(&policy, &from("10.0.0.7", "evil.io")), Reason::DeniedByRule);
    assert_eq!(reason(&policy, &from("10.0.0.8", "bad.shared.io")), Reason::DeniedByRule);
    assert_eq!(reason(&policy, &from("10.0.0.7", "seven.io:22")), Reason::DeniedByRule);
    assert_eq!(reason(&policy, &from("192.0.2.1", "evil.io")), Reason::DeniedByRule);
}

#[test]
fn a_guests_mode_beats_the_daemons() {
    let policy = with_guests(Unknown::None);
    assert!(policy.decide(&from("10.0.0.8", "other.io")).unwrap().observed());
    assert_eq!(reason(&policy, &from("2001:db8:9::1", "shared.io")), Reason::ModeNone);
}

#[test]
fn who_is_unknown_is_refused_or_shares() {
    let closed = with_guests(Unknown::None);
    assert_eq!(refused_by(&closed, &from("192.0.2.1", "eight.io")), (Reason::UnknownGuest, None));
    assert_eq!(closed.guest(&at("192.0.2.1")), Identity { name: None, index: None, known: false });
    let guests = vec![guest("vm-7", "10.0.0.7/32", None, Some(&["vm-7.rules"]))];
    let open = Policy::new(tenants(), PolicySettings { guests, ..settings() }).unwrap();
    assert_eq!(reason(&open, &from("192.0.2.1", "shared.io")), Reason::None);
    assert_eq!(reason(&open, &from("192.0.2.1", "seven.io")), Reason::NotWhitelisted);
    assert_eq!(open.guest(&at("192.0.2.1")), Identity { name: None, index: None, known: true });
}

#[test]
fn a_guest_is_the_same_over_ipv4_and_mapped_ipv6() {
    let policy = with_guests(Unknown::None);
    let seven = Identity { name: Some("vm-7"), index: Some(0), known: true };
    assert_eq!(policy.guest(&at("10.0.0.7")), seven);
    assert_eq!(policy.guest(&at("::ffff:10.0.0.7")), seven);
    assert_eq!(reason(&policy, &from("::ffff:10.0.0.7", "seven.io")), Reason::None);
    assert_eq!(policy.guest(&at("2001:db8:9::ffff")).index, Some(3));
}

#[test]
fn the_narrowest_network_says_who_a_guest_is() {
    let guests = vec![guest("net", "10.0.0.0/8", None, None), guest("one", "10.0.0.7/32", None, None)];
    let policy = Policy::new(tenants(), PolicySettings { guests, ..settings() }).unwrap();
    assert_eq!(policy.guest(&at("10.0.0.7")).name, Some("one"));
    assert_eq!(policy.guest(&at("10.0.0.8")).name, Some("net"));
}

#[test]
fn guests_that_cannot_be_told_apart_are_an_error() {
    let make = |guests| Policy::new(tenants(), PolicySettings { guests, ..settings() }).unwrap_err().to_string();
    assert_eq!(
        make(vec![guest("a", "10.0.0.7/32", None, Some(&["nope.rules"]))]),
        "guest `a`: the whitelist dir has no file `nope.rules`"
    );
    assert_eq!(
        make(vec![guest("a", "10.0.0.7/32", None, None), guest("a", "10.0.0.8/32", None, None)]),
        "two guests are named `a`"
    );
    assert_eq!(
        make(vec![guest("a", "10.0.0.7/32", None, None), guest("b", "::ffff:10.0.0.7/128", None, None)]),
        "the guests `a` and `b` share the address ::ffff:10.0.0.7/128"
    );
}

#[test]
fn the_name_in_a_certificate_beats_the_address() {
    let policy = with_guests(Unknown::None);
    let certified = |address: &str, name: &str| Source::certified(address.parse().unwrap(), name);
    let asks = |source: Source, target: &str| Claim { source, ..claim(target) };
    let seven = certified("10.0.0.8", "vm-7");
    assert_eq!(policy.guest(&seven), Identity { name: Some("vm-7"), index: Some(0), known: true });
    assert_eq!(allowed_by(&policy, &asks(seven.clone(), "seven.io")), Some("vm-7.rules:1".into()));
    assert_eq!(reason(&policy, &asks(seven, "eight.io")), Reason::NotWhitelisted);
    let stranger = certified("10.0.0.7", "vm-77");
    assert_eq!(policy.guest(&stranger), Identity { name: Some("vm-77"), index: None, known: false });
    assert_eq!(reason(&policy, &asks(stranger, "seven.io")), Reason::UnknownGuest, "and not vm-7");
    let guests = vec![guest("vm-7", "10.0.0.7/32", None, Some(&["vm-7.rules"]))];
    let open = Policy::new(tenants(), PolicySettings { guests, ..settings() }).unwrap();
    let stranger = certified("10.0.0.7", "vm-77");
    assert_eq!(reason(&open, &asks(stranger.clone(), "shared.io")), Reason::None, "as anybody undeclared");
    assert_eq!(reason(&open, &asks(stranger, "seven.io")), Reason::NotWhitelisted);
}

#[test]
fn a_source_that_another_policy_identified_is_searched_for_again() {
    let named = |name: &str| {
        let guests = vec![guest("first", "10.0.0.1/32", None, None), guest(name, "10.0.0.7/32", None, None)];
        Policy::new(tenants(), PolicySettings { guests, unknown: Unknown::None, ..settings() }).unwrap()
    };
    let (old, new, gone) = (named("old"), named("new"), with_guests(Unknown::None));
    let source = old.source_at("10.0.0.7".parse().unwrap(), None);
    assert!(old.has_identified(&source) && !new.has_identified(&source));
    assert!(!new.has_identified(&at("10.0.0.7")), "nobody has");
    assert_eq!(old.guest(&source).name, Some("old"));
    assert_eq!(new.guest(&source).name, Some("new"), "it has the address now");
    let nobody = old.source_at("192.0.2.1".parse().unwrap(), None);
    assert_eq!(old.guest(&nobody), Identity { name: None, index: None, known: false });
    let certified = gone.source_at("10.0.0.8".parse().unwrap(), Some("vm-7".into()));
    assert_eq!(gone.guest(&certified).name, Some("vm-7"));
    assert_eq!(old.guest(&certified), Identity { name: Some("vm-7"), index: None, known: false });
}
