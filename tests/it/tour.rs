//! Pages of the book, word for word: every command of docs/tour.md, and of the first section of docs/networks.md, is run
//! in its order, and prints what the page says. Times, ports of clients, counts of bytes and packets, and the wording of
//! curl's errors are left out of the comparison.

use crate::world::namespace::{self, Namespace};
use crate::world::{DNS, GOOD, PATIENCE, World, eventually, pki};
use regex::Regex;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Stands for lines that the page leaves out.
const ELLIPSIS: &str = "…";
/// What a download in the background repeats each second.
const PULSE: &str = "still here";
/// What only some machines or users see, or only sometimes: a guest solicits routers and neighbours when it likes.
const MACHINE: [&str; 6] = [
    " INFO all privileges are given up ",
    " file descriptors are enough for ",
    " Killed ",
    "  spoofed: ",
    "  IPv6 neighbour discovery",
    "  ICMP",
];
/// Commands that may be repeated until what they tell of has happened: a new list needs half a second, a line of the log some
/// milliseconds.
const READERS: [&str; 7] =
    ["head ", "tail ", "curl --noproxy ", "curl -s --noproxy ", "outgate denied", "outgate flows", "curl https://"];

/// A command of a page, with the lines that it prints.
struct Step {
    line: usize,
    in_guest: bool,
    command: String,
    prints: Vec<String>,
}

/// The commands in the `console` blocks of a page. A command begins with a prompt and goes on to the end of its
/// here-document. Prompts are `guest$ ` and what the block begins with: `$ `, or `# ` for root.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut in_block, mut prompt, mut in_document) = (false, None, false);
    for (number, line) in page.lines().enumerate() {
        if in_document {
            steps.last_mut().unwrap().command += &format!("\n{line}");
            in_document = line != "EOF";
        } else if line.starts_with("```") {
            (in_block, prompt) = (line == "```console", None);
        } else if in_block {
            let prompt = *prompt.get_or_insert_with(|| if line.starts_with("# ") { "# " } else { "$ " });
            let in_guest = line.strip_prefix("guest$ ");
            if let Some(command) = in_guest.or_else(|| line.strip_prefix(prompt)) {
                in_document = command.ends_with("<<'EOF'");
                let (in_guest, command) = (in_guest.is_some(), command.to_owned());
                steps.push(Step { line: number + 1, in_guest, command, prints: Vec::new() });
            } else {
                steps.last_mut().expect("a block begins with a command").prints.push(line.to_owned());
            }
        }
    }
    steps
}

