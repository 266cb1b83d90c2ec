"""Makes rule sets and URLs close to their limits, the same for the same seed.

Every rule is one that a rules file may hold. Addresses in rules and URLs are either in `PERMITTED`
or in the address floor, so nothing that is allowed leaves this machine.
"""

import datetime
import ipaddress
import random
import re

HOME = "127.200.0.1"
PERMITTED = ["127.64.0.0/10", HOME + "/32", "fd77::/16"]
BASES = ["good.org", "alpha.net", "beta.dev", "a-b.io", "x1.example.com", "foo.github.io", "bar.co.uk",
         "xn--bcher-kva.org"]
LABELS = ["a", "b", "c", "d", "www", "api", "api-1", "api-eu-2", "x", "xx", "bor1", "bor2", "bor10", "bor", "a_b",
          "r3---x", "ab", "a1", "b2", "c7-z", "x-y", "evil", "good"]
PORTS = [80, 443, 22, 24, 25, 26, 53, 79, 81, 442, 444, 465, 587, 7999, 8000, 8080, 8100, 8101, 8443, 9000, 65535]
RANGES = [(8000, 8100), (20, 30), (79, 81), (440, 450), (8100, 8443), (1, 1023), (443, 8000), (25, 26), (8443, 9000)]
GLOBS = ["bor[0-9].B", "{a,b}.B", "api-*.B", "a?.B", "*x.B", "a*b.B", "L.*.B", "[a-c]?-*.B", "{www,api-*}.B",
         "**.api-*.B", ".bor[0-9].B", "x[a-z_-]*.B", "{a,b}{1,2}.B", "*[0-9].B", "bor[12]?.B", "*.bor[0-9].B", "*-*.B",
         "{a,b,c}.{x,d}.B", "a[_b]*.B", "*.*.B"]
REGEXES = [  # with names that each pattern matches
    (r"/bor[0-9]+\.B/", ["bor1.B", "bor10.B", "bor.B", "bor1.x.B", "xbor1.B"]),
    (r"/(a|b)\.B/", ["a.B", "b.B", "ab.B", "c.B"]),
    (r"/a\.B|b\.B/", ["a.B", "b.B", "xa.B", "b.B.evil.org", "x.b.B"]),
    (r"/([a-z0-9-]+\.)*B/", ["B", "a.B", "a.b.B", "a_b.B", "evilB"]),
    (r"/[^.]+\.B/", ["a.B", "a.b.B", "B"]),
    (r"/(www\.)?B/", ["B", "www.B", "wwwB", "xwww.B"]),
    (r"/x.y\.B/", ["x-y.B", "x.y.B", "xy.B", "xxy.B"]),
    (r"/.*\.B/", ["a.B", "a.b.c.B", "B", "xB"]),
    (r"/api-[a-z]{2}-\d\.B/", ["api-eu-2.B", "api-e-2.B", "api-eu-22.B", "api-eu-x.B"]),
]
WIDE = ["*.org", "**.net", ".github.io", "*", "**", "*good.org", r"/.*\.com/", r"/.*/", "{a,b}.*", "*.*", ".co.uk",
        "x*.io"]
NETS = ["127.64.0.7", "127.64.0.0/24", "127.64.0.0/16", "127.65.0.4/30", "127.64.0.0/10", "127.127.255.254/31",
        "[fd77::7]", "[fd77::]/32", "[fd77:1::]/64", "[fd77:0:0:1::8]/125"]
FLOOR_NETS = ["10.0.0.0/8", "169.254.169.254", "[fd78::1]", "127.0.0.0/9", "[::1]", "100.64.0.0/10"]
FLOOR = ["10.1.2.3", "169.254.169.254", "127.0.0.5", "127.128.0.1", "127.63.255.255", "192.168.1.1", "100.64.0.1",
         "0.0.0.0", "255.255.255.255", "224.0.0.1", "[fd78::1]", "[fd76:ffff::1]", "[::1]", "[::]", "[fe80::1]",
         "[::ffff:127.64.0.7]", "[64:ff9b::7f40:7]", "[2002:7f40:7::1]"]
MALFORMED = [".B", "a..B", "B..", "-a.B", "a-.B", "127.1", "127.64.0.7.", "127.64.0.256", "0x7f.1", "127.64.0.07",
             "2130706433", "a.B.1", "a.0x7f", "[fd77::7", "[fd77::g]", "fd77::7", "[127.64.0.7]", "a%2e.B", "a b.B",
             "l" * 64 + ".B", ".".join(["l" * 63] * 4) + ".B", "a*.B", "a,b.B", "u@a.B", "B:0", "B:65536",
             "B:080", "B:99999999999"]


