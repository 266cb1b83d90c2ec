#!/usr/bin/env python3
"""Heavy jobs of honest guests, through the proxy and transparently: no built-in limit refuses anything.

jobs.py [--full] [--figures] [--only JOB] [PATH OF outgate]. The network of transparent.py with a neighbour. Checked are a
client's exit status, the digests of its downloads, that neither outgate's log nor its metrics show a refusal by a
limit, and that the neighbour was served meanwhile. The output shows the most that the guest asked for, as seen on its
wire, in outgate's log and at the DNS server. --figures removes the limits, to show what the job would use without
them, and prints a table for docs/limits.md. --full makes the jobs several times as large. Requires root.
"""

import argparse
import base64
import bisect
import collections
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from datetime import datetime

import run
from depot import AUTH, CDN, MANIFEST, REGISTRY
from run import HERE, PROXY, expect, file_digest
from transparent import GUEST, Inside

Size = collections.namedtuple("Size", "turns packages modules debs layer rounds files")
QUICK = Size(turns=10, packages=100, modules=300, debs=60, layer=256 << 10, rounds=1, files=3)
FULL = Size(turns=50, packages=100, modules=1000, debs=200, layer=4 << 20, rounds=5, files=5)

WHEELS = [f"wheels{number}.test" for number in range(4)]
DEBS = ["deb.test", "security.test", "updates.test"]
NPM = ["npm.test", "tarballs.test"]
PAGE = "page.test"
STATIC = [f"s{number}.test" for number in range(12)]
GIT = [f"git{number}.test" for number in range(13)]
DOWN = [f"down{number}.test" for number in range(5)]
LAYERS, RESOURCES, DOWN_SIZE = 20, 200, 20 << 20
WORKERS, RAY_WORKERS = 64, 32
# Fetched by the neighbour alone.
NEIGHBOURS = "next.test"
# The example of the article on Ray: words, each at a URL made of its own digest.
IPFS = "ipfs.io"
WORDS = ["R", "a", "y", " on ", "G", "o", "l", "e", "m", " ", "rocks", "!"]
RAY = [IPFS, "dl.dropboxusercontent.com", "pypi.dev.golem.network", "registry.golem.network"]
FOLDER = "a/deeper/path/as/they/have/it"
NO_LIMITS = ["connections", "new_connections_per_second", "requests_per_second", "dns_queries_per_second", "new_names_per_second"]


class Both(Inside):
    """The world with both listeners and a neighbour beside the guest."""

    origin = "depot.py"
    allowed = run.ALLOWED
    settings = ""

    def wire(self):
        super().wire()
        name, gateway, internet = f"ogc{os.getpid()}-neighbour", self.names["gateway"], self.names["internet"]
        self.names["neighbour"] = name
        run.run("ip", "netns", "add", name)
        run.run("ip", "link", "add", "name", "eth0", "netns", name, "type", "veth", "peer", "name", "g2", "netns", gateway)
        for arguments in (
            (name, "link", "set", "lo", "up"), (name, "addr", "add", "10.42.43.2/24", "dev", "eth0"), (name, "link", "set", "eth0", "up"),
            (gateway, "addr", "add", "10.42.43.1/24", "dev", "g2"), (gateway, "link", "set", "g2", "up"),
            (name, "route", "add", "default", "via", "10.42.43.1"), (internet, "route", "add", "10.42.43.0/24", "via", "11.0.0.1"),
        ):
            run.run("ip", "-n", *arguments)
        self.resolve_elsewhere(name)

    def listeners(self):
        return f'proxy = ["{PROXY}"]\ntransparent = ["0.0.0.0:3129"]\ndns = ["10.42.42.1:53"]'

    def more_settings(self):
        return '[firewall]\nguest_interfaces = ["g1", "g2"]\n' + self.settings

    def rules(self):
        return "".join(f"{name} ech=allow\n" for name in self.allowed)

    def crowd(self, part, **wanted):
        """Workers as crowd.py has them, started in a guest's namespace."""
        wanted = {"authority": self.path("ca.crt")} | wanted
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[part], sys.executable, os.path.join(HERE, "crowd.py"), json.dumps(wanted)],
            env=self.environment(proxied=False), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )

    def put(self, host, path, content):
        """Writes content for the origin; gives its digest."""
        with open(self.path("www", host, *path.split("/")), "wb") as file:
            file.write(content)
        return hashlib.sha256(content).hexdigest()


