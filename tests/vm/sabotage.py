"""Changes that other programs make to a host with a guest: outgate repairs them, or reports them with commands that do.

Checks for service.py, on the machine that it has configured. Each restores it. Meanwhile the guest tries
every way out, and nothing of it may arrive. The note of each says after how many seconds `/readyz` and the
metric told, and how many seconds the remedy took; or after how many seconds all was right again.
"""

import contextlib
import functools
import re
import time
from dataclasses import dataclass

IN_GUEST = "ip netns exec guest"
# Lines of the metrics are behind what /readyz says; no line of theirs has a backquote.
LOOK = "curl -s -m 5 -o /run/readyz -w '%{http_code} ' http://127.0.0.1:3190/readyz; cat /run/readyz; echo; curl -s -m 5 http://127.0.0.1:3190/metrics | grep '^outgate_trouble{.* 1$'"
# Seconds, in a container (True) and in the emulated machine. What takes ten on a machine that has nothing else to do:
TOLD = {True: 20, False: 40}
# From the last command on.
# A remedy is seen by the watcher's next report, which rests for ten times as long as it takes.
MENDED = {True: 30, False: 150}
# The watcher looks two seconds after its last look, or sooner.
NOTICED = {True: 3.5, False: 12}
# A guest whose packets are dropped waits for five seconds. What gets out does so at once.
ROUND = {True: 1.2, False: 12}
# What else is quoted is missing, or shows more.
REMEDY = r"\b(?:run|then|and) `([^`]+)`"
SOMEBODY = "somebody"
REFUSING = "type filter hook input priority filter; policy drop; iifname lo accept; ct state established,related accept; meta l4proto ipv6-icmp accept; tcp dport 22 accept;"
UFW_IDLE = "ufw disable; ufw delete allow in on br0; cp -p /root/before.rules /etc/ufw/; nft delete table ip filter; nft delete table ip6 filter"


@dataclass
class Sabotage:
    """`do`, `by_hand` and `undo` are commands. `cause` and the regular expression `text` are what is told."""

    do: str
    cause: str
    text: str
    # Commands for what the text asks for in words.
    by_hand: str = ""
    # Commands after which the remedy must still work.
    outlives: tuple = ()
    undo: str = "true"


def drops(table, chains):
    """A table of another program that drops what comes from guests."""
    return Sabotage(f"nft 'table inet {table} {{ {chains}; }}'", "other_firewall", f"table inet {table}", undo=f"nft delete table inet {table}")


UFW_COMES = "cp -p /etc/ufw/before.rules /root/; ufw default deny incoming && {}ufw --force enable"
UFW = Sabotage(
    UFW_COMES.format(""), "other_firewall", "chain INPUT of table ip filter",
    outlives=("ufw reload",), undo=UFW_IDLE,
)
# The first half of what guests need: IPv4 to other addresses than the host's is still dropped.
UFW_HALF = Sabotage(UFW_COMES.format("ufw allow in on br0 && "), "other_firewall", "table ip filter", undo=UFW_IDLE)
FIREWALLD = Sabotage(
    "systemctl start firewalld", "other_firewall", "table inet firewalld",
    outlives=("firewall-cmd --reload", "systemctl restart firewalld"),
    undo="systemctl stop firewalld; rm -f /etc/firewalld/zones/trusted.xml*",
)
# The name of Debian's own /etc/nftables.conf, and of the tables of ufw, which is installed here and not enabled.
POLICY = drops("filter", f"chain input {{ {REFUSING} }}")
IPTABLES = Sabotage(
    "iptables -P INPUT DROP && iptables -A INPUT -i lo -j ACCEPT && iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "other_firewall", "chain INPUT of table ip filter", undo="iptables -P INPUT ACCEPT; nft delete table ip filter",
)
RULE = drops(SOMEBODY, 'chain input { type filter hook input priority filter; policy accept; iifname "br0" drop; }')
PREROUTING = drops(SOMEBODY, 'chain prerouting { type filter hook prerouting priority mangle; policy accept; iifname "br0" drop; }')
FLUSHED = Sabotage("nft flush ruleset", "ruleset", "the firewall is not in place", undo="outgate firewall apply")
LOG = "/var/log/outgate"
DISK_FULL = Sabotage(
    # A mount after the daemon's start would not be visible to it.
    f"mount -t tmpfs -o size=64k,mode=750,uid=$(id -u outgate),gid=$(id -g outgate) tmpfs {LOG}; head -c 1M /dev/zero > {LOG}/filler; systemctl restart outgate.service",
    "log", rf"{LOG}/access\.log: No space left", by_hand=f"rm {LOG}/filler", undo=f"umount {LOG}; systemctl restart outgate.service",
)
WATCHER = Sabotage(
    "systemctl kill -s KILL outgate-host.service; systemctl stop outgate-host.service", "watcher", r"outgate-host\.service has been silent for \d+ s",
    undo="systemctl start outgate-host.service",
)


