#!/usr/bin/env python3
"""Measures outgate and other proxies side by side, and prints tables. README.md in this folder says what
the figures mean.

Requires root and Debian. Installs what is missing with apt-get, builds outgate and the load tool, and does the rest
in its own network namespaces. Takes three quarters of an hour; `--quick` a tenth.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # root should not leave files in a working copy

import tls_proxies  # noqa: E402
import pairs  # noqa: E402
import proxies  # noqa: E402
import queries  # noqa: E402
import resolvers  # noqa: E402
import stage as scenery  # noqa: E402
import table  # noqa: E402
from stage import BRIDGE, GUEST_INTERFACE, Stage, Trouble  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
LOADS = ["latency", "tunnels", "handshake", "bulk", "tls-bulk", "http", "refused", "tls", "idle", "fair", "dns"]
LOADS += ["reload", "rotate"]
PARTS = {"bulk": ["bulk-1", "bulk-8", "bulk-up"], "fair": ["fair-8", "fair-64", *proxies.PIPELINES], "dns": list(proxies.DNS)}
PARTS |= {"handshake": ["handshake", "handshake-cert"], "tls-bulk": ["tls-bulk-down", "tls-bulk-up"]}
# The longest time for a load, in seconds; the tool itself gives up before.
LIMIT = 100


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--peers", default="", help="only these rows, by the beginning of their names: squid,outgate")
    parser.add_argument("--loads", default=",".join(LOADS), help=f"only these, of {','.join(LOADS)}")
    names = "also outgate with so many names in its list; the one of `reload` has a million without this"
    parser.add_argument("--names", type=int, default=10, help=names)
    parser.add_argument("--two-cores", action="store_true", help="also outgate with two workers on two CPUs")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", metavar="FILE", help="every measurement, as JSON")
    parser.add_argument("--outgate", metavar="BIN", help="this one instead of building it")
    parser.add_argument("--tool", metavar="BIN", help="this load tool instead of building it")
    before = "outgate alone, beside this earlier build of it, in so many pairs as there are rounds"
    parser.add_argument("--before", metavar="BIN", help=before)
    chosen = parser.parse_args()
    unknown = set(chosen.loads.split(",")) - set(LOADS) - {part for parts in PARTS.values() for part in parts}
    if unknown:
        parser.error(f"no such load: {', '.join(unknown)}")
    if chosen.rounds < 1:
        parser.error("--rounds takes at least 1")
    if os.geteuid() != 0:
        parser.error("requires root, for network namespaces; nothing of the host's network is changed")
    return chosen


def cargo(target, *arguments):
    """Builds as the user who called sudo, and gives the path of the program of this name."""
    command = ["cargo", *arguments, "--locked", "--message-format=json-render-diagnostics"]
    caller = os.environ.get("SUDO_USER")
    if caller and caller != "root":
        # A login shell, since root's PATH seldom has another user's cargo.
        folder = os.environ.get("CARGO_TARGET_DIR")
        words = [*(["env", f"CARGO_TARGET_DIR={folder}"] if folder else []), *command]
        command = ["su", "-", caller, "-c", f"cd {shlex.quote(str(REPOSITORY))} && {shlex.join(words)}"]
    print(f"building: cargo {' '.join(arguments)}", flush=True)
    try:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise Trouble("no cargo here; --outgate and --tool take what was built elsewhere") from None
    messages = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    named = (message for message in messages if message.get("target", {}).get("name") == target)
    built = [message["executable"] for message in named if message.get("executable")]
    if done.returncode != 0 or not built:
        raise Trouble("cargo did not build it; see above")
    return built[-1]


class Measuring:
    def __init__(self, stage, chosen, outgate, tool, name="outgate"):
        self.stage, self.chosen = stage, chosen
        # Copies that user proxy can reach: the repository may be in root's home.
        self.outgate, self.tool = self.copy(outgate, name), self.copy(tool, "peers")
        self.running, self.broken, self.lines = {}, {}, {}
        self.share = 10 if chosen.quick else 1
        tls_proxies.make(self.tool, stage.folder)
        self.pki = ["--pki", tls_proxies.pki(stage.folder)]

    def copy(self, path, name):
        there = self.stage.folder / "bin" / name
        if there.exists():
            return str(there)
        there.parent.mkdir(exist_ok=True)
        shutil.copy(path, there)
        there.chmod(0o755)
        return str(there)

    def process(self, daemon, fresh=False):
        if daemon.name in self.broken:
            raise self.broken[daemon.name]
        if daemon.name in self.running:
            if not fresh:
                return self.running[daemon.name]
            self.stage.stop(self.running.pop(daemon.name))
        command = daemon.write(proxies.folder_of(self.stage, daemon))
        cpus = f"{self.stage.proxy_cpu},{self.stage.load_cpu}" if daemon.two_cpus else self.stage.proxy_cpu
        process = self.stage.start(command, cpus, self.stage.folder / f"{daemon.name}.out")
        self.running[daemon.name] = process
        try:
            process.wait_for(daemon.ports)
        except Trouble as trouble:
            self.broken[daemon.name] = trouble
            raise
        return process

    def arguments(self, load, row):
        """The subcommand of the load tool and its arguments."""

        def rate(at_a_time, count, warm):
            slow = row.slow if at_a_time > 1 else 1
            count, warm = (max(20, number // self.share // slow) for number in (count, warm))
            return ["-c", at_a_time, "-n", count, "--warm", warm]

        mib = 4096 // self.share // (4 if row.slow > 1 else 1)
        # outgate gives a guest at most a quarter of the connections for which it has descriptors.
        idle = min(5_000, self.stage.connections // 5)
        handshake = ["handshake", *rate(64, 6_000, 200), *self.pki]
        stream = ["tls-bulk", *self.pki, "-c", 1, "--mib", mib // 2]
        # As many as outgate gives a guest by default, or as it has descriptors for.
        pipelines = ["pipelines", "-c", min(4_000, idle), "--each-seconds", max(2, 6 // self.share)]
        if load in proxies.PIPELINES and row.ways[load].secured:
            pipelines += self.pki
        elif load in proxies.PIPELINES and not row.ways[load].tproxy:
            # Inside TLS and behind TPROXY both clients have one address, and so are one guest unless limits are off.
            pipelines += ["--small-from", "127.0.0.2"]
        if load in proxies.PIPELINES and row.ways[load].redirect:
            # A port from which the proxy has dialled the origin has an entry in connection tracking for that.
            pipelines += ["--from", "127.0.0.3"]
        return {
            "latency": ["tunnels", *rate(1, 3_000, 100)],
            "tunnels": ["tunnels", *rate(64, 20_000, 500)],
            "bulk-1": ["bulk", "-c", 1, "--mib", mib],
            "bulk-8": ["bulk", "-c", 8, "--mib", mib],
            "bulk-up": ["bulk", "-c", 8, "--mib", mib, "--up"],
            "http": ["http", *rate(64, 80_000, 1_000)],
            "refused": ["refused", *rate(64, 20_000, 500), "--host", "denied.test"],
            "tls": ["tls", *rate(32, 6_000, 100)],
            "idle": ["idle", "-n", idle],
            "fair-8": ["fair", "-c", 8, "--each-seconds", max(2, 6 // self.share)],
            "fair-64": ["fair", "-c", 64, "--each-seconds", max(2, 6 // self.share)],
            "fair-refused": [*pipelines, "--asked", "denied.test"],
            "fair-allowed": pipelines,
            "handshake": handshake,
            "handshake-cert": [*handshake, "--client-certificate"],
            "tls-bulk-down": stream,
            "tls-bulk-up": [*stream, "--up"],
            "rotate": ["rotate", *self.pki, "--times", 2 if self.chosen.quick else 6],
            "reload": ["reload", "--new", proxies.ADDED, "--each-seconds", max(2, 5 // self.share)],
        }[load]

    def measure(self, load, row):
        way = row.ways[load]
        daemon = way.daemon or row.daemon
        # The memory of tunnels shows only in a process that has not used any before; a list grows once, and the
        # files of the certificate are as they were.
        process = self.process(daemon, fresh=load in ("idle", "reload", "rotate")) if daemon else None
        if load in proxies.DNS:
            return self.ask(load, way, process)
        command = [self.tool, *self.arguments(load, row), "--proxy", way.dial]
        command += ["--direct"] if way.direct else []
        command += ["--pid", process.pid] if process else []
        if load == "reload":
            here, there = proxies.longer_list(self.stage.folder / daemon.name)
            command += ["--list", here, "--next", there]
        if load == "rotate":
            command += ["--files", self.stage.folder / daemon.name / "tls", *(["--hup"] if way.told else [])]
        name = self.stage.guest if way.tproxy else self.stage.host
        with contextlib.ExitStack() as around:
            if way.redirect:
                around.enter_context(self.stage.redirect(way.redirect))
            if way.tproxy:
                interface = GUEST_INTERFACE if way.filtered is None else BRIDGE
                if way.filtered is not None:
                    around.enter_context(self.stage.bridged(way.filtered))
                config = proxies.firewall_config(self.stage.folder / "firewall", way.tproxy, interface)
                around.enter_context(self.stage.firewall(self.outgate, config))
            return self.call(self.stage.command(command, self.stage.load_cpu, name))

    def ask(self, load, way, process):
        name, code = proxies.DNS[load]
        questions = self.stage.folder / f"{load}.questions"
        questions.write_text(f"{name} A\n")
        command = self.stage.command(queries.dnsperf(way.dial, questions), self.stage.load_cpu)
        return queries.measure(command, process.pid, code, max(1, 5 // self.share))

    def call(self, command):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, start_new_session=True)
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {LIMIT} s"}
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            return {"failed": done.stderr.strip()[-200:] or f"exit code {done.returncode}"}

    def round(self, turn, loads, rows):
        """Measures every row once, alternately from the first and from the last, so that a slow drift of the machine evens out."""
        for load in loads:
            for row in rows if turn % 2 == 0 else reversed(rows):
                if load not in row.loads:
                    continue
                try:
                    line = self.measure(load, row)
                except Trouble as trouble:
                    line = {"failed": str(trouble)}
                self.lines.setdefault(load, {})[row.name, turn] = line
                first, heading, digits = table.LOADS[load][1][0]
                figure = f"{heading} {table.cell([line.get(first)], digits)}"
                print(f"round {turn + 1} {load:8} {row.name:24} {table.faults(line) or figure}", flush=True)

    def measure_anew(self, load, row):
        """Measures in a new process."""
        try:
            return self.measure(load, row)
        except Trouble as trouble:
            return {"failed": str(trouble)}
        finally:
            for name in list(self.running):
                self.stage.stop(self.running.pop(name))
            self.forget_logs()

    def forget_logs(self):
        """Empties the access logs, which grow by some 100 MB a round."""
        for log in self.stage.folder.glob("*/*.log"):
            os.truncate(log, 0)
        for log in self.stage.folder.glob("*.out"):
            os.truncate(log, 0)


def about(stage, outgate, daemons, chosen):
    """The lines above the tables: when, on what, with which versions."""

    def first_line(command):
        done = subprocess.run(command, capture_output=True, text=True)
        return (done.stdout + done.stderr).strip().splitlines()[0]

    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    versions = proxies.versions(outgate, daemons, first_line)
    shared = ", which is the same one: rates are of no use" if stage.one_cpu else ""
    rounds = f"Medians of {chosen.rounds} rounds (least–greatest)" if chosen.rounds > 1 else "One round"
    quick = ", a tenth of everything" if chosen.quick else ""
    return (
        f"{datetime.date.today()}, {os.cpu_count()} CPUs, {cpu}, Linux {platform.release()}.\n"
        f"{'; '.join(versions) or 'No proxy of any name'}.\n"
        f"Proxy on CPU {stage.proxy_cpu}, origin and clients on CPU {stage.load_cpu}{shared}. {rounds}{quick}."
    )


def compare(before, after, loads, chosen):
    """Prints the table of two builds; gives whether the later one is as quick as the earlier."""
    out, all_hold = [], True
    both = []
    for measuring in (before, after):
        made = proxies.rows(measuring.outgate, measuring.tool, measuring.stage.connections, chosen.names, False)
        both.append([row for row in selected(made, chosen.peers) if row.name.startswith("outgate")])
    for load in loads:
        for earlier, later in zip(*both):
            if load not in later.loads:
                continue
            measured = []
            for turn in range(chosen.rounds):
                order = [(before, earlier), (after, later)]
                lines = [measuring.measure_anew(load, row) for measuring, row in (order if turn % 2 == 0 else order[::-1])]
                measured.append(tuple(lines if turn % 2 == 0 else lines[::-1]))
            lines, holds = pairs.judged(load, later.name, measured)
            print("\n".join(lines), flush=True)
            out += lines
            all_hold &= holds
    print(f"\n{chosen.rounds} pairs.\n\n{pairs.HEADING}\n" + "\n".join(out))
    return all_hold


def selected(rows, peers):
    wanted = [name for name in peers.split(",") if name]
    keep = [row for row in rows if not wanted or any(row.name.startswith(name) for name in wanted)]
    if not keep:
        raise Trouble(f"no such peer; there are: {', '.join(row.name for row in rows)}")
    return keep


def main():
    chosen = options()
    scenery.stop_on_signals()
    os.umask(0o022)  # the proxies run as another user, and read what is made here
    if platform.system() != "Linux":
        raise Trouble("Linux only")
    loads = [part for load in chosen.loads.split(",") for part in PARTS.get(load, [load])]
    with_dns = any(load in proxies.DNS for load in loads)
    rows = selected(proxies.rows("", "", 0, chosen.names, chosen.two_cores), chosen.peers)
    daemons = {row.daemon.name for row in rows if row.daemon and row.loads & set(loads)}
    programs = (daemons & set(scenery.PACKAGES)) | ({"dnsmasq", "dnsperf"} if with_dns else set())
    packages = scenery.missing([*programs, "nft", "ip", "taskset"])
    if packages:
        scenery.install(packages)
    if os.getloadavg()[0] > 0.5:
        print(f"this machine is not idle (load {os.getloadavg()[0]:.1f}): figures will be off", file=sys.stderr)
    tool = chosen.tool or cargo("peers", "bench", "--bench", "peers", "--no-run")
    outgate = chosen.outgate or cargo("outgate", "build", "--profile", "dist", "--bin", "outgate")
    with Stage() as stage:
        measuring = Measuring(stage, chosen, outgate, tool)
        made = proxies.rows(measuring.outgate, measuring.tool, stage.connections, chosen.names, chosen.two_cores)
        rows = selected(made, chosen.peers)
        heading = about(stage, measuring.outgate, daemons, chosen)
        origin = stage.start([measuring.tool, "origin"], stage.load_cpu, stage.folder / "origin.out")
        origin.wait_for([9001, 9002, 9003])
        if with_dns:
            command = resolvers.upstream(stage.folder)
            stage.start(command, stage.load_cpu, stage.folder / "upstream.out").wait_for([resolvers.UPSTREAM])
        if chosen.before:
            earlier = Measuring(stage, chosen, chosen.before, tool, "outgate-before")
            print(heading, flush=True)
            return 0 if compare(earlier, measuring, loads, chosen) else 1
        for turn in range(chosen.rounds):
            measuring.round(turn, loads, rows)
            measuring.forget_logs()
    lines = measuring.lines
    if chosen.json:
        flat = [
            {"row": name, "round": turn, "of": load} | line
            for load in loads
            for (name, turn), line in lines.get(load, {}).items()
        ]
        Path(chosen.json).write_text(json.dumps({"about": heading, "lines": flat}, indent=1) + "\n")
    print(f"\n{heading}")
    for load in loads:
        if load in lines:
            print(f"\n{table.of_load(load, rows, lines)}")
    wrong = sum(bool(table.faults(line)) for of_load in lines.values() for line in of_load.values())
    if wrong:
        print(f"\n{wrong} measurements went wrong; what they belong to is no result", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(f"run.py: {trouble}")
    except KeyboardInterrupt:
        sys.exit("run.py: stopped; nothing is left running")
