//! What the compiler does not check about the code: data flows down the stages, only `flow` calls them, shared types
//! import nothing else, and nothing outside tests may panic. Needs no root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Words that everything shares.
const WORDS: [&str; 11] =
    ["cooperate", "endpoint", "listener", "lock", "name", "reason", "shell", "source", "target", "throttle", "trouble"];

/// What a connection carries from stage to stage: whose it is, what that guest may use, and what is live.
const CARRIED: [&str; 3] = ["guest", "limits", "live"];

/// Each stage, and what it may name of other stages: the output of the one before it, and what has a
/// reason beside it.
const STAGES: [(&str, &[&str]); 7] = [
    ("accept", &[]),
    ("identify", &["accept::Accepted"]),
    ("policy", &["identify::Claim"]),
    // What a permit carries, and which modules it may not name.
    ("resolve", &["policy::Permit", "policy::NamePermit", "policy::AddressTerms", "tls::check_length"]),
    ("dial", &["resolve::Vetted"]),
    // Plain HTTP is framed on its way: the strict parsers serve requests and responses alike. Raw bytes are searched on
    // theirs. A guest may be inside TLS.
    (
        "relay",
        &[
            "dial::Upstream",
            // An idle connection keeps what it was permitted for, so that a reload can judge it.
            "identify::Claim",
            "identify::HostSearch",
            "identify::Parsed",
            "identify::chunked",
            "identify::http",
            "tls::Stream",
        ],
    ),
    // A record tells the whole story: what was claimed and which rule decided.
    (
        "account",
        &[
            "identify::Claim",
            "identify::Evidence",
            "policy::Location",
            "policy::NearMiss",
            "policy::Permit",
            "policy::Refusal",
        ],
    ),
];

/// The calls that carry a flow from stage to stage, and which modules besides `flow` may make them.
const CALLS: [(&str, &[&str]); 6] = [
    // A reload asks again for the flows that are open; `explain` asks without a flow.
    (".decide(", &["policy", "daemon/reload.rs", "cli/explain.rs"]),
    (".vet(", &["resolve"]),
    (".try_vet(", &["resolve"]),
    ("dial::connect(", &["dial"]),
    ("Tunnel::new(", &["relay"]),
    // What takes any text for an address must not see a guest's; `dial` gives it vetted ones.
    ("TcpStream::connect", &["dial"]),
];

/// What may panic and is allowed to, by file and text, with the reason.
const MAY_PANIC: [(&str, &str, &str); 0] = [];

/// A source file: its path below `src`, and its text without tests and comments.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Is it the file of this module, or below it?
    fn is_in(&self, module: &str) -> bool {
        self.path == module
            || self.path == format!("{module}.rs")
            || self.path.strip_prefix(module).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let skipped =
            matches!(name.to_str(), Some("target" | ".git" | "corpus" | "artifacts" | "coverage" | "node_modules"));
        match entry.file_type().unwrap() {
            _ if skipped => {}
            kind if kind.is_dir() => files_below(&path, found),
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    files_below(&root().join("src"), &mut files);
    let mut sources = Vec::new();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let path = file.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
        let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
        if !is_test {
            let text = without_comments(without_tests(&fs::read_to_string(&file).unwrap()));
            sources.push(Source { path, text });
        }
    }
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

/// Tests stand last in a file.
fn without_tests(text: &str) -> &str {
    let last = text.match_indices("#[cfg(test)]").find(|(at, _)| {
        text.get(*at..)
            .and_then(|rest| rest.lines().nth(1))
            .is_some_and(|line| line.contains("mod ") && line.ends_with(['{', '}']))
    });
    last.map_or(text, |(at, _)| &text[..at])
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| match line.find("//") {
        // Not the slashes of a URL in a string.
        Some(at) if !line[..at].ends_with(':') && !line[..at].ends_with('"') => line[..at].to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(|line| code(line) + "\n").collect()
}

/// Every path after `crate::`, use trees taken apart, cut to two segments.
fn imports(text: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for (at, found) in text.match_indices("crate::") {
        let tree: String = tree_at(&text[at + found.len()..]);
        expand("", &tree, &mut paths);
    }
    paths.into_iter().map(|path: String| path.split("::").take(2).collect::<Vec<_>>().join("::")).collect()
}

/// The use tree or path that the text starts with.
fn tree_at(text: &str) -> String {
    let mut depth = 0usize;
    let mut tree = String::new();
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ if depth > 0 || character.is_alphanumeric() || matches!(character, '_' | ':' | '*') => {}
            _ => break,
        }
        tree.push(character);
    }
    tree
}

