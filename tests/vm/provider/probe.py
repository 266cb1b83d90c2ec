"""Tries to get out of the guest's namespace, every way at the same time, without asking any DNS for addresses.

Prints how each attempt ended and after how many seconds; what counts is what arrives outside.
"""

import socket
import sys
import threading
import time

ATTEMPTS = [
    ("tcp", socket.AF_INET, "11.0.0.66", 443),
    ("tcp", socket.AF_INET, "11.0.0.10", 4444),
    ("tcp", socket.AF_INET6, "2600:10::66", 443),
    ("tcp", socket.AF_INET, "8.8.8.8", 53),
    ("udp", socket.AF_INET, "8.8.8.8", 53),
    ("udp", socket.AF_INET, "11.0.0.66", 9999),
    ("udp", socket.AF_INET6, "2600:10::66", 9999),
]
# The answer at an allowed name's address while the daemon runs.
SERVED = [("tcp", socket.AF_INET, "11.0.0.10", 80), ("tcp", socket.AF_INET6, "2600:10::10", 80)]
QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04evil\x04test\x00\x00\x01\x00\x01"


def attempt(kind, family, address, port):
    begin = time.monotonic()
    try:
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((address, port))
            if kind == "tcp":
                client.send(b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
            else:
                client.send(QUERY)
            end = "answered" if client.recv(100) else "closed"
    except OSError as error:
        end = type(error).__name__
    print(kind, address, port, end, f"{time.monotonic() - begin:.2f}", flush=True)


threads = [threading.Thread(target=attempt, args=one) for one in (ATTEMPTS + SERVED if "all" in sys.argv else ATTEMPTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
