#!/usr/bin/env python3
"""Real clients in a guest's namespace, through `https://` proxies: `[listen].proxy_tls`.

inside.py [PATH OF outgate]. As run.py, but the proxy is inside TLS. One outgate requires client certificates. The guest's certificate
names another guest than its address does, and only that other one may reach the allowed names, so the results show
which of them decides. A second outgate requires no certificate, for clients without one. Each client is configured by
the text of docs/tls.md. After each of them the origin's, the DNS server's and the access log are checked.
Requires root. Fetches the packages in node/ once, by npm, into target/clients-node.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import namedtuple

import run
from run import ALLOWED, BULK, HERE, ROOT, expect

NAME = "gateway.test"
# The page that says how clients are configured for a proxy inside TLS.
PAGE = "docs/tls.md"
GUEST = "10.42.42.2"

# A listener: its port, the guest that it identifies, and its outgate's files and admin port.
Listener = namedtuple("Listener", "port guest name admin")
CERTIFIED = Listener(3443, "tenant", "outgate", 3190)
BARE = Listener(3444, "nobody", "bare", 3192)

NUMBERS = itertools.count(1)


class Inside(run.World):
    """The world with both outgates in it."""

    proxied = False

    def wire(self):
        super().wire()
        # `ip netns exec` puts these over those in /etc for the processes it starts.
        etc = f"/etc/netns/{self.names['guest']}"
        os.makedirs(etc)
        with open(os.path.join(etc, "hosts"), "w") as file:
            file.write(f"127.0.0.1 localhost\n10.42.42.1 {NAME}\n")
        if os.path.isdir("/etc/chromium"):
            policies = os.path.join(etc, "chromium", "policies", "managed")
            os.makedirs(policies)
            choice = json.loads(re.search(r'`(\{"AutoSelectCertificateForUrls".*?\})`', page())[1])
            with open(os.path.join(policies, "outgate.json"), "w") as file:
                file.write(self.local(json.dumps(choice), CERTIFIED))

    def __exit__(self, *_):
        super().__exit__()
        shutil.rmtree(f"/etc/netns/{self.names['guest']}", ignore_errors=True)

    def certificates(self):
        super().certificates()
        # An authority for each, so that a client which trusts the wrong one is noticed.
        for authority in ("gateway-ca", "guests-ca", "strange-ca"):
            self.authority(authority)
        self.certify("gateway-ca", "gateway", 90, "serverAuth", NAME)
        self.certify("guests-ca", "guest", 2, "clientAuth", CERTIFIED.guest, common="elsewhere")
        self.certify("guests-ca", "expired", -1, "clientAuth", CERTIFIED.guest)
        self.certify("strange-ca", "strange", 2, "clientAuth", CERTIFIED.guest)
        self.certify("guests-ca", "unnamed", 2, "clientAuth", "*.guests.test")
        shutil.copy(self.path("gateway-ca.crt"), self.path("proxy", "ca.pem"))
        for file in ("guest", "expired", "strange", "unnamed"):
            shutil.copy(self.path(f"{file}.crt"), self.path("proxy", f"{file}.pem"))
            shutil.copy(self.path(f"{file}.key"), self.path("proxy", f"{file}.key"))
        with open(self.path("proxy", "bundle.pem"), "w") as bundle:
            for authority in ("ca.crt", "gateway-ca.crt"):
                with open(self.path(authority)) as file:
                    bundle.write(file.read())

    def listeners(self):
        return f'proxy = []\nproxy_tls = ["10.42.42.1:{CERTIFIED.port}"]'

    def more_settings(self):
        return textwrap.dedent(f"""\
            [tls]
            certificate = "gateway.crt"
            key = "gateway.key"
            client_ca = "guests-ca.crt"
            [[guest]]
            name = "elsewhere"
            addresses = ["{GUEST}"]
            whitelist = ["elsewhere.rules"]
            [[guest]]
            name = "{CERTIFIED.guest}"
            whitelist = ["main.rules"]
            """)

    def rules(self):
        # Browsers always send encrypted_client_hello, be it an empty one.
        return "".join(f"{name} ech=allow\n" for name in ALLOWED)

    def prepare(self):
        with open(self.path("whitelist", "elsewhere.rules"), "w") as file:
            file.write("**.evil.test ech=allow\n")
        with open(self.path("bare-whitelist", "main.rules"), "w") as file:
            file.write(self.rules())
        with open(self.path(f"{BARE.name}.toml"), "w") as file:
            file.write(textwrap.dedent(f"""\
                [listen]
                proxy = []
                proxy_tls = ["10.42.42.1:{BARE.port}"]
                admin = "127.0.0.1:{BARE.admin}"
                control = ""
                [tls]
                certificate = "gateway.crt"
                key = "gateway.key"
                [[guest]]
                name = "{BARE.guest}"
                addresses = ["{GUEST}"]
                [whitelist]
                dir = "bare-whitelist"
                [resolver]
                servers = ["11.0.0.53"]
                [log]
                access = "./bare-access.log"
                [state]
                dir = "bare-state"
                """))
        self.launch(BARE.name, BARE.admin)

    def local(self, words, listener):
        """The page's text with this world's names."""
        words = words.replace("gateway.example.com:3443", f"{NAME}:{listener.port}").replace("gateway.example.com", NAME)
        return words.replace("/etc/proxy/", self.path("proxy", ""))

    def told(self, client, listener):
        """The row for a client in the page's table."""
        found = re.findall(rf"^\| {re.escape(client)} \| `([^`]+)` \| (?:yes|no) \|$", page(), re.M)
        assert len(found) == 1, f"{len(found)} lines for {client} in {PAGE}"
        return self.local(found[0], listener)

    def command(self, client, listener=CERTIFIED):
        return shlex.split(self.told(client, listener))

    def seen(self, listener):
        """The lines of the origin's log, the DNS server's log and the access log."""
        logs = ("http.log", "dns.log", "access.log" if listener is CERTIFIED else "bare-access.log")
        return [lines(self.path(log)) for log in logs]

    def metric(self, proxy, name, /, **labels):
        text = expect(subprocess.run(
            ["ip", "netns", "exec", self.names["gateway"], "curl", "-sf", f"http://127.0.0.1:{proxy.admin}/metrics"],
            check=False, capture_output=True, env={"PATH": os.environ["PATH"]},
        ))
        wanted = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        found = re.search(rf"^outgate_{name}(?:\{{{re.escape(wanted)}\}})? (\S+)$", text, re.M)
        return float(found[1]) if found else 0


