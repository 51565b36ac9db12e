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
import tempfile
from pathlib import Path

import generation
import measure
from measure import fastest, progress, run_peer

# batch, sequence, hidden, layers, and the target ratio.
TRAININGS = ((128, 100, 512, 2, 1.35), (32, 50, 128, 2, 1.2))
# Enough for a steady speed of PyTorch: about 20 steps of 12,800 characters.
PYTORCH_CHARS = 250_000


def main() -> int:
    options = arguments()
    python = find_pytorch()
    results = {"machine": measure.machine(), "threads": options.threads}
    results |= {"training": [], "generation": None}
    print(f"{results['machine']}, {options.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="charlstm-bench-") as folder:
        text = options.text or measure.embedded_text(Path(folder))
        if options.only != "generation":
            for sizes in TRAININGS:
                results["training"].append(compare_training(python, text, sizes, options))
        if options.only != "training":
            results["generation"] = generation.compare(python, text, options)
    if results["training"]:
        print(table(results["training"]) + "\n", flush=True)
    if results["generation"]:
        print(generation.table(results["generation"]), flush=True)
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
        folder = measure.ROOT / ".venv-bench"
        requirements = measure.REFERENCE / "requirements.txt"
        measure.call([str(measure.ROOT / "scripts" / "venv.sh"), str(folder), str(requirements)])
        python = str(folder / "bin" / "python")
    return python


def compare_training(python: str, text: Path, sizes: tuple, options) -> dict:
    batch, sequence, hidden, layers, target = sizes
    name = f"{batch} x {sequence} x {hidden} x {layers}"
    pytorch, charlstm = [], []
    for _ in range(options.rounds):
        pytorch.extend(
            run_peer(
                python,
                "train_loop.py",
                text=text,
                batch_size=batch,
                sequence_length=sequence,
                hidden_size=hidden,
                num_layers=layers,
                steps=max(10, PYTORCH_CHARS // (batch * sequence)),
                warmup=measure.WARMUP_STEPS,
                threads=options.threads,
            )
        )
        progress(f"training {name}: PyTorch {pytorch[-1]['chars_per_second']:,.0f} chars/s")
        with measure.server(options) as (process, address, _):
            charlstm.append(measure.train(address, text, sizes, "bench"))
            charlstm[-1]["peak_rss_bytes"] = measure.peak_memory(process.pid)
            measure.stop_cleanly(process)
        progress(f"training {name}: charlstm {charlstm[-1]['chars_per_second']:,.0f} chars/s")
    return {
        "name": name,
        "target": target,
        "pytorch": fastest(pytorch),
        "charlstm": fastest(charlstm),
    }


def table(trainings: list) -> str:
    rows = [("", "PyTorch", "charlstm", "ratio", "target")]
    for entry in trainings:
        pytorch, charlstm = entry["pytorch"], entry["charlstm"]
        speeds = (side["chars_per_second"] for side in (pytorch, charlstm))
        name = f"training {entry['name']}, chars/s"
        rows.append(generation.row(name, *speeds, entry["target"]))
        rows.append(
            (
                "  peak resident memory, MB",
                f"{pytorch['peak_rss_bytes'] / 1e6:,.0f}",
                f"{charlstm['peak_rss_bytes'] / 1e6:,.0f}",
                f"{charlstm['peak_rss_bytes'] / pytorch['peak_rss_bytes']:.2f}",
                "<= 1",
            )
        )
    return measure.aligned(rows)


if __name__ == "__main__":
    measure.run(main)
