"""Asks outgate: `outgate explain`, and a running daemon through its proxy listener.

The daemon runs in a network namespace of its own where that is possible. There a server answers on
most ports of every address, so the test sees what passes a tunnel. Where it is
not possible nothing listens, and an allowed destination shows as `dial_failed`.
"""

import ctypes
import fcntl
import json
import os
import re
import selectors
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

from generate import HOME, PERMITTED, PORTS

SERVED = [port for port in PORTS if port not in (24, 79, 7999, 65535)]
UPSTREAM = b"upstream was here"
PATIENCE = 20.0
CLONE_NEWUSER, CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x10000000, 0x40000000, 0x8914, 1


def isolate():
    """Moves this process into a new network namespace with loopback up; whether it worked."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET) != 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    try:  # Without it the IPv6 addresses are unreachable, which shows as `dial_failed` too.
        subprocess.run(["ip", "-6", "route", "add", "local", "fd77::/16", "dev", "lo"], check=False)
    except FileNotFoundError:
        pass
    return True


class Upstreams(threading.Thread):
    """Answers on `SERVED` of every address: HTTP with 200, anything else with `UPSTREAM`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ready = selectors.DefaultSelector()
        for port in SERVED:
            listener = socket.socket(socket.AF_INET6)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("::", port))
            listener.listen(512)
            self.ready.register(listener, selectors.EVENT_READ, "listener")

    def run(self):
        while True:
            for key, _ in self.ready.select():
                try:
                    self.serve(key)
                except OSError:
                    pass

    def serve(self, key):
        if key.data == "listener":
            self.ready.register(key.fileobj.accept()[0], selectors.EVENT_READ, "stream")
            return
        self.ready.unregister(key.fileobj)
        with key.fileobj as stream:
            if got := stream.recv(65536):
                body = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(UPSTREAM)
                stream.sendall((body if got.startswith(b"GET ") else b"") + UPSTREAM)


