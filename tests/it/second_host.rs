//! A second host name in bytes that are not HTTP to outgate but are to some servers. Python's, Node's and Java's own
//! HTTP servers are origins of a rule without scheme; the tests check the Host that their handlers saw.

use crate::transparent;
use crate::world::client::Wire;
use crate::world::client_hello::Hello;
use crate::world::outgate::Outgate;
use crate::world::stub_resolver::RESOLVER;
use crate::world::{EVIL, GOOD, PATIENCE, PROXY, World, eventually};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The servers: program, arguments in front of address and port, port.
const SERVERS: [(&str, &[&str], u16); 3] = [
    ("python3", &["tests/data/lax/origin.py"], 8081),
    ("node", &["tests/data/lax/origin.js"], 8082),
    ("java", &["tests/data/lax/Origin.java"], 8083),
];

/// A server of those, in the internet.
struct Lax {
    child: Child,
    port: u16,
    output: PathBuf,
}

impl Lax {
    fn start(world: &World, folder: &std::path::Path, (program, arguments, port): (&str, &[&str], u16)) -> Lax {
        let output = folder.join(program);
        let file = fs::File::create(&output).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).args([GOOD.to_string(), port.to_string()]).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null());
        let child = world.internet.run(|| command.spawn()).unwrap_or_else(|error| panic!("{program}: {error}"));
        let lax = Lax { child, port, output };
        // Java compiles its program first.
        let give_up = Instant::now() + 4 * PATIENCE;
        while lax.direct(world).is_err() {
            assert!(Instant::now() < give_up, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        lax
    }

    /// Past outgate, from the machine that it runs on.
    fn direct(&self, world: &World) -> std::io::Result<Wire> {
        let address = SocketAddr::from((GOOD, self.port));
        world.gateway.run(|| TcpStream::connect(address)).and_then(Wire::new)
    }

    /// The Hosts that the handler saw so far.
    fn hosts(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.output).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    fn evil(&self) -> usize {
        self.hosts().iter().filter(|host| host.contains("evil")).count()
    }
}

impl Drop for Lax {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect()
}

/// The catalogue: request lines, and how a field is written.
fn forms(port: u16) -> Vec<Vec<u8>> {
    let lines = [
        "\x0bGET / HTTP/1.1",
        "\x1cGET / HTTP/1.1",
        "GET\x1d/ HTTP/1.1",
        "GET /\x1eHTTP/1.1",
        "GET\x1f/\x1fHTTP/1.1",
        "GET\u{85}/ HTTP/1.1",
        "GET\u{a0}/\u{a0}HTTP/1.1",
        "GET /",
        "GET x",
        "GET / RTSP/1.0",
        "SOURCE / ICE/1.0",
        "OPTIONS * RTSP/1.0",
        "FOO / BAR",
        "FOO %2fx BAR/1.1",
        "FOO / ",
        "F:O,O / 1",
        "A\nB / X",
        " / X",
        "FOO x:/ X",
        "FOO http://evil.test/ X",
    ];
    let own = format!("Host: good.test:{port}");
    let fields = [
        "Host: evil.test".to_owned(),
        "hOsT:evil.test".to_owned(),
        "A: b\rHost: evil.test".to_owned(),
        "Host:\r\n evil.test".to_owned(),
        format!("Host: evil.test\r\n{own}"),
        format!("{own}\r\nHost: evil.test"),
        "Host : evil.test".to_owned(),
    ];
    let mut forms = Vec::new();
    for line in lines {
        for field in &fields {
            forms.push(latin1(&format!("{line}\r\n{field}\r\n\r\n")));
        }
        if !line.contains('\n') {
            forms.push(latin1(&format!("{line}\nA: b\nHost: evil.test\n\n")));
        }
    }
    let honest = format!("GET / RTSP/1.0\r\n{own}\r\n\r\n");
    let odd = format!("FOO / BAR\r\n{own}\r\n\r\n");
    for first in [honest, odd] {
        forms.push(format!("{first}GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").into_bytes());
        forms.push(format!("{first}{first}GET / RTSP/1.0\r\nHost: evil.test\r\n\r\n").into_bytes());
    }
    for (count, length) in [(80, 220), (60, 1100), (2, 33_000)] {
        let padding = format!("X: {}\r\n", "a".repeat(length)).repeat(count);
        for line in ["GET / RTSP/1.0", "FOO / BAR", "GET\x1f/ HTTP/1.1", "GET /"] {
            forms.push(format!("{line}\r\n{padding}Host: evil.test\r\n\r\n").into_bytes());
        }
    }
    forms
}

fn start(world: &World, rules: &str) -> Outgate {
    let listen =
        format!("proxy = [\"{PROXY}\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\ndns = [\"{RESOLVER}\"]");
    let outgate = transparent::setup(world, rules).listen(&listen).tables("[limits]\nnew_connections_per_second = 0");
    let outgate = outgate.start();
    world.guest.lookup("good.test").assert_is([GOOD]);
    outgate
}

