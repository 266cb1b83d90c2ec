use super::*;
use crate::account::{AccessLog, LogSettings, OnFailure};
use crate::listener::ListenerLabel;
use crate::reason::Reason;
use std::net::SocketAddr;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct World {
    account: Arc<Account>,
    address: SocketAddr,
    reasons: Arc<Mutex<Vec<String>>>,
}

async fn world() -> World {
    let account = Account::start(
        &LogSettings { access: AccessLog::Off, denied_only: false, on_failure: OnFailure::Continue },
        &[],
    )
    .unwrap();
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let not_ready = Arc::clone(&reasons);
    let admin =
        Admin::new(Arc::clone(&account), Box::new(move || not_ready.lock().unwrap().clone()), Box::new(|_| false));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, admin));
    World { account, address, reasons }
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn ask(address: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, &request).await;
    (answer[9..12].parse().unwrap(), answer)
}

async fn get(world: &World, path: &str) -> (u16, String) {
    ask(world.address, "GET", path, &world.address.to_string()).await
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let world = world().await;
    let (status, answer) = get(&world, "/metrics").await;
    assert_eq!(status, 200);
    assert!(answer.contains("content-type: text/plain; version=0.0.4"));
    assert!(answer.contains("\noutgate_panics_total 0\n"), "{answer}");
    let (status, head) = ask(world.address, "HEAD", "/metrics", "localhost").await;
    assert_eq!(status, 200);
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let world = world().await;
    assert_eq!(get(&world, "/readyz").await.0, 200);
    *world.reasons.lock().unwrap() = vec!["the firewall ruleset is missing".into(), "no whitelist yet".into()];
    let (status, answer) = get(&world, "/readyz").await;
    assert_eq!(status, 503);
    assert!(answer.ends_with("\r\n\r\nthe firewall ruleset is missing\nno whitelist yet\n"), "{answer}");
    assert_eq!(get(&world, "/healthz").await.0, 200);
    assert!(get(&world, "/").await.1.contains("Not ready: no whitelist yet"));
}

#[tokio::test]
async fn nothing_else_is_there_and_nothing_can_be_changed() {
    let world = world().await;
    for path in ["/reload", "/metrics/", "//metrics", "/%6detrics", "/debug/pprof", "/../metrics"] {
        assert_eq!(get(&world, path).await.0, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        let (status, answer) = ask(world.address, method, "/metrics", "127.0.0.1").await;
        assert_eq!(status, 405, "{method}");
        assert!(answer.contains("allow: GET, HEAD"));
    }
}

#[tokio::test]
async fn a_rebound_name_is_refused_and_told_why() {
    let world = world().await;
    for host in ["127.0.0.1", "127.0.0.1:3190", "[::1]:3190", "localhost", "LOCALHOST:3190", "192.0.2.7"] {
        assert_eq!(ask(world.address, "GET", "/metrics", host).await.0, 200, "{host}");
    }
    for host in
        ["evil.test", "evil.test:3190", "localhost.evil.test", "127.0.0.1.evil.test", "2130706433", "a@127.0.0.1", ""]
    {
        for path in ["/metrics", "/", "/healthz", "/none"] {
            let (status, answer) = ask(world.address, "GET", path, host).await;
            assert_eq!(status, 403, "{host}");
            assert!(answer.contains("IP address or localhost") && !answer.contains("outgate_"));
        }
    }
    let twice = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";
    assert!(exchange(world.address, twice).await.starts_with("HTTP/1.1 403"));
    let absolute = "GET http://evil.test/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    assert!(exchange(world.address, absolute).await.starts_with("HTTP/1.1 403"));
    assert!(exchange(world.address, "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").await.contains(" 403 "));
    assert!(exchange(world.address, "GET /healthz HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200"));
}

#[tokio::test]
async fn the_status_page_shows_what_guests_wrote_as_text() {
    let world = world().await;
    let mut record =
        world.account.open(ListenerLabel::Proxy, "10.0.0.1:1000".parse().unwrap(), &world.account.counters(None));
    record.shown("<script>alert('1')</script>\u{202e}\"&".as_bytes());
    record.refuse(Reason::Malformed, None);
    drop(record);
    world.account.flush();
    let (status, answer) = get(&world, "/").await;
    assert_eq!(status, 200);
    assert!(answer.contains("content-security-policy: default-src 'none'"));
    assert!(answer.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;\\u{202e}&quot;&amp;"), "{answer}");
    assert!(!answer.contains("<script"));
}

#[tokio::test]
async fn a_client_that_sends_half_a_head_is_let_go() {
    let world = world().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHo").await.unwrap();
    let mut answer = Vec::new();
    let closed = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("it is still connected").unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
}

#[tokio::test]
async fn a_head_beyond_the_bounds_is_refused() {
    let world = world().await;
    let long = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: {}\r\n\r\n", "x".repeat(64 * 1024));
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    // The answer may arrive before everything was sent.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn idle_connections_beyond_the_cap_wait_and_cost_nobody_else_their_place() {
    let world = world().await;
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(TcpStream::connect(world.address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let wait = tokio::time::timeout(Duration::from_millis(300), get(&world, "/healthz"));
    assert!(wait.await.is_err());
    drop(idle);
    let answered = tokio::time::timeout(Duration::from_secs(5), get(&world, "/healthz")).await.unwrap();
    assert_eq!(answered.0, 200);
}

#[tokio::test]
async fn over_tls_there_is_no_status_page_and_a_new_certificate_holds_at_once() {
    let config = |name: &str| {
        let signed = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let der = signed.cert.der().clone();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![der.clone()], key);
        let config = Arc::new(config.unwrap());
        (Arc::new(tls::Loaded { guests: Arc::clone(&config), admin: config, names_guests: false, expires: 0 }), der)
    };
    let World { account, .. } = world().await;
    let (first, first_der) = config("admin.test");
    let (second, second_der) = config("admin.test");
    let live = Arc::new(arc_swap::ArcSwap::new(first));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_tls(listener, Arc::clone(&live), Admin::new(account, Box::new(Vec::new), Box::new(|_| false))));
    let ask = async |path: &str, trusted: &rustls_pki_types::CertificateDer<'static>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("admin.test").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin.test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer[9..12].parse::<u16>().ok()
    };
    assert_eq!(ask("/metrics", &first_der).await, Some(200));
    assert_eq!(ask("/", &first_der).await, Some(404));
    live.store(second);
    assert_eq!(ask("/healthz", &first_der).await, None);
    assert_eq!(ask("/healthz", &second_der).await, Some(200));
}