def page():
    with open(os.path.join(ROOT, PAGE)) as file:
        return file.read()


def lines(path):
    if not os.path.exists(path):
        return []
    with open(path, errors="replace") as file:
        text = file.read()
    return text[: text.rfind("\n") + 1].splitlines()


def through(listener, client, allowed=(80, 443), denied=(80, 443)):
    """A check that runs a client and then compares the logs of the others.

    `allowed` and `denied` are the ports for which there must be a flow in the access log.
    """
    # One for each client, since outgate logs a refusal with a delay.
    evil = f"no{next(NUMBERS)}.evil.test"

    def check(world):
        before = [len(log) for log in world.seen(listener)]
        note = client(world, listener, evil)
        if note and note.startswith("this "):
            return note
        deadline = time.monotonic() + 10
        while True:
            heard, asked, flows = (log[count:] for log, count in zip(world.seen(listener), before, strict=True))
            flows = [json.loads(flow) for flow in flows]
            passed = {flow["port"] for flow in flows if flow["verdict"] == "allowed"}
            stopped = {flow["port"] for flow in flows if (flow["name"], flow["reason"]) == (evil, "not_whitelisted")}
            if passed >= set(allowed) and stopped >= set(denied):
                break
            assert time.monotonic() < deadline, f"flows to {allowed}, refusals on {denied} of {evil}, and not {flows}"
            time.sleep(0.05)
        assert {flow["guest"] for flow in flows} == {listener.guest}, f"all by {listener.guest}, and not {flows}"
        assert {flow["source"].split(":")[0] for flow in flows} == {GUEST}, flows
        assert heard and "evil" not in " ".join(heard), f"the origin got {heard}"
        assert "evil" not in " ".join(asked), f"DNS was asked for {asked}"
        return note

    return check


def refused(done, *words):
    """A client must have failed, and printed all of `words`."""
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode != 0, f"it was allowed: {said[-2000:]}"
    missing = [word for word in words if not re.search(word, said)]
    assert not missing, f"nothing of {missing} in: {said[-2000:]}"


def not_whitelisted(text, evil):
    """outgate's HTTP answer to a name that is not whitelisted."""
    answer = json.loads(text)
    assert answer["reason"] == "not_whitelisted" and answer["destination"] == f"{evil}:80", answer
    assert "not on the operator's whitelist" in answer["message"], answer


