//! Golem providers: their decision files in the running daemon, and `outgate golem accepts` against files and
//! certificates made here with openssl.

use crate::reload::allows;
use crate::world::client::Get;
use crate::world::outgate::{Outgate, Setup};
use crate::world::{World, eventually};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A provider's data dir, and beside it the files of a requestor.
pub struct Provider {
    dir: TempDir,
}

struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Provider {
    /// One with these files.
    pub fn new(rules: &Value, whitelist: &Value) -> Provider {
        let provider = Provider { dir: tempfile::Builder::new().prefix("outgate-golem-").tempdir().unwrap() };
        fs::create_dir(provider.path("cert-dir")).unwrap();
        fs::write(provider.path("rules.json"), rules.to_string()).unwrap();
        fs::write(provider.path("domain_whitelist.json"), whitelist.to_string()).unwrap();
        fs::create_dir(provider.path("lists")).unwrap();
        fs::write(provider.path("o.toml"), "[whitelist]\ndir = \"lists\"\n").unwrap();
        provider
    }

    /// A path within the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a manifest that asks for this, plain or in base64.
    pub fn manifest(&self, out: &Value, encoded: bool) -> &'static str {
        fs::write(self.path("manifest"), manifest_of(out).to_string()).unwrap();
        if encoded {
            self.shell("base64 manifest > m && mv m manifest");
        }
        "manifest"
    }

    /// Runs commands in the folder; they must succeed.
    pub fn shell(&self, script: &str) {
        let done = Command::new("sh").args(["-ec", script]).current_dir(self.dir.path()).output().unwrap();
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn accepts(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["golem", "accepts", "--config", "o.toml", "--data-dir", "."]).args(arguments);
        let done = command.current_dir(self.dir.path()).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Answer { code: done.status.code().unwrap(), out: text(done.stdout), err: text(done.stderr) }
    }

    #[track_caller]
    fn taken(&self, arguments: &[&str], words: &str) {
        let answer = self.accepts(arguments);
        assert_eq!(answer.code, 0, "{}{}", answer.out, answer.err);
        assert!(answer.out.contains(words), "{}", answer.out);
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], words: &str) {
        let answer = self.accepts(arguments);
        assert_eq!(answer.code, 1, "{}{}", answer.out, answer.err);
        assert!(answer.out.contains(words) || answer.err.contains(words), "{}{}", answer.out, answer.err);
    }

    /// SHA-512 of a certificate, as the rules call it.
    pub fn id(&self, certificate: &str) -> String {
        self.shell(&format!("openssl x509 -in {certificate} -outform der | sha512sum | cut -d' ' -f1 > id"));
        fs::read_to_string(self.path("id")).unwrap().trim().to_owned()
    }

    /// Replaces `rules.json`.
    pub fn rules(&self, rules: &Value) {
        fs::write(self.path("rules.json"), rules.to_string()).unwrap();
    }
}

/// A manifest that asks for this.
pub fn manifest_of(out: &Value) -> Value {
    json!({
        "version": "0.1.0", "createdAt": "2022-09-07T02:57:00.000000Z", "expiresAt": "2100-01-01T00:01:00.000000Z",
        "metadata": {"name": "App", "version": "0.1.0"}, "payload": [],
        "compManifest": {"version": "0.1.0", "net": {"inet": {"out": out}}},
    })
}

/// Rules with `everyone` in this mode.
pub fn everyone(mode: &str) -> Value {
    json!({"outbound": {"enabled": true, "everyone": mode}})
}

/// A list of these hosts.
pub fn strict(hosts: &[&str]) -> Value {
    json!({"patterns": hosts.iter().map(|host| json!({"domain": host, "match": "strict"})).collect::<Vec<_>>()})
}

/// What a manifest asks for.
pub fn urls(urls: &[&str]) -> Value {
    json!({"protocols": ["https"], "urls": urls})
}

