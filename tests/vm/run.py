#!/usr/bin/env python3
"""A real virtual machine behind outgate: what is allowed works in it, and nothing else leaves it.

Boots Debian's kernel under QEMU (software emulation) on a tap in a bridge, next to another guest, in a
gateway that forwards. Nothing is configured in the machine but an address, a default route and
`nameserver 1.1.1.1`. First, with neither firewall nor daemon, every attempt must get out, or this test
could not fail. Then none may get out: before the daemon, with it (but for what the list allows), after
`kill -9`, after `nft flush ruleset`. What arrived outside decides.
"""

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True
from machine import MachineError, guest  # noqa: E402
from outside import EVIL, EVIL6, GOOD, GOOD6, TRUTH  # noqa: E402

GATEWAY, GATEWAY6, GATEWAY_OUTSIDE, GATEWAY_OUTSIDE6 = "10.42.42.1", "fd42:42::1", "11.0.0.1", "2600:10::1"
GUEST, NEIGHBOUR, NEIGHBOUR6 = "10.42.42.2", "10.42.42.3", "fd42:42::3"
PRIVATE, PRIVATE6 = "10.99.0.1", "fd99::1"
MAC = "52:54:00:42:42:02"
LISTED = ["good.test", "tcp://raw.test:2222"]
# Seconds of the guest's clock, under emulation. A client without an answer waits 5 s and more for DNS, 60 s and more for TCP.
AT_ONCE = 5
# How long a packet may take to be logged outside.
SETTLE = 0.3
# The answer for good.test. The gateway decides which of its addresses it dials.
GOODS = rf"this is ({GOOD}|{GOOD6}) for good\.test"
# What outgate may send: (destination, protocol, port).
OUTGATES = {(TRUTH, "udp", 53), (TRUTH, "tcp", 53)} | {(good, "tcp", port) for good in (GOOD, GOOD6) for port in (80, 443, 2222)}


@dataclass(frozen=True)
class Attempt:
    """One way out that a guest may try, and the line that is logged outside where it is open."""

    name: str
    command: str
    role: str
    seen: str
    answered: bool = False  # by outgate itself


def fetch(url, address=None, options=""):
    """curl's command for a URL; with `address` it goes there, without any DNS."""
    scheme, name = re.match(r"(https?)://([^/]+)/", url).groups()
    pinned = f"--resolve {name}:{443 if scheme == 'https' else 80}:{address} " if address else ""
    return f"curl -sS --fail --max-time 8 {options} {pinned}{url}"


