//! Guests that are registered while the daemon runs, each restricted to its manifest. The tests check what the
//! origins and the DNS server saw.

use crate::golem::{Provider, at_a_provider, authorities, everyone, manifest_of, save, sign, strict, urls};
use crate::world::client::{Get, Guest};
use crate::world::client_hello::Hello;
use crate::world::guarded_network::GuardedNetwork;
use crate::world::outgate::Outgate;
use crate::world::stub_resolver::RESOLVER;
use crate::world::{CDN, EVIL, GOOD, ODD, PROXY, World, eventually};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;

struct Answer {
    code: i32,
    out: String,
    err: String,
}

/// Runs `outgate guest …` against this daemon.
fn guest(outgate: &Outgate, arguments: &[&str]) -> Answer {
    let config = outgate.config();
    let mut command = outgate.command(&["guest", arguments[0], "--config", config.to_str().unwrap()]);
    let done = command.args(&arguments[1..]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Answer { code: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
}

#[track_caller]
fn added(outgate: &Outgate, arguments: &[&str]) -> String {
    let answer = guest(outgate, &[&["add"], arguments].concat());
    assert_eq!(answer.code, 0, "{}{}", answer.out, answer.err);
    answer.out
}

#[track_caller]
fn not_added(outgate: &Outgate, arguments: &[&str], words: &str) {
    let answer = guest(outgate, &[&["add"], arguments].concat());
    assert!(answer.code == 1 && answer.err.contains(words), "{}: {}{}", answer.code, answer.out, answer.err);
}

fn names(outgate: &Outgate) -> Vec<String> {
    let answer = guest(outgate, &["list", "--json"]);
    let guests: Value = serde_json::from_str(&answer.out).unwrap();
    guests["guests"].as_array().unwrap().iter().map(|guest| guest["name"].as_str().unwrap().to_owned()).collect()
}

/// Writes a manifest that asks for this; its path.
fn manifest(outgate: &Outgate, name: &str, out: &Value) -> String {
    let path = outgate.path(name);
    fs::write(&path, manifest_of(out).to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A daemon of a provider with this list, and `everyone` in this mode.
fn provider(world: &World, rules: &str, hosts: &[&str], mode: &str) -> Outgate {
    let listen = format!("proxy = [\"{PROXY}\"]\ndns = [\"{RESOLVER}\"]");
    let (mut outgate, data) = at_a_provider(world.setup(rules).listen(&listen), "");
    save(&data, "domain_whitelist.json", &strict(hosts));
    save(&data, "rules.json", &everyone(mode));
    outgate.launch();
    outgate.await_ready();
    outgate
}

fn reason(guest: &Guest, host: &str) -> String {
    guest.get(host, "/").reason()
}

/// The answer of the control socket to a request, status and body.
fn control(outgate: &Outgate, method: &str, target: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(outgate.path("control.sock")).unwrap();
    write!(stream, "{method} {target} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[test]
#[ignore = "requires root and network namespaces"]
fn two_guests_at_once_reach_the_hosts_of_their_own_manifests_and_neither_the_others() {
    let world = World::new();
    let outgate = provider(&world, "", &["good.test", "cdn-ok.test", "odd.test"], "whitelist");
    let one = manifest(&outgate, "one", &urls(&["https://good.test/x", "http://good.test"]));
    let two = manifest(&outgate, "two", &urls(&["https://cdn-ok.test", "http://CDN-OK.test:80/y"]));
    let said = added(&outgate, &["one", "--address", "10.42.42.2", "--manifest", &one]);
    assert_eq!(
        said,
        "one is registered: https://good.test/, http://good.test/ within what the list allows, by the Everyone rule\n"
    );
    added(&outgate, &["two", "--address", "10.42.42.3", "--manifest", &two]);
    for (guest, own, others) in
        [(&world.guest, "good.test", "cdn-ok.test"), (&world.neighbour, "cdn-ok.test", "good.test")]
    {
        assert_eq!(guest.get(own, "/").status, 200);
        assert_eq!(guest.https_get(&format!("{own}:443"), own, "/").unwrap().status, 200);
        assert_eq!(reason(guest, others), "not_whitelisted");
        assert_eq!(guest.connect(&format!("{others}:443")).0.reason(), "not_whitelisted");
        assert_eq!(guest.socks_name(others, 443).0, Some(2));
        guest.lookup(others).assert_blocked("not_whitelisted");
        assert!(!guest.lookup(own).addresses.is_empty());
        // On the list, and in no manifest.
        assert_eq!(reason(guest, "odd.test"), "not_whitelisted");
        // Its own host by another port and in another protocol.
        assert_eq!(guest.connect(&format!("{own}:8443")).0.reason(), "port_not_allowed");
        let mut wire = guest.tunnel(&format!("{own}:443"));
        wire.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        wire.is_over();
    }
    for (address, client) in [(GOOD, "10.42.42.2"), (CDN, "10.42.42.3")] {
        assert!(world.internet.requests(address).iter().len() == 2, "{client} and nobody else was at {address}");
    }
    world.assert_untouched(ODD);
    world.assert_asked_only(&["cdn-ok.test", "good.test"]);
    let line = outgate.await_log(&[("guest", "one"), ("name", "cdn-ok.test"), ("reason", "not_whitelisted")]);
    assert!(line["advice"].as_str().unwrap().starts_with("the guest's manifest does not name cdn-ok.test:"), "{line}");
    assert_eq!(
        outgate.metric("guest_connections_total", &[("guest", "one")]),
        0.0,
        "no series for those that come and go"
    );
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_guest_whose_manifest_asks_for_nothing_reaches_nothing_and_gets_no_dns() {
    let world = World::new();
    let outgate = provider(&world, "", &["good.test"], "all");
    for (name, out) in
        [("no-out", Value::Null), ("no-urls", urls(&[])), ("not", json!({"unrestricted": {"urls": false}}))]
    {
        let asks = manifest(&outgate, name, &out);
        let said = added(&outgate, &[name, "-a", "10.42.42.2", "-m", &asks]);
        assert_eq!(said, format!("{name} is registered; its manifest asks for nothing, so it reaches nothing\n"));
        assert_eq!(reason(&world.guest, "good.test"), "mode_none");
        assert_eq!(world.guest.connect("good.test:443").0.reason(), "mode_none");
        world.guest.lookup("good.test").assert_blocked("mode_none");
        assert_eq!(guest(&outgate, &["remove", name]).code, 0);
    }
    assert!(world.dns.log().is_empty() && world.internet.all().is_empty());
    assert_eq!(world.neighbour.get("evil.test", "/").status, 200, "others have all");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_manifest_never_widens_and_mode_all_removes_only_the_list() {
    let world = World::new();
    world.dns.set("inside.test", [std::net::Ipv4Addr::new(10, 0, 0, 1)]);
    let outgate = provider(&world, "deny cdn-bad.test\n", &["good.test"], "all");
    let wanted = [
        "https://good.test",
        "http://other.test",
        "http://cdn-bad.test",
        "http://inside.test",
        "tcp://good.test:25",
        "udp://good.test:99",
    ];
    let asks = manifest(&outgate, "wide", &urls(&wanted));
    let said = added(&outgate, &["wide", "-a", "10.42.42.2", "-m", &asks]);
    for words in [
        "tcp://good.test:25 was agreed on, but is refused: port_not_allowed",
        "udp://good.test:99 was agreed on, but opens nothing: only DNS has a listener for UDP",
        "http://cdn-bad.test/ was agreed on, but is refused: denied_by_rule",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(world.guest.get("other.test", "/").status, 200, "`all` is more than the list");
    assert_eq!(reason(&world.guest, "cdn-bad.test"), "denied_by_rule");
    assert_eq!(reason(&world.guest, "inside.test"), "address_floor");
    assert_eq!(world.guest.connect("good.test:25").0.reason(), "port_not_allowed");
    assert_eq!(reason(&world.guest, "evil.test"), "not_whitelisted", "but no more than the manifest");
    assert_eq!(world.guest.connect("11.0.0.66:443").0.reason(), "not_whitelisted");
    world.internet.sink((ODD, 443));
    let mut wire = world.guest.tunnel("good.test:443");
    wire.say(Hello::naming("evil.test").record());
    assert!(wire.is_over());
    world.assert_untouched(EVIL);

    let all = manifest(&outgate, "all", &json!({"unrestricted": {"urls": true}}));
    added(&outgate, &["all", "-a", "10.42.42.3", "-m", &all]);
    assert_eq!(world.neighbour.get("evil.test", "/").status, 200);
    assert_eq!(reason(&world.neighbour, "cdn-bad.test"), "denied_by_rule");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_manifest_that_no_rule_accepts_is_not_registered_and_yagnas_reason_is_printed() {
    let world = World::new();
    let outgate = provider(&world, "", &["good.test"], "whitelist");
    let asks = manifest(&outgate, "asks", &urls(&["https://good.test", "https://evil.test"]));
    let network = "Outbound rejected because: Everyone rule didn't match whitelist ; Audited-Payload rule requires manifest signature ; Partner rule requires node descriptor ; ";
    not_added(&outgate, &["vm", "-a", "10.42.42.2", "-m", &asks], network);
    let all = manifest(&outgate, "all", &json!({"unrestricted": {"urls": true}}));
    not_added(&outgate, &["vm", "-a", "10.42.42.2", "-m", &all], "Everyone rule didn't match whitelist");
    for (text, words) in [
        ("{\"createdAt\":", "not a manifest: EOF"),
        ("\u{1}\u{2}", "neither JSON nor base64"),
        (&"x".repeat(2 << 20), "larger than 1024 KiB"),
    ] {
        fs::write(outgate.path("bad"), text).unwrap();
        not_added(&outgate, &["vm", "-a", "10.42.42.2", "-m", outgate.path("bad").to_str().unwrap()], words);
    }
    for (arguments, words) in [
        (&["a b", "-a", "10.42.42.2"][..], "\"a b\" is not a guest name"),
        (&["other", "-a", "10.42.42.2"], "\"other\" is not a guest name"),
        (&["vm", "-a", "10.42.42"], "10.42.42"),
        (&["vm", "-a", "224.0.0.1"], "cannot be a guest's address"),
        (&["vm", "-a", "10.42.42.2", "-a", "10.42.42.0/24"], "is listed twice"),
        (&["vm", "-a", "10.42.42.2", "-i", "a/b"], "is not the name of a network interface"),
    ] {
        not_added(&outgate, arguments, words);
    }
    assert!(names(&outgate).is_empty());
    assert_eq!(world.guest.get("good.test", "/").status, 200, "nothing has changed for who was refused");
    assert_eq!(guest(&outgate, &["remove", "vm"]).code, 1);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_signed_manifest_gets_what_its_certificates_rule_grants_while_that_rule_exists() {
    let world = World::new();
    let provider = Provider::new(&everyone("none"), &strict(&["good.test"]));
    authorities(&provider, "openssl ecparam -genkey -noout -name prime256v1");
    let audited = |mode: &str| {
        let rules = json!({provider.id("middle.pem"): {"mode": mode, "description": ""}});
        provider.rules(&json!({"outbound": {"enabled": true, "everyone": "none", "audited-payload": rules}}));
    };
    audited("all");
    let data = provider.path("").display().to_string();
    let outgate = world.setup("deny odd.test\n").tables(&format!("[golem]\ndata_dir = \"{data}\"")).start();
    provider.manifest(&urls(&["http://good.test", "http://other.test", "http://odd.test"]), false);
    sign(&provider, "sha512");
    let path = |name: &str| provider.path(name).to_str().unwrap().to_owned();
    let [manifest, signature, forged] = ["manifest", "signature", "forged"].map(path);
    let with = |signature: &str, certificate: &str| {
        let certificate = path(certificate);
        let flags = ["--signature-algorithm", "sha512", "--signature", signature, "--certificate"];
        let arguments = [&["add", "vm", "-a", "10.42.42.2", "-m", &manifest], &flags[..], &[&certificate]].concat();
        guest(&outgate, &arguments)
    };
    not_added(&outgate, &["vm", "-a", "10.42.42.2", "-m", &manifest], "requires manifest signature");
    provider.shell("base64 -d signature | sed '1s/^./x/' | base64 > forged");
    let answer = with(&forged, "leaf.pem");
    assert!(answer.code == 1 && answer.err.contains("Audited-Payload rule: Invalid signature"), "{}", answer.err);
    for certificate in ["leaf.pem", "leaf.der", "chain.b64"] {
        let answer = with(&signature, certificate);
        assert!(answer.code == 0 && answer.out.contains("by the Audited-Payload rule"), "{}{}", answer.out, answer.err);
        assert_eq!(world.guest.get("other.test", "/").status, 200, "`all` is more than the list");
        assert_eq!(reason(&world.guest, "odd.test"), "denied_by_rule");
        assert_eq!(reason(&world.guest, "evil.test"), "not_whitelisted");
        assert_eq!(reason(&world.neighbour, "good.test"), "mode_none", "everybody else has nothing");
        if certificate != "chain.b64" {
            assert_eq!(guest(&outgate, &["remove", "vm"]).code, 0);
        }
    }
    audited("whitelist");
    eventually("the list holds", || reason(&world.guest, "other.test") == "not_whitelisted");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    provider.rules(&everyone("all"));
    eventually("the certificate's rule is gone", || reason(&world.guest, "good.test") == "mode_none");
    assert_eq!(world.neighbour.get("evil.test", "/").status, 200, "whatever everybody else has now");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_providers_edit_affects_only_the_guests_that_it_concerns() {
    let world = World::new();
    let outgate = provider(&world, "", &["good.test", "cdn-ok.test"], "whitelist");
    let data = outgate.path("provider");
    for (name, address, url) in
        [("one", "10.42.42.2", "https://good.test"), ("two", "10.42.42.3", "https://cdn-ok.test")]
    {
        let asks = manifest(&outgate, name, &urls(&[url]));
        added(&outgate, &[name, "-a", address, "-m", &asks]);
    }
    let mut one = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
    let mut two = world.neighbour.tunnel("cdn-ok.test:443").tls("cdn-ok.test").unwrap();
    assert_eq!((one.get("good.test", "/").unwrap().status, two.get("cdn-ok.test", "/").unwrap().status), (200, 200));
    save(&data, "domain_whitelist.json", &strict(&["cdn-ok.test"]));
    assert!(one.sock.is_over(), "what the list takes away ends");
    assert_eq!(two.get("cdn-ok.test", "/").unwrap().status, 200, "the other guest does not notice");
    assert_eq!(world.guest.connect("good.test:443").0.reason(), "not_whitelisted");
    // What is new on the list is not in its manifest.
    save(&data, "domain_whitelist.json", &strict(&["cdn-ok.test", "good.test", "odd.test"]));
    eventually("its own host is back", || world.guest.connect("good.test:443").0.status == 200);
    assert_eq!(world.guest.connect("odd.test:443").0.reason(), "not_whitelisted");
    save(&data, "rules.json", &everyone("none"));
    assert!(two.sock.is_over(), "the rule that took it grants nothing any more");
    save(&data, "rules.json", &everyone("all"));
    eventually("and everything again", || world.neighbour.connect("cdn-ok.test:443").0.status == 200);
    assert_eq!(world.neighbour.connect("evil.test:443").0.reason(), "not_whitelisted");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_outlive_the_daemon_and_a_removal_ends_their_flows() {
    let world = World::new();
    let mut outgate = provider(&world, "", &["good.test", "cdn-ok.test"], "whitelist");
    let asks = manifest(&outgate, "asks", &urls(&["https://good.test"]));
    added(&outgate, &["one", "-a", "10.42.42.2", "-m", &asks]);
    let again = added(&outgate, &["one", "-a", "10.42.42.2", "-m", &asks]);
    assert!(again.starts_with("one was already registered, with the same settings"), "{again}");
    not_added(&outgate, &["one", "-a", "10.42.42.9"], "a guest one exists already");
    not_added(&outgate, &["two", "-a", "10.42.42.0/24"], "is already an address of one");
    assert!(outgate.stop().success());
    outgate.launch();
    outgate.await_ready();
    assert_eq!(names(&outgate), ["one"]);
    assert_eq!(world.guest.connect("cdn-ok.test:443").0.reason(), "not_whitelisted");
    let mut one = world.guest.tunnel("good.test:443").tls("good.test").unwrap();
    let mut other = world.neighbour.tunnel("good.test:443").tls("good.test").unwrap();
    assert_eq!(one.get("good.test", "/").unwrap().status, 200);
    let removed = guest(&outgate, &["remove", "one"]);
    assert_eq!((removed.code, removed.out.as_str()), (0, "one is not a guest any more; connections ended: 1\n"));
    assert!(one.sock.is_over(), "although anybody may go there");
    assert_eq!(other.get("good.test", "/").unwrap().status, 200);
    assert_eq!(world.guest.connect("cdn-ok.test:443").0.status, 200, "one of those that are not registered");
    assert!(outgate.stop().success());
    outgate.launch();
    outgate.await_ready();
    assert!(names(&outgate).is_empty());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_configuration_and_guests_that_are_registered_do_not_share_names_and_addresses() {
    let world = World::new();
    let declared = "[[guest]]\nname = \"vm-3\"\naddresses = [\"10.42.42.3\"]\n";
    let mut outgate = world.setup("good.test\n").tables(declared).start();
    not_added(&outgate, &["vm-3", "-a", "10.42.42.2"], "a guest vm-3 exists already");
    not_added(&outgate, &["vm-2", "-a", "10.42.42.3"], "10.42.42.3/32 of vm-2 is already an address of vm-3");
    assert_eq!(reason(&world.guest, "good.test"), "unknown_guest");
    added(&outgate, &["vm-2", "-a", "10.42.42.2"]);
    assert_eq!(world.guest.get("good.test", "/").status, 200, "a guest as those of the configuration");
    let config = fs::read_to_string(outgate.config()).unwrap();
    fs::write(outgate.config(), config.clone() + "[[guest]]\nname = \"vm-2\"\naddresses = [\"10.42.42.9\"]\n").unwrap();
    let reload =
        outgate.command(&["whitelist", "reload", "--config", outgate.config().to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(reload.stderr).unwrap();
    assert!(!reload.status.success() && said.contains("`outgate guest remove vm-2` ends that"), "{said}");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert!(outgate.stop().success());
    outgate.launch();
    outgate.await_ready();
    assert_eq!(reason(&world.guest, "good.test"), "unknown_guest", "at a start the configuration comes first");
    assert!(outgate.errors().contains("a guest vm-2 exists already"), "{}", outgate.errors());
    let kept = fs::read_to_string(outgate.path("control.sock.guests/guests.json")).unwrap();
    assert_eq!(kept, "{\"version\":1,\"guests\":[]}", "and the registration is over");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn without_a_provider_a_manifest_narrows_what_the_configuration_allows() {
    let world = World::new();
    let outgate = world.outgate("good.test\ncdn-ok.test\n");
    let asks = manifest(&outgate, "asks", &urls(&["http://good.test", "http://evil.test"]));
    let said = added(&outgate, &["one", "-a", "10.42.42.2", "-m", &asks]);
    assert!(said.contains("warning: without [golem].data_dir no provider's rules are checked"), "{said}");
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(reason(&world.guest, "cdn-ok.test"), "not_whitelisted");
    assert_eq!(reason(&world.guest, "evil.test"), "not_whitelisted");
    let explained = outgate
        .command(&["explain", "--config", outgate.config().to_str().unwrap(), "--guest", "one", "http://cdn-ok.test"])
        .output()
        .unwrap();
    let said = String::from_utf8(explained.stdout).unwrap();
    assert!(said.contains("the guest's manifest does not name cdn-ok.test:80 for http"), "{said}");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_control_socket_takes_guests_from_scripts_and_refuses_what_it_does_not_understand() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let body = json!({"name": "vm", "addresses": ["10.42.42.2"]}).to_string();
    let (status, answer) = control(&outgate, "POST", "/guests", &body);
    assert_eq!((status, &answer["guest"]["name"], &answer["changed"]), (200, &json!("vm"), &json!(true)));
    let (status, answer) = control(&outgate, "GET", "/guests", "");
    assert_eq!((status, &answer["guests"][0]["addresses"]), (200, &json!(["10.42.42.2/32"])));
    for (body, status) in [
        ("", 400),
        ("{", 400),
        ("{\"name\":\"x\"}", 400),
        ("{\"name\":\"x\",\"addresses\":[],\"more\":1}", 400),
        ("{\"name\":\"x\",\"addresses\":[]}", 422),
    ] {
        assert_eq!(control(&outgate, "POST", "/guests", body).0, status, "{body}");
    }
    assert_eq!(control(&outgate, "PUT", "/guests", "").0, 405);
    assert_eq!(control(&outgate, "GET", "/guests/vm", "").0, 405);
    assert_eq!(control(&outgate, "DELETE", "/guests/nobody", "").0, 422);
    assert_eq!(
        control(&outgate, "DELETE", "/guests/vm", ""),
        (200, json!({"name": "vm", "revoked": 0, "pinned": false}))
    );
    assert_eq!(names(&outgate), Vec::<String>::new());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn only_root_and_the_daemons_user_change_who_is_a_guest() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    // As somebody of the socket's group.
    let group = 31_290;
    for path in ["control.sock", "."] {
        std::os::unix::fs::chown(outgate.path(path), None, Some(group)).unwrap();
    }
    shell_mode(&outgate.path("."), 0o750);
    let config = outgate.config();
    let program = outgate.path("outgate");
    fs::copy(env!("CARGO_BIN_EXE_outgate"), &program).unwrap();
    let as_member = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command.args(arguments).args(["--config", config.to_str().unwrap()]).uid(65_534).gid(group);
        command.output().unwrap()
    };
    assert!(as_member(&["guest", "list"]).status.success());
    for arguments in [&["guest", "add", "vm", "-a", "10.42.42.2"][..], &["guest", "remove", "vm"]] {
        let done = as_member(arguments);
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(1) && said.contains("only root and the daemon's own user"), "{said}");
    }
    assert!(names(&outgate).is_empty());
}

fn shell_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn every_reader_of_the_kept_guests_checks_the_file() {
    let world = World::new();
    let mut outgate = world.setup("good.test\n").tables("[firewall]\nguest_interfaces = [\"tap7\"]").write();
    outgate.launch();
    outgate.await_admin(|response| response.status != 0);
    let vm = json!({"name": "vm", "addresses": ["10.42.42.2"], "interface": "tap7"}).to_string();
    assert_eq!(control(&outgate, "POST", "/guests", &vm).0, 200);
    let kept = outgate.path("control.sock.guests/guests.json");
    let sound = fs::read_to_string(&kept).unwrap();
    let firewall = |outgate: &Outgate| {
        let done =
            outgate.command(&["firewall", "print", "--config", outgate.config().to_str().unwrap()]).output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
        (done.status.code().unwrap(), text)
    };
    let (code, said) = firewall(&outgate);
    assert!(code == 0 && said.contains("10.42.42.2"), "{said}");
    fs::write(&kept, sound.replace("tap7", "tap7\\\" : accept }\\ninclude \\\"/etc/shadow\\\"")).unwrap();
    let (code, said) = firewall(&outgate);
    assert!(
        code == 1 && said.contains("is not the name of a network interface") && !said.contains("table inet"),
        "{said}"
    );
    // And a user without permission gets an error.
    fs::write(&kept, &sound).unwrap();
    assert!(outgate.stop().success());
    // What a later version wrote is not misread, nor is what is damaged.
    for (text, wanted) in [
        (sound.replace("\"version\":1", "\"version\":2"), "a later outgate wrote it (version 2"),
        ("[{".to_owned(), "remove it and register them again"),
    ] {
        fs::write(&kept, &text).unwrap();
        let (code, said) = firewall(&outgate);
        assert!(code == 1 && said.contains(wanted) && !said.contains("table inet"), "{said}");
        outgate.launch();
        assert_eq!(outgate.ended().code(), Some(1));
        assert!(outgate.errors().contains(wanted), "{}", outgate.errors());
        assert_eq!(fs::read_to_string(&kept).unwrap(), text, "nothing is lost");
    }
    // As builds before version 1 kept them.
    let list = sound.strip_prefix("{\"version\":1,\"guests\":").and_then(|rest| rest.strip_suffix('}')).unwrap();
    fs::write(&kept, list).unwrap();
    outgate.launch();
    outgate.await_admin(|response| response.status != 0);
    assert_eq!(names(&outgate), ["vm"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_unreadable_provider_delays_no_other_change() {
    let world = World::new();
    let outgate = provider(&world, "", &["good.test"], "all");
    let asks = manifest(&outgate, "asks", &urls(&["https://good.test"]));
    let rules = outgate.path("provider/rules.json");
    fs::remove_file(&rules).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(&rules).status().unwrap();
    assert!(fifo.success());
    not_added(&outgate, &["vm", "-a", "10.42.42.2", "-m", &asks], "rules.json: cannot be read: is not a regular file");
    added(&outgate, &["plain", "-a", "10.42.42.2"]);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn readers_of_the_control_socket_do_not_block_changes() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    // Root's own connections are those that may change something, so it is they that are bounded here.
    let silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(outgate.path("control.sock")).unwrap()).collect();
    let closed = silent.iter().filter(|stream| {
        stream.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        matches!((&mut &**stream).read(&mut [0]), Ok(0) | Err(_)) && {
            let error = (&mut &**stream).read(&mut [0]);
            !matches!(error, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        }
    });
    assert!(closed.count() >= 20, "those over the bound are closed and do not wait");
    drop(silent);
    eventually("there is a place again", || guest(&outgate, &["list"]).code == 0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_interface_pins_the_addresses_of_a_guest_that_is_registered() {
    let network = GuardedNetwork::new();
    let outgate = network.start(network.setup("good.test\ncdn-ok.test\n").tables("[guests]\nunknown = \"none\"\n"));
    let run = |arguments: &[&str]| network.net.gateway.run(|| guest(&outgate, arguments));
    assert_eq!(network.one.https(GOOD, "good.test").ok(), None, "nobody's address");
    let one = manifest(&outgate, "one", &urls(&["https://good.test"]));
    let added = run(&["add", "one", "-a", "10.42.42.2", "-a", "fd42::2", "-i", "p1", "-m", &one]);
    assert_eq!(added.code, 0, "{}{}", added.out, added.err);
    let three = manifest(&outgate, "three", &urls(&["https://cdn-ok.test"]));
    let added = run(&["add", "three", "-a", "10.43.0.3", "-i", "r3", "-m", &three]);
    assert_eq!(added.code, 0, "{}{}", added.out, added.err);
    outgate.admin("/readyz").filter(|response| response.status == 200).expect("the firewall is that of all guests");
    assert_eq!(network.one.https(GOOD, "good.test").unwrap(), 200);
    assert_eq!(network.three.https(CDN, "cdn-ok.test").unwrap(), 200);
    assert!(
        network.one.tls_refusal(CDN, "cdn-ok.test").is_some() && network.three.tls_refusal(GOOD, "good.test").is_some()
    );
    // The other's address, on an interface that is not the other's.
    crate::world::vmnet::shell(&network.two.namespace, "ip addr add 10.42.42.2/32 dev eth0");
    let before = network.net.counted("spoofed");
    let socket = network.two.namespace.run(|| std::net::UdpSocket::bind("10.42.42.2:0")).unwrap();
    socket.send_to(b"x", "11.0.0.66:9").unwrap();
    eventually("a spoofed packet is dropped", || network.net.counted("spoofed") > before);
    // `firewall apply` with only the kept guests, as its unit runs it.
    network.apply(&outgate);
    outgate.admin("/readyz").filter(|response| response.status == 200).expect("still that of all guests");
    // A list that is broken keeps no guest from being held.
    fs::write(outgate.whitelist().join("bad.rules"), "no rule at all\n").unwrap();
    let four = run(&["add", "four", "-a", "10.43.0.4", "-i", "r4", "-m", &one]);
    assert!(
        four.code == 0 && four.out.contains("it is not known which of its URLs are refused"),
        "{}{}",
        four.out,
        four.err
    );
    assert_eq!(network.four.https(GOOD, "good.test").unwrap(), 200);
    fs::remove_file(outgate.whitelist().join("bad.rules")).unwrap();
    // What the firewall does not take is not registered; what was there before stays.
    let socket = outgate.path("control.sock");
    let other = run(&["add", "five", "-a", "10.43.0.5", "-i", "r5", "--socket", "/nowhere.sock"]);
    assert!(other.code == 2 && other.err.contains("name it with --config"), "{}", other.err);
    let same = run(&["add", "four", "-a", "10.43.0.4", "-i", "r4", "-m", &one, "--socket", socket.to_str().unwrap()]);
    assert!(same.out.contains("with the same settings"), "{}{}", same.out, same.err);
    for name in ["one", "three", "four"] {
        assert_eq!(run(&["remove", name]).code, 0);
    }
    outgate.admin("/readyz").filter(|response| response.status == 200).expect("and without them again");
    assert!(network.one.https(GOOD, "good.test").is_err());
    network.assert_no_leaks();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn an_interface_that_does_not_exist_is_a_warning_and_the_time_is_in_seconds() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let said = added(&outgate, &["vm-7", "-a", "10.42.42.2", "--interface", "nope0"]);
    assert!(said.contains("warning: interface nope0 does not exist now"), "{said}");
    let said = added(&outgate, &["vm-8", "-a", "10.42.42.3"]);
    assert!(!said.contains("warning"), "{said}");
    let listed = guest(&outgate, &["list"]).out;
    let time = regex::Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").unwrap();
    assert_eq!(time.find_iter(&listed).count(), 2, "{listed}");
}

/// What takes root is told as such, not by the first file that only root reads.
#[test]
#[ignore = "requires root and network namespaces"]
fn the_firewall_asks_for_root_before_it_reads_anything() {
    let world = World::new();
    let outgate = world.outgate("good.test\n");
    let program = outgate.path("outgate");
    fs::copy(env!("CARGO_BIN_EXE_outgate"), &program).unwrap();
    shell_mode(&outgate.path("."), 0o755);
    for command in ["apply", "remove", "status"] {
        let mut called = std::process::Command::new(&program);
        called.args(["firewall", command, "--config"]).arg(outgate.config()).uid(65_534).gid(65_534);
        let done = called.output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(
            done.status.code() == Some(1) && said.contains("root") && !said.contains("guests.json"),
            "{command}: {said}"
        );
    }
}
