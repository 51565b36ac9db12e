#!/usr/bin/env python3
"""Installs the programs, or packs them into an archive that runs elsewhere.

    scripts/package.py install --prefix /usr/local   -> bin/, lib/charlstm/, share/
    scripts/package.py archive                       -> target/package/charlstm-*.tar.gz
    scripts/package.py try ARCHIVE                   runs the archive in a chroot

Both need the release build and the manual pages (`make install` and `make
package` build them first). The server finds libtorch in `../lib/charlstm`,
relative to itself, so the archive can be unpacked anywhere.

`try` unpacks the archive into an empty root folder that has nothing but the C
and C++ libraries of this system, starts the server there, trains and generates.
It needs the right to create a namespace (root, or user namespaces).
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Iterator, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PROGRAMS = ("charlstm-server", "charlstm-client")
# What the README and the pages in docs/ refer to, so that their links work.
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
)
DOCUMENT_FOLDERS = ("docs", "examples", "proto/charlstm")
# Folders that running an example leaves behind.
LEFTOVERS = {"__pycache__", "node_modules"}
# Completion scripts, by the folder in which their shell looks for them.
COMPLETIONS = (
    ("bash", "share/bash-completion/completions/charlstm-client"),
    ("zsh", "share/zsh/site-functions/_charlstm-client"),
    ("fish", "share/fish/vendor_completions.d/charlstm-client.fish"),
)


class Failure(Exception):
    """An expected failure: shown as a message, without a traceback."""


def files(programs: Path, libtorch: Path, manual: Path) -> Iterator[Tuple[Path, str, int]]:
    """Yields each file to install: its source, its path below the prefix, and
    its mode."""
    for name in PROGRAMS:
        yield existing(programs / name, "run `cargo build --release`"), f"bin/{name}", 0o755
    libraries = sorted(path for path in (libtorch / "lib").glob("lib*") if path.is_file())
    if not libraries:
        raise Failure(f"{libtorch / 'lib'} has no libraries; run `make libtorch`")
    for path in libraries:
        if ".so" in path.name or path.suffix == ".dylib":
            yield path, f"lib/charlstm/{path.name}", 0o644
    pages = sorted(manual.glob("*.1"))
    if not pages:
        raise Failure(f"{manual} has no manual pages; run `make man`")
    for path in pages:
        yield path, f"share/man/man1/{path.name}", 0o644
    for path in documents():
        yield path, f"share/doc/charlstm/{path.relative_to(ROOT)}", 0o644


def documents() -> Iterator[Path]:
    for name in DOCUMENTS:
        yield existing(ROOT / name, "it belongs to the checkout")
    for folder in DOCUMENT_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and LEFTOVERS.isdisjoint(path.relative_to(ROOT).parts):
                yield path


def existing(path: Path, remedy: str) -> Path:
    if not path.is_file():
        raise Failure(f"{path} does not exist; {remedy}")
    return path


def completion(programs: Path, shell: str) -> bytes:
    command = [programs / "charlstm-client", "completions", shell]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def install(into: Path, programs: Path, libtorch: Path, manual: Path) -> int:
    """Copies all files below `into`. Returns their number."""
    count = 0
    for source, name, mode in files(programs, libtorch, manual):
        place(into / name, lambda target, source=source: shutil.copyfile(source, target), mode)
        count += 1
    for shell, name in COMPLETIONS:
        script = completion(programs, shell)
        place(into / name, lambda target, script=script: target.write_bytes(script), 0o644)
        count += 1
    return count


def place(target: Path, write, mode: int) -> None:
    """Writes a file in one step: a program that runs is replaced, not changed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.new")
    try:
        write(staging)
        staging.chmod(mode)
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


