"""The training part of bench/run.py: the notebook's training in PyTorch, in float32
and with autocast in bfloat16, next to charlstm in both precisions. PyTorch runs with
glibc set to keep freed memory; the medians of the rounds count."""

import json
import time
from pathlib import Path
from statistics import median

import measure
from generation import row
from measure import progress, run_peer

# batch, sequence, hidden, layers, dropout of the recipe that has these sizes.
SIZES = ((128, 100, 512, 2, 0.5), (16, 32, 512, 2, 0.1), (32, 50, 128, 2, 0.5))
# Enough for a steady speed: 20 steps of 12,800 characters.
PYTORCH_CHARS = 250_000
PRECISIONS = ("float32", "bf16")
# The processor's features that decide which target counts.
AMX, AVX512_BF16 = "amx_bf16", "avx512_bf16"
# Speed of charlstm in its fastest precision, relative to PyTorch: with AMX relative
# to bfloat16, without relative to float32.
TARGETS = {(128, 100): (1.5, 1.2), (16, 32): (2.5, 1.15), (32, 50): (None, 1.2)}
MEMORY_TARGET = 0.5


def compare(python: str, text: Path, options) -> list:
    """Returns one entry for each size: the rounds of each side and precision."""
    return [compare_size(python, text, sizes, options) for sizes in SIZES]


def compare_size(python: str, text: Path, sizes: tuple, options) -> dict:
    batch, sequence, hidden, layers, dropout = sizes
    name = f"{batch} x {sequence} x {hidden} x {layers}"
    rounds = {(side, precision): [] for side in ("PyTorch", "charlstm") for precision in PRECISIONS}
    for _ in range(options.rounds):
        for precision in PRECISIONS:
            flags = ["--bf16"] if precision == "bf16" else []
            measured = run_peer(
                python,
                "train_loop.py",
                *flags,
                text=text,
                batch_size=batch,
                sequence_length=sequence,
                hidden_size=hidden,
                num_layers=layers,
                dropout=dropout,
                steps=max(10, PYTORCH_CHARS // (batch * sequence)),
                warmup=measure.WARMUP_STEPS,
                threads=options.threads,
            )
            rounds["PyTorch", precision].extend(measured)
            report(name, "PyTorch", precision, measured[-1])
            flags = ("--dropout", str(dropout), "--precision", precision)
            with measure.server(options) as (process, address, _):
                measured = measure.train(address, text, sizes[:4], "bench", *flags)
                measured["peak_rss_bytes"] = measure.peak_memory(process.pid)
                measure.stop_cleanly(process)
            rounds["charlstm", precision].append(measured)
            report(name, "charlstm", precision, measured)
    return {"sizes": sizes[:4], "name": name, "rounds": rounds}


def recipe(text: Path, options, name: str) -> dict:
    """Trains with a recipe and its defaults; returns its time, with evaluation and
    checkpoints, and its lowest loss."""
    command = [str(measure.RELEASE / "charlstm-client"), "--json", "train", "--text", str(text)]
    command += ["--model", "bench", "--recipe", name, "--seed", "1", "--sample-chars", "0"]
    with measure.server(options) as (process, address, _):
        begin = time.perf_counter()
        output = measure.call([*command, "--addr", address])
        seconds = time.perf_counter() - begin
        measure.stop_cleanly(process)
    events = [json.loads(line) for line in output.splitlines()]
    epochs = [event for event in events if event.get("event") == "epoch"]
    return {
        "recipe": name,
        "text": text.name,
        "seconds": seconds,
        "epochs": len(epochs),
        "loss": min(epoch["validation_loss"] for epoch in epochs),
    }


def recipe_line(measured: dict) -> str:
    return (
        f"recipe {measured['recipe']} on {measured['text']}, {measured['epochs']} epochs: "
        f"{measured['seconds']:.0f} s, lowest validation loss {measured['loss']:.3f} nats "
        "per character (seed 1)"
    )


def report(name: str, side: str, precision: str, measured: dict) -> None:
    speed = measured["chars_per_second"]
    progress(f"training {name}: {side} {precision} {speed:,.0f} chars/s")


def medians(entry: dict, field: str) -> dict:
    return {
        key: median(measured[field] for measured in rounds)
        for key, rounds in entry["rounds"].items()
    }


def table(entries: list, features: set) -> str:
    """The measurements as a Markdown table. `features` are those of the processor."""
    rows = [("", "PyTorch", "charlstm", "ratio", "target")]
    with_amx = AMX in features
    # The comparison that the target is about, and one more if it is across precisions.
    fastest = "bf16" if with_amx or AVX512_BF16 in features else "float32"
    judged = ("bf16", "bf16") if with_amx else ("float32", fastest)
    pairs = list(dict.fromkeys([("float32", "float32"), ("bf16", "bf16"), judged]))
    for entry in entries:
        speeds = medians(entry, "chars_per_second")
        memory = medians(entry, "peak_rss_bytes")
        for theirs, ours in pairs:
            label = theirs if theirs == ours else f"{theirs}, charlstm {ours}"
            with_target, without = TARGETS[entry["sizes"][:2]]
            target = with_target if with_amx else without
            rows.append(
                row(
                    f"training {entry['name']}, {label}, chars/s",
                    speeds["PyTorch", theirs],
                    speeds["charlstm", ours],
                    target if (theirs, ours) == judged else None,
                )
            )
        for precision in PRECISIONS:
            pytorch, charlstm = memory["PyTorch", precision], memory["charlstm", precision]
            rows.append(
                (
                    f"  peak resident memory, {precision}, MB",
                    f"{pytorch / 1e6:,.0f}",
                    f"{charlstm / 1e6:,.0f}",
                    f"{charlstm / pytorch:.2f}",
                    f"<= {MEMORY_TARGET}" if entry["sizes"][2] == 512 else "",
                )
            )
    return measure.aligned(rows)


def as_json(entries: list) -> list:
    """The entries with keys that JSON has."""
    return [
        {
            "name": entry["name"],
            "rounds": {" ".join(key): rounds for key, rounds in entry["rounds"].items()},
        }
        for entry in entries
    ]
