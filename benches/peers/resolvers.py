"""DNS servers: those to measure, and their upstream."""

# The upstream for names that are in no file, and its answer to all of them. That address is never dialled.
UPSTREAM, ANSWER = 5353, "11.0.0.10"


def dnsmasq_command(folder, port, *more):
    own = [f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=proxy", "--group=proxy"]
    nothing = ["--conf-file=/dev/null", f"--pid-file={folder}/dnsmasq-{port}.pid", "--no-resolv", "--no-hosts"]
    return ["dnsmasq", "--keep-in-foreground", *own, *nothing, *more]


def upstream(folder):
    """The upstream of the measured servers: it answers any name under test, with a TTL of an hour."""
    return dnsmasq_command(folder, UPSTREAM, f"--address=/test/{ANSWER}", "--local-ttl=3600")


def dnsmasq(folder):
    return dnsmasq_command(folder, 3701, f"--server=127.0.0.1#{UPSTREAM}", "--address=/denied.test/")


def unbound(folder):
    (folder / "unbound.conf").write_text(f"""
server:
    interface: 127.0.0.1
    port: 3801
    num-threads: 1
    username: proxy
    directory: "{folder}"
    chroot: ""
    pidfile: ""
    use-syslog: no
    verbosity: 0
    do-daemonize: no
    module-config: "iterator"
    do-not-query-localhost: no
    # By itself it knows that there is nothing under test (RFC 6761).
    local-zone: "test." nodefault
    local-zone: "denied.test." always_nxdomain
remote-control:
    control-enable: no
forward-zone:
    name: "."
    forward-addr: 127.0.0.1@{UPSTREAM}
""")
    return ["unbound", "-d", "-c", folder / "unbound.conf"]
