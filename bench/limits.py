#!/usr/bin/env python3
"""Measures what the server must stand beside its speed: long primes, steady
streams, text beside a training, many idle sessions, streams that are dropped. `make bench` builds what
this runs, and runs it after run.py.

    bench/limits.py [--threads N] [--seconds N] [--rounds N] [--sessions N]
                    [--drops N] [--json FILE]

It needs grpcio: run it with the Python of `make python`, .venv/bin/python. The
programs are those in CARGO_TARGET_DIR/release. Everything is measured through
gRPC on loopback, on a model of the notebook's size that is hardly trained: how
well it writes changes nothing about its speed.
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
import run

sys.path.insert(0, str(run.ROOT / "tests" / "python"))
from train_and_generate import compile_protos  # noqa: E402

# batch, sequence, hidden, layers; the last is what run.py wants of its speed.
SIZES = (16, 20, 512, 2, None)
PRIME_CHARS = 10_000
STREAMS_BESIDE = 16
STREAMS_STEADY = 64


def main() -> int:
    options = arguments()
    results = {"machine": run.machine(), "threads": options.threads}
    print(f"{results['machine']}, {options.threads} threads\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="charlstm-limits-") as folder:
        pb = protos(folder)
        measured = run.server(options)
        measured.flags += ("--max-sessions", str(options.sessions))
        # Killed at the end: to save the sessions is not what is measured.
        with measured as (process, address, _):
            train(address, Path(folder) / "text.txt")
            target = address.removeprefix("http://")
            with grpc.insecure_channel(target) as channel:
                stub = pb.GenerationServiceStub(channel)
                results["prime"] = prime_alone(pb, stub, options.rounds)
                results["beside"] = prime_beside(pb, stub, address, options.seconds)
            run.progress(f"{STREAMS_STEADY} streams")
            results["steady"] = run.load(address, STREAMS_STEADY, options.seconds)
            results["flow"] = flow.beside_training(address, Path(folder), options.seconds)
            results["drops"] = asyncio.run(many.drops(pb, target, process.pid, options.drops))
            kept = many.sessions(pb, target, process.pid, options.sessions)
            results["sessions"] = asyncio.run(kept)
    print(table(results), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the limits of charlstm.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=int, default=10, help="for each load of streams")
    parser.add_argument("--rounds", type=int, default=5, help="long primes alone")
    parser.add_argument("--sessions", type=int, default=100_000, help="idle sessions")
    parser.add_argument("--drops", type=int, default=10_000, help="streams that are dropped")
    parser.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    if options.sessions < 3 * many.FEW:
        parser.error(f"--sessions must be {3 * many.FEW} at least")
    return options


def protos(folder: str) -> SimpleNamespace:
    """All messages and stubs of the services, under one roof."""
    compile_protos(folder)
    found = {}
    for service in ("generation", "session", "server"):
        for kind in ("_pb2", "_pb2_grpc"):
            found.update(vars(import_module(f"charlstm.v1.{service}{kind}")))
    return SimpleNamespace(**found)


def train(address: str, path: Path) -> None:
    run.progress("training a model of the notebook's size for a few steps")
    path.write_text(many.ALPHABET + many.characters(random.Random(1), 4000), encoding="utf-8")
    known = run.train(address, path, SIZES, many.MODEL)["vocabulary_size"]
    if known != len(many.ALPHABET):
        raise run.Failure(f"the model knows {known} characters, not {len(many.ALPHABET)}")


# --- long primes -------------------------------------------------------------


def prime_seconds(pb, stub, prime: str) -> float:
    """Seconds from the call to its first character."""
    request = pb.GenerateRequest(model=many.MODEL, prime=prime, max_chars=1, sampling={"seed": 1})
    taken, began = None, time.perf_counter()
    for response in stub.Generate(request, timeout=many.DEADLINE_SECONDS):
        if response.HasField("text"):
            taken = time.perf_counter() - began
    if taken is None:
        raise run.Failure("a prime was answered with no character")
    return taken


def prime_alone(pb, stub, rounds: int) -> dict:
    run.progress(f"a prime of {PRIME_CHARS:,} characters, alone")
    prime = many.characters(random.Random(2), PRIME_CHARS)
    prime_seconds(pb, stub, prime[:100])
    short = [prime_seconds(pb, stub, prime[0]) for _ in range(rounds)]
    long = [prime_seconds(pb, stub, prime) for _ in range(rounds)]
    speed = (PRIME_CHARS - 1) / (median(long) - median(short))
    return {"chars_per_second": speed, "one_char_seconds": short, "all_seconds": long}


def prime_beside(pb, stub, address: str, seconds: int) -> dict:
    run.progress(f"{STREAMS_BESIDE} streams, without and with such primes beside them")
    without = run.load(address, STREAMS_BESIDE, seconds)
    prime = many.characters(random.Random(3), PRIME_CHARS)
    primes = []
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(run.load, address, STREAMS_BESIDE, seconds)
        # Back to back, so that one is under way all the time; the load ends it.
        while not loaded.done():
            primes.append(prime_seconds(pb, stub, prime))
        beside = loaded.result()
    return {"without": without, "with": beside, "prime_seconds": primes}


# --- the table ---------------------------------------------------------------


def table(results: dict) -> str:
    rows = [("", "charlstm", "wanted")]
    rows += prime_rows(results["prime"], results["beside"])
    between = results["steady"]["between_microseconds"]
    ratio = between["p99"] / between["p50"]
    rows.append((f"{STREAMS_STEADY} streams, p99 / p50", f"{ratio:.2f}", "< 3"))
    rows += flow.rows(results["flow"])
    rows += drop_rows(results["drops"]) + session_rows(results["sessions"])
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    lines = [run.line(cells, widths) for cells in rows]
    rule = "-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])
    lines.insert(1, run.line(rule, widths))
    return "\n".join(lines)


def prime_rows(alone: dict, beside: dict) -> list:
    without, loaded = (beside[side]["between_microseconds"] for side in ("without", "with"))
    name = f"{PRIME_CHARS:,} characters of prime"
    return [
        (f"{name} alone, chars/s", f"{alone['chars_per_second']:,.0f}", ">= 4,000"),
        (
            f"{name} beside {STREAMS_BESIDE} streams, chars/s",
            f"{PRIME_CHARS / median(beside['prime_seconds']):,.0f}",
            "",
        ),
        ("  streams without it, p50, ms", f"{without['p50'] / 1e3:.2f}", ""),
        # Far over the median where other programs take the cores by turns and
        # text comes in bursts: then the ratio below says little.
        ("  streams without it, mean, ms", f"{without['mean'] / 1e3:.2f}", ""),
        ("  streams beside it, p50, ms", f"{loaded['p50'] / 1e3:.2f}", ""),
        ("  streams beside it, p99, ms", f"{loaded['p99'] / 1e3:.2f}", ""),
        ("  p99 beside it / p50 without it", f"{loaded['p99'] / without['p50']:.2f}", "< 4"),
    ]


def drop_rows(drops: dict) -> list:
    start, middle, end = (bytes_ / 1e6 for bytes_ in drops["resident_bytes"])
    batch = drops["batch"]
    return [
        (f"{drops['streams']:,} streams dropped, MB before", f"{start:,.0f}", ""),
        ("  MB more after a half of them", f"{middle - start:+,.1f}", ""),
        ("  MB more after all of them", f"{end - start:+,.1f}", "about 0"),
        ("  of all, ended by the server", str(drops["ended_by_server"]), "0"),
        ("  generations left in the batch", str(drops["running_after"]), "0"),
        (f"  a full batch of {batch} writes the same", str(drops["same_texts_after"]), str(batch)),
    ]


def session_rows(sessions: dict) -> list:
    count = sessions["sessions"]
    before, full, after = sessions["resident_bytes"]
    few, many_ = sessions["lookups"]["few"], sessions["lookups"]["many"]
    made = sessions["create_seconds"]
    return [
        (
            f"{count:,} idle sessions, GB more",
            f"{(full - before) / 1e9:.3f}",
            f"< {1.1 * count / 100_000:.3g}",
        ),
        ("  bytes each", f"{(full - before) / count:,.0f}", ""),
        ms_row("GetSession", few["get"], many_["get"]),
        ms_row("a page of ListSessions", few["list"], many_["list"]),
        ms_row("a new one", made["first"], made["last"]),
        ms_row("a new one, full: evicting", made["first"], made["evicting"]),
        (f"  MB more after {many.FEW:,} evictions", f"{(after - full) / 1e6:+,.1f}", "about 0"),
        ("  kept", f"{sessions['kept']:,}", f"{count:,}"),
        (f"  of the first {many.FEW:,} told evicted", f"{sessions['oldest_evicted']:,}", "most"),
    ]


def ms_row(name: str, few: float, then: float) -> tuple:
    """Times in the first thousand sessions, and now."""
    return (f"  {name}, ms", f"{few * 1e3:.2f} -> {then * 1e3:.2f}", "flat")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except run.Failure as failure:
        print(f"limits: {failure}", file=sys.stderr)
        sys.exit(1)
    except grpc.RpcError as error:
        print(f"limits: {error.code().name}: {error.details()}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
