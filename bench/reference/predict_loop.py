#!/usr/bin/env python3
"""Measures the notebook's predict loop in PyTorch: one character at a time, with
one-hot input and a carried hidden state; samples from the top 3.

    predict_loop.py [--tokens 78 --hidden-size 512 --num-layers 2 --chars 1000
                     --warmup 50 --threads 2]

The weights are newly initialised: the speed does not depend on them. Prints the
speed in characters per second, as a JSON object.
"""

import argparse
import json
import resource
import time

import numpy
import torch

from notebook import CharLstm, one_hot


def predict(token: int, state, model: CharLstm, tokens: int, top_k: int):
    """Returns the next token and the new state."""
    model.eval()
    inputs = torch.from_numpy(one_hot(numpy.array([[token]]), tokens))
    with torch.no_grad():
        output, state = model(inputs, state)
        weights, candidates = torch.exp(output).topk(top_k)
    weights = weights.numpy().reshape(-1)
    candidates = candidates.numpy().reshape(-1)
    return int(numpy.random.choice(candidates, p=weights / weights.sum())), state


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=78)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--chars", type=int, default=1000, help="number of timed characters")
    parser.add_argument("--warmup", type=int, default=50, help="number of untimed characters")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    numpy.random.seed(1)

    model = CharLstm(options.tokens, options.hidden_size, options.num_layers, 0.5)
    token, state = 0, None
    for char in range(options.warmup + options.chars):
        if char == options.warmup:
            started = time.perf_counter()
        token, state = predict(token, state, model, options.tokens, options.top_k)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "chars_per_second": options.chars / seconds,
                "seconds": seconds,
                "threads": options.threads,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
