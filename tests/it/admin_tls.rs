//! The admin listener inside TLS, with curl as its client: what it shows, to whom, and certificates that change.

use crate::world::outgate::{Outgate, Setup};
use crate::world::{World, eventually, pki};
use rcgen::{CertificateParams, KeyPair};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The name on the daemon's certificate.
const NAME: &str = "gateway.test";
const PORT: u16 = 3191;

fn setup(world: &World, more: &str) -> Setup {
    let listen = format!("proxy = [\"10.42.42.1:3128\"]\nadmin_tls = \"127.0.0.1:{PORT}\"");
    let tls = format!("[tls]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"\n{more}");
    world.setup("good.test\n").listen(&listen).tables(&tls)
}

/// Writes a certificate for this name with its key, and the authority that it is of.
fn certify(outgate: &Outgate, name: &str) {
    pki::install(&outgate.path("tls"), name);
}

fn start(setup: Setup) -> Outgate {
    let mut outgate = setup.write();
    certify(&outgate, NAME);
    outgate.launch();
    outgate.await_ready();
    outgate
}

/// curl in the gateway, trusting the tests' authority.
fn curl(world: &World, outgate: &Outgate, path: &str, more: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "15", "--resolve", &format!("*:{PORT}:127.0.0.1"), "--cacert"]);
    command.arg(outgate.path("tls/ca.pem")).args(more).arg(format!("https://{NAME}:{PORT}{path}"));
    world.gateway.run(|| command.output()).expect("curl is installed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_is_served(world: &World, outgate: &Outgate, more: &[&str]) {
    let done = curl(world, outgate, "/metrics", more);
    assert!(done.status.success(), "{}{}", text(&done.stderr), outgate.errors());
    assert!(text(&done.stdout).contains("outgate_tls_certificate_expiry_timestamp_seconds"), "{}", text(&done.stdout));
}

fn refused(outgate: &Outgate, reason: &str) -> f64 {
    outgate.metric("tls_handshakes_refused_total", &[("listener", "admin_tls"), ("reason", reason)])
}

