#!/usr/bin/env python3
"""Checks the guarantees of a server on a GPU against one on the CPU, and measures it.

    gpu_server.py [--device cuda:0] [--quick] [--logs FOLDER]

Trains a model on the device and kills the server in between; generates alone and among
other requests, in one call and in several, moves a session from the CPU to the GPU and
back, and scores. Then it prints the speeds next to the targets, and PyTorch's if python3 has
it. With --quick, sizes and times are small, and there are no targets: that runs on any
machine, also with --device cpu. Exits with 1 if a guarantee was broken.
"""

import argparse
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from measure import RELEASE, Failure, aligned, progress
from release import running_server, stop_cleanly

CLIENT = str(RELEASE / "charlstm-client")
# Characters of each text that is compared.
COMPARED = 1500
SEEDS = (1, 2, 3)
# Of the servers: more rows than any measurement needs.
MAX_BATCH = 4096
# Time that a training takes at its target.
TRAINING_SECONDS = 6
# batch, sequence, hidden, layers; flags of the server; characters per second.
TRAININGS = (
    ((128, 100, 512, 2), (), 900_000),
    ((16, 32, 512, 2), (), 250_000),
    ((256, 100, 1024, 3), (), 320_000),
    ((256, 100, 1024, 3), ("--gpu-math", "tf32"), 900_000),
)
STREAMS = ((1, 20_000), (64, 800_000), (256, 1_500_000), (1024, 2_500_000))
LARGE_VOCABULARY = 4002
LARGE_STREAMS = ((1, 10_000), (256, 600_000))
PROMPT_CHARS, PROMPT_TARGET = 5_000, 300_000
SCORE_CHARS, SCORE_SECONDS = 20_000, 0.5
# Of the throughput without a training.
DURING_TRAINING = 0.7


def text(chars: int, vocabulary: int = 78) -> str:
    """Returns words of random letters, in which all characters of a vocabulary occur."""
    rng = random.Random(7)
    first = "!" if vocabulary < 100 else "一"
    letters = "".join(chr(ord(first) + n) for n in range(vocabulary - 1))
    words = ["".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(500)]
    made, size = [letters], len(letters)
    while size < chars:
        made.append(words[min(int(rng.expovariate(0.02)), len(words) - 1)])
        size += len(made[-1]) + 1
    return " ".join(made)[:chars]


def client(address: str, *arguments) -> str:
    """Runs the client and returns what it prints."""
    return measure.call([CLIENT, "--addr", address, *map(str, arguments)])


class Checks:
    """The guarantees, and whether they hold."""

    def __init__(self):
        self.broken = 0

    def require(self, name: str, holds: bool) -> None:
        self.broken += not holds
        print(f"{'ok' if holds else 'BROKEN':8}{name}", flush=True)


class Bench:
    """The server under test, its options, and a folder for everything."""

    def __init__(self, options, folder: Path):
        self.options, self.folder, self.logs = options, folder, 0
        self.small = text(20_000 if options.quick else 200_000)
        (folder / "text.txt").write_text(self.small)

    def server(self, data: str, device=None, *flags):
        """Starts a server on a data folder; by default on the device under test."""
        self.logs += 1
        log = Path(self.options.logs) / f"server-{self.logs}.log"
        device = device or self.options.device
        return running_server(self.folder / data, log, "--device", device, *flags)

    def weights(self, address: str, model: str) -> bytes:
        """Returns the weights of a model without its metadata."""
        file = self.folder / "exported.safetensors"
        client(address, "models", "export", model, "--output", file, "--force")
        data = file.read_bytes()
        return data[8 + int.from_bytes(data[:8], "little"):]


def training_flags(bench: Bench, model: str) -> list:
    """A training of some epochs that drops and averages weights."""
    hidden = 32 if bench.options.quick else 128
    return ["train", "--text", bench.folder / "text.txt", "--model", model, "--epochs", 12,
            "--hidden-size", hidden, "--seed", 5, "--sample-chars", 0,
            "--recurrent-dropout", 0.1, "--dropout", 0.2, "--average-decay", 0.99]


