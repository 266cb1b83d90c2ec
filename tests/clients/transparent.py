#!/usr/bin/env python3
"""Real clients without a proxy setting, in a guest's namespace behind `outgate firewall apply`.

transparent.py [PATH OF outgate]. As run.py, but the guest has nothing but an address, a route and a
resolv.conf with a server on the Internet; the gateway forwards, and the internet has a route back, so
that whatever slipped past outgate would arrive. Requires root.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import run
from run import ALLOWED, BULK, expect

GUEST = "10.42.42.2"
ORIGIN = "11.0.0.10"


class Inside(run.World):
    """The world with the firewall in it."""

    proxied = False

    def wire(self):
        super().wire()
        guest, gateway, internet = self.names.values()
        run.run("ip", "-n", guest, "route", "add", "default", "via", "10.42.42.1")
        run.run("ip", "-n", internet, "route", "add", "10.42.42.0/24", "via", "11.0.0.1")
        run.run("ip", "netns", "exec", gateway, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.resolve_elsewhere(guest)

    def resolve_elsewhere(self, name):
        """A resolv.conf as guests have it, which `ip netns exec` shows to the processes it starts."""
        os.makedirs(f"/etc/netns/{name}")
        with open(f"/etc/netns/{name}/resolv.conf", "w") as file:
            file.write("nameserver 1.1.1.1\nnameserver 8.8.8.8\n")

    def __exit__(self, *_):
        super().__exit__()
        for name in self.names.values():
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)

    def listeners(self):
        return 'proxy = []\ntransparent = ["0.0.0.0:3129"]\ndns = ["10.42.42.1:53"]'

    def more_settings(self):
        return '[firewall]\nguest_interfaces = ["g1"]\n'

    def rules(self):
        return "".join(f"{name} ech=allow\n" for name in ALLOWED) + run.CLEAR

    def prepare(self):
        run.run(
            "ip", "netns", "exec", self.names["gateway"], self.outgate, "firewall", "apply", "--config", self.path("outgate.toml"),
        )


def refused(world):
    """Each refusal arrives at once, as an error of its protocol."""
    begin = time.monotonic()
    done = world.guest("curl", "-sS", "-m", "20", "https://evil.test/hello")
    assert done.returncode == 6, f"an unknown host, and not {done}"
    name = time.monotonic() - begin
    begin = time.monotonic()
    done = world.guest("curl", "-sS", "-m", "20", "--resolve", f"evil.test:443:{ORIGIN}", "https://evil.test/hello")
    assert done.returncode == 35 and b"alert" in done.stderr, f"a TLS alert, and not {done}"
    tls = time.monotonic() - begin
    done = world.guest("curl", "-sS", "-m", "20", "--resolve", f"evil.test:80:{ORIGIN}", "http://evil.test/hello")
    assert json.loads(done.stdout)["reason"] == "not_whitelisted", done
    done = world.guest("curl", "-sS", "-m", "20", f"telnet://{ORIGIN}:22")
    assert done.returncode == 56 or done.returncode == 7, f"a reset, and not {done}"
    done = world.guest("curl", "-sS", "-m", "20", "http://10.42.42.1:3190/metrics")
    assert done.returncode == 7, f"no admin listener, and not {done}"
    return f"{name * 1000:.0f} ms by name, {tls * 1000:.0f} ms by hello, curl's own start included"


def node_fetch(world):
    program = "fetch('https://api.test/hello').then(r => r.text()).then(console.log)"
    expect(world.guest("node", "-e", program), '"world"')


def chromium(world):
    done = run.browse(world, "--ignore-certificate-errors", "https://api.test/page.html")
    if done is None:
        return "this machine has no chromium"
    expect(done, "loaded from two hosts")
    return None


def daemon_dead(world):
    """The last check: without outgate, and without its ruleset, nothing gets out."""
    daemon = world.processes.pop()
    daemon.kill()
    daemon.wait()
    seen = os.path.getsize(world.path("http.log"))
    target = ("--resolve", f"api.test:443:{ORIGIN}", "-m", "5", "https://api.test/hello")
    assert world.guest("curl", "-sS", *target).returncode != 0
    run.run("ip", "netns", "exec", world.names["gateway"], "nft", "flush", "ruleset")
    assert world.guest("curl", "-sS", *target).returncode != 0
    assert os.path.getsize(world.path("http.log")) == seen, "something reached the origin"
    assert subprocess.run(
        ["ip", "netns", "exec", world.names["gateway"], "curl", "-sk", "-m", "5", f"https://{ORIGIN}/hello"], check=False, capture_output=True,
    ).returncode == 0, "the origin itself must be reachable"


CLIENTS = [
    ("curl https", run.curl_https),
    ("curl http", run.curl_http),
    ("refusals", refused),
    ("wget", run.wget),
    (f"pip install, {BULK} MiB", run.pip),
    ("git clone", run.git),
    ("Python requests", run.requests),
    ("Node fetch", node_fetch),
    ("apt-get", run.apt),
    ("WebSocket", run.websocket),
    ("Java WebSocket, ws://", run.java_websocket),
    ("aiohttp WebSocket", run.aiohttp_websocket),
    ("gRPC in clear", run.grpc_in_clear),
    ("Chromium", chromium),
    (f"{BULK} MiB over https", run.bulk("https")),
    (f"{BULK} MiB over http", run.bulk("http")),
]

if __name__ == "__main__":
    run.start(Inside, CLIENTS + run.AFTERWARDS + [("outgate killed", daemon_dead)])