def version(programs: Path) -> str:
    command = [existing(programs / "charlstm-client", "run `cargo build --release`"), "--version"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return output.split()[-1]


def archive(folder: Path, programs: Path, libtorch: Path, manual: Path) -> Path:
    """Packs all files into an archive in `folder`. Returns its path."""
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    name = f"charlstm-{version(programs)}-{system}-{platform.machine()}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tar.gz"
    staging = path.with_name(f".{path.name}.new")
    with tempfile.TemporaryDirectory(dir=folder) as tree:
        install(Path(tree), programs, libtorch, manual)
        strip(Path(tree) / "bin")
        # The owner and the time of the files say nothing: equal content gives
        # equal archives.
        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mtime = 0
            return member

        try:
            with tarfile.open(staging, "w:gz", compresslevel=6) as tar:
                tar.add(tree, arcname=name, filter=plain)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    return path


def strip(folder: Path) -> None:
    """Removes the debug information, most of the size of the programs."""
    if shutil.which("strip"):
        for name in PROGRAMS:
            subprocess.run(["strip", folder / name], check=True)


# --- the archive on a clean system ---------------------------------------------

# What the programs take from the system: the C and C++ libraries.
SYSTEM_LIBRARIES = re.compile(r"=> (/\S+)|^\s*(/\S*ld-linux\S+)", re.MULTILINE)
TRIAL = """
set -e
cd /
: > /out
/charlstm/bin/charlstm-server --listen 127.0.0.1:50051 --data-dir /data > /out 2> /err &
server=$!
tries=0
until read -r line < /out; do
    tries=$((tries + 1))
    [ $tries -lt 60 ]
    sleep 1
done
echo "$line"
client=/charlstm/bin/charlstm-client
$client train --text /text --model trial --hidden-size 16 --epochs 1
$client generate --model trial --prime "The " --length 60 --seed 1
echo
$client status
kill $server
wait $server
"""


def system_libraries(program: Path) -> Sequence[Path]:
    output = subprocess.run(["ldd", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    if "not found" in output:
        raise Failure(f"{program} does not find all of its libraries:\n{output}")
    return [Path(a or b) for a, b in SYSTEM_LIBRARIES.findall(output)]


def try_archive(path: Path) -> None:
    """Runs the programs of an archive in a root folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with tarfile.open(path) as tar:
            tar.extractall(root, filter="data")
        unpacked = next(root.glob("charlstm-*"))
        unpacked.rename(root / "charlstm")
        shell = Path(shutil.which("dash") or "/bin/sh").resolve()
        sleep = Path(shutil.which("sleep")).resolve()
        programs = [root / "charlstm/bin" / name for name in PROGRAMS]
        for program in (*programs, shell, sleep):
            for library in system_libraries(program):
                # The libraries of the archive are not those of the system.
                if root not in library.parents:
                    copy(library, root)
        for source, target in ((shell, "bin/sh"), (sleep, "bin/sleep")):
            (root / target).parent.mkdir(exist_ok=True)
            shutil.copy(source, root / target)
        for folder in ("data", "dev", "proc", "tmp"):
            (root / folder).mkdir()
        (root / "text").write_text("The fox and the dog are friends of the cat.\n" * 100)
        mount = (
            f"mount -t proc proc {root}/proc && touch {root}/dev/urandom {root}/dev/null && "
            f"mount --bind /dev/urandom {root}/dev/urandom && "
            f"mount --bind /dev/null {root}/dev/null && "
            f'exec chroot {root} /bin/sh -c "$0"'
        )
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        if os.geteuid() != 0:
            namespaces.append("--map-root-user")
        environment = {"PATH": "/bin:/usr/bin:/sbin:/usr/sbin"}
        command = [*namespaces, "sh", "-c", mount, TRIAL]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code != 0:
            print((root / "err").read_text(), file=sys.stderr)
            raise Failure(f"the trial failed with exit code {code}")
    print(f"{path.name} works in a root folder without the checkout")


def copy(library: Path, root: Path) -> None:
    target = root / library.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(library, target)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("command", choices=("install", "archive", "try"))
    parser.add_argument("archive", type=Path, nargs="?", help="the archive to try")
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    parser.add_argument("--destdir", default="", help="put before the prefix, for packagers")
    parser.add_argument("--programs", type=Path, default=TARGET / "release")
    parser.add_argument("--libtorch", type=Path, default=ROOT / ".libtorch" / "cpu")
    parser.add_argument("--manual", type=Path, default=TARGET / "man")
    parser.add_argument("--into", type=Path, default=TARGET / "package")
    options = parser.parse_args(arguments)
    sources = (options.programs, options.libtorch, options.manual)
    if options.command == "install":
        prefix = options.prefix.absolute()
        into = Path(f"{options.destdir}{prefix}")
        count = install(into, *sources)
        print(f"installed {count} files into {into}")
        if str(prefix / "bin") not in os.environ.get("PATH", "").split(":"):
            print(f"add {prefix / 'bin'} to PATH to run charlstm-client")
    elif options.command == "archive":
        path = archive(options.into, *sources)
        print(f"wrote {path} ({path.stat().st_size / 1e6:.0f} MB)")
    elif options.archive is None:
        parser.error("try needs the path of an archive")
    else:
        try_archive(options.archive)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Failure, OSError, subprocess.CalledProcessError) as failure:
        print(f"package: error: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
