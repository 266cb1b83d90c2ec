//! Plain HTTP through the proxy: every request is checked separately, heads that two parsers could read differently
//! are refused, bodies of any size and framing arrive unchanged, upgrades are upgrades only when the origin says so.

use crate::world::client::{Get, Wire};
use crate::world::http::{digest, pattern};
use crate::world::{EVIL, GOOD, ODD, World, eventually};
use std::io::{Read, Write};
use std::time::Duration;

const RULES: &str = "good.test\ncdn-ok.test\nodd.test\n";

/// Starts a server on port 80 of ODD that reads a head, says these bytes, and drains what comes.
fn says(world: &World, bytes: impl Into<Vec<u8>>) {
    let bytes = bytes.into();
    world.internet.serve((ODD, 80), move |mut tap| {
        let mut buffer = [0u8; 4096];
        if tap.read(&mut buffer).is_ok_and(|length| length > 0) {
            let _ = tap.write_all(&bytes);
            tap.finish();
            tap.drain();
        }
    });
}

fn get(wire: &mut Wire, host: &str, path: &str) -> crate::world::http::Response {
    wire.say(format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    wire.hear("GET")
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_request_reaches_the_origin_in_origin_form_without_what_was_for_the_proxy() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let response = world.guest.ask(
        "GET http://good.test/a?b=c%20d HTTP/1.1\r\nHost: good.test\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: Basic c2VjcmV0\r\nConnection: close, x-private\r\nX-Private: 1\r\nX-Kept: 1\r\n\r\n",
    );
    assert_eq!((response.status, response.text().as_str()), (200, "hello\n"));
    let requests = world.internet.requests(GOOD);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].target, "/a?b=c%20d");
    assert_eq!(requests[0].header("host"), ["good.test"]);
    assert_eq!(requests[0].header("x-kept"), ["1"]);
    for gone in ["proxy-connection", "proxy-authorization", "x-private"] {
        assert!(requests[0].header(gone).is_empty(), "{gone} was for the proxy");
    }
    world.assert_asked_only(&["good.test"]);
    outgate.await_counted("allowed", "none", 1.0);
    let line = outgate.await_log(&[("name", "good.test"), ("verdict", "allowed")]);
    assert_eq!(line["evidence"], "host");
    assert_eq!(line["upstream"], "11.0.0.10:80");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_refusal_is_immediate_and_says_why_to_programs_and_people() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let refusal = world.guest.get("evil.test", "/");
    assert_eq!(refusal.status, 403);
    let json: serde_json::Value = serde_json::from_slice(&refusal.body).unwrap();
    assert_eq!(json["reason"], "not_whitelisted");
    assert_eq!(json["destination"], "evil.test:80");
    assert!(json["message"].as_str().is_some_and(|message| message.len() > 10), "{json}");
    assert_eq!(json.as_object().unwrap().len(), 3, "{json}");
    let status = refusal.header("proxy-status").unwrap();
    assert!(status.starts_with("outgate; error=") && status.contains("details=\"not_whitelisted\""), "{status}");

    let page = world.guest.ask(
        "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nAccept: text/html,*/*;q=0.8\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(page.status, 403);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.text().contains("not_whitelisted"));

    let (connect, _) = world.guest.connect("evil.test:443");
    assert_eq!((connect.status, connect.reason().as_str()), (403, "not_whitelisted"));
    assert!(world.dns.log().is_empty(), "a refused name is never asked for");
    world.assert_untouched(EVIL);
    outgate.await_counted("denied", "not_whitelisted", 3.0);
    outgate.await_log(&[("name", "evil.test"), ("verdict", "denied"), ("reason", "not_whitelisted")]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_refusal_shows_no_address_no_rule_and_no_error_from_inside() {
    let world = World::new();
    world.dns.set("inside.test", [std::net::Ipv4Addr::new(10, 9, 8, 7)]);
    world.dns.set("lost.test", crate::world::dns::Answer::ServFail);
    let rules = "inside.test\nlost.test\ngood.test:81\ndeny odd.test note=\"the secret reason\"\nodd.test\n";
    let _outgate = world.outgate(rules);
    for (host, status, reason) in [
        ("inside.test", 403, "address_floor"),
        ("lost.test", 502, "resolve_failed"),
        ("good.test:81", 502, "dial_failed"),
        ("odd.test", 403, "denied_by_rule"),
    ] {
        for refusal in [world.guest.get(host, "/"), world.guest.connect(&with_port(host)).0] {
            assert_eq!((refusal.status, refusal.reason().as_str()), (status, reason), "{host}");
            let whole = format!("{:?} {}", refusal.headers, refusal.text());
            for secret in ["10.9.8.7", "11.0.0.", "main.rules", "secret", "SERVFAIL", "refused (os", "hickory"] {
                assert!(!whole.contains(secret), "{host}: {secret:?} is in {whole}");
            }
        }
    }
}

fn with_port(host: &str) -> String {
    if host.contains(':') { host.to_owned() } else { format!("{host}:80") }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn markup_in_a_destination_does_not_reach_the_page() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    for uri in ["http://evil.test/<script>alert(1)</script>", "http://<script>alert(1)</script>/"] {
        let page = world
            .guest
            .ask(format!("GET {uri} HTTP/1.1\r\nHost: evil.test\r\nAccept: text/html\r\nConnection: close\r\n\r\n"));
        assert!(page.status == 400 || page.status == 403);
        assert!(!page.text().contains("<script>"), "{}", page.text());
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_name_of_the_uri_and_the_host_field_must_agree() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    for host in ["evil.test", "cdn-ok.test", "good.test:81", "sub.good.test"] {
        let response = world.guest.ask(format!("GET http://good.test/ HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!((response.status, response.reason().as_str()), (400, "name_mismatch"), "{host}");
    }
    let response = world.guest.ask("GET http://GOOD.test:80/ HTTP/1.1\r\nHost: good.TEST\r\nConnection: close\r\n\r\n");
    assert_eq!(response.status, 200, "case and the default port make no difference");
    assert_eq!(world.internet.requests(GOOD).len(), 1);
    assert_eq!(world.internet.all().len(), 1);
    outgate.await_counted("denied", "name_mismatch", 4.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn each_request_of_a_kept_connection_is_judged_by_itself() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    wire.say(
        "GET http://good.test/1 HTTP/1.1\r\nHost: good.test\r\n\r\n\
         GET http://evil.test/2 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    );
    assert_eq!(wire.hear("GET").status, 200);
    let refusal = wire.hear("GET");
    assert_eq!((refusal.status, refusal.reason().as_str()), (403, "not_whitelisted"));
    world.assert_asked_only(&["good.test"]);
    world.assert_untouched(EVIL);
    let requests = world.internet.requests(GOOD);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].target, "/1");
    outgate.await_counted("allowed", "none", 1.0);
    outgate.await_counted("denied", "not_whitelisted", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_connection_is_kept_on_both_sides_and_never_used_for_another_host() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    for turn in 0..5 {
        assert_eq!(get(&mut wire, "good.test", &format!("/{turn}")).status, 200, "turn {turn}");
    }
    let seen = world.internet.seen(GOOD);
    assert_eq!(seen.len(), 1, "one connection serves the guest's requests to one host");
    assert_eq!(seen[0].requests.len(), 5);
    assert_eq!(get(&mut wire, "cdn-ok.test", "/").status, 200);
    assert_eq!(get(&mut wire, "good.test", "/again").status, 200);
    for seen in world.internet.all() {
        let hosts: Vec<&str> = seen.requests.iter().flat_map(|request| request.header("host")).collect();
        assert!(hosts.iter().all(|host| *host == hosts[0]), "one upstream connection carried {hosts:?}");
    }
    world.assert_asked_only(&["cdn-ok.test", "good.test"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_do_not_share_upstream_connections() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let (mut one, mut two) = (world.guest.proxy(), world.neighbour.proxy());
    for wire in [&mut one, &mut two] {
        assert_eq!(get(wire, "good.test", "/").status, 200);
        assert_eq!(get(wire, "good.test", "/").status, 200);
    }
    assert_eq!(world.internet.seen(GOOD).iter().map(|seen| seen.requests.len()).collect::<Vec<_>>(), [2, 2]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn smuggled_requests_reach_nobody() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let hidden = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let cases = [
        ("CL and TE", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
        ("TE and CL", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n"),
        ("two TE lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("identity, chunked", "Transfer-Encoding: identity, chunked\r\n"),
        ("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n"),
        ("chunked, identity", "Transfer-Encoding: chunked, identity\r\n"),
        ("xchunked", "Transfer-Encoding: xchunked\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n"),
        ("a tab before the colon", "Transfer-Encoding\t: chunked\r\n"),
        ("a folded line", "Transfer-Encoding:\r\n chunked\r\n"),
        ("two lengths", "Content-Length: 4\r\nContent-Length: 5\r\n"),
        ("the same length twice", "Content-Length: 4\r\nContent-Length: 4\r\n"),
        ("a list of lengths", "Content-Length: 4, 4\r\n"),
        ("a signed length", "Content-Length: +4\r\n"),
        ("a negative length", "Content-Length: -4\r\n"),
        ("a hexadecimal length", "Content-Length: 0x4\r\n"),
        ("an empty length", "Content-Length: \r\n"),
        ("a length past 64 bits", "Content-Length: 99999999999999999999\r\n"),
        ("a bare LF", "X: 1\nY: 2\r\n"),
        ("a bare CR", "X: 1\rY: 2\r\n"),
        ("a NUL", "X: 1\0\r\n"),
        ("an empty name", ": 1\r\n"),
        ("white space first", " X: 1\r\n"),
        ("two hosts", "Host: good.test\r\n"),
        ("Connection names the framing", "Connection: close, content-length\r\nContent-Length: 4\r\n"),
        ("Connection names Host", "Connection: host\r\n"),
    ];
    for (what, fields) in cases {
        let mut wire = world.guest.proxy();
        wire.say(format!("POST http://good.test/ HTTP/1.1\r\nHost: good.test\r\n{fields}\r\n0\r\n\r\n{hidden}"));
        let response = wire.hear("POST");
        assert_eq!((response.status, response.reason().as_str()), (400, "malformed"), "{what}");
        assert!(wire.is_over(), "{what}: the connection must end");
    }
    assert_eq!(world.internet.all().len(), 0, "not a connection upstream");
    assert!(world.dns.log().is_empty());
    outgate.await_counted("denied", "malformed", cases.len() as f64);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn request_heads_that_parsers_read_differently_are_malformed() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let heads: &[&str] = &[
        "GET http://good.test/ HTTP/1.1\nHost: good.test\n\n",
        "GET http://good.test/ HTTP/1.1\r\n\r\n",
        "GET http://good.test/ HTTP/1.1\r\nHost:\r\n\r\n",
        "GET http://good.test/ HTTP/1.1\r\nHost: good.test, evil.test\r\n\r\n",
        "GET http://good.test/ HTTP/1.1\r\nHost: user@good.test\r\n\r\n",
        "GET http://good.test/ HTTP/1.1\r\nHost: good.test:80x\r\n\r\n",
        "GET http://user@good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://evil.test@good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://good.test\\@evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://good.test/ HTTP/1.2\r\nHost: good.test\r\n\r\n",
        "GET http://good.test/ HTTP/2.0\r\nHost: good.test\r\n\r\n",
        "GET http://good.test/\r\n\r\n",
        "GET  http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://good.test/ a HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http:///path HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET gopher://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET ftp://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET file:///etc/passwd HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "G@T http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://g%6fod.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://good.test:0/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://good.test:65616/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
    ];
    for head in heads {
        let mut wire = world.guest.proxy();
        wire.say(head);
        wire.finish();
        let response = wire.hear("GET");
        assert!(matches!(response.status, 400 | 505), "{head:?}: {}", response.status);
        assert_eq!(response.reason(), "malformed", "{head:?}");
        assert!(wire.is_over(), "{head:?}: the connection must end");
    }
    assert!(world.internet.all().is_empty() && world.dns.log().is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn oversized_heads_are_refused_and_cost_no_memory() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let before = outgate.memory();
    for fields in [
        format!("X: {}\r\n", "a".repeat(1 << 20)),
        "X: 1\r\n".repeat(10_000),
        format!("Cookie: {}\r\n", "c".repeat(100_000)),
    ] {
        let mut wire = world.guest.proxy();
        wire.say(format!("GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n{fields}\r\n"));
        let response = wire.hear("GET");
        assert!(response.status == 0 || response.status == 400 || response.status == 431, "{}", response.status);
        assert!(wire.is_over());
    }
    assert!(world.internet.all().is_empty());
    assert!(outgate.memory() < before + 16 * 1024 * 1024);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn chunks_that_parsers_read_differently_end_both_connections() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    for chunks in [
        "4\nabcd\r\n0\r\n\r\n",
        "\r\nabcd\r\n0\r\n\r\n",
        "0x4\r\nabcd\r\n0\r\n\r\n",
        "+4\r\nabcd\r\n0\r\n\r\n",
        "-4\r\nabcd\r\n0\r\n\r\n",
        "10000000000000004\r\nabcd\r\n0\r\n\r\n",
        "4\r\nabcdef\r\n0\r\n\r\n",
        "4 \r\nabcd\r\n0\r\n\r\n",
        "4;\nabcd\r\n0\r\n\r\n",
        &format!("4;{}\r\nabcd\r\n0\r\n\r\n", "x".repeat(20_000)),
    ] {
        let mut wire = world.guest.proxy();
        wire.say(format!(
            "POST http://good.test/upload HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}\
             GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"
        ));
        let response = wire.hear("POST");
        assert_ne!(response.status, 200, "{chunks:.30?}");
        assert!(wire.is_over(), "{chunks:.30?}");
    }
    assert!(world.internet.requests(GOOD).iter().all(|request| request.target == "/upload"));
    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn bodies_of_any_size_arrive_unchanged_in_both_framings_and_directions() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    for size in [0, 1, 4095, 65_536, 3_000_000] {
        let body = pattern(size);
        let expected = format!("{size} {:x}", digest(0, &body));
        wire.say(format!("POST http://good.test/upload HTTP/1.1\r\nHost: good.test\r\nContent-Length: {size}\r\n\r\n"));
        wire.say(&body);
        let answer = wire.hear("POST").text();
        assert!(answer == expected || size == 0, "by length, {size}: {answer}");

        wire.say("PUT http://good.test/upload HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in body.chunks(10_007) {
            wire.say(format!("{:X};ext=\"1;2\"\r\n", chunk.len()));
            wire.say(chunk);
            wire.say("\r\n");
        }
        wire.say("0\r\n\r\n");
        let answer = wire.hear("PUT").text();
        assert!(answer == expected || size == 0, "in chunks, {size}: {answer}");

        for path in ["bytes", "chunked"] {
            let response = get(&mut wire, "good.test", &format!("/{path}/{size}"));
            assert_eq!(response.status, 200);
            assert!(response.body == body, "{path}, {size}: the body differs");
        }
    }
    let response = get(&mut wire, "good.test", "/until-close/300000");
    assert!(response.body == pattern(300_000), "until the end of the connection");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn trailers_pass_or_are_dropped_but_never_become_fields() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    wire.say(
        "POST http://good.test/upload HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 1\r\nHost: evil.test\r\nContent-Length: 3\r\n\r\n",
    );
    let response = wire.hear("POST");
    assert!(response.status == 200 || response.status == 400, "{}", response.status);
    for request in world.internet.requests(GOOD) {
        assert_eq!(request.header("host"), ["good.test"]);
        assert!(request.header("content-length").is_empty());
        assert!(request.trailers.iter().all(|(name, _)| name != "host" && name != "content-length"));
    }

    let mut wire = world.guest.proxy();
    let response = get(&mut wire, "good.test", "/trailers/20000");
    assert!(response.body == pattern(20_000));
    assert_eq!(get(&mut wire, "good.test", "/").status, 200, "the connection goes on after trailers");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn responses_without_a_body_leave_the_connection_usable() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    wire.say("HEAD http://good.test/bytes/1000 HTTP/1.1\r\nHost: good.test\r\n\r\n");
    let head = wire.hear("HEAD");
    assert_eq!((head.status, head.header("content-length")), (200, Some("1000")));
    assert_eq!(get(&mut wire, "good.test", "/no-content").status, 204);
    assert_eq!(get(&mut wire, "good.test", "/").text(), "hello\n");
    wire.say("GET http://good.test/early-hints HTTP/1.1\r\nHost: good.test\r\n\r\n");
    let (response, interim) = wire.hear_head();
    assert_eq!((response.status, interim.as_slice()), (200, &[103][..]));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_client_that_expects_100_continue_gets_it_from_the_origin() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    let head = |path: &str| {
        format!(
            "POST http://good.test{path} HTTP/1.1\r\nHost: good.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    wire.say(head("/upload"));
    assert_eq!(wire.take_bytes(21), b"HTTP/1.1 100 Continue", "before any byte of the body");
    wire.take_bytes(4);
    wire.say("hello");
    assert_eq!(wire.hear("POST").text(), format!("5 {:x}", digest(0, b"hello")));

    wire.say(head("/refuse-expectation"));
    assert_eq!(wire.hear("POST").status, 417);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_websocket_passes_bytes_both_ways() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    wire.say(
        "GET http://good.test/websocket HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    let (response, _) = wire.hear_head();
    assert_eq!(response.status, 101);
    assert_eq!(response.header("upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    for message in ["one", "two", "three"] {
        wire.say(message);
        assert_eq!(wire.take_bytes(message.len()), message.as_bytes());
    }
    let request = &world.internet.requests(GOOD)[0];
    assert_eq!(request.header("sec-websocket-key"), ["dGhlIHNhbXBsZSBub25jZQ=="]);
    wire.finish();
    assert!(wire.is_over());
    outgate.await_counted("allowed", "none", 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn websockets_pass_as_clients_ask_for_them() {
    let world = World::new();
    let _outgate = world.outgate("good.test\nws://good.test:8080\n");
    world.internet.serve((GOOD, 8080), |mut tap| {
        let _ = crate::world::http::serve(&mut tap);
    });
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    // Java's HttpClient says that there is no body; aiohttp and others write the URI as the program has it.
    for (uri, host, fields) in [
        ("http://good.test/websocket", "good.test", "Content-Length: 0\r\n"),
        ("ws://good.test/websocket", "good.test", ""),
        ("WS://good.test:80/websocket", "good.test", ""),
        ("ws://good.test:8080/websocket", "good.test:8080", "Content-Length: 0\r\n"),
    ] {
        let mut wire = world.guest.proxy();
        wire.say(format!("GET {uri} HTTP/1.1\r\n{fields}Host: {host}\r\n{upgrade}\r\n"));
        assert_eq!(wire.hear_head().0.status, 101, "{uri}");
        wire.say("hello");
        assert_eq!(wire.take_bytes(5), b"hello", "{uri}");
    }
    let requests = world.internet.requests(GOOD);
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|request| request.target == "/websocket"), "{requests:?}");

    let mut wire = world.guest.tunnel("good.test:80");
    wire.say(format!("GET /websocket HTTP/1.1\r\nContent-Length: 0\r\nHost: good.test\r\n{upgrade}\r\n"));
    assert_eq!(wire.hear_head().0.status, 101, "in a tunnel");

    for (uri, status, reason) in [
        ("wss://good.test/websocket", 400, "malformed"),
        ("https://good.test/websocket", 400, "malformed"),
        ("ws://evil.test/websocket", 403, "not_whitelisted"),
        ("ws://good.test:443/websocket", 403, "protocol_not_allowed"),
    ] {
        let host = uri.split('/').nth(2).unwrap();
        let refusal = world.guest.ask(format!("GET {uri} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n"));
        assert_eq!((refusal.status, refusal.reason().as_str()), (status, reason), "{uri}");
    }
    // A body behind an upgrade could be taken for words in the new protocol.
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let refusal = world.guest.ask(format!(
            "GET http://good.test/websocket HTTP/1.1\r\n{framing}\r\nHost: good.test\r\n{upgrade}\r\n0\r\n\r\n"
        ));
        assert_eq!((refusal.status, refusal.reason().as_str()), (400, "malformed"), "{framing}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_connect_may_say_that_it_has_no_body() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    for (line, status) in [
        ("Content-Length: 0", 200),
        ("Proxy-Connection: Keep-Alive\r\nContent-Length: 0", 200),
        ("Content-Length: 1", 400),
        ("Content-Length: 0\r\nContent-Length: 0", 400),
        ("Transfer-Encoding: chunked", 400),
    ] {
        let mut wire = world.guest.proxy();
        wire.say(format!("CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n{line}\r\n\r\n"));
        assert_eq!(wire.hear("CONNECT").status, status, "{line}");
        if status == 200 {
            assert_eq!(wire.tls("good.test").unwrap().get("good.test", "/").unwrap().status, 200, "{line}");
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn options_for_a_whole_server_arrive_as_an_asterisk_through_every_listener() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let options = |target: &str, host: &str| format!("OPTIONS {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(world.guest.ask(options("http://good.test", "good.test")).status, 200);
    assert_eq!(world.guest.ask(options("http://good.test:80", "good.test")).status, 200);
    let mut wire = world.guest.tunnel("good.test:80");
    wire.say(options("*", "good.test"));
    assert_eq!(wire.hear("OPTIONS").status, 200, "in a tunnel");
    assert_eq!(get_inside(&mut wire, "good.test").status, 200, "the tunnel goes on");
    for path in ["/", "?a"] {
        assert_eq!(world.guest.ask(options(&format!("http://good.test{path}"), "good.test")).status, 200);
    }
    let requests = world.internet.requests(GOOD);
    let targets: Vec<&str> = requests.iter().map(|request| request.target.as_str()).collect();
    assert_eq!(targets, ["*", "*", "*", "/", "/", "/?a"]);
    assert!(requests.iter().all(|request| request.header("host") == ["good.test"]), "{requests:?}");

    let refusal = world.guest.ask(options("*", "good.test"));
    assert_eq!((refusal.status, refusal.reason().as_str()), (400, "malformed"), "of the proxy itself nothing is asked");
    let mut wire = world.guest.tunnel("good.test:80");
    wire.say(options("*", "evil.test"));
    let refusal = wire.hear("OPTIONS");
    assert_eq!((refusal.status, refusal.reason().as_str()), (400, "name_mismatch"));
    outgate.await_counted("denied", "name_mismatch", 1.0);
}

fn get_inside(wire: &mut Wire, host: &str) -> crate::world::http::Response {
    wire.say(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    wire.hear("GET")
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_upgrade_that_the_origin_did_not_grant_stays_http() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    let ask = |path: &str| {
        format!(
            "GET http://good.test{path} HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
    };
    let hidden = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n";

    let mut wire = world.guest.proxy();
    wire.say(ask("/plain"));
    assert_eq!(wire.hear("GET").status, 200);
    wire.say(hidden);
    let answer = wire.hear("GET").status;
    assert!(answer == 403 || answer == 0, "a 200 is no upgrade: the next request is judged");

    let mut wire = world.guest.proxy();
    wire.say(ask("/other-protocol"));
    let (response, _) = wire.hear_head();
    assert_ne!(response.status, 101, "a protocol that nobody asked for");
    wire.say(hidden);
    assert!(wire.is_over());

    let mut wire = world.guest.proxy();
    wire.say("GET http://good.test/websocket HTTP/1.1\r\nHost: good.test\r\n\r\n");
    let (response, _) = wire.hear_head();
    assert_ne!(response.status, 101, "an upgrade that nobody asked for");

    world.assert_untouched(EVIL);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_upgrade_to_another_http_or_tls_is_not_passed_on() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    for protocol in ["h2c", "TLS/1.0", "websocket, h2c"] {
        let response = world.guest.ask(format!(
            "GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        ));
        assert!(matches!(response.status, 200 | 400 | 403), "{protocol}: {}", response.status);
    }
    for request in world.internet.requests(GOOD) {
        let upgrade = request.header("upgrade").join(",").to_ascii_lowercase();
        assert!(!upgrade.contains("h2c") && !upgrade.contains("tls"), "{upgrade}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_hostile_origin_must_follow_the_same_grammar() {
    let cases: [(&str, Vec<u8>); 7] = [
        ("a head without end", [&b"HTTP/1.1 200 OK\r\nX: "[..], &vec![b'a'; 10 << 20]].concat()),
        ("many fields", [&b"HTTP/1.1 200 OK\r\n"[..], &b"X: 1\r\n".repeat(100_000)].concat()),
        ("interim responses without end", b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100_000)),
        (
            "CL and TE",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
                .to_vec(),
        ),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!".to_vec()),
        ("not HTTP", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in cases {
        let world = World::new();
        let outgate = world.outgate(RULES);
        let before = outgate.memory();
        says(&world, bytes);
        let mut wire = world.guest.proxy();
        let response = get(&mut wire, "odd.test", "/");
        // Once an interim response has been passed on, breaking off is all that is left.
        let broken_off = what.starts_with("interim") && response.status == 0;
        let reason = if what == "nothing" { "dial_failed" } else { "protocol_error" };
        assert!(broken_off || (response.status == 502 && response.reason() == reason), "{what}: {response:?}");
        assert!(outgate.memory() < before + 16 * 1024 * 1024, "{what}");
        let mut wire = world.guest.proxy();
        assert_eq!(get(&mut wire, "good.test", "/").status, 200, "{what}: others don't notice");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_origin_that_breaks_off_or_sends_more_than_announced_ends_the_connection() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    says(&world, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort");
    let mut wire = world.guest.proxy();
    wire.say("GET http://odd.test/ HTTP/1.1\r\nHost: odd.test\r\n\r\n");
    let (head, _) = wire.hear_head();
    assert_eq!(head.status, 200);
    assert!(wire.take_bytes(100).len() < 100, "a short body must not look whole");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn unrequested_bytes_of_an_origin_are_not_the_next_answer() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    world.internet.serve((ODD, 80), |mut tap| {
        let mut buffer = [0u8; 4096];
        while tap.read(&mut buffer).is_ok_and(|length| length > 0) {
            let _ = tap.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned",
            );
        }
    });
    let mut wire = world.guest.proxy();
    assert_eq!(get(&mut wire, "odd.test", "/").text(), "first");
    std::thread::sleep(Duration::from_millis(50));
    assert_ne!(get(&mut wire, "odd.test", "/").text(), "poisoned");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_slow_answer_is_waited_for() {
    let world = World::new();
    let _outgate = world.setup(RULES).tables("[limits]\nhandshake_timeout_ms = 500").start();
    assert_eq!(world.guest.get("good.test", "/slow/1500").text(), "slow");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_that_goes_away_takes_the_upstream_connection_with_it() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let mut wire = world.guest.proxy();
    assert_eq!(get(&mut wire, "good.test", "/").status, 200);
    drop(wire);
    eventually("the origin sees the end", || world.internet.seen(GOOD)[0].ended);
    eventually("no connection is left", || outgate.metric("active_connections", &[]) == 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn all_methods_pass_except_those_that_proxies_should_not_pass() {
    let world = World::new();
    let _outgate = world.outgate(RULES);
    for method in ["DELETE", "OPTIONS", "PATCH", "PROPFIND"] {
        let line =
            |host: &str| format!("{method} http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(world.guest.ask(line("good.test")).status, 200, "{method}");
        assert_eq!(world.guest.ask(line("evil.test")).status, 403, "{method}");
    }
    let passed = world.internet.requests(GOOD).len();
    for method in ["TRACE", "PURGE"] {
        let refusal = world.guest.ask(format!("{method} http://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n"));
        assert!(matches!(refusal.status, 400 | 403 | 405), "{method}: {}", refusal.status);
    }
    assert_eq!(world.internet.requests(GOOD).len(), passed);
    world.assert_untouched(EVIL);
}
