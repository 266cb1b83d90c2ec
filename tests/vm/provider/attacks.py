"""Tries to get out of a container, or to a neighbour, by everything that root in a container can send.

`attacks.py GATEWAY NEIGHBOUR OUTSIDE OUTSIDE6 FOREIGN`: the gateway of this network, another container of it, an
address of the internet that no rule allows, and an address of another guarded network. Prints a line for each attempt.
What counts is what arrives: each payload has the word NONCE in it.
"""

import contextlib
import fcntl
import socket
import struct
import sys
import time

GATEWAY, NEIGHBOUR, OUTSIDE, OUTSIDE6, FOREIGN = sys.argv[1:6]
NONCE = b"outgate-attack"
DEVICE = "eth0"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ours(request):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, request, struct.pack("256s", DEVICE.encode()))


ADDRESS = socket.inet_ntoa(ours(0x8915)[20:24])
MAC = ours(0x8927)[18:24]


def mac_of(address):
    """The MAC that answers for an address, or none."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    wire.bind((DEVICE, 0))
    wire.settimeout(1)
    wire.send(arp(1, ADDRESS, b"\0" * 6, address))
    with contextlib.suppress(TimeoutError):
        for _ in range(20):
            frame = wire.recv(100)
            if frame[20:22] == b"\0\2" and frame[28:32] == socket.inet_aton(address):
                return frame[22:28]
    return None


def arp(operation, sender, target_mac, target, to=b"\xff" * 6, source=None):
    source = source or MAC
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + source + socket.inet_aton(sender) + target_mac + socket.inet_aton(target)
    return to + source + b"\x08\x06" + body


def ip(source, destination, protocol, payload, options=b"", fragment=0, ttl=64):
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | (5 + len(options) // 4), 0, 20 + len(options) + len(payload), 7, fragment, ttl, protocol, 0, socket.inet_aton(source), socket.inet_aton(destination)) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(port, data=NONCE, source=5353):
    return struct.pack("!HHHH", source, port, 8 + len(data), 0) + data


def tcp(source, destination, port, flags=2, data=b""):
    head = struct.pack("!HHIIBBHHH", 40000, port, 1, 1, 5 << 4, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, len(head) + len(data))
    return head[:16] + struct.pack("!H", checksum(pseudo + head + data)) + head[18:] + data


def frame(packet, to, kind=0x0800, source=None):
    return to + (source or MAC) + struct.pack("!H", kind) + packet


def send(*frames):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((DEVICE, 0))
        for one in frames:
            for _ in range(3):
                wire.send(one.ljust(60, b"\0"))
                time.sleep(0.01)


def stream(address, port, data=NONCE, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(3)
        client.connect((address, port))
        client.sendall(data)
        return client.recv(200)


def datagram(address, port, data=NONCE, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(data, (address, port))
        return client.recv(200)


def raw(address, protocol, family=socket.AF_INET, data=NONCE):
    with socket.socket(family, socket.SOCK_RAW, protocol) as client:
        client.settimeout(0.5)
        client.sendto(data, (address, 0))
        return "sent"


def echo(address, family=socket.AF_INET):
    kind, protocol = (8, socket.IPPROTO_ICMP) if family == socket.AF_INET else (128, socket.IPPROTO_ICMPV6)
    packet = struct.pack("!BBHHH", kind, 0, 0, 7, 1) + NONCE
    return raw(address, protocol, family, packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:])


ROUTER = mac_of(GATEWAY)
BESIDE = mac_of(NEIGHBOUR)
# A MAC that the bridge may have learnt, if it tells no one.
NEXT = BESIDE or b"\x02\x42" + socket.inet_aton(NEIGHBOUR)
ATTEMPTS = {
    "a TCP connection to port 443": lambda: stream(OUTSIDE, 443),
    "a TCP connection to any port": lambda: stream(OUTSIDE, 4444),
    "DNS over TLS": lambda: stream(OUTSIDE, 853),
    "a TCP connection over IPv6": lambda: stream(OUTSIDE6, 443, family=socket.AF_INET6),
    "CONNECT at the transparent listener": lambda: stream(OUTSIDE, 80, b"CONNECT %s:443 HTTP/1.1\r\nHost: x\r\n\r\n" % OUTSIDE.encode()),
    "a UDP datagram": lambda: datagram(OUTSIDE, 9999),
    "a UDP datagram to port 443": lambda: datagram(OUTSIDE, 443),
    "a UDP datagram over IPv6": lambda: datagram(OUTSIDE6, 443, family=socket.AF_INET6),
    "an ICMP echo": lambda: echo(OUTSIDE),
    "an ICMPv6 echo": lambda: echo(OUTSIDE6, socket.AF_INET6),
    "GRE": lambda: raw(OUTSIDE, 47),
    "SCTP": lambda: raw(OUTSIDE, 132),
    "IP in IP": lambda: raw(OUTSIDE, 4),
    "the source address of another network": lambda: send(frame(ip(FOREIGN, OUTSIDE, 17, udp(9999)), ROUTER)),
    "the source address of the neighbour, UDP": lambda: send(frame(ip(NEIGHBOUR, OUTSIDE, 17, udp(9999)), ROUTER)),
    "the source address of the gateway": lambda: send(frame(ip(GATEWAY, OUTSIDE, 17, udp(9999)), ROUTER)),
    "a source address outside": lambda: send(frame(ip("8.8.8.8", OUTSIDE, 17, udp(9999)), ROUTER)),
    "fragments": lambda: send(frame(ip(ADDRESS, OUTSIDE, 17, udp(9999)[:8], fragment=0x2000), ROUTER), frame(ip(ADDRESS, OUTSIDE, 17, NONCE, fragment=1), ROUTER)),
    "source routing": lambda: send(frame(ip(ADDRESS, GATEWAY, 17, udp(9999), options=b"\x83\x07\x04" + socket.inet_aton(OUTSIDE) + b"\0"), ROUTER)),
    "a VLAN tag": lambda: send(frame(b"\0\x01\x08\0" + ip(ADDRESS, OUTSIDE, 17, udp(9999)), ROUTER, 0x8100)),
    "a SYN of its own making": lambda: send(frame(ip(ADDRESS, OUTSIDE, 6, tcp(ADDRESS, OUTSIDE, 4444)), ROUTER)),
    "an ACK that belongs to nothing": lambda: send(frame(ip(ADDRESS, OUTSIDE, 6, tcp(ADDRESS, OUTSIDE, 4444, 16, NONCE)), ROUTER)),
    "a short TTL": lambda: send(frame(ip(ADDRESS, OUTSIDE, 17, udp(9999), ttl=2), ROUTER)),
    "the host's ssh port": lambda: stream(GATEWAY, 22),
    "the host's admin port": lambda: stream(GATEWAY, 3190),
    "the metadata address": lambda: stream("169.254.169.254", 80, b"GET /latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"),
    "a frame to the neighbour, UDP": lambda: send(frame(ip(ADDRESS, NEIGHBOUR, 17, udp(9999)), NEXT)),
    "a frame to the neighbour, TCP": lambda: send(frame(ip(ADDRESS, NEIGHBOUR, 6, tcp(ADDRESS, NEIGHBOUR, 8000, 2, NONCE)), NEXT)),
    "a broadcast frame to the neighbour": lambda: send(frame(ip(ADDRESS, NEIGHBOUR, 17, udp(9999)), b"\xff" * 6)),
    "a datagram to the neighbour by the gateway": lambda: send(frame(ip(ADDRESS, NEIGHBOUR, 17, udp(9999)), ROUTER)),
    "a broadcast": lambda: datagram("255.255.255.255", 9999),
    "multicast": lambda: datagram("224.0.0.251", 5353),
    "ARP: the gateway is here": lambda: send(arp(2, GATEWAY, NEXT, NEIGHBOUR, NEXT), arp(1, GATEWAY, b"\0" * 6, NEIGHBOUR)),
    "a router advertisement": lambda: send(frame(bytes.fromhex("6000000000103aff") + socket.inet_pton(socket.AF_INET6, "fe80::42") + socket.inet_pton(socket.AF_INET6, "ff02::1") + b"\x86\0\0\0\x40\0\x07\x08" + NONCE[:8], b"\x33\x33\0\0\0\x01", 0x86DD)),
    "a BPDU": lambda: send(b"\x01\x80\xc2\0\0\0" + MAC + b"\0\x26\x42\x42\x03" + NONCE),
}

for name, attempt in ATTEMPTS.items():
    try:
        seen = attempt() or b"nothing"
    except OSError as error:
        seen = type(error).__name__
    print(f"{name}: {seen!r}"[:150], flush=True)
print(len(ATTEMPTS), "attempts")
