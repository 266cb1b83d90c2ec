"""A naive implementation of the rule language, to compare outgate's with.

It shares nothing with the program: no automaton, no index, no cache. Every rule is tried against
every URL, labels are compared one by one, braces are written out, addresses are compared as
integers. Where the documentation does not say which of two reasons comes first, `judge` gives all
that fit; the verdict is always exactly one. `MUTANTS` are readings that are deliberately wrong.

Not covered: invalid rules files (the generator writes only valid ones), and DNS.
"""

import ipaddress
import re
from dataclasses import dataclass

MUTANTS = {
    "star-takes-two": "`*.` takes one label or two",
    "doublestar-takes-none": "`**.x` holds for x as well",
    "dot-without-apex": "`.x` does not hold for x",
    "dot-ignores-boundary": "`.x` matches every name that ends in x",
    "star-crosses-dots": "`*` in a glob crosses dots",
    "regex-unanchored": "a regex matches anywhere in the name",
    "range-without-end": "the last port of a range is left out",
    "case-matters": "names are compared as written",
    "deny-ignored": "a deny rule does nothing",
    "deny-by-order": "an allow rule further up beats a deny rule",
    "until-is-exclusive": "a rule is no longer in force on its last day",
    "expired-holds": "an expired rule still holds",
    "bare-host-is-any-protocol": "port 443 of a bare host takes any protocol",
    "port-443-is-any-protocol": "`host:443` takes any protocol",
    "tcp-is-raw-only": "`tcp://` takes neither https nor http",
    "blocked-ports-open": "`host:*` opens the blocked ports",
    "prefix-off-by-one": "a network is half as large as it says",
}

SCHEMES = {
    "https": ("tcp", "https", 443),
    "wss": ("tcp", "https", 443),
    "http": ("tcp", "http", 80),
    "ws": ("tcp", "http", 80),
    "tcp": ("tcp", "raw", None),
    "udp": ("udp", "raw", None),
    "quic": ("udp", "quic", 443),
}
EVERY = {"tcp": {"https", "http", "raw"}, "udp": {"quic", "raw"}}
BLOCKED = {25, 465, 587}


class Malformed(Exception):
    """The text names no destination."""


@dataclass
class Ask:
    """What a URL asks for: any one of `protocols` is enough."""

    host: object
    transport: str
    protocols: set
    port: int
    written: str


@dataclass
class Rule:
    """One line of a rules file."""

    place: str
    deny: bool
    scheme: str | None
    kind: str
    pattern: object
    ports: tuple | None
    until: object


# ---- names and URLs ----------------------------------------------------------------------------


def host_of(text):
    """An address or a lower-case name without its final dot."""
    if text.startswith("["):
        try:
            return ipaddress.IPv6Address(text.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise Malformed(text) from None
    if re.fullmatch(r"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}", text):
        try:
            return ipaddress.IPv4Address(text)
        except ValueError:
            raise Malformed(text) from None
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    for label in labels:
        if not re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label):
            raise Malformed(text)
    if len(name) > 253 or labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        raise Malformed(text)
    return name


def ask_of(url):
    """Takes a URL apart; without a scheme it is https, or with a port any protocol over TCP."""
    scheme, rest = None, url
    if "://" in url:
        scheme, rest = url.split("://", 1)
        scheme = scheme.lower()
        if scheme not in SCHEMES:
            raise Malformed(url)
    authority = rest.split("/", 1)[0]
    found = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d+))?", authority)
    if not found:
        raise Malformed(url)
    host, port = found.group(1), found.group(2)
    if port is not None and (port.startswith("0") or int(port) > 65535):
        raise Malformed(url)
    if scheme is None and port is not None:
        return Ask(host_of(host), "tcp", EVERY["tcp"], int(port), host)
    transport, protocol, default = SCHEMES[scheme or "https"]
    if port is None and default is None:
        raise Malformed(url)
    return Ask(host_of(host), transport, {protocol}, int(port or default), host)


# ---- rules -------------------------------------------------------------------------------------


def parse(place, line):
    """The rule on a line, or None where there is none."""
    words = line.split("#", 1)[0].split()
    if not words:
        return None
    deny = words[0] == "deny"
    if deny:
        words.pop(0)
    scheme, rest = None, words[0]
    if found := re.match(r"(https|wss|http|ws|tcp|udp|quic)://", rest):
        scheme, rest = found.group(1), rest[found.end() :]
    kind, pattern, ports = subject(rest)
    until = next((word.removeprefix("until=") for word in words[1:] if word.startswith("until=")), None)
    return Rule(place, deny, scheme, kind, pattern, ports, until)