fn expand(prefix: &str, tree: &str, paths: &mut BTreeSet<String>) {
    let Some(open) = tree.find('{') else {
        let path =
            tree.split(" as ").next().unwrap_or_default().trim().trim_end_matches("::self").trim_end_matches(':');
        paths.insert(format!("{prefix}{path}"));
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0usize, 0);
    for (at, character) in inner.char_indices().chain([(inner.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 || at == inner.len() => {
                let part = inner[start..at].trim();
                if !part.is_empty() {
                    expand(&prefix, part, paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

#[test]
fn use_trees_are_taken_apart() {
    let text = "use crate::policy::{Permit, rule::{Effect, Subject}};\nlet x = crate::reason::Reason::Ech;\n";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["policy::Permit", "policy::rule", "reason::Reason"]);
    let found: Vec<String> = imports("use crate::{name, dial::{self, connect}};").into_iter().collect();
    assert_eq!(found, ["dial::connect", "dial::self", "name"]);
    assert_eq!(
        without_tests("a\n#[cfg(test)]\nfn seam() {}\n#[cfg(test)]\nmod tests {}\n"),
        "a\n#[cfg(test)]\nfn seam() {}\n"
    );
}

#[test]
fn a_stage_names_only_the_output_of_the_stage_before_it() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((stage, allowed)) = STAGES.iter().find(|(stage, _)| source.is_in(stage)) else { continue };
        for import in imports(&source.text) {
            let module = import.split("::").next().unwrap_or_default();
            if module != *stage
                && !WORDS.contains(&module)
                && !CARRIED.contains(&module)
                && !allowed.contains(&import.as_str())
            {
                wrong.push(format!("src/{} names crate::{import}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn shared_types_import_only_shared_types() {
    for source in sources() {
        if WORDS.iter().any(|word| source.is_in(word)) {
            for import in imports(&source.text) {
                let module = import.split("::").next().unwrap_or_default().to_owned();
                assert!(WORDS.contains(&module.as_str()), "src/{} names crate::{import}", source.path);
            }
        }
    }
}

#[test]
fn only_flow_calls_the_stages() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (call, others) in CALLS {
            let may = source.is_in("flow") || others.iter().any(|other| source.is_in(other));
            if !may && source.text.contains(call) {
                wrong.push(format!("src/{} calls {call}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_outside_tests_panics_on_purpose() {
    let panics = [".unwrap()", ".expect(", "panic!(", "unreachable!(", "assert!(", "assert_eq!("];
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            let excused = MAY_PANIC.iter().any(|(file, text, _)| source.path == *file && line.contains(text));
            let debug = line.contains("debug_assert");
            if !excused && !debug && panics.iter().any(|panic| line.contains(panic)) {
                wrong.push(format!("src/{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_is_only_in_the_module_of_socket_calls() {
    for source in sources().into_iter().filter(|source| !source.is_in("system")) {
        for form in ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern", "unsafe("] {
            assert!(!source.text.contains(form), "src/{} has {form:?}", source.path);
        }
    }
}

/// What reads a name as an address, or repairs it, must not see what a guest wrote. Manifests are read as yagna
/// reads them.
#[test]
fn only_golem_reads_with_the_crate_url() {
    for source in sources().into_iter().filter(|source| !source.is_in("golem")) {
        for form in ["use url::Url", " url::Url", "::url::Url", "(url::Url"] {
            assert!(!source.text.contains(form), "src/{} has {form:?}", source.path);
        }
    }
}

#[test]
fn no_todo_is_left() {
    let mut files = Vec::new();
    files_below(root(), &mut files);
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];
    let mut wrong = Vec::new();
    for file in files {
        let known = ["rs", "toml", "md", "sh", "py", "yml", "yaml", "json", "rules", "service", "socket", ""];
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if known.contains(&extension) {
            wrong.extend(
                marks.iter().filter(|mark| text.contains(**mark)).map(|mark| format!("{}: {mark}", file.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut files = Vec::new();
    files_below(&root().join("src"), &mut files);
    files_below(&root().join("tests/it"), &mut files);
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let is_test = file.ends_with("tests.rs") || file.parent().is_some_and(|folder| folder.ends_with("tests"));
        let text = fs::read_to_string(file).unwrap();
        assert!(
            is_test || text.starts_with("//! "),
            "{} does not open with a paragraph on what it is for",
            file.display()
        );
    }
}