ATTEMPTS = [
    Attempt("https to an address", fetch("https://evil.test/", EVIL), "internet", rf"accept {EVIL} 443 {GUEST}"),
    Attempt("https to an address, IPv6", fetch("https://evil.test/", f"[{EVIL6}]"), "internet", rf"accept {EVIL6} 443 fd42:.*"),
    Attempt("http to an address", fetch("http://evil.test/", EVIL), "internet", rf"accept {EVIL} 80 {GUEST}"),
    Attempt("another port", f"nc -w 8 {EVIL} 4444 </dev/null | grep 220", "internet", rf"accept {EVIL} 4444 {GUEST}"),
    Attempt("an allowed name's address, another port", f"nc -w 8 {GOOD} 8443 </dev/null | grep .", "internet", rf"packet {GUEST} {GOOD} tcp 8443"),
    Attempt("ping", f"ping -c 1 -W 1 {EVIL}", "internet", rf"packet {GUEST} {EVIL} icmp 8"),
    Attempt("ping, IPv6", f"ping6 -c 1 -W 1 {EVIL6}", "internet", rf"packet fd42:\S+ {EVIL6} icmp6 128"),
    Attempt("UDP", f"timeout 1 tftp -g -r x -l /dev/null {EVIL} 9999", "internet", rf"packet {GUEST} {EVIL} udp 9999"),
    Attempt("UDP, IPv6", f"timeout 1 tftp -g -r x -l /dev/null {EVIL6} 9999", "internet", rf"packet fd42:\S+ {EVIL6} udp 9999"),
    Attempt("QUIC's port", f"timeout 1 tftp -g -r x -l /dev/null {GOOD} 443", "internet", rf"packet {GUEST} {GOOD} udp 443"),
    Attempt("DNS at 8.8.8.8", "timeout 8 nslookup good.test 8.8.8.8", "internet", r"asked 8\.8\.8\.8 good\.test", True),
    Attempt("DNS at 8.8.8.8 over TCP", "nc -w 8 8.8.8.8 53 </dev/null | grep .", "internet", rf"packet {GUEST} 8\.8\.8\.8 tcp 53"),
    Attempt("DNS over TLS", "nc -w 8 1.1.1.1 853 </dev/null | grep .", "internet", rf"packet {GUEST} 1\.1\.1\.1 tcp 853"),
    Attempt("a private address", fetch(f"http://{PRIVATE}/"), "internet", rf"accept {PRIVATE} 80 {GUEST}"),
    Attempt("a private address, IPv6", fetch("http://private.test/", f"[{PRIVATE6}]"), "internet", rf"accept {PRIVATE6} 80 fd42:.*"),
    Attempt("another guest", fetch(f"http://{NEIGHBOUR}/"), "neighbour", rf"accept {NEIGHBOUR} 80 {GUEST}"),
    Attempt("another guest, IPv6", fetch("http://neighbour.test/", f"[{NEIGHBOUR6}]"), "neighbour", rf"accept {NEIGHBOUR6} 80 fd42:.*"),
    Attempt("a ping to another guest", f"ping -c 1 -W 1 {NEIGHBOUR}", "neighbour", rf"packet {GUEST} {NEIGHBOUR} icmp 8"),
    Attempt("another guest's source address", f"ping -c 1 -W 1 -I 10.42.42.99 {EVIL}", "internet", rf"packet 10\.42\.42\.99 {EVIL} icmp 8"),
    Attempt("a foreign source address", f"ping -c 1 -W 1 -I 11.0.0.77 {EVIL}", "internet", rf"packet 11\.0\.0\.77 {EVIL} icmp 8"),
    Attempt("a server of the gateway's", f"nc -w 8 {GATEWAY} 22 </dev/null | grep 220", "gateway", rf"accept {GATEWAY} 22 {GUEST}"),
    Attempt("a server of the gateway's, outer address", f"nc -w 8 {GATEWAY_OUTSIDE} 22 </dev/null | grep 220", "gateway", rf"accept {GATEWAY_OUTSIDE} 22 {GUEST}"),
    Attempt("a server of the gateway's, IPv6", f"nc -w 8 {GATEWAY6} 22 </dev/null | grep 220", "gateway", rf"accept {GATEWAY6} 22 fd42:.*"),
]


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options).stdout


