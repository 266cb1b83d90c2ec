use super::*;
use crate::identify::Evidence;
use crate::policy::Location;
use crate::reason::Reason;
use crate::target::{Target, Transport};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

const SOURCE: &str = "10.42.42.7:40000";

fn off() -> LogSettings {
    LogSettings { access: AccessLog::Off, denied_only: false, on_failure: OnFailure::Continue }
}

fn to_file(path: &Path) -> LogSettings {
    LogSettings { access: AccessLog::File(path.to_owned()), denied_only: false, on_failure: OnFailure::Continue }
}

fn claim(target: &str) -> Claim {
    Claim {
        source: "10.42.42.7".parse::<std::net::IpAddr>().unwrap().into(),
        target: Target::parse(target.as_bytes(), None).unwrap(),
        transport: Transport::Tcp,
        spoken: None,
        ech: false,
        evidence: Evidence::Connect,
    }
}

fn location(file: &str, line: u32) -> Location {
    Location { file: file.into(), line }
}

fn open(account: &Arc<Account>, guest: Option<&str>) -> Record {
    account.open(ListenerLabel::Proxy, SOURCE.parse().unwrap(), &account.counters(guest))
}

fn refuse(account: &Arc<Account>, target: &str) {
    let mut record = open(account, None);
    record.claim(&claim(target));
    record.refuse(Reason::NotWhitelisted, None);
}

fn allow(account: &Arc<Account>, target: &str) {
    let mut record = open(account, None);
    record.claim(&claim(target));
    record.permitted_by(Some(location("a.rules", 3)), false);
    record.upstream("203.0.113.5:443".parse().unwrap(), "198.51.100.1:50000".parse().unwrap());
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.split_terminator('\n').map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the series and their values.
fn scrape(account: &Account) -> std::collections::BTreeMap<String, f64> {
    let text = account.scrape();
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn value(account: &Account, series: &str) -> f64 {
    *scrape(account).get(series).unwrap_or_else(|| panic!("{series} is missing"))
}

#[test]
fn the_metrics_have_the_documented_names_and_labels() {
    let account = Account::start(&off(), &["vm-7".to_owned()]).unwrap();
    account.metrics().whitelist_loaded(3, &[("exact", 10), ("regex", 2)]);
    let series = scrape(&account);
    for name in [
        "outgate_connections_total{listener=\"proxy\",reason=\"none\",verdict=\"allowed\"}",
        "outgate_connections_total{listener=\"udp\",reason=\"none\",verdict=\"observed\"}",
        "outgate_connections_total{listener=\"socks\",reason=\"address_floor\",verdict=\"denied\"}",
        "outgate_connections_total{listener=\"transparent\",reason=\"timeout\",verdict=\"failed\"}",
        "outgate_active_connections{listener=\"redirect\"}",
        "outgate_bytes_total{direction=\"up\",listener=\"proxy\"}",
        "outgate_decision_seconds_bucket{le=\"0.000001\"}",
        "outgate_resolve_seconds_count",
        "outgate_dial_seconds_sum",
        "outgate_connection_seconds_bucket{le=\"86400\"}",
        "outgate_dns_queries_total{reason=\"not_whitelisted\",verdict=\"denied\"}",
        "outgate_whitelist_rules{kind=\"regex\"}",
        "outgate_whitelist_generation",
        "outgate_whitelist_last_reload_successful",
        "outgate_whitelist_last_reload_timestamp_seconds",
        "outgate_whitelist_reloads_total{result=\"success\"}",
        "outgate_flows_revoked_total",
        "outgate_guest_connections_total{guest=\"vm-7\",verdict=\"denied\"}",
        "outgate_guest_bytes_total{direction=\"down\",guest=\"other\"}",
        "outgate_firewall_in_place",
        "outgate_firewall_configured",
        "outgate_trouble{cause=\"unguarded_guests\"}",
        "outgate_panics_total",
        "outgate_log_dropped_total{verdict=\"denied\"}",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(series.contains_key(name), "{name} is missing");
    }
    assert!(series.keys().any(|name| name.starts_with("outgate_build_info{version=")));
    assert_eq!(series["outgate_whitelist_rules{kind=\"exact\"}"], 10.0);
    assert!(series["process_resident_memory_bytes"] > 1e6 && series["process_open_fds"] >= 3.0);
    assert!(!account.scrape().contains("listener=\"dns\""));
}

#[test]
fn a_hostile_guest_makes_no_new_series() {
    let account = Account::start(&off(), &[]).unwrap();
    let before: BTreeSet<String> = scrape(&account).into_keys().collect();
    for n in 0..10_000u32 {
        let source = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 1000));
        let mut record = account.open(
            ListenerLabel::FLOWS[n as usize % ListenerLabel::FLOWS.len()],
            source,
            &account.counters(None),
        );
        match n % 3 {
            0 => record.claim(&claim(&format!("n{n}.test:{}", 1 + n))),
            1 => record.shown(format!("METHOD{n} http://{n}\"}}\n").as_bytes()),
            _ => {}
        }
        record.refuse(Reason::ALL[1 + n as usize % 20], None);
    }
    assert_eq!(before, scrape(&account).into_keys().collect());
}

