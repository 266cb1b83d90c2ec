use super::*;
use crate::account::{AccessLog, LogSettings, OnFailure};
use crate::identify::{Claim, Evidence};
use crate::listener::ListenerLabel;
use crate::reason::Reason;
use crate::target::{Target, Transport};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicUsize, Ordering};

struct World {
    account: Arc<Account>,
    dir: tempfile::TempDir,
    reloads: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }
}

fn world(outcome: Result<Value, Vec<String>>) -> World {
    let account = Account::start(
        &LogSettings { access: AccessLog::Off, denied_only: false, on_failure: OnFailure::Continue },
        &[],
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let reloads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reloads);
    let make: Make = Box::new(move |_| {
        let (count, outcome) = (Arc::clone(&count), outcome.clone());
        Box::pin(async move {
            count.fetch_add(1, Ordering::SeqCst);
            outcome
        })
    });
    let status: Status = Box::new(|| json!({ "mode": "whitelist", "whitelist": { "rules": 7 } }));
    let used: Used = Box::new(|| json!({ "used": { "a.rules": "1-3" } }));
    let guests: Guests = Box::new(|| Arc::new(json!({ "guests": [] })));
    let control = Arc::new(Control { account: Arc::clone(&account), status, used, guests, make });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = bind(&dir.path().join("control.sock")).unwrap();
    runtime.spawn(async move { serve(UnixListener::from_std(listener).unwrap(), control).await });
    World { account, dir, reloads, _runtime: runtime }
}

fn claim(name: &str) -> Claim {
    Claim {
        source: "10.0.0.1".parse::<std::net::IpAddr>().unwrap().into(),
        target: Target::parse(name.as_bytes(), None).unwrap(),
        transport: Transport::Tcp,
        spoken: None,
        ech: false,
        evidence: Evidence::Connect,
    }
}

#[test]
fn status_denied_and_flows_are_read_over_the_socket() {
    let world = world(Ok(Value::Null));
    let mut refused =
        world.account.open(ListenerLabel::Socks, "10.0.0.1:1000".parse().unwrap(), &world.account.counters(None));
    refused.claim(&claim("evil.test:443"));
    refused.refuse(Reason::NotWhitelisted, None);
    drop(refused);
    world.account.flush();
    let mut live: Vec<_> = (0..3)
        .map(|_| {
            world.account.open(ListenerLabel::Proxy, "10.0.0.1:1001".parse().unwrap(), &world.account.counters(None))
        })
        .collect();
    live.iter_mut().for_each(|record| record.claim(&claim("good.test:443")));
    live[0].flow().count_up(42);

    let client = client(world.path());
    let (status, body) = client.get("/status").unwrap();
    assert_eq!(
        (status, &body["version"], &body["mode"]),
        (200, &json!(env!("CARGO_PKG_VERSION")), &json!("whitelist"))
    );
    assert_eq!((&body["connections"]["denied"], &body["whitelist"]["rules"]), (&json!(1), &json!(7)));
    let (_, body) = client.get("/denied").unwrap();
    let row = &body["refusals"][0];
    assert_eq!((&row["destination"], &row["reason"]), (&json!("evil.test:443"), &json!("not_whitelisted")));
    let (_, body) = client.get("/flows?limit=2").unwrap();
    assert_eq!((&body["total"], body["flows"].as_array().unwrap().len()), (&json!(3), 2));
    assert_eq!(
        (&body["flows"][0]["bytes_up"], &body["flows"][0]["destination"]),
        (&json!(42), &json!("good.test:443"))
    );
    assert_eq!(client.get("/nothing").unwrap().0, 404);
    assert_eq!(client.get("/reload").unwrap().0, 405);
    assert_eq!(client.post("/status", "").unwrap().0, 405);
    assert_eq!(world.reloads.load(Ordering::SeqCst), 0);
}

#[test]
fn a_reload_answers_with_what_came_of_it() {
    let good = world(Ok(json!({ "generation": 4 })));
    assert_eq!(client(good.path()).post("/reload", "").unwrap(), (200, json!({ "generation": 4 })));
    assert_eq!(good.reloads.load(Ordering::SeqCst), 1);
    let bad = world(Err(vec!["a.rules:3:1: no".to_owned()]));
    assert_eq!(client(bad.path()).post("/reload", "").unwrap(), (422, json!({ "problems": ["a.rules:3:1: no"] })));
}

#[test]
fn the_socket_is_for_its_owner_and_its_group() {
    let world = world(Ok(Value::Null));
    let mode = fs::metadata(world.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
#[ignore = "requires root"]
fn only_root_and_the_daemons_user_may_change_anything() {
    // This test starts itself once more, as another user.
    if let Some(path) = std::env::var_os("OUTGATE_TEST_SOCKET") {
        let client = client(PathBuf::from(path));
        assert_eq!(client.get("/status").unwrap().0, 200);
        assert_eq!(client.post("/reload", "").unwrap().0, 403);
        return;
    }
    crate::rights::require();
    let world = world(Ok(Value::Null));
    // Gives the access that the group would have.
    fs::set_permissions(world.dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(world.path(), Permissions::from_mode(0o666)).unwrap();
    // A copy, since the build directory may be closed to others.
    let program = world.dir.path().join("asker");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let asker = std::process::Command::new(&program)
        .args(["--exact", "control::tests::only_root_and_the_daemons_user_may_change_anything", "--ignored"])
        .env("OUTGATE_TEST_SOCKET", world.path())
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&asker.stdout);
    assert!(asker.status.success() && output.contains("1 passed"), "{output}");
    assert_eq!(world.reloads.load(Ordering::SeqCst), 0);
    fs::set_permissions(world.path(), Permissions::from_mode(0o660)).unwrap();
    assert_eq!(client(world.path()).post("/reload", "").unwrap().0, 200);
}

#[test]
fn what_a_dead_daemon_left_is_replaced_and_a_live_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(bind(&path).unwrap());
    assert!(matches!(client(&path).get("/status"), Err(ClientError::Unreachable { .. })));
    let live = bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(ControlError::InUse(_))));
    drop(live);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "keep").unwrap();
    assert!(matches!(bind(&path), Err(ControlError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "keep");
    assert!(matches!(bind(&dir.path().join("no/such.sock")), Err(ControlError::Open { .. })));
    assert!(matches!(client(dir.path().join("none")).get("/status"), Err(ClientError::Unreachable { .. })));
}

#[test]
fn an_answer_of_another_program_is_unreadable_and_no_panic() {
    let answers: [&[u8]; 6] =
        [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 20", b"HTTP/1.1 \r\n\r\n{}", b"HTTP/1.1 200 OK\r\n\r\n<", b"\r\n\r\n"];
    for answer in answers {
        assert_eq!(parse(answer), None);
    }
    assert_eq!(
        parse(b"HTTP/1.0 403 Forbidden\r\na: b\r\n\r\n{\"error\":\"x\"}\n"),
        Some((403, json!({ "error": "x" })))
    );
}

#[test]
fn an_answer_that_comes_before_the_request_was_read_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..20 {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.0 403 Forbidden\r\n\r\n{\"error\":\"no\"}").unwrap();
        }
    });
    // One body that fits into the socket's buffer and stays there unread, and one that does not fit.
    for length in [10, 8 << 20].repeat(10) {
        let answer = client(&path).post("/guests", &"x".repeat(length)).unwrap();
        assert_eq!(answer, (403, json!({ "error": "no" })), "{length}");
    }
    server.join().unwrap();
}