class Jobs(Both):
    """The world with what the jobs fetch."""

    allowed = ["api.test", NEIGHBOURS, "index.test", *WHEELS, *NPM, *DEBS, REGISTRY, AUTH, CDN, PAGE, *STATIC, *GIT, *DOWN, *RAY]

    def __init__(self, outgate, size, settings, wanted):
        super().__init__(outgate)
        self.size, self.settings, self.wanted = size, settings, wanted

    def content(self):
        self.digests = {}
        self.pages = [["https://api.test/file", self.put("api.test", "file", os.urandom(2000))]]
        self.others = [[f"https://{NEIGHBOURS}/file", self.put(NEIGHBOURS, "file", os.urandom(2000))]]
        for name, make in CONTENT.items():
            if any(job.startswith(name) for job in self.wanted):
                make(self)

    def prepare(self):
        super().prepare()
        watch = self.spawn("gateway", sys.executable, os.path.join(HERE, "watch.py"), "g1", self.path("wire.log"), stdout=subprocess.PIPE)
        assert watch.stdout.readline() == b"ready\n", "the guest's wire cannot be watched"

    def lines(self, file, since):
        """What has been written to a log since it was as long as that."""
        with open(self.path(file), errors="replace") as log:
            log.seek(since)
            return [line for line in log.read().splitlines() if line]

    def marks(self):
        sizes = {file: os.path.getsize(self.path(file)) if os.path.exists(self.path(file)) else 0 for file in LOGS}
        # The log's times are in milliseconds.
        return sizes | {"time": time.time() - 0.001}


LOGS = ("wire.log", "dns.log", "access.log")


def wheels(world):
    names = [f"outgate-part{number}" for number in range(world.size.packages - 1)]
    for number, name in enumerate([*names, "outgate-job"]):
        module = name.replace("-", "_")
        content = f"NAME = '{name}'\nSALT = '{os.urandom(500).hex()}'\n".encode()
        needs = "".join(f"Requires-Dist: {part}\n" for part in names) if name == "outgate-job" else ""
        archive, info = io.BytesIO(), f"{module}-1.0.dist-info"
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.writestr(f"{module}/__init__.py", content)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        host, file = WHEELS[number % len(WHEELS)], f"{module}-1.0-py3-none-any.whl"
        digest = world.put(host, file, archive.getvalue())
        page = f'<!DOCTYPE html><html><body><a href="https://{host}/{file}#sha256={digest}">{file}</a></body></html>'
        world.put("index.test", f"simple/{name}/index.html", page.encode())
        world.digests[f"{module}/__init__.py"] = hashlib.sha256(content).hexdigest()


def modules(world):
    packages = {"": {"name": "job", "version": "1.0.0", "dependencies": {}}}
    for number in range(world.size.modules):
        name = f"outgate-part{number}"
        content = f"exports.salt = '{os.urandom(500).hex()}';\n".encode()
        about = json.dumps({"name": name, "version": "1.0.0", "main": "index.js"}).encode()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
            for path, data in (("package/package.json", about), ("package/index.js", content)):
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        host, path = NPM[number % len(NPM)], f"{name}/-/{name}-1.0.0.tgz"
        world.put(host, path, archive.getvalue())
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
        packages[f"node_modules/{name}"] = {"version": "1.0.0", "resolved": f"https://{host}/{path}", "integrity": integrity}
        packages[""]["dependencies"][name] = "1.0.0"
        world.digests[f"{name}/index.js"] = hashlib.sha256(content).hexdigest()
    world.package = {"name": "job", "version": "1.0.0", "dependencies": packages[""]["dependencies"]}
    world.lock = {"name": "job", "version": "1.0.0", "lockfileVersion": 3, "requires": True, "packages": packages}


def debs(world):
    world.debs = []
    lists = collections.defaultdict(str)
    for number in range(world.size.debs):
        name, host = f"outgate-part{number}", DEBS[number % len(DEBS)]
        tree = world.path("debs", name, "x")[:-2]
        control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@example.com>\nDescription: test\n"
        for path, content in (("DEBIAN/control", control), (f"usr/share/{name}", os.urandom(2000).hex())):
            os.makedirs(os.path.dirname(os.path.join(tree, path)), exist_ok=True)
            with open(os.path.join(tree, path), "w") as file:
                file.write(content)
        deb = world.path("www", host, f"{name}_1.0_all.deb")
        run.run("dpkg-deb", "-Znone", "-b", tree, deb)
        digest = file_digest(deb)
        lists[host] += f"{control}Filename: ./{name}_1.0_all.deb\nSize: {os.path.getsize(deb)}\nSHA256: {digest}\n\n"
        world.debs.append(name)
        world.digests[f"{name}_1.0_all.deb"] = digest
    for host, text in lists.items():
        world.put(host, "Packages", text.encode())