#[test]
fn a_guest_name_cannot_break_the_text_format() {
    let account = Account::start(&off(), &["a\"}\n\\evil 1".to_owned()]).unwrap();
    let text = account.scrape();
    assert!(text.contains(r#"guest="a\"}\n\\evil 1""#), "{text}");
    assert!(text.lines().all(|line| line.starts_with('#') || line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok()));
}

#[test]
fn the_line_of_an_allowed_flow_says_all_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let account = Account::start(&to_file(&path), &["vm-7".to_owned()]).unwrap();
    let mut record = account.open(
        ListenerLabel::Transparent,
        "[::ffff:10.42.42.7]:40000".parse().unwrap(),
        &account.counters(Some("vm-7")),
    );
    record.original("203.0.113.9:443".parse().unwrap());
    record.claim(&Claim { evidence: Evidence::Sni, ..claim("good.test:443") });
    record.permitted_by(Some(location("vm-7.rules", 12)), false);
    record.decided_in(Duration::from_micros(2));
    record.upstream("203.0.113.5:443".parse().unwrap(), "198.51.100.1:50000".parse().unwrap());
    record.flow().count_up(517);
    record.flow().count_down(4000);
    record.still_open();
    // Several parts of the code carry a flow, and each may report it.
    record.still_open();
    record.flow().count_down(96);
    drop(record);
    account.flush();
    let lines = lines(&path);
    assert_eq!(lines.len(), 2);
    let (open, end) = (&lines[0], &lines[1]);
    assert_eq!((&open["duration_ms"], &open["bytes_down"]), (&Value::Null, &Value::from(4000)));
    assert_eq!(open["flow"], end["flow"]);
    let mut rest = end.as_object().unwrap().clone();
    assert!(rest.remove("duration_ms").unwrap().is_u64());
    assert!(rest.remove("ts").unwrap().as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert!(rest.remove("flow").unwrap().as_str().unwrap().contains('-'));
    let expected = serde_json::json!({
        "listener": "transparent", "guest": "vm-7", "source": "10.42.42.7:40000", "original": "203.0.113.9:443",
        "destination": "good.test:443", "name": "good.test", "port": 443, "verdict": "allowed", "reason": "none",
        "rule": "vm-7.rules:12", "evidence": "sni", "upstream": "203.0.113.5:443", "egress": "198.51.100.1:50000",
        "bytes_up": 517, "bytes_down": 4096,
    });
    assert_eq!(Value::Object(rest), expected);
    assert_eq!(value(&account, "outgate_bytes_total{direction=\"down\",listener=\"transparent\"}"), 4096.0);
    assert_eq!(value(&account, "outgate_guest_bytes_total{direction=\"up\",guest=\"vm-7\"}"), 517.0);
    assert_eq!(value(&account, "outgate_guest_connections_total{guest=\"vm-7\",verdict=\"allowed\"}"), 1.0);
    assert_eq!(value(&account, "outgate_connection_seconds_count"), 1.0);
    assert_eq!(value(&account, "outgate_decision_seconds_count"), 1.0);
}

#[test]
fn whatever_a_guest_writes_is_one_harmless_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let account = Account::start(&to_file(&path), &[]).unwrap();
    let long = "x".repeat(64 * 1024);
    let hostile: [&[u8]; 9] = [
        b"a\r\n{\"verdict\":\"allowed\"}\r\n",
        b"\x1b[2J\x1b]0;owned\x07",
        "\u{202e}moc.live\u{2066}".as_bytes(),
        "\u{2028}\u{2029}\u{85}\u{9b}31m".as_bytes(),
        b"\xff\xfe\x80",
        b"\0",
        b"\"},{\"a\":\"\\",
        long.as_bytes(),
        b"",
    ];
    for text in hostile {
        let mut record = open(&account, None);
        record.shown(text);
        record.refuse(Reason::Malformed, None);
    }
    account.flush();
    let raw = std::fs::read(&path).unwrap();
    assert!(raw.iter().all(|b| *b == b'\n' || (b' '..=b'~').contains(b)));
    let lines = lines(&path);
    assert_eq!(lines.len(), hostile.len());
    for (line, text) in lines.iter().zip(hostile) {
        assert_eq!(line["verdict"], "denied");
        let destination = line["destination"].as_str().unwrap();
        assert!(destination.len() <= 253);
        if let Ok(text) = std::str::from_utf8(text) {
            assert!(text.starts_with(destination));
        }
    }
    assert_eq!(lines[4]["destination"], "\\xff\\xfe\\x80");
}

#[test]
fn repeated_refusals_are_one_line_and_one_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let account = Account::start(&to_file(&path), &[]).unwrap();
    account.set_advice(Box::new(|claim| {
        let advice = "`*.ipfs.io` allows one label only; `.ipfs.io` would match".to_owned();
        claim
            .target
            .to_string()
            .starts_with("a.b.")
            .then(|| NearMiss { rule: Some(location("local.rules", 4)), advice })
    }));
    for _ in 0..300 {
        refuse(&account, "a.b.ipfs.io:443");
    }
    refuse(&account, "other.test:443");
    account.flush();
    let lines = lines(&path);
    let of = |name: &str| lines.iter().filter(|line| line["name"] == name).collect::<Vec<_>>();
    let [first, folded] = of("a.b.ipfs.io")[..] else { panic!("{lines:?}") };
    assert_eq!((first.get("count"), &folded["count"]), (None, &Value::from(299)));
    let advice = "local.rules:4: `*.ipfs.io` allows one label only; `.ipfs.io` would match";
    assert_eq!((&first["advice"], &folded["advice"]), (&Value::from(advice), &Value::from(advice)));
    assert_eq!(of("other.test")[0].get("advice"), None);
    let top = &account.refusals(10)[0];
    assert_eq!((top.count, top.destination.as_deref()), (300, Some("a.b.ipfs.io:443")));
    assert_eq!((top.guest.as_str(), top.advice.as_deref()), ("10.42.42.7", Some(advice)));
}