def ready(provider):
    provider.until(LOOK, "^200 ", MENDED[provider.contained], "something is wrong")
    # A daemon that was started again must get the watcher's report first.
    provider.until("outgate status", "guarding br0: 1 guest", MENDED[provider.contained], "the watcher's report does not arrive")


@contextlib.contextmanager
def sabotaged(provider, do, undo):
    """Gives the time at which `do` was done. All is well before that and after `undo`; nothing of the guest gets out."""
    ready(provider)
    provider.mark()
    probe = f"timeout {ROUND[provider.contained]} {IN_GUEST} python3 /brought/probe.py all"
    rounds = f"while test -e /run/probing; do echo round; {probe}; sleep 0.5; done; touch /run/probed"
    provider.do(f"rm -f /run/probe*; touch /run/probing; ({rounds}) >> /run/probes 2>&1 &")
    try:
        provider.do(do, 120)
        begin = time.monotonic()
        provider.do("echo sabotaged >> /run/probes")
        yield begin
    finally:
        provider.run(undo, 120)
        provider.run("rm /run/probing; until test -e /run/probed; do sleep 0.1; done", 60)
    ready(provider)
    holds(provider)


def holds(provider):
    leaks = provider.leaks()
    assert not leaks, f"of the guest got out: {leaks[:5]}"


def tried(provider):
    """Waits until the guest has tried all ways out once since the sabotage."""
    rounds = "sed 1,/sabotaged/d /run/probes | grep -c round"
    provider.until(rounds, "^([2-9]|[1-9][0-9])", 2 * ROUND[provider.contained] + 20, "the guest tries nothing")


def is_told(said, cause, text):
    return said.startswith("503 ") and re.search(text, said) and f'outgate_trouble{{cause="{cause}"}} 1' in said


def told(provider, cause, text, begin):
    """Seconds from `begin` until `/readyz` and the metric report it."""
    while True:
        said = provider.run(LOOK).output
        if is_told(said, cause, text):
            return time.monotonic() - begin
        assert time.monotonic() < begin + TOLD[provider.contained], f"{cause} is not told, after {TOLD[provider.contained]} s: {said}"
        time.sleep(0.2)


def transcript(done):
    return "; ".join(f"{command}: {result}" for command, result in done.items()) or "no command"


def mend(provider, by_hand=""):
    """Runs the printed commands in order, and those printed after them; gives the seconds until nothing is wrong any more."""
    begin = time.monotonic()
    done = {}
    if by_hand:
        provider.do(by_hand)
    last = time.monotonic()
    while not (said := provider.run(LOOK).output).startswith("200 "):
        for command in re.findall(REMEDY, said):
            if command not in done:
                done[command] = provider.run(command, 120)
                assert done[command].status == 0, f"a remedy fails: {said}; {transcript(done)}"
                last = time.monotonic()
        assert done or by_hand, f"no remedy is printed: {said}"
        assert time.monotonic() < last + MENDED[provider.contained], f"what was printed did not mend it: {said}; {transcript(done)}"
        time.sleep(0.2)
    return time.monotonic() - begin


def tells(case, serves, provider):
    with sabotaged(provider, case.do, case.undo) as begin:
        after = told(provider, case.cause, case.text, begin)
        tried(provider)
        assert is_told(said := provider.run(LOOK).output, case.cause, case.text), f"it is told no more, and nobody mended it: {said}"
        mended = mend(provider, case.by_hand)
        holds(provider)
        serves(provider)
        for command in case.outlives:
            provider.do(command, 120)
            serves(provider)
        if case.outlives:
            time.sleep(NOTICED[provider.contained])
            said = provider.run(LOOK).output
            assert said.startswith("200 "), f"the remedy did not outlive {case.outlives}: {said}"
    return f"told after {after:.1f} s, mended after {mended:.1f} s"


RULES = "ip -4 rule; ip -6 rule"
RULES_GONE = "for family in -4 -6; do ip $family rule | awk -F: '$1 >= 41 && $1 <= 44 {print \"rule del pref \" $1}' | ip $family -batch -; done"
FLAGS = "ip -d link show port1 | grep -oE '(isolated|guard) (on|off)|group_fwd_mask \\S+'"
FLAGS_OFF = "ip link set dev port1 type bridge_slave isolated off guard off group_fwd_mask 0"