class Maker:
    """Makes one rule set and its URLs."""

    def __init__(self, seed, today):
        self.random = random.Random(seed)
        self.today = today
        self.bases = self.random.sample(BASES, 2)
        self.near = []  # (host, scheme, port) that a rule matches

    def files(self):
        """File name -> text of the rules."""
        pick = self.random
        lines = [self.rule() for _ in range(pick.randint(1, 14))]
        if pick.random() < 0.5:
            nothing = pick.choice(["", "# a comment", "   ", "\t# another: deny **"])
            lines.insert(pick.randrange(len(lines) + 1), nothing)
        end = pick.choice(["\n", "\n", "\n", "\r\n"])
        cut = len(lines) if pick.random() < 0.6 else pick.randint(1, len(lines))
        files = {"a.rules": lines[:cut], "b.rules": lines[cut:]}
        return {name: "".join(line + end for line in part) for name, part in files.items()}

    def rule(self):
        pick = self.random
        deny = pick.random() < 0.2
        kind = pick.choices(["exact", "*.", "**.", ".", "glob", "regex", "net", "floor", "wide"],
                            [16, 12, 9, 12, 18, 12, 14, 3, 3])[0]
        base, wide = pick.choice(self.bases), False
        stem = base if pick.random() < 0.7 else pick.choice(LABELS) + "." + base
        if kind in ("exact", "*.", "**.", "."):
            text = ("" if kind == "exact" else kind) + stem
            samples = [self.sample(text)]
        elif kind == "glob":
            text = pick.choice(GLOBS).replace("B", stem).replace("L", pick.choice(LABELS))
            samples = [self.sample(text) for _ in range(2)]
        elif kind == "regex":
            text, samples = pick.choice(REGEXES)
            text, samples = text.replace("B", stem.replace(".", r"\.")), [one.replace("B", stem) for one in samples]
        elif kind == "wide":
            text, wide = pick.choice(WIDE), True
            samples = [stem, "anyone.org", "single", "y.github.io", "evilgood.org"]
        else:
            text = pick.choice(NETS if kind == "net" else FLOOR_NETS)
            samples = [self.address(text) for _ in range(2)]
        if kind not in ("regex", "net", "floor", "wide") and pick.random() < 0.15:
            text = text.upper() if pick.random() < 0.5 else text.title()
            if "_" not in text and "---" not in text:  # UTS-46 accepts neither in a line that is not ASCII.
                text = text.replace("XN--BCHER-KVA", "BÜCHER").replace("Xn--Bcher-Kva", "Bücher")
            if text.isascii() and "[" not in text and "{" not in text and pick.random() < 0.5:
                text += "."
        scheme, ports = self.how()
        self.near += [(sample, scheme, ports) for sample in samples]
        return ("deny " if deny else "") + self.spell(text, scheme, ports) + self.options(deny, wide, kind)

    def how(self):
        pick = self.random
        scheme = pick.choices([None, "https", "http", "wss", "ws", "tcp", "udp", "quic"], [56, 8, 8, 2, 2, 12, 6, 6])[0]
        ports = None
        if scheme in ("tcp", "udp") or pick.random() < 0.5:
            ports = pick.choices([(pick.choice(PORTS),), pick.choice(RANGES), "*"], [6, 3, 2])[0]
        return scheme, ports

    @staticmethod
    def spell(text, scheme, ports):
        tail = "" if ports is None else ":*" if ports == "*" else ":" + "-".join(map(str, ports))
        if scheme is None:
            return text + tail
        slash = "/" if len(text) % 5 == 0 and not text.startswith("/") and (tail or "/" not in text) else ""
        return f"{scheme}://{text}{tail}{slash}"

    def options(self, deny, wide, kind):
        pick, day = self.random, datetime.timedelta(days=1)
        words = []
        if pick.random() < 0.18:
            when = pick.choice([datetime.date(2020, 1, 1), self.today - day, self.today, self.today + day,
                                datetime.date(2099, 12, 31)])
            words.append(f"until={when}")
        if pick.random() < 0.1:
            words.append("owner=ops")
        if pick.random() < 0.1:
            words.append('note="why not"')
        if not deny and kind not in ("net", "floor") and pick.random() < 0.08:
            words.append(f"to={HOME}/32")
        if wide and not deny:
            words.append("wide=yes")
        pick.shuffle(words)
        return "".join(" " + word for word in words) + pick.choice(["", "", "", "  # why"])

    def sample(self, pattern):
        """A name that the pattern matches."""
        pick = self.random
        text = re.sub(r"\{([^}]*)\}", lambda found: pick.choice(found.group(1).split(",")), pattern)
        text = re.sub(r"^\*\*\.", lambda _: ".".join(pick.sample(LABELS, pick.randint(1, 3))) + ".", text)
        text = re.sub(r"^\.", lambda _: pick.choice(["", pick.choice(LABELS) + "."]), text)
        text = re.sub(r"\[(.)[^\]]*\]", r"\1", text)
        text = re.sub(r"(?<![^.])\*(?![^.])", lambda _: pick.choice(LABELS), text)
        return text.replace("?", pick.choice("a1z")).replace("*", pick.choice(["", "a", "7", "eu-2"]))

    def address(self, text):
        """An address in the network, at its first or last address, or one beyond them."""
        pick = self.random
        net = ipaddress.ip_network(text.replace("[", "").replace("]", ""))
        first, last = int(net.network_address), int(net.broadcast_address)
        near = [first, last, first + 1, last - 1, first - 1, last + 1, pick.randint(first, last)]
        made = type(net.network_address)(min(max(pick.choice(near), 0), 2**net.max_prefixlen - 1))
        return f"[{made}]" if made.version == 6 else str(made)

    # ---- URLs

    def urls(self, count):
        """`count` different URLs."""
        made = {}
        while len(made) < count:
            made.setdefault(self.url())
        return list(made)

    def url(self):
        pick = self.random
        if pick.random() < 0.04:
            host = pick.choice(MALFORMED).replace("B", pick.choice(self.bases))
            return pick.choice(["https://", "http://", "http://", "tcp://", ""]) + host + pick.choice(["", ":443"])
        host, scheme, ports = pick.choice(self.near)
        if pick.random() < 0.05:
            host = pick.choice(FLOOR)
        elif not self.is_address(host):
            host = self.twist(host)
        scheme, port = self.ask(scheme, ports)
        if scheme in ("tcp", "udp") and port is None:
            port = pick.choice(PORTS)
        tail = "" if port is None else f":{port}"
        if scheme is None:
            return host + tail
        if pick.random() < 0.05:
            scheme = scheme.upper()
        return f"{scheme}://{host}{tail}" + pick.choice(["", "/", "/a/b?c#d"])

    @staticmethod
    def is_address(host):
        return host.startswith("[") or re.fullmatch(r"[0-9.]+", host) is not None

    def ask(self, scheme, ports):
        pick = self.random
        if pick.random() < 0.05:
            return pick.choice([("tcp", 443), ("tcp", 80), ("http", 443), ("https", 80), (None, 443), (None, 80)])
        # Rules that allow any protocol on a port of the web are rare, and easily misread.
        web = [port for port in (80, 443) if ports == "*" or (ports and ports[0] <= port <= ports[-1])]
        if web and pick.random() < 0.2:
            return pick.choice([None, "http", "https", "tcp"]), pick.choice(web)
        if ports is None or pick.random() < 0.12:
            port = None if pick.random() < 0.75 else pick.choice(PORTS)
        elif ports == "*":
            port = pick.choice(PORTS)
        else:
            near = [ports[0], ports[0], ports[-1], ports[-1], ports[0] - 1, ports[-1] + 1]
            port = max(1, min(65535, pick.choice(near)))
        if pick.random() < 0.3:
            schemes = [None, "https", "http", "wss", "ws", "tcp", "udp", "quic"]
            scheme = pick.choices(schemes, [6, 6, 6, 1, 1, 4, 2, 2])[0]
        return scheme, port

    def twist(self, name):
        """The name itself or a similar one."""
        pick = self.random
        labels = name.split(".")
        other = pick.choice(LABELS)
        at = pick.randrange(len(labels))
        twisted = pick.choices(
            [name, other + "." + name, ".".join(labels[1:]) or name, ".".join([*labels[:at], other, *labels[at + 1 :]]),
             "x" + name, name + ".evil.org", name + "x", ".".join([*labels[:-1], "com"]),
             name.replace(".", "x", 1), ".".join([*labels[:at], other, *labels[at:]]), pick.choice(self.bases),
             other + "." + pick.choice(self.bases), name.replace(".", "-", 1)],
            [100, 9, 9, 9, 4, 3, 2, 2, 3, 4, 6, 8, 2])[0]
        style = pick.random()
        if style < 0.08:
            twisted = twisted.upper()
        elif style < 0.12:
            twisted = twisted.title()
        return twisted + ("." if pick.random() < 0.07 else "")