#[test]
fn the_everyone_rule_applies_its_mode_and_the_list() {
    let provider = Provider::new(&everyone("whitelist"), &strict(&["good.example"]));
    for encoded in [false, true] {
        let manifest = provider.manifest(&urls(&["https://good.example", "http://GOOD.example/x"]), encoded);
        provider.taken(&[manifest], "accepted by the Everyone rule\n");
    }
    let manifest = provider.manifest(&urls(&["https://good.example", "https://good.examplex"]), false);
    let whole = "Outbound rejected because: Everyone rule didn't match whitelist ; Audited-Payload rule requires manifest signature ; Partner rule requires node descriptor ; \n";
    provider.refused(&[manifest], whole);
    provider.rules(&everyone("all"));
    provider.taken(&[manifest], "Everyone");
    provider.rules(&everyone("none"));
    provider.refused(&[manifest], "Everyone rule is disabled");
    provider.rules(&json!({"outbound": {"enabled": false, "everyone": "all"}}));
    provider.refused(&[manifest], "outbound is disabled");
    let manifest = provider.manifest(&urls(&[]), false);
    provider.taken(&[manifest], "accepted: outbound is not requested");
    provider.rules(&everyone("whitelist"));
    let manifest = provider.manifest(&json!({"unrestricted": {"urls": true}}), false);
    provider.refused(&[manifest], "Everyone rule didn't match whitelist");
    provider.rules(&everyone("all"));
    provider.taken(&[manifest], "Everyone");
}

#[test]
fn urls_that_outgate_refuses_later_are_reported() {
    let provider = Provider::new(&everyone("all"), &strict(&[]));
    let asked = [
        "https://good.example",
        "tcp://mail.example:25",
        "udp://good.example:123",
        "https://127.0.0.1",
        "data:text/plain,x",
    ];
    let manifest = provider.manifest(&urls(&asked), false);
    let answer = provider.accepts(&[manifest, "--json"]);
    let answer: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        (&answer["accepted"], &answer["rule"], &answer["text"]),
        (&json!(true), &json!("Everyone"), &Value::Null)
    );
    let warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    for (warning, words) in warnings.iter().zip([
        ["tcp://mail.example:25", "port_not_allowed; 25 is in [dial].blocked_ports"],
        ["udp://good.example:123", "only DNS has a listener for UDP"],
        ["https://127.0.0.1/", "address_floor; 127.0.0.1 is in the address floor"],
        ["data:text/plain,x", "malformed"],
    ]) {
        assert!(words.iter().all(|words| warning.contains(words)), "{warning}");
    }
    assert_eq!(warnings.len(), 4, "{warnings:?}");
}

#[test]
fn broken_input_is_named() {
    let provider = Provider::new(&everyone("all"), &strict(&[]));
    let manifest = provider.manifest(&urls(&["https://good.example"]), false);
    provider.shell("head -c 100 manifest > cut; head -c 2000000 /dev/zero > large");
    provider.refused(&["cut"], "cut: not a manifest: EOF while parsing");
    provider.refused(&["large"], "large: is larger than 1024 KiB");
    provider.refused(&["missing"], "missing: there is no such file");
    fs::write(provider.path("rules.json"), "{\"outbound\":\n{\"enabled\":1}}").unwrap();
    provider.refused(&[manifest], "rules.json:2:12: invalid type: integer `1`, expected a boolean");
    for arguments in
        [&["--signature", "s"][..], &["--node-descriptor", "d"], &["--node-descriptor", "d", "--requestor", "0x12"]]
    {
        assert_eq!(provider.accepts(&[&[manifest], arguments].concat()).code, 2, "{arguments:?}");
    }
}

