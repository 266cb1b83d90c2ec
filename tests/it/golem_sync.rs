//! `outgate golem sync` against an HTTPS origin of its own on loopback, which is trusted through SSL_CERT_FILE.
//! Needs no root, but for the test with a running daemon.

use crate::reload::allows;
use crate::world::ran::Ran;
use crate::world::tls_site::{Page, Site};
use crate::world::{World, eventually, pki};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const STRICT: &str = "ipfs.io\n10.1.2.3\ngithub.com\n";
const REGEX: &str = "^geth[0-9]*\\.golem\\.network$\n";

/// A whitelist dir, its configuration, and a trusted authority.
struct Operator {
    dir: TempDir,
}

impl Ran {
    #[track_caller]
    fn good(self) -> Ran {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    /// It failed with these words, and printed no answer.
    #[track_caller]
    fn failed(self, words: &str) -> Ran {
        assert_eq!((self.code, self.out.as_str()), (1, ""), "{}", self.err);
        assert!(self.err.contains(words), "{words}: {}", self.err);
        self
    }
}

impl Operator {
    fn new() -> Operator {
        let operator = Operator { dir: tempfile::Builder::new().prefix("outgate-sync-").tempdir().unwrap() };
        fs::create_dir(operator.path("lists")).unwrap();
        fs::write(operator.path("lists/local.rules"), "mine.example.org\n").unwrap();
        fs::write(operator.path("o.toml"), "[whitelist]\ndir = \"lists\"\n").unwrap();
        fs::write(operator.path("roots.pem"), pki::pems("localhost").authority).unwrap();
        operator
    }

    /// With the list of [`archive`] in force.
    fn synced() -> Operator {
        let operator = Operator::new();
        operator.sync(&["--from", operator.archive(STRICT, REGEX).to_str().unwrap()]).good();
        operator
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("lists/golem-published.json")
    }

    fn list(&self) -> String {
        fs::read_to_string(self.file()).unwrap_or_default()
    }

    fn archive(&self, strict: &str, regex: &str) -> PathBuf {
        let path = self.path("resources.tar.gz");
        fs::write(&path, archive(&[("whitelist/strict.lst", strict), ("whitelist/regex.lst", regex)])).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command
            .args(["golem", "sync", "--config"])
            .arg(self.path("o.toml"))
            .args(arguments)
            .current_dir(self.dir.path());
        command.env("SSL_CERT_FILE", self.path("roots.pem")).env_remove("SSL_CERT_DIR");
        for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.stdin(Stdio::null());
        command
    }

