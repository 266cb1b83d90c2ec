#!/usr/bin/env python3
"""outgate as a service of a Debian machine: units, restarts, failures, package, under systemd itself.

Boots Debian 12 under QEMU (software emulation), installs outgate there as an operator would, and then does
to it what happens to services in operation. With --container the same Debian runs in a container, at this
processor's speed; its kernel is then this machine's, and it is not booted again. It has a guest behind a
bridge and an outside of its own, in network namespaces, and would forward everything. Judged by what
clients and servers there saw, by the service manager and by /proc. Timings are those of the machine's
clock, which runs in real time while an emulated processor is ten times slower than any real one.
"""

import argparse
import concurrent.futures
import contextlib
import json
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

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True
import debian  # noqa: E402
import sabotage  # noqa: E402
from container import Container  # noqa: E402
from machine import MachineError  # noqa: E402

GOOD, EVIL = "11.0.0.10", "11.0.0.66"
# Connections a second, tried in this order. More than the emulated machine can serve without delay would measure emulation.
RATES = [200, 100, 50, 25]
AT_EASE = 0.3
# The longest wait that a restart may cause, in seconds.
LONGEST_WAIT = 3
EXPOSURE = 1.2
SOCKETS = ["outgate.socket", "outgate-admin.socket", "outgate-transparent.socket", "outgate-dns.socket"]
CONFIG = """\
[listen]
transparent = ["0.0.0.0:3129", "[::]:3129"]
dns = ["10.42.42.1:53"]
[firewall]
guest_interfaces = ["br0"]
[resolver]
servers = ["11.0.0.53"]
[limits]
new_connections_per_second = 0
requests_per_second = 0
[log]
access = "/var/log/outgate/access.log"
"""
RULES = ["good.test", "http://good.test:8080", "tcp://raw.test:2222"]
# The version number from which the package is upgraded, and a list in which the two differ.
EARLIER = "0.0.1-1"
SHIPPED_LIST = "/etc/outgate/whitelist/20-packages.rules"
# Addresses that the package's units do not have.
OTHER_DNS = "10.42.42.1:5399"
ONE_MORE = "127.0.0.1:3140"
PROXY = "curl -s --max-time 20 -x http://127.0.0.1:3128"
IN_GUEST = "ip netns exec guest"
DATA_DIR = "/home/golem/.local/share/ya-provider"