class World:
    """The namespaces, the servers outside, the machine and outgate. All are removed at the end of `with`."""

    def __init__(self, outgate):
        self.outgate = os.path.abspath(outgate)
        self.names = {part: f"ogv{os.getpid()}-{part}" for part in ("neighbour", "gateway", "internet")}
        self.processes, self.machine, self.daemon = [], None, None

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix="outgate-vm-")
        try:
            self.wire()
            self.certificates()
            self.configure()
            self.seen = {}
            for role in self.names:
                process = self.spawn(role, sys.executable, os.path.join(HERE, "outside.py"), role, self.directory, stdout=subprocess.PIPE)
                if process.stdout.readline() != b"ready\n":
                    raise MachineError(f"outside.py {role} did not start")
            self.mark()
            cache = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "vm")
            self.machine = guest(self.directory, cache, self.inside("gateway"), "tap0", MAC, self.files())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.machine:
            self.machine.stop()
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    def inside(self, part):
        return ["ip", "netns", "exec", self.names[part]]

    def files(self):
        """The machine's files, without its programs."""
        files = {f"attempts/{number}": attempt.command.encode() for number, attempt in enumerate(ALL)}
        with open(self.path("ca.crt"), "rb") as file:
            return files | {"etc/ssl/certs/ca-certificates.crt": file.read()}

    def wire(self):
        neighbour, gateway, internet = self.names.values()
        run("ip", "-batch", "-", input="".join(f"netns add {name}\n" for name in self.names.values()))
        run("ip", "-batch", "-", input=textwrap.dedent(f"""\
            link add name eth0 netns {neighbour} type veth peer name port1 netns {gateway}
            link add name eth0 netns {internet} type veth peer name up0 netns {gateway}
            link add name eth1 netns {internet} type veth peer name lan0 netns {gateway}
            """))
        for name in (neighbour, internet):
            self.sysctl(name, "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_ra=0")
        # A gateway that would let everything through.
        self.sysctl(gateway, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        for family in ("iptables", "ip6tables"):
            # As on a host with Docker, if this kernel has br_netfilter.
            if os.path.exists(f"/proc/sys/net/bridge/bridge-nf-call-{family}"):
                self.sysctl(gateway, f"net.bridge.bridge-nf-call-{family}=1")
        self.ip("gateway", "link add br0 type bridge", "tuntap add dev tap0 mode tap", "link set tap0 master br0", "link set port1 master br0")
        for part, links in (
            ("gateway", {
                "tap0": [], "port1": [], "br0": [f"{GATEWAY}/24", f"{GATEWAY6}/64"],
                "up0": [f"{GATEWAY_OUTSIDE}/24", f"{GATEWAY_OUTSIDE6}/64"], "lan0": ["10.99.0.254/24", "fd99::fe/64"],
            }),
            ("neighbour", {"eth0": [f"{NEIGHBOUR}/24", f"{NEIGHBOUR6}/64"]}),
            ("internet", {
                "eth0": [f"{address}/24" for address in (GOOD, EVIL, TRUTH)] + [f"{address}/64" for address in (GOOD6, EVIL6)] + ["8.8.8.8/32", "1.1.1.1/32"],
                "eth1": [f"{PRIVATE}/24", f"{PRIVATE6}/64"],
            }),
        ):
            addresses = [f"addr add {address} dev {link}" + (" nodad" if ":" in address else "") for link, all in links.items() for address in all]
            self.ip(part, "link set lo up", *(f"link set {link} up" for link in links), *addresses)
        self.ip("neighbour", f"route add default via {GATEWAY}", f"-6 route add default via {GATEWAY6}")
        self.ip("internet", f"route add default via {GATEWAY_OUTSIDE}", f"-6 route add default via {GATEWAY_OUTSIDE6}")
        self.ip("gateway", f"route add default via {GOOD}", f"-6 route add default via {GOOD6}")

    def ip(self, part, *lines):
        for family in ("-6 ", ""):
            own = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ") == bool(family)]
            run("ip", *family.split(), "-n", self.names[part], "-batch", "-", input="\n".join(own) + "\n")

    def sysctl(self, name, *settings):
        run("ip", "netns", "exec", name, "sysctl", "-qw", *settings)

    def certificates(self):
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        run("openssl", "req", "-x509", *curve, "-subj", "/CN=VM test authority", "-keyout", self.path("ca.key"),
            "-out", self.path("ca.crt"), "-addext", "keyUsage=critical,keyCertSign")
        run("openssl", "req", *curve, "-subj", "/CN=good.test", "-keyout", self.path("tls.key"), "-out", self.path("tls.csr"))
        with open(self.path("extensions"), "w") as file:
            file.write("subjectAltName=DNS:good.test,DNS:evil.test\nextendedKeyUsage=serverAuth\n")
        run("openssl", "x509", "-req", "-in", self.path("tls.csr"), "-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key"),
            "-CAcreateserial", "-days", "2", "-extfile", self.path("extensions"), "-out", self.path("tls.crt"))

    def configure(self):
        os.chmod(self.directory, 0o755)
        os.mkdir(self.path("whitelist"))
        with open(self.path("whitelist", "main.rules"), "w") as file:
            file.write("".join(f"{rule}\n" for rule in LISTED))
        with open(self.path("outgate.toml"), "w") as file:
            file.write(textwrap.dedent(f"""\
                [listen]
                transparent = ["0.0.0.0:3129", "[::]:3129"]
                dns = ["{GATEWAY}:53", "[{GATEWAY6}]:53"]
                admin = "0.0.0.0:3190"
                control = "{self.path("control.sock")}"
                [firewall]
                guest_interfaces = ["br0"]
                [whitelist]
                dir = "{self.path("whitelist")}"
                [resolver]
                servers = ["{TRUTH}"]
                [log]
                access = "{self.path("access.log")}"
                [state]
                dir = "{self.path("state")}"
                """))

    def spawn(self, part, *command, **options):
        process = subprocess.Popen([*self.inside(part), *command], stdin=subprocess.DEVNULL, **options)
        self.processes.append(process)
        return process

    def outgate_does(self, *words):
        done = subprocess.run(
            [*self.inside("gateway"), self.outgate, *words, "--config", self.path("outgate.toml")], check=False, text=True, capture_output=True, timeout=60,
        )
        assert done.returncode == 0, f"outgate {' '.join(words)}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def admin(self, path):
        return subprocess.run([*self.inside("gateway"), "curl", "-sf", f"http://127.0.0.1:3190{path}"], check=False, text=True, capture_output=True)

    def start(self):
        with open(self.path("outgate.err"), "ab") as errors:
            self.daemon = self.spawn("gateway", self.outgate, "run", "--config", self.path("outgate.toml"), stdout=errors, stderr=errors)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.daemon.poll() is None:
            if self.admin("/readyz").returncode == 0:
                return
            time.sleep(0.05)
        with open(self.path("outgate.err"), errors="replace") as file:
            raise AssertionError("outgate does not get ready: " + file.read()[-2000:])

    def kill(self):
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def mark(self):
        """Ignores what has arrived up to now."""
        time.sleep(SETTLE)
        self.seen = {role: os.path.getsize(self.path(f"{role}.log")) for role in self.names}

    def arrived(self, role, wanted=None):
        """What arrived there since the mark, one event a line; with `wanted`, as soon as that is there."""
        deadline = time.monotonic() + (5 if wanted else 0)
        while True:
            with open(self.path(f"{role}.log")) as file:
                file.seek(self.seen[role])
                lines = file.read().splitlines()
            if time.monotonic() >= deadline or any(re.fullmatch(wanted, line) for line in lines):
                return lines
            time.sleep(0.05)

    def assert_nothing_got_out(self):
        """Nothing arrived except what outgate itself sends to allowed names."""
        time.sleep(SETTLE)
        for role in self.names:
            leaks = [line for line in self.arrived(role) if not harmless(role, line.split())]
            assert not leaks, f"{role} saw {leaks[:5]} ({len(leaks)} in all)"