    fn sync(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    fn from(&self, source: &str, more: &[&str]) -> Ran {
        self.sync(&[&["--from", source], more].concat())
    }
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(packer);
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

#[test]
fn the_published_archive_is_fetched_shown_and_written() {
    let (site, operator) = (Site::start(), Operator::new());
    site.body(
        "/store/1",
        archive(&[("certs/x.pem", "x"), ("whitelist/regex.lst", REGEX), ("whitelist/strict.lst", STRICT)]),
    );
    site.put("/v2/resources.tar.gz", Page::Redirect(site.url("/store/1")));
    let source = site.put("/latest/resources.tar.gz", Page::Redirect("/v2/resources.tar.gz".to_owned()));

    let ran = operator.from(&source, &[]).good();
    let diff =
        "+ ipfs.io (strict)\n+ 10.1.2.3 (strict)\n+ github.com (strict)\n+ ^geth[0-9]*\\.golem\\.network$ (regex)\n";
    assert!(ran.out.starts_with(diff), "{}", ran.out);
    let last = format!("written: {}: 4 entries, 4 added, 0 removed\n", operator.file().display());
    assert!(ran.out.ends_with(&last), "{}", ran.out);
    assert_eq!(site.asked(), ["/latest/resources.tar.gz", "/v2/resources.tar.gz", "/store/1"]);

    let list: Value = serde_json::from_str(&operator.list()).unwrap();
    assert_eq!(list["patterns"][1], json!({"domain": "10.1.2.3", "match": "strict"}));
    assert_eq!(list["patterns"][3], json!({"domain": "^geth[0-9]*\\.golem\\.network$", "match": "regex"}));
    assert_eq!(list["published_by_sync"]["sources"][0]["from"], source);
    assert_eq!(fs::metadata(operator.file()).unwrap().mode() & 0o777, 0o644);
    assert_eq!(fs::read_to_string(operator.path("lists/local.rules")).unwrap(), "mine.example.org\n");
    assert_eq!(fs::read_dir(operator.path("lists")).unwrap().count(), 2, "nothing else was left there");

    let inode = fs::metadata(operator.file()).unwrap().ino();
    let ran = operator.from(&source, &[]).good();
    assert!(ran.out.starts_with("unchanged: ") && ran.out.lines().count() == 1, "{}", ran.out);
    assert_eq!(fs::metadata(operator.file()).unwrap().ino(), inode, "it was not written again");

    site.body(
        "/store/1",
        archive(&[("whitelist/strict.lst", "ipfs.io\n10.1.2.3\ncrates.io"), ("whitelist/regex.lst", REGEX)]),
    );
    let ran = operator.from(&source, &[]).good();
    assert!(ran.out.starts_with("- github.com (strict)\n+ crates.io (strict)\nwritten: "), "{}", ran.out);
    let check =
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(operator.path("o.toml")).output();
    assert!(String::from_utf8(check.unwrap().stdout).unwrap().contains("2 files, 5 rules, 0 errors, 0 warnings"));
}

#[test]
fn lists_come_from_urls_files_and_folders_and_are_joined() {
    let (site, operator) = (Site::start(), Operator::new());
    let (strict, regex) = (site.body("/raw/strict.lst?v=1", STRICT), site.body("/raw/regex.lst", REGEX));
    let ran = operator.sync(&["--from", &strict, "--from", &regex, "--json"]).good();
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    let words = ["changed", "written", "entries", "source"].map(|key| answer[key].clone());
    assert_eq!(words, [json!(true), json!(true), json!(4), json!([strict.trim_end_matches("?v=1"), regex])]);
    assert_eq!(answer["added"][3], json!({"domain": "^geth[0-9]*\\.golem\\.network$", "match": "regex"}));
    assert_eq!((&answer["removed"], &answer["file"]), (&json!([]), &json!(operator.file())));

    fs::create_dir(operator.path("folder")).unwrap();
    fs::write(operator.path("folder/strict.lst"), STRICT).unwrap();
    fs::write(operator.path("folder/regex.lst"), REGEX).unwrap();
    fs::write(operator.path("my-regexes.lst"), "^bor\\.golem\\.network$\n").unwrap();
    let ran = operator.sync(&["--from", "folder", "--from", "my-regexes.lst"]).good();
    assert!(ran.out.starts_with("+ ^bor\\.golem\\.network$ (regex)\nwritten: "), "{}", ran.out);
    operator.from("nothing", &[]).failed("nothing: No such file");
    operator.from("o.toml", &[]).failed(
        "o.toml: neither a tar archive (optionally compressed with gzip) nor a list named \
                                     *.lst",
    );
}

#[test]
fn a_dry_run_shows_and_writes_nothing() {
    let operator = Operator::new();
    let source = operator.archive(STRICT, REGEX);
    let ran = operator.from(source.to_str().unwrap(), &["--dry-run"]).good();
    assert!(ran.out.contains("+ ipfs.io (strict)\n") && ran.out.contains("\nnot written: "), "{}", ran.out);
    let ran = operator.from(source.to_str().unwrap(), &["--dry-run", "--json"]).good();
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&answer["changed"], &answer["written"]), (&json!(true), &json!(false)));
    assert!(!operator.file().exists());
}

#[test]
fn only_https_is_fetched_and_followed() {
    let (site, operator) = (Site::start(), Operator::new());
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    plain.set_nonblocking(true).unwrap();
    let clear = format!("http://{}/strict.lst", plain.local_addr().unwrap());
    let ran = operator.from(&clear, &[]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("could change the list over http://; write https://"), "{}", ran.err);
    let source = site.put("/strict.lst", Page::Redirect(clear));
    operator.from(&source, &[]).failed("and only https:// is followed");
    assert!(plain.accept().is_err(), "nobody came in clear");
    assert!(!operator.file().exists());
}

#[test]
fn a_server_that_is_not_trusted_is_an_error_and_not_offline() {
    let (site, operator) = (Site::start(), Operator::new());
    let source = site.body("/strict.lst", STRICT);
    // Its certificate is for another name.
    let other = source.replace("localhost", "127.0.0.1");
    operator.from(&other, &["--offline-ok"]).failed("invalid peer certificate");
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(operator.path("roots.pem"), stranger.cert.pem()).unwrap();
    let ran = operator.from(&source, &["--offline-ok"]).failed("invalid peer certificate");
    assert!(ran.err.contains("name its file with SSL_CERT_FILE"), "{}", ran.err);
    fs::write(operator.path("roots.pem"), "").unwrap();
    operator.from(&source, &["--offline-ok"]).failed("trusts no certificate authority");
    assert!(site.asked().is_empty() && !operator.file().exists());
}

#[test]
fn sync_uses_the_proxy_of_the_environment() {
    let (site, operator) = (Site::start(), Operator::new());
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let port = site.port;
    let asked = std::thread::spawn(move || {
        let (mut client, _) = proxy.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(0);
            client.read_exact(head.last_mut().map(std::slice::from_mut).unwrap()).unwrap();
        }
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut back, mut there) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut back, &mut there));
        let _ = std::io::copy(&mut client, &mut server);
        String::from_utf8(head).unwrap()
    });
    site.body("/strict.lst", STRICT);
    // Only the proxy knows where that is.
    let source = format!("https://lists.invalid:{port}/strict.lst");
    let mut command = operator.command(&["--from", &source]);
    Ran::of(command.env("HTTPS_PROXY", format!("http://{address}")).output().unwrap()).good();
    assert!(asked.join().unwrap().starts_with(&format!("CONNECT lists.invalid:{port} HTTP/1.1\r\n")));
}

