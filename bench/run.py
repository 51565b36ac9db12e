#!/usr/bin/env python3
"""Compares charlstm with PyTorch running the notebook, on the same machine in
one run, and prints the ratios. `make bench` builds the programs that this runs.

    bench/run.py [--text FILE] [--threads N] [--seconds N] [--rounds N]
                 [--only training|generation] [--json FILE]

Uses the PyTorch of the Python in BENCH_PYTHON; if that is not set, installs
PyTorch into .venv-bench (4 GB). charlstm is measured through gRPC on loopback,
including the client. Speed drifts on a shared machine, and only ratios within
one run are meaningful: so both sides take turns, and the best round of each
counts.
"""

import argparse
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
from release import RELEASE, Failure, running_server, stop_cleanly  # noqa: E402

# batch, sequence, hidden, layers, and the target ratio.
TRAININGS = ((128, 100, 512, 2, 1.35), (32, 50, 128, 2, 1.2))
# Number of streams -> target ratio. Generates with the model of the first training.
GENERATIONS = {1: 4.0, 8: None, 64: 25.0, 256: 32.0}
# Untimed steps at the start: first use of memory, selection of kernels.
WARMUP_STEPS = 3
# Enough for a steady speed of PyTorch: about 20 steps of 12,800 characters.
PYTORCH_CHARS = 250_000


def main() -> int:
    options = arguments()
    python = find_pytorch()
    results = {"machine": machine(), "threads": options.threads, "training": [], "generation": []}
    print(f"{results['machine']}, {options.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="charlstm-bench-") as folder:
        text = options.text or embedded_text(Path(folder))
        if options.only != "generation":
            for sizes in TRAININGS:
                results["training"].append(compare_training(python, text, sizes, options))
        if options.only != "training":
            results["generation"] = compare_generation(python, text, options)
    print(table(results), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares charlstm with PyTorch.")
    parser.add_argument("--text", type=Path, help="corpus (default: the demo's text, repeated)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=int, default=10, help="duration of each load test")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each side")
    parser.add_argument("--only", choices=("training", "generation"))
    parser.add_argument("--json", type=Path, help="write the raw results to this file")
    return parser.parse_args()


def find_pytorch() -> str:
    python = os.environ.get("BENCH_PYTHON")
    if not python:
        requirements = REFERENCE / "requirements.txt"
        call([str(ROOT / "scripts" / "venv.sh"), str(ROOT / ".venv-bench"), str(requirements)])
        python = str(ROOT / ".venv-bench" / "bin" / "python")
    return python


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


def call(command: list) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, command))} failed with exit code {done.returncode}")
    return done.stdout


def run_pytorch(python: str, script: str, **flags) -> dict:
    """Runs one of the PyTorch scripts; returns its measurements."""
    command = [python, "-B", str(REFERENCE / script)]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return json.loads(call(command))


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


# --- training ----------------------------------------------------------------


