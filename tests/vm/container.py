"""The Debian of debian.py in a container: systemd is its first process.

It runs at this processor's speed, on this machine's kernel, in namespaces and with a root of its own: the disk
image, copied and mounted in a private mount namespace. What would let it change this machine (kernel settings
other than its own network's, and devices) is read-only or hidden. It cannot boot again, and where this
machine has no memory controller in its version 2 control groups, there is no MemoryMax=.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time

import debian
import machine
from machine import MachineError, Result

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]
# Units that would change this machine (settings, modules, devices, the random seed), and that of the serial port.
MASKED = "systemd-sysctl systemd-udevd systemd-udev-trigger systemd-modules-load systemd-remount-fs systemd-binfmt systemd-random-seed kmod-static-nodes obey"

# The image $1 becomes the root of this process, and the old root is unmounted. $2 is the folder of the tests' files.
ENTER = r"""
mount --make-rprivate /
cd "$(dirname "$1")"
mkdir root
mount -o loop "$1" root
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "dev/${device%:*}" c 1 "${device#*:}"; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir brought before
cp -r "$2/." brought
for unit in $3; do ln -sf /dev/null "etc/systemd/system/$unit.service"; done
pivot_root . before
cd /
umount -l /before
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=journal
"""


class Container:
    """One running container, which takes commands as `machine.Machine` does."""

    def __init__(self, directory, cache, brought, limit=machine.BOOT_SECONDS, kind=debian.PLAIN):
        image = os.path.join(directory, "disk")
        shutil.copyfile(debian.image(cache, machine.package(cache), kind), image)
        self.group = os.path.join(groups(), f"outgate-test-{os.getpid()}")
        os.mkdir(self.group)
        self.init = None
        self.output = tempfile.TemporaryFile(dir=directory)
        join = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"'
        self.process = subprocess.Popen(
            ["sh", "-c", join, "join", self.group, "unshare", *NAMESPACES, "--fork", "sh", "-euc", ENTER, "enter", image, brought, MASKED],
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True,
        )
        try:
            self.boot(time.monotonic() + limit)
        except BaseException:
            self.stop()
            raise

    def boot(self, deadline):
        """Waits until the service manager has started all units."""
        while self.init is None or self.run("systemctl is-system-running").output.strip() not in ("running", "degraded"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"the container did not boot: {self.last_words()}")
            self.init = first_process(self.process.pid)
            time.sleep(0.2)

    def run(self, command, limit=30):
        enter = ["nsenter", "-t", str(self.init), *NAMESPACES, "--", "env", "-i", "HOME=/root", "LANG=C", f"PATH={PATH}"]
        begin = time.monotonic()
        # A file and not a pipe, which would stay open as long as any process that the command leaves running.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [*enter, "timeout", "-s", "KILL", str(limit), "sh", "-c", command],
                check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )
            output.seek(0)
            text = output.read().decode(errors="replace")
        return Result(done.returncode, time.monotonic() - begin, text)

    def last_words(self):
        self.output.seek(0)
        return self.output.read().decode(errors="replace")[-1000:]

    def stop(self):
        """Kills the first process, and so all others in it."""
        init = self.init or first_process(self.process.pid)
        os.kill(init or self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        for folder, _, _ in os.walk(self.group, topdown=False):
            os.rmdir(folder)


def groups():
    """Where control groups of version 2 are mounted."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _, folder, kind, *_ = line.split()
            if kind == "cgroup2":
                return folder
    raise MachineError("no control groups of version 2 are mounted (mount -t cgroup2)")


def first_process(parent):
    """The child of unshare(1), once it has become systemd."""
    try:
        with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            child = int(file.read().split()[0])
        with open(f"/proc/{child}/comm", encoding="utf-8") as file:
            return child if file.read().strip() == "systemd" else None
    except (OSError, IndexError):
        return None
