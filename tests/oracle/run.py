#!/usr/bin/env python3
"""Compares `outgate explain` and a running daemon with a naive matcher written from the documentation.

For each generated (rules, URL) pair three answers must agree: the matcher's, `explain`'s, and what
a client of the proxy gets. `http://` is asked for with a GET, the rest of TCP with a CONNECT, where the
proxy can only decide whether *any* protocol may pass. A request, a ClientHello or raw bytes are then
sent in a tunnel, and whether they arrive must agree with the verdict on the URL itself. UDP is
explained only.
"""

import argparse
import concurrent.futures
import datetime
import os
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True

import gateway
from generate import PERMITTED, Maker
from matcher import MUTANTS, Judge, Malformed, ask_of

URLS = 50
SHOWN = 2  # of each kind
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Case:
    """A rule set with its URLs."""

    number: int
    files: dict
    urls: list
    explained: dict = field(default_factory=dict)


def main():
    arguments = parse_arguments()
    binary = find_binary(arguments.binary)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    pairs = arguments.quick or arguments.pairs
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"oracle: seed {seed}, {today}, {binary}", flush=True)
    cases = make_cases(seed, pairs, today)
    isolated = not arguments.no_namespace and gateway.isolate()
    if isolated:
        gateway.Upstreams().start()
    else:
        print("oracle: no network namespace of its own; what tunnels carry is not looked at")
    directory = Path(tempfile.mkdtemp(prefix="outgate-oracle-"))
    directory.chmod(0o755)
    started = time.monotonic()
    try:
        disagreements = compare(cases, binary, directory, isolated, today)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    took = time.monotonic() - started
    missed = self_test(cases, today) if arguments.self_test else 0
    if datetime.datetime.now(datetime.timezone.utc).date() != today:
        print("oracle: midnight (UTC) passed meanwhile, rules may have expired; run it again")
    print(f"oracle: seed {seed}, {took:.0f} s")
    print(f"{pairs} pairs, {disagreements} disagreements")
    return 1 if disagreements or missed else 0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="repeat the run that printed this seed on the same day")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--quick", type=int, nargs="?", const=6_000, metavar="N", help="N pairs, 6000 without N")
    parser.add_argument("--self-test", action="store_true", help="also check that each wrong reading is noticed")
    parser.add_argument("--no-namespace", action="store_true", help="stay in this network namespace")
    parser.add_argument("--binary", default=os.environ.get("OUTGATE"))
    return parser.parse_args()


def find_binary(given):
    for path in [Path(given)] if given else [ROOT / "target/debug/outgate", ROOT / "target/release/outgate"]:
        if path.is_file():
            return path.resolve()
    sys.exit("oracle: no outgate binary; build one or name it in OUTGATE")


def make_cases(seed, pairs, today):
    cases = []
    while (left := pairs - len(cases) * URLS) > 0:
        maker = Maker(f"{seed}/{len(cases)}", today)
        files = maker.files()
        cases.append(Case(len(cases), files, maker.urls(min(URLS, left))))
    return cases


def compare(cases, binary, directory, isolated, today):
    names = set()
    for case in cases:
        names |= {name for url in case.urls if (name := name_in(url))}
    gate = gateway.Gateway(binary, directory, names, isolated)
    found, shown, tally = 0, {}, {"allowed": 0, "denied": 0, "proxied": 0, "tunnelled": 0}
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for case in cases:
                for url, complaint in disagreements_in(case, gate, pool, today, tally):
                    found += 1
                    kind = kind_of(complaint)
                    shown[kind] = shown.get(kind, 0) + 1
                    if shown[kind] <= SHOWN:
                        report(case, url, complaint, gate, pool, today)
        _, status = gate.control("GET", "/status")
        if '"panics":0' not in status:
            found += 1
            print("DISAGREEMENT: the daemon counts panics:", status)
    finally:
        gate.stop()
    for kind, times in sorted(shown.items(), key=lambda item: -item[1]):
        print(f"oracle: {times} times: {kind}")
    print("oracle: " + ", ".join(f"{count} {what}" for what, count in tally.items()))
    return found


def name_in(url):
    try:
        host = ask_of(url).host
    except Malformed:
        return None
    return host if isinstance(host, str) else None


def disagreements_in(case, gate, pool, today, tally=None):
    """(URL, complaint) for each pair of the case on which not all agree."""
    judge = Judge(case.files, today, PERMITTED)
    problem = gate.load(case.files)
    if problem:
        return [(None, f"the daemon refuses a sound list: {problem}")]
    asked = list(dict.fromkeys([*case.urls, *(other for url in case.urls if (other := unspecific(url)))]))
    explaining = pool.submit(gate.explain, asked)
    proxied = list(pool.map(lambda url: attempt(gate, url), case.urls))
    try:
        case.explained = explaining.result()
    except RuntimeError as problem:
        return [(None, str(problem))]
    found = []
    for url in asked:
        if complaint := against_oracle("explain", judge.judge(url), case.explained.get(url)):
            found.append((url, complaint))
    for url, seen in zip(case.urls, proxied):
        if tally:
            count(tally, case.explained[url], seen)
        if complaint := seen and against_proxy(judge, case.explained, url, seen):
            found.append((url, complaint))
    return found