#[test]
fn a_panic_in_the_advice_costs_the_advice_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let account = Account::start(&to_file(&path), &[]).unwrap();
    account.set_advice(Box::new(|_| panic!("on purpose")));
    refuse(&account, "evil.test:443");
    account.flush();
    assert_eq!(lines(&path).len(), 1);
    assert_eq!(value(&account, "outgate_panics_total"), 1.0);
}

#[test]
fn while_nobody_reads_the_log_nothing_waits_and_refusals_are_dropped_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Open at both ends, so that opening and writing work until it is full.
    let mut fifo = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(&path)
        .unwrap();
    let account = Account::start(&to_file(&path), &[]).unwrap();
    let begin = Instant::now();
    // From many sources, so that folding does not hide the flood.
    for n in 0..40_000u32 {
        let source = SocketAddr::from(([10, 1, (n >> 8) as u8, n as u8], 1000));
        let mut record = account.open(ListenerLabel::Proxy, source, &account.counters(None));
        record.claim(&claim(&format!("n{n}.test:443")));
        record.refuse(Reason::NotWhitelisted, None);
        if n % 400 == 399 {
            allow(&account, &format!("good{n}.test:443"));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(8), "flows waited for the log");
    account.flush();
    assert_eq!(value(&account, "outgate_log_dropped_total{verdict=\"allowed\"}"), 0.0);
    assert!(value(&account, "outgate_log_dropped_total{verdict=\"denied\"}") > 1000.0);
    assert_eq!(account.totals().connections["denied"], 40_000);
    // The reader is back: the kept lines are written, all of them whole.
    let mut text = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut buffer = [0; 65536];
    let allowed = |text: &[u8]| String::from_utf8_lossy(text).matches("\"verdict\":\"allowed\"").count();
    while allowed(&text) < 100 && Instant::now() < deadline {
        match fifo.read(&mut buffer) {
            Ok(read) => text.extend_from_slice(&buffer[..read]),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    assert_eq!(allowed(&text), 100);
    let whole = &text[..=text.iter().rposition(|b| *b == b'\n').unwrap()];
    whole.split(|b| *b == b'\n').filter(|line| !line.is_empty()).for_each(|line| {
        serde_json::from_slice::<Value>(line).unwrap();
    });
}

#[test]
fn a_failing_disk_is_counted_and_costs_no_line_while_there_is_room() {
    let account = Account::start(&to_file(Path::new("/dev/full")), &[]).unwrap();
    allow(&account, "good.test:443");
    account.flush();
    assert_eq!(value(&account, "outgate_log_dropped_total{verdict=\"allowed\"}"), 0.0);
    assert!(value(&account, "outgate_log_errors_total") >= 1.0);
    assert_eq!(value(&account, "outgate_log_failing"), 0.0, "not for so short a time");
}

#[test]
fn another_place_for_the_log_ends_a_failure_and_so_does_none() {
    for to in [AccessLog::Off, AccessLog::File("/dev/null".into())] {
        let refuse = |access| LogSettings { access, denied_only: false, on_failure: OnFailure::Refuse };
        let account = Account::start(&refuse(AccessLog::File("/dev/full".into())), &[]).unwrap();
        allow(&account, "good.test:443");
        let begin = Instant::now();
        while !account.refuses() {
            assert!(begin.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(value(&account, "outgate_log_failing"), 1.0);
        assert!(account.totals().log_failing && account.log_trouble().unwrap().contains("/dev/full"));
        account.reconfigure(&refuse(to), &[]).unwrap();
        assert!(!account.refuses() && account.log_trouble().is_none());
        assert_eq!(value(&account, "outgate_log_failing"), 0.0);
    }
}

#[test]
fn reopening_follows_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let account = Account::start(&to_file(&path), &[]).unwrap();
    allow(&account, "one.test:443");
    account.flush();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o640, 0);
    std::fs::rename(&path, &rotated).unwrap();
    allow(&account, "two.test:443");
    account.flush();
    account.reopen();
    allow(&account, "three.test:443");
    account.flush();
    let names = |path| lines(path).iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&rotated), ["one.test", "two.test"]);
    assert_eq!(names(&path), ["three.test"]);
}

