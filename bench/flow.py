"""How well text flows while a model trains: one stream alone, then the same
beside a training of the notebook's size. `limits.py` runs it."""

import json
import random
import subprocess
from pathlib import Path

import many
import run

CHARS = 300_000


def beside_training(address: str, folder: Path, seconds: int) -> dict:
    """What one stream has without and with a training that keeps all
    processors busy."""
    run.progress("one stream, without and with a training beside it")
    without = run.load(address, 1, seconds)
    text = folder / "long.txt"
    text.write_text(many.ALPHABET + many.characters(random.Random(4), CHARS), encoding="utf-8")
    client = [str(run.RELEASE / "charlstm-client"), "--addr", address, "--json"]
    command = [*client, "train", "--text", str(text), "--model", "beside"]
    # That it was cancelled is no news to anybody.
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **quiet) as training:
        name = first_step(training)
        beside = run.load(address, 1, seconds)
        run.call([*client, "trainings", "cancel", name])
        # Reads on, so that the client can write its last lines and end.
        training.communicate()
    return {"without": without, "with": beside}


def first_step(training: subprocess.Popen) -> str:
    """Waits until steps are taken; the training's name."""
    for line in training.stdout:
        event = json.loads(line)
        if event.get("event") == "step":
            return event["training_id"]
    raise run.Failure("the training ended before its first step")


def rows(flow: dict) -> list:
    without, beside = flow["without"], flow["with"]
    speed = [side["chars_per_second"] for side in (without, beside)]
    late = beside["between_microseconds"]["p99"]
    return [
        ("1 stream alone, chars/s", f"{speed[0]:,.0f}", ""),
        ("  beside a training, chars/s", f"{speed[1]:,.0f}", ""),
        ("  share of its speed that is left", f"{speed[1] / speed[0]:.2f}", ">= 0.33"),
        ("  beside a training, p99, ms", f"{late / 1e3:.2f}", "< 20"),
    ]
