#!/usr/bin/env python3
"""Downloads NVRTC, CUDA's run-time compiler, into target/nvrtc.

    scripts/nvrtc.py            prints the folder of the library

Add that folder to LD_LIBRARY_PATH: the crate charlstm-cuda then compiles its
kernels, on any machine, without a GPU. The wheel is NVIDIA's own from PyPI,
checked by its SHA-256, in the version that PyTorch 2.11 for CUDA 13.0 installs,
so that the tests use the compiler that most GPU machines have.

Needs Python 3.8 with pip.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "13.0.88"
SHA256 = "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"
FOLDER = ROOT / "target" / "nvrtc" / VERSION


def download(folder: Path) -> Path:
    """Downloads the wheel into a folder and returns its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([*command, f"nvidia-cuda-nvrtc=={VERSION}"], check=True)
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{wheel.name} has SHA-256 {digest}; expected {SHA256}")
    return wheel


def main() -> None:
    if platform.machine() != "x86_64":
        raise SystemExit(f"the pinned wheel is for x86_64; this machine is {platform.machine()}")
    if not FOLDER.is_dir():
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as name:
            wheel = download(Path(name))
            unpacked = Path(name) / "lib"
            unpacked.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    # The "alt" libraries are a second copy for other link modes.
                    if ".so" in member and ".alt." not in member:
                        with archive.open(member) as source:
                            with open(unpacked / Path(member).name, "wb") as target:
                                shutil.copyfileobj(source, target)
            # The folder under its final name is always complete.
            unpacked.rename(FOLDER)
    print(FOLDER)


if __name__ == "__main__":
    main()
