"""Virtual machines under QEMU's software emulation, with Debian's kernel, that run commands from a serial port.

`Machine` is the running machine and the serial port over which it gets commands (obey.sh is the other
end). `guest` starts a small one: busybox and curl in an initramfs made of this machine's files, on a tap
that the caller made. This module does not depend on what is tested.
"""

import glob
import io
import lzma
import os
import queue
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
KERNEL = "linux-image-cloud-amd64"
MODULES = ["virtio_pci", "virtio_net"]
BOOT_SECONDS = 120
# What is emulated of a processor.
CPU = "max"


class MachineError(Exception):
    """The machine could not be made, or does not answer."""


@dataclass
class Result:
    status: int
    seconds: float
    output: str

    def __str__(self):
        return f"exit {self.status} after {self.seconds:.1f} s: {self.output.strip()[-300:]!r}"


class Machine:
    """One running machine. `prefix` is the command that enters its network namespace, `arguments` are further ones for QEMU."""

    def __init__(self, directory, prefix, kernel, initramfs, arguments, memory=256, limit=BOOT_SECONDS):
        image = os.path.join(directory, "initramfs")
        with open(image, "wb") as file:
            file.write(archive(initramfs))
        self.console = os.path.join(directory, "console.log")
        self.number, self.lines = 0, queue.Queue()
        self.process = subprocess.Popen(
            [
                *prefix, "qemu-system-x86_64", "-machine", "q35,usb=off", "-accel", "tcg", "-cpu", CPU, "-m", str(memory), "-nodefaults",
                "-no-user-config", "-display", "none", "-kernel", kernel, "-initrd", image, "-append", f"console=ttyS0 loglevel=4 panic=-1",
                "-serial", f"file:{self.console}", "-serial", "stdio", *arguments,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        )
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            self.wait(0, limit)
        except BaseException:
            self.stop()
            raise

    def listen(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\r\n"))
        self.lines.put(None)

    def run(self, command, limit=30):
        """Runs one line of shell in the guest, killed after `limit` seconds of the guest's time."""
        if "\n" in command or len(command) > 4000:
            raise ValueError("one line of at most 4000 characters")
        self.number += 1
        self.process.stdin.write(f"{self.number} {limit} {command}\n")
        self.process.stdin.flush()
        return self.wait(self.number, limit + 60)

    def wait(self, number, patience):
        deadline, output = time.monotonic() + patience, []
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise MachineError(f"the guest is silent for {patience} s; {self.last_words()}") from None
            if line is None:
                raise MachineError(f"QEMU ended: {self.process.stderr.read()}; {self.last_words()}")
            if end := re.fullmatch(rf"= {number} (\d+) (\d+)", line):
                return Result(int(end[1]), int(end[2]) / 100, "\n".join(output))
            if line.startswith("| "):
                output.append(line[2:])

    def last_words(self):
        with open(self.console, errors="replace") as file:
            return f"its console: {file.read()[-2000:]}"

    def stop(self):
        self.process.kill()
        self.process.wait()


def guest(directory, cache, prefix, tap, mac, files):
    """A small machine on `tap` with `files`, `{path: content}`, in it."""
    kernel, modules = unpack(package(cache), directory)
    network = ["-no-reboot", "-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no", "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile="]
    return Machine(directory, prefix, kernel, contents(modules, files), network)


def package(cache):
    """The path of the kernel's Debian package, fetched once."""
    for _ in range(2):
        listed = subprocess.run(["apt-cache", "depends", KERNEL], check=False, text=True, capture_output=True).stdout
        if found := re.search(r"Depends: (linux-image-\S+)", listed):
            break
        subprocess.run(["apt-get", "update", "-q"], check=False, capture_output=True)
    else:
        raise MachineError(f"apt knows no {KERNEL}")
    os.makedirs(cache, exist_ok=True)
    if not (present := glob.glob(os.path.join(cache, f"{found[1]}_*.deb"))):
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", found[1]], cwd=folder, check=True, capture_output=True)
            fetched = os.listdir(folder)[0]
            os.rename(os.path.join(folder, fetched), os.path.join(cache, fetched))
        present = [os.path.join(cache, fetched)]
    return present[0]


def unpack(path, directory):
    """Takes the kernel and its modules for virtio and the network out of the package: `(kernel, {name: module})`."""
    kernel, modules = os.path.join(directory, "vmlinuz"), {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as files:
            for entry in files:
                module = re.fullmatch(r"(?:.*/)?(?:drivers/virtio|drivers/block|drivers/net|net/core)/(\w+)\.ko(\.xz)?", entry.name)
                if module:
                    content = files.extractfile(entry).read()
                    modules[module[1]] = lzma.decompress(content) if module[2] else content
                elif os.path.basename(entry.name).startswith("vmlinuz-"):
                    with open(kernel, "wb") as file:
                        shutil.copyfileobj(files.extractfile(entry), file)
    if not os.path.exists(kernel) or not modules:
        raise MachineError(f"{path} is not a kernel as it was known")
    return kernel, modules


def in_order(modules, wanted):
    """The modules wanted, each after those it needs; the kernel has the rest built in."""
    ordered = []

    def add(name):
        if name in ordered or name not in modules:
            return
        needs = re.search(rb"\0depends=([^\0]*)\0", modules[name])
        for need in needs[1].decode().split(",") if needs else []:
            add(need.replace("-", "_"))
        ordered.append(name)

    for name in wanted:
        add(name)
    return ordered


def module_files(modules, wanted):
    """The modules wanted and the order in which they are loaded, as files."""
    ordered = in_order(modules, wanted)
    order = "".join(f"/modules/{name}.ko\n" for name in ordered).encode()
    return {f"modules/{name}.ko": (0o100644, modules[name]) for name in ordered} | {"modules/order": (0o100644, order)}


def contents(modules, more):
    """What the guest's file system holds: `{path: (mode, content)}`."""
    files = {"bin/busybox": shutil.which("busybox"), "usr/bin/curl": shutil.which("curl")}
    for program in list(files.values()):
        # Nothing for a static one.
        listed = subprocess.run(["ldd", program], check=False, text=True, capture_output=True).stdout
        files |= {library.lstrip("/"): library for library in re.findall(r"(/\S+) \(0x", listed)}
    tree = {}
    for path, source in files.items():
        with open(source, "rb") as file:
            tree[path] = (0o100755, file.read())
    for path, script in (("init", "guest.sh"), ("obey.sh", "obey.sh")):
        with open(os.path.join(HERE, script), "rb") as file:
            tree[path] = (0o100755, file.read())
    tree |= {path: (0o100644, content) for path, content in more.items()} | module_files(modules, MODULES)
    tree["etc/nsswitch.conf"] = (0o100644, b"hosts: files dns\n")
    tree["etc/hosts"] = (0o100644, b"127.0.0.1 localhost\n")
    return tree


def archive(tree):
    """A cpio archive, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), with a console to begin on."""
    out = io.BytesIO()
    folders = {path[: at.start()] for path in tree for at in re.finditer("/", path)} | {"dev"}
    entries = [(folder, 0o40755, b"", (0, 0)) for folder in sorted(folders)] + [("dev/console", 0o20600, b"", (5, 1))]
    entries += [(path, mode, content, (0, 0)) for path, (mode, content) in tree.items()] + [("TRAILER!!!", 0, b"", (0, 0))]
    for number, (path, mode, content, device) in enumerate(entries, 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in fields) + name, content):
            out.write(part)
            out.write(bytes(-out.tell() % 4))
    return out.getvalue()
