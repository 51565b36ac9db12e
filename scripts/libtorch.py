#!/usr/bin/env python3
"""Puts the pinned libtorch where the build looks for it.

    scripts/libtorch.py                 -> .libtorch/cpu   (half a gigabyte)
    scripts/libtorch.py --device cuda   -> .libtorch/cuda  (4 gigabytes)

The CPU library is taken out of PyTorch's own wheel, without installing it:
its libraries and headers, and the two small CUDA libraries that libtorch_cpu
is linked with. Each wheel is checked by its SHA-256. A folder under its final
name is always complete: it is unpacked beside it and renamed at the end.

Needs Python 3.8 with pip, and nothing else. What builds with the library is
not here: see `.cargo/config.toml` and `server/build.rs`.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parent.parent
VERSION = "2.11.0"
# Raise it when what is taken out of the wheels changes: older folders are
# then made anew.
LAYOUT = 1
MARKER = "complete"
TRIES = 3


class Wheel(NamedTuple):
    """A pinned wheel, and which of its files go where."""

    requirement: str
    filename: str
    sha256: str
    # Prefix in the wheel -> folder in the library.
    prefixes: Sequence
    # Only files of these names, or all when empty.
    only: Sequence = ()
    # Files (or beginnings of their names, ending in *) to leave out.
    without: Sequence = ()


WHEELS = (
    Wheel(
        f"torch=={VERSION}",
        f"torch-{VERSION}-cp312-cp312-manylinux_2_28_x86_64.whl",
        "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
        (
            ("torch/lib/", "lib/"),
            ("torch/include/", "include/"),
            ("torch/share/", "share/"),
        ),
        without=(
            "libtorch_cuda*",
            "libtorch_python.so",
            "libtorch_nvshmem.so",
            "libc10_cuda.so",
            "libcaffe2_nvrtc.so",
        ),
    ),
    Wheel(
        "nvidia-cuda-runtime==13.0.96",
        "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        (("nvidia/cu13/lib/", "lib/"),),
        only=("libcudart.so.13",),
    ),
    Wheel(
        "nvidia-cuda-cupti==13.0.85",
        "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        (("nvidia/cu13/lib/", "lib/"),),
        only=("libcupti.so.13",),
    ),
)

# Without these nothing links; a wheel of another layout must not pass.
REQUIRED = (
    "lib/libtorch.so",
    "lib/libtorch_cpu.so",
    "lib/libc10.so",
    "lib/libcudart.so.13",
    "lib/libcupti.so.13",
    "include/torch/csrc/api/include/torch/torch.h",
)


class Failure(Exception):
    """Something that the user must be told, without a traceback."""


def say(text: str) -> None:
    print(f"libtorch: {text}", flush=True)


# --- the CPU library ---------------------------------------------------------


def stamp(wheels: Sequence[Wheel]) -> str:
    """What the marker of a complete folder of these wheels says."""
    digests = hashlib.sha256("".join(wheel.sha256 for wheel in wheels).encode())
    return f"{VERSION} layout {LAYOUT} {digests.hexdigest()[:16]}\n"


def is_complete(folder: Path, wheels: Sequence[Wheel]) -> bool:
    """Whether the folder was completely unpacked from exactly these wheels."""
    try:
        return (folder / MARKER).read_text() == stamp(wheels)
    except OSError:
        return False


def ensure(
    folder: Path,
    fetch: Callable[[Wheel, Path, bool], None],
    wheels: Sequence[Wheel] = WHEELS,
    required: Sequence[str] = REQUIRED,
) -> bool:
    """Makes `folder` hold the library. Says whether anything had to be done.

    `fetch(wheel, into, again)` puts the wheel's file into the folder `into`;
    it may raise Failure. `again` is true when a try has failed before.
    """
    if is_complete(folder, wheels):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.parent / ".lock"):
        # Somebody else may have finished while this waited for the lock.
        if is_complete(folder, wheels):
            return False
        remove_leftovers(folder)
        downloads = folder.parent / ".download"
        downloads.mkdir(exist_ok=True)
        paths = [obtain(wheel, downloads, fetch) for wheel in wheels]
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unpacking-", dir=folder.parent))
        try:
            unpack_all(staging, wheels, paths, required)
            remove(folder)
            staging.rename(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        # Half a gigabyte that is not needed again.
        shutil.rmtree(downloads, ignore_errors=True)
    return True


def obtain(wheel: Wheel, downloads: Path, fetch: Callable) -> Path:
    """The checked file of a wheel: one that is there already, or a fresh one."""
    path = downloads / wheel.filename
    for attempt in range(1, TRIES + 1):
        problem = None
        if not path.exists():
            say(f"fetching {wheel.requirement}")
            try:
                fetch(wheel, downloads, attempt > 1)
            except Failure as failure:
                problem = str(failure)
        if problem is None:
            problem = fault(path, wheel)
            if problem is None:
                return path
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        if attempt < TRIES:
            say(f"{problem}; trying again ({attempt + 1} of {TRIES})")
    raise Failure(f"{problem}; gave up after {TRIES} tries")


def fault(path: Path, wheel: Wheel):
    """What is wrong with a downloaded file, or None."""
    if not path.exists():
        return f"{wheel.filename} did not arrive"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() == wheel.sha256:
        return None
    return (
        f"{wheel.filename} is broken ({path.stat().st_size} bytes, SHA-256 "
        f"{digest.hexdigest()}, expected {wheel.sha256})"
    )


def unpack_all(
    staging: Path, wheels: Sequence[Wheel], paths: Sequence[Path], required: Sequence[str]
) -> None:
    say("unpacking")
    for wheel, path in zip(wheels, paths):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                target = place(name, wheel)
                if target is not None:
                    extract(archive, name, staging / target)
    missing = [name for name in required if not (staging / name).is_file()]
    if missing:
        raise Failure(f"the wheels lack {', '.join(missing)}")
    # torch-sys compares this with the version that it was made for.
    (staging / "build-version").write_text(f"{VERSION}\n")
    # mkdtemp makes folders that only their owner can read.
    staging.chmod(0o755)
    # The last thing written: a folder without it is never used.
    (staging / MARKER).write_text(stamp(wheels))


def place(name: str, wheel: Wheel):
    """Where a file of the wheel belongs in the library; None: nowhere."""
    base = name.rsplit("/", 1)[-1]
    if not base or ".." in name.split("/"):
        return None
    if wheel.only and base not in wheel.only:
        return None
    for pattern in wheel.without:
        if base == pattern or (pattern.endswith("*") and base.startswith(pattern[:-1])):
            return None
    for prefix, folder in wheel.prefixes:
        if name.startswith(prefix):
            return folder + name[len(prefix) :]
    return None


def extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def remove_leftovers(folder: Path) -> None:
    """Removes what an interrupted run left behind."""
    for leftover in folder.parent.glob(f".{folder.name}-unpacking-*"):
        say(f"removing a half-unpacked {leftover.name}")
        shutil.rmtree(leftover, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a folder, or the link of that name and not what it points to."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Two builds at once must not unpack into each other."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- pip ---------------------------------------------------------------------


def run(command: Sequence[str], what: str) -> None:
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise Failure(f"{what} failed: {error}") from error
    if code != 0:
        raise Failure(f"{what} failed (exit code {code})")


def need_pip() -> None:
    probe = subprocess.run(
        [sys.executable, "-m", "pip", "--version"],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if probe.returncode != 0:
        raise Failure(
            f"{sys.executable} has no pip, which fetches the library. Install it (Debian, "
            "Ubuntu: apt install python3-pip), or set LIBTORCH to a libtorch "
            f"{VERSION} that you have."
        )


def pip_download(wheel: Wheel, into: Path, again: bool) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(into)]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    # Named, so that the same wheel comes whatever Python runs this. pip
    # matches each platform to the letter: all that the wheels use are listed.
    command += ["--implementation", "cp", "--python-version", "3.12"]
    for tag in ("manylinux_2_28", "manylinux_2_25", "manylinux_2_17", "manylinux2014"):
        command += ["--platform", f"{tag}_x86_64"]
    # A broken file may come from pip's cache: the second try goes around it.
    if again:
        command.append("--no-cache-dir")
    run(command + [wheel.requirement], f"the download of {wheel.requirement}")


def from_folder(source: Path) -> Callable[[Wheel, Path, bool], None]:
    """Takes wheels from a folder; for machines that reach no package index."""

    def fetch(wheel: Wheel, into: Path, again: bool) -> None:
        if not (source / wheel.filename).is_file():
            raise Failure(f"{source} has no {wheel.filename}")
        shutil.copyfile(source / wheel.filename, into / wheel.filename)

    return fetch


# --- the CUDA library --------------------------------------------------------


def ensure_cuda(base: Path) -> bool:
    """Installs PyTorch with CUDA into a venv and links `base`/cuda to it."""
    link, venv = base / "cuda", base / "cuda-venv"
    # The link is made last: where it leads somewhere, all is complete.
    if (link / "lib" / "libtorch_cuda.so").exists():
        return False
    base.mkdir(parents=True, exist_ok=True)
    with lock(base / ".lock"):
        remove(link)
        remove(venv)
        say(f"installing PyTorch {VERSION} with CUDA into {venv} (about 4 GB)")
        run([sys.executable, "-m", "venv", str(venv)], "making a virtual environment")
        python = str(venv / "bin" / "python")
        run(
            [python, "-m", "pip", "install", "--disable-pip-version-check", f"torch=={VERSION}"],
            f"the installation of torch=={VERSION}",
        )
        found = sorted(venv.glob("lib/python3*/site-packages/torch"))
        if not found or not (found[0] / "lib" / "libtorch_cuda.so").exists():
            raise Failure("the PyTorch that was installed has no CUDA; set LIBTORCH to one that has")
        link.symlink_to(os.path.relpath(found[0], base))
    return True


# --- the program -------------------------------------------------------------


def need_supported_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if system == "Linux" and machine in ("x86_64", "AMD64"):
        return
    raise Failure(
        f"ready-made libraries are pinned for Linux on x86-64 only; this is {system} on {machine}. "
        f"Install PyTorch {VERSION} (pip install torch=={VERSION}) and set LIBTORCH_USE_PYTORCH=1, "
        f"or unpack libtorch {VERSION} and set LIBTORCH to its folder."
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Fetches the pinned libtorch.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--wheels", type=Path, help="take the wheels from this folder")
    parser.add_argument("--into", type=Path, default=ROOT / ".libtorch", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    for name in ("LIBTORCH", "LIBTORCH_USE_PYTORCH"):
        if os.environ.get(name):
            say(f"{name}={os.environ[name]} is set and is used; nothing to fetch")
            return 0
    folder = options.into / options.device
    if options.device == "cpu" and is_complete(folder, WHEELS):
        say(f"{folder} is complete")
        return 0
    need_supported_platform()
    if options.device == "cuda":
        ensure_cuda(options.into)
        say(f"{folder} is complete. Build with it:")
        say(f"  export LIBTORCH={folder}")
        say("  cargo build --release   (or: make serve DEVICE=cuda)")
        return 0
    if options.wheels:
        fetch = from_folder(options.wheels)
    else:
        need_pip()
        fetch = pip_download
    ensure(folder, fetch)
    say(f"{folder} is complete")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        print(f"libtorch: error: {failure}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"libtorch: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
