"""The surroundings of the virtual machine: servers for everything that it may try, and an observer.

`outside.py ROLE DIR` runs inside the namespace of that role and writes the word "ready" to stdout.

* `internet` serves all its addresses: HTTP on 80, HTTPS on 443 (tls.crt, tls.key in DIR), a server that
  speaks first on 2222 and 4444, and DNS on port 53 of 11.0.0.53, which is true, and of 8.8.8.8 and 1.1.1.1,
  which say EVIL to every name.
* `neighbour` is another guest: HTTP on 80.
* `gateway` is another service of the gateway: one TCP server on port 22.
* `resolver` is a resolver of the machine itself: DNS on port 53 of 127.0.0.1, over UDP and TCP, and of fd99::53, over UDP,
  which is true.

Each writes DIR/ROLE.log, one event a line: `packet SOURCE DESTINATION PROTOCOL PORT` for each IP packet
that came in (not in `gateway`, where packets arrive before any firewall), `accept ADDRESS PORT PEER` for
each connection, `asked SERVER NAME` for each DNS query. A packet's PORT is the destination's, or the ICMP
type, or 0.
"""

import http.server
import ipaddress
import os
import socket
import socketserver
import ssl
import struct
import sys
import threading

GOOD, EVIL, TRUTH = "11.0.0.10", "11.0.0.66", "11.0.0.53"
LIARS = ["8.8.8.8", "1.1.1.1"]
GOOD6, EVIL6 = "2600:10::10", "2600:10::66"
NAMES = {
    "good.test": (GOOD, GOOD6),
    "raw.test": (GOOD, None),
    "evil.test": (EVIL, EVIL6),
    "files.example.org": (GOOD, None),
    "mirror.example.org": (GOOD, None),
}
BANNER = b"220 a server that speaks first\r\n"


class Log:
    def __init__(self, path):
        self.file = open(path, "a", buffering=1)
        self.lock = threading.Lock()

    def write(self, *words):
        with self.lock:
            self.file.write(" ".join(str(word) for word in words) + "\n")


def plain(address):
    """An IPv4 address in its usual form where a socket of both families shows it mapped."""
    address = ipaddress.ip_address(address.split("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def observe(log, sniffer):
    """Logs each packet that came in on any interface except loopback."""
    while True:
        packet, (interface, kind, direction, *_) = sniffer.recvfrom(65536)
        if interface == "lo" or direction == socket.PACKET_OUTGOING or len(packet) < 20:
            continue
        if kind == 0x0800:
            start, protocol = (packet[0] & 15) * 4, packet[9]
            source, destination = (ipaddress.IPv4Address(packet[at : at + 4]) for at in (12, 16))
        elif kind == 0x86DD and len(packet) >= 40:
            start, protocol = 40, packet[6]
            source, destination = (ipaddress.IPv6Address(packet[at : at + 16]) for at in (8, 24))
        else:
            continue
        if kind == 0x86DD and protocol == 0 and len(packet) > 41:
            # Hop-by-hop options (RFC 8200, section 4.3), as listener discovery has them.
            start, protocol = start + (packet[41] + 1) * 8, packet[40]
        rest = packet[start:]
        port = 0
        if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and len(rest) >= 4:
            port = struct.unpack_from("!H", rest, 2)[0]
        elif protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6) and rest:
            port = rest[0]
        name = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}.get(protocol, protocol)
        log.write("packet", source, destination, name, port)


class Web(http.server.BaseHTTPRequestHandler):
    """Says which address was reached, and under which name."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        content = f"this is {plain(self.connection.getsockname()[0])} for {self.headers.get('Host')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    """Both families, all addresses of the namespace."""

    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True

    def __init__(self, port, log, context=None, handler=Web):
        self.log, self.context = log, context
        super().__init__(("::", port), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def finish_request(self, request, client_address):
        self.log.write("accept", plain(request.getsockname()[0]), self.server_address[1], plain(client_address[0]))
        if self.context:
            request.settimeout(30)
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        pass


class Banner(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(BANNER)
        self.request.settimeout(1)
        self.request.recv(1024)


def answer(query, lie):
    """The answer to one A or AAAA query, by the table above or always EVIL, and the name that was asked for."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    name, kind = ".".join(labels).lower(), struct.unpack_from("!H", query, at + 1)[0]
    found = (EVIL, EVIL6) if lie else NAMES.get(name)
    record = b""
    if found and kind == 1:
        record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton(found[0])
    elif found and found[1] and kind == 28:
        record = b"\xc0\x0c\x00\x1c\x00\x01\x00\x00\x00\x3c\x00\x10" + socket.inet_pton(socket.AF_INET6, found[1])
    head = query[:2] + (b"\x85\x80" if found else b"\x85\x83") + struct.pack("!HHHH", 1, bool(record), 0, 0)
    return name, head + query[12 : at + 5] + record


def serve_dns(log, address):
    udp = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, 53))

    def serve():
        while True:
            query, peer = udp.recvfrom(4096)
            try:
                name, message = answer(query, address in LIARS)
            except (IndexError, struct.error):
                continue
            # outgate asks for the root to find out whether the server answers.
            if name:
                log.write("asked", address, name)
            udp.sendto(message, peer)

    threading.Thread(target=serve, daemon=True).start()


class Questions(socketserver.StreamRequestHandler):
    """DNS over TCP (RFC 7766)."""

    def handle(self):
        self.connection.settimeout(10)
        while head := self.rfile.read(2):
            name, message = answer(self.rfile.read(struct.unpack("!H", head)[0]), False)
            self.server.log.write("asked", self.server.server_address[0], name)
            self.wfile.write(struct.pack("!H", len(message)) + message)


def serve_dns_over_tcp(log, address):
    server = socketserver.ThreadingTCPServer((address, 53), Questions, bind_and_activate=False)
    server.log, server.allow_reuse_address, server.daemon_threads = log, True, True
    server.handle_error = lambda *_: None
    server.server_bind()
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main():
    role, directory = sys.argv[1:3]
    log = Log(os.path.join(directory, f"{role}.log"))
    if role == "gateway":
        Server(22, log, handler=Banner)
    elif role == "resolver":
        serve_dns(log, "127.0.0.1")
        serve_dns(log, "fd99::53")
        serve_dns_over_tcp(log, "127.0.0.1")
    else:
        Server(80, log)
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        threading.Thread(target=observe, args=(log, sniffer), daemon=True).start()
    if role == "internet":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(directory, "tls.crt"), os.path.join(directory, "tls.key"))
        Server(443, log, context)
        for port in (2222, 4444):
            Server(port, log, handler=Banner)
        for address in [TRUTH, *LIARS]:
            serve_dns(log, address)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
