#!/usr/bin/env python3
"""Writes tests/golden/{notebook,iterbatches}.json, which the Rust tests compare
with.

    pip install torch==2.11.0 numpy
    python3 bench/reference/golden.py

Uses no random numbers and no dropout: weights and tokens are computed by
formulas that are given in the JSON, so that the tests can reproduce them.
"""

import json
import math
from pathlib import Path

import numpy
import torch

from notebook import CharLstm, Trainer, batches, one_hot

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
VOCABULARY = 11
STEPS = 5
LEARNING_RATE = 0.001
# Length of the single sequence that is evaluated at the end.
EVALUATED = 8

CASES = (
    # name, hidden, layers, batch, sequence, clip
    ("notebook", 16, 2, 3, 7, 5.0),
    # A maximum norm so small that every step is clipped.
    ("clipped", 8, 3, 3, 7, 0.05),
    # Adam is almost invariant to the scale of the gradient. Here clipping makes
    # the gradients as small as Adam's epsilon, so its effect is visible in the
    # parameters.
    ("clipped_to_epsilon", 6, 1, 3, 7, 1e-6),
)


def initial(count: int) -> numpy.ndarray:
    """All parameters as one flat array."""
    values = [0.1 * math.sin(k * 0.7 + 0.3) for k in range(count)]
    return numpy.array(values, dtype=numpy.float64).astype(numpy.float32)


def tokens(count: int) -> numpy.ndarray:
    return numpy.array([(i * i * 7 + 3 * i) % VOCABULARY for i in range(count)], dtype=numpy.int64)


def flat_order(model: CharLstm) -> list:
    """Named parameters in the order of the flat array.

    This is PyTorch's own order; the assertion verifies it.
    """
    named = list(model.named_parameters())
    expected = [
        f"lstm.{kind}_l{layer}"
        for layer in range(model.lstm.num_layers)
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ] + ["fc.weight", "fc.bias"]
    assert [name for name, _ in named] == expected
    return named


def set_parameters(model: CharLstm) -> None:
    named = flat_order(model)
    flat = initial(sum(parameter.numel() for _, parameter in named))
    start = 0
    with torch.no_grad():
        for _, parameter in named:
            part = flat[start : start + parameter.numel()]
            parameter.copy_(torch.from_numpy(part).reshape(parameter.shape))
            start += parameter.numel()


def rounded(values) -> list:
    """Rounds to nine significant digits, which identify a float32 exactly."""
    return [float(f"{value:.9g}") for value in numpy.asarray(values, dtype=numpy.float64).reshape(-1)]


def case(name: str, hidden: int, layers: int, batch: int, sequence: int, clip: float) -> dict:
    model = CharLstm(VOCABULARY, hidden, layers, dropout=0.0)
    set_parameters(model)
    trainer = Trainer(model, VOCABULARY, LEARNING_RATE, clip)
    # More tokens than the steps need: an incomplete batch must be dropped.
    data = tokens(STEPS * batch * sequence + 4)
    steps, gradients = [], {}
    trainer.begin_epoch()
    for inputs, targets in batches(data, batch, sequence):
        loss = trainer.backward(inputs, targets)
        if not gradients:
            gradients = {n: rounded(p.grad.detach().numpy()) for n, p in flat_order(model)}
        norm = trainer.update()
        steps.append({"loss": rounded([loss])[0], "gradient_norm": rounded([norm])[0]})
    assert len(steps) == STEPS
    if name != "notebook":
        assert all(step["gradient_norm"] > clip for step in steps)
    return {
        "name": name,
        "hidden_size": hidden,
        "num_layers": layers,
        "batch_size": batch,
        "sequence_length": sequence,
        "clip_norm": clip,
        "token_count": len(data),
        "steps": steps,
        "first_gradients": gradients,
        "last_parameters": {n: rounded(p.detach().numpy()) for n, p in flat_order(model)},
        "evaluation": evaluation(model),
    }


def evaluation(model: CharLstm) -> dict:
    """Raw logits of one sequence from a zero state, with the final parameters."""
    model.eval()
    inputs = tokens(EVALUATED)
    with torch.no_grad():
        output, _ = model.lstm(torch.from_numpy(one_hot(inputs[None, :], VOCABULARY)))
        logits = model.fc(output)[0]
    return {"tokens": inputs.tolist(), "logits": [rounded(row) for row in logits.numpy()]}


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=None, separators=(",", ":")) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def notebook_json() -> dict:
    return {
        "about": "The notebook's optimizer steps in PyTorch, written by bench/reference/golden.py",
        "torch": torch.__version__,
        "parameters": "parameter k of the flat array = 0.1 * sin(0.7 k + 0.3), in float64, then "
        "cast to float32; the array has each layer's weight_ih, weight_hh, bias_ih, bias_hh, then "
        "fc.weight, fc.bias",
        "tokens": "token i = (7 i i + 3 i) mod 11, i from 0, token_count of them",
        "first_gradients": "of step 1, before clipping",
        "evaluation": "raw logits [token][vocabulary] after the last step, from a zero state",
        "vocabulary_size": VOCABULARY,
        "learning_rate": LEARNING_RATE,
        "cases": [case(*values) for values in CASES],
    }


def iterbatches_json() -> dict:
    """The notebook's example: 42 numbers, in batches of 4 sequences of 3.

    The notebook's numbers are those of the sequences (1 1 1 2 2 2 ...). Distinct
    numbers, counted from 0, show the order more precisely, so both are written.
    """
    examples = {"notebook": [i // 3 + 1 for i in range(42)], "counting": list(range(42))}
    return {
        "about": "The notebook's batches, written by bench/reference/golden.py: the target of the "
        "last column is the first column of the next batch, and for the last batch column 0 of the "
        "whole reshaped data",
        "batch_size": 4,
        "sequence_length": 3,
        "examples": [
            {
                "name": name,
                "data": data,
                "batches": [
                    {"inputs": inputs.tolist(), "targets": targets.tolist()}
                    for inputs, targets in batches(numpy.array(data), 4, 3)
                ],
            }
            for name, data in examples.items()
        ],
    }


if __name__ == "__main__":
    # One thread: the order of summation, and so the last bits, are reproducible.
    torch.set_num_threads(1)
    write(GOLDEN / "notebook.json", notebook_json())
    write(GOLDEN / "iterbatches.json", iterbatches_json())