/// `root` signs `middle`, which signs `leaf` and `late` and `early`; the first key generator makes all keys.
pub fn authorities(provider: &Provider, key: &str) {
    let script = format!(
        r#"
        for name in root middle leaf stranger; do {key} -out $name.key 2>/dev/null; done
        ca='basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign'
        printf "$ca" > root.ext; printf "$ca\nbasicConstraints=critical,CA:TRUE,pathlen:0" | sed 1d > middle.ext
        printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature' > leaf.ext
        openssl req -x509 -new -key root.key -sha256 -days 30000 -subj /O=Own/CN=root -addext keyUsage=keyCertSign -out root.pem
        openssl req -x509 -new -key stranger.key -sha256 -days 30000 -subj /O=Own/CN=root -addext keyUsage=keyCertSign -out stranger.pem
        sign() {{ openssl req -new -key $1.key -subj /O=Own/CN=$1 | openssl x509 -req -CA $2.pem -CAkey $2.key -CAcreateserial -sha512 -days $3 -extfile $4.ext -out $5.pem 2>/dev/null; }}
        sign middle root 20000 middle middle
        sign leaf middle 10000 leaf leaf
        sign middle leaf 10000 leaf below
        cat middle.pem leaf.pem > chain.pem
        openssl x509 -in leaf.pem -outform der -out leaf.der; base64 chain.pem > chain.b64
        cp root.pem middle.pem cert-dir/; echo nonsense > cert-dir/README
        "#
    );
    provider.shell(&script);
}

pub fn sign(provider: &Provider, hash: &str) {
    provider.shell(&format!(
        "printf %s \"$(base64 -w0 manifest)\" > text; openssl dgst -{hash} -sign leaf.key text | base64 > signature"
    ));
}

#[test]
fn a_signed_manifest_gets_the_rule_of_the_nearest_certificate() {
    for key in [
        "openssl genrsa 2048",
        "openssl ecparam -genkey -noout -name prime256v1",
        "openssl ecparam -genkey -noout -name secp384r1",
    ] {
        let provider = Provider::new(&everyone("none"), &strict(&["good.example"]));
        authorities(&provider, &key.replace("genrsa 2048", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048"));
        let [root, middle, leaf] = ["root.pem", "middle.pem", "leaf.pem"].map(|name| provider.id(name));
        let rule = |rules: &[(&String, &str)]| {
            let rules: serde_json::Map<_, _> =
                rules.iter().map(|(id, mode)| ((*id).clone(), json!({"mode": mode, "description": ""}))).collect();
            provider.rules(&json!({"outbound": {"enabled": true, "everyone": "none", "audited-payload": rules}}));
        };
        let manifest = provider.manifest(&urls(&["https://other.example"]), false);
        for hash in ["sha256", "sha512"] {
            sign(&provider, hash);
            let with = |certificate: &'static str| {
                move |more: &'static str| {
                    [manifest, "--signature", "signature", "--signature-algorithm", more, "--certificate", certificate]
                }
            };
            rule(&[(&root, "all")]);
            for certificate in ["leaf.pem", "chain.pem", "leaf.der", "chain.b64"] {
                provider.taken(
                    &with(certificate)(if hash == "sha256" { "sha256" } else { "sha512" }),
                    "accepted by the Audited-Payload rule",
                );
            }
            let signed = with("leaf.pem")(if hash == "sha256" { "sha256" } else { "sha512" });
            rule(&[(&root, "all"), (&middle, "none")]);
            provider.refused(&signed, "Audited-Payload rule is disabled ; ");
            rule(&[(&root, "none"), (&middle, "none"), (&leaf, "whitelist")]);
            provider.refused(&signed, "Audited-Payload rule didn't match whitelist");
            rule(&[]);
            provider.refused(&signed, "Audited-Payload rule whole chain of cert_ids is not trusted: [");
        }
        rule(&[(&root, "all")]);
        let other =
            [manifest, "--signature", "signature", "--signature-algorithm", "sha256", "--certificate", "leaf.pem"];
        provider.refused(&other, "Audited-Payload rule: Invalid signature.");
        provider.refused(
            &["--signature-algorithm", "md5", manifest, "--signature", "signature", "--certificate", "leaf.pem"],
            "Unknown signature algorithm: md5",
        );
        sign(&provider, "sha256");
        provider.taken(&other, "Audited-Payload");
        provider.shell("base64 manifest > wrapped");
        provider.taken(&[&["wrapped"], &other[1..]].concat(), "Audited-Payload");
        fs::write(
            provider.path("manifest"),
            fs::read_to_string(provider.path("manifest")).unwrap().replace("other.example", "third.example"),
        )
        .unwrap();
        provider.refused(&other, "Audited-Payload rule: Invalid signature.");
    }
}

