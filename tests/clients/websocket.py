"""A WebSocket by the standard library alone, through a CONNECT tunnel or "direct": websocket.py PROXY HOST."""

import base64
import os
import socket
import ssl
import struct
import sys

proxy, host = sys.argv[1], sys.argv[2]
address, _, port = proxy.partition(":") if proxy != "direct" else (host, "", 443)
raw = socket.create_connection((address, int(port)), timeout=30)


def head(stream):
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        byte = stream.recv(1)
        assert byte, f"ended after {text!r}"
        text += byte
    return text


if proxy != "direct":
    raw.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
    assert b" 200 " in head(raw).splitlines()[0]
tls = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"]).wrap_socket(raw, server_hostname=host)
key = base64.b64encode(os.urandom(16)).decode()
tls.sendall(
    f"GET /chat HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
)
assert b" 101 " in head(tls).splitlines()[0]
for size in (5, 125, 126, 60_000):
    message, mask = os.urandom(size), os.urandom(4)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    tls.sendall(b"\x82" + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(message)))
    frame = b""
    while len(frame) < (2 if size < 126 else 4) + size:
        frame += tls.recv(65536)
    assert frame.endswith(message), f"{size} bytes came back changed"
print("four messages came back")