#[test]
fn new_settings_hold_at_once_and_bad_ones_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let account = Account::start(&to_file(&one), &["a".to_owned(), "b".to_owned()]).unwrap();
    let bad = to_file(&dir.path().join("no/such/dir"));
    assert!(matches!(account.reconfigure(&bad, &[]), Err(AccountError::Open { .. })));
    drop(open(&account, Some("a")));
    account.flush();
    assert_eq!(lines(&one)[0]["guest"], "a");
    let log = LogSettings { denied_only: true, ..to_file(&two) };
    account.reconfigure(&log, &["b".to_owned(), "c".to_owned()]).unwrap();
    allow(&account, "good.test:443");
    refuse(&account, "evil.test:443");
    account.flush();
    assert_eq!(lines(&two).len(), 1);
    assert_eq!(lines(&one).len(), 1);
    let guests: BTreeSet<String> = scrape(&account)
        .into_keys()
        .filter_map(|series| Some(series.split_once("guest=\"")?.1.split_once('"')?.0.to_owned()))
        .collect();
    assert_eq!(guests.iter().map(String::as_str).collect::<Vec<_>>(), ["b", "c", "other"]);
}

#[test]
fn a_flow_that_ends_undecided_is_never_counted_as_allowed() {
    let account = Account::start(&off(), &[]).unwrap();
    drop(open(&account, None));
    let mut claimed = open(&account, None);
    claimed.claim(&claim("good.test:443"));
    drop(claimed);
    open(&account, None).cancel();
    let totals = account.totals();
    assert_eq!((totals.connections["allowed"], totals.connections["denied"]), (0, 2));
    assert_eq!(account.flows(10).1, 0);
}

