#!/usr/bin/env python3
"""Real clients in a guest's namespace reach allowed names through outgate, and nothing else.

run.py [PATH OF outgate]. Requires root. Builds three namespaces (guest, gateway, internet), an origin and
a DNS server (origin.py) and a certificate authority; runs each client; prints a table; checks by the
origin's and the DNS server's logs that only allowed names were asked for. Exits 1 if anything failed.
OUTGATE_BULK_MIB (default 64) is the size of the large transfers; 1024 for a full run.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BULK = int(os.environ.get("OUTGATE_BULK_MIB", "64"))
PROXY = "10.42.42.1:3128"
ALLOWED = ["api.test", "index.test", "files.test", "git.test", "deb.test"]
# gRPC in clear passes by the first and not by the second, which holds names to the host.
CLEAR = "tcp://api.test:50051\napi.test:50052\n"
# Fetched from the registry once, in these versions, into target/clients-python.
LIBRARIES = ["aiohttp==3.14.5", "grpcio==1.85.3"]
PATIENCE = 300


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options).stdout


class World:
    """The namespaces, the origin and outgate. All are removed at the end of `with`."""

    # Whether the guest's clients are configured for the proxy.
    proxied = True
    # The names of the origin's certificate besides evil.test.
    allowed = ALLOWED
    # The program that serves as the internet.
    origin = "origin.py"

    def __init__(self, outgate):
        self.outgate = os.path.abspath(outgate)
        self.names = {part: f"ogc{os.getpid()}-{part}" for part in ("guest", "gateway", "internet")}
        self.processes = []

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="outgate-clients-")
        try:
            self.wire()
            self.certificates()
            self.content()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, *parts):
        path = os.path.join(self.directory, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def wire(self):
        guest, gateway, internet = self.names.values()
        run("ip", "-batch", "-", input=textwrap.dedent(f"""\
            netns add {guest}
            netns add {gateway}
            netns add {internet}
            link add name eth0 netns {guest} type veth peer name g1 netns {gateway}
            link add name eth0 netns {internet} type veth peer name up0 netns {gateway}
            """))
        for name, links in (
            (guest, {"eth0": ["10.42.42.2/24"]}),
            (gateway, {"g1": ["10.42.42.1/24"], "up0": ["11.0.0.1/24"]}),
            (internet, {"eth0": ["11.0.0.10/24", "11.0.0.53/24"]}),
        ):
            lines = ["link set lo up"]
            for link, addresses in links.items():
                lines += [f"addr add {address} dev {link}" for address in addresses] + [f"link set {link} up"]
            run("ip", "-n", name, "-batch", "-", input="\n".join(lines) + "\n")
        run("ip", "netns", "exec", gateway, "sysctl", "-qw", "net.ipv4.ip_forward=0")

    def certificates(self):
        self.authority("ca")
        self.certify("ca", "tls", 2, "serverAuth", *self.allowed, "evil.test")

    def authority(self, name):
        run("openssl", "req", "-x509", *self.key(name), "-days", "3", "-subj", f"/CN=Client test, {name}",
            "-out", self.path(f"{name}.crt"), "-addext", "keyUsage=critical,keyCertSign")

    def certify(self, authority, file, days, use, *names, common=None):
        run("openssl", "req", *self.key(file), "-subj", f"/CN={common or names[0]}", "-out", self.path(f"{file}.csr"))
        with open(self.path("extensions"), "w") as extensions:
            extensions.write(f"subjectAltName={','.join(f'DNS:{name}' for name in names)}\nextendedKeyUsage={use}\n")
        run("openssl", "x509", "-req", "-in", self.path(f"{file}.csr"), "-CA", self.path(f"{authority}.crt"),
            "-CAkey", self.path(f"{authority}.key"), "-CAcreateserial", "-days", str(days), "-extfile", self.path("extensions"),
            "-out", self.path(f"{file}.crt"))

    def key(self, file):
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self.path(f"{file}.key")]

    def content(self):
        self.wheel()
        self.repository()
        self.package()
        self.page()

    def page(self):
        with open(self.path("www", "api.test", "page.html"), "w") as page:
            page.write('<!doctype html><p id="p">bare</p><script src="https://files.test/script.js"></script>')
        with open(self.path("www", "files.test", "script.js"), "w") as script:
            script.write('document.getElementById("p").textContent = "loaded " + "from two hosts";')

    def wheel(self):
        wheel = "bulk_outgate-1.0-py3-none-any.whl"
        info = "bulk_outgate-1.0.dist-info"
        with zipfile.ZipFile(self.path("www", "files.test", wheel), "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("bulk_outgate/__init__.py", "SIZE = %d\n" % (BULK << 20))
            with archive.open(zipfile.ZipInfo("bulk_outgate/data.bin"), "w", force_zip64=True) as data:
                for _ in range(BULK):
                    data.write(os.urandom(1 << 20))
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bulk-outgate\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        digest = file_digest(self.path("www", "files.test", wheel))
        with open(self.path("www", "index.test", "simple", "bulk-outgate", "index.html"), "w") as page:
            page.write(f'<!DOCTYPE html><html><body><a href="https://files.test/{wheel}#sha256={digest}">{wheel}</a></body></html>')

    def repository(self):
        work = self.path("work", "x")[:-2]
        git = ["git", "-C", work, "-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
        run(*git, "init", "-q")
        for turn in range(20):
            with open(os.path.join(work, f"file{turn}"), "wb") as file:
                file.write(os.urandom(50_000))
            run(*git, "add", "-A")
            run(*git, "commit", "-qm", f"commit {turn}")
        run("git", "clone", "-q", "--bare", work, self.path("www", "git.test", "repo.git"))

    def package(self):
        tree = self.path("package", "x")[:-2]
        os.makedirs(os.path.join(tree, "DEBIAN"))
        os.makedirs(os.path.join(tree, "usr/share/outgate-hello"))
        with open(os.path.join(tree, "usr/share/outgate-hello/data"), "wb") as file:
            file.write(os.urandom(2 << 20))
        control = "Package: outgate-hello\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@example.com>\nDescription: test\n"
        with open(os.path.join(tree, "DEBIAN/control"), "w") as file:
            file.write(control)
        deb = self.path("www", "deb.test", "outgate-hello_1.0_all.deb")
        run("dpkg-deb", "-b", tree, deb)
        with open(self.path("www", "deb.test", "Packages"), "w") as file:
            file.write(f"{control}Filename: ./outgate-hello_1.0_all.deb\nSize: {os.path.getsize(deb)}\nSHA256: {file_digest(deb)}\n")

    def start(self):
        origin = self.spawn("internet", sys.executable, os.path.join(HERE, self.origin), self.directory, stdout=subprocess.PIPE)
        if origin.stdout.readline() != b"ready\n":
            raise RuntimeError("the origin did not start")
        os.makedirs(self.path("whitelist", "x")[:-2], exist_ok=True)
        with open(self.path("whitelist", "main.rules"), "w") as file:
            file.write(self.rules())
        with open(self.path("outgate.toml"), "w") as file:
            file.write(textwrap.dedent(f"""\
                [listen]
                {self.listeners()}
                control = "{self.path("control.sock")}"
                [whitelist]
                dir = "{self.path("whitelist")}"
                [resolver]
                servers = ["11.0.0.53"]
                [log]
                access = "{self.path("access.log")}"
                [state]
                dir = "{self.path("state")}"
                """) + self.more_settings())
        self.prepare()
        self.launch()

    def launch(self, name="outgate", admin=3190):
        """Starts an outgate and waits until it is ready."""
        errors = open(self.path(f"{name}.err"), "wb")
        daemon = self.spawn("gateway", self.outgate, "run", "--config", self.path(f"{name}.toml"), stdout=errors, stderr=errors)
        for _ in range(600):
            if daemon.poll() is not None:
                break
            ready = subprocess.run(
                ["ip", "netns", "exec", self.names["gateway"], "curl", "-sf", f"http://127.0.0.1:{admin}/readyz"],
                check=False, capture_output=True, env={"PATH": os.environ["PATH"]},
            )
            if ready.returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("outgate does not get ready: " + open(self.path(f"{name}.err")).read())

    def prepare(self):
        """Runs after the configuration is written and before the daemon starts."""

    def listeners(self):
        return f'proxy = ["{PROXY}"]'

    def more_settings(self):
        return ""

    def rules(self):
        return "".join(f"{name}\n" for name in ALLOWED) + CLEAR

    def spawn(self, part, *command, **options):
        process = subprocess.Popen(["ip", "netns", "exec", self.names[part], *command], stdin=subprocess.DEVNULL, **options)
        self.processes.append(process)
        return process

    def stop(self):
        """Ends the outgate that was started last."""
        daemon = self.processes.pop()
        daemon.terminate()
        daemon.wait(60)

    def guest(self, *command, proxied=True, **more):
        """Runs a client in the guest's namespace, with an environment that only names proxy and CA."""
        return subprocess.run(
            ["ip", "netns", "exec", self.names["guest"], *command], env=self.environment(proxied, **more),
            stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
        )

    def environment(self, proxied=True, **more):
        """What a client finds in its environment."""
        authority = self.path("ca.crt")
        variables = (
            "SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS",
        )
        environment = {"PATH": os.environ["PATH"], "HOME": self.path("home", "x")[:-2], "LANG": "C.UTF-8"}
        environment |= {name: authority for name in variables}
        environment |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "GIT_CONFIG_NOSYSTEM": "1"}
        if proxied and self.proxied:
            environment |= {name: f"http://{PROXY}" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        return environment | more

    def metrics(self):
        """The daemon's metrics, as text."""
        return expect(subprocess.run(
            ["ip", "netns", "exec", self.names["gateway"], "curl", "-sf", "http://127.0.0.1:3190/metrics"],
            check=False, capture_output=True, env={"PATH": os.environ["PATH"]},
        ))


def file_digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expect(done, text=None):
    """The output of a client that must have succeeded (and printed `text`)."""
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0, f"exit {done.returncode}: {output[-2000:]}"
    assert text is None or text in output, f"no {text!r} in: {output[-2000:]}"
    return done.stdout.decode("utf-8", "replace")


def curl_https(world):
    expect(world.guest("curl", "-sS", "--fail", "https://api.test/hello"), '"world"')


def curl_http(world):
    expect(world.guest("curl", "-sS", "--fail", "http://api.test/hello"), '"world"')


def curl_socks(world):
    expect(world.guest("curl", "-sS", "--fail", "--socks5-hostname", PROXY, "https://api.test/hello", proxied=False), '"world"')


def curl_refused(world):
    done = world.guest("curl", "-sS", "https://evil.test/hello")
    assert done.returncode != 0 and b"403" in done.stderr, done
    done = world.guest("curl", "-sS", "http://evil.test/hello")
    assert json.loads(done.stdout)["reason"] == "not_whitelisted", done
    done = world.guest("curl", "-sS", "--connect-to", "api.test:443:evil.test:443", "https://api.test/hello")
    assert done.returncode != 0, done
    done = world.guest("curl", "-sS", "-m", "3", "--noproxy", "*", "--resolve", "api.test:443:11.0.0.10", "https://api.test/hello")
    assert done.returncode != 0, "no connection may bypass the proxy"


def wget(world):
    expect(world.guest("wget", "-q", f"--ca-certificate={world.path('ca.crt')}", "-O", "-", "https://api.test/hello"), '"world"')


def pip(world):
    target = world.path("pip", "x")[:-2]
    proxy = ["--proxy", f"http://{PROXY}"] if world.proxied else []
    expect(world.guest(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-cache-dir", "--isolated", "--cert", world.path("ca.crt"),
        *proxy, "--index-url", "https://index.test/simple", "--target", target, "bulk-outgate",
    ))
    assert os.path.getsize(os.path.join(target, "bulk_outgate/data.bin")) == BULK << 20


def git(world):
    clone = world.path("clone", "x")[:-2]
    expect(world.guest("git", "clone", "-q", "https://git.test/repo.git", clone))
    expect(world.guest("git", "-C", clone, "fsck", "--full"))
    assert expect(world.guest("git", "-C", clone, "rev-list", "--count", "HEAD")).strip() == "20"


def requests(world):
    # pip ships the library, so that no registry is needed.
    program = """
        try:
            import requests
        except ImportError:
            from pip._vendor import requests
        with requests.Session() as session:
            for turn in range(20):
                assert session.get("https://api.test/hello").json() == {"hello": "world"}
                assert session.get("http://api.test/hello").json() == {"hello": "world"}
            assert session.post("https://api.test/up", data=(b"x" * 1000 for _ in range(10))).text.startswith("10000 ")
            assert session.post("http://api.test/up", data=(b"x" * 1000 for _ in range(10))).text.startswith("10000 ")
            if sys.argv[1] == "proxied":
                refusal = session.get("http://evil.test/")
                assert refusal.status_code == 403 and refusal.json()["reason"] == "not_whitelisted"
            try:
                session.get("https://evil.test/")
            except requests.exceptions.ConnectionError as error:
                # A proxy says no; without one the name is not known, and that for good.
                expected = requests.exceptions.ProxyError if sys.argv[1] == "proxied" else requests.exceptions.ConnectionError
                assert isinstance(error, expected) and "Temporary failure" not in str(error), error
                print("refused as it should be")
    """
    way = "proxied" if world.proxied else "direct"
    expect(world.guest(sys.executable, "-c", "import sys\n" + textwrap.dedent(program), way), "refused as it should be")


def node(world):
    expect(world.guest("node", os.path.join(HERE, "fetch.js"), PROXY, "https://api.test/hello"), '"world"')


def node_fetch(world):
    help_text = run("node", "--help")
    if "use-env-proxy" not in help_text:
        return "this Node's fetch knows no proxy"
    program = "fetch('https://api.test/hello').then(r => r.text()).then(console.log)"
    expect(world.guest("node", "-e", program, NODE_USE_ENV_PROXY="1"), '"world"')
    return None


def apt_flags(world, base, *sources):
    """Options by which apt-get uses only this folder and these sources."""
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d"):
        os.makedirs(os.path.join(base, folder))
    with open(os.path.join(base, "etc/sources.list"), "w") as file:
        file.writelines(f"deb [trusted=yes] {source}/ ./\n" for source in sources)
    open(os.path.join(base, "status"), "w").close()
    options = {
        "Dir::State": f"{base}/state", "Dir::State::status": f"{base}/status", "Dir::Cache": f"{base}/cache", "Dir::Etc": f"{base}/etc",
        "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Acquire::Retries": "0",
    }
    if world.proxied:
        options["Acquire::http::Proxy"] = f"http://{PROXY}"
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


def apt(world):
    base = world.path("apt", "x")[:-2]
    flags = apt_flags(world, base, "http://deb.test")
    expect(world.guest("apt-get", *flags, "-q", "update"))
    expect(world.guest("sh", "-c", 'cd "$0" && shift 0 && exec apt-get "$@" -q download outgate-hello', base, *flags))
    assert file_digest(f"{base}/outgate-hello_1.0_all.deb") == file_digest(world.path("www", "deb.test", "outgate-hello_1.0_all.deb"))


def browse(world, *arguments):
    """Chromium, which prints the page; `None` where there is none."""
    browser = shutil.which("chromium")
    if browser is None:
        assert os.environ.get("CI") != "true", "chromium is not installed"
        return None
    profile = tempfile.mkdtemp(dir=world.directory)
    return world.guest(
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--virtual-time-budget=20000", "--dump-dom", *arguments,
    )


def websocket(world):
    way = PROXY if world.proxied else "direct"
    expect(world.guest(sys.executable, os.path.join(HERE, "websocket.py"), way, "api.test"), "four messages came back")


def libraries():
    """The folder with aiohttp and grpcio, and what is missing where there is none."""
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    cache = os.path.join(target, f"clients-python-{sys.version_info[0]}.{sys.version_info[1]}")
    stamp = os.path.join(cache, "versions")
    wanted = " ".join(LIBRARIES)
    if os.path.exists(stamp) and open(stamp).read() == wanted:
        return cache, None
    shutil.rmtree(cache, ignore_errors=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "--only-binary", ":all:", "--target", cache, *LIBRARIES]
    done = subprocess.run(install, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        return None, f"this machine cannot fetch aiohttp and grpcio by pip: {done.stderr.strip()[-500:]}"
    with open(stamp, "w") as file:
        file.write(wanted)
    return cache, None


def with_libraries(check):
    def run_it(world):
        folder, missing = libraries()
        if missing:
            assert os.environ.get("CI") != "true", missing
            return missing
        return check(world, folder)

    return run_it


def way(world):
    return PROXY if world.proxied else "direct"


@with_libraries
def aiohttp_websocket(world, folder):
    script = os.path.join(HERE, "aiohttp_ws.py")
    for uri in ("ws://api.test/chat", "wss://api.test/chat"):
        expect(world.guest(sys.executable, script, way(world), uri, PYTHONPATH=folder), "hello came back")


def java_websocket(world):
    if shutil.which("javac") is None:
        assert os.environ.get("CI") != "true", "no JDK is installed"
        return "this machine has no JDK"
    expect(world.guest("java", os.path.join(HERE, "WebSocketClient.java"), way(world), "ws://api.test/chat"), "hello came back")
    return None


@with_libraries
def grpc_in_clear(world, folder):
    script = os.path.join(HERE, "grpc_peer.py")
    addresses = ["11.0.0.10:50051", "11.0.0.10:50052"]
    server = world.spawn(
        "internet", sys.executable, script, "serve", *addresses, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": folder},
    )
    # The daemon is started last, and is ended first by the check that ends it.
    world.processes.insert(0, world.processes.pop())
    assert server.stdout.readline() == b"ready\n", "the server did not start"
    call = lambda port: world.guest(sys.executable, script, "call", f"api.test:{port}", PYTHONPATH=folder)
    expect(call(50051), "hello came back")
    begin = time.monotonic()
    # UNAVAILABLE or, where the whole answer was read before the connection's end, UNKNOWN.
    expect(call(50052), "failed: StatusCode.UN")
    assert time.monotonic() - begin < 15, "a refusal must not look like an error that can be retried"
    for _ in range(100):
        with open(world.path("access.log")) as log:
            if '"reason":"h2c"' in log.read():
                return
        time.sleep(0.1)
    raise AssertionError("the log does not say why")


def bulk(scheme, options=lambda world: ()):
    """Transfers in both directions by curl; `options(world)` gives further arguments."""
    def transfer(world):
        sys.path.insert(0, HERE)
        from origin import BLOCK

        digest = hashlib.sha256()
        path = world.path("bulk.bin")
        with open(path, "wb") as file:
            for _ in range(BULK):
                file.write(BLOCK)
                digest.update(BLOCK)
        begin = time.monotonic()
        curl = ["curl", "-sS", "--fail", *options(world)]
        expect(world.guest(*curl, "-o", path + ".down", f"{scheme}://api.test/down/{BULK}"))
        middle = time.monotonic()
        assert file_digest(path + ".down") == digest.hexdigest(), "the download differs"
        os.remove(path + ".down")
        up = time.monotonic()
        output = expect(world.guest(*curl, "-T", path, f"{scheme}://api.test/up"))
        assert output == f"{BULK << 20} {digest.hexdigest()}", f"the upload differs: {output}"
        return f"{BULK / (middle - begin):.0f} MiB/s down, {BULK / (time.monotonic() - up):.0f} up"

    return transfer


CLIENTS = [
    ("curl https", curl_https),
    ("curl http", curl_http),
    ("curl SOCKS5", curl_socks),
    ("curl, refused", curl_refused),
    ("wget", wget),
    (f"pip install, {BULK} MiB", pip),
    ("git clone", git),
    ("Python requests", requests),
    ("Node https", node),
    ("Node fetch", node_fetch),
    ("apt-get", apt),
    ("WebSocket", websocket),
    ("Java WebSocket, ws://", java_websocket),
    ("aiohttp WebSocket", aiohttp_websocket),
    ("gRPC in clear", grpc_in_clear),
    (f"{BULK} MiB over https", bulk("https")),
    (f"{BULK} MiB over http", bulk("http")),
]


def only_allowed_names(world):
    """What the origin and the DNS server saw."""
    with open(world.path("dns.log")) as file:
        asked = set(file.read().split())
    assert asked == set(ALLOWED), f"DNS was asked for {sorted(asked)}"
    with open(world.path("http.log")) as file:
        lines = file.read().splitlines()
    hosts = {line.split()[0] for line in lines if not line.startswith("error")}
    assert hosts == set(ALLOWED), f"the origin was asked for {sorted(hosts)}"


def nothing_wrong_inside(world):
    """What outgate itself counted."""
    metrics = world.metrics()
    assert re.search(r"^outgate_panics_total 0$", metrics, re.M), "a panic was counted"
    assert re.search(r'^outgate_connections_total\{[^}]*reason="not_whitelisted"[^}]*\} [1-9]', metrics, re.M)
    up = re.findall(r'^outgate_bytes_total\{[^}]*direction="up"[^}]*\} (\S+)', metrics, re.M)
    assert sum(map(float, up)) >= BULK << 20, "bytes are missing from the count"


def main(kind, checks):
    outgate = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "target", "debug", "outgate")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    passed = failed = skipped = 0
    with kind(outgate) as world:
        for name, check in checks:
            begin = time.monotonic()
            try:
                note = check(world) or ""
                skip = note.startswith("this ")
                verdict = "skipped" if skip else "ok"
                passed, skipped = passed + (not skip), skipped + skip
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                verdict, note = "FAILED", str(error)
                failed += 1
            print(f"{name:24} {verdict:8} {time.monotonic() - begin:6.1f} s  {note}", flush=True)
        if failed:
            print(open(world.path("outgate.err"), errors="replace").read()[-4000:], file=sys.stderr)
    print(f"clients: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


AFTERWARDS = [("only allowed names", only_allowed_names), ("outgate's own count", nothing_wrong_inside)]


def start(kind, checks):
    if os.geteuid() != 0:
        print("skipped: requires root, for network namespaces")
        sys.exit(1 if os.environ.get("CI") == "true" else 0)
    sys.exit(main(kind, checks))


if __name__ == "__main__":
    start(World, CLIENTS + AFTERWARDS)
