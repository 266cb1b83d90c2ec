#!/usr/bin/env python3
"""The package's AppArmor profile on a Debian 13 with AppArmor in force, under QEMU.

The kernel is that of the other tests, 6.1, which attaches profiles and does not restrict user namespaces. --kernel takes
another one, as bookworm-backports has it: from 6.7 on the last check shows what the profile permits. Judged by the labels
in /proc, by the kernel's list of profiles, and by what is served.
"""

import argparse
import os
import re
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True
import debian  # noqa: E402
import machine  # noqa: E402
import service  # noqa: E402

PACKAGES = "systemd systemd-sysv adduser init-system-helpers nftables iproute2 python3 curl openssl procps kmod apparmor"
# A unit that is disabled anyway.
KIND = debian.Kind("trixie", PACKAGES, "1200M", "systemd-networkd.service")
PROFILE, LOCAL = "/etc/apparmor.d/outgate", "/etc/apparmor.d/local/outgate"
LABEL = "outgate (unconfined)"
SHOW = "cat /proc/self/attr/apparmor/current"
# A program with a profile of its own. Like most, it takes signals from unconfined processes and its own kind alone.
JAILED = """\
include <tunables/global>
profile jailed /usr/local/bin/jailed {
  include <abstractions/base>
  /usr/local/bin/jailed mr,
}
"""
# All rights but one.
RESTRICTED = """\
abi <abi/4.0>,
profile restricted {
  file,
  capability,
  signal,
  unix,
  mount,
  change_profile,
}
"""


def loaded(host):
    """The profile as the kernel lists it; nothing if it is not loaded."""
    return host.run("grep '^outgate ' /sys/kernel/security/apparmor/profiles").output.strip()


def daemon_label(host):
    return host.do(f"cat /proc/{host.pid()}/attr/apparmor/current")


def in_force(host):
    """Otherwise the checks below could not fail."""
    assert host.do("aa-enabled") == "Yes" and host.state("apparmor.service") == "active", host.journal("apparmor.service")
    assert not loaded(host)
    return host.do("uname -r")


def install(host):
    host.write(LOCAL, "# mine\n")
    said = host.do("dpkg -i /brought/earlier.deb 2>&1", 120)
    assert loaded(host) == LABEL and "apparmor" not in said.lower(), said
    host.ready()
    assert daemon_label(host) == LABEL, daemon_label(host)
    service.configure(host)
    service.serves(host)
    host.do("sed -i 's/^guest_interfaces = .*/guest_interfaces = [\"br0\", \"og-*\"]/' /etc/outgate/outgate.toml; outgate firewall apply; systemctl reload outgate", 90)
    host.ready()
    said = host.do("dpkg -i /brought/outgate.deb 2>&1", 120)
    assert loaded(host) == LABEL and "apparmor" not in said.lower(), said
    host.ready()
    assert daemon_label(host) == LABEL, daemon_label(host)
    service.serves(host)


def commands(host):
    """A command of `outgate exec` does not inherit the profile."""
    assert host.do(f"aa-exec -p outgate -- {SHOW}") == LABEL, "a child does not have its parent's profile, so this shows nothing"
    # The last one by a caller that can't gain privileges, for whom kernels refuse some changes.
    for options, command, prefix in (("--user nobody", SHOW, ""), ("--user root", f"sh -c '{SHOW}; true'", ""), ("--user nobody", SHOW, "setpriv --no-new-privs ")):
        said = host.do(f"{prefix}outgate exec --name job {options} -- {command}").splitlines()
        assert said[-1] == "unconfined", f"{prefix}, {command}, {options}: {said}"
    result = host.run("outgate exec --name job --user nobody -- curl -s --max-time 20 http://good.test:8080/")
    assert result.status == 0 and result.output, f"{result}; {host.journal()}"
    probed = host.run("outgate golem probe http://good.test:8080/")
    assert probed.status == 0, probed


def confined(host):
    """A command with a profile of its own has it, and gets the signals that are for it."""
    host.write("/etc/apparmor.d/jailed", JAILED)
    host.do("cp /usr/bin/sleep /usr/local/bin/jailed; apparmor_parser -r /etc/apparmor.d/jailed")
    host.do("outgate exec --name job --user nobody -- /usr/local/bin/jailed 1000 >/tmp/jailed 2>&1 & echo $! >/tmp/jailed.pid; sleep 3")
    host.until("pgrep -x jailed", r"\d", 20, "it does not run")
    pid = host.do("pgrep -x jailed")
    assert host.do(f"cat /proc/{pid}/attr/apparmor/current") == "jailed (enforce)"
    refused = host.run(f"aa-exec -p outgate -- sh -c 'kill -TERM {pid}'")
    assert refused.status and "Permission denied" in refused.output, f"with the profile it could be signalled, so this shows nothing: {refused}"
    host.do("kill -TERM $(cat /tmp/jailed.pid)")
    host.until("pgrep -x jailed || echo ended", "ended", 20, "the signal did not arrive")
    host.until("test -e /proc/$(cat /tmp/jailed.pid) || echo ended", "ended", 60, "the run did not end")
    host.do("apparmor_parser -R /etc/apparmor.d/jailed; rm /etc/apparmor.d/jailed")


