#!/usr/bin/env python3
"""The internet of the heavy jobs: as origin.py, with ranges of files and a registry of container images.

Runs inside the internet's namespace: `depot.py DIR`. A line of dns.log begins with the time, in seconds. The DNS server
is a process of its own, so that it answers while the web server is busy.
"""

import ctypes
import json
import os
import re
import signal
import sys
import time

import origin

REGISTRY, AUTH, CDN = "registry.test", "auth.test", "cdn.test"
TOKEN = "for-whoever-asks"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Timed(origin.Log):
    def write(self, line):
        super().write(f"{time.time():.6f} {line}")


class Handler(origin.Handler):
    # As web servers do; origin.py writes a head in many pieces.
    wbufsize = -1

    def do_GET(self):
        if self.headers.get("Range"):
            self.note()
            return self.part()
        if self.host() == AUTH:
            self.note()
            return self.send(200, json.dumps({"token": TOKEN, "expires_in": 300}).encode(), "application/json")
        if self.host() == REGISTRY:
            self.note()
            return self.registry()
        return super().do_GET()

    do_HEAD = do_GET

    def part(self):
        """One range of a file, as download managers ask for it."""
        path = os.path.join(self.server.www, self.host(), os.path.basename(self.path))
        length = os.path.getsize(path)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
        first, last = int(first), min(int(last or length), length - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{length}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(first)
            left = last + 1 - first
            while left and self.command != "HEAD":
                piece = file.read(min(left, 1 << 16))
                left -= len(piece)
                self.wfile.write(piece)

    def registry(self):
        """The distribution API: a token from another host, a manifest, and blobs on a third host."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            challenge = f'Bearer realm="https://{AUTH}/token",service="{REGISTRY}",scope="repository:job:pull"'
            return self.answer(401, b"{}", {"WWW-Authenticate": challenge})
        if self.path == "/v2/":
            return self.answer(200, b"{}", {})
        if "/blobs/" in self.path:
            return self.answer(307, b"", {"Location": f"https://{CDN}/{self.path.rpartition(':')[2]}"})
        with open(os.path.join(self.server.www, REGISTRY, "manifest"), "rb") as file:
            return self.answer(200, file.read(), {"Content-Type": MANIFEST})

    def answer(self, status, content, fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def main():
    directory = sys.argv[1]
    resolver = os.fork()
    if resolver == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the web server.
        origin.serve_dns(Timed(os.path.join(directory, "dns.log")))
    origin.serve_web(directory, Handler)
    print("ready", flush=True)
    os.waitpid(resolver, 0)


if __name__ == "__main__":
    main()
