#!/usr/bin/env python3
"""Plots the learning curves of docs/training.md from the output of
`cargo bench --bench curve`.

    bench/curves.py OUTPUT.svg [--title TITLE] [--target LOSS --target-label LABEL]
                    NAME=FILE [NAME=FILE ...]

Plots validation loss against the number of characters trained on, with one line
per file. Lines whose names differ only after " seed " have the same colour. Requires
matplotlib.
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Plots learning curves.")
    parser.add_argument("output", type=Path)
    parser.add_argument("curves", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--target", type=float, help="mark this loss, in nats, with a dashed line")
    parser.add_argument("--target-label", default="target", help="name of that line")
    parser.add_argument("--title")
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "charlstm"
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    colors = {}
    for curve in options.curves:
        name, file = curve.split("=", 1)
        color = colors.setdefault(name.split(" seed ")[0], f"C{len(colors)}")
        batch, epochs = read(Path(file))
        millions = [epoch["step"] * batch / 1e6 for epoch in epochs]
        losses = [epoch["validation_loss"] for epoch in epochs]
        best = min(range(len(losses)), key=losses.__getitem__)
        label = f"{name}: {losses[best]:.3f}"
        axes.plot(millions, losses, marker=".", label=label, color=color)
        axes.plot(millions[best], losses[best], marker="o", color=color)
    if options.target:
        axes.axhline(
            options.target,
            color="grey",
            linestyle="--",
            linewidth=1,
            label=f"{options.target_label}: {options.target:.3f}",
        )
    if options.title:
        axes.set_title(options.title)
    axes.set_xlabel("million characters trained on")
    axes.set_ylabel("validation loss, nats per character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(options.output, metadata={"Date": None})


def read(path: Path) -> tuple:
    """Reads the output of a run; returns the characters per batch and the epochs."""
    text = path.read_text(encoding="utf-8")
    sizes = re.search(r"batch_size: (\d+), sequence_length: (\d+)", text)
    lines = [line for line in text.splitlines() if line.startswith("{")]
    return int(sizes[1]) * int(sizes[2]), [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