/// A connection of the guest to `good.test` through each listener.
fn connections(world: &World, port: u16) -> Vec<(&'static str, Wire)> {
    let (reply, socks) = world.guest.socks_name("good.test", port);
    assert_eq!(reply, Some(0));
    let brought = Wire::dial(&world.guest.namespace, SocketAddr::from((GOOD, port))).unwrap();
    vec![("connect", world.guest.tunnel(&format!("good.test:{port}"))), ("socks", socks), ("transparent", brought)]
}

fn servers(world: &World, folder: &std::path::Path) -> Vec<Lax> {
    SERVERS.map(|server| Lax::start(world, folder, server)).into()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn no_server_is_shown_another_host_on_a_port_without_scheme() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    // On its own, each of them takes some of these for requests to the other host.
    for lax in servers(&world, folder.path()) {
        let wires: Vec<Wire> = forms(lax.port)
            .into_iter()
            .map(|form| {
                let mut wire = lax.direct(&world).unwrap();
                wire.say(&form);
                wire
            })
            .collect();
        eventually("some forms are requests", || lax.evil() >= 10);
        println!("{}: at least {} of {} forms reach the other host", lax.output.display(), lax.evil(), wires.len());
    }
    let servers = servers(&world, folder.path());
    for rules in ["good.test:8000-8100\n", "good.test\n"] {
        let outgate = match rules {
            "good.test\n" => golem(&world),
            _ => start(&world, rules),
        };
        for lax in &servers {
            for form in forms(lax.port) {
                for (listener, mut wire) in connections(&world, lax.port) {
                    let shown = form[..form.len().min(80)].escape_ascii().to_string();
                    wire.say(&form);
                    assert!(wire.is_over(), "{rules:?}, {listener}, {}: {shown}", lax.port);
                }
            }
        }
        for lax in &servers {
            assert!(lax.evil() == 0, "{rules:?}, {}: {:?}", lax.port, lax.hosts());
        }
        assert!(outgate.counted("denied", "name_mismatch") > 300.0);
    }
    world.assert_untouched(EVIL);
}

