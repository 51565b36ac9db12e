#!/usr/bin/env python3
"""The demo: starts a server, trains a small model in less than a minute, and
generates text with it.

Run it with `make demo`, which builds the release programs and the example that
prints the training text. All data is in a temporary folder, which is removed at
the end, also after Ctrl-C or when the terminal is closed.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from release import RELEASE, Failure, running_server, stop_cleanly

# Model and training: less than a minute on two slow cores.
HIDDEN_SIZE = 256
EPOCHS = 20
SEED = 1

# The generated text.
PROMPT = "Sed ut perspiciatis unde omnis "
FIRST_CHARS = 400
MORE_CHARS = 200


def heading(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}== {text}{plain}", flush=True)


def client(address: str, *arguments: str, stdin=subprocess.DEVNULL) -> None:
    command = [str(RELEASE / "charlstm-client"), "--addr", address, *arguments]
    code = subprocess.run(command, stdin=stdin, check=False).returncode
    if code != 0:
        raise Failure(f"charlstm-client {arguments[0]} failed with exit code {code}")


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


def generate(address: str, prompt: str, length: int) -> None:
    flags = ["--model", "demo", "--session", "demo"]
    flags += ["--length", str(length), "--temperature", "0.7"]
    # A continued session needs no prompt, and keeps its random state.
    if prompt:
        flags += ["--prime", prompt, "--seed", str(SEED)]
    client(address, "generate", *flags)
    print(flush=True)


def demo(folder: Path) -> None:
    log = folder / "server.log"
    heading("1. Start a server on a free port, with an empty data folder")
    try:
        with running_server(folder / "data", log) as (process, address):
            print(f"charlstm-server is listening on {address}", flush=True)
            heading("2. Train on Latin text, Cicero's De finibus, book 1 (less than a minute)")
            train(address)
            heading(f"3. Generate {FIRST_CHARS} characters that continue {PROMPT!r}")
            generate(address, PROMPT, FIRST_CHARS)
            heading(f"4. Continue the same session with {MORE_CHARS} more characters")
            generate(address, "", MORE_CHARS)
            heading("5. Stop the server (SIGTERM)")
            stop_cleanly(process)
            print("charlstm-server stopped cleanly, with exit code 0", flush=True)
    except Failure:
        lines = log.read_text(errors="replace").strip() if log.exists() else ""
        if lines:
            print(f"\nend of the server's log:\n{lines[-3000:]}", file=sys.stderr)
        raise


def main() -> int:
    # The end of the terminal ends the server too, and removes the folder.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    for program in ("charlstm-server", "charlstm-client", "examples/liber_primus"):
        if not (RELEASE / program).exists():
            print(f"demo: {RELEASE / program} not found; run `make demo`", file=sys.stderr)
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
