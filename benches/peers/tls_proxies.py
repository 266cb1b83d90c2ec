"""The listeners with TLS: the certificates of a run, and each proxy's configuration.

All have one certificate, of the curve P-256, and TLS 1.3; sessions and tickets are as each has them by default.
At ports named `known` they ask for a client certificate of the same authority.
"""

import shutil
import subprocess

from stage import Trouble

FILES = ("cert.pem", "key.pem")
# The name in the client's certificate.
CLIENT = "guest.test"


def make(tool, folder):
    """Makes the certificates of a run."""
    done = subprocess.run([tool, "pki", "--dir", pki(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Trouble(f"no certificates: {done.stderr.strip()}")


def pki(folder):
    return folder / "pki"


def turning(folder):
    """A daemon's own pair, to be replaced while it runs, in a folder behind a symbolic link, as Kubernetes has it:
    two renames within the folder can bring in a new pair, and one of the link."""
    first = folder / "tls/..0"
    first.mkdir(parents=True)
    for name in FILES:
        shutil.copy(pki(folder.parent) / name, first)
    (folder / "tls/..data").symlink_to("..0")
    return folder / "tls/..data"


def outgate(where, known=False):
    cert, key = FILES
    # A client with the certificate is the guest of that name, whatever its address.
    guest = f'[[guest]]\nname = "{CLIENT}"\nwhitelist = ["peers.rules"]'
    asks = f'client_ca = "{where}/ca.pem"\n{guest}' if known else ""
    return f'''[tls]
certificate = "{where}/{cert}"
key = "{where}/{key}"
{asks}
'''


def relay(where, to, plain, connect):
    """Arguments. Of each two ports the second one asks for a client certificate."""
    listeners = {"--tls-plain": plain[0], "--known-plain": plain[1]}
    listeners |= {"--tls-connect": connect[0], "--known-connect": connect[1]}
    return ["--pki", where, *(f"{name}=127.0.0.1:{port}={to}" for name, port in listeners.items())]


def haproxy(where, port, known):
    bind, crt = "    bind 127.0.0.1", f"backlog 4096 ssl crt {where}/pair.pem"
    return f"{bind}:{port} {crt}\n{bind}:{known} {crt} ca-file {where}/ca.pem verify required"


def nginx(where, to, port, known=0):
    """Servers for the block `stream`."""
    cert, key = FILES
    tls = f"ssl_certificate {where}/{cert}; ssl_certificate_key {where}/{key}; ssl_protocols TLSv1.2 TLSv1.3;"
    asks = f"ssl_client_certificate {where}/ca.pem; ssl_verify_client on;"
    ports = [(port, ""), *([(known, asks)] if known else [])]
    listen = "ssl backlog=4096"
    lines = (f"server {{ listen 127.0.0.1:{port} {listen}; {tls} {more} proxy_pass {to}; }}" for port, more in ports)
    return "\n".join(f"    {line}" for line in lines)


def squid(where, port):
    cert, key = FILES
    return f"https_port 127.0.0.1:{port} tls-cert={where}/{cert} tls-key={where}/{key}"
