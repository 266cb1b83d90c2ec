#!/usr/bin/env python3
"""Records a guest's connections and queries from its interface: watch.py INTERFACE FILE. Runs in the gateway's namespace.

Writes a line for each beginning and end of a TCP connection ("TIME syn|fin|rst in|out PORT ADDRESS:PORT") and each DNS
query ("TIME dns NAME"), and the word "ready" to stdout. The kernel filters, so other packets cost nothing.
"""

import ctypes
import socket
import struct
import sys

FIN, SYN, RST, ACK = 1, 2, 4, 16
OUTGOING = 4
# IPv4, no fragment: TCP with FIN, SYN or RST, or UDP to port 53.
FILTER = [
    (0x28, 0, 0, 12), (0x15, 0, 14, 0x0800),
    (0x30, 0, 0, 23), (0x15, 0, 5, 6),
    (0x28, 0, 0, 20), (0x45, 10, 0, 0x1FFF),
    (0xB1, 0, 0, 14), (0x50, 0, 0, 27), (0x45, 6, 7, FIN | SYN | RST),
    (0x15, 0, 6, 17),
    (0x28, 0, 0, 20), (0x45, 4, 0, 0x1FFF),
    (0xB1, 0, 0, 14), (0x48, 0, 0, 16), (0x15, 0, 1, 53),
    (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0),
]


def listen(interface):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in FILTER))
    program = struct.pack("HL", len(FILTER), ctypes.addressof(code))
    packets.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
    packets.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    packets.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
    packets.bind((interface, 0x0003))
    return packets


def name(query):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    return ".".join(labels).lower()


def describe(packet, outgoing):
    """The line for a packet, without the time."""
    ip = packet[14:]
    transport = ip[(ip[0] & 15) * 4 :]
    source, destination = socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])
    source_port, destination_port = struct.unpack("!HH", transport[:4])
    if ip[9] == 17:
        return None if outgoing else f"dns {name(transport[8:])}"
    flags = transport[13]
    if flags & SYN and flags & ACK:
        return None
    what = "rst" if flags & RST else "fin" if flags & FIN else "syn"
    if outgoing:
        return f"{what} out {destination_port} {source}:{source_port}"
    return f"{what} in {source_port} {destination}:{destination_port}"


def main():
    interface, path = sys.argv[1:]
    packets = listen(interface)
    with open(path, "w", buffering=1) as file:
        print("ready", flush=True)
        while True:
            packet, more, _, address = packets.recvmsg(2048, 64)
            seconds, nanoseconds = struct.unpack("qq", more[0][2])
            try:
                line = describe(packet, address[2] == OUTGOING)
            except (IndexError, struct.error):
                line = None
            if line:
                file.write(f"{seconds + nanoseconds / 1e9:.6f} {line}\n")


if __name__ == "__main__":
    main()
