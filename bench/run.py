#!/usr/bin/env python3
"""Compares charlstm with PyTorch running the notebook, on the same machine in
one run, and prints the ratios. `make bench` builds the programs that this runs.

    bench/run.py [--text FILE] [--threads N] [--seconds N] [--rounds N]
                 [--only training|generation] [--json FILE]

Uses the PyTorch of the Python in BENCH_PYTHON; if that is not set, installs
PyTorch into .venv-bench (4 GB). charlstm is measured through gRPC on loopback,
including the client. Speed drifts on a shared machine, and only ratios within
one run are meaningful: so both sides take turns.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import generation
import measure
import training


def main() -> int:
    options = arguments()
    python = find_pytorch()
    results = {"machine": measure.machine(), "threads": options.threads}
    results |= {"training": [], "generation": None}
    print(f"{results['machine']}, {options.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="charlstm-bench-") as folder:
        text = options.text or measure.embedded_text(Path(folder))
        if options.only != "generation":
            trainings = training.compare(python, text, options)
            print(training.table(trainings, measure.cpu_features()) + "\n", flush=True)
            results["training"] = training.as_json(trainings)
            results["recipe"] = training.recipe(text, options, "fast")
            print(training.recipe_line(results["recipe"]) + "\n", flush=True)
        if options.only != "training":
            results["generation"] = generation.compare(python, text, options)
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


if __name__ == "__main__":
    measure.run(main)