def compare_training(python: str, text: Path, sizes: tuple, options) -> dict:
    batch, sequence, hidden, layers, target = sizes
    name = f"{batch} x {sequence} x {hidden} x {layers}"
    pytorch, charlstm = [], []
    for _ in range(options.rounds):
        pytorch.append(
            run_pytorch(
                python,
                "train_loop.py",
                text=text,
                batch_size=batch,
                sequence_length=sequence,
                hidden_size=hidden,
                num_layers=layers,
                steps=max(10, PYTORCH_CHARS // (batch * sequence)),
                warmup=WARMUP_STEPS,
                threads=options.threads,
            )
        )
        progress(f"training {name}: PyTorch {pytorch[-1]['chars_per_second']:,.0f} chars/s")
        with server(options) as (process, address, _):
            charlstm.append(train(address, text, sizes, "bench"))
            charlstm[-1]["peak_rss_bytes"] = peak_memory(process.pid)
            stop_cleanly(process)
        progress(f"training {name}: charlstm {charlstm[-1]['chars_per_second']:,.0f} chars/s")
    return {
        "name": name,
        "target": target,
        "pytorch": fastest(pytorch),
        "charlstm": fastest(charlstm),
    }


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


def train(address: str, text: Path, sizes: tuple, model: str) -> dict:
    """Trains one epoch with the preset `notebook`. Returns the speed in
    characters per second, measured by the client from the first step event after
    the warm-up to the last one, and the vocabulary size."""
    batch, sequence, hidden, layers, _ = sizes
    command = [str(RELEASE / "charlstm-client"), "--addr", address, "--json", "train"]
    command += ["--text", str(text), "--model", model, "--recipe", "notebook", "--epochs", "1"]
    command += ["--batch-size", str(batch), "--sequence-length", str(sequence)]
    command += ["--hidden-size", str(hidden), "--num-layers", str(layers)]
    command += ["--seed", "1", "--sample-chars", "0"]
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


def peak_memory(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


# --- generation --------------------------------------------------------------


def compare_generation(python: str, text: Path, options) -> list:
    sizes = TRAININGS[0]
    with server(options) as (process, address, _):
        progress("training the notebook's model for one epoch")
        vocabulary = train(address, text, sizes, "bench")["vocabulary_size"]
        pytorch, charlstm = [], {streams: [] for streams in GENERATIONS}
        for _ in range(options.rounds):
            pytorch.append(
                run_pytorch(
                    python,
                    "predict_loop.py",
                    tokens=vocabulary,
                    hidden_size=sizes[2],
                    num_layers=sizes[3],
                    threads=options.threads,
                )
            )
            progress(f"generation: PyTorch {pytorch[-1]['chars_per_second']:,.0f} chars/s")
            for streams, measured in charlstm.items():
                measured.append(load(address, streams, options.seconds))
                speed = measured[-1]["chars_per_second"]
                progress(f"generation: charlstm, {streams} streams {speed:,.0f} chars/s")
        stop_cleanly(process)
    best = fastest(pytorch)
    return [
        {
            "streams": streams,
            "target": GENERATIONS[streams],
            "pytorch": best,
            "charlstm": fastest(measured),
        }
        for streams, measured in charlstm.items()
    ]


def load(address: str, streams: int, seconds: int) -> dict:
    """Runs `charlstm-client bench` with one number of streams; returns its
    measurements."""
    command = [str(RELEASE / "charlstm-client"), "--addr", address, "--json", "bench"]
    command += ["--model", "bench", "--sessions", str(streams), "--seconds", str(seconds)]
    for line in call(command).splitlines():
        measured = json.loads(line)
        if "chars_per_second" in measured:
            return measured
    raise Failure("charlstm-client bench printed no line with chars_per_second")


# --- the table ---------------------------------------------------------------


def table(results: dict) -> str:
    rows = [("", "PyTorch", "charlstm", "ratio", "target")]
    for entry in results["training"]:
        pytorch, charlstm = entry["pytorch"], entry["charlstm"]
        rows.append(row(f"training {entry['name']}, chars/s", entry))
        rows.append(
            (
                "  peak resident memory, MB",
                f"{pytorch['peak_rss_bytes'] / 1e6:,.0f}",
                f"{charlstm['peak_rss_bytes'] / 1e6:,.0f}",
                f"{charlstm['peak_rss_bytes'] / pytorch['peak_rss_bytes']:.2f}",
                "<= 1",
            )
        )
    for entry in results["generation"]:
        rows.append(row(f"generation, {entry['streams']} streams, chars/s", entry))
        between = entry["charlstm"].get("between_microseconds")
        if between and between.get("p50"):
            p50, p99 = between["p50"], between["p99"]
            name = f"  between characters, p50 {p50 / 1e3:.2f} ms, p99 / p50"
            rows.append((name, "", "", f"{p99 / p50:.2f}", "< 3" if entry["streams"] == 64 else ""))
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


def row(name: str, entry: dict) -> tuple:
    pytorch, charlstm = (entry[side]["chars_per_second"] for side in ("pytorch", "charlstm"))
    target = f">= {entry['target']:g}" if entry["target"] else ""
    return (name, f"{pytorch:,.0f}", f"{charlstm:,.0f}", f"{charlstm / pytorch:.2f}", target)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"bench: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