def curl_of(world, listener, certificate=True):
    words = world.command("curl", listener)
    if not certificate:
        for option in ("--proxy-cert", "--proxy-key"):
            at = words.index(option)
            del words[at : at + 2]
    return [*words, "-sS", "-m", "30"]


def curl(world, listener, evil):
    words = curl_of(world, listener, certificate=listener is CERTIFIED)
    expect(world.guest(*words, "--fail", "https://api.test/hello"), '"world"')
    expect(world.guest(*words, "--fail", "http://api.test/hello"), '"world"')
    expect(world.guest(*words, "--fail", "--proxytunnel", "http://api.test/hello"), '"world"')
    begin = time.monotonic()
    refused(world.guest(*words, f"https://{evil}/hello"), "CONNECT tunnel failed, response 403")
    took = time.monotonic() - begin
    refused(world.guest(*words, "--proxytunnel", f"http://{evil}/hello"), "CONNECT tunnel failed, response 403")
    not_whitelisted(expect(world.guest(*words, f"http://{evil}/hello")), evil)
    # Another name inside the tunnel than the one that CONNECT asked for.
    refused(world.guest(*words, "--connect-to", f"{evil}:443:api.test:443", f"https://{evil}/hello"), "alert access denied")
    # The oldest version that is accepted, without ALPN, as by old clients.
    expect(world.guest(*words, "--proxy-tlsv1", "--no-alpn", "https://api.test/hello"), '"world"')
    return f"refused in {took * 1000:.0f} ms, curl's own start included"


def strangers(world):
    """A client without a valid certificate gets the alert for it, is counted, and causes no flow."""
    before = world.seen(CERTIFIED)
    words = curl_of(world, CERTIFIED)

    def shown(file):
        return [word.replace("/guest.", f"/{file}.") for word in words]

    cases = [
        (curl_of(world, CERTIFIED, certificate=False), "alert certificate required", "no_client_certificate"),
        (shown("expired"), "alert certificate expired", "client_certificate_expired"),
        (shown("strange"), "alert unknown ca", "client_certificate_untrusted"),
        (shown("unnamed"), "alert access denied", "client_certificate_unnamed"),
        ([word.replace("proxy/ca.pem", "ca.crt") for word in words], "unable to get local issuer certificate", "client_refuses"),
    ]
    for command, said, reason in cases:
        count = world.metric(CERTIFIED, "tls_handshakes_refused_total", listener="proxy_tls", reason=reason)
        for url in ("https://api.test/hello", "http://api.test/hello"):
            refused(world.guest(*command, url), said)
        deadline = time.monotonic() + 10
        while world.metric(CERTIFIED, "tls_handshakes_refused_total", listener="proxy_tls", reason=reason) < count + 2:
            assert time.monotonic() < deadline, f"{reason} is not counted"
            time.sleep(0.05)
    # A client that uses http:// for the proxy gets an answer in clear.
    clear = [word.replace("https://", "http://") for word in words]
    answer = json.loads(expect(world.guest(*clear, "http://api.test/hello")))
    assert "write the proxy as https://" in answer["message"], answer
    heard, asked, flows = (log[len(old):] for log, old in zip(world.seen(CERTIFIED), before, strict=True))
    assert not heard and not asked, f"the origin heard {heard}, DNS was asked for {asked}"
    # There may be more refusals of evil names, which the previous check has caused.
    assert "api.test" not in " ".join(flows), flows


def git(world, listener, evil):
    clone = world.path("clone", "x")[:-2]
    words = world.command("git", listener)
    expect(world.guest(*words, "clone", "-q", "https://git.test/repo.git", clone))
    expect(world.guest("git", "-C", clone, "fsck", "--full"))
    assert expect(world.guest("git", "-C", clone, "rev-list", "--count", "HEAD")).strip() == "20"
    expect(world.guest(*words, "ls-remote", "http://git.test/repo.git"), "refs/heads/main")
    for scheme in ("http", "https"):
        refused(world.guest(*words, "ls-remote", f"{scheme}://{evil}/repo.git"), "403")
    bare = [word for pair in zip(words[1::2], words[2::2], strict=True) if "/guest." not in pair[1] for word in pair]
    # GnuTLS, which Debian's git is built with, does not say which alert.
    refused(world.guest("git", *bare, "ls-remote", "https://git.test/repo.git"), "fatal alert|alert certificate required")


