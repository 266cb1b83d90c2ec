//! What happens to a response that is malformed, truncated, late or missing, and how the answer to a malformed
//! request says what is wrong with it.

use crate::transparent;
use crate::world::client::Wire;
use crate::world::http::Response;
use crate::world::{EVIL, GOOD, ODD, World, eventually};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

const RULES: &str = "good.test\nodd.test\n";
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: odd.test\r\n\r\n";

/// On port 80 of ODD a server that reads a head, and says these bytes in answer to the path that has their number.
fn serve(world: &World, answers: Vec<Vec<u8>>, reset: bool) {
    world.internet.serve((ODD, 80), move |mut tap| {
        let mut buffer = [0u8; 4096];
        let length = tap.read(&mut buffer).unwrap_or(0);
        let head = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let number =
            head.split(' ').nth(1).and_then(|path| path.trim_start_matches('/').parse().ok()).unwrap_or(0usize);
        let _ = tap.write_all(&answers[number]);
        if reset {
            // What was sent has arrived by then, as the daemon answered or waits for more.
            std::thread::sleep(Duration::from_millis(300));
            return tap.reset();
        }
        tap.finish();
        tap.drain();
    });
}

fn proxy_error(response: &Response) -> String {
    let status = response.header("proxy-status").unwrap_or_default();
    status.split("error=").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or_default().to_owned()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_response_that_is_malformed_or_cut_is_the_servers_fault_and_says_how() {
    let world = World::new();
    let cases: [(&[u8], &str, &str, &str); 11] = [
        (b"", "dial_failed", "connection_terminated", "the server closed the connection before it answered"),
        (b"HTTP/1.1 200 OK\r\nX: 1", "protocol_error", "http_response_incomplete", "the server broke off within"),
        (b"H", "protocol_error", "http_response_incomplete", "the server broke off within"),
        (b"HTTP/1.1 103 Early\r\n\r\n", "protocol_error", "http_response_incomplete", "the server broke off within"),
        (b"SSH-2.0-x\r\n", "protocol_error", "http_protocol_error", "the first line is malformed"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "protocol_error",
            "http_protocol_error",
            "the message framing is ambiguous",
        ),
        (b"HTTP/1.1 200 OK\r\n a: b\r\n\r\n", "protocol_error", "http_protocol_error", "starts with white space"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "protocol_error", "http_protocol_error", "the HTTP version"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello",
            "protocol_error",
            "http_response_transfer_coding",
            "a chunk size is malformed",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "protocol_error",
            "http_upgrade_failed",
            "not asked for",
        ),
        (b"TOO LARGE", "protocol_error", "http_response_header_section_size", "the response's head is too large"),
    ];
    let large = [&b"HTTP/1.1 200 OK\r\n"[..], &b"X: 0123456789\r\n".repeat(8192)].concat();
    let answer = |bytes: &[u8]| if bytes == b"TOO LARGE" { large.clone() } else { bytes.to_vec() };
    let outgate = transparent::setup(&world, RULES)
        .listen("proxy = [\"10.42.42.1:3128\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]")
        .start();
    serve(&world, cases.iter().map(|(bytes, ..)| answer(bytes)).collect(), false);
    let ask = |listener: &str, number: usize| {
        let request = REQUEST.replace("GET /", &format!("GET /{number}"));
        let mut wire = match listener {
            "proxy" => {
                let mut wire = world.guest.proxy();
                wire.say(request.replace("GET /", "GET http://odd.test/"));
                return wire.hear("GET");
            }
            "tunnel" => world.guest.tunnel("odd.test:80"),
            _ => Wire::dial(&world.guest.namespace, SocketAddr::from((ODD, 80))).unwrap(),
        };
        wire.say(request);
        wire.hear("GET")
    };
    for (number, (bytes, reason, error, cause)) in cases.iter().enumerate() {
        for listener in ["proxy", "tunnel", "transparent"] {
            let what = format!("{listener}: {}", bytes.escape_ascii());
            let response = ask(listener, number);
            assert_eq!((response.status, response.reason().as_str()), (502, *reason), "{what}");
            assert_eq!(proxy_error(&response), *error, "{what}");
            assert!(response.text().contains(cause), "{what}: {}", response.text());
        }
        let says = |line: &serde_json::Value| {
            let about = line["reason"] == *reason && line["verdict"] == "failed" && line["name"] == "odd.test";
            about && line["cause"].as_str().is_some_and(|text| text.contains(cause))
        };
        eventually(&format!("a line says {cause:?}"), || outgate.log().iter().any(says));
    }
    // Those that were folded count as well.
    outgate.await_counted("failed", "dial_failed", 3.0);
    outgate.await_counted("failed", "protocol_error", 30.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_truncated_body_is_logged_and_ends_with_a_reset() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello";
    serve(&world, vec![chunked.into(), length.into()], true);
    for number in 0..2 {
        let mut wire = world.guest.proxy();
        wire.say(format!("GET http://odd.test/{number} HTTP/1.1\r\nHost: odd.test\r\n\r\n"));
        assert_eq!(wire.hear_head().0.status, 200);
        assert!(wire.rest().is_err(), "a reset");
    }
    outgate.await_counted("failed", "protocol_error", 2.0);
    let line = outgate.await_log(&[("reason", "protocol_error")]);
    assert_eq!(line["cause"], "the server broke off within its response");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_silent_server_is_given_up_after_its_own_deadline() {
    let world = World::new();
    let outgate = world.setup(RULES).tables("[limits]\nresponse_timeout_s = 1").start();
    world.internet.serve((ODD, 80), |mut tap| {
        let mut buffer = [0u8; 64 << 10];
        let length = tap.read(&mut buffer).unwrap_or(0);
        if buffer[..length].starts_with(b"GET /drip") {
            // A head that never ends is not a head.
            while tap.write_all(b"a").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        tap.drain();
    });
    for request in [
        "GET http://odd.test/ HTTP/1.1\r\nHost: odd.test\r\n\r\n".to_owned(),
        "GET http://odd.test/drip HTTP/1.1\r\nHost: odd.test\r\n\r\n".to_owned(),
        "POST http://odd.test/ HTTP/1.1\r\nHost: odd.test\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "POST http://odd.test/ HTTP/1.1\r\nHost: odd.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
    ] {
        let response = world.guest.ask(&request);
        assert_eq!((response.status, response.reason().as_str()), (504, "timeout"), "{request}");
        assert_eq!(proxy_error(&response), "http_response_timeout", "{request}");
    }
    outgate.await_counted("failed", "timeout", 4.0);
    assert_eq!(outgate.await_log(&[("reason", "timeout")])["cause"], "the server sent no response");

    // A guest that is slow with its request, and a server that is slow with its body, have the idle time.
    world.internet.serve((GOOD, 8080), |mut tap| {
        let mut buffer = [0u8; 4096];
        let _ = tap.read(&mut buffer);
        let _ = tap.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
        std::thread::sleep(Duration::from_millis(2500));
        let _ = tap.write_all(b"slow");
    });
    outgate.replace_rules("good.test\nhttp://good.test:8080\n");
    eventually("the list is in force", || outgate.metric("whitelist_generation", &[]) >= 2.0);
    assert_eq!(world.guest.get("good.test:8080", "/").text(), "slow");
    let mut wire = world.guest.proxy();
    wire.say("POST http://good.test/upload HTTP/1.1\r\nHost: good.test\r\nContent-Length: 5\r\n\r\nhel");
    std::thread::sleep(Duration::from_millis(2500));
    wire.say("lo");
    assert_eq!(wire.hear("POST").status, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_malformed_part_is_named_in_the_answer_the_log_and_the_list_of_refusals() {
    let world = World::new();
    let outgate = world.outgate(RULES);
    let get = |lines: &str| format!("GET http://good.test/ HTTP/1.1\r\n{lines}\r\n");
    let cases = [
        (get("Host: good.test\r\nContent-Length: 1\r\nContent-Length: 1\r\n"), "the message framing is ambiguous"),
        (get(""), "the Host field is missing, repeated or malformed"),
        (get("Host: good.test\r\nA: s3cret\0\r\n"), "a field value has a control character"),
        (get("Host: good.test\r\n s3cret\r\n"), "a field line starts with white space"),
        (get("Host: good.test\r\nA: s3cret\nB: c\r\n"), "a line does not end in CR LF"),
        (get(&format!("Host: good.test\r\nA: {}\r\n", "s3cret".repeat(4000))), "the head is too large"),
        ("GET /s3cret HTTP/1.1\r\nHost: good.test\r\n\r\n".to_owned(), "a request to the proxy port names no full URI"),
        ("GET http://good.test/s3cret HTTP/3.0\r\n\r\n".to_owned(), "the HTTP version is not 1.0 or 1.1"),
        ("get http://good.test/s3cret HTTP/1.1\r\n\r\n".to_owned(), "the method is malformed"),
        ("GET wss://good.test/s3cret HTTP/1.1\r\n\r\n".to_owned(), "the request target is malformed"),
        (
            "POST http://good.test/ HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\ns3cret\r\n"
                .to_owned(),
            "a chunk size is malformed",
        ),
    ];
    for (request, cause) in &cases {
        let mut wire = world.guest.proxy();
        wire.say(request);
        let refusal = wire.hear("GET");
        assert_eq!(refusal.reason(), "malformed", "{cause}");
        assert!(refusal.text().contains(cause), "{cause}: {}", refusal.text());
        assert!(!refusal.text().contains("s3cret"), "nothing of the guest's");
    }
    let mut wire = world.guest.proxy();
    wire.say([5, 1, 0]);
    assert_eq!(wire.take_bytes(2), [5, 0]);
    wire.say([5, 1, 7]);
    assert!(wire.is_over());
    let mut tunnel = world.guest.tunnel("good.test:443");
    tunnel.say(crate::world::client_hello::Hello::naming("11.0.0.10").record());
    assert!(tunnel.is_over());
    outgate.await_counted("denied", "malformed", cases.len() as f64 + 2.0);

    let config = outgate.config();
    let list = || {
        let output = outgate.command(&["denied", "--json", "--config", config.to_str().unwrap()]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["refusals"].as_array().unwrap().clone()
    };
    let more = ["the reserved byte is not 0", "the server name is malformed"];
    for cause in cases.iter().map(|(_, cause)| *cause).chain(more) {
        outgate.await_log(&[("reason", "malformed"), ("cause", cause)]);
        assert!(list().iter().any(|row| row["reason"] == "malformed" && row["cause"] == cause), "{cause}");
    }
    assert!(list().iter().all(|row| !row["cause"].as_str().unwrap_or_default().contains("s3cret")));
    let output = outgate.command(&["denied", "--config", config.to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("the reserved byte is not 0"));
    world.assert_untouched(EVIL);
}
