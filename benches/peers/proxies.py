"""The proxies, their configurations, and how each load reaches them.

All let `origin.test` through by a list of names, keep nothing in a cache and write an access log to a
file. They run with one worker, as user proxy. What each of them does not do, compared with outgate:

* relay     no list, no log, no limits, no deadlines: the floor
* haproxy   cannot terminate a CONNECT. Tunnels go through it as a plain TCP relay to a fixed address, without a
            decision; HTTP and TLS are decided by their name, but go to a fixed address
* nginx     the same, and cannot refuse CONNECT by its list, so it is not measured with refusals
* squid     decides on CONNECT by its target alone and not by what is then sent in the tunnel. Debian's is
            built without OpenSSL, so it cannot decide on TLS by SNI
* tinyproxy as squid; a thread for each connection, and no kept connections
* dnsmasq   DNS alone; writes no log and does not count queries by client
* unbound   the same

Inside TLS, relay and squid get a CONNECT too; nginx and haproxy terminate TLS and relay to the fixed address.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import tls_proxies
import resolvers
from stage import FAR, GATEWAY, GUEST_INTERFACE

NAMES = ["origin.test", *(f"allowed{number}.test" for number in range(2, 11))]
RAW, HTTP, TLS = "127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"
PIPELINES = ("fair-refused", "fair-allowed")
TUNNELS = ("latency", "tunnels", "bulk-1", "bulk-8", "bulk-up", "idle", "fair-8", "fair-64")
# A million by default: the cost of a reload shows only with a long list.
MANY_NAMES = 1_000_000
# A name that the upstream is asked for once, and one that only the list for `reload` allows.
CACHED, ADDED = "allowed2.test", "added.test"
# Loads of DNS: the query, and the answer that is required.
DNS = {"dns-cached": (CACHED, "NOERROR"), "dns-refused": ("denied.test", "NXDOMAIN")}


@dataclass
class Daemon:
    """A process to measure. `write` puts its files into a folder and gives the command."""

    name: str
    ports: list
    write: callable
    two_cpus: bool = False


@dataclass
class Way:
    """The way in which the clients of a load reach a proxy."""

    dial: str
    direct: bool = False
    redirect: int = 0
    # The port of a transparent listener; then the client is in the guest's namespace.
    tproxy: int = 0
    # If not None, this client is behind a bridge, with br_netfilter on or off.
    filtered: bool | None = None
    # The process, if it is not the row's own, and whether it requires a SIGHUP to read new files.
    daemon: Daemon | None = None
    told: bool = False
    # The client dials with TLS.
    secured: bool = False


@dataclass
class Row:
    name: str
    daemon: Daemon | None
    ways: dict
    # The row of outgate with which this one is compared, if any.
    against: str = "outgate"
    # Divides the counts.
    slow: int = 1
    loads: set = field(init=False)

    def __post_init__(self):
        self.loads = set(self.ways)


def tunnels(port, direct=False):
    return {load: Way(f"127.0.0.1:{port}", direct) for load in TUNNELS}


def explicit(port):
    """All loads of a forward proxy on one port; TLS within CONNECT."""
    return {load: Way(f"127.0.0.1:{port}") for load in (*TUNNELS, "http", "refused", "tls")}


def pipelines(dial, **how):
    return {load: Way(dial, **how) for load in PIPELINES}


def dns(port):
    return {load: Way(f"127.0.0.1:{port}") for load in DNS}


def secured(port, known=0, direct=False, daemon=None, known_daemon=None):
    """The listener with TLS, and the one that asks for a client certificate."""
    loads = ("handshake", "tls-bulk-down", "tls-bulk-up")
    ways = {load: Way(f"127.0.0.1:{port}", direct, daemon=daemon) for load in loads}
    return ways | ({"handshake-cert": Way(f"127.0.0.1:{known}", direct, daemon=known_daemon)} if known else {})


def redirected(port):
    return {"tls": Way(TLS, direct=True, redirect=port)}


def transparent(port, filtered=None):
    return {"tls": Way(f"{FAR}:9003", direct=True, tproxy=port, filtered=filtered)}


def give(folder):
    """Makes user proxy the owner."""
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, "proxy", "proxy")


# outgate


GUESTS = f'''[firewall]
guest_interfaces = ["{GUEST_INTERFACE}"]
'''


def outgate_config(folder, listen, admin, tls=""):
    return f"""