#[test]
fn a_panic_in_a_flow_is_accounted_for_like_any_end() {
    let account = Account::start(&off(), &[]).unwrap();
    let other = Arc::clone(&account);
    let flow = std::thread::spawn(move || {
        let _active = other.active(ListenerLabel::Proxy);
        let mut record = open(&other, None);
        record.claim(&claim("good.test:443"));
        assert_eq!(other.flows(10).1, 1);
        panic!("on purpose");
    });
    assert!(flow.join().is_err());
    assert_eq!(account.totals().active, 0);
    assert_eq!(account.totals().connections["denied"], 1);
    assert_eq!(account.flows(10).1, 0);
}

#[test]
fn a_connection_is_counted_as_open_where_it_turned_out_to_belong() {
    let account = Account::start(&off(), &[]).unwrap();
    let mut active = account.active(ListenerLabel::Proxy);
    assert_eq!(value(&account, "outgate_active_connections{listener=\"proxy\"}"), 1.0);
    // As where a proxy port receives SOCKS.
    let _ = std::mem::replace(&mut active, account.active(ListenerLabel::Socks));
    assert_eq!(value(&account, "outgate_active_connections{listener=\"proxy\"}"), 0.0);
    assert_eq!(value(&account, "outgate_active_connections{listener=\"socks\"}"), 1.0);
    drop(active);
    assert_eq!(value(&account, "outgate_active_connections{listener=\"socks\"}"), 0.0);
}

#[tokio::test]
async fn a_flow_knows_of_a_search_that_may_have_passed_it_before_it_had_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let account = Account::start(&to_file(&dir.path().join("access.log")), &[]).unwrap();
    let by_address = |_: &Claim, upstream: Option<SocketAddr>| upstream.map(|_| (Reason::Revoked, None));
    let addresses = ("192.0.2.1:443".parse().unwrap(), "192.0.2.2:5000".parse().unwrap());
    let mut early = open(&account, None);
    early.claim(&claim("early.test:443"));
    assert!(!early.was_searched());
    assert_eq!(account.live().revoke_where(by_address), 0, "it has no address yet");
    early.upstream(addresses.0, addresses.1);
    assert!(early.was_searched(), "so it must look for itself");
    let mut late = open(&account, None);
    late.claim(&claim("late.test:443"));
    late.upstream(addresses.0, addresses.1);
    assert!(!late.was_searched());
    assert_eq!(account.live().revoke_where(by_address), 2, "each is found by its address now");
}

