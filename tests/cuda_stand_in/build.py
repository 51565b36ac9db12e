#!/usr/bin/env python3
"""Builds a stand-in for the CUDA libraries that libtorch calls, and prints the path of
a script that runs a program with it and libtorch's CUDA libraries, without a GPU.

runtime.cpp says what the stand-in does. Needs the CUDA version of libtorch
(`make libtorch DEVICE=cuda`), whose wheels contain the headers, g++ and nm.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = ROOT / "target/cuda_stand_in"
LIBTORCH = ROOT / ".libtorch/cuda"
# Headers that the runtime's headers include and its wheel lacks.
CRT = "nvidia-cuda-crt==13.0.88"
LIBRARIES = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_cpu.so")
NO_DEVICE = 100

DRIVER = f"""
int cuInit(void) {{ return {NO_DEVICE}; }}
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {{
  *active = 1;
  return 0;
}}
int cuCtxGetCurrent(void **context) {{
  *context = (void *)1;
  return 0;
}}
"""


def run(*command) -> str:
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


def undefined(library: Path) -> set:
    """Returns the functions of CUDA's libraries that a library calls."""
    lines = run("nm", "-D", "--undefined-only", library).splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines}
    return {name for name in names if re.match("(__)?cuda|cublas|cudnn", name)}


def driver_functions(library: Path) -> set:
    """Returns the functions of the driver that a library looks up by name."""
    names = re.findall(rb"\bcu[A-Z][a-z]+[A-Z]\w+", library.read_bytes())
    return {name.decode() for name in names if not re.match(rb"cu(BLAS|DNN|SOLVER)", name)}


def rest(names: set, source: str) -> str:
    """Returns C code of functions that are not in `source`: they succeed."""
    lines = ["#include <stdlib.h>"]
    for name in sorted(names):
        if re.search(rf"\b{name}\(", source):
            continue
        if re.match("cudnnCreate|.*Create$", name):
            lines.append(f"int {name}(void **p) {{ *p = calloc(1, 256); return 0; }}")
        else:
            lines.append(f"int {name}() {{ return 0; }}")
    return "\n".join(lines) + "\n"


def main() -> None:
    libraries = (LIBTORCH / "lib").resolve()
    if not (libraries / "libtorch_cuda.so").exists():
        raise SystemExit("run make libtorch DEVICE=cuda first")
    packages = libraries.parent.parent
    TARGET.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action", "ignore", "--no-deps",
        "--upgrade", "--target",
        TARGET / "crt", CRT)

    source = (HERE / "runtime.cpp").read_text()
    called = set().union(*(undefined(libraries / name) for name in LIBRARIES))
    (TARGET / "rest.c").write_text(rest(called, source))
    looked_up = set().union(*(driver_functions(libraries / name) for name in LIBRARIES[:2]))
    (TARGET / "driver.c").write_text(DRIVER + rest(looked_up, DRIVER))
    headers = (packages / "nvidia/cu13/include", packages / "nvidia/cudnn/include",
               TARGET / "crt/nvidia/cu13/include")
    flags = ("-O1", "-fPIC", "-w")
    run("g++", "-std=c++17", *flags, *(f"-I{folder}" for folder in headers), "-c",
        HERE / "runtime.cpp", "-o", TARGET / "runtime.o")
    run("gcc", *flags, "-c", TARGET / "rest.c", "-o", TARGET / "rest.o")
    run("g++", "-shared", TARGET / "runtime.o", TARGET / "rest.o", "-o",
        TARGET / "libruntime.so")
    run("gcc", "-shared", *flags, TARGET / "driver.c", "-o", TARGET / "libcuda.so.1")

    script = TARGET / "run"
    script.write_text(f"""#!/bin/sh
export LD_LIBRARY_PATH="{TARGET}:{libraries}"
export LD_PRELOAD="{TARGET}/libruntime.so {libraries}/libtorch_cuda.so"
exec "$@"
""")
    script.chmod(0o755)
    print(script)


if __name__ == "__main__":
    main()
