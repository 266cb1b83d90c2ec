"""A Debian machine with systemd, under QEMU's software emulation.

Installs Debian into a disk image, once, and boots it from a copy that is deleted afterwards. A test's files
are under /brought. This module does not depend on what is tested.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import typing

import machine
from machine import HERE, Machine, MachineError

# Debian's minimal system, an init, the programs that tests and outgate call, and other firewalls.
PACKAGES = "systemd systemd-sysv adduser init-system-helpers nftables iproute2 python3 curl openssl procps kmod libcap2-bin logrotate"
PACKAGES += " iptables ufw firewalld"


class Kind(typing.NamedTuple):
    """What a machine has on its disk."""

    release: str = "bookworm"
    packages: str = PACKAGES
    size: str = "1200M"
    # Units that are disabled until a check starts them. If enabled, firewalld would also be started by D-Bus.
    disabled: str = "ufw.service firewalld.service"


PLAIN = Kind()
LEFT_OUT = ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*"]
MODULES = ["virtio_pci", "virtio_blk"]
# Services that would only cost time here.
MASKED = "getty.target apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-timesyncd.service dpkg-db-backup.timer systemd-logind.service"

INIT = b"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /root
/bin/busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do /bin/busybox insmod "$module"; done </modules/order
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""

# The machine gets commands over the second serial port (obey.sh), and the tests' files as an archive on a second disk.
SERVICE = """[Unit]
Description=Does what it is told
After=multi-user.target
[Service]
Type=simple
Environment=HOME=/root LANG=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStartPre=/bin/sh -c 'mkdir -p /brought && tar -C /brought -xf /dev/vdb'
ExecStart=/bin/sh /obey.sh
OOMScoreAdjust=-900
TasksMax=infinity
LimitNOFILE=1048576
[Install]
WantedBy=default.target
"""


def start(directory, cache, brought, limit=machine.BOOT_SECONDS, kind=PLAIN):
    """A machine with the files of the folder `brought` under /brought. It has only the networks that it makes itself."""
    package = machine.package(cache)
    disk = image(cache, package, kind)
    kernel, modules = machine.unpack(package, directory)
    with open(shutil.which("busybox"), "rb") as file:
        busybox = file.read()
    initramfs = {"init": (0o100755, INIT), "bin/busybox": (0o100755, busybox)} | machine.module_files(modules, MODULES)
    archive = os.path.join(directory, "brought.tar")
    with tarfile.open(archive, "w") as file:
        file.add(brought, arcname=".")
    disks = ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on", "-drive", f"file={archive},format=raw,if=virtio,readonly=on"]
    return Machine(directory, [], kernel, initramfs, ["-smp", "2", *disks], memory=1024, limit=limit)


def image(cache, package, kind=PLAIN):
    """The path of the disk with Debian on it, made once for these packages and this kernel."""
    with open(__file__, "rb") as file:
        key = hashlib.sha256(file.read() + os.path.basename(package).encode() + read("obey.sh").encode() + repr(kind).encode()).hexdigest()[:12]
    path = os.path.join(cache, f"debian-{key}.ext4")
    if os.path.exists(path):
        return path
    with tempfile.TemporaryDirectory(dir=cache) as work:
        root = os.path.join(work, "root")
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        said = subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={kind.packages.replace(' ', ',')}", *options, kind.release, root, mirror()],
            check=False, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        if said.returncode:
            raise MachineError(f"mmdebstrap failed: {said.stdout[-2000:]}")
        furnish(root, package, kind)
        fresh = os.path.join(work, "disk")
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", root, fresh, kind.size], check=True)
        os.rename(fresh, path)
    return path


def furnish(root, package, kind):
    """Writes the kernel's modules, the agent and the settings for a machine without a console to `root`."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as files:
            wanted = r"\./lib/modules/[^/]+/(modules\.\w+|kernel/(net|lib|crypto|drivers/(net|virtio|block))/.*)"
            for entry in files:
                if entry.isfile() and re.fullmatch(wanted, entry.name) and "/net/wireless" not in entry.name:
                    # /lib is a link to usr/lib there.
                    files.extract(entry, os.path.join(root, "usr"), set_attrs=False)
    version = os.listdir(os.path.join(root, "usr/lib/modules"))[0]
    subprocess.run(["chroot", root, "depmod", version], check=True, stderr=subprocess.DEVNULL)
    write(root, "obey.sh", read("obey.sh"))
    write(root, "etc/systemd/system/obey.service", SERVICE)
    write(root, "etc/fstab", "")
    write(root, "etc/hostname", "provider\n")
    write(root, "etc/hosts", "127.0.0.1 localhost provider\n::1 localhost\n")
    write(root, "etc/machine-id", "")
    for unit in MASKED.split():
        os.symlink("/dev/null", os.path.join(root, "etc/systemd/system", unit))
    subprocess.run(["chroot", root, "systemctl", "--quiet", "enable", "obey.service"], check=True)
    subprocess.run(["chroot", root, "systemctl", "--quiet", "disable", *kind.disabled.split()], check=True)


def mirror():
    """The package archive that this machine uses."""
    policy = subprocess.run(["apt-cache", "policy"], check=True, text=True, capture_output=True).stdout
    found = re.search(rf"(https?://\S+) {PLAIN.release}/main", policy)
    return found[1] if found else "http://deb.debian.org/debian"


def read(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


def write(root, path, text):
    with open(os.path.join(root, path), "w", encoding="utf-8") as file:
        file.write(text)
