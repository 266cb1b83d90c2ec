"""Many connections at an even rate, one thread, and the server for them.

`load.py serve` answers on port 8080 of all addresses: at once, or, for the path /slow, a kilobyte every
tenth of a second for two minutes.
`load.py send RATE SECONDS` opens RATE connections a second to the proxy on 127.0.0.1:3128, each with one
request for http://good.test:8080/, and prints what came of them as JSON: how many, how they were answered,
seconds of the longest wait from connect to the first byte.
"""

import collections
import heapq
import json
import selectors
import socket
import sys
import time

REQUEST = b"GET http://good.test:8080/ HTTP/1.1\r\nHost: good.test:8080\r\nConnection: close\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
PATIENCE = 20


def serve():
    listener = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    slow = {}
    while True:
        for key, _ in selector.select(0.1):
            if key.fileobj is listener:
                client, _ = listener.accept()
                client.setblocking(False)
                selector.register(client, selectors.EVENT_READ)
                continue
            client = key.fileobj
            selector.unregister(client)
            try:
                if b"/slow" in client.recv(4096):
                    client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1228800\r\n\r\n")
                    slow[client] = 1200, time.monotonic()
                    continue
                client.send(ANSWER)
            except OSError:
                pass
            client.close()
        now = time.monotonic()
        for client, (left, due) in list(slow.items()):
            if now < due:
                continue
            slow[client] = left - 1, due + 0.1
            try:
                client.send(bytes(1024))
            except OSError:
                left = 1
            if left == 1:
                del slow[client]
                client.close()


class Load:
    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.outcomes, self.longest, self.patience = collections.Counter(), 0.0, []

    def open(self, now):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", 3128))
        self.selector.register(client, selectors.EVENT_WRITE, now)
        heapq.heappush(self.patience, (now + PATIENCE, client.fileno(), client))

    def step(self, wait):
        for key, ready in self.selector.select(wait):
            client, begin = key.fileobj, key.data
            try:
                if ready & selectors.EVENT_WRITE:
                    client.send(REQUEST)
                    self.selector.modify(client, selectors.EVENT_READ, begin)
                    continue
                head = client.recv(4096)
                self.close(client, head.split(b" ", 2)[1].decode() if head else "closed", begin)
            except OSError as error:
                self.close(client, type(error).__name__, begin)
        now = time.monotonic()
        while self.patience and self.patience[0][0] < now:
            client = heapq.heappop(self.patience)[2]
            if client.fileno() >= 0:
                self.close(client, "silence", now - PATIENCE)

    def close(self, client, end, begin):
        self.selector.unregister(client)
        client.close()
        self.outcomes[end] += 1
        self.longest = max(self.longest, time.monotonic() - begin)


def send(rate, seconds):
    load, begin, opened = Load(), time.monotonic(), 0
    while (now := time.monotonic()) < begin + seconds:
        # Not more than are due, and none twice for those that came late.
        while begin + opened / rate <= now:
            load.open(now)
            opened += 1
        load.step(max(0.0, begin + opened / rate - time.monotonic()))
    took = time.monotonic() - begin
    while sum(load.outcomes.values()) < opened:
        load.step(0.1)
    print(json.dumps({"opened": opened, "rate": round(opened / took), "outcomes": load.outcomes, "longest": round(load.longest, 2)}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    send(float(sys.argv[2]), float(sys.argv[3]))