def harmless(role, words):
    if role == "internet" and words[0] == "packet":
        source, destination, protocol, port = words[1:]
        if source in (GATEWAY_OUTSIDE, GATEWAY_OUTSIDE6) and (destination, protocol, int(port)) in OUTGATES:
            return True
    if role == "internet" and words[0] == "accept" and words[3] in (GATEWAY_OUTSIDE, GATEWAY_OUTSIDE6):
        return (words[1], "tcp", int(words[2])) in OUTGATES
    if role == "internet" and words[0] == "asked":
        return words[1] == TRUTH and words[2] in ("good.test", "raw.test")
    # Neighbour and listener discovery of the link itself, which is never forwarded.
    return words[0] == "packet" and words[3] == "icmp6" and words[4] in ("133", "134", "135", "136", "143") and not words[1].startswith("fd42:42::2")


def try_all(world, attempts):
    """Makes all attempts at the same time: `[(attempt, exit status, what it said)]`."""
    numbers = [ALL.index(attempt) for attempt in attempts]
    one = '(sh /attempts/$n >/tmp/said.$n 2>&1; echo "@ $n $?"; tail -n 2 /tmp/said.$n) >/tmp/end.$n &'
    result = world.machine.run(f"for n in {' '.join(map(str, numbers))}; do {one} done; wait; cat /tmp/end.*; rm /tmp/end.*", limit=90)
    outcomes = re.findall(r"^@ (\d+) (\d+)$\n?((?:^(?!@ ).*$\n?)*)", result.output, re.M)
    assert len(outcomes) == len(attempts), f"{len(outcomes)} of {len(attempts)} attempts ended: {result}"
    return [(ALL[int(number)], int(status), said.strip()) for number, status, said in outcomes]


