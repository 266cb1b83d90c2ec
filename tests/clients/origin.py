"""The internet of the client tests: one DNS server and one web server for all names.

Runs inside the internet's namespace: `origin.py DIR`, with tls.crt, tls.key and www/ in DIR. Writes
each DNS query to dns.log and each request to http.log, one a line, and the word "ready" to stdout.
"""

import base64
import hashlib
import http.server
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading

ADDRESS = "11.0.0.10"
BLOCK = bytes((i * 167 + (i >> 8) * 59) & 0xFF for i in range(1 << 20))


class Log:
    def __init__(self, path):
        self.file = open(path, "a", buffering=1)
        self.lock = threading.Lock()

    def write(self, line):
        with self.lock:
            self.file.write(line + "\n")


def serve_dns(log):
    """Answers A with the one address, everything else with no data."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("11.0.0.53", 53))
    while True:
        query, peer = udp.recvfrom(4096)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
            at += 1 + query[at]
        kind = struct.unpack("!H", query[at + 1 : at + 3])[0]
        # outgate asks for the root to find out whether the server answers.
        if labels:
            log.write(".".join(labels).lower())
        question = query[12 : at + 5]
        answer = b""
        if kind == 1:
            answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton(ADDRESS)
        head = query[:2] + b"\x84\x80\x00\x01" + struct.pack("!H", 1 if answer else 0) + b"\x00\x00\x00\x00"
        udp.sendto(head + question + answer, peer)


class Handler(http.server.BaseHTTPRequestHandler):
    """Names are told apart by Host; files come from www/HOST."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def host(self):
        return self.headers.get("Host", "").split(":")[0]

    def log_message(self, *args):
        pass

    def note(self):
        self.server.log.write(f"{self.host()} {self.command} {self.path}")

    def body(self):
        """The request's body in pieces."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            if not piece:
                return
            left -= len(piece)
            yield piece

    def send(self, status, content, kind="text/plain"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        self.note()
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        if self.is_git():
            return self.git()
        if self.path.startswith("/down/"):
            return self.down(int(self.path.split("/")[2]))
        if self.path == "/hello":
            return self.send(200, b'{"hello": "world"}', "application/json")
        root = os.path.realpath(os.path.join(self.server.www, self.host()))
        path = os.path.realpath(os.path.join(root, self.path.split("?")[0].lstrip("/")))
        if os.path.isdir(path):
            path = os.path.join(path, "index.html")
        if not path.startswith(root + "/") or not os.path.isfile(path):
            return self.send(404, b"not found")
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if path.endswith(".html") else "application/octet-stream")
        self.send_header("Content-Length", str(os.path.getsize(path)))
        self.end_headers()
        if self.command != "HEAD":
            with open(path, "rb") as file:
                while piece := file.read(1 << 20):
                    self.wfile.write(piece)

    do_HEAD = do_GET

    def do_POST(self):
        self.note()
        if self.is_git():
            return self.git()
        digest, length = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            length += len(piece)
        self.send(200, f"{length} {digest.hexdigest()}".encode())

    do_PUT = do_POST

    def down(self, mebibytes):
        self.send_response(200)
        self.send_header("Content-Length", str(mebibytes << 20))
        self.end_headers()
        for _ in range(mebibytes):
            self.wfile.write(BLOCK)

    def is_git(self):
        return self.host().startswith("git")

    def git(self):
        """git's own CGI program, so that clients speak the smart protocol."""
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": os.path.join(self.server.www, self.host()),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        sent = b"".join(self.body())
        environment["CONTENT_LENGTH"] = str(len(sent))
        done = subprocess.run(["git", "http-backend"], input=sent, env=environment, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        self.send(int(fields.get("Status", "200 OK").split()[0]), content, fields.get("Content-Type", "text/plain"))

    def websocket(self):
        """Echoes messages (RFC 6455) until a close frame."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            length = head[1] & 0x7F
            if length == 126:
                length = struct.unpack("!H", self.rfile.read(2))[0]
            mask = self.rfile.read(4)
            content = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(length)))
            size = bytes([length]) if length < 126 else b"\x7e" + struct.pack("!H", length)
            self.wfile.write(head[:1] + size + content)
            if head[0] & 0x0F == 8:
                return


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port, directory, log, handler, context=None):
        super().__init__((ADDRESS, port), handler)
        self.www, self.log, self.context = os.path.join(directory, "www"), log, context

    def finish_request(self, request, client_address):
        # In the connection's own thread, so a slow handshake delays no other connection.
        if self.context:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        self.log.write(f"error {sys.exc_info()[1]!r}")


def serve_web(directory, handler=Handler):
    """Serves HTTP and HTTPS from threads of their own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.path.join(directory, "tls.crt"), os.path.join(directory, "tls.key"))
    log = Log(os.path.join(directory, "http.log"))
    for server in (Server(80, directory, log, handler), Server(443, directory, log, handler, context)):
        threading.Thread(target=server.serve_forever, daemon=True).start()


def main():
    directory = sys.argv[1]
    serve_web(directory)
    dns = threading.Thread(target=serve_dns, args=(Log(os.path.join(directory, "dns.log")),), daemon=True)
    dns.start()
    print("ready", flush=True)
    dns.join()


if __name__ == "__main__":
    main()
