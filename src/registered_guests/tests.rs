use super::*;
use crate::golem::rules::{CertRule, Mode as Grant};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn guest(name: &str, address: &str, manifest: Option<Agreed>) -> Registered {
    let since = "2026-01-01T00:00:00Z".parse().unwrap();
    Registered { name: name.into(), addresses: vec![address.parse().unwrap()], interface: None, since, manifest }
}

fn asks(urls: &[&str], rule: Option<Rule>) -> Agreed {
    Agreed { access: Access::Urls(urls.iter().map(|url| url.parse().unwrap()).collect()), rule }
}

fn golem(max_mode: Grant) -> Settings {
    let golem = crate::config::GolemSettings { data_dir: "d".into(), max_mode };
    Settings { golem: Some(golem), ..Settings::default() }
}

/// Returns a control socket in a folder of this user's, with the folder for guests beside it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control.sock");
    fs::create_dir(folder(&control)).unwrap();
    fs::set_permissions(folder(&control), fs::Permissions::from_mode(0o700)).unwrap();
    (dir, control)
}

#[test]
fn the_mode_is_that_of_the_rule_as_it_is_now() {
    let certificate = "ab".to_owned();
    let mut rules = Outbound { everyone: Grant::None, ..Outbound::default() };
    rules.audited_payload.insert(certificate.clone(), CertRule { mode: Grant::All });
    let signed = asks(&["https://a.test"], Some(Rule::AuditedPayload(certificate.clone())));
    let plain = asks(&["https://a.test"], Some(Rule::Everyone));
    assert_eq!(signed.mode(&golem(Grant::All), Some(&rules)), Mode::All);
    assert_eq!(signed.mode(&golem(Grant::Whitelist), Some(&rules)), Mode::Whitelist, "the ceiling");
    assert_eq!(plain.mode(&golem(Grant::All), Some(&rules)), Mode::None);
    rules.enabled = false;
    assert_eq!(signed.mode(&golem(Grant::All), Some(&rules)), Mode::None);
    rules.enabled = true;
    rules.audited_payload.clear();
    assert_eq!(signed.mode(&golem(Grant::All), Some(&rules)), Mode::None, "the certificate's rule is gone");
    let partner = asks(&["https://a.test"], Some(Rule::Partner(certificate)));
    assert_eq!(partner.mode(&golem(Grant::All), Some(&rules)), Mode::None, "another rule's certificate");
    assert_eq!(signed.mode(&Settings::default(), None), Mode::None, "no provider's rules are asked any more");
    let nothing = Agreed { access: Access::None, rule: None };
    assert_eq!(nothing.mode(&Settings::default(), None), Mode::None);
}

#[test]
fn guests_come_back_as_they_were_kept() {
    let (_dir, control) = place();
    let mut registry = Registry::restore(Some(&control)).unwrap();
    let rules = [Rule::NotRequested, Rule::Everyone, Rule::AuditedPayload("aa".into()), Rule::Partner("bb".into())];
    for (n, rule) in rules.into_iter().map(Some).chain([None]).enumerate() {
        let manifest = Some(asks(&["https://a.test", "tcp://b.test:22"], rule));
        registry.add(guest(&format!("g{n}"), &format!("10.0.0.{n}/32"), manifest), &Settings::default()).unwrap();
    }
    let open = Agreed { access: Access::Unrestricted, rule: None };
    registry.add(guest("open", "fd00::/64", Some(open)), &Settings::default()).unwrap();
    registry.add(guest("plain", "10.1.0.0/16", None), &Settings::default()).unwrap();
    let again = Registry::restore(Some(&control)).unwrap();
    assert!(again.iter().eq(registry.iter()));
    registry.remove("g0").unwrap();
    assert!(registry.remove("g0").is_err());
    assert!(Registry::restore(Some(&control)).unwrap().iter().eq(registry.iter()));
}

#[test]
fn what_cannot_be_kept_is_not_registered() {
    let mut registry = Registry::empty(None);
    assert!(registry.add(guest("a", "10.0.0.1/32", None), &Settings::default()).is_err());
    assert_eq!(registry.iter().count(), 0);
    let (_dir, control) = place();
    fs::remove_dir(folder(&control)).unwrap();
    let mut registry = Registry::empty(Some(&control));
    let why = registry.add(guest("a", "10.0.0.1/32", None), &Settings::default()).unwrap_err();
    assert!(why.contains("control.sock.guests: the guests cannot be kept"), "{why}");
    assert_eq!(registry.iter().count(), 0);
}

#[test]
fn a_file_that_others_could_have_written_is_not_read() {
    let (dir, control) = place();
    let mut registry = Registry::empty(Some(&control));
    registry.add(guest("a", "10.0.0.1/32", None), &Settings::default()).unwrap();
    let file = folder(&control).join("guests.json");
    let refuses = || matches!(Registry::restore(Some(&control)), Err(KeepError::Foreign(_)));
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (path, open, closed) in
        [(file.as_path(), 0o602, 0o600), (&folder(&control), 0o720, 0o700), (dir.path(), 0o702, 0o700)]
    {
        mode(path, open);
        assert!(refuses(), "{}", path.display());
        mode(path, closed);
        assert!(!refuses());
    }
    fs::write(&file, "[{\"name\":").unwrap();
    mode(&file, 0o600);
    assert!(matches!(Registry::restore(Some(&control)), Err(KeepError::Form { .. })));
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    assert!(matches!(Registry::restore(Some(&control)), Err(KeepError::Io { .. })));
}