#[test]
fn chains_that_do_not_lead_to_the_providers_certificates_are_refused_with_the_reason() {
    let provider = Provider::new(&everyone("none"), &strict(&[]));
    authorities(&provider, "openssl ecparam -genkey -noout -name prime256v1");
    let rules: serde_json::Map<_, _> =
        [(provider.id("root.pem"), json!({"mode": "all", "description": ""}))].into_iter().collect();
    provider.rules(&json!({"outbound": {"enabled": true, "everyone": "none", "audited-payload": rules}}));
    let manifest = provider.manifest(&urls(&["https://other.example"]), false);
    sign(&provider, "sha256");
    let signed = |certificate| [manifest, "--signature", "signature", "--certificate", certificate];
    provider.taken(&signed("leaf.pem"), "Audited-Payload");
    provider.refused(&signed("manifest"), "neither DER nor PEM");
    provider.shell("mv cert-dir/middle.pem .kept");
    provider.refused(&signed("leaf.pem"), "who signed O=Own, CN=leaf, is not in cert-dir");
    provider.taken(&signed("chain.pem"), "Audited-Payload");
    // Somebody else's root of the same name.
    provider.shell("cp stranger.pem cert-dir/root.pem");
    provider.refused(&signed("chain.pem"), "Audited-Payload rule: Invalid certificate");
    provider.shell("cp root.pem cert-dir/root.pem; cp .kept cert-dir/middle.pem");
    // A certificate that a leaf signed.
    provider
        .shell("cat leaf.pem below.pem > lower.pem; openssl dgst -sha256 -sign middle.key text | base64 > signature");
    provider
        .refused(&signed("lower.pem"), "note: the certificate of the signature: O=Own, CN=leaf is not an authority");
    // One that the rules know, but which has nothing to do with the signature.
    provider.shell("openssl dgst -sha256 -sign leaf.key text | base64 > signature");
    let foreign = json!({provider.id("stranger.pem"): {"mode": "all", "description": ""}});
    provider.rules(&json!({"outbound": {"enabled": true, "everyone": "none", "audited-payload": foreign}}));
    provider.shell("cat stranger.pem leaf.pem > appended.pem; cp stranger.pem cert-dir/stranger.pem");
    provider.refused(&signed("appended.pem"), "Audited-Payload rule whole chain of cert_ids is not trusted");
    provider.shell("rm cert-dir/stranger.pem");
    provider.rules(&json!({"outbound": {"enabled": true, "everyone": "none", "audited-payload": rules}}));
    // What no chain may leave aside.
    provider.shell("printf 'nameConstraints=critical,permitted;DNS:good.example' > n.ext; openssl req -new -key leaf.key -subj /O=Own/CN=bound | openssl x509 -req -CA middle.pem -CAkey middle.key -CAcreateserial -days 9000 -extfile n.ext -out bound.pem 2>/dev/null");
    provider.refused(&signed("bound.pem"), "CN=bound has a critical extension that is not understood");
    // Days.
    let openssl = "openssl ecparam -genkey -noout -name prime256v1 -out day.key; openssl req -new -key day.key -subj /CN=day -out day.csr; \
         mkdir ca; touch ca/index; echo 01 > ca/serial; printf '[ca]\\ndefault_ca=d\\n[d]\\ndatabase=ca/index\\nserial=ca/serial\\nnew_certs_dir=ca\\ndefault_md=sha256\\npolicy=p\\n[p]\\ncommonName=supplied\\n' > ca.cnf; \
         openssl ca -batch -config ca.cnf -cert middle.pem -keyfile middle.key -in day.csr -notext -startdate $1 -enddate $2 -out day.pem 2>/dev/null; \
         openssl dgst -sha256 -sign day.key text | base64 > signature; rm -r ca";
    for (from, to, words) in [
        ("20200101000000Z", "20210101000000Z", "CN=day expired at "),
        ("20980101000000Z", "20990101000000Z", "CN=day is not valid before "),
        ("20200101000000Z", "20990101000000Z", ""),
    ] {
        provider.shell(&openssl.replace("$1", from).replace("$2", to));
        match words {
            "" => provider.taken(&signed("day.pem"), "Audited-Payload"),
            words => provider.refused(&signed("day.pem"), words),
        }
    }
}

