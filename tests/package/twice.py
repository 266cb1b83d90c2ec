#!/usr/bin/env python3
"""The package of one commit, made in two folders by two users with other surroundings: the same bytes.

    twice.py --program FILE   packages this program twice, the second time as another user: seconds
    twice.py                  builds the program twice too, without optimization: paths, times, and the order of what is linked
    twice.py --full           builds twice what is published

On a difference it names the files inside the package that differ. What is not committed is left out.
"""

import argparse
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUICK = {"CARGO_PROFILE_DIST_LTO": "off", "CARGO_PROFILE_DIST_OPT_LEVEL": "0", "CARGO_PROFILE_DIST_CODEGEN_UNITS": "16", "CARGO_PROFILE_DIST_DEBUG": "0"}
NOBODY = 65534
# What of the surroundings must not show: the folder, and these.
PLACES = [
    ("one", {"TZ": "UTC", "LC_ALL": "C.UTF-8"}, 0o022),
    ("another/much/longer/folder", {"TZ": "Asia/Tokyo", "LC_ALL": "C", "LANG": "de_DE.UTF-8"}, 0o077),
]


def make(folder, commit, surroundings, umask, profile, program, user):
    """Clones the commit and makes its package there, as `user` where one is given; gives the package's path."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, folder], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach", commit], cwd=folder, check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARGO_TARGET")} | profile | surroundings
    arguments = []
    if program:
        own = os.path.join(folder, "target", "program")
        os.mkdir(os.path.dirname(own))
        shutil.copy(program, own)
        arguments = ["--program", own]
    if user:
        subprocess.run(["chown", "-R", f"{user}:{user}", folder], check=True)
        environment["HOME"] = folder
    said = subprocess.run(
        ["packaging/build-deb", *arguments], cwd=folder, env=environment, umask=umask, check=False, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, **({"user": user, "group": user, "extra_groups": []} if user else {}),
    )
    if said.returncode:
        sys.exit(f"packaging/build-deb failed in {folder}:\n{said.stdout[-3000:]}")
    (package,) = glob.glob(os.path.join(folder, "target/debian/*.deb"))
    return package


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(package, folder):
    """Each file and folder of a package: sum, mode, time, and where links lead; and what dpkg-deb lists, which has the owners."""
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    found = {"the list of its files": subprocess.run(["dpkg-deb", "-c", package], check=True, text=True, capture_output=True).stdout}
    for where, folders, names in os.walk(folder):
        for name in folders + names:
            path = os.path.join(where, name)
            meta = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else digest(path) if os.path.isfile(path) else "folder"
            found[os.path.relpath(path, folder)] = (content, oct(meta.st_mode), int(meta.st_mtime))
    return found


def differences(one, other):
    """What differs between the contents of two packages, one line each."""
    lines = []
    for name in sorted(one.keys() | other.keys()):
        was, now = one.get(name), other.get(name)
        if was != now and isinstance(was, str) and isinstance(now, str):
            lines += [f"differs: {name}: {line}" for line in sorted(set(was.splitlines()) ^ set(now.splitlines()))]
        elif was != now:
            lines.append(f"differs: {name}: {was} and {now}")
    return lines or ["differs: only how it is packed, not what is in it"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="with the optimization of the package that is published")
    parser.add_argument("--program", metavar="FILE", help="package this program, and build none")
    arguments = parser.parse_args()
    begin = time.monotonic()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, text=True, capture_output=True).stdout.strip()
    profile = {} if arguments.full or arguments.program else QUICK
    # Another user cannot use this one's Rust.
    users = [None, NOBODY if arguments.program and os.geteuid() == 0 else None]
    with tempfile.TemporaryDirectory(prefix="outgate-twice-") as work:
        os.chmod(work, 0o755)
        made = [make(os.path.join(work, name), commit, surroundings, umask, profile, arguments.program, user) for (name, surroundings, umask), user in zip(PLACES, users)]
        sums = [digest(package) for package in made]
        if sums[0] == sums[1]:
            print(f"twice: {sums[0]} both times, in {time.monotonic() - begin:.0f} s")
            return 0
        one, other = (contents(package, os.path.join(work, f"content-{n}")) for n, package in enumerate(made))
        print("\n".join(differences(one, other)))
        print(f"twice: {sums[0]} and then {sums[1]}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
