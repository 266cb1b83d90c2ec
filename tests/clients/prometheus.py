#!/usr/bin/env python3
"""A real Prometheus scrapes `[listen].admin_tls`, which requires client certificates.

prometheus.py [PATH OF outgate]. Does not require root. Uses the installed prometheus and promtool, or
those of Debian's package, which is fetched once, into target/prometheus, and unpacked there. Everything is
on loopback. The job that must work is the example of docs/tls.md with other paths; the other jobs each have
one mistake. The rules of packaging/ are loaded twice: as they are, and with every `for:` shortened to a
second, so that an alert which waits a quarter of an hour is seen to fire. Their own times are tested by
tests/data/prometheus-rules-test.yml.
"""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.parse
import urllib.request

import run
from run import ROOT, expect

NAME = "gateway.test"
# On the second certificate, not on the first.
NEW_NAME = "renewed.test"
RULES = os.path.join(ROOT, "packaging", "prometheus-rules.yml")
RULE_TESTS = os.path.join(ROOT, "tests", "data", "prometheus-rules-test.yml")
# Between two scrapes of a target, and two evaluations of the rules.
INTERVAL = "1s"
# How long the effect of a scrape may take, in seconds.
PATIENCE = 30
# The same for the first one: Prometheus lets targets wait five seconds, some versions twice.
FIRST = 45


class Missing(Exception):
    """Prometheus is not available; the text says what to do."""


def programs():
    """The folder with prometheus and promtool.

    Not by `apt-get install`, which would start a service on this machine.
    """
    installed = shutil.which("prometheus")
    if installed and shutil.which("promtool", path=os.path.dirname(installed)):
        return os.path.dirname(installed)
    cache = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "prometheus")
    found = os.path.join(cache, "usr", "bin")
    if not os.path.exists(os.path.join(found, "prometheus")):
        for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
            if not shutil.which(program):
                raise Missing(f"no {program} to fetch Prometheus with: install the package {package}, or put prometheus and promtool into PATH")
        fetch(cache)
    return found


def fetch(cache):
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(cache)) as folder:
        # apt becomes another user, who may not write here.
        download = ["apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", "prometheus"]
        steps = [download]
        if os.geteuid() == 0:
            # A new machine has no package lists, and an old one has outdated lists.
            steps += [["apt-get", "-q", "update"], download]
        said = ""
        for step in steps:
            done = subprocess.run(step, cwd=folder, check=False, capture_output=True, text=True, timeout=300)
            said += f"\n$ {' '.join(step)}\n{(done.stderr or done.stdout).strip()}"
            packages = [name for name in os.listdir(folder) if name.endswith(".deb")]
            if packages:
                break
        else:
            advice = "" if os.geteuid() == 0 else "run `apt-get update` as root first, or "
            raise Missing(f"Debian's package prometheus cannot be fetched: {advice}put prometheus and promtool into PATH{said}")
        unpacked = os.path.join(folder, "unpacked")
        run.run("dpkg-deb", "-x", os.path.join(folder, packages[0]), unpacked, timeout=120)
        for program in ("prometheus", "promtool"):
            if not os.path.exists(os.path.join(unpacked, "usr", "bin", program)):
                raise Missing(f"{packages[0]} has no usr/bin/{program}: put prometheus and promtool into PATH")
        shutil.rmtree(cache, ignore_errors=True)
        os.rename(unpacked, cache)


