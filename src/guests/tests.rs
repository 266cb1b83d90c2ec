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

/// A control socket in a folder of this user's, with the folder for guests beside it.
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
    assert!(why.contains("control.guests: the guests cannot be kept"), "{why}");
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
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
        assert!(refuses(), "somebody else's");
        fs::remove_file(&file).unwrap();
    }
    fs::write(&file, "[{\"name\":").unwrap();
    mode(&file, 0o600);
    assert!(matches!(Registry::restore(Some(&control)), Err(KeepError::Form { .. })));
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    assert!(matches!(Registry::restore(Some(&control)), Err(KeepError::Io { .. })));
}

#[test]
fn there_is_a_bound_on_their_number() {
    let (_dir, control) = place();
    let mut registry = Registry::empty(Some(&control));
    registry.guests =
        (0..MAX_GUESTS).map(|n| guest(&format!("g{n}"), &format!("10.0.{}.{}/32", n / 256, n % 256), None)).collect();
    let why = registry.add(guest("one-more", "10.9.0.0/32", None), &Settings::default()).unwrap_err();
    assert!(why.contains("4096 guests are registered"), "{why}");
}