#[tokio::test]
async fn revocation_wakes_the_flows_that_are_refused_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let account = Account::start(&to_file(&path), &[]).unwrap();
    let start = |target: &str| {
        let mut record = open(&account, None);
        record.claim(&claim(target));
        record.permitted_by(Some(location("old.rules", 1)), false);
        tokio::spawn(async move {
            let reason = record.flow().revoked().await;
            record.refuse(reason, None);
            reason
        })
    };
    let (bad, good) = (start("bad.test:443"), start("good.test:443"));
    tokio::time::sleep(Duration::from_millis(20)).await;
    let judge = |claim: &Claim, _: Option<SocketAddr>| {
        let bad = claim.target.to_string() == "bad.test:443";
        bad.then(|| (Reason::Revoked, Some(location("new.rules", 9))))
    };
    let revoked = account.live().revoke_where(judge);
    account.metrics().flows_revoked(revoked);
    assert_eq!(revoked, 1);
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), bad).await.unwrap().unwrap(), Reason::Revoked);
    assert_eq!(account.live().revoke_where(judge), 0);
    assert!(!good.is_finished());
    let (flows, total) = account.flows(10);
    assert_eq!((flows[0].destination.as_str(), total), ("good.test:443", 1));
    assert_eq!(value(&account, "outgate_flows_revoked_total"), 1.0);
    assert_eq!(account.live().revoke_where(|_, _| Some((Reason::ShuttingDown, None))), 1);
    assert_eq!(good.await.unwrap(), Reason::ShuttingDown);
    assert_eq!(value(&account, "outgate_flows_revoked_total"), 1.0);
    account.flush();
    let lines = lines(&path);
    assert_eq!((&lines[0]["reason"], &lines[0]["rule"]), (&Value::from("revoked"), &Value::from("new.rules:9")));
    assert_eq!(lines[0]["verdict"], "denied");
}

#[tokio::test]
async fn a_flow_revoked_before_it_waits_does_not_wait() {
    let account = Account::start(&off(), &[]).unwrap();
    let record = open(&account, None);
    assert!(record.flow().revoke(Reason::Revoked));
    assert!(!record.flow().revoke(Reason::ShuttingDown));
    assert_eq!(record.flow().revoked().await, Reason::Revoked);
}

#[test]
fn dns_refusals_are_logged_and_dns_is_no_flow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let account = Account::start(&to_file(&path), &[]).unwrap();
    let query = || account.open(ListenerLabel::Dns, SOURCE.parse().unwrap(), &account.counters(None));
    let mut allowed = query();
    allowed.claim(&claim("good.test:443"));
    allowed.permitted_by(None, false);
    assert_eq!(account.flows(10).1, 0);
    drop(allowed);
    let mut refused = query();
    refused.claim(&claim("evil.test:443"));
    refused.refuse(Reason::NotWhitelisted, None);
    drop(refused);
    account.flush();
    let lines = lines(&path);
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!(
        (&line["listener"], &line["destination"], &line["port"]),
        (&"dns".into(), &"evil.test".into(), &Value::Null)
    );
    assert_eq!(value(&account, "outgate_dns_queries_total{reason=\"none\",verdict=\"allowed\"}"), 1.0);
    assert_eq!(value(&account, "outgate_dns_queries_total{reason=\"not_whitelisted\",verdict=\"denied\"}"), 1.0);
    assert_eq!(account.totals().connections["denied"], 0);
}

#[test]
fn what_observe_lets_through_is_listed_as_what_would_be_refused() {
    let account = Account::start(&off(), &[]).unwrap();
    let mut record = open(&account, None);
    record.claim(&claim("new.test:443"));
    record.permitted_by(None, true);
    drop(record);
    account.flush();
    let top = account.refusals(10);
    assert_eq!((top[0].verdict, top[0].count), ("observed", 1));
    assert_eq!(account.totals().connections["observed"], 1);
}

#[test]
fn every_byte_is_counted_once_whoever_reads_the_metrics_meanwhile() {
    let account = Account::start(&off(), &[]).unwrap();
    let up = |account: &Account| value(account, "outgate_bytes_total{direction=\"up\",listener=\"proxy\"}");
    std::thread::scope(|scope| {
        let flows: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut record = open(&account, None);
                        record.claim(&claim("good.test:443"));
                        (0..500).for_each(|_| record.flow().count_up(3));
                    }
                })
            })
            .collect();
        let account = &account;
        scope.spawn(move || {
            let mut last = 0.0;
            while flows.iter().any(|flow| !flow.is_finished()) {
                let now = up(account);
                assert!(now >= last);
                last = now;
            }
        });
    });
    assert_eq!(up(&account), f64::from(4 * 200 * 500 * 3));
}