def apt(world, listener, evil):
    words = world.command("apt", listener)
    base = world.path("apt", "x")[:-2]

    def get(source, *arguments):
        folder = os.path.join(base, source.replace("://", "-"))
        for part in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d"):
            os.makedirs(os.path.join(folder, part), exist_ok=True)
        with open(os.path.join(folder, "etc/sources.list"), "w") as file:
            file.write(f"deb [trusted=yes] {source}/ ./\n")
        open(os.path.join(folder, "status"), "w").close()
        options = {
            "Dir::State": f"{folder}/state", "Dir::State::status": f"{folder}/status", "Dir::Cache": f"{folder}/cache",
            "Dir::Etc": f"{folder}/etc", "APT::Sandbox::User": "root", "Acquire::Languages": "none",
            "Acquire::https::CaInfo": world.path("ca.crt"), "Acquire::https::Proxy": f"https://{NAME}:{listener.port}",
            # apt does not check whether its outer TLS has buffered what its inner TLS waits for: where two records
            # of the inner one arrive in one of the outer one, it waits until this is over and asks again.
            "Acquire::https::Timeout": "2", "Acquire::Retries": "3" if "evil" not in source else "0",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return world.guest("env", "-C", folder, *words, *flags, "-q", *arguments), folder

    for scheme in ("http", "https"):
        done, folder = get(f"{scheme}://deb.test", "update")
        expect(done)
        assert [name for name in os.listdir(f"{folder}/state/lists") if "Packages" in name], done
        done, _ = get(f"{scheme}://{evil}", "update")
        said = (done.stdout + done.stderr).decode()
        assert re.search(r"403 +Forbidden", said), said[-2000:]
        assert scheme == "http" or "not_whitelisted" in said, said[-2000:]
    done, folder = get("http://deb.test", "download", "outgate-hello")
    expect(done)
    package = "outgate-hello_1.0_all.deb"
    assert run.file_digest(f"{folder}/{package}") == run.file_digest(world.path("www", "deb.test", package))


# If these name a file, requests and pip use it instead of the configured one.
NO_BUNDLE = {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}


def pip(world, listener, evil):
    _, *words = world.command("pip", listener)
    for scheme in ("https", "http"):
        target = world.path("pip", scheme, "x")[:-2]
        expect(world.guest(
            sys.executable, "-m", "pip", "-q", "--isolated", *words, "--trusted-host", "index.test", "download", "--no-deps",
            "--no-cache-dir", "--index-url", f"{scheme}://index.test/simple", "--dest", target, "bulk-outgate", **NO_BUNDLE,
        ))
        wheel, = os.listdir(target)
        assert run.file_digest(os.path.join(target, wheel)) == run.file_digest(world.path("www", "files.test", wheel))
        os.remove(os.path.join(target, wheel))
    done = world.guest(
        sys.executable, "-m", "pip", "--isolated", *words, "--retries", "1", "download", "--no-deps", "--no-cache-dir",
        "--index-url", f"https://{evil}/simple", "--dest", target, "bulk-outgate", **NO_BUNDLE,
    )
    refused(done, "Tunnel connection failed: 403 Forbidden", "No matching distribution")


# The copy in pip, which requires no registry, and the installed one.
LIBRARIES = ("pip._vendor.requests", "requests")
# With `session`, and a name that is refused as argument.
REQUESTS = """
for turn in range(5):
    assert session.get("https://api.test/hello").json() == {"hello": "world"}
    assert session.get("http://api.test/hello").json() == {"hello": "world"}
for scheme in ("https", "http"):
    assert session.post(scheme + "://api.test/up", data=(b"x" * 1000 for _ in range(10))).text.startswith("10000 ")
refusal = session.get("http://" + sys.argv[1])
assert refusal.status_code == 403 and refusal.json()["reason"] == "not_whitelisted"
try:
    session.get("https://" + sys.argv[1])
except requests.exceptions.ProxyError as error:
    assert "Tunnel connection failed: 403 Forbidden" in str(error), error
    print("refused as it should be")
"""


def installed(library):
    return subprocess.run([sys.executable, "-c", f"import {library}"], check=False, capture_output=True).returncode == 0


def each_library(world, program, evil, **more):
    """Runs the script with each available `requests`, and gives their versions."""
    found = [library for library in LIBRARIES if installed(library)]
    assert found, "no requests is available, not even pip's"
    for library in found:
        source = "from pip._vendor " if "pip" in library else ""
        imports = f"import ssl, sys\n{source}import requests, urllib3\n"
        # For http:// URLs requests warns that it does not check the proxy's certificate.
        done = world.guest(sys.executable, "-W", "ignore", "-c", imports + program, evil, **more)
        expect(done, "refused as it should be")
    return " and ".join(found)


def requests(world, listener, evil):
    blocks = re.findall(r"```python\n(class Inside\(.*?)```", page(), re.S)
    assert len(blocks) == 1, f"{len(blocks)} adapters in {PAGE}"
    return each_library(world, world.local(blocks[0], listener) + REQUESTS, evil)


def requests_bare(world, listener, evil):
    settings = f"""
session = requests.Session()
session.proxies = dict.fromkeys(["http", "https"], "https://{NAME}:{listener.port}")
session.verify = "{world.path("proxy", "bundle.pem")}"
"""
    return each_library(world, settings + REQUESTS, evil, **NO_BUNDLE)


def urllib3(world, listener, evil):
    context = re.search(r"`(context = ssl\.create_default_context\([^`]*)` and\s+`(context\.load_cert_chain[^`]*)`", page())
    program = "\n".join([world.local(line, listener) for line in context.groups()] + [f"manager = {world.told('urllib3', listener)}"]) + """
for turn in range(5):
    for scheme in ("https", "http"):
        assert manager.request("GET", scheme + "://api.test/hello", retries=False).data == b'{"hello": "world"}'
refusal = manager.request("GET", "http://" + sys.argv[1], retries=False)
assert refusal.status == 403 and b"not_whitelisted" in refusal.data, refusal.data
try:
    manager.request("GET", "https://" + sys.argv[1], retries=False)
except urllib3.exceptions.ProxyError as error:
    assert "Tunnel connection failed: 403 Forbidden" in str(error), error
    print("refused as it should be")
"""
    for newest in ("TLSv1_2", "TLSv1_3"):
        note = each_library(world, program.replace("manager =", f"context.maximum_version = ssl.TLSVersion.{newest}\nmanager =", 1), evil)
    return f"TLS 1.2 and 1.3, {note}"


def node(world, listener, evil):
    folder = world.path("proxy", "x")[:-2]
    for newest in ("1.2", "1.3"):
        words = ["node", f"--tls-max-v{newest}", os.path.join(HERE, "fetch.js"), f"https://{NAME}:{listener.port}"]
        for scheme in ("https", "http"):
            expect(world.guest(*words, f"{scheme}://api.test/hello", folder), '"world"')
        refused(world.guest(*words, f"https://{evil}/", folder), "CONNECT: 403 Forbidden")
        not_whitelisted(expect(world.guest(*words, f"http://{evil}/", folder)), evil)
    return "TLS 1.2 and 1.3"


def node_modules():
    """The folder with the packages of node/, and what is missing where there is none."""
    cache = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "clients-node")
    wanted = os.path.join(HERE, "node")
    lock = "package-lock.json"
    modules = os.path.join(cache, "node_modules")
    if os.path.isdir(modules) and lines(os.path.join(cache, lock)) == lines(os.path.join(wanted, lock)):
        return modules, None
    if shutil.which("npm") is None:
        return None, "this machine has no npm to fetch undici and https-proxy-agent with"
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(cache)) as folder:
        new = os.path.join(folder, "new")
        shutil.copytree(wanted, new)
        # npm checks the digests of the lock file, and runs no scripts.
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=new, check=False, capture_output=True, text=True, timeout=120,
        )
        if done.returncode:
            return None, f"this machine cannot fetch undici and https-proxy-agent by npm: {done.stderr.strip()[-500:]}"
        shutil.rmtree(cache, ignore_errors=True)
        os.rename(new, cache)
    return modules, None


