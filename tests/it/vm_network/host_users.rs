//! Sockets of the gateway's own users.

use crate::world::dns::A;
use crate::world::guarded_network::{GuardedNetwork, STRANGER, STRANGER6};
use crate::world::stub_resolver::{framed, query, read_framed, receive};
use crate::world::{EVIL, GOOD, eventually};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_uid};
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

const NOBODY: u32 = 65534;

/// Runs `work` in the gateway as a user that the firewall redirects.
fn as_nobody<T: Send>(network: &GuardedNetwork, work: impl FnOnce() -> T + Send) -> T {
    network.net.gateway.run(|| {
        // Only for this thread, which ends with the work.
        set_thread_gid(Gid::from_raw(NOBODY)).expect("root may");
        set_thread_uid(Uid::from_raw(NOBODY)).expect("root may");
        work()
    })
}

/// Status (000 for none) and exit code of the user's curl, which finds `host` at `address`.
fn curl(network: &GuardedNetwork, scheme: &str, host: &str, address: &str) -> (String, i32) {
    let port = if scheme == "https" { 443 } else { 80 };
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sSk", "-m", "20", "-o", "/dev/null"]);
    command.args(["-w", "%{http_code}", "--resolve", &format!("{host}:{port}:{address}")]);
    command.arg(format!("{scheme}://{host}/hi"));
    let output = network.net.gateway.run(|| command.output()).expect("setpriv and curl are installed");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap_or(-1))
}

#[test]
#[ignore = "requires root and network namespaces"]
fn sockets_of_a_host_user_are_filtered_and_outgates_own_are_not_redirected() {
    let network = GuardedNetwork::new();
    let listen = "proxy = []\nredirect = [\"127.0.0.1:3130\", \"[::1]:3130\"]\ndns = [\"127.0.0.1:5353\"]";
    let setup = network.bare("good.test\n").listen(listen);
    let outgate = network.start(setup.tables("[firewall]\nhost_users = [\"nobody\"]\n"));
    let told = |status: &str, code| (status.to_owned(), code);
    for evil in ["11.0.0.66", "[2600:10::66]"] {
        assert_eq!(curl(&network, "http", "good.test", evil), told("200", 0), "{evil}");
        assert_eq!(curl(&network, "https", "good.test", evil), told("200", 0), "{evil}");
        assert_eq!(curl(&network, "http", "evil.test", evil), told("403", 0), "{evil}");
        // 35: the handshake failed.
        assert_eq!(curl(&network, "https", "evil.test", evil), told("000", 35), "{evil}");
    }
    eventually("all are counted", || outgate.metric("active_connections", &[]) == 0.0);
    let count = |verdict| outgate.metric("connections_total", &[("listener", "redirect"), ("verdict", verdict)]);
    assert_eq!((count("allowed"), count("denied"), count("failed")), (4.0, 4.0, 0.0), "no flow of outgate's own");

    let server = SocketAddr::new(STRANGER.into(), 53);
    for (name, allowed) in [("good.test", true), ("evil.test", false)] {
        let question = query(name, A).bytes();
        let over_udp = as_nobody(&network, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            socket.send(&question).unwrap();
            receive(&socket).expect("a reply")
        });
        let over_tcp = as_nobody(&network, || {
            let mut stream = TcpStream::connect(server).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
            stream.write_all(&framed(&question)).unwrap();
            read_framed(&mut stream).expect("a reply")
        });
        for reply in [over_udp, over_tcp] {
            if allowed {
                reply.assert_is([GOOD]);
            } else {
                reply.assert_blocked("not_whitelisted");
            }
        }
    }
    for to in [IpAddr::from(EVIL), STRANGER.into(), STRANGER6.into()] {
        let port = if to.is_ipv6() { 53 } else { 443 };
        let outcome = as_nobody(&network, || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect((to, port))?;
            socket.set_read_timeout(Some(Duration::from_secs(15)))?;
            socket.send(b"leak")?;
            socket.recv(&mut [0; 16])
        });
        let error = outcome.expect_err("it is refused");
        assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{to}: {error}");
    }
    network.assert_no_leaks();
}
