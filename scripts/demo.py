#!/usr/bin/env python3
"""The demo: a server, a small model trained for less than a minute, its text.

`make demo` builds what this runs: the release programs and the example that
prints the text. Everything is kept in a temporary folder, which is removed at
the end, also after Ctrl-C.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from release import RELEASE, Failure, running_server, stop_cleanly

# The model and its training: a minute on two slow cores.
HIDDEN_SIZE = 256
EPOCHS = 20
SEED = 1

# What it writes.
PRIME = "Sed ut perspiciatis unde omnis "
FIRST_CHARS = 400
MORE_CHARS = 200


def heading(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}== {text}{plain}", flush=True)


def client(address: str, *arguments: str, stdin=subprocess.DEVNULL) -> None:
    command = [str(RELEASE / "charlstm-client"), "--addr", address, *arguments]
    code = subprocess.run(command, stdin=stdin, check=False).returncode
    if code != 0:
        raise Failure(f"charlstm-client {arguments[0]} ended with exit code {code}")


def train(address: str) -> None:
    text = subprocess.Popen([RELEASE / "examples" / "liber_primus"], stdout=subprocess.PIPE)
    values = {
        "--text": "-",
        "--model": "demo",
        "--hidden-size": HIDDEN_SIZE,
        "--epochs": EPOCHS,
        "--seed": SEED,
    }
    flags = [str(part) for pair in values.items() for part in pair]
    with text:
        client(address, "train", *flags, stdin=text.stdout)


def generate(address: str, prime: str, length: int) -> None:
    flags = ["--model", "demo", "--session", "demo"]
    flags += ["--length", str(length), "--temperature", "0.7"]
    # A session that goes on needs no prime, and keeps its random state.
    if prime:
        flags += ["--prime", prime, "--seed", str(SEED)]
    client(address, "generate", *flags)
    print(flush=True)


def demo(folder: Path) -> None:
    log = folder / "server.log"
    heading("1. A server starts on a free port, with an empty data folder")
    try:
        with running_server(folder / "data", log) as (process, address):
            print(f"charlstm-server listens on {address}", flush=True)
            heading("2. It learns Latin from Cicero's De finibus, book one (less than a minute)")
            train(address)
            heading(f"3. It writes {FIRST_CHARS} characters after {PRIME!r}")
            generate(address, PRIME, FIRST_CHARS)
            heading(f"4. It goes on in the same session, {MORE_CHARS} characters more")
            generate(address, "", MORE_CHARS)
            heading("5. The server is told to stop (SIGTERM)")
            stop_cleanly(process)
            print("charlstm-server ended cleanly, with exit code 0", flush=True)
    except Failure:
        said = log.read_text(errors="replace").strip() if log.exists() else ""
        if said:
            print(f"\nthe server's log ends with\n{said[-3000:]}", file=sys.stderr)
        raise


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for program in ("charlstm-server", "charlstm-client", "examples/liber_primus"):
        if not (RELEASE / program).exists():
            print(f"demo: {RELEASE / program} is not there; run `make demo`", file=sys.stderr)
            return 1
    folder = Path(tempfile.mkdtemp(prefix="charlstm-demo-"))
    try:
        demo(folder)
        return 0
    except Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
