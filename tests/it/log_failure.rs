//! An access log that can't be written: what happens to guests at every listener, as `[log].on_failure` says; that
//! slowness is no failure; and that it is over with the first line that is written.
//!
//! The daemon has a mount namespace of its own in which its log lies on a tmpfs of a few KiB.

use crate::transparent;
use crate::world::client::{Get, Wire};
use crate::world::dns::A;
use crate::world::outgate::{Outgate, Setup};
use crate::world::pki::{Whose, client_as};
use crate::world::stub_resolver::{NXDOMAIN, RESOLVER, SERVFAIL, query};
use crate::world::{CDN, EVIL, GOOD, ODD, World, eventually, pki};
use rustix::process::Signal;
use rustls::version::TLS13;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// For how long there must be nothing but errors.
const GRACE: Duration = Duration::from_secs(5);
/// What a busy machine may take beyond.
const SOON: Duration = Duration::from_secs(15);

/// Starts the daemon with its log at `disk/access.log`, on a tmpfs of 64 KiB of its own; and `frozen` is one that is
/// read-only.
fn start(setup: Setup, on_failure: &str) -> Outgate {
    let mut outgate = setup.write();
    pki::install(&outgate.path("tls"), "gateway.test");
    for folder in ["disk", "frozen"] {
        fs::create_dir(outgate.path(folder)).unwrap();
    }
    symlink("disk/access.log", outgate.path("access.log")).unwrap();
    set(&outgate, on_failure);
    let at = |folder: &str| outgate.path(folder).display().to_string();
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs {} && mount -t tmpfs -o size=64k,ro tmpfs {} && exec \"$0\" \"$@\"",
        at("disk"),
        at("frozen")
    );
    outgate.start_by(&["unshare", "--mount", "--propagation", "private", "sh", "-c", &script]);
    outgate.launch();
    outgate.await_ready();
    outgate
}

/// Writes the key into the configuration.
fn set(outgate: &Outgate, on_failure: &str) {
    let config = fs::read_to_string(outgate.config()).unwrap();
    let config: String =
        config.lines().filter(|line| !line.starts_with("on_failure")).flat_map(|line| [line, "\n"]).collect();
    let config = config.replace("[log]\n", &format!("[log]\non_failure = \"{on_failure}\"\n"));
    fs::write(outgate.config(), config).unwrap();
}

/// A file as the daemon sees it.
fn seen(outgate: &Outgate, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", outgate.pid(), outgate.path(file).display()))
}

/// Leaves no room for the log.
fn fill(outgate: &Outgate) {
    let mut file = fs::File::create(seen(outgate, "disk/other")).unwrap();
    let end = loop {
        if let Err(error) = file.write_all(&[b'x'; 512]) {
            break error;
        }
    };
    assert_eq!(end.kind(), ErrorKind::StorageFull);
    // And none in the page that the log has begun.
    let begun = fs::metadata(seen(outgate, "disk/access.log")).map_or(0, |log| log.len());
    let mut log = fs::OpenOptions::new().append(true).open(seen(outgate, "disk/access.log")).unwrap();
    while log.write(b"\n").is_ok() {}
    assert!(begun < 64 * 1024);
}

fn make_room(outgate: &Outgate) {
    fs::remove_file(seen(outgate, "disk/other")).unwrap();
}

fn readyz(outgate: &Outgate) -> (u16, String) {
    let answer = outgate.admin("/readyz").expect("the admin listener answers");
    (answer.status, answer.text())
}