def refuses(host):
    """Where the profile cannot be left nothing is started; the remedy works as printed."""
    closed = "unshare --mount sh -c 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc && outgate exec --name job --user nobody -- touch /tmp/started'"
    refused = host.run(closed)
    assert refused.status == 1 and "the AppArmor profile of outgate cannot be left" in refused.output, refused
    assert host.run("test -e /tmp/started").status and "og-" not in host.do("ip -br link")
    remedy = re.search(r"unload it: `([^`]+)`", refused.output)[1]
    host.do(remedy)
    assert not loaded(host)
    host.do(closed)
    host.do("test -e /tmp/started")
    # The daemon goes on.
    host.ready()
    host.do(f"apparmor_parser -r {PROFILE}; systemctl restart outgate.service", 60)
    host.ready()
    assert daemon_label(host) == LABEL, daemon_label(host)


def boots(host):
    host.reboot()
    assert host.state("apparmor.service") == "active" and loaded(host) == LABEL, host.journal("apparmor.service")
    host.until("systemctl is-active outgate.service", "^active", 60, "the daemon does not start")
    assert daemon_label(host) == LABEL, daemon_label(host)


def remove(host):
    gone = f"! test -e {PROFILE} && ! ls /var/cache/apparmor/*/outgate 2>/dev/null && test \"$(cat {LOCAL})\" = '# mine'"
    host.do("dpkg -r outgate 2>&1", 120)
    assert not loaded(host)
    host.do(gone)
    host.do("dpkg -i /brought/outgate.deb 2>&1", 120)
    assert loaded(host) == LABEL and daemon_label(host) == LABEL
    host.do(f"echo '# edited' >>{PROFILE}; dpkg -r outgate 2>&1", 120)
    assert not loaded(host)
    host.do(f"grep -q '# edited' {PROFILE} && dpkg -P outgate 2>&1", 120)
    assert not loaded(host)
    host.do(gone)
    host.do("systemctl restart apparmor.service", 60)


def comes_later(host):
    """Without AppArmor 4.0 nothing is written; when it comes dpkg's trigger brings the profile."""
    host.do("mv /etc/apparmor.d/abi/4.0 /root/; dpkg -i /brought/outgate.deb 2>&1", 120)
    host.do(f"! test -e {PROFILE}")
    assert not loaded(host)
    # What dpkg does when it unpacks that file.
    host.do("mv /root/4.0 /etc/apparmor.d/abi/; dpkg-trigger --no-await --by-package=apparmor /etc/apparmor.d/abi/4.0 && dpkg --configure --pending 2>&1", 120)
    assert loaded(host) == LABEL
    # As docs/service.md says.
    host.do(f"ln -s {PROFILE} /etc/apparmor.d/disable/ && apparmor_parser -R {PROFILE}")
    host.do("dpkg -i /brought/outgate.deb 2>&1", 120)
    assert not loaded(host), "a disabled profile was loaded"
    host.do(f"rm /etc/apparmor.d/disable/outgate; apparmor_parser -r {PROFILE}; systemctl restart outgate.service", 60)
    assert loaded(host) == LABEL and daemon_label(host) == LABEL


def permits(host):
    """The right itself, where the kernel knows it."""
    if "userns_create" not in host.run("cat /sys/kernel/security/apparmor/features/namespaces/mask").output:
        return "this kernel does not restrict user namespaces; see --kernel"
    host.write("/root/restricted", RESTRICTED)
    host.do("apparmor_parser -r /root/restricted")
    nobody, make = "setpriv --reuid=nobody --clear-groups", "unshare --user --map-root-user"
    refused = host.run(f"{nobody} aa-exec -p restricted -- {make} true")
    assert refused.status, "a user namespace can be created without the right, so this shows nothing"
    # Started from there, this program in the place of outgate has the profile.
    host.do(r"sed -i 's,^},  /usr/bin/outgate Px\,\n},' /root/restricted; apparmor_parser -r /root/restricted")
    other = f"unshare --mount sh -c 'mount --bind /usr/bin/unshare /usr/bin/outgate && {nobody} aa-exec -p restricted -- sh -c \"{{}}\"'"
    assert host.run(other.format(f"{make} true")).status
    said = host.do(other.format(f"/usr/bin/outgate --user --map-root-user {SHOW}"))
    assert said == LABEL, said
    capabilities = host.do(other.format("/usr/bin/outgate --user --map-root-user grep CapEff /proc/self/status"))
    assert int(capabilities.split()[1], 16), capabilities
    host.do("apparmor_parser -R /root/restricted")
    return f"without the right: {refused.output.strip()}; with it: {' '.join(capabilities.split())}"


CHECKS = [
    ("AppArmor is in force", in_force),
    ("installed, upgraded, and it serves", install),
    ("a command is unconfined", commands),
    ("a command with a profile of its own", confined),
    ("a profile that cannot be left", refuses),
    ("loaded at a boot", boots),
    ("remove, install again, purge", remove),
    ("AppArmor that comes later", comes_later),
    ("what the profile permits", permits),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="the Debian package under test")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only checks with TEXT in their name (those before may be needed)")
    parser.add_argument("--kernel", metavar="PACKAGE", help="the Debian package of another kernel (linux-image-*-cloud-amd64)")
    arguments = parser.parse_args()
    if (code := service.skips()) is not None:
        return code
    if arguments.kernel:
        machine.package = lambda _: os.path.abspath(arguments.kernel)
        # QEMU 7.2 gets the flags of cmpxchg16b wrong, and later kernels panic then.
        machine.CPU = "max,-cx16"
    begin = time.monotonic()
    cache = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(service.ROOT, "target")), "vm")
    tally = service.Tally(CHECKS)
    with tempfile.TemporaryDirectory(prefix="outgate-apparmor-") as directory:
        host = service.Provider(directory, cache, service.bring(directory, arguments.package), False, KIND)
        tally.perform(host, arguments.only, [])
    print(f"apparmor: {tally.passed} passed, {tally.failed} failed, in {time.monotonic() - begin:.0f} s")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