class Scraped(run.World):
    """outgate and Prometheus on loopback, with the certificates of both. All are removed at the end of `with`."""

    def __init__(self, outgate):
        super().__init__(outgate)
        # No namespaces.
        self.names = {}
        self.programs = programs()
        # By the monotonic clock: when Prometheus was started, and when it first accepted the second certificate.
        self.begun_at = self.renewed_at = 0.0
        # All at the same time, or the kernel might give one of them twice.
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.proxy, self.admin, self.web = ("127.0.0.1:%d" % listener.getsockname()[1] for listener in held)
        for listener in held:
            listener.close()

    def wire(self):
        pass

    def spawn(self, _, *command, **options):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        self.processes.append(process)
        return process

    def certificates(self):
        self.authority("ca")
        self.authority("strange")
        # Expires within the week of OutgateCertificateEnds.
        self.certify("ca", "outgate", 3, "serverAuth", NAME)
        # Made beforehand, so that one rename follows the other at once.
        self.certify("ca", "renewed", 90, "serverAuth", NAME, NEW_NAME)
        self.certify("ca", "client", 3, "clientAuth", "prometheus.test")
        self.certify("strange", "stranger", 3, "clientAuth", "prometheus.test")

    def content(self):
        with open(self.path("whitelist", "main.rules"), "w") as file:
            file.write("good.test\n")
        with open(self.path("outgate.toml"), "w") as file:
            file.write(textwrap.dedent(f"""\
                [listen]
                proxy = ["{self.proxy}"]
                admin = ""
                admin_tls = "{self.admin}"
                control = "{self.path("control.sock")}"
                [tls]
                certificate = "outgate.crt"
                key = "outgate.key"
                client_ca = "ca.crt"
                [whitelist]
                dir = "{self.path("whitelist")}"
                [log]
                access = "off"
                [state]
                dir = "{self.path("state")}"
                """))
        with open(RULES) as file:
            text = file.read()
        hasty, waits = re.subn(r"(?m)^( *for:) \d+m$", r"\1 1s", text)
        # The label separates its series from those of the unchanged rules.
        hasty, labels = re.subn(r"(?m)^( *labels: \{)", r'\1hasty: "yes", ', hasty)
        assert waits >= 10 and labels == text.count("- alert:"), f"{RULES} is not written as it was"
        with open(self.path("hasty.yml"), "w") as file:
            file.write(hasty)
        with open(self.path("prometheus.yml"), "w") as file:
            file.write(self.scraping())

    def scraping(self):
        """prometheus.yml: the job of docs/tls.md, and those with a mistake."""
        with open(os.path.join(ROOT, "docs", "tls.md")) as file:
            examples = re.findall(r"```yaml\n(scrape_configs:\n.*?)```", file.read(), re.S)
        assert len(examples) == 2, f"{len(examples)} examples of scrape_configs in docs/tls.md"
        on_same_host, example = examples
        with open(self.path("same-host.yml"), "w") as file:
            file.write(on_same_host)
        for theirs, ours in (
            ("/etc/prometheus/outgate-ca.pem", self.path("ca.crt")),
            ("/etc/prometheus/prometheus.pem", self.path("client.crt")),
            ("/etc/prometheus/prometheus.key", self.path("client.key")),
            ("gateway.example.com", NAME),
            ("10.0.0.1:3191", self.admin),
        ):
            assert example.count(theirs) == 1, f"{theirs} is in docs/tls.md's example {example.count(theirs)} times"
            example = example.replace(theirs, ours)
        authority, mine = {"ca_file": self.path("ca.crt")}, self.pair("client")
        jobs = [
            ("bare", "https", authority | {"server_name": NAME}),
            ("stranger", "https", authority | self.pair("stranger") | {"server_name": NAME}),
            ("distrusting", "https", {"ca_file": self.path("strange.crt")} | mine | {"server_name": NAME}),
            ("renewed", "https", authority | mine | {"server_name": NEW_NAME}),
            ("plain", "http", {}),
        ]
        # JSON is YAML.
        more = "".join(
            "  - " + json.dumps({"job_name": name, "scheme": scheme, "tls_config": tls, "static_configs": [{"targets": [self.admin]}]}) + "\n"
            for name, scheme, tls in jobs
        )
        settings = {
            "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
            "rule_files": [RULES, self.path("hasty.yml")],
        }
        return "".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items()) + example + more

    def pair(self, file):
        return {"cert_file": self.path(f"{file}.crt"), "key_file": self.path(f"{file}.key")}

    def start(self):
        self.launch("outgate", [self.outgate, "run", "--config", self.path("outgate.toml")], lambda: self.scrape("/readyz").returncode == 0)
        self.begun_at = time.monotonic()
        self.launch("prometheus", [
            os.path.join(self.programs, "prometheus"), f"--config.file={self.path('prometheus.yml')}", f"--storage.tsdb.path={self.path('tsdb')}",
            f"--web.listen-address={self.web}", "--log.level=warn",
        ], self.is_ready)

    def launch(self, name, command, ready):
        with open(self.path(f"{name}.err"), "wb") as errors:
            process = self.spawn(None, *command, stdout=errors, stderr=errors)
        for _ in range(300):
            if process.poll() is not None:
                break
            if ready():
                return
            time.sleep(0.1)
        raise RuntimeError(f"{name} does not get ready: {self.said(name)}")

    def said(self, name):
        with open(self.path(f"{name}.err"), errors="replace") as file:
            return file.read()[-4000:]

    def scrape(self, path):
        """Scrapes by curl, as Prometheus does."""
        return subprocess.run(
            ["curl", "-sSf", "-m", "10", "--noproxy", "*", "--cacert", self.path("ca.crt"), "--cert", self.path("client.crt"),
             "--key", self.path("client.key"), "--connect-to", f"::{self.admin}", f"https://{NAME}{path}"],
            check=False, capture_output=True, env={"PATH": os.environ["PATH"]},
        )

    def is_ready(self):
        try:
            return bool(self.get("/-/ready"))
        except OSError:
            return False

    def get(self, path):
        # Not through a proxy that this machine may be configured for.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.web}{path}", timeout=10) as response:
            return response.read()

    def api(self, path, **query):
        answer = json.loads(self.get(f"/api/v1/{path}?{urllib.parse.urlencode(query)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression, moment=None):
        """The single value of an expression, or None, now or at a time in seconds since 1970."""
        found = self.api("query", query=expression, **({} if moment is None else {"time": moment}))["result"]
        assert len(found) <= 1, f"{expression}: {found}"
        return float(found[0]["value"][1]) if found else None

    def targets(self):
        """Job to its target."""
        return {target["labels"]["job"]: target for target in self.api("targets", state="active")["activeTargets"]}

    def alert(self, name):
        """The states of an alert on the job `outgate`: by the unchanged rules, and by those with a short `for:`."""
        states = []
        for group in sorted(self.api("rules", type="alert")["groups"], key=lambda group: group["file"] != RULES):
            alerts = [one for rule in group["rules"] if rule["name"] == name for one in rule["alerts"]]
            states.append("+".join(sorted({one["state"] for one in alerts if one["labels"]["job"] == "outgate"})) or "inactive")
        assert len(states) == 2, states
        return tuple(states)

    def promtool(self, *arguments, **options):
        return subprocess.run(
            [os.path.join(self.programs, "promtool"), *arguments], check=False, capture_output=True, timeout=60, **options,
        )


def eventually(what, look, patience=PATIENCE, else_say=lambda: "nothing else is known"):
    """The result of `look` as soon as it is true. `else_say` describes the state if that does not happen in time."""
    deadline = time.monotonic() + patience
    while not (seen := look()):
        assert time.monotonic() < deadline, f"{what}: not within {patience} s; {else_say()}"
        time.sleep(0.2)
    return seen


def await_health(world, job, health, patience=PATIENCE):
    """Waits until a job's target is up or down, and returns its last error."""
    def look():
        return world.targets().get(job, {"health": "unknown"})

    eventually(f"{job} is {health}", lambda: look()["health"] == health, patience, lambda: f"it is {look()['health']}, {look().get('lastError')!r}")
    return look()["lastError"]


def await_alert(world, name, shipped, hasty):
    eventually(name, lambda: world.alert(name) == (shipped, hasty), else_say=lambda: f"it is {' and '.join(world.alert(name))}")


def expires(world, file):
    """When a certificate expires, by openssl."""
    end = run.run("openssl", "x509", "-noout", "-enddate", "-in", world.path(file)).strip().removeprefix("notAfter=")
    return ssl.cert_time_to_seconds(end)


def refused(world, reason):
    return world.query(f'outgate_tls_handshakes_refused_total{{job="outgate",listener="admin_tls",reason="{reason}"}}') or 0


def rules_are_sound(world):
    expect(world.promtool("check", "rules", RULES), "SUCCESS")
    expect(world.promtool("test", "rules", RULE_TESTS), "SUCCESS")
    for config in ("prometheus.yml", "same-host.yml"):
        expect(world.promtool("check", "config", world.path(config)), "SUCCESS")


def scraped_with_a_certificate(world):
    await_health(world, "outgate", "up", FIRST)
    version = run.run(world.outgate, "--version").split()[1]
    eventually("the version", lambda: world.query(f'outgate_build_info{{job="outgate",version="{version}"}}') == 1)
    shown = world.query('outgate_tls_certificate_expiry_timestamp_seconds{job="outgate"}')
    assert shown == expires(world, "outgate.crt"), f"the certificate expires {expires(world, 'outgate.crt')}, and not {shown}"
    assert world.query('outgate_tls_last_reload_successful{job="outgate"}') == 1


# By job: the error of Prometheus, and outgate's reason.
WRONG = {
    "bare": (r"tls: certificate required|tls: bad certificate", "no_client_certificate"),
    "stranger": (r"tls: unknown certificate authority|tls: bad certificate", "client_certificate_untrusted"),
    "distrusting": (r"x509: certificate signed by unknown authority", "client_refuses"),
    "renewed": (rf"x509: certificate is valid for {NAME}, not {NEW_NAME}", "client_refuses"),
    "plain": (r"malformed HTTP response", "not_tls"),
}


def everybody_else_is_refused(world):
    for job, (words, reason) in WRONG.items():
        await_health(world, job, "down")
        # On a busy machine a scrape may also time out.
        eventually(f"{job} is down with {words!r}", lambda: re.search(words, await_health(world, job, "down")),
                   else_say=lambda: f"it is with {await_health(world, job, 'down')!r}")
        eventually(f"{reason} is counted", lambda: refused(world, reason) > 0)


def metrics_are_well_formed(world):
    # After the refusals, since their series do not exist before.
    scraped = world.scrape("/metrics")
    assert "# TYPE outgate_tls_handshakes_refused_total counter" in expect(scraped)
    done = world.promtool("check", "metrics", input=scraped.stdout)
    assert done.returncode == 0 and not done.stdout + done.stderr, (done.stdout + done.stderr).decode()


def its_end_is_told(world):
    await_alert(world, "OutgateCertificateEnds", "pending", "firing")


def a_new_pair_is_taken_over(world):
    ends = expires(world, "renewed.crt")
    assert ends != expires(world, "outgate.crt")
    assert world.targets()["renewed"]["health"] == "down"
    for kind in ("crt", "key"):
        os.rename(world.path(f"renewed.{kind}"), world.path(f"outgate.{kind}"))
    eventually(
        "the new certificate is seen",
        lambda: world.query('outgate_tls_certificate_expiry_timestamp_seconds{job="outgate"}') == ends,
    )
    # The connection of the job `outgate` may be the old one. This has none, and asks for the new name.
    await_health(world, "renewed", "up")
    world.renewed_at = time.monotonic()
    await_alert(world, "OutgateCertificateEnds", "inactive", "inactive")


def refusals_are_told(world):
    await_alert(world, "OutgateHandshakesRefused", "pending", "firing")


def a_bad_pair_is_told(world):
    # A copy, since Prometheus reads its own each time.
    shutil.copy(world.path("stranger.key"), world.path("bad.key"))
    os.rename(world.path("bad.key"), world.path("outgate.key"))
    await_alert(world, "OutgateCertificateInvalid", "pending", "firing")
    assert world.query('outgate_tls_last_reload_successful{job="outgate"}') == 0
    assert world.targets()["renewed"]["health"] == "up", "the previous pair is in use"


def refusals_are_counted(world):
    """Each attempt of both jobs is counted under that reason."""
    reasons = ("no_client_certificate", "client_certificate_untrusted")
    series = [f'outgate_tls_handshakes_refused_total{{job="outgate",reason="{reason}"}}' for reason in reasons]

    def both():
        # The time of the last scrape of outgate. The other jobs are scraped at other times.
        moment = (world.query(f"timestamp({series[0]})") or 0) + 0.001
        tried = [world.query(f'count_over_time(up{{job="{job}"}}[5m])', moment) or 0 for job in ("bare", "stranger")]
        return (sum(tried), sum(world.query(one, moment) or 0 for one in series)) if min(tried) >= 8 else None

    let_in = world.query('max(max_over_time(up{job=~"bare|stranger|distrusting|plain"}[5m]))')
    assert let_in == 0, "a client without a valid certificate was accepted"
    tried, counted = eventually("both try", both)
    # One attempt of each may be in progress.
    assert abs(tried - counted) <= 2, f"{tried:.0f} came without a certificate of the authority, {counted:.0f} are counted"
    return f"{counted:.0f} by outgate, {tried:.0f} by Prometheus"


def no_scrape_failed(world):
    def scrapes(what, job, since):
        return world.query(f'{what}_over_time(up{{job="{job}"}}[{int(time.monotonic() - since)}s])') or 0

    for job, since, least in (("outgate", world.begun_at, 12), ("renewed", world.renewed_at, 4)):
        eventually(f"{least} scrapes of {job}", lambda: scrapes("count", job, since) >= least)
        assert scrapes("min", job, since) == 1, f"a scrape of {job} failed"
    assert world.alert("OutgateDown") == ("inactive", "inactive")
    return f"{scrapes('count', 'outgate', world.begun_at):.0f} scrapes"


def rules_are_evaluated(world):
    with open(RULES) as file:
        wanted = re.findall(r"- alert: (\w+)", file.read())
    groups = world.api("rules")["groups"]
    assert {group["file"] for group in groups} == {RULES, world.path("hasty.yml")}, groups
    for group in groups:
        assert [rule["name"] for rule in group["rules"]] == wanted, group
        for rule in group["rules"]:
            assert rule["health"] == "ok" and not rule.get("lastError"), rule
    # Samples that Prometheus rejected, and duplicate series.
    complaints = re.findall(r"(?i)^.*level=(?:warn|error).*(?:rule|scrape) manager.*$", world.said("prometheus"), re.M)
    assert not complaints, complaints
    return f"{len(wanted)} rules"


CHECKS = [
    ("promtool on the rules", rules_are_sound),
    ("with a certificate", scraped_with_a_certificate),
    ("anybody else", everybody_else_is_refused),
    ("promtool on the metrics", metrics_are_well_formed),
    ("an end that is near", its_end_is_told),
    ("a new pair", a_new_pair_is_taken_over),
    ("refusals, told", refusals_are_told),
    ("a bad pair", a_bad_pair_is_told),
    ("refusals, counted", refusals_are_counted),
    ("no scrape failed", no_scrape_failed),
    ("rules, evaluated", rules_are_evaluated),
]

if __name__ == "__main__":
    try:
        sys.exit(run.main(Scraped, CHECKS))
    except Missing as missing:
        print(f"prometheus.py: {missing}", file=sys.stderr)
        sys.exit(1)