#[test]
fn a_live_flow_takes_400_bytes_at_most() {
    let arc = 2 * size_of::<usize>();
    let bytes = size_of::<Record>() + size_of::<Flow>() + arc;
    assert!(bytes <= 400, "{} + {} + {arc}", size_of::<Record>(), size_of::<Flow>());
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
    let account = Account::start(&off(), &[]).unwrap();
    account.metrics().whitelist_loaded(1, &[("exact", 1)]);
    account.metrics().set_sums("5e", Some("ab"));
    account.metrics().set_enforcement(crate::proof::Check::Ping, Some((true, 1)));
    account.metrics().certificate_expires(1);
    account.metrics().handshake_refused("admin_tls", "timeout");
    let text = account.scrape();
    let types: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let dashboard = include_str!("../../packaging/grafana.json");
    let alerts = include_str!("../../packaging/prometheus-rules.yml");
    serde_json::from_str::<Value>(dashboard).unwrap();
    let word = regex::Regex::new(r"\b(?:outgate|process)_[a-z_]+\b").unwrap();
    let mut used = BTreeSet::new();
    for name in word.find_iter(dashboard).chain(word.find_iter(alerts)).map(|found| found.as_str()) {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(types.contains(name) || types.contains(base), "{name} does not exist");
        used.insert(base);
    }
    for name in types.iter().filter(|name| name.starts_with("outgate_")) {
        assert!(used.contains(name), "{name} is on no panel and in no alert");
    }
}

/// The cost of accounting on a flow's thread; run with `--release -- --ignored --nocapture measurement`.
#[test]
#[ignore = "a measurement"]
fn measurement_of_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let account = Account::start(&to_file(&dir.path().join("access.log")), &["vm-7".to_owned()]).unwrap();
    let claim = claim("good.test:443");
    let rule = location("a.rules", 3);
    let (peer, local) = ("203.0.113.5:443".parse().unwrap(), "198.51.100.1:50000".parse().unwrap());
    let measure = |refused: bool| {
        let (rounds, pause) = (200u32, Duration::from_millis(25));
        let mut spent = Duration::ZERO;
        for _ in 0..rounds {
            let begin = Instant::now();
            for _ in 0..1000 {
                let mut record =
                    account.open(ListenerLabel::Proxy, SOURCE.parse().unwrap(), &account.counters(Some("vm-7")));
                record.claim(&claim);
                record.decided_in(Duration::from_micros(1));
                if refused {
                    record.refuse(Reason::NotWhitelisted, None);
                    continue;
                }
                record.permitted_by(Some(rule.clone()), false);
                record.upstream(peer, local);
                record.flow().count_up(100);
                record.flow().count_down(100);
            }
            spent += begin.elapsed();
            std::thread::sleep(pause);
        }
        spent / (rounds * 1000)
    };
    println!("allowed: {:?} a record, refused: {:?}", measure(false), measure(true));
    println!("dropped: {}", account.totals().log_dropped);
    let record = open(&account, None);
    let begin = Instant::now();
    (0..10_000_000).for_each(|n| std::hint::black_box(record.flow()).count_up(std::hint::black_box(n)));
    println!("counting bytes: {:?} a call", begin.elapsed() / 10_000_000);
    let flows: Vec<Record> = (0..100_000)
        .map(|_| {
            let mut record = open(&account, None);
            record.claim(&claim);
            record
        })
        .collect();
    let begin = Instant::now();
    let bytes = account.scrape().len();
    println!("scrape with {} flows: {:?}, {bytes} bytes", flows.len(), begin.elapsed());
    println!("record {} bytes, flow {} bytes", size_of::<Record>(), size_of::<Flow>());
}