/// Leaves out what differs from run to run and from machine to machine.
struct Normal(Vec<(Regex, &'static str)>);

impl Normal {
    fn new() -> Normal {
        let patterns = [
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "TIME"),
            (r"(_timestamp_seconds) \d+", "$1 TIME"),
            (r"\b[0-9a-f]{7,9}-([0-9a-f]+)\b", "RUN-$1"),
            (r"(127\.0\.0\.1):\d{5}\b", "$1:PORT"),
            (r#"("(?:bytes_up|bytes_down|duration_ms)"|took_ms)([:=])\d+"#, "$1$2N"),
            (r"(outgate_bytes_total\{.*\}) \d+", "$1 N"),
            (r"\b\d+ B\b", "N B"),
            (r"\b\d+s\b", "Ns"),
            (r"^\d+ +([a-z_0-9]+  .*)", "N $1"),
            (r"\bid: \d+", "id: N"),
            (r"\d+ msec", "N msec"),
            // A reset may come before or after curl looks whether it is connected, and while it speaks TLS.
            (r"curl: \((?:(?:7|56)\) .*|35\) .*[Rr]eset by peer.*)", "curl: (7 or 56)"),
            (r"curl: \((\d+)\) .*", "curl: ($1)"),
            (r"[ \t]{2,}", " "),
        ];
        Normal(patterns.map(|(pattern, with)| (Regex::new(pattern).unwrap(), with)).into())
    }

    /// What a command printed. With `pulse` [`PULSE`] counts once, and not at all otherwise. What runs in the background
    /// prints when it likes, so lines are sorted where the daemon's are among them.
    fn of(&self, lines: &[String], pulse: bool) -> Vec<String> {
        let mut normal: Vec<String> = lines
            .iter()
            .filter(|line| pulse || *line != PULSE)
            .filter(|line| !MACHINE.iter().any(|words| line.contains(words)))
            .map(|line| self.0.iter().fold(line.clone(), |text, (from, to)| from.replace_all(&text, *to).into_owned()))
            .map(|line| line.trim_end().to_owned())
            .collect();
        normal.dedup_by(|one, other| one == other && one == PULSE);
        if normal.iter().any(|line| line.starts_with("TIME ")) {
            normal.sort();
        }
        normal
    }
}

/// Are these the lines that the page has? Each [`ELLIPSIS`] of it stands for any number of them.
fn fits(wanted: &[String], found: &[String]) -> bool {
    match wanted {
        [] => found.is_empty(),
        [first, rest @ ..] if first == ELLIPSIS => (0..=found.len()).any(|skipped| fits(rest, &found[skipped..])),
        [first, rest @ ..] => found.first() == Some(first) && fits(rest, &found[1..]),
    }
}

/// A shell that is fed one command after the other. Everything that it starts writes into one file.
struct Shell {
    child: Child,
    output: PathBuf,
    read: usize,
    sent: usize,
}

impl Shell {
    /// Starts a shell in this namespace, with what `mounts` puts in its place; `folder` is its home.
    fn start(namespace: &Namespace, folder: &Path, mounts: &str) -> Shell {
        let output = folder.join("printed");
        let file = File::options().create(true).append(true).open(&output).unwrap();
        // On a terminal curl shows no progress meter.
        fs::write(folder.join(".curlrc"), "no-progress-meter\n").unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_outgate")).parent().unwrap().display();
        let path = format!("{program}:{}", std::env::var("PATH").unwrap());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{mounts} exec bash")]).current_dir(folder);
        command
            .env("HOME", folder)
            .env("PATH", path)
            .env("CURL_CA_BUNDLE", folder.join("ca.pem"))
            .env_remove("RUST_LOG");
        command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = namespace.run(|| command.spawn().expect("unshare is installed"));
        Shell { child, output, read: 0, sent: 0 }
    }

    /// The lines since the last command was sent, and whether it has ended.
    fn printed(&self) -> (Vec<String>, bool) {
        let text = fs::read_to_string(&self.output).unwrap();
        let lines = text[self.read..].lines().filter(|line| !line.starts_with('\u{1}')).map(str::to_owned).collect();
        (lines, text.contains(&format!("\u{1}{}\n", self.sent)))
    }

    fn send(&mut self, command: &str) {
        self.read = usize::try_from(fs::metadata(&self.output).unwrap().len()).unwrap();
        self.sent += 1;
        let line = format!("{command}\nprintf '\\001%s\\n' {}\n", self.sent);
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// Runs a step, and waits until it has printed what the page says.
    #[track_caller]
    fn follow(&mut self, page: &str, step: &Step, normal: &Normal) {
        let Step { line, command, prints, .. } = step;
        let pulse = prints.iter().any(|line| line == PULSE);
        let wanted = normal.of(prints, pulse);
        let give_up = Instant::now() + PATIENCE;
        self.send(command);
        loop {
            let (lines, ended) = self.printed();
            let found = normal.of(&lines, pulse);
            if ended && fits(&wanted, &found) {
                return;
            }
            assert!(
                Instant::now() < give_up,
                "{page}:{line}: {command}\nthe page says {wanted:#?}\nprinted was {found:#?}\nas it was: {lines:#?}"
            );
            std::thread::sleep(Duration::from_millis(20));
            if ended && READERS.iter().any(|reader| command.starts_with(reader)) {
                self.send(command);
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.send("kill $(jobs -p) 2>/dev/null; wait; exit");
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("outgate-tour-").tempdir().unwrap()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_tour_behaves_as_the_page_says() {
    let world = World::new();
    let folder = folder();
    // The page's date will pass one day.
    let text = page("docs/tour.md").replace("2027-01-31", "2999-01-31");
    let text = text.replace("/tmp/tour", folder.path().join("tour").to_str().unwrap());
    let mut steps = steps(&text);
    assert!(steps.len() > 25, "only {} commands were found", steps.len());
    assert!(steps.remove(0).command.starts_with("cargo build "), "the program is built already");

    // The daemon reports a network without a DNS server, and the page is read where there is one.
    let resolver = folder.path().join("resolv.conf");
    fs::write(&resolver, format!("nameserver {DNS}\n")).unwrap();
    let mounts = format!("mount --bind {} /etc/resolv.conf &&", resolver.display());
    let mut shell = Shell::start(&world.gateway, folder.path(), &mounts);
    let normal = Normal::new();
    for step in &steps {
        shell.follow("docs/tour.md", step, &normal);
        if step.command.starts_with("python3 ") {
            // A reader is slower than Python.
            let origin = || TcpStream::connect("127.0.0.1:8080").is_ok();
            eventually("the origin listens", || world.gateway.run(origin));
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_smallest_vm_network_behaves_as_the_page_says() {
    let world = World::new();
    let (host, guest) = (folder(), folder());
    let text = page("docs/networks.md");
    // The section, with the lines before it as empty ones.
    let begin = text.find("\n## A guest that knows nothing of outgate\n").unwrap();
    let end = begin + 1 + text[begin + 1..].find("\n## What each recipe needs\n").unwrap();
    let text = "\n".repeat(text[..begin].matches('\n').count()) + &text[begin..end];

    // The VM, on the tap, where the world's guests were.
    let name = world.gateway.name().replace("-gw", "-vm");
    let [vm] = Namespace::create([name]);
    let names = (world.gateway.name(), vm.name());
    namespace::batch(
        None,
        &format!("link add name tap7 netns {} type veth peer name eth0 netns {}\n", names.0, names.1),
    );
    namespace::batch(
        Some(&world.gateway),
        "link del g1\nlink del g2\nlink set tap7 up\naddr add 10.42.42.1/24 dev tap7\n",
    );
    namespace::batch(
        Some(&vm),
        "link set lo up\nlink set eth0 up\naddr add 10.42.42.7/24 dev eth0\nroute add default via 10.42.42.1\n",
    );
    for name in ["files.test", "packages.test"] {
        world.dns.set(name, [GOOD]);
    }
    for folder in [&host, &guest] {
        pki::install(folder.path(), "nobody.test");
    }
    // The page's files are in the place of this machine's.
    let config = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(config.starts_with("# /etc/outgate/outgate.toml\n"));
    let (etc, lib) = (host.path().join("etc"), host.path().join("lib"));
    assert!(Command::new("cp").arg("-a").arg("/etc").arg(&etc).status().unwrap().success());
    let _ = fs::remove_dir_all(etc.join("outgate"));
    let _ = fs::remove_file(etc.join("resolv.conf"));
    fs::create_dir_all(etc.join("outgate/whitelist")).unwrap();
    fs::create_dir_all(lib.join("outgate")).unwrap();
    fs::write(etc.join("outgate/outgate.toml"), config).unwrap();
    fs::write(etc.join("resolv.conf"), format!("nameserver {DNS}\n")).unwrap();
    // As the package has it.
    let users = File::options().append(true).open(etc.join("passwd"));
    users.unwrap().write_all(b"outgate:x:3128:3128::/var/lib/outgate:/usr/sbin/nologin\n").unwrap();
    let mounts = format!(
        "mount --bind {} /etc && mount --bind {} /var/lib && mount -t tmpfs none /run &&",
        etc.display(),
        lib.display()
    );
    let mut host = Shell::start(&world.gateway, host.path(), &mounts);
    let resolver = guest.path().join("resolv.conf");
    fs::write(&resolver, "nameserver 1.1.1.1\n").unwrap();
    let mounts = format!("mount --bind {} /etc/resolv.conf &&", resolver.display());
    let mut guest = Shell::start(&vm, guest.path(), &mounts);

    let mut steps = steps(&text);
    assert!(steps.len() > 15, "only {} commands were found", steps.len());
    let normal = Normal::new();
    for step in &mut steps {
        // Other tests have daemons too.
        step.command = step.command.replace("\"$(pidof outgate)\"", "$!");
        let shell = if step.in_guest { &mut guest } else { &mut host };
        shell.follow("docs/networks.md", step, &normal);
    }
}