def count(tally, explained, seen):
    tally[explained["verdict"]] += 1
    tally["proxied"] += seen is not None
    tally["tunnelled"] += bool(seen) and seen[2] is not None


def unspecific(url):
    """The `host:port` that a CONNECT for this URL names; None where no CONNECT is sent."""
    scheme, separator, rest = url.partition("://")
    if scheme.lower() in ("http", "ws", "udp", "quic") and separator:
        return None
    authority = (rest if separator else url).split("/", 1)[0]
    try:
        ask = ask_of(url)
    except Malformed:
        return authority if explicit_port(authority) else None
    return authority if explicit_port(authority) else f"{authority}:{ask.port}"


def explicit_port(authority):
    return ":" in authority.rpartition("]")[2]


def attempt(gate, url):
    """(verdict, reason, arrived) through the proxy; None where the proxy is not for this URL."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower() if separator else None
    if scheme in ("http", "ws"):
        authority = rest.split("/", 1)[0]
        return *gate.get(authority), carried(gate, authority) if gate.isolated else None
    authority = unspecific(url)
    if authority is None or " " in authority:
        return None
    first = None
    if gate.isolated:
        try:
            host = ask_of(url).host
        except Malformed:
            host = None
        if scheme in ("https", "wss") or not explicit_port(url.partition("://")[2] or url):
            first = gateway.client_hello(host if isinstance(host, str) else None)
        elif scheme == "tcp":
            first = b"\x00\x01\x02 raw bytes\n"
    return gate.tunnel(authority, first)


def carried(gate, authority):
    """Whether a plain request gets through a tunnel; None where the destination is down."""
    with_port = authority if explicit_port(authority) else authority + ":80"
    request = f"GET / HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    verdict, _, arrived = gate.tunnel(with_port, request.encode())
    return arrived if verdict == "allowed" else False


def against_oracle(who, expected, got):
    verdict, reasons, places = expected
    wanted = f"{verdict} {' or '.join(sorted(reasons))}"
    if got is None:
        return f"{who} does not answer; expected {wanted}"
    if got["verdict"] != verdict or got["reason"] not in reasons:
        return f"expected {wanted}, {who} says {got['verdict']} {got['reason']} ({got['rule']})"
    if places and got["rule"] not in places:
        return f"expected {wanted} by {' or '.join(sorted(places))}, {who} names {got['rule']}"
    return None


def against_proxy(judge, explained, url, seen):
    verdict, reason, arrived = seen
    question = unspecific(url) or url
    wanted_verdict, reasons, _ = judge.judge(question)
    if verdict != wanted_verdict or reason not in reasons:
        wanted = f"{wanted_verdict} {' or '.join(sorted(reasons))}"
        return f"asked for {question}: expected {wanted}, the proxy says {verdict} {reason}"
    told = explained[question]
    if (told["verdict"], told["reason"]) != (verdict, reason):
        return f"asked for {question}: explain says {told['verdict']} {told['reason']}, the proxy {verdict} {reason}"
    if arrived is not None and arrived != (judge.judge(url)[0] == "allowed"):
        return f"expected {judge.judge(url)[0]}, but bytes in the tunnel {'arrived' if arrived else 'were refused'}"
    return None


# ---- when they do not agree -------------------------------------------------------------------------


def kind_of(complaint):
    """The complaint without the details of its URL."""
    return re.sub(r"asked for \S+: | \(.*\)| by .*", "", complaint)


def report(case, url, complaint, gate, pool, today):
    """Prints the fewest rules with which the answers for this URL still differ."""
    files = case.files
    for name in list(files):
        for line in files[name].splitlines(keepends=True):
            fewer = files | {name: files[name].replace(line, "", 1)}
            again = disagreements_in(Case(case.number, fewer, [url] if url else case.urls), gate, pool, today)
            if same := [one for one in again if one[0] == url and kind_of(one[1]) == kind_of(complaint)]:
                files, complaint = fewer, same[0][1]
    print(f"DISAGREEMENT in set {case.number}: {url}\n  {complaint}")
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            print(f"  {name}:{number}: {line}")
    sys.stdout.flush()


def self_test(cases, today):
    """How many wrong readings of the rules agree with `explain` on every URL."""
    missed = 0
    for mutant, means in MUTANTS.items():
        caught = 0
        for case in cases:
            right, wrong = Judge(case.files, today, PERMITTED), Judge(case.files, today, PERMITTED, mutant)
            for url in case.urls:
                got = case.explained.get(url)
                agreed = not against_oracle("explain", right.judge(url), got)
                caught += bool(agreed and against_oracle("explain", wrong.judge(url), got))
        missed += caught == 0
        print(f"self-test: {'caught' if caught else 'MISSED'} {caught:5} times: {means}")
    print(f"self-test: {len(MUTANTS) - missed} of {len(MUTANTS)} wrong readings caught")
    return missed


if __name__ == "__main__":
    sys.exit(main())