#[test]
fn a_download_that_does_not_end_or_ends_early_is_not_used() {
    let (site, operator) = (Site::start(), Operator::synced());
    let before = operator.list();
    for (page, words) in [
        (Page::Endless, "is larger than 4096 KiB"),
        (Page::Drip, "took too long"),
        (Page::Short, "disconnected"),
        (Page::Unchunked, "disconnected"),
        (Page::Unmeasured, "does not state the length of its answer"),
        (Page::Redirect(site.url("/strict.lst")), "redirects more than 5 times"),
    ] {
        let source = site.put("/strict.lst", page);
        operator.from(&source, &["--timeout", "2"]).failed(words);
    }
    assert_eq!(operator.list(), before);
}

#[test]
fn without_a_connection_the_list_stays_and_only_offline_ok_exits_0() {
    let (site, operator) = (Site::start(), Operator::synced());
    let before = operator.list();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for source in [
        format!("https://localhost:{nobody}/strict.lst"),
        "https://nowhere.invalid/strict.lst".to_owned(),
        site.put("/503.lst", Page::Status(503)),
    ] {
        operator.from(&source, &[]).failed("; the list in force stays");
        let ran = operator.from(&source, &["--offline-ok"]).good();
        assert!(ran.err.starts_with(&format!("outgate: warning: {source}: ")), "{}", ran.err);
        assert_eq!((ran.out.as_str(), operator.list()), ("", before.clone()));
    }
    operator.from(&site.url("/moved.lst"), &["--offline-ok"]).failed("the server answers 404");
    assert_eq!(operator.list(), before);
}