class Provider:
    """The machine, and the operations that the checks use."""

    def __init__(self, directory, cache, brought, contained, kind=debian.PLAIN):
        self.packaged = os.path.exists(os.path.join(brought, "outgate.deb"))
        self.contained = contained
        # Whether what is installed first is another build, with --earlier.
        self.is_old = False
        self.machine = (Container if contained else debian.start)(directory, cache, brought, limit=240, kind=kind)
        self.rate = RATES[-1]
        # The duration of a restart here without anything to drain, in seconds.
        self.restart = 0

    def run(self, command, limit=60):
        return self.machine.run(command, limit)

    def do(self, command, limit=60):
        """Runs a command that must succeed; gives what it prints."""
        result = self.run(command, limit)
        assert result.status == 0, f"{command}: {result}"
        return result.output.strip()

    def write(self, path, text):
        quoted = text.replace("\\", "\\\\").replace("\n", "\\n").replace("'", "'\\''").replace("%", "%%")
        self.do(f"mkdir -p {os.path.dirname(path)}; printf '{quoted}' > {path}")

    def show(self, unit, *properties):
        """Properties of a unit, by name."""
        lines = self.do(f"systemctl show -p {','.join(properties)} {unit}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def state(self, unit):
        return self.show(unit, "ActiveState")["ActiveState"]

    def pid(self):
        return int(self.show("outgate.service", "MainPID")["MainPID"])

    def until(self, command, wanted, seconds, why):
        """Repeats the command until `wanted` is in what it prints; gives the seconds it took."""
        begin = time.monotonic()
        while True:
            result = self.run(command)
            if re.search(wanted, result.output):
                return time.monotonic() - begin
            assert time.monotonic() < begin + seconds, f"{why}, after {seconds} s: {result}; {self.journal()}"
            time.sleep(0.3)

    def ready(self):
        self.until("curl -s -m 5 http://127.0.0.1:3190/readyz", "ok|ready", 60, "not ready")

    def journal(self, unit="outgate.service", lines=25):
        return self.run(f"journalctl -u {unit} -n {lines} -o cat --no-pager").output

    def reboot(self):
        """Reboots by the service manager. Only files are kept."""
        self.machine.process.stdin.write(f"{self.machine.number + 1} 5 systemctl reboot\n")
        self.machine.process.stdin.flush()
        self.machine.wait(0, 240)

    def mark(self):
        self.do("sleep 0.3; wc -l < /run/world/internet.log > /run/world/mark")

    def arrived(self):
        """What arrived outside since the mark."""
        return self.run("sleep 0.3; tail -n +$(($(cat /run/world/mark) + 1)) /run/world/internet.log").output.splitlines()

    def leaks(self):
        """What arrived from the guest itself, or at an address that no rule allows, without neighbour discovery."""
        lines = self.arrived()
        own = r"packet (10\.42\.42\.|fd42:).*"
        return [line for line in lines if re.fullmatch(own, line) or f" {EVIL} " in line or "2600:10::66 tcp" in line]

    def proxied(self, url="http://good.test/"):
        """Status and reason of a request to the proxy."""
        return self.run(f"{PROXY} -o /tmp/body -w '%{{http_code}}' {url}; echo; head -c 300 /tmp/body").output

    def guest(self, url="https://good.test/"):
        """Fetches a URL in a guest that has no proxy setting."""
        return self.run(f"{IN_GUEST} curl -s --max-time 20 --cacert /brought/ca.crt {url}")


def control(provider):
    """Without outgate the guest reaches the outside; otherwise the later checks could not fail."""
    provider.mark()
    said = provider.do(f"{IN_GUEST} python3 /brought/probe.py all")
    seen = "\n".join(provider.arrived())
    for wanted in (f"accept {EVIL} 443 10.42.42.2", "accept 2600:10::66 443 fd42:42::2", f"packet 10.42.42.2 {EVIL} udp 9999"):
        assert wanted in seen, f"no {wanted!r} in {seen[-600:]}; {said}"


def install(provider):
    before = provider.do("nft list ruleset; ip rule; ip -6 rule")
    lay(provider)
    assert provider.do("nft list ruleset; ip rule; ip -6 rule") == before, "installing changed firewall or routing"
    for unit, state in {"outgate.service": "active", "outgate.socket": "active", "outgate-admin.socket": "active",
                        "outgate-transparent.socket": "inactive", "outgate-dns.socket": "inactive", "outgate-firewall.service": "inactive",
                        "outgate-golem-sync.timer": "inactive"}.items():
        assert provider.state(unit) == state, f"{unit} is {provider.state(unit)}, not {state}; {provider.journal()}"
    provider.ready()
    answer = provider.proxied("http://evil.test/")
    assert answer.startswith("403") and "not_whitelisted" in answer, answer
    listening = provider.do("ss -Hlnt | awk '{print $4}' | sort -u").split()
    assert listening == ["127.0.0.1:3128", "127.0.0.1:3190"], f"listening on {listening}"
    verified = provider.run("systemd-analyze verify --man=no /usr/lib/systemd/system/outgate*.service /usr/lib/systemd/system/outgate*.socket /usr/lib/systemd/system/outgate*.timer 2>&1")
    assert verified.status == 0 and not verified.output.strip(), f"systemd-analyze verify: {verified}"
    return f"resident at rest {resident(provider)}"


def resident(provider):
    return provider.do("awk '/VmRSS/ {print $2 / 1024 \" MiB\"}' /proc/" + f"{provider.pid()}/status")


def lay(provider):
    """Installs an earlier version of the package, or the same files without a package."""
    if provider.packaged:
        said = provider.do("dpkg -i /brought/earlier.deb 2>&1", 120)
        assert provider.do("dpkg-query -W -f '${Status} ${Version}' outgate") == f"install ok installed {EARLIER}", said
    else:
        provider.do("sh /brought/lay.sh", 120)


def privileges(provider):
    pid = provider.pid()
    status = dict(line.split(":\t", 1) for line in provider.do(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
    wanted = {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0}
    found = {name: int(status[name], 16) for name in wanted}
    assert found == wanted, f"capabilities: {found}"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), f"NoNewPrivs {status['NoNewPrivs']}, Seccomp {status['Seccomp']}"
    users = set(status["Uid"].split()) | set(status["Gid"].split())
    assert users == {provider.do("id -u outgate"), provider.do("id -g outgate")} and "0" not in users, f"runs as {users}"
    # In its own mount namespace everything is read-only except what it stores.
    writable = provider.do(f"nsenter -t {pid} -m findmnt -rno TARGET,VFS-OPTIONS | awk '$2 ~ /(^|,)rw(,|$)/ {{print $1}}' | grep -vE '^/(proc|sys|dev|tmp|var/tmp|run/netns/.*)(/|$)' | sort -u").split()
    assert set(writable) <= {"/var/lib/outgate", "/run/outgate", "/var/log/outgate"}, f"writable: {writable}"
    if provider.contained:
        return f"resident {resident(provider)}"
    # The memory bound is what the unit may use.
    bound = int(float(provider.do("curl -s http://127.0.0.1:3190/metrics | awk '$1 == \"outgate_memory_bound_bytes\" {print $2}'")))
    most = int(provider.do("systemctl show -p MemoryMax --value outgate.service"))
    assert bound == most, f"relief takes {bound} bytes for the bound, the unit says {most}"
    return f"resident {resident(provider)}, bound {bound >> 20} MiB"


OWN, DAEMON_JSON = "/etc/outgate/conf.d/50-setup.toml", "/etc/docker/daemon.json"
SETUP = "outgate setup --guest-interface br0"


def setup_state(provider):
    """Everything that setup may change: files, units, ruleset, routing, sockets."""
    return provider.do(
        "find /etc/outgate /etc/docker /etc/systemd/system -name conf.d -prune -print -o -type f -print0 -o -type l -print 2>/dev/null | tr '\\0' '\\n' | sort;"
        f"cat /etc/outgate/conf.d/* {DAEMON_JSON} 2>/dev/null; ls /var/lib/outgate-host | grep setup; nft list tables; ip rule; ip -6 rule;"
        "ss -Hlntu | awk '{print $1, $5}' | sort -u; for u in /usr/lib/systemd/system/outgate*; do echo ${u##*/} $(systemctl is-enabled ${u##*/}) $(systemctl is-active ${u##*/}); done; true"
    )


def set_up(provider):
    """`outgate setup`: the overview, what is in the way, a guarded guest, again, more, and back."""
    before = setup_state(provider)
    shown = provider.do("outgate setup")
    command = re.search(r"(?m)^br0 +bridge +\d+ +no +(outgate .*)$", shown)
    assert command and command[1] == SETUP, shown
    assert {"name": "br0", "guarded": False}.items() <= json.loads(provider.do("outgate setup --json"))["interfaces"][0].items()
    dry = provider.do("setpriv --reuid=nobody --clear-groups " + SETUP + " --dry-run")
    for wanted in ('+guest_interfaces = ["br0"]', "would listen on 0.0.0.0:1053", "would run `systemctl start outgate-firewall.service outgate-host.service outgate-proof-net.service`"):
        assert wanted in dry, f"no {wanted!r} in {dry}"
    for command, wanted in [
        ("setpriv --reuid=nobody --clear-groups " + SETUP, "run as root"),
        ("outgate setup --guest-interface br9", "there is no interface br9 (did you mean br0?): there are br0"),
        ("outgate setup --guest-interface port1", "port1 is a port of br0, which is where its packets enter: name br0"),
    ]:
        result = provider.run(command)
        assert result.status == 1 and wanted in result.output, result
    assert setup_state(provider) == before, "something was changed by looking"
    cannot_set_up(provider, before)
    killed_setup(provider, before)
    interrupted_setup(provider, before)
    begin = time.monotonic()
    said = provider.do(SETUP, 90)
    took = time.monotonic() - begin
    assert "guarded: br0" in said, said
    for unit in ["outgate.service", "outgate-firewall.service", "outgate-host.service", "outgate-proof-net.service"]:
        assert provider.state(unit) == "active", f"{unit}: {said}"
        assert provider.do(f"systemctl is-enabled {unit}") == "enabled", unit
    assert provider.guest("http://good.test/").status == 6, "a name that no rule allows"
    told = provider.run(f"{IN_GUEST} curl -s --max-time 20 --resolve good.test:80:{GOOD} -w '%{{http_code}}' http://good.test/").output
    assert told.endswith("403") and "not_whitelisted" in told, told
    provider.do("outgate whitelist add http://good.test")
    provider.until(f"{IN_GUEST} curl -s --max-time 20 http://good.test/", "for good.test", 10, "the guest is not served")
    for way in ("udp", "tcp"):
        for server in ("1.1.1.1", "2606:4700:4700::1111", "10.42.42.1", "fd42:42::1"):
            answer = provider.run(f"{IN_GUEST} python3 /brought/ask.py good.test {way} {server}").output.strip()
            assert answer == f"rcode 0 {GOOD}", f"{way} to {server}: {answer}"
    guarded = setup_state(provider)
    second_subnet(provider)
    assert setup_state(provider) == guarded
    began = provider.show("outgate.service", "InvocationID")
    said = provider.do(SETUP)
    assert "nothing to change" in said and "guarded: br0" in said, said
    assert setup_state(provider) == guarded and provider.show("outgate.service", "InvocationID") == began, said
    assert re.search(r"(?m)^br0 +bridge +\d+ +yes +-$", provider.do("outgate setup"))
    provider.do("nft 'table inet others { chain c { type filter hook input priority 0; iifname br0 drop; }; }'")
    result = provider.run(SETUP)
    assert result.status == 6 and "guarded, and cut off by another firewall: br0" in result.output, result
    provider.do(re.search(r"chain c of table inet others drops .*: run `([^`]+)`", result.output)[1])
    assert "guarded: br0" in provider.do(SETUP)
    provider.do("nft delete table inet others")
    # One more, as a pattern; and a ruleset that was lost comes back.
    provider.do("nft flush ruleset")
    said = provider.do("outgate setup --guest-interface 'tap*'", 90)
    assert '+guest_interfaces = ["br0", "tap*"]' in said and "guarded: br0" in said, said
    provider.mark()
    assert "for good.test" in provider.guest("http://good.test/").output
    if WHOLE:
        # docker.py has a real one.
        with_docker(provider)
    # Not over what somebody changed since.
    provider.do(f"cp -p {OWN} /root/own.toml; echo '# mine' >> {OWN}")
    refused = provider.run("outgate setup --undo")
    assert refused.status == 1 and "+# mine" in refused.output and f"`mv {OWN} {OWN}.kept`" in refused.output, refused
    refused = provider.run("outgate setup --guest-interface 'veth*'")
    assert refused.status == 1 and re.search(r'write `guest_interfaces = \["br0", ("tap\*", )?"veth\*"\]` there', refused.output), refused
    provider.do(f"cp -p /root/own.toml {OWN}")
    assert "would remove /etc/outgate/conf.d/50-setup.toml" in provider.do("outgate setup --undo --dry-run")
    said = provider.do("outgate setup --undo", 90)
    assert "open now: br0" in said, said
    provider.do("outgate whitelist remove http://good.test")
    assert setup_state(provider) == before, f"{said}: {setup_state(provider)}, before: {before}"
    assert "nothing to undo" in provider.do("outgate setup --undo")
    provider.ready()
    control(provider)
    return f"guarded after {took:.1f} s"


def proves(provider):
    """The running proof by its units: without a right, after a kill, and what its end says."""
    provider.do("systemctl start outgate-proof-net.service", 60)
    begin = time.monotonic()
    proven = lambda: provider.until("outgate proof", "br0 +proven", 90, "it is not proven")
    proven()
    took = time.monotonic() - begin
    probe = provider.do("systemctl show -P MainPID outgate-proof@br0.service")
    facts = provider.do(f"cat /proc/{probe}/status; readlink /proc/{probe}/ns/net /proc/1/ns/net")
    assert re.search(r"CapEff:\s0{16}", facts) and re.search(r"CapBnd:\s0{16}", facts) and "NoNewPrivs:\t1" in facts, facts
    assert int(re.search(r"Uid:\s(\d+)", facts)[1]) == int(provider.do("id -u outgate-proof")), facts
    assert len(set(facts.split("\n")[-2:])) == 2, f"it is in the network of this machine: {facts}"
    provider.until("outgate status", r"(?m)^proven \d+ s ago: br0$", 10, "the daemon does not read it")
    assert "guarding br0: 1 guest" in provider.do("outgate status"), "its guests count as guests"
    assert 'outgate_enforcement_ok{check="tcp_443"} 1' in provider.do("curl -s http://127.0.0.1:3190/metrics")
    # Whoever may write the folder may not write the result, and no other user's rounds count.
    assert provider.run("setpriv --reuid=outgate-proof --clear-groups sh -c 'echo {} >/run/outgate-proof/rounds.json'").status
    provider.do("systemctl kill -s KILL outgate-proof-net.service; sleep 6")
    proven()
    provider.do("outgate guest list; outgate denied")
    assert "@proof" not in provider.do("outgate guest list; outgate denied; journalctl -u outgate -n 500 -o cat"), "it is told as a guest"
    said = provider.do("outgate firewall remove")
    assert "outgate-proof-net.service is stopped" in said and provider.state("outgate-proof-net.service") == "inactive", said
    provider.do("systemctl restart outgate-firewall.service", 60)
    left = provider.do("ip -o link show | grep ogp; ip route show proto 248; outgate proof; true")
    assert "ogp" not in left and "the proof is stopped" in left, left
    provider.ready()
    serves(provider)
    return f"proven after {took:.1f} s"


def killed_setup(provider, before):
    """Killed at any moment, it can be undone."""
    for seconds in (0.1, 0.2, 0.4, 0.8) if WHOLE else (0.2, 0.8):
        provider.run(f"timeout -s KILL {seconds} {SETUP}", 60)
        # As it is left of a file that was being written.
        provider.do("! test -e /var/lib/outgate-host/setup.json || touch /etc/systemd/system/.outgate-listen-dns-::-1053.socket.7-0.outgate-new")
        said = provider.do("outgate setup --undo", 90)
        provider.ready()
        assert setup_state(provider) == before, f"killed after {seconds} s: {said}: {setup_state(provider)}, before: {before}"


def interrupted_setup(provider, before):
    """Ctrl-C and its like at any moment: what was there is put back without being asked for."""
    put_back = 0
    for n in range(20):
        seconds, name = 0.1 + 0.15 * n, ("INT", "TERM", "HUP")[n % 3]
        result = provider.run(f"timeout --preserve-status -s {name} {seconds} {SETUP}", 60)
        if re.search("everything was changed as shown|guarded", result.output):
            # It came too late.
            break
        provider.ready()
        assert setup_state(provider) == before, f"SIG{name} after {seconds} s: {result}: {setup_state(provider)}, before: {before}"
        put_back += "what was there before was put back" in result.output
    provider.do("outgate setup --undo", 90)
    provider.ready()
    assert put_back and setup_state(provider) == before, f"put back {put_back} times: {result}"


def second_subnet(provider):
    """With a second subnet on the bridge a reply to there would leave from another address than the query came to."""
    addresses = "ip addr {0} 10.43.0.1/24 dev br0; ip -n guest addr {0} 10.43.0.2/24 dev eth0"
    provider.do(addresses.format("add"))
    said = provider.do(SETUP, 90)
    assert '"10.42.42.1:1053"' in said, said
    for server in ("10.43.0.1", "10.42.42.1", "fd42:42::1", "1.1.1.1"):
        for way in ("udp", "tcp"):
            answer = provider.run(f"{IN_GUEST} python3 /brought/ask.py good.test {way} {server}").output.strip()
            assert answer == f"rcode 0 {GOOD}", f"{way} to {server}: {answer}"
    provider.do(addresses.format("del"))
    provider.do(SETUP, 90)


def cannot_set_up(provider, before):
    """What is in the way: nothing is changed; and where a later step fails, everything is put back."""
    kept = "/root/outgate.toml"
    provider.do(f"cp -p /etc/outgate/outgate.toml {kept}")
    provider.write("/etc/outgate/outgate.toml", '[firewall]\nguest_interfaces = ["tap7"]\n[listen]\ntransparent = ["0.0.0.0:3129"]\n')
    result = provider.run(SETUP)
    assert result.status == 1 and "/etc/outgate/outgate.toml:2:1:" in result.output, result
    assert "write `guest_interfaces = [\"tap7\", \"br0\"]` there" in result.output, result
    provider.do(f"cp -p {kept} /etc/outgate/outgate.toml; (python3 -m http.server --bind 127.0.0.1 3129 >/dev/null 2>&1 & echo $! >/run/taken); sleep 1")
    result = provider.run(SETUP)
    assert result.status == 1 and "cannot listen on 0.0.0.0:3129" in result.output, result
    provider.do("kill $(cat /run/taken)")
    unit = "/etc/systemd/system/outgate-listen-transparent-0.0.0.0-3129.socket"
    for make, wanted in ((f"ln -s /root/theirs {unit}", "root follows none"), (f"mkdir {unit}", "not a regular file; move it away"), (f"ln -s /dev/null {unit}", "is masked; run `systemctl unmask ")):
        provider.do(f"{make}; systemctl daemon-reload")
        result = provider.run(SETUP)
        assert result.status == 1 and wanted in result.output and "nothing was changed" in result.output, result
        said = re.search(r"`(systemctl unmask [^`]+)`", result.output)
        provider.do(said[1] if said else f"rm -d {unit}")
    provider.do("systemctl daemon-reload")
    drop = "/etc/systemd/system/outgate-firewall.service.d/fails.conf"
    provider.write(drop, "[Service]\nExecStart=\nExecStart=/bin/false\n")
    provider.do("systemctl daemon-reload")
    result = provider.run(SETUP, 90)
    assert result.status == 1 and "what was there before was put back" in result.output, result
    provider.do(f"rm -r {os.path.dirname(drop)}; systemctl daemon-reload; systemctl reset-failed outgate-firewall.service; sleep 0.5")
    provider.ready()
    assert setup_state(provider) == before, f"{result}: {setup_state(provider)}, before: {before}"


def with_docker(provider):
    """Docker's file, with a process that has dockerd's name, and docker(1) that says what the check wants."""
    unit, tool = "/etc/systemd/system/docker.service", "/usr/local/bin/docker"
    command = f"{SETUP} --guest-interface docker0"
    provider.write(unit, "[Service]\nExecStart=@/usr/bin/sleep /usr/bin/dockerd infinity\n")
    provider.write(tool, '#!/bin/sh\n[ "$*" = "ps --quiet" ] && cat /run/containers\n')
    provider.do(f"chmod 755 {tool}; systemctl daemon-reload; systemctl start docker.service; touch /run/containers; ip link add docker0 type bridge; ip addr add 172.29.0.1/16 dev docker0")
    before = setup_state(provider)
    broken = '{\n  "debug": true,\n}\n'
    for prepare, wanted in [(f"printf '{broken}' > {DAEMON_JSON}", f"{DAEMON_JSON}:3:1: not JSON"), (f"ln -s /root/theirs {DAEMON_JSON}", "root follows none")]:
        provider.do(f"mkdir -p /etc/docker; {prepare}")
        result = provider.run(command, 90)
        assert result.status == 1 and wanted in result.output, result
        provider.do(f"rm -r /etc/docker")
    own = provider.do(f"cat {unit}").replace("infinity", "--dns 127.0.0.53")
    provider.do(f"cp -p {unit} /root/; systemctl stop docker.service")
    provider.write(unit, own + "\n")
    provider.do("systemctl daemon-reload")
    result = provider.run(command)
    assert result.status == 1 and "dockerd is started with --dns 127.0.0.53, and 127.0.0.53 is this machine itself" in result.output, result
    provider.do(f"cp -p /root/docker.service {unit}; systemctl daemon-reload; systemctl start docker.service")
    assert setup_state(provider) == before
    text = '{\n\t"log-driver": "local"\n}'
    provider.write(DAEMON_JSON, text)
    # Its start is known to two seconds.
    provider.do("sleep 3; chmod 640 /etc/docker/daemon.json; echo 0123456789ab > /run/containers")
    began = provider.show("docker.service", "InvocationID")
    for _ in range(2):
        result = provider.run(command, 90)
        assert result.status == 6 and "Run `systemctl restart docker.service`; until then" in result.output, result
    assert provider.show("docker.service", "InvocationID") == began, "dockerd was restarted over containers"
    assert provider.do(f"stat -c %a {DAEMON_JSON}; cat {DAEMON_JSON}") == '640\n{\n\t"log-driver": "local",\n\t"dns": ["172.29.0.1"]\n}'
    provider.do("truncate -s 0 /run/containers; sleep 3")
    said = provider.do(command, 90)
    assert "restarted dockerd" in said and provider.show("docker.service", "InvocationID") != began, said
    assert "nothing to change" in provider.do(command, 90)
    said = provider.do("outgate setup --undo", 90)
    assert "restarted dockerd" in said and provider.do(f"cat {DAEMON_JSON}") == text.strip(), said
    provider.do(f"systemctl stop docker.service; rm -r {unit} {tool} /etc/docker /run/containers; systemctl daemon-reload; ip link del docker0")
    provider.do(SETUP, 90)


def migrates(provider):
    """Drop-ins as hosts have them from before `listen apply`: moved away, served as before, and back."""
    folder, kept = "/etc/systemd/system", "/root/before.toml"
    provider.do(f"cp -p /etc/outgate/outgate.toml {kept}")
    provider.write("/etc/outgate/outgate.toml", CONFIG.replace("10.42.42.1:53", "10.42.42.1:5399"))
    drop_in = "[Socket]\nListenStream=\nListenDatagram=\nListenStream=10.42.42.1:5399\nListenDatagram=10.42.42.1:5399\nListenStream=10.42.42.1:5398\n"
    provider.write(f"{folder}/outgate-dns.socket.d/override.conf", drop_in)
    provider.do("systemctl daemon-reload; systemctl stop outgate-dns.socket; systemctl restart outgate.service", 90)
    provider.do("outgate firewall apply", 60)
    provider.ready()
    serves(provider)
    before = setup_state(provider)
    said = provider.do("outgate setup --migrate --dry-run")
    assert "ListenDatagram=10.42.42.1:5399" in said and "has 10.42.42.1:5398, which [listen] does not have: it is closed" in said, said
    assert setup_state(provider) == before, f"{said}: {setup_state(provider)}, before: {before}"
    said = provider.do("outgate setup --migrate", 90)
    assert "guarded: br0" in said, said
    serves(provider)
    assert provider.run(f"ls {folder}/outgate-dns.socket.d").status, said
    assert provider.state("outgate-dns.socket") == "inactive" and provider.state("outgate-listen-dns-10.42.42.1-5399.socket") == "active", said
    for command in ("outgate listen apply", "outgate setup --migrate"):
        said = provider.do(command, 90)
        assert "nothing to change" in said, f"{command}: {said}"
    said = provider.do("outgate setup --undo", 90)
    assert setup_state(provider) == before, f"{said}: {setup_state(provider)}, before: {before}"
    serves(provider)
    provider.do(f"rm -r {folder}/outgate-dns.socket.d; cp -p {kept} /etc/outgate/outgate.toml; systemctl daemon-reload; systemctl stop outgate-dns.socket; systemctl restart outgate.service", 90)
    provider.do("outgate firewall apply", 60)
    provider.ready()
    healthy(provider)


def configure(provider):
    """As the documentation says: configuration, then its sockets, then a restart that passes them to the daemon."""
    provider.write("/etc/outgate/outgate.toml", CONFIG)
    for rule in RULES:
        provider.do(f"outgate whitelist add '{rule}'")
    provider.do("outgate check")
    # A listener that no socket unit listens on: an error that says what to do, not a silently missing listener.
    result = provider.run("systemctl restart outgate.service")
    said = provider.journal()
    # Builds before `outgate listen apply` print a drop-in.
    told = "`outgate listen apply`" in said or (provider.is_old and "ListenStream=" in said)
    assert "no socket unit listens on 0.0.0.0:3129" in said and told, f"exit {result.status}: {said}"
    # As hosts were set up before there was this command: the package's own units.
    provider.do("systemctl enable -q outgate-firewall.service outgate-transparent.socket outgate-dns.socket")
    provider.do("systemctl start outgate-firewall.service", 120)
    provider.do("systemctl restart outgate.service", 90)
    provider.ready()
    all_active(provider)


def all_active(provider, said=""):
    for unit in [*SOCKETS, "outgate.service", "outgate-firewall.service"]:
        assert provider.state(unit) == "active", f"{unit} is {provider.state(unit)}: {said}; {provider.journal()}"
    # The unit is active before the watcher has looked for the first time.
    provider.until("systemctl is-active outgate-host.service", "^active", 20, f"the watcher is not active: {said}")


def serves(provider):
    """A guest without a proxy setting reaches what is allowed, and nothing else, over TPROXY and DNS."""
    provider.mark()
    result = provider.guest()
    assert result.status == 0 and "for good.test" in result.output, f"{result}; {provider.journal()}"
    refused = provider.guest("https://evil.test/")
    assert refused.status == 6, f"a refused name: {refused}"
    refused = provider.run(f"{IN_GUEST} curl -s --max-time 20 --cacert /brought/ca.crt --resolve evil.test:443:{EVIL} https://evil.test/")
    assert refused.status == 35, f"a refused name at its address: {refused}"
    assert not provider.leaks(), provider.leaks()[:5]


STATUS_TEXT = "systemctl show -P StatusText outgate.service"


def as_printed(provider):
    """Runs the command that the daemon wrote to the journal when it last started without a socket, and the one that it names."""
    said = provider.journal(lines=300)
    said = said[said.rindex("ERROR no socket unit listens on") :]
    command = re.search(r"Run `([^`]+)` as root, or take the address out", said)[1]
    result = provider.run(command, 90)
    if result.status and (named := re.search(r"or run `([^`]+)`", result.output)):
        # Nothing is changed where a drop-in of the operator's would be lost.
        assert not provider.run("ls /etc/systemd/system/outgate-listen-* 2>&1").output.count(".socket"), result
        result = provider.run(named[1], 90)
    assert result.status == 0, f"{result}; {provider.journal()}"
    return result.output


def listens(provider):
    """`outgate listen apply`, as printed where no socket unit listens: beside older drop-ins, for addresses of all kinds, and
    again for others. With connections at an even rate while an address comes and another goes. Then what cannot work.
    """
    folder, kept = "/etc/systemd/system", "/root/before.toml"
    provider.do(f"cp -p /etc/outgate/outgate.toml {kept}; install -d -g outgate -m 750 /etc/outgate/tls; install -g outgate -m 640 /brought/tls.crt /brought/tls.key /etc/outgate/tls/")
    older = "[Socket]\nListenStream=\nListenDatagram=\nListenStream=10.42.42.1:5399\nListenDatagram=10.42.42.1:5399\n"
    provider.write(f"{folder}/outgate-dns.socket.d/override.conf", older)
    provider.write(f"{folder}/outgate-transparent.socket.d/override.conf", "[Socket]\nListenStream=\nListenStream=0.0.0.0:3999\n")
    provider.do("systemctl daemon-reload")
    for listen in LISTEN:
        write_listen(provider, listen)
        provider.do("systemctl restart outgate.service", 90)
        provider.until(STATUS_TEXT, "not_configured.*no socket unit listens on", 20, "nothing was missing")
        as_printed(provider)
        serves_all(provider, listen)
        provider.do("outgate check --here | tail -n 1 | grep ' 0 errors'")
        assert "nothing to change" in provider.do("outgate listen apply")
    held = provider.do("""ss -Hlntup | awk '/"outgate"/ {print $5}' | sort -u""").split()
    assert not {"127.0.0.1:3131", "[::1]:3131", "10.42.42.1:8080", "0.0.0.0:3129"} & set(held), f"still open: {held}"
    rate = carried(provider)
    old, new = "10.42.42.1:8081", "10.42.42.1:8082"
    write_listen(provider, LISTEN[1] | {"proxy": ["127.0.0.1:3128", old]})
    provider.do("outgate listen apply", 90)
    write_listen(provider, LISTEN[1] | {"proxy": ["127.0.0.1:3128", new]})
    before = provider.do("ls /etc/systemd/system/outgate-listen-*")
    assert f"would listen on {new}" in provider.do("outgate listen apply --dry-run")
    assert provider.do("ls /etc/systemd/system/outgate-listen-*") == before

    def apply():
        said = json.loads(provider.do("outgate listen apply --json", 90))
        assert [unit["address"] for unit in said["started"]] == [new] and len(said["stopped"]) == 1, said

    said = load(provider, 12, apply, rate)
    assert set(said["outcomes"]) == {"200"}, f"connections to an address that stays, at {rate} a second: {said}; {provider.journal()}"
    status = provider.run(f"curl -s --max-time 20 -x http://{new} -o /dev/null -w '%{{http_code}}' http://good.test/").output
    assert status == "200", f"{status}; {provider.journal()}"
    assert provider.run(f"curl -s --max-time 5 -x http://{old} http://good.test/").status == 7, "the old address is still open"
    # An address that another program has, an error in the configuration, and nobody's right: nothing changes.
    units = provider.do("ls -l --time-style=full-iso /etc/systemd/system/outgate-listen-*")
    began = provider.show("outgate.service", "InvocationID")
    provider.do("(python3 -m http.server --bind 127.0.0.1 8083 >/dev/null 2>&1 & echo $! >/run/taken); sleep 1")
    for proxy, wanted in [("127.0.0.1:8083", "cannot listen on 127.0.0.1:8083"), ("127.0.0.1:nope", "outgate.toml:")]:
        write_listen(provider, LISTEN[1] | {"proxy": ["127.0.0.1:3128", proxy]}, check=False)
        result = provider.run("outgate listen apply", 60)
        assert result.status == 1 and wanted in result.output, result
    write_listen(provider, LISTEN[1])
    result = provider.run("setpriv --reuid=nobody --clear-groups outgate listen apply")
    assert result.status == 1 and "run as root" in result.output, result
    assert provider.do("ls -l --time-style=full-iso /etc/systemd/system/outgate-listen-*") == units
    assert provider.show("outgate.service", "InvocationID") == began, "the daemon was restarted for nothing"
    provider.do("kill $(cat /run/taken)")
    transparency(provider)
    # As before.
    provider.do(f"rm -r {folder}/outgate*.socket.d /etc/outgate/tls; cp -p {kept} /etc/outgate/outgate.toml; systemctl daemon-reload")
    provider.do("outgate listen apply --replace", 90)
    provider.do("systemctl stop 'outgate*.socket'; systemctl disable -q 'outgate-listen-*.socket'; rm /etc/systemd/system/outgate-listen-*")
    provider.do(f"systemctl enable -q {' '.join(SOCKETS)}; systemctl restart outgate.service", 90)
    provider.do("outgate firewall apply", 60)
    provider.ready()
    healthy(provider)
    return f"{rate} connections a second while one address comes and another goes"


def write_listen(provider, listen, check=True):
    text = CONFIG[CONFIG.index("[firewall]") :] + '[tls]\ncertificate = "/etc/outgate/tls/tls.crt"\nkey = "/etc/outgate/tls/tls.key"\n'
    lines = [f"{key} = {json.dumps(addresses)}" for key, addresses in listen.items()]
    provider.write("/etc/outgate/outgate.toml", "\n".join(["[listen]", *lines, text]))
    if check:
        provider.do("outgate check")


def transparency(provider):
    """A drop-in makes the proxy's sockets transparent. The daemon reports it with a remedy."""
    drop = "/etc/systemd/system/outgate.socket.d/override.conf"
    provider.write(drop, "[Socket]\nTransparent=yes\n")
    provider.do("systemctl daemon-reload; systemctl stop outgate.socket")
    provider.do("systemctl restart outgate.service", 90)
    provider.until(STATUS_TEXT, "not_configured.*came with IP_TRANSPARENT", 20, "served with IP_TRANSPARENT")
    said = [line for line in provider.journal(lines=100).splitlines() if "came with IP_TRANSPARENT" in line]
    assert said, provider.journal()
    wanted, editor, *commands = re.search(r"write (\S+) below \[Socket\], by `([^`]+)`; then run `([^`]+)` and `([^`]+)`", said[-1]).groups()
    # An editor requires a terminal. This writes to the same place, and does what systemd does when the editor is closed.
    assert editor == "systemctl edit outgate.socket", said
    provider.write(drop, f"[Socket]\n{wanted}\n")
    provider.do("systemctl daemon-reload")
    for command in commands:
        provider.do(command, 90)
    serves(provider)
    assert provider.proxied().startswith("200"), provider.journal()


# Some of the addresses are in the package's units already.
LISTEN = [
    {
        "proxy": ["127.0.0.1:3128", "10.42.42.1:8080", "[fd42:42::1]:8080"],
        "proxy_tls": ["10.42.42.1:3443"],
        "transparent": ["0.0.0.0:3129", "[::]:4129"],
        "redirect": ["127.0.0.1:3131", "[::1]:3131"],
        "dns": ["10.42.42.1:5301", "[fd42:42::1]:5301"],
        "admin": "127.0.0.1:3190",
        "admin_tls": "10.42.42.1:3191",
    },
    {
        "proxy": ["127.0.0.1:3128"],
        "transparent": ["0.0.0.0:4130", "[::]:4130"],
        "dns": ["[fd42:42::1]:5302", "10.42.42.1:53"],
        "admin": "127.0.0.1:3190",
    },
]


def serves_all(provider, listen):
    """outgate listens on all that is configured, and serves there."""
    began = provider.show("outgate.service", "InvocationID", "NRestarts")
    wanted = {f"tcp {address}" for given in listen.values() for address in ([given] if isinstance(given, str) else given)}
    wanted |= {f"udp {address}" for address in listen["dns"]}
    held = provider.do("""ss -Hlntup | awk '/"outgate"/ {print $1, $5}' | sort -u""").splitlines()
    # The unit gives the resolver's sockets larger buffers than the daemon may set, and the daemon keeps them.
    buffers = {int(size) for size in re.findall(r"tb(\d+)", provider.do("ss -Hlnum 'sport = :53'"))}
    assert not buffers or min(buffers) >= 8 << 20, f"send buffers of port 53: {buffers}"
    # A unit that the configuration does not use stays as it was; connections to it are reset.
    assert wanted <= set(held), f"not listening on {wanted - set(held)}: {held}"
    for address in listen["proxy"]:
        status = provider.run(f"curl -s --max-time 20 -x http://{address} -o /dev/null -w '%{{http_code}}' http://good.test/").output
        assert status == "200", f"proxy at {address}: {status}; {provider.journal()}"
    for address in listen.get("proxy_tls", []):
        status = provider.run(f"curl -s --max-time 20 --proxy-insecure -x https://{address} -o /dev/null -w '%{{http_code}}' http://good.test/").output
        assert status == "200", f"proxy_tls at {address}: {status}; {provider.journal()}"
    if address := listen.get("admin_tls"):
        provider.do(f"curl -s --max-time 20 -k https://{address}/healthz")
    # The firewall still redirects guests to the old listeners; the daemon notices it, and says what to do.
    another = "made from another configuration; run `([^`]+)`"
    provider.until("curl -s -m 5 http://127.0.0.1:3190/readyz", another, 20, "it is not noticed that the firewall has other listeners")
    provider.do(re.search(another, provider.do("curl -s http://127.0.0.1:3190/readyz"))[1], 60)
    provider.ready()
    for way in ("udp", "tcp"):
        for server in ("1.1.1.1", "2606:4700:4700::1111"):
            said = provider.run(f"{IN_GUEST} python3 /brought/ask.py good.test {way} {server}").output.strip()
            assert said == f"rcode 0 {GOOD}", f"{way} to {server}: {said}; {provider.journal()}"
    serves(provider)
    time.sleep(3)
    assert provider.show("outgate.service", "InvocationID", "NRestarts") == began, f"started again: {provider.journal()}"
    said = provider.do(f"journalctl _SYSTEMD_INVOCATION_ID={began['InvocationID']} -o cat --no-pager")
    assert "no socket unit listens on" not in said, said


FLOOD = """
import os, socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("late1", 0))
for n in range(2000):
    s.send(bytes.fromhex(("0180c200000e", "ffffffffffff")[n % 2]) + bytes([2]) + os.urandom(5) + bytes.fromhex("0806") + bytes(46))
"""


def later(provider):
    """A bridge port that appears after the firewall was applied is guarded within a second, also if its watcher was killed."""
    # A command takes seconds in the emulated machine. Without an event the watcher looks once a minute.
    assert provider.state("outgate-host.service") == "active", provider.journal("outgate-host.service")
    provider.write("/root/flood.py", FLOOD)
    took = []
    for kill in ("true", "systemctl kill -s KILL outgate-host.service"):
        provider.do(f"{kill}; ip link add late0 type veth peer name late1; ip link set late1 up; ip link set late0 master br0; ip link set late0 up")
        took.append(provider.until("ip -d link show late0", r"guard on.* group_fwd_mask 0xfffd .*isolated on", 40, "the port is not guarded"))
        provider.until("ip rule; ip -6 rule", r"(?s)iif late0 .*prohibit.*iif late0 .*prohibit", 40, "no routing rule")
        provider.until("outgate firewall status 2>&1", "the firewall is in place", 30, "it is not in place")
        provider.until("bridge link show dev late0", "state forwarding", 40, "the port does not forward")
        provider.do("python3 /root/flood.py")
        learnt = int(provider.do("bridge fdb show brport late0 | grep -vc permanent || true"))
        assert learnt <= 80, f"{learnt} MACs by one port"
        provider.do("ip link del late0")
        provider.until("ip rule | grep -c late0 || true", "^0", 40, "a rule is left")
    provider.until("systemctl is-active outgate-host.service", "^active", 30, "the watcher did not come back")
    return f"guarded after {took[0]:.1f} s, after {took[1]:.1f} s with the watcher killed"


def executes(provider):
    """`outgate exec`, after the configuration line and the commands that it prints at the first attempt."""
    provider.do("cp -p /etc/outgate/outgate.toml /root/")
    said = provider.run("outgate exec --name job -- true").output
    found = re.search(r"under \[firewall\] write (guest_interfaces = \[[^\]]+\]), then `([^`]+)` and `([^`]+)`", said)
    assert found, said
    line, *commands = found.groups()
    provider.write("/root/line", line + "\n")
    provider.do("sed -i -e '/^guest_interfaces/{r /root/line' -e 'd}' /etc/outgate/outgate.toml")
    for command in commands:
        provider.do(command, 60)
    result = provider.run("outgate exec --name job -- curl -s --max-time 20 http://good.test/")
    assert result.status == 0 and "for good.test" in result.output, f"{result}; {provider.journal()}"
    # And where no user namespace can be created (Ubuntu restricts them by AppArmor): it requires none.
    closed = "systemd-run --quiet --wait --pipe -p RestrictNamespaces=~user"
    assert provider.run(f"{closed} unshare --user true").status, "user namespaces can be created, so this shows nothing"
    result = provider.run(f"{closed} outgate exec --name job -- curl -s --max-time 20 http://good.test/")
    assert result.status == 0 and "for good.test" in result.output, f"{result}; {provider.journal()}"
    provider.do(f"{closed} outgate firewall status")
    provider.do("cp -p /root/outgate.toml /etc/outgate/; outgate firewall apply; systemctl reload outgate")
    provider.ready()


def exposure(provider):
    """`systemd-analyze security`, while a guest downloads through transparent listener, DNS and relay."""
    provider.do(f"({IN_GUEST} timeout 60 curl -s http://good.test:8080/slow -o /tmp/slow &) ; sleep 3; test -s /tmp/slow", 30)
    said = provider.do("systemd-analyze security --no-pager outgate.service", 60)
    first = provider.do("stat -c %s /tmp/slow")
    found = float(re.search(r"exposure level for outgate.service: ([\d.]+)", said)[1])
    assert found <= EXPOSURE, said[-2000:]
    provider.until("stat -c %s /tmp/slow", rf"^(?!{first}$)", 10, "the download does not continue")
    return f"{found}"


def reload(provider):
    assert provider.guest("http://late.test/").status == 6, "late.test is known before its rule"
    generation = "curl -s http://127.0.0.1:3190/metrics | grep -E '^outgate_whitelist_generation'"
    before = provider.do(generation)
    provider.do("echo 'http://late.test' >> /etc/outgate/whitelist/local.rules; systemctl reload outgate.service")
    assert provider.do(generation) != before, "no new list"
    result = provider.run(f"{PROXY} -o /dev/null -w '%{{http_code}}' http://late.test/")
    assert result.output.strip() == "502", f"late.test, allowed now and unknown to DNS: {result}"
    # A broken list: reload reports it, and the list in force stays.
    provider.do("cp -p /etc/outgate/whitelist/local.rules /root/; echo 'http://' >> /etc/outgate/whitelist/local.rules")
    failed = provider.run("systemctl reload outgate.service")
    assert failed.status != 0, "a broken list was accepted without an error"
    assert "local.rules:" in provider.journal(), f"the journal does not name the line: {provider.journal()}"
    assert provider.state("outgate.service") == "active"
    assert "for good.test" in provider.guest().output, "the last good list is not in force"
    provider.do("cp -p /root/local.rules /etc/outgate/whitelist/; systemctl reload outgate.service")


def load(provider, seconds, event, rate):
    """Runs `event` while connections arrive at an even rate. None is refused, and none waits too long."""
    provider.do(f"rm -f /tmp/load; (python3 /brought/load.py send {rate} {seconds} > /tmp/load 2>&1 &)")
    time.sleep(3)
    event()
    provider.until("cat /tmp/load", r"longest|Error", seconds + 40, "the load does not end")
    said = provider.do("cat /tmp/load")
    assert said.startswith("{"), said
    return json.loads(said)


def carried(provider):
    """The highest of the rates at which no connection waits."""
    for rate in RATES:
        said = json.loads(provider.do(f"python3 /brought/load.py send {rate} 3", 60))
        if set(said["outcomes"]) == {"200"} and said["longest"] < AT_EASE:
            return rate
    raise AssertionError(f"not even {RATES[-1]} connections a second: {said}; {provider.journal()}")


def restart(provider):
    """A restart under load, at the highest rate at which the emulated machine has time left for it."""
    for provider.rate in [rate for rate in RATES if rate <= carried(provider)]:
        before = provider.pid()
        result = load(provider, 10, lambda: provider.do("systemctl restart outgate.service", 90), provider.rate)
        assert provider.pid() != before
        if set(result["outcomes"]) == {"200"} and result["longest"] < LONGEST_WAIT:
            provider.restart = result["longest"]
            return f"{result['opened']} at {result['rate']}/s, the longest wait {result['longest']} s"
    raise AssertionError(f"refused, or made to wait: {result}; {provider.journal()}")


def bindings(provider):
    """An address that DNS gave a guest is still bound to its name after a restart: raw bytes to it need no new query."""
    assert provider.do(f"{IN_GUEST} python3 /brought/ask.py raw.test") == f"rcode 0 {GOOD}"
    raw = f"{IN_GUEST} python3 /brought/ask.py raw {GOOD} 2222"
    assert provider.do(raw).startswith("220 "), "not even before"
    provider.do("systemctl restart outgate.service", 90)
    result = provider.run(raw)
    assert result.output.startswith("220 "), f"after the restart: {result}; {provider.journal()}"


def watchdog(provider):
    """A daemon that hangs is killed and started again; connections wait meanwhile."""
    # Shorter than in the unit, to save time.
    provider.write("/run/systemd/system/outgate.service.d/watchdog.conf", "[Service]\nWatchdogSec=3\n")
    provider.do("systemctl daemon-reload; systemctl restart outgate.service", 90)
    provider.ready()
    before = provider.pid()
    # It runs longer than that as long as it works.
    time.sleep(7)
    assert provider.pid() == before, f"killed although it works; {provider.journal()}"
    provider.do(f"kill -STOP {before}")
    took = provider.until("systemctl show -p MainPID,SubState outgate.service | tr '\\n' ' '", rf"MainPID=(?!{before}\b|0\b)\d+ SubState=running", 40, "not started again")
    assert "Watchdog timeout" in provider.journal(), provider.journal()
    assert provider.proxied().startswith("200"), provider.proxied()
    provider.do("rm /run/systemd/system/outgate.service.d/watchdog.conf; systemctl daemon-reload; systemctl restart outgate.service", 90)
    return f"running again after {took:.0f} s"


def killed(provider):
    """`kill -9`, ten times, each as soon as the daemon runs."""
    kill = "for i in 1 2 3 4 5 6 7 8 9 10; do until systemctl -q is-active outgate.service && pid=$(systemctl show -P MainPID outgate.service) && test $pid -gt 0; do sleep 0.1; done; kill -9 $pid; sleep 0.1; done"
    result = load(provider, 35, lambda: provider.do(kill, 120), rate=3)
    provider.ready()
    healthy(provider)
    restarts = int(provider.show("outgate.service", "NRestarts")["NRestarts"])
    assert restarts >= 9, f"{restarts} restarts"
    assert "ConnectionRefusedError" not in result["outcomes"] and "silence" not in result["outcomes"], f"refused: {result}"
    return f"{result['outcomes']}, the longest wait {result['longest']} s"


def healthy(provider):
    for unit in [*SOCKETS, "outgate.service"]:
        assert provider.state(unit) == "active", f"{unit}: {provider.state(unit)}; {provider.journal(unit)}"
    assert provider.proxied().startswith("200"), f"{provider.proxied()}; {provider.journal()}"


READYZ = "curl -s -m 5 -o /tmp/readyz -w '%{http_code} ' http://127.0.0.1:3190/readyz; cat /tmp/readyz"


def cannot_start(provider):
    """A restart after a typo: the copy that worked stays in force. Without the copy a daemon that stays up refuses each request
    at once. After a correction it starts again."""
    provider.do("cp -p /etc/outgate/outgate.toml /root/; sed -i '1i nonsense = [' /etc/outgate/outgate.toml")
    kept = provider.do("stat -c '%U %a' /var/lib/outgate-host /var/lib/outgate-host/worked.toml").split()
    assert kept == ["root", "755", "root", "644"], kept

    def goes_on():
        provider.do("systemctl restart outgate.service", 60)
        provider.until(READYZ, r"^503 (.|\n)*outgate\.toml:1:(.|\n)*worked\.toml", 20, "nothing is said of the copy")

    before = load(provider, 12, goes_on, rate=2)
    assert set(before["outcomes"]) == {"200"}, f"{before}; {provider.journal()}"

    def refuses():
        provider.do("mv /var/lib/outgate-host/worked.toml /root/; systemctl restart outgate.service", 60)
        provider.until(READYZ, r"^503 (.|\n)*not_configured", 20, "it is not said that nothing is in force")
        pid = provider.pid()
        time.sleep(5)
        assert provider.pid() == pid, f"started again: {provider.journal()}"
        assert provider.do("systemctl show -P StatusText outgate.service").count("not_configured") == 1

    during = load(provider, 15, refuses, rate=2)
    assert set(during["outcomes"]) <= {"200", "503"} and during["outcomes"].get("503", 0) > 5, f"{during}; {provider.journal()}"
    for unit in SOCKETS:
        assert provider.state(unit) == "active", f"{unit}: {provider.state(unit)}"
    provider.do("cp -p /root/outgate.toml /etc/outgate/")
    took = provider.until(READYZ, "^200 ", 60, "what was put right is not taken")
    healthy(provider)
    provider.until("ls /var/lib/outgate-host", "worked.toml", 10, "no copy is kept")
    return f"{before['outcomes']}, then {during['outcomes']}, the longest wait {during['longest']} s; at work again after {took:.1f} s"


def broken_list(provider):
    """A restart with a broken list: the last good list is in force, the daemon is not ready, and the journal says why."""
    provider.do("cp -p /etc/outgate/whitelist/local.rules /root/; echo 'evil.test' > /etc/outgate/whitelist/local.rules; echo 'http://' >> /etc/outgate/whitelist/local.rules")
    provider.do("systemctl restart outgate.service", 90)
    provider.until("curl -s -m 5 -w '%{http_code}' http://127.0.0.1:3190/readyz", "503", 20, "it says that it is ready")
    assert "for good.test" in provider.guest().output, "the last good list is not in force"
    assert provider.proxied("http://evil.test/").startswith("403"), "what the broken list has is in force"
    said = provider.journal()
    assert "local.rules:" in said, f"the journal does not name the line: {said}"
    provider.do("cp -p /root/local.rules /etc/outgate/whitelist/; systemctl reload outgate.service")
    provider.ready()


def nothing_gets_out(provider, served=False):
    """Nothing of what a guest tries gets out. Where outgate serves, it answers itself."""
    provider.mark()
    said = provider.do(f"{IN_GUEST} python3 /brought/probe.py all")
    # No rule allows what the probe asks for: its Host is evil.test.
    assert served or "answered" not in said, said
    leaks = [line for line in provider.arrived() if re.match(r"(packet|accept|asked)", line) and not re.search(r"icmp6 (13\d|143)$", line)]
    if served:
        # This is outgate's own query, whether its DNS server answers.
        leaks = [line for line in leaks if not re.fullmatch(r"packet 11\.0\.0\.1 11\.0\.0\.53 udp 53", line)]
    assert not leaks, f"{leaks[:5]}; {said}"
    # Refused, not dropped: no client waits.
    slow = [line for line in said.splitlines() if float(line.split()[-1]) > 2.5]
    assert not slow, f"not at once: {slow}"


def stop(provider):
    provider.do("systemctl stop 'outgate*.socket' outgate.service", 90)
    for unit in [*SOCKETS, "outgate.service"]:
        assert provider.state(unit) == "inactive", f"{unit}: {provider.state(unit)}"
    assert "outgate" in provider.do("nft list tables")
    nothing_gets_out(provider)


def stop_firewall(provider):
    provider.do("systemctl stop outgate-firewall.service")
    assert provider.state("outgate-firewall.service") == "inactive"
    nothing_gets_out(provider)


def flush(provider):
    provider.do("nft flush ruleset")
    assert not provider.do("nft list ruleset")
    assert provider.do("sysctl -n net.ipv4.ip_forward") == "1", "forwarding went off, so this shows nothing"
    provider.mark()
    provider.do(f"{IN_GUEST} python3 /brought/probe.py all")
    leaks = [line for line in provider.arrived() if re.match(r"packet (10\.42|fd42)", line) and not re.search(r"icmp6 (13\d|143)$", line)]
    assert not leaks, leaks[:5]


def start_again(provider):
    provider.do("systemctl start outgate-firewall.service outgate.socket outgate-admin.socket outgate-transparent.socket outgate-dns.socket", 90)
    # A connection starts the daemon.
    assert "for good.test" in provider.guest().output, provider.journal()
    provider.ready()
    healthy(provider)


def nftables(provider):
    """Debian's nftables.service flushes every ruleset; outgate's is applied again."""
    for verb in ("start", "reload", "restart"):
        provider.do(f"systemctl {verb} nftables.service")
        provider.until("nft list tables", r"inet outgate\n(.*\n)*table bridge outgate", 30, f"no ruleset after {verb} of nftables")
    # The unit is `reloading` while it applies the ruleset again.
    provider.until("systemctl is-active outgate-firewall.service", "^active", 30, "the firewall unit is not active")


def order(provider):
    """After a reboot: the firewall is applied before the network and before services that start guests, and sockets listen
    before the daemon starts."""
    provider.write("/etc/systemd/system/libvirtd.service", textwrap.dedent("""\
        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=/bin/sh -c 'nft list tables > /run/at-guests-start; ip rule >> /run/at-guests-start'
        [Install]
        WantedBy=multi-user.target
        """))
    provider.do("systemctl daemon-reload; systemctl enable -q libvirtd.service")
    provider.reboot()
    provider.until("systemctl is-system-running", "running|degraded", 120, "not up")
    entered = lambda unit, what: int(provider.show(unit, what)[what])  # noqa: E731
    applied = entered("outgate-firewall.service", "ActiveEnterTimestampMonotonic")
    assert applied, f"the firewall was not applied: {provider.journal('outgate-firewall.service')}"
    before_network, guests = entered("network-pre.target", "ActiveEnterTimestampMonotonic"), entered("libvirtd.service", "InactiveExitTimestampMonotonic")
    assert applied <= before_network and applied <= guests, f"firewall {applied}, network-pre {before_network}, guests {guests}"
    assert "inet outgate" in provider.do("cat /run/at-guests-start"), "no ruleset when guests start"
    daemon = entered("outgate.service", "InactiveExitTimestampMonotonic")
    for unit in SOCKETS:
        listening = entered(unit, "ActiveEnterTimestampMonotonic")
        assert 0 < listening <= daemon, f"{unit} {listening}, daemon {daemon}"
    assert provider.state("outgate-host.service") == "active", provider.journal("outgate-host.service")
    assert not (failed := provider.do("systemctl --failed --no-legend")), failed
    # The addresses of its listeners were added only now.
    provider.do("sh /brought/world.sh", 90)
    provider.do("outgate firewall apply", 60)
    provider.ready()
    serves(provider)
    return f"firewall at {applied / 1e6:.1f} s, network at {before_network / 1e6:.1f} s, guests at {guests / 1e6:.1f} s, daemon at {daemon / 1e6:.1f} s"


# Drop-ins written by hand, as the first builds of 0.1.0 documented and printed them.
DROP_INS = {
    "/etc/systemd/system/outgate-dns.socket.d/override.conf": "[Socket]\nListenStream=\n" + 2 * f"ListenStream={OTHER_DNS}\nListenDatagram={OTHER_DNS}\n",
    "/etc/systemd/system/outgate-transparent.socket.d/zz-listen.conf": "[Socket]\nListenStream=\n" + 2 * "ListenStream=0.0.0.0:3129\nListenStream=[::]:3129\n",
}
# Makes what is kept that of a build before these files had versions.
UNVERSIONED = r"""
import glob, json, re
guests, record = "/run/outgate/control.sock.guests/guests.json", glob.glob("/run/outgate-firewall/tables-*.json")[0]
for path, earlier in [(guests, lambda kept: kept["guests"]), (record, lambda kept: {name: kept[name] for name in kept if name != "version"})]:
    kept = json.load(open(path))
    if "version" in kept:
        with open(path, "r+") as file:
            json.dump(earlier(kept), file)
            file.truncate()
for name in ["worked.toml", "applied.toml", "interfaces"]:
    with open("/var/lib/outgate-host/" + name, "r+") as file:
        lines = [line for line in file if not re.match("# (A copy that outgate keeps|outgate, guests' interfaces), version ", line)]
        file.seek(0)
        file.writelines(lines)
        file.truncate()
"""


def as_of_old(provider):
    """An operator's host: an edited configuration with another address, its drop-ins, a registered guest, no versions."""
    for path, text in DROP_INS.items():
        provider.write(path, text)
    provider.write("/etc/outgate/outgate.toml", "# by the operator\n" + CONFIG.replace("10.42.42.1:53", OTHER_DNS))
    provider.do("systemctl daemon-reload; systemctl stop outgate-dns.socket outgate-transparent.socket; systemctl restart outgate.service", 90)
    provider.do("outgate firewall apply; outgate guest add here --address 127.0.0.1", 60)
    provider.write("/root/unversioned.py", UNVERSIONED)
    provider.until("ls /var/lib/outgate-host", "worked.toml", 20, "no copy is kept")
    provider.do("python3 /root/unversioned.py")
    kept = provider.do("cat /run/outgate/control.sock.guests/guests.json /run/outgate-firewall/tables-*.json /var/lib/outgate-host/worked.toml /var/lib/outgate-host/interfaces")
    assert kept.startswith("[") and "version" not in kept, kept
    provider.ready()


def upgrade(provider):
    """Upgrades to the version under test during a download and under load, a host as it was set up with an earlier one. Edited
    files stay, drop-ins stay in force, and a registered guest stays registered."""
    as_of_old(provider)
    provider.do(f"echo '# by the operator' >> {SHIPPED_LIST}")
    # dpkg puts its new version beside the edited list; no daemon reads it.
    files = f"sha256sum /etc/outgate/outgate.toml /etc/outgate/whitelist/*.rules {' '.join(DROP_INS)}"
    held = "systemctl is-enabled outgate-dns.socket outgate-transparent.socket; systemctl show -P Listen outgate-dns.socket outgate-transparent.socket; ss -Hlntup | awk '/\"outgate\"/ {print $1, $5}' | sort"
    before, kept, sockets = provider.pid(), provider.do(files), provider.do(held)
    assert OTHER_DNS in sockets, sockets
    provider.do(f"rm -f /tmp/download*; ({PROXY} --max-time 120 http://good.test:8080/slow -o /tmp/download -w '%{{size_download}}' > /tmp/download.end 2>&1 &)")
    said = []
    # Unpacking uses all of the emulated processor.
    result = load(provider, 30, lambda: said.append(provider.do("dpkg --force-confdef -i /brought/outgate.deb 2>&1", 120)), provider.rate // 4)
    version = provider.do("dpkg-query -W -f '${Status} ${Version}' outgate")
    assert version.startswith("install ok installed ") and not version.endswith(EARLIER), f"{version}: {said}"
    assert provider.pid() != before, f"the old one goes on: {said}"
    assert provider.do(files) == kept, f"files of the operator's changed: {said}"
    # The daemon drains the download for as long as it may; on real machines enough time is left for the rest.
    # An emulated machine has to read a new program as well, and takes up to twice its usual time.
    limit = LONGEST_WAIT + 2 * provider.restart
    assert set(result["outcomes"]) == {"200"} and result["longest"] < limit, f"{result}, limit {limit}; {provider.journal()}"
    healthy(provider)
    downloaded = int(provider.do("cat /tmp/download.end"))
    assert downloaded > 1024, f"the download never ran: {downloaded} bytes"
    assert provider.do(held) == sockets, f"{sockets}, and now {provider.do(held)}"
    assert "here" in provider.do("outgate guest list"), provider.journal(lines=100)
    serves(provider)
    provider.do("outgate firewall status")
    applied = provider.do("outgate listen apply")
    assert "nothing to change" in applied, applied
    # What is kept has versions now.
    provider.do("outgate guest add another --address 10.99.0.9; outgate guest remove another; outgate firewall apply", 60)
    provider.until("tail -qn 1 /var/lib/outgate-host/*.toml", "(?s)version 1.*version 1", 20, "the copies have no version")
    for path in ("/run/outgate/control.sock.guests/guests.json", "/run/outgate-firewall/tables-*.json"):
        assert '"version":1' in provider.do(f"cat {path}"), provider.do(f"cat {path}")
    first = provider.do("head -n 1 /var/lib/outgate-host/interfaces")
    assert "version 1" in first, first
    return f"{result['opened']} at {result['rate']}/s, the longest wait {result['longest']} s; {downloaded} bytes of the download"


def plain_again(provider):
    """The host as it was before the upgrade: without drop-ins and registered guests."""
    provider.do(f"outgate guest remove here; rm -rf {' '.join(os.path.dirname(path) for path in DROP_INS)}")
    provider.write("/etc/outgate/outgate.toml", CONFIG)
    provider.do("systemctl daemon-reload; systemctl stop outgate-dns.socket outgate-transparent.socket; systemctl restart outgate.service", 90)
    provider.do("outgate firewall apply", 60)
    provider.ready()
    healthy(provider)


def downgrade(provider):
    """Back to the build of --earlier. It knows no versions, and says which file it cannot read; as it prints, it serves again."""
    provider.do("outgate guest add another --address 10.99.0.9; outgate guest remove another; outgate firewall remove", 60)
    said = provider.run("dpkg --force-downgrade --force-confdef -i /brought/earlier.deb 2>&1", 120).output
    provider.until("journalctl -u outgate.service -n 40 -o cat --no-pager", "guests.json: .*; remove it and register them again", 20, f"it says nothing: {said}")
    provider.do("rm /run/outgate/control.sock.guests/guests.json; systemctl reset-failed outgate.service; systemctl restart outgate.service; systemctl restart outgate-firewall.service", 90)
    provider.ready()
    healthy(provider)
    serves(provider)
    provider.do("dpkg --force-confdef -i /brought/outgate.deb 2>&1", 120)
    provider.ready()
    serves(provider)
    plain_again(provider)


def upgrade_refused(provider):
    """Upgrades with a configuration that the new version refuses: the running daemon stays, and dpkg's output says what to do."""
    provider.do("cp -p /etc/outgate/outgate.toml /root/; echo 'nonsense = 1' >> /etc/outgate/outgate.toml")
    pids = lambda: [provider.pid(), provider.show("outgate-host.service", "MainPID")["MainPID"]]  # noqa: E731
    # A table that was replaced has another number.
    ruleset = lambda: provider.do("nft -a list table inet outgate").splitlines()[0]  # noqa: E731
    before, rules = pids(), ruleset()
    said = provider.run("dpkg --force-confdef -i /brought/outgate.deb 2>&1", 120).output
    assert "nonsense" in said and "not restarted" in said and "holds guests" in said, said
    assert pids() == before and ruleset() == rules, "restarted all the same"
    healthy(provider)
    # Once the file is corrected, the printed commands replace all that still runs of the old version.
    remedy = re.search(r"then: (systemctl .*)", said)
    assert remedy, said
    provider.do(f"cp -p /root/outgate.toml /etc/outgate/; {remedy[1]}", 120)
    provider.ready()
    assert not set(pids()) & set(before), f"{before} go on after {remedy[1]}"
    assert ruleset() != rules, f"the ruleset of before after {remedy[1]}"
    healthy(provider)
    provider.do("dpkg --force-confdef -i /brought/outgate.deb 2>&1", 120)
    healthy(provider)


def remove(provider):
    # Enabled as by an operator who applies the firewall by a hook; otherwise the firewall's unit starts it.
    assert provider.run("systemctl is-enabled outgate-host.service").output.strip() == "disabled"
    provider.do("systemctl enable -q outgate-host.service")
    # One unit of `outgate listen apply`, beside those of the package.
    provider.do(f"sed -i 's/^\\[listen\\]$/&\\nproxy = [\"127.0.0.1:3128\", \"{ONE_MORE}\"]/' /etc/outgate/outgate.toml; outgate listen apply", 90)
    unit = provider.do("cd /etc/systemd/system; ls outgate-listen-*.socket")
    assert provider.do(f"systemctl is-enabled {unit}") == "enabled"
    said = provider.do("dpkg -r outgate 2>&1", 120)
    assert provider.run(f"systemctl is-enabled {unit}").output.strip() == "disabled", "a socket of no service"
    assert not provider.do(f"ls /etc/systemd/system/*.wants/{unit} 2>/dev/null; ss -Hlnt src {ONE_MORE}; systemctl list-units --failed --no-legend 'outgate*'")
    assert "br0" in said, f"nothing about the guests' interface: {said}"
    assert provider.run("test -e /etc/outgate/outgate.toml && ! test -e /usr/bin/outgate && ! pgrep -x outgate").status == 0, said
    nothing_gets_out(provider)


def boot_on_a_typo(provider):
    """A reboot with a configuration that cannot be read: the ruleset applied last is in force before services that start guests."""
    provider.do("cp -p /etc/outgate/outgate.toml /root/; sed -i '1i nonsense = [' /etc/outgate/outgate.toml")
    provider.reboot()
    provider.until("systemctl is-system-running", "running|degraded", 120, "not up")
    assert "inet outgate" in provider.do("cat /run/at-guests-start"), f"no ruleset when guests start: {provider.journal('outgate-firewall.service')}"
    said = provider.journal("outgate-firewall.service")
    assert "outgate.toml:1:" in said and "applied last is in force again" in said, said
    # A guest, and a host that forwards.
    provider.do("sh /brought/world.sh", 90)
    nothing_gets_out(provider, served=True)
    provider.until(READYZ, r"^503 (.|\n)*worked\.toml", 30, "nothing is said of the copy")
    provider.do("cp -p /root/outgate.toml /etc/outgate/; systemctl restart outgate-firewall.service outgate.service", 90)
    provider.until(READYZ, "^200 ", 60, "what was put right is not taken")
    serves(provider)


def again(provider):
    """Installs again: what was enabled is enabled and works."""
    said = provider.do("dpkg --force-confdef -i /brought/outgate.deb 2>&1", 120)
    all_active(provider, said)
    provider.ready()
    healthy(provider)
    status = provider.run(f"curl -s --max-time 20 -x http://{ONE_MORE} -o /dev/null -w '%{{http_code}}' http://good.test/").output
    assert status == "200", f"{status}: {said}; {provider.journal()}"


def purge(provider):
    # As setup writes it; postrm looks for this line.
    provider.write("/var/lib/outgate-host/setup.json", '{\n  "files": [\n    {\n      "path": "/etc/docker/daemon.json"\n    }\n  ]\n}\n')
    said = provider.do("dpkg -P outgate 2>&1", 120)
    assert "take it out, then `systemctl restart docker`" in said, said
    assert "br0" in said, f"nothing about the guests' interface: {said}"
    left = provider.run("ls -d /etc/outgate /var/lib/outgate /var/lib/outgate-host /var/log/outgate 2>/dev/null; find /etc/systemd /usr/lib/systemd -name 'outgate*'").output.split()
    assert not left, f"left behind: {left}"
    nothing_gets_out(provider)
    # The commands that open the guests at once, as removal and purge print them.
    commands = dict.fromkeys(found[1] for line in said.splitlines() if (found := re.fullmatch(r"outgate: {5}(nft .*|for .*)", line)))
    assert len(commands) == 2, said
    for command in commands:
        provider.run(command)
    control(provider)


def registered(provider, status):
    """A registered guest is limited to its manifest, and is still registered after a restart."""
    asks = '{{"createdAt":"2022-09-07T02:57:00Z","expiresAt":"2100-01-01T00:01:00Z","compManifest":{{"net":{{"inet":{{"out":{{"urls":["{}"]}}}}}}}}}}'
    add = "outgate guest add here --address 127.0.0.1 --manifest /root/manifest.json"
    provider.write("/root/manifest.json", asks.format("http://first.test"))
    said = provider.do(f"{add} 2>&1; echo code $?")
    assert "Everyone rule didn't match whitelist" in said and "code 1" in said, said
    provider.write("/root/manifest.json", asks.format("https://second.test"))
    provider.do(add)
    assert status("second.test") == "403", "a scheme that the manifest does not name"
    provider.do("outgate guest remove here")
    provider.write("/root/manifest.json", asks.format("http://second.test"))
    provider.do(f"{add}; systemctl restart outgate.service", 90)
    provider.ready()
    said = provider.do("outgate guest list; ls -ld /run/outgate/control.sock.guests")
    assert "here" in said and "drwx------ 2 outgate outgate" in said, said
    assert status("second.test") == "502", provider.journal()
    provider.do("outgate guest remove here")
    # Pinned, also by the unit, which has fewer privileges than the process that registers.
    provider.do("outgate guest add pinned --address 10.99.0.9 --interface tap99; systemctl reload outgate-firewall.service", 90)
    held = provider.do("nft list ruleset")
    assert "10.99.0.9" in held, held
    provider.do("outgate firewall status; outgate guest remove pinned; outgate firewall status")
    assert "10.99.0.9" not in provider.do("nft list table inet outgate")
    provider.ready()


def golem(provider):
    """A provider's data dir below a home that only its owner may enter; a drop-in makes it visible to the unit."""
    data, settings, drop = DATA_DIR, "/etc/outgate/outgate.toml", "/etc/systemd/system/outgate.service.d/golem.conf"
    listed = '{{"patterns":[{{"domain":"{}","match":"strict"}}]}}'

    def status(name):
        return provider.proxied(f"http://{name}/").split("\n")[0]

    provider.write(f"{data}/domain_whitelist.json", listed.format("first.test"))
    provider.do(f"chmod 700 /home/golem; cp -p {settings} /root/before.toml")
    provider.write(drop, f"[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths={data}\n")
    provider.do(f"printf '[golem]\\ndata_dir = \"{data}\"\\n' >> {settings}; outgate check; systemctl daemon-reload; systemctl restart outgate.service", 90)
    provider.ready()
    # Either allowed and unknown to DNS, or refused.
    assert (status("first.test"), status("second.test")) == ("502", "403"), f"{status('first.test')}; {provider.journal()}"
    provider.write(f"{data}/new", listed.format("second.test"))
    provider.do(f"mv {data}/new {data}/domain_whitelist.json")
    taken = provider.until(f"{PROXY} -o /dev/null -w '%{{http_code}}' http://second.test/", "502", 10, "the provider's edit is not in force")
    assert status("first.test") == "403", "what the provider took off his list is still allowed"
    registered(provider, status)
    provider.do(f"cp -p /root/before.toml {settings}; rm {drop}; systemctl daemon-reload; systemctl restart outgate.service", 90)
    provider.ready()
    assert status("second.test") == "403"
    return f"an edit in force after {taken:.1f} s"


def published(provider):
    """The unit fetches the published list: without a network it fails, then from a file, with the unit unchanged otherwise."""
    unit, drop, source = "outgate-golem-sync.service", "/etc/systemd/system/outgate-golem-sync.service.d/from.conf", "/srv/strict.lst"
    file = "/etc/outgate/whitelist/golem-published.json"
    # This Debian has no root certificates, which is another failure than having no connection.
    assert provider.run(f"systemctl start {unit}", 60).status and "install ca-certificates" in provider.journal(unit), provider.journal(unit)
    provider.write(drop, "[Service]\nEnvironment=SSL_CERT_FILE=/brought/ca.crt\n")
    provider.do(f"systemctl daemon-reload; systemctl start {unit}", 130)
    assert "the list in force stays" in provider.journal(unit), provider.journal(unit)
    assert provider.run(f"test -e {file}").status, "something was published where nothing can be fetched"
    provider.write(source, "published.test\n")
    provider.write(drop, f"[Service]\nExecStart=\nExecStart=/usr/bin/outgate golem sync --offline-ok --from {source}\n")
    provider.do(f"systemctl daemon-reload; systemctl start {unit}", 60)
    assert provider.do(f"stat -c '%U:%G %a' {file}").strip() == "root:root 644", provider.journal(unit)
    # Allowed and unknown to DNS.
    provider.until(f"{PROXY} -o /dev/null -w '%{{http_code}}' http://published.test/", "502", 10, "the published list is not in force")
    provider.write(source, "")
    assert provider.run(f"systemctl start {unit}", 60).status, "an empty list is no failure"
    assert "the new list has no entries" in provider.journal(unit), provider.journal(unit)
    provider.do("systemctl enable -q --now outgate-golem-sync.timer")
    assert provider.state("outgate-golem-sync.timer") == "active"
    provider.do(f"systemctl disable -q --now outgate-golem-sync.timer; rm -r {file} {source} {os.path.dirname(drop)}; systemctl daemon-reload; systemctl reset-failed {unit}")


WHOLE = bool(os.environ.get("OUTGATE_TEST_ALL"))
SABOTAGES = sabotage.checks(serves, variants=WHOLE)
CHECKS = [
    ("control: without outgate the guest gets out", control),
    ("install", install),
    ("privileges of the fresh daemon", privileges),
    ("outgate setup: a guarded guest, and back", set_up),
    ("configure: sockets, firewall, restart", configure),
    ("serves a guest over TPROXY and DNS", serves),
    ("privileges while it serves", privileges),
    ("outgate listen apply, as printed where no unit listens", listens),
    ("outgate setup --migrate", migrates),
    ("the running proof", proves),
    ("a bridge port that appears later", later),
    *SABOTAGES,
    ("a command that becomes a guest, as printed", executes),
    ("systemd-analyze security", exposure),
    ("reload", reload),
    ("a Golem provider's data dir", golem),
    ("the published list of Golem Network", published),
    ("restart under load", restart),
    ("DNS bindings over a restart", bindings),
    ("watchdog", watchdog),
    ("kill -9 ten times", killed),
    ("a configuration that cannot be used", cannot_start),
    ("restart with a broken list", broken_list),
    ("stop: nothing gets out", stop),
    ("firewall unit stopped: nothing gets out", stop_firewall),
    ("ruleset flushed: nothing gets out", flush),
    ("started again by a guest's connection", start_again),
    ("nftables started, reloaded, restarted", nftables),
    ("boot order", order),
    ("boot on a configuration that cannot be read", boot_on_a_typo),
]
# Only with a package to install.
PACKAGE_CHECKS = [
    ("upgrade under load, with a download open", upgrade),
    ("the host as before", plain_again),
    ("upgrade with a broken configuration", upgrade_refused),
    ("remove", remove),
    ("install again", again),
    ("purge", purge),
]

# From a package of an earlier build, with --earlier.
EARLIER_CHECKS = [
    ("install", install),
    ("configure: sockets, firewall, restart", configure),
    ("serves a guest over TPROXY and DNS", serves),
    ("upgrade under load, with a download open", upgrade),
    ("downgrade: refused with a sentence, then served", downgrade),
    ("remove", remove),
    ("install again", again),
    ("purge", purge),
]

BOOTS = [order, boot_on_a_typo]
# Checks for which a container is enough; it is ten times as fast as an emulated machine.
FAST = [set_up, listens, migrates, proves, later, executes, exposure, reload, golem, published, restart, bindings, watchdog, killed, cannot_start, broken_list]
FAST += [upgrade, plain_again, upgrade_refused, remove, again, purge]
if not WHOLE:
    FAST += [check for _, check in SABOTAGES]


def bring(directory, outgate, old=None):
    """Makes the folder that the machine gets."""
    brought = os.path.join(directory, "brought")
    os.mkdir(brought)
    for name in ("world.sh", "load.py", "probe.py", "ask.py", "lay.sh", "attacks.py", "neighbour.py", "image.sh"):
        shutil.copy(os.path.join(HERE, "provider", name), brought)
    shutil.copy(os.path.join(HERE, "outside.py"), brought)
    certificates(brought)
    if outgate.endswith(".deb"):
        shutil.copy(outgate, os.path.join(brought, "outgate.deb"))
        earlier(old or outgate, os.path.join(brought, "earlier.deb"))
        return brought
    # Symbols are nine tenths of a debug build, and of the time it takes to read it there.
    subprocess.run(["strip", "-o", os.path.join(brought, "outgate"), outgate], check=True)
    for folder in ("systemd", "whitelist", "packaging"):
        shutil.copytree(os.path.join(ROOT, folder), os.path.join(brought, folder))
    return brought


def earlier(package, path):
    """The same package under an earlier version number, with one list that differs."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["dpkg-deb", "-R", package, work], check=True)
        for name, change in (("DEBIAN/control", lambda text: re.sub(r"(?m)^Version: .*", f"Version: {EARLIER}", text)),
                             (SHIPPED_LIST.lstrip("/"), lambda text: text + "# as it was then\n")):
            with open(os.path.join(work, name), encoding="utf-8") as file:
                text = file.read()
            with open(os.path.join(work, name), "w", encoding="utf-8") as file:
                file.write(change(text))
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", work, path], check=True, stdout=subprocess.DEVNULL)


def certificates(folder):
    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl("req", "-x509", *curve, "-subj", "/CN=VM test authority", "-keyout", "ca.key", "-out", "ca.crt", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", *curve, "-subj", "/CN=good.test", "-keyout", "tls.key", "-out", "tls.csr")
    with open(os.path.join(folder, "extensions"), "w", encoding="ascii") as file:
        file.write("subjectAltName=DNS:good.test,DNS:evil.test\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", "tls.crt")


def skips():
    """Says why nothing can be run here, and returns the exit code; else nothing. From then on a signal ends the run in order."""
    for lacking, reason in ((os.geteuid() != 0, "requires root, to make a disk image"), (platform.machine() != "x86_64", "requires an x86_64 userland")):
        if lacking:
            print(f"skipped: {reason}")
            return 1 if os.environ.get("CI") == "true" else 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outgate", nargs="?", default=os.path.join(ROOT, "target", "debug", "outgate"), help="the package under test, or the program, which is installed as the package does")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only checks with TEXT in their name (those before may be needed)")
    parser.add_argument("--container", action="store_true", help="in a container and not in an emulated machine; without the checks that boot it again")
    parser.add_argument("--faster", action="store_true", help="in a container, where one can be made, and beside it in the machine what requires one")
    parser.add_argument("--earlier", metavar="PACKAGE", help="a package of an earlier build, from which this one is upgraded and to which it is downgraded, in place of all other checks")
    arguments = parser.parse_args()
    if (code := skips()) is not None:
        return code
    begin = time.monotonic()
    cache = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "vm")
    packaged = arguments.outgate.endswith(".deb")
    tally = Tally(EARLIER_CHECKS if arguments.earlier else CHECKS + PACKAGE_CHECKS if packaged else CHECKS)
    with tempfile.TemporaryDirectory(prefix="outgate-service-") as directory:
        brought = bring(directory, arguments.outgate, arguments.earlier)
        make = lambda container: Provider(directory, cache, brought, container)
        skipped = BOOTS if arguments.container else []
        with contextlib.ExitStack() as stack:
            if arguments.faster and (contained := beside(make, tally, arguments.only, stack)):
                skipped = FAST
            provider = make(arguments.container)
            provider.is_old = bool(arguments.earlier)
            tally.perform(provider, arguments.only, skipped)
            if arguments.faster and contained:
                contained.result()
    left_out = 0 if packaged else len(PACKAGE_CHECKS)
    print(f"service: {tally.passed} passed, {tally.failed} failed, {left_out} skipped, in {time.monotonic() - begin:.0f} s")
    return 1 if tally.failed else 0


def beside(make, tally, only, stack):
    """Starts the checks in a container, which mostly wait, beside what follows; what comes of them, or nothing where none can be made."""
    try:
        provider = make(True)
    except (MachineError, OSError) as error:
        print(f"no container can be made here, so all of it runs in the machine: {error}", flush=True)
        return None
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    contained = pool.submit(tally.perform, provider, only, BOOTS, "in a container: ")
    # The container and all its processes end before this process, however that ends.
    stack.callback(lambda: contained.done() or provider.machine.stop())
    return contained


class Tally:
    """The results of the checks."""

    def __init__(self, checks):
        self.checks = checks
        self.passed = self.failed = 0

    def perform(self, provider, only, skipped, where=""):
        """Runs the checks in order, then stops the machine. `where` precedes each line."""
        begin = time.monotonic()
        try:
            provider.do("sh /brought/world.sh", 90)
            print(f"{where}booted in {time.monotonic() - begin:.1f} s", flush=True)
            for name, check in self.checks:
                if (only and not any(text in name for text in only)) or check in skipped:
                    continue
                start = time.monotonic()
                try:
                    verdict, note = "ok", check(provider) or ""
                    self.passed += 1
                except (AssertionError, MachineError, OSError, LookupError, ValueError) as error:
                    verdict, note = "FAIL", str(error)
                    self.failed += 1
                print(f"{where}{verdict:5} {name:45} {time.monotonic() - start:6.1f} s  {note}", flush=True)
        finally:
            provider.machine.stop()


if __name__ == "__main__":
    sys.exit(main())
