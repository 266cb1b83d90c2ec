#!/usr/bin/env python3
"""outgate on a machine with Podman (netavark, aardvark-dns): containers as guests, with nothing set in them.

Boots Debian with its podman, installs the package there, and guards Podman's networks as docs/containers.md says.
Judged by what arrived outside, by what the machine's own resolver was asked, and by what clients in containers saw.
By default in a container with systemd, at this processor's speed; --machine boots it under QEMU. --release 13 takes
Debian 13.
"""

import os
import re
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True
import debian  # noqa: E402
import engine  # noqa: E402
from engine import ATTEMPT, EVIL, GOOD, documented, later, published, separate, serves, socket_holder  # noqa: E402

# Its name, and what is a package of its own there.
RELEASES = {"12": ("bookworm", ""), "13": ("trixie", " passt")}
PACKAGES = "systemd systemd-sysv adduser init-system-helpers nftables iproute2 python3 curl openssl procps kmod iptables busybox-static"
PACKAGES += " podman netavark aardvark-dns runc dbus uidmap slirp4netns"
DISABLED = "podman.service podman.socket podman-auto-update.timer podman-restart.service"
HEADING = "## Podman"
CONTAINERS = "/etc/containers/containers.conf"
# crun, the usual one, needs a right for its filter of devices that a container may lack (CAP_SYS_RESOURCE), and so may the
# controller of processes.
ENGINE = "[containers]\npids_limit = 0\n[engine]\nruntime = \"runc\"\n[network]\nnetwork_backend = \"netavark\"\n"
# br0 is another bridge of this world.
WORLD = """\
[firewall]
not_guests = ["br0"]
[resolver]
servers = ["11.0.0.53"]
"""


def kind(release):
    name, more = RELEASES[release]
    return debian.Kind(name, PACKAGES + more, "2000M", DISABLED)


class Podman(engine.Engine):
    """The machine with Podman, which has no daemon."""

    PROGRAM = "podman"
    # Docker gives it by default.
    RUN = "run --cap-add NET_RAW"
    SOCKET = "/run/podman/podman.sock"
    OWN = r"(10\.(88|89)\.|10\.42\.42\.|192\.168\.|fd)"
    # The ways by which aardvark-dns answers, as the control found them.
    ways = ()

    def gateway(self, container):
        """The address of its bridge, where aardvark-dns listens."""
        return self.do(f"podman inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.Gateway}}}}{{{{end}}}}' {container}")

    def bridge(self, network):
        return self.do(f"podman network inspect {network} | sed -n 's/.*\"network_interface\": \"\\(.*\\)\",/\\1/p'")

    def ask(self, container, name, way, server):
        """What a resolver answers a container."""
        return self.in_network_of(container, f"timeout 5 python3 /brought/ask.py {name} {way} {server}")


def prepare(podman):
    podman.do("sh /brought/image.sh", 300)
    podman.start_resolver()
    podman.write(CONTAINERS, ENGINE)
    podman.make_image()
    said = podman.do("podman --version; podman info -f '{{.Host.NetworkBackend}} {{.Store.GraphDriverName}}'").replace("\n", ", ")
    assert " netavark " in said, said
    return said


def control(podman):
    """Without outgate containers get out, reach each other, and their names reach the machine's resolver by aardvark-dns."""
    podman.do("podman network create c1 >/dev/null; podman network create c2 >/dev/null")
    podman.start("a", "--network c1")
    podman.start("b", "--network c1")
    podman.start("c", "--network c2")
    podman.begin()
    podman.inside("a", ATTEMPT)
    seen = podman.arrived()
    for wanted in (f"accept {EVIL} 80", f"{EVIL} icmp", "asked 8.8.8.8 evil.test"):
        assert any(wanted in line for line in seen), f"no {wanted}: {seen[-8:]}"
    assert any("evil.test" in line for line in podman.asked_past()), "the names do not pass the machine's resolver here"
    podman.listen("b", 8000)
    podman.listen("c", 8000)
    assert podman.reads("a", "b", 8000) and podman.reads("a", podman.address("c"), 8000), "containers do not reach each other here"
    found = []
    for way in ("udp", "tcp"):
        podman.resolver_mark()
        podman.ask("a", f"leak-{way}.evil.test", way, podman.gateway("a"))
        found += [way] if any(f"leak-{way}." in line for line in podman.asked_past()) else []
    assert "udp" in found, "aardvark-dns asks nobody"
    podman.ways = tuple(found)
    podman.end("a", "b", "c")
    podman.do("podman network rm c1 c2 >/dev/null")
    return f"names leave by {', '.join(found)}"


def setup(podman):
    """The command of docs/containers.md, as printed, where no bridge of Podman's is there yet; then back."""
    podman.do("dpkg -i /brought/outgate.deb 2>&1", 120)
    command = re.match(r"# (.*)", documented(HEADING, "console")[0])[1]
    begin = time.monotonic()
    podman.do(command, 180)
    took = time.monotonic() - begin
    podman.do("outgate whitelist add good.test; podman network create first >/dev/null")
    podman.start("s0")
    podman.start("s1", "--network first")
    serves(podman, "s0")
    serves(podman, "s1")
    podman.end("s0", "s1")
    podman.do("podman network rm first >/dev/null; outgate setup --undo && outgate whitelist remove good.test", 120)
    return f"{took:.1f} s"


def guard(podman):
    """The configuration of docs/containers.md, by hand."""
    (text,) = [block for block in documented(HEADING, "toml") if "guest_interfaces" in block]
    podman.write("/etc/outgate/outgate.toml", text)
    podman.write("/etc/outgate/conf.d/10-world.toml", WORLD)
    podman.do("outgate whitelist add good.test; outgate firewall apply", 60)
    podman.do("systemctl enable -q --now outgate-firewall.service", 120)
    podman.do("outgate listen apply", 120)
    podman.all_well()


