//! The proxy inside TLS: everything that the one in clear does, guests that are known by their certificates, and what
//! never becomes a connection.

use crate::world::Raise;
use crate::world::client::{Get, Tls, Wire};
use crate::world::http::{digest, pattern, read_response};
use crate::world::outgate::{Outgate, Setup};
use crate::world::pki::{Whose, client_as};
use crate::world::{GOOD, ODD, World, eventually, pki};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use std::fs;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The listener.
const PROXY_TLS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(crate::world::GATEWAY), 3443);
/// The name on the daemon's certificate.
const NAME: &str = "gateway.test";

/// Two guests: one that also has an address, and one that only its certificate identifies.
const GUESTS: &str = "
[[guest]]
name = \"vm-2\"
addresses = [\"10.42.42.2\"]
whitelist = [\"vm-2.rules\"]

[[guest]]
name = \"vm-9\"
whitelist = [\"vm-9.rules\"]
";

fn setup(world: &World, rules: &str, more: &str) -> Setup {
    let listen = "proxy = [\"10.42.42.1:3128\"]\nproxy_tls = [\"10.42.42.1:3443\"]";
    let tls = format!("[tls]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"\n{more}");
    world.setup(rules).listen(listen).tables(&tls)
}

fn with_guests(world: &World) -> Setup {
    let files = [("vm-2.rules", "good.test\n"), ("vm-9.rules", "cdn-ok.test\ntcp://odd.test:22\n")];
    let setup = setup(world, "", "client_ca = \"tls/ca.pem\"\n").tables(GUESTS);
    files.into_iter().fold(setup, |setup, (name, rules)| setup.file(name, rules))
}

/// Puts a new certificate for the daemon in place, and its authority for clients.
fn certify(outgate: &Outgate) {
    pki::install(&outgate.path("tls"), NAME);
}

fn start(setup: Setup) -> Outgate {
    let mut outgate = setup.write();
    certify(&outgate);
    outgate.launch();
    outgate.await_ready();
    outgate
}

fn dial(guest: &crate::world::client::Guest) -> Wire {
    Wire::dial(&guest.namespace, PROXY_TLS).expect("the listener accepts")
}

/// A guest's connection to the proxy, by whose certificate it shows.
fn enter(guest: &crate::world::client::Guest, whose: Whose<'_>) -> io::Result<Tls> {
    enter_with(guest, client_as(whose, &[&TLS12, &TLS13]))
}

fn enter_with(guest: &crate::world::client::Guest, config: impl Into<Arc<ClientConfig>>) -> io::Result<Tls> {
    dial(guest).tls_with(config.into(), NAME, |hello| vec![hello])
}

/// Status and reason of a plain request through the proxy.
fn get(proxy: &mut Tls, host: &str) -> io::Result<(u16, String)> {
    write!(proxy, "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
    let response = read_response(&mut BufReader::new(proxy), "GET")?;
    Ok((response.status, if response.status == 200 { String::new() } else { response.reason() }))
}

/// A tunnel; it must be granted.
fn tunnel(mut proxy: Tls, target: &str) -> Tls {
    write!(proxy, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        proxy.read_exact(&mut byte).expect("an answer to CONNECT");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    proxy
}

/// The status of an https request inside a tunnel.
fn https(tunnel: Tls, host: &str) -> u16 {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let inner = ClientConnection::new(pki::client(), name).unwrap();
    let mut inner = StreamOwned::new(inner, tunnel);
    write!(inner, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    read_response(&mut BufReader::new(&mut inner), "GET").unwrap().status
}

fn refused(outgate: &Outgate, reason: &str) -> f64 {
    outgate.metric("tls_handshakes_refused_total", &[("listener", "proxy_tls"), ("reason", reason)])
}

#[test]
#[ignore = "requires root and network namespaces"]
fn everything_the_proxy_does_it_does_inside_tls_1_2_and_1_3() {
    let world = World::new();
    let outgate = start(setup(&world, "good.test\n", ""));
    for version in [&TLS12, &TLS13] {
        let enter = || enter_with(&world.guest, client_as(Whose::Nobodys, &[version])).unwrap();
        let mut proxy = enter();
        assert_eq!(get(&mut proxy, "good.test").unwrap().0, 200);
        assert_eq!(proxy.conn.protocol_version(), Some(version.version));
        assert_eq!(
            get(&mut proxy, "evil.test").unwrap(),
            (403, "not_whitelisted".to_owned()),
            "and the next is judged"
        );
        assert_eq!(get(&mut proxy, "good.test").unwrap().0, 200);
        assert_eq!(https(tunnel(enter(), "good.test:443"), "good.test"), 200);
        let mut socks = enter();
        socks.write_all(&[5, 1, 0]).unwrap();
        let mut answer = [0; 2];
        socks.read_exact(&mut answer).unwrap();
        socks.write_all(&[&[5, 1, 0, 3, 9][..], b"good.test", &443_u16.to_be_bytes()].concat()).unwrap();
        let mut reply = [0; 10];
        socks.read_exact(&mut reply).unwrap();
        assert_eq!((answer, reply[1]), ([5, 0], 0));
        assert_eq!(https(socks, "good.test"), 200);
    }
    // A name inside the tunnel that is not the tunnel's.
    let name = ServerName::try_from("evil.test".to_owned()).unwrap();
    let inner = ClientConnection::new(pki::client(), name).unwrap();
    let proxy = enter(&world.guest, Whose::Nobodys).unwrap();
    let mut inner = StreamOwned::new(inner, tunnel(proxy, "good.test:443"));
    let error = inner.write_all(b"x").and_then(|()| inner.flush()).and_then(|()| inner.read(&mut [0]).map(drop));
    assert!(error.unwrap_err().to_string().contains("AccessDenied"));
    outgate.await_counted("denied", "name_mismatch", 1.0);
    let line = outgate.await_log(&[("name", "evil.test"), ("reason", "not_whitelisted")]);
    assert_eq!((line["listener"].as_str(), line["guest"].as_str()), (Some("proxy"), None));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn http_1_1_is_the_only_protocol_that_is_agreed_on() {
    let world = World::new();
    let outgate = start(setup(&world, "good.test\n", ""));
    let offering = |protocols: &[&[u8]]| {
        let mut config = client_as(Whose::Nobodys, &[&TLS12, &TLS13]);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        enter_with(&world.guest, config)
    };
    let mut both = offering(&[b"h2", b"http/1.1"]).unwrap();
    assert_eq!(get(&mut both, "good.test").unwrap().0, 200);
    assert_eq!(both.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let error = offering(&[b"h2"]).err().unwrap().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    eventually("it is counted", || refused(&outgate, "protocol") == 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_certificate_names_the_guest_and_takes_precedence_over_the_address() {
    let world = World::new();
    let outgate = start(with_guests(&world));
    let ask = |guest, whose, host| get(&mut enter(guest, whose).unwrap(), host).unwrap();
    let refusal = |reason: &str| (403, reason.to_owned());
    // At vm-2's address, by another's certificate.
    assert_eq!(ask(&world.guest, Whose::Of("vm-9"), "cdn-ok.test").0, 200);
    assert_eq!(ask(&world.guest, Whose::Of("vm-9"), "good.test"), refusal("not_whitelisted"));
    // And the reverse; the first dNSName counts, or the CN where there is none.
    assert_eq!(ask(&world.neighbour, Whose::Named(&["vm-2", "vm-9"], "vm-9"), "good.test").0, 200);
    assert_eq!(ask(&world.neighbour, Whose::Named(&[], "vm-2"), "cdn-ok.test"), refusal("not_whitelisted"));
    // Nobody declared this one, so vm-2's address does not make it vm-2.
    assert_eq!(ask(&world.guest, Whose::Of("vm-77"), "good.test"), refusal("unknown_guest"));
    // The listener in clear knows only addresses.
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.neighbour.get("good.test", "/").reason(), "unknown_guest");
    assert_eq!(
        https(tunnel(enter(&world.neighbour, Whose::Of("vm-9")).unwrap(), "cdn-ok.test:443"), "cdn-ok.test"),
        200
    );
    for (guest, verdict, count) in [("vm-2", "allowed", 2.0), ("vm-9", "allowed", 2.0), ("vm-9", "denied", 1.0)] {
        let labels = [("guest", guest), ("verdict", verdict)];
        eventually("flows are counted by guest", || outgate.metric("guest_connections_total", &labels) == count);
    }
    let line = outgate.await_log(&[("guest", "vm-9"), ("name", "good.test"), ("reason", "not_whitelisted")]);
    assert!(line["source"].as_str().unwrap().starts_with("10.42.42.2:"), "{line}");
    outgate.await_log(&[("guest", "vm-77"), ("reason", "unknown_guest")]);
    assert_eq!(outgate.metric("guest_connections_total", &[("guest", "vm-77")]), 0.0, "no series of its own");
    world.assert_asked_only(&["cdn-ok.test", "good.test"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_without_a_good_certificate_is_refused_and_counted_by_reason_and_no_other_notices() {
    let world = World::new();
    let outgate = start(with_guests(&world));
    let mut held = enter(&world.guest, Whose::Of("vm-2")).unwrap();
    let cases = [
        (Whose::Nobodys, "no_client_certificate", "CertificateRequired"),
        (Whose::Expired("vm-2"), "client_certificate_expired", "CertificateExpired"),
        (Whose::Strange("vm-2"), "client_certificate_untrusted", "UnknownCA"),
        (Whose::Named(&["*.vm.test"], "vm-2"), "client_certificate_unnamed", "AccessDenied"),
        (Whose::Named(&[], ""), "client_certificate_unnamed", "AccessDenied"),
        (Whose::Crowded("vm-2"), "client_certificate", "CertificateUnknown"),
        (Whose::Named(&[], "vm 2"), "client_certificate_unnamed", "AccessDenied"),
    ];
    for (whose, reason, alert) in cases {
        for version in [&TLS12, &TLS13] {
            let before = refused(&outgate, reason);
            // In TLS 1.3 a client takes the handshake for done before its certificate was looked at.
            let tried = enter_with(&world.guest, client_as(whose, &[version]));
            let error = tried.and_then(|mut proxy| get(&mut proxy, "good.test")).unwrap_err();
            assert!(error.to_string().contains(alert), "{reason}: {error}");
            eventually("it is counted", || refused(&outgate, reason) == before + 1.0);
        }
    }
    assert!(outgate.errors().contains("a TLS handshake failed listener=\"proxy_tls\" peer=\"10.42.42.2:"));
    assert_eq!(get(&mut held, "good.test").unwrap().0, 200);
    assert_eq!(world.internet.requests(GOOD).len(), 1);
    world.assert_asked_only(&["good.test"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bytes_that_are_not_a_handshake_are_answered_or_ended_within_the_deadline() {
    let world = World::new();
    let outgate = start(setup(&world, "good.test\n", "").tables("[limits]\nhandshake_timeout_ms = 2000"));
    let mut clear = dial(&world.guest);
    clear.say("CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n");
    let told = clear.hear("CONNECT");
    assert_eq!(told.status, 400);
    assert!(told.text().contains("TLS is spoken on this port"), "{}", told.text());
    let mut socks = dial(&world.guest);
    socks.say([5, 1, 0]);
    assert!(socks.is_over());
    eventually("both are counted", || refused(&outgate, "not_tls") == 2.0);
    // A hello that names a handshake record and is none.
    let mut garbage = dial(&world.guest);
    garbage.say([22, 3, 1, 0, 4, 9, 9, 9, 9]);
    assert!(garbage.is_over());
    // Half a hello, a whole one and no more, and nothing at all: two of them never say another word.
    let (mut half, mut silent) = (dial(&world.guest), dial(&world.guest));
    half.say([22, 3, 1, 2, 0, 1, 0]);
    let name = ServerName::try_from(NAME).unwrap();
    let mut connection = ClientConnection::new(pki::client(), name).unwrap();
    let mut stuck = dial(&world.guest);
    connection.write_tls(&mut stuck).unwrap();
    let mut other = enter(&world.neighbour, Whose::Nobodys).unwrap();
    assert_eq!(get(&mut other, "good.test").unwrap().0, 200);
    assert!(half.is_over() && silent.is_over() && stuck.is_over());
    eventually("all three run out of time", || refused(&outgate, "timeout") == 3.0);
    assert_eq!(get(&mut other, "good.test").unwrap().0, 200);
    eventually("none of them has a place left", || outgate.metric("active_connections", &[]) == 1.0);
    // A hello of one byte at a time is one.
    let config = pki::client();
    let cut = |hello: Vec<u8>| hello.chunks(1).map(<[u8]>::to_vec).collect();
    let mut slow = dial(&world.guest).tls_with(config, NAME, cut).unwrap();
    assert_eq!(get(&mut slow, "good.test").unwrap().0, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn large_transfers_pass_both_ways_at_any_speed_and_each_end_is_passed_on() {
    let world = World::new();
    world.internet.echo((ODD, 22));
    let outgate = start(setup(&world, "good.test\ntcp://odd.test:22\n", ""));
    let sent = pattern(12 << 20);
    for version in [&TLS12, &TLS13] {
        let config = client_as(Whose::Nobodys, &[version]);
        let mut proxy = tunnel(enter_with(&world.guest, config).unwrap(), "odd.test:22");
        let (mut got, mut at) = (Vec::new(), 0);
        // Written faster than it is read, so that both sides have to wait for each other.
        while at < sent.len() {
            let end = (at + (1 << 20)).min(sent.len());
            proxy.write_all(&sent[at..end]).unwrap();
            at = end;
            let mut part = vec![0; 600_000];
            proxy.read_exact(&mut part).unwrap();
            got.extend(part);
        }
        proxy.conn.send_close_notify();
        proxy.conn.complete_io(&mut proxy.sock).unwrap();
        // rustls takes an end that was not announced for an error.
        proxy.read_to_end(&mut got).unwrap();
        assert_eq!((got.len(), digest(1, &got)), (sent.len(), digest(1, &sent)));
    }
    outgate.await_counted("allowed", "none", 2.0);
    // A slow reader of plain HTTP gets the last byte too, and the connection goes on.
    let mut proxy = enter(&world.guest, Whose::Nobodys).unwrap();
    for length in [3 << 20, 17] {
        write!(proxy, "GET http://good.test/bytes/{length} HTTP/1.1\r\nHost: good.test\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let response = read_response(&mut BufReader::with_capacity(1, &mut proxy), "GET").unwrap();
        assert_eq!((response.status, response.body.len()), (200, length));
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_stream_that_is_cut_is_not_passed_on_as_one_that_ended() {
    let world = World::new();
    let ends: Arc<Mutex<Vec<Result<usize, ErrorKind>>>> = Arc::default();
    let seen = Arc::clone(&ends);
    world.internet.serve((ODD, 22), move |mut tap| {
        let mut all = Vec::new();
        let end = tap.read_to_end(&mut all).map_err(|error| error.kind());
        seen.lock().unwrap().push(end);
    });
    let _outgate = start(setup(&world, "tcp://odd.test:22\n", ""));
    for (announced, end) in [(true, Ok(5)), (false, Err(ErrorKind::ConnectionReset))] {
        let mut proxy = tunnel(enter(&world.guest, Whose::Nobodys).unwrap(), "odd.test:22");
        proxy.write_all(b"\0\x01\x02\x03\x04").unwrap();
        if announced {
            proxy.conn.send_close_notify();
            proxy.flush().unwrap();
        }
        proxy.sock.finish();
        eventually("the origin sees an end", || !ends.lock().unwrap().is_empty());
        assert_eq!(ends.lock().unwrap().pop(), Some(end));
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_has_its_limits_by_its_certificate_wherever_it_comes_from() {
    let world = World::new();
    let outgate = start(with_guests(&world).tables("[limits]\nconnections = 3"));
    let open = |whose| {
        let mut proxy = enter(&world.guest, whose)?;
        let host = if matches!(whose, Whose::Of("vm-2")) { "good.test" } else { "cdn-ok.test" };
        get(&mut proxy, host).map(|answer| (answer, proxy))
    };
    let mut held = Vec::new();
    for whose in [Whose::Of("vm-2"), Whose::Of("vm-9")] {
        for _ in 0..3 {
            let (answer, proxy) = open(whose).unwrap();
            assert_eq!(answer.0, 200);
            held.push(proxy);
        }
        assert_eq!(open(whose).unwrap().0, (429, "limit_connections".to_owned()));
    }
    outgate.await_log(&[("guest", "vm-9"), ("reason", "limit_connections")]);
    // Those that are not yet inside are counted by their address, apart from the flows of whoever has that. One too
    // many gets no handshake.
    let mut silent: Vec<Wire> = (0..3).map(|_| dial(&world.guest)).collect();
    // The kernel has accepted them. The daemon may take this one before the last of them, which it then refuses:
    // whenever this one gets in, there is room for another.
    eventually("one too many is refused", || match enter(&world.guest, Whose::Of("vm-2")) {
        Ok(_) => {
            silent.push(dial(&world.guest));
            false
        }
        Err(error) => error.to_string().contains("AccessDenied"),
    });
    drop((held, silent));
    eventually("places are given back", || open(Whose::Of("vm-2")).is_ok_and(|(answer, _)| answer.0 == 200));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_reload_ends_what_a_certified_guest_may_no_longer_reach_and_a_guest_that_is_gone() {
    let world = World::new();
    world.internet.echo((ODD, 22));
    let outgate = start(with_guests(&world));
    let open = |whose| tunnel(enter(&world.neighbour, whose).unwrap(), "odd.test:22");
    let is_over = |proxy: &mut Tls| proxy.read(&mut [0]).is_err();
    let mut first = open(Whose::Of("vm-9"));
    first.write_all(b"\0").unwrap();
    first.read_exact(&mut [0]).unwrap();
    let mut other = enter(&world.neighbour, Whose::Of("vm-2")).unwrap();
    assert_eq!(get(&mut other, "good.test").unwrap().0, 200);
    fs::write(outgate.whitelist().join("vm-9.rules"), "cdn-ok.test\n").unwrap();
    assert!(is_over(&mut first));
    outgate.await_counted("denied", "revoked", 1.0);
    fs::write(outgate.whitelist().join("vm-9.rules"), "tcp://odd.test:22\n").unwrap();
    let mut second = None;
    eventually("it is allowed again", || {
        let mut proxy = enter(&world.neighbour, Whose::Of("vm-9")).unwrap();
        write!(proxy, "CONNECT odd.test:22 HTTP/1.1\r\nHost: odd.test:22\r\n\r\n").unwrap();
        let granted = read_response(&mut BufReader::new(&mut proxy), "CONNECT").unwrap().status == 200;
        second = Some(proxy);
        granted
    });
    let config = fs::read_to_string(outgate.config()).unwrap();
    let at = config.find("[[guest]]\nname = \"vm-9\"").unwrap();
    fs::write(outgate.config(), &config[..at]).unwrap();
    fs::remove_file(outgate.whitelist().join("vm-9.rules")).unwrap();
    outgate.signal(rustix::process::Signal::HUP);
    assert!(is_over(&mut second.unwrap()));
    assert_eq!(get(&mut other, "good.test").unwrap().0, 200, "the other guest does not notice");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_idle_connection_ends_with_close_notify_at_a_stop() {
    let world = World::new();
    let mut outgate = start(setup(&world, "good.test\n", ""));
    let mut kept = enter(&world.guest, Whose::Nobodys).unwrap();
    assert_eq!(get(&mut kept, "good.test").unwrap().0, 200);
    outgate.signal(rustix::process::Signal::TERM);
    assert_eq!(
        kept.read_to_end(&mut Vec::new()).unwrap(),
        0,
        "rustls takes an end that was not announced for an error"
    );
    assert!(outgate.ended().success());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_session_is_resumed_only_without_client_certificates() {
    let world = World::new();
    for (more, whose, kind) in [
        ("", Whose::Nobodys, HandshakeKind::Resumed),
        ("client_ca = \"tls/ca.pem\"\n", Whose::Of("vm-2"), HandshakeKind::Full),
    ] {
        let _outgate = start(setup(&world, "good.test\n", more));
        for version in [&TLS12, &TLS13] {
            let config = Arc::new(client_as(whose, &[version]));
            for kind in [HandshakeKind::Full, kind] {
                let mut proxy = enter_with(&world.guest, Arc::clone(&config)).unwrap();
                assert_eq!(get(&mut proxy, "good.test").unwrap().0, 200);
                assert_eq!(proxy.conn.handshake_kind(), Some(kind), "{more}");
            }
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn certificates_are_replaced_under_load_without_a_failure() {
    let world = World::new();
    let outgate = start(setup(&world, "good.test\n", "").tables("[limits]\nnew_connections_per_second = 0"));
    let (stop, done, failed) = (AtomicBool::new(false), AtomicU32::new(0), Mutex::new(None));
    std::thread::scope(|scope| {
        let _raise = Raise(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match enter(&world.guest, Whose::Nobodys).and_then(|mut proxy| get(&mut proxy, "good.test")) {
                        Ok((200, _)) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        other => *failed.lock().unwrap() = Some(other),
                    }
                }
            });
        }
        for round in 1..=3 {
            certify(&outgate);
            let taken = || outgate.errors().matches("a new certificate is in use").count() >= round;
            eventually("the new pair is in use", taken);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(failed.lock().unwrap().is_none(), "{:?}", failed.lock().unwrap());
    assert!(done.load(Ordering::Relaxed) > 10);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn explain_knows_a_guest_without_an_address_by_its_name() {
    let world = World::new();
    let outgate = start(with_guests(&world));
    let config = outgate.config();
    let explain = |guest: &str, url: &str| {
        let done = outgate.command(&["explain", "--config", config.to_str().unwrap(), "--guest", guest, url]).output();
        done.unwrap().status.code()
    };
    assert_eq!(explain("vm-9", "https://cdn-ok.test"), Some(0), "a guest without an address");
    assert_eq!(explain("vm-9", "https://good.test"), Some(1));
    assert_eq!(explain("vm-2", "https://good.test"), Some(0));
    let mut proxy = enter(&world.neighbour, Whose::Of("vm-9")).unwrap();
    assert_eq!(proxy.get("good.test", "/").unwrap().status, 400, "no proxy's request");
}
