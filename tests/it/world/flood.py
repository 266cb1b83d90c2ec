# Sends packets that no TCP stack would, as fast as possible, from within a guest. Gets FLOOD, prints what it sent.
# The caller drops what the kernel's own stack would answer.
import errno, json, random, select, socket, struct, sys, time

how = json.loads(sys.argv[1])
KIND, V6, SECONDS = how["kind"], how["v6"], how["seconds"]
PORT, TARGET, SOURCES = how.get("port", 443), how.get("target"), how.get("sources", 1)
ARP = KIND == "arp"
TYPE = 0x0806 if ARP else 0x86DD if V6 else 0x0800
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(TYPE))
s.bind(("eth0", 0))
s.setblocking(False)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
ETHERNET = bytes.fromhex(how["gateway"]) + s.getsockname()[4] + struct.pack("!H", TYPE)
family = socket.AF_INET6 if V6 else socket.AF_INET
SOURCE = socket.inet_pton(family, how["source"])
SYN, ACK, RST, FIN, PSH = 2, 16, 4, 1, 8
# An unexpected option (RFC 2385): TCP drops the segment, connection tracking accepts it.
MD5 = b"\x01\x01\x13\x12" + bytes(16)


def total(data):
    if len(data) % 2:
        data += b"\0"
    return sum(struct.unpack("!%dH" % (len(data) // 2), data))


def folded(number):
    while number >> 16:
        number = (number >> 16) + (number & 0xFFFF)
    return ~number & 0xFFFF


def packet(source, to, protocol, body, at, hops=64):
    sum_ = total(source + to) + protocol + len(body) + total(body)
    body = body[:at] + struct.pack("!H", folded(sum_)) + body[at + 2:]
    if V6:
        return ETHERNET + struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + source + to + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + source + to
    return ETHERNET + head[:10] + struct.pack("!H", folded(total(head))) + head[12:] + body


def tcp(source, to, sport, dport, seq, ack, flags, options=b"", data=b""):
    offset = (5 + len(options) // 4) << 4
    head = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, offset, flags, 64240, 0, 0)
    return packet(source, to, 6, head + options + data, 16)


def stamps(value, echo):
    return b"\x01\x01\x08\x0a" + struct.pack("!II", value & 0xFFFFFFFF, echo & 0xFFFFFFFF)


def target(n):
    if TARGET:
        return socket.inet_pton(family, TARGET)
    if V6:
        return socket.inet_pton(family, "2600:77::") [:12] + struct.pack("!I", n // 60000)
    return b"\x0d" + struct.pack("!I", n // 60000)[1:]


def source(n):
    if SOURCES == 1:
        return SOURCE
    if not V6:
        return SOURCE[:-1] + bytes([10 + n % SOURCES])
    return SOURCE[:-4] + struct.pack("!I", 0x10000 + n % SOURCES)


sent = answered = 0
# Two floods have no connection in common.
n = random.randrange(1 << 30)


def send(frame):
    global sent
    while True:
        try:
            s.send(frame)
            sent += 1
            return
        except BlockingIOError:
            select.select([], [s], [], 0.1)
        except OSError as error:
            # The other end of the link has no room (packet(7)).
            if error.errno != errno.ENOBUFS:
                raise
            time.sleep(0.001)


def react(frame):
    """Answers what the gateway says to a SYN."""
    global answered
    if V6:
        protocol, mine, theirs, body = frame[20], frame[38:54], frame[22:38], frame[54:]
    else:
        protocol, mine, theirs, body = frame[23], frame[30:34], frame[26:30], frame[34:]
    if protocol != 6 or len(body) < 20:
        return
    sport, dport, seq, ack, offset, flags = struct.unpack("!HHIIBB", body[:14])
    if flags & (SYN | ACK) == SYN | ACK:
        answered += 1
        reply = lambda flags, options=b"", more=0, data=b"": send(
            tcp(mine, theirs, dport, sport, ack + more, seq + 1, flags, options, data))
        if KIND == "md5":
            reply(ACK, MD5)
        elif KIND == "paws":
            value = struct.unpack("!I", body[24:28])[0] if len(body) >= 32 else 0
            reply(ACK, stamps(1, value))
        elif KIND == "fin":
            reply(ACK)
            reply(FIN | ACK)
        elif KIND == "rst":
            reply(ACK)
            reply(RST | ACK)
        elif KIND == "revive":
            # Closed, then opened again: the entry is not new.
            reply(RST | ACK)
            send(tcp(mine, theirs, dport, sport, 5000, 0, SYN))
    elif flags & FIN and KIND in ("fin", "rst"):
        send(tcp(mine, theirs, dport, sport, ack, seq + 1, ACK))


question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x04test\x00\x00\x01\x00\x01"
if KIND == "replay":
    # Queries of several guests, each from its own ports. Made beforehand, so that they are sent as fast as possible.
    frames = []
    for number in range(how["guests"] * how["each"]):
        port, number = 1024 + number // how["guests"], number % how["guests"]
        head = struct.pack("!HHHH", port, PORT, 8 + len(question), 0)
        frames.append(packet(SOURCE[:-1] + bytes([SOURCE[-1] + number]), target(0), 17, head + question, 6))
end = time.monotonic() + SECONDS
first = n
while KIND == "replay" and time.monotonic() < end:
    for at, frame in enumerate(frames):
        send(frame)
        if at % 256 == 0 and time.monotonic() > end:
            break
    n = first + sent
while time.monotonic() < end:
    for _ in range(64):
        to, port = target(n), 1024 + n % 60000
        if KIND == "udp":
            head = struct.pack("!HHHH", port, PORT, 8 + len(question), 0)
            send(packet(source(n), to, 17, head + question, 6))
        elif ARP:
            # "Who has the gateway? Tell this address": the kernel remembers who asked (RFC 826).
            send(ETHERNET + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + s.getsockname()[4] + source(n) + bytes(6) + to)
        elif KIND == "solicit":
            # "Who has the gateway? I am at this MAC": the kernel remembers who asked (RFC 4861 section 7.2.3).
            body = struct.pack("!BBHI", 135, 0, 0, 0) + to + b"\x01\x01" + s.getsockname()[4]
            send(packet(b"\xfe\x80" + bytes(6) + source(n)[8:], to, 58, body, 2, 255))
        elif KIND == "ack":
            send(tcp(source(n), to, port, PORT, 1000, 1000, ACK))
        else:
            options = stamps(1 << 30, 0) if KIND == "paws" else b""
            send(tcp(source(n), to, 7777 if SOURCES > 1 else port, PORT, 1000, 0, SYN, options))
        n += 1
    for _ in range(256):
        try:
            frame = s.recv(2048)
            if not ARP:
                react(frame)
        except BlockingIOError:
            break
print(json.dumps({"sent": sent, "tried": n - first, "answered": answered}))
