#!/usr/bin/env python3
"""Workers that fetch over and over, each time by a new look-up and a new connection: crowd.py SPECIFICATION.

The specification is JSON: `proxy` (null, or host:port), `authority` (a file), `urls` ([URL, SHA-256 in hex] each),
`workers`, and one of `turns` (fetches of each worker) and `seconds`. `processes`: a process for each worker rather than
a thread. `per_second`: the most turns of each worker a second. `lookups`: each turn looks the name up once more. `until`:
a file; the workers end once it exists. Prints the results as JSON, and exits 1 if anything failed.
"""

import collections
import hashlib
import http.client
import itertools
import json
import multiprocessing
import os
import socket
import ssl
import sys
import threading
import time
from urllib.parse import urlsplit

# Longer than any delay that a limit causes, shorter than the test waits.
PATIENCE = 60


def fetch(url, proxy, context):
    """The content at a URL, over a new connection."""
    parts = urlsplit(url)
    host, port = proxy.split(":") if proxy else (parts.hostname, 443 if parts.scheme == "https" else 80)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, int(port), timeout=PATIENCE, context=context)
        if proxy:
            connection.set_tunnel(parts.hostname, 443)
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        connection.request("GET", url if proxy and parts.scheme == "http" else parts.path, headers={"Connection": "close"})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"status {answer.status}: {content[:200]!r}")
    return content


class Worker:
    def __init__(self, wanted, number, context):
        self.wanted, self.number, self.context = wanted, number, context
        self.fetches = self.lookups = 0
        self.slowest = 0.0
        self.failures = collections.Counter()

    def attempt(self, what, action):
        begin = time.monotonic()
        try:
            return action()
        except (OSError, ValueError, http.client.HTTPException) as error:
            took = time.monotonic() - begin
            self.failures[f"{what}: {type(error).__name__}: {error}"[:300]] += 1
            self.failures["slowest failure, s"] = max(self.failures["slowest failure, s"], round(took))
            return None
        finally:
            self.slowest = max(self.slowest, time.monotonic() - begin)

    def turn(self, url, digest):
        if self.wanted.get("lookups"):
            host = urlsplit(url).hostname
            self.attempt("look-up", lambda: socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM))
            self.lookups += 1
        content = self.attempt("fetch", lambda: fetch(url, self.wanted.get("proxy"), self.context))
        self.fetches += 1
        if content is not None and hashlib.sha256(content).hexdigest() != digest:
            self.failures[f"another content: {url}"] += 1

    def over(self, turn, begin):
        if "until" in self.wanted and os.path.exists(self.wanted["until"]):
            return True
        if "turns" in self.wanted:
            return turn >= self.wanted["turns"]
        return "seconds" in self.wanted and time.monotonic() >= begin + self.wanted["seconds"]

    def work(self):
        urls = self.wanted["urls"]
        begin = time.monotonic()
        for turn in itertools.count():
            if self.over(turn, begin):
                return
            # Each starts at another URL, so that all of them are asked for from the start.
            self.turn(*urls[(turn + self.number) % len(urls)])
            if rate := self.wanted.get("per_second"):
                time.sleep(max(0, begin + (turn + 1) / rate - time.monotonic()))

    def result(self):
        return {"fetches": self.fetches, "lookups": self.lookups, "slowest": self.slowest, "failures": dict(self.failures)}


def apart(worker, start, results):
    start.wait()
    worker.work()
    results.put(worker.result())


def sum_up(results):
    failures = collections.Counter()
    for result in results:
        failures.update(result["failures"])
    failures.pop("slowest failure, s", None)
    if failures:
        failures["slowest failure, s"] = max(result["failures"].get("slowest failure, s", 0) for result in results)
    return {
        "fetches": sum(result["fetches"] for result in results),
        "lookups": sum(result["lookups"] for result in results),
        "slowest": round(max(result["slowest"] for result in results), 3),
        "failures": dict(failures.most_common(10)),
    }


def main():
    wanted = json.loads(sys.argv[1])
    context = ssl.create_default_context(cafile=wanted["authority"])
    workers = [Worker(wanted, number, context) for number in range(wanted["workers"])]
    if wanted.get("processes"):
        fork = multiprocessing.get_context("fork")
        start, queue = fork.Barrier(len(workers)), fork.Queue()
        running = [fork.Process(target=apart, args=(worker, start, queue)) for worker in workers]
        for process in running:
            process.start()
        results = [queue.get() for _ in running]
    else:
        running = [threading.Thread(target=worker.work) for worker in workers]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        results = [worker.result() for worker in workers]
    total = sum_up(results)
    print(json.dumps(total))
    return 1 if total["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