class Gateway:
    """A daemon, and the directory that it and `explain` read."""

    def __init__(self, binary, directory, names, isolated):
        self.binary, self.directory, self.isolated = binary, directory, isolated
        self.lists = directory / "lists"
        self.lists.mkdir()
        (directory / "state").mkdir()
        (directory / "hosts").write_text("".join(f"{HOME} {name}\n" for name in sorted(names)))
        self.proxy = ("127.0.0.1", 3128 if isolated else free_port())
        self.config = directory / "outgate.toml"
        self.config.write_text(self.settings())
        self.replace({"a.rules": "nothing.invalid\n"})
        self.log = open(directory / "log", "wb")
        self.daemon = subprocess.Popen([binary, "run", "--config", self.config], stdout=self.log, stderr=self.log)
        self.wait_until_up()

    def settings(self):
        limits = ["connections", "new_connections_per_second", "requests_per_second", "dns_queries_per_second",
                  "total_connections"]
        return "\n".join([
            "[listen]", f'proxy = ["127.0.0.1:{self.proxy[1]}"]', 'admin = ""', f'control = "{self.directory}/control"',
            "[whitelist]", f'dir = "{self.lists}"',
            "[resolver]", 'servers = ["127.200.0.9:53"]', f'hosts_file = "{self.directory}/hosts"', "timeout_ms = 100",
            "[dial]", f"permit_addresses = {json.dumps(PERMITTED)}", "connect_timeout_ms = 1000",
            "[limits]", *(f"{limit} = 0" for limit in limits),
            "[log]", 'access = "off"',
            "[state]", f'dir = "{self.directory}/state"', "",
        ])

    def wait_until_up(self):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.daemon.poll() is None:
            try:
                self.control("GET", "/status")
                return
            except OSError:
                time.sleep(0.02)
        self.stop()
        raise SystemExit("the daemon did not start:\n" + (self.directory / "log").read_text())

    def stop(self):
        self.daemon.terminate()
        try:
            self.daemon.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        self.log.close()

    def replace(self, files):
        """Puts these files into the list directory, each in one step, and removes the others."""
        for name, text in files.items():
            fresh = self.directory / (name + ".new")
            fresh.write_bytes(text.encode())
            fresh.chmod(0o644)
            fresh.rename(self.lists / name)
        for old in self.lists.iterdir():
            if old.name not in files:
                old.unlink()

    def load(self, files):
        """None once the daemon uses these files, otherwise its error about them."""
        self.replace(files)
        status, body = self.control("POST", "/reload")
        return None if status == 200 else body

    def control(self, method, path):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(PATIENCE)
            stream.connect(str(self.directory / "control"))
            stream.sendall(head(f"{method} {path}", "outgate", "Content-Length: 0", "Connection: close"))
            answer = b"".join(iter(lambda: stream.recv(65536), b""))
        top, _, body = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), body.decode()

    def explain(self, urls):
        """The output of `outgate explain`, one object for each URL."""
        asked = "".join(url + "\n" for url in urls)
        done = subprocess.run([self.binary, "explain", "--config", self.config, "--stdin"], input=asked.encode(),
                              capture_output=True, timeout=60, check=False)
        if done.returncode not in (0, 1) or not done.stdout:
            raise RuntimeError(f"explain ended with {done.returncode}: {done.stderr.decode()}")
        return {entry["url"]: entry for entry in map(json.loads, done.stdout.decode().splitlines())}

    # ---- through the proxy

    def get(self, authority):
        """(verdict, reason) of a GET in absolute form."""
        with self.connect() as stream:
            stream.sendall(head(f"GET http://{authority}/", authority, "Connection: close"))
            return verdict_of(*read_answer(stream))

    def tunnel(self, authority, first):
        """(verdict, reason) of a CONNECT, and then what became of `first`: True where the other side
        answered it, False where it was refused, None where it could not be tried."""
        with self.connect() as stream:
            stream.sendall(head(f"CONNECT {authority}", authority))
            status, body = read_answer(stream, connect=True)
            if status != 200 or first is None:
                return *verdict_of(status, body), None
            try:
                stream.sendall(first)
                seen = b"".join(iter(lambda: stream.recv(4096), b""))
            except ConnectionError:
                seen = b""
            return "allowed", "none", UPSTREAM in seen

    def connect(self):
        stream = socket.create_connection(self.proxy, PATIENCE)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream


def head(start, host, *fields):
    """The head of a request."""
    return "\r\n".join([f"{start} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_answer(stream, connect=False):
    """Status and body."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = stream.recv(4096)
        if not piece:
            raise RuntimeError(f"the proxy closed after {got!r}")
        got += piece
    top, _, body = got.partition(b"\r\n\r\n")
    status = int(top.split()[1])
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", top)
    while not (connect and status == 200) and len(body) < int(length.group(1) if length else 1 << 30):
        piece = stream.recv(4096)
        if not piece:
            break
        body += piece
    return status, body


def verdict_of(status, body):
    """The verdict that an answer of the proxy shows; a destination that is down was allowed."""
    if status == 200:
        return "allowed", "none"
    reason = json.loads(body)["reason"]
    if reason in ("resolve_failed", "dial_failed", "timeout") and status in (502, 504):
        return "allowed", "none"
    return "denied", reason


def client_hello(name):
    """A ClientHello for TLS 1.2 and 1.3, with this server name or none."""

    def block(width, data):
        return len(data).to_bytes(width, "big") + data

    def extension(kind, data):
        return kind.to_bytes(2, "big") + block(2, data)

    extensions = extension(0, block(2, b"\0" + block(2, name.encode()))) if name else b""
    extensions += extension(10, block(2, b"\x00\x1d")) + extension(13, block(2, b"\x04\x03\x08\x04"))
    extensions += extension(43, block(1, b"\x03\x04\x03\x03"))
    extensions += extension(51, block(2, b"\x00\x1d" + block(2, os.urandom(32))))
    hello = b"\x03\x03" + os.urandom(32) + block(1, b"") + block(2, b"\x13\x01\xc0\x2f")
    hello += b"\x01\x00" + block(2, extensions)
    return b"\x16\x03\x01" + block(2, b"\x01" + block(3, hello))
