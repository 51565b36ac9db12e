#!/usr/bin/env python3
"""Speed of the notebook's predict loop and of cuDNN's LSTM on a GPU, for
comparison with `gpu_check`. The weights are PyTorch's initial ones: the speed
does not depend on them.

    predict_cuda.py [--tokens 78 --hidden-size 512 --num-layers 2]
"""

import argparse
import sys
import time

import numpy
import torch

from notebook import CharLstm, one_hot

CHARACTERS = 1000
WARMUP = 50
SEQUENCE = 5000
REPEATS = 5


def predict(token: int, state, model: CharLstm, tokens: int):
    """The next token, drawn from the top 3, and the state after this one."""
    inputs = torch.from_numpy(one_hot(numpy.array([[token]]), tokens)).cuda()
    with torch.no_grad():
        output, state = model(inputs, state)
        weights, candidates = torch.exp(output).topk(3)
    weights = weights.cpu().numpy().reshape(-1)
    candidates = candidates.cpu().numpy().reshape(-1)
    return int(numpy.random.choice(candidates, p=weights / weights.sum())), state


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=78)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=2)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device")
    torch.manual_seed(1)
    numpy.random.seed(1)
    shape = (options.tokens, options.hidden_size, options.num_layers)
    model = CharLstm(*shape, 0.5).cuda().eval()
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")

    token, state = 0, None
    for character in range(WARMUP + CHARACTERS):
        if character == WARMUP:
            torch.cuda.synchronize()
            started = time.perf_counter()
        token, state = predict(token, state, model, options.tokens)
    speed = CHARACTERS / (time.perf_counter() - started)
    print(f"predict loop of the notebook, 1 stream: {speed:.0f} characters/s")

    text = torch.randint(0, options.tokens, (1, SEQUENCE), device="cuda")
    inputs = torch.nn.functional.one_hot(text, options.tokens).float()
    with torch.no_grad():
        model.lstm(inputs)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(REPEATS):
            model.lstm(inputs)
        torch.cuda.synchronize()
    speed = REPEATS * SEQUENCE / (time.perf_counter() - started)
    print(f"cuDNN's LSTM, 1 sequence of {SEQUENCE}: {speed:.0f} characters/s")


if __name__ == "__main__":
    main()
