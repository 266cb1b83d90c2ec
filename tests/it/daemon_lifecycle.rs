//! Start, stop, and the operator's side: exit codes, the admin listener, draining.

use crate::world::client::{Get, Wire};
use crate::world::http::pattern;
use crate::world::{ADMIN, GOOD, ODD, World, eventually};
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

#[test]
#[ignore = "requires root and network namespaces"]
fn the_admin_listener_shows_health_metrics_and_a_page_and_changes_nothing() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    for path in ["/healthz", "/readyz", "/metrics", "/"] {
        assert_eq!(outgate.admin(path).unwrap().status, 200, "{path}");
    }
    assert_eq!(outgate.admin("/nothing-here").unwrap().status, 404);
    let page = outgate.admin("/").unwrap();
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.header("content-security-policy").is_some());
    for method in ["POST", "PUT", "DELETE"] {
        let response = outgate.admin_ask(&format!(
            "{method} /metrics HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(response.unwrap().status, 405, "{method}");
    }
    let metrics = outgate.metrics();
    for name in
        ["outgate_build_info", "outgate_whitelist_rules", "outgate_panics_total", "process_resident_memory_bytes"]
    {
        assert!(metrics.keys().any(|series| series.starts_with(name)), "{name}: {metrics:#?}");
    }
    let version = concat!("outgate_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!(metrics.get(version), Some(&1.0));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_page_that_calls_itself_by_a_name_cannot_read_the_admin_listener() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    for host in
        ["evil.test", "evil.test:3190", "localhost.evil.test:3190", "127.0.0.1.evil.test", "127.1:3190", "2130706433"]
    {
        let response =
            outgate.admin_ask(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        let response = response.unwrap();
        assert!(matches!(response.status, 400 | 403 | 421), "{host}: {}", response.status);
        assert!(!response.text().contains("outgate_"), "{host}");
    }
    for host in [ADMIN, "localhost:3190", "127.0.0.1"] {
        let response =
            outgate.admin_ask(&format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(response.unwrap().status, 200, "{host}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_stop_lets_transfers_finish_refuses_new_ones_and_exits_0() {
    let world = World::new();
    let mut outgate = world.outgate("good.test\ntcp://odd.test:7\n");
    world.internet.echo((ODD, 7));
    let mut busy = world.guest.tunnel("odd.test:7");
    let mut slow = world.guest.proxy();
    slow.say("GET http://good.test/slow/1500 HTTP/1.1\r\nHost: good.test\r\n\r\n");
    eventually("the request is on its way", || world.internet.requests(GOOD).len() == 1);
    outgate.signal(rustix::process::Signal::TERM);
    busy.say("still here");
    assert_eq!(busy.take_bytes(10), b"still here");
    assert_eq!(slow.hear("GET").text(), "slow");
    busy.finish();
    assert!(busy.is_over());
    drop((busy, slow));
    assert!(outgate.ended().success());
    assert!(!outgate.errors().contains("panicked"), "{}", outgate.errors());
    let log = outgate.log();
    assert!(log.iter().any(|line| line["name"] == "odd.test" && line["verdict"] == "allowed"), "{log:#?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_stop_without_connections_is_quick_and_leaves_the_port_free() {
    let world = World::new();
    let mut outgate = world.outgate("good.test\n");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert!(outgate.stop().success());
    outgate.launch();
    outgate.await_ready();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_port_in_use_is_one_clear_line_and_exit_1() {
    let world = World::new();
    for address in ["10.42.42.1:3128", ADMIN] {
        let _taken = world.gateway.run(|| TcpListener::bind(address).unwrap());
        let mut outgate = world.setup("good.test\n").write();
        outgate.launch();
        assert_eq!(outgate.ended().code(), Some(1), "{address}");
        let errors = outgate.errors();
        let naming: Vec<&str> = errors.lines().filter(|line| line.contains(address)).collect();
        assert_eq!(naming.len(), 1, "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_unreadable_file_is_an_error_that_names_it() {
    let world = World::new();
    let mut outgate = world.setup("good.test\n").top("mood = \"all\"").write();
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    assert!(outgate.errors().contains("mood") && outgate.errors().contains("mode"), "{}", outgate.errors());

    let mut outgate = world.setup("good.test\n").write();
    fs::remove_file(outgate.config()).unwrap();
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    assert!(outgate.errors().contains("outgate.toml"), "{}", outgate.errors());

    let mut outgate = world.setup("good.test\n").write();
    fs::remove_dir_all(outgate.whitelist()).unwrap();
    fs::write(outgate.whitelist(), "a file where a directory is wanted").unwrap();
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    assert!(outgate.errors().contains("whitelist"), "{}", outgate.errors());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_daemon_needs_no_more_memory_after_many_flows() {
    let world = World::new();
    let tables = "[limits]\nnew_connections_per_second = 0\nrequests_per_second = 0";
    let outgate = world.setup("good.test\n").tables(tables).start();
    let round = || {
        for _ in 0..100 {
            assert_eq!(world.guest.get("good.test", "/bytes/20000").status, 200);
        }
        let mut tls = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
        assert!(tls.get("good.test", "/bytes/1000000").unwrap().body == pattern(1_000_000));
    };
    round();
    let (memory, files) = (outgate.memory(), open_files(outgate.pid()));
    for _ in 0..5 {
        round();
    }
    eventually("no connection is left", || outgate.metric("active_connections", &[]) == 0.0);
    assert!(outgate.memory() < memory + (16 << 20), "{} after {memory}", outgate.memory());
    eventually("no file is left open", || open_files(outgate.pid()) <= files + 8);
    assert_eq!(outgate.metric("panics_total", &[]), 0.0);
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_log_file_that_was_rotated_away_is_opened_anew_on_a_signal() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    outgate.await_log(&[("name", "good.test")]);
    fs::rename(outgate.path("access.log"), outgate.path("access.log.1")).unwrap();
    outgate.signal(rustix::process::Signal::HUP);
    eventually("the file is there again", || {
        std::thread::sleep(Duration::from_millis(20));
        world.guest.get("good.test", "/").status == 200 && !outgate.log().is_empty()
    });
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_may_connect_over_ipv6() {
    let world = World::new();
    let listen = "proxy = [\"10.42.42.1:3128\", \"[fd42::1]:3128\"]";
    let outgate = world.setup("good.test\n").listen(listen).start();
    let address: std::net::SocketAddr = "[fd42::1]:3128".parse().unwrap();
    let mut wire = Wire::dial(&world.guest.namespace, address).unwrap();
    wire.say("GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
    assert_eq!(wire.hear("GET").status, 200);
    let line = outgate.await_log(&[("name", "good.test")]);
    assert!(line["source"].as_str().unwrap().contains("fd42::2"), "{line}");

    let mut wire = Wire::dial(&world.guest.namespace, address).unwrap();
    wire.say("CONNECT [fd42::1]:3128 HTTP/1.1\r\nHost: [fd42::1]:3128\r\n\r\n");
    assert_eq!(wire.hear("CONNECT").status, 403);
}
