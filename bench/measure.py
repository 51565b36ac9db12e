"""What all comparisons need: a server to measure, the load test, the scripts of the
peers, tables, and what reports a failure."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "bench" / "reference"
sys.path.insert(0, str(ROOT / "scripts"))
sys.dont_write_bytecode = True
from release import RELEASE, Failure, running_server, stop_cleanly  # noqa: E402, F401

# Untimed steps at the start: first use of memory, selection of kernels.
WARMUP_STEPS = 3
# Without these, glibc returns the buffers of each step to the system, and PyTorch
# pays for page faults: its predict loop runs at half of its speed.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}


def run(main) -> None:
    """Calls `main`, and exits with its result; reports an expected failure without a
    traceback."""
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"bench: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {os.cpu_count()} cores"


def embedded_text(folder: Path) -> Path:
    """The demo's text, repeated so that an epoch of the largest batch is long
    enough."""
    once = call([str(RELEASE / "examples" / "liber_primus")])
    path = folder / "cicero.txt"
    path.write_text(once * 8, encoding="utf-8")
    return path


def call(command: list, **environment: str) -> str:
    """Runs a command in the repository; returns its output."""
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, command))} failed with exit code {done.returncode}")
    return done.stdout


def run_peer(python: str, script: str, *arguments, **flags) -> list:
    """Runs one of the scripts in reference/, as a well-informed user would; returns its
    measurements."""
    command = [python, "-B", str(REFERENCE / script), *map(str, arguments)]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return [json.loads(line) for line in call(command, **KEEP_MEMORY).splitlines()]


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def fastest(rounds: list) -> dict:
    return max(rounds, key=lambda measured: measured["chars_per_second"])


class server:
    """Context manager: a new server with a temporary data folder."""

    def __init__(self, options):
        self.flags = ("--threads", str(options.threads), "--device", "cpu")

    def __enter__(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="charlstm-bench-")
        folder = Path(self.temporary.name)
        self.running = running_server(folder / "data", folder / "server.log", *self.flags)
        process, address = self.running.__enter__()
        return process, address, folder

    def __exit__(self, kind, error, trace):
        if kind is Failure:
            log = (Path(self.temporary.name) / "server.log").read_text(errors="replace")
            print(f"end of the server's log:\n{log[-3000:]}", file=sys.stderr)
        self.running.__exit__(kind, error, trace)
        self.temporary.cleanup()


def cpu_features() -> set:
    """The names of the processor's features, as Linux lists them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def train(address: str, text: Path, sizes: tuple, model: str, *flags: str) -> dict:
    """Trains one epoch with the preset `notebook` and `flags`. Returns the speed in
    characters per second, measured by the client from the first step event after
    the warm-up to the last one, and the vocabulary size."""
    batch, sequence, hidden, layers = sizes[:4]
    command = [str(RELEASE / "charlstm-client"), "--addr", address, "--json", "train"]
    command += ["--text", str(text), "--model", model, "--recipe", "notebook", "--epochs", "1"]
    command += ["--batch-size", str(batch), "--sequence-length", str(sequence)]
    command += ["--hidden-size", str(hidden), "--num-layers", str(layers)]
    command += ["--seed", "1", "--sample-chars", "0", *flags]
    steps, vocabulary, epoch_speed = [], 0, None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            kind = event.get("event")
            if kind == "accepted":
                vocabulary = event["vocabulary_size"]
            elif kind == "step" and event["step"] >= WARMUP_STEPS:
                steps.append((time.perf_counter(), event["step"]))
            elif kind == "epoch":
                epoch_speed = event["chars_per_second"]
    if process.returncode != 0:
        raise Failure(f"charlstm-client train failed with exit code {process.returncode}")
    speed = epoch_speed
    if len(steps) > 1 and steps[-1][1] > steps[0][1]:
        count = steps[-1][1] - steps[0][1]
        speed = count * batch * sequence / (steps[-1][0] - steps[0][0])
    return {
        "chars_per_second": speed,
        "epoch_chars_per_second": epoch_speed,
        "vocabulary_size": vocabulary,
    }


def load(address: str, streams: int, seconds: int, *flags: str, model: str = "bench") -> dict:
    """Runs the load test with one number of streams; returns its measurements."""
    return load_results(call(load_command(address, streams, seconds, *flags, model=model)))


def load_command(
    address: str, streams: int, seconds: int, *flags: str, model: str = "bench"
) -> list:
    """The command of the load test: `charlstm-client bench`."""
    command = [str(RELEASE / "charlstm-client"), "--addr", address, "--json", "bench"]
    return [*command, "--model", model, "--sessions", str(streams), "--seconds", str(seconds), *flags]


def load_results(output: str) -> dict:
    """The measurements in the output of the load test."""
    for line in output.splitlines():
        measured = json.loads(line)
        if "chars_per_second" in measured:
            return measured
    raise Failure("charlstm-client bench printed no line with chars_per_second")


def peak_memory(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def aligned(rows: list) -> str:
    """A Markdown table; the first row is its heading."""
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    lines = [line(cells, widths) for cells in rows]
    rule = "-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])
    lines.insert(1, line(rule, widths))
    return "\n".join(lines)


def line(cells: tuple, widths: list) -> str:
    first, *figures = cells
    padded = [first.ljust(widths[0])]
    padded += [figure.rjust(width) for figure, width in zip(figures, widths[1:])]
    return f"| {' | '.join(padded)} |"
