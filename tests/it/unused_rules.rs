//! Which rules nobody uses: what `outgate whitelist lint` says after guests have been out, over
//! reloads and restarts, and when the daemon is not there to be asked.

use crate::world::outgate::Outgate;
use crate::world::{World, eventually};
use serde_json::Value;
use std::fs;

/// What lint printed: the lines with a rule that was never used, and standard error.
fn lint(outgate: &Outgate) -> (Vec<u64>, String) {
    let config = outgate.config();
    let arguments = ["whitelist", "lint", "--json", "--config", config.to_str().unwrap()];
    let output = outgate.command(&arguments).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let unused = |finding: &&Value| finding["message"].as_str().unwrap().contains("was never used");
    let lines = findings.as_array().unwrap().iter().filter(unused).map(|finding| finding["line"].as_u64().unwrap());
    (lines.collect(), errors)
}

#[test]
#[ignore = "requires root and network namespaces"]
fn lint_names_the_rules_that_no_guest_has_used() {
    let world = World::new();
    let outgate = world.outgate("good.test\nother.test\ndeny evil.test\ndeny worse.test\n*.good.test\n");
    assert_eq!(lint(&outgate).0, [1, 2, 3, 4, 5]);
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.guest.get("evil.test", "/").status, 403);
    assert_eq!(world.guest.get("nowhere.test", "/").status, 403);
    assert!(world.guest.https_get("www.good.test:443", "www.good.test", "/").is_ok());
    let (lines, errors) = lint(&outgate);
    assert_eq!(lines, [2, 4]);
    assert!(errors.starts_with("outgate: uses have been counted only since 20"), "{errors}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn used_rules_stay_known_across_reloads_and_restarts() {
    let world = World::new();
    let mut outgate = world.outgate("good.test\nother.test\n");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    outgate.replace_rules("# moved\ncdn-ok.test\nother.test\ngood.test\n");
    eventually("the new list is in force", || world.guest.get("cdn-ok.test", "/").status == 200);
    eventually("lint speaks of the new list", || lint(&outgate).0 == [3]);
    let (_, since) = lint(&outgate);

    assert!(outgate.stop().success());
    let (lines, errors) = lint(&outgate);
    assert!(lines.is_empty() && errors.contains("never-used rules were not checked"), "{errors}");
    outgate.launch();
    outgate.await_ready();
    assert_eq!(lint(&outgate), (vec![3], since));
    // A rule that now says something else is a new one.
    outgate.replace_rules("cdn-ok.test\nother.test\ngood.test:80\n");
    eventually("the changed rule is new", || lint(&outgate).0 == [2, 3]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_damaged_record_of_used_rules_restarts_the_count_and_hinders_nothing() {
    let world = World::new();
    let mut outgate = world.outgate("good.test\nother.test\n");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert!(outgate.stop().success());
    let kept = outgate.path("state/whitelist.used");
    let mut bytes = fs::read(&kept).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&kept, bytes).unwrap();
    outgate.launch();
    outgate.await_ready();
    assert!(outgate.errors().contains("whitelist.used"), "{}", outgate.errors());
    assert_eq!(lint(&outgate).0, [1, 2]);
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(lint(&outgate).0, [2]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn lint_reports_no_unused_rules_if_the_daemon_has_another_list() {
    let world = World::new();
    let outgate = world.outgate("good.test\nother.test\n");
    let other = world.setup("good.test\nother.test\n# another\n").write();
    let config = other.config();
    let socket = outgate.path("control.sock");
    let arguments = ["whitelist", "lint", "--socket", socket.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let output = other.command(&arguments).output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0 warnings\n");
    assert!(String::from_utf8(output.stderr).unwrap().contains("another list in force"));
}