/// With the name on a list of Golem's, which names no port.
fn golem(world: &World) -> Outgate {
    let listen =
        format!("proxy = [\"{PROXY}\"]\ntransparent = [\"0.0.0.0:3129\", \"[::]:3129\"]\ndns = [\"{RESOLVER}\"]");
    let setup = world.setup("").listen(&listen).tables("[limits]\nnew_connections_per_second = 0");
    let outgate = setup.file("strict.lst", "good.test\n").start();
    world.guest.lookup("good.test").assert_is([GOOD]);
    outgate
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_host_is_found_however_the_stream_is_segmented() {
    let world = World::new();
    let _outgate = start(&world, "good.test:8000-8100\n");
    world.internet.sink((GOOD, 8090));
    let text = b"GET / RTSP/1.0\r\nA: b\r\nHost: evil.test\r\n\r\n";
    for size in [1, 5, 16, 39] {
        for (listener, mut wire) in connections(&world, 8090) {
            wire.say_slowly(text.chunks(size), Duration::from_millis(if size == 1 { 2 } else { 30 }));
            assert!(wire.is_over(), "{listener}, {size}");
        }
    }
    // Its end would make a head whole too.
    for (listener, mut wire) in connections(&world, 8090) {
        wire.say(b"GET / RTSP/1.0\r\nHost: evil.test");
        std::thread::sleep(Duration::from_millis(50));
        wire.finish();
        assert!(wire.is_over(), "{listener}");
    }
    // Within half a second of a reset, all that an origin will ever read is there.
    eventually("every connection is over", || world.internet.seen(GOOD).iter().all(|seen| seen.ended));
    let seen = world.internet.seen(GOOD);
    assert_eq!(seen.len(), 15);
    let whole =
        |bytes: &[u8]| [&b"\r\n\r"[..], b"\n\n", b"\r\r"].iter().any(|end| bytes.windows(end.len()).any(|w| w == *end));
    assert!(seen.iter().all(|seen| !whole(&seen.bytes)), "no head was whole: {seen:?}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_allowed_host_passes_and_so_do_bytes_that_are_not_a_request() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let servers = servers(&world, folder.path());
    let outgate = start(&world, "good.test:8000-8100\n");
    for (lax, line) in servers.iter().zip(["GET\x1f/ HTTP/1.1", "GET / RTSP/1.0", "FOO / BAR"]) {
        for (listener, mut wire) in connections(&world, lax.port) {
            let own = lax.hosts().len();
            wire.say(format!("{line}\r\nHost: GOOD.test:{}\r\nReferer: http://evil.test/ x\r\n\r\n", lax.port));
            eventually(&format!("{listener}: {line:?} is served"), || lax.hosts().len() == own + 1);
            assert!(wire.take_bytes(9).starts_with(b"HTTP/1."), "{listener}");
        }
        assert_eq!(lax.evil(), 0);
    }
    world.internet.echo((GOOD, 8090));
    let mail = b"a1 APPEND inbox {40}\r\nHost: evil.test\r\n\r\n";
    let binary = [&[0x80, 0, 0xff][..], &[7; 100_000], b"\nHost: evil.test\r\n\r\n"].concat();
    for text in [&mail[..], &binary, b"SSH-2.0-x y\r\nHost: evil.test\r\n\r\n"] {
        for (listener, mut wire) in connections(&world, 8090) {
            let mut sender = wire.clone_sender();
            let sending = text.to_vec();
            let sent = std::thread::spawn(move || std::io::Write::write_all(&mut sender, &sending));
            assert!(wire.take_bytes(text.len()) == text, "{listener}");
            sent.join().unwrap().unwrap();
        }
    }
    assert_eq!(outgate.counted("denied", "name_mismatch"), 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_hello_after_postgresqls_ssl_request_is_checked() {
    const QUESTION: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let world = World::new();
    let outgate = start(&world, "good.test:5432\ntcp://good.test:5433\n");
    let serve = |port: u16, answer: u8| {
        world.internet.serve((GOOD, port), move |mut tap| {
            if std::io::Read::read_exact(&mut tap, &mut [0; 8]).is_ok() {
                let _ = std::io::Write::write_all(&mut tap, &[answer]);
                tap.drain();
            }
        });
    };
    serve(5432, b'S');
    serve(5433, b'S');
    let got = || world.internet.seen(GOOD).last().unwrap().bytes.clone();
    for (listener, mut wire) in connections(&world, 5432) {
        wire.say(QUESTION);
        assert_eq!(wire.take_bytes(1), b"S", "{listener}");
        wire.say(Hello::naming("evil.test").record());
        assert!(wire.is_over(), "{listener}");
    }
    // In pieces, all at once, and in two questions.
    let hello = Hello::naming("evil.test").record();
    for (first, second) in [
        (QUESTION[..3].to_vec(), [&QUESTION[3..], &hello].concat()),
        ([&QUESTION[..], &hello].concat(), Vec::new()),
        ([0, 0, 0, 8, 4, 210, 22, 48].to_vec(), [&QUESTION[..], &hello].concat()),
    ] {
        let mut wire = world.guest.tunnel("good.test:5432");
        wire.say(&first);
        std::thread::sleep(Duration::from_millis(100));
        wire.say(&second);
        assert!(wire.is_over());
    }
    eventually("all are over", || world.internet.seen(GOOD).iter().all(|seen| seen.ended));
    let seen = world.internet.seen(GOOD);
    assert!(seen.iter().all(|seen| seen.bytes.iter().all(|byte| *byte != 0x16 || seen.bytes.len() <= 16)), "{seen:?}");
    outgate.await_counted("denied", "name_mismatch", 6.0);

    for hello in [Hello::naming("good.test").record(), Hello::nameless().record()] {
        let mut wire = world.guest.tunnel("good.test:5432");
        wire.say(QUESTION);
        assert_eq!(wire.take_bytes(1), b"S");
        wire.say(&hello);
        eventually("its own name, or none, passes", || got().ends_with(&hello));
    }
    // The server had no TLS: the startup message in clear.
    let startup = b"\0\0\0\x20\0\x03\0\0user\0me\0\0";
    let mut wire = world.guest.tunnel("good.test:5432");
    wire.say(QUESTION);
    wire.say(startup);
    eventually("words in clear pass", || got().ends_with(startup));
    let mut wire = world.guest.tunnel("good.test:5433");
    wire.say([&QUESTION[..], &hello].concat());
    eventually("tcp:// is any bytes", || got().ends_with(&hello));
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_tcp_rule_lets_any_bytes_pass_that_are_not_http() {
    let world = World::new();
    let outgate = start(&world, "tcp://good.test:8090\n");
    world.internet.echo((GOOD, 8090));
    let text =
        b"REQMOD icap://good.test/x ICAP/1.0\r\nHost: good.test\r\n\r\nGET / RTSP/1.0\r\nHost: evil.test\r\n\r\n";
    for (listener, mut wire) in connections(&world, 8090) {
        wire.say(text);
        assert_eq!(wire.take_bytes(text.len()), text, "{listener}");
    }
    // What is HTTP to outgate is checked here too.
    let mut wire = world.guest.tunnel("good.test:8090");
    wire.say("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n");
    assert_eq!(wire.hear("GET").reason(), "name_mismatch");
    outgate.await_counted("denied", "name_mismatch", 1.0);
}
