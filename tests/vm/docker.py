#!/usr/bin/env python3
"""outgate on a machine with Docker: containers as guests, with nothing set in them.

Boots Debian with its docker.io, installs the package there, and guards Docker's networks as docs/containers.md says.
Judged by what arrived outside, by what the machine's own resolver was asked, and by what clients in containers saw.
By default in a container with systemd, at this processor's speed; --machine boots it under QEMU, whose kernel can
match bridges. --release 13 takes Debian 13.
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
import service  # noqa: E402
from engine import EVIL, GOOD, control, documented, later, published, separate, serves, socket_holder  # noqa: E402

# Its name, and what is a package of its own there.
RELEASES = {"12": ("bookworm", ""), "13": ("trixie", " docker-cli")}
PACKAGES = "systemd systemd-sysv adduser init-system-helpers nftables iproute2 python3 curl openssl procps kmod iptables"
PACKAGES += " docker.io docker-compose busybox-static apparmor"
DISABLED = "docker.service docker.socket containerd.service"
CONFIG = """\
[listen]
transparent = ["0.0.0.0:3129", "[::]:3129"]
dns = ["0.0.0.0:1053", "[::]:1053"]
[firewall]
guest_interfaces = ["docker0", "br-*"]
not_guests = ["br0"]
[resolver]
servers = ["11.0.0.53"]
"""
DAEMON = "/etc/docker/daemon.json"


def kind(release):
    name, more = RELEASES[release]
    return debian.Kind(name, PACKAGES + more, "2600M", DISABLED)


class Docker(engine.Engine):
    """The machine with dockerd."""

    PROGRAM = "docker"
    SOCKET = "/run/docker.sock"

    def restart_docker(self):
        self.do("systemctl reset-failed docker.service; systemctl restart docker.service", 120)


def prepare(docker):
    """An image of the machine's own programs, so that no registry is needed."""
    docker.do("sh /brought/image.sh", 300)
    docker.start_resolver()
    docker.do("mkdir -p /etc/docker")
    docker.do("systemctl start docker.service", 180)
    docker.make_image()
    return docker.do("docker version -f 'dockerd {{.Server.Version}}'; docker info -f '{{.Driver}}'").replace("\n", ", ")


def setup(docker):
    """The command of docs/containers.md, as printed, on a host where no container runs; then back."""
    begin = time.monotonic()
    docker.do("dpkg -i /brought/outgate.deb 2>&1", 120)
    installed = time.monotonic() - begin
    state = "nft list tables | grep outgate; ip rule | grep -c prohibit; ls -R /etc/docker /etc/outgate; systemctl is-enabled outgate-firewall outgate-host; systemctl is-active outgate-firewall outgate-host"
    before = docker.run(state).output
    command = re.match(r"# (.*)", documented("## Docker", "console")[0])[1]
    begin = time.monotonic()
    said = docker.run(command, 180)
    took = time.monotonic() - begin
    lines = [line for line in said.output.splitlines() if not line.endswith(" ok")]
    assert said.status == 0 and "guarded" in lines[-1], "\n".join(lines)
    docker.do("outgate whitelist add good.test; docker network create first >/dev/null")
    docker.start("s0")
    docker.start("s1", "--network first")
    serves(docker, "s0")
    serves(docker, "s1")
    # br0 is another bridge of this world.
    told = docker.run("curl -s http://127.0.0.1:3190/readyz").output
    assert not told.strip() or told.startswith("NOT guarded: br0,") and len(told.splitlines()) == 1, told
    assert "nothing to change" in docker.do(command, 180)
    docker.end("s0", "s1")
    docker.do("docker network rm first >/dev/null; outgate setup --undo && outgate whitelist remove good.test; rm -f /etc/outgate/whitelist/local.rules.*", 120)
    docker.restart_docker()
    after = docker.run(state).output
    assert before == after, f"not as before: {before!r}, {after!r}"
    return f"installed in {installed:.1f} s, guarded {took:.1f} s later"


