"""Measures generation during a training: one stream on an otherwise idle server,
then one during a training with the notebook's model size. Used by `limits.py`."""

import json
import random
import subprocess
from pathlib import Path

import many
import measure

CHARS = 300_000


def during_training(address: str, folder: Path, seconds: int) -> dict:
    """Measures one stream without and with a training that uses all cores."""
    measure.progress("one stream, without and with a training")
    without = measure.load(address, 1, seconds)
    text = folder / "long.txt"
    text.write_text(many.ALPHABET + many.characters(random.Random(4), CHARS), encoding="utf-8")
    client = [str(measure.RELEASE / "charlstm-client"), "--addr", address, "--json"]
    command = [*client, "train", "--text", str(text), "--model", "during"]
    # Hide the client's messages, such as the one about the cancellation.
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **quiet) as training:
        training_id = first_step(training)
        during = measure.load(address, 1, seconds)
        measure.call([*client, "trainings", "cancel", training_id])
        # Read the rest, so that the client can write its last lines and exit.
        training.communicate()
    return {"without": without, "with": during}


def first_step(training: subprocess.Popen) -> str:
    """Waits for the first step event; returns the id of the training."""
    for line in training.stdout:
        event = json.loads(line)
        if event.get("event") == "step":
            return event["training_id"]
    raise measure.Failure("the training ended before its first step")


def rows(flow: dict) -> list:
    without, during = flow["without"], flow["with"]
    speed = [side["chars_per_second"] for side in (without, during)]
    p99 = during["between_microseconds"]["p99"]
    return [
        ("1 stream alone, chars/s", f"{speed[0]:,.0f}", ""),
        ("  during a training, chars/s", f"{speed[1]:,.0f}", ""),
        ("  relative speed", f"{speed[1] / speed[0]:.2f}", ">= 0.33"),
        ("  during a training, p99, ms", f"{p99 / 1e3:.2f}", "< 20"),
    ]
