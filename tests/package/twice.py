#!/usr/bin/env python3
"""The package of one commit, built in two folders by two users with other surroundings: the same bytes.

Without --full the program is built without optimization, which takes less time and shows the same: paths, times
and the order of files. --full builds what is published.
"""

import argparse
import glob
import hashlib
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUICK = {"CARGO_PROFILE_DIST_LTO": "off", "CARGO_PROFILE_DIST_OPT_LEVEL": "0", "CARGO_PROFILE_DIST_CODEGEN_UNITS": "16", "CARGO_PROFILE_DIST_DEBUG": "0"}
# What of the surroundings must not show.
PLACES = [
    ("one", {"TZ": "UTC", "LC_ALL": "C.UTF-8"}, 0o022),
    ("another/much/longer/folder", {"TZ": "Asia/Tokyo", "LC_ALL": "C", "LANG": "de_DE.UTF-8"}, 0o077),
]


def build(folder, commit, surroundings, umask, profile):
    """Clones the commit and builds its package there; gives the package's path."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, folder], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach", commit], cwd=folder, check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARGO_TARGET")} | profile | surroundings
    said = subprocess.run(
        ["packaging/build-deb"], cwd=folder, env=environment, umask=umask, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if said.returncode:
        sys.exit(f"packaging/build-deb failed in {folder}:\n{said.stdout[-3000:]}")
    (package,) = glob.glob(os.path.join(folder, "target/debian/*.deb"))
    return package


def contents(package, folder):
    """The sum of each file of a package, and its mode."""
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = (hashlib.sha256(file.read()).hexdigest(), oct(os.stat(path).st_mode), int(os.stat(path).st_mtime))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="with the optimization of the package that is published")
    arguments = parser.parse_args()
    begin = time.monotonic()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, text=True, capture_output=True).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="outgate-twice-") as work:
        made = [build(os.path.join(work, name), commit, surroundings, umask, {} if arguments.full else QUICK) for name, surroundings, umask in PLACES]
        sums = []
        for package in made:
            with open(package, "rb") as file:
                sums.append(hashlib.sha256(file.read()).hexdigest())
        if len(set(sums)) == 1:
            print(f"twice: {sums[0]} both times, in {time.monotonic() - begin:.0f} s")
            return 0
        one, other = (contents(package, os.path.join(work, f"content-{n}")) for n, package in enumerate(made))
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                print(f"differs: {name}: {one.get(name)} and {other.get(name)}")
        print(f"twice: {sums[0]} and then {sums[1]}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
