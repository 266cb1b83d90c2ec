"""What the tests of container engines share (docker.py, podman.py) and, in part, libvirt.py: the machine, checks that are
the same for each engine, and the command line.
"""

import argparse
import os
import re
import sys
import tempfile
import time

import service
from machine import MachineError

GOOD, EVIL = "11.0.0.10", "11.0.0.66"
READY = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:3190/readyz"
# What a container does that wants out, in a shell without further quotes.
ATTEMPT = f"curl -s --max-time 3 http://evil.test/; curl -s --max-time 3 http://{EVIL}/; ping -c 2 -W 1 {EVIL}; nslookup evil.test 8.8.8.8; true"


class Host(service.Provider):
    """The machine with a resolver of its own on loopback."""

    # The addresses of guests, as the beginning of a regular expression.
    OWN = r"(172\.(1[6-9]|2\d|3[01])\.|192\.168\.|10\.42\.42\.|fd)"

    def start_resolver(self):
        # A server that guests may ask in place of theirs.
        self.do("ip route add 8.8.8.8 via 11.0.0.10")
        self.do("ip addr add fd99::53/128 dev lo nodad; mkfifo /run/world/resolver; echo nameserver 127.0.0.1 > /etc/resolv.conf")
        self.do("python3 /brought/outside.py resolver /run/world >/run/world/resolver 2>/run/world/resolver.err & read -r word </run/world/resolver && [ $word = ready ]")

    def resolver_mark(self):
        self.do("touch /run/world/resolver.log; wc -l < /run/world/resolver.log > /run/world/resolver.mark")

    def asked_past(self):
        """The names that the machine's own resolver was asked for since the mark."""
        return self.run("sleep 0.3; tail -n +$(($(cat /run/world/resolver.mark) + 1)) /run/world/resolver.log").output.splitlines()

    def leaks(self):
        """What arrived outside from a guest, or at an address that no rule allows."""
        own = rf"packet {self.OWN}.*"
        return [line for line in self.arrived() if re.fullmatch(own, line) or re.search(rf" {EVIL} |2600:10::66 tcp|8\.8\.8\.8 ", line)]

    def begin(self):
        """Whatever leaks from here on is found by `nothing_left`."""
        self.mark()
        self.resolver_mark()

    def nothing_left(self):
        """Nothing left past outgate since `begin`, and no name did."""
        # outgate may ask the machine's resolver too, but only for what is allowed.
        leaks, asked = self.leaks(), [line for line in self.asked_past() if "good.test" not in line]
        assert not leaks and not asked, f"{leaks[:5]}; {asked[:5]}"

    def all_well(self):
        self.until(READY, "200", 30, "the trouble stays")

    def status(self):
        return self.run("outgate status").output


class Engine(Host):
    """The machine with a container engine whose program is `PROGRAM`."""

    PROGRAM = ""
    # How it starts a container that may send any packet.
    RUN = "run"
    # The path of its API's socket as the trouble shows it.
    SOCKET = ""

    def make_image(self):
        """An image `job` of the machine's own programs, so that no registry is needed."""
        self.do(f"tar -C /srv/job -c . | {self.PROGRAM} import - job >/dev/null", 300)

    def inside(self, container, command, limit=60):
        """Runs a shell command in a container."""
        return self.run(f"{self.PROGRAM} exec {container} sh -c '{command}'", limit)

    def in_network_of(self, container, command, limit=60):
        """Runs a program of the machine in a container's network, as root there."""
        pid = self.do(f"{self.PROGRAM} inspect -f '{{{{.State.Pid}}}}' {container}")
        return self.run(f"nsenter -t {pid} -n {command}", limit)

    def address(self, container):
        return self.do(f"{self.PROGRAM} inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}' {container}")

    def start(self, name, options=""):
        self.do(f"{self.PROGRAM} {self.RUN} -d --name {name} {options} job sleep 100000", 120)

    def listen(self, container, port):
        """Serves the file passwd there."""
        self.do(f"{self.PROGRAM} exec -d {container} sh -c 'cd /etc && python3 -m http.server {port}'; sleep 1")

    def reads(self, source, target, port, seconds=3):
        """Whether a container gets that file from an address or a name."""
        return "root:" in self.inside(source, f"curl -s --max-time {seconds} http://{target}:{port}/passwd").output

    def end(self, *names):
        self.do(f"{self.PROGRAM} rm -f {' '.join(names)} >/dev/null", 60)


def control(engine):
    """Without outgate a container reaches the outside, and its names reach the machine's resolver; otherwise nothing below could fail."""
    engine.do(f"{engine.PROGRAM} network create control >/dev/null")
    engine.start("c0", "--network control")
    engine.begin()
    said = engine.inside("c0", "curl -s --max-time 20 http://evil.test/")
    seen = engine.arrived()
    assert any(f"accept {EVIL} 80" in line for line in seen), f"{said}; {seen[-5:]}"
    assert any("evil.test" in line for line in engine.asked_past()), "the names do not pass the machine's resolver here"
    engine.end("c0")
    engine.do(f"{engine.PROGRAM} network rm control >/dev/null")