def until_epoch(epoch: int, address: str, *arguments) -> str:
    """Runs a command that prints the events of a training until it has completed an
    epoch; returns its id."""
    command = [CLIENT, "--addr", address, "--json", *map(str, arguments)]
    training = ""
    with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watching:
        for line in watching.stdout:
            event = json.loads(line)
            training = event.get("training_id", training)
            if event.get("event") == "epoch" and event["epoch"] >= epoch:
                break
        watching.kill()
    return training


def check_resume(bench: Bench, checks: Checks) -> None:
    """A training that is stopped and killed has the bits of an undisturbed one."""
    with bench.server("data") as (process, address):
        client(address, *training_flags(bench, "undisturbed"))
        undisturbed = bench.weights(address, "undisturbed")
        training = until_epoch(2, address, *training_flags(bench, "killed"))
        # Saves a checkpoint.
        stop_cleanly(process)
    with bench.server("data", None, "--resume-interrupted") as (process, address):
        until_epoch(3, address, "trainings", "watch", training)
        process.kill()
    with bench.server("data", None, "--resume-interrupted") as (process, address):
        events = client(address, "--json", "trainings", "watch", training).splitlines()
        resumed = sum(json.loads(line).get("event") == "resumed" for line in events)
        checks.require("a training that was stopped, resumed, killed and resumed has the weights "
                       "of an undisturbed one",
                       resumed == 2 and bench.weights(address, "killed") == undisturbed)
        stop_cleanly(process)


def generated(address: str, seed: int) -> str:
    return client(address, "generate", "--model", "undisturbed", "--prime", "!", "--seed", seed,
                  "--length", COMPARED, "--no-echo")


def in_session(address: str, session: str, seed: int, first: bool) -> str:
    """Generates a third of the text in a session."""
    start = ["--model", "undisturbed", "--prime", "!", "--seed", seed] if first else []
    return client(address, "generate", "--session", session, *start, "--length", COMPARED // 3,
                  "--no-echo").removesuffix("\n")


def score_of(address: str, file: Path) -> dict:
    """Returns the score of a text, with all digits."""
    printed = client(address, "--json", "score", "--model", "undisturbed", "--text", file)
    return json.loads(printed.splitlines()[-1])


def move(bench: Bench, session: str, source: str, target: str) -> None:
    file = bench.folder / "session"
    client(source, "sessions", "export", session, "--output", file, "--force")
    client(source, "sessions", "delete", session)
    client(target, "sessions", "import", file, "--session", session)


