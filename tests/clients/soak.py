#!/usr/bin/env python3
"""Two guests work through both listeners during list changes and signals: nothing fails, nothing grows.

soak.py [--seconds N] [PATH OF outgate]. The network of jobs.py. Each guest has four workers that use the proxy and four
without a proxy setting. The latter look a name up ten times a second each, as resolvers without a cache do, and each
fetch has another look-up and a new connection. Meanwhile a list changes every second, and a SIGHUP is sent every three.
Checked: each look-up and each fetch has the right result; log and metrics show no refusal by a limit; memory and
descriptors of the last third equal those of the first. Requires root. N is 60 by default; 900 for a full run.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import time

import run
from jobs import Both, finish, refused_by_limits

WORKERS = 4
PER_SECOND = 10
# Seconds until caches and buffers have their usual size.
WARM = 5
# By how much memory may grow: a fraction of it, plus KiB.
GROWTH, KIBIBYTES = 0.10, 4096
# The number of descriptors varies with the open connections.
DESCRIPTORS = 64
HUP_EVERY = 3
NAMES = [f"n{number}.soak.test" for number in range(20)]
GUESTS = {"guest": "g1", "neighbour": "g2"}


class Soak(Both):
    """The world with a file at each name."""

    allowed = NAMES

    def content(self):
        self.pages = []
        for number, name in enumerate(NAMES):
            digest = self.put(name, "file", os.urandom(2000))
            # One of five with TLS, because handshakes cost these clients more than they cost outgate.
            self.pages.append([f"http{'s' if number % 5 == 0 else ''}://{name}/file", digest])

    def rules(self):
        return "**.soak.test ech=allow\n"

    def churn(self, number):
        """Writes another list, with a rule that does not concern the guests."""
        path = self.path("whitelist", "churn.rules")
        with open(path + ".new", "w") as file:
            file.write(f"unrelated{number % 2}.test\n")
        os.rename(path + ".new", path)


def memory(process):
    """Resident memory in KiB."""
    with open(f"/proc/{process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def thirds(samples):
    """The medians of the first and of the last third."""
    third = max(1, len(samples) // 3)
    return statistics.median(samples[:third]), statistics.median(samples[-third:])


def disturb(world, daemon, seconds):
    """Changes the list each second and sends a SIGHUP now and then; records memory and descriptors each second."""
    samples = []
    begin = time.monotonic()
    for second in range(seconds):
        time.sleep(max(0, begin + second - time.monotonic()))
        world.churn(second)
        if second % HUP_EVERY == 0:
            daemon.send_signal(signal.SIGHUP)
        assert daemon.poll() is None, f"outgate ended with {daemon.returncode}"
        if second >= WARM:
            samples.append((memory(daemon), len(os.listdir(f"/proc/{daemon.pid}/fd"))))
    return samples


def generation(world):
    line, = (line for line in world.metrics().splitlines() if line.startswith("outgate_whitelist_generation "))
    return int(line.split()[1])


def soak(world, seconds):
    """Gives what is wrong, as a list of sentences."""
    daemon = world.processes[-1]
    first = generation(world)
    crowds = {
        (part, listener): world.crowd(part, proxy=proxy, workers=WORKERS, seconds=seconds, per_second=PER_SECOND, lookups=proxy is None, urls=world.pages)
        for part in GUESTS
        for listener, proxy in (("proxy", run.PROXY), ("transparent", None))
    }
    try:
        samples = disturb(world, daemon, seconds)
        outputs = {key: finish(process) for key, process in crowds.items()}
    finally:
        for process in crowds.values():
            process.kill()
    problems = []
    for (part, listener), (out, errors) in outputs.items():
        result = json.loads(out) if out else {"failures": errors.decode()[-1000:], "fetches": 0}
        print(f"{part:12} {listener:12} {json.dumps(result)}", flush=True)
        if result["failures"]:
            problems.append(f"{part} by {listener}: {result['failures']}")
        if result["fetches"] < seconds:
            problems.append(f"{part} by {listener}: {result['fetches']} fetches are too few to tell anything")
    if refused := refused_by_limits(world):
        problems.append(f"refused by limits: {dict(refused)}")
    with open(world.path("access.log")) as file:
        lines = [line for line in file if '"verdict":"allowed"' not in line]
    if lines:
        problems.append(f"{len(lines)} lines in the log are not of what was allowed: {lines[0].strip()}")
    lists = generation(world) - first
    (memory_first, memory_last), (open_first, open_last) = (thirds(list(series)) for series in zip(*samples, strict=True))
    print(f"memory {memory_first / 1024:.1f} MiB, then {memory_last / 1024:.1f}; descriptors {open_first:.0f}, then {open_last:.0f}; {lists} lists")
    if memory_last > memory_first * (1 + GROWTH) + KIBIBYTES:
        problems.append("memory grows")
    if open_last > open_first + DESCRIPTORS:
        problems.append("descriptors are left open")
    # Half of them, because two changes may be read as one on a busy machine.
    if lists < seconds / 2:
        problems.append(f"{lists} new lists in {seconds} s are too few")
    if "outgate_panics_total 0\n" not in world.metrics():
        problems.append("a panic was counted")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outgate", nargs="?", default=os.path.join(run.ROOT, "target", "debug", "outgate"))
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long, 20 or more")
    given = parser.parse_args()
    if given.seconds < 20:
        parser.error("--seconds: 20 or more, otherwise growth cannot be measured")
    if os.geteuid() != 0:
        print("skipped: requires root, for network namespaces")
        return 1 if os.environ.get("CI") == "true" else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with Soak(given.outgate) as world:
        problems = soak(world, given.seconds)
        if problems:
            print(open(world.path("outgate.err"), errors="replace").read()[-3000:], file=sys.stderr)
    for problem in problems:
        print(f"FAILED  {problem}")
    print(f"soak: {given.seconds} s, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