[listen]
{listen}
admin = "127.0.0.1:{admin}"
control = "{folder}/control.sock"

[whitelist]
dir = "{folder}/rules"

[resolver]
# Asked by the DNS loads alone: what is dialled stands in the file.
servers = ["127.0.0.1:{resolvers.UPSTREAM}"]
hosts_file = "{folder}/hosts"

[dial]
permit_addresses = ["127.0.0.0/8"]

{GUESTS if "transparent" in listen else ""}
[limits]
# On, since accounting for them is part of what outgate costs, but out of reach.
connections = 250000
new_connections_per_second = 1000000
requests_per_second = 10000000
dns_queries_per_second = 10000000
total_connections = 1000000

[log]
access = "{folder}/log/access.log"

[state]
dir = "{folder}/state"

{tls}"""


def outgate(binary, name, listen, admin, ports, more=0, two_cpus=False, tls=lambda _: ""):
    """outgate with `more` names in its list than the others have; `tls` gives the table for a folder."""

    def write(folder):
        names = [*NAMES, *(f"h{number}.d{number % 997}.example.test" for number in range(more))]
        (folder / "rules").mkdir()
        (folder / "rules/peers.rules").write_text("".join(f"{name}:*\n" for name in names))
        (folder / "hosts").write_text(f"127.0.0.1 origin.test {ADDED}\n")
        (folder / "outgate.toml").write_text(outgate_config(folder, listen, admin, tls(folder)))
        (folder / "state").mkdir()
        # In the folder that outgate watches for changes, each line would wake it.
        (folder / "log").mkdir()
        give(folder)
        # Root opens the transparent listener; no other listener requires a privilege.
        become = [] if "transparent" in listen else PROXY_USER
        itself = ["--user", "proxy"] if "transparent" in listen else []
        return [*become, binary, "run", "--config", folder / "outgate.toml", *itself]

    return Daemon(name, ports, write, two_cpus)


def outgate_doors(binary):
    """Processes of outgate with the proxy inside TLS: by default, with client certificates, and with a pair that is
    replaced while it runs. The process for the other loads has no TLS, so that older versions can be measured too."""

    def with_tls(what, port, tls):
        listen = f'proxy = []\nproxy_tls = ["127.0.0.1:{port}"]'
        return outgate(binary, f"outgate-{what}", listen, port + 2, [port], tls=tls)

    return [
        with_tls("tls", 3131, lambda folder: tls_proxies.outgate(tls_proxies.pki(folder.parent))),
        with_tls("known", 3141, lambda folder: tls_proxies.outgate(tls_proxies.pki(folder.parent), known=True)),
        with_tls("turning", 3151, lambda folder: tls_proxies.outgate(tls_proxies.turning(folder))),
    ]


def longer_list(folder):
    """outgate's list in this folder, and the one with `ADDED` in it that will replace it."""
    here, there = folder / "rules/peers.rules", folder / "next.rules"
    there.write_text(here.read_text() + f"{ADDED}:*\n")
    shutil.chown(there, "proxy", "proxy")
    return here, there


PROXY_USER = ["setpriv", "--reuid", "proxy", "--regid", "proxy", "--clear-groups"]


def for_guests(port):
    """The firewall with DNS, whose NAT enables connection tracking, as on most hosts."""
    return f'proxy = []\ntransparent = ["0.0.0.0:{port}"]\ndns = ["{GATEWAY}:{port + 2}"]'


def firewall_config(folder, port, interface):
    """The configuration for `outgate firewall` alone: redirects the guest behind this interface to this port."""
    (folder / "rules").mkdir(parents=True, exist_ok=True)
    path = folder / f"firewall-{port}.toml"
    path.write_text(outgate_config(folder, for_guests(port), 3190).replace(f'"{GUEST_INTERFACE}"', f'"{interface}"'))
    return path