def names(podman):
    """aardvark-dns listens on the bridge's address in the machine's own network, and is never asked."""
    podman.do("podman network create jobs >/dev/null")
    podman.start("j1", "--network jobs")
    server = podman.gateway("j1")
    assert "aardvark-dns" in podman.do(f"ss -Hlnup 'src {server}'"), "aardvark-dns does not listen, so nothing is shown"
    assert f"nameserver {server}" in podman.inside("j1", "cat /etc/resolv.conf").output
    for way in ("udp", "tcp"):
        podman.begin()
        said = podman.ask("j1", f"leak-{way}.evil.test", way, server)
        assert "rcode 3" in said.output, f"{way}: {said}"
        said = podman.ask("j1", "good.test", way, server)
        assert GOOD in said.output, f"{way}: {said}"
        podman.nothing_left()
    # What this costs: other containers have no names.
    podman.start("j0", "--network jobs")
    for name in ("j0", "j0.dns.podman"):
        said = podman.ask("j1", name, "udp", server)
        assert "rcode 3" in said.output, said
    podman.end("j0")


def other_port(podman):
    """With `dns_bind_port` aardvark-dns listens on another port, and Podman's own rule brings port 53 there."""
    podman.end("j1")
    podman.write(CONTAINERS, ENGINE + "dns_bind_port = 5300\n")
    podman.start("j1", "--network jobs")
    server = podman.gateway("j1")
    assert "aardvark-dns" in podman.do(f"ss -Hlnup 'src {server}:5300'"), "aardvark-dns does not listen there"
    assert "5300" in podman.do("iptables-save -t nat; nft list ruleset"), "no rule of Podman's brings port 53 there"
    for way in ("udp", "tcp"):
        podman.begin()
        assert "rcode 3" in podman.ask("j1", f"leak-{way}.evil.test", way, server).output, way
        assert GOOD in podman.ask("j1", "good.test", way, server).output, way
        podman.nothing_left()
    podman.end("j1")
    podman.write(CONTAINERS, ENGINE)
    podman.start("j1", "--network jobs")


def run(podman):
    podman.start("d1")
    serves(podman, "d1")
    serves(podman, "j1")


def between(podman):
    """`between_guests = "allow"` and a name from `--add-host`, as docs/containers.md prints them."""
    commands, (policy,) = documented(HEADING, "console")[1], [block for block in documented(HEADING, "toml") if "between_guests" in block]
    path = re.match(r"# (\S+)\n", policy)[1]
    podman.do("podman tag job postgres:16 app:1")
    podman.write(path, policy)
    for command in re.findall(r"(?m)^# (.*)", commands):
        # The images of the page have a command of their own.
        podman.do(command + (" sleep 100000" if command.startswith("podman run") else ""), 60)
    podman.do("podman network create other >/dev/null")
    podman.start("other", "--network other")
    for name in ("db", "other"):
        podman.listen(name, 5432)
    assert podman.reads("app", "db", 5432), "the application does not reach its database by name"
    assert podman.in_network_of("app", f"busybox ping -c 1 -W 2 {podman.address('db')}").status == 0, "ICMP is refused between them"
    database = podman.address("db")
    for source, target in (("app", podman.address("other")), ("other", database), ("j1", database), ("d1", database)):
        assert not podman.reads(source, target, 5432), f"{source} reaches {target}"
    serves(podman, "app")
    serves(podman, "other")
    bridge = podman.bridge("shop")
    podman.until("outgate status", rf"guarding {bridge}: 2 guests, who reach each other\n", 20, "status does not say so")
    # With br_netfilter frames between them pass the rules of IP as well.
    netfilter = podman.run("test -e /proc/sys/net/bridge/bridge-nf-call-iptables").status == 0
    if netfilter:
        podman.do("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
        assert podman.reads("app", "db", 5432, 10), "with br_netfilter"
        assert not podman.reads("j1", database, 5432), "with br_netfilter"
        serves(podman, "app")
        podman.do("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    podman.do(f"rm {path}; outgate firewall apply", 60)
    assert not podman.reads("app", "db", 5432), "refused again, and they still reach each other"
    podman.end("app", "db", "other")
    podman.do("podman network rm shop other >/dev/null")
    return "with br_netfilter too" if netfilter else "no br_netfilter here"


def api(podman):
    """The socket of the API, which a unit of its own opens."""
    podman.do("systemctl start podman.socket", 60)
    socket_holder(podman)
    podman.do("systemctl stop podman.socket podman.service", 60)


def reload(podman):
    """Podman writes its rules anew, and containers come and go: nothing gets out."""
    podman.begin()
    podman.do("podman network reload --all >/dev/null && podman restart -t 0 j1 d1 >/dev/null", 120)
    podman.nothing_left()
    serves(podman, "j1")
    serves(podman, "d1")
    podman.all_well()


CHECKS = [
    ("Podman, an image, a resolver on loopback", prepare),
    ("control: without outgate containers and names get out", control),
    ("setup, as printed, and undone", setup),
    ("guard podman*, as printed", guard),
    ("names: aardvark-dns is not asked, UDP and TCP", names),
    ("names: aardvark-dns on another port", other_port),
    ("podman run: served, and nothing else", run),
    ("networks made later, from their first packet", later),
    ("containers do not reach each other", separate),
    ("between_guests and a database by name, as printed", between),
    ("a container that holds podman.sock", api),
    ("a published port", published),
    ("podman network reload, and restarts", reload),
]


if __name__ == "__main__":
    sys.exit(engine.main(__doc__, lambda release: (Podman, kind(release)), CHECKS, RELEASES))
