#!/usr/bin/env python3
"""Measures the server under demanding conditions: long prompts, steady streams,
generation during a training, many idle sessions, dropped streams. `make bench`
builds the programs, and runs this after run.py.

    bench/limits.py [--threads N] [--seconds N] [--rounds N] [--sessions N]
                    [--drops N] [--json FILE]

Requires grpcio: run it with the Python of `make python`, .venv/bin/python. Uses the
programs in CARGO_TARGET_DIR/release. Everything is measured through gRPC on
loopback, on a model of the notebook's size that is trained for a few steps only:
speed does not depend on the quality of the model.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import flow
import grpc
import many
import measure

sys.path.insert(0, str(measure.ROOT / "tests" / "python"))
from train_and_generate import compile_protos  # noqa: E402

# batch, sequence, hidden, layers, and the target ratio of run.py (unused here).
SIZES = (16, 20, 512, 2, None)
PROMPT_CHARS = 10_000
STREAMS_DURING_PROMPT = 16
STREAMS_STEADY = 64
# Memory that idle sessions may take, however many there are: the default of
# --session-cache-bytes, which has their index and the states of recently used
# ones, and a tenth for what the allocator adds. All other states are on disk.
IDLE_SESSIONS_BYTES = 1.1 * 512e6


def main() -> int:
    options = arguments()
    results = {"machine": measure.machine(), "threads": options.threads}
    print(f"{results['machine']}, {options.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="charlstm-limits-") as folder:
        pb = protos(folder)
        measured = measure.server(options)
        measured.flags += ("--max-sessions", str(options.sessions))
        # Killed at the end: saving the sessions is not measured.
        with measured as (process, address, _):
            train(address, Path(folder) / "text.txt")
            target = address.removeprefix("http://")
            with grpc.insecure_channel(target) as channel:
                stub = pb.GenerationServiceStub(channel)
                results["prompt"] = prompt_alone(pb, stub, options.rounds)
                results["prompt_and_streams"] = prompt_and_streams(
                    pb, stub, address, options.seconds
                )
            measure.progress(f"{STREAMS_STEADY} streams")
            results["steady"] = measure.load(address, STREAMS_STEADY, options.seconds)
            results["flow"] = flow.during_training(address, Path(folder), options.seconds)
            results["drops"] = asyncio.run(many.drops(pb, target, process.pid, options.drops))
            results["sessions"] = asyncio.run(
                many.sessions(pb, target, process.pid, options.sessions)
            )
    print(table(results), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures charlstm under demanding conditions.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=int, default=10, help="duration of each load test")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of a long prompt")
    parser.add_argument("--sessions", type=int, default=100_000, help="number of idle sessions")
    parser.add_argument("--drops", type=int, default=10_000, help="number of dropped streams")
    parser.add_argument("--json", type=Path, help="write the raw results to this file")
    options = parser.parse_args()
    if options.sessions < 3 * many.FEW:
        parser.error(f"--sessions must be at least {3 * many.FEW}")
    return options


def protos(folder: str) -> SimpleNamespace:
    """All messages and stubs of the services, in one namespace."""
    compile_protos(folder)
    names = {}
    for service in ("generation", "session", "server"):
        for kind in ("_pb2", "_pb2_grpc"):
            names.update(vars(import_module(f"charlstm.v1.{service}{kind}")))
    return SimpleNamespace(**names)


def train(address: str, path: Path) -> None:
    measure.progress("training a model of the notebook's size for a few steps")
    path.write_text(many.ALPHABET + many.characters(random.Random(1), 4000), encoding="utf-8")
    vocabulary_size = measure.train(address, path, SIZES, many.MODEL)["vocabulary_size"]
    if vocabulary_size != len(many.ALPHABET):
        raise measure.Failure(
            f"the vocabulary has {vocabulary_size} characters, expected {len(many.ALPHABET)}"
        )


# --- long prompts ------------------------------------------------------------


def time_to_first_char(pb, stub, prompt: str) -> float:
    """Seconds from the call to the first character."""
    request = pb.GenerateRequest(model=many.MODEL, prime=prompt, max_chars=1, sampling={"seed": 1})
    seconds, started = None, time.perf_counter()
    for response in stub.Generate(request, timeout=many.DEADLINE_SECONDS):
        if response.HasField("text"):
            seconds = time.perf_counter() - started
    if seconds is None:
        raise measure.Failure("a generation ended without any text")
    return seconds


def prompt_alone(pb, stub, rounds: int) -> dict:
    measure.progress(f"a prompt of {PROMPT_CHARS:,} characters, alone")
    rng = random.Random(2)
    time_to_first_char(pb, stub, many.characters(rng, 100))
    short, long = (
        # Another prompt each time: the server caches the states after prompts.
        [time_to_first_char(pb, stub, many.characters(rng, count)) for _ in range(rounds)]
        for count in (1, PROMPT_CHARS)
    )
    speed = (PROMPT_CHARS - 1) / (median(long) - median(short))
    return {"chars_per_second": speed, "one_char_seconds": short, "all_seconds": long}


def prompt_and_streams(pb, stub, address: str, seconds: int) -> dict:
    measure.progress(f"{STREAMS_DURING_PROMPT} streams, without and with long prompts")
    without = measure.load(address, STREAMS_DURING_PROMPT, seconds)
    rng = random.Random(3)
    prompt_seconds = []
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(measure.load, address, STREAMS_DURING_PROMPT, seconds)
        # Back to back: a prompt is being processed until the load test ends.
        while not load.done():
            # Another prompt each time, as in `prompt_alone`.
            prompt = many.characters(rng, PROMPT_CHARS)
            prompt_seconds.append(time_to_first_char(pb, stub, prompt))
        during = load.result()
    return {"without": without, "with": during, "prompt_seconds": prompt_seconds}


# --- the table ---------------------------------------------------------------


def table(results: dict) -> str:
    rows = [("", "charlstm", "target")]
    rows += prompt_rows(results["prompt"], results["prompt_and_streams"])
    between = results["steady"]["between_microseconds"]
    ratio = between["p99"] / between["p50"]
    rows.append((f"{STREAMS_STEADY} streams, p99 / p50", f"{ratio:.2f}", "< 3"))
    rows += flow.rows(results["flow"])
    rows += drop_rows(results["drops"]) + session_rows(results["sessions"])
    return measure.aligned(rows)


def prompt_rows(alone: dict, both: dict) -> list:
    without, during = (both[side]["between_microseconds"] for side in ("without", "with"))
    name = f"prompt of {PROMPT_CHARS:,} characters"
    return [
        (f"{name}, alone, chars/s", f"{alone['chars_per_second']:,.0f}", ">= 4,000"),
        (
            f"{name}, during {STREAMS_DURING_PROMPT} streams, chars/s",
            f"{PROMPT_CHARS / median(both['prompt_seconds']):,.0f}",
            "",
        ),
        ("  streams without prompt, p50, ms", f"{without['p50'] / 1e3:.2f}", ""),
        # If this is far above the median, other programs compete for the cores
        # and text arrives in bursts: then the ratio below is not meaningful.
        ("  streams without prompt, mean, ms", f"{without['mean'] / 1e3:.2f}", ""),
        ("  streams during prompt, p50, ms", f"{during['p50'] / 1e3:.2f}", ""),
        ("  streams during prompt, p99, ms", f"{during['p99'] / 1e3:.2f}", ""),
        ("  p99 during / p50 without", f"{during['p99'] / without['p50']:.2f}", "< 4"),
    ]


def drop_rows(drops: dict) -> list:
    start, middle, end = (bytes_ / 1e6 for bytes_ in drops["resident_bytes"])
    batch = drops["batch"]
    return [
        (f"{drops['streams']:,} streams dropped, MB before", f"{start:,.0f}", ""),
        ("  additional MB after half of them", f"{middle - start:+,.1f}", ""),
        ("  additional MB after all of them", f"{end - start:+,.1f}", "about 0"),
        ("  ended by the server", str(drops["ended_by_server"]), "0"),
        ("  generations left in the batch", str(drops["running_after"]), "0"),
        (
            f"  unchanged texts in a full batch of {batch}",
            str(drops["same_texts_after"]),
            str(batch),
        ),
    ]


def session_rows(sessions: dict) -> list:
    count = sessions["sessions"]
    before, full, after = sessions["resident_bytes"]
    few, all_ = sessions["lookups"]["few"], sessions["lookups"]["many"]
    create = sessions["create_seconds"]
    return [
        (
            f"{count:,} idle sessions, additional GB",
            f"{(full - before) / 1e9:.3f}",
            f"< {IDLE_SESSIONS_BYTES / 1e9:.2f}",
        ),
        ("  bytes per session", f"{(full - before) / count:,.0f}", ""),
        ms_row("GetSession", few["get"], all_["get"]),
        ms_row("one page of ListSessions", few["list"], all_["list"]),
        ms_row("new session", create["first"], create["last"]),
        ms_row("new session, evicting another", create["first"], create["evicting"]),
        (
            f"  additional MB after {many.FEW:,} evictions",
            f"{(after - full) / 1e6:+,.1f}",
            "about 0",
        ),
        ("  sessions after the evictions", f"{sessions['kept']:,}", f"{count:,}"),
        (
            f"  first {many.FEW:,} sessions reported as evicted",
            f"{sessions['oldest_evicted']:,}",
            "most",
        ),
    ]


def ms_row(name: str, few: float, all_: float) -> tuple:
    """Compares a duration at the first thousand sessions with that at all."""
    return (f"  {name}, ms", f"{few * 1e3:.2f} -> {all_ * 1e3:.2f}", "constant")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except measure.Failure as failure:
        print(f"limits: {failure}", file=sys.stderr)
        sys.exit(1)
    except grpc.RpcError as error:
        print(f"limits: {error.code().name}: {error.details()}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