def agent(client, *urls):
    """Fetches all `urls` by the page's agent; those that contain EVIL must be refused."""
    def fetch(world, listener, evil):
        modules, missing = node_modules()
        if missing:
            assert os.environ.get("CI") != "true", missing
            return missing
        words = ["node", os.path.join(HERE, "agent.js"), world.path("proxy", "x")[:-2], world.told(client, listener)]
        asked = [url.replace("EVIL", evil) for url in urls]
        answers = [json.loads(line) for line in expect(world.guest(*words, *asked, NODE_PATH=modules)).splitlines()]
        assert [answer["url"] for answer in answers] == asked, answers
        for answer in answers:
            if evil in answer["url"]:
                # undici uses a tunnel for http:// too, and raises an error if it gets none.
                said = answer.get("error", "") + answer.get("body", "")
                assert answer.get("status") == 403 and "not_whitelisted" in said or "Proxy response (403)" in said, answer
            elif answer["url"].startswith("wss:"):
                assert answer.get("body") == "the same came back", answer
            else:
                assert answer.get("status") == 200 and json.loads(answer["body"]) == {"hello": "world"}, answer
        return None

    return fetch


PAGES = ("https://api.test/hello", "http://api.test/hello", "https://EVIL/", "http://EVIL/")


def trust(world):
    """Puts authority and certificate into NSS's database for Chromium, by the page's commands. False if they are not installed."""
    if shutil.which("certutil") is None or shutil.which("pk12util") is None:
        return False
    folder = world.path("home", ".pki", "nssdb", "x")[:-2]
    if os.path.exists(os.path.join(folder, "cert9.db")):
        return True
    expect(world.guest("certutil", "-d", f"sql:{folder}", "-N", "--empty-password"))
    expect(world.guest("certutil", "-d", f"sql:{folder}", "-A", "-t", "C,,", "-n", "origin", "-i", world.path("ca.crt")))
    run.run("openssl", "pkcs12", "-export", "-in", world.path("guest.crt"), "-inkey", world.path("guest.key"), "-name", "guest",
            "-passout", "pass:", "-out", world.path("guest.p12"))
    for command in (r"certutil -d sql:\$HOME[^`]*", r"pk12util -d sql:\$HOME[^`]*"):
        words = world.local(re.search(f"`({command})`", page())[1], CERTIFIED).replace("guest.p12", world.path("guest.p12"))
        # An empty password.
        expect(world.guest("sh", "-c", words + (" -W ''" if "pk12util" in words else "")))
    return True