fn status(outgate: &Outgate) -> String {
    let output = outgate.command(&["status", "--config", outgate.config().to_str().unwrap()]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Waits until the log counts as failing; how long after the first line was lost.
fn await_failing(outgate: &Outgate, since: Instant) -> Duration {
    while outgate.metric("log_failing", &[]) != 1.0 {
        assert!(since.elapsed() < GRACE + SOON, "the log is never failing: {}", outgate.errors());
        std::thread::sleep(Duration::from_millis(20));
    }
    since.elapsed()
}

fn await_well(outgate: &Outgate) {
    eventually("the log is well", || outgate.metric("log_failing", &[]) == 0.0);
}

/// How many lines of the log hold this.
fn lines_with(outgate: &Outgate, text: &str) -> usize {
    let log = fs::read(seen(outgate, "disk/access.log")).unwrap_or_default();
    String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).count()
}

/// Through all listeners.
fn every_listener(world: &World) -> Setup {
    world.internet.echo((ODD, 7));
    transparent::setup(world, "good.test\ncdn-ok.test\ntcp://11.0.0.30:7\n")
        .listen(&format!(
            "proxy = [\"10.42.42.1:3128\"]\nproxy_tls = [\"10.42.42.1:3443\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\n\
             redirect = [\"0.0.0.0:3130\"]\ndns = [\"{RESOLVER}\"]"
        ))
        .tables("[tls]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"")
}

/// Plain HTTP inside TLS; returns the complete answer.
fn inside_tls(world: &World) -> io::Result<String> {
    let listener: SocketAddr = "10.42.42.1:3443".parse().unwrap();
    let mut proxy = Wire::dial(&world.guest.namespace, listener)?.tls_with(
        client_as(Whose::Nobodys, &[&TLS13]).into(),
        "gateway.test",
        |hello| vec![hello],
    )?;
    proxy.write_all(b"GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let _ = proxy.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// HTTP from a user of the gateway's own.
fn redirected(world: &World) -> String {
    let curl = || {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS", "-m", "10", "-i"])
            .args(["--resolve", &format!("good.test:80:{GOOD}"), "http://good.test/"])
            .output();
        String::from_utf8_lossy(&output.expect("setpriv and curl are installed").stdout).into_owned()
    };
    world.gateway.run(curl)
}

#[test]
#[ignore = "requires root and network namespaces"]
fn with_refuse_a_full_disk_blocks_new_connections_at_every_listener_until_a_line_is_written() {
    let world = World::new();
    transparent::nft(&world, transparent::REDIRECT);
    let outgate = start(every_listener(&world), "refuse");
    let mut tunnel = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
    let unspoken = world.guest.tunnel("good.test:443");
    let mut kept = world.guest.proxy();
    let mut neighbours = world.neighbour.tunnel("cdn-ok.test:443").tls("cdn-ok.test").unwrap();
    let request = "GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n";
    kept.say(request);
    assert_eq!(kept.hear("GET").status, 200);
    assert!(redirected(&world).contains(" 200 "));
    assert!(inside_tls(&world).unwrap().contains(" 200 "));

    let mut echoed = Wire::dial(&world.guest.namespace, SocketAddr::new(ODD.into(), 7)).unwrap();
    echoed.say("before");
    assert_eq!(echoed.take_bytes(6), b"before");
    fill(&outgate);
    let begun = Instant::now();
    assert_eq!(world.guest.get("good.test", "/unrecorded").status, 200, "5 s may pass");
    let took = await_failing(&outgate, begun);
    assert!(took >= GRACE, "{took:?}");
    println!("refused after {took:?}");
    let before = (world.internet.seen(GOOD).len(), world.internet.bytes(CDN), world.dns.names().len());

    let (status_line, body) = readyz(&outgate);
    assert_eq!(status_line, 503);
    for word in ["/access.log: No space left", "log_failed", "df -h"] {
        assert!(body.contains(word), "{word}: {body}");
        assert!(status(&outgate).contains(word), "{word}: {}", status(&outgate));
    }
    // Each listener answers in its own protocol.
    let refused = world.guest.get("good.test", "/");
    assert_eq!((refused.status, refused.reason().as_str()), (503, "log_failed"));
    let proxy_status = refused.header("proxy-status").unwrap_or_default().to_owned();
    assert!(proxy_status.contains("proxy_internal_error") && proxy_status.contains("log_failed"), "{proxy_status}");
    assert_eq!(world.guest.connect("good.test:443").0.reason(), "log_failed");
    assert_eq!(world.guest.socks_name("good.test", 443).0, Some(1));
    let inside = inside_tls(&world).unwrap();
    assert!(inside.starts_with("HTTP/1.1 503 ") && inside.contains("log_failed"), "{inside}");
    for address in ["11.0.0.10", "2600:10::10"] {
        let to = SocketAddr::new(address.parse().unwrap(), 443);
        let tls = Wire::dial(&world.guest.namespace, to).unwrap().tls("good.test");
        let tls = tls.and_then(|mut tls| tls.get("good.test", "/").map(|answer| answer.status));
        assert_eq!(tls.unwrap_err().kind(), ErrorKind::ConnectionReset, "a failure and no refusal by policy");
    }
    let mut plain = Wire::dial(&world.guest.namespace, SocketAddr::new(EVIL.into(), 80)).unwrap();
    plain.say("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n");
    assert_eq!(plain.hear("GET").reason(), "log_failed");
    let mut raw = Wire::dial(&world.guest.namespace, SocketAddr::new(ODD.into(), 7)).unwrap();
    assert_eq!(raw.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(world.internet.seen(ODD).len(), 1);
    echoed.say("meanwhile");
    assert_eq!(echoed.take_bytes(9), b"meanwhile");
    let user = redirected(&world);
    assert!(user.starts_with("HTTP/1.1 503 ") && user.contains("log_failed"), "{user}");
    for reply in [world.guest.dns(&query("cdn-ok.test", A)), world.guest.dns_tcp(&query("cdn-ok.test", A))] {
        assert_eq!(reply.code, SERVFAIL, "{reply:?}");
        assert_eq!(reply.extended, Some((14, "log_failed".to_owned())));
    }
    // A request on a connection that was there is new; what the policy refuses keeps its reason.
    kept.say(request);
    assert_eq!(kept.hear("GET").reason(), "log_failed");
    assert_eq!(world.guest.get("evil.test", "/").reason(), "not_whitelisted");
    assert_eq!(world.guest.lookup("evil.test").code, NXDOMAIN);
    let after = (world.internet.seen(GOOD).len(), world.internet.bytes(CDN), world.dns.names().len());
    assert_eq!(before, after, "nobody outside noticed any of it");
    // What was live goes on, this guest's and the neighbour's.
    assert_eq!(tunnel.get("good.test", "/").unwrap().status, 200);
    assert_eq!(neighbours.get("cdn-ok.test", "/").unwrap().status, 200);
    // A tunnel without any bytes so far was allowed before, and its hello is checked again.
    assert_eq!(unspoken.tls("good.test").unwrap().get("good.test", "/").unwrap().status, 200);
    assert!(outgate.counted("failed", "log_failed") >= 7.0);

    make_room(&outgate);
    let begun = Instant::now();
    await_well(&outgate);
    println!("resumed after {:?}, without a guest that came", begun.elapsed());
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(readyz(&outgate), (200, "ok\n".to_owned()));
    world.guest.lookup("good.test").assert_is([GOOD]);
    eventually("the line of the first that was not recorded is there", || lines_with(&outgate, "\"log_failed\"") > 0);
    let errors = outgate.errors();
    assert_eq!(errors.matches("log_failed").count(), 1, "one line at the beginning: {errors}");
    assert_eq!(errors.matches("the access log is well again").count(), 1, "and one at the end: {errors}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn with_continue_traffic_goes_on_and_the_failure_shows() {
    let world = World::new();
    let outgate = start(every_listener(&world), "continue");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    fill(&outgate);
    let begun = Instant::now();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    await_failing(&outgate, begun);
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    world.guest.lookup("cdn-ok.test").assert_is([CDN]);
    let (code, body) = readyz(&outgate);
    assert!(code == 503 && body.contains("goes on unrecorded") && body.contains("df -h"), "{body}");
    assert!(status(&outgate).contains("goes on unrecorded"), "{}", status(&outgate));

    // The key holds with the reload that brings it, both ways, in the midst of the failure.
    set(&outgate, "refuse");
    outgate.signal(Signal::HUP);
    eventually("it is refused", || world.guest.get("good.test", "/").status == 503);
    set(&outgate, "continue");
    outgate.signal(Signal::HUP);
    eventually("it is let through", || world.guest.get("good.test", "/").status == 200);
    assert_eq!(outgate.metric("log_failing", &[]), 1.0);
    make_room(&outgate);
    await_well(&outgate);
    assert_eq!(readyz(&outgate).0, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_log_that_is_reopened_elsewhere_ends_the_failure_and_one_that_cannot_be_opened_is_a_failure() {
    let world = World::new();
    let outgate = start(every_listener(&world), "refuse");
    let link_to = |target: &str| {
        fs::remove_file(outgate.path("access.log")).unwrap();
        symlink(target, outgate.path("access.log")).unwrap();
        outgate.signal(Signal::HUP);
    };
    fill(&outgate);
    let begun = Instant::now();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    await_failing(&outgate, begun);
    assert_eq!(world.guest.get("good.test", "/").status, 503);
    link_to("elsewhere.log");
    await_well(&outgate);
    assert_eq!(world.guest.get("good.test", "/").status, 200);

    // A file system that is read-only: nothing is written where the log should be now.
    let begun = Instant::now();
    link_to("frozen/access.log");
    let took = await_failing(&outgate, begun);
    println!("EROFS: refused after {took:?}");
    assert_eq!(world.guest.get("good.test", "/").reason(), "log_failed");
    let (code, body) = readyz(&outgate);
    assert!(code == 503 && body.contains("Read-only file system") && body.contains("findmnt"), "{body}");
    let mounts = format!("--mount=/proc/{}/ns/mnt", outgate.pid());
    let frozen = outgate.path("frozen");
    let remount = Command::new("nsenter").arg(mounts).args(["mount", "-o", "remount,rw"]).arg(frozen).status();
    assert!(remount.unwrap().success());
    let begun = Instant::now();
    await_well(&outgate);
    println!("EROFS: resumed after {:?}", begun.elapsed());
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    eventually("the log is there", || fs::metadata(seen(&outgate, "frozen/access.log")).is_ok_and(|log| log.len() > 0));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_slow_log_refuses_no_connection_however_many_lines_are_dropped() {
    let world = World::new();
    let setup = every_listener(&world)
        .tables("[limits]\nconnections = 0\nnew_connections_per_second = 0\nrequests_per_second = 0");
    let outgate = start(setup, "refuse");
    // A pipe without a reader accepts nothing and returns no error.
    let fifo = outgate.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    fs::remove_file(outgate.path("access.log")).unwrap();
    symlink("fifo", outgate.path("access.log")).unwrap();
    outgate.signal(Signal::HUP);
    let begun = Instant::now();
    let mut wire = world.guest.proxy();
    let (mut number, mut full) = (0, None);
    while full.is_none_or(|since: Instant| since.elapsed() < GRACE + Duration::from_secs(2)) {
        // Each destination is a line of its own.
        for _ in 0..500 {
            number += 1;
            let host = format!("n{number}-{}.evil.test", "x".repeat(40));
            wire.say(format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(wire.hear("GET").status, 403);
        }
        assert_eq!(world.guest.get("good.test", "/").status, 200);
        if full.is_none() && outgate.metric("log_dropped_total", &[]) > 0.0 {
            full = Some(Instant::now());
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "the queue is never full");
    }
    assert_eq!(outgate.metric("log_failing", &[]), 0.0);
    assert_eq!(outgate.counted("failed", "log_failed"), 0.0);
    assert_eq!(readyz(&outgate).0, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_log_path_that_fails_from_the_start_refuses_and_another_path_ends_that() {
    let world = World::new();
    let outgate = world.setup("good.test\n").write();
    set(&outgate, "refuse");
    let config = fs::read_to_string(outgate.config()).unwrap();
    let place = format!("\"{}\"", outgate.path("access.log").display());
    assert!(config.contains(&place));
    fs::write(outgate.config(), config.replace(&place, "\"/dev/full\"")).unwrap();
    let mut outgate = outgate;
    outgate.launch();
    outgate.await_ready();
    let begun = Instant::now();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    println!("/dev/full: refused after {:?}", await_failing(&outgate, begun));
    assert_eq!(world.guest.get("good.test", "/").reason(), "log_failed");
    fs::write(outgate.config(), config.replace(&place, "\"off\"")).unwrap();
    outgate.signal(Signal::HUP);
    await_well(&outgate);
    assert_eq!(world.guest.get("good.test", "/").status, 200);
}
