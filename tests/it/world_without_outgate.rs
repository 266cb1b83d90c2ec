//! The world itself, without outgate: if one of these fails, no other test means anything.

use crate::world::client::{Get, Wire};
use crate::world::client_hello::{Hello, alert, hello_retry_request, in_records_of};
use crate::world::dns::{A, Answer};
use crate::world::http::{digest, pattern};
use crate::world::{CDN, DNS, EVIL, GOOD, GOOD6, ODD, World, pki};
use rustls::server::Acceptor;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

#[test]
#[ignore = "requires root and network namespaces"]
fn a_world_is_quick_to_build() {
    let begin = Instant::now();
    let world = World::new();
    let built = begin.elapsed();
    drop(world);
    println!("built in {built:?}, built and removed in {:?}", begin.elapsed());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_reaches_the_gateway_and_nothing_beyond() {
    let world = World::new();
    let gateway = world.gateway.run(|| std::net::TcpListener::bind("10.42.42.1:3128").unwrap());
    for guest in [&world.guest, &world.neighbour] {
        let _wire = guest.proxy();
        let (_, from) = gateway.accept().unwrap();
        assert_eq!(from.ip(), guest.address);
    }
    assert!(Wire::dial(&world.gateway, (GOOD, 443)).is_ok());
    let direct = world
        .guest
        .namespace
        .run(|| std::net::TcpStream::connect_timeout(&SocketAddr::from((EVIL, 443)), Duration::from_millis(300)));
    assert!(direct.is_err());
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_origin_serves_and_notes_requests_in_clear_and_inside_tls() {
    let world = World::new();
    let mut wire = Wire::dial(&world.gateway, (GOOD, 80)).unwrap();
    for (path, length) in [("/bytes/100000", 100_000), ("/chunked/70000", 70_000), ("/", 6)] {
        wire.say(format!("GET {path} HTTP/1.1\r\nHost: good.test\r\n\r\n"));
        let response = wire.hear("GET");
        assert_eq!((response.status, response.body.len()), (200, length), "{path}");
    }
    let body = pattern(50_000);
    wire.say("POST /upload HTTP/1.1\r\nHost: good.test\r\nContent-Length: 50000\r\n\r\n");
    wire.say(&body);
    assert_eq!(wire.hear("POST").text(), format!("50000 {:x}", digest(0, &body)));

    let address: Ipv6Addr = GOOD6.parse().unwrap();
    let mut tls = Wire::dial(&world.gateway, (address, 443)).unwrap().tls("good.test").unwrap();
    assert_eq!(tls.get("good.test", "/in-tls").unwrap().text(), "hello\n");
    let seen = world.internet.seen(address);
    assert_eq!(seen[0].sni.as_deref(), Some("good.test"));
    assert_eq!(seen[0].requests[0].target, "/in-tls");
    assert_eq!(world.internet.requests(GOOD).len(), 4);
    world.assert_untouched(CDN);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_hello_in_one_byte_records_is_understood_by_the_origin() {
    let world = World::new();
    let wire = Wire::dial(&world.gateway, (GOOD, 443)).unwrap();
    let cut = |flight: Vec<u8>| vec![in_records_of(1, &flight[5..])];
    let mut tls = wire.tls_with(pki::client(), "good.test", cut).unwrap();
    assert_eq!(tls.get("good.test", "/").unwrap().status, 200);
}

#[test]
fn forged_hellos_are_read_by_rustls_as_they_are_meant() {
    let name = |bytes: Vec<u8>| {
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut bytes.as_slice()).unwrap();
        let accepted = acceptor.accept().map_err(|(error, _)| error.to_string())?.expect("the hello is whole");
        Ok::<_, String>(accepted.client_hello().server_name().map(str::to_owned))
    };
    assert_eq!(name(Hello::naming("good.test").record()), Ok(Some("good.test".to_owned())));
    assert_eq!(name(Hello::naming("good.test").ech().record()), Ok(Some("good.test".to_owned())));
    assert_eq!(name(Hello::nameless().record()), Ok(None));
    assert!(name(Hello::nameless().names(&[b"good.test", b"evil.test"]).record()).is_err());
    let large = Hello::naming("good.test").post_quantum().record();
    assert!(large.len() > 1_350, "{}", large.len());
    assert_eq!(name(large), Ok(Some("good.test".to_owned())));
    assert_eq!(alert(&[1, 2, 21, 3, 3, 0, 2, 2, 49]), Some(49));
    assert_eq!(alert(&[21, 3, 3]), None);
    assert_eq!(hello_retry_request()[0], 22);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_dns_server_follows_its_script_and_notes_every_query() {
    let world = World::new();
    let private: std::net::Ipv4Addr = [127, 0, 0, 1].into();
    world.dns.cycle("turn.test", vec![Answer::from([GOOD]), Answer::from([private])]);
    world.dns.set("lost.test", Answer::ServFail);
    let ask = |name: &str| {
        let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, A as u8, 0, 1]);
        world.gateway.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.send_to(&query, (DNS, 53)).unwrap();
            let mut reply = [0u8; 512];
            let length = socket.recv(&mut reply).unwrap();
            (reply[3] & 15, reply[..length].to_vec())
        })
    };
    assert!(ask("turn.test").1.ends_with(&GOOD.octets()));
    assert!(ask("TURN.test").1.ends_with(&private.octets()));
    assert!(ask("turn.test").1.ends_with(&GOOD.octets()));
    assert_eq!(ask("lost.test").0, 2);
    assert_eq!(ask("nowhere.test").0, 3);
    assert!(ask("a.b.good.test").1.ends_with(&GOOD.octets()));
    assert_eq!(world.dns.count("turn.test", A), 3);
    world.assert_asked_only(&["a.b.good.test", "lost.test", "nowhere.test", "turn.test"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_scripted_server_echoes_and_sees_the_end() {
    let world = World::new();
    world.internet.echo((ODD, 22));
    let mut wire = Wire::dial(&world.gateway, (ODD, 22)).unwrap();
    wire.write_all(b"ping").unwrap();
    wire.finish();
    let mut back = String::new();
    wire.read_to_string(&mut back).unwrap();
    assert_eq!(back, "ping");
    assert!(world.internet.seen(ODD)[0].ended);
}