def check_texts(bench: Bench, checks: Checks) -> None:
    """Texts and scores do not depend on the device, on other requests, or on the calls."""
    shutil.copytree(bench.folder / "data", bench.folder / "on_cpu")
    with (bench.server("data") as (process, address),
          bench.server("on_cpu", "cpu") as (_, on_cpu)):
        expected = {seed: generated(on_cpu, seed) for seed in SEEDS}
        checks.require("texts are those of the CPU",
                       all(generated(address, seed) == expected[seed] for seed in SEEDS))
        scored = bench.folder / "scored.txt"
        scored.write_text(bench.small[: 1_000 if bench.options.quick else 5_000])
        score = score_of(on_cpu, scored)
        checks.require("a score is that of the CPU", score_of(address, scored) == score)
        load = subprocess.Popen(
            measure.load_command(address, 48, 6, model="undisturbed"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
        checks.require("texts are the same among 48 other streams",
                       all(generated(address, seed) == expected[seed] for seed in SEEDS))
        checks.require("a score is the same among 48 other streams", score_of(address, scored) == score)
        load.wait()
        split, moved = [], []
        for part in range(3):
            split.append(in_session(address, "split", 1, part == 0))
            here, there = (address, on_cpu) if part % 2 == 0 else (on_cpu, address)
            moved.append(in_session(here, "moved", 1, part == 0))
            if part < 2:
                move(bench, "moved", here, there)
        whole = expected[1].removesuffix("\n")
        checks.require("a text is the same in one call and in three", "".join(split) == whole)
        checks.require("a session that moves from the device to the CPU and back continues its "
                       "text", "".join(moved) == whole)
        stop_cleanly(process)


def speed_row(name: str, measured: float, target, pytorch=None) -> tuple:
    # At once: a script that ends this program has at least that.
    print(f"speed   {name}: {measured:,.0f}", flush=True)
    met = "" if target is None else ("yes" if measured >= target else "no")
    figures = [f"{measured:,.0f}"]
    figures += ["" if one is None else f"{one:,.0f}" for one in (pytorch, target)]
    return (name, *figures, met)


def pytorch_training(bench: Bench, sizes: tuple):
    """Returns the speed of the notebook's training, or None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    batch, sequence, hidden, layers = sizes
    device = "cpu" if bench.options.device == "cpu" else "cuda"
    done = measure.run_peer(
        sys.executable, "train_loop.py", text=bench.folder / "long.txt", batch_size=batch,
        sequence_length=sequence, hidden_size=hidden, num_layers=layers, device=device,
        steps=5 if bench.options.quick else 60)
    return done[-1]["chars_per_second"]


def trainings(bench: Bench) -> list:
    """Measures trainings of the notebook's recipe."""
    quick = bench.options.quick
    long = text(20_000 if quick else 3_000_000)
    (bench.folder / "long.txt").write_text(long)
    sizes_and_flags = (((8, 20, 32, 2), (), None),) if quick else TRAININGS
    rows = []
    for sizes, flags, target in sizes_and_flags:
        name = f"training {sizes[0]} x {sizes[1]}, {sizes[3]} x {sizes[2]}{' tf32' if flags else ''}"
        progress(name)
        peer = None if flags else pytorch_training(bench, sizes)
        chars = len(long) if quick else max(
            TRAINING_SECONDS * target, 100 * sizes[0] * sizes[1])
        shorter = bench.folder / "part.txt"
        shorter.write_text(long[:chars])
        with bench.server("speed", None, *flags) as (process, address):
            done = measure.train(address, shorter, sizes, "bench", "--precision", "float32")
            stop_cleanly(process)
        rows.append(speed_row(name, done["chars_per_second"], target, peer))
    return rows


def throughput(bench: Bench, address: str, model: str, count: int) -> float:
    """Measures generation with this number of streams, in characters per second."""
    progress(f"streams of {model}: {count:,}")
    seconds = 2 if bench.options.quick else 8
    done = measure.load(address, count, seconds, "--length", "2000", model=model)
    return done["chars_per_second"]


def streams(bench: Bench, address: str, model: str, counts: tuple) -> list:
    """Measures generation with several numbers of streams."""
    rows = []
    for count, target in counts:
        speed = throughput(bench, address, model, count)
        target = None if bench.options.quick else target
        plural = "" if count == 1 else "s"
        rows.append(speed_row(f"{model}: {count:,} stream{plural}", speed, target))
    return rows


def seconds_of(command) -> float:
    """The shortest of three times, with the start of the client."""
    def once() -> float:
        begin = time.perf_counter()
        command()
        return time.perf_counter() - begin
    return min(once() for _ in range(3))


def prompt_and_score(bench: Bench, address: str) -> list:
    """Measures a long prompt and a score, less the time of a call that does hardly
    anything."""
    quick = bench.options.quick
    prompts, files = bench.small, []
    for number in range(3):
        # A new prompt each time: the server keeps the states of those before.
        file = bench.folder / f"prompt{number}.txt"
        file.write_text(prompts[number:][: 500 if quick else PROMPT_CHARS])
        files.append(file)
    unused = iter(files)
    call = ["generate", "--model", "large", "--length", 1, "--no-echo"]
    base = seconds_of(lambda: client(address, *call, "--prime", "!"))
    prompt = seconds_of(lambda: client(address, *call, "--prime-file", next(unused)))
    chars = len(files[0].read_text())
    rows = [speed_row(f"prompt of {chars:,} characters", chars / max(prompt - base, 1e-4),
                      None if quick else PROMPT_TARGET)]
    scored = bench.folder / "scored.txt"
    scored.write_text(bench.small[: 1_000 if quick else SCORE_CHARS])
    score = seconds_of(lambda: client(address, "score", "--model", "large", "--text", scored))
    chars = len(scored.read_text())
    rows.append(speed_row(f"score of {chars:,} characters", chars / max(score - base, 1e-4),
                          None if quick else SCORE_CHARS / SCORE_SECONDS))
    return rows


def train_for_generation(bench: Bench, address: str, model: str, hidden: int,
                         vocabulary: int) -> None:
    """A model of some steps: the speed does not depend on the weights."""
    file = bench.folder / f"{model}.txt"
    file.write_text(text(max(20_000, 4 * vocabulary), vocabulary))
    client(address, "train", "--text", file, "--model", model, "--epochs", 1, "--hidden-size",
           hidden, "--num-layers", 2, "--sample-chars", 0)


def during_training(bench: Bench, address: str) -> tuple:
    """Measures 64 streams right before a training, and while it uses the same device."""
    alone = throughput(bench, address, "large", 64)
    detached = client(address, "train", "--text", bench.folder / "long.txt", "--model", "busy",
                      "--recipe", "notebook", "--epochs", 1000, "--sample-chars", 0, "--detach")
    training = detached.split()[-1]
    time.sleep(3)
    part = throughput(bench, address, "large", 64) / alone
    client(address, "trainings", "cancel", training)
    met = "" if bench.options.quick else ("yes" if part >= DURING_TRAINING else "no")
    target = "" if bench.options.quick else f"{DURING_TRAINING:.0%}"
    return ("64 streams during a training, part of those without", f"{part:.0%}", "", target, met)


def generation(bench: Bench) -> list:
    """Measures generation, prompts and scores."""
    quick = bench.options.quick
    flags = ("--max-batch", "64" if quick else str(MAX_BATCH))
    with bench.server("speed", None, *flags) as (process, address):
        hidden = 32 if quick else 512
        train_for_generation(bench, address, "large", hidden, 78)
        rows = streams(bench, address, "large", ((1, None), (64, None)) if quick else STREAMS)
        train_for_generation(bench, address, "chinese", hidden, LARGE_VOCABULARY)
        rows += streams(bench, address, "chinese", ((1, None),) if quick else LARGE_STREAMS)
        rows += prompt_and_score(bench, address)
        rows.append(during_training(bench, address))
        print(f"memory of the server: {measure.peak_memory(process.pid) / 2**20:,.0f} MiB")
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader"]
            print(f"memory of the GPU in use: {measure.call(query).strip()}")
        stop_cleanly(process)
    return rows


def check_graphs(bench: Bench, checks: Checks) -> None:
    """No server has reported that training steps are launched one operation at a time."""
    if bench.options.device == "cpu":
        return
    logs = Path(bench.options.logs).glob("server-*.log")
    reported = any("do not run as CUDA graphs" in log.read_text(errors="replace") for log in logs)
    checks.require("the steps of trainings run as CUDA graphs", not reported)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--quick", action="store_true", help="small sizes, without targets")
    parser.add_argument("--logs", default=".", help="folder for the logs of the servers")
    options = parser.parse_args()
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="charlstm-gpu-") as folder:
        bench = Bench(options, Path(folder))
        check_resume(bench, checks)
        check_texts(bench, checks)
        rows = trainings(bench) + generation(bench)
        check_graphs(bench, checks)
    heading = ("characters per second", "measured", "PyTorch, notebook", "target", "met")
    print(aligned([heading, *rows]))
    print(f"{checks.broken} guarantees broken")
    if checks.broken:
        raise Failure("the server on this device breaks a guarantee")
    return 0


if __name__ == "__main__":
    measure.run(main)
