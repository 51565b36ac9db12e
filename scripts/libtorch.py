#!/usr/bin/env python3
"""Installs the pinned libtorch into the folder that the build uses.

    scripts/libtorch.py                 -> .libtorch/cpu   (half a gigabyte)
    scripts/libtorch.py --device cuda   -> .libtorch/cuda  (4 gigabytes)

The CPU library is extracted from PyTorch's own wheel, without installing the
wheel: its libraries and headers, plus the two small CUDA libraries that
libtorch_cpu is linked with. Each wheel is verified by its SHA-256. A folder under
its final name is always complete: files are extracted into a temporary folder
next to it, which is renamed at the end.

Requires only Python 3.8 with pip. For how the build uses the library, see
`.cargo/config.toml` and `server/build.rs`.
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
# Increase this when the set of extracted files changes: older folders are then
# replaced.
LAYOUT = 1
MARKER = "complete"
ATTEMPTS = 3


class Wheel(NamedTuple):
    """A pinned wheel, and which of its files are extracted, and to where."""

    requirement: str
    filename: str
    sha256: str
    # Prefix in the wheel -> folder in the library.
    prefixes: Sequence
    # Extract only files with these names; if empty, all files.
    only: Sequence = ()
    # Names of files to exclude; a trailing * matches any suffix.
    without: Sequence = ()


TORCH_PREFIXES = (
    ("torch/lib/", "lib/"),
    ("torch/include/", "include/"),
    ("torch/share/", "share/"),
)
CUDA_PREFIXES = (("nvidia/cu13/lib/", "lib/"),)
# What only generation with CUDA and Python need.
WITHOUT = (
    "libtorch_cuda*",
    "libtorch_python.so",
    "libtorch_python.dylib",
    "libtorch_nvshmem.so",
    "libc10_cuda.so",
    "libcaffe2_nvrtc.so",
)


def linux_wheels(machine: str, torch: str, cudart: str, cupti: str) -> Sequence[Wheel]:
    """The wheels for Linux, with their SHA-256."""
    return (
        Wheel(
            f"torch=={VERSION}",
            f"torch-{VERSION}-cp312-cp312-manylinux_2_28_{machine}.whl",
            torch,
            TORCH_PREFIXES,
            without=WITHOUT,
        ),
        Wheel(
            "nvidia-cuda-runtime==13.0.96",
            "nvidia_cuda_runtime-13.0.96-py3-none-"
            f"manylinux2014_{machine}.manylinux_2_17_{machine}.whl",
            cudart,
            CUDA_PREFIXES,
            only=("libcudart.so.13",),
        ),
        Wheel(
            "nvidia-cuda-cupti==13.0.85",
            f"nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_{machine}.whl",
            cupti,
            CUDA_PREFIXES,
            only=("libcupti.so.13",),
        ),
    )


HEADER = "include/torch/csrc/api/include/torch/torch.h"
# Files that linking requires. Detects a wheel with a different layout.
REQUIRED_LINUX = (
    "lib/libtorch.so",
    "lib/libtorch_cpu.so",
    "lib/libc10.so",
    "lib/libcudart.so.13",
    "lib/libcupti.so.13",
    HEADER,
)
REQUIRED_MACOS = ("lib/libtorch.dylib", "lib/libtorch_cpu.dylib", "lib/libc10.dylib", HEADER)


class Platform(NamedTuple):
    """A platform with prebuilt libraries."""

    wheels: Sequence[Wheel]
    required: Sequence[str]
    # Tags of its wheels; pip matches them exactly, so all tags in use are listed.
    tags: Sequence[str]


def manylinux(machine: str) -> Sequence[str]:
    versions = ("manylinux_2_28", "manylinux_2_25", "manylinux_2_17", "manylinux2014")
    return tuple(f"{version}_{machine}" for version in versions)


# Only linux-x86_64 is tested. The others are unpacked in a test, and have not
# been built or run.
PLATFORMS = {
    "linux-x86_64": Platform(
        linux_wheels(
            "x86_64",
            torch="0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
            cudart="7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            cupti="4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        ),
        REQUIRED_LINUX,
        manylinux("x86_64"),
    ),
    "linux-aarch64": Platform(
        linux_wheels(
            "aarch64",
            torch="f99924682ef0aa6a4ab3b1b76f40dc6e273fca09f367d15a524266db100a723f",
            cudart="ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
            cupti="796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
        ),
        REQUIRED_LINUX,
        manylinux("aarch64"),
    ),
    "macos-arm64": Platform(
        (
            Wheel(
                f"torch=={VERSION}",
                f"torch-{VERSION}-cp312-cp312-macosx_11_0_arm64.whl",
                "4b5866312ee6e52ea625cd211dcb97d6a2cdc1131a5f15cc0d87eec948f6dd34",
                TORCH_PREFIXES,
                without=WITHOUT,
            ),
        ),
        REQUIRED_MACOS,
        ("macosx_11_0_arm64",),
    ),
}
TESTED = "linux-x86_64"


class Failure(Exception):
    """An expected failure: shown as a message, without a traceback."""


def log(text: str) -> None:
    print(f"libtorch: {text}", flush=True)


# --- the CPU library ---------------------------------------------------------


def stamp(wheels: Sequence[Wheel]) -> str:
    """The content of the marker file for a complete folder of these wheels."""
    digests = hashlib.sha256("".join(wheel.sha256 for wheel in wheels).encode())
    return f"{VERSION} layout {LAYOUT} {digests.hexdigest()[:16]}\n"


def is_complete(folder: Path, wheels: Sequence[Wheel]) -> bool:
    """True if the folder was completely extracted from exactly these wheels."""
    try:
        return (folder / MARKER).read_text() == stamp(wheels)
    except OSError:
        return False


def ensure(
    folder: Path,
    fetch: Callable[[Wheel, Path, bool], None],
    wheels: Sequence[Wheel],
    required: Sequence[str],
) -> bool:
    """Installs the library into `folder`. Returns False if it was already
    complete.

    `fetch(wheel, into, retry)` downloads the file of the wheel into the folder
    `into`; it may raise Failure. `retry` is true if an attempt has failed before.
    """
    if is_complete(folder, wheels):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.parent / ".lock"):
        # Another process may have finished while this one waited for the lock.
        if is_complete(folder, wheels):
            return False
        remove_leftovers(folder)
        downloads = folder.parent / ".download"
        downloads.mkdir(exist_ok=True)
        paths = [obtain(wheel, downloads, fetch) for wheel in wheels]
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-extracting-", dir=folder.parent))
        try:
            extract_all(staging, wheels, paths, required)
            remove(folder)
            staging.rename(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        # Half a gigabyte that is no longer needed.
        shutil.rmtree(downloads, ignore_errors=True)
    return True


def obtain(wheel: Wheel, downloads: Path, fetch: Callable) -> Path:
    """Returns the verified file of a wheel, downloading it if necessary."""
    path = downloads / wheel.filename
    for attempt in range(1, ATTEMPTS + 1):
        error = None
        if not path.exists():
            log(f"fetching {wheel.requirement}")
            try:
                fetch(wheel, downloads, attempt > 1)
            except Failure as failure:
                error = str(failure)
        if error is None:
            error = verify(path, wheel)
            if error is None:
                return path
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        if attempt < ATTEMPTS:
            log(f"{error}; retrying (attempt {attempt + 1} of {ATTEMPTS})")
    raise Failure(f"{error}; gave up after {ATTEMPTS} attempts")


def verify(path: Path, wheel: Wheel):
    """Returns what is wrong with a downloaded file, or None if it is valid."""
    if not path.exists():
        return f"{wheel.filename} was not downloaded"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() == wheel.sha256:
        return None
    return (
        f"{wheel.filename} is corrupt ({path.stat().st_size} bytes, SHA-256 "
        f"{digest.hexdigest()}, expected {wheel.sha256})"
    )


def extract_all(
    staging: Path, wheels: Sequence[Wheel], paths: Sequence[Path], required: Sequence[str]
) -> None:
    log("extracting")
    for wheel, path in zip(wheels, paths):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                target = target_of(name, wheel)
                if target is not None:
                    extract(archive, name, staging / target)
    missing = [name for name in required if not (staging / name).is_file()]
    if missing:
        raise Failure(f"missing in the wheels: {', '.join(missing)}")
    # torch-sys compares this with the version that it supports.
    (staging / "build-version").write_text(f"{VERSION}\n")
    # mkdtemp creates folders that only their owner can read.
    staging.chmod(0o755)
    # Written last: a folder without the marker is never used.
    (staging / MARKER).write_text(stamp(wheels))


def target_of(name: str, wheel: Wheel):
    """Path of a file of the wheel in the library; None if it is excluded."""
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
    """Removes temporary folders of interrupted runs."""
    for leftover in folder.parent.glob(f".{folder.name}-extracting-*"):
        log(f"removing the incomplete folder {leftover.name}")
        shutil.rmtree(leftover, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a folder, or a symbolic link without its target."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Excludes other processes that install into the same folder."""
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