# The others


def relay(tool):
    def write(folder):
        command = ["--connect", f"127.0.0.1:3001={RAW}", "--plain", f"127.0.0.1:3002={RAW}"]
        command += ["--http", f"127.0.0.1:3003={HTTP}", "--refuse", "127.0.0.1:3004"]
        command += ["--plain", f"127.0.0.1:3005={TLS}", "--connect", f"127.0.0.1:3006={TLS}"]
        command += ["--echo", "127.0.0.1:3008"]
        command += tls_proxies.relay(tls_proxies.pki(folder.parent), RAW, plain=(3012, 3014), connect=(3011, 3013))
        return [*PROXY_USER, tool, "relay", *command]

    return Daemon("relay", [*range(3001, 3007), *range(3011, 3015)], write)


def relay_tproxy(tool):
    """Runs as root, who alone may open a transparent socket. Nothing is redirected while it is measured."""
    return Daemon("relay-tproxy", [3007], lambda _: [tool, "relay", "--transparent", f"0.0.0.0:3007={TLS}"])


def haproxy(connections):
    def write(folder):
        (folder / "names").write_text("\n".join(NAMES) + "\n")
        (folder / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn {connections}
    maxpipes 256
    user proxy
    group proxy
    log stdout format raw local0
defaults
    log global
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option splice-auto
frontend http_in
    bind 127.0.0.1:3301 backlog 4096
    mode http
    option httplog
    acl allowed hdr(host),field(1,:) -f {folder}/names
    http-request deny deny_status 403 unless allowed
    default_backend http_out
backend http_out
    mode http
    http-reuse always
    server origin {HTTP}
frontend sni_in
    bind 127.0.0.1:3302 backlog 4096
    bind 0.0.0.0:3304 backlog 4096 transparent
    mode tcp
    option tcplog
    tcp-request inspect-delay 5s
    acl allowed req.ssl_sni -f {folder}/names
    tcp-request content accept if {{ req.ssl_hello_type 1 }} allowed
    tcp-request content reject if {{ req.ssl_hello_type 1 }}
    default_backend tls_out
backend tls_out
    mode tcp
    server origin {TLS}
frontend tcp_in
    bind 127.0.0.1:3303 backlog 4096
{tls_proxies.haproxy(tls_proxies.pki(folder.parent), 3305, 3306)}
    mode tcp
    option tcplog
    default_backend raw_out
backend raw_out
    mode tcp
    server origin {RAW}
""")
        return ["haproxy", "-W", "-db", "-f", folder / "haproxy.cfg"]

    return Daemon("haproxy", [*range(3301, 3307)], write)


def nginx_base(folder, connections):
    """The configuration before any server."""
    return f"""
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user proxy proxy;
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections {2 * connections}; }}
"""


def nginx_command(folder):
    return ["nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]


def nginx_turning(connections):
    """nginx with a pair that is replaced while it runs."""

    def write(folder):
        (folder / "nginx.conf").write_text(f"""{nginx_base(folder, connections)}
stream {{
    log_format basic '$remote_addr [$time_iso8601] $upstream_addr $status $session_time';
    access_log {folder}/stream.log basic;
{tls_proxies.nginx(tls_proxies.turning(folder), RAW, 3411)}
}}
""")
        return nginx_command(folder)

    return Daemon("nginx-turning", [3411], write)


def nginx(connections):
    def write(folder):
        allowed = "".join(f"        {name} 1;\n" for name in NAMES)
        tls = "".join(f"        {name} {TLS};\n" for name in NAMES)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        scratch = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        (folder / "nginx.conf").write_text(f"""{nginx_base(folder, connections)}