def guard(docker):
    docker.write("/etc/outgate/outgate.toml", CONFIG)
    docker.do("outgate whitelist add good.test")
    # Names leak in networks of users' making, so this is not yet all: 6.
    applied = docker.run("outgate firewall apply", 60)
    assert applied.status == 6 and "names that containers ask for leave past" in applied.output, applied
    docker.do("systemctl enable -q --now outgate-firewall.service", 120)
    docker.do("outgate listen apply", 120)


def names(docker):
    """Docker's resolver asks the machine's own one from the machine's network, past the listener: told, and closed by what is told."""
    docker.do("docker network create jobs >/dev/null")
    docker.start("j1", "--network jobs")
    for way in ("udp", "tcp"):
        docker.resolver_mark()
        docker.in_network_of("j1", f"python3 /brought/ask.py leak-{way}.evil.test {way} 127.0.0.11")
        assert any(f"leak-{way}.evil.test" in line for line in docker.asked_past()), f"no leak over {way}, so nothing is shown below"
    docker.until("curl -s http://127.0.0.1:3190/readyz", "names that containers ask for leave past", 30, "/readyz does not tell")
    docker.until("curl -s http://127.0.0.1:3190/metrics", r'outgate_trouble\{cause="docker_dns"\} 1', 10, "no metric tells")
    status = docker.status()
    assert "names that containers ask for leave past [listen].dns" in status, status
    # A server that no container can reach is no remedy, and a file that cannot be read is told as such.
    for text, wanted in (('{"dns": ["127.0.0.1"]}', "leave past"), ('{"dns": [', "daemon.json cannot be read")):
        docker.write(DAEMON, text)
        applied = docker.run("outgate firewall apply", 60)
        assert applied.status == 6 and wanted in applied.output, applied
    docker.do(f"rm {DAEMON}")
    remedy = re.search(r"run `(outgate setup [^`]+)`, which writes", docker.run("outgate firewall apply", 60).output)[1]
    # A container runs, which a restart would stop: that is the operator's to do.
    said = docker.run(remedy, 120)
    restart = re.search(r"`(systemctl restart docker[^`]*)`", said.output)
    assert said.status == 6 and restart, said
    assert '"dns"' in docker.do(f"cat {DAEMON}"), said
    applied = docker.run("outgate firewall apply", 60)
    said = re.search(r"since it was started before /etc/docker/daemon.json was changed: run `([^`]+)`", applied.output)
    assert applied.status == 6 and said and restart[1] == said[1], f"{restart[1]}; {applied}"
    docker.do(f"systemctl reset-failed docker.service; {said[1]}", 120)
    docker.do("outgate firewall apply", 60)
    docker.do("docker start j1 >/dev/null", 60)
    docker.all_well()
    for way in ("udp", "tcp"):
        docker.resolver_mark()
        said = docker.in_network_of("j1", f"python3 /brought/ask.py leak2-{way}.evil.test {way} 127.0.0.11")
        assert "rcode 3" in said.output and not docker.asked_past(), f"{way}: {said}; {docker.asked_past()}"
        said = docker.in_network_of("j1", f"python3 /brought/ask.py good.test {way} 127.0.0.11")
        assert GOOD in said.output and not docker.asked_past(), f"{way}: {said}"


def names_by_ipv6(docker):
    """A server with an IPv6 address, in a network without IPv6: later versions ask it from the machine's network."""
    docker.do(f"mv {DAEMON} {DAEMON}.before; echo nameserver fd99::53 > /etc/resolv.conf")
    docker.restart_docker()
    docker.do("docker start j1 >/dev/null", 60)
    docker.resolver_mark()
    docker.in_network_of("j1", "timeout 5 python3 /brought/ask.py leak6.evil.test udp 127.0.0.11")
    leaks = any("leak6.evil.test" in line for line in docker.asked_past())
    applied = docker.run("outgate firewall apply", 60)
    assert (applied.status == 6) == leaks, f"leaks: {leaks}, told: {applied}"
    docker.do(f"mv {DAEMON}.before {DAEMON}; echo nameserver 127.0.0.1 > /etc/resolv.conf")
    docker.restart_docker()
    docker.do("docker start j1 >/dev/null && outgate firewall apply", 60)
    return "they leave" if leaks else "they do not leave"


def run(docker):
    docker.start("d1")
    serves(docker, "d1")
    serves(docker, "j1")