def routing(serves, provider):
    return comes_back(RULES, RULES_GONE, "routing", TOLD[provider.contained], serves, provider)


def port(serves, provider):
    # A watcher that has just started, or learns of a new interface, checks everything. Wait until that is over.
    provider.do("systemctl restart outgate-host.service; ip link set dev port1 type bridge_slave isolated on")
    time.sleep(NOTICED[provider.contained])
    return comes_back(FLAGS, FLAGS_OFF, "port_unguarded", 10 if provider.contained else 40, serves, provider)


def comes_back(state, do, cause, limit, serves, provider):
    """Within `limit` seconds `state` shows the same as before, or outgate reports it with a remedy."""
    before = provider.do(state)
    with sabotaged(provider, do, "outgate firewall apply") as begin:
        note = ""
        while not note:
            now, said = provider.do(state), provider.run(LOOK).output
            if now == before:
                note = f"right again after {time.monotonic() - begin:.1f} s"
            elif is_told(said, cause, "`outgate firewall apply`"):
                note = f"told after {time.monotonic() - begin:.1f} s, mended after {mend(provider):.1f} s"
                assert provider.do(state) == before, f"mended without being as before: {provider.do(state)}"
            else:
                assert time.monotonic() < begin + limit, f"neither put right nor told, after {limit} s: {now}; {said}"
                time.sleep(0.2)
        tried(provider)
        holds(provider)
        serves(provider)
    return note


SWITCHES = "net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables"
SETTINGS = "sysctl -a 2>/dev/null | grep -E '^net\\.(bridge|ipv4|ipv6)\\..*(conf|forward|bridge)'"


def br_netfilter(serves, provider):
    """What Docker's start does to a host. Open connections continue, new ones work within seconds; outgate changes no setting."""
    on = " ".join(f"{switch}=1" for switch in SWITCHES.split())
    if provider.contained:
        if provider.run(f"sysctl -n {SWITCHES}").status:
            return "left out: this kernel has no br_netfilter"
        before = provider.do(f"sysctl -n {SWITCHES}").split()
        undo = "sysctl -qw " + " ".join(f"{switch}={value}" for switch, value in zip(SWITCHES.split(), before))
        provider.do(f"sysctl -qw {on.replace('=1', '=0')}; outgate firewall apply")
        come = "true"
    else:
        assert provider.run("test -e /proc/sys/net/bridge").status, "br_netfilter is there before it is loaded"
        come, undo = "modprobe br_netfilter", f"sysctl -qw {on.replace('=1', '=0')}; modprobe -r br_netfilter"
    slow = f"{IN_GUEST} timeout 120 curl -s http://good.test:8080/slow -o /tmp/slow & echo $! > /run/slow"
    provider.do(f"rm -f /tmp/slow; {slow}; until test -s /tmp/slow; do sleep 0.1; done")
    undo += "; kill $(cat /run/slow)"
    others = f"{SETTINGS} | grep -v ^net.bridge"
    settings = provider.do(others)
    with sabotaged(provider, f"{come}; sysctl -qw {on}", undo) as begin:
        size = int(provider.do("stat -c %s /tmp/slow"))
        bridges = provider.do(f"{SETTINGS} | grep ^net.bridge")
        provider.until(f"{IN_GUEST} curl -s --max-time 5 --cacert /brought/ca.crt https://good.test/", "for good.test", TOLD[provider.contained], "guests' connections do not come back")
        after = time.monotonic() - begin
        tried(provider)
        holds(provider)
        serves(provider)
        assert int(provider.do("sleep 1; stat -c %s /tmp/slow")) > size, "an open connection does not continue"
        assert provider.do(f"{SETTINGS} | grep ^net.bridge") == bridges and provider.do(others) == settings, "a setting was changed"
        assert provider.do(f"sysctl -n {SWITCHES}").split() == ["1", "1"]
    return f"guests are served {after:.1f} s later"


