#!/usr/bin/env python3
"""The Debian package in a separate Debian: built, installed, used, upgraded, removed, purged.

No systemd runs there (tests/vm/service.py has that). So this is what also holds in containers and chroots, and
what dpkg does with files that an operator has edited. Requires root.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "vm"))
import debian  # noqa: E402  (where this machine's Debian packages come from)

PACKAGES = "adduser,apparmor,ca-certificates,curl,init-system-helpers,iproute2,nftables"
GOLEM = "/etc/outgate/whitelist/10-golem.rules"
OPERATORS = "/etc/outgate/whitelist/20-packages.rules"
LOCAL = "/etc/outgate/whitelist/local.rules"
CONFIG = "/etc/outgate/outgate.toml"
PROFILE, WRITTEN, SHIPPED_PROFILE = "/etc/apparmor.d/outgate", "/var/lib/outgate-host/apparmor", "/usr/share/outgate/apparmor/outgate"
# Whether a parser takes a profile, with no kernel that has AppArmor.
PARSE = "apparmor_parser --skip-kernel-load --skip-cache"
SHIPPED = [
    "usr/bin/outgate", "usr/share/man/man1/outgate.1.gz", "usr/share/man/man5/outgate.toml.5.gz",
    "usr/share/bash-completion/completions/outgate",
    "usr/share/zsh/vendor-completions/_outgate", "usr/share/fish/vendor_completions.d/outgate.fish",
    "usr/lib/systemd/system/outgate.service", "usr/lib/systemd/system/outgate.socket",
    "usr/lib/systemd/system/outgate-admin.socket", "usr/lib/systemd/system/outgate-firewall.service",
    "usr/lib/systemd/system/outgate-host.service",
    "usr/lib/systemd/system/outgate-golem-sync.service", "usr/lib/systemd/system/outgate-golem-sync.timer",
    SHIPPED_PROFILE.lstrip("/"), "usr/lib/sysusers.d/outgate.conf", "usr/lib/tmpfiles.d/outgate.conf", "etc/logrotate.d/outgate",
    "usr/share/doc/outgate/copyright", "usr/share/doc/outgate/changelog.Debian.gz",
    "usr/share/doc/outgate/README.md", "usr/share/doc/outgate/docs/SUMMARY.md",
    "usr/share/doc/outgate/docs/reference/reasons.md", "usr/share/doc/outgate/docs/internals/firewall.md",
    "usr/share/doc/outgate/systemd/README.md",
]
# None of these concerns the guests' interfaces.
ENABLED = [
    "multi-user.target.wants/outgate.service",
    "outgate.service.wants/outgate-admin.socket", "outgate.service.wants/outgate.socket",
    "sockets.target.wants/outgate-admin.socket", "sockets.target.wants/outgate.socket",
]


class World:
    """A root folder with Debian in it, and a network namespace with nothing but loopback."""

    def __init__(self, work, cache, release=debian.PLAIN.release):
        self.root = os.path.join(work, f"root-{release}")
        self.netns = f"ogp{os.getpid()}{release}"[:15]
        base = os.path.join(cache, f"debian-{release}-{PACKAGES.replace(',', '-')}.tar")
        os.makedirs(cache, exist_ok=True)
        if not os.path.exists(base):
            fresh = base + f".{os.getpid()}.tar"
            run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", release, fresh, debian.mirror()])
            os.rename(fresh, base)
        os.makedirs(self.root)
        run(["tar", "-C", self.root, "-xpf", base])
        run(["ip", "netns", "add", self.netns])
        run(["ip", "-n", self.netns, "link", "set", "lo", "up"])

    def close(self):
        subprocess.run(["ip", "netns", "del", self.netns], check=False)

    def inside(self, *command):
        # In separate mount and pid namespaces, so that no process of it is left.
        outer = ["ip", "netns", "exec", self.netns, "unshare", "--mount", "--pid", "--fork", f"--root={self.root}", "--mount-proc"]
        return [*outer, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", *command]

    def sh(self, script, wanted=0):
        said = subprocess.run(self.inside("sh", "-c", script), check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert said.returncode == wanted, f"`{script}` ended with {said.returncode}:\n{said.stdout}"
        return said.stdout

    def install(self, package):
        shutil.copy(package, os.path.join(self.root, "tmp", "outgate.deb"))
        return self.sh("dpkg --force-confold -i /tmp/outgate.deb")

    def path(self, name):
        return os.path.join(self.root, name.lstrip("/"))

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def append(self, name, text):
        with open(self.path(name), "a", encoding="utf-8") as file:
            file.write(text)

    def curl(self, *arguments):
        outer = ["ip", "netns", "exec", self.netns, "curl", "--silent", "--max-time", "20"]
        return subprocess.run([*outer, *arguments], check=False, text=True, capture_output=True).stdout


def run(command):
    said = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if said.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{said.stdout}")
    return said.stdout


def read(name):
    with open(name, encoding="utf-8") as file:
        return file.read()


def newer(package, version, work):
    """The same package as the next version, with one more rule in a shipped list."""
    tree = os.path.join(work, version)
    run(["dpkg-deb", "-R", package, tree])
    control = os.path.join(tree, "DEBIAN/control")
    with open(control, encoding="utf-8") as file:
        text = re.sub(r"(?m)^Version: .*$", f"Version: {version}", file.read())
    with open(control, "w", encoding="utf-8") as file:
        file.write(text)
    for name in [GOLEM, OPERATORS]:
        with open(tree + name, "a", encoding="utf-8") as file:
            file.write(f"shipped-with-{version.replace('.', '-')}.example.org\n")
    fresh = os.path.join(work, f"{version}.deb")
    run(["dpkg-deb", "-Zgzip", "-z1", "-b", tree, fresh])
    return fresh


def check_content(package):
    files = {}
    for line in run(["dpkg-deb", "-c", package]).splitlines():
        mode, owner, _, _, _, name = line.split(None, 5)
        files[name.removeprefix("./")] = (mode, owner)
    for name in SHIPPED:
        assert name in files, f"{name} is not in the package"
    for name, (mode, owner) in files.items():
        assert owner in ("root/root", "0/0"), f"{name} is {owner}'s"
        assert mode[5] != "w" and mode[8] != "w", f"others may write to {name}"
    conffiles = run(["dpkg-deb", "-I", package, "conffiles"]).split()
    lists = {"/" + name for name in files if name.startswith("etc/") and not name.endswith("/")}
    assert set(conffiles) == lists, f"{conffiles} are not what is under /etc: {lists}"
    return f"{len(files)} entries, {os.path.getsize(package) >> 10} KiB"


def check_lintian(package):
    if not shutil.which("lintian"):
        return "not installed, skipped"
    said = subprocess.run(["lintian", "--fail-on", "error", "--allow-root", package], check=False, text=True, capture_output=True)
    assert said.returncode == 0, said.stdout
    return f"{said.stdout.count('W:')} warnings"


def check_fresh(world, package):
    said = world.install(package)
    assert "not sound" not in said.lower(), said
    assert "NO GUEST IS GUARDED YET" in said and "`outgate setup`" in said, said
    assert world.sh("outgate setup").strip(), "the command that is named shows what is on the host"
    assert world.sh("getent passwd outgate | cut -d: -f7").strip().endswith("nologin")
    assert world.sh("stat -c '%U %a' /var/lib/outgate /etc/outgate/whitelist/local.rules").split() == ["outgate", "750", "root", "644"]
    assert world.sh("outgate check") .strip() != "", "check says what it found"
    assert enabled(world) == ENABLED, enabled(world)
    assert "table" not in world.sh("nft list ruleset"), "the firewall was changed"


def check_no_profile(world):
    """The parser of Debian 12 fails at the profile, and with it in the folder apparmor.service would."""
    said = world.sh(f"{PARSE} {SHIPPED_PROFILE} 2>&1", wanted=1)
    assert "abi" in said, said
    world.sh(f"test -d /etc/apparmor.d/abi && ! test -e {PROFILE} && ! test -e {WRITTEN}")


def check_profile(world, package, second):
    """The AppArmor profile on Debian 13: what postinst writes, what the operator edits or deletes, removal, purge."""
    local = "/etc/apparmor.d/local/outgate"
    world.sh(f"echo '# mine' >{local}")
    says = "not as the package wrote it"

    def state():
        return world.sh(f"cd /; ls {PROFILE} {WRITTEN} {local} /etc/apparmor.d/*.dpkg-new 2>/dev/null || true").split()

    world.sh(f"cmp {PROFILE} {SHIPPED_PROFILE} && cmp {PROFILE} {WRITTEN} && {PARSE} {PROFILE} && test $(stat -c '%U %a' {PROFILE} | tr -d ' ') = root644")
    # Not edited: it follows the package, and so it does where the record was lost.
    world.append(PROFILE, "# of an earlier version\n")
    world.sh(f"cp {PROFILE} {WRITTEN}")
    assert says not in world.install(second)
    world.sh(f"cmp {PROFILE} {SHIPPED_PROFILE} && rm {WRITTEN}")
    assert says not in world.install(second)
    world.sh(f"cmp {PROFILE} {WRITTEN}")
    # Edited: it stays, which is said when the package's is another one.
    world.append(PROFILE, "# edited\n")
    assert says not in world.install(second)
    assert "# edited" in world.read(PROFILE)
    world.append(WRITTEN, "# of an earlier version\n")
    assert says in world.install(second) and "# edited" in world.read(PROFILE)
    world.sh("dpkg -r outgate")
    assert state() == [local, PROFILE, WRITTEN], state()
    # It is still the operator's when the package comes back; a deleted one stays deleted.
    world.install(second)
    assert "# edited" in world.read(PROFILE)
    os.unlink(world.path(PROFILE))
    world.install(second)
    world.sh("dpkg -r outgate")
    world.install(second)
    assert state() == [local, WRITTEN], state()
    world.sh("dpkg -P outgate")
    assert state() == [local], state()
    # A file that was there before is not the package's, whatever is in it.
    world.sh(f"echo '# before' >{PROFILE}")
    assert says in world.install(package)
    world.sh("dpkg -P outgate")
    assert world.read(PROFILE) == "# before\n"
    # AppArmor comes after outgate, or without a parser; the trigger is what dpkg does when it unpacks that file.
    world.sh(f"rm {PROFILE}; mv /etc/apparmor.d/abi/4.0 /root/")
    world.install(package)
    assert state() == [local], state()
    world.sh("mv /root/4.0 /etc/apparmor.d/abi/; dpkg-trigger --no-await --by-package=apparmor /etc/apparmor.d/abi/4.0 && dpkg --configure --pending")
    assert state() == [local, PROFILE, WRITTEN], state()
    world.sh("dpkg -r outgate")
    assert state() == [local], state()
    world.sh(f"dpkg -P outgate; rm {local}")


def enabled(world):
    """Which units are enabled, and by which targets."""
    return sorted(world.sh("cd /etc/systemd/system; find . -path './*.wants/outgate*' -type l -printf '%P\\n'").split())


def check_use(world):
    with subprocess.Popen(world.inside("outgate", "run", "--user", "outgate"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as daemon:
        try:
            proxy = ["--proxy", "http://127.0.0.1:3128"]
            until = time.monotonic() + 20
            while not world.curl("http://127.0.0.1:3190/readyz") and time.monotonic() < until:
                time.sleep(0.05)
            refused = json.loads(world.curl(*proxy, "http://not-on-any-list.example/"))
            assert refused["reason"] == "not_whitelisted", refused
            # There is no DNS here, so the failure is not a refusal by the policy.
            allowed = json.loads(world.curl(*proxy, "http://ipfs.io/"))
            assert allowed["reason"] == "resolve_failed", allowed
        finally:
            subprocess.run(["pkill", "-TERM", "-P", str(daemon.pid)], check=False)
            out, err = daemon.communicate(timeout=40)
    assert b'"not_whitelisted"' in out, (out, err)


def check_upgrade(world, package):
    world.append(OPERATORS, "added-by-the-operator.example.org\n")
    world.append(LOCAL, "mine.example.org\n")
    world.append(CONFIG, "\n# a remark of the operator's\n")
    world.install(package)
    assert "shipped-with-0-2-0" in world.read(GOLEM), "an unedited list is updated"
    assert "added-by-the-operator" in world.read(OPERATORS) and "shipped-with" not in world.read(OPERATORS)
    assert "mine.example.org" in world.read(LOCAL)
    assert "a remark of the operator's" in world.read(CONFIG)
    world.sh("outgate explain https://mine.example.org https://added-by-the-operator.example.org")


def check_broken(world, package):
    world.append(LOCAL, "this is no rule\n")
    line = world.read(LOCAL).count("\n")
    said = world.install(package)
    assert f"local.rules:{line}:" in said and "NOT SOUND" in said, said
    assert world.sh("dpkg-query -W -f '${db:Status-Abbrev} ${Version}' outgate").strip() == "ii  0.3.0"


def check_removal(world, package):
    run(["ip", "-n", world.netns, "link", "add", "tap7", "type", "veth", "peer", "name", "tap7peer"])
    edit(world, "[listen]", '[listen]\ntransparent = ["0.0.0.0:3129", "[::]:3129"]\ndns = ["127.0.0.1:53"]')
    edit(world, "[firewall]", '[firewall]\nguest_interfaces = ["tap7"]')
    world.sh("sed -i '$d' /etc/outgate/whitelist/local.rules; outgate check")
    world.sh("outgate firewall apply")
    # As `outgate listen apply` writes and enables one.
    unit, links = "outgate-listen-dns-127.0.0.1-5399.socket", ["outgate.service.wants", "sockets.target.wants"]
    world.sh(f"cd /etc/systemd/system && echo '[Socket]' >{unit} && for folder in {' '.join(links)}; do ln -s /etc/systemd/system/{unit} $folder/; done")
    said = world.sh("dpkg -r outgate")
    assert not [link for link in enabled(world) if unit in link], f"a socket of no service is still enabled: {enabled(world)}"
    assert os.path.exists(world.path(f"/etc/systemd/system/{unit}")), "the unit stays for the package to come back"
    assert "tap7" in said and "FROM THE NEXT BOOT ON NOTHING FILTERS THEM" in said, said
    assert "mine.example.org" in world.read(LOCAL), "a removal keeps the operator's files"
    world.install(package)
    assert enabled(world) == sorted([*ENABLED, *(f"{folder}/{unit}" for folder in links)]), enabled(world)
    world.sh(f"cd /etc/systemd/system && test \"$(readlink -f sockets.target.wants/{unit})\" = /etc/systemd/system/{unit}")
    assert not os.path.exists(world.path("/var/lib/outgate.removed")) and "/dev/null" not in world.sh("ls -l /etc/systemd/system"), enabled(world)
    assert "mine.example.org" in world.read(LOCAL)
    # As `systemctl enable` would.
    world.sh("cd /etc/systemd/system && ln -s /usr/lib/systemd/system/outgate-dns.socket outgate.service.wants/")
    said = world.sh("dpkg -P outgate")
    assert "tap7" in said and "nft delete table $t" in said, said
    for gone in ["/etc/outgate", "/var/lib/outgate", "/var/lib/outgate-host", "/var/log/outgate", "/etc/logrotate.d/outgate"]:
        assert not os.path.lexists(world.path(gone)), f"{gone} is left"
    assert not world.sh("find /etc/systemd /var/lib/systemd -name '*outgate*'").strip()
    # Exactly the commands of the message.
    lines = [line.removeprefix("outgate:").strip() for line in said.splitlines()]
    commands = sorted({line for line in lines if "nft delete" in line or "$f rule del" in line})
    assert len(commands) == 2, said
    world.sh("{ " + "; ".join(commands) + "; } 2>/dev/null; true")
    assert "outgate" not in world.sh("nft list ruleset") and "prohibit" not in world.sh("ip rule; ip -6 rule")


def check_trixie(world, package, second):
    """The package of this Debian on the next one: dpkg, its libraries and helpers are others there."""
    assert "VERSION_CODENAME=trixie" in world.read("/etc/os-release")
    check_fresh(world, package)
    check_use(world)
    check_upgrade(world, second)
    check_use(world)
    check_profile(world, package, second)
    left = world.sh("find /etc /usr /var -name '*outgate*' -not -path '/var/log/*' -not -path '/var/lib/dpkg/*'").split()
    assert not left, left


def check_again(world, package):
    said = world.install(package)
    assert os.path.exists(world.path(LOCAL)) and "mine" not in world.read(LOCAL), said
    world.sh("outgate check && dpkg -P outgate")


def check_repository(world, package, work):
    """README's lines, as printed but for sudo and the address; then one byte of the package is another."""
    lines = re.search(r"(?s)<!-- apt -->\n```console\n(.*?)```", read(os.path.join(ROOT, "README.md"))).group(1)
    commands = [line.removeprefix("$ ").replace("sudo ", "") for line in lines.splitlines()]
    assert len(commands) == 3, lines
    url = re.search(r"https://[^ ]*(?=/outgate\.asc)", lines).group(0)
    local, folder, keys = "http://127.0.0.1:8099/outgate", os.path.join(work, "www"), os.path.join(work, "gnupg")
    os.mkdir(folder), os.mkdir(keys, 0o700)
    gpg = {**os.environ, "GNUPGHOME": keys}
    subprocess.run(["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "outgate test <test@example.org>",
                    "ed25519", "sign", "1d"], check=True, env=gpg, stderr=subprocess.DEVNULL)
    subprocess.run([os.path.join(ROOT, "packaging/apt-repository"), "--gpg-key", "test@example.org", "--url", local,
                    os.path.join(folder, "outgate"), package], check=True, env=gpg, stdout=subprocess.DEVNULL)
    subprocess.run(["gpgconf", "--kill", "all"], check=False, env=gpg)
    server = subprocess.Popen(["ip", "netns", "exec", world.netns, sys.executable, "-m", "http.server", "--bind", "127.0.0.1",
                               "--directory", folder, "8099"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        within(10, lambda: "outgate" in world.curl("http://127.0.0.1:8099/"))
        # The machine has no other repository: this one has all that is not installed yet.
        world.sh("rm -f /etc/apt/sources.list; rm -rf /etc/apt/sources.list.d/*")
        for command in commands:
            world.sh(command.replace(url, local).replace("apt install", "apt-get install --yes").replace("apt update", "apt-get update"))
        world.sh("outgate --version && dpkg -P outgate")
        deb = os.path.join(folder, "outgate/pool", os.path.basename(package))
        with open(deb, "r+b") as file:
            file.seek(-100, os.SEEK_END)
            byte = file.read(1)
            file.seek(-100, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
        said = world.sh("apt-get clean; apt-get install --yes outgate", wanted=100)
        assert "Hash Sum mismatch" in said, said
    finally:
        server.terminate()
        server.wait()


def within(seconds, holds):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def edit(world, old, new):
    with open(world.path(CONFIG), encoding="utf-8") as file:
        text = file.read()
    assert f"\n{old}\n" in text, f"{old} is not in {CONFIG}"
    with open(world.path(CONFIG), "w", encoding="utf-8") as file:
        file.write(text.replace(f"\n{old}\n", f"\n{new}\n", 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", help="a package that is there; built from the debug build without")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("skipped: requires root, for chroot and network namespaces")
        return 1 if os.environ.get("CI") == "true" else 0
    package = arguments.package
    if not package:
        run([os.path.join(ROOT, "packaging/build-deb"), "--debug"])
        folder = os.path.join(ROOT, "target/debian")
        package = max((os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".deb")), key=os.path.getmtime)
    with tempfile.TemporaryDirectory(prefix="outgate-package-") as work:
        cache = os.path.join(ROOT, "target/vm")
        world, trixie = World(work, cache), World(work, cache, "trixie")
        try:
            second, third = newer(package, "0.2.0", work), newer(package, "0.3.0", work)
            steps = [
                ("what is in the package", lambda: check_content(package)),
                ("lintian finds no error", lambda: check_lintian(package)),
                ("a fresh installation is complete and changes no firewall", lambda: check_fresh(world, package)),
                ("the shipped configuration refuses and allows as it should", lambda: check_use(world)),
                ("no AppArmor profile where the parser cannot read it", lambda: check_no_profile(world)),
                ("the same on Debian 13, an upgrade, removal and purge", lambda: check_trixie(trixie, package, second)),
                ("an upgrade keeps what the operator edited", lambda: check_upgrade(world, second)),
                ("an upgrade with a broken list names the line and does not fail in dpkg", lambda: check_broken(world, third)),
                ("removal and purge say which guests are closed and from when on they are open", lambda: check_removal(world, third)),
                ("it can be installed again", lambda: check_again(world, package)),
                ("README's lines install it from a signed repository, and not what was changed", lambda: check_repository(world, package, work)),
            ]
            for what, step in steps:
                start = time.monotonic()
                note = step()
                print(f"ok   {what}" + (f": {note}" if note else "") + f" ({time.monotonic() - start:.1f} s)", flush=True)
        finally:
            world.close()
            trixie.close()
    print(f"{len(steps)} passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
