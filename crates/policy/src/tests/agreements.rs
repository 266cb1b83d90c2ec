//! Guests that are limited to what they agreed on: an agreement restricts, and never allows.

use super::guests::guest;
use super::*;
use crate::rule::{Ports, Reach};

fn agreed(mode: Mode, destinations: &[(&str, Reach)]) -> Policy {
    let host = |text: &str| Host::parse(text.as_bytes()).unwrap();
    let agreement = Agreement::on(destinations.iter().map(|(name, reach)| (host(name), *reach)));
    let held = GuestSettings { agreed: Some(Arc::new(agreement)), ..guest("held", "10.0.0.7/32", Some(mode), None) };
    let lines = ["listed.io", "tcp://listed.io:22", "deny bad.io", "x.y.deep.io", "203.0.113.7:443", "mail.io:25"];
    Policy::new(files(&[("a.rules", &lines)]), PolicySettings { guests: vec![held], ..settings() }).unwrap()
}

const fn at(port: u16) -> Ports {
    Ports { first: port, last: port }
}

fn said(policy: &Policy, target: &str, spoken: Option<Protocol>) -> Result<Protocols, Reason> {
    let claim = Claim { spoken, ..from("10.0.0.7", target) };
    policy.decide(&claim).map(|permit| permit.protocols()).map_err(|refusal| refusal.reason)
}

#[test]
fn only_what_list_and_agreement_both_have_passes() {
    let https = Reach::Https(at(443));
    let policy = agreed(Mode::Whitelist, &[("listed.io", https), ("other.io", https), ("bad.io", https)]);
    assert_eq!(said(&policy, "listed.io:443", None), Ok(Protocols::only(Protocol::Tls)));
    assert_eq!(said(&policy, "other.io:443", None), Err(Reason::NotWhitelisted), "agreed on, not on the list");
    assert_eq!(said(&policy, "listed.io:80", None), Err(Reason::PortNotAllowed), "on the list, not agreed on");
    assert_eq!(said(&policy, "x.y.deep.io:443", None), Err(Reason::NotWhitelisted));
    assert_eq!(said(&policy, "listed.io:443", Some(Protocol::Http)), Err(Reason::ProtocolNotAllowed));
    let policy = agreed(
        Mode::All,
        &[("listed.io", https), ("other.io", https), ("bad.io", https), ("mail.io", Reach::Tcp(at(25)))],
    );
    assert_eq!(said(&policy, "other.io:443", None), Ok(Protocols::only(Protocol::Tls)));
    assert_eq!(said(&policy, "bad.io:443", None), Err(Reason::DeniedByRule));
    assert_eq!(said(&policy, "mail.io:25", None), Err(Reason::PortNotAllowed), "an agreement unblocks no port");
    assert_eq!(said(&policy, "third.io:443", None), Err(Reason::NotWhitelisted));
    let policy = agreed(Mode::None, &[("listed.io", https)]);
    assert_eq!(said(&policy, "listed.io:443", None), Err(Reason::ModeNone));
}

#[test]
fn schemes_of_one_host_add_up_and_tcp_is_any_bytes() {
    let policy = agreed(
        Mode::All,
        &[("a.io", Reach::Http(at(8080))), ("a.io", Reach::Https(at(8080))), ("a.io", Reach::Tcp(at(22)))],
    );
    let both = Protocols::only(Protocol::Http).union(Protocols::only(Protocol::Tls));
    assert_eq!(said(&policy, "a.io:8080", None), Ok(both));
    assert_eq!(said(&policy, "a.io:22", Some(Protocol::Raw)), Ok(Protocols::ALL));
    assert_eq!(said(&policy, "a.io:8080", Some(Protocol::Raw)), Err(Reason::ProtocolNotAllowed));
    let source = &"10.0.0.7".parse::<IpAddr>().unwrap().into();
    assert!(policy.could_allow_port(source, 22) && policy.could_allow_raw(source, 22));
    assert!(policy.could_allow_port(source, 8080) && !policy.could_allow_raw(source, 8080));
    assert!(!policy.could_allow_port(source, 443), "so that such a connection is reset at once");
}

#[test]
fn addresses_are_agreed_on_as_addresses() {
    let policy =
        agreed(Mode::Whitelist, &[("203.0.113.7", Reach::Https(at(443))), ("203.0.113.8", Reach::Https(at(443)))]);
    assert_eq!(said(&policy, "203.0.113.7:443", None), Ok(Protocols::only(Protocol::Tls)));
    assert_eq!(said(&policy, "203.0.113.8:443", None), Err(Reason::NotWhitelisted));
    assert_eq!(said(&policy, "listed.io:443", None), Err(Reason::NotWhitelisted));
}

#[test]
fn dns_answers_for_the_names_of_an_agreement_alone() {
    let policy = agreed(Mode::All, &[("x.y.deep.io", Reach::Https(at(443)))]);
    let ask =
        |name: &str| policy.permit_name(&"10.0.0.7".parse::<IpAddr>().unwrap().into(), &HostName::parse(name).unwrap());
    assert!(ask("x.y.deep.io").is_ok());
    for (name, parent) in
        [("deep.io", true), ("io", true), ("y.deep.io", true), ("listed.io", false), ("z.x.y.deep.io", false)]
    {
        let refusal = ask(name).unwrap_err();
        assert_eq!((refusal.refusal.reason, refusal.is_parent), (Reason::NotWhitelisted, parent), "{name}");
    }
    let policy = agreed(Mode::Whitelist, &[("other.io", Reach::Https(at(443)))]);
    let refused = |name: &str| {
        policy.permit_name(&"10.0.0.7".parse::<IpAddr>().unwrap().into(), &HostName::parse(name).unwrap()).is_err()
    };
    assert!(refused("other.io") && refused("listed.io"));
}

#[test]
fn what_was_not_agreed_on_is_said_so_before_any_rule_is_blamed() {
    let policy = agreed(Mode::Whitelist, &[("listed.io", Reach::Https(at(443)))]);
    let near = policy.near_miss(&from("10.0.0.7", "x.y.deep.io")).unwrap();
    assert_eq!((near.rule, near.advice.as_str()), (None, "the guest's manifest does not name x.y.deep.io:443"));
    assert_eq!(policy.near_miss(&from("10.0.0.7", "listed.io")), None);
}
