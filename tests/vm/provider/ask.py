"""`ask.py NAME [udp|tcp [SERVER]]`: the address that the guest's resolver has for a name. `ask.py raw ADDRESS PORT`: what a server there says first."""

import socket
import struct
import sys

if sys.argv[1] == "raw":
    with socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=10) as client:
        print(client.recv(100).decode("ascii", "replace").strip() or "nothing")
else:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split("."))
    way, server = (sys.argv[2:] + ["udp", "1.1.1.1"][len(sys.argv) - 2 :])[:2]
    query = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\x01\0\x01"
    if way == "tcp":
        with socket.create_connection((server, 53), timeout=10) as client:
            client.sendall(struct.pack("!H", len(query)) + query)
            stream = client.makefile("rb")
            answer = stream.read(struct.unpack("!H", stream.read(2))[0])
    else:
        client = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(10)
        client.connect((server, 53))
        client.send(query)
        answer = client.recv(1000)
    code, records = answer[3] & 15, struct.unpack_from("!H", answer, 6)[0]
    start = 12 + len(labels) + 5
    print(f"rcode {code}", socket.inet_ntoa(answer[start + 12 : start + 16]) if records else "no address")