def image(world):
    world.layers = []
    descriptors, contents = [], []
    for number in range(LAYERS):
        archive, data = io.BytesIO(), os.urandom(world.size.layer)
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo(f"layer{number}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        contents.append(hashlib.sha256(archive.getvalue()).hexdigest())
        packed = gzip.compress(archive.getvalue(), compresslevel=1)
        descriptors.append(blob(world, packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
    settings = {
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in contents]},
        "history": [{"created_by": "test"} for _ in descriptors],
    }
    config = blob(world, json.dumps(settings).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors}
    world.put(REGISTRY, "manifest", json.dumps(manifest).encode())


def blob(world, content, kind):
    digest = hashlib.sha256(content).hexdigest()
    world.put(CDN, digest, content)
    world.layers.append(digest)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}


def page(world):
    world.words = [os.urandom(8).hex() for _ in range(RESOURCES)]
    tags = ""
    for number, word in enumerate(world.words):
        host, path = STATIC[number % len(STATIC)], f"{number}.js"
        world.put(host, path, f'document.getElementById("p").textContent += " {word}";'.encode())
        tags += f'<script async src="https://{host}/{path}"></script>'
    world.put(PAGE, "page.html", f'<!doctype html><p id="p">loaded</p>{tags}'.encode())


def repositories(world):
    world.sums = {}
    parts = {}
    for host in GIT[1:]:
        parts[host], world.sums[host] = repository(world, host, {})
    repository(world, GIT[0], parts)