def require_pip() -> None:
    probe = subprocess.run(
        [sys.executable, "-m", "pip", "--version"],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if probe.returncode != 0:
        raise Failure(
            f"{sys.executable} has no pip, which is needed to fetch libtorch. Install pip "
            "(Debian, Ubuntu: apt install python3-pip), or set LIBTORCH to the folder of an "
            f"existing libtorch {VERSION}."
        )


def pip_download(tags: Sequence[str]) -> Callable[[Wheel, Path, bool], None]:
    """Downloads wheels with these platform tags."""

    def fetch(wheel: Wheel, into: Path, retry: bool) -> None:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(into)]
        command += ["--disable-pip-version-check", "--only-binary=:all:"]
        # Explicit tags select the same wheel regardless of the Python that runs
        # this.
        command += ["--implementation", "cp", "--python-version", "3.12"]
        for tag in tags:
            command += ["--platform", tag]
        # A corrupt file may come from pip's cache: a retry bypasses it.
        if retry:
            command.append("--no-cache-dir")
        run(command + [wheel.requirement], f"the download of {wheel.requirement}")

    return fetch


def from_folder(source: Path) -> Callable[[Wheel, Path, bool], None]:
    """Copies wheels from a folder; for machines without access to a package index."""

    def fetch(wheel: Wheel, into: Path, _retry: bool) -> None:
        if not (source / wheel.filename).is_file():
            raise Failure(f"{source} has no {wheel.filename}")
        shutil.copyfile(source / wheel.filename, into / wheel.filename)

    return fetch