def subject(text):
    """Host pattern and ports of a rule, without its scheme."""
    if text.startswith("/"):
        end = text.rindex("/")
        return "regex", re.compile(text[1:end]), ports_of(text[end + 1 :])
    if found := re.fullmatch(r"\[([0-9a-f:.]*:[0-9a-f:.]*)\](/\d+)?(:.+?)?/?", text):
        return "net", ipaddress.ip_network(found.group(1) + (found.group(2) or "")), ports_of(found.group(3) or "")
    if found := re.fullmatch(r"(\d+\.\d+\.\d+\.\d+)(/\d+)?(:.+?)?/?", text):
        return "net", ipaddress.ip_network(found.group(1) + (found.group(2) or "")), ports_of(found.group(3) or "")
    host, colon, ports = text.removesuffix("/").partition(":")
    return "name", host.removesuffix("."), ports_of(colon + ports)


def ports_of(text):
    """First and last port, None where the rule names none."""
    if text in ("", "/"):
        return None
    text = text.removeprefix(":")
    if text == "*":
        return (1, 65535)
    first, _, last = text.partition("-")
    return (int(first), int(last or first))


def written_out(pattern):
    """The pattern once for each choice its braces give."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [one for choice in found.group(1).split(",") for one in written_out(before + choice + after)]


def ascii_form(label):
    """The A-label of a label that is not ASCII."""
    return label if label.isascii() else "xn--" + label.lower().encode("punycode").decode()


# ---- judging -----------------------------------------------------------------------------------


class Judge:
    """Judges by one list. `permitted` are the networks taken out of the address floor."""

    def __init__(self, files, today, permitted, mutant=None):
        self.mutant = mutant
        self.today = today.isoformat()
        self.permitted = [ipaddress.ip_network(one) for one in permitted]
        self.rules = []
        for name in sorted(files):
            for number, line in enumerate(files[name].splitlines(), 1):
                if rule := parse(f"{name}:{number}", line):
                    self.rules.append(rule)

    def judge(self, url):
        """(verdict, reasons that fit, places of rules that can have decided or None)"""
        try:
            ask = ask_of(url)
        except Malformed:
            return "denied", {"malformed"}, None
        names_it = [rule for rule in self.rules if self.holds_for(rule, ask)]
        live = [rule for rule in names_it if self.is_live(rule)]
        denies = [rule for rule in live if rule.deny and self.mutant != "deny-ignored"]
        allows = [rule for rule in live if not rule.deny]
        passing, refused, by_deny = set(), set(), set()
        for protocol in ask.protocols:
            against = {rule.place for rule in denies if self.refuses(rule, ask, protocol)}
            for_it = {rule.place for rule in allows if self.lets_pass(rule, ask, protocol)}
            if self.mutant == "deny-by-order" and for_it and against and min(for_it) < min(against):
                against = set()
            if against:
                refused.add(protocol)
                by_deny |= against
            else:
                passing |= for_it
        # The floor is checked after the policy, where a rule allows the address.
        if passing:
            return ("denied", {"address_floor"}, None) if self.is_floored(ask.host) else ("allowed", {"none"}, passing)
        if refused == ask.protocols:
            return "denied", {"denied_by_rule"}, by_deny
        expired = [rule for rule in names_it if not self.is_live(rule) and not rule.deny]
        return "denied", ({"denied_by_rule"} if refused else set()) | self.why_not(ask, allows, expired), None

    def why_not(self, ask, allows, expired):
        reasons = set()
        for rule in allows:
            if not self.has_port(rule, ask.port):
                reasons.add("port_not_allowed")
            elif self.transport(rule) != ask.transport:
                reasons |= {"port_not_allowed", "protocol_not_allowed"}
            else:
                if self.is_blocked(rule, ask):
                    reasons.add("port_not_allowed")
                if not self.takes_any(rule, ask):
                    reasons.add("protocol_not_allowed")
        # The right host and port with the wrong protocol is a nearer miss than the right host alone.
        for rule in allows:
            right_port = self.transport(rule) == ask.transport and self.has_port(rule, ask.port)
            if right_port and not self.is_blocked(rule, ask) and not self.takes_any(rule, ask):
                reasons = {"protocol_not_allowed"}
                if ask.transport != "tcp":
                    # QUIC for other datagrams on the same port: another transport as much as another protocol.
                    reasons.add("port_not_allowed")
        if not allows:
            reasons.add("not_whitelisted")
        if expired:
            would = any(self.takes_any(rule, ask) and not self.is_blocked(rule, ask) for rule in expired)
            if would and not allows:
                return {"rule_expired"}
            reasons |= {"rule_expired", "port_not_allowed", "protocol_not_allowed"}
        return reasons

    def is_live(self, rule):
        if rule.until is None or self.mutant == "expired-holds":
            return True
        return rule.until > self.today if self.mutant == "until-is-exclusive" else rule.until >= self.today

    def is_floored(self, host):
        if isinstance(host, str):
            return False
        return not any(host.version == net.version and host in net for net in self.permitted)

    # ---- ports and protocols

    @staticmethod
    def transport(rule):
        return SCHEMES[rule.scheme][0] if rule.scheme else "tcp"

    def has_port(self, rule, port):
        if rule.ports:
            first, last = rule.ports
            return first <= port <= (last - 1 if self.mutant == "range-without-end" and last > first else last)
        return port in ([SCHEMES[rule.scheme][2]] if rule.scheme else [80, 443])

    def takes(self, rule, ask, protocol):
        """Whether an allow rule for this host takes this port and protocol."""
        if self.transport(rule) != ask.transport or not self.has_port(rule, ask.port):
            return False
        if rule.scheme in ("tcp", "udp"):
            return self.mutant != "tcp-is-raw-only" or protocol not in ("https", "http")
        if rule.scheme:
            return protocol == SCHEMES[rule.scheme][1]
        if self.mutant == "bare-host-is-any-protocol" and rule.ports is None and ask.port == 443:
            return True
        if self.mutant == "port-443-is-any-protocol" and rule.ports is not None and ask.port == 443:
            return True
        return {80: protocol == "http", 443: protocol == "https"}.get(ask.port, True)

    def takes_any(self, rule, ask):
        return any(self.takes(rule, ask, protocol) for protocol in ask.protocols)

    def lets_pass(self, rule, ask, protocol):
        return self.takes(rule, ask, protocol) and not self.is_blocked(rule, ask)

    def refuses(self, rule, ask, protocol):
        """A deny rule without scheme and port refuses the host; with ports, any protocol there."""
        if rule.scheme is None and rule.ports is None:
            return True
        if rule.scheme is None:
            return ask.transport == "tcp" and self.has_port(rule, ask.port)
        return self.takes(rule, ask, protocol)

    def is_blocked(self, rule, ask):
        named = rule.ports == (ask.port, ask.port)
        return ask.port in BLOCKED and not named and self.mutant != "blocked-ports-open"

    # ---- hosts

    def holds_for(self, rule, ask):
        host = ask.host
        if rule.kind == "net":
            net = rule.pattern
            if isinstance(host, str):
                return False
            if net.version == 4 and host.version == 6 and host.ipv4_mapped:
                host = host.ipv4_mapped  # The same destination in another notation; the floor refuses it anyway.
            if host.version != net.version:
                return False
            if self.mutant == "prefix-off-by-one" and net.prefixlen < net.max_prefixlen:
                net = ipaddress.ip_network((net.network_address, net.prefixlen + 1))
            return int(net.network_address) <= int(host) <= int(net.broadcast_address)
        if not isinstance(host, str):
            return False
        if self.mutant == "case-matters":
            host = ask.written.removesuffix(".")
        if rule.kind == "regex":
            how = rule.pattern.search if self.mutant == "regex-unanchored" else rule.pattern.fullmatch
            return how(host) is not None
        return any(self.fits(one, host) for one in written_out(rule.pattern))

    def fits(self, pattern, name):
        labels = name.split(".")
        if pattern in ("*", "**"):
            return True  # Alone, either matches every name. That is why the guard requires `wide=yes` for it.
        if pattern.startswith("**."):
            below, least = pattern[3:], 1
            if self.mutant == "doublestar-takes-none":
                least = 0
        elif pattern.startswith("."):
            below, least = pattern[1:], 0
            if self.mutant == "dot-without-apex":
                least = 1
            if self.mutant == "dot-ignores-boundary" and name.endswith(below):
                return True
        else:
            longer = ["*", *pattern.split(".")]
            if self.mutant == "star-takes-two" and pattern.startswith("*.") and self.row(longer, labels):
                return True
            if self.mutant == "star-crosses-dots" and "*" in pattern and self.text(pattern, name):
                return True
            return self.row(pattern.split("."), labels)
        wanted = below.split(".")
        return len(labels) >= len(wanted) + least and self.row(wanted, labels[len(labels) - len(wanted) :])

    def row(self, wanted, labels):
        return len(wanted) == len(labels) and all(
            self.text(self.plain(one), label) for one, label in zip(wanted, labels)
        )

    def plain(self, label):
        if self.mutant == "case-matters":
            return ascii_form(label)
        return ascii_form(label).lower()

    def text(self, pattern, label):
        """A glob within one label, character by character."""
        if not pattern:
            return not label
        first = pattern[0]
        if first == "*":
            return any(self.text(pattern[1:], label[skip:]) for skip in range(len(label) + 1))
        if not label:
            return False
        if first == "?":
            return self.text(pattern[1:], label[1:])
        if first == "[":
            end = pattern.index("]")
            return label[0] in members(pattern[1:end]) and self.text(pattern[end + 1 :], label[1:])
        return first == label[0] and self.text(pattern[1:], label[1:])


def members(inside):
    """The characters of a class such as `a-c7`."""
    found, at = set(), 0
    while at < len(inside):
        if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside):
            found |= {chr(code) for code in range(ord(inside[at]), ord(inside[at + 2]) + 1)}
            at += 3
        else:
            found.add(inside[at])
            at += 1
    return found