#[test]
#[ignore = "requires root and network namespaces"]
fn metrics_and_health_are_shown_over_tls_and_nothing_else() {
    let world = World::new();
    let outgate = start(setup(&world, ""));
    assert_is_served(&world, &outgate, &[]);
    assert_is_served(&world, &outgate, &["--tlsv1.2", "--tls-max", "1.2"]);
    assert_eq!(text(&curl(&world, &outgate, "/healthz", &[]).stdout), "ok\n");
    assert_eq!(text(&curl(&world, &outgate, "/readyz", &[]).stdout), "ok\n");
    let page = curl(&world, &outgate, "/", &["-w", "%{http_code}", "-o", "/dev/null"]);
    assert_eq!(text(&page.stdout), "404", "the status page is for this machine");
    let protocol = curl(&world, &outgate, "/healthz", &["-w", "%{http_version}", "-o", "/dev/null"]);
    assert_eq!(text(&protocol.stdout), "1.1");
    let days = (outgate.metric("tls_certificate_expiry_timestamp_seconds", &[]) - 1.7e9) / 86_400.0;
    assert!(days > 365.0, "{days}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bytes_that_are_not_a_handshake_are_refused_and_counted_and_delay_no_one() {
    let world = World::new();
    let outgate = start(setup(&world, ""));
    let at = SocketAddr::from(([127, 0, 0, 1], PORT));
    let dial = || world.gateway.run(|| TcpStream::connect(at)).unwrap();
    dial().write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    eventually("plain text is counted", || refused(&outgate, "not_tls") == 1.0);
    // Half a hello, and none at all.
    let mut half = dial();
    half.write_all(&[22, 3, 1, 2, 0, 1, 0]).unwrap();
    let silent = dial();
    assert_is_served(&world, &outgate, &[]);
    eventually("both run out of time", || refused(&outgate, "timeout") == 2.0);
    drop((half, silent));
    let distrusting = curl(&world, &outgate, "/metrics", &["--cacert", "/etc/ssl/certs/ca-certificates.crt"]);
    assert!(!distrusting.status.success());
    eventually("a client that does not trust it is counted", || refused(&outgate, "client_refuses") == 1.0);
    assert!(outgate.errors().contains("a TLS handshake failed"), "{}", outgate.errors());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn with_a_client_ca_only_its_certificates_are_accepted() {
    let world = World::new();
    let guest = "[[guest]]\nname = \"vm-7\"\naddresses = [\"10.42.42.7\"]";
    let outgate = start(setup(&world, "client_ca = \"tls/ca.pem\"\n").tables(guest));
    let mine = pki::pems("prometheus.test");
    let key = KeyPair::generate().unwrap();
    let strange = CertificateParams::new(vec!["prometheus.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let write = |name: &str, text: &str| {
        fs::write(outgate.path(name), text).unwrap();
        outgate.path(name).to_str().unwrap().to_owned()
    };
    let (cert, key_file) = (write("mine.pem", &mine.certificate), write("mine.key", &mine.key));
    assert_is_served(&world, &outgate, &["--cert", &cert, "--key", &key_file]);
    assert!(!curl(&world, &outgate, "/metrics", &[]).status.success());
    let (cert, key_file) = (write("strange.pem", &strange.pem()), write("strange.key", &key.serialize_pem()));
    assert!(!curl(&world, &outgate, "/metrics", &["--cert", &cert, "--key", &key_file]).status.success());
    for reason in ["no_client_certificate", "client_certificate_untrusted"] {
        eventually("each is counted", || refused(&outgate, reason) == 1.0);
    }
    assert!(outgate.admin("/metrics").is_some_and(|response| response.status == 200), "the other listener is open");
    let guest = pki::pems("vm-7");
    let (cert, key_file) = (write("guest.pem", &guest.certificate), write("guest.key", &guest.key));
    let done = curl(&world, &outgate, "/metrics", &["--cert", &cert, "--key", &key_file]);
    assert!(text(&done.stdout).starts_with("Nothing here is for guests"), "{}", text(&done.stdout));
    let head = curl(&world, &outgate, "/metrics", &["--cert", &cert, "--key", &key_file, "-I"]);
    let head = text(&head.stdout).to_ascii_lowercase();
    assert!(head.contains(" 403 ") && head.contains("connection: close"), "{head}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_new_certificate_is_used_without_a_failure_and_a_bad_one_leaves_the_old() {
    let world = World::new();
    let outgate = start(setup(&world, ""));
    let shown = || {
        let script =
            format!("openssl s_client -connect 127.0.0.1:{PORT} </dev/null 2>/dev/null | openssl x509 -noout -serial");
        text(&world.gateway.run(|| Command::new("sh").args(["-c", &script]).output()).unwrap().stdout)
    };
    let first = shown();
    assert!(first.starts_with("serial="), "{first}");
    let begun = Instant::now();
    certify(&outgate, NAME);
    while shown() == first {
        assert!(begun.elapsed() < Duration::from_secs(15), "the new certificate is not in use");
        assert_is_served(&world, &outgate, &[]);
    }
    assert_is_served(&world, &outgate, &[]);
    let second = shown();
    // A key that is another's, then no key at all.
    for (bad, words) in [(pki::pems(NAME).key, "KeyMismatch"), ("nonsense".to_owned(), "holds no private key in PEM")] {
        fs::write(outgate.path("tls/key.pem"), bad).unwrap();
        eventually("the bad one is told", || outgate.errors().contains(words));
        assert_eq!(outgate.metric("tls_last_reload_successful", &[]), 0.0);
        assert_eq!(shown(), second);
        assert_is_served(&world, &outgate, &[]);
    }
    // A file without a writer does not block the reader.
    fs::remove_file(outgate.path("tls/key.pem")).unwrap();
    assert!(Command::new("mkfifo").arg(outgate.path("tls/key.pem")).status().unwrap().success());
    eventually("the FIFO is told", || outgate.errors().contains("is not a regular file"));
    assert_is_served(&world, &outgate, &[]);
    certify(&outgate, NAME);
    eventually("a sound pair is taken again", || outgate.metric("tls_last_reload_successful", &[]) == 1.0);
    assert_ne!(shown(), second);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn replaced_symlinks_are_followed() {
    let world = World::new();
    let outgate = setup(&world, "").write();
    certify(&outgate, NAME);
    // As Kubernetes does it: the files are links into a folder that is a link.
    let folder = outgate.path("tls");
    let link = |from: &str, to: &Path| std::os::unix::fs::symlink(from, to).unwrap();
    fs::create_dir(folder.join("one")).unwrap();
    fs::create_dir(folder.join("two")).unwrap();
    let pems = pki::pems(NAME);
    fs::write(folder.join("two/cert.pem"), &pems.certificate).unwrap();
    fs::write(folder.join("two/key.pem"), &pems.key).unwrap();
    link("one", &folder.join("..data"));
    for name in ["cert.pem", "key.pem"] {
        fs::rename(folder.join(name), folder.join("one").join(name)).unwrap();
        link(&format!("..data/{name}"), &folder.join(name));
    }
    let mut outgate = outgate;
    outgate.launch();
    outgate.await_ready();
    assert_is_served(&world, &outgate, &[]);
    link("two", &folder.join("..next"));
    fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
    eventually("the swap is noticed", || outgate.errors().contains("a new certificate is in use"));
    assert_is_served(&world, &outgate, &[]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn check_and_run_read_certificate_and_key() {
    let world = World::new();
    let mut outgate = setup(&world, "").write();
    let check = |outgate: &Outgate| {
        let done = outgate.command(&["check", "--config", outgate.config().to_str().unwrap()]).output().unwrap();
        (done.status.code().unwrap(), text(&done.stdout))
    };
    let (code, said) = check(&outgate);
    assert!(code == 1 && said.contains("tls/cert.pem: cannot be read"), "{said}");
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    assert!(outgate.errors().contains("tls/cert.pem: cannot be read"), "{}", outgate.errors());
    certify(&outgate, NAME);
    assert_eq!(check(&outgate).0, 0);
    fs::write(outgate.path("tls/cert.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert_eq!(check(&outgate).0, 1);
    // As `openssl x509 -req` makes it without an extension.
    fs::write(outgate.path("tls/cert.pem"), include_str!("../data/certificate-of-version-1.pem")).unwrap();
    let (code, said) = check(&outgate);
    assert!(code == 1 && said.contains("cert.pem: certificate 1 in it is not of X.509 version 3"), "{said}");
}