/// A minisign key and what it signs.
struct Signer {
    pair: Ed25519KeyPair,
    id: &'static [u8; 8],
}

impl Signer {
    fn new(seed: u8) -> Signer {
        Signer {
            pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap(),
            id: b"\x01\x02\x03\x04\x05\x06\x07\x08",
        }
    }

    fn public(&self) -> String {
        STANDARD.encode([b"Ed".as_slice(), self.id, self.pair.public_key().as_ref()].concat())
    }

    /// Over the bytes, or over their hash as minisign does it today.
    fn sign(&self, bytes: &[u8], hashed: bool) -> String {
        self.sign_as("timestamp:1", bytes, hashed)
    }

    /// With a comment of this text, as minisign writes it.
    fn sign_as(&self, comment: &str, bytes: &[u8], hashed: bool) -> String {
        let (algorithm, message) = if hashed { (b"ED", blake2b(bytes)) } else { (b"Ed", bytes.to_vec()) };
        let signature = self.pair.sign(&message);
        let whole = self.pair.sign(&[signature.as_ref(), comment.as_bytes()].concat());
        format!(
            "untrusted comment: any\n{}\ntrusted comment: {comment}\n{}\n",
            STANDARD.encode([algorithm.as_slice(), self.id, signature.as_ref()].concat()),
            STANDARD.encode(whole)
        )
    }
}

