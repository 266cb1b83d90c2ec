#!/usr/bin/env python3
"""outgate on a machine with libvirt: guests of its default network, with nothing of libvirt's changed.

Boots Debian with its libvirtd, which makes virbr0, starts dnsmasq and writes its rules as everywhere, and guards it as
docs/networks.md says. The guests are network namespaces on ports of virbr0 that take their address by DHCP. Judged by what
arrived outside, by what the machine's own resolver was asked (dnsmasq asks it), and by what the guests saw. By default in a
container with systemd; --machine boots it under QEMU.
"""

import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True
import debian  # noqa: E402
import engine  # noqa: E402
from engine import ATTEMPT, EVIL, GOOD, documented  # noqa: E402

PACKAGES = "systemd systemd-sysv adduser init-system-helpers nftables iproute2 python3 curl openssl procps kmod iptables busybox-static"
PACKAGES += " libvirt-daemon-system libvirt-daemon-system-systemd libvirt-clients libvirt-daemon-config-network dnsmasq-base"
DISABLED = "libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirt-guests.service virtlogd.socket virtlockd.socket"
KIND = debian.Kind("bookworm", PACKAGES, "2000M", DISABLED)
HEADING = "## libvirt's default network"
SERVER = "192.168.122.1"
# Without programs of these names.
WAYS = ATTEMPT.replace("ping", "busybox ping").replace("nslookup", "busybox nslookup")
VIRSH = "virsh -c network:///system"
# br0 is another bridge of this world.
WORLD = """\
[firewall]
not_guests = ["br0"]
[resolver]
servers = ["11.0.0.53"]
"""
LEASE = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr flush dev $interface
ip addr add $ip/$mask dev $interface
ip route replace default via $router
echo "nameserver $dns" > /etc/netns/$GUEST/resolv.conf
echo "lease $ip router $router dns $dns"
"""
# A bridge with the best priority of all says that it is the root, and that the topology changed.
BPDU = """\
import socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
root = bytes(2) + bytes.fromhex("020000000001")
bpdu = bytes.fromhex("424203") + bytes(4) + b"\\x01" + root + bytes(4) + root + bytes.fromhex("8001 0000 1400 0200 0f00")
frame = bytes.fromhex("0180c2000000") + wire.getsockname()[4] + len(bpdu).to_bytes(2, "big") + bpdu
for _ in range(5):
    wire.send(frame.ljust(60, b"\\0"))