def chromium(world, listener, evil):
    if not trust(world):
        assert os.environ.get("CI") != "true", "certutil and pk12util are not installed"
        return "this machine has no certutil and pk12util"
    if listener is CERTIFIED and not os.path.isdir("/etc/chromium"):
        return "this machine's Chromium reads no policy in /etc/chromium"
    browser, *words = world.command("Chromium", listener)
    assert browser == "chromium"
    done = run.browse(world, *words, "https://api.test/page.html")
    if done is None:
        return "this machine has no chromium"
    expect(done, "loaded from two hosts")
    expect(run.browse(world, *words, "http://api.test/page.html"), "loaded from two hosts")
    said = expect(run.browse(world, *words, f"http://{evil}/"), "Refused by outgate")
    assert "not on the operator's whitelist" in said and f"{evil}:80" in said, said
    done = run.browse(world, *words, f"https://{evil}/")
    assert b"ERR_TUNNEL_CONNECTION_FAILED" in done.stdout + done.stderr, done
    return None


def bulk(scheme):
    transfer = run.bulk(scheme, lambda world: [word for word in world.command("curl") if word != "curl"])
    return through(CERTIFIED, lambda world, *_: transfer(world), allowed=[443 if scheme == "https" else 80], denied=())


def all_by_certificate(world):
    for listener in (CERTIFIED, BARE):
        assert world.metric(listener, "panics_total") == 0, f"a panic of {listener.name}"
        assert world.metric(listener, "guest_connections_total", guest=listener.guest, verdict="allowed") > 0, listener
    for guest in ("elsewhere", "other"):
        for verdict in ("allowed", "denied"):
            assert world.metric(CERTIFIED, "guest_connections_total", guest=guest, verdict=verdict) == 0, "the address was used and not the certificate"


CLIENTS = [
    ("curl", through(CERTIFIED, curl)),
    ("curl, no certificate", through(BARE, curl)),
    ("curl, strangers", strangers),
    (f"pip, {BULK} MiB, no cert.", through(BARE, pip, denied=[443])),
    ("git clone", through(CERTIFIED, git)),
    ("Python requests", through(CERTIFIED, requests)),
    ("requests, no certificate", through(BARE, requests_bare)),
    ("Python urllib3", through(CERTIFIED, urllib3)),
    ("Node https", through(CERTIFIED, node)),
    ("Node undici", through(CERTIFIED, agent("undici", *PAGES))),
    ("Node https-proxy-agent", through(CERTIFIED, agent("https-proxy-agent", *PAGES))),
    ("WebSocket", through(CERTIFIED, agent("undici", "wss://api.test/chat"), allowed=[443], denied=())),
    ("apt-get", through(CERTIFIED, apt)),
    ("Chromium", through(CERTIFIED, chromium)),
    ("Chromium, no certificate", through(BARE, chromium)),
    (f"{BULK} MiB over https", bulk("https")),
    (f"{BULK} MiB over http", bulk("http")),
]

if __name__ == "__main__":
    run.start(Inside, CLIENTS + run.AFTERWARDS + [("all by certificate", all_by_certificate)])
