//! The tour of the book, word for word: every command of docs/tour.md is run in its order by one shell, and prints what
//! the page says. Times, ports of clients, byte counts and the wording of curl's errors are left out of the comparison.

use crate::world::{DNS, PATIENCE, World, eventually};
use regex::Regex;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A command of a page, with the lines that it prints.
struct Step {
    line: usize,
    command: String,
    prints: Vec<String>,
}

/// The commands in the `console` blocks of a page. A command begins with `$ ` and goes on to the end of its here-document.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut in_block, mut in_document) = (false, false);
    for (number, line) in page.lines().enumerate() {
        if line.starts_with("```") && !in_document {
            in_block = line == "```console";
        } else if !in_block {
        } else if in_document {
            let step = steps.last_mut().unwrap();
            step.command += &format!("\n{line}");
            in_document = line != "EOF";
        } else if let Some(command) = line.strip_prefix("$ ") {
            in_document = command.ends_with("<<'EOF'");
            steps.push(Step { line: number + 1, command: command.to_owned(), prints: Vec::new() });
        } else {
            steps.last_mut().expect("a block begins with a command").prints.push(line.to_owned());
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
            (r"curl: \((\d+)\) .*", "curl: ($1)"),
            (r" {2,}", " "),
        ];
        Normal(patterns.map(|(pattern, with)| (Regex::new(pattern).unwrap(), with)).into())
    }

    /// What a command printed. `pulse` is the line that a download in the background repeats each second: it counts
    /// once where it is expected, and not at all elsewhere. What the shell's background processes print has no order of
    /// its own, so lines are sorted where the daemon's are among them.
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

/// What only some machines or users see at the start.
const MACHINE: [&str; 2] = [" INFO all privileges are given up ", " file descriptors are enough for "];
const PULSE: &str = "still here";

/// A shell that is fed one command after the other. Everything it starts writes into one file.
struct Shell {
    child: Child,
    output: std::path::PathBuf,
    read: usize,
    sent: usize,
}

impl Shell {
    fn start(world: &World, folder: &Path) -> Shell {
        let output = folder.join("printed");
        let file = File::options().create(true).append(true).open(&output).unwrap();
        // A terminal would get no progress meter either.
        fs::write(folder.join(".curlrc"), "no-progress-meter\n").unwrap();
        // The daemon looks for a server that answers, in whatever network the page is read.
        let resolver = folder.join("resolv.conf");
        fs::write(&resolver, format!("nameserver {DNS}\n")).unwrap();
        let mut command = Command::new("unshare");
        let mount = format!("mount --bind {} /etc/resolv.conf && exec bash", resolver.display());
        command.args(["--mount", "sh", "-c", &mount]);
        command.current_dir(folder).env("HOME", folder).env_remove("RUST_LOG").stdin(Stdio::piped());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = world.gateway.run(|| command.spawn().expect("unshare is installed"));
        Shell { child, output, read: 0, sent: 0 }
    }

    /// The lines since the last call of `next`, and whether the command has ended.
    fn printed(&self) -> (Vec<String>, bool) {
        let text = fs::read_to_string(&self.output).unwrap();
        let mark = self.mark();
        let lines = text[self.read..].lines().filter(|line| !line.starts_with('\u{1}')).map(str::to_owned).collect();
        (lines, text.contains(&mark))
    }

    fn mark(&self) -> String {
        format!("\u{1}{}\n", self.sent)
    }

    /// Sends a command; what it prints is all from here on.
    fn send(&mut self, command: &str) {
        self.read = usize::try_from(fs::metadata(&self.output).unwrap().len()).unwrap();
        self.sent += 1;
        let line = format!("{command}\nprintf '\\001%s\\n' {}\n", self.sent);
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
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

#[test]
fn the_tour_goes_as_the_page_says() {
    let Some(world) = World::new() else { return };
    let folder = tempfile::Builder::new().prefix("outgate-tour-").tempdir().unwrap();
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tour.md")).unwrap();
    // The page's date will pass one day.
    let page = page.replace("2027-01-31", "2999-01-31").replace("/tmp/tour", folder.path().join("tour").to_str().unwrap());
    let steps = steps(&page);
    assert!(steps.len() > 25, "only {} commands were found", steps.len());

    let normal = Normal::new();
    let mut shell = Shell::start(&world, folder.path());
    for Step { line, command, prints } in &steps {
        // The program is built already.
        let program = Path::new(env!("CARGO_BIN_EXE_outgate")).parent().unwrap().display();
        let built = format!("export PATH=\"{program}:$PATH\"");
        let command = if command.starts_with("cargo build") { &built } else { command };
        let pulse = prints.iter().any(|line| line == PULSE);
        let wanted = normal.of(prints, pulse);
        shell.send(command);
        if command.starts_with("python3 ") {
            // A reader is slower than Python.
            let origin = || TcpStream::connect("127.0.0.1:8080").is_ok();
            eventually("the origin listens", || world.gateway.run(origin));
        }
        let give_up = Instant::now() + PATIENCE;
        loop {
            let (lines, ended) = shell.printed();
            let found = normal.of(&lines, pulse);
            if ended && found == wanted {
                break;
            }
            assert!(
                Instant::now() < give_up,
                "docs/tour.md:{line}: {command}\nthe page says {wanted:#?}\nprinted was {found:#?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