def build(docker):
    """`docker build`: what a RUN line reaches."""
    docker.write("/srv/build/Dockerfile", "FROM job\nRUN curl -sf --max-time 20 http://good.test/ && ! curl -sf --max-time 20 http://evil.test/ && ! ping -c 1 -W 2 11.0.0.66\n")
    docker.mark()
    docker.resolver_mark()
    said = docker.run("DOCKER_BUILDKIT=0 docker build --no-cache /srv/build 2>&1", 300)
    assert said.status == 0, said
    assert not docker.leaks() and not docker.asked_past(), f"{docker.leaks()[:5]}; {docker.asked_past()[:5]}"


def between(docker):
    """`between_guests = "allow"` on one network: its containers reach each other by name, and nothing else changes."""
    docker.do("docker network create -o com.docker.network.bridge.name=br-app app >/dev/null; docker network create -o com.docker.network.bridge.name=br-other other >/dev/null")
    docker.write("/etc/outgate/conf.d/50-app.toml", '[[interface]]\nname = "br-app"\nbetween_guests = "allow"\n')
    docker.do("outgate firewall apply", 60)
    for name, network in (("web", "app"), ("db", "app"), ("other", "other")):
        docker.start(name, f"--network {network}")
    for name in ("db", "other"):
        docker.do(f"docker exec -d {name} sh -c 'cd /etc && python3 -m http.server 5432'; sleep 1")
    address = lambda name: docker.do(f"docker inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}' {name}")
    said = docker.inside("web", "curl -s --max-time 10 http://db:5432/passwd")
    assert "root:" in said.output, said
    assert docker.inside("web", "ping -c 1 -W 2 db").status == 0
    for source, target in (("web", "other"), ("other", "db"), ("j1", "db"), ("d1", "db")):
        said = docker.inside(source, f"curl -s --max-time 3 http://{address(target)}:5432/passwd")
        assert "root:" not in said.output, f"{source} reaches {target}"
    serves(docker, "web")
    serves(docker, "other")
    docker.until("outgate status", r"guarding br-app: 2 guests, who reach each other\n", 20, "status does not say so")
    assert re.search(r"guarding br-other: 1 guest\n", docker.status()), docker.status()
    assert "guests of one network reach each other: br-app" in docker.do("outgate firewall status", 60)
    # With br_netfilter frames between them pass the rules of IP as well.
    if docker.run("test -e /proc/sys/net/bridge/bridge-nf-call-iptables").status == 0:
        docker.do("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
        said = docker.inside("web", "curl -s --max-time 10 http://db:5432/passwd")
        assert "root:" in said.output, f"with br_netfilter: {said}"
        serves(docker, "web")
        docker.do("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    docker.do("rm /etc/outgate/conf.d/50-app.toml; outgate firewall apply", 60)
    said = docker.inside("web", "curl -s --max-time 3 http://db:5432/passwd")
    assert "root:" not in said.output, "refused again, and they still reach each other"
    docker.end("web", "db", "other")
    docker.do("docker network rm app other >/dev/null")


def compose(docker):
    """The two policies and the database of docs/containers.md, as printed; images of the same name stand in for those of a registry."""
    docker.do("docker tag job python:3.12-slim; tar -C /srv/job -c . | docker import --change 'CMD [\"sh\", \"-c\", \"cd /etc; python3 -m http.server 5432\"]' - postgres:16 >/dev/null", 300)
    heading = "### Two policies and a database"
    (compose_file,), (policy,), (commands,) = documented(heading, "yaml"), documented(heading, "toml"), documented(heading, "console")
    path = re.match(r"# (\S+)\n", policy)[1]
    docker.write("/srv/shop/compose.yaml", compose_file)
    docker.write(path, policy)
    for command in re.findall(r"(?m)^# (.*)", commands):
        # Debian 12 has the first version, which is a program of its own.
        command = command.replace("docker compose", "docker-compose")
        docker.do(f"cd /srv/shop && {command}", 180)
    names = dict(line.split() for line in docker.do("docker ps -f label=com.docker.compose.project=shop --format '{{.Label \"com.docker.compose.service\"}} {{.Names}}'").splitlines())
    docker.mark()
    docker.resolver_mark()
    for service_name, allowed, refused in (("crawler", "files.example.org", "mirror.example.org"), ("app", "mirror.example.org", "files.example.org")):
        said = docker.inside(names[service_name], f"curl -sk --max-time 20 https://{allowed}/")
        assert f"for {allowed}" in said.output, f"{service_name}: {said}"
        for name in (refused, "evil.test", "good.test"):
            said = docker.inside(names[service_name], f"curl -sk --max-time 20 https://{name}/")
            assert said.status == 6, f"{service_name} and {name}: {said}"
            said = docker.inside(names[service_name], f"curl -sk --max-time 20 --resolve {name}:443:{GOOD} https://{name}/")
            assert said.status == 35, f"{service_name} and {name} at its address: {said}"
    assert "root:" in docker.inside(names["app"], "curl -s --max-time 5 http://db:5432/passwd").output, "the application does not reach its database"
    database = docker.do(f"docker inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}' {names['db']}")
    for source in (names["crawler"], "d1"):
        assert "root:" not in docker.inside(source, f"curl -s --max-time 3 http://{database}:5432/passwd").output, f"{source} reaches the database"
    # All other containers keep their list.
    serves(docker, "d1")
    assert not docker.leaks() and not docker.asked_past(), f"{docker.leaks()[:5]}; {docker.asked_past()[:5]}"
    docker.do(f"cd /srv/shop && docker-compose down 2>/dev/null; rm {path} /etc/outgate/whitelist/crawler.rules /etc/outgate/whitelist/app.rules; outgate firewall apply && outgate whitelist reload", 120)


# Counts the packets that come to a container with the attacks' word in them, and prints them.
SNIFF = """\
import socket, sys, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
wire.settimeout(1)
print("ready", flush=True)
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    try:
        packet, (_, _, direction, *_) = wire.recvfrom(65536)
    except TimeoutError:
        continue
    if b"outgate-attack" in packet and direction != socket.PACKET_OUTGOING:
        print("packet", packet.hex(), flush=True)
"""


def attacks(docker):
    """What root in a container can send by itself, to the outside, to the host and to its neighbour: nothing arrives."""
    docker.do("docker network create --ipv6 --subnet 172.31.0.0/24 --subnet fd31::/64 hostile >/dev/null")
    docker.start("victim", "--network hostile --ip 172.31.0.3")
    docker.start("attacker", "--network hostile --ip 172.31.0.2")
    docker.do("mkfifo /run/world/gateway && (python3 /brought/outside.py gateway /run/world >/run/world/gateway 2>&1 & read -r word </run/world/gateway)")
    foreign = docker.do("docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' j1")
    docker.write("/srv/sniff.py", SNIFF)
    victim = docker.do("docker inspect -f '{{.State.Pid}}' victim")
    # The control: what the attacker's own kernel would deliver does arrive where containers reach each other.
    for allowed in (True, False):
        docker.write("/etc/outgate/conf.d/70-hostile.toml", f'[[interface]]\nname = "br-*"\nbetween_guests = "{"allow" if allowed else "refuse"}"\n')
        docker.do("outgate firewall apply", 60)
        docker.mark()
        docker.resolver_mark()
        docker.do(f"nsenter -t {victim} -n python3 /srv/sniff.py 40 > /run/world/victim.log & sleep 1")
        said = docker.run(f"docker exec -i attacker python3 - 172.31.0.1 172.31.0.3 {EVIL} 2600:10::66 {foreign} < /brought/attacks.py", 90)
        assert "35 attempts" in said.output, said
        seen = [line for line in docker.run("sleep 1; cat /run/world/victim.log").output.splitlines() if line.startswith("packet")]
        assert bool(seen) == allowed, f"the neighbour saw {len(seen)} packets, allowed: {allowed}; {seen[:3]}"
        assert not docker.leaks() and not docker.asked_past(), f"{docker.leaks()[:5]}; {docker.asked_past()[:5]}; {said}"
        assert not docker.run("grep accept /run/world/gateway.log").output, "the host's own port was reached"
    docker.do("rm /etc/outgate/conf.d/70-hostile.toml; outgate firewall apply", 60)
    docker.end("attacker")
    return "35 attempts"


def neighbour(docker):
    """A container that poses as its neighbour, whose policy is another: ARP, UDP and TCP are dropped at its port."""
    docker.start("attacker", "--network hostile --ip 172.31.0.2")
    docker.write("/etc/outgate/conf.d/70-hostile.toml", '[guests]\nunknown = "shared"\n[[guest]]\nname = "victim"\naddresses = ["172.31.0.3"]\nwhitelist = ["victim.rules"]\n')
    docker.write("/etc/outgate/whitelist/victim.rules", "*.victim.test\n")
    checked = docker.run("outgate check").output
    assert "172.31.0.3 is held to its container only while that runs" in checked, checked
    docker.do("outgate firewall apply && outgate whitelist reload", 60)
    mac = docker.do("docker inspect -f '{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}' attacker")
    docker.until("nft list set bridge outgate held4", r"172\.31\.0\.2", 20, "the attacker's own address is not known yet")
    pose = "docker exec -i attacker python3 - 172.31.0.1 172.31.0.3 {} < /brought/neighbour.py"
    for n, held in enumerate((True, False)):
        if not held:
            # The control: without what is held it works.
            docker.do("systemctl stop outgate-host.service; for set in held4 owned4 held_macs owned_macs; do nft flush set bridge outgate $set; done")
        docker.do("ip neigh flush dev $(ip -o route get 172.31.0.3 | sed 's/.* dev \\([^ ]*\\).*/\\1/')")
        docker.inside("victim", "ping -c 1 -W 2 172.31.0.1")
        docker.mark()
        said = docker.run(pose.format(f"stolen{n}.victim.test"), 60)
        asked = f"stolen{n}.victim.test" in "\n".join(docker.arrived())
        answers = int(re.search(r"answers for the neighbour: (\d+)", said.output)[1])
        known = docker.do("ip neigh show 172.31.0.3")
        if held:
            assert not asked and not answers and mac not in known, f"asked: {asked}, {answers} answers, neighbour: {known}, {mac} is the attacker's"
        else:
            assert asked, "posing as a neighbour does not work even where nothing holds, so nothing is shown"
    docker.do("systemctl start outgate-host.service; rm /etc/outgate/conf.d/70-hostile.toml /etc/outgate/whitelist/victim.rules; outgate firewall apply && outgate whitelist reload", 90)
    docker.end("attacker", "victim")
    docker.do("docker network rm hostile >/dev/null")


def restart(docker):
    """dockerd is restarted while containers try: nothing gets out."""
    docker.mark()
    docker.resolver_mark()
    docker.do("docker update --restart=always j1 d1 >/dev/null")
    for _ in range(2 if service.WHOLE else 1):
        docker.restart_docker()
    docker.until("docker inspect -f '{{.State.Running}}' j1", "true", 60, "the container does not come back")
    assert not docker.leaks() and not docker.asked_past(), f"{docker.leaks()[:5]}; {docker.asked_past()[:5]}"
    serves(docker, "j1")
    serves(docker, "d1")
    docker.until("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:3190/readyz", "200", 30, "not ready afterwards")


CHECKS = [
    ("Docker, an image, a resolver on loopback", prepare),
    ("control: without outgate containers and names get out", control),
    ("setup, as printed, and undone", setup),
    ("guard docker0 and br-*", guard),
    ("names: told, and closed by the remedy, UDP and TCP", names),
    ("names: a server with an IPv6 address", names_by_ipv6),
    ("docker run: served, and nothing else", run),
    ("docker build", build),
    ("networks made later, from their first packet", later),
    ("containers do not reach each other", separate),
    ("between_guests on one network", between),
    ("compose: two policies and a database, as printed", compose),
    ("attacks from a container", attacks),
    ("a container that poses as its neighbour", neighbour),
    ("a container that holds docker.sock", socket_holder),
    ("a published port", published),
    ("dockerd restarted", restart),
]


if __name__ == "__main__":
    if not service.WHOLE:
        CHECKS.remove(CHECKS[[check for _, check in CHECKS].index(names_by_ipv6)])
    sys.exit(engine.main(__doc__, lambda release: (Docker, kind(release)), CHECKS, RELEASES))