def control(world):
    """With forwarding alone every attempt is seen outside; otherwise its absence later would show nothing."""
    world.mark()
    said = {attempt: f"exit {status}: {text!r}" for attempt, status, text in try_all(world, ATTEMPTS)}
    for attempt in ATTEMPTS:
        lines = world.arrived(attempt.role, attempt.seen)
        assert any(re.fullmatch(attempt.seen, line) for line in lines), f"{attempt.name}: {said[attempt]}; {attempt.role} saw {lines[:8]}"
    return f"{len(ATTEMPTS)} attempts"


def stays_in(attempts, answered=False):
    """No attempt succeeds except those that outgate answers itself, and none is seen outside."""

    def check(world):
        world.mark()
        for attempt, status, text in try_all(world, attempts):
            assert status != 0 or (answered and attempt.answered), f"{attempt.name} succeeded: {text!r}"
        world.assert_nothing_got_out()
        return f"{len(attempts)} attempts"

    return check


def refused(world, command, *, statuses, text="", limit=AT_ONCE):
    world.mark()
    result = world.machine.run(command)
    assert result.status in statuses, str(result)
    assert text in result.output, f"no {text!r}: {result}"
    assert result.seconds < limit, f"not at once: {result}"
    world.assert_nothing_got_out()
    return f"in {result.seconds:.2f} s"


def allowed(world, command, wanted):
    world.mark()
    result = world.machine.run(command)
    assert result.status == 0 and re.search(wanted, result.output), str(result)
    world.assert_nothing_got_out()
    return f"in {result.seconds:.2f} s"


def apply(world):
    world.outgate_does("firewall", "apply")


def start(world):
    world.start()


def kill(world):
    assert world.daemon and world.daemon.poll() is None, "it was not running"
    world.kill()


def flush(world):
    run(*world.inside("gateway"), "nft", "flush", "ruleset")
    assert not run(*world.inside("gateway"), "nft", "list", "ruleset").strip(), "the ruleset is still there"
    assert run(*world.inside("gateway"), "sysctl", "-n", "net.ipv4.ip_forward").strip() == "1", "forwarding went off, so this shows nothing"


def admin_port(world):
    assert world.admin("/healthz").returncode == 0, "the admin port does not answer on the gateway itself"
    for address in (GATEWAY, GATEWAY_OUTSIDE, f"[{GATEWAY6}]"):
        for port in (3190, 3129):
            result = world.machine.run(fetch(f"http://{address}:{port}/metrics", options="-g"))
            assert result.status != 0 and result.seconds < AT_ONCE, f"{address}:{port}: {result}"


def answers_for_everybody(world):
    """A query to 8.8.8.8 is answered, truthfully: the real one there says EVIL to everything."""
    world.mark()
    result = world.machine.run("nslookup good.test 8.8.8.8")
    assert result.status == 0 and GOOD in result.output and EVIL not in result.output, str(result)
    world.assert_nothing_got_out()


# Without a filter for input, only routing keeps guests from the outside, and they reach the gateway's own servers.
OUTWARD = [attempt for attempt in ATTEMPTS if attempt.role != "gateway"]
BY_ALLOWED_NAME = Attempt("an allowed name", fetch("https://good.test/"), "internet", "")
BY_ALLOWED_ADDRESS = Attempt("an allowed name at its address", fetch("https://good.test/", GOOD), "internet", "")
SERVED = [BY_ALLOWED_NAME, BY_ALLOWED_ADDRESS]
ALL = SERVED + ATTEMPTS

