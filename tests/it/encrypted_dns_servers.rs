//! DNS over TLS and over HTTPS towards upstream servers, with a server of another make: unbound in the internet of
//! the world. The tests check what it and the plain DNS server were asked.

use crate::world::outgate::{Outgate, Setup};
use crate::world::{ODD, World, eventually, pki};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The name on the server's certificate.
const NAME: &str = "dns.example";

/// unbound at ODD, for TLS on port 853 and HTTPS on port 443; it ends when dropped.
struct Unbound {
    dir: TempDir,
    child: Option<Child>,
}

impl Unbound {
    fn start(world: &World) -> Unbound {
        let mut unbound =
            Unbound { dir: tempfile::Builder::new().prefix("outgate-dot-").tempdir().unwrap(), child: None };
        pki::install(unbound.dir.path(), NAME);
        let dir = unbound.dir.path().display();
        let config = format!(
            "server:\n directory: \"{dir}\"\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n use-syslog: no\n\
             logfile: \"{dir}/log\"\n log-queries: yes\n num-threads: 1\n module-config: \"iterator\"\n\
             interface: {ODD}@853\n interface: {ODD}@443\n tls-port: 853\n https-port: 443\n\
             tls-service-key: \"key.pem\"\n tls-service-pem: \"cert.pem\"\n access-control: 0.0.0.0/0 allow\n\
             local-zone: \"test.\" static\n local-data: \"good.test. 60 IN A 11.0.0.10\"\n\
             local-zone: \"good.test.\" redirect\nremote-control:\n control-enable: no\n"
        );
        fs::write(unbound.path("unbound.conf"), config).unwrap();
        unbound.launch(world);
        unbound
    }

    fn launch(&mut self, world: &World) {
        let mut command = Command::new("unbound");
        command.arg("-d").arg("-c").arg(self.path("unbound.conf")).stdin(Stdio::null()).stderr(Stdio::null());
        self.child = Some(world.internet.run(|| command.spawn()).expect("unbound is installed"));
        let at = SocketAddr::from((ODD, 853));
        eventually("unbound listens", || world.internet.run(|| TcpStream::connect(at)).is_ok());
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How often it was asked for a name that begins so.
    fn asked(&self, name: &str) -> usize {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(&format!(" {name}")) && line.contains(" IN")).count()
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A daemon that asks these servers and trusts the authority of `unbound`.
fn trusting(setup: Setup, unbound: &Unbound, servers: &[&str]) -> Outgate {
    let servers: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    let mut outgate = setup.resolver(&format!("servers = [{}]", servers.join(", "))).write();
    outgate.run_in("SSL_CERT_FILE", unbound.path("ca.pem"));
    outgate.launch();
    outgate.await_ready();
    outgate
}

/// The connections that the daemon has to the server.
fn connections(world: &World) -> usize {
    let list =
        world.gateway.run(|| Command::new("ss").args(["-Htn", "state", "established", "dst", "11.0.0.30"]).output());
    String::from_utf8(list.unwrap().stdout).unwrap().lines().count()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn names_are_looked_up_over_tls_and_nothing_in_clear() {
    let world = World::new();
    for server in ["tls://11.0.0.30#dns.example", "https://11.0.0.30/dns-query#dns.example"] {
        let unbound = Unbound::start(&world);
        let outgate = trusting(world.setup(".good.test\n"), &unbound, &[server]);
        for n in 0..10 {
            assert_eq!(world.guest.get(&format!("n{n}.good.test"), "/").status, 200, "{server}: {}", outgate.errors());
        }
        assert!((0..10).all(|n| unbound.asked(&format!("n{n}.good.test")) >= 1), "{server}");
        assert_eq!(world.guest.get("none.good.test.example", "/").reason(), "not_whitelisted");
        // A and AAAA of the first name are asked for at once, and each may find no connection yet.
        let kept = connections(&world);
        assert!((1..=2).contains(&kept), "{server}: {kept} connections for all names");
    }
    assert!(world.dns.log().is_empty(), "{:?}", world.dns.log());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_server_with_another_name_or_an_untrusted_certificate_is_not_asked() {
    let world = World::new();
    let unbound = Unbound::start(&world);
    for server in ["tls://11.0.0.30#other.example", "https://11.0.0.30/dns-query#other.example"] {
        let outgate = trusting(world.setup(".good.test\n"), &unbound, &[server]);
        assert_eq!(world.guest.get("a.good.test", "/").reason(), "resolve_failed", "{server}");
        eventually("the log says why", || outgate.errors().contains("certificate is not valid"));
        assert!(outgate.errors().contains("not valid for name"), "{}", outgate.errors());
    }
    {
        let outgate = trusting(world.setup(".good.test\n"), &unbound, &["tls://11.0.0.30#other.example", "11.0.0.53"]);
        assert_eq!(world.guest.get("b.good.test", "/").status, 200, "the next server is asked: {}", outgate.errors());
        assert!(world.dns.count("b.good.test", 1) >= 1);
    }
    // The authority of the test is none of this machine's.
    let servers = "servers = [\"tls://11.0.0.30#dns.example\"]";
    let mut outgate = world.setup(".good.test\n").resolver(servers).write();
    outgate.run_in("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt");
    outgate.launch();
    outgate.await_ready();
    assert_eq!(world.guest.get("c.good.test", "/").reason(), "resolve_failed");
    assert_eq!((unbound.asked("a.good.test"), unbound.asked("c.good.test")), (0, 0));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_server_that_is_killed_and_started_again_is_asked_again() {
    let world = World::new();
    for server in ["tls://11.0.0.30#dns.example", "https://11.0.0.30/dns-query#dns.example"] {
        let mut unbound = Unbound::start(&world);
        let outgate = trusting(world.setup(".good.test\n"), &unbound, &[server]);
        assert_eq!(world.guest.get("a.good.test", "/").status, 200, "{}", outgate.errors());
        unbound.kill();
        assert_eq!(world.guest.get("b.good.test", "/").reason(), "resolve_failed", "{server}");
        unbound.launch(&world);
        let mut n = 0;
        eventually("it is asked again", || {
            n += 1;
            world.guest.get(&format!("c{n}.good.test"), "/").status == 200
        });
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn no_request_fails_under_load_when_the_first_server_stops_and_returns() {
    let world = World::new();
    for server in ["tls://11.0.0.30#dns.example", "https://11.0.0.30/dns-query#dns.example"] {
        let mut unbound = Unbound::start(&world);
        let outgate = trusting(world.setup(".good.test\n"), &unbound, &[server, "11.0.0.53"]);
        for n in 0..150 {
            match n {
                50 => unbound.kill(),
                100 => unbound.launch(&world),
                _ => {}
            }
            let name = format!("l{n}.good.test");
            assert_eq!(world.guest.get(&name, "/").status, 200, "{server} {name}: {}", outgate.errors());
        }
        assert!(unbound.asked("l0.good.test") >= 1 && world.dns.count("l60.good.test", 1) >= 1);
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_encrypted_server_without_trusted_authorities_is_an_error_that_says_what_to_do() {
    let world = World::new();
    let servers = "servers = [\"tls://11.0.0.30#dns.example\"]";
    let mut outgate = world.setup("good.test\n").resolver(servers).write();
    let empty = outgate.path("empty.pem");
    fs::write(&empty, "").unwrap();
    outgate.run_in("SSL_CERT_FILE", empty);
    outgate.run_in("SSL_CERT_DIR", "/nonexistent");
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    assert!(
        outgate.errors().contains("install ca-certificates, or name a file with SSL_CERT_FILE"),
        "{}",
        outgate.errors()
    );
}