fn blake2b(bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(["dgst", "-blake2b512", "-binary"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("openssl is installed");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let mut hash = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut hash).unwrap();
    assert!(child.wait().unwrap().success() && hash.len() == 64);
    hash
}

#[test]
fn with_a_public_key_only_signed_lists_are_accepted() {
    let (site, operator, signer) = (Site::start(), Operator::new(), Signer::new(7));
    let bytes = archive(&[("strict.lst", STRICT), ("regex.lst", REGEX)]);
    let source = site.body("/lists.tgz", &bytes);
    let (key, path) = (signer.public(), "/lists.tgz.minisig");
    let with = |key: &str| operator.from(&source, &["--public-key", key]);

    with(&key).failed("/lists.tgz.minisig: the server answers 404; nothing was written");
    site.body(path, "no signature");
    with(&key).failed("no minisign signature");
    site.body(path, Signer::new(8).sign(&bytes, true));
    with(&key).failed("the signature is not valid");
    site.body(path, signer.sign(b"other bytes", true));
    with(&key).failed("the signature is not valid");
    site.body(path, signer.sign(&bytes, true).replace("timestamp:1", "timestamp:2"));
    with(&key).failed("the signature is not valid");
    assert!(!operator.file().exists());

    site.body(path, signer.sign(&bytes, true));
    with(&key).good();
    fs::write(operator.path("key.pub"), format!("untrusted comment: minisign public key\n{key}\n")).unwrap();
    site.body(path, signer.sign(&bytes, false));
    assert!(with("key.pub").good().out.starts_with("unchanged"));
    for nonsense in ["o.toml", "RWnonsense", ""] {
        assert_eq!(with(nonsense).code, 2, "{nonsense:?}");
    }
}

#[test]
fn each_of_several_files_has_its_signature_beside_it() {
    let (operator, signer) = (Operator::new(), Signer::new(7));
    let key = signer.public();
    for (name, text) in [("strict.lst", STRICT), ("regex.lst", REGEX)] {
        fs::write(operator.path(name), text).unwrap();
    }
    let sign = |name: &str, text: &str, said: &str| {
        let signature = signer.sign_as(&format!("timestamp:1\tfile:{said}\thashed"), text.as_bytes(), true);
        fs::write(operator.path(&format!("{name}.minisig")), signature).unwrap();
    };
    sign("strict.lst", STRICT, "strict.lst");
    let both = ["--from", "strict.lst", "--from", "regex.lst", "--public-key", &key];
    operator.sync(&both).failed("regex.lst.minisig: No such file");
    // Hosts that are served as regexes, under a signature that is good.
    fs::copy(operator.path("strict.lst"), operator.path("regex.lst")).unwrap();
    sign("regex.lst", STRICT, "strict.lst");
    operator.sync(&both).failed("its trusted comment does not say `file:regex.lst`");
    fs::write(operator.path("regex.lst"), REGEX).unwrap();
    sign("regex.lst", REGEX, "regex.lst");
    operator.sync(&both).good();
}

#[test]
fn an_invalid_list_is_reported_with_its_place_and_not_written() {
    let operator = Operator::synced();
    let before = operator.list();
    let source = operator.archive("ipfs.io\n*.ipfs.io\n", "^a$\n(\n\n");
    let ran = operator.from(source.to_str().unwrap(), &[]).failed("resources.tar.gz/whitelist/strict.lst:2:");
    for place in ["regex.lst:2:", "regex.lst:3:1: a blank or comment line"] {
        assert!(ran.err.contains(place), "{place}: {}", ran.err);
    }
    // Nor one that the list as a whole would not be sound with.
    fs::write(operator.path("lists/local.rules"), "no rule at all\n").unwrap();
    let source = operator.archive("ipfs.io\n10.1.2.3\ngithub.com\ncrates.io\n", REGEX);
    operator.from(source.to_str().unwrap(), &[]).failed("lists/local.rules:1:");
    assert_eq!(operator.list(), before);
}

#[test]
fn sync_never_empties_a_list_and_shrinks_it_only_with_an_option() {
    let operator = Operator::synced();
    let before = operator.list();
    let sync = |strict: &str, regex: &str, more: &[&str]| {
        operator.from(operator.archive(strict, regex).to_str().unwrap(), more)
    };
    sync("", "", &[]).failed("the new list has no entries");
    sync("", "", &["--allow-shrink"]).failed("the new list has no entries");
    sync("crates.io\n", REGEX, &[]).failed("lacks 3 of the 4 entries in force; if that is right");
    sync(STRICT, "", &[]).failed("no regex entries, and the list in force has some");
    assert_eq!(operator.list(), before);
    let ran = sync("crates.io\n", REGEX, &["--allow-shrink"]).good();
    assert!(ran.out.starts_with("- ipfs.io (strict)\n- 10.1.2.3 (strict)\n"), "{}", ran.out);
}

#[test]
fn a_list_that_matches_unrelated_owners_requires_an_option() {
    let operator = Operator::synced();
    let before = operator.list();
    let sync = |regex: &str, more: &[&str]| {
        let regex = format!("{REGEX}{regex}\n");
        operator.from(operator.archive(STRICT, &regex).to_str().unwrap(), more)
    };
    for wide in [".*", "golem", "\\.network$"] {
        sync(wide, &["--offline-ok", "--allow-shrink"]).failed("run it again with --allow-wide");
        assert_eq!(operator.list(), before, "{wide}");
    }
    sync("^own\\.example\\.org$", &[]).good();
    sync(".*", &["--allow-wide"]).good();
    // One that is already in force is not new.
    operator
        .from(
            operator.archive("ipfs.io\n10.1.2.3\ncrates.io\n", &format!("{REGEX}.*\n")).to_str().unwrap(),
            &["--allow-shrink"],
        )
        .good();
}

#[test]
fn a_file_that_sync_did_not_write_is_left_alone() {
    let operator = Operator::synced();
    let source = operator.archive(STRICT, REGEX);
    let edited = operator.list().replace("github.com", "gitlab.com");
    for (text, words) in [
        ("{\"patterns\":[{\"domain\":\"mine.example.org\"}]}", "was not written by `outgate golem sync`"),
        (&edited, "was edited since `outgate golem sync` wrote it"),
    ] {
        fs::write(operator.file(), text).unwrap();
        for more in [&[][..], &["--allow-shrink"], &["--dry-run"]] {
            operator.from(source.to_str().unwrap(), more).failed(words);
        }
        assert_eq!(operator.list(), text);
    }
}

#[test]
fn published_text_cannot_control_the_terminal() {
    let operator = Operator::new();
    let path = operator.path("x.tgz");
    fs::write(&path, archive(&[("\u{1b}[2J\u{202e}/strict.lst", "ipfs.io\nevil\u{1b}[31m.test\n")])).unwrap();
    let ran = operator.from(path.to_str().unwrap(), &[]).failed(":2:5: control or invisible character U+001B");
    assert!(!ran.err.contains(['\u{1b}', '\u{202e}']), "{}", ran.err);
    fs::write(&path, archive(&[("regex.lst", "^a\u{300}b\\.golem\\.network$\n")])).unwrap();
    let ran = operator.from(path.to_str().unwrap(), &[]).good();
    assert!(ran.out.starts_with("+ ^a\\u{300}b\\.golem"), "{}", ran.out);
    let site = Site::start();
    let source = site.put("/x.lst", Page::Redirect("https://localhost:1/\u{9b}2J".to_owned()));
    let ran = operator.from(&source, &[]);
    assert!(ran.code == 1 && !ran.err.contains('\u{9b}'), "{}", ran.err);
}

#[test]
fn sync_warns_that_the_providers_own_list_decides_on_jobs() {
    let operator = Operator::new();
    fs::create_dir(operator.path("data")).unwrap();
    fs::write(operator.path("o.toml"), "[whitelist]\ndir = \"lists\"\n[golem]\ndata_dir = \"data\"\n").unwrap();
    let source = operator.archive(STRICT, REGEX);
    let own = |list: &Value| fs::write(operator.path("data/domain_whitelist.json"), list.to_string()).unwrap();
    own(&json!({"patterns": [{"domain": "ipfs.io", "match": "strict"}, {"domain": "github.com"}]}));
    let ran = operator.from(source.to_str().unwrap(), &[]).good();
    assert!(ran.err.contains("domain_whitelist.json, which lacks 2 entries of this list"), "{}", ran.err);
    assert!(ran.err.contains("ya-provider whitelist add -t strict -p"), "{}", ran.err);
    own(&serde_json::from_str(&operator.list()).unwrap());
    assert_eq!(operator.from(source.to_str().unwrap(), &[]).good().err, "");
}

#[test]
#[ignore = "requires root"]
fn sync_without_a_whitelist_dir_says_what_to_do() {
    crate::rights::require();
    // On a machine that may have outgate's own configuration.
    let without_etc = "mount -t tmpfs none /etc && exec \"$0\" golem sync --from /nonexistent";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", without_etc, env!("CARGO_BIN_EXE_outgate")]);
    let done = command.output().unwrap();
    let err = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(err.contains("no whitelist dir") && err.contains("create /etc/outgate/whitelist"), "{err}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_running_daemon_uses_the_synced_list() {
    let world = World::new();
    let outgate = world.outgate("odd.test\n");
    let sync = |hosts: &str| {
        let list = outgate.path("strict.lst");
        fs::write(&list, hosts).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["golem", "sync", "--allow-shrink", "--config"]).arg(outgate.config()).arg("--from").arg(&list);
        assert!(command.output().unwrap().status.success());
    };
    assert!(!allows(&world, "good.test"));
    sync("good.test\n");
    eventually("the list is in force", || allows(&world, "good.test"));
    sync("cdn-ok.test\n");
    eventually("the next one is", || allows(&world, "cdn-ok.test"));
    assert!(!allows(&world, "good.test"));
    assert!(!outgate.errors().contains("warning"), "{}", outgate.errors());
}
