"""The environment of the comparison: packages, network namespaces, processes. Nothing of the host is
changed except what apt-get installs, and no process outlives `Stage`."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

# Programs, and their Debian packages.
PACKAGES = {
    "squid": "squid",
    "haproxy": "haproxy",
    "nginx": "nginx-light libnginx-mod-stream",
    "tinyproxy": "tinyproxy",
    "dnsmasq": "dnsmasq-base",
    "unbound": "unbound",
    "dnsperf": "dnsperf",
    "nft": "nftables",
    "ip": "iproute2",
    "taskset": "util-linux",
}
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_MARK = "# by benches/peers/run.py of outgate, which removes it"
NETNS = Path("/etc/netns")
PREFIX = "outgate-peers-"
# Descriptors for each process: the idle load holds thousands of tunnels, of two descriptors each.
FILES = 131072
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The guest's end of the link, the host's, and an address that only the link leads to.
GUEST, GATEWAY, FAR = "10.99.0.2", "10.99.0.1", "10.200.0.1"
GUEST_INTERFACE = "g0"
BRIDGE = "br0"


class Trouble(Exception):
    """An error that the user has to correct."""


def stop(*_):
    raise KeyboardInterrupt


def stop_on_signals():
    """Cleans up first when a signal ends this."""
    for name in STOPS:
        signal.signal(name, stop)


def run(*argv):
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise Trouble(f"{' '.join(map(str, argv))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def missing(programs):
    """The packages of those `programs` that are not installed."""
    path = "/usr/sbin:/sbin:" + os.environ.get("PATH", "")
    lacking = [PACKAGES[name] for name in programs if not shutil.which(name, path=path)]
    if "nginx" in programs and not Path("/usr/lib/nginx/modules/ngx_stream_module.so").exists():
        lacking.append(PACKAGES["nginx"])
    return sorted({package for packages in lacking for package in packages.split()})


def install(packages):
    """Installs Debian packages without the services that they would start."""
    if POLICY.exists() and POLICY_MARK in POLICY.read_text():
        POLICY.unlink()  # of a run that was killed
    ours = not POLICY.exists()
    if not ours:
        print(f"{POLICY} is here already and decides whether the packages start their services")
    print(f"installing {' '.join(packages)}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        if ours:
            POLICY.write_text(f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n")
            POLICY.chmod(0o755)
        command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Trouble(f"no apt-get here; install these by hand: {' '.join(packages)}") from None
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)
    if done.returncode != 0:
        raise Trouble(f"apt-get could not install {' '.join(packages)}; perhaps `apt-get update` first")
    print(f"not started now, but at the next boot unless you `apt-get purge {' '.join(packages)}`")


class Process:
    """A process in a session of its own, so that a Ctrl-C on the terminal reaches only this program."""

    def __init__(self, argv, log):
        self.argv, self.log = argv, log
        with open(log, "ab") as out:
            self.handle = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=log.parent, start_new_session=True
            )
        self.pid = self.handle.pid

    def listens(self, port):
        """Whether a process in the namespace of this one listens on this port."""
        try:
            lines = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        except OSError:
            return False
        fields = (line.split() for line in lines)
        return any(field[3] == "0A" and int(field[1].split(":")[1], 16) == port for field in fields)

    def wait_for(self, ports, seconds=90):
        end = time.monotonic() + seconds
        while not all(map(self.listens, ports)):
            if self.handle.poll() is not None or time.monotonic() > end:
                said = self.log.read_text(errors="replace")[-1500:]
                raise Trouble(f"{' '.join(self.argv)} does not listen on {ports}:\n{said}")
            time.sleep(0.02)

    def stop(self):
        if self.handle.poll() is None:
            self.handle.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.handle.wait(8)
        # All that is left of its session, also workers of a killed master.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.handle.wait(5)


class Stage:
    """Namespace `host` has origin, proxies and clients on loopback. Namespace `guest` has the clients
    whose connections reach `host` by a link, as those of VMs reach a hypervisor."""

    def __init__(self):
        cpus = sorted(os.sched_getaffinity(0))
        self.proxy_cpu, self.load_cpu = str(cpus[0]), str(cpus[1 % len(cpus)])
        self.one_cpu = len(cpus) < 2
        self.host, self.guest = (f"{PREFIX}{os.getpid()}-{end}" for end in ("host", "guest"))
        self.running = []

    def __enter__(self):
        self.remove_stale()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.chmod(0o755)  # the proxies run as another user
        try:
            with contextlib.suppress(OSError, ValueError):  # in some containers the limit stays as it is
                resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            self.connections = min(20_000, (hard - 1_000) // 2)
            self.wire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wire(self):
        for name in (self.host, self.guest):
            run("ip", "netns", "add", name)
            # `ip netns exec` mounts this over /etc/hosts for programs that ask the C library for names.
            (NETNS / name).mkdir(parents=True)
            (NETNS / name / "hosts").write_text("127.0.0.1 localhost origin.test\n")
            run("ip", "-n", name, "link", "set", "lo", "up")
            self.sysctl(name, "net.ipv4.ip_local_port_range=10000 65535", "net.ipv4.tcp_tw_reuse=1")
            self.sysctl(name, "net.core.somaxconn=8192", "net.ipv4.tcp_max_syn_backlog=8192")
            self.sysctl(name, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        peer = ("peer", "name", "eth0", "netns", self.guest)
        run("ip", "link", "add", GUEST_INTERFACE, "netns", self.host, "type", "veth", *peer)
        for name, interface, address in ((self.host, GUEST_INTERFACE, GATEWAY), (self.guest, "eth0", GUEST)):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", interface)
            run("ip", "-n", name, "link", "set", interface, "up")
        run("ip", "-n", self.guest, "route", "add", "default", "via", GATEWAY)

    def sysctl(self, name, *settings):
        for setting in settings:
            # Some may exist only for the machine as a whole; then the host's values stay.
            with contextlib.suppress(Trouble):
                self.inside(name, "sysctl", "-qw", setting)

    def inside(self, name, *argv):
        return run("ip", "netns", "exec", name, *argv)

    def command(self, argv, cpus, name=None):
        return ["ip", "netns", "exec", name or self.host, "taskset", "-c", cpus, *map(str, argv)]

    def start(self, argv, cpus, log):
        process = Process(self.command(argv, cpus), log)
        self.running.append(process)
        return process

    def stop(self, process):
        process.stop()
        self.running.remove(process)

    @contextlib.contextmanager
    def redirect(self, port):
        """Redirects connections to the origin's HTTP and TLS ports to this one, except those of user proxy."""
        rule = f"meta skuid != proxy ip daddr 127.0.0.1 tcp dport {{ 9002, 9003 }} redirect to :{port}"
        chain = f"chain out {{ type nat hook output priority -100; {rule}; }};"
        self.inside(self.host, "nft", f"table ip peers {{ {chain} }}")
        try:
            yield
        finally:
            self.inside(self.host, "nft", "delete table ip peers")

    @contextlib.contextmanager
    def bridged(self, filtered):
        """Puts the guest behind a bridge, with br_netfilter on or off."""
        setting = "/proc/sys/net/bridge/bridge-nf-call-{}tables"
        ip = ["ip", "-n", self.host]
        run(*ip, "link", "add", BRIDGE, "type", "bridge")
        try:
            run(*ip, "address", "del", f"{GATEWAY}/24", "dev", GUEST_INTERFACE)
            run(*ip, "link", "set", GUEST_INTERFACE, "master", BRIDGE)
            run(*ip, "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
            run(*ip, "link", "set", BRIDGE, "up")
            for family in ("ip", "ip6"):
                # It exists from the first bridge on, if this kernel has it.
                self.inside(self.host, "sh", "-c", f"echo {int(filtered)} > {setting.format(family)}")
            yield
        finally:
            run(*ip, "link", "del", BRIDGE)
            run(*ip, "address", "add", f"{GATEWAY}/24", "dev", GUEST_INTERFACE)

    @contextlib.contextmanager
    def firewall(self, outgate, config):
        """Applies outgate's ruleset, which redirects the guest to a transparent listener."""
        self.inside(self.host, outgate, "firewall", "apply", "--config", config)
        try:
            yield
        finally:
            self.inside(self.host, outgate, "firewall", "remove", "--config", config)

    def __exit__(self, *_):
        for name in STOPS:  # a second Ctrl-C must not interrupt this
            signal.signal(name, signal.SIG_IGN)
        for process in reversed(self.running):
            with contextlib.suppress(Exception):
                process.stop()
        for name in (self.host, self.guest):
            remove(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_stale(self):
        """Removes the namespaces of runs that were killed."""
        for name in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split():
            found = re.fullmatch(PREFIX + r"(\d+)-\w+", name)
            if found and not Path(f"/proc/{found[1]}").exists():
                remove(name)


def remove(name):
    """Removes a namespace and the processes in it. Its name shows that it is ours."""
    left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for pid in map(int, left.stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    shutil.rmtree(NETNS / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        NETNS.rmdir()  # if it is empty now, nothing else uses it
