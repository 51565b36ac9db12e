#!/usr/bin/env python3
"""Measures where the time of a generated character goes: processor time of the
generation threads, of the threads that send, and of the client, during the load test.

    bench/budget.py [--threads N] [--seconds N] [--length N] [--json FILE]

Uses the programs in CARGO_TARGET_DIR/release, and `cargo bench --bench step` for the
arithmetic.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import measure
from generation import decode_steps

SIZES = (128, 100, 512, 2, None)
STREAMS = (1, 8, 64, 256)
# Not measured, at the beginning and at the end of the load test.
MARGIN_SECONDS = 1.0
NANOSECONDS = 1e9
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    options = arguments()
    folder = tempfile.TemporaryDirectory(prefix="charlstm-bench-")
    text = measure.embedded_text(Path(folder.name))
    print(f"{measure.machine()}, {options.threads} threads", flush=True)
    steps = {step["rows"]: step["chars_per_second"] for step in decode_steps(options.threads)
             if step["name"] == "decode" and step["precision"] == "int8"
             and step["threads"] == min(options.threads, step["rows"])}
    measured = []
    with measure.server(options) as (process, address, _):
        measure.train(address, text, SIZES, "bench")
        for streams in STREAMS:
            measured.append(budget(process.pid, address, streams, options))
            measure.progress(str(measured[-1]))
        measure.stop_cleanly(process)
    print(table(measured, steps, options.threads))
    if options.json:
        options.json.write_text(json.dumps({"steps": steps, "streams": measured}, indent=2) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures where the time of a character goes.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=int, default=6, help="duration of each load test")
    parser.add_argument("--length", type=int, default=1000, help="characters of each call")
    parser.add_argument("--json", type=Path, help="write the raw results to this file")
    options = parser.parse_args()
    if options.seconds <= 2 * MARGIN_SECONDS:
        parser.error(f"--seconds must be more than {2 * MARGIN_SECONDS:g}")
    return options


def budget(server: int, address: str, streams: int, options) -> dict:
    """Microseconds of processor time for each character, by part."""
    command = measure.load_command(
        address, streams, options.seconds, "--length", str(options.length))
    usage = {}

    def watch(client: int) -> None:
        time.sleep(MARGIN_SECONDS)
        begin, before = time.monotonic(), cpu_seconds(server, client)
        time.sleep(options.seconds - 2 * MARGIN_SECONDS)
        after = cpu_seconds(server, client)
        usage["seconds"] = time.monotonic() - begin
        usage["parts"] = {part: after[part] - before[part] for part in after}

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        watcher = threading.Thread(target=watch, args=(client.pid,))
        watcher.start()
        output = client.stdout.read()
        watcher.join()
    if client.returncode != 0 or "parts" not in usage:
        raise measure.Failure(f"the load test failed with exit code {client.returncode}")
    load = measure.load_results(output)
    chars = load["chars_per_second"] * usage["seconds"]
    return {"streams": streams, "chars_per_second": load["chars_per_second"],
            "chars_per_message": load["chars_per_message"],
            "microseconds": {part: seconds / chars * 1e6
                             for part, seconds in usage["parts"].items()}}


def cpu_seconds(server: int, client: int) -> dict:
    """Seconds of processor time so far, by part."""
    parts = {"generate": 0.0, "send": 0.0, "client": 0.0}
    for thread in Path(f"/proc/{server}/task").iterdir():
        name = (thread / "comm").read_text().strip()
        seconds = int((thread / "schedstat").read_text().split()[0]) / NANOSECONDS
        part = "generate" if name.startswith(("generate-", "decode-partner")) else "send"
        parts[part] += seconds
    # After the name, which may contain spaces: user and system time are fields 12 and 13.
    fields = Path(f"/proc/{client}/stat").read_text().rsplit(")", 1)[1].split()
    parts["client"] = (int(fields[11]) + int(fields[12])) / TICKS
    return parts


def table(measured: list, steps: dict, threads: int) -> str:
    rows = [("streams", "characters/s", "characters per message", "step and sampling",
             "rest of the generation threads", "sending", "client", "sum, us")]
    for one in measured:
        time_of = one["microseconds"]
        used = min(threads, one["streams"])
        step = used / steps[one["streams"]] * 1e6
        rows.append((str(one["streams"]), f"{one['chars_per_second']:,.0f}",
                     f"{one['chars_per_message']:.1f}", f"{step:.1f}",
                     f"{max(0.0, time_of['generate'] - step):.1f}", f"{time_of['send']:.1f}",
                     f"{time_of['client']:.1f}", f"{sum(time_of.values()):.1f}"))
    return measure.aligned(rows)


if __name__ == "__main__":
    measure.run(main)