http {{
    access_log {folder}/http.log;
    {scratch}
    map $host $allowed {{
        default 0;
{allowed}    }}
    upstream origin {{ server {HTTP}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:3401 backlog=4096;
        keepalive_requests 1000000;
        if ($allowed = 0) {{ return 403; }}
        location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
stream {{
    log_format basic '$remote_addr [$time_iso8601] $ssl_preread_server_name $upstream_addr $status '
                     '$bytes_sent $bytes_received $session_time';
    access_log {folder}/stream.log basic;
    map $ssl_preread_server_name $to {{
        default "";
{tls}    }}
    proxy_timeout 1h;
    server {{ listen 127.0.0.1:3402 backlog=4096; ssl_preread on; proxy_pass $to; }}
    server {{ listen 127.0.0.1:3403 backlog=4096; proxy_pass {RAW}; }}
{tls_proxies.nginx(tls_proxies.pki(folder.parent), RAW, 3404, 3405)}
}}
""")
        return nginx_command(folder)

    return Daemon("nginx", [*range(3401, 3406)], write)


def squid(connections, tls=False):
    """squid. TLS has a process of its own, so that a squid without TLS can run the other loads."""
    port = 3502 if tls else 3501

    def write(folder):
        listener = tls_proxies.squid(tls_proxies.pki(folder.parent), port) if tls else f"http_port 127.0.0.1:{port}"
        (folder / "names").write_text("\n".join(NAMES) + "\n")
        (folder / "hosts").write_text("127.0.0.1 origin.test\n")
        (folder / "squid.conf").write_text(f"""
{listener}
acl allowed dstdomain "{folder}/names"
http_access allow allowed
http_access deny all
cache deny all
cache_mem 8 MB
via off
forwarded_for delete
hosts_file {folder}/hosts
pinger_enable off
max_filedescriptors {2 * connections}
read_timeout 1 hour
access_log stdio:{folder}/access.log
cache_log {folder}/cache.log
pid_filename {folder}/squid.pid
coredump_dir {folder}
shutdown_lifetime 1 second
cache_effective_user proxy
""")
        give(folder)
        return ["squid", "-N", "-f", folder / "squid.conf"]

    return Daemon("squid-tls" if tls else "squid", [port], write)


def tinyproxy(connections):
    def write(folder):
        patterns = ("^" + name.replace(".", "\\.") + "$" for name in NAMES)
        (folder / "names").write_text("\n".join(patterns) + "\n")
        (folder / "tinyproxy.conf").write_text(f"""
User proxy
Group proxy
Port 3601
Listen 127.0.0.1
Timeout 3600
MaxClients {connections}
LogFile "{folder}/tinyproxy.log"
LogLevel Connect
PidFile "{folder}/tinyproxy.pid"
Filter "{folder}/names"
FilterDefaultDeny Yes
FilterExtended On
FilterURLs Off
DisableViaHeader Yes
""")
        give(folder)
        return ["tinyproxy", "-d", "-c", folder / "tinyproxy.conf"]

    return Daemon("tinyproxy", [3601], write)


def rows(binary, tool, connections, names, two_cores):
    """All rows. Each proxy may have `connections` connections, of two descriptors each; `names` over ten and
    `two_cores` add some of outgate's own."""
    floor, ha, engine = relay(tool), haproxy(connections), nginx(connections)
    listen = 'proxy = ["127.0.0.1:3101"]\nredirect = ["127.0.0.1:3102"]\ndns = ["127.0.0.1:3104"]'
    plain = outgate(binary, "outgate", listen, 3103, [3101, 3102, 3104])
    tproxy = outgate(binary, "outgate-tproxy", for_guests(3129), 3130, [3129])
    none = {load: Way(RAW, direct=True) for load in TUNNELS if load != "idle"}
    none |= {"http": Way(HTTP, direct=True), "tls": Way(TLS, direct=True)}
    floor_ways = tunnels(3001) | {"http": Way("127.0.0.1:3003"), "refused": Way("127.0.0.1:3004")}
    # It has no list of names.
    floor_ways |= {"dns-cached": Way("127.0.0.1:3008")}
    tls, known, turning = outgate_doors(binary)
    own = explicit(3101) | dns(3104) | secured(3131, 3141, daemon=tls, known_daemon=known)
    own |= {"rotate": Way("127.0.0.1:3151", daemon=turning)} | pipelines("127.0.0.1:3101")
    engine_ways = tunnels(3403, True) | {"http": Way("127.0.0.1:3401")} | secured(3404, 3405, True)
    engine_ways |= {"rotate": Way("127.0.0.1:3411", True, daemon=nginx_turning(connections), told=True)}
    ha_ways = tunnels(3303, True) | {load: Way("127.0.0.1:3301") for load in ("http", "refused")}
    made = [
        Row("direct", None, none, against=""),
        Row("relay", floor, floor_ways | {"tls": Way("127.0.0.1:3006")} | secured(3011, 3013)),
        Row("relay, no CONNECT", floor, tunnels(3002, direct=True) | secured(3012, 3014, direct=True)),
        Row("outgate", plain, own, against=""),
        Row("outgate, inside TLS", tls, pipelines("127.0.0.1:3131", secured=True), against=""),
    ]
    many = names if names > len(NAMES) else MANY_NAMES
    big = outgate(binary, "outgate-names", 'proxy = ["127.0.0.1:3111"]', 3113, [3111], many - len(NAMES))
    ways = {"reload": Way("127.0.0.1:3111")} | (explicit(3111) if names > len(NAMES) else {})
    made.append(Row(f"outgate, {many:,} names", big, ways))
    if two_cores:
        both = outgate(binary, "outgate-two", 'proxy = ["127.0.0.1:3121"]', 3123, [3121], two_cpus=True)
        made.append(Row("outgate, 2 CPUs", both, explicit(3121)))
    many_far = pipelines(f"{FAR}:9002", direct=True, tproxy=3129)
    made += [
        Row("squid", squid(connections), explicit(3501) | secured(3502, daemon=squid(connections, tls=True))),
        Row("tinyproxy", tinyproxy(connections), explicit(3601), slow=5),
        Row("haproxy", ha, ha_ways | secured(3305, 3306, True)),
        Row("nginx", engine, engine_ways),
        Row("dnsmasq", Daemon("dnsmasq", [3701], resolvers.dnsmasq), dns(3701)),
        Row("unbound", Daemon("unbound", [3801], resolvers.unbound), dns(3801)),
        Row("haproxy, SNI", ha, {"tls": Way("127.0.0.1:3302", direct=True)}, against="outgate+redirect"),
        Row("nginx, SNI", engine, {"tls": Way("127.0.0.1:3402", direct=True)}, against="outgate+redirect"),
        Row("relay+redirect", floor, redirected(3005), against="outgate+redirect"),
        Row("outgate+redirect", plain, redirected(3102) | pipelines(HTTP, direct=True, redirect=3102), against=""),
        Row("haproxy+redirect", ha, redirected(3302), against="outgate+redirect"),
        Row("nginx+redirect", engine, redirected(3402), against="outgate+redirect"),
        Row("relay+tproxy", relay_tproxy(tool), transparent(3007), against="outgate+tproxy"),
        Row("outgate+tproxy", tproxy, transparent(3129) | many_far, against=""),
        Row("haproxy+tproxy", ha, transparent(3304), against="outgate+tproxy"),
        Row("outgate+tproxy+bridge", tproxy, transparent(3129, filtered=False), against="outgate+tproxy"),
        Row("outgate+tproxy+bridge, br_netfilter", tproxy, transparent(3129, filtered=True), against="outgate+tproxy"),
    ]
    return made


def versions(binary, daemons, first_line):
    """The version that each program prints, without other words."""
    asked = {"outgate": (binary, "--version"), "squid": ("squid", "-v"), "haproxy": ("haproxy", "-v")}
    asked |= {"nginx": ("nginx", "-v"), "tinyproxy": ("tinyproxy", "-v")}
    asked |= {"dnsmasq": ("dnsmasq", "--version"), "unbound": ("unbound", "-V")}
    said = {name: first_line(command) for name, command in asked.items() if name in daemons}
    return [f"{name} {re.search(r'[0-9]+[.][0-9.]+', line)[0].rstrip('.')}" for name, line in said.items()]


def folder_of(stage, daemon):
    path = Path(stage.folder) / daemon.name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path
