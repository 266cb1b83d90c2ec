"""Makes Markdown of measured lines."""

import statistics

# The figure's key in the line of JSON, its heading, its decimals.
RATE = [("cpu_us", "CPU µs each", 1), ("per_s", "per s", 0), ("p50_us", "p50 µs", 0), ("p99_us", "p99 µs", 0)]
BULK = [("cpu_s_per_gib", "CPU s/GiB", 3), ("gib_per_s", "GiB/s", 2)]
LATENCY = [RATE[2], RATE[3], RATE[0]]
# The additional cost of a listener with TLS, compared with the same tunnel without.
HANDSHAKE = [RATE[0], ("beyond", "of them TLS", 1), *RATE[1:]]
ROTATE = [
    RATE[3],
    RATE[2],
    ("max_us", "slowest µs", 0),
    ("max_at_s", "slowest at s", 2),
    ("per_s", "per s", 0),
    ("replaced", "replaced", 0),
    ("certificates", "certificates seen", 0),
    ("errors", "errors", 0),
]
IDLE = [("kib_per_tunnel", "KiB a tunnel", 1), ("alive", "tunnels", 0), ("base_mib", "MiB before", 1)]
DNS = RATE[:2]
RELOAD = [
    ("through_s", "s until in force", 2),
    ("cpu_s", "CPU s of the reload", 2),
    ("busy_max_us", "slowest µs", 0),
    ("quiet_max_us", "without a reload", 0),
    ("busy_max_at_s", "slowest at s", 2),
    ("busy_p99_us", "p99 µs", 0),
    ("quiet_p99_us", "without a reload", 0),
    ("busy_p50_us", "p50 µs", 0),
    ("quiet_p50_us", "without a reload", 0),
]
FAIR = [
    ("busy_p99_us", "p99 µs beside", 0),
    ("busy_p50_us", "p50 µs beside", 0),
    ("quiet_p99_us", "p99 µs alone", 0),
    ("quiet_p50_us", "p50 µs alone", 0),
    ("busy_open_p99_us", "new tunnel, p99 µs beside", 0),
    ("quiet_open_p99_us", "new tunnel, p99 µs alone", 0),
    ("gib_per_s", "streams GiB/s", 2),
]
PIPELINES = [
    ("busy_p50_us", "p50 µs beside", 0),
    ("quiet_p50_us", "p50 µs alone", 0),
    ("busy_p99_us", "p99 µs beside", 0),
    ("quiet_p99_us", "p99 µs alone", 0),
    ("answered_kib_per_s", "answered to the other, KiB/s", 0),
]
# The heading of each load and its figures; ratios are those of the first.
LOADS = {
    "latency": ("One tunnel at a time: CONNECT, a byte there and back, close", LATENCY),
    "tunnels": ("64 tunnels at a time: CONNECT, a byte there and back, close", RATE),
    "bulk-1": ("One stream down", BULK),
    "bulk-8": ("Eight streams down", BULK),
    "bulk-up": ("Eight streams up", BULK),
    "http": ("Plain HTTP on 64 kept connections, 1 KiB an answer", RATE),
    "refused": ("CONNECT to a name that is not allowed, 64 at a time", RATE),
    "tls": ("A TLS 1.3 handshake with the origin, one request, close, 32 at a time", RATE),
    "idle": ("Tunnels held open", IDLE),
    "fair-8": ("A byte there and back, beside eight fast streams of another client", FAIR),
    "fair-64": ("A byte there and back, beside 64 fast streams of another client", FAIR),
    "fair-refused": ("A request on a kept connection, beside 4,000 of another client that pipeline refused ones", PIPELINES),
    "fair-allowed": ("A request on a kept connection, beside 4,000 of another client that pipeline HEAD", PIPELINES),
    "dns-cached": ("DNS over UDP: a name that is in the cache, 100 queries at a time", DNS),
    "dns-refused": ("DNS over UDP: a name that is refused, 100 queries at a time", DNS),
    "handshake": ("64 tunnels at a time inside TLS: handshake with the proxy, then as above, close", HANDSHAKE),
    "handshake-cert": ("The same, and clients show a certificate", HANDSHAKE),
    "tls-bulk-down": ("One stream down inside TLS", BULK),
    "tls-bulk-up": ("One stream up inside TLS", BULK),
    "rotate": ("500 handshakes a second, while certificate and key are replaced", ROTATE),
    "reload": ("One tunnel at a time, while the list is replaced by one with one name more", RELOAD),
}


# The load from which a figure is the difference, in the same row and round.
BEYOND = {"handshake": "tunnels", "handshake-cert": "tunnels"}


def number(value, digits):
    return f"{value:,.{digits}f}"


def cell(values, digits):
    """The median, and in small type the least and the greatest."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    text = number(statistics.median(values), digits)
    if len(values) > 1:
        text += f" <sub>{number(min(values), digits)}–{number(max(values), digits)}</sub>"
    return text


def ratio(ours, theirs, figure):
    """The median of the ratios within each round, since a slow machine slows both."""
    pairs = [(ours[turn].get(figure), theirs[turn].get(figure)) for turn in ours.keys() & theirs.keys()]
    ratios = [our / their for our, their in pairs if our and their and their > 0]
    return cell(ratios, 2)


def faults(line):
    """What is wrong with a measurement, or nothing."""
    if "failed" in line:
        return line["failed"]
    if line.get("errors"):
        kinds = ", ".join(f"{kind}: {count}" for kind, count in line.get("error_kinds", {}).items())
        return f"{line['errors']} errors ({kinds})"
    if not line.get("ok"):
        return "nothing was done"
    if line.get("load") == "idle" and line["alive"] != line["ok"]:
        return f"{line['ok'] - line['alive']} tunnels did not stay open"
    return ""


def beyond(line, base, figure):
    """The difference of the line from the base, if both are known."""
    more = line.get(figure), base.get(figure)
    return {} if None in more or faults(line) or faults(base) else {"beyond": more[0] - more[1]}


def of_load(load, rows, measured):
    """The table of one load; measured as {load: {(row's name, round): line}}."""
    title, figures = LOADS[load]
    bases = measured.get(BEYOND.get(load), {})
    lines = {at: line | beyond(line, bases.get(at, {}), figures[0][0]) for at, line in measured[load].items()}
    heads = ["", *(heading for _, heading, _ in figures), f"outgate/this, {figures[0][1]}"]
    out = [f"### {title}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        mine = {turn: line for (name, turn), line in lines.items() if name == row.name}
        if not mine:
            continue
        wrong = [fault for fault in map(faults, mine.values()) if fault]
        if wrong:
            said = " ".join(wrong[0].replace("|", "/").split())
            out.append(f"| {row.name} | **no result**: {said[:300]} |" + " |" * (len(heads) - 2))
            continue
        cells = [cell([line.get(figure) for line in mine.values()], digits) for figure, _, digits in figures]
        ours = {turn: line for (name, turn), line in lines.items() if name == row.against and not faults(line)}
        cells.append(ratio(ours, mine, figures[0][0]) if ours else "")
        out.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(out)