def repository(world, host, parts):
    """A repository with three commits and with `parts` as submodules; gives its last commit, and the digest of its file."""
    work = world.path("work", host, "x")[:-2]
    git = ["git", "-C", work, "-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    run.run(*git, "init", "-q")
    if parts:
        with open(os.path.join(work, ".gitmodules"), "w") as file:
            file.writelines(f'[submodule "{part}"]\n\tpath = {part}\n\turl = https://{part}/repo.git\n' for part in parts)
        for part, commit in parts.items():
            run.run(*git, "update-index", "--add", "--cacheinfo", f"160000,{commit},{part}")
    for turn in range(3):
        with open(os.path.join(work, "file"), "wb") as file:
            file.write(os.urandom(20_000))
        run.run(*git, "add", "file", *([".gitmodules"] if parts else []))
        run.run(*git, "commit", "-qm", f"commit {turn}")
    run.run("git", "clone", "-q", "--bare", work, world.path("www", host, "repo.git"))
    return run.run(*git, "rev-parse", "HEAD").strip(), file_digest(os.path.join(work, "file"))


def words(world):
    for word in WORDS:
        digest = hashlib.sha256(word.encode()).digest()
        name = "b" + base64.b32encode(b"\x01\x55\x12\x20" + digest).decode().rstrip("=").lower()
        world.put(IPFS, f"ipfs/{name}", word.encode())
        world.pages.append([f"https://{IPFS}/ipfs/{name}", digest.hex()])
    for host in RAY[1:]:
        world.pages.append([f"https://{host}/{FOLDER}", world.put(host, FOLDER, os.urandom(3000))])


def large(world):
    for host in DOWN[: world.size.files]:
        world.digests[host] = world.put(host, "large", os.urandom(DOWN_SIZE))


CONTENT = {"pip": wheels, "npm": modules, "apt": debs, "docker": image, "Chromium": page, "git": repositories, "Ray": words, "aria2": large}


def workers(world):
    """Each fetch has its own look-up and connection, three of four without TLS."""
    tls, = [page for page in world.pages if "api.test" in page[0]]
    plain = [tls[0].replace("https", "http"), tls[1]]
    return crowd(world, WORKERS, world.size.turns, [plain, plain, plain, tls])


def ray(world):
    urls = [page for page in world.pages if "api.test" not in page[0]]
    return crowd(world, RAY_WORKERS, len(urls) * world.size.rounds, urls, processes=True)


def crowd(world, number, turns, urls, **more):
    running = world.crowd("guest", proxy=PROXY if world.proxied else None, workers=number, turns=turns, urls=urls, **more)
    out, errors = finish(running)
    assert out, errors.decode()[-2000:]
    result = json.loads(out)
    assert running.returncode == 0, f"{sum(result['failures'].values())} of {result['fetches']} failed: {result['failures']}"
    assert result["fetches"] == number * turns, result
    return f"{result['fetches']} fetches, the slowest {result['slowest']:.1f} s"


def finish(process):
    """Gives the process's stdout and stderr; it has ended in any case."""
    try:
        return process.communicate(timeout=run.PATIENCE)
    finally:
        process.kill()


def pip(world):
    target = world.path(world.listener, "pip", "x")[:-2]
    proxy = ["--proxy", f"http://{PROXY}"] if world.proxied else []
    expect(world.guest(
        sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--no-compile", "--isolated", "--cert", world.path("ca.crt"), *proxy,
        "--index-url", "https://index.test/simple", "--target", target, "outgate-job",
    ))
    same(world, target, "outgate_", world.size.packages)


def same(world, folder, prefix, number):
    """Asserts that exactly the wanted files exist, with the right content."""
    wanted = {path: digest for path, digest in world.digests.items() if path.startswith(prefix)}
    assert len(wanted) == number, f"{len(wanted)} files"
    for path, digest in wanted.items():
        assert file_digest(os.path.join(folder, path)) == digest, f"{path} differs"


def npm(world):
    folder = world.path(world.listener, "npm", "x")[:-2]
    for name, content in (("package.json", world.package), ("package-lock.json", world.lock)):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(content, file)
    expect(world.guest(
        "npm", "ci", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier",
        "--registry", f"https://{NPM[0]}/", "--cache", os.path.join(folder, "cache"),
    ))
    for number in range(world.size.modules):
        path = f"outgate-part{number}/index.js"
        assert file_digest(os.path.join(folder, "node_modules", path)) == world.digests[path], f"{path} differs"


def apt(world):
    base = world.path(world.listener, "apt", "x")[:-2]
    flags = run.apt_flags(world, base, *(f"http://{host}" for host in DEBS))
    expect(world.guest("apt-get", *flags, "-q", "update"))
    expect(world.guest("env", "-C", base, "apt-get", *flags, "-q", "download", *world.debs))
    for name in world.debs:
        assert file_digest(f"{base}/{name}_1.0_all.deb") == world.digests[f"{name}_1.0_all.deb"], f"{name} differs"


def absent(program):
    """The note for a client that is not installed; in CI that is a failure."""
    if shutil.which(program):
        return None
    assert os.environ.get("CI") != "true", f"{program} is not installed"
    return f"this machine has no {program}"


def docker(world):
    """skopeo asks for a token, the manifest and blobs as docker does, but for six blobs at once and not three."""
    if missing := absent("skopeo"):
        return missing
    target = world.path(world.listener, "image", "x")[:-2]
    expect(world.guest(
        "skopeo", "--insecure-policy", "--override-os", "linux", "--override-arch", "amd64", "--tmpdir", world.directory, "copy", "-q",
        f"docker://{REGISTRY}/job:latest", f"oci:{target}:latest",
    ))
    for digest in world.layers:
        assert file_digest(os.path.join(target, "blobs", "sha256", digest)) == digest, f"layer {digest} differs"


def chromium(world):
    proxy = [f"--proxy-server=http://{PROXY}"] if world.proxied else []
    done = run.browse(world, "--ignore-certificate-errors", *proxy, f"https://{PAGE}/page.html")
    if done is None:
        return "this machine has no chromium"
    shown = expect(done, "loaded")
    missing = [word for word in world.words if word not in shown]
    assert not missing, f"{len(missing)} of {RESOURCES} resources did not load"
    return None


def git(world):
    clone = world.path(world.listener, "clone", "x")[:-2]
    expect(world.guest("git", "clone", "-q", "--recurse-submodules", "--jobs", "12", f"https://{GIT[0]}/repo.git", clone))
    expect(world.guest("git", "-C", clone, "fsck", "--full"))
    for host in GIT[1:]:
        assert file_digest(os.path.join(clone, host, "file")) == world.sums[host], f"{host} differs"


def aria2(world):
    if missing := absent("aria2c"):
        return missing
    folder = world.path(world.listener, "aria2", "x")[:-2]
    hosts = DOWN[: world.size.files]
    with open(os.path.join(folder, "list"), "w") as file:
        file.writelines(f"https://{host}/large\n  out={host}\n  checksum=sha-256={world.digests[host]}\n" for host in hosts)
    expect(world.guest(
        "aria2c", "--no-conf", "-q", "-x16", "-s16", "-k1M", f"-j{len(hosts)}", "--max-tries=1", f"--ca-certificate={world.path('ca.crt')}",
        "--file-allocation=none", "-d", folder, "-i", os.path.join(folder, "list"),
    ))
    for host in hosts:
        assert file_digest(os.path.join(folder, host)) == world.digests[host], f"{host} differs"


JOBS = {
    f"{WORKERS} workers without keep-alive": workers,
    "pip install": pip,
    "npm ci": npm,
    "apt-get": apt,
    f"docker pull, {LAYERS} layers": docker,
    f"Chromium, {RESOURCES} sub-resources": chromium,
    f"git, {len(GIT) - 1} submodules": git,
    f"Ray, {RAY_WORKERS} workers": ray,
    "aria2, 16 connections a file": aria2,
}

LISTENERS = ("proxy", "transparent")
LOW_LIMITS = "[limits]\nnew_connections_per_second = 100\nrequests_per_second = 100\ndns_queries_per_second = 200\n"
Peaks = collections.namedtuple("Peaks", "open connections requests queries new names")
HEADS = Peaks("open at once", "new connections", "requests", "DNS queries", "names upstream", "names in all")


def busiest(times):
    """The most events within any one second."""
    times = sorted(times)
    return max((bisect.bisect_left(times, begin + 1) - at for at, begin in enumerate(times)), default=0)


def most_names(asked):
    """The most different names within any one second; `asked` are times and names."""
    most, within, counts = 0, collections.deque(), collections.Counter()
    for moment, name in sorted(asked):
        within.append((moment, name))
        counts[name] += 1
        while within[0][0] <= moment - 1:
            counts[within.popleft()[1]] -= 1
        most = max(most, len(+counts))
    return most


def peaks(world, marks):
    """What the guest asked for since then, at the most."""
    begun, queries, live, most = [], [], {}, 0
    for line in world.lines("wire.log", marks["wire.log"]):
        moment, what, *rest = line.split()
        if what == "dns":
            queries.append(float(moment))
            continue
        way, *addresses = rest
        key = tuple(addresses)
        if what == "syn" and key not in live:
            live[key] = set()
            begun.append(float(moment))
        elif what == "rst":
            live.pop(key, None)
        elif what == "fin" and key in live:
            live[key].add(way)
            if len(live[key]) == 2:
                del live[key]
        most = max(most, len(live))
    asked = [line.split() for line in world.lines("dns.log", marks["dns.log"])]
    upstream = [(float(moment), name) for moment, name in asked if name != NEIGHBOURS]
    # Plain HTTP alone, because outgate does not see inside TLS.
    requests = [datetime.fromisoformat(flow["ts"]).timestamp() for flow in flows(world, marks) if flow["evidence"] == "host"]
    return Peaks(most, busiest(begun), busiest(requests), busiest(queries), most_names(upstream), len({name for _, name in upstream}))


def flows(world, marks):
    """The guest's lines in the access log, without summaries of earlier refusals."""
    lines = [json.loads(line) for line in world.lines("access.log", marks["access.log"])]
    mine = [flow for flow in lines if flow["source"] and flow["source"].startswith(f"{GUEST}:")]
    return [flow for flow in mine if datetime.fromisoformat(flow["ts"]).timestamp() >= marks["time"]]


def reached(world, outcome):
    """How often each limit was reached with that outcome, `paced` or `refused`, by both guests."""
    found = re.findall(rf'^outgate_limit_reached_total{{limit="(\w+)",outcome="{outcome}"}} (\d+)', world.metrics(), re.M)
    assert found, "the metric has another name"
    return +collections.Counter({limit: int(number) for limit, number in found})


def refused_by_limits(world):
    """How often both guests were refused by a limit, by reason, from the metrics."""
    found = re.findall(r'^outgate_(connections|dns_queries)_total\{[^}]*reason="(limit_\w+)"[^}]*\} (\d+)', world.metrics(), re.M)
    counts = reached(world, "refused")
    for what, reason, number in found:
        counts[f"{reason} ({what.replace('_', ' ')})"] += int(number)
    return +counts


def attempt(world, job):
    """Runs one job; gives what is wrong, its own note, its peaks, and how long it took."""
    marks, before, paced = world.marks(), refused_by_limits(world), reached(world, "paced")
    end = world.path(f"end-{time.monotonic_ns()}")
    neighbour = world.crowd("neighbour", workers=1, per_second=4, urls=world.others, until=end)
    begin = time.monotonic()
    problems, note = [], None
    try:
        note = job(world)
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        problems.append(str(error))
    finally:
        took = time.monotonic() - begin
        with open(end, "w"):
            out, errors = finish(neighbour)
    served = json.loads(out) if out else {"failures": errors.decode()[-2000:]}
    # Until the ended flows are in the log.
    time.sleep(0.5)
    counts = refused_by_limits(world) - before
    if counts:
        problems.append("refused by limits: " + ", ".join(f"{number} × {what}" for what, number in counts.items()))
    seen = flows(world, marks)
    by_limit = [flow for flow in seen if flow["reason"].startswith("limit_")]
    if by_limit:
        problems.append(f"in the log: {by_limit[0]}")
    # Browsers ask DNS for names of their own even if they use a proxy.
    if strange := {flow["listener"] for flow in seen} - {world.listener, "dns"}:
        problems.append(f"came by {strange}")
    if served["failures"]:
        problems.append(f"the neighbour: {served}")
    for limit, number in (reached(world, "paced") - paced).items():
        note = f"{f'{note}, ' if note else ''}{number} waited for {limit}"
    skipped = note is not None and note.startswith("this ")
    if not skipped and not seen:
        problems.append("nothing came through outgate")
    return problems, note, peaks(world, marks), took


def run_each(world, wanted):
    """Each job through each listener; the jobs that ran, with their peaks, and how many failed."""
    done, failed = [], 0
    for listener in LISTENERS:
        if listener == "transparent":
            # A resolver with an empty cache.
            world.stop()
            world.launch()
        for name in wanted:
            verdict, most = show(world, name, listener, JOBS[name])
            failed += verdict == "FAILED"
            if verdict != "skipped":
                done.append((name, listener, most))
    return done, failed


def slowed_down(world):
    """Runs the workers with rates that are so low that any machine reaches them: they wait, and nothing is refused."""
    world.stop()
    with open(world.path("outgate.toml"), "a") as file:
        file.write(LOW_LIMITS)
    world.launch()

    def job(world):
        before = reached(world, "paced")
        note = workers(world)
        assert (reached(world, "paced") - before)["new_connections_per_second"], "nothing waited"
        return note

    return sum(show(world, f"{WORKERS} workers, at 100 a second", listener, job)[0] == "FAILED" for listener in LISTENERS)


def show(world, name, listener, job):
    """Runs a job through a listener, and prints the result."""
    world.listener, world.proxied = listener, listener == "proxy"
    problems, note, most, took = attempt(world, job)
    verdict = "FAILED" if problems else "skipped" if note and note.startswith("this ") else "ok"
    figures = ", ".join(f"{label} {number}" for label, number in zip(HEADS, most, strict=True))
    print(f"{name:32} {listener:12} {verdict:8} {took:6.1f} s  {figures}{f'; {note}' if note else ''}", flush=True)
    for problem in problems:
        print(f"    {problem}", flush=True)
    # So that a job does not start with limits that the one before it has used up.
    time.sleep(1)
    return verdict, most


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outgate", nargs="?", default=os.path.join(run.ROOT, "target", "debug", "outgate"))
    parser.add_argument("--full", action="store_true", help="the jobs several times as large")
    parser.add_argument("--figures", action="store_true", help="without limits; prints a table")
    parser.add_argument("--only", metavar="JOB", help="the jobs with this in their names")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("skipped: requires root, for network namespaces")
        return 1 if os.environ.get("CI") == "true" else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wanted = [name for name in JOBS if given.only is None or given.only in name]
    if not wanted:
        parser.error(f"no job has this name; there are: {', '.join(JOBS)}")
    settings = "[limits]\n" + "".join(f"{key} = 0\n" for key in NO_LIMITS) if given.figures else ""
    with Jobs(given.outgate, FULL if given.full else QUICK, settings, wanted) as world:
        done, failed = run_each(world, wanted)
        if not given.figures and JOBS[wanted[0]] is workers:
            failed += slowed_down(world)
        if "outgate_panics_total 0\n" not in world.metrics():
            print("a panic was counted")
            failed += 1
        if failed:
            print(open(world.path("outgate.err"), errors="replace").read()[-4000:], file=sys.stderr)
    if given.figures:
        print(f"\n| job | by | {' | '.join(HEADS)} |\n|---|---|{'---|' * len(HEADS)}")
        for name, listener, most in done:
            print(f"| {name} | {listener} | {' | '.join(map(str, most))} |")
    print(f"jobs: {len(done)} run, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
