#!/usr/bin/env python3
"""Measures the notebook's training loop in PyTorch, in float32 or, on the CPU with
--bf16, with `torch.autocast` in bfloat16.

    train_loop.py --text FILE [--hidden-size 512 --num-layers 2 --batch-size 128
                  --sequence-length 100 --steps 20 --warmup 3 --threads 2 --bf16 --device cuda]

Prints a JSON object with the training speed in characters per second, without
the warm-up steps, the loss of the last step, and the peak resident memory.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy
import torch

from notebook import CharLstm, Trainer, batches


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=100)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--clip-norm", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=20, help="number of timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="number of untimed steps")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 (autocast)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def all_epochs(data: numpy.ndarray, trainer: Trainer, batch: int, sequence: int):
    """Yields the batches of epoch after epoch, without end."""
    while True:
        trainer.begin_epoch()
        yield from batches(data, batch, sequence)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    text = options.text.read_text(encoding="utf-8")
    vocabulary = sorted(set(text))
    index = {character: i for i, character in enumerate(vocabulary)}
    data = numpy.array([index[character] for character in text])
    if len(data) < options.batch_size * options.sequence_length:
        raise SystemExit(f"{options.text} is shorter than one batch")

    model = CharLstm(len(vocabulary), options.hidden_size, options.num_layers, options.dropout)
    model.to(options.device).train()
    rate, clip = options.learning_rate, options.clip_norm
    trainer = Trainer(model, len(vocabulary), rate, clip, options.bf16)
    source = all_epochs(data, trainer, options.batch_size, options.sequence_length)
    loss = 0.0
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            started = time.perf_counter()
        loss = trainer.backward(*next(source))
        trainer.update()
    seconds = time.perf_counter() - started
    trained = options.steps * options.batch_size * options.sequence_length
    print(
        json.dumps(
            {
                "chars_per_second": trained / seconds,
                "seconds": seconds,
                "steps": options.steps,
                "loss": loss,
                "threads": options.threads,
                # In KiB on Linux.
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
