#!/usr/bin/env python3
"""Searches for hyperparameters of a recipe on a text, and scores a choice on text that
the search has not seen.

    bench/search.py search --text FILE --trials FILE --results FILE [--jobs N]
    bench/search.py score --text FILE [--flags FLAGS] [--seeds 1 2 3]
    bench/search.py table --results FILE

A trial is a line of flags of `cargo bench -p charlstm-bptt --bench curve`. `search` sees
only the first nine tenths of the text, of which the last tenth is the validation set; it
appends one line of JSON for each trial to the results, and skips those that are there.
`score` trains on the first nine tenths of the text and prints the loss on the last tenth,
for each seed and their mean. Losses are in nats per character, with the state carried
through the text. `table` prints the results, the best first.
"""

import argparse
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import measure

# The part of a text that a search may see.
SEEN = "0.9"


def main() -> int:
    options = arguments()
    return options.run(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Searches for hyperparameters.")
    commands = parser.add_subparsers(required=True)
    search = commands.add_parser("search", help="try flags on the first nine tenths of a text")
    search.add_argument("--text", type=Path, required=True)
    search.add_argument("--trials", type=Path, required=True, help="one line of flags each")
    search.add_argument("--results", type=Path, required=True, help="JSON lines; appended to")
    search.add_argument("--jobs", type=int, default=1, help="trials at once, one thread each")
    search.set_defaults(run=run_search)
    score = commands.add_parser("score", help="score flags on the last tenth of a text")
    score.add_argument("--text", type=Path, required=True)
    score.add_argument("--flags", default="", help="flags of the training, as one argument")
    score.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    score.add_argument("--threads", type=int, default=os.cpu_count())
    score.add_argument("--results", type=Path, help="JSON lines; appended to")
    score.set_defaults(run=run_score)
    table = commands.add_parser("table", help="print results")
    table.add_argument("--results", type=Path, required=True)
    table.set_defaults(run=print_table)
    return parser.parse_args()


def build() -> str:
    """Compiles the benchmark; returns its path."""
    command = ["cargo", "bench", "-p", "charlstm-bptt", "--bench", "curve", "--no-run"]
    output = measure.call([*command, "--message-format", "json"])
    for line in output.splitlines():
        artifact = json.loads(line)
        if artifact.get("executable") and artifact["target"]["name"] == "curve":
            return artifact["executable"]
    raise measure.Failure("cargo did not say where the benchmark is")


def train(program: str, text: Path, threads: int, flags: list) -> dict:
    """Trains, and returns the lowest loss, its epoch, and the losses of all epochs."""
    output = measure.call(
        [program, "--text", str(text.resolve()), "--threads", str(threads), *flags]
    )
    epochs = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    losses = [lowest(epoch) for epoch in epochs]
    best = min(losses)
    return {
        "loss": best,
        "epoch": losses.index(best) + 1,
        "validation": [round(epoch["validation_loss"], 5) for epoch in epochs],
        "average": [epoch["average_validation_loss"] for epoch in epochs],
        "train": [round(epoch["train_loss"], 5) for epoch in epochs],
        "seconds": round(epochs[-1]["seconds"] - epochs[-1]["evaluating"], 1),
        "evaluating": round(epochs[-1]["evaluating"], 1),
        "trained_chars": epochs[-1]["trained_chars"],
    }


def lowest(epoch: dict) -> float:
    """The loss of the weights, or of their average if that is lower."""
    average = epoch["average_validation_loss"]
    return min(epoch["validation_loss"], epoch["validation_loss"] if average is None else average)


def run_search(options) -> int:
    program = build()
    done = {result["flags"] for result in read(options.results)}
    lines = [line.strip() for line in options.trials.read_text().splitlines()]
    trials = [line for line in lines if line and not line.startswith("#") and line not in done]
    lock = Lock()

    def run(flags: str) -> None:
        seed = [] if "--seed" in flags else ["--seed", "1"]
        result = train(
            program, options.text, 1, ["--text-fraction", SEEN, *seed, *flags.split()]
        )
        with lock, options.results.open("a") as file:
            file.write(json.dumps({"flags": flags, "text": options.text.name, **result}) + "\n")
        print(f"{result['loss']:.4f}  {flags}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, trials))
    return 0


def run_score(options) -> int:
    program = build()
    results = []
    for seed in options.seeds:
        flags = ["--seed", str(seed), *options.flags.split()]
        result = train(program, options.text, options.threads, flags)
        results.append(result)
        if options.results:
            named = {"flags": options.flags, "seed": seed, "text": options.text.name, **result}
            with options.results.open("a") as file:
                file.write(json.dumps(named) + "\n")
        print(
            f"seed {seed}: {result['loss']:.4f} at epoch {result['epoch']}, "
            f"{result['trained_chars']:,} characters trained in {result['seconds']:.0f} s",
            flush=True,
        )
    losses = [result["loss"] for result in results]
    print(f"mean of {len(losses)} seeds: {statistics.mean(losses):.4f}")
    return 0


def read(path: Path) -> list:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def print_table(options) -> int:
    rows = [("flags", "loss", "epoch", "training loss", "characters trained")]
    for result in sorted(read(options.results), key=lambda result: result["loss"]):
        rows.append(
            (
                f"`{result['flags']}`",
                f"{result['loss']:.4f}",
                str(result["epoch"]),
                f"{result['train'][result['epoch'] - 1]:.4f}",
                f"{result['trained_chars']:,}",
            )
        )
    print(measure.aligned(rows))
    return 0


if __name__ == "__main__":
    measure.run(main)
