//! `outgate golem probe`: what it says of URLs, beside what the origins saw of it.

use super::{ExecHost, FIREWALL, LISTEN, Ran};
use crate::world::ODD;
use crate::world::guarded_network::GuardedNetwork;
use crate::world::pki;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use tempfile::NamedTempFile;

const RULES: &str = "good.test\ngone.test\ntcp://11.0.0.30:8443\nhttp://11.0.0.30:81\n";

struct Prober {
    host: ExecHost,
    /// Every user may read it, as with the system's certificates.
    roots: NamedTempFile,
}

impl Prober {
    fn new() -> Prober {
        let host = ExecHost::with(|network: &GuardedNetwork| network.bare(RULES).listen(LISTEN).tables(FIREWALL));
        let roots = NamedTempFile::new().unwrap();
        std::fs::write(roots.path(), pki::pems("good.test").authority).unwrap();
        std::fs::set_permissions(roots.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        Prober { host, roots }
    }

    fn probe(&self, arguments: &[&str]) -> Ran {
        let config = self.host.outgate.config();
        let mut command = self.host.outgate.command(&["golem", "probe", "--config", config.to_str().unwrap()]);
        command.args(arguments).env("SSL_CERT_FILE", self.roots.path()).env_remove("SSL_CERT_DIR");
        self.host.run(command)
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn each_url_is_reported_with_the_stage_it_reached_and_the_reason() {
    let prober = Prober::new();
    prober.host.network.internet.sink((ODD, 8443));
    let expected = [
        ("https://good.test/hi?x", "passes", "http", ""),
        ("http://good.test", "passes", "http", ""),
        ("tcp://11.0.0.30:8443", "passes", "connect", ""),
        ("https://evil.test/", "refused", "dns", "not_whitelisted"),
        ("http://11.0.0.66/", "refused", "http", "not_whitelisted"),
        ("https://11.0.0.66/", "refused", "tls", "not_whitelisted"),
        ("tcp://11.0.0.30:8444", "refused", "connect", "port_not_allowed"),
        ("https://gone.test/", "failed", "dns", ""),
        ("http://11.0.0.30:81/", "failed", "http", "dial_failed"),
    ];
    let urls = expected.map(|(url, ..)| url);
    let ran = prober.probe(&[&["--json"][..], &urls].concat());
    let answers: Vec<Value> = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    for (answer, (url, outcome, stage, reason)) in answers.iter().zip(expected) {
        let text = |key: &str| answer[key].as_str().unwrap_or_default();
        let seen = (text("url"), text("outcome"), text("stage"), text("reason"));
        assert_eq!(seen, (url, outcome, stage, reason), "{answer}");
        assert!(answer["milliseconds"].as_u64().unwrap() < 10_000, "{answer}");
    }
    assert_eq!((answers.len(), ran.code), (expected.len(), Some(1)), "{}", ran.err);
    assert_eq!((&answers[0]["status"], prober.host.asked_of_good()), (&Value::from(200), 2));
    assert!(answers[3]["advice"].as_str().is_some_and(|advice| advice.contains("evil.test")), "{}", answers[3]);
    prober.host.network.assert_no_leaks();
    assert_eq!(prober.host.guests(), Vec::<Value>::new());
    assert!(std::fs::read_dir("/run/netns").unwrap().flatten().all(|entry| {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("outgate-probe-")).map(str::to_owned);
        pid.is_none_or(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists())
    }));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn probe_exits_0_if_all_pass_and_applies_the_manifest() {
    let prober = Prober::new();
    let ran = prober.probe(&["https://good.test/", "good.test"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.out.lines().filter(|line| line.starts_with("passes ")).count(), 2, "{ran:?}");
    let manifest = prober.host.manifest("https", &["https://good.test"]);
    let ran = prober.probe(&["--manifest", &manifest, "https://good.test/", "http://good.test/"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.out.contains("passes   https://good.test/") && ran.out.contains("refused  http://good.test/"),
        "{ran:?}"
    );
}

#[test]
#[ignore = "requires root and network namespaces"]
fn invalid_urls_are_usage_errors() {
    let prober = Prober::new();
    for urls in [&["udp://good.test:53"][..], &["https://"], &["https://good.test/"; 65], &[]] {
        assert_eq!(prober.probe(urls).code, Some(2), "{urls:?}");
    }
}