"""


class Libvirt(engine.Host):
    """The machine with libvirtd."""

    def inside(self, guest, command, limit=60):
        return self.run(f"ip netns exec {guest} sh -c '{command}'", limit)

    def ask(self, guest, name, way, server=SERVER):
        return self.run(f"ip netns exec {guest} timeout 5 python3 /brought/ask.py {name} {way} {server}")

    def plug(self, guest, number):
        """A guest on a port of the bridge, as libvirt names it, without an address."""
        self.do(f"ip netns add {guest}; mkdir -p /etc/netns/{guest}; ip link add name eth0 netns {guest} address 52:54:00:00:00:0{number} type veth peer name vnet{number}")
        self.do(f"ip link set vnet{number} master virbr0; ip link set vnet{number} up; ip -n {guest} link set lo up; ip -n {guest} link set eth0 up")

    def lease(self, guest):
        said = self.run(f"GUEST={guest} ip netns exec {guest} busybox udhcpc -i eth0 -n -q -t 8 -T 1 -s /srv/lease.sh 2>&1", 60)
        found = re.search(r"(?m)^lease (192\.168\.122\.\d+) router (\S+) dns (\S+)$", said.output)
        assert found and found[2] == found[3] == SERVER, f"no lease: {said}"
        return found[1]

    def root(self):
        """Whom the bridge takes for the root of the spanning tree, and whether it has it on."""
        (link,) = json.loads(self.do("ip -d -j link show virbr0"))
        data = link["linkinfo"]["info_data"]
        return data["root_id"], data["stp_state"]


def prepare(host):
    host.start_resolver()
    host.write("/srv/lease.sh", LEASE)
    host.write("/srv/bpdu.py", BPDU)
    host.do("chmod +x /srv/lease.sh; systemctl start libvirtd.service", 90)
    host.run(f"{VIRSH} net-start default", 60)
    rules = host.do("ip addr show virbr0; iptables-save; nft list ruleset")
    for wanted in (f"{SERVER}/24", "LIBVIRT_FWO", "LIBVIRT_INP", "MASQUERADE"):
        assert wanted in rules, f"no {wanted}: {rules[-2000:]}"
    assert "dnsmasq" in host.do(f"ss -Hlnup 'src {SERVER}:53'"), "dnsmasq does not listen"
    assert host.root()[1] == 1, "no STP"
    return host.do("libvirtd --version; dnsmasq --version | head -n 1 | cut -d' ' -f 1-3").replace("\n", ", ")


def control(host):
    """Without outgate a guest gets out, its names leave by dnsmasq, guests reach each other and their BPDUs make a root."""
    host.plug("vm1", 1)
    host.plug("vm2", 2)
    host.lease("vm1")
    other = host.lease("vm2")
    host.begin()
    host.inside("vm1", WAYS)
    seen = host.arrived()
    for wanted in (f"accept {EVIL} 80", f"{EVIL} icmp", "asked 8.8.8.8 evil.test"):
        assert any(wanted in line for line in seen), f"no {wanted}: {seen[-8:]}"
    for way in ("udp", "tcp"):
        host.resolver_mark()
        host.ask("vm1", f"leak-{way}.evil.test", way)
        assert any(f"leak-{way}." in line for line in host.asked_past()), f"dnsmasq asks nobody over {way}"
    assert host.inside("vm1", f"busybox ping -c 1 -W 2 {other}").status == 0, "guests do not reach each other"
    if host.contained:
        return "without BPDUs, which this kernel takes in its first network alone"
    before = host.root()
    host.do("ip netns exec vm1 python3 /srv/bpdu.py; sleep 1")
    assert host.root()[0] != before[0], "a BPDU changes nothing even here"
    host.do("ip link set vnet1 down; ip link set vnet1 up; sleep 1")
    host.until("ip -d link show virbr0", rf"root_id {re.escape(before[0])}", 40, "the root stays")
    return "and BPDUs make a root"


def guarded(host):
    """Lease, names, what is allowed and what is not, neighbours and the spanning tree, behind outgate."""
    # A port that came just now is blocked by the spanning tree for twice the forward delay.
    other = host.lease("vm2")
    address = host.lease("vm1")
    for way in ("udp", "tcp"):
        for server in (SERVER, "8.8.8.8"):
            host.begin()
            said = host.ask("vm1", f"leak-{way}.evil.test", way, server)
            assert "rcode 3" in said.output, f"{way} {server}: {said}"
            assert GOOD in host.ask("vm1", "good.test", way, server).output, f"{way} {server}"
            host.nothing_left()
    host.begin()
    good = host.inside("vm1", "curl -s --max-time 20 --cacert /brought/ca.crt https://good.test/")
    assert "for good.test" in good.output, f"{good}; {host.journal()}"
    assert host.inside("vm1", "curl -s --max-time 20 http://evil.test/").status == 6
    said = host.inside("vm1", f"curl -s --max-time 20 --resolve evil.test:80:{EVIL} http://evil.test/")
    assert "not_whitelisted" in said.output, said
    host.inside("vm1", WAYS)
    host.nothing_left()
    assert host.inside("vm1", f"busybox ping -c 1 -W 1 {other}").status, "guests reach each other"
    before = host.root()
    host.do("ip netns exec vm1 python3 /srv/bpdu.py; sleep 1")
    assert host.root() == before and before[1] == 1, f"{before}, {host.root()}"
    assert "state forwarding" in host.do("bridge link show dev vnet1"), "the guest's port is off"
    # The lease again, from the server alone.
    assert host.lease("vm1") == address
    return address


def setup(host):
    """`outgate setup`, as printed, and back."""
    host.do("dpkg -i /brought/outgate.deb 2>&1", 120)
    command = re.search(r"`(outgate setup [^`]*virbr0)`", section())[1]
    host.do(command, 180)
    host.do("outgate whitelist add good.test")
    guarded(host)
    host.do("outgate setup --undo && outgate whitelist remove good.test", 120)


def section():
    with open(os.path.join(engine.service.ROOT, "docs", "networks.md"), encoding="utf-8") as file:
        return re.split(r"(?m)^## ", file.read().split(HEADING + "\n")[1])[0]


def by_hand(host):
    """The configuration of docs/networks.md."""
    host.write("/etc/outgate/outgate.toml", documented(HEADING, "toml", "networks")[0])
    host.write("/etc/outgate/conf.d/10-world.toml", WORLD)
    host.do("outgate whitelist add good.test; outgate firewall apply", 60)
    host.do("systemctl enable -q --now outgate-firewall.service; outgate listen apply", 120)
    host.all_well()
    return guarded(host)


def restarted(host):
    """The network stopped and started, and libvirtd restarted, while the daemon runs: it listens, and guests stay guarded."""
    host.do(f"{VIRSH} net-destroy default; {VIRSH} net-start default; systemctl restart libvirtd.service", 120)
    for number in (1, 2):
        host.do(f"ip link set vnet{number} master virbr0; ip link set vnet{number} up")
    host.until("ip rule", r"iif virbr0 prohibit", 10, "nothing holds virbr0")
    guarded(host)
    host.all_well()


def hook(host):
    """The hook as printed: libvirt itself applies the ruleset before the network counts as started."""
    host.do("systemctl stop outgate-host.service")
    host.write("/etc/libvirt/hooks/network", documented(HEADING, "sh", "networks")[0])
    host.do("chmod +x /etc/libvirt/hooks/network; systemctl restart libvirtd.service", 90)
    host.do(f"{VIRSH} net-destroy default; outgate firewall remove; {VIRSH} net-start default", 120)
    assert "iif virbr0 prohibit" in host.do("ip rule"), "the hook did not apply"
    # And if it cannot, the network does not count as started, so no guest gets on it.
    host.do(f"{VIRSH} net-destroy default; echo nonsense >> /etc/outgate/conf.d/10-world.toml")
    said = host.run(f"{VIRSH} net-start default", 60)
    assert said.status and "not TOML" in said.output, f"the network is up without the ruleset: {said}"
    assert "default" not in host.do(f"{VIRSH} net-list --name"), "the network counts as started"
    # As the page says: what libvirt leaves behind is taken away first.
    remedy = re.search(r"`(ip link del virbr0[^`]*)`", section())[1].replace("\n", " ")
    host.do(f"sed -i '$d' /etc/outgate/conf.d/10-world.toml; {remedy} && {VIRSH} net-start default && systemctl start outgate-host.service", 60)
    for number in (1, 2):
        host.do(f"ip link set vnet{number} master virbr0; ip link set vnet{number} up")
    guarded(host)


CHECKS = [
    ("libvirtd, its default network", prepare),
    ("control: without outgate guests and names get out", control),
    ("setup, as printed, and undone", setup),
    ("guard virbr0, as printed", by_hand),
    ("network and libvirtd restarted", restarted),
    ("the hook, as printed", hook),
]


if __name__ == "__main__":
    sys.exit(engine.main(__doc__, lambda _: (Libvirt, KIND), CHECKS, ["12"]))
