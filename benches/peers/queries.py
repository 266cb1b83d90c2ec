"""The loads of DNS: dnsperf as the client, and the server's CPU time from /proc (proc(5))."""

import re
import subprocess
import time
from pathlib import Path

# Queries at a time, and sockets. With 200 at a time some did not fit into the server's receive buffer.
AT_A_TIME, CLIENTS = 100, 20
# Seconds before the measurement, and seconds after which dnsperf counts a query as lost.
WARM, LOST = 1, 2


def cpu(pid):
    """CPU seconds of a process's threads, without those that have ended."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def dnsperf(dial, questions):
    """The command without its seconds; `dial` is ADDRESS:PORT, `questions` a file."""
    address, port = dial.rsplit(":", 1)
    side_by_side = ["-c", CLIENTS, "-T", 1, "-q", AT_A_TIME, "-t", LOST]
    return ["dnsperf", "-s", address, "-p", port, "-d", questions, *side_by_side, "-l"]


def measure(command, pid, code, seconds):
    """A line of figures. `command` lacks its seconds, and `code` is the required code of every answer."""
    try:
        run(command, WARM)
        before, begun = cpu(pid), time.monotonic()
        said = run(command, seconds)
        spent, took = cpu(pid) - before, time.monotonic() - begun
    except (OSError, subprocess.SubprocessError) as error:
        return {"failed": str(error)}
    return figures(said, code, spent, took)


def run(command, seconds):
    done = subprocess.run(
        [*command, str(seconds)], capture_output=True, text=True, timeout=seconds + 30, start_new_session=True
    )
    if done.returncode != 0:
        raise OSError(f"dnsperf: {(done.stderr or done.stdout).strip()[-200:]}")
    return done.stdout


def figures(said, code, spent, took):
    """The figures of dnsperf's report, with the CPU seconds used meanwhile."""
    codes = re.search(r"Response codes:(.*)", said)
    rate = re.search(r"Queries per second:\s+([\d.]+)", said)
    lost = re.search(r"Queries lost:\s+(\d+)", said)
    if not (codes and rate and lost):
        return {"failed": "dnsperf says nothing of answers"}
    answers = {name: int(count) for name, count in re.findall(r"(\w+) (\d+) \(", codes[1])}
    ok = answers.pop(code, 0)
    wrong = answers | ({"lost": int(lost[1])} if int(lost[1]) else {})
    line = {"load": "dns", "seconds": round(took, 4), "ok": ok, "errors": sum(wrong.values()), "error_kinds": wrong}
    # A kernel without schedstat says 0.
    each = {"cpu_us": round(spent * 1e6 / ok, 4), "cpu_share": round(spent / took, 4)} if ok and spent else {}
    return line | {"per_s": float(rate[1])} | each
