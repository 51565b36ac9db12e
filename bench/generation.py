"""Compares generation with its peers: the notebook's predict loop, and the int8 arithmetic
of PyTorch and ONNX Runtime, each set up as a well-informed user would."""

import json
from pathlib import Path

import measure
from measure import fastest, progress, run_peer

# The notebook's model: batch, sequence, hidden, layers, and no target.
SIZES = (128, 100, 512, 2, None)
# Streams through gRPC -> least ratio to the predict loop, by instruction set.
STREAMS = {
    1: {"amx": 11, "vnni": 10, "avx2": 7},
    8: {},
    64: {"amx": 130, "vnni": 90, "avx2": 70},
    256: {"amx": 180, "vnni": 120, "avx2": 85},
}
# Rows of the decode step alone -> least ratio to ONNX Runtime int8 with all threads.
STEPS = {1: {"amx": 2, "vnni": 1.8, "avx2": 1.2}, 64: {"amx": 3, "vnni": 1.4, "avx2": 1.2}}
PREFILL = {"amx": 20_000, "vnni": 20_000, "avx2": 12_000}
ONNX = "ONNX Runtime int8"


def instruction_set() -> str:
    """The column of the targets that applies to this machine."""
    flags = Path("/proc/cpuinfo").read_text()
    if "amx_int8" in flags:
        return "amx"
    return "vnni" if "avx512_vnni" in flags else "avx2"


def compare(python: str, text: Path, options) -> dict:
    with measure.server(options) as (process, address, folder):
        progress("training the notebook's model for one epoch")
        vocabulary = measure.train(address, text, SIZES, "bench")["vocabulary_size"]
        model = {"tokens": vocabulary, "hidden_size": SIZES[2], "num_layers": SIZES[3]}
        file = folder / "bench.safetensors"
        measure.call([str(measure.RELEASE / "charlstm-client"), "--addr", address, "models",
                      "export", "bench", "--output", str(file)])
        loops, peers, steps = [], [], []
        streams = {count: [] for count in STREAMS}
        for _ in range(options.rounds):
            loops += run_peer(python, "predict_loop.py", threads=options.threads, **model)
            progress(f"predict loop: {loops[-1]['chars_per_second']:,.0f} chars/s")
            for measured in run_peer(python, "int8_peers.py", file, threads=options.threads):
                peers.append(measured)
                progress(str(measured))
            steps += decode_steps(options.threads)
            for count, rounds in streams.items():
                rounds.append(measure.load(address, count, options.seconds))
                progress(f"{count} streams: {rounds[-1]['chars_per_second']:,.0f} chars/s")
        measure.stop_cleanly(process)
    return {"threads": options.threads, "loop": fastest(loops), "peers": peers, "steps": steps,
            "streams": {count: fastest(rounds) for count, rounds in streams.items()}}


def decode_steps(threads: int) -> list:
    """Runs `cargo bench --bench step`, which measures without a server."""
    command = ["cargo", "bench", "--quiet", "-p", "charlstm-model", "--bench", "step", "--", "--json",
               "--threads", str(threads)]
    found = [json.loads(line) for line in measure.call(command, CARGO_TERM_COLOR="never").splitlines()]
    for one in found:
        progress(str(one))
    return found


def table(results: dict) -> str:
    targets = instruction_set()
    rows = [(f"targets: {targets}", "peer", "charlstm", "ratio", "target")]
    loop = results["loop"]["chars_per_second"]
    for count, streams in results["streams"].items():
        rows.append(row(f"{count} streams through gRPC, the notebook's predict loop", loop,
                        streams["chars_per_second"], STREAMS[count].get(targets)))
        between = streams["between_microseconds"]
        rows.append((f"  between messages, p50 {between['p50'] / 1e3:.2f} ms, p99 / p50", "",
                     "", f"{between['p99'] / between['p50']:.2f}", "< 3"))
    for count, wanted in STEPS.items():
        for name, threads in peers_of(results, count):
            peer = fastest([one for one in results["peers"] if one.get("rows") == count
                            and (one["peer"], one["threads"]) == (name, threads)])
            # One row is computed by one thread.
            own = fastest([one for one in results["steps"] if one["name"] == "decode"
                           and one["precision"] == "int8"
                           and (one["rows"], one["threads"]) == (count, min(count, threads))])
            target = wanted.get(targets) if (name, threads) == (ONNX, results["threads"]) else None
            rows.append(row(f"decode step with sampling, {count} rows, {name}, "
                            f"{threads} threads", peer["chars_per_second"],
                            own["chars_per_second"], target))
    prefill = fastest([one for one in results["steps"]
                       if (one["name"], one["precision"]) == ("prefill", "int8")])
    rows.append(("prefill, one thread, chars/s", "", f"{prefill['chars_per_second']:,.0f}", "",
                 f">= {PREFILL[targets]:,}"))
    for name in sorted({one["peer"] for one in results["peers"]}):
        change = max(one["log_probability_change"] for one in results["peers"]
                     if one["peer"] == name and "log_probability_change" in one)
        rows.append((f"change of a log-probability by other rows, {name}", f"{change:.2g}",
                     "0", "", ""))
    return measure.aligned(rows)


def peers_of(results: dict, count: int) -> list:
    """(peer, threads) of all measurements with this number of rows."""
    return sorted({(one["peer"], one["threads"]) for one in results["peers"]
                   if one.get("rows") == count})


def row(name: str, peer: float, own: float, target) -> tuple:
    """Compares two speeds; `target` is the least ratio, or None."""
    return (name, f"{peer:,.0f}", f"{own:,.0f}", f"{own / peer:.2f}",
            f">= {target:g}" if target else "")