#[test]
#[ignore = "requires root"]
fn a_file_of_another_user_is_not_read() {
    crate::rights::require();
    let (_dir, control) = place();
    let mut registry = Registry::empty(Some(&control));
    registry.add(guest("a", "10.0.0.1/32", None), &Settings::default()).unwrap();
    let file = folder(&control).join("guests.json");
    assert!(Registry::restore(Some(&control)).is_ok());
    std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
    assert!(matches!(Registry::restore(Some(&control)), Err(KeepError::Foreign(_))));
}

#[test]
fn there_is_a_bound_on_their_number() {
    let (_dir, control) = place();
    let mut registry = Registry::empty(Some(&control));
    registry.guests = (0..MAX_GUESTS)
        .map(|n| guest(&format!("g{n}"), &format!("10.0.{}.{}/32", n / 256, n % 256), None))
        .map(Held::new)
        .collect();
    let why = registry.add(guest("one-more", "10.9.0.0/32", None), &Settings::default()).unwrap_err();
    assert!(why.contains("4096 guests are registered"), "{why}");
}

#[test]
fn of_urls_scheme_host_and_port_are_kept_each_once() {
    let urls = [
        "https://a.test/x?y#z",
        "https://a.test/other",
        "https://me:secret@a.test:443",
        "tcp://b.test:22/é",
        "mailto:x",
    ];
    let Agreed { access: Access::Urls(urls), .. } = Agreed::on(asks(&urls, None).access, None) else { panic!() };
    let urls: Vec<&str> = urls.iter().map(|url| url.as_str()).collect();
    assert_eq!(urls, ["https://a.test/", "tcp://b.test:22", "mailto:x"]);
}

#[test]
fn what_was_never_registered_is_not_read_back() {
    let (_dir, control) = place();
    let file = folder(&control).join("guests.json");
    let kept = |guests: &[Registered]| {
        fs::write(&file, serde_json::to_string(guests).unwrap()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        Registry::restore(Some(&control)).map(|registry| registry.iter().count())
    };
    let sound = guest("a", "10.0.0.1/32", None);
    assert!(matches!(kept(std::slice::from_ref(&sound)), Ok(1)));
    for wrong in [
        Registered { interface: Some("tap7\" : accept\n}\ninclude \"/etc/shadow\"".into()), ..sound.clone() },
        Registered { name: "é".repeat(60), ..sound.clone() },
        Registered { name: "other".into(), ..sound.clone() },
        Registered { addresses: Vec::new(), ..sound.clone() },
        Registered { addresses: vec!["224.0.0.1/32".parse().unwrap()], ..sound.clone() },
    ] {
        assert!(matches!(kept(&[wrong]), Err(KeepError::Unsound { .. })));
    }
    for other in [guest("a", "10.0.0.2/32", None), guest("b", "10.0.0.0/24", None)] {
        assert!(matches!(kept(&[sound.clone(), other]), Err(KeepError::Unsound { .. })));
    }
}

#[test]
fn the_file_has_a_version_and_an_earlier_or_later_one_is_known_as_such() {
    let (_dir, control) = place();
    let mut registry = Registry::empty(Some(&control));
    registry.add(guest("a", "10.0.0.1/32", None), &Settings::default()).unwrap();
    let file = folder(&control).join("guests.json");
    let written = fs::read_to_string(&file).unwrap();
    let list = written.strip_prefix("{\"version\":1,\"guests\":").unwrap().strip_suffix('}').unwrap();
    let read = |text: &str| {
        fs::write(&file, text).unwrap();
        Registry::restore(Some(&control)).map(|registry| registry.iter().count())
    };
    // Before version 1 it was the list alone.
    assert!(matches!((read(list), read("[]"), read(&written)), (Ok(1), Ok(0), Ok(1))));
    let why = read("{\"version\": 2, \"guests\": {\"of\": \"another form\"}}").unwrap_err().to_string();
    assert!(why.contains("guests.json: a later outgate wrote it (version 2"), "{why}");
    assert!(why.contains("or remove the file and register its guests again"), "{why}");
    for damaged in ["{\"version\": 1}", "{\"guests\": []}", "{\"version\": \"1\", \"guests\": []}", ""] {
        assert!(matches!(read(damaged), Err(KeepError::Form { .. })), "{damaged}");
    }
}

#[test]
fn there_is_a_bound_on_the_urls_of_all_manifests() {
    let (_dir, control) = place();
    let mut registry = Registry::empty(Some(&control));
    let many = |n: usize| {
        let urls = (0..n).map(|port| format!("tcp://a.test:{}", port + 1).parse().unwrap()).collect();
        Some(Agreed { access: Access::Urls(urls), rule: None })
    };
    registry.take(guest("a", "10.0.0.1/32", many(MAX_URLS - 1))).unwrap();
    assert!(registry.add(guest("b", "10.0.0.2/32", many(2)), &Settings::default()).unwrap_err().contains("65536 URLs"));
    registry.add(guest("b", "10.0.0.2/32", many(1)), &Settings::default()).unwrap();
}
