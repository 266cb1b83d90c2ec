#!/usr/bin/env python3
"""How long a guest waits: for a refusal, for NXDOMAIN, for an answer while the first upstream server is dead.

figures.py [PATH OF outgate]. The network of transparent.py, measured by a client in the guest's namespace
that reads the clock before it sends and when the answer is there. Prints p50, p99 and the worst, in
milliseconds; nothing is checked. Use a release build. Requires root.
"""

import json
import os
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time

import run
from transparent import ORIGIN, Inside

TURNS = 200
COLD_TURNS = 20
SERVER = ("1.1.1.1", 53)
ALIVE, DEAF = "11.0.0.53", "11.0.0.54"


class Measured(Inside):
    """The world with a DNS server that never answers."""

    servers = (ALIVE,)

    def wire(self):
        super().wire()
        run.run("ip", "-n", self.names["internet"], "addr", "add", f"{DEAF}/24", "dev", "eth0")

    def content(self):
        """The origin needs no content."""

    def rules(self):
        return "api.test\n*.many.test\n"

    def more_settings(self):
        return super().more_settings() + "[limits]\nnew_connections_per_second = 0\ndns_queries_per_second = 0\nnew_names_per_second = 0\n"

    def prepare(self):
        super().prepare()
        program = f"import socket, time\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.bind(('{DEAF}', 53))\ntime.sleep(86400)"
        self.spawn("internet", sys.executable, "-c", program)

    def restart(self, *servers):
        """Starts outgate again with these upstream servers."""
        self.stop()
        path = self.path("outgate.toml")
        with open(path) as file:
            lines = file.read().splitlines()
        lines = [f"servers = {json.dumps(servers)}" if line.strip().startswith("servers = ") else line for line in lines]
        with open(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        self.launch()

    def measure(self, what, turns=TURNS):
        """Measures each turn, in seconds."""
        done = self.guest(sys.executable, os.path.abspath(__file__), "--inside", what, str(turns))
        return json.loads(run.expect(done))


def until_reset():
    stream = socket.socket()
    stream.settimeout(20)
    begin = time.perf_counter()
    try:
        stream.connect((ORIGIN, 22))
        word = stream.recv(1)
        raise AssertionError(f"no reset, but {word}")
    except (ConnectionResetError, ConnectionRefusedError):
        return time.perf_counter() - begin


def until_alert():
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="evil.test")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = outgoing.read()
    with socket.socket() as stream:
        stream.settimeout(20)
        begin = time.perf_counter()
        stream.connect((ORIGIN, 443))
        stream.sendall(hello)
        answer = stream.recv(100)
        took = time.perf_counter() - begin
    assert answer[0] == 21 and answer[-1] == 49, answer
    return took


def until_answer(name, code):
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0)
    query += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
    with socket.socket(type=socket.SOCK_DGRAM) as stub:
        stub.settimeout(20)
        stub.connect(SERVER)
        begin = time.perf_counter()
        stub.send(query)
        reply = stub.recv(1500)
        took = time.perf_counter() - begin
    assert reply[3] & 15 == code, reply
    return took


def inside(what, turns):
    """Runs in the guest's namespace; prints one figure for each turn, as JSON."""
    unique = f"{time.time_ns():x}"
    ways = {
        "reset": lambda turn: until_reset(),
        "alert": lambda turn: until_alert(),
        "nxdomain": lambda turn: until_answer(f"x{unique}-{turn}.evil.test", 3),
        "known": lambda turn: until_answer("api.test", 0),
        "new": lambda turn: until_answer(f"x{unique}-{turn}.many.test", 0),
    }
    print(json.dumps([ways[what](turn) for turn in range(turns)]))


def show(label, seconds):
    """Prints one line of the table."""
    ordered = sorted(seconds)
    p99 = statistics.quantiles(ordered, n=100, method="inclusive")[98]
    print(f"{label:52} {len(ordered):4} {statistics.median(ordered) * 1e3:9.2f} {p99 * 1e3:9.2f} {ordered[-1] * 1e3:9.2f}", flush=True)


def main():
    outgate = sys.argv[1] if len(sys.argv) > 1 else os.path.join(run.ROOT, "target", "release", "outgate")
    with Measured(outgate) as world:
        print(f"{'milliseconds, from the first packet':52} {'n':>4} {'p50':>9} {'p99':>9} {'worst':>9}")
        for label, what in (
            ("SYN to RST, a port that no rule opens", "reset"),
            ("SYN to the alert, a server name that no rule allows", "alert"),
            ("query to NXDOMAIN", "nxdomain"),
            ("query to answer, known", "known"),
            ("query to answer, a new name, server alive", "new"),
        ):
            show(label, world.measure(what))
        cold = []
        for _ in range(COLD_TURNS):
            world.restart(DEAF, ALIVE)
            cold += world.measure("new", 1)
        show("a new name, first server dead and not known to be", cold)
        show("a new name, first server dead", world.measure("new"))


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: requires root, for network namespaces")
    elif sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], int(sys.argv[3]))
    else:
        main()
