"""Python's own HTTP server: prints the Host that its handler saw of each request, one JSON value a line."""

import http.server
import json
import os
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        host = json.dumps(", ".join(self.headers.get_all("Host") or []))
        # In one piece, for others write beside this thread.
        os.write(1, f"{host}\n".encode())
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    do_GET = do_POST = do_FOO = do_SOURCE = do_OPTIONS = answer

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
