#!/usr/bin/env python3
"""Measures what durable sessions cost: the load test without sessions, with
sessions that are synced within a second (`relaxed`), and with sessions whose
every call is synced before `finished` (`committed`), in turns on one disk.

    bench/durability.py [--threads N] [--seconds N] [--rounds N] [--streams N]
                        [--length N] [--json FILE]

Uses the programs in CARGO_TARGET_DIR/release. The data folders are in TMPDIR,
which must be on the disk to be measured, not in memory.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import measure

# batch, sequence, hidden, layers, and the target ratio of run.py (unused here).
SIZES = (128, 100, 512, 2, None)
# A call of 200 characters in a session appends about this much to the log.
RECORD_BYTES = 16_000
SYNCS = 400


def main() -> int:
    options = arguments()
    text_folder = tempfile.TemporaryDirectory(prefix="charlstm-bench-")
    text = measure.embedded_text(Path(text_folder.name))
    print(f"{measure.machine()}, {options.threads} threads", flush=True)
    syncs = sync_milliseconds()
    p99_sync = quantiles(syncs, n=100)[98]
    print(f"one fdatasync of {RECORD_BYTES:,} bytes: median {median(syncs):.2f} ms, "
          f"p99 {p99_sync:.2f} ms\n", flush=True)
    durable, relaxed = measure.server(options), measure.server(options)
    relaxed.flags += ("--session-durability", "relaxed")
    rounds = {"none": [], "relaxed": [], "committed": []}
    with durable as (one, committed_at, _), relaxed as (two, relaxed_at, _):
        for address in (committed_at, relaxed_at):
            measure.train(address, text, SIZES, "bench")
        for _ in range(options.rounds):
            for name, address, flags in (
                ("none", committed_at, ()),
                ("relaxed", relaxed_at, ("--in-sessions",)),
                ("committed", committed_at, ("--in-sessions",)),
            ):
                measured = measure.load(
                    address, options.streams, options.seconds, "--length", str(options.length),
                    *flags)
                rounds[name].append(measured)
                measure.progress(f"{name}: {measured['chars_per_second']:,.0f} chars/s")
        measure.stop_cleanly(one)
        measure.stop_cleanly(two)
    print(table(rounds))
    if options.json:
        options.json.write_text(json.dumps({"syncs": syncs, "rounds": rounds}, indent=2) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures what durable sessions cost.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=int, default=10, help="duration of each load test")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each setting")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--length", type=int, default=200, help="characters of each call")
    parser.add_argument("--json", type=Path, help="write the raw results to this file")
    return parser.parse_args()


def sync_milliseconds() -> list:
    """Times appends of one record followed by a sync, as the log of the store does."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="charlstm-sync-") as file:
        for _ in range(SYNCS):
            file.write(os.urandom(RECORD_BYTES))
            file.flush()
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begin) * 1e3)
    return times


def table(rounds: dict) -> str:
    """Medians of the rounds; ratios to the load test without sessions."""
    speed = {name: median(one["chars_per_second"] for one in measured)
             for name, measured in rounds.items()}
    finish = {name: median(one["finish_microseconds"]["p99"] for one in measured) / 1e3
              for name, measured in rounds.items()}
    rows = [("sessions", "chars/s", "ratio", "last character to `finished`, p99, ms")]
    for name in rounds:
        rows.append((name, f"{speed[name]:,.0f}", f"{speed[name] / speed['none']:.2f}",
                     f"{finish[name]:.2f}"))
    return measure.aligned(rows)


if __name__ == "__main__":
    measure.run(main)