/// A daemon that reads a provider's data dir, and that dir.
pub fn at_a_provider(setup: Setup, keys: &str) -> (Outgate, PathBuf) {
    let outgate = setup.tables(&format!("[golem]\ndata_dir = \"provider\"\n{keys}")).write();
    let data = outgate.path("provider");
    fs::create_dir(&data).unwrap();
    (outgate, data)
}

/// As ya-provider replaces its files.
pub fn save(data: &Path, name: &str, content: &Value) {
    fs::write(data.join("new"), content.to_string()).unwrap();
    fs::rename(data.join("new"), data.join(name)).unwrap();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_providers_own_list_and_rules_apply_and_are_watched() {
    let world = World::new();
    let (mut outgate, data) = at_a_provider(world.setup("deny odd.test\n"), "");
    save(&data, "domain_whitelist.json", &strict(&["good.test"]));
    outgate.launch();
    outgate.await_ready();
    assert!(allows(&world, "good.test") && !allows(&world, "cdn-ok.test"), "without rules everyone has the list");
    let mut tunnel = world.guest.tunnel("good.test:443").tls("good.test").unwrap();

    let begun = Instant::now();
    save(&data, "domain_whitelist.json", &strict(&["good.test", "cdn-ok.test", "odd.test"]));
    eventually("the provider's edit is in force", || allows(&world, "cdn-ok.test"));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!allows(&world, "odd.test"), "the operator's `deny` holds");
    assert_eq!(tunnel.get("good.test", "/").unwrap().status, 200, "other flows do not notice");

    save(&data, "rules.json", &everyone("all"));
    eventually("everyone has all", || allows(&world, "evil.test"));
    assert!(!allows(&world, "odd.test"));
    save(&data, "rules.json", &everyone("none"));
    eventually("everyone has nothing", || !allows(&world, "good.test"));
    assert_eq!(world.guest.get("good.test", "/").reason(), "mode_none");
    assert!(tunnel.sock.is_over(), "what the rules take away ends");

    fs::remove_file(data.join("rules.json")).unwrap();
    eventually("that they are gone is told", || outgate.metric("whitelist_last_reload_successful", &[]) == 0.0);
    assert!(!allows(&world, "good.test"), "rules that are gone grant nothing more");
    save(&data, "rules.json", &everyone("whitelist"));
    eventually("the list again", || allows(&world, "good.test"));
    fs::write(data.join("rules.json"), "{\"outbound\":\n{\"enabled\": tru").unwrap();
    eventually("broken rules are told", || outgate.metric("whitelist_last_reload_successful", &[]) == 0.0);
    assert!(allows(&world, "good.test") && !allows(&world, "evil.test"), "the last good ones stay");
    assert!(outgate.stop().success());
    outgate.launch();
    outgate.await_admin(|response| response.status != 0);
    eventually("also over a restart", || allows(&world, "good.test"));
    assert!(!allows(&world, "evil.test"));
    assert!(outgate.errors().contains("provider/rules.json:2:"), "{}", outgate.errors());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn max_mode_limits_what_rules_grant_and_a_missing_data_dir_is_an_error() {
    let world = World::new();
    let (mut outgate, data) = at_a_provider(world.setup(""), "max_mode = \"whitelist\"");
    save(&data, "domain_whitelist.json", &strict(&["good.test"]));
    save(&data, "rules.json", &everyone("all"));
    outgate.launch();
    outgate.await_ready();
    assert!(allows(&world, "good.test") && !allows(&world, "evil.test"));
    save(&data, "rules.json", &json!({"outbound": {"enabled": false, "everyone": "all"}}));
    eventually("outbound is disabled", || !allows(&world, "good.test"));
    assert!(outgate.stop().success());
    fs::remove_dir_all(&data).unwrap();
    fs::remove_dir_all(outgate.path("state")).unwrap();
    outgate.launch();
    assert_eq!(outgate.ended().code(), Some(1));
    let said = format!("{}:1:1: there is no such data dir", data.display());
    assert!(outgate.errors().contains(&said), "{}", outgate.errors());
}
