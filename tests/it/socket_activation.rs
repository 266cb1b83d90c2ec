//! Started by a service manager: listeners that are handed over and outlive the daemon, restarts that
//! refuse nobody, and what the manager is told.

use crate::world::Raise;
use crate::world::client::{Guest, Wire};
use crate::world::outgate::Outgate;
use crate::world::service_manager::ServiceManager;
use crate::world::{ADMIN, GOOD, PROXY, World, eventually};
use socket2::Type;
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The longest wait of a connection while the daemon restarts.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

fn activated(world: &World, rules: &str, count: usize) -> Outgate {
    let mut outgate = world.setup(rules).write();
    let mut manager = ServiceManager::listen(&world.gateway, &[PROXY], count);
    manager.add(&world.gateway, ADMIN, Type::STREAM, false);
    outgate.managed(manager);
    outgate.launch();
    outgate.await_ready();
    outgate
}

#[test]
#[ignore = "requires root and network namespaces"]
fn every_socket_that_is_handed_over_is_served() {
    let world = World::new();
    for count in [1, 2, 5] {
        let mut outgate = activated(&world, "good.test\n", count);
        // The kernel deals connections out over the sockets: all of them must be served.
        for _ in 0..40 {
            assert_eq!(world.guest.get("good.test", "/").status, 200, "{count} sockets");
        }
        assert_eq!(world.guest.get("evil.test", "/").status, 403);
        assert!(outgate.stop().success());
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn dns_sockets_are_handed_over_for_udp_and_tcp() {
    let world = World::new();
    let address = "10.42.42.1:53";
    let listen = format!("proxy = []\ndns = [\"{address}\"]");
    let mut outgate = world.setup("good.test\n").listen(&listen).write();
    let mut manager = ServiceManager::listen(&world.gateway, &[ADMIN, address], 1);
    manager.add(&world.gateway, address, Type::DGRAM, false);
    outgate.managed(manager);
    outgate.launch();
    outgate.await_ready();
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x04test\x00\x00\x01\x00\x01";
    let answer = world.guest.namespace.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        socket.send_to(query, address).unwrap();
        let mut answer = [0; 512];
        let (length, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(from.to_string(), address);
        answer[..length].to_vec()
    });
    assert!(answer.ends_with(&GOOD.octets()), "{answer:?}");
    let mut wire = Wire::dial(&world.guest.namespace, address.parse::<SocketAddr>().unwrap()).unwrap();
    let length = u16::try_from(query.len()).unwrap().to_be_bytes();
    wire.say([&length[..], query].concat());
    let length = wire.take_bytes(2);
    let answer = wire.take_bytes(usize::from(u16::from_be_bytes([length[0], length[1]])));
    assert!(answer.ends_with(&GOOD.octets()), "{answer:?}");
    assert!(outgate.stop().success());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_listener_that_no_socket_holds_is_named_with_the_command() {
    let world = World::new();
    let listen = format!("proxy = [\"{PROXY}\", \"10.42.42.1:8080\"]\ntransparent = [\"0.0.0.0:3129\"]");
    let mut outgate = world.setup("good.test\n").listen(&listen).write();
    outgate.managed(ServiceManager::listen(&world.gateway, &[PROXY, ADMIN], 1));
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    let errors = outgate.errors();
    for part in [
        "no socket unit listens on 10.42.42.1:8080, which [listen].proxy has",
        "no socket unit listens on 0.0.0.0:3129, which [listen].transparent has",
        "Run `outgate listen apply` as root, or take the address out of the configuration.",
    ] {
        assert!(errors.contains(part), "{part:?} is not in:\n{errors}");
    }
    assert!(!errors.contains("[listen].admin"), "{errors}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn only_the_transparent_listener_has_a_transparent_socket() {
    let world = World::new();
    for (key, transparent, missing) in [("transparent", false, "Transparent=yes"), ("redirect", true, "Transparent=no")]
    {
        let mut outgate = world.setup("good.test\n").listen(&format!("proxy = []\n{key} = [\"0.0.0.0:3129\"]")).write();
        let mut manager = ServiceManager::listen(&world.gateway, &[ADMIN], 1);
        manager.add(&world.gateway, "0.0.0.0:3129", Type::STREAM, transparent);
        outgate.managed(manager);
        outgate.launch();
        assert_eq!(outgate.ended().code(), Some(1));
        assert!(outgate.errors().contains(missing), "{}", outgate.errors());
        assert!(outgate.errors().contains(&format!("outgate-{key}.socket")), "{}", outgate.errors());
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_connection_to_a_socket_without_a_listener_is_reset_at_once() {
    let world = World::new();
    let mut outgate = world.setup("good.test\n").write();
    outgate.managed(ServiceManager::listen(&world.gateway, &[PROXY, ADMIN, "10.42.42.1:8080"], 1));
    outgate.launch();
    outgate.await_ready();
    let stranger: SocketAddr = "10.42.42.1:8080".parse().unwrap();
    let mut stream = world.guest.namespace.run(|| TcpStream::connect(stranger)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(outgate.errors().contains("10.42.42.1:8080"), "{}", outgate.errors());
    assert_eq!(world.guest.get("good.test", "/").status, 200);
}

/// The waits of those who asked for a page until `over`, one after another; each had to get it.
fn keep_asking(guest: &Guest, over: &AtomicBool) -> Vec<Duration> {
    let mut waits = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        assert_eq!(guest.get("good.test", "/").status, 200);
        waits.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    waits
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_restart_refuses_no_connection_and_none_waits_long_even_during_a_download() {
    let world = World::new();
    let mut outgate = activated(&world, "good.test\n", 2);
    let mut download = world.guest.proxy();
    download.say("GET http://good.test/slow/60000 HTTP/1.1\r\nHost: good.test\r\n\r\n");
    eventually("the download goes on", || world.internet.requests(GOOD).len() == 1);
    let over = AtomicBool::new(false);
    let waits = std::thread::scope(|scope| {
        let _raise = Raise(&over);
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| keep_asking(&world.guest, &over))).collect();
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(500));
            assert!(outgate.stop().success());
            outgate.launch();
            outgate.await_ready();
        }
        std::thread::sleep(Duration::from_millis(500));
        over.store(true, Ordering::Relaxed);
        asking.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(waits.len() > 50, "{}", waits.len());
    let longest = waits.iter().max().unwrap();
    assert!(*longest < LONGEST_WAIT, "{longest:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_restart_on_a_broken_list_goes_on_with_the_last_good_one_on_the_same_sockets() {
    let world = World::new();
    let mut outgate = activated(&world, "good.test\n", 2);
    eventually("the last good list is kept", || fs::read_dir(outgate.path("state")).unwrap().count() > 0);
    fs::write(outgate.rules(), "good.test\nnot a rule\n").unwrap();
    assert!(outgate.stop().success());
    outgate.launch();
    outgate.await_admin(|response| response.status == 503);
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.guest.get("evil.test", "/").status, 403);
    assert!(outgate.errors().contains("main.rules:2"), "{}", outgate.errors());
}

/// The next message, without what the daemon says of its state in passing.
fn next_message(ear: &UnixDatagram) -> String {
    let mut message = [0; 4096];
    let length = ear.recv(&mut message).expect("the daemon says something");
    String::from_utf8(message[..length].to_vec()).unwrap().trim_end().to_owned()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_daemon_tells_the_service_manager_that_it_serves_lives_and_stops() {
    let world = World::new();
    let mut outgate = world.setup("good.test\n").write();
    let mut manager = ServiceManager::listen(&world.gateway, &[PROXY, ADMIN], 2);
    let ear = manager.hear(&outgate.path("notify"), Duration::from_millis(600));
    ear.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    outgate.managed(manager);
    outgate.launch();
    assert_eq!(next_message(&ear), "READY=1");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    let said: Vec<String> = (0..8).map(|_| next_message(&ear)).collect();
    assert!(said.iter().filter(|message| *message == "WATCHDOG=1").count() >= 4, "{said:?}");
    assert!(said.iter().any(|message| message.starts_with("STATUS=Ready")), "{said:?}");

    fs::write(outgate.rules(), "not a rule\n").unwrap();
    outgate.await_admin(|response| response.status == 503);
    let trouble = |message: &String| message.starts_with("STATUS=Not ready: ");
    assert!((0..20).map(|_| next_message(&ear)).any(|message| trouble(&message)));

    // A stopped process does not report that it lives.
    outgate.signal(rustix::process::Signal::STOP);
    ear.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    while ear.recv(&mut [0; 4096]).is_ok() {}
    std::thread::sleep(Duration::from_secs(1));
    assert!(ear.recv(&mut [0; 4096]).is_err());
    outgate.signal(rustix::process::Signal::CONT);
    ear.set_nonblocking(false).unwrap();
    outgate.signal(rustix::process::Signal::TERM);
    assert!((0..20).map(|_| next_message(&ear)).any(|message| message == "STOPPING=1"));
    assert!(outgate.ended().success());
}