CHECKS = [
    ("control: without outgate every attempt gets out", control),
    ("firewall apply", apply),
    ("no daemon yet: nothing gets out", stays_in(ALL)),
    ("outgate run", start),
    ("an allowed name over https", lambda w: allowed(w, fetch("https://good.test/"), GOODS)),
    ("an allowed name over http", lambda w: allowed(w, fetch("http://good.test/"), GOODS)),
    ("an allowed name over IPv6", lambda w: allowed(w, fetch("https://good.test/", options="-6"), GOODS)),
    ("a server that speaks first", lambda w: allowed(w, "nc -w 8 raw.test 2222 <>/tmp/silence", r"220 a server that speaks first")),
    ("an allowed name at EVIL's address", lambda w: allowed(w, fetch("https://good.test/", EVIL), GOODS)),
    ("a refused name, its answer", lambda w: refused(w, "nslookup -type=a evil.test", statuses=[0, 1], text="NXDOMAIN")),
    ("a refused name, curl", lambda w: refused(w, fetch("https://evil.test/"), statuses=[6])),
    ("a refused name, SNI", lambda w: refused(w, fetch("https://evil.test/", EVIL), statuses=[35], text="alert")),
    ("a refused name, SNI, IPv6", lambda w: refused(w, fetch("https://evil.test/", f"[{EVIL6}]"), statuses=[35], text="alert")),
    ("a refused name, Host", lambda w: refused(w, fetch("http://evil.test/", EVIL), statuses=[22], text="403")),
    ("https without a name", lambda w: refused(w, fetch(f"https://{EVIL}/", options="-k"), statuses=[35], text="alert")),
    ("a port no rule names", lambda w: refused(w, f"nc -w 20 {EVIL} 4444 <>/tmp/silence | grep .", statuses=[1])),
    ("admin and TPROXY ports", admin_port),
    ("DNS at 8.8.8.8 is answered here", answers_for_everybody),
    ("the attempts of the control stay in", stays_in(ATTEMPTS, answered=True)),
    ("kill -9", kill),
    ("killed: nothing gets out", stays_in(ALL)),
    ("nft flush ruleset, forwarding on", flush),
    ("flushed: nothing gets out", stays_in(SERVED + OUTWARD)),
    ("firewall apply again", apply),
    ("outgate run again", start),
    ("an allowed name again", lambda w: allowed(w, fetch("https://good.test/"), GOODS)),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outgate", nargs="?", default=os.path.join(ROOT, "target", "debug", "outgate"), help="the program under test")
    outgate = parser.parse_args().outgate
    for lacking, reason in ((os.geteuid() != 0, "requires root, for network namespaces"), (platform.machine() != "x86_64", "requires an x86_64 userland")):
        if lacking:
            print(f"skipped: {reason}")
            return 1 if os.environ.get("CI") == "true" else 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    begin = time.monotonic()
    passed = failed = 0
    with World(outgate) as world:
        ready = world.machine.run("ip addr add 10.42.42.99/32 dev eth0; ip addr add 11.0.0.77/32 dev lo; cut -d. -f1 /proc/uptime")
        print(f"booted in {time.monotonic() - begin:.1f} s, {ready.output} s of the guest's time", flush=True)
        for name, check in CHECKS:
            start_of_check = time.monotonic()
            try:
                verdict, note = "ok", check(world) or ""
                passed += 1
            except (AssertionError, OSError, subprocess.SubprocessError, MachineError) as error:
                verdict, note = "FAIL", str(error)
                failed += 1
            print(f"{verdict:5} {name:58} {time.monotonic() - start_of_check:6.1f} s  {note}", flush=True)
        if failed and os.path.exists(world.path("outgate.err")):
            with open(world.path("outgate.err"), errors="replace") as file:
                print(file.read()[-4000:], file=sys.stderr)
    print(f"vm: {passed} passed, {failed} failed, 0 skipped, in {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