# --- the CUDA library --------------------------------------------------------


def ensure_cuda(base: Path) -> bool:
    """Installs PyTorch with CUDA into a virtual environment, and creates the
    symbolic link `base`/cuda to it. Returns False if it was already complete."""
    link, venv = base / "cuda", base / "cuda-venv"
    # The link is created last: if its target exists, everything is complete.
    if (link / "lib" / "libtorch_cuda.so").exists():
        return False
    base.mkdir(parents=True, exist_ok=True)
    with lock(base / ".lock"):
        remove(link)
        remove(venv)
        log(f"installing PyTorch {VERSION} with CUDA into {venv} (about 4 GB)")
        run([sys.executable, "-m", "venv", str(venv)], "creating a virtual environment")
        python = str(venv / "bin" / "python")
        run(
            [python, "-m", "pip", "install", "--disable-pip-version-check", f"torch=={VERSION}"],
            f"the installation of torch=={VERSION}",
        )
        found = sorted(venv.glob("lib/python3*/site-packages/torch"))
        if not found or not (found[0] / "lib" / "libtorch_cuda.so").exists():
            raise Failure("the installed PyTorch has no CUDA; set LIBTORCH to a libtorch with CUDA")
        link.symlink_to(os.path.relpath(found[0], base))
    return True


# --- command line -------------------------------------------------------------


def this_platform() -> str:
    """Returns the name of the platform that this runs on."""
    system, machine = platform.system(), platform.machine()
    machine = {"AMD64": "x86_64"}.get(machine, machine)
    name = f"{'macos' if system == 'Darwin' else system.lower()}-{machine}"
    if name in PLATFORMS:
        return name
    raise Failure(
        f"prebuilt libraries exist only for {', '.join(PLATFORMS)}; this is {system} on {machine}. "
        f"Install PyTorch {VERSION} (pip install torch=={VERSION}) and set LIBTORCH_USE_PYTORCH=1, "
        f"or extract libtorch {VERSION} and set LIBTORCH to its folder. Without libtorch, "
        "`cargo build -p charlstm-server --no-default-features` builds a server that generates "
        "but does not train."
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Fetches the pinned libtorch.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--platform", choices=PLATFORMS, help="default: this computer's")
    parser.add_argument("--wheels", type=Path, help="copy the wheels from this folder, offline")
    parser.add_argument("--into", type=Path, default=ROOT / ".libtorch", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    for name in ("LIBTORCH", "LIBTORCH_USE_PYTORCH"):
        if os.environ.get(name):
            log(f"{name}={os.environ[name]} is set and will be used; nothing to fetch")
            return 0
    name = options.platform or this_platform()
    if options.device == "cuda":
        if name != TESTED:
            raise Failure(f"the CUDA version is prepared only for {TESTED}")
        ensure_cuda(options.into)
        log(f"{options.into / 'cuda'} is complete. To build with it:")
        log(f"  export LIBTORCH={options.into / 'cuda'}")
        log("  cargo build --release   (or: make serve DEVICE=cuda)")
        return 0
    chosen, folder = PLATFORMS[name], options.into / "cpu"
    if is_complete(folder, chosen.wheels):
        log(f"{folder} is complete")
        return 0
    if name != TESTED:
        log(f"{name} is prepared but untested; please report what you find")
    if options.wheels:
        fetch = from_folder(options.wheels)
    else:
        require_pip()
        fetch = pip_download(chosen.tags)
    ensure(folder, fetch, chosen.wheels, chosen.required)
    log(f"{folder} is complete")
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