PROXY_TLS = "10.42.42.1:3443"
TLS = "/etc/outgate/tls"
SIGNER = "[ca]\ndefault_ca = here\n[here]\ndatabase = /root/signed/index\nrand_serial = yes\ndefault_md = sha256\npolicy = names\n[names]\ncommonName = supplied\n"
# Valid for $1 seconds from now. Prints the last of them, in seconds since 1970.
SIGN = """\
set -e
rm -rf /root/signed
mkdir /root/signed
: > /root/signed/index
end=$(($(date +%s) + $1))
openssl ca -batch -notext -config /root/ca.cnf -cert /brought/ca.crt -keyfile /brought/ca.key -in /brought/tls.csr \\
    -extfile /brought/extensions -enddate "$(date -u -d "@$end" +%Y%m%d%H%M%SZ)" -outdir /root/signed -out /root/signed/crt >/root/signed/said 2>&1 || { cat /root/signed/said; exit 1; }
install -g outgate -m 640 /root/signed/crt /etc/outgate/tls/tls.crt
echo "$end"
"""


def certificate(serves, provider):
    """The certificate expires while the daemon runs; a new one is used without a restart."""
    drop, settings = "/etc/systemd/system/outgate.socket.d", "/etc/outgate/outgate.toml"
    good = f"install -g outgate -m 640 /brought/tls.crt {TLS}/"
    for name, text in (("tls.conf", f"[Socket]\nListenStream={PROXY_TLS}\n"), ("ca.cnf", SIGNER), ("sign.sh", SIGN)):
        provider.write(f"/root/{name}", text)
    provider.write("/root/tls.toml", f'[tls]\ncertificate = "{TLS}/tls.crt"\nkey = "{TLS}/tls.key"\n')
    reopen = "systemctl daemon-reload; systemctl stop outgate.socket; systemctl restart outgate.service; outgate firewall apply"
    do = [
        f"install -d -g outgate -m 750 {TLS}", good, f"install -g outgate -m 640 /brought/tls.key {TLS}/",
        f"cp -p {settings} /root/before.toml", f"sed -i '/^\\[listen\\]/a proxy_tls = [\"{PROXY_TLS}\"]' {settings}", f"cat /root/tls.toml >> {settings}",
        f"install -D -m 644 -t {drop} /root/tls.conf", reopen,
    ]
    undo = f"rm -r {drop} {TLS}; cp -p /root/before.toml {settings}; {reopen}"
    # A client that has the authority and uses the name.
    ask = f"curl -s --max-time 10 --proxy-cacert /brought/ca.crt --resolve good.test:3443:{PROXY_TLS.split(':')[0]} -x https://good.test:3443 -o /dev/null -w '%{{http_code}}' http://good.test/"
    with sabotaged(provider, "; ".join(do), undo):
        ready(provider)
        assert provider.run(ask).output == "200", provider.journal()
        pid = provider.pid()
        end = int(provider.do(f"sh /root/sign.sh {4 if provider.contained else 30}"))
        provider.until("curl -s http://127.0.0.1:3190/metrics | grep ^outgate_tls_certificate_expiry", f" {end}$", 30, "the new certificate is not taken")
        provider.do(f"while test $(date +%s) -le {end}; do sleep 0.05; done", 60)
        after = told(provider, "certificate", r"the certificate of \[tls\] has expired", time.monotonic())
        assert (taken := provider.run(ask)).status == 60, f"a client takes what has expired: {taken}"
        tried(provider)
        mended = mend(provider, by_hand=good)
        assert provider.run(ask).output == "200", provider.journal()
        assert provider.pid() == pid, "restarted"
        holds(provider)
        serves(provider)
    return f"told after {after:.1f} s, mended after {mended:.1f} s"


# Further variants, which tests/it/other_firewalls.rs also has. They take half a minute.
VARIANTS = ["ufw, opened by half", "somebody's policy drop", "somebody's iptables", "somebody drops in prerouting"]


def checks(serves, variants):
    """The checks by name, with `VARIANTS` or without. `serves(provider)` asserts that the guest gets what is allowed and nothing else."""
    made = {
        "br_netfilter on": functools.partial(br_netfilter, serves),
        "routing rules gone": functools.partial(routing, serves),
        "a port's flags turned off": functools.partial(port, serves),
        "certificate expired": functools.partial(certificate, serves),
    }
    cases = {
        "ufw": UFW,
        "ufw, opened by half": UFW_HALF,
        "firewalld": FIREWALLD,
        "somebody's policy drop": POLICY,
        "somebody's iptables": IPTABLES,
        "somebody's rule drops guests": RULE,
        "somebody drops in prerouting": PREROUTING,
        "tables flushed": FLUSHED,
        "disk full": DISK_FULL,
        "watcher stopped": WATCHER,
    }
    made |= {name: functools.partial(tells, case, serves) for name, case in cases.items()}
    return [(f"sabotage: {name}", check) for name, check in made.items() if variants or name not in VARIANTS]