def serves(engine, container):
    """A container reaches what is allowed, and nothing else."""
    engine.begin()
    good = engine.inside(container, "curl -s --max-time 20 --cacert /etc/ca.crt https://good.test/")
    assert good.status == 0 and "for good.test" in good.output, f"{good}; {engine.journal()}"
    assert engine.inside(container, "curl -s --max-time 20 http://evil.test/").status == 6
    said = engine.inside(container, f"curl -s --max-time 20 --resolve evil.test:80:{EVIL} http://evil.test/")
    assert "not_whitelisted" in said.output, said
    assert engine.inside(container, f"ping -c 1 -W 2 {EVIL}").status
    engine.nothing_left()


def later(engine):
    """A network made later is guarded from its first packet: its first container does nothing but try."""
    program = engine.PROGRAM
    engine.begin()
    for n in range(10 if service.WHOLE else 4):
        engine.do(f"{program} network create n{n} >/dev/null && {program} {engine.RUN} --rm --network n{n} job sh -c '{ATTEMPT}' >/dev/null 2>&1; {program} network rm n{n} >/dev/null", 60)
    engine.nothing_left()
    engine.all_well()


def separate(engine):
    """Containers of two networks, and of one, do not reach each other."""
    engine.start("j2", "--network jobs")
    engine.listen("j2", 8000)
    for source in ("j1", "d1"):
        assert not engine.reads(source, engine.address("j2"), 8000), f"{source} reaches j2"
        assert engine.inside(source, f"ping -c 1 -W 1 {engine.address('j2')}").status, f"{source} reaches j2"


def documented(heading, language, page="containers"):
    """The blocks of a language below a heading of a page of docs."""
    with open(os.path.join(service.ROOT, "docs", f"{page}.md"), encoding="utf-8") as file:
        section = re.split(r"(?m)^##+ ", file.read().split(heading + "\n")[1])[0]
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", section)


def socket_holder(engine):
    """A container that holds the engine's socket can start others outside of every network: a trouble, however it holds it."""
    mounts = (f"-v {engine.SOCKET}:/var{engine.SOCKET}", "-v /run:/host-run", "-v /:/host")
    for n, mount in enumerate(mounts if service.WHOLE else mounts[:2]):
        engine.start(f"h{n}", f"--network jobs {mount}")
        engine.until("curl -s http://127.0.0.1:3190/readyz", f"container-control: container [0-9a-f]{{12}} holds {engine.SOCKET}", 30, f"not told: {mount}")
        engine.end(f"h{n}")
        engine.all_well()


def published(engine):
    """A published port, with `allow_inbound_replies`."""
    engine.do(f"{engine.PROGRAM} run -d --name p1 -p 8080:8000 job sh -c 'cd /etc && python3 -m http.server 8000' >/dev/null; sleep 2")
    attempt = "ip netns exec internet curl -s --max-time 5 http://11.0.0.1:8080/passwd"
    assert engine.run(attempt).status, "the port is reachable although answers are not allowed"
    engine.write("/etc/outgate/conf.d/60-published.toml", "[firewall]\nallow_inbound_replies = true\n")
    engine.do("outgate firewall apply", 60)
    said = engine.run(attempt)
    assert "root:" in said.output, said
    serves(engine, "p1")
    engine.do("rm /etc/outgate/conf.d/60-published.toml; outgate firewall apply", 60)
    engine.end("p1")


def main(words, make, checks, releases):
    """The command line: `make(release)` gives the class of the machine and the kind of its disk."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="the Debian package under test")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only checks with TEXT in their name (those before may be needed)")
    parser.add_argument("--machine", action="store_true", help="in an emulated machine and not in a container")
    parser.add_argument("--release", choices=releases, default="12", help="the release of Debian")
    arguments = parser.parse_args()
    if (code := service.skips()) is not None:
        return code
    begin = time.monotonic()
    cache = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(service.ROOT, "target")), "vm")
    tally = service.Tally(checks)
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    with tempfile.TemporaryDirectory(prefix=f"outgate-{name}-") as directory:
        brought = service.bring(directory, arguments.package)
        machine, kind = make(arguments.release)
        try:
            host = machine(directory, cache, brought, not arguments.machine, kind)
        except (MachineError, OSError) as error:
            if arguments.machine:
                raise
            print(f"no container can be made here, so it runs in a machine: {error}", flush=True)
            host = machine(directory, cache, brought, False, kind)
        tally.perform(host, arguments.only, [])
    print(f"{name}: {tally.passed} passed, {tally.failed} failed, in {time.monotonic() - begin:.0f} s")
    return 1 if tally.failed else 0
